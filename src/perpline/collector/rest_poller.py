"""Series that no stream carries, asked for over REST: open interest, positioning ratios, price candles, funding."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import msgspec
from msgspec import Struct

from perpline.common.clock import Clock
from perpline.common.errors import Malformed, PerplineError, RateLimited, Refused, Unavailable
from perpline.domain.market import RATIOS, PriceSeries, Ratio
from perpline.exchange.ports import MarketRest
from perpline.storage.store import Row

_MINUTE_MS = 60_000
_FIVE_MINUTES_MS = 300_000
_HOUR_MS = 3_600_000

METRICS_LAG_MS = 120_000
"""A 5-minute row counts as known this long after its period, however early it was seen (features.md 1.5)."""

_FIRST_RETRY_S = 4.0
_RETRY_GROWTH = 1.5
_LONGEST_RETRY_S = 60.0
_BLOCKED_S = 60.0
_TIMES_REMEMBERED = 600


class SeriesState(Struct):
    """How a series is doing. Times are the exchange's, milliseconds; 0 = never."""

    name: str
    last_success_at: int = 0
    """When a symbol's expected row last came."""
    next_due_at: int = 0
    """When the present round began or, between rounds, the next one begins."""
    requests: int = 0
    rows: int = 0
    failures: int = 0
    last_error: str = ""
    rounds_skipped: int = 0
    """Rounds left out because the one before took so long."""
    unfinished: int = 0
    """Symbols whose row had not come when their round ended, over all rounds."""


class RestPoller:
    """Asks for each series of each symbol once a period, between the closes, and hands rows to `add(table, row)`.

    A round of a series begins a while after its boundary, spreads the symbols out, and asks again, with growing waits,
    for those whose expected row is not there yet or failed, until the next round is due. What is left then is counted
    as unfinished: rounds never pile up. At most `concurrency` requests are under way, over all series.

    RateLimited stops all series for as long as it says. Unavailable, Malformed and Refused concern one symbol, are
    counted and told to `on_failure(series, symbol, error)`; Refused is not asked again in the same round. Anything else
    is a bug and ends `run`. All times are market time.
    """

    def __init__(
        self,
        rest: MarketRest,
        clock: Clock,
        symbols: Callable[[], Sequence[str]],
        add: Callable[[str, Row], None],
        *,
        price_klines: bool = True,
        concurrency: int = 6,
        on_failure: Callable[[str, str, PerplineError], None] | None = None,
    ) -> None:
        self._rest = rest
        self._clock = clock
        self._symbols = symbols
        self._add = add
        self._on_failure = on_failure
        self._slots = asyncio.Semaphore(concurrency)
        self._blocked_until = 0
        # What has been seen: by series and symbol, by the row's time, its values and how often they were revised.
        self._seen: dict[tuple[str, str], dict[int, tuple[tuple[float | None, ...], int]]] = {}
        self._newest: dict[tuple[str, str], int] = {}
        self._schedule = [_Series("open_interest", _MINUTE_MS, 15_000, 20_000, self._open_interest)]
        if price_klines:
            for series in ("mark", "index", "premium"):
                fetch_candles = partial(self._price_candles, series)
                self._schedule.append(_Series(f"{series}_klines", _MINUTE_MS, 15_000, 25_000, fetch_candles))
        # Rows come out 10 to 60 s after their period and count as known after 120 s in any case: asking before they
        # are likely there would only spend requests.
        self._schedule.append(_Series("open_interest_hist", _FIVE_MINUTES_MS, 30_000, 20_000, self._open_interest_hist))
        for ratio in RATIOS:
            fetch_ratio = partial(self._long_short_ratio, ratio)
            self._schedule.append(_Series(ratio, _FIVE_MINUTES_MS, 30_000, 20_000, fetch_ratio))
        self._schedule.append(_Series("funding_rates", _HOUR_MS, 60_000, 30_000, self._funding_rates))
        self.series = {series.name: SeriesState(series.name) for series in self._schedule}
        """The state of each series by name."""

    @property
    def blocked_until(self) -> int:
        """When polling goes on after a rate limit, exchange ms; 0 where it is not stopped."""
        return self._blocked_until if self._blocked_until > self._clock.exchange_now_ms() else 0

    def forget(self, symbol: str) -> None:
        """Drop what is remembered of a symbol that is followed no more."""
        for key in [key for key in (*self._seen, *self._newest) if key[1] == symbol]:
            self._seen.pop(key, None)
            self._newest.pop(key, None)

    async def run(self) -> None:
        """Poll until cancelled. The first round of each series begins at once, as the one that is due now."""
        async with asyncio.TaskGroup() as group:
            for series in self._schedule:
                group.create_task(self._rounds(series), name=f"poll {series.name}")

    async def _rounds(self, series: "_Series") -> None:
        state = self.series[series.name]
        due = self._clock.exchange_now_ms() - series.after_ms
        boundary = due - due % series.period_ms
        number = 0
        while True:
            state.next_due_at = boundary + series.after_ms
            await self._sleep_until(state.next_due_at)
            await self._round(series, state, boundary, number)
            late_ms = self._clock.exchange_now_ms() - (boundary + series.period_ms + series.after_ms)
            skipped = max(0, late_ms // series.period_ms)
            state.rounds_skipped += skipped
            boundary += (1 + skipped) * series.period_ms
            number += 1

    async def _round(self, series: "_Series", state: SeriesState, boundary: int, number: int) -> None:
        """Ask until every symbol has its row of this boundary or the next round is due."""
        end = boundary + series.period_ms + series.after_ms
        symbols = list(self._symbols())
        if not symbols:
            return
        # Each round begins with another symbol, so that one that ends early does not always leave out the same.
        first = number % len(symbols)
        pending = symbols[first:] + symbols[:first]
        step_ms = series.spread_ms / len(symbols)
        wait_s = _FIRST_RETRY_S
        while True:
            pending = await self._ask_all(series, state, pending, boundary, step_ms, end)
            if not pending or self._clock.exchange_now_ms() + wait_s * 1000 >= end:
                break
            await self._clock.sleep(wait_s)
            wait_s = min(wait_s * _RETRY_GROWTH, _LONGEST_RETRY_S)
        # The first round began somewhere in the middle of its time: what it did not manage says nothing.
        state.unfinished += len(pending) if number else 0

    async def _ask_all(
        self, series: "_Series", state: SeriesState, symbols: list[str], boundary: int, step_ms: float, end: int
    ) -> list[str]:
        """Ask for each symbol once, a step apart; returns those to ask again."""
        settled: set[str] = set()
        begin = self._clock.exchange_now_ms()
        async with asyncio.TaskGroup() as group:
            for place, symbol in enumerate(symbols):
                await self._sleep_until(begin + int(place * step_ms))
                await self._slots.acquire()
                if max(self._clock.exchange_now_ms(), self._blocked_until) >= end:
                    self._slots.release()
                    break
                task = group.create_task(self._ask(series, state, symbol, boundary, settled))
                task.add_done_callback(lambda _: self._slots.release())
        return [symbol for symbol in symbols if symbol not in settled]

    async def _ask(self, series: "_Series", state: SeriesState, symbol: str, boundary: int, settled: set[str]) -> None:
        await self._sleep_until(self._blocked_until)
        state.requests += 1
        try:
            complete = await series.fetch(symbol, boundary)
        except RateLimited as error:
            pause_s = _BLOCKED_S if error.retry_after_s is None else error.retry_after_s
            until = self._clock.exchange_now_ms() + int(pause_s * 1000)
            self._blocked_until = max(self._blocked_until, until)
            self._failed(state, symbol, error)
        except Refused as error:
            settled.add(symbol)
            self._failed(state, symbol, error)
        except (Unavailable, Malformed) as error:
            self._failed(state, symbol, error)
        else:
            if complete:
                settled.add(symbol)
                state.last_success_at = self._clock.exchange_now_ms()

    def _failed(self, state: SeriesState, symbol: str, error: PerplineError) -> None:
        state.failures += 1
        state.last_error = str(error)
        if self._on_failure is not None:
            self._on_failure(state.name, symbol, error)

    async def _open_interest(self, symbol: str, boundary: int) -> bool:
        self._take("open_interest", "open_interest", await self._rest.open_interest(symbol))
        return True

    async def _open_interest_hist(self, symbol: str, boundary: int) -> bool:
        series = "open_interest_hist"
        rows = await self._rest.open_interest_hist(symbol, limit=self._rows_missing(series, symbol, boundary))
        for row in rows:
            revision = self._revision(series, symbol, row.time, (row.open_interest, row.open_interest_value))
            if revision is not None:
                known_at = max(row.time + METRICS_LAG_MS, row.known_at)
                row = msgspec.structs.replace(row, known_at=known_at, revision=revision)
                self._take(series, "open_interest", row)
        return any(row.time == boundary for row in rows)

    async def _long_short_ratio(self, ratio: Ratio, symbol: str, boundary: int) -> bool:
        rows = await self._rest.long_short_ratios(symbol, ratio, limit=self._rows_missing(ratio, symbol, boundary))
        for row in rows:
            revision = self._revision(ratio, symbol, row.period_end, (row.value, row.long, row.short))
            if revision is not None:
                known_at = max(row.period_end + METRICS_LAG_MS, row.known_at)
                row = msgspec.structs.replace(row, known_at=known_at, revision=revision)
                self._take(ratio, "long_short_ratio", row)
        return any(row.period_end == boundary for row in rows)

    async def _price_candles(self, series: PriceSeries, symbol: str, boundary: int) -> bool:
        """The candle that ended at the boundary, with those missed before it, at most 99 (which still weighs 1)."""
        name = f"{series}_klines"
        expected = boundary - _MINUTE_MS
        newest = self._newest.get((name, symbol), expected - 2 * _MINUTE_MS)
        limit = min(max((boundary - newest) // _MINUTE_MS + 1, 2), 99)
        rows = await self._rest.price_candles(series, symbol, limit=limit)
        for row in rows:
            if row.open_time > newest:
                self.series[name].rows += 1
                self._add(name, msgspec.structs.astuple(row)[1:])
                self._newest[name, symbol] = row.open_time
        return any(row.open_time == expected for row in rows)

    async def _funding_rates(self, symbol: str, boundary: int) -> bool:
        """What was settled lately. Complete unless, by the interval of the last settlement, one is still to come."""
        key = ("funding_rates", symbol)
        rows = await self._rest.funding_rates(symbol, limit=3)
        # The interval of the oldest row is not known here, and a row is never replaced: leave it to its own hour.
        for row in rows[1:] if len(rows) > 1 else rows:
            if row.funding_time > self._newest.get(key, 0):
                self._take("funding_rates", "funding_rates", row)
                self._newest[key] = row.funding_time
        if not rows or rows[-1].interval_hours is None:
            return True
        interval_ms = rows[-1].interval_hours * _HOUR_MS
        # Settlements are stamped up to some milliseconds after their hour.
        following = rows[-1].funding_time // _HOUR_MS * _HOUR_MS + interval_ms
        return following != boundary

    def _take(self, series: str, table: str, row: Struct) -> None:
        self.series[series].rows += 1
        self._add(table, msgspec.structs.astuple(row))

    def _revision(self, series: str, symbol: str, time: int, values: tuple[float | None, ...]) -> int | None:
        """The revision number of these values; None where they are what was seen last.

        Known only as far back as this process remembers: after a restart a changed row is offered as revision 0 again
        and the store keeps the first.
        """
        seen = self._seen.setdefault((series, symbol), {})
        known = seen.get(time)
        if known is not None and known[0] == values:
            return None
        revision = 0 if known is None else known[1] + 1
        seen[time] = (values, revision)
        if len(seen) > _TIMES_REMEMBERED:
            del seen[min(seen)]
        return revision

    def _rows_missing(self, series: str, symbol: str, boundary: int) -> int:
        """How many 5-minute rows to ask for: those missed and two more, which may have been revised."""
        seen = self._seen.get((series, symbol))
        missing = (boundary - max(seen)) // _FIVE_MINUTES_MS if seen else 1
        return min(max(missing, 1) + 2, 500)

    async def _sleep_until(self, time: int) -> None:
        while (left_ms := time - self._clock.exchange_now_ms()) > 0:
            await self._clock.sleep(left_ms / 1000)


class _Series(Struct, frozen=True):
    """When to ask for what. A round begins `after_ms` after each multiple of `period_ms`."""

    name: str
    period_ms: int
    after_ms: int
    spread_ms: int
    """Over how long the first requests of a round are spread."""
    fetch: Callable[[str, int], Awaitable[bool]]
    """Asks for a symbol's row of a boundary and takes what comes; returns whether the expected row was there."""
