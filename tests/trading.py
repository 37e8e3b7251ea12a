"""Facts of entries, reports and whole lives of orders, for tests of trading."""

import random
from decimal import Decimal
from typing import Any

from msgspec import structs

from perpline.domain.instrument import Instrument
from perpline.domain.market import BookTicker, Side
from perpline.domain.order import (
    ClientId,
    Fill,
    Leg,
    OrderReport,
    OrderStatus,
    StopReport,
    StopStatus,
)
from perpline.trading.order_manager import OrderManager
from perpline.trading.position import Position
from perpline.trading.risk import (
    ApprovedOrder,
    ApprovedStop,
    EntryFacts,
    Risk,
    approve_close,
    approve_entry,
    approve_stop,
)

NOW = 1_795_219_260_000
RUN = 7
INSTRUMENT = Instrument(
    "BTCUSDT",
    "BTC",
    "USDT",
    "PERPETUAL",
    "TRADING",
    0,
    tick_size=Decimal("0.1"),
    step_size=Decimal("0.001"),
    min_quantity=Decimal("0.001"),
    min_notional=Decimal(50),
    max_quantity=Decimal(1000),
    market_max_quantity=Decimal(120),
    market_min_quantity=Decimal("0.001"),
    market_step_size=Decimal("0.001"),
    min_price=Decimal("0.1"),
    max_price=Decimal(4_529_764),
    multiplier_up=Decimal("1.05"),
    multiplier_down=Decimal("0.95"),
    market_take_bound=Decimal("0.05"),
)
RISK = Risk()


def book(bid: float = 1999.9, ask: float = 2000.1, quantity: float = 50.0, at: int = NOW) -> BookTicker:
    return BookTicker("BTCUSDT", bid, quantity, ask, quantity, 1, at, at)


def entry_facts(side: int = 1, **changes: Any) -> EntryFacts:
    """A signal at a mark price of 2000 with target and stop 1 % away, and nothing that speaks against it."""
    facts = EntryFacts(
        account="live",
        mode="live",
        run=RUN,
        now=NOW,
        instrument=INSTRUMENT,
        signal_id="00" * 16,
        side=side,
        valid_until=NOW + 30_000,
        deadline=NOW + 14_400_000,
        reference_mark=Decimal(2000),
        target=Decimal(2000 + 20 * side),
        stop=Decimal(2000 - 20 * side),
        mark=Decimal(2000),
        mark_at=NOW,
        book=book(),
        positions=(),
        marks={},
        equity=Decimal(10_000),
        day_equity=Decimal(10_000),
        peak_equity=Decimal(10_000),
        available=Decimal(10_000),
    )
    return structs.replace(facts, **changes)


def approved_entry(side: int = 1, risk: Risk = RISK, **changes: Any) -> ApprovedOrder:
    approved = approve_entry(entry_facts(side, **changes), risk)
    assert isinstance(approved, ApprovedOrder), approved
    return approved


def approved_close(position: Position, attempt: int = 0, reason: str = "stop", leg: Any = Leg.EXIT) -> ApprovedOrder:
    approved = approve_close(position, INSTRUMENT, leg=leg, reason=reason, run=RUN, attempt=attempt)
    assert isinstance(approved, ApprovedOrder), approved
    return approved


def fill(side: Side, price: str, quantity: str, trade_id: int, order_id: int, client_id: str = "", **more: Any) -> Fill:
    facts = Fill(
        symbol="BTCUSDT",
        trade_id=trade_id,
        order_id=order_id,
        client_id=client_id,
        side=side,
        price=Decimal(price),
        quantity=Decimal(quantity),
        fee=Decimal(price) * Decimal(quantity) / 2000,
        fee_asset="USDT",
        realized_pnl=Decimal(0),
        is_maker=False,
        traded_at=NOW + trade_id * 10,
        received_at=NOW + trade_id * 10 + 3,
    )
    return structs.replace(facts, **more)


def order_report(
    client_id: str,
    order_id: int,
    side: Side,
    quantity: str,
    status: OrderStatus,
    filled: str = "0",
    at: int = NOW,
    **more: Any,
) -> OrderReport:
    report = OrderReport(
        symbol="BTCUSDT",
        client_id=client_id,
        order_id=order_id,
        side=side,
        status=status,
        quantity=Decimal(quantity),
        filled=Decimal(filled),
        average_price=None,
        reduce_only=False,
        kind="market",
        source="stream",
        updated_at=at,
        received_at=at + 3,
    )
    return structs.replace(report, **more)


def stop_report(
    client_id: str, side: Side, status: StopStatus, order_id: int = 0, at: int = NOW, **more: Any
) -> StopReport:
    report = StopReport(
        symbol="BTCUSDT",
        client_algo_id=client_id,
        algo_id=2_000_000_000_000_001,
        side=side,
        kind="stop_market",
        status=status,
        trigger_price=Decimal("1970.0"),
        close_position=True,
        quantity=Decimal(0),
        order_id=order_id,
        source="stream",
        updated_at=at,
        received_at=at + 3,
    )
    return structs.replace(report, **more)


class Life:
    """The reports of one position's life as an exchange would send them, made up from a seed.

    `reports` in the order of their making, `truth`: what must come out, worked out here without the order manager.
    """

    def __init__(self, manager: OrderManager, seed: int, index: int = 0) -> None:
        self._random = random.Random(seed)
        self.reports: list[OrderReport | StopReport | Fill] = []
        self._ids = 1000 * (index + 1)
        self._at = NOW + 1_000_000 * index
        self.opened = self.closed = self.realized = self.fees = Decimal(0)
        self.reason = ""
        side = self._random.choice((1, -1))
        self.approved = approved_entry(side, signal_id=f"{seed * 1000 + index:032x}")
        self.position = self.approved.position
        self._entry_cost = Decimal(0)
        manager.intend(self.approved, self._at)
        self._live(manager)

    def _live(self, manager: OrderManager) -> None:
        entry = self.approved.request
        quantity = entry.quantity
        part = self._random.choice((Decimal(1), Decimal(1), Decimal("0.5"), Decimal(0)))
        filled = INSTRUMENT.round_quantity(quantity * part)
        end = (
            OrderStatus.FILLED
            if filled == quantity
            else self._random.choice((OrderStatus.EXPIRED, OrderStatus.CANCELED))
        )
        self._order(entry.client_id, self.position.entry_side, quantity, filled, end, Leg.ENTRY)
        if not filled:
            self.reason = "not_filled"
            return
        self.position.entry_price = Decimal(2000)  # as it will be, for the stop's trigger
        stop = approve_stop(self.position, INSTRUMENT, RISK, run=RUN, attempt=0)
        self.position.entry_price = None
        assert isinstance(stop, ApprovedStop)
        manager.intend_stop(stop, self._at)
        self._stop = stop.request.client_algo_id
        self._stopped(StopStatus.NEW)
        end_by = self._random.choice(("exit", "stop", "manual", "liquidation", "open", "manual then exit"))
        exit_side = self.position.exit_side
        left = filled
        if end_by.startswith("manual"):
            half = left if end_by == "manual" else INSTRUMENT.round_quantity(left / 2)
            self._order(f"web_{self._tick()}", exit_side, half, half, OrderStatus.FILLED, "manual")
            left -= half
            self.reason = "manual"
        if end_by.endswith("exit") and left:
            name = ClientId(Leg.EXIT, RUN, self.position.position_id, 0).text
            self.position.quantity = left
            manager.intend(approved_close(self.position, reason="target"), self._at)
            self.position.quantity = Decimal(0)
            self._order(name, exit_side, left, left, OrderStatus.FILLED, Leg.EXIT)
            self.reason = "target"
        if end_by == "liquidation":
            self._order(f"autoclose-{self._tick()}", exit_side, left, left, OrderStatus.FILLED, "liquidation")
            self.reason = "liquidation"
        if end_by == "stop":
            child = self._tick()
            self._stopped(StopStatus.TRIGGERING)
            self._stopped(StopStatus.TRIGGERED, child)
            name = self._random.choice((self._stop, f"child_{child}"))
            self._order(name, exit_side, left, left, OrderStatus.FILLED, Leg.STOP, child)
            self._stopped(StopStatus.FINISHED, child)
            self.reason = "protective_stop"
        elif end_by != "open":
            self._stopped(StopStatus.CANCELED)
        else:
            self.reason = ""

    def _order(
        self, name: str, side: Side, quantity: Decimal, filled: Decimal, end: OrderStatus, leg: Any, order_id: int = 0
    ) -> None:
        order_id = order_id or self._tick()
        text = f"{quantity}"
        self.reports.append(order_report(name, order_id, side, text, OrderStatus.NEW, at=self._at, source="answer"))
        self.reports.append(order_report(name, order_id, side, text, OrderStatus.NEW, at=self._at))
        done = Decimal(0)
        while done < filled:
            share = INSTRUMENT.round_quantity(quantity * Decimal(self._random.choice(("0.3", "0.6", "1"))))
            step = min(max(share, INSTRUMENT.step_size), filled - done)
            done += step
            price = Decimal(self._random.randint(19_000, 21_000)) / 10
            each = fill(side, f"{price}", f"{step}", self._tick(), order_id, name, traded_at=self._at)
            status = OrderStatus.FILLED if done == quantity else OrderStatus.PARTIALLY_FILLED
            self.reports.append(order_report(name, order_id, side, text, status, f"{done}", self._at, fill=each))
            if self._random.random() < 0.3:
                self.reports.append(structs.replace(each, client_id=""))
            self._count(each, leg)
        if end is not OrderStatus.FILLED:
            self._tick()
            self.reports.append(order_report(name, order_id, side, text, end, f"{done}", self._at, detail="the rest"))
        self.reports.append(order_report(name, order_id, side, text, end, f"{done}", self._at, source="query"))

    def _count(self, each: Fill, leg: Any) -> None:
        self.fees += each.fee
        if leg is Leg.ENTRY:
            self.opened += each.quantity
            self._entry_cost += each.price * each.quantity
        else:
            self.closed += each.quantity
            self.realized += self.position.side * each.quantity * (each.price - self._entry_cost / self.opened)

    def _stopped(self, status: StopStatus, child: int = 0) -> None:
        self._tick()
        self.reports.append(stop_report(self._stop, self.position.exit_side, status, child, self._at))
        if self._random.random() < 0.5:
            self.reports.append(
                stop_report(self._stop, self.position.exit_side, status, child, self._at, source="answer")
            )

    def _tick(self) -> int:
        self._ids += 1
        self._at += 10
        return self._ids


def state(manager: OrderManager) -> dict[str, Any]:
    """All that must be the same however the reports came. Our own times of hearing are not."""
    ours = ("updated_at", "naked_ms", "created_at", "sent_at", "opened_at")
    rows: dict[str, Any] = {
        "positions": {
            name: {key: value for key, value in structs.asdict(position).items() if key not in ours}
            for name, position in manager.positions.items()
        },
        "orders": {
            name: {
                **{key: value for key, value in structs.asdict(record).items() if key not in ours},
                "average_price": record.average_price,
            }
            for name, record in manager.orders.items()
        },
        "stops": {
            name: {key: value for key, value in structs.asdict(stop).items() if key not in ours}
            for name, stop in manager.stops.items()
        },
    }
    return rows
