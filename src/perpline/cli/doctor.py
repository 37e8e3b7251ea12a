"""`perpline doctor`: whether everything that is needed is there, before it is; on paper, and for live trading."""

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from perpline.bootstrap import (
    choose_instruments,
    followed_instruments,
    make_clock,
    make_data_dir,
    make_rest,
    open_store,
)
from perpline.cli.bundle import write_bundle
from perpline.cli.checks import ONLY_FOR_LIVE, Check, State, look_around, run_check
from perpline.cli.options import (
    ConfigOption,
    DatabaseOption,
    JsonOption,
    NetworkOption,
    RestUrlOption,
    SpeedOption,
    SymbolsOption,
    WsUrlOption,
    exchange_settings,
    print_json,
    run_loop,
)
from perpline.common.clock import Clock, SystemClock
from perpline.common.config import Settings, load_settings
from perpline.common.errors import NeedsPerson, PerplineError
from perpline.common.telemetry import configure_logging
from perpline.domain.instrument import Instrument
from perpline.exchange.binance import endpoints
from perpline.exchange.binance.credentials import Credentials, load_credentials
from perpline.exchange.binance.order_rate import OrderRate
from perpline.exchange.binance.order_socket import OrderSocket
from perpline.exchange.binance.rest import BinanceRest
from perpline.exchange.binance.trading_rest import BinanceTrading
from perpline.exchange.binance.user_events import decode_user_event
from perpline.trading.mode import Examination, note_examination
from perpline.trading.risk import Risk, bold_settings
from perpline.websocket.user_stream import UserStream

LARGEST_OFFSET_MS = 5_000
"""perpline corrects for a clock that is wrong; one that is more wrong than this is not looked after."""
WITHIN_S = 15.0
"""So long a connection may take to prove itself, wall seconds."""


def doctor(
    symbols: SymbolsOption = None,
    network: NetworkOption = None,
    ws_url: WsUrlOption = None,
    rest_url: RestUrlOption = None,
    speed: SpeedOption = None,
    database: DatabaseOption = None,
    live: Annotated[bool, typer.Option("--live", help="Missing keys are a failure, too.")] = False,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Write a file for a bug report, .zip or .tar.gz, without anything secret.", metavar="FILE"),
    ] = None,
    log: Annotated[
        Path | None, typer.Option(help="With --bundle: the worker's log; its last lines go in.", metavar="FILE")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look at everything a worker needs: folders, disk, database, Redis, model, ports, clock, symbols; where there are
    keys also at permissions, account and connections. Places no order. Exit 1 if anything failed.

    Without keys it is about paper trading, unless --live is given. The result for a key is stored: live trading asks
    for a passed one.

    Example: perpline doctor

    Example: perpline doctor --bundle report.zip --log worker.log
    """
    if log is not None and bundle is None:
        raise typer.BadParameter("is for --bundle", param_hint="--log")
    overrides = exchange_settings(symbols, network, ws_url, rest_url, speed)
    settings = load_settings(config, os.environ, {**overrides, "database_url": database})
    configure_logging("warning", settings.log_format, sys.stderr)

    async def main(stop: asyncio.Event) -> tuple[list[Check], list[str]]:
        checks = [*await look_around(settings), *await examine(settings, random.Random(), live=live)]
        if bundle is None:
            return checks, []
        return checks, await write_bundle(bundle, settings, checks, log, SystemClock().now_ms())

    checks, parts = run_loop(main)
    failed = [check.name for check in checks if check.state == "failed"]
    for_paper = [name for name in failed if name not in ONLY_FOR_LIVE]
    has_keys = next(check.state for check in checks if check.name == "keys") != "not checked"
    if as_json:
        readiness = {"ready_for_paper": not for_paper, "ready_for_live": has_keys and not failed}
        packed = {"bundle": str(bundle), "parts": parts} if bundle is not None else {}
        print_json({"passed": not failed, **readiness, "checks": msgspec.to_builtins(checks), **packed})
    else:
        console = Console()
        _show(checks, console)
        console.print(_readiness("paper", for_paper))
        console.print(_readiness("live", failed if has_keys else ["no API key"]))
        if bundle is not None:
            print(f"{bundle} is written ({', '.join(parts)}). Look into it before you send it.")
    if failed:
        what = "for live trading" if has_keys else "for paper trading"
        raise NeedsPerson(f"not ready {what}: {', '.join(failed)}")


def _readiness(what: str, lacking: Sequence[str]) -> Text:
    if not lacking:
        return Text(f"ready for {what} trading", "bold green")
    return Text(f"not ready for {what} trading: {', '.join(lacking)}", "yellow")


async def examine(settings: Settings, rng: random.Random, *, live: bool = False) -> list[Check]:
    """What the exchange says of keys, account, clock and symbols. The result is stored where there are keys.

    `live`: that there are none is a failure.
    """
    checks: list[Check] = []
    credentials = _keys(settings, checks, live)
    checks.append(_routes(settings))
    checks.append(_limits(Risk.of(settings)))
    try:
        clock = await make_clock(settings)
    except PerplineError as error:
        return [*checks, Check("exchange", "failed", str(error), "network, or binance_futures_rest_url")]
    rest = make_rest(settings, clock)
    try:
        await run_check(checks, "clock", lambda: _clock(clock, rest), _ADVICE)
        await run_check(checks, "symbols", lambda: _symbols(settings, rest, clock), _ADVICE)
        if credentials is not None:
            await _private(settings, credentials, clock, rest, rng, checks)
    finally:
        await rest.close()
    if credentials is not None:
        await _store(settings, credentials, clock, checks)
    return checks


def _keys(settings: Settings, checks: list[Check], live: bool) -> Credentials | None:
    try:
        credentials = load_credentials(settings, os.environ)
    except NeedsPerson as error:
        checks.append(Check("keys", "failed", str(error)))
        return None
    if credentials is None:
        advice = "api_key_file (docs/trading.md, Keys)"
        if live:
            checks.append(Check("keys", "failed", "there is no API key", f"set {advice}"))
        else:
            found = "there is no API key, and paper trading needs none"
            checks.append(Check("keys", "not checked", found, f"for live trading set {advice}"))
        return None
    kind = "HMAC" if credentials.signer.kind == "hmac" else "Ed25519"
    checks.append(Check("keys", "ok", f"{kind}, fingerprint {credentials.fingerprint}"))
    return credentials


def _routes(settings: Settings) -> Check:
    ws_url = settings.binance_futures_ws_url
    routes = [endpoints.connection_url(ws_url, route) for route in ("public", "market")]
    private = endpoints.user_stream_url(ws_url, "…").partition("?")[0]
    addresses = [settings.binance_futures_rest_url, *routes, private, endpoints.order_socket_url(ws_url)]
    return Check("addresses", "ok", f"{settings.network}: " + ", ".join(addresses))


def _limits(risk: Risk) -> Check:
    found = (
        f"leverage {risk.leverage}, at most {risk.max_positions} positions, {risk.max_symbol_usdt:g} USDT a symbol, "
        f"{risk.max_total_usdt:g} in all"
    )
    told = bold_settings(risk)
    return Check("limits", "warning" if told else "ok", found, "; ".join(told))


async def _clock(clock: Clock, rest: BinanceRest) -> Check:
    clock.offset_ms = await rest.measure_offset_ms()
    found = f"the exchange's is {clock.offset_ms} ms ahead of ours"
    if abs(clock.offset_ms) > LARGEST_OFFSET_MS * clock.speed:
        return Check("clock", "failed", found, "have the clock set over the network (chrony, systemd-timesyncd)")
    return Check("clock", "ok", found)


async def _instruments(settings: Settings, rest: BinanceRest, clock: Clock) -> dict[str, Instrument]:
    """What a worker would follow: by the settings and, where there is a database, its rows of `symbols`."""
    try:
        store = open_store(settings.database_url.get_secret_value(), read_only=True)
    except NeedsPerson:
        return await choose_instruments(settings, rest)  # there is none yet
    await store.open()
    try:
        return (await followed_instruments(settings, rest, store, clock.exchange_now_ms())).instruments
    finally:
        await store.close()


async def _symbols(settings: Settings, rest: BinanceRest, clock: Clock) -> Check:
    instruments = await _instruments(settings, rest, clock)
    marks = {mark.symbol: mark.mark_price for mark in await rest.mark_prices()}
    most = settings.size_usdt if settings.sizing == "notional" else settings.max_symbol_usdt
    odd = [reason for each in instruments.values() if (reason := _untradable(each, marks.get(each.symbol), most))]
    if len(odd) == len(instruments):
        return Check("symbols", "failed", "; ".join(odd[:5]), "size_usdt and max_symbol_usdt, or other symbols")
    found = f"{len(instruments)} with prices, steps and limits"
    return Check("symbols", "ok", found + (f"; {len(odd)} take no order of ours: {'; '.join(odd[:5])}" if odd else ""))


def _untradable(instrument: Instrument, mark: float | None, most_usdt: float) -> str:
    """Why no order of ours can be placed in it; empty where one can."""
    if not instrument.is_trading_perpetual:
        return f"{instrument.symbol} is {instrument.contract_type} and {instrument.status}"
    if mark is None:
        return f"{instrument.symbol} has no mark price"
    smallest = max(instrument.market_min_quantity, instrument.min_quantity, instrument.step_size)
    least = max(instrument.min_notional, smallest * Decimal(repr(mark)))
    if least > Decimal(repr(most_usdt)):
        return f"{instrument.symbol} takes {least:.0f} USDT at least, and a position may have {most_usdt:g}"
    return ""


async def _private(
    settings: Settings,
    credentials: Credentials,
    clock: Clock,
    rest: BinanceRest,
    rng: random.Random,
    checks: list[Check],
) -> None:
    async def measure_offset() -> None:
        clock.offset_ms = await rest.measure_offset_ms()

    rate = OrderRate(clock)
    trading = BinanceTrading(
        settings.binance_futures_rest_url,
        credentials,
        clock,
        rest.weight,
        rate,
        measure_offset=measure_offset,
        spot_url=endpoints.spot_rest_url(settings.binance_futures_ws_url, settings.binance_futures_rest_url),
    )
    try:
        await run_check(checks, "permissions", lambda: _permissions(trading), _ADVICE)
        if checks[-1].state == "failed":
            names = ("position mode", "margin mode", "account", "user stream", "order socket")
            checks.extend(Check(name, "not checked", "the key is of no use") for name in names)
            return
        await run_check(checks, "position mode", lambda: _position_mode(trading), _ADVICE)
        await run_check(checks, "margin mode", lambda: _margin_mode(trading), _ADVICE)
        await run_check(checks, "account", lambda: _account(trading), _ADVICE)
        await run_check(checks, "user stream", lambda: _user_stream(settings, trading, clock, rng), _ADVICE)
        if settings.order_transport == "rest":
            checks.append(Check("order socket", "not checked", "order_transport is rest"))
            return
        socket = OrderSocket(
            endpoints.order_socket_url(settings.binance_futures_ws_url),
            credentials,
            clock,
            rng,
            rate,
            rest.weight,
            on_report=lambda report: None,
            on_refused=lambda name, error: None,
            on_unknown=lambda name: None,
            measure_offset=measure_offset,
        )
        await run_check(checks, "order socket", lambda: _order_socket(socket), _ADVICE)
    finally:
        await trading.close()


async def _permissions(trading: BinanceTrading) -> Check:
    told = await trading.permissions()
    if not told.can_trade:
        return Check("permissions", "failed", "the key may not trade futures", "allow futures for it at the exchange")
    if told.can_withdraw:
        return Check("permissions", "failed", "the key may withdraw", "forbid it: perpline never needs that")
    if told.can_withdraw is None:
        return Check("permissions", "ok", "trading; whether it may withdraw is not told here")
    bound = "bound to addresses" if told.bound_to_address else "usable from any address: bind it to this one"
    return Check("permissions", "ok", f"trading, no withdrawal, {bound}")


async def _position_mode(trading: BinanceTrading) -> Check:
    if await trading.is_hedge_mode():
        advice = "set one-way mode at the exchange, without positions and orders (it holds for coin-margined ones too)"
        return Check("position mode", "failed", "hedge mode, in which perpline does not trade", advice)
    return Check("position mode", "ok", "one-way")


async def _margin_mode(trading: BinanceTrading) -> Check:
    if await trading.is_multi_assets_mode():
        advice = "set single-asset mode at the exchange"
        return Check("margin mode", "failed", "multi-assets mode, in which no margin can be isolated", advice)
    return Check(
        "margin mode", "ok", "single-asset; isolated margin and leverage are set for each symbol when it trades"
    )


async def _account(trading: BinanceTrading) -> Check:
    account = await trading.account()
    positions, orders, stops = await trading.positions(), await trading.open_orders(), await trading.open_stops()
    found = (
        f"{account.equity:.2f} USDT, {account.available:.2f} of them free; {len(positions)} positions, "
        f"{len(orders)} orders, {len(stops)} conditional orders"
    )
    if account.available <= 0:
        return Check("account", "failed", found, "move USDT into the futures wallet")
    return Check("account", "ok", found)


async def _user_stream(settings: Settings, trading: BinanceTrading, clock: Clock, rng: random.Random) -> Check:
    stream = UserStream(
        make_key=trading.make_listen_key,
        keep_key=trading.keep_listen_key,
        url_of=lambda key: endpoints.user_stream_url(settings.binance_futures_ws_url, key),
        decode=decode_user_event,
        on_connected=trading.keep_listen_key,
        on_event=lambda event: None,
        on_lost=lambda reason: None,
        clock=clock,
        rng=rng,
    )
    async with _running(stream.run):
        if await _becomes(lambda: stream.live or bool(stream.last_error)) and stream.live:
            return Check("user stream", "ok", "a listen key was made and kept, and the stream opened")
    return Check(
        "user stream", "failed", stream.last_error or "it did not open", "network, or a proxy without WebSocket"
    )


async def _order_socket(socket: OrderSocket) -> Check:
    async with _running(socket.run):
        if await _becomes(lambda: socket.is_ready or bool(socket.last_error)) and socket.is_ready:
            return Check("order socket", "ok", "it opened and answers")
    advice = 'a key of its own for the WebSocket API, or order_transport = "rest"'
    return Check("order socket", "failed", socket.last_error or "it did not open", advice)


async def _store(settings: Settings, credentials: Credentials, clock: Clock, checks: list[Check]) -> None:
    """Note the result, for `perpline mode live` asks for it. That it could not be noted is a failure as well."""
    passed = not any(check.state == "failed" for check in checks)
    examination = Examination(
        at=clock.exchange_now_ms(),
        account_hash=credentials.fingerprint,
        passed=passed,
        result=msgspec.json.encode({"passed": passed, "checks": checks}).decode(),
    )
    try:
        make_data_dir(settings)
        store = open_store(settings.database_url.get_secret_value())
        await store.open()
        try:
            await note_examination(store, examination)
        finally:
            await store.close()
    except PerplineError as error:
        checks.append(Check("database", "failed", str(error), "the result must be stored: database_url"))


_ADVICE = {
    -2014: "the API key is not one of the exchange's",
    -2015: "the key is unknown, may not be used from this address, or is of another network",
    -1022: "the secret or private key does not belong to the API key",
}


@asynccontextmanager
async def _running(run: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _becomes(condition: Callable[[], bool]) -> bool:
    """Whether it does within WITHIN_S."""
    for _ in range(int(WITHIN_S / 0.05)):
        if condition():
            return True
        await asyncio.sleep(0.05)
    return False


_STYLES: dict[State, str] = {"ok": "green", "warning": "bold yellow", "failed": "bold red", "not checked": "yellow"}


def _show(checks: Sequence[Check], console: Console) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for check in checks:
        found: Any = Text(check.found)
        if check.advice:
            found.append(f"\n→ {check.advice}", "bold")
        table.add_row(check.name, Text(check.state, _STYLES[check.state]), found)
    console.print(table)
