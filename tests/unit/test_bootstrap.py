"""What is chosen to be followed, and where a worker begins."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from modelling import write_model
from perpline.bootstrap import (
    LIVE_SERIES,
    Parts,
    choose_instruments,
    first_answer,
    load_windows,
    make_parts,
    measure_offset,
    note_lost_between,
    open_store,
    recover_spools,
)
from perpline.bus.memory import MemoryBus
from perpline.common.clock import ManualClock
from perpline.common.config import Settings, load_settings
from perpline.common.errors import Malformed, NeedsPerson, Refused, Unavailable
from perpline.domain.candle import INTERVAL_MS, Candle, KlineUpdate, closed_candle
from perpline.domain.instrument import Instrument
from perpline.inference.artefact import load_artefact
from perpline.inference.registry import Deployed
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import candle_row
from perpline.storage.symbols import Listing as SeenListing
from perpline.storage.symbols import store_symbols
from running import eventually

MINUTE = 60_000
NOW = 1_790_000_040_000 + 20_000
LOOKBACK = 241


def instrument(symbol: str, contract: str = "PERPETUAL", status: str = "TRADING", quote: str = "USDT") -> Instrument:
    step = Decimal("0.1")
    return Instrument(symbol, symbol.removesuffix(quote), quote, contract, status, 0, step, step, step, step)


LISTED = [
    instrument("BTCUSDT"),
    instrument("ETHUSDT"),
    instrument("SOLUSDT"),
    instrument("ADAUSDT"),
    instrument("OLDUSDT", status="SETTLING"),
    instrument("TSLAUSDT", contract="TRADIFI_PERPETUAL"),
    instrument("BTCUSDC", quote="USDC"),
]


class Listing:
    """The part of an exchange's REST side that says what there is."""

    def __init__(self, offset: Any = 0) -> None:
        self.offset = offset

    async def instruments(self) -> list[Instrument]:
        return LISTED

    async def quote_volumes_24h(self) -> dict[str, float]:
        return {"BTCUSDT": 9e9, "ETHUSDT": 5e9, "SOLUSDT": 5e9, "ADAUSDT": 1e8, "TSLAUSDT": 1e12, "OLDUSDT": 1e12}

    async def measure_offset_ms(self) -> int:
        if isinstance(self.offset, Exception):
            raise self.offset
        return int(self.offset)


def settings(folder: Path, **changes: object) -> Settings:
    return load_settings(None, {"HOME": str(folder)}, {"data_dir": str(folder), **changes})


async def chosen(folder: Path, **changes: object) -> list[str]:
    return list(await choose_instruments(settings(folder, **changes), Listing()))  # type: ignore[arg-type]


async def test_the_top_n_are_trading_usdt_perpetuals_by_volume_and_then_by_name(tmp_path: Path) -> None:
    assert await chosen(tmp_path, symbols="top:3") == ["BTCUSDT", "ETHUSDT", "SOLUSDT"]
    assert await chosen(tmp_path, symbols="top:30") == ["BTCUSDT", "ETHUSDT", "SOLUSDT", "ADAUSDT"]


async def test_what_is_excluded_makes_room_for_the_next(tmp_path: Path) -> None:
    assert await chosen(tmp_path, symbols="top:2", exclude="BTCUSDT") == ["ETHUSDT", "SOLUSDT"]


async def test_named_symbols_come_in_the_order_named(tmp_path: Path) -> None:
    assert await chosen(tmp_path, symbols="SOLUSDT,BTCUSDT,ETHUSDT", exclude="ETHUSDT") == ["SOLUSDT", "BTCUSDT"]


async def test_a_symbol_that_is_not_listed_is_named(tmp_path: Path) -> None:
    with pytest.raises(NeedsPerson, match="does not list NOUSDT, NEVERUSDT"):
        await chosen(tmp_path, symbols="BTCUSDT,NOUSDT,NEVERUSDT")


@pytest.mark.parametrize("url", ["mysql://x/y", "sqlite://relative.db", "sqlite:///:memory:"])
def test_a_database_that_cannot_be_served_is_refused(url: str) -> None:
    with pytest.raises(NeedsPerson, match="sqlite:///"):
        open_store(url)


async def test_the_clock_follows_the_measured_offset_and_keeps_the_old_one_without_an_answer() -> None:
    clock = ManualClock(NOW)
    for offset in (1500, Unavailable("away"), Malformed("nonsense")):
        await measure_offset(clock, Listing(offset))  # type: ignore[arg-type]

    assert clock.offset_ms == 1500


# ---- where a worker begins


def candle(open_time: int, interval: str = "1m", symbol: str = "BTCUSDT") -> Candle:
    update = KlineUpdate(
        symbol=symbol,
        interval=interval,
        open_time=open_time,
        close_time=open_time + INTERVAL_MS[interval] - 1,
        open=100.0,
        high=101.0,
        low=99.0,
        close=100.0 + open_time // MINUTE % 7 / 10,
        volume=5.0,
        quote_volume=500.0,
        trades=5,
        taker_buy_volume=2.0,
        taker_buy_quote_volume=200.0,
        closed=True,
        source="ws",
        event_time=open_time + INTERVAL_MS[interval],
        received_at=open_time + INTERVAL_MS[interval],
    )
    return closed_candle(update)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    yield store
    await store.close()


def a_model(folder: Path) -> list[Deployed]:
    """One that looks back `LOOKBACK` minutes."""
    return [Deployed("champion", 0, load_artefact(write_model(folder / "models")))]


async def parts_at(store: SqliteStore, folder: Path, now: int = NOW, **changes: object) -> Parts:
    """Parts that have recovered, with nobody to ask: what would be fetched is what `healing` says."""
    rest: Any = Listing()
    made = make_parts(
        settings(folder, symbols="BTCUSDT", **changes),
        *(ManualClock(now), store, MemoryBus(), {"BTCUSDT": LISTED[0]}, rest, random.Random(1), a_model(folder)),
    )
    await made.engine.recover(made.symbols)
    await load_windows(made)
    return made


def remainder(made: Parts, interval: str) -> tuple[int | None, int | None]:
    """From where to where a symbol is being fetched."""
    key = ("BTCUSDT", interval)
    return made.closed.next_open(*key), made.closed._healing.get(key)


BOUNDARY = NOW - NOW % MINUTE
START = BOUNDARY - LOOKBACK * MINUTE


async def fill(store: SqliteStore, first: int, last: int, without: tuple[int, ...] = ()) -> None:
    times = [t for t in range(first, last + 1, MINUTE) if t not in without]
    await store.add_rows("candles_1m", [candle_row(candle(t)) for t in times])


async def test_with_an_empty_store_the_whole_window_is_asked_for(store: SqliteStore, tmp_path: Path) -> None:
    made = await parts_at(store, tmp_path)

    assert remainder(made, "1m") == (START, BOUNDARY)
    assert made.features.held("BTCUSDT") == 0
    assert await store.gaps() == []


async def test_with_a_full_window_nothing_is_asked_for(store: SqliteStore, tmp_path: Path) -> None:
    await fill(store, START - 100 * MINUTE, BOUNDARY - MINUTE)
    made = await parts_at(store, tmp_path)

    assert remainder(made, "1m") == (BOUNDARY, None)
    assert made.features.held("BTCUSDT") == LOOKBACK
    assert made.features.vectors(["BTCUSDT"]).shape[0] == 1
    assert made.klines.last_closed["1m"]["BTCUSDT"].open_time == BOUNDARY - MINUTE


async def test_a_gap_whose_candles_were_stored_before_the_process_ended_is_closed_at_the_next_start(
    store: SqliteStore, tmp_path: Path
) -> None:
    await fill(store, START, BOUNDARY - MINUTE, without=(BOUNDARY - 5 * MINUTE,))
    for first, last in ((20, 18), (6, 4), (9, 7)):  # the second one lacks a candle
        await store.open_gap("BTCUSDT", "candles_1m", BOUNDARY - first * MINUTE, BOUNDARY - last * MINUTE, "test", NOW)
    await store.open_gap("ETHUSDT", "candles_1m", BOUNDARY - 20 * MINUTE, BOUNDARY - 18 * MINUTE, "test", NOW)

    made = await parts_at(store, tmp_path)
    await recover_spools(made)
    await made.ledger.flush()

    gaps = [gap for gap in await store.gaps() if gap.series == "candles_1m"]
    assert [(gap.symbol, gap.repaired_by) for gap in gaps] == [
        ("BTCUSDT", "rest"),
        ("BTCUSDT", None),
        ("BTCUSDT", "rest"),
        ("ETHUSDT", None),
    ]


MARK = ("BTCUSDT", 0, 100.0, 100.0, 0.0001, 0, 60, 0, 0)


async def test_a_series_that_no_process_has_stored_a_row_of_is_a_gap_since_its_symbol_was_followed(
    store: SqliteStore, tmp_path: Path
) -> None:
    seen = SeenListing(symbol="BTCUSDT", status="TRADING", seen_at=NOW, followed_at=BOUNDARY - 7 * MINUTE - 1)
    await store_symbols(store, seen=[seen])

    made = await parts_at(store, tmp_path)
    await recover_spools(made)
    await made.ledger.flush()

    gaps = {gap.series: (gap.from_time, gap.to_time) for gap in await store.gaps() if gap.series in LIVE_SERIES}
    assert gaps == dict.fromkeys(LIVE_SERIES, (BOUNDARY - 7 * MINUTE, BOUNDARY))


async def test_who_begins_to_lead_names_the_holes_that_end_with_its_own_rows_once(
    store: SqliteStore, tmp_path: Path
) -> None:
    ago = [BOUNDARY - minutes * MINUTE for minutes in range(41)]
    kept = [at for n, at in enumerate(ago) if n not in (30, 12, 11, 10, 9, 4)]  # 30: of a time long before
    await store.add_rows("premium_index", [(MARK[0], at, *MARK[2:7], at, at) for at in kept])
    await store.open_gap("BTCUSDT", "premium_index", ago[11], ago[9], "told by the one before", NOW)
    made = await parts_at(store, tmp_path)

    for _ in range(2):
        await note_lost_between(made, ago[9], ago[0])
        await made.ledger.flush()

    gaps = [(gap.from_time, gap.to_time) for gap in await store.gaps() if gap.series == "premium_index"]
    assert sorted(gaps) == [(ago[12], ago[11]), (ago[11], ago[9]), (ago[9], ago[8]), (ago[4], ago[3])]


async def test_only_the_remainder_of_a_window_is_asked_for(store: SqliteStore, tmp_path: Path) -> None:
    await fill(store, START - 100 * MINUTE, BOUNDARY - 8 * MINUTE)
    made = await parts_at(store, tmp_path)

    assert remainder(made, "1m") == (BOUNDARY - 7 * MINUTE, BOUNDARY)
    assert made.features.held("BTCUSDT") == LOOKBACK - 7


async def test_a_hole_in_the_window_is_asked_for_with_what_follows_it(store: SqliteStore, tmp_path: Path) -> None:
    hole = BOUNDARY - 30 * MINUTE
    await fill(store, START, BOUNDARY - MINUTE, without=(hole,))
    made = await parts_at(store, tmp_path)

    assert remainder(made, "1m") == (hole, BOUNDARY)


@pytest.mark.parametrize(("repair", "first"), [("retrain", START), ("live", START - 100 * MINUTE)])
async def test_a_long_downtime_is_a_gap_or_with_live_repair_fetched(
    store: SqliteStore, tmp_path: Path, repair: str, first: int
) -> None:
    last = START - 101 * MINUTE
    await fill(store, last - 10 * MINUTE, last)
    made = await parts_at(store, tmp_path, gap_repair=repair)
    await made.ledger.flush()

    assert remainder(made, "1m") == (first, BOUNDARY)
    gaps = [(gap.series, gap.from_time, gap.to_time, gap.repaired_at) for gap in await store.gaps()]
    assert gaps == ([("candles_1m", last + MINUTE, START, None)] if repair == "retrain" else [])


async def test_a_candle_stored_but_not_decided_before_a_restart_is_due(store: SqliteStore, tmp_path: Path) -> None:
    await fill(store, START - MINUTE, BOUNDARY - 2 * MINUTE)
    before = await parts_at(store, tmp_path, now=BOUNDARY - 90_000)
    before.engine.on_1m_candle_close("BTCUSDT", BOUNDARY - MINUTE)
    await before.engine.drain()
    await fill(store, BOUNDARY - MINUTE, BOUNDARY - MINUTE)
    made = await parts_at(store, tmp_path)
    await made.engine.drain()

    rows = await store.decision_rows("champion", 0, 1 << 60)
    assert [(t, status) for _, t, status in rows if t >= BOUNDARY] == [(BOUNDARY, "skipped_stale")]


async def test_candles_of_the_future_are_another_markets(store: SqliteStore, tmp_path: Path) -> None:
    await fill(store, BOUNDARY, BOUNDARY + 60 * MINUTE)

    with pytest.raises(NeedsPerson, match="it was filled from another market or at another speed"):
        await parts_at(store, tmp_path)


async def test_a_candle_that_seems_a_moment_too_early_is_not(store: SqliteStore, tmp_path: Path) -> None:
    """The offset of the clocks is measured anew at each start and is never exact."""
    await fill(store, START, BOUNDARY)
    made = await parts_at(store, tmp_path)

    assert made.closed.next_open("BTCUSDT", "1m") == BOUNDARY + MINUTE


async def test_longer_candles_are_cached_and_never_decided_on(store: SqliteStore, tmp_path: Path) -> None:
    hour = BOUNDARY - BOUNDARY % (60 * MINUTE)
    rows = [candle_row(candle(hour - n * 60 * MINUTE, "1h")) for n in range(96, 0, -1)]
    await store.add_rows("candles_1h", rows)
    made = await parts_at(store, tmp_path)

    assert remainder(made, "1h") == (hour, None)
    assert made.klines.last_closed["1h"]["BTCUSDT"].open_time == hour - 60 * MINUTE
    assert not made.engine.has_due


async def test_what_the_buffer_had_to_drop_is_a_gap(store: SqliteStore, tmp_path: Path) -> None:
    made = await parts_at(store, tmp_path, buffer_max_rows=10, buffer_batch_rows=4)
    for n in range(11):
        made.buffer.add("candles_1m", candle_row(candle(BOUNDARY + n * MINUTE)))
    await made.ledger.flush()

    causes = {gap.cause for gap in await store.gaps()}
    assert causes == {"dropped: the database was away"}
    found = [(gap.from_time, gap.to_time) for gap in await store.gaps()]
    assert found == [(BOUNDARY, BOUNDARY + 4 * MINUTE)]


# ---- a hole that was given up


class Candles(Listing):
    """A REST side that has every minute up to `until` (open time), unless it is away."""

    def __init__(self) -> None:
        super().__init__()
        self.away = True
        self.until = 0

    async def candles(self, symbol: str, interval: str, *, start: int, end: int, limit: int = 500) -> list[KlineUpdate]:
        if self.away:
            raise Unavailable("the exchange does not answer")
        length = INTERVAL_MS[interval]
        return [
            structs.replace(update_of(candle(t, interval, symbol)), source="rest", closed=t + length <= self.until)
            for t in range(start, min(end, self.until + 1), length)
        ]


def update_of(each: Candle) -> KlineUpdate:
    shared = {name: getattr(each, name) for name in KlineUpdate.__struct_fields__ if hasattr(each, name)}
    return KlineUpdate(**shared, closed=True, event_time=each.close_time)


@asynccontextmanager
async def giving_up(store: SqliteStore, folder: Path) -> AsyncIterator[tuple[Parts, Candles, ManualClock]]:
    """A worker's door for candles with a full window, whose exchange answers nothing for now."""
    await fill(store, START - MINUTE, BOUNDARY - MINUTE)
    rest, clock = Candles(), ManualClock(NOW)
    everything: Any = rest
    made = make_parts(
        settings(folder, symbols="BTCUSDT"),
        *(clock, store, MemoryBus(), {"BTCUSDT": LISTED[0]}, everything, random.Random(1), a_model(folder)),
    )
    await made.engine.recover(made.symbols)
    await load_windows(made)
    task = asyncio.create_task(made.closed.run())
    try:
        yield made, rest, clock
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def pass_time(clock: ManualClock, until: int, condition: Callable[[], object]) -> None:
    """Let market time go by, a second at a time, up to this instant or until the condition holds."""
    while clock.now_ms() < until and not condition():
        clock.advance(1.0)
        await asyncio.sleep(0.005)
    await eventually(condition, 5.0)


async def test_a_hole_that_was_given_up_is_filled_later_and_the_window_is_whole_again(
    store: SqliteStore, tmp_path: Path
) -> None:
    async with giving_up(store, tmp_path) as (made, rest, clock):
        clock.set_ms(BOUNDARY + 2 * MINUTE + 100)
        made.closed.offer(candle(BOUNDARY + MINUTE))  # the minute before it never came
        assert made.klines.closed == 0
        await pass_time(clock, BOUNDARY + 3 * MINUTE, lambda: made.klines.closed == 1)
        assert (made.features.held("BTCUSDT"), made.features.broken_by_gap("BTCUSDT", LOOKBACK)) == (1, True)

        rest.away, rest.until = False, clock.now_ms() - clock.now_ms() % MINUTE
        await pass_time(clock, BOUNDARY + 5 * MINUTE, lambda: made.features.held("BTCUSDT") >= LOOKBACK)
        await made.ledger.flush()

    assert not made.features.broken_by_gap("BTCUSDT", LOOKBACK)
    hole = [gap for gap in await store.gaps() if gap.series == "candles_1m" and gap.from_time == BOUNDARY]
    assert [(gap.to_time, gap.repaired_by) for gap in hole] == [(BOUNDARY + MINUTE, "rest")]
    stored = await store.candles("1m", "BTCUSDT", BOUNDARY, BOUNDARY + MINUTE)
    assert [each.source for each in stored] == ["rest"]


async def test_a_minute_that_was_given_up_is_filled_before_the_next_one_came_and_not_decided_late(
    store: SqliteStore, tmp_path: Path
) -> None:
    async with giving_up(store, tmp_path) as (made, rest, clock):
        clock.set_ms(BOUNDARY + MINUTE + 100)
        await pass_time(clock, BOUNDARY + MINUTE + 50_000, lambda: ("BTCUSDT", "1m") in made.closed.given_up)
        rest.away, rest.until = False, BOUNDARY + MINUTE
        await pass_time(clock, BOUNDARY + MINUTE + 59_000, lambda: not made.closed.given_up)
        assert made.features.last_open("BTCUSDT") == BOUNDARY
        assert made.klines.closed == 0
        made.closed.offer(candle(BOUNDARY + MINUTE))

    assert made.features.held("BTCUSDT") >= LOOKBACK
    assert not made.features.broken_by_gap("BTCUSDT", LOOKBACK)


@pytest.mark.parametrize("book_minutes", [True, False])
async def test_book_and_forming_candle_can_be_read_whether_every_frame_is_decoded_or_not(
    store: SqliteStore, tmp_path: Path, book_minutes: bool
) -> None:
    await fill(store, START, BOUNDARY - MINUTE)
    made = await parts_at(store, tmp_path, book_minutes=book_minutes)
    head = b'{"stream":"btcusdt@%b","data":{"e":"%b",'
    book = head % (b"bookTicker", b"bookTicker")
    book += b'"u":7,"s":"BTCUSDT","b":"99.5","B":"1","a":"99.6","A":"2","T":%d,"E":%d}}' % (NOW, NOW)
    kline = head % (b"kline_1m", b"kline")
    kline += b'"E":%d,"s":"BTCUSDT","k":{"t":%d,"T":%d,"s":"BTCUSDT","i":"1m","f":1,"L":2,"o":"100","c":"99.5",'
    kline += b'"h":"101","l":"99","v":"5","n":3,"x":false,"q":"500","V":"2","Q":"200","B":"0"}}}'

    heard = made.router.route_batch([book, kline % (NOW, BOUNDARY, BOUNDARY + MINUTE - 1)], NOW * 1000)

    assert heard == {"btcusdt@bookTicker", "btcusdt@kline_1m"}
    assert (len(made.books.latest), len(made.klines.forming["1m"])) == ((1, 1) if book_minutes else (0, 0))
    best, forming = made.books.get("BTCUSDT"), made.klines.get("BTCUSDT", "1m")
    assert best is not None
    assert forming is not None
    assert (best.bid, forming.close) == (99.5, 99.5)
    assert made.router.by_kind == {"bookTicker": 1, "kline_1m": 1}


# ---- the first answer


def at_address(url: str) -> Settings:
    urls = {"binance_futures_rest_url": url, "binance_futures_ws_url": "ws://127.0.0.1:9"}
    return load_settings(None, {}, {"network": "custom", **urls})


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """The address of a server that answers every request with these bytes; with none it keeps silent."""

    serving: set[asyncio.Task[Any] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        with suppress(ConnectionError):
            while await reader.readline() not in (b"", b"\r\n"):
                pass
            if answer:
                writer.write(answer)
                await writer.drain()
            else:
                await reader.read()
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await asyncio.gather(*filter(None, serving))


def http(status: str, body: str) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n{body}".encode()


@pytest.mark.parametrize(
    ("status", "body"),
    [("200 OK", '{"serverTime": 1790000000000}'), ("418 I'm a teapot", '{"code": -1003, "msg": "banned"}')],
)
async def test_whatever_an_exchange_answers_first_is_an_answer(status: str, body: str) -> None:
    told: list[str] = []
    async with answering(http(status, body)) as url:
        await first_answer(at_address(url), told.append, within_s=10.0)

    assert told == []


async def test_a_server_that_keeps_silent_is_given_up_in_time_and_meanwhile_it_is_said_what_is_waited_for() -> None:
    told: list[str] = []
    async with answering(b"") as url:
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable, match=f"the exchange does not answer at {url} .*, for 1 s"):
                await first_answer(at_address(url), told.append, within_s=1.0, tell_every_s=0.3)

    assert told
    assert told[0] == f"the exchange does not answer at {url} (nothing came): trying for 1 s more"


async def test_a_server_that_is_no_exchange_is_refused_at_once() -> None:
    async with answering(http("404 Not Found", "nothing here")) as url:
        with pytest.raises(Refused, match=f"no exchange answers at {url} .*: check the address"):
            await first_answer(at_address(url), lambda line: None)
