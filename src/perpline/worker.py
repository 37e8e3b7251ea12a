"""A worker's life: started by recovery, every long-lived task in one TaskGroup, ended by a drain."""

import asyncio
import gc
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog

from perpline.bootstrap import Parts, load_windows, make_poller, measure_offset
from perpline.collector.recorder import FrameWriter
from perpline.common.clock import Clock
from perpline.common.errors import Unavailable
from perpline.endpoint import Endpoint
from perpline.exchange.binance.rest import BinanceRest
from perpline.nightly import NightlyParity
from perpline.status import Heard, metrics, parts_status, trouble
from perpline.websocket.connection import Connection

log = structlog.get_logger("perpline.worker")

OFFSET_EVERY_S = 60.0
"""Market seconds, but never more often than once a wall second."""
FINISH_MINUTE_S = 1.0
"""How long a stop waits for closes that are on their way, wall seconds."""
FLUSH_TIMEOUT_S = 15.0

Source = tuple[str, Callable[[], Coroutine[Any, Any, None]]]
"""A name, and what runs until it is cancelled and calls handlers with what it hears."""


class Worker:
    """One process's work on one set of parts, whatever feeds them.

    `sources` bring the market, each for as long as it runs; `heard(symbol, kind)` is the wall time at which a kind of
    news (kline_1m, markPrice@1s, bookTicker …) of a symbol last came, and `waiting_for()` names what has not come yet.
    """

    def __init__(
        self,
        parts: Parts,
        rest: BinanceRest,
        sources: Sequence[Source],
        *,
        heard: Heard,
        waiting_for: Callable[[], Sequence[str]],
        on_ready: Callable[[dict[str, Any]], None],
        connections: Sequence[Connection] = (),
        recorder: FrameWriter | None = None,
    ) -> None:
        settings = parts.settings
        self.parts = parts
        self.sources = sources
        self.connections = connections
        self.recorder = recorder
        self.poller = make_poller(parts, rest.at("polls"))
        self.nightly = NightlyParity(settings, parts.clock)
        self.endpoint = Endpoint(
            port=settings.status_port,
            data_dir=settings.data_dir,
            status=self.status,
            trouble=lambda: trouble(parts, connections, self.ready_at is not None),
            metrics=lambda: metrics(self.status()),
            control=self._control,
        )
        self.ready_at: int | None = None
        """Exchange time when everything had been heard once and the windows were loaded."""
        self.ready_after_s: float | None = None
        self._rest = rest
        self._heard = heard
        self._waiting_for = waiting_for
        self._on_ready = on_ready
        self._clock: Clock = parts.clock
        self._started_s = self._clock.wall_s()

    def _control(self) -> None:
        """Somebody changed a mode in the tables: look now."""
        if self.parts.accounts is not None:
            self.parts.accounts.wake()

    def status(self) -> dict[str, Any]:
        return {
            "ready": self.ready_at is not None,
            "ready_at": self.ready_at,
            "ready_after_s": self.ready_after_s,
            **parts_status(self.parts, self.connections, self._heard, self.poller, self._rest.weight),
            "parity": self.nightly.last,
        }

    async def run(self, stop: asyncio.Event) -> dict[str, Any]:
        parts = self.parts
        try:
            await self.endpoint.open()
            log.info("worker_started", symbols=len(parts.symbols), port=self.endpoint.port, action="start")
            await parts.engine.recover(parts.symbols)
            await load_windows(parts)
            # A full collection that walks all the code and windows takes 0.2 s, and would fall into some early close.
            gc.collect()
            gc.freeze()
            loader, accounts = parts.loader, parts.accounts
            async with asyncio.TaskGroup() as group:
                feeding = [
                    *(group.create_task(source(), name=name) for name, source in self.sources),
                    group.create_task(self.poller.run(), name="polls"),
                ]
                working = [
                    group.create_task(parts.closed.run(), name="closed candles"),
                    group.create_task(parts.engine.run(), name="engine"),
                    *([group.create_task(loader.run(parts.engine.deploy), name="models")] if loader else []),
                    *([group.create_task(accounts.run(), name="accounts")] if accounts else []),
                    group.create_task(parts.publisher.run(), name="publisher"),
                    group.create_task(parts.buffer.run(), name="buffer"),
                    group.create_task(parts.ledger.run(), name="ledger"),
                    group.create_task(self._every_second(), name="every second"),
                    group.create_task(self._keep_offset(), name="clock offset"),
                    group.create_task(self.nightly.run(), name="nightly parity"),
                    group.create_task(self._watch_ready(), name="ready"),
                ]
                await stop.wait()
                log.info("worker_stopping", action="stop")
                await self._finish_minute()
                for task in feeding + working:
                    task.cancel()
        finally:
            try:
                await self._flush()
            finally:
                await self.endpoint.close()
                log.info("worker_stopped", action="stop")
        return self.status()  # after the flush: the last word is about what was written

    async def _finish_minute(self) -> None:
        """Let the closes of the minute that just ended arrive and be decided, if it takes no longer than a moment."""
        until = self._clock.wall_s() + FINISH_MINUTE_S
        while self.ready_at is not None and self.parts.engine.undecided and self._clock.wall_s() < until:
            await self._clock.sleep_wall(0.01)

    async def _flush(self) -> None:
        """Write everything. Raises Unavailable where that is not possible in time, so that nobody thinks it was."""
        parts = self.parts
        if self.recorder is not None:
            self.recorder.close()
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await parts.engine.drain()
                parts.flush_minutes()  # now: what was decided has ended its minute of the book itself
                await parts.engine.score_aside()
                if parts.accounts is not None:
                    await parts.accounts.drain()
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
            await self._clock.sleep_wall(max(1.0, OFFSET_EVERY_S / self._clock.speed))
            await measure_offset(self._clock, self._rest)

    async def _watch_ready(self) -> None:
        await self.parts.closed.healed()
        while self._waiting_for():
            await self._clock.sleep_wall(0.02)
        # What lives now lives on: a full collection that walks it would fall into some close (82 ms were measured).
        gc.collect()
        gc.freeze()
        self.ready_at = self._clock.exchange_now_ms()
        self.parts.engine.measure_from_now()
        self.ready_after_s = round(self._clock.wall_s() - self._started_s, 3)
        log.info("worker_ready", after_s=self.ready_after_s, action="start")
        self._on_ready(
            {"ready_at": self.ready_at, "ready_after_s": self.ready_after_s, "status_port": self.endpoint.port}
        )
