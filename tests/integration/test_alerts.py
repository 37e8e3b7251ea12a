"""`perpline alerts run` beside a real worker: what breaks is told to a real receiver, and so is that it is over."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest
from aiohttp import web
from pydantic import SecretStr
from structlog.testing import capture_logs

from perpline.alerts.channels import open_channels
from perpline.alerts.observer import Observer
from perpline.alerts.state import StateFile
from perpline.alerts.watch import Watch
from perpline.common.clock import SystemClock
from perpline.common.config import Settings
from perpline.simulation.incidents import Silence
from running import Database, eventually, settings_on, simulated, working

pytest.importorskip("apprise", reason="the extra [notify] is not installed")


class Receiver:
    """A local HTTP server that apprise's json:// speaks to. `refuses` counts down requests that are answered 500."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.refuses = 0
        self.url = ""

    def told(self, start: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["title"].startswith(start)]

    async def take(self, request: web.Request) -> web.Response:
        message = await request.json()
        if self.refuses:
            self.refuses -= 1
            return web.Response(status=500)
        self.messages.append(message)
        return web.Response()


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver, app = Receiver(), web.Application()
    app.router.add_post("/{anything:.*}", receiver.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"json://127.0.0.1:{runner.addresses[0][1]}/SecretToken4711"
    try:
        yield receiver
    finally:
        await runner.cleanup()


@asynccontextmanager
async def watching(settings: Settings, *receivers: Receiver) -> AsyncIterator[None]:
    clock, stop = SystemClock(), asyncio.Event()
    observer = Observer(settings, clock)
    channels = open_channels([SecretStr(receiver.url) for receiver in receivers])
    with StateFile(settings.data_dir) as file:
        watch = Watch(settings, clock, observer, channels, file, random.Random(1), gather_s=0.05)
        running = asyncio.create_task(watch.run(stop))
        try:
            yield
        finally:
            stop.set()
            await running
            await observer.close()


def alert_rows(folder: Path, name: str) -> list[tuple[Any, ...]]:
    try:
        query = "SELECT subject, cleared_at, notified_at FROM alerts WHERE name = ? ORDER BY raised_at"
        return Database(folder).rows(query, name)
    except apsw.SQLError:
        return []


async def test_a_stream_that_is_cut_is_told_and_healed_is_told_and_a_dead_worker_too(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with receiving() as good, receiving() as flaky, simulated() as exchange:
            # 60 times as fast a market, and a sixtieth of the patience.
            settings = settings_on(exchange, tmp_path, alert_every_s=0.1, alert_patience=0.02)
            async with working(exchange, tmp_path) as worker:
                await worker.until_ready()
                async with watching(settings, good, flaky):
                    silence = Silence(streams="btcusdt@markPrice*")
                    flaky.refuses = 1
                    exchange.happens(silence)
                    await worker.until(lambda: good.told("[warning] Streams are silent"), what="the alarm")
                    await worker.until(lambda: flaky.told("[warning] Streams are silent"), what="the second try")
                    exchange.faults.incidents.remove(silence)
                    await worker.until(lambda: good.told("[over] Streams are silent"), what="that it is over")
                    await worker.until(lambda: flaky.told("[over] Streams are silent"), what="on the flaky channel")
                    await worker.kill()
                    # A worker that is cancelled takes its token file away; one that is killed does not.
                    await eventually(lambda: good.told("[critical] A worker does not answer"))

    assert [line for line in logs if line["event"] == "alert_rule_failed"] == []
    [begun] = good.told("[warning] Streams are silent")
    assert begun["type"] == "warning"
    assert begun["message"].splitlines()[:2] == [
        "BTCUSDT markPrice@1s: silent on market-0 though it should speak",
        "What to do: docs/runbooks/stream_stale.md",
    ]
    [over] = good.told("[over] Streams are silent")
    assert over["message"].startswith("BTCUSDT markPrice@1s: over after ")
    assert over["type"] == "success"
    assert len(flaky.told("[warning] Streams are silent")) == 1

    [(subject, cleared_at, notified_at)] = alert_rows(tmp_path, "stream_stale")
    assert subject == "BTCUSDT markPrice@1s"
    assert None not in (cleared_at, notified_at)
    assert "SecretToken4711" not in str(logs)
    assert "SecretToken4711" not in (tmp_path / "alerts.json").read_text()
