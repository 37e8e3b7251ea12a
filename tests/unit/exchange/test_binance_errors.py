import json

import pytest

from perpline.common.errors import NeedsPerson, PerplineError, RateLimited, Refused, Unavailable
from perpline.exchange.binance.errors import ClockOff, banned_until_ms, read_error, refusal_in


def body(code: int, text: str) -> bytes:
    return json.dumps({"code": code, "msg": text}).encode()


@pytest.mark.parametrize(
    ("status", "answer", "kind"),
    [
        (429, body(-1003, "Too many requests; current limit is 2400 requests per minute."), RateLimited),
        (418, body(-1003, "Way too many requests; IP banned until 1790526599000."), RateLimited),
        (400, body(-1003, "Too many requests."), RateLimited),
        (429, b"<html>", RateLimited),
        (403, b"<html><title>403 Forbidden</title>", Unavailable),
        (451, body(0, "Service unavailable from a restricted location"), NeedsPerson),
        (408, body(-1007, "Timeout waiting for response from backend server."), Unavailable),
        (500, b"", Unavailable),
        (502, b"<html>bad gateway</html>", Unavailable),
        (503, body(-1000, "Unknown error, please check your request or try again later."), Unavailable),
        (503, b"Service Unavailable.", Unavailable),
        (503, body(-1001, "Internal error; unable to process your request. Please try again."), Unavailable),
        (503, body(-1008, "Request throttled by system-level protection."), Unavailable),
        (400, body(-1021, "Timestamp for this request is outside of the recvWindow."), ClockOff),
        (400, body(-1121, "Invalid symbol."), Refused),
        (400, body(-1130, "Data sent for parameter 'limit' is not valid."), Refused),
        (401, body(-2014, "API-key format invalid."), Refused),
        (404, b"<html>Not found</html>", Refused),
        (302, b"", Refused),
    ],
)
def test_an_answer_maps_to_what_the_caller_does_next(status: int, answer: bytes, kind: type[PerplineError]) -> None:
    error = read_error("GET /fapi/v1/time", status, answer)

    assert type(error) is kind
    assert str(error).startswith(f"GET /fapi/v1/time: HTTP {status}")
    assert "\n" not in str(error)


def test_a_refusal_keeps_the_exchanges_code() -> None:
    error = read_error("GET /fapi/v1/klines", 400, body(-1121, "Invalid symbol."))

    assert isinstance(error, Refused)
    assert error.code == -1121


def test_a_firewalls_answer_is_not_asked_again_at_once() -> None:
    error = read_error("GET /fapi/v1/klines", 403, b"")

    assert isinstance(error, Unavailable)
    assert error.retry_after_s == 60


def test_the_text_of_an_answer_is_made_harmless() -> None:
    text = str(read_error("GET /x", 500, b"\x1b[31m\r\n" + b"\xff" * 5000))

    assert text.isprintable()
    assert len(text) < 300


def test_the_end_of_a_ban_is_read_from_its_text() -> None:
    assert banned_until_ms(body(-1003, "Way too many requests; IP banned until 1790526599000.")) == 1790526599000
    assert banned_until_ms(body(-1003, "Too many requests")) is None


def test_an_error_body_is_told_from_data() -> None:
    assert refusal_in(body(-1121, "Invalid symbol.")) == (-1121, "Invalid symbol.")
    assert refusal_in(b'{"serverTime":1}') is None
    assert refusal_in(b"[]") is None
