"""Which models there are and which one decides from when on: the tables `models` and `deployments`, and the folder.

Deployments are only ever added. Of a slot's rows the one with the largest `effective_from` that has come is in force,
the last one of equals; so a rollback is a row too, and the table is the history. Folders are never deleted: a row may
refer to them.
"""

import asyncio
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog
from msgspec import Struct

from perpline.common.clock import Clock
from perpline.common.errors import NeedsPerson, Unavailable
from perpline.domain.candle import last_boundary
from perpline.inference.artefact import (
    REPORT,
    LoadedModel,
    Manifest,
    copy_artefact,
    load_artefact,
    read_manifest,
    read_part,
)
from perpline.storage.history import HISTORY_TABLES
from perpline.storage.store import Deployment, Store

log = structlog.get_logger("perpline.registry")

DEFAULT_MODELS = Path(__file__).with_name("default_model")
"""The folder of the model that ships with perpline, the only one in it."""
SHADOW = "shadow"
"""Slots of this name or beginning with it are scored beside the champion and never traded."""
NONE = ""
"""As the model of a deployment: from then on the slot has none."""
LOOK_EVERY_S = 1.0


class Verdict(Struct, frozen=True):
    """What a model's report says of it."""

    beats_baselines: bool
    """Always-flat and logistic regression, after costs."""
    text: str = ""


async def register(store: Store, models_dir: Path, path: Path) -> LoadedModel:
    """Check the model in the folder `path`, copy it to `models_dir` if it is elsewhere, and note it as a candidate.

    Registering again changes nothing. Raises NeedsPerson for a model that cannot be served.
    """
    target = await asyncio.to_thread(copy_artefact, path, models_dir)
    model = await asyncio.to_thread(load_artefact, target)
    report = read_part(target, REPORT)
    await store.add_model(model.model_id, model.manifest.created_at, "" if report is None else report.decode())
    return model


def verdict(report: str) -> Verdict:
    """`verdict` of the text of a report.json: {"beats_baselines": bool, "text": str}."""
    try:
        return msgspec.json.decode(report, type=_Report).verdict
    except msgspec.DecodeError:
        return Verdict(False, "it has no report that says whether it beats anything")


async def promote(
    store: Store,
    models_dir: Path,
    model_id: str,
    *,
    slot: str,
    effective_from: int,
    by: str,
    forced_because: str = "",
) -> Deployment:
    """Let a registered model decide in `slot` from the minute that closes at `effective_from` on.

    Raises NeedsPerson for a model that is unknown or cannot be loaded, and for one whose report says that it beats
    nothing, unless a person says in `forced_because` why it is wanted all the same.
    """
    models = {model.model_id: model for model in await store.models()}
    if model_id not in models:
        raise NeedsPerson(f"no model {model_id} is registered: see `perpline models list`")
    found = verdict(models[model_id].report)
    if not found.beats_baselines and not forced_because:
        why = found.text.rstrip(".")
        raise NeedsPerson(f"{model_id} is not promoted: {why}. --force --reason TEXT promotes it all the same")
    await asyncio.to_thread(load_artefact, models_dir / model_id)
    words = f"{by}, forced: {forced_because}" if forced_because else by
    return await _deploy(store, slot, model_id, effective_from, words)


async def rollback(store: Store, models_dir: Path, *, slot: str, effective_from: int, by: str) -> Deployment:
    """Go back to the model that was in force before the last one. Raises NeedsPerson where there was none.

    The shipped default comes back where the last one was the first of its slot.
    """
    rows = ordered(await store.deployments(), slot)
    if not rows:
        raise NeedsPerson(f"nothing was ever deployed to {slot}")
    before = next((row.model_id for row in rows if row.model_id != rows[0].model_id), NONE)
    if before != NONE:
        await asyncio.to_thread(load_artefact, models_dir / before)
    return await _deploy(store, slot, before, effective_from, f"{by}, rollback of {rows[0].model_id or 'the default'}")


async def shadow(
    store: Store, models_dir: Path, model_id: str, *, slot: str, effective_from: int, by: str
) -> Deployment:
    """Score a registered model beside the champion; NONE ends it. Raises NeedsPerson for a slot that is no shadow's."""
    if not slot.startswith(SHADOW):
        raise NeedsPerson(f"{slot} is no shadow: shadows are called shadow, shadow1, shadow2 …")
    if model_id != NONE:
        if model_id not in {model.model_id for model in await store.models()}:
            raise NeedsPerson(f"no model {model_id} is registered: see `perpline models list`")
        await asyncio.to_thread(load_artefact, models_dir / model_id)
    return await _deploy(store, slot, model_id, effective_from, by)


async def _deploy(store: Store, slot: str, model_id: str, effective_from: int, by: str) -> Deployment:
    rows = await store.deployments()
    # Later than whatever is planned for the slot, or that would come into force over it.
    planned = max((row.effective_from for row in rows if row.slot == slot), default=0)
    effective_from = max(effective_from, planned)
    new = Deployment(id=0, slot=slot, model_id=model_id, effective_from=effective_from, by=by)
    statuses = statuses_of([*rows, new])
    return await store.add_deployment(slot, model_id, effective_from, by, statuses)


def ordered(deployments: Iterable[Deployment], slot: str, until: int | None = None) -> list[Deployment]:
    """The slot's deployments, the one that comes or came last first; with `until` only those that have come by then."""
    rows = [row for row in deployments if row.slot == slot and (until is None or row.effective_from <= until)]
    return sorted(rows, key=lambda row: (row.effective_from, row.id or math.inf), reverse=True)


def statuses_of(deployments: Sequence[Deployment]) -> dict[str, str]:
    """champion, shadow or retired for every model that was ever deployed, as the last order for each slot says."""
    last = {row.slot: ordered(deployments, row.slot)[0] for row in deployments}
    statuses = {row.model_id: "retired" for row in deployments}
    for row in last.values():
        if row.slot.startswith(SHADOW):
            statuses[row.model_id] = "shadow"
    for row in last.values():
        if not row.slot.startswith(SHADOW):
            statuses[row.model_id] = "champion"
    statuses.pop(NONE, None)
    return statuses


def load_default() -> LoadedModel:
    """The model that ships with perpline. Raises NeedsPerson for a damaged installation."""
    folders = [path for path in DEFAULT_MODELS.iterdir() if path.is_dir()] if DEFAULT_MODELS.is_dir() else []
    if len(folders) != 1:
        raise NeedsPerson("the model that ships with perpline is not there: install perpline again")
    return load_artefact(folders[0])


def find_manifest(models_dir: Path, model_id: str) -> Manifest:
    """The manifest of a registered model or of the default. Raises NeedsPerson."""
    shipped = DEFAULT_MODELS / model_id
    return read_manifest(shipped if shipped.is_dir() else models_dir / model_id)


class Deployed(Struct, frozen=True):
    """An order to the engine: this model decides in this slot from `effective_from` on."""

    slot: str
    effective_from: int
    model: LoadedModel | None
    """None: from then on there is no model, because of `reason`."""
    reason: str = ""


class ModelLoader:
    """Sees what is deployed to a worker's slot and to the shadows, and has it loaded before its time.

    A model that cannot be loaded is told loudly, once, and changes nothing: what was in force stays. Models once loaded
    are kept, so that a rollback takes no time. Loading is done in a thread; decisions go on meanwhile.
    """

    def __init__(self, store: Store, clock: Clock, models_dir: Path, slot: str, *, book_minutes: bool = True) -> None:
        """`book_minutes`: whether the worker sums up minutes of the best bid and ask."""
        self._book_minutes = book_minutes
        self._held_min: int | None = None
        self._cross_section = True
        self._other_tables: Collection[str] | None = None
        self._store = store
        self._clock = clock
        self._models_dir = models_dir
        self._slot = slot
        self._loaded: dict[str, LoadedModel] = {}
        self._seen: set[int] = set()
        self.refused: dict[str, str] = {}
        """Why each model that was refused last was, by slot; gone when another one of the slot is taken."""

    def holds(self, held_min: int, cross_section: bool, other_tables: Collection[str]) -> None:
        """Told when the worker has chosen, by the models at the start, how many minutes of history it holds, whether it
        makes the columns of group K, and which tables beside the candles its features look back on."""
        self._held_min, self._cross_section, self._other_tables = held_min, cross_section, other_tables

    async def at_start(self) -> list[Deployed]:
        """What is in force now, a model for each slot, and then what is planned.

        Where the model in force cannot be loaded, the one before it stays. The default serves a slot that nothing was
        deployed to, or that went back to it.
        """
        rows = await self._store.deployments()
        now = last_boundary(self._clock.exchange_now_ms())
        found = []
        for slot in self._slots(rows):
            found.append(await self._in_force(slot, ordered(rows, slot, now)))
        self._seen |= {row.id for row in rows if row.effective_from <= now}
        return found + await self._new(rows)

    async def run(self, deploy: Callable[[Deployed], None]) -> None:
        """Look once a second for what was deployed since, until cancelled."""
        while True:
            await self._clock.sleep_wall(LOOK_EVERY_S)
            try:
                rows = await self._store.deployments()
            except Unavailable:
                continue  # whoever writes says so; the model in force stays
            for each in await self._new(rows):
                deploy(each)

    def _slots(self, rows: Iterable[Deployment]) -> list[str]:
        return [self._slot, *sorted({row.slot for row in rows if row.slot.startswith(SHADOW)} - {self._slot})]

    async def _in_force(self, slot: str, rows: Sequence[Deployment]) -> Deployed:
        for row in rows:
            if (deployed := await self._load(row)) is not None:
                return deployed
        if rows:
            return Deployed(slot, 0, None, f"none of its models can be loaded: {self.refused[slot]}")
        return Deployed(slot, 0, await self._default())

    async def _new(self, rows: Iterable[Deployment]) -> list[Deployed]:
        found = []
        slots = self._slots(rows)
        for row in rows:
            if row.id in self._seen or row.slot not in slots:
                continue
            self._seen.add(row.id)
            if (deployed := await self._load(row)) is not None:
                found.append(deployed)
        return found

    async def _load(self, row: Deployment) -> Deployed | None:
        if row.model_id == NONE:
            model = None if row.slot.startswith(SHADOW) else await self._default()
            return Deployed(row.slot, row.effective_from, model)
        try:
            if row.model_id not in self._loaded:
                model = await asyncio.to_thread(load_artefact, self._models_dir / row.model_id)
                self._check_needs(model)
                self._loaded[row.model_id] = model
        except NeedsPerson as error:
            self.refused[row.slot] = str(error)
            log.error("model_refused", slot=row.slot, model=row.model_id, reason=str(error), action="models")
            return None
        self.refused.pop(row.slot, None)
        log.info("model_loaded", slot=row.slot, model=row.model_id, since=row.effective_from, action="models")
        return Deployed(row.slot, row.effective_from, self._loaded[row.model_id])

    def _check_needs(self, model: LoadedModel) -> None:
        name = f"the model {model.model_id}"
        if "book_minutes" in model.tables and not self._book_minutes:
            raise NeedsPerson(f"{name} has columns of the best bid and ask, and book_minutes is switched off")
        if self._held_min is not None and model.lookback_min > self._held_min:
            raise NeedsPerson(
                f"{name} looks back {model.lookback_min} minutes, and this worker was started to hold "
                f"{self._held_min}: start it again"
            )
        if model.cross_section and not self._cross_section:
            raise NeedsPerson(f"{name} compares symbols, which this worker was not started to do: start it again")
        if self._other_tables is not None:
            lacking = model.tables & HISTORY_TABLES.keys() - {"candles_1m"} - set(self._other_tables)
            if lacking:
                raise NeedsPerson(
                    f"{name} has columns of {', '.join(sorted(lacking))}, which this worker was not started to follow: "
                    "start it again"
                )

    async def _default(self) -> LoadedModel:
        if NONE not in self._loaded:
            self._loaded[NONE] = await asyncio.to_thread(load_default)
        return self._loaded[NONE]


class _Report(Struct):
    verdict: Verdict


async def overview(store: Store, models_dir: Path) -> dict[str, Any]:
    """All models and deployments as plain JSON values, newest first."""
    models = []
    for row in sorted(await store.models(), key=lambda model: -model.created_at):
        entry: dict[str, Any] = {
            "model_id": row.model_id,
            "status": row.status,
            "created_at": row.created_at,
            "verdict": msgspec.to_builtins(verdict(row.report)),
        }
        try:
            manifest = read_manifest(models_dir / row.model_id)
            entry |= {"schema": manifest.schema, "train": msgspec.to_builtins(manifest.train), "note": manifest.note}
        except NeedsPerson as error:
            entry["missing"] = str(error)
        models.append(entry)
    deployments = [msgspec.to_builtins(row) for row in reversed(await store.deployments())]
    return {"models": models, "deployments": deployments}
