"""Best bids and asks: the newest of each symbol, and what they did in each minute."""

from collections.abc import Callable
from typing import Any

from perpline.domain.candle import MINUTE_MS
from perpline.domain.market import BookTicker, Side, SlippageEstimate, slippage_estimate

BookMinuteRow = tuple[Any, ...]
"""symbol, minute, bid, bid_qty, ask, ask_qty, spread_bps, imbalance, order_flow_imbalance, updates, receive_lag_ms,
updated_at, received_at."""


class BookMinute:
    """One minute of a symbol's best bid and ask, summed as it goes.

    Spread (basis points of mid) and imbalance ((bid_qty - ask_qty) / (bid_qty + ask_qty)) are weighted by the time they
    stood; the order flow imbalance is the sum of Cont, Kukanov and Stoikov (2014), eq. 3: quantity added to the bid or
    taken from the ask counts up, the opposite counts down.
    """

    __slots__ = ("_imbalance_ms", "_ms", "_spread_ms", "lag_ms", "minute", "order_flow", "updates")

    def __init__(self, minute: int) -> None:
        self.minute = minute
        self.updates = 0
        self.order_flow = 0.0
        self.lag_ms = 0
        self._ms = 0
        self._spread_ms = 0.0
        self._imbalance_ms = 0.0

    def stood(self, book: BookTicker, ms: int) -> None:
        """The book stood unchanged for so long."""
        if ms > 0:
            self._ms += ms
            self._spread_ms += book.spread_bps * ms
            self._imbalance_ms += _imbalance(book) * ms

    def changed(self, before: BookTicker, after: BookTicker) -> None:
        self.updates += 1
        self.lag_ms += after.received_at - after.updated_at
        if after.bid >= before.bid:
            self.order_flow += after.bid_qty
        if after.bid <= before.bid:
            self.order_flow -= before.bid_qty
        if after.ask <= before.ask:
            self.order_flow -= after.ask_qty
        if after.ask >= before.ask:
            self.order_flow += before.ask_qty

    def row(self, last: BookTicker) -> BookMinuteRow:
        return (
            last.symbol,
            self.minute,
            last.bid,
            last.bid_qty,
            last.ask,
            last.ask_qty,
            self._spread_ms / self._ms if self._ms else last.spread_bps,
            self._imbalance_ms / self._ms if self._ms else _imbalance(last),
            self.order_flow,
            self.updates,
            self.lag_ms / self.updates if self.updates else None,
            last.updated_at,
            last.received_at,
        )


class BookTickerHandler:
    """The newest best bid and ask by symbol, and a row of `book_minutes` for every minute in which one came.

    Minutes are the exchange's. A row is added when the first update of a later minute comes, and by `flush`.
    """

    def __init__(self, add_row: Callable[[BookMinuteRow], None]) -> None:
        self.latest: dict[str, BookTicker] = {}
        self._minutes: dict[str, BookMinute] = {}
        self._add_row = add_row

    def handle(self, book: BookTicker) -> None:
        symbol = book.symbol
        known = self.latest.get(symbol)
        if known is None:
            self.latest[symbol] = book
            self._minutes[symbol] = BookMinute(book.updated_at - book.updated_at % MINUTE_MS)
            self._minutes[symbol].updates = 1
            self._minutes[symbol].lag_ms = book.received_at - book.updated_at
            return
        if book.update_id <= known.update_id and book.updated_at <= known.updated_at:
            return  # a repeat, or overtaken on another connection
        minute = self._minutes[symbol]
        boundary = minute.minute + MINUTE_MS
        if book.updated_at >= boundary:
            minute.stood(known, boundary - known.updated_at)
            self._add_row(minute.row(known))
            opened = book.updated_at - book.updated_at % MINUTE_MS
            minute = self._minutes[symbol] = BookMinute(opened)
            minute.stood(known, book.updated_at - opened)
        else:
            minute.stood(known, book.updated_at - known.updated_at)
        minute.changed(known, book)
        self.latest[symbol] = book

    def slippage(self, symbol: str, side: Side, quantity: float) -> SlippageEstimate | None:
        """What a market order would probably fill at, by the newest best bid and ask; None before the first."""
        book = self.latest.get(symbol)
        return None if book is None else slippage_estimate(book, side, quantity)

    def flush(self) -> None:
        """Add the rows of the minutes in progress."""
        for symbol, minute in self._minutes.items():
            if minute.updates:
                self._add_row(minute.row(self.latest[symbol]))

    def forget(self, symbol: str) -> None:
        self.latest.pop(symbol, None)
        self._minutes.pop(symbol, None)


def _imbalance(book: BookTicker) -> float:
    """(bid_qty - ask_qty) / (bid_qty + ask_qty), 0 where nothing is quoted."""
    total = book.bid_qty + book.ask_qty
    return (book.bid_qty - book.ask_qty) / total if total else 0.0
