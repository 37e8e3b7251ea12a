"""A worker's life: started by recovery, every long-lived task in one TaskGroup, ended by a drain."""

import asyncio
import gc
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog

from perpline.bootstrap import (
    Parts,
    load_other_series,
    load_windows,
    make_poller,
    measure_offset,
    mend_rows,
    note_lost_between,
    recover_spools,
)
from perpline.collector.recorder import FrameWriter
from perpline.collector.rest_feed import RestFeed
from perpline.common.clock import Clock
from perpline.common.errors import Malformed, Refused, Unavailable
from perpline.common.telemetry import LogRing
from perpline.domain.candle import MINUTE_MS, last_boundary
from perpline.endpoint import Endpoint
from perpline.events import worker_feed
from perpline.exchange.binance.rest import BinanceRest
from perpline.leadership import Leadership
from perpline.metrics import metrics
from perpline.nightly import HourlyOutcomes, NightlyArchive, NightlyParity
from perpline.room import Room
from perpline.signals.journal import SPOOLED as SPOOLED_DECISIONS
from perpline.status import Heard, parts_status, symbols_status, trouble
from perpline.universe import Universe
from perpline.websocket.market_streams import MarketStreams

log = structlog.get_logger("perpline.worker")

OFFSET_EVERY_S = 60.0
"""Market seconds, but never more often than once a wall second."""
FINISH_MINUTE_S = 1.0
"""How long a stop waits for closes that are on their way, wall seconds."""
FLUSH_TIMEOUT_S = 15.0
PUBLISH_WITHIN_S = 5.0
"""Of these so long for the last messages, while the bus is away: they are in the outbox, and rows must be written."""
KEEP_ROWS_S = 60.0
"""A standby keeps the rows of the last one to two of these, wall time: a leader writes its own within a quarter."""
MEND_AGAIN_S = 15.0
STORE_AGAIN_S = 5.0
OVERLAP_MS = 10 * MINUTE_MS
"""How far behind its last look a standby reads the other series again: rows are stored some time after theirs."""

Source = tuple[str, Callable[[], Coroutine[Any, Any, None]]]
"""A name, and what runs until it is cancelled and calls handlers with what it hears."""


class Worker:
    """One process's work on one set of parts, whatever feeds them.

    `sources` bring the market, each for as long as it runs; `heard(symbol, kind)` is the wall time at which a kind of
    news (kline_1m, markPrice@1s, bookTicker …) of a symbol last came, and `waiting_for()` names what has not come yet.
    `logs` is what listeners are told of the log.
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
        streams: MarketStreams | None = None,
        rest_feed: RestFeed | None = None,
        recorder: FrameWriter | None = None,
        logs: LogRing | None = None,
    ) -> None:
        settings = parts.settings
        self.parts = parts
        self.sources = sources
        self.streams = streams
        self.rest_feed = rest_feed
        self.recorder = recorder
        self.poller = make_poller(parts, rest.at("polls"))
        parts.on_forget.append(self.poller.forget)
        self.universe = Universe(
            parts,
            rest.at("polls"),
            follow_streams=(lambda symbols: None) if streams is None else streams.follow,
        )
        self.nightly = NightlyParity(settings, parts.clock)
        self.archive = NightlyArchive(settings, parts.clock)
        self.outcomes = HourlyOutcomes(settings, parts.clock)
        self.room = Room(settings, parts.clock, parts.store)
        source = streams or rest_feed
        self.feed = worker_feed(parts, streams, heard, self.state, logs, tuple if source is None else source.silent)
        self.endpoint = Endpoint(
            port=settings.status_port,
            data_dir=settings.data_dir,
            status=self.status,
            trouble=self.trouble,
            metrics=lambda: metrics(self.status()),
            control=self._control,
            standing_by=self._standing_by,
            symbol_status=self.symbol_status,
            tell=self.feed.tell,
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
        self._started_at = self._clock.exchange_now_ms()
        self._stood_by = False

    def _control(self) -> None:
        """Somebody changed a mode or the list of symbols in the tables: look now."""
        self.universe.wake()
        if self.parts.accounts is not None:
            self.parts.accounts.wake()

    def _standing_by(self) -> str:
        """For whom; empty where this process leads."""
        leadership = self.parts.leadership
        return "" if leadership is None or leadership.holds else str(leadership.status()["leader"]) or "nobody yet"

    def status(self) -> dict[str, Any]:
        return {**self.state(), "symbols": symbols_status(self.parts, self._heard, self.parts.symbols)}

    def symbol_status(self, symbol: str) -> dict[str, Any]:
        """Of `status` what is about one symbol; none where it is not followed."""
        followed = [symbol] if symbol in self.parts.symbols else []
        return {"symbols": symbols_status(self.parts, self._heard, followed)}

    def trouble(self) -> list[str]:
        """What is wrong, in words; empty where nothing is."""
        return trouble(self.parts, self.streams or self.rest_feed, self.ready_at is not None) + self.room.trouble()

    def state(self) -> dict[str, Any]:
        """The status without the symbols."""
        parts = self.parts
        return {
            "ready": self.ready_at is not None,
            "ready_at": self.ready_at,
            "ready_after_s": self.ready_after_s,
            "started_at": self._started_at,
            "trouble": self.trouble(),
            **parts_status(parts, self.streams, self.rest_feed, self.poller, self._rest.weight),
            "parity": self.nightly.last,
            "universe": self.universe.status(),
            "room": self.room.facts,
            "archive": self.archive.last,
            "outcomes": self.outcomes.last,
            "role": parts.settings.role,
            "sender": None if parts.sender is None else parts.sender.status(),
        }

    async def run(self, stop: asyncio.Event) -> dict[str, Any]:
        parts, leadership = self.parts, self.parts.leadership
        keeping: asyncio.Task[None] | None = None
        try:
            await self.endpoint.open()
            log.info("worker_started", symbols=len(parts.symbols), port=self.endpoint.port, action="start")
            if parts.sender is not None:
                await parts.sender.check()  # before anything is written, the lease too
            if leadership is not None and not await leadership.attempt():
                parts.engine.stand_by()
            keeping = asyncio.create_task(self._keep_lease(), name="lease")
            await recover_spools(parts)
            await parts.engine.recover(parts.symbols, parts.since, await self._begun())
            if parts.sender is not None:
                await parts.sender.say()  # of two that began at once one is refused here
            await load_windows(parts)
            # A full collection that walks all the code and windows takes 0.2 s, and would fall into some early close.
            gc.collect()
            gc.freeze()
            loader, accounts = parts.loader, parts.accounts
            async with asyncio.TaskGroup() as group:
                feeding = [group.create_task(source(), name=name) for name, source in self.sources]
                feeding.append(group.create_task(self.universe.run(), name="symbols"))
                working = [
                    group.create_task(parts.closed.run(), name="closed candles"),
                    group.create_task(parts.engine.run(), name="engine"),
                    *([group.create_task(loader.run(parts.engine.deploy), name="models")] if loader else []),
                    *([group.create_task(accounts.run(), name="accounts")] if accounts else []),
                    group.create_task(parts.publisher.run(), name="publisher"),
                    *([group.create_task(parts.sender.run(), name="features")] if parts.sender else []),
                    *([group.create_task(parts.journal.run(), name="journal")] if parts.journal else []),
                    group.create_task(_ends_with(keeping), name="lease"),
                    group.create_task(self._lead_or_stand_by(), name="leadership"),
                    group.create_task(self._every_second(), name="every second"),
                    group.create_task(self._keep_offset(), name="clock offset"),
                    group.create_task(self.room.run(), name="room"),
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
                if keeping is not None:
                    keeping.cancel()
                await self.endpoint.close()
                log.info("worker_stopped", action="stop")
        return self.status()  # after the flush: the last word is about what was written

    async def _begun(self) -> dict[str, int]:
        """Since when, exchange ms, symbols have been followed whose minutes are this slot's to decide.

        Where nobody led before us the slot is new, whoever may have followed them for another one.
        """
        begun, leadership = await self.universe.begin(), self.parts.leadership
        is_new = leadership is not None and leadership.holds and leadership.fence().fencing == 1
        return {} if is_new or self.parts.sender is not None else begun

    async def _finish_minute(self) -> None:
        """Let the closes of the minute that just ended arrive and be decided, if it takes no longer than a moment."""
        until = self._clock.wall_s() + FINISH_MINUTE_S
        while self.ready_at is not None and self.parts.engine.undecided and self._clock.wall_s() < until:
            await self._clock.sleep_wall(0.01)

    async def _flush(self) -> None:
        """Write everything and give the lease back; who stands by has nothing to write.

        What only the database lacks stays in the spool for the next start. Raises Unavailable where all of it cannot be
        written in time, so that nobody thinks it was.
        """
        parts, leadership = self.parts, self.parts.leadership
        decided = False
        if self.recorder is not None:
            self.recorder.close()
        if leadership is not None and not leadership.holds:
            return
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await parts.engine.drain()
                parts.flush_minutes()  # now: what was decided has ended its minute of the book itself
                await parts.engine.score_aside()
                if parts.accounts is not None:
                    await parts.accounts.drain()
                decided = True
                if parts.journal is not None:
                    await parts.journal.store_kept()
                await self._publish_last()
                await parts.buffer.flush()
                await parts.ledger.flush()
                if leadership is not None:
                    await leadership.drop()
        except (TimeoutError, Unavailable) as error:
            reason = str(error) or "the database did not take it in time"
            if decided and await parts.buffer.keep() and await parts.ledger.keep():
                log.warning("stopped_with_a_spool", reason=reason, action="stop")
                return
            waiting = {table: facts.waiting for table, facts in parts.buffer.statistics().items() if facts.waiting}
            log.error("not_everything_written", reason=reason, waiting=waiting, action="stop")
            raise Unavailable(f"stopped before everything was written: {reason}") from error

    async def _publish_last(self) -> None:
        try:
            async with asyncio.timeout(PUBLISH_WITHIN_S):
                await self.parts.publisher.flush()
        except (TimeoutError, Unavailable) as error:
            log.warning("messages_stay_in_outbox", reason=str(error) or "the bus did not answer in time", action="stop")

    # ---- leading, and standing by

    async def _keep_lease(self) -> None:
        if self.parts.leadership is not None:
            await self.parts.leadership.run()
        else:
            await asyncio.Event().wait()

    async def _lead_or_stand_by(self) -> None:
        """In turns, for ever: what only the leader does, and what keeps a standby ready to do it."""
        parts, leadership = self.parts, self.parts.leadership
        leads = leadership is None or (leadership.holds and parts.engine.decides)  # else it came during the start
        while True:
            if leads:
                await self._lead()
            assert leadership is not None
            leads = await self._stand_by(leadership)

    async def _lead(self) -> None:
        """Write and poll until the lease is lost."""
        parts = self.parts
        async with asyncio.TaskGroup() as group:
            leading = [
                group.create_task(parts.buffer.run(), name="buffer"),
                group.create_task(parts.ledger.run(), name="ledger"),
                group.create_task(self.poller.run(), name="polls"),
                *(
                    (
                        group.create_task(self.nightly.run(), name="nightly parity"),
                        group.create_task(self.archive.run(), name="nightly archive"),
                        group.create_task(self.outcomes.run(), name="hourly outcomes"),
                    )
                    if parts.settings.shard_numbers[0] == 1  # of several collectors one
                    else ()
                ),
            ]
            if parts.leadership is not None:
                if self._stood_by or parts.leadership.predecessor:
                    leading.append(group.create_task(self._mend(), name="mend rows"))
                await parts.leadership.until_lost()
                for task in leading:
                    task.cancel()

    async def _stand_by(self, leadership: Leadership) -> bool:
        """Wait for the lease and keep what we would have to go on with; whether we lead now."""
        parts, look = self.parts, max(MINUTE_MS / 1000 / self._clock.speed, 5.0)
        self._stood_by = True
        parts.engine.stand_by()
        parts.buffer.turn_over(begin=True)
        held = asyncio.create_task(leadership.until_held(), name="standing by")
        storing = asyncio.create_task(self._store_spooled_rows(), name="rows of the spool")
        since, turned_s, looked_s = self._clock.exchange_now_ms(), self._clock.wall_s(), self._clock.wall_s()
        try:
            while not held.done():
                await asyncio.wait((held,), timeout=1.0)
                if storing.done():
                    storing.result()  # nothing is expected to be raised
                if not leadership.holds:
                    parts.ledger.forget()
                if self._clock.wall_s() - turned_s >= KEEP_ROWS_S:
                    parts.buffer.turn_over()
                    turned_s = self._clock.wall_s()
                if held.done() or self._clock.wall_s() - looked_s >= look:
                    looked_s = self._clock.wall_s()
                    since = await self._load_other_series(since)
        finally:
            held.cancel()
            storing.cancel()
            await asyncio.wait((storing,))  # what it was writing goes on from the spool
        return await self._take_over(leadership)

    async def _store_spooled_rows(self) -> None:
        """What the database did not take while we led: whoever writes a row, it is the same row."""
        parts = self.parts
        while parts.spool is not None and (left := {*parts.spool.kinds} - {SPOOLED_DECISIONS}):
            try:
                rows, notes = await parts.buffer.replay(parts.spool), await parts.ledger.replay(parts.spool)
                log.warning("spool_replayed", decisions=0, rows=rows, gaps=notes, action="lead")
                return
            except Unavailable as error:
                log.info("spool_waits", kinds=sorted(left), reason=str(error), action="lead")
                await self._clock.sleep_wall(STORE_AGAIN_S)

    async def _take_over(self, leadership: Leadership) -> bool:
        while leadership.holds:
            try:
                await self.parts.engine.take_over()
            except Unavailable as error:
                log.error("not_taken_over", reason=str(error), action="lead")
                await self._clock.sleep_wall(0.2)
                continue
            self.parts.publisher.wake()
            return True
        return False

    async def _load_other_series(self, since: int) -> int:
        """Other series of the features come by the leader's polls, through the tables. Returns where to go on from."""
        now = self._clock.exchange_now_ms()
        try:
            await load_other_series(self.parts, self.parts.symbols, since - OVERLAP_MS)
        except Unavailable as error:
            log.info("series_not_read", reason=str(error), action="lead")
            return since
        return now

    async def _mend(self) -> None:
        """Rows that the leader before us may not have written: those that we kept, and candles from the exchange. What
        is lost becomes gaps, which nobody has noted: who stands by notes nothing."""
        parts, clock = self.parts, self._clock
        now = clock.exchange_now_ms()
        # A hole ends where our rows begin: those of our start, or the oldest ones that were kept while standing by.
        since = max(self._started_at, now - round(3 * KEEP_ROWS_S * 1000 * clock.speed))
        until = max(last_boundary(self._started_at), last_boundary(now) - MINUTE_MS)  # our last row may be on its way
        while True:
            try:
                await parts.buffer.flush()
                await parts.closed.healed()  # else candles that are being fetched for the windows would be missing
                await parts.buffer.flush()
                if self._stood_by:
                    await note_lost_between(parts, last_boundary(since), until)
                await mend_rows(parts, since)
                return
            except (Unavailable, Refused, Malformed) as error:
                log.warning("rows_not_mended", reason=str(error), action="lead")
                await self._clock.sleep_wall(MEND_AGAIN_S)

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


async def _ends_with(task: asyncio.Task[None]) -> None:
    """A bug in what another task does is this one's too."""
    await asyncio.shield(task)
