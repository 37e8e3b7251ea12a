"""The vectors of the minutes that just closed: windows of contiguous 1m candles, and what else is known by then."""

import math
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import msgspec
import numpy as np

from perpline.domain.candle import MINUTE_MS, Candle
from perpline.features import kernel
from perpline.features.batch import BTC, LARGEST_UNITS, LOOKBACK_MIN, book_rows, known_rows, rules
from perpline.features.catalogue import CATALOGUE, QUOTE_UNITS, VOLUME_UNITS, schema_hash
from perpline.features.compiled import is_kept
from perpline.features.kernel import Singles
from perpline.storage.history import SymbolHistory
from perpline.storage.store import TABLES, Row

STATE_VERSION = 1
"""Of a snapshot; changed with the layout of the kernel's state."""

WAITING_PER_SYMBOL = 64
"""Rows of other series that may wait for their known_at, for each symbol: a quarter of an hour of them."""

_PRICES = {"mark_klines": kernel.MARK, "index_klines": kernel.INDEX, "premium_klines": kernel.PREMIUM}
_RATIOS = {
    "global_account": kernel.GLOBAL,
    "top_account": kernel.TOP_ACCOUNT,
    "top_position": kernel.TOP_POSITION,
}
_BOOK_COLUMNS = [
    TABLES["book_minutes"].columns.index(name)
    for name in ("bid", "bid_qty", "ask", "ask_qty", "spread_bps", "imbalance", "order_flow_imbalance", "updated_at")
]


def compile_kernel() -> None:
    """Compile everything that a close needs, or load it from the disk: seconds, to be spent before connecting."""
    features = LiveFeatures([BTC], cross_section=True)
    ints, floats = features._ints, features._floats
    kernel.push(ints, floats, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
    kernel.put(ints, floats, 0, kernel.MARK, 0, 1.0, 1.0)
    kernel.put_book(ints, floats, 0, 0, np.ones(8))
    waiting, values, bounds = np.zeros((1, 4), np.int64), np.ones((1, 2)), np.zeros(kernel.BOOK + 1, np.int64)
    kernel.put_known(ints, floats, waiting, values, 1, 0)
    kernel.put_until(ints, floats, 0, waiting[0], waiting[0], values, bounds, bounds.copy(), 0)
    features.vectors([BTC])


def kernel_is_kept() -> bool:
    """Whether `compile_kernel` will find the machine code on the disk."""
    return is_kept(kernel.finish)


class LiveFeatures:
    """Windows of contiguous 1m candles of the symbols that are followed. `vectors` may be asked after any `add`.

    Columns that look back further than `lookback_min` have no value; memory goes with it. With `cross_section` the
    columns of group K are made too, of all symbols that have the same minute.
    """

    def __init__(
        self,
        symbols: Iterable[str],
        lookback_min: int = LOOKBACK_MIN,
        *,
        cross_section: bool = False,
    ) -> None:
        self.lookback_min = lookback_min
        self.cross_section = cross_section
        self._rules = rules()
        self._rows = {symbol: row for row, symbol in enumerate(symbols)}
        self._free: list[int] = []
        """Rows of symbols that were forgotten."""
        self._ints, self._floats = kernel.new_states(len(self._rows), lookback_min)
        self._late = np.zeros(len(self._rows), np.int64)
        # Rows that are not known yet: the symbol's row, kind, time, known_at; value and what is beside it.
        self._waiting = np.zeros((1024, 4), np.int64)
        self._waiting_values = np.zeros((1024, 2))
        self._waiting_count = 0

    def add(self, candle: Candle) -> None:
        """Take the next closed 1m candle of a symbol.

        One that does not follow the last one restarts the symbol's window. Raises ValueError for a candle that is not
        later than the last one, or is no 1m candle (whoever delivers candles delivers each once and in order), KeyError
        for a symbol that is not followed.
        """
        row = self._rows[candle.symbol]
        minute = candle.open_time // MINUTE_MS
        if candle.interval != "1m":
            raise ValueError(f"{candle.symbol}: a {candle.interval} candle among the 1m candles")
        if minute <= self._ints[row, kernel.LAST] and self._ints[row, kernel.HELD]:
            last = int(self._ints[row, kernel.LAST]) * MINUTE_MS
            raise ValueError(f"{candle.symbol}: candle {candle.open_time} after {last}")
        quote, bought, trades = candle.quote_volume, candle.taker_buy_volume, candle.trades
        whole = quote == quote and bought == bought and trades >= 0
        kernel.push(
            self._ints,
            self._floats,
            row,
            minute,
            candle.log_open,
            candle.log_high,
            candle.log_low,
            candle.log_close,
            _units(candle.volume, VOLUME_UNITS),
            _units(bought, VOLUME_UNITS) if whole else 0,
            _units(quote, QUOTE_UNITS) if whole else 0,
            trades if whole else 0,
            int(candle.synthetic),
            int(whole),
        )

    def add_row(self, table: str, row: Row) -> None:
        """Take a row of any other table as it is stored, in any order; what no column is made of is passed over.

        It is used from its `known_at` on (features.md 1.5) and not before, however early it came. A value that is there
        stays: later revisions change nothing.
        """
        place = self._rows.get(row[0])
        if place is None:
            return
        if table in _PRICES:
            # The kernel reads these by their time and only up to a minute before T: they need not wait.
            kernel.put(self._ints, self._floats, place, _PRICES[table], row[1], row[5], row[5])
        elif table == "open_interest":
            _, time, value, in_quote, kind, known_at, _ = row
            if kind == "hist_5m":
                self._wait(place, kernel.OPEN_INTEREST, time, known_at, value, in_quote)
        elif table == "long_short_ratio":
            _, ratio, time, value, _, _, known_at, *_ = row
            if ratio in _RATIOS:
                self._wait(place, _RATIOS[ratio], time, known_at, value, value)
        elif table == "funding_rates":
            _, time, rate, _, interval_hours, known_at = row
            self._wait(place, kernel.FUNDING, time, known_at, rate, interval_hours)
        elif table == "book_minutes":
            values = np.array([np.nan if row[column] is None else row[column] for column in _BOOK_COLUMNS], np.float64)
            kernel.put_book(self._ints, self._floats, place, row[1], values)

    def load(self, history: SymbolHistory, until: int) -> None:
        """Take the rows of a history that are not candles; what is known after `until`, a boundary, waits for it."""
        place = self._rows[history.symbol]
        known = known_rows(history)
        places = known.bounds[:-1].copy()
        kernel.put_until(
            self._ints,
            self._floats,
            place,
            known.known_at,
            known.times,
            known.values,
            known.bounds,
            places,
            until,
        )
        for kind in range(kernel.BOOK):
            for i in range(int(places[kind]), int(known.bounds[kind + 1])):
                self._wait(place, kind, int(known.times[i]), int(known.known_at[i]), *known.values[i].tolist())
        for book in book_rows(history)[-kernel.BOOK_MINUTES :]:
            kernel.put_book(self._ints, self._floats, place, int(book[0]), book[1:])

    def follow(self, symbol: str) -> None:
        """Make room for one symbol more. Not for the hot path: the windows of all symbols may be copied."""
        if symbol in self._rows:
            return
        if self._free:
            self._rows[symbol] = self._free.pop()
            return
        self._rows[symbol] = len(self._rows)
        ints, floats = kernel.new_states(1, self.lookback_min)
        self._ints = np.concatenate([self._ints, ints])
        self._floats = np.concatenate([self._floats, floats])
        self._late = np.append(self._late, 0)

    def forget(self, symbol: str) -> None:
        """Drop everything held of a symbol; its room is kept for the next one. Nothing for one that is not followed."""
        row = self._rows.pop(symbol, None)
        if row is None:
            return
        empty_ints, empty_floats = kernel.new_states(1, self.lookback_min)
        self._ints[row], self._floats[row], self._late[row] = empty_ints[0], empty_floats[0], 0
        count = self._waiting_count
        others = np.flatnonzero(self._waiting[:count, 0] != row)
        self._waiting[: len(others)] = self._waiting[others]
        self._waiting_values[: len(others)] = self._waiting_values[others]
        self._waiting_count = len(others)
        self._free.append(row)

    def rebuild(self, candles: Sequence[Candle]) -> None:
        """Replace a symbol's window by these candles, oldest first, after a hole in it was repaired."""
        row = self._rows[candles[0].symbol]
        self._ints[row, kernel.HELD] = 0
        self._ints[row, kernel.GAP] = 0
        for candle in candles:
            self.add(candle)

    def __contains__(self, symbol: str) -> bool:
        return symbol in self._rows

    def last_open(self, symbol: str) -> int | None:
        """Open time of the newest candle, None before the first."""
        row = self._rows[symbol]
        return int(self._ints[row, kernel.LAST]) * MINUTE_MS if self._ints[row, kernel.HELD] else None

    def held(self, symbol: str) -> int:
        """Contiguous minutes held, up to the newest."""
        return int(self._ints[self._rows[symbol], kernel.HELD])

    def broken_by_gap(self, symbol: str, lookback_min: int) -> bool:
        """Whether fewer than `lookback_min` minutes are held because a hole restarted the window."""
        row = self._rows[symbol]
        return bool(self._ints[row, kernel.GAP]) and self.held(symbol) < lookback_min

    def volatility(self, symbol: str, minutes: int) -> float | None:
        """Of one minute's log return around zero, over the last `minutes` closed ones; None where fewer are held."""
        row = self._rows.get(symbol)
        if row is None or self.held(symbol) <= minutes:
            return None
        state, last = self._ints[row], int(self._ints[row, kernel.LAST])
        newest, oldest = (
            kernel.DAY + (each % kernel.DAY_MINUTES) * kernel.DAY_COLUMNS for each in (last, last - minutes)
        )
        squares = int(state[newest + kernel.K2] - state[oldest + kernel.K2])
        return math.sqrt(squares / minutes) * 32.0 * kernel.LOG_UNIT

    def vectors(self, symbols: Sequence[str]) -> Singles:
        """float32 [len(symbols), len(CATALOGUE)]: each symbol's features at the close of its newest candle, NaN by the
        rules of the catalogue."""
        rows = np.array([self._rows[symbol] for symbol in symbols], np.int64)
        self._put_known(0)
        vectors = self._finished(rows)
        if self.cross_section and len(rows):
            minutes = self._ints[:, kernel.LAST]
            for minute in np.unique(minutes[rows]).tolist():
                members = np.flatnonzero((minutes == minute) & (self._ints[:, kernel.HELD] > 0))
                every = self._finished(members)
                found = np.flatnonzero(members == self._rows.get(BTC, -1))
                btc = int(found[0]) if len(found) else -1
                kernel.cross_section(self._ints, members, minute, btc, self._rules, every)
                wanted = minutes[rows] == minute
                vectors[wanted] = every[np.searchsorted(members, rows[wanted])]
        return vectors

    def late(self, symbol: str) -> int:
        """Of the newest vector of a symbol: the `catalogue.LATE_BITS` of what should have been known at T and had not
        come. Only the bits of series that a model uses (`catalogue.late_bits`) mean anything to it."""
        return int(self._late[self._rows[symbol]])

    def snapshot(self) -> bytes:
        """Everything held, to go on from in another process."""
        count = self._waiting_count
        content = msgspec.msgpack.encode(
            (
                self._symbols_by_row(),
                self.lookback_min,
                self._ints.tobytes(),
                self._floats.tobytes(),
                self._waiting[:count].tobytes(),
                self._waiting_values[:count].tobytes(),
            )
        )
        return _mark() + blake2b(content, digest_size=16).digest() + content

    def restore(self, snapshot: bytes) -> None:
        """Go on from a snapshot of the same symbols and lookback. Raises ValueError, and changes nothing, for one that
        is damaged, of another version or catalogue, or of other symbols."""
        mark, content = _mark(), snapshot[48:]
        if snapshot[:32] != mark or blake2b(content, digest_size=16).digest() != snapshot[32:48]:
            raise ValueError("no snapshot of this version and catalogue, or a damaged one")
        symbols, lookback_min, ints, floats, waiting, values = msgspec.msgpack.decode(
            content, type=tuple[list[str], int, bytes, bytes, bytes, bytes]
        )
        if symbols != self._symbols_by_row() or lookback_min != self.lookback_min:
            raise ValueError("a snapshot of other symbols or another lookback")
        self._ints = np.frombuffer(ints, np.int64).reshape(self._ints.shape).copy()
        self._floats = np.frombuffer(floats, np.float64).reshape(self._floats.shape).copy()
        self._waiting_count = 0
        for entry, value in zip(
            np.frombuffer(waiting, np.int64).reshape(-1, 4).tolist(),
            np.frombuffer(values, np.float64).reshape(-1, 2).tolist(),
            strict=True,
        ):
            self._wait(*entry, *value)

    def _symbols_by_row(self) -> list[str]:
        """Each row's symbol, empty for a row that is free."""
        symbols = [""] * len(self._ints)
        for symbol, row in self._rows.items():
            symbols[row] = symbol
        return symbols

    def _finished(self, rows: kernel.Integers) -> Singles:
        out, late = np.empty((len(rows), kernel.WIDTH)), np.empty(len(rows), np.int64)
        kernel.finish(self._ints, self._floats, rows, self._rules, out, late)
        self._late[rows] = late
        return out.astype(np.float32)

    def _wait(self, place: int, kind: int, time: int, known_at: int, value: float | None, beside: float | None) -> None:
        """Keep a row until it is known. When there are too many, the oldest half is put in: by then their symbols have
        had no candle for a quarter of an hour, and no vector of that time will be asked for."""
        count = self._waiting_count
        if count == len(self._waiting):
            if count < WAITING_PER_SYMBOL * len(self._rows):
                self._waiting = np.concatenate([self._waiting, np.zeros_like(self._waiting)])
                self._waiting_values = np.concatenate([self._waiting_values, np.zeros_like(self._waiting_values)])
            else:
                self._put_known(int(np.median(self._waiting[:, 3])))
                count = self._waiting_count
        self._waiting[count] = place, kind, time, known_at
        self._waiting_values[count] = np.nan if value is None else value, np.nan if beside is None else beside
        self._waiting_count = count + 1

    def _put_known(self, until: int) -> None:
        if self._waiting_count:
            self._waiting_count = kernel.put_known(
                self._ints, self._floats, self._waiting, self._waiting_values, self._waiting_count, until
            )


def _mark() -> bytes:
    """What a snapshot begins with: 32 bytes that change with the layout and the catalogue."""
    return blake2b(f"{STATE_VERSION} {schema_hash(CATALOGUE)} {kernel.LONG}".encode(), digest_size=32).digest()


def _units(amount: float, scale: int) -> int:
    return min(round(amount * scale), LARGEST_UNITS)
