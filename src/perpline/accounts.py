"""The paper and the live account of a process: their parts made and joined, and their life. bootstrap's other half."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, TypeVar

import structlog

from perpline.common.backoff import backoff_s
from perpline.common.clock import Clock
from perpline.common.config import Settings
from perpline.common.errors import Fenced, Malformed, NeedsPerson, Refused, Unavailable
from perpline.domain.market import BookTicker, MarkPrice, Side
from perpline.domain.order import Account, AccountSnapshot
from perpline.domain.signal import Decision, Message
from perpline.exchange.binance import endpoints
from perpline.exchange.binance.credentials import Credentials
from perpline.exchange.binance.order_rate import OrderRate
from perpline.exchange.binance.order_socket import OrderSocket
from perpline.exchange.binance.trading_rest import BinanceTrading, receive_window_ms
from perpline.exchange.binance.user_events import decode_user_event
from perpline.exchange.binance.weight import WeightLedger
from perpline.leadership import Leadership, is_dead, new_owner, shown_owner
from perpline.storage.store import TRADING_TABLES, Store
from perpline.trading.executor import LiveExecutor
from perpline.trading.mode import Change, Modes
from perpline.trading.order_manager import OrderManager
from perpline.trading.paper import PaperExecutor, estimated_price
from perpline.trading.reconcile import Reconciler
from perpline.trading.risk import Risk, bold_settings
from perpline.trading.trader import TradedMarket, Trader
from perpline.websocket.user_stream import UserStream

log = structlog.get_logger("perpline.accounts")

T = TypeVar("T")

LOOK_AT_MODES_S = 1.0
LOOK_AT_LIVE_S = 10.0
LEASE_OLD_S = 30.0
"""A lease that nobody renewed for so long, wall seconds, is nobody's; holders renew theirs each second."""
LEAST_PAUSE_S = 0.2
"""Between the first reason to compare the books and the comparison, wall seconds."""
RECONCILE_AGAIN_S = 30.0
"""The longest wait between two attempts at a look that failed."""


class Accounts:
    """Modes, the paper account, and the live one where there are keys.

    An account is traded by the process that leads and holds the account's own lease (two slots may name one account).
    It stops when it loses either and begins anew, as a process does at its start, when it has both again. Signals and
    marks come in by `take_signals` and `on_mark_price`; `wake()` says that somebody may have set a mode.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        store: Store,
        rng: random.Random,
        *,
        market: TradedMarket,
        wake_publisher: Callable[[Sequence[Message] | None], None],
        default_levels_pct: Callable[[], tuple[float, float]],
        credentials: Credentials | None,
        weight: WeightLedger,
        measure_offset: Callable[[], Awaitable[None]],
        leadership: Leadership | None = None,
    ) -> None:
        """Without `leadership` the accounts' own leases are all that is asked for."""
        self.modes = Modes(store, clock.exchange_now_ms, changed=self._mode_changed)
        self.traders: dict[Account, Trader] = {}
        """Those that trade now: their lease is ours, and what the tables say of them has been read."""
        self.live_unattended: list[str] = []
        """Symbols of live positions that are open by the tables, and nobody trades the account."""
        self.live: _LiveAccount | None = None
        self.waiting_for_lease: set[Account] = set()
        self._settings = settings
        self._clock = clock
        self._store = store
        self._rng = rng
        self._market = market
        self._wake_publisher = wake_publisher
        self._default_levels_pct = default_levels_pct
        self._credentials = credentials
        self._weight = weight
        self._measure_offset = measure_offset
        self._paper: PaperExecutor | None = None
        self._leadership = leadership
        self._owner = new_owner() if leadership is None else leadership.owner
        self._leases: dict[Account, Leadership] = {}
        self._woken = asyncio.Event()
        self._modes_unread = False

    def take_signals(self, decisions: Sequence[Decision]) -> None:
        for trader in self.traders.values():
            trader.take_signals(decisions)

    def on_mark_price(self, mark: MarkPrice) -> None:
        """Real money first; then paper, whose own stops come after ours as they do at the exchange."""
        if (live := self.traders.get("live")) is not None:
            live.on_mark_price(mark)
        if self._paper is not None:
            if (paper := self.traders.get("paper")) is not None:
                paper.on_mark_price(mark)
            self._paper.on_mark_price(mark)

    def holds(self, symbol: str) -> bool:
        """Whether an account that is traded here has a position in the symbol, opening or open."""
        return any(trader.manager.open_positions(symbol) for trader in self.traders.values())

    def wake(self) -> None:
        """Look at the modes now, and not within a second."""
        self._woken.set()

    async def run(self) -> None:
        """Trade for as long as the process lives."""
        for told in bold_settings(Risk.of(self._settings)):
            log.warning("limits_allow_much", told=told, action="trading")
        await self._first_look()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._look_at_modes(), name="modes")
            group.create_task(self._look_at_live(), name="live positions")
            group.create_task(self._trade("paper", self._run_paper), name="paper account")
            if self._credentials is not None:
                group.create_task(self._trade("live", self._run_live), name="live account")

    async def drain(self) -> None:
        """Write what is not written and give the leases back. Raises Unavailable."""
        for account, trader in self.traders.items():
            try:
                await trader.drain()
            except Fenced as error:
                self._leases[account].lose(str(error))
        if self.live is not None:
            await self.live.close()
        for lease in self._leases.values():
            await lease.drop()

    def status(self) -> dict[str, Any]:
        """Plain JSON values for /status."""
        now = self._clock.exchange_now_ms()
        return {
            "modes": [
                {
                    "symbol": row.symbol,
                    "mode": row.at(now).value,
                    "set": row.mode.value,
                    "until": row.until,
                    "by": row.by,
                    "reason": row.reason,
                    "positions": row.positions,
                }
                for row in self.modes.rows()
            ],
            "keys": self._credentials is not None,
            "daily_loss_limit_pct": self._settings.daily_loss_limit_pct,
            "waiting_for_lease": sorted(self.waiting_for_lease),
            "accounts": {account: trader.status() for account, trader in self.traders.items()},
            "live": None if self.live is None else self.live.status(),
            "live_unattended": [] if "live" in self.traders else self.live_unattended,
        }

    # ---- modes

    async def _first_look(self) -> None:
        """Nothing is traded before the modes are known, and they are known at the start."""
        while not await self._look():
            await self._clock.sleep_wall(LOOK_AT_MODES_S)

    async def _look_at_modes(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LOOK_AT_MODES_S):
                    await self._woken.wait()
            except TimeoutError:
                pass
            self._woken.clear()
            await self._look()

    async def _look(self) -> bool:
        """Whether the modes could be read; that they cannot is said once."""
        try:
            await self.modes.look()
        except Unavailable as error:
            if not self._modes_unread:
                log.error("modes_not_read", reason=str(error), action="mode")
            self._modes_unread = True
            return False
        self._modes_unread = False
        return True

    async def _look_at_live(self) -> None:
        """Whether somebody looks after what the live account holds by the tables, where we do not; for ever."""
        while True:
            if "live" not in self.traders:
                try:
                    self.live_unattended = await unattended_live(
                        self._store, self._clock.exchange_now_ms(), self._clock.speed
                    )
                except (Unavailable, NeedsPerson):
                    pass  # that it is away, or was moved, is told of by those who write
            await self._clock.sleep_wall(LOOK_AT_LIVE_S)

    def _mode_changed(self, change: Change) -> None:
        log.warning(
            "mode_changed",
            symbol=change.row.symbol or "all",
            old=change.old.value,
            new=change.new.value,
            by=change.row.by,
            reason=change.row.reason,
            positions=change.row.positions,
            action="mode",
        )
        for trader in self.traders.values():
            trader.on_mode_changed(change)

    # ---- one account

    def _lease(self, account: Account) -> str:
        if account == "paper" or self._credentials is None:
            return f"trader:{account}"
        return f"trader:{account}:{self._credentials.fingerprint}"

    async def _trade(self, account: Account, run: Callable[[], Awaitable[None]]) -> None:
        """Trade whenever this process leads and has the account's lease; then nobody else does. For ever."""
        leader = self._leadership
        while True:
            self.waiting_for_lease.add(account)
            if leader is not None:
                await leader.until_held()
            lease = self._leases[account] = Leadership(
                self._store, self._clock, self._lease(account), self._owner, may_replace=self._acts_no_more
            )
            ends = [asyncio.create_task(self._trade_under(lease, account, run), name=f"{account} account")]
            if leader is not None:
                ends.append(asyncio.create_task(leader.until_lost(), name=f"{account} while leading"))
            try:
                done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            except* Fenced as refused:
                lease.lose(str(refused.exceptions[0]))
            finally:
                for task in ends:
                    task.cancel()
                await asyncio.gather(*ends, return_exceptions=True)
            if account in self.traders:
                log.error("account_lease_lost", account=account, action="trading")
            await self._forget(account)
            await lease.drop()

    async def _trade_under(self, lease: Leadership, account: Account, run: Callable[[], Awaitable[None]]) -> None:
        """Wait for the lease, then trade until it is lost."""
        if not await lease.attempt() and lease.holder:
            log.warning("account_traded_elsewhere", account=account, holder=shown_owner(lease.holder), action="trading")
        async with asyncio.TaskGroup() as group:
            keeping = group.create_task(lease.run(), name=f"{account} lease")
            await lease.until_held()
            self.waiting_for_lease.discard(account)
            working = asyncio.ensure_future(run())
            lost = asyncio.create_task(lease.until_lost(), name=f"{account} lease lost")
            try:
                await asyncio.wait((working, lost), return_when=asyncio.FIRST_COMPLETED)
                if working.done():
                    working.result()
            finally:
                for task in (working, lost, keeping):
                    task.cancel()
                await asyncio.gather(working, lost, return_exceptions=True)

    async def _forget(self, account: Account) -> None:
        """What is open is the next trader's, which reads it from the tables and the exchange."""
        self.traders.pop(account, None)
        if account == "paper":
            self._paper = None
        elif self.live is not None:
            live, self.live = self.live, None
            await live.close()

    def _acts_no_more(self, holder: str) -> bool:
        """Who led before us stopped by itself before we could lead: its accounts need not be waited for."""
        return is_dead(holder) or (self._leadership is not None and holder == self._leadership.predecessor)

    def _may_act(self, lease: Leadership) -> bool:
        """Whether nobody else can be trading under this lease, or nobody can know: the database is away for us, and a
        stop that fires closes what is ours all the same."""
        leases = [lease] if self._leadership is None else [lease, self._leadership]
        return all(each.leads or each.is_cut_off for each in leases)

    async def _live_runs(self) -> tuple[int, int]:
        """The numbers of the first live run on these tables, and of this one. Raises Unavailable.

        The first is drawn by lot: two perplines on one account, each with its own tables and both with the same
        signals, must not make the same client ids."""
        counters, name, first_name = TRADING_TABLES["counters"], "run:live", "run:live:first"
        stored = await self._store.trading_rows("counters", {"name": first_name})
        if stored:
            first = int(counters.named(stored[0])["value"])
        else:
            first = self._rng.randrange(36**3, 36**4)
            values = {first_name: first, name: first - 1}
            rows = [counters.row({"name": each, "value": value}) for each, value in values.items()]
            await self._store.commit_trading({"counters": rows})
        return first, await self._store.next_number(name)

    def _trader(self, account: Account, first_run: int, run: int, executor: Any, **more: Any) -> Trader:
        settings = self._settings
        return Trader(
            account=account,
            clock=self._clock,
            store=self._store,
            slot=settings.slot,
            modes=self.modes,
            manager=OrderManager(account, run, first_run=first_run),
            risk=Risk.of(settings),
            market=self._market,
            executor=executor,
            wake_publisher=self._wake_publisher,
            trailing_stop_pct=settings.trailing_stop_pct,
            break_even_pct=settings.break_even_pct,
            naked_alarm_s=settings.naked_alarm_s,
            unknown_positions=settings.unknown_positions,
            default_levels_pct=self._default_levels_pct(),
            fence=self._leases[account].fence,
            may_act=partial(self._may_act, self._leases[account]),
            expected_price=self._expected_price,
            **more,
        )

    def _expected_price(self, symbol: str, side: Side, quantity: Decimal) -> Decimal | None:
        book: BookTicker | None = self._market.book(symbol)
        instrument = self._market.instrument(symbol)
        if book is None or instrument is None or quantity <= 0:
            return None
        return estimated_price(book, instrument, side, quantity)

    async def _run_paper(self) -> None:
        settings = self._settings
        run = await _patiently(self._clock, partial(self._store.next_number, "run:paper"))
        paper = PaperExecutor(
            self._store,
            self._clock,
            run,
            start_usdt=Decimal(repr(settings.paper_equity_usdt)),
            fee_bps=Decimal(repr(settings.paper_fee_bps)),
            leverage=settings.leverage,
            instrument=self._market.instrument,
            book=self._market.book,
            on_report=lambda report: trader.on_report(report),
            on_refused=lambda client_id, error: trader.on_refused(client_id, error),
            on_income=lambda income: trader.on_report(income),
        )
        trader = self._trader("paper", 1, run, paper, worth=paper.snapshot)
        await _patiently(self._clock, paper.open)
        await _patiently(self._clock, trader.open)
        self._paper, self.traders["paper"] = paper, trader
        await _patiently(self._clock, trader.recover)
        await trader.run()

    async def _run_live(self) -> None:
        assert self._credentials is not None
        first_run, run = await _patiently(self._clock, self._live_runs)
        live = _LiveAccount(
            self._settings,
            self._clock,
            self._rng,
            self._credentials,
            self._weight,
            self._measure_offset,
            market=self._market,
            make_trader=partial(self._trader, "live", first_run, run),
        )
        await _patiently(self._clock, live.trader.open)
        self.live, self.traders["live"] = live, live.trader
        await live.run()


class _LiveAccount:
    """The account at the exchange: its two ways in, its ways out, and the comparison of the books.

    No entry is made before the user data stream is heard and the first look at the exchange has been taken, nor while
    either is not the case. What reduces a position is always sent.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        rng: random.Random,
        credentials: Credentials,
        weight: WeightLedger,
        measure_offset: Callable[[], Awaitable[None]],
        *,
        market: TradedMarket,
        make_trader: Callable[..., Trader],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._market = market
        self._soon = asyncio.Event()
        ws_url, rest_url = settings.binance_futures_ws_url, settings.binance_futures_rest_url
        rate = OrderRate(clock)
        self.rest = BinanceTrading(
            rest_url,
            credentials,
            clock,
            weight,
            rate,
            measure_offset=measure_offset,
            spot_url=endpoints.spot_rest_url(ws_url, rest_url),
        )
        self.socket: OrderSocket | None = None
        if settings.order_transport == "socket":
            self.socket = OrderSocket(
                endpoints.order_socket_url(ws_url),
                credentials,
                clock,
                rng,
                rate,
                weight,
                on_report=lambda report: self.executor.answered(report),
                on_refused=lambda client_id, error: self.executor.refused(client_id, error),
                on_unknown=lambda client_id: self.executor.lost(client_id),
                measure_offset=measure_offset,
            )
        self.executor = LiveExecutor(
            self.rest,
            clock,
            on_report=lambda report: self.trader.on_report(report),
            on_refused=lambda client_id, error: self.trader.on_refused(client_id, error),
            on_unknown=lambda client_id: self.trader.on_unknown(client_id),
            fast=self.socket,
            dead_after_ms=2 * receive_window_ms(clock),
        )
        self.trader = make_trader(
            self.executor, worth=self._worth, prepare=self._prepare, reconcile_soon=self._soon.set
        )
        self.reconciler = Reconciler(
            self.rest,
            clock,
            self.trader.manager,
            apply=self.trader.take,
            adopt=lambda found: self.trader.adopt(found),
            cancel_stop=self.executor.cancel_stop,
            in_flight=lambda client_id: client_id in self.executor.looked_up,
            told=lambda differences: self.trader.on_differences(differences),
        )
        self.stream = UserStream(
            make_key=self.rest.make_listen_key,
            keep_key=self.rest.keep_listen_key,
            url_of=lambda key: endpoints.user_stream_url(ws_url, key),
            decode=decode_user_event,
            on_connected=self._look,
            on_event=lambda event: self.trader.on_user_event(event),
            on_lost=self._lost,
            clock=clock,
            rng=rng,
        )
        self.trader.blocks["stream"] = "the user data stream is not heard yet"
        self._recovered = False

    async def run(self) -> None:
        """Hear, compare, trade; for ever. Raises NeedsPerson where the account cannot be traded by perpline."""
        async with asyncio.TaskGroup() as group:
            if self.socket is not None:
                group.create_task(self.socket.run(), name="order socket")
            group.create_task(self.stream.run(), name="user data stream")
            group.create_task(self._compare_for_ever(), name="reconcile")
            group.create_task(self.trader.run(), name="live trader")

    async def close(self) -> None:
        await self.executor.close()
        await self.rest.close()

    def status(self) -> dict[str, Any]:
        return {
            "user_stream": self.stream.facts(),
            "order_socket": None if self.socket is None else self.socket.is_ready,
            "looked_up": self.executor.looked_up,
            "reconciled_at": self.reconciler.last_at,
            "reconciliations": self.reconciler.looks,
            "last_error": self.reconciler.last_error,
        }

    async def _look(self) -> None:
        """After every connection the books are compared, before its events are taken. Raises PerplineError."""
        if not self._recovered and await self.rest.is_hedge_mode():
            raise NeedsPerson(
                "the account is in hedge mode, which perpline does not trade: set one-way mode at the exchange"
            )
        await self.reconciler.look()
        if not self._recovered:
            self._recovered = True
            await self.trader.recover()
        self.trader.blocks.pop("stream", None)
        self.trader.blocks.pop("books", None)

    def _lost(self, reason: str) -> None:
        self.trader.blocks["stream"] = f"the user data stream is lost: {reason}"

    async def _compare_for_ever(self) -> None:
        failures = 0
        while True:
            wait_s = self._settings.reconcile_every_s / self._clock.speed
            if failures:
                wait_s = backoff_s(failures, self._rng, RECONCILE_AGAIN_S)
            try:
                async with asyncio.timeout(max(0.2, wait_s)):
                    await self._soon.wait()
            except TimeoutError:
                pass
            await self._clock.sleep_wall(LEAST_PAUSE_S)  # several reasons at once are one look
            self._soon.clear()
            if not self._recovered:
                continue  # the stream's own first look comes first
            try:
                await self.reconciler.look()
            except (Unavailable, Refused, Malformed) as error:
                failures += 1
                if failures > 1:
                    self.trader.blocks["books"] = f"the account could not be compared: {error}"
                log.warning("account_not_compared", reason=str(error), failures=failures, action="reconcile")
                continue
            failures = 0
            self.trader.blocks.pop("books", None)

    def _worth(self) -> AccountSnapshot | None:
        """By the newest wallet that anybody told of, and our own positions at their mark prices."""
        known = self.reconciler.account
        if known is None:
            return None
        manager = self.trader.manager
        wallet = manager.wallet.get("USDT", known.wallet)
        unrealized = used = Decimal(0)
        for position in manager.open_positions():
            mark = self._market.mark(position.symbol)
            price = position.entry_price if mark is None else Decimal(repr(mark.mark_price))
            if price is not None:
                unrealized += position.unrealized_pnl(price)
                used += price * position.quantity
        free = wallet - used / self._settings.leverage
        return AccountSnapshot(
            wallet=wallet,
            available=min(known.available, free) if manager.open_positions() else free,
            unrealized_pnl=unrealized,
            updated_at=self._clock.exchange_now_ms(),
        )

    async def _prepare(self, symbol: str) -> None:
        """Isolated margin and our leverage, set and then read back. Raises PerplineError where it is not so."""
        leverage = self._settings.leverage
        margin = await self.rest.margin(symbol)
        if not margin.isolated:
            await self.rest.set_isolated(symbol)
        if margin.leverage != leverage:
            await self.rest.set_leverage(symbol, leverage)
        if not margin.isolated or margin.leverage != leverage:
            margin = await self.rest.margin(symbol)
        if not margin.isolated or margin.leverage != leverage:
            kind = "isolated" if margin.isolated else "cross"
            raise Refused(f"{symbol} has {kind} margin with leverage {margin.leverage}, not isolated with {leverage}")


async def unattended_live(store: Store, now: int, speed: float) -> list[str]:
    """The symbols of the live positions that are open by the tables, where no process renews the lease of a live
    account: none looks after them. `now` is the market's time. Raises Unavailable."""
    since = now - round(LEASE_OLD_S * 1000 * speed)
    held = f"SELECT 1 FROM leases WHERE name LIKE 'trader:live:%' AND owner <> '' AND until > {since}"
    query = (
        "SELECT DISTINCT symbol FROM positions WHERE account = 'live' AND status <> 'closed' "
        f"AND NOT EXISTS ({held}) ORDER BY symbol"
    )
    return [symbol for (symbol,) in await store.select(query)]


async def _patiently(clock: Clock, ask: Callable[[], Awaitable[T]]) -> T:
    """The answer of a database that may be away for a while."""
    while True:
        try:
            return await ask()
        except Unavailable as error:
            log.error("account_not_read", reason=str(error), action="trading")
            await clock.sleep_wall(1.0)
