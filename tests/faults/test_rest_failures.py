"""REST that fails in every way it has, while closing frames are missing and the worker needs it."""

from pathlib import Path
from typing import get_args

from perpline.simulation.faults import Faults
from perpline.simulation.incidents import RestFault, RestKind
from perpline.simulation.server import SimulatedExchange
from running import LENGTHS, Database, next_close, simulated, trouble, true_candles, working

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


async def test_what_is_missing_in_the_end_is_exactly_what_the_open_gaps_say(tmp_path: Path) -> None:
    """With gap_repair = "retrain" what is in a window is fetched when REST is back; the rest is left to training."""
    faults = Faults(seed=7, missing_close_share=1.0)
    async with simulated(faults=faults) as exchange, working(exchange, tmp_path) as worker:
        await worker.until_ready()
        exchange.happens(RestFault(kind="503b", for_s=300))
        until = next_close(exchange.clock.now_ms(), 6)
        database = Database(tmp_path)
        await worker.until(lambda: database.decided_until(until, len(exchange.symbols)))
        # A request that was being repeated when REST came back takes its time; so does the healing that waits for it.
        await worker.until(lambda: exchange.clock.now_ms() > until + 150_000)
        await worker.until(lambda: not database.rows("SELECT 1 FROM gaps WHERE repaired_at IS NULL"))
        await worker.stop()

        for interval, length in LENGTHS.items():
            rows = database.candles(interval, until - until % length)
            since = {symbol: open_time for symbol, open_time, *_ in reversed(rows)}
            truth = true_candles(exchange, interval, since, until - until % length)
            gaps = database.rows(
                "SELECT symbol, from_time, to_time FROM gaps WHERE series = ? AND repaired_at IS NULL",
                f"candles_{interval}",
            )
            said = sorted((symbol, at) for symbol, start, end in gaps for at in range(start, end, length))
            assert set(rows) <= set(truth)
            assert [row[:2] for row in sorted(set(truth) - set(rows))] == said == []
        assert database.rows("SELECT 1 FROM gaps WHERE series = 'candles_1h' AND repaired_by = 'rest'") != []


async def test_a_wall_that_refuses_everything_for_a_while_is_waited_out(tmp_path: Path) -> None:
    after = await trouble(
        tmp_path, lambda exchange: exchange.happens(RestFault(kind="403", path="/fapi/v1/klines", for_s=60))
    )

    assert after.gaps(open_only=True) == []
