"""`perpline pnl`: what trading has earned and cost."""

import os
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from perpline.bootstrap import utc_text
from perpline.cli.books import (
    AccountOption,
    Head,
    SinceOption,
    account_rank,
    account_text,
    fitting_table,
    money,
    short_times,
    side_text,
)
from perpline.cli.database import with_store
from perpline.cli.options import ConfigOption, DatabaseOption, JsonOption, print_json, time_ms
from perpline.common.config import load_settings
from perpline.storage.store import Store
from perpline.trading.books import last_marks, read, unrealized

ZERO = Decimal(0)
AMOUNTS = ("realized", "fees", "funding", "net", "unrealized")
SHOWN = 30


def pnl(
    account: AccountOption = None,
    since: SinceOption = None,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show profit and loss: realised, fees, funding, and what is open at the last stored mark price.

    With --since of positions that were closed since then, and of those that are open.

    Example: perpline pnl --since 2026-11-01
    """
    settings = load_settings(config, os.environ, {"database_url": database})
    start = 0 if since is None else time_ms(since, "--since")

    async def work(store: Store) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        rows = await read(store, "positions", account)
        rows = [row for row in rows if row["closed_at"] is None or row["closed_at"] >= start]
        marks = await last_marks(store, [row for row in rows if row["status"] != "closed"])
        names = [account] if account else ["paper", "live"]
        equity = {name: newest[0] for name in names if (newest := await read(store, "equity", name, limit=1))}
        return [_amounts(row, marks) for row in rows], equity

    found, equity = with_store(settings, work, read_only=True)
    accounts = sorted({row["account"] for row in found})
    totals = {each: _total(row for row in found if row["account"] == each) for each in accounts}
    if as_json:
        plain = {each: _plain(total) for each, total in totals.items()}
        print_json({"positions": [_plain(row) for row in found], "accounts": plain, "equity": equity})
        return
    console = Console(highlight=False)
    if not found:
        console.print("nothing was traded")
        return
    console.print(_table(found[-SHOWN:], totals, console))
    if len(found) > SHOWN:
        console.print(f"the newest {SHOWN} of {len(found):,}; --json has all", style="dim")
    for each, row in equity.items():
        console.print(f"{each}: equity {Decimal(row['equity']):,.2f} USDT at {utc_text(row['minute'])}")


def _amounts(row: dict[str, Any], marks: dict[str, tuple[Decimal, int]]) -> dict[str, Any]:
    realized, fees, funding = (Decimal(row[name]) for name in ("realized_pnl", "fees", "funding"))
    is_open = row["status"] != "closed"
    mark = marks[row["symbol"]][0] if is_open and row["symbol"] in marks else None
    names = ("account", "position_id", "symbol", "side", "status", "opened_at", "closed_at", "exit_reason")
    return {
        **{name: row[name] for name in names},
        "realized": realized,
        "fees": fees,
        "funding": funding,
        "net": realized - fees + funding,
        "unrealized": unrealized(row, mark) if is_open else ZERO,
    }


def _total(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Sums of an account. What is open and has no mark price is not in `unrealized`, and is counted in `unmarked`."""
    found = list(rows)
    closed = [row for row in found if row["status"] == "closed"]
    return {
        **{name: sum((row[name] or ZERO for row in found), ZERO) for name in AMOUNTS},
        "positions": len(found),
        "open": len(found) - len(closed),
        "won": sum(row["net"] > 0 for row in closed),
        "lost": sum(row["net"] < 0 for row in closed),
        "unmarked": sum(row["unrealized"] is None for row in found),
    }


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: format(value, "f") if isinstance(value, Decimal) else value for name, value in row.items()}


def _table(rows: list[dict[str, Any]], totals: dict[str, dict[str, Any]], console: Console) -> Table:
    heads = [
        Head("account", rank=account_rank(rows, 6)),
        Head("symbol"),
        Head("side", rank=4),
        Head("opened", rank=5),
        Head("closed", rank=3),
        Head("by"),
        Head("realised", right=True, rank=2),
        Head("fees", right=True, rank=1),
        Head("funding", right=True, rank=1),
        Head("net", right=True),
        Head("unrealised", right=True),
    ]
    when = short_times(time for row in rows for time in (row["opened_at"], row["closed_at"]))
    shown: list[list[Text | str] | None] = [
        [
            account_text(row["account"]),
            row["symbol"],
            side_text(row["side"]),
            when(row["opened_at"]),
            Text("open", "bold") if row["closed_at"] is None else when(row["closed_at"]),
            row["exit_reason"],
            *_cells(row),
        ]
        for row in rows
    ]
    for account, total in totals.items():
        won = f"{total['won']} won, {total['lost']} lost"
        counts = [str(total["positions"]), f"{total['open']} open", won]
        shown += [None, [account_text(account), Text(f"all {account}", "bold"), "", *counts, *_cells(total)]]
    return fitting_table(heads, shown, console)


def _cells(row: dict[str, Any]) -> list[Text]:
    fees = money(row["fees"], coloured=False)
    return [money(row["realized"]), fees, money(row["funding"]), money(row["net"]), money(row["unrealized"])]
