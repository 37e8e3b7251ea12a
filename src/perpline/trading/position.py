"""A position of ours: a fold over the fills of its orders. Money and sizes are Decimal, times ms UTC."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal

from msgspec import Struct, structs

from perpline.domain.market import Side
from perpline.domain.order import Account, Fill, Leg

PositionStatus = Literal["opening", "open", "closing", "closed"]
Origin = Literal["signal", "adopted", "manual"]
StrangerLeg = Literal["liquidation", "adl", "settlement", "manual"]
FillLeg = Leg | StrangerLeg
"""What an order was for: one of our legs, or what somebody else did to the position."""

ZERO = Decimal(0)


class Position(Struct, kw_only=True):
    """One row of `positions`; the fields are its columns. Kept until it is closed, and changed in place.

    `opening` until something of the entry has filled, `closing` from the order that closes it, `closed` once nothing
    is open any more and nothing of its entry can fill. There is never more than one that is not closed in a symbol.
    """

    account: Account
    position_id: str
    symbol: str
    side: int
    """+1 long, -1 short."""
    status: PositionStatus = "opening"
    quantity: Decimal = ZERO
    """Open now, base units, never negative."""
    opened_quantity: Decimal = ZERO
    """All that its entry has filled."""
    entry_price: Decimal | None = None
    """Average of what is or was open, as the exchange counts it: closing a part does not change it."""
    exit_price: Decimal | None = None
    """Average of what was closed."""
    target: Decimal | None = None
    stop: Decimal | None = None
    """Ours, checked on every mark price; it moves with a trailing stop and to break-even."""
    protective_stop: Decimal | None = None
    """Trigger of the wider one that rests at the exchange, None before it was asked for."""
    deadline: int | None = None
    reference_mark: Decimal | None = None
    """The mark price that target and stop were measured from."""
    best_mark: Decimal | None = None
    """The best mark price for this side since it was opened."""
    signal_id: str = ""
    """Empty where no signal opened it."""
    origin: Origin = "signal"
    opened_at: int
    """The first fill's time; before there is one, the intent's."""
    closed_at: int | None = None
    exit_reason: str = ""
    """target, stop, trailing_stop, break_even, timeout, flatten, protective_stop, liquidation, adl, settlement, manual,
    not_filled (nothing was ever opened), reconciled (the exchange had it no more and nobody knows the fill)."""
    realized_pnl: Decimal = ZERO
    """Without fees and funding, quote."""
    fees: Decimal = ZERO
    """Paid, quote; those in another asset at the price that was known then."""
    funding: Decimal = ZERO
    """Received (+) or paid (-), quote."""
    naked_ms: int = 0
    """How long it has been open without a stop confirmed at the exchange, finished stretches only."""
    updated_at: int = 0

    @property
    def is_closed(self) -> bool:
        return self.status == "closed"

    @property
    def entry_side(self) -> Side:
        return "buy" if self.side > 0 else "sell"

    @property
    def exit_side(self) -> Side:
        return "sell" if self.side > 0 else "buy"

    @property
    def signed_quantity(self) -> Decimal:
        """As the exchange counts: negative for a short."""
        return self.quantity * self.side

    @property
    def net_pnl(self) -> Decimal:
        """Realised, after fees and funding."""
        return self.realized_pnl - self.fees + self.funding

    def unrealized_pnl(self, mark: Decimal) -> Decimal:
        """What is open is worth at this mark price against its entry, quote; 0 for a flat position."""
        return self.side * (mark - self.entry_price) * self.quantity if self.entry_price is not None else ZERO


def apply_fill(position: Position, fill: Fill, leg: FillLeg, fee: Decimal | None = None) -> Decimal:
    """Book one execution, in the order of trade ids; returns what of its quantity this position had no room for.

    An entry adds, everything else reduces, and a position never turns to the other side: what would flip it is not
    booked but returned. `fee` is the fill's fee in quote, where the fill itself has it in another asset. The status is
    not touched but that an opening position becomes open.
    """
    position.updated_at = max(position.updated_at, fill.traded_at)
    paid = fill.fee if fee is None else fee
    if leg is Leg.ENTRY:
        _add(position, fill)
        position.fees += paid
        return ZERO
    booked = min(fill.quantity, position.quantity)
    if booked > 0:
        _reduce(position, fill.price, booked)
        position.fees += paid * booked / fill.quantity
    return fill.quantity - booked


def unbook(position: Position) -> None:
    """Forget every fill, to book them anew. What a position was adopted with stays."""
    adopted = position.origin == "adopted"
    position.quantity = position.opened_quantity = position.opened_quantity if adopted else ZERO
    position.entry_price = position.entry_price if adopted else None
    position.exit_price = None
    position.realized_pnl = position.fees = ZERO


def position_row(position: Position) -> dict[str, Any]:
    """Values by column of `positions`."""
    return structs.asdict(position)


def position_from_row(row: Mapping[str, Any]) -> Position:
    """The position of a stored row."""
    values = dict(row)
    for column in _MONEY:
        if values[column] is not None:
            values[column] = Decimal(values[column])
    return Position(**values)


_MONEY = (
    "quantity",
    "opened_quantity",
    "entry_price",
    "exit_price",
    "target",
    "stop",
    "protective_stop",
    "reference_mark",
    "best_mark",
    "realized_pnl",
    "fees",
    "funding",
)


def _add(position: Position, fill: Fill) -> None:
    cost = (position.entry_price or ZERO) * position.quantity + fill.price * fill.quantity
    if position.opened_quantity == 0:
        position.opened_at = fill.traded_at
    if position.status == "opening":
        position.status = "open"
    position.quantity += fill.quantity
    position.opened_quantity += fill.quantity
    position.entry_price = cost / position.quantity


def _reduce(position: Position, price: Decimal, quantity: Decimal) -> None:
    assert position.entry_price is not None, "what is open has an entry"
    closed = position.opened_quantity - position.quantity
    position.exit_price = ((position.exit_price or ZERO) * closed + price * quantity) / (closed + quantity)
    position.realized_pnl += position.side * (price - position.entry_price) * quantity
    position.quantity -= quantity
