"""Which rows are trained on and which are judged: walk-forward, purged K-fold, and the proof that they do not overlap.

A label is known only when its trade is over, so a row occupies [its time, its end). Two rows overlap where these do.
The count of overlaps is checked here, in the code that hands out the rows (features.md 2.4, L6).
"""

from collections.abc import Iterator

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from perpline.common.errors import NeedsPerson
from perpline.domain.candle import MINUTE_MS

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

DAY_MS = 86_400_000


class Windows(Struct, frozen=True, kw_only=True):
    """Lengths in days, and the gap in ms: horizon of the labels and the longest wait until a value is known."""

    train_days: float = 180
    test_days: float = 30
    step_days: float = 30
    lockbox_days: float = 60
    gap_ms: int


class Fold(Struct, frozen=True):
    """Half-open ranges of close times, ms."""

    train_from: int
    train_to: int
    test_from: int
    test_to: int


class LeakError(AssertionError):
    """Rows of training and rows of judging overlap. A bug here, never a matter of the data: nothing may go on."""


def walk_forward(first: int, to: int, windows: Windows) -> tuple[list[Fold], Fold]:
    """The folds, oldest first, and the lock-box at the end as one more fold, for rows with times in [first, to) (ms).

    Training begins at `first` and grows; each test begins the gap after its training ends. Tests fit whole before the
    lock-box. Raises NeedsPerson where fewer than two folds fit: the first is needed to calibrate what is judged next.
    """
    lockbox_from = to - round(windows.lockbox_days * DAY_MS)
    test, step = round(windows.test_days * DAY_MS), round(windows.step_days * DAY_MS)
    folds = []
    test_from = first + round(windows.train_days * DAY_MS) + windows.gap_ms
    # The gap is kept before the lock-box too: labels of the last test end before it.
    while test_from + test <= lockbox_from - windows.gap_ms:
        folds.append(Fold(first, test_from - windows.gap_ms, test_from, test_from + test))
        test_from += step
    if len(folds) < 2:
        have = (to - first) / DAY_MS
        need = windows.train_days + windows.test_days + windows.step_days + windows.lockbox_days
        need += 2 * windows.gap_ms / DAY_MS
        raise NeedsPerson(
            f"{have:.1f} days of rows are too few for these windows, which need {need:.1f}: "
            "take more history or smaller --train-days, --test-days, --step-days, --lockbox-days"
        )
    return folds, Fold(first, lockbox_from - windows.gap_ms, lockbox_from, to)


def rows_of(fold: Fold, times: Ints, ends: Ints) -> tuple[Mask, Mask]:
    """Which rows train and which are tested; `ends` is when the later of a row's labels is known. Proven apart."""
    train = (times >= fold.train_from) & (times < fold.train_to) & (ends <= fold.test_from)
    test = (times >= fold.test_from) & (times < fold.test_to)
    assert_apart(times[train], ends[train], times[test], ends[test])
    return train, test


def purged_k_fold(times: Ints, ends: Ints, folds: int, embargo_ms: int) -> Iterator[tuple[Mask, Mask]]:
    """K groups of consecutive time, each tested once; for choosing parameters, not for the verdict.

    Left out of training: rows whose label is not over when the test begins, rows before the last label of the test
    ends, and rows within `embargo_ms` after that (the longest lookback, whose features still see the test).
    """
    edges = np.linspace(int(times.min()), int(times.max()) + MINUTE_MS, folds + 1).astype(np.int64)
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        test = (times >= begin) & (times < end)
        if not test.any():
            continue
        train = (ends <= begin) | (times >= int(ends[test].max()) + embargo_ms)
        train &= ~test
        assert_apart(times[train], ends[train], times[test], ends[test])
        yield train, test


def overlaps(train_times: Ints, train_ends: Ints, test_times: Ints, test_ends: Ints) -> int:
    """How many pairs of a training and a test row share time, intervals [time, end)."""
    started = np.searchsorted(np.sort(test_times), train_ends, side="left")
    finished = np.searchsorted(np.sort(test_ends), train_times, side="right")
    return int((started - finished).sum())


def assert_apart(train_times: Ints, train_ends: Ints, test_times: Ints, test_ends: Ints) -> None:
    """Raises LeakError where a training row and a test row share time."""
    if count := overlaps(train_times, train_ends, test_times, test_ends):
        raise LeakError(f"{count} pairs of training and test rows overlap in time")
