"""`perpline config`: which settings are in force, and where each came from."""

import os
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from perpline.common.config import load_settings

app = typer.Typer(help="Show and check the settings.", no_args_is_help=True)

ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings file instead of perpline.toml.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of stdout.")]


@app.command()
def show(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Print every setting with its value and its source; passwords are masked.

    Example: PERPLINE_SYMBOLS=BTCUSDT,ETHUSDT perpline config show
    """
    settings = load_settings(config, os.environ, {}).masked()
    if as_json:
        print(msgspec.json.encode(settings).decode())
        return
    table = Table(Column("setting", no_wrap=True), "value", "source", box=None, header_style="bold")
    for name, entry in settings.items():
        value = msgspec.json.encode(entry["value"]).decode()
        # Text, for a value may hold square brackets, which rich would take for markup.
        table.add_row(name, Text(value, overflow="fold"), Text(str(entry["source"]), overflow="fold"))
    Console().print(table)


@app.command()
def check(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Say whether the settings can be used: exit 0, or exit 1 and one line about what is wrong.

    Example: perpline config check --config perpline.toml
    """
    settings = load_settings(config, os.environ, {}).masked()
    sources = sorted({str(e["source"]) for e in settings.values() if not str(e["source"]).startswith("default")})
    if as_json:
        print(msgspec.json.encode({"ok": True, "sources": sources}).decode())
        return
    print(f"the settings are usable ({', '.join(sources) if sources else 'defaults only'})")
