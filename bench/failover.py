"""Seconds without a leader: from what happens to it to the standby's first decision, stored and published."""

import asyncio
import json
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
from redis.asyncio import Redis

from bench.processes import NotReady, Worker, exchange_time_ms, simulated_exchange
from bench.results import Table
from bench.servers import database, postgres, redis
from perpline.domain.candle import MINUTE_MS, last_boundary
from perpline.drill.proxy import Proxy

SYMBOLS = 30
SPEED = 4.0
BEFORE_S = 0.3
"""It happens so long before a minute closes, wall seconds: this minute is the first that the other one decides."""
HAPPENS = ("killed", "frozen", "cut off", "stopped")
LIMIT_S = 30.0

Cells = tuple[str | float | int | None, ...]
Found = tuple[float, float, int]
"""Seconds to the first decision and to the first message; decisions missed."""


def failover(tries: int, postgres_url: str | None, redis_url: str | None, say: Callable[[str], None]) -> list[Table]:
    """Each of `HAPPENS` so often, to a leader beside a standby, on PostgreSQL and Redis."""
    rows: list[Cells] = []
    with postgres(postgres_url) as server, redis(redis_url) as bus, tempfile.TemporaryDirectory() as name:
        if server.url is not None and bus.url is not None:
            for happens in HAPPENS:
                found = []
                for n in range(tries):
                    say(f"{happens}, {n + 1} of {tries}")
                    folder = Path(name) / f"{happens} {n}".replace(" ", "-")
                    folder.mkdir()
                    with (
                        database(server) as database_url,
                        # An exchange for each: none makes the next one wait for request weight.
                        simulated_exchange(SYMBOLS, SPEED, folder) as exchange,
                    ):
                        found.append(asyncio.run(_try(happens, exchange, folder, database_url, bus.url)))
                rows.append((happens, *_cells(found)))
        about = f"{server.about}; {bus.about}."
    return [
        Table(
            "Failover",
            ("the leader is", "tries", "decided s p50", "max", "heard s p50", "max", "decisions missed"),
            rows,
            (
                f"{SYMBOLS} symbols at speed {SPEED:g} (T + 30 s is {30 / SPEED:g} s), two `perpline run` beside the "
                f"exchange. {about}",
                f"It happens {BEFORE_S:g} s before a minute closes. decided: this minute has its row for every symbol, "
                "by the other process. heard: the first of its signals has come to a subscriber of Redis.",
                "killed: SIGKILL, on the same host, whose dead are not waited for; a leader killed on another host is "
                "replaced as a frozen one is. frozen: SIGSTOP. cut off: its way to the database is silent, and all "
                "else goes on. stopped: SIGTERM.",
            ),
        )
    ]


def _cells(found: list[Found]) -> Cells:
    decided, heard = [each[0] for each in found], [each[1] for each in found]
    spans = (statistics.median(decided), max(decided), statistics.median(heard), max(heard))
    return len(found), *(round(span, 2) for span in spans), sum(each[2] for each in found)


async def _try(happens: str, exchange: dict[str, Any], folder: Path, database_url: str, redis_url: str) -> Found:
    parts = urlsplit(database_url)
    socket = Path(parse_qs(parts.query).get("host", [""])[0], ".s.PGSQL.5432")

    async def dial() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if parts.hostname:
            return await asyncio.open_connection(parts.hostname, parts.port or 5432)
        return await asyncio.open_unix_connection(str(socket))

    user = parts.netloc.rpartition("@")[0] or "postgres"
    client = Redis.from_url(redis_url)
    await client.flushdb()
    listening = client.pubsub()
    await listening.psubscribe("sig.*")
    looking = await asyncpg.connect(database_url)
    try:
        async with Proxy(dial) as proxy:
            way = f"postgresql://{user}@127.0.0.1:{proxy.port}{parts.path}"
            with Worker(exchange, folder / "leader", database_url=way, redis_url=redis_url) as leader:
                await asyncio.to_thread(leader.wait_windows)
                with Worker(exchange, folder / "standby", database_url=database_url, redis_url=redis_url) as standby:
                    await asyncio.to_thread(standby.wait_windows)
                    close_time = await _shortly_before_a_close(exchange)
                    began_s = time.monotonic()
                    if happens == "cut off":
                        proxy.hang()
                    else:
                        numbers = {"killed": signal.SIGKILL, "frozen": signal.SIGSTOP, "stopped": signal.SIGTERM}
                        leader.send(numbers[happens])
                    found = await _first(close_time, began_s, looking, listening)
                leader.send(signal.SIGKILL)
            await proxy.heal()
            proxy.cut()
            await asyncio.sleep(0.1)  # for its tasks to end by themselves; cancelled ones make Python 3.11 complain
        return found
    finally:
        await looking.close()
        await listening.aclose()
        await client.aclose()


async def _shortly_before_a_close(exchange: dict[str, Any]) -> int:
    now = exchange_time_ms(exchange)
    close_time = last_boundary(now + 10_000) + MINUTE_MS
    await asyncio.sleep((close_time - now) / 1000 / SPEED - BEFORE_S)
    return close_time


async def _first(close_time: int, began_s: float, looking: Any, listening: Any) -> Found:
    decided_s: float | None = None
    heard_s: float | None = None
    statuses: list[str] = []
    while decided_s is None or heard_s is None:
        after_s = time.monotonic() - began_s
        if after_s > LIMIT_S:
            raise NotReady(f"nothing was decided or heard within {LIMIT_S:g} s: {statuses}")
        if decided_s is None:
            rows = await looking.fetch("SELECT status FROM signals WHERE close_time = $1", close_time)
            statuses = [row["status"] for row in rows]
            decided_s = after_s if len(statuses) >= SYMBOLS else None
        told = await listening.get_message(ignore_subscribe_messages=True, timeout=0.02)
        if told and heard_s is None and told["channel"] != b"sig.close" and json.loads(told["data"])["T"] >= close_time:
            heard_s = time.monotonic() - began_s
    return decided_s, heard_s, statuses.count("skipped_missed")
