"""The contracts the simulated exchange lists: forty with familiar names, the rest made from the position in the list.

A contract depends on its position alone, so a world of 4 symbols is the beginning of a world of 600.
"""

import math
from dataclasses import dataclass

SLOTS_PER_MINUTE_GRID = 12


@dataclass(frozen=True, slots=True)
class Instrument:
    """One USDT perpetual. Prices are counted in units of 10**-price_decimals, quantities in 10**-quantity_decimals."""

    index: int
    symbol: str
    base: str
    subtype: str
    price: float
    """Price on 2026-01-01, where every walk starts."""
    price_decimals: int
    tick_units: int
    quantity_decimals: int
    daily_volatility: float
    market_share: float
    """Correlation of its returns with the market factor."""
    spread_bps: float
    slots_per_minute: int
    """At most one aggregate trade per slot."""
    occupancy: float
    """Usual share of slots that hold a trade."""
    empty_minute_share: float
    trades_per_aggregate: float
    quantity_units: float
    """Median size of an aggregate trade."""
    open_interest_units: float
    funding_interval_hours: int
    book_updates_per_s: float

    @property
    def tick_text(self) -> str:
        return decimal_text(self.tick_units, self.price_decimals)

    @property
    def step_text(self) -> str:
        return decimal_text(1, self.quantity_decimals)


def instruments(count: int) -> list[Instrument]:
    """The first `count` contracts. Raises ValueError below 1 or above 2000."""
    if not 1 <= count <= 2000:
        raise ValueError(f"symbols must be between 1 and 2000, not {count}")
    return [_instrument(index) for index in range(count)]


def decimal_text(units: int, decimals: int) -> str:
    """`units` times 10**-decimals as plain decimal text: decimal_text(8455110, 2) == '84551.10'."""
    if decimals == 0:
        return str(units)
    if units < 0:
        return "-" + decimal_text(-units, decimals)
    digits = str(units)
    if len(digits) <= decimals:
        return "0." + digits.rjust(decimals, "0")
    return digits[:-decimals] + "." + digits[-decimals:]


# base, subtype, price, price decimals, tick in those units, quantity decimals, daily volatility
_NAMED: tuple[tuple[str, str, float, int, int, int, float], ...] = (
    ("BTC", "PoW", 84_000.0, 2, 10, 3, 0.022),
    ("ETH", "Layer-1", 2_900.0, 2, 1, 3, 0.031),
    ("SOL", "Layer-1", 138.0, 4, 100, 2, 0.038),
    ("XRP", "Payment", 2.1, 4, 1, 1, 0.036),
    ("BNB", "Layer-1", 860.0, 3, 10, 2, 0.026),
    ("DOGE", "Meme", 0.15, 6, 10, 0, 0.045),
    ("ADA", "Layer-1", 0.42, 5, 10, 0, 0.042),
    ("SUI", "Layer-1", 1.5, 6, 100, 1, 0.05),
    ("LINK", "Infrastructure", 13.0, 3, 1, 2, 0.041),
    ("AVAX", "Layer-1", 14.0, 4, 10, 0, 0.043),
    ("LTC", "PoW", 85.0, 2, 1, 3, 0.035),
    ("BCH", "PoW", 540.0, 2, 1, 3, 0.035),
    ("1000PEPE", "Meme", 0.0045, 7, 1, 0, 0.058),
    ("TRX", "Layer-1", 0.28, 5, 1, 0, 0.022),
    ("DOT", "Layer-1", 2.3, 3, 1, 1, 0.042),
    ("NEAR", "Layer-1", 1.9, 3, 1, 0, 0.047),
    ("UNI", "DeFi", 6.1, 3, 1, 0, 0.048),
    ("AAVE", "DeFi", 172.0, 3, 10, 1, 0.044),
    ("APT", "Layer-1", 2.2, 5, 10, 1, 0.048),
    ("ARB", "Layer-2", 0.21, 6, 100, 1, 0.05),
    ("OP", "Layer-2", 0.31, 7, 1000, 1, 0.051),
    ("FIL", "Storage", 1.6, 3, 1, 1, 0.045),
    ("ATOM", "Layer-1", 2.5, 3, 1, 2, 0.042),
    ("INJ", "DeFi", 5.6, 6, 1000, 1, 0.052),
    ("ETC", "PoW", 14.0, 3, 1, 2, 0.038),
    ("XLM", "Payment", 0.25, 5, 1, 0, 0.04),
    ("HBAR", "Layer-1", 0.14, 5, 1, 0, 0.044),
    ("ICP", "Layer-1", 4.1, 3, 1, 0, 0.047),
    ("SEI", "Layer-1", 0.13, 7, 100, 0, 0.052),
    ("TIA", "Layer-1", 0.65, 7, 1000, 0, 0.055),
    ("WLD", "AI", 0.62, 7, 1000, 0, 0.055),
    ("1000SHIB", "Meme", 0.0084, 6, 1, 0, 0.045),
    ("WIF", "Meme", 0.37, 7, 1000, 1, 0.063),
    ("ENA", "DeFi", 0.26, 7, 1000, 0, 0.06),
    ("ONDO", "RWA", 0.49, 7, 1000, 1, 0.05),
    ("JUP", "DeFi", 0.24, 4, 1, 0, 0.052),
    ("LDO", "DeFi", 0.68, 6, 100, 0, 0.052),
    ("CRV", "DeFi", 0.4, 3, 1, 1, 0.05),
    ("ALGO", "Layer-1", 0.14, 4, 1, 1, 0.044),
    ("FET", "AI", 0.27, 7, 1000, 0, 0.056),
)


def _instrument(index: int) -> Instrument:
    if index < len(_NAMED):
        base, subtype, price, price_decimals, tick_units, quantity_decimals, volatility = _NAMED[index]
    else:
        base, subtype = f"SIM{index + 1:03d}", "Meme"
        # A low-discrepancy sequence spreads prices from 0.002 to 200 without two neighbours being alike.
        price = 10 ** (-2.7 + 5.0 * ((index * 0.618034) % 1.0))
        price_decimals = max(2, 4 - math.floor(math.log10(price)))
        tick_units = 1
        quantity_decimals = 0 if price < 5 else 1 if price < 50 else 2
        volatility = 0.04 + 0.03 * ((index * 0.414214) % 1.0)
    slots = 120 if index == 0 else 60 if index == 1 else 24 if index < 8 else SLOTS_PER_MINUTE_GRID
    occupancy = max(0.45, 0.8 - 0.012 * index)
    notional_per_minute = max(15_000.0, 8_000_000.0 / (1 + index))
    quantity = notional_per_minute / (slots * occupancy) / price * 10**quantity_decimals
    return Instrument(
        index=index,
        symbol=f"{base}USDT",
        base=base,
        subtype=subtype,
        price=price,
        price_decimals=price_decimals,
        tick_units=tick_units,
        quantity_decimals=quantity_decimals,
        daily_volatility=volatility,
        market_share=0.88 if index == 0 else 0.82 - 0.25 * ((index * 0.618034) % 1.0),
        spread_bps=min(2.5, 0.05 + 0.06 * index),
        slots_per_minute=slots,
        occupancy=occupancy,
        empty_minute_share=0.0 if index < 3 else 0.003 if index < 10 else 0.01 if index < 20 else 0.02,
        trades_per_aggregate=8.0 if index == 0 else 6.0 if index == 1 else 4.0 if index < 8 else 2.5,
        quantity_units=max(2.0, 0.75 * quantity),
        open_interest_units=notional_per_minute * 900 / price * 10**quantity_decimals,
        funding_interval_hours=1 if index % 30 == 17 else 4 if index % 3 == 2 and index > 2 else 8,
        book_updates_per_s=max(1.0, 80.0 / (1 + 0.45 * index)),
    )
