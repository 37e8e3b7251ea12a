"""Two connections for the same streams: losing either loses nothing."""

import asyncio
from pathlib import Path

import pytest

from perpline.simulation.server import SimulatedExchange
from running import trouble


def cutting(exchange: SimulatedExchange, every_s: float, times: int) -> None:
    """Cut once one lane and once the other, all connections of it at an instant."""

    async def cut() -> None:
        for number in range(times):
            by_route: dict[str, list] = {}
            for connection in exchange._connections:
                by_route.setdefault(connection.route, []).append(connection)
            for connections in by_route.values():
                if len(connections) == 2:  # the other one is there, and stays
                    sorted(connections, key=lambda each: each.since_ms)[number % 2].cut()
            await asyncio.sleep(every_s)

    exchange.cutting = asyncio.create_task(cut())


async def test_killing_either_of_two_lanes_costs_nothing(tmp_path: Path) -> None:
    began = 0

    def begin(exchange: SimulatedExchange) -> None:
        nonlocal began
        began = exchange.clock.now_ms()
        cutting(exchange, 0.7, 4)

    after = await trouble(tmp_path, begin, minutes=2, lanes=2)

    connections = after.status["connections"]
    assert [entry["name"] for entry in connections] == ["market-0", "market-0.2", "public-1", "public-1.2"]
    assert sum(entry["losses"] for entry in connections) >= 4
    assert [gap for gap in after.gaps() if gap[3] > began] == []
    assert after.status["candles"]["revisions"] == 0
    sources = after.database.rows("SELECT DISTINCT source FROM candles_1m WHERE open_time > ?", began)
    assert sources == [("ws",)]
    statuses = after.database.rows("SELECT DISTINCT status FROM signals WHERE close_time > ?", began)
    assert {status for (status,) in statuses} & {"skipped_gap", "skipped_stale", "skipped_missed"} == set()


@pytest.mark.full
async def test_two_lanes_are_renewed_half_an_age_apart_and_lose_nothing(tmp_path: Path) -> None:
    after = await trouble(
        tmp_path, lambda exchange: None, minutes=5, lanes=2, connection_max_age_s=120, first_data_deadline_s=2
    )

    assert all(entry["rollovers"] >= 2 for entry in after.status["connections"])
    assert after.gaps(open_only=True) == []
