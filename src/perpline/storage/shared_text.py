"""A short text that several processes read and change, kept by the database they share.

In SQLite it has a file of its own beside the database: a decision never waits for it, it needs no migration, and it is
worth nothing a minute later, so that no backup should hold it. In PostgreSQL it has a schema of its own.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import apsw

from perpline.common.errors import NeedsPerson, Unavailable
from perpline.storage.sqlite import wal_mode

Result = TypeVar("Result")

TIMEOUT_S = 1.0
"""Short, because requests to the exchange wait for it; without it they go on alone."""

_TABLE = "CREATE TABLE IF NOT EXISTS {table} (name TEXT PRIMARY KEY NOT NULL, content TEXT NOT NULL)"


class SqliteText:
    """The text of this name in the file `path`, made on first use in a folder that is there."""

    def __init__(self, path: Path, name: str) -> None:
        self.where = str(path)
        self._path = path
        self._name = name
        self._executor: ThreadPoolExecutor | None = None
        self._connection: apsw.Connection | None = None

    async def read(self) -> str:
        rows = await self._run("SELECT content FROM texts WHERE name = ?", (self._name,))
        return str(rows[0][0]) if rows else ""

    async def swap(self, before: str, after: str) -> bool:
        if before:
            changed = "UPDATE texts SET content = ?3 WHERE name = ?1 AND content = ?2 RETURNING 1"
        else:
            changed = "INSERT INTO texts SELECT ?1, ?3 WHERE ?2 = '' ON CONFLICT DO NOTHING RETURNING 1"
        return bool(await self._run(changed, (self._name, before, after)))

    async def close(self) -> None:
        if self._executor is not None:
            executor, self._executor = self._executor, None
            await asyncio.get_running_loop().run_in_executor(executor, self._disconnect)
            executor.shutdown(wait=False)

    async def _run(self, query: str, values: tuple[str, ...]) -> list[tuple[Any, ...]]:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="sqlite text")
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._fetch, query, values)

    def _fetch(self, query: str, values: tuple[str, ...]) -> list[tuple[Any, ...]]:
        try:
            if self._connection is None:
                self._connection = self._connect()
            return self._connection.execute(query, values).fetchall()
        except apsw.Error as error:
            self._disconnect()
            raise Unavailable(f"{self._path}: {error}") from error

    def _connect(self) -> apsw.Connection:
        connection = apsw.Connection(str(self._path))
        connection.set_busy_timeout(round(TIMEOUT_S * 1000))
        wal_mode(connection, TIMEOUT_S)
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute(_TABLE.format(table="texts"))
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class PostgresText:
    """The text of this name in the table perpline_shared.texts. Connects when it is first used, and after an outage."""

    def __init__(self, url: str, name: str) -> None:
        parts = urlsplit(url)
        self.where = f"PostgreSQL at {parts.hostname or 'this machine'}{parts.path}"
        self._url = url
        self._name = name
        self._connection: Any = None

    async def read(self) -> str:
        found = await self._run(
            lambda db: db.fetchval("SELECT content FROM perpline_shared.texts WHERE name = $1", self._name)
        )
        return found or ""

    async def swap(self, before: str, after: str) -> bool:
        if before:
            changed = "UPDATE perpline_shared.texts SET content = $2 WHERE name = $1 AND content = $3 RETURNING 1"
            return bool(await self._run(lambda db: db.fetchval(changed, self._name, after, before)))
        changed = "INSERT INTO perpline_shared.texts VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING 1"
        return bool(await self._run(lambda db: db.fetchval(changed, self._name, after)))

    async def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.terminate()

    async def _run(self, ask: Callable[[Any], Awaitable[Result]]) -> Result:
        try:
            import asyncpg  # imported when asked for: only the extra [postgres] brings it
        except ImportError:
            raise NeedsPerson("a PostgreSQL database needs asyncpg: pip install 'perpline[postgres]'") from None
        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._connect(asyncpg)
            return await ask(self._connection)
        except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            # Only the kind of failure: the texts may repeat the address.
            await self.close()
            raise Unavailable(f"{self.where}: {type(error).__name__}") from error

    async def _connect(self, asyncpg: Any) -> Any:
        connection = await asyncpg.connect(self._url, timeout=TIMEOUT_S, command_timeout=TIMEOUT_S)
        try:
            if await connection.fetchval("SELECT to_regclass('perpline_shared.texts')") is None:
                async with connection.transaction():
                    # IF NOT EXISTS is not safe against another process that does the same: one after the other.
                    await connection.execute("SELECT pg_advisory_xact_lock(hashtext('perpline_shared.texts'))")
                    await connection.execute("CREATE SCHEMA IF NOT EXISTS perpline_shared")
                    await connection.execute(_TABLE.format(table="perpline_shared.texts"))
            await connection.execute("SET synchronous_commit = off")
        except BaseException:
            connection.terminate()
            raise
        return connection
