"""Facts from stored rows: windows, ages, and what was never recorded."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from backtesting import LOOKBACK, trend_follower, walk
from perpline.backtest.decisions import Recorded, decide_history, windows_at
from perpline.domain.signal import Status
from perpline.features.batch import vectors_of
from perpline.storage.history import SymbolHistory
from training import MINUTE, START


def minutes(*numbers: int) -> np.ndarray:
    return START + np.array(numbers, np.int64) * MINUTE


def nothing() -> Recorded:
    return Recorded(np.zeros(0, np.int64), np.zeros(0, np.int64))


def without(history: SymbolHistory, minute: int) -> SymbolHistory:
    keep = history.candles["open_time"] != START + minute * MINUTE
    for name, values in history.candles.items():
        history.candles[name] = values[keep]
    return history


def test_a_window_counts_the_contiguous_minutes_and_knows_what_ended_it() -> None:
    held, broken = windows_at(minutes(0, 1, 2, 5, 6), minutes(1, 3, 4, 6, 7))

    assert held.tolist() == [1, 3, 0, 1, 2]
    assert broken.tolist()[:2] == [False, False]
    assert broken.tolist()[3:] == [True, True]


def test_an_age_is_that_of_the_last_news_before_the_close() -> None:
    heard = Recorded(minutes(0, 1, 4), minutes(0, 1, 4) + 59_000)

    assert (heard.at(minutes(1, 2, 3, 5)) - START).tolist() == [59_000, 119_000, 119_000, 299_000]
    assert heard.assumed_fresh == 0


def test_where_nobody_listened_everything_is_fresh_and_counted() -> None:
    heard = Recorded(minutes(100), minutes(100) + 59_000)

    assert heard.at(minutes(100)).tolist() == minutes(100).tolist()
    assert heard.at(minutes(101)).tolist() == [START + 100 * MINUTE + 59_000]
    assert heard.at(minutes(200)).tolist() == minutes(200).tolist()
    assert heard.assumed_fresh == 2
    assert nothing().at(minutes(3)).tolist() == minutes(3).tolist()


@pytest.fixture
def model(tmp_path: Path):
    return trend_follower(tmp_path)


def decided(model, history: SymbolHistory, mark: Recorded, start: int = 0, end: int = 1 << 60, last_ok=None):
    vectors = vectors_of(history, start, end, chunk=100)
    return dict(decide_history(model, history, vectors, mark, nothing(), last_ok or {}))


def test_windows_that_are_short_by_the_beginning_or_by_a_hole_are_named_differently(model) -> None:
    verdicts = decided(model, without(walk(700, 1), 300), nothing())

    statuses = [verdicts[t].status if t in verdicts else None for t in minutes(*range(1, 701)).tolist()]
    needed = model.critical_lookback_min
    assert statuses[: needed - 1] == [Status.SKIPPED_WARMUP] * (needed - 1)
    assert statuses[300] is None
    assert statuses[301 : 300 + needed] == [Status.SKIPPED_GAP] * (needed - 1)
    assert {statuses[needed], statuses[300 + needed + 1]} <= {Status.OK, Status.FLAT, Status.COOLDOWN}


def test_an_old_mark_price_is_a_reason_to_abstain(model) -> None:
    history = walk(400, 2)
    every = np.arange(0, 400)
    updated = minutes(*every) + 59_000
    updated[350] -= 20_000
    verdicts = decided(model, history, Recorded(minutes(*every), updated))

    stale = [t for t, verdict in verdicts.items() if verdict.status is Status.SKIPPED_STALE]

    assert stale == [START + 351 * MINUTE]
    assert verdicts[stale[0]].detail == "mark price is 21.0 s old at the close"


def test_the_same_side_pauses_and_a_pause_from_before_the_start_is_kept(model) -> None:
    history = walk(1_000, 3)
    verdicts = decided(model, history, nothing())
    signals = [(t, verdict.side) for t, verdict in verdicts.items() if verdict.status is Status.OK]
    gaps = [
        after - before
        for side in (1, -1)
        for before, after in zip(
            [t for t, s in signals if s == side], [t for t, s in signals if s == side][1:], strict=False
        )
    ]

    assert len(signals) > 10
    assert min(gaps) >= 15 * MINUTE

    start = signals[4][0]
    again = decided(model, history, nothing(), start, last_ok=dict((side, t) for t, side in signals[:4]))
    assert {t: again[t] for t in again} == {t: verdicts[t] for t in verdicts if t >= start}
    assert Counter(verdict.status for verdict in again.values())[Status.COOLDOWN] > 0


def test_the_decisions_of_a_shorter_history_are_the_first_of_a_longer_one(model) -> None:
    longer = decided(model, walk(900, 4), nothing())

    shorter = decided(model, walk(900, 4), nothing(), end=START + 600 * MINUTE)

    assert list(shorter.items()) == list(longer.items())[: len(shorter)]
    assert len(shorter) == 599
    assert LOOKBACK < 599
