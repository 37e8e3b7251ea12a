"""Two copies of every stream, each in its order and neither in step with the other, tell what one copy tells."""

import json
import random
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from perpline.collector.gaps import ClosedCandles
from perpline.common.clock import ManualClock
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
from perpline.websocket.handlers.mark_price_handler import MarkPriceHandler
from perpline.websocket.lane import Lane
from perpline.websocket.stream_router import StreamRouter

MIDNIGHT = 1_789_948_800_000
SYMBOLS = ("BTCUSDT", "1000000MOGUSDT")
RECEIVED_US = 7_000_000


def combined(symbol: str, kind: str, payload: dict[str, Any]) -> bytes:
    return json.dumps({"stream": stream_name(symbol, kind), "data": payload}, separators=(",", ":")).encode()


def market(rng: random.Random, messages: int) -> list[bytes]:
    """Some minutes of two symbols, as one connection hears them. Events share their millisecond now and then, and an
    update id is given twice now and then, which the exchange is not known to do."""
    frames = []
    now, update_id = MIDNIGHT, 100
    minutes = dict.fromkeys(SYMBOLS, MIDNIGHT)
    for _ in range(messages):
        now += rng.choice((0, 1, 250, 9_000))
        symbol = rng.choice(SYMBOLS)
        price = f"{100 + rng.randrange(20) / 10:.1f}"
        kind = rng.choice(("bookTicker", "bookTicker", "markPrice@1s", "kline_1m"))
        if kind == "bookTicker":
            update_id += rng.choice((1, 1, 1, 5))
            book = {"e": "bookTicker", "u": update_id, "s": symbol, "b": price, "B": "1.5", "a": "103.0"}
            frames.append(combined(symbol, kind, {**book, "A": "2.0", "T": now, "E": now}))
        elif kind == "markPrice@1s":
            mark = {"e": "markPriceUpdate", "E": now, "s": symbol, "p": price, "i": price, "r": "0", "T": 0}
            frames.append(combined(symbol, kind, mark))
        else:
            opened = minutes[symbol]
            closed = now >= opened + 60_000
            body = {"t": opened, "T": opened + 59_999, "s": symbol, "i": "1m", "f": 1, "L": 9, "o": "100", "c": price}
            body |= {"h": "110", "l": "90", "v": "5", "n": 3, "x": closed, "q": "500", "V": "2", "Q": "20", "B": "0"}
            frames.append(combined(symbol, kind, {"e": "kline", "E": now, "s": symbol, "k": body}))
            if closed:
                minutes[symbol] += 60_000
    return frames


class NoHoles:
    def opened(self, *hole: object) -> None:
        raise AssertionError(f"no candle is missing: {hole}")

    def closed(self, *hole: object) -> None:
        raise AssertionError(f"no candle was missing: {hole}")


class Desk:
    """Caches, rows and candles behind one router, with every book decoded or with the lanes that keep bytes."""

    def __init__(self, *, bytes_kept: bool) -> None:
        self.candles: list[Candle] = []
        self.rows: list[tuple[Any, ...]] = []
        self.seen: list[MarkPrice] = []
        self.malformed = 0
        lanes: list[Lane[Any]] = []
        kline_lanes: dict[str, Lane[KlineUpdate]] = {}
        book_lane: Lane[BookTicker] | None = None
        if bytes_kept:
            names = {stream_name(symbol, "bookTicker"): symbol for symbol in SYMBOLS}
            book_lane = Lane("bookTicker", names, book_ticker_head, decode_book_ticker, self._unreadable)
            names = {stream_name(symbol, "kline_1m"): symbol for symbol in SYMBOLS}
            kline_lanes["1m"] = Lane("kline_1m", names, kline_head, decode_kline, self._unreadable, only=FORMING)
            lanes = [book_lane, kline_lanes["1m"]]
        self.books = BookTickerHandler(self.rows.append, book_lane)
        self.marks = MarkPriceHandler(self.rows.append, self.seen.append)
        self.klines = KlineHandler(
            add_row=self.candles.append,
            add_to_features=lambda candle: None,
            on_1m_candle_close=lambda symbol, time: None,
            lanes=kline_lanes,
        )
        self.door = ClosedCandles(
            clock=ManualClock(MIDNIGHT),
            fetch=None,
            deliver=self.klines.deliver,
            ledger=NoHoles(),
            revise=self._revised,
            stored=self._stored,
            repaired=self._repaired,
            repair_since=lambda interval, now: 0,
        )
        for symbol in SYMBOLS:
            self.door.expect(symbol, "1m", MIDNIGHT)
        self.klines.offer = self.door.offer
        self.router = StreamRouter(
            decode,
            {BookTicker: self.books.handle, MarkPrice: self.marks.handle, KlineUpdate: self.klines.handle},
            lanes=lanes,
        )

    def caches(self) -> list[object]:
        return [
            (self.books.get(symbol), self.marks.latest.get(symbol), self.klines.get(symbol, "1m")) for symbol in SYMBOLS
        ]

    def end(self) -> list[object]:
        """Everything that was told, in the end."""
        caches = self.caches()
        self.books.flush()
        self.marks.flush()
        return [caches, self.rows, self.candles, self.seen, self.klines.closed_by, self.malformed, self.router.failed]

    def _unreadable(self, data: bytes, received_us: int, error: Exception) -> None:
        self.malformed += 1

    def _revised(self, row: object) -> None:
        raise AssertionError(f"a copy is no revision: {row}")

    async def _stored(self, interval: str, symbol: str, open_time: int) -> Candle | None:
        raise AssertionError("nothing is looked up")

    async def _repaired(self, candles: list[Candle]) -> None:
        raise AssertionError("nothing is repaired")


@settings(max_examples=120, deadline=None)
@given(seed=st.integers(0, 2**32), messages=st.integers(1, 80), bytes_kept=st.booleans(), swings=st.floats(0.02, 0.98))
@example(seed=1, messages=80, bytes_kept=True, swings=0.02)
@example(seed=1, messages=80, bytes_kept=False, swings=0.02)
def test_however_two_copies_of_the_streams_arrive_caches_rows_and_candles_are_those_of_one(
    seed: int, messages: int, bytes_kept: bool, swings: float
) -> None:
    rng = random.Random(seed)
    frames = market(rng, messages)
    one, two = Desk(bytes_kept=bytes_kept), Desk(bytes_kept=bytes_kept)
    for data in frames:
        one.router.route_batch([data], RECEIVED_US)
    left = [list(frames), list(frames)]
    source = 0
    while left[0] or left[1]:
        # Who is ahead changes seldom or often: delays from nothing to the whole of it.
        if not left[source] or rng.random() < swings:
            source = 1 - source
        cut = rng.randint(0, min(5, len(left[source])))
        two.router.route_batch(left[source][:cut], RECEIVED_US, source)
        del left[source][:cut]
        if rng.random() < 0.3:
            two.caches()  # read in between: what was read must never be replaced by what is older

    assert two.end() == one.end()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), messages=st.integers(1, 60), bytes_kept=st.booleans())
@example(seed=3, messages=60, bytes_kept=True)
def test_what_is_read_while_two_copies_arrive_is_the_newest_that_either_has_told(
    seed: int, messages: int, bytes_kept: bool
) -> None:
    rng = random.Random(seed)
    frames = market(rng, messages)
    desk = Desk(bytes_kept=bytes_kept)
    left = [list(frames), list(frames)]
    newest = {symbol: [0, (0, 0)] for symbol in SYMBOLS}
    while left[0] or left[1]:
        source = rng.randrange(2) if left[0] and left[1] else int(not left[0])
        data = left[source].pop(0)
        desk.router.route_batch([data], RECEIVED_US, source)
        told = decode(data, RECEIVED_US).content
        if isinstance(told, BookTicker):
            newest[told.symbol][0] = max(newest[told.symbol][0], told.update_id)
        elif isinstance(told, KlineUpdate):
            newest[told.symbol][1] = max(newest[told.symbol][1], (told.open_time, told.event_time))
        if rng.random() < 0.3:
            for symbol, (book, _, kline) in zip(SYMBOLS, desk.caches(), strict=True):
                read = [book.update_id if book else 0, (kline.open_time, kline.event_time) if kline else (0, 0)]
                assert read == newest[symbol]


def test_an_update_that_the_other_connection_tells_with_a_later_time_counts_once() -> None:
    rows: list[tuple[Any, ...]] = []
    books = BookTickerHandler(rows.append)
    for update_id, time in ((1, 0), (2, 500), (2, 503), (3, 900)):
        books.handle(BookTicker("BTCUSDT", 100.0, 1.0 + update_id, 100.1, 2.0, update_id, MIDNIGHT + time, MIDNIGHT))
    books.flush()

    [row] = rows
    assert row[9] == 3
    assert row[8] == 2.0  # the bid grew by one, twice
