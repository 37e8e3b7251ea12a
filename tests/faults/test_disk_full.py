"""A disk without room, or one that became read-only: one clear alarm, nothing lost, and on when it is over.

A limit on the size of files stands for the full disk: what would make a file longer fails, as it does there. It holds
for this whole process while a test is under way.
"""

import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest
from structlog.testing import capture_logs

from perpline.collector.malformed import MalformedFile
from perpline.collector.recorder import FrameWriter, read_frames
from perpline.common.clock import ManualClock
from perpline.common.errors import Unavailable
from perpline.storage.sqlite import SqliteStore
from running import (
    MINUTE,
    Database,
    assert_candles_are_the_truth,
    assert_one_decision_a_minute,
    next_close,
    simulated,
    working,
)
from signalling import decision


@pytest.fixture
def files_may_be_long() -> Iterator[None]:
    """Puts the limit back, and ignores the signal that comes with reaching it."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def limit(max_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


async def test_a_worker_on_a_full_disk_goes_on_deciding_and_loses_nothing(
    tmp_path: Path, files_may_be_long: None
) -> None:
    """The database's log cannot grow; the spool's reserved file takes the decisions, memory the rows."""
    with capture_logs() as logs:
        async with simulated(speed=60.0) as exchange, working(exchange, tmp_path) as worker:
            await worker.until_ready()
            database = Database(tmp_path)
            first = next_close(exchange.clock.now_ms())
            await worker.until(lambda: database.decided_until(first, 3))
            wal = tmp_path / "perpline.db-wal"
            limit(min(wal.stat().st_size, 64 << 10))
            full_at = next_close(exchange.clock.now_ms(), 2)
            await worker.until(lambda: exchange.clock.now_ms() > full_at + 2 * MINUTE)
            known = database.decisions()
            limit(resource.RLIM_INFINITY)
            until = next_close(exchange.clock.now_ms(), 2)
            await worker.until(lambda: database.decided_until(until, 3), within_s=40, what="the last decision")
            status = await worker.stop()

    assert_candles_are_the_truth(exchange, database, until, history=240)
    assert_one_decision_a_minute(database, exchange.symbols, until)
    missed = "SELECT symbol, close_time FROM signals WHERE status = 'skipped_missed' AND close_time > ?"
    assert database.rows(missed, first) == []
    assert database.decisions() > known
    assert status["spool"]["decisions"]["spooled"] > 0
    assert status["spool"]["records"] == 0
    for alarm in ("decisions_spooled", "rows_wait"):
        assert len([line for line in logs if line["event"] == alarm]) <= 2, alarm
    assert any("disk" in line["reason"] for line in logs if line["event"] == "decisions_spooled")


async def test_a_full_database_is_away_and_takes_rows_again_when_it_may_grow(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    pages = (await store.select("PRAGMA page_count"))[0][0]
    await store._write.run(lambda connection: connection.execute(f"PRAGMA max_page_count={pages}").fetchall())

    many = [decision("AUSDT", n, detail="x" * 3000) for n in range(200)]

    with pytest.raises(Unavailable, match="the disk is full"):
        await store.commit_decisions(many, [], [], 1)
    stored = (await store.row_counts())["signals"]
    await store._write.run(lambda connection: connection.execute("PRAGMA max_page_count=1000000").fetchall())
    await store.commit_decisions([decision("AUSDT", 500)], [], [], 1)

    assert (await store.row_counts())["signals"] == stored + 1
    await store.close()


async def test_a_disk_that_became_read_only_is_away_and_not_the_end(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    await store._write.run(lambda connection: connection.execute("PRAGMA query_only=1").fetchall())

    def refuse(connection: apsw.Connection) -> None:
        raise apsw.ReadOnlyError("ReadOnlyError: attempt to write a readonly database")

    with pytest.raises(Unavailable, match="the disk is read-only"):
        await store._write.run(refuse)
    await store.close()


def test_a_recording_goes_on_in_a_new_file_when_the_disk_has_room(tmp_path: Path, files_may_be_long: None) -> None:
    clock = ManualClock(0)
    writer = FrameWriter(tmp_path / "frames", clock)
    with capture_logs() as logs:
        limit((tmp_path / "frames.000.zst").stat().st_size)
        writer.add(random.Random(1).randbytes(100_000), 1_000_000)
        wait_until(lambda: bool(writer.statistics().error))
        writer.add(b"nobody keeps this", 2_000_000)
        limit(resource.RLIM_INFINITY)
        clock.advance(11)
        wait_until(lambda: not writer.statistics().error)
        writer.add(b"kept again", 3_000_000)
        writer.close()

    assert [line["event"] for line in logs] == ["recording_stopped", "recording_goes_on"]
    assert [frame for _, frame in read_frames(tmp_path / "frames.001.zst")] == [b"kept again"]
    assert (writer.statistics().frames, writer.statistics().dropped) == (1, 2)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_malformed_frames_are_kept_again_when_the_disk_has_room(tmp_path: Path, files_may_be_long: None) -> None:
    kept = MalformedFile(tmp_path / "malformed.frames", 1 << 20)
    kept.keep(b"first", 1_000_000, "no JSON")
    with capture_logs() as logs:
        limit((tmp_path / "malformed.frames").stat().st_size)
        for n in range(50):
            kept.keep(b"second", 2_000_000 + n, "no JSON")
        limit(resource.RLIM_INFINITY)
        kept.keep(b"third", 120_000_000, "no JSON")

    assert (kept.kept, kept.not_kept) == (2, 50)
    assert [line["event"] for line in logs] == ["malformed_file_unwritable"]
    assert len((tmp_path / "malformed.frames").read_text().splitlines()) == 2
