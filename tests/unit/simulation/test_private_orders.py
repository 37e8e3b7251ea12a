"""Ordinary orders of the simulated exchange: the matching rule, refusals in the exchange's codes, and the answers."""

from decimal import Decimal

import msgspec
import pytest


def test_a_market_order_walks_the_book_and_each_level_is_a_fill(desk):
    answer = desk.order("BUY", "3", newClientOrderId="a")

    fills = desk.truth()["fills"]
    assert [(fill["price"], fill["qty"]) for fill in fills] == [("84000.10", "2.000"), ("84000.20", "1.000")]
    assert (answer["status"], answer["executedQty"]) == ("FILLED", "3.000")
    assert desk.states("a") == [("NEW", "NEW"), ("TRADE", "PARTIALLY_FILLED"), ("TRADE", "FILLED")]
    assert desk.held() == 3


def test_what_a_market_order_finds_no_book_for_expires(desk):
    answer = desk.order("BUY", "5", newClientOrderId="a")

    assert (answer["status"], answer["executedQty"]) == ("EXPIRED", "4.000")
    assert desk.told("ORDER_TRADE_UPDATE")[-1]["o"]["er"] == "9"


def test_a_market_order_does_not_trade_beyond_the_bound_around_the_mark(desk):
    desk.price(79_000.0)

    assert desk.refused("POST", "order", symbol="BTCUSDT", side="BUY", type="MARKET", quantity="1") == -4131


def test_an_answer_to_a_new_order_has_no_average_price_and_a_query_has(desk):
    placed = desk.order("BUY", "1", newClientOrderId="a")
    queried = desk.ok("GET", "order", symbol="BTCUSDT", origClientOrderId="a")

    assert not {"avgPrice", "cumQuote"} & placed.keys()
    assert (queried["avgPrice"], queried["cumQuote"]) == ("84000.10000000", "84000.10000000")


def test_ack_tells_that_the_order_was_taken_and_no_more(desk):
    answer = desk.ok("POST", "order", symbol="BTCUSDT", side="BUY", type="MARKET", quantity="1")

    assert (answer["status"], answer["executedQty"]) == ("NEW", "0.000")
    assert desk.held() == 1


def test_a_limit_order_takes_what_is_within_its_limit_and_rests_with_the_remainder(desk):
    answer = desk.order("BUY", "3", "84000.10", newClientOrderId="a")

    assert (answer["status"], answer["executedQty"]) == ("PARTIALLY_FILLED", "2.000")
    assert [order["clientOrderId"] for order in desk.ok("GET", "openOrders")] == ["a"]


def test_a_resting_order_is_filled_at_its_own_price_when_the_other_side_comes_to_it(desk):
    desk.order("BUY", "1", "83999.00", newClientOrderId="a")
    desk.step()
    assert desk.states("a") == [("NEW", "NEW")]

    desk.quote(bids=[(83998.0, 2)], asks=[(83998.9, 2)])
    desk.step()

    (fill,) = desk.truth()["fills"]
    assert (fill["price"], fill["maker"], fill["commission"]) == ("83999.00", True, "16.79980000")


def test_a_quoted_size_fills_resting_orders_once_until_the_book_changes(desk):
    desk.order("BUY", "3", "83999.00", newClientOrderId="a")
    desk.quote(bids=[(83998.0, 2)], asks=[(83998.9, 2)])
    desk.step()
    desk.step()
    assert desk.held() == 2

    desk.quote()
    desk.step()
    assert desk.held() == 3


def test_the_better_price_is_filled_first_and_at_one_price_the_older_order(desk):
    for name, price in (("low", "83998.00"), ("old", "83999.00"), ("new", "83999.00")):
        desk.order("BUY", "1", price, newClientOrderId=name)
    desk.quote(bids=[(83990.0, 2)], asks=[(83990.1, 2)])
    desk.step()

    assert [desk.states(name)[-1] for name in ("old", "new", "low")] == [
        ("TRADE", "FILLED"),
        ("TRADE", "FILLED"),
        ("NEW", "NEW"),
    ]


def test_a_trade_at_a_worse_price_fills_what_rests_and_one_at_the_same_price_does_not(desk):
    desk.order("BUY", "1", "83999.00")
    desk.private.traded(0, 8_399_900, 500, True)
    assert desk.held() == 0
    desk.private.traded(0, 8_399_890, 500, False)
    assert desk.held() == 0

    desk.private.traded(0, 8_399_890, 400, True)
    assert desk.held() == Decimal("0.4")


def test_immediate_or_cancel_expires_with_its_remainder(desk):
    answer = desk.order("BUY", "3", "84000.10", timeInForce="IOC")

    assert (answer["status"], answer["executedQty"]) == ("EXPIRED", "2.000")
    assert desk.told("ORDER_TRADE_UPDATE")[-1]["o"]["er"] == "2"


def test_fill_or_kill_fills_whole_or_is_refused(desk):
    params = {"symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "FOK", "price": "84000.10"}

    assert desk.refused("POST", "order", quantity="3", **params) == -5021
    assert desk.ok("POST", "order", quantity="2", newOrderRespType="RESULT", **params)["status"] == "FILLED"


def test_post_only_is_refused_where_it_would_take_and_rests_where_it_would_not(desk):
    params = {"symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTX", "quantity": "1"}

    assert desk.refused("POST", "order", price="84000.10", **params) == -5022
    assert desk.ok("POST", "order", price="84000.00", **params)["status"] == "NEW"


def test_good_till_date_expires_at_its_time(desk):
    till = desk.clock.now_ms() + 700_000
    desk.order("BUY", "1", "83000.00", timeInForce="GTD", goodTillDate=till, newClientOrderId="a")
    desk.step(690)
    assert desk.states("a") == [("NEW", "NEW")]

    desk.step(11)
    assert desk.states("a")[-1] == ("EXPIRED", "EXPIRED")


@pytest.mark.parametrize(
    ("mode", "resting", "incoming", "held"),
    [
        ("EXPIRE_MAKER", "EXPIRED_IN_MATCH", "FILLED", 1),
        ("EXPIRE_TAKER", "NEW", "EXPIRED_IN_MATCH", 0),
        ("EXPIRE_BOTH", "EXPIRED_IN_MATCH", "EXPIRED_IN_MATCH", 0),
        ("NONE", "NEW", "FILLED", 1),
    ],
)
def test_an_account_does_not_trade_with_itself(desk, mode, resting, incoming, held):
    desk.order("SELL", "1", "84000.10", newClientOrderId="rests")
    desk.order("BUY", "1", newClientOrderId="comes", selfTradePreventionMode=mode)

    assert desk.states("rests")[-1][1] == resting
    assert desk.states("comes")[-1][1] == incoming
    assert desk.held() == held


def test_an_own_order_behind_what_fills_the_arriving_one_is_not_met(desk):
    desk.order("SELL", "1", "84000.20", newClientOrderId="rests")
    desk.order("BUY", "1", newClientOrderId="comes", selfTradePreventionMode="EXPIRE_BOTH")

    assert desk.states("rests") == [("NEW", "NEW")]
    assert desk.states("comes") == [("NEW", "NEW"), ("TRADE", "FILLED")]


# ---- reducing, turning, margin


def test_a_reduce_only_order_closes_at_most_what_is_held(desk):
    desk.order("BUY", "1")
    answer = desk.order("SELL", "2", reduceOnly="true")

    assert (answer["origQty"], answer["status"]) == ("1.000", "FILLED")
    assert desk.held() == 0


@pytest.mark.parametrize("side", ["BUY", "SELL"])
def test_a_reduce_only_order_that_would_open_is_refused(desk, side):
    desk.order("BUY", "1")
    if side == "SELL":
        desk.order("SELL", "1")

    params = {"symbol": "BTCUSDT", "type": "MARKET", "quantity": "1", "reduceOnly": "true"}
    assert desk.refused("POST", "order", side=side, **params) == -2022


def test_a_resting_reduce_only_order_expires_when_the_position_is_gone(desk):
    desk.order("BUY", "1")
    desk.order("SELL", "1", "85000.00", reduceOnly="true", newClientOrderId="target")
    desk.order("SELL", "1")

    assert desk.states("target")[-1] == ("EXPIRED", "EXPIRED")
    assert desk.told("ORDER_TRADE_UPDATE")[-1]["o"]["er"] == "4"


def test_an_order_beyond_the_position_turns_it(desk):
    desk.order("BUY", "1")
    desk.order("SELL", "1.5")

    position = desk.truth()["positions"]["BTCUSDT"]
    assert (position["quantity"], position["entry_price"]) == ("-0.500", "84000.00000000")
    assert desk.told("ORDER_TRADE_UPDATE")[-1]["o"]["rp"] == "-0.10000000"


def test_the_entry_price_is_the_average_and_stays_while_the_position_is_reduced(desk):
    desk.order("BUY", "3")
    desk.order("SELL", "1", reduceOnly="true")

    assert desk.truth()["positions"]["BTCUSDT"]["entry_price"] == "84000.13333333"


def test_more_than_the_margin_allows_is_refused_and_the_margin_of_open_orders_counts(desk):
    assert desk.ok("POST", "leverage", symbol="BTCUSDT", leverage=1)["maxNotionalValue"] == "1200000000"
    desk.order("BUY", "1", "83000.00")

    params = {"symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "price": "83000.00"}
    assert desk.refused("POST", "order", quantity="0.5", **params) == -2019
    assert desk.call("POST", "order", quantity="0.1", **params)[0] == 200


def test_a_position_larger_than_its_leverage_allows_is_refused(desk):
    desk.ok("POST", "leverage", symbol="BTCUSDT", leverage=125)

    params = {"symbol": "BTCUSDT", "side": "BUY", "type": "MARKET", "quantity": "1"}
    assert desk.refused("POST", "order", **params) == -2027


# ---- refusals


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"symbol": ""}, -1102),
        ({"symbol": "NOPE"}, -1121),
        ({"side": "HOLD"}, -1117),
        ({"type": ""}, -1102),
        ({"type": "ICEBERG"}, -1116),
        ({"type": "STOP_MARKET"}, -4120),
        ({"type": "TRAILING_STOP_MARKET"}, -4120),
        ({"timeInForce": "DAY"}, -1115),
        ({"timeInForce": "GTD"}, -1102),
        ({"timeInForce": "GTD", "goodTillDate": 1_700_000_000_000}, -5040),
        ({"price": ""}, -1102),
        ({"quantity": ""}, -1102),
        ({"quantity": "x"}, -1100),
        ({"quantity": "1e3"}, -1100),
        ({"quantity": "-1"}, -4003),
        ({"quantity": "0"}, -4003),
        ({"quantity": "0.0001"}, -1111),
        ({"quantity": "1000000"}, -4005),
        ({"price": "0"}, -4001),
        ({"price": "84000.001"}, -1111),
        ({"price": "84000.05"}, -4014),
        ({"price": "1.00"}, -4013),
        ({"price": "99999999"}, -4002),
        ({"price": "90000.00"}, -4016),
        ({"price": "79000.00", "side": "SELL"}, -4024),
        ({"quantity": "0.001", "price": "80000.00"}, 200),
        ({"quantity": "0.001", "price": "49000.00"}, -4164),
        ({"newClientOrderId": "a" * 37}, -4015),
        ({"newClientOrderId": "no blanks"}, -1100),
        ({"positionSide": "LONG"}, -4061),
        ({"positionSide": "UP"}, -1128),
        ({"priceMatch": "OPPONENT"}, -5037),
        ({"newOrderRespType": "FULL"}, -1122),
        ({"reduceOnly": "perhaps"}, -1100),
    ],
)
def test_an_order_is_refused_with_the_exchange_s_code(desk, params, code):
    usual = {"symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC"}
    status, body = desk.call("POST", "order", **{**usual, "quantity": "1", "price": "83000.00", **params})

    assert body.get("code", status) == code
    assert status == (200 if code == 200 else 400)


def test_a_market_order_s_notional_is_by_the_mark_and_reduce_only_is_exempt(desk):
    desk.price(40_000.0)
    desk.quote(bids=[(40_000.0, 2)], asks=[(40_000.1, 2)])
    params = {"symbol": "BTCUSDT", "type": "MARKET", "quantity": "0.001"}
    assert desk.refused("POST", "order", side="BUY", **params) == -4164

    desk.order("BUY", "1")
    assert desk.call("POST", "order", side="SELL", reduceOnly="true", **params)[0] == 200


def test_a_client_id_is_free_again_when_its_order_has_ended(desk):
    desk.order("BUY", "1", "83000.00", newClientOrderId="a")
    usual = {"symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "price": "83000.00"}
    assert desk.refused("POST", "order", quantity="1", newClientOrderId="a", **usual) == -4116

    desk.ok("DELETE", "order", symbol="BTCUSDT", origClientOrderId="a")
    assert desk.order("BUY", "1", "83000.00", newClientOrderId="a")["status"] == "NEW"


def test_the_two_hundred_and_first_open_order_of_a_contract_is_refused(desk):
    desk.private.orders_10s = desk.private.orders_1m = 1000
    for _ in range(200):
        desk.order("BUY", "0.001", "80000.00")

    usual = {"symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "price": "80000.00"}
    assert desk.refused("POST", "order", quantity="0.001", **usual) == -2025


def test_a_halted_contract_takes_no_order(desk):
    desk.exchange.halt(7, 1, desk.clock.now_ms() - 60_000, desk.clock.now_ms() + 120_000)

    params = {"side": "BUY", "type": "MARKET", "quantity": "1"}
    assert desk.refused("POST", "order", symbol="ETHUSDT", **params) == -4140
    assert desk.call("POST", "order", symbol="BTCUSDT", **params)[0] == 200


def test_the_order_limit_counts_what_was_sent_in_ten_seconds_and_tells_it(desk):
    desk.private.orders_10s = 2
    answer = desk.answer("POST", "order", symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.01")
    assert (answer.headers["x-mbx-order-count-10s"], answer.headers["x-mbx-order-count-1m"]) == ("1", "1")
    # One that is refused counts too.
    desk.refused("POST", "order", symbol="BTCUSDT", side="BUY", type="MARKET", quantity="x")

    status, body = desk.call("POST", "order", symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.01")
    assert (status, body["code"]) == (429, -1015)
    desk.step(11)
    assert desk.call("POST", "order", symbol="BTCUSDT", side="BUY", type="MARKET", quantity="0.01")[0] == 200


# ---- cancelling, changing, asking


def test_cancelling_tells_the_order_and_a_second_time_it_is_unknown(desk):
    desk.order("BUY", "1", "83000.00", newClientOrderId="a")

    answer = desk.ok("DELETE", "order", symbol="BTCUSDT", origClientOrderId="a")
    assert (answer["status"], answer["clientOrderId"]) == ("CANCELED", "a")
    assert desk.refused("DELETE", "order", symbol="BTCUSDT", origClientOrderId="a") == -2011
    assert desk.ok("GET", "order", symbol="BTCUSDT", origClientOrderId="a")["status"] == "CANCELED"
    assert desk.refused("GET", "openOrder", symbol="BTCUSDT", origClientOrderId="a") == -2013


def test_an_order_that_ended_without_a_fill_is_forgotten_after_three_days(desk):
    desk.order("BUY", "1", "83000.00", newClientOrderId="a")
    desk.ok("DELETE", "order", symbol="BTCUSDT", origClientOrderId="a")
    desk.clock.advance(3 * 86_400 + 1)

    assert desk.refused("GET", "order", symbol="BTCUSDT", origClientOrderId="a") == -2013


def test_an_order_may_be_found_only_after_a_while(desk):
    desk.private.lookup_lag_ms = 500
    desk.order("BUY", "1", newClientOrderId="a")

    assert desk.refused("GET", "order", symbol="BTCUSDT", origClientOrderId="a") == -2013
    desk.clock.advance(0.5)
    assert desk.ok("GET", "order", symbol="BTCUSDT", origClientOrderId="a")["status"] == "FILLED"


def test_cancel_all_takes_the_contract_s_ordinary_orders_and_leaves_the_conditional_ones(desk):
    desk.order("BUY", "1", "83000.00")
    desk.order("BUY", "1", "83000.00", symbol="ETHUSDT")
    desk.stop("SELL", "STOP_MARKET", triggerPrice="80000.00", quantity="1")

    answer = desk.ok("DELETE", "allOpenOrders", symbol="BTCUSDT")
    assert answer["code"] == 200
    assert [order["symbol"] for order in desk.truth()["open_orders"]] == ["ETHUSDT"]
    assert len(desk.truth()["open_algo_orders"]) == 1


def test_a_countdown_cancels_unless_it_is_renewed_or_stopped(desk):
    desk.order("BUY", "1", "83000.00")
    answer = desk.ok("POST", "countdownCancelAll", symbol="BTCUSDT", countdownTime=2000)
    assert answer == {"symbol": "BTCUSDT", "countdownTime": "2000"}
    desk.step(1.5)
    desk.ok("POST", "countdownCancelAll", symbol="BTCUSDT", countdownTime=2000)
    desk.step(1.5)
    assert len(desk.truth()["open_orders"]) == 1

    desk.step(1)
    assert desk.truth()["open_orders"] == []
    desk.order("BUY", "1", "83000.00")
    desk.ok("POST", "countdownCancelAll", symbol="BTCUSDT", countdownTime=2000)
    desk.ok("POST", "countdownCancelAll", symbol="BTCUSDT", countdownTime=0)
    desk.step(5)
    assert len(desk.truth()["open_orders"]) == 1


def test_an_order_can_be_given_another_price_and_quantity(desk):
    desk.order("BUY", "1", "83000.00", newClientOrderId="a")
    params = {"symbol": "BTCUSDT", "side": "BUY", "origClientOrderId": "a"}
    assert desk.refused("PUT", "order", quantity="1", price="83000.00", **params) == -5027
    assert desk.refused("PUT", "order", quantity="1", price="83000.00", reduceOnly="true", **params) == -5047

    answer = desk.ok("PUT", "order", quantity="2", price="83500.00", **params)
    assert (answer["origQty"], answer["price"], answer["status"]) == ("2.000", "83500.00", "NEW")
    assert desk.states("a")[-1] == ("AMENDMENT", "NEW")
    assert desk.ok("PUT", "order", quantity="2", price="84000.10", **params)["status"] == "FILLED"


def test_an_amendment_below_what_is_filled_cancels(desk):
    desk.order("BUY", "3", "84000.10", newClientOrderId="a")
    params = {"symbol": "BTCUSDT", "side": "BUY", "origClientOrderId": "a"}

    answer = desk.ok("PUT", "order", quantity="2", price="84000.10", **params)
    assert (answer["status"], answer["origQty"], answer["executedQty"]) == ("CANCELED", "3.000", "2.000")


def test_a_batch_answers_each_order_by_itself(desk):
    one = {"symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "price": "83000.00"}
    orders = [{**one, "quantity": "1", "newClientOrderId": "a"}, {**one, "quantity": "0"}]
    answers = desk.ok("POST", "batchOrders", batchOrders=msgspec.json.encode(orders).decode())

    assert [answer.get("status", answer.get("code")) for answer in answers] == ["NEW", -4003]
    cancelled = desk.ok("DELETE", "batchOrders", symbol="BTCUSDT", origClientOrderIdList='["a","b"]')
    assert [answer.get("status", answer.get("code")) for answer in cancelled] == ["CANCELED", -2011]


def test_a_test_order_is_checked_and_leaves_nothing(desk):
    params = {"symbol": "BTCUSDT", "side": "BUY", "type": "MARKET"}

    assert desk.ok("POST", "order/test", quantity="1", **params) == {}
    assert desk.refused("POST", "order/test", quantity="0", **params) == -4003
    assert (desk.truth()["orders"], desk.events) == ([], [])


def test_trades_and_income_can_be_asked_for(desk):
    desk.order("BUY", "1", newClientOrderId="a")
    desk.order("SELL", "1", reduceOnly="true")

    order_id = desk.ok("GET", "order", symbol="BTCUSDT", origClientOrderId="a")["orderId"]
    trades = desk.ok("GET", "userTrades", symbol="BTCUSDT")
    assert [trade["side"] for trade in trades] == ["BUY", "SELL"]
    assert desk.ok("GET", "userTrades", symbol="BTCUSDT", orderId=order_id) == trades[:1]
    assert desk.ok("GET", "userTrades", symbol="BTCUSDT", fromId=trades[1]["id"]) == trades[1:]
    assert desk.ok("GET", "userTrades", symbol="ETHUSDT") == []
    kinds = [row["incomeType"] for row in desk.ok("GET", "income")]
    assert kinds == ["COMMISSION", "REALIZED_PNL", "COMMISSION"]
    assert [row["income"] for row in desk.ok("GET", "income", incomeType="REALIZED_PNL")] == ["-0.10000000"]
    assert desk.refused("GET", "userTrades", symbol="BTCUSDT", limit=1001) == -1130


def test_every_request_with_a_client_id_is_counted_whether_it_was_taken_or_not(desk):
    desk.order("BUY", "1", "83000.00", newClientOrderId="a")
    usual = {"symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "price": "83000.00"}
    desk.refused("POST", "order", quantity="1", newClientOrderId="a", **usual)

    (row,) = desk.truth()["requests"]
    assert (row["client_id"], row["seen"], row["taken"]) == ("a", 2, 1)


def test_an_unknown_route_is_not_found(desk):
    assert desk.call("POST", "nothing")[0] == 404
    assert desk.call("POST", "algo/order")[0] == 404
