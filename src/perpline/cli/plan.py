"""`perpline plan`: what following so many symbols takes, before anything starts."""

import os
from typing import Annotated

import msgspec
import typer
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from perpline.cli.config import AsJson, ConfigFile
from perpline.cli.database import with_store
from perpline.common.config import Settings, load_settings
from perpline.common.errors import PerplineError
from perpline.domain.market import RATIOS, PriceSeries
from perpline.exchange.binance import endpoints
from perpline.exchange.binance.endpoints import Endpoint, Pool
from perpline.storage.sqlite import SqliteStore
from perpline.storage.symbols import SymbolChanges, symbol_changes
from perpline.trading.risk import Risk, bold_settings
from perpline.websocket.subscriptions import STREAM_TYPES, ConnectionPlan, plan_connections

NEAR = 0.8
"""From this share of a limit on, the plan warns."""

_LIMITS: dict[Pool, tuple[str, int, int]] = {
    "weight": ("request weight", 2400, 1),
    "futures_data": ("/futures/data requests", 1000, 5),
    "funding": ("funding requests", 500, 5),
}
"""What an address may use, in so many minutes (binance.md 3)."""

_ROW_BYTES = {
    "candles_1m": 180,
    "candles_15m": 180,
    "candles_1h": 180,
    "premium_index": 103,
    "book_minutes": 147,
    "mark_klines": 100,
    "index_klines": 100,
    "premium_klines": 100,
    "open_interest": 95,
    "long_short_ratio": 128,
    "funding_rates": 53,
    "signals": 467,
    "predictions": 208,
    "outbox": 513,
}
"""Bytes of a row with its part of the indexes in SQLite: page sizes by dbstat of a file into which 21,600 rows of each
table (30 symbols, 720 minutes, numbers as long as the market's) had been written minute by minute, 2026-11-23."""


_PARQUET_BYTES = {
    "candles_1m": 75,
    "premium_index": 32,
    "book_minutes": 70,
    "mark_klines": 30,
    "index_klines": 30,
    "premium_klines": 30,
    "open_interest": 16,
    "long_short_ratio": 35,
    "signals": 74,
    "predictions": 138,
}
"""Bytes of a row in the files of `perpline archive`, measured on a day of 30 symbols like the above, 2026-11-23. Tables
that are not here stay in the database."""

DAYS_OF_A_MONTH = 30


class SeriesLoad(Struct, frozen=True):
    """What one polled series asks for."""

    name: str
    calls_per_minute: float
    """The mean."""
    pool: Pool
    cost_per_window: float
    """What its fullest window takes from the pool: the calls of an hourly series come in one window, not in twelve."""


class PoolLoad(Struct, frozen=True):
    name: str
    used: float
    limit: int
    minutes: int


class TableLoad(Struct, frozen=True):
    name: str
    rows_per_day: int
    bytes_per_day: int
    archived_bytes_per_day: int | None
    """In Parquet; None for a table that is not archived."""


class Plan(Struct, frozen=True):
    """The whole answer; `--json` prints it."""

    symbols: int
    streams: int
    connections: list[dict[str, str | int]]
    rest_calls_per_minute: float
    rest_weight_per_minute: float
    series: list[SeriesLoad]
    limits: list[PoolLoad]
    rows_per_day: int
    megabytes_per_day: float
    gigabytes_per_month: float
    """What the database grows by in 30 days where nothing is archived."""
    database_gigabytes: float | None
    """What it comes to with retention_days; None where that is 0 and it grows for ever."""
    archive_megabytes_per_day: float
    """What a day takes in the files of `perpline archive`."""
    tables: list[TableLoad]
    warnings: list[str]


def plan(
    symbols: Annotated[
        str | None, typer.Option(metavar="N|LIST", help="How many symbols, top:N, or a list: BTCUSDT,ETHUSDT.")
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Print the connections, REST requests, rows and disk that the settings lead to. Opens no connection.

    Where there is a database its list of added and removed symbols counts, unless --symbols is given. Start-up, which
    loads windows once, and what heals holes come on top.

    Example: perpline plan --symbols 600
    """
    wanted = f"top:{symbols}" if symbols is not None and symbols.isdecimal() else symbols
    settings = load_settings(config, os.environ, {"symbols": wanted})
    answer = make_plan(settings, None if symbols is not None else _changes(settings))
    if as_json:
        print(msgspec.json.encode(answer).decode())
    else:
        _show(answer, Console())


def make_plan(settings: Settings, changes: SymbolChanges | None = None) -> Plan:
    """The plan for these settings, and what people and workers changed of the list: arithmetic only."""
    count = _count(settings, changes or SymbolChanges())
    connections = settings.lanes * plan_connections(
        [f"S{number}" for number in range(count)],
        STREAM_TYPES,
        endpoints.route_of,
        endpoints.stream_name,
        settings.max_streams_per_connection,
    )
    series = _series(count, settings.price_klines)
    limits = [
        PoolLoad(name, sum(each.cost_per_window for each in series if each.pool == pool), limit, minutes)
        for pool, (name, limit, minutes) in _LIMITS.items()
    ]
    tables = [
        TableLoad(name, rows, rows * _ROW_BYTES[name], rows * _PARQUET_BYTES[name] if name in _PARQUET_BYTES else None)
        for name, rows in _rows(count, settings.price_klines).items()
    ]
    per_day = sum(table.bytes_per_day for table in tables if table.name != "outbox")  # which is kept for a day
    return Plan(
        symbols=count,
        streams=sum(len(connection.streams) for connection in connections) // settings.lanes,
        connections=[{"route": each.route, "streams": len(each.streams)} for each in connections],
        rest_calls_per_minute=round(sum(each.calls_per_minute for each in series), 2),
        rest_weight_per_minute=limits[0].used,
        series=series,
        limits=limits,
        rows_per_day=sum(table.rows_per_day for table in tables),
        megabytes_per_day=round(per_day / 1e6, 1),
        gigabytes_per_month=round(per_day * DAYS_OF_A_MONTH / 1e9, 2),
        database_gigabytes=_kept_gigabytes(tables, settings.retention_days),
        archive_megabytes_per_day=round(sum(table.archived_bytes_per_day or 0 for table in tables) / 1e6, 1),
        tables=tables,
        warnings=[
            *_warnings(count, limits, connections, settings.max_streams_per_connection),
            *bold_settings(Risk.of(settings)),
        ],
    )


def _changes(settings: Settings) -> SymbolChanges | None:
    """None where no database can be read, or it is none of this machine: no connection is opened for this."""
    url = settings.database_url.get_secret_value()
    if not url.startswith("sqlite://") or not SqliteStore.from_url(url).path.exists():
        return None
    try:
        return SymbolChanges(with_store(settings, symbol_changes, read_only=True))
    except PerplineError:
        return None  # older tables, for one: `perpline run` says so, and the settings are planned all the same


def _count(settings: Settings, changes: SymbolChanges) -> int:
    """How many symbols are followed. With top:N nobody knows here which these are: what was added is taken for none of
    them, what was removed or has ended for one of them."""
    if settings.top is None:
        by_settings = [symbol for symbol in settings.symbols if symbol not in settings.exclude]
        return len(changes.followed(by_settings, settings.exclude))
    known = {symbol for symbol in (*changes.wanted, *changes.ended) if symbol not in settings.exclude}
    added = {symbol for symbol in known if changes.follows(symbol, ())}
    was_added = {symbol for symbol, row in changes.wanted.items() if row.action == "add"}
    return max(0, settings.top + len(added) - len(known - added - was_added))


def _series(symbols: int, price_klines: bool) -> list[SeriesLoad]:
    """The rest poller's schedule: each of these series asks once per symbol and period."""
    polled: list[tuple[str, int, Endpoint]] = [("open_interest", 1, endpoints.OPEN_INTEREST)]
    if price_klines:
        prices: tuple[PriceSeries, ...] = ("mark", "index", "premium")
        polled += [(f"{series}_klines", 1, endpoints.price_klines(series, 2)) for series in prices]
    polled.append(("open_interest_hist", 5, endpoints.OPEN_INTEREST_HIST))
    polled += [(ratio, 5, endpoints.RATIOS[ratio]) for ratio in RATIOS]
    polled.append(("funding_rates", 60, endpoints.FUNDING_RATE))
    return [
        SeriesLoad(
            name=name,
            calls_per_minute=round(symbols / period_min, 2),
            pool=endpoint.pool,
            cost_per_window=symbols * endpoint.cost * max(1, _LIMITS[endpoint.pool][2] // period_min),
        )
        for name, period_min, endpoint in polled
    ]


def _rows(symbols: int, price_klines: bool) -> dict[str, int]:
    minutes, fives = 1440, 288
    per_symbol = {
        "candles_1m": minutes,
        "candles_15m": minutes // 15,
        "candles_1h": minutes // 60,
        "premium_index": minutes,
        "book_minutes": minutes,
        "open_interest": minutes + fives,
        "long_short_ratio": fives * len(RATIOS),
        "funding_rates": 3,
        "signals": minutes,
        "predictions": minutes,
        "outbox": minutes,
    }
    if price_klines:
        per_symbol |= {"mark_klines": minutes, "index_klines": minutes, "premium_klines": minutes}
    rows = {name: symbols * each for name, each in per_symbol.items()}
    rows["outbox"] += minutes  # the message that closes a minute
    return rows


def _kept_gigabytes(tables: list[TableLoad], retention_days: int) -> float | None:
    """Of the tables that are archived and the outbox; the others grow by a few MB a month."""
    if not retention_days:
        return None
    days = {table.name: 1 if table.name == "outbox" else retention_days + 1 for table in tables}
    size = sum(table.bytes_per_day * days[table.name] for table in tables if table.name in (*_PARQUET_BYTES, "outbox"))
    return round(size / 1e9, 2)


def _warnings(count: int, limits: list[PoolLoad], connections: list[ConnectionPlan], max_streams: int) -> list[str]:
    warnings = [
        f"{pool.name}: {pool.used:.0f} of {pool.limit} in {pool.minutes} min ({pool.used / pool.limit:.0%}); "
        f"at most {int(count * pool.limit / pool.used)} symbols fit, {int(count * pool.limit * NEAR / pool.used)} "
        "with room for retries"
        for pool in limits
        if pool.used > NEAR * pool.limit
    ]
    fullest = max((len(connection.streams) for connection in connections), default=0)
    if fullest > NEAR * 1024:
        warnings.append(f"a connection carries {fullest} of at most 1024 streams (max_streams_per_connection)")
    if max_streams < len(STREAM_TYPES) - 1:
        warnings.append(
            f"with {max_streams} streams a connection, some carry no mark price and look dead in a quiet market"
        )
    return warnings


def _show(answer: Plan, console: Console) -> None:
    sockets = Table(title="connections", title_justify="left", box=None, header_style="bold")
    for name in ("route", "connections", "streams", "streams each"):
        sockets.add_column(name, justify="left" if name == "route" else "right")
    for route in dict.fromkeys(each["route"] for each in answer.connections):
        sizes = [int(each["streams"]) for each in answer.connections if each["route"] == route]
        each = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
        sockets.add_row(str(route), str(len(sizes)), str(sum(sizes)), each)
    rest = Table(title="REST", title_justify="left", box=None, header_style="bold")
    for name in ("series", "calls a minute", "counts as"):
        rest.add_column(name, justify="right" if name == "calls a minute" else "left")
    for series in answer.series:
        rest.add_row(series.name, f"{series.calls_per_minute:g}", _LIMITS[series.pool][0])
    budget = Table(title="limits of the exchange", title_justify="left", box=None, header_style="bold")
    for name in ("limit", "used", "of", "share"):
        budget.add_column(name, justify="left" if name == "limit" else "right")
    for pool in answer.limits:
        window = "a minute" if pool.minutes == 1 else f"in {pool.minutes} min"
        budget.add_row(f"{pool.name} {window}", f"{pool.used:g}", str(pool.limit), f"{pool.used / pool.limit:.0%}")
    disk = Table(title="a day in the database", title_justify="left", box=None, header_style="bold")
    for name in ("table", "rows", "MB", "MB archived"):
        disk.add_column(name, justify="left" if name == "table" else "right")
    for table in answer.tables:
        archived = "" if table.archived_bytes_per_day is None else f"{table.archived_bytes_per_day / 1e6:.1f}"
        disk.add_row(table.name, f"{table.rows_per_day:,}", f"{table.bytes_per_day / 1e6:.1f}", archived)
    console.print(
        f"{answer.symbols} symbols: {answer.streams} streams on {len(answer.connections)} connections, "
        f"{answer.rest_calls_per_minute:g} REST calls and weight {answer.rest_weight_per_minute:g} a minute, "
        f"{answer.rows_per_day:,} rows and {answer.megabytes_per_day:g} MB a day\n",
        highlight=False,
    )
    for part in (sockets, rest, budget, disk):
        console.print(part, "")
    kept = (
        f"it stays at {answer.database_gigabytes:g} GB (retention_days)"
        if answer.database_gigabytes is not None
        else "it grows for ever (retention_days = 0)"
    )
    console.print(
        f"the database grows by {answer.gigabytes_per_month:g} GB in {DAYS_OF_A_MONTH} days; {kept}; "
        f"a day archived as Parquet takes {answer.archive_megabytes_per_day:g} MB",
        highlight=False,
        soft_wrap=True,
    )
    for warning in answer.warnings:
        console.print("warning:", warning, style="yellow", highlight=False, markup=False)
