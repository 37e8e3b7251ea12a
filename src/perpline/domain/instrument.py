"""A tradable symbol and the one place where prices and sizes are rounded."""

from decimal import ROUND_CEILING, ROUND_DOWN, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import Literal

from msgspec import Struct

from perpline.domain.market import Side

ZERO = Decimal(0)

Rounding = Literal["nearest", "down", "up"]
ENDED = frozenset({"SETTLING", "CLOSE", "DELIVERING", "DELIVERED"})
ENDING = frozenset({"PRE_SETTLE", "PRE_DELIVERING"})
"""Statuses of contracts that trade no more; these when their delivery time has come."""
ANNOUNCED_AHEAD_MS = 400 * 86_400_000
"""The end of a contract is not announced further ahead than this; a quarterly one lives for half a year."""

_ROUNDING = {"nearest": ROUND_HALF_EVEN, "down": ROUND_FLOOR, "up": ROUND_CEILING}


class Instrument(Struct, frozen=True):
    """A perpetual as the exchange lists it. Steps are exact decimals, for they round our own money."""

    symbol: str
    base_asset: str
    quote_asset: str
    contract_type: str
    status: str
    onboard_time: int
    tick_size: Decimal
    step_size: Decimal
    min_quantity: Decimal
    min_notional: Decimal
    max_quantity: Decimal = Decimal(0)
    """Of a limit order. Here as in every limit below, 0 means that the exchange names none."""
    market_min_quantity: Decimal = Decimal(0)
    """Of a market order; 0: that of any order."""
    market_max_quantity: Decimal = Decimal(0)
    market_step_size: Decimal = Decimal(0)
    min_price: Decimal = Decimal(0)
    max_price: Decimal = Decimal(0)
    multiplier_up: Decimal = Decimal(0)
    """A buying limit price may be at most the mark price times this."""
    multiplier_down: Decimal = Decimal(0)
    """A selling limit price must be at least the mark price times this."""
    market_take_bound: Decimal = Decimal(0)
    """A market order trades no further from the mark price than this share of it."""
    trigger_protect: Decimal = Decimal(0)
    """Share by which last and mark price may differ when a protected trigger is to act."""
    maintenance_margin_pct: Decimal = Decimal("2.5")
    """Of the position's value at the mark price; below it the position is liquidated."""
    delivery_time: int = 0
    """When the contract ends; for one without an end a time in a far future. 0: the exchange names none."""

    @property
    def is_trading(self) -> bool:
        return self.status == "TRADING"

    def has_ended(self, now: int) -> bool:
        """Whether it will never trade again under this listing: settled or being settled.

        Halts, breaks and what is not known here are pauses (binance.md 3.1 and 2: TRADING_HALT is in no documented
        list, so an unknown word must not end a contract)."""
        return self.status in ENDED or (self.status in ENDING and 0 < self.delivery_time <= now)

    def announced_end(self, now: int) -> int | None:
        """When it ends, where that is announced: real lists have times that are over and times in 2100, which say
        nothing of a contract that trades."""
        return self.delivery_time if now < self.delivery_time < now + ANNOUNCED_AHEAD_MS else None

    @property
    def is_trading_perpetual(self) -> bool:
        """Whether it is a USDT-style perpetual in normal trading (TradFi perpetuals keep hours and are not)."""
        return self.contract_type == "PERPETUAL" and self.status == "TRADING"

    def round_price(self, price: float | Decimal, rounding: Rounding = "nearest") -> Decimal:
        """The price on the tick grid. `down` and `up` are towards smaller and larger prices."""
        exact = price if isinstance(price, Decimal) else Decimal(repr(price))
        ticks = (exact / self.tick_size).quantize(Decimal(1), rounding=_ROUNDING[rounding])
        return ticks * self.tick_size

    def round_quantity(self, quantity: float | Decimal) -> Decimal:
        """The largest size on the step grid that is not more than asked for: 0 where that is below one step."""
        return _whole_steps(quantity, self.step_size)

    def round_market_quantity(self, quantity: float | Decimal) -> Decimal:
        """The same for a market order, whose steps may be coarser and whose size may have another limit."""
        exact = quantity if isinstance(quantity, Decimal) else Decimal(repr(quantity))
        if self.market_max_quantity:
            exact = min(exact, self.market_max_quantity)
        return _whole_steps(exact, max(self.step_size, self.market_step_size))

    def broken_filter(
        self,
        side: Side,
        quantity: Decimal,
        mark: Decimal,
        *,
        price: Decimal | None = None,
        expected_price: Decimal | None = None,
        reduce_only: bool = False,
    ) -> str:
        """Which of the exchange's filters this order breaks, in words that begin with its name; empty for none.

        A limit order has a `price`, a market order has not; `expected_price` is where that will probably fill. The
        least notional counts at the mark price for a market order and not at all for one that only reduces
        (binance.md 4.3).
        """
        market = price is None
        name = "MARKET_LOT_SIZE" if market else "LOT_SIZE"
        least = max(self.min_quantity, self.market_min_quantity if market else ZERO)
        most = self.market_max_quantity if market else self.max_quantity
        step = (self.market_step_size if market else ZERO) or self.step_size
        if quantity <= 0 or quantity < least:
            return f"{name}: {quantity:f} is less than {least:f}"
        if most and quantity > most:
            return f"{name}: {quantity:f} is more than {most:f}"
        if quantity % step or quantity % self.step_size:
            return f"{name}: {quantity:f} is no multiple of {step:f}"
        if price is not None and (wrong := self._wrong_price(side, price, mark)):
            return wrong
        notional = quantity * (mark if price is None else price)
        if not reduce_only and notional < self.min_notional:
            return f"MIN_NOTIONAL: {notional:f} is less than {self.min_notional:f}"
        bound = self.market_take_bound
        if expected_price is not None and market and bound and abs(expected_price - mark) > mark * bound:
            return f"marketTakeBound: {expected_price:f} is further than {bound:f} of it from the mark price {mark:f}"
        return ""

    def _wrong_price(self, side: Side, price: Decimal, mark: Decimal) -> str:
        if price <= 0 or price < self.min_price or (self.max_price and price > self.max_price):
            return f"PRICE_FILTER: {price:f} is not between {self.min_price:f} and {self.max_price:f}"
        if (price - self.min_price) % self.tick_size:
            return f"PRICE_FILTER: {price:f} is not on the grid of {self.tick_size:f}"
        if side == "buy" and self.multiplier_up and price > mark * self.multiplier_up:
            return f"PERCENT_PRICE: {price:f} is more than {self.multiplier_up:f} of the mark price {mark:f}"
        if side == "sell" and price < mark * self.multiplier_down:
            return f"PERCENT_PRICE: {price:f} is less than {self.multiplier_down:f} of the mark price {mark:f}"
        return ""


def _whole_steps(quantity: float | Decimal, step: Decimal) -> Decimal:
    exact = quantity if isinstance(quantity, Decimal) else Decimal(repr(quantity))
    return (exact / step).quantize(Decimal(1), rounding=ROUND_DOWN) * step
