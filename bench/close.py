"""From the closing frame of a minute's last symbol to committed and published, and what the time goes into."""

import asyncio
import math
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from msgspec import structs

from bench.frames import Tape, book_ticker_frame, kline_frame, mark_price_frame
from bench.results import Table
from bench.route import make_instruments
from perpline.bootstrap import Parts, make_parts, make_rest
from perpline.bus.memory import MemoryBus
from perpline.cli.options import run_loop
from perpline.common.clock import SystemClock
from perpline.common.config import load_settings
from perpline.common.telemetry import LatencyWindow
from perpline.domain.candle import MINUTE_MS, Candle, KlineUpdate, closed_candle
from perpline.domain.signal import Decision, Message, Prediction
from perpline.exchange.binance.decode import FieldWatch, decode
from perpline.features.live import LiveFeatures
from perpline.inference.baseline import Baseline
from perpline.storage.sqlite import SqliteStore

FIRST_CLOSE_MS = 1_790_773_200_000
EXCHANGE_DELAY_MS = 300
TRAFFIC = {30: 1_500, 600: 10_000}
"""Messages a second of a lively market, by symbols."""
CLOSE_LIMIT_S = 30.0

SPLIT = (
    "last frame → features",
    "model",
    "verdicts, rows, messages",
    "commit",
    "outbox read",
    "publish",
)


def close(symbols: Sequence[int], closes: int, say: Callable[[str], None]) -> list[Table]:
    """The tables for these numbers of symbols closing together, `closes` minutes each, and the price of the steps."""
    latencies: list[tuple[str | float | int | None, ...]] = []
    splits: dict[str, dict[str, float]] = {}
    notes = [
        f"{closes} minutes each; windows full, SQLite in a file, in-process bus. The closing frames of a minute are "
        "routed back to back, so all of its symbols are one batch. Milliseconds of wall time.",
        "lively: beside it the router gets bookTicker, markPrice and kline frames at that rate.",
        "all: from the receipt of the first symbol's frame; the other columns from the last one's.",
    ]
    for count in symbols:
        for per_second in (0, TRAFFIC.get(count, count * 20)):
            case = f"{count} symbols" + (f", lively {per_second:,}/s" if per_second else "")
            measured = _measure_closes(count, closes, per_second, partial(_say_of, case, say))
            window = measured.window
            latencies.append(
                (
                    case,
                    *(_rounded(window.quantile(q)) for q in (0.5, 0.99, 1.0)),
                    _rounded(measured.from_first.quantile(0.5)),
                    _rounded(measured.from_first.quantile(0.99)),
                )
            )
            splits[case] = {name: float(np.median(values)) for name, values in measured.split.items()}
            notes.append(f"{case}: {', '.join(f'{n:,} {status}' for status, n in measured.statuses.most_common())}.")
    return [
        Table(
            "close_to_signal_ms",
            ("closing together", "p50", "p99", "max", "all p50", "all p99"),
            latencies,
            tuple(notes),
        ),
        Table(
            "What it goes into, medians in ms",
            ("step", *splits),
            [(name, *(_rounded(split[name]) for split in splits.values())) for name in (*SPLIT, _ROUTING, _MARKING)],
            (
                f"{_ROUTING}: all closing frames, before the first row. {_MARKING}: after the last row, not counted.",
                "commit and outbox read hold the way to the writer's thread and back.",
            ),
        ),
        _steps(say),
    ]


def _say_of(case: str, say: Callable[[str], None], line: str) -> None:
    say(f"{case}: {line}")


_ROUTING = "routing the frames"
_MARKING = "marked as published"


class _Measured:
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


class TimedStore(SqliteStore):
    """A store that notes when the steps of a decision's way out began and ended, microseconds of the clock."""

    def __init__(self, path: Path, clock: SteppedClock) -> None:
        super().__init__(path)
        self.began: dict[str, int] = {}
        self.ended: dict[str, int] = {}
        self.marked = asyncio.Event()
        self._clock = clock

    async def commit_decisions(
        self,
        decisions: Sequence[Decision],
        predictions: Sequence[Prediction],
        messages: Sequence[Message],
        t_commit: int,
    ) -> list[Decision]:
        self.began["commit"] = self._clock.now_us()
        won = await super().commit_decisions(decisions, predictions, messages, t_commit)
        self.ended["commit"] = self._clock.now_us()
        return won

    async def pending_messages(self, limit: int) -> list[Message]:
        messages = await super().pending_messages(limit)
        if messages:
            self.ended["outbox read"] = self._clock.now_us()
        return messages

    async def mark_published(self, ids: Sequence[int], published_at: int) -> None:
        self.began["mark"] = self._clock.now_us()
        await super().mark_published(ids, published_at)
        self.ended["mark"] = self._clock.now_us()
        self.marked.set()


def _measure_closes(symbols: int, closes: int, per_second: int, say: Callable[[str], None]) -> _Measured:
    with tempfile.TemporaryDirectory(prefix="perpline-bench-") as folder:

        async def main(stop: asyncio.Event) -> _Measured:
            return await _run_closes(symbols, closes, per_second, Path(folder), say)

        return run_loop(main)


async def _run_closes(
    symbols: int, closes: int, per_second: int, folder: Path, say: Callable[[str], None]
) -> _Measured:
    clock = SteppedClock(FIRST_CLOSE_MS - 30_000)
    tape = Tape(symbols)
    settings = load_settings(
        None, {}, {"data_dir": str(folder), "database_url": f"sqlite:///{folder}/bench.db", "redis_url": "memory://"}
    )
    store = TimedStore(folder / "bench.db", clock)
    await store.open()
    try:
        rest = make_rest(settings, clock)  # never asked: every close comes
        instruments = make_instruments(tape.symbols)
        parts = make_parts(settings, clock, store, MemoryBus(), instruments, rest, random.Random(0))
        await parts.engine.recover(parts.symbols)
        say("filling the windows")
        market = _Market(tape, FIRST_CLOSE_MS - (LiveFeatures.lookback_min + 1) * MINUTE_MS)
        _fill_windows(parts, market)
        measured = _Measured(parts.engine.close_to_signal_ms)
        async with asyncio.TaskGroup() as group:
            working = [
                group.create_task(part.run()) for part in (parts.engine, parts.publisher, parts.buffer, parts.ledger)
            ]
            if per_second:
                working.append(group.create_task(_traffic(parts, tape, clock, per_second)))
            for number in range(closes):
                say(f"minute {number + 1} of {closes}")
                await _close_a_minute(parts, store, clock, market, measured)
            for task in working:
                task.cancel()
        await parts.buffer.flush()
        rows = await store.decision_rows(settings.slot, 0, 2**62)
    finally:
        await store.close()
    measured.statuses.update(str(status) for _, _, status in rows)
    if len(rows) != closes * symbols or measured.window.count != closes:
        raise RuntimeError(f"{closes} × {symbols} closes, {len(rows)} rows, {measured.window.count} batches")
    return measured


class _Market:
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


def _fill_windows(parts: Parts, market: _Market) -> None:
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


async def _close_a_minute(
    parts: Parts, store: TimedStore, clock: SteppedClock, market: _Market, measured: _Measured
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
        store.ended["outbox read"],
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


async def _traffic(parts: Parts, tape: Tape, clock: SteppedClock, per_second: int) -> None:
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
    features = LiveFeatures(names)
    market = _Market(tape, boundary)
    two_minutes = [[_candle(frame) for frame in market.next_minute()[1]] for _ in range(2)]
    candles = [
        [structs.replace(candle, open_time=boundary + minute * MINUTE_MS) for candle in two_minutes[minute % 2]]
        for minute in range(LiveFeatures.lookback_min)
    ]
    began = time.perf_counter()
    for minute in candles:
        for candle in minute:
            features.add(candle)
    rows.append(("LiveFeatures.add", (time.perf_counter() - began) / (len(candles) * len(names)) * 1e6))
    model = Baseline()
    for count in (30, 600):
        some = names[:count]
        rows.append((f"LiveFeatures.vectors, {count} symbols", _us(partial(features.vectors, some))))
        vectors = features.vectors(some).astype(np.float32)
        rows.append((f"Baseline.predict, {count} symbols", _us(partial(model.predict, vectors))))
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
