"""The paper account: the exchange that fills the orders of mode paper, at the prices that the live market shows.

Its rules (docs/trading.md). A market order fills whole and at once at the price that the best bid and ask let expect
(`slippage_estimate`), made worse by what live fills have cost beyond that estimate so far (`twins`), on the tick
against us; the fee is that of a taker. Margin is isolated. A resting stop triggers on the mark price and fills like a
market order. A position whose margin is used up is liquidated and loses all of that margin. Funding is paid at each
settlement, for what was open at that instant. What is open in a contract that has ended is settled at the last mark
price.

Nothing is kept but in the tables: what holds after a start is the fold of the stored fills, incomes and resting stops.
A fill that was told and not stored has never been.
"""

import asyncio
import statistics
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from perpline.common.clock import Clock
from perpline.common.errors import PerplineError, Refused, Unavailable
from perpline.domain.candle import MINUTE_MS
from perpline.domain.fill import isolated_liquidation
from perpline.domain.instrument import Instrument
from perpline.domain.market import BookTicker, MarkPrice, Side, slippage_estimate
from perpline.domain.order import (
    AccountSnapshot,
    ExchangePosition,
    Fill,
    Income,
    OrderReport,
    OrderRequest,
    OrderStatus,
    Source,
    StopReport,
    StopRequest,
    StopStatus,
)
from perpline.storage.store import TRADING_TABLES, Store
from perpline.trading.risk import ApprovedOrder, ApprovedStop

ASSET = "USDT"
ZERO = Decimal(0)
BPS = Decimal(10_000)
NUMBERS_OF_A_RUN = 1_000_000_000
LEAST_TWINS = 20
"""Live fills whose paper price is known, before they say anything about the next one."""
NEWEST_TWINS = 500
MOST_CALIBRATION_BPS = 50.0
REMEMBERED = 10_000
"""Orders of this run that can be looked up."""
SETTLED_AFTER_MS = 10 * MINUTE_MS
"""A contract of which nobody has known anything for so long has ended: two of the exchange's lists lacked it."""
FUNDING_LOOKBACK_MS = 3 * 24 * 60 * MINUTE_MS
"""How far before the last paid settlement others are looked for that nobody saw."""


class Holding(Struct):
    """What the account holds of a symbol."""

    quantity: Decimal = ZERO
    """Negative for a short."""
    entry: Decimal = ZERO
    """Average price of what is open."""
    changes: list[tuple[int, Decimal]] = []
    """(time, quantity from then on), oldest first."""

    def book(self, side: Side, price: Decimal, quantity: Decimal, at: int) -> Decimal:
        """Add an execution; returns the profit that it realised, quote, before fees."""
        signed = quantity if side == "buy" else -quantity
        before, after = self.quantity, self.quantity + signed
        closed = min(abs(before), quantity) if before * signed < 0 else ZERO
        realized = closed * (price - self.entry) * (1 if before > 0 else -1)
        if before * signed >= 0:
            self.entry = (self.entry * abs(before) + price * quantity) / abs(after)
        elif before * after < 0:
            self.entry = price  # turned to the other side
        self.quantity = after
        self.changes = [*self.changes[-200:], (at, after)]
        return _money(realized)

    def quantity_at(self, time: int) -> Decimal:
        """What was held at an instant, before anything that happened in it."""
        held = ZERO
        for at, quantity in self.changes:
            if at >= time:
                break
            held = quantity
        return held


class PaperExecutor:
    """Fills approved orders on paper; the same face as the `LiveExecutor`, and the reads of `TradingRest`.

    What happens is told through `on_report` and `on_refused(id, error)` in the loop's next turn, never inside a call.
    `on_income` is told each funding payment, once: its rows in `incomes` are what a start remembers them by.
    `run_number` makes ids that no other run has; `leverage` and `fee_bps` are those of the settings.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        run_number: int,
        *,
        start_usdt: Decimal,
        fee_bps: Decimal,
        leverage: int,
        instrument: Callable[[str], Instrument | None],
        book: Callable[[str], BookTicker | None],
        on_report: Callable[[OrderReport | StopReport], None],
        on_refused: Callable[[str, PerplineError], None],
        on_income: Callable[[Income], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._next = run_number * NUMBERS_OF_A_RUN
        self._start = start_usdt
        self._fee_bps = fee_bps
        self._leverage = leverage
        self._instrument = instrument
        self._book = book
        self._on_report = on_report
        self._on_refused = on_refused
        self._on_income = on_income
        self._wallet = start_usdt
        self._holdings: dict[str, Holding] = {}
        self._stops: dict[str, StopReport] = {}
        """Those that rest, by client id."""
        self._stops_of: dict[str, set[str]] = {}
        """The client ids of those that rest, by symbol."""
        self._orders: dict[str, OrderReport] = {}
        """The last word about each order of this run, by client id."""
        self._ended_stops: dict[str, StopReport] = {}
        self._marks: dict[str, MarkPrice] = {}
        self._unknown_since: dict[str, int] = {}
        self._settled: dict[str, set[int]] = {}
        """The minutes of the funding that was paid, by symbol."""
        self.calibration_bps = 0.0
        """What live fills cost beyond the estimate, by the stored twins."""

    async def open(self) -> None:
        """Take over what the tables say. Raises Unavailable."""
        rows = await self._store.trading_rows("fills", {"account": "paper"})
        # By trade id, which is the order they happened in, whatever the host's clock did meanwhile.
        for fill in sorted(map(TRADING_TABLES["fills"].named, rows), key=lambda fill: fill["trade_id"]):
            price, quantity = Decimal(fill["price"]), Decimal(fill["quantity"])
            realized = self._holding(fill["symbol"]).book(fill["side"], price, quantity, fill["traded_at"])
            self._wallet += realized - Decimal(fill["fee"])
        for row in await self._store.trading_rows("incomes", {"account": "paper"}):
            income = TRADING_TABLES["incomes"].named(row)
            self._wallet += Decimal(income["amount"])
            self._settled.setdefault(income["symbol"], set()).add(income["income_id"])
        for row in await self._store.trading_rows("orders", {"account": "paper", "final_at": None}):
            order = TRADING_TABLES["orders"].named(row)
            if order["kind"] == "stop_market" and order["status"] == StopStatus.NEW:
                self._rest(
                    self._stop_report(
                        order["symbol"],
                        order["side"],
                        Decimal(order["trigger_price"]),
                        order["client_id"],
                        order["order_id"],
                    )
                )
        await self.calibrate()

    async def calibrate(self) -> None:
        """Take over what the stored twins say about live fills."""
        twins = TRADING_TABLES["twins"]
        rows = await self._store.trading_rows("twins", limit=NEWEST_TWINS)
        self.calibration_bps = calibration_bps(twins.named(row)["difference_bps"] for row in rows)

    # ---- the executor

    def send(self, order: ApprovedOrder) -> None:
        try:
            self._fill_or_kill(order.request)
        except (Refused, Unavailable) as error:
            self._later(self._on_refused, order.request.client_id, error)

    def send_stop(self, stop: ApprovedStop) -> None:
        try:
            self._accept_stop(stop.request)
        except (Refused, Unavailable) as error:
            self._later(self._on_refused, stop.request.client_algo_id, error)

    def cancel_stop(self, symbol: str, client_algo_id: str) -> None:
        if client_algo_id in self._stops:
            self._end_stop(client_algo_id, StopStatus.CANCELED)

    def look_up(self, request: OrderRequest | StopRequest, sent_at: int) -> None:
        """Tell what became of an order of an earlier run: what is not in the tables has never arrived."""
        if isinstance(request, StopRequest):
            key = request.client_algo_id
            stop = self._stops.get(key) or self._ended_stops.get(key)
            if stop is None:
                stop = self._stop_report(request.symbol, request.side, request.trigger_price, key, 0)
                stop = replace(stop, status=StopStatus.NEVER_ARRIVED)
            self._later(self._on_report, replace(stop, source="query"))
        else:
            order = self._orders.get(request.client_id)
            order = order or self._order_report(request, OrderStatus.NEVER_ARRIVED, 0)
            self._later(self._on_report, replace(order, source="query"))

    async def run(self) -> None:
        """Every minute, pay the funding of settlements that the mark price stream did not show, settle what is open in
        contracts that have ended, and learn of twins."""
        while True:
            await self._clock.sleep(MINUTE_MS / 1000)
            try:
                await self.settle_stored()
                await self.settle_ended()
                await self.calibrate()
            except Unavailable:
                continue  # the rows stay where they are, and the next minute looks again

    async def settle_stored(self) -> None:
        """Pay the funding of stored settlements that fell into a time when nobody looked. Raises Unavailable."""
        now = self._clock.exchange_now_ms()
        for symbol, holding in list(self._holdings.items()):
            if not holding.changes or (holding.quantity == 0 and holding.changes[-1][0] < now - FUNDING_LOOKBACK_MS):
                continue
            last = max(self._settled.get(symbol, ()), default=0)
            start = max(holding.changes[0][0] - MINUTE_MS, last - FUNDING_LOOKBACK_MS)
            columns = ("funding_time", "rate", "mark_price")
            rows = await self._store.series("funding_rates", symbol, start, now, columns)
            for time, rate, mark in zip(*(rows[column].tolist() for column in columns), strict=True):
                price = mark if mark == mark else self._mark_of(symbol)
                if price is not None:
                    self._settle(symbol, int(time), float(rate), float(price))

    async def settle_ended(self) -> None:
        """Close what is open in contracts that have ended, at the last mark price. Raises Unavailable.

        Also in those that nobody here knows for `SETTLED_AFTER_MS`: they ended while no worker ran.
        """
        now = self._clock.exchange_now_ms()
        for symbol, holding in list(self._holdings.items()):
            instrument = self._instrument(symbol)
            if holding.quantity == 0 or (instrument is not None and not instrument.has_ended(now)):
                self._unknown_since.pop(symbol, None)
                continue
            if instrument is None and now - self._unknown_since.setdefault(symbol, now) < SETTLED_AFTER_MS:
                continue
            price = await self._last_mark(symbol)
            if holding.quantity != 0:  # else it was closed meanwhile
                name = "settlement_autoclose"
                self._close_by_exchange(symbol, holding.entry if price is None else Decimal(repr(price)), name)

    async def _last_mark(self, symbol: str) -> float | None:
        if (mark := self._mark_of(symbol)) is not None:
            return mark
        name = symbol.replace("'", "''")
        rows = await self._store.select(
            f"SELECT mark_price FROM premium_index WHERE symbol = '{name}' ORDER BY minute DESC LIMIT 1"
        )
        return float(rows[0][0]) if rows else None

    # ---- the market

    def on_mark_price(self, mark: MarkPrice) -> None:
        """Liquidate, trigger and pay what this mark price brings about. Cheap for a symbol without position."""
        before = self._marks.get(mark.symbol)
        self._marks[mark.symbol] = mark
        if before is not None and before.next_funding_time < mark.next_funding_time:
            due = before.next_funding_time
            if 0 < due <= mark.updated_at:
                self._settle(mark.symbol, due, before.funding_rate, before.mark_price)
        holding = self._holdings.get(mark.symbol)
        if holding is not None and holding.quantity != 0:
            self._liquidate(mark, holding)
        for client_id in sorted(self._stops_of.get(mark.symbol, ())):
            stop = self._stops[client_id]
            level = float(stop.trigger_price)
            if (mark.mark_price <= level) if stop.side == "sell" else (mark.mark_price >= level):
                self._trigger(stop)

    # ---- reads, as `TradingRest` has them

    async def order(self, symbol: str, client_id: str, *, order_id: int = 0) -> OrderReport | None:
        return self._orders.get(client_id)

    async def stop(self, client_algo_id: str) -> StopReport | None:
        return self._stops.get(client_algo_id) or self._ended_stops.get(client_algo_id)

    async def open_orders(self) -> list[OrderReport]:
        """None: a paper order fills or ends at once."""
        return []

    async def open_stops(self) -> list[StopReport]:
        return list(self._stops.values())

    async def positions(self) -> list[ExchangePosition]:
        return [self._position(symbol) for symbol, holding in self._holdings.items() if holding.quantity != 0]

    async def account(self) -> AccountSnapshot:
        return self.snapshot()

    def snapshot(self) -> AccountSnapshot:
        """The account at the last mark prices."""
        held = [self._position(symbol) for symbol, holding in self._holdings.items() if holding.quantity != 0]
        return AccountSnapshot(
            wallet=self._wallet,
            available=self._wallet - self._margin(),
            unrealized_pnl=sum((position.unrealized_pnl for position in held), ZERO),
            updated_at=self._clock.exchange_now_ms(),
        )

    # ---- orders

    def _fill_or_kill(self, order: OrderRequest) -> None:
        if order.client_id in self._orders:
            raise Refused("ClientOrderId is duplicated.", -4116)
        if order.kind == "limit" and order.time_in_force not in ("IOC", "FOK"):
            raise Refused("the paper account has no resting limit orders: IOC and FOK are filled or end at once", -1115)
        quantity = self._reducible(order) if order.reduce_only else order.quantity
        price = self._fill_price(order.symbol, order.side, quantity, may_use_mark=order.reduce_only)
        if not order.reduce_only:
            self._check_margin(order, price)
        bound = order.price
        if bound is not None and ((price > bound) if order.side == "buy" else (price < bound)):
            self._tell(self._order_report(order, OrderStatus.EXPIRED, self._number(), detail="the price is beyond it"))
            return
        report = replace(self._order_report(order, OrderStatus.FILLED, self._number()), quantity=quantity)
        self._execute(report, price, quantity)

    def _execute(self, report: OrderReport, price: Decimal, quantity: Decimal, fee: Decimal | None = None) -> None:
        """Book a fill of the whole quantity and tell it with its order."""
        paid = _money(price * quantity * self._fee_bps / BPS) if fee is None else fee
        now = report.updated_at
        realized = self._holding(report.symbol).book(report.side, price, quantity, now)
        self._wallet += realized - paid
        fill = Fill(
            symbol=report.symbol,
            trade_id=self._number(),
            order_id=report.order_id,
            client_id=report.client_id,
            side=report.side,
            price=price,
            quantity=quantity,
            fee=paid,
            fee_asset=ASSET,
            realized_pnl=realized,
            is_maker=False,
            traded_at=now,
            received_at=report.received_at,
        )
        self._tell(replace(report, filled=quantity, average_price=price, fill=fill))

    def _reducible(self, order: OrderRequest) -> Decimal:
        held = self._holding(order.symbol).quantity
        if held == 0 or (held > 0) == (order.side == "buy"):
            raise Refused("ReduceOnly Order is rejected.", -2022)
        return min(order.quantity, abs(held))

    def _check_margin(self, order: OrderRequest, price: Decimal) -> None:
        needed = price * order.quantity * (1 / Decimal(self._leverage) + self._fee_bps / BPS)
        if needed > self._wallet - self._margin():
            raise Refused("Margin is insufficient.", -2019)

    def _margin(self) -> Decimal:
        held = self._holdings.values()
        return sum((abs(one.quantity) * one.entry for one in held), ZERO) / self._leverage

    def _fill_price(self, symbol: str, side: Side, quantity: Decimal, *, may_use_mark: bool) -> Decimal:
        """By the book; a position must be closed without one too, and then the mark price is all there is."""
        book, instrument = self._book(symbol), self._instrument(symbol)
        if book is not None and instrument is not None:
            return estimated_price(book, instrument, side, quantity, self.calibration_bps)
        mark = self._mark_of(symbol)
        if mark is None or not may_use_mark:
            raise Unavailable(f"there is no book of {symbol} to fill from")
        return Decimal(repr(mark))

    # ---- stops

    def _accept_stop(self, stop: StopRequest) -> None:
        if stop.client_algo_id in self._stops or stop.client_algo_id in self._ended_stops:
            raise Refused("ClientOrderId is duplicated.", -4116)
        mark = self._mark_of(stop.symbol)
        level = float(stop.trigger_price)
        if mark is not None and ((mark <= level) if stop.side == "sell" else (mark >= level)):
            raise Refused("Order would immediately trigger.", -2021)
        report = self._stop_report(stop.symbol, stop.side, stop.trigger_price, stop.client_algo_id, self._number())
        self._rest(report)
        self._later(self._on_report, report)

    def _rest(self, stop: StopReport) -> None:
        self._stops[stop.client_algo_id] = stop
        self._stops_of.setdefault(stop.symbol, set()).add(stop.client_algo_id)

    def _end_stop(self, client_id: str, status: StopStatus, order_id: int = 0, detail: str = "") -> None:
        stop = replace(
            self._stops.pop(client_id),
            status=status,
            order_id=order_id,
            detail=detail,
            source="stream",
            updated_at=self._clock.exchange_now_ms(),
            received_at=self._clock.now_ms(),
        )
        self._stops_of[stop.symbol].discard(client_id)
        self._ended_stops[client_id] = stop
        _keep_newest(self._ended_stops)
        self._later(self._on_report, stop)

    def _trigger(self, stop: StopReport) -> None:
        """What it closes is the whole position, by an order with an id of its own and the stop's client id."""
        held = self._holding(stop.symbol).quantity
        if held == 0 or (held > 0) == (stop.side == "buy"):
            self._end_stop(stop.client_algo_id, StopStatus.EXPIRED, detail="there was nothing to close")
            return
        order_id = self._number()
        self._end_stop(stop.client_algo_id, StopStatus.FINISHED, order_id)
        closing = OrderRequest(
            symbol=stop.symbol,
            side=stop.side,
            quantity=abs(held),
            client_id=stop.client_algo_id,
            reduce_only=True,
        )
        report = self._order_report(closing, OrderStatus.FILLED, order_id, source="stream")
        price = self._fill_price(stop.symbol, stop.side, abs(held), may_use_mark=True)
        self._execute(report, price, abs(held))

    # ---- liquidation and funding

    def _liquidate(self, mark: MarkPrice, holding: Holding) -> None:
        side = 1 if holding.quantity > 0 else -1
        instrument = self._instrument(mark.symbol)
        level = self._liquidation_price(holding, instrument)
        if (mark.mark_price > level) if side > 0 else (mark.mark_price < level):
            return
        # Where the margin is used up: what is left of it at the liquidation price goes to the insurance fund.
        bankrupt = _money(holding.entry * (1 - side / Decimal(self._leverage)))
        self._close_by_exchange(mark.symbol, bankrupt, "autoclose", fee=ZERO)

    def _close_by_exchange(self, symbol: str, price: Decimal, name: str, fee: Decimal | None = None) -> None:
        held, order_id = self._holding(symbol).quantity, self._number()
        closing = OrderRequest(
            symbol=symbol,
            side="sell" if held > 0 else "buy",
            quantity=abs(held),
            client_id=f"{name}-{order_id}",
            reduce_only=True,
        )
        report = self._order_report(closing, OrderStatus.FILLED, order_id, source="stream")
        if name == "autoclose":
            report = replace(report, kind="liquidation")
        self._execute(report, price, abs(held), fee=fee)

    def _liquidation_price(self, holding: Holding, instrument: Instrument | None) -> float:
        side = 1 if holding.quantity > 0 else -1
        maintenance = 2.5 if instrument is None else float(instrument.maintenance_margin_pct)
        return isolated_liquidation(side, float(holding.entry), float(self._leverage), maintenance)

    def _settle(self, symbol: str, time: int, rate: float, mark: float) -> None:
        """Pay the funding of a settlement, once: the exchange's own time of it may be some milliseconds off."""
        minute = (time + MINUTE_MS // 2) // MINUTE_MS * MINUTE_MS
        settled = self._settled.setdefault(symbol, set())
        quantity = self._holding(symbol).quantity_at(minute)
        if minute in settled or quantity == 0:
            return
        settled.add(minute)
        amount = _money(-quantity * Decimal(repr(mark)) * Decimal(repr(rate)))
        self._wallet += amount
        income = Income(income_id=minute, kind="FUNDING_FEE", symbol=symbol, asset=ASSET, amount=amount, at=minute)
        self._later(self._on_income, income)

    # ---- reports

    def _order_report(
        self,
        order: OrderRequest,
        status: OrderStatus,
        order_id: int,
        *,
        source: Source = "answer",
        detail: str = "",
    ) -> OrderReport:
        return OrderReport(
            symbol=order.symbol,
            client_id=order.client_id,
            order_id=order_id,
            side=order.side,
            status=status,
            quantity=order.quantity,
            filled=ZERO,
            average_price=None,
            reduce_only=order.reduce_only,
            kind=order.kind,
            source=source,
            updated_at=self._clock.exchange_now_ms(),
            received_at=self._clock.now_ms(),
            detail=detail,
        )

    def _stop_report(
        self, symbol: str, side: Side, trigger_price: Decimal, client_algo_id: str, algo_id: int
    ) -> StopReport:
        return StopReport(
            symbol=symbol,
            client_algo_id=client_algo_id,
            algo_id=algo_id,
            side=side,
            kind="stop_market",
            status=StopStatus.NEW,
            trigger_price=trigger_price,
            close_position=True,
            quantity=ZERO,
            order_id=0,
            source="answer",
            updated_at=self._clock.exchange_now_ms(),
            received_at=self._clock.now_ms(),
        )

    def _tell(self, report: OrderReport) -> None:
        self._orders[report.client_id] = report
        _keep_newest(self._orders)
        self._later(self._on_report, report)

    def _later(self, tell: Callable[..., None], *news: object) -> None:
        asyncio.get_running_loop().call_soon(tell, *news)

    # ---- small things

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _holding(self, symbol: str) -> Holding:
        return self._holdings.setdefault(symbol, Holding())

    def _mark_of(self, symbol: str) -> float | None:
        mark = self._marks.get(symbol)
        return None if mark is None else mark.mark_price

    def _position(self, symbol: str) -> ExchangePosition:
        holding, mark = self._holdings[symbol], self._mark_of(symbol)
        price = holding.entry if mark is None else Decimal(repr(mark))
        return ExchangePosition(
            symbol=symbol,
            quantity=holding.quantity,
            entry_price=holding.entry,
            unrealized_pnl=holding.quantity * (price - holding.entry),
            isolated=True,
            liquidation_price=Decimal(repr(self._liquidation_price(holding, self._instrument(symbol)))),
            mark_price=None if mark is None else price,
            updated_at=holding.changes[-1][0],
        )


def estimated_price(
    book: BookTicker, instrument: Instrument, side: Side, quantity: Decimal, worse_bps: float = 0.0
) -> Decimal:
    """What a market order would probably fill at, made worse by `worse_bps`, on the tick against us."""
    expected = slippage_estimate(book, side, float(quantity)).fill_price
    worse = expected * worse_bps / 10_000.0
    if side == "buy":
        return instrument.round_price(expected + worse, "up")
    return instrument.round_price(expected - worse, "down")


def calibration_bps(differences: Iterable[float]) -> float:
    """The median of these, within limits; 0 where they are too few to say anything."""
    found = list(differences)
    if len(found) < LEAST_TWINS:
        return 0.0
    return max(-MOST_CALIBRATION_BPS, min(MOST_CALIBRATION_BPS, statistics.median(found)))


def _money(amount: Decimal) -> Decimal:
    """With the eight decimals that the exchange's own books have."""
    return amount.quantize(Decimal("1E-8"))


def _keep_newest(remembered: dict[str, Any]) -> None:
    if len(remembered) > REMEMBERED:
        del remembered[next(iter(remembered))]
