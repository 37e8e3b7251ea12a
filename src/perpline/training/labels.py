"""What would have become of a trade opened at each close, for both sides, and how much each row of training weighs.

The rule is `domain.exit_rule` and `domain.fill`, the source that decides live, compiled here with numba. Rows are close
boundaries T; the trade is entered at the open of the next minute, which begins at T (features.md 2.1, 2.3).
"""

from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from perpline.domain import exit_rule, fill
from perpline.domain.candle import MINUTE_MS
from perpline.domain.exit_rule import OPEN, STOP_FIRST, TIMEOUT, LabelRule
from perpline.features.compiled import part
from perpline.storage.history import SymbolHistory

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SIDES = (1, -1)
"""The order of the columns of everything that has one for each side."""
DELISTING_PENALTY_BP = 100.0
"""What leaving a contract costs beyond its last print when it is delisted during the trade: nobody knows that price."""
HALF_LIFE_DAYS = 90.0
_BLOCK = 16


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
    )


def label(path: PricePath, times: Ints, rule: LabelRule) -> Labels:
    """Labels of trades decided at close boundaries `times` (ms, any order).

    No label where the minute of entry or any minute within the horizon is missing, or the horizon is not over when the
    history ends (unless it ends because the contract was delisted).
    """
    n, horizon = len(times), rule.horizon_s // 60
    made = Labels(
        times=times,
        reason=np.zeros((n, 2), np.int8),
        net=np.full((n, 2), np.nan),
        gross=np.full((n, 2), np.nan),
        ends=np.zeros((n, 2), np.int64),
        worst=np.zeros((n, 2), np.float32),
        best=np.zeros((n, 2), np.float32),
    )
    if not len(path.entry):
        return made
    holes = ~(np.isfinite(path.entry) & np.isfinite(path.last) & np.isfinite(path.high) & np.isfinite(path.first))
    at = (times - path.start) // MINUTE_MS
    blocks = len(path.high) // _BLOCK * _BLOCK
    _label_rows(
        at,
        path.start,
        horizon,
        np.concatenate([[0], np.cumsum(holes)]),
        path.entry,
        path.last,
        path.first,
        path.high,
        path.low,
        path.close,
        path.high[:blocks].reshape(-1, _BLOCK).max(axis=1),
        path.low[:blocks].reshape(-1, _BLOCK).min(axis=1),
        path.funding,
        rule.tp_pct,
        rule.sl_pct,
        rule.slip_bp,
        rule.fee_bp,
        DELISTING_PENALTY_BP if path.delisted else -1.0,
        made.reason,
        made.net,
        made.gross,
        made.ends,
        made.worst,
        made.best,
    )
    return made


_exit_levels = part(exit_rule.exit_levels)
_exit_reason = part(exit_rule.exit_reason)
_touched_level = part(exit_rule.touched_level)
_entry_fill = part(fill.entry_fill)
_exit_fill = part(fill.exit_fill)
_last_at_level = part(fill.last_at_level)
_funding_paid = part(fill.funding_paid)
_gross_return = part(fill.gross_return)
_net_return = part(fill.net_return)


# Not cached on disk: numba would not notice a change of the rule's source, which lies in another file.
@part
def _label_rows(
    at: Ints,
    start: int,
    horizon: int,
    holes: Ints,
    entry: Floats,
    last: Floats,
    first: Floats,
    high: Floats,
    low: Floats,
    close: Floats,
    block_high: Floats,
    block_low: Floats,
    funding: Floats,
    tp_pct: float,
    sl_pct: float,
    slip_bp: float,
    fee_bp: float,
    penalty_bp: float,
    reasons: NDArray[np.int8],
    net: Floats,
    gross: Floats,
    ends: Ints,
    worst: NDArray[np.float32],
    best: NDArray[np.float32],
) -> None:
    size = len(entry)
    for row in range(len(at)):
        begin = at[row]
        over = begin + horizon
        if begin < 0 or begin >= size or (over > size and penalty_bp < 0):
            continue
        end = min(over, size)
        if holes[end] - holes[begin] > 0:
            continue
        deadline = start + end * 60_000
        for column in range(2):
            side = 1 - 2 * column
            target, stop = _exit_levels(side, first[begin], tp_pct, sl_pct)
            highest, lowest = first[begin], first[begin]
            minute = begin
            reason = 0
            while reason == 0:
                block = minute // 16
                if minute % 16 == 0 and minute + 16 <= end:
                    now = start + (minute + 16) * 60_000
                    if _exit_reason(side, target, stop, block_high[block], block_low[block], now, deadline) == 0:
                        highest = max(highest, block_high[block])
                        lowest = min(lowest, block_low[block])
                        minute += 16
                        continue
                now = start + (minute + 1) * 60_000
                reason = _exit_reason(side, target, stop, high[minute], low[minute], now, deadline)
                highest = max(highest, high[minute])
                lowest = min(lowest, low[minute])
                minute += 1
            final = minute - 1
            extra_bp = 0.0
            if reason == TIMEOUT:
                raw = last[final]
                paid = funding[min(final + 1, size - 1)] - funding[begin]
                if over > size:
                    extra_bp = penalty_bp
            else:
                raw = _last_at_level(
                    _touched_level(side, reason, target, stop, first[final]), last[final], close[final]
                )
                paid = funding[final] - funding[begin]
            bought = _entry_fill(side, entry[begin], slip_bp)
            sold = _exit_fill(side, raw, slip_bp)
            reasons[row, column] = reason
            gross[row, column] = _gross_return(side, entry[begin], raw)
            owed = _funding_paid(side, paid, bought)
            net[row, column] = _net_return(side, bought, sold, fee_bp, owed) - extra_bp / 10_000.0
            ends[row, column] = start + minute * 60_000
            up, down = highest / first[begin] - 1.0, lowest / first[begin] - 1.0
            best[row, column] = up if side > 0 else -down
            worst[row, column] = down if side > 0 else -up


def uniqueness(times: Ints, ends: Ints) -> Floats:
    """How much of each label is its own: the mean of 1 / (labels open at once) over its minutes [time, end).

    `times` and `ends` are i8[n] in milliseconds, of one symbol and side, every row with a label; result f8[n] in
    (0, 1] (López de Prado 2018, 4.3).
    """
    if not len(times):
        return np.zeros(0)
    first = int(times.min())
    begin, end = (times - first) // MINUTE_MS, (ends - first) // MINUTE_MS
    size = int(end.max()) + 1
    change = np.bincount(begin, minlength=size + 1) - np.bincount(end, minlength=size + 1)
    open_at_once = np.maximum(np.cumsum(change[:-1]), 1)
    shares = np.concatenate([[0.0], np.cumsum(1.0 / open_at_once)])
    unique: Floats = (shares[end] - shares[begin]) / np.maximum(end - begin, 1)
    return unique


def weights(times: Ints, unique: Floats, now: int, half_life_days: float = HALF_LIFE_DAYS) -> Floats:
    """Weights f8[n] with mean 1: uniqueness, halved for every `half_life_days` of age at `now` (ms), and divided by how
    many symbols have rows that day, so that a day weighs the same with ten listed symbols as with thirty.

    `times` (ms) are those of all symbols together, a symbol's rows in one run.
    """
    if not len(times):
        return np.zeros(0)
    day = times // 86_400_000
    starts = np.concatenate([[True], (np.diff(times) < 0) | (np.diff(day) != 0)])  # a symbol's day begins
    days, symbols = np.unique(day[starts], return_counts=True)
    decayed = unique * np.exp2(-(now - times) / (half_life_days * 86_400_000))
    weighed = decayed / symbols[np.searchsorted(days, day)]
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
