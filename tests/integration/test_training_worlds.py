"""Worlds whose truth is known, through the whole command line: archives, import, train, serve (features.md L8, L9).

The short versions, on histories made up in memory, are in tests/unit/training/test_train.py.
"""

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perpline.domain.exit_rule import LabelRule
from perpline.simulation.market import EDGE_IMBALANCE, EDGE_MINUTES
from perpline.simulation.server import SimulatedExchange
from perpline.storage.sqlite import SqliteStore
from perpline.training.fit import TreeParams
from perpline.training.leaks import LeakTest
from perpline.training.train import Options, label_symbols, train, windows_for
from running import MINUTE, Database, assert_one_decision_a_minute, command, simulated, working
from training import quiet, random_walk, store_history, write_dataset

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]

WINDOWS = ["--train-days", "15", "--test-days", "5", "--lockbox-days", "4"]
SEED = 11
END_MS = 1_793_491_200_000
"""2026-11-01: the past that is trained on ends here, and the exchange that is served from goes on."""
SERVED_MINUTES = 30
SERVED_SYMBOLS = 40
"""The first four are those that were trained on; more contracts change nothing for the others of a world."""


def run(*arguments: object) -> Any:
    done = command(*arguments, "--json")
    assert done.code == 0, (arguments, done.err)
    return done.json


def trained(tmp_path: Path, edge: float, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """report.json of a model of a simulated world's 40 days."""
    monkeypatch.setenv("PERPLINE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr("os.nice", lambda by: 0)
    (tmp_path / "data").mkdir()
    archives = tmp_path / "archives"
    world = ["--symbols", 4, "--seed", SEED, "--edge", edge, "--end", "2026-11-01"]
    run("simulate", "--history", 40, "--out", archives, *world)
    run("import", "candles", archives)
    run("import", "funding", archives)
    run("train", "--no-repair", "--schema", "candles_day", "--horizon", 30, *WINDOWS)
    [report] = (tmp_path / "data" / "models").glob("*/report.json")
    made: dict[str, Any] = json.loads(report.read_text())
    return made


class Served:
    """What a worker decided with the trained model on the exchange that goes on where the history ended."""

    def __init__(self, tmp_path: Path, edge: float, *, force: bool) -> None:
        folder = tmp_path / "data"
        [path] = (folder / "models").glob("trees-*")
        why = ["--force", "--reason", "to see what it does"] if force else []
        run("models", "promote", path.name, "--at", END_MS, *why)
        self.model_id = path.name
        self.database = Database(folder)
        self.first, self.until = asyncio.run(self._serve(folder, edge))

    async def _serve(self, folder: Path, edge: float) -> tuple[int, int]:
        exchange = simulated(speed=60.0, start_ms=END_MS + 20_000, symbols=SERVED_SYMBOLS, seed=SEED, edge_bp=edge)
        async with exchange, working(exchange, folder) as worker:
            await worker.until_ready()
            first = worker.ready_at - worker.ready_at % MINUTE + MINUTE
            until = first + (SERVED_MINUTES - 1) * MINUTE
            await worker.until(lambda: self.database.decided_until(until, SERVED_SYMBOLS), 120, "the last decision")
            await worker.stop()
            self.symbols = exchange.symbols
            self.patterns = {symbol: patterns(exchange, symbol, first, until) for symbol in exchange.symbols}
        return first, until

    def rows(self, columns: str) -> list[tuple[Any, ...]]:
        query = f"SELECT {columns} FROM signals WHERE close_time BETWEEN ? AND ?"
        return self.database.rows(query, self.first, self.until)

    def assert_complete(self) -> None:
        """Every decision is there once, made in time by the promoted model with everything it needs."""
        assert_one_decision_a_minute(self.database, self.symbols, self.until)
        assert len(self.rows("symbol")) == SERVED_MINUTES * SERVED_SYMBOLS
        assert {model_id for [model_id] in self.rows("model_id")} == {self.model_id}
        assert {status for [status] in self.rows("status")} <= {"ok", "flat", "cooldown"}


def patterns(exchange: SimulatedExchange, symbol: str, first: int, until: int) -> dict[int, int]:
    """The drift that the exchange planted behind each close, by its own account: +1 up, -1 down, 0 none."""
    candles = exchange.closed_candles(symbol, "1m", first - EDGE_MINUTES * MINUTE, until)
    volume = np.array([float(row[5]) for row in candles])
    flow = 2 * np.array([float(row[9]) for row in candles]) - volume
    return {
        int(candles[at][0]) + MINUTE: int(np.sign(flow[window].sum()))
        if abs(flow[window].sum()) > EDGE_IMBALANCE * volume[window].sum()
        else 0
        for at in range(EDGE_MINUTES - 1, len(candles))
        if (window := slice(at - EDGE_MINUTES + 1, at + 1))
    }


def chance_of(agreeing: int, count: int) -> float:
    """Of at least so many of `count` fair coins."""
    return sum(math.comb(count, each) for each in range(agreeing, count + 1)) / 2**count


def test_nothing_is_found_in_a_world_without_an_edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = trained(tmp_path, 0.0, monkeypatch)

    assert not report["verdict"]["beats_baselines"]
    assert report["verdict"]["leaks_failed"] == []
    direction = report["skill"]["direction"]
    assert direction["auc"]["low"] < 0.52
    assert direction["auc"]["value"] <= direction["chance"]["high"] + 0.01
    assert report["trading"]["net_bp_per_day"]["low"] <= 0
    assert report["trading"]["dsr"] is None or report["trading"]["dsr"] < 0.5

    served = Served(tmp_path, 0.0, force=True)
    served.assert_complete()
    signals = [row for row in served.rows("symbol, status") if row[1] == "ok"]
    assert len(signals) <= 0.01 * SERVED_MINUTES * SERVED_SYMBOLS


def test_a_planted_edge_is_found_and_calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = trained(tmp_path, 2.0, monkeypatch)

    assert report["verdict"]["beats_always_flat"], report["verdict"]["text"]
    assert report["verdict"]["leaks_failed"] == []
    direction = report["skill"]["direction"]
    assert direction["auc"]["low"] > direction["chance"]["high"]
    for head in ("long", "short"):
        assert report["skill"][head]["log_loss_skill"]["low"] > 0
        assert report["skill"][head]["calibration"]["expected_error"] < 0.06
    assert report["random_entries"]["p_value"] < 0.01
    assert {"tbi_5", "tbi_15", "tbz_15"} & {each["feature"] for each in report["importance"][:3]}

    served = Served(tmp_path, 2.0, force=not report["verdict"]["beats_baselines"])
    served.assert_complete()
    signals = [row for row in served.rows("symbol, close_time, side, status") if row[3] == "ok"]
    planted = [served.patterns[symbol][close_time] * side for symbol, close_time, side, _ in signals]
    agreeing, against = planted.count(1), planted.count(-1)
    assert chance_of(agreeing, agreeing + against) < 0.01, (agreeing, against, len(signals))
    said = served.database.rows(
        "SELECT symbol, close_time, p_long, p_short FROM predictions WHERE close_time BETWEEN ? AND ?",
        served.first,
        served.until,
    )
    leaning = [np.sign(long - short) * served.patterns[symbol][close_time] for symbol, close_time, long, short in said]
    assert leaning.count(1) > 2 * leaning.count(-1), (leaning.count(1), leaning.count(-1))


async def test_twenty_clean_pipelines_are_neither_accused_nor_believed(tmp_path: Path) -> None:
    """L7, L8 and L11 on random walks: no leak is called, nothing beats doing nothing, trades lose their costs."""
    rule = LabelRule(tp_pct=1.0, sl_pct=1.0, horizon_s=3_600, cost_bp=14.0)
    exact = [LeakTest("L1", "", True, "")]
    accused, believed, areas, forced = [], [], [], []
    for seed in range(20):
        folder = tmp_path / str(seed)
        histories = [random_walk(14 * 1440, 100 * seed + at, name, 1.2e-3) for at, name in enumerate(("AAA", "BBB"))]
        opened = histories[0].candles["open_time"]
        options = Options(
            name="clean",
            symbols=("AAA", "BBB"),
            start=int(opened[0]),
            to=int(opened[-1]) + 60_000,
            schema="candles_day",
            rule=rule,
            windows=windows_for(rule, train=4, test=2, step=2, lockbox=1),
            seed=seed,
            params=TreeParams(trees=40, leaves=7),
            every=5,
        )
        write_dataset(folder / "dataset", histories, options.schema)
        store = SqliteStore(folder / "market.db")
        await store.open()
        for history in histories:
            await store_history(store, history)
        labels, materials = await label_symbols(store, options, folder / "dataset", folder / "work", quiet)
        await store.close()
        outcome = train(
            options, folder / "dataset", labels, materials, exact, folder / "work", folder / "models", quiet, 0
        )
        accused += outcome.report["verdict"]["leaks_failed"]
        believed.append(outcome.report["verdict"]["beats_baselines"])
        areas.append(outcome.report["skill"]["direction"]["auc"]["value"])
        forced.append(outcome.report["ranked"]["net_bp_per_trade"]["value"])

    assert accused == []
    assert sum(believed) == 0
    error = np.std(areas) / np.sqrt(len(areas))
    assert abs(np.mean(areas) - 0.5) < 4 * error + 0.01
    assert np.mean(forced) == pytest.approx(-14, abs=4 * np.std(forced) / np.sqrt(len(forced)) + 2)
