"""Logs, and the statistic that everything reports: latencies."""

import logging
import math
import sys
from collections import deque
from typing import Literal, TextIO

import stamina
import structlog
from structlog.typing import Processor

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "console", "json"]


def configure_logging(level: LogLevel, log_format: LogFormat, stream: TextIO | None = None) -> None:
    """Send structlog's and the standard library's logs to `stream`, by default stderr: stdout stays for results.

    `auto` is `console` (coloured) on a terminal and `json`, one object a line, elsewhere. To be called once, by the
    command; a second call replaces the first.
    """
    stream = sys.stderr if stream is None else stream
    console = log_format == "console" or (log_format == "auto" and stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=True),
        structlog.processors.StackInfoRenderer(),
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
        self.count = 0
        """How many were ever added."""

    def add(self, ms: float) -> None:
        """Take a duration in milliseconds."""
        self._recent.append(ms)
        self.count += 1

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
        return {"p50": self.quantile(0.5), "p99": self.quantile(0.99)}
