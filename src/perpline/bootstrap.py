"""The one place where parts are made and joined. Everything else gets what it needs handed in."""

import asyncio
import os
import random
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from urllib.parse import urlsplit

import structlog

from perpline.accounts import Accounts
from perpline.bus.bus import Bus
from perpline.bus.memory import MemoryBus
from perpline.collector.buffer import Buffer
from perpline.collector.gaps import ClosedCandles, GapLedger
from perpline.collector.malformed import MalformedFile
from perpline.collector.recorder import FrameWriter
from perpline.collector.rest_feed import RestFeed
from perpline.collector.rest_poller import RestPoller
from perpline.common.clock import Clock, SystemClock
from perpline.common.config import Settings
from perpline.common.errors import Malformed, NeedsPerson, RateLimited, Refused, Unavailable
from perpline.domain.candle import INTERVAL_MS, MINUTE_MS, Candle, KlineUpdate, last_boundary
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
from perpline.features.live import LiveFeatures, compile_kernel
from perpline.inference.registry import Deployed, ModelLoader
from perpline.signals.engine import Market, SignalEngine
from perpline.signals.publisher import Publisher
from perpline.storage.history import HISTORY_TABLES, symbol_history
from perpline.storage.shared_text import PostgresText, SqliteText
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import Row, Store, candle_row
from perpline.trading.trader import TradedMarket
from perpline.websocket.connection import Connection, Deadlines
from perpline.websocket.handlers.book_ticker_handler import BookTickerHandler
from perpline.websocket.handlers.kline_handler import KlineHandler
from perpline.websocket.handlers.mark_price_handler import MarkPriceHandler
from perpline.websocket.lane import Lane
from perpline.websocket.stream_router import StreamRouter
from perpline.websocket.subscriptions import STREAM_TYPES, plan_connections

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
    """The instruments to follow, by symbol, in the order named or by volume.

    Raises NeedsPerson for unknown symbols, Unavailable where the exchange does not answer.
    """
    try:
        listed = {instrument.symbol: instrument for instrument in await rest.instruments()}
    except Unavailable as error:
        raise _no_answer(settings, error) from None
    if settings.top is None:
        missing = [symbol for symbol in settings.symbols if symbol not in listed]
        if missing:
            raise NeedsPerson(f"the exchange does not list {', '.join(missing[:5])}: check `symbols`")
        return {symbol: listed[symbol] for symbol in settings.symbols if symbol not in settings.exclude}
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

    @property
    def symbols(self) -> list[str]:
        return list(self.instruments)

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
    try:
        instruments = await choose_instruments(settings, rest)
        await measure_offset(clock, rest)
        await store.open()
        await bus.open()
        loader = ModelLoader(store, clock, settings.models_dir, settings.slot, book_minutes=settings.book_minutes)
        parts = make_parts(settings, clock, store, bus, instruments, rest, rng, await loader.at_start())
        loader.holds(parts.features.lookback_min, parts.features.cross_section, parts.other_tables)
        parts.loader = loader
        parts.accounts = make_accounts(parts, rest, rng)
        yield parts, rest
    finally:
        await bus.close()
        await store.close()
        await rest.close()


def make_parts(
    settings: Settings,
    clock: Clock,
    store: Store,
    bus: Bus,
    instruments: dict[str, Instrument],
    rest: MarketRest | None,
    rng: random.Random,
    deployed: Sequence[Deployed],
) -> Parts:
    """Join everything that lies between a message and the outbox. `deployed` is what decides and what is to come.

    Without `rest` (a replay) nothing is ever fetched, and symbols are followed from their first kline on.
    """
    ledger = GapLedger(clock, store.open_gap, store.close_gap)
    compile_kernel()  # here and not at the first close: it takes seconds where it was never done
    models = [each.model for each in deployed if each.model is not None]
    features = LiveFeatures(
        instruments,
        max((model.lookback_min for model in models), default=LEAST_LOOKBACK_MIN),
        cross_section=any(model.cross_section for model in models),
    )
    other_tables = frozenset[str]().union(*(model.tables for model in models)) & HISTORY_TABLES.keys() - {"candles_1m"}

    def dropped_rows(table: str, rows: Sequence[Row]) -> None:
        interval = table.removeprefix("candles_")
        if interval in INTERVAL_MS:
            for row in rows:
                ledger.opened(row[0], table, row[1], row[1] + INTERVAL_MS[interval], "dropped: the database was away")

    buffer = Buffer(
        store.add_rows,
        clock,
        batch_size=settings.buffer_batch_rows,
        max_age_s=settings.buffer_max_age_s,
        max_rows=settings.buffer_max_rows,
        on_dropped=dropped_rows,
        is_deciding=lambda: engine.is_deciding,
    )

    def on_mark_price(mark: MarkPrice) -> None:
        if parts.accounts is not None:
            parts.accounts.on_mark_price(mark)

    def on_decided(decisions: list[Decision]) -> None:
        if parts.accounts is not None:
            parts.accounts.take_signals(decisions)

    marks = MarkPriceHandler(partial(buffer.add, "premium_index"), on_mark_price)

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

    books = BookTickerHandler(book_minute_ended, book_lane)
    publisher = Publisher(store, bus, clock, rng, on_published=lambda messages, wall_us: engine.on_published(messages))

    def last_1m(symbol: str) -> Candle | None:
        return klines.last_closed["1m"].get(symbol)

    engine = SignalEngine(
        clock=clock,
        store=store,
        features=features,
        deployed=deployed,
        market=Market(marks.latest.get, books.get, last_1m, instruments.get),
        slot=settings.slot,
        decide_within_s=settings.decide_within_s,
        wake_publisher=publisher.wake,
        end_book_minutes=books.end_minutes if "book_minutes" in other_tables else None,
        on_decided=on_decided,
    )
    klines = KlineHandler(
        add_row=lambda candle: buffer.add(f"candles_{candle.interval}", candle_row(candle)),
        add_to_features=features.add,
        on_1m_candle_close=engine.on_1m_candle_close,
        lanes=kline_lanes,
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
        await store.add_rows(f"candles_{candles[0].interval}", [candle_row(candle) for candle in candles])
        symbol = candles[0].symbol
        while candles[0].interval == "1m":
            await buffer.flush()
            window = (await store.last_candles("1m", [symbol], features.lookback_min))[symbol]
            newest = features.last_open(symbol)
            if newest is None or window[-1].open_time >= newest:
                features.rebuild(window)
                break

    def repair_since(interval: str, now: int) -> int:
        if settings.gap_repair == "live":
            return 0
        return now - features.lookback_min * MINUTE_MS if interval == "1m" else now

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
        lanes=[] if book_lane is None else [book_lane, *kline_lanes.values()],
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
        other_tables=other_tables,
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
    )


def _control_answer(answer: Control) -> None:
    """Acknowledgements prove nothing and are passed over; a refusal is told."""
    if answer.code is not None:
        log.error("exchange_refused_control_message", code=answer.code, text=answer.message, action="subscribe")


def make_connections(parts: Parts, rng: random.Random, recorder: FrameWriter | None) -> list[Connection]:
    """The connections that carry every stream of every symbol to the router, and to the recorder if there is one."""
    route_batch = parts.router.route_batch

    def record_and_route(batch: list[bytes], received_us: int) -> set[str]:
        assert recorder is not None
        for data in batch:
            recorder.add(data, received_us)
        return route_batch(batch, received_us)

    on_messages = route_batch if recorder is None else record_and_route
    return _connections(parts.settings, parts.clock, rng, parts.symbols, on_messages)


def make_recording_connections(
    settings: Settings, clock: Clock, rng: random.Random, symbols: Sequence[str], recorder: FrameWriter
) -> list[Connection]:
    """The connections that carry every stream of these symbols to the recorder and nowhere else."""

    def record(batch: list[bytes], received_us: int) -> set[str]:
        for data in batch:
            recorder.add(data, received_us)
        return {stream for data in batch if (stream := stream_of(data)) is not None}

    return _connections(settings, clock, rng, symbols, record)


def _connections(
    settings: Settings,
    clock: Clock,
    rng: random.Random,
    symbols: Sequence[str],
    on_messages: Callable[[list[bytes], int], set[str]],
) -> list[Connection]:
    plans = plan_connections(
        symbols, STREAM_TYPES, endpoints.route_of, endpoints.stream_name, settings.max_streams_per_connection
    )
    return [
        Connection(
            name=f"{plan.route}-{number}",
            url=endpoints.connection_url(settings.binance_futures_ws_url, plan.route),
            streams=plan.streams,
            on_messages=on_messages,
            subscribe_request=endpoints.subscribe_request,
            clock=clock,
            rng=rng,
            deadlines=Deadlines(first_data_s=settings.first_data_deadline_s, silence_s=settings.silence_limit_s),
        )
        for number, plan in enumerate(plans)
    ]


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
        lambda: parts.symbols,
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


async def load_windows(parts: Parts) -> None:
    """Recovery: windows from the store, and the remainder asked of REST through the one door for closed candles.

    What is missing before the windows (a long downtime) becomes a row in `gaps`, for `train` and `backfill` or, with
    gap_repair = "live", to be fetched now. A minute that was stored and not decided, with time left to decide it, is
    due. Raises NeedsPerson where the store holds candles of the future.
    """
    now = parts.clock.exchange_now_ms()
    parts.ledger.known(
        (gap.symbol, gap.series, gap.from_time, gap.to_time, gap.id) for gap in await parts.store.gaps(only_open=True)
    )
    for interval, length in INTERVAL_MS.items():
        boundary = last_boundary(now, length)
        wanted = parts.features.lookback_min if interval == "1m" else CACHED_CANDLES
        start = boundary - wanted * length
        spare = FUTURE_TOLERANCE_MS // MINUTE_MS  # candles ahead of our clock must not push out the first ones
        stored = await parts.store.last_candles(interval, parts.symbols, wanted + spare)
        for symbol in parts.symbols:
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
                    parts.ledger.opened(symbol, f"candles_{interval}", last + length, start, "no process was alive")
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
    await load_other_series(parts)


async def load_other_series(parts: Parts) -> None:
    """Put what the other tables hold, and was known at the last boundary, into the features' windows."""
    now = parts.clock.exchange_now_ms()
    start = last_boundary(now) - parts.features.lookback_min * MINUTE_MS
    for symbol in parts.symbols if parts.other_tables else ():
        history = await symbol_history(parts.store, symbol, start, now, tables=parts.other_tables)
        parts.features.load(history, last_boundary(now))


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
