"""Rows by the thousand are stored once, compared with what is there, and their holes written down."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perpline.collector.bulk import (
    Holes,
    keep_funding,
    keep_klines,
    keep_open_interest,
    keep_ratio,
    overlap,
    runs,
    stored_span,
    stored_symbols,
    without,
)
from perpline.domain.candle import quantised_log
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import Columns

MINUTE, PERIOD, HOUR = 60_000, 300_000, 3_600_000
NOW = 10_000_000_000


@pytest.fixture
async def store(tmp_path: Path) -> SqliteStore:
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    return store


def klines(*minutes: int, close: float = 11.0, flow: bool = True) -> Columns:
    """Candles of these minutes."""
    count = len(minutes)
    columns = {
        "open_time": np.array(minutes, np.int64) * MINUTE,
        **{name: np.full(count, price) for name, price in (("open", 10.0), ("high", 20.0), ("low", 5.0))},
        "close": np.full(count, close),
        "volume": np.full(count, 3.0),
    }
    return columns | ({name: np.full(count, 2.0) for name in FLOW} if flow else {})


FLOW = ("quote_volume", "trades", "taker_buy_volume", "taker_buy_quote_volume")


async def test_rows_are_stored_once_in_whatever_order_and_however_often_they_come(store: SqliteStore) -> None:
    parts = [("BUSDT", klines(3, 1, 2, 1)), ("AUSDT", klines(2, 1))]

    first = await keep_klines(store, "candles_1m", parts, "archive", NOW)
    again = await keep_klines(store, "candles_1m", parts, "archive", NOW)

    assert (first.new, first.duplicates, first.revisions) == (5, 1, 0)
    assert (again.new, again.duplicates, again.revisions) == (0, 6, 0)
    [one, *_] = await store.candles("1m", "BUSDT", MINUTE, 4 * MINUTE)
    assert (one.open_time, one.close_time, one.close, one.trades) == (MINUTE, 2 * MINUTE - 1, 11.0, 2)
    assert (one.source, one.synthetic, one.received_at) == ("archive", False, NOW)
    assert (one.log_open, one.log_close) == (quantised_log(10.0), quantised_log(11.0))
    assert await stored_symbols(store) == ["AUSDT", "BUSDT"]


async def test_what_is_told_differently_is_a_revision_and_the_first_stays(store: SqliteStore) -> None:
    await keep_klines(store, "candles_1m", [("AUSDT", klines(1, 2))], "archive", NOW)

    kept = await keep_klines(store, "candles_1m", [("AUSDT", klines(2, 3, close=12.5))], "rest", NOW + 1)
    twice = await keep_klines(store, "mark_klines", [("AUSDT", joined(klines(1), klines(1, close=9.5)))], "rest", NOW)

    assert (kept.new, kept.duplicates, kept.revisions) == (1, 0, 1)
    assert (twice.new, twice.duplicates, twice.revisions) == (1, 0, 1)
    assert [one.close for one in await store.candles("1m", "AUSDT", 0, NOW)] == [11.0, 11.0, 12.5]
    assert await store.select("SELECT series, time, field, old, new, sources FROM revisions ORDER BY series") == [
        ("candles_1m", 2 * MINUTE, "close", "11.0", "12.5", "archive,rest"),
        ("mark_klines", MINUTE, "close", "11.0", "9.5", "rest,rest"),
    ]


TOLD = "SELECT open_time, close, quote_volume, trades, taker_buy_volume FROM candles_1m ORDER BY open_time"


async def test_what_one_file_does_not_tell_is_stored_as_nothing_until_another_tells_it(store: SqliteStore) -> None:
    await keep_klines(store, "candles_1m", [("AUSDT", klines(1, 2, 3, flow=False))], "archive", NOW)
    before = await store.select(TOLD)

    kept = await keep_klines(store, "candles_1m", [("AUSDT", klines(1, 2, 4))], "archive", NOW)
    again = await keep_klines(store, "candles_1m", [("AUSDT", klines(1, 2, 4))], "archive", NOW)

    assert before == [(n * MINUTE, 11.0, None, None, None) for n in (1, 2, 3)]
    assert (kept.new, kept.duplicates, kept.revisions, kept.completed) == (1, 2, 0, 2)
    assert (again.new, again.duplicates, again.revisions, again.completed) == (0, 3, 0, 0)
    full = [(n * MINUTE, 11.0, 2.0, 2, 2.0) for n in (1, 2)]
    assert await store.select(TOLD) == [*full, (3 * MINUTE, 11.0, None, None, None), (4 * MINUTE, 11.0, 2.0, 2, 2.0)]
    assert await store.select("SELECT * FROM revisions") == []


async def test_a_fuller_candle_of_other_prices_completes_nothing(store: SqliteStore) -> None:
    await keep_klines(store, "candles_1m", [("AUSDT", klines(1, flow=False))], "archive", NOW)

    kept = await keep_klines(store, "candles_1m", [("AUSDT", klines(1, close=12.0))], "archive", NOW)

    assert (kept.revisions, kept.completed) == (1, 0)
    assert await store.select(TOLD) == [(MINUTE, 11.0, None, None, None)]


async def test_of_a_bare_and_a_full_candle_that_come_together_the_fuller_is_stored(store: SqliteStore) -> None:
    bare = klines(1, flow=False) | {name: np.full(1, np.nan) for name in FLOW}

    kept = await keep_klines(store, "candles_1m", [("AUSDT", joined(bare, klines(1)))], "archive", NOW)

    assert (kept.new, kept.duplicates) == (1, 1)
    assert await store.select(TOLD) == [(MINUTE, 11.0, 2.0, 2, 2.0)]


def joined(*parts: Columns) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


async def test_a_five_minute_value_counts_as_known_by_rule_and_its_revision_from_now_on(store: SqliteStore) -> None:
    ends, values = np.array([1, 2]) * PERIOD, np.array([5.0, np.nan])

    first = await keep_open_interest(store, "AUSDT", ends, values, values * 10, NOW)
    same = await keep_open_interest(store, "AUSDT", ends, values, values * 10, NOW + 1)
    later = await keep_open_interest(store, "AUSDT", ends, values + 1, values * 10, NOW + 2)
    back = await keep_open_interest(store, "AUSDT", ends, values, values * 10, NOW + 3)

    assert [(kept.new, kept.duplicates, kept.revisions) for kept in (first, same, later, back)] == [
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (0, 1, 0),
    ]
    query = "SELECT time, open_interest, open_interest_value, kind, known_at, revision FROM open_interest"
    assert await store.select(f"{query} ORDER BY revision") == [
        (PERIOD, 5.0, 50.0, "hist_5m", PERIOD + 120_000, 0),
        (PERIOD, 6.0, 50.0, "hist_5m", NOW + 2, 1),
    ]


async def test_ratios_of_four_digits_and_of_eight_are_the_same(store: SqliteStore) -> None:
    ends = np.array([PERIOD])

    await keep_ratio(store, "AUSDT", "taker", ends, np.array([1.8106]), NOW, ([3.5], [1.5]))
    same = await keep_ratio(store, "AUSDT", "taker", ends, np.array([1.81057344]), NOW)
    other = await keep_ratio(store, "AUSDT", "taker", ends, np.array([1.82]), NOW)
    unsided = await keep_ratio(store, "AUSDT", "top_account", ends, np.array([1.82]), NOW)

    assert (same.duplicates, other.revisions, unsided.new) == (1, 1, 1)
    query = "SELECT ratio, value, long, short, known_at, first_seen_at, revision FROM long_short_ratio"
    assert await store.select(f"{query} ORDER BY ratio, revision") == [
        ("taker", 1.8106, 3.5, 1.5, PERIOD + 120_000, NOW, 0),
        ("taker", 1.82, None, None, NOW, NOW, 1),
        ("top_account", 1.82, None, None, PERIOD + 120_000, NOW, 0),
    ]


async def test_a_settlement_is_one_an_hour_whatever_its_milliseconds(store: SqliteStore) -> None:
    def settled(at: int, rate: float, hours: float) -> Columns:
        return {"funding_time": np.array([at]), "rate": np.array([rate]), "interval_hours": np.array([hours])}

    eight = 8 * HOUR
    told = ((eight, 1e-4, 8), (eight + 5, 1e-4, 8), (eight + 5, 2e-4, 8), (9 * HOUR, 1e-4, np.nan))
    kept = [await keep_funding(store, "AUSDT", settled(at, rate, hours), "archive", NOW) for at, rate, hours in told]

    assert [(one.new, one.duplicates, one.revisions) for one in kept] == [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0)]
    assert await store.select("SELECT funding_time, rate, interval_hours, known_at FROM funding_rates") == [
        (8 * HOUR, 1e-4, 8, 8 * HOUR + 60_000),
        (9 * HOUR, 1e-4, None, 9 * HOUR + 60_000),
    ]
    assert await store.select("SELECT series, time, old, new FROM revisions") == [
        ("funding_rates", 8 * HOUR, "0.0001", "0.0002")
    ]


# Holes


async def test_a_hole_is_a_row_and_what_fills_it_closes_it_in_whole_or_in_part(store: SqliteStore) -> None:
    async def arrive(*minutes: int) -> list[tuple[int, int]]:
        await keep_klines(store, "candles_1m", [("AUSDT", klines(*minutes))], "archive", NOW)
        holes = Holes(store, await store.gaps())
        span = await stored_span(store, "AUSDT", "candles_1m", min(minutes) * MINUTE, max(minutes) * MINUTE)
        assert span is not None
        left = await holes.settle("AUSDT", "candles_1m", *span, "not in the files", "archive", NOW)
        return [(start // MINUTE, end // MINUTE) for start, end in left]

    async def rows() -> list[tuple[int, int, str | None]]:
        return [(gap.from_time // MINUTE, gap.to_time // MINUTE, gap.repaired_by) for gap in await store.gaps()]

    assert await arrive(1, 2, 10) == [(3, 10)]
    assert await rows() == [(3, 10, None)]
    assert await arrive(5, 6) == [(3, 5), (7, 10)]
    assert await rows() == [(3, 10, "archive"), (3, 5, None), (7, 10, None)]
    assert await arrive(3, 4) == [], "what lies further off was not looked at"
    assert await arrive(7, 8, 9) == []
    assert [by for *_, by in await rows()] == ["archive", "archive", "archive"]
    assert await arrive(20) == [(11, 20)], "the span reaches back to the last row before"


async def test_what_the_exchange_lacks_is_no_hole_any_more(store: SqliteStore) -> None:
    await keep_klines(store, "mark_klines", [("AUSDT", klines(1, 5))], "archive", NOW)
    holes = Holes(store, [])
    span = (MINUTE, 6 * MINUTE)

    await holes.settle("AUSDT", "mark_klines", *span, "not in the files", "archive", NOW)
    await holes.absent("AUSDT", "mark_klines", [(2 * MINUTE, 4 * MINUTE)], NOW)

    assert await holes.missing("AUSDT", "mark_klines", *span) == [(4 * MINUTE, 5 * MINUTE)]
    left = await Holes(store, await store.gaps()).settle("AUSDT", "mark_klines", *span, "again", "rest", NOW)
    assert left == [(4 * MINUTE, 5 * MINUTE)]
    assert [(gap.from_time // MINUTE, gap.to_time // MINUTE, gap.repaired_by) for gap in await store.gaps()] == [
        (2, 5, "absent"),
        (2, 4, "absent"),
        (4, 5, None),
    ]


spans = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 6)).map(lambda one: (one[0], one[0] + one[1])), max_size=6
)


def points(some: list[tuple[int, int]]) -> set[int]:
    return {n for start, end in some for n in range(start, end)}


@given(spans, spans)
def test_spans_are_sets_of_points(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    assert points(without(one, other)) == points(one) - points(other)
    assert points(overlap(one, other)) == points(one) & points(other)


@given(st.sets(st.integers(0, 40)), st.integers(0, 20), st.integers(0, 20))
def test_runs_are_what_is_not_there(times: set[int], start: int, length: int) -> None:
    inside = sorted(n for n in times if start <= n < start + length)

    found = runs(np.array(inside, np.int64) * MINUTE, start * MINUTE, (start + length) * MINUTE, MINUTE)

    assert points([(a // MINUTE, b // MINUTE) for a, b in found]) == set(range(start, start + length)) - times
