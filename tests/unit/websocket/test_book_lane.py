"""Book tickers kept as bytes tell the same as decoded ones, and what is overtaken is counted."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpline.common.errors import Malformed
from perpline.domain.market import BookTicker
from perpline.exchange.binance.decode import book_ticker_head, decode, decode_book_ticker
from perpline.exchange.binance.endpoints import stream_name
from perpline.websocket.book_lane import BookLane
from perpline.websocket.handlers.book_ticker_handler import BookTickerHandler
from perpline.websocket.stream_router import StreamRouter

SYMBOLS = ("BTCUSDT", "ETHUSDT", "1000000MOGUSDT", "AUSDT", "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789USDT")


def frame(symbol: str, update_id: int, bid: float = 100.0, **changes: object) -> bytes:
    payload = {"e": "bookTicker", "u": update_id, "s": symbol, "ps": symbol, "b": f"{bid:.2f}", "B": "1.500"}
    payload |= {"a": f"{bid + 0.1:.2f}", "A": "2.000", "T": 1_790_000_000_000 + update_id}
    payload |= {"E": 1_790_000_000_001 + update_id, "st": 1, **changes}
    body = {"stream": stream_name(symbol, "bookTicker"), "data": payload}
    return json.dumps(body, separators=(",", ":")).encode()


def mark(symbol: str) -> bytes:
    payload = {"e": "markPriceUpdate", "E": 1_790_000_000_000, "s": symbol, "p": "100", "i": "100", "r": "0", "T": 0}
    return json.dumps({"stream": stream_name(symbol, "markPrice@1s"), "data": payload}, separators=(",", ":")).encode()


class Kept:
    """A router with a lane, and one without."""

    def __init__(self) -> None:
        self.malformed: list[bytes] = []
        lane = BookLane(
            {stream_name(symbol, "bookTicker"): symbol for symbol in SYMBOLS},
            book_ticker_head,
            decode_book_ticker,
            lambda data, received_us, error: self.router.set_aside(data, received_us, error),
        )
        self.lane = lane
        self.books = BookTickerHandler(self._no_row, lane)
        self.router = StreamRouter(
            decode,
            {BookTicker: self.books.handle},
            set_aside=lambda data, received_us, reason: self.malformed.append(data),
            lane=lane,
        )

    def _no_row(self, row: object) -> None:
        raise AssertionError("rows of minutes need every update")


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), messages=st.integers(1, 60))
def test_what_is_read_is_what_the_newest_message_said_whatever_the_batches(seed: int, messages: int) -> None:
    rng = random.Random(seed)
    kept = Kept()
    plain = BookTickerHandler(lambda row: None)
    every = StreamRouter(decode, {BookTicker: plain.handle})
    frames = [frame(rng.choice(SYMBOLS), n + 1, rng.uniform(1, 1000)) for n in range(messages)]
    while frames:
        cut = rng.randint(1, len(frames))
        batch, frames = frames[:cut], frames[cut:]
        assert set(kept.router.route_batch(batch, 7_000)) == set(every.route_batch(batch, 7_000))
        if rng.random() < 0.5:
            symbol = rng.choice(SYMBOLS)
            assert kept.books.get(symbol) == plain.get(symbol)

    assert {symbol: kept.books.get(symbol) for symbol in SYMBOLS} == {symbol: plain.get(symbol) for symbol in SYMBOLS}
    assert (kept.router.total, kept.router.routed) == (every.total, every.routed)
    assert kept.router.by_kind == every.by_kind


def test_what_is_overtaken_unread_is_counted_as_superseded_in_a_batch_and_between_batches() -> None:
    kept = Kept()
    kept.router.route_batch([frame("BTCUSDT", 1), frame("BTCUSDT", 2), frame("ETHUSDT", 3)], 0)
    kept.router.route_batch([frame("BTCUSDT", 4)], 0)

    assert kept.lane.superseded == 2
    book = kept.books.get("BTCUSDT")
    assert book is not None
    assert book.update_id == 4

    kept.router.route_batch([frame("BTCUSDT", 5)], 0)

    assert kept.lane.superseded == 2


def test_a_kept_book_that_cannot_be_read_is_malformed_when_read_and_the_last_good_one_stays() -> None:
    kept = Kept()
    kept.router.route_batch([frame("BTCUSDT", 1)], 0)
    assert kept.books.get("BTCUSDT") is not None
    bad = frame("BTCUSDT", 2, b="NaN")
    kept.router.route_batch([bad], 0)
    assert kept.router.malformed == 0

    book = kept.books.get("BTCUSDT")

    assert book is not None
    assert book.update_id == 1
    assert (kept.router.malformed, kept.malformed) == (1, [bad])
    assert kept.router.total == kept.router.routed + kept.router.malformed


def test_a_torn_message_is_malformed_at_once_and_proves_nothing() -> None:
    kept = Kept()
    torn = frame("BTCUSDT", 1)[:-5]

    assert kept.router.route_batch([torn], 0) == []
    assert kept.malformed == [torn]
    assert kept.books.get("BTCUSDT") is None


def test_other_messages_of_the_batch_are_routed_in_order() -> None:
    kept = Kept()
    heard = kept.router.route_batch([mark("BTCUSDT"), frame("BTCUSDT", 1), mark("ETHUSDT")], 0)

    assert heard == ["btcusdt@bookTicker", "btcusdt@markPrice@1s", "ethusdt@markPrice@1s"]


def test_a_name_too_long_for_the_lane_is_routed_like_anything_else() -> None:
    kept = Kept()
    long = SYMBOLS[-1]
    assert stream_name(long, "bookTicker") not in kept.lane.streams.values()

    kept.router.route_batch([frame(long, 1)], 0)

    assert kept.books.get(long) is not None


def test_a_message_of_a_symbol_nobody_follows_is_not_taken_for_one_that_is() -> None:
    kept = Kept()
    kept.router.route_batch([frame("BTCUSDTX", 1), frame("BTCUSD", 2)], 0)

    assert kept.books.get("BTCUSDT") is None


def test_decoding_a_kept_book_refuses_any_other_message() -> None:
    with pytest.raises(Malformed, match="no book ticker"):
        decode_book_ticker(mark("BTCUSDT"), 0)
