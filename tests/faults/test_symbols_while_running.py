"""The list of symbols changes while a worker runs."""

import json
from collections import Counter
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from perpline.realtime_worker import run_rest
from perpline.simulation.server import SimulatedExchange
from perpline.storage.sqlite import SqliteStore
from perpline.storage.symbols import Action, SymbolChange, store_symbols
from running import MINUTE, Database, RunningWorker, simulated, true_candles, working


async def changed(exchange: SimulatedExchange, folder: Path, action: Action, *symbols: str) -> int:
    """A person's rows; returns when they were written, market time."""
    store = SqliteStore(folder / "perpline.db")
    await store.open()
    now = exchange.clock.now_ms()
    rows = [SymbolChange(symbol=each, action=action, changed_at=now, by="me", reason="test") for each in symbols]
    await store_symbols(store, rows)
    await store.close()
    return now


async def until_decided(worker: RunningWorker, database: Database, since: int, *symbols: str, minutes: int = 2) -> None:
    """Until each of these symbols has so many rows for minutes after `since`."""
    query = "SELECT count(*) FROM signals WHERE symbol = ? AND close_time > ?"

    def enough() -> bool:
        return all(database.value(query, symbol, since) >= minutes for symbol in symbols)

    await worker.until(enough, what=f"decisions on {symbols}")


async def until_forgotten(worker: RunningWorker, database: Database, *symbols: str) -> None:
    query = "SELECT followed_at FROM listings WHERE symbol = ?"
    await worker.until(
        lambda: all(database.rows(query, symbol) == [(None,)] for symbol in symbols), what=f"{symbols} forgotten"
    )


def runs(minutes: list[int]) -> list[tuple[int, int]]:
    """First and last of each run of minutes without a hole."""
    found: list[tuple[int, int]] = []
    for minute in minutes:
        if found and minute == found[-1][1] + MINUTE:
            found[-1] = found[-1][0], minute
        else:
            found.append((minute, minute))
    return found


@pytest.mark.parametrize("lanes", [1, pytest.param(2, marks=pytest.mark.full)])
async def test_symbols_that_come_and_go_have_one_row_for_every_minute_between(tmp_path: Path, lanes: int) -> None:
    database = Database(tmp_path)
    with capture_logs() as logs:
        async with simulated(speed=60.0, symbols=6) as exchange:
            a, b, c, d, e, f = exchange.symbols
            async with working(exchange, tmp_path, symbols=[a, b, c], lanes=lanes) as worker:
                await worker.until_ready()
                added = await changed(exchange, tmp_path, "add", d, e)
                await until_decided(worker, database, added, d, e)
                removed = await changed(exchange, tmp_path, "remove", b, d)
                added_later = await changed(exchange, tmp_path, "add", f)
                await until_forgotten(worker, database, b, d)
                await until_decided(worker, database, added_later, f)
                again = await changed(exchange, tmp_path, "add", b)
                await until_decided(worker, database, again, a, b, c, e, f)
                status = await worker.stop()

            assert status["messages"]["failed"] == 0
            assert sorted(status["symbols"]) == sorted([a, b, c, e, f])
            decided = {
                symbol: [
                    t
                    for (t,) in database.rows(
                        "SELECT close_time FROM signals WHERE symbol = ? ORDER BY close_time", symbol
                    )
                ]
                for symbol in exchange.symbols
            }
            runs_of = {symbol: runs(minutes) for symbol, minutes in decided.items()}
            assert {symbol: len(found) for symbol, found in runs_of.items()} == {a: 1, b: 2, c: 1, d: 1, e: 1, f: 1}
            for symbol, at, run in ((d, added, 0), (e, added, 0), (f, added_later, 0), (b, again, 1)):
                assert at < runs_of[symbol][run][0], symbol
            # The minutes that had closed when they were removed have their rows.
            assert min(runs_of[symbol][0][1] for symbol in (b, d)) >= removed - removed % MINUTE
            newest = {runs_of[symbol][-1][1] for symbol in (a, b, c, e, f)}
            assert max(newest) - min(newest) <= MINUTE
            for symbol, minutes in decided.items():
                have = [row for row in database.candles("1m", max(newest)) if row[0] == symbol]
                truth = true_candles(exchange, "1m", {symbol: have[0][1]}, max(newest))
                assert set(have) <= set(truth)
                assert {t - MINUTE for t in minutes if t < max(newest)} <= {row[1] for row in have}

    told = [json.loads(payload) for (payload,) in database.rows("SELECT payload FROM outbox WHERE kind = 'close'")]
    rows = Counter(t for minutes in decided.values() for t in minutes)
    assert {each["T"]: each["n"] for each in told if each["T"] < min(newest)} == {
        t: n for t, n in rows.items() if t < min(newest)
    }
    assert len({each["T"] for each in told}) == len(told)
    assert Counter(line["symbol"] for line in logs if line["event"] == "symbol_followed") == {d: 1, e: 1, f: 1, b: 1}


@pytest.mark.full
async def test_the_list_holds_for_the_next_start_and_what_was_not_followed_is_not_missed(tmp_path: Path) -> None:
    database = Database(tmp_path)
    async with simulated(speed=60.0, symbols=4) as exchange:
        a, b, c, d = exchange.symbols
        async with working(exchange, tmp_path, symbols=[a, b, c]) as worker:
            await worker.until_ready()
            await until_decided(worker, database, 0, a, b, c)
            await worker.stop()
        await changed(exchange, tmp_path, "remove", b)
        last_of_b = database.value("SELECT max(close_time) FROM signals WHERE symbol = ?", b)
        async with working(exchange, tmp_path, symbols=[a, b, c]) as worker:
            await worker.until_ready()
            assert database.value("SELECT max(close_time) FROM signals WHERE symbol = ?", b) == last_of_b
            await until_decided(worker, database, worker.ready_at, a, c)
            await worker.stop()
        back = await changed(exchange, tmp_path, "add", b, d)
        async with working(exchange, tmp_path, symbols=[a, b, c]) as worker:
            await worker.until_ready()
            await until_decided(worker, database, worker.ready_at, a, b, c, d)
            status = await worker.stop()

    assert sorted(status["symbols"]) == sorted([a, b, c, d])
    minutes = [t for (t,) in database.rows("SELECT close_time FROM signals WHERE symbol = ? ORDER BY close_time", b)]
    assert [t for t in minutes if last_of_b < t <= back] == []
    assert len(runs(minutes)) == 2


@pytest.mark.full
async def test_the_worker_fed_by_rest_follows_the_same_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("running.run_ws", run_rest)
    database = Database(tmp_path)
    async with simulated(speed=20.0, symbols=4) as exchange:
        a, b, c, d = exchange.symbols
        async with working(exchange, tmp_path, symbols=[a, b, c]) as worker:
            await worker.until_ready()
            added = await changed(exchange, tmp_path, "add", d)
            await until_decided(worker, database, added, d)
            removed = await changed(exchange, tmp_path, "remove", b)
            await until_forgotten(worker, database, b)
            await until_decided(worker, database, removed, a, c, d)
            status = await worker.stop()

    assert sorted(status["symbols"]) == sorted([a, c, d])
    for symbol in exchange.symbols:
        rows = database.rows("SELECT close_time FROM signals WHERE symbol = ? ORDER BY close_time", symbol)
        assert len(runs([t for (t,) in rows])) == 1, symbol
