import sys
from types import ModuleType

import lightgbm
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from perpline.common.errors import NeedsPerson
from perpline.domain.exit_rule import LabelRule
from perpline.training import fit
from perpline.training.fit import (
    PARITY_TOLERANCE,
    TreeParams,
    exact_in_float32,
    fit_calibrator,
    fit_trees,
    logistic,
    onnx_difference,
    plateau,
    thresholds_of,
    to_onnx,
)

SMALL = TreeParams(trees=20, leaves=7, min_rows=20)
RULE = LabelRule(1.0, 1.0, 14_400, 14.0)


def rows(count: int = 3_000, columns: int = 8, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Half of the columns have missing values; the first and the last say something."""
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(count, columns)).astype(np.float32)
    won = (made[:, 0] + made[:, -1] + rng.normal(size=count)) > 0
    made[:, : columns // 2][rng.random((count, columns // 2)) < 0.1] = np.nan
    return made, won


X, WON = rows()
TEXT = fit_trees(X, WON, np.ones(len(X)), SMALL, seed=1)


def hostile() -> NDArray[np.float32]:
    """Rows of missing, zero and huge values, in columns that had none in training too."""
    made, _ = rows(seed=2)
    made[np.random.default_rng(3).random(made.shape) < 0.2] = np.nan
    made[:100], made[100:200], made[200:300] = 0.0, 1e30, -1e30
    return made


def test_the_same_rows_and_seed_make_the_same_model() -> None:
    assert fit_trees(X, WON, np.ones(len(X)), SMALL, seed=1) == TEXT
    assert fit_trees(X, WON, np.ones(len(X)), SMALL, seed=2) != TEXT


OTHER = fit_trees(X, ~WON, np.ones(len(X)), SMALL, seed=2)


def test_what_the_converter_keeps_in_a_set_is_in_the_graph_in_a_fixed_order() -> None:
    """The order of a set of strings is another one in every process, and the bytes make the model's id."""
    domains = [each.domain for each in onnx.load_from_string(to_onnx((TEXT, OTHER), X.shape[1])).opset_import]

    assert domains == sorted(domains)
    assert len(domains) == 2


@pytest.mark.parametrize("made", [X, hostile()], ids=["usual", "hostile"])
def test_onnx_says_what_lightgbm_says(made: NDArray[np.float32]) -> None:
    texts = (TEXT, OTHER)

    assert onnx_difference(texts, to_onnx(texts, X.shape[1]), made) < PARITY_TOLERANCE


@pytest.mark.parametrize("made", [X, hostile()], ids=["usual", "hostile"])
def test_both_heads_in_one_graph_give_the_bits_of_each_alone(made: NDArray[np.float32]) -> None:
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    session = onnxruntime.InferenceSession(to_onnx((TEXT, OTHER), X.shape[1]))
    assert [each.name for each in session.get_outputs()] == ["long", "short"]

    for output, text in (("long", TEXT), ("short", OTHER)):
        inputs = [("features", FloatTensorType([None, X.shape[1]]))]
        alone = convert_lightgbm(
            lightgbm.Booster(model_str=text), initial_types=inputs, zipmap=False, target_opset=15
        ).SerializeToString()
        [expected] = onnxruntime.InferenceSession(alone).run(["probabilities"], {"features": made})
        [served] = session.run([output], {"features": made})
        assert served.tobytes() == expected.tobytes()
        assert len(np.unique(served[:, 1])) > 20


def test_float32_thresholds_decide_every_row_as_before() -> None:
    """On values one bit apart, where half a step decides."""
    rng = np.random.default_rng(4)
    steps = np.nextafter(np.float32(1), np.float32(2)) - np.float32(1)
    made = (1 + rng.integers(0, 64, (2_000, 3)) * steps).astype(np.float32)
    won = made[:, 0] + made[:, 1] > np.median(made[:, 0] + made[:, 1])
    options = {"objective": "binary", "verbosity": -1, "num_threads": 1, "min_data_in_bin": 1, "max_bin": 255}
    before = lightgbm.train(options, lightgbm.Dataset(made, label=won.astype(np.float32)), 20)

    text = exact_in_float32(before.model_to_string())

    assert (lightgbm.Booster(model_str=text).predict(made) == before.predict(made)).all()
    assert onnx_difference((text, text), to_onnx((text, text), 3), made) < PARITY_TOLERANCE
    thresholds = [
        float(each) for line in text.splitlines() if line.startswith("threshold=") for each in line[10:].split()
    ]
    assert thresholds
    assert all(np.float32(each) == each for each in thresholds)


def test_rewriting_changes_no_prediction_of_missing_values() -> None:
    made = hostile()
    plain = lightgbm.train(
        {"objective": "binary", "verbosity": -1, "num_threads": 1},
        lightgbm.Dataset(X, label=WON.astype(np.float32)),
        20,
    )

    rewritten = lightgbm.Booster(model_str=exact_in_float32(plain.model_to_string()))

    assert (rewritten.predict(made) == plain.predict(made)).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([300.0, 5_000.0]))
def test_calibrated_probabilities_never_fall_with_the_score(seed: int, n_eff: float) -> None:
    rng = np.random.default_rng(seed)
    raw = rng.random(2_000)
    calibrator = fit_calibrator(raw, rng.random(2_000) < raw**2, rng.uniform(0.1, 1, 2_000), n_eff)

    made = calibrator.apply(np.linspace(-1, 2, 500))

    assert (np.diff(made) >= 0).all()
    assert (np.diff(calibrator.x) > 0).all() if len(calibrator.x) > 1 else True
    assert 0 < made.min() <= made.max() < 1


@pytest.mark.parametrize("n_eff", [300.0, 5_000.0])
def test_calibration_finds_the_probability(n_eff: float) -> None:
    rng = np.random.default_rng(5)
    raw = rng.uniform(0.2, 0.8, 50_000)
    truth = 1 / (1 + np.exp(-(0.5 * np.log(raw / (1 - raw)) - 0.3)))
    calibrator = fit_calibrator(raw, rng.random(50_000) < truth, np.ones(50_000), n_eff)

    assert calibrator.apply(raw) == pytest.approx(truth, abs=0.03)


def test_scores_that_say_the_opposite_calibrate_to_the_base_rate() -> None:
    rng = np.random.default_rng(6)
    raw = rng.uniform(0.2, 0.8, 5_000)
    won = rng.random(5_000) < 1 - raw

    calibrator = fit_calibrator(raw, won, np.ones(5_000), 300.0)

    assert calibrator.apply(raw) == pytest.approx(np.full(5_000, won.mean()), abs=0.02)
    assert len(set(calibrator.y)) == 1


def test_a_logistic_regression_finds_its_coefficients() -> None:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(50_000, 2))
    won = rng.random(50_000) < 1 / (1 + np.exp(-(x @ [1.0, -0.5] + 0.2)))

    assert logistic(x, won, np.ones(50_000), 1e-6) == pytest.approx([1.0, -0.5, 0.2], abs=0.05)


def test_a_threshold_comes_from_a_plateau_and_not_from_a_peak() -> None:
    grid = thresholds_of(RULE)
    per_day = [0, 0, 1, 2, 3, 3, 2, 0, 0, 0, 99]
    trades = [900.0] * 10 + [50.0]

    threshold, how = plateau(grid, [float(each) for each in per_day], trades, RULE)

    assert grid[0] == pytest.approx(0.57)
    assert threshold == pytest.approx((grid[4] + grid[5]) / 2)
    assert how == "median of the best 2 of 10 thresholds"


def test_with_few_trades_nothing_is_chosen() -> None:
    threshold, how = plateau(thresholds_of(RULE), [5.0] * 11, [30.0] * 11, RULE)

    assert threshold == pytest.approx(RULE.break_even + 0.02)
    assert "fewer than 200 trades" in how


def test_without_lightgbm_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)

    with pytest.raises(NeedsPerson, match=r"pip install 'perpline\[ml\]'"):
        fit.lightgbm()


def test_without_libgomp_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> None:
            if name == "lightgbm":
                raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.delitem(sys.modules, "lightgbm", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])

    with pytest.raises(NeedsPerson, match="apt install libgomp1"):
        fit.lightgbm()
