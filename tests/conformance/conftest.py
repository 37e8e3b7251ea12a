"""The stores and buses that one suite each is run over."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from databases import Database, SqliteDatabase

from perpline.storage.store import Store


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    database: Database
    if request.param == "sqlite":
        database = SqliteDatabase(tmp_path / "perpline.db")
    else:
        database = request.getfixturevalue("postgres_database")
    yield database
    await database.close()


@pytest.fixture
async def store(database: Database) -> Store:
    return await database.open()
