"""`perpline run`: the worker."""

import asyncio
import os
import random
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from perpline.cli.options import ConfigOption, DatabaseOption, JsonOption, RedisOption, print_json, run_loop
from perpline.common.config import load_settings
from perpline.common.telemetry import configure_logging
from perpline.realtime_worker import run_rest
from perpline.realtime_worker_ws import run_ws


def run(
    rest: Annotated[
        bool, typer.Option("--rest", help="Feed the worker by REST every 5 s instead of WebSocket.")
    ] = False,
    symbols: Annotated[
        str | None, typer.Option(help='Symbols: "BTCUSDT,ETHUSDT" or "top:30".', show_default=False)
    ] = None,
    network: Annotated[str | None, typer.Option(help="mainnet, testnet or custom.", show_default=False)] = None,
    ws_url: Annotated[
        str | None, typer.Option(help="Base URL of the streams (network custom).", show_default=False)
    ] = None,
    rest_url: Annotated[str | None, typer.Option(help="Base URL of REST (network custom).", show_default=False)] = None,
    database: DatabaseOption = None,
    redis: RedisOption = None,
    record: Annotated[
        Path | None, typer.Option(help="Also write every raw frame to this file (zstd, rotated).", show_default=False)
    ] = None,
    status_port: Annotated[int | None, typer.Option(help="Port of the worker's endpoint.", show_default=False)] = None,
    speed: Annotated[
        float | None, typer.Option(help="Speed of market time, for the simulated exchange.", show_default=False)
    ] = None,
    duration: Annotated[
        float | None, typer.Option(help="Stop after so many wall seconds.", min=0.0, show_default=False)
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hear the market, store it, and decide once per closed minute and symbol, until Ctrl-C.

    Example: perpline run --symbols BTCUSDT,ETHUSDT --database sqlite:///market.db
    """
    settings = load_settings(
        config,
        os.environ,
        {
            "symbols": symbols,
            "network": "custom" if network is None and (ws_url or rest_url) else network,
            "binance_futures_ws_url": ws_url,
            "binance_futures_rest_url": rest_url,
            "database_url": database,
            "redis_url": redis,
            "record": record,
            "status_port": status_port,
            "clock_speed": speed,
        },
    )
    configure_logging(settings.log_level, settings.log_format, sys.stderr)

    async def main(stop: asyncio.Event) -> dict[str, Any]:
        if duration is not None:
            asyncio.get_running_loop().call_later(duration, stop.set)
        return await (run_rest if rest else run_ws)(settings, stop, random.Random(), lambda ready: None)

    status = run_loop(main)
    if as_json:
        print_json(status)
