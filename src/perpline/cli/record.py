"""`perpline record`: raw frames to files, and nothing else."""

import asyncio
import os
import random
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from perpline.bootstrap import choose_instruments, make_clock, make_recording_streams, make_rest
from perpline.cli.options import (
    ConfigOption,
    DurationOption,
    JsonOption,
    NetworkOption,
    RestUrlOption,
    SpeedOption,
    SymbolsOption,
    WsUrlOption,
    exchange_settings,
    print_json,
    run_loop,
    stderr,
)
from perpline.collector.recorder import FrameWriter
from perpline.common.config import load_settings
from perpline.common.telemetry import configure_logging


def record(
    out: Annotated[Path, typer.Option("--out", help="Name of the files: NAME.000.zst, NAME.001.zst, …")],
    symbols: SymbolsOption = None,
    network: NetworkOption = None,
    ws_url: WsUrlOption = None,
    rest_url: RestUrlOption = None,
    speed: SpeedOption = None,
    duration: DurationOption = None,
    file_mb: Annotated[
        int | None, typer.Option(help="Size of a file before the next is begun.", min=1, show_default=False)
    ] = None,
    files: Annotated[
        int | None, typer.Option(help="Files kept; then the oldest goes.", min=1, show_default=False)
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write every raw frame of the streams with its receive time, compressed, bounded in size, until Ctrl-C.

    Example: perpline record --out btc --symbols BTCUSDT --duration 60
    """
    settings = load_settings(
        config,
        os.environ,
        {
            **exchange_settings(symbols, network, ws_url, rest_url, speed),
            "record_file_mb": file_mb,
            "record_files": files,
        },
    )
    configure_logging(settings.log_level, settings.log_format, sys.stderr)

    async def main(stop: asyncio.Event) -> dict[str, Any]:
        if duration is not None:
            asyncio.get_running_loop().call_later(duration, stop.set)
        clock = await make_clock(settings)
        rest = make_rest(settings, clock)
        try:
            instruments = await choose_instruments(settings, rest)
        finally:
            await rest.close()
        writer = FrameWriter(
            out, clock, max_bytes_per_file=settings.record_file_mb << 20, max_files=settings.record_files
        )
        try:
            streams = make_recording_streams(settings, clock, random.Random(), list(instruments), writer)
            async with asyncio.TaskGroup() as group:
                running = group.create_task(streams.run())
                await stop.wait()
                running.cancel()
        finally:
            writer.close()
        said = writer.statistics()
        return {
            "frames": said.frames,
            "dropped": said.dropped,
            "bytes": said.bytes_written,
            "files": said.files,
            "error": said.error,
            "silent": streams.waiting_for()[:20],
        }

    summary = run_loop(main)
    if as_json:
        print_json(summary)
    else:
        stderr.print(
            f"{summary['frames']:,} frames in {summary['bytes'] / 1e6:.1f} MB, {summary['dropped']} dropped"
            + (f"; {summary['error']}" if summary["error"] else "")
        )
