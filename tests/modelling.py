"""Models in folders, for tests: a small graph written by hand, and a manifest that fits it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from perpline.domain.exit_rule import LabelRule, label_hash
from perpline.features.catalogue import CATALOGUE, Feature, schema_hash
from perpline.inference.artefact import Head, Heads, Manifest, ManifestFeature, Ood, Training, write_artefact

NAMES = ("ret_1", "zret_15", "tbi_15", "tbi_60", "rv_60")
FEATURES: tuple[Feature, ...] = tuple(feature for name in NAMES for feature in CATALOGUE if feature.name == name)
CRITICAL = ("tbi_15", "tbi_60")
RULE = LabelRule(tp_pct=1.0, sl_pct=1.0, horizon_s=14_400, cost_bp=14.0)
CREATED = 1_795_200_000_000
BOTH = Heads(Head("both.onnx", "p", 0), Head("both.onnx", "p", 1))


def logistic_graph(weights: Mapping[str, float], names: Sequence[str] = NAMES) -> bytes:
    """ONNX: p [n, 2] = logistic(±Σ weight · feature). Columns without a weight are not looked at, NaN or not."""
    table = np.array([[weight, -weight] for weight in weights.values()], np.float32)
    places = np.array([names.index(name) for name in weights], np.int64)
    nodes = [
        helper.make_node("Gather", ["features", "places"], ["used"], axis=1),
        helper.make_node("MatMul", ["used", "weights"], ["z"]),
        helper.make_node("Sigmoid", ["z"], ["p"]),
    ]
    graph = helper.make_graph(
        nodes,
        "logistic",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", len(names)])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(table, "weights"), numpy_helper.from_array(places, "places")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "name": "test",
        "created_at": CREATED,
        "schema": "candles_day",
        "schema_hash": schema_hash(FEATURES),
        "features": [ManifestFeature.of(feature) for feature in FEATURES],
        "critical": list(CRITICAL),
        "heads": BOTH,
        "label": RULE,
        "label_hash": label_hash(RULE),
        "threshold": 0.58,
        "train": Training(start=CREATED - 86_400_000, to=CREATED, symbols=["BTCUSDT"], rows=1440),
        "dataset_hash": "00",
        "seed": 1,
    }
    return Manifest(**{**values, **changes})


def golden_rows(count: int, columns: int, seed: int = 1) -> NDArray[np.float32]:
    """Rows as they come, the last ones with NaN here and there."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, columns)).astype(np.float32)
    rows[-3:][rng.random((3, columns)) < 0.3] = np.nan
    return rows


def write_model(
    models_dir: Path,
    weights: Mapping[str, float] | None = None,
    *,
    files: Mapping[str, bytes] | None = None,
    **changes: Any,
) -> Path:
    """The folder of a model that follows takers, or whatever `weights` say."""
    graph = logistic_graph({"tbi_15": 2.5, "tbi_60": 0.5} if weights is None else weights)
    rows = golden_rows(32, len(FEATURES))
    return write_artefact(models_dir, manifest(**changes), {"both.onnx": graph, **(files or {})}, rows)


def ood(low: float, high: float) -> Ood:
    """The same bounds for every column."""
    return Ood([low] * len(FEATURES), [high] * len(FEATURES))
