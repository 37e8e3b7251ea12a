"""`perpline mode`: where signals are traded."""

import asyncio
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from perpline.bootstrap import utc_text
from perpline.cli.books import Head, fitting_table, short_times
from perpline.cli.database import who, with_store
from perpline.cli.options import (
    ConfigOption,
    DatabaseOption,
    JsonOption,
    PortOption,
    ReasonOption,
    print_json,
    stderr,
    symbol_names,
)
from perpline.common.config import Settings, load_settings
from perpline.common.errors import NeedsPerson
from perpline.desk import Unclear, change_mode, mode_change
from perpline.storage.store import Store
from perpline.storage.symbols import listings, open_accounts, symbol_changes
from perpline.trading.mode import ALL, InForce, Mode, ModeRow, Positions, mode_rows
from perpline.worker_client import market_now, running_status

app = typer.Typer(help="Show and set where signals are traded: off, paper or live.", no_args_is_help=True)

SymbolsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[SYMBOL]...", help="Only these; default: all.", show_default=False)
]
PositionsOption = Annotated[
    Literal["keep", "protect", "flatten"],
    typer.Option(
        "--positions",
        help="What becomes of open positions: keep them under stop, target and time limit; protect, leave them to the "
        "stop that rests at the exchange; flatten, close them.",
    ),
]

HISTORY = 20
_OPTIONS = {"reason": "--reason", "for": "--for"}
_STYLE = {Mode.OFF: "dim", Mode.PAPER: "cyan", Mode.LIVE: "bold yellow"}


@app.command()
def show(
    status_port: PortOption = None,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which mode is in force, for all and for single symbols, and the last changes.

    Example: perpline mode show
    """
    settings = _settings(config, database, status_port)
    rows = with_store(settings, mode_rows, read_only=True)
    now = market_now(asyncio.run(running_status(settings)))
    in_force = InForce(rows)
    standing = [in_force.of_all, *in_force.of_symbols.values()]
    if as_json:
        facts = {"now": now, "modes": [_facts(row, now) for row in standing]}
        print_json({**facts, "history": [_facts(row, now) for row in rows[: -HISTORY - 1 : -1]]})
        return
    console = Console(highlight=False)
    console.print(_table(standing, now, console))
    if rows:
        console.print("\nlast changes", style="bold")
        console.print(_table(rows[: -HISTORY - 1 : -1], now, console))


@app.command()
def off(
    symbols: SymbolsArgument = None,
    reason: ReasonOption = "",
    positions: PositionsOption = "keep",
    status_port: PortOption = None,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Trade nothing. Signals are still made, stored and published.

    Example: perpline mode off --reason "news at 13:30" --positions flatten
    """
    _set(Mode.OFF, symbols, reason, positions, None, _settings(config, database, status_port), as_json)


@app.command()
def paper(
    symbols: SymbolsArgument = None,
    lasts: Annotated[
        str | None, typer.Option("--for", metavar="8h", help="Then off; default: until it is changed.")
    ] = None,
    reason: ReasonOption = "",
    positions: PositionsOption = "keep",
    status_port: PortOption = None,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Trade on paper, at the prices of the live market.

    Example: perpline mode paper --reason "to see it trade"
    """
    _set(Mode.PAPER, symbols, reason, positions, lasts, _settings(config, database, status_port), as_json)


@app.command()
def live(
    symbols: SymbolsArgument = None,
    lasts: Annotated[
        str, typer.Option("--for", metavar="8h", help="How long, then off: 30m, 8h, 2d, or forever.")
    ] = "",
    reason: ReasonOption = "",
    positions: PositionsOption = "keep",
    confirm: Annotated[
        bool, typer.Option("--confirm-live", help="Orders with real money are meant; asked for the first time.")
    ] = False,
    status_port: PortOption = None,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Trade at the exchange, with real money. Wants keys, a passed `perpline doctor` and a time.

    Example: perpline mode live BTCUSDT --for 8h --reason "first day" --confirm-live
    """
    settings = _settings(config, database, status_port)
    _set(Mode.LIVE, symbols, reason, positions, lasts, settings, as_json, confirm)


def _set(
    mode: Mode,
    symbols: list[str] | None,
    reason: str,
    positions: Positions,
    lasts: str | None,
    settings: Settings,
    as_json: bool,
    confirm: bool = False,
) -> None:
    names = symbol_names(symbols or ())
    try:
        change = mode_change(
            mode,
            symbols=names,
            reason=reason,
            positions=positions,
            lasts=lasts or None,
            confirm_live=confirm,
            by=who(),
        )
    except Unclear as error:
        raise typer.BadParameter(str(error), param_hint=_OPTIONS[error.about]) from None

    async def work(store: Store) -> list[ModeRow]:
        await _check_known(store, settings, names)
        return await change_mode(store, settings, change)

    rows = with_store(settings, work)
    unknown = [] if isinstance(settings.symbols, str) else [name for name in names if name not in settings.symbols]
    for name in unknown:
        stderr.print(f"{name} is none of the symbols in these settings", style="yellow", highlight=False)
    if as_json:
        print_json({"changed": [_facts(row, row.changed_at) for row in rows]})
        return
    for row in rows:
        until = "" if row.until is None else f" until {utc_text(row.until)}"
        print(f"{row.symbol or 'all symbols'}: {row.mode}{until}; open positions: {row.positions}")


async def _check_known(store: Store, settings: Settings, names: Sequence[str]) -> None:
    """Raises NeedsPerson for names that no worker has seen here, nobody asked for, and that hold nothing.

    Without a single listing no worker has said yet which symbols there are, and every name may be right.
    """
    seen = await listings(store) if names else {}
    if not seen:
        return
    by_settings = [] if isinstance(settings.symbols, str) else settings.symbols
    known = {*seen, *by_settings, *(change.symbol for change in await symbol_changes(store))}
    said = []
    for name in names:
        if name not in known and not await open_accounts(store, name):
            meant = difflib.get_close_matches(name, sorted(known), n=1)
            said.append(f"{name} is not known here" + (f": {meant[0]}?" if meant else ""))
    if said:
        raise NeedsPerson("; ".join(said))


def _facts(row: ModeRow, now: int) -> dict[str, Any]:
    facts: dict[str, Any] = msgspec.to_builtins(row)
    return {**facts, "symbol": row.symbol or None, "now": row.at(now)}


def _table(rows: list[ModeRow], now: int, console: Console) -> Table:
    heads = [
        Head("symbol"),
        Head("mode"),
        Head("until", rank=1 if any(row.until for row in rows) else 9),
        Head("positions", rank=2 if any(row.positions != "keep" for row in rows) else 8),
        Head("since", rank=3),
        Head("by", rank=4),
        Head("reason"),
    ]
    when = short_times(time for row in rows for time in (row.until, row.changed_at or None))
    shown: list[list[Text | str]] = [
        [
            "all" if row.symbol == ALL else row.symbol,
            Text(f"off ({row.mode} is over)", _STYLE[Mode.OFF])
            if row.is_over(now)
            else Text(row.mode, _STYLE[row.mode]),
            when(row.until),
            row.positions,
            when(row.changed_at or None),
            row.by,
            Text(row.reason),
        ]
        for row in rows
    ]
    return fitting_table(heads, shown, console)


def _settings(config: Path | None, database: str | None, status_port: int | None) -> Settings:
    return load_settings(config, os.environ, {"database_url": database, "status_port": status_port})
