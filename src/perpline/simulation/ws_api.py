"""The order API over a WebSocket, `/ws-fapi/v1` (binance.md 6): requests of REST paths in another envelope."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

import msgspec

from perpline.simulation.rest import Answer, RequestError
from perpline.simulation.signatures import socket_text

METHODS: Final[dict[str, tuple[str, str]]] = {
    "order.place": ("POST", "/fapi/v1/order"),
    "order.modify": ("PUT", "/fapi/v1/order"),
    "order.cancel": ("DELETE", "/fapi/v1/order"),
    "order.status": ("GET", "/fapi/v1/order"),
    "algoOrder.place": ("POST", "/fapi/v1/algoOrder"),
    "algoOrder.cancel": ("DELETE", "/fapi/v1/algoOrder"),
    "account.position": ("GET", "/fapi/v2/positionRisk"),
    "v2/account.position": ("GET", "/fapi/v3/positionRisk"),
    "account.balance": ("GET", "/fapi/v2/balance"),
    "v2/account.balance": ("GET", "/fapi/v3/balance"),
    "account.status": ("GET", "/fapi/v2/account"),
    "v2/account.status": ("GET", "/fapi/v3/account"),
    "userDataStream.start": ("POST", "/fapi/v1/listenKey"),
    "userDataStream.ping": ("PUT", "/fapi/v1/listenKey"),
    "userDataStream.stop": ("DELETE", "/fapi/v1/listenKey"),
    "depth": ("GET", "/fapi/v1/depth"),
    "ticker.price": ("GET", "/fapi/v2/ticker/price"),
    "ticker.book": ("GET", "/fapi/v1/ticker/bookTicker"),
}
HANDSHAKE_WEIGHT: Final = 5
_NEEDS_NO_KEY: Final = ("depth", "ticker.price", "ticker.book")
_LIMITS: Final = (
    ("x-mbx-used-weight-1m", "REQUEST_WEIGHT", "MINUTE", 1, 2400),
    ("x-mbx-order-count-10s", "ORDERS", "SECOND", 10, 300),
    ("x-mbx-order-count-1m", "ORDERS", "MINUTE", 1, 1200),
)


class Ask(Protocol):
    def __call__(
        self, method: str, path: str, params: dict[str, str], *, key: str | None, signed: str | None
    ) -> Awaitable[Answer | None]:
        """The answer to a request, None where none is to be sent. `signed` None: its sender is known to be `key`."""


class Authenticate(Protocol):
    def __call__(self, params: Mapping[str, str], *, key: str | None, signed_text: str) -> Answer:
        """200 where key, time and an Ed25519 signature are right, else the refusal."""


class Session:
    """One connection: its requests, and who has logged on."""

    def __init__(
        self,
        ask: Ask,
        authenticate: Authenticate,
        now_ms: Callable[[], int],
        *,
        tells_limits: bool = True,
    ) -> None:
        self._ask = ask
        self._authenticate = authenticate
        self._now_ms = now_ms
        self._tells_limits = tells_limits
        self._connected_ms = now_ms()
        self._key = ""
        self._since_ms = 0

    async def reply(self, text: str) -> bytes | None:
        """The answer to one message; None where there is to be none."""
        request_id: int | str | None = None
        try:
            message = _decoded(text)
            request_id = _request_id(message)
            method, params = _method(message), _params(message)
            if method.startswith("session."):
                answer: Answer | None = self._session(method, params)
            else:
                answer = await self._carried_out(method, params)
        except RequestError as error:
            answer = Answer(error.status, msgspec.json.encode({"code": error.code, "msg": str(error)}))
        return None if answer is None else self._envelope(request_id, answer)

    async def _carried_out(self, method: str, params: dict[str, str]) -> Answer | None:
        http_method, path = METHODS[method]
        signed: str | None = socket_text(params)
        key = params.pop("apiKey", None)
        if key is None and "signature" not in params and self._key:
            key, signed = self._key, None
        if key is None and method not in _NEEDS_NO_KEY:
            raise RequestError(-1102, _MISSING.format("apiKey"))
        return await self._ask(http_method, path, params, key=key, signed=signed)

    def _session(self, method: str, params: dict[str, str]) -> Answer:
        if method == "session.logon":
            answer = self._authenticate(params, key=params.get("apiKey"), signed_text=socket_text(params))
            if answer.status != 200:
                return answer
            self._key = params["apiKey"]
            self._since_ms = self._now_ms()
        elif method == "session.logout":
            self._key, self._since_ms = "", 0
        state = {
            "apiKey": self._key or None,
            "authorizedSince": self._since_ms or None,
            "connectedSince": self._connected_ms,
            "returnRateLimits": self._tells_limits,
            "serverTime": self._now_ms(),
        }
        return Answer(200, msgspec.json.encode(state))

    def _envelope(self, request_id: int | str | None, answer: Answer) -> bytes:
        frame: dict[str, Any] = {"id": request_id, "status": answer.status}
        frame["result" if answer.status == 200 else "error"] = _body(answer)
        if self._tells_limits:
            headers = {name.lower(): text for name, text in answer.headers.items()}
            frame["rateLimits"] = [
                {"rateLimitType": kind, "interval": unit, "intervalNum": count, "limit": limit, "count": int(used)}
                for name, kind, unit, count, limit in _LIMITS
                if (used := headers.get(name)) is not None
            ]
        return msgspec.json.encode(frame)


def _body(answer: Answer) -> Any:
    if answer.content_type != "application/json":
        # What answers for the exchange here is a page of a proxy; over a socket only its number would be left.
        return {"code": -1000, "msg": "An unknown error occurred while processing the request."}
    return msgspec.Raw(answer.body)


def _decoded(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise RequestError(-1135, "Invalid JSON Request") from error


def _request_id(message: Mapping[str, Any]) -> int | str | None:
    if "id" not in message:
        return None
    try:
        return msgspec.json.decode(message["id"], type=int | str | None)
    except msgspec.MsgspecError as error:
        raise RequestError(-1100, "Illegal characters found in parameter 'id'.") from error


def _method(message: Mapping[str, Any]) -> str:
    try:
        method = msgspec.json.decode(message["method"], type=str)
    except (KeyError, msgspec.MsgspecError) as error:
        raise RequestError(-1102, _MISSING.format("method")) from error
    if method not in METHODS and method not in ("session.logon", "session.status", "session.logout"):
        raise RequestError(-1130, "Data sent for parameter 'method' is not valid.")
    return method


def _params(message: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as texts; a number keeps the spelling it was sent in, for that is what was signed."""
    try:
        raw = msgspec.json.decode(message.get("params", b"{}"), type=dict[str, msgspec.Raw])
        texts: dict[str, str] = {}
        for name, value in raw.items():
            data = bytes(value)
            texts[name] = msgspec.json.decode(data, type=str) if data.startswith(b'"') else data.decode()
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise RequestError(-1102, _MISSING.format("params")) from error
    return texts


_MISSING: Final = "Mandatory parameter '{}' was not sent, was empty/null, or malformed."
