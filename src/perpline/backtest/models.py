"""Which model is meant: a folder, a registered id, or the one that decides."""

from pathlib import Path

from perpline.inference import registry
from perpline.inference.artefact import LoadedModel, load_artefact
from perpline.storage.store import Store


def load_named(models_dir: Path, name: str) -> LoadedModel:
    """The model in the folder of this path, or the registered or shipped one of this id. Raises NeedsPerson."""
    if "/" in name or Path(name).is_dir():
        return load_artefact(Path(name))
    shipped = registry.DEFAULT_MODELS / name
    return load_artefact(shipped if shipped.is_dir() else models_dir / name)


async def load_deciding(store: Store, models_dir: Path, slot: str) -> LoadedModel:
    """The model that was last given the slot, the shipped one where none was. Raises NeedsPerson."""
    rows = registry.ordered(await store.deployments(), slot)
    if not rows or rows[0].model_id == registry.NONE:
        return registry.load_default()
    return load_artefact(models_dir / rows[0].model_id)
