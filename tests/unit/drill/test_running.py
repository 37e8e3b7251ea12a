"""What a drill's result says of itself."""

import pytest

from perpline.drill.running import Result
from perpline.drill.score import Score

NOTHING = {
    "candles_lost": 0, "candles_wrong": 0, "decisions_lost": 0, "decisions_twice": 0, "messages_lost": 0,
    "orders_twice": 0,
}  # fmt: skip


def failed(**counts: int) -> Result:
    score = Score(
        **{**NOTHING, **counts}, skipped={}, skipped_excused=0, seconds_to_heal=None, reasons=["it is not well again"]
    )
    return Result(
        name="cut", seed=1, promise="It fails.", result="FAIL", reason=score.reasons[0], score=score, seconds=1.0
    )


def test_a_drill_that_failed_with_nothing_lost_may_be_played_again() -> None:
    assert failed().may_be_the_machine


@pytest.mark.parametrize("count", NOTHING)
def test_what_was_lost_or_came_twice_is_never_put_down_to_a_busy_machine(count: str) -> None:
    assert not failed(**{count: 1}).may_be_the_machine


def test_why_it_failed_before_stays_in_what_is_told() -> None:
    again = failed()
    again.before = "too slow"

    assert again.as_json()["failed_before"] == "too slow"
    assert "failed_before" not in failed().as_json()
