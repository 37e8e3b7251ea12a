"""What the benchmarks promise. No figure is asserted here: a benchmark is a command that prints a table."""

import importlib.util
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog
from bench.__main__ import app
from bench.close import close
from bench.dashboard import dashboard, lacking
from bench.frames import BLOCK, MIX, Tape
from bench.latency import latency
from bench.outage import outage
from bench.results import Table, write
from bench.route import decode_plain, route
from bench.soak import memory, soak
from bench.start import start
from bench.stops import stops
from bench.workers import workers
from redis import Redis
from typer.testing import CliRunner, Result

from perpline.domain.candle import KlineUpdate
from perpline.domain.market import BookTicker, MarkPrice
from perpline.drill.drills import DRILLS
from perpline.exchange.binance.decode import FieldWatch, decode

ROOT = Path(__file__).parents[2]
TINY_ROUTE = ("route", "--symbols", "3", "--seconds", "0.01", "--rounds", "1")
TINY_CLOSE = ("close", "--symbols", "3", "--closes", "1")
SPLIT = ("features", "model", "verdicts", "commit", "publish")


def bench(*arguments: str) -> Result:
    """In this process; as a process of its own it takes a second to start."""
    try:
        return CliRunner().invoke(app, arguments)
    finally:
        structlog.reset_defaults()
        logging.basicConfig(force=True, handlers=[logging.NullHandler()])


def last_line(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_without_a_name_the_benchmarks_are_listed() -> None:
    names = {"route", "latency", "close", "dashboard", "listeners", "workers", "start", "stops", "all"}
    assert names <= set(bench("--help").output.split())


def test_an_unknown_benchmark_is_wrong_usage() -> None:
    assert bench("rout").exit_code == 2


@pytest.mark.full
def test_route_measures_perpline_beside_the_others() -> None:
    found = last_line(*TINY_ROUTE, "--json")

    over_socket, in_process = found["tables"]
    receivers = [row["receiver"] for row in over_socket["rows"]]
    assert receivers[:5] == [
        "bytes read, thrown away",
        "picows, empty callback",
        "picows + msgspec typed",
        "perpline, books and forming candles kept as bytes",
        "perpline, every frame decoded (book_minutes)",
    ]
    assert ("websockets + json" in receivers) == (importlib.util.find_spec("websockets") is not None)
    assert over_socket["rows"][2]["of typed"] == 1
    assert all(row["k msg/s"] > 0 for row in over_socket["rows"] + in_process["rows"])
    assert "perpline: decode, route, cache" in [row["step"] for row in in_process["rows"]]


def test_route_says_so_where_websockets_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets", None)

    over_socket, _ = route(3, 0.01, 1, lambda line: None)

    assert len(over_socket.rows) == 5
    assert any("not installed" in note for note in over_socket.notes)


@pytest.mark.full
def test_close_measures_every_case_and_its_split_adds_up(postgres_url: str, redis_url: str) -> None:
    found = last_line(*TINY_CLOSE, "--postgres", postgres_url, "--redis", redis_url, "--json")

    latencies, split, steps = found["tables"]
    quiet, lively = "3 symbols", "3 symbols, lively 60/s"
    pairs = [("SQLite", "memory"), ("SQLite", "Redis"), ("PostgreSQL", "memory"), ("PostgreSQL", "Redis")]
    cases = [(quiet, *pair) for pair in pairs] + [(lively, *pairs[0]), (lively, *pairs[3])]
    assert [(row["closing together"], row["store"], row["bus"]) for row in latencies["rows"]] == cases
    assert all(0 < row["p50"] <= row["p99"] <= row["max"] <= row["all p99"] for row in latencies["rows"])
    for latency_row, row in zip(latencies["rows"], split["rows"], strict=True):
        assert all(row[step] >= 0 for step in (*SPLIT, "routing", "marking"))
        # Up to the bus: what the engine's own figure has more, or less, is a few instructions before and after.
        assert sum(row[step] for step in SPLIT) == pytest.approx(latency_row["p50"], rel=0.2, abs=2.0)
    assert all(row["µs"] > 0 for row in steps["rows"])
    with Redis.from_url(redis_url, decode_responses=True) as client:
        assert list(client.scan_iter("*:bench-*")) == []  # the servers named are left as they were


@pytest.mark.full
def test_close_says_which_servers_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    for launcher in ("postgres_server", "valkey_server"):
        monkeypatch.setitem(sys.modules, launcher, None)

    latencies, *_ = close([3], 1, None, None, lambda line: None)

    assert {row[1:3] for row in latencies.rows} == {("SQLite", "memory")}
    assert [note.split(" (")[0] for note in latencies.notes if "not measured" in note] == [
        "PostgreSQL: not measured",
        "Redis: not measured",
    ]


def test_latency_measures_both_ways_of_keeping_books_at_each_rate() -> None:
    [table] = latency(3, [1000, 4000], 0.1, 2, lambda line: None)

    ways = ["kept as bytes", "every frame decoded"]
    assert [row[:2] for row in table.rows] == [(way, rate) for rate in (1.0, 4.0) for way in ways]
    for _, _, reached, p50, p99, p999, most, cpu_us, reads in table.rows:
        assert 0 < p50 <= p99 <= p999 <= most
        assert reached > 0
        assert cpu_us > 0
        assert reads > 0


def test_latency_says_which_rates_were_not_held() -> None:
    [table] = latency(3, [10_000_000], 0.005, 1, lambda line: None)

    assert [note for note in table.notes if "NOT held" in note] == [
        "kept as bytes, 10000 k/s: the rate was NOT held.",
        "every frame decoded, 10000 k/s: the rate was NOT held.",
    ]


@pytest.mark.full
def test_workers_compares_both_in_one_run() -> None:
    [table] = workers(2, 1, 60.0, lambda line: None)

    assert [row[0] for row in table.rows] == ["WebSocket", "REST every 5 s"]
    for _, decisions, of_a_symbol, heard, p50, p99, most, *ours, _ in table.rows:
        assert (decisions, of_a_symbol) == (2.0, 1.0)
        assert 0 < heard <= p50 <= p99 <= most
        assert all(figure > 0 for figure in ours)


@pytest.mark.full
@pytest.mark.skipif(lacking() is not None, reason=str(lacking()))
def test_dashboard_measures_a_page_and_a_worker_without_and_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.dashboard.SETTLED_S", 6.0)

    frames, closes, use = dashboard(2, 1.0, 0, lambda line: None, speed=12.0, turn_s=12.0)

    assert [row[0] for row in frames.rows][:2] == ["lies still", "is scrolled"]
    for row in frames.rows:
        cells = dict(zip(frames.columns, row, strict=True))
        assert 0 < cells["p50 ms"] <= cells["p99 ms"] <= cells["longest ms"]
        assert (cells["over 100 ms"] > 0) == (cells["longest ms"] > 100)
    assert all(0 < row[-2] <= 5.5 for row in frames.rows[:2])
    alone, watched, ratio = closes.rows
    assert [row[0] for row in closes.rows] == ["nobody looks", "dashboard and browser", "ratio"]
    assert all(count > 0 for row in (alone, watched) for count in row[1:6])
    assert ratio[3] == pytest.approx(watched[3] / alone[3], abs=0.01)
    used = {name: cells for name, *cells in use.rows}
    assert [name for name, (before, _) in used.items() if before is None] == ["dashboard", "browser", "of it the page"]
    assert all(share > 0 for _, share in used.values())


def test_dashboard_says_in_one_line_that_there_is_no_chromium(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("shutil.which", lambda name: None)

    done = bench("dashboard")

    line = "dashboard: not measured, no Chromium on this machine (apt-get install chromium)\n"
    assert (done.exit_code, done.output) == (1, line)


@pytest.mark.full
def test_start_measures_a_cold_and_a_warm_store() -> None:
    [table] = start([2], 1.0, lambda line: None, kill=False)  # which waits for a minute to end

    assert [row[:2] for row in table.rows] == [(2, "cold"), (2, "warm")]
    for _, _, windows_s, _, _, requests, now_mb, peak_mb in table.rows:
        assert windows_s > 0
        assert requests > 0
        assert now_mb is None or 0 < now_mb <= peak_mb


def test_stops_measures_one_and_all_firing_with_both_kinds_of_keys() -> None:
    fired, entered = stops([2], 2, lambda line: None)

    keys = ["HMAC", "Ed25519"]
    assert [row[:2] for row in fired.rows] == [(which, key) for key in keys for which in ("one of 2", "all 2")]
    for _, _, orders, p50, p99, most, outside_p50, outside_p99 in fired.rows:
        assert orders >= 2
        assert 0 < p50 <= p99 <= most
        # Mostly longer; but the order may have come before a process that has to wait for its turn sees it written.
        assert 0 < outside_p50 <= outside_p99
    assert [row[:3] for row in entered.rows] == [("1 others open", key, 2) for key in keys]
    assert all(0 < p50 <= p99 <= most for *_, p50, p99, most in entered.rows)


def test_a_table_is_printed_and_written(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"

    done = bench(*TINY_ROUTE, "--write", "--results", str(results))

    assert done.exit_code == 0
    assert "Messages over a socket, 3 symbols" in done.output
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


def test_outage_holds_everything_on_disk_and_stores_it(postgres_url: str) -> None:
    [table] = outage(4, 2, postgres_url, lambda line: None)

    cells = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["database"] for row in cells] == ["SQLite", "PostgreSQL"]
    assert {(row["decisions held"], row["published meanwhile"]) for row in cells} == {(8, 8)}
    assert {row["rows held"] for row in cells} == {2 * 4 * 7}


def test_a_soak_goes_on_where_it_ended_and_its_table_counts_every_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [one] = [each for each in DRILLS.values() if each.name == "garbage"]
    monkeypatch.setattr("bench.soak.DRILLS", {one.name: one})
    file = tmp_path / "soak.jsonl"
    none = {"candles_lost": 0, "decisions_lost": 0, "decisions_twice": 0, "orders_twice": 0}
    passed = {
        "name": one.name,
        "result": "PASS",
        "reason": "",
        "seconds_to_heal": 1.5,
        "seconds": 9.0,
        "code": "b",
        **none,
    }
    failed = passed | {"result": "FAIL", "reason": "2 candles lost", "candles_lost": 2, "code": "a"}
    lines = [json.dumps({"seed": seed, **each}) for seed, each in ((1, passed), (2, failed), (2, passed))]
    file.write_text("\n".join([*lines, '{"seed": 3, "na']))

    [table] = soak([1, 2], 1, file, lambda line: None)

    assert table.rows == [(one.name, 2, 2, 0, 0, 0, 0, 0, 1.5, 9.0)]
    assert [note for note in table.notes if "failed" in note or "code" in note][-2:] == [
        "states of the code (hash of its sources): b 2 runs.",
        "failed once, and counted only where it was not played again: garbage --seed 2 (code a): 2 candles lost",
    ]


@pytest.mark.full
def test_memory_is_measured_over_a_market_that_runs_fast() -> None:
    [table] = memory(0.05, 2, 60.0, lambda line: None)

    [(symbols, hours, ready_mb, _, end_mb, peak_mb, _, _)] = table.rows
    assert (symbols, hours) == (2, 0.05)
    assert 50 < ready_mb <= peak_mb
    assert 50 < end_mb <= peak_mb < 2000
