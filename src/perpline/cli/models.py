"""`perpline models`: which models there are, and which one decides."""

import os
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from perpline.bootstrap import utc_text
from perpline.cli.database import who, with_store
from perpline.cli.options import ConfigOption, DatabaseOption, JsonOption, print_json, time_ms
from perpline.common.config import Settings, load_settings
from perpline.common.errors import NeedsPerson
from perpline.domain.candle import MINUTE_MS, last_boundary
from perpline.inference import registry
from perpline.inference.artefact import load_artefact, read_manifest
from perpline.storage.store import Deployment, Store
from perpline.worker_client import fetch_status

app = typer.Typer(help="List, check and deploy models.", no_args_is_help=True)

ModelArgument = Annotated[str, typer.Argument(help="The model's id, as `models list` shows it.")]
SlotOption = Annotated[
    str | None, typer.Option(help="The slot; default: the setting slot, champion.", show_default=False)
]
ShadowOption = Annotated[str, typer.Option(help="shadow, or a name that begins with it.")]
AtOption = Annotated[
    str | None,
    typer.Option(
        "--at",
        metavar="TIME",
        help="From the minute that closes then; default: the one after next.",
        show_default=False,
    ),
]
PortOption = Annotated[
    int | None, typer.Option(help="Port of the running worker, which knows the market's time.", show_default=False)
]


@app.command("list")
def list_models(database: DatabaseOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the registered models and what was deployed when.

    Example: perpline models list
    """
    settings = _settings(config, database)
    facts = with_store(settings, lambda store: registry.overview(store, settings.models_dir), read_only=True)
    if as_json:
        print_json(facts)
        return
    console = Console(highlight=False)
    if not facts["models"]:
        console.print("no model is registered: the one that ships with perpline decides")
    else:
        table = Table(
            Column("model", no_wrap=True), "status", "schema", "made", "report", box=None, header_style="bold"
        )
        for model in facts["models"]:
            found = model["verdict"]
            table.add_row(
                model["model_id"],
                Text(model["status"], "bold green" if model["status"] == "champion" else ""),
                model.get("schema", Text("its folder is not there", "red")),
                utc_text(model["created_at"]),
                Text("beats its baselines") if found["beats_baselines"] else Text("beats nothing", "yellow"),
            )
        console.print(table)
    for row in facts["deployments"][:10]:
        model = row["model_id"] or "none: the default, or no shadow"
        console.print(f"{_since(row['effective_from'])}  {row['slot']}  {model}  ({row['by']})", markup=False)


@app.command()
def show(
    model: ModelArgument, database: DatabaseOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Show what a model was made for and from, and load it to see that it can be served.

    Example: perpline models show tb1-20261115-4f2a91c0
    """
    settings = _settings(config, database)
    facts = with_store(settings, lambda store: _describe(store, settings.models_dir, model), read_only=True)
    if as_json:
        print_json(facts)
        return
    manifest = facts["manifest"]
    label, train = manifest["label"], manifest["train"]
    lines = [
        f"{model}  {facts['status'] or 'not registered'}",
        *([manifest["note"]] if manifest["note"] else []),
        f"schema {manifest['schema']}: {len(manifest['features'])} features, hash {manifest['schema_hash']}, "
        f"looks back {facts['lookback_min']} min",
        f"critical: {', '.join(manifest['critical']) or 'none'}",
        f"label: target {label['tp_pct']:g} %, stop {label['sl_pct']:g} %, {label['horizon_s'] / 3600:g} h, "
        f"costs {label['cost_bp']:g} bp, on the {label['price']} price",
        f"signal from p {manifest['threshold']:.3f} and EV {manifest['ev_min_bp']:+.1f} bp on",
        f"trained on {train['rows']:,} rows of {len(train['symbols'])} symbols, {utc_text(train['from'])} to "
        f"{utc_text(train['to'])}; {manifest['trials']} trials, seed {manifest['seed']}",
        f"dataset {manifest['dataset_hash']}",
        f"report: {facts['verdict']['text'] or 'it beats its baselines'}",
        f"can be served: {'yes' if facts['problem'] is None else facts['problem']}",
        *(f"{_since(row['effective_from'])}  {row['slot']}  ({row['by']})" for row in facts["deployments"]),
    ]
    print("\n".join(lines))


@app.command()
def register(
    path: Annotated[Path, typer.Argument(help="The model's folder.", file_okay=False, exists=True)],
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a model's folder, copy it to models_dir if it is elsewhere, and note it as a candidate.

    Example: perpline models register ~/Downloads/tb1-20261115-4f2a91c0
    """
    settings = _settings(config, database)

    async def work(store: Store) -> dict[str, Any]:
        model = await registry.register(store, settings.models_dir, path)
        return {"model_id": model.model_id, "folder": str(model.path)}

    facts = with_store(settings, work)
    if as_json:
        print_json(facts)
    else:
        print(f"{facts['model_id']} is a candidate; perpline models promote {facts['model_id']} lets it decide")


@app.command()
def promote(
    model: ModelArgument,
    slot: SlotOption = None,
    at: AtOption = None,
    force: Annotated[bool, typer.Option("--force", help="Though its report says that it beats nothing.")] = False,
    reason: Annotated[str, typer.Option(help="Why; goes with --force into the table deployments.")] = "",
    status_port: PortOption = None,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a model decide from a minute on. Running workers take it at that close; none is missed or late for it.

    Refused for a model whose report says that it does not beat always-flat and logistic regression after costs, unless
    --force and --reason say that a person wants it all the same.

    Example: perpline models promote tb1-20261115-4f2a91c0
    """
    if force != bool(reason.strip()):
        raise typer.BadParameter("--force and --reason go together", param_hint="--force")
    settings = _settings(config, database, status_port)

    async def work(store: Store) -> dict[str, Any]:
        row = await registry.promote(
            store,
            settings.models_dir,
            model,
            slot=slot or settings.slot,
            effective_from=await _effective_from(settings, store, at),
            by=who(),
            forced_because=reason.strip(),
        )
        return _deployed(row)

    _tell(with_store(settings, work), as_json)


@app.command()
def rollback(
    slot: SlotOption = None,
    at: AtOption = None,
    status_port: PortOption = None,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Go back to the model that decided before the last one.

    Example: perpline models rollback
    """
    settings = _settings(config, database, status_port)

    async def work(store: Store) -> dict[str, Any]:
        effective_from = await _effective_from(settings, store, at)
        row = await registry.rollback(
            store, settings.models_dir, slot=slot or settings.slot, effective_from=effective_from, by=who()
        )
        return _deployed(row)

    _tell(with_store(settings, work), as_json)


@app.command()
def shadow(
    model: Annotated[str | None, typer.Argument(help="The model's id; none with --stop.", show_default=False)] = None,
    slot: ShadowOption = registry.SHADOW,
    stop: Annotated[bool, typer.Option("--stop", help="End the shadow of this slot.")] = False,
    at: AtOption = None,
    status_port: PortOption = None,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a model on the same vectors as the champion, without trading on it; rows go to predictions.

    Example: perpline models shadow tb1-20261115-4f2a91c0 --slot shadow1
    """
    if stop == (model is not None):
        raise typer.BadParameter("a model is named, or --stop is given", param_hint="MODEL")
    settings = _settings(config, database, status_port)

    async def work(store: Store) -> dict[str, Any]:
        effective_from = await _effective_from(settings, store, at)
        row = await registry.shadow(
            store, settings.models_dir, model or registry.NONE, slot=slot, effective_from=effective_from, by=who()
        )
        return _deployed(row)

    _tell(with_store(settings, work), as_json)


async def _effective_from(settings: Settings, store: Store, at: str | None) -> int:
    """The close from which a new model decides: with time enough for every worker to have loaded it.

    The market's time is the worker's, which at a simulated exchange is not the host's. Where none answers here, it is
    after the newest decision, and where there is none, from the beginning.
    """
    if at is not None:
        wanted = time_ms(at, "--at")
        return -(-wanted // MINUTE_MS) * MINUTE_MS
    try:
        status = await fetch_status(settings.data_dir, settings.status_port)
        return last_boundary(int(status["now"])) + 2 * MINUTE_MS
    except NeedsPerson:
        decided = await store.last_decided(settings.slot)
        return max(decided.values()) + 2 * MINUTE_MS if decided else 0


async def _describe(store: Store, models_dir: Path, model_id: str) -> dict[str, Any]:
    rows = {model.model_id: model for model in await store.models()}
    row = rows.get(model_id)
    if row is None and not (models_dir / model_id).is_dir():
        raise NeedsPerson(f"there is no model {model_id}: see `perpline models list`")
    manifest = read_manifest(models_dir / model_id)
    problem = lookback_min = None
    try:
        lookback_min = load_artefact(models_dir / model_id).lookback_min
    except NeedsPerson as error:
        problem = str(error)
    return {
        "model_id": model_id,
        "status": None if row is None else row.status,
        "problem": problem,
        "lookback_min": lookback_min,
        "verdict": msgspec.to_builtins(registry.verdict("" if row is None else row.report)),
        "manifest": msgspec.to_builtins(manifest),
        "deployments": [
            msgspec.to_builtins(each) for each in reversed(await store.deployments()) if each.model_id == model_id
        ],
    }


def _deployed(row: Deployment) -> dict[str, Any]:
    return {**msgspec.to_builtins(row), "from": _since(row.effective_from)}


def _tell(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
    else:
        print(f"{facts['slot']}: {facts['model_id'] or 'no model of its own'} {facts['from']}")


def _since(close_time: int) -> str:
    return f"from {utc_text(close_time)} on" if close_time else "from the beginning"


def _settings(config: Path | None, database: str | None, status_port: int | None = None) -> Settings:
    return load_settings(config, os.environ, {"database_url": database, "status_port": status_port})
