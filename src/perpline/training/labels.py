"""What would have become of a trade opened at each close, for both sides, and how much each row of training weighs.

The rule is `domain.exit_rule` and `domain.fill`, the source that decides live, compiled here with numba. Rows are close
boundaries T; the trade is entered at the open of the next minute, which begins at T (features.md 2.1, 2.3).
"""

import math
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from perpline.domain import exit_rule, fill
from perpline.domain.candle import MINUTE_MS
from perpline.domain.exit_rule import OPEN, STOP_FIRST, TIMEOUT, LabelRule
from perpline.features.compiled import compiled, compiled_with, part
from perpline.storage.history import SymbolHistory

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SIDES = (1, -1)
"""The order of the columns of everything that has one for each side."""
LABEL_TABLES = ("candles_1m", "mark_klines", "funding_rates")
"""What a price path is made of."""
DELISTING_PENALTY_BP = 100.0
"""What leaving a contract costs beyond its last print when it is delisted during the trade: nobody knows that price."""
HALF_LIFE_DAYS = 90.0
GRID_PRICES = 20_000
"""Of a symbol's closes, by which its tick is found."""
_MINUTE = np.uint64(MINUTE_MS)
_BLOCK = 2_048
"""Rows, and minutes from the first of them to the last, that are labelled at once: their arrays stay in the caches."""


class PricePath(Struct):
    """A symbol's prices on a dense grid of minutes; index 0 is the minute that begins at `start` (ms).

    All arrays have a value per minute, NaN where history has none: `entry` and `last` are open and close of the
    candles, `first`, `high`, `low` and `close` those of the price that touches levels (mark, or last where the rule
    says so), `funding` the running Σ rate · mark price of the settlements until the minute began.
    """

    symbol: str
    start: int
    entry: Floats
    last: Floats
    first: Floats
    high: Floats
    low: Floats
    close: Floats
    funding: Floats
    has_funding: bool
    delisted: bool = False
    """Whether the series ends because the contract did: then trades end at the last print, with a penalty."""
    step: float = 0.0
    scale: float = 0.0
    """Prices of orders are n · step / scale, and levels are rounded to them; scale 0 where that is not known."""


class Labels(Struct):
    """What became of trades at close boundaries `times` (ms, i8[n]); the other arrays are [n, 2], long then short."""

    times: Ints
    reason: NDArray[np.int8]
    """exit_rule's TARGET, STOP, STOP_FIRST or TIMEOUT; OPEN (0) where there is no label."""
    net: Floats
    """Log return after fees, slippage and funding; NaN where there is no label."""
    gross: Floats
    """Log return between the prices without any cost."""
    ends: Ints
    """When the trade was over (ms): the end of the minute of the exit."""
    worst: NDArray[np.float32]
    """Maximum adverse excursion, share of the reference price, <= 0."""
    best: NDArray[np.float32]
    """Maximum favourable excursion, >= 0."""

    @property
    def known(self) -> NDArray[np.bool_]:
        """Rows that have a label, bool[n]; a row has both sides or none."""
        known: NDArray[np.bool_] = self.reason[:, 0] != OPEN
        return known

    @property
    def ambiguous_share(self) -> float:
        """Share of labels where one minute touched both levels, which counted as stopped."""
        known = self.known
        return float((self.reason[known] == STOP_FIRST).mean()) if known.any() else 0.0


def price_path(history: SymbolHistory, rule: LabelRule, *, delisted: bool = False) -> PricePath:
    """The grid from the first to the last candle of this history; empty where there is none."""
    opened = history.candles["open_time"]
    start, size = (int(opened[0]), int((opened[-1] - opened[0]) // MINUTE_MS) + 1) if len(opened) else (0, 0)

    def spread(times: Ints, values: Floats) -> Floats:
        if size and len(times) == size and times[0] == start and times[-1] == opened[-1]:
            return values  # as many ascending minutes as there is room for: no holes
        grid = np.full(size, np.nan)
        at = (times - start) // MINUTE_MS
        inside = (at >= 0) & (at < size)
        grid[at[inside]] = values[inside]
        return grid

    candles = {name: spread(opened, history.candles[name]) for name in ("open", "high", "low", "close")}
    touching = candles
    if rule.price == "mark":
        touching = {name: spread(history.mark["open_time"], history.mark[name]) for name in candles}
    # A settlement is stamped some milliseconds after its minute began; who enters at that minute's open pays nothing.
    rates = np.zeros(size)
    settled = (history.funding["funding_time"] - start) // MINUTE_MS
    inside = (settled >= 0) & (settled < size)
    np.add.at(rates, settled[inside], history.funding["rate"][inside])
    at_mark = np.where(rates == 0, 0.0, rates * np.where(np.isfinite(touching["open"]), touching["open"], 0.0))
    step, scale = price_grid(candles["close"])
    return PricePath(
        symbol=history.symbol,
        start=start,
        entry=candles["open"],
        last=candles["close"],
        first=touching["open"],
        high=touching["high"],
        low=touching["low"],
        close=touching["close"],
        funding=np.cumsum(at_mark),
        has_funding=bool(inside.any()),
        delisted=delisted,
        step=step,
        scale=scale,
    )


def price_grid(prices: Floats) -> tuple[float, float]:
    """step and scale of the tick that these last prices have: all of them are n · step / scale. 0, 0 for none up to
    eight decimals.

    Found out from the prices, for no history tells the tick; where it was changed, the finest counts.
    """
    known = prices[np.isfinite(prices)]
    some = known[:: max(1, len(known) // GRID_PRICES)]
    if not len(some):
        return 0.0, 0.0
    for decimals in range(9):
        scale = 10.0**decimals
        whole = np.rint(some * scale)
        if (whole / scale == some).all() and whole.max() < 1 << 53:
            return float(np.gcd.reduce(whole.astype(np.int64))), scale
    return 0.0, 0.0


def label(path: PricePath, times: Ints, rule: LabelRule) -> Labels:
    """Labels of trades decided at close boundaries `times` (ms, ascending).

    No label where the minute of entry or any minute within the horizon is missing, or the horizon is not over when the
    history ends (unless it ends because the contract was delisted). ValueError where the times do not ascend.
    """
    if (times[1:] < times[:-1]).any():
        raise ValueError("times of labels must ascend")
    n, horizon = len(times), rule.horizon_s // 60
    made = Labels(
        times=times,
        reason=np.zeros((n, 2), np.int8),
        net=np.empty((n, 2)),
        gross=np.empty((n, 2)),
        ends=np.zeros((n, 2), np.int64),
        worst=np.zeros((n, 2), np.float32),
        best=np.zeros((n, 2), np.float32),
    )
    levels = max(1, (horizon - 1).bit_length())
    _label_rows(
        times,
        path.start,
        horizon,
        path.entry,
        path.last,
        path.first,
        path.high,
        path.low,
        path.close,
        path.funding,
        rule.tp_pct,
        rule.sl_pct,
        path.step,
        path.scale,
        rule.slip_bp,
        rule.fee_bp,
        DELISTING_PENALTY_BP if path.delisted else -1.0,
        np.empty((4, _BLOCK), np.int64),
        np.empty((4, _BLOCK)),
        np.empty((2, levels, _BLOCK + horizon)),
        made.reason,
        made.net,
        made.gross,
        made.ends,
        made.worst,
        made.best,
    )
    return made


_exit_levels = part(exit_rule.exit_levels)
_rounded_levels = part(exit_rule.rounded_levels)
_exit_reason = part(exit_rule.exit_reason)
_touched_level = part(exit_rule.touched_level)
_entry_fill = part(fill.entry_fill)
_exit_fill = part(fill.exit_fill)
_last_at_level = part(fill.last_at_level)
_funding_paid = part(fill.funding_paid)
_gross_return = part(fill.gross_return)
_net_return = part(fill.net_return)


@compiled_with(exit_rule, fill)
def _label_rows(
    times: Ints,
    start: int,
    horizon: int,
    entry: Floats,
    last: Floats,
    first: Floats,
    high: Floats,
    low: Floats,
    close: Floats,
    funding: Floats,
    tp_pct: float,
    sl_pct: float,
    step: float,
    scale: float,
    slip_bp: float,
    fee_bp: float,
    penalty_bp: float,
    ints: Ints,
    floats: Floats,
    stretches: Floats,
    reasons: NDArray[np.int8],
    net: Floats,
    gross: Floats,
    ends: Ints,
    worst: NDArray[np.float32],
    best: NDArray[np.float32],
) -> None:
    """Block by block: which rows have a label, where their trades end, and what they were worth."""
    size = len(entry)
    row = whole = 0  # `whole`: minutes from the row's on to here have all their prices
    while row < len(times):
        base = (times[row] - start) // 60_000
        count = 0
        while row < len(times) and count < _BLOCK:
            begin = (times[row] - start) // 60_000
            if begin >= base + _BLOCK:
                break
            end = min(begin + horizon, size)
            whole = max(whole, begin)
            if begin >= 0 and begin < size and (begin + horizon <= size or penalty_bp >= 0):
                while whole < end and math.isfinite(entry[whole] + last[whole] + high[whole] + first[whole]):
                    whole += 1
                if whole >= end:
                    ints[0, count], ints[1, count], ints[2, count] = row, begin, end
                    count += 1
            net[row, 0] = net[row, 1] = gross[row, 0] = gross[row, 1] = math.nan
            row += 1
        if count == 0:
            continue
        rows, begins, deadlines, exits = ints[0, :count], ints[1, :count], ints[2, :count], ints[3, :count]
        targets, stops, highest, lowest = floats[0, :count], floats[1, :count], floats[2, :count], floats[3, :count]
        base = begins[0]
        _measure_stretches(high, low, base, deadlines[count - 1], stretches)
        for column in range(2):
            side = 1 - 2 * column
            found = column == 1
            for i in range(count):
                target, stop = _exit_levels(side, first[begins[i]], tp_pct, sl_pct)
                target, stop = _rounded_levels(side, target, stop, step, scale)
                found &= (target == stops[i]) & (stop == targets[i])  # the other side's end is this one's as well
                targets[i], stops[i] = target, stop
            if not found:
                for i in range(count):
                    exits[i] = begins[i]
                    highest[i] = lowest[i] = first[begins[i]]
                _find_exits(side, start, base, deadlines, targets, stops, stretches, exits, highest, lowest)
            for i in range(count):
                to, begin, final = rows[i], begins[i], exits[i]
                target, stop = targets[i], stops[i]
                now, deadline = start + (final + 1) * 60_000, start + deadlines[i] * 60_000
                reason = _exit_reason(side, target, stop, high[final], low[final], now, deadline)
                extra_bp = 0.0
                if reason == TIMEOUT:
                    raw = last[final]
                    paid = funding[min(final + 1, size - 1)] - funding[begin]
                    if begin + horizon > size:
                        extra_bp = penalty_bp
                else:
                    level = _touched_level(side, reason, target, stop, first[final])
                    raw = _last_at_level(level, last[final], close[final])
                    paid = funding[final] - funding[begin]
                bought = _entry_fill(side, entry[begin], slip_bp)
                sold = _exit_fill(side, raw, slip_bp)
                owed = _funding_paid(side, paid, bought)
                reasons[to, column] = reason
                gross[to, column] = _gross_return(side, entry[begin], raw)
                net[to, column] = _net_return(side, bought, sold, fee_bp, owed) - extra_bp / 10_000.0
                ends[to, column] = now
                up = max(highest[i], high[final]) / first[begin] - 1.0
                down = min(lowest[i], low[final]) / first[begin] - 1.0
                best[to, column] = up if side > 0 else -down
                worst[to, column] = down if side > 0 else -up


@part
def _measure_stretches(high: Floats, low: Floats, base: int, end: int, stretches: Floats) -> None:
    """Highest and lowest price of 2**level minutes from each minute in [base, end) on, as far as so many are left."""
    highs, lows = stretches[0], stretches[1]
    count = end - base
    for i in range(count):
        highs[0, i], lows[0, i] = high[base + i], low[base + i]
    for level in range(1, len(highs)):
        half = 1 << (level - 1)
        for i in range(count - half):
            highs[level, i] = max(highs[level - 1, i], highs[level - 1, i + half])
            lows[level, i] = min(lows[level - 1, i], lows[level - 1, i + half])
        for i in range(max(count - half, 0), count):
            highs[level, i], lows[level, i] = highs[level - 1, i], lows[level - 1, i]


@part
def _find_exits(
    side: int,
    start: int,
    base: int,
    deadlines: Ints,
    targets: Floats,
    stops: Floats,
    stretches: Floats,
    exits: Ints,
    highest: Floats,
    lowest: Floats,
) -> None:
    """Move `exits` on to the minute in which each trade ends, and widen the extremes of the prices until then.

    The rule is asked about a stretch of minutes as if it were one, and what it leaves open is stepped over, from the
    longest stretch to the shortest. All trades take a step before the next: without a branch that hangs on prices,
    which no processor foresees, they go side by side.
    """
    for level in range(len(stretches[0]) - 1, -1, -1):
        highs, lows = stretches[0, level], stretches[1, level]
        for i in range(len(exits)):
            minute, deadline = exits[i], start + deadlines[i] * 60_000
            now = start + (minute + (1 << level)) * 60_000
            high, low = highs[np.uint64(minute - base)], lows[np.uint64(minute - base)]
            over = _exit_reason(side, targets[i], stops[i], high, low, now, deadline) != OPEN
            exits[i] = minute if over else minute + (1 << level)
            highest[i] = highest[i] if over | (high < highest[i]) else high
            lowest[i] = lowest[i] if over | (low > lowest[i]) else low


def uniqueness(times: Ints, ends: Ints) -> Floats:
    """How much of each label is its own: the mean of 1 / (labels open at once) over its minutes [time, end).

    `times` and `ends` are i8[n] in milliseconds, of one symbol and side, every row with a label; result f8[n] in
    (0, 1] (López de Prado 2018, 4.3).
    """
    if not len(times):
        return np.zeros(0)
    first = int(times.min())
    minutes = (int(ends.max()) - first) // MINUTE_MS + 1
    unique = np.empty(len(times))
    _share_minutes(first, times, ends, np.zeros(minutes + 1, np.int32), np.empty(minutes + 1), unique)
    return unique


@compiled
def _share_minutes(
    first: int, times: Ints, ends: Ints, change: NDArray[np.int32], shares: Floats, unique: Floats
) -> None:
    """`shares` becomes the running Σ 1 / (labels open at once), from their `change` at each minute since `first`."""
    for row in range(len(times)):
        change[np.uint64(times[row] - first) // _MINUTE] += 1
        change[np.uint64(ends[row] - first) // _MINUTE] -= 1
    open_at_once = 0
    total = 0.0
    for minute in range(len(shares)):
        shares[minute] = total
        open_at_once += change[minute]
        total += 1.0 / max(open_at_once, 1)
    for row in range(len(times)):
        begin, end = np.uint64(times[row] - first) // _MINUTE, np.uint64(ends[row] - first) // _MINUTE
        unique[row] = (shares[end] - shares[begin]) / max(np.int64(end - begin), 1)


def weights(times: Ints, unique: Floats, now: int, half_life_days: float = HALF_LIFE_DAYS) -> Floats:
    """Weights f8[n] with mean 1: uniqueness, halved for every `half_life_days` of age at `now` (ms), and divided by how
    many symbols have rows that day, so that a day weighs the same with ten listed symbols as with thirty.

    `times` (ms) are those of all symbols together, a symbol's rows in one run.
    """
    if not len(times):
        return np.zeros(0)
    day = times // 86_400_000
    starts = np.flatnonzero((times[1:] < times[:-1]) | (day[1:] != day[:-1])) + 1
    starts = np.concatenate([[0], starts])  # where a symbol's day begins
    _, of_days, symbols = np.unique(day[starts], return_inverse=True, return_counts=True)
    decayed = unique * np.exp2(-(now - times) / (half_life_days * 86_400_000))
    weighed = decayed / np.repeat(symbols[of_days], np.diff(starts, append=len(times)))
    normal: Floats = weighed / weighed.mean()
    return normal


def independent_symbols(closes: Sequence[tuple[Ints, Floats]]) -> tuple[float, float]:
    """How many independent symbols these are worth: N / (1 + (N - 1) ρ), and ρ, the mean correlation of hourly returns.

    `closes` are open times (ms) and closes of each symbol; hours that not all have are left out.
    """
    count = len(closes)
    hourly: list[dict[int, float]] = []
    for times, values in closes:
        whole = times % 3_600_000 == 0
        hourly.append(dict(zip(times[whole].tolist(), np.log(values[whole]).tolist(), strict=True)))
    common = sorted(set.intersection(*(set(each) for each in hourly))) if hourly else []
    if count < 2 or len(common) < 30:
        return float(count), 0.0
    returns = np.diff(np.array([[each[hour] for hour in common] for each in hourly]), axis=1)
    moving = returns.std(axis=1) > 0
    if moving.sum() < 2:
        return float(count), 0.0
    matrix = np.corrcoef(returns[moving])
    rho = float(np.clip(matrix[np.triu_indices(len(matrix), 1)].mean(), 0.0, 1.0))
    return count / (1.0 + (count - 1) * rho), rho
