import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from perpline.common.telemetry import LatencyWindow, configure_logging


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_logs_that_nobody_watches_are_one_json_object_a_line() -> None:
    stream = io.StringIO()
    configure_logging("info", "auto", stream)

    structlog.get_logger().warning("stream is silent", stream="btcusdt@kline_1m", symbol="币安")
    line = json.loads(stream.getvalue())

    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "stream is silent", "level": "warning", "stream": "btcusdt@kline_1m", "symbol": "币安"}


def test_logs_go_to_stderr_unless_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")

    structlog.get_logger().info("ready")

    assert json.loads(capsys.readouterr().err)["event"] == "ready"


def test_logs_on_a_terminal_are_for_reading() -> None:
    stream = Terminal()
    configure_logging("info", "auto", stream)

    structlog.get_logger().info("ready", symbols=30)

    assert "ready" in stream.getvalue()
    assert "\x1b[" in stream.getvalue()


def test_a_format_that_is_asked_for_is_used_on_a_terminal_too() -> None:
    stream = Terminal()
    configure_logging("info", "json", stream)

    structlog.get_logger().info("ready")

    assert json.loads(stream.getvalue())["event"] == "ready"


def test_what_is_below_the_level_is_not_written_even_by_loggers_made_before() -> None:
    logger = structlog.get_logger()
    stream = io.StringIO()
    configure_logging("error", "json", stream)

    logger.warning("quiet")
    logging.getLogger("aiohttp").warning("quiet too")

    assert stream.getvalue() == ""


def test_logs_of_libraries_have_the_same_form_and_their_tracebacks() -> None:
    stream = io.StringIO()
    configure_logging("debug", "json", stream)

    logging.getLogger("asyncio").info("not this")
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("asyncio").exception("task %s failed", "poller")
    (line,) = stream.getvalue().splitlines()

    assert json.loads(line)["event"] == "task poller failed"
    assert json.loads(line)["logger"] == "asyncio"
    assert "ValueError: broken" in json.loads(line)["exception"]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.floats(0, 1), st.integers(1, 40))
def test_a_quantile_is_the_smallest_value_that_enough_do_not_exceed(values: list[float], q: float, size: int) -> None:
    window = LatencyWindow(size)
    for value in values:
        window.add(value)
    recent = values[-size:]

    found = window.quantile(q)

    enough = [value for value in recent if sum(other <= value for other in recent) >= q * len(recent)]
    assert found == min(enough)
    assert window.count == len(values)


def test_no_latencies_have_no_quantiles() -> None:
    assert LatencyWindow().summary() == {"p50": None, "p99": None}


def test_a_quantile_outside_zero_to_one_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        LatencyWindow().quantile(99)
