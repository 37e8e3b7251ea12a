"""What scores are worth on rows they were not fitted to: skill, calibration, money after costs, each with its interval.

Minutes are not independent, days nearly are. So everything is first summed by day, and an interval comes from drawing
whole days (blocks of them where the horizon is longer) with replacement: a product of two small matrices, which takes
the same time for a month as for ten years (features.md 2.6).
"""

import math
from collections.abc import Sequence
from itertools import combinations
from statistics import NormalDist
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from perpline.domain.exit_rule import STOP_FIRST, TARGET, TIMEOUT, LabelRule
from perpline.features.compiled import part
from perpline.training.examples import Examples, Mask
from perpline.training.labels import SIDES, Floats, Ints
from perpline.training.splits import DAY_MS

DRAWS = 1000
INTERVAL = (2.5, 97.5)
COST_MULTIPLES = (0.5, 1.0, 1.5, 2.0)
_BINS = 256
_EULER = 0.5772156649015329
_NORMAL = NormalDist()


class Scores(Struct):
    """Out-of-sample probabilities for rows of `Examples`, ascending. [m] or [m, 2] (long, short)."""

    rows: Ints
    raw: Floats
    p: Floats
    """Calibrated on an earlier fold."""
    threshold: Floats
    """Least p of a trade, chosen on earlier folds."""
    top: Floats
    """The raw score that one row in a hundred of its fold reached: what would be traded if something had to."""
    fold: NDArray[np.int32]


class Trades(Struct):
    """Trades taken one at a time for each symbol, ordered by symbol and entry. All [t]."""

    row: Ints
    column: NDArray[np.int64]
    """0 long, 1 short."""
    begin: Ints
    end: Ints
    gross: Floats
    net: Floats
    reason: NDArray[np.int8]
    symbol: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.row)


class Days(Struct):
    """The days that are judged, and which of them each draw of the bootstrap holds how often."""

    first: int
    count: int
    drawn: Floats
    """[DRAWS, count]"""

    def of(self, times: Ints) -> Ints:
        """Index of the day of each time (ms)."""
        return times // DAY_MS - self.first


def days_of(times: Ints, rule: LabelRule, rng: np.random.Generator) -> Days:
    """Days from the first to the last of these times; blocks of max(1 day, horizon), drawn around the circle."""
    first = int(times.min()) // DAY_MS
    count = int(times.max()) // DAY_MS - first + 1
    length = min(count, max(1, math.ceil(rule.horizon_s / 86_400)))
    blocks = math.ceil(count / length)
    starts = rng.integers(0, count, (DRAWS, blocks))
    chosen = ((starts[:, :, None] + np.arange(length)) % count).reshape(DRAWS, -1)[:, :count]
    drawn = np.zeros((DRAWS, count))
    np.add.at(drawn, (np.repeat(np.arange(DRAWS), count), chosen.ravel()), 1)
    return Days(first, count, drawn)


# ---- skill


def skill(examples: Examples, scores: Scores, days: Days, rng: np.random.Generator) -> dict[str, Any]:
    """Log loss, Brier score and their skill over the base rate, AUC with interval, by symbol and month, and against
    chance, for each head and for the direction.

    The direction asks only whether long did better than short, scored by p_long - p_short: volatility alone has no
    say in it, as it has in the heads (features.md 0.8).
    """
    rows = scores.rows
    day = days.of(examples.times[rows])
    made: dict[str, Any] = {}
    for column, name in enumerate(("long", "short")):
        won, p, raw = examples.won[rows, column], scores.p[:, column], scores.raw[:, column]
        made[name] = {
            **_losses(won, p, day, days),
            **_auc_report(examples, rows, won, raw, day, days, rng),
            "calibration": _calibration(won, p, day, days),
        }
    differs = examples.net[rows, 0] != examples.net[rows, 1]
    at = np.flatnonzero(differs)
    up = examples.net[rows[at], 0] > examples.net[rows[at], 1]
    lean = scores.raw[at, 0] - scores.raw[at, 1]
    made["direction"] = _auc_report(examples, rows[at], up, lean, day[at], days, rng)
    return made


def _losses(won: Mask, p: Floats, day: Ints, days: Days) -> dict[str, Any]:
    bounded = np.clip(p, 1e-6, 1 - 1e-6)
    base = float(np.clip(won.mean(), 1e-6, 1 - 1e-6))
    log_loss = -np.where(won, np.log(bounded), np.log(1 - bounded))
    base_loss = -np.where(won, math.log(base), math.log(1 - base))
    brier = (bounded - won) ** 2
    base_brier = np.where(won, (base - 1) ** 2, base**2)
    return {
        "rows": len(won),
        "base_rate": base,
        "log_loss": float(log_loss.mean()),
        "log_loss_skill": _ratio(base_loss - log_loss, base_loss, day, days),
        "brier": float(brier.mean()),
        "brier_skill": _ratio(base_brier - brier, base_brier, day, days),
    }


def _ratio(over: Floats, under: Floats, day: Ints, days: Days) -> dict[str, float | None]:
    """Σ over / Σ under with its interval."""
    a, b = np.bincount(day, over, days.count), np.bincount(day, under, days.count)
    return _estimate(a.sum() / b.sum() if b.sum() else math.nan, _safe(days.drawn @ a, days.drawn @ b))


def _safe(a: Floats, b: Floats) -> Floats:
    ratio: Floats = np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b != 0)
    return ratio


def _estimate(value: float, drawn: Floats) -> dict[str, float | None]:
    """value, low, high; None where there is no number."""
    finite = drawn[np.isfinite(drawn)]
    if not math.isfinite(value) or not len(finite):
        return {"value": None, "low": None, "high": None}
    low, high = np.percentile(finite, INTERVAL)
    return {"value": float(value), "low": float(low), "high": float(high)}


def auc(won: Mask, score: Floats) -> float:
    """Area under the ROC curve, ties counted half; NaN where only one kind is there."""
    ranks = _ranks(score)
    wins = int(won.sum())
    losses = len(won) - wins
    if not wins or not losses:
        return math.nan
    return float((ranks[won].sum() - wins * (wins + 1) / 2) / (wins * losses))


def _ranks(score: Floats) -> Floats:
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    upper = np.cumsum(counts)
    ranks: Floats = (upper - (counts - 1) / 2)[inverse]
    return ranks


def _auc_report(
    examples: Examples, rows: Ints, won: Mask, score: Floats, day: Ints, days: Days, rng: np.random.Generator
) -> dict[str, Any]:
    """AUC with its interval, the median and 5 % of symbol-months, and the band of chance."""
    if not len(rows):
        return {"auc": _estimate(math.nan, np.zeros(0)), "symbol_months": None, "chance": None}
    edges = np.unique(np.quantile(score, np.linspace(0, 1, _BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, score)
    by_day = [
        np.bincount(day[kind] * _BINS + bins[kind], minlength=days.count * _BINS).reshape(days.count, _BINS)
        for kind in (won, ~won)
    ]
    wins, losses = (days.drawn @ each for each in by_day)
    below = np.cumsum(losses, axis=1) - losses / 2
    drawn = _safe((wins * below).sum(axis=1), wins.sum(axis=1) * losses.sum(axis=1))
    group = examples.symbol[rows].astype(np.int64) * 100_000 + _month(examples.times[rows])
    monthly = [auc(won[mine], score[mine]) for each in np.unique(group) if (mine := group == each).sum() >= 500]
    monthly = [each for each in monthly if math.isfinite(each)]
    return {
        "auc": _estimate(auc(won, score), drawn),
        "symbol_months": {
            "count": len(monthly),
            "median": float(np.median(monthly)),
            "low_5": float(np.percentile(monthly, 5)),
        }
        if monthly
        else None,
        "chance": chance_band(examples, rows, won, score, rng),
    }


def _month(times: Ints) -> Ints:
    months: Ints = times.astype("datetime64[ms]").astype("datetime64[M]").astype(np.int64)
    return months


def chance_band(
    examples: Examples, rows: Ints, won: Mask, score: Floats, rng: np.random.Generator, moves: int = 60
) -> dict[str, float] | None:
    """AUC of the same scores against the same outcomes moved by whole days, which keeps the rhythm of both.

    None where fewer than five days are there to move by. What slow columns gain within a short block by themselves
    (features.md 0.7) is in it, for the outcomes stay in their block.
    """
    times, symbol = examples.times[rows], examples.symbol[rows]
    first = int(times.min()) // DAY_MS * DAY_MS
    days = int(times.max() - first) // DAY_MS + 1
    if days < 5:
        return None
    span = days * 1440
    minute = (times - first) // 60_000
    grid = np.full((len(examples.symbols), span), -1, np.int64)
    grid[symbol, minute] = np.arange(len(rows))
    some = np.arange(0, len(rows), max(1, len(rows) // 100_000))
    ranks = _ranks(score[some])
    found = []
    for move in rng.choice(np.arange(1, days), min(moves, days - 1), replace=False):
        other = grid[symbol[some], (minute[some] + int(move) * 1440) % span]
        there = other >= 0
        outcome = won[other[there]]
        wins, losses = int(outcome.sum()), int((~outcome).sum())
        if wins and losses:
            # Ranks of a part are close enough to ranks within the part: the band is wide beside that.
            mine = ranks[there]
            found.append(float((mine[outcome].mean() - mine[~outcome].mean()) / len(some) + 0.5))
    if len(found) < 4:
        return None
    low, high = np.percentile(found, INTERVAL)
    return {"low": float(low), "high": float(high), "mean": float(np.mean(found)), "sd": float(np.std(found))}


def _calibration(won: Mask, p: Floats, day: Ints, days: Days, bins: int = 10) -> dict[str, Any]:
    """Ten bins of equally many rows: mean probability, observed share with its interval; and the expected error."""
    edges = np.unique(np.quantile(p, np.linspace(0, 1, bins + 1)[1:-1]))
    at = np.searchsorted(edges, p)
    table = []
    error = 0.0
    for index in np.unique(at):
        mine = at == index
        observed = _ratio(won[mine].astype(np.float64), np.ones(int(mine.sum())), day[mine], days)
        table.append({"rows": int(mine.sum()), "p": float(p[mine].mean()), "observed": observed})
        error += abs(float(won[mine].mean() - p[mine].mean())) * float(mine.mean())
    return {"bins": table, "expected_error": error}


# ---- trades


def sides(p: Floats, threshold: Floats) -> NDArray[np.int8]:
    """Which side is traded: 0 long, 1 short, -1 none. The better of the two, where it reaches the threshold."""
    better = np.argmax(p, axis=1).astype(np.int8)
    return np.where(p.max(axis=1) >= threshold, better, np.int8(-1))


def take(examples: Examples, rows: Ints, side: NDArray[np.int8]) -> Trades:
    """The trades of one account: in each symbol one at a time, the next not before the last is over."""
    wanted = side >= 0
    at, column = rows[wanted], side[wanted].astype(np.int64)
    ends = examples.side_ends[at, column]
    taken = np.zeros(len(at), np.bool_)
    _one_at_a_time(examples.symbol[at], examples.times[at], ends, taken)
    at, column = at[taken], column[taken]
    return Trades(
        row=at,
        column=column,
        begin=examples.times[at],
        end=ends[taken],
        gross=examples.gross[at, column],
        net=examples.net[at, column],
        reason=examples.reason[at, column],
        symbol=examples.symbol[at],
    )


@part
def _one_at_a_time(symbol: NDArray[np.int32], times: Ints, ends: Ints, taken: Mask) -> None:
    free, current = 0, -1
    for row in range(len(times)):
        if symbol[row] != current:
            current, free = symbol[row], 0
        if times[row] >= free:
            taken[row] = True
            free = ends[row]


def trading(
    examples: Examples, trades: Trades, days: Days, trials: Sequence[float] = (), tried: int = 0
) -> dict[str, Any]:
    """What the trades earned, in basis points of the money in one trade, net of costs unless it says gross.

    `trials` are the daily Sharpe ratios of what was tried now and `tried` counts everything that ever was, for the
    deflated one. A trade counts on the day it begins.
    """
    day = days.of(trades.begin)
    net, gross = trades.net * 1e4, trades.gross * 1e4
    ones = np.ones(len(trades))
    daily: Floats = np.bincount(day, net, days.count).astype(np.float64)
    per_day = _estimate(float(daily.mean()), (days.drawn @ daily) / days.count)
    curve = np.cumsum(daily)
    held_ms = float((trades.end - trades.begin).sum())
    span = max(1, len(examples.symbols)) * days.count * DAY_MS
    return {
        "trades": len(trades),
        "long_share": float((trades.column == 0).mean()) if len(trades) else None,
        "trades_per_day": len(trades) / days.count,
        "net_bp_per_trade": _ratio(net, ones, day, days) if len(trades) else _estimate(math.nan, np.zeros(0)),
        "gross_bp_per_trade": _ratio(gross, ones, day, days) if len(trades) else _estimate(math.nan, np.zeros(0)),
        "net_bp_per_day": per_day,
        "net_bp_per_day_by_cost": {
            str(multiple): float((gross - multiple * (gross - net)).sum() / days.count) for multiple in COST_MULTIPLES
        },
        "total_net_bp": float(net.sum()),
        "win_share": _ratio((net > 0).astype(np.float64), ones, day, days) if len(trades) else None,
        "exits": {
            "target": float((trades.reason == TARGET).mean()),
            "timeout": float((trades.reason == TIMEOUT).mean()),
            "ambiguous": float((trades.reason == STOP_FIRST).mean()),
        }
        if len(trades)
        else None,
        "holding_minutes": held_ms / 60_000 / len(trades) if len(trades) else None,
        "exposure": held_ms / span,
        "turnover_per_day": 2 * len(trades) / days.count,
        "max_drawdown_bp": float((np.maximum.accumulate(np.maximum(curve, 0)) - curve).max()),
        **sharpe(daily, trials, tried),
        "daily_net_bp": daily.tolist(),
    }


def sharpe(daily: Floats, trials: Sequence[float] = (), tried: int = 0) -> dict[str, float | None]:
    """Sharpe ratio of daily results a year (365 days), the probability that it is above zero (PSR), and that it is
    above the best of `tried` worthless trials whose Sharpe ratios vary as `trials` do (DSR). None where nothing varies.

    Bailey and López de Prado 2012 and 2014; SR₀ = sqrt(V[SR of the trials]) · ((1-γ)Φ⁻¹(1-1/N) + γΦ⁻¹(1-1/(Ne))).
    """
    count, deviation = len(daily), float(daily.std())
    if count < 3 or deviation <= 1e-12:
        return {"sharpe_yearly": None, "psr": None, "dsr": None}
    ratio = float(daily.mean()) / deviation
    normal = (daily - daily.mean()) / deviation
    skewness, kurtosis = float((normal**3).mean()), float((normal**4).mean())
    error = math.sqrt(max(1 - skewness * ratio + (kurtosis - 1) / 4 * ratio**2, 1e-12))

    def above(benchmark: float) -> float:
        return _NORMAL.cdf((ratio - benchmark) * math.sqrt(count - 1) / error)

    varied = [each for each in trials if math.isfinite(each)]
    count_tried = max(tried, len(varied))
    deflated = above(0.0)
    if len(varied) > 1:
        high = _NORMAL.inv_cdf(1 - 1 / count_tried)
        higher = _NORMAL.inv_cdf(1 - 1 / (count_tried * math.e))
        deflated = above(float(np.std(varied)) * ((1 - _EULER) * high + _EULER * higher))
    return {"sharpe_yearly": ratio * math.sqrt(365), "psr": above(0.0), "dsr": deflated}


def overfitting(daily: Floats, blocks: int = 8) -> float | None:
    """PBO by combinatorially symmetric cross-validation: how often the best trial of one half of the days is among the
    worse half of the trials on the other. daily: [days, trials]; None with fewer than 2 trials or 2 days a block.

    Bailey, Borwein, López de Prado, Zhu 2017.
    """
    days, trials = daily.shape
    if trials < 2 or days < 2 * blocks or not (daily.std(axis=0) > 0).any():
        return None
    pieces = np.array_split(np.arange(days), blocks)
    worse = []
    for chosen in combinations(range(blocks), blocks // 2):
        inside = np.concatenate([pieces[at] for at in chosen])
        outside = np.concatenate([pieces[at] for at in range(blocks) if at not in chosen])
        best = int(np.argmax(_day_sharpe(daily[inside])))
        rank = _ranks(_day_sharpe(daily[outside]))[best] / (trials + 1)
        worse.append(rank <= 0.5)
    return float(np.mean(worse))


def _day_sharpe(daily: Floats) -> Floats:
    return _safe(daily.mean(axis=0), daily.std(axis=0) + 1e-12)


# ---- tables


def eras(examples: Examples, scores: Scores, trades: Trades) -> dict[str, Any]:
    """By week: direction AUC, trades, and net result; and how many weeks were better than chance."""
    rows = scores.rows
    week = _week(examples.times[rows])
    table = []
    for each in np.unique(week):
        mine = week == each
        at = rows[mine]
        up = examples.net[at, 0] > examples.net[at, 1]
        of_week = _week(trades.begin) == each
        area = auc(up, scores.raw[mine, 0] - scores.raw[mine, 1])
        table.append(
            {
                "from": int(examples.times[at].min()),
                "rows": int(mine.sum()),
                "direction_auc": area if math.isfinite(area) else None,
                "trades": int(of_week.sum()),
                "net_bp": float(trades.net[of_week].sum() * 1e4),
            }
        )
    areas = [row["direction_auc"] for row in table if row["direction_auc"] is not None]
    return {
        "weeks": table,
        "mean_auc": float(np.mean(areas)) if areas else None,
        "sd_auc": float(np.std(areas)) if areas else None,
        "positive_share": float(np.mean(np.array(areas) > 0.5)) if areas else None,
    }


BREAKS = (
    (1_758_153_600_000, "2025-09-18", "mark price basis of 30 s instead of 1 min; another formula of funding"),
    (1_767_312_000_000, "2026-01-02", "funding intervals fall back from 1 h to 4 h by themselves"),
    (1_782_345_600_000, "2026-06-25", "5-minute metrics are labelled by the beginning of their period"),
)
"""When the exchange changed what its numbers mean: ms UTC, day, what changed (features.md 2.6)."""


def between_breaks(examples: Examples, scores: Scores, trades: Trades) -> list[dict[str, Any]]:
    """Direction AUC, trades and net result before, between and after the `BREAKS`; empty where all of `scores` lie on
    one side."""
    rows = scores.rows
    fences = np.array([each[0] for each in BREAKS])
    part, of_trade = (np.searchsorted(fences, times, side="right") for times in (examples.times[rows], trades.begin))
    made = []
    for each in np.unique(part).tolist():
        mine = part == each
        up = examples.net[rows[mine], 0] > examples.net[rows[mine], 1]
        area = auc(up, scores.raw[mine, 0] - scores.raw[mine, 1])
        made.append(
            {
                "since": BREAKS[each - 1][1] if each else None,
                "until": BREAKS[each][1] if each < len(BREAKS) else None,
                "rows": int(mine.sum()),
                "direction_auc": area if math.isfinite(area) else None,
                "trades": int((of_trade == each).sum()),
                "net_bp": float(trades.net[of_trade == each].sum() * 1e4),
            }
        )
    return made if len(made) > 1 else []


def _week(times: Ints) -> Ints:
    """Number of the week that begins on Monday."""
    return (times // DAY_MS + 3) // 7


def exposure(examples: Examples, scores: Scores, rng: np.random.Generator) -> dict[str, Any]:
    """Correlation of the lean to long with each feature, the largest first, and the direction AUC that is left when
    what the returns of the past explain of the lean is taken out. On at most 50,000 rows."""
    count = len(scores.rows)
    some = np.sort(rng.choice(count, min(count, 50_000), replace=False))
    rows = scores.rows[some]
    lean = scores.raw[some, 0] - scores.raw[some, 1]
    features = examples.features(rows).astype(np.float64)
    there = np.isfinite(features)
    mean = np.where(there, features, 0.0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    features = np.where(there, features - mean, 0.0)
    centred = lean - lean.mean()
    norm = np.sqrt((features**2).sum(axis=0) * (centred**2).sum())
    correlation = _safe(features.T @ centred, norm)
    order = np.argsort(-np.abs(np.nan_to_num(correlation)))
    past = features[:, [at for at, name in enumerate(examples.names) if name.startswith(("ret_", "zret_"))]]
    up = examples.net[rows, 0] > examples.net[rows, 1]
    left = centred
    if past.shape[1]:
        left = centred - past @ np.linalg.lstsq(past, centred, rcond=None)[0]
    area = auc(up, left)
    return {
        "largest": [
            {"feature": examples.names[at], "correlation": float(np.nan_to_num(correlation[at]))} for at in order[:15]
        ],
        "auc_beyond_past_returns": area if math.isfinite(area) else None,
    }


def reasons(labels_reason: NDArray[np.int8]) -> dict[str, dict[str, float]]:
    """Shares of the outcomes for each side."""
    made = {}
    for column, side in enumerate(SIDES):
        mine = labels_reason[:, column]
        made["long" if side > 0 else "short"] = {
            "target": float((mine == TARGET).mean()),
            "timeout": float((mine == TIMEOUT).mean()),
            "ambiguous": float((mine == STOP_FIRST).mean()),
        }
    return made
