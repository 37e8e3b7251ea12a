import io
import json
import os
import time
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from modelling import BOTH, CREATED, FEATURES, RULE, golden_rows, logistic_graph, manifest, ood, write_model
from perpline.common.errors import NeedsPerson
from perpline.domain.exit_rule import LabelRule
from perpline.features.catalogue import CATALOGUE
from perpline.inference import artefact
from perpline.inference.artefact import (
    Calibrator,
    Calibrators,
    Head,
    Heads,
    ManifestFeature,
    load_artefact,
    read_manifest,
    read_part,
    write_artefact,
)

WEIGHTS = {"tbi_15": 2.5, "tbi_60": 0.5}


def logistic(rows: np.ndarray) -> np.ndarray:
    z = 2.5 * rows[:, 2] + 0.5 * rows[:, 3]
    return np.column_stack([1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))])


def test_a_model_says_after_loading_what_its_graph_says(tmp_path: Path) -> None:
    rows = golden_rows(50, len(FEATURES), seed=7)

    model = load_artefact(write_model(tmp_path))
    raw, calibrated = model.predict(rows)

    assert raw.dtype == np.float64
    np.testing.assert_allclose(raw, logistic(rows), atol=2e-7)
    np.testing.assert_array_equal(calibrated, raw)  # without a calibrator they are the same


def test_rows_do_not_depend_on_the_rows_beside_them(tmp_path: Path) -> None:
    model = load_artefact(write_model(tmp_path))
    rows = golden_rows(300, len(FEATURES), seed=8)

    together, _ = model.predict(rows)
    alone = np.vstack([model.predict(row[None])[0] for row in rows])

    np.testing.assert_array_equal(alone, together)


def test_no_rows_give_no_probabilities(tmp_path: Path) -> None:
    raw, calibrated = load_artefact(write_model(tmp_path)).predict(np.empty((0, len(FEATURES)), np.float32))

    assert raw.shape == calibrated.shape == (0, 2)


def test_a_vector_of_another_width_is_not_scored(tmp_path: Path) -> None:
    model = load_artefact(write_model(tmp_path))

    with pytest.raises(ValueError, match=r"\(2, 4\) for a model of 5 features"):
        model.predict(np.zeros((2, 4), np.float32))


def test_a_model_knows_its_columns_rule_thresholds_and_lookback(tmp_path: Path) -> None:
    path = write_model(tmp_path, threshold=0.6, ev_min_bp=2.5)

    model = load_artefact(path)

    assert model.model_id == path.name == read_manifest(path).model_id
    assert model.features == FEATURES
    assert [CATALOGUE[place] for place in model.columns] == list(FEATURES)
    assert model.rule == RULE
    assert (model.threshold, model.ev_min_bp, model.critical) == (0.6, 2.5, ("tbi_15", "tbi_60"))
    assert [FEATURES[place].name for place in model.critical_columns] == ["tbi_15", "tbi_60"]
    assert (model.lookback_min, model.critical_lookback_min) == (241, 60)


def test_the_id_names_the_end_of_the_training_and_changes_with_manifest_and_graph(tmp_path: Path) -> None:
    same = write_model(tmp_path)
    again = write_model(tmp_path, created_at=CREATED + 5)
    other_threshold = write_model(tmp_path, threshold=0.59)
    other_graph = write_model(tmp_path, {"tbi_15": 2.5, "tbi_60": 0.6})

    assert same.name.startswith("test-20261120-")
    assert again == same
    assert len({same, other_threshold, other_graph}) == 3
    assert sorted(tmp_path.iterdir()) == sorted({same, other_threshold, other_graph})  # and nothing half written


def test_the_calibrator_bends_the_score_and_ends_flat(tmp_path: Path) -> None:
    bent = Calibrator([0.2, 0.5, 0.8], [0.4, 0.5, 0.7])
    model = load_artefact(write_model(tmp_path, calibrators=Calibrators(long=bent)))
    rows = np.zeros((3, len(FEATURES)), np.float32)
    rows[:, 2] = (-3.0, 0.0, np.log(0.65 / 0.35) / 2.5)

    raw, calibrated = model.predict(rows)

    np.testing.assert_allclose(raw[:, 0], [0.0005527, 0.5, 0.65], rtol=1e-3)
    np.testing.assert_allclose(calibrated[:, 0], [0.4, 0.5, 0.6], atol=1e-6)
    np.testing.assert_array_equal(calibrated[:, 1], raw[:, 1])


def test_the_out_of_distribution_share_counts_columns_beyond_their_bounds(tmp_path: Path) -> None:
    model = load_artefact(write_model(tmp_path, ood=ood(-1.0, 1.0)))
    rows = np.array([[0, 0, 0, 0, 0], [1, -1, 1, -1, 1], [2, 0, 0, 0, 0], [2, -2, 0, 0, np.nan]], np.float32)

    assert model.ood_share(rows).tolist() == [0.0, 0.0, 0.2, 0.4]
    assert load_artefact(write_model(tmp_path)).ood_share(rows).tolist() == [0.0, 0.0, 0.0, 0.0]


@given(arrays(np.float32, (3, 5), elements=st.floats(width=32, allow_nan=True, allow_infinity=False)))
@settings(max_examples=30, deadline=None)
def test_whatever_the_vector_the_answer_is_a_probability_or_nothing(model: artefact.LoadedModel, rows: Any) -> None:
    raw, calibrated = model.predict(rows)

    for answer in (raw, calibrated):
        assert np.all(np.isnan(answer) | ((answer >= 0) & (answer <= 1)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> artefact.LoadedModel:
    bent = Calibrator([0.1, 0.9], [0.3, 0.6])
    return load_artefact(write_model(tmp_path_factory.mktemp("models"), calibrators=Calibrators(bent, bent)))


def test_a_score_a_last_digit_above_one_counts_as_one(tmp_path: Path) -> None:
    """As a forest's does that adds up float32 weights."""
    model = load_artefact(write_model(tmp_path))
    raw = np.array([[1.0000001, -1e-7], [1.1, 0.5]])

    calibrated = artefact._calibrated(model.manifest, raw)

    assert calibrated.tolist() == [[1.0, 0.0], [1.1, 0.5]]


# ---- models of other libraries ----


def training_rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(1500, len(FEATURES))).astype(np.float32)
    profitable = rows[:, 2] + 0.5 * rows[:, 3] + rng.normal(size=1500) > 0
    return rows, profitable.astype(np.int64)


def scikit_learn_graph() -> tuple[bytes, Callable[[np.ndarray], np.ndarray]]:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression().fit(*training_rows())
    inputs = [("features", FloatTensorType([None, len(FEATURES)]))]
    graph = to_onnx(fitted, initial_types=inputs, options={"zipmap": False})
    return graph.SerializeToString(), fitted.predict_proba


def xgboost_graph() -> tuple[bytes, Callable[[np.ndarray], np.ndarray]]:
    xgboost = pytest.importorskip("xgboost")
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    fitted = xgboost.XGBClassifier(n_estimators=20, max_depth=3, n_jobs=1).fit(*training_rows())
    graph = convert_xgboost(fitted, initial_types=[("features", FloatTensorType([None, len(FEATURES)]))])
    return graph.SerializeToString(), fitted.predict_proba


def lightgbm_graph(zipmap: bool = False) -> tuple[bytes, Callable[[np.ndarray], np.ndarray]]:
    try:
        import lightgbm
    except OSError as error:  # libgomp is not there
        pytest.skip(str(error))
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    fitted = lightgbm.train(
        {"objective": "binary", "verbose": -1, "num_threads": 1}, lightgbm.Dataset(*training_rows()), 20
    )
    inputs = [("features", FloatTensorType([None, len(FEATURES)]))]
    graph = convert_lightgbm(fitted, initial_types=inputs, zipmap=zipmap)
    return graph.SerializeToString(), lambda rows: np.column_stack([1 - fitted.predict(rows), fitted.predict(rows)])


OF_A_CLASSIFIER = Heads(Head("model.onnx", "probabilities", 1), Head("model.onnx", "probabilities", 0))


@pytest.mark.parametrize("graph_of", [scikit_learn_graph, xgboost_graph, lightgbm_graph])
def test_models_of_other_libraries_are_served(tmp_path: Path, graph_of: Any) -> None:
    graph, predict_proba = graph_of()
    rows = np.random.default_rng(4).normal(size=(200, len(FEATURES))).astype(np.float32)

    path = write_artefact(tmp_path, manifest(heads=OF_A_CLASSIFIER), {"model.onnx": graph}, rows[:20])
    raw, _ = load_artefact(path).predict(rows)

    np.testing.assert_allclose(raw, predict_proba(rows)[:, ::-1], atol=2e-6)


def test_two_files_give_one_head_each(tmp_path: Path) -> None:
    heads = Heads(Head("long.onnx", "p", 0), Head("short.onnx", "p", 0))
    graphs = {"long.onnx": logistic_graph({"tbi_15": 1.0}), "short.onnx": logistic_graph({"tbi_60": 1.0})}

    path = write_artefact(tmp_path, manifest(heads=heads), graphs, golden_rows(20, len(FEATURES)))
    raw, _ = load_artefact(path).predict(np.array([[0, 0, 1, 2, 0]], np.float32))

    np.testing.assert_allclose(raw, [[1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(-2.0))]], rtol=1e-6)


def test_maps_instead_of_a_table_are_refused_with_advice(tmp_path: Path) -> None:
    graph, _ = lightgbm_graph(zipmap=True)

    with pytest.raises(NeedsPerson, match="not a tensor \\(export without zipmap\\)"):
        write_artefact(tmp_path, manifest(heads=OF_A_CLASSIFIER), {"model.onnx": graph}, golden_rows(9, len(FEATURES)))
    assert list(tmp_path.iterdir()) == []


# ---- what is refused ----


def refusal(path: Path) -> str:
    with pytest.raises(NeedsPerson) as caught:
        load_artefact(path)
    text = str(caught.value)
    assert text.startswith(f"the model {path.name} is refused: ")
    assert "\n" not in text
    return text.removeprefix(f"the model {path.name} is refused: ")


def signed(path: Path) -> Path:
    """The folder with sums that fit whatever is in it now."""
    names = sorted(file.name for file in path.iterdir() if file.name != "SHA256SUMS")
    sums = "".join(f"{sha256((path / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    (path / "SHA256SUMS").write_text(sums)
    return path


def with_manifest(path: Path, change: Callable[[dict[str, Any]], None], new_id: bool = True) -> Path:
    values = json.loads((path / "manifest.json").read_bytes())
    change(values)
    if new_id:
        changed = msgspec.convert(values, artefact.Manifest)
        values["model_id"] = artefact._model_id(changed, {"both.onnx": (path / "both.onnx").read_bytes()})
    (path / "manifest.json").write_text(json.dumps(values))
    return signed(path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none-20261120-00000000") == "there is no such folder"


@pytest.mark.parametrize("name", ["manifest.json", "both.onnx", "golden.npz", "SHA256SUMS"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = write_model(tmp_path)
    (path / name).unlink()

    assert refusal(path) == f"cannot read {name}: No such file or directory"


@pytest.mark.parametrize("name", ["manifest.json", "both.onnx", "golden.npz"])
def test_a_changed_byte_is_noticed(tmp_path: Path, name: str) -> None:
    path = write_model(tmp_path)
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)

    assert refusal(path) == f"the content of {name} is not what SHA256SUMS says"


def test_a_changed_manifest_with_fitting_sums_has_another_id(tmp_path: Path) -> None:
    path = with_manifest(write_model(tmp_path), lambda values: values.update(threshold=0.1), new_id=False)

    assert f"its id '{path.name}' does not fit its content" in refusal(path)


def test_another_graph_under_the_same_id_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    (path / "both.onnx").write_bytes(logistic_graph({"tbi_15": -2.5, "tbi_60": -0.5}))

    assert "does not fit its content" in refusal(signed(path))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ".hidden"])
def test_sums_that_lead_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    path = write_model(tmp_path)
    with (path / "SHA256SUMS").open("a") as sums:
        sums.write(f"{'0' * 64}  {name}\n")

    assert refusal(path).startswith("SHA256SUMS has a line that is no sum of a file in the folder")


@pytest.mark.parametrize("name", ["../both.onnx", "/etc/passwd", "", "."])
def test_a_head_that_lies_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    path = with_manifest(write_model(tmp_path), lambda values: values["heads"]["long"].update(file=name), new_id=False)

    assert "manifest.json is not a manifest of format 1" in refusal(path)


def test_links_are_not_followed(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    (path / "both.onnx").rename(tmp_path / "elsewhere")
    (path / "both.onnx").symlink_to(tmp_path / "elsewhere")

    assert refusal(path) == "both.onnx is no plain file"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a file system with pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    (path / "golden.npz").unlink()
    os.mkfifo(path / "golden.npz")

    assert refusal(path) == "golden.npz is no plain file"


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    with (path / "both.onnx").open("r+b") as file:
        file.truncate(artefact.MAX_FILE_BYTES + 1)  # a hole, so the test writes nothing of that size

    assert refusal(path) == "both.onnx has 268,435,457 bytes, more than 268,435,456"


def test_golden_rows_that_unpack_to_more_than_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_model(tmp_path)
    monkeypatch.setattr(artefact, "MAX_FILE_BYTES", 100_000)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", b"\0" * 200_000)
    (path / "golden.npz").write_bytes(packed.getvalue())

    assert refusal(signed(path)) == "golden.npz unpacks to more than 100,000 bytes"


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    np.savez(path / "golden.npz", features=np.array([{"a": 1}], object), raw=0, calibrated=0)

    assert refusal(signed(path)).startswith("golden.npz cannot be read: Object arrays cannot be loaded")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "truncated"),
        (b"[]", "Expected `object`"),
        (b'{"format": 2}', "Invalid enum value 2"),
        (b"\xff\xfe", "malformed"),
        (b'{"params": ' + b"[" * 100_000, "recursion"),
        (b'{"format": 1, "name": "../x"}', "\\$.name"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: bytes, said: str) -> None:
    path = write_model(tmp_path)
    (path / "manifest.json").write_bytes(text)

    reason = refusal(signed(path))

    assert reason.startswith("manifest.json is not a manifest of format 1: ")


def test_columns_that_differ_from_the_catalogue_are_named(tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["features"][0]["name"] = "moon_phase"
        values["features"][1]["version"] = 2
        values["features"][2]["lookback_min"] = 16
        values["schema_hash"] = "other"

    path = with_manifest(write_model(tmp_path), change)

    assert refusal(path) == (
        "its features are not this program's: moon_phase is unknown here; zret_15 has version 2, here 1; "
        "tbi_15 has lookback_min 16, here 15"
    )


def test_another_order_of_the_columns_is_another_schema(tmp_path: Path) -> None:
    path = with_manifest(write_model(tmp_path), lambda values: values["features"].reverse())

    assert "its schema hash" in refusal(path)


def test_a_column_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    twice = [ManifestFeature.of(feature) for feature in FEATURES]
    twice[0] = twice[1]

    with pytest.raises(NeedsPerson, match="name a column twice"):
        write_model(tmp_path, features=twice, schema_hash="00")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"critical": ["tbi_15", "moon_phase"]}, "critical names moon_phase"),
        ({"calibrators": Calibrators(long=Calibrator([0.5, 0.5], [0.1, 0.2]))}, "calibrator long is no ascending line"),
        ({"calibrators": Calibrators(short=Calibrator([0.1, 0.5], [0.3, 0.2]))}, "calibrator short is no ascending"),
        ({"calibrators": Calibrators(short=Calibrator([0.1, 0.5], [0.3, 1.2]))}, "calibrator short is no ascending"),
        ({"calibrators": Calibrators(short=Calibrator([0.1, 0.5], [0.3]))}, "calibrator short is no ascending"),
        ({"ood": artefact.Ood([0.0], [1.0])}, "ood.low has not one bound for each of its 5 features"),
        ({"label": LabelRule(0.0, 1.0, 60, 1.0)}, "its label is no exit rule"),
        ({"label_hash": "00"}, "its label hash 00 is not"),
        ({"threshold": 1.5}, "threshold"),
        ({"name": "Not A Name"}, r"\$.name"),
        ({"schema_hash": "00"}, "its schema hash 00 is not"),
        ({"params": {"x": object()}}, "cannot be written as JSON"),
        ({"heads": Heads(Head("both.onnx", "q", 0), Head("both.onnx", "p", 1))}, "no output 'q', only p"),
        ({"heads": Heads(Head("both.onnx", "p", 2), Head("both.onnx", "p", 1))}, "has 2 columns, none of number 2"),
        ({"heads": Heads(Head("long.onnx", "p", 0), Head("both.onnx", "p", 1))}, "names long.onnx, which is not among"),
    ],
)
def test_a_manifest_that_does_not_fit_is_not_even_written(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(NeedsPerson, match=said):
        write_model(tmp_path, **changes)

    assert list(tmp_path.iterdir()) == []


def graph(shape: list[Any], *nodes: tuple[str, list[str], dict[str, Any]]) -> bytes:
    from onnx import TensorProto, helper

    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node(kind, inputs, [f"x{n}" if n + 1 < len(nodes) else "p"], **options)
                for n, (kind, inputs, options) in enumerate(nodes)
            ],
            "g",
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("p", TensorProto.FLOAT, None)],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "ONNX Runtime cannot load both.onnx"),
        (b"not a graph at all", "ONNX Runtime cannot load both.onnx"),
        (logistic_graph(WEIGHTS)[:-20], "ONNX Runtime cannot load both.onnx"),
        (graph(["n", 4], ("Sigmoid", ["features"], {})), r"takes \['n', 4\], and the manifest has 5"),
        (graph([1, 5], ("Sigmoid", ["features"], {})), r"takes \[1, 5\]"),
        (graph(["n", 5, 1], ("Sigmoid", ["features"], {})), r"must have one input float32 \[n, 5\]"),
        (graph(["n", 5], ("Transpose", ["features"], {}), ("Sigmoid", ["x0"], {})), r"gives \(5, 32\) for 32 rows"),
        (graph(["n", 5], ("Identity", ["features"], {})), "gives no probabilities"),
        (graph(["n", 5], ("Sub", ["features", "features"], {}), ("Log", ["x0"], {}), ("Mul", ["x1", "x0"], {})),
         "gives no probabilities"),
        (logistic_graph(WEIGHTS) + b"\x0a\x08location", "keeps weights in other files"),
    ],
)  # fmt: skip
def test_a_graph_that_cannot_be_served_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(NeedsPerson, match=said):
        write_artefact(tmp_path, manifest(heads=BOTH), {"both.onnx": data}, golden_rows(32, len(FEATURES)))

    assert list(tmp_path.iterdir()) == []


def test_golden_rows_that_give_something_else_are_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    with np.load(path / "golden.npz") as stored:
        arrays_ = dict(stored)
    arrays_["raw"][3, 1] += 1e-3
    np.savez(path / "golden.npz", **arrays_)

    assert refusal(signed(path)).startswith("1 of 32 golden rows give other raw outputs: row 3 gives ")


@pytest.mark.parametrize("name", ["features", "raw", "calibrated"])
def test_golden_rows_of_a_wrong_shape_are_refused(tmp_path: Path, name: str) -> None:
    path = write_model(tmp_path)
    with np.load(path / "golden.npz") as stored:
        arrays_ = dict(stored)
    arrays_[name] = arrays_[name][:, :1]
    np.savez(path / "golden.npz", **arrays_)

    assert f"{name} in golden.npz is" in refusal(signed(path))


def test_golden_rows_without_a_usable_one_prove_nothing(tmp_path: Path) -> None:
    nothing = np.full((5, len(FEATURES)), np.nan, np.float32)

    with pytest.raises(NeedsPerson, match="none of its golden rows has all critical features"):
        write_artefact(tmp_path, manifest(), {"both.onnx": logistic_graph(WEIGHTS)}, nothing)


def test_a_damaged_folder_is_not_taken_for_the_same_training(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    (path / "golden.npz").write_bytes(b"")

    with pytest.raises(NeedsPerson, match=r"golden\.npz is not what"):
        write_model(tmp_path)


def test_what_belongs_to_a_model_is_read_back(tmp_path: Path) -> None:
    path = write_model(tmp_path, files={"report.json": b'{"verdict": 1}'})

    assert read_part(path, "report.json") == b'{"verdict": 1}'
    assert read_part(path, "psi.json") is None


def test_loading_takes_a_moment_and_not_a_minute(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    began = time.perf_counter()

    load_artefact(path)

    assert time.perf_counter() - began < 2
