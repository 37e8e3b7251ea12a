"""Tables: on a terminal, as JSON, and in RESULTS.md."""

import os
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import apsw
from msgspec import Struct
from rich.console import Console
from rich.table import Table as RichTable

RESULTS = Path(__file__).with_name("RESULTS.md")

_LIBRARIES = ("perpline", "picows", "msgspec", "uvloop", "numpy", "apsw", "asyncpg", "redis", "websockets", "numba")
_HEAD = """# Results

Written by `./run bench NAME --write`; each part names the machine and the day. Absolute figures belong to that machine
and that hour (a shared one is worth ±30 %). The ratios were measured within one run, in turns, and are what counts.
"""


class Table(Struct, frozen=True):
    """What a benchmark found. Cells are text, or numbers that are shown with at most three digits after the point."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str | float | int | None, ...]]
    notes: tuple[str, ...] = ()


def surroundings() -> dict[str, str]:
    """The machine, the versions and the day, by name."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{_processor()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}",
        "load before": _load(),
        **({"niceness": str(os.nice(0))} if hasattr(os, "nice") and os.nice(0) else {}),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        **{name: _version(name) for name in _LIBRARIES},
        "SQLite": apsw.sqlite_lib_version(),
    }


def show(tables: list[Table], around: dict[str, str], console: Console) -> None:
    console.print(", ".join(f"{name} {value}" for name, value in around.items()), style="dim", highlight=False)
    for table in tables:
        drawn = RichTable(title=table.title, title_justify="left")
        for number, column in enumerate(table.columns):
            drawn.add_column(column, justify="right" if number else "left")
        for row in table.rows:
            drawn.add_row(*map(_cell, row))
        console.print(drawn)
        for note in table.notes:
            console.print(note, style="dim", highlight=False)


def as_json(name: str, tables: list[Table], around: dict[str, str]) -> dict[str, Any]:
    return {
        "bench": name,
        "surroundings": around,
        "tables": [
            {
                "title": table.title,
                "rows": [dict(zip(table.columns, row, strict=True)) for row in table.rows],
                "notes": list(table.notes),
            }
            for table in tables
        ],
    }


def write(name: str, tables: list[Table], around: dict[str, str], path: Path = RESULTS) -> None:
    """Put a benchmark's part into the file, in place of what it said before."""
    text = path.read_text(encoding="utf-8") if path.exists() else _HEAD
    head, *parts = re.split(r"(?m)^(?=## )", text)
    by_name = {part.split("\n", 1)[0].removeprefix("## "): part.strip() for part in parts}
    by_name[name] = f"## {name}\n\n" + _markdown(tables, around)
    path.write_text("\n\n".join([head.strip(), *(by_name[key] for key in sorted(by_name))]) + "\n", encoding="utf-8")


def _markdown(tables: list[Table], around: dict[str, str]) -> str:
    blocks = [", ".join(f"{name} {value}" for name, value in around.items()) + "."]
    for table in tables:
        lines = [
            "| " + " | ".join(table.columns) + " |",
            "|" + "|".join("---" if number == 0 else "---:" for number in range(len(table.columns))) + "|",
            *("| " + " | ".join(map(_cell, row)) + " |" for row in table.rows),
        ]
        blocks += [f"### {table.title}", "\n".join(lines)]
        if table.notes:
            blocks.append("\n".join(f"* {note}" for note in table.notes))
    return "\n\n".join(blocks)


def _cell(value: str | float | int | None) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:,.{3 if abs(value) < 1 else 2 if abs(value) < 100 else 1}f}"


def _processor() -> str:
    try:
        names = re.findall(r"(?m)^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
