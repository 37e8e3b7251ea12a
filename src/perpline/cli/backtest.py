"""`perpline backtest`: stored history through the live engine's decisions, exits and costs."""

import asyncio
import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from msgspec.structs import replace
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from perpline.backtest.models import load_deciding, load_named
from perpline.backtest.report import caveats, report_html, signals_csv, summary, trades_csv
from perpline.backtest.run import SymbolRun, backtest_symbols
from perpline.backtest.stored import stored_symbols
from perpline.bootstrap import open_store, utc_text
from perpline.cli.options import ConfigOption, DatabaseOption, JsonOption, print_json, stderr, time_ms
from perpline.common.config import Settings, load_settings
from perpline.common.errors import NeedsPerson
from perpline.domain.candle import MINUTE_MS
from perpline.storage.store import Store


class Price(StrEnum):
    MODEL = "model"
    MARK = "mark"
    LAST = "last"


def backtest(
    since: Annotated[str, typer.Option("--from", metavar="TIME", help="The first close; a day or a minute, UTC.")],
    until: Annotated[str, typer.Option("--to", metavar="TIME", help="Before this close.")],
    model: Annotated[
        str | None,
        typer.Option(help="A registered model's id or a folder; default: the one that decides.", show_default=False),
    ] = None,
    symbols: Annotated[
        str | None,
        typer.Option(help='"BTCUSDT,ETHUSDT"; default: all that have candles then.', show_default=False),
    ] = None,
    price: Annotated[
        Price, typer.Option("--exit-price", help="Which price triggers exits; the model's rule says one.")
    ] = Price.MODEL,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.html, report.json, trades.csv and signals.csv.", show_default=False),
    ] = None,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decide stored minutes as live would have, and follow the trades: exits, costs, funding.

    The same history and model give the same result. One position a symbol at a time, each with the same money.

    Example: perpline backtest --from 2026-10-01 --to 2026-11-01 --out october
    """
    settings = load_settings(config, os.environ, {"database_url": database})
    start, end = time_ms(since, "--from"), time_ms(until, "--to")
    if start >= end:
        raise typer.BadParameter(f"{utc_text(end)} is not after {utc_text(start)}", param_hint="--to")
    start = -(-start // MINUTE_MS) * MINUTE_MS
    named = [name.strip().upper() for name in (symbols or "").split(",") if name.strip()]
    if hasattr(os, "nice"):  # Windows has no such thing
        os.nice(10)
    report, runs = asyncio.run(_backtest(settings, model, named, start, end, price))
    if out is not None:
        _write(out, report, runs)
    if as_json:
        # Each number of the daily curve is in report.json; a line for programs is for the sums.
        trading = {name: value for name, value in report["trading"].items() if name != "daily_net_bp"}
        print_json({**report, "trading": trading, "out": None if out is None else str(out)})
    else:
        _print(report, out)


async def _backtest(
    settings: Settings, wanted: str | None, named: list[str], start: int, end: int, price: Price
) -> tuple[dict[str, Any], list[SymbolRun]]:
    store = open_store(settings.database_url.get_secret_value(), read_only=True)
    await store.open()
    try:
        if wanted is None:
            model = await load_deciding(store, settings.models_dir, settings.slot)
        else:
            model = load_named(settings.models_dir, wanted)
        symbols = await _symbols(store, named, start, end)
        rule = model.rule if price is Price.MODEL else replace(model.rule, price=price.value)
        with _progress() as progress:
            task = progress.add_task("minutes", total=len(symbols) * (end - start) // MINUTE_MS)
            runs = await backtest_symbols(
                store,
                model,
                symbols,
                start,
                end,
                rule=rule,
                slot=settings.slot,
                decided=lambda minutes: progress.advance(task, minutes),
            )
            progress.update(task, completed=progress.tasks[0].total)
    finally:
        await store.close()
    if rule.price == "mark" and not any(run.has_mark for run in runs):
        raise NeedsPerson(
            "there is no history of the mark price, which triggers exits: `perpline backfill` fetches it, "
            "--exit-price last does without"
        )
    return summary(runs, model, rule, start, end, settings.slot), runs


async def _symbols(store: Store, named: list[str], start: int, end: int) -> list[str]:
    stored = await stored_symbols(store, start - MINUTE_MS, end - MINUTE_MS)
    if missing := sorted(set(named) - set(stored)):
        raise NeedsPerson(f"no candle of {', '.join(missing[:5])} is stored for these minutes")
    if not stored:
        raise NeedsPerson("no candle is stored for these minutes: `perpline import` and `perpline backfill` bring them")
    return named or stored


def _write(out: Path, report: dict[str, Any], runs: list[SymbolRun]) -> None:

    files = {
        "report.json": json.dumps(report, indent=1, ensure_ascii=False) + "\n",
        "report.html": report_html(report, runs),
        "trades.csv": trades_csv(runs),
        "signals.csv": signals_csv(runs),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (out / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise NeedsPerson(f"cannot write to {out}: {error.strerror or error}") from None


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)


def _print(report: dict[str, Any], out: Path | None) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    trading, live = report["trading"], report["live"]
    console.print(
        f"{report['model_id']}: {report['minutes']:,} minutes of {len(report['by_symbol'])} symbol(s), "
        f"{report['signals']:,} signals, {report['trades']:,} trades"
    )
    for text in caveats(report):
        console.print(text, style="yellow")
    each = trading["net_bp_per_trade"]
    if each["value"] is not None:
        console.print(
            f"net {each['value']:+.1f} bp a trade [{each['low']:+.1f}, {each['high']:+.1f}], "
            f"{trading['total_net_bp']:+,.1f} in all, drawdown {trading['max_drawdown_bp']:,.0f}"
        )
    names = ("symbol", "signals", "trades", "won", "gross bp", "net bp")
    table = Table(*names, box=None, header_style="bold")
    for row in sorted(report["by_symbol"], key=lambda row: -row["trades"])[:30]:
        table.add_row(
            row["symbol"],
            f"{row['signals']:,}",
            f"{row['trades']:,}",
            f"{row['won']} of {row['over']}",
            f"{row['gross_bp']:+.1f}",
            f"{row['net_bp']:+.1f}",
        )
    console.print(table)
    console.print(", ".join(f"{status} {count:,}" for status, count in report["statuses"].items()))
    if live["rows"]:
        console.print(
            f"live decided {live['same']:,} of {live['rows']:,} minutes the same, {live['differing']:,} differ"
        )
    if out is not None:
        console.print(f"written to {out}: report.html, report.json, trades.csv, signals.csv")
