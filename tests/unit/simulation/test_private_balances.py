"""Whatever is ordered and however prices move: nothing is lost or made, and the events tell exactly what is so."""

import random
from collections import defaultdict
from decimal import Decimal

import pytest

SYMBOLS = ("BTCUSDT", "ETHUSDT")
SIDES = ("BUY", "SELL")
STATUS_RANK = {"NEW": 0, "PARTIALLY_FILLED": 1}
ALGO_RANK = {"NEW": 0, "TRIGGERING": 1, "TRIGGERED": 2}


@pytest.mark.parametrize("seed", range(16))
def test_money_and_contracts_are_conserved_and_the_events_tell_what_is_so(new_desk, seed):
    _live(new_desk(seed), random.Random(seed), 200)


@pytest.mark.full
@pytest.mark.parametrize("first_seed", [100, 200, 300])
def test_they_are_conserved_in_many_more_lives(new_desk, first_seed):
    for seed in range(first_seed, first_seed + 100):
        print(f"seed {seed}")
        _live(new_desk(seed), random.Random(seed), 200)


def _live(desk, rng, length):
    desk.private.engine.child_first = rng.random() < 0.5
    desk.private.engine.child_keeps_id = rng.random() < 0.5
    desk.private.orders_10s = desk.private.orders_1m = 10_000
    for symbol in SYMBOLS:
        desk.ok("POST", "leverage", symbol=symbol, leverage=rng.choice((1, 3, 20, 75)))
        if rng.random() < 0.5:
            desk.ok("POST", "marginType", symbol=symbol, marginType="ISOLATED")
    for _ in range(length):
        rng.choices((_order, _algo, _move, _trade, _crash, _cancel, _amend, _wait), (30, 12, 30, 10, 1, 6, 6, 5))[0](
            desk, rng
        )
        _check_books(desk)
    _check_events(desk)


def _order(desk, rng):
    params = {"symbol": rng.choice(SYMBOLS), "side": rng.choice(SIDES), "quantity": _quantity(rng)}
    if rng.random() < 0.3:
        params["reduceOnly"] = "true"
    if rng.random() < 0.4:
        desk.call("POST", "order", type="MARKET", **params)
        return
    params |= {
        "price": _price(rng),
        "timeInForce": rng.choice(("GTC", "GTC", "GTC", "IOC", "FOK", "GTX")),
        "selfTradePreventionMode": rng.choice(("EXPIRE_MAKER", "EXPIRE_TAKER", "EXPIRE_BOTH", "NONE")),
    }
    desk.call("POST", "order", type="LIMIT", **params)


def _algo(desk, rng):
    kind = rng.choice(("STOP_MARKET", "TAKE_PROFIT_MARKET", "STOP", "TAKE_PROFIT", "TRAILING_STOP_MARKET"))
    params = {
        "symbol": rng.choice(SYMBOLS),
        "side": rng.choice(SIDES),
        "triggerPrice": _price(rng),
        "price": _price(rng),
        "callbackRate": "0.1",
        "workingType": rng.choice(("MARK_PRICE", "CONTRACT_PRICE")),
        "timeInForce": rng.choice(("GTC", "GTC", "GTE_GTC")),
    }
    if kind in ("STOP_MARKET", "TAKE_PROFIT_MARKET") and rng.random() < 0.5:
        params["closePosition"] = "true"
    else:
        params["quantity"] = _quantity(rng)
        params["reduceOnly"] = rng.choice(("true", "false"))
    desk.call("POST", "algoOrder", algoType="CONDITIONAL", type=kind, **params)


def _move(desk, rng):
    index, middle, quantity = rng.randrange(2), 84_000 + rng.randint(-60, 60) / 10, rng.randint(1, 4_000) / 1000
    desk.quote(
        bids=[(middle, quantity), (middle - 0.1, 2 * quantity)],
        asks=[(middle + 0.1, quantity), (middle + 0.2, 2 * quantity)],
        index=index,
    )
    desk.price(middle + rng.randint(-30, 30) / 10, last=middle, index=index)
    desk.step()


def _trade(desk, rng):
    desk.private.traded(
        rng.randrange(2), 8_400_000 + rng.randint(-60, 60) * 10, rng.randint(1, 4_000), rng.random() < 0.5
    )


def _crash(desk, rng):
    """The mark price jumps for a second, far enough to liquidate."""
    index = rng.randrange(2)
    desk.price(84_000 * rng.choice((0.6, 0.9, 1.1, 1.5)), last=84_000.0, index=index)
    desk.step()
    desk.price(84_000.0, index=index)


def _cancel(desk, rng):
    orders = desk.truth()["open_orders"]
    if orders:
        order = rng.choice(orders)
        desk.ok("DELETE", "order", symbol=order["symbol"], orderId=order["orderId"])


def _amend(desk, rng):
    orders = desk.truth()["open_orders"]
    if orders:
        order = rng.choice(orders)
        same = {key: order[key] for key in ("symbol", "side", "orderId")}
        desk.call("PUT", "order", **same, quantity=_quantity(rng), price=_price(rng))


def _wait(desk, rng):
    desk.step(rng.choice((1, 20, 8 * 3_600)))


def _price(rng):
    return f"{84_000 + rng.randint(-40, 40) / 10:.2f}"


def _quantity(rng):
    return f"{rng.randint(1, 3_000) / 1000:.3f}"


def _check_books(desk):
    truth = desk.truth()
    assert Decimal(truth["wallet"]) == 100_000 + sum(Decimal(row["income"]) for row in truth["income"])
    assert Decimal(truth["available"]) >= 0
    traded, filled = defaultdict(Decimal), defaultdict(Decimal)
    for fill in truth["fills"]:
        traded[fill["symbol"]] += Decimal(fill["qty"]) * (1 if fill["side"] == "BUY" else -1)
        filled[fill["orderId"]] += Decimal(fill["qty"])
    held = {symbol: Decimal(each["quantity"]) for symbol, each in truth["positions"].items()}
    assert held == {symbol: quantity for symbol, quantity in traded.items() if quantity}
    assert all(Decimal(order["executedQty"]) == filled[order["orderId"]] for order in truth["orders"])
    ids = [(fill["symbol"], fill["id"]) for fill in truth["fills"]]
    assert len(set(ids)) == len(ids)
    for order in truth["open_orders"]:
        if order["reduceOnly"]:
            assert held[order["symbol"]] * (1 if order["side"] == "BUY" else -1) < 0
    income = [(row["tranId"], row["incomeType"]) for row in truth["income"]]
    assert len(set(income)) == len(income)


def _check_events(desk):
    """Folding the stream gives what the exchange holds, and no status ever goes back."""
    truth = desk.truth()
    wallet, positions, orders, algos, trades = None, {}, {}, {}, []
    for _, event in desk.events:
        if event["e"] == "ACCOUNT_UPDATE":
            wallet = event["a"]["B"][0]["wb"]
            positions |= {row["s"]: Decimal(row["pa"]) for row in event["a"]["P"]}
        elif event["e"] == "ORDER_TRADE_UPDATE":
            told = event["o"]
            before = orders.get(told["i"])
            if before is not None:
                assert STATUS_RANK.get(told["X"], 9) >= STATUS_RANK[before["X"]]
                assert Decimal(told["z"]) >= Decimal(before["z"])
            orders[told["i"]] = told
            trades += [told["t"]] if told["x"] in ("TRADE", "CALCULATED") else []
        elif event["e"] == "ALGO_UPDATE":
            before = algos.get(event["o"]["aid"])
            if before is not None:
                assert ALGO_RANK.get(event["o"]["X"], 9) >= ALGO_RANK[before["X"]]
            algos[event["o"]["aid"]] = event["o"]
    assert wallet in (None, truth["wallet"])
    held = {symbol: Decimal(each["quantity"]) for symbol, each in truth["positions"].items()}
    assert {symbol: quantity for symbol, quantity in positions.items() if quantity} == held
    assert trades == [fill["id"] for fill in truth["fills"]]
    assert {order_id: (told["X"], told["z"]) for order_id, told in orders.items()} == {
        order["orderId"]: (order["status"], order["executedQty"]) for order in truth["orders"]
    }
    assert {algo_id: told["X"] for algo_id, told in algos.items()} == {
        each["algoId"]: each["algoStatus"] for each in truth["algo_orders"]
    }
    for told in algos.values():
        if told["X"] == "FINISHED":
            assert orders[int(told["ai"])]["z"] == told["aq"]
