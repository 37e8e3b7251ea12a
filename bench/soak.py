"""All drills with many seeds, in parts: each result is a line in a file, and what has passed is not played again.

Also the memory of a worker over an accelerated day.
"""

import asyncio
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import perpline
from bench.processes import simulated_exchange
from bench.results import Table
from perpline.common.config import state_folder
from perpline.drill.drills import DRILLS
from perpline.drill.forge import new_forge
from perpline.drill.running import Result, play_all
from perpline.drill.scene import Servers
from perpline.drill.worker import WorkerProcess

LEDGER = "soak.jsonl"
COUNTS = ("candles_lost", "decisions_lost", "decisions_twice", "orders_twice", "skipped_excused")
DAY_MINUTES = 1440
WARM_UP_SHARE = 0.25
"""Of the samples, which the slope does not look at: caches fill, and the allocator finds its size."""


def ledger() -> Path:
    """Where the results of a soak are kept from part to part."""
    return state_folder(os.environ) / LEDGER


def soak(seeds: Sequence[int], jobs: int, path: Path, say: Callable[[str], None]) -> list[Table]:
    """Play what has not passed of these seeds, and the table of all that was ever played."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        played = {(each["name"], each["seed"]) for each in _latest(path) if each["result"] != "FAIL"}
        wanted = [drill for drill in DRILLS.values() if (drill.name, seed) not in played]
        left, code = len(wanted), state_of_code()

        def ended(result: Result, seed: int = seed, code: str = code) -> None:
            nonlocal left
            left -= 1
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"seed": seed, "code": code, **result.as_json()}) + "\n")
            say(f"seed {seed}: {left} drills left")

        if wanted:
            asyncio.run(_play(wanted, seed, jobs, ended))
    return [soak_table(_read(path))]


def state_of_code() -> str:
    """The first digits of a hash of every source file of perpline: which state of the code was played."""
    sources = Path(perpline.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(sources.rglob("*.py")):
        digest.update(file.relative_to(sources).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:8]


def soak_table(results: Sequence[dict[str, Any]]) -> Table:
    """One row a drill: the last result of each seed counts, and earlier failures are named."""
    latest = {(each["name"], each["seed"]): each for each in results}
    rows: list[tuple[str | float | int | None, ...]] = []
    for name in DRILLS:
        own = [each for (drill, _), each in latest.items() if drill == name and each["result"] != "SKIP"]
        if not own:
            continue
        heals = [each["seconds_to_heal"] for each in own if each["seconds_to_heal"] is not None]
        sums = [sum(each.get(count) or 0 for each in own) for count in COUNTS]
        passed = sum(each["result"] == "PASS" for each in own)
        slowest = max(each["seconds"] for each in own)
        rows.append((name, len(own), passed, *sums, max(heals, default=None), slowest))
    seeds = sorted({seed for _, seed in latest})
    failed = [f"{each['name']} --seed {each['seed']} (code {each['code']}): {each['reason']}"
              for each in results if each["result"] == "FAIL"]  # fmt: skip
    states = Counter(each["code"] for each in latest.values())
    skipped = sorted({name for (name, _), each in latest.items() if each["result"] == "SKIP"})
    notes = [
        f"{len(seeds)} seeds ({', '.join(map(str, seeds))}), {len(latest)} runs; `perpline drill NAME --seed N` "
        "repeats one.",
        "heal: the longest, wall seconds from the end of the fault until the worker said that nothing was wrong and "
        "every minute was decided. Skips excused: minutes skipped while process or exchange were down and just after "
        "(docs/drills.md); any other skip is a failure.",
        f"states of the code (hash of its sources): {', '.join(f'{code} {n} runs' for code, n in states.items())}.",
        *(f"failed once, and counted only where it was not played again: {each}" for each in failed),
        *([f"not played here for want of a server: {', '.join(skipped)}"] if skipped else []),
    ]
    columns = ("drill", "runs", "passed", "candles lost", "decisions lost", "decisions twice", "orders twice",
               "skips excused", "heal s", "longest s")  # fmt: skip
    return Table("Drills", columns, rows, tuple(notes))


def memory(minutes: float, symbols: int, speed: float, say: Callable[[str], None]) -> list[Table]:
    """Resident memory of a worker on a market at `speed` for so many wall minutes; 24 at speed 60 are a day."""
    with tempfile.TemporaryDirectory(prefix="perpline-bench-") as name:
        folder = Path(name)
        with simulated_exchange(symbols, speed, folder) as exchange:
            samples = asyncio.run(_sampled(exchange, folder, symbols, speed, minutes, say))
    at_s, resident, own = np.array(samples).T
    late = at_s >= at_s[-1] * WARM_UP_SHARE
    rows = []
    for what, mb in (("resident", resident), ("of it its own", own)):
        per_s = float(np.polyfit(at_s[late], mb[late], 1)[0]) if late.sum() > 1 else 0.0
        rows.append((
            what, symbols, round(minutes * speed / 60, 2), round(float(mb[0]), 1), round(float(mb[late][0]), 1),
            round(float(mb[-1]), 1), round(float(mb.max()), 1), round(per_s * 3600, 2),
            round(per_s * 86_400 / speed, 2),
        ))  # fmt: skip
    return [
        Table(
            "Memory of a worker",
            (
                "memory", "symbols", "market hours", "ready MB", "warm MB", "end MB", "peak MB", "MB/h of wall",
                "MB/day of market",
            ),
            rows,
            (
                f"Market at {speed:g} times its speed for {minutes:g} wall minutes; memory once a second.",
                f"The slope is that of a line through the samples after the first {WARM_UP_SHARE:.0%}.",
                "Its own: without pages of files (code, the database read by mmap) that the system may take back.",
            ),
        )
    ]  # fmt: skip


async def _sampled(
    exchange: Any, folder: Path, symbols: int, speed: float, minutes: float, say: Callable[[str], None]
) -> list[tuple[float, float, float]]:
    """Wall seconds, resident MB, and of these the process's own, once a second."""
    import aiohttp

    forge = new_forge()
    worker = WorkerProcess(
        forge, folder / "worker",
        {
            "network": "custom", "binance_futures_ws_url": exchange["ws"], "binance_futures_rest_url": exchange["http"],
            "symbols": f"top:{symbols}", "clock_speed": speed, "data_dir": str(folder / "worker"), "status_port": 0,
            "log_format": "json", "log_level": "warning",
        },
        {},
    )  # fmt: skip
    loop = asyncio.get_running_loop()
    samples: list[tuple[float, float, float]] = []
    await worker.start()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            await worker.ready(session, 60.0)
        began = loop.time()
        while (passed := loop.time() - began) < minutes * 60:
            if not worker.is_alive:
                raise RuntimeError(f"the worker cannot be measured: {worker.last_words()}")
            samples.append((passed, *_memory_mb(worker.pid)))
            if len(samples) % 5 == 1:
                say(f"{passed * speed / 3600:.1f} h of market, {samples[-1][1]:.0f} MB")
            await asyncio.sleep(1.0)
        await worker.stop()
    finally:
        await worker.end()
        await forge.close()
    return samples


def _memory_mb(pid: int) -> tuple[float, float]:
    """Resident memory of a process, and what of it is its own and not pages of files."""
    _, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    page_mb = os.sysconf("SC_PAGE_SIZE") / 1e6
    return resident * page_mb, (resident - shared) * page_mb


async def _play(drills: Sequence[Any], seed: int, jobs: int, ended: Callable[[Result], None]) -> None:
    servers = Servers()
    try:
        await play_all(drills, seed, jobs=jobs, servers=servers, ended=ended)
    finally:
        await servers.close()


def _latest(path: Path) -> Iterable[dict[str, Any]]:
    return {(each["name"], each["seed"]): each for each in _read(path)}.values()


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):  # one that was torn by a kill
            found.append(json.loads(line))
    return found
