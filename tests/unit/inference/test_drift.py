import json

import numpy as np
import pytest

from perpline.common.errors import NeedsPerson
from perpline.inference.drift import BINS, DAY_MS, DriftWatch, psi_reference, read_reference

MINUTE = 60_000
DESCENDING = {"edges": [2, 1], "shares": [0, 0, 0, 1], "threshold": 1, "missing_threshold": 0}
NAMES = ["steady", "sparse", "constant"]


def rows_of(days: int, seed: int, shift: float = 0.0, symbols: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, scores and day numbers; the middle of the first column differs from day to day."""
    rng = np.random.default_rng(seed)
    count = days * 1440 * symbols
    day = np.repeat(np.arange(days), 1440 * symbols)
    steady = rng.normal(size=count) + rng.normal(scale=0.2, size=days)[day] + shift
    sparse = np.where(rng.random(count) < 0.3, np.nan, rng.normal(size=count))
    features = np.column_stack([steady, sparse, np.full(count, 2.0)]).astype(np.float32)
    return features, rng.beta(5, 5, size=(count, 2)), day


def watch(days: int = 60, signal_share: float | None = 0.01) -> DriftWatch:
    features, scores, day = rows_of(days, seed=1)
    signals = None if signal_share is None else np.arange(len(day)) % round(1 / signal_share) == 0
    reference = psi_reference(features, scores, day, signals)
    return DriftWatch(read_reference(json.dumps(reference).encode(), len(NAMES)), NAMES)


def day_of(watched: DriftWatch, number: int, features: np.ndarray, scores: np.ndarray, signals: int = 14) -> None:
    for minute in range(len(features)):
        one = slice(minute, minute + 1)
        watched.add(number * DAY_MS + minute * MINUTE, features[one], scores[one], signals if minute == 0 else 0)


def test_a_day_like_those_of_training_is_not_called_drift() -> None:
    watched = watch()
    features, scores, _ = rows_of(1, seed=2)

    day_of(watched, 20_000, features, scores)

    today = watched.facts()["today"]
    assert today["drifting"] == []
    assert (today["rows"], today["minutes"], today["judged"]) == (1440, 1440, True)
    assert max(today["psi"].values()) < 0.2
    assert abs(today["missing"]["sparse"] - 0.3) < 0.05
    assert today["signals_unusual"] is False


def test_the_column_that_moved_is_named_and_no_other() -> None:
    watched = watch()
    features, scores, _ = rows_of(1, seed=2, shift=1.5)

    day_of(watched, 20_000, features, scores)

    assert watched.facts()["today"]["drifting"] == ["steady"]


def test_more_missing_values_than_in_training_are_drift() -> None:
    watched = watch()
    features, scores, _ = rows_of(1, seed=2)
    features[:400, 2] = np.nan

    day_of(watched, 20_000, features, scores)

    assert watched.facts()["today"]["drifting"] == ["constant"]


def test_scores_that_moved_are_named() -> None:
    watched = watch()
    features, scores, _ = rows_of(1, seed=2)

    day_of(watched, 20_000, features, np.column_stack([scores[:, 0], scores[:, 1] ** 2]))

    assert watched.facts()["today"]["drifting"] == ["score_short"]


@pytest.mark.parametrize(("signals", "unusual"), [(0, True), (14, False), (50, False), (80, True)])
def test_far_more_or_fewer_signals_than_usual_are_noticed(signals: int, unusual: bool) -> None:
    watched = watch()
    features, scores, _ = rows_of(1, seed=2)

    day_of(watched, 20_000, features, scores, signals)

    assert watched.facts()["today"]["signals_usual"] == 14.4
    assert watched.facts()["today"]["signals_unusual"] is unusual


def test_a_few_hours_are_shown_and_not_judged() -> None:
    watched = watch()
    features, scores, _ = rows_of(1, seed=2, shift=3.0)

    day_of(watched, 20_000, features[:300], scores[:300], signals=300)

    today = watched.facts()["today"]
    assert today["psi"]["steady"] > 1
    assert (today["judged"], today["drifting"], today["signals_unusual"]) == (False, [], False)


def test_with_midnight_a_new_day_is_counted_and_the_old_one_kept() -> None:
    watched = watch()
    features, scores, _ = rows_of(2, seed=2)

    day_of(watched, 20_000, features[:1440], scores[:1440])
    ended = watched.add(20_001 * DAY_MS, features[:1], scores[:1], 0)

    assert ended is not None
    assert ended == watched.facts()["yesterday"]
    assert (ended["day"], ended["rows"]) == (20_000, 1440)
    assert watched.facts()["today"]["rows"] == 1


def test_before_the_first_batch_there_is_nothing_to_say() -> None:
    assert watch().facts() == {"today": None, "yesterday": None}


def test_a_batch_counts_the_same_whole_and_in_parts() -> None:
    features, scores, _ = rows_of(1, seed=3)
    whole, parts = watch(), watch()

    whole.add(0, features, scores, 3)
    for start in range(0, len(features), 7):
        parts.add(0, features[start : start + 7], scores[start : start + 7], 3 if start == 0 else 0)

    assert parts.facts() == whole.facts()


def test_the_same_rows_have_no_distance_from_themselves() -> None:
    features, scores, day = rows_of(3, seed=4)
    watched = DriftWatch(read_reference(json.dumps(psi_reference(features, scores, day)).encode(), 3), NAMES)

    watched.add(0, features, scores, 0)

    assert set(watched.facts()["today"]["psi"].values()) == {0.0}
    assert watched.facts()["today"]["signals_usual"] is None


def test_a_column_without_any_value_and_one_of_infinities_are_described() -> None:
    features = np.column_stack([np.full(2880, np.nan), np.full(2880, np.inf)]).astype(np.float32)
    scores = np.full((2880, 2), 0.5)

    reference = psi_reference(features, scores, np.repeat([0, 1], 1440))

    assert [column["edges"] for column in reference["columns"]] == [[], [], [0.5], [0.5]]
    assert reference["columns"][0]["shares"] == [0.0, 1.0]
    assert reference["days"] == 2
    json.dumps(reference, allow_nan=False)


def test_ten_bins_of_training_hold_a_tenth_each() -> None:
    features, scores, day = rows_of(10, seed=5)

    column = psi_reference(features, scores, day)["columns"][0]

    assert len(column["edges"]) == BINS - 1
    np.testing.assert_allclose(column["shares"], [0.1] * BINS + [0.0], atol=1e-3)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[]", "cannot be read"),
        (b'{"columns": [], "days": 1}', "has 0 columns for 3 features and two scores"),
        (
            json.dumps({"days": 1, "columns": [DESCENDING] * 5}).encode(),
            "column 0 has no ascending bins",
        ),
    ],
)  # fmt: skip
def test_a_reference_that_is_none_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(NeedsPerson, match=said):
        read_reference(data, 3)


def test_no_rows_cannot_be_described() -> None:
    with pytest.raises(ValueError, match="no rows"):
        psi_reference(np.empty((0, 3), np.float32), np.empty((0, 2)), np.empty(0, np.int64))
