"""What the exchange says at a given time: candles of every interval, book, marks, five-minute series."""

from decimal import Decimal

import pytest

from perpline.simulation.exchange import DAY_MS, INTERVALS, PERIOD_SERIES, Exchange, next_open, open_of
from perpline.simulation.market import HOUR_MS, MINUTE_MS, World

NOW = 1_795_400_000_000
"""2026-11-23 04:53:20 UTC."""


@pytest.fixture(scope="module")
def exchange():
    return Exchange(World(1, 24))


def _joined(rows):
    return [
        rows[0][1],
        str(max(Decimal(row[2]) for row in rows)),
        str(min(Decimal(row[3]) for row in rows)),
        rows[-1][4],
        *(str(sum(Decimal(row[column]) for row in rows)) for column in (5, 7)),
        sum(row[8] for row in rows),
        *(str(sum(Decimal(row[column]) for row in rows)) for column in (9, 10)),
    ]


@pytest.mark.parametrize("interval", ["3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d"])
@pytest.mark.parametrize("index", [0, 22])
def test_longer_candles_are_their_minutes(exchange, interval, index):
    for row in exchange.klines(index, interval, None, None, 4, NOW):
        minutes = exchange.klines(index, "1m", row[0], row[6], 1500, NOW)

        assert _joined(minutes) == [row[1], row[2], row[3], row[4], row[5], row[7], row[8], row[9], row[10]]
        assert row[6] == next_open(interval, row[0]) - 1


@pytest.mark.parametrize("interval", INTERVALS)
def test_every_interval_answers_and_ends_with_the_open_candle(exchange, interval):
    rows = exchange.klines(3, interval, None, None, 2, NOW)

    assert len(rows) == 2
    assert rows[0][6] + 1 == rows[1][0]
    assert rows[1][0] <= NOW <= rows[1][6]


def test_the_open_candle_grows_and_the_closed_one_stays(exchange):
    minute = NOW // MINUTE_MS * MINUTE_MS
    volumes = [
        Decimal(exchange.klines(0, "1m", minute, None, 1, minute + after)[0][5]) for after in (5_000, 30_000, 59_999)
    ]
    closed = exchange.klines(0, "1m", minute, None, 1, minute + 60_000)
    later = exchange.klines(0, "1m", minute, minute, 1, minute + 3 * HOUR_MS)

    assert volumes[0] < volumes[1] < volumes[2] == Decimal(closed[0][5])
    assert closed == later


def test_the_truth_holds_closed_candles_only(exchange):
    hour = NOW // HOUR_MS * HOUR_MS

    rows = exchange.closed_candles(1, "15m", hour - HOUR_MS, hour + 2 * HOUR_MS, NOW)

    assert [row[0] for row in rows] == list(range(hour - HOUR_MS, NOW - 15 * MINUTE_MS, 15 * MINUTE_MS))


def test_windows_of_klines_begin_and_end_as_asked(exchange):
    start = NOW // MINUTE_MS * MINUTE_MS - 10 * MINUTE_MS

    def opens(start_ms, end_ms, limit):
        return [(row[0] - start) // MINUTE_MS for row in exchange.klines(2, "1m", start_ms, end_ms, limit, NOW)]

    assert opens(start, None, 3) == [0, 1, 2]
    assert opens(start + 1, None, 3) == [1, 2, 3]
    assert opens(None, start, 3) == [-2, -1, 0]
    assert opens(start, start + 2 * MINUTE_MS, 500) == [0, 1, 2]
    assert opens(start, start + 2 * MINUTE_MS - 1, 500) == [0, 1]
    assert opens(NOW + MINUTE_MS, None, 5) == []
    assert opens(start, start - 1, 5) == []
    assert opens(None, None, 2) == [9, 10]


def test_weeks_start_on_monday_and_months_on_the_first():
    assert open_of("1w", NOW) == 1_795_392_000_000
    assert open_of("1M", NOW) == 1_793_491_200_000
    assert next_open("1M", 1_793_491_200_000) == 1_796_083_200_000


def test_the_book_moves_forward_and_never_crosses(exchange):
    last = 0
    for step in range(400):
        book = exchange.book(0, NOW + 7 * step)

        assert book.bid < book.ask
        assert book.time_ms <= NOW + 7 * step
        assert book.update_id >= last
        last = book.update_id


def test_the_depth_is_ordered_and_starts_with_the_book(exchange):
    book, bids, asks = exchange.depth(4, 100, NOW)

    assert len(bids) == len(asks) == 100
    assert bids[0] == (book.bid, book.bid_quantity)
    assert asks[0] == (book.ask, book.ask_quantity)
    assert bids == sorted(bids, reverse=True)
    assert asks == sorted(asks)


def test_mark_klines_are_the_marks_of_each_second_also_while_the_minute_runs(exchange):
    minute = NOW // MINUTE_MS * MINUTE_MS
    now_ms = minute + 17_400
    samples = [exchange.mark(2, minute + second * 1000).mark for second in range(18)]

    row = exchange.price_klines(2, 0, "1m", minute, None, 1, now_ms)[0]

    assert row[1:5] == [f"{value:.8f}" for value in (samples[0], max(samples), min(samples), samples[-1])]
    assert row[8] == 18
    assert row[5] == row[7] == row[9] == row[10] == row[11] == "0"


@pytest.mark.parametrize("series", PERIOD_SERIES)
def test_a_five_minute_row_appears_ten_to_sixty_seconds_after_its_period(exchange, series):
    end = NOW // 300_000 * 300_000

    appears = exchange.publication_ms(series, 0, end)

    assert end + 10_000 <= appears < end + 60_000
    assert exchange.period_rows(series, 0, "5m", None, None, 1, appears - 1)[0]["timestamp"] == end - 300_000
    assert exchange.period_rows(series, 0, "5m", None, None, 1, appears)[0]["timestamp"] == end


def test_the_taker_ratio_is_that_of_five_minutes(exchange):
    row = exchange.period_rows("takerlongshortRatio", 5, "5m", None, None, 1, NOW)[0]
    minutes = exchange.klines(5, "1m", row["timestamp"] - 300_000, row["timestamp"] - 1, 10, NOW)
    bought = sum(Decimal(minute[9]) for minute in minutes)
    sold = sum(Decimal(minute[5]) for minute in minutes) - bought

    assert len(minutes) == 5
    assert Decimal(row["buyVol"]) == bought
    assert Decimal(row["sellVol"]) == sold
    assert row["buySellRatio"] == f"{bought / sold:.4f}"


def test_open_interest_history_is_a_snapshot_at_its_label(exchange):
    row = exchange.period_rows("openInterestHist", 1, "5m", None, None, 1, NOW)[0]
    price = float(row["sumOpenInterestValue"]) / float(row["sumOpenInterest"])

    assert price == pytest.approx(exchange.mark(1, row["timestamp"]).mark, rel=1e-6)


def test_funding_settles_at_the_hours_of_each_contract(exchange):
    intervals = {exchange.instruments[index].funding_interval_hours for index in range(24)}
    for index in range(24):
        every = exchange.instruments[index].funding_interval_hours * HOUR_MS
        rows = exchange.funding(index, NOW - 2 * DAY_MS, NOW, 1000, latest=False)

        assert len(rows) == 2 * DAY_MS // every
        assert all(row["fundingTime"] % every < 20 for row in rows)
    assert intervals == {1, 4, 8}


def test_the_next_funding_time_flips_at_the_funding_time(exchange):
    settles = NOW // (8 * HOUR_MS) * 8 * HOUR_MS

    assert exchange.mark(0, settles - 1).next_funding_ms == settles
    assert exchange.mark(0, settles).next_funding_ms == settles + 8 * HOUR_MS
