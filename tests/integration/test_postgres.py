"""What is PostgreSQL's own; what every store promises is in tests/conformance/test_store.py."""

import asyncio
import contextlib
import inspect
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from perpline.bootstrap import open_store
from perpline.common.errors import NeedsPerson, Unavailable
from perpline.domain.signal import Decision, Message, Prediction, Status
from perpline.storage import postgres
from perpline.storage.migrate import Migration, migrate_postgresql, migrations
from perpline.storage.postgres import PostgresStore
from perpline.storage.sql import named_queries, sql_folder
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import TABLES, Gap
from postgres_server import NoPostgres, PostgresDatabase, PostgresServer, new_postgres_database
from running import MINUTE, command, eventually, simulated, working

T0 = 1_795_183_260_000
"""2026-11-20 14:01 UTC."""
DAY = 86_400_000


@pytest.fixture
async def store(postgres_database: PostgresDatabase) -> AsyncIterator[PostgresStore]:
    yield await postgres_database.open()
    await postgres_database.close()


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server that a test may kill."""
    try:
        server = PostgresServer()
    except (NoPostgres, OSError) as error:
        pytest.skip(f"no PostgreSQL of our own here: {error}")
    try:
        server.start()
        yield server
    finally:
        server.remove()


def funding_row(symbol: str, funding_time: int) -> tuple[object, ...]:
    return (symbol, funding_time, 0.0001, None, 8, funding_time + 60_000)


def premium_row(symbol: str, minute: int) -> tuple[object, ...]:
    return (symbol, minute, 1.5, 1.5, 0.0001, 0, 60, minute + 59_000, minute + 59_000)


def decision(symbol: str, close_time: int = T0) -> Decision:
    return Decision(signal_id="", slot="champion", symbol=symbol, close_time=close_time, side=0, status=Status.FLAT)


def prediction(one: Decision) -> Prediction:
    return Prediction(
        slot=one.slot,
        symbol=one.symbol,
        close_time=one.close_time,
        model_id="m",
        p_long_raw=None,
        p_short_raw=None,
        p_long=None,
        p_short=None,
        features=b"",
        feat_ref="",
    )


def message(one: Decision) -> Message:
    return Message(
        id=0,
        kind="signal",
        slot=one.slot,
        symbol=one.symbol,
        close_time=one.close_time,
        payload="{}",
        valid_until=one.close_time,
    )


# Addresses


@pytest.mark.parametrize(
    "url",
    [
        "",
        "perpline",
        "postgresql:",
        "postgresql://me:s3cret@host",
        "postgresql://me:s3cret@host/",
        "postgresql://me:s3cret@host:54x/perpline",
        "postgresql://[",
        "mysql://me:s3cret@host/perpline",
    ],
)
def test_an_address_that_cannot_be_meant_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(NeedsPerson, match="postgresql://user") as raised:
        PostgresStore(url)
    assert "s3cret" not in str(raised.value)


def test_texts_name_the_database_without_password_and_options() -> None:
    store = PostgresStore("postgresql://me:s3cret@host:5433/perpline?sslmode=require&password=s3cret")

    assert store.where == "postgresql://me:***@host:5433/perpline"


def test_a_missing_asyncpg_is_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "perpline.storage.postgres")
    monkeypatch.setitem(sys.modules, "asyncpg", None)

    with pytest.raises(NeedsPerson, match=r"pip install 'perpline\[postgres\]'"):
        open_store("postgresql://host/perpline")


# Servers that cannot be used


async def test_a_database_that_is_not_there_needs_a_person(postgres_database: PostgresDatabase) -> None:
    url = postgres_database.url.replace(postgres_database.name, "nowhere")

    with pytest.raises(NeedsPerson, match='database "nowhere" does not exist'):
        await PostgresStore(url).open()


async def test_a_wrong_password_needs_a_person_and_is_in_no_text(own_server: PostgresServer) -> None:
    with contextlib.suppress(asyncpg.DuplicateObjectError):
        await do(own_server.url(), "CREATE ROLE asks_for_a_password LOGIN PASSWORD 'right'")

    with pytest.raises(NeedsPerson, match="password authentication failed") as raised:
        await PostgresStore(f"{own_server.url(user='asks_for_a_password')}&password=s3cret").open()
    assert all("s3cret" not in str(error) for error in chain(raised.value))


async def test_a_user_who_may_not_make_tables_needs_a_person(own_server: PostgresServer) -> None:
    with contextlib.suppress(asyncpg.DuplicateObjectError):
        await do(own_server.url(), "CREATE ROLE guest LOGIN")

    with pytest.raises(NeedsPerson, match="permission denied"):
        await PostgresStore(own_server.url(user="guest")).open()


async def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"postgresql:///perpline: .*No such file"):
        await PostgresStore(f"postgresql:///perpline?host={tmp_path}").open()


async def test_a_server_that_hangs_up_is_unavailable() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unavailable):
            await PostgresStore(f"postgresql://me:s3cret@127.0.0.1:{port}/perpline").open()


async def test_a_server_that_says_nothing_is_unavailable_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "CONNECT_TIMEOUT_S", 0.2)
    asked = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked.wait()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Unavailable, match="did not answer in time"):
            await PostgresStore(f"postgresql://127.0.0.1:{port}/perpline").open()
        asked.set()


async def test_too_many_connections_are_unavailable(own_server: PostgresServer) -> None:
    with contextlib.suppress(asyncpg.DuplicateObjectError):
        await do(own_server.url(), "CREATE ROLE one_at_a_time LOGIN SUPERUSER CONNECTION LIMIT 0")
        await do(own_server.url(), "ALTER ROLE one_at_a_time NOSUPERUSER")

    with pytest.raises(Unavailable, match="too many connections"):
        await PostgresStore(own_server.url(user="one_at_a_time")).open()


async def test_an_option_that_means_nothing_needs_a_person(postgres_database: PostgresDatabase) -> None:
    with pytest.raises((NeedsPerson, ValueError)):
        await PostgresStore(f"{postgres_database.url}&sslmode=sometimes").open()


async def test_a_schema_of_its_own_in_a_database_of_others(postgres_database: PostgresDatabase) -> None:
    postgres_database.do("CREATE TABLE bookmarks (url text)")
    with pytest.raises(NeedsPerson, match=r"belongs to another program .*bookmarks"):
        await postgres_database.open()

    url = f"{postgres_database.url}&search_path=Candles"
    with pytest.raises(NeedsPerson, match="names no schema"):
        await PostgresStore(url).open()
    postgres_database.do('CREATE SCHEMA "candles"')
    store = PostgresStore(url.replace("Candles", "candles"))
    await store.open()

    assert await store.add_rows("premium_index", [premium_row("AUSDT", T0)]) == 1
    assert (await store.row_counts())["premium_index"] == 1
    await store.close()
    assert postgres_database.rows("SELECT count(*) FROM candles.premium_index") == [(1,)]


# Migrations

FIRST = Migration(1, "0001_first.sql", "CREATE TABLE a (x bigint);\nCREATE TABLE b (y text);\n")
SECOND = Migration(2, "0002_second.sql", "ALTER TABLE a ADD COLUMN z bigint;\nUPDATE a SET z = x + 1;\n")


@pytest.fixture
async def connection(postgres_database: PostgresDatabase) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(postgres_database.url)
    yield connection
    await connection.close()


async def test_an_older_database_keeps_its_data_and_gets_what_is_missing(connection: Any) -> None:
    assert await migrate_postgresql(connection, [FIRST], "db") == 0
    await connection.execute("INSERT INTO a VALUES (7)")

    assert await migrate_postgresql(connection, [FIRST, SECOND], "db") == 1
    assert await migrate_postgresql(connection, [FIRST, SECOND], "db") == 2

    assert [tuple(row) for row in await connection.fetch("SELECT x, z FROM a")] == [(7, 8)]


async def test_a_database_with_rows_in_partitions_migrates_with_them(postgres_database: PostgresDatabase) -> None:
    store = await postgres_database.open()
    await store.add_rows("premium_index", [premium_row("AUSDT", T0 + n * DAY) for n in range(3)])
    await store.close()
    known = migrations(sql_folder("postgresql"))
    text = "ALTER TABLE premium_index ADD COLUMN basis double precision; UPDATE premium_index SET basis = 0.5;"
    added = Migration(len(known) + 1, "9999_basis.sql", text)

    connection = await asyncpg.connect(postgres_database.url)
    assert await migrate_postgresql(connection, [*known, added], "db") == len(known)
    await connection.close()

    assert postgres_database.rows("SELECT minute, basis FROM premium_index ORDER BY 1") == [
        (T0 + n * DAY, 0.5) for n in range(3)
    ]
    with pytest.raises(NeedsPerson, match=f"has schema {len(known) + 1}, and this perpline knows schemas up to"):
        await postgres_database.open()


async def test_a_migration_that_fails_leaves_the_database_as_it_was(connection: Any) -> None:
    await migrate_postgresql(connection, [FIRST], "db")
    broken = Migration(2, "0002_broken.sql", "CREATE TABLE c (x bigint);\nINSERT INTO nowhere VALUES (1);")

    with pytest.raises(asyncpg.UndefinedTableError):
        await migrate_postgresql(connection, [FIRST, broken], "db")

    assert await connection.fetchval("SELECT to_regclass('c')") is None
    await migrate_postgresql(connection, [FIRST, SECOND], "db")


async def test_a_newer_schema_is_refused_naming_both_versions(postgres_database: PostgresDatabase) -> None:
    await (await postgres_database.open()).close()
    postgres_database.do("INSERT INTO schema_migrations VALUES (9999, '9999_later.sql', '')")

    with pytest.raises(NeedsPerson, match=r"has schema 9999, and this perpline knows schemas up to \d+: .* upgrade"):
        await postgres_database.open()


async def test_a_migration_that_was_changed_afterwards_is_refused(connection: Any) -> None:
    await migrate_postgresql(connection, [FIRST], "db")
    changed = Migration(1, FIRST.name, FIRST.sql + "-- one more thought")

    with pytest.raises(NeedsPerson, match=r"0001_first\.sql is not the one"):
        await migrate_postgresql(connection, [changed, SECOND], "db")


async def test_many_who_migrate_at_once_do_it_once(postgres_database: PostgresDatabase) -> None:
    stores = [PostgresStore(postgres_database.url) for _ in range(5)]

    await asyncio.gather(*(store.open() for store in stores))

    for store in stores:
        await store.close()
    assert postgres_database.rows("SELECT count(*), max(number) FROM schema_migrations") == [
        (len(migrations()), len(migrations()))
    ]


async def test_who_only_looks_migrates_nothing_and_writes_nothing(postgres_database: PostgresDatabase) -> None:
    with pytest.raises(NeedsPerson, match="older schema, or none"):
        await PostgresStore(postgres_database.url, read_only=True).open()
    assert postgres_database.rows("SELECT to_regclass('schema_migrations')") == [(None,)]

    store = await postgres_database.open()
    looking = PostgresStore(postgres_database.url, read_only=True)
    await looking.open()
    await store.add_rows("funding_rates", [funding_row("AUSDT", 0)])

    assert (await looking.row_counts())["funding_rates"] == 1
    assert await looking.pending_messages(10) == []
    with pytest.raises(RuntimeError, match="not open for this"):
        await looking.add_rows("funding_rates", [funding_row("BUSDT", 0)])
    await looking.close()
    await postgres_database.close()


# Partitions


def partitions(database: PostgresDatabase, table: str) -> list[str]:
    query = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = $1::text::regclass ORDER BY 1"
    return [name.removeprefix(f"{table}_") for (name,) in database.rows(query, table)]


async def test_a_partition_is_made_for_the_day_of_the_rows_and_the_next_one_ahead(
    store: PostgresStore, postgres_database: PostgresDatabase
) -> None:
    await store.add_rows("premium_index", [premium_row("AUSDT", T0)])
    await eventually(lambda: partitions(postgres_database, "premium_index") == ["20261120", "20261121"])

    await store.add_rows("premium_index", [premium_row("AUSDT", T0 - 400 * DAY)])
    await store.add_rows("premium_index", [premium_row("AUSDT", T0 + MINUTE)])
    await eventually(
        lambda: partitions(postgres_database, "premium_index") == ["20251016", "20251017", "20261120", "20261121"]
    )
    assert partitions(postgres_database, "candles_1m") == []
    await store.commit_decisions([decision("AUSDT")], [prediction(decision("AUSDT"))], [], 1)
    for table in ("signals", "predictions"):
        await eventually(lambda table=table: partitions(postgres_database, table) == ["20261120", "20261121"])


async def test_a_row_is_in_the_partition_of_its_day_to_the_last_millisecond(
    store: PostgresStore, postgres_database: PostgresDatabase
) -> None:
    midnight = T0 - T0 % DAY
    minutes = [midnight - 1, midnight, midnight + DAY - 1, midnight + DAY]

    await store.add_rows("premium_index", [premium_row("AUSDT", minute) for minute in minutes])

    query = "SELECT minute, tableoid::regclass::text FROM premium_index ORDER BY minute"
    days = ["20261119", "20261120", "20261120", "20261121"]
    assert postgres_database.rows(query) == [
        (minute, f"premium_index_{day}") for minute, day in zip(minutes, days, strict=True)
    ]


async def test_large_tables_have_a_partition_a_day_and_none_for_what_is_left_over(
    store: PostgresStore, postgres_database: PostgresDatabase
) -> None:
    found = postgres_database.rows(
        "SELECT c.relname, p.partdefid FROM pg_partitioned_table p JOIN pg_class c ON c.oid = p.partrelid ORDER BY 1"
    )

    assert {default for _, default in found} == {0}
    assert {table for table, _ in found} == {
        *("candles_1m", "premium_index", "mark_klines", "index_klines", "premium_klines", "open_interest"),
        *("long_short_ratio", "book_minutes", "signals", "predictions"),
    }


@pytest.mark.parametrize("minute", [-1, 10**15, None, 0.5, "1"])
async def test_a_time_that_is_none_is_refused_and_makes_no_partition(
    store: PostgresStore, postgres_database: PostgresDatabase, minute: Any
) -> None:
    row = ("AUSDT", minute, *premium_row("AUSDT", T0)[2:])

    with pytest.raises(ValueError, match="refused a row"):
        await store.add_rows("premium_index", [row])
    assert set(partitions(postgres_database, "premium_index")) <= {"19700101"}


async def test_a_partition_that_somebody_dropped_is_made_again(
    store: PostgresStore, postgres_database: PostgresDatabase
) -> None:
    rows, later = [premium_row("AUSDT", T0)], [decision("AUSDT", T0 + MINUTE)]
    await store.add_rows("premium_index", rows)
    await store.commit_decisions([decision("AUSDT")], [], [], 1)
    for table in ("premium_index", "signals"):
        await eventually(lambda table=table: len(partitions(postgres_database, table)) == 2)

    postgres_database.do("DROP TABLE premium_index_20261120")
    with pytest.raises(Unavailable, match="next try"):
        await store.add_rows("premium_index", rows)
    assert await store.add_rows("premium_index", rows) == 1

    postgres_database.do("DROP TABLE signals_20261120")
    with pytest.raises(Unavailable, match="next try"):
        await store.commit_decisions(later, [], [], 1)
    assert (await store.commit_decisions(later, [], [], 1)).decisions == later


async def test_two_who_need_the_same_day_at_once_make_it_once(postgres_database: PostgresDatabase) -> None:
    stores = [await postgres_database.open() for _ in range(4)]

    for day in range(5):
        rows = [premium_row(f"S{n}USDT", T0 + day * DAY) for n in range(10)]
        written = await asyncio.gather(*(store.add_rows("premium_index", rows) for store in stores))
        assert sum(written) == 10

    await postgres_database.close()


async def test_the_decision_path_opens_only_the_partitions_of_its_minutes(
    store: PostgresStore, postgres_database: PostgresDatabase
) -> None:
    await store.commit_decisions([decision("AUSDT", T0 + day * DAY) for day in range(20)], [], [], 1)
    query = named_queries("postgresql")["decided"]
    values = {"$1": "'{champion}'", "$2": "'{AUSDT}'", "$3": f"'{{{T0}}}'", "$4": str(T0), "$5": str(T0)}
    for name, value in values.items():
        query = query.replace(name, value)

    plan = "\n".join(line for (line,) in postgres_database.rows(f"EXPLAIN {query}"))

    assert "signals_20261120" in plan
    assert plan.count("signals_2026") <= 2


# Trouble while running


async def test_a_table_that_another_holds_is_unavailable_and_nothing_is_half_done(
    postgres_database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "LOCK_TIMEOUT_MS", 50)
    store = await postgres_database.open()
    other = await asyncpg.connect(postgres_database.url)
    async with other.transaction():
        await other.execute("LOCK TABLE outbox, funding_rates")
        with pytest.raises(Unavailable, match="lock timeout"):
            await store.add_rows("funding_rates", [funding_row("AUSDT", 0)])
        with pytest.raises(Unavailable, match="lock timeout"):
            await store.commit_decisions([decision("AUSDT")], [], [message(decision("AUSDT"))], 1)
    await other.close()

    assert postgres_database.rows("SELECT count(*) FROM signals") == [(0,)]
    assert (await store.commit_decisions([decision("AUSDT")], [], [], 1)).decisions == [decision("AUSDT")]
    await postgres_database.close()


async def test_a_server_that_stands_still_is_unavailable_in_time_and_used_again_later(
    own_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "COMMAND_TIMEOUT_S", 0.3)
    database = new_postgres_database(own_server.url())
    store = await database.open()
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'perpline decisions' AND datname = $1"
    [(pid,)] = database.rows(query, database.name)

    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable, match="did not answer in time"):
            await store.commit_decisions([decision("AUSDT")], [], [], 1)
        assert (await store.commit_decisions([decision("BUSDT")], [], [], 1)).decisions == [decision("BUSDT")]
    finally:
        os.kill(pid, signal.SIGCONT)

    await database.close()
    database.drop()


async def test_a_call_that_is_cancelled_leaves_the_store_usable(
    store: PostgresStore, postgres_database: PostgresDatabase
) -> None:
    rows = [funding_row(f"S{n}USDT", m) for n in range(100) for m in range(10)]
    for delay in (0.0, 0.001, 0.003, 0.01):
        bulk = asyncio.create_task(store.add_rows("funding_rates", rows))
        await asyncio.sleep(delay)
        bulk.cancel()
        await asyncio.gather(bulk, return_exceptions=True)

    await store.add_rows("funding_rates", rows)
    assert (await store.row_counts())["funding_rates"] == 1000


async def test_a_decision_passes_a_bulk_batch_that_came_before_it(store: PostgresStore) -> None:
    bulk = asyncio.create_task(
        store.add_rows("funding_rates", [funding_row(f"S{n}USDT", m) for n in range(400) for m in range(100)])
    )
    await asyncio.sleep(0)

    await store.commit_decisions([decision("AUSDT")], [], [], 1)

    assert not bulk.done()
    assert await bulk == 40_000


async def test_a_store_that_was_never_opened_says_so() -> None:
    store = PostgresStore("postgresql:///perpline")

    with pytest.raises(RuntimeError, match="not open"):
        await store.gaps()
    await store.close()


@pytest.mark.parametrize(
    ("error", "meant"),
    [
        (asyncpg.DiskFullError("x"), Unavailable),
        (asyncpg.TooManyConnectionsError("x"), Unavailable),
        (asyncpg.AdminShutdownError("x"), Unavailable),
        (asyncpg.CannotConnectNowError("x"), Unavailable),
        (asyncpg.DeadlockDetectedError("x"), Unavailable),
        (asyncpg.ReadOnlySQLTransactionError("x"), Unavailable),
        (asyncpg.InterfaceError("connection is closed"), Unavailable),
        (ConnectionResetError(104, "reset"), Unavailable),
        (asyncpg.InvalidPasswordError("x"), NeedsPerson),
        (asyncpg.InsufficientPrivilegeError("x"), NeedsPerson),
        (asyncpg.DataCorruptedError("x"), NeedsPerson),
        (asyncpg.NotNullViolationError("x"), ValueError),
        (asyncpg.exceptions.DataError("x"), ValueError),
    ],
)
def test_errors_are_named_by_what_the_caller_does_next(error: Exception, meant: type[Exception]) -> None:
    found = postgres._meaning(error, "db")

    assert type(found) is meant


def test_a_bug_stays_what_it_is() -> None:
    for bug in (asyncpg.PostgresSyntaxError("x"), KeyError("x"), asyncio.CancelledError(), AssertionError()):
        assert postgres._meaning(bug, "db") is None


# The server goes, in every way, while two workers write


def end_connections(server: PostgresServer, database: PostgresDatabase) -> None:
    database.do(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name LIKE 'perpline%'"
    )


def kill_a_backend(server: PostgresServer, database: PostgresDatabase) -> None:
    """PostgreSQL then ends all others too, for the memory they share may be damaged, and recovers."""
    found = database.rows(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'perpline%'"
    )
    if found:
        os.kill(found[0][0], signal.SIGKILL)


def restart(server: PostgresServer, database: PostgresDatabase) -> None:
    server.stop()
    server.start()


def kill(server: PostgresServer, database: PostgresDatabase) -> None:
    server.stop(signal.SIGKILL)
    server.start()


@pytest.mark.parametrize("trouble", [end_connections, kill_a_backend, restart, kill])
async def test_whatever_happens_to_the_server_every_row_is_there_once_and_every_transaction_whole(
    own_server: PostgresServer, trouble: Callable[[PostgresServer, PostgresDatabase], None]
) -> None:
    rng = random.Random(os.environ.get("PERPLINE_TEST_SEED", "7"))
    database = new_postgres_database(own_server.url())
    stores = [await database.open() for _ in range(2)]
    symbols = [f"S{n}USDT" for n in range(10)]
    away: list[Unavailable] = []
    minute = 0
    done = asyncio.Event()

    async def until_it_works(write: Callable[[], Any]) -> Any:
        while True:
            try:
                return await write()
            except Unavailable as error:
                away.append(error)
                await asyncio.sleep(0.01)

    async def work(store: PostgresStore) -> int:
        minute = 0
        while not done.is_set() or minute < 60:
            close_time = T0 + minute * MINUTE
            rows = [premium_row(symbol, close_time) for symbol in symbols]
            made = [decision(symbol, close_time) for symbol in symbols]
            said, sent = [prediction(one) for one in made], [message(one) for one in made]
            await until_it_works(lambda rows=rows: store.add_rows("premium_index", rows))
            await until_it_works(lambda made=made, said=said, sent=sent: store.commit_decisions(made, said, sent, 1))
            pending = await until_it_works(lambda: store.pending_messages(100_000))
            ids = [one.id for one in pending if one.symbol != "S9USDT"]
            await until_it_works(lambda ids=ids: store.mark_published(ids, 1))
            minute += 1
        return minute

    working = [asyncio.create_task(work(store)) for store in stores]
    for _ in range(3):
        await asyncio.sleep(rng.uniform(0.1, 0.4))
        await asyncio.to_thread(with_patience, lambda: trouble(own_server, database))
    done.set()
    minute = max([await one for one in working])
    await database.close()

    assert away
    every = [(T0 + n * MINUTE, 10) for n in range(minute)]
    for table, column in (("premium_index", "minute"), ("signals", "close_time"), ("predictions", "close_time")):
        assert database.rows(f"SELECT {column}, count(*) FROM {table} GROUP BY 1 ORDER BY 1") == every
    assert database.rows("SELECT close_time, count(DISTINCT symbol) FROM outbox GROUP BY 1 ORDER BY 1") == every
    numbers = [(symbol, minute, 1, minute) for symbol in symbols]
    assert numbers == database.rows("SELECT symbol, count(*), min(seq), max(seq) FROM signals GROUP BY 1 ORDER BY 1")
    pending = database.rows("SELECT DISTINCT symbol FROM outbox WHERE published_at IS NULL")
    assert pending == [("S9USDT",)]
    looking = await database.open()
    assert await looking.damage() == []
    await database.close()
    database.drop()


def with_patience(trouble: Callable[[], None]) -> None:
    """The server may still be recovering from the trouble before."""
    for _ in range(500):
        try:
            return trouble()
        except (asyncpg.PostgresError, OSError):
            signal.sigtimedwait([], 0.02)
    raise AssertionError("the server did not come back")


# The whole


async def test_two_workers_on_one_database_decide_each_minute_once(
    postgres_database: PostgresDatabase, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    url = postgres_database.url

    def minutes() -> list[tuple[int, int, int]]:
        return postgres_database.rows(
            "SELECT close_time, count(*), count(DISTINCT symbol) FROM signals GROUP BY 1 ORDER BY 1"
        )

    async with (
        simulated(speed=60) as exchange,
        working(exchange, folders[0], seed=1, database_url=url) as one,
        working(exchange, folders[1], seed=2, database_url=url) as two,
    ):
        await one.until_ready()
        await two.until_ready()
        before = len(minutes())
        await one.until(lambda: len(minutes()) >= before + 4, what="four more minutes")
        facts = [await one.stop(), await two.stop()]

    found = minutes()
    symbols = len(exchange.symbols)
    assert [rows for _, rows, _ in found[:-1]] == [symbols] * (len(found) - 1)
    assert all(rows == distinct for _, rows, distinct in found)
    assert [close_time for close_time, _, _ in found] == list(range(found[0][0], found[-1][0] + MINUTE, MINUTE))
    assert postgres_database.rows("SELECT DISTINCT count(*) - max(seq) FROM signals GROUP BY symbol") == [(0,)]
    assert postgres_database.rows("SELECT count(*) FROM outbox WHERE published_at IS NULL") == [(0,)]
    decided = [sum(one["decisions"]["by_status"].values()) for one in facts]
    assert sum(decided) == sum(rows for _, rows, _ in found)


async def test_a_worker_outlives_the_death_of_the_server_and_decides_each_minute_once(
    own_server: PostgresServer, tmp_path: Path
) -> None:
    database = new_postgres_database(own_server.url())

    def last_close() -> int:
        [(close_time,)] = database.rows(
            "SELECT coalesce(max(close_time), 0) FROM signals WHERE status <> 'skipped_missed'"
        )
        return int(close_time)

    async with simulated(speed=60) as exchange, working(exchange, tmp_path, database_url=database.url) as worker:
        await worker.until_ready()
        await worker.until(lambda: last_close() > 0, what="the first decision")
        await asyncio.to_thread(own_server.stop, signal.SIGKILL)
        away_until = exchange.clock.now_ms() + 2 * MINUTE
        await worker.until(lambda: exchange.clock.now_ms() > away_until)
        await asyncio.to_thread(own_server.start)
        await worker.until(lambda: last_close() > away_until + MINUTE, what="decisions after the restart")
        await worker.stop()

    symbols = len(exchange.symbols)
    found = database.rows("SELECT close_time, count(*), count(DISTINCT symbol) FROM signals GROUP BY 1 ORDER BY 1")
    assert found == [(found[0][0] + n * MINUTE, symbols, symbols) for n in range(len(found))]
    for table in ("candles_1m", "premium_index"):
        time = "open_time" if table == "candles_1m" else "minute"
        gapless = database.rows(
            f"SELECT symbol, count(*), (max({time}) - min({time})) / {MINUTE} + 1 FROM {table} GROUP BY 1"
        )
        assert [(count, count) for _, count, _ in gapless] == [(count, minutes) for _, count, minutes in gapless]
    assert database.rows("SELECT count(*) FROM outbox WHERE published_at IS NULL") == [(0,)]
    database.drop()


async def test_the_demo_decides_every_minute_into_postgresql(postgres_database: PostgresDatabase) -> None:
    words = ["demo", "--symbols", "3", "--speed", "60", "--duration", "6", "--json"]
    demo = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "perpline", *words, "--database", f"{postgres_database.url}&password=s3cret"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert demo.stdout is not None
    output = await demo.stdout.read()
    assert await demo.wait() == 0

    facts = json.loads(output.splitlines()[-1])

    assert facts["minutes_closed"] >= 4
    assert facts["decisions"] >= facts["minutes_closed"] * 3
    assert (facts["decisions_missing"], facts["decisions_twice"], facts["malformed"]) == (0, 0, 0)
    assert postgres_database.rows("SELECT count(*) FROM signals") == [(facts["rows"]["signals"],)]
    assert b"s3cret" not in output


def test_the_database_commands_serve_postgresql(postgres_database: PostgresDatabase, tmp_path: Path) -> None:
    def db(word: str, *words: object) -> Any:
        return command("db", word, *words, "--database", postgres_database.url, "--json")

    assert {name: db("migrate").json[name] for name in ("from", "to")} == {
        "from": 0,
        "to": len(migrations()),
    }
    assert db("migrate").json["from"] == len(migrations())

    async def fill() -> None:
        store = await postgres_database.open()
        for minute in (0, 1, 4):
            await store.add_rows("candles_1m", [candle_row_at("AUSDT", T0 + minute * MINUTE)])
            made = [decision("AUSDT", T0 + minute * MINUTE)]
            await store.commit_decisions(made, [], [message(one) for one in made], 1)
        await store.open_gap("AUSDT", "candles_1m", T0 + 2 * MINUTE, T0 + 4 * MINUTE, "jump", 7)
        await postgres_database.close()

    asyncio.run(fill())
    facts = db("check").json
    assert (facts["ok"], facts["schema"], facts["symbols"], facts["minutes_missing"]) == (
        True,
        len(migrations()),
        1,
        {"AUSDT": 2},
    )
    assert (facts["gaps_open"], facts["outbox_pending"], facts["disk_free_bytes"]) == (1, 3, None)
    assert db("backup", "--out", tmp_path / "copy.db").code == 0
    copied = command("db", "check", "--database", f"sqlite:///{tmp_path}/copy.db", "--json").json
    assert copied["rows"] == facts["rows"]

    postgres_database.do("UPDATE signal_seqs SET seq = 9")
    ended = db("check")
    assert ended.code == 1
    assert ended.json["problems"] == ["signal_seqs says seq 9 for champion AUSDT, and signals 3"]


def candle_row_at(symbol: str, open_time: int) -> tuple[object, ...]:
    return (symbol, open_time, open_time + MINUTE - 1, *[1.5] * 6, 7, 1.5, 1.5, *[0] * 4, False, "ws", 0)


# Is anything missing?


async def test_both_kinds_of_database_have_the_same_tables_and_columns(
    store: PostgresStore, postgres_database: PostgresDatabase, tmp_path: Path
) -> None:
    sqlite = SqliteStore(tmp_path / "perpline.db")
    await sqlite.open()
    query = 'SELECT m.name, c.name, c."notnull" FROM sqlite_schema AS m, pragma_table_info(m.name) AS c '
    expected = {
        (table, column): bool(not_null)
        for table, column, not_null in await sqlite.select(f"{query} WHERE m.type = 'table'")
        if not table.startswith("sqlite_") and table != "schema_migrations"
    }
    await sqlite.close()

    found = {
        (table, column): nullable == "NO"
        for table, column, nullable in postgres_database.rows(
            "SELECT table_name, column_name, is_nullable FROM information_schema.columns WHERE table_schema = 'public'"
        )
        if table not in postgres.BOOKKEEPING
    }

    ids = {key for key in expected if key[1] == "id"}  # SQLite calls its row numbers nullable, and they are not
    assert found == {key: not_null or key in ids for key, not_null in expected.items()}


async def test_the_schema_has_the_columns_that_the_code_names(store: PostgresStore) -> None:
    for table in TABLES.values():
        assert set(store._types[table.name]) == set(table.columns)
    assert set(store._types["signals"]) == {*Decision.__struct_fields__, "seq", "t_commit"}
    assert set(store._types["predictions"]) == set(Prediction.__struct_fields__)
    assert set(store._types["outbox"]) == {*Message.__struct_fields__, "published_at"}
    assert set(store._types["gaps"]) == set(Gap.__struct_fields__)


def test_every_error_class_of_postgresql_is_known_or_a_bug() -> None:
    bugs = {"00", "01", "02", "03", "09", "0B", "0F", "0L", "0P", "0Z", "10", "20", "24", "25", "26", "27", "2B", "2D"}
    bugs |= {
        "2F",
        "34",
        "38",
        "39",
        "3B",
        "3D",
        "3F",
        "42",
        "44",
        "54",
        "55",
        "72",
        "F0",
        "HV",
        "P0",
        "XX",
        "0A",
        "2BP01",
    }

    unknown = set()
    for _, error in inspect.getmembers(asyncpg.exceptions, inspect.isclass):
        state = getattr(error, "sqlstate", None)
        if state and postgres._meaning(error("x"), "db") is None and state[:2] not in bugs:
            unknown.add(state)

    assert unknown == set()


async def do(url: str, query: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(query)
    finally:
        await connection.close()


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
