"""From rows to probabilities: boosted trees, their calibration, the threshold of a trade, and the ONNX file.

LightGBM is imported here and nowhere else, and only when a model is fitted: the live process has no use for it.
"""

import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from perpline.common.errors import NeedsPerson
from perpline.domain.exit_rule import LabelRule
from perpline.training.examples import Examples, Mask, Vectors
from perpline.training.labels import Floats

ISOTONIC_FROM = 1000
"""Least effective sample size for isotonic calibration; with less, two parameters are all that can be learned."""
SLOPE_PRIOR, OFFSET_PRIOR = 1.0, 20.0
"""Precisions of Platt's two parameters before anything is seen: the slope is drawn towards zero, the mean towards that
of the scores, which was learned from more rows. A fold of a hundred effective rows has any slope, and a market that
rose in it would make longs of everything."""
PARITY_TOLERANCE = 1e-5
"""Largest difference of a probability between LightGBM (float64 sums) and ONNX Runtime (float32 sums)."""
MIN_TRADES = 200
FALLBACK_MARGIN = 0.02
"""Above break-even, where too few trades were seen to choose a threshold by."""

HEADS = ("long", "short")
"""Outputs of the ONNX graph."""

Predict = Callable[[Vectors], Floats]
"""Raw probabilities f8[n, 2] of f4[n, F], long then short."""


class TreeParams(Struct, frozen=True, kw_only=True):
    """What LightGBM is told. Smaller and more regularised than usual: effective rows are a hundredth of the rows."""

    trees: int = 150
    leaves: int = 15
    learning_rate: float = 0.03
    min_rows: int = 100
    """Least rows of a leaf; at least half a percent of all rows is taken."""
    feature_fraction: float = 0.4
    l2: float = 10.0


class Calibrator(Struct, frozen=True):
    """Raw score to probability: linear between knots, constant beyond, never falling."""

    x: list[float]
    y: list[float]

    def apply(self, raw: Floats) -> Floats:
        """Calibrated probabilities of the same shape."""
        p: Floats = np.interp(raw, self.x, self.y)
        return p


def lightgbm() -> ModuleType:
    """The library. Raises NeedsPerson where it or its OpenMP runtime is missing, saying what to install."""
    try:
        import lightgbm as library
    except ImportError as error:
        raise NeedsPerson("training needs LightGBM: pip install 'perpline[ml]'") from error
    except OSError as error:  # the wheel is there, the system's libgomp.so.1 is not
        raise NeedsPerson(f"LightGBM does not load ({error}): apt install libgomp1") from error
    module: ModuleType = library
    return module


def fit_trees(features: Vectors, won: Mask, weight: Floats, params: TreeParams, seed: int) -> str:
    """A binary booster as LightGBM's model text, the same for the same rows, params and seed.

    Thresholds are rounded down to float32, which changes no decision about float32 rows and lets ONNX hold them.
    """
    library = lightgbm()
    options = {
        "objective": "binary",
        "num_leaves": params.leaves,
        "learning_rate": params.learning_rate,
        "min_data_in_leaf": max(params.min_rows, len(won) // 200),
        "feature_fraction": params.feature_fraction,
        "lambda_l2": params.l2,
        "num_threads": 1,
        "max_bin": 127,
        "deterministic": True,
        "force_row_wise": True,
        "seed": seed,
        "verbosity": -1,
    }
    rows = library.Dataset(features, label=won.astype(np.float32), weight=weight, free_raw_data=True)
    booster = library.train(options, rows, num_boost_round=params.trees)
    return exact_in_float32(booster.model_to_string())


def exact_in_float32(text: str) -> str:
    """The model text with thresholds that float32 holds, deciding every float32 row as before.

    A threshold is rounded towards minus infinity: no float32 lies between. Where LightGBM saw no missing value it would
    read NaN as zero; the side on which zero falls is written down instead, which ONNX can express.
    """

    def rewrite(tree: re.Match[str]) -> str:
        thresholds = np.array(tree["thresholds"].split(), np.float64)
        narrow = thresholds.astype(np.float32)
        above = narrow.astype(np.float64) > thresholds
        narrow[above] = np.nextafter(narrow[above], np.float32(-np.inf))
        kinds = []
        for kind, threshold in zip(map(int, tree["kinds"].split()), thresholds.tolist(), strict=True):
            treats_nan_as_zero = kind & 0b1100 == 0
            kinds.append((0b1000 | (0b10 if threshold >= 0 else 0)) if treats_nan_as_zero else kind)
        values = " ".join(repr(float(value)) for value in narrow)
        return f"threshold={values}\ndecision_type={' '.join(map(str, kinds))}\n"

    changed = re.sub(r"threshold=(?P<thresholds>[^\n]*)\ndecision_type=(?P<kinds>[^\n]*)\n", rewrite, text)
    # The sizes of the trees in bytes, which are no longer right, are optional to LightGBM's reader.
    return re.sub(r"\ntree_sizes=[^\n]*", "", changed)


def predictor(texts: tuple[str, str]) -> Predict:
    """The two boosters as one function."""
    library = lightgbm()
    boosters = [library.Booster(model_str=text) for text in texts]

    def predict(features: Vectors) -> Floats:
        if not len(features):
            return np.zeros((0, 2))
        return np.stack([booster.predict(features, num_threads=2) for booster in boosters], axis=1)

    return predict


def to_onnx(texts: tuple[str, str], columns: int) -> bytes:
    """Both boosters as one ONNX graph, so that a close costs one call.

    Input `features` float32 [n, columns]; outputs `long` and `short` float32 [n, 2], of which column 1 is P(won).
    """
    both, short = (_head_graph(text, name, columns) for text, name in zip(texts, HEADS, strict=True))
    both.graph.node.extend(short.graph.node)
    both.graph.initializer.extend(short.graph.initializer)
    both.graph.output.extend(short.graph.output)
    # onnxmltools lists them in the order of a set of strings, another one in every process.
    opsets = sorted(both.opset_import, key=lambda each: str(each.domain))
    del both.opset_import[:]
    both.opset_import.extend(opsets)
    made: bytes = both.SerializeToString(deterministic=True)
    return made


def _head_graph(text: str, name: str, columns: int) -> Any:
    """The graph of one head with the single output `name`; its inner names begin with it too."""
    from onnx.utils import Extractor
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    whole = convert_lightgbm(
        lightgbm().Booster(model_str=text),
        name="perpline",
        initial_types=[("features", FloatTensorType([None, columns]))],
        zipmap=False,
        target_opset=15,
    )
    model = Extractor(whole).extract_model(["features"], ["probabilities"])  # nobody asks which class is likelier
    kept = {"features": "features", "probabilities": name}
    for node in model.graph.node:
        node.name = ""
        node.input[:] = [kept.get(each, f"{name}_{each}") for each in node.input]
        node.output[:] = [kept.get(each, f"{name}_{each}") for each in node.output]
    for constant in model.graph.initializer:
        constant.name = f"{name}_{constant.name}"
    model.graph.output[0].name = name
    del model.graph.value_info[:]
    return model


def onnx_difference(texts: tuple[str, str], onnx: bytes, rows: Vectors) -> float:
    """The largest difference of P(won) between LightGBM and ONNX Runtime over these rows and both heads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    served = np.stack([answer[:, 1] for answer in session.run(list(HEADS), {"features": rows})], axis=1)
    return float(np.abs(served - predictor(texts)(rows)).max())


def importance(text: str) -> list[float]:
    """How much each column helped, as its share of the gain of all splits."""
    gain = np.asarray(lightgbm().Booster(model_str=text).feature_importance("gain"), np.float64)
    shares: list[float] = (gain / max(gain.sum(), 1e-300)).tolist()
    return shares


def fit_both(
    examples: Examples,
    rows: Mask,
    weight: Floats,
    params: TreeParams,
    seed: int,
    columns: list[int] | None = None,
) -> tuple[str, str]:
    """Model texts of the long and the short head, of some columns or all; `weight` is f8[len(examples), 2]."""
    features, won = examples.features(rows), examples.won[rows]
    if columns is not None:
        features = np.ascontiguousarray(features[:, columns])
    long, short = (
        fit_trees(features, won[:, side], _mean_one(weight[rows, side]), params, seed + side) for side in (0, 1)
    )
    return long, short


def _mean_one(weight: Floats) -> Floats:
    normal: Floats = weight / weight.mean()
    return normal


def fit_calibrator(raw: Floats, won: Mask, weight: Floats, n_eff: float) -> Calibrator:
    """Fitted on out-of-sample scores: isotonic from `ISOTONIC_FROM` effective rows, Platt's two parameters below.

    raw, won, weight: [n] of one head. Scores that say nothing, or the opposite, calibrate to the base rate.
    """
    if n_eff >= ISOTONIC_FROM:
        return _isotonic(raw, won, weight, bins=int(min(50, n_eff // 50)))
    return _platt(raw, won, weight * (n_eff / weight.sum()))


def _isotonic(raw: Floats, won: Mask, weight: Floats, bins: int) -> Calibrator:
    """Pool adjacent violators over bins of equal weight: a step on a handful of rows would be certain of nothing."""
    order = np.argsort(raw, kind="stable")
    share = np.cumsum(weight[order]) / weight.sum()
    group = np.minimum((share * bins).astype(np.int64), bins - 1)
    size = np.bincount(group, weight[order], bins)
    filled = size > 0
    x = (np.bincount(group, raw[order] * weight[order], bins)[filled] / size[filled]).tolist()
    y = (np.bincount(group, won[order] * weight[order], bins)[filled] / size[filled]).tolist()
    pools: list[list[float]] = []  # mean, weight, count
    for mean, mass in zip(y, size[filled].tolist(), strict=True):
        pools.append([mean, mass, 1])
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            last, before = pools.pop(), pools.pop()
            mass = before[1] + last[1]
            pools.append([(before[0] * before[1] + last[0] * last[1]) / mass, mass, before[2] + last[2]])
    levels = [pool[0] for pool in pools for _ in range(int(pool[2]))]
    return _knots(x, levels)


def _platt(raw: Floats, won: Mask, weight: Floats) -> Calibrator:
    score = _logit(raw)
    mean = float(np.average(score, weights=weight))
    slope, constant = logistic(
        (score - mean)[:, None], won, weight, SLOPE_PRIOR, around=mean, ridge_constant=OFFSET_PRIOR
    )
    x = np.linspace(float(score.min()), float(score.max()), 33)
    y = 1 / (1 + np.exp(-(max(slope, 0.0) * (x - mean) + constant + mean)))
    return _knots((1 / (1 + np.exp(-x))).tolist(), y.tolist())


def _knots(x: list[float], y: list[float]) -> Calibrator:
    """Strictly ascending x, y kept off 0 and 1, which nothing here can be sure of."""
    kept = [at for at in range(len(x)) if at == 0 or x[at] > x[at - 1]]
    return Calibrator([x[at] for at in kept], [min(max(y[at], 1e-4), 1 - 1e-4) for at in kept])


def _logit(p: Floats) -> Floats:
    bounded = np.clip(p, 1e-6, 1 - 1e-6)
    logit: Floats = np.log(bounded / (1 - bounded))
    return logit


def logistic(
    features: Floats,
    won: Mask,
    weight: Floats,
    ridge: float,
    *,
    around: float = 0.0,
    ridge_constant: float = 1e-9,
) -> NDArray[np.float64]:
    """Coefficients of a logistic regression with the constant last, by Newton's method.

    The log odds are `around` + features · coefficients; `ridge` and `ridge_constant` draw the coefficients to zero.
    """
    design = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    penalty = np.full(design.shape[1], ridge)
    penalty[-1] = ridge_constant
    beta = np.zeros(design.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(around + design @ beta, -30, 30)))
        gradient = design.T @ (weight * (won - p)) - penalty * beta
        curvature = (design * (weight * p * (1 - p))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        beta += np.clip(step, -5, 5)
        if np.abs(step).max() < 1e-9:
            break
    return beta


def thresholds_of(rule: LabelRule) -> list[float]:
    """The grid that a threshold is chosen from: break-even and up to ten points above it."""
    return [rule.break_even + step / 100 for step in range(11)]


def plateau(grid: list[float], per_day: list[float], trades: list[float], rule: LabelRule) -> tuple[float, str]:
    """The threshold, and how it was found: the median of the best quarter of the grid by earnings per day.

    A peak is luck, a plateau less so. Points with fewer than `MIN_TRADES` effective trades do not count; with none left
    it is break-even and a margin, which nothing was fitted to.
    """
    able = [at for at in range(len(grid)) if trades[at] >= MIN_TRADES]
    if not able:
        return rule.break_even + FALLBACK_MARGIN, f"break-even + {FALLBACK_MARGIN}: fewer than {MIN_TRADES} trades"
    best = sorted(able, key=lambda at: per_day[at], reverse=True)[: max(1, len(able) // 4)]
    return float(np.median([grid[at] for at in best])), f"median of the best {len(best)} of {len(able)} thresholds"
