"""Streams asked for where they are not served: acknowledged, and silent for ever (binance.md 1.2)."""

import asyncio
import random
from contextlib import suppress

from structlog.testing import capture_logs

from perpline.common.clock import SystemClock
from perpline.exchange.binance import endpoints
from perpline.exchange.binance.decode import decode
from perpline.websocket.connection import Connection, Deadlines
from perpline.websocket.stream_router import StreamRouter
from running import eventually, simulated


async def test_on_the_unrouted_path_public_streams_speak_and_the_others_are_named_as_silent() -> None:
    async with simulated() as exchange:
        link = Connection(
            name="unrouted",
            url=f"{exchange.ws_url}/stream",
            streams=["btcusdt@bookTicker", "btcusdt@kline_1m", "btcusdt@markPrice@1s"],
            on_messages=StreamRouter(decode, {}).route_batch,
            subscribe_request=endpoints.subscribe_request,
            unsubscribe_request=endpoints.unsubscribe_request,
            clock=SystemClock(),
            rng=random.Random(1),
            deadlines=Deadlines(first_data_s=0.3),
        )
        with capture_logs() as logs:
            task = asyncio.create_task(link.run())
            await eventually(lambda: link.live)
            await eventually(lambda: any(line["event"] == "streams_silent" for line in logs))
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    assert link.silent_streams() == ["btcusdt@kline_1m", "btcusdt@markPrice@1s"]
    [first, *_] = [line for line in logs if line["event"] == "streams_silent"]
    assert first["streams"] == ["btcusdt@kline_1m", "btcusdt@markPrice@1s"]


async def test_on_the_wrong_route_nothing_speaks_and_the_connection_has_proved_nothing() -> None:
    async with simulated() as exchange:
        link = Connection(
            name="wrong",
            url=endpoints.connection_url(exchange.ws_url, "public"),
            streams=["btcusdt@kline_1m"],
            on_messages=StreamRouter(decode, {}).route_batch,
            subscribe_request=endpoints.subscribe_request,
            unsubscribe_request=endpoints.unsubscribe_request,
            clock=SystemClock(),
            rng=random.Random(1),
            deadlines=Deadlines(first_data_s=0.2, silence_s=0.6),
        )
        task = asyncio.create_task(link.run())
        await eventually(lambda: link.failures == 1)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    assert (link.connects, link.losses, link.live) == (1, 0, False)
    assert link.last_error.startswith("no data for")
