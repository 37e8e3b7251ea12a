"""The vectors of `catalogue.CATALOGUE` for the minutes that just closed, from windows of contiguous 1m candles.

Everything is summed as integers over finite windows, so that a vector depends on the minutes it looks back on and on
nothing before them: a process that started an hour ago and one that started a year ago give the same bits.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from perpline.domain.candle import LOG_SCALE, MINUTE_MS, Candle
from perpline.features.catalogue import CATALOGUE, QUOTE_UNITS, RETURN_CLIP, SQUARE_SHIFT, VOLUME_UNITS

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

_RING = 256  # minutes kept per symbol: the longest lookback, rounded up to a power of two
_LONGEST_FLOW = 60  # minutes of volume and taker buying that any feature looks back on
_LARGEST = 1 << 53
"""Bound of a minute's volume in its integer unit, far beyond any market, so that 240 of them fit 64 bits."""


class LiveFeatures:
    """Windows of contiguous 1m candles of the symbols that are followed. `vectors` may be asked after any `add`."""

    lookback_min = max(feature.lookback_min for feature in CATALOGUE)

    def __init__(self, symbols: Iterable[str]) -> None:
        self._rows = {symbol: row for row, symbol in enumerate(symbols)}
        count = len(self._rows)
        # log close, quote volume, volume, taker-buy volume; a minute's place follows from its time
        self._rings: Integers = np.zeros((4, count, _RING), np.int64)
        self._last_open = [0] * count
        self._held = [0] * count
        self._after_gap = [False] * count

    def add(self, candle: Candle) -> None:
        """Take the next closed 1m candle of a symbol.

        One that does not follow the last one restarts the symbol's window. Raises ValueError for a candle that is not
        later than the last one, or is no 1m candle (whoever delivers candles delivers each once and in order), KeyError
        for a symbol that is not followed.
        """
        row = self._rows[candle.symbol]
        open_time = candle.open_time
        held = self._held[row]
        if candle.interval != "1m":
            raise ValueError(f"{candle.symbol}: a {candle.interval} candle among the 1m candles")
        if held:
            step = open_time - self._last_open[row]
            if step <= 0:
                raise ValueError(f"{candle.symbol}: candle {open_time} after {self._last_open[row]}")
            if step != MINUTE_MS:
                held = 0
                self._after_gap[row] = True
        self._last_open[row] = open_time
        self._held[row] = min(held + 1, _RING)
        self._rings[:, row, open_time // MINUTE_MS % _RING] = (
            candle.log_close,
            _units(candle.quote_volume, QUOTE_UNITS),
            _units(candle.volume, VOLUME_UNITS),
            _units(candle.taker_buy_volume, VOLUME_UNITS),
        )

    def follow(self, symbol: str) -> None:
        """Make room for one symbol more. Not for the hot path: the windows of all symbols are copied."""
        if symbol in self._rows:
            return
        self._rows[symbol] = len(self._rows)
        self._rings = np.concatenate([self._rings, np.zeros((4, 1, _RING), np.int64)], axis=1)
        self._last_open.append(0)
        self._held.append(0)
        self._after_gap.append(False)

    def rebuild(self, candles: Sequence[Candle]) -> None:
        """Replace a symbol's window by these candles, oldest first, after a hole in it was repaired."""
        row = self._rows[candles[0].symbol]
        self._held[row] = 0
        self._after_gap[row] = False
        for candle in candles:
            self.add(candle)

    def last_open(self, symbol: str) -> int | None:
        """Open time of the newest candle, None before the first."""
        row = self._rows[symbol]
        return self._last_open[row] if self._held[row] else None

    def held(self, symbol: str) -> int:
        """Contiguous minutes held, up to the newest; counted no further than a little beyond `lookback_min`."""
        return self._held[self._rows[symbol]]

    def broken_by_gap(self, symbol: str) -> bool:
        """Whether fewer than `lookback_min` minutes are held because a hole restarted the window."""
        row = self._rows[symbol]
        return self._after_gap[row] and self._held[row] < self.lookback_min

    def vectors(self, symbols: Sequence[str]) -> Floats:
        """float64 [len(symbols), len(CATALOGUE)]: each symbol's features at the close of its newest candle, NaN by the
        rules of the catalogue. To be cast to float32 for a model."""
        rows = np.array([self._rows[symbol] for symbol in symbols], np.intp)
        if not len(rows):
            return np.empty((0, len(CATALOGUE)))
        newest = np.array([self._last_open[row] for row in rows.tolist()]) // MINUTE_MS
        minutes = np.arange(1 - self.lookback_min, 1)
        prices, flows = self._rings[:2], self._rings[2:]
        if (newest == newest[0]).all():
            # The usual case, all closed together: two takes are ten times as quick as gathering each row's own places.
            places = (newest[0] + minutes) % _RING
            log_close, quote = prices.take(rows, axis=1).take(places, axis=2)
            volume, bought = flows.take(rows, axis=1).take(places[-_LONGEST_FLOW:], axis=2)
        else:
            own_places = (newest[:, None] + minutes) % _RING
            log_close, quote = prices[:, rows[:, None], own_places]
            volume, bought = flows[:, rows[:, None], own_places[:, -_LONGEST_FLOW:]]
        columns = _columns(log_close, quote, volume, bought)
        vectors = np.column_stack([_clipped(columns[f.name], f.clip) for f in CATALOGUE])
        held = np.array([self._held[row] for row in rows.tolist()])
        vectors[held[:, None] < _LOOKBACKS] = math.nan  # N1
        return vectors


_LOOKBACKS = np.array([feature.lookback_min for feature in CATALOGUE])


def _units(amount: float, scale: int) -> int:
    return min(round(amount * scale), _LARGEST)


def _columns(log_close: Integers, quote: Integers, volume: Integers, bought: Integers) -> dict[str, Floats]:
    """Every feature by name, from windows [symbol, minute] with the newest minute last."""
    k = np.clip(np.diff(log_close, axis=1), -RETURN_CLIP, RETURN_CLIP)
    squares = (k >> SQUARE_SHIFT) ** 2
    returns = {w: _sum(k, w) / LOG_SCALE for w in (1, 5, 15)}
    sigma = {w: np.sqrt(_sum(squares, w) / w) * (1 << SQUARE_SHIFT) / LOG_SCALE for w in (15, 60, 240)}
    quotes = {w: _sum(quote, w) / w + 1.0 for w in (1, 15, 60, 240)}
    flow = 2 * bought - volume
    return {
        **{f"ret_{w}": value for w, value in returns.items()},
        **{f"zret_{w}": _ratio(returns[w], sigma[240] * math.sqrt(w)) for w in (5, 15)},
        "eff_60": _ratio(np.abs(_sum(k, 60)), _sum(np.abs(k[:, -60:]), 60)),
        **{f"rv_{w}": _log(sigma[w] + 1e-6) for w in (15, 60)},
        "rvr_15_240": _log(_ratio(sigma[15], sigma[240])),
        "vlr_1_60": _log(quotes[1] / quotes[60]),
        "vlr_15_240": _log(quotes[15] / quotes[240]),
        **{f"tbi_{w}": _ratio(_sum(flow, w), _sum(volume, w)) for w in (5, 15, 60)},
    }


def _sum(values: Integers, window: int) -> Integers:
    total: Integers = values[:, -window:].sum(axis=1)
    return total


def _ratio(numerator: Integers | Floats, denominator: Integers | Floats) -> Floats:
    """N3: 0 where both are 0, NaN where only the denominator is."""
    ratio = np.where(numerator == 0, 0.0, math.nan)
    np.divide(numerator, denominator, out=ratio, where=denominator != 0)
    return ratio


def _log(values: Floats) -> Floats:
    # One by one with the C library: numpy's vectorised logarithm may differ from it in the last bit, and with the
    # processor. The logarithm of 0 has no value (N3).
    return np.array([math.log(value) if value > 0 else math.nan for value in values.tolist()])


def _clipped(column: Floats, clip: tuple[float, float] | None) -> Floats:
    return column if clip is None else np.clip(column, *clip)
