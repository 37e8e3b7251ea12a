"""The vectors of minutes whose features were made elsewhere: what collectors sent, for who only holds the model."""

from collections.abc import Iterable, Sequence

import numpy as np

from perpline.bus.feature_stream import FeatureRow
from perpline.domain.candle import MINUTE_MS, Candle
from perpline.domain.market import BookTicker, MarkPrice
from perpline.features import kernel
from perpline.features.batch import BTC, rules
from perpline.features.kernel import Singles

KEPT_MINUTES = 3
"""Rows older than this many minutes before the newest are forgotten: their time to be decided is over."""


class ReceivedFeatures:
    """What the last minutes' rows say. `at` chooses the minute that all other questions are about.

    With `cross_section` the columns of group K are made of all symbols whose rows of the minute are here.
    """

    def __init__(self) -> None:
        self.cross_section = False
        self._rules = rules()
        self._minutes: dict[int, dict[str, FeatureRow]] = {}
        self._at = 0
        self._newest = 0
        kernel.compare(-1, self._rules, np.full((1, kernel.WIDTH), np.nan, np.float32))  # compiled now, or loaded

    def take(self, close_time: int, rows: Iterable[FeatureRow]) -> list[str]:
        """Keep these rows of T; returns the symbols that had none. A row that is here stays."""
        if close_time <= self._newest - KEPT_MINUTES * MINUTE_MS:
            return []
        minute = self._minutes.setdefault(close_time, {})
        new = []
        for row in rows:
            if row.symbol not in minute:
                minute[row.symbol] = row
                new.append(row.symbol)
        if close_time > self._newest:
            self._newest = close_time
            for old in [t for t in self._minutes if t <= close_time - KEPT_MINUTES * MINUTE_MS]:
                del self._minutes[old]
        return new

    def at(self, close_time: int) -> None:
        self._at = close_time

    def here(self, close_time: int) -> frozenset[str]:
        """The symbols that have a row of T."""
        return frozenset(self._minutes.get(close_time, ()))

    def vectors(self, symbols: Sequence[str]) -> Singles:
        """float32 [len(symbols), len(CATALOGUE)]. Raises KeyError for a symbol without a row of the minute."""
        minute = self._minutes[self._at]
        if not self.cross_section:
            return _table([minute[symbol] for symbol in symbols])
        names = list(minute)
        every = _table(list(minute.values()))
        places = {symbol: place for place, symbol in enumerate(names)}
        kernel.compare(places.get(BTC, -1), self._rules, every)
        return every[[places[symbol] for symbol in symbols]]

    def held(self, symbol: str) -> int:
        return self._row(symbol).held

    def broken_by_gap(self, symbol: str, lookback_min: int) -> bool:
        row = self._row(symbol)
        return row.restarted and row.held < lookback_min

    def late(self, symbol: str) -> int:
        return self._row(symbol).late

    def received_us(self, symbol: str) -> int:
        return self._row(symbol).received_us

    def mark(self, symbol: str) -> MarkPrice | None:
        return self._row(symbol).mark

    def book(self, symbol: str) -> BookTicker | None:
        return self._row(symbol).book

    def candle(self, symbol: str) -> Candle | None:
        return self._row(symbol).candle

    def _row(self, symbol: str) -> FeatureRow:
        return self._minutes[self._at][symbol]


def _table(rows: Sequence[FeatureRow]) -> Singles:
    table = np.frombuffer(b"".join(row.vector for row in rows), "<f4").reshape(len(rows), kernel.WIDTH)
    return table.astype(np.float32)
