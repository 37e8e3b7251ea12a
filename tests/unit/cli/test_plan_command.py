import asyncio
import json
import os
from collections import Counter
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from perpline.cli.plan import Plan, make_plan, plan
from perpline.common.config import load_settings
from perpline.common.errors import NeedsPerson
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import TABLES
from perpline.storage.symbols import SymbolChange, SymbolChanges, store_symbols

app = typer.Typer()
app.command()(plan)


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("PERPLINE_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("COLUMNS", "150")


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def planned(**settings: object) -> Plan:
    return make_plan(load_settings(None, {"HOME": "/home/someone"}, settings))


def test_thirty_symbols_are_150_streams_on_two_connections_and_far_from_every_limit() -> None:
    answer = planned()

    assert (answer.symbols, answer.streams) == (30, 150)
    assert answer.connections == [{"route": "market", "streams": 120}, {"route": "public", "streams": 30}]
    assert answer.rest_weight_per_minute == 120
    assert answer.rest_calls_per_minute == 150.5
    assert answer.warnings == []


def test_without_price_klines_only_what_is_polled_for_itself_is_asked() -> None:
    answer = planned(price_klines=False)

    # 30 open interests a minute, five series each five minutes, funding each hour
    assert answer.rest_calls_per_minute == 30 + 30 + 0.5
    assert not any(table.name.endswith("_klines") for table in answer.tables)


def test_six_hundred_symbols_are_3000_streams_on_15_connections_and_too_much_for_one_address() -> None:
    answer = planned(symbols="top:600")

    assert answer.streams == 3000
    assert Counter((each["route"], each["streams"]) for each in answer.connections) == {
        ("market", 200): 12,
        ("public", 200): 3,
    }
    assert answer.warnings == [
        "request weight: 2400 of 2400 in 1 min (100%); at most 600 symbols fit, 480 with room for retries",
        "/futures/data requests: 3000 of 1000 in 5 min (300%); at most 200 symbols fit, 160 with room for retries",
        "funding requests: 600 of 500 in 5 min (120%); at most 500 symbols fit, 400 with room for retries",
    ]


@pytest.mark.parametrize(("symbols", "warned"), [(160, False), (161, True)])
def test_the_warning_begins_above_four_fifths_of_a_limit(symbols: int, warned: bool) -> None:
    assert any("/futures/data" in text for text in planned(symbols=f"top:{symbols}").warnings) == warned


def test_a_connection_near_the_exchanges_limit_of_streams_is_warned_about() -> None:
    warnings = planned(symbols="top:250", max_streams_per_connection=1024).warnings

    assert any("1000 of at most 1024 streams" in text for text in warnings)
    assert planned(symbols="top:150", max_streams_per_connection=1024).warnings == []


def test_so_few_streams_a_connection_that_some_lack_mark_prices_are_warned_about() -> None:
    assert any("no mark price" in text for text in planned(max_streams_per_connection=3).warnings)
    assert planned(max_streams_per_connection=4).warnings == []


def test_every_table_that_grows_by_the_clock_is_planned() -> None:
    tables = {table.name for table in planned().tables}

    assert tables == (TABLES.keys() - {"revisions"}) | {"signals", "predictions", "outbox"}


def test_rows_of_a_day_follow_from_the_minutes_of_a_day() -> None:
    rows = {table.name: table.rows_per_day for table in planned(symbols="BTCUSDT,ETHUSDT").tables}

    assert (rows["candles_1m"], rows["candles_15m"], rows["candles_1h"]) == (2880, 192, 48)
    assert rows["signals"] == 2880
    assert rows["outbox"] == 2880 + 1440
    assert rows["long_short_ratio"] == 2 * 4 * 288
    assert rows["open_interest"] == 2 * (1440 + 288)


@pytest.mark.parametrize(("symbols", "count"), [("600", 600), ("top:5", 5), ("BTCUSDT,ETHUSDT", 2)])
def test_symbols_are_a_number_or_a_list(symbols: str, count: int) -> None:
    answer = json.loads(run("--symbols", symbols, "--json").splitlines()[-1])

    assert answer["symbols"] == count
    assert answer["streams"] == 5 * count


def test_an_excluded_symbol_is_not_planned() -> None:
    assert planned(symbols="BTCUSDT,ETHUSDT", exclude="ETHUSDT,XRPUSDT").symbols == 1


def test_symbols_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(NeedsPerson, match="symbols"):
        run("--symbols", "0")


def test_the_printed_plan_has_the_sums_the_parts_and_the_warnings() -> None:
    text = run("--symbols", "600")

    assert "600 symbols: 3000 streams on 15 connections, 3010 REST calls and weight 2400 a minute" in text
    for word in ("connections", "market", "open_interest_hist", "/futures/data requests in 5 min", "candles_1m"):
        assert word in text
    assert text.count("warning:") == 3


def test_help_has_an_example() -> None:
    assert "Example: perpline plan --symbols 600" in run("--help")


def changed(*rows: tuple[str, str]) -> SymbolChanges:
    return SymbolChanges(
        SymbolChange(symbol=symbol, action=action, changed_at=7, by="me", reason="")  # type: ignore[arg-type]
        for action, symbol in rows
    )


@pytest.mark.parametrize(
    ("symbols", "rows", "count"),
    [
        (("AUSDT", "BUSDT"), [("add", "CUSDT"), ("remove", "AUSDT"), ("remove", "XUSDT")], 2),
        (("AUSDT", "BUSDT"), [("delisted", "AUSDT"), ("delisted", "BUSDT")], 0),
        ("top:30", [("add", "CUSDT"), ("remove", "AUSDT"), ("delisted", "BUSDT")], 29),
        ("top:30", [("add", "CUSDT"), ("delisted", "CUSDT")], 30),
        ("top:30", [("remove", "AUSDT"), ("add", "AUSDT"), ("add", "BUSDT")], 32),
    ],
)
def test_what_people_added_and_removed_is_planned(symbols: object, rows: list[tuple[str, str]], count: int) -> None:
    settings = load_settings(None, {"HOME": "/home/someone"}, {"symbols": symbols})

    assert make_plan(settings, changed(*rows)).symbols == count


def test_the_command_counts_the_rows_of_a_database_that_is_there_unless_it_is_asked_for_others(tmp_path: Path) -> None:
    Path("perpline.toml").write_text(f"data_dir = {str(tmp_path)!r}\nsymbols = ['AUSDT', 'BUSDT']\n")
    assert json.loads(run("--json", "--config", "perpline.toml"))["symbols"] == 2
    assert not (tmp_path / "perpline.db").exists(), "a plan makes none"

    async def add_one() -> None:
        store = SqliteStore(tmp_path / "perpline.db")
        await store.open()
        await store_symbols(store, [SymbolChange(symbol="CUSDT", action="add", changed_at=7, by="me", reason="")])
        await store.close()

    asyncio.run(add_one())
    assert json.loads(run("--json", "--config", "perpline.toml"))["symbols"] == 3
    assert json.loads(run("--json", "--config", "perpline.toml", "--symbols", "7"))["symbols"] == 7
