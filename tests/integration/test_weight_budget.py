"""One weight budget for several processes, before an exchange that counts what really comes."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

import perpline.simulation.rest
from perpline.endpoint import token_file
from perpline.exchange.binance.budget import SHARES
from perpline.metrics import metrics
from perpline.simulation.server import SimulatedExchange
from perpline.storage.shared_text import PostgresText
from postgres_server import PostgresDatabase
from running import RunningWorker, eventually, simulated, working

LIMIT = 300
BUDGET = 240
POLLS = int(BUDGET * SHARES["polls"])
ASKING = str(Path(__file__).parents[1] / "asking.py")


@pytest.fixture
async def exchange(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SimulatedExchange]:
    monkeypatch.setattr(perpline.simulation.rest, "WEIGHT_LIMIT", LIMIT)
    async with SimulatedExchange(seed=1, symbols=2, speed=30) as simulated:
        yield simulated


class Asking:
    """A process of `asking.py`."""

    def __init__(self, exchange: SimulatedExchange, shared: list[str], name: str, **how: Any) -> None:
        speed = exchange.clock.speed
        self._how = {"url": exchange.http_url, "speed": speed, "shared": shared, "name": name, "limit": LIMIT, **how}

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, ASKING, json.dumps(self._how), stdout=asyncio.subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert await self.process.stdout.readline() == b"asking\n"

    async def said(self) -> Any:
        out, _ = await asyncio.wait_for(self.process.communicate(), 60)
        return json.loads(out.splitlines()[-1])

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()


@pytest.mark.parametrize(("kind", "count"), [("SqliteText", 3), ("RedisText", 2), ("PostgresText", 2)])
async def test_processes_together_never_exceed_the_limit_and_a_heal_is_served_at_once(
    kind: str, count: int, exchange: SimulatedExchange, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """150 polls wait in each process all the time; one also heals, less than its share of the budget."""
    if kind == "SqliteText":
        where = str(tmp_path / "perpline.db-budget")
    elif kind == "RedisText":
        where = request.getfixturevalue("redis_url")
    else:
        where = request.getfixturevalue("postgres_database").url
    run = exchange.http_url.rpartition(":")[2]  # so that a server of several runs keeps them apart
    asking = [
        Asking(exchange, [kind, where], f"{run}-{n}", seconds=5, polls=150, heal_every_s=0 if n else 0.12)
        for n in range(count)
    ]
    await asyncio.gather(*(each.start() for each in asking))
    said = await asyncio.gather(*(each.said() for each in asking))

    assert [each["refused"] for each in said] == [[]] * count
    minutes: dict[str, int] = {}
    for each in said:
        for minute, requests in each["requests_by_minute"].items():
            minutes[minute] = minutes.get(minute, 0) + requests
    assert max(minutes.values()) <= LIMIT
    # All but the first and the last were used up, whoever got it, up to what is leased and unused.
    assert min(minutes[minute] for minute in sorted(minutes)[1:-1]) >= 0.8 * POLLS
    assert {each["shared"]["processes"] for each in said} == {count}
    healing = said[0]
    assert healing["heals"] > 20
    assert healing["by_priority"]["heal"]["given_back"] == 0
    assert healing["heal_ms"]["p99"] < 500, "of a minute that takes two seconds"


async def test_the_weight_of_a_killed_process_is_the_others_again(exchange: SimulatedExchange, tmp_path: Path) -> None:
    shared = ["SqliteText", str(tmp_path / "perpline.db-budget")]
    killed = Asking(exchange, shared, "killed", seconds=60, polls=100)
    alive = Asking(exchange, shared, "alive", seconds=60, polls=100)
    await asyncio.gather(killed.start(), alive.start())
    await asyncio.sleep(1)
    await killed.kill()
    killed_at = exchange.clock.now_ms()
    await asyncio.sleep(7)  # three and a half minutes of the market
    alive.end()
    said = await alive.said()

    assert said["refused"] == []
    later = [n for minute, n in said["requests_by_minute"].items() if int(minute) > killed_at + 60_000]
    assert len(later) >= 2
    assert min(later[:-1]) >= 0.9 * POLLS, said["requests_by_minute"]


async def test_a_ban_that_one_process_meets_stops_the_other(
    exchange: SimulatedExchange, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shared = ["SqliteText", str(tmp_path / "perpline.db-budget")]
    quick = Asking(exchange, shared, "quick", seconds=3, polls=1, poll_pause_s=0.02)
    slow = Asking(exchange, shared, "slow", seconds=3, polls=1, poll_pause_s=0.7)
    await asyncio.gather(quick.start(), slow.start())
    monkeypatch.setattr(perpline.simulation.rest, "WEIGHT_LIMIT", 10)
    monkeypatch.setattr(perpline.simulation.rest, "BANNED_AFTER", 0)
    monkeypatch.setattr(perpline.simulation.rest, "BAN_MS", 600_000)
    said = await quick.said(), await slow.said()

    assert len(said[0]["refused"]) == 1
    assert "HTTP 418" in said[0]["refused"][0]
    # The other looks every half second, and may meet the ban itself within the first.
    assert len(said[1]["refused"]) <= 1
    assert said[1]["stopped"] >= 2


async def test_a_worker_that_is_started_while_the_weight_is_used_up_waits_for_the_next_minute(tmp_path: Path) -> None:
    async with simulated(symbols=2, speed=20) as exchange, aiohttp.ClientSession(exchange.http_url) as another:
        await eventually(lambda: exchange.clock.now_ms() % 60_000 < 5_000, what="a new minute")
        began = exchange.clock.now_ms()
        asked = await asyncio.gather(*(another.get("/fapi/v1/ticker/24hr") for _ in range(58)))  # 40 each
        assert {answer.status for answer in asked} == {200}
        with capture_logs() as logs:
            async with working(exchange, tmp_path, symbols="top:2") as worker:
                await worker.until_ready()
                await worker.stop()

    [said] = [line for line in logs if line["event"] == "start_waits"]
    assert "request weight is used up" in said["reason"]
    assert 0 < said["wait_s"] < 60
    volumes = [at for at, path, _ in exchange.requested if path == "/fapi/v1/ticker/24hr"]
    assert volumes[-1] // 60_000 == began // 60_000 + 1
    assert {status for _, _, status in exchange.requested} == {200}


async def test_the_budget_may_be_there_before_the_tables(postgres_database: PostgresDatabase) -> None:
    text = PostgresText(postgres_database.url, "budget")
    await text.swap("", "1")
    store = await postgres_database.open()

    assert "texts" not in await store.row_counts()
    await postgres_database.close()
    await text.close()


async def status_of(worker: RunningWorker, folder: Path) -> dict[str, Any]:
    token = json.loads(token_file(folder, worker.status_port).read_text())["token"]
    headers = {"Authorization": f"Bearer {token}"}
    url = f"http://127.0.0.1:{worker.status_port}/status"
    async with aiohttp.ClientSession(headers=headers) as session, session.get(url) as answer:
        return await answer.json()


async def test_two_workers_on_a_database_say_what_they_share(tmp_path: Path) -> None:
    async with (
        simulated(symbols=2) as simulator,
        working(simulator, tmp_path, slot="one") as one,
        working(simulator, tmp_path, slot="two") as two,
    ):
        await asyncio.gather(one.until_ready(), two.until_ready())
        # It looks at what is shared when it has requests to make.
        while (await status_of(one, tmp_path))["rest"]["shared"]["processes"] != 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        status = await one.stop()
        await two.stop()

    rest = status["rest"]
    assert rest["shared"]["processes"] == 2
    assert rest["shared"]["where"] == str(tmp_path / "perpline.db-budget")
    assert rest["shared"]["away"] == ""
    assert (rest["weight_limit"], rest["weight_budget"]) == (2400, 1920)
    assert sum(entry["requests"] for entry in rest["by_priority"].values()) == rest["requests_total"] > 0

    samples = {
        (sample.name, sample.labels.get("priority")): sample.value
        for family in text_string_to_metric_families(metrics(status).decode())
        for sample in family.samples
    }
    assert samples["perpline_rest_budget_processes", None] == 2
    assert samples["perpline_rest_budget_away", None] == 0
    assert samples["perpline_rest_priority_weight_allowed", "heal"] == 1824
    for priority, entry in rest["by_priority"].items():
        assert samples["perpline_rest_requests_total", priority] == entry["requests"]
        assert samples["perpline_rest_waiting", priority] == entry["waiting"]
