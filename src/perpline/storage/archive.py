"""A backup: one SQLite file with perpline's tables, whichever kind of database they came from."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import apsw

from perpline.common.errors import NeedsPerson
from perpline.storage.migrate import migrate, migrations
from perpline.storage.store import Row

BATCH_ROWS = 5_000


class NewArchive:
    """A backup that is being written, in one transaction. It gets its name when it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unfinished = unfinished(path)
        try:
            self._connection = apsw.Connection(str(self._unfinished))
        except apsw.CantOpenError as error:
            raise NeedsPerson(f"cannot write {path}: {error}") from error
        self._connection.execute("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-262144")
        migrate(self._connection, migrations(), str(path))

    def __enter__(self) -> Self:
        self._connection.execute("BEGIN")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._connection.execute("COMMIT")
        self._connection.close()
        if error is None:
            finish(self._unfinished, self._path)
        else:
            self._unfinished.unlink(missing_ok=True)

    def tables(self) -> dict[str, list[str]]:
        return columns_by_table(self._connection)

    def add(self, table: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
        names = ", ".join(f'"{column}"' for column in columns)
        marks = ", ".join("?" * len(columns))
        self._connection.executemany(f'INSERT INTO "{table}" ({names}) VALUES ({marks})', rows)


class Archive:
    """A backup, or the file of a `SqliteStore`, to be read. Raises NeedsPerson for one of another schema."""

    def __init__(self, path: Path) -> None:
        try:
            self._connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
            migrate(self._connection, migrations(), str(path), read_only=True)
        except (apsw.CantOpenError, apsw.NotADBError) as error:
            raise NeedsPerson(f"cannot read {path}: {error}") from error

    def close(self) -> None:
        self._connection.close()

    def tables(self) -> dict[str, list[str]]:
        return columns_by_table(self._connection)

    def rows(self, table: str, columns: Sequence[str]) -> Iterator[list[Row]]:
        """All of them, in batches."""
        names = ", ".join(f'"{column}"' for column in columns)
        cursor = self._connection.execute(f'SELECT {names} FROM "{table}"')
        while batch := [row for _, row in zip(range(BATCH_ROWS), cursor, strict=False)]:
            yield batch


def unfinished(path: Path) -> Path:
    """Where a backup is written until it is whole, without what an earlier attempt has left there."""
    partial = path.with_name(f"{path.name}.unfinished")
    partial.unlink(missing_ok=True)
    return partial


def finish(partial: Path, path: Path) -> None:
    """Give it its name, once the disk has it."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def columns_by_table(connection: apsw.Connection) -> dict[str, list[str]]:
    """Of every table but the bookkeeping."""
    tables: list[Row] = connection.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%' "
        "AND name <> 'schema_migrations' ORDER BY name"
    ).fetchall()
    return {
        str(table): [str(name) for _, name, *_ in connection.execute(f'PRAGMA table_info("{table}")')]
        for (table,) in tables
    }
