"""`perpline export`: fills, fees and funding as files."""

import csv
import os
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

from perpline.cli.books import AccountOption
from perpline.cli.database import with_store
from perpline.cli.options import ConfigOption, DatabaseOption, JsonOption, print_json, time_ms
from perpline.common.config import load_settings
from perpline.common.errors import NeedsPerson
from perpline.storage.store import TRADING_TABLES, Store
from perpline.trading.books import read

app = typer.Typer(help="Write fills, fees and funding as CSV or Parquet.", no_args_is_help=True)

FromOption = Annotated[
    str | None, typer.Option("--from", metavar="TIME", help="From this time on.", show_default=False)
]
ToOption = Annotated[str | None, typer.Option("--to", metavar="TIME", help="Before this time.", show_default=False)]
OutOption = Annotated[
    Path, typer.Option("--out", help="The file, which is replaced: its name ends in .csv or .parquet.")
]

MONEY = ("price", "quantity", "fee", "realized_pnl", "amount")


@app.command()
def trades(
    out: OutOption,
    start: FromOption = None,
    end: ToOption = None,
    account: AccountOption = None,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every execution with its price, size, fee and realised profit.

    Example: perpline export trades --from 2026-01-01 --to 2027-01-01 --account live --out trades-2026.csv
    """
    _export("fills", out, start, end, account, database, config, as_json)


@app.command()
def income(
    out: OutOption,
    start: FromOption = None,
    end: ToOption = None,
    account: AccountOption = None,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every entry of the account's income: funding, and of the live account whatever else the exchange has told.

    Example: perpline export income --from 2026-01-01 --out funding.parquet
    """
    _export("incomes", out, start, end, account, database, config, as_json)


def _export(
    table: str,
    out: Path,
    start: str | None,
    end: str | None,
    account: str | None,
    database: str | None,
    config: Path | None,
    as_json: bool,
) -> None:
    if out.suffix not in (".csv", ".parquet"):
        raise typer.BadParameter(f"{out.name!r} ends in neither .csv nor .parquet", param_hint="--out")
    since = 0 if start is None else time_ms(start, "--from")
    before = 2**62 if end is None else time_ms(end, "--to")
    if since >= before:
        raise typer.BadParameter("it is not after --from", param_hint="--to")
    time = TRADING_TABLES[table].time
    settings = load_settings(config, os.environ, {"database_url": database})

    async def work(store: Store) -> list[dict[str, Any]]:
        found = await read(store, table, account, since=since)
        return [{"time": datetime.fromtimestamp(row[time] / 1000, UTC), **row} for row in found if row[time] < before]

    rows = with_store(settings, work, read_only=True)
    columns = ["time", *TRADING_TABLES[table].columns]
    unfinished = out.with_name(f"{out.name}.unfinished")
    try:
        if out.suffix == ".csv":
            _write_csv(unfinished, columns, rows)
        else:
            _write_parquet(unfinished, columns, rows)
        unfinished.replace(out)
    except OSError as error:
        raise NeedsPerson(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    if as_json:
        print_json({"file": str(out), "rows": len(rows)})
    else:
        print(f"{len(rows):,} rows in {out}")


def _write_csv(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            moment = row["time"].isoformat(timespec="milliseconds").replace("+00:00", "Z")
            writer.writerow({**row, "time": moment})


def _write_parquet(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    """Amounts as exact decimals, `time` as an instant."""
    try:
        import pyarrow as pa  # an extra, and slow to import
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise NeedsPerson("Parquet files need one more package: pip install 'perpline[analytics]'") from None
    types = {"time": pa.timestamp("ms", tz="UTC"), **dict.fromkeys(MONEY, pa.decimal128(38, 18))}
    types |= {name: pa.int64() for name in ("trade_id", "order_id", "income_id", "traded_at", "received_at", "at")}
    schema = pa.schema([(name, types.get(name, pa.bool_() if name == "is_maker" else pa.string())) for name in columns])
    exact = [{name: Decimal(value) if name in MONEY else value for name, value in row.items()} for row in rows]
    parquet.write_table(pa.Table.from_pylist(exact, schema), path)
