"""What the commands share that read and write the tables."""

import asyncio
import getpass
import socket
from collections.abc import Awaitable, Callable
from typing import TypeVar

from perpline.bootstrap import make_data_dir, open_store
from perpline.common.config import Settings
from perpline.storage.store import Store

T = TypeVar("T")


def with_store(settings: Settings, work: Callable[[Store], Awaitable[T]], *, read_only: bool = False) -> T:
    """What the work returns, done with the store of the settings in an event loop of its own."""
    if not read_only:
        make_data_dir(settings)

    async def main() -> T:
        store = open_store(settings.database_url.get_secret_value(), read_only=read_only)
        await store.open()
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(main())


def who() -> str:
    """user@host, for the tables' columns `by`."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a container's user may have no name
        return socket.gethostname()
