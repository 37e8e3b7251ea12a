"""REST that fails in every way it has, while closing frames are missing and the worker needs it."""

from pathlib import Path
from typing import get_args

from perpline.simulation.incidents import RestFault, RestKind
from perpline.simulation.server import SimulatedExchange
from running import trouble

LIMITS = ("429", "418")


async def test_rest_that_fails_in_every_way_costs_no_candle_and_no_decision(tmp_path: Path) -> None:
    kinds = [kind for kind in get_args(RestKind) if kind not in LIMITS and kind != "403"]

    def fail(exchange: SimulatedExchange) -> None:
        exchange.faults.missing_close_share = 0.5
        for kind in kinds:
            exchange.happens(RestFault(kind=kind, share=0.08, delay_s=0.3))

    after = await trouble(tmp_path, fail, minutes=5, gap_repair="live")

    assert set(after.exchange.stats.rest_faults) == set(kinds)
    assert after.gaps(open_only=True) == []
    assert after.database.rows("SELECT * FROM revisions") == []


async def test_rest_that_is_away_for_minutes_costs_no_candle_in_the_end(tmp_path: Path) -> None:
    """Without REST a minute whose close is missing is decided without it, and its candle is fetched later."""

    def go_away(exchange: SimulatedExchange) -> None:
        exchange.faults.missing_close_share = 0.5
        exchange.happens(RestFault(kind="502"))

    after = await trouble(tmp_path, go_away, gap_repair="live")

    assert after.gaps() != []
    assert after.gaps(open_only=True) == []


async def test_a_wall_that_refuses_everything_for_a_while_is_waited_out(tmp_path: Path) -> None:
    after = await trouble(
        tmp_path, lambda exchange: exchange.happens(RestFault(kind="403", path="/fapi/v1/klines", for_s=60))
    )

    assert after.gaps(open_only=True) == []
