"""An exchange whose clock is not ours: off, drifting, stepping."""

from pathlib import Path

import pytest

from perpline.simulation.incidents import WrongClock
from running import trouble


@pytest.mark.parametrize("offset_ms", [-20_000, 20_000])
async def test_a_clock_that_steps_costs_no_candle_and_no_decision(tmp_path: Path, offset_ms: int) -> None:
    after = await trouble(tmp_path, lambda exchange: exchange.happens(WrongClock(offset_ms=offset_ms, at_s=30)))

    assert after.database.rows("SELECT * FROM revisions") == []
    assert after.gaps(open_only=True) == []


async def test_a_clock_that_drifts_costs_no_candle_and_no_decision(tmp_path: Path) -> None:
    after = await trouble(tmp_path, lambda exchange: exchange.happens(WrongClock(drift_ppm=-30_000.0)))

    assert after.database.rows("SELECT * FROM revisions") == []
    assert after.gaps(open_only=True) == []
