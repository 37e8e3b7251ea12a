"""What a model has to beat, through the same rows, fills and costs (features.md 2.7)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perpline.training.evaluate import Trades
from perpline.training.examples import Examples, Mask, Vectors
from perpline.training.fit import Predict, TreeParams, fit_both, logistic, predictor
from perpline.training.labels import Floats, Ints
from perpline.training.walk import Fit

LOGISTIC_FEATURES = (
    "zret_5", "zret_15", "zret_60", "zret_240", "gap_60", "gap_240", "slope_30", "slope_240", "wema_20", "wema_100",
    "rvr_15_240", "rvr_60_1440", "vlr_1_60", "vlr_15_240", "tbz_15", "tbi_15", "tbi_60", "prem_z", "doi_z", "lsr_g_z",
)  # fmt: skip
"""The z-like columns; those that the schema does not have are left out."""
SMALL_FEATURES = (
    "zret_15", "zret_60", "rv_60", "rv_240", "rvr_15_240", "rsv_60", "rsv_240", "vlr_15_240", "tbi_15", "tbi_60",
    "fund_est", "prem_0",
)  # fmt: skip
SMALL = TreeParams(trees=60, leaves=7)
RANDOM_DRAWS = 1000


def simple(examples: Examples, rows: Ints, first_judged: int) -> dict[str, NDArray[np.int8]]:
    """The side that each rule takes at these rows: 0 long, 1 short, -1 none. `first_judged` (ms): rows before it may be
    looked at to find what is extreme."""
    none = np.full(len(rows), -1, np.int8)
    made = {"always flat": none, "always long": np.zeros_like(none), "always short": np.ones_like(none)}
    for name in ("zret_60", "zret_15", "ret_60", "ret_15"):
        if (column := examples.column(name)) is not None:
            trend = np.nan_to_num(column[rows])
            made[f"momentum ({name})"] = np.where(trend > 0, 0, np.where(trend < 0, 1, -1)).astype(np.int8)
            made[f"reversal ({name})"] = np.where(trend > 0, 1, np.where(trend < 0, 0, -1)).astype(np.int8)
            break
    if (funding := examples.column("fund_est")) is not None:
        past = funding[(examples.times < first_judged) & np.isfinite(funding)]
        if len(past):
            made["funding carry"] = np.where(funding[rows] >= np.quantile(past, 0.9), 1, -1).astype(np.int8)
    return made


def logistic_regression(examples: Examples, weight: Floats, every: int, seed: int) -> tuple[Fit, tuple[str, ...]]:
    """A ridge logistic regression on up to 20 z-like columns, standardised by its training rows, missing as mean."""
    names, at = _present(examples, LOGISTIC_FEATURES)

    def fit(train: Mask, fold: int) -> Predict:
        rows = examples.thinned(train, every, np.random.default_rng([seed, fold]))
        raw = examples.features(rows)[:, at].astype(np.float64)
        there = np.isfinite(raw)
        counts = np.maximum(there.sum(axis=0), 1)
        mean = np.where(there, raw, 0).sum(axis=0) / counts
        deviation = np.sqrt(np.where(there, (raw - mean) ** 2, 0).sum(axis=0) / counts) + 1e-12

        def design(features: Vectors) -> Floats:
            columns = features[:, at].astype(np.float64)
            scaled: Floats = np.where(np.isfinite(columns), np.clip((columns - mean) / deviation, -8, 8), 0.0)
            return scaled

        known = design(examples.features(rows))
        beta = [logistic(known, examples.won[rows, side], weight[rows, side], ridge=10.0) for side in (0, 1)]

        def predict(features: Vectors) -> Floats:
            x = design(features)
            return np.stack([1 / (1 + np.exp(-(x @ each[:-1] + each[-1]))) for each in beta], axis=1)

        return predict

    return fit, names


def small_trees(examples: Examples, weight: Floats, every: int, seed: int) -> tuple[Fit, tuple[str, ...]]:
    """LightGBM with few leaves on up to 12 columns."""
    names, at = _present(examples, SMALL_FEATURES)

    def fit(train: Mask, fold: int) -> Predict:
        rows = examples.thinned(train, every, np.random.default_rng([seed, fold]))
        trees = predictor(fit_both(examples, rows, weight, SMALL, seed + 100 * fold, columns=at))

        def predict(features: Vectors) -> Floats:
            return trees(np.ascontiguousarray(features[:, at]))

        return predict

    return fit, names


def _present(examples: Examples, wanted: Sequence[str]) -> tuple[tuple[str, ...], list[int]]:
    names = tuple(name for name in wanted if name in examples.names) or examples.names[:20]
    return names, [examples.names.index(name) for name in names]


def random_entries(examples: Examples, rows: Ints, trades: Trades, rng: np.random.Generator) -> dict[str, Any] | None:
    """Net result of as many trades at random rows of the same hours of day, `RANDOM_DRAWS` times: their mean in bp per
    trade, and the share of draws that did at least as well (the p-value). None without trades."""
    if not len(trades):
        return None
    hour = (examples.times[rows] // 3_600_000) % 24
    order = np.argsort(hour, kind="stable")
    begin, end = np.searchsorted(hour[order], np.arange(24)), np.searchsorted(hour[order], np.arange(24), side="right")
    mine = (trades.begin // 3_600_000) % 24
    at_once = max(1, 2_000_000 // len(trades))
    means = []
    for first in range(0, RANDOM_DRAWS, at_once):
        draws = min(at_once, RANDOM_DRAWS - first)
        picked = rng.integers(0, 1 << 62, (draws, len(trades))) % (end - begin)[mine] + begin[mine]
        means.append(examples.net[rows[order[picked]], trades.column].mean(axis=1) * 1e4)
    drawn = np.concatenate(means)
    actual = float(trades.net.mean() * 1e4)
    return {
        "draws": RANDOM_DRAWS,
        "net_bp_per_trade": float(drawn.mean()),
        "low": float(np.percentile(drawn, 2.5)),
        "high": float(np.percentile(drawn, 97.5)),
        "p_value": float((1 + (drawn >= actual).sum()) / (1 + RANDOM_DRAWS)),
    }
