"""Puts this folder on the path, so that every test can import `running`; and the servers that tests share."""

import os
from collections.abc import Iterator

import pytest

from postgres_server import NoPostgres, PostgresDatabase, PostgresServer, new_postgres_database
from valkey_server import NoValkey, ValkeyServer

FULL_TIMEOUT_S = 1800


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also the tests marked full, which take long")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: takes long; runs with --full only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if not item.get_closest_marker("full"):
            continue
        if not config.getoption("--full"):
            item.add_marker(pytest.mark.skip(reason="with --full only"))
        elif not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(FULL_TIMEOUT_S))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto`: half as many again as there are processors, for many tests mostly wait for a market."""
    return max(2, (os.cpu_count() or 1) * 3 // 2)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The address of a PostgreSQL server, of a user who may make databases: PERPLINE_TEST_POSTGRES, or our own."""
    given = os.environ.get("PERPLINE_TEST_POSTGRES")
    if given:
        yield given
        return
    try:
        server = PostgresServer()
    except (NoPostgres, OSError) as error:
        pytest.skip(f"no PostgreSQL here ({error}); PERPLINE_TEST_POSTGRES may name a server")
    try:
        server.start()
        yield server.url()
    finally:
        server.remove()


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[PostgresDatabase]:
    """A new database without tables."""
    database = new_postgres_database(postgres_url)
    yield database
    database.drop()


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The address of a Redis or Valkey server: PERPLINE_TEST_REDIS, or one of our own."""
    given = os.environ.get("PERPLINE_TEST_REDIS")
    if given:
        yield given
        return
    server = _valkey(durable=False)
    yield server.url
    server.remove()


@pytest.fixture
def durable_valkey() -> Iterator[ValkeyServer]:
    """A running server of our own that may be stopped and started."""
    server = _valkey(durable=True)
    yield server
    server.remove()


def _valkey(*, durable: bool) -> ValkeyServer:
    try:
        server = ValkeyServer(durable=durable)
        server.start()
    except NoValkey as error:
        pytest.skip(f"no Valkey here ({error}); PERPLINE_TEST_REDIS may name a server")
    return server
