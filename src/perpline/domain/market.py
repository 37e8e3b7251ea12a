"""What the exchange tells about the market, one type for each kind of news. Each carries two times: the exchange's
(`updated_at` or `event_time`) and ours (`received_at`, stamped where the bytes arrived)."""

import math
from typing import Literal

from msgspec import Struct

Side = Literal["buy", "sell"]

Ratio = Literal["global_account", "top_account", "top_position", "taker"]
RATIOS: tuple[Ratio, ...] = ("global_account", "top_account", "top_position", "taker")


class BookTicker(Struct, frozen=True, gc=False):
    """The best bid and ask of a symbol with their quantities: prices in quote, quantities in base units."""

    symbol: str
    bid: float
    bid_qty: float
    ask: float
    ask_qty: float
    update_id: int
    updated_at: int
    """The exchange's event time E (transaction time T where E is absent)."""
    received_at: int

    @property
    def mid(self) -> float:
        return (self.bid + self.ask) / 2

    @property
    def spread(self) -> float:
        return self.ask - self.bid

    @property
    def spread_bps(self) -> float:
        return (self.ask - self.bid) / self.mid * 10_000


class SlippageEstimate(Struct, frozen=True):
    """What a market order would probably fill at."""

    fill_price: float
    slippage_bps: float
    """Against the mid, positive when it costs."""


def slippage_estimate(book: BookTicker, side: Side, quantity: float) -> SlippageEstimate:
    """The expected average fill price of a market order, and its distance from the mid in basis points.

    An estimate: only the best level is known. Up to the quoted quantity the order fills at the touch. What goes beyond
    it is assumed to meet further levels of the same quantity, each half a spread deeper than the one before, which is
    a plain guess at the unseen book; `trading` calibrates it against real fills. Raises ValueError for a quantity that
    is not positive or not finite.
    """
    if not 0 < quantity < math.inf:
        raise ValueError(f"quantity must be positive and finite, not {quantity}")
    touch, quoted = (book.ask, book.ask_qty) if side == "buy" else (book.bid, book.bid_qty)
    # With nothing quoted there is no size to measure against: the whole order counts as one level beyond the touch.
    levels = quantity / quoted if quoted > 0 else 2.0
    full = int(levels)
    rest = levels - full
    # Level i (from 0) lies i half-spreads behind the touch; the mean depth weighs them by quantity.
    depth = (full * (full - 1) / 2 + rest * full) / levels
    distance = max(book.spread, 0.0) / 2 * depth
    fill_price = touch + distance if side == "buy" else max(touch - distance, 0.0)
    sign = 1 if side == "buy" else -1
    return SlippageEstimate(fill_price, sign * (fill_price - book.mid) / book.mid * 10_000)


class MarkPrice(Struct, frozen=True, gc=False):
    """Mark price, index price and the funding that is due next."""

    symbol: str
    mark_price: float
    index_price: float
    funding_rate: float
    """Estimated rate of the next settlement as a fraction (0.0001 = 1 bp)."""
    next_funding_time: int
    """0 where the symbol has no funding (delisted)."""
    updated_at: int
    received_at: int


class OpenInterest(Struct, frozen=True):
    """Open contracts of a symbol: a row of open_interest.

    `kind` is spot_1m (the value at `time`, polled each minute) or hist_5m (the exchange's 5-minute series, `time` is
    the end of the period; only these have `open_interest_value`, in quote).
    """

    symbol: str
    time: int
    open_interest: float
    open_interest_value: float | None
    kind: Literal["spot_1m", "hist_5m"]
    known_at: int
    revision: int = 0


class LongShortRatio(Struct, frozen=True):
    """One 5-minute row of a positioning ratio: a row of long_short_ratio. For `taker`, long and short are volumes."""

    symbol: str
    ratio: Ratio
    period_end: int
    value: float
    long: float
    short: float
    known_at: int
    first_seen_at: int
    revision: int = 0


PriceSeries = Literal["mark", "index", "premium"]


class PriceCandle(Struct, frozen=True):
    """A closed 1m candle of the mark price, index price or premium index (a fraction, may be negative)."""

    series: PriceSeries
    symbol: str
    open_time: int
    open: float
    high: float
    low: float
    close: float
    source: Literal["rest", "archive"]
    received_at: int


class FundingRate(Struct, frozen=True):
    """A settled funding rate: a row of funding_rates. `known_at` is the settlement plus 60 s (features.md 1.5)."""

    symbol: str
    funding_time: int
    rate: float
    mark_price: float | None
    interval_hours: int | None
    known_at: int
