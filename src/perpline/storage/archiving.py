"""Old days out of the database: into files, read back and compared, and only then dropped.

May die at any instant. A file has its name only once it is whole on the disk; the rows of a day are dropped only after
each of them was found, value for value, in the files as the disk gives them back. What is there when it begins again is
compared anew: rows that the files lack become one more file, the others are dropped.
"""

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import aclosing
from pathlib import Path

import structlog
from msgspec import Struct, field

from perpline.common.clock import Clock
from perpline.common.errors import NeedsPerson, Unavailable
from perpline.storage.day_files import DayFiles
from perpline.storage.day_tables import DAY_MS, DAY_TABLES, HOUR_MS, DayTable, day_tables, day_text
from perpline.storage.store import Row, Store

log = structlog.get_logger("perpline.storage.archiving")

LEASE = "archive"
LEASE_MS = 60_000
"""Nobody else archives from this database meanwhile; after a death the next one waits so long."""
WAIT_S = 1.0

_ALWAYS = 100_000
_REPAIRED_FOR_DAYS = {
    **dict.fromkeys(("candles_1m", "mark_klines", "index_klines", "premium_klines"), _ALWAYS),
    **dict.fromkeys(("open_interest", "long_short_ratio"), 30),
}
"""For how many days the exchange tells what a series lacks (binance.md): 5-minute values for a month. Minutes of
mark prices and books come by stream only, and nothing brings them back."""


class DayDone(Struct, frozen=True, kw_only=True):
    """What became of one day of one table."""

    table: str
    day: str
    rows: int
    """New rows in files."""
    bytes: int
    files: list[str]
    dropped: bool
    kept: int = 0
    """Rows that came or changed while the day was being dropped, and stayed."""


class ArchiveReport(Struct, kw_only=True):
    """What `Archiver.run` did, or with `dry_run` would do."""

    days: list[DayDone] = field(default_factory=list)
    with_gaps: list[str] = field(default_factory=list)
    """Days of tables left where they are, because holes in them are not repaired yet: "candles_1m 2026-11-20"."""
    before: str = ""
    """Days before this one were looked at."""
    needed_for: str = ""
    """What still needs the days from `before` on, where these would else have been looked at too."""
    drop_before: str = ""
    """Days before this one are dropped; empty: none."""
    stopped: bool = False


class Archiver:
    """Archives the days of one database. `owner` names this process in the lease that keeps others out meanwhile."""

    def __init__(
        self,
        store: Store,
        files: DayFiles,
        clock: Clock,
        owner: str,
        *,
        progress: Callable[[int, int, str], None] = lambda done, of, what: None,
        stopped: Callable[[], bool] = lambda: False,
        lease_ms: int = LEASE_MS,
    ) -> None:
        self._store = store
        self._files = files
        self._clock = clock
        self._owner = owner
        self._progress = progress
        self._stopped = stopped
        self._lease_ms = lease_ms

    async def run(
        self,
        before: int,
        drop_before: int | None,
        *,
        tables: Sequence[str] = DAY_TABLES,
        with_gaps: bool = False,
        dry_run: bool = False,
    ) -> ArchiveReport:
        """Write the days before `before` to files, and drop those before `drop_before` of them (None: none).

        Both are midnights. What is still needed is left alone whatever they say (`needed_from`). Days with unrepaired
        holes wait for their repair, unless `with_gaps`. Raises Unavailable where database or disk do not take it.
        """
        needed, needed_for = await needed_from(self._store, before)
        before = min(before, needed)
        drop_before = None if drop_before is None else min(before, drop_before)
        report = ArchiveReport(
            before=day_text(before),
            drop_before="" if drop_before is None else day_text(drop_before),
            needed_for=needed_for,
        )
        if not dry_run:
            await self._take_lease()
        try:
            gaps = set() if with_gaps else await _days_with_gaps(self._store, self._clock.now_ms())
            work: list[tuple[int, DayTable]] = []
            for name in tables:
                for day in await self._store.old_days(name, before):
                    if (name, day) in gaps:
                        report.with_gaps.append(f"{name} {day_text(day)}")
                    else:
                        work.append((day, day_tables()[name]))
            work.sort(key=lambda one: one[0])
            for done, (day, table) in enumerate(work):
                if self._stopped():
                    report.stopped = True
                    break
                self._progress(done, len(work), f"{table.name} {day_text(day)}")
                drop = drop_before is not None and day < drop_before
                one = await self._would_do(table, day, drop) if dry_run else await self._day(table, day, drop)
                if one.rows or one.dropped or one.kept:
                    report.days.append(one)
            self._progress(len(work), len(work), "")
        finally:
            if not dry_run:
                await self._store.drop_lease(LEASE, self._owner)
        return report

    async def _would_do(self, table: DayTable, day: int, drop: bool) -> DayDone:
        rows = 0 if self._files.parts(table, day) else await self._count(table, day)
        return DayDone(table=table.name, day=day_text(day), rows=rows, bytes=0, files=[], dropped=drop)

    async def _day(self, table: DayTable, day: int, drop: bool) -> DayDone:
        paths = self._files.parts(table, day)
        written = None
        if drop or not paths:
            async with aclosing(self._lacking(table, day, paths)) as lacking:
                if (first := await anext(lacking, None)) is not None:
                    written = await self._files.write(table, day, _with(first, lacking))
            if written is not None:
                paths.append(written.path)
                now = self._clock.now_ms()
                of_file = (written.part, str(written.path.absolute()), socket.gethostname())
                await self._store.note_archived((table.name, day, *of_file, written.rows, written.bytes, now))
        stay = 0
        if drop:
            opened = self._files.opened(table, paths)
            try:
                stay = await self._store.drop_day(table.name, day, self._safe(opened.rows_between))
            finally:
                opened.close()
            if not stay:
                await self._store.note_dropped(table.name, day, self._clock.now_ms())
        return DayDone(
            table=table.name,
            day=day_text(day),
            rows=written.rows if written else 0,
            bytes=written.bytes if written else 0,
            files=[str(path) for path in paths],
            dropped=drop and not stay,
            kept=stay,
        )

    async def _lacking(self, table: DayTable, day: int, paths: Sequence[Path]) -> AsyncGenerator[list[Row], None]:
        """The rows of a day that these files do not hold, an hour at a time."""
        opened = self._files.opened(table, paths)
        try:
            for start in range(day, day + DAY_MS, HOUR_MS):
                await self._take_lease()
                rows = await self._store.rows_between(table.name, start, start + HOUR_MS)
                if rows and paths:
                    there = await asyncio.to_thread(opened.rows_between, start, start + HOUR_MS)
                    rows = [row for row in rows if row not in there]
                if rows:
                    yield rows
        finally:
            opened.close()

    def _safe(self, rows_between: Callable[[int, int], set[Row]]) -> Callable[[int, int], Collection[Row]]:
        """Renews the lease beside each hour that is dropped."""
        loop = asyncio.get_running_loop()

        def safe(start: int, end: int) -> Collection[Row]:
            asyncio.run_coroutine_threadsafe(self._take_lease(), loop).result(30)
            return rows_between(start, end)

        return safe

    async def _count(self, table: DayTable, day: int) -> int:
        where = f'"{table.time}" >= {day} AND "{table.time}" < {day + DAY_MS}'
        [[count]] = await self._store.select(f"SELECT count(*) FROM {table.name} WHERE {where}")
        return int(count)

    async def _take_lease(self) -> None:
        """Take or keep it. Waits for one that died to lose it; raises Unavailable where another goes on keeping it."""
        waited_s = 0.0
        while True:
            now = self._clock.now_ms()
            if await self._store.take_lease(LEASE, self._owner, now, now + self._lease_ms) is not None:
                return
            if waited_s > self._lease_ms / 1000 + 5:
                raise Unavailable("another perpline archive works on this database: let it finish")
            await self._clock.sleep_wall(WAIT_S)
            waited_s += WAIT_S


async def needed_from(store: Store, now: int) -> tuple[int, str]:
    """The midnight from which on a worker needs the rows, and what for: open positions, messages not published yet.

    Of the day of `now` where nothing needs more, and then for nothing.
    """
    needed, needed_for = now, ""
    for query, what in (
        (
            "SELECT opened_at, account, symbol FROM positions WHERE status <> 'closed' ORDER BY opened_at LIMIT 1",
            "the open {} position in {}",
        ),
        (
            "SELECT close_time, slot, symbol FROM outbox WHERE published_at IS NULL AND kind IN ('signal', 'close') "
            "ORDER BY close_time LIMIT 1",
            "a message of slot {} about {} that no bus has taken yet",
        ),
    ):
        for oldest, *words in await store.select(query):
            if oldest - oldest % DAY_MS < needed - needed % DAY_MS:
                needed, needed_for = int(oldest), what.format(*(word or "every symbol" for word in words))
    return needed - needed % DAY_MS, needed_for


async def _days_with_gaps(store: Store, now: int) -> set[tuple[str, int]]:
    """(table, midnight) of every day in which a hole is open that could still be repaired."""
    days = set()
    for gap in await store.gaps(only_open=True):
        table = gap.series.partition(":")[0]  # long_short_ratio:taker
        if table not in _REPAIRED_FOR_DAYS or gap.to_time < now - _REPAIRED_FOR_DAYS[table] * DAY_MS:
            continue
        for day in range(gap.from_time - gap.from_time % DAY_MS, gap.to_time, DAY_MS):
            days.add((table, day))
    return days


async def _with(first: list[Row], others: AsyncIterator[list[Row]]) -> AsyncIterator[list[Row]]:
    yield first
    async for each in others:
        yield each


def checked_tables(names: str | None) -> tuple[str, ...]:
    """The tables that a list names; all of them without one. Raises NeedsPerson for one that is not archived."""
    if names is None:
        return DAY_TABLES
    wanted = tuple(name.strip() for name in names.split(",") if name.strip())
    if unknown := [name for name in wanted if name not in DAY_TABLES]:
        raise NeedsPerson(f"{unknown[0]} is not archived: only {', '.join(DAY_TABLES)}")
    if not wanted:
        raise NeedsPerson(f"no table is named: some of {', '.join(DAY_TABLES)}")
    return wanted
