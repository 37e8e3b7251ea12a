"""A TCP proxy that takes the network away: cut, refused, hanging, slow. It stands before a database or a Redis."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

Dial = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]

_PIECE: Final = 1 << 16


class Proxy:
    """Carries bytes between whoever connects to `port` (loopback) and what `dial` reaches. An async context manager.

    Until told otherwise it changes nothing. Each fault holds until `heal`; connections that hang go on then, with
    every byte that waited.
    """

    def __init__(self, dial: Dial) -> None:
        self.port = 0
        self.connections = 0
        """How many were accepted since the start."""
        self._dial = dial
        self._flows = asyncio.Event()
        self._flows.set()
        self._bytes_per_s = 0.0
        self._delay_s = 0.0
        self._server: asyncio.Server | None = None
        self._reserved: socket.socket | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Proxy":
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        if self._reserved is not None:
            self._reserved.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.cut()

    def cut(self) -> int:
        """Abort every connection once; returns how many there were. New ones are welcome."""
        open_now, self._open = self._open, set()
        for writer in open_now:
            writer.transport.abort()
        return len(open_now)

    async def refuse(self) -> None:
        """Abort every connection and refuse new ones, as when nobody listens there."""
        if self._server is not None:
            self._server.close()
            self._server = None
            # Bound and not listening: the port stays ours, and whoever dials is refused by the kernel.
            self._reserved = _bound(self.port)
        self.cut()

    def hang(self) -> None:
        """Pass nothing on, in either direction, and close nothing; new connections are accepted and hang too."""
        self._flows.clear()

    def slow(self, *, bytes_per_s: float = 0.0, delay_s: float = 0.0) -> None:
        """Each piece waits `delay_s`, and a direction of a connection carries at most so many bytes a second (0: any
        number)."""
        self._bytes_per_s, self._delay_s = bytes_per_s, delay_s

    async def heal(self) -> None:
        """Carry everything again, at once."""
        self._bytes_per_s = self._delay_s = 0.0
        self._flows.set()
        if self._server is None:
            await self._listen()

    async def _listen(self) -> None:
        bound = self._reserved or _bound(self.port)
        self._reserved = None
        self.port = bound.getsockname()[1]
        self._server = await asyncio.start_server(self._accept, sock=bound)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        there: asyncio.StreamWriter | None = None
        try:
            await self._flows.wait()
            answers, there = await self._dial()
            self._open.add(there)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, there))
                group.create_task(self._carry(answers, writer))
        except* OSError:
            pass  # an end of one side is an end of both
        finally:
            for each in (writer, there):
                if each is not None:
                    self._open.discard(each)
                    each.transport.abort()

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while piece := await source.read(_PIECE):
            await self._flows.wait()
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            if self._bytes_per_s:
                await asyncio.sleep(len(piece) / self._bytes_per_s)
            await self._flows.wait()
            sink.write(piece)
            await sink.drain()
        with suppress(OSError, RuntimeError):  # a transport that is closed already
            sink.write_eof()


def _bound(port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    return made
