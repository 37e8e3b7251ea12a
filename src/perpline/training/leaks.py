"""Tests that a pipeline does not know the future, run on the data that is trained on (features.md 2.10).

L1, L13 and L6 are exact: one cell that changes when only the future did is a leak, whatever it is worth. L7 and L11 are
statistical and stand beside them, for a leak can sit where those do not look.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from perpline.storage.history import SymbolHistory
from perpline.training.evaluate import Scores, auc
from perpline.training.examples import Examples, Mask, Vectors
from perpline.training.labels import Ints
from perpline.training.splits import DAY_MS, Fold, overlaps, rows_of
from perpline.training.walk import Fit, score

MINUTE_MS = 60_000
PRICE_LAG_MS = 120_000
"""Mark, index and premium minutes are known a minute after they end (features.md 1.5)."""

JUDGED_MIN, AFTER_MIN = 30, 360
"""Closes that are compared at an instant, and minutes of its future that are changed."""

Columns = Mapping[str, NDArray[Any]]
FeatureRows = Callable[[SymbolHistory, int, int], tuple[Ints, Vectors]]
"""Close times and feature rows of a history for start <= T < end."""

TABLES = ("candles", "mark", "index", "premium", "funding", "open_interest", "ratios", "book")


class LeakTest(Struct, frozen=True):
    """One test of the suite and what it found."""

    id: str
    name: str
    passed: bool
    detail: str


def future(history: SymbolHistory, table: str, cut: int) -> dict[str, Mask]:
    """Which rows of a table are known only after T = `cut`, one mask for each group of columns in it."""
    if table == "candles":
        return {"": history.candles["open_time"] + MINUTE_MS > cut}
    if table in ("mark", "index", "premium"):
        return {"": getattr(history, table)["open_time"] + PRICE_LAG_MS > cut}
    if table in ("funding", "open_interest"):
        return {"": getattr(history, table)["known_at"] > cut}
    if table == "ratios":
        return {name: columns["known_at"] > cut for name, columns in history.ratios.items()}
    return {"": history.book["minute"] + MINUTE_MS > cut}


def perturbed(history: SymbolHistory, table: str, cut: int, rng: np.random.Generator) -> SymbolHistory:
    """The history with everything of this table that was not known at T = `cut` replaced by noise; times stay."""

    def noisy(columns: Columns, later: Mask) -> dict[str, NDArray[Any]]:
        made = {}
        factor = rng.uniform(0.5, 2.0, int(later.sum()))
        for name, values in columns.items():
            changed = values.copy()
            if name.startswith("log_"):
                changed[later] += np.floor(np.log(factor) * 2**30).astype(np.int64)
            elif values.dtype == np.float64:
                changed[later] *= factor
            elif name == "trades":
                changed[later] = rng.integers(0, 1000, int(later.sum()))
            made[name] = changed
        return made

    return _changed(history, table, cut, noisy)


def truncated(history: SymbolHistory, table: str, cut: int) -> SymbolHistory:
    """The history without what was not known of this table at T = `cut`."""
    return _changed(
        history, table, cut, lambda columns, later: {name: values[~later] for name, values in columns.items()}
    )


def _changed(
    history: SymbolHistory, table: str, cut: int, change: Callable[[Columns, Mask], dict[str, NDArray[Any]]]
) -> SymbolHistory:
    masks = future(history, table, cut)
    if table == "ratios":
        ratios = {name: change(columns, masks[name]) for name, columns in history.ratios.items()}
        return structs.replace(history, ratios=ratios)
    return structs.replace(history, **{table: change(getattr(history, table), masks[""])})


def window(history: SymbolHistory, start: int, end: int) -> SymbolHistory:
    """The rows of all tables whose own time lies in [start, end) (ms)."""

    def within(columns: Columns, name: str) -> dict[str, NDArray[Any]]:
        inside = (columns[name] >= start) & (columns[name] < end)
        return {each: values[inside] for each, values in columns.items()}

    return structs.replace(
        history,
        candles=within(history.candles, "open_time"),
        mark=within(history.mark, "open_time"),
        index=within(history.index, "open_time"),
        premium=within(history.premium, "open_time"),
        funding=within(history.funding, "funding_time"),
        open_interest=within(history.open_interest, "time"),
        ratios={name: within(columns, "period_end") for name, columns in history.ratios.items()},
        book=within(history.book, "minute"),
    )


def look_ahead(
    history: SymbolHistory,
    rows: FeatureRows,
    names: Sequence[str],
    cut: int,
    rng: np.random.Generator,
    *,
    lookback_min: int,
) -> dict[str, set[str]]:
    """L1 and L13: which features at T <= `cut` (ms) change when only what was not known at the cut does; by table.

    The features of its last `JUDGED_MIN` closes are computed from the `stretch` around it, once as it is, once with
    each table's future replaced by noise, and once with the future of all cut off. Empty: nothing looks ahead.
    """
    found: dict[str, set[str]] = {}
    start = cut - JUDGED_MIN * MINUTE_MS
    around = window(history, *stretch(cut, lookback_min))
    usual = rows(around, start, cut + 1)
    cases = {table: perturbed(around, table, cut, rng) for table in TABLES if _has_rows(around, table)}
    ended = around
    for table in TABLES:
        ended = truncated(ended, table, cut)
    cases["truncated"] = ended
    for table, changed in cases.items():
        if moved := differing(usual, rows(changed, start, cut + 1), names):
            found[table] = moved
    return found


def stretch(cut: int, lookback_min: int) -> tuple[int, int]:
    """[from, to) in ms of the history that a test at this cut reads: all that its features may use, and some hours."""
    return cut - (JUDGED_MIN + lookback_min + 5) * MINUTE_MS, cut + AFTER_MIN * MINUTE_MS


def differing(one: tuple[Ints, Vectors], other: tuple[Ints, Vectors], names: Sequence[str]) -> set[str]:
    """Names of the columns that are not the same bits in both; all of them where the rows are not the same."""
    if not np.array_equal(one[0], other[0]):
        return set(names)
    a, b = (np.ascontiguousarray(each[1], np.float32).view(np.uint32) for each in (one, other))
    return {names[column] for column in np.flatnonzero((a != b).any(axis=0)).tolist()}


def _has_rows(history: SymbolHistory, table: str) -> bool:
    return any(len(mask) for mask in future(history, table, 0).values())


class ExactTests:
    """L1 and L13 at random instants of one symbol after the other."""

    def __init__(
        self, rows: FeatureRows, names: Sequence[str], rng: np.random.Generator, *, cuts: int, lookback_min: int
    ) -> None:
        """`cuts` instants of each symbol; `names` are the columns of `rows`."""
        self._rows = rows
        self._names = names
        self._rng = rng
        self._cuts = cuts
        self._lookback_min = lookback_min
        self._found: dict[str, set[str]] = {}
        self._instants = 0
        self._symbols: set[str] = set()

    def instants(self, opened: Ints) -> list[int]:
        """Instants (ms) to test, of a symbol with candles of these open times; none where they are too few."""
        able = opened[self._lookback_min + JUDGED_MIN : -AFTER_MIN - 1]
        return np.sort(self._rng.choice(able, self._cuts)).tolist() if len(able) else []

    def stretch(self, cut: int) -> tuple[int, int]:
        """[from, to) in ms of what `add` reads of a history."""
        return stretch(cut, self._lookback_min)

    def add(self, history: SymbolHistory, cut: int) -> None:
        """Test at this instant; the history need not hold more than its `stretch`."""
        found = look_ahead(history, self._rows, self._names, cut, self._rng, lookback_min=self._lookback_min)
        for table, moved in found.items():
            self._found.setdefault(table, set()).update(moved)
        self._instants += 1
        self._symbols.add(history.symbol)

    def results(self) -> list[LeakTest]:
        """What was found in all of them. Not passed where nothing could be tested."""
        tables = [f"{table}: {_some(moved)}" for table, moved in sorted(self._found.items()) if table != "truncated"]
        shortened = self._found.get("truncated", set())
        clean = f"no cell changed at {self._instants} instants of {len(self._symbols)} symbols"
        if not self._instants:
            clean = "no symbol has enough history"
        return [
            LeakTest(
                "L1",
                "features do not change with the future of any table",
                self._instants > 0 and not tables,
                f"looks ahead into {'; '.join(tables)}" if tables else clean,
            ),
            LeakTest(
                "L13",
                "features of a history that ends earlier are the same",
                self._instants > 0 and not shortened,
                f"{_some(shortened)} differ" if shortened else clean,
            ),
        ]


def _some(names: set[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def purge_test(examples: Examples, folds: Sequence[Fold]) -> LeakTest:
    """L6: no training row's trade is open in the time of a test row, counted over all folds."""
    pairs, rows = 0, 0
    for fold in folds:
        train, test = rows_of(fold, examples.times, examples.ends)
        pairs += overlaps(examples.times[train], examples.ends[train], examples.times[test], examples.ends[test])
        rows += int(train.sum())
    return LeakTest(
        "L6", "training and test rows do not overlap in time", pairs == 0, f"{pairs} overlaps of {rows:,} rows"
    )


def permuted_labels_test(
    examples: Examples, fold: Fold, fit_to: Callable[[Examples], Fit], rng: np.random.Generator, seeds: int = 3
) -> LeakTest:
    """L7: with the outcomes of whole days dealt out anew, nothing can be learned: the direction AUC of the test stays
    within four standard errors of one half."""
    found = []
    for _ in range(seeds):
        dealt = permuted_days(examples, rng)
        train, test = rows_of(fold, dealt.times, dealt.ends)
        rows = np.flatnonzero(test)[:: max(1, int(test.sum()) // 50_000)]
        raw = score(dealt, rows, fit_to(dealt)(train, 0))
        found.append(auc(dealt.net[rows, 0] > dealt.net[rows, 1], raw[:, 0] - raw[:, 1]))
    mean, error = float(np.mean(found)), max(float(np.std(found)), 0.015) / math.sqrt(seeds)
    return LeakTest(
        "L7",
        "permuted labels cannot be learned",
        bool(abs(mean - 0.5) <= 4 * error),
        f"direction AUC {mean:.3f} over {seeds} permutations, chance is 0.500 ± {4 * error:.3f}",
    )


def permuted_days(examples: Examples, rng: np.random.Generator) -> Examples:
    """The examples with outcomes of whole days exchanged, the same way for all symbols, minute of day for minute of
    day. When trades are over stays, so the purge does too; rows whose partner day lacks their minute keep nothing and
    are left out."""
    day = examples.times // DAY_MS
    first, count = int(day.min()), int(day.max() - day.min()) + 1
    other = rng.permutation(count)
    minute = examples.times // MINUTE_MS - first * 1440
    grid = np.full((len(examples.symbols), count * 1440), -1, np.int64)
    grid[examples.symbol, minute] = np.arange(len(examples))
    partner = grid[examples.symbol, other[minute // 1440] * 1440 + minute % 1440]
    kept = partner >= 0
    columns = {
        name: getattr(examples, name)[kept] for name in ("symbol", "times", "ends", "side_ends", "unique", "source_row")
    }
    dealt = {name: getattr(examples, name)[partner[kept]] for name in ("reason", "net", "gross")}
    return structs.replace(examples, **columns, **dealt)


SHIFTS = (0, 1, 2, 3, 4, 5, 10, 15, 30, 60)
SPIKE = 0.01


def shift_test(examples: Examples, scores: Scores) -> LeakTest:
    """L11: scores against outcomes of trades begun some minutes later. Skill fades over the horizon; skill that is gone
    after one minute was knowledge of that minute."""
    areas = shifted_areas(examples, scores)
    drop = areas[0] - areas[1]
    usual = float(np.median([abs(areas[at] - areas[at + 1]) for at in range(1, 5)]))
    shown = ", ".join(f"+{shift}: {area:.3f}" for shift, area in zip(SHIFTS, areas, strict=True))
    return LeakTest("L11", "skill fades smoothly when the labels are moved", drop <= SPIKE + 3 * usual, shown)


def shifted_areas(examples: Examples, scores: Scores) -> list[float]:
    """Direction AUC against the outcomes `SHIFTS` minutes later, on the rows that have all of them."""
    rows = scores.rows
    minute = (examples.times[rows] - int(examples.times[rows].min())) // MINUTE_MS
    grid = np.full((len(examples.symbols), int(minute.max()) + 1 + max(SHIFTS)), -1, np.int64)
    grid[examples.symbol[rows], minute] = rows
    later = np.stack([grid[examples.symbol[rows], minute + shift] for shift in SHIFTS])
    whole = (later >= 0).all(axis=0)
    lean = (scores.raw[:, 0] - scores.raw[:, 1])[whole]
    return [auc(examples.net[at, 0] > examples.net[at, 1], lean) for at in later[:, whole]]
