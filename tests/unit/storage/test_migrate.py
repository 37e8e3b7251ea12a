from pathlib import Path

import apsw
import pytest

from perpline.common.errors import NeedsPerson
from perpline.storage.migrate import Migration, migrate, migrations, outstanding

FIRST = Migration(1, "0001_first.sql", "CREATE TABLE a (x INTEGER) STRICT;\nCREATE TABLE b (y TEXT) STRICT;\n")
SECOND = Migration(2, "0002_second.sql", "ALTER TABLE a ADD COLUMN z INTEGER;\n")


@pytest.fixture
def connection() -> apsw.Connection:
    return apsw.Connection(":memory:")


def columns(connection: apsw.Connection, table: str) -> list[str]:
    return [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")]


def test_a_new_database_gets_every_migration_in_order(connection: apsw.Connection) -> None:
    migrate(connection, [FIRST, SECOND], "db")

    assert columns(connection, "a") == ["x", "z"]
    assert connection.execute("SELECT number, name FROM schema_migrations").fetchall() == [
        (1, "0001_first.sql"),
        (2, "0002_second.sql"),
    ]


def test_an_older_database_keeps_its_data_and_gets_what_is_missing(connection: apsw.Connection) -> None:
    migrate(connection, [FIRST], "db")
    connection.execute("INSERT INTO a VALUES (7)")

    migrate(connection, [FIRST, SECOND], "db")
    migrate(connection, [FIRST, SECOND], "db")

    assert connection.execute("SELECT x, z FROM a").fetchall() == [(7, None)]


def test_a_mode_of_an_older_schema_is_about_every_symbol_and_keeps_positions(connection: apsw.Connection) -> None:
    migrate(connection, migrations()[:2], "db")
    connection.execute("INSERT INTO modes (mode, changed_at, \"by\", reason) VALUES ('paper', 5, 'me', 'to see')")

    migrate(connection, migrations(), "db")

    query = 'SELECT symbol, mode, positions, changed_at, "by", reason, until FROM modes'
    assert connection.execute(query).fetchall() == [("", "paper", "keep", 5, "me", "to see", None)]


def test_a_migration_that_fails_leaves_the_database_as_it_was(connection: apsw.Connection) -> None:
    migrate(connection, [FIRST], "db")
    broken = Migration(2, "0002_broken.sql", "CREATE TABLE c (x INTEGER);\nINSERT INTO nowhere VALUES (1);")

    with pytest.raises(apsw.SQLError):
        migrate(connection, [FIRST, broken], "db")

    assert columns(connection, "c") == []
    assert not connection.in_transaction
    migrate(connection, [FIRST, SECOND], "db")


def test_a_newer_schema_is_refused_naming_both_versions(connection: apsw.Connection) -> None:
    migrate(connection, [FIRST, SECOND], "db")

    with pytest.raises(NeedsPerson, match=r"^my\.db has schema 2, and this perpline knows schemas up to 1: .* upgrade"):
        migrate(connection, [FIRST], "my.db")


def test_a_migration_that_was_changed_afterwards_is_refused(connection: apsw.Connection) -> None:
    migrate(connection, [FIRST], "db")
    changed = Migration(1, FIRST.name, FIRST.sql + "-- one more thought")

    with pytest.raises(NeedsPerson, match=r"0001_first\.sql is not the one"):
        migrate(connection, [changed, SECOND], "db")
    assert columns(connection, "a") == ["x"]


def test_line_ends_of_a_checkout_change_no_checksum() -> None:
    turned = Migration(1, FIRST.name, FIRST.sql.replace("\n", "\r\n"))

    assert turned.checksum == FIRST.checksum


def test_a_database_of_another_program_is_refused(connection: apsw.Connection) -> None:
    connection.execute("CREATE TABLE bookmarks (url TEXT)")

    with pytest.raises(NeedsPerson, match=r"belongs to another program .*bookmarks"):
        migrate(connection, [FIRST], "db")
    assert columns(connection, "a") == []


def test_who_only_looks_migrates_nothing(connection: apsw.Connection) -> None:
    with pytest.raises(NeedsPerson, match="older schema, or none"):
        migrate(connection, [FIRST], "db", read_only=True)
    assert columns(connection, "schema_migrations") == []


def test_outstanding_are_those_after_the_newest_applied() -> None:
    known = [FIRST, SECOND]

    assert outstanding({}, known, "db") == known
    assert outstanding({1: FIRST.checksum}, known, "db") == [SECOND]
    assert outstanding({1: FIRST.checksum, 2: SECOND.checksum}, known, "db") == []


def test_a_hole_among_the_applied_is_refused() -> None:
    with pytest.raises(NeedsPerson):
        outstanding({2: SECOND.checksum}, [FIRST, SECOND], "db")


def test_the_files_are_found_in_order_and_nothing_else(tmp_path: Path) -> None:
    for name in ("0002_b.sql", "0001_a.sql", "queries.sql", "0001_a.txt"):
        (tmp_path / name).write_text(f"-- {name}")

    assert migrations(tmp_path) == [
        Migration(1, "0001_a.sql", "-- 0001_a.sql"),
        Migration(2, "0002_b.sql", "-- 0002_b.sql"),
    ]


def test_files_that_do_not_count_one_by_one_are_refused(tmp_path: Path) -> None:
    for name in ("0001_a.sql", "0003_c.sql"):
        (tmp_path / name).write_text("")

    with pytest.raises(ValueError, match="0003_c"):
        migrations(tmp_path)
