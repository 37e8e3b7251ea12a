"""Old days out of the database: exact, resumable, and nothing goes that is not safe or still needed."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest
from databases import Database
from msgspec.structs import replace

from perpline.common.clock import ManualClock
from perpline.common.errors import NeedsPerson, Unavailable
from perpline.domain.signal import Decision, Message, Prediction
from perpline.storage.archiving import Archiver, ArchiveReport
from perpline.storage.day_files import DayFiles
from perpline.storage.day_tables import DAY_MS, DAY_TABLES, HOUR_MS, day_tables, day_text
from perpline.storage.sql import sql_folder
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import TABLES, TRADING_TABLES, Row, Store
from signalling import decision

DAY = 1_700_006_400_000  # 2023-11-15
NOW = DAY + 20 * DAY_MS
SYMBOLS = ("BTCUSDT", "ETHUSDT")
MESSAGE = Message(id=0, kind="signal", slot="champion", symbol="X", close_time=0, payload="{}", valid_until=0)


def decided(symbol: str, close_time: int) -> Decision:
    return replace(decision(symbol), close_time=close_time, signal_id=f"{symbol} {close_time}")


def predicted(symbol: str, close_time: int) -> Prediction:
    return Prediction(
        slot="champion",
        symbol=symbol,
        close_time=close_time,
        model_id="model",
        p_long_raw=None,
        p_short_raw=0.1 + 0.2,
        p_long=5e-324,
        p_short=1.0,
        features=bytes(range(256)),
        feat_ref="",
    )


def row_of(table: str, symbol: str, time: int) -> Row:
    """A row with something in each column, and with nothing where that is allowed."""
    values: dict[str, object] = {"symbol": symbol, TABLES[table].time: time}
    for column, kind in day_tables()[table].columns.items():
        values.setdefault(column, {"TEXT": "x", "INTEGER": time % 1_000_003, "REAL": time / 7e6}[kind])
    values |= {name: None for name in ("quote_volume", "spread_bps") if name in values and time % 180_000 == 0}
    if "synthetic" in values:
        values["synthetic"] = time % 120_000 == 0
    return tuple(values[column] for column in TABLES[table].columns)


async def fill(store: Store, days: Sequence[int], step_ms: int = 3 * HOUR_MS) -> None:
    for day in days:
        times = range(day, day + DAY_MS, step_ms)
        for table in DAY_TABLES:
            if table in TABLES:
                await store.add_rows(table, [row_of(table, symbol, time) for time in times for symbol in SYMBOLS])
        await store.commit_decisions(
            [decided(symbol, time) for time in times for symbol in SYMBOLS],
            [predicted(symbol, time) for time in times for symbol in SYMBOLS],
            [],
            1,
        )


async def everything(store: Store, files: DayFiles | None = None) -> dict[str, set[Row]]:
    """Every row of the large tables, in the database or in files; fails where one is in both or twice."""
    found: dict[str, set[Row]] = {}
    for name in DAY_TABLES:
        rows = await store.rows_between(name, 0, 2**62)
        if name == "signals":  # each symbol's newest, which is not for the archive
            rows = [tuple(row) for row in await store.select(f"SELECT {_columns(name)} FROM signals")]
        if files is not None:
            table = day_tables()[name]
            for day in range(DAY, NOW, DAY_MS):
                opened = files.opened(table, files.parts(table, day))
                rows += [row for batch in opened.batches() for row in batch]
                opened.close()
        found[name] = set(rows)
        assert len(found[name]) == len(rows), name
    return found


def _columns(table: str) -> str:
    return ", ".join(f'"{column}"' for column in day_tables()[table].columns)


def archiver(store: Store, folder: Path, owner: str = "test", **more: object) -> Archiver:
    return Archiver(store, DayFiles(folder), ManualClock(NOW), owner, **more)  # type: ignore[arg-type]


async def archive(store: Store, folder: Path, **more: object) -> ArchiveReport:
    return await archiver(store, folder).run(NOW - 10 * DAY_MS, NOW - 10 * DAY_MS, **more)  # type: ignore[arg-type]


async def test_old_days_go_into_files_value_for_value_and_young_ones_stay(store: Store, tmp_path: Path) -> None:
    await fill(store, [DAY, DAY + DAY_MS, NOW - 3 * DAY_MS])
    before = await everything(store)

    report = await archive(store, tmp_path)

    assert await everything(store, DayFiles(tmp_path)) == before
    assert {(one.table, one.day) for one in report.days if one.dropped} == {
        (table, day_text(day)) for table in DAY_TABLES for day in (DAY, DAY + DAY_MS)
    }
    assert await store.old_days("candles_1m", NOW) == [NOW - 3 * DAY_MS]
    [[oldest]] = await store.select("SELECT min(open_time) FROM candles_1m")
    assert oldest == NOW - 3 * DAY_MS
    noted = await store.select('SELECT "table", day, part, rows, dropped_at FROM archived WHERE "table" = \'signals\'')
    assert sorted(noted) == [("signals", day, 1, 16, NOW) for day in (DAY, DAY + DAY_MS)]
    assert sorted(path.name for path in (tmp_path / "candles_1m").iterdir()) == [
        "2023-11-15.parquet",
        "2023-11-16.parquet",
    ]
    again = await archive(store, tmp_path)
    assert again.days == []


async def test_the_seqs_of_a_symbol_go_on_after_all_its_old_decisions_were_archived(
    store: Store, tmp_path: Path
) -> None:
    await fill(store, [DAY], step_ms=6 * HOUR_MS)
    await archive(store, tmp_path)

    await store.commit_decisions([decided("BTCUSDT", NOW)], [], [], 1)

    assert (await store.select("SELECT seq FROM signals WHERE symbol = 'BTCUSDT' ORDER BY close_time DESC"))[0] == (5,)
    assert await store.damage() == []


async def test_without_a_retention_days_are_written_and_nothing_is_dropped(store: Store, tmp_path: Path) -> None:
    await fill(store, [DAY])
    before = await everything(store)

    report = await archiver(store, tmp_path).run(NOW - 10 * DAY_MS, None)

    assert await everything(store) == before
    assert sum(one.rows for one in report.days) >= 14 * len(DAY_TABLES)
    assert not any(one.dropped for one in report.days)


async def test_rows_that_come_later_for_an_archived_day_get_a_file_of_their_own(store: Store, tmp_path: Path) -> None:
    await fill(store, [DAY])
    before = await everything(store)
    await archive(store, tmp_path)
    late = [row_of("candles_1m", "SOLUSDT", DAY + HOUR_MS), row_of("candles_1m", "BTCUSDT", DAY + HOUR_MS)]
    try:
        await store.add_rows("candles_1m", late[:1])
    except Unavailable:  # PostgreSQL made the partition anew
        await store.add_rows("candles_1m", late[:1])

    report = await archive(store, tmp_path)

    [one] = [each for each in report.days if each.table == "candles_1m"]
    assert (one.rows, one.dropped, len(one.files)) == (1, True, 2)
    assert (await everything(store, DayFiles(tmp_path)))["candles_1m"] == {*before["candles_1m"], late[0]}


async def test_a_row_that_changes_after_it_was_written_stays_and_is_written_anew(store: Store, tmp_path: Path) -> None:
    await fill(store, [DAY])
    table = day_tables()["book_minutes"]
    opened = []

    async def hours():  # type: ignore[no-untyped-def]
        yield await store.rows_between("book_minutes", DAY, DAY + DAY_MS)

    files = DayFiles(tmp_path)
    await files.write(table, DAY, hours())
    newer = list(row_of("book_minutes", "BTCUSDT", DAY))
    newer[TABLES["book_minutes"].columns.index("updated_at")] += 2_000_000  # type: ignore[operator]
    assert await store.add_rows("book_minutes", [tuple(newer)]) == 1
    day = files.opened(table, files.parts(table, DAY))
    opened.append(day)

    assert await store.drop_day("book_minutes", DAY, day.rows_between) == 1

    left = await store.rows_between("book_minutes", DAY, DAY + DAY_MS)
    assert tuple(newer) in left
    for each in opened:
        each.close()
    report = await archive(store, tmp_path)
    assert [(one.rows, one.dropped) for one in report.days if one.table == "book_minutes"] == [(1, True)]


async def test_what_a_worker_still_needs_is_left_alone(store: Store, tmp_path: Path) -> None:
    await fill(store, [DAY, DAY + DAY_MS, DAY + 2 * DAY_MS, DAY + 3 * DAY_MS], step_ms=6 * HOUR_MS)
    hole = await store.open_gap("BTCUSDT", "candles_1m", DAY + 5 * HOUR_MS, DAY + 6 * HOUR_MS, "a test", NOW)
    await store.open_gap("BTCUSDT", "long_short_ratio:taker", DAY + DAY_MS, DAY + DAY_MS + HOUR_MS, "a test", NOW)
    # Nothing brings these back, so nothing waits for them.
    await store.open_gap("BTCUSDT", "book_minutes", DAY, DAY + HOUR_MS, "a test", NOW)
    await store.open_gap("BTCUSDT", "open_interest", DAY - 20 * DAY_MS, DAY - 19 * DAY_MS, "a test", NOW)
    message = replace(MESSAGE, close_time=DAY + 3 * DAY_MS + 5)
    unpublished = replace(message, close_time=DAY + 2 * DAY_MS + 5)
    await store.commit_decisions([], [], [message, unpublished], 1)
    first, second = await store.pending_messages(2)

    report = await archive(store, tmp_path)

    assert report.before == "2023-11-17"
    assert report.with_gaps == ["candles_1m 2023-11-15", "long_short_ratio 2023-11-16"]
    assert await store.old_days("candles_1m", NOW) == [DAY, DAY + 2 * DAY_MS, DAY + 3 * DAY_MS]
    await store.mark_published([one.id for one in (first, second) if one.close_time == unpublished.close_time], NOW)
    await store.close_gap(hole, NOW, "rest")
    report = await archive(store, tmp_path)
    assert report.before == "2023-11-18"
    assert await store.old_days("candles_1m", NOW) == [DAY + 3 * DAY_MS]


async def test_days_of_an_open_position_stay(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    await fill(store, [DAY, DAY + DAY_MS], step_ms=6 * HOUR_MS)
    columns = TRADING_TABLES["positions"].columns
    row = {name: "0" for name in columns} | {"side": 1, "naked_ms": 0, "updated_at": 1, "closed_at": None}
    row |= {"account": "paper", "position_id": "p", "status": "open", "opened_at": DAY + DAY_MS + 1, "deadline": None}
    await store.commit_trading({"positions": [tuple(row[name] for name in columns)]})

    report = await archive(store, tmp_path / "archive")

    assert (report.before, report.needed_for) == ("2023-11-16", "the open paper position in 0")
    await store.close()


async def test_a_file_that_was_damaged_costs_no_row(tmp_path: Path) -> None:
    """A bit that flips between writing and reading back is found, and the rows stay."""
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    await fill(store, [DAY])
    before = await everything(store)
    await archiver(store, tmp_path / "archive").run(NOW, None)
    path = tmp_path / "archive" / "candles_1m" / "2023-11-15.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)

    with pytest.raises(NeedsPerson, match=r"2023-11-15\.parquet is damaged"):
        await archive(store, tmp_path / "archive", tables=["candles_1m"])

    assert await everything(store) == before
    path.write_bytes(data[: len(data) // 3])
    with pytest.raises(NeedsPerson, match=r"2023-11-15\.parquet is damaged"):
        await archive(store, tmp_path / "archive", tables=["candles_1m"])
    assert await everything(store) == before
    await store.close()


CHILD = """
    import asyncio, sys
    from pathlib import Path
    from perpline.common.clock import ManualClock
    from perpline.storage.archiving import Archiver
    from perpline.storage.day_files import DayFiles
    {open_store}
    NOW = {now}

    class Clock(ManualClock):
        async def sleep_wall(self, wall_s):
            await asyncio.sleep(wall_s)

    async def main():
        await store.open()
        print("open", flush=True)
        archiver = Archiver(store, DayFiles(Path({folder!r})), Clock(NOW), "child", lease_ms=1)
        await archiver.run(NOW, NOW, tables=("candles_1m", "signals", "predictions"))
        print("done", flush=True)

    asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills with SIGKILL")
@pytest.mark.parametrize("kills", [2, pytest.param(60, marks=pytest.mark.full)])
async def test_killed_at_any_instant_no_row_is_lost_and_the_next_one_finishes(
    database: Database, tmp_path: Path, kills: int
) -> None:
    store = await database.open()
    days = [DAY + number * DAY_MS for number in range(4 if kills < 10 else 12)]
    await fill(store, days, step_ms=HOUR_MS // 4)
    before = await everything(store)
    text = textwrap.dedent(CHILD).format(open_store=database.open_in_a_process(), now=NOW, folder=str(tmp_path / "to"))
    for number in range(kills):
        child = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE)  # noqa: ASYNC220
        assert child.stdout is not None
        assert await asyncio.to_thread(child.stdout.readline) == b"open\n"
        await asyncio.sleep(0.04 + 0.05 * (number % 12))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        found = await everything_safe(store, DayFiles(tmp_path / "to"))
        for table in ("candles_1m", "signals", "predictions"):
            assert found[table] == before[table], (number, table)

    await Archiver(store, DayFiles(tmp_path / "to"), ManualClock(NOW + 10**6), "last").run(
        NOW, NOW, tables=("candles_1m", "signals", "predictions")
    )

    after = await everything_safe(store, DayFiles(tmp_path / "to"))
    assert {table: after[table] for table in before} == before
    assert await store.old_days("candles_1m", NOW) == []
    assert not list((tmp_path / "to").rglob("*.unfinished"))


async def everything_safe(store: Store, files: DayFiles) -> dict[str, set[Row]]:
    """Every row, in the database, in files or, while it is dropped, in both; every file whole."""
    found = {}
    for name in DAY_TABLES:
        rows = set(await store.select(f"SELECT {_columns(name)} FROM {name}"))
        table = day_tables()[name]
        for day in range(DAY, NOW, DAY_MS):
            opened = files.opened(table, files.parts(table, day))
            rows |= {row for batch in opened.batches() for row in batch}
            opened.close()
        found[name] = rows
    return found


async def test_two_archives_at_once_take_turns(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    await fill(store, [DAY], step_ms=6 * HOUR_MS)
    clock = ManualClock(NOW)
    await store.take_lease("archive", "another", NOW, NOW + 60_000)
    waiting = asyncio.create_task(Archiver(store, DayFiles(tmp_path / "to"), clock, "me").run(NOW, NOW))
    for _ in range(3):
        await asyncio.sleep(0.02)
        clock.advance(1.0)
    assert not (tmp_path / "to").exists()

    await store.drop_lease("archive", "another")
    while not waiting.done():
        await asyncio.sleep(0.01)
        clock.advance(1.0)

    assert (await waiting).days
    await store.take_lease("archive", "another", NOW, 2**60)
    refused = asyncio.create_task(Archiver(store, DayFiles(tmp_path / "to"), clock, "me").run(NOW, NOW))
    while not refused.done():
        await asyncio.sleep(0)
        clock.advance(5.0)
    with pytest.raises(Unavailable, match="another perpline archive"):
        await refused
    await store.close()


async def test_freed_pages_are_used_again_and_the_file_does_not_grow(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    await fill(store, [DAY], step_ms=60_000 * 5)
    size, _ = await store.size()
    await archive(store, tmp_path / "archive")

    await fill(store, [DAY + DAY_MS], step_ms=60_000 * 5)

    grown, _ = await store.size()
    assert grown < size * 1.1
    await store.close()


async def test_published_messages_are_pruned_and_others_stay(store: Store) -> None:
    await store.commit_decisions([], [], [replace(MESSAGE, close_time=n) for n in range(5)], 1)
    ids = [one.id for one in await store.pending_messages(9)]
    await store.mark_published(ids[:2], NOW - DAY_MS - 1)
    await store.mark_published(ids[3:4], NOW - DAY_MS + 1)

    assert [await store.prune_outbox(NOW - DAY_MS, 1) for _ in range(3)] == [1, 1, 0]

    assert await store.select("SELECT id FROM outbox ORDER BY id") == [(number,) for number in ids[2:]]
    await store.commit_decisions([], [], [replace(MESSAGE, close_time=99)], 1)
    assert max(one.id for one in await store.pending_messages(9)) > ids[-1]


async def test_a_folder_that_cannot_be_written_is_named_and_nothing_is_dropped(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    await fill(store, [DAY], step_ms=6 * HOUR_MS)
    before = await everything(store)
    (tmp_path / "file").write_text("no folder")

    with pytest.raises(NeedsPerson, match=r"cannot (write|read)"):
        await archive(store, tmp_path / "file")

    assert await everything(store) == before
    [[leases]] = await store.select("SELECT until FROM leases WHERE name = 'archive'")
    assert leases == 0
    await store.close()


def test_the_large_tables_are_those_that_postgresql_has_in_days() -> None:
    text = (sql_folder("postgresql") / "0001_tables.sql").read_text()
    tables = re.findall(r"CREATE TABLE (\w+) \((?:[^;]|;(?= ))*?\n\)( PARTITION BY RANGE)?", text)
    assert len(tables) > len(DAY_TABLES)
    assert set(DAY_TABLES) == {name for name, partitioned in tables if partitioned}
