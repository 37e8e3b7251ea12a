"""Numbered migrations: plain SQL files of a dialect's folder, run once each, in order, never changed afterwards."""

from collections.abc import Mapping
from hashlib import blake2b
from importlib.resources.abc import Traversable
from typing import Any

import apsw
from msgspec import Struct

from perpline.common.errors import NeedsPerson
from perpline.storage.sql import sql_folder

OLDER = "has an older schema, or none: `perpline db migrate` brings it up to date, and so does a worker's start"


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
    folder = folder or sql_folder("sqlite")
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


def migrate(connection: apsw.Connection, known: list[Migration], where: str, read_only: bool = False) -> int:
    """Bring a SQLite database to the newest schema, in one transaction; returns the schema it had, 0 for none.

    `where` names it in errors. Two processes may do this at once. Raises NeedsPerson as `outstanding` does, for a
    database that belongs to some other program, and, with `read_only`, for a schema that would have to be changed.
    """
    applied = _applied(connection, where)
    if not outstanding(applied, known, where):
        return max(applied, default=0)
    if read_only:
        raise NeedsPerson(f"{where} {OLDER}")
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Asked again: while this process waited for its turn another one may have migrated.
        applied = _applied(connection, where)
        for migration in outstanding(applied, known, where):
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
    return max(applied, default=0)


def _applied(connection: apsw.Connection, where: str) -> dict[int, str]:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if "schema_migrations" in tables:
        rows: list[Any] = connection.execute("SELECT number, checksum FROM schema_migrations").fetchall()
        return dict(rows)
    if tables:
        raise NeedsPerson(f"{where} belongs to another program (it has the table {min(tables)}): name another file")
    return {}


async def migrate_postgresql(connection: Any, known: list[Migration], where: str, read_only: bool = False) -> int:
    """The same for PostgreSQL, in the first schema of the connection's (asyncpg's) search path.

    The whole is one transaction here too: PostgreSQL takes back a CREATE TABLE like any other change.
    """
    applied = await _applied_postgresql(connection, where)
    if not outstanding(applied, known, where):
        return max(applied, default=0)
    if read_only:
        raise NeedsPerson(f"{where} {OLDER}")
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('perpline migrations', 0))")
        applied = await _applied_postgresql(connection, where)
        for migration in outstanding(applied, known, where):
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_migrations "
                "(number bigint PRIMARY KEY, name text NOT NULL, checksum text NOT NULL)"
            )
            await connection.execute(migration.sql)
            await connection.execute(
                "INSERT INTO schema_migrations (number, name, checksum) VALUES ($1, $2, $3)",
                migration.number,
                migration.name,
                migration.checksum,
            )
    return max(applied, default=0)


async def _applied_postgresql(connection: Any, where: str) -> dict[int, str]:
    if await connection.fetchval("SELECT current_schema()") is None:
        raise NeedsPerson(f"{where}: the search path names no schema that is there: CREATE SCHEMA, or name another one")
    found = await connection.fetch(
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') "
        "AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema()) "
        "AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_class.oid AND deptype = 'e')"  # an extension's
    )
    tables = {name for (name,) in found}
    if "schema_migrations" in tables:
        return dict(await connection.fetch("SELECT number, checksum FROM schema_migrations"))
    if tables:
        raise NeedsPerson(
            f"{where} belongs to another program (it has the table {min(tables)}): name another database, or a schema "
            "of its own with ?search_path=NAME"
        )
    return {}
