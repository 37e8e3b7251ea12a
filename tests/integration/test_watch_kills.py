"""`perpline watch` as a process: killed, stopped, without a reader, and with a server that goes away."""

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from signalling import MINUTE, T0, flat, publish
from valkey_server import ValkeyServer

SLOT = f"kills{secrets.token_hex(4)}"  # the server may be somebody's, and used before


def start(url: str, home: Path, *words: object, **options: Any) -> "subprocess.Popen[bytes]":
    arguments = ["watch", "--redis", url, "--slot", SLOT, "--json", *map(str, words)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PERPLINE_", "XDG_"))}
    environment["HOME"] = str(home)
    return subprocess.Popen([sys.executable, "-m", "perpline", *arguments], env=environment, **options)


def lines(file: Path) -> list[str]:
    """The lines that are whole."""
    text = file.read_text() if file.exists() else ""
    return text.split("\n")[:-1]


def wait_until(condition: Callable[[], object], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_at_any_instant_it_loses_nothing_and_repeats_at_most_the_line_it_was_writing(
    redis_url: str, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)
    symbols, minutes = ("AUSDT", "BUSDT", "CUSDT"), 1500
    publish(redis_url, [flat(symbol, n, slot=SLOT) for n in range(minutes) for symbol in symbols])
    first = start(redis_url, tmp_path, "--from", "beginning", "--count", 1, *symbols, stdout=subprocess.DEVNULL)
    assert first.wait(30) == 0
    file = tmp_path / "printed"

    def is_complete() -> bool:
        last = file.read_bytes()[-1000:].splitlines()[-1:]
        return last != [] and f'"sym":"CUSDT","T":{T0 + (minutes - 1) * MINUTE},'.encode() in last[0]

    kills = 0
    with file.open("ab") as out:
        while not is_complete():
            enough = file.stat().st_size + rng.randrange(800_000)
            watch = start(redis_url, tmp_path, *symbols, stdout=out, stderr=subprocess.DEVNULL)
            wait_until(lambda enough=enough: file.stat().st_size >= enough or is_complete())
            watch.kill()
            watch.wait(10)
            kills += 1

    assert kills >= 2
    assert file.read_text().endswith("\n")
    printed = [(one["sym"], (one["T"] - T0) // MINUTE) for one in map(json.loads, lines(file))]
    first_times = list(dict.fromkeys(printed))
    assert first_times == [(symbol, n) for n in range(minutes) for symbol in symbols][1:]
    assert len(printed) - len(first_times) <= kills
    assert max(Counter(printed).values()) <= 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_watch_ends_well_and_the_next_one_goes_on(
    redis_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    symbol = f"STOP{number}USDT"
    publish(redis_url, [flat(symbol, 0, slot=SLOT)])
    file = tmp_path / "printed"
    with file.open("ab") as out:
        watch = start(redis_url, tmp_path, symbol, "--from", "beginning", stdout=out)
        wait_until(lambda: len(lines(file)) == 1)
        watch.send_signal(number)
        assert watch.wait(10) == 0
        publish(redis_url, [flat(symbol, 1, slot=SLOT)])
        assert start(redis_url, tmp_path, symbol, "--count", 1, stdout=out).wait(30) == 0

    assert [json.loads(line)["T"] for line in lines(file)] == [T0, T0 + MINUTE]


def test_a_signal_is_printed_as_soon_as_it_is_published_also_of_a_symbol_that_is_new(
    redis_url: str, tmp_path: Path
) -> None:
    watch = start(redis_url, tmp_path, "NEWUSDT", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert watch.stdout is not None
    assert watch.stderr is not None
    assert b"1 symbols so far" in watch.stderr.readline()

    for n in range(3):
        publish(redis_url, [flat("NEWUSDT", n, slot=SLOT)])
        began = time.monotonic()
        assert json.loads(watch.stdout.readline())["T"] == T0 + n * MINUTE
        assert time.monotonic() - began < 5  # it does not wait for anything of its own

    watch.terminate()
    watch.communicate(timeout=10)


def test_a_reader_that_has_enough_ends_it_without_a_complaint(redis_url: str, tmp_path: Path) -> None:
    publish(redis_url, [flat("HEADUSDT", n, slot=SLOT) for n in range(2000)])
    watch = start(
        redis_url, tmp_path, "HEADUSDT", "--from", "beginning", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert watch.stdout is not None
    watch.stdout.readline()
    watch.stdout.close()

    assert watch.stderr is not None
    with watch.stderr:
        said = watch.stderr.read()
    assert watch.wait(30) == 0
    assert said.splitlines()[1:] == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_a_disk_that_is_full_is_said_to_be_and_the_signal_is_not_taken_for_printed(
    redis_url: str, tmp_path: Path
) -> None:
    publish(redis_url, [flat("FULLUSDT", 0, slot=SLOT)])
    words = ("FULLUSDT", "--from", "beginning")
    with Path("/dev/full").open("wb") as full:
        watch = start(redis_url, tmp_path, *words, stdout=full, stderr=subprocess.PIPE)
        _, said = watch.communicate(timeout=30)
    assert watch.returncode == 1
    assert said.splitlines()[1:] == [b"perpline: cannot write the signals: No space left on device"]

    again = start(redis_url, tmp_path, "FULLUSDT", "--count", 1, stdout=subprocess.PIPE)
    assert json.loads(again.communicate(timeout=30)[0])["T"] == T0


def test_a_server_that_goes_and_comes_back_is_waited_for_and_nothing_is_missed(
    durable_valkey: ValkeyServer, tmp_path: Path
) -> None:
    publish(durable_valkey.url, [flat("AUSDT", 0, slot=SLOT)])
    file, said = tmp_path / "printed", tmp_path / "said"
    with file.open("ab") as out, said.open("ab") as err:
        watch = start(durable_valkey.url, tmp_path, "--from", "beginning", stdout=out, stderr=err)
        wait_until(lambda: len(lines(file)) == 1)
        durable_valkey.stop()
        wait_until(lambda: "trying again" in said.read_text())
        durable_valkey.start()
        publish(durable_valkey.url, [flat("AUSDT", n, slot=SLOT) for n in (1, 2)])
        wait_until(lambda: len(lines(file)) == 3)
        wait_until(lambda: "is back" in said.read_text())
        watch.terminate()
        assert watch.wait(10) == 0

    assert [json.loads(line)["T"] for line in lines(file)] == [T0 + n * MINUTE for n in range(3)]
