"""Listeners of /events in a process of their own: python -m bench.listening URL TOKEN COUNT. Prints 0 when all hear."""

import asyncio
import sys

import aiohttp


async def main(url: str, token: str, count: int) -> None:
    async with aiohttp.ClientSession() as session:
        headers = {"Authorization": f"Bearer {token}"}
        sockets = [await session.ws_connect(url, headers=headers, max_msg_size=0) for _ in range(count)]
        for socket in sockets:
            await socket.receive()
        print(0, flush=True)
        await asyncio.gather(*(_read(socket) for socket in sockets))


async def _read(socket: aiohttp.ClientWebSocketResponse) -> None:
    async for _ in socket:
        pass


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
