"""The worker fed by WebSocket."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

from perpline.bootstrap import make_market_streams, make_recorder, opened_parts
from perpline.common.config import Settings
from perpline.common.telemetry import LogRing
from perpline.worker import Worker


async def run_ws(
    settings: Settings,
    stop: asyncio.Event,
    rng: random.Random,
    on_ready: Callable[[dict[str, Any]], None],
    logs: LogRing | None = None,
) -> dict[str, Any]:
    """Run until `stop` is set; returns the worker's last status.

    Raises NeedsPerson for what only a person can mend, Unavailable where the exchange does not answer at the start.
    """
    async with opened_parts(settings, rng) as (parts, rest):
        recorder = make_recorder(settings, parts.clock)
        streams = make_market_streams(parts, rng, recorder, rest.at("polls"))
        worker = Worker(
            parts,
            rest,
            [("market streams", streams.run)],
            heard=streams.heard,
            waiting_for=streams.waiting_for,
            on_ready=on_ready,
            streams=streams,
            recorder=recorder,
            logs=logs,
        )
        return await worker.run(stop)
