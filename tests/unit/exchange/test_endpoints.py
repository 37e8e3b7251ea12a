import json

import pytest

from perpline.exchange.binance import endpoints
from perpline.exchange.binance.endpoints import (
    connection_url,
    klines_weight,
    route_of,
    stream_name,
    subscribe_request,
    unsubscribe_request,
)


@pytest.mark.parametrize(
    ("stream_type", "route"),
    [
        ("bookTicker", "public"),
        ("depth", "public"),
        ("depth20@100ms", "public"),
        ("depth@500ms", "public"),
        ("rpiDepth@500ms", "public"),
        ("trade", "public"),
        ("!bookTicker", "public"),
        ("kline_1m", "market"),
        ("kline_15m", "market"),
        ("kline_1h", "market"),
        ("kline_1M", "market"),
        ("markPrice", "market"),
        ("markPrice@1s", "market"),
        ("!markPrice@arr@1s", "market"),
        ("aggTrade", "market"),
        ("forceOrder", "market"),
        ("!miniTicker@arr", "market"),
        ("!contractInfo", "market"),
        ("tradingSession", "market"),
    ],
)
def test_a_stream_type_has_the_route_that_serves_it(stream_type: str, route: str) -> None:
    assert route_of(stream_type) == route


@pytest.mark.parametrize(
    "stream_type", ["", "klines_1m", "kline_1x", "ORDER_TRADE_UPDATE", "bookTicker@", "btcusdt@trade"]
)
def test_a_stream_type_without_a_route_is_an_error(stream_type: str) -> None:
    with pytest.raises(ValueError, match="no route"):
        route_of(stream_type)


def test_symbols_are_lower_case_in_stream_names() -> None:
    assert stream_name("BTCUSDT", "kline_1m") == "btcusdt@kline_1m"
    assert stream_name("币安人生USDT", "bookTicker") == "币安人生usdt@bookTicker"


def test_a_connection_is_opened_without_streams_and_then_subscribes() -> None:
    assert connection_url("wss://fstream.binance.com/", "market") == "wss://fstream.binance.com/market/stream"
    assert json.loads(subscribe_request(("a@trade", "b@trade"), 7)) == {
        "method": "SUBSCRIBE",
        "params": ["a@trade", "b@trade"],
        "id": 7,
    }
    assert json.loads(unsubscribe_request(["a@trade"], 8))["method"] == "UNSUBSCRIBE"


@pytest.mark.parametrize(
    ("limit", "weight"), [(1, 1), (99, 1), (100, 2), (499, 2), (500, 5), (1000, 5), (1001, 10), (1500, 10)]
)
def test_candles_weigh_by_their_number(limit: int, weight: int) -> None:
    assert klines_weight(limit) == weight


def test_the_private_addresses_belong_to_the_network_of_the_streams() -> None:
    mainnet, testnet, own = "wss://fstream.binance.com", "wss://fstream.binancefuture.com", "ws://127.0.0.1:8080/"
    assert endpoints.order_socket_url(mainnet) == "wss://ws-fapi.binance.com/ws-fapi/v1"
    assert endpoints.order_socket_url(testnet) == "wss://testnet.binancefuture.com/ws-fapi/v1"
    assert endpoints.order_socket_url(own) == "ws://127.0.0.1:8080/ws-fapi/v1"
    assert endpoints.spot_rest_url(mainnet, "https://fapi.binance.com") == "https://api.binance.com"
    assert endpoints.spot_rest_url(testnet, "https://demo-fapi.binance.com") is None
    assert endpoints.spot_rest_url(own, "http://127.0.0.1:8080") == "http://127.0.0.1:8080"


def test_the_user_stream_names_every_event_and_the_expiry_of_its_key() -> None:
    url = endpoints.user_stream_url("wss://fstream.binance.com/", "k" * 64)
    base, _, events = url.partition("&events=")
    assert base == "wss://fstream.binance.com/private/ws?listenKey=" + "k" * 64
    assert {"ORDER_TRADE_UPDATE", "ACCOUNT_UPDATE", "ALGO_UPDATE", "listenKeyExpired"} <= set(events.split("/"))
