"""The worker fed by REST: the market is asked for every few seconds; everything after that is the same."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

from perpline.bootstrap import make_rest_feed, opened_parts
from perpline.collector.rest_feed import KINDS
from perpline.common.config import Settings
from perpline.common.telemetry import LogRing
from perpline.worker import Worker


async def run_rest(
    settings: Settings,
    stop: asyncio.Event,
    rng: random.Random,
    on_ready: Callable[[dict[str, Any]], None],
    logs: LogRing | None = None,
) -> dict[str, Any]:
    """Run until `stop` is set; returns the worker's last status. Errors as in `run_ws`."""
    async with opened_parts(settings, rng) as (parts, rest):
        feed = make_rest_feed(parts, rest)
        parts.on_forget.append(feed.forget)

        def waiting_for() -> list[str]:
            return [
                f"{symbol} {kind}" for symbol in parts.symbols for kind in KINDS if (symbol, kind) not in feed.heard_at
            ]

        worker = Worker(
            parts,
            rest,
            [("REST feed", feed.run)],
            heard=lambda symbol, kind: feed.heard_at.get((symbol, kind)),
            waiting_for=waiting_for,
            on_ready=on_ready,
            rest_feed=feed,
            logs=logs,
        )
        return await worker.run(stop)
