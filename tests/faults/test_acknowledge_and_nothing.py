"""A subscription that is acknowledged and never delivers."""

from pathlib import Path

from running import MINUTE, trouble


async def test_a_stream_that_is_acknowledged_and_silent_is_named_and_rest_brings_its_closes(tmp_path: Path) -> None:
    muted_at = 0

    def mute(exchange) -> None:
        nonlocal muted_at
        muted_at = exchange.clock.now_ms()
        exchange.faults.ack_and_nothing = "ethusdt@kline_*"
        exchange.disconnect("market")

    after = await trouble(tmp_path, mute, minutes=5, first_data_deadline_s=0.5)

    named = {stream for line in after.said("streams_silent") for stream in line["streams"]}
    assert named == {"ethusdt@kline_1m", "ethusdt@kline_15m", "ethusdt@kline_1h"}
    assert {line["action"] for line in after.said("streams_silent")} == {"resubscribe"}
    sources = after.database.rows(
        "SELECT source, count(*) FROM candles_1m "
        "WHERE symbol = 'ETHUSDT' AND close_time BETWEEN ? AND ? GROUP BY source",
        *(muted_at + 2_000, after.until - 2 * MINUTE - 2),
    )
    assert [source for source, _ in sources] == ["rest"]
    assert sources[0][1] >= 3
    assert after.gaps(open_only=True) == []
