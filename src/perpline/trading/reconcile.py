"""The account as the exchange has it beside ours: at a start, after every loss, and every few minutes.

The exchange is right. What we did not know of is asked for and booked like any other report; what still differs then
is a row in `reconciliations`, a line in the log, and repaired where that is possible.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

import structlog
from msgspec import Struct

from perpline.common.clock import Clock
from perpline.common.errors import Malformed, Refused, Unavailable
from perpline.domain.order import (
    AccountSnapshot,
    ExchangePosition,
    Leg,
    OrderReport,
    StopReport,
    StopStatus,
    read_client_id,
)
from perpline.exchange.ports import TradingRest
from perpline.trading.order_manager import Changes, OrderManager, OrderRecord, StopRecord
from perpline.trading.position import Position

log = structlog.get_logger("perpline.trading")

FILLS_BACK_MS = 6 * 24 * 3_600_000
"""How far back an order's fills are asked for where nothing says better; the exchange answers for at most 7 days."""
OVERLAP_MS = 60_000
"""Fills and income are asked for from so long before the last look on: what was told twice is booked once."""
FIRST_INCOME_MS = 24 * 3_600_000

Kind = Literal["position", "unknown_position", "missing_stop", "orphan_stop", "lost_order", "wallet"]


class Difference(Struct, frozen=True, kw_only=True):
    """A row of `reconciliations`: what the exchange had otherwise, and what was done about it."""

    kind: Kind
    symbol: str
    ours: str
    theirs: str
    action: str


class Reconciler:
    """Looks at the live account and brings ours to what the exchange has.

    `apply` takes changes of the manager the way every report's are taken. `told` gets the differences of each look.
    `adopt` takes over an unknown position, or says no. `cancel_stop` asks for the end of a stop.
    """

    def __init__(
        self,
        rest: TradingRest,
        clock: Clock,
        manager: OrderManager,
        *,
        apply: Callable[[Changes], None],
        adopt: Callable[[ExchangePosition], bool],
        cancel_stop: Callable[[str, str], None],
        in_flight: Callable[[str], bool],
        told: Callable[[Sequence[Difference]], None],
    ) -> None:
        self.account: AccountSnapshot | None = None
        """As of the last look."""
        self.looks = 0
        self.last_at: int | None = None
        self.last_error = ""
        self._rest = rest
        self._clock = clock
        self._manager = manager
        self._apply = apply
        self._adopt = adopt
        self._cancel_stop = cancel_stop
        self._in_flight = in_flight
        self._told = told
        self._looking = asyncio.Lock()
        self._income_until: int | None = None
        self._left_alone: set[str] = set()
        """Symbols whose unknown position has been told of."""

    async def look(self) -> list[Difference]:
        """One whole look. Raises Unavailable (try later), Refused (the keys are not accepted any more) or Malformed."""
        async with self._looking:
            try:
                differences = await self._look()
            except (Unavailable, Refused, Malformed) as error:
                self.last_error = str(error)
                raise
            self.looks += 1
            self.last_at, self.last_error = self._clock.exchange_now_ms(), ""
            for each in differences:
                log.warning(
                    "account_differs",
                    kind=each.kind,
                    symbol=each.symbol,
                    ours=each.ours,
                    theirs=each.theirs,
                    done=each.action,
                    action="reconcile",
                )
            self._told(differences)
            return differences

    async def _look(self) -> list[Difference]:
        # Orders first and positions last: what fills in between shows up in the positions and not the other way round.
        stops = await self._rest.open_stops()
        orders = await self._rest.open_orders()
        differences: list[Difference] = []
        for order in orders:
            self._apply(self._manager.apply(order))
        for stop in stops:
            self._apply(self._manager.apply(stop))
        differences += await self._settle_orders({order.client_id for order in orders})
        ended = await self._settle_stops({stop.client_algo_id for stop in stops})
        await self._book_missing_fills()
        positions = {position.symbol: position for position in await self._rest.positions()}
        differences += await self._compare_positions(positions)
        if any(record.order_id for record in self._manager.unsettled_orders()):
            # A fill may have told of an order that nobody had told of before.
            differences += await self._settle_orders({order.client_id for order in orders})
        differences += self._end_stops(ended)
        differences += self._sweep_stops(stops)
        self.account = await self._rest.account()
        await self._book_income()
        return differences

    async def _settle_orders(self, open_ids: set[str]) -> list[Difference]:
        """Ask for every order of ours that should be under way and is not among the open ones."""
        differences = []
        for record in self._manager.unsettled_orders():
            if record.client_id in open_ids or self._in_flight(record.client_id):
                continue
            was = record.status.value
            found = await self._rest.order(record.symbol, record.client_id_there, order_id=record.order_id)
            if found is None:
                continue  # being looked up, until its receive window has passed
            self._apply(self._manager.apply(found))
            differences.append(_difference("lost_order", record, was, found, "booked"))
        return differences

    async def _settle_stops(self, open_ids: set[str]) -> list[tuple[StopRecord, StopReport]]:
        """Ask for every stop of ours that should rest and does not. Those that ended without doing anything are
        returned: a stop in their place is only placed where their position turns out to be open."""
        ended = []
        for stop in self._manager.unsettled_stops():
            if stop.client_id in open_ids or self._in_flight(stop.client_id):
                continue
            found = await self._rest.stop(stop.client_id)
            if found is None:
                if not stop.algo_id:
                    continue  # being looked up, as orders are
                found = _gone(stop, self._clock.exchange_now_ms())  # it was there, and is not even history any more
            if found.status.is_final and found.status is not StopStatus.FINISHED:
                ended.append((stop, found))
            else:
                self._apply(self._manager.apply(found))
        return ended

    def _end_stops(self, ended: Sequence[tuple[StopRecord, StopReport]]) -> list[Difference]:
        differences = []
        for stop, found in ended:
            was = stop.status.value
            self._apply(self._manager.apply(found))
            position = self._manager.positions.get(stop.position_id)
            if position is not None and not position.is_closed:
                differences.append(_difference("missing_stop", stop, was, found, "placed again"))
        return differences

    async def _book_missing_fills(self) -> None:
        for record in self._manager.lacking_fills():
            for fill in await self._rest.fills(record.symbol, order_id=record.order_id):
                self._apply(self._manager.apply(fill))

    async def _compare_positions(self, theirs: Mapping[str, ExchangePosition]) -> list[Difference]:
        ours = {position.symbol: position for position in self._manager.open_positions()}
        differences: list[Difference] = []
        for symbol in sorted({*ours, *theirs}):
            position = ours.get(symbol)
            found = theirs.get(symbol)
            if self._agree(position, found) or self._busy(symbol):
                continue
            # Somebody else may have traded, or the exchange itself: their fills say so.
            since = self._clock.exchange_now_ms() - FILLS_BACK_MS if position is None else position.opened_at
            if position is not None:
                fills = await self._rest.fills(symbol, since=since - OVERLAP_MS)
                for order_id in sorted({fill.order_id for fill in fills}):
                    # A fill does not tell the name of its order, by which we know whose it is.
                    if not self._manager.knows_order(symbol, order_id):
                        order = await self._rest.order(symbol, "", order_id=order_id)
                        if order is not None:
                            self._apply(self._manager.apply(order))
                for fill in fills:
                    self._apply(self._manager.apply(fill))
            # What has filled meanwhile is in the fills and not in the snapshot: it is taken once more.
            found = next((each for each in await self._rest.positions() if each.symbol == symbol), None)
            position = self._manager.position_in(symbol)
            if self._agree(position, found) or self._busy(symbol):
                continue
            differences += self._repair(symbol, position, found)
        self._left_alone &= theirs.keys()
        return differences

    def _agree(self, position: Position | None, found: ExchangePosition | None) -> bool:
        ours = position.signed_quantity if position is not None else Decimal(0)
        return ours == (found.quantity if found is not None else Decimal(0))

    def _busy(self, symbol: str) -> bool:
        """Whether an order of the symbol is under way: then a difference proves nothing yet."""
        return any(record.symbol == symbol for record in self._manager.unsettled_orders())

    def _repair(self, symbol: str, position: Position | None, found: ExchangePosition | None) -> list[Difference]:
        has = found.quantity if found is not None else Decimal(0)
        if position is None or position.quantity == 0:
            assert found is not None, "two flat positions agree"
            if symbol in self._left_alone:
                return []
            adopted = self._adopt(found)
            if not adopted:
                self._left_alone.add(symbol)
            action = "adopted, with a stop under the rules" if adopted else "left alone"
            return [_of_position("unknown_position", symbol, "none", f"{has:f}", action)]
        ours = f"{position.signed_quantity:f}"
        same_side = has * position.side
        now = self._clock.exchange_now_ms()
        if 0 <= same_side < position.quantity:
            self._apply(self._manager.correct(position, same_side, now))
            return [_of_position("position", symbol, ours, f"{has:f}", "ours follows the exchange's")]
        if same_side > position.quantity:
            return [_of_position("position", symbol, ours, f"{has:f}", "the rest is not ours and left alone")]
        # The other side: ours is gone, and there is somebody else's.
        self._apply(self._manager.correct(position, Decimal(0), now))
        return [_of_position("position", symbol, ours, f"{has:f}", "ours is closed; the other one is not ours")]

    def _sweep_stops(self, theirs: Sequence[StopReport]) -> list[Difference]:
        """Cancel the stops of ours whose position is closed. One whose position we never had is another perpline's, or
        of tables that are lost, and may be all that protects it: `_meet_other` of the trader has been told."""
        differences = []
        for report in theirs:
            made = read_client_id(report.client_algo_id)
            if made is None or made.leg is not Leg.STOP:
                continue  # somebody else's, and none of our business
            if self._manager.is_over(made):
                self._cancel_stop(report.symbol, report.client_algo_id)
                differences.append(
                    Difference(
                        kind="orphan_stop",
                        symbol=report.symbol,
                        ours="no position",
                        theirs=f"{report.client_algo_id} at {report.trigger_price:f}",
                        action="cancelled",
                    )
                )
        return differences

    async def _book_income(self) -> None:
        """Funding reaches the positions; profit and commission came with the fills."""
        now = self._clock.exchange_now_ms()
        start = now - FIRST_INCOME_MS if self._income_until is None else self._income_until - OVERLAP_MS
        for income in await self._rest.income(start, now + 1):
            self._apply(self._manager.apply(income))
        self._income_until = now


def _difference(
    kind: Kind, record: OrderRecord | StopRecord, was: str, found: OrderReport | StopReport, action: str
) -> Difference:
    return Difference(
        kind=kind,
        symbol=record.symbol,
        ours=f"{record.client_id} {was}",
        theirs=found.status.value,
        action=action,
    )


def _gone(stop: StopRecord, now: int) -> StopReport:
    return StopReport(
        symbol=stop.symbol,
        client_algo_id=stop.client_id,
        algo_id=stop.algo_id,
        side=stop.side,
        kind=stop.kind,
        status=StopStatus.CANCELED,
        trigger_price=stop.trigger_price,
        close_position=stop.close_position,
        quantity=stop.quantity,
        order_id=0,
        source="query",
        updated_at=now,
        received_at=now,
        detail="the exchange has it no more",
    )


def _of_position(kind: Kind, symbol: str, ours: str, theirs: str, action: str) -> Difference:
    return Difference(kind=kind, symbol=symbol, ours=ours, theirs=theirs, action=action)


def reconciliation_row(account: str, at: int, difference: Difference) -> dict[str, Any]:
    """Values by column of `reconciliations`."""
    return {
        "account": account,
        "at": at,
        "kind": difference.kind,
        "symbol": difference.symbol,
        "ours": difference.ours,
        "theirs": difference.theirs,
        "action": difference.action,
    }
