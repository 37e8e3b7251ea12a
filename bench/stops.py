"""From a mark price frame at the socket to the order that closes the position, written to the order socket."""

import asyncio
import gc
import math
import random
import struct
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from decimal import Decimal
from pathlib import Path

import aiohttp
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bench.frames import mark_price_frame, symbol_names
from bench.processes import sender
from bench.results import Table
from bench.route import make_instruments
from perpline.cli.options import run_loop
from perpline.common.clock import SystemClock
from perpline.domain.market import BookTicker, MarkPrice, Side
from perpline.domain.order import AccountSnapshot, OrderRequest, StopReport, StopRequest, StopStatus
from perpline.domain.signal import Decision, Status, signal_id
from perpline.exchange.binance import endpoints
from perpline.exchange.binance.credentials import Credentials, make_credentials
from perpline.exchange.binance.decode import decode
from perpline.exchange.binance.order_rate import OrderRate
from perpline.exchange.binance.order_socket import OrderSocket
from perpline.exchange.binance.user_events import decode_user_event
from perpline.exchange.binance.weight import WeightLedger
from perpline.storage.sqlite import SqliteStore
from perpline.trading.executor import LiveExecutor
from perpline.trading.mode import Mode, Modes, set_mode
from perpline.trading.order_manager import OrderManager
from perpline.trading.paper import estimated_price
from perpline.trading.risk import Risk
from perpline.trading.trader import TradedMarket, Trader
from perpline.websocket.connection import Connection
from perpline.websocket.handlers.mark_price_handler import MarkPriceHandler
from perpline.websocket.stream_router import StreamRouter
from perpline.websocket.subscriptions import STREAM_TYPES, plan_connections
from perpline.websocket.user_stream import UserStream

PRICE = 100.0
"""Of every symbol; target and stop are 1 % away."""
FIRED = 101.5
BESIDE_MARKS = tuple(kind for kind in STREAM_TYPES if kind != "bookTicker")
"""What shares its connections with the mark prices; here it is silent."""
STEP_LIMIT_S = 60.0
SHARE_OF_ALL = 3.0
"""So many times as many orders are sent by turns in which all fire as by turns in which one does, and at least."""
LEAST_TURNS = 5

Row = tuple[str | float | int | None, ...]


def stops(positions: Sequence[int], firings: int, say: Callable[[str], None]) -> list[Table]:
    """The tables: for each number of open positions and each kind of key, `firings` turns in which one fires, and turns
    in which all do."""
    fired: list[Row] = []
    entered: list[Row] = []
    for count in positions:
        for key, credentials in (("HMAC", hmac_key()), ("Ed25519", ed25519_key())):
            say(f"{count} positions, {key}")
            one, every, entries = run_loop(lambda stop, c=count, k=credentials: _measure(c, k, firings, say))
            fired.append((f"one of {count}", key, len(one), *_quantiles(one)))
            fired.append((f"all {count}", key, len(every), *_quantiles(every)))
            entered.append(
                (f"{count - 1} others open", key, len(entries), *_quantiles([each.inside for each in entries]))
            )
    return [
        Table(
            "mark_price_to_close_ms",
            ("fires", "key", "orders", "p50", "p99", "max", "outside p50", "outside p99"),
            fired,
            (
                "Another process writes the mark prices of a second, one frame for each symbol, back to back to as "
                "many connections as a worker has (50 symbols on each); the target of one position is reached, or of "
                "every one. "
                "From the read that held the frame, before it is decoded, until picows has taken the signed order. "
                "Milliseconds of wall time.",
                "outside: by the other process, from before its first write until the order has come: both ways over "
                "loopback and whatever else the engine was busy with are in it.",
                "Market connection, router, mark price handler, Trader, executor, order socket, user data stream and "
                "SQLite in a file; each position is opened by a signal, filled, and has its stop confirmed. The other "
                "process takes as many orders as come; the exchange takes 300 in ten seconds, closes first.",
            ),
        ),
        Table(
            "signal_to_entry_ms",
            ("", "key", "orders", "p50", "p99", "max"),
            entered,
            ("From a committed signal until its order is written; the order and its position are stored before that.",),
        ),
    ]


def hmac_key() -> Credentials:
    return make_credentials("benchkey0123456789", "benchsecret0123456789", "bench")


def ed25519_key() -> Credentials:
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return make_credentials("benchkey0123456789", pem, "bench")


class _Written:
    """An order: milliseconds from the read with its reason until it was written, and as the other process saw it."""

    __slots__ = ("inside", "outside")

    def __init__(self, inside: float, outside: float) -> None:
        self.inside = inside
        self.outside = outside


class _TimedLane:
    """The order socket, with the time when each order had been written."""

    def __init__(self, socket: OrderSocket) -> None:
        self.written_ns: dict[str, int] = {}
        self._socket = socket

    @property
    def is_ready(self) -> bool:
        return self._socket.is_ready

    def send(self, order: OrderRequest) -> bool:
        if not self._socket.send(order):
            raise RuntimeError("an order did not go over the socket")
        self.written_ns[order.client_id] = time.monotonic_ns()
        return True

    def send_stop(self, stop: StopRequest) -> bool:
        return self._socket.send_stop(stop)


class _Cancels:
    """As much of the requests as is needed here: a stop is cancelled, and then it is gone."""

    def __init__(self, manager: OrderManager) -> None:
        self._manager = manager

    async def cancel_stop(self, client_algo_id: str) -> bool:
        return True

    async def stop(self, client_algo_id: str) -> StopReport:
        known = self._manager.stops[client_algo_id]
        return StopReport(
            symbol=known.symbol,
            client_algo_id=client_algo_id,
            algo_id=known.algo_id,
            side=known.side,
            kind="stop_market",
            status=StopStatus.CANCELED,
            trigger_price=known.trigger_price,
            close_position=True,
            quantity=Decimal(0),
            order_id=0,
            source="query",
            updated_at=known.updated_at,
            received_at=known.updated_at,
        )


class _Desk:
    """A live account's parts, joined as `perpline.accounts` does, in front of the other process."""

    def __init__(self, port: int, symbols: list[str], credentials: Credentials, folder: Path) -> None:
        self.symbols = symbols
        self.clock = clock = SystemClock()
        self.store = SqliteStore(folder / "bench.db")
        self.modes = Modes(self.store, clock.exchange_now_ms, changed=lambda change: None)
        self.books: dict[str, BookTicker] = {}
        self._instruments = make_instruments(symbols)
        self._read_ns = 0
        self._fired_ns: dict[str, int] = {}
        """When the read with a position's reason began, by the client id of its order."""
        self._numbers = 0
        self._last_ms = 0
        url, rng, weight = f"ws://127.0.0.1:{port}", random.Random(0), WeightLedger(clock)
        manager = OrderManager("live", 1)
        socket = OrderSocket(
            f"{url}/orders",
            credentials,
            clock,
            rng,
            OrderRate(clock),
            weight,
            on_report=lambda report: executor.answered(report),
            on_refused=lambda client_id, error: executor.refused(client_id, error),
            on_unknown=lambda client_id: executor.lost(client_id),
            measure_offset=_nothing,
        )
        self.lane = _TimedLane(socket)
        executor = LiveExecutor(
            _Cancels(manager),  # type: ignore[arg-type]
            clock,
            on_report=lambda report: self.trader.on_report(report),
            on_refused=lambda client_id, error: self.trader.on_refused(client_id, error),
            on_unknown=lambda client_id: self.trader.on_unknown(client_id),
            fast=self.lane,
        )
        self.marks = MarkPriceHandler(lambda row: None, lambda mark: self.trader.on_mark_price(mark))
        self.trader = Trader(
            account="live",
            clock=clock,
            store=self.store,
            slot="champion",
            modes=self.modes,
            manager=manager,
            risk=Risk(
                max_positions=len(symbols),
                max_total_usdt=1e9,
                stop_cooldown_min=0,
            ),
            market=TradedMarket(self.marks.latest.get, self.books.get, self._instruments.get),
            executor=executor,
            worth=self._worth,
            wake_publisher=lambda messages: None,
            expected_price=self._expected_price,
        )
        self.router = StreamRouter(decode, {MarkPrice: self.marks.handle})
        plans = plan_connections(symbols, BESIDE_MARKS, endpoints.route_of, endpoints.stream_name)
        connections = [
            Connection(
                name=f"market {number}",
                url=f"{url}/market/{number}",
                streams=plan.streams,
                on_messages=self._on_messages,
                subscribe_request=endpoints.subscribe_request,
                unsubscribe_request=endpoints.unsubscribe_request,
                clock=clock,
                rng=rng,
            )
            for number, plan in enumerate(plans)
        ]
        streams = {endpoints.stream_name(symbol, "markPrice@1s"): symbol for symbol in symbols}
        self._heard_on = [[streams[each] for each in plan.streams if each in streams] for plan in plans]
        self.stream = UserStream(
            make_key=_listen_key,
            keep_key=_nothing,
            url_of=lambda key: f"{url}/user",
            decode=decode_user_event,
            on_connected=_nothing,
            on_event=lambda event: self.trader.on_user_event(event),
            on_lost=lambda reason: None,
            clock=clock,
            rng=rng,
        )
        self.tasks: list[asyncio.Task[None]] = []
        self.running = (socket.run, self.stream.run, self.trader.run, *(each.run for each in connections))
        self.is_connected = lambda: socket.is_ready and self.stream.live and all(each.connects for each in connections)

    def _on_messages(self, batch: list[bytes], received_us: int, source: int) -> Iterable[str]:
        began_ns = time.monotonic_ns()
        before = len(self.lane.written_ns)
        heard = self.router.route_batch(batch, received_us)
        if len(self.lane.written_ns) != before:
            for client_id in list(self.lane.written_ns)[before:]:
                self._fired_ns[client_id] = began_ns
        return heard

    def wire(self, prices: dict[str, float]) -> bytes:
        """The frames of a second, by connection, with a time of their own."""
        self._last_ms = max(self._last_ms + 1, self.clock.exchange_now_ms())
        parts: list[bytes] = []
        for number, symbols in enumerate(self._heard_on):
            payloads = [mark_price_frame(symbol, self._last_ms, prices.get(symbol, PRICE)) for symbol in symbols]
            frames = b"".join(b"\x81\x7e" + len(payload).to_bytes(2, "big") + payload for payload in payloads)
            parts += (struct.pack("!II", number, len(frames)), frames)
        return b"".join(parts)

    async def tell_marks(self, control: aiohttp.ClientWebSocketResponse, prices: dict[str, float]) -> int:
        """Returns when they were sent."""
        await control.send_bytes(self.wire(prices))
        sent_ns: int = await control.receive_json()
        await self.until(lambda: all(mark.updated_at == self._last_ms for mark in self.marks.latest.values()))
        return sent_ns

    async def enter(self, symbols: Sequence[str]) -> list[_Written]:
        """Open a position in each, and wait until all are protected."""
        now = self.clock.exchange_now_ms()
        decisions = []
        for symbol in symbols:
            self.books[symbol] = BookTicker(symbol, PRICE - 0.005, 1e6, PRICE + 0.005, 1e6, now, now, now)
            self._numbers += 1
            decisions.append(
                Decision(
                    signal_id=signal_id("champion", "bench", symbol, self._numbers),
                    slot="champion",
                    symbol=symbol,
                    close_time=now,
                    side=1,
                    status=Status.OK,
                    horizon_s=14_400,
                    ref_mark="100",
                    tp_price="101",
                    sl_price="99",
                    valid_until=now + 60_000,
                )
            )
        before = len(self.lane.written_ns)
        began_ns = time.monotonic_ns()
        self.trader.take_signals(decisions)
        manager = self.trader.manager
        wanted = len(self.symbols)
        await self.until(
            lambda: (
                len(self.lane.written_ns) - before == len(symbols)
                and not manager.naked_since
                and sum(position.quantity > 0 for position in manager.open_positions()) == wanted
            )
        )
        return [_Written((ns - began_ns) / 1e6, math.nan) for ns in list(self.lane.written_ns.values())[before:]]

    async def fire(self, control: aiohttp.ClientWebSocketResponse, symbols: Sequence[str]) -> list[_Written]:
        """Let the targets of these be reached, and wait until they are flat."""
        before = len(self.lane.written_ns)
        sent_ns = await self.tell_marks(control, dict.fromkeys(symbols, FIRED))
        manager = self.trader.manager
        await self.until(lambda: len(manager.open_positions()) == len(self.symbols) - len(symbols))
        written = list(self.lane.written_ns.items())[before:]
        await control.send_str("")
        came: dict[str, int] = await control.receive_json()
        if len(written) != len(symbols):
            raise RuntimeError(f"{len(symbols)} positions fired, {len(written)} orders were sent")
        return [
            _Written((ns - self._fired_ns[client_id]) / 1e6, (came[client_id] - sent_ns) / 1e6)
            for client_id, ns in written
        ]

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(STEP_LIMIT_S):
            while not is_so():
                for task in self.tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.002)

    def _worth(self) -> AccountSnapshot:
        much = Decimal(1_000_000)
        return AccountSnapshot(wallet=much, available=much, unrealized_pnl=Decimal(0), updated_at=0)

    def _expected_price(self, symbol: str, side: Side, quantity: Decimal) -> Decimal:
        return estimated_price(self.books[symbol], self._instruments[symbol], side, quantity)


async def _measure(
    count: int, credentials: Credentials, firings: int, say: Callable[[str], None]
) -> tuple[list[_Written], list[_Written], list[_Written]]:
    """Orders that closed one position, orders that closed one of all, and orders that opened one beside the others."""
    rng = random.Random(count)
    with tempfile.TemporaryDirectory(prefix="perpline-bench-") as folder, sender("bench.venue") as (port,):
        async with _open_desk(port, symbol_names(count), credentials, Path(folder)) as (desk, control):
            one: list[_Written] = []
            every: list[_Written] = []
            entries: list[_Written] = []
            await desk.tell_marks(control, {})
            await desk.enter(desk.symbols)
            with _as_a_ready_worker():
                for number in range(firings):
                    if number % 50 == 0:
                        say(f"{count} positions, {credentials.signer.kind}: {number} of {firings} fired")
                    await asyncio.sleep(rng.random() * 0.02)
                    symbol = rng.choice(desk.symbols)
                    one += await desk.fire(control, [symbol])
                    await desk.tell_marks(control, {})
                    entries += await desk.enter([symbol])
                for _ in range(max(LEAST_TURNS, math.ceil(firings * SHARE_OF_ALL / count))):
                    say(f"{count} positions, {credentials.signer.kind}: all at once")
                    every += await desk.fire(control, desk.symbols)
                    await desk.tell_marks(control, {})
                    await desk.enter(desk.symbols)
            return one, every, entries


@asynccontextmanager
async def _open_desk(
    port: int, symbols: list[str], credentials: Credentials, folder: Path
) -> AsyncIterator[tuple[_Desk, aiohttp.ClientWebSocketResponse]]:
    desk = _Desk(port, symbols, credentials, folder)
    await desk.store.open()
    try:
        await set_mode(
            desk.store,
            [],
            Mode.LIVE,
            positions="keep",
            now=desk.clock.exchange_now_ms(),
            by="bench",
            reason="bench",
            until=None,
            slot="champion",
        )
        await desk.modes.look()
        await desk.trader.open()
        desk.tasks += [asyncio.create_task(run()) for run in desk.running]
        async with aiohttp.ClientSession() as session:
            await desk.until(desk.is_connected)
            async with session.ws_connect(f"http://127.0.0.1:{port}/control", max_msg_size=0) as control:
                await control.send_bytes(desk.wire({}))
                await control.receive_json()
                await desk.until(lambda: len(desk.marks.latest) == len(symbols))
                yield desk, control
    finally:
        for task in desk.tasks:
            task.cancel()
        for outcome in await asyncio.gather(*desk.tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        await desk.store.close()


@contextmanager
def _as_a_ready_worker() -> Iterator[None]:
    """What was made so far is not looked through by the garbage collector again, as in a worker that is ready."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _quantiles(written: Sequence[_Written] | Sequence[float]) -> Iterator[float]:
    """p50, p99 and the longest; of what the other process saw p50 and p99 besides."""
    inside = [each.inside if isinstance(each, _Written) else each for each in written]
    yield from (round(float(np.quantile(inside, q)), 3) for q in (0.5, 0.99, 1.0))
    outside = [each.outside for each in written if isinstance(each, _Written)]
    if outside:
        yield from (round(float(np.quantile(outside, q)), 3) for q in (0.5, 0.99))


async def _nothing() -> None:
    pass


async def _listen_key() -> str:
    return "bench"
