"""`perpline archive`: old days out of the database into Parquet files."""

import asyncio
import os
import secrets
import socket
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from perpline.bootstrap import open_store
from perpline.cli.options import ConfigOption, DatabaseOption, JsonOption, print_json, run_loop, stderr, time_ms
from perpline.common.clock import SystemClock
from perpline.common.config import Settings, load_settings, masked_url
from perpline.common.errors import NeedsPerson
from perpline.storage.archiving import Archiver, ArchiveReport, checked_tables
from perpline.storage.day_files import DayFiles
from perpline.storage.day_tables import DAY_MS, day_text

LEAST_DAYS = 10
"""Whole days that always stay: parity of the day before looks back on another week, which is the longest feature's."""


def archive(
    before: Annotated[
        str | None,
        typer.Option(
            metavar="DATE", help="Days before this one; default: all that no worker needs.", show_default=False
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the files go; default: archive_dir.", show_default=False),
    ] = None,
    tables: Annotated[
        str | None, typer.Option(metavar="LIST", help="Only these tables: signals,predictions.", show_default=False)
    ] = None,
    drop: Annotated[
        bool, typer.Option("--drop", help="Drop every day that is archived, whatever retention_days says.")
    ] = False,
    with_gaps: Annotated[bool, typer.Option("--with-gaps", help="Also days with holes that are not repaired.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write old whole UTC days of the large tables to Parquet files, and drop those older than retention_days.

    A day is dropped only after each of its rows was found in the files as the disk gives them back. Workers go on
    meanwhile; what they still need stays. Stopped or killed, the same command does the rest.

    Example: perpline archive --before 2026-10-01 --to /mnt/archive --dry-run
    """
    settings = load_settings(config, os.environ, {"database_url": database})
    url = settings.database_url.get_secret_value()
    try:
        wanted = checked_tables(tables)
    except NeedsPerson as error:
        raise typer.BadParameter(str(error), param_hint="--tables") from None
    clock = SystemClock()
    first_kept = clock.now_ms() // DAY_MS * DAY_MS - LEAST_DAYS * DAY_MS
    until = first_kept if before is None else time_ms(before, "--before")
    if until % DAY_MS:
        raise typer.BadParameter("it is no midnight, UTC: 2026-10-01 is one", param_hint="--before")
    files = DayFiles(to or settings.archive_dir)

    async def main(stop: asyncio.Event) -> ArchiveReport:
        store = open_store(url, read_only=True) if dry_run else open_store(_existing(url))
        await store.open()
        try:
            with _progress() as progress:
                task = progress.add_task("days", total=None)
                archiver = Archiver(
                    store,
                    files,
                    clock,
                    f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}",
                    progress=lambda done, of, what: progress.update(
                        task, completed=done, total=of, description=what or "days"
                    ),
                    stopped=stop.is_set,
                )
                return await archiver.run(
                    min(until, first_kept),
                    _drop_before(settings, clock.now_ms(), drop),
                    tables=wanted,
                    with_gaps=with_gaps,
                    dry_run=dry_run,
                )
        finally:
            await store.close()

    report = run_loop(main)
    if as_json:
        facts = {"database": masked_url(url), "folder": str(files.folder), "dry_run": dry_run}
        print_json({**facts, **msgspec.to_builtins(report)})
    else:
        _print(report, files.folder, before, first_kept, dry_run)
    if report.stopped:
        raise NeedsPerson("stopped: the same command again does the rest")


def _existing(url: str) -> str:
    """The address, if there is a database: an archive of nothing makes none."""
    open_store(url, read_only=True)
    return url


def _drop_before(settings: Settings, now: int, drop: bool) -> int | None:
    if drop:
        return now
    return now // DAY_MS * DAY_MS - settings.retention_days * DAY_MS if settings.retention_days else None


def _progress() -> Progress:
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,  # it would leave an empty line in a log
    )


def _print(report: ArchiveReport, folder: Path, asked: str | None, first_kept: int, dry_run: bool) -> None:
    console = Console(highlight=False)
    totals: dict[str, list[int]] = {}
    for each in report.days:
        total = totals.setdefault(each.table, [0, 0, 0, 0])
        for place, value in enumerate((bool(each.rows), each.rows, each.bytes, each.dropped)):
            total[place] += value
    table = Table(box=None, pad_edge=False)
    table.add_column("table")
    for head in ("days written", "rows", "MB", "days dropped"):
        table.add_column(head, justify="right")
    for name, (days, rows, size, dropped) in sorted(totals.items()):
        table.add_row(name, f"{days:,}", f"{rows:,}", "" if dry_run else f"{size / 1e6:,.1f}", f"{dropped:,}")
    if totals:
        console.print(table)
    verb = "would be archived" if dry_run else "archived"
    said: list[Any] = [f"days before {report.before} {verb} in {folder}"]
    if report.drop_before:
        said.append(f"days before {report.drop_before} {'would be ' if dry_run else ''}dropped")
    else:
        said.append("nothing dropped: retention_days is 0, and --drop was not given")
    if asked is not None and asked > day_text(first_kept):
        said.append(f"the last {LEAST_DAYS} days always stay")
    if not totals:
        said = [f"nothing to do for days before {report.before}"]
    console.print("; ".join(said), markup=False, soft_wrap=True)
    if report.needed_for:
        console.print(
            f"days from {report.before} on stay for {report.needed_for}", style="yellow", markup=False, soft_wrap=True
        )
    if kept := sum(each.kept for each in report.days):
        console.print(f"{kept:,} rows came or changed meanwhile and stay: archive again", style="yellow")
    if report.with_gaps:
        console.print(
            f"{len(report.with_gaps):,} days stay because holes in them are not repaired "
            f"({report.with_gaps[0]} is the first): perpline backfill, or --with-gaps",
            style="yellow",
            markup=False,
        )
