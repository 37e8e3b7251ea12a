"""The earlier design's table: the worker fed by WebSocket and the one fed by REST, side by side on one exchange."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import numpy as np

from bench.processes import Worker, exchange_time_ms, simulated_exchange
from bench.results import Table
from perpline.domain.candle import MINUTE_MS, last_boundary

LAST_CLOSE_MS = 15_000
"""Market time left for the last minute's decisions before the workers are stopped."""


def workers(symbols: int, minutes: int, speed: float, say: Callable[[str], None]) -> list[Table]:
    """Both workers for so many closes, counted from the first one after both were ready."""
    with tempfile.TemporaryDirectory(prefix="perpline-bench-") as name:
        folder = Path(name)
        say("starting the exchange")
        with (
            simulated_exchange(symbols, speed, folder) as exchange,
            Worker(exchange, folder / "ws") as by_socket,
            Worker(exchange, folder / "rest", "--rest") as by_rest,
        ):
            say("waiting for both workers")
            for worker in (by_socket, by_rest):
                worker.wait_ready()
            now = exchange_time_ms(exchange)
            first = last_boundary(now) + MINUTE_MS
            last = first + (minutes - 1) * MINUTE_MS
            say(f"{minutes} minutes at speed {speed:g}")
            time.sleep((last + LAST_CLOSE_MS - now) / 1000 / speed)
            rows = [
                _row(name, worker, worker.stop(), symbols, first, last)
                for name, worker in (("WebSocket", by_socket), ("REST every 5 s", by_rest))
            ]
    return [
        Table(
            f"Both workers, {symbols} symbols",
            (
                "worker",
                "decisions a minute",
                "of a symbol",
                "T → heard p50",
                "T → decision p50",
                "p99",
                "max",
                "heard → published p50, wall",
                "p99, wall",
                "API calls a minute",
            ),
            rows,
            (
                f"{minutes} closes at speed {speed:g}: both workers and the exchange on this machine, each worker with "
                "its own SQLite file. A minute and the times from T, in ms, are market time; the columns called wall "
                f"are not, and {speed:g} times as much in market time.",
                "The simulated exchange sends closing frames 100 to 2000 ms after T, as the real one does: that is in "
                "every time from T. decision: handed to the store. heard → published: the worker's close_to_signal_ms, "
                "from a batch's last symbol to the bus, commit included.",
                "API calls: klines, polls and clock together.",
            ),
        )
    ]


def _row(
    name: str, worker: Worker, status: dict[str, Any], symbols: int, first: int, last: int
) -> tuple[str | float | int | None, ...]:
    connection = apsw.Connection(str(worker.database), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        found = connection.execute(
            "SELECT close_time, t_candle_recv, t_commit FROM signals "
            "WHERE close_time BETWEEN ? AND ? AND status <> 'skipped_missed'",
            (first, last),
        ).fetchall()
    finally:
        connection.close()
    minutes = (last - first) // MINUTE_MS + 1
    if not found:
        raise RuntimeError(f"{name}: no decision in {minutes} minutes")
    close_ms, heard_us, decided_us = np.array(found, np.int64).T
    offset_ms = status["clock_offset_ms"]
    heard_ms = heard_us / 1000 + offset_ms - close_ms
    decided_ms = decided_us / 1000 + offset_ms - close_ms
    ours_ms = status["decisions"]["close_to_signal_ms"]
    calls = [n for minute, n in status["rest"]["requests_by_minute"].items() if first <= int(minute) < last]
    return (
        name,
        round(len(found) / minutes, 2),
        round(len(found) / minutes / symbols, 3),
        round(float(np.median(heard_ms))),
        *(round(float(np.quantile(decided_ms, q))) for q in (0.5, 0.99, 1.0)),
        ours_ms["p50"],
        ours_ms["p99"],
        round(sum(calls) / len(calls), 1) if calls else None,
    )
