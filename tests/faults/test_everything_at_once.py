"""All faults together."""

from pathlib import Path

from perpline.simulation.faults import changed
from running import trouble


async def test_all_faults_together_leave_the_exchanges_candles_and_one_decision_a_minute(tmp_path: Path) -> None:
    def all_at_once(exchange) -> None:
        changed(
            exchange.faults,
            {
                "disconnect_every_s": 130,
                "late_close_share": 0.3,
                "late_close_min_s": 5,
                "late_close_max_s": 90,
                "missing_close_share": 0.2,
                "repeat_share": 0.2,
                "repeat_close_on_subscribe": True,
                "garbage_share": 0.03,
            },
        )

    after = await trouble(tmp_path, all_at_once, minutes=5)

    assert after.gaps(open_only=True) == after.database.rows("SELECT * FROM revisions") == []
