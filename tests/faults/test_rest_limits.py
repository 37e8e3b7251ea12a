"""429 and 418: while the exchange wants no requests it gets none, and afterwards everything is made up for."""

from pathlib import Path
from typing import Any

import pytest

from perpline.simulation.incidents import RestFault, RestKind
from perpline.simulation.server import SimulatedExchange
from running import MINUTE, trouble

LIMITS: list[tuple[RestKind, dict[str, Any], int]] = [
    ("429", {"retry_after_s": 40}, 40_000),
    ("429", {}, 0),  # until the minute turns
    ("418", {"retry_after_s": 100}, 100_000),
    ("418", {"banned_s": 100}, 100_000),
    ("418", {}, 120_000),
]
UNDER_WAY = 5_000
"""Market milliseconds in which a request may arrive that had left before we were told to stop."""


@pytest.mark.parametrize(("kind", "told", "pause"), LIMITS)
async def test_a_limit_stops_every_request_for_as_long_as_it_says_and_costs_no_candle(
    tmp_path: Path, kind: RestKind, told: dict[str, Any], pause: int
) -> None:
    def limit(exchange: SimulatedExchange) -> None:
        exchange.faults.missing_close_share = 0.3
        exchange.happens(RestFault(kind=kind, times=1, **told))

    after = await trouble(tmp_path, limit, gap_repair="live")

    [told_at] = [at for at, _, status in after.exchange.requested if status == int(kind)]
    until = told_at + pause if pause else told_at - told_at % MINUTE + MINUTE
    asked_meanwhile = [
        (at, path) for at, path, _ in after.exchange.requested if told_at + UNDER_WAY < at < until - UNDER_WAY
    ]
    assert asked_meanwhile == []
    assert after.gaps(open_only=True) == []
