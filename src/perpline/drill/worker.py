"""`perpline run` as a child process with a folder of its own, that a drill may kill, freeze and ask how it is."""

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import aiohttp

from perpline.drill.child import NOW_SIGNAL
from perpline.drill.forge import Child, Forge

START_LIMIT_S: Final = 20.0
STOP_LIMIT_S: Final = 20.0


class WorkerFailed(Exception):
    """The worker ended, or did not get ready or stop in time; the text has its last words."""


class WorkerProcess:
    """One worker, started, ended and started again. Its output is in `log`, appended to by each start."""

    def __init__(self, forge: Forge, folder: Path, settings: Mapping[str, object], extra: Mapping[str, str]) -> None:
        """`extra`: what the environment has beside ours, of which nothing that is perpline's is handed on."""
        self._forge = forge
        self.folder = folder
        self.folder.mkdir(exist_ok=True)
        self.log = folder / "worker.log"
        self.settings = folder / "perpline.toml"
        self.settings.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
        self.is_meant_to_run = False
        """Whether somebody started it and nobody ended it on purpose."""
        self._extra = extra
        self._said = folder / "said.json"
        self._child: Child | None = None

    async def start(self, *special: str) -> None:
        """Start it; with words for `perpline.drill.child` as one that does what they say to itself."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PERPLINE_")}
        environment.pop("CREDENTIALS_DIRECTORY", None)  # a key of the user's has no business here
        run = ["run", "--json", "--config", str(self.settings)]
        call = "perpline.drill.child:main" if special else "perpline.cli.main:main"
        with self.log.open("ab") as errors, self._said.open("wb") as said:
            self._child = await self._forge.start(
                call,
                [*special, *run],
                environment=environment | dict(self._extra),
                stdout=said.fileno(),
                stderr=errors.fileno(),
            )
        self.is_meant_to_run = True

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    @property
    def is_alive(self) -> bool:
        return self._child is not None and self._child.code is None

    async def ready(self, session: aiohttp.ClientSession, within_s: float = START_LIMIT_S) -> dict[str, Any]:
        """Its status, once it has heard every stream. Raises WorkerFailed."""
        until = asyncio.get_running_loop().time() + within_s
        while asyncio.get_running_loop().time() < until:
            if not self.is_alive:
                raise WorkerFailed(f"the worker ended by itself: {self.last_words()}")
            status = await self.status(session)
            if status is not None and status["ready"]:
                return status
            await asyncio.sleep(0.05)
        raise WorkerFailed(f"the worker was not ready within {within_s:.0f} s: {self.last_words()}")

    async def status(self, session: aiohttp.ClientSession) -> dict[str, Any] | None:
        """What it says of itself, None where it does not answer now."""
        access = self._access()
        if access is None:
            return None
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            headers = {"Authorization": f"Bearer {access['token']}"}
            async with session.get(f"{access['url']}/status", headers=headers) as answer:
                if answer.status == 200:
                    found: dict[str, Any] = await answer.json()
                    return found
        return None

    async def trouble(self, session: aiohttp.ClientSession) -> list[str]:
        """What is wrong by its own account (/healthz), or that it does not answer."""
        access = self._access()
        if access is None:
            return ["the worker does not listen"]
        try:
            async with session.get(f"{access['url']}/healthz") as answer:
                said: dict[str, Any] = await answer.json()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return ["the worker does not answer"]
        return list(said.get("trouble", []))

    def send(self, number: int) -> None:
        assert self._child is not None
        self._child.send(number)

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def now(self) -> None:
        """What it was told at its start to do to itself is to be done from now on."""
        self.send(NOW_SIGNAL)

    async def kill(self) -> None:
        self.is_meant_to_run = False
        self.send(signal.SIGKILL)
        await self.dead()

    async def dead(self, within_s: float = 20.0) -> int:
        """Its exit code, once it has ended (by its own doing or ours). Raises WorkerFailed where it does not."""
        assert self._child is not None
        try:
            async with asyncio.timeout(within_s):
                code = await self._child.wait()
        except TimeoutError:
            raise WorkerFailed(f"the worker lives on after {within_s:g} s") from None
        self.is_meant_to_run = False
        return code

    async def stop(self) -> dict[str, Any]:
        """Stop it as Ctrl-C does; the status that it prints last. Raises WorkerFailed."""
        assert self._child is not None
        self.is_meant_to_run = False
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                code = await self._child.wait()
        except TimeoutError:
            raise WorkerFailed(f"the worker did not stop within {STOP_LIMIT_S:.0f} s: {self.last_words()}") from None
        try:
            status: dict[str, Any] = json.loads(self._said.read_bytes().splitlines()[-1])
        except (ValueError, IndexError):
            raise WorkerFailed(f"the worker did not end well (exit {code}): {self.last_words()}") from None
        return status

    async def end(self) -> None:
        """Make sure that it is gone."""
        if self.is_alive:
            self.send(signal.SIGKILL)
            await self.dead()

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1][:300] if lines else "nothing was said"

    def logged(self, *events: str) -> list[dict[str, Any]]:
        """The lines of its log about these events (all of them where none is named)."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines() if self.log.exists() else []:
            with suppress(ValueError):
                said = json.loads(line)
                if isinstance(said, dict) and (not events or said.get("event") in events):
                    found.append(said)
        return found

    def _access(self) -> dict[str, str] | None:
        """Address and token that the running process has left."""
        for path in self.folder.glob("worker-*.json"):
            with suppress(OSError, ValueError, KeyError):
                access = json.loads(path.read_text())
                if access["pid"] == self.pid:
                    return {"url": access["url"], "token": access["token"]}
        return None


def resident_mb(pid: int) -> float | None:
    """Resident memory of a process, None where that is not to be known."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return None
