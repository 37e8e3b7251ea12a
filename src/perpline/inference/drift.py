"""Whether the features and scores of today are still those the model was trained on.

PSI = Σ (a - e) ln(a / e) over the ten bins that each hold a tenth of the training rows and one for missing values: e
the share in training, a the share of a day. 0.1 and 0.25 are rules of thumb for independent rows; minutes are not, and
a day of a slow column differs by far more. So each column has a threshold of its own, what 99 % of training days stayed
below (features.md 3.4).
"""

from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from perpline.common.errors import NeedsPerson

BINS = 10
LEAST_SHARE = 1e-4
"""Shares below it count as this much, or one empty bin would make an infinite PSI."""
DAYS = 400
"""Training days that are compared with the whole, drawn at random where there are more."""
DAY_MS = 86_400_000
LEAST_MINUTES = 720
"""A day with fewer minutes is shown and judged by nobody: thresholds are of whole days."""
SIGNALS_LOW, SIGNALS_HIGH = 0.25, 4.0
"""Signals a day as a multiple of those in training, between which nobody needs to look."""

Vectors = NDArray[np.float32]
Counts = NDArray[np.int64]


class ColumnReference(Struct, frozen=True):
    """One column in training."""

    edges: list[float]
    """Bounds between the bins, ascending; fewer than nine where a value is so frequent that it fills several."""
    shares: list[float]
    """Of each bin, and of missing values last."""
    threshold: float
    """99 % of the training days had a smaller PSI."""
    missing_threshold: float
    """And a smaller share of missing values, or the same."""


class Reference(Struct, frozen=True):
    """psi.json: the model's features in their order, then its calibrated scores, long and short."""

    columns: list[ColumnReference]
    days: int
    signal_share: float | None = None
    """Share of rows with a probability that is enough for a signal."""


def psi_reference(
    features: Vectors,
    scores: NDArray[np.float64],
    days: NDArray[np.int64],
    signals: NDArray[np.bool_] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """What psi.json holds, as plain JSON values.

    features f4 [n, F] and scores f8 [n, 2] (calibrated) of the training rows, days i8 [n] a number for each row's UTC
    day in any order, signals [n] whether a row's probability is enough for a signal. Raises ValueError for no rows.
    """
    if not len(features):
        raise ValueError("no rows to describe")
    rng = np.random.default_rng(seed)
    numbers, day_of_row = np.unique(days, return_inverse=True)
    columns = [
        _reference(column, day_of_row, len(numbers), rng)
        for table in (features, scores)
        for column in np.asarray(table).T
    ]
    share = None if signals is None else float(np.mean(signals))
    values: dict[str, Any] = msgspec.to_builtins(Reference(columns, len(numbers), share))
    return values


def read_reference(data: bytes, columns: int) -> Reference:
    """The reference of a model with so many features, from its psi.json. Raises NeedsPerson."""
    try:
        reference = msgspec.json.decode(data, type=Reference)
    except (msgspec.DecodeError, RecursionError) as error:
        raise NeedsPerson(f"psi.json cannot be read: {error}") from None
    if len(reference.columns) != columns + 2:
        raise NeedsPerson(f"psi.json has {len(reference.columns)} columns for {columns} features and two scores")
    for number, column in enumerate(reference.columns):
        if len(column.shares) != len(column.edges) + 2 or np.any(np.diff(column.edges) <= 0):
            raise NeedsPerson(f"psi.json: column {number} has no ascending bins with a share each")
    return reference


class DriftWatch:
    """Counts a day's vectors and scores by bin, and says at any time how far they are from training.

    A day is one of market time, UTC. Counts begin with the process: `minutes` says how much of the day they cover.
    """

    def __init__(self, reference: Reference, names: list[str]) -> None:
        self._reference = reference
        self._names = [*names, "score_long", "score_short"]
        count = len(self._names)
        self._edges = np.full((count, BINS - 1), np.inf)
        for row, column in enumerate(reference.columns):
            self._edges[row, : len(column.edges)] = column.edges
        self._places = np.arange(count) * (BINS + 1)
        self._day: int | None = None
        self._today = _Day(count)
        self._before: dict[str, Any] | None = None

    def add(
        self, close_time: int, vectors: Vectors, scores: NDArray[np.float64], signals: int
    ) -> dict[str, Any] | None:
        """Count the rows of one batch; returns the facts of the day before when this is the first of a new one."""
        day = close_time // DAY_MS
        ended = None
        if self._day is not None and day > self._day:
            ended = self._before = self._facts(self._day, self._today)
            self._today = _Day(len(self._names))
        self._day = day
        rows = np.column_stack([vectors, scores])
        bins = (rows[:, :, None] > self._edges).sum(axis=2)
        bins[np.isnan(rows)] = BINS
        flat = np.bincount((bins + self._places).ravel(), minlength=self._today.counts.size)
        self._today.counts += flat.reshape(self._today.counts.shape)
        self._today.rows += len(rows)
        self._today.signals += signals
        self._today.minutes.add(close_time)
        return ended

    def facts(self) -> dict[str, Any]:
        """`today` and `yesterday`: see `_facts`; None where there is nothing of that day."""
        today = self._facts(self._day, self._today) if self._day is not None else None
        return {"today": today, "yesterday": self._before}

    def _facts(self, day: int, counted: "_Day") -> dict[str, Any]:
        """Of one day: rows, minutes, whether it is long enough to be judged, PSI and missing share by column, what
        drifts (those above their threshold), signals and how many would be usual."""
        psi, missing, over = {}, {}, []
        for name, column, counts in zip(self._names, self._reference.columns, counted.counts, strict=True):
            shares = np.concatenate([counts[: len(column.edges) + 1], counts[BINS:]]) / counted.rows
            psi[name] = round(_psi(shares, np.array(column.shares)), 4)
            missing[name] = round(float(shares[-1]), 4)
            if psi[name] > column.threshold or missing[name] > column.missing_threshold:
                over.append(name)
        share = self._reference.signal_share
        usual = None if share is None else share * counted.rows
        judged = len(counted.minutes) >= LEAST_MINUTES
        return {
            "day": int(day),
            "rows": counted.rows,
            "minutes": len(counted.minutes),
            "judged": judged,
            "psi": psi,
            "missing": missing,
            "drifting": over if judged else [],
            "signals": counted.signals,
            "signals_usual": None if usual is None else round(usual, 1),
            "signals_unusual": judged
            and usual is not None
            and usual >= 5
            and not SIGNALS_LOW * usual <= counted.signals <= SIGNALS_HIGH * usual,
        }


class _Day:
    def __init__(self, columns: int) -> None:
        self.counts: Counts = np.zeros((columns, BINS + 1), np.int64)
        self.rows = 0
        self.signals = 0
        self.minutes: set[int] = set()


def _reference(
    column: NDArray[Any], day_of_row: NDArray[np.intp], days: int, rng: np.random.Generator
) -> ColumnReference:
    values = np.asarray(column, np.float64)
    there = values[np.isfinite(values)]
    edges = np.unique(np.quantile(there, np.linspace(0, 1, BINS + 1)[1:-1])) if len(there) else np.empty(0)
    bins = np.searchsorted(edges, values, side="left")
    bins[np.isnan(values)] = len(edges) + 1
    width = len(edges) + 2
    by_day = np.bincount(day_of_row * width + bins, minlength=days * width).reshape(days, width)
    shares = by_day.sum(axis=0) / len(values)
    drawn = rng.choice(days, DAYS, replace=False) if days > DAYS else np.arange(days)
    day_shares = by_day[drawn] / by_day[drawn].sum(axis=1, keepdims=True)
    psi = [_psi(day, shares) for day in day_shares]
    return ColumnReference(
        [float(edge) for edge in edges],
        [float(share) for share in shares],
        float(np.quantile(psi, 0.99)),
        float(np.quantile(day_shares[:, -1], 0.99)),
    )


def _psi(actual: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    a, e = np.maximum(actual, LEAST_SHARE), np.maximum(expected, LEAST_SHARE)
    return float(np.sum((a - e) * np.log(a / e)))
