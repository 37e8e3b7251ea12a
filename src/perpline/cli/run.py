"""`perpline run`: the worker."""

import asyncio
import os
import random
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from perpline.cli.options import (
    ConfigOption,
    DatabaseOption,
    DurationOption,
    JsonOption,
    NetworkOption,
    RedisOption,
    RestUrlOption,
    SpeedOption,
    SymbolsOption,
    WsUrlOption,
    exchange_settings,
    print_json,
    run_loop,
)
from perpline.common.clock import SystemClock
from perpline.common.config import load_settings
from perpline.common.telemetry import LogRing, configure_logging
from perpline.realtime_worker import run_rest
from perpline.realtime_worker_ws import run_ws


def run(
    rest: Annotated[
        bool, typer.Option("--rest", help="Feed the worker by REST every 5 s instead of WebSocket.")
    ] = False,
    symbols: SymbolsOption = None,
    network: NetworkOption = None,
    ws_url: WsUrlOption = None,
    rest_url: RestUrlOption = None,
    database: DatabaseOption = None,
    redis: RedisOption = None,
    role: Annotated[
        Literal["all", "collector", "inference"] | None,
        typer.Option(
            help="all: one process does everything. collector: hear a shard of the symbols and send their features. "
            "inference: decide what collectors send.",
            show_default=False,
        ),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="With --role collector: which of how many, as 2/3.", show_default=False)
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="With --role inference: workers of one group share the work.", show_default=False)
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Also write every raw frame to this file (zstd, rotated).", show_default=False)
    ] = None,
    status_port: Annotated[int | None, typer.Option(help="Port of the worker's endpoint.", show_default=False)] = None,
    speed: SpeedOption = None,
    duration: DurationOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hear the market, store it, and decide once per closed minute and symbol, until Ctrl-C.

    A second one with the same settings stands by. On more than one machine: docs/scaling.md.

    Example: perpline run --symbols BTCUSDT,ETHUSDT --database sqlite:///market.db

    Example: perpline run --role collector --shard 1/2 --redis redis://10.0.0.5 --database postgresql://10.0.0.5/perpline
    """
    settings = load_settings(
        config,
        os.environ,
        {
            **exchange_settings(symbols, network, ws_url, rest_url, speed),
            "database_url": database,
            "redis_url": redis,
            "role": role,
            "shard": shard,
            "group": group,
            "record": record,
            "status_port": status_port,
        },
    )
    logs = LogRing(SystemClock().now_ms)
    configure_logging(settings.log_level, settings.log_format, sys.stderr, ring=logs)

    async def main(stop: asyncio.Event) -> dict[str, Any]:
        if duration is not None:
            asyncio.get_running_loop().call_later(duration, stop.set)
        run_role = run_rest if rest else run_ws
        if settings.role == "inference":
            from perpline.inference_worker import run_inference as run_role  # Redis comes with it
        return await run_role(settings, stop, random.Random(), lambda ready: None, logs)

    status = run_loop(main)
    if as_json:
        print_json(status)
