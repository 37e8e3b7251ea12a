"""A dashboard with the system's Chromium in front of it: one of a worker on a simulated exchange, or one whose answers
a test makes up."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dashing import SYMBOLS, Served, T, fill, served, settings_in
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
SPEED = 120.0


@dataclass
class Tab:
    """One tab on a dashboard, and everything it complained about or asked for."""

    page: Any
    address: str
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def listen(self) -> None:
        self.page.set_default_timeout(PAGE_WITHIN_MS)
        self.page.on("console", lambda each: each.type in ("error", "warning") and self.complaints.append(each.text))
        self.page.on("pageerror", lambda each: self.complaints.append(str(each)))
        self.page.on("request", lambda each: self.asked.append(each.url))
        self.page.on("websocket", lambda each: self.asked.append(each.url))

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


@dataclass
class Screen(Tab):
    """A tab on the dashboard of a worker on a simulated exchange."""

    exchange: SimulatedExchange = field(kw_only=True)
    worker: RunningWorker = field(kw_only=True)
    database: Database = field(kw_only=True)


@asynccontextmanager
async def watching(
    chromium: Any, folder: Path, *, speed: float = SPEED, faults: Faults | None = None, **changes: object
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
        context = await chromium.new_context(viewport={"width": 1440, "height": 900}, locale="en-US")
        parts = {"exchange": exchange, "worker": worker, "database": database}
        screen = Screen(await context.new_page(), _origin_of(said[0].url), **parts)
        screen.listen()
        try:
            await screen.page.goto(said[0].url)
            await screen.drawn("overview")
            yield screen
        finally:
            await context.close()
            stop.set()
            await serving


@dataclass
class Stage(Tab):
    """A tab on a dashboard without a worker. `answers` stand in for those of /api/…, by their name after it: JSON, or
    (status, JSON) for a refusal. What the live picture is, `rows`, `show` and `tell` say."""

    served: Served = field(kw_only=True)
    answers: dict[str, Any] = field(default_factory=dict)
    sockets: list[Any] = field(default_factory=list)
    header: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    async def answer(self, route: Any) -> None:
        name = urlsplit(route.request.url).path.removeprefix("/api/")
        if name not in self.answers:
            await route.continue_()
            return
        found = self.answers[name]
        status, body = found if isinstance(found, tuple) else (200, found)
        await route.fulfill(status=status, json=body)

    def connect(self, socket: Any) -> None:
        self.sockets.append(socket)
        self.tell_all()

    def tell_all(self) -> None:
        whole = {"header": self.header, "fields": [], "streams": STREAMS, "limits": {}, "rows": self.rows}
        self.sockets[-1].send(json.dumps({"type": "overview", "now": T, **whole, "n": 1}))

    async def show(self, rows: dict[str, dict[str, Any]]) -> None:
        """Tell the whole picture anew: of SYMBOLS what ROW and `rows` say."""
        self.rows = {symbol: {**ROW, **rows.get(symbol, {})} for symbol in SYMBOLS}
        self.tell_all()
        await self.page.evaluate(TWO_FRAMES)

    async def clear(self) -> None:
        """The page as it is when it is first opened."""
        self.answers.clear()
        await self.page.keyboard.press("Escape")  # a window that is still open
        await self.page.unroute_all(behavior="wait")
        await self.page.route("**/api/**", self.answer)
        await self.page.goto(f"{self.address}/#/none")  # so that no page is kept as it was left
        await self.drawn("none")
        if await self.page.locator("html").get_attribute("lang") != "en":
            await self.found("lang-switch").select_option("en")
        await self.show({})
        await self.go("overview")

    def tell(self, **message: object) -> None:
        """Tell the page what has changed: header=, rows=."""
        self.sockets[-1].send(json.dumps({"type": "change", "now": T, "rows": {}, **message, "n": 1}))


TWO_FRAMES = "new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))"
"""Until what has changed is drawn: charts measure themselves a frame later."""
STREAMS = ("kline_1m", "kline_15m", "kline_1h", "markPrice@1s", "bookTicker")
HEADER = {
    **{"worker": "live", "mode": "paper", "modes": {}, "exceptions": {}, "leads": True, "speed": 1.0, "trouble": []},
    **{"weight": {"used": 10, "limit": 2400}, "connections": {"live": 1, "all": 1}, "account": "paper"},
}
ROW = {
    **{"price": 101.0, "spread_bps": 1.0, "mark": 101.0, "funding": 0.0001, "next_funding": T + 3_600_000},
    **{"ages": [1.0, 1.0, 1.0, 0.3, 0.1], "stale": [], "last": None, "position": None, "spark": [], "mode": "paper"},
}


@asynccontextmanager
async def staged(
    chromium: Any,
    folder: Path,
    *,
    answers: dict[str, Any] | None = None,
    header: dict[str, Any] | None = None,
    rows: dict[str, dict[str, Any]] | None = None,
    **context_options: Any,
) -> AsyncIterator[Stage]:
    """A dashboard on the rows of `dashing.fill`, and a tab that hears of SYMBOLS what ROW and `rows` say."""
    await fill(folder)
    options = {"viewport": {"width": 1440, "height": 900}, "locale": "en-US", **context_options}
    context = await chromium.new_context(**options)
    with served(settings_in(folder)) as found:
        stage = Stage(await context.new_page(), _origin_of(found.url), served=found, answers=answers or {})
        stage.header = {**HEADER, **(header or {})}
        stage.rows = {symbol: {**ROW, **(rows or {}).get(symbol, {})} for symbol in SYMBOLS}
        stage.listen()
        await stage.page.route("**/api/**", stage.answer)
        await stage.page.route_web_socket("**/ws", stage.connect)
        try:
            await stage.page.goto(found.url)
            await stage.drawn("overview")
            yield stage
        finally:
            await context.close()


def _origin_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
