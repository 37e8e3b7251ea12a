"""How long a symbol-year of labels takes: prices on a grid, first touch for both sides, uniqueness, weights."""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bench.results import Table
from perpline.domain.exit_rule import OPEN, LabelRule, exit_levels, exit_reason
from perpline.storage.history import SymbolHistory
from perpline.training.labels import SIDES, Labels, PricePath, label, price_path, uniqueness, weights

YEAR_MINUTES = 525_600
START = 1_735_689_600_000
RULES = (LabelRule(1.0, 1.0, 14_400, 14.0), LabelRule(2.0, 1.0, 43_200, 14.0))
BY_HAND_ROWS = 300


def labels(minutes: int, rounds: int, say: Callable[[str], None]) -> list[Table]:
    """Median seconds of `rounds` for `minutes` rows of one symbol, beside the same rule asked by Python, row by row."""
    say("history")
    history = _history(minutes)
    times = history.candles["open_time"]
    rows: list[tuple[str | float | int | None, ...]] = []
    for rule in RULES:
        name = f"{rule.tp_pct:g} / {rule.sl_pct:g} %, {rule.horizon_s // 3600} h"
        say(f"{name}: compiling")
        path = price_path(history, rule)
        made = label(path, times, rule)
        taken: dict[str, list[float]] = {}
        for number in range(rounds):
            say(f"{name}: round {number + 1}")
            for stage, seconds in _one_round(history, path, made, rule).items():
                taken.setdefault(stage, []).append(seconds)
        by_hand = _by_hand(path, times, rule) * minutes / BY_HAND_ROWS
        medians = [float(np.median(each)) for each in taken.values()]
        rows.append((name, *(round(each, 3) for each in medians), round(sum(medians), 3), round(by_hand, 1)))
    return [
        Table(
            f"Labels of {minutes:,} minutes",
            ("target / stop, horizon", "grid s", "first touch s", "uniqueness s", "weights s", "sum s", "in Python s"),
            rows,
            (
                "One symbol, every minute a row, both sides, random walk with 8 bp a minute, one thread.",
                "first touch: reason, gross and net result, end, worst and best excursion of both sides.",
                f"in Python: the same rule, not compiled, minute by minute for {BY_HAND_ROWS} rows, scaled up.",
            ),
        )
    ]


def _one_round(history: SymbolHistory, path: PricePath, made: Labels, rule: LabelRule) -> dict[str, float]:
    """Seconds of each stage, in the order of the table."""
    known = made.known
    times = made.times[known]
    marks = [time.perf_counter()]
    price_path(history, rule)
    marks.append(time.perf_counter())
    label(path, made.times, rule)
    marks.append(time.perf_counter())
    unique = [uniqueness(times, made.ends[known, side]) for side in (0, 1)]
    marks.append(time.perf_counter())
    for each in unique:
        weights(times, each, int(times[-1]))
    marks.append(time.perf_counter())
    return dict(zip(("grid", "touch", "uniqueness", "weights"), np.diff(marks).tolist(), strict=True))


def _by_hand(path: PricePath, times: NDArray[np.int64], rule: LabelRule) -> float:
    """Seconds for `BY_HAND_ROWS` rows: the exits alone."""
    some = times[:: max(1, len(times) // BY_HAND_ROWS)][:BY_HAND_ROWS].tolist()
    high, low = path.high.tolist(), path.low.tolist()
    begin = time.perf_counter()
    for moment in some:
        for side in SIDES:
            minute = (moment - path.start) // 60_000
            target, stop = exit_levels(side, float(path.first[minute]), rule.tp_pct, rule.sl_pct)
            deadline = moment + rule.horizon_s * 1000
            for at in range(minute, min(minute + rule.horizon_s // 60, len(high))):
                if exit_reason(side, target, stop, high[at], low[at], path.start + (at + 1) * 60_000, deadline) != OPEN:
                    break
    return time.perf_counter() - begin


def _history(minutes: int) -> SymbolHistory:
    rng = np.random.default_rng(1)
    close = 100.0 * np.exp(np.cumsum(rng.standard_t(5, minutes) * 8e-4 * np.sqrt(3 / 5)))
    opened = np.concatenate([[100.0], close[:-1]])
    prices = {
        "open_time": START + np.arange(minutes, dtype=np.int64) * 60_000,
        "open": opened,
        "high": np.maximum(opened, close) * np.exp(np.abs(rng.normal(0, 4e-4, minutes))),
        "low": np.minimum(opened, close) * np.exp(-np.abs(rng.normal(0, 4e-4, minutes))),
        "close": close,
    }
    funding = {
        "funding_time": prices["open_time"][::480],
        "rate": rng.normal(1e-4, 1e-4, len(prices["open_time"][::480])),
    }
    return SymbolHistory(
        symbol="BTCUSDT",
        candles=prices,
        mark=prices,
        index={},
        premium={},
        funding=funding,
        open_interest={},
        ratios={},
        book={},
    )
