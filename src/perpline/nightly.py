"""Processes of their own: each night `perpline parity` of the day that is over and `perpline archive` of old days, each
hour `perpline outcomes` of the signals whose time is over."""

import asyncio
import importlib.util
import json
import os
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import structlog

from perpline.common.clock import Clock
from perpline.common.config import Settings
from perpline.common.errors import NeedsPerson

log = structlog.get_logger("perpline.nightly")

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
PARITY_TIMEOUT_S = 3600.0
"""Wall seconds; a day of 600 symbols takes minutes."""
ARCHIVE_AT_MS = 40 * 60_000
"""00:40 UTC: the day before is whole, and nothing else begins then."""
ARCHIVE_TIMEOUT_S = 20 * 3600.0
"""Wall seconds. The first night has all that is old to do, and what is not done then is done the night after."""
OUTCOMES_AT_MS = 20 * 60_000 + 30_000
"""Of each hour, half a minute from any close."""
OUTCOMES_TIMEOUT_S = 1800.0
"""Wall seconds; an hour's signals take some."""
OUTCOMES_APART_S = 60.0
"""Wall seconds: an hour of a simulated market may be one of ours."""


class NightlyParity:
    """Runs at `settings.parity_at` (UTC, of market time) and keeps the last result; never where that is off."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.last: dict[str, Any] | None = None
        """The line of `perpline parity --json` with `date` and `ran_at`, or with `error` what it said instead."""
        self._settings = settings
        self._clock = clock

    async def run(self) -> None:
        """Compare each day when its time has come, until cancelled."""
        if (at_ms := self._settings.parity_at_ms) is None:
            return
        async for due in _each(DAY_MS, at_ms, self._clock):
            date = datetime.fromtimestamp((due - DAY_MS) / 1000, UTC).strftime("%Y-%m-%d")
            found = await _command(self._settings, PARITY_TIMEOUT_S, "parity", "--date", date)
            self.last = {"date": date, "ran_at": self._clock.exchange_now_ms(), **found}
            if found.get("ok"):
                log.info("parity_compared", date=date, cells=found["cells"], action="parity")
            elif "error" in found:
                log.warning("parity_not_compared", date=date, reason=found["error"], action="parity")
            else:
                log.error(
                    "parity_broken",
                    date=date,
                    mismatch_cells=found["mismatch_cells"],
                    of=found["cells"],
                    worst_column=found["worst_column"],
                    mismatch_probabilities=found["mismatch_probabilities"],
                    action="parity",
                )


class NightlyArchive:
    """Runs at 00:40 UTC of market time where `retention_days` is set; never where it is 0."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        """Raises NeedsPerson where days are to be archived and the package for it is missing."""
        if settings.retention_days and importlib.util.find_spec("pyarrow") is None:
            raise NeedsPerson("retention_days needs one more package: pip install 'perpline[analytics]'")
        self.last: dict[str, Any] | None = None
        """Of the last night: `ran_at`, and `rows`, `bytes`, `days_dropped`, `days_with_gaps`, or `error`."""
        self._settings = settings
        self._clock = clock

    async def run(self) -> None:
        """Archive each night, until cancelled."""
        if not self._settings.retention_days:
            return
        async for _ in _each(DAY_MS, ARCHIVE_AT_MS, self._clock):
            found = await _command(self._settings, ARCHIVE_TIMEOUT_S, "archive")
            self.last = {"ran_at": self._clock.exchange_now_ms(), **_archived(found)}
            if "error" in self.last:
                log.error("archive_failed", reason=self.last["error"], action="archive")
            elif self.last["days_with_gaps"]:
                log.warning(
                    "days_not_archived", days=self.last["days_with_gaps"], first=self.last["first"], action="archive"
                )
            elif self.last["needed_for"]:
                log.warning(
                    "days_still_needed", since=self.last["before"], by=self.last["needed_for"], action="archive"
                )
            else:
                log.info("days_archived", rows=self.last["rows"], days=self.last["days_dropped"], action="archive")


class HourlyOutcomes:
    """Runs 20.5 minutes past each hour of market time, but at least a minute of wall time after the last run."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.last: dict[str, Any] | None = None
        """The line of `perpline outcomes --json` with `ran_at`, or with `error` what it said instead."""
        self._settings = settings
        self._clock = clock

    async def run(self) -> None:
        """Store what became of signals each hour, until cancelled."""
        async for _ in _each(HOUR_MS, OUTCOMES_AT_MS, self._clock):
            found = await _command(self._settings, OUTCOMES_TIMEOUT_S, "outcomes")
            self.last = {"ran_at": self._clock.exchange_now_ms(), **found}
            if "error" in found:
                log.warning("outcomes_not_stored", reason=found["error"], action="outcomes")
            elif found["stored"]:
                log.info("outcomes_stored", signals=found["stored"], action="outcomes")
            await self._clock.sleep_wall(OUTCOMES_APART_S)


async def _each(period_ms: int, at_ms: int, clock: Clock) -> AsyncIterator[int]:
    """Each instant at which something is due, `at_ms` into each period, when it has come; one that passes meanwhile is
    left out. For ever."""
    while True:
        now = clock.exchange_now_ms()
        due = now - now % period_ms + at_ms
        due += period_ms if due <= now else 0
        await clock.sleep((due - now) / 1000)
        yield due


def _archived(found: dict[str, Any]) -> dict[str, Any]:
    if "error" in found:
        return found
    return {
        "rows": sum(each["rows"] for each in found["days"]),
        "bytes": sum(each["bytes"] for each in found["days"]),
        "days_dropped": sum(each["dropped"] for each in found["days"]),
        "days_with_gaps": len(found["with_gaps"]),
        "first": found["with_gaps"][0] if found["with_gaps"] else None,
        "before": found["before"],
        "needed_for": found["needed_for"],
    }


async def _command(settings: Settings, timeout_s: float, *arguments: str) -> dict[str, Any]:
    """What a command of perpline's says with --json, or `error`: what it said instead."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PERPLINE_")}
    environment |= {
        "PERPLINE_CONFIG": os.devnull,  # what it needs is here, whatever file the worker was started with
        "PERPLINE_DATABASE_URL": settings.database_url.get_secret_value(),
        "PERPLINE_MODELS_DIR": str(settings.models_dir),
        "PERPLINE_SLOT": settings.slot,
        "PERPLINE_RETENTION_DAYS": str(settings.retention_days),
        "PERPLINE_ARCHIVE_DIR": str(settings.archive_dir),
    }
    try:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "perpline", *arguments, "--json"),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        return {"error": str(error)}
    try:
        async with asyncio.timeout(timeout_s):
            out, said = await child.communicate()
    except TimeoutError:
        return {"error": f"it took longer than {timeout_s:g} s"}
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    try:
        found = json.loads(out.splitlines()[-1])
    except (ValueError, IndexError):
        lines = said.decode("utf-8", "replace").splitlines()
        return {"error": lines[-1] if lines else f"it ended with {child.returncode}"}
    return dict(found)
