"""Best bids and asks: the newest of each symbol, and what they did in each minute."""

from collections.abc import Callable, Iterable
from typing import Any

from perpline.domain.candle import MINUTE_MS
from perpline.domain.market import BookTicker, Side, SlippageEstimate, slippage_estimate
from perpline.websocket.lane import Lane

BookMinuteRow = tuple[Any, ...]
"""symbol, minute, bid, bid_qty, ask, ask_qty, spread_bps, imbalance, order_flow_imbalance, updates, receive_lag_ms,
updated_at, received_at."""


class BookMinute:
    """One minute of a symbol's best bid and ask, summed as it goes.

    Spread (basis points of mid) and imbalance ((bid_qty - ask_qty) / (bid_qty + ask_qty), 0 with nothing quoted) are
    weighted by the time they stood; the order flow imbalance is the sum of Cont, Kukanov and Stoikov (2014), eq. 3:
    quantity added to the bid or taken from the ask counts up, the opposite counts down.
    """

    __slots__ = ("_imbalance_ms", "_ms", "_spread_ms", "end", "lag_ms", "minute", "order_flow", "updates")

    def __init__(self, minute: int) -> None:
        self.minute = minute
        self.end = minute + MINUTE_MS
        self.updates = 0
        self.order_flow = 0.0
        self.lag_ms = 0
        self._ms = 0
        self._spread_ms = 0.0
        self._imbalance_ms = 0.0

    def stood(self, book: BookTicker, ms: int) -> None:
        """The book stood unchanged for so long."""
        if ms > 0:
            bid, ask, bid_qty, ask_qty = book.bid, book.ask, book.bid_qty, book.ask_qty
            self._ms += ms
            self._spread_ms += (ask - bid) / (ask + bid) * 20_000 * ms
            if quoted := bid_qty + ask_qty:
                self._imbalance_ms += (bid_qty - ask_qty) / quoted * ms

    def changed(self, before: BookTicker, after: BookTicker) -> None:
        self.updates += 1
        self.lag_ms += after.received_at - after.updated_at
        flow = 0.0
        old, new = before.bid, after.bid
        if new >= old:
            flow += after.bid_qty
        if new <= old:
            flow -= before.bid_qty
        old, new = before.ask, after.ask
        if new <= old:
            flow -= after.ask_qty
        if new >= old:
            flow += before.ask_qty
        self.order_flow += flow

    def row(self, last: BookTicker) -> BookMinuteRow:
        quoted = last.bid_qty + last.ask_qty
        return (
            last.symbol,
            self.minute,
            last.bid,
            last.bid_qty,
            last.ask,
            last.ask_qty,
            self._spread_ms / self._ms if self._ms else last.spread_bps,
            self._imbalance_ms / self._ms if self._ms else (last.bid_qty - last.ask_qty) / quoted if quoted else 0.0,
            self.order_flow,
            self.updates,
            self.lag_ms / self.updates if self.updates else None,
            last.updated_at,
            last.received_at,
        )


class BookTickerHandler:
    """The newest best bid and ask by symbol, and a row of `book_minutes` for every minute in which one came.

    Minutes are the exchange's. A row is added when the first update of a later minute comes or by `end_minutes`,
    whichever is earlier, and by `flush`. An update whose minute has its row already counts towards the next.

    With a lane, books come through it as bytes and are decoded when asked for. Then there are no rows: they need every
    single update.
    """

    def __init__(
        self,
        add_row: Callable[[BookMinuteRow], None],
        lane: Lane[BookTicker] | None = None,
        *,
        follows: Callable[[str], bool] = lambda symbol: True,
    ) -> None:
        """What comes of a symbol that is not followed (any more) is dropped."""
        self.latest: dict[str, BookTicker] = {}
        """The newest decoded book by symbol."""
        self.repeats = 0
        """Books that had come before, or were older than what is known: dropped."""
        self._minutes: dict[str, BookMinute] = {}
        self._add_row = add_row
        self._lane = lane
        self._follows = follows

    def get(self, symbol: str) -> BookTicker | None:
        """The newest best bid and ask of a symbol, None before the first."""
        if self._lane is not None:
            for book in self._lane.take(symbol):
                self.handle(book)
        return self.latest.get(symbol)

    def handle(self, book: BookTicker) -> None:
        symbol = book.symbol
        known = self.latest.get(symbol)
        if known is None:
            if not self._follows(symbol):
                return
            self.latest[symbol] = book
            minute = self._minutes[symbol] = BookMinute(book.updated_at - book.updated_at % MINUTE_MS)
            minute.updates = 1
            minute.lag_ms = book.received_at - book.updated_at
            return
        if book.update_id <= known.update_id and book.updated_at <= known.updated_at:
            self.repeats += 1  # or overtaken on another connection
            return
        self.latest[symbol] = book
        if self._lane is not None:
            return
        minute = self._minutes[symbol]
        if book.updated_at >= minute.end:
            minute = self._end(minute, known, book.updated_at)
        minute.stood(known, book.updated_at - max(known.updated_at, minute.minute))
        if book.update_id != known.update_id or not book.update_id:  # else the same update told again, later
            minute.changed(known, book)

    def end_minutes(self, symbols: Iterable[str], until: int) -> None:
        """Add the rows of these symbols' minutes that ended by the boundary `until`, with what has come of them."""
        for symbol in symbols if self._lane is None else ():
            minute = self._minutes.get(symbol)
            if minute is not None and minute.end <= until:
                self._end(minute, self.latest[symbol], until)

    def slippage(self, symbol: str, side: Side, quantity: float) -> SlippageEstimate | None:
        """What a market order would probably fill at, by the newest best bid and ask; None before the first."""
        book = self.get(symbol)
        return None if book is None else slippage_estimate(book, side, quantity)

    def flush(self) -> None:
        """Add the rows of the minutes in progress."""
        for symbol in self._minutes:
            self._flush(symbol)

    def _flush(self, symbol: str) -> None:
        minute = self._minutes[symbol]
        if self._lane is None and minute.updates:
            self._add_row(minute.row(self.latest[symbol]))

    def _end(self, minute: BookMinute, known: BookTicker, now: int) -> BookMinute:
        """The minute of `now`, begun; the row of the one before is added if anything came in it."""
        if minute.updates:
            minute.stood(known, minute.end - max(known.updated_at, minute.minute))
            self._add_row(minute.row(known))
        begun = self._minutes[known.symbol] = BookMinute(now - now % MINUTE_MS)
        return begun

    def forget(self, symbol: str) -> None:
        """Add the row of the symbol's minute in progress, and drop everything of it."""
        if symbol in self._minutes:
            self._flush(symbol)
            del self.latest[symbol], self._minutes[symbol]
