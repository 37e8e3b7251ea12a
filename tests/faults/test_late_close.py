"""Closing frames that come long after the close."""

from pathlib import Path

from running import trouble


async def test_a_close_that_is_late_is_fetched_and_the_frame_that_comes_after_it_only_compared(tmp_path: Path) -> None:
    def late(exchange) -> None:
        exchange.faults.late_close_share = 0.7
        exchange.faults.late_close_min_s, exchange.faults.late_close_max_s = 18.0, 50.0

    after = await trouble(tmp_path, late, minutes=4)

    assert after.status["candles"]["late_closes"] > 0
    assert after.status["candles"]["repeats"] > 0
    assert after.status["candles"]["revisions"] == 0
    assert after.database.rows("SELECT DISTINCT source FROM candles_1m ORDER BY source") == [("rest",), ("ws",)]
    assert after.gaps(open_only=True) == after.database.rows("SELECT * FROM revisions") == []
