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
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from functools import partial
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

from perpline.bootstrap import open_bus, open_store
from perpline.cli.demo_trade import (
    KEYS,
    Mover,
    add_trading_rows,
    begin_trading,
    end_trading,
    market_time,
    trade_settings,
    trading_summary,
)
from perpline.cli.options import JsonOption, RedisOption, print_json, run_loop, stderr
from perpline.cli.status import summary_lines, symbols_table
from perpline.cli.trading_view import event_lines, open_positions, positions_table, shortened, trading_lines
from perpline.common.config import load_settings, masked_url
from perpline.common.errors import NeedsPerson
from perpline.domain.candle import MINUTE_MS, last_boundary
from perpline.domain.order import Account
from perpline.domain.signal import Status
from perpline.features.live import kernel_is_kept
from perpline.worker_client import fetch_status

EDGE_BP = 2.0
"""The drift a minute that the demo's market has behind one-sided takers, so that there is something to see."""

SPEED, TRADE_SPEED = 10.0, 60.0
"""Trading shows itself by the hour: positions live for up to four."""
EVENTS_SHOWN = 6
START_TIMEOUT_S = 60.0
DASHBOARD_NICE = 5
"""It must not take the processor from what it shows."""
STOP_TIMEOUT_S = 30.0
NOT_STARTED = {"http": "http://127.0.0.1:9", "ws": "ws://127.0.0.1:9"}
"""What stands for the exchange's addresses while the other settings are checked."""
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
    trading: dict[str, Any] | None
    """What the tables say was traded, with --trade."""


def demo(
    symbols: Annotated[int, typer.Option(help="How many symbols the simulated exchange lists.", min=1, max=600)] = 30,
    trade: Annotated[
        bool, typer.Option("--trade", help="Trade the signals on paper, with stops that fire; speed 60.")
    ] = False,
    live_sim: Annotated[
        bool, typer.Option("--live-sim", help="Trade them with signed orders on the simulated exchange's account.")
    ] = False,
    speed: Annotated[
        float | None,
        typer.Option(
            help="How fast market time runs: 60 closes a minute each second. Default: 10, and 60 where it trades.",
            min=0.1,
            max=240,
            show_default=False,
        ),
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option(help="Stop after so many wall seconds; default: at Ctrl-C.", min=1, show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Which market: the same seed gives the same one.")] = 1,
    database: Annotated[
        str | None, typer.Option(help="Keep the tables here instead of in a temporary file.", show_default=False)
    ] = None,
    redis: RedisOption = None,
    with_dashboard: Annotated[
        bool, typer.Option("--dashboard/--no-dashboard", help="Serve the dashboard too, and show its address.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Watch perpline do its main job on a simulated exchange, until Ctrl-C; then see what it did.

    Example: perpline demo --symbols 30 --speed 60 --duration 60 --json
    """
    if live_sim and database is not None:
        # A mode live that such a process left behind when it was killed would wait there for real keys.
        raise typer.BadParameter("--live-sim keeps its tables to itself", param_hint="--database")
    account: Account | None = "live" if live_sim else "paper" if trade else None
    with tempfile.TemporaryDirectory(prefix="perpline-demo-") as folder:

        async def main(stop: asyncio.Event) -> dict[str, Any]:
            await _compile(stop)
            if duration is not None:
                asyncio.get_running_loop().call_later(START_TIMEOUT_S + duration, stop.set)
            return await _demo(
                Path(folder),
                stop,
                symbols=symbols,
                speed=speed or (SPEED if account is None else TRADE_SPEED),
                duration=duration,
                seed=seed,
                database=database,
                redis=redis,
                account=account,
                with_dashboard=with_dashboard,
            )

        summary = run_loop(main)
    if as_json:
        print_json(summary)
    else:
        _print_summary(summary)


async def _compile(stop: asyncio.Event) -> None:
    """Compile the feature kernel where no start has done so: a worker would do it while the market already runs."""
    if kernel_is_kept():
        return
    stderr.print("compiling the feature kernel: half a minute, once after an installation", highlight=False)
    code = "from perpline.features.live import compile_kernel; compile_kernel()"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdin=asyncio.subprocess.DEVNULL)
    waits = [asyncio.create_task(process.wait()), asyncio.create_task(stop.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waits[1].cancel()
        await _end(process)


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
    account: Account | None,
    with_dashboard: bool,
) -> dict[str, Any]:
    database = database or f"sqlite:///{folder / 'demo.db'}"
    trading_settings = {} if account is None else trade_settings(speed)
    await _check(_settings(NOT_STARTED, symbols, speed, database, redis, 0, folder), folder)
    stderr.print(f"simulated exchange: {symbols} symbols, seed {seed}, {speed:g} × speed, planted edge {EDGE_BP:g} bp")
    exchange = await _start(
        "simulate", "--port", "0", "--speed", str(speed), "--seed", str(seed), "--symbols", str(symbols),
        "--edge", str(EDGE_BP), log=folder / "exchange.log",
    )  # fmt: skip
    worker, pages = None, None
    try:
        ready = await _first_line(exchange, "the simulated exchange", folder / "exchange.log")
        port = _free_port()
        values = _settings(ready, symbols, speed, database, redis, port, folder) | trading_settings
        settings = _settings_file(values, folder)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            mover = None
            if account is not None:
                await begin_trading(settings, account, ready["http"], session)
                mover = Mover(ready["http"], session, speed)
            keys = KEYS if account == "live" else {}
            worker = await _start("run", "--json", "--config", str(settings), log=folder / "worker.log", extra=keys)
            pages = Pages(settings, folder / "dashboard.log", keys) if with_dashboard else None
            await _watch(session, stop, worker, folder, port, duration, speed, mover, pages)
            stopped_at = await market_time(ready["http"], session)
            status = await _last_words(worker, folder / "worker.log")
            traded = None
            if account is not None and mover is not None:
                await end_trading(database, stopped_at, status["slot"])
                traded = await trading_summary(database, account, mover.moved)
            summary = await _summary(Run(speed, ready, stopped_at, status, traded), session, database)
            return {**summary, "dashboard": pages.url.partition("?")[0] or None if pages is not None else None}
    finally:
        if pages is not None:
            await pages.end()
        for process in (worker, exchange):
            if process is not None:
                await _end(process)


class Pages:
    """The dashboard beside the demo's worker: a process of its own, begun when the worker is ready."""

    def __init__(self, settings: Path, log: Path, keys: Mapping[str, str]) -> None:
        self.url = ""
        """With the token; empty until it listens."""
        self._settings = settings
        self._log = log
        self._keys = keys
        self._process: asyncio.subprocess.Process | None = None
        self._starting: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._starting = asyncio.create_task(self._start(), name="dashboard")

    async def _start(self) -> None:
        self._process = await _start(
            "dashboard", "--json", "--port", "0", "--no-open", "--config", str(self._settings),
            log=self._log, extra=self._keys, nice=DASHBOARD_NICE,
        )  # fmt: skip
        try:
            said = await _first_line(self._process, "the dashboard", self._log)
        except NeedsPerson as error:
            stderr.print(str(error), style="yellow", highlight=False)  # the rest of the demo does without
            return
        self.url = said["url"]
        if not sys.stdout.isatty():
            stderr.print(f"dashboard: {self.url}", highlight=False, soft_wrap=True)

    async def end(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._process is not None:
            await _end(self._process)


def _settings(
    exchange: Mapping[str, Any],
    symbols: int,
    speed: float,
    database: str,
    redis: str | None,
    port: int,
    folder: Path,
) -> dict[str, object]:
    """The worker's settings, all of them the demo's own: neither the user's file nor his environment changes them."""
    return {
        "network": "custom",
        "binance_futures_ws_url": exchange["ws"],
        "binance_futures_rest_url": exchange["http"],
        "symbols": f"top:{symbols}",
        "clock_speed": speed,
        "database_url": database,
        "redis_url": redis or "memory://",
        "status_port": port,
        "data_dir": str(folder),
        "log_format": "json",
    }


async def _check(values: Mapping[str, object], folder: Path) -> None:
    """Raise NeedsPerson or Unavailable for a database or a bus that cannot be used, before anything is started."""
    settings = load_settings(_settings_file({}, folder), {}, values)
    store = open_store(settings.database_url.get_secret_value())
    bus = open_bus(settings.redis_url.get_secret_value())
    try:
        await store.open()
        await bus.open()
    finally:
        await bus.close()
        await store.close()


def _settings_file(values: Mapping[str, object], folder: Path) -> Path:
    path = folder / "perpline.toml"
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()), encoding="utf-8")
    return path


async def _start(
    *arguments: str, log: Path, extra: Mapping[str, str] = {}, nice: int = 0
) -> asyncio.subprocess.Process:
    """One of our own commands as a process that does not outlive this one and hears no Ctrl-C meant for us.

    `extra`: what its environment has beside ours; `nice`: how far it stands back for the others."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PERPLINE_")} | dict(extra)
    environment.pop("CREDENTIALS_DIRECTORY", None)  # a key of the user's has no business here
    with log.open("wb") as errors:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "perpline", *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,
            preexec_fn=partial(_in_child, nice) if sys.platform == "linux" else None,
            limit=1 << 26,
        )  # fmt: skip


def _in_child(nice: int) -> None:
    """Stand back, and ask the kernel to end this process when its parent is gone, however that happened
    (prctl PR_SET_PDEATHSIG)."""
    os.nice(nice)
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
    mover: Mover | None,
    pages: Pages | None,
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
                    if pages is not None:
                        pages.begin()
                    if live is None:
                        stderr.print(f"worker ready after {facts['ready_after_s']} s")
                told = "" if mover is None or ready_at is None else await mover.look(facts["trading"], now)
                if live is not None:
                    said = None if mover is None else mover.said
                    url = "" if pages is None else pages.url
                    live.update(screen(facts, speed, live.console.width, live.console.height, said, url))
                elif told:
                    stderr.print(told, highlight=False)
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


def screen(
    facts: dict[str, Any], speed: float, width: int, height: int, said: str | None = None, url: str = ""
) -> Group:
    """The live view, no taller than `height`: header with the dashboard's address, one row a symbol, footer.

    Unless `said` is None there is a panel of trading in between, with this line in it."""
    seconds = facts["now"] // 1000 % 86_400
    clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    ready = "[green]ready[/]" if facts["ready"] else "[yellow]starting[/]"
    note = Text("Ctrl-C ends it. ", "dim")
    note.append(f"A simulated market, with a planted edge of {EDGE_BP:g} bp a minute: no word about real profit.")
    told = [Text(f"dashboard {url}", "cyan")] if url else []
    lines = shortened(
        [*summary_lines(facts), *told, note]
    )  # one that wrapped would push the last symbols off the screen
    header = Panel(
        Group(*lines[:-1]), title=f"[bold]perpline demo[/]  {clock} UTC  ×{speed:g}  {ready}", title_align="left"
    )
    rows = height - len(lines) - 4  # two borders, the heads, and a line for the cursor
    parts: list[Any] = [header]
    if said is not None and facts["trading"] is not None:
        panel, taken = _trading_panel(facts["trading"], said, width, rows)
        parts.append(panel)
        rows -= taken
    symbols = len(facts["symbols"])
    if rows > 1 or said is None:
        parts.append(symbols_table(facts, max(1, rows if symbols <= rows else rows - 1), width))
    return Group(*parts, note)


def _trading_panel(trading: dict[str, Any], said: str, width: int, room: int) -> tuple[Panel, int]:
    """Mode, accounts, positions and what happened last, in about three quarters of the room; and how high it is."""
    lines = trading_lines(trading)
    if said:
        lines.append(Text(said, "bold cyan"))
    left = max(0, room * 3 // 4 - 2 - len(lines))
    events = event_lines(trading, min(EVENTS_SHOWN, left // 3))
    left -= len(events)
    held = len(open_positions(trading))
    shown = min(held, left - 1)
    inside: list[Any] = shortened(lines)
    if shown > 1 or shown == held > 0:
        inside.append(positions_table(trading, shown, width - 4))
    else:
        shown = -1
    inside += shortened(events)
    return Panel(Group(*inside), title="[bold]trading[/]", title_align="left"), len(lines) + len(events) + shown + 3


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
        **({} if run.trading is None else {"trading": run.trading}),
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
    if "trading" in summary:
        add_trading_rows(table, summary["trading"])
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
