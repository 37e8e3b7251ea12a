"""BinanceRest against a small server that is a function, and against the recorded answers."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import stamina
from aiohttp import web
from aiohttp.test_utils import TestServer

from perpline.common.clock import ManualClock, SystemClock
from perpline.common.errors import Malformed, RateLimited, Refused, Unavailable
from perpline.domain.market import FundingRate, LongShortRatio, MarkPrice, OpenInterest, PriceCandle
from perpline.exchange.binance.rest import BinanceRest
from perpline.exchange.binance.weight import WeightLedger

RECORDED = Path(__file__).parents[3].parent / "shared" / "data" / "rest"
NOW = 1_789_478_300_000

Answer = web.StreamResponse | dict[str, Any] | list[Any]
Exchange = Callable[[web.Request], Answer | Awaitable[Answer]]


class Asked:
    """A BinanceRest in front of a server, and what the server was asked."""

    def __init__(self, rest: BinanceRest, ledger: WeightLedger, clock: ManualClock) -> None:
        self.rest = rest
        self.ledger = ledger
        self.clock = clock
        self.requests: list[tuple[str, dict[str, str]]] = []


@asynccontextmanager
async def exchange(answer: Exchange, *, concurrency: int = 10, **settings: Any) -> AsyncIterator[Asked]:
    async def handle(request: web.Request) -> web.StreamResponse:
        asked.requests.append((request.path, dict(request.query)))
        found = answer(request)
        if asyncio.iscoroutine(found):
            found = await found
        return found if isinstance(found, web.StreamResponse) else web.json_response(found)

    app = web.Application()
    app.router.add_get("/{path:.*}", handle)
    async with TestServer(app) as server:
        clock = ManualClock(NOW)
        ledger = WeightLedger(clock, concurrency=concurrency)
        asked = Asked(BinanceRest(str(server.make_url("/")), clock, ledger, **settings), ledger, clock)
        try:
            yield asked
        finally:
            await asked.rest.close()


def failing(status: int, code: int = 0, text: str = "", **headers: str) -> web.Response:
    return web.json_response({"code": code, "msg": text}, status=status, headers=headers)


@pytest.fixture(autouse=True)
def quick_retries() -> Any:
    """As many attempts as in earnest, without the waits."""
    with stamina.set_testing(True, attempts=4, cap=True):
        yield


def a_row(open_time: int, close: str = "11", **changes: Any) -> list[Any]:
    row = {"high": "12", "low": "9", "volume": "5", "close_time": open_time + 59_999, "taker": "2", **changes}
    return [
        open_time,
        "10",
        row["high"],
        row["low"],
        close,
        row["volume"],
        row["close_time"],
        "50",
        3,
        row["taker"],
        "20",
        "0",
    ]


async def test_the_servers_time_is_told_in_milliseconds() -> None:
    async with exchange(lambda request: {"serverTime": 1789478299014}) as asked:
        assert await asked.rest.server_time() == 1789478299014
        assert asked.requests == [("/fapi/v1/time", {})]


async def test_the_clocks_offset_is_taken_from_the_quickest_round_trip() -> None:
    travel_s = iter([0.4, 0.1, 0.02, 0.3])

    def answer(request: web.Request) -> Answer:
        there_s = next(travel_s)
        asked.clock.advance(there_s)
        server_time = asked.clock.now_ms() + 1500
        asked.clock.advance(0.001)
        return {"serverTime": server_time}

    async with exchange(answer) as asked:
        # The way there takes 20 ms, the way back 1 ms: wrong by half the difference.
        assert await asked.rest.measure_offset_ms() == pytest.approx(1510, abs=1)
        assert asked.ledger.used == 4


async def test_the_offset_of_a_fast_clock_is_in_market_time() -> None:
    async with exchange(lambda request: {"serverTime": ahead.now_ms()}) as asked:
        ahead = SystemClock(speed=60, anchor_ms=NOW + 100_000)
        rest = BinanceRest(asked.rest._base_url, SystemClock(speed=60, anchor_ms=NOW), asked.ledger)
        offset_ms = await rest.measure_offset_ms()
        await rest.close()

    assert offset_ms == pytest.approx(100_000, abs=10_000)


async def test_candles_say_what_was_closed_when_we_asked() -> None:
    minute = NOW - NOW % 60_000
    rows = [a_row(minute - 120_000), a_row(minute - 60_000), a_row(minute)]

    def answer(request: web.Request) -> Answer:
        # The forming minute closes while the answer travels: it may already be final, and is not taken as such.
        asked.clock.set_ms(minute + 60_001)
        return rows

    async with exchange(answer) as asked:
        candles = await asked.rest.candles("BTCUSDT", "1m", start=minute - 120_000, end=minute + 60_000, limit=100)

        assert asked.requests == [
            (
                "/fapi/v1/klines",
                {
                    "symbol": "BTCUSDT",
                    "interval": "1m",
                    "startTime": str(minute - 120_000),
                    "endTime": str(minute + 59_999),
                    "limit": "100",
                },
            )
        ]
    assert [(candle.open_time, candle.closed) for candle in candles] == [
        (minute - 120_000, True),
        (minute - 60_000, True),
        (minute, False),
    ]
    first = candles[0]
    assert (first.open, first.high, first.low, first.close) == (10.0, 12.0, 9.0, 11.0)
    assert (first.volume, first.quote_volume, first.trades) == (5.0, 50.0, 3)
    assert (first.taker_buy_volume, first.taker_buy_quote_volume) == (2.0, 20.0)
    assert (first.source, first.event_time, first.received_at) == ("rest", minute - 60_001, minute + 60_001)


async def test_the_newest_candle_is_closed_by_the_exchanges_own_time_and_not_by_our_clocks() -> None:
    minute = NOW - NOW % 60_000
    server_time = minute + 59_000

    def answer(request: web.Request) -> Answer:
        return {"serverTime": server_time} if request.path.endswith("/time") else [a_row(minute)]

    async with exchange(answer) as asked:
        # Our clock runs twenty seconds ahead of the exchange's, and does not know it.
        asked.clock.set_ms(minute + 79_000)
        assert not (await asked.rest.candles("BTCUSDT", "1m"))[0].closed

        server_time = minute + 60_000
        assert (await asked.rest.candles("BTCUSDT", "1m"))[0].closed
        assert [path for path, _ in asked.requests[-3:]] == ["/fapi/v1/klines", "/fapi/v1/time", "/fapi/v1/klines"]


async def test_a_candle_that_a_later_one_follows_is_closed_whatever_the_clock() -> None:
    minute = NOW - NOW % 60_000
    async with exchange(lambda request: [a_row(minute), a_row(minute + 60_000)]) as asked:
        asked.clock.set_ms(minute + 30_000)

        assert [candle.closed for candle in await asked.rest.candles("BTCUSDT", "1m")] == [True, False]
        assert len(asked.requests) == 1


async def test_candles_outside_the_window_are_left_out() -> None:
    minute = NOW - NOW % 60_000
    rows = [a_row(minute - count * 60_000) for count in range(5, 0, -1)]
    async with exchange(lambda request: rows) as asked:
        candles = await asked.rest.candles("BTCUSDT", "1m", start=minute - 240_000, end=minute - 120_000)

        assert asked.ledger.used == 5
    assert [candle.open_time for candle in candles] == [minute - 240_000, minute - 180_000]


@pytest.mark.parametrize(
    "rows",
    [
        [a_row(60_000, close="NaN")],
        [a_row(60_000, close="0")],
        [a_row(60_000, high="10.5")],
        [a_row(60_001)],
        [a_row(60_000, close_time=119_000)],
        [a_row(60_000, taker="6")],
        [a_row(120_000), a_row(60_000)],
        [a_row(60_000), a_row(60_000)],
        [[60_000, "10"]],
        {"rows": []},
        "text",
    ],
)
async def test_candles_that_make_no_sense_are_malformed_and_not_asked_again(rows: Any) -> None:
    async with exchange(lambda request: web.json_response(rows)) as asked:
        with pytest.raises(Malformed, match=r"GET /fapi/v1/klines BTCUSDT|BTCUSDT 1m|takers|no candle"):
            await asked.rest.candles("BTCUSDT", "1m")

        assert len(asked.requests) == 1


async def test_a_limit_the_exchange_would_refuse_is_not_sent() -> None:
    async with exchange(lambda request: []) as asked:
        with pytest.raises(ValueError, match="1501"):
            await asked.rest.candles("BTCUSDT", "1m", limit=1501)
        assert asked.requests == []


async def test_a_refused_request_keeps_its_code_and_is_not_repeated() -> None:
    async with exchange(lambda request: failing(400, -1121, "Invalid symbol.")) as asked:
        with pytest.raises(
            Refused, match=r"GET /fapi/v1/openInterest NOUSDT: HTTP 400, -1121 Invalid symbol\."
        ) as caught:
            await asked.rest.open_interest("NOUSDT")

        assert caught.value.code == -1121
        assert len(asked.requests) == 1


async def test_an_error_body_under_status_200_is_a_refusal() -> None:
    async with exchange(lambda request: {"code": -1121, "msg": "Invalid symbol."}) as asked:
        with pytest.raises(Refused):
            await asked.rest.candles("NOUSDT", "1m")


@pytest.mark.parametrize("status", [500, 502, 503, 408])
async def test_a_read_that_failed_is_sent_again(status: int) -> None:
    answers = iter([failing(status, -1000, "Unknown error"), failing(status), {"serverTime": 5}])
    async with exchange(lambda request: next(answers)) as asked:
        assert await asked.rest.server_time() == 5
        assert len(asked.requests) == 3
        assert asked.ledger.used == 3
        assert asked.ledger.requests_total == 3


async def test_after_four_attempts_the_exchange_is_unavailable() -> None:
    async with exchange(lambda request: failing(503, -1008, "Request throttled")) as asked:
        with pytest.raises(Unavailable, match="HTTP 503, -1008 Request throttled"):
            await asked.rest.server_time()

        assert len(asked.requests) == 4


@pytest.mark.parametrize(
    ("status", "header", "pause_s"), [(429, "17", 17.0), (418, "300", 300.0), (418, "soon", 120.0)]
)
async def test_a_rate_limit_stops_every_request_and_is_never_retried(status: int, header: str, pause_s: float) -> None:
    answers: Any = iter([failing(status, -1003, "Too many requests", **{"Retry-After": header}), {"serverTime": 5}])
    async with exchange(lambda request: next(answers)) as asked:
        with pytest.raises(RateLimited) as caught:
            await asked.rest.candles("BTCUSDT", "1m")
        assert caught.value.retry_after_s == pause_s
        with pytest.raises(RateLimited):
            await asked.rest.server_time()
        assert len(asked.requests) == 1

        asked.clock.advance(pause_s)

        assert await asked.rest.server_time() == 5


async def test_a_ban_lasts_until_the_time_in_its_text() -> None:
    banned = failing(418, -1003, f"Way too many requests; IP banned until {NOW + 45_000}.")
    async with exchange(lambda request: banned) as asked:
        with pytest.raises(RateLimited) as caught:
            await asked.rest.server_time()

    assert caught.value.retry_after_s == 45


async def test_requests_that_waited_for_a_slot_do_not_go_out_into_a_ban() -> None:
    async with exchange(lambda request: failing(418, -1003, "banned"), concurrency=1) as asked:
        results = await asyncio.gather(*(asked.rest.server_time() for _ in range(5)), return_exceptions=True)

        assert [type(result) for result in results] == [RateLimited] * 5
        assert len(asked.requests) == 1


async def test_the_exchanges_count_of_weight_reaches_the_ledger() -> None:
    def answer(request: web.Request) -> Answer:
        return web.json_response({"serverTime": 5}, headers={"x-mbx-used-weight-1m": "1234"})

    async with exchange(answer) as asked:
        await asked.rest.server_time()

        assert asked.ledger.used == 1234


async def test_a_body_that_is_cut_off_is_asked_for_again() -> None:
    async def torn(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"serverTime":')
        assert request.transport is not None
        request.transport.close()
        return response

    async with exchange(torn) as asked:
        with pytest.raises(Unavailable, match=r"ClientPayloadError|ServerDisconnected"):
            await asked.rest.server_time()

        assert len(asked.requests) == 4


async def test_half_a_json_text_is_asked_for_again() -> None:
    answers = iter([web.Response(text='{"serverTime":17'), web.Response(body=b'\xff"'), {"serverTime": 5}])
    async with exchange(lambda request: next(answers)) as asked:
        assert await asked.rest.server_time() == 5


async def test_an_answer_without_end_is_not_read_to_its_end() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"[" * 65536)
        except ConnectionError:
            return response

    async with exchange(endless, max_body=1 << 20) as asked:
        with pytest.raises(Malformed, match="longer than 1048576 bytes"):
            await asked.rest.server_time()


async def test_a_silent_server_is_unavailable_after_the_timeout() -> None:
    async def silent(request: web.Request) -> Answer:
        await asyncio.sleep(5)
        return {}

    with stamina.set_testing(True, attempts=1):
        async with exchange(silent, timeout_s=0.05) as asked:
            with pytest.raises(Unavailable, match=r"no answer within 0\.05 s"):
                await asked.rest.server_time()


async def test_no_server_at_all_is_unavailable_and_the_address_stays_untold() -> None:
    clock = ManualClock(NOW)
    rest = BinanceRest("http://user:secret@127.0.0.1:1", clock, WeightLedger(clock))
    with pytest.raises(Unavailable) as caught:
        await rest.server_time()
    await rest.close()

    assert "secret" not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)


async def test_no_more_requests_are_under_way_than_allowed() -> None:
    under_way = most = 0

    async def answer(request: web.Request) -> Answer:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return {"serverTime": 5}

    async with exchange(answer, concurrency=3) as asked:
        await asyncio.gather(*(asked.rest.server_time() for _ in range(12)))

    assert most == 3


async def test_a_session_that_was_handed_in_stays_open() -> None:
    async with exchange(lambda request: {"serverTime": 5}) as asked, aiohttp.ClientSession() as session:
        rest = BinanceRest(asked.rest._base_url, asked.clock, asked.ledger, session)
        await rest.server_time()
        await rest.close()

        assert not session.closed


SYMBOL = {
    **{"symbol": "BTCUSDT", "pair": "BTCUSDT", "contractType": "PERPETUAL", "deliveryDate": 4133404800000},
    **{"onboardDate": 1567965300000, "status": "TRADING", "baseAsset": "BTC", "quoteAsset": "USDT"},
    "filters": [
        {"filterType": "PRICE_FILTER", "minPrice": "556.80", "maxPrice": "4529764", "tickSize": "0.10"},
        {"filterType": "LOT_SIZE", "minQty": "0.001", "stepSize": "0.001", "maxQty": "1000"},
        {"filterType": "MAX_NUM_ORDERS", "limit": 200},
        {"filterType": "MIN_NOTIONAL", "notional": "50"},
        {"filterType": "PERCENT_PRICE", "multiplierUp": "1.0500", "multiplierDecimal": "4"},
    ],
}


async def test_instruments_come_with_exact_steps_and_odd_ones_are_left_out() -> None:
    no_step = {**SYMBOL, "symbol": "ODDUSDT", "filters": SYMBOL["filters"][:1]}  # type: ignore[index]
    zero_tick = {**SYMBOL, "filters": [{"filterType": "PRICE_FILTER", "tickSize": "0"}, *SYMBOL["filters"][1:]]}  # type: ignore[index]
    broken = {**SYMBOL, "symbol": 5}
    async with exchange(lambda request: {"symbols": [SYMBOL, no_step, zero_tick, broken]}) as asked:
        instruments = await asked.rest.instruments()

        assert asked.rest.refused_rows == 3
    assert [instrument.symbol for instrument in instruments] == ["BTCUSDT"]
    assert instruments[0].tick_size == Decimal("0.10")
    assert instruments[0].min_notional == Decimal(50)
    assert instruments[0].onboard_time == 1567965300000
    assert instruments[0].is_trading_perpetual


async def test_instruments_come_with_the_limits_of_orders() -> None:
    row = {
        **SYMBOL,
        "maintMarginPercent": "1.2500",
        "triggerProtect": "0.0500",
        "marketTakeBound": "0.05",
        "filters": [
            *SYMBOL["filters"][:2],  # type: ignore[index]
            {"filterType": "MARKET_LOT_SIZE", "stepSize": "0.010", "minQty": "0.020", "maxQty": "120"},
            {
                "filterType": "PERCENT_PRICE",
                "multiplierUp": "1.0500",
                "multiplierDecimal": "4",
                "multiplierDown": "0.95",
            },
        ],
    }
    hostile = [
        {**row, "symbol": "ONEUSDT", "marketTakeBound": "NaN"},
        {**row, "symbol": "TWOUSDT", "triggerProtect": "-1"},
        {**row, "symbol": "THREEUSDT", "maintMarginPercent": "Infinity"},
    ]
    async with exchange(lambda request: {"symbols": [row, *hostile]}) as asked:
        [instrument] = await asked.rest.instruments()
        assert asked.rest.refused_rows == 3
    limits = {name: str(getattr(instrument, name)) for name in instrument.__struct_fields__[10:]}
    assert limits == {
        "max_quantity": "1000",
        "market_min_quantity": "0.020",
        "market_max_quantity": "120",
        "market_step_size": "0.010",
        "min_price": "556.80",
        "max_price": "4529764",
        "multiplier_up": "1.0500",
        "multiplier_down": "0.95",
        "market_take_bound": "0.05",
        "trigger_protect": "0.0500",
        "maintenance_margin_pct": "1.2500",
        "delivery_time": "4133404800000",
    }
    assert instrument.min_notional == 0


async def test_an_exchange_without_one_sensible_symbol_is_malformed() -> None:
    async with exchange(lambda request: {"symbols": [{}, {}]}) as asked:
        with pytest.raises(Malformed, match="none of 2 rows"):
            await asked.rest.instruments()


async def test_quote_volumes_are_told_by_symbol() -> None:
    rows = [{"symbol": "BTCUSDT", "quoteVolume": "5.5", "x": 1}, {"symbol": "BADUSDT", "quoteVolume": "inf"}]
    async with exchange(lambda request: rows) as asked:
        assert await asked.rest.quote_volumes_24h() == {"BTCUSDT": 5.5}
        assert asked.ledger.used == 40


async def test_mark_prices_of_symbols_without_funding_are_told_too() -> None:
    rows = [
        {
            **{
                "symbol": "BTCUSDT",
                "markPrice": "76916.95",
                "indexPrice": "76959.67",
                "estimatedSettlePrice": "77018.7",
            },
            **{
                "lastFundingRate": "0.00008972",
                "interestRate": "0.0001",
                "nextFundingTime": 1789488000000,
                "time": NOW,
            },
        },
        {"symbol": "BTCUSDT_261225", "markPrice": "2", "indexPrice": "0", "lastFundingRate": "", "time": NOW},
        {"symbol": "BADUSDT", "markPrice": "0", "indexPrice": "0", "lastFundingRate": "", "time": NOW},
    ]
    async with exchange(lambda request: rows) as asked:
        assert await asked.rest.mark_prices() == [
            MarkPrice("BTCUSDT", 76916.95, 76959.67, 0.00008972, 1789488000000, NOW, NOW),
            MarkPrice("BTCUSDT_261225", 2.0, 0.0, 0.0, 0, NOW, NOW),
        ]
        assert asked.rest.refused_rows == 1


@pytest.mark.parametrize(
    ("series", "path", "name"),
    [
        ("mark", "/fapi/v1/markPriceKlines", "symbol"),
        ("index", "/fapi/v1/indexPriceKlines", "pair"),
        ("premium", "/fapi/v1/premiumIndexKlines", "symbol"),
    ],
)
async def test_price_candles_are_closed_ones_only(series: Any, path: str, name: str) -> None:
    minute = NOW - NOW % 60_000
    sign = "-" if series == "premium" else ""
    low, high = ("9", "12") if not sign else ("-12", "-9")

    def row(open_time: int) -> list[Any]:
        return [open_time, f"{sign}10", high, low, f"{sign}11", "0", open_time + 59_999, "0", 60, "0", "0", "0"]

    async with exchange(lambda request: [row(minute - 60_000), row(minute)]) as asked:
        candles = await asked.rest.price_candles(series, "BTCUSDT", limit=2)

        assert asked.requests == [(path, {name: "BTCUSDT", "interval": "1m", "limit": "2"})]
    factor = -1 if sign else 1
    assert candles == [
        PriceCandle(
            series, "BTCUSDT", minute - 60_000, 10.0 * factor, float(high), float(low), 11.0 * factor, "rest", NOW
        )
    ]


@pytest.mark.parametrize(
    "row",
    [
        [60_000, "-10", "-9", "-12", "-11", "0", 119_999],
        [60_000, "10", "9", "8", "9", "0", 119_999],
        [60_500, "10", "12", "9", "11", "0", 119_999],
        [60_000, "10", "inf", "9", "11", "0", 119_999],
    ],
)
async def test_a_mark_price_candle_that_cannot_be_is_malformed(row: list[Any]) -> None:
    async with exchange(lambda request: [row]) as asked:
        with pytest.raises(Malformed):
            await asked.rest.price_candles("mark", "BTCUSDT")


async def test_open_interest_is_what_it_was_asked_for() -> None:
    async with exchange(lambda request: {"symbol": "BTCUSDT", "openInterest": "106312.376", "time": NOW - 50}) as asked:
        assert await asked.rest.open_interest("BTCUSDT") == OpenInterest(
            "BTCUSDT", NOW - 50, 106312.376, None, "spot_1m", NOW
        )
        with pytest.raises(Malformed, match="asked for ETHUSDT"):
            await asked.rest.open_interest("ETHUSDT")


@pytest.mark.parametrize("stamp", [1789478100000, "1789478100000"])
async def test_five_minute_rows_come_with_old_and_new_stamps(stamp: int | str) -> None:
    rows = {
        "/futures/data/openInterestHist": {"symbol": "B", "sumOpenInterest": "5", "sumOpenInterestValue": "50.5"},
        "/futures/data/globalLongShortAccountRatio": {
            **{"symbol": "B", "longShortRatio": "1.5", "longAccount": "0.6", "shortAccount": "0.4"},
        },
        "/futures/data/takerlongshortRatio": {"buySellRatio": "1.2", "buyVol": "12", "sellVol": "10"},
    }
    async with exchange(lambda request: [{**rows[request.path], "timestamp": stamp}]) as asked:
        assert await asked.rest.open_interest_hist("BTCUSDT") == [
            OpenInterest("BTCUSDT", 1789478100000, 5.0, 50.5, "hist_5m", NOW)
        ]
        assert await asked.rest.long_short_ratios("BTCUSDT", "global_account") == [
            LongShortRatio("BTCUSDT", "global_account", 1789478100000, 1.5, 0.6, 0.4, NOW, NOW)
        ]
        assert await asked.rest.long_short_ratios("BTCUSDT", "taker", limit=3) == [
            LongShortRatio("BTCUSDT", "taker", 1789478100000, 1.2, 12.0, 10.0, NOW, NOW)
        ]
        assert asked.requests[-1][1] == {"symbol": "BTCUSDT", "period": "5m", "limit": "3"}
        assert (asked.ledger.used, asked.ledger.pool_used("futures_data")) == (0, 3)


async def test_a_symbol_without_five_minute_rows_has_an_empty_list() -> None:
    async with exchange(lambda request: []) as asked:
        assert await asked.rest.long_short_ratios("NOUSDT", "top_position") == []


async def test_funding_intervals_are_the_distance_to_the_settlement_before() -> None:
    hour = 3_600_000
    start = 1789459200000
    rows = [
        {"symbol": "BTCUSDT", "fundingTime": start, "fundingRate": "0.0001", "markPrice": ""},
        {"symbol": "BTCUSDT", "fundingTime": start + 8 * hour + 5, "fundingRate": "-0.0002", "markPrice": "7.5"},
        {**{"symbol": "BTCUSDT", "fundingTime": start + 9 * hour, "fundingRate": "0.01"}, "rateType": "Special"},
        {**{"symbol": "BTCUSDT", "fundingTime": start + 12 * hour, "fundingRate": "0"}, "rateType": "Regular"},
    ]
    async with exchange(lambda request: rows) as asked:
        rates = await asked.rest.funding_rates("BTCUSDT", start=start, limit=10)

        assert asked.requests[0][1] == {"symbol": "BTCUSDT", "startTime": str(start), "limit": "10"}
        assert (asked.ledger.used, asked.ledger.pool_used("funding")) == (0, 1)
    assert [(rate.rate, rate.mark_price, rate.interval_hours) for rate in rates] == [
        (0.0001, None, None),
        (-0.0002, 7.5, 8),
        (0.01, None, None),
        (0.0, None, 4),
    ]
    assert rates[1] == FundingRate("BTCUSDT", start + 8 * hour + 5, -0.0002, 7.5, 8, start + 8 * hour + 60_005)


@pytest.mark.skipif(not RECORDED.exists(), reason="../shared/data/rest is not here")
async def test_recorded_answers_are_understood() -> None:
    recorded = json.loads((RECORDED / "gocryptotrader" / "usdm_routes.json").read_text())

    def first_answer(request: web.Request) -> Answer:
        return next(pair["data"] for pair in recorded[request.path]["GET"] if pair["data"] is not None)

    async with exchange(first_answer) as asked:
        rest = asked.rest
        assert (await rest.open_interest("BTCUSDT")).open_interest == 83782.317
        assert (await rest.open_interest_hist("LTCUSDT"))[0].open_interest_value == 13151177.5449312
        assert (await rest.candles("LTCUSDT", "5m"))[0].trades == 1517
        assert (await rest.funding_rates("LTCUSDT"))[0].rate == 0.00018534
        for ratio in ("global_account", "top_account", "top_position", "taker"):
            assert await rest.long_short_ratios("BTCUSDT", ratio)


@pytest.mark.skipif(not RECORDED.exists(), reason="../shared/data/rest is not here")
async def test_a_recorded_exchange_info_lists_every_symbol() -> None:
    info = next((RECORDED / "exchangeinfo").glob("*.json")).read_bytes()
    async with exchange(lambda request: web.Response(body=info, content_type="application/json")) as asked:
        instruments = await asked.rest.instruments()

        # OPENUSDT is announced with a tick size of 0: nothing can be rounded to that.
        listed = {row["symbol"] for row in json.loads(info)["symbols"]}
        assert {instrument.symbol for instrument in instruments} == listed - {"OPENUSDT"}
        assert asked.rest.refused_rows == 1
    assert sum(instrument.is_trading_perpetual for instrument in instruments) > 300


async def test_each_request_goes_out_with_the_priority_of_its_view() -> None:
    async with exchange(lambda request: {"serverTime": 5}) as asked:
        await asked.rest.server_time()
        polls = asked.rest.at("polls")
        await polls.server_time()
        await polls.server_time()

        requests = {name: entry["requests"] for name, entry in asked.ledger.facts()["by_priority"].items()}
        assert requests == {"orders": 0, "reconcile": 0, "heal": 1, "polls": 2, "bulk": 0}


async def test_views_of_other_priorities_share_rows_counted_and_connections() -> None:
    async with exchange(lambda request: {"symbols": [SYMBOL, {**SYMBOL, "symbol": 5}]}) as asked:
        await asked.rest.at("bulk").instruments()

        assert asked.rest.refused_rows == 1
