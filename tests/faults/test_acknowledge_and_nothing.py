"""A subscription that is acknowledged and never delivers."""

from pathlib import Path

from running import trouble


async def test_a_stream_that_is_acknowledged_and_silent_is_named_and_rest_brings_its_closes(tmp_path: Path) -> None:
    def mute(exchange) -> None:
        exchange.faults.ack_and_nothing = "ethusdt@kline_*"
        exchange.disconnect("market")

    after = await trouble(tmp_path, mute, minutes=5, first_data_deadline_s=0.5)

    named = {stream for line in after.said("streams_silent") for stream in line["streams"]}
    assert named == {"ethusdt@kline_1m", "ethusdt@kline_15m", "ethusdt@kline_1h"}
    assert {line["action"] for line in after.said("streams_silent")} == {"resubscribe"}
    by_rest = dict(after.database.rows("SELECT symbol, count(*) FROM candles_1m WHERE source = 'rest' GROUP BY symbol"))
    assert by_rest["ETHUSDT"] >= max(by_rest["BTCUSDT"], by_rest["SOLUSDT"]) + 2
    assert after.gaps(open_only=True) == []
