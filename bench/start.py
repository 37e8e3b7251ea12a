"""How long a worker takes to be ready with a cold or a warm store, to its first decision after a kill; its memory."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.processes import NotReady, Worker, exchange_time_ms, simulated_exchange
from bench.results import Table
from perpline.domain.candle import MINUTE_MS, last_boundary

SETTLING_S = 2.0
WINDOWS_LIMIT_S = 240.0
BEFORE_S, AFTER_S = 2.0, 1.0
"""A worker is killed so long before a close, and the next one started so long after it."""

Cells = tuple[str | float | int | None, ...]


def start(symbols: Sequence[int], limit_s: float, say: Callable[[str], None], *, kill: bool = True) -> list[Table]:
    """For each number of symbols a cold and a warm start, and with `kill` one after a kill.

    Whoever is not ready after `limit_s` is not waited for, once its windows are full.
    """
    rows: list[Cells] = []
    for count in symbols:
        with tempfile.TemporaryDirectory(prefix="perpline-bench-") as name:
            folder = Path(name)
            for store in ("cold", "warm"):
                say(f"{count} symbols, {store} store")
                # Each time an exchange of its own, of the same seed and so the same market: what the cold start used
                # of the weight limit would make the warm one wait.
                with simulated_exchange(count, 1.0, folder) as exchange, Worker(exchange, folder / "worker") as worker:
                    rows.append((count, store, *_measure(worker, limit_s)))
            if not kill:
                continue
            say(f"{count} symbols, killed")
            with simulated_exchange(count, 1.0, folder) as exchange:
                rows.append((count, "killed", *_killed(exchange, folder / "worker", limit_s)))
    return [
        Table(
            "Start and memory",
            ("symbols", "store", "windows s", "ready s", "first decision s", "REST requests", "memory MB", "peak MB"),
            rows,
            (
                "Seconds from the start of the process (`perpline run`, WebSocket), Python's imports included. "
                "Simulated exchange at speed 1, in a process beside it; SQLite, in-process bus, default settings.",
                "cold: an empty folder; every window is asked of REST, within the exchange's weight limit. warm: the "
                "same folder, seconds later, weight unused.",
                f"killed: the same folder; SIGKILL {BEFORE_S:g} s before a minute closes, the next process is started "
                f"{AFTER_S:g} s after it. first decision: this minute is decided and stored for every symbol.",
                "windows: every 1m window is full, so that the next close can be decided.",
                "ready: each of the five streams of each symbol has delivered, too. A kline stream speaks when there "
                f"is a trade, so the quietest symbol decides; not waited for beyond {limit_s:g} s.",
                f"Memory {SETTLING_S:g} s after that. REST requests: until then, polls included.",
            ),
        )
    ]


def _measure(worker: Worker, limit_s: float, close_time: int | None = None) -> Cells:
    decided_s = None if close_time is None else round(worker.wait_decided(close_time), 2)
    windows_s = None if close_time is not None else worker.wait_windows(WINDOWS_LIMIT_S)
    least_s = max(limit_s, windows_s or 0.0)
    ready_s: str | float
    try:
        ready_s = round(worker.wait_ready(least_s), 2)
    except NotReady:
        ready_s = f"> {least_s:.0f}"
    time.sleep(SETTLING_S)
    now_mb, peak_mb = worker.memory_mb()
    windows = None if windows_s is None else round(windows_s, 2)
    return windows, ready_s, decided_s, worker.stop()["rest"]["requests_total"], now_mb, peak_mb


def _killed(exchange: dict[str, Any], folder: Path, limit_s: float) -> Cells:
    with Worker(exchange, folder) as worker:
        worker.wait_windows(WINDOWS_LIMIT_S)
        now = exchange_time_ms(exchange)
        close_time = last_boundary(now + 10_000) + MINUTE_MS
        time.sleep((close_time - now) / 1000 - BEFORE_S)
        worker.kill()
    time.sleep(BEFORE_S + AFTER_S)
    with Worker(exchange, folder) as worker:
        return _measure(worker, limit_s, close_time)
