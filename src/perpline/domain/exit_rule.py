"""When a position ends: first touch of target or stop on the mark price, or the time limit. The one rule there is.

The live stop monitor asks it at every tick, the backtest at every minute, the labeller compiles this very source with
numba. So the functions take plain numbers, decide one step each, and call nothing.
"""

import json
import math
from hashlib import blake2b
from typing import Final, Literal

from msgspec import Struct, structs

OPEN: Final = 0
TARGET: Final = 1
STOP: Final = 2
STOP_FIRST: Final = 3
"""Target and stop were both touched within one minute, and nobody can tell which came first: it counts as stopped."""
TIMEOUT: Final = 4
REASONS: Final = {OPEN: "none", TARGET: "target", STOP: "stop", STOP_FIRST: "stop_first", TIMEOUT: "timeout"}
"""In words, as they are stored and shown."""

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


def rounded_levels(side: int, target: float, stop: float, step: float, scale: float) -> tuple[float, float]:
    """Both on the grid of prices n · step / scale, away from the reference, as live places them (features.md 4.1).

    A tick of 0.05 is step 5 and scale 100, so that a price is the very number that its decimals are read as. A level
    that lies on the grid but for the last bits stays. Scale 0: as they are.
    """
    if scale <= 0.0 or target != target:
        return target, stop
    above, below = (target, stop) if side > 0 else (stop, target)
    above = math.ceil(above * scale / step - 1e-7) * step / scale
    below = math.floor(below * scale / step + 1e-7) * step / scale
    return (above, below) if side > 0 else (below, above)


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


def better_mark(side: int, best: float, mark: float) -> float:
    """The better of two mark prices for a position of this side: the higher for a long, the lower for a short."""
    if side > 0:
        return mark if mark > best else best
    return mark if mark < best else best


def trailed_stop(side: int, stop: float, best: float, trailing_pct: float) -> float:
    """The stop that follows the best mark price at a distance of `trailing_pct`; 0 for one that does not follow.

    It moves in the position's favour only. Over minutes it is the best of the minutes before that counts: whether high
    or low came first within one is not known.
    """
    if trailing_pct <= 0.0:
        return stop
    return better_mark(side, stop, best * (1.0 - side * trailing_pct / 100.0))


def break_even_stop(side: int, stop: float, entry: float, best: float, break_even_pct: float) -> float:
    """The stop, moved to the entry price once the best mark price was `break_even_pct` in profit; 0 for never."""
    if break_even_pct <= 0.0 or side * (best - entry) < entry * break_even_pct / 100.0:
        return stop
    return better_mark(side, stop, entry)
