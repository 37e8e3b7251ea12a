"""`perpline simulate`: the simulated exchange as a process."""

import asyncio
import json
import logging
import signal
import sys
from typing import Annotated

import typer

from perpline.simulation.faults import FAULT_NAMES, parsed
from perpline.simulation.incidents import INCIDENT_NAMES
from perpline.simulation.server import SimulatedExchange


def simulate(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Local port; 0 takes a free one.")] = 0,
    speed: Annotated[float, typer.Option(min=0.01, max=1000, help="Market seconds per second.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The market is a function of this number.")] = 1,
    symbols: Annotated[int, typer.Option(min=1, max=2000, help="How many contracts are listed.")] = 30,
    edge: Annotated[float, typer.Option(help="Basis points a minute of planted drift; 0: none.")] = 0.0,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    thin: Annotated[bool, typer.Option(help="Above speed 1, thin book tickers and forming klines.")] = True,
    unrouted_all: Annotated[bool, typer.Option(help="Serve every stream on unrouted paths too, as demo does.")] = False,
    cut_hours: Annotated[float, typer.Option(min=0.001, help="Market hours until a connection is ended.")] = 24.0,
    ping_seconds: Annotated[float, typer.Option(min=0.1, help="Wall seconds between pings.")] = 180.0,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE|NAME[:key=value,…]",
            help=f"May be repeated. A setting: {', '.join(FAULT_NAMES)}; or what happens at a time (at_s, for_s, and "
            f"what src/perpline/simulation/incidents.py says): {', '.join(INCIDENT_NAMES)}.",
        ),
    ] = None,
) -> None:
    """Run a Binance USDⓈ-M futures exchange, market side, on a local port.

    Prints one line of JSON when it is ready: http, ws, symbols, seed, speed, time.

    Example: perpline simulate --port 9000 --symbols 30 --speed 60 --edge 2
    """
    try:
        faults = parsed(fault or [])
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--fault") from error
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    exchange = SimulatedExchange(
        seed=seed,
        symbols=symbols,
        speed=speed,
        edge_bp=edge,
        faults=faults,
        host=host,
        port=port,
        thin=thin,
        unrouted_all=unrouted_all,
        cut_hours=cut_hours,
        ping_s=ping_seconds,
    )
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        try:
            runner.run(_serve(exchange))
        except OSError as error:
            typer.echo(f"cannot listen on {host}:{port}: {error.strerror or error}", err=True)
            raise typer.Exit(1) from error


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
