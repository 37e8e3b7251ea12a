"""python-binance trades on the simulated exchange: orders, conditional orders, the order socket, user data."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from importlib.util import find_spec
from typing import Any

import pytest
import pytest_asyncio

from perpline.simulation.server import SimulatedExchange

# It imports what its own dependency, websockets, has deprecated; there is nothing we could do about that.
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore:websockets:DeprecationWarning"),
    pytest.mark.skipif(find_spec("binance") is None, reason="the extra `clients` is not installed"),
]

S = "BTCUSDT"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def client(real_time: SimulatedExchange) -> AsyncIterator[Any]:
    from binance import AsyncClient, BinanceSocketManager

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AsyncClient, "FUTURES_URL", real_time.http_url + "/fapi")
        patch.setattr(AsyncClient, "WS_FUTURES_URL", real_time.ws_url + "/ws-fapi/v1")
        patch.setattr(BinanceSocketManager, "FSTREAM_URL", real_time.ws_url + "/")
        client = AsyncClient("sim-key", "sim-secret")
        yield client
        # Its reading ends with the next message only, or after ten seconds.
        waking = asyncio.create_task(_asked_for_the_book(client))
        await client.ws_future.close()
        await waking
        await client.close_connection()


async def _asked_for_the_book(client: Any) -> None:
    await asyncio.sleep(0.1)
    await client.ws_future.ws.send('{"id":0,"method":"ticker.book","params":{"symbol":"BTCUSDT"}}')


def price(exchange: SimulatedExchange, factor: float) -> float:
    return round(exchange.exchange.mark(0, exchange.clock.now_ms()).mark * factor, 1)


def limit(exchange: SimulatedExchange, factor: float) -> dict[str, Any]:
    return {
        "symbol": S, "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "quantity": 0.01,
        "price": price(exchange, factor),
    }  # fmt: skip


async def test_python_binance_places_queries_changes_and_cancels(real_time: SimulatedExchange, client: Any) -> None:
    placed = await client.futures_create_order(**limit(real_time, 0.97))
    ids = {"symbol": S, "orderId": placed["orderId"]}
    found = await client.futures_get_order(**ids)
    changed = await client.futures_modify_order(**ids, side="BUY", quantity=0.02, price=price(real_time, 0.96))
    ended = await client.futures_cancel_order(**ids)

    assert (found["status"], found["avgPrice"], found["origQty"]) == ("NEW", "0.00000000", "0.010")
    assert "avgPrice" not in placed
    assert (changed["origQty"], ended["status"]) == ("0.020", "CANCELED")
    assert await client.futures_get_open_orders(symbol=S) == []


async def test_python_binance_sends_conditional_orders_the_new_way(real_time: SimulatedExchange, client: Any) -> None:
    stop = await client.futures_create_order(
        symbol=S, side="SELL", type="STOP_MARKET", triggerPrice=price(real_time, 0.9), closePosition="true"
    )
    found = await client.futures_get_algo_order(algoId=stop["algoId"])
    listed = await client.futures_get_open_algo_orders(symbol=S)
    ended = await client.futures_cancel_algo_order(algoId=stop["algoId"])

    assert (found["algoStatus"], found["closePosition"]) == ("NEW", True)
    assert [order["algoId"] for order in listed] == [stop["algoId"]]
    assert ended["code"] == "200"


async def test_python_binance_trades_over_the_order_socket(real_time: SimulatedExchange, client: Any) -> None:
    placed = await client.ws_futures_create_order(**limit(real_time, 0.97))
    found = await client.ws_futures_get_order(symbol=S, orderId=placed["orderId"])
    ended = await client.ws_futures_cancel_order(symbol=S, orderId=placed["orderId"])
    stop = await client.ws_futures_create_order(
        symbol=S, side="SELL", type="STOP_MARKET", triggerPrice=price(real_time, 0.9), closePosition="true"
    )
    await client.ws_futures_cancel_algo_order(algoId=stop["algoId"])
    balances = await client.ws_futures_v2_account_balance()

    assert (found["clientOrderId"], ended["status"]) == (placed["clientOrderId"], "CANCELED")
    assert [row["asset"] for row in balances] == ["USDT"]


async def test_python_binance_hears_what_happens_to_the_account(real_time: SimulatedExchange, client: Any) -> None:
    from binance import BinanceSocketManager

    async with asyncio.timeout(10), BinanceSocketManager(client).futures_user_socket() as events:
        await client.futures_create_order(symbol=S, side="BUY", type="MARKET", quantity=0.01)
        await client.futures_create_order(symbol=S, side="SELL", type="MARKET", quantity=0.01, reduceOnly="true")
        told = [await events.recv() for _ in range(8)]
        # As above: the socket is closed while this is sent.
        waking = asyncio.create_task(_changed_leverage(client))
    await waking

    trades = [each["o"] for each in told if each["e"] == "ORDER_TRADE_UPDATE" and each["o"]["x"] == "TRADE"]
    fills = real_time.private.truth("sim-key")["fills"]
    assert Counter(each["e"] for each in told) == {"ORDER_TRADE_UPDATE": 4, "TRADE_LITE": 2, "ACCOUNT_UPDATE": 2}
    assert [(trade["t"], trade["L"]) for trade in trades] == [(fill["id"], fill["price"]) for fill in fills[-2:]]
    assert await client.futures_position_information() == []


async def _changed_leverage(client: Any) -> None:
    await asyncio.sleep(0.1)
    await client.futures_change_leverage(symbol=S, leverage=5)


async def test_python_binance_is_told_why_an_order_is_refused(client: Any) -> None:
    from binance.exceptions import BinanceAPIException

    with pytest.raises(BinanceAPIException, match="-2022"):
        await client.futures_create_order(symbol=S, side="SELL", type="MARKET", quantity=0.01, reduceOnly="true")
    with pytest.raises(BinanceAPIException, match="-2011"):
        await client.futures_cancel_order(symbol=S, orderId=1)
