"""Control messages of a stream connection: one text in, one text out (binance.md 1.4)."""

from typing import Any, Final, Protocol

import msgspec

MOST_STREAMS: Final = 1024
METHODS: Final = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY")


class Subscriber(Protocol):
    combined: bool

    @property
    def subscriptions(self) -> Any:
        """Stream names in the order they were asked for; has len() and iteration."""

    def subscribe(self, names: list[str]) -> None: ...

    def unsubscribe(self, names: list[str]) -> None: ...


class Control:
    """Answers the control messages of one connection."""

    def __init__(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber

    def reply(self, text: str) -> str:
        """The answer to one message; a refused message changes nothing."""
        request_id: int | str | None = None
        try:
            message = _decoded(text)
            request_id = _request_id(message)
            result = self._carry_out(text, message)
        except _Refused as refused:
            error = {"code": refused.code, "msg": refused.message}
            return msgspec.json.encode({"error": error, "id": request_id}).decode()
        return msgspec.json.encode({"result": result, "id": request_id}).decode()

    def _carry_out(self, text: str, message: dict[str, Any]) -> Any:
        if "method" not in message:
            raise _Refused(2, f"Invalid request: missing field `method` at line 1 column {len(text)}")
        method = message["method"]
        if method not in METHODS:
            known = ", ".join(f"`{each}`" for each in METHODS)
            # The column is that of the end of the offending text, as a streaming parser reports it.
            column = text.find(str(method)) + len(str(method)) + 1
            raise _Refused(
                2, f"Invalid request: unknown variant `{method}`, expected one of {known} at line 1 column {column}"
            )
        params = message.get("params", [])
        if not isinstance(params, list):
            raise _Refused(2, "Invalid request: params must be an array")
        if method == "LIST_SUBSCRIPTIONS":
            return list(self._subscriber.subscriptions)
        if method in ("SET_PROPERTY", "GET_PROPERTY"):
            return self._property(method, params)
        if not all(isinstance(name, str) for name in params):
            raise _Refused(2, "Invalid request: stream name must be a string")
        if method == "UNSUBSCRIBE":
            self._subscriber.unsubscribe(params)
            return None
        new = {name for name in params if name not in self._subscriber.subscriptions}
        if len(self._subscriber.subscriptions) + len(new) > MOST_STREAMS:
            raise _Refused(2, f"Invalid request: more than {MOST_STREAMS} streams on one connection")
        self._subscriber.subscribe(params)
        return None

    def _property(self, method: str, params: list[Any]) -> Any:
        if len(params) > (2 if method == "SET_PROPERTY" else 1):
            raise _Refused(2, "Invalid request: too many parameters")
        if not params or not isinstance(params[0], str):
            raise _Refused(2, "Invalid request: property name must be a string")
        if params[0] != "combined":
            raise _Refused(0, "Unknown property")
        if method == "GET_PROPERTY":
            return self._subscriber.combined
        if len(params) < 2 or not isinstance(params[1], bool):
            raise _Refused(1, "Invalid value type: expected Boolean")
        self._subscriber.combined = params[1]
        return None


class _Refused(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def _decoded(text: str) -> dict[str, Any]:
    try:
        message = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise _Refused(3, "Invalid JSON: expected value at line 1 column 1") from error
    if not isinstance(message, dict):
        raise _Refused(3, "Invalid JSON: expected value at line 1 column 1")
    return message


def _request_id(message: dict[str, Any]) -> int | str | None:
    request_id = message.get("id")
    if request_id is None or isinstance(request_id, str):
        return request_id
    if isinstance(request_id, bool) or not isinstance(request_id, int) or request_id < 0:
        raise _Refused(2, "Invalid request: request ID must be an unsigned integer")
    return request_id
