from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from trading import INSTRUMENT

MARK = Decimal(2000)


@pytest.mark.parametrize(
    ("side", "quantity", "price", "broken"),
    [
        ("buy", "0.05", None, ""),
        ("buy", "0", None, "MARKET_LOT_SIZE"),
        ("buy", "0.0255", None, "MARKET_LOT_SIZE"),
        ("buy", "120.001", None, "MARKET_LOT_SIZE"),
        ("buy", "120.001", "2000", ""),
        ("buy", "1000.001", "2000", "LOT_SIZE"),
        ("buy", "0.024", None, "MIN_NOTIONAL"),
        ("buy", "0.025", None, ""),
        ("buy", "0.05", "2000.05", "PRICE_FILTER"),
        ("buy", "0.05", "4529764.1", "PRICE_FILTER"),
        ("buy", "0.05", "2100", ""),
        ("buy", "0.05", "2100.1", "PERCENT_PRICE"),
        ("sell", "0.05", "1899.9", "PERCENT_PRICE"),
        ("sell", "0.05", "1900", ""),
        ("sell", "0.05", "2500", ""),
    ],
)
def test_a_filter_that_an_order_breaks_is_named(side: str, quantity: str, price: str | None, broken: str) -> None:
    limit = None if price is None else Decimal(price)
    answer = INSTRUMENT.broken_filter(side, Decimal(quantity), MARK, price=limit)  # type: ignore[arg-type]

    assert answer.split(":")[0] == broken


def test_an_order_that_only_reduces_may_be_worth_less() -> None:
    assert INSTRUMENT.broken_filter("sell", Decimal("0.001"), MARK, reduce_only=True) == ""


def test_a_market_order_trades_no_further_from_the_mark_price_than_the_exchange_lets_it() -> None:
    for price, broken in (("2100", ""), ("2100.1", "marketTakeBound"), ("1899.9", "marketTakeBound")):
        answer = INSTRUMENT.broken_filter("buy", Decimal("0.05"), MARK, expected_price=Decimal(price))

        assert answer.split(":")[0] == broken


def test_limits_that_the_exchange_does_not_name_forbid_nothing() -> None:
    bare = structs.replace(
        INSTRUMENT,
        max_quantity=Decimal(0),
        market_max_quantity=Decimal(0),
        market_step_size=Decimal(0),
        market_min_quantity=Decimal(0),
        min_price=Decimal(0),
        max_price=Decimal(0),
        multiplier_up=Decimal(0),
        multiplier_down=Decimal(0),
        market_take_bound=Decimal(0),
    )

    assert bare.broken_filter("buy", Decimal(10**6), MARK, expected_price=Decimal(1)) == ""
    assert bare.broken_filter("buy", Decimal(10**6), MARK, price=Decimal(10**9)) == ""
    assert bare.round_market_quantity(Decimal("1000000.0009")) == Decimal("1000000.000")


@given(st.decimals("0", "1000", places=6), st.sampled_from(["0.001", "0.01", "0.5", "7"]))
def test_a_market_quantity_is_the_largest_on_both_grids_that_is_not_more(quantity: Decimal, step: str) -> None:
    instrument = structs.replace(INSTRUMENT, market_step_size=Decimal(step))
    rounded = instrument.round_market_quantity(quantity)

    assert rounded <= min(quantity, Decimal(120))
    assert rounded % INSTRUMENT.step_size == 0
    assert rounded % Decimal(step) == 0
    assert rounded + Decimal(step) > min(quantity, Decimal(120))
