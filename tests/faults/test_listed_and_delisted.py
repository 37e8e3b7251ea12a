"""Contracts that come and go."""

from pathlib import Path

from perpline.simulation.faults import Faults
from perpline.simulation.incidents import Delisted, Listed
from running import MINUTE, Database, simulated, trouble, true_candles, working

SOL = "SOLUSDT"


async def test_a_delisted_contract_ends_and_the_others_go_on(tmp_path: Path) -> None:
    after = await trouble(tmp_path, lambda exchange: exchange.happens(Delisted(symbol=SOL, at_s=30)))

    last = after.database.value("SELECT max(close_time) FROM candles_1m WHERE symbol = ?", SOL) + 1
    assert last < after.until
    missing = [(start, end) for symbol, _, start, end, _ in sorted(after.gaps(open_only=True)) if symbol == SOL]
    # Of the last minute nobody has despaired yet.
    assert [start for start, _ in missing if start < after.until - MINUTE] == list(
        range(last, after.until - MINUTE, MINUTE)
    )
    assert [end - start for start, end in missing] == [MINUTE] * len(missing)
    decided = after.database.rows("SELECT status FROM signals WHERE symbol = ? AND close_time > ?", SOL, last)
    assert all(status.startswith("skipped_") for (status,) in decided)
    assert {symbol for symbol, *_ in after.gaps()} == {SOL}


async def test_a_contract_listed_a_moment_ago_has_what_there_is_and_is_not_decided_on(tmp_path: Path) -> None:
    faults = Faults(incidents=[Listed(symbol=SOL)])
    async with simulated(faults=faults) as exchange:
        listed = exchange.exchange.onboard_ms(2)
        await exchange.clock.sleep((listed - exchange.clock.now_ms()) / 1000 + 65)
        async with working(exchange, tmp_path) as worker:
            await worker.until_ready()
            database = Database(tmp_path)
            until = listed + 4 * MINUTE
            await worker.until(lambda: database.decided_until(until, 3))
            await worker.stop()

        rows = [row for row in database.candles("1m", until) if row[0] == SOL]
        assert rows == true_candles(exchange, "1m", {SOL: 0}, until)
        assert rows[0][1] == listed
        decided = database.rows("SELECT status, count(*) FROM signals WHERE symbol = ? GROUP BY status", SOL)
        assert [status for status, _ in decided] == ["skipped_warmup"]
        absent = database.rows("SELECT series, to_time, repaired_by FROM gaps WHERE symbol = ? ORDER BY series", SOL)
        assert ("candles_1m", listed, "absent") in absent
