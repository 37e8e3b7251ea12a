"""Messages kept as bytes tell the same as decoded ones, and what is overtaken is counted."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpline.common.errors import Malformed
from perpline.domain.candle import Candle, KlineUpdate
from perpline.domain.market import BookTicker, MarkPrice
from perpline.exchange.binance.decode import (
    FORMING,
    book_ticker_head,
    decode,
    decode_book_ticker,
    decode_kline,
    kline_head,
)
from perpline.exchange.binance.endpoints import stream_name
from perpline.websocket.handlers.book_ticker_handler import BookTickerHandler
from perpline.websocket.handlers.kline_handler import KlineHandler
from perpline.websocket.lane import Lane
from perpline.websocket.stream_router import StreamRouter

MIDNIGHT = 1_789_948_800_000
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


def kline(symbol: str, minute: int, event: int, closed: bool = False, **changes: object) -> bytes:
    """The candle of a minute, told so many milliseconds after its beginning."""
    opened = MIDNIGHT + minute * 60_000
    body: dict[str, object] = {"t": opened, "T": opened + 59_999, "s": symbol, "i": "1m", "f": 1, "L": 9, "o": "10"}
    body |= {"c": f"{11 + event / 1000:.3f}", "h": "99", "l": "9", "v": "5", "n": 3, "x": closed, "q": "50"}
    body |= {"V": "2", "Q": "20", "B": "0", **changes}
    payload = {"e": "kline", "E": opened + event, "s": symbol, "k": body}
    return json.dumps({"stream": stream_name(symbol, "kline_1m"), "data": payload}, separators=(",", ":")).encode()


class Kept:
    """A router with a lane for book tickers and one for forming candles."""

    def __init__(self) -> None:
        self.malformed: list[bytes] = []
        self.candles: list[Candle] = []
        self.lane = Lane(
            "bookTicker",
            {stream_name(symbol, "bookTicker"): symbol for symbol in SYMBOLS},
            book_ticker_head,
            decode_book_ticker,
            self._unreadable,
        )
        self.kline_lane = Lane(
            "kline_1m",
            {stream_name(symbol, "kline_1m"): symbol for symbol in SYMBOLS},
            kline_head,
            decode_kline,
            self._unreadable,
            only=FORMING,
        )
        self.books = BookTickerHandler(self._no_row, self.lane)
        self.klines = kline_handler(self.candles, {"1m": self.kline_lane})
        self.router = StreamRouter(
            decode,
            {BookTicker: self.books.handle, KlineUpdate: self.klines.handle},
            set_aside=lambda data, received_us, reason: self.malformed.append(data),
            lanes=[self.lane, self.kline_lane],
        )

    def _unreadable(self, data: bytes, received_us: int, error: Malformed) -> None:
        self.router.set_aside(data, received_us, error)

    def _no_row(self, row: object) -> None:
        raise AssertionError("rows of minutes need every update")


def kline_handler(candles: list[Candle], lanes: dict[str, Lane[KlineUpdate]] | None = None) -> KlineHandler:
    return KlineHandler(
        add_row=candles.append,
        add_to_features=lambda candle: None,
        on_1m_candle_close=lambda symbol, time: None,
        lanes=lanes,
    )


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

    assert kept.lane.superseded == kept.router.superseded == 2
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

    assert kept.router.route_batch([torn], 0) == set()
    assert kept.malformed == [torn]
    assert kept.books.get("BTCUSDT") is None


def test_other_messages_of_the_batch_are_routed_in_order() -> None:
    marks: list[str] = []
    router = StreamRouter(decode, {MarkPrice: lambda mark: marks.append(mark.symbol)}, lanes=[Kept().lane])
    heard = router.route_batch([mark("BTCUSDT"), frame("BTCUSDT", 1), mark("ETHUSDT")], 0)

    assert heard == {"btcusdt@bookTicker", "btcusdt@markPrice@1s", "ethusdt@markPrice@1s"}
    assert marks == ["BTCUSDT", "ETHUSDT"]


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


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), messages=st.integers(1, 60))
def test_candles_that_form_and_close_are_the_same_with_a_lane_and_without(seed: int, messages: int) -> None:
    rng = random.Random(seed)
    kept = Kept()
    closed: list[Candle] = []
    plain = kline_handler(closed)
    every = StreamRouter(decode, {KlineUpdate: plain.handle})
    minutes = dict.fromkeys(SYMBOLS[:3], 0)
    events = dict.fromkeys(SYMBOLS[:3], 0)
    frames = []
    for _ in range(messages):
        symbol = rng.choice(SYMBOLS[:3])
        events[symbol] += rng.randint(1, 900)
        closing = rng.random() < 0.2
        frames.append(kline(symbol, minutes[symbol], events[symbol], closing))
        if closing:
            minutes[symbol] += 1
            events[symbol] = 0
    while frames:
        cut = rng.randint(1, len(frames))
        batch, frames = frames[:cut], frames[cut:]
        assert kept.router.route_batch(batch, 7_000) == every.route_batch(batch, 7_000)
        assert kept.candles == closed
        if rng.random() < 0.5:
            symbol = rng.choice(SYMBOLS)
            assert kept.klines.get(symbol, "1m") == plain.get(symbol, "1m")

    assert [kept.klines.get(name, "1m") for name in SYMBOLS] == [plain.get(name, "1m") for name in SYMBOLS]
    assert (kept.router.total, kept.router.routed) == (every.total, every.routed)
    assert kept.router.by_kind == every.by_kind


def test_a_candle_that_closes_is_decoded_at_once_and_one_that_forms_when_it_is_read() -> None:
    kept = Kept()
    kept.router.route_batch([kline("BTCUSDT", 0, 500), kline("BTCUSDT", 0, 900), kline("ETHUSDT", 0, 999, True)], 0)

    assert [candle.symbol for candle in kept.candles] == ["ETHUSDT"]
    assert kept.klines.forming["1m"].keys() == {"ETHUSDT"}
    assert kept.kline_lane.superseded == 1
    forming = kept.klines.get("BTCUSDT", "1m")
    assert forming is not None
    assert forming.close == 11.9


def test_whatever_does_not_say_plainly_that_a_candle_is_forming_is_decoded_at_once() -> None:
    kept = Kept()
    spaced = kline("BTCUSDT", 0, 999, True).replace(b'"x":true', b'"x" : true')
    numbered = kline("ETHUSDT", 0, 999, closed=True, x=1)

    kept.router.route_batch([spaced, numbered], 0)

    assert [candle.symbol for candle in kept.candles] == ["BTCUSDT", "ETHUSDT"]


def test_a_kept_candle_that_cannot_be_read_is_malformed_when_read() -> None:
    kept = Kept()
    bad = kline("BTCUSDT", 0, 500, c="-1")
    kept.router.route_batch([kline("BTCUSDT", 0, 400), bad], 0)

    assert kept.klines.get("BTCUSDT", "1m") is None
    assert (kept.router.malformed, kept.malformed) == (1, [bad])


def test_decoding_a_kept_candle_refuses_any_other_message() -> None:
    with pytest.raises(Malformed, match="no kline"):
        decode_kline(mark("BTCUSDT"), 0)
