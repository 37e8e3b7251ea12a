"""Stream names, who listens to which, and frames on their way out.

A stream belongs to one route. A name that belongs elsewhere, or to nothing, is acknowledged and never delivers:
that is what the exchange does (binance.md 1.2), and it is why such names never become a `Stream` listener here.
"""

import random
import re
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final, Protocol

from perpline.simulation.faults import Faults, garbage
from perpline.simulation.incidents import Huge, Schedule, Silence, Truncated

ROUTES: Final = ("public", "market", "private")
UNROUTED: Final = "unrouted"
STREAM_INTERVALS: Final = ("1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d")
ALL_SYMBOLS: Final = -1

TEXT: Final = 0x81
BINARY: Final = 0x82
PING: Final = 0x89
PONG: Final = 0x8A


class Listener(Protocol):
    """A connection, as far as sending is concerned."""

    combined: bool
    route: str

    def put(self, frame: bytes) -> None:
        """Take one complete WebSocket frame for the next write."""


@dataclass(eq=False, slots=True)
class Stream:
    """One deliverable stream."""

    name: str
    route: str
    kind: str
    index: int = ALL_SYMBOLS
    interval: str = ""
    levels: int = 0
    period_ms: int = 0
    listeners: dict[Listener, None] = field(default_factory=dict)
    last_closing: bytes | None = None
    sent_wall_s: float = 0.0
    sent_ms: int = 0
    shown: tuple[int, dict[int, int], dict[int, int]] | None = None
    """Of a diff stream: last update id, bids and asks as the listeners know them."""


@dataclass(slots=True)
class Stats:
    """What the exchange has done so far."""

    connections: int = 0
    connections_by_route: Counter[str] = field(default_factory=Counter)
    open_connections: int = 0
    slow_readers_cut: int = 0
    subscriptions: Counter[str] = field(default_factory=Counter)
    frames: Counter[str] = field(default_factory=Counter)
    bytes_sent: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    answers: Counter[int] = field(default_factory=Counter)
    rest_faults: Counter[str] = field(default_factory=Counter)
    weight_used: int = 0

    def as_dict(self) -> dict[str, object]:
        return {
            "connections": self.connections,
            "connections_by_route": dict(self.connections_by_route),
            "open_connections": self.open_connections,
            "slow_readers_cut": self.slow_readers_cut,
            "subscriptions": dict(self.subscriptions),
            "frames": dict(self.frames),
            "bytes_sent": self.bytes_sent,
            "requests": dict(self.requests),
            "answers": {str(status): count for status, count in self.answers.items()},
            "rest_faults": dict(self.rest_faults),
            "weight_used": self.weight_used,
        }


class Streams:
    """All streams that exist for these symbols, and their listeners."""

    def __init__(
        self,
        symbols: tuple[str, ...],
        faults: Faults,
        stats: Stats,
        rng: random.Random,
        schedule: Schedule | None = None,
    ) -> None:
        self._index_of = {symbol.lower(): index for index, symbol in enumerate(symbols)}
        self._faults = faults
        self._schedule = schedule or Schedule(list)
        self._stats = stats
        self._rng = rng
        self._by_name: dict[str, Stream] = {}
        self._wanted: dict[str, dict[int, list[Stream]]] = {}

    def find(self, name: str) -> Stream | None:
        """The stream of this name, None if there is no such stream. Names are lower case where symbols are."""
        stream = self._by_name.get(name)
        if stream is None:
            stream = self._parsed(name)
            if stream is not None:
                self._by_name[name] = stream
        return stream

    def add(self, stream: Stream, listener: Listener) -> None:
        """From now on this listener gets the stream."""
        if not stream.listeners:
            self._wanted.setdefault(stream.kind, {}).setdefault(stream.index, []).append(stream)
        stream.listeners[listener] = None
        if self._faults.repeat_close_on_subscribe and stream.last_closing is not None:
            listener.put(_framed(stream, stream.last_closing, listener.combined))
            self._stats.frames["kline_closed_repeated"] += 1

    def remove(self, stream: Stream, listener: Listener) -> None:
        """This listener no longer gets the stream."""
        if stream.listeners.pop(listener, 0) is None and not stream.listeners:
            self._wanted[stream.kind][stream.index].remove(stream)
            if not self._wanted[stream.kind][stream.index]:
                del self._wanted[stream.kind][stream.index]

    def wanted(self, kind: str, index: int) -> list[Stream]:
        """The streams of this kind and symbol that somebody listens to."""
        return self._wanted.get(kind, _NOBODY).get(index, _NOTHING)

    def wanted_kind(self, kind: str) -> dict[int, list[Stream]]:
        """The same for all symbols: position in the list to streams."""
        return self._wanted.get(kind, _NOBODY)

    def shown_depth(self, index: int) -> tuple[int, dict[int, int], dict[int, int]] | None:
        """Update id, bids and asks as the listeners of a diff stream know them; None where nobody listens to one.

        May be called from another thread."""
        shown = [stream.shown for stream in tuple(self.wanted("depthDiff", index)) if stream.shown is not None]
        return max(shown, key=lambda book: book[0], default=None)

    def publish(self, stream: Stream, payload: bytes, kind: str = "") -> None:
        """Send one payload to all listeners; its bytes are framed once for each of the two forms."""
        faults = self._faults
        if faults.mutes(stream.name):
            return
        if self._schedule.any_on(Silence, Truncated, Huge):
            self._publish_with_faults(stream, payload, kind)
            return
        plain = combined = None
        count = 0
        for listener in stream.listeners:
            if listener.combined:
                frame = combined = combined or _framed(stream, payload, True)
            else:
                frame = plain = plain or _framed(stream, payload, False)
            if faults.garbage_share and self._rng.random() < faults.garbage_share:
                body, binary = garbage(self._rng.getrandbits(64))
                listener.put(framed(body, BINARY if binary else TEXT))
                self._stats.frames["garbage"] += 1
            listener.put(frame)
            count += 1
            if faults.repeat_share and self._rng.random() < faults.repeat_share:
                listener.put(frame)
                self._stats.frames["repeated"] += 1
        self._stats.frames[kind or stream.kind] += count

    def _publish_with_faults(self, stream: Stream, payload: bytes, kind: str) -> None:
        """The same for each listener by itself, for what one gets another may not."""
        silences = [each for each in self._schedule.on(Silence) if fnmatchcase(stream.name, each.streams)]
        for listener in stream.listeners:
            if any(silence.on(listener.route) for silence in silences):
                self._stats.frames["silenced"] += 1
                continue
            for huge in self._schedule.on(Huge):
                if huge.on(listener.route) and self._rng.random() < huge.share:
                    listener.put(framed(b'{"padding":"' + b"0" * huge.size + b'"}'))
                    self._stats.frames["huge"] += 1
            frame = _framed(stream, payload, listener.combined)
            for truncated in self._schedule.on(Truncated):
                if truncated.on(listener.route) and self._rng.random() < truncated.share:
                    frame = framed(_payload(stream, payload, listener.combined)[: len(payload) // 2])
                    self._stats.frames["truncated"] += 1
            listener.put(frame)
            self._stats.frames[kind or stream.kind] += 1

    def _parsed(self, name: str) -> Stream | None:
        if name in _ALL_MARKET:
            route, kind, period_ms = _ALL_MARKET[name]
            return Stream(name, route, kind, period_ms=period_ms)
        subject, at, rest = name.partition("@")
        if not at:
            return None
        if subject.endswith("_perpetual") and (match := _CONTINUOUS.fullmatch(rest)):
            index = self._index_of.get(subject.removesuffix("_perpetual"))
            return None if index is None else Stream(name, "market", "continuousKline", index, match[1])
        index = self._index_of.get(subject)
        if index is None:
            return None
        if rest in _PLAIN:
            route, kind, period_ms = _PLAIN[rest]
            return Stream(name, route, kind, index, period_ms=period_ms)
        if match := _KLINE.fullmatch(rest):
            return Stream(name, "market", "kline", index, match[1])
        if match := _DEPTH.fullmatch(rest):
            # No order here is an RPI order, so rpiDepth is the same book.
            levels = int(match[1] or 0)
            period_ms = int(match[2] or (500 if rest.startswith("rpi") else 250))
            return Stream(name, "public", "depth" if levels else "depthDiff", index, levels=levels, period_ms=period_ms)
        return None


def framed(payload: bytes, opcode: int = TEXT) -> bytes:
    """One unfragmented, unmasked WebSocket frame."""
    size = len(payload)
    if size < 126:
        return bytes((opcode, size)) + payload
    if size < 65_536:
        return bytes((opcode, 126)) + size.to_bytes(2, "big") + payload
    return bytes((opcode, 127)) + size.to_bytes(8, "big") + payload


def _framed(stream: Stream, payload: bytes, combined: bool) -> bytes:
    return framed(_payload(stream, payload, combined))


def _payload(stream: Stream, payload: bytes, combined: bool) -> bytes:
    if combined:
        return b'{"stream":"' + stream.name.encode() + b'","data":' + payload + b"}"
    return payload


_NOBODY: Final[dict[int, list[Stream]]] = {}
_NOTHING: Final[list[Stream]] = []
_ALL_MARKET: Final = {
    "!bookTicker": ("public", "bookTicker", 5_000),
    "!contractInfo": ("market", "contractInfo", 0),
    "!markPrice@arr": ("market", "markPrice", 3_000),
    "!markPrice@arr@1s": ("market", "markPrice", 1_000),
    "!miniTicker@arr": ("market", "miniTicker", 1_000),
    "!ticker@arr": ("market", "ticker", 1_000),
}
_PLAIN: Final = {
    "bookTicker": ("public", "bookTicker", 0),
    "trade": ("public", "trade", 0),
    "aggTrade": ("market", "aggTrade", 0),
    "markPrice": ("market", "markPrice", 3_000),
    "markPrice@1s": ("market", "markPrice", 1_000),
    "miniTicker": ("market", "miniTicker", 2_000),
    "ticker": ("market", "ticker", 2_000),
}
_KLINE: Final = re.compile(f"kline_({'|'.join(STREAM_INTERVALS)})")
_CONTINUOUS: Final = re.compile(f"continuousKline_({'|'.join(STREAM_INTERVALS)})")
_DEPTH: Final = re.compile(r"depth(5|10|20)?(?:@(100|250|500)ms)?|rpiDepth@500ms")
