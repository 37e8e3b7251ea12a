"""What the three handlers keep, and what they hand on."""

from collections import defaultdict
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perpline.domain.candle import Candle, KlineUpdate, closed_candle
from perpline.domain.market import BookTicker, MarkPrice
from perpline.storage.store import TABLES
from perpline.websocket.handlers.book_ticker_handler import BookTickerHandler
from perpline.websocket.handlers.kline_handler import KlineHandler
from perpline.websocket.handlers.mark_price_handler import MarkPriceHandler

MINUTE = 60_000
START = 1_790_000_040_000


def kline(n: int = 0, *, event: int = 0, closed: bool = False, interval: str = "1m", close: float = 100.0):
    length = {"1m": 1, "15m": 15, "1h": 60}[interval] * MINUTE
    open_time = START - START % length + n * length
    return KlineUpdate(
        symbol="BTCUSDT",
        interval=interval,
        open_time=open_time,
        close_time=open_time + length - 1,
        open=100.0,
        high=max(100.0, close),
        low=min(100.0, close),
        close=close,
        volume=3.0,
        quote_volume=300.0,
        trades=5,
        taker_buy_volume=1.0,
        taker_buy_quote_volume=100.0,
        closed=closed,
        source="ws",
        event_time=open_time + event,
        received_at=open_time + event + 7,
    )


class Sinks:
    """Everything a kline handler handed on, in the order it did."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []
        self.klines = KlineHandler(
            add_row=lambda candle: self.calls.append(("row", candle)),
            add_to_features=lambda candle: self.calls.append(("features", candle)),
            on_1m_candle_close=lambda symbol, close_time: self.calls.append(("close", (symbol, close_time))),
        )


# ---- klines


def test_the_newest_forming_candle_wins_and_nothing_is_handed_on() -> None:
    sinks = Sinks()
    for update in (kline(event=10, close=101.0), kline(event=30, close=103.0), kline(event=20, close=102.0)):
        sinks.klines.handle(update)

    assert sinks.klines.forming["1m"]["BTCUSDT"].close == 103.0
    assert sinks.calls == []


def test_a_frame_of_an_older_candle_does_not_replace_the_forming_one() -> None:
    sinks = Sinks()
    sinks.klines.handle(kline(1, event=1))
    sinks.klines.handle(kline(0, event=59_999, closed=False))

    assert sinks.klines.forming["1m"]["BTCUSDT"].open_time == START + MINUTE


def test_a_closed_1m_candle_goes_to_row_features_and_engine_in_this_order() -> None:
    sinks = Sinks()
    update = kline(closed=True)
    sinks.klines.handle(update)

    candle = closed_candle(update)
    assert sinks.calls == [("row", candle), ("features", candle), ("close", ("BTCUSDT", START + MINUTE))]
    assert sinks.klines.last_closed["1m"] == {"BTCUSDT": candle}
    assert sinks.klines.closed == 1


@pytest.mark.parametrize("interval", ["15m", "1h"])
def test_a_closed_15m_or_1h_candle_is_stored_and_cached_and_triggers_nothing(interval: str) -> None:
    sinks = Sinks()
    sinks.klines.handle(kline(closed=True, interval=interval))

    assert [word for word, _ in sinks.calls] == ["row"]
    assert sinks.klines.last_closed[interval].keys() == {"BTCUSDT"}
    assert sinks.klines.last_closed["1m"] == {}


def test_closed_candles_go_through_the_door_that_puts_them_in_order() -> None:
    sinks = Sinks()
    offered: list[Candle] = []
    sinks.klines.offer = offered.append
    sinks.klines.handle(kline(closed=True))

    assert offered == [closed_candle(kline(closed=True))]
    assert sinks.calls == []


def test_a_forgotten_symbol_has_no_candles() -> None:
    sinks = Sinks()
    sinks.klines.handle(kline(closed=True))
    sinks.klines.forget("BTCUSDT")

    assert sinks.klines.forming["1m"] == sinks.klines.last_closed["1m"] == {}


# ---- mark prices


def mark(seconds: float, price: float = 100.0, symbol: str = "BTCUSDT") -> MarkPrice:
    at = START + round(seconds * 1000)
    return MarkPrice(symbol, price, price + 1, 0.0001, START + 3_600_000, at, at + 4)


def test_the_mark_price_cache_has_the_fields_of_the_design() -> None:
    assert set(MarkPrice.__struct_fields__) >= {
        "mark_price",
        "index_price",
        "funding_rate",
        "next_funding_time",
        "updated_at",
    }


def test_one_row_a_minute_holds_the_last_mark_price_and_how_many_there_were() -> None:
    rows = []
    handler = MarkPriceHandler(rows.append)
    for second in range(0, 125):
        handler.handle(mark(second, 100.0 + second))

    columns = TABLES["premium_index"].columns
    first, second = (dict(zip(columns, row, strict=True)) for row in rows)
    assert first == {
        "symbol": "BTCUSDT",
        "minute": START,
        "mark_price": 159.0,
        "index_price": 160.0,
        "funding_rate": 0.0001,
        "next_funding_time": START + 3_600_000,
        "samples": 60,
        "updated_at": START + 59_000,
        "received_at": START + 59_004,
    }
    assert (second["minute"], second["mark_price"], second["samples"]) == (START + MINUTE, 219.0, 60)
    handler.flush()
    assert rows[2][1:3] == (START + 2 * MINUTE, 224.0)
    assert rows[2][6] == 5


def test_a_mark_price_that_was_overtaken_or_is_a_repeat_changes_nothing() -> None:
    rows = []
    handler = MarkPriceHandler(rows.append)
    for each in (mark(1, 101.0), mark(3, 103.0), mark(2, 102.0), mark(3, 103.0)):
        handler.handle(each)
    handler.flush()

    assert handler.latest["BTCUSDT"].mark_price == 103.0
    assert [row[6] for row in rows] == [2]


def test_minutes_without_a_mark_price_have_no_row() -> None:
    rows = []
    handler = MarkPriceHandler(rows.append)
    handler.handle(mark(1))
    handler.handle(mark(200))
    handler.flush()

    assert [row[1] for row in rows] == [START, START + 3 * MINUTE]


def test_a_symbol_that_is_heard_for_the_first_time_after_being_forgotten_begins_anew() -> None:
    rows = []
    handler = MarkPriceHandler(rows.append)
    handler.handle(mark(1))
    handler.forget("BTCUSDT")
    assert [(row[1], row[6]) for row in rows] == [(START, 1)]  # the minute in progress is kept
    handler.handle(mark(2))
    handler.flush()

    assert [row[6] for row in rows] == [1, 1]


def test_what_comes_of_a_symbol_that_is_not_followed_is_dropped() -> None:
    rows: list[Any] = []
    followed = {"BTCUSDT"}
    marks = MarkPriceHandler(rows.append, follows=followed.__contains__)
    books = BookTickerHandler(rows.append, follows=followed.__contains__)
    for handler, news in ((marks, mark(1)), (books, book(1000, 1))):
        handler.handle(news)  # type: ignore[attr-defined]
        followed.clear()
        handler.forget("BTCUSDT")  # type: ignore[attr-defined]
        handler.handle(news)  # type: ignore[attr-defined]
        assert handler.latest == {}  # type: ignore[attr-defined]
        followed.add("BTCUSDT")

    assert len(rows) == 2


# ---- best bids and asks


def book(ms: int, update_id: int, bid: float = 100.0, ask: float = 101.0, bid_qty: float = 1.0, ask_qty: float = 1.0):
    return BookTicker("BTCUSDT", bid, bid_qty, ask, ask_qty, update_id, START + ms, START + ms + 20)


def test_the_book_cache_has_the_fields_of_the_design() -> None:
    newest = book(0, 1, bid=99.0, ask=101.0)

    assert {"bid", "bid_qty", "ask", "ask_qty", "updated_at"} <= set(BookTicker.__struct_fields__)
    assert (newest.mid, newest.spread, newest.spread_bps) == (100.0, 2.0, 200.0)


def test_a_repeated_or_overtaken_book_changes_nothing() -> None:
    rows = []
    handler = BookTickerHandler(rows.append)
    for each in (book(0, 1), book(10, 3, bid=100.5), book(5, 2, bid=90.0), book(10, 3, bid=100.5)):
        handler.handle(each)
    handler.flush()

    assert handler.latest["BTCUSDT"].bid == 100.5
    assert dict(zip(TABLES["book_minutes"].columns, rows[0], strict=True))["updates"] == 2


def test_a_book_that_stood_for_no_time_counts_with_its_own_spread() -> None:
    rows = []
    handler = BookTickerHandler(rows.append)
    handler.handle(book(0, 1, bid=99.0, ask=101.0, bid_qty=3.0, ask_qty=1.0))
    handler.flush()

    row = dict(zip(TABLES["book_minutes"].columns, rows[0], strict=True))
    assert (row["spread_bps"], row["imbalance"], row["order_flow_imbalance"]) == (200.0, 0.5, 0.0)
    assert (row["updates"], row["receive_lag_ms"]) == (1, 20.0)


updates = st.lists(
    st.tuples(
        st.integers(0, 90_000),  # milliseconds since the one before: within the minute, or minutes later
        st.integers(90, 110),
        st.integers(1, 5),
        st.integers(0, 8),
        st.integers(0, 8),
        st.integers(-50, 2_000),
    ),
    min_size=1,
    max_size=40,
)


@given(updates, st.booleans())
def test_book_minutes_equal_a_reading_of_the_whole_history(
    steps: list[tuple[int, int, int, int, int, int]], ended: bool
) -> None:
    """Whether every minute is ended as it is over, or by the first update of a later one."""
    books: list[BookTicker] = []
    at = START + 1_234
    for number, (wait, bid, spread, bid_qty, ask_qty, lag) in enumerate(steps):
        at += wait
        books.append(
            BookTicker("BTCUSDT", float(bid), float(bid_qty), float(bid + spread), float(ask_qty), number, at, at + lag)
        )
    rows = []
    handler = BookTickerHandler(rows.append)
    boundary = books[0].updated_at // MINUTE * MINUTE
    for each in books:
        while ended and boundary <= each.updated_at:
            handler.end_minutes(["BTCUSDT", "ETHUSDT"], boundary)
            boundary += MINUTE
        handler.handle(each)
    handler.flush()

    expected = whole_history(books)
    assert [row[1] for row in rows] == sorted(expected)
    for row in rows:
        assert row[:6] + row[9:10] + row[11:] == expected[row[1]][:6] + expected[row[1]][9:10] + expected[row[1]][11:]
        assert row[6:9] + row[10:11] == pytest.approx(expected[row[1]][6:9] + expected[row[1]][10:11])


def test_a_book_whose_minute_was_ended_before_counts_towards_the_next() -> None:
    rows = []
    handler = BookTickerHandler(rows.append)
    handler.handle(book(59_000, 1, bid_qty=3.0))
    handler.end_minutes(["BTCUSDT"], START + MINUTE)
    handler.end_minutes(["BTCUSDT"], START + MINUTE)
    handler.handle(book(59_990, 2, bid_qty=1.0))
    handler.handle(book(90_000, 3, bid_qty=3.0))
    handler.end_minutes(["BTCUSDT"], START + MINUTE)
    handler.end_minutes(["BTCUSDT"], START + 2 * MINUTE)
    handler.end_minutes(["BTCUSDT"], START + 3 * MINUTE)
    handler.flush()

    named = [dict(zip(TABLES["book_minutes"].columns, row, strict=True)) for row in rows]
    assert [(row["minute"], row["updates"], row["imbalance"], row["order_flow_imbalance"]) for row in named] == [
        (START, 1, 0.5, 0.0),
        (START + MINUTE, 2, 0.25, 0.0),  # half a minute of even quantities, half a minute of three to one
    ]


def whole_history(books: list[BookTicker]) -> dict[int, tuple]:
    """The rows by minute, from all segments in which a book stood and all steps from one to the next."""
    segments = [(before.updated_at, after.updated_at, before) for before, after in pairwise(books)]
    by_minute = defaultdict(list)
    for each in books:
        by_minute[each.updated_at // MINUTE * MINUTE].append(each)
    found = {}
    for minute, own in by_minute.items():
        stood = [
            (min(end, minute + MINUTE) - max(start, minute), each)
            for start, end, each in segments
            if min(end, minute + MINUTE) > max(start, minute)
        ]
        total = sum(ms for ms, _ in stood)
        last = own[-1]
        spread = sum(ms * each.spread_bps for ms, each in stood) / total if total else last.spread_bps
        imbalance = sum(ms * weight(each) for ms, each in stood) / total if total else weight(last)
        flow = sum(step(before, after) for before, after in pairwise(books) if after in own)
        lag = sum(each.received_at - each.updated_at for each in own) / len(own)
        found[minute] = (
            *("BTCUSDT", minute, last.bid, last.bid_qty, last.ask, last.ask_qty),
            *(spread, imbalance, flow, len(own), lag, last.updated_at, last.received_at),
        )
    return found


def weight(each: BookTicker) -> float:
    total = each.bid_qty + each.ask_qty
    return (each.bid_qty - each.ask_qty) / total if total else 0.0


def step(before: BookTicker, after: BookTicker) -> float:
    """Cont, Kukanov, Stoikov (2014), equation 3."""
    return (
        (after.bid >= before.bid) * after.bid_qty
        - (after.bid <= before.bid) * before.bid_qty
        - (after.ask <= before.ask) * after.ask_qty
        + (after.ask >= before.ask) * before.ask_qty
    )


def test_every_row_fits_its_table() -> None:
    premium, minutes = [], []
    marks, books = MarkPriceHandler(premium.append), BookTickerHandler(minutes.append)
    marks.handle(mark(1))
    books.handle(book(1, 1))
    marks.flush()
    books.flush()

    assert len(premium[0]) == len(TABLES["premium_index"].columns)
    assert len(minutes[0]) == len(TABLES["book_minutes"].columns)
    assert msgspec.json.encode([premium, minutes])
