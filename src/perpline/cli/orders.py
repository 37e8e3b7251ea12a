"""`perpline orders`: what was sent, and what became of it."""

import os
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from perpline.cli.books import (
    LEGS,
    AccountOption,
    Head,
    LimitOption,
    SinceOption,
    account_rank,
    account_text,
    fitting_table,
    price,
    short_times,
    side_text,
)
from perpline.cli.database import with_store
from perpline.cli.options import ConfigOption, DatabaseOption, JsonOption, print_json, time_ms
from perpline.common.config import load_settings
from perpline.storage.store import Store
from perpline.trading.books import read

_STYLE = {
    "filled": "green",
    "finished": "green",
    "new": "cyan",
    "partially_filled": "cyan",
    "rejected": "red",
    "expired": "red",
    "never_arrived": "red",
    "unknown": "bold red",
}


def orders(
    account: AccountOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Those that have ended too.")] = False,
    since: SinceOption = None,
    limit: LimitOption = 50,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show orders and stops: those under way or resting, or with --all the newest.

    Example: perpline orders --all --since 2026-11-23
    """
    settings = load_settings(config, os.environ, {"database_url": database})
    start = None if since is None else time_ms(since, "--since")

    async def work(store: Store) -> list[dict[str, Any]]:
        if everything:
            return await read(store, "orders", account, since=start, limit=limit)
        return await read(store, "orders", account, since=start, limit=limit, final_at=None)

    rows = with_store(settings, work, read_only=True)
    if as_json:
        print_json({"orders": rows})
        return
    console = Console(highlight=False)
    if not rows:
        console.print(
            "no order is open: --all shows those that have ended" if not everything else "there are no orders"
        )
        return
    console.print(_table(rows, console))


def _table(rows: list[dict[str, Any]], console: Console) -> Table:
    heads = [
        Head("made"),
        Head("account", rank=account_rank(rows, 9)),
        Head("symbol"),
        Head("for"),
        Head("side"),
        Head("kind", rank=5),
        Head("size", right=True, rank=2),
        Head("trigger", right=True, rank=3),
        Head("filled", right=True, rank=4),
        Head("at", right=True, rank=1),
        Head("status"),
        Head("detail", rank=6 if any(row["detail"] for row in rows) else 10),
    ]
    when = short_times(row["created_at"] for row in rows)
    shown: list[list[Text | str]] = [
        [
            when(row["created_at"]),
            account_text(row["account"]),
            row["symbol"],
            LEGS.get(row["leg"], row["leg"]),
            side_text(row["side"]),
            row["kind"].replace("_", " ") + (" reduce" if row["reduce_only"] else ""),
            "all" if row["kind"] == "stop_market" and not float(row["quantity"]) else price(row["quantity"]),
            price(row["trigger_price"]),
            price(row["filled"]),
            price(row["average_price"] or row["price"]),
            Text(row["status"].replace("_", " "), _STYLE.get(row["status"], "")),
            Text(row["detail"]),
        ]
        for row in rows
    ]
    return fitting_table(heads, shown, console)
