"""What commands that change something want of the worker that may be running."""

import json
from typing import Any

import aiohttp

from perpline.cli.status import fetch_status
from perpline.common.clock import SystemClock
from perpline.common.config import Settings
from perpline.common.errors import NeedsPerson
from perpline.endpoint import token_file


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
        access = json.loads(token_file(settings.data_dir, settings.status_port).read_text())
        headers = {"Authorization": f"Bearer {access['token']}"}
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session,
            session.post(f"{access['url']}/control", headers=headers),
        ):
            pass
    except (OSError, ValueError, KeyError, TypeError, aiohttp.ClientError, TimeoutError):
        return
