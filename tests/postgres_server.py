"""A PostgreSQL server of the tests' own (the drills' as well), and databases on it."""

import asyncio
import os
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from perpline.drill.servers import NoServer as NoPostgres
from perpline.drill.servers import PostgresServer
from perpline.storage.postgres import PostgresStore

__all__ = ["NoPostgres", "PostgresDatabase", "PostgresServer", "new_postgres_database"]


class PostgresDatabase:
    """A database of its own on a server, that several stores may be opened on, and that a test may look into."""

    def __init__(self, server_url: str, name: str) -> None:
        self._server_url = server_url
        self.name = name
        self.url = _with_database(server_url, name)
        self.stores: list[PostgresStore] = []
        self.do(f'CREATE DATABASE "{name}"', database=False)

    async def open(self) -> PostgresStore:
        store = PostgresStore(self.url)
        self.stores.append(store)
        await store.open()
        return store

    async def close(self) -> None:
        for store in self.stores:
            await store.close()

    def drop(self) -> None:
        self.do(f'DROP DATABASE "{self.name}" WITH (FORCE)', database=False)

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.do(query, *values)]

    def do(self, query: str, *values: object, database: bool = True) -> list[Any]:
        """What the query returns. The loop of a test stands still meanwhile, as it does for SQLite."""
        return _in_a_thread(_do(self.url if database else self._server_url, query, *values))

    def writers_are_gone(self) -> bool:
        """Whether the server has noticed that every client of this database has died."""
        return self.rows(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND backend_type = 'client backend'"
        ) == [(0,)]

    def open_in_a_process(self) -> str:
        """Python text that makes `store`, for a process of its own."""
        return f"from perpline.storage.postgres import PostgresStore\nstore = PostgresStore({self.url!r})\n"


_numbers = count()


def new_postgres_database(server_url: str) -> PostgresDatabase:
    """A database without tables, under a name that no other test has."""
    return PostgresDatabase(server_url, f"perpline_test_{os.getpid()}_{next(_numbers)}")


def _with_database(url: str, name: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"/{name}")) if parts.netloc else f"postgresql:///{name}?{parts.query}"


async def _do(url: str, query: str, *values: object) -> list[Any]:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetch(query, *values)
    finally:
        await connection.close()


def _in_a_thread(coroutine: Coroutine[Any, Any, list[Any]]) -> list[Any]:
    """Its result, on a loop of its own, whether or not one runs here."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, coroutine).result()
