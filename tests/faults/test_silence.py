"""Streams that fall silent while everything else looks well."""

from pathlib import Path

import pytest

from perpline.simulation.incidents import Silence
from perpline.simulation.server import SimulatedExchange
from running import trouble


@pytest.mark.parametrize("route", ["all", "market"])
async def test_a_silent_connection_is_left_and_costs_no_candle_and_no_decision(tmp_path: Path, route: str) -> None:
    after = await trouble(tmp_path, lambda exchange: exchange.happens(Silence(route=route)), silence_limit_s=0.8)

    lost = {line["connection"].split("-")[0] for line in after.said("connection_lost")}
    assert lost == ({"market", "public"} if route == "all" else {route})
    assert all("no data for" in line["reason"] for line in after.said("connection_lost"))
    assert after.gaps(open_only=True) == []


async def test_streams_that_fall_silent_among_others_are_made_up_for_by_rest(tmp_path: Path) -> None:
    def fall_silent(exchange: SimulatedExchange) -> None:
        exchange.happens(Silence(streams="btcusdt@kline_*"))

    after = await trouble(tmp_path, fall_silent, minutes=4)

    assert after.exchange.stats.frames["silenced"] > 0
    assert [entry["losses"] for entry in after.status["connections"]] == [0, 0]
    assert after.status["candles"]["late_closes"] >= 3
    # Its trades are known from the candles that REST brought, so the silence was not taken for a quiet market.
    named = {stream for line in after.said("streams_stale") for stream in line["streams"]}
    assert named == {"btcusdt@kline_1m", "btcusdt@kline_15m", "btcusdt@kline_1h"}
    assert after.gaps(open_only=True) == []
