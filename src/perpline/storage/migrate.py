"""Numbered migrations: plain SQL files of a dialect's folder, run once each, in order, never changed afterwards."""

from collections.abc import Mapping
from hashlib import blake2b
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import apsw
from msgspec import Struct

from perpline.common.errors import NeedsPerson


class Migration(Struct, frozen=True):
    """A file like 0001_tables.sql: its number, its name and what it does."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """Changes with any change of the text but line ends, which a checkout may turn."""
        return blake2b(self.sql.replace("\r\n", "\n").encode(), digest_size=16).hexdigest()


def migrations(folder: Traversable | None = None) -> list[Migration]:
    """The migrations of a folder, SQLite's by default, in order. Raises ValueError unless they count 1, 2, 3 …"""
    folder = folder or files("perpline.storage") / "sql" / "sqlite"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name[:4].isdigit() and entry.name.endswith(".sql"))
    found = [Migration(int(name[:4]), name, (folder / name).read_text(encoding="utf-8")) for name in names]
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"migrations must count 1, 2, 3 …, not {', '.join(names)}")
    return found


def outstanding(applied: Mapping[int, str], known: list[Migration], where: str) -> list[Migration]:
    """The migrations still to be run, given the checksums by number of those that were.

    Raises NeedsPerson where the schema is newer than this program knows, or was made by a file that has changed since.
    """
    newest = max(applied, default=0)
    if newest > len(known):
        raise NeedsPerson(
            f"{where} has schema {newest}, and this perpline knows schemas up to {len(known)}: "
            "it was used by a newer perpline; upgrade this one, or name another database"
        )
    for migration in known[:newest]:
        if applied.get(migration.number) != migration.checksum:
            raise NeedsPerson(
                f"{where}: migration {migration.name} is not the one this schema was made with; "
                "it was made by another build of perpline; use that one, or name another database"
            )
    return known[newest:]


def migrate(connection: apsw.Connection, known: list[Migration], where: str, read_only: bool = False) -> None:
    """Bring a SQLite database to the newest schema, in one transaction. `where` names it in errors.

    Two processes may do this at once. Raises NeedsPerson as `outstanding` does, for a database that belongs to some
    other program, and, with `read_only`, for a schema that would have to be changed.
    """
    if not outstanding(_applied(connection, where), known, where):
        return
    if read_only:
        raise NeedsPerson(f"{where} has an older schema, or none: start the worker on it once, then look again")
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Asked again: while this process waited for its turn another one may have migrated.
        for migration in outstanding(_applied(connection, where), known, where):
            connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_migrations "
                "(number INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL) STRICT"
            )
            connection.execute(migration.sql)
            connection.execute(
                "INSERT INTO schema_migrations (number, name, checksum) VALUES (?, ?, ?)",
                (migration.number, migration.name, migration.checksum),
            )
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _applied(connection: apsw.Connection, where: str) -> dict[int, str]:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if "schema_migrations" in tables:
        rows: list[Any] = connection.execute("SELECT number, checksum FROM schema_migrations").fetchall()
        return dict(rows)
    if tables:
        raise NeedsPerson(f"{where} belongs to another program (it has the table {min(tables)}): name another file")
    return {}
