"""Orders of the live account on their way to the exchange, and what becomes of those whose answer was lost."""

import asyncio
import heapq
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Protocol

import structlog

from perpline.common.clock import Clock
from perpline.common.errors import Malformed, OutcomeUnknown, PerplineError, Refused, Unavailable
from perpline.domain.order import OrderReport, OrderRequest, OrderStatus, StopReport, StopRequest, StopStatus
from perpline.exchange.ports import TradingRest
from perpline.trading.risk import ApprovedOrder, ApprovedStop

log = structlog.get_logger("perpline.trading")

AT_ONCE = 4
"""Requests to the exchange under way at the same time."""
MAX_WAITING = 1000
"""Orders that may wait for REST; one more is refused, and whoever sent it decides. Reduce-only ones are never refused:
there are no more of them than positions."""
_LOOK_AFTER_S = (0.3, 0.5, 1.0, 2.0, 4.0)
"""Waits before each look for an order without an answer, wall seconds; the last is repeated."""


class FastLane(Protocol):
    """The order WebSocket API, as far as it is needed here: what it takes is written before the call returns."""

    @property
    def is_ready(self) -> bool: ...

    def send(self, order: OrderRequest) -> bool: ...

    def send_stop(self, stop: StopRequest) -> bool: ...


class LiveExecutor:
    """Sends what `risk` approved, each order once.

    Over the fast lane where it is ready, in the same call; else over REST, what reduces a position before what opens
    one. The outcome comes through one of three callables: `on_report`; `on_refused(id, error)`, it has not happened;
    `on_unknown(id)`, nobody can say yet, and it is being looked up: a report follows, at the latest NEVER_ARRIVED.
    Nothing is ever sent a second time from here.

    An order that the exchange does not know can still be on its way for as long as the receive window that it carries,
    which gateway and matching engine both check. `dead_after_ms` of the exchange's time is twice that window.
    """

    def __init__(
        self,
        rest: TradingRest,
        clock: Clock,
        *,
        on_report: Callable[[OrderReport | StopReport], None],
        on_refused: Callable[[str, PerplineError], None],
        on_unknown: Callable[[str], None],
        fast: FastLane | None = None,
        dead_after_ms: int = 10_000,
    ) -> None:
        self._rest = rest
        self._dead_after_ms = dead_after_ms
        self._clock = clock
        self._fast = fast
        self._on_report = on_report
        self._on_refused = on_refused
        self._on_unknown = on_unknown
        self._waiting: list[tuple[int, int, str, Callable[[], Awaitable[None]]]] = []
        self._numbers = 0
        self._due = asyncio.Event()
        self._sent: dict[str, tuple[OrderRequest | StopRequest, int]] = {}
        """What was handed to the fast lane and has no answer yet, with the exchange's time of the sending."""
        self._looking: dict[str, asyncio.Task[None]] = {}

    @property
    def looked_up(self) -> list[str]:
        """The ids whose outcome nobody knows at present."""
        return list(self._looking)

    def send(self, order: ApprovedOrder) -> None:
        request = order.request
        if self._fast is not None and self._fast.is_ready:
            self._sent[request.client_id] = (request, self._clock.exchange_now_ms())
            if self._fast.send(request):
                return
            del self._sent[request.client_id]
        if not request.reduce_only and len(self._waiting) >= MAX_WAITING:
            self._on_refused(request.client_id, Unavailable("too many orders are waiting to be sent"))
            return
        self._line_up(0 if request.reduce_only else 1, request.client_id, lambda: self._place(request))

    def send_stop(self, stop: ApprovedStop) -> None:
        request = stop.request
        if self._fast is not None and self._fast.is_ready:
            self._sent[request.client_algo_id] = (request, self._clock.exchange_now_ms())
            if self._fast.send_stop(request):
                return
            del self._sent[request.client_algo_id]
        self._line_up(0, request.client_algo_id, lambda: self._place(request))

    def cancel_stop(self, symbol: str, client_algo_id: str) -> None:
        """Ask for its cancellation. A stop that is gone already is no error; the outcome is what the exchange says."""
        self._line_up(1, client_algo_id, lambda: self._cancel_stop(client_algo_id))

    # ---- what the fast lane hears

    def answered(self, report: OrderReport | StopReport) -> None:
        self._sent.pop(_id_of(report), None)
        self._on_report(report)

    def refused(self, client_id: str, error: PerplineError) -> None:
        self._sent.pop(client_id, None)
        self._on_refused(client_id, error)

    def lost(self, client_id: str) -> None:
        """No answer came to this one: it is looked up."""
        request, sent_at = self._sent.pop(client_id, (None, 0))
        if request is not None:
            self._on_unknown(client_id)
            self.look_up(request, sent_at)

    # ---- REST

    async def run(self) -> None:
        """Send what waits for REST, for ever."""
        async with asyncio.TaskGroup() as group:
            for number in range(AT_ONCE):
                group.create_task(self._send_waiting(), name=f"orders over REST {number}")

    def look_up(self, request: OrderRequest | StopRequest, sent_at: int) -> None:
        """Find out what became of an order sent at `sent_at` (exchange time) whose answer was lost."""
        key = request.client_id if isinstance(request, OrderRequest) else request.client_algo_id
        if key not in self._looking:
            self._looking[key] = asyncio.create_task(self._look_up(key, request, sent_at), name=f"look up {key}")

    async def close(self) -> None:
        """End the look-ups. What they did not find stays unknown in the tables, and the next start asks again."""
        for task in self._looking.values():
            task.cancel()
        await asyncio.gather(*self._looking.values(), return_exceptions=True)
        self._looking.clear()

    def _line_up(self, rank: int, client_id: str, request: Callable[[], Awaitable[None]]) -> None:
        self._numbers += 1
        heapq.heappush(self._waiting, (rank, self._numbers, client_id, request))
        self._due.set()

    async def _send_waiting(self) -> None:
        while True:
            while not self._waiting:
                self._due.clear()
                await self._due.wait()
            _, _, client_id, request = heapq.heappop(self._waiting)
            try:
                await request()
            except (Refused, Unavailable) as error:
                self._on_refused(client_id, error)

    async def _place(self, request: OrderRequest | StopRequest) -> None:
        sent_at = self._clock.exchange_now_ms()
        try:
            if isinstance(request, OrderRequest):
                self._on_report(await self._rest.place_order(request))
            else:
                self._on_report(await self._rest.place_stop(request))
        except (OutcomeUnknown, Malformed):
            # An answer that makes no sense tells as little as none.
            self._on_unknown(request.client_id if isinstance(request, OrderRequest) else request.client_algo_id)
            self.look_up(request, max(sent_at, self._clock.exchange_now_ms()))

    async def _cancel_stop(self, client_algo_id: str) -> None:
        try:
            await self._rest.cancel_stop(client_algo_id)
            found = await self._rest.stop(client_algo_id)
        except (OutcomeUnknown, Unavailable, Malformed) as error:
            # An orphan is swept by the next reconciliation, which looks at what really rests there.
            log.warning("stop_not_cancelled", client_algo_id=client_algo_id, reason=str(error), action="reconcile")
            return
        if found is not None:
            self._on_report(found)

    async def _look_up(self, key: str, request: OrderRequest | StopRequest, sent_at: int) -> None:
        tries = 0
        try:
            while True:
                await self._clock.sleep_wall(_LOOK_AFTER_S[min(tries, len(_LOOK_AFTER_S) - 1)])
                tries += 1
                asked_at = self._clock.exchange_now_ms()
                try:
                    found: OrderReport | StopReport | None
                    if isinstance(request, OrderRequest):
                        found = await self._rest.order(request.symbol, request.client_id)
                    else:
                        found = await self._rest.stop(request.client_algo_id)
                except (Unavailable, Malformed, Refused) as error:
                    log.warning("order_not_looked_up", client_id=key, tries=tries, reason=str(error), action="orders")
                    continue
                if found is None and asked_at - sent_at > self._dead_after_ms:
                    found = _never_arrived(request, asked_at)
                if found is not None:
                    del self._looking[key]
                    self._on_report(found)
                    return
        except asyncio.CancelledError:
            self._looking.pop(key, None)
            raise


def _id_of(report: OrderReport | StopReport) -> str:
    return report.client_id if isinstance(report, OrderReport) else report.client_algo_id


def _never_arrived(request: OrderRequest | StopRequest, now: int) -> OrderReport | StopReport:
    detail = "the exchange has never had it"
    if isinstance(request, OrderRequest):
        return OrderReport(
            symbol=request.symbol,
            client_id=request.client_id,
            order_id=0,
            side=request.side,
            status=OrderStatus.NEVER_ARRIVED,
            quantity=request.quantity,
            filled=Decimal(0),
            average_price=None,
            reduce_only=request.reduce_only,
            kind=request.kind,
            source="query",
            updated_at=now,
            received_at=now,
            detail=detail,
        )
    return StopReport(
        symbol=request.symbol,
        client_algo_id=request.client_algo_id,
        algo_id=0,
        side=request.side,
        kind="stop_market",
        status=StopStatus.NEVER_ARRIVED,
        trigger_price=request.trigger_price,
        close_position=True,
        quantity=Decimal(0),
        order_id=0,
        source="query",
        updated_at=now,
        received_at=now,
        detail=detail,
    )
