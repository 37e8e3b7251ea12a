"""The client of docs/consumers.md, killed again and again while signals flow."""

import random
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis import Redis

from signalling import MINUTE, T0, decision, publish

CLIENT = Path(__file__).parents[2] / "docs" / "examples" / "consumer.py"


@pytest.mark.slow
def test_every_signal_has_its_effect_exactly_once_however_often_its_clients_are_killed(
    redis_url: str, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)
    run = secrets.token_hex(4)  # the server may be somebody's, and used before
    symbols, minutes = (f"A{run}", f"B{run}"), 400
    client = tmp_path / "consumer.py"
    text = CLIENT.read_text()
    assert "IDLE_MS = " in text
    client.write_text(text.replace("10_000", "200"))  # a test has no ten seconds to wait
    file = tmp_path / "acted.db"

    def start(name: str) -> "subprocess.Popen[bytes]":
        arguments = [sys.executable, str(client), redis_url, str(file), name, *symbols]
        return subprocess.Popen(arguments)

    clients = {name: start(name) for name in ("one", "two")}
    kills = 0
    for part in range(8):
        first = part * minutes // 8
        publish(redis_url, [decision(one, first + n) for n in range(minutes // 8) for one in symbols])
        wait_for_more(file, rng.randrange(1, 60))
        name = rng.choice(list(clients))
        clients[name].send_signal(signal.SIGKILL)
        assert clients[name].wait(10) == -signal.SIGKILL
        kills += 1
        # The dead one comes back under its own name or another.
        clients[name] = start(rng.choice([name, f"{name}{part}"]))
    wait_for(file, minutes * len(symbols))
    with Redis.from_url(redis_url) as server:
        wait_until_acknowledged(server, symbols)
    for each in clients.values():
        assert each.poll() is None
        each.kill()
        each.wait(10)

    assert sorted(acted(file, "symbol, T, side")) == sorted(
        (one, T0 + n * MINUTE, 1) for n in range(minutes) for one in symbols
    )
    assert len(acted(file, "DISTINCT id")) == minutes * len(symbols)
    assert kills == 8


def acted(file: Path, columns: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(file, timeout=60)
    try:
        return connection.execute(f"SELECT {columns} FROM acted").fetchall()
    except sqlite3.OperationalError:
        return []  # no client has made the table yet
    finally:
        connection.close()


def wait_for(file: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(acted(file, "id")) < count:
        assert time.monotonic() < deadline, f"{len(acted(file, 'id'))} of {count} after 60 s"
        time.sleep(0.02)


def wait_for_more(file: Path, count: int) -> None:
    """Until so many more have been acted on, or nothing has for a while, because the others are with a dead client."""
    enough = len(acted(file, "id")) + count
    deadline = time.monotonic() + 1.0
    while len(acted(file, "id")) < enough and time.monotonic() < deadline:
        time.sleep(0.005)


def wait_until_acknowledged(server: Redis, symbols: tuple[str, ...]) -> None:
    deadline = time.monotonic() + 20
    while any(server.xpending(f"sig:champion:{symbol}", "traders")["pending"] for symbol in symbols):
        assert time.monotonic() < deadline, "signals stay unacknowledged"
        time.sleep(0.02)
