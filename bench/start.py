"""How long a worker takes to be ready, with a cold and a warm store, and what memory it then has."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.processes import NotReady, Worker, simulated_exchange
from bench.results import Table

SETTLING_S = 2.0
WINDOWS_LIMIT_S = 240.0


def start(symbols: Sequence[int], limit_s: float, say: Callable[[str], None]) -> list[Table]:
    """One cold and one warm start for each number of symbols; whoever is not ready after `limit_s` is not waited for,
    once its windows are full."""
    rows: list[tuple[str | float | int | None, ...]] = []
    for count in symbols:
        with tempfile.TemporaryDirectory(prefix="perpline-bench-") as name:
            folder = Path(name)
            for store in ("cold", "warm"):
                say(f"{count} symbols, {store} store")
                # Each time an exchange of its own, of the same seed and so the same market: what the cold start used
                # of the weight limit would make the warm one wait.
                with simulated_exchange(count, 1.0, folder) as exchange, Worker(exchange, folder / "worker") as worker:
                    rows.append((count, store, *_measure(worker, limit_s)))
    return [
        Table(
            "Start and memory",
            ("symbols", "store", "windows s", "ready s", "REST requests", "memory MB", "peak MB"),
            rows,
            (
                "Seconds from the start of the process (`perpline run`, WebSocket), Python's imports included. "
                "Simulated exchange at speed 1, in a process beside it; SQLite, in-process bus, default settings.",
                "cold: an empty folder; every window is asked of REST, within the exchange's weight limit. warm: the "
                "same folder, seconds later, weight unused.",
                "windows: every 1m window is full, so that the next close can be decided.",
                "ready: each of the five streams of each symbol has delivered, too. A kline stream speaks when there "
                f"is a trade, so the quietest symbol decides; not waited for beyond {limit_s:g} s.",
                f"Memory {SETTLING_S:g} s after that. REST requests: until then, polls included.",
            ),
        )
    ]


def _measure(worker: Worker, limit_s: float) -> tuple[str | float | int | None, ...]:
    windows_s = worker.wait_windows(WINDOWS_LIMIT_S)
    ready_s: str | float
    try:
        ready_s = round(worker.wait_ready(max(limit_s, windows_s)), 2)
    except NotReady:
        ready_s = f"> {max(limit_s, windows_s):.0f}"
    time.sleep(SETTLING_S)
    now_mb, peak_mb = worker.memory_mb()
    return round(windows_s, 2), ready_s, worker.stop()["rest"]["requests_total"], now_mb, peak_mb
