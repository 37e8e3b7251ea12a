"""A server that accepts and hangs up."""

from pathlib import Path

from running import trouble


async def test_a_server_that_hangs_up_is_dialled_a_handful_of_times_and_rest_brings_the_closes(tmp_path: Path) -> None:
    def hang_up(exchange) -> None:
        exchange.faults.hang_up = "all"
        exchange.disconnect()

    after = await trouble(tmp_path, hang_up, minutes=4)

    # Seven wall seconds: at the earliest after 1, 3 and 7 of them.
    assert 2 <= after.exchange.stats.connections_by_route["market"] <= 5
    statuses = after.database.rows("SELECT DISTINCT status FROM signals")
    assert ("skipped_stale",) in statuses, "no mark prices, no decision that would need one"
    assert after.database.value("SELECT count(*) FROM signals WHERE status = 'ok' AND detail <> ''") == 0
    assert after.status["candles"]["late_closes"] >= 4 * len(after.exchange.symbols)
    assert after.gaps(open_only=True) == []
