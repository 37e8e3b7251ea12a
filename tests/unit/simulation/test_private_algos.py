"""Conditional orders of the simulated exchange: when they trigger, what becomes of them, and how it is told."""

import pytest

FAR = {"quantity": "1", "workingType": "MARK_PRICE"}


@pytest.mark.parametrize(
    ("kind", "side", "trigger", "before", "at"),
    [
        ("STOP_MARKET", "SELL", "83900.00", 83900.1, 83900.0),
        ("STOP_MARKET", "BUY", "84100.00", 84099.9, 84100.0),
        ("TAKE_PROFIT_MARKET", "SELL", "84100.00", 84099.9, 84100.0),
        ("TAKE_PROFIT_MARKET", "BUY", "83900.00", 83900.1, 83900.0),
    ],
)
@pytest.mark.parametrize("by_mark", [True, False])
def test_a_conditional_market_order_triggers_at_its_price_and_not_a_tick_before(
    desk, kind, side, trigger, before, at, by_mark
):
    working = "MARK_PRICE" if by_mark else "CONTRACT_PRICE"
    placed = desk.stop(side, kind, triggerPrice=trigger, quantity="1", workingType=working, clientAlgoId="s")
    assert (placed["algoStatus"], placed["orderType"]) == ("NEW", kind)

    def set_price(price):
        desk.price(*((price, 84000.0) if by_mark else (84000.0, price)))

    set_price(before)
    desk.step()
    assert desk.algo_states("s") == ["NEW"]
    set_price(at)
    desk.step()

    assert desk.algo_states("s") == ["NEW", "TRIGGERING", "TRIGGERED", "FINISHED"]
    assert desk.held() == (1 if side == "BUY" else -1)


@pytest.mark.parametrize(("kind", "price"), [("STOP", "83800.00"), ("TAKE_PROFIT", "84300.00")])
def test_a_conditional_limit_order_becomes_a_limit_order_that_may_rest(desk, kind, price):
    side = "SELL"
    trigger, reached = ("83900.00", 83900.0) if kind == "STOP" else ("84100.00", 84100.0)
    desk.stop(side, kind, triggerPrice=trigger, price=price, clientAlgoId="s", **FAR)
    if kind == "STOP":
        desk.quote(bids=[(83700.0, 2)], asks=[(83700.1, 2)])
    desk.price(reached)
    desk.step()
    assert desk.algo_states("s") == ["NEW", "TRIGGERING", "TRIGGERED"]
    (order,) = desk.truth()["open_orders"]
    assert (order["type"], order["price"], order["clientOrderId"]) == ("LIMIT", price, "s")

    desk.quote(bids=[(84400.0, 2)], asks=[(84400.1, 2)])
    desk.step()
    assert desk.algo_states("s")[-1] == "FINISHED"


def test_a_stop_that_closes_the_position_closes_what_is_held_then(desk):
    desk.order("BUY", "1")
    desk.stop("SELL", "STOP_MARKET", triggerPrice="83900.00", closePosition="true", workingType="MARK_PRICE")
    desk.order("BUY", "0.5")
    desk.price(83899.0)
    desk.step()

    assert desk.held() == 0
    (algo,) = desk.truth()["algo_orders"]
    child = desk.truth()["orders"][-1]
    assert (algo["actualOrderId"], algo["actualQty"]) == (str(child["orderId"]), "1.500")
    assert (child["reduceOnly"], child["type"]) == (True, "MARKET")


def test_a_closing_stop_outlives_the_position_and_is_rejected_when_it_triggers(desk):
    desk.order("BUY", "1")
    desk.stop("SELL", "STOP_MARKET", triggerPrice="83900.00", closePosition="true", clientAlgoId="s")
    desk.order("SELL", "1")
    assert len(desk.truth()["open_algo_orders"]) == 1
    desk.price(83899.0)
    desk.step()

    assert desk.algo_states("s") == ["NEW", "TRIGGERING", "REJECTED"]
    assert desk.told("ALGO_UPDATE")[-1]["o"]["rm"] == "ReduceOnly Order is rejected."
    assert desk.held() == 0


def test_one_that_is_good_till_the_end_of_the_position_expires_with_it(desk):
    usual = {"triggerPrice": "83900.00", "closePosition": "true", "timeInForce": "GTE_GTC"}
    params = {"algoType": "CONDITIONAL", "symbol": "BTCUSDT", "side": "SELL", "type": "STOP_MARKET"}
    assert desk.refused("POST", "algoOrder", **params, **usual) == -4509

    desk.order("BUY", "1")
    desk.stop("SELL", "STOP_MARKET", clientAlgoId="s", **usual)
    desk.order("SELL", "1")
    assert desk.algo_states("s") == ["NEW", "EXPIRED"]


def test_a_second_closing_stop_of_the_same_kind_and_side_is_refused(desk):
    desk.order("BUY", "1")
    params = {"algoType": "CONDITIONAL", "symbol": "BTCUSDT", "side": "SELL", "closePosition": "true"}
    desk.ok("POST", "algoOrder", type="STOP_MARKET", triggerPrice="83900.00", **params)

    assert desk.refused("POST", "algoOrder", type="STOP_MARKET", triggerPrice="83800.00", **params) == -4130
    assert desk.call("POST", "algoOrder", type="TAKE_PROFIT_MARKET", triggerPrice="84900.00", **params)[0] == 200


@pytest.mark.parametrize(
    ("kind", "side", "trigger"),
    [
        ("STOP_MARKET", "SELL", "84000.00"),
        ("STOP_MARKET", "BUY", "84000.00"),
        ("TAKE_PROFIT_MARKET", "SELL", "84000.00"),
        ("TAKE_PROFIT_MARKET", "BUY", "84000.00"),
    ],
)
def test_one_on_the_wrong_side_of_the_price_is_refused(desk, kind, side, trigger):
    params = {"algoType": "CONDITIONAL", "symbol": "BTCUSDT", "side": side, "type": kind, "triggerPrice": trigger}

    assert desk.refused("POST", "algoOrder", **params, **FAR) == -2021


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"algoType": ""}, -1102),
        ({"algoType": "VP"}, -1130),
        ({"type": "MARKET"}, -1116),
        ({"triggerPrice": ""}, -1102),
        ({"triggerPrice": "83900.05"}, -4014),
        ({"triggerPrice": "0"}, -4006),
        ({"type": "STOP"}, -1102),
        ({"closePosition": "true"}, -4137),
        ({"closePosition": "true", "quantity": "", "reduceOnly": "true"}, -1106),
        ({"closePosition": "true", "quantity": "", "type": "STOP", "price": "83900.00"}, -4136),
        ({"quantity": ""}, -1102),
        ({"quantity": "0.0001"}, -1111),
        ({"workingType": "INDEX_PRICE"}, -1106),
        ({"priceMatch": "QUEUE"}, -5037),
        ({"clientAlgoId": "ü"}, -1100),
        ({"type": "TRAILING_STOP_MARKET"}, -1102),
        ({"type": "TRAILING_STOP_MARKET", "callbackRate": "0.05"}, -2007),
        ({"type": "TRAILING_STOP_MARKET", "callbackRate": "20.1"}, -2007),
        ({"type": "TRAILING_STOP_MARKET", "callbackRate": "20", "activatePrice": "83000.00"}, -2021),
    ],
)
def test_a_conditional_order_is_refused_with_the_exchange_s_code(desk, params, code):
    usual = {"algoType": "CONDITIONAL", "symbol": "BTCUSDT", "side": "SELL", "type": "STOP_MARKET"}

    assert desk.refused("POST", "algoOrder", **{**usual, "triggerPrice": "83900.00", "quantity": "1", **params}) == code
    assert desk.events == []


def test_a_trailing_stop_follows_the_price_from_its_activation_on(desk):
    desk.stop("SELL", "TRAILING_STOP_MARKET", activatePrice="84500.00", callbackRate="1", clientAlgoId="s", **FAR)
    assert [event["o"]["ia"] for event in desk.told("ALGO_UPDATE")] == [False]
    for price in (83000.0, 84499.9):
        desk.price(price)
        desk.step()
    assert desk.algo_states("s") == ["NEW"]

    desk.price(84500.0)
    desk.step()
    assert [event["o"]["ia"] for event in desk.told("ALGO_UPDATE")] == [False, True]
    for price in (85000.0, 84200.0):  # one per cent below 85,000 is 84,150
        desk.price(price)
        desk.step()
    assert desk.algo_states("s") == ["NEW", "NEW"]
    desk.price(84150.0)
    desk.step()
    assert desk.algo_states("s")[-1] == "FINISHED"


def test_a_trailing_stop_without_an_activation_price_is_active_at_once(desk):
    desk.stop("BUY", "TRAILING_STOP_MARKET", callbackRate="0.1", clientAlgoId="s", **FAR)
    assert [event["o"]["ia"] for event in desk.told("ALGO_UPDATE")] == [False, True]

    desk.price(83500.0)
    desk.step()
    desk.price(83583.5)
    desk.step()
    assert desk.algo_states("s")[-1] == "FINISHED"


def test_price_protection_waits_until_mark_and_last_price_agree(desk):
    desk.stop("SELL", "STOP_MARKET", triggerPrice="83900.00", priceProtect="true", clientAlgoId="s", **FAR)
    desk.price(79_000.0, last=84_000.0)
    desk.step()
    assert desk.algo_states("s") == ["NEW"]

    desk.around(79_000.0)
    desk.step()
    assert desk.algo_states("s")[-1] == "FINISHED"


def test_margin_is_looked_at_when_it_triggers_and_not_before(desk):
    desk.ok("POST", "leverage", symbol="BTCUSDT", leverage=1)
    desk.stop("BUY", "STOP_MARKET", triggerPrice="84100.00", quantity="2", clientAlgoId="s")
    desk.price(84100.0)
    desk.step()

    assert desk.algo_states("s") == ["NEW", "TRIGGERING", "REJECTED"]
    assert desk.told("ALGO_UPDATE")[-1]["o"]["rm"] == "Margin is insufficient."


@pytest.mark.parametrize("child_first", [True, False])
@pytest.mark.parametrize("keeps_id", [True, False])
def test_the_child_is_linked_to_its_parent_whichever_is_told_first(desk, child_first, keeps_id):
    desk.private.engine.child_first = child_first
    desk.private.engine.child_keeps_id = keeps_id
    desk.stop("SELL", "STOP_MARKET", triggerPrice="83900.00", clientAlgoId="s", **FAR)
    desk.price(83900.0)
    desk.step()

    told = [event["o"].get("X") for _, event in desk.events if event["e"] in ("ALGO_UPDATE", "ORDER_TRADE_UPDATE")]
    child = ["NEW", "FILLED"]
    after = [*child, "TRIGGERED", "FINISHED"] if child_first else ["TRIGGERED", *child, "FINISHED"]
    assert told == ["NEW", "TRIGGERING", *after]
    finished = desk.told("ALGO_UPDATE")[-1]["o"]
    order = desk.told("ORDER_TRADE_UPDATE")[-1]["o"]
    assert finished["ai"] == str(order["i"])
    assert (finished["aq"], finished["ap"], finished["act"]) == ("1.000", "84000.00000000", "MARKET")
    assert (order["c"] == "s") is keeps_id


def test_a_conditional_order_can_be_asked_for_and_cancelled_by_either_id(desk):
    one = desk.stop("SELL", "STOP_MARKET", triggerPrice="83900.00", clientAlgoId="one", **FAR)
    desk.stop("SELL", "STOP_MARKET", triggerPrice="83800.00", clientAlgoId="two", **FAR)

    assert desk.ok("GET", "algoOrder", clientAlgoId="one")["algoId"] == one["algoId"]
    assert [row["clientAlgoId"] for row in desk.ok("GET", "openAlgoOrders")] == ["one", "two"]
    answer = desk.ok("DELETE", "algoOrder", algoId=one["algoId"])
    assert answer == {"algoId": one["algoId"], "clientAlgoId": "one", "code": "200", "msg": "success"}
    assert desk.refused("DELETE", "algoOrder", clientAlgoId="one") == -2011
    assert desk.ok("GET", "algoOrder", clientAlgoId="one")["algoStatus"] == "CANCELED"
    assert desk.refused("GET", "algoOrder", clientAlgoId="three") == -2013
    desk.ok("DELETE", "algoOpenOrders", symbol="BTCUSDT")
    assert desk.ok("GET", "openAlgoOrders", symbol="BTCUSDT") == []
    assert len(desk.ok("GET", "allAlgoOrders", symbol="BTCUSDT")) == 2


def test_conditional_orders_are_not_found_among_ordinary_ones(desk):
    desk.stop("SELL", "STOP_MARKET", triggerPrice="83900.00", clientAlgoId="s", **FAR)

    assert desk.refused("GET", "order", symbol="BTCUSDT", origClientOrderId="s") == -2013
    assert desk.refused("DELETE", "order", symbol="BTCUSDT", origClientOrderId="s") == -2011
    assert desk.ok("GET", "openOrders") == []


def test_an_account_has_at_most_two_hundred_conditional_orders_open(desk):
    desk.private.orders_10s = desk.private.orders_1m = 1000
    for _ in range(200):
        desk.stop("SELL", "STOP_MARKET", triggerPrice="83900.00", **FAR)

    params = {"algoType": "CONDITIONAL", "symbol": "ETHUSDT", "side": "SELL", "type": "STOP_MARKET"}
    assert desk.refused("POST", "algoOrder", triggerPrice="83900.00", **params, **FAR) == -4045


def test_nothing_triggers_while_a_contract_is_halted(desk):
    minute = desk.clock.now_ms() // 60_000 * 60_000
    desk.stop("SELL", "STOP_MARKET", symbol="ETHUSDT", triggerPrice="83900.00", quantity="1", clientAlgoId="s")
    desk.exchange.halt(8, 1, minute, minute + 60_000)
    desk.price(83800.0, index=1)
    desk.step()
    assert desk.algo_states("s") == ["NEW"]

    desk.step(60)
    assert desk.algo_states("s")[-1] == "FINISHED"
