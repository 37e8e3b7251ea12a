"""What may be sent. Only here an approved order or stop is made, and the executors take nothing else.

Each rule is a function of its own that returns why not, in words, or nothing; its name is what a refusal says. Pure:
the same facts, the same answer. Prices and sizes of orders are Decimal, limits in percent and basis points are not.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from decimal import Decimal
from typing import Literal

from msgspec import Struct

from perpline.common.config import Settings
from perpline.domain.fill import isolated_liquidation
from perpline.domain.instrument import Instrument
from perpline.domain.market import BookTicker, Side, slippage_estimate
from perpline.domain.order import Account, ClientId, Leg, OrderRequest, StopRequest, position_id
from perpline.trading.position import Position

MAX_MARK_AGE_MS = 10_000
"""A mark price comes each second: after ten without one nobody knows where the market is."""
MAX_BOOK_AGE_MS = 60_000
"""A best bid and ask is told of when it changes, which a quiet book does not do each second."""

USUAL_LEVERAGE = 3
"""What is more must be asked for by a setting, and is pointed out."""

_SEAL = object()


class Risk(Struct, frozen=True, kw_only=True):
    """The limits; the settings of the same names (docs/settings.md) say what each is."""

    sizing: Literal["notional", "equity", "volatility"] = "notional"
    size_usdt: float = 100.0
    size_pct: float = 2.0
    risk_pct: float = 0.25
    max_positions: int = 10
    max_symbol_usdt: float = 1_000.0
    max_total_usdt: float = 5_000.0
    daily_loss_limit_pct: float = 3.0
    max_drawdown_pct: float = 10.0
    stop_cooldown_min: int = 30
    max_slippage_bps: float = 8.0
    min_liquidation_distance_pct: float = 10.0
    leverage: int = 3
    protective_stop_factor: float = 1.5

    @staticmethod
    def of(settings: Settings) -> "Risk":
        return Risk(**{name: getattr(settings, name) for name in Risk.__struct_fields__})


class EntryFacts(Struct, frozen=True, kw_only=True):
    """All that a decision to enter is made from. Times are market time, ms."""

    account: Account
    mode: str
    """The symbol's mode now."""
    run: int
    now: int
    instrument: Instrument
    signal_id: str
    side: int
    valid_until: int
    deadline: int
    reference_mark: Decimal
    """Of the signal: target and stop are measured from it."""
    target: Decimal
    stop: Decimal
    mark: Decimal | None
    """The newest mark price; None before there was one."""
    mark_at: int
    book: BookTicker | None
    positions: Sequence[Position]
    """Of this account, all that are not closed."""
    marks: Mapping[str, Decimal]
    """Newest mark prices by symbol, at least of those positions; where one is missing its entry price counts."""
    equity: Decimal
    day_equity: Decimal
    """What the day (UTC) began with."""
    peak_equity: Decimal
    """The highest since a person set the mode."""
    available: Decimal
    """Free for margin, quote."""
    worst_drawdown_pct: Decimal = Decimal(0)
    """The deepest the equity has been below its highest since a person set the mode. It only grows: an account that has
    recovered by itself still waits for a person."""
    volatility: float | None = None
    """Of the symbol: standard deviation of one minute's return; None where too few minutes are known."""
    last_stop_at: int | None = None
    """When a stop of this symbol was hit last."""
    blocked: str = ""
    """Why the account takes no entries at all at present: not reconciled yet, the user data stream lost …"""


class Plan(Struct, frozen=True, kw_only=True):
    """How large the position would be, and what that would mean."""

    quantity: Decimal
    notional: Decimal
    """At the mark price."""
    expected_price: Decimal
    slippage_bps: float
    liquidation: Decimal
    """The mark price at which it would be liquidated; 0 where it cannot be."""


class Refusal(Struct, frozen=True):
    """An order that is not sent: the rule that said no, and why."""

    rule: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ApprovedOrder:
    """An ordinary order that passed every rule. Nobody but this module can make one: without its seal that is a
    TypeError."""

    request: OrderRequest
    position: Position
    leg: Leg
    expected_price: Decimal | None
    reason: str
    """Why the position is closed, for an order that closes one."""
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        _check(seal)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ApprovedStop:
    """A protective stop that passed. As for ApprovedOrder, nobody else can make one."""

    request: StopRequest
    position: Position
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        _check(seal)


def bold_settings(risk: Risk) -> list[str]:
    """What a person should know of limits that allow more than the usual, in words; empty where there is nothing."""
    told = []
    if risk.leverage > USUAL_LEVERAGE:
        told.append(
            f"leverage = {risk.leverage} is more than {USUAL_LEVERAGE}: a move of about {100 / risk.leverage:.0f} % "
            "against a position liquidates it"
        )
    if risk.max_total_usdt < risk.max_symbol_usdt:
        told.append(f"max_total_usdt = {risk.max_total_usdt:g} is less than max_symbol_usdt = {risk.max_symbol_usdt:g}")
    if risk.sizing == "notional" and risk.size_usdt > risk.max_symbol_usdt:
        told.append(
            f"size_usdt = {risk.size_usdt:g} is more than max_symbol_usdt = {risk.max_symbol_usdt:g}: no entries"
        )
    return told


def approve_entry(facts: EntryFacts, risk: Risk) -> ApprovedOrder | Refusal:
    """The market order that opens a position and the position it will be, or the first rule of `ENTRY_RULES` and
    `SIZE_RULES` that says no."""
    for rule in ENTRY_RULES:
        if detail := rule(facts, risk):
            return Refusal(rule.__name__, detail)
    plan = planned(facts, risk)
    for size_rule in SIZE_RULES:
        if detail := size_rule(facts, risk, plan):
            return Refusal(size_rule.__name__, detail)
    instrument = facts.instrument
    position = Position(
        account=facts.account,
        position_id=position_id(facts.signal_id),
        symbol=instrument.symbol,
        side=facts.side,
        target=facts.target,
        stop=facts.stop,
        deadline=facts.deadline,
        reference_mark=facts.reference_mark,
        best_mark=facts.mark,
        signal_id=facts.signal_id,
        opened_at=facts.now,
        updated_at=facts.now,
    )
    request = OrderRequest(
        symbol=instrument.symbol,
        side=position.entry_side,
        quantity=plan.quantity,
        client_id=ClientId(Leg.ENTRY, facts.run, position.position_id, 0).text,
        reduce_only=False,
    )
    return ApprovedOrder(
        request=request,
        position=position,
        leg=Leg.ENTRY,
        expected_price=plan.expected_price,
        reason="",
        seal=_SEAL,
    )


def approve_close(
    position: Position,
    instrument: Instrument,
    *,
    leg: Literal[Leg.EXIT, Leg.FLATTEN],
    reason: str,
    run: int,
    attempt: int,
    expected_price: Decimal | None = None,
) -> ApprovedOrder | Refusal:
    """The reduce-only market order that closes what is open of a position; of one that is larger than a single market
    order may be, as much as it may be. Closing is never forbidden by a limit: only where nothing is open."""
    quantity = instrument.round_market_quantity(position.quantity)
    if quantity <= 0:
        return Refusal("nothing_open", f"{position.quantity:f} {instrument.base_asset}")
    request = OrderRequest(
        symbol=position.symbol,
        side=position.exit_side,
        quantity=quantity,
        client_id=ClientId(leg, run, position.position_id, attempt).text,
        reduce_only=True,
    )
    return ApprovedOrder(
        request=request, position=position, leg=leg, expected_price=expected_price, reason=reason, seal=_SEAL
    )


def approve_stop(
    position: Position, instrument: Instrument, risk: Risk, *, run: int, attempt: int, mark: Decimal | None = None
) -> ApprovedStop | Refusal:
    """The stop that rests at the exchange: `protective_stop_factor` times as far from the entry as ours was from the
    reference, rounded away from it, and always before the liquidation. One that is placed again keeps its trigger.

    Refused by stop_passed where the mark price is beyond it: then the position is to be closed at once.
    """
    if position.entry_price is None or (position.stop is None and position.protective_stop is None):
        return Refusal("no_stop", "the position has no entry price or no stop")
    trigger = position.protective_stop or _protective_trigger(position, position.entry_price, instrument, risk)
    if mark is not None and position.side * (mark - trigger) <= 0:
        return Refusal("stop_passed", f"the mark price {mark:f} is beyond {trigger:f}")
    request = StopRequest(
        symbol=position.symbol,
        side=position.exit_side,
        trigger_price=trigger,
        client_algo_id=ClientId(Leg.STOP, run, position.position_id, attempt).text,
    )
    return ApprovedStop(request=request, position=position, seal=_SEAL)


def planned(facts: EntryFacts, risk: Risk) -> Plan:
    """The size by `sizing`, rounded down to the symbol's steps, and what follows from it. Raises ValueError where there
    is no mark price, no book or (where the size follows from it) no volatility, which the entry rules have refused."""
    if facts.mark is None or facts.book is None:
        raise ValueError("no size without a mark price and a book")
    quantity = facts.instrument.round_market_quantity(wanted_notional(facts, risk) / facts.mark)
    side: Side = "buy" if facts.side > 0 else "sell"
    # A size of nothing is refused by its own rule; until then the touch is what it would cost.
    estimate = slippage_estimate(facts.book, side, float(quantity) or float(facts.instrument.step_size))
    liquidation = isolated_liquidation(
        facts.side, estimate.fill_price, risk.leverage, float(facts.instrument.maintenance_margin_pct)
    )
    return Plan(
        quantity=quantity,
        notional=quantity * facts.mark,
        expected_price=facts.instrument.round_price(estimate.fill_price),
        slippage_bps=estimate.slippage_bps,
        liquidation=facts.instrument.round_price(liquidation),
    )


def wanted_notional(facts: EntryFacts, risk: Risk) -> Decimal:
    """Notional of the position before rounding, quote. With `volatility`, one standard deviation of the symbol's price
    over the position's whole time (the minute's, by the square root of time) is `risk_pct` of the equity."""
    if risk.sizing == "notional":
        return _exact(risk.size_usdt)
    if risk.sizing == "equity":
        return facts.equity * _exact(risk.size_pct) / 100
    if not facts.volatility:
        raise ValueError("no size without the symbol's volatility")
    minutes = max(1.0, (facts.deadline - facts.now) / 60_000)
    return facts.equity * _exact(risk.risk_pct) / 100 / _exact(facts.volatility * math.sqrt(minutes))


# ---- rules about the moment


def mode(facts: EntryFacts, risk: Risk) -> str:
    return "" if facts.mode == facts.account else f"the mode is {facts.mode}"


def blocked(facts: EntryFacts, risk: Risk) -> str:
    return facts.blocked


def signal_expired(facts: EntryFacts, risk: Risk) -> str:
    late_ms = facts.now - facts.valid_until
    return f"{late_ms / 1000:.1f} s after its last moment" if late_ms > 0 else ""


def symbol_not_trading(facts: EntryFacts, risk: Risk) -> str:
    return "" if facts.instrument.is_trading_perpetual else f"its status is {facts.instrument.status}"


def no_market(facts: EntryFacts, risk: Risk) -> str:
    if facts.mark is None or facts.book is None:
        return "no mark price yet" if facts.mark is None else "no book yet"
    if (age_ms := facts.now - facts.mark_at) > MAX_MARK_AGE_MS:
        return f"the mark price is {age_ms / 1000:.1f} s old"
    if (age_ms := facts.now - facts.book.updated_at) > MAX_BOOK_AGE_MS:
        return f"the book is {age_ms / 1000:.1f} s old"
    return ""


def levels_passed(facts: EntryFacts, risk: Risk) -> str:
    """The market has moved on since the signal: its trade would be over before it began."""
    if facts.mark is None:
        return "no mark price"
    if facts.side * (facts.mark - facts.stop) <= 0 or facts.side * (facts.stop - facts.reference_mark) >= 0:
        return f"the mark price {facts.mark:f} is at or beyond the stop {facts.stop:f}"
    if facts.side * (facts.target - facts.mark) <= 0:
        return f"the mark price {facts.mark:f} is at or beyond the target {facts.target:f}"
    return ""


def already_in_position(facts: EntryFacts, risk: Risk) -> str:
    held = next((each for each in facts.positions if each.symbol == facts.instrument.symbol), None)
    return "" if held is None else f"{'long' if held.side > 0 else 'short'} {held.quantity:f} is {held.status}"


def max_positions(facts: EntryFacts, risk: Risk) -> str:
    count = len(facts.positions)
    return f"{count} are open, {risk.max_positions} may be" if count >= risk.max_positions else ""


def stop_cooldown(facts: EntryFacts, risk: Risk) -> str:
    if facts.last_stop_at is None:
        return ""
    since_ms = facts.now - facts.last_stop_at
    pause_ms = risk.stop_cooldown_min * 60_000
    return f"stopped {since_ms / 60_000:.0f} min ago, pause of {risk.stop_cooldown_min}" if since_ms < pause_ms else ""


def daily_loss(facts: EntryFacts, risk: Risk) -> str:
    return _lost(facts.equity, facts.day_equity, risk.daily_loss_limit_pct, "today")


def drawdown(facts: EntryFacts, risk: Risk) -> str:
    if facts.worst_drawdown_pct >= _exact(risk.max_drawdown_pct):
        lost = f"{facts.worst_drawdown_pct:.2f} % was lost from the highest equity, {risk.max_drawdown_pct:g} may be"
        return f"{lost}; it goes on when a person sets the mode"
    return _lost(facts.equity, facts.peak_equity, risk.max_drawdown_pct, "from the highest equity")


def no_volatility(facts: EntryFacts, risk: Risk) -> str:
    """The size follows from it, where it is to; a market that does not move at all gives none either."""
    return "" if risk.sizing != "volatility" or facts.volatility else "too few minutes are known, or all are the same"


EntryRule = Callable[[EntryFacts, Risk], str]
ENTRY_RULES: Sequence[EntryRule] = (
    mode,
    blocked,
    signal_expired,
    symbol_not_trading,
    no_market,
    levels_passed,
    already_in_position,
    max_positions,
    stop_cooldown,
    daily_loss,
    drawdown,
    no_volatility,
)


# ---- rules about the size


def symbol_exposure(facts: EntryFacts, risk: Risk, plan: Plan) -> str:
    if plan.notional <= _exact(risk.max_symbol_usdt):
        return ""
    return f"{plan.notional:.2f} is more than {risk.max_symbol_usdt:g}"


def total_exposure(facts: EntryFacts, risk: Risk, plan: Plan) -> str:
    held = sum((exposure(position, facts.marks) for position in facts.positions), Decimal(0))
    if held + plan.notional <= _exact(risk.max_total_usdt):
        return ""
    return f"{plan.notional:.2f} and {held:.2f} that are open are more than {risk.max_total_usdt:g}"


def slippage(facts: EntryFacts, risk: Risk, plan: Plan) -> str:
    if plan.slippage_bps <= risk.max_slippage_bps:
        return ""
    return f"{plan.slippage_bps:.1f} bp from the mid, {risk.max_slippage_bps:g} may be"


def filters(facts: EntryFacts, risk: Risk, plan: Plan) -> str:
    side: Side = "buy" if facts.side > 0 else "sell"
    mark = facts.mark or facts.reference_mark
    return facts.instrument.broken_filter(side, plan.quantity, mark, expected_price=plan.expected_price)


def margin(facts: EntryFacts, risk: Risk, plan: Plan) -> str:
    needed = plan.notional / risk.leverage
    return f"{needed:.2f} is needed, {facts.available:.2f} is free" if needed > facts.available else ""


def liquidation_distance(facts: EntryFacts, risk: Risk, plan: Plan) -> str:
    if plan.liquidation <= 0:
        return ""
    mark = facts.mark or facts.reference_mark
    distance_pct = float(facts.side * (mark - plan.liquidation) / mark * 100)
    if distance_pct < risk.min_liquidation_distance_pct:
        return f"liquidation at {plan.liquidation:f} is {distance_pct:.1f} % away"
    if facts.side * (facts.stop - plan.liquidation) <= 0:
        return f"liquidation at {plan.liquidation:f} lies before the stop {facts.stop:f}"
    return ""


SizeRule = Callable[[EntryFacts, Risk, Plan], str]
SIZE_RULES: Sequence[SizeRule] = (
    filters,
    symbol_exposure,
    total_exposure,
    slippage,
    margin,
    liquidation_distance,
)


def exposure(position: Position, marks: Mapping[str, Decimal]) -> Decimal:
    """Notional of what is open, quote."""
    price = marks.get(position.symbol) or position.entry_price or position.reference_mark or Decimal(0)
    return position.quantity * price


def _lost(equity: Decimal, before: Decimal, limit_pct: float, since: str) -> str:
    if before <= 0:
        return ""
    lost_pct = (before - equity) / before * 100
    return f"{lost_pct:.2f} % lost {since}, {limit_pct:g} may be" if lost_pct >= _exact(limit_pct) else ""


def _protective_trigger(position: Position, entry: Decimal, instrument: Instrument, risk: Risk) -> Decimal:
    side, stop = position.side, position.stop
    assert stop is not None, "checked by the caller"
    reference = position.reference_mark or entry
    distance = max(side * (reference - stop), instrument.tick_size)
    trigger = entry - side * distance * _exact(risk.protective_stop_factor)
    liquidation = _exact(
        isolated_liquidation(side, float(entry), risk.leverage, float(instrument.maintenance_margin_pct))
    )
    if liquidation > 0 and side * (trigger - liquidation) <= 0:
        trigger = (stop + liquidation) / 2
    rounded = instrument.round_price(trigger, "down" if side > 0 else "up")
    return max(rounded, instrument.min_price, instrument.tick_size)


def _exact(number: float) -> Decimal:
    return Decimal(repr(number))


def _check(seal: object) -> None:
    if seal is not _SEAL:
        raise TypeError("only perpline.trading.risk approves orders")
