"""What listeners of /events cost: closes of a lively market without any, with one, and with as many as there may be."""

import asyncio
import gc
import json
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from bench.close import (
    FIRST_CLOSE_MS,
    TRAFFIC,
    Market,
    Measured,
    SteppedClock,
    TimedStore,
    close_a_minute,
    fill_windows,
    traffic,
)
from bench.frames import Tape
from bench.processes import ROOT
from bench.results import Table
from bench.route import make_instruments
from perpline.bootstrap import make_parts, make_poller, make_rest, open_bus, open_store
from perpline.cli.options import run_loop
from perpline.common.config import load_settings
from perpline.common.telemetry import LatencyWindow
from perpline.endpoint import MOST_LISTENERS, Endpoint, token_file
from perpline.events import worker_feed
from perpline.inference.registry import Deployed, load_default
from perpline.status import parts_status

COUNTS = (0, 1, MOST_LISTENERS)
PAUSE_S = (0.2, 0.6)
"""Between two closes, wall seconds: each falls into another moment of a look at the market."""
TURN = 10
"""Closes in a turn."""


def listeners(symbols: int, closes: int, say: Callable[[str], None]) -> list[Table]:
    """The table for so many closes with each number of listeners, in turns."""
    with tempfile.TemporaryDirectory(prefix="perpline-bench-") as folder:
        rows = run_loop(lambda stop: _run(symbols, closes, Path(folder), say))
    per_second = TRAFFIC.get(symbols, symbols * 20)
    return [
        Table(
            f"Listeners of /events, {symbols} symbols",
            ("listeners", "closes", "p50", "p99", "max", "late p50", "late p99", "late max", "CPU"),
            rows,
            (
                f"close_to_signal_ms with a lively market ({per_second:,} messages a second), SQLite, memory bus; in "
                f"turns of {TURN} closes. The listeners are another process of this machine, at the lowest priority: "
                "on two busy processors they would take turns with the worker. They read all they hear.",
                "late: how much later than it wanted a task that asks for 1 ms of sleep has its turn, in ms: what a "
                "frame may wait for whoever has the loop. CPU: of the worker's process, shares of one processor.",
            ),
        )
    ]


async def _run(
    symbols: int, closes: int, folder: Path, say: Callable[[str], None]
) -> list[tuple[str | float | int | None, ...]]:
    settings = load_settings(None, {}, {"data_dir": str(folder), "database_url": f"sqlite:///{folder}/bench.db"})
    clock, tape, rng = SteppedClock(FIRST_CLOSE_MS - 30_000), Tape(symbols), random.Random(3)
    store, bus = TimedStore(open_store(settings.database_url.get_secret_value()), clock), open_bus("memory://")
    rest = make_rest(settings, clock, alone=True)
    async with AsyncExitStack() as stack:
        await store.open()
        stack.push_async_callback(store.close)
        stack.push_async_callback(rest.close)
        deployed = [Deployed(settings.slot, 0, load_default())]
        instruments = make_instruments(tape.symbols)
        parts = make_parts(settings, clock, store, bus, instruments, rest, random.Random(0), deployed)
        poller = make_poller(parts, rest.at("polls"))
        feed = worker_feed(
            parts,
            None,
            lambda symbol, kind: clock.wall_s(),
            lambda: parts_status(parts, None, poller, rest.weight),
            None,
        )
        endpoint = Endpoint(
            port=0, data_dir=folder, status=dict, trouble=list, metrics=bytes, control=lambda: None, tell=feed.tell
        )
        await endpoint.open()
        stack.push_async_callback(endpoint.close)
        token = json.loads(token_file(folder, endpoint.port).read_text())["token"]
        await parts.engine.recover(parts.symbols)
        say("filling the windows")
        market = Market(tape, FIRST_CLOSE_MS - (parts.features.lookback_min + 1) * 60_000)
        fill_windows(parts, market)
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        took = {count: LatencyWindow() for count in COUNTS}
        late = {count: LatencyWindow(100_000) for count in COUNTS}
        used = dict.fromkeys(COUNTS, 0.0)
        lasted = dict.fromkeys(COUNTS, 0.0)
        async with asyncio.TaskGroup() as group:
            working = [
                group.create_task(part.run()) for part in (parts.engine, parts.publisher, parts.buffer, parts.ledger)
            ]
            working.append(group.create_task(traffic(parts, tape, clock, TRAFFIC.get(symbols, symbols * 20))))
            for turn in range(-(-closes // TURN)):
                for count in COUNTS:
                    say(f"{count} listeners, turn {turn + 1}")
                    url = f"http://127.0.0.1:{endpoint.port}/events"
                    async with _listening(url, token, count):
                        await _until(lambda wanted=count: feed.listeners == wanted)  # type: ignore[misc]
                        measuring = asyncio.create_task(_measure_turns(late[count]))
                        began = time.process_time(), time.monotonic()
                        for _ in range(TURN):
                            await clock.sleep_wall(rng.uniform(*PAUSE_S))
                            before = parts.engine.close_to_signal_ms.count
                            await close_a_minute(parts, store, clock, market, Measured(LatencyWindow()))
                            await _until(lambda seen=before: parts.engine.close_to_signal_ms.count > seen)  # type: ignore[misc]
                            took[count].add(parts.engine.close_to_signal_ms.last or 0.0)
                        used[count] += time.process_time() - began[0]
                        lasted[count] += time.monotonic() - began[1]
                        measuring.cancel()
                    await _until(lambda: feed.listeners == 0)
            for task in working:
                task.cancel()
    return [
        (
            count,
            took[count].count,
            *(_rounded(took[count].quantile(q)) for q in (0.5, 0.99, 1.0)),
            *(_rounded(late[count].quantile(q)) for q in (0.5, 0.99, 1.0)),
            round(used[count] / lasted[count], 3),
        )
        for count in COUNTS
    ]


@asynccontextmanager
async def _listening(url: str, token: str, count: int) -> AsyncIterator[None]:
    """So many listeners in a process of their own."""
    if not count:
        yield
        return
    command = ["nice", "-n", "19", sys.executable, "-m", "bench.listening", url, token, str(count)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        yield
    finally:
        process.kill()
        await process.wait()


async def _measure_turns(late: LatencyWindow) -> None:
    while True:
        wanted = time.perf_counter() + 0.001
        await asyncio.sleep(0.001)
        late.add((time.perf_counter() - wanted) * 1000)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30.0):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def _rounded(ms: float | None) -> float | None:
    return None if ms is None else round(ms, 3)
