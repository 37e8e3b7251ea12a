"""Closing frames that never come."""

from pathlib import Path

from running import trouble


async def test_closes_that_never_come_are_fetched_at_their_deadline(tmp_path: Path) -> None:
    def lose(exchange) -> None:
        exchange.faults.missing_close_share = 0.6
        exchange.faults.no_empty_close = True

    after = await trouble(tmp_path, lose, minutes=4)

    assert after.status["candles"]["late_closes"] > 0
    assert after.status["candles"]["given_up"] == 0
    assert after.gaps(open_only=True) == []
