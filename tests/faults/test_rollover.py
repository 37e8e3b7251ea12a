"""Connections that are replaced before the exchange cuts them, as it does after 24 hours."""

import asyncio
from pathlib import Path

import pytest

from perpline.exchange.binance import endpoints
from perpline.metrics import metrics
from perpline.simulation.incidents import End
from perpline.simulation.server import SimulatedExchange
from perpline.websocket.subscriptions import STREAM_TYPES
from running import MINUTE, trouble


class Watch:
    """Looks at the exchange's side a hundred times a second: which streams nobody listens to."""

    def __init__(self, exchange: SimulatedExchange) -> None:
        self.looks = 0
        self.alone: list[str] = []
        """Without a listener now and with one again later."""
        self.most = 0
        self._exchange = exchange
        names = [endpoints.stream_name(symbol, kind) for symbol in exchange.symbols for kind in STREAM_TYPES]
        self._streams = [stream for name in names if (stream := exchange._streams.find(name)) is not None]
        assert len(self._streams) == len(names)
        self._task = asyncio.create_task(self._look())

    async def _look(self) -> None:
        alone: list[str] = []
        while True:
            self.looks += 1
            now = [stream.name for stream in self._streams if not stream.listeners]
            alone += now
            if not now:  # else the worker may have ended
                self.alone += alone
                alone = []
            self.most = max(self.most, max(len(stream.listeners) for stream in self._streams))
            await asyncio.sleep(0.01)

    def end(self) -> None:
        self._task.cancel()


async def test_connections_are_replaced_and_no_stream_is_ever_without_one(tmp_path: Path) -> None:
    watch: Watch
    began = 0

    def begin(exchange: SimulatedExchange) -> None:
        nonlocal watch, began
        watch, began = Watch(exchange), exchange.clock.now_ms()

    after = await trouble(tmp_path, begin, minutes=1, connection_max_age_s=60, first_data_deadline_s=2)
    watch.end()

    assert watch.looks > 100
    assert watch.alone == []
    assert watch.most == 2
    connections = after.status["connections"]
    assert all(entry["rollovers"] >= 2 for entry in connections)
    assert [(entry["losses"], entry["connects"] - entry["rollovers"] <= 2) for entry in connections] == [(0, True)] * 2
    assert after.said("connection_lost") == []
    assert f"perpline_rollovers_total {float(after.status['streams']['rollovers'])}" in metrics(after.status).decode()
    # Both heard it while they ran side by side, and it was counted once.
    assert after.status["messages"]["repeats"]["markPrice"] > 0
    assert after.status["messages"]["repeats"]["bookTicker"] > 0
    assert [gap for gap in after.gaps() if gap[3] > began] == []
    assert after.database.rows("SELECT DISTINCT source FROM candles_1m WHERE open_time > ?", began) == [("ws",)]
    whole = (began, after.until - MINUTE)
    samples = after.database.rows("SELECT DISTINCT samples FROM premium_index WHERE minute BETWEEN ? AND ?", *whole)
    assert samples == [(60,)]  # each second's price, and each once


@pytest.mark.full
async def test_a_cut_while_connections_are_replaced_costs_no_candle_and_no_decision(tmp_path: Path) -> None:
    def end_now_and_then(exchange: SimulatedExchange) -> None:
        for at_s in (30, 170):
            exchange.happens(End(at_s=at_s))

    after = await trouble(tmp_path, end_now_and_then, minutes=4, connection_max_age_s=45, first_data_deadline_s=2)

    assert sum(entry["rollovers"] for entry in after.status["connections"]) >= 3
    assert after.gaps(open_only=True) == []
