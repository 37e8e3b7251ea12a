"""`perpline flatten`: close what is open, now."""

import asyncio
import os
import random
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Annotated, Any, Literal

import msgspec
import typer
from rich.console import Console
from rich.table import Column, Table

from perpline.accounts import Accounts
from perpline.bootstrap import make_clock, make_rest, measure_offset, open_store
from perpline.cli.database import who
from perpline.cli.mode import SymbolsArgument
from perpline.cli.options import (
    ConfigOption,
    DatabaseOption,
    JsonOption,
    NetworkOption,
    RestUrlOption,
    SpeedOption,
    WsUrlOption,
    exchange_settings,
    print_json,
    stderr,
    symbol_names,
)
from perpline.cli.worker import wake_worker
from perpline.common.clock import Clock
from perpline.common.config import Settings, load_settings
from perpline.common.errors import NeedsPerson, Unavailable
from perpline.common.telemetry import configure_logging
from perpline.exchange.binance import endpoints
from perpline.exchange.binance.credentials import Credentials, load_credentials
from perpline.exchange.binance.order_rate import OrderRate
from perpline.exchange.binance.rest import BinanceRest
from perpline.exchange.binance.trading_rest import BinanceTrading
from perpline.storage.store import TRADING_TABLES, Store
from perpline.trading.flatten import Flattened, flatten_live
from perpline.trading.mode import Mode, set_mode
from perpline.trading.trader import TradedMarket

PAPER_WITHIN_S = 20.0


def flatten(
    symbols: SymbolsArgument = None,
    account: Annotated[
        Literal["live", "paper", "both"] | None,
        typer.Option(help="Which account; default: both where there are keys, else paper.", show_default=False),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; stored with the mode.")] = "perpline flatten",
    network: NetworkOption = None,
    ws_url: WsUrlOption = None,
    rest_url: RestUrlOption = None,
    speed: SpeedOption = None,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set the mode to off and close what is open with reduce-only market orders; then cancel every order there is.

    Works with a worker and without one. Of the live account the exchange is asked, so positions that perpline does not
    know are closed too; for that it needs the keys, and no database.

    Example: perpline flatten BTCUSDT ETHUSDT
    """
    settings = load_settings(
        config,
        os.environ,
        {**exchange_settings(None, network, ws_url, rest_url, speed), "database_url": database},
    )
    configure_logging(settings.log_level, settings.log_format, sys.stderr)
    credentials = load_credentials(settings, os.environ)
    wanted = account or ("both" if credentials is not None else "paper")
    if wanted in ("live", "both") and credentials is None:
        raise NeedsPerson("the live account needs an API key: set api_key_file (docs/trading.md, Keys)")
    names = symbol_names(symbols or ())
    done = asyncio.run(_flatten(settings, credentials, wanted, names, reason))
    left = [each for each in done if each["left"] not in ("0", "0.0") or each["error"]]
    if as_json:
        print_json({"flattened": done, "flat": not left})
    elif done:
        Console(highlight=False).print(_table(done))
    else:
        print("nothing was open")
    if left:
        raise NeedsPerson(
            f"not everything could be closed: {', '.join(each['symbol'] for each in left)}; run it again, or close at "
            "the exchange"
        )


async def _flatten(
    settings: Settings, credentials: Credentials | None, account: str, symbols: Sequence[str], reason: str
) -> list[dict[str, Any]]:
    clock = await make_clock(settings)
    rest = make_rest(settings, clock)
    done: list[dict[str, Any]] = []
    async with AsyncExitStack() as stack:
        stack.push_async_callback(rest.close)
        await measure_offset(clock, rest)
        store = await _store_or_none(settings, stack)
        if store is None and account == "paper":
            raise NeedsPerson("the paper account is in the database, and that cannot be opened")
        if store is not None:
            await set_mode(
                store,
                symbols,
                Mode.OFF,
                positions="flatten",
                now=clock.exchange_now_ms(),
                by=who(),
                reason=reason,
                until=None,
                slot=settings.slot,
            )
            await wake_worker(settings)
        if account in ("live", "both"):
            assert credentials is not None
            found = await _flatten_live(settings, clock, rest, credentials, store, symbols)
            done += [{"account": "live", **msgspec.to_builtins(each)} for each in found]
        if account in ("paper", "both") and store is not None:
            found = await _flatten_paper(settings, clock, rest, store, symbols)
            done += [{"account": "paper", **msgspec.to_builtins(each)} for each in found]
    return done


async def _store_or_none(settings: Settings, stack: AsyncExitStack) -> Store | None:
    """The database, if it can be opened: closing real positions does not wait for it."""
    store = open_store(settings.database_url.get_secret_value())
    try:
        await store.open()
    except (Unavailable, NeedsPerson) as error:
        stderr.print(f"without the database: {error}", style="yellow", highlight=False)
        return None
    stack.push_async_callback(store.close)
    return store


async def _flatten_live(
    settings: Settings,
    clock: Clock,
    rest: BinanceRest,
    credentials: Credentials,
    store: Store | None,
    symbols: Sequence[str],
) -> list[Flattened]:
    ws_url, rest_url = settings.binance_futures_ws_url, settings.binance_futures_rest_url
    trading = BinanceTrading(
        rest_url,
        credentials,
        clock,
        rest.weight,
        OrderRate(clock),
        measure_offset=lambda: measure_offset(clock, rest),
        spot_url=endpoints.spot_rest_url(ws_url, rest_url),
    )
    try:
        run = int(clock.wall_s()) if store is None else await store.next_number("run:live")
        known: dict[str, str] = {}
        if store is not None:
            for row in await store.trading_rows("positions", {"account": "live"}):
                values = TRADING_TABLES["positions"].named(row)
                if values["status"] != "closed":
                    known[values["symbol"]] = values["position_id"]
        instruments = {each.symbol: each for each in await rest.instruments()}
        return await flatten_live(
            trading,
            clock,
            instruments,
            run=run,
            symbols=symbols,
            known=known,
            progress=lambda line: stderr.print(line, style="dim", highlight=False),
        )
    finally:
        await trading.close()


async def _flatten_paper(
    settings: Settings, clock: Clock, rest: BinanceRest, store: Store, symbols: Sequence[str]
) -> list[Flattened]:
    """The worker does it, by the mode; where none has the account it is done here, at prices asked for now."""
    before = await _open_on_paper(store, symbols)
    if not before:
        return []
    marks = {each.symbol: each for each in await rest.mark_prices()}
    books = {each.symbol: each for each in await rest.book_tickers()}
    instruments = {each.symbol: each for each in await rest.instruments()}
    accounts = Accounts(
        settings,
        clock,
        store,
        random.Random(),
        market=TradedMarket(marks.get, books.get, instruments.get),
        wake_publisher=lambda messages: None,  # they wait in the outbox for the next worker
        default_levels_pct=lambda: (1.0, 1.0),
        credentials=None,
        weight=rest.weight,
        measure_offset=lambda: measure_offset(clock, rest),
    )
    running = asyncio.create_task(accounts.run())
    until = clock.wall_s() + PAPER_WITHIN_S
    try:
        while await _open_on_paper(store, symbols) and clock.wall_s() < until and not running.done():
            await clock.sleep_wall(0.1)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await accounts.drain()
    left = await _open_on_paper(store, symbols)
    return [
        Flattened(symbol=symbol, closed=quantity, left=left.get(symbol, "0")) for symbol, quantity in before.items()
    ]


async def _open_on_paper(store: Store, symbols: Sequence[str]) -> dict[str, str]:
    found = {}
    for row in await store.trading_rows("positions", {"account": "paper"}):
        values = TRADING_TABLES["positions"].named(row)
        if values["status"] != "closed" and (not symbols or values["symbol"] in symbols):
            found[values["symbol"]] = f"{'-' if values['side'] < 0 else ''}{values['quantity']}"
    return found


def _table(done: Sequence[dict[str, Any]]) -> Table:
    table = Table(
        "account", "symbol", Column("was open", justify="right"), Column("left", justify="right"), "", box=None
    )
    for each in done:
        table.add_row(each["account"], each["symbol"], each["closed"], each["left"], each["error"])
    return table
