"""Faults as settings: checked where they enter, drawn from a seed."""

import msgspec
import pytest

from perpline.simulation.faults import Faults, changed, garbage, parsed


def test_faults_are_read_from_name_value_texts():
    faults = parsed(["missing-close-share=0.25", "ack_and_nothing=ethusdt@*", "no_empty_close=true", "seed=7"])

    assert faults == Faults(missing_close_share=0.25, ack_and_nothing="ethusdt@*", no_empty_close=True, seed=7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["missing_close_shar=0.1"], "unknown fault 'missing_close_shar', did you mean 'missing_close_share'"),
        (["repeat_share=1.5"], "fault not accepted: .*repeat_share"),
        (["repeat_share=-1"], "fault not accepted"),
        (["repeat_share=nan"], "fault not accepted"),
        (["repeat_share=some"], "fault not accepted"),
        (["disconnect_every_s"], "a fault is given as NAME=VALUE"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        parsed(settings)


def test_a_refused_change_changes_nothing():
    faults = Faults()

    with pytest.raises(ValueError, match="late_close_share"):
        changed(faults, {"repeat_share": 0.5, "late_close_share": 7})

    assert faults == Faults()


def test_a_closing_frame_is_late_or_missing_by_its_own_draw():
    half = 1 << 63
    faults = Faults(missing_close_share=0.4, late_close_share=0.6, late_close_min_s=4, late_close_max_s=8)

    assert Faults().closing_delay_ms(lambda purpose: 0, empty=True) == 0
    assert Faults(no_empty_close=True).closing_delay_ms(lambda purpose: 0, empty=True) is None
    assert Faults(no_empty_close=True).closing_delay_ms(lambda purpose: 0, empty=False) == 0
    assert faults.closing_delay_ms(lambda purpose: 0, empty=False) is None
    assert faults.closing_delay_ms(lambda purpose: half, empty=False) == 6000
    assert faults.closing_delay_ms(lambda purpose: 2 * half - 1, empty=False) == 0


def test_garbage_is_never_a_usable_message():
    for draw in range(8):
        body, binary = garbage(draw)
        if binary:
            continue
        try:
            message = msgspec.json.decode(body)
        except msgspec.DecodeError:
            continue
        assert message.get("e") in ("bookTicker", "kline", "markPriceUpdate")
        assert "NaN" in message.values() or "k" in message or set(message) == {"e"} or message.get("s") == 17
