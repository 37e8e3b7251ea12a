import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from perpline.collector.rest_poller import RestPoller
from perpline.common.clock import ManualClock
from perpline.common.errors import Malformed, RateLimited, Refused, Unavailable
from perpline.domain.market import RATIOS, FundingRate, LongShortRatio, OpenInterest, PriceCandle, PriceSeries, Ratio
from perpline.storage.store import TABLES

MINUTE = 60_000
FIVE = 300_000
HOUR = 3_600_000
START = 1_790_521_800_000
assert START % HOUR == 10 * MINUTE

SERIES_5M = ("open_interest_hist", "global_account", "top_account", "top_position", "taker")


class FakeExchange:
    """A MarketRest whose 5-minute rows come `publish_after_ms` late, and which fails as told."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.publish_after_ms = 20_000
        self.funding_hours = 8
        self.calls: list[tuple[int, str, str]] = []
        self.limits: list[tuple[str, int]] = []
        self.failures: Callable[[str, str], Exception | None] = lambda series, symbol: None
        self.values: dict[int, float] = {}
        self.answer_after_s = 0.0
        self.under_way = self.most_under_way = 0

    async def asked(self, series: str, symbol: str, limit: int = 1) -> None:
        self.calls.append((self.clock.now_ms(), series, symbol))
        self.limits.append((series, limit))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if self.answer_after_s:
                await self.clock.sleep(self.answer_after_s)
            else:
                await asyncio.sleep(0)
        finally:
            self.under_way -= 1
        failure = self.failures(series, symbol)
        if failure is not None:
            raise failure

    def published(self, limit: int) -> list[int]:
        newest = (self.clock.now_ms() - self.publish_after_ms) // FIVE * FIVE
        return [newest - FIVE * back for back in range(limit - 1, -1, -1)]

    async def open_interest(self, symbol: str) -> OpenInterest:
        await self.asked("open_interest", symbol)
        now = self.clock.now_ms()
        return OpenInterest(symbol, now - 5, 1000.0, None, "spot_1m", now)

    async def open_interest_hist(self, symbol: str, limit: int = 1) -> list[OpenInterest]:
        await self.asked("open_interest_hist", symbol, limit)
        now = self.clock.now_ms()
        return [
            OpenInterest(symbol, time, self.values.get(time, 7.0), 70.0, "hist_5m", now)
            for time in self.published(limit)
        ]

    async def long_short_ratios(self, symbol: str, ratio: Ratio, limit: int = 1) -> list[LongShortRatio]:
        await self.asked(ratio, symbol, limit)
        now = self.clock.now_ms()
        return [LongShortRatio(symbol, ratio, time, 1.5, 0.6, 0.4, now, now) for time in self.published(limit)]

    async def price_candles(
        self, series: PriceSeries, symbol: str, *, start: int | None = None, end: int | None = None, limit: int = 500
    ) -> list[PriceCandle]:
        await self.asked(f"{series}_klines", symbol, limit)
        now = self.clock.now_ms()
        last = now // MINUTE * MINUTE - MINUTE
        times = [last - MINUTE * back for back in range(limit - 1, -1, -1)]
        return [PriceCandle(series, symbol, time, 1.0, 2.0, 0.5, 1.5, "rest", now) for time in times]

    async def funding_rates(
        self, symbol: str, *, start: int | None = None, end: int | None = None, limit: int = 100
    ) -> list[FundingRate]:
        await self.asked("funding_rates", symbol, limit)
        length = self.funding_hours * HOUR
        last = (self.clock.now_ms() - self.publish_after_ms) // length * length
        times = [last - length * back for back in range(limit - 1, -1, -1)]
        return [
            FundingRate(symbol, time + 3, 0.0001, 5.0, None if place == 0 else self.funding_hours, time + 60_003)
            for place, time in enumerate(times)
        ]


class Bench:
    def __init__(self, symbols: list[str], **settings: Any) -> None:
        self.clock = ManualClock(START, speed=settings.pop("speed", 1.0))
        self.exchange = FakeExchange(self.clock)
        self.rows: list[tuple[str, tuple[Any, ...]]] = []
        self.told: list[tuple[str, str, str]] = []
        self.symbols = symbols
        self.poller = RestPoller(
            self.exchange,  # type: ignore[arg-type]
            self.clock,
            lambda: self.symbols,
            lambda table, row: self.rows.append((table, row)),
            on_failure=lambda series, symbol, error: self.told.append((series, symbol, type(error).__name__)),
            **settings,
        )
        self.running = asyncio.create_task(self.poller.run())

    async def live(self, seconds: float, step_s: float = 0.5) -> None:
        """Let this much market time pass."""
        until = self.clock.now_ms() + round(seconds * 1000)
        while self.clock.now_ms() < until:
            for _ in range(12):
                await asyncio.sleep(0)
            if self.running.done():
                self.running.result()
            self.clock.advance(step_s)
        for _ in range(12):
            await asyncio.sleep(0)

    def table(self, name: str) -> list[dict[str, Any]]:
        return [dict(zip(TABLES[name].columns, row, strict=True)) for table, row in self.rows if table == name]

    def asked(self, series: str) -> list[int]:
        return [time for time, name, _ in self.exchange.calls if name == series]


@asynccontextmanager
async def polling(symbols: int = 2, **settings: Any) -> AsyncIterator[Bench]:
    bench = Bench([f"S{number}USDT" for number in range(symbols)], **settings)
    try:
        yield bench
    finally:
        bench.running.cancel()
        await asyncio.gather(bench.running, return_exceptions=True)


def seconds_into(period: int, times: list[int]) -> list[float]:
    return [time % period / 1000 for time in times]


async def test_open_interest_is_asked_for_each_minute_between_closes() -> None:
    async with polling(10) as bench:
        await bench.live(5 * 60)

        rounds = [time for time in bench.asked("open_interest") if time > START + MINUTE]
        assert Counter(time // MINUTE for time in rounds) == Counter(
            {(START // MINUTE) + minute: 10 for minute in range(1, 5)}
        )
        assert min(seconds_into(MINUTE, rounds)) >= 15
        assert max(seconds_into(MINUTE, rounds)) < 36
        assert len(set(rounds)) > 10


async def test_a_row_of_open_interest_is_known_when_it_was_received() -> None:
    async with polling(1) as bench:
        await bench.live(61)

    row = bench.table("open_interest")[0]
    assert row["kind"] == "spot_1m"
    assert row["open_interest_value"] is None
    assert row["known_at"] == row["time"] + 5


@pytest.mark.parametrize("delay_s", [0, 20, 45, 200])
async def test_a_five_minute_row_is_asked_for_until_it_is_there(delay_s: int) -> None:
    async with polling(2) as bench:
        bench.exchange.publish_after_ms = delay_s * 1000
        await bench.live(20 * 60)

        for ratio in ("global_account", "top_account", "top_position", "taker"):
            ends = [row["period_end"] for row in bench.table("long_short_ratio") if row["ratio"] == ratio]
            assert {START, START + FIVE, START + 2 * FIVE} <= set(ends)
            assert len(ends) == 2 * len(set(ends))
        assert sum(state.unfinished for state in bench.poller.series.values()) == 0
        asked = Counter(time // FIVE for time in bench.asked("taker"))
        assert max(asked.values()) <= 2 * 12


async def test_a_row_seen_early_counts_as_known_two_minutes_after_its_period() -> None:
    async with polling(1) as bench:
        bench.exchange.publish_after_ms = 5_000
        await bench.live(10 * 60)

    row = next(row for row in bench.table("long_short_ratio") if row["period_end"] == START + FIVE)
    assert START + FIVE + 30_000 <= row["first_seen_at"] < START + FIVE + 60_000
    assert row["known_at"] == START + FIVE + 120_000


async def test_a_row_seen_late_counts_as_known_when_it_was_seen() -> None:
    async with polling(1) as bench:
        bench.exchange.publish_after_ms = 200_000
        await bench.live(15 * 60)

    row = next(row for row in bench.table("open_interest") if row["kind"] == "hist_5m" and row["time"] == START + FIVE)
    assert row["known_at"] >= START + FIVE + 200_000


@pytest.mark.parametrize("delay_s", range(0, 601, 75))
async def test_whenever_a_row_arrives_it_counts_as_known_then_but_never_before_the_two_minutes(delay_s: int) -> None:
    """L3 of features.md, the part of the arrival."""
    async with polling(1) as bench:
        bench.exchange.publish_after_ms = delay_s * 1000
        await bench.live(25 * 60)

    rows = bench.table("long_short_ratio")
    assert {row["ratio"] for row in rows} == set(RATIOS)
    for row in rows:
        assert row["first_seen_at"] >= row["period_end"] + delay_s * 1000
        assert row["known_at"] == max(row["period_end"] + 120_000, row["first_seen_at"])
        assert row["revision"] == 0


async def test_a_value_that_changes_later_becomes_a_revision() -> None:
    async with polling(1) as bench:
        await bench.live(6 * 60)
        bench.exchange.values[START + FIVE] = 8.0
        await bench.live(5 * 60)
        bench.exchange.values[START + FIVE] = 9.0
        await bench.live(5 * 60)

    seen = [
        (row["open_interest"], row["revision"])
        for row in bench.table("open_interest")
        if row["kind"] == "hist_5m" and row["time"] == START + FIVE
    ]
    assert seen == [(7.0, 0), (8.0, 1), (9.0, 2)]


async def test_each_price_candle_is_taken_once() -> None:
    async with polling(2) as bench:
        await bench.live(6 * 60)

        for series in ("mark", "index", "premium"):
            keys = [(row["symbol"], row["open_time"]) for row in bench.table(f"{series}_klines")]
            assert len(keys) == len(set(keys))
            assert {(symbol, START + minute * MINUTE) for symbol in bench.symbols for minute in range(5)} <= set(keys)
        asked = [time for time in bench.asked("mark_klines") if time > START + MINUTE]
        assert min(seconds_into(MINUTE, asked)) >= 15


async def test_price_candles_are_a_setting() -> None:
    async with polling(1, price_klines=False) as bench:
        await bench.live(61)

    assert {series for _, series, _ in bench.exchange.calls} == {"open_interest", *SERIES_5M, "funding_rates"}


async def test_a_settlement_is_found_in_its_hour_and_others_are_not_waited_for() -> None:
    async with polling(1) as bench:
        bench.exchange.funding_hours = 1
        bench.exchange.publish_after_ms = 100_000
        await bench.live(2 * 3600, step_s=1)

        settled = [row["funding_time"] for row in bench.table("funding_rates")]
        hour = START // HOUR * HOUR
        assert {hour + HOUR + 3, hour + 2 * HOUR + 3} <= set(settled)
        assert len(settled) == len(set(settled))
        assert all(row["interval_hours"] == 1 for row in bench.table("funding_rates"))

    async with polling(1) as bench:
        bench.exchange.funding_hours = 8
        await bench.live(3 * 3600, step_s=1)

        assert len(bench.asked("funding_rates")) == 4


async def test_after_an_hour_away_the_missed_rows_are_asked_for() -> None:
    async with polling(1) as bench:
        await bench.live(6 * 60)
        bench.exchange.failures = lambda series, symbol: Unavailable("away")
        await bench.live(60 * 60, step_s=2)
        bench.exchange.failures = lambda series, symbol: None
        await bench.live(10 * 60)

        ends = {row["period_end"] for row in bench.table("long_short_ratio") if row["ratio"] == "taker"}
        assert ends >= {START + FIVE * number for number in range(15)}
        minutes = {row["open_time"] for row in bench.table("mark_klines")}
        assert minutes >= {START + MINUTE * number for number in range(75)}


async def test_one_symbol_without_answer_does_not_stop_the_others() -> None:
    async with polling(5) as bench:
        bench.exchange.failures = lambda series, symbol: Unavailable("away") if symbol == "S1USDT" else None
        await bench.live(10 * 60)

        told = Counter(row["symbol"] for row in bench.table("open_interest") if row["kind"] == "spot_1m")
        assert set(told) == {"S0USDT", "S2USDT", "S3USDT", "S4USDT"}
        assert min(told.values()) >= 9
        state = bench.poller.series["open_interest"]
        assert state.failures > 0
        assert state.last_error == "away"
        assert state.unfinished >= 9
        assert {symbol for _, symbol, _ in bench.told} == {"S1USDT"}


@pytest.mark.parametrize(("error", "asked"), [(Refused("no such symbol", -1121), 1), (Malformed("odd"), 4)])
async def test_what_is_refused_is_not_asked_again_in_its_round(error: Exception, asked: int) -> None:
    async with polling(1) as bench:
        bench.exchange.failures = lambda series, symbol: error if series == "open_interest" else None
        await bench.live(61 + 14)

        times = [time for time in bench.asked("open_interest") if START + 15_000 <= time < START + 75_000]
        assert (len(times) == 1) == (asked == 1)
        assert len(times) >= asked


async def test_a_rate_limit_stops_all_polling_until_it_ends() -> None:
    async with polling(3) as bench:
        await bench.live(6 * 60)
        before = len(bench.exchange.calls)
        blocked_at = bench.clock.now_ms()
        limited = RateLimited("banned", 600.0)
        bench.exchange.failures = lambda series, symbol: limited
        await bench.live(60)
        bench.exchange.failures = lambda series, symbol: None
        refused = len(bench.exchange.calls) - before
        first = bench.exchange.calls[before][0]
        assert 1 <= refused <= 6
        assert first + 600_000 <= bench.poller.blocked_until <= first + 602_000

        await bench.live(10 * 60)
        later = [time for time, _, _ in bench.exchange.calls[before + refused :]]
        assert later
        assert min(later) >= first + 600_000
        assert blocked_at <= first

        await bench.live(10 * 60)
        assert bench.poller.blocked_until == 0
        ends = {row["period_end"] for row in bench.table("long_short_ratio") if row["ratio"] == "taker"}
        assert ends >= {START + FIVE * number for number in range(5)}


async def test_a_bug_ends_the_poller() -> None:
    async with polling(1) as bench:
        bench.exchange.failures = lambda series, symbol: KeyError("oops") if series == "taker" else None
        with pytest.raises(ExceptionGroup) as caught:
            await bench.live(6 * 60)

    assert caught.group_contains(KeyError)


async def test_requests_never_stampede() -> None:
    async with polling(30) as bench:
        bench.exchange.answer_after_s = 0.3
        await bench.live(11 * 60)

        assert bench.exchange.most_under_way <= 6
        assert sum(state.rounds_skipped for state in bench.poller.series.values()) == 0


async def test_an_exchange_too_slow_for_its_rounds_skips_them_and_starves_no_symbol() -> None:
    async with polling(20) as bench:
        bench.exchange.answer_after_s = 9.0
        await bench.live(40 * 60, step_s=1)

        assert bench.exchange.most_under_way <= 6
        states = bench.poller.series
        assert sum(state.unfinished for state in states.values()) > 0
        assert {row["symbol"] for row in bench.table("mark_klines")} == set(bench.symbols)
        bench.exchange.answer_after_s = 400.0
        await bench.live(60 * 60, step_s=5)
        assert states["open_interest"].rounds_skipped > 0


async def test_rounds_keep_up_when_a_minute_lasts_a_second() -> None:
    async with polling(30, speed=60.0) as bench:
        bench.exchange.answer_after_s = 1.2  # 20 ms of wall time
        await bench.live(10 * 60, step_s=0.3)

        states = bench.poller.series
        assert sum(state.rounds_skipped for state in states.values()) == 0
        assert sum(state.unfinished for state in states.values()) == 0
        by_minute = Counter((time - START) // MINUTE for time in bench.asked("open_interest"))
        assert [by_minute[minute] for minute in range(2, 10)] == [30] * 8


async def test_a_symbol_that_joins_is_polled_from_the_next_round() -> None:
    async with polling(1) as bench:
        await bench.live(61)
        bench.symbols = ["S0USDT", "NEWUSDT"]
        await bench.live(61)

        assert "NEWUSDT" in {row["symbol"] for row in bench.table("open_interest")}


async def test_freshness_can_be_read() -> None:
    async with polling(2) as bench:
        await bench.live(6 * 60)

        taker = bench.poller.series["taker"]
        assert START + FIVE + 30_000 <= taker.last_success_at <= bench.clock.now_ms()
        assert taker.next_due_at == START + 2 * FIVE + 30_000
        assert taker.failures == 0
        assert taker.rows == 2 * 5
        assert set(bench.poller.series) == {
            *("open_interest", "mark_klines", "index_klines", "premium_klines", "funding_rates"),
            *SERIES_5M,
        }


def test_rows_are_in_the_order_of_their_tables() -> None:
    assert OpenInterest.__struct_fields__ == TABLES["open_interest"].columns
    assert LongShortRatio.__struct_fields__ == TABLES["long_short_ratio"].columns
    assert FundingRate.__struct_fields__ == TABLES["funding_rates"].columns
    assert PriceCandle.__struct_fields__[1:] == TABLES["mark_klines"].columns
