"""Candles as they form, and what happens when one closes."""

from collections import Counter
from collections.abc import Callable

from perpline.domain.candle import INTERVAL_MS, Candle, KlineUpdate, closed_candle


class KlineHandler:
    """Keeps the newest forming candle of every symbol and interval, and hands closed ones on, once each.

    Closed candles of any source enter `handle` (socket, REST, replay) or reach `deliver` through `offer`, which puts
    them in order and drops repeats (collector/gaps.py). `deliver` stores and caches; a 1m candle also goes to the
    features and then to `on_1m_candle_close(symbol, close_time)`. 15m and 1h candles never trigger a decision.
    """

    def __init__(
        self,
        *,
        add_row: Callable[[Candle], None],
        add_to_features: Callable[[Candle], None],
        on_1m_candle_close: Callable[[str, int], None],
    ) -> None:
        self.forming: dict[str, dict[str, KlineUpdate]] = {interval: {} for interval in INTERVAL_MS}
        """The newest update by interval and symbol, forming or just closed."""
        self.last_closed: dict[str, dict[str, Candle]] = {interval: {} for interval in INTERVAL_MS}
        """The newest delivered candle by interval and symbol."""
        self.offer: Callable[[Candle], object] = self.deliver
        """Where closed candles go to be put in order. bootstrap sets it; without it they are delivered as they come."""
        self.closed_by: Counter[tuple[str, str]] = Counter()
        """Delivered candles by symbol and interval."""
        self._add_row = add_row
        self._add_to_features = add_to_features
        self._on_1m_candle_close = on_1m_candle_close

    def handle(self, update: KlineUpdate) -> None:
        """Take an update of a stream; decoding has made sure that a closed one is a possible candle."""
        newest = self.forming[update.interval]
        known = newest.get(update.symbol)
        if known is None or (update.open_time, update.event_time) >= (known.open_time, known.event_time):
            newest[update.symbol] = update
        if update.closed:
            self.offer(closed_candle(update))

    def deliver(self, candle: Candle) -> None:
        """Take a closed candle whose turn it is."""
        self.closed_by[(candle.symbol, candle.interval)] += 1
        self.last_closed[candle.interval][candle.symbol] = candle
        self._add_row(candle)
        if candle.interval == "1m":
            self._add_to_features(candle)
            self._on_1m_candle_close(candle.symbol, candle.boundary)

    @property
    def closed(self) -> int:
        """Candles delivered in all."""
        return self.closed_by.total()

    def forget(self, symbol: str) -> None:
        for interval in INTERVAL_MS:
            self.forming[interval].pop(symbol, None)
            self.last_closed[interval].pop(symbol, None)
