"""The commands together, as processes: an exchange, a worker, its endpoint, and how they end."""

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from perpline.endpoint import token_file
from running import MINUTE, Database, command, eventually, next_close, settings_file, simulated, true_candles

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("PERPLINE_", "XDG_"))}


def start(*words: object, **options: Any) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "perpline", *map(str, words)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=CLEAN, **options)


def end(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> tuple[str, str]:
    if process.poll() is None:
        process.send_signal(number)
    return process.communicate(timeout=30)


@pytest.fixture(scope="module")
def exchange() -> Iterator[dict[str, Any]]:
    """A simulated exchange as a process: what it said when it was ready."""
    process = start("simulate", "--speed", 60, "--symbols", 3, "--seed", 5)
    assert process.stdout is not None
    yield json.loads(process.stdout.readline())
    end(process, signal.SIGTERM)


def worker_file(exchange: dict[str, Any], folder: Path, **changes: object) -> Path:
    values = {
        **{"network": "custom", "binance_futures_ws_url": exchange["ws"], "binance_futures_rest_url": exchange["http"]},
        **{"symbols": "top:3", "clock_speed": 60, "data_dir": str(folder), "status_port": free_port()},
        **changes,
    }
    path = folder / "perpline.toml"
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get(url: str, token: str = "") -> tuple[int, str]:
    request = Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as refused:
        return refused.code, refused.read().decode()


def wait_for(condition: Any, within_s: float = 40.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.05)
    return found


def access(folder: Path) -> dict[str, Any] | None:
    """Address and token of the worker in this folder, once it says that it is well."""
    for path in folder.glob("worker-*.json"):
        found: dict[str, Any] = json.loads(path.read_text())
        if get(f"{found['url']}/healthz")[0] == 200:
            return found
    return None


def test_a_worker_shows_itself_to_whoever_has_its_token_and_stops_cleanly(
    exchange: dict[str, Any], tmp_path: Path
) -> None:
    settings = worker_file(exchange, tmp_path)
    process = start("run", "--config", settings, "--json")
    try:
        found = wait_for(lambda: access(tmp_path))
        [path] = tmp_path.glob("worker-*.json")
        url, token = found["url"], found["token"]
        database = Database(tmp_path)
        wait_for(lambda: database.decisions() >= 3)

        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert found["pid"] == process.pid
        assert get(f"{url}/status")[0] == get(f"{url}/metrics")[0] == get(f"{url}/status", "wrong")[0] == 401
        assert get(f"{url}/nowhere", token)[0] == 404
        assert json.loads(get(f"{url}/healthz")[1]) == {"ok": True}
        assert_metrics_say_what_the_status_says(url, token)
        assert_status_command_shows_the_worker(settings)
        second = start("run", "--config", settings)
        _, errors = second.communicate(timeout=30)
        assert second.returncode == 1
        assert f"the status port {found['url'].rsplit(':')[-1]} is taken" in errors.splitlines()[-1]
        assert path.exists(), "the token of the worker that has the port"
    finally:
        out, errors = end(process, signal.SIGTERM)

    assert process.returncode == 0, errors[-1000:]
    last = json.loads(out.splitlines()[-1])
    assert last["ready"] is True
    assert {entry["waiting"] for entry in last["buffers"].values()} == {0}
    assert last["outbox"]["pending"] == 0
    assert not path.exists()


def assert_metrics_say_what_the_status_says(url: str, token: str) -> None:
    families = {family.name: family for family in text_string_to_metric_families(get(f"{url}/metrics", token)[1])}

    assert families["perpline_ready"].samples[0].value == 1
    live = {sample.labels["connection"]: sample.value for sample in families["perpline_connection_live"].samples}
    assert live == {"market-0": 1, "public-1": 1}
    outcomes = {sample.labels["outcome"] for sample in families["perpline_messages"].samples}
    assert outcomes == {"routed", "unhandled", "malformed", "failed"}
    assert sum(sample.value for sample in families["perpline_decisions"].samples) >= 3
    assert all(family.documentation for family in families.values())


def assert_status_command_shows_the_worker(settings: Path) -> None:
    said = command("status", "--config", settings, "--json")
    shown = command("status", "--config", settings)

    assert (said.code, shown.code) == (0, 0)
    assert said.json["ready"] is True
    assert len(said.json["symbols"]) == 3
    for symbol, entry in said.json["symbols"].items():
        assert symbol in shown.out
        assert entry["last_candle"] is not None
        assert set(entry["ages_s"]) == {"kline_1m", "kline_15m", "kline_1h", "markPrice@1s", "bookTicker"}


DECIDED = "WHERE status != 'skipped_missed'"
"""A missed minute has a row and is not decided on: its candle may not have come yet, on a machine that is slow."""


def decided_minutes(database: Database) -> int:
    return int(database.value(f"SELECT count(*) FROM signals {DECIDED}")) if database.decisions() else 0


@asynccontextmanager
async def ended(process: asyncio.subprocess.Process) -> AsyncIterator[None]:
    """The process is over afterwards, also where the test fails."""
    try:
        yield
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
async def test_a_stop_flushes_every_candle_that_was_decided_on(number: signal.Signals, tmp_path: Path) -> None:
    """Buffers wait up to five seconds; a stop right after a decision must not cost the candle behind it."""
    async with simulated() as exchange:
        settings = settings_file(exchange, tmp_path, buffer_max_age_s=1000)
        with (tmp_path / "worker.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "perpline", "run", "--config", str(settings), "--json"),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=CLEAN,
            )
        database = Database(tmp_path)
        async with ended(process):
            await eventually(lambda: decided_minutes(database) >= 2 * len(exchange.symbols), 40.0)
            process.send_signal(number)
            output, _ = await process.communicate()

        assert process.returncode == 0
        status = json.loads(output.splitlines()[-1])
        assert {entry["waiting"] for entry in status["buffers"].values()} == {0}
        decided = database.value(
            f"SELECT min(t) FROM (SELECT max(close_time) t FROM signals {DECIDED} GROUP BY symbol)"
        )
        rows = database.candles("1m", decided)
        since = {symbol: open_time for symbol, open_time, *_ in reversed(rows)}
        assert sorted(since) == sorted(exchange.symbols)
        assert rows == true_candles(exchange, "1m", since, decided)
        assert len(rows) >= 240 * len(exchange.symbols)
        no_candle = (
            "NOT EXISTS (SELECT 1 FROM candles_1m c WHERE c.symbol = s.symbol AND c.open_time = s.close_time - 60000)"
        )
        assert database.rows(f"SELECT symbol, close_time FROM signals s {DECIDED} AND {no_candle}") == []
        last_minute = database.rows("SELECT DISTINCT symbol FROM premium_index WHERE minute >= ?", decided - MINUTE)
        assert len(last_minute) == len(exchange.symbols), "the minute in progress has its row too"


async def test_the_worker_fed_by_rest_stores_the_same_candles_and_decides_once_a_minute(tmp_path: Path) -> None:
    async with simulated(speed=30.0) as exchange:
        settings = settings_file(exchange, tmp_path)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.realtime_worker", "--config", str(settings), "--json"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=CLEAN,
            cwd=Path(__file__).parents[2],
        )
        database = Database(tmp_path)
        async with ended(process):
            await eventually(database.decisions, 40.0)
            until = next_close(exchange.clock.now_ms(), 2)
            await eventually(lambda: database.decided_until(until, len(exchange.symbols)), 40.0)
            process.terminate()
            await process.communicate()

        assert process.returncode == 0
        assert exchange.stats.connections == 0
        rows = database.candles("1m", until)
        since = {symbol: open_time for symbol, open_time, *_ in reversed(rows)}
        assert sorted(since) == sorted(exchange.symbols)
        assert rows == true_candles(exchange, "1m", since, until)
        for symbol in exchange.symbols:
            times = [t for (t,) in database.rows("SELECT close_time FROM signals WHERE symbol = ?", symbol)]
            own = sorted(t for t in times if t <= until)
            assert own == list(range(own[0], until + MINUTE, MINUTE))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"symbols": ["BTCUSDT", "NOUSDT"]}, "the exchange does not list NOUSDT"),
        ({"database_url": "sqlite:////proc/perpline.db"}, "/proc/perpline.db"),
        ({"database_url": "sqlite:////no/such/folder/perpline.db"}, "/no/such/folder/perpline.db"),
        ({"record": "/no/such/folder/frames"}, "cannot record into /no/such/folder/frames"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_worker_cannot_work_with_is_one_line_and_exit_1(
    exchange: dict[str, Any], tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    done = command("run", "--config", worker_file(exchange, tmp_path, **changes))

    assert (done.code, done.out) == (1, "")
    last = done.err.splitlines()[-1]
    assert last.startswith("perpline: ")
    assert told in last
    assert "Traceback" not in done.err
    assert list(tmp_path.glob("worker-*.json")) == []


def test_a_data_folder_that_cannot_be_written_is_one_line(exchange: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    settings = worker_file(
        exchange, tmp_path, data_dir=str(tmp_path / "file"), database_url=f"sqlite:///{tmp_path}/perpline.db"
    )
    done = command("run", "--config", settings)

    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines()[-1].startswith(f"perpline: cannot make the data folder {tmp_path}/file: ")


def test_recording_into_a_folder_that_is_not_there_is_one_line(exchange: dict[str, Any], tmp_path: Path) -> None:
    settings = worker_file(exchange, tmp_path)
    done = command("record", "--out", "no/such/folder/x", "--config", settings)

    assert done.code == 1
    assert done.err.splitlines()[-1] == "perpline: cannot record into no/such/folder/x: No such file or directory"


def test_a_run_of_some_seconds_ends_by_itself_with_its_status_as_the_last_line(
    exchange: dict[str, Any], tmp_path: Path
) -> None:
    done = command("run", "--config", worker_file(exchange, tmp_path), "--duration", 2, "--json")

    assert done.code == 0
    assert len(done.out.splitlines()) == 1
    assert set(done.json) >= {"ready", "connections", "messages", "decisions", "candles", "buffers", "rest", "symbols"}
    assert not token_file(tmp_path, done.json.get("port", 0)).exists()


def test_the_demo_is_whole_and_its_summary_agrees_with_its_database(tmp_path: Path) -> None:
    database = Database(tmp_path)
    done = command(
        *("demo", "--symbols", 3, "--speed", 60, "--duration", 4, "--seed", 3, "--json"),
        *("--database", f"sqlite:///{database.path}"),
    )
    said = done.json

    assert done.code == 0
    assert len(done.out.splitlines()) == 1
    assert (said["symbols"], said["streams"], said["connections"]) == (3, 15, 2)
    assert said["minutes_closed"] >= 3
    assert said["decisions_missing"] == said["decisions_twice"] == 0
    assert said["decisions"] == 3 * said["minutes_closed"]
    assert (said["gaps"], said["malformed"], said["skipped"]) == (0, 0, {})
    assert said["close_to_signal_ms"]["p99"] < 30_000 / 60
    assert said["rest_calls_per_minute"] is None or said["rest_calls_per_minute"] > 0
    assert said["rows"]["signals"] == database.decisions() >= said["decisions"]
    assert said["rows"]["candles_1m"] == database.value("SELECT count(*) FROM candles_1m")
    doubles = "SELECT count(*) FROM (SELECT 1 FROM signals GROUP BY slot, symbol, close_time HAVING count(*) > 1)"
    assert database.value(doubles) == 0
    assert "trading" not in said
    assert "token" not in (said["dashboard"] or "")  # None where the demo was over before its dashboard listened
    assert database.value("SELECT count(*) FROM modes") == 0


def test_the_trading_demo_trades_on_paper_and_leaves_no_mode_behind(tmp_path: Path) -> None:
    database = Database(tmp_path)
    done = command(
        *("demo", "--trade", "--symbols", 20, "--duration", 14, "--seed", 3, "--json"),
        *("--database", f"sqlite:///{database.path}"),
    )
    assert done.code == 0, done.err
    trading = done.json["trading"]

    assert (trading["account"], done.json["speed"]) == ("paper", 60)
    assert trading["positions_opened"] == trading["positions_closed"] + trading["open"] >= 1
    assert sum(trading["exits"].values()) == trading["positions_closed"]
    assert trading["fills"] == database.value("SELECT count(*) FROM fills WHERE account = 'paper'") > 0
    assert database.value("SELECT count(*) FROM positions WHERE account = 'live'") == 0
    assert database.value("SELECT mode FROM modes ORDER BY id DESC LIMIT 1") == "off"


def test_the_demo_of_live_trading_sends_signed_orders_and_shows_no_key(tmp_path: Path) -> None:
    done = command("demo", "--live-sim", "--symbols", 20, "--duration", 14, "--seed", 4, "--json")
    assert done.code == 0, done.err
    trading = done.json["trading"]

    assert len(done.out.splitlines()) == 1
    assert trading["account"] == "live"
    assert trading["positions_opened"] >= 1
    assert trading["fills"] >= trading["positions_opened"] + trading["positions_closed"]
    assert trading["naked_ms_longest"] < 60_000  # of market time at speed 60: a second
    assert [word for word in ("sim-key", "sim-secret") if word in done.out + done.err] == []


def test_the_demo_of_live_trading_has_no_lasting_tables(tmp_path: Path) -> None:
    done = command("demo", "--live-sim", "--database", f"sqlite:///{tmp_path / 'mine.db'}")

    assert done.code == 2
    assert "keeps its tables to itself" in done.err
