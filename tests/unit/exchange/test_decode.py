import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpline.common.errors import Malformed
from perpline.domain.market import BookTicker
from perpline.exchange.binance.decode import Dropped, FieldWatch, Frame, Unknown, decode

PAYLOADS = {
    path.stem: path.read_bytes() for path in sorted((Path(__file__).parents[2] / "wire" / "binance").glob("*.json"))
}
RECEIVED_US = 1_790_526_539_000_123

BOOK = {"e": "bookTicker", "u": 7, "s": "BTCUSDT", "b": "10.0", "B": "1", "a": "10.1", "A": "2", "T": 5, "E": 6}
MARK = {"e": "markPriceUpdate", "E": 6, "s": "BTCUSDT", "p": "10.0", "P": "9", "i": "10", "r": "0.0001", "T": 60}
CANDLE = {
    **{"t": 60_000, "T": 119_999, "s": "BTCUSDT", "i": "1m", "f": 1, "L": 9, "o": "10", "c": "11", "h": "12"},
    **{"l": "9", "v": "5", "n": 3, "x": True, "q": "50", "V": "2", "Q": "20", "B": "0"},
}


def sent(payload: object) -> Frame:
    """Both forms of the payload decode alike; returns the combined one."""
    combined = json.dumps({"stream": "btcusdt@x", "data": payload}, separators=(",", ":"), ensure_ascii=False)
    bare = decode(json.dumps(payload).encode(), RECEIVED_US)
    frame = decode(combined.encode(), RECEIVED_US)
    assert (frame.kind, frame.content) == (bare.kind, bare.content)
    return frame


def kline(**changes: object) -> dict[str, object]:
    return {"e": "kline", "E": 120_050, "s": "BTCUSDT", "k": {**CANDLE, **changes}}


@pytest.mark.parametrize("number", ["NaN", "nan", "inf", "-inf", "1e400", "0", "-1", "1e15", "", "abc", "0x10", None])
@pytest.mark.parametrize("field", ["b", "a"])
def test_a_price_that_is_no_price_is_refused(field: str, number: str | None) -> None:
    with pytest.raises(Malformed):
        sent({**BOOK, field: number})


@pytest.mark.parametrize("number", ["NaN", "inf", "-0.1", "1e30", ""])
def test_a_quantity_that_is_none_is_refused(number: str) -> None:
    with pytest.raises(Malformed):
        sent({**BOOK, "B": number})


@pytest.mark.parametrize("rate", ["1.5", "-1.01", "NaN", "none"])
def test_a_funding_rate_beyond_one_is_refused(rate: str) -> None:
    with pytest.raises(Malformed):
        sent({**MARK, "r": rate})


@pytest.mark.parametrize("time", [0, -1, 10**14, "soon", 1.5, None])
def test_a_time_of_no_calendar_is_refused(time: object) -> None:
    with pytest.raises(Malformed):
        sent({**MARK, "E": time})


@pytest.mark.parametrize(
    "symbol", ["", "A" * 41, "BTC USDT", "BTC\nUSDT", "BTC\x1b[0m", "../etc", "BTC:USDT", "\u202eBTC", 5]
)
def test_a_name_that_could_do_harm_is_refused(symbol: object) -> None:
    with pytest.raises(Malformed):
        sent({**BOOK, "s": symbol})
    with pytest.raises(Malformed):
        sent({**MARK, "s": symbol})


def test_a_book_ticker_without_any_time_is_refused() -> None:
    timeless = {name: value for name, value in BOOK.items() if name not in "ET"}

    with pytest.raises(Malformed, match="without a time"):
        sent(timeless)


@pytest.mark.parametrize(
    "changes",
    [
        {"t": 60_001},
        {"T": 120_000},
        {"t": 0},
        {"h": "10.5"},
        {"l": "10.5"},
        {"V": "6"},
        {"i": "1x"},
        {"i": "mm"},
        {"i": "1m "},
        {"n": -1},
        {"x": "maybe"},
        {"s": "ETHUSDT"},
        {"o": None},
    ],
)
def test_a_closed_candle_that_contradicts_itself_is_refused(changes: dict[str, object]) -> None:
    sent(kline())

    with pytest.raises(Malformed):
        sent(kline(**changes))


def test_the_relations_of_a_forming_candle_are_not_checked() -> None:
    assert sent(kline(x=False, h="10.5")).kind == "kline_1m"


def test_one_bad_row_makes_an_array_malformed() -> None:
    with pytest.raises(Malformed):
        sent([MARK, {**MARK, "p": "NaN"}])


def test_an_array_of_coin_margined_symbols_is_dropped_whole() -> None:
    frame = sent([{**MARK, "st": 2}, {**MARK, "st": 2}])

    assert (frame.content, frame.coin_m) == (Dropped("coin_m"), 2)


def test_a_coin_margined_message_is_dropped_before_its_numbers_are_judged() -> None:
    assert sent({**BOOK, "st": 2, "b": ""}).content == Dropped("coin_m")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"null",
        b"5",
        b'"text"',
        b"\xff\xfe",
        b'{"foo":1}',
        b'{"stream":"x"}',
        b'{"stream":5,"data":{}}',
        b'{"stream":"x","data":{}}',
        b'{"stream":"x","data":5}',
        b'{"stream":"x","data":[[]]}',
        b'{"e":5}',
        b'{"e":""}',
        b'{"e":"' + b"x" * 41 + b'"}',
        b'{"e":"a\\u0000b"}',
        b'{"id":1}',
        b'{"result":{"a":1},"id":1}',
        b'{"e":"depthUpdate","x":' + b"[" * 100_000,
        b"[" * 100_000,
        b'{"stream":"\xff","data":{"e":"x"}}',
        b'{"u":1e999,"e":"bookTicker"}',
    ],
)
def test_what_is_no_message_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        decode(data, RECEIVED_US)

    assert len(str(caught.value)) < 800


def test_the_reason_holds_only_the_beginning_of_the_frame() -> None:
    with pytest.raises(Malformed, match=r"nested|truncated|Expected|malformed") as caught:
        decode(b'{"e":"bookTicker","pad":"' + b"x" * 5000, RECEIVED_US)

    assert "x" * 120 not in str(caught.value)


def test_mutated_frames_are_malformed_or_still_messages() -> None:
    rng = random.Random(20261122)
    alphabet = b'{}[]",:0123456789.-+eE\\ntrufalsxk\x00\xff "'
    malformed = 0
    watch = FieldWatch()
    for _ in range(6_000):
        frame = bytearray(rng.choice(list(PAYLOADS.values())))
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(frame))
            action = rng.randrange(4)
            if action == 0:
                frame[place] = rng.choice(alphabet)
            elif action == 1:
                del frame[place : place + rng.randint(1, 20)]
            elif action == 2:
                frame[place:place] = bytes(rng.choices(alphabet, k=rng.randint(1, 6)))
            else:
                other = rng.choice(list(PAYLOADS.values()))
                start = rng.randrange(len(other))
                frame[place:place] = other[start : start + rng.randint(1, 60)]
            if not frame:
                frame = bytearray(b" ")
        try:
            decode(bytes(frame), RECEIVED_US)
        except Malformed:
            malformed += 1
        else:
            watch.see(bytes(frame))

    assert 3_000 < malformed < 6_000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)
wire_names = st.sampled_from(
    ["e", "s", "p", "i", "r", "E", "T", "k", "b", "a", "u", "st", "stream", "data", "result", "id"]
)


@settings(deadline=None)
@given(
    st.dictionaries(wire_names, json_values | st.sampled_from(["bookTicker", "kline", "markPriceUpdate"]), max_size=8)
)
def test_any_json_is_malformed_or_a_message(value: dict[str, object]) -> None:
    for data in (value, {"stream": "x", "data": value}, [value]):
        try:
            frame = decode(json.dumps(data).encode(), RECEIVED_US)
        except Malformed:
            continue
        assert frame.kind


@settings(deadline=None)
@given(
    bid=st.floats(min_value=1e-9, max_value=1e12),
    quantity=st.floats(min_value=0, max_value=1e15),
    update_id=st.integers(min_value=0, max_value=2**62 - 1),
)
def test_a_book_ticker_keeps_every_bit_of_its_numbers(bid: float, quantity: float, update_id: int) -> None:
    frame = sent({**BOOK, "b": repr(bid), "B": repr(quantity), "u": update_id})

    assert isinstance(frame.content, BookTicker)
    assert (frame.content.bid, frame.content.bid_qty, frame.content.update_id) == (bid, quantity, update_id)


def test_unknown_fields_are_counted_by_name_in_every_frame() -> None:
    watch = FieldWatch()
    for second in range(5):
        watch.see(json.dumps({"stream": "x", "data": {**MARK, "E": 6000 + second, "xy": "1.5"}}).encode())
    watch.see(json.dumps(MARK).encode())
    watch.see(json.dumps({**kline(zz=1), "w": 2}).encode())
    watch.see(json.dumps({"stream": "x", "node": 3, "data": [{**MARK, "xy": 1}, {**MARK, "xy": 2}]}).encode())

    assert watch.counts == {"markPriceUpdate.xy": 7, "kline.k.zz": 1, "kline.w": 1, "envelope.node": 1}


@pytest.mark.parametrize(
    "extra",
    [{"stream": "x", "data": 5}, {"stream": "x", "data": [5, {"e": []}]}, {"stream": 1, "data": {"e": "kline"}}],
)
def test_a_sound_message_with_the_fields_of_an_envelope_does_no_harm(extra: dict[str, object]) -> None:
    frame = json.dumps({**MARK, **extra}).encode()

    assert decode(frame, RECEIVED_US).kind == "markPrice"
    FieldWatch().see(frame)


def test_bad_text_in_a_field_that_nobody_reads_is_counted() -> None:
    frame = json.dumps({**BOOK, "ps": "@"}).encode().replace(b"@", b"\xff")
    watch = FieldWatch()

    assert isinstance(decode(frame, RECEIVED_US).content, BookTicker)
    assert watch.see(frame) == ("invalid UTF-8",)


def test_a_known_field_that_was_renamed_is_noticed() -> None:
    watch = FieldWatch()
    usual = {**MARK, "ap": "10"}
    renamed = {**MARK, "aq": "10"}

    assert watch.see(json.dumps(usual).encode()) == ()
    assert watch.see(json.dumps(renamed).encode()) == ("markPriceUpdate.aq",)


def test_the_memory_of_the_field_watch_is_bounded() -> None:
    watch = FieldWatch(max_shapes=10, max_names=3)
    for letter in "abcdefghijklmnopqrstuvwxyz":
        watch.see(json.dumps({**MARK, "q" + letter: 1}).encode())

    assert len(watch.counts) == 4
    assert watch.counts.total() == 26
    assert watch.counts["…"] == 23


def test_an_event_of_tomorrow_is_named() -> None:
    assert sent({"e": "liquidityHint", "s": "BTCUSDT"}).content == Unknown("liquidityHint")
