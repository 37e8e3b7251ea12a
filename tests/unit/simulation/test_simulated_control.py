"""Control messages and stream names."""

import random

import msgspec
import pytest

from perpline.simulation.control import Control
from perpline.simulation.faults import Faults
from perpline.simulation.streams import Stats, Streams, framed


class Someone:
    def __init__(self):
        self.combined = False
        self.subscriptions = {}

    def subscribe(self, names):
        self.subscriptions.update(dict.fromkeys(names))

    def unsubscribe(self, names):
        for name in names:
            self.subscriptions.pop(name, None)


def _ask(control, **message):
    return msgspec.json.decode(control.reply(msgspec.json.encode(message).decode()))


def test_subscriptions_are_taken_listed_and_given_up():
    control = Control(Someone())

    assert _ask(control, method="SUBSCRIBE", params=["a@b", "c@d"], id=1) == {"result": None, "id": 1}
    assert _ask(control, method="LIST_SUBSCRIPTIONS", id="x-1") == {"result": ["a@b", "c@d"], "id": "x-1"}
    assert _ask(control, method="UNSUBSCRIBE", params=["a@b"], id=2) == {"result": None, "id": 2}
    assert _ask(control, method="LIST_SUBSCRIPTIONS", id=3) == {"result": ["c@d"], "id": 3}


def test_the_combined_property_is_read_and_set():
    control = Control(Someone())

    assert _ask(control, method="GET_PROPERTY", params=["combined"], id=2) == {"result": False, "id": 2}
    assert _ask(control, method="SET_PROPERTY", params=["combined", True], id=5) == {"result": None, "id": 5}
    assert _ask(control, method="GET_PROPERTY", params=["combined"], id=2) == {"result": True, "id": 2}


@pytest.mark.parametrize(
    ("text", "code", "message", "request_id"),
    [
        ('{"method":"GET_PROPERTY","params":["speed"],"id":1}', 0, "Unknown property", 1),
        ('{"method":"SET_PROPERTY","params":["combined","yes"],"id":1}', 1, "Invalid value type: expected Boolean", 1),
        ('{"method":"SET_PROPERTY","params":["combined"],"id":1}', 1, "Invalid value type: expected Boolean", 1),
        ('{"method":"GET_PROPERTY","params":[7],"id":1}', 2, "Invalid request: property name must be a string", 1),
        (
            '{"method":"LIST_SUBSCRIPTIONS","id":-3}',
            2,
            "Invalid request: request ID must be an unsigned integer",
            None,
        ),
        (
            '{"method":"LIST_SUBSCRIPTIONS","id":1.5}',
            2,
            "Invalid request: request ID must be an unsigned integer",
            None,
        ),
        (
            '{"method":"LIST_SUBSCRIPTIONS","id":true}',
            2,
            "Invalid request: request ID must be an unsigned integer",
            None,
        ),
        (
            '{"method":"SUBSCRIBES","id":1}',
            2,
            "Invalid request: unknown variant `SUBSCRIBES`, expected one of `SUBSCRIBE`, `UNSUBSCRIBE`, "
            "`LIST_SUBSCRIPTIONS`, `SET_PROPERTY`, `GET_PROPERTY` at line 1 column 22",
            1,
        ),
        ('{"method":["SUBSCRIBE"],"id":1}', 2, None, 1),
        (
            '{"method":"GET_PROPERTY","params":["combined",1],"id":1}',
            2,
            "Invalid request: too many parameters",
            1,
        ),
        ('{"params":["a@b"],"id":1}', 2, "Invalid request: missing field `method` at line 1 column 25", 1),
        ('{"method":"SUBSCRIBE","params":"a@b","id":1}', 2, "Invalid request: params must be an array", 1),
        ('{"method":"SUBSCRIBE","params":[1],"id":1}', 2, "Invalid request: stream name must be a string", 1),
        ("{", 3, "Invalid JSON: expected value at line 1 column 1", None),
        ("[1]", 3, "Invalid JSON: expected value at line 1 column 1", None),
        ("", 3, "Invalid JSON: expected value at line 1 column 1", None),
    ],
)
def test_a_bad_message_is_refused_in_the_wrapped_form(text, code, message, request_id):
    someone = Someone()

    answer = msgspec.json.decode(Control(someone).reply(text))

    assert set(answer) == {"error", "id"}
    assert answer["id"] == request_id
    assert answer["error"]["code"] == code
    if message is not None:
        assert answer["error"]["msg"] == message
    assert someone.subscriptions == {}


def test_more_than_1024_streams_are_refused_and_nothing_is_taken():
    someone = Someone()
    control = Control(someone)
    _ask(control, method="SUBSCRIBE", params=[f"s{n}@x" for n in range(1000)], id=1)

    answer = _ask(control, method="SUBSCRIBE", params=[f"t{n}@x" for n in range(25)], id=2)

    assert answer["error"]["code"] == 2
    assert len(someone.subscriptions) == 1000
    assert _ask(control, method="SUBSCRIBE", params=[f"t{n}@x" for n in range(24)], id=3)["result"] is None


@pytest.mark.parametrize(
    ("name", "route"),
    [
        ("btcusdt@bookTicker", "public"),
        ("!bookTicker", "public"),
        ("btcusdt@trade", "public"),
        ("btcusdt@depth", "public"),
        ("btcusdt@depth@100ms", "public"),
        ("btcusdt@depth20@500ms", "public"),
        ("btcusdt@aggTrade", "market"),
        ("btcusdt@markPrice", "market"),
        ("btcusdt@markPrice@1s", "market"),
        ("!markPrice@arr@1s", "market"),
        ("btcusdt@kline_15m", "market"),
        ("btcusdt_perpetual@continuousKline_1m", "market"),
        ("btcusdt@ticker", "market"),
        ("!miniTicker@arr", "market"),
    ],
)
def test_a_stream_belongs_to_its_route(name, route):
    stream = Streams(("BTCUSDT",), Faults(), Stats(), random.Random(1)).find(name)

    assert (stream.name, stream.route) == (name, route)


@pytest.mark.parametrize(
    "name",
    ["BTCUSDT@bookTicker", "btcusdt@kline_1s", "btcusdt@kline_1x", "nope@trade", "btcusdt", "btcusdt@", "0", "", "@",
     "btcusdt@depth7", "btcusdt@markPrice@3s", "btcusdt_current@continuousKline_1m"],
)  # fmt: skip
def test_an_unknown_or_upper_case_name_is_no_stream(name):
    assert Streams(("BTCUSDT",), Faults(), Stats(), random.Random(1)).find(name) is None


@pytest.mark.parametrize(
    ("size", "head"),
    [(0, b"\x81\x00"), (125, b"\x81\x7d"), (126, b"\x81\x7e\x00\x7e"), (65_535, b"\x81\x7e\xff\xff"),
     (65_536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00")],
)  # fmt: skip
def test_a_frame_carries_its_length_in_the_shortest_form(size, head):
    assert framed(b"x" * size) == head + b"x" * size
