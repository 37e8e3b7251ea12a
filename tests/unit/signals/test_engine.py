"""Exactly one row for every symbol and minute, whatever store, model, clock and the end of the process do."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import apsw
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from modelling import FEATURES, RULE, manifest, write_model
from perpline.bus.memory import MemoryBus
from perpline.common.clock import ManualClock
from perpline.common.errors import Fenced, Unavailable
from perpline.domain.candle import Candle, KlineUpdate, closed_candle
from perpline.domain.instrument import Instrument
from perpline.domain.market import BookTicker, MarkPrice
from perpline.domain.messages import MESSAGES, json_schema
from perpline.features.catalogue import CATALOGUE, LATE_BITS, by_name, columns_of, late_bits, lookback_of
from perpline.features.live import LiveFeatures
from perpline.inference.artefact import LoadedModel, load_artefact
from perpline.inference.drift import psi_reference, read_reference
from perpline.inference.registry import Deployed
from perpline.signals.engine import ASIDE, Market, SignalEngine
from perpline.signals.publisher import Publisher
from perpline.signals.scoring import score
from perpline.storage.sqlite import SqliteStore
from running import eventually

MINUTE = 60_000
T0 = 1_790_000_040_000
"""A close boundary."""
FEATURE_NAMES = [feature.name for feature in FEATURES]
SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT")


class Always:
    """A model that is as sure of every symbol as it is told to be."""

    features, schema_hash = FEATURES, "00"
    columns, critical_columns = np.array(columns_of(FEATURES)), np.array([], np.intp)
    lookback_min = critical_lookback_min = lookback_of(FEATURES)
    rule, label_hash = RULE, "11"
    threshold, ev_min_bp, max_ood_share = 0.58, 0.0, 1.0
    reference, cross_section, late_bits = None, False, 0
    outside = 0.0

    def __init__(self, p_long: float = 0.5, model_id: str = "always-1", **changes: Any) -> None:
        self.p_long, self.model_id = p_long, model_id
        self.manifest = manifest()
        self.asked: list[int] = []
        for name, value in changes.items():
            setattr(self, name, value)

    def predict(self, vectors: Any) -> Any:
        self.asked.append(len(vectors))
        raw = np.array([[self.p_long, 1 - self.p_long]] * len(vectors)).reshape(-1, 2)
        return raw - 0.01, raw

    def ood_share(self, vectors: Any) -> Any:
        return np.full(len(vectors), self.outside)


class Broken(Always):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def predict(self, vectors: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer, self.answer


class AwayStore(SqliteStore):
    """A store whose commits fail while it is away, or hang while it is frozen; a frozen one has written nothing."""

    away = False
    frozen = False
    refused = 0

    async def commit_decisions(self, *arguments: Any) -> Any:
        while self.frozen:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        if self.away:
            self.refused += 1
            raise Unavailable("the database is locked")
        return await super().commit_decisions(*arguments)


class Bench:
    """An engine with a real store, memory bus and features, at a time that the test sets.

    Every symbol has a full window, a mark price and a book; `close` delivers the candle of the minute that ended at T.
    """

    def __init__(
        self,
        store: SqliteStore,
        clock: ManualClock,
        model: Any,
        symbols: Sequence[str] = SYMBOLS,
        others: Sequence[Deployed] = (),
    ) -> None:
        self.store, self.clock, self.symbols = store, clock, symbols
        self.features = LiveFeatures(symbols, Always.lookback_min)
        self.bus = MemoryBus()
        self.marks: dict[str, MarkPrice] = {}
        self.books: dict[str, BookTicker] = {}
        self.candles: dict[str, Candle] = {}
        self.heard = self.bus.subscribe()
        self.publisher = Publisher(store, self.bus, clock, None, on_published=self.published)  # type: ignore[arg-type]
        step = Decimal("0.1")
        instrument = Instrument("BTCUSDT", "BTC", "USDT", "PERPETUAL", "TRADING", 0, step, step, step, step)
        self.engine = SignalEngine(
            clock=clock,
            store=store,
            features=self.features,
            deployed=[Deployed("champion", 0, model), *others],
            market=Market(self.marks.get, self.books.get, self.candles.get, lambda symbol: instrument),
            slot="champion",
            decide_within_s=30.0,
            wake_publisher=self.publisher.wake,
        )
        newest = clock.now_ms() - clock.now_ms() % MINUTE
        for symbol in symbols:
            for n in range(Always.lookback_min, 0, -1):
                self.features.add(candle(symbol, newest - n * MINUTE))

    def published(self, messages: Any, wall_us: int) -> None:
        self.engine.on_published(messages)

    def close(self, close_time: int, symbols: Iterable[str] | None = None) -> None:
        """The closing candles of T, and marks and books that are fresh then."""
        for symbol in self.symbols if symbols is None else symbols:
            self.marks[symbol] = MarkPrice(symbol, 100.0, 100.0, 0.0001, 0, close_time - 500, close_time - 490)
            self.books[symbol] = BookTicker(symbol, 99.9, 1.0, 100.1, 1.0, 1, close_time - 100, close_time - 90)
            self.candles[symbol] = candle(symbol, close_time - MINUTE, received_us=self.clock.now_us())
            self.features.add(self.candles[symbol])
            self.engine.on_1m_candle_close(symbol, close_time)


def candle(symbol: str, open_time: int, received_us: int = 0) -> Candle:
    minute = open_time // MINUTE
    close = 100.0 + (minute * 7919 % 13) / 100
    update = KlineUpdate(
        symbol=symbol,
        interval="1m",
        open_time=open_time,
        close_time=open_time + MINUTE - 1,
        open=100.0,
        high=101.0,
        low=99.0,
        close=close,
        volume=5.0,
        quote_volume=500.0,
        trades=5,
        taker_buy_volume=2.0 + minute % 3 / 10,
        taker_buy_quote_volume=200.0,
        closed=True,
        source="ws",
        event_time=open_time + MINUTE,
        received_at=open_time + MINUTE,
        received_us=received_us,
    )
    return closed_candle(update)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[AwayStore]:
    store = AwayStore(tmp_path / "perpline.db")
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., list[Any]]:
    def rows(query: str, *values: object) -> list[Any]:
        connection = apsw.Connection(str(tmp_path / "perpline.db"), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()

    return rows


async def bench(
    store: SqliteStore,
    model: Any = None,
    at: int = T0,
    symbols: Sequence[str] = SYMBOLS,
    others: Sequence[Deployed] = (),
) -> Bench:
    """An engine that has recovered at this time."""
    made = Bench(store, ManualClock(at), Always() if model is None else model, symbols, others)
    await made.engine.recover(symbols)
    return made


@asynccontextmanager
async def running(made: Bench) -> AsyncIterator[None]:
    task = asyncio.create_task(made.engine.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


STATUSES = "SELECT symbol, close_time, status FROM signals ORDER BY close_time, symbol"


# ---- a minute as it should be


async def test_all_that_is_due_together_is_decided_in_one_batch(store: AwayStore, rows: Any) -> None:
    model = Always()
    made = await bench(store, model)
    made.clock.set_ms(T0 + MINUTE + 200)
    made.close(T0 + MINUTE)
    await made.engine.drain()

    assert model.asked == [3]
    assert made.engine.batches == 1
    assert rows(STATUSES) == [(symbol, T0 + MINUTE, "flat") for symbol in SYMBOLS]
    assert rows("SELECT DISTINCT xs_n FROM signals") == [(3,)]
    assert rows("SELECT count(*) FROM predictions") == [(3,)]


async def test_each_row_says_what_it_was_decided_on_and_when(store: AwayStore, rows: Any) -> None:
    made = await bench(store, Always(0.9))
    made.clock.set_ms(T0 + MINUTE + 200)
    made.close(T0 + MINUTE, ["BTCUSDT"])
    await made.engine.drain()

    columns = "status, side, model_id, p_raw, p_cal, tp_price, sl_price, ref_mark, bid, ask, valid_until"
    assert rows(f"SELECT {columns}, t_candle_recv, t_commit FROM signals") == [
        (
            *("ok", 1, "always-1", 0.89, 0.9, "101.0", "99.0", "100", "99.9", "100.1"),
            *(T0 + MINUTE + 30_000, (T0 + MINUTE + 200) * 1000, (T0 + MINUTE + 200) * 1000),
        )
    ]
    assert rows("SELECT hex(features) = '' FROM predictions") == [(0,)]


async def test_an_engine_that_runs_decides_as_soon_as_something_is_due(store: AwayStore, rows: Any) -> None:
    made = await bench(store)
    async with running(made):
        for minute in (1, 2, 3):
            made.clock.set_ms(T0 + minute * MINUTE + 100)
            made.close(T0 + minute * MINUTE)
            await eventually(lambda: made.engine.by_status["flat"] == 3 * minute)  # noqa: B023

    assert len(rows(STATUSES)) == 9


async def test_signals_are_published_once_each_and_the_minute_is_closed_by_one_message(store: AwayStore) -> None:
    made = await bench(store)
    for minute in (1, 2):
        made.clock.set_ms(T0 + minute * MINUTE + 100)
        made.close(T0 + minute * MINUTE, SYMBOLS[:2])
        await made.engine.drain()
        made.close(T0 + minute * MINUTE, SYMBOLS[2:])
        await made.engine.drain()
        await made.publisher.flush()

    heard = [await made.heard.__anext__() for _ in range(8)]
    assert Counter(each.channel for each in heard) == {"sig.close": 2, **{f"sig.{symbol}": 2 for symbol in SYMBOLS}}
    [first, _] = [json.loads(each.payload) for each in heard if each.channel == "sig.close"]
    assert (first["T"], first["n"], first["statuses"]) == (T0 + MINUTE, 3, {"flat": 3})
    for symbol in SYMBOLS:
        assert [entry.id for entry in made.bus.stream("champion", symbol)] == [
            f"{T0 + MINUTE}-0",
            f"{T0 + 2 * MINUTE}-0",
        ]


async def test_latency_counts_from_the_last_symbols_closing_frame_to_published(store: AwayStore) -> None:
    made = await bench(store)
    made.clock.set_ms(T0 + MINUTE + 100)
    made.close(T0 + MINUTE, SYMBOLS[:2])
    made.clock.set_ms(T0 + MINUTE + 150)
    made.close(T0 + MINUTE, SYMBOLS[2:])
    await made.engine.drain()
    made.clock.set_ms(T0 + MINUTE + 157)
    await made.publisher.flush()

    assert made.engine.close_to_signal_ms.summary() == {"p50": 7.0, "p99": 7.0}
    assert made.engine.market_close_to_signal_ms.summary() == {"p50": 157.0, "p99": 157.0}
    assert made.engine.undecided == []


async def test_latency_is_measured_of_the_closes_that_are_heard_once_the_worker_is_ready(store: AwayStore) -> None:
    """A close of the start may wait for its symbol's window to be loaded, which says nothing of how decisions go."""
    made = await bench(store)
    for minute, took_ms in ((1, 300), (2, 500), (3, 8)):
        made.clock.set_ms(T0 + minute * MINUTE + 100)
        made.close(T0 + minute * MINUTE)
        made.clock.advance(took_ms / 1000)
        if minute == 2:
            made.engine.measure_from_now()  # which forgets the first and finds the second on its way
        await made.engine.drain()
        await made.publisher.flush()

    assert made.engine.close_to_signal_ms.summary() == {"p50": 8.0, "p99": 8.0}
    assert made.engine.market_close_to_signal_ms.summary() == {"p50": 108.0, "p99": 108.0}


async def test_what_is_heard_is_what_the_contract_with_consumers_says(store: AwayStore) -> None:
    made = await bench(store, model=Always(0.9))
    made.clock.set_ms(T0 + MINUTE + 100)
    made.close(T0 + MINUTE)
    await made.engine.drain()
    await made.publisher.flush()

    for each in [await made.heard.__anext__() for _ in range(4)]:
        name = "close" if each.channel == "sig.close" else "signal"
        payload = json.loads(each.payload)
        assert list(payload) == json_schema(name)["required"]
        assert msgspec.to_builtins(msgspec.json.decode(each.payload, type=MESSAGES[name])) == payload
        assert payload["t_pub_us"] == (T0 + MINUTE + 100) * 1000


async def test_the_close_of_a_minute_tells_how_long_each_step_took(store: AwayStore) -> None:
    class Slow(Always):
        def predict(self, vectors: Any) -> Any:
            made.clock.advance(0.003)
            return super().predict(vectors)

    commit = store.commit_decisions

    async def slow_commit(*arguments: Any) -> Any:
        made.clock.advance(0.005)
        return await commit(*arguments)

    store.commit_decisions = slow_commit  # type: ignore[method-assign]
    made = await bench(store, model=Slow())
    for minute in (1, 2):
        made.clock.set_ms(T0 + minute * MINUTE + 100)
        made.close(T0 + minute * MINUTE)
        await made.engine.drain()
        made.clock.advance(0.007)
        await made.publisher.flush()

    heard = [json.loads((await made.heard.__anext__()).payload) for _ in range(8)]
    first, second = [each["lat_ms"] for each in heard if each["type"] == "close"]
    # A minute's last batch is committed and published with its message, so these two are in the next one.
    assert first == {"feat": 0.0, "pred": 3.0, "db": None, "pub": None}
    assert second == {"feat": 0.0, "pred": 3.0, "db": 5.0, "pub": 7.0}


# ---- minutes that are not decided


async def test_a_close_that_is_not_known_by_its_deadline_is_one_row_skipped_missed(store: AwayStore, rows: Any) -> None:
    made = await bench(store)
    async with running(made):
        made.clock.set_ms(T0 + MINUTE + 100)
        made.close(T0 + MINUTE, SYMBOLS[:2])
        await eventually(lambda: made.engine.by_status["flat"] == 2)
        made.clock.set_ms(T0 + MINUTE + 29_900)
        await asyncio.sleep(0.05)
        assert made.engine.by_status["skipped_missed"] == 0
        made.clock.set_ms(T0 + MINUTE + 30_100)
        await eventually(lambda: made.engine.by_status["skipped_missed"] == 1)

    assert rows(STATUSES) == [
        ("BTCUSDT", T0 + MINUTE, "flat"),
        ("ETHUSDT", T0 + MINUTE, "flat"),
        ("SOLUSDT", T0 + MINUTE, "skipped_missed"),
    ]
    [(payload,)] = rows("SELECT payload FROM outbox WHERE kind = 'close'")
    assert json.loads(payload)["statuses"] == {"flat": 2, "skipped_missed": 1}


async def test_a_close_that_comes_late_is_not_decided_late(store: AwayStore, rows: Any) -> None:
    made = await bench(store)
    made.clock.set_ms(T0 + MINUTE + 30_001)
    made.close(T0 + MINUTE)
    await made.engine.drain()

    assert {status for _, _, status in rows(STATUSES)} == {"skipped_missed"}
    assert made.engine.by_status == {"skipped_missed": 3}


async def test_a_close_known_at_the_very_last_moment_is_decided(store: AwayStore, rows: Any) -> None:
    made = await bench(store)
    made.clock.set_ms(T0 + MINUTE + 30_000)
    made.close(T0 + MINUTE)
    await made.engine.drain()

    assert {status for _, _, status in rows(STATUSES)} == {"flat"}


async def test_minutes_that_a_delivery_jumps_over_are_missed(store: AwayStore, rows: Any) -> None:
    made = await bench(store, symbols=("BTCUSDT",))
    made.clock.set_ms(T0 + 4 * MINUTE + 100)
    made.close(T0 + 4 * MINUTE)
    await made.engine.drain()

    assert [(t, status) for _, t, status in rows(STATUSES)] == [
        (T0 + MINUTE, "skipped_missed"),
        (T0 + 2 * MINUTE, "skipped_missed"),
        (T0 + 3 * MINUTE, "skipped_missed"),
        (T0 + 4 * MINUTE, "skipped_gap"),
    ]


async def test_what_was_missed_is_never_published_to_the_trade_stream(store: AwayStore) -> None:
    made = await bench(store)
    made.clock.set_ms(T0 + MINUTE + 40_000)
    made.close(T0 + MINUTE)
    await made.engine.drain()
    await made.publisher.flush()

    assert [made.bus.stream("champion", symbol) for symbol in SYMBOLS] == [[], [], []]


async def test_a_candle_delivered_again_is_not_decided_again(store: AwayStore, rows: Any) -> None:
    made = await bench(store)
    made.clock.set_ms(T0 + MINUTE + 100)
    made.close(T0 + MINUTE)
    await made.engine.drain()
    for symbol in SYMBOLS:
        made.engine.on_1m_candle_close(symbol, T0 + MINUTE)
        made.engine.on_1m_candle_close(symbol, T0)
    made.engine.on_1m_candle_close("UNKNOWNUSDT", T0 + MINUTE)
    await made.engine.drain()

    assert len(rows(STATUSES)) == 3


# ---- abstentions


async def test_a_model_that_raises_or_answers_nonsense_costs_the_decision_and_nothing_else(
    store: AwayStore, rows: Any
) -> None:
    answers = [RuntimeError("out of memory"), np.zeros((3, 5)), "nonsense", np.full((3, 2), 7.0), np.zeros(3)]
    model = Broken(None)
    made = await bench(store, model)
    for minute, answer in enumerate(answers, 1):
        model.answer = answer
        made.clock.set_ms(T0 + minute * MINUTE + 100)
        made.close(T0 + minute * MINUTE)
        with capture_logs():
            await made.engine.drain()

    assert {status for _, _, status in rows(STATUSES)} == {"skipped_model"}
    assert len(rows(STATUSES)) == 3 * len(answers)
    details = [detail for (detail,) in rows("SELECT DISTINCT detail FROM signals ORDER BY close_time")]
    assert details[0] == "the model failed: RuntimeError: out of memory"


async def test_a_symbol_without_mark_price_or_book_abstains(store: AwayStore, rows: Any) -> None:
    made = await bench(store, Always(0.9), symbols=("BTCUSDT",))
    made.clock.set_ms(T0 + MINUTE + 100)
    made.close(T0 + MINUTE)
    made.marks.clear()
    await made.engine.drain()

    assert rows("SELECT status, side, detail FROM signals") == [("skipped_stale", 0, "no mark price yet")]


async def test_after_a_signal_the_same_side_pauses_also_over_a_restart(store: AwayStore, rows: Any) -> None:
    made = await bench(store, Always(0.9), symbols=("BTCUSDT",))
    made.clock.set_ms(T0 + MINUTE + 100)
    made.close(T0 + MINUTE)
    await made.engine.drain()
    again = await bench(store, Always(0.9), at=T0 + MINUTE + 20_000, symbols=("BTCUSDT",))
    for minute in range(2, 18):
        again.clock.set_ms(T0 + minute * MINUTE + 100)
        again.close(T0 + minute * MINUTE)
        await again.engine.drain()

    assert [status for _, _, status in rows(STATUSES)] == ["ok", *["cooldown"] * 14, "ok", "cooldown"]


# ---- a store that is away


async def test_while_the_store_is_away_decisions_wait_and_none_is_lost_or_made_twice(
    store: AwayStore, rows: Any
) -> None:
    made = await bench(store)
    async with running(made):
        store.away = True
        made.clock.set_ms(T0 + MINUTE + 100)
        made.close(T0 + MINUTE)
        while store.refused < 3:
            made.clock.advance(0.1)
            await asyncio.sleep(0.002)
        store.away = False
        made.clock.advance(3.0)
        await eventually(lambda: made.engine.by_status["flat"] == 3)

    assert rows(STATUSES) == [(symbol, T0 + MINUTE, "flat") for symbol in SYMBOLS]
    assert rows("SELECT count(*) FROM outbox WHERE kind = 'signal'") == [(3,)]


async def test_what_waits_behind_a_store_that_is_away_for_minutes_has_a_row_in_the_end(
    store: AwayStore, rows: Any
) -> None:
    made = await bench(store)
    async with running(made):
        store.frozen = True
        for minute in (1, 2, 3):
            made.clock.set_ms(T0 + minute * MINUTE + 100)
            for symbol in SYMBOLS:  # one by one: each may be in flight, waiting or overtaken
                made.close(T0 + minute * MINUTE, [symbol])
                await asyncio.sleep(0.005)
        store.frozen = False
        await eventually(lambda: sum(made.engine.by_status.values()) == 9)

    found = {(symbol, t): status for symbol, t, status in rows(STATUSES)}
    assert len(rows(STATUSES)) == len(found) == 9
    assert {found[symbol, T0 + 3 * MINUTE] for symbol in SYMBOLS} == {"flat"}
    assert set(found.values()) == {"flat", "skipped_missed"}


async def test_a_decision_is_made_on_the_features_of_its_own_minute(store: AwayStore, rows: Any) -> None:
    """A symbol that waits while the store hangs must not be decided with the features of a later minute."""
    made = await bench(store)
    async with running(made):
        store.frozen = True
        made.clock.set_ms(T0 + MINUTE + 100)
        made.close(T0 + MINUTE, ["BTCUSDT"])
        await asyncio.sleep(0.01)
        made.close(T0 + MINUTE, ["ETHUSDT"])
        made.clock.set_ms(T0 + 2 * MINUTE + 100)
        made.close(T0 + 2 * MINUTE, ["ETHUSDT"])
        store.frozen = False
        await eventually(lambda: made.engine.by_status["flat"] == 2)

    own = dict(rows("SELECT close_time, features FROM predictions WHERE symbol = 'ETHUSDT'"))
    assert own.keys() == {T0 + 2 * MINUTE}
    assert own[T0 + 2 * MINUTE] == made.features.vectors(["ETHUSDT"])[:, columns_of(FEATURES)].astype("<f4").tobytes()


async def test_a_stop_while_the_store_is_away_keeps_what_was_due_for_the_drain_at_the_end(
    store: AwayStore, rows: Any
) -> None:
    made = await bench(store)
    store.away = True
    async with running(made):
        made.clock.set_ms(T0 + MINUTE + 100)
        made.close(T0 + MINUTE)
        await eventually(lambda: store.refused)
    store.away = False
    await made.engine.drain()

    assert rows(STATUSES) == [(symbol, T0 + MINUTE, "flat") for symbol in SYMBOLS]


async def test_a_stop_in_the_middle_of_a_commit_decides_nothing_twice(store: AwayStore, rows: Any) -> None:
    made = await bench(store)
    made.clock.set_ms(T0 + MINUTE + 100)
    made.close(T0 + MINUTE)
    drain = asyncio.create_task(made.engine.drain())
    await asyncio.sleep(0)  # the commit is on its way in the store's thread
    drain.cancel()
    with suppress(asyncio.CancelledError):
        await drain
    await made.engine.drain()

    assert rows(STATUSES) == [(symbol, T0 + MINUTE, "flat") for symbol in SYMBOLS]
    assert rows("SELECT count(*) FROM outbox WHERE kind = 'signal'") == [(3,)]
    assert rows("SELECT count(*) FROM outbox WHERE kind = 'close'") == [(1,)]


# ---- two processes, and one after the other


async def test_two_engines_on_one_store_make_one_row_and_one_message_between_them(tmp_path: Path, rows: Any) -> None:
    stores = [SqliteStore(tmp_path / "perpline.db") for _ in range(2)]
    for each in stores:
        await each.open()
    pair = [await bench(each) for each in stores]
    for minute in range(1, 6):
        for made in pair:
            made.clock.set_ms(T0 + minute * MINUTE + 100)
            made.close(T0 + minute * MINUTE)
        await asyncio.gather(*(made.engine.drain() for made in pair))
    for each in stores:
        await each.close()

    assert Counter((symbol, t) for symbol, t, _ in rows(STATUSES)) == {
        (symbol, T0 + minute * MINUTE): 1 for symbol in SYMBOLS for minute in range(1, 6)
    }
    assert rows("SELECT kind, count(*) FROM outbox GROUP BY kind ORDER BY kind") == [("close", 5), ("signal", 15)]
    assert sum(sum(made.engine.by_status.values()) for made in pair) == 15


async def test_after_a_downtime_every_minute_has_its_row_and_nothing_of_it_is_decided(
    store: AwayStore, rows: Any
) -> None:
    made = await bench(store)
    made.clock.set_ms(T0 + MINUTE + 100)
    made.close(T0 + MINUTE)
    await made.engine.drain()
    again = await bench(store, at=T0 + 10 * MINUTE + 40_000)
    await again.engine.drain()

    for symbol in SYMBOLS:
        own = [(t, status) for name, t, status in rows(STATUSES) if name == symbol]
        assert own == [(T0 + MINUTE, "flat"), *((T0 + n * MINUTE, "skipped_missed") for n in range(2, 11))]


async def test_the_minute_of_a_quick_restart_is_still_decided(store: AwayStore, rows: Any) -> None:
    made = await bench(store)
    made.clock.set_ms(T0 + MINUTE + 100)
    made.close(T0 + MINUTE)
    await made.engine.drain()
    again = await bench(store, at=T0 + MINUTE + 59_000)
    again.clock.set_ms(T0 + 2 * MINUTE + 12_000)
    again.close(T0 + 2 * MINUTE)
    await again.engine.drain()

    assert [status for _, _, status in rows(STATUSES)] == ["flat"] * 6


class Died(BaseException):
    """The process is gone."""


class DyingStore(SqliteStore):
    """A store whose process dies at the n-th commit, before or after it is written."""

    def __init__(self, path: Path, at: int, written: bool) -> None:
        super().__init__(path)
        self.left, self.written = at, written

    async def commit_decisions(self, *arguments: Any) -> Any:
        if self.left == 0 and not self.written:
            raise Died
        won = await super().commit_decisions(*arguments)
        if self.left == 0:
            raise Died
        self.left -= 1
        return won


@pytest.mark.parametrize("written", [False, True], ids=["before it is written", "after it was written"])
@pytest.mark.parametrize("at", range(8))
async def test_a_death_at_any_commit_leaves_one_row_a_minute(tmp_path: Path, rows: Any, at: int, written: bool) -> None:
    """Five minutes in two batches each; the successor starts a minute and a half later, in the midst of the sixth."""
    store = DyingStore(tmp_path / "perpline.db", at, written)
    await store.open()
    made = await bench(store)
    died_at = T0
    try:
        for minute in range(1, 6):
            died_at = T0 + minute * MINUTE
            made.clock.set_ms(died_at + 100)
            made.close(died_at, SYMBOLS[:1])
            await made.engine.drain()
            made.close(died_at, SYMBOLS[1:])
            await made.engine.drain()
    except Died:
        pass
    await store.close()

    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    again = await bench(store, at=died_at + 90_000)
    await again.engine.drain()
    last = died_at + 2 * MINUTE
    again.clock.set_ms(last + 100)
    again.close(last)
    await again.engine.drain()
    await again.publisher.flush()
    await store.close()

    counted = Counter((symbol, t) for symbol, t, _ in rows(STATUSES))
    for symbol in {symbol for symbol, _ in counted}:
        own = sorted(t for name, t in counted if name == symbol)
        assert own == list(range(own[0], last + MINUTE, MINUTE))
    assert set(counted.values()) == {1}
    missed = {(symbol, t) for symbol, t, status in rows(STATUSES) if status == "skipped_missed"}
    sent = set(rows("SELECT symbol, close_time FROM outbox WHERE kind = 'signal'"))
    assert sent == counted.keys() - missed
    assert rows("SELECT count(*) FROM outbox WHERE published_at IS NULL") == [(0,)]


async def test_a_death_while_missed_minutes_are_written_loses_none_of_them(
    tmp_path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of a downtime come before any newer one: a successor looks no further back than the newest row."""
    monkeypatch.setattr("perpline.signals.engine.MISSED_AT_ONCE", 4)
    path = tmp_path / "perpline.db"
    for at in range(5):
        store = DyingStore(path, at, written=True)
        await store.open()
        now = T0 + at * 20 * MINUTE
        made = await bench(store, at=now + 40_000)
        made.clock.set_ms(now + MINUTE + 100)
        made.close(now + MINUTE)
        with suppress(Died):
            await made.engine.drain()
        await store.close()

    store = SqliteStore(path)
    await store.open()
    made = await bench(store, at=T0 + 100 * MINUTE + 40_000)
    await made.engine.drain()
    await store.close()

    for symbol in SYMBOLS:
        own = [t for name, t, _ in rows(STATUSES) if name == symbol]
        assert own == list(range(T0 + MINUTE, T0 + 101 * MINUTE, MINUTE))


async def test_a_minute_is_closed_by_the_symbols_that_are_followed_now(store: AwayStore, rows: Any) -> None:
    made = await bench(store)
    for minute, symbols in ((1, SYMBOLS), (2, ("BTCUSDT", "ETHUSDT"))):
        made.clock.set_ms(T0 + minute * MINUTE + 100)
        made.close(T0 + minute * MINUTE, symbols)
        await made.engine.drain()
    again = await bench(store, at=T0 + 2 * MINUTE + 5_000, symbols=("BTCUSDT", "SOLUSDT"))
    again.engine.on_1m_candle_close("SOLUSDT", T0 + 2 * MINUTE)
    await again.engine.drain()

    closes = [json.loads(payload) for (payload,) in rows("SELECT payload FROM outbox WHERE kind = 'close' ORDER BY id")]
    assert [(each["T"], each["n"]) for each in closes] == [(T0 + MINUTE, 3), (T0 + 2 * MINUTE, 2)]


async def test_what_closed_before_a_symbol_came_back_is_not_missed(store: AwayStore, rows: Any) -> None:
    made = await bench(store)
    made.clock.set_ms(T0 + MINUTE + 100)
    made.close(T0 + MINUTE)
    await made.engine.drain()
    again = Bench(store, ManualClock(T0 + 9 * MINUTE + 5_000), Always())
    await again.engine.recover(SYMBOLS, {"SOLUSDT": T0 + 6 * MINUTE + 30_000})
    await again.engine.drain()

    missed = rows("SELECT symbol, close_time FROM signals WHERE status = 'skipped_missed' AND symbol != 'ETHUSDT'")
    assert [t for symbol, t in missed if symbol == "BTCUSDT"] == [T0 + n * MINUTE for n in range(2, 9)]
    assert [t for symbol, t in missed if symbol == "SOLUSDT"] == [T0 + n * MINUTE for n in (7, 8)]


async def test_of_a_symbol_that_a_dead_process_followed_no_minute_is_without_a_row(store: AwayStore, rows: Any) -> None:
    made = await bench(store)
    made.clock.set_ms(T0 + MINUTE + 100)
    made.close(T0 + MINUTE, ("BTCUSDT",))
    await made.engine.drain()
    again = Bench(store, ManualClock(T0 + 4 * MINUTE + 5_000), Always())
    await again.engine.recover(SYMBOLS, {}, dict.fromkeys(("BTCUSDT", "ETHUSDT"), T0 + 20_000))
    await again.engine.drain()

    missed = rows("SELECT symbol, close_time FROM signals WHERE status = 'skipped_missed'")
    assert [t for symbol, t in missed if symbol == "BTCUSDT"] == [T0 + n * MINUTE for n in (2, 3)]
    assert [t for symbol, t in missed if symbol == "ETHUSDT"] == [T0 + n * MINUTE for n in (1, 2, 3)]
    assert [t for symbol, t in missed if symbol == "SOLUSDT"] == []


async def test_a_minute_that_waited_for_a_forgotten_symbol_is_told_to_be_complete(store: AwayStore, rows: Any) -> None:
    made = await bench(store)
    made.clock.set_ms(T0 + MINUTE + 100)
    made.close(T0 + MINUTE, ("BTCUSDT", "ETHUSDT"))
    await made.engine.drain()
    made.engine.forget("SOLUSDT")
    made.engine.add("ADAUSDT", T0 + MINUTE)
    await made.engine.drain()
    await made.engine.drain()

    closes = [json.loads(payload) for (payload,) in rows("SELECT payload FROM outbox WHERE kind = 'close'")]
    assert [(each["T"], each["n"]) for each in closes] == [(T0 + MINUTE, 2)]


async def test_what_is_due_of_a_forgotten_symbol_still_gets_its_row(store: AwayStore, rows: Any) -> None:
    made = await bench(store)
    made.clock.set_ms(T0 + MINUTE + 100)
    made.close(T0 + MINUTE)
    made.engine.forget("SOLUSDT")
    assert made.engine.is_due("SOLUSDT")
    await made.engine.drain()

    assert not made.engine.is_due("SOLUSDT")
    assert rows("SELECT count(*) FROM signals WHERE symbol = 'SOLUSDT'") == [(1,)]


# ---- models


def minute_of(made: Bench, n: int, symbols: Iterable[str] | None = None) -> int:
    """Deliver the n-th minute after T0; returns its T."""
    made.clock.set_ms(T0 + n * MINUTE + 200)
    made.close(T0 + n * MINUTE, symbols)
    return T0 + n * MINUTE


async def test_a_new_model_takes_over_at_its_candle_boundary_and_no_minute_is_missed(
    store: AwayStore, rows: Any
) -> None:
    made = await bench(store, Always(0.5, "old"))
    made.engine.deploy(Deployed("champion", T0 + 3 * MINUTE, Always(0.5, "new")))
    for n in (1, 2, 3, 4):
        minute_of(made, n)
        await made.engine.drain()

    assert rows("SELECT close_time, model_id, count(*) FROM signals GROUP BY close_time, model_id") == [
        (T0 + MINUTE, "old", 3),
        (T0 + 2 * MINUTE, "old", 3),
        (T0 + 3 * MINUTE, "new", 3),
        (T0 + 4 * MINUTE, "new", 3),
    ]


async def test_all_symbols_of_a_minute_are_decided_by_one_model(store: AwayStore, rows: Any) -> None:
    """However late in the minute the new one has come."""
    made = await bench(store, Always(0.5, "old"))
    minute_of(made, 1, ["BTCUSDT"])
    await made.engine.drain()
    made.engine.deploy(Deployed("champion", T0 + MINUTE, Always(0.5, "new")))
    minute_of(made, 1, ["ETHUSDT"])
    await made.engine.drain()
    minute_of(made, 2, ["BTCUSDT"])
    await made.engine.drain()

    flat = "SELECT symbol, close_time, model_id FROM signals WHERE status = 'flat'"
    assert rows(f"{flat} ORDER BY close_time, symbol") == [
        ("BTCUSDT", T0 + MINUTE, "old"),
        ("ETHUSDT", T0 + MINUTE, "old"),
        ("BTCUSDT", T0 + 2 * MINUTE, "new"),
    ]


async def test_of_two_models_for_the_same_minute_the_last_one_ordered_decides(store: AwayStore, rows: Any) -> None:
    made = await bench(store, Always(0.5, "old"))
    for name in ("first", "second"):
        made.engine.deploy(Deployed("champion", T0 + MINUTE, Always(0.5, name)))
    minute_of(made, 1)
    await made.engine.drain()

    assert rows("SELECT DISTINCT model_id FROM signals") == [("second",)]


async def test_the_change_of_the_model_is_announced_once(store: AwayStore) -> None:
    made = await bench(store, Always(0.5, "old"))
    made.engine.deploy(Deployed("champion", T0 + 2 * MINUTE, Always(0.5, "new")))
    for n in (1, 2, 3):
        minute_of(made, n)
        await made.engine.drain()
        await made.publisher.flush()

    heard = [await made.heard.__anext__() for _ in range(3 * 4 + 1)]
    announced = [json.loads(each.payload) for each in heard if each.channel == "sig.model"]
    assert [(each["model"], each["prev"], each["from"]) for each in announced] == [("new", "old", T0 + 2 * MINUTE)]
    msgspec.json.decode(json.dumps(announced[0]), type=MESSAGES["model"])


async def test_without_a_model_every_minute_gets_its_row_and_the_reason(store: AwayStore, rows: Any) -> None:
    made = Bench(store, ManualClock(T0), None)
    made.engine.deploy(Deployed("champion", T0 + 2 * MINUTE, None, "none of its models can be loaded: x"))
    await made.engine.recover(SYMBOLS)
    for n in (1, 2):
        minute_of(made, n)
        await made.engine.drain()

    assert rows("SELECT DISTINCT close_time, status, detail, model_id, threshold FROM signals ORDER BY close_time") == [
        (T0 + MINUTE, "skipped_model", "no model", "", None),
        (T0 + 2 * MINUTE, "skipped_model", "none of its models can be loaded: x", "", None),
    ]
    assert rows("SELECT count(*) FROM predictions") == [(0,)]


@pytest.mark.parametrize(
    ("validity", "detail"),
    [
        ({"valid_until": T0 + MINUTE}, "the model is not valid any more"),
        ({"valid_from": T0 + 2 * MINUTE}, "the model is not valid yet"),
    ],
)
async def test_a_model_decides_only_while_it_is_valid(
    store: AwayStore, rows: Any, validity: dict[str, int], detail: str
) -> None:
    made = await bench(store, Always(0.9, manifest=manifest(**validity)))
    minute_of(made, 1)
    await made.engine.drain()

    assert rows("SELECT DISTINCT status, detail FROM signals") == [("skipped_model", detail)]


def test_each_row_is_scored_by_whether_the_model_was_valid_then() -> None:
    times = T0 + np.arange(5) * MINUTE
    model: Any = Always(0.9, manifest=manifest(valid_from=T0 + MINUTE, valid_until=T0 + 3 * MINUTE))
    broken: Any = Broken(ValueError("no"))
    broken.manifest = model.manifest
    table = np.zeros((5, len(CATALOGUE)), np.float32)

    scores = score(model, table, times)
    with capture_logs():
        failed = score(broken, table, times)

    early, late = "the model is not valid yet", "the model is not valid any more"
    assert scores.errors == [early, "", "", late, late]
    assert np.isnan(scores.calibrated).any(axis=1).tolist() == [True, False, False, True, True]
    assert failed.errors == [early, *["the model failed: ValueError: no"] * 2, late, late]


async def test_the_minute_of_the_book_is_ended_before_its_vector_is_made(store: AwayStore, rows: Any) -> None:
    model = Always(0.9, late_bits=late_bits([by_name["imb_0"]]))
    made = await bench(store, model)

    def book_minute_ended(symbols: Sequence[str], close_time: int) -> None:
        for symbol in symbols:
            if symbol != "ETHUSDT":  # nothing came of it in that minute
                values = (symbol, close_time - MINUTE, 99.9, 1.0, 100.1, 1.0, 20.0, 0.5, 0.0, 9, 20.0)
                made.features.add_row("book_minutes", (*values, close_time - 100, close_time - 90))

    made.engine._end_book_minutes = book_minute_ended
    minute_of(made, 1)
    await made.engine.drain()

    late = LATE_BITS["book_minutes"]
    assert rows("SELECT symbol, late_mask FROM signals ORDER BY symbol") == [
        ("BTCUSDT", 0),
        ("ETHUSDT", late),
        ("SOLUSDT", 0),
    ]


async def test_a_model_is_not_believed_outside_of_what_it_was_trained_on(store: AwayStore, rows: Any) -> None:
    made = await bench(store, Always(0.9, outside=0.4, max_ood_share=0.1))
    minute_of(made, 1)
    await made.engine.drain()

    said = "40% of the features lie outside what the model was trained on, more than 10%"
    assert rows("SELECT DISTINCT status, side, detail, ood_share FROM signals") == [("skipped_ood", 0, said, 0.4)]


async def test_a_critical_feature_without_a_value_means_no_signal_and_no_probability(
    store: AwayStore, rows: Any
) -> None:
    model = Always(0.9, critical_columns=np.array([2, 3]))
    made = await bench(store, model)
    whole = made.features.vectors
    holes = {"BTCUSDT": [], "ETHUSDT": ["tbi_60"], "SOLUSDT": ["ret_1"]}

    def with_holes(symbols: Sequence[str]) -> Any:
        table = whole(symbols)
        for row, symbol in enumerate(symbols):
            table[row, [columns_of(FEATURES)[FEATURE_NAMES.index(name)] for name in holes[symbol]]] = np.nan
        return table

    made.features.vectors = with_holes  # type: ignore[method-assign]
    minute_of(made, 1)
    await made.engine.drain()

    assert rows("SELECT symbol, status, detail, nan_count FROM signals ORDER BY symbol") == [
        ("BTCUSDT", "ok", "", 0),
        ("ETHUSDT", "skipped_nan", "no value for tbi_60", 1),
        ("SOLUSDT", "ok", "", 1),
    ]
    assert rows("SELECT symbol, p_long FROM predictions ORDER BY symbol") == [
        ("BTCUSDT", 0.9),
        ("ETHUSDT", None),
        ("SOLUSDT", 0.9),
    ]


@pytest.fixture(scope="module")
def sure_model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """It signals whatever it is asked about."""
    return load_artefact(write_model(tmp_path_factory.mktemp("models"), threshold=0.0, ev_min_bp=-1e6))


@given(st.lists(st.lists(st.booleans(), min_size=len(FEATURES), max_size=len(FEATURES)), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_a_vector_that_lacks_anything_critical_gets_no_probability_and_others_are_not_disturbed(
    sure_model: LoadedModel, holes: list[list[bool]]
) -> None:
    table = np.random.default_rng(5).normal(size=(len(holes), len(CATALOGUE))).astype(np.float32)
    whole = score(sure_model, table, np.full(len(holes), T0))
    for row, lacking in enumerate(holes):
        table[row, sure_model.columns[np.array(lacking)]] = np.nan

    scores = score(sure_model, table, np.full(len(holes), T0))

    for row, lacking in enumerate(holes):
        if lacking[FEATURE_NAMES.index("tbi_15")] or lacking[FEATURE_NAMES.index("tbi_60")]:
            assert np.isnan(scores.raw[row]).all()
            assert np.isnan(scores.calibrated[row]).all()
        else:
            np.testing.assert_array_equal(scores.calibrated[row], whole.calibrated[row])


async def test_a_model_from_a_folder_decides_and_every_row_says_by_which_rule(
    store: AwayStore, rows: Any, tmp_path: Path
) -> None:
    model = load_artefact(write_model(tmp_path / "models", threshold=0.4, ev_min_bp=-200.0))
    made = await bench(store, model)
    minute_of(made, 1, ["BTCUSDT"])
    await made.engine.drain()

    columns = "model_id, schema_hash, label_hash, threshold, tp_pct, sl_pct, horizon_s, cost_bp"
    assert rows(f"SELECT {columns} FROM signals") == [
        (model.model_id, model.schema_hash, model.label_hash, 0.4, 1.0, 1.0, 14_400, 14.0)
    ]
    [(vector, raw, p_long, p_short)] = rows("SELECT features, p_long_raw, p_long, p_short FROM predictions")
    [again] = model.predict(np.frombuffer(vector, "<f4").reshape(1, -1))[1].tolist()
    assert [p_long, p_short] == again
    assert raw == p_long


# ---- shadows and drift


async def test_shadows_score_what_the_champion_decided_and_trade_nothing(store: AwayStore, rows: Any) -> None:
    model, shadow = Always(0.5), Always(0.9, "shadow-model")
    made = await bench(store, model, others=[Deployed("shadow1", 0, shadow)])
    async with running(made):
        minute_of(made, 1)
        await eventually(lambda: made.engine.shadow_rows["shadow1"] == 3)

    assert rows("SELECT slot, model_id, p_long, count(*) FROM predictions GROUP BY slot ORDER BY slot") == [
        ("champion", "always-1", 0.5, 3),
        ("shadow1", "shadow-model", 0.9, 3),
    ]
    assert rows("SELECT DISTINCT slot FROM signals") == rows("SELECT DISTINCT slot FROM outbox") == [("champion",)]
    both = "predictions a JOIN predictions b USING (symbol, close_time)"
    assert rows(f"SELECT count(*) FROM {both} WHERE a.features = b.features AND a.slot < b.slot") == [(3,)]


async def test_a_shadow_that_fails_or_a_store_that_is_away_for_it_costs_only_its_rows(
    store: AwayStore, rows: Any
) -> None:
    made = await bench(store, others=[Deployed("shadow", 0, Broken(RuntimeError("no")))])
    minute_of(made, 1)
    await made.engine.drain()
    store.away = True
    with capture_logs() as logs:
        await made.engine.score_aside()

    assert {entry["event"] for entry in logs} == {"model_failed", "shadow_not_stored"}
    assert made.engine.shadow_batches_lost == 1
    assert rows("SELECT count(*), count(DISTINCT slot) FROM predictions") == [(3, 1)]
    store.away = False


async def test_shadows_that_cannot_keep_up_lose_the_oldest_batches_and_say_so(store: AwayStore) -> None:
    made = await bench(store, symbols=("BTCUSDT",), others=[Deployed("shadow", 0, Always(0.5))])
    for n in range(1, ASIDE + 4):
        minute_of(made, n)
        await made.engine.drain()
    await made.engine.score_aside()

    assert made.engine.shadow_batches_lost == 3
    assert made.engine.shadow_rows["shadow"] == ASIDE


async def test_a_shadow_begins_and_ends_at_a_boundary(store: AwayStore, rows: Any) -> None:
    made = await bench(store, symbols=("BTCUSDT",), others=[Deployed("shadow", 0, None)])
    made.engine.deploy(Deployed("shadow", T0 + 2 * MINUTE, Always(0.5, "s")))
    made.engine.deploy(Deployed("shadow", T0 + 4 * MINUTE, None))
    for n in (1, 2, 3, 4):
        minute_of(made, n)
        await made.engine.drain()
        await made.engine.score_aside()

    assert rows("SELECT close_time FROM predictions WHERE slot = 'shadow' ORDER BY 1") == [
        (T0 + 2 * MINUTE,),
        (T0 + 3 * MINUTE,),
    ]
    assert made.engine.models_status()["shadows"] == {}


async def test_a_day_that_is_unlike_training_is_told_at_its_end(store: AwayStore) -> None:
    training = np.random.default_rng(1).normal(size=(2880, len(FEATURES))).astype(np.float32) + 50
    scores = np.full((2880, 2), 0.2)
    reference = psi_reference(training, scores, np.repeat([0, 1], 1440), np.zeros(2880, bool))
    model = Always(0.5, reference=read_reference(json.dumps(reference).encode(), len(FEATURES)))
    made = await bench(store, model, symbols=("BTCUSDT",))
    minutes_left = (86_400_000 - T0 % 86_400_000) // MINUTE
    drift = made.engine._drift
    assert drift is not None
    row = np.zeros((1, len(FEATURES)), np.float32)
    for n in range(-800, minutes_left - 1):
        drift.add(T0 + n * MINUTE, row, np.full((1, 2), 0.5), 0)

    with capture_logs() as logs:
        for n in (minutes_left - 1, minutes_left, minutes_left + 1):
            minute_of(made, n)
            await made.engine.drain()
            await made.engine.score_aside()

    [told] = [entry for entry in logs if entry["event"] == "model_drifts"]
    assert set(told["drifting"]) >= {"zret_15", "score_long"}
    assert made.engine.models_status()["drift"]["yesterday"]["drifting"] == told["drifting"]
    json.dumps(made.engine.models_status())


# ---- models that compare symbols


async def test_a_model_that_compares_symbols_waits_for_all_of_them(store: AwayStore, rows: Any) -> None:
    model = Always(0.5, cross_section=True)
    made = await bench(store, model)
    async with running(made):
        minute_of(made, 1, ["BTCUSDT"])
        await asyncio.sleep(0.02)
        assert model.asked == []
        made.clock.set_ms(T0 + MINUTE + 900)
        made.close(T0 + MINUTE, ["ETHUSDT", "SOLUSDT"])
        made.clock.advance(0.05)
        await eventually(lambda: model.asked == [3])

    assert rows("SELECT DISTINCT xs_n, status FROM signals") == [(3, "flat")]


async def test_it_waits_no_longer_than_two_seconds_and_then_knows_that_too_many_are_missing(
    store: AwayStore, rows: Any
) -> None:
    made = await bench(store, Always(0.9, cross_section=True))
    async with running(made):
        minute_of(made, 1, ["BTCUSDT", "ETHUSDT"])
        await asyncio.sleep(0.02)
        made.clock.set_ms(T0 + MINUTE + 2_000)
        await eventually(lambda: made.engine.batches == 1)

    assert rows("SELECT DISTINCT status, detail FROM signals") == [
        ("skipped_stale", "only 67% of the symbols have this minute")
    ]


async def test_a_stop_in_the_middle_of_a_shadows_scoring_leaves_it_for_the_end(store: AwayStore, rows: Any) -> None:
    shadows = [Deployed(slot, 0, Always(0.5)) for slot in ("shadow1", "shadow2")]
    made = await bench(store, others=shadows)
    minute_of(made, 1)
    await made.engine.drain()
    store.frozen = True
    scoring = asyncio.create_task(made.engine.score_aside())
    await asyncio.sleep(0.02)
    scoring.cancel()
    with suppress(asyncio.CancelledError):
        await scoring
    store.frozen = False
    await made.engine.score_aside()

    assert rows("SELECT slot, count(*) FROM predictions WHERE slot <> 'champion' GROUP BY slot ORDER BY slot") == [
        ("shadow1", 3),
        ("shadow2", 3),
    ]


# ---- standing by


async def test_who_stands_by_decides_nothing_and_on_taking_over_the_newest_minute_and_notes_the_others(
    store: AwayStore, rows: Any
) -> None:
    made = await bench(store)
    made.engine.stand_by()
    for minute in (1, 2):
        made.clock.set_ms(T0 + minute * MINUTE + 100)
        made.close(T0 + minute * MINUTE)
        await made.engine.drain()
    made.engine._sweep(made.clock.now_ms())
    assert rows("SELECT count(*) FROM signals") == [(0,)]
    assert not made.engine.decides
    assert made.engine.undecided == []

    await made.engine.take_over()
    await made.engine.drain()

    assert rows("SELECT DISTINCT close_time, status = 'skipped_missed' FROM signals ORDER BY 1") == [
        (T0 + MINUTE, 1),
        (T0 + 2 * MINUTE, 0),
    ]
    assert rows("SELECT count(*) FROM signals") == [(2 * len(SYMBOLS),)]


async def test_who_takes_over_goes_on_where_the_leader_ended_within_a_minute(store: AwayStore, rows: Any) -> None:
    leader, standby = await bench(store), await bench(store)
    standby.engine.stand_by()
    for made in (leader, standby):
        made.clock.set_ms(T0 + MINUTE + 100)
        made.close(T0 + MINUTE)
    # It dies with one of three symbols stored.
    await leader.engine.run_inference(["BTCUSDT"], T0 + MINUTE)

    await standby.engine.take_over()
    await standby.engine.drain()

    assert rows("SELECT symbol, count(*) FROM signals GROUP BY symbol ORDER BY symbol") == [
        (symbol, 1) for symbol in SYMBOLS
    ]
    assert rows("SELECT count(*) FROM outbox WHERE kind = 'close'") == [(1,)]


async def test_an_engine_that_is_fenced_off_stands_by_and_says_so(store: AwayStore, rows: Any) -> None:
    made = await bench(store)
    told: list[str] = []

    async def refuses(*_: Any) -> Any:
        raise Fenced("the lease is another's")

    made.engine._commit_with, made.engine._on_fenced = refuses, lambda: told.append("fenced")
    made.clock.set_ms(T0 + MINUTE + 100)
    made.close(T0 + MINUTE)
    await made.engine.drain()

    assert told == ["fenced"]
    assert not made.engine.decides
    assert rows("SELECT count(*) FROM signals") == [(0,)]


async def test_rows_do_not_wait_for_decisions_that_the_bus_has_not_taken_for_a_minute(store: AwayStore) -> None:
    """As in an outage of Redis: each look at the rows would wait a second for what nobody can hurry."""
    made, t = await bench(store), T0 + MINUTE
    made.clock.set_ms(t)
    made.close(t)
    assert made.engine.is_deciding
    await made.engine.drain()
    made.clock.set_ms(t + 30_000)
    assert made.engine.is_deciding, "stored, and on its way to the bus"
    made.clock.set_ms(t + 30_001)
    assert not made.engine.is_deciding

    made.clock.set_ms(t + MINUTE)
    made.close(t + MINUTE)
    await made.engine.drain()
    assert made.engine.is_deciding, "the next one"
    await made.publisher.flush()
    assert not made.engine.is_deciding


async def test_what_the_bus_does_not_take_for_hours_is_not_remembered_here(store: AwayStore) -> None:
    made = await bench(store)
    for n in range(1, 40):
        made.clock.set_ms(T0 + n * MINUTE)
        made.close(T0 + n * MINUTE)
        await made.engine.drain()
        made.engine.tidy(made.clock.now_ms())
    assert len(made.engine._unpublished) <= 12 * len(SYMBOLS)
    await made.publisher.flush()
    assert not made.engine.is_deciding
