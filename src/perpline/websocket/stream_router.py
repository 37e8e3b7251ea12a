"""Every message to the handler of its type, and nothing a message can hold stops the stream."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import structlog

from perpline.common.errors import Malformed
from perpline.websocket.lane import Lane

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
        lanes: Sequence[Lane[Any]] = (),
    ) -> None:
        self.total = 0
        self.unhandled = 0
        self.malformed = 0
        self.failed = 0
        self.by_kind: dict[str, int] = {}
        self.unhandled_types: dict[str, int] = {}
        self.malformed_reasons: dict[str, int] = {}
        self._decode = decode
        self._handlers = dict(handlers)
        self._set_aside = set_aside
        self._see_fields = see_fields
        self._see_every = see_every
        self._lanes = tuple(lanes)
        self._samples: deque[tuple[float, int, dict[str, int]]] = deque(maxlen=11)

    def route(self, data: bytes, received_us: int) -> str | None:
        """The stream the message came on, None if it proves no stream alive: an acknowledgement, or malformed."""
        self.total += 1
        try:
            frame = self._decode(data, received_us)
        except Malformed as error:
            self.set_aside(data, received_us, error)
            return None
        except Exception as error:
            self._bug(data, received_us, error, kind="", stream="")
            return None
        kind, content = frame.kind, frame.content
        by_kind = self.by_kind
        if kind in by_kind:
            by_kind[kind] += 1
        else:
            _count(by_kind, kind)
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
            self.set_aside(data, received_us, error)
            return None
        except Exception as error:
            self._bug(data, received_us, error, kind=kind, stream=frame.stream)
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

    def route_batch(self, batch: list[bytes], received_us: int, source: int = 0) -> set[str]:
        """Route the messages of one read in order; returns the streams that were heard. `source`: see `Lane`.

        What a lane keeps reaches its cache before the other messages of the batch are handled.
        """
        heard: set[str] = set()
        others = batch
        for lane in self._lanes:
            before = len(others)
            others, streams = lane.sift(others, received_us, source)
            heard.update(streams)
            kept = before - len(others)
            if kept:
                self.total += kept
                self.by_kind[lane.kind] = self.by_kind.get(lane.kind, 0) + kept
        for data in others:
            stream = self.route(data, received_us)
            if stream is not None:
                heard.add(stream)
        return heard

    @property
    def routed(self) -> int:
        """Messages that found their handler, or were kept for it."""
        return self.total - self.unhandled - self.malformed - self.failed

    @property
    def superseded(self) -> int:
        """Messages of the lanes that were overtaken before anybody read them."""
        return sum(lane.superseded for lane in self._lanes)

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
        rates = {kind: round((count - kinds0.get(kind, 0)) / span, 2) for kind, count in sorted(kinds1.items())}
        return {"total": round((total1 - total0) / span, 2), **rates}

    def set_aside(self, data: bytes, received_us: int, error: Malformed) -> None:
        """Count a message as malformed, also one that turns out to be so after it was routed (kept in a lane)."""
        self.malformed += 1
        reason = str(error)
        _count(self.malformed_reasons, reason.split(":", 1)[0][:80])
        self._set_aside(data, received_us, reason)

    def _bug(self, data: bytes, received_us: int, error: Exception, *, kind: str, stream: str) -> None:
        """The edge of a message: whatever we did wrong with this one, the next one gets its chance."""
        self.failed += 1
        self._set_aside(data, received_us, f"handler failed: {error!r}")
        log.error("handler_failed", kind=kind, stream=stream, action="route", exc_info=error)


def _count(counts: dict[str, int], name: str) -> None:
    """Count under this name, or under "…" beyond 200 names: what comes from outside makes no table grow for ever."""
    key = name if name in counts or len(counts) < 200 else "…"
    counts[key] = counts.get(key, 0) + 1
