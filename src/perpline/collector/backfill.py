"""What the tables lack, asked of the exchange over REST."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeVar, cast

import numpy as np
from msgspec import Struct, field

from perpline.collector.bulk import (
    HOUR_MS,
    STEP_MS,
    Holes,
    Kept,
    Span,
    keep_funding,
    keep_klines,
    keep_open_interest,
    keep_ratio,
    runs,
    stored_span,
)
from perpline.collector.conventions import PERIOD_MS, Verdict, by_price
from perpline.common.clock import Clock
from perpline.common.errors import Malformed, Refused, Unavailable
from perpline.domain.candle import MINUTE_MS, Candle, last_boundary, synthetic_candle
from perpline.domain.market import PriceSeries, Ratio
from perpline.exchange.ports import MarketRest
from perpline.storage.store import Columns, Store, candle_row

T = TypeVar("T")

SERIES = (*STEP_MS, "funding_rates")
"""Everything that can be asked for again, by its name in `gaps`."""

DAY_MS = 86_400_000
MONTH_MS = 30 * DAY_MS
"""How far back the exchange tells 5-minute values (binance.md 3)."""
GRACE_MS = 240_000
"""What is younger is not missing yet: 5-minute rows come out up to a minute late, and are asked for until then."""
KLINES_PAGE = 497
"""With the two rows behind a page 499, the most for their weight: 250 rows a unit, and 150 with 1500 (binance.md 3)."""
PERIODS_PAGE = 500
FUNDING_PAGE = 1000
LONGEST_FUNDING_MS = 8 * HOUR_MS
CONCURRENT = 4
ATTEMPTS = 4
FIRST_WAIT_S = 2.0


class BackfillReport(Struct):
    """What a backfill did."""

    rows: dict[str, int] = field(default_factory=dict)
    """New rows by series."""
    duplicates: int = 0
    revisions: int = 0
    synthetic: int = 0
    """1m candles made for minutes that the exchange does not have."""
    absent: int = 0
    """Rows that the exchange does not have."""
    gaps_closed: int = 0
    holes_left: int = 0
    """In the spans and series asked for."""
    too_old: dict[str, int] = field(default_factory=dict)
    """Rows by series that the exchange no longer tells: `perpline import metrics` may have them."""
    failed: list[str] = field(default_factory=list)
    """What could not be had, with the reason."""
    stopped: bool = False


class _Hole(Struct, frozen=True):
    """Missing rows of a symbol's series: start <= time < end."""

    symbol: str
    series: str
    start: int
    end: int


class Backfill:
    """Fills holes of series from REST, page by page; each page is stored when it came.

    Asks only for what the tables lack, so that one that was stopped or killed goes on where it was. A hole lies between
    stored rows, or between one and an end of the span that is asked for. What an answer lacks although it shows later
    rows does not exist at the exchange: that is written down, and of 1m candles a synthetic one is stored.
    """

    def __init__(
        self,
        rest: MarketRest,
        store: Store,
        clock: Clock,
        *,
        plan: Callable[[int], None] = lambda rows: None,
        progress: Callable[[int], None] = lambda rows: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """`plan` is told how many rows are missing, `progress` each time how many more of them were dealt with."""
        self.report = BackfillReport()
        self._rest = rest
        self._store = store
        self._clock = clock
        self._plan = plan
        self._progress = progress
        self._stopped = stopped

    async def run(
        self, symbols: Sequence[str], series: Sequence[str] = SERIES, start: int | None = None, end: int | None = None
    ) -> BackfillReport:
        """Fill the holes of these series in [start, end).

        `start` is by default the first stored 1m candle of each symbol, `end` now. Raises as the store does; what the
        exchange does not tell is in the report.
        """
        now = self._clock.exchange_now_ms()
        holes = Holes(self._store, await self._store.gaps())
        regular = [name for name in series if name in STEP_MS]
        wanted: list[_Hole] = []
        spans: dict[tuple[str, str], Span] = {}
        firsts: dict[str, int] = {}
        for symbol in symbols:
            first = start if start is not None else await self._first_candle(symbol)
            if first is not None:
                firsts[symbol] = first
                for name in regular:
                    span = _span(name, first, now if end is None else min(end, now), now)
                    spans[symbol, name] = span
                    wanted += [_Hole(symbol, name, *hole) for hole in await holes.missing(symbol, name, *span)]
        wanted = [part for hole in wanted for part in self._reachable(hole, now)]
        self._plan(sum((hole.end - hole.start) // STEP_MS[hole.series] for hole in wanted))
        # One iterator for all: each takes the next hole when it is through with one.
        todo = iter(wanted)
        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENT):
                group.create_task(self._fill_all(todo, holes))
        if "funding_rates" in series:
            for symbol, first in firsts.items():
                await self._funding(symbol, first, now if end is None else min(end, now))
        await self._settle(spans, holes)
        if "open_interest" in series and not self._stopped():
            for symbol in firsts:
                await self._prove_labels(symbol, now)
        self.report.stopped = self._stopped()
        return self.report

    async def _first_candle(self, symbol: str) -> int | None:
        span = await stored_span(self._store, symbol, "candles_1m", 0, 0)
        return None if span is None else span[0]

    def _reachable(self, hole: _Hole, now: int) -> list[_Hole]:
        """The part of a hole that the exchange still tells."""
        if hole.series in ("open_interest",) or hole.series.startswith("long_short_ratio"):
            oldest = now - MONTH_MS + 2 * STEP_MS[hole.series]
            oldest -= oldest % STEP_MS[hole.series]
            lost = (min(oldest, hole.end) - hole.start) // STEP_MS[hole.series]
            if lost > 0:
                self.report.too_old[hole.series] = self.report.too_old.get(hole.series, 0) + lost
                hole = _Hole(hole.symbol, hole.series, oldest, hole.end)
        return [hole] if hole.start < hole.end else []

    async def _fill_all(self, todo: Iterator[_Hole], holes: Holes) -> None:
        for hole in todo:
            if self._stopped():
                return
            try:
                await self._fill(hole, holes)
            except (Unavailable, Malformed, Refused) as error:
                # The store's Unavailable too: what it did not take is asked for again with the next backfill.
                self.report.failed.append(f"{hole.symbol} {hole.series}: {error}")

    async def _fill(self, hole: _Hole, holes: Holes) -> None:
        step = STEP_MS[hole.series]
        page = KLINES_PAGE if "candles" in hole.series or "klines" in hole.series else PERIODS_PAGE
        at = hole.start
        while at < hole.end and not self._stopped():
            end = min(hole.end, at + page * step)
            seen = await self._page(hole, at, end)
            newest = int(seen.max(initial=0))
            if not len(seen) and step != STEP_MS["open_interest"]:
                # A long time without a row: from the next one on there is something again.
                newest = await self._next_row(hole, at)
                if newest == 0:
                    return  # nothing later either: not listed any more, or the exchange is behind
                if not await self._has_row_before(hole, at):
                    self._progress((min(newest, hole.end) - at) // step)
                    at = min(newest, hole.end)  # it was not listed yet
                    continue
                end = min(newest, hole.end)
            absent = runs(seen[seen < end], at, min(end, max(newest, at)), step)
            if absent:
                await self._absent(hole, absent, holes)
            self._progress((end - at) // step)
            at = end

    async def _absent(self, hole: _Hole, absent: list[Span], holes: Holes) -> None:
        self.report.absent += sum((end - start) // STEP_MS[hole.series] for start, end in absent)
        now_ms = self._clock.now_ms()
        if hole.series == "candles_1m":
            for start, end in absent:
                step = STEP_MS[hole.series]
                found = await self._store.candles("1m", hole.symbol, start - step, start)
                made: list[Candle] = []
                while found and (not made or made[-1].open_time + step < end):
                    made.append(synthetic_candle((made or found)[-1], now_ms))
                self.report.synthetic += await self._store.add_rows("candles_1m", [candle_row(one) for one in made])
        await holes.absent(hole.symbol, hole.series, absent, now_ms)

    async def _page(self, hole: _Hole, start: int, end: int) -> Any:
        """Ask for the rows with start <= time < end and store them; returns the times of all that came, an array.

        Of klines two more are asked for: only what lies before a row that is there is proved absent.
        """
        symbol, series, step = hole.symbol, hole.series, STEP_MS[hole.series]
        table, _, ratio = series.partition(":")
        limit = (end - start) // step
        now_ms = self._clock.now_ms()
        if table.startswith("candles_"):
            interval = table.removeprefix("candles_")
            candles = await self._ask(
                lambda: self._rest.candles(symbol, interval, start=start, end=end + 2 * step, limit=limit + 2)
            )
            closed = [candle for candle in candles if candle.closed]
            columns = _columns(closed, _CANDLE_COLUMNS)
            kept = await keep_klines(self._store, table, [(symbol, _before(columns, "open_time", end))], "rest", now_ms)
            times = columns["open_time"]
        elif table.endswith("_klines"):
            prices = await self._price_candles(table, symbol, start, end + 2 * step, limit + 2)
            columns = _columns(prices, _CANDLE_COLUMNS[:5])
            kept = await keep_klines(self._store, table, [(symbol, _before(columns, "open_time", end))], "rest", now_ms)
            times = columns["open_time"]
        elif table == "open_interest":
            values = await self._ask(lambda: self._rest.open_interest_hist(symbol, limit=limit, start=start, end=end))
            columns = _columns(values, ("time", "open_interest", "open_interest_value"))
            times = columns["time"]
            if await self._labelled(symbol, columns) == "start":
                raise Malformed("labelled by the beginnings of its periods, not by their ends: not stored")
            kept = await keep_open_interest(
                self._store, symbol, times, columns["open_interest"], columns["open_interest_value"], now_ms
            )
        else:
            of = cast(Ratio, ratio)
            ratios = await self._ask(
                lambda: self._rest.long_short_ratios(symbol, of, limit=limit, start=start, end=end)
            )
            columns = _columns(ratios, ("period_end", "value", "long", "short"))
            times = columns["period_end"]
            sides = columns["long"].tolist(), columns["short"].tolist()
            kept = await keep_ratio(self._store, symbol, of, times, columns["value"], now_ms, sides)
        self._count(series, kept)
        return times

    async def _price_candles(self, table: str, symbol: str, start: int, end: int | None, limit: int) -> list[Any]:
        of = cast(PriceSeries, table.removesuffix("_klines"))
        found = await self._ask(lambda: self._rest.price_candles(of, symbol, start=start, end=end, limit=limit))
        return list(found)

    async def _next_row(self, hole: _Hole, at: int) -> int:
        """Time of the first kline from `at` on, 0 where there is none."""
        symbol, table = hole.symbol, hole.series
        if table.startswith("candles_"):
            interval = table.removeprefix("candles_")
            candles = await self._ask(lambda: self._rest.candles(symbol, interval, start=at, limit=1))
            return candles[0].open_time if candles else 0
        prices = await self._price_candles(table, symbol, at, None, 1)
        return int(prices[0].open_time) if prices else 0

    async def _has_row_before(self, hole: _Hole, at: int) -> bool:
        span = await stored_span(self._store, hole.symbol, hole.series, at, at)
        return span is not None and span[0] < at

    async def _funding(self, symbol: str, start: int, end: int) -> None:
        """Ask for settlements where two stored ones lie further apart than the interval, and before and after all."""
        known = await self._store.series("funding_rates", symbol, start, end, ("funding_time", "interval_hours"))
        times = known["funding_time"].tolist()
        hours = [LONGEST_FUNDING_MS if one != one else int(one) * HOUR_MS for one in known["interval_hours"].tolist()]
        fence = [start - HOUR_MS, *times, end]
        allowed = [LONGEST_FUNDING_MS, *hours[1:], hours[-1]] if times else [0]
        for (before, after), interval in zip(pairwise(fence), allowed, strict=True):
            at = before + HOUR_MS
            while after - before > interval + HOUR_MS // 2 and at < after and not self._stopped():
                # From the settlement before on, for a row tells its interval only by the distance to that one.
                since = at - LONGEST_FUNDING_MS - HOUR_MS
                try:
                    rates = await self._ask(
                        lambda since=since, after=after: self._rest.funding_rates(  # type: ignore[misc]
                            symbol, start=since, end=after, limit=FUNDING_PAGE
                        )
                    )
                except (Unavailable, Malformed, Refused) as error:
                    self.report.failed.append(f"{symbol} funding_rates: {error}")
                    return
                fresh = [rate for rate in rates if at <= rate.funding_time < after]
                columns = _columns(fresh, ("funding_time", "rate", "interval_hours", "mark_price"))
                self._count(
                    "funding_rates", await keep_funding(self._store, symbol, columns, "rest", self._clock.now_ms())
                )
                if len(rates) < FUNDING_PAGE or not fresh:
                    break
                at = fresh[-1].funding_time + HOUR_MS

    async def _settle(self, spans: dict[tuple[str, str], Span], holes: Holes) -> None:
        """Write down what is left between the first and the last row, and close what is not missing any more."""
        for (symbol, series), span in spans.items():
            stored = await stored_span(self._store, symbol, series, *span)
            if stored is not None:
                left = await holes.settle(symbol, series, *stored, "found by backfill", "rest", self._clock.now_ms())
                self.report.holes_left += len(left)
        self.report.gaps_closed = holes.closed

    async def _prove_labels(self, symbol: str, now: int) -> None:
        """Name the days of the last month whose stored open interest, heard live or asked for, has labels that are not
        the ends of its periods (features.md 1.5)."""
        for day in range((now - MONTH_MS) // DAY_MS, now // DAY_MS + 1):
            span = (day * DAY_MS, (day + 1) * DAY_MS)
            names = ("time", "open_interest", "open_interest_value")
            stored = await self._store.series("open_interest", symbol, *span, names, {"kind": "hist_5m"})
            if await self._labelled(symbol, stored) == "start":
                date = np.datetime64(span[0], "ms").astype("datetime64[D]")
                self.report.failed.append(
                    f"{symbol} open_interest: the rows stored of {date} are labelled by the beginnings of their periods"
                )

    async def _labelled(self, symbol: str, columns: Columns) -> Verdict:
        """What the labels of open interest are, as far as the stored 1m candles prove it."""
        times, first = np.unique(columns["time"], return_index=True)
        if not len(times):
            return "unknown"
        span = (int(times[0]) - 2 * PERIOD_MS, int(times[-1]) + 2 * PERIOD_MS)
        candles = await self._store.series("candles_1m", symbol, *span, ("open_time", "close"))
        with np.errstate(divide="ignore", invalid="ignore"):
            implied = (columns["open_interest_value"] / columns["open_interest"])[first]
        return by_price(times, implied, candles["open_time"] + MINUTE_MS, candles["close"])[0]

    async def _ask(self, request: Callable[[], Awaitable[T]]) -> T:
        """The answer, after some tries. Waiting for a limit of the exchange counts as one."""
        for attempt in range(ATTEMPTS):
            try:
                return await request()
            except Unavailable as error:
                if attempt == ATTEMPTS - 1 or self._stopped():
                    raise
                await self._clock.sleep_wall(error.retry_after_s or FIRST_WAIT_S * 2**attempt)
        raise AssertionError("the last try returns or raises")

    def _count(self, series: str, kept: Kept) -> None:
        self.report.rows[series] = self.report.rows.get(series, 0) + kept.new
        self.report.duplicates += kept.duplicates
        self.report.revisions += kept.revisions


_CANDLE_COLUMNS = (
    "open_time",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "quote_volume",
    "trades",
    "taker_buy_volume",
    "taker_buy_quote_volume",
)


def _span(series: str, start: int, end: int, now: int) -> Span:
    """Times that rows of [start, end) can have and that are long enough ago to be missing."""
    step = STEP_MS[series]
    first = -(-start // step) * step
    if "candles" in series or "klines" in series:  # a row's time is the beginning of its period, not the end
        return first, max(first, last_boundary(min(end, now - GRACE_MS), step))
    return first, max(first, last_boundary(min(end - 1, now - GRACE_MS), step) + step)


def _columns(rows: Sequence[Any], names: Sequence[str]) -> Columns:
    """Attributes of rows as arrays: the first int64, the others float64 with NaN for None."""
    columns: Columns = {
        name: np.array([np.nan if (value := getattr(row, name)) is None else value for row in rows], np.float64)
        for name in names[1:]
    }
    return {names[0]: np.array([getattr(row, names[0]) for row in rows], np.int64), **columns}


def _before(columns: Columns, time: str, end: int) -> Columns:
    return {name: values[columns[time] < end] for name, values in columns.items()}
