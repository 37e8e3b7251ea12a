"""One account's trading: from a signal to a position with its stop, and out of it again.

What is done follows from what is stored and told, never from a step before it: an order that may have been sent is
looked up, a stop that is missing is placed, a position that should be closed is closed, each time somebody looks. So a
process may die at any instruction, and its next start goes on.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, Protocol

import msgspec
import structlog
from msgspec import Struct

from perpline.common.clock import Clock
from perpline.common.errors import PerplineError, Refused, Unavailable
from perpline.domain.instrument import Instrument
from perpline.domain.market import BookTicker, MarkPrice, Side
from perpline.domain.messages import PositionDraft
from perpline.domain.order import (
    Account,
    AccountSnapshot,
    AccountUpdate,
    ExchangePosition,
    Fill,
    Income,
    Leg,
    ListenKeyExpired,
    MarginCall,
    OrderReport,
    OrderRequest,
    OrderStatus,
    StopReport,
    StopRequest,
    UserEvent,
    position_id,
    read_client_id,
)
from perpline.domain.signal import Decision, Message, Status
from perpline.storage.store import TRADING_TABLES, Fence, Row, Store
from perpline.trading.equity import DAY_MS, EquityCurve
from perpline.trading.mode import Change, ModeRow, Modes
from perpline.trading.order_manager import Changes, Event, OrderManager, OrderRecord, StopRecord
from perpline.trading.position import Position
from perpline.trading.reconcile import Difference, reconciliation_row
from perpline.trading.risk import (
    ApprovedOrder,
    ApprovedStop,
    EntryFacts,
    Refusal,
    Risk,
    approve_close,
    approve_entry,
    approve_stop,
)
from perpline.trading.sltp_monitor import SltpMonitor

log = structlog.get_logger("perpline.trading")

LOOK_EVERY_S = 0.2
"""How often what is open is looked after, wall seconds; news are acted on at once."""
RETRY_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Wall seconds between two attempts at a close or a stop; the last is repeated."""
STALE_MARK_MS = 15_000
"""An open position without a mark price for so long is not watched by us, and only the stop at the exchange is."""
REMEMBERED_MS = 3 * 86_400_000
"""Closed positions are kept in memory for late reports so long."""
MAX_SIGNALS = 5_000
"""Signals waiting for their turn. Beyond it the oldest are dropped: they would have expired."""
TIE_MS = 2_000
"""Two first orders that are no further apart than this, market time, came at once."""
ANNOUNCED_MS = 60_000
RECENT_EVENTS = 20
"""Positions opened and closed that /status tells of."""
STILL_GOOD_MS = 10 * 60_000
"""How far back a start looks for signals that may still be acted on."""

_STOPPED = frozenset({"stop", "trailing_stop", "break_even", "protective_stop", "liquidation", "exit"})
"""Reasons after which a symbol pauses. "exit": the reason died with a process, and it may have been a stop."""
_ON_BUS = {
    "target": "tp",
    "stop": "sl",
    "break_even": "sl",
    "trailing_stop": "trailing",
    "protective_stop": "exchange_stop",
    "reconciled": "reconcile",
}


class Executor(Protocol):
    """Where approved orders go: the exchange, or paper. Outcomes come through the Trader's on_… calls."""

    def send(self, order: ApprovedOrder) -> None: ...

    def send_stop(self, stop: ApprovedStop) -> None: ...

    def cancel_stop(self, symbol: str, client_algo_id: str) -> None: ...

    def look_up(self, request: OrderRequest | StopRequest, sent_at: int) -> None: ...

    async def run(self) -> None: ...


class TradedMarket(Struct, frozen=True):
    """What the Trader may look up: the newest value by symbol, None where nothing has come yet."""

    mark: Callable[[str], MarkPrice | None]
    book: Callable[[str], BookTicker | None]
    instrument: Callable[[str], Instrument | None]
    volatility: Callable[[str], float | None] = lambda symbol: None
    """Standard deviation of one minute's return."""


class TraderStatistics(Struct):
    """Since the start."""

    entries: int = 0
    exits: int = 0
    refusals: int = 0
    alarms: int = 0
    naked_ms_longest: int = 0
    closed: int = 0
    net_pnl: float = 0.0
    """Of the positions that were closed, USDT after fees and funding as far as these were known then."""
    unwritten: int = 0
    """Rows that wait for the database."""


class Trader:
    """Turns signals of its account's mode into positions, and looks after what is open until it is flat.

    Everything is on one loop. `on_mark_price` closes within the call; rows of what was done follow in one transaction,
    at once. Only an entry waits for its rows: they are stored before it is sent.

    `prepare(symbol)` is awaited before the first entry of a symbol (margin and leverage at the exchange) and raises
    PerplineError where the symbol is not fit; `account()` is the account's worth, None while nobody knows;
    `reconcile_soon()` asks for a look at the exchange; `expected_price` is what the book lets expect of a market order,
    the paper twin of a live one.
    """

    def __init__(
        self,
        *,
        account: Account,
        clock: Clock,
        store: Store,
        slot: str,
        modes: Modes,
        manager: OrderManager,
        risk: Risk,
        market: TradedMarket,
        executor: Executor,
        worth: Callable[[], AccountSnapshot | None],
        wake_publisher: Callable[[Sequence[Message] | None], None],
        trailing_stop_pct: float = 0.0,
        break_even_pct: float = 0.0,
        naked_alarm_s: float = 3.0,
        prepare: Callable[[str], Awaitable[None]] | None = None,
        reconcile_soon: Callable[[], None] = lambda: None,
        expected_price: Callable[[str, Side, Decimal], Decimal | None] = lambda symbol, side, quantity: None,
        unknown_positions: str = "leave",
        default_levels_pct: tuple[float, float] = (1.0, 1.0),
        fence: Callable[[], Fence | None] = lambda: None,
        may_act: Callable[[], bool] = lambda: True,
    ) -> None:
        """Rows are stored under `fence`; where that is another's now, `run` ends with Fenced. `may_act` says right
        before an order whether another process may already be trading the account."""
        self.account: Account = account
        self.manager = manager
        self.statistics = TraderStatistics()
        self.blocks: dict[str, str] = {}
        """Why no entries are made at all, each reason under a word of its own; empty where they are made."""
        self._clock = clock
        self._store = store
        self._slot = slot
        self._modes = modes
        self._risk = risk
        self._market = market
        self._executor = executor
        self._worth = worth
        self._wake_publisher = wake_publisher
        self._naked_alarm_ms = round(naked_alarm_s * 1000)
        self._prepare = prepare
        self._reconcile_soon = reconcile_soon
        self._expected_price = expected_price
        self._unknown_positions = unknown_positions
        self._default_levels_pct = default_levels_pct
        self._fence = fence
        self._may_act = may_act
        self._monitor = SltpMonitor(
            self._fire, self._moved, trailing_stop_pct=trailing_stop_pct, break_even_pct=break_even_pct
        )
        self._curve = EquityCurve()
        self._signals: list[Decision] = []
        self._early: list[Decision] = []
        """Signals of the last process that are still good and wait for a mark price and a book of their symbol."""
        self._woken = asyncio.Event()
        self._rows: dict[str, dict[Any, Row]] = {}
        self._added: dict[str, list[Row]] = {}
        self._messages: list[Message] = []
        self._sent = Changes()
        """Of closes that were just sent; taken when the loop turns."""
        self._dirty = asyncio.Event()
        self._writing = asyncio.Lock()
        self._closing: dict[str, tuple[str, Leg]] = {}
        """Positions to be closed, by id: why, and on whose order."""
        self._next_try: dict[tuple[str, Leg], tuple[float, int]] = {}
        """When the next attempt of a leg may be made (wall s), and how many there were."""
        self._last_stop_at: dict[str, int] = {}
        self._fit: set[str] = set()
        self._alarmed: dict[tuple[str, str], float] = {}
        self._fired_at: dict[str, float] = {}
        self._twinned: set[str] = set()
        self._lacking: set[str] = set()
        self._recent: deque[dict[str, Any]] = deque(maxlen=RECENT_EVENTS)
        self._rows_error = ""
        self._began_at = clock.exchange_now_ms()

    @property
    def blocked(self) -> str:
        return "; ".join(self.blocks.values())

    # ---- start

    async def open(self) -> None:
        """Take over what the tables say. Raises Unavailable."""
        tables, store, mine = TRADING_TABLES, self._store, {"account": self.account}
        since = self._clock.exchange_now_ms() - REMEMBERED_MS
        positions = [tables["positions"].named(row) for row in await store.trading_rows("positions", mine)]
        orders = [tables["orders"].named(row) for row in await store.trading_rows("orders", mine)]
        kept = {each["position_id"] for each in positions if each["status"] != "closed" or each["updated_at"] >= since}
        fills = [tables["fills"].named(row) for row in await store.trading_rows("fills", mine)]
        incomes = [tables["incomes"].named(row) for row in await store.trading_rows("incomes", mine, since=since)]
        self.manager.load(
            [each for each in orders if each["position_id"] in kept or each["updated_at"] >= since],
            [each for each in fills if each["position_id"] in kept or each["traded_at"] >= since],
            [each for each in positions if each["position_id"] in kept],
            incomes,
            [each["position_id"] for each in positions if each["position_id"] not in kept],
        )
        for each in positions:
            if each["exit_reason"] in _STOPPED and each["closed_at"] is not None:
                self._last_stop_at[each["symbol"]] = max(self._last_stop_at.get(each["symbol"], 0), each["closed_at"])
        counts_from = max((row.changed_at for row in self._modes.rows() if row.mode == self.account), default=0)
        today = self._clock.exchange_now_ms() // DAY_MS * DAY_MS
        rows = await store.trading_rows("equity", mine, since=min(counts_from, today))
        equity = [tables["equity"].named(row) for row in rows]
        self._curve = EquityCurve(
            [(each["minute"], Decimal(each["equity"])) for each in equity],
            counts_from=counts_from,
        )

    async def recover(self) -> None:
        """Go on where the last process stopped: look up what may have been sent, watch what is open, and trade the
        signals that are still good and nobody acted on. Raises Unavailable."""
        for record in self.manager.unsettled_orders():
            if not record.order_id:
                self._executor.look_up(_request_of(record), max(record.created_at, record.sent_at or 0))
        for stop in self.manager.unsettled_stops():
            if not stop.algo_id:
                self._executor.look_up(_stop_request_of(stop), max(stop.created_at, stop.sent_at or 0))
        for position in self.manager.open_positions():
            self._monitor.watch(position)
            exits = [
                each for each in self.manager.orders_of(position.position_id) if each.leg in (Leg.EXIT, Leg.FLATTEN)
            ]
            if exits:  # a close that was begun is finished, whatever became of its order
                leg = Leg.FLATTEN if exits[-1].leg is Leg.FLATTEN else Leg.EXIT
                self._closing[position.position_id] = (position.exit_reason or "stop", leg)
            self._follow_mode(position)
        self._early = await self._signals_still_good()

    async def _signals_still_good(self) -> list[Decision]:
        """Decisions with a side that may still be acted on: the last process may have died before it did."""
        names = Decision.__struct_fields__
        columns = ", ".join(f'"{name}"' for name in names)
        now = self._clock.exchange_now_ms()
        rows = await self._store.select(
            f"SELECT {columns} FROM signals WHERE slot = '{self._slot}' AND close_time > {now - STILL_GOOD_MS} "
            f"AND status = 'ok' AND valid_until >= {now} ORDER BY close_time"
        )
        return [msgspec.convert(dict(zip(names, row, strict=True)), Decision) for row in rows]

    def take_signals(self, decisions: Sequence[Decision]) -> None:
        """Decisions that were just committed. Those with a side are traded if the symbol's mode is this account's."""
        wanted = [each for each in decisions if each.status is Status.OK]
        if wanted:
            self._signals = [*self._signals, *wanted][-MAX_SIGNALS:]
            self._woken.set()

    # ---- what comes from outside

    def on_mark_price(self, mark: MarkPrice) -> None:
        """Check stops and targets; a close is on its way when this returns."""
        self._monitor.on_mark_price(mark.symbol, mark.mark_price, mark.updated_at)

    def on_report(self, report: OrderReport | StopReport | Fill | AccountUpdate | Income) -> None:
        self.take(self.manager.apply(report))

    def on_user_event(self, event: UserEvent) -> None:
        """An event of the user data stream."""
        if isinstance(event, OrderReport | StopReport | AccountUpdate):
            self.on_report(event)
        elif isinstance(event, MarginCall):
            self._alarm("margin_call", symbols=list(event.symbols))
        elif isinstance(event, ListenKeyExpired):
            log.warning("listen_key_expired", action="user stream")
        elif event.leverage != self._risk.leverage:
            self._fit.discard(event.symbol)
            log.warning("leverage_changed", symbol=event.symbol, leverage=event.leverage, action="orders")

    def on_refused(self, client_id: str, error: PerplineError) -> None:
        """An order or stop has surely not happened."""
        now = self._clock.exchange_now_ms()
        code = error.code if isinstance(error, Refused) else 0
        log.warning("order_refused", account=self.account, client_id=client_id, reason=str(error), action="orders")
        stop, record = self.manager.stops.get(client_id), self.manager.orders.get(client_id)
        self.take(self.manager.refused(client_id, str(error), now))
        if stop is not None and code == WOULD_TRIGGER:
            # The mark price is beyond the widest stop: what it would have done is done now.
            self._close(self.manager.positions.get(stop.position_id), "stop", Leg.EXIT)
        if record is not None and record.leg is Leg.ENTRY:
            self._refuse(record.signal_id, record.symbol, Refusal("exchange_refused", str(error)))
        if record is not None and code == NOTHING_TO_REDUCE:
            self._reconcile_soon()

    def on_unknown(self, client_id: str) -> None:
        """Nobody can say what became of it; it is being looked up."""
        log.warning("order_outcome_unknown", account=self.account, client_id=client_id, action="orders")
        self.take(self.manager.unknown(client_id, self._clock.exchange_now_ms()))

    def on_mode_changed(self, change: Change) -> None:
        """Act on what is open as the new row says."""
        worth = self._worth()
        # That its time is over is no decision of anybody's, and off is not one to go on.
        if worth is not None and change.new == self.account:
            self._curve.decided_by_person(change.row.changed_at, worth.equity)
        for position in self.manager.open_positions():
            self._follow_mode(position)
            if position.position_id not in self._closing:
                self._monitor.rearm(position)  # a level may have been touched while it was left to the exchange

    def on_differences(self, differences: Sequence[Difference]) -> None:
        """What a look at the exchange has found."""
        at = self._clock.exchange_now_ms()
        for each in differences:
            self.statistics.alarms += 1
            self._add("reconciliations", reconciliation_row(self.account, at, each))

    def adopt(self, found: ExchangePosition) -> bool:
        """Take over a position that is not ours, if that is wanted; whether it was."""
        instrument = self._market.instrument(found.symbol)
        if self._unknown_positions != "adopt" or instrument is None or found.quantity == 0:
            return False
        side = 1 if found.quantity > 0 else -1
        target_pct, stop_pct = (Decimal(repr(each)) / 100 for each in self._default_levels_pct)
        target = instrument.round_price(found.entry_price * (1 + side * target_pct), "up" if side > 0 else "down")
        stop = instrument.round_price(found.entry_price * (1 - side * stop_pct), "down" if side > 0 else "up")
        self.take(self.manager.adopt(found, self._clock.exchange_now_ms(), target=target, stop=stop))
        return True

    def flatten(self, symbols: Sequence[str] = ()) -> None:
        """Close what is open, in these symbols or in all."""
        for position in self.manager.open_positions():
            if not symbols or position.symbol in symbols:
                self._close(position, "flatten", Leg.FLATTEN)

    # ---- the work

    async def run(self) -> None:
        """Trade, for ever. What was read at the start is written and looked after; then signals are taken.

        Ends with Fenced, in a group, where another process trades the account now.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._executor.run(), name=f"{self.account} executor")
            group.create_task(self._write_for_ever(), name=f"{self.account} rows")
            group.create_task(self._look_after_for_ever(), name=f"{self.account} positions")
            group.create_task(self._enter_for_ever(), name=f"{self.account} entries")

    async def drain(self) -> None:
        """Write what is not written yet. Raises Unavailable."""
        await self._write()

    def status(self) -> dict[str, Any]:
        """Plain JSON values for /status."""
        now = self._clock.exchange_now_ms()
        worth = self._worth()
        naked = self.manager.naked_ms(now)
        return {
            "account": self.account,
            "blocked": self.blocked,
            "wallet": None if worth is None else float(worth.wallet),
            "unrealized_pnl": None if worth is None else float(worth.unrealized_pnl),
            "equity": None if worth is None else float(worth.equity),
            "day_equity": None if worth is None else float(self._curve.day_equity(worth.equity)),
            "positions": [self._position_status(position, naked) for position in self.manager.open_positions()],
            "orders_under_way": len(self.manager.unsettled_orders()),
            "naked_ms": max(naked.values(), default=0),
            **msgspec.to_builtins(self.statistics),
            "unwritten": self._waiting(),
            "rows_error": self._rows_error,
            "recent": list(self._recent),
        }

    def _position_status(self, position: Position, naked: dict[str, int]) -> dict[str, Any]:
        mark = self._mark(position.symbol)
        stop = self.manager.live_stop(position.position_id)
        return {
            "symbol": position.symbol,
            "side": position.side,
            "status": position.status,
            "quantity": float(position.quantity),
            "entry_price": None if position.entry_price is None else float(position.entry_price),
            "mark_price": None if mark is None else float(mark),
            "target": None if position.target is None else float(position.target),
            "stop": None if position.stop is None else float(position.stop),
            "protective_stop": None if stop is None else float(stop.trigger_price),
            "protected": position.position_id not in naked,
            "naked_ms": naked.get(position.position_id, 0),
            "unrealized_pnl": None if mark is None else float(position.unrealized_pnl(mark)),
            "realized_pnl": float(position.realized_pnl),
            "fees": float(position.fees),
            "funding": float(position.funding),
            "opened_at": position.opened_at,
            "deadline": position.deadline,
        }

    # ---- entries

    async def _enter_for_ever(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._signals:
                await self._enter(self._signals.pop(0))

    async def _enter(self, decision: Decision) -> None:
        """Open the position of one signal, or say why not. Each signal at most once, however often it comes."""
        symbol, instrument = decision.symbol, self._market.instrument(decision.symbol)
        now = self._clock.exchange_now_ms()
        if self._modes.mode_of(symbol, now) != self.account or instrument is None:
            return
        if self.manager.orders_of(position_id(decision.signal_id)):
            return
        if not self.blocked and self._prepare is not None and symbol not in self._fit:
            try:
                await self._prepare(symbol)
            except PerplineError as error:
                self._refuse(decision.signal_id, symbol, Refusal("not_prepared", str(error)))
                return
            self._fit.add(symbol)
        facts = self._facts(decision, instrument)
        if isinstance(facts, Refusal):
            self._refuse(decision.signal_id, symbol, facts)
            return
        approved = approve_entry(facts, self._risk)
        if isinstance(approved, Refusal):
            self._refuse(decision.signal_id, symbol, approved)
            return
        client_id = approved.request.client_id
        self.take(self.manager.intend(approved, facts.now))
        if not await self._written(decision.valid_until):
            self.take(self.manager.refused(client_id, "its intent could not be stored in time", facts.now))
            self._refuse(decision.signal_id, symbol, Refusal("not_stored", "the database did not take the intent"))
            return
        while not self._may_act() and self._clock.exchange_now_ms() <= decision.valid_until:
            await self._clock.sleep_wall(0.05)  # the lease is being renewed; or it is lost, and this is cancelled
        now = self._clock.exchange_now_ms()
        if self._modes.mode_of(symbol, now) != self.account or self.blocked or now > decision.valid_until:
            self.take(self.manager.refused(client_id, "the mode changed, or it was too late", now))
            self._refuse(decision.signal_id, symbol, Refusal("mode", self.blocked or "changed while it was stored"))
            return
        self.statistics.entries += 1
        sent = self.manager.sent(client_id, now)
        self._executor.send(approved)
        self.take(sent)

    def _facts(self, decision: Decision, instrument: Instrument) -> EntryFacts | Refusal:
        worth = self._worth()
        if worth is None:
            return Refusal("blocked", "the account's worth is not known yet")
        if decision.tp_price is None or decision.sl_price is None or decision.ref_mark is None:
            return Refusal("no_levels", "the signal has no levels")
        mark = self._market.mark(decision.symbol)
        now = self._clock.exchange_now_ms()
        positions = self.manager.open_positions()
        return EntryFacts(
            account=self.account,
            mode=self._modes.mode_of(decision.symbol, now).value,
            run=self.manager.run,
            now=now,
            instrument=instrument,
            signal_id=decision.signal_id,
            side=decision.side,
            valid_until=decision.valid_until,
            deadline=decision.close_time + (decision.horizon_s or 0) * 1000,
            reference_mark=Decimal(decision.ref_mark),
            target=Decimal(decision.tp_price),
            stop=Decimal(decision.sl_price),
            mark=self._mark(decision.symbol),
            mark_at=0 if mark is None else mark.updated_at,
            book=self._market.book(decision.symbol),
            positions=positions,
            marks={each.symbol: price for each in positions if (price := self._mark(each.symbol)) is not None},
            equity=worth.equity,
            day_equity=self._curve.day_equity(worth.equity),
            peak_equity=self._curve.peak_equity(worth.equity),
            worst_drawdown_pct=self._curve.worst_drawdown_pct,
            volatility=self._market.volatility(decision.symbol),
            available=worth.available,
            last_stop_at=self._last_stop_at.get(decision.symbol),
            blocked=self.blocked,
        )

    def _refuse(self, signal_id: str, symbol: str, refusal: Refusal) -> None:
        self.statistics.refusals += 1
        log.info("order_not_sent", symbol=symbol, rule=refusal.rule, detail=refusal.detail, action="risk")
        self._add(
            "refusals",
            {
                "account": self.account,
                "signal_id": signal_id,
                "symbol": symbol,
                "rule": refusal.rule,
                "detail": refusal.detail,
                "at": self._clock.exchange_now_ms(),
            },
        )

    # ---- exits

    def _fire(self, position: Position, reason: str, mark: float, now: int) -> None:
        if self._modes.row_of(position.symbol).positions == "protect":
            return  # a person has left it to the stop at the exchange
        self._close(position, reason, Leg.EXIT)
        facts = {"symbol": position.symbol, "reason": reason, "mark": mark, "account": self.account}
        asyncio.get_running_loop().call_soon(partial(log.info, "exit_fired", **facts, action="orders"))

    def _moved(self, position: Position) -> None:
        self.take(Changes(positions={position.position_id: position}))

    def _close(self, position: Position | None, reason: str, leg: Leg) -> None:
        """Close what is open, now if that may be tried now; until it is flat it stays on the list."""
        if position is None or position.is_closed:
            return
        self._closing.setdefault(position.position_id, (reason, leg))
        self._try_close(position)

    def _try_close(self, position: Position) -> None:
        reason, leg = self._closing[position.position_id]
        instrument = self._market.instrument(position.symbol)
        exits = (Leg.EXIT, Leg.FLATTEN)
        under_way = any(
            each.leg in exits and (not each.status.is_final or each.lacks_fills)  # filled, and its fills are to come
            for each in self.manager.orders_of(position.position_id)
        )
        if (
            under_way
            or position.quantity == 0
            or instrument is None
            or not self._may_try(position.position_id, Leg.EXIT)
        ):
            return
        assert leg is Leg.EXIT or leg is Leg.FLATTEN
        approved = approve_close(
            position,
            instrument,
            leg=leg,
            reason=reason,
            run=self.manager.run,
            attempt=self.manager.next_attempt(position.position_id, leg),
            expected_price=self._expected_price(position.symbol, position.exit_side, position.quantity),
        )
        if isinstance(approved, Refusal):
            self._alarm("position_not_closed", symbol=position.symbol, reason=approved.detail)
            return
        now = self._clock.exchange_now_ms()
        changes = self.manager.intend(approved, now)
        self._executor.send(approved)  # first of all: its row may follow, for its id follows from the position
        changes.add(self.manager.sent(approved.request.client_id, now))
        self.statistics.exits += 1
        if not self._sent.orders:
            asyncio.get_running_loop().call_soon(self._take_sent)  # other positions' closes may be due in this turn
        self._sent.add(changes)

    def _take_sent(self) -> None:
        sent, self._sent = self._sent, Changes()
        self.take(sent)

    def _protect(self, position: Position) -> None:
        """See to it that a stop rests at the exchange, or is on its way there."""
        instrument = self._market.instrument(position.symbol)
        if (
            position.is_closed
            or position.quantity == 0
            or instrument is None
            or self.manager.live_stop(position.position_id) is not None
            or not self._may_try(position.position_id, Leg.STOP)
        ):
            return
        approved = approve_stop(
            position,
            instrument,
            self._risk,
            run=self.manager.run,
            attempt=self.manager.next_attempt(position.position_id, Leg.STOP),
            mark=self._mark(position.symbol),
        )
        if isinstance(approved, Refusal):
            if approved.rule == "stop_passed":
                self._close(position, "stop", Leg.EXIT)
            return
        now = self._clock.exchange_now_ms()
        changes = self.manager.intend_stop(approved, now)
        self._executor.send_stop(approved)
        changes.add(self.manager.sent(approved.request.client_algo_id, now))
        self.take(changes)

    def _may_try(self, position: str, leg: Leg) -> bool:
        """Whether another attempt may be made now; counts it. The waits grow, and never end."""
        now = self._clock.wall_s()
        due, tries = self._next_try.get((position, leg), (0.0, 0))
        if now < due or not self._may_act():
            return False
        self._next_try[position, leg] = (now + RETRY_S[min(tries + 1, len(RETRY_S) - 1)], tries + 1)
        return True

    def _follow_mode(self, position: Position) -> None:
        """What the symbol's mode says about a position that is open."""
        row: ModeRow = self._modes.row_of(position.symbol)
        if row.positions == "flatten" and position.opened_at <= row.changed_at:
            self._close(position, "flatten", Leg.FLATTEN)

    # ---- looking after what is open

    async def _look_after_for_ever(self) -> None:
        next_forget = 0
        while True:
            self._look_after()
            now = self._clock.exchange_now_ms()
            if now >= next_forget:
                next_forget = now + 3_600_000
                self.manager.forget(now - REMEMBERED_MS)
            await self._clock.sleep_wall(LOOK_EVERY_S)

    def _look_after(self) -> None:
        """Do whatever is due: closes and stops that failed, orphans, alarms, the minute's equity."""
        now = self._clock.exchange_now_ms()
        self._take_early(now)
        self.take(self.manager.overdue(now))
        for position in self.manager.open_positions():
            if position.position_id in self._closing:
                self._try_close(position)
            self._protect(position)
            mark = self._market.mark(position.symbol)
            heard_at = self._began_at if mark is None else mark.updated_at
            if position.quantity > 0 and now - heard_at > STALE_MARK_MS:
                self._alarm("position_without_mark_price", symbol=position.symbol)
        lacking = {each.client_id for each in self.manager.lacking_fills()}
        if lacking & self._lacking:  # for a whole turn: the stream owes us its fills, and userTrades has them
            self._reconcile_soon()
        self._lacking = lacking
        for stop in self.manager.orphan_stops():
            if stop.algo_id and self._may_try(stop.client_id, Leg.STOP):
                self._executor.cancel_stop(stop.symbol, stop.client_id)
        for naked, naked_ms in self.manager.naked_ms(now).items():
            self.statistics.naked_ms_longest = max(self.statistics.naked_ms_longest, naked_ms)
            if naked_ms > self._naked_alarm_ms:
                position = self.manager.positions[naked]
                self._alarm("position_without_stop", symbol=position.symbol, for_s=round(naked_ms / 1000, 1))
        worth = self._worth()
        if worth is not None and (row := self._curve.see(worth, now)) is not None:
            self._put("equity", {"account": self.account, **row})

    def _take_early(self, now: int) -> None:
        """At a start a signal waits until its market is seen, or until it is over, which then is its refusal."""
        market, early = self._market, self._early
        self._early = [
            each
            for each in early
            if now <= each.valid_until and (market.mark(each.symbol) is None or market.book(each.symbol) is None)
        ]
        self.take_signals([each for each in early if each not in self._early])

    def _alarm(self, event: str, *, symbol: str = "", **facts: Any) -> None:
        """Tell a person, at once and then every half minute for as long as it lasts."""
        now = self._clock.wall_s()
        if now - self._alarmed.get((event, symbol), -1e9) < 30:
            return
        self._alarmed[event, symbol] = now
        self.statistics.alarms += 1
        log.error(event, account=self.account, symbol=symbol, **facts, action="trading")

    # ---- changes: rows, events, messages

    def take(self, changes: Changes) -> None:
        """Keep rows of what changed and act on what happened."""
        for table, rows in changes.rows(self.account).items():
            for values in rows:
                self._put(table, values)
        for position in changes.positions.values():
            self._monitor.watch(position)
            # Most are over before the next look.
            self.statistics.naked_ms_longest = max(self.statistics.naked_ms_longest, position.naked_ms)
            if position.is_closed:
                self._closing.pop(position.position_id, None)
                self._next_try.pop((position.position_id, Leg.EXIT), None)
        for event in changes.events:
            self._act(event)
        for record in changes.orders.values():
            if record.status is OrderStatus.FILLED and record.is_ours and record.client_id not in self._twinned:
                self._note_twin(record)

    def _act(self, event: Event) -> None:
        position = self.manager.positions.get(event.position_id)
        facts = {"account": self.account, "symbol": event.symbol, "detail": event.detail}
        if event.kind in ("opened", "unprotected") and position is not None:
            if event.kind == "opened":
                self._follow_mode(position)
            else:
                log.warning("stop_gone", **facts, action="trading")
            self._protect(position)
        if event.kind in ("opened", "protected", "closed") and position is not None:
            log.info(f"position_{event.kind}", **facts, action="trading")
            self._announce(position, event)
        if event.kind in ("opened", "closed") and position is not None:
            self._note(position, event)
        if event.kind == "closed" and position is not None:
            if position.exit_reason in _STOPPED:
                self._last_stop_at[position.symbol] = position.closed_at or event.at
            for stop in self.manager.stops_of(position.position_id):
                if not stop.status.is_final and stop.algo_id:
                    self._executor.cancel_stop(stop.symbol, stop.client_id)
        if event.kind in ("liquidation", "adl", "settlement"):
            self._alarm("position_closed_by_exchange", symbol=event.symbol, kind=event.kind, detail=event.detail)
        elif event.kind == "manual":
            log.warning("order_of_somebody_else", **facts, action="trading")
            self._reconcile_soon()
        elif event.kind == "surplus":
            self._alarm("order_filled_beyond_position", symbol=event.symbol, detail=event.detail)
            self._reconcile_soon()
        elif event.kind == "funding":
            self._reconcile_soon()
        elif event.kind == "foreign_perpline":
            self._meet_other(event)

    def _meet_other(self, event: Event) -> None:
        """Another perpline trades this account. Whose first order came later stops opening positions; both do where
        that cannot be said. What `perpline flatten` did from elsewhere is a person's word to open no more."""
        met = self.manager.orders.get(event.client_id) or self.manager.stops.get(event.client_id)
        made = None if met is None else read_client_id(met.name)
        if made is not None and made.leg is not Leg.FLATTEN and self._came_first(event.symbol, made.run):
            self._alarm(
                "another_perpline", symbol=event.symbol, detail="it came second and stops", order=event.client_id
            )
            return
        who = "another perpline trades this account"
        if made is not None and made.leg is Leg.FLATTEN:
            who = "perpline flatten was run with other tables than these"
        self.blocks["another"] = f"{who} ({event.symbol}: {event.detail}): see to it, then start again"
        self._alarm("another_perpline", symbol=event.symbol, detail=f"{who}; no more entries", order=event.client_id)

    def _came_first(self, symbol: str, other_run: int) -> bool:
        """Whether our first order of this run came before the first of the other. Numbers of orders count within a
        symbol; between symbols there are only times, which must be clearly apart."""
        ours, theirs = (self._orders_of_run(run) for run in (self.manager.run, other_run))
        our_ids, their_ids = ([each.order_id for each in those if each.symbol == symbol] for those in (ours, theirs))
        if our_ids and their_ids:
            return min(our_ids) < min(their_ids)
        if not ours or not theirs:
            return False
        return min(each.created_at for each in ours) + TIE_MS < min(each.created_at for each in theirs)

    def _orders_of_run(self, run: int) -> list[OrderRecord]:
        found = []
        for each in self.manager.orders.values():
            made = read_client_id(each.client_id if each.is_ours else each.name)
            if each.order_id and made is not None and made.run == run and made.leg is not Leg.FLATTEN:
                found.append(each)
        return found

    def _note(self, position: Position, event: Event) -> None:
        """For /status: what was opened and closed last."""
        is_over = event.kind == "closed"
        if is_over:
            self.statistics.closed += 1
            self.statistics.net_pnl += float(position.net_pnl)
        price = position.exit_price if is_over else position.entry_price
        self._recent.append(
            {
                "at": event.at,
                "event": event.kind,
                "symbol": position.symbol,
                "side": position.side,
                "reason": position.exit_reason if is_over else "",
                "price": None if price is None else float(price),
                "net_pnl": float(position.net_pnl) if is_over else None,
            }
        )

    def _announce(self, position: Position, event: Event) -> None:
        name: str = event.kind
        if name == "closed":
            name = _ON_BUS.get(position.exit_reason, position.exit_reason)
        mark = self._mark(position.symbol)
        notional = (position.entry_price or Decimal(0)) * position.opened_quantity
        payload = PositionDraft(
            id=position.signal_id,
            pos=position.position_id,
            account=position.account,
            sym=position.symbol,
            side=position.side,
            event=name,
            T=event.at,
            qty=f"{position.quantity:f}",
            entry=_text(position.entry_price),
            fill=_text(position.exit_price),
            mark=_text(mark),
            tp=_text(position.target),
            sl=_text(position.stop),
            pnl=f"{position.realized_pnl:f}",
            fees=f"{position.fees:f}",
            funding=f"{position.funding:f}",
            ret_net_bp=round(float(position.net_pnl / notional * 10_000), 3)
            if position.is_closed and notional
            else None,
        )
        self._messages.append(
            Message(
                id=0,
                kind="position",
                slot=self._slot,
                symbol=position.symbol,
                close_time=event.at,
                payload=msgspec.json.encode(payload).decode(),
                valid_until=event.at + ANNOUNCED_MS,
            )
        )
        self._dirty.set()

    def _note_twin(self, record: OrderRecord) -> None:
        """How a live order's fill compares with what paper would have got at that instant."""
        if self.account != "live" or record.average_price is None or record.expected_price is None:
            return
        self._twinned.add(record.client_id)
        sign = 1 if record.side == "buy" else -1
        worse = sign * (record.average_price - record.expected_price) / record.expected_price
        self._put(
            "twins",
            {
                "client_id": record.client_id,
                "symbol": record.symbol,
                "side": record.side,
                "quantity": record.filled,
                "live_price": record.average_price,
                "paper_price": record.expected_price,
                "difference_bps": float(worse * 10_000),
                "at": record.updated_at,
            },
        )

    # ---- rows

    def _put(self, table: str, values: dict[str, Any]) -> None:
        """A row of a table with a key: what is written is the newest."""
        definition = TRADING_TABLES[table]
        key = tuple(values[column] for column in definition.key)
        kept = self._rows.setdefault(table, {})
        if definition.stays == "last" or key not in kept:
            kept[key] = definition.row(values)
        self._dirty.set()

    def _add(self, table: str, values: dict[str, Any]) -> None:
        self._added.setdefault(table, []).append(TRADING_TABLES[table].row(values))
        self._dirty.set()

    async def _write_for_ever(self) -> None:
        failures = 0
        while True:
            await self._dirty.wait()
            try:
                await self._write()
                failures, self._rows_error = 0, ""
            except Unavailable as error:
                failures += 1
                self._rows_error = str(error)
                self._alarm("trading_rows_not_stored", reason=str(error), waiting=self._waiting())
                await self._clock.sleep_wall(min(0.05 * 2**failures, 2.0))

    async def _write(self) -> None:
        """Write all that waits, in one transaction. Raises Unavailable; then it waits on."""
        async with self._writing:
            self._take_sent()
            rows, added, messages = self._rows, self._added, self._messages
            self._rows, self._added, self._messages = {}, {}, []
            self._dirty.clear()
            batch: dict[str, list[Row]] = {table: list(kept.values()) for table, kept in rows.items()}
            for table, more in added.items():
                batch.setdefault(table, []).extend(more)
            if not batch and not messages:
                return
            try:
                stored = await self._store.commit_trading(batch, messages, self._fence())
            except BaseException:
                # What came meanwhile is newer; in a table where the first row stays, the older one is the first.
                for table, kept in rows.items():
                    newer = self._rows.get(table, {})
                    self._rows[table] = newer | kept if TRADING_TABLES[table].stays == "first" else kept | newer
                for table, more in added.items():
                    self._added[table] = more + self._added.get(table, [])
                self._messages = messages + self._messages
                self._dirty.set()
                raise
            finally:
                self.statistics.unwritten = self._waiting()
            if messages:
                self._wake_publisher(stored)

    async def _written(self, until: int) -> bool:
        """Whether everything so far could be stored by an instant of market time."""
        while True:
            try:
                await self._write()
                return True
            except Unavailable:
                if self._clock.exchange_now_ms() > until:
                    return False
                await self._clock.sleep_wall(0.05)

    def _waiting(self) -> int:
        waiting = sum(map(len, self._rows.values())) + sum(map(len, self._added.values())) + len(self._messages)
        return waiting + len(self._sent.orders)

    def _mark(self, symbol: str) -> Decimal | None:
        mark = self._market.mark(symbol)
        return None if mark is None else Decimal(repr(mark.mark_price))


WOULD_TRIGGER = -2021
NOTHING_TO_REDUCE = -2022


def _request_of(record: OrderRecord) -> OrderRequest:
    return OrderRequest(
        symbol=record.symbol,
        side=record.side,
        quantity=record.quantity,
        client_id=record.client_id,
        reduce_only=record.reduce_only,
    )


def _stop_request_of(stop: StopRecord) -> StopRequest:
    return StopRequest(
        symbol=stop.symbol, side=stop.side, trigger_price=stop.trigger_price, client_algo_id=stop.client_id
    )


def _text(price: Decimal | None) -> str | None:
    return None if price is None else f"{price:f}"
