import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from perpline.domain.exit_rule import (
    OPEN,
    STOP,
    STOP_FIRST,
    TARGET,
    TIMEOUT,
    LabelRule,
    better_mark,
    break_even_stop,
    exit_levels,
    exit_reason,
    label_hash,
    touched_level,
    trailed_stop,
)
from perpline.domain.fill import (
    entry_fill,
    exit_fill,
    funding_paid,
    gross_return,
    isolated_liquidation,
    last_at_level,
    net_return,
)

RULE = LabelRule(tp_pct=1.0, sl_pct=1.0, horizon_s=14_400, cost_bp=14.0)


def test_the_label_hash_changes_with_every_field_of_the_rule() -> None:
    others = [structs.replace(RULE, price="last")]
    others += [structs.replace(RULE, **{name: 2}) for name in ("tp_pct", "sl_pct", "horizon_s", "cost_bp")]

    assert label_hash(LabelRule(1.0, 1.0, 14_400, 14.0)) == label_hash(RULE)
    assert len({label_hash(each) for each in [RULE, *others]}) == 6


@pytest.mark.parametrize(
    ("tp", "sl", "cost", "random", "lift"),
    [(0.3, 0.3, 14, 0.5, 0.233), (1, 1, 14, 0.5, 0.07), (1, 0.5, 14, 0.333, 0.093), (2, 1, 14, 0.333, 0.047)],
)
def test_the_needed_lift_is_that_of_the_table(tp: float, sl: float, cost: float, random: float, lift: float) -> None:
    rule = LabelRule(tp, sl, 14_400, cost)

    assert (rule.random, rule.lift_needed) == (pytest.approx(random, abs=1e-3), pytest.approx(lift, abs=1e-3))


@given(st.floats(0, 100))
def test_fees_and_slippage_of_both_sides_make_up_the_cost(cost_bp: float) -> None:
    rule = structs.replace(RULE, cost_bp=cost_bp)

    assert 2 * (rule.slip_bp + rule.fee_bp) == pytest.approx(cost_bp)
    assert 0 <= rule.slip_bp <= 2


def test_levels_lie_on_the_side_where_the_position_wins_and_loses() -> None:
    assert exit_levels(1, 200.0, 1.0, 0.5) == (202.0, 199.0)
    assert exit_levels(-1, 200.0, 1.0, 0.5) == pytest.approx((198.0, 201.0))


@pytest.mark.parametrize(
    ("side", "high", "low", "reason"),
    [
        (1, 101.0, 99.5, TARGET),  # to reach a level is to touch it
        (1, 100.5, 99.0, STOP),
        (1, 101.0, 99.0, STOP_FIRST),
        (1, 100.9, 99.1, OPEN),
        (-1, 100.5, 99.0, TARGET),
        (-1, 101.0, 99.5, STOP),
        (-1, 101.0, 99.0, STOP_FIRST),
    ],
)
def test_the_first_touch_decides(side: int, high: float, low: float, reason: int) -> None:
    target, stop = exit_levels(side, 100.0, 1.0, 1.0)

    assert exit_reason(side, target, stop, high, low, 60_000, 120_000) == reason


def test_time_ends_what_no_level_did_and_a_touch_in_the_last_minute_counts() -> None:
    assert exit_reason(1, 101.0, 99.0, 100.1, 99.9, 119_999, 120_000) == OPEN
    assert exit_reason(1, 101.0, 99.0, 100.1, 99.9, 120_000, 120_000) == TIMEOUT
    assert exit_reason(1, 101.0, 99.0, 101.0, 99.9, 120_000, 120_000) == TARGET


def test_a_stop_that_was_jumped_over_fills_where_the_minute_began() -> None:
    assert touched_level(1, STOP, 101.0, 99.0, 98.0) == 98.0
    assert touched_level(-1, STOP, 99.0, 101.0, 102.5) == 102.5
    assert touched_level(1, STOP_FIRST, 101.0, 99.0, 100.0) == 99.0
    assert touched_level(1, TARGET, 101.0, 99.0, 103.0) == 101.0


@given(st.sampled_from([1, -1]), st.lists(st.floats(90, 110), min_size=1, max_size=20))
def test_ticks_one_by_one_and_their_minute_agree_unless_it_is_ambiguous(side: int, ticks: list[float]) -> None:
    target, stop = exit_levels(side, 100.0, 3.0, 2.0)

    at_once = exit_reason(side, target, stop, max(ticks), min(ticks), 0, 1)
    one_by_one = next(
        (reason for tick in ticks if (reason := exit_reason(side, target, stop, tick, tick, 0, 1)) != OPEN), OPEN
    )

    assert at_once == one_by_one or (at_once == STOP_FIRST and one_by_one in (TARGET, STOP))


def test_a_round_trip_at_one_price_costs_what_the_rule_says() -> None:
    bought, sold = entry_fill(1, 100.0, RULE.slip_bp), exit_fill(1, 100.0, RULE.slip_bp)

    assert net_return(1, bought, sold, RULE.fee_bp, 0.0) == pytest.approx(-14e-4, rel=1e-3)


@given(st.sampled_from([1, -1]), st.floats(50, 150), st.floats(50, 150), st.floats(0, 10))
def test_costs_never_help(side: int, entry: float, exit: float, slip_bp: float) -> None:
    net = net_return(side, entry_fill(side, entry, slip_bp), exit_fill(side, exit, slip_bp), 5.0, 0.0)

    assert net < gross_return(side, entry, exit)


def test_a_long_pays_positive_funding_and_a_short_gets_it() -> None:
    assert funding_paid(1, 0.0001 * 102.0, 100.0) == pytest.approx(1.02e-4)
    assert funding_paid(-1, 0.0001 * 102.0, 100.0) == pytest.approx(-1.02e-4)


def test_an_order_fills_beside_its_level_by_the_distance_of_last_and_mark() -> None:
    assert last_at_level(99.0, 100.2, 100.0) == pytest.approx(99.0 * 1.002)
    assert math.isclose(gross_return(-1, 100.0, 99.0), math.log(100 / 99))


@given(st.sampled_from([1, -1]), st.lists(st.floats(50, 200), min_size=1, max_size=30), st.floats(0.1, 20))
def test_a_trailing_stop_only_ever_comes_nearer_and_stays_its_distance_behind_the_best(
    side: int, marks: list[float], trailing_pct: float
) -> None:
    best = marks[0]
    stop = best * (1 - side * 0.5)
    for mark in marks:
        best = better_mark(side, best, mark)
        moved = trailed_stop(side, stop, best, trailing_pct)
        assert side * (moved - stop) >= 0
        stop = moved

    assert best == (max(marks) if side > 0 else min(marks))
    assert stop == pytest.approx(better_mark(side, marks[0] * (1 - side * 0.5), best * (1 - side * trailing_pct / 100)))


def test_a_stop_that_does_not_follow_stays() -> None:
    assert trailed_stop(1, 99.0, 150.0, 0.0) == 99.0


@pytest.mark.parametrize(
    ("side", "best", "stop"),
    [(1, 100.9, 99.0), (1, 101.0, 100.0), (-1, 99.1, 101.0), (-1, 99.0, 100.0)],
)
def test_a_stop_moves_to_break_even_at_the_profit_that_was_asked_for(side: int, best: float, stop: float) -> None:
    before = 100.0 - side

    assert break_even_stop(side, before, 100.0, best, 1.0) == stop
    assert break_even_stop(side, before, 100.0, best, 0.0) == before


def test_a_stop_beyond_the_entry_is_not_taken_back_to_it() -> None:
    assert break_even_stop(1, 100.5, 100.0, 102.0, 1.0) == 100.5


@pytest.mark.parametrize(
    ("side", "leverage", "expected"),
    [(1, 3, 1367.521), (-1, 3, 2601.626), (1, 1, 0.0), (1, 20, 1948.718), (-1, 20, 2048.780)],
)
def test_an_isolated_position_is_liquidated_where_its_margin_is_down_to_the_maintenance(
    side: int, leverage: int, expected: float
) -> None:
    level = isolated_liquidation(side, 2000.0, leverage, 2.5)

    assert level == pytest.approx(expected, abs=1e-3)
    if level:
        left = 2000.0 / leverage + side * (level - 2000.0)
        assert left == pytest.approx(level * 0.025)
