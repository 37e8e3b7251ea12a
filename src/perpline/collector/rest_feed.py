"""The market over REST alone: what the streams tell, asked for every few seconds."""

import asyncio
from collections.abc import Callable, Iterable, Sequence

import structlog

from perpline.common.clock import Clock
from perpline.common.errors import Malformed, RateLimited, Refused, Unavailable
from perpline.domain.candle import INTERVAL_MS, KlineUpdate
from perpline.domain.market import BookTicker, MarkPrice
from perpline.exchange.ports import MarketRest

log = structlog.get_logger("perpline.rest_feed")

KINDS = ("kline_1m", "markPrice@1s", "bookTicker")
"""What every round asks for, named as the streams are."""
STALE_ROUNDS = 3
"""What no answer has told of for so many rounds is stale."""
AFTER_MS = 500
"""A round begins this long after a full period, so that the candle that just closed is final in the answer."""


class RestFeed:
    """Every `every_s` seconds of market time: the 1m klines of each symbol, all mark prices, all best bids and asks.

    15m and 1h klines are asked for in the first round after one of them closed. Whatever comes goes to the same
    handlers as the streams' messages. A round that takes longer than its period makes the next ones be skipped, counted
    in `rounds_skipped`; what fails is told, and asked again in the next round. `last_error` is empty after a round in
    which nothing failed.
    """

    def __init__(
        self,
        rest: MarketRest,
        clock: Clock,
        symbols: Callable[[], Sequence[str]],
        *,
        on_kline: Callable[[KlineUpdate], None],
        on_mark: Callable[[MarkPrice], None],
        on_book: Callable[[BookTicker], None],
        every_s: float = 5.0,
    ) -> None:
        self.rounds = 0
        self.rounds_skipped = 0
        self.failures = 0
        self.last_error = ""
        self.heard_at: dict[tuple[str, str], float] = {}
        """Wall seconds of the newest answer by symbol and kind, named as the streams are (kline_1m, markPrice@1s …)."""
        self._rest = rest
        self._clock = clock
        self._symbols = symbols
        self._on_kline = on_kline
        self._on_mark = on_mark
        self._on_book = on_book
        self._every_ms = round(every_s * 1000)
        self._asked_boundary = {"15m": 0, "1h": 0}
        self._round_s = 0.0

    def forget(self, symbol: str) -> None:
        """Drop what is remembered of a symbol that is followed no more."""
        for key in [key for key in self.heard_at if key[0] == symbol]:
            del self.heard_at[key]

    def silent(self) -> list[tuple[str, str]]:
        """(symbol, kind) of which nothing has come for `STALE_ROUNDS` rounds, though it came before."""
        period_s = self._every_ms / 1000 / self._clock.speed
        oldest_s = self._clock.wall_s() - STALE_ROUNDS * max(period_s, self._round_s, 1.0)
        return [
            (symbol, kind)
            for symbol in self._symbols()
            for kind in KINDS
            if self.heard_at.get((symbol, kind), oldest_s) < oldest_s
        ]

    def facts(self) -> dict[str, object]:
        """For /status; `stale` as the market streams tell it."""
        silent = [f"{symbol} {kind}" for symbol, kind in self.silent()]
        return {
            "rounds": self.rounds,
            "rounds_skipped": self.rounds_skipped,
            "failures": self.failures,
            "last_error": self.last_error,
            "stale": {"REST": silent} if silent else {},
        }

    def trouble(self) -> list[str]:
        """What is wrong, in words."""
        found = [f"REST did not answer all of the last round: {self.last_error}"] if self.last_error else []
        if silent := self.silent():
            named = ", ".join(f"{symbol} {kind}" for symbol, kind in silent[:5])
            more = f" and {len(silent) - 5} more" if len(silent) > 5 else ""
            found.append(f"REST: {named}{more} have not been told for {STALE_ROUNDS} rounds")
        return found

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            now = self._clock.exchange_now_ms()
            due = now - now % self._every_ms + AFTER_MS
            if due <= now:
                due += self._every_ms
            await self._clock.sleep((due - now) / 1000)
            failures, began_s = self.failures, self._clock.wall_s()
            await self._round(self._clock.exchange_now_ms())
            self.rounds += 1
            self._round_s = self._clock.wall_s() - began_s
            if self.failures == failures:
                self.last_error = ""
            late_ms = self._clock.exchange_now_ms() - due
            self.rounds_skipped += max(0, late_ms // self._every_ms)

    async def _round(self, now: int) -> None:
        intervals = ["1m"]
        for interval, asked in self._asked_boundary.items():
            boundary = now - now % INTERVAL_MS[interval]
            if boundary > asked:
                self._asked_boundary[interval] = boundary
                intervals.append(interval)
        requests = [self._klines(symbol, interval) for interval in intervals for symbol in self._symbols()]
        try:
            async with asyncio.TaskGroup() as group:
                for request in (self._marks(), self._books(), *requests):
                    group.create_task(request)
        except* RateLimited as limited:
            wait_s = max((error.retry_after_s or 60.0) for error in _each(limited))
            self._failed("all", limited.exceptions[0])
            log.warning("rest_feed_stopped", wait_s=wait_s, action="poll")
            await self._clock.sleep(wait_s)

    async def _klines(self, symbol: str, interval: str) -> None:
        try:
            rows = await self._rest.candles(symbol, interval, limit=2)
        except RateLimited:
            raise
        except (Unavailable, Malformed, Refused) as error:
            self._failed(symbol, error)
            return
        for row in rows:
            self._on_kline(row)
        self.heard_at[(symbol, f"kline_{interval}")] = self._clock.wall_s()

    async def _marks(self) -> None:
        try:
            marks = await self._rest.mark_prices()
        except RateLimited:
            raise
        except (Unavailable, Malformed, Refused) as error:
            self._failed("mark prices", error)
            return
        wanted = set(self._symbols())
        for mark in marks:
            if mark.symbol in wanted:
                self._on_mark(mark)
                self.heard_at[(mark.symbol, "markPrice@1s")] = self._clock.wall_s()

    async def _books(self) -> None:
        try:
            books = await self._rest.book_tickers()
        except RateLimited:
            raise
        except (Unavailable, Malformed, Refused) as error:
            self._failed("best bids and asks", error)
            return
        wanted = set(self._symbols())
        for book in books:
            if book.symbol in wanted:
                self._on_book(book)
                self.heard_at[(book.symbol, "bookTicker")] = self._clock.wall_s()

    def _failed(self, what: str, error: BaseException) -> None:
        self.failures += 1
        self.last_error = f"{what}: {error}"
        log.warning("rest_feed_failed", what=what, reason=str(error), action="poll")


def _each(group: BaseExceptionGroup[RateLimited]) -> Iterable[RateLimited]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _each(error)
        else:
            yield error
