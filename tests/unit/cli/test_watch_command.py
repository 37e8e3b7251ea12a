"""`perpline watch` on a real server, typed by a person; how it survives is in tests/integration/test_watch_kills.py."""

import json
import os
import socket
import sqlite3
from itertools import count
from pathlib import Path

import pytest
from redis import Redis
from rich.console import Console

from perpline.cli.watch import signal_text
from perpline.domain.messages import Signal
from perpline.domain.signal import Decision, Status
from running import Finished, command
from signalling import MINUTE, T0, decision, flat, publish, published

numbers = count()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("PERPLINE_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")
    return tmp_path


class Server:
    """A slot of its own on the shared server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.slot = f"watch{os.getpid()}x{next(numbers)}"

    def publish(self, *decisions: Decision) -> None:
        publish(self.url, decisions)

    def watch(self, *words: object) -> Finished:
        """What is there already: the watch ends soon after it has printed all."""
        return command("watch", "--redis", self.url, "--slot", self.slot, "--duration", 0.3, *words)

    def printed(self, *words: object) -> list[tuple[str, int]]:
        """Symbol and minute of each signal printed, in order."""
        done = self.watch("--json", *words)
        assert done.code == 0, done.err
        found = [json.loads(line) for line in done.out.splitlines()]
        return [(one["sym"], (one["T"] - T0) // MINUTE) for one in found]


@pytest.fixture
def server(redis_url: str) -> Server:
    return Server(redis_url)


def test_signals_are_printed_as_the_messages_they_are_in_order_of_their_minute(server: Server) -> None:
    made = [decision(symbol, n, slot=server.slot) for symbol in ("BUSDT", "AUSDT") for n in range(3)]
    server.publish(*made)

    done = server.watch("--from", "beginning", "--json")

    by_minute = sorted(enumerate(made), key=lambda each: (each[1].close_time, each[1].symbol))
    assert [json.loads(line) for line in done.out.splitlines()] == [
        json.loads(published(one, n + 1).payload) for n, one in by_minute
    ]
    assert done.err.splitlines() == [
        f"perpline watch: following slot {server.slot} at Redis at {server.url}, 2 symbols so far"
    ]


def test_more_than_one_read_holds_stays_in_order(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perpline.bus.follow.ENTRIES_AT_ONCE", 6)
    server.publish(*(flat("AUSDT", n, slot=server.slot) for n in range(20)))
    server.publish(*(flat("BUSDT", n, slot=server.slot) for n in (1, 2, 30)))
    server.publish(*(flat("CUSDT", n, slot=server.slot) for n in range(15, 25)))

    printed = server.printed("--from", "beginning")

    assert len(printed) == 33
    assert printed == sorted(printed, key=lambda each: (each[1], each[0]))


def test_the_next_watch_goes_on_where_the_last_one_ended(server: Server) -> None:
    server.publish(*(flat("AUSDT", n, slot=server.slot) for n in range(3)))
    assert server.printed("--from", "beginning", "--count", 2) == [("AUSDT", 0), ("AUSDT", 1)]

    server.publish(flat("AUSDT", 3, slot=server.slot), flat("BUSDT", 1, slot=server.slot))

    assert server.printed() == [("BUSDT", 1), ("AUSDT", 2), ("AUSDT", 3)]
    assert server.printed() == []


def test_the_first_watch_begins_now_and_the_next_one_there(server: Server) -> None:
    server.publish(flat("AUSDT", 0, slot=server.slot))
    assert server.printed() == []

    server.publish(flat("AUSDT", 1, slot=server.slot))

    assert server.printed() == [("AUSDT", 1)]


def test_a_symbol_that_was_not_asked_for_before_begins_now(server: Server) -> None:
    server.publish(flat("AUSDT", 0, slot=server.slot), flat("BUSDT", 0, slot=server.slot))
    assert server.printed("AUSDT", "--from", "beginning") == [("AUSDT", 0)]
    server.publish(flat("AUSDT", 1, slot=server.slot), flat("BUSDT", 1, slot=server.slot))

    assert server.printed() == [("AUSDT", 1)]


def test_from_now_forgets_what_was_missed_and_from_beginning_tells_everything_again(server: Server) -> None:
    server.publish(flat("AUSDT", 0, slot=server.slot))
    assert server.printed("--from", "beginning") == [("AUSDT", 0)]
    server.publish(flat("AUSDT", 1, slot=server.slot))

    assert server.printed("--from", "now") == []
    assert server.printed() == []
    assert server.printed("--from", "beginning") == [("AUSDT", 0), ("AUSDT", 1)]


def test_each_name_has_its_own_position(server: Server) -> None:
    server.publish(flat("AUSDT", 0, slot=server.slot))

    assert server.printed("--from", "beginning", "--name", "one") == [("AUSDT", 0)]
    assert server.printed("--from", "beginning", "--name", "two", "--count", 1) == [("AUSDT", 0)]
    server.publish(flat("AUSDT", 1, slot=server.slot))
    assert server.printed("--name", "one") == [("AUSDT", 1)]
    assert server.printed("--name", "two") == [("AUSDT", 1)]


def test_only_the_symbols_and_statuses_asked_for_are_printed(server: Server) -> None:
    server.publish(
        *(decision(symbol, 0, slot=server.slot) for symbol in ("AUSDT", "BUSDT")), flat("AUSDT", 1, slot=server.slot)
    )

    assert server.printed("ausdt", "--from", "beginning") == [("AUSDT", 0), ("AUSDT", 1)]
    assert server.printed("--only", "ok", "--from", "beginning") == [("AUSDT", 0), ("BUSDT", 0)]
    assert server.printed() == []
    assert server.printed("--only", "flat", "--only", "ok", "--from", "beginning", "--count", 2) == [
        ("AUSDT", 0),
        ("BUSDT", 0),
    ]


def test_another_slot_is_another_matter(server: Server) -> None:
    server.publish(flat("AUSDT", 0, slot=f"{server.slot}2"))

    assert server.printed("--from", "beginning") == []


def test_what_has_left_the_stream_since_the_last_watch_is_told(server: Server) -> None:
    server.publish(*(flat("AUSDT", n, slot=server.slot) for n in range(10)))
    server.printed("--from", "beginning", "--count", 3)
    with Redis.from_url(server.url) as client:
        client.xtrim(f"sig:{server.slot}:AUSDT", maxlen=4, approximate=False)

    done = server.watch("--json")

    assert [json.loads(line)["T"] for line in done.out.splitlines()] == [T0 + n * MINUTE for n in range(6, 10)]
    hole = "AUSDT: what came between 2026-11-21 00:03 and 2026-11-21 00:07 UTC is no longer on the server"
    assert hole in done.err


def test_an_entry_that_is_no_signal_is_told_and_passed_over(server: Server) -> None:
    server.publish(flat("AUSDT", 0, slot=server.slot))
    with Redis.from_url(server.url) as client:
        client.xadd(f"sig:{server.slot}:AUSDT", {b"v": b"\xff\x1b[2J"}, id=f"{T0 + 1}-0")
    server.publish(flat("AUSDT", 1, slot=server.slot))

    done = server.watch("--json", "--from", "beginning")

    assert len(done.out.splitlines()) == 2
    assert f"sig:{server.slot}:AUSDT {T0 + 1}-0: this is no signal that this version can read" in done.err
    assert server.printed() == []


def test_a_key_that_is_no_stream_is_said_to_be(server: Server) -> None:
    with Redis.from_url(server.url) as client:
        client.set(f"sig:{server.slot}:AUSDT", "x")

    done = server.watch("--from", "beginning")

    assert done.code == 1
    assert "WRONGTYPE" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


def test_the_bus_inside_a_process_cannot_be_watched_and_it_says_what_can() -> None:
    done = command("watch")

    assert (done.code, done.out) == (1, "")
    assert "perpline status" in done.error_line


def test_a_server_that_is_away_is_told_and_tried_again() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    done = command("watch", "--redis", f"redis://user:s3cret@127.0.0.1:{port}/0", "--duration", 0.2)

    assert (done.code, done.out) == (0, "")
    assert f"Redis at redis://127.0.0.1:{port}/0: ConnectionError" in done.err
    assert "trying again in" in done.err
    assert "s3cret" not in done.err


def test_a_position_that_cannot_be_kept_is_said_before_anything_is_printed(server: Server, home: Path) -> None:
    server.publish(flat("AUSDT", 0, slot=server.slot))
    (home / ".local").write_text("a file, not a folder")

    done = server.watch("--from", "beginning")

    assert (done.code, done.out) == (1, "")
    assert "cannot keep the position in" in done.error_line


def test_a_damaged_position_file_is_said_to_be(server: Server, home: Path) -> None:
    file = home / ".local/state/perpline/watch.db"
    file.parent.mkdir(parents=True)
    file.write_text("not a database " * 100)

    done = server.watch()

    assert done.code == 1
    assert "delete it" in done.error_line


def test_the_position_is_kept_where_xdg_says_and_holds_no_password(
    redis_url: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    command("watch", "AUSDT", "--redis", "redis://user:s3cret@127.0.0.1:9/0", "--duration", 0)
    Server(redis_url).watch("AUSDT")

    file = home / "state/perpline/watch.db"
    with sqlite3.connect(file) as connection:
        [(server, name)] = connection.execute("SELECT server, name FROM position").fetchall()
    connection.close()
    assert (server, name) == (f"Redis at {redis_url}", "default")
    assert b"s3cret" not in file.read_bytes()


def line(one: Decision, **changes: object) -> str:
    console = Console(width=200)
    signal = Signal(**{**json.loads(published(one).payload), **changes})  # type: ignore[arg-type]
    with console.capture() as captured:
        console.print(signal_text(signal), soft_wrap=True)
    return captured.get().rstrip("\n")


def test_a_line_for_people_says_what_to_do_or_why_nothing() -> None:
    assert line(decision("BTCUSDT")) == (
        "2026-11-21 00:01  BTCUSDT      ▲ long   p 0.612  ev 7.4  mark 67450.1  tp 68120.0  sl 66780.5  until 00:01:30"
    )
    assert line(decision("BTCUSDT", side=-1, p_cal=None, ev_bp=None)) == (
        "2026-11-21 00:01  BTCUSDT      ▼ short  mark 67450.1  tp 68120.0  sl 66780.5  until 00:01:30"
    )
    assert line(flat("ETHUSDT")) == "2026-11-21 00:01  ETHUSDT      flat  long 0.520 is below 0.580"


def test_a_signal_that_came_too_late_says_so() -> None:
    late = line(decision("BTCUSDT"), t_pub_us=(T0 + 30_001) * 1000)

    assert late.endswith("published after it had expired")


def test_nothing_a_server_says_reaches_the_terminal_as_an_order() -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J[bold]\u202e\n"

    shown = line(flat("AUSDT", detail=hostile), sym=hostile, status=hostile)

    assert all(letter.isprintable() for letter in shown)
    assert "[bold]" in shown


def test_every_status_can_be_shown() -> None:
    for status in Status:
        assert f" {status} " in line(flat("AUSDT"), status=str(status))
