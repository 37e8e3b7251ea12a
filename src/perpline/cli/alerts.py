"""`perpline alerts`: tells people what is wrong, as a process of its own."""

import asyncio
import os
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from perpline.alerts.channels import Channel, open_channels
from perpline.alerts.observer import Observer
from perpline.alerts.rules import RULES, Rule, lasted
from perpline.alerts.state import StateFile
from perpline.alerts.watch import Watch
from perpline.cli.database import with_store
from perpline.cli.options import (
    ConfigOption,
    DatabaseOption,
    DurationOption,
    JsonOption,
    PortOption,
    print_json,
    run_loop,
)
from perpline.common.clock import SystemClock
from perpline.common.config import Settings, load_settings
from perpline.common.errors import NeedsPerson, Unavailable
from perpline.common.runbooks import page_of
from perpline.common.telemetry import configure_logging
from perpline.storage.store import TRADING_TABLES, Store

app = typer.Typer(help="Tell people what is wrong: by mail, chat, phone, whatever apprise knows.", no_args_is_help=True)

log = structlog.get_logger("perpline.alerts")

_STYLES = {"critical": "bold red", "warning": "yellow", "info": "cyan"}


@app.command()
def run(
    status_port: PortOption = None,
    database: DatabaseOption = None,
    duration: DurationOption = None,
    config: ConfigOption = None,
) -> None:
    """Watch the workers of the data folder and the database, and send alarms to alert_urls, until it is stopped.

    A process of its own, because a worker that died cannot say so. It changes nothing but its own table.

    Example: perpline alerts run
    """
    settings = _settings(config, database, status_port)
    configure_logging(settings.log_level, settings.log_format)
    channels = open_channels(settings.alert_urls)
    if not channels:
        log.warning("alerts_stay_here", reason="alert_urls names nobody to tell", action="alert")
    with StateFile(settings.data_dir) as file:
        run_loop(lambda stop: _watch(settings, channels, file, stop, duration))


@app.command("test")
def send_test(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Send a test message to each of alert_urls, and say which took it. Exit 1 where one did not.

    Example: perpline alerts test
    """
    settings = _settings(config)
    channels = open_channels(settings.alert_urls)
    if not channels:
        raise NeedsPerson('alert_urls names nobody to tell: alert_urls = ["mailto://…"] in perpline.toml')
    results = asyncio.run(_test(channels))
    if as_json:
        print_json({"channels": [{"channel": label, "error": error} for label, error in results]})
    else:
        console = Console(highlight=False)
        for label, error in results:
            line = Text(f"{label}: ").append(f"failed: {error}" if error else "taken", "red" if error else "green")
            console.print(line, soft_wrap=True)
    if any(error for _, error in results):
        raise typer.Exit(1)


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many, the newest ones.")] = 30,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the alarms that stand, and those that are over, the newest first.

    Example: perpline alerts list --limit 50
    """
    settings = _settings(config, database)
    table = TRADING_TABLES["alerts"]

    async def read(store: Store) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        standing = await store.trading_rows(table.name, {"cleared_at": None})
        recent = [row for row in await store.trading_rows(table.name, limit=limit) if row not in standing]
        return [table.named(row) for row in standing[::-1]], [table.named(row) for row in recent[::-1]]

    standing, recent = with_store(settings, read, read_only=True)
    if as_json:
        print_json({"standing": standing, "recent": recent})
        return
    console = Console(highlight=False)
    if not standing:
        console.print("no alarm stands", style="green")
    table_of_alarms = Table(box=None, header_style="bold", pad_edge=False)
    for head in ("raised", "alarm", "lasted", "told"):
        table_of_alarms.add_column(head, no_wrap=True)
    table_of_alarms.add_column("about", overflow="fold")
    now = SystemClock().now_ms()
    for row in [*standing, *recent]:
        table_of_alarms.add_row(*_cells(row, now))
    if standing or recent:
        console.print(table_of_alarms)


@app.command()
def rules(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show every alarm: when it is raised under these settings, and the page that says what to do.

    Example: perpline alerts rules
    """
    settings = _settings(config)
    if as_json:
        print_json({"rules": [_rule_facts(rule, settings) for rule in RULES.values()]})
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("alarm", no_wrap=True)
    for head in ("severity", "for", "over after"):
        table.add_column(head, no_wrap=True)
    table.add_column("raised when", overflow="fold")
    for rule in RULES.values():
        facts = _rule_facts(rule, settings)
        spans = ("", "never") if rule.is_event else (f"{facts['for_s']:g} s", f"{facts['clear_s']:g} s")
        table.add_row(rule.name, Text(rule.severity, _STYLES[rule.severity]), *spans, facts["when"])
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\nWhat to do: {page_of('ALARM', settings.runbook_url)}", style="dim")


async def _watch(
    settings: Settings, channels: list[Channel], file: StateFile, stop: asyncio.Event, duration: float | None
) -> None:
    clock = SystemClock()
    observer = Observer(settings, clock)
    if duration is not None:
        asyncio.get_running_loop().call_later(duration, stop.set)
    log.info("alerts_started", channels=[channel.label for channel in channels], action="start")
    try:
        await Watch(settings, clock, observer, channels, file, random.Random()).run(stop)
    finally:
        await observer.close()
        log.info("alerts_stopped", action="stop")


async def _test(channels: list[Channel]) -> list[tuple[str, str]]:
    async def send(channel: Channel) -> str:
        try:
            body = "If you can read this, alarms of perpline come through here."
            await channel.send("[test] perpline alerts", body, "info")
        except Unavailable as error:
            return str(error)
        return ""

    errors = await asyncio.gather(*(send(channel) for channel in channels))
    return [(channel.label, error) for channel, error in zip(channels, errors, strict=True)]


def _rule_facts(rule: Rule, settings: Settings) -> dict[str, Any]:
    return {
        "name": rule.name,
        "title": rule.title,
        "severity": rule.severity,
        "when": rule.when(settings),
        "for_s": rule.for_s * settings.alert_patience,
        "clear_s": None if rule.is_event else rule.clear_s * settings.alert_patience,
        "runbook": page_of(rule.name, settings.runbook_url),
    }


def _cells(row: dict[str, Any], now: int) -> list[Text | str]:
    stands, raised_at, cleared_at = row["cleared_at"] is None, row["raised_at"], row["cleared_at"]
    if stands:
        over = Text("stands ", "bold red").append(lasted(now - raised_at))
    else:
        over = Text("" if cleared_at == raised_at else lasted(cleared_at - raised_at))
    name = Text(row["name"], _STYLES.get(row["severity"], "") if stands else "")
    about = f"{row['subject']}: {row['text']}" if row["subject"] else row["text"]
    return [_time(raised_at), name, over, "no" if row["notified_at"] is None else "yes", Text(about)]


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%m-%d %H:%M:%S")


def _settings(config: Path | None, database: str | None = None, status_port: int | None = None) -> Settings:
    return load_settings(config, os.environ, {"database_url": database, "status_port": status_port})
