"""What is SQLite's own; what every store promises is in tests/conformance/test_store.py."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest
from msgspec.structs import fields

from perpline.common.errors import NeedsPerson, Unavailable
from perpline.domain.signal import Decision, Message, Prediction, Status
from perpline.storage import sqlite
from perpline.storage.sql import named_queries
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import TABLES, Gap


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    yield store
    await store.close()


def funding_row(symbol: str, funding_time: int) -> tuple[object, ...]:
    return (symbol, funding_time, 0.0001, None, 8, funding_time + 60_000)


def decision(symbol: str) -> Decision:
    return Decision(signal_id="", slot="champion", symbol=symbol, close_time=0, side=0, status=Status.FLAT)


# Addresses


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///perpline.db", "perpline.db"),
        ("sqlite:///data/my%20perpline.db", "data/my perpline.db"),
        ("sqlite:////var/lib/perpline.db", "/var/lib/perpline.db"),
    ],
)
def test_three_slashes_are_relative_and_four_absolute(url: str, path: str) -> None:
    assert SqliteStore.from_url(url).path == Path(path)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "perpline.db",
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite://perpline.db",
        "sqlite://host/perpline.db",
        "postgresql://me:s3cret@host/perpline",
        "sqlite://[",
        "sqlite:///:memory:",
        "sqlite:///perpline.db?mode=ro",
        "sqlite:///perpline.db#1",
    ],
)
def test_an_address_that_cannot_be_meant_is_refused(url: str) -> None:
    with pytest.raises(NeedsPerson, match="sqlite:///") as raised:
        SqliteStore.from_url(url)
    assert "s3cret" not in str(raised.value)


# Files that cannot be used


async def test_a_folder_that_is_not_there_needs_a_person(tmp_path: Path) -> None:
    with pytest.raises(NeedsPerson, match=r"cannot open .*nowhere/perpline\.db.*folder"):
        await SqliteStore(tmp_path / "nowhere" / "perpline.db").open()


async def test_a_path_that_is_a_folder_needs_a_person(tmp_path: Path) -> None:
    with pytest.raises(NeedsPerson, match="cannot open"):
        await SqliteStore(tmp_path).open()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_file_that_cannot_be_written_needs_a_person(tmp_path: Path) -> None:
    path = tmp_path / "perpline.db"
    path.touch(mode=0o400)

    with pytest.raises(NeedsPerson, match="cannot be written"):
        await SqliteStore(path).open()


async def test_a_file_that_is_no_database_needs_a_person_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("buy low, sell high\n" * 100)

    with pytest.raises(NeedsPerson, match="not a SQLite database"):
        await SqliteStore(path).open()
    assert path.read_text() == "buy low, sell high\n" * 100


async def test_a_newer_schema_needs_a_person_also_when_it_was_made_while_we_were_away(store: SqliteStore) -> None:
    await store.close()
    path = store.path
    connection = apsw.Connection(str(path))
    connection.execute("INSERT INTO schema_migrations VALUES (9999, '9999_later.sql', '')")
    connection.close()

    with pytest.raises(NeedsPerson, match="has schema 9999, and this perpline knows schemas up to "):
        await store.open()


async def test_an_old_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "OLDEST_SQLITE", (4, 0, 0))

    with pytest.raises(NeedsPerson, match="install apsw"):
        await SqliteStore(tmp_path / "perpline.db").open()


# Trouble while running


async def test_a_database_that_another_process_holds_is_unavailable_and_nothing_is_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_MS", 20)
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    other = apsw.Connection(str(store.path))
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(Unavailable, match="locked"):
        await store.add_rows("funding_rates", [funding_row("AUSDT", 0)])
    with pytest.raises(Unavailable):
        await store.commit_decisions([decision("AUSDT")], [], [], 1)
    assert (await store.row_counts())["signals"] == 0

    other.execute("ROLLBACK")
    other.close()
    assert (await store.commit_decisions([decision("AUSDT")], [], [], 1)).decisions == [decision("AUSDT")]
    await store.close()


async def test_a_full_disk_is_unavailable_and_work_goes_on_when_there_is_room(store: SqliteStore) -> None:
    async def limit_pages(count: int) -> None:
        await store._write.run(lambda connection: connection.execute(f"PRAGMA max_page_count={count}").fetchall())

    rows = [funding_row(f"S{n}USDT", m) for n in range(100) for m in range(100)]
    await limit_pages(100)

    with pytest.raises(Unavailable, match="full"):
        await store.add_rows("funding_rates", rows)

    await limit_pages(1_000_000)
    await store.add_rows("funding_rates", rows)
    assert (await store.row_counts())["funding_rates"] == 10_000


async def test_a_decision_passes_a_bulk_batch_that_came_before_it(store: SqliteStore) -> None:
    bulk = asyncio.create_task(
        store.add_rows("funding_rates", [funding_row(f"S{n}USDT", m) for n in range(200) for m in range(100)])
    )
    await asyncio.sleep(0)

    await store.commit_decisions([decision("AUSDT")], [], [], 1)

    assert not bulk.done()
    assert await bulk == 20_000


async def test_the_log_is_moved_into_the_database_beside_the_work(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "CHECKPOINT_PAGES", 10)
    for n in range(30):
        await store.add_rows("funding_rates", [funding_row(f"S{m}USDT", n) for m in range(200)])
    log = store.path.with_name("perpline.db-wal")

    assert store.path.stat().st_size > 100_000
    assert log.stat().st_size < 1_000_000
    await store.close()
    assert not log.exists()


@pytest.mark.parametrize("error", [Unavailable("it is away"), NeedsPerson("it was moved while it was in use")])
async def test_a_log_that_cannot_be_moved_is_no_error_of_its_own(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def refuse(*asked: object) -> None:
        raise error

    monkeypatch.setattr(store._checkpoint, "run", refuse)
    monkeypatch.setattr(sqlite, "CHECKPOINT_PAGES", 0)
    await store.commit_decisions([decision("AUSDT")], [], [], 1)

    assert store._checkpointing is not None
    await store._checkpointing


async def test_a_call_that_is_cancelled_leaves_the_store_usable(store: SqliteStore) -> None:
    rows = [funding_row(f"S{n}USDT", m) for n in range(100) for m in range(10)]
    bulk = asyncio.create_task(store.add_rows("funding_rates", rows))
    await asyncio.sleep(0)
    bulk.cancel()
    await asyncio.gather(bulk, return_exceptions=True)

    assert bulk.cancelled()
    await store.add_rows("funding_rates", rows)
    assert (await store.row_counts())["funding_rates"] == 1000


async def test_a_store_that_was_never_opened_says_so(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "perpline.db")

    with pytest.raises(RuntimeError, match="not open"):
        await store.gaps()
    await store.close()


# Only looking


async def test_who_only_looks_sees_what_is_written_and_writes_nothing(store: SqliteStore) -> None:
    looking = SqliteStore(store.path, read_only=True)
    await looking.open()
    await store.add_rows("funding_rates", [funding_row("AUSDT", 0)])

    assert (await looking.row_counts())["funding_rates"] == 1
    assert await looking.pending_messages(10) == []
    with pytest.raises(RuntimeError, match="not open for this"):
        await looking.add_rows("funding_rates", [funding_row("BUSDT", 0)])
    await looking.close()


async def test_who_only_looks_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(NeedsPerson, match="cannot open"):
        await SqliteStore(tmp_path / "perpline.db", read_only=True).open()
    assert not (tmp_path / "perpline.db").exists()


# Is anything missing?


async def test_the_schema_has_the_columns_that_the_code_names(store: SqliteStore) -> None:
    await store.close()
    connection = apsw.Connection(str(store.path), flags=apsw.SQLITE_OPEN_READONLY)

    def columns(table: str) -> set[str]:
        return {name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")}

    for table in TABLES.values():
        assert columns(table.name) == set(table.columns)
    assert columns("signals") == {field.name for field in fields(Decision)} | {"seq", "t_commit"}
    assert columns("predictions") == set(Prediction.__struct_fields__)
    assert columns("outbox") == {*Message.__struct_fields__, "published_at"}
    assert columns("gaps") == set(Gap.__struct_fields__)
    connection.close()


async def test_no_question_of_the_decision_path_walks_a_whole_table(store: SqliteStore) -> None:
    await store.close()
    connection = apsw.Connection(str(store.path), flags=apsw.SQLITE_OPEN_READONLY)
    queries = named_queries("sqlite")

    def plan(name: str) -> str:
        steps = connection.execute(
            f"EXPLAIN QUERY PLAN {queries[name]}", [None] * len(set(re.findall(r"\?\d", queries[name])))
        )
        return "\n".join(detail for *_, detail in steps)

    assert "SEARCH s USING COVERING INDEX sqlite_autoindex_signals_1 (slot=? AND symbol=? AND" in plan("decided")
    assert "SEARCH signals USING COVERING INDEX sqlite_autoindex_signals_2 (slot=? AND symbol=?)" in plan("last_seq")
    assert "SCAN signals" not in plan("last_decided")
    assert "SEARCH signals USING INDEX signals_ok_by_time (slot=? AND close_time>?)" in plan("last_signals")
    assert "signals USING INDEX signals_by_time (slot=? AND close_time>? AND close_time<?)" in plan("decision_rows")
    assert "outbox_pending" in plan("pending_messages")
    connection.close()
