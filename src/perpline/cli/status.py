"""`perpline status`: what a running worker says of itself."""

import asyncio
import json
import os
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer
from rich.console import Console
from rich.table import Table

from perpline.cli.options import ConfigOption, JsonOption, print_json
from perpline.common.config import load_settings
from perpline.common.errors import NeedsPerson
from perpline.endpoint import token_file


async def fetch_status(data_dir: Path, port: int, session: aiohttp.ClientSession | None = None) -> dict[str, Any]:
    """The status of the worker on this port. Raises NeedsPerson where none answers."""
    path = token_file(data_dir, port)
    try:
        access = json.loads(path.read_text())
        url, token = access["url"], access["token"]
    except FileNotFoundError:
        raise NeedsPerson(f"no worker runs on port {port}: {path} is not there (perpline run starts one)") from None
    except (OSError, ValueError, KeyError) as error:
        raise NeedsPerson(f"cannot read the worker's token file {path}: {error}") from None
    own = session is None
    session = session or aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5))
    try:
        async with session.get(f"{url}/status", headers={"Authorization": f"Bearer {token}"}) as answer:
            if answer.status != 200:
                raise NeedsPerson(f"the worker on port {port} refuses: HTTP {answer.status}")
            status: dict[str, Any] = await answer.json()
            return status
    except (aiohttp.ClientError, TimeoutError) as error:
        raise NeedsPerson(
            f"the worker on port {port} does not answer ({error or 'timeout'}): it may have died; see its log"
        ) from None
    finally:
        if own:
            await session.close()


def status(
    status_port: Annotated[int | None, typer.Option(help="Port of the worker's endpoint.", show_default=False)] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a running worker hears and decides.

    Example: perpline status --status-port 9720
    """
    settings = load_settings(config, os.environ, {"status_port": status_port})
    facts = asyncio.run(fetch_status(settings.data_dir, settings.status_port))
    if as_json:
        print_json(facts)
        return
    console = Console()
    console.print(symbols_table(facts))
    console.print(f"[bold]{'ready' if facts['ready'] else 'not ready'}[/]   " + summary_line(facts))
    for connection in facts["connections"]:
        colour = "green" if connection["live"] else "red"
        silent = f", silent: {', '.join(connection['silent'])}" if connection["silent"] else ""
        console.print(f"[{colour}]{connection['name']}[/]  {connection['streams']} streams{silent}")


STREAM_HEADS = {"kline_1m": "1m", "kline_15m": "15m", "kline_1h": "1h", "markPrice@1s": "mark", "bookTicker": "book"}

STATUS_STYLES = {"ok": "bold green", "flat": "dim", "cooldown": "yellow", "skipped_warmup": "cyan"}


def symbols_table(facts: dict[str, Any], limit: int | None = None) -> Table:
    """Symbol, price, spread, funding, last candle, last decision, age of each stream."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("symbol", style="bold")
    for head in ("price", "spread bp", "funding %", "candle", "decision", "p"):
        table.add_column(head, justify="left" if head == "decision" else "right", no_wrap=True)
    for head in STREAM_HEADS.values():
        table.add_column(head, justify="right", no_wrap=True)
    entries = list(facts["symbols"].items())
    for symbol, entry in entries[:limit]:
        decision = entry["last_decision"]
        shown, p = "", ""
        if decision is not None:
            style = STATUS_STYLES.get(decision["status"], "red")
            word = {1: "▲ long", -1: "▼ short"}.get(decision["side"], decision["status"])
            reason = f" {decision['detail']}" if decision["detail"] and not decision["side"] else ""
            shown = f"[{style}]{word}[/][dim]{reason[:38]}[/]"
            p = "" if decision["p"] is None else f"{decision['p']:.3f}"
        candle = entry["last_candle"]
        table.add_row(
            symbol,
            _number(entry["price"]),
            "" if entry["spread_bps"] is None else f"{entry['spread_bps']:.2f}",
            "" if entry["funding_rate"] is None else f"{entry['funding_rate'] * 100:+.4f}",
            "" if candle is None else clock_text(candle["open_time"]),
            shown,
            p,
            *(_age(entry["ages_s"][kind]) for kind in STREAM_HEADS),
        )
    if limit is not None and len(entries) > limit:
        table.add_row(f"[dim]… {len(entries) - limit} more[/]")
    return table


def summary_line(facts: dict[str, Any]) -> str:
    """Decisions, latency, messages and REST weight in one line."""
    decided = sum(count for status, count in facts["decisions"]["by_status"].items() if status != "skipped_missed")
    latency = facts["decisions"]["close_to_signal_ms"]
    p50 = latency.get("p50")
    return (
        f"{decided} decisions  "
        + (f"close→signal p50 {p50:.1f} ms p99 {latency['p99']:.1f} ms  " if p50 is not None else "")
        + f"{facts['messages']['rates'].get('total', 0):.0f} msg/s  "
        + f"weight {facts['rest']['weight_used']}/{facts['rest']['weight_limit']}  "
        + f"malformed {facts['messages']['malformed']}  gaps {facts['candles']['gaps_noted']}"
    )


def clock_text(time_ms: int) -> str:
    """HH:MM UTC."""
    minutes = time_ms // 60_000 % 1440
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def _number(price: float | None) -> str:
    if price is None:
        return ""
    return f"{price:,.2f}" if price >= 100 else f"{price:.6g}"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "[red]never[/]"
    style = "green" if seconds < 5 else "yellow" if seconds < 30 else "red"
    return f"[{style}]{seconds:.1f}s[/]" if seconds < 100 else f"[{style}]{seconds:.0f}s[/]"
