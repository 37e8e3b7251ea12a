"""ccxt and ccxt.pro trade on the simulated exchange: orders, conditional orders, positions, the account's events."""

import asyncio
from collections.abc import AsyncIterator
from importlib.util import find_spec
from typing import Any

import pytest
import pytest_asyncio

from perpline.simulation.server import SimulatedExchange

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(find_spec("ccxt") is None, reason="the extra `clients` is not installed"),
]

BTC, ETH, SOL = "BTC/USDT:USDT", "ETH/USDT:USDT", "SOL/USDT:USDT"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(real_time: SimulatedExchange) -> AsyncIterator[Any]:
    from ccxt import pro

    http, ws = real_time.http_url, real_time.ws_url
    order_api = {"linear": ws + "/ws-fapi/v1", "future": ws + "/ws-fapi/v1"}
    api = {
        "fapiPublic": http + "/fapi/v1",
        "fapiPublicV2": http + "/fapi/v2",
        "fapiPublicV3": http + "/fapi/v3",
        "fapiPrivate": http + "/fapi/v1",
        "fapiPrivateV2": http + "/fapi/v2",
        "fapiPrivateV3": http + "/fapi/v3",
        "fapiData": http + "/futures/data",
        "sapi": http + "/sapi/v1",
        "ws": {"linear": ws + "/ws", "future": ws + "/ws", "ws-api": order_api},
    }
    client = pro.binanceusdm(
        {
            "apiKey": "sim-key",
            "secret": "sim-secret",
            "enableRateLimit": False,
            "options": {"fetchCurrencies": False},
            "urls": {"api": api},
        }
    )
    client.has["fetchCurrencies"] = False
    await client.load_markets()
    yield client
    await client.close()


def price(exchange: SimulatedExchange, symbol: str, factor: float) -> float:
    index = (BTC, ETH, SOL).index(symbol)
    return round(exchange.exchange.mark(index, exchange.clock.now_ms()).mark * factor, 1)


def truth(exchange: SimulatedExchange) -> dict[str, Any]:
    return exchange.private.truth("sim-key")


async def test_ccxt_places_queries_changes_and_cancels_an_order(real_time: SimulatedExchange, client: Any) -> None:
    placed = await client.create_order(BTC, "limit", "buy", 0.01, price(real_time, BTC, 0.97))
    found = await client.fetch_order(placed["id"], BTC)
    still_open = await client.fetch_open_orders(BTC)
    changed = await client.edit_order(placed["id"], BTC, "limit", "buy", 0.02, price(real_time, BTC, 0.96))
    ended = await client.cancel_order(placed["id"], BTC)
    listed = await client.fetch_orders(BTC)

    assert (found["status"], found["amount"], found["clientOrderId"]) == ("open", 0.01, placed["clientOrderId"])
    assert [order["id"] for order in still_open] == [placed["id"]]
    assert (changed["id"], changed["amount"]) == (placed["id"], 0.02)
    assert ended["status"] == "canceled"
    assert [order["id"] for order in listed] == [placed["id"]]
    assert truth(real_time)["open_orders"] == []


async def test_ccxt_opens_and_closes_a_position(real_time: SimulatedExchange, client: Any) -> None:
    await client.set_leverage(3, ETH)
    await client.set_margin_mode("isolated", ETH)
    opened = await client.create_order(ETH, "market", "buy", 1.0)
    done = await client.fetch_order(opened["id"], ETH)
    [position] = await client.fetch_positions([ETH])
    await client.create_order(ETH, "market", "sell", 1.0, None, {"reduceOnly": True})
    trades = await client.fetch_my_trades(ETH)
    balance = await client.fetch_balance()
    ledger = await client.fetch_ledger()

    told = truth(real_time)
    assert (done["status"], done["filled"], done["average"]) == ("closed", 1.0, position["entryPrice"])
    assert (position["side"], position["contracts"]) == ("long", 1.0)
    assert [(float(fill["price"]), float(fill["commission"])) for fill in told["fills"]] == [
        (trade["price"], trade["fee"]["cost"]) for trade in trades
    ]
    assert balance["USDT"]["total"] == float(told["wallet"])
    assert sum(row["amount"] * (1 if row["direction"] == "in" else -1) for row in ledger) == pytest.approx(
        float(told["wallet"]) - 100_000
    )
    assert told["positions"] == {}


async def test_ccxt_places_queries_and_cancels_conditional_orders(real_time: SimulatedExchange, client: Any) -> None:
    await client.create_order(SOL, "market", "buy", 10)
    lower, upper = price(real_time, SOL, 0.9), price(real_time, SOL, 1.1)
    stop = await client.create_order(SOL, "STOP_MARKET", "sell", 10, None, {"triggerPrice": lower, "reduceOnly": True})
    target = await client.create_order(
        SOL, "TAKE_PROFIT_MARKET", "sell", None, None, {"triggerPrice": upper, "closePosition": True}
    )
    trailing = await client.create_order(SOL, "market", "sell", 10, None, {"trailingPercent": 5, "reduceOnly": True})
    open_orders = await client.fetch_open_orders(SOL, params={"trigger": True})
    found = await client.fetch_order(stop["id"], SOL, {"trigger": True})
    await client.cancel_order(stop["id"], SOL, {"trigger": True})
    left = await client.fetch_open_orders(SOL, params={"trigger": True})
    await client.cancel_all_orders(SOL, {"trigger": True})

    assert {order["id"] for order in open_orders} == {stop["id"], target["id"], trailing["id"]}
    assert (found["triggerPrice"], found["status"]) == (lower, "open")
    assert {order["id"] for order in left} == {target["id"], trailing["id"]}
    assert truth(real_time)["open_algo_orders"] == []


async def test_ccxt_trades_over_the_order_socket(real_time: SimulatedExchange, client: Any) -> None:
    placed = await client.create_order_ws(BTC, "limit", "buy", 0.01, price(real_time, BTC, 0.97))
    ended = await client.cancel_order_ws(placed["id"], BTC)
    stop = await client.create_order_ws(
        BTC, "STOP_MARKET", "sell", 0.01, None, {"triggerPrice": price(real_time, BTC, 0.9), "reduceOnly": True}
    )
    balance = await client.fetch_balance_ws()
    await client.cancel_all_orders(BTC, {"trigger": True})

    told = truth(real_time)
    assert ended["status"] == "canceled"
    assert stop["id"] in [str(order["algoId"]) for order in told["algo_orders"]]
    assert balance["USDT"]["total"] == pytest.approx(float(told["wallet"]), abs=1.0)


async def test_ccxt_hears_what_happens_to_the_account(real_time: SimulatedExchange, client: Any) -> None:
    watching = [
        asyncio.create_task(method())
        for method in (client.watch_orders, client.watch_my_trades, client.watch_balance, client.watch_positions)
    ]
    async with asyncio.timeout(10):
        # It asks for a listen key, and then connects: what it watches is known when the stream is open.
        while real_time.stats.subscriptions["listen key"] == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        placed = await client.create_order(BTC, "market", "buy", 0.01)
        orders, trades, balance, positions = await asyncio.gather(*watching)
    await client.create_order(BTC, "market", "sell", 0.01, None, {"reduceOnly": True})

    fill = next(each for each in truth(real_time)["fills"] if str(each["orderId"]) == placed["id"])
    assert {order["id"] for order in orders} == {placed["id"]}
    assert [(trade["id"], trade["price"]) for trade in trades] == [(str(fill["id"]), float(fill["price"]))]
    assert balance["USDT"]["total"] > 0
    assert positions is not None


async def test_ccxt_is_told_why_an_order_is_refused(real_time: SimulatedExchange, client: Any) -> None:
    import ccxt

    with pytest.raises(ccxt.InvalidOrder, match="-5022"):
        await client.create_order(BTC, "limit", "buy", 0.01, price(real_time, BTC, 1.01), {"postOnly": True})
    with pytest.raises(ccxt.OrderNotFound):
        await client.fetch_order("1", BTC)
    with pytest.raises(ccxt.ExchangeError, match="-2019"):
        await client.create_order(BTC, "limit", "buy", 50, price(real_time, BTC, 0.98))
    with pytest.raises(ccxt.ExchangeError, match="-4164"):
        await client.create_order(SOL, "limit", "buy", 0.01, price(real_time, SOL, 0.98))
