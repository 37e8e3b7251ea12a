"""A server of streams that a test tells what to say, and who hears it: a message's first word is its stream."""

import asyncio
import json
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from aiohttp import WSMsgType, web

TEXT, BINARY, CONTINUATION, PING, CLOSE = 1, 2, 0, 9, 8


def raw(opcode: int, payload: bytes, *, last: bool = True) -> bytes:
    """An unmasked frame as a server sends it."""
    first = opcode | (0x80 if last else 0)
    if len(payload) < 126:
        return bytes((first, len(payload))) + payload
    if len(payload) < 65_536:
        return struct.pack("!BBH", first, 126, len(payload)) + payload
    return struct.pack("!BBQ", first, 127, len(payload)) + payload


class Socket:
    """One connection as the server sees it."""

    def __init__(self, number: int, response: web.WebSocketResponse, transport: asyncio.Transport) -> None:
        self.number = number
        self.response = response
        self.transport = transport
        self.asked: list[list[str]] = []
        self.asked_at: list[float] = []
        self.pongs: list[bytes] = []
        self.close_code: int | None = None

    def send(self, *frames: bytes) -> None:
        self.transport.write(b"".join(frames))

    def say(self, stream: str, text: str = "") -> None:
        self.send(raw(TEXT, f"{stream} {text}".encode()))

    async def listen(self) -> None:
        """Acknowledge what is asked for until the client goes."""
        async for message in self.response:
            if message.type is WSMsgType.PONG:
                self.pongs.append(message.data)
            elif message.type is WSMsgType.TEXT:
                self.asked.append(json.loads(message.data)["params"])
                self.asked_at.append(time.monotonic())
                self.send(raw(TEXT, b"ack"))
        self.close_code = self.response.close_code


Behaviour = Callable[[Socket], Awaitable[None]]


class Server:
    def __init__(self, behave: Behaviour) -> None:
        self.sockets: list[Socket] = []
        self.url = ""
        self._behave = behave

    async def accept(self, request: web.Request) -> web.WebSocketResponse:
        response = web.WebSocketResponse(autoping=False, timeout=0.2)
        await response.prepare(request)
        assert request.transport is not None
        socket = Socket(len(self.sockets) + 1, response, request.transport)
        self.sockets.append(socket)
        await self._behave(socket)
        return response


@asynccontextmanager
async def serving(behave: Behaviour) -> AsyncIterator[Server]:
    server = Server(behave)
    app = web.Application()
    app.router.add_get("/market/stream", server.accept)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"ws://127.0.0.1:{runner.addresses[0][1]}/market/stream"
    try:
        yield server
    finally:
        await runner.cleanup()


class Heard:
    """Keeps messages; the stream of one is its first word, and an acknowledgement belongs to none."""

    def __init__(self) -> None:
        self.messages: list[tuple[bytes, int]] = []

    def message(self, data: bytes, received_us: int) -> str | None:
        self.messages.append((data, received_us))
        return None if data == b"ack" else data.split()[0].decode()

    def batch(self, batch: list[bytes], received_us: int, source: int = 0) -> list[str]:
        return [stream for data in batch if (stream := self.message(data, received_us)) is not None]

    @property
    def data(self) -> list[bytes]:
        return [data for data, _ in self.messages if data != b"ack"]


def request(streams: Sequence[str], number: int) -> bytes:
    return json.dumps({"method": "SUBSCRIBE", "params": list(streams), "id": number}).encode()


def goodbye(streams: Sequence[str], number: int) -> bytes:
    return json.dumps({"method": "UNSUBSCRIBE", "params": list(streams), "id": number}).encode()


async def listen(socket: Socket) -> None:
    await socket.listen()
