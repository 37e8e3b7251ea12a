"""A database that is away, slow or locked while a worker works: decisions go on, and every row is there afterwards."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import apsw
import asyncpg
import pytest
from structlog.testing import capture_logs

from perpline.simulation.server import SimulatedExchange
from postgres_server import NoPostgres, PostgresServer
from running import (
    LENGTHS,
    MINUTE,
    Database,
    RunningWorker,
    assert_candles_are_the_truth,
    assert_one_decision_a_minute,
    eventually,
    next_close,
    settings_file,
    simulated,
    true_candles,
    working,
)

SERIES = ("premium_index", "book_minutes", "mark_klines", "index_klines", "premium_klines", "open_interest")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another connection holds the file's write lock."""
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(10_000)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def minutes_of(database: Database, table: str, symbol: str, since: int, until: int) -> list[int]:
    query = f"SELECT minute FROM {table} WHERE symbol = ? AND minute >= ? AND minute < ? ORDER BY minute"
    return [minute for (minute,) in database.rows(query, symbol, since, until)]


async def test_decisions_and_rows_of_a_locked_database_wait_on_disk_and_reach_it(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with simulated(speed=30.0) as exchange, working(exchange, tmp_path) as worker:
            await worker.until_ready()
            database = Database(tmp_path)
            first = next_close(exchange.clock.now_ms())
            await worker.until(lambda: database.decided_until(first, 3))
            with locked(tmp_path / "perpline.db"):
                away = next_close(exchange.clock.now_ms(), 3)
                await worker.until(lambda: exchange.clock.now_ms() > away + 5_000)
                assert database.decisions(away, away) == 0
            until = next_close(exchange.clock.now_ms(), 1)
            await worker.until(lambda: database.decided_until(until, 3), within_s=40, what="the last decision")
            await worker.until(lambda: exchange.clock.now_ms() > until + 30_000)
            status = await worker.stop()

    assert_candles_are_the_truth(exchange, database, until, history=240)
    assert_one_decision_a_minute(database, exchange.symbols, until)
    missed = "SELECT symbol, close_time FROM signals WHERE status = 'skipped_missed' AND close_time > ?"
    assert database.rows(missed, first) == []
    for table in ("premium_index", "book_minutes"):
        for symbol in exchange.symbols:
            assert minutes_of(database, table, symbol, first, until) == list(range(first, until, MINUTE)), table
    assert status["spool"]["decisions"]["spooled"] >= 2 * 3
    assert (status["spool"]["records"], status["spool"]["dropped"]) == (0, 0)
    assert {each["waiting"] for each in status["buffers"].values()} == {0}
    assert database.value("SELECT count(*) FROM outbox WHERE published_at IS NULL") == 0
    alarms = [line["event"] for line in logs if line["log_level"] == "error"]
    assert alarms.count("decisions_spooled") == 1
    assert alarms.count("rows_wait") <= 1
    assert "decision_not_stored" not in alarms


# ---- PostgreSQL


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server of this test's own, to be stopped and started."""
    try:
        server = PostgresServer()
    except (NoPostgres, OSError) as error:
        pytest.skip(f"no PostgreSQL here ({error})")
    server.start()
    yield server
    server.remove()


class Tables:
    """The tables of a worker on PostgreSQL."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(self.url)
        try:
            return [tuple(row) for row in await connection.fetch(query, *values)]
        finally:
            await connection.close()

    async def decided(self, close_time: int) -> int:
        [(count,)] = await self.rows("SELECT count(*) FROM signals WHERE close_time = $1", close_time)
        return int(count)


def server_processes(postmaster: int) -> list[int]:
    """The postmaster, and the children that each serve a connection."""
    return [postmaster, *map(int, Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split())]


async def until_decided(worker: RunningWorker, tables: Tables, close_time: int, within_s: float = 40.0) -> None:
    deadline = asyncio.get_running_loop().time() + within_s
    while await tables.decided(close_time) < 3:
        assert asyncio.get_running_loop().time() < deadline, "the last decision"
        await asyncio.sleep(0.1)


async def assert_all_is_there(exchange: SimulatedExchange, tables: Tables, since: int, until: int) -> None:
    """From `since` on: the exchange's candles, one decision a minute with seqs in order, a row a minute of the rest."""
    for interval, length in LENGTHS.items():
        end, begin = until - until % length, since - since % length
        rows = await tables.rows(
            "SELECT symbol, open_time, close_time, open, high, low, close, volume, quote_volume, trades, "
            f"taker_buy_volume, taker_buy_quote_volume FROM candles_{interval} "
            'WHERE open_time >= $1 AND open_time < $2 ORDER BY symbol COLLATE "C", open_time',
            begin,
            end,
        )
        assert rows == true_candles(exchange, interval, dict.fromkeys(exchange.symbols, begin), end), interval
    for symbol in exchange.symbols:
        decided = await tables.rows(
            "SELECT close_time, seq, status FROM signals WHERE symbol = $1 AND close_time > $2 AND close_time <= $3 "
            "ORDER BY close_time",
            symbol,
            since,
            until,
        )
        assert [close_time for close_time, _, _ in decided] == list(range(since + MINUTE, until + 1, MINUTE))
        assert [seq for _, seq, _ in decided] == list(range(decided[0][1], decided[0][1] + len(decided)))
        assert "skipped_missed" not in {status for _, _, status in decided}
        for table in ("premium_index", "book_minutes"):
            found = await tables.rows(
                f"SELECT minute FROM {table} WHERE symbol = $1 AND minute >= $2 AND minute < $3 ORDER BY minute",
                symbol,
                since,
                until,
            )
            assert [minute for (minute,) in found] == list(range(since, until, MINUTE)), table


@pytest.mark.full
@pytest.mark.parametrize("how", ["stopped", "frozen"])
async def test_a_postgresql_server_that_is_away_for_minutes_costs_no_decision_and_no_row(
    own_postgres: PostgresServer, tmp_path: Path, how: str
) -> None:
    tables = Tables(own_postgres.url())
    process = own_postgres._process
    assert process is not None
    with capture_logs() as logs:
        async with (
            simulated(speed=40.0 if how == "stopped" else 15.0) as exchange,
            working(exchange, tmp_path, database_url=own_postgres.url()) as worker,
        ):
            await worker.until_ready()
            first = next_close(exchange.clock.now_ms())
            await until_decided(worker, tables, first)
            if how == "stopped":
                await asyncio.to_thread(own_postgres.stop)
            else:
                everybody = server_processes(process.pid)
                for each in everybody:
                    os.kill(each, signal.SIGSTOP)
            back = next_close(exchange.clock.now_ms(), 3 if how == "stopped" else 6)
            await worker.until(lambda: exchange.clock.now_ms() > back + 5_000)
            if how == "stopped":
                await asyncio.to_thread(own_postgres.start)
            else:
                for each in everybody:
                    os.kill(each, signal.SIGCONT)
            until = next_close(exchange.clock.now_ms(), 2)
            await until_decided(worker, tables, until)
            await worker.until(lambda: exchange.clock.now_ms() > until + 15_000)
            status = await worker.stop()
            await assert_all_is_there(exchange, tables, first, until)

    assert status["spool"]["decisions"]["spooled"] >= 2 * 3
    assert (status["spool"]["records"], status["spool"]["dropped"]) == (0, 0)
    assert await tables.rows("SELECT id FROM outbox WHERE published_at IS NULL") == []
    alarms = [line["event"] for line in logs if line["log_level"] == "error"]
    assert alarms.count("decisions_spooled") <= 2
    assert "decision_not_stored" not in alarms


# ---- a death meanwhile


@contextlib.asynccontextmanager
async def worker_process(config: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "perpline", "run", "--config", str(config), stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.full
async def test_a_worker_killed_while_its_database_is_away_has_lost_no_decision_and_says_which_rows(
    tmp_path: Path,
) -> None:
    async with simulated(speed=15.0) as exchange:
        config = settings_file(exchange, tmp_path)
        database = Database(tmp_path)
        async with worker_process(config) as process:
            await eventually(lambda: database.decisions() >= 6, 60, "the first decisions")
            before = database.value("SELECT max(close_time) FROM signals")
            with locked(tmp_path / "perpline.db"):
                killed_at = next_close(exchange.clock.now_ms(), 4) + 20_000
                await eventually(lambda: exchange.clock.now_ms() > killed_at, 60)
                process.kill()
                await process.wait()
        decided_until = killed_at - killed_at % MINUTE
        assert database.value("SELECT max(close_time) FROM signals") <= before + 2 * MINUTE < decided_until
        async with worker_process(config) as process:
            until = next_close(exchange.clock.now_ms(), 3)
            await eventually(lambda: database.decided_until(until, 3), 60, "the last decision")
            await eventually(lambda: exchange.clock.now_ms() > until + 30_000, 60)
            process.terminate()  # which writes all, where a kill would take what the last ten seconds brought
            await process.wait()

        assert_candles_are_the_truth(exchange, database, until, history=240)
        assert_one_decision_a_minute(database, exchange.symbols, until)
        missed = database.rows(
            "SELECT symbol, close_time FROM signals WHERE status = 'skipped_missed' AND close_time <= ?", decided_until
        )
        assert missed == [], "decided and kept on disk before the death"
        for table in ("premium_index", "book_minutes"):
            for symbol in exchange.symbols:
                there = set(minutes_of(database, table, symbol, before, until))
                gaps = database.rows(
                    "SELECT from_time, to_time FROM gaps WHERE symbol = ? AND series = ?", symbol, table
                )
                noted = {minute for start, end in gaps for minute in range(start, end, MINUTE)}
                missing = set(range(before, until, MINUTE)) - there
                assert missing <= noted, (table, symbol)
                # What was older than the flush interval when it died was on disk.
                assert all(minute > killed_at - 5 * MINUTE for minute in missing), (table, symbol)
