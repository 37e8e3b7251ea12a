"""Frames that overtake each other."""

from pathlib import Path

from perpline.simulation.incidents import Reorder
from running import MINUTE, trouble


async def test_frames_out_of_order_cost_no_candle_and_no_decision(tmp_path: Path) -> None:
    after = await trouble(tmp_path, lambda exchange: exchange.happens(Reorder(share=0.5, by=40)), minutes=3)

    assert after.exchange.stats.frames["reordered"] > 100
    assert after.gaps(open_only=True) == after.database.rows("SELECT * FROM revisions") == []
    for symbol, minute, updated_at in after.database.rows("SELECT symbol, minute, updated_at FROM premium_index"):
        assert minute <= updated_at < minute + MINUTE, symbol
