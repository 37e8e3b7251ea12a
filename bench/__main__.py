"""`python -m bench NAME` (`./run bench NAME`): a benchmark, its table, and with --write its part of RESULTS.md."""

import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.close import close as bench_close
from bench.dashboard import dashboard as bench_dashboard
from bench.dashboard import lacking as dashboard_lacks
from bench.failover import failover as bench_failover
from bench.features import features as bench_features
from bench.labels import labels as bench_labels
from bench.latency import latency as bench_latency
from bench.listeners import listeners as bench_listeners
from bench.outage import outage as bench_outage
from bench.results import RESULTS, Table, as_json, show, surroundings, write
from bench.route import route as bench_route
from bench.shards import shards as bench_shards
from bench.soak import ledger
from bench.soak import memory as bench_memory
from bench.soak import soak as bench_soak
from bench.start import start as bench_start
from bench.stops import stops as bench_stops
from bench.workers import workers as bench_workers
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
RateOption = Annotated[list[int], typer.Option("--rate", min=1000, help="Messages a second; more than once.")]
ClosesOption = Annotated[
    int | None,
    typer.Option("--closes", min=1, help="Minutes that close, of each case; default: 300, above 100 symbols 50."),
]
PostgresOption = Annotated[
    str | None, typer.Option("--postgres", help="A server to make databases on; default: one from the wheel.")
]
RedisOption = Annotated[
    str | None, typer.Option("--redis", help="A server to publish to; default: one from the wheel.")
]

DEFAULT_SYMBOLS = [30, 600]
SOAK = RESULTS.with_name("SOAK.md")
DEFAULT_RATES = [5_000, 20_000, 50_000]


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
def latency(
    symbols: SymbolsOption = DEFAULT_SYMBOLS,
    rates: RateOption = DEFAULT_RATES,
    seconds: SecondsOption = 2.0,
    rounds: RoundsOption = 2,
    as_json_line: JsonOption = False,
    to_file: WriteOption = False,
    results: ResultsOption = RESULTS,
) -> None:
    """From a server's send to a value that can be read, at fixed rates, and the CPU of a message.

    Example: python -m bench latency --symbols 30 --rate 20000 --seconds 5
    """
    parts = [partial(bench_latency, count, rates, seconds, rounds) for count in symbols]
    _run("latency", parts, as_json_line, to_file, results)


@app.command()
def close(
    symbols: SymbolsOption = DEFAULT_SYMBOLS,
    closes: ClosesOption = None,
    postgres: PostgresOption = None,
    redis: RedisOption = None,
    as_json_line: JsonOption = False,
    to_file: WriteOption = False,
    results: ResultsOption = RESULTS,
) -> None:
    """From the closing frame of a minute's last symbol to committed and published, and what the time goes into.

    Example: python -m bench close --symbols 30 --closes 100
    """
    _run("close", [partial(bench_close, symbols, closes, postgres, redis)], as_json_line, to_file, results)


@app.command()
def listeners(
    symbols: Annotated[int, typer.Option("--symbols", min=1, max=2000)] = 600,
    closes: Annotated[int, typer.Option("--closes", min=1, help="With each number of listeners.")] = 60,
    as_json_line: JsonOption = False,
    to_file: WriteOption = False,
    results: ResultsOption = RESULTS,
) -> None:
    """What listeners of the worker's /events cost a close, and the loop.

    Example: python -m bench listeners --symbols 30
    """
    _run("listeners", [partial(bench_listeners, symbols, closes)], as_json_line, to_file, results)


@app.command()
def dashboard(
    symbols: Annotated[int, typer.Option("--symbols", min=1, max=600)] = 600,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="Of frames, of each way to look at it.")] = 60.0,
    browser_nice: Annotated[
        int, typer.Option("--browser-nice", min=0, max=19, help="19: as if the browser had a machine of its own.")
    ] = 0,
    as_json_line: JsonOption = False,
    to_file: WriteOption = False,
    results: ResultsOption = RESULTS,
) -> None:
    """Frames of the overview in Chromium at real rates, and what dashboard and browser cost a worker. Seven minutes.

    Example: python -m bench dashboard --symbols 30 --seconds 20
    """
    if (lack := dashboard_lacks()) is not None:
        print(lack, file=sys.stderr)
        raise typer.Exit(1)
    _run("dashboard", [partial(bench_dashboard, symbols, seconds, browser_nice)], as_json_line, to_file, results)


@app.command()
def workers(
    symbols: Annotated[int, typer.Option("--symbols", min=1, max=600)] = 30,
    minutes: Annotated[int, typer.Option("--minutes", min=1, help="Closes that are counted.")] = 6,
    speed: Annotated[float, typer.Option("--speed", min=0.1, max=60, help="Speed of market time; 1 is real.")] = 8.0,
    as_json_line: JsonOption = False,
    to_file: WriteOption = False,
    results: ResultsOption = RESULTS,
) -> None:
    """The worker fed by WebSocket and the one fed by REST, side by side on one simulated exchange.

    Example: python -m bench workers --speed 1 --minutes 10
    """
    _run("workers", [partial(bench_workers, symbols, minutes, speed)], as_json_line, to_file, results)


@app.command()
def start(
    symbols: SymbolsOption = DEFAULT_SYMBOLS,
    limit: Annotated[float, typer.Option("--limit", min=1, help="Seconds to wait for every stream.")] = 20.0,
    as_json_line: JsonOption = False,
    to_file: WriteOption = False,
    results: ResultsOption = RESULTS,
) -> None:
    """How long a worker takes to be ready with a cold and a warm store, and its memory then.

    Example: python -m bench start --symbols 30
    """
    _run("start", [partial(bench_start, symbols, limit)], as_json_line, to_file, results)


@app.command()
def shards(
    symbols: Annotated[int, typer.Option("--symbols", min=4, max=600)] = 30,
    minutes: Annotated[int, typer.Option("--minutes", min=1, help="Closes that are counted.")] = 5,
    together: Annotated[int, typer.Option("--together", min=4, max=2000, help="Symbols that close at once.")] = 600,
    closes: ClosesOption = 20,
    postgres: PostgresOption = None,
    redis: RedisOption = None,
    as_json_line: JsonOption = False,
    to_file: WriteOption = False,
    results: ResultsOption = RESULTS,
) -> None:
    """Two collectors and two inference workers, beside one process with everything.

    Example: python -m bench shards --minutes 3
    """
    part = partial(bench_shards, symbols, minutes, together, closes or 20, postgres, redis)
    _run("shards", [part], as_json_line, to_file, results)


@app.command()
def failover(
    tries: Annotated[int, typer.Option("--tries", min=1, help="Of each case.")] = 5,
    postgres: PostgresOption = None,
    redis: RedisOption = None,
    as_json_line: JsonOption = False,
    to_file: WriteOption = False,
    results: ResultsOption = RESULTS,
) -> None:
    """How long nobody decides when the leader of two workers is killed, frozen, cut off or stopped.

    Example: python -m bench failover --tries 1
    """
    _run("failover", [partial(bench_failover, tries, postgres, redis)], as_json_line, to_file, results)


@app.command()
def outage(
    symbols: Annotated[int, typer.Option("--symbols", min=4, max=2000)] = 600,
    minutes: Annotated[int, typer.Option("--minutes", min=1, max=600, help="Without a database.")] = 5,
    postgres: PostgresOption = None,
    as_json_line: JsonOption = False,
    to_file: WriteOption = False,
    results: ResultsOption = RESULTS,
) -> None:
    """A database that is away for five minutes: what is held on disk, memory, and the time to store it afterwards.

    Example: python -m bench outage --symbols 30
    """
    _run("outage", [partial(bench_outage, symbols, minutes, postgres)], as_json_line, to_file, results)


@app.command()
def stops(
    positions: Annotated[list[int], typer.Option("--positions", min=1, max=2000, help="Open; more than once.")] = (
        DEFAULT_SYMBOLS
    ),
    firings: Annotated[int, typer.Option("--firings", min=1, help="Turns in which one of them fires.")] = 300,
    as_json_line: JsonOption = False,
    to_file: WriteOption = False,
    results: ResultsOption = RESULTS,
) -> None:
    """From a mark price frame at the socket to the order that closes a position, written to the order socket.

    Example: python -m bench stops --positions 30 --firings 100
    """
    _run("stops", [partial(bench_stops, positions, firings)], as_json_line, to_file, results)


@app.command()
def labels(
    minutes: Annotated[int, typer.Option("--minutes", min=1000, help="Rows; a year has 525,600.")] = 525_600,
    rounds: RoundsOption = 5,
    as_json_line: JsonOption = False,
    to_file: WriteOption = False,
    results: ResultsOption = RESULTS,
) -> None:
    """Labels, uniqueness and weights of a symbol-year.

    Example: python -m bench labels --rounds 3
    """
    _run("labels", [partial(bench_labels, minutes, rounds)], as_json_line, to_file, results)


@app.command()
def features(
    minutes: Annotated[int, typer.Option("--minutes", min=2000, help="Candles of a history.")] = 525_600,
    years: Annotated[int, typer.Option("--years", min=1, help="Histories to write to disk.")] = 30,
    symbols: SymbolsOption = DEFAULT_SYMBOLS,
    closes: Annotated[int, typer.Option("--closes", min=1, help="Closes of each case.")] = 200,
    rounds: RoundsOption = 5,
    as_json_line: JsonOption = False,
    to_file: WriteOption = False,
    results: ResultsOption = RESULTS,
) -> None:
    """Features of a symbol-year and of a close, warm and cold, beside pandas, polars and TA-Lib.

    Example: python -m bench features --minutes 50000 --years 2 --rounds 3
    """
    part = partial(bench_features, minutes, years, symbols, closes, rounds)
    _run("features", [part], as_json_line, to_file, results)


@app.command()
def soak(
    seeds: Annotated[str, typer.Option("--seeds", help="From and to: 1-20, or one.")] = "1-20",
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Drills side by side.")] = 6,
    state: Annotated[
        Path | None, typer.Option("--state", help="Where results are kept from part to part.", show_default=False)
    ] = None,
    as_json_line: JsonOption = False,
    to_file: WriteOption = False,
    results: ResultsOption = SOAK,
) -> None:
    """Every drill with twenty seeds, in parts: what has passed is not played again. About two minutes a seed.

    Example: python -m bench soak --seeds 1-5 --write
    """
    first, _, last = seeds.partition("-")
    try:
        wanted = range(int(first), int(last or first) + 1)
    except ValueError:
        raise typer.BadParameter("1-20 or 7 is expected", param_hint="--seeds") from None
    logging.getLogger("perpline.simulation").setLevel(logging.ERROR)
    part = partial(bench_soak, wanted, jobs, state or ledger())
    _run("soak", [part], as_json_line, to_file, results)


@app.command()
def memory(
    minutes: Annotated[float, typer.Option("--minutes", min=0.02, help="Wall minutes; 24 at speed 60 are a day.")] = 24,
    symbols: Annotated[int, typer.Option("--symbols", min=1, max=600)] = 30,
    speed: Annotated[float, typer.Option("--speed", min=1, max=240, help="Speed of market time.")] = 60.0,
    as_json_line: JsonOption = False,
    to_file: WriteOption = False,
    results: ResultsOption = RESULTS,
) -> None:
    """Resident memory of a worker over an accelerated day, and its slope.

    Example: python -m bench memory --minutes 24 --write
    """
    _run("memory", [partial(bench_memory, minutes, symbols, speed)], as_json_line, to_file, results)


@app.command(name="all")
def everything(to_file: WriteOption = False, results: ResultsOption = RESULTS) -> None:
    """Every benchmark, one after the other, with its defaults: about thirteen minutes.

    Example: python -m bench all --write
    """
    for benchmark in (route, latency, close, listeners, workers, start, outage, failover, stops, features, labels):
        benchmark(to_file=to_file, results=results)


def _run(
    name: str,
    parts: Sequence[Callable[[Callable[[str], None]], list[Table]]],
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
