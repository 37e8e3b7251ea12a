"""`perpline train`: from stored history to a candidate model with its report."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from perpline.bootstrap import make_clock, make_data_dir, make_rest, open_store
from perpline.cli.backfill import rest_settings
from perpline.cli.options import (
    ConfigOption,
    DatabaseOption,
    JsonOption,
    NetworkOption,
    RestUrlOption,
    SpeedOption,
    print_json,
    run_loop,
    stderr,
    time_ms,
)
from perpline.collector.backfill import SERIES, Backfill
from perpline.collector.bulk import stored_span, stored_symbols
from perpline.common.config import Settings, load_settings
from perpline.common.errors import NeedsPerson, PerplineError
from perpline.common.telemetry import configure_logging
from perpline.domain.candle import MINUTE_MS
from perpline.domain.exit_rule import LabelRule
from perpline.features.catalogue import SCHEMAS, lookback_of
from perpline.inference import registry
from perpline.inference.artefact import LoadedModel, Manifest, is_name, load_artefact, read_manifest
from perpline.storage.store import Store
from perpline.training.dataset import build_dataset
from perpline.training.fit import TreeParams, lightgbm
from perpline.training.labels import Labels
from perpline.training.leaks import LeakTest
from perpline.training.train import (
    Material,
    Options,
    Outcome,
    check_mark,
    check_span,
    exact_leak_tests,
    kernel_rows,
    label_symbols,
    lift_table,
    lift_warning,
    windows_for,
)
from perpline.training.train import (
    train as train_model,
)

T = TypeVar("T")

FOREVER_MS = 1 << 52
STOPPED = "stopped: the same command again goes on"


class _Prepared(Struct):
    """What the store gave, after which a training needs it no more until the end."""

    options: Options
    dataset: Path
    labels: dict[str, Labels]
    materials: list[Material]
    exact: list[LeakTest]
    champion: LoadedModel | None


def train(
    name: Annotated[str, typer.Option(help="Begins the model's id: small letters, digits, _.")] = "trees",
    symbols: Annotated[
        str | None,
        typer.Option("--symbols", help='"BTCUSDT,ETHUSDT"; default: all that the database has.', show_default=False),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--from", help="First close, UTC; default: as far back as candles go.", show_default=False),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="End, UTC; default: the last stored candle.", show_default=False)
    ] = None,
    schema: Annotated[str, typer.Option(help=f"The columns: {', '.join(SCHEMAS)}.")] = "candles",
    label_price: Annotated[
        Literal["mark", "last"], typer.Option(help="Whose price triggers exits; last where no mark history is.")
    ] = "mark",
    tp: Annotated[float, typer.Option(help="Target, percent.", min=0.01, max=50)] = 1.0,
    sl: Annotated[float, typer.Option(help="Stop, percent.", min=0.01, max=50)] = 1.0,
    horizon: Annotated[int, typer.Option(help="Time limit of a trade, minutes.", min=1, max=10_080)] = 240,
    cost_bp: Annotated[float, typer.Option(help="Fees and slippage of a round trip.", min=0, max=500)] = 14.0,
    train_days: Annotated[float, typer.Option(help="Least days of training before the first test.", min=0.5)] = 180,
    test_days: Annotated[float, typer.Option(help="Days of a test.", min=0.5)] = 30,
    step_days: Annotated[
        float | None, typer.Option(help="From one test to the next; default: --test-days.", min=0.5, show_default=False)
    ] = None,
    lockbox_days: Annotated[float, typer.Option(help="Days at the end that no test touches.", min=0)] = 60,
    open_lockbox: Annotated[
        bool, typer.Option("--open-lockbox", help="Judge in the lock-box too: once for each release.")
    ] = False,
    trees: Annotated[int, typer.Option(help="Trees of the model, of each side.", min=1, max=2000)] = 150,
    leaves: Annotated[int, typer.Option(help="Leaves of a tree at most.", min=2, max=255)] = 15,
    every: Annotated[int, typer.Option(help="Train on one of so many rows of a symbol.", min=1, max=240)] = 10,
    seed: Annotated[int, typer.Option(help="The same data and seed give the same model.", min=0)] = 1,
    note: Annotated[str, typer.Option(help="Kept in the manifest and shown in the report.")] = "",
    repair: Annotated[
        bool, typer.Option("--repair/--no-repair", help="Ask the exchange for missing rows first.")
    ] = True,
    work_dir: Annotated[
        Path | None,
        typer.Option(help="Where stages are kept, to go on from; default: DATA_DIR/training.", show_default=False),
    ] = None,
    database: DatabaseOption = None,
    network: NetworkOption = None,
    rest_url: RestUrlOption = None,
    speed: SpeedOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Repair, build, label, fit, judge, test for leaks, and register the result as a candidate.

    Ends with a report.html beside the model that says what it is worth. Run again it goes on where it stopped. Runs
    beside a worker: as a process of its own, with the least priority.

    Example: perpline train --schema ohlcv_day --label-price last --train-days 10 --test-days 4 --lockbox-days 4
    """
    if schema not in SCHEMAS:
        raise typer.BadParameter(f"no schema {schema}; these are: {', '.join(SCHEMAS)}", param_hint="--schema")
    start = None if since is None else time_ms(since, "--from")
    end = None if to is None else time_ms(to, "--to")
    if start is not None and end is not None and start >= end:
        raise typer.BadParameter("it begins when --to has passed", param_hint="--from")
    if not is_name(name):
        raise typer.BadParameter("small letters, digits and _, at most 32", param_hint="--name")
    if hasattr(os, "nice"):
        os.nice(10)
    settings = load_settings(
        config,
        os.environ,
        {"database_url": database, **rest_settings(network, rest_url, speed)},
    )
    configure_logging("warning", settings.log_format, sys.stderr)
    make_data_dir(settings)
    rule = LabelRule(tp, sl, horizon * 60, cost_bp, label_price)
    warning = lift_warning(rule)
    if warning:
        stderr.print(f"[yellow]warning[/] {warning}")
        _print_lift(rule)
    work = work_dir or settings.data_dir / "training"

    def options_for(names: list[str], first: int, last: int) -> Options:
        return Options(
            name=name,
            symbols=tuple(names),
            start=first,
            to=last,
            schema=schema,
            rule=rule,
            windows=windows_for(rule, train_days, test_days, step_days or test_days, lockbox_days),
            seed=seed,
            params=TreeParams(trees=trees, leaves=leaves),
            every=every,
            open_lockbox=open_lockbox,
            note=note,
        )

    began = time.monotonic()
    with _Stages() as stages:
        names = symbols.upper().replace(" ", "").split(",") if symbols else None

        async def prepare(stop: asyncio.Event) -> _Prepared:
            return await _until(stop, _prepare(settings, names, start, end, options_for, work, repair, stages, stop))

        prepared = run_loop(prepare)
        try:
            outcome = train_model(
                prepared.options,
                prepared.dataset,
                prepared.labels,
                prepared.materials,
                prepared.exact,
                work,
                settings.models_dir,
                stages.update,
                int(time.time() * 1000),
                prepared.champion,
                _manifests(settings.models_dir),
            )
        except KeyboardInterrupt:
            raise NeedsPerson(STOPPED) from None
        run_loop(lambda stop: _register(settings, outcome))
    _tell(outcome, warning, time.monotonic() - began, as_json)


async def _until(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives. Raises NeedsPerson where it is stopped before."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done():
        working.cancel()
        await asyncio.wait([working])
        raise NeedsPerson(STOPPED)
    return working.result()


async def _prepare(
    settings: Settings,
    names: list[str] | None,
    start: int | None,
    end: int | None,
    options_for: Callable[[list[str], int, int], Options],
    work: Path,
    repair: bool,
    stages: "_Stages",
    stop: asyncio.Event,
) -> _Prepared:
    """Everything that reads the store: repair, build, label, and the leak tests of the features."""
    store = open_store(settings.database_url.get_secret_value())
    await store.open()
    try:
        there = await stored_symbols(store)
        if missing := [each for each in names or () if each not in there]:
            raise NeedsPerson(f"the database holds no candles of {', '.join(missing[:5])}: import or backfill them")
        chosen = names or there
        if not chosen:
            raise NeedsPerson("the database holds no candles: `perpline import candles` or `perpline backfill` first")
        spans = [span for each in chosen if (span := await stored_span(store, each, "candles_1m", 0, FOREVER_MS))]
        first = start if start is not None else min(span[0] for span in spans)
        last = end if end is not None else max(span[1] for span in spans)
        options = options_for(chosen, first, last)
        # What is wanting is said now, not after an hour. With repair only the exchange knows how far back it goes.
        stored = (0, FOREVER_MS) if repair else (min(span[0] for span in spans), max(span[1] for span in spans))
        check_span(options, *stored)
        lightgbm()
        if repair:
            await _repair(settings, store, options, stages, stop)
        await check_mark(store, options)
        dataset = await _build(settings, store, options, work, stages)
        labels, materials = await label_symbols(store, options, dataset, work, stages.update)
        exact = await exact_leak_tests(store, options, kernel_rows(options.schema), stages.update)
        champion = await _champion(store, settings)
    finally:
        await store.close()
    return _Prepared(options, dataset, labels, materials, exact, champion)


async def _repair(settings: Settings, store: Store, options: Options, stages: "_Stages", stop: asyncio.Event) -> None:
    tables = {"candles_1m", "funding_rates"} | {"mark_klines" for _ in (1,) if options.rule.price == "mark"}
    features = SCHEMAS[options.schema]
    tables |= {column.partition(".")[0] for feature in features for column in feature.inputs}
    series = [each for each in SERIES if each.partition(":")[0] in tables]
    clock = await make_clock(settings)
    rest = make_rest(settings, clock)
    try:
        await rest.measure_offset_ms()  # an exchange that does not answer is found out before all is asked of it
        work = Backfill(rest.at("bulk"), store, clock, plan=stages.plan, progress=stages.advance, stopped=stop.is_set)
        begin = options.start - lookback_of(features) * MINUTE_MS
        report = await work.run(options.symbols, series, begin, options.to)
    except PerplineError as error:
        raise NeedsPerson(f"gaps cannot be repaired ({error}); --no-repair trains on what is stored") from error
    finally:
        await rest.close()
    if report.failed:
        raise NeedsPerson(
            f"{len(report.failed)} requests failed, the first: {report.failed[0]}; --no-repair trains on what is stored"
        )
    if report.stopped:
        raise NeedsPerson(STOPPED)


async def _build(settings: Settings, store: Store, options: Options, work: Path, stages: "_Stages") -> Path:
    asked = json.dumps([options.symbols, options.start, options.to, options.schema])
    folder = work / f"dataset-{blake2b(asked.encode(), digest_size=6).hexdigest()}"
    await build_dataset(
        store,
        options.symbols,
        options.start,
        options.to,
        options.schema,
        folder,
        progress=lambda done, total: stages.update("features", done, total),
    )
    return folder


async def _champion(store: Store, settings: Settings) -> LoadedModel | None:
    """The model in force, to be judged beside; None where there is none or it does not fit any more."""
    rows = registry.ordered(await store.deployments(), settings.slot)
    if not rows or not rows[0].model_id:
        return None
    try:
        return load_artefact(settings.models_dir / rows[0].model_id)
    except NeedsPerson as error:
        stderr.print(f"[yellow]warning[/] not judged beside the champion: {error}")
        return None


def _manifests(models_dir: Path) -> list[Manifest]:
    """What earlier trainings left, whether it was ever used or not."""
    found = []
    for folder in sorted(models_dir.iterdir()) if models_dir.is_dir() else ():
        try:
            found.append(read_manifest(folder))
        except NeedsPerson:  # a folder that is no model is not this command's business
            continue
    return found


async def _register(settings: Settings, outcome: Outcome) -> None:
    store = open_store(settings.database_url.get_secret_value())
    await store.open()
    try:
        await registry.register(store, settings.models_dir, outcome.path)
    finally:
        await store.close()


class _Stages:
    """A bar on stderr for each stage."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=stderr,
            transient=True,
            disable=not stderr.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "_Stages":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def update(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)

    def plan(self, rows: int) -> None:
        self.update("repair", 0, rows)

    def advance(self, rows: int) -> None:
        self._progress.advance(self._tasks["repair"], rows)


def _print_lift(rule: LabelRule) -> None:
    """What must be known beyond chance at these and at other levels (features.md 2.2)."""
    table = Table(box=None, pad_edge=False)
    for head in ("target / stop %", "costs bp", "by chance", "to break even", "needed"):
        table.add_column(head, justify="right")
    for each in lift_table(rule):
        table.add_row(
            f"{each['tp_pct']:g} / {each['sl_pct']:g}",
            f"{each['cost_bp']:g}",
            f"{each['random']:.3f}",
            f"{each['break_even']:.3f}",
            f"{each['lift_needed'] * 100:+.0f} points",
            style="yellow" if each["chosen"] else "",
        )
    stderr.print(table)


def _tell(outcome: Outcome, warning: str, seconds: float, as_json: bool) -> None:
    verdict = outcome.report["verdict"]
    if as_json:
        values: dict[str, Any] = {
            "model_id": outcome.model_id,
            "already_there": outcome.there,
            "path": str(outcome.path),
            "report": str(outcome.path / "report.html"),
            "verdict": verdict,
            "warnings": [warning] if warning else [],
            "rows": outcome.report["data"]["rows"],
            "n_eff": outcome.report["data"]["n_eff"],
            "seconds": round(seconds, 1),
        }
        print_json(values)
        return
    console = Console()
    if outcome.there:
        console.print(f"already there: [bold]{outcome.model_id}[/], of the same data, seed and settings")
    else:
        console.print(f"[bold]{outcome.model_id}[/] is a candidate")
    console.print(f"[{'green' if verdict['beats_baselines'] else 'yellow'}]{verdict['text']}[/]")
    console.print(f"report: {outcome.path / 'report.html'}", soft_wrap=True)
