"""From a server's send to a value that can be read, at fixed rates, and what a message costs."""

import asyncio
import gc
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bench.paced import FIRST_ID, sent_us
from bench.processes import sender
from bench.results import Table
from bench.route import CONNECTION_LIMIT_S, check_routed, make_bench_parts, make_connection
from perpline.bootstrap import Parts
from perpline.cli.options import run_loop
from perpline.exchange.binance import endpoints

READS_PER_S = 2_000
WARMING = 0.1
"""This share of a turn's messages is not counted."""
HELD = 0.98
"""A rate counts as held if so much of it was reached."""


def latency(symbols: int, rates: Sequence[int], seconds: float, rounds: int, say: Callable[[str], None]) -> list[Table]:
    """The table for so many symbols: `rounds` turns of `seconds` for each rate and way of keeping books."""
    rows: list[tuple[str | float | int | None, ...]] = []
    with tempfile.TemporaryDirectory(prefix="perpline-bench-") as folder:
        ways = {
            "kept as bytes": make_bench_parts(symbols, Path(folder), book_minutes=False),
            "every frame decoded": make_bench_parts(symbols, Path(folder)),
        }
        with sender("bench.paced", symbols) as (port, zero_ns):
            for rate in rates:
                readings: dict[str, list[_Reading]] = {way: [] for way in ways}
                for number in range(rounds):
                    for way, parts in ways.items():
                        say(f"{symbols} symbols, {rate:,}/s, round {number + 1} of {rounds}: {way}")
                        readings[way].append(_measure(parts, port, zero_ns, rate, round(rate * seconds), seed=number))
                rows += [_row(way, rate, turns) for way, turns in readings.items()]
    return [
        Table(
            f"Sent → can be read, {symbols} symbols",
            ("book tickers", "k msg/s", "reached", "p50 µs", "p99 µs", "p99.9 µs", "max µs", "CPU µs/msg", "reads"),
            rows,
            (
                f"{symbols} symbols, 92 % bookTicker, 5 % markPrice, 3 % kline on one connection; the sender, another "
                "process, sends what is due once a millisecond and stamps it just before. "
                f"{rounds} × {seconds:g} s in turns; the first {WARMING:.0%} of each are not counted.",
                f"After each read of the socket the newest book of a random sample of its messages, {READS_PER_S:,} a "
                "second, is read by `books.get`: the latency ends when it has returned. CPU: the receiving process, "
                "these reads included.",
                *(
                    f"{row[0]}, {row[1]:g} k/s: the rate was NOT held."
                    for row in rows
                    if isinstance(row[2], float) and row[2] < row[1] * HELD  # type: ignore[operator]
                ),
            ),
        )
    ]


class _Reading:
    """A turn: routes what comes, and reads a sample of it back."""

    def __init__(self, parts: Parts, zero_ns: int, rate: int, messages: int, rng: random.Random) -> None:
        self.latencies_us: list[float] = []
        self.heard = 0
        self.complete = asyncio.Event()
        self.wall_s = self.cpu_s = 0.0
        self.counted = 0
        self._began: tuple[float, float, int] | None = None
        self._route = parts.router.route_batch
        self._book = parts.books.get
        self._symbols = {endpoints.stream_name(symbol, "bookTicker").encode(): symbol for symbol in parts.symbols}
        self._messages = messages
        self._every = max(1, rate // READS_PER_S)
        self._zero_ns = zero_ns
        self._rng = rng

    def on_messages(self, batch: list[bytes], received_us: int, source: int) -> set[str]:
        streams = self._route(batch, received_us, source)
        self.heard += len(batch)
        if self._began is not None:
            self._read(batch)
        elif self.heard >= self._messages * WARMING:
            self._began = time.perf_counter(), time.process_time(), self.heard
        if self.heard >= self._messages and self._began is not None:
            wall, cpu, before = self._began
            self.wall_s, self.cpu_s = time.perf_counter() - wall, time.process_time() - cpu
            self.counted = self.heard - before
            self.complete.set()
        return streams

    def _read(self, batch: list[bytes]) -> None:
        for data in batch[self._rng.randrange(self._every) :: self._every]:
            symbol = self._symbols.get(data[11 : data.index(b'"', 11)])  # behind {"stream":"
            if symbol is None:
                continue  # no book ticker
            book = self._book(symbol)
            assert book is not None
            assert book.update_id > FIRST_ID
            self.latencies_us.append((time.monotonic_ns() - self._zero_ns) / 1000 - sent_us(book.update_id))


def _measure(parts: Parts, port: int, zero_ns: int, rate: int, messages: int, seed: int) -> _Reading:
    before = parts.router.total

    async def main(stop: asyncio.Event) -> _Reading:
        reading = _Reading(parts, zero_ns, rate, messages, random.Random(seed))
        connection = make_connection(f"ws://127.0.0.1:{port}/{rate}/{messages}", parts, reading.on_messages)
        gc.collect()
        gc.freeze()  # as a worker does when it is ready
        running = asyncio.create_task(connection.run())
        try:
            async with asyncio.timeout(CONNECTION_LIMIT_S):
                await reading.complete.wait()
        finally:
            running.cancel()
            gc.unfreeze()
        return reading

    reading = run_loop(main)
    check_routed(parts, parts.router.total - before, messages)
    return reading


def _row(way: str, rate: int, turns: list[_Reading]) -> tuple[str | float | int | None, ...]:
    latencies = np.concatenate([turn.latencies_us for turn in turns])
    messages = sum(turn.counted for turn in turns)
    return (
        way,
        rate / 1000,
        round(messages / sum(turn.wall_s for turn in turns) / 1000, 2),
        *(round(float(np.quantile(latencies, q)), 1) for q in (0.5, 0.99, 0.999, 1.0)),
        round(sum(turn.cpu_s for turn in turns) / messages * 1e6, 2),
        len(latencies),
    )
