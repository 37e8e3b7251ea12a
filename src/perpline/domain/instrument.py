"""A tradable symbol and the one place where prices and sizes are rounded."""

from decimal import ROUND_CEILING, ROUND_DOWN, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import Literal

from msgspec import Struct

Rounding = Literal["nearest", "down", "up"]
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
        exact = quantity if isinstance(quantity, Decimal) else Decimal(repr(quantity))
        return (exact / self.step_size).quantize(Decimal(1), rounding=ROUND_DOWN) * self.step_size
