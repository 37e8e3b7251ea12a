"""`perpline outcomes`: what became of every signal, once its horizon is over."""

import asyncio
import os
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from perpline.backtest.outcomes import Outcomes, store_outcomes
from perpline.bootstrap import open_store, utc_text
from perpline.cli.options import ConfigOption, DatabaseOption, JsonOption, print_json, stderr, time_ms
from perpline.common.config import Settings, load_settings


def outcomes(
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="The first close, UTC. Default: a week back.", show_default=False),
    ] = None,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Store what became of each signal under its own exit rule, from stored prices, where the horizon is over.

    Signals that have an outcome are left as they are. Where prices are missing a signal waits, for three days; after
    that it counts as left out, until they are stored.

    Example: perpline outcomes --since 2026-11-01
    """
    settings = load_settings(config, os.environ, {"database_url": database})
    start = None if since is None else time_ms(since, "--since")
    if hasattr(os, "nice"):  # Windows has no such thing
        os.nice(10)
    found = asyncio.run(_store(settings, start))
    if as_json:
        print_json(msgspec.to_builtins(found))
    else:
        _print(found)


async def _store(settings: Settings, since: int | None) -> Outcomes:
    url = settings.database_url.get_secret_value()
    open_store(url, read_only=True)  # what became of nothing makes no database
    store = open_store(url)
    await store.open()
    try:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
            task = progress.add_task("symbols", total=None)
            return await store_outcomes(
                store,
                settings.slot,
                since,
                followed=lambda done, of: progress.update(task, completed=done, total=of),
            )
    finally:
        await store.close()


def _print(found: Outcomes) -> None:
    console = Console(highlight=False, markup=False)
    if not found.until:
        console.print("no minute has been decided yet")
        return
    console.print(f"signals without an outcome, {utc_text(found.since)} to {utc_text(found.until)}:")
    console.print(f"{found.stored:,} have one now, the trades of {found.open:,} are not over", style="green")
    if found.waiting:
        console.print(f"{found.waiting:,} wait for prices that are not stored", style="yellow")
    if found.left_out:
        console.print(f"{found.left_out:,} left out: no prices for three days, or no known rule", style="yellow")
