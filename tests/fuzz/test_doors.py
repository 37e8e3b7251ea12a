"""The doors themselves: bombs, requests that are no good, and the bounds that no decoder sees."""

import asyncio
import gzip
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import stamina
import zstandard
from picows import ws_connect

from perpline.collector.archives import find, read
from perpline.common.clock import ManualClock, SystemClock
from perpline.common.errors import Malformed, PerplineError
from perpline.common.websocket import MAX_MESSAGE_BYTES, Listener, close_transport
from perpline.endpoint import Endpoint, token_file
from perpline.exchange.binance.decode import decode
from perpline.exchange.binance.rest import BinanceRest
from perpline.exchange.binance.weight import WeightLedger
from running import eventually

MB = 1 << 20


@asynccontextmanager
async def served(answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[int]:
    """The port of a server that answers every connection so."""
    connections: set[asyncio.Task[None]] = set()

    async def each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await answer(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(each, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


def _bomb(packing: str) -> bytes:
    """A hundred kilobytes that unpack to 100 MB."""
    if packing == "gzip":
        return gzip.compress(b" " * (100 * MB), 9)
    if packing == "deflate":
        return zlib.compress(b" " * (100 * MB), 9)
    return zstandard.compress(b" " * (100 * MB))


@pytest.mark.parametrize("packing", ["gzip", "deflate", "br", "zstd"])
async def test_an_answer_that_unpacks_to_more_than_it_may_is_given_up_and_not_held(packing: str) -> None:
    body = _bomb("zstd" if packing == "zstd" else "deflate" if packing == "deflate" else "gzip")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Encoding: {packing}\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        writer.write(body)
        await writer.drain()
        await asyncio.sleep(5)

    active = stamina.is_active()
    stamina.set_active(False)
    tracemalloc.start()
    try:
        async with served(answer) as port:
            clock = SystemClock()
            rest = BinanceRest(f"http://127.0.0.1:{port}", clock, WeightLedger(clock), max_body=4 * MB, timeout_s=5)
            with pytest.raises(PerplineError):
                await rest.server_time()
            await rest.close()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        stamina.set_active(active)
    assert most < 60 * MB


async def _answer_upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *headers: str) -> None:
    import base64
    import hashlib

    request = (await reader.readuntil(b"\r\n\r\n")).decode()
    assert "permessage-deflate" not in request.lower()
    key = next(line.split(": ")[1] for line in request.split("\r\n") if line.lower().startswith("sec-websocket-key"))
    accept = base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()).decode()
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
    lines += [f"Sec-WebSocket-Accept: {accept}", *headers]
    writer.write("\r\n".join([*lines, "", ""]).encode())


@pytest.mark.parametrize("extension", [True, False])
async def test_a_compressed_websocket_message_is_neither_asked_for_nor_unpacked(extension: bool) -> None:
    packed = zlib.compress(b" " * (10 * MB), 9)[2:-4]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _answer_upgrade(reader, writer, *(["Sec-WebSocket-Extensions: permessage-deflate"] if extension else []))
        writer.write(bytes([0x80 | 0x40 | 1, 126]) + len(packed).to_bytes(2, "big") + packed)  # RSV1: compressed
        await writer.drain()
        await asyncio.sleep(5)

    heard: list[bytes] = []
    async with served(answer) as port:
        listener = Listener(lambda batch, received_us: heard.extend(batch), ManualClock())
        connecting = ws_connect(lambda: listener, f"ws://127.0.0.1:{port}", max_frame_size=MAX_MESSAGE_BYTES)
        transport, _ = await asyncio.wait_for(connecting, 5)
        await eventually(lambda: heard, 5)
        await close_transport(transport)
    assert heard == [packed]  # as it came: nothing unpacks it, and it is malformed like any other garbage
    with pytest.raises(Malformed):
        decode(heard[0], 0)


@pytest.mark.parametrize("suffix", [".zip", ".csv.zst"])
def test_a_file_that_unpacks_to_hundreds_of_times_its_size_is_refused(tmp_path: Path, suffix: str) -> None:
    import zipfile

    path = tmp_path / f"BTCUSDT-1m-2026-10{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("BTCUSDT-1m-2026-10.csv", b"1,1,1,1,1,1\n" * (4 * MB))
    else:
        path.write_bytes(zstandard.compress(b"1,1,1,1,1,1\n" * (4 * MB)))
    [file] = find([path], "candles").files
    tracemalloc.start()
    try:
        with pytest.raises(Malformed, match="unpacks to more than"):
            read(file)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 80 * MB


# ---- the worker's endpoint ----


@asynccontextmanager
async def an_endpoint(folder: Path) -> AsyncIterator[tuple[Endpoint, str, list[int]]]:
    calls: list[int] = []
    endpoint = Endpoint(
        port=0,
        data_dir=folder,
        status=lambda: {"ready": True},
        trouble=lambda: [],
        metrics=lambda: b"up 1\n",
        control=lambda: calls.append(1),
    )
    await endpoint.open()
    try:
        yield endpoint, json.loads(token_file(folder, endpoint.port).read_text())["token"], calls
    finally:
        await endpoint.close()


async def _raw(port: int, request: bytes) -> bytes:
    """What comes back for these bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(5):
            try:
                writer.write(request)
                await writer.drain()
                writer.write_eof()
                return await reader.read()
            except ConnectionError:
                return b""
    finally:
        writer.transport.abort()


async def test_control_takes_the_token_on_this_machine_and_nothing_else(tmp_path: Path) -> None:
    async with an_endpoint(tmp_path) as (endpoint, token, calls), aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{endpoint.port}"

        async def ask(method: str, path: str, **headers: str) -> int:
            async with session.request(method, url + path, headers=headers) as answer:
                return answer.status

        bearer = f"Bearer {token}"
        statuses = {
            "no token": await ask("POST", "/control"),
            "wrong token": await ask("POST", "/control", Authorization="Bearer x"),
            "half a token": await ask("POST", "/control", Authorization=bearer[:-1]),
            "get": await ask("GET", "/control", Authorization=bearer),
            "delete": await ask("DELETE", "/control", Authorization=bearer),
            "another page": await ask("POST", "/control", Authorization=bearer, Origin="https://evil.example"),
            "no page": await ask("POST", "/control", Authorization=bearer, Origin="null"),
            "another name": await ask("POST", "/control", Authorization=bearer, Host="evil.example"),
            "health of another name": await ask("GET", "/healthz", Host=f"evil.example:{endpoint.port}"),
            "elsewhere": await ask("GET", "/../../etc/passwd", Authorization=bearer),
        }
        assert statuses == {
            "no token": 401,
            "wrong token": 401,
            "half a token": 401,
            "get": 405,
            "delete": 405,
            "another page": 403,
            "no page": 403,
            "another name": 403,
            "health of another name": 403,
            "elsewhere": 404,
        }
        assert calls == []
        assert await ask("POST", "/control", Authorization=bearer) == 200
        assert await ask("POST", "/control", Authorization=bearer, Host=f"localhost:{endpoint.port}") == 200
        assert await ask("POST", "/control", Authorization=bearer, Origin=url) == 200
        assert calls == [1, 1, 1]


async def test_a_body_is_not_read_and_a_bad_request_ends_its_connection_only(tmp_path: Path) -> None:
    async with an_endpoint(tmp_path) as (endpoint, token, calls):
        authorized = f"POST /control HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n".encode()
        tracemalloc.start()
        try:
            huge = await _raw(endpoint.port, authorized + b"Content-Length: 200000000\r\n\r\n" + b"x" * (8 * MB))
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert huge == b"" or huge.startswith((b"HTTP/1.1 200", b"HTTP/1.1 413", b"HTTP/1.1 400"))
        assert most < 30 * MB
        for request in (
            b"\x00" * 1000,
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
            authorized + b"Content-Length: -1\r\n\r\n",
            authorized + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            authorized + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n",
            b"POST /control HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer \xff\xfe\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        ):
            answered = await _raw(endpoint.port, request)
            assert answered == b"" or (answered.startswith(b"HTTP/1.") and b" 200 " not in answered[:20]), request[:80]
        assert len(calls) <= 1
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{endpoint.port}/healthz") as answer:
                assert answer.status == 200
