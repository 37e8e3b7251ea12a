"""Rows on their way into the store: gathered without waiting, written in batches."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

import structlog
from msgspec import Struct

from perpline.common.clock import Clock
from perpline.common.errors import Unavailable
from perpline.storage.store import TABLES, Row

log = structlog.get_logger("perpline.buffer")

HOLD_S = 1.0
"""Wall seconds for which rows that are due wait for decisions, at most."""


class BufferStatistics(Struct, frozen=True, kw_only=True):
    """What has become of a table's rows."""

    waiting: int
    written: int
    """Accepted by the store, repeats among them."""
    dropped: int
    last_write_ms: int | None
    """Market time of the last batch that was written."""


class Buffer:
    """Batches rows for the tables of `TABLES` and writes a batch when it is large or old enough.

    `batch_size` wakes `run` at once; ages are looked at every `check_every_s`. Age is wall time, for it is about what a
    crash would lose, and a crash knows no accelerated market. Rows of a table are written in the order they came.

    While the store is away the rows stay, in order, and are tried again at every look. A table holds `max_rows`;
    beyond that its oldest `batch_size` rows are dropped, counted and handed to `on_dropped(table, rows)`. Candles among
    them can be fetched again, so the caller notes a gap. All other series are lost where the exchange does not keep
    them, and newer rows are worth more than older ones.

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
        self._tables = {name: _Waiting() for name in TABLES}
        self._away = False
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
            due = [name for name, waiting in self._tables.items() if self._is_due(waiting)]
            try:
                hold_until_s = self._clock.wall_s() + HOLD_S
                for name in due:
                    await self._until_decided(hold_until_s)
                    await self._flush([name])
            except Unavailable as error:
                if not self._away:
                    log.error("rows_wait", reason=str(error), action="flush")
                self._away = True
                # The rows are kept. Size does not wake us before the next look, or we would try without pause.
                await self._clock.sleep_wall(self._check_every_s)
                continue
            if self._away:
                log.warning("rows_are_written_again", action="flush")
            self._away = False

    async def flush(self) -> None:
        """Write everything that waits. Raises Unavailable as soon as the store does; what was not written is kept."""
        await self._flush(self._tables)

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
                while waiting.rows:
                    await self._write_batch(name, waiting)

    async def _write_batch(self, table: str, waiting: "_Waiting") -> None:
        waiting.in_flight = [waiting.rows.popleft() for _ in range(min(self._batch_size, len(waiting.rows)))]
        try:
            await self._add_rows(table, waiting.in_flight)
        except BaseException as error:
            # Cancelled counts too: written or not, writing them again is harmless.
            waiting.rows.extendleft(reversed(waiting.in_flight))
            if isinstance(error, Unavailable):
                self.last_error = str(error)
            raise
        else:
            waiting.written += len(waiting.in_flight)
            waiting.since_s = self._clock.wall_s()
            waiting.last_write_ms = self._clock.now_ms()
            self.last_error = ""
        finally:
            waiting.in_flight = []

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
        self.since_s = 0.0
        self.written = 0
        self.dropped = 0
        self.last_write_ms: int | None = None
