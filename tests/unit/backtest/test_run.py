"""The backtest of a database: one position at a time, the same again, and what live had decided beside it."""

import html.parser
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from backtesting import LOOKBACK, SLOT, store_history, trend_follower, walk, walk_in
from modelling import golden_rows, logistic_graph, manifest, write_model
from perpline.backtest.report import caveats, report_html, signals_csv, summary, trades_csv
from perpline.backtest.run import LAST_TRADES, SymbolRun, backtest_symbols
from perpline.domain.signal import Decision, Status, signal_id
from perpline.features.catalogue import by_name, schema_hash
from perpline.inference.artefact import LoadedModel, ManifestFeature, load_artefact, write_artefact
from perpline.storage.sqlite import SqliteStore
from training import MINUTE, START

FROM = START + (LOOKBACK + 60) * MINUTE


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def model(tmp_path: Path) -> LoadedModel:
    return trend_follower(tmp_path)


async def runs_of(store: SqliteStore, model: LoadedModel, symbols: list[str], end: int, start: int = FROM):
    return await backtest_symbols(store, model, symbols, start, end, rule=model.rule, slot=SLOT)


def at(minute: int) -> int:
    return START + minute * MINUTE


async def test_a_symbol_has_one_position_at_a_time(store: SqliteStore, model: LoadedModel) -> None:
    await walk_in(store, 1_500)

    [run] = await runs_of(store, model, ["BTCUSDT"], at(1_400))

    assert run.minutes == 1_400 - LOOKBACK - 60
    assert sum(run.statuses.values()) == run.minutes
    assert run.statuses["ok"] == len(run.signals)
    assert len(run.trades) > 10
    for before, after in zip(run.trades, run.trades[1:], strict=False):
        assert after.close_time >= before.exit_time
    held = [signal for signal in run.signals if not signal.traded]
    assert held
    for signal in held:
        assert any(trade.close_time < signal.close_time < trade.exit_time for trade in run.trades)
    assert [trade.signal_id for trade in run.trades] == [each.signal_id for each in run.signals if each.traded]
    assert run.signals[0].signal_id == signal_id(SLOT, model.model_id, "BTCUSDT", run.signals[0].close_time)


async def test_the_same_history_gives_the_same_bytes(store: SqliteStore, model: LoadedModel) -> None:
    await walk_in(store, 1_000)
    await walk_in(store, 1_000, 2, "ETHUSDT")
    symbols = ["BTCUSDT", "ETHUSDT"]

    pages = []
    for _ in range(2):
        runs = await runs_of(store, model, symbols, at(900))
        report = summary(runs, model, model.rule, FROM, at(900), SLOT)
        pages.append((report, report_html(report, runs), trades_csv(runs), signals_csv(runs)))

    assert pages[0] == pages[1]


async def test_a_longer_backtest_begins_as_a_shorter_one(store: SqliteStore, model: LoadedModel) -> None:
    await walk_in(store, 1_500)
    [shorter] = await runs_of(store, model, ["BTCUSDT"], at(900))
    [longer] = await runs_of(store, model, ["BTCUSDT"], at(1_400))

    assert longer.signals[: len(shorter.signals)] == shorter.signals
    assert longer.trades[: len(shorter.trades)] == shorter.trades


async def test_what_live_decided_of_the_same_minutes_is_compared(store: SqliteStore, model: LoadedModel) -> None:
    await walk_in(store, 700)
    [alone] = await runs_of(store, model, ["BTCUSDT"], at(600))
    signals = {signal.close_time: signal for signal in alone.signals}
    chosen = [t for t in range(FROM, at(600), MINUTE) if t in signals]

    def live(t: int, **changes: object) -> Decision:
        signal = signals[t]
        values = {
            "signal_id": signal.signal_id,
            "slot": SLOT,
            "symbol": "BTCUSDT",
            "close_time": t,
            "side": signal.side,
            "status": Status.OK,
            "model_id": model.model_id,
            "p_cal": signal.p,
            "t_features": (t + 600) * 1000,
        }
        return Decision(**{**values, **changes})

    rows = [live(t) for t in chosen[:-4]]
    rows.append(live(chosen[-4], p_cal=0.5))
    rows.append(live(chosen[-3], p_cal=0.5, late_mask=1 << 30))  # of a table that the model does not use
    rows.append(live(chosen[-2], status=Status.SKIPPED_MISSED, side=0, p_cal=None, t_features=0))
    rows.append(live(chosen[-1], p_cal=0.5, t_features=(chosen[-1] - 1) * 1000))  # before its candle was stored
    await store.commit_decisions(rows, [], [], 0)

    [run] = await runs_of(store, model, ["BTCUSDT"], at(600))

    assert (run.live.rows, run.live.same) == (len(rows) - 1, len(rows) - 4)
    assert (run.live.differing, run.live.repaired, run.live.late, run.live.missed) == (2, 1, 0, 1)
    assert [each["close_time"] for each in run.live.examples] == [chosen[-4], chosen[-3]]
    assert run.signals == alone.signals


async def test_a_cooldown_goes_on_from_the_stored_signals_of_the_same_model(
    store: SqliteStore, model: LoadedModel
) -> None:
    await walk_in(store, 700)
    [alone] = await runs_of(store, model, ["BTCUSDT"], at(600))
    first = alone.signals[0]

    def before(name: str, minutes: int) -> Decision:
        t = first.close_time - minutes * MINUTE
        return Decision(
            signal_id=name, slot=SLOT, symbol="BTCUSDT", close_time=t, side=first.side, status=Status.OK, model_id=name
        )

    await store.commit_decisions([before("another", 2)], [], [], 0)
    [other] = await runs_of(store, model, ["BTCUSDT"], at(600), first.close_time)
    assert other.signals[0] == first

    await store.commit_decisions([before(model.model_id, 3)], [], [], 0)
    [mine] = await runs_of(store, model, ["BTCUSDT"], at(600), first.close_time)
    assert mine.signals[0].close_time != first.close_time
    assert mine.statuses["cooldown"] > other.statuses.get("cooldown", 0)


async def test_a_model_that_compares_symbols_gets_the_same_vectors_as_the_universe(
    store: SqliteStore, tmp_path: Path
) -> None:
    features = tuple(by_name[name] for name in ("btc_ret_1", "mkt_15", "zret_15", "tbi_60"))
    said = manifest(
        features=[ManifestFeature.of(each) for each in features],
        schema_hash=schema_hash(features),
        critical=["mkt_15"],
        threshold=0.5,
    )
    graph = logistic_graph({"btc_ret_1": 100.0, "mkt_15": -0.5}, [feature.name for feature in features])
    crossing = load_artefact(write_artefact(tmp_path, said, {"both.onnx": graph}, golden_rows(8, 4)))
    await walk_in(store, 500, 1)
    await walk_in(store, 500, 2, "ETHUSDT")

    runs = await runs_of(store, crossing, ["BTCUSDT", "ETHUSDT"], at(450))

    assert [run.minutes for run in runs] == [450 - LOOKBACK - 60] * 2
    # Both are scored by BTCUSDT's return and the market's alone: they agree minute by minute.
    assert [(each.close_time, each.p) for each in runs[0].signals] == [
        (each.close_time, each.p) for each in runs[1].signals
    ]
    assert len(runs[0].signals) > 3


async def test_trades_without_a_mark_price_are_in_no_figure(store: SqliteStore, model: LoadedModel) -> None:
    history = walk(700)
    history.mark["open_time"] = history.mark["open_time"] + 10_000 * MINUTE
    await store_history(store, history)

    [run] = await runs_of(store, model, ["BTCUSDT"], at(600))
    report = summary([run], model, model.rule, FROM, at(600), SLOT)

    assert {trade.reason for trade in run.trades} == {"unknown"}
    assert report["unknown"] == report["trades"] == len(run.trades)
    assert report["trading"]["trades"] == 0
    on_last = await backtest_symbols(
        store, model, ["BTCUSDT"], FROM, at(600), rule=replace(model.rule, price="last"), slot=SLOT
    )
    assert {trade.over for trade in on_last[0].trades} == {True}


# ---- report


class Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.unmatched: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attributes if name in ("href", "src", "onload", "onclick")]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unmatched.append(tag)


async def make_runs(store: SqliteStore, model: LoadedModel) -> list[SymbolRun]:
    await walk_in(store, 1_200)
    return await runs_of(store, model, ["BTCUSDT"], at(1_100))


async def test_the_page_needs_nothing_but_itself_and_draws_every_trade(store: SqliteStore, model: LoadedModel) -> None:
    runs = await make_runs(store, model)
    page = report_html(summary(runs, model, model.rule, FROM, at(1_100), SLOT), runs)
    parsed = Links()
    parsed.feed(page)

    assert (parsed.links, parsed.unmatched, parsed.open) == ([], [], [])
    assert "script" not in page
    assert not re.search(r"nan|inf\b", re.sub(r"<style>.*</style>", "", page, flags=re.DOTALL))
    trades = runs[0].trades
    last = trades[-LAST_TRADES:] if len(trades) > LAST_TRADES else []
    assert page.count("<circle") == sum(trade.over for trade in [*trades, *last])


async def test_the_sums_are_those_of_the_trades(store: SqliteStore, model: LoadedModel) -> None:
    runs = await make_runs(store, model)
    report = summary(runs, model, model.rule, FROM, at(1_100), SLOT)
    over = [trade for trade in runs[0].trades if trade.over]
    net = sum(trade.net for trade in over) * 1e4

    assert report["trading"]["trades"] == len(over)
    assert report["trading"]["total_net_bp"] == pytest.approx(net)
    assert sum(report["trading"]["daily_net_bp"]) == pytest.approx(net)
    assert report["by_symbol"][0]["net_bp"] == pytest.approx(net)
    assert sum(week["net_bp"] for week in report["by_week"]) == pytest.approx(net)
    assert len(trades_csv(runs).splitlines()) == 1 + len(runs[0].trades)


async def test_what_a_reader_must_know_is_said(store: SqliteStore, model: LoadedModel, tmp_path: Path) -> None:
    runs = await make_runs(store, model)
    report = summary(runs, model, replace(model.rule, price="last"), FROM, at(1_100), SLOT)
    said = " ".join(caveats(report))

    assert "trained on data until" in said
    assert "Exits are triggered by the last price" in said
    assert "best bid and ask was not recorded for 100.0% of the minutes" in said


async def test_a_model_that_never_trades_gets_a_report_too(store: SqliteStore, tmp_path: Path) -> None:
    silent = load_artefact(write_model(tmp_path, {"tbi_15": 0.0}, threshold=0.9))
    await walk_in(store, 500)
    runs = await runs_of(store, silent, ["BTCUSDT"], at(450))
    report = summary(runs, silent, silent.rule, FROM, at(450), SLOT)

    assert report["trades"] == 0
    assert report["trading"]["total_net_bp"] == 0
    assert "no trades" in report_html(report, runs)
