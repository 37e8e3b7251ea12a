"""`perpline trades`: the executions."""

import os
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from perpline.cli.books import (
    AccountOption,
    Head,
    LimitOption,
    SinceOption,
    account_rank,
    account_text,
    fitting_table,
    money,
    price,
    short_times,
    side_text,
)
from perpline.cli.database import with_store
from perpline.cli.options import ConfigOption, DatabaseOption, JsonOption, print_json, time_ms
from perpline.common.config import load_settings
from perpline.storage.store import Store
from perpline.trading.books import read


def trades(
    account: AccountOption = None,
    since: SinceOption = None,
    limit: LimitOption = 50,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the newest executions with their fees.

    Example: perpline trades --since 2026-11-23
    """
    settings = load_settings(config, os.environ, {"database_url": database})
    start = None if since is None else time_ms(since, "--since")

    async def work(store: Store) -> list[dict[str, Any]]:
        return await read(store, "fills", account, since=start, limit=limit)

    rows = with_store(settings, work, read_only=True)
    if as_json:
        print_json({"trades": rows})
        return
    console = Console(highlight=False)
    if not rows:
        console.print("nothing was traded")
        return
    console.print(_table(rows, console))


def _table(rows: list[dict[str, Any]], console: Console) -> Table:
    heads = [
        Head("time"),
        Head("account", rank=account_rank(rows, 9)),
        Head("symbol"),
        Head("side"),
        Head("price", right=True),
        Head("size", right=True, rank=2),
        Head("notional", right=True, rank=3),
        Head("fee", right=True, rank=1),
        Head("realised", right=True),
        Head("kind", rank=4),
    ]
    when = short_times(row["traded_at"] for row in rows)
    shown: list[list[Text | str]] = [
        [
            when(row["traded_at"]),
            account_text(row["account"]),
            row["symbol"],
            side_text(row["side"]),
            price(row["price"]),
            price(row["quantity"]),
            money(Decimal(row["price"]) * Decimal(row["quantity"]), coloured=False),
            f"{price(row['fee'])} {row['fee_asset']}",
            money(Decimal(row["realized_pnl"])),
            row["kind"] + (" maker" if row["is_maker"] else ""),
        ]
        for row in rows
    ]
    return fitting_table(heads, shown, console)
