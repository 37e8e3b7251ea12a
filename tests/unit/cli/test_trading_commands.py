"""The commands that show and steer trading."""

import asyncio
import csv
import json
import threading
from collections.abc import Callable, Coroutine
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from perpline import desk
from perpline.cli import mode as mode_command
from perpline.common.config import Settings, load_settings
from perpline.endpoint import Endpoint
from perpline.exchange.binance.credentials import make_credentials
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import TRADING_TABLES
from perpline.trading.mode import Examination, Mode, ModeRow, note_examination
from running import command

NOW = 1_795_219_260_000  # 2026-11-21 00:01
HOUR = 3_600_000
KEY, SECRET = "k3y" * 8, "s3cr3t" * 8

Work = Callable[[SqliteStore], Coroutine[Any, Any, Any]]


class Here:
    """A data folder with a database of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def do(self, work: Work) -> None:
        async def main() -> None:
            store = SqliteStore(self.folder / "perpline.db")
            await store.open()
            await work(store)
            await store.close()

        asyncio.run(main())

    def put(self, table: str, *rows: dict[str, Any]) -> None:
        self.do(lambda store: store.commit_trading({table: [TRADING_TABLES[table].row(row) for row in rows]}))

    def examined(self, passed: bool) -> None:
        account_hash = make_credentials(KEY, SECRET, "").fingerprint
        one = Examination(at=NOW, account_hash=account_hash, passed=passed, result="{}")
        self.do(lambda store: note_examination(store, one))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.setenv("PERPLINE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("PERPLINE_STATUS_PORT", "1")
    monkeypatch.setenv("COLUMNS", "250")
    assert command("db", "migrate").code == 0
    return Here(tmp_path)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERPLINE_BINANCE_API_KEY", KEY)
    monkeypatch.setenv("PERPLINE_BINANCE_API_SECRET", SECRET)


def ok(*words: object) -> Any:
    done = command(*words, "--json")
    assert done.code == 0, done.err
    return done.json


def settings(here: Here) -> Settings:
    return load_settings(None, {"HOME": "/nowhere"}, {"data_dir": str(here.folder), "status_port": 1})


def position(account: str = "paper", **values: Any) -> dict[str, Any]:
    return {
        "account": account,
        "position_id": "p1",
        "symbol": "AUSDT",
        "side": 1,
        "status": "open",
        "quantity": "2",
        "opened_quantity": "2",
        "entry_price": "100",
        "stop": "95.50",
        "signal_id": "s1",
        "origin": "signal",
        "opened_at": NOW,
        "exit_reason": "",
        "realized_pnl": "0",
        "fees": "0.1",
        "funding": "-0.05",
        "naked_ms": 0,
        "updated_at": NOW,
        **values,
    }


def fill(trade_id: int = 1, **values: Any) -> dict[str, Any]:
    return {
        "account": "live",
        "symbol": "AUSDT",
        "trade_id": trade_id,
        "order_id": 7,
        "client_id": "e1",
        "position_id": "p1",
        "side": "buy",
        "price": "100.10",
        "quantity": "2",
        "fee": "0.1001",
        "fee_asset": "USDT",
        "realized_pnl": "0",
        "is_maker": False,
        "kind": "trade",
        "traded_at": NOW + trade_id,
        "received_at": NOW,
        **values,
    }


# Flatten

NOBODY = ("--ws-url", "ws://127.0.0.1:9", "--rest-url", "http://127.0.0.1:9")


@pytest.mark.parametrize("words", [[], ["AUSDT"]])
def test_flatten_without_a_key_refuses_to_leave_live_positions_open_and_changes_nothing(
    here: Here, words: list[str]
) -> None:
    here.put("positions", position("live"), position("live", position_id="p2", symbol="BUSDT", status="closed"))

    done = command("flatten", *words, *NOBODY)

    assert (done.code, "the live account has open positions (AUSDT) and there is no API key" in done.err) == (1, True)
    assert "--account paper" in done.err
    assert ok("mode", "show")["history"] == []


def test_flatten_without_a_key_refuses_while_live_is_in_force_for_what_it_shall_close(here: Here) -> None:
    asked = {"mode": "live", "positions": "keep", "changed_at": NOW, "by": "ana", "reason": "go", "until": None}
    here.put("modes", {"symbol": "BUSDT", **asked})

    done = command("flatten", *NOBODY)
    other = command("flatten", "AUSDT", *NOBODY)

    assert (done.code, "the live account is traded and there is no API key here" in done.err) == (1, True)
    assert (other.code, other.out.strip()) == (0, "nothing was open")


def test_flatten_of_paper_alone_is_not_kept_from_it_by_live_positions(here: Here) -> None:
    here.put("positions", position("live"))

    done = command("flatten", "--account", "paper", *NOBODY)

    assert (done.code, done.out.strip()) == (0, "nothing was open")
    assert [row["mode"] for row in ok("mode", "show")["history"]] == ["off"]


# Modes


def test_a_change_is_answered_with_its_own_rows_whatever_stood_before(here: Here) -> None:
    change = desk.mode_change(
        Mode.PAPER,
        symbols=["AUSDT", "AUSDT"],
        reason="to see",
        positions="keep",
        lasts=None,
        confirm_live=False,
        by="ana",
    )
    rows: list[ModeRow] = []

    async def work(store: SqliteStore) -> None:
        rows.extend(await desk.change_mode(store, settings(here), change))

    ok("mode", "off", "BUSDT", "--reason", "before")
    here.do(work)

    assert [(row.symbol, row.mode, row.by) for row in rows] == [("AUSDT", "paper", "ana")]


def test_a_mode_is_set_shown_and_has_its_history(here: Here) -> None:
    assert [row["mode"] for row in ok("mode", "show")["modes"]] == ["off"]

    ok("mode", "paper", "--reason", "to see")
    [changed] = ok("mode", "off", "ausdt", "--reason", "listing", "--positions", "flatten")["changed"]
    shown = ok("mode", "show")

    assert (changed["symbol"], changed["mode"], changed["positions"]) == ("AUSDT", "off", "flatten")
    assert [(row["symbol"], row["now"]) for row in shown["modes"]] == [(None, "paper"), ("AUSDT", "off")]
    assert [row["reason"] for row in shown["history"]] == ["listing", "to see"]
    assert "@" in shown["history"][0]["by"]
    page = command("mode", "show").out
    for words in ("AUSDT", "paper", "flatten", "listing"):
        assert words in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["off"], "has a reason"),
        (["paper", "--reason", " "], "has a reason"),
        (["live", "--reason", "go"], "is set for a time"),
        (["paper", "--for", "8 hours", "--reason", "go"], "no duration"),
        (["paper", "--for", "0h", "--reason", "go"], "no duration"),
        (["off", "A-USDT", "--reason", "go"], "is no symbol"),
    ],
)
def test_a_change_that_does_not_say_enough_is_wrong_usage(here: Here, words: list[str], said: str) -> None:
    done = command("mode", *words)

    assert (done.code, said in done.err) == (2, True), done.err
    assert ok("mode", "show")["history"] == []


def test_a_mode_with_a_time_ends_as_off(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    [changed] = ok("mode", "paper", "--for", "2d", "--reason", "a weekend")["changed"]
    assert changed["until"] - changed["changed_at"] == 48 * HOUR

    monkeypatch.setattr(mode_command, "market_now", lambda running: int(changed["until"]))
    assert [row["now"] for row in ok("mode", "show")["modes"]] == ["off"]
    assert "paper is over" in command("mode", "show").out


def test_live_wants_keys_then_a_passed_doctor_then_a_confirmation(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    live = ("mode", "live", "AUSDT", "--for", "8h", "--reason", "go")
    confirmed = (*live, "--confirm-live")

    assert "needs an API key" in command(*confirmed).err
    monkeypatch.setenv("PERPLINE_BINANCE_API_KEY", KEY)
    monkeypatch.setenv("PERPLINE_BINANCE_API_SECRET", SECRET)
    assert "have not been examined" in command(*confirmed).err
    here.examined(passed=True)
    here.examined(passed=False)
    assert "must be mended" in command(*confirmed).err
    here.examined(passed=True)
    assert "confirm it (--confirm-live)" in command(*live).err
    assert ok("mode", "show")["history"] == []

    done = command(*confirmed)
    assert (done.code, "AUSDT: live until" in done.out) == (0, True)
    assert command(*live).code == 0  # only the first time is asked about
    assert [row["now"] for row in ok("mode", "show")["modes"]] == ["off", "live"]
    everything = "".join(path.read_bytes().decode(errors="replace") for path in here.folder.iterdir() if path.is_file())
    assert KEY not in everything
    assert SECRET not in everything + done.out + done.err


def test_live_for_ever_must_be_said(here: Here, keys: None) -> None:
    here.examined(passed=True)

    [changed] = ok("mode", "live", "--for", "forever", "--reason", "go", "--confirm-live")["changed"]

    assert (changed["until"], changed["symbol"]) == (None, None)


def test_a_symbol_that_is_not_followed_is_pointed_out(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERPLINE_SYMBOLS", "AUSDT,BUSDT")

    assert "BUSD is none of the symbols" in command("mode", "off", "BUSD", "--reason", "typo").err


def test_a_name_that_nobody_knows_is_refused_with_the_one_that_is_meant_and_nothing_is_set(here: Here) -> None:
    here.put("listings", {"symbol": "BTCUSDT", "status": "TRADING", "seen_at": NOW, "note": ""})
    here.put("positions", position(symbol="OLDUSDT"))

    done = command("mode", "off", "BTCUSDT", "BTUSDT", "--reason", "typo")

    assert (done.code, "BTUSDT is not known here: BTCUSDT?" in done.err) == (1, True), done.err
    assert ok("mode", "show")["history"] == []
    for known in ("BTCUSDT", "OLDUSDT"):
        assert command("mode", "off", known, "--reason", "meant").code == 0


def test_a_change_has_the_time_of_the_running_worker_and_wakes_it(here: Here) -> None:
    woken = threading.Event()
    worker = Endpoint(
        port=0,
        data_dir=here.folder,
        status=lambda: {"now": NOW},
        trouble=list,
        metrics=lambda: b"",
        control=woken.set,
    )
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(worker.open(), loop).result(10)

    [changed] = ok("mode", "paper", "--for", "8h", "--reason", "go", "--status-port", worker.port)["changed"]

    asyncio.run_coroutine_threadsafe(worker.close(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    assert (changed["changed_at"], changed["until"]) == (NOW, NOW + 8 * HOUR)
    assert woken.is_set()


# What is there


def test_commands_that_show_say_so_when_there_is_nothing(here: Here) -> None:
    assert "no position is open" in command("positions").out
    assert "no order is open" in command("orders").out
    assert "nothing was traded" in command("trades").out
    assert "nothing was traded" in command("pnl").out
    assert ok("positions") == {"positions": []}


def marked(here: Here, price: float) -> None:
    row = ("AUSDT", NOW, price, price, 0.0, NOW + HOUR, 1, NOW + 5, NOW + 5)
    here.do(lambda store: store.add_rows("premium_index", [row]))


def test_open_positions_are_shown_at_the_last_stored_mark_price(here: Here) -> None:
    closed = {"status": "closed", "position_id": "p2", "closed_at": NOW + 1, "exit_reason": "target", "quantity": "0"}
    here.put("positions", position(), position("live", side=-1, symbol="BUSDT"), position(**closed))
    marked(here, 101.5)

    rows = ok("positions")["positions"]
    assert [(row["account"], row["unrealized_pnl"], row["mark_price"]) for row in rows] == [
        ("live", None, None),
        ("paper", "3.0", "101.5"),
    ]
    assert len(ok("positions", "--all")["positions"]) == 3
    assert [row["symbol"] for row in ok("positions", "--account", "live")["positions"]] == ["BUSDT"]
    page = command("positions", "--all").out
    for words in ("long", "short", "95.5", "101.5", "3.00", "target"):
        assert words in page


def test_profit_and_loss_adds_up_for_each_account(here: Here) -> None:
    ended = {"status": "closed", "quantity": "0", "exit_price": "99", "fees": "0.25", "funding": "0.5"}
    here.put(
        "positions",
        position(),
        position(position_id="p2", realized_pnl="10", closed_at=NOW + HOUR, exit_reason="target", **ended),
        position(position_id="p3", realized_pnl="-4", closed_at=NOW + 2 * HOUR, exit_reason="stop", **ended),
        position("live", position_id="p4", realized_pnl="-1", closed_at=NOW, exit_reason="flatten", **ended),
    )
    here.put("equity", {"account": "paper", "minute": NOW, "wallet": "1", "unrealized": "2", "equity": "10007.15"})
    marked(here, 99.0)

    found = ok("pnl")
    assert found["accounts"]["paper"] == {
        "realized": "6",
        "fees": "0.60",
        "funding": "0.95",
        "net": "6.35",
        "unrealized": "-2.0",
        "positions": 3,
        "open": 1,
        "won": 1,
        "lost": 1,
        "unmarked": 0,
    }
    assert found["accounts"]["live"]["net"] == "-0.75"
    assert found["equity"]["paper"]["equity"] == "10007.15"
    since = ok("pnl", "--since", str(NOW + 2 * HOUR), "--account", "paper")
    assert [row["position_id"] for row in since["positions"]] == ["p1", "p3"]
    page = command("pnl").out
    for words in ("all paper", "6.35", "1 won, 1 lost", "-2.00", "equity 10,007.15 USDT"):
        assert words in page


def order(client_id: str, **values: Any) -> dict[str, Any]:
    return {
        "account": "live",
        "client_id": client_id,
        "position_id": "p1",
        "signal_id": "s1",
        "symbol": "AUSDT",
        "leg": "e",
        "side": "buy",
        "kind": "market",
        "reduce_only": False,
        "quantity": "2.000",
        "status": "filled",
        "filled": "2",
        "detail": "",
        "created_at": NOW,
        "updated_at": NOW,
        "final_at": NOW,
        **values,
    }


def test_open_orders_are_shown_and_all_of_them_if_wanted(here: Here) -> None:
    resting = {"status": "new", "kind": "stop_market", "leg": "s", "trigger_price": "92.5", "final_at": None}
    late = order("x1", status="unknown", final_at=None, created_at=NOW + HOUR, account="paper")
    here.put("orders", order("e1"), order("s1", **resting, reduce_only=True), late)

    assert [row["client_id"] for row in ok("orders")["orders"]] == ["s1", "x1"]
    assert [row["client_id"] for row in ok("orders", "--all")["orders"]] == ["e1", "s1", "x1"]
    assert [row["client_id"] for row in ok("orders", "--all", "--limit", 1)["orders"]] == ["x1"]
    assert [row["client_id"] for row in ok("orders", "--since", NOW + 1)["orders"]] == ["x1"]
    page = command("orders", "--all").out
    for words in ("entry", "stop market reduce", "92.5", "unknown"):
        assert words in page


def test_trades_are_shown_newest_last(here: Here) -> None:
    here.put("fills", *(fill(n) for n in (3, 1, 2)))

    assert [row["trade_id"] for row in ok("trades")["trades"]] == [1, 2, 3]
    assert [row["trade_id"] for row in ok("trades", "--limit", 2)["trades"]] == [2, 3]
    assert [row["trade_id"] for row in ok("trades", "--since", NOW + 3)["trades"]] == [3]
    page = command("trades").out
    for words in ("100.1", "200.20", "0.1001 USDT", "buy"):
        assert words in page


# Files


def test_trades_are_written_as_csv_exactly_as_they_are_stored(here: Here) -> None:
    here.put("fills", *(fill(n) for n in range(4)))
    out = here.folder / "trades.csv"

    assert ok("export", "trades", "--from", NOW + 1, "--to", NOW + 3, "--out", out) == {"file": str(out), "rows": 2}

    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["time"], row["trade_id"], row["price"], row["fee"]) for row in rows] == [
        ("2026-11-21T00:01:00.001Z", "1", "100.10", "0.1001"),
        ("2026-11-21T00:01:00.002Z", "2", "100.10", "0.1001"),
    ]
    assert sorted(path.name for path in here.folder.iterdir() if "trades" in path.name) == ["trades.csv"]


def test_income_is_written_as_parquet_with_exact_amounts(here: Here) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is an extra")
    funding = {"account": "paper", "kind": "FUNDING_FEE", "symbol": "AUSDT", "asset": "USDT", "at": NOW}
    here.put("incomes", *({**funding, "income_id": n, "amount": f"-0.1234567{n}"} for n in (1, 2)))
    out = here.folder / "income.parquet"

    assert "2 rows" in command("export", "income", "--out", out).out

    rows = parquet.read_table(out).to_pylist()
    assert [row["amount"] for row in rows] == [Decimal("-0.12345671"), Decimal("-0.12345672")]
    assert [row["time"].isoformat() for row in rows] == ["2026-11-21T00:01:00+00:00"] * 2


def test_an_export_of_nothing_is_a_file_with_its_columns(here: Here) -> None:
    out = here.folder / "none.csv"

    assert ok("export", "income", "--out", out)["rows"] == 0

    assert out.read_text().startswith("time,account,kind,")


def test_a_file_of_another_kind_or_that_cannot_be_written_is_refused_in_one_line(here: Here) -> None:
    assert command("export", "trades", "--out", here.folder / "trades.xlsx").code == 2
    out = here.folder / "trades.csv"
    assert command("export", "trades", "--out", out, "--from", "2027-01-01", "--to", "2026-01-01").code == 2
    done = command("export", "trades", "--out", here.folder / "nowhere" / "trades.csv")

    assert (done.code, "cannot write" in done.err) == (1, True)
    assert json.dumps(done.err).count("\\n") == 1


# Narrow terminals


@pytest.mark.parametrize("words", ["positions", "positions --all", "orders --all", "trades", "pnl", "mode show"])
@pytest.mark.parametrize("width", [80, 100, 120])
def test_no_row_is_broken_over_lines_and_what_is_needed_stays(
    here: Here, monkeypatch: pytest.MonkeyPatch, words: str, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    wide = {"quantity": "1250.5", "entry_price": "62345.10", "stop": "61999.90", "target": "63000.40"}
    here.put(
        "positions",
        position(symbol="DOGEUSDT", deadline=NOW + 30 * HOUR, protective_stop="61000.10", **wide),
        position(
            "live", position_id="p2", status="closed", closed_at=NOW + HOUR, exit_reason="protective_stop", **wide
        ),
    )
    here.put("fills", fill(symbol="DOGEUSDT", price="62345.10"), fill(2, account="paper", fee="0.25000001"))
    ok("mode", "paper", "--reason", "to see it trade")

    page = command(*words.split()).out.splitlines()

    assert max(map(len, page)) <= width
    rows = [line for line in page if "USDT" in line]
    assert len(rows) == {"positions": 1, "positions --all": 2, "trades": 2, "pnl": 2}.get(words, 0)
    assert [line for line in page[1:] if line.startswith(" ")] == []  # the rest of a cell that was broken
    if words == "positions":
        assert ("62345.1" in rows[0], "long" in rows[0]) == (True, True)


def test_a_wide_terminal_shows_every_column(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    here.put("positions", position(protective_stop="90"), position("live", position_id="p2"))

    heads = command("positions").out.splitlines()[0].split("  ")

    assert [head.strip() for head in heads if head.strip()] == [
        *("account", "symbol", "side", "size", "entry", "mark", "stop", "target", "at exchange", "until"),
        *("unrealised", "realised", "status"),
    ]


def test_a_mode_that_trades_is_refused_where_inference_workers_decide(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "market_now", lambda running: NOW)
    here.do(lambda store: store.take_lease("missed:champion", "host/boot/ns/77/abc", 0, NOW - 1_000))
    refused = command("mode", "paper", "--reason", "try")
    assert (refused.code, command("mode", "off", "--reason", "try").code) == (1, 0)
    assert "inference workers decide for slot champion (host, process 77 is one)" in refused.err
    assert ok("mode", "show")["modes"][0]["mode"] == "off"

    here.do(lambda store: store.drop_lease("missed:champion", "host/boot/ns/77/abc"))
    assert command("mode", "paper", "--reason", "try").code == 0
