"""The walk forward: every recipe of a model goes through here, ours and those it has to beat."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from msgspec import Struct

from perpline.domain.exit_rule import LabelRule
from perpline.training.evaluate import Days, Scores, sides, take
from perpline.training.examples import Examples, Mask
from perpline.training.fit import Calibrator, Predict, fit_calibrator, plateau, thresholds_of
from perpline.training.labels import Floats, Ints
from perpline.training.splits import DAY_MS, Fold, rows_of

Fit = Callable[[Mask, int], Predict]
"""Fits to the rows of a mask, which is already purged; the int is the number of the fold, for seeds."""
ROWS_AT_ONCE = 200_000


class Tail(Struct):
    """Out-of-sample scores of one fold, from which the next is calibrated and its threshold chosen."""

    rows: Ints
    raw: Floats


class Walk(Struct):
    """Scores of all folds but the first, which only calibrates the second."""

    scores: Scores
    tail: Tail
    """The newest fold: what the final model is calibrated on."""


def walk(
    examples: Examples,
    folds: Sequence[Fold],
    fit: Fit,
    rule: LabelRule,
    independent_share: float,
    advance: Callable[[], None] = lambda: None,
    kept: Callable[[int, Callable[[], Tail]], Tail] = lambda number, made: made(),
) -> Walk:
    """Fit, score, go on. `independent_share` is N_eff / N of the symbols; `advance` is called after each fold.

    `kept` is handed the number of each fold and what makes its scores, and may know them already.
    """
    before: Tail | None = None
    parts: list[Scores] = []
    for number, fold in enumerate(folds):
        tail = kept(number, partial(fit_and_score, examples, fold, fit, number))
        if before is not None and len(before.rows):
            parts.append(judge(examples, before, tail, fold.test_from, rule, independent_share, number))
        before = tail
        advance()
    assert before is not None
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("rows", "raw", "p", "threshold", "top", "fold")
    }
    order = np.argsort(joined["rows"], kind="stable")
    return Walk(Scores(**{name: values[order] for name, values in joined.items()}), before)


def fit_and_score(examples: Examples, fold: Fold, fit: Fit, number: int) -> Tail:
    """Raw scores of a fold's test rows by a model fitted to its training rows."""
    train, test = rows_of(fold, examples.times, examples.ends)
    rows = np.flatnonzero(test)
    return Tail(rows, score(examples, rows, fit(train, number)))


def score(examples: Examples, rows: Ints, predict: Predict) -> Floats:
    """Raw probabilities of these rows, read in pieces."""
    pieces = [predict(examples.features(rows[at : at + ROWS_AT_ONCE])) for at in range(0, len(rows), ROWS_AT_ONCE)]
    return np.concatenate(pieces) if pieces else np.zeros((0, 2))


def judge(
    examples: Examples,
    before: Tail,
    tail: Tail,
    test_from: int,
    rule: LabelRule,
    independent_share: float,
    number: int,
) -> Scores:
    """One fold's scores, calibrated and with thresholds from the fold before, of whose labels only those that were
    known when this one begins are used."""
    calibrators = calibrate(examples, before, test_from, independent_share)
    threshold, _ = choose_threshold(examples, before, calibrators, test_from, rule, independent_share)
    count = len(tail.rows)
    return Scores(
        rows=tail.rows,
        raw=tail.raw,
        p=apply(calibrators, tail.raw),
        threshold=np.full(count, threshold),
        top=np.full(count, float(np.quantile(tail.raw.max(axis=1), 0.99))),
        fold=np.full(count, number, np.int32),
    )


def calibrate(examples: Examples, tail: Tail, known_by: int, independent_share: float) -> tuple[Calibrator, Calibrator]:
    """Calibrators of the long and the short head from out-of-sample scores whose labels were known at `known_by`."""
    known = examples.ends[tail.rows] <= known_by
    rows, raw = tail.rows[known], tail.raw[known]
    long, short = (
        fit_calibrator(
            raw[:, side],
            examples.won[rows, side],
            examples.unique[rows, side],
            float(examples.unique[rows, side].sum()) * independent_share,
        )
        for side in (0, 1)
    )
    return long, short


def apply(calibrators: tuple[Calibrator, Calibrator], raw: Floats) -> Floats:
    """Calibrated probabilities [n, 2]."""
    return np.stack([calibrators[side].apply(raw[:, side]) for side in (0, 1)], axis=1)


def choose_threshold(
    examples: Examples,
    tail: Tail,
    calibrators: tuple[Calibrator, Calibrator],
    known_by: int,
    rule: LabelRule,
    independent_share: float,
) -> tuple[float, str]:
    """The threshold from a plateau of out-of-sample results, and how it was found (see `fit.plateau`)."""
    known = examples.ends[tail.rows] <= known_by
    rows, p = tail.rows[known], apply(calibrators, tail.raw[known])
    grid = thresholds_of(rule)
    results = [take(examples, rows, sides(p, np.full(len(rows), each))) for each in grid]
    effective = [float(len(trades)) * independent_share for trades in results]
    return plateau(grid, [float(trades.net.sum()) for trades in results], effective, rule)


def trial_days(examples: Examples, scores: Scores, days: Days, rule: LabelRule) -> Floats:
    """Daily net results [days, trials] of every threshold of the grid: what was, or could have been, chosen from."""
    made = []
    for threshold in thresholds_of(rule):
        trades = take(examples, scores.rows, sides(scores.p, np.full(len(scores.rows), threshold)))
        made.append(np.bincount(trades.begin // DAY_MS - days.first, trades.net * 1e4, days.count))
    return np.stack(made, axis=1).astype(np.float64)
