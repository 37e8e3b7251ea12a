"""`perpline backtest` and `perpline parity`: words, exit codes, files."""

import asyncio
import json
from pathlib import Path

import apsw
import pytest

from backtesting import candles_of, serve, store_history, trend_follower, walk, walk_in
from perpline.inference.artefact import LoadedModel
from perpline.storage.sqlite import SqliteStore
from running import command
from training import MINUTE, START

FROM, TO = START + 300 * MINUTE, START + 700 * MINUTE


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERPLINE_DATA_DIR", str(tmp_path))
    monkeypatch.setattr("os.nice", lambda _: 0)
    return tmp_path


@pytest.fixture
def model(here: Path) -> LoadedModel:
    return trend_follower(here / "models")


def database(here: Path, minutes: int = 800) -> str:
    async def fill() -> None:
        store = SqliteStore(here / "market.db")
        await store.open()
        await walk_in(store, minutes)
        await store.close()

    asyncio.run(fill())
    return f"sqlite:///{here / 'market.db'}"


def test_a_backtest_writes_its_report_and_says_the_sums(here: Path, model: LoadedModel) -> None:
    done = command(
        *("backtest", "--from", FROM, "--to", TO, "--model", model.model_id),
        *("--database", database(here), "--out", here / "out", "--json"),
    )

    assert done.code == 0, done.err
    report = json.loads((here / "out" / "report.json").read_text())
    assert done.json["model_id"] == report["model_id"] == model.model_id
    assert (done.json["minutes"], done.json["trades"]) == (400, report["trades"])
    assert "daily_net_bp" not in done.json["trading"]
    rows = (here / "out" / "trades.csv").read_text().splitlines()
    assert len(rows) == 1 + report["trades"]
    assert (here / "out" / "report.html").read_text().startswith("<!doctype html>")
    assert len((here / "out" / "signals.csv").read_text().splitlines()) == 1 + report["signals"]


def test_a_backtest_by_the_path_of_a_model_prints_a_table(here: Path, model: LoadedModel) -> None:
    done = command("backtest", "--from", FROM, "--to", TO, "--model", model.path, "--database", database(here))

    assert done.code == 0, done.err
    assert "BTCUSDT" in done.out
    assert "bp a trade" in done.out
    assert "no evidence" in done.out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--from", str(TO), "--to", str(FROM)), 2, "is not after"),
        (("--from", "never", "--to", str(FROM)), 2, "no time"),
        (("--from", str(FROM), "--to", str(TO), "--symbols", "nonesuch"), 1, "no candle of NONESUCH is stored"),
        (("--from", "2031-01-01", "--to", "2031-01-02"), 1, "no candle is stored for these minutes"),
    ],
)
def test_what_cannot_be_tested_is_said_in_one_line(
    here: Path, model: LoadedModel, words: tuple[str, ...], code: int, said: str
) -> None:
    done = command("backtest", *words, "--model", model.model_id, "--database", database(here))

    assert done.code == code
    assert said in " ".join(done.err.split())


def test_an_unknown_model_is_an_error(here: Path) -> None:
    done = command("backtest", "--from", FROM, "--to", TO, "--model", "nobody", "--database", database(here))

    assert done.code == 1
    assert "nobody is refused" in done.error_line


def test_without_a_history_of_the_mark_price_the_last_price_must_be_asked_for(here: Path, model: LoadedModel) -> None:
    url = database(here)
    connection = apsw.Connection(str(here / "market.db"))
    connection.execute("DELETE FROM mark_klines")
    connection.close()
    words = ("backtest", "--from", FROM, "--to", TO, "--model", model.model_id, "--database", url, "--json")

    refused = command(*words)
    done = command(*words, "--exit-price", "last")

    assert refused.code == 1
    assert "no history of the mark price" in refused.error_line
    assert done.code == 0
    assert done.json["rule"]["price"] == "last"
    assert done.json["unknown"] == 0


# ---- parity


def served(here: Path, model: LoadedModel) -> str:
    async def fill() -> None:
        store = SqliteStore(here / "market.db")
        await store.open()
        history = walk(500)
        await store_history(store, history)
        await serve(store, model, candles_of(history))
        await store.close()

    asyncio.run(fill())
    return f"sqlite:///{here / 'market.db'}"


def test_parity_of_the_newest_day_is_clean(here: Path, model: LoadedModel) -> None:
    url = served(here, model)
    day = command("parity", "--database", url, "--json")
    hour = command("parity", "--from", START + 400 * MINUTE, "--to", START + 460 * MINUTE, "--database", url)

    assert day.code == 0, day.err
    assert (day.json["ok"], day.json["mismatch_cells"], day.json["rows"]) == (True, 0, 259)
    assert hour.code == 0
    assert "60 predictions of 1 symbols" in hour.out


def test_parity_exits_with_1_where_bits_differ(here: Path, model: LoadedModel) -> None:
    url = served(here, model)
    connection = apsw.Connection(str(here / "market.db"))
    connection.execute("UPDATE candles_1m SET taker_buy_volume = 0 WHERE open_time = ?", (START + 480 * MINUTE,))
    connection.close()

    done = command("parity", "--database", url, "--json")
    table = command("parity", "--database", url)

    assert done.code == 1
    assert not done.json["ok"]
    assert set(done.json["columns"]) == {"tbi_15", "tbi_60"}
    assert done.json["columns"]["tbi_15"] == 15
    assert "differ from what live computed" in done.error_line
    assert "tbi_15: 15" in table.out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--date", "2023-11-14", "--from", "2023-11-14"), 2, "either a day"),
        (("--from", "2023-11-14"), 2, "both --from and --to"),
        (("--from", "2023-11-15", "--to", "2023-11-14"), 2, "is not after"),
        (("--date", "2031-01-01"), 1, "no prediction is stored for these minutes"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(
    here: Path, model: LoadedModel, words: tuple[str, ...], code: int, said: str
) -> None:
    done = command("parity", *words, "--database", served(here, model))

    assert done.code == code
    assert said in " ".join(done.err.split())
