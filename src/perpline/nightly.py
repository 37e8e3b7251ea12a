"""Once a night: `perpline parity` of the day that is over, in a process of its own."""

import asyncio
import json
import os
import sys
from datetime import UTC, datetime
from typing import Any

import structlog

from perpline.common.clock import Clock
from perpline.common.config import Settings

log = structlog.get_logger("perpline.nightly")

DAY_MS = 86_400_000
PARITY_TIMEOUT_S = 3600.0
"""Wall seconds; a day of 600 symbols takes minutes."""


class NightlyParity:
    """Runs at `settings.parity_at` (UTC, of market time) and keeps the last result; never where that is off."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.last: dict[str, Any] | None = None
        """The line of `perpline parity --json` with `date` and `ran_at`, or with `error` what it said instead."""
        self._settings = settings
        self._clock = clock

    async def run(self) -> None:
        """Compare each day when its time has come, until cancelled."""
        at_ms = self._settings.parity_at_ms
        while at_ms is not None:
            now = self._clock.exchange_now_ms()
            due = now - now % DAY_MS + at_ms
            due += DAY_MS if due <= now else 0
            await self._clock.sleep((due - now) / 1000)
            date = datetime.fromtimestamp((due - DAY_MS) / 1000, UTC).strftime("%Y-%m-%d")
            found = await self._parity(date)
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

    async def _parity(self, date: str) -> dict[str, Any]:
        settings = self._settings
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PERPLINE_")}
        environment |= {
            "PERPLINE_CONFIG": os.devnull,  # what it needs is here, whatever file the worker was started with
            "PERPLINE_DATABASE_URL": settings.database_url.get_secret_value(),
            "PERPLINE_MODELS_DIR": str(settings.models_dir),
            "PERPLINE_SLOT": settings.slot,
        }
        try:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "perpline", "parity", "--date", date, "--json"),
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            return {"error": str(error)}
        try:
            async with asyncio.timeout(PARITY_TIMEOUT_S):
                out, said = await child.communicate()
        except TimeoutError:
            return {"error": f"it took longer than {PARITY_TIMEOUT_S:g} s"}
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
