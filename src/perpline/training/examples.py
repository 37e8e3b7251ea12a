"""The rows that a model learns from and is judged by: feature vectors with what became of the trades."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from perpline.common.errors import NeedsPerson
from perpline.features.catalogue import CATALOGUE
from perpline.training.labels import Floats, Ints, Labels, uniqueness

Vectors = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Examples(Struct):
    """Labelled rows of all symbols, a symbol's in one run, each run ascending by time. [n] or [n, 2] (long, short)."""

    symbols: tuple[str, ...]
    names: tuple[str, ...]
    """The feature columns."""
    symbol: NDArray[np.int32]
    """Index into `symbols`."""
    times: Ints
    ends: Ints
    """When both sides' trades were over: until then the row's labels are not known."""
    reason: NDArray[np.int8]
    net: Floats
    gross: Floats
    side_ends: Ints
    unique: Floats
    """Average uniqueness of each side's label among all rows, in (0, 1]."""
    sources: list[Vectors]
    """The features of each symbol, memory-mapped: only the rows that are asked for are read."""
    source_row: Ints

    def __len__(self) -> int:
        return len(self.times)

    @property
    def won(self) -> Mask:
        """What the heads are asked: whether a trade earned more than it cost, bool[n, 2]."""
        won: Mask = self.net > 0
        return won

    def features(self, rows: Ints | Mask) -> Vectors:
        """float32 [len(rows), len(names)] of these rows, which ascend."""
        at = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        gathered = np.empty((len(at), len(self.names)), np.float32)
        for index, source in enumerate(self.sources):
            mine = self.symbol[at] == index
            gathered[mine] = source[self.source_row[at[mine]]]
        return gathered

    def column(self, name: str) -> NDArray[np.float32] | None:
        """One feature of all rows, None where the schema does not have it."""
        if name not in self.names:
            return None
        at = self.names.index(name)
        gathered = np.empty(len(self), np.float32)
        for index, source in enumerate(self.sources):
            mine = self.symbol == index
            gathered[mine] = source[self.source_row[mine], at]
        return gathered

    def thinned(self, rows: Mask, every: int, rng: np.random.Generator) -> Mask:
        """One of `every` of these rows for each symbol, beginning at a random one of the first (features.md 2.3)."""
        kept = np.zeros(len(self), np.bool_)
        for index in range(len(self.symbols)):
            mine = np.flatnonzero(rows & (self.symbol == index))
            kept[mine[int(rng.integers(every)) :: every]] = True
        return kept


def read_dataset(folder: Path) -> tuple[Mapping[str, Any], dict[str, tuple[Ints, Vectors]]]:
    """The manifest of a dataset and of each symbol times i8[n] and features f4[n, F], memory-mapped.

    Raises NeedsPerson where the folder is not what `perpline features build` writes.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        made = {}
        for symbol in manifest["symbols"]:
            times = np.load(folder / f"{symbol}.times.npy", mmap_mode="r")
            features = np.load(folder / f"{symbol}.features.npy", mmap_mode="r")
            if features.shape != (len(times), len(manifest["features"])) or features.dtype != np.float32:
                raise ValueError(f"{symbol}: {features.shape} {features.dtype} do not fit {len(times)} times")
            made[symbol] = (times, features)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NeedsPerson(f"{folder} is no dataset: {error}") from error
    return manifest, made


def feature_names(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns of a dataset in order."""
    return tuple(each if isinstance(each, str) else each["name"] for each in manifest["features"])


def critical_names(names: Sequence[str]) -> tuple[str, ...]:
    """Of these columns those without which no model is asked."""
    return tuple(feature.name for feature in CATALOGUE if feature.critical and feature.name in names)


def join(
    dataset: Mapping[str, tuple[Ints, Vectors]],
    labels: Mapping[str, Labels],
    names: tuple[str, ...],
    critical: Sequence[str],
) -> Examples:
    """Rows that have a label and every critical feature: those that live would have asked about."""
    symbols = tuple(sorted(symbol for symbol in dataset if symbol in labels))
    at = [names.index(name) for name in critical]
    parts: list[dict[str, NDArray[Any]]] = []
    for index, symbol in enumerate(symbols):
        made, (times, features) = labels[symbol], dataset[symbol]
        if not np.array_equal(made.times, times):
            raise ValueError(f"labels of {symbol} are of other times than its features")
        good = made.known.copy()
        if at:
            good &= np.isfinite(np.asarray(features[:, at])).all(axis=1)
        rows = np.flatnonzero(good)
        unique = [uniqueness(made.times[rows], made.ends[rows, side]) for side in (0, 1)]
        parts.append(
            {
                "symbol": np.full(len(rows), index, np.int32),
                "times": np.asarray(times)[rows],
                "ends": made.ends[rows].max(axis=1),
                "reason": made.reason[rows],
                "net": made.net[rows],
                "gross": made.gross[rows],
                "side_ends": made.ends[rows],
                "unique": np.stack(unique, axis=1),
                "source_row": rows,
            }
        )
    if not parts or not sum(len(part["times"]) for part in parts):
        raise NeedsPerson("no row has both a label and its critical features: too little history, or holes in it")
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Examples(symbols=symbols, names=names, sources=[dataset[symbol][1] for symbol in symbols], **columns)
