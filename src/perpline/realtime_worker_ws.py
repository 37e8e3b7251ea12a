"""The worker fed by WebSocket: every long-lived task in one TaskGroup, started by recovery, ended by a drain."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import structlog

from perpline.bootstrap import (
    Parts,
    choose_instruments,
    load_windows,
    make_clock,
    make_connections,
    make_parts,
    make_poller,
    make_rest,
    measure_offset,
    open_bus,
    open_store,
)
from perpline.collector.recorder import FrameWriter
from perpline.common.clock import Clock
from perpline.common.config import Settings
from perpline.common.errors import Unavailable
from perpline.endpoint import Endpoint
from perpline.exchange.binance.rest import BinanceRest
from perpline.status import metrics, parts_status, trouble

log = structlog.get_logger("perpline.worker")

OFFSET_EVERY_S = 60.0
FINISH_MINUTE_S = 1.0
"""How long a stop waits for closes that are on their way, wall seconds."""
FLUSH_TIMEOUT_S = 15.0


async def run_ws(
    settings: Settings, stop: asyncio.Event, rng: random.Random, on_ready: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Run a worker until `stop` is set; returns its last status.

    Raises NeedsPerson for what only a person can mend, Unavailable where the exchange does not answer at the start.
    """
    clock = await make_clock(settings)
    rest = make_rest(settings, clock)
    store = open_store(settings.database_url.get_secret_value())
    bus = open_bus(settings.redis_url.get_secret_value())
    try:
        await measure_offset(clock, rest)
        instruments = await choose_instruments(settings, rest)
        await store.open()
        await bus.open()
        parts = make_parts(settings, clock, store, bus, instruments, rest, rng)
        return await Worker(parts, rest, rng, on_ready).run(stop)
    finally:
        await bus.close()
        await store.close()
        await rest.close()


class Worker:
    """One process's work on one set of parts."""

    def __init__(
        self, parts: Parts, rest: BinanceRest, rng: random.Random, on_ready: Callable[[dict[str, Any]], None]
    ) -> None:
        settings = parts.settings
        self.parts = parts
        self.recorder = (
            FrameWriter(
                settings.record,
                parts.clock,
                max_bytes_per_file=settings.record_file_mb << 20,
                max_files=settings.record_files,
            )
            if settings.record is not None
            else None
        )
        self.connections = make_connections(parts, rng, self.recorder)
        self.poller = make_poller(parts, rest)
        self.endpoint = Endpoint(
            port=settings.status_port,
            data_dir=settings.data_dir,
            status=self.status,
            trouble=lambda: trouble(parts, self.connections, self.ready_at is not None),
            metrics=lambda: metrics(self.status()),
        )
        self.ready_at: int | None = None
        """Exchange time when every stream had delivered and the windows were loaded."""
        self.ready_after_s: float | None = None
        self._rest = rest
        self._on_ready = on_ready
        self._clock: Clock = parts.clock
        self._started_s = self._clock.wall_s()

    def status(self) -> dict[str, Any]:
        return {
            "ready": self.ready_at is not None,
            "ready_at": self.ready_at,
            "ready_after_s": self.ready_after_s,
            **parts_status(self.parts, self.connections, self.poller, self._rest.weight),
        }

    async def run(self, stop: asyncio.Event) -> dict[str, Any]:
        parts = self.parts
        try:
            await self.endpoint.open()
            log.info("worker_started", symbols=len(parts.symbols), port=self.endpoint.port, action="start")
            await parts.engine.recover(parts.symbols)
            await load_windows(parts)
            async with asyncio.TaskGroup() as group:
                feeding = [
                    *(group.create_task(connection.run(), name=connection.name) for connection in self.connections),
                    group.create_task(self.poller.run(), name="polls"),
                ]
                working = [
                    group.create_task(parts.closed.run(), name="closed candles"),
                    group.create_task(parts.engine.run(), name="engine"),
                    group.create_task(parts.publisher.run(), name="publisher"),
                    group.create_task(parts.buffer.run(), name="buffer"),
                    group.create_task(parts.ledger.run(), name="ledger"),
                    group.create_task(self._every_second(), name="every second"),
                    group.create_task(self._keep_offset(), name="clock offset"),
                    group.create_task(self._watch_ready(), name="ready"),
                ]
                await stop.wait()
                log.info("worker_stopping", action="stop")
                await self._finish_minute()
                for task in feeding + working:
                    task.cancel()
            return self.status()
        finally:
            try:
                await self._flush()
            finally:
                await self.endpoint.close()
                log.info("worker_stopped", action="stop")

    async def _finish_minute(self) -> None:
        """Let the closes of the minute that just ended arrive and be decided, if it takes no longer than a moment."""
        until = self._clock.wall_s() + FINISH_MINUTE_S
        while self.ready_at is not None and self.parts.engine.undecided and self._clock.wall_s() < until:
            await self._clock.sleep_wall(0.01)

    async def _flush(self) -> None:
        """Write everything. Raises Unavailable where that is not possible in time, so that nobody thinks it was."""
        parts = self.parts
        parts.flush_minutes()
        if self.recorder is not None:
            self.recorder.close()
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await parts.engine.drain()
                await parts.publisher.flush()
                await parts.buffer.flush()
                await parts.ledger.flush()
        except (TimeoutError, Unavailable) as error:
            reason = str(error) or "the database did not take it in time"
            log.error("not_everything_written", reason=reason, waiting=parts.buffer.statistics(), action="stop")
            raise Unavailable(f"stopped before everything was written: {reason}") from error

    async def _every_second(self) -> None:
        while True:
            self.parts.router.sample(self._clock.wall_s())
            await self._clock.sleep_wall(1.0)

    async def _keep_offset(self) -> None:
        while True:
            await self._clock.sleep_wall(OFFSET_EVERY_S)
            await measure_offset(self._clock, self._rest)

    async def _watch_ready(self) -> None:
        await self.parts.closed.healed()
        while any(not connection.live or connection.silent_streams() for connection in self.connections):
            await self._clock.sleep_wall(0.02)
        self.ready_at = self._clock.exchange_now_ms()
        self.ready_after_s = round(self._clock.wall_s() - self._started_s, 3)
        log.info("worker_ready", after_s=self.ready_after_s, action="start")
        self._on_ready(
            {"ready_at": self.ready_at, "ready_after_s": self.ready_after_s, "status_port": self.endpoint.port}
        )
