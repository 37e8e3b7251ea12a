"""429 and 418: while the exchange wants no requests it gets none, and afterwards everything is made up for."""

from pathlib import Path
from typing import Any

import pytest

from perpline.simulation.incidents import RestFault, RestKind
from perpline.simulation.server import SimulatedExchange
from running import trouble

LIMITS: list[tuple[RestKind, dict[str, Any], int]] = [
    ("429", {"retry_after_s": 40}, 40),
    ("429", {}, 0),  # until the minute turns
    ("418", {"retry_after_s": 100}, 100),
    ("418", {"banned_s": 100}, 100),
    ("418", {}, 120),
]


@pytest.mark.parametrize(("kind", "told", "pause_s"), LIMITS)
async def test_a_limit_stops_every_request_for_as_long_as_it_says_and_costs_no_candle(
    tmp_path: Path, kind: RestKind, told: dict[str, Any], pause_s: int
) -> None:
    asked_at: list[int] = []

    def limit(exchange: SimulatedExchange) -> None:
        exchange.faults.missing_close_share = 0.3
        exchange.happens(RestFault(kind=kind, times=1, **told))
        real = exchange._rest.answer
        exchange._rest.answer = lambda path, params, address, now_ms: (  # type: ignore[method-assign]
            asked_at.append(now_ms) or real(path, params, address, now_ms)
        )

    after = await trouble(tmp_path, limit, minutes=4)

    assert after.exchange.stats.rest_faults == {kind: 1}
    assert after.exchange.stats.answers[int(kind)] == 1
    assert after.gaps(open_only=True) == []
