"""Every message to the handler of its type, and nothing a message can hold stops the stream."""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import structlog

from perpline.common.errors import Malformed
from perpline.websocket.book_lane import BookLane

log = structlog.get_logger("perpline.router")


class Frame(Protocol):
    """What a decode function returns: the kind to count it under, the stream it came on, and what it holds."""

    @property
    def kind(self) -> str: ...

    @property
    def stream(self) -> str: ...

    @property
    def content(self) -> object: ...


class StreamRouter:
    """Decodes each message once and gives what it holds to the handler of that type; a list is given item by item.

    Malformed bytes are set aside and counted. A type without a handler is counted by name. An unexpected error in a
    handler is a bug of ours: it is logged with its traceback, counted in `failed` and shown in the status, and the next
    message is routed all the same, for one symbol's trouble must not blind the others. Every `see_every`-th message is
    shown to `see_fields`, which counts fields nobody knows.
    """

    def __init__(
        self,
        decode: Callable[[bytes, int], Frame],
        handlers: Mapping[type, Callable[[Any], None]],
        *,
        set_aside: Callable[[bytes, int, str], None] = lambda data, received_us, reason: None,
        see_fields: Callable[[bytes], object] = lambda data: None,
        see_every: int = 1,
        lane: BookLane | None = None,
    ) -> None:
        self.total = 0
        self.routed = 0
        self.unhandled = 0
        self.malformed = 0
        self.failed = 0
        self.by_kind: Counter[str] = Counter()
        self.unhandled_types: Counter[str] = Counter()
        self.malformed_reasons: Counter[str] = Counter()
        self._decode = decode
        self._handlers = dict(handlers)
        self._set_aside = set_aside
        self._see_fields = see_fields
        self._see_every = see_every
        self._lane = lane
        self._samples: deque[tuple[float, int, Counter[str]]] = deque(maxlen=11)

    def route(self, data: bytes, received_us: int) -> str | None:
        """The stream the message came on, None if it proves no stream alive: an acknowledgement, or malformed."""
        self.total += 1
        try:
            frame = self._decode(data, received_us)
        except Malformed as error:
            self._malformed(data, received_us, error)
            return None
        except Exception as error:
            self._bug(data, received_us, error, kind="", stream="")
            return None
        kind = frame.kind
        if kind in self.by_kind:
            self.by_kind[kind] += 1
        else:
            _count(self.by_kind, kind)
        content = frame.content
        handle = self._handlers.get(type(content))
        try:
            if handle is not None:
                handle(content)
            elif not self._handle_each(content):
                self.unhandled += 1
                _count(self.unhandled_types, getattr(content, "event_type", kind)[:80])
                return frame.stream or None
            if self.total % self._see_every == 0:
                self._see_fields(data)
        except Malformed as error:
            self._malformed(data, received_us, error)
            return None
        except Exception as error:
            self._bug(data, received_us, error, kind=kind, stream=frame.stream)
            return frame.stream or None
        self.routed += 1
        return frame.stream or None

    def _handle_each(self, content: object) -> bool:
        """Handle a list item by item; False for anything else, and for items that nobody handles."""
        if not isinstance(content, list) or not content:
            return False
        handle = self._handlers.get(type(content[0]))
        if handle is None:
            return False
        for item in content:
            handle(item)
        return True

    def route_batch(self, batch: list[bytes], received_us: int) -> list[str]:
        """Route the messages of one read in order; returns the streams that were heard, some of them repeatedly.

        With a book lane its messages are told by their beginnings and kept as bytes; of several for one symbol only the
        newest is. They reach their cache before the other messages of the batch are handled.
        """
        if self._lane is None:
            others = batch
            heard = []
        else:
            lane = self._lane
            streams, length = lane.streams, lane.head_length
            newest: dict[bytes, bytes] = {}
            others = []
            for data in batch:
                head = data[:length]
                if head in streams:
                    newest[head] = data
                else:
                    others.append(data)
            kept = len(batch) - len(others)
            heard = lane.keep(newest, kept, received_us)
            self.total += kept
            self.routed += kept
            self.by_kind[lane.kind] += kept
        for data in others:
            stream = self.route(data, received_us)
            if stream is not None:
                heard.append(stream)
        return heard

    def sample(self, now_s: float) -> None:
        """Remember the counts at this time; called once a second, for `rates`."""
        self._samples.append((now_s, self.total, self.by_kind.copy()))

    def rates(self) -> dict[str, float]:
        """Messages a second over the last ten seconds or so, by kind and as `total`."""
        if len(self._samples) < 2:
            return {}
        (t0, total0, kinds0), (t1, total1, kinds1) = self._samples[0], self._samples[-1]
        span = t1 - t0
        if span <= 0:
            return {}
        rates = {kind: round((count - kinds0[kind]) / span, 2) for kind, count in sorted(kinds1.items())}
        return {"total": round((total1 - total0) / span, 2), **rates}

    def set_aside(self, data: bytes, received_us: int, error: Malformed) -> None:
        """Count a message that turned out malformed after it was routed (a kept book ticker)."""
        self.routed -= 1
        self._malformed(data, received_us, error)

    def _malformed(self, data: bytes, received_us: int, error: Malformed) -> None:
        self.malformed += 1
        reason = str(error)
        _count(self.malformed_reasons, reason.split(":", 1)[0][:80])
        self._set_aside(data, received_us, reason)

    def _bug(self, data: bytes, received_us: int, error: Exception, *, kind: str, stream: str) -> None:
        """The edge of a message: whatever we did wrong with this one, the next one gets its chance."""
        self.failed += 1
        self._set_aside(data, received_us, f"handler failed: {error!r}")
        log.error("handler_failed", kind=kind, stream=stream, action="route", exc_info=error)


def _count(counter: Counter[str], name: str) -> None:
    """Count under this name, or under "…" beyond 200 names: what comes from outside makes no table grow for ever."""
    counter[name if name in counter or len(counter) < 200 else "…"] += 1
