"""Databases that several stores may be opened on, and that a test may look into."""

from pathlib import Path

import apsw

from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import Row, Store
from postgres_server import PostgresDatabase


class SqliteDatabase:
    """A SQLite file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stores: list[SqliteStore] = []

    async def open(self) -> Store:
        store = SqliteStore(self.path)
        self.stores.append(store)
        await store.open()
        return store

    async def close(self) -> None:
        for store in self.stores:
            await store.close()

    def writers_are_gone(self) -> bool:
        return True  # a transaction is nothing but what the process had done

    def rows(self, query: str) -> list[Row]:
        connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY)
        connection.set_busy_timeout(5000)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def do(self, query: str) -> None:
        connection = apsw.Connection(str(self.path))
        connection.set_busy_timeout(5000)
        connection.execute(query)
        connection.close()

    def open_in_a_process(self) -> str:
        """Python text that makes `store`, for a process of its own."""
        return f"from perpline.storage.sqlite import SqliteStore\nstore = SqliteStore({str(self.path)!r})\n"


Database = SqliteDatabase | PostgresDatabase
