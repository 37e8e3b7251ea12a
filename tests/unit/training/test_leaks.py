import numpy as np
import pytest
from msgspec import structs
from numpy.typing import NDArray

from perpline.domain.exit_rule import LabelRule
from perpline.storage.history import SymbolHistory
from perpline.training.evaluate import Scores
from perpline.training.labels import Ints
from perpline.training.leaks import (
    ExactTests,
    FeatureRows,
    LeakTest,
    look_ahead,
    permuted_days,
    perturbed,
    shift_test,
    truncated,
    window,
)
from perpline.training.splits import DAY_MS, LeakError, assert_apart
from training import LOOKBACK, MINUTE, NAMES, START, examples_of, random_walk, simple_rows

RULE = LabelRule(0.5, 0.5, 3_600, 14.0)
Rows = tuple[Ints, NDArray[np.float32]]


def with_metrics(history: SymbolHistory) -> SymbolHistory:
    """Open interest of every five minutes, known two minutes after the period's end."""
    ends = START + np.arange(1, len(history.candles["close"]) // 5) * 5 * MINUTE
    value = np.random.default_rng(1).uniform(900, 1100, len(ends))
    return structs.replace(
        history,
        open_interest={
            "time": ends,
            "open_interest": value,
            "open_interest_value": value * 100,
            "known_at": ends + 120_000,
            "revision": np.zeros(len(ends), np.int64),
        },
    )


def as_of(history: SymbolHistory, times: Ints, known: Ints) -> NDArray[np.float64]:
    at = np.searchsorted(known, times, side="right") - 1
    return np.where(at >= 0, history.open_interest["open_interest"][np.maximum(at, 0)], np.nan)


def honest(history: SymbolHistory, start: int, end: int) -> Rows:
    times, rows = simple_rows(history, start, end)
    joined = as_of(history, times, history.open_interest["known_at"])
    return times, np.column_stack([rows, joined]).astype(np.float32)


def next_bar(history: SymbolHistory, start: int, end: int) -> Rows:
    times, rows = honest(history, start, end)
    close = history.candles["close"]
    moves = np.append(np.log(close[1:] / close[:-1]), np.nan)
    inside = np.isin(history.candles["open_time"] + MINUTE, times)
    return times, np.column_stack([rows, moves[inside]]).astype(np.float32)


def unclosed_hour(history: SymbolHistory, start: int, end: int) -> Rows:
    times, rows = honest(history, start, end)
    opened, close = history.candles["open_time"], history.candles["close"]
    hour_end = np.searchsorted(opened // (60 * MINUTE), (times - 1) // (60 * MINUTE), side="right") - 1
    return times, np.column_stack([rows, close[hour_end]]).astype(np.float32)


def metrics_by_start(history: SymbolHistory, start: int, end: int) -> Rows:
    """Labels of the period's beginning taken for its end, which is what happened to everybody on 2026-06-25."""
    times, rows = honest(history, start, end)
    joined = as_of(history, times, history.open_interest["known_at"] - 5 * MINUTE)
    return times, np.column_stack([rows, joined]).astype(np.float32)


def global_scaler(history: SymbolHistory, start: int, end: int) -> Rows:
    times, rows = honest(history, start, end)
    _, everything = honest(history, 0, 1 << 60)
    mean, deviation = np.nanmean(everything, axis=0), np.nanstd(everything, axis=0)
    return times, ((rows - mean) / deviation).astype(np.float32)


PLANTED = {
    "next bar": (next_bar, "candles", {"leak"}),
    "unclosed 1h": (unclosed_hour, "candles", {"leak"}),
    "metrics +5 min": (metrics_by_start, "open_interest", {"leak"}),
    "global scaler": (global_scaler, "candles", set(NAMES)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_leak_is_found_with_certainty(name: str) -> None:
    rows, table, columns = PLANTED[name]
    history = with_metrics(random_walk(1_500, seed=1))
    names = (*NAMES, "oi", "leak")[: 8 if name == "global scaler" else 9]

    found = look_ahead(
        history, rows, names, START + 700 * MINUTE, np.random.default_rng(0), lookback_min=LOOKBACK
    )  # fmt: skip

    assert found[table] >= columns
    assert found["truncated"] >= columns


def test_a_shuffled_split_is_found_with_certainty() -> None:
    examples = examples_of([random_walk(1_500, seed=2)], RULE)
    test = np.random.default_rng(0).permutation(len(examples)) < len(examples) // 5

    with pytest.raises(LeakError):
        assert_apart(examples.times[~test], examples.ends[~test], examples.times[test], examples.ends[test])


def suite_of(history: SymbolHistory, rows: FeatureRows, names: tuple[str, ...], seed: int) -> list[LeakTest]:
    tests = ExactTests(rows, names, np.random.default_rng(seed), cuts=2, lookback_min=LOOKBACK)
    for cut in tests.instants(history.candles["open_time"]):
        tests.add(window(history, *tests.stretch(cut)), cut)
    return tests.results()


@pytest.mark.parametrize("seed", range(20))
def test_a_clean_pipeline_is_not_accused(seed: int) -> None:
    history = with_metrics(random_walk(1_500, seed=seed))

    made = suite_of(history, honest, (*NAMES, "oi"), seed)

    assert [(test.id, test.passed) for test in made] == [("L1", True), ("L13", True)], made


def test_a_history_too_short_to_test_is_not_called_clean() -> None:
    made = suite_of(random_walk(300), simple_rows, NAMES, 0)

    assert [test.passed for test in made] == [False, False]


@pytest.mark.parametrize("table", ["candles", "mark", "open_interest"])
def test_perturbing_and_truncating_touch_only_what_was_not_known(table: str) -> None:
    history = with_metrics(random_walk(300, seed=3))
    cut = START + 100 * MINUTE

    noise = getattr(perturbed(history, table, cut, np.random.default_rng(0)), table)
    short = getattr(truncated(history, table, cut), table)

    before = getattr(history, table)
    known = {"candles": 100, "mark": 99, "open_interest": 19}[table]
    value = "open_interest" if table == "open_interest" else "close"
    assert len(short[value]) == known
    assert (noise[value][:known] == before[value][:known]).all()
    assert (noise[value][known:] != before[value][known:]).all()


def test_permuted_days_keep_rows_and_deal_their_outcomes() -> None:
    examples = examples_of([random_walk(6 * 1440, seed=4)], RULE)

    dealt = permuted_days(examples, np.random.default_rng(5))

    assert len(dealt) > 0.6 * len(examples)
    assert set(dealt.times) <= set(examples.times)
    moved = [examples.net[np.flatnonzero(examples.times % DAY_MS == time % DAY_MS), 0] for time in dealt.times[:50]]
    assert all(dealt.net[at, 0] in outcomes for at, outcomes in enumerate(moved))


def test_skill_that_is_gone_after_a_minute_is_called_a_leak_and_fading_skill_is_not() -> None:
    examples = examples_of([random_walk(8 * 1440, seed=6, volatility=2e-3)], RULE)
    rows = np.arange(len(examples))
    better = examples.net[:, 0] - examples.net[:, 1]
    rng = np.random.default_rng(7)
    fading = np.convolve(better, np.ones(40) / 40, mode="full")[39:]
    sudden = np.where(rng.random(len(rows)) < 0.2, better, rng.normal(0, 0.005, len(rows)))

    assert shift_test(examples, scores_of(rows, fading)).passed
    assert not shift_test(examples, scores_of(rows, sudden)).passed


def scores_of(rows: Ints, lean: NDArray[np.float64]) -> Scores:
    raw = np.stack([0.5 + lean, 0.5 - lean], axis=1)
    one = np.ones(len(rows))
    return Scores(rows=rows, raw=raw, p=raw, threshold=one, top=one, fold=np.zeros(len(rows), np.int32))
