"""Commands as a person types them: what is wrong is said in one line, and every command shows how it is used."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from perpline import __version__, bootstrap
from perpline.cli import program
from perpline.endpoint import token_file
from running import command

NOWHERE = ("--ws-url", "ws://127.0.0.1:9", "--rest-url", "http://127.0.0.1:9")


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("PERPLINE_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")


# ---- help


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command by its full name."""
    program.add_commands()
    waiting = [("", typer.main.get_command(program.app))]
    while waiting:
        name, each = waiting.pop()
        if hasattr(each, "commands"):
            waiting += [(f"{name} {sub}".strip(), child) for sub, child in each.commands.items()]
        else:
            yield name, each


@pytest.mark.parametrize("name", sorted(name for name, _ in commands()))
def test_the_help_of_every_command_has_an_example_that_names_the_command(name: str) -> None:
    help_text = command(*name.split(), "--help")

    assert help_text.code == 0
    examples = [line for line in help_text.out.splitlines() if "Example:" in line]
    assert examples, f"perpline {name} --help shows no example"
    assert f"perpline {name}" in " ".join(examples)


def test_every_option_of_every_command_says_what_it_is_for() -> None:
    silent = [
        f"{name} {parameter.name}"
        for name, each in commands()
        for parameter in each.params
        if not parameter.help  # typer brings a click of its own, so no isinstance
    ]
    assert silent == []


def test_the_version_is_printed() -> None:
    done = command("--version")

    assert (done.code, done.out) == (0, f"perpline {__version__}\n")


@pytest.mark.parametrize(
    "words",
    [
        ("rnu",),
        ("run", "--no-such-option"),
        ("run", "--duration", "soon"),
        ("run", "--duration", "-1"),
        ("demo", "--symbols", "0"),
        ("demo", "--speed", "1000"),
        ("demo", "--speed", "nan"),
        ("simulate", "--port", "70000"),
        ("simulate", "--edge", "nan"),
        ("simulate", "--fault", "missing_close_shar=0.1"),
        ("replay",),
        ("replay", "no-such-file.zst"),
        ("replay", "--format", "csv", "x"),
        ("record",),
        ("status", "--status-port", "many"),
        ("plan", "--no-such-option"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_2_and_a_traceback_is_never_shown(words: tuple[str, ...]) -> None:
    done = command(*words)

    assert done.code == 2
    assert done.out == ""
    assert "Traceback" not in done.err
    assert "Error" in done.err


# ---- settings


@pytest.mark.parametrize(
    "words", [("run",), ("status",), ("plan",), ("config", "check"), ("record", "--out", "x")], ids=" ".join
)
def test_a_settings_file_that_is_not_there_is_named(words: tuple[str, ...]) -> None:
    done = command(*words, "--config", "nowhere.toml")

    assert (done.code, done.out) == (1, "")
    assert done.error_line == "perpline: cannot read the settings file nowhere.toml: No such file or directory"


def test_an_unknown_setting_is_refused_with_a_suggestion() -> None:
    Path("perpline.toml").write_text('symbol = ["BTCUSDT"]\n')
    done = command("run")

    assert done.code == 1
    assert done.error_line == "perpline: unknown setting 'symbol' in perpline.toml: did you mean 'symbols'?"


def test_an_unknown_environment_variable_is_refused_with_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERPLINE_SYMBOL", "BTCUSDT")
    done = command("run")

    assert done.code == 1
    assert "did you mean 'PERPLINE_SYMBOLS'?" in done.error_line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--speed", "60"), "clock_speed"),
        (("--symbols", "top:0"), "symbols"),
        (("--symbols", "BTC/USDT"), "symbols"),
        (("--network", "mars"), "network"),
        (("--status-port", "70000"), "status_port"),
        (("--database", "market.db"), "database_url"),
        (("--redis", "localhost"), "redis_url"),
        (("--ws-url", "ws://127.0.0.1:9"), "binance_futures_rest_url"),
        (("--ws-url", "http://127.0.0.1:9", "--rest-url", "http://127.0.0.1:9"), "binance_futures_ws_url"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_setting_that_cannot_be_meant_is_named_in_one_line(words: tuple[str, ...], told: str) -> None:
    done = command("run", *words)

    assert (done.code, done.out) == (1, "")
    assert done.error_line.startswith("perpline: ")
    assert told in done.error_line


# ---- the surroundings


@pytest.mark.parametrize(
    "words",
    [
        ("run", *NOWHERE),
        ("run", "--rest", *NOWHERE),
        ("run", "--speed", "60", *NOWHERE),
        ("record", "--out", "x", *NOWHERE),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_an_exchange_that_does_not_answer_is_one_line_at_the_end(words: tuple[str, ...]) -> None:
    done = command(*words)

    assert (done.code, done.out) == (1, "")
    last = done.err.splitlines()[-1]
    assert last.startswith("perpline: the exchange does not answer at http://127.0.0.1:9 (GET /fapi/v1/")
    assert "Traceback" not in done.err


def test_a_backfill_at_an_exchange_that_does_not_answer_says_so_before_it_asks_for_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bootstrap.first_answer, "__defaults__", (1.0, 0.3))
    done = command("backfill", "--symbols", "BTCUSDT", "--from", "2026-11-01", "--rest-url", "http://127.0.0.1:9")

    assert (done.code, done.out) == (1, "")
    [*waiting, last] = done.err.splitlines()
    assert waiting
    assert all("does not answer at http://127.0.0.1:9 (" in line for line in waiting)
    assert last.startswith("perpline: the exchange does not answer at http://127.0.0.1:9 (")
    assert last.endswith(", for 1 s): check the network, or the address (binance_futures_rest_url, network)")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--database", "nonsense://x"), "database_url (option): must be a URL sqlite://… or postgresql://…"),
        (("--database", "sqlite:///:memory:"), "a SQLite address names a file"),
        (("--database", "sqlite:////no/such/folder/x.db"), "cannot open /no/such/folder/x.db"),
        (("--redis", "localhost"), "redis_url (option): must be a URL"),
        (("--redis", "redis://127.0.0.1:9/0"), "Redis at redis://127.0.0.1:9/0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_demo_that_cannot_use_its_database_or_bus_starts_nothing(words: tuple[str, ...], told: str) -> None:
    done = command("demo", *words)

    assert (done.code, done.out) == (1, "")
    assert done.error_line.startswith("perpline: ")
    assert told in done.error_line


@pytest.mark.parametrize(
    "words",
    [
        ("models", "list"),
        ("models", "show", "x"),
        ("gaps",),
        ("explain", "BTCUSDT", "2026-11-23T05:00"),
        ("features", "build", "--from", "2026-11-01", "--to", "2026-11-02", "--out", "out"),
        ("parity",),
        ("outcomes",),
        ("backtest", "--from", "2026-11-01", "--to", "2026-11-02"),
        ("db", "check"),
        ("db", "backup", "--out", "copy.db"),
    ],
    ids=" ".join,
)
def test_who_only_looks_is_told_that_there_is_no_database_yet_and_makes_none(words: tuple[str, ...]) -> None:
    done = command(*words, "--database", "sqlite:///none.db")

    assert (done.code, done.out) == (1, "")
    last = done.err.splitlines()[-1]
    assert last.startswith("perpline: there is no database yet at none.db: perpline run makes one")
    assert not Path("none.db").exists()


def test_status_without_a_worker_says_that_none_runs() -> None:
    done = command("status", "--status-port", "9999")

    assert (done.code, done.out) == (1, "")
    assert done.error_line.startswith("perpline: no worker runs on port 9999: ")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"url": "http://127.0.0.1:9", "token": "x", "pid": 1}', "does not answer"),
        ("{", "cannot read the worker's token file"),
        ("[]", "cannot read the worker's token file"),
        ("{}", "cannot read the worker's token file"),
    ],
)
def test_status_of_a_worker_that_died_says_so(tmp_path: Path, content: str, told: str) -> None:
    Path("perpline.toml").write_text(f"data_dir = {json.dumps(str(tmp_path))}\n")
    token_file(tmp_path, 9998).write_text(content)
    done = command("status", "--status-port", "9998")

    assert (done.code, done.out) == (1, "")
    assert told in done.error_line


def test_simulate_on_a_port_that_is_taken_says_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = command("simulate", "--port", port, "--symbols", "1")

    assert (done.code, done.out) == (1, "")
    assert f"cannot listen on 127.0.0.1:{port}" in done.error_line


# ---- replay


def test_replaying_a_file_that_is_no_recording_says_what_it_begins_with(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("dear diary\n")
    done = command("replay", "notes.txt")

    assert (done.code, done.out) == (1, "")
    assert done.error_line == ("perpline: notes.txt is no recording that perpline can read (first line: b'dear diary')")


def test_replaying_an_empty_file_is_no_frame_and_no_failure(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    said = command("replay", "empty", "--json").json

    assert (said["frames"], said["by_stream"], said["malformed"], said["symbols"]) == (0, {}, 0, {})
    assert said["first_time"] is said["last_time"] is None


def test_frames_and_lines_that_cannot_be_read_are_counted_as_malformed_and_the_rest_is_replayed(tmp_path: Path) -> None:
    book = (
        b'{"stream":"btcusdt@bookTicker","data":{"e":"bookTicker","u":7,"s":"BTCUSDT","b":"99.5","B":"1","a":"100.5",'
        b'"A":"2","T":1790000000000,"E":1790000000001}}'
    )
    (tmp_path / "torn").write_bytes(
        b"1790000000002000 " + book + b"\n"
        b"no time at all\n"
        b'1790000000003000 {"stream":"btcusdt@bookTicker","data":{"e":"bookTicker","u":8,\n'
        b'1790000000004000 {"lastUpdateId":5,"bids":[],"asks":[]}\n'
    )
    done = command("replay", "torn", "--json")

    assert done.code == 0
    assert (done.json["frames"], done.json["malformed"]) == (3, 2)
    assert done.json["unhandled_types"] == {"depthSnapshot": 1}
    assert done.json["symbols"]["BTCUSDT"]["book"] == {
        **{"bid": 99.5, "bid_qty": 1.0, "ask": 100.5, "ask_qty": 2.0},
        **{"updated_at": 1790000000001, "received_at": 1790000000002},
    }


def test_a_replay_for_people_has_a_table() -> None:
    Path("empty").write_bytes(b"")
    done = command("replay", "empty")

    assert done.code == 0
    assert "0 frames, 0 malformed" in done.out


def test_replaying_into_a_file_that_is_no_database_says_so(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("dear diary, " * 500)
    (tmp_path / "empty").write_bytes(b"")
    done = command("replay", "empty", "--database", "sqlite:///notes.db")

    assert done.code == 1
    assert done.error_line == "perpline: notes.db is not a SQLite database: name another file"


def test_a_database_in_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    done = command("replay", "empty", "--database", "sqlite:///no/such/folder/x.db")

    assert done.code == 1
    assert "no/such/folder/x.db" in done.error_line
