"""Gathers the facts: /status of the workers of a data folder, and a few questions to the tables."""

import asyncio
import os
import re
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import structlog

from perpline.accounts import unattended_live
from perpline.alerts.facts import Facts, ModesSeen, OpenGap, Worker
from perpline.bootstrap import open_current
from perpline.common.clock import Clock
from perpline.common.config import Settings
from perpline.common.errors import NeedsPerson, Unavailable
from perpline.domain.candle import MINUTE_MS
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import Row, Store
from perpline.trading.mode import TABLE, ModeRow
from perpline.worker_client import fetch_status

log = structlog.get_logger("perpline.alerts")

GAPS_MS = 4 * 60 * MINUTE_MS
"""Older holes keep no decision back, nor do those of other series, which may be nobody's to repair; `perpline gaps` has
them."""
MOST_GAPS = 500
LATENCY_MINUTES = 5
DATABASE_PATIENCE_S = 10.0
WORKER_PATIENCE_S = 5.0
MOST_WORKERS = 32


class Observer:
    """Looks at the workers whose token files are in the data folder, the one on `status_port` in any case, and at the
    database, which it also writes rows of alarms to."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._store: Store | None = None
        self._file: tuple[int, int] | None = None
        """Which file the store was opened on."""
        self._modes: tuple[tuple[int, ModeRow], ...] = ()
        self._market: tuple[int, float, float] | None = None
        """The market's time and its speed as a worker last told them, and our wall seconds then."""

    async def look(self, modes_seen: ModesSeen | None = None) -> Facts:
        """What can be known now; never raises for what is away."""
        workers = await asyncio.gather(*(self._worker(port, has_token) for port, has_token in self._ports().items()))
        facts = Facts(now_ms=self._clock.now_ms(), workers=tuple(workers))
        try:
            async with asyncio.timeout(DATABASE_PATIENCE_S):
                tables = await self._tables(facts)
        except TimeoutError:
            tables = {"database_error": f"no answer within {DATABASE_PATIENCE_S:g} s"}
        except NeedsPerson as error:
            await self._forget_store()
            tables = {"database_error": str(error)}
        except Unavailable as error:
            tables = {"database_error": str(error)}
        except msgspec.MsgspecError as error:
            tables = {"database_error": f"a row of the table modes is none that this version knows: {error}"}
        return Facts(now_ms=facts.now_ms, workers=facts.workers, modes_seen=modes_seen, **tables)

    async def write(self, rows: list[Row]) -> None:
        """Store rows of `alerts`. Raises Unavailable or NeedsPerson; all may be written again."""
        try:
            async with asyncio.timeout(DATABASE_PATIENCE_S):
                await (await self._open()).commit_trading({"alerts": rows})
        except TimeoutError:
            raise Unavailable(f"no answer within {DATABASE_PATIENCE_S:g} s") from None
        except NeedsPerson:
            await self._forget_store()
            raise

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
        await self._forget_store()

    def _ports(self) -> dict[int, bool]:
        """Of workers, and whether their token file is there."""
        names = sorted(path.name for path in self._settings.data_dir.glob("worker-*.json"))
        found = {int(match[1]): True for name in names if (match := re.fullmatch(r"worker-(\d{1,5})\.json", name))}
        if self._settings.status_port:
            found.setdefault(self._settings.status_port, False)
        return dict(list(found.items())[:MOST_WORKERS])

    async def _worker(self, port: int, has_token: bool) -> Worker:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=WORKER_PATIENCE_S))
        try:
            status = await fetch_status(self._settings.data_dir, port, self._session)
        except NeedsPerson as error:
            return Worker(port=port, status=None, error=str(error), has_token=has_token)
        except ValueError:
            status = None
        if not _is_status(status):
            return Worker(
                port=port, status=None, error=f"what answers on port {port} is no worker", has_token=has_token
            )
        return Worker(port=port, status=status)

    async def _open(self) -> Store:
        """The store, opened anew where its file is another one: a copy was restored, or the file was moved."""
        if self._store is not None and self._file != (now_there := self._file_there()):
            log.info("database_is_another", file=str(now_there), action="alert")
            await self._forget_store()
        if self._store is None:
            if not self._has_database():
                raise Unavailable("there is no database yet")
            self._file = self._file_there()
            self._store = await open_current(self._settings.database_url.get_secret_value())
        return self._store

    async def _forget_store(self) -> None:
        store, self._store, self._modes = self._store, None, ()
        if store is not None:
            await store.close()

    def _path(self) -> Path | None:
        """Of the database, where it is a file."""
        url = self._settings.database_url.get_secret_value()
        return SqliteStore.from_url(url).path if url.startswith("sqlite:") else None

    def _has_database(self) -> bool:
        """False before the first start of a worker that makes the file: that one is away, and the database is not."""
        path = self._path()
        return path is None or path.exists()

    def _file_there(self) -> tuple[int, int] | None:
        path = self._path()
        try:
            found = None if path is None else os.stat(path)
        except OSError:
            return None
        return None if found is None else (found.st_dev, found.st_ino)

    async def _tables(self, facts: Facts) -> dict[str, Any]:
        if not self._has_database():
            return await self._without_file(facts)
        store = await self._open()
        statuses = facts.statuses
        modes = await self._read_modes(store)
        if not statuses:
            # A worker that died renews no lease: exactly now somebody must hear what nobody looks after.
            unattended = await unattended_live(store, *self._market_time())
            return {"database_error": "", "modes": modes, "live_unattended": tuple(unattended)}
        now, speed, slot = int(statuses[0]["now"]), float(statuses[0]["speed"]), self._settings.slot
        self._market = (now, speed, self._clock.wall_s())
        gaps = await store.select(
            "SELECT symbol, series, from_time, to_time, cause FROM gaps WHERE repaired_at IS NULL "
            f"AND series IN ('candles_1m', 'candles_15m', 'candles_1h') AND to_time > {now - GAPS_MS} "
            f"ORDER BY to_time DESC, symbol, series LIMIT {MOST_GAPS}"
        )
        minutes = await store.select(
            "SELECT close_time, MAX(t_commit) - MAX(t_candle_recv) FROM signals "
            f"WHERE slot = '{slot}' AND close_time > {now - LATENCY_MINUTES * MINUTE_MS - MINUTE_MS} "
            "AND status <> 'skipped_missed' GROUP BY close_time"
        )
        return {
            "database_error": "",
            "modes": modes,
            "gaps": tuple(
                OpenGap(symbol=symbol, series=series, from_time=begin, to_time=end, cause=cause)
                for symbol, series, begin, end, cause in gaps
            ),
            "close_to_signal_ms": tuple(us / 1000 / speed for _, us in minutes),
            "decided_until": max((int(close_time) for close_time, _ in minutes), default=0),
            "live_unattended": tuple(await unattended_live(store, now, speed)),
        }

    async def _without_file(self, facts: Facts) -> dict[str, Any]:
        """Nothing is wrong before the first start; where we saw the file, or a worker runs, somebody took it away."""
        if self._file is None and not facts.statuses:
            return {}
        await self._forget_store()
        return {"database_error": f"the database file {self._path()} is gone: was it moved or deleted?"}

    def _market_time(self) -> tuple[int, float]:
        """The market's time and speed while no worker answers: on from what one last said, or else the host's."""
        if self._market is None:
            return self._clock.now_ms(), self._settings.clock_speed
        now, speed, then_s = self._market
        return now + round((self._clock.wall_s() - then_s) * 1000 * speed), speed

    async def _read_modes(self, store: Store) -> tuple[tuple[int, ModeRow], ...]:
        """All rows, read where there is a new one."""
        [[newest]] = await store.select("SELECT MAX(id) FROM modes")
        if newest != (self._modes[-1][0] if self._modes else None):
            columns = ", ".join(f'"{name}"' for name in ("id", *TABLE.columns))
            rows = await store.select(f"SELECT {columns} FROM modes ORDER BY id")
            self._modes = tuple((int(row[0]), msgspec.convert(TABLE.named(row[1:]), ModeRow)) for row in rows)
        return self._modes


def _is_status(answer: Any) -> bool:
    """Whether this is what a worker says: something else may answer on its port."""
    if not isinstance(answer, dict) or not isinstance(answer.get("ready"), bool):
        return False
    leadership = answer.get("leadership")
    return all(isinstance(answer.get(name), int | float) for name in ("now", "speed")) and (
        leadership is None or (isinstance(leadership, dict) and "leads" in leadership)
    )
