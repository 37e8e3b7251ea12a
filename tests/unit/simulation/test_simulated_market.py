"""The world: the same whoever asks and in whatever order, and shaped like a market."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpline.simulation.exchange import candle_of_trades
from perpline.simulation.market import (
    BUY_VOLUME,
    CLOSE,
    FIRST_ID,
    HIGH,
    HOUR_MS,
    LAST_ID,
    LOW,
    MINUTE_MS,
    OPEN,
    QUOTE,
    TRADES,
    VOLUME,
    World,
)

HOUR = 1_795_392_000_000 // HOUR_MS


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    index=st.integers(0, 11),
    hour=st.integers(HOUR - 9_000, HOUR + 2_000),
    before=st.integers(0, 3),
    after=st.integers(0, 3),
    edge_bp=st.sampled_from([0.0, 2.0]),
)
def test_an_hour_computed_alone_equals_the_same_hour_computed_in_a_sequence(seed, index, hour, before, after, edge_bp):
    alone = World(seed, index + 1, edge_bp).minutes(index, hour * 60, 60)
    longer = World(seed, 12, edge_bp).minutes(index, (hour - before) * 60, (before + 1 + after) * 60)
    together = World(seed, 12, edge_bp).details(range(12), hour)[index].minutes

    assert alone.tolist() == longer[before * 60 : before * 60 + 60].tolist()
    assert alone.tolist() == together.tolist()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**40), index=st.integers(0, 29), hour=st.integers(HOUR - 9_000, HOUR + 2_000))
def test_a_candle_is_exactly_its_trades(seed, index, hour):
    detail = World(seed, 30).detail(index, hour)

    closes = []
    for minute, row in enumerate(detail.minutes.tolist()):
        open_ms = hour * HOUR_MS + minute * MINUTE_MS
        first, last = np.searchsorted(detail.time_ms, [open_ms, open_ms + MINUTE_MS])
        if first == last:
            previous = closes[-1]
            assert row == [previous, previous, previous, previous, 0, 0, 0, 0, 0, -1, -1]
        else:
            assert row == candle_of_trades(detail, int(first), int(last))
        closes.append(row[CLOSE])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**40), index=st.integers(0, 29), hour=st.integers(HOUR - 9_000, HOUR + 2_000))
def test_trades_are_in_order_on_the_grid_and_numbered_without_a_hole_from_hour_to_hour(seed, index, hour):
    world = World(seed, 30)
    own = world.instruments[index]
    first, second = world.detail(index, hour), world.detail(index, hour + 1)
    times = np.concatenate([first.time_ms, second.time_ms])
    first_ids = np.concatenate([first.first_id, second.first_id])
    last_ids = np.concatenate([first.last_id, second.last_id])
    aggregates = np.concatenate([first.aggregate_id, second.aggregate_id])
    prices = np.concatenate([first.price, second.price])
    quantities = np.concatenate([first.quantity, second.quantity])

    assert np.all(np.diff(times) >= 0)
    assert first_ids[1:].tolist() == (last_ids[:-1] + 1).tolist()
    assert np.all(np.diff(aggregates) == 1)
    assert np.all(prices % own.tick_units == 0)
    assert np.all(prices > 0)
    assert np.all(quantities >= last_ids - first_ids + 1)
    assert np.all((first.price == first.bid[_slots(own, first)]) == first.buyer_is_maker)
    assert np.all((first.price == first.ask[_slots(own, first)]) != first.buyer_is_maker)


def _slots(own, detail):
    return (detail.time_ms - detail.hour * HOUR_MS) * own.slots_per_minute // MINUTE_MS


def test_another_seed_is_another_market():
    assert World(1, 2).minutes(0, HOUR * 60, 60).tolist() != World(2, 2).minutes(0, HOUR * 60, 60).tolist()


def test_candles_are_consistent_within_themselves():
    world = World(3, 30)
    for index in (0, 5, 29):
        rows = world.minutes(index, HOUR * 60 - 2_000, 2_000)

        assert np.all(rows[:, LOW] <= np.minimum(rows[:, OPEN], rows[:, CLOSE]))
        assert np.all(rows[:, HIGH] >= np.maximum(rows[:, OPEN], rows[:, CLOSE]))
        assert np.all(rows[:, BUY_VOLUME] <= rows[:, VOLUME])
        assert np.all(rows[:, QUOTE] <= rows[:, HIGH] * rows[:, VOLUME])
        traded = rows[:, TRADES] > 0
        assert np.all(rows[traded, LAST_ID] - rows[traded, FIRST_ID] + 1 == rows[traded, TRADES])


def test_the_busiest_contract_trades_every_minute_and_a_quiet_one_does_not():
    world = World(1, 30)
    busiest, quiet = (world.minutes(index, HOUR * 60 - 3_000, 3_000)[:, TRADES] == 0 for index in (0, 29))

    assert busiest.sum() == 0
    assert 10 <= quiet.sum() <= 200


def test_prices_of_different_contracts_move_together():
    world = World(4, 20)
    returns = [np.diff(np.log(world.minutes(index, HOUR * 60 - 6_000, 6_000)[::15, CLOSE])) for index in (3, 8, 15)]

    correlations = [np.corrcoef(returns[a], returns[b])[0, 1] for a, b in ((0, 1), (0, 2), (1, 2))]

    assert min(correlations) > 0.2
    assert max(correlations) < 0.9


def test_volatility_clusters_and_returns_do_not_predict_each_other():
    world = World(5, 6)
    returns = np.diff(np.log(world.minutes(5, HOUR * 60 - 30_000, 30_000)[:, CLOSE].astype(float)))
    size = np.abs(returns)

    assert np.corrcoef(size[1:], size[:-1])[0, 1] > 0.1
    assert np.corrcoef(size[60:], size[:-60])[0, 1] > 0.03
    assert abs(np.corrcoef(returns[1:], returns[:-1])[0, 1]) < 0.04
    assert np.mean(returns**4) / np.mean(returns**2) ** 2 > 4


def _drift_after_imbalance(edge_bp):
    """Mean move of the next minute in the direction of a taker imbalance beyond 0.2, in bp, with its error."""
    world = World(6, 12, edge_bp)
    moves, shares = [], []
    for index in (2, 5, 8, 11):
        rows = world.minutes(index, HOUR * 60 - 9_000, 9_000)
        signed = np.convolve(2 * rows[:, BUY_VOLUME] - rows[:, VOLUME], np.ones(15), "valid")
        imbalance = signed / np.convolve(rows[:, VOLUME], np.ones(15), "valid")
        direction = np.where(np.abs(imbalance) > 0.2, np.sign(imbalance), 0)[:-1]
        move = np.diff(np.log(rows[14:, CLOSE])) * 1e4
        moves.append((move * direction)[direction != 0])
        shares.append(np.mean(direction != 0))
    every = np.concatenate(moves)
    return every.mean(), every.std() / len(every) ** 0.5, shares


def test_the_planted_edge_is_there_and_its_pattern_is_common():
    mean, error, shares = _drift_after_imbalance(5.0)

    assert 4.0 < mean < 6.0
    assert error < 0.3
    assert all(0.08 < share < 0.35 for share in shares)


def test_without_an_edge_the_pattern_predicts_nothing():
    mean, error, _ = _drift_after_imbalance(0.0)

    assert abs(mean) < 4 * error


def test_mark_minutes_are_the_samples_of_each_second():
    world = World(7, 2)
    detail = world.detail(1, HOUR)
    rows = world.mark_minutes(1, HOUR * 60, 60)
    seconds = np.arange(3600)
    node = seconds // 5
    part = (seconds - node * 5) / 5
    for series, nodes in enumerate((detail.mark, detail.index)):
        samples = (nodes[node] + (nodes[node + 1] - nodes[node]) * part).reshape(60, 60)

        assert rows[:, series, 0].tolist() == samples[:, 0].tolist()
        assert rows[:, series, 1] == pytest.approx(samples.max(axis=1), rel=1e-14)
        assert rows[:, series, 2] == pytest.approx(samples.min(axis=1), rel=1e-14)
        assert rows[:, series, 3] == pytest.approx(samples[:, -1], rel=1e-14)


def test_mark_stays_near_the_price_and_the_premium_around_zero():
    world = World(8, 3)
    rows = world.minutes(2, HOUR * 60 - 6_000, 6_000)
    marks = world.mark_minutes(2, HOUR * 60 - 6_000, 6_000)
    price = rows[:, CLOSE] / 10 ** world.instruments[2].price_decimals

    assert np.abs(marks[:, 0, 3] / price - 1).max() < 0.003
    assert abs(marks[:, 2, 3].mean()) < 5e-4
    assert 5e-5 < marks[:, 2, 3].std() < 1e-3


@pytest.mark.parametrize("edge_bp", [0.0, 3.0])
def test_the_mark_at_a_whole_hour_is_known_without_the_hour(edge_bp):
    world = World(9, 3, edge_bp)
    hours = np.array([HOUR, HOUR + 1, HOUR + 8])

    assert world.marks_at_hours(1, hours).tolist() == [world.detail(1, hour).mark[0] for hour in hours.tolist()]


def test_the_path_goes_on_where_the_hour_ended():
    world = World(10, 4)
    for index in range(4):
        before, after = world.detail(index, HOUR - 1), world.detail(index, HOUR)

        assert after.index[0] == pytest.approx(before.index[-1], rel=1e-9)
        assert after.mark[0] == pytest.approx(before.mark[-1], rel=1e-9)


def test_the_planted_drift_goes_on_where_the_hour_ended():
    world = World(10, 4, edge_bp=4.0)
    for index in range(4):
        for hour in range(HOUR - 5, HOUR):
            before, after = world.detail(index, hour - 1), world.detail(index, hour)

            assert after.index[0] == pytest.approx(before.index[-1], rel=1e-9)


def test_a_long_past_is_there():
    rows = World(11, 1).minutes(0, (HOUR - 24 * 900) * 60, 60)

    assert np.all(rows[:, TRADES] > 0)


@pytest.mark.parametrize("count", [0, 2001])
def test_an_impossible_number_of_contracts_is_refused(count):
    with pytest.raises(ValueError, match="symbols must be between 1 and 2000"):
        World(1, count)


def test_six_hundred_contracts_have_distinct_names_and_usable_grids():
    instruments = World(1, 600).instruments

    assert len({own.symbol for own in instruments}) == 600
    assert [own.symbol for own in instruments[:3]] == ["BTCUSDT", "ETHUSDT", "SOLUSDT"]
    for own in instruments:
        ticks = own.price * 10**own.price_decimals / own.tick_units
        assert ticks > 100, own.symbol


def test_more_than_is_kept_in_memory_can_be_asked_at_once():
    world = World(12, 9, edge_bp=1.0)
    hours = np.array([HOUR - 2_600, HOUR - 1_300, HOUR])

    assert world.marks_at_hours(8, hours).tolist() == [world.detail(8, hour).mark[0] for hour in hours.tolist()]
