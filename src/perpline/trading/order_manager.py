"""One account's orders, stops and positions, as far as anybody has told of them. Pure: no input, output or clock.

An order has several reporters that race: the answer to our request, the user data stream, a look at the exchange's
books. Their reports come in any order and more than once. Whatever the order, the end state is the same, because
nothing here is a step from the state before:

* a status only moves forwards (`RANK`), and what is cumulative never shrinks
* fills are kept by (symbol, trade id), and positions are folded anew from a symbol's fills in the order of trade ids
* whose fill it is follows from its order; that an order was a stop's child, or ours at all, may be learnt afterwards
* a position's status, reason and naked time follow from its orders, stops and fills
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from hashlib import blake2b
from typing import Any

from msgspec import structs

from perpline.domain.order import (
    Account,
    AccountUpdate,
    ClientId,
    ExchangePosition,
    Fill,
    Income,
    Leg,
    OrderReport,
    OrderStatus,
    StopReport,
    StopStatus,
    position_id,
    read_client_id,
)
from perpline.trading.position import (
    ZERO,
    FillLeg,
    Position,
    StrangerLeg,
    apply_fill,
    position_from_row,
    unbook,
)
from perpline.trading.records import (
    OUR_RANK,
    RANK,
    STOP_RANK,
    BookedFill,
    BookedIncome,
    Changes,
    Event,
    EventKind,
    OrderRecord,
    StopRecord,
    fill_from_row,
    order_from_row,
    stop_from_row,
)
from perpline.trading.risk import ApprovedOrder, ApprovedStop

__all__ = ["Changes", "Event", "OrderManager", "OrderRecord", "StopRecord"]

UNEXPLAINED_MS = 2000
"""An order of nobody we know may turn out to be a stop's child, told of before the stop was: so long we wait."""


class OrderManager:
    """The state machine of one account. Methods that change something return what changed; nothing else is told."""

    def __init__(
        self,
        account: Account,
        run: int,
        *,
        first_run: int = 1,
        quote_asset: str = "USDT",
        price_of: Callable[[str], Decimal | None] = lambda asset: None,
    ) -> None:
        """`run`: the number of this run, which every client id of ours carries; `first_run`: that of the first run on
        these tables, so that a perpline on others, with the same signals, is told apart. `price_of`: what a fee asset
        other than the quote asset is worth in it; a fee whose worth nobody knows is not counted in the position."""
        self.account = account
        self.run = run
        self.first_run = first_run
        self.orders: dict[str, OrderRecord] = {}
        self.stops: dict[str, StopRecord] = {}
        self.positions: dict[str, Position] = {}
        self.wallet: dict[str, Decimal] = {}
        """By asset, as the exchange told last."""
        self.exchange_positions: dict[str, ExchangePosition] = {}
        """By symbol, as the exchange told last."""
        self.naked_since: dict[str, int] = {}
        """Open positions without a confirmed stop, by id, and since when (our time)."""
        self._quote_asset = quote_asset
        self._price_of = price_of
        self._by_order_id: dict[tuple[str, int], str] = {}
        self._by_child: dict[tuple[str, int], str] = {}
        self._orders_of: dict[str, dict[str, None]] = defaultdict(dict)
        self._stops_of: dict[str, dict[str, None]] = defaultdict(dict)
        self._ids_in: dict[str, dict[str, None]] = defaultdict(dict)
        """Positions of a symbol."""
        self._fills: dict[str, dict[int, Fill]] = defaultdict(dict)
        self._trade_ids: dict[str, list[int]] = defaultdict(list)
        """The same fills' ids, in order."""
        self._first: dict[str, int] = {}
        """No fill of this position has a smaller trade id."""
        self._fees: dict[tuple[str, int], Decimal] = {}
        """Fees in quote of fills that paid in another asset, at the price when they were booked."""
        self._belongs: dict[tuple[str, int], str] = {}
        """The position each fill was booked to; empty for none."""
        self._last_exit: dict[str, Fill] = {}
        self._gone: dict[str, tuple[Decimal, int]] = {}
        """By position: so much had been closed by then, as the exchange has it, whether we know the fills or not."""
        self._taken_away: set[str] = set()
        """Positions whose last part went in that way."""
        self._strangers: dict[str, int] = {}
        """Orders of nobody we know, and since when: told of when UNEXPLAINED_MS have passed."""
        self._incomes: dict[tuple[str, int, str], int] = {}
        self._past: set[str] = set()
        self._wallet_at: dict[str, int] = {}

    # ---- what we do

    def intend(self, approved: ApprovedOrder, now: int) -> Changes:
        """An order that is about to be sent. An entry brings its position, which must be the symbol's only one."""
        request, position = approved.request, approved.position
        changes = Changes()
        if approved.leg is Leg.ENTRY and position.position_id not in self.positions:
            if self.position_in(position.symbol) is not None:
                raise ValueError(f"{position.symbol} has a position already")
            self._add_position(position)
        record = OrderRecord(
            client_id=request.client_id,
            position_id=position.position_id,
            signal_id=position.signal_id,
            symbol=request.symbol,
            leg=approved.leg,
            side=request.side,
            kind=request.kind,
            reduce_only=request.reduce_only,
            quantity=request.quantity,
            price=request.price,
            status=OrderStatus.INTENT,
            expected_price=approved.expected_price,
            created_at=now,
            updated_at=now,
            reason=approved.reason,
        )
        self._add_order(record, changes)
        changes.positions[position.position_id] = position
        self._settle(position, now, changes)
        return changes

    def intend_stop(self, approved: ApprovedStop, now: int) -> Changes:
        """A protective stop that is about to be sent."""
        request, position = approved.request, approved.position
        record = StopRecord(
            client_id=request.client_algo_id,
            position_id=position.position_id,
            signal_id=position.signal_id,
            symbol=request.symbol,
            side=request.side,
            trigger_price=request.trigger_price,
            status=StopStatus.INTENT,
            created_at=now,
            updated_at=now,
        )
        changes = Changes()
        self._add_stop(record, changes)
        position.protective_stop = request.trigger_price
        changes.positions[position.position_id] = position
        return changes

    def sent(self, client_id: str, now: int) -> Changes:
        return self._ourselves(client_id, OrderStatus.SENT, now, "")

    def unknown(self, client_id: str, now: int) -> Changes:
        """The answer was lost."""
        return self._ourselves(client_id, OrderStatus.UNKNOWN, now, "")

    def refused(self, client_id: str, detail: str, now: int) -> Changes:
        """It was not taken. Should the exchange report it all the same, the exchange is right."""
        return self._ourselves(client_id, OrderStatus.REJECTED, now, detail)

    # ---- what the exchange tells

    def apply(self, report: OrderReport | StopReport | Fill | AccountUpdate | Income) -> Changes:
        """Take a report in: any order of arrival, any repetition."""
        if isinstance(report, OrderReport):
            return self._apply_order(report)
        if isinstance(report, StopReport):
            return self._apply_stop(report)
        if isinstance(report, Fill):
            return self._apply_bare_fill(report)
        if isinstance(report, AccountUpdate):
            return self._apply_account(report)
        return self._apply_income(report)

    def overdue(self, now: int) -> Changes:
        """Events about orders that nobody has explained in time; to be asked each second."""
        changes = Changes()
        for client_id, since in list(self._strangers.items()):
            if now - since >= UNEXPLAINED_MS:
                del self._strangers[client_id]
                record = self.orders[client_id]
                told = f"{record.side} {record.filled:f} of {record.quantity:f} {record.name}".rstrip()
                changes.events.append(
                    Event(kind="manual", symbol=record.symbol, client_id=client_id, detail=told, at=record.created_at)
                )
        return changes

    # ---- what a reconciliation finds

    def adopt(
        self,
        found: ExchangePosition,
        now: int,
        *,
        target: Decimal | None = None,
        stop: Decimal | None = None,
        deadline: int | None = None,
    ) -> Changes:
        """Take over a position that perpline did not open, with these levels. Raises ValueError where the symbol has
        one of ours, or it is flat."""
        if self.position_in(found.symbol) is not None or found.quantity == 0:
            raise ValueError(f"nothing to adopt in {found.symbol}")
        made_of = blake2b(f"adopted:{self.account}:{found.symbol}:{now}".encode(), digest_size=16).hexdigest()
        position = Position(
            account=self.account,
            position_id=position_id(made_of),
            symbol=found.symbol,
            side=1 if found.quantity > 0 else -1,
            quantity=abs(found.quantity),
            opened_quantity=abs(found.quantity),
            entry_price=found.entry_price,
            target=target,
            stop=stop,
            deadline=deadline,
            reference_mark=found.entry_price,
            best_mark=found.mark_price,
            origin="adopted",
            status="open",
            opened_at=now,
            updated_at=now,
        )
        self._add_position(position)
        changes = Changes(positions={position.position_id: position})
        self._settle(position, now, changes)
        changes.events.append(_event("opened", position, now, "adopted"))
        return changes

    def correct(self, position: Position, quantity: Decimal, now: int) -> Changes:
        """The exchange has only `quantity` of it open, and nobody knows the fills: ours follows. Fills that come to
        light later are booked as ever. Raises ValueError for more than we have open."""
        if not 0 <= quantity <= position.quantity:
            raise ValueError(f"{position.symbol}: {quantity} is not at most {position.quantity}")
        self._gone[position.position_id] = (position.opened_quantity - quantity, now)
        changes = Changes()
        self._fold(position.symbol, now, changes)
        return changes

    # ---- what is there

    def position_in(self, symbol: str) -> Position | None:
        """The symbol's position that is not closed."""
        return next(self._not_closed(symbol), None)

    def open_positions(self, symbol: str | None = None) -> list[Position]:
        """Those that are not closed."""
        if symbol is not None:
            return list(self._not_closed(symbol))
        return [position for position in self.positions.values() if not position.is_closed]

    def orders_of(self, position_id: str) -> list[OrderRecord]:
        return [self.orders[client_id] for client_id in self._orders_of.get(position_id, ())]

    def stops_of(self, position_id: str) -> list[StopRecord]:
        return [self.stops[client_id] for client_id in self._stops_of.get(position_id, ())]

    def live_stop(self, position_id: str) -> StopRecord | None:
        """The stop that rests at the exchange for this position, is on its way there, may be, or is doing its work."""
        stops = self.stops_of(position_id)
        return next((stop for stop in stops if not stop.status.is_final or self._is_acting(stop)), None)

    def knows_order(self, symbol: str, order_id: int) -> bool:
        """Whether anybody has told of the exchange's order of this id."""
        return (symbol, order_id) in self._by_order_id

    def by_algo_child(self, symbol: str, order_id: int) -> StopRecord | None:
        """The stop that became this ordinary order."""
        client_id = self._by_child.get((symbol, order_id))
        return None if client_id is None else self.stops[client_id]

    def next_attempt(self, position_id: str, leg: Leg) -> int:
        """How many orders of this leg the position has had from this run: the number of the next one."""
        ids = [*self._orders_of.get(position_id, ()), *self._stops_of.get(position_id, ())]
        read = [made for made in map(read_client_id, ids) if made is not None and made.leg is leg]
        return sum(made.run == self.run for made in read)

    def unsettled_orders(self) -> list[OrderRecord]:
        """Orders of ours that may be at the exchange and are not known to have ended."""
        return [record for record in self.orders.values() if record.is_ours and not record.status.is_final]

    def unsettled_stops(self) -> list[StopRecord]:
        return [stop for stop in self.stops.values() if stop.leg is Leg.STOP and not stop.status.is_final]

    def lacking_fills(self) -> list[OrderRecord]:
        """Orders that have filled for more than the fills we were told of: ask for their fills."""
        return [record for record in self.orders.values() if record.order_id and record.lacks_fills]

    def orphan_stops(self) -> list[StopRecord]:
        """Stops of ours that rest, or may, for positions that are closed: to be cancelled."""
        return [
            stop
            for stop in self.unsettled_stops()
            if (position := self.positions.get(stop.position_id)) is None or position.is_closed
        ]

    def naked_ms(self, now: int) -> dict[str, int]:
        """For each open position without a confirmed stop, how long this has lasted."""
        return {position_id: max(0, now - since) for position_id, since in self.naked_since.items()}

    # ---- start and housekeeping

    def load(
        self,
        orders: Iterable[Mapping[str, Any]],
        fills: Iterable[Mapping[str, Any]],
        positions: Iterable[Mapping[str, Any]],
        incomes: Iterable[Mapping[str, Any]] = (),
        past_positions: Iterable[str] = (),
    ) -> None:
        """Take stored rows in, into an empty manager: every position that is not closed with all its orders and fills,
        and whatever else is recent enough to be told again. `past_positions`: ids of ours that are not among them.
        """
        stored = [position_from_row(row) for row in positions]
        quantities = {position.position_id: (position.quantity, position.updated_at) for position in stored}
        for position in stored:
            self._add_position(position)
        self._past.update(past_positions)
        records = []
        for row in orders:
            if row["trigger_price"] is not None:
                self._add_stop(stop_from_row(row), Changes())
            else:
                records.append(order_from_row(row))
        # Ours first: an order that was nobody's until its name was known has left a row.
        for record in sorted(records, key=lambda each: not each.is_ours):
            if record.leg in (Leg.EXIT, Leg.FLATTEN):
                owner = self.positions.get(record.position_id)
                record.reason = owner.exit_reason if owner is not None else ""
            if not record.order_id or (record.symbol, record.order_id) not in self._by_order_id:
                self._add_order(record, Changes())
        for row in fills:
            fill = fill_from_row(row)
            self._keep_fill(fill, Changes())
        for income in incomes:
            self._incomes[income["kind"], income["income_id"], income["symbol"]] = income["at"]
        naked_ms = {position.position_id: position.naked_ms for position in stored}
        for symbol in list(self._ids_in):
            self._fold(symbol, 0, Changes(), since=0)
        # What the fills do not explain is what a reconciliation had found.
        for position in stored:
            quantity, at = quantities[position.position_id]
            if quantity < position.quantity:
                self._gone[position.position_id] = (position.opened_quantity - quantity, at)
                self._fold(position.symbol, at, Changes())
        for position in stored:
            position.naked_ms = naked_ms[position.position_id]
            if position.position_id in self.naked_since:
                stops = self.stops_of(position.position_id)
                ended = [stop.final_at for stop in stops if stop.final_at is not None and stop.algo_id]
                self.naked_since[position.position_id] = max([position.opened_at, *ended])

    def forget(self, before: int) -> int:
        """Drop positions closed before this instant with their orders and fills, and old orders of strangers; returns
        how many positions. What is told of them again afterwards is taken for news, so this should be days ago."""
        old = [
            position
            for position in self.positions.values()
            if position.is_closed and (position.closed_at or position.updated_at) < before
        ]
        for position in old:
            self._past.add(position.position_id)
            del self.positions[position.position_id]
            del self._ids_in[position.symbol][position.position_id]
            for client_id in self._orders_of.pop(position.position_id, {}):
                self._drop_order(client_id)
            for client_id in self._stops_of.pop(position.position_id, {}):
                stop = self.stops.pop(client_id)
                self._by_child.pop((stop.symbol, stop.child_order_id), None)
            self._last_exit.pop(position.position_id, None)
            self._first.pop(position.position_id, None)
            self._gone.pop(position.position_id, None)
            self._taken_away.discard(position.position_id)
        for record in [each for each in self.orders.values() if not each.is_ours and each.updated_at < before]:
            self._drop_order(record.client_id)
        for stop in [each for each in self.stops.values() if not each.position_id and each.updated_at < before]:
            del self.stops[stop.client_id]
        for symbol, fills in self._fills.items():
            for trade_id in [each.trade_id for each in fills.values() if each.traded_at < before]:
                if self._belongs.get((symbol, trade_id), "") not in self.positions:
                    del fills[trade_id]
                    self._belongs.pop((symbol, trade_id), None)
                    self._fees.pop((symbol, trade_id), None)
            self._trade_ids[symbol] = sorted(fills)
        self._incomes = {key: at for key, at in self._incomes.items() if at >= before}
        return len(old)

    # ---- reports, one by one

    def _ourselves(self, client_id: str, status: OrderStatus, now: int, detail: str) -> Changes:
        """What happened to a request of ours before the exchange said anything."""
        changes = Changes()
        if (record := self.orders.get(client_id)) is not None:
            self._conclude(record, status, OUR_RANK[status], now, detail)
            changes.orders[client_id] = record
            if (position := self.positions.get(record.position_id)) is not None:
                self._settle(position, now, changes)
        elif (stop := self.stops.get(client_id)) is not None:
            self._conclude(stop, StopStatus(status.value), OUR_RANK[status], now, detail)
            changes.stops[client_id] = stop
        return changes

    def _conclude(
        self, record: OrderRecord | StopRecord, status: OrderStatus | StopStatus, rank: int, now: int, detail: str
    ) -> None:
        if status.value == "sent" and record.sent_at is None:
            record.sent_at = now
        if rank > record.rank:
            record.updated_at = max(record.updated_at, now)
        _move(record, status, rank, now, detail)

    def _apply_order(self, report: OrderReport) -> Changes:
        changes = Changes()
        record = self._record_of(report, changes)
        before = structs.astuple(record)
        if report.order_id:
            self._know_order_id(record, report.order_id, changes)
        rank = RANK[report.status]
        if report.updated_at >= record.told_at:
            record.told_at, record.quantity, record.kind = report.updated_at, report.quantity, report.kind
        if report.average_price and report.filled > record.priced:
            record.told_price, record.priced = report.average_price, report.filled
        record.filled = max(record.filled, report.filled)
        _move(record, report.status, rank, report.updated_at, report.detail)
        record.updated_at = max(record.updated_at, report.updated_at)
        if report.fill is not None:
            self._keep_fill(report.fill, changes, record)
        if structs.astuple(record) != before:
            changes.orders[record.client_id] = record
        self._after_order(record, report.received_at, changes)
        return changes

    def _apply_bare_fill(self, fill: Fill) -> Changes:
        """A fill without its order's report (userTrades)."""
        changes = Changes()
        record = self._record_of(fill, changes)
        self._know_order_id(record, fill.order_id, changes)
        if self._keep_fill(fill, changes, record):
            changes.orders[record.client_id] = record
            self._after_order(record, fill.received_at, changes)
        return changes

    def _after_order(self, record: OrderRecord, at: int, changes: Changes) -> None:
        if record.leg is Leg.STOP and (stop := self.by_algo_child(record.symbol, record.order_id)) is not None:
            if (stop.filled, stop.average_price) != (record.filled, record.average_price):
                stop.filled, stop.average_price = record.filled, record.average_price
                changes.stops[stop.client_id] = stop
        if changes.fills:
            self._fold(record.symbol, at, changes)
        elif (position := self.positions.get(record.position_id)) is not None:
            self._settle(position, at, changes)

    def _apply_stop(self, report: StopReport) -> Changes:
        changes = Changes()
        stop = self._stop_of(report, changes)
        before = structs.astuple(stop)
        rank = STOP_RANK[report.status]
        stop.algo_id = report.algo_id or stop.algo_id
        if report.trigger_price > 0:
            stop.trigger_price = report.trigger_price
        _move(stop, report.status, rank, report.updated_at, report.detail)
        stop.updated_at = max(stop.updated_at, report.updated_at)
        if report.order_id:
            self._know_child(stop, report.order_id, changes)
        if structs.astuple(stop) != before:
            changes.stops[stop.client_id] = stop
        if changes.fills:
            self._fold(stop.symbol, report.received_at, changes)
        elif (position := self.positions.get(stop.position_id)) is not None:
            self._settle(position, report.received_at, changes)
        return changes

    def _apply_account(self, update: AccountUpdate) -> Changes:
        for asset, balance in update.wallet.items():
            if update.updated_at >= self._wallet_at.get(asset, 0):
                self._wallet_at[asset] = update.updated_at
                self.wallet[asset] = balance
        for position in update.positions:
            known = self.exchange_positions.get(position.symbol)
            if known is None or position.updated_at >= known.updated_at:
                self.exchange_positions[position.symbol] = position
        if update.reason != "FUNDING_FEE":
            return Changes()
        return Changes(events=[Event(kind="funding", symbol=update.symbol, at=update.updated_at)])

    def _apply_income(self, income: Income) -> Changes:
        """Of an income only funding reaches a position: profit and commission come with the fills."""
        key = (income.kind, income.income_id, income.symbol)
        if key in self._incomes:
            return Changes()
        self._incomes[key] = income.at
        changes = Changes()
        owner = ""
        if income.kind in ("FUNDING_FEE", "SPECIAL_FUNDING_FEE"):
            for position_id in self._ids_in.get(income.symbol, ()):
                position = self.positions[position_id]
                ended = position.closed_at if position.closed_at is not None else income.at
                if position.opened_quantity > 0 and position.opened_at <= income.at <= ended:
                    owner = position_id
                    position.funding += self._in_quote(income.amount, income.asset) or ZERO
                    position.updated_at = max(position.updated_at, income.at)
                    changes.positions[position_id] = position
        changes.incomes.append(BookedIncome(income=income, position_id=owner))
        return changes

    # ---- whose is it

    def _record_of(self, report: OrderReport | Fill, changes: Changes) -> OrderRecord:
        """The record that a report is about, made where there is none."""
        name, place = report.client_id, (report.symbol, report.order_id)
        if name in self.orders:
            return self.orders[name]
        known = self._by_order_id.get(place) if report.order_id else None
        stop = self.by_algo_child(*place) or self.stops.get(name)
        if known is not None:
            record = self.orders[known]
            if name and not record.name and name != record.client_id:
                # It was known by a fill alone, which does not tell the name.
                record.name = name
                if not record.is_ours:
                    self._name(record, stop, report.received_at, changes)
            return record
        record = OrderRecord(
            client_id=f"{report.symbol}:{report.order_id}",
            position_id="",
            signal_id="",
            symbol=report.symbol,
            leg="manual",
            side=report.side,
            kind=report.kind if isinstance(report, OrderReport) else "market",
            reduce_only=report.reduce_only if isinstance(report, OrderReport) else False,
            quantity=report.quantity,
            status=OrderStatus.NEW,
            order_id=report.order_id,
            created_at=report.updated_at if isinstance(report, OrderReport) else report.traded_at,
            updated_at=0,
            name=name,
        )
        self._name(record, stop, report.received_at, changes)
        self._add_order(record, changes)
        return record

    def _name(self, record: OrderRecord, stop: StopRecord | None, at: int, changes: Changes) -> None:
        """Say whose an order is that we did not record before it was sent, as far as can be known."""
        name = record.name
        if stop is not None:
            if record.order_id and not stop.child_order_id:
                stop.child_order_id = record.order_id
                self._by_child[stop.symbol, record.order_id] = stop.client_id
                changes.stops[stop.client_id] = stop
            self._give(record, stop.leg, stop.position_id, changes)
            return
        made = read_client_id(name)
        if made is not None and self._is_ours(made):
            # Of a run before this one, which died before it could write it down, or of the command that flattens.
            if made.leg is not Leg.STOP:
                self._rename(record, name)
            self._give(record, made.leg, made.position_id, changes)
            return
        record.leg = leg = _special(name)
        if made is not None:
            kind: EventKind = "foreign_perpline"
        elif leg == "manual":
            self._strangers.setdefault(record.client_id, at)
            return
        else:
            kind = leg
        changes.events.append(Event(kind=kind, symbol=record.symbol, client_id=record.client_id, detail=name, at=at))

    def is_over(self, made: ClientId) -> bool:
        """Whether what was named so belongs to a position of ours that is closed."""
        position = self.positions.get(made.position_id)
        is_closed = made.position_id in self._past if position is None else position.is_closed
        return is_closed and (made.run == self.run or self._is_ours(made))

    def _is_ours(self, made: ClientId) -> bool:
        """This run knows all that it sends, so an unknown id can be ours only of a run before it. `perpline flatten`
        has runs of its own, beside this one."""
        known = made.position_id in self.positions or made.position_id in self._past
        return known and (self.first_run <= made.run < self.run or made.leg is Leg.FLATTEN)

    def _stop_of(self, report: StopReport, changes: Changes) -> StopRecord:
        name = report.client_algo_id
        own_name = f"{report.symbol}:algo:{report.algo_id}"
        if (known := self.stops.get(name) or self.stops.get(own_name)) is not None:
            return known
        made = read_client_id(name)
        ours = made is not None and made.leg is Leg.STOP and self._is_ours(made)
        position_id = made.position_id if made is not None and ours else ""
        owner = self.positions.get(position_id)
        stop = StopRecord(
            client_id=name if ours else own_name,
            position_id=position_id,
            signal_id="" if owner is None else owner.signal_id,
            symbol=report.symbol,
            leg=Leg.STOP if ours else "manual",
            side=report.side,
            kind=report.kind,
            quantity=report.quantity,
            trigger_price=report.trigger_price,
            close_position=report.close_position,
            status=StopStatus.SENT,
            created_at=report.updated_at,
            updated_at=0,
            name="" if ours else name,
        )
        self._add_stop(stop, changes)
        if not ours:
            changes.events.append(
                Event(
                    kind="manual" if made is None else "foreign_perpline",
                    symbol=report.symbol,
                    client_id=own_name,
                    detail=f"{report.kind} {report.side} at {report.trigger_price:f} {name}",
                    at=report.received_at,
                )
            )
        return stop

    def _know_order_id(self, record: OrderRecord, order_id: int, changes: Changes) -> None:
        """Of an order of ours whose fills came before its name, the nameless record is given up."""
        place = (record.symbol, order_id)
        known = self._by_order_id.get(place)
        if known is not None and known != record.client_id:
            nameless = self.orders[known]
            record.filled = max(record.filled, nameless.filled)
            record.booked += nameless.booked
            record.cost += nameless.cost
            self._drop_order(known)
            changes.orders.pop(known, None)
        record.order_id = order_id
        self._by_order_id[place] = record.client_id
        if known is not None and known != record.client_id:
            self._rebook(record, changes)

    def _know_child(self, stop: StopRecord, order_id: int, changes: Changes) -> None:
        """Join the stop and the order that it became, which may have been a stranger's until now."""
        stop.child_order_id = order_id
        self._by_child[stop.symbol, order_id] = stop.client_id
        known = self._by_order_id.get((stop.symbol, order_id))
        if known is None:
            return
        child = self.orders[known]
        stop.filled, stop.average_price = child.filled, child.average_price
        if not child.is_ours:
            self._give(child, stop.leg, stop.position_id, changes)
            changes.orders[known] = child

    def _give(self, record: OrderRecord, leg: FillLeg, position_id: str, changes: Changes) -> None:
        """Say what the order was for; fills of it that are known already are booked anew."""
        record.leg, record.position_id = leg, position_id
        record.signal_id = self.positions[position_id].signal_id if position_id in self.positions else ""
        self._strangers.pop(record.client_id, None)
        if position_id:
            self._orders_of[position_id][record.client_id] = None
        if record.booked:
            self._rebook(record, changes)

    def _rebook(self, record: OrderRecord, changes: Changes) -> None:
        for fill in self._fills[record.symbol].values():
            if fill.order_id == record.order_id:
                changes.fills[record.symbol, fill.trade_id] = self._booked(fill, record, record.position_id)

    def _rename(self, record: OrderRecord, name: str) -> None:
        if self.orders.pop(record.client_id, None) is not None:
            self.orders[name] = record
            self._by_order_id[record.symbol, record.order_id] = name
        self._strangers.pop(record.client_id, None)
        record.client_id, record.name = name, ""

    # ---- the books

    def _add_position(self, position: Position) -> None:
        self.positions[position.position_id] = position
        self._ids_in[position.symbol][position.position_id] = None

    def _add_order(self, record: OrderRecord, changes: Changes) -> None:
        self.orders[record.client_id] = record
        if record.order_id:
            self._by_order_id[record.symbol, record.order_id] = record.client_id
        if record.position_id:
            self._orders_of[record.position_id][record.client_id] = None
        changes.orders[record.client_id] = record

    def _add_stop(self, stop: StopRecord, changes: Changes) -> None:
        self.stops[stop.client_id] = stop
        if stop.child_order_id:
            self._by_child[stop.symbol, stop.child_order_id] = stop.client_id
        if stop.position_id:
            self._stops_of[stop.position_id][stop.client_id] = None
        changes.stops[stop.client_id] = stop

    def _drop_order(self, client_id: str) -> None:
        record = self.orders.pop(client_id)
        self._by_order_id.pop((record.symbol, record.order_id), None)
        self._strangers.pop(client_id, None)

    def _keep_fill(self, fill: Fill, changes: Changes, record: OrderRecord | None = None) -> bool:
        """Keep it by its trade id; returns whether it is new."""
        if fill.trade_id in self._fills[fill.symbol]:
            return False
        self._fills[fill.symbol][fill.trade_id] = fill
        insort(self._trade_ids[fill.symbol], fill.trade_id)
        if fill.fee_asset != self._quote_asset and fill.fee:
            self._fees[fill.symbol, fill.trade_id] = self._in_quote(fill.fee, fill.fee_asset) or ZERO
        record = self._order_of(fill) if record is None else record
        if record is not None:
            record.booked += fill.quantity
            record.cost += fill.price * fill.quantity
            record.filled = max(record.filled, record.booked)
            record.updated_at = max(record.updated_at, fill.traded_at)
            changes.fills[fill.symbol, fill.trade_id] = self._booked(fill, record, record.position_id)
        return True

    def _fold(self, symbol: str, at: int, changes: Changes, since: int | None = None) -> None:
        """Book the symbol's fills anew, in the order of their trade ids, to the positions whose they are.

        Only from `since` on, by default the first of the changed fills, and what hangs together with those: positions
        that are long closed are left alone.
        """
        if since is None:
            since = min((trade_id for name, trade_id in changes.fills if name == symbol), default=_LAST)
        start, touched = self._touched(symbol, since)
        positions = [self.positions[position_id] for position_id in self._ids_in[symbol] if position_id in touched]
        before = {position.position_id: structs.astuple(position) for position in positions}
        for position in positions:
            unbook(position)
            self._last_exit.pop(position.position_id, None)
        trade_ids = self._trade_ids[symbol]
        for trade_id in trade_ids[bisect_left(trade_ids, start) :]:
            fill = self._fills[symbol][trade_id]
            record = self._order_of(fill)
            if record is None:
                continue
            owner = self._owner(record, fill, positions)
            name = "" if owner is None else owner.position_id
            if owner is not None:
                left = apply_fill(owner, fill, record.leg, self._fees.get((symbol, trade_id)))
                self._first[name] = min(self._first.get(name, trade_id), trade_id)
                if record.leg is not Leg.ENTRY:
                    self._last_exit[name] = fill
                if left and record.is_ours and (symbol, trade_id) in changes.fills and self._entry_is_done(owner):
                    changes.events.append(_event("surplus", owner, at, f"{left:f} more than was open"))
            moved = self._belongs.get((symbol, trade_id)) != name
            self._belongs[symbol, trade_id] = name
            if moved or (symbol, trade_id) in changes.fills:
                changes.fills[symbol, trade_id] = self._booked(fill, record, name)
        for position in positions:
            self._take_away(position)
            self._settle(position, at, changes, before[position.position_id])

    def _touched(self, symbol: str, start: int) -> tuple[int, set[str]]:
        """From which trade id on, and for which positions, fills are to be booked anew if they are from `start` on."""
        trade_ids = self._trade_ids[symbol]
        touched = {
            position_id
            for position_id in self._ids_in[symbol]
            if not self.positions[position_id].is_closed or position_id in self._gone
        }
        seen = len(trade_ids)
        while True:
            start = min([start, *(self._first[each] for each in touched if each in self._first)])
            index = bisect_left(trade_ids, start)
            if index >= seen:
                return start, touched
            for trade_id in trade_ids[index:seen]:
                record = self._order_of(self._fills[symbol][trade_id])
                owners = (self._belongs.get((symbol, trade_id), ""), "" if record is None else record.position_id)
                touched.update(each for each in owners if each in self.positions)
            seen = index

    def _order_of(self, fill: Fill) -> OrderRecord | None:
        known = self._by_order_id.get((fill.symbol, fill.order_id))
        return None if known is None else self.orders[known]

    def _owner(self, record: OrderRecord, fill: Fill, positions: list[Position]) -> Position | None:
        """Ours by its order; what strangers did on the closing side, the position that was open then."""
        if record.is_ours:
            return self.positions.get(record.position_id)
        return next(
            (each for each in positions if each.exit_side == fill.side and self._was_open(each, fill.traded_at)), None
        )

    def _was_open(self, position: Position, at: int) -> bool:
        closed, gone_at = self._gone.get(position.position_id, (ZERO, at))
        return position.quantity > 0 and not (gone_at < at and closed >= position.opened_quantity)

    def _booked(self, fill: Fill, record: OrderRecord, position_id: str) -> BookedFill:
        return BookedFill(fill=fill, client_id=record.client_id, position_id=position_id, leg=record.leg)

    def _settle(self, position: Position, at: int, changes: Changes, before: tuple[Any, ...] | None = None) -> None:
        """Status, reason and nakedness of a position, from its orders, stops and fills."""
        before = structs.astuple(position) if before is None else before
        was_closed, had_opened = before[_STATUS] == "closed", before[_OPENED] > 0
        position_id = position.position_id
        exits = [each for each in self.orders_of(position_id) if each.leg in (Leg.EXIT, Leg.FLATTEN)]
        live = [each for each in exits if not each.status.is_final or each.lacks_fills]
        stops = self.stops_of(position_id)
        acting = any(map(self._is_acting, stops))
        if position.quantity == 0 and self._entry_is_done(position):
            position.status = "closed"
            last = self._last_exit.get(position_id)
            if position_id in self._taken_away:
                position.exit_reason, position.closed_at = "reconciled", self._gone[position_id][1]
            elif last is not None:
                position.exit_reason, position.closed_at = self._why(last), last.traded_at
            elif position.opened_quantity == 0:
                entries = [each for each in self.orders_of(position_id) if each.leg is Leg.ENTRY]
                position.exit_reason = "not_filled"
                position.closed_at = max((each.updated_at for each in entries), default=at)
        else:
            closing = live or position.quantity == 0 or acting
            position.status = "opening" if position.opened_quantity == 0 else "closing" if closing else "open"
            position.closed_at = None
            position.exit_reason = live[-1].reason if live else ""
        protected = acting or any(stop.status is StopStatus.NEW for stop in stops)
        self._watch_nakedness(position, protected, at, changes)
        if structs.astuple(position) == before:
            return
        position.updated_at = max(position.updated_at, at)
        changes.positions[position_id] = position
        if position.opened_quantity > 0 and not had_opened:
            changes.events.append(_event("opened", position, at, f"{position.quantity:f} at {position.entry_price:f}"))
        if position.is_closed and not was_closed:
            kind: EventKind = "closed" if position.opened_quantity > 0 else "not_opened"
            changes.events.append(_event(kind, position, at, position.exit_reason))

    def _entry_is_done(self, position: Position) -> bool:
        """Whether nothing of the entry can fill any more, and all that did is booked."""
        entries = [each for each in self.orders_of(position.position_id) if each.leg is Leg.ENTRY]
        if not entries and position.opened_quantity == 0:
            return False
        return all(each.status.is_final and not each.lacks_fills for each in entries)

    def _is_acting(self, stop: StopRecord) -> bool:
        """Whether it has triggered, and what it does to the position is not wholly known yet."""
        if stop.status in (StopStatus.TRIGGERING, StopStatus.TRIGGERED):
            return True
        if stop.status is not StopStatus.FINISHED or not stop.child_order_id:
            return False
        child = self.orders.get(self._by_order_id.get((stop.symbol, stop.child_order_id), ""))
        return child is None or not child.status.is_final or child.lacks_fills

    def _take_away(self, position: Position) -> None:
        """Reduce it by what the exchange has no more and no fill explains."""
        self._taken_away.discard(position.position_id)
        if (gone := self._gone.get(position.position_id)) is None or position.quantity == 0:
            return
        closed, at = gone
        known = sum(
            (
                fill.quantity
                for trade_id, fill in self._fills[position.symbol].items()
                if self._belongs.get((position.symbol, trade_id)) == position.position_id
                and fill.side == position.exit_side
                and fill.traded_at <= at
            ),
            ZERO,
        )
        missing = min(max(closed - known, ZERO), position.quantity)
        position.quantity -= missing
        if missing and position.quantity == 0:
            self._taken_away.add(position.position_id)

    def _why(self, last: Fill) -> str:
        record = self.orders[self._by_order_id[last.symbol, last.order_id]]
        if record.leg is Leg.STOP:
            return "protective_stop"
        if isinstance(record.leg, Leg):
            return record.reason or record.leg.name.lower()
        return record.leg

    def _watch_nakedness(self, position: Position, protected: bool, at: int, changes: Changes) -> None:
        since = self.naked_since.get(position.position_id)
        if position.quantity > 0 and not protected:
            if since is None:
                self.naked_since[position.position_id] = at
                if any(stop.final_at is not None and stop.algo_id for stop in self.stops_of(position.position_id)):
                    changes.events.append(_event("unprotected", position, at))
        elif since is not None:
            del self.naked_since[position.position_id]
            position.naked_ms += max(0, at - since)
            if protected and position.quantity > 0:
                changes.events.append(_event("protected", position, at, f"after {max(0, at - since)} ms"))

    def _not_closed(self, symbol: str) -> Iterator[Position]:
        return (
            self.positions[position_id]
            for position_id in self._ids_in.get(symbol, ())
            if not self.positions[position_id].is_closed
        )

    def _in_quote(self, amount: Decimal, asset: str) -> Decimal | None:
        if asset == self._quote_asset:
            return amount
        price = self._price_of(asset)
        return None if price is None else amount * price


_LAST = 1 << 63
_STATUS = Position.__struct_fields__.index("status")
_OPENED = Position.__struct_fields__.index("opened_quantity")


def _move(record: OrderRecord | StopRecord, status: OrderStatus | StopStatus, rank: int, at: int, detail: str) -> None:
    """Take a status in, if it is further than what is known. The first report of an end says when it was."""
    if detail and (rank, detail) > (record.detail_rank, record.detail):
        record.detail_rank, record.detail = rank, detail
    if rank > record.rank:
        record.rank = rank
        record.status = status
        record.final_at = at if status.is_final else None
    elif rank == record.rank and record.final_at is not None:
        record.final_at = min(record.final_at, at)


def _event(kind: EventKind, position: Position, at: int, detail: str = "") -> Event:
    return Event(kind=kind, symbol=position.symbol, position_id=position.position_id, detail=detail, at=at)


def _special(client_id: str) -> StrangerLeg:
    """Who closes a position with such an id (binance.md 5)."""
    if client_id.startswith("autoclose-"):
        return "liquidation"
    if client_id.startswith("adl_autoclose"):
        return "adl"
    if client_id.startswith("settlement_autoclose-"):
        return "settlement"
    return "manual"
