"""`perpline db`: schema, backup, restore and check of the database."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from perpline.bootstrap import make_data_dir, open_store
from perpline.cli.options import ConfigOption, DatabaseOption, JsonOption, print_json
from perpline.common.config import load_settings, masked_url
from perpline.common.errors import NeedsPerson
from perpline.domain.candle import MINUTE_MS
from perpline.storage.store import Store

app = typer.Typer(help="Migrate, back up, restore and check the database.", no_args_is_help=True)


@app.command()
def migrate(database: DatabaseOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Make the tables, or bring them to the newest schema. A worker's start does the same.

    Example: perpline db migrate --database sqlite:///market.db
    """

    async def work(store: Store) -> dict[str, Any]:
        [[now]] = await store.select("SELECT max(number) FROM schema_migrations")
        return {"from": store.schema_was, "to": now}

    facts = _with_store(database, config, work)
    if as_json:
        print_json(facts)
    elif facts["from"] == facts["to"]:
        print(f"{facts['database']} has schema {facts['to']} already")
    else:
        print(f"{facts['database']}: schema {facts['from'] or 'none'} → {facts['to']}")


@app.command()
def backup(
    out: Annotated[Path, typer.Option(help="The file to write.", dir_okay=False)],
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy everything, as it is at one instant, into a new SQLite file; workers go on writing meanwhile.

    From PostgreSQL too: the file can be looked into with any SQLite, used as a database itself, or restored into either
    kind. For more than some ten million rows pg_dump is faster.

    Example: perpline db backup --database postgresql:///perpline --out perpline-backup.db
    """
    if out.exists():
        raise NeedsPerson(f"{out} is there already: name another file, or remove it")

    async def work(store: Store) -> dict[str, Any]:
        await store.backup(out)
        return {"out": str(out), "bytes": out.stat().st_size}

    facts = _with_store(database, config, work, read_only=True)
    if as_json:
        print_json(facts)
    else:
        print(f"{facts['database']} → {out}, {facts['bytes']:,} bytes")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A backup, or the file of any SQLite database of perpline's.")],
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fill a database that has no rows yet from a backup. This is also the way from SQLite to PostgreSQL.

    Stop the worker that writes to FILE first, or what it writes later is not there.

    Example: perpline db restore perpline.db --database postgresql:///perpline
    """
    if not file.exists():
        raise NeedsPerson(f"{file} is not there")

    async def work(store: Store) -> dict[str, Any]:
        await store.restore(file)
        return {"rows": {table: count for table, count in (await store.row_counts()).items() if count}}

    facts = _with_store(database, config, work)
    if as_json:
        print_json(facts)
    else:
        print(f"{file} → {facts['database']}, {sum(facts['rows'].values()):,} rows")


@app.command()
def check(database: DatabaseOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Read all of the database and say whether it is sound, and what is missing in it; exit 1 if it is damaged.

    Example: perpline db check --json
    """
    facts = _with_store(database, config, _check, read_only=True)
    if as_json:
        print_json(facts)
    else:
        _print_check(facts)
    if not facts["ok"]:
        raise NeedsPerson(f"{facts['database']} is damaged: {facts['problems'][0]}: restore a backup")


async def _check(store: Store) -> dict[str, Any]:
    problems = await store.damage()
    missing: dict[str, int] = {}
    candles = await store.select(
        "SELECT symbol, count(*), count(DISTINCT open_time), min(open_time), max(open_time) "
        "FROM candles_1m GROUP BY symbol ORDER BY symbol"
    )
    for symbol, rows, minutes, first, last in candles:
        if rows != minutes:
            problems.append(f"candles_1m has {rows - minutes} minutes of {symbol} twice")
        if minutes <= (last - first) // MINUTE_MS:
            missing[symbol] = (last - first) // MINUTE_MS + 1 - minutes
    numbers = await store.select(
        "SELECT slot, symbol, count(*), count(DISTINCT seq), count(DISTINCT close_time), min(seq), max(seq) "
        "FROM signals GROUP BY slot, symbol ORDER BY slot, symbol"
    )
    for slot, symbol, rows, seqs, minutes, first, last in numbers:
        if not rows == seqs == last - first + 1:
            problems.append(f"the seqs of {slot} {symbol} have gaps: {rows} rows, {first} to {last}")
        if rows != minutes:
            problems.append(f"signals has {rows - minutes} minutes of {slot} {symbol} twice")
    [[schema]] = await store.select("SELECT max(number) FROM schema_migrations")
    [[gaps]] = await store.select("SELECT count(*) FROM gaps WHERE repaired_at IS NULL")
    [[pending]] = await store.select("SELECT count(*) FROM outbox WHERE published_at IS NULL")
    size, free = await store.size()
    return {
        "ok": not problems,
        "problems": problems,
        "schema": schema,
        "rows": await store.row_counts(),
        "symbols": len(candles),
        "minutes_missing": missing,
        "gaps_open": gaps,
        "outbox_pending": pending,
        "bytes": size,
        "disk_free_bytes": free,
    }


def _print_check(facts: dict[str, Any]) -> None:
    missing = facts["minutes_missing"]
    free = facts["disk_free_bytes"]
    lines = [
        f"{facts['database']}: {'sound' if facts['ok'] else 'DAMAGED'}, schema {facts['schema']}",
        *facts["problems"],
        f"{sum(facts['rows'].values()):,} rows, {facts['bytes']:,} bytes"
        + ("" if free is None else f", {free:,} bytes free on the disk"),
        f"1m candles of {facts['symbols']} symbols, "
        + (f"{sum(missing.values()):,} minutes missing in {len(missing)} of them" if missing else "no minute missing"),
        *(f"  {symbol}: {count:,} missing" for symbol, count in sorted(missing.items(), key=lambda one: -one[1])[:10]),
        f"{facts['gaps_open']:,} gaps open, {facts['outbox_pending']:,} messages not published",
    ]
    print("\n".join(lines))


def _with_store(
    database: str | None,
    config: Path | None,
    work: Callable[[Store], Awaitable[dict[str, Any]]],
    read_only: bool = False,
) -> dict[str, Any]:
    """What the work finds out about the database, and the database's address."""
    settings = load_settings(config, os.environ, {"database_url": database})
    url = settings.database_url.get_secret_value()
    if not read_only:
        make_data_dir(settings)

    async def main() -> dict[str, Any]:
        store = open_store(url, read_only=read_only)
        await store.open()
        try:
            return {"database": masked_url(url), **await work(store)}
        finally:
            await store.close()

    return asyncio.run(main())
