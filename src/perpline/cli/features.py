"""`perpline features`: what the columns are, and their values for stored history."""

import asyncio
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from perpline.bootstrap import open_store
from perpline.cli.options import ConfigOption, DatabaseOption, JsonOption, print_json, run_loop, stderr, time_ms
from perpline.collector.bulk import stored_symbols
from perpline.common.config import Settings, load_settings
from perpline.common.errors import NeedsPerson
from perpline.features.catalogue import CATALOGUE, SCHEMAS, Feature, schema_hash
from perpline.training.dataset import build_dataset

app = typer.Typer(help="The features: their list, and datasets of them.", no_args_is_help=True)


@app.command(name="list")
def list_features(
    group: Annotated[str | None, typer.Option(help="One group, A to M.", show_default=False)] = None,
    schema: Annotated[str | None, typer.Option(help=f"One of {', '.join(SCHEMAS)}.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """What each column of a vector means, how far it looks back, and when it has no value.

    Example: perpline features list --group F
    """
    if schema is not None and schema not in SCHEMAS:
        raise typer.BadParameter(f"there are {', '.join(SCHEMAS)}", param_hint="--schema")
    if group is not None and group not in {feature.group for feature in CATALOGUE}:
        raise typer.BadParameter("groups are A to M", param_hint="--group")
    features = list(SCHEMAS[schema] if schema else CATALOGUE)
    features = [feature for feature in features if group in (None, feature.group)]
    if as_json:
        print_json({"features": [_as_json(feature) for feature in features], "schema_hash": schema_hash(features)})
        return
    table = Table(title=f"{len(features)} features, schema {schema_hash(features)}", title_justify="left")
    for column in ("name", "", "what it is", "made of", "minutes", "clip", "empty"):
        table.add_column(column, justify="right" if column == "minutes" else "left")
    for feature in features:
        table.add_row(
            f"[bold]{feature.name}[/]" if feature.critical else feature.name,
            feature.group,
            feature.formula.replace("[", "\\["),
            ", ".join(feature.inputs),
            f"{feature.lookback_min:,}",
            "" if feature.clip is None else f"{feature.clip[0]:g} to {feature.clip[1]:g}",
            " ".join(feature.nan),
        )
    Console(width=None if Console().is_terminal else 160).print(table)


@app.command()
def build(
    out: Annotated[Path, typer.Option("--out", help="The folder of the dataset.", show_default=False)],
    since: Annotated[str, typer.Option("--from", help="Beginning, UTC: 2026-10-01 or 2026-10-01T12:00.")],
    to: Annotated[str, typer.Option("--to", help="End, UTC; not itself part of it.")],
    symbols: Annotated[
        str | None,
        typer.Option("--symbols", help='"BTCUSDT,ETHUSDT"; default: all that the database has.', show_default=False),
    ] = None,
    schema: Annotated[str, typer.Option(help=f"One of {', '.join(SCHEMAS)}.")] = "core",
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the features of stored history as files: the same bytes whenever it is done.

    Example: perpline features build --from 2026-10-01 --to 2026-11-01 --schema candles --out dataset
    """
    if schema not in SCHEMAS:
        raise typer.BadParameter(f"there are {', '.join(SCHEMAS)}", param_hint="--schema")
    start, end = time_ms(since, "--from"), time_ms(to, "--to")
    if start >= end:
        raise typer.BadParameter("it must be after --from", param_hint="--to")
    settings = load_settings(config, os.environ, {"database_url": database})
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=stderr
    ) as progress:
        task = progress.add_task("features", total=None)

        async def main(stop: asyncio.Event) -> dict[str, Any]:
            building = asyncio.create_task(
                _build(
                    settings,
                    symbols,
                    start,
                    end,
                    schema,
                    out,
                    lambda done, total: progress.update(task, completed=done, total=total),
                )
            )
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait([building, stopping], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not building.done():
                building.cancel()
                await asyncio.wait([building])
                raise NeedsPerson("stopped: the same command again goes on")
            return building.result()

        manifest = run_loop(main)
    if as_json:
        print_json({"out": str(out), **manifest})
        return
    rows = sum(about["rows"] for about in manifest["symbols"].values())
    print(f"{rows:,} rows of {len(manifest['features'])} features in {out}, dataset {manifest['dataset_hash'][:16]}")


async def _build(
    settings: Settings, symbols: str | None, start: int, end: int, schema: str, out: Path, progress: Any
) -> dict[str, Any]:
    store = open_store(settings.database_url.get_secret_value(), read_only=True)
    await store.open()
    try:
        names = symbols.upper().replace(" ", "").split(",") if symbols else await stored_symbols(store)
        return await build_dataset(store, names, start, end, schema, out, progress=progress)
    finally:
        await store.close()


def _as_json(feature: Feature) -> dict[str, Any]:
    return {name: getattr(feature, name) for name in Feature.__struct_fields__}
