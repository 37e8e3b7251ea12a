"""The worker fed by WebSocket."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

from perpline.bootstrap import make_connections, make_recorder, opened_parts
from perpline.common.config import Settings
from perpline.exchange.binance import endpoints
from perpline.worker import Worker


async def run_ws(
    settings: Settings, stop: asyncio.Event, rng: random.Random, on_ready: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Run until `stop` is set; returns the worker's last status.

    Raises NeedsPerson for what only a person can mend, Unavailable where the exchange does not answer at the start.
    """
    async with opened_parts(settings, rng) as (parts, rest):
        recorder = make_recorder(settings, parts.clock)
        connections = make_connections(parts, rng, recorder)
        carrier = {stream: connection for connection in connections for stream in connection.streams}

        def heard(symbol: str, kind: str) -> float | None:
            stream = endpoints.stream_name(symbol, kind)
            return carrier[stream].streams[stream].heard_at if stream in carrier else None

        def waiting_for() -> list[str]:
            return [stream for connection in connections for stream in connection.silent_streams()]

        worker = Worker(
            parts,
            rest,
            [(connection.name, connection.run) for connection in connections],
            heard=heard,
            waiting_for=waiting_for,
            on_ready=on_ready,
            connections=connections,
            recorder=recorder,
        )
        return await worker.run(stop)
