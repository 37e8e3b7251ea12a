"""One simulated exchange for a module of tests: clients that nobody here wrote are pointed at it, unmodified.

What they accept, a user's code will accept; what they read is compared with the exchange's own account.
"""

from collections.abc import AsyncIterator

import pytest_asyncio

from perpline.common.clock import SystemClock
from perpline.simulation.server import SimulatedExchange

START = 1_795_400_000_000 // 60_000 * 60_000 + 30_000
"""2026-11-23 04:53:30 UTC."""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def exchange() -> AsyncIterator[SimulatedExchange]:
    async with SimulatedExchange(seed=3, symbols=3, clock=SystemClock(60.0, anchor_ms=START)) as exchange:
        yield exchange


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def real_time() -> AsyncIterator[SimulatedExchange]:
    """An exchange whose clock is that of the clients: they stamp what they sign by the wall."""
    async with SimulatedExchange(seed=3, symbols=3) as exchange:
        yield exchange
