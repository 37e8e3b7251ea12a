"""The market over REST alone: what is stale, and what is said where nothing comes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from perpline.collector.rest_feed import KINDS, STALE_ROUNDS, RestFeed
from perpline.common.clock import ManualClock
from perpline.common.errors import PerplineError, Unavailable
from perpline.domain.market import BookTicker, MarkPrice

START = 1_790_521_800_000
EVERY_S = 5.0
SYMBOLS = ["AUSDT", "BUSDT"]


class FakeExchange:
    """Answers of every symbol, or the error that `away` holds."""

    def __init__(self) -> None:
        self.away: PerplineError | None = None

    async def candles(self, *asked: Any, **more: Any) -> list[Any]:
        self._answer()
        return []

    async def mark_prices(self) -> list[MarkPrice]:
        self._answer()
        times = {"updated_at": START, "next_funding_time": START, "received_at": START}
        return [MarkPrice(symbol=each, mark_price=1.0, index_price=1.0, funding_rate=0.0, **times) for each in SYMBOLS]

    async def book_tickers(self) -> list[BookTicker]:
        self._answer()
        sizes = {"bid": 1.0, "bid_qty": 1.0, "ask": 1.1, "ask_qty": 1.0}
        return [BookTicker(symbol=each, update_id=1, updated_at=START, received_at=START, **sizes) for each in SYMBOLS]

    def _answer(self) -> None:
        if self.away is not None:
            raise self.away


@asynccontextmanager
async def fed() -> AsyncIterator[tuple[RestFeed, FakeExchange, ManualClock]]:
    clock, exchange = ManualClock(START), FakeExchange()
    rest: Any = exchange
    feed = RestFeed(
        rest,
        clock,
        lambda: SYMBOLS,
        on_kline=lambda row: None,
        on_mark=lambda mark: None,
        on_book=lambda book: None,
        every_s=EVERY_S,
    )
    running = asyncio.create_task(feed.run())
    try:
        yield feed, exchange, clock
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def rounds(feed: RestFeed, clock: ManualClock, count: int) -> None:
    until = feed.rounds + count
    while feed.rounds < until:
        for _ in range(20):
            await asyncio.sleep(0)
        clock.advance(0.5)


async def test_what_no_round_has_told_of_for_a_while_is_stale_and_fresh_again_when_it_comes() -> None:
    async with fed() as (feed, exchange, clock):
        await rounds(feed, clock, 2)
        fresh = feed.silent(), feed.trouble(), feed.facts()["stale"]
        exchange.away = Unavailable("the exchange does not answer")
        await rounds(feed, clock, STALE_ROUNDS + 1)
        away, trouble, facts = feed.silent(), feed.trouble(), feed.facts()
        exchange.away = None
        await rounds(feed, clock, 2)
        back = feed.silent(), feed.trouble(), feed.last_error

    assert fresh == ([], [], {})
    assert set(away) == {(symbol, kind) for symbol in SYMBOLS for kind in KINDS}
    assert "the exchange does not answer" in trouble[0]
    assert "AUSDT kline_1m" in trouble[1]
    assert facts["stale"] == {"REST": [f"{symbol} {kind}" for symbol, kind in away]}
    assert back == ([], [], "")


async def test_one_round_that_fails_is_said_and_nothing_is_stale_yet() -> None:
    async with fed() as (feed, exchange, clock):
        await rounds(feed, clock, 1)
        exchange.away = Unavailable("busy")
        await rounds(feed, clock, 1)
        said = feed.trouble()

    assert len(said) == 1
    assert said[0].endswith("busy")
