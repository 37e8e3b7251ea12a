"""`perpline parity`: a past day computed again from stored rows, beside what live computed then."""

import asyncio
import math
import os
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from perpline.backtest.parity import Parity, compare
from perpline.bootstrap import open_store, utc_text
from perpline.cli.options import ConfigOption, DatabaseOption, JsonOption, print_json, stderr, time_ms
from perpline.common.config import Settings, load_settings
from perpline.common.errors import NeedsPerson
from perpline.domain.candle import MINUTE_MS

DAY_MS = 1440 * MINUTE_MS


def parity(
    date: Annotated[
        str | None,
        typer.Option(help="A day, UTC: 2026-11-22. Default: the 24 hours up to the newest stored prediction."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--from", metavar="TIME", help="Instead of a day: the first close.", show_default=False),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="And before this close.", show_default=False)
    ] = None,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compute every stored prediction again from stored rows, and compare bit by bit; exit 1 if any differs.

    Not counted as differing: columns whose input live said was late, and rows for which a candle was stored only after
    live had decided.

    Example: perpline parity --date 2026-11-22
    """
    settings = load_settings(config, os.environ, {"database_url": database})
    span = _span(date, since, until)
    if hasattr(os, "nice"):  # Windows has no such thing
        os.nice(10)
    found = asyncio.run(_compare(settings, span))
    facts = {**msgspec.to_builtins(found), "ok": found.ok}
    for name in ("max_abs", "max_abs_probability"):
        facts[name] = facts[name] if math.isfinite(facts[name]) else "inf"
    if as_json:
        print_json(facts)
    else:
        _print(found)
    if not found.ok:
        raise NeedsPerson(
            f"{found.mismatch_cells:,} of {found.cells:,} cells and {found.mismatch_probabilities:,} probabilities "
            "differ from what live computed"
        )


def _span(date: str | None, since: str | None, until: str | None) -> tuple[int, int] | None:
    if date is not None and (since or until):
        raise typer.BadParameter("either a day, or --from and --to", param_hint="--date")
    if date is not None:
        start = time_ms(date, "--date")
        return start, start + DAY_MS
    if since is None and until is None:
        return None
    if since is None or until is None:
        raise typer.BadParameter("both --from and --to are needed", param_hint="--from")
    start, end = time_ms(since, "--from"), time_ms(until, "--to")
    if start >= end:
        raise typer.BadParameter(f"{utc_text(end)} is not after {utc_text(start)}", param_hint="--to")
    return start, end


async def _compare(settings: Settings, span: tuple[int, int] | None) -> Parity:
    store = open_store(settings.database_url.get_secret_value(), read_only=True)
    await store.open()
    try:
        if span is None:
            [[newest]] = await store.select("SELECT max(close_time) FROM predictions")
            if newest is None:
                raise NeedsPerson("no prediction is stored")
            span = newest + 1 - DAY_MS, newest + 1
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
            [[symbols]] = await store.select(
                "SELECT count(DISTINCT symbol) FROM predictions "
                f"WHERE close_time >= {span[0]} AND close_time < {span[1]}"
            )
            task = progress.add_task("symbols", total=symbols)
            return await compare(
                store, settings.models_dir, settings.slot, *span, compared=lambda count: progress.advance(task, count)
            )
    finally:
        await store.close()


def _print(found: Parity) -> None:
    console = Console(highlight=False, markup=False)
    console.print(
        f"{utc_text(found.start)} to {utc_text(found.end)}: {found.rows:,} predictions of {found.symbols} symbols"
    )
    table = Table("", "cells", "differ", box=None, header_style="bold")
    plain = found.cells - found.late_cells - found.repaired_cells
    table.add_row("compared", f"{plain:,}", f"{found.mismatch_cells:,}", style="green" if found.ok else "red")
    table.add_row("of late inputs", f"{found.late_cells:,}", f"{found.late_differing:,}")
    table.add_row("rows repaired since", f"{found.repaired_cells:,}", f"{found.repaired_differing:,}")
    console.print(table)
    if found.mismatch_cells:
        console.print(f"largest difference {found.max_abs:.6g}, in {found.worst_column}")
        for name, count in found.columns.items():
            console.print(f"  {name}: {count:,}")
    console.print(
        f"probabilities: {found.mismatch_probabilities:,} differ, largest difference {found.max_abs_probability:.2g}"
    )
    if found.without_history:
        console.print(f"{found.without_history:,} predictions whose candle is not stored", style="yellow")
    for model, reason in found.refused.items():
        console.print(f"not computed again, {model}: {reason}", style="yellow")
