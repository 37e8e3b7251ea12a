"""BinanceTrading against a small server that is a function, written from the protocol sheet."""

import asyncio
import hashlib
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl

import aiohttp
import pytest
import stamina
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from perpline.common.clock import ManualClock
from perpline.common.errors import Malformed, OutcomeUnknown, PerplineError, RateLimited, Refused, Unavailable
from perpline.domain.order import (
    AccountSnapshot,
    ExchangePosition,
    Fill,
    Income,
    OrderReport,
    OrderRequest,
    OrderStatus,
    StopReport,
    StopRequest,
    StopStatus,
)
from perpline.exchange.binance.credentials import make_credentials
from perpline.exchange.binance.order_rate import OrderRate
from perpline.exchange.binance.trading_rest import BinanceTrading
from perpline.exchange.binance.weight import WeightLedger
from perpline.exchange.ports import KeyPermissions, SymbolMargin

NOW = 1_790_526_538_000
KEY, SECRET = "abcdEFGH0123456789abcdEFGH0123456789", "s3cretS3CRETs3cretS3CRETs3cretS3CRET"
OURS = "e.1a.AAECAwQFBgcICQoLDA0ODw.0"
STOP_ID = "s.1a.AAECAwQFBgcICQoLDA0ODw.0"

Answer = web.StreamResponse | dict[str, Any] | list[Any]
Exchange = Callable[[web.Request], Answer | Awaitable[Answer]]

ORDER = OrderRequest(symbol="BTCUSDT", side="buy", quantity=Decimal("0.020"), client_id=OURS, reduce_only=False)
CLOSE = OrderRequest(symbol="BTCUSDT", side="sell", quantity=Decimal("1E+1"), client_id="x.1.a.0", reduce_only=True)
STOP = StopRequest(symbol="BTCUSDT", side="sell", trigger_price=Decimal("80000.10"), client_algo_id=STOP_ID)

ORDER_BODY = {
    "clientOrderId": OURS,
    "cumQty": "0.020",
    "executedQty": "0.020",
    "orderId": 22542179,
    "origQty": "0.020",
    "price": "0.00",
    "reduceOnly": False,
    "side": "BUY",
    "positionSide": "BOTH",
    "status": "FILLED",
    "stopPrice": "0.00",
    "closePosition": False,
    "symbol": "BTCUSDT",
    "timeInForce": "GTC",
    "type": "MARKET",
    "origType": "MARKET",
    "updateTime": NOW - 5,
    "workingType": "CONTRACT_PRICE",
    "priceProtect": False,
    "priceMatch": "NONE",
    "selfTradePreventionMode": "EXPIRE_MAKER",
    "goodTillDate": 0,
}
REPORT = OrderReport(
    symbol="BTCUSDT",
    client_id=OURS,
    order_id=22542179,
    side="buy",
    status=OrderStatus.FILLED,
    quantity=Decimal("0.020"),
    filled=Decimal("0.020"),
    average_price=None,
    reduce_only=False,
    kind="market",
    source="answer",
    updated_at=NOW - 5,
    received_at=NOW,
)
ALGO_BODY = {
    "algoId": 2146760,
    "clientAlgoId": STOP_ID,
    "algoType": "CONDITIONAL",
    "orderType": "STOP_MARKET",
    "symbol": "BTCUSDT",
    "side": "SELL",
    "positionSide": "BOTH",
    "timeInForce": "GTC",
    "quantity": "0",
    "algoStatus": "NEW",
    "triggerPrice": "80000.10",
    "price": "0",
    "icebergQuantity": None,
    "workingType": "MARK_PRICE",
    "priceMatch": "NONE",
    "closePosition": True,
    "priceProtect": False,
    "reduceOnly": True,
    "activatePrice": "",
    "callbackRate": "",
    "createTime": NOW - 5,
    "updateTime": NOW - 5,
    "triggerTime": 0,
    "goodTillDate": 0,
}
STOP_REPORT = StopReport(
    symbol="BTCUSDT",
    client_algo_id=STOP_ID,
    algo_id=2146760,
    side="sell",
    kind="stop_market",
    status=StopStatus.NEW,
    trigger_price=Decimal("80000.1"),
    close_position=True,
    quantity=Decimal(0),
    order_id=0,
    source="answer",
    updated_at=NOW - 5,
    received_at=NOW,
)


class Asked:
    """A BinanceTrading in front of a server, and what the server was asked."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.ledger = WeightLedger(clock)
        self.rate = OrderRate(clock)
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.offsets_measured = 0
        self.trading: BinanceTrading

    async def measure_offset(self) -> None:
        self.offsets_measured += 1
        self.clock.offset_ms = 4_000


@asynccontextmanager
async def exchange(answer: Exchange, url: str | None = None, **settings: Any) -> AsyncIterator[Asked]:
    async def handle(request: web.Request) -> web.StreamResponse:
        query = dict(parse_qsl(request.query_string, keep_blank_values=True))
        assert await request.read() == b""
        assert request.headers["X-MBX-APIKEY"] == KEY
        if "listenKey" not in request.path:
            payload, _, signature = request.rel_url.raw_query_string.rpartition("&signature=")
            assert signature == hmac.new(SECRET.encode(), payload.encode(), hashlib.sha256).hexdigest()
            del query["signature"]
            assert query.pop("recvWindow") == "5000"
            assert int(query.pop("timestamp")) == asked.clock.exchange_now_ms()
        asked.requests.append((request.method, request.path, query))
        found = answer(request)
        if asyncio.iscoroutine(found):
            found = await found
        return found if isinstance(found, web.StreamResponse) else web.json_response(found)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    asked = Asked(ManualClock(NOW))
    async with TestServer(app) as server:
        asked.trading = BinanceTrading(
            url or str(server.make_url("/")),
            make_credentials(KEY, SECRET, "here"),
            asked.clock,
            asked.ledger,
            asked.rate,
            measure_offset=asked.measure_offset,
            **settings,
        )
        try:
            yield asked
        finally:
            await asked.trading.close()


def failing(status: int, code: int = 0, text: str = "", **headers: str) -> web.Response:
    return web.json_response({"code": code, "msg": text}, status=status, headers=headers)


@pytest.fixture(autouse=True)
def quick_retries() -> Any:
    """As many attempts as in earnest, without the waits."""
    with stamina.set_testing(True, attempts=4, cap=True):
        yield


async def test_a_market_order_is_sent_as_the_exchange_wants_it() -> None:
    async with exchange(lambda request: ORDER_BODY) as asked:
        assert await asked.trading.place_order(ORDER) == REPORT
        assert asked.requests == [
            (
                "POST",
                "/fapi/v1/order",
                {
                    "symbol": "BTCUSDT",
                    "side": "BUY",
                    "type": "MARKET",
                    "quantity": "0.020",
                    "newClientOrderId": OURS,
                    "newOrderRespType": "RESULT",
                },
            )
        ]
        assert asked.ledger.used == 0


async def test_a_close_is_reduce_only_and_its_size_has_no_exponent() -> None:
    async with exchange(lambda request: ORDER_BODY) as asked:
        await asked.trading.place_order(CLOSE)
        sent = asked.requests[0][2]
    assert (sent["reduceOnly"], sent["quantity"], sent["side"]) == ("true", "10", "SELL")


async def test_a_limit_order_has_price_and_time_in_force() -> None:
    limit = OrderRequest(
        symbol="币安人生USDT",
        side="sell",
        quantity=Decimal(5),
        client_id=OURS,
        reduce_only=False,
        kind="limit",
        price=Decimal("0.12010"),
        time_in_force="GTX",
    )
    async with exchange(lambda request: {**ORDER_BODY, "symbol": "币安人生USDT", "avgPrice": "0.00"}) as asked:
        report = await asked.trading.place_order(limit)
        sent = asked.requests[0][2]

    assert (report.symbol, report.average_price) == ("币安人生USDT", None)
    assert (sent["symbol"], sent["type"], sent["price"], sent["timeInForce"]) == (
        "币安人生USDT",
        "LIMIT",
        "0.12010",
        "GTX",
    )


async def test_a_stop_closes_the_position_on_the_mark_price() -> None:
    async with exchange(lambda request: ALGO_BODY) as asked:
        assert await asked.trading.place_stop(STOP) == STOP_REPORT
        assert asked.requests == [
            (
                "POST",
                "/fapi/v1/algoOrder",
                {
                    "algoType": "CONDITIONAL",
                    "symbol": "BTCUSDT",
                    "side": "SELL",
                    "type": "STOP_MARKET",
                    "triggerPrice": "80000.10",
                    "workingType": "MARK_PRICE",
                    "closePosition": "true",
                    "clientAlgoId": STOP_ID,
                },
            )
        ]


UNKNOWN = "Unknown error, please check your request or try again later."


@pytest.mark.parametrize(
    ("status", "code", "text", "expected"),
    [
        (503, -1000, UNKNOWN, OutcomeUnknown),
        (503, 0, UNKNOWN, OutcomeUnknown),
        (503, 0, "Service Unavailable.", Unavailable),
        (503, -1001, "Internal error; unable to process your request. Please try again.", Unavailable),
        (503, -1008, "Request throttled by system-level protection.", Unavailable),
        (503, 0, "something new", OutcomeUnknown),
        (400, -1008, "Request throttled by system-level protection.", Unavailable),
        (500, 0, "Request occur unknown error.", OutcomeUnknown),
        (502, 0, "", OutcomeUnknown),
        (408, 0, "", OutcomeUnknown),
        (400, -1007, "Timeout waiting for response from backend server.", OutcomeUnknown),
        (400, -1006, "An unexpected response was received from the message bus.", OutcomeUnknown),
        (400, -2019, "Margin is insufficient.", Refused),
        (400, -4120, "Order type not supported for this endpoint.", Refused),
        (401, -2015, "Invalid API-key, IP, or permissions for action.", Refused),
        (400, -1022, "Signature for this request is not valid.", Refused),
        (400, -5028, "Timestamp for this request is outside of the ME recvWindow.", Unavailable),
        (403, 0, "", Unavailable),
        (429, -1003, "Too many requests", RateLimited),
        (418, -1003, "Way too many requests", RateLimited),
        (429, -1015, "Too many new orders", RateLimited),
        (400, -1015, "Too many new orders", RateLimited),
        (302, 0, "", OutcomeUnknown),
    ],
)
async def test_an_order_that_failed_is_never_sent_again_and_says_what_is_known(
    status: int, code: int, text: str, expected: type[PerplineError]
) -> None:
    async with exchange(lambda request: failing(status, code, text)) as asked:
        with pytest.raises(PerplineError) as caught:
            await asked.trading.place_order(ORDER)
        assert type(caught.value) is expected
        assert len(asked.requests) == 1
        if isinstance(caught.value, Refused):
            assert caught.value.code == code


async def test_the_503_page_of_a_proxy_leaves_the_outcome_unknown() -> None:
    page = web.Response(status=503, text="<html>503 Service Unavailable. </html>", content_type="text/html")
    async with exchange(lambda request: page) as asked:
        with pytest.raises(OutcomeUnknown):
            await asked.trading.place_stop(STOP)


async def test_too_many_orders_stop_orders_and_nothing_else() -> None:
    def answer(request: web.Request) -> Answer:
        return failing(400, -1015, "Too many new orders") if request.method == "POST" else []

    async with exchange(answer) as asked:
        with pytest.raises(RateLimited):
            await asked.trading.place_order(ORDER)
        assert not asked.rate.take(closes=True)
        assert await asked.trading.open_orders() == []
        asked.clock.advance(10.1)
        assert asked.rate.take(closes=True)


@pytest.mark.parametrize("torn", ["hang up", "half an answer", "no json", "another shape", "too long"])
async def test_a_lost_answer_leaves_the_outcome_unknown(torn: str) -> None:
    async def answer(request: web.Request) -> Answer:
        if torn == "hang up":
            request.transport.close()
        elif torn == "half an answer":
            response = web.StreamResponse(headers={"Content-Length": "500"})
            await response.prepare(request)
            await response.write(b'{"orderId":1')
            request.transport.close()
            return response
        elif torn == "no json":
            return web.Response(text="<html>")
        elif torn == "too long":
            return {**ORDER_BODY, "symbol": "x" * 3_000}
        return {"ok": True}

    async with exchange(answer, max_body=2_000) as asked:
        with pytest.raises(OutcomeUnknown):
            await asked.trading.place_order(ORDER)
        assert len(asked.requests) == 1


async def test_no_answer_in_time_leaves_the_outcome_unknown() -> None:
    release = asyncio.Event()

    async def answer(request: web.Request) -> Answer:
        await release.wait()
        return ORDER_BODY

    async with exchange(answer, timeout_s=0.1) as asked:
        with pytest.raises(OutcomeUnknown, match=r"no answer within 0\.1 s"):
            await asked.trading.place_order(ORDER)
        assert len(asked.requests) == 1
        release.set()


async def test_where_nobody_listens_nothing_has_happened() -> None:
    async with exchange(lambda request: ORDER_BODY, url=f"http://127.0.0.1:{unused_port()}") as asked:
        with pytest.raises(Unavailable):
            await asked.trading.place_order(ORDER)
        with pytest.raises(Unavailable):
            await asked.trading.open_orders()


async def test_after_a_wrong_time_the_clock_is_measured_and_the_order_sent_once_more() -> None:
    def answer(request: web.Request) -> Answer:
        return (
            failing(400, -1021, "Timestamp for this request is outside") if asked.clock.offset_ms == 0 else ORDER_BODY
        )

    async with exchange(answer) as asked:
        assert await asked.trading.place_order(ORDER) == REPORT
        assert (len(asked.requests), asked.offsets_measured) == (2, 1)

    async with exchange(lambda request: failing(400, -1021)) as asked:
        with pytest.raises(Unavailable):
            await asked.trading.place_order(ORDER)
        assert len(asked.requests) == 2


async def test_a_refusal_with_status_200_is_a_refusal() -> None:
    async with exchange(lambda request: {"code": -2022, "msg": "ReduceOnly Order is rejected."}) as asked:
        with pytest.raises(Refused) as caught:
            await asked.trading.place_order(CLOSE)
        assert caught.value.code == -2022


async def test_cancelling_what_is_not_open_is_no_error() -> None:
    async with exchange(lambda request: failing(400, -2011, "Unknown order sent.")) as asked:
        assert await asked.trading.cancel_order("BTCUSDT", OURS) is None
        assert await asked.trading.cancel_stop(STOP_ID) is False
        assert [(method, path) for method, path, _ in asked.requests] == [
            ("DELETE", "/fapi/v1/order"),
            ("DELETE", "/fapi/v1/algoOrder"),
        ]


async def test_cancellations_tell_what_became_of_it() -> None:
    def answer(request: web.Request) -> Answer:
        if request.path == "/fapi/v1/algoOrder":
            return {"algoId": 2146760, "clientAlgoId": STOP_ID, "code": "200", "msg": "success"}
        return {**ORDER_BODY, "status": "CANCELED", "executedQty": "0.000"}

    async with exchange(answer) as asked:
        report = await asked.trading.cancel_order("BTCUSDT", OURS)
        assert report is not None
        assert (report.status, report.filled) == (OrderStatus.CANCELED, Decimal(0))
        assert await asked.trading.cancel_stop(STOP_ID) is True


async def test_everything_of_a_symbol_is_cancelled_of_both_kinds() -> None:
    done = {"code": 200, "msg": "The operation of cancel all open order is done."}
    async with exchange(lambda request: done) as asked:
        await asked.trading.cancel_all("BTCUSDT")
        assert asked.requests == [
            ("DELETE", "/fapi/v1/allOpenOrders", {"symbol": "BTCUSDT"}),
            ("DELETE", "/fapi/v1/algoOpenOrders", {"symbol": "BTCUSDT"}),
        ]


async def test_an_order_is_looked_up_by_our_own_id() -> None:
    async with exchange(lambda request: {**ORDER_BODY, "avgPrice": "84551.15", "cumQuote": "1691.0"}) as asked:
        report = await asked.trading.order("BTCUSDT", OURS)
        assert report is not None
        assert (report.source, report.average_price) == ("query", Decimal("84551.15"))
        assert asked.requests == [("GET", "/fapi/v1/order", {"symbol": "BTCUSDT", "origClientOrderId": OURS})]

    async with exchange(lambda request: failing(400, -2013, "Order does not exist.")) as asked:
        assert await asked.trading.order("BTCUSDT", OURS) is None
        assert await asked.trading.stop(STOP_ID) is None


async def test_a_triggered_stop_names_the_order_that_it_became() -> None:
    triggered = {**ALGO_BODY, "algoStatus": "FINISHED", "actualOrderId": "974828356187", "actualPrice": "79999.0"}
    async with exchange(lambda request: [triggered] if "open" in request.path else triggered) as asked:
        found = await asked.trading.stop(STOP_ID)
        assert found is not None
        assert (found.order_id, found.status, found.source) == (974828356187, StopStatus.FINISHED, "query")
        assert await asked.trading.open_stops() == [found]


async def test_an_order_of_a_status_that_nobody_knows_is_malformed() -> None:
    async with exchange(lambda request: [{**ORDER_BODY, "status": "HALF"}]) as asked:
        with pytest.raises(Malformed):
            await asked.trading.open_orders()


async def test_a_read_is_repeated_and_a_ban_stops_everything() -> None:
    answers = iter([failing(503, 0, "Service Unavailable."), failing(500), failing(400, -1021)])

    async with exchange(lambda request: next(answers, [])) as asked:
        assert await asked.trading.open_orders() == []
        assert (len(asked.requests), asked.offsets_measured) == (4, 1)

    async with exchange(lambda request: failing(429, -1003, **{"Retry-After": "7"})) as asked:
        with pytest.raises(RateLimited) as caught:
            await asked.trading.open_orders()
        assert caught.value.retry_after_s == 7
        with pytest.raises(RateLimited):
            await asked.trading.place_order(ORDER)
        assert len(asked.requests) == 1


async def test_positions_and_account_are_read() -> None:
    row = {
        "symbol": "BTCUSDT",
        "positionSide": "BOTH",
        "positionAmt": "-0.020",
        "entryPrice": "84551.1",
        "breakEvenPrice": "84500",
        "markPrice": "84000.00000000",
        "unRealizedProfit": "11.022",
        "liquidationPrice": "110000.5",
        "isolatedMargin": "560.1",
        "notional": "-1680",
        "marginAsset": "USDT",
        "isolatedWallet": "549.1",
        "adl": 1,
        "updateTime": NOW - 60_000,
    }

    def answer(request: web.Request) -> Answer:
        if request.path == "/fapi/v3/account":
            return {
                "totalWalletBalance": "10000.5",
                "totalUnrealizedProfit": "11.022",
                "availableBalance": "9451.4",
                "assets": [],
                "positions": [],
            }
        return [row, {**row, "symbol": "ETHUSDT", "positionAmt": "0.000", "liquidationPrice": "0"}]

    async with exchange(answer) as asked:
        assert await asked.trading.positions() == [
            ExchangePosition(
                symbol="BTCUSDT",
                quantity=Decimal("-0.020"),
                entry_price=Decimal("84551.1"),
                unrealized_pnl=Decimal("11.022"),
                isolated=True,
                liquidation_price=Decimal("110000.5"),
                mark_price=Decimal(84000),
                updated_at=NOW - 60_000,
            )
        ]
        account = await asked.trading.account()
        assert account == AccountSnapshot(
            wallet=Decimal("10000.5"), available=Decimal("9451.4"), unrealized_pnl=Decimal("11.022"), updated_at=NOW
        )
        assert account.equity == Decimal("10011.522")


def a_trade(number: int) -> dict[str, Any]:
    return {
        "buyer": False,
        "commission": "0.5",
        "commissionAsset": "USDT",
        "id": number,
        "maker": False,
        "orderId": 5,
        "price": "84551.1",
        "qty": "0.012",
        "quoteQty": "1014",
        "realizedPnl": "-1.25",
        "side": "SELL",
        "positionSide": "BOTH",
        "symbol": "BTCUSDT",
        "time": NOW - 10_000 + number,
    }


async def test_fills_come_in_order_and_in_as_many_pages_as_there_are() -> None:
    trades = [a_trade(number) for number in range(1, 2_500)]

    def answer(request: web.Request) -> Answer:
        first = int(request.query.get("fromId", 1))
        assert ("startTime" in request.query) == (first == 1)
        return list(reversed(trades[first - 1 :][:1000]))

    async with exchange(answer) as asked:
        fills = await asked.trading.fills("BTCUSDT", since=NOW - 60_000)
        assert [fill.trade_id for fill in fills] == list(range(1, 2_500))
        assert fills[0] == Fill(
            symbol="BTCUSDT",
            trade_id=1,
            order_id=5,
            client_id="",
            side="sell",
            price=Decimal("84551.1"),
            quantity=Decimal("0.012"),
            fee=Decimal("0.5"),
            fee_asset="USDT",
            realized_pnl=Decimal("-1.25"),
            is_maker=False,
            traded_at=NOW - 9_999,
            received_at=NOW,
        )
        assert len(asked.requests) == 3


async def test_fills_of_an_order_and_of_long_ago_are_asked_for_as_allowed() -> None:
    async with exchange(lambda request: []) as asked:
        await asked.trading.fills("BTCUSDT", order_id=5)
        await asked.trading.fills("BTCUSDT", since=0)
        assert asked.requests[0][2] == {"symbol": "BTCUSDT", "limit": "1000", "orderId": "5"}
        assert int(asked.requests[1][2]["startTime"]) > NOW - 7 * 86_400_000


@pytest.mark.parametrize("newest_first", [False, True])
async def test_income_is_whole_whatever_the_order_of_a_page(newest_first: bool) -> None:
    rows = [
        {
            "symbol": "BTCUSDT" if number % 2 else "",
            "incomeType": "FUNDING_FEE" if number % 3 else "TRANSFER",
            "income": "-0.5",
            "asset": "USDT",
            "info": "",
            "time": NOW + number // 3,
            "tranId": 9_000 + number,
            "tradeId": "",
        }
        for number in range(2_500)
    ]

    def answer(request: web.Request) -> Answer:
        start, end = int(request.query["startTime"]), int(request.query["endTime"])
        inside = [row for row in rows if start <= row["time"] <= end]
        return list(reversed(inside))[:1000] if newest_first else inside[:1000]

    async with exchange(answer) as asked:
        found = await asked.trading.income(NOW, NOW + 800)

    assert [income.income_id for income in found] == list(range(9_000, 9_000 + 2_400))
    assert found[1] == Income(
        income_id=9_001, kind="FUNDING_FEE", symbol="BTCUSDT", asset="USDT", amount=Decimal("-0.5"), at=NOW
    )


async def test_margin_is_told_and_set() -> None:
    def answer(request: web.Request) -> Answer:
        if request.path == "/fapi/v1/symbolConfig":
            return [{"symbol": "BTCUSDT", "marginType": "CROSSED", "isAutoAddMargin": False, "leverage": 21}]
        if request.path == "/fapi/v1/marginType":
            return failing(400, -4046, "No need to change margin type.")
        return {"leverage": 3, "maxNotionalValue": "1000000", "symbol": "BTCUSDT"}

    async with exchange(answer) as asked:
        assert await asked.trading.margin("BTCUSDT") == SymbolMargin(isolated=False, leverage=21)
        await asked.trading.set_isolated("BTCUSDT")
        await asked.trading.set_leverage("BTCUSDT", 3)
        with pytest.raises(Refused):
            await asked.trading.set_leverage("BTCUSDT", 5)
        assert asked.requests[1] == ("POST", "/fapi/v1/marginType", {"symbol": "BTCUSDT", "marginType": "ISOLATED"})

    async with exchange(lambda request: failing(400, -4048, "Margin type cannot be changed")) as asked:
        with pytest.raises(Refused):
            await asked.trading.set_isolated("BTCUSDT")


async def test_permissions_are_asked_of_the_spot_side_where_there_is_one() -> None:
    def answer(request: web.Request) -> Answer:
        if request.path == "/fapi/v1/accountConfig":
            return {"feeTier": 0, "canTrade": True, "canDeposit": True, "dualSidePosition": False}
        return {"ipRestrict": True, "enableReading": True, "enableWithdrawals": False, "enableFutures": True}

    async with exchange(answer) as asked:
        told = await asked.trading.permissions()
        assert told == KeyPermissions(can_trade=True, can_withdraw=None, bound_to_address=None)
        asked.trading._spot_url = asked.trading._base_url
        told = await asked.trading.permissions()
        assert told == KeyPermissions(can_trade=True, can_withdraw=False, bound_to_address=True)


async def test_modes_of_the_account_are_told() -> None:
    def answer(request: web.Request) -> Answer:
        return {"dualSidePosition": True} if "positionSide" in request.path else {"multiAssetsMargin": False}

    async with exchange(answer) as asked:
        assert await asked.trading.is_hedge_mode() is True
        assert await asked.trading.is_multi_assets_mode() is False


async def test_a_listen_key_is_made_and_kept_without_a_signature() -> None:
    async with exchange(lambda request: {"listenKey": "a" * 64}) as asked:
        assert await asked.trading.make_listen_key() == "a" * 64
        await asked.trading.keep_listen_key()
        assert asked.requests == [("POST", "/fapi/v1/listenKey", {}), ("PUT", "/fapi/v1/listenKey", {})]

    async with exchange(lambda request: failing(400, -1125, "This listenKey does not exist.")) as asked:
        with pytest.raises(Refused) as caught:
            await asked.trading.keep_listen_key()
        assert caught.value.code == -1125

    async with exchange(lambda request: {"listenKey": "a/../b?x"}) as asked:
        with pytest.raises(Malformed):
            await asked.trading.make_listen_key()


async def test_no_error_and_no_log_tells_the_key_or_a_signature(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    texts = []
    for status in (400, 401, 403, 429, 500, 503):
        async with exchange(lambda request, status=status: failing(status, -2015, "no")) as asked:
            for call in (asked.trading.place_order(ORDER), asked.trading.account(), asked.trading.make_listen_key()):
                with pytest.raises(PerplineError) as caught:
                    await call
                texts.append(str(caught.value))
            texts.append(repr(vars(asked.trading)))
    async with exchange(lambda request: ORDER_BODY, url=f"http://127.0.0.1:{unused_port()}") as asked:
        with pytest.raises(PerplineError) as caught:
            await asked.trading.place_order(ORDER)
        texts.append(str(caught.value))

    logged = [record.getMessage() for record in caplog.records if record.name != "aiohttp.access"]  # the server's own
    shown = "\n".join([*texts, *logged])
    assert "HTTP 503" in shown
    for secret in (KEY, SECRET, "signature="):
        assert secret not in shown


async def test_a_request_without_weight_goes_out_although_the_budget_is_used_up() -> None:
    async with exchange(lambda request: ORDER_BODY) as asked:
        permit = await asked.ledger.acquire(1920, priority="orders")
        asked.ledger.done(permit)
        assert await asked.trading.place_order(ORDER) == REPORT


async def test_a_given_session_is_not_closed() -> None:
    async with aiohttp.ClientSession() as session, exchange(lambda request: [], session=session) as asked:
        await asked.trading.open_orders()
        await asked.trading.close()
        assert not session.closed
