"""What perpline asks of an exchange over REST, in `domain`'s words, never in an exchange's own."""

from typing import Protocol

from msgspec import Struct

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
from perpline.domain.order import (
    AccountSnapshot,
    ExchangePosition,
    Fill,
    Income,
    OrderReport,
    OrderRequest,
    StopReport,
    StopRequest,
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


class KeyPermissions(Struct, frozen=True, kw_only=True):
    """What an API key may do. None where the exchange does not tell."""

    can_trade: bool
    can_withdraw: bool | None
    bound_to_address: bool | None


class SymbolMargin(Struct, frozen=True, kw_only=True):
    """How positions of a symbol are margined."""

    isolated: bool
    leverage: int


class TradingRest(Protocol):
    """Our account by request: signed, and never sent twice by itself.

    Orders, stops and cancellations may raise `Refused` (with the exchange's code: it has not happened), `RateLimited`,
    `Unavailable` (it has surely not happened, and may be sent again) or `OutcomeUnknown` (it may have happened: look it
    up by its own id, never send it again). Reads raise as those of `MarketRest` do, and are retried inside.
    """

    async def place_order(self, order: OrderRequest) -> OrderReport:
        """Send an ordinary order. The report may lack average price and fills: those come from the stream."""

    async def cancel_order(self, symbol: str, client_id: str) -> OrderReport | None:
        """Cancel by our own id; None where nothing of that id is open."""

    async def order(self, symbol: str, client_id: str, *, order_id: int = 0) -> OrderReport | None:
        """The order as the exchange has it, by its own id where that is known; None where it has none."""

    async def open_orders(self) -> list[OrderReport]:
        """Every open ordinary order of the account."""

    async def place_stop(self, stop: StopRequest) -> StopReport:
        """Send a protective stop."""

    async def cancel_stop(self, client_algo_id: str) -> bool:
        """Cancel by our own id; False where nothing of that id is open."""

    async def stop(self, client_algo_id: str) -> StopReport | None: ...

    async def open_stops(self) -> list[StopReport]:
        """Every open conditional order of the account, of whatever type."""

    async def cancel_all(self, symbol: str) -> None:
        """Cancel every ordinary and every conditional order of the symbol."""

    async def positions(self) -> list[ExchangePosition]:
        """Every position of the account, flat ones left out."""

    async def account(self) -> AccountSnapshot: ...

    async def fills(self, symbol: str, *, since: int | None = None, order_id: int | None = None) -> list[Fill]:
        """Executions of the symbol, oldest first: those of an order, or those from `since` on (at most 7 days back)."""

    async def income(self, start: int, end: int) -> list[Income]:
        """The account's income with start <= at < end, oldest first, however many pages it takes."""

    async def margin(self, symbol: str) -> SymbolMargin: ...

    async def set_isolated(self, symbol: str) -> None:
        """Isolated margin for the symbol; that it was so already is no error."""

    async def set_leverage(self, symbol: str, leverage: int) -> None: ...

    async def is_hedge_mode(self) -> bool: ...

    async def permissions(self) -> KeyPermissions: ...

    async def make_listen_key(self) -> str:
        """The key of the account's user data stream, made or prolonged by an hour."""

    async def keep_listen_key(self) -> None:
        """Prolong it. Raises Refused (-1125) where there is none any more."""

    async def close(self) -> None: ...
