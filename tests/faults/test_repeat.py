"""Frames that are sent twice."""

from pathlib import Path

from running import trouble


async def test_frames_sent_twice_are_stored_once_and_decided_once(tmp_path: Path) -> None:
    after = await trouble(tmp_path, lambda exchange: setattr(exchange.faults, "repeat_share", 1.0))

    assert after.exchange.stats.frames["repeated"] > 100
    assert after.status["candles"]["repeats"] > 0
    assert after.status["candles"]["revisions"] == 0
    assert after.gaps() == []
    # A mark price that came twice is one sample.
    assert after.database.value("SELECT max(samples) FROM premium_index") <= 60
