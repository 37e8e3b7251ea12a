"""Candles as they form, and what happens when one closes."""

from collections import Counter
from collections.abc import Callable, Mapping

from perpline.domain.candle import INTERVAL_MS, Candle, KlineUpdate, closed_candle
from perpline.websocket.lane import Lane


class KlineHandler:
    """Keeps the newest forming candle of every symbol and interval, and hands closed ones on, once each.

    Closed candles of any source enter `handle` (socket, REST, replay) or reach `deliver` through `offer`, which puts
    them in order and drops repeats (collector/gaps.py). `deliver` stores and caches; a 1m candle also goes to the
    features and then to `on_1m_candle_close(symbol, close_time)`. 15m and 1h candles never trigger a decision.

    Of an interval with a lane, forming candles come through it as bytes and are decoded when asked for.
    """

    def __init__(
        self,
        *,
        add_row: Callable[[Candle], None],
        add_to_features: Callable[[Candle], None],
        on_1m_candle_close: Callable[[str, int], None],
        lanes: Mapping[str, Lane[KlineUpdate]] | None = None,
        follows: Callable[[str], bool] = lambda symbol: True,
    ) -> None:
        """`lanes` by interval. What comes of a symbol that is not followed (any more) is dropped."""
        self.forming: dict[str, dict[str, KlineUpdate]] = {interval: {} for interval in INTERVAL_MS}
        """The newest decoded update by interval and symbol, forming or just closed."""
        self.last_closed: dict[str, dict[str, Candle]] = {interval: {} for interval in INTERVAL_MS}
        """The newest delivered candle by interval and symbol."""
        self.offer: Callable[[Candle], object] = self.deliver
        """Where closed candles go to be put in order. bootstrap sets it; without it they are delivered as they come."""
        self.closed_by: Counter[tuple[str, str]] = Counter()
        """Delivered candles by symbol and interval."""
        self._add_row = add_row
        self._add_to_features = add_to_features
        self._on_1m_candle_close = on_1m_candle_close
        self._lanes = dict(lanes or {})
        self._follows = follows

    def get(self, symbol: str, interval: str) -> KlineUpdate | None:
        """The newest update of a symbol's candle, forming or just closed, None before the first."""
        lane = self._lanes.get(interval)
        for update in lane.take(symbol) if lane is not None else ():
            self.handle(update)
        return self.forming[interval].get(symbol)

    def handle(self, update: KlineUpdate) -> None:
        """Take an update of a stream; decoding has made sure that a closed one is a possible candle."""
        newest = self.forming[update.interval]
        known = newest.get(update.symbol)
        if known is None and not self._follows(update.symbol):
            return
        if (
            known is None
            or (update.open_time, update.event_time) > (known.open_time, known.event_time)
            or ((update.open_time, update.event_time) == (known.open_time, known.event_time) and not known.closed)
        ):
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
