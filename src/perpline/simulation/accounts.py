"""Accounts of the simulated exchange: what they own, owe and have ordered. Plain state; matching.py changes it.

Every price, quantity and amount of money is a whole number of 1e-8 (`ONE` is 1.0), so nothing is ever rounded twice
and a wallet is exactly its deposits plus its income.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

ONE: Final = 10**8
DEPOSIT: Final = 100_000 * ONE
TAKER_FEE: Final = 50_000
"""0.05 %, in 1e-8."""
MAKER_FEE: Final = 20_000
LIQUIDATION_FEE: Final = 1_250_000
FIRST_LEVERAGE: Final = 20
MOST_LEVERAGE: Final = 125
MOST_KEPT: Final = 50_000
"""Orders of an account that are remembered; there are bounds for the rest in proportion."""
OPEN: Final = ("NEW", "PARTIALLY_FILLED")

MarkOf = Callable[[int], int]


@dataclass(frozen=True, slots=True)
class Bracket:
    """Positions with floor < notional <= cap: most leverage, and maintenance margin as notional * rate - cum."""

    number: int
    leverage: int
    floor: int
    cap: int
    rate: int
    cum: int


def _brackets() -> list[Bracket]:
    """BTCUSDT's as they have long been; the simulated exchange has the same for every contract."""
    tiers = (
        (125, 50_000, 400_000),
        (100, 600_000, 500_000),
        (75, 3_000_000, 650_000),
        (50, 12_000_000, 1_000_000),
        (25, 70_000_000, 2_000_000),
        (20, 100_000_000, 2_500_000),
        (10, 230_000_000, 5_000_000),
        (5, 480_000_000, 10_000_000),
        (1, 1_200_000_000, 50_000_000),
    )
    brackets: list[Bracket] = []
    floor = cum = before = 0
    for number, (leverage, cap, rate) in enumerate(tiers, 1):
        cum += floor * (rate - before)
        brackets.append(Bracket(number, leverage, floor * ONE, cap * ONE, rate, cum))
        floor, before = cap, rate
    return brackets


BRACKETS: Final = _brackets()


def bracket_of(notional: int) -> Bracket:
    return next((each for each in BRACKETS if notional <= each.cap), BRACKETS[-1])


def maintenance(notional: int) -> int:
    """Margin below which a position of this size is liquidated."""
    bracket = bracket_of(notional)
    return notional * bracket.rate // ONE - bracket.cum


def most_notional(leverage: int) -> int:
    """How large a position may be at this leverage."""
    return max((each.cap for each in BRACKETS if each.leverage >= leverage), default=0)


@dataclass(slots=True)
class Order:
    """An ordinary order. `price` is 0 for a market order."""

    id: int
    client_id: str
    index: int
    side: str
    position_side: str
    kind: str
    time_in_force: str
    price: int
    quantity: int
    reduce_only: bool
    stp: str
    good_till_ms: int
    created_ms: int
    updated_ms: int
    close_position: bool = False
    algo_id: int = 0
    """The conditional order that it came from, 0 for none."""
    status: str = "NEW"
    filled: int = 0
    cost: int = 0
    """Sum of price times quantity, 1e-16."""
    fees: int = 0
    margin: int = 0
    """What its opening part was found to need when it was placed."""
    seen_update: int = 0
    """The update of the book that it was last compared with, so that a quoted size is taken once."""
    amendments: int = 0
    modify_id: str = ""

    @property
    def sign(self) -> int:
        return 1 if self.side == "BUY" else -1

    @property
    def remaining(self) -> int:
        return self.quantity - self.filled

    @property
    def is_open(self) -> bool:
        return self.status in OPEN

    @property
    def average(self) -> int:
        return self.cost // self.filled if self.filled else 0

    @property
    def held_margin(self) -> int:
        return self.margin * self.remaining // self.quantity


@dataclass(slots=True)
class Algo:
    """A conditional order. Prices that its type has not are 0; `quantity` is 0 where it closes the position."""

    id: int
    client_id: str
    index: int
    kind: str
    side: str
    position_side: str
    time_in_force: str
    quantity: int
    price: int
    trigger: int
    by_mark: bool
    close_position: bool
    price_protect: bool
    reduce_only: bool
    stp: str
    good_till_ms: int
    activate: int
    callback: int
    """Callback rate in 1e-8: one percent is 1_000_000."""
    created_ms: int
    updated_ms: int
    status: str = "NEW"
    is_activated: bool = False
    extreme: int = 0
    """Lowest (BUY) or highest (SELL) price since it was activated."""
    triggered_ms: int = 0
    order: Order | None = None
    reason: str = ""

    @property
    def is_open(self) -> bool:
        return self.status == "NEW"

    @property
    def is_trailing(self) -> bool:
        return self.kind == "TRAILING_STOP_MARKET"


@dataclass(slots=True)
class Position:
    """Contracts held; `quantity` is negative for a short."""

    index: int
    side: str
    """BOTH in one-way mode, LONG or SHORT in hedge mode."""
    quantity: int = 0
    cost: int = 0
    """What was paid for what is held, without sign, 1e-16."""
    isolated_wallet: int = 0
    realized: int = 0
    updated_ms: int = 0

    @property
    def entry(self) -> int:
        size = abs(self.quantity)
        return (self.cost + size // 2) // size if size else 0

    def trade(self, signed: int, price: int) -> int:
        """Add (or take away) so much at this price; what was realised by it."""
        realized = 0
        sign = 1 if signed > 0 else -1
        left = abs(signed)
        if self.quantity * sign < 0:
            closing = min(left, abs(self.quantity))
            released = self.cost * closing // abs(self.quantity)
            realized = (price * closing - released) * -sign // ONE
            self.isolated_wallet -= self.isolated_wallet * closing // abs(self.quantity)
            self.cost -= released
            self.quantity += sign * closing
            left -= closing
        self.quantity += sign * left
        self.cost += price * left
        self.realized += realized
        return realized

    def notional(self, mark: int) -> int:
        return abs(self.quantity) * mark // ONE

    def unrealized(self, mark: int) -> int:
        worth = abs(self.quantity) * mark
        return (worth - self.cost if self.quantity > 0 else self.cost - worth) // ONE


@dataclass(slots=True)
class Account:
    """One account, which has one API key."""

    key: str
    secret: str = ""
    public_key: Ed25519PublicKey | None = None
    wallet: int = DEPOSIT
    can_trade: bool = True
    can_withdraw: bool = False
    bound_to_address: bool = True
    is_hedged: bool = False
    is_multi_assets: bool = False
    leverages: dict[int, int] = field(default_factory=dict)
    isolated: set[int] = field(default_factory=set)
    positions: dict[tuple[int, str], Position] = field(default_factory=dict)
    open_orders: dict[int, Order] = field(default_factory=dict)
    orders: dict[int, Order] = field(default_factory=dict)
    """Every order, the latest MOST_KEPT of them."""
    open_algos: dict[int, Algo] = field(default_factory=dict)
    algos: dict[int, Algo] = field(default_factory=dict)
    fills: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=4 * MOST_KEPT))
    incomes: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=8 * MOST_KEPT))
    forced: deque[Order] = field(default_factory=lambda: deque(maxlen=1_000))
    """Liquidations and deleveragings."""
    countdowns: dict[int, int] = field(default_factory=dict)
    """By contract, when all its orders are cancelled."""
    warned: set[tuple[int, str]] = field(default_factory=set)
    """Positions that a margin call was sent for."""
    listen_key: str = ""
    listen_until_ms: int = 0
    sent_10s: deque[int] = field(default_factory=deque)
    sent_1m: deque[int] = field(default_factory=deque)
    seen: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Requests by method, path and client id."""
    taken: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Those of them that were answered with 200."""

    def see(self, request: tuple[str, str, str]) -> None:
        """Count a request; the one that was seen first is forgotten beyond 100,000 different ones."""
        self.seen[request] += 1
        if len(self.seen) > 2 * MOST_KEPT:
            first = next(iter(self.seen))
            del self.seen[first], self.taken[first]

    def leverage(self, index: int) -> int:
        return self.leverages.get(index, FIRST_LEVERAGE)

    def position(self, index: int, side: str) -> Position:
        """The position, made flat where there is none."""
        found = self.positions.get((index, side))
        if found is None:
            found = self.positions[index, side] = Position(index, side)
        return found

    def closable(self, index: int, position_side: str, side: str) -> int:
        """How much an order of this side can close."""
        held = self.positions.get((index, position_side))
        if held is None or held.quantity * (1 if side == "BUY" else -1) >= 0:
            return 0
        return abs(held.quantity)

    def held(self) -> list[Position]:
        """Positions that are not flat."""
        return [position for position in self.positions.values() if position.quantity]

    def cross_wallet(self) -> int:
        return self.wallet - sum(position.isolated_wallet for position in self.positions.values())

    def cross_unrealized(self, mark: MarkOf) -> int:
        return sum(each.unrealized(mark(each.index)) for each in self.held() if each.index not in self.isolated)

    def unrealized(self, mark: MarkOf) -> int:
        return sum(each.unrealized(mark(each.index)) for each in self.held())

    def position_margin(self, position: Position, mark: MarkOf) -> int:
        """Initial margin of a position."""
        return position.notional(mark(position.index)) // self.leverage(position.index)

    def order_margin(self, index: int | None = None) -> int:
        return sum(each.held_margin for each in self.open_orders.values() if index is None or each.index == index)

    def available(self, mark: MarkOf) -> int:
        """What may be used to open: never below 0."""
        used = sum(self.position_margin(each, mark) for each in self.held() if each.index not in self.isolated)
        return max(0, self.cross_wallet() + self.cross_unrealized(mark) - used - self.order_margin())

    def liquidation_price(self, position: Position, mark: MarkOf) -> int:
        """Where this position is liquidated if no other price moves; 0 where that is at no price."""
        size = abs(position.quantity)
        if not size:
            return 0
        if position.index in self.isolated:
            margin = position.isolated_wallet
        else:
            others = [each for each in self.held() if each is not position and each.index not in self.isolated]
            margin = self.cross_wallet() + sum(
                each.unrealized(mark(each.index)) - maintenance(each.notional(mark(each.index))) for each in others
            )
        bracket = bracket_of(position.notional(mark(position.index)))
        sign = 1 if position.quantity > 0 else -1
        # margin + sign * (price - entry) * size = price * size * rate - cum
        price = (sign * position.cost - (margin + bracket.cum) * ONE) * ONE // (size * (sign * ONE - bracket.rate))
        return max(0, price)
