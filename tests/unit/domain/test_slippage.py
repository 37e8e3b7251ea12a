"""What a market order would fill at, as far as the best level tells."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perpline.domain.market import BookTicker, slippage_estimate

prices = st.floats(0.0001, 1e6)
sides = st.sampled_from(["buy", "sell"])
quantities = st.floats(1e-6, 1e6)


def book(bid: float = 99.0, ask: float = 101.0, bid_qty: float = 5.0, ask_qty: float = 2.0) -> BookTicker:
    return BookTicker("BTCUSDT", bid, bid_qty, ask, ask_qty, 1, 0, 0)


def test_up_to_the_quoted_quantity_an_order_fills_at_the_touch() -> None:
    bought, sold = slippage_estimate(book(), "buy", 2.0), slippage_estimate(book(), "sell", 5.0)

    assert (bought.fill_price, sold.fill_price) == (101.0, 99.0)
    assert (bought.slippage_bps, sold.slippage_bps) == (100.0, 100.0)


def test_beyond_it_half_meets_the_next_level_half_a_spread_deeper() -> None:
    assert slippage_estimate(book(), "buy", 4.0).fill_price == 101.5
    assert slippage_estimate(book(), "sell", 10.0).fill_price == 98.5


def test_with_nothing_quoted_the_estimate_lies_beyond_the_touch() -> None:
    assert slippage_estimate(book(ask_qty=0.0), "buy", 0.001).fill_price > 101.0


@pytest.mark.parametrize("quantity", [0.0, -1.0, float("nan"), float("inf")])
def test_a_quantity_that_is_not_positive_is_refused(quantity: float) -> None:
    with pytest.raises(ValueError, match="quantity must be positive"):
        slippage_estimate(book(), "buy", quantity)


@given(prices, st.floats(0, 0.05), quantities, sides, quantities, quantities)
def test_slippage_never_falls_as_the_quantity_grows(
    bid: float, spread: float, quoted: float, side: str, one: float, other: float
) -> None:
    quote = book(bid, bid * (1 + spread), quoted, quoted)
    small, large = (slippage_estimate(quote, side, quantity) for quantity in sorted((one, other)))

    tolerance = 1e-6 * max(1.0, large.slippage_bps)
    assert small.slippage_bps <= large.slippage_bps + tolerance
    # Rounding of a mid aside, a market order never does better than the mid.
    assert small.slippage_bps >= -1e-6


@given(prices, st.floats(0.0001, 0.05), quantities, sides)
def test_twice_the_quoted_quantity_costs_more_than_the_quoted_one(
    bid: float, spread: float, quoted: float, side: str
) -> None:
    quote = book(bid, bid * (1 + spread), quoted, quoted)

    assert slippage_estimate(quote, side, 2 * quoted).slippage_bps > slippage_estimate(quote, side, quoted).slippage_bps
