"""What perpline asks of an exchange over REST, in `domain`'s words, never in an exchange's own."""

from typing import Protocol

from perpline.domain.candle import KlineUpdate
from perpline.domain.instrument import Instrument
from perpline.domain.market import (
    BookTicker,
    FundingRate,
    LongShortRatio,
    MarkPrice,
    OpenInterest,
    PriceCandle,
    PriceSeries,
    Ratio,
)


class MarketRest(Protocol):
    """Market data by request. Every call may raise `Unavailable` (try later), `RateLimited` (stop asking for a while),
    `Refused` (do not ask this again) or `Malformed` (the answer makes no sense). Reads are retried inside."""

    async def server_time(self) -> int:
        """The exchange's clock, milliseconds."""

    async def measure_offset_ms(self) -> int:
        """How far the exchange's clock is ahead of ours, by the quickest of a few round trips."""

    async def instruments(self) -> list[Instrument]:
        """Every listed symbol."""

    async def quote_volumes_24h(self) -> dict[str, float]:
        """Quote volume of the last 24 hours by symbol."""

    async def candles(
        self, symbol: str, interval: str, *, start: int | None = None, end: int | None = None, limit: int = 500
    ) -> list[KlineUpdate]:
        """Candles by open time, oldest first: `start` <= open_time < `end`, at most `limit` (1500 the most).

        Rows that were closed by the exchange's clock when it answered have `closed` true; the forming one has not.
        """

    async def mark_prices(self) -> list[MarkPrice]:
        """Mark and index price and funding of every symbol."""

    async def book_tickers(self) -> list[BookTicker]:
        """Best bid and ask of every symbol that has both."""

    async def price_candles(
        self, series: PriceSeries, symbol: str, *, start: int | None = None, end: int | None = None, limit: int = 500
    ) -> list[PriceCandle]:
        """Closed 1m candles of mark price, index price or premium index, oldest first."""

    async def open_interest(self, symbol: str) -> OpenInterest:
        """Open interest now (kind spot_1m)."""

    async def open_interest_hist(
        self, symbol: str, limit: int = 1, *, start: int | None = None, end: int | None = None
    ) -> list[OpenInterest]:
        """The newest 5-minute rows (kind hist_5m), oldest first; empty for a symbol the exchange does not know.

        With both `start` and `end` those with start <= time < end, at most `limit` (500 the most) and a month back.
        """

    async def long_short_ratios(
        self, symbol: str, ratio: Ratio, limit: int = 1, *, start: int | None = None, end: int | None = None
    ) -> list[LongShortRatio]:
        """The newest 5-minute rows of a ratio, oldest first; empty for a symbol the exchange does not know.

        `start` and `end` as for `open_interest_hist`.
        """

    async def funding_rates(
        self, symbol: str, *, start: int | None = None, end: int | None = None, limit: int = 100
    ) -> list[FundingRate]:
        """Settled funding rates, oldest first."""

    async def close(self) -> None:
        """Close every connection."""
