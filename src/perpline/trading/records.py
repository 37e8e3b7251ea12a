"""What is known of orders, stops and fills, what changed about them, and the rows they are stored as."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal

from msgspec import Struct, structs

from perpline.domain.market import Side
from perpline.domain.order import Account, Fill, Income, Leg, OrderStatus, StopStatus
from perpline.trading.position import ZERO, FillLeg, Position, position_row

EventKind = Literal[
    "opened",
    "protected",
    "unprotected",
    "closed",
    "not_opened",
    "liquidation",
    "adl",
    "settlement",
    "manual",
    "foreign_perpline",
    "surplus",
    "funding",
]


class Event(Struct, frozen=True, kw_only=True):
    """Something that a person or the Trader should know of, told once.

    opened, closed, not_opened: a position got its first fill, is gone, never came to be. protected, unprotected: the
    exchange confirmed its stop, or has it no more while the position is open. surplus: an order of ours that could only
    reduce filled for more than was open. funding: a settlement, whose amount is in the income. liquidation, adl,
    settlement, manual: an order that is not ours; foreign_perpline: one of another perpline on this account. Of these
    `client_id` is the key of the record, and `detail` says what it is called at the exchange.
    """

    kind: EventKind
    symbol: str
    position_id: str = ""
    client_id: str = ""
    detail: str = ""
    at: int = 0


class OrderRecord(Struct, kw_only=True):
    """One ordinary order. `client_id` is the key; of orders that we did not name it is SYMBOL:order_id."""

    client_id: str
    position_id: str
    signal_id: str
    symbol: str
    leg: FillLeg
    side: Side
    kind: str
    reduce_only: bool
    quantity: Decimal
    price: Decimal | None = None
    status: OrderStatus
    order_id: int = 0
    filled: Decimal = ZERO
    """Cumulative, as told; what of it is booked as fills may lag behind."""
    detail: str = ""
    expected_price: Decimal | None = None
    created_at: int
    sent_at: int | None = None
    updated_at: int
    final_at: int | None = None
    reason: str = ""
    """Why the position is closed with it."""
    name: str = ""
    """What an order that we did not name is called at the exchange; empty where only a fill has told of it."""
    booked: Decimal = ZERO
    """Sum of its fills."""
    cost: Decimal = ZERO
    """Sum of price · quantity of its fills."""
    told_price: Decimal | None = None
    """Average price as told, for `priced` of it."""
    priced: Decimal = ZERO
    told_at: int = 0
    """Time of the newest report."""
    rank: int = 0
    detail_rank: int = -1
    """Of the report that the detail is from."""

    @property
    def average_price(self) -> Decimal | None:
        """Of its fills once all are known; before that as the exchange told it, if it did."""
        return self.told_price if self.lacks_fills or not self.booked else self.cost / self.booked

    @property
    def is_ours(self) -> bool:
        return isinstance(self.leg, Leg)

    @property
    def client_id_there(self) -> str:
        """The client id it has at the exchange, to ask for it; empty where that is not known."""
        return self.name or ("" if self.client_id == f"{self.symbol}:{self.order_id}" else self.client_id)

    @property
    def lacks_fills(self) -> bool:
        """Whether more has filled than we have been told the fills of."""
        return self.booked < self.filled


class StopRecord(Struct, kw_only=True):
    """One conditional order, by its client algo id; of stops that we did not name SYMBOL:algo:algo_id."""

    client_id: str
    position_id: str
    signal_id: str
    symbol: str
    leg: FillLeg = Leg.STOP
    side: Side
    kind: str = "stop_market"
    quantity: Decimal = ZERO
    trigger_price: Decimal
    close_position: bool = True
    status: StopStatus
    algo_id: int = 0
    child_order_id: int = 0
    """The ordinary order that it became."""
    filled: Decimal = ZERO
    average_price: Decimal | None = None
    detail: str = ""
    created_at: int
    sent_at: int | None = None
    updated_at: int
    final_at: int | None = None
    name: str = ""
    """What a stop of somebody else's calls itself."""
    rank: int = 0
    detail_rank: int = -1


class BookedFill(Struct, frozen=True, kw_only=True):
    """A fill with what it was for."""

    fill: Fill
    client_id: str
    position_id: str
    """Empty where it belongs to none of our positions."""
    leg: FillLeg


class BookedIncome(Struct, frozen=True, kw_only=True):
    income: Income
    position_id: str


class Changes(Struct):
    """What a call has changed: records to be stored, each once, and events for people."""

    orders: dict[str, OrderRecord] = {}
    stops: dict[str, StopRecord] = {}
    fills: dict[tuple[str, int], BookedFill] = {}
    positions: dict[str, Position] = {}
    incomes: list[BookedIncome] = []
    events: list[Event] = []

    def __bool__(self) -> bool:
        return bool(self.orders or self.stops or self.fills or self.positions or self.incomes or self.events)

    def rows(self, account: Account) -> dict[str, list[dict[str, Any]]]:
        """Values by column for each table that has any, as they are now."""
        rows = {
            "positions": [position_row(position) for position in self.positions.values()],
            "orders": [
                *(_order_row(record) for record in self.orders.values()),
                *(_stop_row(record) for record in self.stops.values()),
            ],
            "fills": [_fill_row(booked) for booked in self.fills.values()],
            "incomes": [
                {**structs.asdict(booked.income), "position_id": booked.position_id or None} for booked in self.incomes
            ],
        }
        return {table: [{**values, "account": account} for values in rows[table]] for table in rows if rows[table]}

    def add(self, other: "Changes") -> None:
        self.orders |= other.orders
        self.stops |= other.stops
        self.fills |= other.fills
        self.positions |= other.positions
        self.incomes += other.incomes
        self.events += other.events


RANK = {
    OrderStatus.INTENT: 0,
    OrderStatus.SENT: 1,
    OrderStatus.UNKNOWN: 2,
    OrderStatus.NEVER_ARRIVED: 3,
    OrderStatus.NEW: 4,
    OrderStatus.PARTIALLY_FILLED: 5,
    OrderStatus.REJECTED: 6,
    OrderStatus.EXPIRED: 7,
    OrderStatus.CANCELED: 8,
    OrderStatus.FILLED: 9,
}
"""What is told of an order later is never lower, whoever tells it. NEVER_ARRIVED is our own conclusion, and gives way
to evidence, as does a refusal that we heard instead of an order's report."""
OUR_RANK = {
    OrderStatus.SENT: 1,
    OrderStatus.UNKNOWN: 2,
    OrderStatus.REJECTED: 3,
}
STOP_RANK = {
    StopStatus.INTENT: 0,
    StopStatus.SENT: 1,
    StopStatus.UNKNOWN: 2,
    StopStatus.NEVER_ARRIVED: 3,
    StopStatus.NEW: 4,
    StopStatus.TRIGGERING: 5,
    StopStatus.TRIGGERED: 6,
    StopStatus.REJECTED: 7,
    StopStatus.EXPIRED: 8,
    StopStatus.CANCELED: 9,
    StopStatus.FINISHED: 10,
}


_NAMED = "client id "
_LEGS: dict[str, FillLeg] = {
    **{leg.name.lower(): leg for leg in Leg},
    "liquidation": "liquidation",
    "adl": "adl",
    "settlement": "settlement",
    "manual": "manual",
}


def _full_detail(record: OrderRecord | StopRecord) -> str:
    """The detail, behind the name of an order that is not ours."""
    return "; ".join(part for part in (_NAMED + record.name if record.name else "", record.detail) if part)


def _name_and_detail(text: str) -> tuple[str, str]:
    if not text.startswith(_NAMED):
        return "", text
    name, _, detail = text.removeprefix(_NAMED).partition("; ")
    return name, detail


def _leg_name(leg: FillLeg) -> str:
    return leg.name.lower() if isinstance(leg, Leg) else leg


def _leg(name: str) -> FillLeg:
    return _LEGS[name]


def _order_row(record: OrderRecord) -> dict[str, Any]:
    return {
        **structs.asdict(record),
        "leg": _leg_name(record.leg),
        "detail": _full_detail(record),
        "status": record.status.value,
        "average_price": record.average_price,
        "order_id": record.order_id or None,
        "position_id": record.position_id or None,
    }


def _stop_row(stop: StopRecord) -> dict[str, Any]:
    return {
        **structs.asdict(stop),
        "leg": _leg_name(stop.leg),
        "detail": _full_detail(stop),
        "status": stop.status.value,
        "reduce_only": True,
        "order_id": stop.algo_id or None,
        "child_order_id": stop.child_order_id or None,
        "position_id": stop.position_id or None,
    }


def _fill_row(booked: BookedFill) -> dict[str, Any]:
    kind = "trade" if isinstance(booked.leg, Leg) else booked.leg
    return {
        **structs.asdict(booked.fill),
        "client_id": booked.client_id,
        "position_id": booked.position_id or None,
        "kind": kind,
    }


def order_from_row(row: Mapping[str, Any]) -> OrderRecord:
    status = OrderStatus(row["status"])
    told = bool(row["order_id"]) or status is not OrderStatus.REJECTED
    rank = RANK[status] if told else OUR_RANK[status]
    name, detail = _name_and_detail(row["detail"])
    return OrderRecord(
        client_id=row["client_id"],
        position_id=row["position_id"] or "",
        signal_id=row["signal_id"] or "",
        symbol=row["symbol"],
        leg=_leg(row["leg"]),
        side=row["side"],
        kind=row["kind"],
        reduce_only=bool(row["reduce_only"]),
        quantity=Decimal(row["quantity"]),
        price=_decimal(row["price"]),
        status=status,
        order_id=row["order_id"] or 0,
        filled=Decimal(row["filled"]),
        told_price=_decimal(row["average_price"]),
        priced=Decimal(row["filled"]),
        told_at=row["updated_at"],
        name=name,
        detail=detail,
        expected_price=_decimal(row["expected_price"]),
        created_at=row["created_at"],
        sent_at=row["sent_at"],
        updated_at=row["updated_at"],
        final_at=row["final_at"],
        rank=rank,
        detail_rank=rank,
    )


def stop_from_row(row: Mapping[str, Any]) -> StopRecord:
    status = StopStatus(row["status"])
    told = bool(row["order_id"]) or status is not StopStatus.REJECTED
    rank = STOP_RANK[status] if told else OUR_RANK[OrderStatus.REJECTED]
    name, detail = _name_and_detail(row["detail"])
    return StopRecord(
        client_id=row["client_id"],
        position_id=row["position_id"] or "",
        signal_id=row["signal_id"] or "",
        symbol=row["symbol"],
        leg=_leg(row["leg"]),
        side=row["side"],
        kind=row["kind"],
        quantity=Decimal(row["quantity"]),
        trigger_price=Decimal(row["trigger_price"]),
        close_position=Decimal(row["quantity"]) == 0,
        status=status,
        algo_id=row["order_id"] or 0,
        child_order_id=row["child_order_id"] or 0,
        filled=Decimal(row["filled"]),
        average_price=_decimal(row["average_price"]),
        name=name,
        detail=detail,
        created_at=row["created_at"],
        sent_at=row["sent_at"],
        updated_at=row["updated_at"],
        final_at=row["final_at"],
        rank=rank,
        detail_rank=rank,
    )


def fill_from_row(row: Mapping[str, Any]) -> Fill:
    return Fill(
        symbol=row["symbol"],
        trade_id=row["trade_id"],
        order_id=row["order_id"],
        client_id=row["client_id"],
        side=row["side"],
        price=Decimal(row["price"]),
        quantity=Decimal(row["quantity"]),
        fee=Decimal(row["fee"]),
        fee_asset=row["fee_asset"],
        realized_pnl=Decimal(row["realized_pnl"]),
        is_maker=bool(row["is_maker"]),
        traded_at=row["traded_at"],
        received_at=row["received_at"],
    )


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)
