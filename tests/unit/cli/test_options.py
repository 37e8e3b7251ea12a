import asyncio
import os
import signal
import sys

import pytest

from perpline.cli.options import run_loop

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def test_a_signal_stops_the_loop_and_after_it_signals_do_what_they_did_before() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    async def main(stop: asyncio.Event) -> bool:
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        await stop.wait()
        return True

    async def quick(stop: asyncio.Event) -> bool:
        return stop.is_set()

    assert run_loop(quick) is False
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert run_loop(main) is True
    signal.signal(signal.SIGINT, before[0])  # after the first signal a second one kills, and it stays so
