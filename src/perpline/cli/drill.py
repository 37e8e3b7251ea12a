"""`perpline drill`: one fault after another against a worker of its own, and whether anything was lost."""

import asyncio
import os
import sys
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from perpline.cli.options import JsonOption, print_json, run_loop, stderr
from perpline.drill.drills import DRILLS
from perpline.drill.running import Drill, Result, play_all
from perpline.drill.scene import Servers

JOBS_A_CORE = 3
"""A drill waits for its market most of the time."""
COLOURS = {"PASS": "green", "FAIL": "bold red", "SKIP": "yellow"}


def drill(
    names: Annotated[list[str] | None, typer.Argument(help="Which; --list shows all.", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--all", help="Every drill.")] = False,
    as_list: Annotated[bool, typer.Option("--list", help="Show names and promises, and play nothing.")] = False,
    seed: Annotated[
        int | None, typer.Option(help="Repeats a run; default: today's date, UTC.", show_default=False)
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="How many side by side; default: three a core.", min=1, max=64, show_default=False),
    ] = None,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="Play once more, alone, what failed with nothing lost and nothing twice: for busy machines.",
        ),
    ] = False,
    database: Annotated[
        str | None,
        typer.Option(help="A PostgreSQL server on which databases may be made; default: one of our own."),
    ] = None,
    redis: Annotated[str | None, typer.Option(help="A Redis server; default: one of our own.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Break one thing after another around a worker, and see that nothing is lost and nothing happens twice.

    Example: perpline drill database-down kill-at-random --seed 7
    """
    if as_list:
        _print_list(as_json)
        return
    drills = _chosen(names or [], every)
    _check_url(database, "--database", ("postgresql",))
    _check_url(redis, "--redis", ("redis", "unix"))
    seed = today() if seed is None else seed
    jobs = jobs or JOBS_A_CORE * max(1, os.cpu_count() or 1)

    async def play(servers: Servers, progress: _Progress) -> list[Result]:
        async def played(these: list[Drill], side_by_side: int) -> list[Result]:
            return await play_all(
                these, seed, jobs=side_by_side, servers=servers, began=progress.began, ended=progress.ended
            )

        results = await played(drills, jobs)
        failed = {each.name: each for each in results if again and each.may_be_the_machine}
        if not failed:
            return results
        second = await played([DRILLS[name] for name in failed], 1)
        for each in second:
            each.before = failed[each.name].reason
        replaced = {each.name: each for each in second}
        return [replaced.get(each.name, each) for each in results]

    async def main(stop: asyncio.Event) -> list[Result] | None:
        servers = Servers(database, redis)
        await servers.check()
        progress = _Progress(drills, seed, live=not as_json and sys.stdout.isatty())
        playing = asyncio.create_task(play(servers, progress))
        stopped = asyncio.create_task(stop.wait())
        try:
            with progress.shown():
                await asyncio.wait((playing, stopped), return_when=asyncio.FIRST_COMPLETED)
            return playing.result() if playing.done() else None
        finally:
            for task in (playing, stopped):
                task.cancel()
            with suppress(asyncio.CancelledError):
                await playing
            await servers.close()

    results = run_loop(main)
    if results is None:
        stderr.print("stopped; what was played is above", style="yellow")
        raise typer.Exit(1)
    summary = {
        "seed": seed,
        "drills": [result.as_json() for result in results],
        **{word: sum(each.result == short for each in results) for word, short in
           (("passed", "PASS"), ("failed", "FAIL"), ("skipped", "SKIP"))},
    }  # fmt: skip
    if as_json:
        print_json(summary)
    else:
        _print_summary(results, seed)
    if summary["failed"]:
        raise typer.Exit(1)


def today() -> int:
    """The seed of a day: its date in UTC as a number, 20261123."""
    return int(datetime.now(UTC).strftime("%Y%m%d"))


def _chosen(names: list[str], every: bool) -> list[Drill]:
    unknown = [name for name in names if name not in DRILLS]
    if unknown:
        raise typer.BadParameter(f"no drill is called {unknown[0]}; perpline drill --list shows all")
    if names and every:
        raise typer.BadParameter("name drills or say --all, not both")
    if not names and not every:
        raise typer.BadParameter("name drills or say --all; --list shows what there is")
    return list(DRILLS.values()) if every else [DRILLS[name] for name in dict.fromkeys(names)]


def _check_url(url: str | None, option: str, schemes: tuple[str, ...]) -> None:
    parts = urlsplit(url or "")
    if url is not None and (parts.scheme not in schemes or not (parts.netloc or parts.path.strip("/"))):
        raise typer.BadParameter(f"it is no URL {'://… or '.join(schemes)}://…", param_hint=option)


class _Progress:
    """A table that fills, on a terminal; elsewhere a line on stderr for each drill that is over."""

    def __init__(self, drills: list[Drill], seed: int, *, live: bool) -> None:
        self._names = [drill.name for drill in drills]
        self._seed = seed
        self._playing: set[str] = set()
        self._results: dict[str, Result] = {}
        self._live = Live(console=Console(), refresh_per_second=4, transient=True) if live else None

    def shown(self) -> Any:
        if self._live is None:
            stderr.print(f"{len(self._names)} drills, seed {self._seed}", highlight=False)
            return nullcontext()
        self._live.update(self._table())
        return self._live

    def began(self, name: str) -> None:
        self._playing.add(name)
        self._show()

    def ended(self, result: Result) -> None:
        self._playing.discard(result.name)
        self._results[result.name] = result
        if self._live is None:
            line = f"{result.result} {result.name} {result.seconds:.1f} s"
            stderr.print(f"{line}  {result.reason}" if result.reason else line, highlight=False, soft_wrap=True)
        self._show()

    def _show(self) -> None:
        if self._live is not None:
            self._live.update(self._table())

    def _table(self) -> Table:
        """What is over (as much of it as there is room for), and below it what is being played."""
        table = result_table(f"drills, seed {self._seed}: {len(self._results)} of {len(self._names)}")
        room = self._live.console.height - 8 - len(self._playing) if self._live is not None else 0
        for result in list(self._results.values())[-max(1, room) :]:
            add_result(table, result)
        for name in self._names:
            if name in self._playing:
                table.add_row(Text("…", "cyan"), Text(name, "cyan"))
        return table


def result_table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for head in ("", "drill"):
        table.add_column(head)
    for head in ("candles lost", "decisions lost", "twice", "orders twice", "heal s", "s"):
        table.add_column(head, justify="right")
    table.add_column("skipped, or why", overflow="fold")
    return table


def add_result(table: Table, result: Result) -> None:
    score = result.score
    cells = ["", "", "", "", ""]
    if score is not None:
        heal = "–" if score.seconds_to_heal is None else f"{score.seconds_to_heal:.1f}"
        counts = (score.candles_lost, score.decisions_lost, score.decisions_twice, score.orders_twice)
        cells = [*map(str, counts), heal]
    note = result.reason
    if not note and score is not None:
        note = ", ".join(f"{count} {status}" for status, count in score.skipped.items())
    table.add_row(Text(result.result, COLOURS[result.result]), result.name, *cells, f"{result.seconds:.1f}", note)


def _print_summary(results: list[Result], seed: int) -> None:
    console = Console()
    table = result_table(f"drills, seed {seed}")
    for result in results:
        add_result(table, result)
    console.print(table)
    for result in results:
        if result.result == "FAIL":
            console.print(f"\n[bold red]{result.name}[/]: {result.promise}", highlight=False)
            console.print(f"log and database: {result.kept}", highlight=False, soft_wrap=True)
            console.print(f"again: perpline drill {result.name} --seed {seed}", highlight=False)
    for result in results:
        if result.before:
            console.print(f"{result.name} failed beside others: {result.before}", style="yellow", highlight=False)
    failed = sum(result.result == "FAIL" for result in results)
    skipped = sum(result.result == "SKIP" for result in results)
    passed = len(results) - failed - skipped
    colour = "red" if failed else "green"
    console.print(f"\n[bold {colour}]{passed} passed, {failed} failed, {skipped} skipped[/]", highlight=False)


def _print_list(as_json: bool) -> None:
    if as_json:
        print_json({"drills": [{"name": each.name, "promise": each.promise} for each in DRILLS.values()]})
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for each in DRILLS.values():
        table.add_row(each.name, each.promise)
    Console().print(table)
