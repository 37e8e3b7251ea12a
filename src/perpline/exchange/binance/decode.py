"""Bytes of a market stream in, events of `domain` out. No I/O, no clock, no state but a memo of checked names."""

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import Struct

from perpline.common.errors import Malformed
from perpline.domain.candle import INTERVAL_MS, KlineUpdate, check_kline
from perpline.domain.market import BookTicker, MarkPrice
from perpline.exchange.binance.messages import (
    COIN_M,
    EVENT_TYPES,
    KNOWN_FIELDS,
    Bare,
    BookTickerMessage,
    Combined,
    ControlAnswer,
    KlineMessage,
    MarkPriceMessage,
    PeekData,
    PeekFrame,
)

Event = BookTicker | MarkPrice | KlineUpdate


class Unknown(Struct, frozen=True):
    """A sound message of a type that nothing here turns into an event: `depthUpdate`, `kline_5m`, news of tomorrow."""

    event_type: str


class Dropped(Struct, frozen=True):
    """A message that is left out on purpose: reason `coin_m`, a symbol margined in coins."""

    reason: str


class Control(Struct, frozen=True):
    """The answer to a control message. An acknowledgement (`code` None, `result` None) proves nothing (binance.md 1.2).

    `code` and `message` are the exchange's error.
    """

    id: int | str | None
    result: list[str] | bool | str | int | None = None
    code: int | None = None
    message: str = ""


class Frame(Struct, frozen=True, gc=False):
    """What one frame held."""

    kind: str
    """The stream type to count it under: kline_1m, markPrice, bookTicker, depth, trade, depthSnapshot, control …"""
    stream: str
    """The stream's name in a combined frame (btcusdt@kline_1m), empty in a bare one."""
    content: Event | list[MarkPrice] | Unknown | Dropped | Control
    coin_m: int = 0
    """How many coin-margined entries of an array were left out."""


def decode(data: bytes | memoryview, received_us: int) -> Frame:
    """What a frame of a market stream holds, in the combined or the bare form.

    `received_us` is our market time when the bytes arrived. Raises Malformed for what is no JSON, no message, or a
    message whose numbers cannot be: one bad row makes an array malformed as a whole.
    """
    try:
        # The third byte of a combined frame is the s of "stream". A wrong guess costs time, never a wrong answer.
        if len(data) > 2 and data[2] == 0x73:
            combined = _decode_combined(data)
            message = combined.data
            stream = combined.stream
        else:
            message = _decode_bare(data)
            stream = ""
    except _UNREADABLE as error:
        return _inspect(data, received_us, error)
    if isinstance(message, BookTickerMessage):
        return _book_ticker(message, stream, received_us)
    if isinstance(message, MarkPriceMessage):
        return _mark_price(message, stream, received_us)
    if isinstance(message, KlineMessage):
        return _kline(message, stream, received_us)
    return _mark_prices(message, stream, received_us)


def stream_of(data: bytes) -> str | None:
    """The stream's name in a combined frame that is not looked into any further (a recording), None in any other."""
    if not data.startswith(b'{"stream":"'):
        return None
    end = data.find(b'"', 11, 120)
    return data[11:end].decode(errors="replace") if end > 0 else None


def book_ticker_head(stream: str) -> bytes:
    """How every message of a symbol's book ticker begins in the combined form, up to its update id."""
    return f'{{"stream":"{stream}","data":{{"e":"bookTicker","u":'.encode()


def decode_book_ticker(data: bytes, received_us: int) -> BookTicker:
    """The book ticker in a message that begins like one. Raises Malformed for anything else."""
    content = decode(data, received_us).content
    if not isinstance(content, BookTicker):
        raise Malformed(f"no book ticker: {_beginning(data)}")
    return content


FORMING = b'"x":false'
"""What every message of a candle that is not closed yet holds."""


def kline_head(stream: str) -> bytes:
    """How every message of a symbol's candles of one interval begins in the combined form, up to its time."""
    return f'{{"stream":"{stream}","data":{{"e":"kline","E":'.encode()


def decode_kline(data: bytes, received_us: int) -> KlineUpdate:
    """The candle in a message that begins like one. Raises Malformed for anything else."""
    content = decode(data, received_us).content
    if not isinstance(content, KlineUpdate):
        raise Malformed(f"no kline: {_beginning(data)}")
    return content


class FieldWatch:
    """Counts fields of known messages that `KNOWN_FIELDS` does not list: `counts` by name (markPriceUpdate.xy).

    Exact, and cheap because it looks into each shape of a frame once. A frame's shape is its text without digits and
    dots; frames of one shape have the same field names. Shapes and names are bounded: beyond `max_shapes` all are
    forgotten and learned anew, beyond `max_names` further names are counted together as "…".
    """

    def __init__(self, max_shapes: int = 20_000, max_names: int = 1_000) -> None:
        self.counts: Counter[str] = Counter()
        self._max_shapes = max_shapes
        self._max_names = max_names
        # Hashes instead of the shapes themselves: a shape of an all-market array is 60 kB long.
        self._unknown_by_shape: dict[int, tuple[str, ...]] = {}

    def see(self, data: bytes | memoryview) -> tuple[str, ...]:
        """Count the unknown fields of a frame that `decode` has turned into an event; returns their names."""
        shape = hash(bytes(data).translate(None, b"0123456789."))
        names = self._unknown_by_shape.get(shape)
        if names is None:
            if len(self._unknown_by_shape) >= self._max_shapes:
                self._unknown_by_shape.clear()
            names = self._unknown_by_shape[shape] = tuple(_unknown_fields(data))
        if names:
            for name in names:
                self.counts[name if name in self.counts or len(self.counts) < self._max_names else "…"] += 1
        return names


_decode_combined = msgspec.json.Decoder(Combined, strict=False).decode
_decode_bare = msgspec.json.Decoder(Bare, strict=False).decode
_decode_peek = msgspec.json.Decoder(PeekFrame | list[PeekData], strict=False).decode
_decode_control = msgspec.json.Decoder(ControlAnswer).decode

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""All that msgspec raises for any bytes: no JSON or the wrong types, bad UTF-8 inside a string, nested too deep."""

_KINDS = {
    "depthUpdate": "depth",
    "24hrTicker": "ticker",
    "24hrMiniTicker": "miniTicker",
    "continuous_kline": "continuousKline",
    "markPriceUpdate": "markPrice",
}
"""The stream type of an event type where the two differ."""


def _book_ticker(message: BookTickerMessage, stream: str, received_us: int) -> Frame:
    if message.symbol_type == COIN_M:
        return Frame("bookTicker", stream, Dropped("coin_m"), 1)
    updated_at = message.event_time or message.transaction_time
    if not updated_at:
        raise Malformed(f"bookTicker of {message.symbol[:40]!r} without a time")
    _check_symbol(message.symbol)
    return Frame(
        "bookTicker",
        stream,
        BookTicker(
            message.symbol,
            message.bid,
            message.bid_qty,
            message.ask,
            message.ask_qty,
            message.update_id,
            updated_at,
            received_us // 1000,
        ),
    )


def _mark_price(message: MarkPriceMessage, stream: str, received_us: int) -> Frame:
    if message.symbol_type == COIN_M:
        return Frame("markPrice", stream, Dropped("coin_m"), 1)
    return Frame("markPrice", stream, _mark_price_event(message, received_us // 1000))


def _mark_prices(messages: list[MarkPriceMessage], stream: str, received_us: int) -> Frame:
    received_at = received_us // 1000
    events = [_mark_price_event(message, received_at) for message in messages if message.symbol_type != COIN_M]
    left_out = len(messages) - len(events)
    return Frame("markPrice", stream, events or Dropped("coin_m"), left_out)


def _mark_price_event(message: MarkPriceMessage, received_at: int) -> MarkPrice:
    _check_symbol(message.symbol)
    return MarkPrice(
        message.symbol,
        message.mark_price,
        message.index_price,
        message.funding_rate or 0.0,
        message.next_funding_time,
        message.event_time,
        received_at,
    )


def _kline(message: KlineMessage, stream: str, received_us: int) -> Frame:
    body = message.kline
    kind = _kline_kind(body.interval)
    symbol = message.symbol
    _check_symbol(symbol)
    if body.symbol and body.symbol != symbol:
        raise Malformed(f"kline of two symbols: {symbol[:40]!r} and {body.symbol[:40]!r}")
    if body.interval not in INTERVAL_MS:
        return Frame(kind, stream, Unknown(kind))
    update = KlineUpdate(
        symbol,
        body.interval,
        body.open_time,
        body.close_time,
        body.open,
        body.high,
        body.low,
        body.close,
        body.volume,
        body.quote_volume,
        body.trades,
        body.taker_buy_volume,
        body.taker_buy_quote_volume,
        body.closed,
        "ws",
        message.event_time,
        received_us // 1000,
        received_us,
    )
    if body.closed:
        check_kline(update)
    return Frame(kind, stream, update)


@lru_cache(maxsize=64)
def _kline_kind(interval: str) -> str:
    if not (interval[:-1].isascii() and interval[:-1].isdigit() and interval[-1] in "smhdwM"):
        raise Malformed(f"kline of the interval {interval!r}")
    return f"kline_{interval}"


@lru_cache(maxsize=8192)
def _check_symbol(symbol: str) -> None:
    """Raise Malformed for a name that could do harm in a log line, a key or a path. Chinese ones exist and pass."""
    if not symbol.isprintable() or not set(symbol).isdisjoint(" /\\:'\"<>"):
        raise Malformed(f"symbol {symbol!r}")


def _inspect(data: bytes | memoryview, received_us: int, error: Exception) -> Frame:
    """What a frame is that is none of our messages, or Malformed if it pretends to be one."""
    if not isinstance(error, msgspec.ValidationError):
        raise Malformed(_reason(error, data)) from None
    try:
        peek = _decode_peek(data)
    except _UNREADABLE as unreadable:
        raise Malformed(_reason(unreadable, data)) from None
    if isinstance(peek, list):
        return _inspect_payload(peek, "", data, error)
    if peek.stream is not None:
        if peek.data is None:
            raise Malformed(_reason(error, data)) from None
        if peek.data != [] and _type_of(peek.data) in EVENT_TYPES:
            # Ours after all: the fast path guessed the wrong form from the third byte, or the message is malformed.
            return _inspect_ours(data, peek.data, peek.stream, received_us, error)
        return _inspect_payload(peek.data, peek.stream, data, error)
    if peek.event_type in EVENT_TYPES:
        return _inspect_ours(data, peek, "", received_us, error)
    if peek.event_type is None and peek.last_update_id is None and peek.open_interest is None:
        return _control(data, error)
    return _inspect_payload(peek, "", data, error)


def _inspect_ours(
    data: bytes | memoryview, peek: PeekData | list[PeekData], stream: str, received_us: int, error: Exception
) -> Frame:
    if isinstance(peek, PeekData) and peek.symbol_type == COIN_M:
        # Dropped before its numbers are looked at: coin-margined messages may differ from ours.
        return Frame(_KINDS.get(str(peek.event_type), str(peek.event_type)), stream, Dropped("coin_m"), 1)
    guessed_combined = len(data) > 2 and data[2] == 0x73
    if guessed_combined == bool(stream):
        raise Malformed(_reason(error, data)) from None
    # Spaces before the first key, or a bare message that begins with "s": put into the form that is told by byte 2.
    try:
        rewritten = _rewritten(data, stream)
    except _UNREADABLE as unreadable:  # names of unknown fields, which the typed decoder has not looked into
        raise Malformed(_reason(unreadable, data)) from None
    return decode(rewritten, received_us)


def _rewritten(data: bytes | memoryview, stream: str) -> bytes:
    payload = msgspec.json.decode(data)
    if stream:
        return msgspec.json.encode({"stream": payload["stream"], "data": payload["data"]})
    return msgspec.json.encode({"e": payload["e"], **payload})


def _inspect_payload(peek: PeekData | list[PeekData], stream: str, data: bytes | memoryview, error: Exception) -> Frame:
    event_type = _type_of(peek) if peek != [] else "emptyArray"
    if event_type is None or event_type in EVENT_TYPES:
        raise Malformed(_reason(error, data)) from None
    first = peek[0] if isinstance(peek, list) and peek else peek
    if isinstance(first, PeekData) and first.symbol_type == COIN_M and not isinstance(peek, list):
        return Frame(_KINDS.get(event_type, event_type), stream, Dropped("coin_m"), 1)
    return Frame(_KINDS.get(event_type, event_type), stream, Unknown(event_type))


def _type_of(peek: PeekData | list[PeekData]) -> str | None:
    """The event type, or a name of ours for the payloads that have none."""
    first = peek[0] if isinstance(peek, list) else peek
    if first.event_type is not None:
        return first.event_type if first.event_type.isprintable() else None
    if first.last_update_id is not None:
        return "depthSnapshot"
    if first.open_interest is not None:
        return "openInterest"
    return None


def _control(data: bytes | memoryview, error: Exception) -> Frame:
    try:
        answer = _decode_control(data)
        fields: dict[str, Any] = msgspec.json.decode(data)
    except _UNREADABLE:
        raise Malformed(_reason(error, data)) from None
    if answer.error is not None:
        content = Control(answer.id, None, answer.error.code, answer.error.message)
    elif answer.code is not None:
        content = Control(answer.id, None, answer.code, answer.message)
    elif "result" in fields and "id" in fields:
        content = Control(answer.id, answer.result)
    else:
        raise Malformed(f"neither a message nor an answer: {_beginning(data)}")
    return Frame("control", "", content)


def _reason(error: Exception, data: bytes | memoryview) -> str:
    text = "nested too deep" if isinstance(error, RecursionError) else str(error)
    return f"{text[:200]}: {_beginning(data)}"


def _beginning(data: bytes | memoryview) -> str:
    return repr(bytes(data[:100]))[1:]


def _unknown_fields(data: bytes | memoryview) -> Iterator[str]:
    """Every unknown field of a frame, an array's fields once for each row that has them."""
    try:
        frame = msgspec.json.decode(data)
    except UnicodeDecodeError:
        # The typed decoder skips unread strings without looking into them.
        yield "invalid UTF-8"
        return
    payload = frame
    if isinstance(frame, dict) and "stream" in frame and "data" in frame:
        yield from (f"envelope.{name}" for name in frame.keys() - KNOWN_FIELDS["envelope"])
        payload = frame["data"]
    for message in payload if isinstance(payload, list) else [payload]:
        # A sound bare message may have fields of these names of its own, with anything in them.
        event_type = message.get("e") if isinstance(message, dict) else None
        if not isinstance(event_type, str) or event_type not in EVENT_TYPES:
            continue
        yield from (f"{event_type}.{name}" for name in message.keys() - KNOWN_FIELDS[event_type])
        body = message.get("k")
        if event_type == "kline" and isinstance(body, dict):
            yield from (f"kline.k.{name}" for name in body.keys() - KNOWN_FIELDS["kline.k"])
