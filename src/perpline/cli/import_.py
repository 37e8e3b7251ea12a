"""`perpline import`: files of market data into the tables."""

import asyncio
import os
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from perpline.bootstrap import make_data_dir, open_store
from perpline.cli.options import ConfigOption, DatabaseOption, JsonOption, print_json, run_loop, stderr
from perpline.collector.archives import Kind, find
from perpline.collector.importing import Importer, ImportReport
from perpline.common.clock import SystemClock
from perpline.common.config import load_settings, masked_url
from perpline.common.errors import NeedsPerson

app = typer.Typer(help="Import published archives and candle files.", no_args_is_help=True)

FilesArgument = Annotated[list[Path], typer.Argument(help="Files, or folders with all that is in them.")]
SymbolOption = Annotated[
    str | None, typer.Option("--symbol", help="For files whose names do not tell it.", show_default=False)
]


@app.command()
def candles(
    files: FilesArgument,
    symbol: SymbolOption = None,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Candles: 1m, 15m and 1h klines, 1m klines of the mark, index and premium prices, Arrow feather candles.

    Example: perpline import candles data/futures/um --database sqlite:///market.db
    """
    _import(files, "candles", symbol, database, config, as_json)


@app.command()
def metrics(
    files: FilesArgument,
    symbol: SymbolOption = None,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Open interest and positioning, five minutes a row. Import the 1m candles of the same days first.

    What a row's label means is proved by the candles; a day that cannot be proved is not stored.

    Example: perpline import metrics data/futures/um/daily/metrics
    """
    _import(files, "metrics", symbol, database, config, as_json)


@app.command()
def funding(
    files: FilesArgument,
    symbol: SymbolOption = None,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Settled funding rates.

    Example: perpline import funding data/futures/um/monthly/fundingRate
    """
    _import(files, "funding", symbol, database, config, as_json)


def _import(
    paths: list[Path], kind: Kind, symbol: str | None, database: str | None, config: Path | None, as_json: bool
) -> None:
    settings = load_settings(config, os.environ, {"database_url": database})
    url = settings.database_url.get_secret_value()
    found = find(paths, kind, symbol)
    if not found.files:
        aside = f" ({len(found.ignored)} others, such as {found.ignored[0]})" if found.ignored else ""
        raise NeedsPerson(f"there is no file of {kind} there{aside}")

    async def main(stop: asyncio.Event) -> ImportReport:
        make_data_dir(settings)
        store = open_store(url)
        await store.open()
        try:
            with _progress() as progress:
                task = progress.add_task("files", total=len(found.files))
                importer = Importer(
                    store,
                    SystemClock().now_ms,
                    progress=lambda files: progress.advance(task, files),
                    stopped=stop.is_set,
                )
                return await importer.run(found.files)
        finally:
            await store.close()

    report = run_loop(main)
    if as_json:
        print_json({"database": masked_url(url), **msgspec.to_builtins(report), "ignored": len(found.ignored)})
    else:
        _print(report, found.ignored)
    if report.stopped:
        raise NeedsPerson("stopped: the same command again does the rest")
    if report.refused or report.quarantined:
        first = (report.refused or report.quarantined)[0]
        number = len(report.refused) + len(report.quarantined)
        raise NeedsPerson(f"{number} of {report.files + len(report.refused)} files not stored whole: {first}")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
    )


def _print(report: ImportReport, ignored: list[str]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("table")
    table.add_column("new rows", justify="right")
    for name, rows in report.rows.items():
        table.add_row(name, f"{rows:,}")
    console = Console()
    console.print(table)
    facts: dict[str, Any] = {
        "files": report.files,
        "already there": report.duplicates,
        "of these completed": report.completed,
        "told differently (revisions)": report.revisions,
        "invalid rows": report.invalid,
        "holes opened": report.holes,
        "gaps closed": report.gaps_closed,
        "files not taken": len(ignored),
    }
    console.print(", ".join(f"{name}: {count:,}" for name, count in facts.items() if count))
    if report.conventions:
        console.print(
            "metrics labels: "
            + ", ".join(f"{count:,} days of period {name}s" for name, count in sorted(report.conventions.items()))
        )
    for line in report.invalid_named:
        console.print(f"[yellow]invalid[/] {line}")
    for line in report.quarantined:
        console.print(f"[red]quarantined[/] {line}")
    for line in report.refused:
        console.print(f"[red]refused[/] {line}")
