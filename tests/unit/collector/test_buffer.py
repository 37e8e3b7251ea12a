import asyncio
import contextlib
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpline.collector.buffer import Buffer
from perpline.collector.spool import Spool
from perpline.common.clock import ManualClock
from perpline.common.errors import Unavailable
from perpline.storage.store import Row


class FakeStore:
    """Keeps rows in the order they came. Refuses while `away`; holds its answer back while `hold` is not set."""

    def __init__(self) -> None:
        self.rows: defaultdict[str, list[Row]] = defaultdict(list)
        self.batches: list[tuple[str, int]] = []
        self.tries = 0
        self.away = False
        self.hold = asyncio.Event()
        self.hold.set()

    async def add_rows(self, table: str, rows: Sequence[Row]) -> int:
        self.tries += 1
        if self.away:
            raise Unavailable("the database is away")
        self.rows[table] += rows
        self.batches.append((table, len(rows)))
        await self.hold.wait()
        return len(rows)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_000_000)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@contextlib.asynccontextmanager
async def running(buffer: Buffer) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(buffer.run())
    await settle()
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def settle() -> None:
    """Let every task run until it waits for the clock or for another."""
    for _ in range(20):
        await asyncio.sleep(0)


def rows(*numbers: int) -> list[Row]:
    return [(n,) for n in numbers]


async def test_a_full_batch_is_written_at_once(clock: ManualClock, store: FakeStore) -> None:
    buffer = Buffer(store.add_rows, clock, batch_size=3)
    async with running(buffer):
        for n in range(2):
            buffer.add("candles_1m", (n,))
        await settle()
        assert store.rows["candles_1m"] == []

        buffer.add("candles_1m", (2,))
        await settle()

    assert store.rows["candles_1m"] == rows(0, 1, 2)


async def test_rows_wait_for_decisions_on_their_way_but_no_longer_than_a_second(
    clock: ManualClock, store: FakeStore
) -> None:
    deciding = True
    buffer = Buffer(store.add_rows, clock, batch_size=1, is_deciding=lambda: deciding)
    async with running(buffer):
        buffer.add("candles_1m", (1,))
        await settle()
        assert store.rows["candles_1m"] == []

        deciding = False
        clock.advance(0.01)
        await settle()
        assert store.rows["candles_1m"] == rows(1)

        deciding = True
        buffer.add("candles_1m", (2,))
        await settle()
        for _ in range(9):
            clock.advance(0.1)
            await settle()
        assert store.rows["candles_1m"] == rows(1)

        clock.advance(0.2)
        await settle()
        assert store.rows["candles_1m"] == rows(1, 2)


async def test_a_lone_row_is_written_at_the_first_look_after_its_age(clock: ManualClock, store: FakeStore) -> None:
    buffer = Buffer(store.add_rows, clock, max_age_s=7, check_every_s=5)
    async with running(buffer):
        buffer.add("candles_1m", (0,))
        clock.advance(5)
        await settle()
        assert store.rows["candles_1m"] == []

        clock.advance(5)
        await settle()

    assert store.rows["candles_1m"] == rows(0)


async def test_age_is_wall_time_also_in_an_accelerated_market(store: FakeStore) -> None:
    clock = ManualClock(0, speed=60)
    buffer = Buffer(store.add_rows, clock, max_age_s=5, check_every_s=5)
    async with running(buffer):
        buffer.add("candles_1m", (0,))
        clock.advance(60)
        await settle()
        assert store.rows["candles_1m"] == []

        clock.advance(5 * 60)
        await settle()

    assert store.rows["candles_1m"] == rows(0)


async def test_a_full_table_does_not_flush_another(clock: ManualClock, store: FakeStore) -> None:
    buffer = Buffer(store.add_rows, clock, batch_size=2)
    async with running(buffer):
        buffer.add("premium_index", (0,))
        for n in range(2):
            buffer.add("candles_1m", (n,))
        await settle()

    assert store.batches == [("candles_1m", 2)]
    assert buffer.statistics()["premium_index"].waiting == 1


async def test_rows_of_a_failed_flush_are_kept_in_order_and_tried_again_at_the_next_look(
    clock: ManualClock, store: FakeStore
) -> None:
    buffer = Buffer(store.add_rows, clock, batch_size=2, check_every_s=5)
    store.away = True
    async with running(buffer):
        for n in range(5):
            buffer.add("candles_1m", (n,))
            await settle()
        assert store.tries == 1, "size must not wake it while the store is away"
        assert buffer.last_error == "the database is away"

        store.away = False
        buffer.add("candles_1m", (5,))
        clock.advance(5)
        await settle()

    assert store.rows["candles_1m"] == rows(*range(6))
    assert buffer.last_error == ""


async def test_flush_writes_every_table_in_batches(clock: ManualClock, store: FakeStore) -> None:
    buffer = Buffer(store.add_rows, clock, batch_size=2)
    for n in range(5):
        buffer.add("candles_1m", (n,))
    buffer.add("revisions", (9,))

    await buffer.flush()

    assert store.rows == {"candles_1m": rows(*range(5)), "revisions": rows(9)}
    assert [size for table, size in store.batches if table == "candles_1m"] == [2, 2, 1]


async def test_flush_says_when_the_store_is_away_and_keeps_the_rows(clock: ManualClock, store: FakeStore) -> None:
    buffer = Buffer(store.add_rows, clock)
    buffer.add("candles_1m", (0,))
    store.away = True

    with pytest.raises(Unavailable):
        await buffer.flush()
    assert buffer.statistics()["candles_1m"].waiting == 1

    store.away = False
    await buffer.flush()
    assert store.rows["candles_1m"] == rows(0)


async def test_rows_on_their_way_are_not_lost_when_the_task_is_cancelled(clock: ManualClock, store: FakeStore) -> None:
    buffer = Buffer(store.add_rows, clock, batch_size=2)
    store.hold.clear()
    async with running(buffer):
        for n in range(2):
            buffer.add("candles_1m", (n,))
        await settle()
        buffer.add("candles_1m", (2,))
    assert buffer.statistics()["candles_1m"].waiting == 3

    store.hold.set()
    await buffer.flush()

    # Twice is harmless; what counts is that none is missing and the order holds.
    assert store.rows["candles_1m"] == rows(0, 1) + rows(0, 1, 2)


async def test_a_row_the_store_refuses_for_good_is_heard(clock: ManualClock) -> None:
    async def refuse(table: str, batch: Sequence[Row]) -> int:
        raise ValueError("not a candle")

    buffer = Buffer(refuse, clock, batch_size=1)
    async with running(buffer) as task:
        buffer.add("candles_1m", (0,))
        with pytest.raises(ValueError, match="not a candle"):
            await task


async def test_beyond_its_bound_a_table_drops_its_oldest_rows_and_reports_them(
    clock: ManualClock, store: FakeStore
) -> None:
    reported: list[tuple[str, list[Row]]] = []
    buffer = Buffer(
        store.add_rows,
        clock,
        batch_size=2,
        max_rows=5,
        on_dropped=lambda table, dropped: reported.append((table, dropped)),
    )
    for n in range(8):
        buffer.add("candles_1m", (n,))
    buffer.add("premium_index", (0,))

    assert reported == [("candles_1m", rows(0, 1)), ("candles_1m", rows(2, 3))]
    found = buffer.statistics()
    assert (found["candles_1m"].waiting, found["candles_1m"].dropped) == (4, 4)
    assert (found["premium_index"].waiting, found["premium_index"].dropped) == (1, 0)
    await buffer.flush()
    assert store.rows["candles_1m"] == rows(4, 5, 6, 7)


async def test_rows_on_their_way_are_never_dropped(clock: ManualClock, store: FakeStore) -> None:
    dropped: list[Row] = []
    buffer = Buffer(
        store.add_rows, clock, batch_size=2, max_rows=4, on_dropped=lambda table, lost: dropped.extend(lost)
    )
    store.hold.clear()
    async with running(buffer):
        for n in range(2):
            buffer.add("candles_1m", (n,))
        await settle()
        for n in range(2, 9):
            buffer.add("candles_1m", (n,))
        store.hold.set()
        await settle()
    await buffer.flush()

    assert dropped == rows(2, 3, 4, 5, 6, 7)
    assert store.rows["candles_1m"] == rows(0, 1, 8)


def test_a_table_that_takes_no_batches_is_unknown(clock: ManualClock, store: FakeStore) -> None:
    with pytest.raises(KeyError, match="signals"):
        Buffer(store.add_rows, clock).add("signals", (1,))


def test_a_batch_larger_than_the_bound_is_refused(clock: ManualClock, store: FakeStore) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        Buffer(store.add_rows, clock, batch_size=10, max_rows=9)


async def test_statistics_tell_what_was_written_and_when(clock: ManualClock, store: FakeStore) -> None:
    buffer = Buffer(store.add_rows, clock)
    buffer.add("candles_1m", (0,))
    assert buffer.statistics()["candles_1m"].last_write_ms is None

    clock.set_ms(1_234_000)
    await buffer.flush()

    found = buffer.statistics()["candles_1m"]
    assert (found.waiting, found.written, found.dropped, found.last_write_ms) == (0, 1, 0, 1_234_000)


STEPS = st.lists(
    st.one_of(
        st.integers(1, 7).map(lambda n: ("add", n)),
        st.sampled_from([("away", 0), ("back", 0), ("look", 0), ("cancel", 0), ("hold", 0), ("answer", 0)]),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
async def test_no_history_loses_a_row_or_its_order(steps: list[tuple[str, int]]) -> None:
    clock, store = ManualClock(0), FakeStore()
    buffer = Buffer(store.add_rows, clock, batch_size=4, max_age_s=5, check_every_s=5)
    added = 0
    task = asyncio.create_task(buffer.run())
    for step, count in steps:
        match step:
            case "add":
                for _ in range(count):
                    buffer.add("candles_1m", (added,))
                    added += 1
            case "away":
                store.away = True
            case "back":
                store.away = False
            case "hold":
                store.hold.clear()
            case "answer":
                store.hold.set()
            case "look":
                clock.advance(5)
            case "cancel":
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                task = asyncio.create_task(buffer.run())
        await settle()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    store.away = False
    store.hold.set()
    await buffer.flush()

    first_writes = list(dict.fromkeys(store.rows["candles_1m"]))
    assert first_writes == rows(*range(added))
    assert buffer.statistics()["candles_1m"].waiting == 0


# ---- with a spool


@pytest.fixture
async def spool(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Spool]:
    spool = Spool(tmp_path / "spool", 1 << 20, clock, may_drop=["candles_1m"])
    await spool.open()
    yield spool
    await spool.close()


async def until(condition: Callable[[], bool], clock: ManualClock) -> None:
    """The spool works in a thread, so there is something to wait for besides the clock."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.001)
        clock.advance(0.05)
    raise AssertionError("did not come true")


async def test_rows_of_a_store_that_is_away_wait_on_disk_and_come_before_new_ones(
    clock: ManualClock, store: FakeStore, spool: Spool
) -> None:
    buffer = Buffer(store.add_rows, clock, batch_size=2, spool=spool)
    store.away = True
    async with running(buffer):
        for n in range(5):
            buffer.add("candles_1m", (n,))
        await until(lambda: spool.count("candles_1m") == 3, clock)
        assert buffer.statistics()["candles_1m"].waiting == 0

        store.away = False
        for n in range(5, 9):
            buffer.add("candles_1m", (n,))
        await until(lambda: len(store.rows["candles_1m"]) == 9, clock)

    assert store.rows["candles_1m"] == rows(*range(9))
    assert spool.kinds == []


async def test_rows_that_a_store_takes_long_for_are_on_disk_meanwhile(
    clock: ManualClock, store: FakeStore, spool: Spool
) -> None:
    buffer = Buffer(store.add_rows, clock, batch_size=2, spool=spool)
    store.hold.clear()
    async with running(buffer):
        for n in range(3):
            buffer.add("candles_1m", (n,))
        await until(lambda: spool.count("candles_1m") == 2, clock)
        assert "within 2 s" in buffer.last_error
        store.hold.set()
        await until(lambda: spool.kinds == [], clock)

    assert list(dict.fromkeys(store.rows["candles_1m"])) == rows(0, 1, 2)
    assert buffer.last_error == ""


async def test_what_a_full_spool_dropped_is_handed_back_to_be_noted(
    clock: ManualClock, store: FakeStore, tmp_path: Path
) -> None:
    dropped: list[tuple[str, list[Row]]] = []
    spool = Spool(tmp_path / "small", 600, clock, segment_bytes=100, may_drop=["candles_1m"])
    await spool.open()
    buffer = Buffer(
        store.add_rows, clock, batch_size=2, spool=spool, on_dropped=lambda table, lost: dropped.append((table, lost))
    )
    spool.on_dropped = buffer.dropped_from_spool
    for n in range(60):
        buffer.add("candles_1m", (n, "x" * 10))
        buffer.add("premium_index", (n,))
    assert not await buffer.keep(), "what may not be dropped fills it in the end"
    await spool.close()

    lost = [row[0] for table, part in dropped for row in part if table == "candles_1m"]
    assert lost == list(range(len(lost)))
    assert len(lost) >= 20
    assert buffer.statistics()["candles_1m"].dropped == len(lost)


async def test_a_spooled_row_that_the_store_refuses_for_good_does_not_end_every_process_to_come(
    clock: ManualClock, store: FakeStore, spool: Spool
) -> None:
    async def picky(table: str, batch: Sequence[Row]) -> int:
        if (13,) in batch:
            raise ValueError("not a candle")
        return await store.add_rows(table, batch)

    first = Buffer(picky, clock, batch_size=1, spool=spool)
    for n in (12, 13, 14):
        first.add("candles_1m", (n,))
    assert await first.keep()

    dropped: list[Row] = []
    second = Buffer(picky, clock, on_dropped=lambda table, lost: dropped.extend(lost))
    assert await second.replay(spool) == 2
    assert store.rows["candles_1m"] == rows(12, 14)
    assert dropped == rows(13)


SPOOL_STEPS = st.lists(
    st.one_of(
        st.integers(1, 7).map(lambda n: ("add", n)),
        st.sampled_from([("away", 0), ("back", 0), ("look", 0), ("hold", 0), ("answer", 0), ("die", 0)]),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(SPOOL_STEPS)
async def test_no_history_with_a_spool_loses_a_row_or_its_order(steps: list[tuple[str, int]]) -> None:
    """ "die": what waits in memory is put back in by hand, for a death may take it; the spool's files remain."""
    clock, store = ManualClock(0), FakeStore()
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder), 1 << 20, clock, segment_bytes=64)
        await spool.open()

        def made() -> Buffer:
            return Buffer(store.add_rows, clock, batch_size=4, max_age_s=5, check_every_s=5, spool=spool)

        buffer, added = made(), 0
        task = asyncio.create_task(buffer.run())
        for step, count in steps:
            match step:
                case "add":
                    for _ in range(count):
                        buffer.add("candles_1m", (added,))
                        added += 1
                case "away":
                    store.away = True
                case "back":
                    store.away = False
                case "hold":
                    store.hold.clear()
                case "answer":
                    store.hold.set()
                case "look":
                    clock.advance(5)
                case "die":
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                    await buffer.keep()
                    buffer = made()
                    task = asyncio.create_task(buffer.run())
            await asyncio.sleep(0.003)
            await settle()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        store.away = False
        store.hold.set()
        await buffer.flush()
        await spool.close()

    assert list(dict.fromkeys(store.rows["candles_1m"])) == rows(*range(added))
