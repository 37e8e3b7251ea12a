"""Room on the disk: told long before it is full, and the outbox does not grow for ever."""

import asyncio
from collections import namedtuple
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from perpline import room as room_module
from perpline.cli.status import room_lines
from perpline.common.clock import ManualClock
from perpline.common.config import load_settings
from perpline.common.errors import NeedsPerson, Unavailable
from perpline.domain.signal import Message
from perpline.metrics import families
from perpline.room import DAY_MS, Room
from perpline.storage.sqlite import SqliteStore

GB = 1_000_000_000
Usage = namedtuple("Usage", "total used free")


class Disk:
    """A disk and a database whose sizes a test sets."""

    def __init__(self) -> None:
        self.total, self.free, self.database = 100 * GB, 50 * GB, 1 * GB
        self.is_away = False

    def usage(self, folder: Path) -> Usage:
        return Usage(self.total, self.total - self.free, self.free)

    async def size(self) -> tuple[int, int | None]:
        if self.is_away:
            raise Unavailable("the database is away")
        return self.database, None


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(room_module.shutil, "disk_usage", disk.usage)
    return disk


def watched(folder: Path, disk: Disk, **changes: object) -> tuple[Room, ManualClock]:
    settings = load_settings(None, {"HOME": str(folder)}, {"data_dir": str(folder), **changes})
    clock = ManualClock(DAY_MS * 20_000)
    return Room(settings, clock, disk), clock  # type: ignore[arg-type]


async def test_less_than_five_gigabytes_or_a_tenth_of_the_disk_is_an_alarm_until_there_is_room(
    tmp_path: Path, disk: Disk
) -> None:
    room, clock = watched(tmp_path, disk)
    with capture_logs() as logs:
        for free in (5.1, 4.9, 4.8, 5.2):
            disk.free = round(free * GB)
            await room.look()
            clock.advance(30)
        disk.total, disk.free = 20 * GB, 3 * GB  # a small disk: a tenth of it is enough
        await room.look()
        assert room.trouble() == []
        disk.free = 1_900_000_000
        await room.look()
    assert [line["event"] for line in logs] == ["disk_low", "disk_has_room_again", "disk_low"]
    assert room.trouble() == [f"the disk of {tmp_path} has 1,900 MB left: less than 2,000 MB"]


async def test_a_disk_that_will_be_full_within_three_days_is_an_alarm_though_there_is_room_now(
    tmp_path: Path, disk: Disk
) -> None:
    room, clock = watched(tmp_path, disk)
    await room.look()
    assert room.facts is not None
    assert (room.facts["growth_bytes_per_day"], room.facts["days_until_full"]) == (None, None)

    for _ in range(24):  # 1 GB an hour: 24 GB a day
        clock.advance(300)
        disk.database += GB // 12
        disk.free -= GB // 12
        await room.look()

    assert room.facts["growth_bytes_per_day"] == pytest.approx(24 * GB, rel=0.01)
    assert room.facts["days_until_full"] == pytest.approx(2.0, abs=0.1)
    [said] = room.trouble()
    assert "is full in 2.0 days at the present rate" in said
    samples = {sample.name: sample.value for metric in families({"room": room.facts}) for sample in metric.samples}
    assert samples["perpline_disk_low"] == 1.0
    assert samples["perpline_disk_full_in_seconds"] == room.facts["days_until_full"] * 86_400
    [line] = room_lines({"room": room.facts, "archive": None, "spool": None})
    assert "full in 2 days   the disk is nearly full" in line.plain
    never, _ = watched(tmp_path, disk, disk_low_days=0)
    never._used = room._used
    await never.look()
    assert never.trouble() == []


async def test_while_the_database_is_away_the_disk_is_still_looked_at_and_the_spool_counted(
    tmp_path: Path, disk: Disk
) -> None:
    room, _ = watched(tmp_path, disk)
    await room.look()
    disk.is_away, disk.free = True, GB
    (tmp_path / "spool" / "deep").mkdir(parents=True)
    (tmp_path / "spool" / "deep" / "1").write_bytes(b"x" * 1000)

    await room.look()

    assert room.facts is not None
    assert (room.facts["database_bytes"], room.facts["spool_bytes"]) == (GB, 1000)
    assert len(room.trouble()) == 1


async def test_published_messages_of_yesterday_go_in_small_transactions(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    clock = ManualClock(DAY_MS * 20_000)
    message = Message(id=0, kind="mode", slot="champion", symbol="", close_time=0, payload="{}", valid_until=0)
    await store.commit_trading({}, [message] * 1100)
    ids = [one.id for one in await store.pending_messages(2000)]
    await store.mark_published(ids[:1050], clock.now_ms() - DAY_MS - 1)
    settings = load_settings(None, {"HOME": str(tmp_path)}, {"data_dir": str(tmp_path)})
    room = Room(settings, clock, store)
    pauses = []

    async def sleep_wall(wall_s: float) -> None:
        pauses.append(wall_s)

    clock.sleep_wall = sleep_wall  # type: ignore[method-assign]
    await room._prune_outbox()

    assert await store.select("SELECT count(*), min(id) FROM outbox") == [(50, ids[1050])]
    assert pauses == [0.1, 0.1]
    await store.close()


async def test_a_folder_of_the_database_that_is_moved_is_trouble_and_no_end(tmp_path: Path) -> None:
    (folder := tmp_path / "base").mkdir()
    store = SqliteStore(folder / "perpline.db")
    await store.open()
    settings = load_settings(None, {"HOME": str(tmp_path)}, {"data_dir": str(tmp_path), "disk_low_mb": 1})
    room = Room(settings, ManualClock(DAY_MS * 20_000), store)
    await room.look()
    assert room.trouble() == []

    with capture_logs() as logs:
        folder.rename(tmp_path / "moved")
        await room.look()
        await room.look()
        moved = room.trouble()
        (tmp_path / "moved").rename(folder)
        await room.look()

    assert moved == [f"the folder {folder} does not answer: was it moved, or its disk taken away?"]
    assert room.trouble() == []
    assert [line["event"] for line in logs] == ["folder_gone", "folder_there_again"]
    await store.close()


@pytest.mark.parametrize("error", [Unavailable("it is away"), NeedsPerson("it was moved while it was in use")])
async def test_a_database_that_refuses_to_be_measured_or_pruned_ends_no_look(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    room, clock = watched(tmp_path, disk)

    async def refuse(*asked: object) -> None:
        raise error

    looks = []

    async def sleep_wall(wall_s: float) -> None:
        looks.append(room.facts)
        if len(looks) == 2:
            raise asyncio.CancelledError

    monkeypatch.setattr(disk, "size", refuse)
    monkeypatch.setattr(disk, "prune_outbox", refuse, raising=False)
    clock.sleep_wall = sleep_wall  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        await room.run()

    assert len(looks) == 2
    assert None not in looks
