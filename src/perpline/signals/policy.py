"""From a probability to a side or a named abstention, for one symbol at one close. Pure: same facts, same verdict."""

import math
from collections.abc import Mapping
from decimal import Decimal

from msgspec import Struct

from perpline.domain.exit_rule import LabelRule
from perpline.domain.instrument import Instrument, Rounding
from perpline.domain.signal import Status

MAX_MARK_AGE_MS = 10_000
"""A mark price comes each second: ten missing are no accident, and the levels would be off."""
LEAST_UNIVERSE_SHARE = 0.9
"""Ranks among fewer symbols are not those a model was trained on (features.md 1.6)."""
MAX_BOOK_AGE_MS = 60_000
"""A best bid and ask is sent when it changes, which a quiet book does not do each second."""
COOLDOWN_MIN = 15


class Facts(Struct, frozen=True, kw_only=True, gc=False):
    """What is known of a symbol when it is decided."""

    close_time: int
    """T, milliseconds."""
    held: int
    """Contiguous minutes held, of `lookback` wanted."""
    lookback: int
    broken_by_gap: bool
    """Whether the window is short because of a hole, not because of a recent start."""
    mark_updated_at: int | None
    """The exchange's time of the newest mark price, None where there is none. Ages are measured from T in the
    exchange's time, so that neither our speed nor a replay changes a verdict."""
    book_updated_at: int | None
    halted: str = ""
    """What the exchange calls the contract's state where that is not normal trading; empty where it is."""
    missing: tuple[str, ...] = ()
    """Critical features without a value."""
    universe_share: float = 1.0
    """Share of the symbols that have this minute, for a model that compares them."""
    ood_share: float = 0.0
    """Share of the features outside what the model was trained on."""
    max_ood_share: float = 1.0
    p_long: float | None = None
    """Calibrated. None where there is no model or it failed; then `model_error` says why."""
    p_short: float | None = None
    raw_long: float | None = None
    """The model's score before calibration."""
    raw_short: float | None = None
    model_error: str = ""
    last_ok: Mapping[int, int] = {}
    """Close time of the symbol's newest `ok` decision, by side."""


class Verdict(Struct, frozen=True, gc=False):
    """What `decide` concluded. Probability and EV are those of the better side, None where no model was asked."""

    status: Status
    side: int
    """+1 or -1 for `ok`, else 0."""
    detail: str
    """Why, in words; empty for `ok`."""
    p: float | None = None
    ev_bp: float | None = None
    p_raw: float | None = None


def decide(
    facts: Facts, rule: LabelRule, threshold: float, ev_min_bp: float = 0.0, cooldown_min: int = COOLDOWN_MIN
) -> Verdict:
    """The verdict on one symbol. The first of these that holds is the reason to abstain:

    1. skipped_gap, skipped_warmup: fewer minutes are held than the features look back
    2. skipped_stale: the contract is halted; no mark price or book, or one that was too old at T
    3. skipped_stale: fewer than nine of ten symbols have this minute, and the model compares them
       skipped_nan: a critical feature has no value
    4. skipped_ood: too many features lie outside what the model was trained on
    5. skipped_model: no probability
    6. flat: neither side has a probability of at least `threshold` and an expected value of at least `ev_min_bp`
    7. cooldown: the side had an `ok` decision less than `cooldown_min` minutes before

    Data come before the model and the model before trading, so that a reason always names the first thing to look at.
    """
    if facts.held < facts.lookback:
        status = Status.SKIPPED_GAP if facts.broken_by_gap else Status.SKIPPED_WARMUP
        since = " since a hole" if facts.broken_by_gap else ""
        return Verdict(status, 0, f"{facts.held} of {facts.lookback} contiguous minutes held{since}")
    if facts.halted:
        return Verdict(Status.SKIPPED_STALE, 0, f"not traded now: the exchange says {facts.halted}")
    for name, updated_at, limit_ms in (
        ("mark price", facts.mark_updated_at, MAX_MARK_AGE_MS),
        ("book", facts.book_updated_at, MAX_BOOK_AGE_MS),
    ):
        if updated_at is None:
            return Verdict(Status.SKIPPED_STALE, 0, f"no {name} yet")
        if (age_ms := facts.close_time - updated_at) > limit_ms:
            return Verdict(Status.SKIPPED_STALE, 0, f"{name} is {age_ms / 1000:.1f} s old at the close")
    if facts.universe_share < LEAST_UNIVERSE_SHARE:
        return Verdict(Status.SKIPPED_STALE, 0, f"only {facts.universe_share:.0%} of the symbols have this minute")
    if facts.missing:
        return Verdict(Status.SKIPPED_NAN, 0, f"no value for {', '.join(facts.missing)}")
    if facts.ood_share > facts.max_ood_share:
        outside = f"{facts.ood_share:.0%} of the features lie outside what the model was trained on"
        return Verdict(Status.SKIPPED_OOD, 0, f"{outside}, more than {facts.max_ood_share:.0%}")
    if facts.p_long is None or facts.p_short is None:
        return Verdict(Status.SKIPPED_MODEL, 0, facts.model_error or "no model")
    if not (0 <= facts.p_long <= 1 and 0 <= facts.p_short <= 1):
        return Verdict(Status.SKIPPED_MODEL, 0, f"not probabilities: {facts.p_long}, {facts.p_short}")
    long = facts.p_long >= facts.p_short
    side, p, raw = (1, facts.p_long, facts.raw_long) if long else (-1, facts.p_short, facts.raw_short)
    ev_bp = expected_value_bp(p, rule)
    word = "long" if side > 0 else "short"
    if p < threshold:
        return Verdict(Status.FLAT, 0, f"{word} {p:.3f} is below {threshold:.3f}", p, ev_bp, raw)
    if ev_bp < ev_min_bp:
        return Verdict(Status.FLAT, 0, f"{word} expects {ev_bp:+.1f} bp, less than {ev_min_bp:+.1f}", p, ev_bp, raw)
    last = facts.last_ok.get(side)
    if last is not None and 0 <= facts.close_time - last < cooldown_min * 60_000:
        minutes = (facts.close_time - last) // 60_000
        return Verdict(Status.COOLDOWN, 0, f"{word} signal {minutes} min ago, pause of {cooldown_min}", p, ev_bp, raw)
    return Verdict(Status.OK, side, "", p, ev_bp, raw)


def expected_value_bp(p: float, rule: LabelRule) -> float:
    """What a trade is worth on average, in basis points: p · tp - (1 - p) · sl - cost.

    Trades that touch neither level within the horizon count as stopped, which errs on the safe side.
    """
    return p * rule.tp_pct * 100 - (1 - p) * rule.sl_pct * 100 - rule.cost_bp


def exit_prices(instrument: Instrument, side: int, ref_mark: float, rule: LabelRule) -> tuple[str, str]:
    """Target and stop as decimal text, rounded to ticks away from the reference: no level is nearer than the rule says.

    Raises ValueError for a side that is neither +1 nor -1, or a reference that is no positive number.
    """
    if side not in (1, -1) or not (ref_mark > 0 and math.isfinite(ref_mark)):
        raise ValueError(f"no levels for side {side} at {ref_mark}")
    mark = Decimal(repr(ref_mark))
    up, down = (rule.tp_pct, rule.sl_pct) if side > 0 else (rule.sl_pct, rule.tp_pct)
    above = _price(instrument, mark * (1 + Decimal(repr(up)) / 100), "up")
    below = _price(instrument, mark * (1 - Decimal(repr(down)) / 100), "down")
    return (above, below) if side > 0 else (below, above)


def _price(instrument: Instrument, price: Decimal, rounding: Rounding) -> str:
    return f"{instrument.round_price(price, rounding):f}"
