"""Rows on their way into the store: gathered without waiting, written in batches."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import msgspec
import structlog
from msgspec import Struct

from perpline.collector.spool import Spool
from perpline.common.clock import Clock
from perpline.common.errors import Unavailable
from perpline.storage.store import TABLES, Row

log = structlog.get_logger("perpline.buffer")

HOLD_S = 1.0
"""Wall seconds for which rows that are due wait for decisions, at most."""
PATIENCE_S = 2.0
"""Wall seconds that the store may take for a batch before the rows that wait are kept on disk."""

_encode = msgspec.msgpack.Encoder().encode
_rows = msgspec.msgpack.Decoder(list[tuple[Any, ...]])


class BufferStatistics(Struct, frozen=True, kw_only=True):
    """What has become of a table's rows."""

    waiting: int
    """In memory; those in the spool are counted there, by batches."""
    written: int
    """Accepted by the store, repeats among them."""
    dropped: int
    last_write_ms: int | None
    """Market time of the last batch that was written."""


class Buffer:
    """Batches rows for the tables of `TABLES` and writes a batch when it is large or old enough.

    `batch_size` wakes `run` at once; ages are looked at every `check_every_s`. Age is wall time, for it is about what a
    crash would lose, and a crash knows no accelerated market. Rows of a table are written in the order they came.

    While the store is away, and where it takes more than `PATIENCE_S` for a batch, the rows go to the `spool`, and all
    that come after them too, at every look; the store is tried again at every look, and when it takes rows it first
    gets, in order, what is in the spool. So memory holds what came since the last look, and a death loses no more.
    Without a spool, and where that takes nothing, the rows stay in memory. A table holds `max_rows` there; beyond that
    its oldest `batch_size` rows are dropped, counted and handed to `on_dropped(table, rows)`, as are those that a full
    spool drops. Candles among them can be fetched again, so the caller notes a gap. All other series are lost where the
    exchange does not keep them, and newer rows are worth more than older ones.

    `run` begins no table while `is_deciding` says that decisions are on their way out, for up to `HOLD_S`: they would
    share processor and database, and rows have time (without this, decisions of 600 symbols took twice as long).
    """

    def __init__(
        self,
        add_rows: Callable[[str, Sequence[Row]], Awaitable[int]],
        clock: Clock,
        *,
        batch_size: int = 1000,
        max_age_s: float = 10.0,
        check_every_s: float = 5.0,
        max_rows: int = 100_000,
        on_dropped: Callable[[str, list[Row]], None] = lambda table, rows: None,
        is_deciding: Callable[[], bool] = lambda: False,
        spool: Spool | None = None,
    ) -> None:
        if not 0 < batch_size <= max_rows:
            raise ValueError(f"a batch of {batch_size} does not fit into a buffer of {max_rows} rows")
        self.last_error = ""
        """What the store said the last time it could not write; empty since it could."""
        self._add_rows = add_rows
        self._clock = clock
        self._batch_size = batch_size
        self._max_age_s = max_age_s
        self._check_every_s = check_every_s
        self._max_rows = max_rows
        self._on_dropped = on_dropped
        self._is_deciding = is_deciding
        self._spool = spool
        self._tables = {name: _Waiting() for name in TABLES}
        self._away = False
        self._spool_failed = False
        self._full = asyncio.Event()
        self._flushing = asyncio.Lock()

    def add(self, table: str, row: Row) -> None:
        """Take a row; returns at once. Raises KeyError for a table that takes no batches."""
        waiting = self._tables[table]
        if not waiting.rows:
            waiting.since_s = self._clock.wall_s()
        waiting.rows.append(row)
        held = len(waiting.rows)
        if held == self._batch_size:
            self._full.set()
        if held + len(waiting.in_flight) > self._max_rows:
            self._drop_oldest(table, waiting)

    async def run(self) -> None:
        """Write what is due, until cancelled. What waits then still waits: call `flush`.

        A row that the store refuses for good is a bug, and its ValueError ends this.
        """
        while True:
            await self._until_a_look_is_due()
            try:
                await self._replay()
                due = [name for name, waiting in self._tables.items() if self._is_due(waiting)]
                hold_until_s = self._clock.wall_s() + HOLD_S
                for name in due:
                    await self._until_decided(hold_until_s)
                    await self._flush([name])
            except Unavailable as error:
                self._note_away(str(error))
                await self.keep()
                continue
            if self._away:
                log.warning("rows_are_written_again", action="flush")
            self._away = False

    async def flush(self) -> None:
        """Write everything that waits, the spool's rows first.

        Raises Unavailable as soon as the store does; what was not written is kept.
        """
        while True:
            await self._replay()
            await self._flush(self._tables)
            if not any(self._has_spooled(name) for name in self._tables):
                return

    async def replay(self, spool: Spool) -> int:
        """Write the rows that an earlier process left in this spool; how many. Raises Unavailable."""
        replayed = 0
        for table in [kind for kind in spool.kinds if kind in self._tables]:
            while batch := await spool.oldest(table):
                rows = _rows.decode(batch[0])
                try:
                    await self._add_rows(table, rows)
                except ValueError as error:
                    self._refused(table, rows, error)
                else:
                    self._tables[table].written += len(rows)
                    replayed += len(rows)
                await spool.remove(table, 1)
        return replayed

    async def keep(self) -> bool:
        """Put everything that waits into the spool; whether nothing waits in memory any more."""
        if self._spool is None:
            return not any(waiting.rows or waiting.in_flight for waiting in self._tables.values())
        for name, waiting in self._tables.items():
            while waiting.rows:
                rows = [waiting.rows.popleft() for _ in range(min(self._batch_size, len(waiting.rows)))]
                if not await self._spooled(name, waiting, rows):
                    return False
        return True

    def turn_over(self, *, begin: bool = False) -> None:
        """While another process writes, and `run` does not: forget the rows that were here at the last call already.

        `begin`: forget none yet. Called every minute it keeps the last one to two minutes for the case that this
        process has to write them after all.
        """
        if begin:
            # What this process could not write is no trouble any more: it does not write, and the other one does.
            self.last_error, self._away = "", False
        for waiting in self._tables.values():
            for _ in range(0 if begin else min(waiting.old, len(waiting.rows))):
                waiting.rows.popleft()
            waiting.old = len(waiting.rows)

    def dropped_from_spool(self, table: str, payloads: Sequence[bytes]) -> None:
        """The spool was full and has dropped these batches of rows."""
        for payload in payloads:
            rows = _rows.decode(payload)
            self._tables[table].dropped += len(rows)
            self._on_dropped(table, rows)

    def statistics(self) -> dict[str, BufferStatistics]:
        """By table."""
        return {
            name: BufferStatistics(
                waiting=len(waiting.rows) + len(waiting.in_flight),
                written=waiting.written,
                dropped=waiting.dropped,
                last_write_ms=waiting.last_write_ms,
            )
            for name, waiting in self._tables.items()
        }

    async def _until_decided(self, until_s: float) -> None:
        while self._is_deciding() and self._clock.wall_s() < until_s:
            await self._clock.sleep_wall(0.01)

    async def _until_a_look_is_due(self) -> None:
        if self._away:  # then size does not bring it forward, or we would try without pause
            await self._clock.sleep_wall(self._check_every_s)
            self._full.clear()
            return
        look = asyncio.ensure_future(self._clock.sleep_wall(self._check_every_s))
        full = asyncio.ensure_future(self._full.wait())
        try:
            await asyncio.wait((look, full), return_when=asyncio.FIRST_COMPLETED)
        finally:
            look.cancel()
            full.cancel()
        self._full.clear()

    def _is_due(self, waiting: "_Waiting") -> bool:
        if len(waiting.rows) >= self._batch_size:
            return True
        return bool(waiting.rows) and self._clock.wall_s() - waiting.since_s >= self._max_age_s

    async def _flush(self, tables: Iterable[str]) -> None:
        async with self._flushing:
            for name in tables:
                waiting = self._tables[name]
                while waiting.rows and not self._has_spooled(name):  # those come first
                    await self._write_batch(name, waiting)

    async def _write_batch(self, table: str, waiting: "_Waiting") -> None:
        waiting.in_flight = [waiting.rows.popleft() for _ in range(min(self._batch_size, len(waiting.rows)))]
        count = len(waiting.in_flight)
        try:
            await self._written(table, waiting.in_flight)
        except BaseException as error:
            # Cancelled counts too: written or not, writing them again is harmless.
            waiting.rows.extendleft(reversed(waiting.in_flight))
            if isinstance(error, Unavailable):
                self.last_error = str(error)
            raise
        else:
            waiting.written += count
            waiting.since_s = self._clock.wall_s()
            waiting.last_write_ms = self._clock.now_ms()
            self.last_error = ""
        finally:
            waiting.in_flight = []

    async def _written(self, table: str, rows: list[Row]) -> None:
        """The store has these rows. If it takes long, what waits meanwhile goes to the spool, these rows included, for
        nobody knows how it will end; written twice is harmless."""
        if self._spool is None:
            await self._add_rows(table, rows)
            return
        writing = asyncio.ensure_future(self._add_rows(table, rows))
        patience = asyncio.ensure_future(self._clock.sleep_wall(PATIENCE_S))
        try:
            await asyncio.wait((writing, patience), return_when=asyncio.FIRST_COMPLETED)
            while not writing.done():
                self._note_away(f"the database has not taken a batch of rows within {PATIENCE_S:g} s")
                waiting = self._tables[table]
                if waiting.in_flight and await self._spooled(table, waiting, list(waiting.in_flight), back=False):
                    waiting.in_flight = []
                await self.keep()
                patience = asyncio.ensure_future(self._clock.sleep_wall(self._check_every_s))
                await asyncio.wait((writing, patience), return_when=asyncio.FIRST_COMPLETED)
        finally:
            patience.cancel()
            if not writing.done():
                writing.cancel()
                await asyncio.wait([writing])
        await writing

    async def _replay(self) -> None:
        """Write what is in the spool, oldest first, and spool what comes meanwhile. Raises Unavailable."""
        if self._spool is None or not any(kind in self._tables for kind in self._spool.kinds):
            return
        async with self._flushing:
            for table in [kind for kind in self._spool.kinds if kind in self._tables]:
                waiting = self._tables[table]
                while batch := await self._spool.oldest(table):
                    rows = _rows.decode(batch[0])
                    await self._until_decided(self._clock.wall_s() + HOLD_S)
                    try:
                        await self._written(table, rows)
                    except Unavailable as error:
                        self.last_error = str(error)
                        raise
                    except ValueError as error:
                        self._refused(table, rows, error)
                    else:
                        waiting.written += len(rows)
                        waiting.last_write_ms = self._clock.now_ms()
                        self.last_error = ""
                    await self._spool.remove(table, 1)
                    if any(len(each.rows) >= self._batch_size for each in self._tables.values()):
                        await self.keep()

    async def _spooled(self, table: str, waiting: "_Waiting", rows: list[Row], *, back: bool = True) -> bool:
        """Whether the spool has taken these rows; if not they wait on, in their place."""
        assert self._spool is not None
        kept = False
        try:
            await self._spool.append(table, _encode(rows))
            kept = True
        except Unavailable as error:
            if not self._spool_failed:
                log.error("rows_not_spooled", reason=str(error), action="flush")
            self._spool_failed = True
        finally:
            if not kept and back:
                waiting.rows.extendleft(reversed(rows))
        if kept:
            self._spool_failed = False
        return kept

    def _has_spooled(self, table: str) -> bool:
        return self._spool is not None and self._spool.count(table) > 0

    def _refused(self, table: str, rows: list[Row], error: ValueError) -> None:
        """These rows were spooled and can never be stored: a bug, or rows of another version of the tables. Unlike a
        fresh row they must not end the process, for the next one would find them again."""
        log.error("spooled_rows_refused", table=table, rows=len(rows), reason=str(error), action="flush")
        self._tables[table].dropped += len(rows)
        self._on_dropped(table, rows)

    def _note_away(self, reason: str) -> None:
        self.last_error = reason
        if not self._away:
            log.error("rows_wait", reason=reason, action="flush")
        self._away = True

    def _drop_oldest(self, table: str, waiting: "_Waiting") -> None:
        dropped = [waiting.rows.popleft() for _ in range(min(self._batch_size, len(waiting.rows)))]
        waiting.dropped += len(dropped)
        self._on_dropped(table, dropped)


class _Waiting:
    """The rows of one table."""

    def __init__(self) -> None:
        self.rows: deque[Row] = deque()
        self.in_flight: list[Row] = []
        """Handed to the store, which has not answered yet. Never dropped: they may be stored already."""
        self.old = 0
        """Rows that were here when `turn_over` was called last."""
        self.since_s = 0.0
        self.written = 0
        self.dropped = 0
        self.last_write_ms: int | None = None
