"""`perpline replay`: recorded frames through the very same router, handlers, buffers and engine."""

import asyncio
import os
import random
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from perpline.bootstrap import Parts, make_parts, open_store
from perpline.bus.memory import MemoryBus
from perpline.cli.options import ConfigOption, DatabaseOption, JsonOption, print_json, run_loop, stderr
from perpline.collector.recorder import read_frames
from perpline.common.clock import ManualClock
from perpline.common.config import load_settings
from perpline.common.telemetry import configure_logging
from perpline.inference.registry import Deployed, load_default

FLUSH_EVERY_FRAMES = 20_000


class FileFormat(StrEnum):
    AUTO = "auto"
    LINES = "lines"
    JSONL = "jsonl"


def replay(
    files: Annotated[
        list[Path], typer.Argument(help="Recordings, replayed one after another.", exists=True, dir_okay=False)
    ],
    file_format: Annotated[
        FileFormat, typer.Option("--format", help="lines: <time> <frame>; jsonl: field `raw`; auto looks.")
    ] = FileFormat.AUTO,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Feed recordings to the pipeline, with the recorded receive times as its clock, and tell what came out.

    Without --database the tables are made in a temporary file and thrown away.

    Example: perpline replay recording.000.zst --json
    """
    with tempfile.TemporaryDirectory(prefix="perpline-replay-") as folder:
        database = database or f"sqlite:///{folder}/replay.db"
        settings = load_settings(
            config,
            os.environ,
            {"database_url": database, "redis_url": "memory://", "data_dir": folder, "record": "none"},
        )
        configure_logging(settings.log_level, settings.log_format, sys.stderr)

        async def main(stop: asyncio.Event) -> dict[str, Any]:
            store = open_store(database)
            await store.open()
            try:
                deployed = [Deployed(settings.slot, 0, load_default())]
                parts = make_parts(settings, ManualClock(), store, MemoryBus(), {}, None, random.Random(0), deployed)
                return await _replay(parts, files, file_format, stop)
            finally:
                await store.close()

        summary = run_loop(main)
    if as_json:
        print_json(summary)
    else:
        _print(summary)


async def _replay(parts: Parts, files: list[Path], file_format: FileFormat, stop: asyncio.Event) -> dict[str, Any]:
    clock = parts.clock
    assert isinstance(clock, ManualClock)
    frames, unreadable = 0, 0
    first_us: int | None = None
    last_us: int | None = None

    def unreadable_line(number: int, line: bytes) -> None:
        nonlocal unreadable
        unreadable += 1

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[frames]:,} frames"),
    )
    with Progress(*columns, console=stderr, transient=True, disable=not sys.stderr.isatty()) as progress:
        for path in files:
            task = progress.add_task(path.name, total=None, frames=0)
            for received_us, data in read_frames(path, file_format.value, unreadable_line):
                clock.set_us(received_us)
                first_us = received_us if first_us is None else min(first_us, received_us)
                last_us = received_us if last_us is None else max(last_us, received_us)
                frames += 1
                parts.router.route(data, received_us)
                if parts.engine.has_due:
                    await parts.engine.drain()
                if frames % FLUSH_EVERY_FRAMES == 0:
                    await parts.buffer.flush()
                    progress.update(task, frames=frames)
                    if stop.is_set():
                        break
            progress.update(task, frames=frames, total=1, completed=1)
            if stop.is_set():
                break
    parts.flush_minutes()
    await parts.engine.drain()
    await parts.engine.score_aside()
    await parts.publisher.flush()
    await parts.buffer.flush()
    await parts.ledger.flush()
    return {
        "frames": frames,
        "by_stream": dict(sorted(parts.router.by_kind.items())),
        "malformed": parts.router.malformed + unreadable,
        "unhandled": parts.router.unhandled,
        "unhandled_types": dict(sorted(parts.router.unhandled_types.items())),
        "unknown_fields": dict(sorted(parts.fields.counts.items())),
        "dropped": dict(parts.dropped),
        "closed_candles": parts.klines.closed,
        "signals": sum(parts.engine.by_status.values()),
        "by_status": {str(status): count for status, count in sorted(parts.engine.by_status.items())},
        "first_time": None if first_us is None else first_us // 1000,
        "last_time": None if last_us is None else last_us // 1000,
        "rows": {table: count for table, count in (await parts.store.row_counts()).items() if count},
        "symbols": _symbols(parts),
    }


def _symbols(parts: Parts) -> dict[str, Any]:
    klines = parts.klines
    names = set(parts.books.latest) | set(parts.marks.latest)
    for by_symbol in klines.forming.values():
        names |= set(by_symbol)
    found = {}
    for symbol in sorted(names):
        book, mark = parts.books.get(symbol), parts.marks.latest.get(symbol)
        entry: dict[str, Any] = {}
        if book is not None:
            entry["book"] = {
                "bid": book.bid,
                "bid_qty": book.bid_qty,
                "ask": book.ask,
                "ask_qty": book.ask_qty,
                "updated_at": book.updated_at,
                "received_at": book.received_at,
            }
        if mark is not None:
            entry["mark"] = {
                "mark_price": mark.mark_price,
                "index_price": mark.index_price,
                "funding_rate": mark.funding_rate,
                "next_funding_time": mark.next_funding_time,
                "updated_at": mark.updated_at,
                "received_at": mark.received_at,
            }
        entry["candles"] = {
            interval: count for interval in klines.forming if (count := klines.closed_by[(symbol, interval)])
        }
        entry["signals"] = parts.engine.decided_by[symbol]
        found[symbol] = entry
    return found


def _print(summary: dict[str, Any]) -> None:
    console = Console()
    console.print(
        f"[bold]{summary['frames']:,}[/] frames, [{'red' if summary['malformed'] else 'green'}]"
        f"{summary['malformed']} malformed[/], {summary['unhandled']:,} without a handler, "
        f"{summary['closed_candles']} closed candles, {summary['signals']} decisions"
    )
    streams = Table(box=None, header_style="bold")
    streams.add_column("stream")
    streams.add_column("frames", justify="right")
    for kind, count in summary["by_stream"].items():
        streams.add_row(kind, f"{count:,}")
    console.print(streams)
    table = Table(box=None, header_style="bold")
    for head in ("symbol", "bid", "ask", "mark", "funding %", "candles", "decisions"):
        table.add_column(head, justify="left" if head == "symbol" else "right")
    for symbol, entry in summary["symbols"].items():
        book, mark = entry.get("book", {}), entry.get("mark", {})
        rate = mark.get("funding_rate")
        table.add_row(
            symbol,
            str(book.get("bid", "")),
            str(book.get("ask", "")),
            str(mark.get("mark_price", "")),
            "" if rate is None else f"{rate * 100:+.4f}",
            " ".join(f"{interval} {count}" for interval, count in entry["candles"].items()),
            str(entry["signals"]),
        )
    console.print(table)
