"""What an HTTP answer that is no success means for the caller (binance.md 3.2)."""

import re

import msgspec

from perpline.common.errors import NeedsPerson, OutcomeUnknown, PerplineError, RateLimited, Refused, Unavailable
from perpline.exchange.binance.messages import ErrorBody

TOO_MANY_REQUESTS = -1003
THROTTLED = -1008
CLOCK_OFF = -1021

TOO_MANY_ORDERS = -1015
LATE_FOR_ENGINE = -5028
"""The matching engine got the order after its receive window: it has refused it."""
NO_SUCH_ORDER = (-2011, -2013)
"""Unknown order sent (to a cancellation), order does not exist (to a look)."""
NO_LISTEN_KEY = -1125
MARGIN_TYPE_IS_SO = -4046

_TRY_LATER = frozenset({-1000, -1001, -1006, -1007, THROTTLED})
"""Unknown, disconnected, unexpected response, timeout, throttled by the system: for a read, just ask again."""

_NOBODY_KNOWS = frozenset({-1000, -1006, -1007})
"""Unknown error, unexpected response, timeout of the backend: the order may have been taken."""

ORDER_PAUSE_S = 10.0
"""The shorter of the windows in which orders are counted."""

_WAF_PAUSE_S = 60.0


class ClockOff(Unavailable):
    """The exchange refused our timestamp (-1021): measure the clock's offset, then send again."""


def read_error(what: str, status: int, body: bytes, retry_after_s: float | None = None) -> PerplineError:
    """The error to raise for an answer to a read. `what` names the request without its address (GET /fapi/v1/time).

    All variants of 503 are the same for a read: asking again is safe. 401 and other 4xx are Refused with the
    exchange's code. 403 comes from the firewall, usually for a short while, and is Unavailable; 451 (the exchange
    does not serve this country) needs a person.
    """
    code, text = error_of(body)
    line = f"{what}: HTTP {status}" + (f", {code} {text}" if code or text else "")
    if status in (418, 429) or code == TOO_MANY_REQUESTS:
        return RateLimited(line, retry_after_s)
    if status == 451:
        return NeedsPerson(f"{line}: Binance does not serve the place that this address belongs to")
    if status == 403:
        return Unavailable(f"{line}: refused by the exchange's firewall", retry_after_s or _WAF_PAUSE_S)
    if code == CLOCK_OFF:
        return ClockOff(line)
    if status >= 500 or status == 408 or code in _TRY_LATER:
        return Unavailable(line, retry_after_s)
    return Refused(line, code)


def order_error(what: str, status: int, code: int, text: str, retry_after_s: float | None = None) -> PerplineError:
    """The error to raise for an answer, over REST or socket, to a request that changes something.

    OutcomeUnknown wherever the exchange does not say for sure that nothing has happened: 408, -1000, -1006, -1007, and
    5xx but for the failures that its documentation calls so (503 "Service Unavailable.", "Internal error; unable to
    process your request.", -1008), which are Unavailable. ClockOff (-1021), -5028 and 403 are Unavailable too: nothing
    has happened. 429, 418, -1003 and -1015 (too many orders) are RateLimited, other 4xx Refused.
    """
    line = f"{what}: HTTP {status}" + (f", {code} {text}" if code or text else "")
    if code == TOO_MANY_ORDERS:
        return RateLimited(line, retry_after_s or ORDER_PAUSE_S)
    if status in (418, 429) or code == TOO_MANY_REQUESTS:
        return RateLimited(line, retry_after_s)
    if status == 451:
        return NeedsPerson(f"{line}: Binance does not serve the place that this address belongs to")
    if status == 403:
        return Unavailable(f"{line}: refused by the exchange's firewall", retry_after_s or _WAF_PAUSE_S)
    if code == CLOCK_OFF:
        return ClockOff(line)
    if code in (THROTTLED, LATE_FOR_ENGINE):
        return Unavailable(line, retry_after_s)
    if status == 503 and _is_sure_failure(text):
        return Unavailable(line, retry_after_s)
    if status >= 500 or status == 408 or code in _NOBODY_KNOWS or not 400 <= status:
        return OutcomeUnknown(line)
    return Refused(line, code)


def _is_sure_failure(text: str) -> bool:
    """Whether the text of a 503 is one of the two that mean failure for certain. That of a proxy is not."""
    return text == "Service Unavailable." or text.startswith("Internal error; unable to process your request")


def refusal_in(body: bytes) -> tuple[int, str] | None:
    """Code and text where a body is an error of the exchange, whatever the status said."""
    code, text = error_of(body)
    return (code, text) if code < 0 else None


def banned_until_ms(body: bytes) -> int | None:
    """The end of a ban that the text of a 418 or 429 names (exchange time), where it does."""
    match = re.search(rb"banned until (\d{13})\b", body[:2000])
    return int(match[1]) if match else None


def error_of(body: bytes) -> tuple[int, str]:
    """Code and text of an error body; 0 and a bit of the text where it is none (HTML of a proxy)."""
    try:
        error = msgspec.json.decode(body, type=ErrorBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0, _plain(body[:100].decode("utf-8", "replace"))
    return error.code, _plain(error.message)


def _plain(text: str) -> str:
    """One line, bounded, nothing that a terminal would act on."""
    return "".join(character if character.isprintable() else " " for character in text[:200]).strip()
