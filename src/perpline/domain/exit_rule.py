"""When a position ends: first touch of target or stop on the mark price, or the time limit. The one rule there is.

The live stop monitor asks it at every tick, the backtest at every minute, the labeller compiles this very source with
numba. So the functions take plain numbers, decide one step each, and call nothing.
"""

import json
from hashlib import blake2b
from typing import Final, Literal

from msgspec import Struct, structs

OPEN: Final = 0
TARGET: Final = 1
STOP: Final = 2
STOP_FIRST: Final = 3
"""Target and stop were both touched within one minute, and nobody can tell which came first: it counts as stopped."""
TIMEOUT: Final = 4

MAX_SLIP_BP: Final = 2.0


class LabelRule(Struct, frozen=True):
    """What a probability is about: that a trade entered at T's next price earns more than it costs.

    The target lies `tp_pct` above the reference for a long and below it for a short, the stop `sl_pct` on the other
    side; what is touched first ends the trade, and after `horizon_s` the time does.
    """

    tp_pct: float
    """Distance of the target in percent of the reference price."""
    sl_pct: float
    horizon_s: int
    cost_bp: float
    """Fees and slippage of the round trip, basis points. Of each side's half, up to 2 bp are slippage (`slip_bp`)."""
    price: Literal["mark", "last"] = "mark"
    """Whose high and low touch: the mark price, as at the exchange; last, where no history of the mark price exists."""

    @property
    def break_even(self) -> float:
        """The probability at which a trade is worth nothing: (sl + cost) / (tp + sl)."""
        return (self.sl_pct + self.cost_bp / 100) / (self.tp_pct + self.sl_pct)

    @property
    def random(self) -> float:
        """The probability with which a walk without drift touches the target first: sl / (tp + sl)."""
        return self.sl_pct / (self.tp_pct + self.sl_pct)

    @property
    def lift_needed(self) -> float:
        """What a model must know beyond chance to earn its costs, as a difference of probabilities."""
        return self.break_even - self.random

    @property
    def slip_bp(self) -> float:
        """Slippage of one side, basis points."""
        return min(MAX_SLIP_BP, self.cost_bp / 2)

    @property
    def fee_bp(self) -> float:
        """Fee of one side, basis points."""
        return self.cost_bp / 2 - self.slip_bp


def label_hash(rule: LabelRule) -> str:
    """32 hex digits that change with the rule."""
    text = json.dumps(structs.asdict(rule), sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=16).hexdigest()


def exit_levels(side: int, reference: float, tp_pct: float, sl_pct: float) -> tuple[float, float]:
    """target, stop: prices of a position of this side (+1, -1) opened at a mark price of `reference`."""
    return reference * (1.0 + side * tp_pct / 100.0), reference * (1.0 - side * sl_pct / 100.0)


def exit_reason(side: int, target: float, stop: float, high: float, low: float, now: int, deadline: int) -> int:
    """What a stretch of the mark price does to a position: OPEN, TARGET, STOP, STOP_FIRST or TIMEOUT.

    `high` and `low` are those of the stretch that ends at `now` (ms): a minute, or one tick with both equal. To reach a
    level is to touch it. A touch in the last minute before the deadline comes before the timeout.
    """
    if side > 0:
        won = high >= target
        lost = low <= stop
    else:
        won = low <= target
        lost = high >= stop
    if lost:
        return STOP_FIRST if won else STOP
    if won:
        return TARGET
    return TIMEOUT if now >= deadline else OPEN


def touched_level(side: int, reason: int, target: float, stop: float, first_price: float) -> float:
    """The mark price at which TARGET, STOP or STOP_FIRST took effect, in a stretch that began at `first_price`.

    A stretch that begins beyond the stop has jumped over it: then its first price is what there was. A target that was
    jumped over still counts as the target, which errs on the safe side.
    """
    if reason == TARGET:
        return target
    return min(stop, first_price) if side > 0 else max(stop, first_price)
