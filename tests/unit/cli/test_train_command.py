import json
import logging
from pathlib import Path

import apsw
import pytest
import structlog

from perpline.cli.backfill import rest_settings
from perpline.cli.main import main
from perpline.inference.artefact import load_artefact
from perpline.storage.sqlite import SqliteStore
from training import random_walk, store_history

WINDOWS = ["--train-days", "2", "--test-days", "1", "--lockbox-days", "1"]


def run(*arguments: str) -> int:
    try:
        return main(list(arguments))
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        # Logs went to the captured stderr of this test, which the tests after it would find closed.
        structlog.reset_defaults()
        logging.basicConfig(force=True, handlers=[logging.NullHandler()])


@pytest.fixture
async def market(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options for a database with a week of two symbols; models and stages go to a folder of the test."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("PERPLINE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr("os.nice", lambda by: 0)  # the tests that come after should not be slower
    store = SqliteStore(tmp_path / "market.db")
    await store.open()
    for seed, symbol in enumerate(("AAAUSDT", "BBBUSDT")):
        await store_history(store, random_walk(7 * 1440, seed=seed, symbol=symbol, volatility=1.5e-3))
    await store.close()
    return ["--database", f"sqlite:///{tmp_path}/market.db", "--no-repair", "--schema", "candles_day"]


def test_a_candidate_is_trained_from_stored_history(
    market: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--trees", "15", "--horizon", "60", "--seed", "3"]

    assert run("train", *market, *WINDOWS, *small, "--json") == 0

    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    model = load_artefact(Path(told["path"]))
    assert model.model_id == told["model_id"]
    assert (model.manifest.seed, model.rule.horizon_s, model.rule.price) == (3, 3600, "mark")
    assert model.manifest.train.symbols == ["AAAUSDT", "BBBUSDT"]
    assert not told["already_there"]
    assert not told["verdict"]["beats_baselines"]
    assert told["verdict"]["leaks_failed"] == []
    assert "does not beat always-flat" in Path(told["report"]).read_text()

    assert run("models", "promote", told["model_id"], *market[:2], "--force", "--reason", "to train again") == 0
    capsys.readouterr()
    assert run("train", *market, *WINDOWS, *small) == 0
    assert capsys.readouterr().out.startswith(f"already there: {told['model_id']}")

    assert run("models", "list", *market[:2], "--json") == 0
    listed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["model_id"] in json.dumps(listed)


def test_windows_that_history_cannot_fill_are_said_before_anything_is_built(
    market: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", *market) == 1
    assert "days of rows are too few for these windows, which need" in capsys.readouterr().err
    assert run("train", *market, *WINDOWS, "--from", "2023-11-19") == 1
    assert "days of rows are too few" in capsys.readouterr().err
    assert not (tmp_path / "data" / "training").exists()


def test_an_address_of_rest_alone_is_enough(market: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = [each for each in market if each != "--no-repair"]

    assert run("train", *options, *WINDOWS, "--rest-url", "http://127.0.0.1:9") == 1

    assert "gaps cannot be repaired" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("rest_url", "ws_url"),
    [
        ("https://fapi.binance.com", "wss://fstream.binance.com"),
        ("https://proxy.example/futures", "wss://proxy.example/futures"),
        (None, None),
    ],
)
def test_commands_without_streams_make_the_second_address_of_the_first(
    rest_url: str | None, ws_url: str | None
) -> None:
    assert rest_settings(None, rest_url, None)["binance_futures_ws_url"] == ws_url


def test_what_cannot_be_trained_is_said_in_one_line(market: list[str], capsys: pytest.CaptureFixture[str]) -> None:

    assert run("train", *market, "--symbols", "NONEUSDT") == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--name", "Bad Name"), "--name"),
        (("--name", "x\n"), "--name"),
        (("--from", "2023-11-20", "--to", "2023-11-19"), "--from"),
    ],
)
def test_what_would_fail_at_the_end_is_wrong_usage_at_once(
    market: list[str], words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", *market, *WINDOWS, *words) == 2
    assert f"Invalid value for {said}" in capsys.readouterr().err


def test_candles_of_prices_and_volume_alone_are_said_to_need_another_schema(
    market: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    connection = apsw.Connection(str(tmp_path / "market.db"))
    connection.execute("UPDATE candles_1m SET quote_volume = NULL, trades = NULL, taker_buy_volume = NULL")
    connection.close()

    assert run("train", *market, *WINDOWS) == 1

    said = capsys.readouterr().err
    assert said.startswith("perpline: there is no value of tbi_15, tbi_60: ")
    assert said.endswith("(--schema ohlcv)\n")


def test_mark_prices_that_are_nowhere_stored_are_missed_before_anything_is_built(
    market: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    connection = apsw.Connection(str(tmp_path / "market.db"))
    connection.execute("DELETE FROM mark_klines")
    connection.close()

    assert run("train", *market, *WINDOWS) == 1

    assert "--label-price last" in capsys.readouterr().err
    assert not (tmp_path / "data" / "training").exists()


def test_levels_that_nobody_can_earn_on_are_warned_about(market: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run("train", *market, "--tp", "0.3", "--sl", "0.3")

    said = " ".join(capsys.readouterr().err.split())
    assert "points more than chance" in said
    assert "0.3 / 0.3 14 0.500 0.733 +23 points" in said


def test_a_schema_that_does_not_exist_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--schema", "nonsense") == 2
    assert "ohlcv_day" in capsys.readouterr().err
