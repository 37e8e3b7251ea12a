"""A connection whose other side is gone: TCP stays, nothing comes, nothing is answered."""

from pathlib import Path

from perpline.simulation.incidents import HalfOpen
from running import trouble


async def test_a_half_open_connection_is_left_and_costs_no_candle_and_no_decision(tmp_path: Path) -> None:
    after = await trouble(
        tmp_path, lambda exchange: exchange.happens(HalfOpen(for_s=20)), minutes=5, silence_limit_s=0.8
    )

    assert {line["connection"] for line in after.said("connection_lost")} == {"market-0", "public-1"}
    assert all(entry["live"] for entry in after.status["connections"])
    assert after.gaps(open_only=True) == []
