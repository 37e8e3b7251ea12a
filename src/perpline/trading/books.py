"""Positions, orders and money as the tables have them."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from perpline.storage.store import TRADING_TABLES, Store

NEWEST = 2**62


async def read(
    store: Store,
    table: str,
    account: str | None = None,
    *,
    since: int | None = None,
    limit: int | None = None,
    **only: str | int | None,
) -> list[dict[str, Any]]:
    """Rows of a table of trading by column, oldest first."""
    wanted: dict[str, str | int | None] = {**only, **({"account": account} if account else {})}
    rows = await store.trading_rows(table, wanted, since=since, limit=limit)
    return [TRADING_TABLES[table].named(row) for row in rows]


async def last_marks(store: Store, positions: Iterable[dict[str, Any]]) -> dict[str, tuple[Decimal, int]]:
    """The last stored mark price of each symbol with its time, since the position in it was opened."""
    marks: dict[str, tuple[Decimal, int]] = {}
    for position in positions:
        symbol = position["symbol"]
        columns = ("updated_at", "mark_price")
        found = await store.series("premium_index", symbol, position["opened_at"] - 60_000, NEWEST, columns)
        if len(found["updated_at"]):
            price = Decimal(repr(float(found["mark_price"][-1])))
            marks[symbol] = price, int(found["updated_at"][-1])
    return marks


def unrealized(position: dict[str, Any], mark: Decimal | None) -> Decimal | None:
    """What is open is worth against its entry, quote; None where no mark price is stored."""
    if mark is None or position["entry_price"] is None:
        return None
    return Decimal(position["quantity"]) * (mark - Decimal(position["entry_price"])) * int(position["side"])
