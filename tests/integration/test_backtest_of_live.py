"""What a worker decided on the simulated exchange, and what the backtest of the same minutes and database decides."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from modelling import RULE, golden_rows, logistic_graph, manifest
from perpline.backtest.outcomes import SETTLED_MS, store_outcomes
from perpline.backtest.parity import compare
from perpline.backtest.report import report_html, summary
from perpline.backtest.run import backtest_symbols
from perpline.domain.exit_rule import label_hash
from perpline.domain.signal import Decision, Status
from perpline.features.catalogue import by_name, schema_hash
from perpline.inference import registry
from perpline.inference.artefact import LoadedModel, ManifestFeature, write_artefact
from perpline.simulation.server import SimulatedExchange
from perpline.storage.sqlite import SqliteStore
from running import MINUTE, Database, next_close, simulated, working

BOOK = ("spread_bp", "spread_rel", "imb_0", "imb_tw60", "micro_bp", "ofi_1m")
NAMES = (
    *("ret_1", "zret_15", "tbi_5", "tbi_15", "tbi_60", "rv_60", "rsv_60"),
    *("prem_0", "prem_m60", "marklast", "basis", "idxlead_5", "fund_last", "fund_est", "fund_frac"),
    *("doi_5m", "lsr_g", "lsr_ta", "lsr_tp"),
    *BOOK,
)
QUICK = replace(RULE, horizon_s=120)


async def promoted_model(store: SqliteStore, models_dir: Path, **changes: Any) -> LoadedModel:
    """One that trades often. It has columns of every table."""
    features = tuple(by_name[name] for name in NAMES)
    said = manifest(
        features=[ManifestFeature.of(feature) for feature in features],
        schema_hash=schema_hash(features),
        critical=["zret_15", "tbi_15"],
        threshold=0.55,
        ev_min_bp=-1000.0,
        **changes,
    )
    graph = logistic_graph({"tbi_5": 1.5, "zret_15": 0.3}, NAMES)
    verdict = {"verdict": {"beats_baselines": True, "text": "made for a test"}}
    files = {"both.onnx": graph, "report.json": json.dumps(verdict).encode()}
    path = write_artefact(models_dir, said, files, golden_rows(8, len(NAMES)))
    model = await registry.register(store, models_dir, path)
    await registry.promote(store, models_dir, model.model_id, slot="champion", effective_from=0, by="test")
    return model


async def live(exchange: SimulatedExchange, folder: Path, minutes: int) -> None:
    """A worker's life of so many minutes."""
    async with working(exchange, folder) as worker:
        await worker.until_ready()
        last = next_close(exchange.clock.now_ms(), minutes)
        await worker.until(lambda: Database(folder).decided_until(last, len(exchange.symbols)), 60)
        await worker.stop()


@pytest.mark.parametrize("minutes", [5, pytest.param(30, marks=pytest.mark.full)])
async def test_a_backtest_of_the_minutes_that_live_decided_decides_the_same(tmp_path: Path, minutes: int) -> None:
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    model = await promoted_model(store, tmp_path / "models")
    async with simulated(speed=60.0) as exchange:
        # Two lives: a cooldown goes on in the second.
        await live(exchange, tmp_path, minutes)
        await live(exchange, tmp_path, 2)
    database = Database(tmp_path)
    [[first, last]] = database.rows("SELECT min(close_time), max(close_time) FROM signals")
    rows = dict(database.rows("SELECT status, count(*) FROM signals GROUP BY status"))

    symbols = sorted(exchange.symbols)
    runs = await backtest_symbols(store, model, symbols, first, last + 1, rule=model.rule, slot="champion")
    punctual = database.rows(
        "SELECT features FROM predictions JOIN signals USING (slot, symbol, close_time) WHERE late_mask = 0"
    )
    book = np.array([np.frombuffer(vector, "<f4") for (vector,) in punctual])[:, -len(BOOK) :]
    parity = await compare(store, tmp_path / "models", "champion", first, last + 1)
    later = await backtest_symbols(
        store, model, symbols, first + minutes // 2 * MINUTE, last + 1, rule=model.rule, slot="champion"
    )
    report = summary(runs, model, model.rule, first, last + 1, "champion")
    await store.close()

    assert report["live"]["examples"] == []
    assert report["live"]["rows"] == report["live"]["same"] == sum(rows.values()) - rows.get("skipped_missed", 0)
    assert rows["ok"] > 0
    assert report["signals"] >= rows["ok"]  # some of the missed minutes would have had one
    # A cooldown from before the start is read from what live has stored.
    assert [run.live.differing for run in later] == [0] * len(symbols)
    assert parity.ok, parity
    assert parity.rows == sum(rows.values()) - rows.get("skipped_missed", 0)
    assert parity.cells - parity.late_cells > parity.cells // 2
    assert len(punctual) > parity.rows // 2
    there = np.isfinite(book).any(axis=0)  # not everywhere: at this speed a book is soon older than 5 s
    assert there.tolist() == [name != "spread_rel" for name in BOOK]  # an hour of books is not recorded yet
    assert "decisions are the same" in report_html(report, runs)


async def test_outcomes_of_what_live_decided_are_those_of_the_backtest(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    model = await promoted_model(store, tmp_path / "models", label=QUICK, label_hash=label_hash(QUICK))
    async with simulated(speed=60.0) as exchange:
        await live(exchange, tmp_path, 7)
    database = Database(tmp_path)
    before = database.rows("SELECT * FROM signals ORDER BY slot, symbol, close_time")
    [[first, last]] = database.rows("SELECT min(close_time), max(close_time) FROM signals")
    on = last + QUICK.horizon_s * 1000 + SETTLED_MS
    later = Decision(
        signal_id="later", slot="champion", symbol="BTCUSDT", close_time=on, side=0, status=Status.SKIPPED_MISSED
    )

    early = await store_outcomes(store, "champion")
    await store.commit_decisions([later], [], [], 0)
    found = await store_outcomes(store, "champion")
    again = await store_outcomes(store, "champion")
    runs = await backtest_symbols(
        store, model, sorted(exchange.symbols), first, last + 1, rule=model.rule, slot="champion"
    )
    stored = {row[0]: row[1:] for row in await store.trading_rows("signal_outcomes")}
    await store.close()

    signals = dict(database.rows("SELECT signal_id, close_time FROM signals WHERE status = 'ok'"))
    assert (early.stored, early.open) == (0, len(signals))
    assert (again.stored, again.waiting) == (0, found.waiting)
    assert found.stored == len(stored) > 0
    # Prices are known as long as the worker lived.
    assert {name for name, t in signals.items() if t <= last - QUICK.horizon_s * 1000 - 2 * MINUTE} <= stored.keys()
    trades = {trade.signal_id: trade for run in runs for trade in run.trades if trade.signal_id in stored}
    assert trades
    for name, trade in trades.items():
        reason, ended, net, worst, best = stored[name]
        assert (reason, ended) == ("stop_first" if trade.reason == "ambiguous" else trade.reason, trade.exit_time)
        # Funding is summed from another minute on, which may cost the last bit.
        assert (net, worst, best) == pytest.approx((trade.net, trade.mae, trade.mfe), rel=1e-6, abs=1e-12)
    kept = database.rows("SELECT * FROM signals WHERE signal_id != 'later' ORDER BY slot, symbol, close_time")
    assert kept == before
