"""`perpline demo`: the main job end to end, with nothing installed beforehand: simulated exchange and worker, live."""

import asyncio
import ctypes
import json
import os
import signal
import socket
import sys
import tempfile
from collections import Counter
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer
from msgspec import Struct
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from perpline.bootstrap import open_store
from perpline.cli.options import JsonOption, RedisOption, print_json, run_loop, stderr
from perpline.cli.status import fetch_status, summary_lines, symbols_table
from perpline.common.config import masked_url
from perpline.common.errors import NeedsPerson
from perpline.domain.candle import MINUTE_MS, last_boundary
from perpline.domain.signal import Status

EDGE_BP = 2.0
"""The drift a minute that the demo's market has behind one-sided takers, so that there is something to see."""

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
SETTLED_MS = 5_000
"""A minute counts if it closed this long (market time) before the stop: its closing frames have left by then."""


class Run(Struct):
    """What one demo was, for its summary."""

    speed: float
    exchange: dict[str, Any]
    """The line the simulated exchange printed when it was ready."""
    stopped_at: int
    """The exchange's time just before the worker was told to stop."""
    status: dict[str, Any]
    """The worker's last words."""


def demo(
    symbols: Annotated[int, typer.Option(help="How many symbols the simulated exchange lists.", min=1, max=600)] = 30,
    speed: Annotated[
        float, typer.Option(help="How fast market time runs: 60 closes a minute each second.", min=0.1, max=240)
    ] = 10.0,
    duration: Annotated[
        float | None,
        typer.Option(help="Stop after so many wall seconds; default: at Ctrl-C.", min=1, show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Which market: the same seed gives the same one.")] = 1,
    database: Annotated[
        str | None, typer.Option(help="Keep the tables here instead of in a temporary file.", show_default=False)
    ] = None,
    redis: RedisOption = None,
    as_json: JsonOption = False,
) -> None:
    """Watch perpline do its main job on a simulated exchange, until Ctrl-C; then see what it did.

    Example: perpline demo --symbols 30 --speed 60 --duration 60 --json
    """
    with tempfile.TemporaryDirectory(prefix="perpline-demo-") as folder:

        async def main(stop: asyncio.Event) -> dict[str, Any]:
            if duration is not None:
                asyncio.get_running_loop().call_later(START_TIMEOUT_S + duration, stop.set)
            return await _demo(
                Path(folder),
                stop,
                symbols=symbols,
                speed=speed,
                duration=duration,
                seed=seed,
                database=database,
                redis=redis,
            )

        summary = run_loop(main)
    if as_json:
        print_json(summary)
    else:
        _print_summary(summary)


async def _demo(
    folder: Path,
    stop: asyncio.Event,
    *,
    symbols: int,
    speed: float,
    duration: float | None,
    seed: int,
    database: str | None,
    redis: str | None,
) -> dict[str, Any]:
    database = database or f"sqlite:///{folder / 'demo.db'}"
    stderr.print(f"simulated exchange: {symbols} symbols, seed {seed}, {speed:g} × speed, planted edge {EDGE_BP:g} bp")
    exchange = await _start(
        "simulate", "--port", "0", "--speed", str(speed), "--seed", str(seed), "--symbols", str(symbols),
        "--edge", str(EDGE_BP), log=folder / "exchange.log",
    )  # fmt: skip
    worker = None
    try:
        ready = await _first_line(exchange, "the simulated exchange", folder / "exchange.log")
        port = _free_port()
        settings = folder / "perpline.toml"
        settings.write_text(_settings(ready, symbols, speed, database, redis, port, folder), encoding="utf-8")
        worker = await _start("run", "--json", "--config", str(settings), log=folder / "worker.log")
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            await _watch(session, stop, worker, folder, port, duration, speed)
            async with session.get(f"{ready['http']}/fapi/v1/time") as answer:
                stopped_at = (await answer.json())["serverTime"]
            status = await _last_words(worker, folder / "worker.log")
            return await _summary(Run(speed, ready, stopped_at, status), session, database)
    finally:
        for process in (worker, exchange):
            if process is not None:
                await _end(process)


def _settings(
    ready: dict[str, Any], symbols: int, speed: float, database: str, redis: str | None, port: int, folder: Path
) -> str:
    """A settings file of the demo's own, so that neither the user's file nor his environment changes what he sees."""
    values: dict[str, object] = {
        "network": "custom",
        "binance_futures_ws_url": ready["ws"],
        "binance_futures_rest_url": ready["http"],
        "symbols": f"top:{symbols}",
        "clock_speed": speed,
        "database_url": database,
        "redis_url": redis or "memory://",
        "status_port": port,
        "data_dir": str(folder),
        "log_format": "json",
    }
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())


async def _start(*arguments: str, log: Path) -> asyncio.subprocess.Process:
    """One of our own commands as a process that does not outlive this one and hears no Ctrl-C meant for us."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PERPLINE_")}
    with log.open("wb") as errors:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "perpline", *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            limit=1 << 26,
        )  # fmt: skip


def _die_with_parent() -> None:
    """Ask the kernel to end this process when its parent is gone, however that happened (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


async def _first_line(process: asyncio.subprocess.Process, name: str, log: Path) -> dict[str, Any]:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            line = await process.stdout.readline()
    except TimeoutError:
        raise NeedsPerson(f"{name} was not ready within {START_TIMEOUT_S:.0f} s; it said: {_tail(log)}") from None
    try:
        found: dict[str, Any] = json.loads(line)
    except ValueError:
        raise NeedsPerson(f"{name} did not start; it said: {_tail(log)}") from None
    return found


async def _watch(
    session: aiohttp.ClientSession,
    stop: asyncio.Event,
    worker: asyncio.subprocess.Process,
    folder: Path,
    port: int,
    duration: float | None,
    speed: float,
) -> None:
    """Show the worker until the stop; `duration` counts from the moment it is ready."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    ready_at: float | None = None
    ended = asyncio.create_task(worker.wait())
    live = Live(console=Console(), refresh_per_second=4, screen=False, transient=True) if sys.stdout.isatty() else None
    with live or nullcontext():
        while not stop.is_set() and not ended.done():
            now = loop.time()
            if ready_at is not None and duration is not None and now - ready_at >= duration:
                break
            if ready_at is None and now - began > START_TIMEOUT_S:
                raise NeedsPerson(
                    f"the worker was not ready within {START_TIMEOUT_S:.0f} s: {_tail(folder / 'worker.log')}"
                )
            facts = await _status_or_none(session, folder, port)
            if facts is not None:
                if facts["ready"] and ready_at is None:
                    ready_at = now
                    if live is None:
                        stderr.print(f"worker ready after {facts['ready_after_s']} s")
                if live is not None:
                    live.update(screen(facts, speed, live.console.width, live.console.height))
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5 if live is None or speed < 5 else 0.25):
                    await stop.wait()
    if ended.done():
        raise NeedsPerson(
            f"the worker ended by itself (exit {worker.returncode}); it said: {_tail(folder / 'worker.log')}"
        )
    ended.cancel()


async def _status_or_none(session: aiohttp.ClientSession, folder: Path, port: int) -> dict[str, Any] | None:
    try:
        return await fetch_status(folder, port, session)
    except NeedsPerson:
        return None  # not listening yet, or busy; the next look is soon


def screen(facts: dict[str, Any], speed: float, width: int, height: int) -> Group:
    """The live view, no taller than `height`: header, one row a symbol, footer."""
    seconds = facts["now"] // 1000 % 86_400
    clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    ready = "[green]ready[/]" if facts["ready"] else "[yellow]starting[/]"
    note = Text("Ctrl-C ends it. ", "dim")
    note.append(f"A simulated market, with a planted edge of {EDGE_BP:g} bp a minute: no word about real profit.")
    lines = [*summary_lines(facts), note]
    for line in lines:  # a line that wrapped would push the last symbols off the screen
        line.no_wrap, line.overflow = True, "ellipsis"
    header = Panel(
        Group(*lines[:-1]), title=f"[bold]perpline demo[/]  {clock} UTC  ×{speed:g}  {ready}", title_align="left"
    )
    rows = height - len(lines) - 4  # two borders, the heads, and a line for the cursor
    symbols = len(facts["symbols"])
    return Group(header, symbols_table(facts, max(1, rows if symbols <= rows else rows - 1), width), note)


async def _last_words(worker: asyncio.subprocess.Process, log: Path) -> dict[str, Any]:
    """Stop the worker as Ctrl-C would and read the status it prints last."""
    assert worker.stdout is not None
    worker.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            output = await worker.stdout.read()
            await worker.wait()
    except TimeoutError:
        raise NeedsPerson(f"the worker did not stop within {STOP_TIMEOUT_S:.0f} s: {_tail(log)}") from None
    try:
        status: dict[str, Any] = json.loads(output.splitlines()[-1])
    except (ValueError, IndexError):
        raise NeedsPerson(f"the worker did not end well (exit {worker.returncode}): {_tail(log)}") from None
    return status


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(5):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _summary(run: Run, session: aiohttp.ClientSession, database: str) -> dict[str, Any]:
    """The summary of contracts.md, from the exchange's truth and the database."""
    status = run.status
    ready_at, counted_until = status["ready_at"], run.stopped_at - SETTLED_MS
    first = last_boundary(ready_at) + MINUTE_MS
    names = list(status["symbols"])
    minutes = await _minutes_closed(session, run.exchange["http"], names[0], first, counted_until)
    store = open_store(database, read_only=True)
    await store.open()
    try:
        rows = await store.decision_rows(status["slot"], first, counted_until)
        table_rows = await store.row_counts()
        gaps = len(await store.gaps())
    finally:
        await store.close()
    per_pair = Counter((symbol, close_time) for symbol, close_time, _ in rows)
    decided = [status for _, _, status in rows if status != Status.SKIPPED_MISSED]
    expected = len(names) * len(minutes)
    have = {(symbol, close_time) for symbol, close_time, status in rows if status != Status.SKIPPED_MISSED}
    missing = sum((symbol, close_time) not in have for symbol in names for close_time in minutes)
    skipped = Counter(status for _, _, status in rows if status.startswith("skipped_"))
    calls = [
        count
        for minute, count in status["rest"]["requests_by_minute"].items()
        if first <= int(minute) < last_boundary(counted_until)
    ]
    return {
        "symbols": len(names),
        "streams": sum(connection["streams"] for connection in status["connections"]),
        "connections": len(status["connections"]),
        "ready_after_s": status["ready_after_s"],
        "minutes_closed": len(minutes),
        "decisions": len(decided),
        "decisions_expected": expected,
        "decisions_missing": missing,
        "decisions_twice": sum(count - 1 for count in per_pair.values()),
        "by_status": dict(sorted(Counter(status for _, _, status in rows).items())),
        "skipped": dict(sorted(skipped.items())),
        "rows": table_rows,
        "rest_calls_per_minute": round(sum(calls) / len(calls), 1) if calls else None,
        "close_to_signal_ms": status["decisions"]["close_to_signal_ms"],
        "market_close_to_signal_ms": status["decisions"]["market_close_to_signal_ms"],
        "gaps": gaps,
        "malformed": status["messages"]["malformed"],
        "messages": status["messages"]["total"],
        "speed": run.speed,
        "seed": run.exchange["seed"],
        "edge_bp": EDGE_BP,
        "database": masked_url(database),
    }


async def _minutes_closed(session: aiohttp.ClientSession, http: str, symbol: str, first: int, until: int) -> list[int]:
    """The close boundaries from `first` to `until` that the exchange itself says it had."""
    query = {"symbol": symbol, "interval": "1m", "from": str(first - MINUTE_MS), "to": str(until - MINUTE_MS + 1)}
    async with session.get(f"{http}/sim/candles", params=query) as answer:
        candles = await answer.json()
    return [int(row[0]) + MINUTE_MS for row in candles if first <= int(row[0]) + MINUTE_MS <= until]


def _print_summary(summary: dict[str, Any]) -> None:
    console = Console()
    good = summary["decisions_missing"] == 0 and summary["decisions_twice"] == 0
    table = Table(box=None, show_header=False, title="what it did", title_style="bold", title_justify="left")
    table.add_column(justify="right", style="bold")
    table.add_column()
    table.add_row(str(summary["minutes_closed"]), f"minutes closed at the exchange, for {summary['symbols']} symbols")
    table.add_row(str(summary["decisions"]), f"decisions of {summary['decisions_expected']} expected")
    table.add_row(
        f"[{'green' if good else 'red'}]{summary['decisions_missing']} / {summary['decisions_twice']}[/]",
        "decisions missing / made twice",
    )
    for status, count in summary["by_status"].items():
        table.add_row(f"[dim]{count}[/]", f"[dim]{status}[/]")
    latency, market = summary["close_to_signal_ms"], summary["market_close_to_signal_ms"]
    if latency["p50"] is not None:
        table.add_row(
            f"{latency['p50']:.1f} / {latency['p99']:.1f}", "ms from the closing frame to published, p50 / p99"
        )
        table.add_row(
            f"{market['p50']:.0f} / {market['p99']:.0f}", "ms from the close itself (the exchange's delay within)"
        )
    table.add_row(
        str(summary["streams"]), f"streams on {summary['connections']} connections, {summary['messages']} messages"
    )
    table.add_row(str(summary["rest_calls_per_minute"]), "REST calls a minute of market time")
    table.add_row(str(summary["gaps"]), f"gaps noted, {summary['malformed']} malformed messages")
    for name, count in summary["rows"].items():
        if count:
            table.add_row(f"[dim]{count}[/]", f"[dim]rows in {name}[/]")
    console.print(table)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _tail(log: Path) -> str:
    """The last thing a process wrote to its log, for an error text."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1][:500] if lines else "nothing"
