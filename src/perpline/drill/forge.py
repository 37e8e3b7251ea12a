"""Processes that start in milliseconds: forked from one that has imported everything and has no thread yet.

A worker needs two to three seconds of processor time for its imports and its compiled kernel. Sixty drills that start
and kill workers would spend most of their time on that. A process of the forge is a process like any other, of its own
number, folder, environment and limits, that may be killed and frozen; only what it has imported was imported before.

    python -m perpline.drill.forge FD MODULE …

answers on the Unix socket FD: one line of JSON per request, with two files for stdout and stderr; a line when the
process has started, and one when it has ended. When the socket is closed (whoever asked has died) all are ended.
"""

import asyncio
import ctypes
import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, Final

PRELOADED: Final = (
    "perpline.cli.run", "perpline.drill.child", "perpline.drill.player", "perpline.storage.postgres",
    "perpline.storage.sqlite", "perpline.bus.redis", "onnxruntime", "uvloop", "asyncpg", "redis.asyncio",
    "pydantic.type_adapter", "typer._adapters", "typer._click.decorators", "encodings.idna", "_strptime",
)  # fmt: skip
"""By name: the layers above are not this module's to import, and not every machine has all of them."""
KILLED: Final = -int(signal.SIGKILL)
LAST_WORDS_S: Final = 5.0
"""How long processes have to tidy up after SIGTERM when whoever asked for them has died."""

Main = Callable[[], int]


class ForgeFailed(Exception):
    """The forge has ended, or does not begin."""


class Child:
    """A process of the forge."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.code: int | None = None
        """How it ended: its exit code, or less than 0 the signal; None while it lives."""
        self._ended = asyncio.Event()

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.code is not None
        return self.code

    def send(self, number: int) -> None:
        if self.code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def ended(self, code: int) -> None:
        self.code = code
        self._ended.set()


class Forge:
    """Starts processes. Made by `new_forge`, or within a process of a forge by `forked_forge`."""

    def __init__(self, line: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        self._line = line
        self._process = process
        self._children: dict[int, Child] = {}
        self._asked: deque[asyncio.Future[Child]] = deque()
        self._reading: asyncio.Task[None] | None = None

    async def start(
        self,
        call: str,
        words: Sequence[str],
        *,
        environment: Mapping[str, str],
        stdout: int,
        stderr: int,
        patient: bool = False,
    ) -> Child:
        """A process that does what `call` ("module:function", taking the words and returning an exit code) does.

        `patient`: when we die it is asked to end before it is killed. Raises ForgeFailed.
        """
        loop = asyncio.get_running_loop()
        if self._reading is None:
            self._line.setblocking(False)
            self._reading = asyncio.create_task(self._read())
        answer: asyncio.Future[Child] = loop.create_future()
        self._asked.append(answer)
        request = {"call": call, "words": list(words), "environment": dict(environment), "patient": patient}
        data = json.dumps(request).encode() + b"\n"
        try:
            sent = socket.send_fds(self._line, [data], [stdout, stderr])
            await loop.sock_sendall(self._line, data[sent:])
        except OSError as error:
            raise ForgeFailed(f"no process can be started: {error}") from None
        return await answer

    async def close(self) -> None:
        """End every process that is left, and the forge."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        self._line.close()
        if self._process is not None:
            if not self._children:
                self._process.terminate()  # it may be importing still
            await asyncio.to_thread(self._process.wait)

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        waiting = b""
        while data := await _received(loop, self._line):
            *lines, waiting = (waiting + data).split(b"\n")
            for line in lines:
                self._take(json.loads(line))
        for answer in self._asked:
            if not answer.done():
                answer.set_exception(ForgeFailed("the process that starts processes has ended"))
        for child in self._children.values():
            child.ended(KILLED)  # all of its processes go with it

    def _take(self, said: dict[str, int]) -> None:
        pid = said["pid"]
        if "code" in said:
            self._children.pop(pid).ended(said["code"])
            return
        child = self._children[pid] = Child(pid)
        answer = self._asked.popleft()
        if answer.cancelled():
            child.send(signal.SIGKILL)
        else:
            answer.set_result(child)


def new_forge() -> Forge:
    """A forge that imports everything anew: seconds, in which it may be asked already."""
    ours, theirs = socket.socketpair()
    # One thread of linear algebra: a fork has only the thread that forked.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "perpline.drill.forge", str(theirs.fileno()), *PRELOADED],
            stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True, env=environment,
        )  # fmt: skip
    return Forge(ours, process)


def forked_forge() -> Forge:
    """A forge with what this process has imported. For one without threads and loops, as its first act."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        _leave(_serve(theirs))
    theirs.close()
    return Forge(ours)


def main(words: Sequence[str]) -> int:
    line = socket.socket(fileno=int(words[0]))
    for name in words[1:]:
        with suppress(ImportError):
            import_module(name)
    import_module("perpline.features.live").compile_kernel()
    gc.collect()
    gc.freeze()  # what is here is here for good: a collection in a child must not copy its pages
    return _serve(line)()


def _serve(line: socket.socket) -> Main:
    """Fork whenever told to. Returns twice: in each child what it has to do, and here when the line is closed."""
    children: dict[int, bool] = {}
    awake, wakes = socket.socketpair()
    for each in (awake, wakes):
        each.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    waiting, files = b"", list[int]()
    with selectors.DefaultSelector() as selector:
        selector.register(line, selectors.EVENT_READ)
        selector.register(awake, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if awake in ready:
                with suppress(BlockingIOError):
                    awake.recv(4096)
                for pid, code in _ended():
                    children.pop(pid, None)
                    _tell(line, {"pid": pid, "code": code})
            if line not in ready:
                continue
            data, received, _, _ = socket.recv_fds(line, 1 << 16, 64)
            if not data:
                break
            files += received
            *requests, waiting = (waiting + data).split(b"\n")
            for text in requests:
                request = json.loads(text)
                stdout, stderr = files.pop(0), files.pop(0)
                parent = os.getpid()
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    selector.close()
                    for each in (line, awake, wakes):
                        each.close()
                    return _prepared(request, stdout, stderr, parent)
                os.close(stdout)
                os.close(stderr)
                children[pid] = request["patient"]
                _tell(line, {"pid": pid})
    _end(children)
    return lambda: 0


def _tell(line: socket.socket, said: dict[str, int]) -> None:
    with suppress(OSError):  # whoever asked has died, which is seen next
        line.sendall(json.dumps(said).encode() + b"\n")


def _prepared(request: dict[str, Any], stdout: int, stderr: int, parent: int) -> Main:
    """In the child: become a process of one's own; returns what it has to do."""
    os.setsid()  # a Ctrl-C in the terminal is whoever asked's alone
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM if request["patient"] else signal.SIGKILL))  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, file in ((1, stdout), (2, stderr)):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    module, _, name = request["call"].partition(":")
    words = request["words"]

    def run() -> int:
        code: int = getattr(import_module(module), name)(words)
        return code

    return run


def _ended() -> list[tuple[int, int]]:
    found = []
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            found.append((ended[0], os.waitstatus_to_exitcode(ended[1])))
    return found


def _end(children: Mapping[int, bool]) -> None:
    for pid, patient in children.items():
        os.kill(pid, signal.SIGTERM if patient else signal.SIGKILL)
    left = set(children)
    deadline = time.monotonic() + LAST_WORDS_S
    while left and time.monotonic() < deadline:
        left -= {pid for pid, _ in _ended()}
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, signal.SIGKILL)


async def _received(loop: asyncio.AbstractEventLoop, line: socket.socket) -> bytes:
    try:
        return await loop.sock_recv(line, 1 << 16)
    except OSError:
        return b""


def _leave(run: Main) -> None:
    """End this process with what `run` returns, as the interpreter does at the end of a program."""
    sys.exit(run())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
