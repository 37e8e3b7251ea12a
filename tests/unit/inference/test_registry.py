import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from modelling import FEATURES, golden_rows, logistic_graph, manifest, write_model
from perpline.common.clock import ManualClock
from perpline.common.errors import NeedsPerson
from perpline.features.catalogue import by_name, schema_hash
from perpline.inference import registry
from perpline.inference.artefact import ManifestFeature, write_artefact
from perpline.inference.registry import NONE, Deployed, ModelLoader
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import Deployment
from running import eventually

MINUTE = 60_000
NOW = 1_795_219_260_000
GOOD = json.dumps({"verdict": {"beats_baselines": True, "text": "It beats both."}}).encode()
BAD = json.dumps({"verdict": {"beats_baselines": False, "text": "It does not beat always-flat."}}).encode()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    return tmp_path / "models"


async def registered(store: SqliteStore, models_dir: Path, threshold: float, report: bytes | None = GOOD) -> str:
    files = {} if report is None else {"report.json": report}
    path = write_model(models_dir, threshold=threshold, files=files)
    return (await registry.register(store, models_dir, path)).model_id


def loader(
    store: SqliteStore, models_dir: Path, held: int | None = None, clock: ManualClock | None = None
) -> ModelLoader:
    made = ModelLoader(store, clock or ManualClock(NOW), models_dir, "champion")
    if held is not None:
        made.holds(held, cross_section=False, other_tables=())
    return made


def said(deployed: list[Deployed]) -> list[tuple[str, int, str | None]]:
    return [(each.slot, each.effective_from, each.model and each.model.model_id) for each in deployed]


def folders(models_dir: Path) -> list[str]:
    return sorted(path.name for path in models_dir.glob("*"))


async def promote(store: SqliteStore, models_dir: Path, model_id: str, at: int = NOW, reason: str = "") -> Deployment:
    return await registry.promote(
        store, models_dir, model_id, slot="champion", effective_from=at, by="ann", forced_because=reason
    )


async def test_a_model_from_elsewhere_is_copied_and_noted_as_a_candidate(
    store: SqliteStore, models_dir: Path, tmp_path: Path
) -> None:
    path = write_model(tmp_path / "download", files={"report.json": GOOD})
    (path / "stray.txt").write_text("not part of the model")

    model = await registry.register(store, models_dir, path)
    again = await registry.register(store, models_dir, models_dir / path.name)

    assert model.path == again.path == models_dir / path.name
    assert sorted(file.name for file in model.path.iterdir()) == [
        "SHA256SUMS",
        "both.onnx",
        "golden.npz",
        "manifest.json",
        "report.json",
    ]
    [row] = await store.models()
    assert (row.model_id, row.status, row.report) == (path.name, "candidate", GOOD.decode())


async def test_a_model_that_cannot_be_served_is_not_registered(
    store: SqliteStore, models_dir: Path, tmp_path: Path
) -> None:
    path = write_model(tmp_path / "download")
    (path / "both.onnx").write_bytes(b"")

    with pytest.raises(NeedsPerson, match=r"both\.onnx is not what SHA256SUMS says"):
        await registry.register(store, models_dir, path)

    assert await store.models() == []
    assert folders(models_dir) == []


async def test_promotion_makes_a_champion_and_retires_the_one_before(store: SqliteStore, models_dir: Path) -> None:
    first, second = [await registered(store, models_dir, t) for t in (0.6, 0.61)]

    await promote(store, models_dir, first)
    row = await promote(store, models_dir, second, NOW + MINUTE)

    assert (row.slot, row.model_id, row.effective_from, row.by) == ("champion", second, NOW + MINUTE, "ann")
    assert {model.model_id: model.status for model in await store.models()} == {first: "retired", second: "champion"}


@pytest.mark.parametrize(
    ("report", "words"),
    [(BAD, "It does not beat always-flat."), (None, "it has no report"), (b'{"verdict": 3}', "it has no report")],
)
async def test_a_model_that_beats_nothing_is_promoted_only_by_force_and_with_a_reason(
    store: SqliteStore, models_dir: Path, report: bytes | None, words: str
) -> None:
    model_id = await registered(store, models_dir, 0.6, report)

    with pytest.raises(NeedsPerson, match=words):
        await promote(store, models_dir, model_id)
    forced = await promote(store, models_dir, model_id, reason="to try the machinery")

    assert forced.by == "ann, forced: to try the machinery"


async def test_what_is_not_registered_or_damaged_is_not_promoted(store: SqliteStore, models_dir: Path) -> None:
    model_id = await registered(store, models_dir, 0.6)
    (models_dir / model_id / "golden.npz").unlink()

    with pytest.raises(NeedsPerson, match="no model other-1 is registered"):
        await promote(store, models_dir, "other-1")
    with pytest.raises(NeedsPerson, match=r"cannot read golden\.npz"):
        await promote(store, models_dir, model_id)
    assert await store.deployments() == []


async def test_rollback_goes_to_the_model_before_and_no_file_is_ever_deleted(
    store: SqliteStore, models_dir: Path
) -> None:
    first, second = [await registered(store, models_dir, t) for t in (0.6, 0.61)]
    await promote(store, models_dir, first)
    await promote(store, models_dir, second)

    back = await registry.rollback(store, models_dir, slot="champion", effective_from=NOW, by="bob")

    assert (back.model_id, back.by) == (first, f"bob, rollback of {second}")
    assert {model.model_id: model.status for model in await store.models()} == {first: "champion", second: "retired"}
    assert folders(models_dir) == sorted([first, second])
    assert len(await store.deployments()) == 3


async def test_rollback_of_the_first_model_brings_the_default_back(store: SqliteStore, models_dir: Path) -> None:
    with pytest.raises(NeedsPerson, match="nothing was ever deployed to champion"):
        await registry.rollback(store, models_dir, slot="champion", effective_from=NOW, by="bob")
    await promote(store, models_dir, await registered(store, models_dir, 0.6))

    back = await registry.rollback(store, models_dir, slot="champion", effective_from=NOW, by="bob")

    assert back.model_id == NONE


async def test_a_new_order_comes_into_force_after_what_was_planned_before(store: SqliteStore, models_dir: Path) -> None:
    first, second = [await registered(store, models_dir, t) for t in (0.6, 0.61)]
    await promote(store, models_dir, first, NOW + 60 * MINUTE)

    row = await promote(store, models_dir, second, NOW)

    assert row.effective_from == NOW + 60 * MINUTE
    assert registry.ordered(await store.deployments(), "champion")[0] == row


async def test_only_shadow_slots_take_shadows(store: SqliteStore, models_dir: Path) -> None:
    model_id = await registered(store, models_dir, 0.6, BAD)

    row = await registry.shadow(store, models_dir, model_id, slot="shadow1", effective_from=NOW, by="ann")

    assert (row.slot, row.model_id) == ("shadow1", model_id)
    assert [model.status for model in await store.models()] == ["shadow"]
    with pytest.raises(NeedsPerson, match="champion is no shadow"):
        await registry.shadow(store, models_dir, model_id, slot="champion", effective_from=NOW, by="ann")
    with pytest.raises(NeedsPerson, match="no model x is registered"):
        await registry.shadow(store, models_dir, "x", slot="shadow", effective_from=NOW, by="ann")
    await registry.shadow(store, models_dir, NONE, slot="shadow1", effective_from=NOW, by="ann")
    assert [model.status for model in await store.models()] == ["retired"]


# ---- the loader of a worker ----


async def test_a_worker_starts_with_what_is_in_force_and_knows_what_is_planned(
    store: SqliteStore, models_dir: Path
) -> None:
    first, second, third = [await registered(store, models_dir, t) for t in (0.6, 0.61, 0.62)]
    await promote(store, models_dir, first, NOW - 9 * MINUTE)
    await promote(store, models_dir, second, NOW)
    await promote(store, models_dir, third, NOW + 9 * MINUTE)
    await registry.shadow(store, models_dir, first, slot="shadow", effective_from=0, by="ann")

    found = await loader(store, models_dir).at_start()

    assert said(found) == [
        ("champion", NOW, second),
        ("shadow", 0, first),
        ("champion", NOW + 9 * MINUTE, third),
    ]


async def test_what_is_deployed_later_is_loaded_once_and_handed_over(store: SqliteStore, models_dir: Path) -> None:
    first, second = [await registered(store, models_dir, t) for t in (0.6, 0.61)]
    await promote(store, models_dir, first, 0)
    clock = ManualClock(NOW)
    watched = loader(store, models_dir, clock=clock)
    await watched.at_start()
    handed: list[Deployed] = []
    task = asyncio.create_task(watched.run(handed.append))
    await asyncio.sleep(0)

    await promote(store, models_dir, second, NOW + MINUTE)
    clock.advance(1.0)
    await eventually(lambda: len(handed) == 1)
    await registry.rollback(store, models_dir, slot="champion", effective_from=NOW, by="bob")
    await asyncio.sleep(0)
    clock.advance(1.0)
    await eventually(lambda: len(handed) == 2)
    task.cancel()

    assert said(handed) == [("champion", NOW + MINUTE, second), ("champion", NOW + MINUTE, first)]


async def test_a_model_that_is_refused_is_named_once_and_the_one_before_stays(
    store: SqliteStore, models_dir: Path
) -> None:
    first, second = [await registered(store, models_dir, t) for t in (0.6, 0.61)]
    await promote(store, models_dir, first, 0)
    await promote(store, models_dir, second, NOW)
    (models_dir / second / "both.onnx").unlink()
    watched = loader(store, models_dir)

    with capture_logs() as logs:
        found = await watched.at_start()
        later = await watched._new(await store.deployments())

    assert said(found) == [("champion", 0, first)]
    assert later == []
    [loud] = [entry for entry in logs if entry["log_level"] == "error"]
    assert (loud["event"], loud["model"]) == ("model_refused", second)
    assert "cannot read both.onnx" in loud["reason"]


async def test_with_no_model_that_can_be_loaded_there_is_none_and_the_reason_is_known(
    store: SqliteStore, models_dir: Path
) -> None:
    model_id = await registered(store, models_dir, 0.6)
    await promote(store, models_dir, model_id, 0)
    (models_dir / model_id / "manifest.json").write_text("{}")

    with capture_logs():
        [found] = await loader(store, models_dir).at_start()

    assert found.model is None
    assert found.reason.startswith("none of its models can be loaded: the model test-")


async def test_a_model_that_looks_back_further_than_is_held_waits_for_a_new_start(
    store: SqliteStore, models_dir: Path
) -> None:
    await promote(store, models_dir, await registered(store, models_dir, 0.6), NOW)

    with capture_logs() as logs:
        [found] = await loader(store, models_dir, held=240).at_start()

    assert found.model is None
    assert "looks back 241 minutes, and this worker was started to hold 240: start it again" in logs[0]["reason"]


async def test_a_model_of_the_book_is_refused_where_no_minutes_of_it_are_made(
    store: SqliteStore, models_dir: Path
) -> None:
    book = (*FEATURES, by_name["imb_0"])
    said = manifest(features=[ManifestFeature.of(each) for each in book], schema_hash=schema_hash(book))
    graph = logistic_graph({"tbi_15": 2.5}, [each.name for each in book])
    path = write_artefact(models_dir, said, {"both.onnx": graph}, golden_rows(8, len(book)))
    model = await registry.register(store, models_dir, path)
    await registry.shadow(store, models_dir, model.model_id, slot="shadow", effective_from=0, by="ann")
    without = ModelLoader(store, ManualClock(NOW), models_dir, "champion", book_minutes=False)
    started_without = loader(store, models_dir, held=10_000)

    with capture_logs() as logs:
        found = [await each.at_start() for each in (without, started_without, loader(store, models_dir))]

    assert [each[1].model and each[1].model.model_id for each in found] == [None, None, model.model_id]
    reasons = [each["reason"] for each in logs if each["event"] == "model_refused"]
    assert "has columns of the best bid and ask, and book_minutes is switched off" in reasons[0]
    assert "has columns of book_minutes, which this worker was not started to follow: start it again" in reasons[1]


async def test_a_shadow_that_ends_is_handed_over_as_no_model(store: SqliteStore, models_dir: Path) -> None:
    model_id = await registered(store, models_dir, 0.6)
    await registry.shadow(store, models_dir, model_id, slot="shadow", effective_from=0, by="ann")
    await promote(store, models_dir, model_id, 0)
    await registry.shadow(store, models_dir, NONE, slot="shadow", effective_from=NOW + MINUTE, by="ann")

    found = await loader(store, models_dir).at_start()

    assert said(found) == [("champion", 0, model_id), ("shadow", 0, model_id), ("shadow", NOW + MINUTE, None)]


async def test_the_overview_names_models_deployments_and_missing_folders(store: SqliteStore, models_dir: Path) -> None:
    first, second = [await registered(store, models_dir, t) for t in (0.6, 0.61)]
    await promote(store, models_dir, first)
    (models_dir / second).rename(models_dir / "gone")

    facts = await registry.overview(store, models_dir)

    entries = {model["model_id"]: model for model in facts["models"]}
    assert entries[first]["verdict"] == {"beats_baselines": True, "text": "It beats both."}
    assert entries[first]["schema"] == "candles_day"
    assert "cannot read manifest.json" in entries[second]["missing"]
    assert [row["model_id"] for row in facts["deployments"]] == [first]
    json.dumps(facts)


def test_the_model_that_ships_fits_this_version_and_says_what_it_is() -> None:
    model = registry.load_default()

    assert "simulated market" in model.manifest.note
    assert model.manifest.schema == "candles_day"
    assert model.lookback_min <= 1500
    assert model.reference is not None
    assert sum(file.stat().st_size for file in model.path.iterdir()) < 300_000
    assert registry.find_manifest(Path("nowhere"), model.model_id) == model.manifest
