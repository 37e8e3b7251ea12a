"""The worker on the simulated exchange: afterwards its database is what the exchange says happened."""

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from perpline.bootstrap import LIVE_SERIES
from perpline.common.errors import NeedsPerson
from perpline.metrics import GROUPS, METRICS, families
from perpline.simulation.server import SimulatedExchange
from perpline.worker_client import events, read_access
from running import (
    HOUR,
    MINUTE,
    Database,
    assert_candles_are_the_truth,
    assert_one_decision_a_minute,
    eventually,
    next_close,
    settings_file,
    simulated,
    working,
)

FIVE_MINUTES = 5 * MINUTE


async def test_after_five_minutes_the_database_is_the_exchanges_truth(tmp_path: Path) -> None:
    async with simulated(speed=30.0) as exchange, working(exchange, tmp_path) as worker:
        await worker.until_ready()
        last = next_close(exchange.clock.now_ms(), 5)
        database = Database(tmp_path)
        await worker.until(lambda: database.decided_until(last, len(exchange.symbols)), what="the last decision")
        # The polled rows of the hour that has just closed are published up to a minute later.
        await worker.until(lambda: exchange.clock.now_ms() > last + 30_000)
        status = await worker.stop()

        assert_candles_are_the_truth(exchange, database, last, history=240)
        assert_one_decision_a_minute(database, exchange.symbols, last)
        # A close that falls into the start of a process on a busy machine may be missed, and says so.
        missed = "SELECT symbol, close_time FROM signals WHERE status = 'skipped_missed' AND close_time > ?"
        assert database.rows(missed, worker.ready_at) == []
        assert_every_full_minute_is_summed_up(exchange, database, worker.ready_at, last)
        assert_polled_series_are_there(exchange, database, worker.ready_at, last)
        assert database.rows("SELECT * FROM revisions") == []
        assert database.rows("SELECT * FROM gaps WHERE to_time > ? OR repaired_at IS NULL", worker.ready_at) == []
        assert (status["messages"]["malformed"], status["messages"]["failed"]) == (0, 0)
        assert status["messages"]["unhandled"] == 0
        assert status["messages"]["unknown_fields"] == {}
        assert [entry["losses"] for entry in status["connections"]] == [0, 0]


def assert_every_full_minute_is_summed_up(
    exchange: SimulatedExchange, database: Database, since: int, until: int
) -> None:
    """premium_index and book_minutes of every minute that was heard from its beginning to its end."""
    minutes = list(range(next_close(since), until, MINUTE))
    for symbol in exchange.symbols:
        index = exchange.exchange.index_of[symbol]
        rows = database.rows(
            "SELECT minute, samples, mark_price, index_price, funding_rate, next_funding_time, updated_at "
            "FROM premium_index WHERE symbol = ? AND minute BETWEEN ? AND ? ORDER BY minute",
            *(symbol, minutes[0], minutes[-1]),
        )
        assert [row[0] for row in rows] == minutes
        for _, samples, mark_price, index_price, rate, funding_time, updated_at in rows:
            truth = exchange.exchange.mark(index, updated_at)
            assert samples == 60
            assert (mark_price, index_price) == pytest.approx((truth.mark, truth.index), abs=1e-7)
            assert (rate, funding_time) == (pytest.approx(truth.funding_rate, abs=1e-8), truth.next_funding_ms)
        rows = database.rows(
            "SELECT minute, bid, ask, updates, spread_bps, imbalance FROM book_minutes "
            "WHERE symbol = ? AND minute BETWEEN ? AND ? ORDER BY minute",
            *(symbol, minutes[0], minutes[-1]),
        )
        assert [row[0] for row in rows] == minutes
        for _, bid, ask, updates, spread_bps, imbalance in rows:
            assert 0 < bid < ask
            assert updates > 0
            assert spread_bps > 0
            assert -1 <= imbalance <= 1


def assert_polled_series_are_there(exchange: SimulatedExchange, database: Database, since: int, until: int) -> None:
    hour = until - until % HOUR
    assert since < hour < until, "the test was meant to see an hour close"
    for symbol in exchange.symbols:
        ratios = database.rows(
            "SELECT ratio FROM long_short_ratio WHERE symbol = ? AND period_end = ? AND revision = 0 ORDER BY ratio",
            *(symbol, hour),
        )
        assert [ratio for (ratio,) in ratios] == ["global_account", "taker", "top_account", "top_position"]
        [(value, known_at)] = database.rows(
            "SELECT open_interest_value, known_at FROM open_interest "
            "WHERE symbol = ? AND time = ? AND kind = 'hist_5m' AND revision = 0",
            *(symbol, hour),
        )
        assert value > 0
        assert known_at >= hour + 120_000
        polled = [
            t for (t,) in database.rows("SELECT time FROM open_interest WHERE symbol = ? AND kind = 'spot_1m'", symbol)
        ]
        # Once a minute, give or take a round that began late on a busy machine.
        assert len(polled) >= (until - since) // MINUTE - 1
        assert database.value("SELECT count(*) FROM mark_klines WHERE symbol = ?", symbol) >= 2


ONLY_SOMETIMES = {
    "perpline_disk_full_in_seconds",
    "perpline_messages_dropped_total",
    "perpline_model_drifting_columns",
    "perpline_model_signals_unusual",
    "perpline_order_socket_ready",
    "perpline_reconciled_timestamp_seconds",
    "perpline_reconciliations_total",
    "perpline_shadow_predictions_total",
    "perpline_spool_oldest_seconds",
    "perpline_user_stream_connects_total",
    "perpline_user_stream_live",
    "perpline_user_stream_malformed_total",
}
"""Metrics that a worker of a few minutes on paper has no facts for."""


async def test_a_listener_hears_the_market_and_each_decision_as_they_are_stored(tmp_path: Path) -> None:
    async with simulated(speed=60.0) as exchange, working(exchange, tmp_path) as worker:
        await worker.until_ready()
        last, decisions, prices, states = next_close(exchange.clock.now_ms(), 2), set(), {}, []
        access = read_access(tmp_path, worker.status_port)
        async with aiohttp.ClientSession() as session, asyncio.timeout(30):
            async for message in events(access, session):
                if message["type"] == "market":
                    prices.update(message["rows"])
                elif message["type"] == "state":
                    states.append(message["status"])
                elif message["type"] == "decisions":
                    decisions |= {(row["symbol"], row["close_time"], row["status"]) for row in message["rows"]}
                if {(symbol, t) for symbol, t, _ in decisions} >= {(symbol, last) for symbol in exchange.symbols}:
                    break
            async for message in events(access, session):  # the next listener hears the whole of it
                if message["type"] == "market":
                    assert list(message["rows"]) == list(exchange.symbols)
                    break
        database = Database(tmp_path)
        stored = database.rows("SELECT symbol, close_time, status FROM signals WHERE close_time = ?", last)
        status = await worker.stop()

        assert {row for row in decisions if row[1] == last} == set(stored)
        for symbol in exchange.symbols:
            price, bid, ask, mark, *_ = prices[symbol]
            assert 0 < bid < ask
            assert (price, mark) == (pytest.approx(bid, rel=0.05), pytest.approx(bid, rel=0.05))
        assert "symbols" not in states[-1]
        stages = status["decisions"]["stages_ms"]
        assert list(stages) == ["exchange", "collect", "features", "predict", "decide", "commit", "publish"]
        assert all(0 <= stage["p50"] <= stage["p99"] for stage in stages.values())
        whole = status["decisions"]["market_close_to_signal_ms"]["p50"]
        told = {sample.name for family in families({**status, **states[-1]}) for sample in family.samples}
        elsewhere = {metric.name for name in ("Collectors", "Inference workers", "Nights") for metric in GROUPS[name]}
        assert {metric.name for metric in METRICS} - told - elsewhere <= ONLY_SOMETIMES
        assert stages["commit"]["p50"] < sum(stage["p50"] for stage in stages.values()) < 3 * whole


async def test_a_restart_goes_on_where_it_ended_and_asks_for_the_remainder_only(tmp_path: Path) -> None:
    async with simulated(speed=60.0) as exchange:
        async with working(exchange, tmp_path) as first:
            await first.until_ready()
            database = Database(tmp_path)
            paused = next_close(exchange.clock.now_ms(), 1)
            await first.until(lambda: database.decided_until(paused, len(exchange.symbols)))
            await first.stop()
        cold = exchange.stats.requests["/fapi/v1/klines"]
        stored = database.value("SELECT count(*) FROM candles_1m")
        await eventually(lambda: exchange.clock.now_ms() > paused + 2 * MINUTE + 40_000)
        async with working(exchange, tmp_path) as second:
            await second.until_ready()
            warm = exchange.stats.requests["/fapi/v1/klines"] - cold
            last = next_close(exchange.clock.now_ms(), 2)
            await second.until(lambda: database.decided_until(last, len(exchange.symbols)))
            await second.stop()

        assert stored >= 240 * len(exchange.symbols)
        assert cold >= 3 * len(exchange.symbols)
        # The three intervals of each symbol where they have a remainder, and closes that came while it started.
        assert warm <= 4 * len(exchange.symbols)
        assert_candles_are_the_truth(exchange, database, last, history=240)
        statuses = assert_one_decision_a_minute(database, exchange.symbols, last)
        assert statuses["skipped_missed"] >= len(exchange.symbols), "minutes in which no worker was alive"
        assert_only_what_was_missed_was_not_published(database)


def assert_only_what_was_missed_was_not_published(database: Database) -> None:
    published = set(database.rows("SELECT symbol, close_time FROM outbox WHERE kind = 'signal'"))
    decided = set(database.rows("SELECT symbol, close_time FROM signals WHERE status <> 'skipped_missed'"))
    assert published == decided
    assert database.value("SELECT count(*) FROM outbox WHERE published_at IS NULL") == 0


async def test_a_worker_killed_at_random_moments_leaves_no_hole_and_no_double(tmp_path: Path) -> None:
    seed = int(os.environ.get("PERPLINE_TEST_SEED", "20261123"))
    print(f"PERPLINE_TEST_SEED={seed}")
    rng = random.Random(seed)
    async with simulated(speed=60.0) as exchange:
        settings = settings_file(exchange, tmp_path)
        database = Database(tmp_path)
        deaths = []
        for round_number in range(4):
            process = await started(settings)
            try:
                if round_number == 0:
                    await eventually(database.decisions, 30.0)
                await asyncio.sleep(rng.uniform(0.2, 2.5))
            finally:
                process.send_signal(signal.SIGKILL)
                await process.wait()
                deaths.append(exchange.clock.now_ms())
        process = await started(settings)
        again = "SELECT count(*) FROM signals WHERE status <> 'skipped_missed' AND close_time > ?"
        await eventually(lambda: database.value(again, deaths[-1]) >= len(exchange.symbols), 30.0)
        last = next_close(exchange.clock.now_ms(), 2)
        await eventually(lambda: database.decided_until(last, len(exchange.symbols)), 30.0)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0

        assert_candles_are_the_truth(exchange, database, last, history=240)
        assert_one_decision_a_minute(database, exchange.symbols, last)
        assert_only_what_was_missed_was_not_published(database)
        assert_only_what_died_with_the_process_is_missing(database, deaths)


def assert_only_what_died_with_the_process_is_missing(database: Database, deaths: list[int]) -> None:
    """No candle; and of series that nobody can fetch again, the minutes around a death."""
    for series, start, end in database.rows("SELECT series, from_time, to_time FROM gaps WHERE repaired_at IS NULL"):
        assert series in LIVE_SERIES
        assert any(start <= death < end + MINUTE for death in deaths), (series, start, end)


async def started(settings: Path) -> asyncio.subprocess.Process:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PERPLINE_")}
    with (settings.parent / "worker.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "perpline", "run", "--config", str(settings)), stderr=log, env=environment
        )


async def test_a_database_filled_from_a_later_market_is_refused(tmp_path: Path) -> None:
    async with simulated(start_ms=next_close(1_795_183_200_000, 90)) as later, working(later, tmp_path) as worker:
        await worker.until_ready()
        await worker.stop()
    async with simulated(start_ms=1_795_183_200_000) as earlier, working(earlier, tmp_path) as worker:
        with pytest.raises(NeedsPerson, match="use another database"):
            await worker.until_ready()
