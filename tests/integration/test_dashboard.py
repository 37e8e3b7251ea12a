"""The dashboard beside a worker on the simulated exchange: what it shows is so, and what is asked of it is done."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from perpline.common.clock import SystemClock
from perpline.common.config import load_settings
from perpline.dashboard.app import Listening, serve
from perpline.worker_client import fetch_status
from running import MINUTE, Database, RunningWorker, eventually, simulated, working


class Browser:
    """Someone who came in, with a page that draws what it is told at once (while `draws` is set)."""

    def __init__(self, session: aiohttp.ClientSession, address: str, csrf: str) -> None:
        self.header: dict[str, Any] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        self.drawn_at: list[float] = []
        self.decisions: list[dict[str, Any]] = []
        self.draws = asyncio.Event()
        self.draws.set()
        self._session = session
        self._address = address
        self._headers = {"X-Perpline-CSRF": csrf}

    async def get(self, path: str) -> Any:
        async with self._session.get(self._address + path) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        async with self._session.post(self._address + path, json=body, headers=self._headers) as answer:
            return answer.status, await answer.json()

    async def watch(self) -> None:
        async with self._session.ws_connect(f"{self._address}/ws") as socket:
            async for message in socket:
                said = json.loads(message.data)
                if said["type"] == "decisions":
                    self.decisions += said["rows"]
                if "n" not in said:
                    continue
                self.drawn_at.append(asyncio.get_running_loop().time())
                self.header |= said.get("header", {})
                for symbol, part in said["rows"].items():
                    self.rows[symbol] = self.rows.get(symbol, {}) | part
                await self.draws.wait()
                await socket.send_str(json.dumps({"type": "ack", "n": said["n"]}))


@asynccontextmanager
async def browsing(folder: Path, status_port: int) -> AsyncIterator[Browser]:
    """A dashboard on the worker of this folder, in this loop, and a browser on it."""
    values = {"status_port": status_port, "dashboard_port": 0}
    settings, stop, said = load_settings(folder / "perpline.toml", {}, values), asyncio.Event(), []

    def ready(listening: Listening) -> None:
        said.append(listening)

    how: dict[str, Any] = {"allow_remote": False, "without_tls": False, "tls": None, "by": "dashboard:ana"}
    serving = asyncio.create_task(serve(settings, SystemClock(), stop, on_ready=ready, **how))
    await eventually(lambda: said or serving.done())
    parts = urlsplit(said[0].url)
    address = f"{parts.scheme}://{parts.netloc}"
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        async with session.get(said[0].url) as entered:
            assert entered.status == 200
        async with session.get(f"{address}/api/session") as answer:
            csrf = (await answer.json())["csrf"]
        browser = Browser(session, address, csrf)
        watching = asyncio.create_task(browser.watch())
        try:
            yield browser
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            stop.set()
            await serving


async def until(worker: RunningWorker, condition: Callable[[], object], what: str) -> None:
    await worker.until(condition, what=what)


async def test_what_the_page_shows_is_what_the_worker_and_the_tables_have(tmp_path: Path) -> None:
    async with simulated(speed=60.0) as exchange, working(exchange, tmp_path) as worker:
        await worker.until_ready()
        async with browsing(tmp_path, worker.status_port) as browser:
            await until(worker, lambda: len(browser.decisions) >= 2 * len(exchange.symbols), "decisions")
            assert sorted(browser.rows) == sorted(exchange.symbols)
            assert browser.header["connections"] == {"live": 2, "all": 2}
            assert (browser.header["worker"], browser.header["speed"]) == ("live", 60.0)

            database, symbol = Database(tmp_path), exchange.symbols[0]
            for row in browser.decisions:
                stored = database.rows(
                    "SELECT status, side, p_cal, detail FROM signals WHERE symbol = ? AND close_time = ?",
                    *(row["symbol"], row["close_time"]),
                )
                assert stored == [(row["status"], row["side"], row["p_cal"], row["detail"])]
            told = await browser.get(f"/api/symbol?symbol={symbol}&limit=100")
            stored = database.rows(
                "SELECT open_time, open, high, low, close, volume, source FROM candles_1m "
                "WHERE symbol = ? AND open_time <= ? ORDER BY open_time DESC LIMIT 100",
                *(symbol, told["candles"][-1][0]),
            )
            assert [tuple(row[:7]) for row in told["candles"]] == stored[::-1]
            assert browser.rows[symbol]["mode"] == "off"
            await until(worker, lambda: len(browser.rows[symbol]["spark"]) == 60, "the last hour")
            truth = exchange.exchange.mark(exchange.exchange.index_of[symbol], exchange.clock.now_ms()).mark
            assert abs(browser.rows[symbol]["mark"] / truth - 1) < 0.01
            cost = await browser.get(f"/api/slippage?symbol={symbol}&side=buy&quote_usdt=100")
            assert 0 < cost["bps"] < 50
            assert (cost["age_s"] < 30, cost["is_stale"]) == (True, False)
            asked = await fetch_status(tmp_path, worker.status_port, symbol=symbol)
            assert (list(asked), list(asked["symbols"])) == (["symbols"], [symbol])

            gaps = [later - earlier for earlier, later in zip(browser.drawn_at, browser.drawn_at[1:], strict=False)]
            assert len(gaps) > 5
            assert sorted(gaps)[len(gaps) // 10] > 0.15, "more than five changes a second"

            browser.draws.clear()
            await asyncio.sleep(0.3)
            drawn = len(browser.drawn_at)
            await asyncio.sleep(1.0)
            assert len(browser.drawn_at) == drawn, "told more before the last was drawn"
            browser.draws.set()
            await until(worker, lambda: len(browser.drawn_at) > drawn + 1, "changes again")


async def test_a_mode_is_changed_and_everything_closed_from_the_page_and_a_lost_worker_is_told(tmp_path: Path) -> None:
    async with simulated(speed=30.0) as exchange:
        async with working(exchange, tmp_path) as worker:
            await worker.until_ready()
            port = worker.status_port
            async with browsing(tmp_path, port) as browser:
                await until(worker, lambda: browser.header.get("mode") == "off", "the first picture")
                asked = {"mode": "paper", "reason": "from the sofa", "for": "8h"}
                status, done = await browser.post("/api/mode", asked)
                assert (status, done["changed"][0]["by"]) == (200, "dashboard:ana")
                await until(worker, lambda: browser.header["mode"] == "paper", "the mode on the page")
                live = {"mode": "live", "reason": "go", "for": "8h", "confirm_live": True}
                status, done = await browser.post("/api/mode", live)
                assert (status, "needs an API key" in done["error"]) == (409, True)

                status, done = await browser.post("/api/flatten", {"account": "both", "confirm": "FLATTEN"})
                assert (status, [each for each in done["done"] if float(each["left"])]) == (200, [])
                await until(worker, lambda: browser.header["mode"] == "off", "off on the page")
                query = 'SELECT mode, positions, "by", reason FROM modes ORDER BY id'
                assert Database(tmp_path).rows(query) == [
                    ("paper", "keep", "dashboard:ana", "from the sofa"),
                    ("off", "flatten", "dashboard:ana", "flatten, from the dashboard"),
                ]
                until_ms, changed_at = Database(tmp_path).rows("SELECT until, changed_at FROM modes ORDER BY id")[0]
                assert until_ms - changed_at == 8 * 60 * MINUTE

                await worker.stop()
                await eventually(lambda: browser.header["worker"] == "away")
                assert browser.rows[exchange.symbols[0]]["ages"] == [None] * 5
                assert (await browser.get("/api/trading"))["accounts"] is not None
                async with working(exchange, tmp_path, status_port=port) as again:
                    await again.until_ready()
                    await until(again, lambda: browser.header["worker"] == "live", "the worker is back")
