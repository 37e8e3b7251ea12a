"""Minutes without trades: flat candles, told or not, and contracts that are halted."""

from pathlib import Path

import pytest

from perpline.simulation.incidents import Halted, Quiet
from running import trouble


@pytest.mark.parametrize("closing", [True, False])
async def test_minutes_without_trades_are_stored_flat_and_decided(tmp_path: Path, closing: bool) -> None:
    after = await trouble(tmp_path, lambda exchange: exchange.happens(Quiet(share=0.6, closing=closing)), minutes=5)

    flat = after.database.rows("SELECT symbol, open, high, low, close, volume FROM candles_1m WHERE trades = 0")
    assert len(flat) >= 4
    assert all(low == open_ == close == high and volume == 0 for _, open_, high, low, close, volume in flat)
    fetched = after.database.value("SELECT count(*) FROM candles_1m WHERE trades = 0 AND source = 'rest'")
    assert (fetched > 0) == (not closing)
    assert after.gaps(open_only=True) == []


async def test_a_halted_contract_goes_on_with_flat_candles_and_comes_back(tmp_path: Path) -> None:
    after = await trouble(tmp_path, lambda exchange: exchange.happens(Halted(symbol="SOLUSDT", for_s=150)), minutes=4)

    flat = after.database.rows("SELECT open_time, close FROM candles_1m WHERE symbol = 'SOLUSDT' AND trades = 0")
    assert len(flat) in (2, 3)
    assert len({close for _, close in flat}) == 1
    assert after.gaps(open_only=True) == []
