"""The decisions of stored minutes: the kernel's vectors, a model's probabilities and `signals.policy.decide`.

The functions are the live engine's own. What differs is where the facts come from: ages and windows are read off stored
rows. What was never stored cannot be too old: it counts as fresh, and is counted.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from perpline.domain.candle import MINUTE_MS
from perpline.domain.signal import Status
from perpline.inference.artefact import LoadedModel
from perpline.signals.policy import Facts, Verdict, decide
from perpline.signals.scoring import score, sides
from perpline.storage.history import SymbolHistory
from perpline.storage.store import Store

Ints = NDArray[np.int64]
Vectors = NDArray[np.float32]

RECORDED_WITHIN_MS = 60 * MINUTE_MS
"""Nothing heard for longer was not an outage of a stream: nobody listened."""


class Recorded(Struct):
    """When a worker that listened last heard of a symbol's mark price or book, minute by minute."""

    minutes: Ints
    updated_at: Ints
    assumed_fresh: int = 0
    """How many of the minutes asked about nobody had listened to."""

    def at(self, times: Ints) -> Ints:
        """The exchange's time of the newest news known at each close T (ms); T itself where nobody listened."""
        if not len(self.minutes):
            self.assumed_fresh += len(times)
            return times
        place = np.searchsorted(self.minutes, times - MINUTE_MS, side="right") - 1
        heard = np.where(place >= 0, self.updated_at[np.maximum(place, 0)], 0)
        listened = times - heard <= RECORDED_WITHIN_MS
        self.assumed_fresh += int((~listened).sum())
        return np.where(listened, heard, times)


async def recorded(store: Store, table: str, symbol: str, start: int, end: int) -> Recorded:
    """What `premium_index` or `book_minutes` tells about the closes start <= T < end."""
    rows = await store.series(table, symbol, start - RECORDED_WITHIN_MS, end, ("minute", "updated_at"))
    return Recorded(rows["minute"], rows["updated_at"])


def windows_at(open_times: Ints, times: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Of each close T: how many contiguous minutes are held until then (0 where its own candle is missing), and whether
    a hole ended the window rather than the beginning of history."""
    if not len(open_times):
        return np.zeros(len(times), np.int64), np.zeros(len(times), np.bool_)
    begins = np.concatenate([[True], np.diff(open_times) != MINUTE_MS])
    first = np.maximum.accumulate(np.where(begins, np.arange(len(open_times)), 0))
    place = np.clip(np.searchsorted(open_times, times - MINUTE_MS), 0, len(open_times) - 1)
    there = open_times[place] == times - MINUTE_MS
    return np.where(there, place - first[place] + 1, 0), first[place] > 0


def decide_history(
    model: LoadedModel,
    history: SymbolHistory,
    vectors: Iterable[tuple[Ints, Vectors]],
    mark: Recorded,
    book: Recorded,
    last_ok: Mapping[int, int],
) -> Iterator[tuple[int, Verdict]]:
    """(T, verdict) for every stored minute, in order.

    `vectors` are times i8[n] and whole vectors f4[n, 118] as `features.batch` gives them; `last_ok` holds T of the last
    signal of each side before the first of them.
    """
    latest = dict(last_ok)
    critical = model.critical
    for times, whole in vectors:
        scores = score(model, whole, times)
        missing = np.isnan(scores.vectors[:, model.critical_columns])
        incomplete = set(np.flatnonzero(missing.any(axis=1)).tolist())
        held, broken = windows_at(history.candles["open_time"], times)
        columns: tuple[list[Any], ...] = (
            times.tolist(),
            held.tolist(),
            broken.tolist(),
            mark.at(times).tolist(),
            book.at(times).tolist(),
            scores.ood.tolist(),
            sides(scores.raw),
            sides(scores.calibrated),
            scores.errors,
        )
        for row, (t, minutes, after_hole, marked, booked, ood, raw, calibrated, error) in enumerate(
            zip(*columns, strict=True)
        ):
            facts = Facts(
                close_time=t,
                held=minutes,
                lookback=model.critical_lookback_min,
                broken_by_gap=after_hole,
                mark_updated_at=marked,
                book_updated_at=booked,
                missing=tuple(critical[at] for at in np.flatnonzero(missing[row])) if row in incomplete else (),
                ood_share=ood,
                max_ood_share=model.max_ood_share,
                p_long=calibrated[0],
                p_short=calibrated[1],
                raw_long=raw[0],
                raw_short=raw[1],
                model_error=error,
                last_ok=latest,
            )
            verdict = decide(facts, model.rule, model.threshold, model.ev_min_bp)
            if verdict.status is Status.OK:
                latest[verdict.side] = t
            yield t, verdict
