"""`perpline positions`: what is open, on paper and at the exchange."""

import os
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from perpline.cli.books import (
    AccountOption,
    Head,
    LimitOption,
    account_rank,
    account_text,
    fitting_table,
    money,
    price,
    short_times,
    side_text,
)
from perpline.cli.database import with_store
from perpline.cli.options import ConfigOption, DatabaseOption, JsonOption, print_json
from perpline.common.config import load_settings
from perpline.storage.store import Store
from perpline.trading.books import last_marks, read
from perpline.trading.books import unrealized as unrealized_pnl


def positions(
    account: AccountOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Closed ones too.")] = False,
    limit: LimitOption = 50,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show open positions with their stop, target, time limit and what they are worth at the last stored mark price.

    Example: perpline positions --account live
    """
    settings = load_settings(config, os.environ, {"database_url": database})

    async def work(store: Store) -> list[dict[str, Any]]:
        rows = await read(store, "positions", account)
        shown = rows[-limit:] if everything else [row for row in rows if row["status"] != "closed"]
        marks = await last_marks(store, [row for row in shown if row["status"] != "closed"])
        for row in shown:
            mark, at = marks.get(row["symbol"], (None, None)) if row["status"] != "closed" else (None, None)
            worth = unrealized_pnl(row, mark)
            row |= {
                "mark_price": None if mark is None else str(mark),
                "marked_at": at,
                "unrealized_pnl": None if worth is None else str(worth),
            }
        return shown

    rows = with_store(settings, work, read_only=True)
    if as_json:
        print_json({"positions": rows})
        return
    console = Console(highlight=False)
    if not rows:
        console.print("no position is open" if not everything else "there were no positions")
        return
    console.print(positions_table(rows, console))


def positions_table(rows: list[dict[str, Any]], console: Console) -> Table:
    heads = [
        Head("account", rank=account_rank(rows, 9)),
        Head("symbol"),
        Head("side"),
        Head("size", right=True, rank=4),
        Head("entry", right=True),
        Head("mark", right=True),
        Head("stop", right=True, rank=1),
        Head("target", right=True, rank=2),
        Head("at exchange", right=True, rank=7),
        Head("until", rank=6),
        Head("unrealised", right=True),
        Head("realised", right=True, rank=3),
        Head("status", rank=5 if all(row["status"] == "open" for row in rows) else 0),
    ]
    when = short_times(row["deadline"] for row in rows)
    return fitting_table(heads, [_cells(row, when) for row in rows], console)


def _cells(row: dict[str, Any], when: Callable[[int | None], str]) -> list[Text | str]:
    worth = row["unrealized_pnl"]
    closed = row["status"] == "closed"
    return [
        account_text(row["account"]),
        row["symbol"],
        side_text(row["side"]),
        price(row["opened_quantity"] if closed else row["quantity"]),
        price(row["entry_price"]),
        price(row["exit_price"]) if closed else "–" if row["mark_price"] is None else f"{float(row['mark_price']):.8g}",
        price(row["stop"]),
        price(row["target"]),
        price(row["protective_stop"]),
        when(row["deadline"]),
        money(None if worth is None else Decimal(worth)),
        money(Decimal(row["realized_pnl"]) - Decimal(row["fees"]) + Decimal(row["funding"])),
        Text(row["exit_reason"] or "closed", "dim") if closed else Text(row["status"], "bold"),
    ]
