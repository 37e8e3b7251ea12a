"""What is stored of one symbol that features and labels may use, as columns of numbers."""

from collections.abc import Collection

import numpy as np
from msgspec import Struct

from perpline.domain.market import RATIOS
from perpline.storage.store import TABLES, Columns, Store, column_array

HISTORY_TABLES: dict[str, tuple[str, ...]] = {
    "candles_1m": (
        "open_time",
        "open",
        "high",
        "low",
        "close",
        "volume",
        "quote_volume",
        "taker_buy_volume",
        "trades",
        "log_open",
        "log_high",
        "log_low",
        "log_close",
        "synthetic",
    ),
    "mark_klines": ("open_time", "open", "high", "low", "close"),
    "index_klines": ("open_time", "open", "high", "low", "close"),
    "premium_klines": ("open_time", "open", "high", "low", "close"),
    "funding_rates": ("funding_time", "rate", "interval_hours", "known_at"),
    "open_interest": ("time", "open_interest", "open_interest_value", "known_at", "revision"),
    "long_short_ratio": ("period_end", "value", "known_at", "revision"),
    "book_minutes": (
        "minute",
        "bid",
        "bid_qty",
        "ask",
        "ask_qty",
        "spread_bps",
        "imbalance",
        "order_flow_imbalance",
        "updates",
        "receive_lag_ms",
        "updated_at",
    ),
}
"""The tables of a history with the columns that are read of each."""


class SymbolHistory(Struct, frozen=True):
    """Rows whose time lies in [start, end), a dict of equally long arrays for each table.

    Times and counts are int64, `synthetic` is bool, all else float64. NaN, and -1 trades, is what no source told: a
    candle that was imported from a file of prices and volumes alone has no `quote_volume`, `taker_buy_volume` and
    `trades`. A series that was not asked for, or has no rows, is empty arrays.
    """

    symbol: str
    candles: Columns
    """By open_time: the 1m candles, prices in quote, `volume` and `taker_buy_volume` in base units, `log_*` quantised
    (features.md 1.1)."""
    mark: Columns
    """1m candles of the mark price by open_time, like `index` and `premium` (a fraction). They have no `known_at`
    column: that is open_time + 120,000 by rule (features.md 1.5)."""
    index: Columns
    premium: Columns
    funding: Columns
    """Settled rates by funding_time; `interval_hours` is float, NaN where it is not known."""
    open_interest: Columns
    """The exchange's 5-minute values; `time` ends the period. By (known_at, time), later revisions included."""
    ratios: dict[str, Columns]
    """Of each of `domain.market.RATIOS` the 5-minute values by (known_at, period_end), later revisions included."""
    book: Columns
    """Minutes of the best bid and ask; what a minute held is known at its end."""


async def symbol_history(
    store: Store, symbol: str, start: int, end: int, *, tables: Collection[str] | None = None
) -> SymbolHistory:
    """Everything stored of a symbol with start <= time < end (milliseconds), or of these tables only.

    Raises Unavailable as the store does, and ValueError for a table that is not in `HISTORY_TABLES`.
    """
    if unknown := set(tables or ()) - HISTORY_TABLES.keys():
        raise ValueError(f"{min(unknown)} is no table of a history")

    async def read(table: str, **only: str) -> Columns:
        columns = HISTORY_TABLES[table]
        if tables is not None and table not in tables:
            return {column: column_array(column, ()) for column in columns}
        return await store.series(table, symbol, start, end, columns, only)

    return SymbolHistory(
        symbol=symbol,
        candles=await read("candles_1m"),
        mark=await read("mark_klines"),
        index=await read("index_klines"),
        premium=await read("premium_klines"),
        funding=await read("funding_rates"),
        open_interest=_as_known(await read("open_interest", kind="hist_5m"), "open_interest"),
        ratios={ratio: _as_known(await read("long_short_ratio", ratio=ratio), "long_short_ratio") for ratio in RATIOS},
        book=await read("book_minutes"),
    )


def _as_known(columns: Columns, table: str) -> Columns:
    """The rows in the order in which they became known, those of one instant by their period."""
    order = np.lexsort((columns[TABLES[table].time], columns["known_at"]))
    return {name: values[order] for name, values in columns.items()}
