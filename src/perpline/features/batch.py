"""The vectors of history: the kernel's steps in a loop, so that they have the bits that live had."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from perpline.domain.candle import MINUTE_MS
from perpline.features import kernel
from perpline.features.catalogue import CATALOGUE, QUOTE_UNITS, VOLUME_UNITS, lookback_of
from perpline.features.kernel import Floats, Integers, Singles
from perpline.storage.history import SymbolHistory
from perpline.storage.store import Columns

LARGEST_UNITS = 1 << 50
"""Bound of a minute's volume in its integer unit, far beyond any market, so that a week of them fits 64 bits."""

PRICE_KNOWN_AFTER_MS = 2 * MINUTE_MS
"""Mark, index and premium bars count as known this long after they opened (features.md 1.5)."""

LOOKBACK_MIN = lookback_of(CATALOGUE)

CHUNK = 4_096
"""Candles of a portion: two megabytes of vectors, which the caches hold until they are used. Also of what is made ready
for the kernel at once: a whole history would have to be fetched page by page, which took a fifth of the time."""

_Part = tuple[NDArray[Any], ...]
"""known_at, times, values and what stands beside them, of the rows of a kind."""
_NO_ROWS: _Part = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0))

_CROSS_CHUNK = 90
"""Minutes that states may be ahead of the cross-section they are asked for."""

BTC = "BTCUSDT"


def rules() -> Floats:
    """What the catalogue says of each column, as the kernel wants it: float64 [4, WIDTH]."""
    return np.array(
        [
            [feature.lookback_min for feature in CATALOGUE],
            [feature.clip[0] if feature.clip else -math.inf for feature in CATALOGUE],
            [feature.clip[1] if feature.clip else math.inf for feature in CATALOGUE],
            [float(feature.needs_flow) for feature in CATALOGUE],
        ]
    )


class Known(Struct, frozen=True):
    """Rows of all kinds that are not candles, kind after kind, each by the time it became known."""

    known_at: Integers
    times: Integers
    values: Floats
    """[n, 2]: what `kernel.put` takes as value and beside."""
    bounds: Integers
    """Rows of kind i lie in [bounds[i], bounds[i + 1])."""


def candle_columns(candles: Columns) -> Integers:
    """int64 [11, n], a column for each candle: the arguments of `kernel.push` from `minute` on."""
    quote, bought, trades = candles["quote_volume"], candles["taker_buy_volume"], candles["trades"]
    whole = ~(np.isnan(quote) | np.isnan(bought)) & (trades >= 0)
    return np.stack(
        [
            candles["open_time"] // MINUTE_MS,
            candles["log_open"],
            candles["log_high"],
            candles["log_low"],
            candles["log_close"],
            _units(candles["volume"], VOLUME_UNITS),
            _units(np.where(whole, bought, 0.0), VOLUME_UNITS),
            _units(np.where(whole, quote, 0.0), QUOTE_UNITS),
            np.where(whole, trades, 0),
            candles["synthetic"],
            whole,
        ],
        dtype=np.int64,
        casting="unsafe",
    )


def known_rows(history: SymbolHistory) -> Known:
    """The rows of a history that are not candles or books."""
    return _together(_parts(history))


def book_rows(history: SymbolHistory) -> Floats:
    """float64 [n, 9], a row for each minute: the arguments of `kernel.put_book`."""
    columns = ("minute", "bid", "bid_qty", "ask", "ask_qty", "spread_bps", "imbalance", "order_flow_imbalance")
    return np.stack([history.book[name].astype(np.float64) for name in (*columns, "updated_at")], axis=1)


class _Ready(Struct, frozen=True):
    """A portion of a history, as the kernel takes it."""

    first: int
    last: int
    candles: Integers
    known: Known
    places: Integers


class SymbolReplay:
    """One symbol's way through history. Handing in a history in pieces, one after the other, gives the same vectors as
    handing it in whole."""

    def __init__(
        self,
        *,
        listed_at: int | None = None,
        lookback_min: int = LOOKBACK_MIN,
        columns: Sequence[int] = range(kernel.WIDTH),
    ) -> None:
        self.ints, self.floats = kernel.new_states(1, lookback_min)
        self._columns = len(columns)
        self._runs = _runs(columns)
        self.ints[0, kernel.LISTED] = (listed_at or 0) // MINUTE_MS
        self._rules = rules()
        self._candles: Columns = {}
        self._minutes = np.empty(0, np.int64)
        self._next = 0
        self._parts: list[_Part] = [_NO_ROWS] * kernel.BOOK
        self._known_by = [times for times, *_ in self._parts]
        self._read = np.zeros(kernel.BOOK, np.int64)
        self._books = np.empty((0, 9))
        self._ready = _nothing_ready()

    def take(self, history: SymbolHistory) -> None:
        """Take what follows on what was taken before, which `vectors` must have gone through."""
        self._read_on()
        left = [tuple(column[read:] for column in part) for part, read in zip(self._parts, self._read, strict=True)]
        self._parts = [_joined(*both) for both in zip(left, _parts(history), strict=True)]
        # What waits in front holds up what is behind it, as it would live.
        self._known_by = [np.maximum.accumulate(part[0]) for part in self._parts]
        self._read = np.zeros(kernel.BOOK, np.int64)
        self._books = np.concatenate([self._books[self._ready.places[kernel.BOOK] :], book_rows(history)])
        self._candles, self._next = history.candles, 0
        self._minutes = history.candles["open_time"] // MINUTE_MS
        self._ready = _nothing_ready()

    def vectors(
        self, start: int, end: int, limit: int | None = None, into: Singles | None = None
    ) -> tuple[Integers, Singles]:
        """(times int64 [n], vectors float32 [n, len(columns)]) of the next candles, at most `limit`, that close before
        `end`. Those that close before `start` only fill the windows. Columns of group K are NaN.

        They are written to the array `into`, of at least `limit` rows, if there is one."""
        first = self._next
        last = int(np.searchsorted(self._minutes, -(-end // MINUTE_MS) - 1))
        last = max(first, last if limit is None else min(last, first + limit))
        out = np.empty((last - first, self._columns), np.float32) if into is None else into
        count = 0
        while self._next < last:
            if self._next == self._ready.last:
                self._make_ready()
            ready, upto = self._ready, min(last, self._ready.last)
            count += kernel.replay(
                self.ints[0],
                self.floats[0],
                ready.candles,
                self._next - ready.first,
                upto - ready.first,
                ready.known.known_at,
                ready.known.times,
                ready.known.values,
                ready.known.bounds,
                ready.places,
                self._books,
                self._rules,
                -(-start // MINUTE_MS) - 1,
                self._runs,
                out[count:],
            )
            self._next = upto
        return (self._minutes[last - count : last] + 1) * MINUTE_MS, out[:count]

    def _make_ready(self) -> None:
        """The next portion of candles, and what becomes known until the last of them closes."""
        self._read_on()
        first, last = self._next, min(self._next + CHUNK, len(self._minutes))
        until = (int(self._minutes[last - 1]) + 1) * MINUTE_MS
        upto = [np.searchsorted(known_by, until, side="right") for known_by in self._known_by]
        known = _together(
            [
                tuple(column[read:to] for column in part)
                for part, read, to in zip(self._parts, self._read, upto, strict=True)
            ]
        )
        candles = candle_columns({name: column[first:last] for name, column in self._candles.items()})
        places = np.append(known.bounds[:-1], self._ready.places[kernel.BOOK])
        self._ready = _Ready(first, last, candles, known, places)

    def _read_on(self) -> None:
        """Of each kind, how far the kernel has come."""
        self._read += self._ready.places[:-1] - self._ready.known.bounds[:-1]

    def run(
        self, history: SymbolHistory, start: int, end: int, *, chunk: int = CHUNK, reuse: bool = False
    ) -> Iterator[tuple[Integers, Singles]]:
        """`take` this, and `vectors` of all its candles in portions; with `reuse` each is written over the one before,
        in memory that the caches hold: a new array has to be fetched page by page."""
        self.take(history)
        into = np.empty((chunk, self._columns), np.float32) if reuse else None
        for _ in range(0, len(self._minutes), chunk):
            times, vectors = self.vectors(start, end, chunk, into)
            if len(times):
                yield times, vectors


def vectors_of(
    history: SymbolHistory, start: int, end: int, *, chunk: int = CHUNK, listed_at: int | None = None
) -> Iterator[tuple[Integers, Singles]]:
    """(times int64 [n], vectors float32 [n, WIDTH]) of the candles that close at start <= T < end, in portions.

    For whole windows the history must begin `LOOKBACK_MIN` minutes before `start`; it must hold the rows of other
    series as far back. Columns of group K are NaN: they need `universe_vectors`.
    """
    return SymbolReplay(listed_at=listed_at).run(history, start, end, chunk=chunk)


class UniverseReplay:
    """Several symbols' way through history side by side, with the columns of group K."""

    def __init__(self, symbols: Sequence[str]) -> None:
        self.symbols = list(symbols)
        self._replays = {symbol: SymbolReplay() for symbol in self.symbols}
        self._rules = rules()
        self._states = np.concatenate([replay.ints for replay in self._replays.values()])
        for place, replay in enumerate(self._replays.values()):
            replay.ints = self._states[place : place + 1]

    def run(
        self, histories: Mapping[str, SymbolHistory], start: int, end: int
    ) -> Iterator[dict[str, tuple[Integers, Singles]]]:
        """Portions of 90 minutes: of each symbol that has candles in them what `SymbolReplay.vectors` gives, and K.
        May be called again with what follows."""
        for symbol in self.symbols:
            self._replays[symbol].take(histories[symbol])
        opened = [history.candles["open_time"] for history in histories.values() if len(history.candles["open_time"])]
        first = min((int(opens[0]) for opens in opened), default=end)
        end = min(end, max((int(opens[-1]) for opens in opened), default=end) + MINUTE_MS + 1)
        for begin in range(first, end, _CROSS_CHUNK * MINUTE_MS):
            until = min(begin + _CROSS_CHUNK * MINUTE_MS, end)
            made = {symbol: replay.vectors(start, until) for symbol, replay in self._replays.items()}
            part = {symbol: rows for symbol, rows in made.items() if len(rows[0])}
            if part:
                self._add_cross_section(part)
                yield part

    def _add_cross_section(self, part: dict[str, tuple[Integers, Singles]]) -> None:
        for close in np.unique(np.concatenate([times for times, _ in part.values()])).tolist():
            members = [
                (place, symbol, int(at))
                for place, symbol in enumerate(self.symbols)
                if symbol in part
                and (at := np.searchsorted(part[symbol][0], close)) < len(part[symbol][0])
                and part[symbol][0][at] == close
            ]
            vectors = np.stack([part[symbol][1][at] for _, symbol, at in members])
            btc = next((n for n, (_, symbol, _) in enumerate(members) if symbol == BTC), -1)
            rows = np.array([place for place, _, _ in members])
            kernel.cross_section(self._states, rows, close // MINUTE_MS - 1, btc, self._rules, vectors)
            for vector, (_, symbol, at) in zip(vectors, members, strict=True):
                part[symbol][1][at] = vector


def _parts(history: SymbolHistory) -> list[_Part]:
    return [
        *(
            (bars["open_time"] + PRICE_KNOWN_AFTER_MS, bars["open_time"], bars["close"], bars["close"])
            for bars in (history.mark, history.index, history.premium)
        ),
        _ordered(history.funding, "funding_time", "rate", "interval_hours"),
        _ordered(history.open_interest, "time", "open_interest", "open_interest_value"),
        *(
            _ordered(history.ratios[ratio], "period_end", "value", "value")
            for ratio in ("global_account", "top_account", "top_position")
        ),
    ]


def _nothing_ready() -> _Ready:
    known = _together([_NO_ROWS] * kernel.BOOK)
    return _Ready(0, 0, np.empty((11, 0), np.int64), known, np.zeros(kernel.BOOK + 1, np.int64))


def _runs(columns: Sequence[int]) -> Integers:
    """int64 [n, 2]: first and last + 1 of columns that follow on each other."""
    ends = [i for i in range(1, len(columns)) if columns[i] != columns[i - 1] + 1]
    spans = zip([0, *ends], [*ends, len(columns)], strict=True)
    return np.array([(columns[first], columns[last - 1] + 1) for first, last in spans], np.int64)


def _units(amounts: NDArray[np.float64], scale: int) -> Integers:
    return np.minimum(np.rint(amounts * scale), LARGEST_UNITS).astype(np.int64)


def _ordered(columns: Columns, time: str, value: str, beside: str) -> tuple[NDArray[Any], ...]:
    """Rows by known_at, then by time; of several revisions that became known together the first comes first."""
    names = ("known_at", time, value, beside)
    keys = [columns[name] for name in ("revision", time, "known_at") if name in columns]
    if len(keys) > 2 and keys[0].any():
        order = np.lexsort(keys)
        return tuple(columns[name][order] for name in names)
    return tuple(columns[name] for name in names)


def _joined(left: _Part, new: _Part) -> _Part:
    """The rows of a kind, those left from before first; they may have become known later than the first of the new."""
    if not len(left[0]):
        return new
    joined = tuple(np.concatenate(columns) for columns in zip(left, new, strict=True))
    order = np.argsort(joined[0], kind="stable")
    return tuple(column[order] for column in joined)


def _together(parts: Sequence[_Part]) -> Known:
    known_at, times, values, beside = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Known(known_at, times, np.stack([values, beside], axis=1), _bounds([part[0] for part in parts]))


def _bounds(parts: Sequence[NDArray[Any]]) -> Integers:
    return np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
