import json

import pytest

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
