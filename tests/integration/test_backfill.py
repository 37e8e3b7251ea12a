"""What the tables lack is asked of the exchange, once, and what the exchange lacks is written down."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from perpline.collector.archives import find
from perpline.collector.backfill import SERIES, Backfill, BackfillReport
from perpline.collector.importing import Importer
from perpline.common.errors import Refused, Unavailable
from perpline.domain.candle import KlineUpdate
from perpline.exchange.binance.rest import BinanceRest
from perpline.exchange.binance.weight import WeightLedger
from perpline.simulation.history import write_history
from perpline.simulation.server import SimulatedExchange
from perpline.storage.sqlite import SqliteStore
from running import simulated

MINUTE, PERIOD, HOUR, DAY = 60_000, 300_000, 3_600_000, 86_400_000
NOW = 1_795_183_200_000
"""2026-11-20 14:00 UTC."""
START = NOW // DAY * DAY - DAY
END = NOW - 10 * MINUTE
"""The last rows of the archives end here."""


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A day and a half of two contracts."""
    out = tmp_path_factory.mktemp("published")
    write_history(out, seed=5, symbols=2, start_ms=START, end_ms=END, workers=1)
    return out


@pytest.fixture
async def exchange() -> AsyncIterator[SimulatedExchange]:
    async with simulated(speed=1.0, start_ms=NOW, symbols=2, seed=5) as exchange:
        yield exchange


@pytest.fixture
async def rest(exchange: SimulatedExchange) -> AsyncIterator[BinanceRest]:
    rest = BinanceRest(exchange.http_url, exchange.clock, WeightLedger(exchange.clock))
    yield rest
    await rest.close()


async def opened(path: Path) -> SqliteStore:
    store = SqliteStore(path)
    await store.open()
    return store


@pytest.fixture
async def store(archives: Path, tmp_path: Path) -> SqliteStore:
    """All that the archives tell."""
    store = await opened(tmp_path / "market.db")
    for kind in ("candles", "metrics", "funding"):
        report = await Importer(store, lambda: NOW).run(find([archives], kind).files)
        assert not report.quarantined
    return store


async def remove(store: SqliteStore, *queries: str) -> None:
    for query in queries:
        await store._write.run(lambda connection, query=query: connection.execute(query))


async def backfilled(
    rest: Any, store: SqliteStore, exchange: SimulatedExchange, *symbols: str, **options: Any
) -> BackfillReport:
    series = options.pop("series", SERIES)
    span = {name: options.pop(name) for name in ("start", "end") if name in options}
    work = Backfill(rest, store, exchange.clock, **options)
    return await work.run(symbols or ("BTCUSDT", "ETHUSDT"), series, **span)


TOLD = {
    "candles_1m": "symbol, open_time, open, high, low, close, volume, quote_volume, trades, taker_buy_volume, log_low",
    "mark_klines": "symbol, open_time, open, high, low, close",
    "index_klines": "symbol, open_time, open, high, low, close",
    "premium_klines": "symbol, open_time, open, high, low, close",
    "open_interest": "symbol, time, open_interest, known_at",
    "long_short_ratio": "symbol, ratio, period_end, known_at, revision",
    "funding_rates": "symbol, funding_time, rate, interval_hours, known_at",
}


async def content(store: SqliteStore) -> dict[str, list[Any]]:
    return {
        table: await store.select(f"SELECT {columns} FROM {table} ORDER BY 1, 2, 3") for table, columns in TOLD.items()
    }


async def test_what_was_lost_comes_back_as_it_was_and_closes_its_gaps(
    store: SqliteStore, exchange: SimulatedExchange, rest: BinanceRest
) -> None:
    whole = await content(store)
    lost = f"BETWEEN {START + 3 * HOUR} AND {START + 14 * HOUR}"
    await remove(
        store,
        *(f"DELETE FROM {table} WHERE open_time {lost} AND symbol = 'BTCUSDT'" for table in list(TOLD)[:4]),
        f"DELETE FROM open_interest WHERE time {lost}",
        f"DELETE FROM long_short_ratio WHERE period_end {lost}",
        f"DELETE FROM funding_rates WHERE funding_time {lost}",
    )
    await store.open_gap("BTCUSDT", "candles_1m", START + 3 * HOUR, START + 14 * HOUR + MINUTE, "we were away", 1)
    planned: list[int] = []
    done: list[int] = []

    report = await backfilled(
        rest, store, exchange, start=START + PERIOD, end=END, plan=planned.append, progress=done.append,
        series=[name for name in SERIES if name not in ("candles_15m", "candles_1h")],
    )  # fmt: skip

    assert await content(store) == whole
    assert report.rows["candles_1m"] == 11 * 60 + 1
    assert (report.failed, report.holes_left, report.absent, report.synthetic) == ([], 0, 0, 0)
    assert [(gap.cause, gap.repaired_by) for gap in await store.gaps()] == [("we were away", "rest")]
    assert sum(done) == sum(planned) == 4 * 661 + 5 * 2 * 133
    assert await store.select("SELECT DISTINCT source FROM candles_1m ORDER BY source") == [("archive",), ("rest",)]


async def test_without_an_end_everything_up_to_now_is_asked_for_and_the_second_time_nothing(
    store: SqliteStore, exchange: SimulatedExchange, rest: BinanceRest
) -> None:
    first = await backfilled(rest, store, exchange)
    requests = len(exchange.requested)
    again = await backfilled(rest, store, exchange)

    assert first.rows["candles_1m"] == 2 * 6, "10 minutes, but for the last four, which may still come by themselves"
    assert first.rows["candles_15m"] == 2 * (38 * 4 - 1)
    assert first.rows["candles_1h"] == 2 * 37
    assert (first.failed, first.holes_left) == ([], 0)
    assert again.rows == {}
    assert len(exchange.requested) == requests


async def test_a_stopped_backfill_keeps_what_came_and_the_next_one_asks_for_the_rest_only(
    exchange: SimulatedExchange, rest: BinanceRest, tmp_path: Path
) -> None:
    store = await opened(tmp_path / "new.db")
    done: list[int] = []
    asked: list[int] = []

    def plan(rows: int) -> None:
        asked.append(rows)

    stopped = await backfilled(
        rest, store, exchange, "BTCUSDT", series=["candles_1m"], start=NOW - 1000 * MINUTE,
        plan=plan, progress=done.append, stopped=lambda: bool(done),
    )  # fmt: skip
    rest_of_it = await backfilled(
        rest, store, exchange, "BTCUSDT", series=["candles_1m"], start=NOW - 1000 * MINUTE, plan=plan
    )

    assert (stopped.stopped, stopped.rows["candles_1m"]) == (True, 497)
    assert (rest_of_it.stopped, rest_of_it.rows["candles_1m"]) == (False, 996 - 497)
    assert asked == [996, 996 - 497]


async def test_before_its_listing_a_symbol_has_no_minutes_and_none_are_made_up(
    exchange: SimulatedExchange, rest: BinanceRest, tmp_path: Path
) -> None:
    store = await opened(tmp_path / "new.db")
    listed = NOW - 700 * MINUTE
    young = Lacking(rest, lambda open_time: open_time < listed)

    report = await backfilled(young, store, exchange, "BTCUSDT", series=["candles_1m"], start=NOW - 3000 * MINUTE)

    assert (report.rows["candles_1m"], report.synthetic, report.absent) == (696, 0, 0)
    assert await store.gaps() == []


async def test_minutes_that_the_exchange_lacks_are_made_flat_and_the_gap_says_so(
    store: SqliteStore, exchange: SimulatedExchange, rest: BinanceRest
) -> None:
    first, last = START + 100 * MINUTE, START + 800 * MINUTE  # more than a page
    where = f"open_time >= {first} AND open_time < {last} AND symbol = 'BTCUSDT'"
    await remove(store, f"DELETE FROM candles_1m WHERE {where}", f"DELETE FROM mark_klines WHERE {where}")
    await store.open_gap("BTCUSDT", "candles_1m", first, last, "we were away", 1)
    lacking = Lacking(rest, lambda open_time: first <= open_time < last - 10 * MINUTE)

    report = await backfilled(lacking, store, exchange, end=END, series=["candles_1m", "mark_klines"])

    assert report.rows == {"candles_1m": 10, "mark_klines": 10}
    assert (report.synthetic, report.absent, report.holes_left) == (690, 2 * 690, 0)
    before, *made, after = await store.candles("1m", "BTCUSDT", first - MINUTE, last - 9 * MINUTE)
    assert {(one.open, one.high, one.low, one.close, one.log_close) for one in made} == {
        (*[before.close] * 4, before.log_close)
    }
    assert {(one.volume, one.quote_volume, one.trades, one.synthetic) for one in made} == {(0.0, 0.0, 0, True)}
    assert (after.open_time, after.synthetic) == (last - 10 * MINUTE, False)
    found = {(gap.series, gap.from_time, gap.to_time, gap.repaired_by) for gap in await store.gaps()}
    assert ("candles_1m", first, last, "absent") in found
    assert all(by == "absent" for *_, by in found)
    again = await backfilled(lacking, store, exchange, end=END, series=["candles_1m", "mark_klines"])
    assert again.rows == {}


async def test_five_minute_values_older_than_a_month_are_said_to_be_gone(
    exchange: SimulatedExchange, rest: BinanceRest, tmp_path: Path
) -> None:
    store = await opened(tmp_path / "new.db")

    report = await backfilled(
        rest, store, exchange, "BTCUSDT", series=["open_interest"], start=NOW - 31 * DAY, end=NOW - 29 * DAY
    )

    assert report.too_old == {"open_interest": 288 + 2}
    assert report.rows == {"open_interest": 288 - 2}
    assert report.failed == []


async def test_what_fails_is_said_and_the_others_go_on(
    store: SqliteStore, exchange: SimulatedExchange, rest: BinanceRest
) -> None:
    gone = f"open_time BETWEEN {START + HOUR} AND {START + 2 * HOUR}"
    await remove(store, f"DELETE FROM candles_1m WHERE {gone}", f"DELETE FROM mark_klines WHERE {gone}")

    wanted: dict[str, Any] = {"series": ["candles_1m", "mark_klines"], "end": END}
    refused = await backfilled(Failing(rest, Refused("no such symbol", -1121)), store, exchange, **wanted)
    away = await backfilled(Failing(rest, Unavailable("away", 0.01)), store, exchange, **wanted)

    for report, text in ((refused, "no such symbol"), (away, "away")):
        assert sorted(report.failed) == [f"{symbol} candles_1m: {text}" for symbol in ("BTCUSDT", "ETHUSDT")]
        assert report.holes_left == 2
    assert refused.rows["mark_klines"] == 2 * 61


class Lacking:
    """An exchange without some minutes of candles and mark prices."""

    def __init__(self, rest: BinanceRest, lacks: Any) -> None:
        self._rest = rest
        self._lacks = lacks

    async def candles(self, *words: Any, **options: Any) -> list[KlineUpdate]:
        return await self._without(self._rest.candles, words, options)

    async def price_candles(self, *words: Any, **options: Any) -> list[Any]:
        return await self._without(self._rest.price_candles, words, options)

    async def _without(self, ask: Any, words: Any, options: dict[str, Any]) -> list[Any]:
        if options.get("end") is None:  # the first one from here on
            start, limit = options["start"], options["limit"]
            while self._lacks(start):
                start += MINUTE
            options = {"start": start, "limit": limit}
        return [row for row in await ask(*words, **options) if not self._lacks(row.open_time)]


class Relabelled:
    """An exchange that labels open interest by the beginnings of its periods."""

    def __init__(self, rest: BinanceRest) -> None:
        self._rest = rest

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rest, name)

    async def open_interest_hist(self, *words: Any, start: int, end: int, **options: Any) -> list[Any]:
        rows = await self._rest.open_interest_hist(*words, start=start + PERIOD, end=end + PERIOD, **options)
        return [replace(row, time=row.time - PERIOD) for row in rows]


async def test_open_interest_whose_labels_are_not_ends_of_periods_is_not_stored(
    store: SqliteStore, rest: BinanceRest, exchange: SimulatedExchange
) -> None:
    await remove(store, "DELETE FROM open_interest")

    report = await backfilled(Relabelled(rest), store, exchange, "BTCUSDT", series=("open_interest",))

    assert report.failed == [
        "BTCUSDT open_interest: labelled by the beginnings of its periods, not by their ends: not stored"
    ]
    assert (await store.row_counts())["open_interest"] == 0
    report = await backfilled(rest, store, exchange, "BTCUSDT", series=("open_interest",))
    assert report.failed == []
    assert report.rows["open_interest"] > 288


async def test_stored_open_interest_of_wrong_labels_is_named_by_day(
    store: SqliteStore, rest: BinanceRest, exchange: SimulatedExchange
) -> None:
    await remove(store, f"UPDATE open_interest SET time = time - {PERIOD} WHERE symbol = 'BTCUSDT'")

    report = await backfilled(rest, store, exchange, series=("open_interest",))

    days = ("2026-11-19", "2026-11-20")
    said = "BTCUSDT open_interest: the rows stored of {} are labelled by the beginnings of their periods"
    assert report.failed == [said.format(day) for day in days]


class Failing:
    """An exchange that tells no candles."""

    def __init__(self, rest: BinanceRest, error: Exception) -> None:
        self._rest = rest
        self._error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rest, name)

    async def candles(self, *words: Any, **options: Any) -> list[KlineUpdate]:
        raise self._error


async def test_the_command_fills_a_database_from_nothing(exchange: SimulatedExchange, tmp_path: Path) -> None:
    words = ("--rest-url", exchange.http_url, "--database", f"sqlite:///{tmp_path}/new.db", "--json")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "perpline", "backfill", "--from", "2026-11-20T13:00", "--to", "2026-11-20T13:30"),
        *("--symbols", "BTCUSDT", "--series", "candles_1m,long_short_ratio", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=tmp_path,
    )
    out, err = await process.communicate()

    assert process.returncode == 0, err.decode()
    store = await opened(tmp_path / "new.db")
    assert {table: count for table, count in (await store.row_counts()).items() if count} == {
        "candles_1m": 30,
        "long_short_ratio": 4 * 6,
    }
    assert b'"holes_left": 0' in out
    await store.close()
