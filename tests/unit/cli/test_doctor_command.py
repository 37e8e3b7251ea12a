"""`perpline doctor` against the simulated account: what it finds, what it says to do, and that it stores it."""

import asyncio
import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from perpline.bootstrap import open_store
from perpline.cli.doctor import Check, _untradable, examine
from perpline.common.config import Settings, load_settings
from perpline.domain.instrument import Instrument
from perpline.exchange.binance.credentials import make_credentials
from perpline.exchange.binance.rest import BinanceRest
from perpline.exchange.binance.weight import WeightLedger
from perpline.simulation.faults import Faults
from perpline.simulation.server import SimulatedExchange
from perpline.storage.symbols import SymbolChange, store_symbols
from perpline.trading.mode import last_examination
from running import command

SECRET = "doctor-secret-0123456789"


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("PERPLINE_", "XDG_")) or name == "CREDENTIALS_DIRECTORY":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")


def settings(simulated: SimulatedExchange, folder: Path, **changes: object) -> Settings:
    values: dict[str, object] = {
        "network": "custom",
        "binance_futures_ws_url": simulated.ws_url,
        "binance_futures_rest_url": simulated.http_url,
        "symbols": ("BTCUSDT", "ETHUSDT"),
        "data_dir": folder,
        "size_usdt": 1000.0,
        "binance_api_key": "doctor-key",
        "binance_api_secret": SECRET,
        **changes,
    }
    return load_settings(None, {"HOME": "/home/someone"}, values)


def simulated(**account: object) -> SimulatedExchange:
    exchange = SimulatedExchange(seed=5, symbols=2, faults=Faults(seed=5))
    exchange.private.add_account("doctor-key", secret=SECRET, **account)
    return exchange


def states(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.state for check in checks}


async def test_an_account_that_is_ready_passes_and_the_result_is_stored(tmp_path: Path) -> None:
    async with simulated() as exchange:
        chosen = settings(exchange, tmp_path)
        checks = await examine(chosen, random.Random(1))
        assert states(checks) == {
            "keys": "ok",
            "addresses": "ok",
            "limits": "ok",
            "clock": "ok",
            "symbols": "ok",
            "permissions": "ok",
            "position mode": "ok",
            "margin mode": "ok",
            "account": "ok",
            "user stream": "ok",
            "order socket": "ok",
        }
        assert f"{exchange.ws_url}/private/ws" in checks[1].found
        assert f"{exchange.ws_url}/ws-fapi/v1" in checks[1].found
        truth = exchange.private.truth("doctor-key")
        assert truth["orders"] == []

    store = open_store(chosen.database_url.get_secret_value(), read_only=True)
    await store.open()
    found = await last_examination(store, make_credentials("doctor-key", SECRET, "here").fingerprint)
    await store.close()
    assert found is not None
    assert found.passed
    assert json.loads(found.result)["passed"] is True
    for secret in ("doctor-key", SECRET):
        assert secret not in found.result


@pytest.mark.parametrize(
    ("account", "name"), [({"can_withdraw": True}, "permissions"), ({"can_trade": False}, "permissions")]
)
async def test_a_key_with_too_many_or_too_few_rights_fails(
    tmp_path: Path, account: dict[str, object], name: str
) -> None:
    async with simulated(**account) as exchange:
        checks = await examine(settings(exchange, tmp_path), random.Random(1))
    found = states(checks)
    assert found[name] == "failed"
    assert found["order socket"] == "not checked"


async def test_hedge_mode_is_refused_and_the_newest_result_counts(tmp_path: Path) -> None:
    async with simulated() as exchange:
        chosen = settings(exchange, tmp_path, order_transport="rest")
        assert not [check for check in await examine(chosen, random.Random(1)) if check.state == "failed"]
        exchange.private.engine.accounts["doctor-key"].is_hedged = True
        checks = await examine(chosen, random.Random(1))
    (failed,) = [check for check in checks if check.state == "failed"]
    assert (failed.name, "one-way" in failed.advice) == ("position mode", True)
    assert states(checks)["order socket"] == "not checked"

    store = open_store(chosen.database_url.get_secret_value(), read_only=True)
    await store.open()
    found = await last_examination(store, make_credentials("doctor-key", SECRET, "here").fingerprint)
    await store.close()
    assert found is not None
    assert not found.passed


async def test_a_wrong_secret_says_what_to_do_and_never_the_secret(tmp_path: Path) -> None:
    async with simulated() as exchange:
        checks = await examine(settings(exchange, tmp_path, binance_api_secret="other-secret-98765"), random.Random(1))
    failed = next(check for check in checks if check.state == "failed")
    assert (failed.name, "does not belong" in failed.advice) == ("permissions", True)
    assert "other-secret" not in repr(checks)


async def test_without_keys_the_rest_is_looked_at_all_the_same(tmp_path: Path) -> None:
    async with simulated() as exchange:
        chosen = settings(exchange, tmp_path, binance_api_key="", binance_api_secret="")
        checks = await examine(chosen, random.Random(1))
        asked_for_live = await examine(chosen, random.Random(1), live=True)
    found = {"keys": "not checked", "addresses": "ok", "limits": "ok", "clock": "ok", "symbols": "ok"}
    assert states(checks) == found
    assert states(asked_for_live) == {**found, "keys": "failed"}


async def test_positions_too_small_for_every_symbol_are_found_before_the_first_order(tmp_path: Path) -> None:
    async with simulated() as exchange:
        checks = await examine(settings(exchange, tmp_path, size_usdt=0.5), random.Random(1))
        ledger = WeightLedger(exchange.clock)
        rest = BinanceRest(exchange.http_url, exchange.clock, ledger)
        instruments: list[Instrument] = await rest.instruments()
        await rest.close()
    assert states(checks)["symbols"] == "failed"
    assert "0.5" in _untradable(instruments[0], 1.0, 0.5)
    assert _untradable(instruments[0], 1.0, 1e6) == ""
    assert "no mark price" in _untradable(instruments[0], None, 1e6)


async def test_the_symbols_are_those_that_a_worker_would_follow(tmp_path: Path) -> None:
    async with simulated() as exchange:
        chosen = settings(exchange, tmp_path)
        store = open_store(chosen.database_url.get_secret_value())
        await store.open()
        gone = SymbolChange(symbol="ETHUSDT", action="remove", changed_at=7, by="me", reason="")
        await store_symbols(store, [gone])
        await store.close()
        checks = await examine(chosen, random.Random(1))

    [found] = [check.found for check in checks if check.name == "symbols"]
    assert found == "1 with prices, steps and limits"


WORDS = ("--ws-url", "ws://127.0.0.1:9", "--rest-url", "http://127.0.0.1:9", "--symbols", "BTCUSDT")


def test_the_command_prints_every_check_and_exits_with_1_where_one_failed() -> None:
    done = command("doctor", *WORDS)
    assert done.code == 1
    assert "there is no API key" in done.out
    assert "→ for live trading set api_key_file" in done.out
    assert "ws://127.0.0.1:9/private/ws" in done.out
    assert "not ready for paper trading: clock, symbols" in done.out
    assert "not ready for live trading: no API key" in done.out
    assert done.error_line == "perpline: not ready for paper trading: clock, symbols"

    done = command("doctor", *WORDS, "--live", "--json")
    assert done.error_line == "perpline: not ready for live trading: keys, clock, symbols"
    assert (done.json["passed"], done.json["ready_for_paper"], done.json["ready_for_live"]) == (False, False, False)
    assert [each["name"] for each in done.json["checks"]][:7] == [
        "data folder",
        "disk",
        "database",
        "redis",
        "model",
        "status port",
        "dashboard port",
    ]
    assert next(each for each in done.json["checks"] if each["name"] == "keys") == {
        "name": "keys",
        "state": "failed",
        "found": "there is no API key",
        "advice": "set api_key_file (docs/trading.md, Keys)",
    }


async def test_without_keys_paper_trading_is_ready_and_the_command_succeeds(tmp_path: Path) -> None:
    async with simulated() as exchange:
        words = ("--ws-url", exchange.ws_url, "--rest-url", exchange.http_url, "--symbols", "BTCUSDT,ETHUSDT", "--json")
        done = await asyncio.to_thread(command_elsewhere, "doctor", *words, home=tmp_path)
    told = json.loads(done.stdout)
    assert [each for each in told["checks"] if each["state"] == "failed"] == []
    assert (done.returncode, told["passed"]) == (0, True)
    assert (told["ready_for_paper"], told["ready_for_live"]) == (True, False)


def command_elsewhere(*words: str, home: Path) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "HOME": str(home), "PERPLINE_STATUS_PORT": "0"}
    return subprocess.run([sys.executable, "-m", "perpline", *words], env=env, capture_output=True, text=True)


def test_a_bundle_is_written_also_where_something_failed_and_the_exit_code_says_so() -> None:
    Path("worker.log").write_text("the last line\n")
    done = command("doctor", *WORDS, "--bundle", "report.zip", "--log", "worker.log")
    assert (done.code, "not ready for paper trading: " in done.error_line) == (1, True)
    assert "report.zip is written (README.txt, about.json, " in done.out
    with zipfile.ZipFile("report.zip") as archive:
        assert archive.read("log.txt") == b"the last line\n"
        assert json.loads(archive.read("doctor.json"))[0]["name"] == "data folder"

    assert command("doctor", *WORDS, "--bundle", "report.zip").error_line.endswith("name another file, or remove it")
    assert command("doctor", "--log", "worker.log").code == 2


def test_a_key_file_that_others_can_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    path.write_text("doctor-key\ndoctor-secret\n")
    path.chmod(0o644)
    monkeypatch.setenv("PERPLINE_API_KEY_FILE", str(path))
    done = command("doctor", "--ws-url", "ws://127.0.0.1:9", "--rest-url", "http://127.0.0.1:9")
    assert "chmod 600" in done.out
    assert "doctor-secret" not in done.out + done.err
