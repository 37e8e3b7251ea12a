"""The feature list as data: what each column of a vector means, how far it looks back and when it has no value.

Names, formulas and rules are those of the catalogue this project was specified by: groups A (returns and momentum),
B (volatility), E (volume), F (taker flow). Notation: i = 0 is the minute that closed at T; k_i the log return of minute
i in units of 2**-30, clipped to ±2**28 (±25 %); q, v, b quote volume, volume and taker-buy volume; f = 2b - v;
S_W[x] and M_W[x] sum and mean of the last W minutes; σ_W = sqrt(M_W[k²]) / 2**30, the volatility of a minute around
zero.
"""

import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import Literal

from msgspec import Struct

NanRule = Literal["N1", "N3"]
"""N1: no value until `lookback_min` contiguous minutes are held, never a partial window. N3: with a zero denominator a
ratio is 0 if its numerator is 0 too, and has no value otherwise; the logarithm of 0 has no value either. Never inf."""

VOLUME_UNITS = 1_000
"""Volumes are summed as integers in thousandths of the base unit."""
QUOTE_UNITS = 100
"""Quote volumes are summed as integers in hundredths of the quote unit."""
RETURN_CLIP = 1 << 28
SQUARE_SHIFT = 5
"""Squares are taken of k >> 5, so that their sums fit 64 bits even if every return sits at the clip."""
KERNEL_ABI = 1
"""Part of the schema hash; changed when the arithmetic below the formulas changes."""


class Feature(Struct, frozen=True, kw_only=True):
    """One column. A change of its formula is a new `version`, and with it a new schema hash."""

    name: str
    version: int = 1
    group: str
    formula: str
    inputs: tuple[str, ...]
    lookback_min: int
    """Contiguous minutes that must be held, the one that closed at T included."""
    clip: tuple[float, float] | None = None
    nan: tuple[NanRule, ...]
    critical: bool = False
    """Whether a model should not be asked where this has no value."""
    dtype: Literal["f32"] = "f32"


_RETURNS = ("kline1m.close",)
_VOLUME = ("kline1m.quote_volume",)
_FLOW = ("kline1m.volume", "kline1m.taker_buy_volume")

CATALOGUE: tuple[Feature, ...] = (
    *(
        Feature(
            name=f"ret_{minutes}",
            group="A",
            formula=f"log return of the last {minutes} min: S_{minutes}[k] / 2**30",
            inputs=_RETURNS,
            lookback_min=minutes + 1,
            nan=("N1",),
        )
        for minutes in (1, 5, 15)
    ),
    *(
        Feature(
            name=f"zret_{minutes}",
            group="A",
            formula=f"ret_{minutes} / (σ_240 · sqrt({minutes}))",
            inputs=_RETURNS,
            lookback_min=241,
            clip=(-8.0, 8.0),
            nan=("N1", "N3"),
            critical=minutes == 15,
        )
        for minutes in (5, 15)
    ),
    Feature(
        name="eff_60",
        group="A",
        formula="abs(S_60[k]) / S_60[abs k]: 1 for a straight line, 0 for a walk that came back (Kaufman's efficiency)",
        inputs=_RETURNS,
        lookback_min=61,
        nan=("N1", "N3"),
    ),
    *(
        Feature(
            name=f"rv_{minutes}",
            group="B",
            formula=f"ln(σ_{minutes} + 1e-6)",
            inputs=_RETURNS,
            lookback_min=minutes + 1,
            nan=("N1",),
        )
        for minutes in (15, 60)
    ),
    Feature(
        name="rvr_15_240",
        group="B",
        formula="ln(σ_15 / σ_240)",
        inputs=_RETURNS,
        lookback_min=241,
        clip=(-5.0, 5.0),
        nan=("N1", "N3"),
    ),
    Feature(
        name="vlr_1_60",
        group="E",
        formula="ln((q_0 + 1) / (M_60[q] + 1)), q in hundredths",
        inputs=_VOLUME,
        lookback_min=60,
        clip=(-5.0, 5.0),
        nan=("N1",),
    ),
    Feature(
        name="vlr_15_240",
        group="E",
        formula="ln((M_15[q] + 1) / (M_240[q] + 1)), q in hundredths",
        inputs=_VOLUME,
        lookback_min=240,
        clip=(-5.0, 5.0),
        nan=("N1",),
    ),
    *(
        Feature(
            name=f"tbi_{minutes}",
            group="F",
            formula=f"taker imbalance: S_{minutes}[f] / S_{minutes}[v], 1 if takers only bought, -1 if they only sold",
            inputs=_FLOW,
            lookback_min=minutes,
            nan=("N1", "N3"),
            critical=minutes in (15, 60),
        )
        for minutes in (5, 15, 60)
    ),
)
"""Every feature that `live` computes, in the order of its columns."""


def schema_hash(features: Sequence[Feature]) -> str:
    """32 hex digits that change with whatever changes the meaning of a vector: names, order, versions, rules, units.

    Not with the words of a formula: they may be put better, and `version` says when the formula itself changed.
    """
    schema = {
        "features": [
            [feature.name, feature.version, feature.dtype, feature.lookback_min, feature.clip, feature.nan]
            for feature in features
        ],
        "kernel_abi": KERNEL_ABI,
        "quanta": {
            "log_price": 30,
            "volume": VOLUME_UNITS,
            "quote_volume": QUOTE_UNITS,
            "return_clip": RETURN_CLIP,
            "square_shift": SQUARE_SHIFT,
        },
    }
    text = json.dumps(schema, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=16).hexdigest()
