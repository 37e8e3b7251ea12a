"""Our orders and positions, and what the exchange says of them. Money, prices and sizes are Decimal; times are ms UTC.

Two spaces of ids that must never be mixed: an ordinary order has `order_id` and `client_id`, a conditional one (a stop
that rests at the exchange) `algo_id` and `client_algo_id`. A stop that triggers makes an ordinary order with an id of
its own (binance.md 4.4).
"""

import base64
import re
from decimal import Decimal
from enum import StrEnum
from typing import Literal

from msgspec import Struct

from perpline.domain.market import Side

Account = Literal["paper", "live"]
Source = Literal["answer", "stream", "query"]
"""Who reports: the answer to our request, the user data stream, or a look at the exchange's books."""


class Leg(StrEnum):
    """What an order is for. The value is the first letter of its client id."""

    ENTRY = "e"
    EXIT = "x"
    """The engine closes the position: stop, target, trailing, time limit."""
    STOP = "s"
    """The protective stop that rests at the exchange (a conditional order)."""
    FLATTEN = "f"
    """A person closes it: `perpline flatten`, or a change of mode."""


class OrderStatus(StrEnum):
    """Where an order is. The first three are ours, the others the exchange's."""

    INTENT = "intent"
    """Stored, and not known to have been sent. Found at a start, it is looked up."""
    SENT = "sent"
    UNKNOWN = "unknown"
    """The answer was lost: being looked up by its own id, and never sent again."""
    NEW = "new"
    PARTIALLY_FILLED = "partially_filled"
    FILLED = "filled"
    CANCELED = "canceled"
    EXPIRED = "expired"
    REJECTED = "rejected"
    NEVER_ARRIVED = "never_arrived"
    """Looked up after its answer was lost: the exchange has never had it."""

    @property
    def is_final(self) -> bool:
        return self in _FINAL


_FINAL = frozenset(
    {
        OrderStatus.FILLED,
        OrderStatus.CANCELED,
        OrderStatus.EXPIRED,
        OrderStatus.REJECTED,
        OrderStatus.NEVER_ARRIVED,
    }
)


class StopStatus(StrEnum):
    """Where a conditional order is (binance.md 4.4), with our own three before it."""

    INTENT = "intent"
    SENT = "sent"
    UNKNOWN = "unknown"
    NEW = "new"
    """The exchange holds it: the position is protected."""
    TRIGGERING = "triggering"
    TRIGGERED = "triggered"
    FINISHED = "finished"
    CANCELED = "canceled"
    REJECTED = "rejected"
    EXPIRED = "expired"
    NEVER_ARRIVED = "never_arrived"

    @property
    def is_final(self) -> bool:
        return self in _FINAL_STOP


_FINAL_STOP = frozenset(
    {
        StopStatus.FINISHED,
        StopStatus.CANCELED,
        StopStatus.REJECTED,
        StopStatus.EXPIRED,
        StopStatus.NEVER_ARRIVED,
    }
)


class OrderRequest(Struct, frozen=True, kw_only=True, gc=False):
    """An ordinary order as it is sent: already rounded and within the symbol's filters."""

    symbol: str
    side: Side
    quantity: Decimal
    client_id: str
    reduce_only: bool
    kind: Literal["market", "limit"] = "market"
    price: Decimal | None = None
    """Of a limit order."""
    time_in_force: Literal["GTC", "IOC", "FOK", "GTX"] | None = None


class StopRequest(Struct, frozen=True, kw_only=True, gc=False):
    """A protective stop as it is sent: STOP_MARKET on the mark price that closes the whole position."""

    symbol: str
    side: Side
    """The side of the closing order: sell for a long."""
    trigger_price: Decimal
    client_algo_id: str


class Fill(Struct, frozen=True, kw_only=True, gc=False):
    """One execution. (account, symbol, trade_id) is its key: however often it is told, it is booked once."""

    symbol: str
    trade_id: int
    order_id: int
    client_id: str
    """Empty where the reporter does not tell it (userTrades)."""
    side: Side
    price: Decimal
    quantity: Decimal
    fee: Decimal
    fee_asset: str
    realized_pnl: Decimal
    is_maker: bool
    traded_at: int
    received_at: int


class OrderReport(Struct, frozen=True, kw_only=True, gc=False):
    """What the exchange said of an ordinary order, by whichever reporter. Reports race and may come in any order."""

    symbol: str
    client_id: str
    order_id: int
    side: Side
    status: OrderStatus
    quantity: Decimal
    filled: Decimal
    """Cumulative."""
    average_price: Decimal | None
    """None where the answer has none, which is normal since 2026-07-15."""
    reduce_only: bool
    kind: str
    """market, limit, liquidation …: the exchange's original type, lower case."""
    source: Source
    updated_at: int
    """The exchange's transaction time."""
    received_at: int
    fill: Fill | None = None
    """The execution that this report is about, if it is about one."""
    detail: str = ""
    """Why it ended, in words: expiry reason, self-trade prevention, amendment."""


class StopReport(Struct, frozen=True, kw_only=True, gc=False):
    """What the exchange said of a conditional order."""

    symbol: str
    client_algo_id: str
    algo_id: int
    side: Side
    kind: str
    """stop_market, take_profit, trailing_stop_market …, lower case."""
    status: StopStatus
    trigger_price: Decimal
    close_position: bool
    quantity: Decimal
    """0 where it closes the position."""
    order_id: int
    """The ordinary order that it became; 0 before it triggered."""
    source: Source
    updated_at: int
    received_at: int
    detail: str = ""
    """Why the exchange refused it (`rm`)."""


class ExchangePosition(Struct, frozen=True, kw_only=True, gc=False):
    """A position as the exchange has it, one-way mode. Flat ones have quantity 0."""

    symbol: str
    quantity: Decimal
    """Positive for a long, negative for a short."""
    entry_price: Decimal
    unrealized_pnl: Decimal
    isolated: bool | None = None
    """None where the reporter does not tell."""
    liquidation_price: Decimal | None = None
    mark_price: Decimal | None = None
    updated_at: int = 0


class AccountUpdate(Struct, frozen=True, kw_only=True, gc=False):
    """Balances and positions that changed, and why (ACCOUNT_UPDATE). What is not named has not changed."""

    reason: str
    """ORDER, FUNDING_FEE, DEPOSIT …, as the exchange spells it."""
    wallet: dict[str, Decimal]
    """Wallet balance by asset."""
    changes: dict[str, Decimal]
    """Balance change by asset that is no profit and no commission."""
    positions: tuple[ExchangePosition, ...]
    symbol: str
    """Of a funding fee; empty where it is not told."""
    updated_at: int
    received_at: int


class LeverageChanged(Struct, frozen=True, kw_only=True, gc=False):
    """The leverage of a symbol was set, by us or by someone else (ACCOUNT_CONFIG_UPDATE)."""

    symbol: str
    leverage: int
    updated_at: int
    received_at: int


class MarginCall(Struct, frozen=True, kw_only=True, gc=False):
    """The exchange warns that these positions are near their liquidation."""

    symbols: tuple[str, ...]
    updated_at: int
    received_at: int


class ListenKeyExpired(Struct, frozen=True, kw_only=True, gc=False):
    """The key of the user data stream is dead: the socket stays open and silent, so a new key is needed."""

    updated_at: int
    received_at: int


UserEvent = OrderReport | StopReport | AccountUpdate | LeverageChanged | MarginCall | ListenKeyExpired


class AccountSnapshot(Struct, frozen=True, kw_only=True):
    """The account as the exchange has it now, USDT."""

    wallet: Decimal
    available: Decimal
    unrealized_pnl: Decimal
    updated_at: int

    @property
    def equity(self) -> Decimal:
        return self.wallet + self.unrealized_pnl


class Income(Struct, frozen=True, kw_only=True):
    """One entry of the account's income history: realised profit, commission, funding …"""

    income_id: int
    """tranId: unique within a kind of income."""
    kind: str
    """FUNDING_FEE, COMMISSION, REALIZED_PNL …, as the exchange spells it."""
    symbol: str
    asset: str
    amount: Decimal
    at: int
    trade_id: str = ""


_RUN_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_CLIENT_ID = re.compile(r"([exsf])\.([0-9a-z]{1,6})\.([A-Za-z0-9_-]{22})\.([0-9a-z]{1,2})")


class ClientId(Struct, frozen=True):
    """What a client id of ours says: its leg, the run that made it, the position it belongs to, which attempt it is."""

    leg: Leg
    run: int
    position_id: str
    """22 characters: the signal's id, base64url."""
    attempt: int

    @property
    def text(self) -> str:
        """At most 36 characters of the exchange's alphabet (binance.md 4.2)."""
        return f"{self.leg.value}.{base36(self.run)}.{self.position_id}.{base36(self.attempt)}"


def read_client_id(text: str) -> ClientId | None:
    """The id read back; None for one that perpline did not make."""
    match = _CLIENT_ID.fullmatch(text)
    if match is None:
        return None
    return ClientId(Leg(match[1]), int(match[2], 36), match[3], int(match[4], 36))


def position_id(signal_id: str) -> str:
    """22 characters for the 32 hex digits of a signal's id: short enough for a client id, and the same in every run."""
    return base64.urlsafe_b64encode(bytes.fromhex(signal_id)).rstrip(b"=").decode()


def signal_id_of(position: str) -> str:
    """The 32 hex digits that `position_id` was made of."""
    return base64.urlsafe_b64decode(position + "==").hex()


def base36(number: int) -> str:
    """A whole number >= 0 in digits 0-9a-z."""
    digits = ""
    while True:
        number, digit = divmod(number, 36)
        digits = _RUN_DIGITS[digit] + digits
        if number == 0:
            return digits
