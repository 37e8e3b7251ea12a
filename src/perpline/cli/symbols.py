"""`perpline symbols`: which symbols are followed."""

import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
from msgspec.structs import asdict
from rich.console import Console
from rich.text import Text

from perpline.bootstrap import make_rest, utc_text
from perpline.cli.books import Head, fitting_table, short_times
from perpline.cli.database import who, with_store
from perpline.cli.options import (
    ConfigOption,
    DatabaseOption,
    JsonOption,
    NetworkOption,
    PortOption,
    ReasonOption,
    RestUrlOption,
    exchange_settings,
    print_json,
    symbol_names,
)
from perpline.common.clock import SystemClock
from perpline.common.config import Settings, load_settings
from perpline.common.errors import NeedsPerson
from perpline.domain.instrument import Instrument
from perpline.storage.store import Store
from perpline.storage.symbols import (
    Action,
    Listing,
    SymbolChange,
    SymbolChanges,
    listings,
    open_accounts,
    store_symbols,
    symbol_changes,
)
from perpline.worker_client import market_now, running_status, wake_worker

app = typer.Typer(help="Show and change which symbols are followed, while a worker runs too.", no_args_is_help=True)

SymbolsArgument = Annotated[
    list[str], typer.Argument(help="One or several symbols.", metavar="SYMBOL...", show_default=False)
]

FUNDING_BACK_MS = 3_600_000
"""A row of `premium_index` that is older than this says nothing of the next funding."""


@app.command()
def add(
    symbols: SymbolsArgument,
    reason: ReasonOption = "",
    status_port: PortOption = None,
    database: DatabaseOption = None,
    network: NetworkOption = None,
    rest_url: RestUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow these symbols too, from now on and after every start.

    Example: perpline symbols add SOLUSDT --reason "wanted for the new model"
    """
    settings = _settings(config, database, status_port, network, rest_url)
    names = symbol_names(symbols)

    async def work(store: Store) -> list[dict[str, Any]]:
        changes = SymbolChanges(await symbol_changes(store))
        known, running = await listings(store), await running_status(settings)
        if excluded := [name for name in names if name in settings.exclude]:
            raise NeedsPerson(f"{', '.join(excluded)}: `exclude` in the settings is stronger, take it out there")
        by_settings = _by_settings(settings, known, changes)
        listed = await _listed(settings)
        now = market_now(running)
        for name in names:
            if changes.follows(name, by_settings):
                raise NeedsPerson(f"{name} is followed already")
            _check_trading(name, listed, now)
        return await _change(store, settings, "add", names, reason, running)

    _tell(with_store(settings, work), as_json)


@app.command()
def remove(
    symbols: SymbolsArgument,
    reason: ReasonOption = "",
    status_port: PortOption = None,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow these symbols no more. One with open positions is decided on no more, and forgotten when they are closed.

    Example: perpline symbols remove SOLUSDT --reason "too thin"
    """
    settings = _settings(config, database, status_port)
    names = symbol_names(symbols)

    async def work(store: Store) -> list[dict[str, Any]]:
        changes = SymbolChanges(await symbol_changes(store))
        known, running = await listings(store), await running_status(settings)
        followed = changes.followed(_by_settings(settings, known, changes), settings.exclude)
        nobody_knows = settings.top is not None and not known  # no worker has looked which are the top N
        for name in names:
            if name not in followed and not nobody_knows:
                raise NeedsPerson(f"{name} is not followed{_did_you_mean(name, followed)}")
        if not set(followed) - set(names) and not nobody_knows:
            raise NeedsPerson("nothing would be left to follow: stop the worker instead, or add another symbol first")
        changed = await _change(store, settings, "remove", names, reason, running)
        for facts in changed:
            facts["open_positions"] = await open_accounts(store, facts["symbol"])
        return changed

    _tell(with_store(settings, work), as_json)


@app.command("list")
def show(
    status_port: PortOption = None,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show each symbol that is followed, since when and why, and what the exchange said of it last; and who left.

    Example: perpline symbols list
    """
    settings = _settings(config, database, status_port)

    async def work(store: Store) -> tuple[list[dict[str, Any]], list[SymbolChange]]:
        rows = await symbol_changes(store)
        known, now = await listings(store), market_now(await running_status(settings))
        return [
            {**facts, "next_funding_at": await _next_funding(store, facts["symbol"], now)}
            for facts in entries(settings, rows, known)
        ], rows

    shown, rows = with_store(settings, work, read_only=True)
    if as_json:
        print_json({"symbols": shown, "history": [asdict(row) for row in reversed(rows)]})
        return
    console = Console(highlight=False)
    if not shown:
        by = f"{settings.symbols} by the settings" if settings.top else "no symbols"
        console.print(f"{by}, and no worker has followed anything on this database yet")
        return
    when = short_times(time for facts in shown for time in (facts["followed_at"], facts["next_funding_at"]))
    heads = [
        Head("symbol"),
        Head("followed"),
        Head("since", rank=2),
        Head("why", rank=1),
        Head("at the exchange"),
        Head("next funding", rank=4),
        Head("ends", rank=0 if any(facts["delivery_at"] for facts in shown) else 9),
        Head("note", rank=3 if any(facts["note"] for facts in shown) else 8),
    ]
    table: list[list[Text | str]] = [
        [
            facts["symbol"],
            Text(facts["state"], _STYLE.get(facts["state"], "")),
            when(facts["followed_at"]),
            facts["why"],
            Text(facts["status"] or "not asked yet", "" if facts["status"] == "TRADING" else "bold yellow"),
            when(facts["next_funding_at"]),
            "" if facts["delivery_at"] is None else utc_text(facts["delivery_at"]),
            Text(facts["note"]),
        ]
        for facts in shown
    ]
    console.print(fitting_table(heads, table, console))


_STYLE = {"yes": "green", "no": "dim", "leaving": "yellow", "coming": "cyan"}


def entries(settings: Settings, rows: Sequence[SymbolChange], known: Mapping[str, Listing]) -> list[dict[str, Any]]:
    """One for each symbol that is, was or is to be followed, in the order of following.

    `state`: yes; coming, it is to be followed and no worker has begun; leaving, the other way round; no.
    """
    changes = SymbolChanges(rows)
    by_settings = _by_settings(settings, known, changes)
    wanted = changes.followed(by_settings, settings.exclude)
    found = []
    for symbol in dict.fromkeys([*wanted, *known, *changes.wanted, *changes.ended]):
        listing = known.get(symbol)
        there = listing is not None and listing.followed_at is not None
        found.append(
            {
                "symbol": symbol,
                "state": ("yes" if there else "coming") if symbol in wanted else ("leaving" if there else "no"),
                "followed_at": None if listing is None else listing.followed_at,
                "why": _why(symbol, settings, changes, by_settings),
                "status": None if listing is None else listing.status,
                "seen_at": None if listing is None else listing.seen_at,
                "delivery_at": None if listing is None else listing.delivery_at,
                "note": "" if listing is None else listing.note,
            }
        )
    return found


def _why(symbol: str, settings: Settings, changes: SymbolChanges, by_settings: Sequence[str]) -> str:
    if symbol in settings.exclude:
        return "excluded by the settings"
    if (ended := changes.ended.get(symbol)) is not None:
        return f"delisted {utc_text(ended.changed_at)}: {ended.reason}"
    row = changes.wanted.get(symbol)
    if row is not None:
        words = {"add": "added", "remove": "removed"}[row.action]
        return f"{words} by {row.by}" + (f": {row.reason}" if row.reason else "")
    return f"settings: {settings.symbols if settings.top else 'symbols'}" if symbol in by_settings else "not wanted"


def _by_settings(settings: Settings, known: Mapping[str, Listing], changes: SymbolChanges) -> list[str]:
    """The symbols that the settings stand for. Those of top:N only the worker knows: what it follows without a row."""
    if isinstance(settings.symbols, str):
        named = [symbol for symbol, seen in known.items() if seen.followed_at and symbol not in changes.wanted]
    else:
        named = list(settings.symbols)
    return [symbol for symbol in named if symbol not in settings.exclude]


async def _change(
    store: Store, settings: Settings, action: Action, names: Sequence[str], reason: str, running: dict[str, Any] | None
) -> list[dict[str, Any]]:
    now = market_now(running)
    rows = [SymbolChange(symbol=name, action=action, changed_at=now, by=who(), reason=reason.strip()) for name in names]
    await store_symbols(store, rows)
    await wake_worker(settings)
    return [{**asdict(row), "worker": running is not None} for row in rows]


async def _listed(settings: Settings) -> dict[str, Instrument]:
    rest = make_rest(settings, SystemClock(), alone=True)
    try:
        return {instrument.symbol: instrument for instrument in await rest.instruments()}
    finally:
        await rest.close()


def _check_trading(name: str, listed: Mapping[str, Instrument], now: int) -> None:
    found = listed.get(name)
    if found is None:
        raise NeedsPerson(f"the exchange does not list {name}{_did_you_mean(name, listed)}")
    if not found.is_trading:
        ended = " and ends" if found.has_ended(now) else ""
        raise NeedsPerson(f"{name} is not TRADING at the exchange: it is {found.status}{ended}")


def _did_you_mean(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    close = [f"{name}USDT"] if f"{name}USDT" in known else get_close_matches(name, list(known), n=3, cutoff=0.7)
    return f": did you mean {' or '.join(close)}?" if close else ""


async def _next_funding(store: Store, symbol: str, now: int) -> int | None:
    rows = await store.series("premium_index", symbol, now - FUNDING_BACK_MS, 2**62, ["next_funding_time"])
    times = rows["next_funding_time"]
    return int(times[-1]) if len(times) and times[-1] > now else None


def _tell(changed: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({"changed": changed})
        return
    for facts in changed:
        when = (
            "the worker does it now"
            if facts["worker"]
            else "a running worker sees it within a second, else the next start does it"
        )
        words = "will be followed" if facts["action"] == "add" else "will be followed no more"
        print(f"{facts['symbol']}: {words}; {when}")
        if held := facts.get("open_positions"):
            print(
                f"{facts['symbol']} has an open {' and '.join(held)} position: its prices are heard and its stop is "
                "watched until it is closed; perpline flatten closes it now"
            )


def _settings(
    config: Path | None,
    database: str | None,
    status_port: int | None,
    network: str | None = None,
    rest_url: str | None = None,
) -> Settings:
    exchange = exchange_settings(None, network, None, rest_url, None)
    return load_settings(config, os.environ, {**exchange, "database_url": database, "status_port": status_port})
