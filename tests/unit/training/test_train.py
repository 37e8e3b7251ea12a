import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from perpline.common.errors import NeedsPerson
from perpline.domain.exit_rule import LabelRule
from perpline.inference.artefact import LoadedModel, Manifest, load_artefact
from perpline.storage.sqlite import SqliteStore
from perpline.training.fit import TreeParams
from perpline.training.leaks import LeakTest
from perpline.training.train import (
    Options,
    Outcome,
    Progress,
    funding_off,
    golden_rows,
    judge_verdict,
    label_symbols,
    lift_warning,
    train,
    windows_for,
)
from training import quiet, random_walk, store_history, with_edge, write_dataset

DAY = 86_400_000
RULE = LabelRule(tp_pct=1.0, sl_pct=1.0, horizon_s=3_600, cost_bp=14.0)
EXACT = [LeakTest("L1", "the future", True, "none"), LeakTest("L13", "the end", True, "none")]


def options(histories: list[Any], **changes: Any) -> Options:
    opened = histories[0].candles["open_time"]
    made = Options(
        name="trial",
        symbols=tuple(history.symbol for history in histories),
        start=int(opened[0]),
        to=int(opened[-1]) + 60_000,
        schema="candles_day",
        rule=RULE,
        windows=windows_for(RULE, train=3, test=2, step=2, lockbox=1),
        params=TreeParams(trees=25, leaves=7, min_rows=20),
        every=5,
        permutations=2,
    )
    return structs.replace(made, **changes)


async def run(
    tmp_path: Path,
    histories: list[Any],
    *,
    earlier: Sequence[Manifest] = (),
    champion: LoadedModel | None = None,
    created_at: int = 0,
    progress: Progress = quiet,
    work: str = "work",
    **changes: Any,
) -> Outcome:
    chosen = options(histories, **changes)
    if not (tmp_path / "dataset").exists():
        write_dataset(tmp_path / "dataset", histories, chosen.schema)
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    try:
        for history in histories:
            await store_history(store, history)
        labels, materials = await label_symbols(store, chosen, tmp_path / "dataset", tmp_path / "work", quiet)
    finally:
        await store.close()
    return train(
        chosen,
        tmp_path / "dataset",
        labels,
        materials,
        EXACT,
        tmp_path / work,
        tmp_path / "models",
        progress,
        created_at,
        champion,
        earlier,
    )


class Page(HTMLParser):
    """The tags of a page, and what it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "line", "circle", "rect", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()


WALK = [random_walk(10 * 1440, seed=at, symbol=name, volatility=1.2e-3) for at, name in enumerate(("AAA", "BBB"))]


async def test_a_random_walk_is_trained_on_and_said_to_be_worth_nothing(tmp_path: Path) -> None:
    outcome = await run(tmp_path, WALK, open_lockbox=True)

    report = json.loads((outcome.path / "report.json").read_text())
    assert report == outcome.report
    assert not report["verdict"]["beats_baselines"]
    assert "does not beat always-flat" in report["verdict"]["text"]
    assert -40 < report["ranked"]["net_bp_per_trade"]["value"] < 12
    area = report["skill"]["direction"]["auc"]
    assert area["low"] < 0.53
    assert area["high"] > 0.47
    assert [test["id"] for test in report["leaks"]] == ["L1", "L13", "L6", "L7", "L11"]
    assert report["lockbox"]["opened"]["trading"]["net_bp_per_day"]["value"] <= 30
    assert sum(symbol["labelled"] for symbol in report["data"]["symbols"]) >= report["data"]["rows"]

    model = load_artefact(outcome.path)
    assert (model.rule, model.manifest.train.symbols) == (RULE, ["AAA", "BBB"])
    assert (outcome.path / "model_long.txt").exists()

    text = (outcome.path / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.fetched == []
    assert not re.search(r"url\(|@import|<script", text)
    assert page.open == []
    assert page.tags.count("svg") >= 5
    for said in ("does not beat always-flat", "Leak tests", "logistic regression", "synthetic", "lock-box", "holes"):
        assert said in text

    # Again from the stages of the work folder, and again from nothing: the same artefact. It is no trial more.
    resumed = await run(tmp_path, WALK, open_lockbox=True, earlier=[model.manifest])
    for stage in (tmp_path / "work").iterdir():
        stage.unlink()
    anew = await run(tmp_path, WALK, open_lockbox=True)
    assert resumed.model_id == anew.model_id == outcome.model_id
    assert resumed.report == anew.report == outcome.report
    assert report["trials"] == model.manifest.trials

    other = structs.replace(model.manifest, seed=2, trials=5)
    after_another = await run(tmp_path, WALK, open_lockbox=True, earlier=[model.manifest, other])
    assert after_another.report["trials"] == report["trials"] + 5


async def test_trained_again_after_its_promotion_a_model_is_already_there(tmp_path: Path) -> None:
    first = await run(tmp_path, WALK, created_at=1)
    champion = load_artefact(first.path)

    again = await run(tmp_path, WALK, created_at=2, champion=champion, earlier=[champion.manifest])
    opened = await run(tmp_path, WALK, created_at=3, champion=champion, earlier=[champion.manifest], open_lockbox=True)

    assert (first.there, again.there) == (False, True)
    assert (again.model_id, again.report) == (first.model_id, first.report)
    assert load_artefact(again.path).manifest == champion.manifest
    assert not opened.there
    assert opened.report["lockbox"]["opened"] is not None
    assert opened.report["trials"] == first.report["trials"]
    assert load_artefact(opened.path).manifest.parent == first.model_id


async def test_a_planted_edge_is_found_calibrated_and_earns(tmp_path: Path) -> None:
    histories = [with_edge(14 * 1440, seed=at, symbol=name) for at, name in enumerate(("AAA", "BBB"))]

    outcome = await run(tmp_path, histories)

    report = outcome.report
    area = report["skill"]["direction"]["auc"]
    assert area["low"] > report["skill"]["direction"]["chance"]["high"]
    assert report["verdict"]["beats_always_flat"], report["verdict"]["text"]
    assert report["trading"]["net_bp_per_trade"]["low"] > 0
    assert report["skill"]["long"]["log_loss_skill"]["value"] > 0
    assert report["importance"][0]["feature"] == "tbi_15"


async def test_without_mark_prices_the_last_price_must_be_asked_for(tmp_path: Path) -> None:
    history = random_walk(9 * 1440, seed=1)
    history = structs.replace(history, mark={name: values[:0] for name, values in history.mark.items()})

    with pytest.raises(NeedsPerson, match="--label-price last"):
        await run(tmp_path, [history])


async def test_too_little_history_says_so(tmp_path: Path) -> None:
    with pytest.raises(NeedsPerson, match="days of rows are too few"):
        await run(tmp_path, [random_walk(3 * 1440, seed=1)])


def without_days(history: Any, first: int, last: int) -> Any:
    """The history with a hole of these days."""
    day = (history.candles["open_time"] - history.candles["open_time"][0]) // DAY
    kept = (day < first) | (day > last)
    tables = {table: getattr(history, table) for table in ("candles", "mark")}
    return structs.replace(
        history, **{name: {column: each[kept] for column, each in table.items()} for name, table in tables.items()}
    )


async def test_labels_are_made_anew_when_what_they_are_made_of_came_in_meanwhile(tmp_path: Path) -> None:
    small = TreeParams(trees=5, leaves=4, min_rows=20)
    later = [WALK[0], structs.replace(WALK[1], mark=without_days(WALK[1], 0, 4).mark)]

    before = await run(tmp_path, later, params=small, permutations=1)
    after = await run(tmp_path, WALK, params=small, permutations=1)
    anew = await run(tmp_path, WALK, params=small, permutations=1, work="other")

    def labelled(outcome: Outcome) -> list[int]:
        return [each["labelled"] for each in outcome.report["data"]["symbols"]]

    assert labelled(before)[1] < labelled(after)[1]
    assert (after.model_id, after.report) == (anew.model_id, anew.report)


class Killed(Exception):
    pass


async def test_a_walk_that_was_broken_off_goes_on_with_the_next_fold(tmp_path: Path) -> None:
    def dying(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("walk forward: model", 1):
            raise Killed

    small = TreeParams(trees=5, leaves=4, min_rows=20)
    with pytest.raises(Killed):
        await run(tmp_path, WALK, progress=dying, params=small, permutations=1)
    [first] = (tmp_path / "work").glob("model.fold*.npz")
    made = first.stat().st_mtime_ns

    whole = await run(tmp_path, WALK, params=small, permutations=1)

    assert first.stat().st_mtime_ns == made
    anew = await run(tmp_path, WALK, params=small, permutations=1, work="other")
    assert (anew.model_id, anew.report) == (whole.model_id, whole.report)


async def test_a_window_that_is_one_hole_is_left_out(tmp_path: Path) -> None:
    small = TreeParams(trees=5, leaves=4, min_rows=20)

    outcome = await run(tmp_path, [without_days(each, 5, 6) for each in WALK], params=small, permutations=1)

    assert len(outcome.report["folds"]) == 2
    assert [each["holes"] for each in outcome.report["data"]["symbols"]] == [2 * 1440, 2 * 1440]


async def test_where_holes_leave_too_few_windows_they_are_named(tmp_path: Path) -> None:
    with pytest.raises(NeedsPerson, match=r"of 2 windows 1 have rows .*perpline gaps"):
        await run(tmp_path, [without_days(each, 5, 8) for each in WALK])


async def test_a_series_that_ends_before_most_others_is_taken_for_delisted(tmp_path: Path) -> None:
    long, short = random_walk(9 * 1440, 1, "AAA"), random_walk(6 * 1440, 2, "BBB")
    also_short = random_walk(6 * 1440, 3, "CCC")

    async def delisted(*histories: Any) -> list[bool]:
        folder = tmp_path / str(len(histories))
        folder.mkdir()
        write_dataset(folder / "dataset", list(histories), "candles_day")
        store = SqliteStore(folder / "perpline.db")
        await store.open()
        for history in histories:
            await store_history(store, history)
        _, materials = await label_symbols(store, options([long]), folder / "dataset", folder / "work", quiet)
        await store.close()
        return [each.delisted for each in materials]

    assert await delisted(long, short) == [False, True]
    assert await delisted(long, short, also_short) == [False, False, False]


def test_an_estimate_of_funding_is_compared_with_what_was_settled() -> None:
    history = random_walk(20 * 60, 1)
    opened = history.candles["open_time"]
    settled = opened[0] + np.array([8, 16]) * 3_600_000
    funding = {
        "funding_time": settled + 7,  # stamped some milliseconds late
        "rate": np.array([0.0001, -0.0002]),
        "interval_hours": np.array([8.0, 8.0]),
        "known_at": settled + 60_007,
    }
    history = structs.replace(history, funding=funding)
    estimates = np.zeros(len(opened), np.float32)
    estimates[8 * 60 - 1] = 0.125  # at T = the settlement: 0.0001 in 8 h, exactly
    estimates[16 * 60 - 1] = 0.05

    assert funding_off(history, opened + 60_000, estimates) == pytest.approx([0.0, 0.3])
    assert funding_off(history, opened[:100], estimates[:100]) == []


def test_a_rule_that_needs_more_than_ten_points_is_warned_about() -> None:
    assert lift_warning(RULE) == ""
    assert "need 14 points more than chance" in lift_warning(LabelRule(0.5, 0.5, 3600, 14))


def test_golden_rows_hold_missing_values_and_extremes() -> None:
    vectors = np.random.default_rng(0).normal(size=(2_000, 5)).astype(np.float32)

    made = golden_rows(vectors, np.random.default_rng(1))

    assert made.shape == (512, 5)
    assert np.isnan(made).all(axis=1).any()
    assert np.nanmax(made) > vectors.max()


@pytest.mark.parametrize(
    ("trades", "low", "net", "logistic", "passed", "good"),
    [
        (100, 5.0, 20.0, 10.0, True, True),
        (100, -5.0, 20.0, 10.0, True, False),
        (10, 5.0, 20.0, 10.0, True, False),
        (100, 5.0, 20.0, 30.0, True, False),
        (100, 5.0, 20.0, 10.0, False, False),
        (0, 0.0, 0.0, -10.0, True, False),
    ],
)
def test_a_model_is_good_when_it_beats_flat_and_logistic_and_leaks_nothing(
    trades: int, low: float, net: float, logistic: float, passed: bool, good: bool
) -> None:
    result = {"trades": trades, "net_bp_per_day": {"value": net, "low": low, "high": 40.0}}
    ranked = {"net_bp_per_trade": {"value": -14.0}}
    beside = {"logistic regression": {"net_bp_per_day": {"value": logistic}}}

    made = judge_verdict(result, ranked, beside, [LeakTest("L1", "", passed, "")])

    assert made["beats_baselines"] is good
    assert ("Leak tests failed: L1" in made["text"]) is not passed
