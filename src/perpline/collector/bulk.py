"""Rows that come by the thousand, from files or REST: stored once, compared with what is there, holes written down.

What is stored stays (features.md 1.5, first seen wins). A candle that is told differently later is rows in `revisions`;
one that is told the same and more gets what it lacks. A 5-minute value that is told differently is one more revision
of its own, known from now on.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from perpline.collector.gaps import COMPARED
from perpline.collector.rest_poller import METRICS_LAG_MS
from perpline.domain.candle import INTERVAL_MS, LOG_SCALE, MINUTE_MS, Source
from perpline.domain.market import RATIOS, Ratio
from perpline.storage.store import TABLES, Columns, Gap, Row, Store

FUNDING_KNOWN_AFTER_MS = 60_000
SLICE_ROWS = 20_000
"""Rows that are made of columns and written at a time."""
HOUR_MS = 3_600_000

_PRICES = ("open", "high", "low", "close")

STEP_MS: dict[str, int] = {
    **{f"candles_{interval}": length for interval, length in INTERVAL_MS.items()},
    **{f"{series}_klines": MINUTE_MS for series in ("mark", "index", "premium")},
    "open_interest": 300_000,
    **{f"long_short_ratio:{ratio}": 300_000 for ratio in RATIOS},
}
"""The regular series by their names in `gaps`, with the distance of their rows."""

Span = tuple[int, int]
"""Half-open, milliseconds."""
Progress = Callable[[int], None]
"""Told of rows that are done."""


class Kept(Struct):
    """What became of rows."""

    new: int = 0
    duplicates: int = 0
    """There already, or twice in what came."""
    revisions: int = 0
    """There already, and told differently."""
    completed: int = 0
    """Of the duplicates those that filled empty columns of the stored row."""

    def add(self, other: "Kept") -> None:
        self.new += other.new
        self.duplicates += other.duplicates
        self.revisions += other.revisions
        self.completed += other.completed


# ---- candles ----


async def keep_klines(
    store: Store,
    table: str,
    parts: Sequence[tuple[str, Columns]],
    source: Source,
    now_ms: int,
    progress: Progress = lambda rows: None,
) -> Kept:
    """Store rows of candles_* or *_klines: (symbol, columns) each, open_time and what else is known of a candle.

    Rows of all parts go in the order of time, which is how the tables grow fastest (docs/data.md).
    """
    kept = Kept()
    new: list[tuple[str, Columns]] = []
    for symbol, columns in parts:
        if len(columns["open_time"]):
            new.append((symbol, await _new_klines(store, table, symbol, columns, source, now_ms, kept)))
            progress(len(columns["open_time"]) - len(new[-1][1]["open_time"]))
    owner = np.repeat(np.arange(len(new)), [len(columns["open_time"]) for _, columns in new])
    if not len(owner):
        return kept
    merged = {name: np.concatenate([_column(columns, name) for _, columns in new]) for name in _names(table)}
    order = np.lexsort((owner, merged["open_time"]))
    symbols = np.array([symbol for symbol, _ in new], dtype=object)
    for start in range(0, len(order), SLICE_ROWS):
        at = order[start : start + SLICE_ROWS]
        columns = {name: values[at] for name, values in merged.items()}
        rows = _kline_rows(table, symbols[owner[at]].tolist(), columns, source, now_ms)
        kept.new += await store.add_rows(table, rows)
        progress(len(at))
    return kept


_ALSO = {f"candles_{interval}": ("taker_buy_quote_volume", "synthetic") for interval in INTERVAL_MS}


def _column(columns: Columns, name: str) -> NDArray[Any]:
    if name in columns:
        return columns[name]
    missing = False if name == "synthetic" else np.nan
    return np.full(len(columns["open_time"]), missing)


async def _new_klines(
    store: Store, table: str, symbol: str, columns: Columns, source: Source, now_ms: int, kept: Kept
) -> Columns:
    """The rows that are not stored yet, ascending; differences with those that are become revisions."""
    order = np.argsort(columns["open_time"], kind="stable")
    columns = {name: values[order] for name, values in columns.items()}
    time = columns["open_time"]
    compared = [name for name in COMPARED if name in columns and name in TABLES[table].columns]
    known = await store.series(table, symbol, int(time[0]), int(time[-1]) + 1, ("open_time", *compared, "source"), None)
    place = np.searchsorted(known["open_time"], time)
    there = np.zeros(len(time), np.bool_)
    if len(known["open_time"]):
        inside = np.minimum(place, len(known["open_time"]) - 1)
        there = known["open_time"][inside] == time
        at, known_at = np.flatnonzero(there), inside[there]
        same = await _revise(store, table, symbol, columns, at, known, known_at, source, now_ms, kept)
        more = at[same & _tells_more(table, columns, at, known, known_at)]
        for start in range(0, len(more), SLICE_ROWS):
            some = {name: _column(columns, name)[more[start : start + SLICE_ROWS]] for name in _names(table)}
            rows = _kline_rows(table, [symbol] * len(some["open_time"]), some, source, now_ms)
            kept.completed += await store.complete_rows(table, rows)
    first = np.concatenate(([True], np.diff(time) > 0))
    again = np.flatnonzero(~first & ~there)
    if len(again):
        told_first = {name: columns[name] for name in compared} | {"source": np.full(len(time), source)}
        before = np.maximum.accumulate(np.where(first, np.arange(len(time)), 0))[again]
        same = await _revise(store, table, symbol, columns, again, told_first, before, source, now_ms, kept)
        for name in [name for name in TABLES[table].may_lack if name in columns]:
            lacks = same & np.isnan(columns[name][before])
            columns[name][before[lacks]] = columns[name][again[lacks]]
    fresh = first & ~there
    return {name: values[fresh] for name, values in columns.items()}


async def _revise(
    store: Store,
    series: str,
    symbol: str,
    columns: Columns,
    at: NDArray[np.intp],
    known: Columns,
    known_at: NDArray[np.intp],
    source: Source,
    now_ms: int,
    kept: Kept,
) -> NDArray[np.bool_]:
    """Compare rows with what was told before, and return which tell the same. What either side does not tell (NaN, -1
    trades) is not compared."""
    differs = np.zeros(len(at), np.bool_)
    rows: list[Row] = []
    for name in [name for name in COMPARED if name in columns and name in known]:
        new, old = columns[name][at].astype(np.float64), known[name][known_at].astype(np.float64)
        untold = np.isnan(new) | np.isnan(old) | ((name == "trades") & ((old < 0) | (new < 0)))
        wrong = (new != old) & ~untold
        differs |= wrong
        for row in np.flatnonzero(wrong).tolist():
            values = (old[row].item(), new[row].item())
            before, after = (str(int(value)) if name == "trades" else repr(value) for value in values)
            sources = f"{known['source'][known_at[row]]},{source}"
            time = int(columns["open_time"][at[row]])
            rows.append((symbol, series, time, name, before, after, sources, now_ms))
    await store.add_rows("revisions", rows)
    kept.revisions += int(differs.sum())
    kept.duplicates += int((~differs).sum())
    return ~differs


def _tells_more(
    table: str, columns: Columns, at: NDArray[np.intp], known: Columns, known_at: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Which of these rows tell something that the known ones lack."""
    more = np.zeros(len(at), np.bool_)
    for name in [name for name in TABLES[table].may_lack if name in columns and name in known]:
        new, old = columns[name][at].astype(np.float64), known[name][known_at].astype(np.float64)
        if name == "trades":
            new, old = (np.where(values < 0, np.nan, values) for values in (new, old))
        more |= np.isnan(old) & ~np.isnan(new)
    return more


def _names(table: str) -> tuple[str, ...]:
    """What the table has of a candle."""
    return ("open_time", *_PRICES, *(COMPARED[4:] if table.startswith("candles_") else ()), *_ALSO.get(table, ()))


def _kline_rows(table: str, symbols: list[str], columns: Columns, source: Source, now_ms: int) -> list[Row]:
    """Rows in the order of the table's columns. NaN is stored as nothing."""
    count = len(symbols)
    lists: dict[str, Iterable[Any]] = {name: values.tolist() for name, values in columns.items()}
    lists |= {"symbol": symbols, "source": repeat(source, count), "received_at": repeat(now_ms, count)}
    if table.startswith("candles_"):
        length = INTERVAL_MS[table.removeprefix("candles_")]
        lists["close_time"] = (columns["open_time"] + (length - 1)).tolist()
        lists["trades"] = [int(value) if value >= 0 else None for value in columns["trades"].tolist()]
        for name in _PRICES:
            lists[f"log_{name}"] = quantised_logs(columns[name]).tolist()
    return list(zip(*(lists[column] for column in TABLES[table].columns), strict=True))


def quantised_logs(prices: NDArray[np.float64]) -> NDArray[np.int64]:
    """`domain.candle.quantised_log` of each price, the same bits: one logarithm at a time, for numpy's differ."""
    logs = np.fromiter(map(math.log, prices.tolist()), np.float64, len(prices))
    return np.floor(logs * LOG_SCALE + 0.5).astype(np.int64)


# ---- five-minute values ----


async def keep_open_interest(
    store: Store,
    symbol: str,
    period_end: NDArray[np.int64],
    contracts: NDArray[np.float64],
    value: NDArray[np.float64],
    now_ms: int,
) -> Kept:
    """Store 5-minute open interest, NaN values left out."""
    if not len(period_end):
        return Kept()
    known = await store.series(
        "open_interest",
        symbol,
        int(period_end.min()),
        int(period_end.max()) + 1,
        ("time", "open_interest", "open_interest_value", "revision"),
        {"kind": "hist_5m"},
    )
    seen = _Seen(1e-6)
    for time, *values, revision in zip(*(column.tolist() for column in known.values()), strict=True):
        seen.note(time, (values[0], values[1]), revision)
    rows: list[Row] = []
    for time, *both in zip(period_end.tolist(), contracts.tolist(), value.tolist(), strict=True):
        if (revision := seen.revision(time, (both[0], both[1]))) is not None:
            known_at = now_ms if revision else time + METRICS_LAG_MS
            rows.append((symbol, time, *both, "hist_5m", known_at, revision))
    await store.add_rows("open_interest", rows)
    return seen.kept


async def keep_ratio(
    store: Store,
    symbol: str,
    ratio: Ratio,
    period_end: NDArray[np.int64],
    value: NDArray[np.float64],
    now_ms: int,
    sides: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Kept:
    """Store 5-minute ratios, NaN values left out. `sides`: long and short, where the source tells them."""
    if not len(period_end):
        return Kept()
    known = await store.series(
        "long_short_ratio",
        symbol,
        int(period_end.min()),
        int(period_end.max()) + 1,
        ("period_end", "value", "revision"),
        {"ratio": ratio},
    )
    # REST tells four digits of a ratio of shares of four digits, archives eight: the same number to this.
    seen = _Seen(1e-3)
    for time, number, revision in zip(*(column.tolist() for column in known.values()), strict=True):
        seen.note(time, (number,), revision)
    longs, shorts = sides or (repeat(None, len(value)), repeat(None, len(value)))
    rows: list[Row] = []
    for time, number, long, short in zip(period_end.tolist(), value.tolist(), longs, shorts, strict=True):
        if (revision := seen.revision(time, (number,))) is not None:
            known_at = now_ms if revision else time + METRICS_LAG_MS
            rows.append((symbol, ratio, time, number, long, short, known_at, now_ms, revision))
    await store.add_rows("long_short_ratio", rows)
    return seen.kept


class _Seen:
    """Values by period, with the number of their last revision."""

    def __init__(self, tolerance: float) -> None:
        self.kept = Kept()
        self._tolerance = tolerance
        self._values: dict[int, list[tuple[float, ...]]] = {}
        self._last: dict[int, int] = {}

    def note(self, time: int, values: tuple[float, ...], revision: int) -> None:
        self._values.setdefault(time, []).append(values)
        self._last[time] = max(revision, self._last.get(time, 0))

    def revision(self, time: int, values: tuple[float, ...]) -> int | None:
        """The number under which to store these values, None where they are nothing, or nothing new."""
        if math.isnan(values[0]):
            return None
        known = self._values.get(time)
        if known is None:
            self.kept.new += 1
            self.note(time, values, 0)
            return 0
        if any(self._same(values, before) for before in known):
            self.kept.duplicates += 1
            return None
        self.kept.revisions += 1
        self.note(time, values, self._last[time] + 1)
        return self._last[time]

    def _same(self, one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        pairs = zip(one, other, strict=True)
        return all(a == b or a != a or b != b or math.isclose(a, b, rel_tol=self._tolerance) for a, b in pairs)


# ---- funding ----


async def keep_funding(store: Store, symbol: str, columns: Columns, source: Source, now_ms: int) -> Kept:
    """Store settled funding: funding_time, rate, interval_hours, and mark_price where the source tells it.

    Settlements are stamped up to some milliseconds after their hour, and not by all sources the same: one an hour.
    """
    kept = Kept()
    time = columns["funding_time"]
    if not len(time):
        return kept
    start, end = int(time.min()) // HOUR_MS * HOUR_MS, int(time.max()) + HOUR_MS
    known = await store.series("funding_rates", symbol, start, end, ("funding_time", "rate"))
    settled = zip(known["funding_time"].tolist(), known["rate"].tolist(), strict=True)
    rates = {at // HOUR_MS: (at, rate) for at, rate in settled}
    marks = columns.get("mark_price", np.full(len(time), np.nan)).tolist()
    rows: list[Row] = []
    revised: list[Row] = []
    for at, rate, hours, mark in zip(
        time.tolist(), columns["rate"].tolist(), columns["interval_hours"].tolist(), marks, strict=True
    ):
        if (before := rates.get(at // HOUR_MS)) is None:
            rates[at // HOUR_MS] = (at, rate)
            interval = None if math.isnan(hours) else int(hours)
            rows.append((symbol, at, rate, mark, interval, at + FUNDING_KNOWN_AFTER_MS))
        elif before[1] == rate:
            kept.duplicates += 1
        else:
            kept.revisions += 1
            revised.append((symbol, "funding_rates", before[0], "rate", repr(before[1]), repr(rate), source, now_ms))
    kept.new = await store.add_rows("funding_rates", rows)
    await store.add_rows("revisions", revised)
    return kept


# ---- holes ----


class Holes:
    """The holes of series, as they are found in the tables, and their rows in `gaps`."""

    def __init__(self, store: Store, gaps: Sequence[Gap]) -> None:
        """`gaps`: all rows of the table as it is now."""
        self._store = store
        self._open: dict[tuple[str, str], list[Gap]] = {}
        self._absent: dict[tuple[str, str], list[Span]] = {}
        self.opened = 0
        self.closed = 0
        for gap in gaps:
            if gap.repaired_at is None:
                self._open.setdefault((gap.symbol, gap.series), []).append(gap)
            elif gap.repaired_by == "absent":
                self._absent.setdefault((gap.symbol, gap.series), []).append((gap.from_time, gap.to_time))

    async def missing(self, symbol: str, series: str, start: int, end: int) -> list[Span]:
        """What the table lacks of [start, end) and the exchange is not known to lack."""
        stored = await stored_times(self._store, symbol, series, start, end)
        holes = runs(stored, start, end, STEP_MS[series])
        return without(holes, self._absent.get((symbol, series), []))

    async def settle(
        self, symbol: str, series: str, start: int, end: int, cause: str, by: str, now_ms: int
    ) -> list[Span]:
        """Make the rows of `gaps` say what is missing in [start, end), and return it.

        A gap of which nothing is missing any more is closed, repaired `by`; one of which a part is, is closed, and
        what is left is opened with its cause. Holes without a row get one, with `cause`.
        """
        holes = await self.missing(symbol, series, start, end)
        left: list[Gap] = []
        for gap in self._open.get((symbol, series), []):
            span = (gap.from_time, gap.to_time)
            still = sorted([*overlap([span], holes), *without([span], [(start, end)])])
            if still == [span]:
                left.append(gap)
                continue
            # A minute that the exchange lacks may be stored nevertheless: as a synthetic candle.
            was_absent = overlap([span], self._absent.get((symbol, series), []))
            await self._store.close_gap(gap.id, now_ms, "absent" if was_absent else by)
            self.closed += 1
            left += [await self._opened(symbol, series, part, gap.cause, now_ms) for part in still]
        for part in without(holes, [(gap.from_time, gap.to_time) for gap in left]):
            left.append(await self._opened(symbol, series, part, cause, now_ms))
        self._open[symbol, series] = left
        return holes

    async def absent(self, symbol: str, series: str, spans: Sequence[Span], now_ms: int) -> None:
        """Write down that the exchange itself has nothing there."""
        for start, end in spans:
            gap_id = await self._store.open_gap(symbol, series, start, end, "absent at the exchange", now_ms)
            await self._store.close_gap(gap_id, now_ms, "absent")
            self._absent.setdefault((symbol, series), []).append((start, end))

    async def quarantined(self, symbol: str, series: str, start: int, end: int, cause: str, now_ms: int) -> None:
        """Write down that these rows came and cannot be used."""
        mine = self._open.setdefault((symbol, series), [])
        if not any((gap.from_time, gap.to_time) == (start, end) for gap in mine):
            mine.append(await self._opened(symbol, series, (start, end), cause, now_ms))

    async def _opened(self, symbol: str, series: str, span: Span, cause: str, now_ms: int) -> Gap:
        gap_id = await self._store.open_gap(symbol, series, *span, cause, now_ms)
        self.opened += 1
        return Gap(
            id=gap_id,
            symbol=symbol,
            series=series,
            from_time=span[0],
            to_time=span[1],
            cause=cause,
            detected_at=now_ms,
            repaired_at=None,
            repaired_by=None,
        )


async def stored_times(store: Store, symbol: str, series: str, start: int, end: int) -> NDArray[np.int64]:
    """The times in [start, end) of which the table has a row, ascending, each once."""
    table, _, ratio = series.partition(":")
    only = {"ratio": ratio} if ratio else {"kind": "hist_5m"} if table == "open_interest" else None
    time = TABLES[table].time
    return np.unique((await store.series(table, symbol, start, end, (time,), only))[time])


async def stored_span(store: Store, symbol: str, series: str, before: int, after: int) -> Span | None:
    """From the last stored time before `before` to just behind the first stored one after `after`: where rows between
    the two may have changed what is missing. The first and the last row of all, where there is none beyond; None
    without any row."""
    table, _, ratio = series.partition(":")
    time = TABLES[table].time
    where = f"symbol = '{symbol.replace(chr(39), chr(39) * 2)}'"
    where += f" AND ratio = '{ratio}'" if ratio else " AND kind = 'hist_5m'" if table == "open_interest" else ""
    bounds = []
    for far, condition, near in (("max", f"{time} < {before}", "min"), ("min", f"{time} > {after}", "max")):
        [[found]] = await store.select(f"SELECT {far}({time}) FROM {table} WHERE {where} AND {condition}")
        if found is None:
            [[found]] = await store.select(f"SELECT {near}({time}) FROM {table} WHERE {where}")
        if found is None:
            return None
        bounds.append(int(found))
    return bounds[0], bounds[1] + STEP_MS[series]


def runs(times: NDArray[np.int64], start: int, end: int, step: int) -> list[Span]:
    """What [start, end) has no time of, those ascending and `step` apart; both ends are multiples of it."""
    fence = np.concatenate(([start - step], times, [end]))
    at = np.flatnonzero(np.diff(fence) > step)
    return [(int(fence[place]) + step, int(fence[place + 1])) for place in at]


def overlap(spans: Iterable[Span], others: Sequence[Span]) -> list[Span]:
    """What is in both."""
    both = ((max(one[0], other[0]), min(one[1], other[1])) for one in spans for other in others)
    return sorted(span for span in both if span[0] < span[1])


def without(spans: Iterable[Span], others: Sequence[Span]) -> list[Span]:
    """What is in the first and not in the others."""
    left = list(spans)
    for start, end in others:
        parts = [((one[0], min(one[1], start)), (max(one[0], end), one[1])) for one in left]
        left = [span for pair in parts for span in pair if span[0] < span[1]]
    return sorted(left)


async def stored_symbols(store: Store) -> list[str]:
    """The symbols with 1m candles. Asked one after another, which an index answers at once; a GROUP BY reads all."""
    found: list[str] = []
    while True:
        after = f" WHERE symbol > '{found[-1].replace(chr(39), chr(39) * 2)}'" if found else ""
        [[symbol]] = await store.select(f"SELECT min(symbol) FROM candles_1m{after}")
        if symbol is None:
            return found
        found.append(str(symbol))
