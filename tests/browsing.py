"""A simulated exchange, a worker and the dashboard, with the system's Chromium in front of it."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from perpline.common.clock import SystemClock
from perpline.common.config import load_settings
from perpline.dashboard.app import Listening, serve
from perpline.simulation.faults import Faults
from perpline.simulation.server import SimulatedExchange
from running import Database, RunningWorker, eventually, simulated, working

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# As root it has no sandbox; it is to ask nobody for anything by itself.
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
PAGE_WITHIN_MS = 20_000


@dataclass
class Screen:
    """One tab on a dashboard, and everything it complained about or asked for."""

    page: Any
    address: str
    exchange: SimulatedExchange
    worker: RunningWorker
    database: Database
    complaints: list[str]
    asked: list[str]

    async def go(self, route: str) -> None:
        """Open #/route and wait until it is drawn."""
        await self.page.goto(f"{self.address}/#/{route}")
        await self.drawn(route.partition("/")[0])

    async def drawn(self, name: str) -> None:
        ready = f'[data-testid="page-{name}"][data-ready="true"]'
        await self.page.wait_for_selector(ready, timeout=PAGE_WITHIN_MS)

    def found(self, testid: str) -> Any:
        return self.page.get_by_test_id(testid)

    async def value(self, testid: str, attribute: str = "data-value") -> str | None:
        found: str | None = await self.found(testid).get_attribute(attribute)
        return found

    async def until(self, condition: Any, what: str, within_s: float = 20.0) -> None:
        """Wait for something that is asked of the page or of the database."""
        loop = asyncio.get_running_loop()
        last = loop.time() + within_s
        while not await condition():
            assert loop.time() < last, f"not within {within_s:g} s: {what}"
            await asyncio.sleep(0.05)


@asynccontextmanager
async def watching(
    chromium: Any, folder: Path, *, speed: float = 60.0, faults: Faults | None = None, **changes: object
) -> AsyncIterator[Screen]:
    """A worker that is ready and has decided, its dashboard, and a tab that has come in by the printed address."""
    async with (
        simulated(speed=speed, faults=faults or Faults()) as exchange,
        working(exchange, folder, **changes) as worker,
    ):
        await worker.until(worker.ready.is_set, within_s=60.0, what="ready")
        database = Database(folder)
        await worker.until(lambda: database.decisions() >= 2 * len(exchange.symbols), what="the first decisions")
        settings = load_settings(
            folder / "perpline.toml", {}, {"status_port": worker.status_port, "dashboard_port": 0, "database_url": None}
        )
        stop, said = asyncio.Event(), []
        how: dict[str, Any] = {"allow_remote": False, "without_tls": False, "tls": None, "by": "dashboard:ana"}

        def ready(listening: Listening) -> None:
            said.append(listening)

        serving = asyncio.create_task(serve(settings, SystemClock(), stop, on_ready=ready, **how))
        await eventually(lambda: said or serving.done(), within_s=60, what="the dashboard listens")
        parts = urlsplit(said[0].url)
        context = await chromium.new_context(viewport={"width": 1440, "height": 900}, locale="en-US")
        page = await context.new_page()
        page.set_default_timeout(PAGE_WITHIN_MS)
        screen = Screen(page, f"{parts.scheme}://{parts.netloc}", exchange, worker, database, [], [])
        page.on("console", lambda each: each.type in ("error", "warning") and screen.complaints.append(each.text))
        page.on("pageerror", lambda each: screen.complaints.append(str(each)))
        page.on("request", lambda each: screen.asked.append(each.url))
        page.on("websocket", lambda each: screen.asked.append(each.url))
        try:
            await page.goto(said[0].url)
            await screen.drawn("overview")
            yield screen
        finally:
            await context.close()
            stop.set()
            await serving
