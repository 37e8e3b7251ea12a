"""What an HTTP answer that is no success means for the caller (binance.md 3.2)."""

import re

import msgspec

from perpline.common.errors import NeedsPerson, PerplineError, RateLimited, Refused, Unavailable
from perpline.exchange.binance.messages import ErrorBody

TOO_MANY_REQUESTS = -1003
THROTTLED = -1008
CLOCK_OFF = -1021

_TRY_LATER = frozenset({-1000, -1001, -1006, -1007, THROTTLED})
"""Unknown, disconnected, unexpected response, timeout, throttled by the system: for a read, just ask again."""

_WAF_PAUSE_S = 60.0


class ClockOff(Unavailable):
    """The exchange refused our timestamp (-1021): measure the clock's offset, then send again."""


def read_error(what: str, status: int, body: bytes, retry_after_s: float | None = None) -> PerplineError:
    """The error to raise for an answer to a read. `what` names the request without its address (GET /fapi/v1/time).

    All variants of 503 are the same for a read: asking again is safe. 401 and other 4xx are Refused with the
    exchange's code. 403 comes from the firewall, usually for a short while, and is Unavailable; 451 (the exchange
    does not serve this country) needs a person.
    """
    code, text = _error_of(body)
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


def refusal_in(body: bytes) -> tuple[int, str] | None:
    """Code and text where a body is an error of the exchange, whatever the status said."""
    code, text = _error_of(body)
    return (code, text) if code < 0 else None


def banned_until_ms(body: bytes) -> int | None:
    """The end of a ban that the text of a 418 or 429 names (exchange time), where it does."""
    match = re.search(rb"banned until (\d{13})\b", body[:2000])
    return int(match[1]) if match else None


def _error_of(body: bytes) -> tuple[int, str]:
    """Code and text of an error body; 0 and a bit of the text where it is none (HTML of a proxy)."""
    try:
        error = msgspec.json.decode(body, type=ErrorBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0, _plain(body[:100].decode("utf-8", "replace"))
    return error.code, _plain(error.message)


def _plain(text: str) -> str:
    """One line, bounded, nothing that a terminal would act on."""
    return "".join(character if character.isprintable() else " " for character in text[:200]).strip()
