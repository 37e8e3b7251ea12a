"""From the closing frame of a minute's last symbol to committed and published, and what the time goes into."""

import asyncio
import gc
import math
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count, pairwise
from typing import Any

import numpy as np
from msgspec import structs

from bench import servers
from bench.frames import Tape, book_ticker_frame, kline_frame, mark_price_frame
from bench.results import Table
from bench.route import make_instruments
from perpline.bootstrap import Parts, make_parts, make_rest, open_bus, open_store
from perpline.cli.options import run_loop
from perpline.common.clock import SystemClock
from perpline.common.config import Settings, load_settings
from perpline.common.telemetry import LatencyWindow
from perpline.domain.candle import MINUTE_MS, Candle, KlineUpdate, closed_candle
from perpline.domain.signal import Decision, Message, Prediction
from perpline.exchange.binance.decode import FieldWatch, decode
from perpline.features.live import LiveFeatures
from perpline.inference.registry import Deployed, load_default
from perpline.storage.store import Committed, Fence, Store

FIRST_CLOSE_MS = 1_790_773_200_000
EXCHANGE_DELAY_MS = 300
TRAFFIC = {30: 1_500, 600: 10_000}
"""Messages a second of a lively market, by symbols."""
CLOSE_LIMIT_S = 30.0

STORES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
BUSES = {"memory": "memory", "redis": "Redis"}

SPLIT = (
    "features",
    "model",
    "verdicts",
    "commit",
    "publish",
)


def close(
    symbols: Sequence[int],
    closes: int | None,
    postgres_url: str | None,
    redis_url: str | None,
    say: Callable[[str], None],
) -> list[Table]:
    """The tables for these numbers of symbols closing together, `closes` minutes each, and the price of the steps.

    By default 300 minutes of up to 100 symbols, and 50 of more.
    """
    latencies: list[tuple[str | float | int | None, ...]] = []
    splits: list[tuple[str | float | int | None, ...]] = []
    notes = [
        "Windows full, SQLite in a file. The closing frames of a minute are routed back to back, so all of its symbols "
        "are one batch. Milliseconds of wall time.",
        "lively: beside it the router gets bookTicker, markPrice and kline frames at that rate; on the first and the "
        "last pair of servers.",
        "all: from the receipt of the first symbol's frame; the other columns from the last one's.",
    ]
    numbers = count()
    with servers.postgres(postgres_url) as postgres, servers.redis(redis_url) as redis:
        notes += [postgres.about, redis.about]
        pairs = [
            (store, bus)
            for store in STORES
            for bus in BUSES
            if (store == "sqlite" or postgres.url) and (bus == "memory" or redis.url)
        ]
        for symbol_count in symbols:
            minutes = closes or (300 if symbol_count <= 100 else 50)
            for per_second in (0, TRAFFIC.get(symbol_count, symbol_count * 20)):
                for store, bus in [pairs[0], pairs[-1]] if per_second and len(pairs) > 1 else pairs:
                    name = f"{symbol_count} symbols" + (f", lively {per_second:,}/s" if per_second else "")
                    case = (name, STORES[store], BUSES[bus])
                    with ExitStack() as made:
                        database_url = made.enter_context(servers.database(postgres)) if store == "postgresql" else None
                        slot = f"bench-{os.getpid()}-{next(numbers)}"  # no minute may be known to Redis already
                        if bus == "redis" and redis.url:
                            made.callback(servers.delete_slot, redis.url, slot)
                        measured = _measure_closes(
                            symbol_count,
                            minutes,
                            per_second,
                            {
                                "database_url": database_url,
                                "redis_url": redis.url if bus == "redis" else "memory://",
                                "slot": slot,
                            },
                            partial(_say_of, ", ".join(case), say),
                        )
                    window, first = measured.window, measured.from_first
                    figures = (*map(window.quantile, (0.5, 0.99, 1.0)), *map(first.quantile, (0.5, 0.99)))
                    latencies.append((*case, minutes, *map(_rounded, figures)))
                    medians = (float(np.median(values)) for values in measured.split.values())
                    splits.append((*case, *map(_rounded, medians)))
                statuses = ", ".join(f"{n:,} {status}" for status, n in measured.statuses.most_common())
                notes.append(f"{name} ({case[1]}, {case[2]}): {statuses}.")
    return [
        Table(
            "close_to_signal_ms",
            ("closing together", "store", "bus", "minutes", "p50", "p99", "max", "all p50", "all p99"),
            latencies,
            tuple(notes),
        ),
        Table(
            "What it goes into, medians in ms",
            ("closing together", "store", "bus", *SPLIT, _ROUTING, _MARKING),
            splits,
            (
                f"{_ROUTING}: all closing frames, before features. features: from the last frame on. verdicts: with "
                f"the rows and messages made of them. {_MARKING} as published: not counted.",
                "commit holds the way to the writer's thread, or to the server, and back.",
            ),
        ),
        _steps(say),
    ]


def _say_of(case: str, say: Callable[[str], None], line: str) -> None:
    say(f"{case}: {line}")


_ROUTING = "routing"
_MARKING = "marking"


class Measured:
    """What the closes of one case took, milliseconds."""

    def __init__(self, window: LatencyWindow) -> None:
        self.window = window
        self.from_first = LatencyWindow()
        self.split: dict[str, list[float]] = {name: [] for name in (*SPLIT, _ROUTING, _MARKING)}
        self.statuses: Counter[str] = Counter()


class SteppedClock(SystemClock):
    """Runs with the wall, and can be put forward to the next minute."""

    def __init__(self, now_ms: int) -> None:
        super().__init__()
        self._ahead_us = 0
        self.put(now_ms)

    def put(self, now_ms: int) -> None:
        self._ahead_us = now_ms * 1000 - time.monotonic_ns() // 1000

    def now_us(self) -> int:
        return time.monotonic_ns() // 1000 + self._ahead_us


class TimedStore:
    """A store that notes when the steps of a decision's way out began and ended, microseconds of the clock."""

    def __init__(self, store: Store, clock: SteppedClock) -> None:
        self.began: dict[str, int] = {}
        self.ended: dict[str, int] = {}
        self.marked = asyncio.Event()
        self._store = store
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit_decisions(
        self,
        decisions: Sequence[Decision],
        predictions: Sequence[Prediction],
        messages: Sequence[Message],
        t_commit: int,
        fence: Fence | None = None,
    ) -> Committed:
        self.began["commit"] = self._clock.now_us()
        committed = await self._store.commit_decisions(decisions, predictions, messages, t_commit, fence)
        self.ended["commit"] = self._clock.now_us()
        return committed

    async def mark_published(self, ids: Sequence[int], published_at: int) -> None:
        self.began["mark"] = self._clock.now_us()
        await self._store.mark_published(ids, published_at)
        self.ended["mark"] = self._clock.now_us()
        self.marked.set()


def _measure_closes(
    symbols: int, closes: int, per_second: int, changes: dict[str, str | None], say: Callable[[str], None]
) -> Measured:
    with tempfile.TemporaryDirectory(prefix="perpline-bench-") as folder:
        settings = load_settings(
            None,
            {},
            {"data_dir": folder, **changes, "database_url": changes["database_url"] or f"sqlite:///{folder}/bench.db"},
        )

        async def main(stop: asyncio.Event) -> Measured:
            return await _run_closes(symbols, closes, per_second, settings, say)

        return run_loop(main)


async def _run_closes(
    symbols: int, closes: int, per_second: int, settings: Settings, say: Callable[[str], None]
) -> Measured:
    clock = SteppedClock(FIRST_CLOSE_MS - 30_000)
    tape = Tape(symbols)
    store = TimedStore(open_store(settings.database_url.get_secret_value()), clock)
    bus = open_bus(settings.redis_url.get_secret_value())
    try:
        await store.open()
        await bus.open()
        rest = make_rest(settings, clock, alone=True)  # never asked: every close comes
        instruments = make_instruments(tape.symbols)
        deployed = [Deployed(settings.slot, 0, load_default())]
        parts = make_parts(settings, clock, store, bus, instruments, rest, random.Random(0), deployed)
        await parts.engine.recover(parts.symbols)
        say("filling the windows")
        market = Market(tape, FIRST_CLOSE_MS - (parts.features.lookback_min + 1) * MINUTE_MS)
        fill_windows(parts, market)
        measured = Measured(parts.engine.close_to_signal_ms)
        gc.collect()
        gc.freeze()  # as the worker does when it is ready
        async with asyncio.TaskGroup() as group:
            working = [
                group.create_task(part.run()) for part in (parts.engine, parts.publisher, parts.buffer, parts.ledger)
            ]
            if per_second:
                working.append(group.create_task(traffic(parts, tape, clock, per_second)))
            for number in range(closes):
                say(f"minute {number + 1} of {closes}")
                await close_a_minute(parts, store, clock, market, measured)
            for task in working:
                task.cancel()
        await parts.buffer.flush()
        rows = await store.decision_rows(settings.slot, 0, 2**62)
    finally:
        gc.unfreeze()
        await bus.close()
        await store.close()
    measured.statuses.update(str(status) for _, _, status in rows)
    if len(rows) != closes * symbols or measured.window.count != closes:
        raise RuntimeError(f"{closes} × {symbols} closes, {len(rows)} rows, {measured.window.count} batches")
    return measured


class Market:
    """Prices that walk, and the frames of the minute that closes next."""

    def __init__(self, tape: Tape, open_time: int) -> None:
        self.open_time = open_time
        self._rng = random.Random(2)
        self._prices = dict(tape.prices)
        self._tilt = dict.fromkeys(tape.prices, 0.0)
        self._update_id = 11_600_000_000_000

    def next_minute(self) -> tuple[list[bytes], list[bytes]]:
        """What was heard just before T, mark price and book of each symbol, and the closing frames."""
        rng, boundary = self._rng, self.open_time + MINUTE_MS
        before: list[bytes] = []
        closing: list[bytes] = []
        for symbol, price in self._prices.items():
            self._tilt[symbol] = 0.9 * self._tilt[symbol] + rng.gauss(0, 0.08)  # takers lean to a side for a while
            bought = min(max(0.5 + self._tilt[symbol], 0.0), 1.0)
            close_price = price * math.exp(rng.gauss(0, 0.0006))
            self._prices[symbol] = close_price
            self._update_id += 1
            before.append(mark_price_frame(symbol, boundary - 500, close_price))
            before.append(book_ticker_frame(symbol, boundary - 100, self._update_id, close_price, rng))
            prices = price, close_price
            closing.append(kline_frame(symbol, "1m", boundary + 50, self.open_time, prices, bought, True))
        self.open_time = boundary
        return before, closing


def fill_windows(parts: Parts, market: Market) -> None:
    """As recovery does from the store."""
    while market.open_time < FIRST_CLOSE_MS - MINUTE_MS:
        for frame in market.next_minute()[1]:
            parts.features.add(_candle(frame))
    for symbol in parts.symbols:
        parts.closed.expect(symbol, "1m", market.open_time)


def _candle(frame: bytes) -> Candle:
    update = decode(frame, 1).content
    assert isinstance(update, KlineUpdate)
    return closed_candle(update)


async def close_a_minute(
    parts: Parts, store: TimedStore, clock: SteppedClock, market: Market, measured: Measured
) -> None:
    before, closing = market.next_minute()
    boundary = market.open_time
    clock.put(boundary - 90)
    for frame in before:
        parts.router.route(frame, clock.now_us())
    await _until_written(parts)
    store.marked.clear()
    clock.put(boundary + EXCHANGE_DELAY_MS)
    route, now_us = parts.router.route, clock.now_us
    first_us = now_us()
    for frame in closing:
        last_us = now_us()
        route(frame, last_us)
    routed_us = now_us()
    async with asyncio.timeout(CLOSE_LIMIT_S):
        await store.marked.wait()
    decision = parts.engine.last_decision[parts.symbols[-1]]
    published_us = store.began["mark"]
    stamps = (
        last_us,
        decision.t_features,
        decision.t_predict,
        store.began["commit"],
        store.ended["commit"],
        published_us,
    )
    for name, (began, ended) in zip(SPLIT, pairwise(stamps), strict=True):
        measured.split[name].append((ended - began) / 1000)
    measured.split[_ROUTING].append((routed_us - first_us) / 1000)
    measured.split[_MARKING].append((store.ended["mark"] - published_us) / 1000)
    measured.from_first.add((published_us - first_us) / 1000)
    await _until_written(parts)


async def _until_written(parts: Parts) -> None:
    """A minute has 60 s to write its candles; here the next one would follow at once and meet them in the store."""
    batch = parts.settings.buffer_batch_rows
    while any(table.waiting >= batch for table in parts.buffer.statistics().values()):  # noqa: ASYNC110
        await asyncio.sleep(0.002)


async def traffic(parts: Parts, tape: Tape, clock: SteppedClock, per_second: int) -> None:
    """Route frames of the tape at this rate, a few each millisecond, with times that follow the clock."""
    payloads: list[bytes] = []
    present = -1
    due, began = 0.0, clock.wall_s()
    while True:
        now = clock.wall_s()
        due, began = due + (now - began) * per_second, now
        block = tape.block_at(clock.now_ms())
        if block != present or not payloads:
            tape.turn_to(block)
            payloads, present = tape.payloads(), block
        for _ in range(min(int(due), 100)):  # after a pause a socket would hand over what came, some kB at a time
            if payloads:
                parts.router.route(payloads.pop(), clock.now_us())
                due -= 1
        await asyncio.sleep(0.001 if due < 1 else 0)


# ---- the price of single steps ----


def _steps(say: Callable[[str], None]) -> Table:
    say("single steps")
    rng = random.Random(3)
    boundary = FIRST_CLOSE_MS
    prices = 84551.0, 84590.5
    frames = {
        "bookTicker": book_ticker_frame("BTCUSDT", boundary, 11_671_659_685_961, prices[0], rng),
        "markPrice": mark_price_frame("BTCUSDT", boundary, prices[0]),
        "kline, forming": kline_frame("BTCUSDT", "1m", boundary + 50, boundary, prices, 0.4, False),
        "kline, closed": kline_frame("BTCUSDT", "1m", boundary + 60_050, boundary, prices, 0.4, True),
    }
    rows: list[tuple[str, float]] = [
        (f"decode: {name}", _us(partial(decode, frame, 1))) for name, frame in frames.items()
    ]
    watch = FieldWatch()
    rows.append(("unknown fields: bookTicker", _us(partial(watch.see, frames["bookTicker"]))))
    update = decode(frames["kline, closed"], 1).content
    assert isinstance(update, KlineUpdate)
    rows.append(("closed candle with its logs", _us(partial(closed_candle, update))))
    tape = Tape(600)
    names = tape.symbols
    model = load_default()
    features = LiveFeatures(names, model.lookback_min)
    market = Market(tape, boundary)
    two_minutes = [[_candle(frame) for frame in market.next_minute()[1]] for _ in range(2)]
    candles = [
        [structs.replace(candle, open_time=boundary + minute * MINUTE_MS) for candle in two_minutes[minute % 2]]
        for minute in range(features.lookback_min)
    ]
    began = time.perf_counter()
    for minute in candles:
        for candle in minute:
            features.add(candle)
    rows.append(("LiveFeatures.add", (time.perf_counter() - began) / (len(candles) * len(names)) * 1e6))
    for together in (30, 600):
        some = names[:together]
        rows.append((f"LiveFeatures.vectors, {together} symbols", _us(partial(features.vectors, some))))
        vectors = features.vectors(some)[:, model.columns]
        rows.append((f"LoadedModel.predict, {together} symbols", _us(partial(model.predict, vectors))))
    return Table(
        "Single steps",
        ("step", "µs"),
        [(name, _rounded(value)) for name, value in rows],
        ("Medians of repeated calls; one call, for `vectors` and `predict` for all symbols together.",),
    )


def _us(call: Callable[[], object], repeats: int = 15, at_least_s: float = 0.004) -> float:
    """Median microseconds of a call."""
    number = 1
    while True:
        began = time.perf_counter()
        for _ in range(number):
            call()
        if time.perf_counter() - began >= at_least_s:
            break
        number *= 2
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(number):
            call()
        taken.append((time.perf_counter() - began) / number * 1e6)
    return float(np.median(taken))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
