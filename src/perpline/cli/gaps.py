"""`perpline gaps`: what the candles of each symbol and day are made of, and what is missing."""

import asyncio
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from perpline.bootstrap import open_store
from perpline.cli.backfill import FromOption, NamesOption, ToOption
from perpline.cli.options import ConfigOption, DatabaseOption, JsonOption, print_json, time_ms
from perpline.collector.bulk import Span, overlap, runs, stored_span, stored_symbols, stored_times, without
from perpline.common.config import load_settings, masked_url
from perpline.common.errors import NeedsPerson
from perpline.domain.candle import MINUTE_MS
from perpline.storage.store import Gap, Store

DAY_MS = 86_400_000
COUNTS = ("expected", "ws", "rest", "archive", "synthetic", "repaired", "absent", "open", "unexplained")


def gaps(
    certify: Annotated[
        bool, typer.Option("--certify", help="Exit 1 unless every minute is stored or absent at the exchange.")
    ] = False,
    days: Annotated[
        bool, typer.Option("--days", help="Print every day, not only those with something missing.")
    ] = False,
    since: FromOption = None,
    to: ToOption = None,
    symbols: NamesOption = None,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """What the stored 1m candles of each symbol and day are made of, between the first one and the last.

    `open` minutes are missing and in the ledger, `unexplained` ones are missing and nowhere noted.

    Example: perpline gaps --certify --from 2026-10-01
    """
    start = None if since is None else time_ms(since, "--from")
    end = None if to is None else time_ms(to, "--to")
    url = load_settings(config, os.environ, {"database_url": database}).database_url.get_secret_value()

    async def main() -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
        store = open_store(url, read_only=True)
        await store.open()
        try:
            rows = await store.gaps()
            others: dict[str, int] = {}
            for gap in rows:
                if gap.repaired_at is None and gap.series != "candles_1m":
                    others[gap.series] = others.get(gap.series, 0) + 1
            names = symbols.upper().split(",") if symbols else await stored_symbols(store)
            of_1m = [gap for gap in rows if gap.series == "candles_1m"]
            found = {name: await _symbol(store, name, start, end, of_1m) for name in names}
            return {name: facts for name, facts in found.items() if facts}, others
        finally:
            await store.close()

    found, others = asyncio.run(main())
    missing = {name: facts["open"] + facts["unexplained"] for name, facts in found.items()}
    certified = bool(found) and not any(missing.values())
    if as_json:
        print_json({"database": masked_url(url), "certified": certified, "symbols": found, "other_gaps_open": others})
    else:
        _print(found, others, days)
    if not found:
        raise NeedsPerson("there are no 1m candles of these symbols in that time")
    if certify and not certified:
        worst = max(missing, key=lambda name: missing[name])
        raise NeedsPerson(
            f"{sum(missing.values()):,} minutes are neither stored nor absent at the exchange, "
            f"{missing[worst]:,} of them of {worst}: perpline backfill asks for them"
        )


async def _symbol(store: Store, symbol: str, start: int | None, end: int | None, rows: list[Gap]) -> dict[str, Any]:
    """Counts of a symbol and of each of its days, empty where it has no candles."""
    whole = await stored_span(store, symbol, "candles_1m", 0, 2**62)
    if whole is None:
        return {}
    first, last = max(whole[0], start or 0), min(whole[1], end or whole[1])
    if first >= last:
        return {}
    times = await stored_times(store, symbol, "candles_1m", first, last)
    holes = runs(times, first, last, MINUTE_MS)
    mine = [gap for gap in rows if gap.symbol == symbol]
    absent = overlap(holes, [(gap.from_time, gap.to_time) for gap in mine if gap.repaired_by == "absent"])
    left = without(holes, absent)
    noted = overlap(left, [(gap.from_time, gap.to_time) for gap in mine if gap.repaired_at is None])
    repaired = [(gap.from_time, gap.to_time) for gap in mine if gap.repaired_at is not None]
    spans = {"absent": absent, "open": noted, "unexplained": without(left, noted), "repaired": without(repaired, holes)}
    days: dict[str, dict[str, Any]] = {}
    for day in range(first // DAY_MS, (last - 1) // DAY_MS + 1):
        of_day = max(first, day * DAY_MS), min(last, (day + 1) * DAY_MS)
        days[_date(of_day[0])] = {
            **dict.fromkeys(COUNTS, 0),
            "expected": (of_day[1] - of_day[0]) // MINUTE_MS,
            **{name: _minutes(overlap([of_day], parts)) for name, parts in spans.items()},
            "causes": sorted({gap.cause for gap in mine if gap.from_time < of_day[1] and of_day[0] < gap.to_time}),
        }
    name = symbol.replace("'", "''")
    for day, source, synthetic, count in await store.select(
        f"SELECT open_time / {DAY_MS}, source, synthetic, count(*) FROM candles_1m "
        f"WHERE symbol = '{name}' AND open_time >= {first} AND open_time < {last} GROUP BY 1, 2, 3"
    ):
        facts = days[_date(day * DAY_MS)]
        facts["synthetic" if synthetic else source] += count
    total = {name: sum(facts[name] for facts in days.values()) for name in COUNTS}
    return {"first": first, "last": last - MINUTE_MS, **total, "days": days}


def _minutes(spans: list[Span]) -> int:
    return sum(end - start for start, end in spans) // MINUTE_MS


def _date(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d}"


def _print(found: dict[str, dict[str, Any]], others: dict[str, int], every_day: bool) -> None:
    shown = [name for name in COUNTS if name == "expected" or any(facts[name] for facts in found.values())]
    table = Table(box=None, pad_edge=False)
    for name in ("symbol", "day"):
        table.add_column(name, no_wrap=True)
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("causes")
    for symbol, facts in found.items():
        table.add_row(f"[bold]{symbol}[/]", f"{len(facts['days'])} days", *_cells(facts, shown), "")
        for day, of_day in facts["days"].items():
            if every_day or any(of_day[name] for name in COUNTS[4:]):
                table.add_row("", day, *_cells(of_day, shown), "; ".join(of_day["causes"]))
    console = Console()
    console.print(table)
    for series, count in sorted(others.items()):
        console.print(f"{series}: {count:,} gaps open")


def _cells(facts: dict[str, Any], shown: Sequence[str]) -> list[str]:
    colours = {"open": "yellow", "unexplained": "red", "synthetic": "cyan", "absent": "cyan", "repaired": "green"}
    texts = [f"{facts[name]:,}" if facts[name] else "-" for name in shown]
    return [
        f"[{colours[name]}]{text}[/]" if name in colours and facts[name] else text
        for name, text in zip(shown, texts, strict=True)
    ]
