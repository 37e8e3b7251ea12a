"""What it costs to decide on more than one machine: collectors and inference workers beside one process."""

import asyncio
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np

from bench import servers
from bench.processes import Worker, exchange_time_ms, simulated_exchange
from bench.results import Table
from perpline.bus.feature_stream import FORMAT, FeatureBatch, FeatureRow, decoded, encoded
from perpline.cli.options import run_loop
from perpline.domain.candle import MINUTE_MS, last_boundary
from perpline.features import kernel
from perpline.inference.registry import load_default
from perpline.storage.postgres import PostgresStore

LAST_CLOSE_S = 12.0
"""Left for the last minute's decisions before the workers are stopped."""
ROWS_PER_ENTRY = 30

Say = Callable[[str], None]


def shards(
    symbols: int, minutes: int, together: int, closes: int, postgres_url: str | None, redis_url: str | None, say: Say
) -> list[Table]:
    with servers.postgres(postgres_url) as postgres, servers.redis(redis_url) as redis:
        about = (f"{postgres.about}; {redis.about}.",)
        if postgres.url is None or redis.url is None:
            return [Table("Shards", ("not measured",), [], about)]
        return [
            Table(
                f"{symbols} symbols, processes on one machine, speed 1",
                ("who", "decisions", "heard → store p50", "p99", "max", "close_to_signal p50", "p99", "CPU s"),
                _processes(symbols, minutes, postgres, redis.url, say),
                (
                    "Milliseconds of wall time. Side by side on one simulated exchange, with a database each. "
                    "heard → store: of every decision, from the receipt of that symbol's closing frame until it was "
                    "handed to the store. close_to_signal: the slower worker's. CPU: of all processes of the row, from "
                    "start to stop.",
                    *about,
                ),
            ),
            Table(
                f"{together} symbols closing at once, everything in one event loop",
                ("who", "minutes", "last frame → all committed p50", "p99", "max"),
                _together(together, closes, postgres, redis.url, say),
                (
                    "Milliseconds. Two collectors, two inference workers, one thread: an upper bound of what the "
                    f"way over the stream adds. {ROWS_PER_ENTRY} rows an entry.",
                ),
            ),
            _codec(say),
        ]


def _processes(symbols: int, minutes: int, postgres: servers.Server, redis_url: str, say: Say) -> list[tuple[Any, ...]]:
    with (
        tempfile.TemporaryDirectory(prefix="perpline-bench-") as name,
        servers.database(postgres) as alone,
        servers.database(postgres) as shared,
        ExitStack() as stack,
    ):
        folder = Path(name)
        say("starting the exchange")
        exchange = stack.enter_context(simulated_exchange(symbols, 1.0, folder))
        one = {"database_url": alone, "redis_url": redis_url, "slot": "bench-one"}
        many = {"database_url": shared, "redis_url": redis_url, "slot": "bench-many"}
        say("starting the workers")
        roles = {
            "one": ((), one),
            "c1": (("--role", "collector", "--shard", "1/2"), many),
            "c2": (("--role", "collector", "--shard", "2/2"), many),
            "i1": (("--role", "inference"), many),
            "i2": (("--role", "inference"), many),
        }
        running = {
            each: stack.enter_context(Worker(exchange, folder / each, *options, **changes))
            for each, (options, changes) in roles.items()
        }
        for worker in running.values():
            worker.wait_ready()
        now = exchange_time_ms(exchange)
        first = last_boundary(now) + MINUTE_MS
        last = first + (minutes - 1) * MINUTE_MS
        say(f"{minutes} minutes")
        time.sleep((last - now) / 1000 + LAST_CLOSE_S)
        cpu = {each: worker.cpu_s() for each, worker in running.items()}
        status = {each: running[each].stop() for each in ("c1", "c2", "i1", "i2", "one")}
        rows = []
        for who, url, members in (("one process", alone, ["one"]), ("2 collectors, 2 inference", shared, ["i1", "i2"])):
            taken = asyncio.run(_taken_ms(url, first, last))
            if len(taken) != symbols * minutes:
                raise RuntimeError(f"{who}: {len(taken)} decisions of {symbols * minutes}")
            ours = [status[each]["decisions"]["close_to_signal_ms"] for each in members]
            processes = members if members == ["one"] else ["c1", "c2", *members]
            rows.append(
                (
                    who,
                    len(taken),
                    *(round(float(np.quantile(taken, q)), 2) for q in (0.5, 0.99, 1.0)),
                    *(round(max(each[key] for each in ours), 2) for key in ("p50", "p99")),
                    round(sum(cpu[each] for each in processes), 1),
                )
            )
        return rows


async def _taken_ms(url: str, first: int, last: int) -> list[float]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            "SELECT (t_commit - t_candle_recv) / 1000.0 FROM signals "
            "WHERE close_time BETWEEN $1 AND $2 AND status <> 'skipped_missed'",
            first,
            last,
        )
    finally:
        await connection.close()
    return [float(row[0]) for row in rows]


def _together(symbols: int, closes: int, postgres: servers.Server, redis_url: str, say: Say) -> list[tuple[Any, ...]]:
    sharing = servers.tests_module("sharing")
    model = load_default()

    async def main(stop: asyncio.Event) -> list[tuple[Any, ...]]:
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perpline-bench-")))
            urls = [stack.enter_context(servers.database(postgres)) for _ in range(2)]
            stores = [PostgresStore(url) for url in (urls[0], urls[1], urls[1])]
            for store in stores:
                await store.open()
                stack.push_async_callback(store.close)
            say("filling the windows")
            market = sharing.FramedMarket(symbols, model.lookback_min + 10)
            clock = sharing.SteppedClock(sharing.T0 - 30_000)
            common = {"slot": "bench-together", "redis_url": redis_url, "database_url": urls[1]}
            plain = sharing.role_settings(folder, slot="bench-together", symbols=market.symbols)
            clock.put(sharing.T0 - 30_000)  # filling windows takes minutes, and nothing may be missed meanwhile
            one = await sharing.make_process(plain, clock, stores[0], market, model)
            collectors = []
            for shard in ("1/2", "2/2"):
                settings = sharing.role_settings(
                    folder, symbols=market.symbols, role="collector", shard=shard, **common
                )
                stream = sharing.FeatureStream(redis_url, "bench-together")
                await stream.open()
                stack.push_async_callback(stream.close)
                clock.put(sharing.T0 - 30_000)
                collectors.append(await sharing.make_process(settings, clock, stores[1], market, model, stream))
                await collectors[-1].sender.say()
            settings = sharing.role_settings(folder, symbols=market.symbols, role="inference", **common)
            for name, store in (("a", stores[1]), ("b", stores[2])):
                await stack.enter_async_context(
                    sharing.deciding_member(
                        redis_url, settings, clock, store, model, name, leads=name == "a", claim_after_s=3.0
                    )
                )
            taken: dict[str, list[float]] = {"one process": [], "2 collectors, 2 inference": []}
            for number in range(closes):
                say(f"minute {number + 1} of {closes}")
                before, closing = market.next_minute()
                for (who, times), parts, store in zip(
                    taken.items(), ([one], collectors), (stores[0], stores[1]), strict=True
                ):
                    clock.put(market.open_time - 90)
                    for each in parts:
                        sharing.hear(each, before, clock)
                    clock.put(market.open_time + 300)
                    for each in parts:
                        sharing.hear(each, closing, clock)
                    began = time.perf_counter()
                    await asyncio.gather(*(each.engine.drain() for each in parts))
                    while (
                        len(await store.decision_rows("bench-together", market.open_time, market.open_time)) < symbols
                    ):
                        if time.perf_counter() - began > 30:
                            raise RuntimeError(f"{who}: not decided in 30 s")
                        await asyncio.sleep(0.002)
                    times.append((time.perf_counter() - began) * 1000)
            return [
                (who, closes, *(round(float(np.quantile(times, q)), 1) for q in (0.5, 0.99, 1.0)))
                for who, times in taken.items()
            ]

    try:
        return run_loop(main)
    finally:
        servers.delete_slot(redis_url, "bench-together")


def _codec(say: Say) -> Table:
    say("codec")
    sharing = servers.tests_module("sharing")
    market = sharing.FramedMarket(4, 0)
    before, closing = market.next_minute()
    decode = sharing.decode
    mark, book = (decode(frame, 1).content for frame in before[:2])
    row = FeatureRow("BTCUSDT", bytes(4 * kernel.WIDTH), 1441, False, 0, 1, mark, book, sharing.candle_of(closing[0]))
    batch = FeatureBatch(FORMAT, market.open_time, 1, 2, "0" * 16, 1, [row] * ROWS_PER_ENTRY)
    data = encoded(batch)
    times = {}
    for name, call in (("encode", lambda: encoded(batch)), ("decode", lambda: decoded(data, kernel.WIDTH))):
        began = time.perf_counter()
        for _ in range(2000):
            call()
        times[name] = (time.perf_counter() - began) / 2000 * 1e6
    return Table(
        "An entry of the stream",
        ("rows", "bytes", "bytes a row", "encode µs", "decode µs"),
        [(ROWS_PER_ENTRY, len(data), round(len(data) / ROWS_PER_ENTRY), *(round(each, 1) for each in times.values()))],
    )
