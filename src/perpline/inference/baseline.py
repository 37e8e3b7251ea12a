"""The model that perpline has before any was trained: a logistic rule with its coefficients written down.

Nobody fitted it to anything and nobody claims that it earns money. It says one thing, that minutes dominated by takers
of one side are followed in their direction, which is the pattern that the simulated exchange can plant a drift behind
(`simulate --edge`). Where takers are balanced it says "even", and after costs that is no trade.
"""

import json
import math
from hashlib import blake2b

import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from perpline.features.catalogue import CATALOGUE, Feature, schema_hash


class LabelRule(Struct, frozen=True):
    """What a probability is about: that the target is touched before the stop, from the mark price at T."""

    tp_pct: float
    """Distance of the target in percent of the reference price."""
    sl_pct: float
    horizon_s: int
    cost_bp: float
    """Fees and slippage of the round trip, basis points."""

    @property
    def break_even(self) -> float:
        """The probability at which a trade is worth nothing: (sl + cost) / (tp + sl)."""
        return (self.sl_pct + self.cost_bp / 100) / (self.tp_pct + self.sl_pct)


def label_hash(rule: LabelRule) -> str:
    """32 hex digits that change with the rule."""
    text = json.dumps(structs.asdict(rule), sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=16).hexdigest()


class Baseline:
    """A model as the engine wants one: what it was made for, its thresholds, and `predict`."""

    model_id = "baseline-1"
    features: tuple[Feature, ...] = CATALOGUE
    """The whole vector, though three columns decide: what is stored with a prediction can be learned from later."""
    schema_hash = schema_hash(CATALOGUE)
    critical: tuple[str, ...] = tuple(feature.name for feature in CATALOGUE if feature.critical)
    """Features without which there is no prediction."""
    rule = LabelRule(tp_pct=1.0, sl_pct=1.0, horizon_s=14_400, cost_bp=14.0)
    label_hash = label_hash(rule)
    threshold = 0.58
    """Least probability of a trade: the break-even of the rule, 0.57, and a margin of a point."""
    ev_min_bp = 0.0

    def predict(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """p_long, p_short [n, 2] for vectors [n, len(features)]; NaN where a critical feature is NaN.

        p_long = logistic(z), p_short = logistic(-z), z = 2.5 e(tbi_15) + 0.5 e(tbi_60) + 0.03 clip(zret_15, ±2), where
        e(x) is what an imbalance has beyond ±0.2. With both imbalances inside ±0.2, p stays within 0.485 to 0.515;
        0.58 takes a 15-minute imbalance of ±0.31 to ±0.35, depending on whether the price went along.
        """
        return np.array([_probabilities(row) for row in vectors[:, _USED].tolist()], np.float64).reshape(-1, 2)


_USED = [[feature.name for feature in CATALOGUE].index(name) for name in ("tbi_15", "tbi_60", "zret_15")]
_QUIET = 0.2


def _probabilities(row: list[float]) -> tuple[float, float]:
    if any(map(math.isnan, row)):
        return math.nan, math.nan
    tbi_15, tbi_60, zret_15 = row
    z = 2.5 * _excess(tbi_15) + 0.5 * _excess(tbi_60) + 0.03 * max(-2.0, min(2.0, zret_15))
    return 1 / (1 + math.exp(-z)), 1 / (1 + math.exp(z))


def _excess(imbalance: float) -> float:
    return math.copysign(max(abs(imbalance) - _QUIET, 0.0), imbalance)
