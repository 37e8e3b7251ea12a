"""What a person may do to trading, whoever's hand it is: the command line's or the dashboard's.

Each change is a row with who and why before anything happens, and the same checks stand before it everywhere.
"""

import asyncio
import os
import random
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from perpline.accounts import Accounts
from perpline.bootstrap import make_clock, make_rest, measure_offset, open_store
from perpline.common.clock import Clock
from perpline.common.config import Settings
from perpline.common.errors import Malformed, NeedsPerson, PerplineError, Refused, Unavailable
from perpline.domain.market import BookTicker, MarkPrice
from perpline.domain.order import Account
from perpline.exchange.binance import endpoints
from perpline.exchange.binance.credentials import Credentials, load_credentials
from perpline.exchange.binance.order_rate import OrderRate
from perpline.exchange.binance.rest import BinanceRest
from perpline.exchange.binance.trading_rest import BinanceTrading
from perpline.leadership import shown_owner
from perpline.storage.store import TRADING_TABLES, Store
from perpline.trading.flatten import Flattened, flatten_live
from perpline.trading.mode import InForce, Mode, ModeRow, Positions, last_examination, mode_rows, set_mode
from perpline.trading.trader import TradedMarket
from perpline.worker_client import market_now, running_status, wake_worker

IN_ROLES_MS = 120_000
"""An inference worker renewed the lease of its group so lately: that group decides."""
FOREVER = "forever"
PAPER_WITHIN_S = 20.0
PRICES_EVERY_S = 1.0
"""So often prices are asked for while another process still has the paper account."""
MODE_STAYS = "so the mode is not set to off, and a worker that runs may open positions again: stop it"
WITHIN_S = 10.0
"""What closing real positions can do without has so long to answer."""
WRITTEN_WITHIN_S = 3.0
"""A worker that has closed a position has written so a moment later."""
T = TypeVar("T")
_UNITS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}


class Unclear(NeedsPerson):
    """A request that does not say enough, or says what can mean nothing. `about`: reason or for."""

    def __init__(self, message: str, about: Literal["reason", "for"]) -> None:
        super().__init__(message)
        self.about = about


class ModeChange(Struct, frozen=True, kw_only=True):
    """A change of mode that says everything; made by `mode_change`."""

    mode: Mode
    symbols: tuple[str, ...]
    """None: all of them."""
    reason: str
    positions: Positions
    lasts_ms: int | None
    confirm_live: bool
    by: str


def mode_change(
    mode: Mode,
    *,
    symbols: Sequence[str],
    reason: str,
    positions: Positions,
    lasts: str | None,
    confirm_live: bool,
    by: str,
) -> ModeChange:
    """The change that is asked for; `lasts` is "30m", "8h", "2d", "forever" or None. Raises Unclear."""
    if mode == Mode.LIVE and not lasts:
        raise Unclear("live is set for a time, like 8h, or forever", "for")
    if not reason.strip():
        raise Unclear("a change of mode has a reason", "reason")
    return ModeChange(
        mode=mode,
        symbols=tuple(symbols),
        reason=reason,
        positions=positions,
        lasts_ms=None if lasts in (None, FOREVER) else _duration_ms(str(lasts)),
        confirm_live=confirm_live,
        by=by,
    )


async def change_mode(store: Store, settings: Settings, change: ModeChange) -> list[ModeRow]:
    """Store the change and have the worker look; returns the rows that it is.

    Raises NeedsPerson where live trading must not begin, or where nobody would trade.
    """
    if change.mode == Mode.LIVE:
        await check_live(store, settings, change.confirm_live)
    now = market_now(await running_status(settings))
    if change.mode != Mode.OFF:
        await check_role(store, settings, now)
    rows = await set_mode(
        store,
        change.symbols,
        change.mode,
        positions=change.positions,
        now=now,
        by=change.by,
        reason=change.reason,
        until=None if change.lasts_ms is None else now + change.lasts_ms,
        slot=settings.slot,
    )
    await wake_worker(settings)
    return rows


async def check_live(store: Store, settings: Settings, confirm: bool) -> None:
    """Raises NeedsPerson where live trading must not begin."""
    keys = load_credentials(settings, os.environ)
    if keys is None:
        raise NeedsPerson("live trading needs an API key: set api_key_file (docs/trading.md, Keys)")
    examination = await last_examination(store, keys.fingerprint)
    if examination is None:
        raise NeedsPerson("these keys have not been examined: perpline doctor does, and must pass before live trading")
    if not examination.passed:
        raise NeedsPerson("perpline doctor found something that must be mended before live trading: run it again")
    if not confirm and not any(row.mode == Mode.LIVE for row in await mode_rows(store)):
        raise NeedsPerson("this would be the first live trading: confirm it (--confirm-live) if real money is meant")


async def check_role(store: Store, settings: Settings, now: int) -> None:
    """Raises NeedsPerson where inference workers decide, for these trade nothing."""
    lease = await store.lease(f"missed:{settings.slot}")
    if lease is not None and lease.owner and abs(now - lease.until) < IN_ROLES_MS:
        raise NeedsPerson(
            f"inference workers decide for slot {settings.slot} ({shown_owner(lease.owner)} is one), and only a worker "
            "with --role all trades: stop them and start one"
        )


async def flatten(
    settings: Settings,
    *,
    account: Literal["live", "paper", "both"] | None,
    symbols: Sequence[str],
    reason: str,
    by: str,
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Set the mode to off and close what is open in these symbols, or in all; what was done, a `Flattened` each.

    `account` None means both where there are keys, else paper. `tell` is called with lines for a person meanwhile.
    Closing the live account waits for no database: what it does not take is told. Raises NeedsPerson, and changes
    nothing, where there are no keys for the account and where None would leave the live account open; PerplineError
    where the account cannot be reached: the mode is off then.
    """
    credentials = load_credentials(settings, os.environ)
    wanted = account or ("both" if credentials is not None else "paper")
    if wanted in ("live", "both") and credentials is None:
        raise NeedsPerson("the live account needs an API key: set api_key_file (docs/trading.md, Keys)")
    clock = await make_clock(settings)
    rest = make_rest(settings, clock)
    done: list[dict[str, Any]] = []
    async with AsyncExitStack() as stack:
        stack.push_async_callback(rest.close)
        await measure_offset(clock, rest)
        store = await _store_or_none(settings, stack, tell)
        if store is None and wanted == "paper":
            raise NeedsPerson("the paper account is in the database, and that cannot be opened")
        held: dict[Account, dict[str, str]] = {}
        """What a worker may have closed, by the mode, before it is looked at here."""
        if store is not None:
            if account is None and credentials is None:
                await _check_no_live(store, symbols, clock.exchange_now_ms())
            accounts: tuple[Account, ...] = ("live", "paper") if wanted == "both" else (wanted,)
            for each in accounts:
                held[each] = await _or_without(_held(store, each, symbols), {}, tell, "without what the tables hold")
            setting = set_mode(
                store,
                symbols,
                Mode.OFF,
                positions="flatten",
                now=clock.exchange_now_ms(),
                by=by,
                reason=reason,
                until=None,
                slot=settings.slot,
            )
            if wanted == "paper":
                await setting
            elif not await _or_without(setting, None, tell, f"without the database, {MODE_STAYS}"):
                store = None
            await wake_worker(settings)
        if wanted in ("live", "both"):
            assert credentials is not None
            found = await _flatten_live(settings, clock, rest, credentials, store, symbols, tell)
            found += await _closed_meanwhile(clock, store, "live", held.get("live", {}), found)
            done += [{"account": "live", **msgspec.to_builtins(each)} for each in found]
        if wanted in ("paper", "both"):
            try:
                if store is None:
                    raise Unavailable("it is in the database, which is away")
                found = await _flatten_paper(settings, clock, rest, store, symbols)
                found += await _closed_meanwhile(clock, store, "paper", held.get("paper", {}), found)
            except PerplineError as error:
                if wanted == "paper":
                    raise
                # What was done for real money is told all the same.
                found = [Flattened(symbol=each, left="?", error=str(error)) for each in symbols or ["all"]]
            done += [{"account": "paper", **msgspec.to_builtins(each)} for each in found]
    return done


def left_open(done: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of what `flatten` did, what is not closed."""
    return [each for each in done if each["left"] not in ("0", "0.0") or each["error"]]


def _duration_ms(text: str) -> int:
    found = re.fullmatch(r"(\d{1,5})([mhd])", text.strip().lower(), re.ASCII)
    if found is None or int(found[1]) == 0:
        raise Unclear(f"no duration: {text!r}; 30m, 8h or 2d is one", "for")
    return int(found[1]) * _UNITS[found[2]]


async def _store_or_none(settings: Settings, stack: AsyncExitStack, tell: Callable[[str], None]) -> Store | None:
    """The database, if it can be opened: closing real positions does not wait for it."""
    store = open_store(settings.database_url.get_secret_value())
    try:
        await store.open()
    except (Unavailable, NeedsPerson) as error:
        tell(f"without the database, {MODE_STAYS}: {error}")
        return None
    stack.push_async_callback(store.close)
    return store


async def _or_without(work: Awaitable[T], otherwise: T, tell: Callable[[str], None], without: str) -> T:
    """What this gives; `otherwise`, which is told, where it fails or takes too long."""
    try:
        async with asyncio.timeout(WITHIN_S):
            return await work
    except TimeoutError:
        tell(f"{without}: no answer within {WITHIN_S:g} s")
    except PerplineError as error:
        tell(f"{without}: {error}")
    return otherwise


async def _closed_meanwhile(
    clock: Clock, store: Store | None, account: Account, held: Mapping[str, str], found: Sequence[Flattened]
) -> list[Flattened]:
    """What a worker closed, by the mode, before it was looked at here: it was open by the tables and is no more."""
    unseen = {symbol: held[symbol] for symbol in held.keys() - {each.symbol for each in found}}
    if store is None or not unseen:
        return []
    until = clock.wall_s() + WRITTEN_WITHIN_S
    try:
        while (still := await _held(store, account, list(unseen))) and clock.wall_s() < until:
            await clock.sleep_wall(0.1)
    except PerplineError:
        return []  # nobody can say then; that the account is flat is known all the same
    return [Flattened(symbol=each, closed=unseen[each]) for each in sorted(unseen) if each not in still]


async def _check_no_live(store: Store, symbols: Sequence[str], now: int) -> None:
    """Raises NeedsPerson where by the tables the live account holds or trades one of these symbols; none means any."""
    held = await _held(store, "live", symbols)
    modes = InForce(await mode_rows(store))
    deciding = [modes.row_of(each) for each in symbols] or [modes.of_all, *modes.of_symbols.values()]
    if held:
        found = f"the live account has open positions ({', '.join(sorted(held))})"
    elif any(row.at(now) == Mode.LIVE for row in deciding):
        found = "the live account is traded"
    else:
        return
    raise NeedsPerson(
        f"{found} and there is no API key here: close what it holds at the exchange, or set api_key_file; "
        "--account paper closes only paper"
    )


async def _flatten_live(
    settings: Settings,
    clock: Clock,
    rest: BinanceRest,
    credentials: Credentials,
    store: Store | None,
    symbols: Sequence[str],
    tell: Callable[[str], None],
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
        run, known = int(clock.wall_s()), dict[str, str]()
        if store is not None:
            run = await _or_without(store.next_number("run:live"), run, tell, "without a number of the database")
            held = store.trading_rows("positions", {"account": "live"})
            for row in await _or_without(held, [], tell, "without the positions of the database"):
                values = TRADING_TABLES["positions"].named(row)
                if values["status"] != "closed":
                    known[values["symbol"]] = values["position_id"]
        listed = await _or_without(rest.instruments(), [], tell, "without the rules of the symbols")
        return await flatten_live(
            trading,
            clock,
            {each.symbol: each for each in listed},
            run=run,
            symbols=symbols,
            known=known,
            progress=tell,
        )
    finally:
        await trading.close()


async def _flatten_paper(
    settings: Settings, clock: Clock, rest: BinanceRest, store: Store, symbols: Sequence[str]
) -> list[Flattened]:
    """The worker does it, by the mode; where none has the account it is done here, at prices asked for now."""
    before = await _held(store, "paper", symbols)
    if not before:
        return []
    marks: dict[str, MarkPrice] = {}
    books: dict[str, BookTicker] = {}

    async def ask_prices() -> None:
        marks.update({each.symbol: each for each in await rest.mark_prices()})
        books.update({each.symbol: each for each in await rest.book_tickers()})

    await ask_prices()
    asked_at = clock.wall_s()
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
        while await _held(store, "paper", symbols) and clock.wall_s() < until and not running.done():
            await clock.sleep_wall(0.1)
            if clock.wall_s() - asked_at >= PRICES_EVERY_S:
                with suppress(Unavailable, Malformed, Refused):  # then at those that are known
                    await ask_prices()
                asked_at = clock.wall_s()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await accounts.drain()
    left = await _held(store, "paper", symbols)
    return [
        Flattened(symbol=symbol, closed=quantity, left=left.get(symbol, "0")) for symbol, quantity in before.items()
    ]


async def _held(store: Store, account: Account, symbols: Sequence[str]) -> dict[str, str]:
    """What the tables have open of these symbols, or of all: quantities, below 0 where short."""
    found = {}
    for row in await store.trading_rows("positions", {"account": account}):
        values = TRADING_TABLES["positions"].named(row)
        if values["status"] != "closed" and (not symbols or values["symbol"] in symbols):
            found[values["symbol"]] = f"{'-' if values['side'] < 0 else ''}{values['quantity']}"
    return found
