"""The live account of a process on the simulated exchange: real sockets, real signatures, signals made by the test."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.running import eventually, settings_on

from perpline.accounts import Accounts
from perpline.bootstrap import make_rest, measure_offset
from perpline.common.clock import SystemClock
from perpline.common.config import Settings
from perpline.domain.exit_rule import LabelRule
from perpline.domain.market import BookTicker, MarkPrice
from perpline.domain.order import StopStatus
from perpline.domain.signal import Decision, Message, Status, signal_id
from perpline.exchange.binance import endpoints
from perpline.exchange.binance.credentials import make_credentials
from perpline.exchange.binance.decode import decode
from perpline.signals.policy import exit_prices
from perpline.simulation.incidents import AnyIncident
from perpline.simulation.server import SimulatedExchange
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import TRADING_TABLES
from perpline.trading.mode import Mode, set_mode
from perpline.trading.trader import TradedMarket, Trader
from perpline.websocket.connection import Connection
from perpline.websocket.handlers.book_ticker_handler import BookTickerHandler
from perpline.websocket.handlers.mark_price_handler import MarkPriceHandler
from perpline.websocket.stream_router import StreamRouter
from perpline.websocket.subscriptions import plan_connections

KEY, SECRET = "sim-key", "sim-secret"


class LiveDesk:
    """An `Accounts` with keys, fed by the exchange's own mark prices and books."""

    def __init__(self, exchange: SimulatedExchange, settings: Settings, store: SqliteStore, rng: random.Random) -> None:
        self.exchange = exchange
        self.settings = settings
        self.store = store
        self.messages: list[Message] = []
        self._rng = rng
        self._minute = 0

    async def open(self) -> None:
        exchange, settings = self.exchange, self.settings
        self.clock = SystemClock(settings.clock_speed, anchor_ms=exchange.clock.now_ms())
        self.rest = make_rest(settings, self.clock, alone=True)
        await measure_offset(self.clock, self.rest)
        self.instruments = {each.symbol: each for each in await self.rest.instruments()}
        self.marks = MarkPriceHandler(lambda row: None, lambda mark: self.accounts.on_mark_price(mark))
        self.books = BookTickerHandler(lambda row: None)
        self.accounts = Accounts(
            settings,
            self.clock,
            self.store,
            self._rng,
            market=TradedMarket(self.marks.latest.get, self.books.get, self.instruments.get),
            wake_publisher=lambda messages: self.messages.extend(messages or ()),
            default_levels_pct=lambda: (1.0, 1.0),
            credentials=make_credentials(KEY, SECRET, "a test"),
            weight=self.rest.weight,
            measure_offset=lambda: measure_offset(self.clock, self.rest),
        )
        router = StreamRouter(
            decode,
            {MarkPrice: self.marks.handle, BookTicker: self.books.handle},
            set_aside=lambda data, received_us, error: None,
        )
        plans = plan_connections(
            exchange.symbols, ("markPrice@1s", "bookTicker"), endpoints.route_of, endpoints.stream_name, 200
        )
        self.connections = [
            Connection(
                name=plan.route,
                url=endpoints.connection_url(settings.binance_futures_ws_url, plan.route),
                streams=plan.streams,
                on_messages=router.route_batch,
                subscribe_request=endpoints.subscribe_request,
                unsubscribe_request=endpoints.unsubscribe_request,
                clock=self.clock,
                rng=self._rng,
            )
            for plan in plans
        ]
        self.tasks = [asyncio.create_task(each.run()) for each in self.connections]
        self.tasks.append(asyncio.create_task(self.accounts.run(), name="accounts"))

    async def close(self, *, killed: bool = False) -> None:
        """Stop, or (`killed`) die where it stands: nothing more is written, and the lease is not given back."""
        for task in self.tasks:
            task.cancel()
        ended = await asyncio.gather(*self.tasks, return_exceptions=True)
        if not killed:
            await self.accounts.drain()
        elif self.accounts.live is not None:
            await self.accounts.live.close()
        if killed:  # what the next process finds: its owner's number is nobody's any more
            for account in ("paper", "live"):
                await self.store.drop_lease(self.accounts._lease(account), self.accounts._owner)
        await self.rest.close()
        for outcome in ended:
            if isinstance(outcome, Exception):
                raise outcome

    @property
    def trader(self) -> Trader:
        return self.accounts.traders["live"]

    async def ready(self) -> None:
        await eventually(
            lambda: (
                "live" in self.accounts.traders
                and not self.trader.blocked
                and set(self.marks.latest) == set(self.exchange.symbols)
                and all(self.books.get(symbol) for symbol in self.exchange.symbols)
                and self.accounts.live is not None
                and (self.accounts.live.socket is None or self.accounts.live.socket.is_ready)
            ),
            what="the live account is ready",
        )

    async def set_mode(self, mode: str, symbols: Any = (), positions: Any = "keep") -> None:
        await set_mode(
            self.store,
            symbols,
            Mode(mode),
            positions=positions,
            now=self.clock.exchange_now_ms(),
            by="a test",
            reason="a test",
            until=None,
            slot="champion",
        )
        self.accounts.wake()
        await eventually(lambda: self.accounts.modes.row_of(next(iter(symbols), "")).mode == mode)

    def signal(self, symbol: str, side: int, **changes: Any) -> str:
        """A signal of this instant is traded; returns its id."""
        decision = self.decision(symbol, side, **changes)
        self.accounts.take_signals([decision])
        return decision.signal_id

    def decision(
        self,
        symbol: str,
        side: int,
        *,
        tp_pct: float = 1.0,
        sl_pct: float = 1.0,
        horizon_s: int = 14_400,
        valid_s: float = 600.0,
    ) -> Decision:
        """A decision of this instant, with levels around the mark price. At speed 60 it is good for ten wall seconds:
        half a second, as of a real one, is too short on a busy machine."""
        mark = self.marks.latest[symbol].mark_price
        rule = LabelRule(tp_pct, sl_pct, horizon_s, 14.0)
        target, stop = exit_prices(self.instruments[symbol], side, mark, rule)
        now = self.clock.exchange_now_ms()
        self._minute += 1
        close_time = now - now % 60_000 + self._minute  # not a minute's, so that a test may make many of them
        return Decision(
            signal_id=signal_id("champion", "a test", symbol, close_time),
            slot="champion",
            symbol=symbol,
            close_time=close_time,
            side=side,
            status=Status.OK,
            tp_pct=tp_pct,
            sl_pct=sl_pct,
            horizon_s=horizon_s,
            ref_mark=f"{Decimal(repr(mark)):f}",
            tp_price=target,
            sl_price=stop,
            valid_until=now + round(valid_s * 1000),
        )

    async def happens(self, incident: AnyIncident) -> None:
        """Let this happen at the exchange, and wait until it does."""
        self.exchange.happens(incident)
        await asyncio.sleep(0.05)

    async def rows(self, table: str, **only: Any) -> list[dict[str, Any]]:
        definition = TRADING_TABLES[table]
        return [definition.named(row) for row in await self.store.trading_rows(table, {"account": "live", **only})]

    def truth(self) -> dict[str, Any]:
        return self.exchange.private.truth(KEY)

    async def quiet(self, within_s: float = 30.0, *, by_hand: bool = False) -> None:
        """Until nothing is under way any more and our books agree with the exchange's.

        With `by_hand` somebody else may hold positions of his own beside ours."""
        until = asyncio.get_running_loop().time() + within_s
        while difference := self._differs(by_hand):
            if asyncio.get_running_loop().time() > until:
                raise AssertionError(difference)
            await asyncio.sleep(0.01)

    def _differs(self, by_hand: bool) -> str:
        """How our books differ from the exchange's; empty where they agree."""
        if "live" not in self.accounts.traders:
            return "the live account has not begun"
        truth, manager, live = self.truth(), self.trader.manager, self.accounts.live
        if self.trader.blocked or live is None or live.executor.looked_up:
            return f"blocked: {self.trader.blocked}, looked up: {live and live.executor.looked_up}"
        if under_way := manager.unsettled_orders():
            return f"under way: {under_way}"
        ours = {each.symbol: each.signed_quantity for each in manager.open_positions() if each.quantity}
        theirs = {symbol: Decimal(each["quantity"]) for symbol, each in truth["positions"].items()}
        if ours != theirs and not by_hand:
            return f"positions: ours {ours}, theirs {theirs}"
        our_stops = {each.client_id for each in manager.stops.values() if each.status is StopStatus.NEW}
        their_stops = {each["clientAlgoId"] for each in truth["open_algo_orders"]}
        if our_stops != their_stops:
            return f"stops: ours {our_stops}, theirs {their_stops}"
        protected = {each["symbol"] for each in truth["open_algo_orders"]}
        if set(ours) != protected:
            return f"stops at the exchange for {protected}, ours in {set(ours)}"
        strangers = {each["orderId"] for each in truth["orders"] if each["clientOrderId"] == "by-hand"}
        fills = {(each["symbol"], int(each["id"])) for each in truth["fills"] if each["orderId"] not in strangers}
        if missing := {each for each in fills if each[1] not in manager._fills[each[0]]}:
            return f"fills we do not know: {missing}"
        return f"{self.trader._waiting()} rows wait" if self.trader._waiting() else ""

    async def check_books(self) -> None:
        """What must be so after anything: every fill once, equal positions and orders, no order sent twice."""
        truth = self.truth()
        strangers = {each["orderId"] for each in truth["orders"] if each["clientOrderId"] == "by-hand"}
        fills = await self.rows("fills")
        told = Counter((each["symbol"], int(each["id"])) for each in truth["fills"])
        booked = Counter((each["symbol"], each["trade_id"]) for each in fills)
        # Of somebody else's orders we may have heard nothing.
        unheard = [each for each in truth["fills"] if each["orderId"] in strangers]
        assert booked | Counter((each["symbol"], int(each["id"])) for each in unheard) == told
        for each in truth["fills"]:
            if each in unheard:
                continue
            [ours] = [row for row in fills if (row["symbol"], row["trade_id"]) == (each["symbol"], int(each["id"]))]
            assert (Decimal(ours["quantity"]), Decimal(ours["price"])) == (Decimal(each["qty"]), Decimal(each["price"]))
        orders = {row["client_id"]: row for row in await self.rows("orders") if row["trigger_price"] is None}
        statuses = {
            "NEW": "new", "PARTIALLY_FILLED": "partially_filled", "FILLED": "filled", "CANCELED": "canceled",
            "EXPIRED": "expired", "REJECTED": "rejected", "EXPIRED_IN_MATCH": "expired",
        }  # fmt: skip
        by_id = {(row["symbol"], row["order_id"]): row for row in orders.values()}
        for theirs in truth["orders"]:
            if theirs["orderId"] in strangers:
                continue
            ours = by_id.get((theirs["symbol"], theirs["orderId"]))
            assert ours is not None, f"unknown to us: {theirs}"
            assert (ours["status"], Decimal(ours["filled"])) == (
                statuses[theirs["status"]],
                Decimal(theirs["executedQty"]),
            ), theirs
        twice = [
            each
            for each in truth["requests"]
            if each["method"] == "POST" and each["client_id"] and (each["seen"] > 1 or each["taken"] > 1)
        ]
        assert twice == []

    def longest_naked_ms(self) -> int:
        """By the exchange's own record, the longest stretch in which a position was open and no stop rested for it.

        Market time. It ends when the stop rests or the position is flat."""
        truth = self.truth()
        longest = 0
        stops = [(each["symbol"], int(each["createTime"]), each) for each in truth["algo_orders"]]
        held: Counter[str] = Counter()
        since: dict[str, int] = {}
        for fill in sorted(truth["fills"], key=lambda each: (each["time"], int(each["id"]))):
            symbol, at = fill["symbol"], int(fill["time"])
            amount = Decimal(fill["qty"]) * (1 if fill["side"] == "BUY" else -1)
            before = Decimal(held[symbol])
            held[symbol] = before + amount  # type: ignore[assignment]
            if before == 0:
                since[symbol] = at
            if held[symbol] == 0:
                rested = [created for name, created, _ in stops if name == symbol and since[symbol] <= created <= at]
                longest = max(longest, (min(rested) if rested else at) - since[symbol])
                del since[symbol]
        for symbol, at in since.items():
            rested = [created for name, created, _ in stops if name == symbol and created >= at]
            longest = max(longest, (min(rested) if rested else int(truth["time"])) - at)
        return longest


@asynccontextmanager
async def live_desk(
    exchange: SimulatedExchange, folder: Path, *, seed: int = 1, mode: str | None = "live", **changes: object
) -> AsyncIterator[LiveDesk]:
    """A desk whose books are compared, whose sockets are up and whose mode is set."""
    changes.setdefault("size_usdt", 500.0)
    settings = settings_on(exchange, folder, **changes)
    store = SqliteStore(folder / "live.db")
    await store.open()
    desk = LiveDesk(exchange, settings, store, random.Random(seed))
    try:
        await desk.open()
        await desk.ready()
        if mode is not None:
            await desk.set_mode(mode)
        yield desk
    finally:
        await desk.close()
        await store.close()


async def twice(ask: Callable[[], Awaitable[Any]]) -> Any:
    await ask()
    return await ask()
