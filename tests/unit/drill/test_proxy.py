"""The proxy that takes the network away, against an echo."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from perpline.drill.proxy import Proxy


@asynccontextmanager
async def echo() -> AsyncIterator[Proxy]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with Proxy(lambda: asyncio.open_connection(host, port)) as proxy:
        yield proxy
    server.close()


async def said(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], text: bytes) -> bytes:
    streams[1].write(text)
    return await streams[0].readexactly(len(text))


def dial(proxy: Proxy) -> "asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]":
    return asyncio.ensure_future(asyncio.open_connection("127.0.0.1", proxy.port))


async def test_it_carries_everything_and_ends_both_sides_together() -> None:
    async with echo() as proxy:
        streams = await dial(proxy)
        assert await said(streams, b"x" * 200_000) == b"x" * 200_000
        streams[1].write_eof()
        assert await streams[0].read() == b""
        streams[1].close()


async def test_a_cut_ends_what_is_open_and_nothing_else() -> None:
    async with echo() as proxy:
        streams = await dial(proxy)
        assert await said(streams, b"a") == b"a"
        proxy.cut()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await said(streams, b"b")
        again = await dial(proxy)
        assert await said(again, b"c") == b"c"
        again[1].close()


async def test_while_it_refuses_nobody_is_taken_and_afterwards_on_the_same_port() -> None:
    async with echo() as proxy:
        port = proxy.port
        streams = await dial(proxy)
        await proxy.refuse()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await said(streams, b"b")
        with pytest.raises(ConnectionRefusedError):
            await dial(proxy)
        await proxy.heal()
        assert proxy.port == port
        again = await dial(proxy)
        assert await said(again, b"c") == b"c"
        again[1].close()


async def test_while_it_hangs_nothing_passes_and_afterwards_everything_does() -> None:
    async with echo() as proxy:
        streams = await dial(proxy)
        assert await said(streams, b"a") == b"a"
        proxy.hang()
        answer = asyncio.ensure_future(said(streams, b"later"))
        late = await dial(proxy)
        late_answer = asyncio.ensure_future(said(late, b"too"))
        done, _ = await asyncio.wait((answer, late_answer), timeout=0.1)
        assert done == set()
        await proxy.heal()
        assert (await answer, await late_answer) == (b"later", b"too")
        streams[1].close()
        late[1].close()


async def test_a_slow_one_takes_its_time() -> None:
    async with echo() as proxy:
        streams = await dial(proxy)
        proxy.slow(bytes_per_s=20_000, delay_s=0.05)
        began = time.monotonic()
        assert await said(streams, b"x" * 1000) == b"x" * 1000
        assert time.monotonic() - began > 0.15
        await proxy.heal()
        began = time.monotonic()
        assert await said(streams, b"y") == b"y"
        assert time.monotonic() - began < 1.0
        streams[1].close()
