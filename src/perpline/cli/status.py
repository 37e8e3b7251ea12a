"""`perpline status`: what a running worker says of itself."""

import asyncio
import math
import os
from collections import Counter
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from perpline.cli.options import ConfigOption, JsonOption, print_json
from perpline.cli.trading_view import open_positions, positions_table, trading_lines
from perpline.common.clock import SystemClock
from perpline.common.config import load_settings
from perpline.common.watch_word import watch_trouble
from perpline.domain.candle import MINUTE_MS
from perpline.worker_client import fetch_status


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
    console = Console(highlight=False)
    if facts.get("role") == "inference":
        for line in inference_lines(facts):
            console.print(line)
        return
    console.print(symbols_table(facts, width=console.width), "")
    console.print(
        "ready" if facts["ready"] else "not ready yet", style="bold green" if facts["ready"] else "bold yellow"
    )
    if (role := role_line(facts)) is not None:
        console.print(role)
    for line in summary_lines(facts):
        console.print(line)
    for line in trading_lines(facts["trading"]):
        console.print(line)
    if open_positions(facts["trading"]):
        console.print(positions_table(facts["trading"], width=console.width))
    if facts["parity"] is not None:
        console.print(parity_text(facts["parity"]))
    for line in room_lines(facts):
        console.print(line)
    for model_line in model_lines(facts["models"]):
        console.print(model_line)
    if nobody := watch_trouble(settings, SystemClock().now_ms()):
        console.print(f"alarms: {nobody}", style="bold yellow", soft_wrap=True)
    for connection in facts["connections"]:
        if not connection["live"]:
            console.print(
                f"{connection['name']} is not connected: {connection['last_error']}", style="red", markup=False
            )
        elif connection["silent"]:
            silent = ", ".join(connection["silent"])
            console.print(f"{connection['name']} hears nothing of {silent}", style="red", markup=False)


def role_line(facts: dict[str, Any]) -> Text | None:
    """What this worker is for and whether another one does it; None for the only one that does everything."""
    text, leadership = "", facts.get("leadership")
    if facts.get("role") == "collector":
        text = f"collector {facts['shard']}: its features go to inference workers, which decide"
    if leadership is not None and not leadership["leads"]:
        if leadership["holds"]:
            return Text("cannot renew its lease: the database does not answer, and nothing is published", "red")
        by = f"stands by: {leadership['leader'] or 'nobody that is known'} leads"
        return Text(f"{text}; {by}" if text else by, "yellow")
    return Text(text) if text else None


def inference_lines(facts: dict[str, Any]) -> list[Text]:
    """An inference worker in words: whom it hears, what it has decided, what is wrong."""
    group, decisions, latency = facts["group"], facts["decisions"], facts["decisions"]["close_to_signal_ms"]
    statuses = ", ".join(f"{count:,} {status}" for status, count in decisions["by_status"].items()) or "nothing yet"
    lines = [
        Text("ready" if facts["ready"] else "not ready yet", "bold green" if facts["ready"] else "bold yellow"),
        Text(f"member {group['name']} of group {group['group']}, slot {facts['slot']}, model {facts['model']}"),
        Text(f"decided: {statuses}; {group['decided']:,} batches, {group['claimed']:,} of them of dead members"),
    ]
    if "p50" in latency:
        lines.append(Text(f"close to signal: p50 {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms"))
    for shard, each in group["shards"].items():
        heard = "never" if each["heard_s"] is None else f"{each['heard_s']:.0f} s ago"
        text = f"collector {shard}: {each['symbols']} symbols, heard {heard}"
        lines.append(Text(text, "red" if each["silent"] else ""))
    return lines + [Text(each, "red") for each in facts["trouble"]]


def parity_text(found: dict[str, Any]) -> Text:
    """What the last nightly comparison said."""
    if "error" in found:
        return Text(f"parity of {found['date']} was not compared: {found['error']}", "yellow")
    if found["ok"]:
        return Text(f"parity of {found['date']}: {found['cells']:,} cells, none differs")
    differ = f"{found['mismatch_cells']:,} of {found['cells']:,} cells"
    return Text(f"parity of {found['date']}: {differ}, {found['mismatch_probabilities']:,} probabilities differ", "red")


def room_lines(facts: dict[str, Any]) -> list[Text]:
    """What the database takes of the disk and how long the disk lasts, and what became of the last night's archive."""
    room, archive = facts["room"], facts["archive"]
    lines = []
    if room is not None:
        line = Text(f"database {size_text(room['database_bytes'])}")
        if room["growth_bytes_per_day"] is not None:
            line.append(f", {size_text(room['growth_bytes_per_day'])} more a day")
        if (spool := facts["spool"]) is not None and spool["records"]:  # the folder's size has the reserve in it
            line.append(f"   {size_text(spool['bytes'])} wait in the spool", "yellow")
        if room["disk_free_bytes"] is not None:
            line.append(f"   {size_text(room['disk_free_bytes'])} free on the disk of {room['disk']}")
        if room["days_until_full"] is not None:
            line.append(f", full in {room['days_until_full']:,.0f} days")
        if room["low"]:
            line.append("   the disk is nearly full", "red")
        lines.append(line)
    if archive is not None and "error" in archive:
        lines.append(Text(f"old days were not archived: {archive['error']}", "red"))
    elif archive is not None:
        lines.append(Text(f"archived last night: {archive['rows']:,} rows, {archive['days_dropped']:,} days dropped"))
    return lines


def size_text(size: int) -> str:
    """1.2 GB."""
    return f"{size / 1e9:,.1f} GB" if abs(size) >= 1e9 else f"{size / 1e6:,.1f} MB"


STREAM_HEADS = {"kline_1m": "1m", "kline_15m": "15m", "kline_1h": "1h", "markPrice@1s": "mark", "bookTicker": "book"}

EVERY_STREAM_WIDTH = 116
"""From this width on each stream's age has a column; below it only the oldest of a symbol is shown, and its name."""
EVERY_COLUMN_WIDTH = 72
"""Below this width spread, funding and the time of the close are left out."""

STATUS_STYLES = {"flat": "dim", "cooldown": "cyan", "skipped_warmup": "yellow"}
"""How a decision without a side is shown; every other one is red. Red and yellow are for trouble alone, so a short
signal is magenta."""


def symbols_table(facts: dict[str, Any], limit: int | None = None, width: int = 120) -> Table:
    """A row a symbol: price, spread, funding, last close, last decision or why none, age of each stream.

    With more symbols than `limit`, the last row says what became of the others. A narrow terminal gets fewer columns.
    """
    wide, narrow = width >= EVERY_STREAM_WIDTH, width < EVERY_COLUMN_WIDTH
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1), collapse_padding=True, expand=True)
    table.add_column("symbol", style="bold", no_wrap=True, min_width=8)
    table.add_column("price", justify="right", no_wrap=True, min_width=10)
    if not narrow:
        for head, least in (("spread bp", 9), ("funding %", 9), ("closed", 6)):
            table.add_column(head, justify="right", no_wrap=True, min_width=least)
    table.add_column("decision", no_wrap=True, overflow="ellipsis", ratio=1, min_width=8)
    for head in ["age: 1m", *list(STREAM_HEADS.values())[1:]] if wide else ["oldest"]:
        table.add_column(head, justify="right", no_wrap=True, min_width=5 if wide else 9)
    entries = list(facts["symbols"].items())
    for symbol, entry in entries[:limit]:
        cells = [symbol, _number(entry["price"])]
        if not narrow:
            candle = entry["last_candle"]
            cells += [
                "" if entry["spread_bps"] is None else f"{entry['spread_bps']:.2f}",
                "" if entry["funding_rate"] is None else f"{entry['funding_rate'] * 100:+.4f}",
                "" if candle is None else clock_text(candle["open_time"] + MINUTE_MS),
            ]
        ages = entry["ages_s"]
        table.add_row(*cells, _decision(entry), *(map(_age, ages.values()) if wide else [_oldest(ages)]))
    if limit is not None and len(entries) > limit:
        others = Counter(_word(entry["last_decision"]) for _, entry in entries[limit:])
        said = ", ".join(f"{count} {word}" for word, count in others.most_common())
        blanks = [""] * (1 if narrow else 4)
        table.add_row(Text(f"… {len(entries) - limit} more", "dim"), *blanks, Text(said, "dim"))
    return table


def _decision(entry: dict[str, Any]) -> Text:
    """What was decided last and why; with its time where a newer candle has closed since."""
    decision, candle = entry["last_decision"], entry["last_candle"]
    if decision is None:
        return Text(_word(decision), "dim")
    if decision["side"]:
        text = Text(_word(decision), "bold green" if decision["side"] > 0 else "bold magenta")
        text.append(f" p {decision['p']:.3f}", "not bold")
    else:
        text = Text(_word(decision), STATUS_STYLES.get(decision["status"], "red"))
        text.append(f": {decision['detail']}", "dim")
    if candle is not None and decision["close_time"] < candle["open_time"] + MINUTE_MS:
        text.append(f" at {clock_text(decision['close_time'])}", "yellow")
    return text


def _word(decision: dict[str, Any] | None) -> str:
    if decision is None:
        return "none yet"
    return {1: "▲ long", -1: "▼ short"}.get(decision["side"], str(decision["status"]))


def _oldest(ages: dict[str, float | None]) -> Text:
    kind, age = max(ages.items(), key=lambda each: math.inf if each[1] is None else each[1])
    return Text.assemble((f"{STREAM_HEADS[kind]} ", "dim"), _age(age))


def _age(seconds: float | None) -> Text:
    if seconds is None:
        return Text("none", "red")
    style = "dim" if seconds < 5 else "yellow" if seconds < 30 else "red"
    return Text(f"{seconds:.1f}s" if seconds < 100 else f"{seconds:.0f}s", style)


def summary_lines(facts: dict[str, Any]) -> list[Text]:
    """What a worker hears, decides and asks for, in three lines."""
    connections, messages, rest = facts["connections"], facts["messages"], facts["rest"]
    heard = Text()
    for connection in connections:
        heard.append("●", "green" if connection["live"] else "red")
    streams = sum(connection["streams"] for connection in connections)
    silent = sum(connection["silent_count"] for connection in connections)
    if connections:
        heard.append(f" {streams} streams on {len(connections)} connections, ")
        heard.append(f"{silent} silent", "red" if silent else "")
    else:
        heard.append("fed by REST")
    heard.append(f"   {messages['rates'].get('total', 0):,.0f} messages/s   ")
    heard.append(f"{messages['malformed']} malformed", "red" if messages["malformed"] else "")
    counts = Counter(facts["decisions"]["by_status"])
    missed = counts.pop("skipped_missed", 0)
    decided = Text(f"{counts.total():,} decisions: ")
    decided.append(", ".join(f"{count:,} {status}" for status, count in counts.most_common()) or "none yet")
    decided.append("   ").append(f"{missed:,} missed", "red" if missed else "")
    asked = Text()
    latency = facts["decisions"]["close_to_signal_ms"]
    if latency["p50"] is not None:
        asked.append(f"closing frame to published: p50 {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms   ")
    gaps = facts["candles"]["gaps_noted"]
    asked.append(f"{gaps} gaps", "red" if gaps else "")
    if made := facts["candles"]["synthetic"]:
        asked.append(f"   {made} synthetic candles")
    asked.append(f"   REST weight {rest['weight_used']} of {rest['weight_limit']}")
    return [heard, decided, asked]


def model_lines(models: dict[str, Any]) -> list[Text]:
    """Which model decides, what runs beside it and what was refused; and what drifts, if something does."""
    champion = models["champion"]
    name = None if champion is None else champion["model_id"]
    lines = [Text(f"model {name}" if name else "no model decides", "" if name else "red")]
    if shadows := models["shadows"]:
        lines[0].append("   " + ", ".join(f"{slot} {each['model_id']}" for slot, each in shadows.items()), "dim")
    for each in models["coming"]:
        lines.append(Text(f"{each['slot']} {each['model_id']} from {clock_text(each['since'])} on", "cyan"))
    lines += [Text(f"{slot}: {reason}", "red") for slot, reason in models["refused"].items()]
    days = [] if models["drift"] is None else [models["drift"]["today"], models["drift"]["yesterday"]]
    judged = next((day for day in days if day is not None and day["judged"]), None)
    if judged is not None and judged["drifting"]:
        shown = ", ".join(judged["drifting"][:8]) + (" …" if len(judged["drifting"]) > 8 else "")
        lines.append(Text(f"{len(judged['drifting'])} columns further from training than on 99 % of its days: {shown}"))
        lines[-1].stylize("yellow")
    return lines


def clock_text(time_ms: int) -> str:
    """HH:MM UTC."""
    minutes = time_ms // 60_000 % 1440
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def _number(price: float | None) -> str:
    if price is None:
        return ""
    return f"{price:,.2f}" if price >= 100 else f"{price:.6g}"
