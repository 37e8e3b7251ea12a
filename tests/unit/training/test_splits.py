import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpline.common.errors import NeedsPerson
from perpline.training.splits import (
    DAY_MS,
    Fold,
    LeakError,
    Windows,
    assert_apart,
    overlaps,
    purged_k_fold,
    rows_of,
    walk_forward,
)

HOUR = 3_600_000
WINDOWS = Windows(train_days=10, test_days=4, step_days=4, lockbox_days=5, gap_ms=4 * HOUR)


def test_folds_walk_forward_and_leave_the_lockbox_alone() -> None:
    folds, lockbox = walk_forward(0, 30 * DAY_MS, WINDOWS)

    assert [fold.test_from for fold in folds] == [
        10 * DAY_MS + 4 * HOUR,
        14 * DAY_MS + 4 * HOUR,
        18 * DAY_MS + 4 * HOUR,
    ]
    assert all(fold.test_from - fold.train_to == 4 * HOUR for fold in [*folds, lockbox])
    assert folds[-1].test_to + 4 * HOUR <= lockbox.test_from == 25 * DAY_MS
    assert lockbox.test_to == 30 * DAY_MS


def test_too_little_history_says_how_much_is_needed() -> None:
    with pytest.raises(NeedsPerson, match=r"15.0 days of rows are too few .* need 23.3"):
        walk_forward(0, 15 * DAY_MS, WINDOWS)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_fold_trains_on_time_that_it_tests(seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(0, 30 * 1440, 500)) * 60_000
    ends = times + rng.integers(1, 241, 500) * 60_000
    folds, lockbox = walk_forward(0, 30 * DAY_MS, WINDOWS)
    for fold in [*folds, lockbox]:
        train, test = rows_of(fold, times, ends)
        assert ends[train].max() <= times[test].min()
    for train, test in purged_k_fold(times, ends, 5, HOUR):
        assert not (train & test).any()
        assert count_by_hand(times[train], ends[train], times[test], ends[test]) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_overlaps_are_counted_as_by_hand(seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = [rng.integers(0, 40, 12) for _ in range(2)]
    ends = [each + rng.integers(1, 10, 12) for each in times]

    assert overlaps(times[0], ends[0], times[1], ends[1]) == count_by_hand(times[0], ends[0], times[1], ends[1])


def count_by_hand(times: np.ndarray, ends: np.ndarray, other_times: np.ndarray, other_ends: np.ndarray) -> int:  # type: ignore[type-arg]
    return int(((times[:, None] < other_ends[None]) & (other_times[None] < ends[:, None])).sum())


def test_every_row_is_tested_once_and_the_embargo_is_kept() -> None:
    times = np.arange(1_000) * 60_000
    ends = times + 30 * 60_000
    tested = np.zeros(1_000, int)
    for train, test in purged_k_fold(times, ends, 4, HOUR):
        tested += test
        after = times[train & (times > times[test].max())]
        assert not len(after) or after.min() >= ends[test].max() + HOUR
    assert (tested == 1).all()


def test_a_shuffled_split_is_refused() -> None:
    times = np.arange(1_000) * 60_000
    ends = times + 30 * 60_000
    test = np.random.default_rng(0).random(1_000) < 0.2

    with pytest.raises(LeakError):
        assert_apart(times[~test], ends[~test], times[test], ends[test])


def test_a_fold_whose_gap_is_too_short_is_refused_or_purged() -> None:
    times = np.arange(100) * 60_000
    ends = times + 30 * 60_000

    train, _ = rows_of(Fold(0, 50 * 60_000, 50 * 60_000, 100 * 60_000), times, ends)

    assert np.flatnonzero(train).tolist() == list(range(21))
