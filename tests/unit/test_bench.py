"""What the benchmarks promise. No figure is asserted here: a benchmark is a command that prints a table."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench.frames import BLOCK, MIX, Tape
from bench.results import Table, write
from bench.route import decode_plain, route

from perpline.domain.candle import KlineUpdate
from perpline.domain.market import BookTicker, MarkPrice
from perpline.exchange.binance.decode import FieldWatch, decode

ROOT = Path(__file__).parents[2]
TINY_ROUTE = ("route", "--symbols", "3", "--seconds", "0.01", "--rounds", "1")
TINY_CLOSE = ("close", "--symbols", "3", "--closes", "1")


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )


def last_line(*arguments: str) -> dict[str, Any]:
    done = bench(*arguments)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_without_a_name_the_benchmarks_are_listed() -> None:
    assert {"route", "close", "all"} <= set(bench("--help").stdout.split())


def test_an_unknown_benchmark_is_wrong_usage() -> None:
    assert bench("rout").returncode == 2


def test_route_measures_perpline_beside_the_others() -> None:
    found = last_line(*TINY_ROUTE, "--json")

    over_socket, in_process = found["tables"]
    receivers = [row["receiver"] for row in over_socket["rows"]]
    assert receivers[:4] == [
        "bytes read, thrown away",
        "picows, empty callback",
        "picows + msgspec typed",
        "perpline: decode, route, cache",
    ]
    assert ("websockets + json" in receivers) == (importlib.util.find_spec("websockets") is not None)
    assert over_socket["rows"][2]["of typed"] == 1
    assert all(row["k msg/s"] > 0 for row in over_socket["rows"] + in_process["rows"])
    assert "perpline: decode, route, cache" in [row["step"] for row in in_process["rows"]]


def test_route_says_so_where_websockets_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets", None)

    over_socket, _ = route(3, 0.01, 1, lambda line: None)

    assert len(over_socket.rows) == 4
    assert any("not installed" in note for note in over_socket.notes)


def test_close_measures_every_case_and_its_split_adds_up() -> None:
    found = last_line(*TINY_CLOSE, "--json")

    latencies, split, steps = found["tables"]
    cases = ["3 symbols", "3 symbols, lively 60/s"]
    assert [row["closing together"] for row in latencies["rows"]] == cases
    assert all(0 < row["p50"] <= row["p99"] <= row["max"] <= row["all p99"] for row in latencies["rows"])
    assert [row["step"] for row in split["rows"]][:5] == [
        "last frame → features",
        "model",
        "verdicts, rows, messages",
        "commit",
        "outbox read",
    ]
    assert all(row[case] >= 0 for row in split["rows"] for case in cases)
    for latency, case in zip(latencies["rows"], cases, strict=True):
        # Up to the bus: what the engine's own figure has more, or less, is a few instructions before and after.
        assert sum(row[case] for row in split["rows"][:6]) == pytest.approx(latency["p50"], rel=0.2, abs=2.0)
    assert all(row["µs"] > 0 for row in steps["rows"])


def test_a_table_is_printed_and_written(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"

    done = bench(*TINY_ROUTE, "--write", "--results", str(results))

    assert done.returncode == 0
    assert "Messages over a socket, 3 symbols" in done.stdout
    text = results.read_text(encoding="utf-8")
    assert "## route\n\ndate 20" in text
    assert "| picows + msgspec typed |" in text


def test_writing_a_benchmark_again_replaces_its_part_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    around = {"date": "2026-11-23"}

    for name, value in (("route", 1), ("close", 2), ("route", 3)):
        write(name, [Table("t", ("step", "µs"), [("a", value)])], around, path)

    text = path.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## close", "## route"]
    assert "| a | 2 |" in text
    assert "| a | 3 |" in text
    assert "| a | 1 |" not in text


def test_a_tape_holds_the_mix_and_every_frame_becomes_an_event() -> None:
    tape = Tape(30)
    tape.turn_to(7)
    watch = FieldWatch()

    payloads = tape.payloads()
    events = [decode(payload, 1).content for payload in payloads]

    kinds = {BookTicker: "bookTicker", MarkPrice: "markPrice", KlineUpdate: "kline"}
    for kind, name in kinds.items():
        assert sum(type(event) is kind for event in events) == round(BLOCK * MIX[name])
    assert {event.symbol for event in events if isinstance(event, MarkPrice)} == set(tape.symbols)
    assert [watch.see(payload) for payload in payloads if watch.see(payload)] == []


@pytest.mark.parametrize("symbols", [30, 600])
def test_a_tape_goes_on_in_time_and_never_repeats_a_frame(symbols: int) -> None:
    tape = Tape(symbols)
    last_time, ids = 0, set()
    for block in (0, 1, 2, 9, 10, 11, 6_000):
        tape.turn_to(block)
        messages = [decode_plain(payload).data for payload in tape.payloads()]
        assert messages[0].event_time > last_time
        assert [m.event_time for m in messages] == sorted(m.event_time for m in messages)
        last_time = messages[-1].event_time
        klines = [m for m in messages if type(m).__name__ == "PlainKline"]
        assert all(m.kline.open_time <= m.event_time <= m.kline.close_time for m in klines)
        new = {m.update_id for m in messages if type(m).__name__ == "PlainBookTicker"}
        assert not new & ids
        ids |= new


def test_the_wire_of_a_tape_is_its_payloads_in_websocket_frames() -> None:
    tape = Tape(30)
    tape.turn_to(3)
    wire = tape.wire.tobytes()

    at = 0
    for number, payload in enumerate(tape.payloads()):
        assert tape.sent_before(number) == at
        assert wire[at : at + 4] == b"\x81\x7e" + len(payload).to_bytes(2, "big")
        at += 4 + len(payload)
        assert wire[at - len(payload) : at] == payload
    assert tape.sent_before(BLOCK) == at == len(wire)
