"""How a process reaches a worker's endpoint: its status, its events, and a word that there is something new."""

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct

from perpline.common.clock import SystemClock
from perpline.common.config import Settings
from perpline.common.errors import Malformed, NeedsPerson, Unavailable
from perpline.endpoint import token_file

MAX_EVENT_BYTES = 8 << 20
"""The first message of 600 symbols has a hundredth of it."""


class Access(Struct, frozen=True):
    """How to get in: what the worker left in its token file."""

    url: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


def read_access(data_dir: Path, port: int) -> Access:
    """What the worker on this port left for its readers. Raises NeedsPerson where there is none, or none of use."""
    path = token_file(data_dir, port)
    try:
        content = json.loads(path.read_text())
        url, token = content["url"], content["token"]
        if not (isinstance(url, str) and isinstance(token, str)):
            raise ValueError("its url and token are no texts")
    except FileNotFoundError:
        raise NeedsPerson(f"no worker runs on port {port}: {path} is not there (perpline run starts one)") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NeedsPerson(f"cannot read the worker's token file {path}: {error}") from None
    return Access(url, token)


async def fetch_status(
    data_dir: Path, port: int, session: aiohttp.ClientSession | None = None, *, symbol: str = ""
) -> dict[str, Any]:
    """The status of the worker on this port, or only what it has under `symbols` of this one (older workers tell all).

    Raises NeedsPerson where none answers.
    """
    access = read_access(data_dir, port)
    own = session is None
    session = session or aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5))
    try:
        asked = {"symbol": symbol} if symbol else {}
        async with session.get(f"{access.url}/status", params=asked, headers=access.headers) as answer:
            if answer.status != 200:
                raise NeedsPerson(f"the worker on port {port} refuses: HTTP {answer.status}")
            status: dict[str, Any] = await answer.json()
            return status
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise NeedsPerson(
            f"the worker on port {port} does not answer ({str(error) or 'timeout'}): it is dead or hangs; see its log"
        ) from None
    finally:
        if own:
            await session.close()


async def running_status(settings: Settings) -> dict[str, Any] | None:
    """The status of the worker, None where none answers."""
    try:
        return await fetch_status(settings.data_dir, settings.status_port)
    except NeedsPerson:
        return None


def market_now(running: dict[str, Any] | None) -> int:
    """The market's time: the running worker's, for at a simulated exchange the host's is another one."""
    return SystemClock().now_ms() if running is None else int(running["now"])


async def wake_worker(settings: Settings) -> None:
    """Have the worker look at once. Where none answers nothing is lost: it looks each second, and when it starts."""
    try:
        access = read_access(settings.data_dir, settings.status_port)
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session,
            session.post(f"{access.url}/control", headers=access.headers),
        ):
            pass
    except (NeedsPerson, aiohttp.ClientError, TimeoutError):
        return


async def events(access: Access, session: aiohttp.ClientSession) -> AsyncGenerator[dict[str, Any], None]:
    """What the worker tells on /events, decoded, until it ends the connection.

    Raises Unavailable where it cannot be listened to (none answers; `retry_after_s` is None then) and Malformed for a
    message that is no JSON object with a type, or larger than `MAX_EVENT_BYTES`.
    """
    try:
        socket = await session.ws_connect(
            f"{access.url}/events", headers=access.headers, max_msg_size=MAX_EVENT_BYTES, heartbeat=20.0
        )
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise Unavailable(f"the worker tells no events: {error}") from None
    async with socket:
        async for message in socket:
            if message.type != aiohttp.WSMsgType.TEXT:
                if message.type == aiohttp.WSMsgType.ERROR:
                    break
                raise Malformed("a message of the worker is no text")
            try:
                event = msgspec.json.decode(message.data)  # unlike json's, it takes neither NaN nor Infinity
            except (ValueError, RecursionError) as error:
                raise Malformed(f"a message of the worker is no JSON: {error}") from None
            if not isinstance(event, dict) or not isinstance(event.get("type"), str):
                raise Malformed("a message of the worker has no type")
            yield event
        if socket.close_code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG:
            raise Malformed("a message of the worker is too large")
