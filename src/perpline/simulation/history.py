"""The past of a world as archive files, in the layout and format in which the exchange publishes its own.

    data/futures/um/monthly/klines/BTCUSDT/1m/BTCUSDT-1m-2026-10.zip                  whole months
    data/futures/um/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2026-11-01.zip                 the days of other months
    …/markPriceKlines, …/indexPriceKlines, …/premiumIndexKlines                       the same
    data/futures/um/daily/metrics/BTCUSDT/BTCUSDT-metrics-2026-11-01.zip              days only
    data/futures/um/monthly/fundingRate/BTCUSDT/BTCUSDT-fundingRate-2026-11.zip       months only

A zip holds one CSV of the same name, with a header; NAME.zip.CHECKSUM beside it holds its SHA-256. What a file says is
what the exchange of the same seed answers over REST, digit for digit where both show as many. Unlike the real ones, the
files of the last day and of its month's funding exist before these are over.
"""

import hashlib
import multiprocessing
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from perpline.simulation.exchange import DAY_MS, Exchange, next_open, open_of
from perpline.simulation.instruments import decimal_text
from perpline.simulation.market import (
    BUY_QUOTE,
    BUY_VOLUME,
    CLOSE,
    GENESIS_MS,
    HIGH,
    LOW,
    MINUTE_MS,
    OPEN,
    QUOTE,
    TRADES,
    VOLUME,
    Floats,
    Ints,
    World,
)

FIVE_MINUTES_MS: Final = 5 * MINUTE_MS
LABELS_CHANGE_MS: Final = 1_782_345_600_000
"""2026-06-25 UTC: before, a metrics row is labelled with the end of its five minutes, since then with the beginning
(features.md 1.5). The row of the five minutes that end at that midnight has no label in either, and is missing."""

KLINE_HEADER: Final = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,taker_buy_quote_volume,ignore"
)
METRICS_HEADER: Final = (
    "create_time,symbol,sum_open_interest,sum_open_interest_value,count_toptrader_long_short_ratio,"
    "sum_toptrader_long_short_ratio,count_long_short_ratio,sum_taker_long_short_vol_ratio"
)
FUNDING_HEADER: Final = "calc_time,funding_interval_hours,last_funding_rate"
PRICE_SERIES: Final = ("markPriceKlines", "indexPriceKlines", "premiumIndexKlines")


@dataclass
class Written:
    """What has been written: rows by series, files, bytes of the zips."""

    rows: Counter[str] = field(default_factory=Counter)
    files: int = 0
    bytes: int = 0

    def add(self, other: "Written") -> None:
        self.rows += other.rows
        self.files += other.files
        self.bytes += other.bytes


def write_history(
    out: Path,
    *,
    seed: int,
    symbols: int,
    start_ms: int,
    end_ms: int,
    edge_bp: float = 0.0,
    workers: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Written:
    """Write everything with start <= time < end under `out`. `progress(done, total)` counts symbol-months.

    `end_ms` is a whole minute; `start_ms` midnight UTC, not before 2022-01-02. Raises ValueError, OSError.
    """
    if start_ms % DAY_MS or end_ms % MINUTE_MS or not GENESIS_MS + DAY_MS <= start_ms < end_ms:
        raise ValueError("history begins at midnight UTC, from 2022-01-02 on, and ends at a whole minute after that")
    # The long ones first, so that no worker is left with one at the end.
    write = partial(_write_month, out, seed, symbols, edge_bp)
    tasks = [(index, *month) for index in range(symbols) for month in _months(start_ms, end_ms)]
    written = Written()
    progress(0, len(tasks))
    with ExitStack() as stack:
        if workers == 1:
            parts: Iterator[Written] = map(write, tasks)
        else:
            pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
            stack.callback(pool.shutdown, cancel_futures=True)
            parts = pool.map(write, tasks)
        for done, part in enumerate(parts, 1):
            written.add(part)
            progress(done, len(tasks))
    return written


def _write_month(out: Path, seed: int, symbols: int, edge_bp: float, task: tuple[int, int, int]) -> Written:
    archive = _archive(out, seed, symbols, edge_bp)
    archive.written = Written()
    archive.write(*task)
    return archive.written


@cache
def _archive(out: Path, seed: int, symbols: int, edge_bp: float) -> "Archive":
    """Kept, so that a process makes its world once."""
    return Archive(out, World(seed, symbols, edge_bp))


class Archive:
    """Writes the files of one world."""

    def __init__(self, out: Path, world: World) -> None:
        self._out = out
        self._world = world
        self._exchange = Exchange(world)
        self.written = Written()

    def write(self, index: int, start_ms: int, end_ms: int) -> None:
        """All files of one contract for a month, or the part of it with start <= time < end."""
        symbol = self._exchange.symbols[index]
        first, count = start_ms // MINUTE_MS, (end_ms - start_ms) // MINUTE_MS
        candles = self._world.minutes(index, first, count)
        marks = self._world.mark_minutes(index, first, count)
        texts = {"klines": self._klines(index, start_ms, candles)}
        for series, name in enumerate(PRICE_SERIES):
            texts[name] = _price_klines(start_ms, marks[:, series], 12 if name == "premiumIndexKlines" else 60)
        whole = start_ms == open_of("1M", start_ms) and end_ms == next_open("1M", start_ms)
        for name, rows in texts.items():
            if whole:
                self._put("monthly", name, symbol, "1m", start_ms, KLINE_HEADER, rows)
            else:
                for day in range(0, count, 1440):
                    day_ms = start_ms + day * MINUTE_MS
                    self._put("daily", name, symbol, "1m", day_ms, KLINE_HEADER, rows.part(day, day + 1440))
        labels, metrics = self._metrics(index, start_ms, end_ms)
        for day_ms in range(start_ms, end_ms, DAY_MS):
            first, last = np.searchsorted(labels, [day_ms, day_ms + DAY_MS])
            if first < last:
                part = Lines.of(metrics[first:last])
                self._put("daily", "metrics", symbol, "", day_ms, METRICS_HEADER, part)
        funding = self._exchange.funding(index, start_ms, end_ms - 1, 1_000_000, latest=False)
        hours = self._exchange.instruments[index].funding_interval_hours
        rates = [f"{row['fundingTime']},{hours},{row['fundingRate']}\n".encode() for row in funding]
        self._put("monthly", "fundingRate", symbol, "", start_ms, FUNDING_HEADER, Lines.of(rates))

    def _klines(self, index: int, start_ms: int, rows: Ints) -> "Lines":
        own = self._exchange.instruments[index]
        price, quantity = own.price_decimals, own.quantity_decimals
        opens = start_ms + np.arange(len(rows)) * MINUTE_MS
        return lines(
            [
                (opens, 0),
                *((rows[:, column], price) for column in (OPEN, HIGH, LOW, CLOSE)),
                (rows[:, VOLUME], quantity),
                (opens + MINUTE_MS - 1, 0),
                (rows[:, QUOTE], price + quantity),
                (rows[:, TRADES], 0),
                (rows[:, BUY_VOLUME], quantity),
                (rows[:, BUY_QUOTE], price + quantity),
                (np.zeros(len(rows), np.int64), 0),
            ]
        )

    def _metrics(self, index: int, start_ms: int, end_ms: int) -> tuple[Ints, list[bytes]]:
        """Labels in [start, end) whose five minutes are over at the end, and their rows."""
        labels = np.arange(start_ms, end_ms, FIVE_MINUTES_MS)
        ends = labels + np.where(labels >= LABELS_CHANGE_MS, FIVE_MINUTES_MS, 0)
        labels, ends = labels[ends <= end_ms], ends[ends <= end_ms]
        if not len(ends):
            return labels, []
        world, own = self._world, self._exchange.instruments[index]
        first, last = int(ends[0]) // MINUTE_MS, int(ends[-1]) // MINUTE_MS
        counts = world.open_interest(index, ends)
        at = (ends - ends[0]) // MINUTE_MS
        marks = world.mark_minutes(index, first, last - first + 1)[at, 0, 0]
        minutes = np.cumsum(world.minutes(index, first - 5, last - first + 5), axis=0)
        flow = minutes[at + 4] - np.where(at[:, None] > 0, minutes[at - 1], 0)
        bought, sold = flow[:, BUY_VOLUME], flow[:, VOLUME] - flow[:, BUY_VOLUME]
        ratios = []
        for name in ("top_account", "top_position", "global_account"):
            # As REST has it: the shares are rounded first.
            shares = [round(share, 4) for share in world.long_shares(index, name, ends).tolist()]
            ratios.append([share / round(1.0 - share, 4) for share in shares])
        taker = np.where(sold > 0, bought / np.maximum(sold, 1), 0.0).tolist()
        return labels, [
            (
                f"{datetime.fromtimestamp(label // 1000, UTC):%Y-%m-%d %H:%M:%S},{own.symbol},"
                f"{decimal_text(count * 10 ** (8 - own.quantity_decimals), 8)},"
                f"{count / 10**own.quantity_decimals * mark:.8f},"
                f"{account:.8f},{position:.8f},{everyone:.8f},{flows:.8f}\n"
            ).encode()
            for label, count, mark, account, position, everyone, flows in zip(
                labels.tolist(), counts.tolist(), marks.tolist(), *ratios, taker, strict=True
            )
        ]

    def _put(
        self, cadence: str, series: str, symbol: str, interval: str, time_ms: int, header: str, rows: "Lines"
    ) -> None:
        when = f"{datetime.fromtimestamp(time_ms // 1000, UTC):{'%Y-%m' if cadence == 'monthly' else '%Y-%m-%d'}}"
        name = f"{symbol}-{interval or series}-{when}"
        folder = self._out / "data" / "futures" / "um" / cadence / series / symbol / interval
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            # The date inside is fixed: the same seed gives the same bytes.
            entry = zipfile.ZipInfo(f"{name}.csv", (2022, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, header.encode() + b"\n" + rows.text, compresslevel=1)
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        (folder / f"{name}.zip.CHECKSUM").write_text(f"{digest}  {name}.zip\n", encoding="ascii")
        self.written.files += 1
        self.written.bytes += len(content)
        self.written.rows[series] += len(rows.ends)


@dataclass(frozen=True)
class Lines:
    """Text of many lines, and where each ends."""

    text: bytes
    ends: Ints

    @staticmethod
    def of(rows: Sequence[bytes]) -> "Lines":
        return Lines(b"".join(rows), np.cumsum([len(row) for row in rows], dtype=np.int64))

    def part(self, first: int, last: int) -> "Lines":
        """Lines first..last-1, as many of them as there are."""
        start = int(self.ends[first - 1]) if first else 0
        ends = self.ends[first:last]
        return Lines(self.text[start : int(ends[-1])], ends - start)


def lines(columns: Sequence[tuple[Ints, int]]) -> Lines:
    """CSV lines of integers, each column shown as units of 10**-decimals: (n values, decimals) each.

    All digits of all rows are made at once, four by four, in a matrix with a blank (0) wherever a shorter number has
    none; what is not blank is the text.
    """
    count = len(columns[0][0])
    parts: list[NDArray[np.uint8]] = []
    for values, decimals in columns:
        parts += [*_digits(values, decimals), np.full((count, 1), ord(","), np.uint8)]
    parts[-1][:] = ord("\n")
    matrix = np.hstack(parts)
    shown = matrix != 0
    return Lines(matrix[shown].tobytes(), np.cumsum(shown.sum(axis=1)))


def _digits(values: Ints, decimals: int) -> list[NDArray[np.uint8]]:
    size = np.abs(values)
    groups = -(-max(len(str(int(size.max(initial=0)))), decimals + 1) // 4)
    width = 4 * groups
    left = size.copy()
    matrix = np.empty((len(values), width), np.uint8)
    for group in range(groups - 1, -1, -1):
        left, four = np.divmod(left, 10_000)
        matrix[:, 4 * group : 4 * group + 4] = _FOUR_DIGITS[four]
    needed = np.maximum(np.searchsorted(_POWERS, size, side="right"), decimals + 1)
    matrix[np.arange(width) < (width - needed)[:, None]] = 0
    parts = [matrix[:, : width - decimals]]
    if decimals:
        parts += [np.full((len(values), 1), ord("."), np.uint8), matrix[:, width - decimals :]]
    if (values < 0).any():
        parts.insert(0, np.where(values < 0, ord("-"), 0).astype(np.uint8)[:, None])
    return parts


def _price_klines(start_ms: int, values: Floats, samples: int) -> Lines:
    """Rows of open, high, low, close (n, 4) with eight decimals."""
    opens = start_ms + np.arange(len(values)) * MINUTE_MS
    nothing = (np.zeros(len(values), np.int64), 0)
    prices = [(_eight_decimals(values[:, column]), 8) for column in range(4)]
    return lines(
        [
            (opens, 0),
            *prices,
            nothing,
            (opens + MINUTE_MS - 1, 0),
            nothing,
            (np.full(len(values), samples, np.int64), 0),
            nothing,
            nothing,
            nothing,
        ]
    )


def _eight_decimals(values: Floats) -> Ints:
    """Each value as a multiple of 1e-8, rounded as f"{value:.8f}" rounds."""
    scaled = values * 1e8
    units = np.rint(scaled).astype(np.int64)
    # The product itself was rounded: where that could matter, the exact way decides.
    doubtful = np.abs(np.abs(scaled - np.trunc(scaled)) - 0.5) <= np.abs(scaled) * 2.3e-16
    for at in doubtful.nonzero()[0]:
        units[at] = int(f"{values[at]:.8f}".replace(".", ""))
    return units


def _months(start_ms: int, end_ms: int) -> Iterator[tuple[int, int]]:
    """The calendar months that make up start <= time < end, the first and the last cut to it."""
    while start_ms < end_ms:
        following = min(end_ms, next_open("1M", start_ms))
        yield start_ms, following
        start_ms = following


_FOUR_DIGITS: Final = np.array([[ord(digit) for digit in f"{number:04d}"] for number in range(10_000)], np.uint8)
_POWERS: Final = 10 ** np.arange(19, dtype=np.int64)
