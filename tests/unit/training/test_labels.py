import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from perpline.domain.exit_rule import (
    OPEN,
    STOP,
    STOP_FIRST,
    TARGET,
    TIMEOUT,
    LabelRule,
    exit_levels,
    exit_reason,
    rounded_levels,
    touched_level,
)
from perpline.domain.fill import entry_fill, exit_fill, funding_paid, gross_return, last_at_level, net_return
from perpline.domain.instrument import Instrument
from perpline.signals.policy import exit_prices
from perpline.training.labels import (
    DELISTING_PENALTY_BP,
    SIDES,
    PricePath,
    independent_symbols,
    label,
    price_grid,
    price_path,
    uniqueness,
    weights,
)
from training import MINUTE, START, from_prices, random_walk

RULE = LabelRule(tp_pct=0.5, sl_pct=0.4, horizon_s=3_600, cost_bp=14.0)
HISTORY = random_walk(3_000, seed=1)


def by_hand(path: PricePath, time: int, side: int, rule: LabelRule) -> tuple[int, int, float, float, float, float]:
    """reason, end, gross, net, worst, best of one trade: the rule's own functions, minute by minute, not compiled."""
    begin = (time - path.start) // MINUTE
    deadline = time + rule.horizon_s * 1000
    target, stop = exit_levels(side, path.first[begin], rule.tp_pct, rule.sl_pct)
    target, stop = rounded_levels(side, target, stop, path.step, path.scale)
    minute, now = begin, time
    while True:
        now += MINUTE
        reason = exit_reason(side, target, stop, path.high[minute], path.low[minute], now, deadline)
        if reason != OPEN:
            break
        minute += 1
    if reason == TIMEOUT:
        raw, paid = path.last[minute], path.funding[min(minute + 1, len(path.funding) - 1)] - path.funding[begin]
    else:
        level = touched_level(side, reason, target, stop, path.first[minute])
        raw, paid = (
            last_at_level(level, path.last[minute], path.close[minute]),
            path.funding[minute] - path.funding[begin],
        )
    bought, sold = entry_fill(side, path.entry[begin], rule.slip_bp), exit_fill(side, raw, rule.slip_bp)
    net = net_return(side, bought, sold, rule.fee_bp, funding_paid(side, paid, bought))
    up = path.high[begin : minute + 1].max() / path.first[begin] - 1
    down = path.low[begin : minute + 1].min() / path.first[begin] - 1
    worst, best = (down, up) if side > 0 else (-up, -down)
    return reason, now, gross_return(side, path.entry[begin], raw), net, worst, best


@pytest.mark.parametrize("price", ["mark", "last"])
def test_labels_are_what_the_live_rule_says_minute_by_minute(price: str) -> None:
    rule = LabelRule(0.5, 0.4, 3_600, 14.0, price=price)  # type: ignore[arg-type]
    history = random_walk(3_000, seed=2)
    history = structs.replace(
        history,
        funding={
            "funding_time": START + np.array([480, 960, 1440]) * MINUTE + 3,
            "rate": np.array([1e-4, -2e-4, 3e-4]),
        },
    )
    path = price_path(history, rule)
    times = START + np.arange(0, 2_900, 7) * MINUTE

    made = label(path, times, rule)

    seen = set()
    for row, time in enumerate(times.tolist()):
        for column, side in enumerate(SIDES):
            reason, end, gross, net, worst, best = by_hand(path, time, side, rule)
            seen.add(reason)
            assert (made.reason[row, column], made.ends[row, column]) == (reason, end)
            assert (made.gross[row, column], made.net[row, column]) == pytest.approx((gross, net), rel=1e-12)
            assert (made.worst[row, column], made.best[row, column]) == pytest.approx((worst, best), rel=1e-5, abs=1e-9)
    assert seen >= {TARGET, STOP, TIMEOUT}


@pytest.mark.parametrize("tick", ["0.5", "0.05", "0.001"])
def test_levels_of_prices_on_a_grid_are_rounded_as_live_rounds_them(tick: str) -> None:
    history = random_walk(3_000, seed=2)
    for name in ("open", "high", "low", "close"):
        ticks = np.rint(history.candles[name] / float(tick)).astype(int).tolist()
        history.candles[name] = np.array([float(Decimal(each) * Decimal(tick)) for each in ticks])
        history.mark[name] = np.round(history.mark[name], 8)
    path = price_path(history, RULE)
    times = START + np.arange(0, 2_900, 7) * MINUTE

    made = label(path, times, RULE)

    assert path.step / path.scale == float(tick)
    moved = 0
    for row, time in enumerate(times.tolist()):
        begin = (time - START) // MINUTE
        for column, side in enumerate(SIDES):
            exact = exit_levels(side, path.first[begin], RULE.tp_pct, RULE.sl_pct)
            levels = rounded_levels(side, *exact, path.step, path.scale)
            live = exit_prices(instrument(tick), side, float(path.first[begin]), RULE)
            assert levels == tuple(map(float, live))
            moved += levels != exact
            reason, end, _, net, *_ = by_hand(path, time, side, RULE)
            assert (made.reason[row, column], made.ends[row, column]) == (reason, end)
            assert made.net[row, column] == pytest.approx(net, rel=1e-12)
    assert moved > len(times)


def instrument(tick: str) -> Instrument:
    one = Decimal(1)
    return Instrument("BTCUSDT", "BTC", "USDT", "PERPETUAL", "TRADING", 0, Decimal(tick), one, one, one)


@given(
    tick=st.sampled_from(["10", "1", "0.5", "0.05", "0.002", "0.0000001"]),
    ticks=st.lists(st.integers(1, 10_000_000), min_size=1, max_size=50),
)
def test_the_tick_is_the_largest_of_which_all_prices_are_multiples(tick: str, ticks: list[int]) -> None:
    prices = [float(Decimal(each) * Decimal(tick)) for each in ticks]

    step, scale = price_grid(np.array([*prices, math.nan]))

    assert Decimal(step) / Decimal(scale) == Decimal(tick) * math.gcd(*ticks)


def test_prices_without_a_grid_have_no_tick_and_levels_stay() -> None:
    path = price_path(HISTORY, RULE)

    assert (path.step, path.scale) == (0.0, 0.0)
    assert price_grid(np.zeros(0)) == price_grid(np.array([math.nan])) == (0.0, 0.0)
    assert rounded_levels(1, 101.3, 99.1, path.step, path.scale) == (101.3, 99.1)


def test_a_minute_that_touches_both_levels_counts_as_stopped() -> None:
    history = random_walk(200, seed=3, volatility=1e-6)
    for table in (history.mark, history.candles):
        table["high"][10], table["low"][10] = 200.0, 50.0

    made = label(price_path(history, RULE), np.array([START + 5 * MINUTE]), RULE)

    assert made.reason.tolist() == [[STOP_FIRST, STOP_FIRST]]
    assert made.ambiguous_share == 1.0


@pytest.mark.parametrize("series", ["mark", "candles"])
def test_a_missing_minute_within_the_horizon_leaves_no_label(series: str) -> None:
    history = random_walk(400, seed=4)
    keep = np.arange(400) != 100
    holed = {name: values[keep] for name, values in getattr(history, series).items()}
    history = structs.replace(history, **{series: holed})

    made = label(price_path(history, RULE), START + np.arange(400) * MINUTE, RULE)

    assert np.flatnonzero(~made.known).tolist() == [*range(41, 101), *range(341, 400)]


def test_a_label_does_not_depend_on_the_rows_beside_it() -> None:
    history = random_walk(9_000, seed=6)
    keep = ~np.isin(np.arange(9_000), (0, 100, 2_500, 5_000, 5_001, 8_999))
    history = structs.replace(history, mark={name: values[keep] for name, values in history.mark.items()})
    path, times = price_path(history, RULE), START + np.arange(-3, 9_003) * MINUTE
    some = np.sort(np.random.default_rng(6).choice(len(times), 300, replace=False))

    together, alone = label(path, times, RULE), label(path, times[some], RULE)

    assert together.known.sum() == 8_941 - (1 + 60 + 60 + 61 + 1)
    for name in ("reason", "net", "gross", "ends", "worst", "best"):
        np.testing.assert_array_equal(getattr(together, name)[some], getattr(alone, name))


def test_times_that_do_not_ascend_are_refused() -> None:
    path = price_path(random_walk(200, seed=7), RULE)

    with pytest.raises(ValueError, match="ascend"):
        label(path, START + np.array([20, 10]) * MINUTE, RULE)


def test_a_delisted_contract_ends_trades_at_its_last_print_with_a_penalty() -> None:
    history = random_walk(100, seed=5, volatility=1e-6)
    times = np.array([START + 80 * MINUTE])

    [[gross, _]] = label(price_path(history, RULE, delisted=True), times, RULE).gross
    [[net, _]] = label(price_path(history, RULE, delisted=True), times, RULE).net

    assert gross - net == pytest.approx((RULE.cost_bp + DELISTING_PENALTY_BP) * 1e-4, rel=1e-3)


def test_who_enters_at_a_settlement_does_not_pay_it_and_who_stays_for_one_does() -> None:
    history = random_walk(300, seed=6, volatility=1e-7)
    path = price_path(history, RULE)
    history = structs.replace(
        history, funding={"funding_time": np.array([START + 120 * MINUTE + 7]), "rate": np.array([0.001])}
    )
    settled = price_path(history, RULE)
    times = START + np.array([59, 60, 119, 120]) * MINUTE

    paid = label(path, times, RULE).net - label(settled, times, RULE).net

    assert paid == pytest.approx(np.array([[0, 0], [0.001, -0.001], [0.001, -0.001], [0, 0]]), abs=1e-6)


def test_the_price_before_the_entry_and_after_the_horizon_does_not_matter() -> None:
    history = random_walk(600, seed=7)
    times = np.array([START + 200 * MINUTE])
    before = label(price_path(history, RULE), times, RULE)
    for table in (history.candles, history.mark):
        for name in ("open", "high", "low", "close"):
            table[name][:200] *= 3
            table[name][260:] *= 5

    after = label(price_path(history, RULE), times, RULE)

    assert (after.net == before.net).all()
    assert (after.ends == before.ends).all()


def test_a_history_without_candles_has_no_labels() -> None:
    made = label(price_path(random_walk(0), RULE), np.array([START]), RULE)

    assert made.known.tolist() == [False]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 30)), min_size=1, max_size=40))
def test_uniqueness_is_the_mean_share_of_each_minute(labels: list[tuple[int, int]]) -> None:
    times = START + np.array([begin for begin, _ in labels]) * MINUTE
    ends = times + np.array([length for _, length in labels]) * MINUTE
    open_at = [sum(begin <= minute < begin + length for begin, length in labels) for minute in range(240)]

    expected = [np.mean([1 / open_at[m] for m in range(begin, begin + length)]) for begin, length in labels]

    assert uniqueness(times, ends) == pytest.approx(np.array(expected))


def test_weights_have_mean_one_halve_with_age_and_do_not_count_symbols() -> None:
    day = 86_400_000
    alone, beside = START + np.arange(10) * MINUTE, START + 90 * day + np.arange(10) * MINUTE
    times = np.concatenate([alone, beside, beside])

    made = weights(times, np.ones(30), START + 90 * day)

    assert made.mean() == pytest.approx(1)
    assert made[0] / (made[10] + made[20]) == pytest.approx(0.5, rel=1e-3)


def test_symbols_that_move_together_count_as_few() -> None:
    rng = np.random.default_rng(8)
    times = START + np.arange(200) * 3_600_000
    market = np.cumsum(rng.normal(size=200)) * 1e-2
    same = [(times, 100 * np.exp(market)) for _ in range(5)]
    apart = [(times, 100 * np.exp(np.cumsum(rng.normal(size=200)) * 1e-2)) for _ in range(5)]

    assert independent_symbols(same) == (pytest.approx(1.0), pytest.approx(1.0))
    assert independent_symbols(apart)[0] > 3.5
    assert independent_symbols(same[:1]) == (1.0, 0.0)


def test_target_and_stop_are_hit_as_often_as_chance_says() -> None:
    """A fine walk without drift: the target first with probability sl / (tp + sl), before any cost."""
    rng = np.random.default_rng(9)
    sigma = np.full(60_000, 3e-4)
    close = 100 * np.exp(np.cumsum(rng.normal(size=60_000) * sigma))
    history = from_prices(np.concatenate([[100.0], close[:-1]]), close, sigma / 10, rng)
    rule = LabelRule(0.4, 0.2, 72_000, 14.0)

    made = label(price_path(history, rule), history.candles["open_time"][::10], rule)

    known = made.reason[made.known]
    assert (known == TARGET).mean() == pytest.approx(rule.random, abs=0.06)
    assert (known == TIMEOUT).mean() < 0.01
