"""`perpline symbols`."""

import asyncio
from collections.abc import Callable, Coroutine
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from perpline.cli import symbols as symbols_command
from perpline.domain.instrument import Instrument
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import TRADING_TABLES
from perpline.storage.symbols import Listing, SymbolChange, store_symbols, symbol_changes
from running import command

NOW = 1_795_219_260_000
DAY = 86_400_000

Work = Callable[[SqliteStore], Coroutine[Any, Any, Any]]


def listed(symbol: str, status: str = "TRADING", delivery_time: int = 0) -> Instrument:
    step = Decimal("0.1")
    base = symbol.removesuffix("USDT")
    return Instrument(symbol, base, "USDT", "PERPETUAL", status, 0, step, step, step, step, delivery_time=delivery_time)


class Here:
    """A data folder with a database of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def do(self, work: Work) -> Any:
        async def main() -> Any:
            store = SqliteStore(self.folder / "perpline.db")
            await store.open()
            try:
                return await work(store)
            finally:
                await store.close()

        return asyncio.run(main())

    def seen(self, *listings: Listing) -> None:
        self.do(lambda store: store_symbols(store, seen=listings))

    def rows(self) -> list[tuple[str, str, str]]:
        return [(row.symbol, row.action, row.reason) for row in self.do(symbol_changes)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.setenv("PERPLINE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("PERPLINE_STATUS_PORT", "1")
    monkeypatch.setenv("PERPLINE_SYMBOLS", "BTCUSDT,ETHUSDT")
    monkeypatch.setenv("COLUMNS", "250")
    known = [
        listed("BTCUSDT"),
        listed("ETHUSDT"),
        listed("SOLUSDT"),
        listed("1000SHIBUSDT"),
        listed("HALTUSDT", "TRADING_HALT"),
        listed("OLDUSDT", "SETTLING"),
    ]

    async def of_the_exchange(settings: Any) -> dict[str, Instrument]:
        return {each.symbol: each for each in known}

    monkeypatch.setattr(symbols_command, "_listed", of_the_exchange)
    assert command("db", "migrate").code == 0
    return Here(tmp_path)


def ok(*words: object) -> Any:
    done = command(*words, "--json")
    assert done.code == 0, done.err
    return done.json


def shown() -> dict[str, Any]:
    return {facts["symbol"]: facts for facts in ok("symbols", "list")["symbols"]}


def test_what_is_added_and_removed_is_a_row_with_who_and_why(here: Here) -> None:
    added = ok("symbols", "add", "solusdt", "1000SHIBUSDT", "SOLUSDT", "--reason", "new model")
    assert [(row["symbol"], row["action"]) for row in added["changed"]] == [("SOLUSDT", "add"), ("1000SHIBUSDT", "add")]
    assert added["changed"][0]["by"]
    ok("symbols", "remove", "BTCUSDT", "SOLUSDT")

    assert here.rows() == [
        ("SOLUSDT", "add", "new model"),
        ("1000SHIBUSDT", "add", "new model"),
        ("BTCUSDT", "remove", ""),
        ("SOLUSDT", "remove", ""),
    ]
    assert {symbol: facts["state"] for symbol, facts in shown().items()} == {
        "ETHUSDT": "coming",
        "1000SHIBUSDT": "coming",
        "SOLUSDT": "no",
        "BTCUSDT": "no",
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "SOL"), "the exchange does not list SOL: did you mean SOLUSDT?"),
        (("add", "SOLUSTD"), "did you mean SOLUSDT"),
        (("add", "SHIBUSDT"), "did you mean 1000SHIBUSDT"),
        (("add", "NEVERHEARDOF"), "the exchange does not list NEVERHEARDOF"),
        (("add", "BTCUSDT"), "BTCUSDT is followed already"),
        (("add", "HALTUSDT"), "HALTUSDT is not TRADING at the exchange: it is TRADING_HALT"),
        (("add", "OLDUSDT"), "it is SETTLING and ends"),
        (("remove", "SOLUSDT"), "SOLUSDT is not followed"),
        (("remove", "BTCUST"), "BTCUST is not followed: did you mean BTCUSDT?"),
        (("remove", "BTCUSDT", "ETHUSDT"), "nothing would be left to follow"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_and_changes_nothing(
    here: Here, words: tuple[str, ...], said: str
) -> None:
    done = command("symbols", *words)

    assert done.code == 1
    assert said in done.error_line
    assert here.rows() == []


def test_no_symbol_is_wrong_usage(here: Here) -> None:
    assert command("symbols", "add", "BTC-USDT").code == 2
    assert command("symbols", "add").code == 2


def test_what_the_settings_exclude_cannot_be_added(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERPLINE_EXCLUDE", "SOLUSDT")

    done = command("symbols", "add", "SOLUSDT")

    assert (done.code, here.rows()) == (1, [])
    assert "`exclude` in the settings is stronger" in done.error_line


def test_the_list_says_since_when_why_and_what_the_exchange_said(here: Here) -> None:
    here.seen(
        Listing(symbol="BTCUSDT", status="TRADING", seen_at=NOW, followed_at=NOW),
        Listing(symbol="ETHUSDT", status="TRADING_HALT", seen_at=NOW, followed_at=NOW, delivery_at=NOW + DAY),
        Listing(symbol="OLDUSDT", status="SETTLING", seen_at=NOW, note="kept for its open paper positions"),
    )
    ended = SymbolChange(symbol="OLDUSDT", action="delisted", changed_at=NOW, by="perpline", reason="it says SETTLING")
    here.do(lambda store: store_symbols(store, [ended]))
    ok("symbols", "add", "SOLUSDT", "--reason", "to see")

    found = shown()
    assert {symbol: facts["state"] for symbol, facts in found.items()} == {
        "BTCUSDT": "yes",
        "ETHUSDT": "yes",
        "SOLUSDT": "coming",
        "OLDUSDT": "no",
    }
    assert found["BTCUSDT"]["why"] == "settings: symbols"
    assert found["SOLUSDT"]["why"].endswith(": to see")
    assert found["OLDUSDT"]["why"] == "delisted 2026-11-21 00:01 UTC: it says SETTLING"
    assert (found["ETHUSDT"]["status"], found["ETHUSDT"]["delivery_at"]) == ("TRADING_HALT", NOW + DAY)
    page = command("symbols", "list").out
    assert "TRADING_HALT" in page
    assert "2026-11-22 00:01 UTC" in page


def test_of_the_top_n_only_a_worker_knows_which_they_are(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERPLINE_SYMBOLS", "top:2")
    assert "top:2 by the settings" in command("symbols", "list").out
    here.seen(
        Listing(symbol="BTCUSDT", status="TRADING", seen_at=NOW, followed_at=NOW),
        Listing(symbol="ETHUSDT", status="TRADING", seen_at=NOW, followed_at=NOW),
    )

    assert command("symbols", "add", "BTCUSDT").error_line.endswith("BTCUSDT is followed already")
    ok("symbols", "remove", "ETHUSDT")
    assert {symbol: facts["state"] for symbol, facts in shown().items()} == {"BTCUSDT": "yes", "ETHUSDT": "leaving"}
    assert shown()["BTCUSDT"]["why"] == "settings: top:2"


def test_removing_a_symbol_with_an_open_position_says_what_becomes_of_it(here: Here) -> None:
    numbers = {"side": 1, "opened_at": NOW, "naked_ms": 0, "updated_at": NOW}
    texts = dict.fromkeys(
        ("quantity", "opened_quantity", "signal_id", "origin", "exit_reason", "realized_pnl", "fees", "funding"), "1"
    )
    values = {"account": "paper", "position_id": "p1", "symbol": "ETHUSDT", "status": "open", **numbers, **texts}
    here.do(lambda store: store.commit_trading({"positions": [TRADING_TABLES["positions"].row(values)]}))

    done = command("symbols", "remove", "ETHUSDT")

    assert "ETHUSDT has an open paper position: its prices are heard and its stop is watched until it is closed" in (
        done.out
    )
