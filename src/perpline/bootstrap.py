"""The one place where parts are made and joined. Everything else gets what it needs handed in."""

import asyncio
import os
import random
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import structlog
from msgspec import Struct

from perpline.accounts import Accounts
from perpline.bus.bus import Bus
from perpline.bus.memory import MemoryBus
from perpline.collector.buffer import Buffer
from perpline.collector.gaps import ClosedCandles, FetchCandles, GapLedger
from perpline.collector.malformed import MalformedFile
from perpline.collector.recorder import FrameWriter
from perpline.collector.rest_feed import RestFeed
from perpline.collector.rest_poller import RestPoller
from perpline.collector.spool import Spool, Taken
from perpline.common.clock import Clock, SystemClock
from perpline.common.config import Settings
from perpline.common.errors import Malformed, NeedsPerson, RateLimited, Refused, Unavailable
from perpline.domain.candle import INTERVAL_MS, MINUTE_MS, Candle, KlineUpdate, closed_candle, last_boundary
from perpline.domain.instrument import Instrument
from perpline.domain.market import BookTicker, MarkPrice
from perpline.domain.signal import Decision
from perpline.exchange.binance import endpoints
from perpline.exchange.binance.budget import SharedText
from perpline.exchange.binance.credentials import load_credentials
from perpline.exchange.binance.decode import (
    FORMING,
    Control,
    Dropped,
    FieldWatch,
    book_ticker_head,
    decode,
    decode_book_ticker,
    decode_kline,
    kline_head,
    stream_of,
)
from perpline.exchange.binance.rest import BinanceRest
from perpline.exchange.binance.weight import WeightLedger
from perpline.exchange.ports import MarketRest
from perpline.features.batch import BTC
from perpline.features.live import LiveFeatures, compile_kernel, kernel_is_kept
from perpline.inference.registry import Deployed, ModelLoader
from perpline.leadership import Leadership, new_owner
from perpline.signals.engine import Market, SignalEngine
from perpline.signals.journal import PATIENCE_S, Journal
from perpline.signals.journal import SPOOLED as SPOOLED_DECISIONS
from perpline.signals.publisher import Publisher
from perpline.storage.history import HISTORY_TABLES, symbol_history
from perpline.storage.shared_text import PostgresText, SqliteText
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import TABLES, TRADING_TABLES, Row, Store, candle_row
from perpline.storage.symbols import SymbolChanges, symbol_changes
from perpline.trading.trader import TradedMarket
from perpline.websocket.connection import Deadlines
from perpline.websocket.handlers.book_ticker_handler import BookTickerHandler
from perpline.websocket.handlers.kline_handler import KlineHandler
from perpline.websocket.handlers.mark_price_handler import MarkPriceHandler
from perpline.websocket.lane import Lane
from perpline.websocket.market_streams import MarketStreams, Wire
from perpline.websocket.stream_router import StreamRouter
from perpline.websocket.subscriptions import STREAM_TYPES

if TYPE_CHECKING:  # they bring Redis, which costs a third of a second
    from perpline.bus.feature_stream import FeatureStream
    from perpline.signals.sending import FeatureSender

A = TypeVar("A")

log = structlog.get_logger("perpline.bootstrap")

FUTURE_TOLERANCE_MS = 5 * MINUTE_MS
"""Stored candles may be so far ahead of the exchange's clock as we measured it: far more than any error of ours."""

LOOK_AT_FIELDS_EVERY = 16
"""Live, so many messages are routed for each one whose field names are checked; a replay checks all."""

VOLATILITY_MIN = 240
"""Minutes of the volatility by which positions are sized."""

LEAST_LOOKBACK_MIN = VOLATILITY_MIN + 1
"""Minutes held where no model says how many it needs."""

FIRST_ANSWER_S = 20.0
"""How long a command that asks much waits for the exchange's very first answer, wall seconds."""
TELL_EVERY_S = 4.0
LONGEST_TURN_S = 60.0
"""A start waits so long for its first requests' turn, market seconds: until the minute's request weight is new."""

SPOOLS = 9
"""Processes that may have a spool in one data folder."""
SPOOL_RESERVED_MB = 16
"""Disk that is taken beforehand for decisions: those of 600 symbols and ten minutes, or of 30 and three hours."""
SPOOL_MAY_DROP = tuple(sorted(TABLES, key=lambda table: not table.startswith("candles_")))
"""Rows, those first that can be fetched again. Decisions and gaps are never dropped."""

LIVE_SERIES: Mapping[str, str] = {
    "premium_index": "",
    "book_minutes": "",
    **{f"{series}_klines": "" for series in ("mark", "index", "premium")},
    "open_interest": " AND kind = 'spot_1m'",
}
"""Tables with a row a minute that nobody fetches again by itself, and which rows of them those are."""

NOT_STORED_BEFORE = "not stored by the process that led before"

CACHED_CANDLES = 96
"""15m and 1h candles loaded for each symbol at the first start: a day and four days."""


def make_data_dir(settings: Settings) -> None:
    """Make the folder that holds the default database, if it is not there. Raises NeedsPerson where that fails."""
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NeedsPerson(f"cannot make the data folder {settings.data_dir}: {error.strerror or error}") from None


def open_store(url: str, *, read_only: bool = False) -> Store:
    """The store that a database URL names, not yet opened.

    Raises NeedsPerson for one that cannot be served, and with `read_only` for a file that is not there: who only looks
    makes none.
    """
    scheme = url.split("://", 1)[0]
    if scheme == "sqlite":
        store = SqliteStore.from_url(url, read_only=read_only)
        if read_only and not store.path.exists():
            raise NeedsPerson(
                f"there is no database yet at {store.path}: perpline run makes one, and so do perpline import, "
                "backfill and demo --database; --database or database_url names another"
            )
        return store
    if scheme == "postgresql":
        try:
            from perpline.storage.postgres import PostgresStore  # an extra, and nobody else shall wait for its import
        except ModuleNotFoundError as error:
            if error.name != "asyncpg":
                raise
            raise NeedsPerson("PostgreSQL needs one more package: pip install 'perpline[postgres]'") from None
        return PostgresStore(url, read_only=read_only)
    raise NeedsPerson("a database is named as sqlite:///path/file.db or postgresql://user@host/database")


async def open_current(url: str) -> Store:
    """The store of a database URL, opened to be written to by a process beside the worker's.

    Raises NeedsPerson where it has an older schema: only a worker's start and `perpline db migrate` change that, so
    that no table changes under a worker that runs. Raises what `open_store` and `Store.open` raise.
    """
    looking = open_store(url, read_only=True)
    await looking.open()
    await looking.close()
    store = open_store(url)
    await store.open()
    return store


def open_bus(url: str) -> Bus:
    """The bus that a URL names, not yet opened."""
    if url.startswith("memory://"):
        return MemoryBus()
    from perpline.bus.redis import RedisBus  # imported when asked for: it costs a third of a second

    return RedisBus(url)


def make_rest(settings: Settings, clock: Clock, *, alone: bool = False) -> BinanceRest:
    """Requests to the exchange, within the weight budget that the processes of this Redis or database share.

    With `alone` only this object's own requests are counted.
    """
    weight = WeightLedger(
        clock,
        share=settings.rest_weight_share,
        shared=None if alone else open_shared_budget(settings),
        name=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}",
    )
    return BinanceRest(settings.binance_futures_rest_url, clock, weight)


def open_shared_budget(settings: Settings) -> SharedText | None:
    """Where the weight budget is shared: on Redis if that is the bus, else where the database is; None for nowhere.

    Not yet connected. One budget for each exchange and each name of an address that requests leave by.
    """
    exchange = urlsplit(settings.binance_futures_rest_url)
    name = f"weight:{exchange.hostname}:{exchange.port or ''}:{settings.rest_address}"
    bus, database = settings.redis_url.get_secret_value(), settings.database_url.get_secret_value()
    if not bus.startswith("memory://"):
        from perpline.bus.redis_text import RedisText

        return RedisText(bus, name)
    if not database.startswith("sqlite://"):
        return PostgresText(database, name)
    path = SqliteStore.from_url(database).path
    # In a folder that is not there yet no other process has a database.
    return SqliteText(path.with_name(f"{path.name}-budget"), name) if path.parent.is_dir() else None


async def make_clock(settings: Settings) -> SystemClock:
    """The clock of the process: the host's, or at another speed one that starts at the exchange's time."""
    if settings.clock_speed == 1:
        return SystemClock()
    rest = make_rest(settings, SystemClock(), alone=True)  # its minutes are another clock's
    try:
        return SystemClock(settings.clock_speed, anchor_ms=await rest.server_time())
    except Unavailable as error:
        raise _no_answer(settings, error) from error
    finally:
        await rest.close()


async def first_answer(
    settings: Settings,
    tell: Callable[[str], None],
    within_s: float = FIRST_ANSWER_S,
    tell_every_s: float = TELL_EVERY_S,
) -> None:
    """Return once the exchange has answered anything. Raises Unavailable where it has not in time (wall seconds),
    Refused where something answers that is no exchange.

    `tell` hears now and then what is being waited for. For commands that would try hundreds of requests; a worker ends
    at once, and is started again by whoever started it.
    """
    clock = SystemClock()
    rest = make_rest(settings, clock, alone=True)
    url, began_s = settings.binance_futures_rest_url, clock.wall_s()
    reason = "nothing came"

    async def tell_of_it() -> None:
        while True:
            await clock.sleep_wall(tell_every_s)
            left_s = within_s - (clock.wall_s() - began_s)
            tell(f"the exchange does not answer at {url} ({reason}): trying for {left_s:.0f} s more")

    telling = asyncio.create_task(tell_of_it(), name="waiting for the exchange")
    try:
        async with asyncio.timeout(within_s):
            while True:
                try:
                    await rest.server_time()
                    return
                except RateLimited:
                    return  # an answer; the weight ledger waits until more is allowed
                except Refused as error:
                    raise Refused(f"no exchange answers at {url} ({error}): check the address", error.code) from None
                except (Unavailable, Malformed) as error:
                    reason = str(error)
                    await clock.sleep_wall(min(0.5, within_s / 4))
    except TimeoutError:
        raise _no_answer(settings, Unavailable(f"{reason}, for {within_s:.0f} s")) from None
    finally:
        telling.cancel()
        await rest.close()


async def choose_instruments(settings: Settings, rest: MarketRest) -> dict[str, Instrument]:
    """The instruments that the settings stand for, by symbol, in the order named or by volume.

    Raises NeedsPerson for unknown symbols, Unavailable where the exchange does not answer.
    """
    listed = await _listed(settings, rest)
    if settings.top is not None:
        return await _top(settings, rest, listed)
    missing = [symbol for symbol in settings.symbols if symbol not in listed]
    if missing:
        raise NeedsPerson(f"the exchange does not list {', '.join(missing[:5])}: check `symbols`")
    return {symbol: listed[symbol] for symbol in settings.symbols if symbol not in settings.exclude}


class Followed(Struct, frozen=True, kw_only=True):
    """What a worker begins with; the names are those of `Parts`."""

    instruments: dict[str, Instrument]
    leaving: set[str]
    by_settings: list[str]
    since: dict[str, int]


async def followed_instruments(settings: Settings, rest: MarketRest, store: Store, now: int) -> Followed:
    """What to follow by the settings and the table `symbols`, and what only is heard until its positions are closed.

    A contract that has ended is left out, and so is one that was followed once and that the exchange does not list any
    more (`Universe` notes it): no worker shall fail to start over it. Raises NeedsPerson for symbols that nobody knows
    and where nothing is left to follow, Unavailable where exchange or database do not answer.
    """
    listed = await _listed(settings, rest)
    changes = SymbolChanges(await symbol_changes(store))
    if settings.top is not None:
        by_settings = list(await _top(settings, rest, listed))
    else:
        by_settings = [symbol for symbol in settings.symbols if symbol not in settings.exclude]
    wanted = changes.followed(by_settings, settings.exclude)
    missing = [symbol for symbol in wanted if symbol not in listed and symbol not in changes.wanted]
    held = await store.last_candles("1m", missing, 1) if missing else {}
    if unknown := [symbol for symbol in missing if not held.get(symbol)]:
        raise NeedsPerson(f"the exchange does not list {', '.join(unknown[:5])}: check `symbols`")
    chosen = {symbol: listed[symbol] for symbol in wanted if symbol in listed and not listed[symbol].has_ended(now)}
    if not chosen:
        raise NeedsPerson("no symbol is left to follow: perpline symbols list shows why, perpline symbols add adds one")
    positions = TRADING_TABLES["positions"]
    traded = {positions.named(row)["symbol"] for row in await store.trading_rows("positions", {"closed_at": None})}
    leaving = {symbol for symbol in traded - chosen.keys() if symbol in listed and not listed[symbol].has_ended(now)}
    return Followed(
        instruments=chosen | {symbol: listed[symbol] for symbol in sorted(leaving)},
        leaving=leaving,
        by_settings=by_settings,
        since=changes.since,
    )


async def _listed(settings: Settings, rest: MarketRest) -> dict[str, Instrument]:
    try:
        return {instrument.symbol: instrument for instrument in await rest.instruments()}
    except Unavailable as error:
        raise _no_answer(settings, error) from None


async def _top(settings: Settings, rest: MarketRest, listed: Mapping[str, Instrument]) -> dict[str, Instrument]:
    volumes = await rest.quote_volumes_24h()
    candidates = [
        instrument
        for instrument in listed.values()
        if instrument.is_trading_perpetual
        and instrument.quote_asset == "USDT"
        and instrument.symbol not in settings.exclude
    ]
    candidates.sort(key=lambda instrument: (-volumes.get(instrument.symbol, 0.0), instrument.symbol))
    if not candidates:
        raise NeedsPerson("the exchange lists no TRADING USDT perpetual that is not excluded")
    return {instrument.symbol: instrument for instrument in candidates[: settings.top]}


def _no_answer(settings: Settings, error: Unavailable) -> Unavailable:
    return Unavailable(
        f"the exchange does not answer at {settings.binance_futures_rest_url} ({error}): "
        "check the network, or the address (binance_futures_rest_url, network)",
        error.retry_after_s,
    )


@dataclass
class Parts:
    """Everything from router to outbox: what a worker of either kind, and a replay, have in common."""

    settings: Settings
    clock: Clock
    store: Store
    bus: Bus
    instruments: dict[str, Instrument]
    router: StreamRouter
    klines: KlineHandler
    marks: MarkPriceHandler
    books: BookTickerHandler
    closed: ClosedCandles
    ledger: GapLedger
    buffer: Buffer
    features: LiveFeatures
    engine: SignalEngine
    publisher: Publisher
    fields: FieldWatch
    malformed: MalformedFile
    dropped: dict[str, int] = field(default_factory=dict)
    """Messages left out on purpose, by reason."""
    loader: ModelLoader | None = None
    """None in a replay, which goes on with what it began with."""
    other_tables: Collection[str] = ()
    """The tables beside the candles that the models' features look back on."""
    accounts: Accounts | None = None
    """None in a replay, which trades nothing."""
    leadership: Leadership | None = None
    """None where there is nobody to lead: a replay."""
    journal: Journal | None = None
    """What the engine commits with."""
    spool: Spool | None = None
    """Where rows and decisions wait while the database is away; None where there is none to be had, and in a replay."""
    left_spools: Sequence[Spool] = ()
    """Those of dead processes that nobody else uses, until `recover_spools`."""
    fetch: FetchCandles | None = None
    """Asks the exchange for closed candles; None in a replay."""
    by_settings: Sequence[str] = ()
    """The symbols that the settings stood for at the start, whatever the table `symbols` says of them."""
    since: Mapping[str, int] = field(default_factory=dict)
    """By symbol, when a row of that table had it followed (again), exchange ms."""
    leaving: set[str] = field(default_factory=set)
    """Symbols that are decided on no more, and heard until their positions are closed."""
    lanes: Sequence[Lane[Any]] = ()
    sender: "FeatureSender | None" = None
    """With role = collector."""
    on_decided: list[Callable[[Sequence[Decision]], None]] = field(default_factory=list)
    """Told what was committed, between that and its publication: they must not take long."""
    on_forget: list[Callable[[str], None]] = field(default_factory=list)
    """Told of each symbol that is forgotten: for those who remember something by symbol and are no parts."""

    @property
    def symbols(self) -> list[str]:
        """The symbols that are decided on, or will be as soon as their windows are loaded."""
        return [symbol for symbol in self.instruments if symbol not in self.leaving]

    async def follow(self, instrument: Instrument) -> None:
        """Load one symbol more: its windows from the store, the remainder asked of REST through the one door.

        Nothing is decided before `begin_deciding`. Raises Unavailable and NeedsPerson as `load_windows` does; then it
        is not followed.
        """
        symbol = instrument.symbol
        self.forget(symbol)  # one that is leaving begins anew
        self.instruments[symbol] = instrument
        self.features.follow(symbol)
        self._lay_lanes()
        try:
            await load_symbols(self, [symbol], "it was not followed")
        except (Unavailable, NeedsPerson):
            self.forget(symbol)
            raise

    def begin_deciding(self, symbol: str) -> None:
        """Expect a decision on this symbol for every minute that closes from now on."""
        self.engine.add(symbol, last_boundary(self.clock.exchange_now_ms()))

    def retire(self, symbol: str) -> None:
        """Decide no more on this symbol and expect no candles; prices are heard, and stops watched, until `forget`."""
        self.engine.forget(symbol)
        self.closed.forget(symbol)
        self.leaving.add(symbol)

    def forget(self, symbol: str) -> None:
        """Drop everything of this symbol, in every part. Nothing for one that is not followed.

        Not while the engine has a minute of it on its way (`SignalEngine.is_due`): that needs its features.
        """
        if symbol not in self.instruments:
            return
        self.retire(symbol)
        self.marks.forget(symbol)
        self.books.forget(symbol)
        self.klines.forget(symbol)
        self.features.forget(symbol)
        del self.instruments[symbol]
        self.leaving.discard(symbol)
        self._lay_lanes()
        for forget in self.on_forget:
            forget(symbol)

    def _lay_lanes(self) -> None:
        for lane in self.lanes:
            lane.follow({endpoints.stream_name(symbol, lane.kind): symbol for symbol in self.instruments})

    def flush_minutes(self) -> None:
        """Put the rows of the minutes in progress into the buffer."""
        self.marks.flush()
        self.books.flush()


@asynccontextmanager
async def opened_parts(settings: Settings, rng: random.Random) -> AsyncIterator[tuple[Parts, BinanceRest]]:
    """The parts of a worker, with database and bus open, the clock's offset measured and the symbols chosen.

    Raises NeedsPerson for what only a person can mend, Unavailable where exchange, database or bus do not answer.
    """
    make_data_dir(settings)
    clock = await make_clock(settings)
    rest = make_rest(settings, clock)
    store = open_store(settings.database_url.get_secret_value())
    bus = open_bus(settings.redis_url.get_secret_value())
    stream: FeatureStream | None = None
    if settings.role == "collector":
        from perpline.bus.feature_stream import FeatureStream as Stream

        stream = Stream(settings.redis_url.get_secret_value(), settings.slot)
    spools: list[Spool] = []
    try:
        await store.open()
        followed = await _in_the_next_minute(
            clock, lambda: followed_instruments(settings, rest, store, clock.exchange_now_ms())
        )
        await measure_offset(clock, rest)
        await bus.open()
        loader = ModelLoader(store, clock, settings.models_dir, settings.slot, book_minutes=settings.book_minutes)
        leadership = Leadership(store, clock, lease_name(settings), new_owner())
        instruments, deployed = followed.instruments, await loader.at_start()
        if stream is not None:
            await stream.open()
            instruments = _instruments_of_shard(settings, instruments, deployed)
        spools += await take_spools(settings, clock)
        spool = spools[0] if spools else None
        parts = make_parts(
            settings,
            clock,
            store,
            bus,
            instruments,
            rest,
            rng,
            deployed,
            leadership=leadership,
            spool=spool,
            stream=stream,
        )
        parts.left_spools = spools[1:]
        loader.holds(parts.features.lookback_min, parts.features.cross_section, parts.other_tables)
        parts.loader = loader
        parts.by_settings, parts.since = followed.by_settings, followed.since
        parts.leaving = followed.leaving & instruments.keys()
        if stream is None:
            parts.accounts = make_accounts(parts, rest, rng)
        yield parts, rest
    finally:
        if stream is not None:
            await stream.close()
        for each in spools:
            await each.close()
        await bus.close()
        await store.close()
        await rest.close()


async def _in_the_next_minute(clock: Clock, ask: Callable[[], Awaitable[A]]) -> A:
    """What `ask` returns; asked once more where the request weight of this minute is used up.

    The process before this one may have used it, loading windows. Only a start waits: it would end over it.
    """
    try:
        return await ask()
    except Unavailable as error:
        if error.retry_after_s is None or error.retry_after_s > LONGEST_TURN_S:
            raise
        wait_s = error.retry_after_s
        log.warning("start_waits", reason=str(error), wait_s=round(wait_s, 1), action="start")
    await clock.sleep(wait_s)
    return await ask()


def lease_name(settings: Settings) -> str:
    """Whoever has this lease does the work of the role; others that are started for it stand by."""
    if settings.role == "collector":
        return f"collector:{settings.slot}:{settings.shard}"
    return f"leader:{settings.slot}"


def belongs(settings: Settings, symbol: str, *, cross_section: bool) -> bool:
    """Whether a worker hears this symbol: all, or those of its shard, and BTCUSDT where a model is measured by it."""
    from perpline.signals.sending import shard_of

    number, shards = settings.shard_numbers
    return shard_of(symbol, shards) == number or (cross_section and symbol == BTC)


def _instruments_of_shard(
    settings: Settings, instruments: Mapping[str, Instrument], deployed: Sequence[Deployed]
) -> dict[str, Instrument]:
    cross_section = any(each.model is not None and each.model.cross_section for each in deployed)
    from perpline.signals.sending import shard_of

    number, shards = settings.shard_numbers
    if not any(shard_of(symbol, shards) == number for symbol in instruments):
        raise NeedsPerson(f"shard {settings.shard} has none of the {len(instruments)} symbols: have fewer shards")
    return {
        symbol: each for symbol, each in instruments.items() if belongs(settings, symbol, cross_section=cross_section)
    }


async def take_spools(settings: Settings, clock: Clock) -> list[Spool]:
    """Our spool, and behind it those of dead processes of this data folder that hold something.

    Nothing where the folder cannot be used: that is told, and the work goes on without.
    """
    found: list[Spool] = []
    for number in range(1, SPOOLS + 1):
        folder = settings.data_dir / ("spool" if number == 1 else f"spool.{number}")
        if found and not folder.exists():
            continue
        spool = Spool(
            folder,
            settings.spool_mb << 20,
            clock,
            reserved={} if found else {SPOOLED_DECISIONS: min(SPOOL_RESERVED_MB, settings.spool_mb // 4 or 1) << 20},
            may_drop=SPOOL_MAY_DROP,
        )
        try:
            await spool.open()
        except Taken:
            continue
        except NeedsPerson as error:
            log.error("no_spool", reason=str(error), action="start")
            return found
        if found and not spool.kinds:
            await spool.close()
        else:
            found.append(spool)
    return found


def make_parts(
    settings: Settings,
    clock: Clock,
    store: Store,
    bus: Bus,
    instruments: dict[str, Instrument],
    rest: MarketRest | None,
    rng: random.Random,
    deployed: Sequence[Deployed],
    *,
    leadership: Leadership | None = None,
    spool: Spool | None = None,
    stream: "FeatureStream | None" = None,
) -> Parts:
    """Join everything that lies between a message and the outbox. `deployed` is what decides and what is to come.

    Without `rest` (a replay) nothing is ever fetched, and symbols are followed from their first kline on. Without
    `leadership` nobody else is thought of: what is decided is committed and published. Without `spool` what a database
    that is away does not take waits in memory. With `stream` nothing is decided here: features go there.
    """
    ledger = GapLedger(clock, store.open_gap, store.close_gap, spool)
    if not kernel_is_kept():
        log.info("compiling", what="feature kernel, once after an installation", action="start")
    compile_kernel()  # here and not at the first close: it takes seconds where it was never done
    models = [each.model for each in deployed if each.model is not None]
    features = LiveFeatures(
        instruments,
        max((model.lookback_min for model in models), default=LEAST_LOOKBACK_MIN),
        cross_section=any(model.cross_section for model in models),
    )
    other_tables = frozenset[str]().union(*(model.tables for model in models)) & HISTORY_TABLES.keys() - {"candles_1m"}

    def dropped_rows(table: str, rows: Sequence[Row]) -> None:
        for symbol, start, end in spans(table, rows):
            ledger.opened(symbol, table, start, end, "dropped: the database was away")

    buffer = Buffer(
        store.add_rows,
        clock,
        batch_size=settings.buffer_batch_rows,
        max_age_s=settings.buffer_max_age_s,
        max_rows=settings.buffer_max_rows,
        on_dropped=dropped_rows,
        is_deciding=lambda: engine.is_deciding,
        spool=spool,
    )
    if spool is not None:
        spool.on_dropped = buffer.dropped_from_spool

    def on_mark_price(mark: MarkPrice) -> None:
        if parts.accounts is not None:
            parts.accounts.on_mark_price(mark)

    def on_decided(decisions: list[Decision]) -> None:
        if parts.accounts is not None:
            parts.accounts.take_signals(decisions)
        for told in parts.on_decided:
            told(decisions)

    def follows(symbol: str) -> bool:
        return rest is None or symbol in instruments

    marks = MarkPriceHandler(partial(buffer.add, "premium_index"), on_mark_price, follows=follows)

    def streams_of(kind: str) -> dict[str, str]:
        return {endpoints.stream_name(symbol, kind): symbol for symbol in instruments}

    def unreadable(data: bytes, received_us: int, error: Malformed) -> None:
        router.set_aside(data, received_us, error)

    book_lane: Lane[BookTicker] | None = None
    kline_lanes: dict[str, Lane[KlineUpdate]] = {}
    if rest is not None and not settings.book_minutes:
        book_lane = Lane("bookTicker", streams_of("bookTicker"), book_ticker_head, decode_book_ticker, unreadable)
        kline_lanes = {
            interval: Lane(kind, streams_of(kind), kline_head, decode_kline, unreadable, only=FORMING)
            for interval in INTERVAL_MS
            for kind in [f"kline_{interval}"]
        }

    def book_minute_ended(row: Row) -> None:
        buffer.add("book_minutes", row)
        if "book_minutes" in other_tables:
            features.add_row("book_minutes", row)

    books = BookTickerHandler(book_minute_ended, book_lane, follows=follows)
    publisher = Publisher(
        store,
        bus,
        clock,
        rng,
        on_published=lambda messages, wall_us: engine.on_published(messages),
        is_spooling=lambda: journal.has_kept,
        # Where others decide, they publish.
        leads=lambda: stream is None and (leadership is None or leadership.leads),
    )
    journal = Journal(
        store,
        spool,
        publisher,
        clock,
        settings.slot,
        fence=lambda: None if leadership is None else leadership.fence(),
        # In an accelerated market a minute must not be over before the database is given up.
        patience_s=min(PATIENCE_S, max(0.25, settings.decide_within_s / 3 / clock.speed)),
    )

    def fenced() -> None:
        if leadership is not None:
            leadership.lose("another process has decided")

    def last_1m(symbol: str) -> Candle | None:
        return klines.last_closed["1m"].get(symbol)

    market = Market(marks.latest.get, books.get, last_1m, instruments.get)
    sender: FeatureSender | None = None
    if stream is not None:
        from perpline.signals.sending import FeatureSender as Sender

        sender = Sender(
            stream,
            clock,
            features,
            market,
            shard=settings.shard_numbers,
            owner="" if leadership is None else leadership.owner,
            leads=lambda: leadership is None or leadership.holds,
            expected=lambda: engine.expected,
            decide_within_s=settings.decide_within_s,
            book_minutes=settings.book_minutes,
            tables=sorted(other_tables),
        )
    engine = SignalEngine(
        clock=clock,
        store=store,
        features=features,
        deployed=deployed,
        market=market,
        slot=settings.slot,
        decide_within_s=settings.decide_within_s,
        wake_publisher=publisher.wake,
        end_book_minutes=books.end_minutes if "book_minutes" in other_tables else None,
        on_decided=on_decided,
        commit=journal.commit,
        on_fenced=fenced,
        send=None if sender is None else sender.send,
    )
    klines = KlineHandler(
        add_row=lambda candle: buffer.add(f"candles_{candle.interval}", candle_row(candle)),
        add_to_features=features.add,
        on_1m_candle_close=engine.on_1m_candle_close,
        lanes=kline_lanes,
        follows=follows,
    )

    async def fetch(symbol: str, interval: str, start: int, end: int) -> list[KlineUpdate]:
        assert rest is not None
        limit = min(1500, (end - start) // INTERVAL_MS[interval])
        return await rest.candles(symbol, interval, start=start, end=end, limit=limit)

    async def stored(interval: str, symbol: str, open_time: int) -> Candle | None:
        found = await store.candles(interval, symbol, open_time, open_time + 1)
        return found[0] if found else None

    async def repaired(candles: list[Candle]) -> None:
        """Store candles of a hole that was passed, and put the features' window together again."""
        stands_by = leadership is not None and not leadership.holds
        if not stands_by:
            await store.add_rows(f"candles_{candles[0].interval}", [candle_row(candle) for candle in candles])
        symbol = candles[0].symbol
        while candles[0].interval == "1m":
            if not stands_by:
                await buffer.flush()
            window = (await store.last_candles("1m", [symbol], features.lookback_min))[symbol]
            if not closed.follows(symbol):
                break
            newest = features.last_open(symbol)
            if newest is None or window[-1].open_time >= newest:
                features.rebuild(window)
                break
            if stands_by:
                raise Unavailable("the leader has not stored the newest candles yet")

    def repair_since(interval: str, now: int) -> int:
        if settings.gap_repair == "live":
            return 0
        held = features.lookback_min if interval == "1m" else CACHED_CANDLES
        return now - held * INTERVAL_MS[interval]

    closed = ClosedCandles(
        clock=clock,
        fetch=fetch if rest is not None else None,
        deliver=klines.deliver,
        ledger=ledger,
        revise=partial(buffer.add, "revisions"),
        stored=stored,
        repaired=repaired,
        repair_since=repair_since,
        close_deadline_s=settings.close_deadline_s,
        decide_within_s=settings.decide_within_s,
    )
    klines.offer = closed.offer

    def handle_kline_of_a_recording(update: KlineUpdate) -> None:
        if closed.follows(update.symbol):
            klines.handle(update)
            return
        for interval in INTERVAL_MS:
            closed.expect(update.symbol, interval, None)
        features.follow(update.symbol)
        engine.add(update.symbol, last_boundary(update.open_time))
        klines.handle(update)

    lanes: list[Lane[Any]] = [] if book_lane is None else [book_lane, *kline_lanes.values()]
    fields = FieldWatch()
    malformed = MalformedFile(settings.malformed_file, settings.malformed_file_mb << 20)
    parts: Parts

    def dropped(content: Dropped) -> None:
        parts.dropped[content.reason] = parts.dropped.get(content.reason, 0) + 1

    router = StreamRouter(
        decode,
        {
            KlineUpdate: klines.handle if rest is not None else handle_kline_of_a_recording,
            MarkPrice: marks.handle,
            BookTicker: books.handle,
            Dropped: dropped,
            Control: _control_answer,
        },
        set_aside=malformed.keep,
        see_fields=fields.see,
        see_every=1 if rest is None else LOOK_AT_FIELDS_EVERY,
        lanes=lanes,
    )
    parts = Parts(
        settings=settings,
        clock=clock,
        store=store,
        bus=bus,
        instruments=instruments,
        router=router,
        klines=klines,
        marks=marks,
        books=books,
        closed=closed,
        ledger=ledger,
        buffer=buffer,
        features=features,
        engine=engine,
        publisher=publisher,
        fields=fields,
        malformed=malformed,
        sender=sender,
        other_tables=other_tables,
        lanes=lanes,
        leadership=leadership,
        journal=journal,
        spool=spool,
        fetch=fetch if rest is not None else None,
    )
    return parts


def make_accounts(parts: Parts, rest: BinanceRest, rng: random.Random) -> Accounts:
    """The accounts that trade what the engine decides. Raises NeedsPerson for keys that cannot be used."""

    def levels_pct() -> tuple[float, float]:
        model = parts.engine.model
        return (1.0, 1.0) if model is None else (model.rule.tp_pct, model.rule.sl_pct)

    return Accounts(
        parts.settings,
        parts.clock,
        parts.store,
        rng,
        market=TradedMarket(
            parts.marks.latest.get,
            parts.books.get,
            parts.instruments.get,
            lambda symbol: parts.features.volatility(symbol, VOLATILITY_MIN),
        ),
        wake_publisher=parts.publisher.wake,
        default_levels_pct=levels_pct,
        credentials=load_credentials(parts.settings, os.environ),
        weight=rest.weight,
        measure_offset=partial(measure_offset, parts.clock, rest),
        leadership=parts.leadership,
    )


def _control_answer(answer: Control) -> None:
    """Acknowledgements prove nothing and are passed over; a refusal is told."""
    if answer.code is not None:
        log.error("exchange_refused_control_message", code=answer.code, text=answer.message, action="subscribe")


def make_market_streams(
    parts: Parts, rng: random.Random, recorder: FrameWriter | None, rest: MarketRest
) -> MarketStreams:
    """What carries every stream of every symbol to the router, and to the recorder if there is one.

    `rest` is asked for the books of symbols whose book has been quiet for long."""
    route_batch = parts.router.route_batch
    rest_books: dict[str, int] = {}

    def record_and_route(batch: list[bytes], received_us: int, source: int) -> set[str]:
        assert recorder is not None
        for data in batch:
            recorder.add(data, received_us)
        return route_batch(batch, received_us, source)

    def spoken_of(symbol: str, kind: str) -> int | None:
        """When the symbol surely was traded, or its book changed, as far as anything else than this stream tells."""
        times = [rest_books[symbol]] if kind == "bookTicker" and symbol in rest_books else []
        for interval in INTERVAL_MS:
            update = parts.klines.get(symbol, interval)
            # A closing frame comes without a trade too, a forming one only after one.
            if update is not None and not update.closed and update.trades:
                times.append(update.event_time)
        candle = parts.klines.last_closed["1m"].get(symbol)
        if candle is not None and candle.trades:
            times.append(candle.open_time)
        return max(times, default=None)

    async def ask_for_quiet_books() -> None:
        now, limit_s = parts.clock.wall_s(), streams.freshness.limit_s("bookTicker")
        heard = {symbol: streams.heard(symbol, "bookTicker") for symbol in parts.symbols}
        quiet = {symbol for symbol, at in heard.items() if at is not None and now - at > limit_s}
        rest_books.clear()
        if not quiet:
            return
        try:
            books = await rest.book_tickers()
        except (Unavailable, Malformed, Refused):
            return  # nothing is known, and nothing is held against the stream
        for book in books:
            known = parts.books.get(book.symbol) if book.symbol in quiet else None
            if known is not None and book.update_id > known.update_id:
                rest_books[book.symbol] = book.updated_at

    on_messages = route_batch if recorder is None else record_and_route
    streams = _market_streams(
        parts.settings, parts.clock, rng, parts.symbols, on_messages, spoken_of, ask_for_quiet_books
    )
    return streams


def make_recording_streams(
    settings: Settings, clock: Clock, rng: random.Random, symbols: Sequence[str], recorder: FrameWriter
) -> MarketStreams:
    """What carries every stream of these symbols to the recorder and nowhere else."""

    def record(batch: list[bytes], received_us: int, source: int) -> set[str]:
        for data in batch:
            recorder.add(data, received_us)
        return {stream for data in batch if (stream := stream_of(data)) is not None}

    return _market_streams(settings, clock, rng, symbols, record)


def _market_streams(
    settings: Settings,
    clock: Clock,
    rng: random.Random,
    symbols: Sequence[str],
    on_messages: Callable[[list[bytes], int, int], set[str]],
    spoken_of: Callable[[str, str], float | None] = lambda symbol, kind: None,
    ask: Callable[[], Awaitable[None]] | None = None,
) -> MarketStreams:
    return MarketStreams(
        wire=Wire(
            route_of=endpoints.route_of,
            stream_name=endpoints.stream_name,
            url_of=lambda route: endpoints.connection_url(settings.binance_futures_ws_url, route),
            subscribe_request=endpoints.subscribe_request,
            unsubscribe_request=endpoints.unsubscribe_request,
        ),
        stream_types=STREAM_TYPES,
        symbols=symbols,
        on_messages=on_messages,
        clock=clock,
        rng=rng,
        lanes=settings.lanes,
        max_streams=settings.max_streams_per_connection,
        max_age_s=settings.connection_max_age_s,
        deadlines=Deadlines(first_data_s=settings.first_data_deadline_s, silence_s=settings.silence_limit_s),
        spoken_of=spoken_of,
        ask=ask,
    )


def make_recorder(settings: Settings, clock: Clock) -> FrameWriter | None:
    """The recorder that runs beside the work, if one is wanted."""
    if settings.record is None:
        return None
    return FrameWriter(
        settings.record,
        clock,
        max_bytes_per_file=settings.record_file_mb << 20,
        max_files=settings.record_files,
    )


def make_rest_feed(parts: Parts, rest: MarketRest) -> RestFeed:
    return RestFeed(
        rest,
        parts.clock,
        lambda: list(parts.instruments),
        on_kline=parts.klines.handle,
        on_mark=parts.marks.handle,
        on_book=parts.books.handle,
    )


def make_poller(parts: Parts, rest: MarketRest) -> RestPoller:
    def add(table: str, row: Row) -> None:
        parts.buffer.add(table, row)
        parts.features.add_row(table, row)

    return RestPoller(
        rest,
        parts.clock,
        lambda: parts.symbols,
        add,
        price_klines=parts.settings.price_klines,
    )


async def recover_spools(parts: Parts) -> None:
    """Recovery, first of all: what earlier processes could not store is stored now, gaps that are none are closed, and
    other series' holes are noted.

    Raises Unavailable where the database is away.
    """
    gaps = await parts.store.gaps(only_open=True)
    parts.ledger.known((gap.symbol, gap.series, gap.from_time, gap.to_time, gap.id) for gap in gaps)
    found = [] if parts.spool is None else [parts.spool, *parts.left_spools]
    decisions = 0 if parts.journal is None else await parts.journal.recover(found)
    rows = notes = 0
    for spool in found:
        rows += await parts.buffer.replay(spool)
        notes += await parts.ledger.replay(spool)
    if decisions or rows or notes:
        log.warning("spool_replayed", decisions=decisions, rows=rows, gaps=notes, action="start")
    for spool in parts.left_spools:
        await spool.close()
    parts.left_spools = ()
    if parts.leadership is None or parts.leadership.holds:
        await _close_whole_gaps(parts)
        await _note_lost_rows(parts)


async def _close_whole_gaps(parts: Parts) -> None:
    """Of candles: a process that ends between storing the last one of a gap and noting it leaves the gap open."""
    for interval, length in INTERVAL_MS.items():
        table = f"candles_{interval}"
        stored = (
            f"SELECT count(*) FROM {table} AS c WHERE c.symbol = gaps.symbol "
            "AND c.open_time >= gaps.from_time AND c.open_time < gaps.to_time"
        )
        for symbol, start, end in await parts.store.select(
            f"SELECT symbol, from_time, to_time FROM gaps WHERE series = '{table}' AND repaired_at IS NULL "
            f"AND ({stored}) * {length} = to_time - from_time"
        ):
            parts.ledger.closed(symbol, table, start, end, "rest")


async def _note_lost_rows(parts: Parts) -> None:
    """Of every series that has a row a minute: a gap from a symbol's last row to the minute in progress.

    One that has no row begins where `listings` says that the symbol was followed from.
    """
    now = last_boundary(parts.clock.exchange_now_ms())
    lost = 0
    for table, which in LIVE_SERIES.items():
        time = TABLES[table].time
        last = f'SELECT max("{time}") FROM "{table}" AS t WHERE t.symbol = asked.symbol{which}'
        followed = "SELECT followed_at FROM listings AS l WHERE l.symbol = asked.symbol"
        for symbol, newest, followed_at in await parts.store.select(
            f"WITH asked (symbol) AS ({_values(parts.symbols)}) SELECT asked.symbol, ({last}), ({followed}) FROM asked"
        ):
            start = _from_row(newest, followed_at)
            if start is not None and start < now:
                dying = now - start <= 2 * MINUTE_MS
                cause = "not stored before the process ended" if dying else "no process was alive"
                parts.ledger.opened(symbol, table, start, now, cause, tell=False)
                lost += 1
    if lost:
        log.warning("rows_missing", gaps=lost, series=sorted(LIVE_SERIES), action="start")


def _values(symbols: Iterable[str]) -> str:
    return "VALUES " + ", ".join("('" + symbol.replace("'", "''") + "')" for symbol in symbols)


def _from_row(newest: int | None, followed_at: int | None, length: int = MINUTE_MS) -> int | None:
    """The minute (or candle) after a symbol's newest row; without one the first after it was followed."""
    if newest is not None:
        return newest - newest % length + length
    return None if followed_at is None else -(-followed_at // length) * length


async def note_lost_between(parts: Parts, since: int, until: int) -> None:
    """The same for who begins to lead after another process, or learned only after its start that it leads: holes that
    end at or after `since`, or reach until the minute `until`, and that no row of `gaps` names.

    Whatever rows this process had kept must be stored. Raises Unavailable.
    """
    lost = 0
    for table, which in LIVE_SERIES.items():
        time = f'"{TABLES[table].time}"'
        minute = f"{time} - {time} % {MINUTE_MS}"
        rows = f'"{table}" AS t WHERE t.symbol = asked.symbol{which} AND {time} < {since}'
        followed = "SELECT followed_at FROM listings AS l WHERE l.symbol = asked.symbol"
        known = {
            symbol: _from_row(newest, followed_at)
            for symbol, newest, followed_at in await parts.store.select(
                f"WITH asked (symbol) AS ({_values(parts.symbols)}) "
                f"SELECT asked.symbol, (SELECT max({time}) FROM {rows}), ({followed}) FROM asked"
            )
        }
        holes: dict[str, list[tuple[int, int]]] = {}
        for symbol, at in await parts.store.select(
            f'SELECT DISTINCT symbol, {minute} FROM "{table}" WHERE {time} >= {since} AND {time} < {until}{which} '
            "ORDER BY 1, 2"
        ):
            start = known.get(symbol)
            if start is not None and start < at:
                holes.setdefault(symbol, []).append((start, at))
            if symbol in known:
                known[symbol] = at + MINUTE_MS
        for symbol, start in known.items():
            if start is not None and start < until:
                holes.setdefault(symbol, []).append((start, until))
        if not holes:
            continue
        first = min(hole[0] for found in holes.values() for hole in found)
        named: dict[str, list[tuple[int, int]]] = {}
        for symbol, start, end in await parts.store.select(
            f"SELECT symbol, from_time, to_time FROM gaps WHERE series = '{table}' AND to_time > {first} "
            "ORDER BY from_time"
        ):
            named.setdefault(symbol, []).append((start, end))
        for symbol, found in holes.items():
            for start, end in _unnamed(found, named.get(symbol, ())):
                parts.ledger.opened(symbol, table, start, end, NOT_STORED_BEFORE, tell=False)
                lost += 1
    if lost:
        log.warning("rows_missing", gaps=lost, series=sorted(LIVE_SERIES), action="lead")


def _unnamed(holes: Iterable[tuple[int, int]], named: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What of these holes lies in no named gap; `named` ascending by its start. All are [from, to)."""
    for start, end in holes:
        for first, last in named:
            if last <= start or first >= end:
                continue
            if start < first:
                yield start, first
            start = max(start, last)
        if start < end:
            yield start, end


def spans(table: str, rows: Sequence[Row]) -> list[tuple[str, int, int]]:
    """What these rows of a table cover: (symbol, from, to) of each run of minutes, or of candles of their length."""
    columns = TABLES[table].columns
    if table == "revisions":
        return []
    length = INTERVAL_MS.get(table.removeprefix("candles_"), MINUTE_MS)
    time, symbol = columns.index(TABLES[table].time), columns.index("symbol")
    found: list[tuple[str, int, int]] = []
    for name, at in sorted({(row[symbol], row[time] - row[time] % length) for row in rows}):
        if found and found[-1][0] == name and found[-1][2] == at:
            found[-1] = (name, found[-1][1], at + length)
        else:
            found.append((name, at, at + length))
    return found


async def load_windows(parts: Parts) -> None:
    """Recovery: windows from the store, and the remainder asked of REST through the one door for closed candles.

    What is missing before the windows (a long downtime) becomes a row in `gaps`, for `train` and `backfill` or, with
    gap_repair = "live", to be fetched now. A minute that was stored and not decided, with time left to decide it, is
    due. Raises NeedsPerson where the store holds candles of the future.
    """
    parts.ledger.known(
        (gap.symbol, gap.series, gap.from_time, gap.to_time, gap.id) for gap in await parts.store.gaps(only_open=True)
    )
    await load_symbols(parts, parts.symbols, "no process was alive")


async def load_symbols(parts: Parts, symbols: Sequence[str], cause: str) -> None:
    """The same for these symbols; `cause` says in the ledger why candles before their windows are missing."""
    now = parts.clock.exchange_now_ms()
    for interval, length in INTERVAL_MS.items():
        boundary = last_boundary(now, length)
        wanted = parts.features.lookback_min if interval == "1m" else CACHED_CANDLES
        start = boundary - wanted * length
        spare = FUTURE_TOLERANCE_MS // MINUTE_MS  # candles ahead of our clock must not push out the first ones
        stored = await parts.store.last_candles(interval, symbols, wanted + spare)
        for symbol in symbols:
            candles = [candle for candle in stored[symbol] if candle.open_time >= start]
            last = stored[symbol][-1].open_time if stored[symbol] else None
            if last is not None and last + length > now + FUTURE_TOLERANCE_MS:
                raise NeedsPerson(
                    f"the database holds {symbol} candles of {utc_text(last)}, but at the exchange it is "
                    f"{utc_text(now)}: it was filled from another market or at another speed; use another database"
                )
            if last is not None and last + length < start:
                if parts.settings.gap_repair == "live":
                    start_of_symbol = last + length
                else:
                    parts.ledger.opened(symbol, f"candles_{interval}", last + length, start, cause)
                    start_of_symbol = start
            else:
                start_of_symbol = start
            next_open = start_of_symbol
            for candle in candles:
                if candle.open_time != next_open:
                    break
                parts.klines.last_closed[interval][symbol] = candle
                if interval == "1m":
                    parts.features.add(candle)
                next_open += length
            if interval == "1m" and next_open > start_of_symbol:
                parts.engine.on_1m_candle_close(symbol, next_open)
            last_stored = parts.klines.last_closed[interval].get(symbol)
            parts.closed.expect(symbol, interval, next_open, load_until=boundary, last=last_stored)
    await load_other_series(parts, symbols)


async def load_other_series(parts: Parts, symbols: Sequence[str], since: int | None = None) -> None:
    """Put what the other tables hold, and was known at the last boundary, into the features' windows.

    `since`: only what they hold from this instant on."""
    now = parts.clock.exchange_now_ms()
    start = last_boundary(now) - parts.features.lookback_min * MINUTE_MS if since is None else since
    for symbol in symbols if parts.other_tables else ():
        history = await symbol_history(parts.store, symbol, start, now, tables=parts.other_tables)
        if symbol in parts.instruments:  # else forgotten meanwhile
            parts.features.load(history, last_boundary(now))


async def mend_rows(parts: Parts, since: int) -> None:
    """After another process has led: fetch the closed candles of the windows (as they were at `since`, exchange ms)
    that it did not store, note the hole before a window, and close the gaps that it noted and that are none by now.

    Raises Unavailable, Malformed and Refused.
    """
    assert parts.fetch is not None
    open_gaps: dict[tuple[str, str], list[tuple[int, int]]] = {}
    gaps = await parts.store.gaps(only_open=True)
    parts.ledger.known((gap.symbol, gap.series, gap.from_time, gap.to_time, gap.id) for gap in gaps)
    for gap in gaps:
        open_gaps.setdefault((gap.symbol, gap.series), []).append((gap.from_time, gap.to_time))
    for interval, length in INTERVAL_MS.items():
        table = f"candles_{interval}"
        for symbol in parts.symbols:
            end = parts.closed.next_open(symbol, interval)
            if end is None:
                continue
            wanted = parts.features.lookback_min if interval == "1m" else CACHED_CANDLES
            start = last_boundary(since, length) - wanted * length
            found = await parts.store.series(table, symbol, start, end, ("open_time",))
            stored = set(found["open_time"].tolist())
            first = min(stored, default=end)
            named = sorted(open_gaps.get((symbol, table), ()))
            for hole in _unnamed(await _hole_before(parts, table, symbol, first, length), named):
                parts.ledger.opened(symbol, table, *hole, NOT_STORED_BEFORE)  # not in the window: not fetched now
            for hole in _holes(stored, first, end, length):
                parts.ledger.opened(symbol, table, *hole, NOT_STORED_BEFORE)
                rows = await parts.fetch(symbol, interval, *hole)
                told = [closed_candle(row) for row in rows if row.closed and hole[0] <= row.open_time < hole[1]]
                await parts.store.add_rows(table, [candle_row(candle) for candle in told])
                stored.update(candle.open_time for candle in told)
                open_gaps.setdefault((symbol, table), []).append(hole)
            for first, last in set(open_gaps.get((symbol, table), ())):
                if first >= start and stored.issuperset(range(first, last, length)):
                    parts.ledger.closed(symbol, table, first, last, "rest")


async def _hole_before(parts: Parts, table: str, symbol: str, first: int, length: int) -> list[tuple[int, int]]:
    """[from, to) of what is missing between a symbol's last candle before `first` and `first`; at most one."""
    quoted = symbol.replace("'", "''")
    [[newest]] = await parts.store.select(
        f"SELECT max(open_time) FROM {table} WHERE symbol = '{quoted}' AND open_time < {first}"
    )
    return [] if newest is None or newest + length >= first else [(newest + length, first)]


def _holes(stored: Collection[int], start: int, end: int, length: int) -> list[tuple[int, int]]:
    """[from, to) of each run of open times that are missing between `start` and `end`."""
    holes: list[tuple[int, int]] = []
    for open_time in range(start, end, length):
        if open_time in stored:
            continue
        if holes and holes[-1][1] == open_time:
            holes[-1] = holes[-1][0], open_time + length
        else:
            holes.append((open_time, open_time + length))
    return holes


def utc_text(time_ms: int) -> str:
    """2026-11-23 04:53 UTC."""
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"


async def measure_offset(clock: Clock, rest: MarketRest) -> None:
    """Set the clock's offset from the exchange's answers; keeps the old one while the exchange does not answer."""
    try:
        offset_ms = await rest.measure_offset_ms()
    except (Unavailable, Malformed, Refused) as error:
        log.warning("clock_offset_not_measured", reason=str(error), action="clock")
        return
    if abs(offset_ms - clock.offset_ms) > 250 * clock.speed:
        log.warning("clock_offset", offset_ms=offset_ms, before_ms=clock.offset_ms, action="clock")
    clock.offset_ms = offset_ms
