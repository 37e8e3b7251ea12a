"""The stores and buses that one suite each is run over."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from databases import Database, SqliteDatabase

from perpline.storage.store import Store
from postgres_server import PostgresDatabase, new_postgres_database


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    async with a_database(request, tmp_path / "perpline.db") as database:
        yield database


@pytest.fixture(params=["sqlite", "postgresql"])
async def other_database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """A second one, of the same kind or the other."""
    async with a_database(request, tmp_path / "other.db") as database:
        yield database


@asynccontextmanager
async def a_database(request: pytest.FixtureRequest, path: Path) -> AsyncIterator[Database]:
    database: Database
    if request.param == "sqlite":
        database = SqliteDatabase(path)
    else:
        database = new_postgres_database(request.getfixturevalue("postgres_url"))
    yield database
    await database.close()
    if isinstance(database, PostgresDatabase):
        database.drop()


@pytest.fixture
async def store(database: Database) -> Store:
    return await database.open()
