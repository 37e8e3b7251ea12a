"""`python -m bench NAME` (`./run bench NAME`): a benchmark, its table, and with --write its part of RESULTS.md."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.close import close as bench_close
from bench.results import RESULTS, Table, as_json, show, surroundings, write
from bench.route import route as bench_route
from perpline.cli.options import print_json
from perpline.common.telemetry import configure_logging

app = typer.Typer(
    name="bench",
    help="Benchmarks. Figures are taken in turns within one run; read the ratios before the rates.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SymbolsOption = Annotated[list[int], typer.Option("--symbols", min=1, max=2000, help="Can be given more than once.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of stdout.")]
WriteOption = Annotated[bool, typer.Option("--write", help="Put the tables into the results file.")]
ResultsOption = Annotated[Path, typer.Option("--results", help="The results file.")]
SecondsOption = Annotated[float, typer.Option("--seconds", min=0.01, help="Length of a receiver's turn.")]
RoundsOption = Annotated[int, typer.Option("--rounds", min=1, help="Turns of each receiver.")]
ClosesOption = Annotated[int, typer.Option("--closes", min=1, help="Minutes that close, of each case.")]

DEFAULT_SYMBOLS = [30, 600]


@app.command()
def route(
    symbols: SymbolsOption = DEFAULT_SYMBOLS,
    seconds: SecondsOption = 1.0,
    rounds: RoundsOption = 7,
    as_json_line: JsonOption = False,
    to_file: WriteOption = False,
    results: ResultsOption = RESULTS,
) -> None:
    """Messages a second through decode, route and cache, beside picows, msgspec and websockets.

    Example: python -m bench route --symbols 30 --rounds 3
    """
    _run("route", [partial(bench_route, count, seconds, rounds) for count in symbols], as_json_line, to_file, results)


@app.command()
def close(
    symbols: SymbolsOption = DEFAULT_SYMBOLS,
    closes: ClosesOption = 300,
    as_json_line: JsonOption = False,
    to_file: WriteOption = False,
    results: ResultsOption = RESULTS,
) -> None:
    """From the closing frame of a minute's last symbol to committed and published, and what the time goes into.

    Example: python -m bench close --symbols 30 --closes 100
    """
    _run("close", [partial(bench_close, symbols, closes)], as_json_line, to_file, results)


@app.command(name="all")
def everything(to_file: WriteOption = False, results: ResultsOption = RESULTS) -> None:
    """Every benchmark, one after the other, with its defaults: some minutes.

    Example: python -m bench all --write
    """
    route(to_file=to_file, results=results)
    close(to_file=to_file, results=results)


def _run(
    name: str,
    parts: list[Callable[[Callable[[str], None]], list[Table]]],
    as_json_line: bool,
    to_file: bool,
    results: Path,
) -> None:
    configure_logging("error", "auto", sys.stderr)  # connections that end on purpose are no news here
    around = surroundings()
    with Console(stderr=True).status(name) as status:
        tables = [table for part in parts for table in part(lambda line: status.update(f"{name}: {line}"))]
    if to_file:
        write(name, tables, around, results)
    if as_json_line:
        print_json(as_json(name, tables, around))
    else:
        show(tables, around, Console(width=None if sys.stdout.isatty() else 110))


if __name__ == "__main__":
    app(prog_name="python -m bench")
