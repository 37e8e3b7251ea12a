"""The order WebSocket API (binance.md 6): an order is on the wire before the call that sends it returns."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog
from msgspec import Struct
from picows import WSError, WSMsgType, WSTransport, ws_connect

from perpline.common.backoff import backoff_s
from perpline.common.clock import Clock
from perpline.common.errors import Malformed, OutcomeUnknown, PerplineError, RateLimited, Unavailable
from perpline.common.telemetry import LatencyWindow
from perpline.common.websocket import Listener, close_transport, protocol_error
from perpline.domain.order import OrderReport, OrderRequest, StopReport, StopRequest
from perpline.exchange.binance import endpoints
from perpline.exchange.binance.credentials import Credentials
from perpline.exchange.binance.errors import TOO_MANY_ORDERS, ClockOff, banned_until_ms, order_error
from perpline.exchange.binance.messages import AlgoOrderBody, OrderBody, SocketAnswer
from perpline.exchange.binance.order_rate import OrderRate
from perpline.exchange.binance.signing import socket_text
from perpline.exchange.binance.trading_rest import decimal_text, receive_window_ms
from perpline.exchange.binance.user_events import order_report, stop_report
from perpline.exchange.binance.weight import WeightLedger

log = structlog.get_logger("perpline.orders")

ANSWER_WITHIN_S = 5.0
"""Without an answer for so long, wall seconds, nobody knows what became of an order, and it is looked up."""
RENEW_AFTER_S = 23 * 3600.0
"""The exchange ends a connection after 24 hours of its time; we do before, while nothing is under way."""
MAX_UNDER_WAY = 2000
"""Orders without an answer. With more of them the socket is no way to send another."""

_LOOK_EVERY_S = 0.25
_HANDSHAKE_S = 10.0
_PING_AFTER_S = 10.0
_PONG_WITHIN_S = 5.0
_LONGEST_WAIT_S = 30.0
_STEADY_AFTER_S = 20.0
"""A connection that held so long is replaced at once, a shorter one after a pause."""


class OrderSocket:
    """Sends orders and protective stops over one connection that it keeps.

    `send` and `send_stop` write the frame before they return; False means that nothing was written: the socket is not
    ready, the account has sent as many orders as it may, or too many are without an answer. For each order that was
    written exactly one of three is called, on a later turn of the loop: `on_report`, `on_refused(id, error)` (it has
    not happened) or `on_unknown(id)` (no answer in time, one that makes no sense, or the connection was lost).

    With an Ed25519 key the session is logged on once; with an HMAC secret each request is signed. `measure_offset` is
    called where the exchange says that our time is wrong.
    """

    def __init__(
        self,
        url: str,
        credentials: Credentials,
        clock: Clock,
        rng: random.Random,
        rate: OrderRate,
        weight: WeightLedger,
        *,
        on_report: Callable[[OrderReport | StopReport], None],
        on_refused: Callable[[str, PerplineError], None],
        on_unknown: Callable[[str], None],
        measure_offset: Callable[[], Awaitable[None]],
        answer_within_s: float = ANSWER_WITHIN_S,
        renew_after_s: float = RENEW_AFTER_S,
    ) -> None:
        self.connects = 0
        """Times that it became ready."""
        self.failures = 0
        """In a row, each within a few seconds."""
        self.sent = 0
        self.malformed = 0
        self.last_error = ""
        self.answers = LatencyWindow(1024)
        """Wall milliseconds from an order to its answer."""
        self._url = url
        self._credentials = credentials
        self._clock = clock
        self._rng = rng
        self._rate = rate
        self._weight = weight
        self._on_report = on_report
        self._on_refused = on_refused
        self._on_unknown = on_unknown
        self._measure_offset = measure_offset
        self._answer_within_s = answer_within_s
        self._renew_after_s = renew_after_s
        self._transport: WSTransport | None = None
        """Of the connection that orders may be written to."""
        self._signs_each = credentials.signer.kind == "hmac"
        self._number = 0
        self._under_way: dict[int, _Order] = {}
        self._greeting: tuple[int, asyncio.Future[SocketAnswer]] | None = None
        self._measuring: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether an order would be written at once."""
        return self._transport is not None and not self._transport.is_disconnected

    def send(self, order: OrderRequest) -> bool:
        params: dict[str, str | int] = {
            "newClientOrderId": order.client_id,
            "newOrderRespType": "RESULT",
            "quantity": decimal_text(order.quantity),
            "side": order.side.upper(),
            "symbol": order.symbol,
            "type": order.kind.upper(),
        }
        if order.reduce_only:
            params["reduceOnly"] = "true"
        if order.price is not None:
            params["price"] = decimal_text(order.price)
        if order.time_in_force is not None:
            params["timeInForce"] = order.time_in_force
        return self._write("order.place", params, order.client_id, order.symbol, closes=order.reduce_only)

    def send_stop(self, stop: StopRequest) -> bool:
        params: dict[str, str | int] = {
            "algoType": "CONDITIONAL",
            "clientAlgoId": stop.client_algo_id,
            "closePosition": "true",
            "side": stop.side.upper(),
            "symbol": stop.symbol,
            "triggerPrice": decimal_text(stop.trigger_price),
            "type": "STOP_MARKET",
            "workingType": "MARK_PRICE",
        }
        return self._write("algoOrder.place", params, stop.client_algo_id, stop.symbol, closes=True)

    async def run(self) -> None:
        """Keep the connection until cancelled."""
        try:
            while True:
                began_s = self._clock.wall_s()
                reason = await self._live_once()
                lived_s = self._clock.wall_s() - began_s
                self.failures = self.failures + 1 if reason and lived_s < _STEADY_AFTER_S else 0
                self.last_error = reason
                wait_s = backoff_s(self.failures, self._rng, _LONGEST_WAIT_S)
                if reason:
                    log.warning("order_socket_lost", reason=reason, wait_s=round(wait_s, 2), action="orders")
                await self._clock.sleep_wall(wait_s)
        finally:
            if self._measuring is not None:
                self._measuring.cancel()

    def facts(self) -> dict[str, Any]:
        """For /status: plain JSON values."""
        return {
            "ready": self.is_ready,
            "connects": self.connects,
            "sent": self.sent,
            "under_way": len(self._under_way),
            "malformed": self.malformed,
            "last_error": self.last_error,
            "answer_ms": self.answers.summary(),
            "orders": self._rate.facts(),
        }

    # ---- sending ----

    def _write(self, method: str, params: dict[str, str | int], name: str, symbol: str, *, closes: bool) -> bool:
        transport = self._transport
        if transport is None or transport.is_disconnected or len(self._under_way) >= MAX_UNDER_WAY:
            return False
        if not self._rate.take(closes=closes):
            return False
        frame = self._frame(method, params, signed=self._signs_each)
        self._under_way[self._number] = _Order(name, symbol, method, self._clock.wall_s())
        transport.send(WSMsgType.TEXT, frame)
        self.sent += 1
        return True

    def _frame(self, method: str, params: dict[str, str | int], *, signed: bool) -> bytes:
        """A request of the next number."""
        params["recvWindow"] = receive_window_ms(self._clock)
        params["timestamp"] = self._clock.exchange_now_ms()
        if signed:
            params["apiKey"] = self._credentials.api_key
            params["signature"] = self._credentials.signer.sign(socket_text(params))
        self._number += 1
        return _encode({"id": self._number, "method": method, "params": params})

    # ---- the connection ----

    async def _live_once(self) -> str:
        """Connect, log on, watch; returns why it is over, empty for an end that we planned."""
        try:
            # The handshake and the logging on, which costs two.
            permit = await self._weight.acquire(endpoints.ORDER_SOCKET_HANDSHAKE.cost + 2, priority="orders")
        except Unavailable as error:
            return str(error)
        try:
            transport, listener = await ws_connect(
                lambda: Listener(self._receive, self._clock),
                self._url,
                websocket_handshake_timeout=_HANDSHAKE_S,
                enable_auto_pong=False,  # the listener does
                enable_auto_ping=True,
                auto_ping_idle_timeout=_PING_AFTER_S,
                auto_ping_reply_timeout=_PONG_WITHIN_S,
                logger_name="orders",
            )
        except (OSError, TimeoutError, WSError) as error:
            return f"could not connect to {self._url}: {error or type(error).__name__}"
        finally:
            self._weight.done(permit)
        assert isinstance(listener, Listener)
        try:
            reason = await self._log_on(transport, listener)
            if reason:
                return reason
            self._transport = transport
            self.connects += 1
            log.info("order_socket_ready", action="orders")
            return await self._watch(transport, listener)
        finally:
            self._transport = None
            await close_transport(transport)
            lost, self._under_way = self._under_way, {}
            for order in lost.values():
                self._on_unknown(order.name)

    async def _log_on(self, transport: WSTransport, listener: Listener) -> str:
        """Log on, or with a key that cannot, hear the other side once; returns what is wrong, empty for nothing."""
        if self._signs_each:
            self._number += 1
            frame = _encode({"id": self._number, "method": "session.status"})
        else:
            frame = self._frame("session.logon", {}, signed=True)
        heard: asyncio.Future[SocketAnswer] = asyncio.get_running_loop().create_future()
        self._greeting = (self._number, heard)
        transport.send(WSMsgType.TEXT, frame)
        ended = asyncio.ensure_future(listener.ended.wait())
        try:
            await asyncio.wait((heard, ended), timeout=self._answer_within_s, return_when=asyncio.FIRST_COMPLETED)
            if not heard.done():
                return listener.reason or "it was closed before it answered" if ended.done() else "it does not answer"
        finally:
            ended.cancel()
            self._greeting = None
        answer = heard.result()
        if answer.status == 200:
            return ""
        error = self._error("session", answer)
        if isinstance(error, ClockOff):
            self._measure()
        return str(error)

    async def _watch(self, transport: WSTransport, listener: Listener) -> str:
        ready_at = self._clock.now_ms()
        while True:
            try:
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await listener.ended.wait()
                return await protocol_error(transport) or listener.reason or "the other side closed the connection"
            except TimeoutError:
                pass  # time to look
            now = self._clock.wall_s()
            late = [number for number, order in self._under_way.items() if now - order.sent_s > self._answer_within_s]
            for number in late:
                order = self._under_way.pop(number)
                log.warning("order_not_answered", client_id=order.name, symbol=order.symbol, action="look up")
                self._on_unknown(order.name)
            if not self._under_way and self._clock.now_ms() - ready_at > self._renew_after_s * 1000:
                return ""

    # ---- hearing ----

    def _receive(self, batch: list[bytes], received_us: int) -> None:
        for data in batch:
            try:
                answer = _decode(data)
            except _UNREADABLE:
                self.malformed += 1
                log.warning("order_answer_malformed", beginning=repr(data[:100])[1:], action="look up")
                continue
            self._rate.observe_answer(answer.rate_limits)
            self._take(answer, received_us // 1000)

    def _take(self, answer: SocketAnswer, received_at: int) -> None:
        if self._greeting is not None and answer.id == self._greeting[0]:
            if not self._greeting[1].done():
                self._greeting[1].set_result(answer)
            return
        order = self._under_way.pop(answer.id, None) if isinstance(answer.id, int) else None
        if order is None:
            # Late, of a connection before, or of no request: a key that was revoked (401).
            if answer.status not in (0, 200):
                log.warning("order_socket_complains", reason=str(self._error("session", answer)), action="orders")
            return
        self.answers.add((self._clock.wall_s() - order.sent_s) * 1000)
        if answer.status == 200:
            self._take_result(order, answer, received_at)
            return
        error = self._error(f"{order.method} {order.symbol}", answer)
        if isinstance(error, ClockOff):
            self._measure()
        if isinstance(error, OutcomeUnknown):
            self._on_unknown(order.name)
        else:
            self._on_refused(order.name, error)

    def _take_result(self, order: "_Order", answer: SocketAnswer, received_at: int) -> None:
        try:
            report: OrderReport | StopReport
            if order.method == "order.place":
                report = order_report(_decode_order(answer.result), "answer", received_at)
                name = report.client_id
            else:
                report = stop_report(_decode_stop(answer.result), "answer", received_at)
                name = report.client_algo_id
            if name != order.name:
                raise Malformed(f"the answer tells of {name!r}")
        except (*_UNREADABLE, Malformed) as error:
            self.malformed += 1
            log.warning("order_answer_malformed", client_id=order.name, reason=str(error)[:200], action="look up")
            self._on_unknown(order.name)
            return
        self._on_report(report)

    def _error(self, what: str, answer: SocketAnswer) -> PerplineError:
        """The error in an answer. What stops orders or requests does so here."""
        code, text = (answer.error.code, answer.error.message) if answer.error else (0, "")
        text = "".join(character if character.isprintable() else " " for character in text[:200])
        error = order_error(what, answer.status, code, text)
        if isinstance(error, RateLimited):
            if code == TOO_MANY_ORDERS:
                self._rate.block(error.retry_after_s or 0.0)
            else:
                status = answer.status if answer.status in (418, 429) else 429
                error.retry_after_s = self._weight.block(status, None, banned_until_ms(text.encode()))
        return error

    def _measure(self) -> None:
        if self._measuring is None or self._measuring.done():
            self._measuring = asyncio.create_task(self._measured(), name="clock offset for orders")

    async def _measured(self) -> None:
        try:
            await self._measure_offset()
        except PerplineError as error:
            log.warning("clock_offset_not_measured", reason=str(error), action="orders")


class _Order(Struct, frozen=True):
    """An order that was written and has no answer yet."""

    name: str
    symbol: str
    method: str
    sent_s: float


_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(SocketAnswer, strict=False).decode
_decode_order = msgspec.json.Decoder(OrderBody, strict=False).decode
_decode_stop = msgspec.json.Decoder(AlgoOrderBody, strict=False).decode
