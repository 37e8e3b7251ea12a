"""REST without sockets: limits, weights, headers and refusals as the exchange words them."""

import msgspec
import pytest

from perpline.simulation.exchange import Exchange
from perpline.simulation.market import MINUTE_MS, World
from perpline.simulation.rest import BANNED_AFTER, Rest
from perpline.simulation.streams import Stats

NOW = 1_795_400_000_000 // MINUTE_MS * MINUTE_MS + 500
EXCHANGE = Exchange(World(1, 4))


@pytest.fixture
def rest():
    return Rest(EXCHANGE, Stats())


def _get(rest, path, now_ms=NOW, address="127.0.0.1", **params):
    answer = rest.answer(path, {name: str(value) for name, value in params.items()}, address, now_ms)
    return answer.status, msgspec.json.decode(answer.body)


@pytest.mark.parametrize(
    ("path", "params", "status", "code", "message"),
    [
        ("klines", {}, 400, -1102, "Mandatory parameter 'symbol' was not sent, was empty/null, or malformed."),
        ("klines", {"symbol": "BTCUSDT"}, 400, -1102, "Mandatory parameter 'interval' was not sent"),
        ("klines", {"symbol": "NOPE", "interval": "1m"}, 400, -1121, "Invalid symbol."),
        ("klines", {"symbol": "btcusdt", "interval": "1m"}, 400, -1121, "Invalid symbol."),
        ("klines", {"symbol": "BTCUSDT", "interval": "1s"}, 400, -1120, "Invalid interval."),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m", "limit": 1501}, 400, -1130, "'limit'"),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m", "limit": 0}, 400, -1130, "'limit'"),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m", "startTime": "x"}, 400, -1100, "Illegal characters"),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m", "startTime": "-1"}, 400, -1100, "Illegal characters"),
        ("indexPriceKlines", {"symbol": "BTCUSDT", "interval": "1m"}, 400, -1102, "Mandatory parameter 'pair'"),
        ("continuousKlines", {"pair": "BTCUSDT", "interval": "1m"}, 400, -1102, "'contractType'"),
        ("premiumIndex", {"symbol": "NOPE"}, 400, -1121, "Invalid symbol."),
        ("depth", {"symbol": "BTCUSDT", "limit": 3}, 400, -4021, "3 is not valid depth limit"),
        ("depth", {"symbol": "BTCUSDT", "limit": 1500}, 400, -1130, "'limit'"),
        ("openInterest", {}, 400, -1102, "Mandatory parameter 'symbol'"),
        ("aggTrades", {"symbol": "BTCUSDT", "limit": 1001}, 400, -1130, "'limit'"),
        ("aggTrades", {"symbol": "BTCUSDT", "startTime": 1, "endTime": 3_600_002}, 400, -1127, "More than 1 hours"),
        ("nothing", {}, 404, -5000, "Path /fapi/v1/nothing, Method GET is invalid"),
    ],
)
def test_a_bad_request_is_refused_in_the_exchange_s_words(rest, path, params, status, code, message):
    got_status, body = _get(rest, f"/fapi/v1/{path}", **params)

    assert (got_status, body["code"]) == (status, code)
    assert message in body["msg"]


@pytest.mark.parametrize("series", ["openInterestHist", "globalLongShortAccountRatio", "takerlongshortRatio"])
def test_an_unknown_symbol_is_an_empty_list_on_the_five_minute_series(rest, series):
    assert _get(rest, f"/futures/data/{series}", symbol="NOPE", period="5m") == (200, [])


@pytest.mark.parametrize(
    "params", [{"period": "7m"}, {"period": "5m", "limit": 501}, {"period": "5m", "startTime": NOW - 40 * 86_400_000}]
)
def test_the_five_minute_series_refuse_what_they_do_not_hold(rest, params):
    status, body = _get(rest, "/futures/data/openInterestHist", symbol="BTCUSDT", **params)

    assert (status, body["code"]) == (400, -1130)


@pytest.mark.parametrize(
    ("path", "params", "weight"),
    [
        ("klines", {"limit": 99}, 1),
        ("klines", {"limit": 100}, 2),
        ("klines", {}, 5),
        ("klines", {"limit": 1000}, 5),
        ("klines", {"limit": 1001}, 10),
        ("premiumIndexKlines", {"limit": 1500}, 10),
        ("premiumIndex", {}, 1),
        ("premiumIndex", {"symbol": None}, 10),
        ("ticker/bookTicker", {}, 2),
        ("ticker/bookTicker", {"symbol": None}, 5),
        ("depth", {"limit": 5}, 2),
        ("depth", {"limit": 100}, 5),
        ("depth", {"limit": 500}, 10),
        ("depth", {"limit": 1000}, 20),
        ("aggTrades", {}, 20),
        ("openInterest", {}, 1),
        ("exchangeInfo", {}, 1),
    ],
)
def test_the_weight_of_a_request_is_the_documented_one(rest, path, params, weight):
    asked = {"symbol": "BTCUSDT", "interval": "1m", **params}
    answer = rest.answer(
        f"/fapi/v1/{path}", {name: str(value) for name, value in asked.items() if value is not None}, "::1", NOW
    )

    assert answer.status == 200
    assert answer.headers["x-mbx-used-weight-1m"] == str(weight)


def test_weight_is_counted_by_address_and_minute_and_the_limit_is_kept(rest):
    for _ in range(240):
        assert _get(rest, "/fapi/v1/premiumIndex")[0] == 200

    refused = rest.answer("/fapi/v1/time", {}, "127.0.0.1", NOW)
    assert refused.status == 429
    assert refused.headers["Retry-After"] == str(60 - NOW // 1000 % 60)
    assert msgspec.json.decode(refused.body)["code"] == -1003
    assert _get(rest, "/fapi/v1/time", address="127.0.0.2")[0] == 200
    assert _get(rest, "/fapi/v1/time", now_ms=NOW + MINUTE_MS)[0] == 200


def test_who_goes_on_after_429_is_banned_for_two_minutes(rest):
    for _ in range(240):
        _get(rest, "/fapi/v1/premiumIndex")
    statuses = [_get(rest, "/fapi/v1/time")[0] for _ in range(BANNED_AFTER + 1)]

    banned = rest.answer("/fapi/v1/time", {}, "127.0.0.1", NOW + MINUTE_MS)
    assert statuses == [429] * BANNED_AFTER + [418]
    assert banned.status == 418
    assert banned.headers["Retry-After"] == "60"
    assert f"banned until {NOW + 120_000}" in msgspec.json.decode(banned.body)["msg"]
    assert _get(rest, "/fapi/v1/time", now_ms=NOW + 120_000)[0] == 200


def test_the_five_minute_series_and_funding_have_pools_of_their_own(rest):
    statuses = [_get(rest, "/fapi/v1/fundingInfo")[0] for _ in range(501)]
    answer = rest.answer("/futures/data/openInterestHist", {"symbol": "BTCUSDT", "period": "5m"}, "127.0.0.1", NOW)

    assert statuses == [200] * 500 + [429]
    assert answer.status == 200
    assert "x-mbx-used-weight-1m" not in answer.headers


def test_exchange_info_lists_every_contract_with_its_seven_filters(rest):
    body = _get(rest, "/fapi/v1/exchangeInfo", symbol="NOPE")[1]

    assert list(body) == [
        "timezone", "serverTime", "futuresType", "rateLimits", "exchangeFilters", "assets", "symbols",
    ]  # fmt: skip
    assert [listed["symbol"] for listed in body["symbols"]] == ["BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT"]
    for listed in body["symbols"]:
        assert (listed["status"], listed["contractType"]) == ("TRADING", "PERPETUAL")
        assert [each["filterType"] for each in listed["filters"]] == [
            "PRICE_FILTER", "LOT_SIZE", "MARKET_LOT_SIZE", "MAX_NUM_ORDERS", "MIN_NOTIONAL", "PERCENT_PRICE",
            "POSITION_RISK_CONTROL",
        ]  # fmt: skip


def test_aggregate_trades_are_the_trades_of_the_candle(rest):
    minute = NOW // MINUTE_MS * MINUTE_MS - MINUTE_MS
    trades = _get(rest, "/fapi/v1/aggTrades", symbol="SOLUSDT", startTime=minute, endTime=minute + 59_999)[1]
    row = _get(rest, "/fapi/v1/klines", symbol="SOLUSDT", interval="1m", startTime=minute, limit=1)[1][0]
    onward = _get(rest, "/fapi/v1/aggTrades", symbol="SOLUSDT", fromId=trades[3]["a"], limit=2)[1]
    latest = _get(rest, "/fapi/v1/aggTrades", symbol="SOLUSDT", limit=5)[1]

    assert (trades[0]["p"], trades[-1]["p"]) == (row[1], row[4])
    assert sum(trade["l"] - trade["f"] + 1 for trade in trades) == row[8]
    assert onward == trades[3:5]
    assert len(latest) == 5
    assert NOW - 120_000 < latest[-1]["T"] <= NOW


def test_funding_rates_are_the_latest_or_from_a_start_on(rest):
    latest = _get(rest, "/fapi/v1/fundingRate", symbol="BTCUSDT", limit=3)[1]
    from_start = _get(rest, "/fapi/v1/fundingRate", symbol="BTCUSDT", startTime=latest[0]["fundingTime"], limit=2)[1]
    everyone = _get(rest, "/fapi/v1/fundingRate", limit=8)[1]

    assert [row["rateType"] for row in latest] == ["Regular"] * 3
    assert NOW - latest[-1]["fundingTime"] < 8 * 3_600_000
    assert from_start == latest[:2]
    assert {row["symbol"] for row in everyone} == set(EXCHANGE.symbols)
