import dataclasses
import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from perpline.common.config import Settings, load_settings
from perpline.domain.order import Leg, OrderRequest, StopRequest, read_client_id
from perpline.trading.position import Position
from perpline.trading.risk import (
    ENTRY_RULES,
    SIZE_RULES,
    ApprovedOrder,
    ApprovedStop,
    Refusal,
    Risk,
    approve_close,
    approve_entry,
    approve_stop,
    bold_settings,
    planned,
)
from trading import INSTRUMENT, NOW, RISK, RUN, approved_entry, book, entry_facts


def held(symbol: str = "ETHUSDT", quantity: str = "1", price: str = "1000", side: int = 1, **changes: Any) -> Position:
    position = Position(
        account="live",
        position_id="p" * 22,
        symbol=symbol,
        side=side,
        status="open",
        quantity=Decimal(quantity),
        opened_quantity=Decimal(quantity),
        entry_price=Decimal(price),
        opened_at=NOW,
    )
    return structs.replace(position, **changes)


# ---- who may approve


def test_nobody_but_risk_can_make_an_approved_order_or_stop() -> None:
    approved = approved_entry()
    position = approved.position
    given: dict[str, Any] = {
        "request": approved.request,
        "position": position,
        "leg": Leg.ENTRY,
        "expected_price": None,
        "reason": "",
    }
    stop = StopRequest(symbol="BTCUSDT", side="sell", trigger_price=Decimal(1), client_algo_id="s")
    larger = structs.replace(approved.request, quantity=Decimal(100))
    with pytest.raises(TypeError, match="seal"):
        ApprovedOrder(**given)
    with pytest.raises(TypeError, match="only perpline"):
        ApprovedOrder(**given, seal=object())
    with pytest.raises(TypeError, match="only perpline"):
        ApprovedStop(request=stop, position=position, seal=None)
    with pytest.raises((TypeError, ValueError), match="seal"):
        dataclasses.replace(approved, request=larger)
    with pytest.raises(dataclasses.FrozenInstanceError):
        approved.request = larger  # type: ignore[misc]


# ---- rules


def test_an_entry_without_objections_is_a_market_order_whose_name_tells_all() -> None:
    approved = approved_entry(-1)

    assert approved.request == OrderRequest(
        symbol="BTCUSDT",
        side="sell",
        quantity=Decimal("0.050"),
        client_id=f"e.{RUN}.{'A' * 22}.0",
        reduce_only=False,
    )
    position = approved.position
    assert (position.side, position.stop, position.target) == (-1, Decimal(2020), Decimal(1980))
    assert (position.status, position.signal_id, position.deadline) == ("opening", "00" * 16, NOW + 14_400_000)
    assert approved.expected_price == Decimal("1999.9")


OBJECTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mode": ({"mode": "paper"}, {}),
    "blocked": ({"blocked": "the user data stream is lost"}, {}),
    "signal_expired": ({"valid_until": NOW - 1}, {}),
    "symbol_not_trading": ({"instrument": structs.replace(INSTRUMENT, status="SETTLING")}, {}),
    "no_market": ({"mark_at": NOW - 10_001}, {}),
    "levels_passed": ({"mark": Decimal(1980)}, {}),
    "already_in_position": ({"positions": [held("BTCUSDT")]}, {}),
    "max_positions": ({"positions": [held("ETHUSDT"), held("SOLUSDT")]}, {"max_positions": 2}),
    "stop_cooldown": ({"last_stop_at": NOW - 30 * 60_000 + 1}, {}),
    "daily_loss": ({"day_equity": Decimal(10_000), "equity": Decimal(9_700)}, {}),
    "drawdown": ({"day_equity": Decimal(9_000), "equity": Decimal(9_000)}, {}),
    "no_volatility": ({"volatility": None}, {"sizing": "volatility"}),
    "filters": ({}, {"size_usdt": 49.0}),
    "symbol_exposure": ({}, {"size_usdt": 1_010.0}),
    "total_exposure": ({"positions": [held(quantity="4.91")]}, {}),
    "slippage": ({"book": book(1997, 2003)}, {}),
    "margin": ({"available": Decimal("33.3")}, {}),
    "liquidation_distance": ({}, {"leverage": 10}),
}


def test_every_rule_has_a_case_here() -> None:
    assert set(OBJECTIONS) == {rule.__name__ for rule in (*ENTRY_RULES, *SIZE_RULES)}


@pytest.mark.parametrize("name", OBJECTIONS)
def test_each_rule_says_no_under_its_own_name_and_in_words(name: str) -> None:
    facts, limits = OBJECTIONS[name]
    refusal = approve_entry(entry_facts(**facts), structs.replace(RISK, **limits))

    assert isinstance(refusal, Refusal)
    assert refusal.rule == name
    assert refusal.detail


@pytest.mark.parametrize(
    ("facts", "limits"),
    [
        ({"valid_until": NOW}, {}),
        ({"mark_at": NOW - 10_000, "book": book(at=NOW - 60_000)}, {}),
        ({"mark": Decimal("1980.1")}, {}),
        ({"positions": [held("ETHUSDT")]}, {"max_positions": 2}),
        ({"last_stop_at": NOW - 30 * 60_000}, {}),
        ({"equity": Decimal("9700.01")}, {}),
        ({}, {"size_usdt": 50.0}),
        ({}, {"size_usdt": 1_000.0}),
        ({"positions": [held(quantity="4.9")]}, {}),
        ({"positions": [held(quantity="4.91")], "marks": {"ETHUSDT": Decimal(900)}}, {}),
        ({"available": Decimal("33.4")}, {}),
        ({"instrument": structs.replace(INSTRUMENT, maintenance_margin_pct=Decimal("0.4"))}, {"leverage": 9}),
    ],
)
def test_what_is_just_within_a_limit_passes(facts: dict[str, Any], limits: dict[str, Any]) -> None:
    assert isinstance(approve_entry(entry_facts(**facts), structs.replace(RISK, **limits)), ApprovedOrder)


def test_no_entry_whose_liquidation_lies_before_its_stop() -> None:
    facts = entry_facts(target=Decimal(2400), stop=Decimal(1300))
    limits = structs.replace(RISK, leverage=3, min_liquidation_distance_pct=1.0)
    refusal = approve_entry(facts, limits)

    assert isinstance(refusal, Refusal)
    assert refusal.rule == "liquidation_distance"
    assert "before the stop" in refusal.detail


@pytest.mark.parametrize(
    ("limits", "notional"),
    [
        ({"sizing": "notional", "size_usdt": 300.0}, 300),
        ({"sizing": "equity", "size_pct": 2.0}, 200),
        # 5 of 10,000 are what 240 minutes of 1 % / sqrt(240) each move it by
        ({"sizing": "volatility", "risk_pct": 0.05}, 500),
    ],
)
def test_the_size_is_that_of_the_sizing(limits: dict[str, Any], notional: int) -> None:
    plan = planned(entry_facts(volatility=0.01 / math.sqrt(240)), structs.replace(RISK, **limits))

    assert float(plan.notional) == pytest.approx(notional, abs=2)  # a step is worth 2


@pytest.mark.parametrize(
    ("volatility", "minutes", "notional"), [(0.0005, 240, 645), (0.001, 240, 322), (0.001, 60, 644)]
)
def test_a_position_by_volatility_is_smaller_in_a_wilder_symbol_and_for_a_longer_time_and_its_stop_is_no_matter(
    volatility: float, minutes: int, notional: int
) -> None:
    limits = structs.replace(RISK, sizing="volatility", risk_pct=0.05)
    deadline = NOW + minutes * 60_000
    for stop in (Decimal(1990), Decimal(1900)):
        plan = planned(entry_facts(volatility=volatility, deadline=deadline, stop=stop), limits)

        assert float(plan.notional) == pytest.approx(notional, abs=2)


def test_a_drawdown_that_has_been_stops_entries_although_the_equity_is_back() -> None:
    refusal = approve_entry(entry_facts(worst_drawdown_pct=Decimal("10.01")), RISK)

    assert isinstance(refusal, Refusal)
    assert (refusal.rule, refusal.detail) == (
        "drawdown",
        "10.01 % was lost from the highest equity, 10 may be; it goes on when a person sets the mode",
    )


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({}, []),
        ({"leverage": 20}, ["leverage = 20 is more than 3: a move of about 5 % against a position liquidates it"]),
        ({"size_usdt": 2_000.0}, ["size_usdt = 2000 is more than max_symbol_usdt = 1000: no entries"]),
        ({"max_total_usdt": 500.0}, ["max_total_usdt = 500 is less than max_symbol_usdt = 1000"]),
    ],
)
def test_limits_that_allow_much_or_contradict_each_other_are_pointed_out(
    limits: dict[str, Any], said: list[str]
) -> None:
    assert bold_settings(structs.replace(RISK, **limits)) == said


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([1, -1]),
    st.decimals("0.001", "100000", places=4),
    st.decimals("0.0001", "10", places=4),
    st.sampled_from(["0.001", "0.01", "1", "10"]),
    st.sampled_from(["0.1", "0.01", "0.0001"]),
    st.floats(1, 5000),
)
def test_an_approved_size_never_breaks_a_filter_or_exceeds_what_was_wanted(
    side: int, price: Decimal, spread: Decimal, step: str, tick: str, size: float
) -> None:
    instrument = structs.replace(
        INSTRUMENT,
        tick_size=Decimal(tick),
        step_size=Decimal(step),
        market_step_size=Decimal(step) * 5,
        min_quantity=Decimal(step),
        market_max_quantity=Decimal("2000.5"),
    )
    mark = price
    facts = entry_facts(
        side,
        instrument=instrument,
        mark=mark,
        reference_mark=mark,
        target=mark * (1 + side * Decimal("0.01")),
        stop=mark * (1 - side * Decimal("0.01")),
        book=book(float(mark), float(mark + spread), 1e9),
    )
    limits = structs.replace(RISK, size_usdt=size, max_symbol_usdt=1e9, max_total_usdt=1e9, max_slippage_bps=1e9)
    approved = approve_entry(facts, limits)

    if isinstance(approved, ApprovedOrder):
        quantity = approved.request.quantity
        assert 0 < quantity * mark <= Decimal(repr(size))
        assert quantity % (Decimal(step) * 5) == 0
        assert quantity <= Decimal("2000.5")
        assert quantity * mark >= 50


def test_the_limits_are_the_settings_of_the_same_names() -> None:
    settings = load_settings(None, {"HOME": "/nowhere"}, {"max_positions": 3, "risk_pct": 0.5})

    assert Risk.of(settings) == Risk(max_positions=3, risk_pct=0.5)
    assert set(Risk.__struct_fields__) <= set(Settings.model_fields)


# ---- closing and protecting


def close(position: Position, instrument: Any = INSTRUMENT) -> ApprovedOrder | Refusal:
    return approve_close(position, instrument, leg=Leg.EXIT, reason="stop", run=RUN, attempt=2)


def test_closing_is_reduce_only_and_named_after_its_position() -> None:
    approved = close(held("BTCUSDT", "0.3", side=-1))

    assert isinstance(approved, ApprovedOrder)
    request = approved.request
    assert (request.side, request.quantity, request.reduce_only) == ("buy", Decimal("0.3"), True)
    name = read_client_id(request.client_id)
    assert name is not None
    assert (name.leg, name.run, name.position_id, name.attempt) == (Leg.EXIT, RUN, "p" * 22, 2)


def test_more_than_one_market_order_may_hold_is_closed_in_parts_and_nothing_is_not() -> None:
    approved = close(held("BTCUSDT", "250"))

    assert isinstance(approved, ApprovedOrder)
    assert approved.request.quantity == Decimal(120)
    assert close(held("BTCUSDT", "0")) == Refusal("nothing_open", "0 BTC")


def protect(position: Position, mark: str | None = None, **limits: Any) -> ApprovedStop | Refusal:
    risk = structs.replace(RISK, **limits)
    return approve_stop(position, INSTRUMENT, risk, run=RUN, attempt=0, mark=None if mark is None else Decimal(mark))


def trigger(answer: ApprovedStop | Refusal) -> Decimal:
    assert isinstance(answer, ApprovedStop)
    return answer.request.trigger_price


@pytest.mark.parametrize(
    ("side", "stop", "expected"),
    [(1, "1980", "1970.3"), (-1, "2020", "2030.3")],
)
def test_the_protective_stop_is_wider_than_ours_and_rounded_away_from_the_entry(
    side: int, stop: str, expected: str
) -> None:
    entry = "2000.33" if side > 0 else "2000.27"
    position = held("BTCUSDT", "1", entry, side, stop=Decimal(stop), reference_mark=Decimal(2000))
    answer = protect(position)

    assert trigger(answer) == Decimal(expected)
    assert isinstance(answer, ApprovedStop)
    assert answer.request.side == position.exit_side


def test_the_protective_stop_lies_before_the_liquidation() -> None:
    position = held("BTCUSDT", "1", "2000", stop=Decimal(1500), reference_mark=Decimal(2000))

    # 2000 · (1 - 1/3) / (1 - 0.025) = 1367.52, and 1.5 times as far would be 1250
    assert trigger(protect(position)) == Decimal("1433.7")


def test_a_stop_that_is_placed_again_keeps_its_trigger_although_ours_has_moved() -> None:
    position = held(
        "BTCUSDT", stop=Decimal(2010), reference_mark=Decimal(2000), protective_stop=Decimal(1970), price="2000"
    )

    assert trigger(protect(position)) == Decimal(1970)


def test_a_stop_that_the_mark_price_has_passed_is_no_stop() -> None:
    position = held("BTCUSDT", "1", "2000", stop=Decimal(1980), reference_mark=Decimal(2000))

    assert trigger(protect(position, "1970.1")) == Decimal(1970)
    refusal = protect(position, "1970")
    assert isinstance(refusal, Refusal)
    assert refusal.rule == "stop_passed"


def test_a_position_without_a_stop_has_none_at_the_exchange() -> None:
    assert protect(held("BTCUSDT")) == Refusal("no_stop", "the position has no entry price or no stop")
