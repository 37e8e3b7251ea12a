"""Where things are: routes, stream names, connection addresses, REST paths and what they cost (binance.md 1 and 3)."""

import re
from collections.abc import Sequence
from typing import Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from perpline.domain.market import PriceSeries, Ratio

Route = Literal["public", "market"]

_ROUTES: dict[str, Route] = {
    "bookTicker": "public",
    "depth": "public",
    "rpiDepth": "public",
    "trade": "public",
    "aggTrade": "market",
    "markPrice": "market",
    "kline": "market",
    "continuousKline": "market",
    "miniTicker": "market",
    "ticker": "market",
    "forceOrder": "market",
    "compositeIndex": "market",
    "contractInfo": "market",
    "assetIndex": "market",
    "tradingSession": "market",
}
"""The route that serves a stream since 2026-04-23. On the other one it is acknowledged and stays silent."""

_STREAM_TYPE = re.compile(r"!?(?P<base>[a-zA-Z]+)(_[0-9]+[smhdwM]|[0-9]+)?(@arr)?(@[0-9]+m?s)?")


def route_of(stream_type: str) -> Route:
    """The route of a stream type: bookTicker, kline_1m, markPrice@1s, depth20@100ms, !markPrice@arr@1s.

    Raises ValueError for a type that is not in the table: a guess would be acknowledged and never deliver.
    """
    match = _STREAM_TYPE.fullmatch(stream_type)
    route = _ROUTES.get(match["base"]) if match else None
    if route is None:
        raise ValueError(f"no route is known for the stream type {stream_type!r}")
    return route


def stream_name(symbol: str, stream_type: str) -> str:
    """The name to subscribe to: btcusdt@kline_1m. An upper-case symbol would be acknowledged and stay silent."""
    return f"{symbol.lower()}@{stream_type}"


def connection_url(base_url: str, route: str) -> str:
    """The address of a combined connection that starts without streams."""
    return f"{base_url.rstrip('/')}/{route}/stream"


def subscribe_request(streams: Sequence[str], request_id: int) -> bytes:
    """The text frame that asks for these streams."""
    return _control_request("SUBSCRIBE", streams, request_id)


def unsubscribe_request(streams: Sequence[str], request_id: int) -> bytes:
    """The text frame that ends these streams."""
    return _control_request("UNSUBSCRIBE", streams, request_id)


def _control_request(method: str, streams: Sequence[str], request_id: int) -> bytes:
    return msgspec.json.encode({"method": method, "params": list(streams), "id": request_id})


USER_EVENTS = (
    "ORDER_TRADE_UPDATE",
    "ACCOUNT_UPDATE",
    "ACCOUNT_CONFIG_UPDATE",
    "MARGIN_CALL",
    "ALGO_UPDATE",
    "TRADE_LITE",
    "listenKeyExpired",
)
"""What we ask for. A socket whose list lacks `listenKeyExpired` is not told of it (binance.md 5)."""

_OWN_HOSTS: dict[str, tuple[str, str | None]] = {
    "fstream.binance.com": ("wss://ws-fapi.binance.com/ws-fapi/v1", "https://api.binance.com"),
    **dict.fromkeys(
        ("fstream.binancefuture.com", "stream.binancefuture.com", "demo-fstream.binance.com"),
        ("wss://testnet.binancefuture.com/ws-fapi/v1", None),
    ),
}
"""By the host of the streams: the order WebSocket API, and the spot side's REST, which knows what a key may do."""


def user_stream_url(ws_url: str, listen_key: str) -> str:
    """The address of the user data stream of a key, with every event that we read named."""
    return f"{ws_url.rstrip('/')}/private/ws?listenKey={listen_key}&events={'/'.join(USER_EVENTS)}"


def order_socket_url(ws_url: str) -> str:
    """The order WebSocket API that belongs to these streams; an exchange of one's own has both at one address."""
    known = _OWN_HOSTS.get(urlsplit(ws_url).hostname or "")
    return known[0] if known else f"{ws_url.rstrip('/')}/ws-fapi/v1"


def spot_rest_url(ws_url: str, rest_url: str) -> str | None:
    """Where a key's permissions can be asked for; None where nothing tells (the test network)."""
    known = _OWN_HOSTS.get(urlsplit(ws_url).hostname or "")
    return known[1] if known else rest_url


Pool = Literal["weight", "futures_data", "funding"]
"""What a request counts against: weight a minute, or requests in five minutes of /futures/data or of funding."""


class Endpoint(Struct, frozen=True):
    """A REST path and what one request to it costs in its pool."""

    path: str
    cost: int = 1
    pool: Pool = "weight"


SERVER_TIME = Endpoint("/fapi/v1/time")
EXCHANGE_INFO = Endpoint("/fapi/v1/exchangeInfo")
TICKER_24H_ALL = Endpoint("/fapi/v1/ticker/24hr", 40)
PREMIUM_INDEX_ALL = Endpoint("/fapi/v1/premiumIndex", 10)
BOOK_TICKER_ALL = Endpoint("/fapi/v1/ticker/bookTicker", 5)
OPEN_INTEREST = Endpoint("/fapi/v1/openInterest")
FUNDING_RATE = Endpoint("/fapi/v1/fundingRate", 1, "funding")
OPEN_INTEREST_HIST = Endpoint("/futures/data/openInterestHist", 1, "futures_data")
RATIOS: dict[Ratio, Endpoint] = {
    "global_account": Endpoint("/futures/data/globalLongShortAccountRatio", 1, "futures_data"),
    "top_account": Endpoint("/futures/data/topLongShortAccountRatio", 1, "futures_data"),
    "top_position": Endpoint("/futures/data/topLongShortPositionRatio", 1, "futures_data"),
    "taker": Endpoint("/futures/data/takerlongshortRatio", 1, "futures_data"),
}

# Our own account. Orders and conditional orders cost no weight: they are counted by themselves (`OrderRate`).
NEW_ORDER = Endpoint("/fapi/v1/order", 0)
ORDER = Endpoint("/fapi/v1/order")
OPEN_ORDERS = Endpoint("/fapi/v1/openOrders", 40)
CANCEL_ORDERS = Endpoint("/fapi/v1/allOpenOrders")
NEW_STOP = Endpoint("/fapi/v1/algoOrder", 0)
STOP = Endpoint("/fapi/v1/algoOrder")
OPEN_STOPS = Endpoint("/fapi/v1/openAlgoOrders", 40)
CANCEL_STOPS = Endpoint("/fapi/v1/algoOpenOrders")
POSITIONS = Endpoint("/fapi/v3/positionRisk", 5)
ACCOUNT = Endpoint("/fapi/v3/account", 5)
USER_TRADES = Endpoint("/fapi/v1/userTrades", 5)
INCOME = Endpoint("/fapi/v1/income", 30)
SYMBOL_CONFIG = Endpoint("/fapi/v1/symbolConfig", 5)
MARGIN_TYPE = Endpoint("/fapi/v1/marginType")
LEVERAGE = Endpoint("/fapi/v1/leverage")
POSITION_MODE = Endpoint("/fapi/v1/positionSide/dual", 30)
MULTI_ASSETS = Endpoint("/fapi/v1/multiAssetsMargin", 30)
ACCOUNT_CONFIG = Endpoint("/fapi/v1/accountConfig", 5)
API_RESTRICTIONS = Endpoint("/sapi/v1/account/apiRestrictions")
LISTEN_KEY = Endpoint("/fapi/v1/listenKey")
ORDER_SOCKET_HANDSHAKE = Endpoint("/ws-fapi/v1", 5)

_PRICE_KLINES: dict[PriceSeries, str] = {
    "mark": "/fapi/v1/markPriceKlines",
    "index": "/fapi/v1/indexPriceKlines",
    "premium": "/fapi/v1/premiumIndexKlines",
}

KLINES_MAX_LIMIT = 1500


def klines(limit: int) -> Endpoint:
    """Candles; the weight grows with the number asked for."""
    return Endpoint("/fapi/v1/klines", klines_weight(limit))


def price_klines(series: PriceSeries, limit: int) -> Endpoint:
    """Candles of mark price, index price or premium index, weighed like klines."""
    return Endpoint(_PRICE_KLINES[series], klines_weight(limit))


def klines_weight(limit: int) -> int:
    """1 below 100 candles, 2 below 500, 5 up to 1000, 10 beyond."""
    if limit < 100:
        return 1
    if limit < 500:
        return 2
    return 5 if limit <= 1000 else 10
