"""Which symbols are followed: the settings, and on top of them the rows of the table `symbols`.

The rule, for each symbol: the last `add` or `remove` decides; where there is none, the setting does. `exclude` wins
over both. A worker that finds a contract ended adds `delisted`, and then it is not followed, whatever is above, until a
row `listed` (a worker saw it trade again) or a later `add`. Rows are never changed: they hold for the next start too.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from perpline.storage.store import TRADING_TABLES, Store

Action = Literal["add", "remove", "delisted", "listed"]

TABLE = TRADING_TABLES["symbols"]
LISTINGS = TRADING_TABLES["listings"]

GONE = "GONE"
"""The status of a symbol that the exchange's list does not name any more."""


class SymbolChange(Struct, frozen=True, kw_only=True):
    """A row of `symbols`."""

    symbol: str
    action: Action
    changed_at: int
    by: str
    reason: str


class Listing(Struct, frozen=True, kw_only=True):
    """A row of `listings`."""

    symbol: str
    status: str
    seen_at: int
    followed_at: int | None = None
    """Since when; None: it is not followed any more."""
    delivery_at: int | None = None
    note: str = ""


class SymbolChanges:
    """What the rows say, folded one by one in the order they were added."""

    def __init__(self, rows: Iterable[SymbolChange] = ()) -> None:
        self.wanted: dict[str, SymbolChange] = {}
        """The last `add` or `remove` by symbol."""
        self.ended: dict[str, SymbolChange] = {}
        """The `delisted` that is in force, by symbol."""
        self.since: dict[str, int] = {}
        """When a symbol came or came back by a row: no minute before is expected of it."""
        for row in rows:
            self.add(row)

    def add(self, row: SymbolChange) -> None:
        if row.action == "delisted":
            self.ended[row.symbol] = row
            return
        if row.action != "listed":
            self.wanted[row.symbol] = row
        if row.action != "remove":
            self.ended.pop(row.symbol, None)
            self.since[row.symbol] = row.changed_at

    def follows(self, symbol: str, by_settings: Collection[str]) -> bool:
        """Whether the symbol is to be followed; `by_settings` are those of the settings, `exclude` left out already."""
        if symbol in self.ended:
            return False
        wanted = self.wanted.get(symbol)
        return symbol in by_settings if wanted is None else wanted.action == "add"

    def followed(self, by_settings: Sequence[str], exclude: Collection[str] = ()) -> list[str]:
        """The symbols to follow: those of the settings in their order, then those that were added."""
        known = dict.fromkeys([*by_settings, *self.wanted])
        return [symbol for symbol in known if symbol not in exclude and self.follows(symbol, by_settings)]


async def symbol_changes(store: Store) -> list[SymbolChange]:
    """Every change there was, oldest first."""
    return [msgspec.convert(TABLE.named(row), SymbolChange) for row in await store.trading_rows("symbols")]


async def listings(store: Store) -> dict[str, Listing]:
    """What workers saw last, by symbol."""
    rows = [msgspec.convert(LISTINGS.named(row), Listing) for row in await store.trading_rows("listings")]
    return {row.symbol: row for row in rows}


async def store_symbols(store: Store, changes: Sequence[SymbolChange] = (), seen: Sequence[Listing] = ()) -> None:
    """Add changes, and replace what was seen of these symbols, in one transaction. Raises Unavailable."""
    await store.commit_trading(
        {
            "symbols": [TABLE.row(msgspec.structs.asdict(row)) for row in changes],
            "listings": [LISTINGS.row(msgspec.structs.asdict(row)) for row in seen],
        }
    )


async def open_accounts(store: Store, symbol: str) -> list[str]:
    """The accounts with a position in the symbol that is not closed."""
    column = TRADING_TABLES["positions"].columns.index("account")
    rows = await store.trading_rows("positions", {"symbol": symbol, "closed_at": None})
    return sorted({str(row[column]) for row in rows})
