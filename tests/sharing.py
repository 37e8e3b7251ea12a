"""A market of frames, and processes of every role on it inside this one, for tests of more than one machine."""

import asyncio
import math
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.frames import book_ticker_frame, kline_frame, mark_price_frame, symbol_names
from bench.route import make_instruments

from modelling import golden_rows, logistic_graph, manifest
from perpline.bootstrap import Parts, belongs, make_parts, make_rest
from perpline.bus.feature_stream import FeatureStream
from perpline.bus.memory import MemoryBus
from perpline.common.clock import SystemClock
from perpline.common.config import Settings, load_settings
from perpline.domain.candle import MINUTE_MS, Candle, KlineUpdate, closed_candle
from perpline.exchange.binance.decode import decode
from perpline.features import kernel
from perpline.features.catalogue import CATALOGUE, schema_hash
from perpline.features.received import ReceivedFeatures
from perpline.inference.artefact import LoadedModel, ManifestFeature, load_artefact, write_artefact
from perpline.inference.registry import Deployed
from perpline.leadership import Leadership
from perpline.signals.engine import Market, SignalEngine
from perpline.signals.group import GroupMember
from perpline.signals.publisher import Publisher
from perpline.simulation.server import SimulatedExchange
from perpline.storage.store import Store
from running import settings_file

T0 = 1_795_219_260_000
"""2026-11-20 23:21 UTC, when the first minute of a test closes."""
TIMINGS = frozenset({"t_candle_recv", "t_features", "t_predict", "t_commit", "xs_n"})
"""Columns of `signals` that say when, and with how many others, a decision was made."""


class SteppedClock(SystemClock):
    """Runs with the wall, and can be put forward to the next minute; the exchange's time is the same."""

    offset_ms = 0

    def exchange_now_ms(self) -> int:
        return self.now_ms()

    def __init__(self, now_ms: int) -> None:
        super().__init__()
        self._ahead_us = 0
        self.put(now_ms)

    def put(self, now_ms: int) -> None:
        self._ahead_us = now_ms * 1000 - time.monotonic_ns() // 1000

    def now_us(self) -> int:
        return time.monotonic_ns() // 1000 + self._ahead_us


class FramedMarket:
    """Prices that walk together with the first symbol's, and the frames of the minute that closes next."""

    def __init__(self, symbols: int, minutes_before: int, seed: int = 2) -> None:
        self.symbols = symbol_names(symbols)
        self.open_time = T0 - (minutes_before + 1) * MINUTE_MS
        self.history: list[list[bytes]] = []
        """The closing frames of every minute so far."""
        self._rng = random.Random(seed)
        self._prices = {symbol: 10 ** self._rng.uniform(-1, 4) for symbol in self.symbols}
        self._tilt = dict.fromkeys(self.symbols, 0.0)
        self._update_id = 11_600_000_000_000
        for _ in range(minutes_before):
            self.next_minute()

    def next_minute(self) -> tuple[list[bytes], list[bytes]]:
        """What is heard just before T, mark price and book of each symbol, and the closing frames."""
        rng, boundary = self._rng, self.open_time + MINUTE_MS
        together = rng.gauss(0, 0.0004)
        before: list[bytes] = []
        closing: list[bytes] = []
        for symbol, price in self._prices.items():
            self._tilt[symbol] = 0.9 * self._tilt[symbol] + rng.gauss(0, 0.08)
            bought = min(max(0.5 + self._tilt[symbol], 0.0), 1.0)
            close_price = price * math.exp(together + rng.gauss(0, 0.0006))
            self._prices[symbol] = close_price
            self._update_id += 1
            before.append(mark_price_frame(symbol, boundary - 500, close_price))
            before.append(book_ticker_frame(symbol, boundary - 100, self._update_id, close_price, rng))
            prices = price, close_price
            closing.append(kline_frame(symbol, "1m", boundary + 50, self.open_time, prices, bought, True))
        self.open_time = boundary
        self.history.append(closing)
        return before, closing


def candle_of(frame: bytes) -> Candle:
    update = decode(frame, 1).content
    assert isinstance(update, KlineUpdate)
    return closed_candle(update)


def model_of(folder: Path, weights: Mapping[str, float], threshold: float = 0.52) -> LoadedModel:
    """A model of these columns, which a few of its rows are enough for."""
    features = [feature for name in weights for feature in CATALOGUE if feature.name == name]
    made = manifest(
        schema_hash=schema_hash(tuple(features)),
        features=[ManifestFeature.of(feature) for feature in features],
        critical=[feature.name for feature in features],
        threshold=threshold,
    )
    graph = logistic_graph(weights, [feature.name for feature in features])
    return load_artefact(write_artefact(folder, made, {"both.onnx": graph}, golden_rows(8, len(features))))


def role_settings(folder: Path, **changes: Any) -> Settings:
    return load_settings(None, {}, {"data_dir": str(folder), "buffer_batch_rows": 100_000, **changes})


async def make_process(
    settings: Settings,
    clock: SteppedClock,
    store: Store,
    market: FramedMarket,
    model: LoadedModel,
    stream: FeatureStream | None = None,
    leadership: Leadership | None = None,
) -> Parts:
    """Parts with full windows: everything in one process, or with a stream those of a collector."""
    symbols = market.symbols
    if stream is not None:
        symbols = [each for each in symbols if belongs(settings, each, cross_section=model.cross_section)]
    instruments = make_instruments(symbols)
    rest = make_rest(settings, clock, alone=True)  # never asked: every close comes
    deployed = [Deployed(settings.slot, 0, model)]
    parts = make_parts(
        *(settings, clock, store, MemoryBus(), instruments, rest, random.Random(0), deployed),
        stream=stream,
        leadership=leadership,
    )
    await parts.engine.recover(parts.symbols)
    for minute in market.history:
        for frame in minute:
            candle = candle_of(frame)
            if candle.symbol in instruments:
                parts.features.add(candle)
    for symbol in instruments:
        parts.closed.expect(symbol, "1m", market.open_time)
    await rest.close()
    return parts


def hear(parts: Parts, frames: Sequence[bytes], clock: SteppedClock) -> None:
    for frame in frames:
        name = frame[11 : frame.index(b"@")].decode().upper()
        if name in parts.instruments:
            parts.router.route(frame, clock.now_us())


@asynccontextmanager
async def deciding_member(
    url: str,
    settings: Settings,
    clock: SteppedClock,
    store: Store,
    model: LoadedModel,
    name: str,
    *,
    leads: bool = False,
    claim_after_s: float = 0.3,
) -> AsyncIterator[GroupMember]:
    """A member of the group at work. It dies with the block, as if killed: what it had taken stays taken."""
    stream = FeatureStream(url, settings.slot, group=settings.group, consumer=name, width=kernel.WIDTH)
    await stream.open()
    received = ReceivedFeatures()
    member = GroupMember(
        stream,
        clock,
        store,
        received,
        slot=settings.slot,
        decide_within_s=settings.decide_within_s,
        leads=lambda: leads,
        claim_after_s=claim_after_s,
    )
    publisher = Publisher(store, MemoryBus(), clock, random.Random(0))
    member.engine = SignalEngine(
        clock=clock,
        store=store,
        features=received,
        deployed=[Deployed(settings.slot, 0, model)],
        market=Market(received.mark, received.book, received.candle, member.instrument),
        slot=settings.slot,
        decide_within_s=settings.decide_within_s,
        wake_publisher=publisher.wake,
        speaks=lambda: leads,
    )
    await member.engine.recover([])
    await member.begin()
    running = asyncio.create_task(member.run())
    try:
        yield member
    finally:
        failed = running.done() and not running.cancelled()
        running.cancel()
        await asyncio.gather(running, return_exceptions=not failed)
        await stream.close()


# ---- processes, as a person would start them

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("PERPLINE_")}
QUOTES = frozenset({"ref_mark", "bid", "ask", "tp_price", "sl_price"})
"""Made of the newest mark price and book, which two processes hear at different instants."""


class Fleet:
    """Processes of one slot on a simulated exchange."""

    def __init__(self, exchange: SimulatedExchange, folder: Path, **changes: Any) -> None:
        self._exchange = exchange
        self._folder = folder
        self._changes = changes
        self._running: list[asyncio.subprocess.Process] = []

    async def start(
        self, name: str, *options: str, inside: Sequence[str] = (), **changes: Any
    ) -> asyncio.subprocess.Process:
        """`inside`: the words of a command that runs another one, in front of it."""
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        settings = settings_file(self._exchange, folder, **{**self._changes, **changes})
        with (folder / f"{len(self._running)}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(*inside, sys.executable, "-m", "perpline", "run", *options, "--config", str(settings)),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=log,
                env=CLEAN,
            )
        self._running.append(process)
        return process

    async def stop(self) -> list[int | None]:
        for process in self._running:
            if process.returncode is None:
                process.terminate()
        return [await process.wait() for process in self._running]


@asynccontextmanager
async def a_fleet(exchange: SimulatedExchange, folder: Path, **changes: Any) -> AsyncIterator[Fleet]:
    fleet = Fleet(exchange, folder, **changes)
    try:
        yield fleet
    finally:
        for process in fleet._running:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def before_long(condition: Callable[[], object], within_s: float, what: str) -> None:
    """As `eventually`, for what is dear to ask: a connection to a database of its own each time."""
    try:
        async with asyncio.timeout(within_s):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.3)
    except TimeoutError:
        raise AssertionError(f"did not come true within {within_s:g} s: {what}") from None
