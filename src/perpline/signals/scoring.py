"""What a model says of vectors: at a close, beside it for a shadow, and in history."""

import numpy as np
import structlog
from msgspec import Struct
from numpy.typing import NDArray

from perpline.inference.artefact import LoadedModel, Probabilities, Vectors

log = structlog.get_logger("perpline.scoring")

Times = NDArray[np.int64]

Sides = tuple[float | None, float | None]
"""Of long and short, None where there is none."""


class Scores(Struct):
    """What a model says, a row for each vector. NaN where it was not asked, or had nothing to say."""

    vectors: Vectors
    """[n, F], the model's columns."""
    raw: Probabilities
    calibrated: Probabilities
    ood: NDArray[np.float64]
    errors: list[str]
    """Why the model says nothing of a row; empty where it was asked, or lacks something critical."""


def score(model: LoadedModel, table: Vectors, times: Times) -> Scores:
    """What the model says of these vectors f4 [n, features of the catalogue], which are of the closes `times`.

    What a row gives does not depend on the others. May be called from any thread.
    """
    vectors = table[:, model.columns]
    nothing = np.full((len(table), 2), np.nan)
    scores = Scores(vectors, nothing, nothing, model.ood_share(vectors), _not_valid(model, times))
    if all(scores.errors):
        return scores
    try:
        raw, calibrated = model.predict(vectors)
        if raw.shape != nothing.shape or calibrated.shape != nothing.shape:
            raise ValueError(f"it answered {raw.shape} numbers for {len(table)} rows")
    except Exception as error:
        # The edge to the model, which may be anybody's: whatever it does wrong, the minute gets its row and reason.
        log.exception("model_failed", model=model.model_id, action="decide")
        failed = f"the model failed: {type(error).__name__}: {error}"[:200]
        scores.errors = [reason or failed for reason in scores.errors]
        return scores
    asked = ~np.isnan(vectors[:, model.critical_columns]).any(axis=1)
    asked &= np.array([not reason for reason in scores.errors])
    scores.raw, scores.calibrated = (np.where(asked[:, None], given, np.nan) for given in (raw, calibrated))
    return scores


def sides(probabilities: Probabilities) -> list[Sides]:
    """Rows of [n, 2] as plain numbers."""
    return [(None if a != a else a, None if b != b else b) for a, b in probabilities.tolist()]


def _not_valid(model: LoadedModel, times: Times) -> list[str]:
    begin, end = model.manifest.valid_from, model.manifest.valid_until
    if begin is None and end is None:
        return [""] * len(times)
    return [
        "the model is not valid yet"
        if begin is not None and t < begin
        else "the model is not valid any more"
        if end is not None and t >= end
        else ""
        for t in times.tolist()
    ]
