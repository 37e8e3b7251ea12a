import asyncio
import io
import json
import os
import signal
import sys
from typing import Any

import pytest

from perpline.cli.options import print_json, run_loop

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


class Pipe(io.RawIOBase):
    """One that takes a part of what is written, as a pipe may."""

    def __init__(self) -> None:
        self.held = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        taken = bytes(data)[:1000]
        self.held += taken
        return len(taken)


def test_a_long_json_line_is_written_whole_where_stdout_is_not_buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(pipe, encoding="utf-8", write_through=True))
    told = {f"SIM{number}USDT": "가" * 50 for number in range(200)}

    print_json(told)

    assert json.loads(pipe.held) == told
