"""A process that asks a simulated exchange as fast as its weight ledger lets it, and says how that went.

    python asking.py '{"url": …, "speed": …, "shared": ["SqliteText", PATH], "name": …, "limit": …, "seconds": …,
                       "polls": how many ask at once, "poll_pause_s": …, "heal_every_s": …}'

Prints a line when it begins, and at the end, after those seconds or at SIGTERM, one JSON object.
"""

import asyncio
import contextlib
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from perpline.bus.redis_text import RedisText
from perpline.common.clock import SystemClock
from perpline.common.errors import RateLimited, Unavailable
from perpline.common.telemetry import LatencyWindow
from perpline.exchange.binance.budget import SharedText
from perpline.exchange.binance.rest import BinanceRest
from perpline.exchange.binance.weight import WeightLedger
from perpline.storage.shared_text import PostgresText, SqliteText


def shared_text(kind: str, where: str) -> SharedText:
    if kind == "SqliteText":
        return SqliteText(Path(where), "budget")
    return RedisText(where, "budget") if kind == "RedisText" else PostgresText(where, "budget")


async def main(how: dict[str, Any]) -> dict[str, Any]:
    first = BinanceRest(how["url"], SystemClock(), WeightLedger(SystemClock()))
    clock = SystemClock(how["speed"], anchor_ms=await first.server_time())
    await first.close()
    ledger = WeightLedger(clock, limit=how["limit"], shared=shared_text(*how["shared"]), name=how["name"])
    rest = BinanceRest(how["url"], clock, ledger)
    clock.offset_ms = await rest.measure_offset_ms()
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    print("asking", flush=True)
    refused, stopped, given_back = [], 0, 0
    heal_waits = LatencyWindow(100_000)
    until = time.monotonic() + how["seconds"]

    async def ask(view: BinanceRest) -> None:
        nonlocal stopped, given_back
        try:
            await view.server_time()
        except RateLimited as error:
            if "HTTP" in str(error):
                refused.append(str(error))
            else:
                stopped += 1
            await asyncio.sleep(0.02)
        except Unavailable:
            given_back += 1

    async def poll() -> None:
        while time.monotonic() < until:
            await ask(rest.at("polls"))
            await asyncio.sleep(how.get("poll_pause_s", 0))

    async def heal() -> None:
        while time.monotonic() < until:
            await asyncio.sleep(how["heal_every_s"])
            began = time.monotonic()
            await ask(rest)
            heal_waits.add((time.monotonic() - began) * 1000)

    tasks = [asyncio.create_task(poll()) for _ in range(how["polls"])]
    if how.get("heal_every_s"):
        tasks.append(asyncio.create_task(heal()))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(told.wait(), how["seconds"])
    facts = ledger.facts()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await rest.close()
    return {
        "refused": refused,
        "stopped": stopped,
        "given_back": given_back,
        "heals": heal_waits.count,
        "heal_ms": {**heal_waits.summary(), "longest": heal_waits.quantile(1)},
        "requests_by_minute": facts["requests_by_minute"],
        "shared": facts["shared"],
        "by_priority": facts["by_priority"],
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(json.loads(sys.argv[1])))))
