"""What a stream entry holds can be read back."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from perpline.bus.wire import entry_fields, signal_of
from perpline.common.errors import Malformed
from perpline.domain.messages import Flags, Signal
from perpline.domain.signal import Message
from signalling import decision, flat, published

number = st.none() | st.floats(allow_nan=False, allow_infinity=False)
text = st.text(max_size=20)
count = st.integers(0, 2**31)
signals = st.builds(
    Signal,
    **{"id": text, "slot": text, "sym": st.text(min_size=1, max_size=20), "T": st.integers(0, 2**42)},
    **{"side": st.sampled_from([1, 0, -1]), "status": text, "detail": text, "p": number, "ev_bp": number},
    **{"tp": st.none() | text, "sl": st.none() | text, "ref_mark": st.none() | text, "h": st.none() | count},
    **{"cost_bp": number, "valid_until": st.integers(0, 2**42), "model": text, "schema": text},
    **{"flags": st.builds(Flags, count, count, count), "seq": st.integers(1, 2**40), "t_pub_us": st.integers(0, 2**53)},
)


@given(signals)
def test_a_signal_read_from_its_entry_is_the_one_that_was_sent(signal: Signal) -> None:
    payload = msgspec.json.encode(signal).decode()
    message = Message(
        id=1, kind="signal", slot=signal.slot, symbol=signal.sym, close_time=signal.T, payload=payload, valid_until=0
    )

    assert signal_of(entry_fields(message)) == signal


def test_fields_of_tomorrow_are_passed_over() -> None:
    fields = entry_fields(published(flat("AUSDT"), seq=3)) | {"tomorrows": "{", "": "x"}

    assert signal_of(fields).seq == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"v": "2"},
        {"type": "close"},
        {"side": "7"},
        {"side": "long"},
        {"T": "soon"},
        {"T": str(10**18)},
        {"T": "-1"},
        {"seq": "0"},
        {"flags": "{"},
        {"flags": '{"late":0}'},
        {"p": "much"},
    ],
    ids=str,
)
def test_what_is_no_signal_of_this_version_is_malformed(changes: dict[str, Any]) -> None:
    with pytest.raises(Malformed, match="no signal that this version can read"):
        signal_of(entry_fields(published(decision("AUSDT"))) | changes)


@pytest.mark.parametrize("name", ["v", "id", "sym", "flags", "seq"])
def test_a_signal_without_a_field_it_must_have_is_malformed(name: str) -> None:
    fields = entry_fields(published(decision("AUSDT")))
    del fields[name]

    with pytest.raises(Malformed):
        signal_of(fields)


def test_a_signal_without_prices_has_none_of_them_in_its_entry() -> None:
    one = replace(flat("AUSDT"), ref_mark=None, p_cal=None)
    fields = entry_fields(published(one))

    assert {"tp", "sl", "ref_mark", "p"} & fields.keys() == set()
    assert signal_of(fields).p is None
