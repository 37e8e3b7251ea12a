"""The process that holds only the model: it decides what collectors send, together with others of its group."""

import asyncio
import gc
import os
import random
import secrets
import socket
from collections.abc import Callable
from typing import Any

import structlog

from perpline import __version__
from perpline.bootstrap import make_clock, make_data_dir, open_bus, open_store
from perpline.bus.feature_stream import FeatureStream, ShardCard
from perpline.common.clock import Clock
from perpline.common.config import Settings
from perpline.common.errors import NeedsPerson, Unavailable
from perpline.common.telemetry import LogRing
from perpline.endpoint import Endpoint
from perpline.events import EventFeed
from perpline.features import kernel
from perpline.features.received import ReceivedFeatures
from perpline.inference.registry import ModelLoader
from perpline.leadership import Leadership, new_owner
from perpline.metrics import metrics
from perpline.signals.engine import Market, SignalEngine
from perpline.signals.group import GroupMember, check_cards, lookback_held
from perpline.signals.publisher import Publisher
from perpline.storage.store import Store
from perpline.trading.mode import InForce, Mode, mode_rows

log = structlog.get_logger("perpline.inference")

LOOK_EVERY_S = 0.05
MODES_EVERY_S = 5.0
ALARM_EVERY_S = 60.0
STOP_TIMEOUT_S = 15.0


async def run_inference(
    settings: Settings,
    stop: asyncio.Event,
    rng: random.Random,
    on_ready: Callable[[dict[str, Any]], None],
    logs: LogRing | None = None,
) -> dict[str, Any]:
    """Run until `stop` is set; returns the worker's last status.

    Raises NeedsPerson for what only a person can mend, Unavailable where database or Redis do not answer at the start.
    """
    make_data_dir(settings)
    redis_url = settings.redis_url.get_secret_value()
    clock = await make_clock(settings)
    store = open_store(settings.database_url.get_secret_value())
    bus = open_bus(redis_url)
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    stream = FeatureStream(redis_url, settings.slot, group=settings.group, consumer=name, width=kernel.WIDTH)
    try:
        await store.open()
        await bus.open()
        await stream.open()
        if traded := await to_be_traded(store, clock.exchange_now_ms()):
            raise NeedsPerson(f"{traded}: perpline mode off, or run one worker with --role all")
        worker = InferenceWorker(settings, clock, store, stream, rng, on_ready, logs)
        await worker.prepare(Publisher(store, bus, clock, rng, on_published=worker.on_published))
        return await worker.run(stop)
    finally:
        await stream.close()
        await bus.close()
        await store.close()


async def to_be_traded(store: Store, now: int) -> str:
    """What should be traded and is not where inference workers decide, in words; empty where all modes are off.

    Raises Unavailable.
    """
    in_force = InForce(await mode_rows(store))
    for row in (in_force.of_all, *in_force.of_symbols.values()):
        if row.at(now) != Mode.OFF:
            return f"the mode of {row.symbol or 'all symbols'} is {row.mode}, and only a worker with --role all trades"
    return ""


class InferenceWorker:
    """What one such process is made of, and its life."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        store: Store,
        stream: FeatureStream,
        rng: random.Random,
        on_ready: Callable[[dict[str, Any]], None],
        logs: LogRing | None = None,
    ) -> None:
        self.ready_at: int | None = None
        self._settings = settings
        self._clock = clock
        self._store = store
        self._stream = stream
        self._on_ready = on_ready
        self._received = ReceivedFeatures()
        self._loader = ModelLoader(store, clock, settings.models_dir, settings.slot, book_minutes=settings.book_minutes)
        # Of all members one writes what nobody decided, and tells what is told once.
        self._leadership = Leadership(store, clock, f"missed:{settings.slot}", new_owner())
        self.member = GroupMember(
            stream,
            clock,
            store,
            self._received,
            slot=settings.slot,
            decide_within_s=settings.decide_within_s,
            leads=lambda: self._leadership.leads,
            on_cards=self._take_cards,
        )
        self._publisher: Publisher
        said = {"version": __version__, "speed": clock.speed, "slot": settings.slot}
        feed = EventFeed(clock, hello=lambda: said, state=self.status, logs=logs)  # the market is the collectors'
        self._endpoint = Endpoint(
            port=settings.status_port,
            data_dir=settings.data_dir,
            status=self.status,
            trouble=self.trouble,
            metrics=lambda: metrics(self.status()),
            tell=feed.tell,
        )
        self._started_s = clock.wall_s()
        self._started_at = clock.exchange_now_ms()
        self._to_be_traded = ""

    async def prepare(self, publisher: Publisher) -> None:
        """Load the model and join the group."""
        self._publisher = publisher
        cards = await self._stream.cards()
        check_cards(cards)
        self._hold(cards)
        self.member.engine = SignalEngine(
            clock=self._clock,
            store=self._store,
            features=self._received,
            deployed=await self._loader.at_start(),
            market=Market(self._received.mark, self._received.book, self._received.candle, self.member.instrument),
            slot=self._settings.slot,
            decide_within_s=self._settings.decide_within_s,
            wake_publisher=publisher.wake,
            speaks=lambda: self._leadership.leads,
        )
        await self.member.engine.recover([])
        await self.member.begin()

    def on_published(self, messages: Any, wall_us: int) -> None:
        self.member.engine.on_published(messages)

    async def run(self, stop: asyncio.Event) -> dict[str, Any]:
        engine, member = self.member.engine, self.member
        try:
            await self._endpoint.open()
            log.info("worker_started", role="inference", group=self._settings.group, port=self._endpoint.port)
            gc.collect()
            gc.freeze()
            async with asyncio.TaskGroup() as group:
                working = [
                    group.create_task(member.run(), name="group"),
                    group.create_task(engine.run(), name="engine"),
                    group.create_task(self._loader.run(engine.deploy), name="models"),
                    group.create_task(self._publisher.run(), name="publisher"),
                    group.create_task(self._leadership.run(), name="lease"),
                    group.create_task(self._watch_ready(), name="ready"),
                    group.create_task(self._watch_modes(), name="modes"),
                ]
                await stop.wait()
                log.info("worker_stopping", action="stop")
                try:
                    async with asyncio.timeout(STOP_TIMEOUT_S):
                        await member.finish()
                except TimeoutError:
                    pass  # what is not decided stays undone, and another member gets it
                for task in working:
                    task.cancel()
            await self._flush()
        finally:
            await self._endpoint.close()
            log.info("worker_stopped", action="stop")
        return self.status()

    async def _flush(self) -> None:
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self.member.engine.score_aside()
                await self._publisher.flush()
                await self._leadership.drop()
                await self.member.end()
        except (TimeoutError, Unavailable) as error:
            reason = str(error) or "it took too long"
            log.error("not_everything_written", reason=reason, action="stop")
            raise Unavailable(f"stopped before everything was published: {reason}") from error

    async def _watch_ready(self) -> None:
        while not self.member.is_complete:
            await self._clock.sleep_wall(LOOK_EVERY_S)
        self.ready_at = self._clock.exchange_now_ms()
        self.member.engine.measure_from_now()
        after_s = round(self._clock.wall_s() - self._started_s, 3)
        log.info("worker_ready", after_s=after_s, action="start")
        self._on_ready({"ready_at": self.ready_at, "ready_after_s": after_s, "status_port": self._endpoint.port})

    async def _watch_modes(self) -> None:
        """Tell, each minute, of a mode that was set although nobody trades here."""
        told_s = float("-inf")
        while True:
            await self._clock.sleep_wall(MODES_EVERY_S)
            try:
                self._to_be_traded = await to_be_traded(self._store, self._clock.exchange_now_ms())
            except Unavailable:
                continue  # what is away is told of by those who write
            if self._to_be_traded and self._clock.wall_s() - told_s >= ALARM_EVERY_S:
                told_s = self._clock.wall_s()
                log.error("nobody_trades", reason=self._to_be_traded, action="trading")

    def _take_cards(self, cards: list[ShardCard]) -> None:
        self._hold(cards)

    def _hold(self, cards: list[ShardCard]) -> None:
        """Models that are deployed from now on must be content with what the collectors hold."""
        if cards:
            tables = set.intersection(*(set(card.tables) for card in cards))
            self._loader.holds(lookback_held(cards), all(card.cross_section for card in cards), tables)

    # ---- what it says of itself

    def trouble(self) -> list[str]:
        found = self.member.trouble()
        if error := self._publisher.statistics().last_error:
            found.append(f"messages wait in the outbox: {error}")
        if self._to_be_traded:
            found.append(self._to_be_traded)
        return found

    def status(self) -> dict[str, Any]:
        engine = self.member.engine
        outbox = self._publisher.statistics()
        return {
            "role": "inference",
            "version": __version__,
            "ready": self.ready_at is not None,
            "ready_at": self.ready_at,
            "started_at": self._started_at,
            "trouble": self.trouble(),
            "slot": self._settings.slot,
            "model": None if engine.model is None else engine.model.model_id,
            "models": {**engine.models_status(), "refused": self._loader.refused},
            "now": self._clock.exchange_now_ms(),
            "speed": self._clock.speed,
            "clock_offset_ms": self._clock.offset_ms,
            "decisions": {
                "by_status": {str(status): count for status, count in engine.by_status.items()},
                "batches": engine.batches,
                "close_to_signal_ms": engine.close_to_signal_ms.summary(),
                "market_close_to_signal_ms": engine.market_close_to_signal_ms.summary(),
                "last_close_to_signal_ms": engine.close_to_signal_ms.last,
                "stages_ms": engine.stages_status(),
            },
            "group": self.member.status(),
            "lease": self._leadership.status(),
            "outbox": {name: getattr(outbox, name) for name in outbox.__struct_fields__},
        }
