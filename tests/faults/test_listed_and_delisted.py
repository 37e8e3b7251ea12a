"""Contracts that come and go."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from perpline.simulation.faults import Faults
from perpline.simulation.incidents import Delisted, Halted, Listed
from running import (
    MINUTE,
    Database,
    assert_one_decision_a_minute,
    next_close,
    simulated,
    true_candles,
    working,
)

SOL = "SOLUSDT"


async def test_a_delisted_contract_is_forgotten_after_its_last_candle_and_the_others_go_on(tmp_path: Path) -> None:
    database = Database(tmp_path)
    with capture_logs() as logs:
        async with simulated(speed=30.0) as exchange:
            others = [symbol for symbol in exchange.symbols if symbol != SOL]
            async with working(exchange, tmp_path) as worker:
                await worker.until_ready()
                exchange.happens(Delisted(symbol=SOL, at_s=20))
                await worker.until(
                    lambda: database.rows("SELECT 1 FROM listings WHERE symbol = ? AND followed_at IS NULL", SOL),
                    what="forgotten",
                )
                until = next_close(exchange.clock.now_ms(), 2)
                await worker.until(lambda: database.decided_until(until, len(others)), what="the last decision")
                status = await worker.stop()
            async with working(exchange, tmp_path) as again:  # its name is still in the settings
                await again.until_ready()
                assert sorted((await again.stop())["symbols"]) == sorted(others)

            have = [row for row in database.candles("1m", until) if row[0] == SOL]
            assert have == true_candles(exchange, "1m", {SOL: have[0][1]}, until)

    end = have[-1][1] + MINUTE
    assert end < until - MINUTE
    assert [t for (t,) in database.rows("SELECT close_time FROM signals WHERE symbol = ?", SOL)][-1] == end
    assert_one_decision_a_minute(database, [SOL], end)
    assert_one_decision_a_minute(database, others, until)
    assert database.rows("SELECT * FROM gaps WHERE series LIKE 'candles%'") == []
    assert database.rows("SELECT symbol, action, by, reason FROM symbols") == [
        (SOL, "delisted", "perpline", "the exchange says SETTLING")
    ]
    assert sorted(status["symbols"]) == sorted(others)
    assert status["messages"]["failed"] == 0
    assert [line["symbol"] for line in logs if line["event"] == "contract_delisted"] == [SOL]


@pytest.mark.full
async def test_a_halted_contract_says_so_in_its_minutes_and_goes_on_when_it_trades_again(tmp_path: Path) -> None:
    database = Database(tmp_path)
    async with simulated(speed=30.0) as exchange, working(exchange, tmp_path) as worker:
        await worker.until_ready()
        exchange.happens(Halted(symbol=SOL, for_s=180))
        halted = "SELECT count(*) FROM signals WHERE symbol = ? AND detail LIKE '%TRADING_HALT%'"
        await worker.until(lambda: database.value(halted, SOL) >= 1, what="a minute that says halted")
        since = database.value("SELECT max(close_time) FROM signals")
        trading = "SELECT count(*) FROM signals WHERE symbol = ? AND close_time > ? AND detail NOT LIKE '%HALT%'"
        await worker.until(lambda: database.value(trading, SOL, since) >= 1, what="a minute that trades again")
        until = next_close(exchange.clock.now_ms(), 1)
        await worker.until(lambda: database.decided_until(until, len(exchange.symbols)))
        await worker.stop()

    assert_one_decision_a_minute(database, exchange.symbols, until)
    found = database.rows("SELECT DISTINCT status FROM signals WHERE detail LIKE '%TRADING_HALT%'")
    assert found == [("skipped_stale",)]
    assert database.rows("SELECT * FROM gaps WHERE repaired_at IS NULL") == []
    assert database.rows("SELECT * FROM symbols") == []


async def test_a_contract_listed_a_moment_ago_has_what_there_is_and_is_not_decided_on(tmp_path: Path) -> None:
    faults = Faults(incidents=[Listed(symbol=SOL)])
    async with simulated(faults=faults) as exchange:
        listed = exchange.exchange.onboard_ms(2)
        await exchange.clock.sleep((listed - exchange.clock.now_ms()) / 1000 + 65)
        async with working(exchange, tmp_path) as worker:
            await worker.until_ready()
            database = Database(tmp_path)
            # On a slow machine the first minutes are over, and missed, before the start is.
            until = max(listed + 4 * MINUTE, next_close(exchange.clock.now_ms(), 2))
            await worker.until(lambda: database.decided_until(until, 3))
            await worker.stop()

        rows = [row for row in database.candles("1m", until) if row[0] == SOL]
        assert rows == true_candles(exchange, "1m", {SOL: 0}, until)
        assert rows[0][1] == listed
        decided = database.rows("SELECT status, count(*) FROM signals WHERE symbol = ? GROUP BY status", SOL)
        assert {status for status, _ in decided} - {"skipped_missed"} == {"skipped_warmup"}
        absent = database.rows("SELECT series, to_time, repaired_by FROM gaps WHERE symbol = ? ORDER BY series", SOL)
        assert ("candles_1m", listed, "absent") in absent
