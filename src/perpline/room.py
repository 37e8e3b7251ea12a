"""Room on the disk: how much is used, how fast it grows, an alarm long before it is full; and the outbox is pruned."""

import asyncio
import shutil
from collections import deque
from pathlib import Path
from typing import Any

import structlog

from perpline.common.clock import Clock
from perpline.common.config import Settings
from perpline.common.errors import NeedsPerson, Unavailable
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import Store

log = structlog.get_logger("perpline.room")

LOOK_EVERY_S = 30.0
SAMPLE_EVERY_S = 300.0
SAMPLES = 288
"""A day of them: what is slower than a day is not seen, and one import does not count for ever."""
RATE_AFTER_S = 3600.0
"""No rate is told before: a start fills windows, and a batch of rows is no trend."""
TELL_AGAIN_S = 3600.0
DAY_S = 86_400.0
DAY_MS = 86_400_000
PRUNE_ROWS = 500
"""In one transaction: a few milliseconds."""
PRUNE_EVERY_S = 600.0


class Room:
    """Looks at the disks that this process writes to. Wall time, whatever the market's speed: disks know no other.

    These are the disks of `data_dir`, of a SQLite database and, where days are archived, of the archive. A database
    server's is its own affair.
    """

    def __init__(self, settings: Settings, clock: Clock, store: Store) -> None:
        self.facts: dict[str, Any] | None = None
        """Bytes of the database and the spool, of the fullest disk free and in all; growth a day; days until it is full
        (None: not known yet, or it does not grow); `low`: why that is an alarm, or None."""
        self._settings = settings
        self._clock = clock
        self._store = store
        self._folders = [settings.data_dir]
        if isinstance(store, SqliteStore):
            self._folders.append(store.path.absolute().parent)
        self._needed = frozenset(self._folders)
        """An archive's folder is made with its first day; these are there from the start."""
        self._gone: list[str] = []
        """Those of them that did not answer at the last look."""
        if settings.retention_days:
            self._folders.append(settings.archive_dir)
        self._data_dir = settings.data_dir
        self._used: deque[tuple[float, int]] = deque(maxlen=SAMPLES)
        self._told_at: float | None = None
        self._pruned_at: float | None = None

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            await self.look()
            try:
                await self._prune_outbox()
            except (Unavailable, NeedsPerson):
                pass  # the database is away or was moved, which others tell of
            await self._clock.sleep_wall(LOOK_EVERY_S)

    def trouble(self) -> list[str]:
        """What is wrong, in words."""
        low = [self.facts["low"]] if self.facts is not None and self.facts["low"] else []
        return [
            f"the folder {folder} does not answer: was it moved, or its disk taken away?" for folder in self._gone
        ] + low

    async def look(self) -> None:
        """Measure now, and tell of a change. While the database is away, its size is the last one known."""
        try:
            database, _ = await self._store.size()
        except (Unavailable, NeedsPerson):
            database = 0 if self.facts is None else int(self.facts["database_bytes"])
        spool = await asyncio.to_thread(_bytes_in_spools, self._data_dir)
        looked = {folder: await asyncio.to_thread(_disk, folder) for folder in self._folders}
        self._tell_gone([str(folder) for folder, disk in looked.items() if disk is None and folder in self._needed])
        disks = [disk for disk in looked.values() if disk is not None]
        folder, free, total = min(disks, key=lambda disk: disk[1]) if disks else (None, None, None)
        now = self._clock.wall_s()
        if not self._used or now - self._used[-1][0] >= SAMPLE_EVERY_S:
            self._used.append((now, database + spool))
        growth = self._growth(now, database + spool)
        days = free / growth if free is not None and growth is not None and growth > 0 else None
        low = self._low(folder, free, total, days)
        self.facts = {
            "database_bytes": database,
            "spool_bytes": spool,
            "disk": folder,
            "disk_free_bytes": free,
            "disk_bytes": total,
            "growth_bytes_per_day": None if growth is None else round(growth),
            "days_until_full": None if days is None else round(days, 1),
            "low": low,
        }
        self._tell(low, now)

    def _growth(self, now: float, used: int) -> float | None:
        since, before = self._used[0]
        return (used - before) / (now - since) * DAY_S if now - since >= RATE_AFTER_S else None

    def _low(self, folder: str | None, free: int | None, total: int | None, days: float | None) -> str | None:
        if free is None:
            return None
        least = self._settings.disk_low_mb * 1_000_000
        if total is not None:
            least = min(least, total // 10)
        where = f"the disk of {folder}"
        if free < least:
            until = "" if days is None else f", enough for {days:.1f} days"
            return f"{where} has {free / 1e6:,.0f} MB left{until}: less than {least / 1e6:,.0f} MB"
        if days is not None and days < self._settings.disk_low_days:
            return f"{where} is full in {days:.1f} days at the present rate: {free / 1e6:,.0f} MB left"
        return None

    def _tell(self, low: str | None, now: float) -> None:
        if low is not None and (self._told_at is None or now - self._told_at >= TELL_AGAIN_S):
            log.error("disk_low", reason=low, action="room")
            self._told_at = now
        elif low is None and self._told_at is not None:
            log.warning("disk_has_room_again", action="room")
            self._told_at = None

    def _tell_gone(self, gone: list[str]) -> None:
        if gone != self._gone:
            if gone:
                log.error("folder_gone", folders=gone, action="room")
            else:
                log.warning("folder_there_again", folders=self._gone, action="room")
        self._gone = gone

    async def _prune_outbox(self) -> None:
        now = self._clock.wall_s()
        if self._pruned_at is not None and now - self._pruned_at < PRUNE_EVERY_S:
            return
        while await self._store.prune_outbox(self._clock.now_ms() - DAY_MS, PRUNE_ROWS) == PRUNE_ROWS:
            await self._clock.sleep_wall(0.1)
        self._pruned_at = now


def _disk(folder: Path) -> tuple[str, int, int] | None:
    """The folder, and what its disk has free and in all; None where it is not there."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return str(folder), usage.free, usage.total


def _bytes_in_spools(data_dir: Path) -> int:
    """Of the folders `spool`, `spool.2` …: each process of a data folder has its own."""
    total = 0
    try:
        for folder in data_dir.glob("spool*"):
            for path in folder.rglob("*"):
                total += path.stat().st_size if path.is_file() else 0
    except OSError:
        pass  # it changes while it is counted; the next look counts again
    return total
