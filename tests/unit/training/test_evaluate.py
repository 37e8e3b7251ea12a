import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from numpy.typing import NDArray

from perpline.domain.exit_rule import LabelRule
from perpline.training.baselines import RANDOM_DRAWS, random_entries, simple
from perpline.training.evaluate import (
    BREAKS,
    Scores,
    auc,
    between_breaks,
    chance_band,
    days_of,
    eras,
    exposure,
    overfitting,
    sharpe,
    sides,
    skill,
    take,
    trading,
)
from perpline.training.splits import DAY_MS
from training import MINUTE, examples_of, random_walk

RULE = LabelRule(0.5, 0.5, 3_600, 14.0)
EXAMPLES = examples_of([random_walk(8 * 1440, seed=at, symbol=name) for at, name in enumerate(("AAA", "BBB"))], RULE)
ROWS = np.arange(len(EXAMPLES))
DAYS = days_of(EXAMPLES.times, RULE, np.random.default_rng(0))


def scores(p: NDArray[np.float64], threshold: float = 0.6) -> Scores:
    level = np.full(len(p), threshold)
    return Scores(rows=ROWS, raw=p, p=p, threshold=level, top=level, fold=np.zeros(len(p), np.int32))


def knowing(share: float, seed: int = 0) -> NDArray[np.float64]:
    """Probabilities that know the outcome for a share of the rows and guess for the rest."""
    rng = np.random.default_rng(seed)
    knows = rng.random((len(ROWS), 2)) < share
    return np.where(knows, np.where(EXAMPLES.won, 0.7, 0.3), rng.uniform(0.3, 0.7, (len(ROWS), 2)))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=30))
def test_auc_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[bool, int]]) -> None:
    wins, losses = [score for won, score in rows if won], [score for won, score in rows if not won]
    pairs = [(win > loss) + (win == loss) / 2 for win in wins for loss in losses]

    area = auc(np.array([won for won, _ in rows]), np.array([float(score) for _, score in rows]))

    assert area == pytest.approx(np.mean(pairs)) if pairs else math.isnan(area)


def test_every_day_is_drawn_as_often_as_any_other() -> None:
    assert DAYS.count == 9 or DAYS.count == 8
    assert (DAYS.drawn.sum(axis=1) == DAYS.count).all()
    assert DAYS.drawn.mean(axis=0) == pytest.approx(np.ones(DAYS.count), abs=0.15)


def test_scores_that_know_nothing_have_no_skill_and_their_interval_holds_one_half() -> None:
    rng = np.random.default_rng(1)

    made = skill(EXAMPLES, scores(rng.uniform(0.4, 0.6, (len(ROWS), 2))), DAYS, rng)

    area = made["direction"]["auc"]
    assert area["low"] < 0.5 < area["high"]
    assert made["long"]["log_loss_skill"]["value"] < 0
    assert made["direction"]["chance"]["low"] <= area["value"] <= made["direction"]["chance"]["high"]


def test_scores_that_know_are_seen_to_know() -> None:
    made = skill(EXAMPLES, scores(knowing(0.5)), DAYS, np.random.default_rng(2))

    for head in ("long", "short"):
        assert made[head]["auc"]["low"] > 0.7
        assert made[head]["auc"]["value"] == pytest.approx(
            auc(EXAMPLES.won[:, 0 if head == "long" else 1], knowing(0.5)[:, 0 if head == "long" else 1])
        )
    assert made["direction"]["auc"]["low"] > made["direction"]["chance"]["high"]


def test_the_calibration_table_tells_what_happened_in_each_bin() -> None:
    table = skill(EXAMPLES, scores(knowing(0.5)), DAYS, np.random.default_rng(3))["long"]["calibration"]

    assert sum(row["rows"] for row in table["bins"]) == len(ROWS)
    shares = [row["observed"]["value"] for row in table["bins"]]
    assert shares[0] < 0.2
    assert shares[-1] > 0.8


def test_trades_of_a_symbol_never_overlap_and_none_is_missed() -> None:
    trades = take(EXAMPLES, ROWS, np.zeros(len(ROWS), np.int8))

    for symbol in (0, 1):
        mine = trades.symbol == symbol
        assert (trades.begin[mine][1:] >= trades.end[mine][:-1]).all()
        assert (trades.begin[mine][1:] - trades.end[mine][:-1] == 0).mean() > 0.99


def test_the_better_side_is_taken_where_it_reaches_the_threshold() -> None:
    p = np.array([[0.7, 0.2], [0.2, 0.7], [0.5, 0.59], [0.6, 0.1]])

    assert sides(p, np.full(4, 0.6)).tolist() == [0, 1, -1, 0]


def test_random_trades_lose_their_costs_and_costs_scale() -> None:
    rng = np.random.default_rng(4)
    trades = take(EXAMPLES, ROWS, rng.integers(0, 2, len(ROWS)).astype(np.int8))

    made = trading(EXAMPLES, trades, DAYS)

    cost = made["gross_bp_per_trade"]["value"] - made["net_bp_per_trade"]["value"]
    assert cost == pytest.approx(14, abs=0.2)
    assert made["net_bp_per_day_by_cost"]["1.0"] == pytest.approx(made["net_bp_per_day"]["value"])
    by_cost = list(made["net_bp_per_day_by_cost"].values())
    assert by_cost == sorted(by_cost, reverse=True)
    assert made["total_net_bp"] == pytest.approx(sum(made["daily_net_bp"]))
    assert made["max_drawdown_bp"] > 0
    assert 0.9 < made["exposure"] <= 1


def test_no_trades_are_flat() -> None:
    made = trading(EXAMPLES, take(EXAMPLES, ROWS, np.full(len(ROWS), -1, np.int8)), DAYS)

    assert (made["trades"], made["net_bp_per_day"]) == (0, {"value": 0.0, "low": 0.0, "high": 0.0})
    assert made["sharpe_yearly"] is None


def test_more_trials_deflate_a_sharpe_ratio() -> None:
    rng = np.random.default_rng(5)
    daily = rng.normal(0.1, 1, 400)
    few, many = (sharpe(daily, rng.normal(0, 0.05, trials).tolist())["dsr"] for trials in (2, 500))

    assert few is not None
    assert many is not None
    assert sharpe(daily)["psr"] > few > many  # type: ignore[operator]


def test_worthless_trials_overfit_half_of_the_time_and_a_good_one_does_not() -> None:
    rng = np.random.default_rng(6)
    noise = rng.normal(size=(200, 20))
    good = noise.copy()
    good[:, 3] += 0.5

    assert overfitting(good) == 0.0
    assert 0.15 < overfitting(noise) < 0.85  # type: ignore[operator]
    assert overfitting(noise[:, :1]) is None


def test_chance_is_where_outcomes_of_other_days_lead() -> None:
    rng = np.random.default_rng(7)
    band = chance_band(EXAMPLES, ROWS, EXAMPLES.won[:, 0], rng.random(len(ROWS)), rng)

    assert band is not None
    assert band["low"] < 0.5 < band["high"]
    assert chance_band(EXAMPLES, ROWS[:1000], EXAMPLES.won[:1000, 0], rng.random(1000), rng) is None


def test_eras_add_up_and_exposure_names_the_feature_that_is_followed() -> None:
    follow = EXAMPLES.column("zret_60")
    assert follow is not None
    lean = np.nan_to_num(follow.astype(np.float64)) / 100
    made = scores(np.stack([0.5 + lean, 0.5 - lean], axis=1), threshold=0.5)
    trades = take(EXAMPLES, ROWS, sides(made.p, made.threshold))

    table = eras(EXAMPLES, made, trades)
    named = exposure(EXAMPLES, made, np.random.default_rng(8))

    assert sum(week["trades"] for week in table["weeks"]) == len(trades)
    assert named["largest"][0]["feature"] == "zret_60"
    assert named["largest"][0]["correlation"] > 0.99


def test_simple_rules_take_the_sides_they_are_named_for() -> None:
    made = simple(EXAMPLES, ROWS, int(EXAMPLES.times.min()) + DAY_MS)
    trend = EXAMPLES.column("zret_60")
    assert trend is not None

    assert set(made) == {"always flat", "always long", "always short", "momentum (zret_60)", "reversal (zret_60)"}
    assert (made["momentum (zret_60)"][trend > 0] == 0).all()
    assert (made["reversal (zret_60)"][trend > 0] == 1).all()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_random_entries_lose_the_costs(seed: int) -> None:
    trades = take(EXAMPLES, ROWS, np.where(ROWS % 97 == 0, 0, -1).astype(np.int8))

    made = random_entries(EXAMPLES, ROWS, trades, np.random.default_rng(seed))

    assert made is not None
    assert made["low"] < made["net_bp_per_trade"] < made["high"]
    assert made["net_bp_per_trade"] == pytest.approx(EXAMPLES.net[:, 0].mean() * 1e4, abs=3)
    assert 1 / (RANDOM_DRAWS + 1) <= made["p_value"] <= 1


def test_examples_are_what_live_would_have_asked_about() -> None:
    column = EXAMPLES.column("zret_60")

    assert column is not None
    assert np.isfinite(column).all()
    assert (EXAMPLES.ends - EXAMPLES.times <= 60 * MINUTE).all()
    kept = EXAMPLES.thinned(np.ones(len(ROWS), np.bool_), 10, np.random.default_rng(0))
    assert kept.sum() == pytest.approx(len(ROWS) / 10, abs=2)
    assert (EXAMPLES.features(kept)[:, 2] == column[kept]).all()


def test_results_are_told_apart_where_the_exchange_changed_its_numbers() -> None:
    middle = int(np.median(EXAMPLES.times))
    moved = structs.replace(EXAMPLES, times=EXAMPLES.times - middle + BREAKS[2][0])
    told = scores(knowing(0.2))
    trades = take(moved, ROWS, sides(told.p, told.threshold))

    before, after = between_breaks(moved, told, trades)

    assert (before["since"], before["until"]) == ("2026-01-02", "2026-06-25")
    assert (after["since"], after["until"]) == ("2026-06-25", None)
    assert before["rows"] == (moved.times < BREAKS[2][0]).sum()
    assert before["rows"] + after["rows"] == len(ROWS)
    assert before["trades"] + after["trades"] == len(trades)
    assert before["net_bp"] + after["net_bp"] == pytest.approx(trades.net.sum() * 1e4)
    assert between_breaks(EXAMPLES, told, trades) == []
