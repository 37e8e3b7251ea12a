"""What every store promises of long series, and what `symbol_history` makes of them."""

import math
import random

import numpy as np
import pytest
from databases import Database

from perpline.collector.bulk import (
    Holes,
    keep_klines,
    keep_open_interest,
    keep_ratio,
    stored_span,
    stored_symbols,
)
from perpline.domain.candle import Candle
from perpline.storage.history import HISTORY_TABLES, symbol_history
from perpline.storage.store import TABLES, Columns, Row, Store

MINUTE = 60_000
PERIOD = 5 * MINUTE


def candle_values(symbol: str, open_time: int, **other: object) -> Row:
    close = 1 + random.Random(f"{symbol}{open_time}").random()
    values: dict[str, object] = {
        "symbol": symbol,
        "open_time": open_time,
        "close_time": open_time + MINUTE - 1,
        **dict.fromkeys(("open", "high", "low"), 0.1 + 0.2),
        "close": close,
        "volume": 100.125,
        "quote_volume": 1e12 / 3,
        "trades": 7,
        "taker_buy_volume": 5e-324,
        "taker_buy_quote_volume": 0.0,
        **dict.fromkeys(("log_open", "log_high", "log_low", "log_close"), -(2**40) - open_time),
        "synthetic": open_time % (3 * MINUTE) == 0,
        "source": "archive",
        "received_at": 5,
    }
    return tuple({**values, **other}[column] for column in TABLES["candles_1m"].columns)


def plain(columns: Columns) -> dict[str, list[object]]:
    return {name: values.tolist() for name, values in columns.items()}


async def test_a_series_is_the_rows_of_its_span_in_order_bit_for_bit(store: Store) -> None:
    minutes = random.Random(3).sample(range(3000), 1200)
    rows = [candle_values(symbol, n * MINUTE) for n in minutes for symbol in ("AUSDT", "BUSDT")]
    await store.add_rows("candles_1m", rows)
    names = TABLES["candles_1m"].columns

    found = await store.series("candles_1m", "AUSDT", 100 * MINUTE, 2000 * MINUTE, names)

    expected = sorted(row for row in rows if row[0] == "AUSDT" and 100 * MINUTE <= row[1] < 2000 * MINUTE)
    assert list(zip(*plain(found).values(), strict=True)) == expected
    kinds = {name: values.dtype.kind for name, values in found.items()}
    assert (kinds["open_time"], kinds["log_low"], kinds["close"], kinds["synthetic"], kinds["source"]) == tuple("iifbU")


async def test_a_series_without_rows_is_empty_arrays_of_the_same_types(store: Store) -> None:
    columns = ("open_time", "close", "synthetic", "source")

    found = await store.series("candles_1m", "AUSDT", 0, MINUTE, columns)

    assert {name: (len(values), values.dtype.kind) for name, values in found.items()} == {
        "open_time": (0, "i"),
        "close": (0, "f"),
        "synthetic": (0, "b"),
        "source": (0, "U"),
    }


@pytest.mark.parametrize("table", sorted(TABLES))
async def test_every_table_has_a_series_of_all_its_columns(store: Store, table: str) -> None:
    found = await store.series(table, "AUSDT", 0, 10, TABLES[table].columns)

    assert list(found) == list(TABLES[table].columns)


async def test_a_candle_of_a_file_without_flow_says_so_and_no_zero_is_made_of_it(store: Store) -> None:
    untold = dict.fromkeys(("quote_volume", "trades", "taker_buy_volume", "taker_buy_quote_volume"))
    rows = [candle_values("AUSDT", 0, **untold), candle_values("AUSDT", MINUTE)]
    await store.add_rows("candles_1m", rows)

    candles = (await symbol_history(store, "AUSDT", 0, 2 * MINUTE)).candles
    first, second = await store.candles("1m", "AUSDT", 0, 2 * MINUTE)

    assert np.isnan(candles["quote_volume"]).tolist() == np.isnan(candles["taker_buy_volume"]).tolist() == [True, False]
    assert candles["trades"].tolist() == [-1, 7]
    assert math.isnan(first.quote_volume)
    assert math.isnan(first.taker_buy_quote_volume)
    assert (first.trades, first.volume) == (-1, 100.125)
    assert second == Candle("1m", *rows[1])
    assert (await store.last_candles("1m", ["AUSDT"], 1))["AUSDT"] == [second]


async def test_values_known_later_come_later_whatever_period_they_are_of(store: Store) -> None:
    await store.add_rows(
        "open_interest",
        [
            ("AUSDT", 2 * PERIOD, 12.5, 120.0, "hist_5m", 2 * PERIOD + 120_000, 0),
            ("AUSDT", PERIOD, 11.5, 110.0, "hist_5m", PERIOD + 120_000, 0),
            ("AUSDT", PERIOD, 11.75, None, "hist_5m", 9 * PERIOD, 1),
            ("AUSDT", PERIOD, 99.0, None, "spot_1m", PERIOD, 0),
            ("BUSDT", PERIOD, 99.0, 1.0, "hist_5m", PERIOD, 0),
        ],
    )
    await store.add_rows(
        "long_short_ratio",
        [
            ("AUSDT", ratio, period * PERIOD, value, 0.5, 0.5, period * PERIOD + 120_000, 0, 0)
            for ratio, period, value in (("taker", 2, 2.5), ("taker", 1, 1.5), ("global_account", 1, 3.5))
        ],
    )

    history = await symbol_history(store, "AUSDT", 0, 3 * PERIOD)

    assert history.open_interest["open_interest"].tolist() == [11.5, 12.5, 11.75]
    assert history.open_interest["revision"].tolist() == [0, 0, 1]
    assert np.isnan(history.open_interest["open_interest_value"]).tolist() == [False, False, True]
    assert {ratio: columns["value"].tolist() for ratio, columns in history.ratios.items()} == {
        "global_account": [3.5],
        "top_account": [],
        "top_position": [],
        "taker": [1.5, 2.5],
    }


async def test_a_history_holds_every_series_or_those_asked_for(store: Store, database: Database) -> None:
    prices = [("AUSDT", n * MINUTE, 1.5, 2.5, -1e-5, 1.25, "rest", 5) for n in (1, 0)]
    for table in ("mark_klines", "index_klines", "premium_klines"):
        await store.add_rows(table, prices)
    await store.add_rows("funding_rates", [("AUSDT", 3, 1e-4, None, None, 60_003), ("AUSDT", 8, 2e-4, 5.0, 8, 60_008)])
    await store.add_rows("book_minutes", [("AUSDT", 0, 1.5, 2.5, 1.75, 3.5, None, 0.25, None, 3, None, 59_000, 59_001)])

    history = await symbol_history(store, "AUSDT", 0, 10 * MINUTE)

    for columns in (history.mark, history.index, history.premium):
        assert plain(columns) == {
            "open_time": [0, MINUTE],
            "open": [1.5, 1.5],
            "high": [2.5, 2.5],
            "low": [-1e-5, -1e-5],
            "close": [1.25, 1.25],
        }
    assert history.funding["rate"].tolist() == [1e-4, 2e-4]
    assert str(history.funding["interval_hours"].tolist()) == "[nan, 8.0]"
    assert history.book["updates"].tolist() == [3]
    assert str(history.book["spread_bps"].tolist()) == "[nan]"

    some = await symbol_history(store, "AUSDT", 0, 10 * MINUTE, tables={"mark_klines"})

    assert some.mark["close"].tolist() == [1.25, 1.25]
    assert [len(some.index["close"]), len(some.funding["rate"]), len(some.ratios["taker"]["value"])] == [0, 0, 0]
    assert some.funding["interval_hours"].dtype == history.funding["interval_hours"].dtype == np.float64
    with pytest.raises(ValueError, match="outbox is no table of a history"):
        await symbol_history(store, "AUSDT", 0, 1, tables={"outbox"})


def test_every_column_of_a_history_is_one_of_its_table() -> None:
    assert {
        table: [column for column in columns if column not in TABLES[table].columns]
        for table, columns in HISTORY_TABLES.items()
    } == {table: [] for table in HISTORY_TABLES}


async def test_bulk_rows_and_the_ledger_of_holes_are_the_same_in_every_store(store: Store) -> None:
    """What `perpline import`, `backfill` and `gaps` ask of a database."""

    def columns(*minutes: int) -> Columns:
        time = np.array(minutes, np.int64) * MINUTE
        return {"open_time": time} | {
            name: np.full(len(time), 5.0) for name in ("open", "high", "low", "close", "volume")
        }

    symbols = ["AUSDT", "O'USDT"]
    ends = np.array([1, 2, 5]) * PERIOD
    first = await keep_klines(store, "candles_1m", [(symbol, columns(1, 2, 6)) for symbol in symbols], "archive", 7)
    again = await keep_klines(store, "candles_1m", [("AUSDT", columns(2, 3))], "rest", 7)
    await keep_open_interest(store, "AUSDT", ends, ends / 1.0, ends / 1.0, 7)
    await keep_ratio(store, "AUSDT", "taker", ends, ends / 1.0, 7)

    assert (first.new, again.new, again.duplicates) == (6, 1, 1)
    assert await stored_symbols(store) == symbols
    assert await stored_span(store, "O'USDT", "candles_1m", 6 * MINUTE, 6 * MINUTE) == (2 * MINUTE, 7 * MINUTE)
    assert await stored_span(store, "NOUSDT", "candles_1m", 0, 0) is None
    for series, step in (("candles_1m", MINUTE), ("open_interest", PERIOD), ("long_short_ratio:taker", PERIOD)):
        span = await stored_span(store, "AUSDT", series, 0, 2**40)
        assert span is not None
        holes = Holes(store, await store.gaps())
        left = await holes.settle("AUSDT", series, *span, "lost", "archive", 7)
        assert [(start // step, end // step) for start, end in left] == [(4, 6) if step == MINUTE else (3, 5)]
    assert [(gap.series, gap.cause, gap.repaired_at) for gap in await store.gaps(only_open=True)] == [
        ("candles_1m", "lost", None),
        ("open_interest", "lost", None),
        ("long_short_ratio:taker", "lost", None),
    ]
