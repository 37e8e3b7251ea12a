"""A Trader at work on a store of its own, with a clock moved by hand: on paper, or on an exchange that a test plays."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from msgspec import structs
from tests.signalling import decision
from tests.trading import INSTRUMENT, NOW, fill, order_report, stop_report

from perpline.common.clock import ManualClock
from perpline.domain.market import BookTicker, MarkPrice
from perpline.domain.order import AccountSnapshot, OrderReport, OrderRequest, OrderStatus, StopRequest, StopStatus
from perpline.domain.signal import Decision, Message
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import TRADING_TABLES
from perpline.trading.mode import Change, Mode, Modes, set_mode
from perpline.trading.order_manager import OrderManager
from perpline.trading.paper import PaperExecutor
from perpline.trading.risk import ApprovedOrder, ApprovedStop, Risk
from perpline.trading.trader import TradedMarket, Trader

START = NOW + 100
"""The signal of NOW has just been made."""


class PlayedExchange:
    """An executor that only notes what it was given; the test answers by `Desk.report`."""

    def __init__(self) -> None:
        self.orders: list[OrderRequest] = []
        self.stops: list[StopRequest] = []
        self.cancelled: list[str] = []
        self.looked_up: list[OrderRequest | StopRequest] = []
        self.on_send: Callable[[OrderRequest], None] = lambda request: None

    def send(self, order: ApprovedOrder) -> None:
        self.orders.append(order.request)
        self.on_send(order.request)

    def send_stop(self, stop: ApprovedStop) -> None:
        self.stops.append(stop.request)

    def cancel_stop(self, symbol: str, client_algo_id: str) -> None:
        self.cancelled.append(client_algo_id)

    def look_up(self, request: OrderRequest | StopRequest, sent_at: int) -> None:
        self.looked_up.append(request)

    async def run(self) -> None:
        await asyncio.Event().wait()


class Desk:
    """What a test may do with a Trader and ask of it."""

    def __init__(self, store: SqliteStore, clock: ManualClock) -> None:
        self.store = store
        self.clock = clock
        self.marks: dict[str, MarkPrice] = {}
        self.books: dict[str, BookTicker] = {}
        self.modes = Modes(store, clock.exchange_now_ms, changed=self._mode_changed)
        self.exchange = PlayedExchange()
        self.published: list[Message] = []
        self.trader: Trader
        self.paper: PaperExecutor | None = None
        self.order_number = 0

    def _mode_changed(self, change: Change) -> None:
        self.trader.on_mode_changed(change)

    def market(self, mark: float, symbol: str = "BTCUSDT") -> None:
        """A mark price, with a book of 1 bp around it, now."""
        now = self.clock.exchange_now_ms()
        self.books[symbol] = BookTicker(symbol, mark * 0.99995, 1e6, mark * 1.00005, 1e6, now, now, now)
        self.marks[symbol] = MarkPrice(symbol, mark, mark, 0.0001, NOW + 3_600_000, now, now)
        self.trader.on_mark_price(self.marks[symbol])
        if self.paper is not None:
            self.paper.on_mark_price(self.marks[symbol])

    async def set_mode(self, mode: str, positions: Any = "keep") -> None:
        await set_mode(
            self.store,
            [],
            Mode(mode),
            positions=positions,
            now=self.clock.exchange_now_ms(),
            by="a test",
            reason="a test",
            until=None,
            slot="champion",
        )
        await self.modes.look()

    async def rows(self, table: str, **only: Any) -> list[dict[str, Any]]:
        """What the database has."""
        definition = TRADING_TABLES[table]
        return [definition.named(row) for row in await self.store.trading_rows(table, only)]

    async def until(self, is_so: Callable[[], Any], seconds: float = 5.0) -> None:
        """Let the loop go on until something is so. Fails where it does not become so."""
        for _ in range(round(seconds / 0.002)):
            if is_so():
                return
            await asyncio.sleep(0.002)
        raise AssertionError("it did not become so")

    async def written(self) -> None:
        await self.until(lambda: not self.trader._waiting())
        await self.trader.drain()

    async def later(self, seconds: float) -> None:
        """Move the clock in steps of a fifth of a second, as the loops look."""
        for _ in range(round(seconds / 0.2)):
            self.clock.advance(0.2)
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    # ---- an exchange that the test plays

    def fills(self, request: OrderRequest, price: str = "2000.1", quantity: Decimal | None = None) -> None:
        """The exchange fills an order, and the user data stream says so."""
        self.order_number += 1
        filled = request.quantity if quantity is None else quantity
        status = OrderStatus.FILLED if filled == request.quantity else OrderStatus.PARTIALLY_FILLED
        execution = fill(
            request.side, price, f"{filled:f}", self.order_number, 1000 + self.order_number, request.client_id
        )
        self.trader.on_report(
            order_report(
                request.client_id,
                1000 + self.order_number,
                request.side,
                f"{request.quantity:f}",
                status,
                f"{filled:f}",
                at=self.clock.exchange_now_ms(),
                fill=structs.replace(execution, traded_at=self.clock.exchange_now_ms()),
                average_price=Decimal(price),
                reduce_only=request.reduce_only,
            )
        )

    def ends(self, request: OrderRequest, status: OrderStatus) -> OrderReport:
        report = order_report(
            request.client_id, 0, request.side, f"{request.quantity:f}", status, at=self.clock.exchange_now_ms()
        )
        self.trader.on_report(report)
        return report

    def holds(self, stop: StopRequest, status: StopStatus = StopStatus.NEW, order_id: int = 0) -> None:
        self.trader.on_report(
            stop_report(
                stop.client_algo_id,
                stop.side,
                status,
                order_id,
                at=self.clock.exchange_now_ms(),
                trigger_price=stop.trigger_price,
            )
        )


@asynccontextmanager
async def desk(
    path: Path, *, account: str = "live", mode: str | None = None, at: int = START, run: int = 7, **more: Any
) -> AsyncIterator[Desk]:
    """A Trader on the SQLite file `path`, recovered and running. `paper` fills by itself; `live` is played."""
    store = SqliteStore(path)
    await store.open()
    clock = ManualClock(at)
    found = Desk(store, clock)
    market = TradedMarket(found.marks.get, found.books.get, lambda symbol: structs.replace(INSTRUMENT, symbol=symbol))
    executor: Any = found.exchange
    worth: Any = lambda: AccountSnapshot(  # noqa: E731
        wallet=Decimal(10_000), available=Decimal(10_000), unrealized_pnl=Decimal(0), updated_at=at
    )
    if account == "paper":
        executor = found.paper = PaperExecutor(
            store,
            clock,
            run,
            start_usdt=Decimal(10_000),
            fee_bps=Decimal(5),
            leverage=3,
            instrument=market.instrument,
            book=market.book,
            on_report=lambda report: found.trader.on_report(report),
            on_refused=lambda client_id, error: found.trader.on_refused(client_id, error),
            on_income=lambda income: found.trader.on_report(income),
        )
        worth = found.paper.snapshot
    found.trader = Trader(
        account=account,  # type: ignore[arg-type]
        clock=clock,
        store=store,
        slot="champion",
        modes=found.modes,
        manager=OrderManager(account, run),  # type: ignore[arg-type]
        risk=more.pop("risk", Risk()),
        market=market,
        executor=executor,
        worth=worth,
        wake_publisher=lambda messages: found.published.extend(messages or ()),
        **more,
    )
    if mode is not None:
        await set_mode(
            store,
            [],
            Mode(mode),
            positions="keep",
            now=at - 1000,
            by="a test",
            reason="a test",
            until=None,
            slot="champion",
        )
    await found.modes.look()
    if found.paper is not None:
        await found.paper.open()
    await found.trader.open()
    await found.trader.recover()
    task = asyncio.create_task(found.trader.run())
    try:
        await asyncio.sleep(0)
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.close()


def signal(symbol: str = "BTCUSDT", side: int = 1, n: int = 0, **changes: Any) -> Decision:
    """A signal at a mark price of 2000 with target and stop 1 % away."""
    values = {
        "side": side,
        "ref_mark": "2000",
        "tp_price": f"{2000 + 20 * side}",
        "sl_price": f"{2000 - 20 * side}",
        "valid_until": NOW + n * 60_000 + 30_000,
        **changes,
    }
    return decision(symbol, n, **values)
