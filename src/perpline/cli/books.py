"""What the commands share that show positions, orders and money."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

import typer
from msgspec import Struct
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

AccountOption = Annotated[
    Literal["paper", "live"] | None,
    typer.Option("--account", help="paper or live; default: both.", show_default=False),
]
SinceOption = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", help="From this time on, like 2026-11-20 or 2026-11-20T13:57."),
]
LimitOption = Annotated[int, typer.Option("--limit", min=1, help="How many, the newest ones.")]

LEGS = {"e": "entry", "x": "exit", "s": "stop", "f": "flatten"}
"""What an order was for, in words."""

UNBROKEN = 10_000
"""A width in which everything has room."""


class Head(Struct, frozen=True):
    """A column of a table for people."""

    name: str
    right: bool = False
    rank: int = 0
    """Where the terminal is narrow the columns of the highest rank are left out first; those of rank 0 never."""


def fitting_table(heads: Sequence[Head], rows: Sequence[Sequence[Text | str] | None], console: Console) -> Table:
    """A table in which nothing is broken over lines: what does not fit the terminal is left out, and --json has it.

    None between rows begins a section."""
    kept = list(range(len(heads)))
    while True:
        table = _table([heads[number] for number in kept], rows, kept)
        least = max(kept, key=lambda number: heads[number].rank)
        unbroken = Measurement.get(console, console.options.update(width=UNBROKEN), table).maximum
        if unbroken <= console.width or heads[least].rank == 0:
            return table
        kept.remove(least)


def _table(heads: Sequence[Head], rows: Sequence[Sequence[Text | str] | None], kept: Sequence[int]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    for head in heads:
        table.add_column(head.name, justify="right" if head.right else "left", no_wrap=True, overflow="ellipsis")
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*(row[number] for number in kept))
    return table


def account_rank(rows: Iterable[dict[str, Any]], rank: int) -> int:
    """The rank of the column of the account: it says nothing where all are of one."""
    return rank if len({row["account"] for row in rows}) < 2 else 0


def short_times(times: Iterable[int | None]) -> Callable[[int | None], str]:
    """How these times (ms, UTC) are written: the clock where all are of one day, else with the day."""
    days = {time // 86_400_000 for time in times if time is not None}
    layout = "%H:%M" if len(days) < 2 else "%m-%d %H:%M"
    return lambda time: "" if time is None else f"{datetime.fromtimestamp(time / 1000, UTC):{layout}}"


def money(amount: Decimal | None, *, coloured: bool = True) -> Text:
    """Two decimals, green above and red below zero; a dash for what is not known."""
    if amount is None:
        return Text("–", "dim")
    shown = round(amount, 2) + 0  # no minus before a zero
    style = "" if not coloured or shown == 0 else "green" if shown > 0 else "red"
    return Text(f"{shown:,.2f}", style)


def price(text: str | Decimal | None) -> str:
    """A price or size without trailing zeros, at most eight decimals."""
    if text is None:
        return "–"
    shown = f"{Decimal(text):.8f}"
    return shown.rstrip("0").rstrip(".")


def side_text(side: str | int) -> Text:
    """long, short, buy or sell in their colour."""
    name = {1: "long", -1: "short"}.get(side, str(side)) if isinstance(side, int) else side
    return Text(name, "green" if name in ("long", "buy") else "red")


def account_text(account: str) -> Text:
    return Text(account, "bold yellow" if account == "live" else "dim")
