"""`perpline backfill`: what the tables lack, asked of the exchange."""

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from perpline.bootstrap import first_answer, make_clock, make_data_dir, make_rest, measure_offset, open_store
from perpline.cli.options import (
    ConfigOption,
    DatabaseOption,
    JsonOption,
    NetworkOption,
    RestUrlOption,
    SpeedOption,
    exchange_settings,
    print_json,
    run_loop,
    stderr,
    time_ms,
)
from perpline.collector.backfill import SERIES, Backfill, BackfillReport
from perpline.collector.bulk import stored_symbols
from perpline.common.config import BINANCE_URLS, Settings, load_settings, masked_url
from perpline.common.errors import NeedsPerson
from perpline.common.telemetry import configure_logging
from perpline.storage.store import Store

FromOption = Annotated[
    str | None, typer.Option("--from", help="Beginning, UTC: 2026-10-01 or 2026-10-01T12:00.", show_default=False)
]
ToOption = Annotated[str | None, typer.Option("--to", help="End, UTC; not itself part of it.", show_default=False)]
NamesOption = Annotated[
    str | None,
    typer.Option("--symbols", help='"BTCUSDT,ETHUSDT"; default: all that the database has.', show_default=False),
]


def backfill(
    since: FromOption = None,
    to: ToOption = None,
    symbols: NamesOption = None,
    series: Annotated[
        str | None,
        typer.Option(help=f"Some of {', '.join(SERIES)}; a table's name stands for all of its.", show_default=False),
    ] = None,
    database: DatabaseOption = None,
    network: NetworkOption = None,
    rest_url: RestUrlOption = None,
    speed: SpeedOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the exchange for what the tables lack: candles, price klines, funding, open interest, ratios.

    From the first stored 1m candle of each symbol to now, unless told otherwise. Within the weight budget, after
    everything else. Ctrl-C ends it after the page in hand; the next one goes on there.

    Example: perpline backfill --from 2026-10-01 --symbols BTCUSDT
    """
    start = None if since is None else time_ms(since, "--from")
    end = None if to is None else time_ms(to, "--to")
    wanted = _wanted(series)
    options = {"database_url": database, **rest_settings(network, rest_url, speed)}
    settings = load_settings(config, os.environ, options)
    url = settings.database_url.get_secret_value()
    configure_logging("warning", settings.log_format, sys.stderr)
    make_data_dir(settings)

    async def main(stop: asyncio.Event) -> BackfillReport:
        store = open_store(url)
        try:
            await store.open()
            names = symbols.upper().split(",") if symbols else await stored_symbols(store)
            if not names:
                raise NeedsPerson("the database holds no candles yet: say --symbols and --from")
            if start is None and symbols and not set(names) & set(await stored_symbols(store)):
                raise NeedsPerson(f"the database holds no candles of {', '.join(names[:5])} yet: say --from")
            await first_answer(settings, lambda line: stderr.print(line, highlight=False, soft_wrap=True))
            return await _fill(settings, store, names, wanted, start, end, stop)
        finally:
            await store.close()

    report = run_loop(main)
    if as_json:
        print_json({"database": masked_url(url), **msgspec.to_builtins(report)})
    else:
        _print(report)
    if report.failed:
        raise NeedsPerson(f"{len(report.failed)} requests failed, the first: {report.failed[0]}")
    if report.stopped:
        raise NeedsPerson("stopped: the same command again does the rest")


async def _fill(
    settings: Settings,
    store: Store,
    symbols: Sequence[str],
    series: Sequence[str],
    start: int | None,
    end: int | None,
    stop: asyncio.Event,
) -> BackfillReport:
    clock = await make_clock(settings)
    rest = make_rest(settings, clock)
    bars = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        await measure_offset(clock, rest)
        with Progress(*bars, console=stderr, transient=True) as progress:
            task = progress.add_task("rows", total=None)
            work = Backfill(
                rest.at("bulk"),
                store,
                clock,
                plan=lambda rows: progress.update(task, total=rows),
                progress=lambda rows: progress.advance(task, rows),
                stopped=stop.is_set,
            )
            return await work.run(symbols, series, start, end)
    finally:
        await rest.close()


def rest_settings(network: str | None, rest_url: str | None, speed: float | None) -> dict[str, object]:
    """The settings that these options stand for, of a command that opens no stream.

    An exchange has two addresses by rule, so the second is made of the first: a known one's own, else the same host.
    """
    ws_url = None
    if rest_url is not None:
        known = {rest: ws for ws, rest in BINANCE_URLS.values()}
        ws_url = known.get(rest_url.rstrip("/"), rest_url.replace("http", "ws", 1))
    return exchange_settings(None, network, ws_url, rest_url, speed)


def _wanted(series: str | None) -> list[str]:
    if series is None:
        return list(SERIES)
    names: list[str] = []
    for name in series.split(","):
        found = [each for each in SERIES if name in (each, each.partition(":")[0])]
        if not found:
            raise typer.BadParameter(f"{name} is no series; these are: {', '.join(SERIES)}", param_hint="--series")
        names += found
    return names


def _print(report: BackfillReport) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("series")
    table.add_column("new rows", justify="right")
    for name, rows in report.rows.items():
        table.add_row(name, f"{rows:,}")
    console = Console()
    if report.rows:
        console.print(table)
    facts = {
        "absent at the exchange": report.absent,
        "synthetic candles made": report.synthetic,
        "told differently (revisions)": report.revisions,
        "gaps closed": report.gaps_closed,
        "holes left": report.holes_left,
    }
    console.print(", ".join(f"{name}: {count:,}" for name, count in facts.items() if count) or "nothing is missing")
    for name, rows in report.too_old.items():
        console.print(f"[yellow]{name}[/]: {rows:,} rows are older than the month that the exchange tells of")
    for line in report.failed:
        console.print(f"[red]failed[/] {line}")
