"""Commands of live trading as a person types them, on the simulated account: what they do, refuse, and never tell."""

import asyncio
import csv
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import apsw
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from tests.live_desk import KEY, SECRET, LiveDesk, live_desk
from tests.running import Finished, command, eventually, settings_file, settings_on, simulated

from perpline.cli.doctor import examine
from perpline.common.clock import SystemClock
from perpline.exchange.binance.credentials import make_credentials
from perpline.simulation.faults import Faults
from perpline.simulation.script import Row
from perpline.simulation.server import SimulatedExchange
from perpline.storage.sqlite import SqliteStore
from perpline.trading.mode import last_examination

T = TypeVar("T")
BTC, ETH = "BTCUSDT", "ETHUSDT"
LIVE = ("mode", "live", "--for", "8h", "--reason", "a test")


class Elsewhere:
    """A loop in a thread of its own, where exchange and worker live while commands run in this one."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="elsewhere")
        self._thread.start()
        self._stack = AsyncExitStack()

    def do(self, work: Awaitable[T]) -> T:
        async def main() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(main(), self._loop).result(60)

    def enter(self, context: AbstractAsyncContextManager[T]) -> T:
        return self.do(self._stack.enter_async_context(context))

    def until(self, condition: Callable[[], object]) -> None:
        self.do(eventually(condition))

    def close(self) -> None:
        try:
            self.do(self._stack.aclose())
            self.do(self._loop.shutdown_default_executor())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    made = Elsewhere()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("PERPLINE_", "XDG_")) or name == "CREDENTIALS_DIRECTORY":
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERPLINE_BINANCE_API_KEY", KEY)
    monkeypatch.setenv("PERPLINE_BINANCE_API_SECRET", SECRET)


def perpline(config: Path, *words: object) -> Finished:
    return command(*words, "--config", config)


# ---- live is not reached by accident


def test_live_wants_keys_a_passed_doctor_and_a_confirmation(
    elsewhere: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = elsewhere.enter(simulated(speed=10))
    config = settings_file(exchange, tmp_path, database_url=f"sqlite:///{tmp_path}/perpline.db")
    account = exchange.private.engine.accounts[KEY]
    assert perpline(config, "db", "migrate").code == 0

    refused = [perpline(config, *LIVE, "--confirm-live")]
    monkeypatch.setenv("PERPLINE_BINANCE_API_KEY", KEY)
    monkeypatch.setenv("PERPLINE_BINANCE_API_SECRET", SECRET)
    refused.append(perpline(config, *LIVE, "--confirm-live"))
    account.is_hedged = True
    bad = perpline(config, "doctor", "--json")
    refused.append(perpline(config, *LIVE, "--confirm-live"))
    account.is_hedged = False
    good = perpline(config, "doctor", "--json")
    refused.append(perpline(config, *LIVE))
    history = perpline(config, "mode", "show", "--json").json["history"]
    taken = perpline(config, *LIVE, "--confirm-live")

    assert [each.code for each in refused] == [1, 1, 1, 1], refused
    for said, each in zip(("API key", "doctor", "mended", "--confirm-live"), refused, strict=True):
        assert said in each.err
    assert (bad.code, bad.json["passed"], good.code, good.json["passed"]) == (1, False, 0, True)
    assert [check["name"] for check in bad.json["checks"] if check["state"] == "failed"] == ["position mode"]
    assert history == []
    assert taken.code == 0, taken.err
    assert "live" in perpline(config, "mode", "show").out


def test_a_doctor_of_another_key_does_not_count(elsewhere: Elsewhere, tmp_path: Path, keys: None) -> None:
    exchange = elsewhere.enter(simulated(speed=10))
    exchange.private.add_account("other-key", secret="other-secret")
    config = settings_file(exchange, tmp_path)
    assert perpline(config, "doctor").code == 0
    os.environ.update(PERPLINE_BINANCE_API_KEY="other-key", PERPLINE_BINANCE_API_SECRET="other-secret")

    done = perpline(config, *LIVE, "--confirm-live")

    assert (done.code, "doctor" in done.err) == (1, True)


@pytest.mark.parametrize(("off_by_ms", "state"), [(0, "ok"), (-60_000, "failed"), (60_000, "failed")])
async def test_a_clock_that_is_far_off_fails_the_doctor_and_is_noted(
    tmp_path: Path, off_by_ms: int, state: str
) -> None:
    now = SystemClock().now_ms()
    exchange = SimulatedExchange(
        seed=5, symbols=2, clock=SystemClock(1, anchor_ms=now + off_by_ms), faults=Faults(seed=5)
    )
    async with exchange:
        settings = settings_on(exchange, tmp_path, binance_api_key=KEY, binance_api_secret=SECRET, size_usdt=1000.0)
        checks = await examine(settings, random.Random(1))
    assert next(check.state for check in checks if check.name == "clock") == state
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    noted = await last_examination(store, make_credentials(KEY, SECRET, "a test").fingerprint)
    await store.close()
    assert noted is not None
    assert noted.passed is (state == "ok")


# ---- flatten


def open_two(elsewhere: Elsewhere, desk: LiveDesk) -> None:
    """A long and a short position, each with its stop at the exchange."""

    async def work() -> None:
        desk.signal(BTC, 1)
        desk.signal(ETH, -1)
        await eventually(lambda: len(desk.truth()["open_algo_orders"]) == 2)
        await desk.quiet()

    elsewhere.do(work())


def truth(elsewhere: Elsewhere, exchange: SimulatedExchange) -> dict[str, Any]:
    async def work() -> dict[str, Any]:
        return exchange.private.truth(KEY)

    return elsewhere.do(work())


def calm(elsewhere: Elsewhere) -> SimulatedExchange:
    """An exchange whose prices stay where they are."""
    exchange = elsewhere.enter(simulated(speed=10))

    async def work() -> None:
        exchange.script([Row(symbol, 0, "0%") for symbol in exchange.symbols])

    elsewhere.do(work())
    return exchange


@pytest.mark.parametrize("worker", ["running", "stopped", "dead"])
def test_flatten_closes_everything_with_and_without_a_worker(
    elsewhere: Elsewhere, tmp_path: Path, keys: None, worker: str
) -> None:
    exchange = calm(elsewhere)
    database = f"sqlite:///{tmp_path}/live.db"
    desk = elsewhere.enter(live_desk(exchange, tmp_path, database_url=database))
    open_two(elsewhere, desk)
    if worker != "running":
        elsewhere.do(desk.close(killed=worker == "dead"))
    config = settings_file(exchange, tmp_path, database_url=database)

    done = perpline(config, "flatten", "--account", "live", "--json")

    assert done.code == 0, done.err
    assert done.json["flat"]
    elsewhere.until(lambda: not exchange.private.truth(KEY)["positions"])
    elsewhere.until(lambda: not exchange.private.truth(KEY)["open_algo_orders"])
    assert {each["symbol"] for each in done.json["flattened"]} == {BTC, ETH}, "also what the worker closed first"
    if worker != "running":
        desk = elsewhere.enter(live_desk(exchange, tmp_path, mode=None, database_url=database))
    elsewhere.do(desk.quiet())
    elsewhere.do(desk.check_books())
    rows = elsewhere.do(desk.rows("positions"))
    assert {(row["symbol"], row["status"], row["exit_reason"]) for row in rows} == {
        (BTC, "closed", "flatten"),
        (ETH, "closed", "flatten"),
    }
    shown = perpline(config, "mode", "show", "--json")
    assert shown.code == 0, shown.err
    assert shown.json["modes"][0]["now"] == "off"
    again = perpline(config, "flatten", "--account", "live")
    assert (again.code, "nothing was open" in again.out) == (0, True)


def test_flatten_of_one_symbol_leaves_the_other_with_its_stop(elsewhere: Elsewhere, tmp_path: Path, keys: None) -> None:
    exchange = calm(elsewhere)
    database = f"sqlite:///{tmp_path}/live.db"
    desk = elsewhere.enter(live_desk(exchange, tmp_path, database_url=database))
    open_two(elsewhere, desk)
    config = settings_file(exchange, tmp_path, database_url=database)

    done = perpline(config, "flatten", BTC, "--account", "live", "--json")

    assert done.code == 0, done.err
    elsewhere.do(desk.quiet())
    found = truth(elsewhere, exchange)
    assert set(found["positions"]) == {ETH}
    assert [each["symbol"] for each in found["open_algo_orders"]] == [ETH]


def test_flatten_of_the_live_account_does_without_the_database(
    elsewhere: Elsewhere, tmp_path: Path, keys: None
) -> None:
    exchange = calm(elsewhere)
    desk = elsewhere.enter(live_desk(exchange, tmp_path))
    open_two(elsewhere, desk)
    elsewhere.do(desk.close(killed=True))
    away = "postgresql://nobody@127.0.0.1:9/perpline"
    config = settings_file(exchange, tmp_path, database_url=away)

    done = perpline(config, "flatten", "--account", "live", "--json")
    paper = perpline(config, "flatten", "--account", "paper")

    assert done.code == 0, done.err
    assert "without the database" in done.err
    found = truth(elsewhere, exchange)
    assert (found["positions"], found["open_algo_orders"]) == ({}, [])
    assert (paper.code, "the paper account is in the database" in paper.err) == (1, True)


def test_flatten_of_the_live_account_does_not_wait_for_a_database_that_takes_nothing(
    elsewhere: Elsewhere, tmp_path: Path, keys: None
) -> None:
    exchange = calm(elsewhere)
    database = f"sqlite:///{tmp_path}/live.db"
    desk = elsewhere.enter(live_desk(exchange, tmp_path, database_url=database))
    open_two(elsewhere, desk)
    elsewhere.do(desk.close(killed=True))
    config = settings_file(exchange, tmp_path, database_url=database)
    writer = apsw.Connection(f"{tmp_path}/live.db")
    writer.execute("BEGIN IMMEDIATE")

    live = perpline(config, "flatten", BTC, "--account", "live", "--json")
    both = perpline(config, "flatten", "--json")
    writer.execute("ROLLBACK")

    assert (live.code, live.json["flat"]) == (0, True), live.err
    assert "the mode is not set to off" in live.err
    assert (both.code, both.json["flat"]) == (1, False)
    assert [(each["account"], each["symbol"], each["left"]) for each in both.json["flattened"]] == [
        ("live", ETH, "0"),
        ("paper", "all", "?"),
    ]
    found = truth(elsewhere, exchange)
    assert (found["positions"], found["open_algo_orders"]) == ({}, [])


def test_what_was_traded_is_exported_as_the_exchange_has_it(elsewhere: Elsewhere, tmp_path: Path, keys: None) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (extra [analytics])")
    exchange = calm(elsewhere)
    database = f"sqlite:///{tmp_path}/live.db"
    desk = elsewhere.enter(live_desk(exchange, tmp_path, database_url=database))
    open_two(elsewhere, desk)
    config = settings_file(exchange, tmp_path, database_url=database)
    assert perpline(config, "flatten", "--account", "live").code == 0
    elsewhere.do(desk.quiet())
    elsewhere.do(desk.trader.drain())

    exported = [
        perpline(config, "export", "trades", "--account", "live", "--out", tmp_path / f"trades.{kind}")
        for kind in ("csv", "parquet")
    ]

    assert [each.code for each in exported] == [0, 0], exported
    theirs = {
        (each["symbol"], int(each["id"])): (Decimal(each["price"]), Decimal(each["qty"]), Decimal(each["commission"]))
        for each in truth(elsewhere, exchange)["fills"]
    }
    with (tmp_path / "trades.csv").open(newline="", encoding="utf-8") as file:
        from_csv = list(csv.DictReader(file))
    from_parquet = parquet.read_table(tmp_path / "trades.parquet").to_pylist()
    for rows in (from_csv, from_parquet):
        ours = {
            (row["symbol"], int(row["trade_id"])): tuple(Decimal(row[name]) for name in ("price", "quantity", "fee"))
            for row in rows
        }
        assert ours == theirs
        assert len(rows) == len(theirs) >= 4


# ---- keys


@contextmanager
def worker_process(config: Path, folder: Path) -> Iterator[int]:
    """`perpline run` in the surroundings of this test, its output in worker.out and worker.err; yields its port."""
    command_line = [sys.executable, "-m", "perpline", "run", "--json", "--config", str(config)]
    with ExitStack() as stack:
        out = stack.enter_context((folder / "worker.out").open("wb"))
        errors = stack.enter_context((folder / "worker.err").open("wb"))
        process = stack.enter_context(subprocess.Popen(command_line, stdout=out, stderr=errors, cwd=folder))
        try:
            port: int = _said(process, folder / "worker.err", "worker_started")["port"]
            yield port
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()


def _said(process: "subprocess.Popen[bytes]", log: Path, event: str) -> dict[str, Any]:
    """The line of the log with this event, once it is there."""
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        for line in log.read_bytes().splitlines():
            if b'"%s"' % event.encode() in line:
                found: dict[str, Any] = json.loads(line)
                return found
        time.sleep(0.05)
    raise AssertionError(f"{event} was not said: {log.read_text()[-2000:]}")


@pytest.mark.parametrize("kind", ["hmac", "ed25519"])
def test_keys_are_in_nothing_that_a_worker_or_a_command_writes(
    elsewhere: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    api_key, secret = "RECOGNISEme0123456789", "HIDEthisSECRET0123456789"
    exchange = elsewhere.enter(simulated(speed=10))
    changes: dict[str, object] = {"log_level": "debug", "log_format": "json", "reconcile_every_s": 10.0}
    here = tmp_path / "here"
    here.mkdir()
    if kind == "hmac":
        exchange.private.add_account(api_key, secret=secret)
        monkeypatch.setenv("PERPLINE_BINANCE_API_KEY", api_key)
        monkeypatch.setenv("PERPLINE_BINANCE_API_SECRET", secret)
    else:
        private = Ed25519PrivateKey.generate()
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        exchange.private.add_account(api_key, public_key=public)
        key_file = tmp_path / "key"  # beside the folder that is looked through
        key_file.touch(0o600)
        key_file.write_text(f"{api_key}\n{pem}")
        changes["api_key_file"] = str(key_file)
        secret = pem.splitlines()[1]
    config = settings_file(exchange, here, **changes)

    outputs = [perpline(config, "doctor"), perpline(config, *LIVE, "--confirm-live")]
    assert [each.code for each in outputs] == [0, 0], outputs
    with worker_process(config, here) as port:
        deadline = time.monotonic() + 40
        while not _is_live(outputs[-1]):
            assert time.monotonic() < deadline, outputs[-1]
            time.sleep(0.1)
            outputs.append(perpline(config, "status", "--json", "--status-port", port))
        for words in (
            ("config", "show"),
            ("mode", "show", "--json"),
            ("positions", "--json"),
            ("flatten", "--account", "live"),
        ):
            outputs.append(perpline(config, *words))
        elsewhere.do(_forget(exchange, api_key))  # now the exchange refuses the key
        while b"account_not_compared" not in (here / "worker.err").read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        outputs.append(perpline(config, "doctor"))
        assert outputs[-1].code == 1

    written = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert any(path.suffix == ".db" for path in written)
    assert b"user_stream_live" in written[here / "worker.err"]
    for hidden in (api_key, secret):
        found = [str(path) for path, content in written.items() if hidden.encode() in content]
        assert found == []
        assert [each for each in outputs if hidden in each.out + each.err] == []


def _is_live(status: Finished) -> bool:
    """Whether this answer of `perpline status` says that the account can be traded."""
    if not status.out.startswith("{"):
        return False
    live = status.json["trading"]["live"]
    return bool(live and live["user_stream"]["live"] and live["order_socket"])


async def _forget(exchange: SimulatedExchange, api_key: str) -> None:
    del exchange.private.engine.accounts[api_key]
