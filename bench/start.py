"""How long a worker takes to be ready, with a cold and a warm store, and what memory it then has."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.processes import NotReady, Worker, simulated_exchange
from bench.results import Table

SETTLING_S = 2.0


def start(symbols: Sequence[int], limit_s: float, say: Callable[[str], None]) -> list[Table]:
    """One cold and one warm start for each number of symbols."""
    rows: list[tuple[str | float | int | None, ...]] = []
    notes = [
        "From the start of the process (`perpline run`, WebSocket) until every stream had delivered and every window "
        "was full. Simulated exchange at speed 1, in a process beside it; SQLite, in-process bus, default settings.",
        f"Memory {SETTLING_S:g} s after that. cold: an empty folder; every window is asked of REST, and the exchange's "
        "weight limit has its say. warm: the same folder, seconds later.",
    ]
    for count in symbols:
        with tempfile.TemporaryDirectory(prefix="perpline-bench-") as name:
            folder = Path(name)
            say(f"{count} symbols: starting the exchange")
            with simulated_exchange(count, 1.0, folder) as exchange:
                for store in ("cold", "warm"):
                    say(f"{count} symbols, {store} store")
                    with Worker(exchange, folder / "worker") as worker:
                        try:
                            ready_s = worker.wait_ready(limit_s)
                        except NotReady as error:
                            notes.append(f"{count} symbols, {store}: {error}")
                            rows.append((count, store, None, None, None, None, None))
                            break
                        time.sleep(SETTLING_S)
                        now_mb, peak_mb = worker.memory_mb()
                        status = worker.stop()
                    requests = status["rest"]["requests_total"]
                    rows.append((count, store, round(ready_s, 2), status["ready_after_s"], requests, now_mb, peak_mb))
    columns = ("symbols", "store", "ready s", "of it after imports s", "REST requests", "memory MB", "peak MB")
    return [Table("Start and memory", columns, rows, tuple(notes))]
