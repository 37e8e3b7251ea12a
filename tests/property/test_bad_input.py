"""What the decoder lets in is a market's, whatever value stands in whatever field."""

import json
import math
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict

from perpline.common.errors import Malformed
from perpline.domain.candle import KlineUpdate
from perpline.domain.market import BookTicker, MarkPrice
from perpline.exchange.binance.decode import decode

WIRE = Path(__file__).parents[1] / "wire" / "binance"
MESSAGES = [
    json.loads((WIRE / f"{name}.json").read_text())
    for name in ("kline_closed", "kline_forming", "bookTicker", "markPriceUpdate", "markPriceUpdate_array")
]
odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["NaN", "Infinity", "-1", "1e999", "0", "", "9" * 30, "0.1e-320"]),
    st.recursive(st.none(), lambda inside: st.lists(inside, max_size=2) | st.dictionaries(st.text(max_size=2), inside)),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(each for key, part in inside for each in places(part, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], to: Any) -> Any:
    if not path:
        return to
    copy = value.copy()
    copy[path[0]] = changed(value[path[0]], path[1:], to)
    return copy


@given(st.data())
def test_whatever_stands_in_a_field_the_decoder_refuses_it_or_its_numbers_are_numbers(data: st.DataObject) -> None:
    message = data.draw(st.sampled_from(MESSAGES))
    for _ in range(data.draw(st.integers(1, 2))):
        message = changed(message, data.draw(st.sampled_from(places(message))), data.draw(odd))
    try:
        content = decode(json.dumps(message).encode("utf-8", "surrogatepass"), 1_795_219_260_000_000).content
    except Malformed:
        return
    for event in content if isinstance(content, list) else [content]:
        if isinstance(event, KlineUpdate | BookTicker | MarkPrice):
            values = asdict(event)
            assert all(math.isfinite(value) for value in values.values() if isinstance(value, float)), values
            assert values["symbol"]
