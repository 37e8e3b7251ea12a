"""An exchange whose clock is not ours: off, drifting, stepping; and a host whose own clock does."""

import asyncio
from pathlib import Path

import pytest

from perpline import bootstrap
from perpline.common.clock import SystemClock
from perpline.common.config import Settings
from perpline.simulation.incidents import WrongClock
from perpline.simulation.server import SimulatedExchange
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


async def test_a_host_whose_clock_steps_forward_and_back_loses_no_candle_and_no_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the worker alone: the exchange's clock and the steady one go on."""

    class SteppedClock(SystemClock):
        stepped_us = 0

        def now_us(self) -> int:
            return super().now_us() + self.stepped_us

    clocks: list[SteppedClock] = []

    async def make_clock(settings: Settings) -> SystemClock:
        real = await make_real(settings)
        clock = SteppedClock(real.speed, anchor_ms=real.now_ms())
        clock.stepped_us = -1_500_000  # the host is 1.5 s behind from the beginning
        clocks.append(clock)
        return clock

    make_real = bootstrap.make_clock
    monkeypatch.setattr(bootstrap, "make_clock", make_clock)

    def begin(exchange: SimulatedExchange) -> None:
        def step(by_s: float) -> None:
            for clock in clocks:
                clock.stepped_us += round(by_s * 1e6)

        loop = asyncio.get_running_loop()
        for wall_s, by_s in ((0.6, 3600.0), (2.2, -7200.0), (3.8, 45.0)):
            loop.call_later(wall_s, step, by_s)

    after = await trouble(tmp_path, begin, speed=30.0, decide_within_s=58.0)  # two wall seconds, on a busy host too

    ready_at = after.status["ready_at"]  # what closed while it started may have been missed, on a busy host
    odd = "SELECT symbol, close_time, status, detail FROM signals WHERE status IN ('skipped_missed', 'skipped_stale')"
    assert after.database.rows(f"{odd} AND close_time > ?", ready_at) == []
    assert [gap for gap in after.gaps() if gap[3] > ready_at] == after.gaps(open_only=True) == []
    assert after.database.rows("SELECT * FROM revisions") == []
