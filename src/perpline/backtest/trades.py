"""What a position would have become, minute by minute, by `domain.exit_rule` and `domain.fill` as live uses them."""

import math
from typing import Literal

from msgspec import Struct

from perpline.domain.candle import MINUTE_MS
from perpline.domain.exit_rule import (
    OPEN,
    STOP,
    STOP_FIRST,
    TARGET,
    TIMEOUT,
    LabelRule,
    exit_levels,
    exit_reason,
    rounded_levels,
    touched_level,
)
from perpline.domain.fill import entry_fill, exit_fill, funding_paid, gross_return, last_at_level, net_return
from perpline.training.labels import PricePath

Reason = Literal["target", "stop", "ambiguous", "timeout", "open", "unknown"]


class Trade(Struct, frozen=True, kw_only=True):
    """One position. Prices are in quote, times ms, returns log returns of the money in it."""

    signal_id: str
    symbol: str
    side: int
    close_time: int
    """T of its signal; it is entered at the open of the minute that begins then."""
    p: float
    ev_bp: float
    entry: float
    """Paid, slippage included."""
    reference: float
    """The price that the levels are counted from: the mark price at the entry, last where the rule says so."""
    target: float
    stop: float
    reason: Reason
    """`ambiguous`: one minute touched both levels, which counts as stopped. `open`: history ends before the trade.
    `unknown`: a minute is missing before it ended, so nobody knows how it ended."""
    exit_time: int
    """The end of the minute it ended in; of an open or unknown trade the end of what is known."""
    exit: float = math.nan
    """Got, slippage included."""
    gross: float = math.nan
    """Between the prices without any cost; NaN where it has not ended."""
    net: float = math.nan
    """After fees, slippage and funding."""
    mae: float = 0.0
    """Furthest against it, a share of the reference, <= 0."""
    mfe: float = 0.0

    @property
    def over(self) -> bool:
        """Whether it is known how it ended."""
        return self.reason not in ("open", "unknown")


def follow(
    path: PricePath, rule: LabelRule, *, signal_id: str, side: int, close_time: int, p: float, ev_bp: float
) -> Trade:
    """The trade of a signal: entered at the next open, left at a level, at the horizon, or where history ends."""
    begin = (close_time - path.start) // MINUTE_MS
    deadline = close_time + rule.horizon_s // 60 * MINUTE_MS

    def made(reason: Reason, minute: int, **known: float) -> Trade:
        known.setdefault("entry", math.nan)
        return Trade(
            signal_id=signal_id,
            symbol=path.symbol,
            side=side,
            close_time=close_time,
            p=p,
            ev_bp=ev_bp,
            reference=reference,
            target=target,
            stop=stop,
            reason=reason,
            exit_time=path.start + minute * MINUTE_MS,
            **known,
        )

    reference = float(path.first[begin]) if begin < len(path.first) else math.nan
    target, stop = exit_levels(side, reference, rule.tp_pct, rule.sl_pct)
    target, stop = rounded_levels(side, target, stop, path.step, path.scale)
    if begin >= len(path.first):
        return made("open", begin)
    if math.isnan(path.entry[begin]) or math.isnan(reference):
        return made("unknown", begin)
    entry = entry_fill(side, float(path.entry[begin]), rule.slip_bp)
    highest = lowest = reference
    for minute in range(begin, len(path.first)):
        high, low, last = float(path.high[minute]), float(path.low[minute]), float(path.last[minute])
        if math.isnan(high) or math.isnan(last):
            return made("unknown", minute, entry=entry)
        now = path.start + (minute + 1) * MINUTE_MS
        reason = exit_reason(side, target, stop, high, low, now, deadline)
        highest, lowest = max(highest, high), min(lowest, low)
        if reason != OPEN:
            break
    else:
        return made("open", len(path.first), entry=entry)
    if reason == TIMEOUT:
        raw = last
        # What is settled at the very end of the time limit is still paid; at a touch within a minute it is not.
        paid = float(path.funding[min(minute + 1, len(path.funding) - 1)] - path.funding[begin])
    else:
        level = touched_level(side, reason, target, stop, float(path.first[minute]))
        raw = last_at_level(level, last, float(path.close[minute]))
        paid = float(path.funding[minute] - path.funding[begin])
    sold = exit_fill(side, raw, rule.slip_bp)
    up, down = highest / reference - 1.0, lowest / reference - 1.0
    return made(
        _REASONS[reason],
        minute + 1,
        entry=entry,
        exit=sold,
        gross=gross_return(side, float(path.entry[begin]), raw),
        net=net_return(side, entry, sold, rule.fee_bp, funding_paid(side, paid, entry)),
        mae=down if side > 0 else -up,
        mfe=up if side > 0 else -down,
    )


_REASONS: dict[int, Reason] = {TARGET: "target", STOP: "stop", STOP_FIRST: "ambiguous", TIMEOUT: "timeout"}
