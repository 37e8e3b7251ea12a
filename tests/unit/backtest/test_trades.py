"""Trades of the backtest end as the labels say, which are the same rule compiled."""

import math

import numpy as np
import pytest

from perpline.backtest.trades import Trade, follow
from perpline.domain.exit_rule import STOP, STOP_FIRST, TARGET, TIMEOUT, LabelRule
from perpline.training.labels import PricePath, label, price_path
from training import MINUTE, START, random_walk

RULE = LabelRule(tp_pct=0.5, sl_pct=0.4, horizon_s=7200, cost_bp=10.0)
CODES = {"target": TARGET, "stop": STOP, "ambiguous": STOP_FIRST, "timeout": TIMEOUT}


def trade(path: PricePath, side: int, close_time: int, rule: LabelRule = RULE) -> Trade:
    return follow(path, rule, signal_id="x", side=side, close_time=close_time, p=0.6, ev_bp=1.0)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_trade_ends_when_and_where_its_label_says_to_the_last_bit(seed: int) -> None:
    history = random_walk(1_500, seed, volatility=8e-4)
    history.funding["funding_time"] = START + np.array([8, 16]) * 60 * MINUTE
    history.funding["rate"] = np.array([1e-4, -2e-4])
    path = price_path(history, RULE)
    times = START + np.arange(0, 1_380, 7, dtype=np.int64) * MINUTE
    labels = label(path, times, RULE)

    for row, t in enumerate(times.tolist()):
        for column, side in enumerate((1, -1)):
            made = trade(path, side, t)

            assert CODES[made.reason] == labels.reason[row, column]
            assert made.exit_time == labels.ends[row, column]
            assert (made.net, made.gross) == (labels.net[row, column], labels.gross[row, column])
            assert np.float32(made.mae) == labels.worst[row, column]
            assert np.float32(made.mfe) == labels.best[row, column]
    assert set(np.unique(labels.reason)) >= {TARGET, STOP, TIMEOUT}


def test_slippage_is_paid_on_both_sides_and_fees_beyond_it() -> None:
    path = price_path(random_walk(600, 4), RULE)

    made = trade(path, -1, START + 60 * MINUTE)

    entry = float(path.entry[60])
    assert made.entry == entry * (1 - RULE.slip_bp / 1e4)
    fees = 2 * RULE.fee_bp / 1e4
    assert made.net == pytest.approx(-math.log(made.exit / made.entry) - fees, abs=1e-15)
    assert made.net == pytest.approx(made.gross - RULE.cost_bp / 1e4, abs=1e-7)


def test_a_trade_that_history_does_not_see_the_end_of_is_open() -> None:
    calm = LabelRule(tp_pct=50.0, sl_pct=50.0, horizon_s=7200, cost_bp=10.0)
    path = price_path(random_walk(100, 5), calm)

    made = trade(path, 1, START + 50 * MINUTE, calm)
    too_late = trade(path, 1, START + 100 * MINUTE, calm)

    assert (made.reason, made.over, made.exit_time) == ("open", False, START + 100 * MINUTE)
    assert math.isnan(made.net)
    assert (too_late.reason, too_late.exit_time) == ("open", START + 100 * MINUTE)


def test_a_hole_before_the_end_leaves_the_end_unknown_and_one_after_it_does_not_matter() -> None:
    path = price_path(random_walk(600, 6), RULE)
    whole = trade(path, 1, START + 60 * MINUTE)
    end = (whole.exit_time - START) // MINUTE
    path.high[end + 1] = math.nan

    assert trade(path, 1, START + 60 * MINUTE) == whole

    path.high[end - 1] = math.nan
    cut = trade(path, 1, START + 60 * MINUTE)
    assert (cut.reason, cut.over, cut.exit_time) == ("unknown", False, START + (end - 1) * MINUTE)
    path.first[60] = math.nan
    assert trade(path, 1, START + 60 * MINUTE).reason == "unknown"
