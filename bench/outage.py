"""Five minutes without a database at 600 symbols: what is held on disk, memory, and how long it takes to store it."""

import asyncio
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from bench.results import Table
from bench.servers import Server, database
from bench.servers import postgres as postgres_server
from perpline.bootstrap import SPOOL_MAY_DROP, SPOOL_RESERVED_MB, open_store
from perpline.bus.memory import MemoryBus
from perpline.collector.buffer import Buffer
from perpline.collector.spool import Spool
from perpline.common.clock import ManualClock
from perpline.common.errors import Unavailable
from perpline.domain.candle import MINUTE_MS, Candle
from perpline.domain.signal import Decision, Message, Prediction, Status, signal_id
from perpline.signals.engine import signal_message
from perpline.signals.journal import SPOOLED, Journal
from perpline.signals.publisher import Publisher
from perpline.storage.store import Committed, Fence, Row, Store, candle_row

T0 = 1_795_219_200_000
COLUMNS = 150
"""Features of a prediction."""
BATCHES = 4
"""In which a minute's decisions are committed."""
RATIOS = ("global_account", "top_account", "top_position", "taker")

Result = TypeVar("Result")


class Door:
    """What stands between the parts and the store: closed, it is away."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.closed = False

    async def add_rows(self, table: str, rows: Sequence[Row]) -> int:
        return await self._through(lambda: self.store.add_rows(table, rows))

    async def commit_decisions(
        self,
        decisions: Sequence[Decision],
        predictions: Sequence[Prediction],
        messages: Sequence[Message],
        t_commit: int,
        fence: Fence | None = None,
    ) -> Committed:
        return await self._through(
            lambda: self.store.commit_decisions(decisions, predictions, messages, t_commit, fence)
        )

    async def pending_messages(self, limit: int) -> list[Message]:
        return await self._through(lambda: self.store.pending_messages(limit))

    async def mark_published(self, ids: Sequence[int], published_at: int) -> None:
        await self._through(lambda: self.store.mark_published(ids, published_at))

    async def last_seqs(self, slot: str) -> dict[str, int]:
        return await self._through(lambda: self.store.last_seqs(slot))

    async def _through(self, call: Callable[[], Awaitable[Result]]) -> Result:
        if self.closed:
            raise Unavailable("the database is away")
        return await call()


def outage(symbols: int, minutes: int, postgres: str | None, say: Callable[[str], None]) -> list[Table]:
    """Real parts, real database, real files; the rows of each minute come at once, in the numbers of real minutes."""
    rows: list[tuple[str | float | int | None, ...]] = []
    with tempfile.TemporaryDirectory(prefix="perpline-bench-") as name:
        say("SQLite")
        rows.append(("SQLite", *asyncio.run(_outage(symbols, minutes, f"sqlite:///{name}/a.db", Path(name) / "a"))))
        with postgres_server(postgres) as server:
            if server.url is not None:
                say("PostgreSQL")
                rows.append(("PostgreSQL", *_on_postgres(server, symbols, minutes, Path(name) / "b")))
            about = server.about
    return [
        Table(
            f"A database that is away for {minutes} minutes, {symbols} symbols",
            (
                "database", "rows held", "decisions held", "published meanwhile", "spool MB", "in memory at most",
                "memory before MB", "during MB", "after MB", "replay s", "slowest commit ms",
            ),
            rows,
            (
                "Buffer, journal, publisher and spool of a worker with default settings; the bus is in the process. "
                "Accelerated: nothing waits between two minutes, but each has the rows of a real one: per symbol a 1m "
                "candle (15m and 1h where they close), mark price and book minute, three price klines, open interest, "
                f"every fifth minute five positioning rows, and a decision with {COLUMNS} features in {BATCHES} "
                "batches, each synced to disk before it is published.",
                "in memory at most: rows, at any look. during: at the end of the outage. memory: of the process.",
                "replay: until the last row and decision is in the database. slowest commit: of the decisions while "
                "the database is away.",
                about,
            ),
        )
    ]  # fmt: skip


def _on_postgres(server: Server, symbols: int, minutes: int, folder: Path) -> tuple[str | float | int | None, ...]:
    with database(server) as url:
        return asyncio.run(_outage(symbols, minutes, url, folder))


async def _outage(symbols: int, minutes: int, url: str, folder: Path) -> tuple[str | float | int | None, ...]:
    clock = ManualClock(T0)
    store = open_store(url)
    await store.open()
    door = Door(store)
    spool = Spool(folder, 1 << 30, clock, reserved={SPOOLED: SPOOL_RESERVED_MB << 20}, may_drop=SPOOL_MAY_DROP)
    await spool.open()
    bus, rng = MemoryBus(), random.Random(1)
    publisher = Publisher(
        door,
        bus,
        clock,
        rng,
        is_spooling=lambda: journal.has_kept,  # type: ignore[arg-type]
    )
    journal = Journal(door, spool, publisher, clock, "champion")  # type: ignore[arg-type]
    buffer = Buffer(door.add_rows, clock, batch_size=500, max_age_s=5.0, spool=spool)
    await journal.recover()
    names = [f"S{number:03d}USDT" for number in range(symbols)]
    features = np.random.default_rng(1).normal(size=COLUMNS).astype("<f4").tobytes()

    async def minute(n: int) -> float:
        for table, row in _rows_of(names, n):
            buffer.add(table, row)
        slowest = 0.0
        for part in range(BATCHES):
            began = time.perf_counter()
            decisions, predictions, messages = _decided(names[part::BATCHES], n, features)
            committed = await journal.commit(decisions, predictions, messages, clock.now_us())
            slowest = max(slowest, time.perf_counter() - began)
            publisher.wake(committed.messages)
            await publisher.flush()
        return slowest

    for n in range(2):
        await minute(n)
        await buffer.flush()
    before_mb = _memory_mb()
    door.closed = True
    slowest_s, most = 0.0, 0
    published = publisher.statistics().published
    for n in range(2, 2 + minutes):
        clock.set_ms(T0 + n * MINUTE_MS)
        slowest_s = max(slowest_s, await minute(n))
        most = max(most, sum(each.waiting for each in buffer.statistics().values()))
        await buffer.keep()
    during_mb = _memory_mb()
    held = journal.statistics().spooled
    published = publisher.statistics().published - published
    size_mb = spool.statistics().bytes / 1e6
    written = sum(each.written for each in buffer.statistics().values())
    door.closed = False
    began = time.perf_counter()
    await journal.store_kept()
    await publisher.flush()
    await buffer.flush()
    replay_s = time.perf_counter() - began
    rows = sum(each.written for each in buffer.statistics().values()) - written
    counts = await store.row_counts()
    if counts["signals"] != symbols * (minutes + 2) or await store.pending_messages(1) or spool.kinds:
        raise AssertionError("something was lost")
    await spool.close()
    await store.close()
    return (
        rows, held, published, round(size_mb, 1), most, before_mb, during_mb, _memory_mb(),
        round(replay_s, 2), round(slowest_s * 1000, 1),
    )  # fmt: skip


def _memory_mb() -> float | None:
    """Resident memory of this process; None where the system has no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    [line] = [line for line in lines if line.startswith("VmRSS")]
    return round(int(line.split()[1]) / 1024, 1)


def _rows_of(names: Sequence[str], n: int) -> list[tuple[str, Row]]:
    """The rows of the n-th minute."""
    start = T0 + n * MINUTE_MS
    found: list[tuple[str, Row]] = []
    for symbol in names:
        found.append(("candles_1m", candle_row(_candle(symbol, "1m", start))))
        for interval, length in (("15m", 15), ("1h", 60)):
            if (start // MINUTE_MS + 1) % length == 0:
                row = candle_row(_candle(symbol, interval, start - (length - 1) * MINUTE_MS))
                found.append((f"candles_{interval}", row))
        mark = (symbol, start, 67450.1, 67448.2, 0.0001, start + 28_800_000, 60, start + 59_000, start + 59_050)
        found.append(("premium_index", mark))
        book = (symbol, start, 67450.0, 1.25, 67450.1, 0.75, 0.015, 0.12, -3.5, 4800, 31.0, start, start + 50)
        found.append(("book_minutes", book))
        for series in ("mark", "index", "premium"):
            price = (symbol, start, 67450.0, 67455.0, 67440.0, 67451.0, "rest", start + 75_000)
            found.append((f"{series}_klines", price))
        found.append(("open_interest", (symbol, start, 81234.5, None, "spot_1m", start + 15_000, 0)))
        if n % 5 == 0:
            found.append(("open_interest", (symbol, start, 81234.5, 5.4e9, "hist_5m", start + 120_000, 0)))
            for ratio in RATIOS:
                known = (symbol, ratio, start, 1.2, 0.55, 0.45, start + 120_000, start + 30_000, 0)
                found.append(("long_short_ratio", known))
    return found


def _candle(symbol: str, interval: str, start: int) -> Candle:
    fields = dict.fromkeys(Candle.__struct_fields__, 0)
    length = {"1m": 1, "15m": 15, "1h": 60}[interval] * MINUTE_MS
    fields |= {"interval": interval, "symbol": symbol, "open_time": start, "close_time": start + length - 1}
    fields |= dict.fromkeys(("open", "high", "low", "close"), 67450.1)
    fields |= {"source": "ws", "synthetic": False, "received_at": start + length + 50}
    return Candle(**fields)


def _decided(names: Sequence[str], n: int, features: bytes) -> tuple[list[Decision], list[Prediction], list[Message]]:
    close_time = T0 + (n + 1) * MINUTE_MS
    decisions = [
        Decision(
            signal_id=signal_id("champion", "bench", symbol, close_time),
            slot="champion",
            symbol=symbol,
            close_time=close_time,
            side=0,
            status=Status.FLAT,
            detail="long 0.520 is below 0.580",
            model_id="bench",
            schema_hash="a91c",
            p_raw=0.52,
            p_cal=0.52,
            ev_bp=-3.0,
            threshold=0.58,
            ref_mark="67450.1",
            ref_last="67450.1",
            bid="67450.0",
            ask="67450.1",
            valid_until=close_time + 30_000,
            feat_ref="0" * 32,
            xs_n=len(names),
        )
        for symbol in names
    ]
    predictions = [
        Prediction(
            slot="champion",
            symbol=symbol,
            close_time=close_time,
            model_id="bench",
            p_long_raw=0.52,
            p_short_raw=0.48,
            p_long=0.52,
            p_short=0.48,
            features=features,
            feat_ref="0" * 32,
        )
        for symbol in names
    ]
    return decisions, predictions, [signal_message(one) for one in decisions]
