"""The rows that a model learns from and is judged by: feature vectors with what became of the trades."""

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
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

LEAST_UNIVERSE_SHARE = 0.9
"""Of the symbols, without which a minute is not decided live either (`signals.policy`, features.md 1.6)."""
NO_MINUTES: Ints = np.zeros(0, np.int64)


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
    thin: int = 0
    """Rows left out because fewer than nine of ten symbols had their minute."""

    def __len__(self) -> int:
        return len(self.times)

    @property
    def won(self) -> Mask:
        """What the heads are asked: whether a trade earned more than it cost, bool[n, 2]."""
        won: Mask = self.net > 0
        return won

    def digest(self) -> str:
        """Changes with any row, and with what became of its trades."""
        made = blake2b(digest_size=16)
        for values in (self.symbol, self.times, self.ends, self.net, self.unique):
            made.update(np.ascontiguousarray(values).data)
        return made.hexdigest()

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
    """Rows that have a label and every critical feature: those that live would have asked about.

    Where the features compare symbols, also at least nine of ten symbols in their minute, as live wants.
    """
    symbols = tuple(sorted(symbol for symbol in dataset if symbol in labels))
    at = [names.index(name) for name in critical]
    few = thin_minutes([times for times, _ in dataset.values()]) if compares_symbols(names) else NO_MINUTES
    thin = 0
    parts: list[dict[str, NDArray[Any]]] = []
    for index, symbol in enumerate(symbols):
        made, (times, features) = labels[symbol], dataset[symbol]
        if not np.array_equal(made.times, times):
            raise ValueError(f"labels of {symbol} are of other times than its features")
        good = made.known.copy()
        if at:
            good &= np.isfinite(np.asarray(features[:, at])).all(axis=1)
        if len(few):
            alone = np.isin(times, few)
            thin += int((good & alone).sum())
            good &= ~alone
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
        empty = [name for name, place in zip(critical, at, strict=True) if not _ever(dataset, place)]
        if empty:
            raise NeedsPerson(
                f"there is no value of {', '.join(empty[:5])}: a table that it is made of is empty, or the candles "
                "tell prices and volume alone (--schema ohlcv)"
            )
        raise NeedsPerson("no row has both a label and its critical features: too little history, or holes in it")
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    sources = [dataset[symbol][1] for symbol in symbols]
    return Examples(symbols=symbols, names=names, sources=sources, thin=thin, **columns)


def _ever(dataset: Mapping[str, tuple[Ints, Vectors]], column: int) -> bool:
    return any(bool(np.isfinite(features[:, column]).any()) for _, features in dataset.values())


def compares_symbols(names: Sequence[str]) -> bool:
    """Whether a column of group K is among these."""
    return any(feature.group == "K" for feature in CATALOGUE if feature.name in names)


def thin_minutes(times: Sequence[Ints]) -> Ints:
    """Close times (ms) at which fewer than nine of ten symbols have a row, of those that have begun by then and not
    ended yet. `times`: the ascending close times of each symbol's rows."""
    there = [each for each in times if len(each)]
    if not there:
        return NO_MINUTES
    minutes, present = np.unique(np.concatenate(there), return_counts=True)
    begun = np.searchsorted(np.sort([each[0] for each in there]), minutes, side="right")
    ended = np.searchsorted(np.sort([each[-1] for each in there]), minutes, side="left")
    few: Ints = minutes[present < LEAST_UNIVERSE_SHARE * (begun - ended)]
    return few
