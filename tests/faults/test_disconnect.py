"""Connections cut without a word."""

import asyncio
from pathlib import Path

from running import trouble


async def test_connections_cut_again_and_again_cost_no_candle_and_no_decision(tmp_path: Path) -> None:
    after = await trouble(tmp_path, lambda exchange: setattr(exchange.faults, "disconnect_every_s", 70.0))

    assert sum(entry["losses"] for entry in after.status["connections"]) >= 2
    assert {line["action"] for line in after.said("connection_lost")} == {"reconnect"}
    assert after.gaps(open_only=True) == []
    assert after.database.rows("SELECT * FROM revisions") == []


async def test_after_a_cut_the_last_closing_frame_sent_again_is_stored_once(tmp_path: Path) -> None:
    def cut(exchange) -> None:
        exchange.faults.repeat_close_on_subscribe = True
        asyncio.get_running_loop().call_later(1.2, exchange.disconnect)  # when a minute has closed

    after = await trouble(tmp_path, cut, minutes=5)

    assert after.exchange.stats.frames["kline_closed_repeated"] > 0
    assert after.status["candles"]["repeats"] > 0
    assert after.gaps(open_only=True) == after.database.rows("SELECT * FROM revisions") == []
