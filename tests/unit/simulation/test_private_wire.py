"""The shapes of what the simulated exchange tells an account, beside what the real one was recorded to tell."""

import json
from pathlib import Path

import msgspec
import pytest

RECORDED = Path(__file__).parents[4] / "shared" / "data" / "user-events" / "lean"
PLACED = (
    "clientOrderId,cumQty,executedQty,orderId,origQty,price,reduceOnly,side,positionSide,status,stopPrice,"
    "closePosition,symbol,timeInForce,type,origType,updateTime,workingType,priceProtect,priceMatch,"
    "selfTradePreventionMode,goodTillDate"
)
ALGO_PLACED = (
    "algoId,clientAlgoId,algoType,orderType,symbol,side,positionSide,timeInForce,quantity,algoStatus,triggerPrice,"
    "price,icebergQuantity,selfTradePreventionMode,workingType,priceMatch,closePosition,priceProtect,reduceOnly,"
    "activatePrice,callbackRate,createTime,updateTime,triggerTime,goodTillDate"
)


def _recorded(name):
    """The events of a recording: JSON objects one after the other."""
    path = RECORDED / name
    if not path.exists():
        pytest.skip("the recordings of ../shared/data are not here")
    text, events = path.read_text(), []
    decoder = json.JSONDecoder()
    while text := text.lstrip():
        event, end = decoder.raw_decode(text)
        events.append(event)
        text = text[end:]
    return events


def _types(event):
    return {name: type(value) for name, value in event["o"].items()}


@pytest.mark.parametrize("kind", ["Limit", "Market"])
def test_an_order_s_life_is_told_in_the_recorded_shape(desk, kind):
    recorded = _recorded(f"WebSocketFuture{kind}SubmittedFilled.json")
    desk.order("BUY", "1", None if kind == "Market" else "84000.10")

    told = desk.told("ORDER_TRADE_UPDATE")
    assert [(event["o"]["x"], event["o"]["X"]) for event in told] == [
        (event["o"]["x"], event["o"]["X"]) for event in recorded
    ]
    assert [_types(event) for event in told] == [_types(event) for event in recorded]


def test_a_stop_s_life_is_told_in_the_recorded_shape(desk):
    recorded = _recorded("WebSocketFutureStopMarketSubmittedCanceled.json")
    desk.stop("SELL", "STOP_MARKET", triggerPrice="83900.00", quantity="1", clientAlgoId="s")
    desk.ok("DELETE", "algoOrder", clientAlgoId="s")

    told = desk.told("ALGO_UPDATE")
    assert [event["o"]["X"] for event in told] == [event["o"]["X"] for event in recorded]
    assert [_types(event) for event in told] == [_types(event) for event in recorded]


def test_answers_have_the_fields_of_july_2026_and_no_others(desk):
    placed = desk.order("BUY", "1", "83000.00", newClientOrderId="a")
    stop = desk.stop("SELL", "STOP_MARKET", triggerPrice="80000.00", quantity="1", clientAlgoId="s")

    assert placed.keys() == set(PLACED.split(","))
    assert desk.ok("DELETE", "order", symbol="BTCUSDT", origClientOrderId="a").keys() == placed.keys()
    assert stop.keys() == set(ALGO_PLACED.split(","))
    queried = {"actualOrderId", "actualPrice", "actualType", "actualQty", "tpOrderType"}
    assert desk.ok("GET", "algoOrder", clientAlgoId="s").keys() - stop.keys() == queried
    (listed,) = desk.ok("GET", "openAlgoOrders")
    assert listed.keys() - stop.keys() - queried == {"tpTriggerPrice", "tpPrice", "slTriggerPrice", "slPrice"}
    found = desk.ok("GET", "order", symbol="BTCUSDT", origClientOrderId="a")
    assert found.keys() - placed.keys() == {"avgPrice", "cumQuote", "time"}


def test_a_fill_is_told_by_trade_lite_the_account_and_the_order_in_this_order(desk):
    desk.order("BUY", "1")

    assert [event["e"] for _, event in desk.events] == [
        "ORDER_TRADE_UPDATE",
        "TRADE_LITE",
        "ACCOUNT_UPDATE",
        "ORDER_TRADE_UPDATE",
    ]
    lite, full = desk.told("TRADE_LITE")[0], desk.told("ORDER_TRADE_UPDATE")[1]["o"]
    assert {name: lite[name] for name in "sqpmcSLlti"} == {name: full[name] for name in "sqpmcSLlti"}


def test_everything_that_is_told_is_json(desk):
    desk.order("BUY", "1")
    desk.stop("SELL", "TRAILING_STOP_MARKET", callbackRate="1", quantity="1")

    for _, event in desk.events:
        assert msgspec.json.decode(msgspec.json.encode(event)) == event
    assert msgspec.json.decode(msgspec.json.encode(desk.truth()))["wallet"] == desk.truth()["wallet"]
