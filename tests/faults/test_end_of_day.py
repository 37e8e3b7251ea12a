"""Connections that the exchange ends, as it does after 24 hours."""

from pathlib import Path

from perpline.simulation.incidents import End
from perpline.simulation.server import SimulatedExchange
from running import trouble


async def test_ended_connections_are_opened_again_and_cost_no_candle_and_no_decision(tmp_path: Path) -> None:
    def end(exchange: SimulatedExchange) -> None:
        for at_s in (0, 90):
            exchange.happens(End(at_s=at_s))

    after = await trouble(tmp_path, end)

    # One that is still waiting to come back when the second end comes is not hit by it.
    assert sum(entry["losses"] for entry in after.status["connections"]) >= 3
    assert all("closed by the exchange: 1001" in line["reason"] for line in after.said("connection_lost"))
    assert after.gaps(open_only=True) == []
