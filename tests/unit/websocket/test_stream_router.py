"""Every message to its handler, counted, and nothing a message holds stops the stream."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct
from structlog.testing import capture_logs

from perpline.collector.malformed import MAX_KEPT_BYTES, MalformedFile
from perpline.common.errors import Malformed
from perpline.websocket.stream_router import StreamRouter


class Price(Struct):
    value: int


class Ack(Struct):
    pass


class News(Struct):
    event_type: str


class Framed(Struct):
    kind: str
    stream: str
    content: object


def decode(data: bytes, received_us: int) -> Framed:
    """price 7 · prices 7 8 · ack · news NAME · anything else is malformed."""
    word, *rest = data.decode().split()
    if word == "price":
        return Framed("price", "btc@price", Price(int(rest[0])))
    if word == "prices":
        return Framed("price", "!price@arr", [Price(int(each)) for each in rest])
    if word == "ack":
        return Framed("control", "", Ack())
    if word == "news":
        return Framed(rest[0], "btc@" + rest[0], News(rest[0]))
    if word == "bug":
        raise KeyError("a bug in decode")
    raise Malformed(f"no message: {data!r}")


class Heard:
    def __init__(self) -> None:
        self.values: list[int] = []
        self.aside: list[tuple[bytes, int, str]] = []

    def price(self, price: Price) -> None:
        if price.value == 13:
            raise ZeroDivisionError("a bug in a handler")
        if price.value == 14:
            raise Malformed("14: impossible after all")
        self.values.append(price.value)

    def keep(self, data: bytes, received_us: int, reason: str) -> None:
        self.aside.append((data, received_us, reason))

    def router(self, **options: Any) -> StreamRouter:
        handlers: dict[type, Callable[[Any], None]] = {Price: self.price, Ack: lambda ack: None}
        return StreamRouter(decode, handlers, set_aside=self.keep, **options)


def counts(router: StreamRouter) -> tuple[int, int, int, int, int]:
    return router.total, router.routed, router.unhandled, router.malformed, router.failed


def test_a_message_goes_to_the_handler_of_its_type_and_its_stream_is_told() -> None:
    heard = Heard()
    router = heard.router()

    assert router.route(b"price 7", 1) == "btc@price"
    assert heard.values == [7]
    assert counts(router) == (1, 1, 0, 0, 0)
    assert router.by_kind == {"price": 1}


def test_a_list_is_given_item_by_item_and_counted_as_one_message() -> None:
    heard = Heard()
    router = heard.router()

    assert router.route(b"prices 7 8 9", 1) == "!price@arr"
    assert heard.values == [7, 8, 9]
    assert counts(router) == (1, 1, 0, 0, 0)


def test_an_acknowledgement_proves_no_stream_alive() -> None:
    router = Heard().router()

    assert router.route(b"ack", 1) is None
    assert counts(router) == (1, 1, 0, 0, 0)


def test_a_type_without_a_handler_is_counted_by_its_name() -> None:
    router = Heard().router()

    assert router.route(b"news depthUpdate", 1) == "btc@depthUpdate"
    router.route(b"news depthUpdate", 2)
    router.route(b"news tomorrow", 3)
    assert counts(router) == (3, 0, 3, 0, 0)
    assert router.unhandled_types == {"depthUpdate": 2, "tomorrow": 1}


def test_a_malformed_message_is_set_aside_with_its_reason_and_proves_nothing() -> None:
    heard = Heard()
    router = heard.router()

    assert router.route(b"what", 5) is None
    assert router.route(b"price 7", 6) == "btc@price"
    assert counts(router) == (2, 1, 0, 1, 0)
    assert heard.aside == [(b"what", 5, "no message: b'what'")]
    assert router.malformed_reasons == {"no message": 1}


def test_what_a_handler_finds_malformed_is_malformed() -> None:
    heard = Heard()
    router = heard.router()

    assert router.route(b"price 14", 1) is None
    assert counts(router) == (1, 0, 0, 1, 0)


def test_a_bug_in_a_handler_is_counted_told_with_its_traceback_and_the_next_message_is_routed() -> None:
    heard = Heard()
    router = heard.router()

    with capture_logs() as logs:
        assert router.route(b"price 13", 1) == "btc@price"
    router.route(b"price 7", 2)

    assert heard.values == [7]
    assert counts(router) == (2, 1, 0, 0, 1)
    assert heard.aside == [(b"price 13", 1, "handler failed: ZeroDivisionError('a bug in a handler')")]
    [line] = logs
    assert (line["event"], line["log_level"], line["stream"]) == ("handler_failed", "error", "btc@price")
    assert isinstance(line["exc_info"], ZeroDivisionError)


def test_a_bug_in_decode_is_as_loud_and_stops_nothing_either() -> None:
    heard = Heard()
    router = heard.router()

    with capture_logs() as logs:
        assert router.route(b"bug", 1) is None
    router.route(b"price 7", 2)

    assert heard.values == [7]
    assert counts(router) == (2, 1, 0, 0, 1)
    assert [line["log_level"] for line in logs] == ["error"]


def test_names_and_reasons_from_outside_are_bounded() -> None:
    router = Heard().router()
    for number in range(500):
        router.route(f"news n{number}".encode(), 1)
        router.route(f"x{number}".encode(), 1)

    assert len(router.unhandled_types) == len(router.by_kind) == 201
    assert router.unhandled_types["…"] == router.by_kind["…"] == 300
    assert router.malformed_reasons == {"no message": 500}


def test_fields_are_looked_at_in_messages_that_were_routed_and_in_no_other() -> None:
    seen: list[bytes] = []
    router = Heard().router(see_fields=seen.append)
    for data in (b"price 1", b"what", b"news tomorrow", b"price 13"):
        with capture_logs():
            router.route(data, 1)

    assert seen == [b"price 1"]


def test_rates_are_messages_a_second_over_the_last_ten_seconds() -> None:
    router = Heard().router()
    assert router.rates() == {}
    for second in range(30):
        router.sample(float(second))
        if second == 29:
            break
        for _ in range(4):
            router.route(b"price 1", 1)
        if second >= 19:
            router.route(b"news depth", 1)

    assert router.rates() == {"total": 5.0, "depth": 1.0, "price": 4.0}


def test_two_samples_of_the_same_instant_have_no_rate() -> None:
    router = Heard().router()
    router.sample(1.0)
    router.sample(1.0)

    assert router.rates() == {}


# ---- the file of malformed frames


def test_a_malformed_frame_is_kept_as_a_line_that_gives_back_its_bytes(tmp_path: Path) -> None:
    file = MalformedFile(tmp_path / "deep" / "malformed.frames", 10_000)
    file.keep(b"\xff{", 17, "no JSON")

    [line] = (tmp_path / "deep" / "malformed.frames").read_text().splitlines()
    kept = json.loads(line)
    assert base64.b64decode(kept.pop("data")) == b"\xff{"
    assert kept == {"received_us": 17, "reason": "no JSON", "length": 2}


def test_of_a_long_frame_the_beginning_is_kept_with_its_length(tmp_path: Path) -> None:
    file = MalformedFile(tmp_path / "malformed.frames", 100_000)
    file.keep(b"x" * 50_000, 1, "too long")

    kept = json.loads((tmp_path / "malformed.frames").read_text())
    assert (kept["length"], len(base64.b64decode(kept["data"]))) == (50_000, MAX_KEPT_BYTES)


def test_the_file_never_grows_beyond_its_size_also_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "malformed.frames"
    for _ in range(3):
        file = MalformedFile(path, 1_000)
        for _ in range(50):
            file.keep(b"garbage", 1, "no JSON")
    assert path.stat().st_size <= 1_000
    assert (file.kept, file.not_kept) == (0, 50)


def test_a_disk_that_cannot_be_written_costs_the_record_and_not_the_stream(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    file = MalformedFile(tmp_path / "file" / "malformed.frames", 1_000)
    with capture_logs() as logs:
        file.keep(b"a", 1, "no JSON")
        file.keep(b"b", 1, "no JSON")

    assert (file.kept, file.not_kept) == (0, 2)
    assert [line["event"] for line in logs] == ["malformed_file_unwritable"]


def test_no_file_is_wanted_where_none_is_named() -> None:
    file = MalformedFile(None, 1_000)
    file.keep(b"a", 1, "no JSON")

    assert file.not_kept == 1
