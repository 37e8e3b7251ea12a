"""An exchange that sends slowly, and one that takes its time to read."""

from pathlib import Path

from perpline.simulation.incidents import SlowReading, SlowSending
from perpline.simulation.server import SimulatedExchange
from running import trouble


async def test_frames_that_come_in_drops_and_late_cost_no_candle_and_no_decision(tmp_path: Path) -> None:
    after = await trouble(tmp_path, lambda exchange: exchange.happens(SlowSending(bytes_per_s=6_000)), minutes=4)

    assert after.status["candles"]["late_closes"] > 0
    assert after.gaps(open_only=True) == []
    assert after.database.rows("SELECT * FROM revisions") == []


async def test_subscriptions_that_are_read_late_cost_no_candle_and_no_decision(tmp_path: Path) -> None:
    def read_late(exchange: SimulatedExchange) -> None:
        exchange.happens(SlowReading(delay_s=0.4))
        exchange.disconnect()

    after = await trouble(tmp_path, read_late)

    assert all(entry["live"] for entry in after.status["connections"])
    assert after.gaps(open_only=True) == []
