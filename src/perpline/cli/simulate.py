"""`perpline simulate`: the simulated exchange as a process."""

import asyncio
import json
import logging
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from perpline.cli.options import JsonOption, print_json, stderr
from perpline.common.clock import SystemClock
from perpline.common.errors import NeedsPerson
from perpline.simulation.exchange import DAY_MS
from perpline.simulation.faults import FAULT_NAMES, parsed
from perpline.simulation.history import write_history
from perpline.simulation.incidents import spelled
from perpline.simulation.instruments import instruments
from perpline.simulation.market import MINUTE_MS
from perpline.simulation.script import read_script
from perpline.simulation.server import SimulatedExchange


def simulate(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Local port; 0 takes a free one.")] = 0,
    speed: Annotated[float, typer.Option(min=0.01, max=1000, help="Market seconds per second.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The market is a function of this number.")] = 1,
    symbols: Annotated[int, typer.Option(min=1, max=2000, help="How many contracts are listed.")] = 30,
    edge: Annotated[
        float, typer.Option(min=-100, max=100, help="Basis points a minute of planted drift; 0: none.")
    ] = 0.0,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    thin: Annotated[bool, typer.Option(help="Above speed 1, thin book tickers and forming klines.")] = True,
    unrouted_all: Annotated[bool, typer.Option(help="Serve every stream on unrouted paths too, as demo does.")] = False,
    cut_hours: Annotated[float, typer.Option(min=0.001, help="Market hours until a connection is ended.")] = 24.0,
    ping_seconds: Annotated[float, typer.Option(min=0.1, help="Wall seconds between pings.")] = 180.0,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE|NAME[:key=value,…]",
            help=f"May be repeated. A setting: {', '.join(FAULT_NAMES)}. Or what happens at_s market seconds after the "
            f"start, for_s long: {', '.join(spelled())}.",
        ),
    ] = None,
    start: Annotated[
        str | None, typer.Option(metavar="TIME", help="Market time to begin at, ISO 8601 in UTC; default: now.")
    ] = None,
    script: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            metavar="FILE",
            help="Prices that contracts follow: CSV or JSON lines of symbol, time, price (docs/simulated-exchange.md).",
        ),
    ] = None,
    history: Annotated[
        int | None, typer.Option(min=1, metavar="DAYS", help="Write the past as archives to --out, and run nothing.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the archives, new or empty.")] = None,
    end: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Where the past ends, ISO 8601 in UTC; default: with the last minute."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a Binance USDⓈ-M futures exchange on a local port; or write its past as archive files.

    Prints one line of JSON when it is ready: http, ws, symbols, seed, speed, time. With --history it writes files as
    the exchange publishes them, and a server of the same seed and edge goes on where they end. An account to trade on
    is there: key sim-key, secret sim-secret.

    Example: perpline simulate --port 9000 --symbols 30 --speed 60 --edge 2
    """
    if history is not None:
        _write_history(history, out, end, seed, symbols, edge, as_json)
        return
    if out is not None or end is not None:
        raise typer.BadParameter("only with --history", param_hint="--out, --end")
    anchor_ms = _milliseconds(start, "--start")
    try:
        faults = parsed(fault or [])
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--fault") from error
    try:
        rows = [] if script is None else read_script(script.read_bytes())
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{script}: {error}", param_hint="--script") from error
    unknown = sorted({row.symbol for row in rows} - {own.symbol for own in instruments(symbols)})
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: no contract of this exchange", param_hint="--script")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    exchange = SimulatedExchange(
        seed=seed,
        symbols=symbols,
        speed=speed,
        clock=None if anchor_ms is None else SystemClock(speed, anchor_ms=anchor_ms),
        edge_bp=edge,
        faults=faults,
        host=host,
        port=port,
        thin=thin,
        unrouted_all=unrouted_all,
        cut_hours=cut_hours,
        ping_s=ping_seconds,
        script=rows,
    )
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        try:
            runner.run(_serve(exchange))
        except OSError as error:
            typer.echo(f"cannot listen on {host}:{port}: {error.strerror or error}", err=True)
            raise typer.Exit(1) from error


def _write_history(
    days: int, out: Path | None, end: str | None, seed: int, symbols: int, edge: float, as_json: bool
) -> None:
    if out is None:
        raise typer.BadParameter("--history needs --out", param_hint="--out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise NeedsPerson(f"{out} is there and not empty: archives of two worlds must not mix")
    given_ms = _milliseconds(end, "--end")
    end_ms = SystemClock().now_ms() if given_ms is None else given_ms
    end_ms -= end_ms % MINUTE_MS
    start_ms = end_ms - days * DAY_MS
    start_ms -= start_ms % DAY_MS
    began_s = time.monotonic()
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=stderr
    ) as bar:
        task = bar.add_task("symbol-months")
        try:
            written = write_history(
                out,
                seed=seed,
                symbols=symbols,
                start_ms=start_ms,
                end_ms=end_ms,
                edge_bp=edge,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--history, --end") from error
        except OSError as error:
            raise NeedsPerson(f"cannot write to {out}: {error.strerror or error}") from error
    summary = {
        "out": str(out),
        "seed": seed,
        "symbols": symbols,
        "from": start_ms,
        "to": end_ms,
        "files": written.files,
        "bytes": written.bytes,
        "rows": dict(sorted(written.rows.items())),
        "seconds": round(time.monotonic() - began_s, 1),
    }
    if as_json:
        print_json(summary)
    else:
        rows = sum(written.rows.values())
        typer.echo(f"{written.files} files, {rows} rows, {written.bytes >> 20} MB in {out}; {summary['seconds']} s")


def _milliseconds(text: str | None, option: str) -> int | None:
    """2026-11-20, 2026-11-20T13:57 or with an offset; UTC where none is given."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"no time: {text!r}; 2026-11-20T13:57 is one", param_hint=option) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


async def _serve(exchange: SimulatedExchange) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with exchange:
        ready = {
            "http": exchange.http_url,
            "ws": exchange.ws_url,
            "symbols": len(exchange.symbols),
            "seed": exchange.seed,
            "speed": exchange.clock.speed,
            "time": exchange.clock.now_ms(),
        }
        print(json.dumps(ready), flush=True)
        stopped = asyncio.ensure_future(stop.wait())
        failed = asyncio.ensure_future(exchange.wait_failed())
        await asyncio.wait((stopped, failed), return_when=asyncio.FIRST_COMPLETED)
        for waiting in (stopped, failed):
            waiting.cancel()
        await asyncio.gather(stopped, failed, return_exceptions=True)


def _new_loop() -> asyncio.AbstractEventLoop:
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


if __name__ == "__main__":
    typer.run(simulate)
