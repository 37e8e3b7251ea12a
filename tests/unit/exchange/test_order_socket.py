"""OrderSocket against a small server that is a function, written from the protocol sheet."""

import asyncio
import base64
import hashlib
import hmac
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
import structlog
from aiohttp import WSMsgType, web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from perpline.common.clock import SystemClock
from perpline.common.errors import PerplineError, RateLimited, Refused, Unavailable
from perpline.domain.order import OrderReport, OrderRequest, OrderStatus, StopReport, StopRequest, StopStatus
from perpline.exchange.binance.credentials import Credentials, make_credentials
from perpline.exchange.binance.order_rate import OrderRate
from perpline.exchange.binance.order_socket import OrderSocket
from perpline.exchange.binance.weight import WeightLedger

KEY, SECRET = "abcdEFGH0123456789abcdEFGH0123456789", "s3cretS3CRETs3cretS3CRETs3cretS3CRET"
PRIVATE = Ed25519PrivateKey.generate()
PEM = PRIVATE.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()

ORDER = OrderRequest(symbol="BTCUSDT", side="sell", quantity=Decimal("0.020"), client_id="x.1.a.0", reduce_only=True)
STOP = StopRequest(symbol="BTCUSDT", side="buy", trigger_price=Decimal("90000.10"), client_algo_id="s.1.a.0")
LIMITS = [
    {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 2400, "count": 1},
    {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": 300, "count": 7},
    {"rateLimitType": "ORDERS", "interval": "MINUTE", "intervalNum": 1, "limit": 1200, "count": 9},
]

Answer = dict[str, Any] | bytes | None
Exchange = Callable[[dict[str, Any]], Answer]


def taken(request: dict[str, Any]) -> Answer:
    """The answer of an exchange that takes everything."""
    params = request.get("params", {})
    if request["method"] == "order.place":
        result: dict[str, Any] = {
            "orderId": 5,
            "symbol": params["symbol"],
            "status": "FILLED",
            "clientOrderId": params["newClientOrderId"],
            "origQty": params["quantity"],
            "executedQty": params["quantity"],
            "reduceOnly": params.get("reduceOnly") == "true",
            "side": params["side"],
            "type": "MARKET",
            "origType": "MARKET",
            "updateTime": params["timestamp"],
        }
    elif request["method"] == "algoOrder.place":
        result = {
            "algoId": 6,
            "clientAlgoId": params["clientAlgoId"],
            "orderType": "STOP_MARKET",
            "symbol": params["symbol"],
            "side": params["side"],
            "algoStatus": "NEW",
            "quantity": "0",
            "triggerPrice": params["triggerPrice"],
            "closePosition": True,
            "updateTime": params["timestamp"],
        }
    else:
        result = {"apiKey": None, "serverTime": 1}
    limits = [] if request["method"].startswith("session.") else LIMITS
    return {"id": request["id"], "status": 200, "result": result, "rateLimits": limits}


def failing(status: int, code: int, text: str = "no") -> Exchange:
    def answer(request: dict[str, Any]) -> Answer:
        if request["method"].startswith("session."):
            return taken(request)
        return {"id": request["id"], "status": status, "error": {"code": code, "msg": text}}

    return answer


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 what is waited for tells nobody
            await asyncio.sleep(0.01)


class Asked:
    """An OrderSocket in front of a server, what the server was asked, and what was told."""

    def __init__(self) -> None:
        self.clock = SystemClock()
        self.rate = OrderRate(self.clock)
        self.ledger = WeightLedger(self.clock)
        self.requests: list[dict[str, Any]] = []
        self.connections: list[web.WebSocketResponse] = []
        self.told: asyncio.Queue[tuple[str, Any, Any]] = asyncio.Queue()
        self.offsets_measured = asyncio.Event()
        self.socket: OrderSocket

    async def measure_offset(self) -> None:
        self.offsets_measured.set()

    async def ready(self, connects: int = 1) -> None:
        await until(lambda: self.socket.is_ready and self.socket.connects >= connects)

    async def next(self) -> tuple[str, Any, Any]:
        async with asyncio.timeout(10):
            return await self.told.get()


@asynccontextmanager
async def exchange(
    answer: Exchange = taken, credentials: Credentials | None = None, **settings: Any
) -> AsyncIterator[Asked]:
    asked = Asked()

    async def handle(request: web.Request) -> web.WebSocketResponse:
        connection = web.WebSocketResponse()
        await connection.prepare(request)
        asked.connections.append(connection)
        async for message in connection:
            if message.type is WSMsgType.TEXT:
                asked.requests.append(json.loads(message.data))
                found = answer(asked.requests[-1])
                if isinstance(found, bytes):
                    await connection.send_str(found.decode())
                elif found is not None:
                    await connection.send_json(found)
        return connection

    app = web.Application()
    app.router.add_get("/ws-fapi/v1", handle)
    async with TestServer(app) as server:
        asked.socket = OrderSocket(
            str(server.make_url("/ws-fapi/v1")).replace("http", "ws", 1),
            credentials or make_credentials(KEY, SECRET, "here"),
            asked.clock,
            random.Random(1),
            asked.rate,
            asked.ledger,
            on_report=lambda report: asked.told.put_nowait(("report", report, None)),
            on_refused=lambda name, error: asked.told.put_nowait(("refused", name, error)),
            on_unknown=lambda name: asked.told.put_nowait(("unknown", name, None)),
            measure_offset=asked.measure_offset,
            **settings,
        )
        task = asyncio.create_task(asked.socket.run())
        try:
            yield asked
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            for connection in asked.connections:
                await connection.close()


async def test_an_order_is_sent_signed_and_its_answer_reported() -> None:
    async with exchange() as asked:
        await asked.ready()
        assert asked.socket.send(ORDER)
        kind, report, _ = await asked.next()

        request = asked.requests[-1]
        params = request["params"]
        signature = params.pop("signature")
        text = "&".join(f"{name}={params[name]}" for name in sorted(params))
        assert signature == hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).hexdigest()
        assert abs(params.pop("timestamp") - asked.clock.now_ms()) < 5_000
        assert request["method"] == "order.place"
        assert params == {
            "apiKey": KEY,
            "newClientOrderId": "x.1.a.0",
            "newOrderRespType": "RESULT",
            "quantity": "0.020",
            "recvWindow": 5000,
            "reduceOnly": "true",
            "side": "SELL",
            "symbol": "BTCUSDT",
            "type": "MARKET",
        }
    assert kind == "report"
    assert isinstance(report, OrderReport)
    assert (report.client_id, report.order_id, report.status, report.filled, report.source) == (
        "x.1.a.0",
        5,
        OrderStatus.FILLED,
        Decimal("0.020"),
        "answer",
    )


async def test_a_stop_is_sent_as_a_conditional_order_that_closes_the_position() -> None:
    async with exchange() as asked:
        await asked.ready()
        assert asked.socket.send_stop(STOP)
        kind, report, _ = await asked.next()
        params = asked.requests[-1]["params"]
        assert asked.requests[-1]["method"] == "algoOrder.place"
        assert (params["type"], params["closePosition"], params["workingType"], params["triggerPrice"]) == (
            "STOP_MARKET",
            "true",
            "MARK_PRICE",
            "90000.10",
        )
    assert kind == "report"
    assert isinstance(report, StopReport)
    assert (report.client_algo_id, report.algo_id, report.status) == ("s.1.a.0", 6, StopStatus.NEW)


async def test_an_ed25519_key_logs_on_once_and_then_sends_without_a_signature() -> None:
    async with exchange(credentials=make_credentials(KEY, PEM, "here")) as asked:
        await asked.ready()
        log_on = asked.requests[0]
        assert log_on["method"] == "session.logon"
        signature = base64.b64decode(log_on["params"].pop("signature"))
        params = log_on["params"]
        PRIVATE.public_key().verify(signature, "&".join(f"{name}={params[name]}" for name in sorted(params)).encode())
        assert params["apiKey"] == KEY

        asked.socket.send(ORDER)
        assert (await asked.next())[0] == "report"
        assert not {"apiKey", "signature"} & set(asked.requests[-1]["params"])


async def test_without_a_connection_nothing_is_written() -> None:
    async with exchange() as asked:
        assert not asked.socket.is_ready
        assert not asked.socket.send(ORDER)
        assert not asked.socket.send_stop(STOP)
        assert asked.told.empty()


async def test_a_key_that_is_refused_never_makes_the_socket_ready() -> None:
    def answer(request: dict[str, Any]) -> Answer:
        return {"id": request["id"], "status": 401, "error": {"code": -2015, "msg": "Invalid API-key"}}

    async with exchange(answer, credentials=make_credentials(KEY, PEM, "here")) as asked:
        await until(lambda: asked.socket.last_error)
        assert "-2015" in asked.socket.last_error
        assert not asked.socket.send(ORDER)


@pytest.mark.parametrize(
    ("status", "code", "text", "kind", "error"),
    [
        (400, -2022, "ReduceOnly Order is rejected.", "refused", Refused),
        (400, -1008, "Request throttled by system-level protection.", "refused", Unavailable),
        (503, -1001, "Internal error; unable to process your request. Please try again.", "refused", Unavailable),
        (429, -1003, "Too many requests", "refused", RateLimited),
        (429, -1015, "Too many new orders", "refused", RateLimited),
        (408, -1007, "Timeout waiting for response from backend server.", "unknown", None),
        (503, -1000, "Unknown error, please check your request or try again later.", "unknown", None),
        (500, 0, "", "unknown", None),
    ],
)
async def test_a_refusal_says_whether_anything_can_have_happened(
    status: int, code: int, text: str, kind: str, error: type[PerplineError] | None
) -> None:
    async with exchange(failing(status, code, text)) as asked:
        await asked.ready()
        asked.socket.send(ORDER)
        told, name, found = await asked.next()
        assert (told, name) == (kind, "x.1.a.0")
        assert found is None if error is None else type(found) is error
        if code == -1015:
            assert not asked.rate.take(closes=True)
        if code == -1003:
            assert asked.ledger.blocked_until
        assert sum(request["method"] == "order.place" for request in asked.requests) == 1


async def test_a_wrong_time_has_the_clock_measured() -> None:
    async with exchange(failing(400, -1021, "Timestamp for this request is outside of the recvWindow.")) as asked:
        await asked.ready()
        asked.socket.send(ORDER)
        told, _, error = await asked.next()
        assert told == "refused"
        assert isinstance(error, Unavailable)
        await asyncio.wait_for(asked.offsets_measured.wait(), 5)


async def test_without_an_answer_in_time_nobody_knows_and_a_late_one_changes_nothing() -> None:
    def answer(request: dict[str, Any]) -> Answer:
        return taken(request) if request["method"].startswith("session.") else None

    async with exchange(answer, answer_within_s=0.3) as asked:
        await asked.ready()
        asked.socket.send(ORDER)
        assert await asked.next() == ("unknown", "x.1.a.0", None)
        await asked.connections[0].send_json(taken(asked.requests[-1]))
        asked.socket.send_stop(STOP)
        assert await asked.next() == ("unknown", "s.1.a.0", None)
        assert asked.told.empty()


@pytest.mark.parametrize(
    "answer_text",
    [
        '{"id":2,"status":200,"result":{"orderId":"five"}}',
        '{"id":2,"status":200}',
        '{"id":2,"status":200,"result":{"orderId":5,"symbol":"BTCUSDT","status":"NEW","clientOrderId":"y",'
        '"origQty":"1","side":"BUY"}}',
        '{"id":2,"status":200,"result":{"orderId":5,"symbol":"BTCUSDT","status":"HALF","clientOrderId":"x.1.a.0",'
        '"origQty":"1","side":"BUY"}}',
    ],
)
async def test_an_answer_that_makes_no_sense_leaves_the_outcome_unknown(answer_text: str) -> None:
    def answer(request: dict[str, Any]) -> Answer:
        return taken(request) if request["method"].startswith("session.") else answer_text.encode()

    async with exchange(answer) as asked:
        await asked.ready()
        asked.socket.send(ORDER)
        assert await asked.next() == ("unknown", "x.1.a.0", None)


async def test_garbage_is_passed_over() -> None:
    async with exchange() as asked:
        await asked.ready()
        for text in ("", "nonsense", "[]", "null", '{"id":99,"status":200}', '{"id":"other","status":400}'):
            await asked.connections[0].send_str(text)
        asked.socket.send(ORDER)
        assert (await asked.next())[0] == "report"
        assert asked.socket.malformed == 4


async def test_a_lost_connection_leaves_what_was_under_way_unknown_and_comes_back() -> None:
    def answer(request: dict[str, Any]) -> Answer:
        return taken(request) if request["method"].startswith("session.") else None

    async with exchange(answer) as asked:
        await asked.ready()
        asked.socket.send(ORDER)
        asked.socket.send_stop(STOP)
        await until(lambda: len(asked.requests) == 3)
        asked.connections[0]._req.transport.abort()
        assert {(await asked.next())[:2], (await asked.next())[:2]} == {
            ("unknown", "x.1.a.0"),
            ("unknown", "s.1.a.0"),
        }
        assert not asked.socket.send(ORDER)
        await asked.ready(connects=2)
        assert asked.socket.send(ORDER)


async def test_a_connection_is_renewed_before_the_exchange_ends_it_and_nothing_is_lost() -> None:
    async with exchange(renew_after_s=0.2) as asked:
        await asked.ready(connects=3)
        assert asked.socket.failures == 0
        await asked.ready()
        if asked.socket.send(ORDER):
            assert (await asked.next())[0] == "report"


async def test_the_counts_of_the_exchange_are_heard_and_kept_to() -> None:
    async with exchange() as asked:
        await asked.ready()
        asked.socket.send(ORDER)
        await asked.next()
        assert asked.rate.facts() == {"10": {"used": 7, "limit": 300}, "60": {"used": 9, "limit": 1200}}
        asked.rate.block(10)
        assert not asked.socket.send(ORDER)
        assert asked.ledger.used == 7


async def test_an_order_is_written_before_the_call_returns() -> None:
    async with exchange() as asked:
        await asked.ready()
        loop_turned = asyncio.Event()
        asyncio.get_running_loop().call_soon(loop_turned.set)
        for number in range(50):
            order = OrderRequest(
                symbol="BTCUSDT", side="sell", quantity=Decimal(1), client_id=f"x.1.a.{number}", reduce_only=True
            )
            assert asked.socket.send(order)
        assert not loop_turned.is_set()
        assert {(await asked.next())[1].client_id for _ in range(50)} == {f"x.1.a.{number}" for number in range(50)}


async def test_no_log_tells_the_key_or_a_signature() -> None:
    with structlog.testing.capture_logs() as logs:
        for answer in (taken, failing(401, -2015), lambda request: b"nonsense"):
            async with exchange(answer, answer_within_s=0.3) as asked:
                await until(lambda asked=asked: asked.socket.is_ready or asked.socket.last_error)
                if asked.socket.send(ORDER):
                    await asked.next()
                facts = json.dumps(asked.socket.facts())
                assert KEY not in facts
    text = json.dumps(logs, default=str)
    assert "order_socket" in text
    for secret in (KEY, SECRET, "signature"):
        assert secret not in text
