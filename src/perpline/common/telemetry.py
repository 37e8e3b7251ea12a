"""Logs, and the statistic that everything reports: latencies."""

import itertools
import logging
import math
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, TextIO

import msgspec
import stamina
import structlog
from structlog.typing import EventDict, Processor

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "console", "json"]


LOUD = ("warning", "error", "critical")
MAX_FIELDS_BYTES = 8192


class LogRing:
    """The newest log events of level warning or worse, numbered from 1 on, for those who listen to a worker.

    `now_ms` is the host's time, as the log's own. Events may come from any thread.
    """

    def __init__(self, now_ms: Callable[[], int], size: int = 1000) -> None:
        self.size = size
        self._now_ms = now_ms
        self._rows: deque[tuple[int, dict[str, Any]]] = deque(maxlen=size)
        self._numbers = itertools.count(1)

    @property
    def count(self) -> int:
        """How many there ever were."""
        return self._rows[-1][0] if self._rows else 0

    def since(self, count: int) -> list[dict[str, Any]]:
        """Those after so many, oldest first, as far as they are still here: {"event", "level", "at", "fields"}."""
        return [row for number, row in self._rows.copy() if number > count]

    def take(self, logger: object, name: str, event: EventDict) -> EventDict:
        """The step of structlog's chain that keeps what goes by; it changes nothing."""
        if event.get("level") in LOUD:
            row = {"event": str(event.get("event")), "level": event["level"], "at": self._now_ms()}
            self._rows.append((next(self._numbers), {**row, "fields": _plain_fields(event)}))
        return event


def _plain_fields(event: EventDict) -> dict[str, Any]:
    """What the event says beside its name, as plain JSON values; cut where it says more than anybody reads."""
    fields = {
        name: value
        for name, value in event.items()
        if name not in ("event", "level", "timestamp", "exc_info", "stack_info") and not name.startswith("_")
    }
    error = sys.exc_info()[1] if event.get("exc_info") is True else event.get("exc_info")
    if isinstance(error := error[1] if isinstance(error, tuple) else error, BaseException):
        fields["exception"] = f"{type(error).__name__}: {error}"
    try:
        text = msgspec.json.encode(fields, enc_hook=str)
        if len(text) <= MAX_FIELDS_BYTES:
            plain: dict[str, Any] = msgspec.json.decode(text)
            return plain
    except Exception as failure:
        # Broad: whatever cannot be spelled must not fail who only logs.
        text = f"these cannot be shown: {failure}".encode()
    return {"text": text[:MAX_FIELDS_BYTES].decode(errors="replace")}


def configure_logging(
    level: LogLevel, log_format: LogFormat, stream: TextIO | None = None, *, ring: LogRing | None = None
) -> None:
    """Send structlog's and the standard library's logs to `stream`, by default stderr: stdout stays for results.

    `auto` is `console` (coloured) on a terminal and `json`, one object a line, elsewhere. `ring` keeps what is loud. To
    be called once, by the command; a second call replaces the first.
    """
    stream = sys.stderr if stream is None else stream
    console = log_format == "console" or (log_format == "auto" and stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        *([ring.take] if ring is not None else []),
    ]
    render: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=stream.isatty())]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False, default=str)]
    )
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
        # Not cached: a logger that was made before this call must follow it.
        cache_logger_on_first_use=False,
    )
    # Each retry of a read is no change of state; what fails in the end is told by whoever asked.
    stamina.instrumentation.set_on_retry_hooks([])
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    # Libraries are heard from warnings up, whatever our own level: their debug lines may hold URLs with secrets.
    logging.basicConfig(
        level=max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]), force=True, handlers=[handler]
    )


class LatencyWindow:
    """The newest `size` durations, for quantiles of how it went lately."""

    def __init__(self, size: int = 4096) -> None:
        self._recent: deque[float] = deque(maxlen=size)
        self._summary: tuple[int, dict[str, float | None]] = (-1, {})
        """The last one, and the count that it is of: it is asked for each second and changes each minute."""
        self.count = 0
        """How many were ever added."""

    def add(self, ms: float) -> None:
        """Take a duration in milliseconds."""
        self._recent.append(ms)
        self.count += 1

    @property
    def last(self) -> float | None:
        """The newest of them, None without any."""
        return self._recent[-1] if self._recent else None

    def quantile(self, q: float) -> float | None:
        """The smallest of the newest durations that at least the share `q` of them do not exceed; None without any.

        Raises ValueError for `q` outside 0 to 1.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile lies between 0 and 1, not at {q}")
        if not self._recent:
            return None
        ordered = sorted(self._recent)
        return ordered[max(0, math.ceil(q * len(ordered)) - 1)]

    def summary(self) -> dict[str, float | None]:
        """{"p50", "p99"} in milliseconds, None without any: the form of every latency in our reports."""
        if self._summary[0] != self.count:
            self._summary = self.count, {"p50": self.quantile(0.5), "p99": self.quantile(0.99)}
        return dict(self._summary[1])
