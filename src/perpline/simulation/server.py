"""The simulated exchange on a local port: HTTP, WebSocket, the order API, the market clock, and a door for tests.

    async with SimulatedExchange(seed=1, symbols=4, speed=60.0) as exchange:
        ...  # exchange.http_url, exchange.ws_url, exchange.clock, exchange.symbols

WebSocket frames from server to client are not masked, so the bytes of a frame are the same for every connection: a
payload is framed once and its bytes are written to each transport. A reader that lets more than `backlog_bytes` pile
up is disconnected; nothing waits for a slow reader.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal, TypeVar
from urllib.parse import parse_qsl

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from perpline.common.clock import Clock, SystemClock
from perpline.simulation.clock import ShiftedClock
from perpline.simulation.control import MOST_STREAMS, Control
from perpline.simulation.exchange import DAY_MS, INTERVAL_MS, INTERVALS, Book, Candle, Exchange, KlineRow, open_of
from perpline.simulation.faults import Faults, changed, incident, where
from perpline.simulation.feed import Feed, Hour
from perpline.simulation.incidents import (
    AnyIncident,
    Delisted,
    Disconnect,
    End,
    ExpireListenKeys,
    HalfOpen,
    Halted,
    Incident,
    Listed,
    OnRoute,
    Quiet,
    Reorder,
    RestFault,
    Schedule,
    SlowEngine,
    SlowReading,
    SlowSending,
    Where,
    WrongClock,
)
from perpline.simulation.market import HOUR_MS, MINUTE_MS, World
from perpline.simulation.private_rest import Private
from perpline.simulation.rest import Answer, Rest, failure, refusal
from perpline.simulation.script import Path, Row, paths, read_script
from perpline.simulation.signatures import signed_text
from perpline.simulation.streams import PING, PONG, ROUTES, UNROUTED, Stats, Stream, Streams, framed
from perpline.simulation.user_streams import UserStreams
from perpline.simulation.ws_api import HANDSHAKE_WEIGHT, Session

log = logging.getLogger(__name__)
_Result = TypeVar("_Result")
_OnRoute = TypeVar("_OnRoute", bound=OnRoute)

TICK_WALL_S: Final = 0.02
"""How often the feed is advanced. At speed 60 this is 1.2 s of market time."""
CONTROL_PER_S: Final = 10
WS_API: Final = "ws_api"
_ANSWERED_TRULY: Final = ("torn", "slow", "lost", "late", "408_taken", "503a_taken")
"""Faults of requests that are carried out."""
_ENGINE_PATHS: Final = tuple(
    f"/fapi/v1/{name}" for name in ("order", "batchOrders", "allOpenOrders", "algoOrder", "algoOpenOrders")
)
MOST_CANDLES: Final = 100_000
"""In one answer of /sim/candles."""


class SimulatedExchange:
    """A Binance USDⓈ-M futures exchange. An async context manager."""

    def __init__(
        self,
        *,
        seed: int = 1,
        symbols: int = 4,
        speed: float = 1.0,
        edge_bp: float = 0.0,
        faults: Faults | None = None,
        clock: Clock | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        thin: bool = True,
        unrouted_all: bool = False,
        cut_hours: float = 24.0,
        ping_s: float = 180.0,
        pong_timeout_s: float = 600.0,
        backlog_bytes: int = 16 * 1024 * 1024,
        script: Iterable[Row] = (),
    ) -> None:
        """`thin`: above speed 1, bookTicker goes down to 5 and forming klines to 2 frames per wall second and stream.

        `cut_hours` is market time, `ping_s` and `pong_timeout_s` are wall time. `script`: prices that contracts follow
        (script.py); one that names an unknown contract raises ValueError when the exchange begins."""
        self._steady: Clock = clock or SystemClock(speed)
        self.clock = ShiftedClock(self._steady)
        self.seed = seed
        # Change its fields; another object put in its place would not be seen.
        self.faults = faults if faults is not None else Faults()
        self.stats = Stats()
        self.requested: deque[tuple[int, str, int]] = deque(maxlen=10_000)
        """The latest REST requests: when they were answered (exchange ms), path, status."""
        self.exchange = Exchange(World(seed, symbols, edge_bp))
        self.symbols = self.exchange.symbols
        self._rng = random.Random(f"{seed}/{self.faults.seed}")
        self._schedule = Schedule(lambda: self.faults.incidents)
        self._streams = Streams(self.symbols, self.faults, self.stats, self._rng, self._schedule)
        self._feed = Feed(
            self.exchange,
            self._streams,
            self.faults,
            thin=thin and self.clock.speed > 1,
            wall_s=time.monotonic,
        )
        self._rest = Rest(self.exchange, self.stats, self._streams.shown_depth)
        self.private = Private(
            self.exchange, self.clock, depth=self._depth, mark=self._feed.mark, last=self._feed.last, rng=self._rng
        )
        """The accounts of this exchange. They see the market as the streams have shown it."""
        self._user_streams = UserStreams(
            lambda key: self.private.engine.accounts[key].listen_key,
            self.faults,
            self.stats,
            self._rng,
            self._schedule,
        )
        self.private.emit = self._user_streams.emit
        self._feed.traded = self.private.traded
        self._host, self._port = host, port
        self._unrouted_all = unrouted_all
        self._cut_hours, self._ping_s, self._pong_timeout_s = cut_hours, ping_s, pong_timeout_s
        self._backlog_bytes = backlog_bytes
        # One thread computes everything that is not yet known, so the loop that sends never waits for it.
        self._worker = ThreadPoolExecutor(1, "world")
        self._connections: set[_Connection] = set()
        self._asked: set[asyncio.Task[None]] = set()
        self._runner: web.AppRunner | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._next_cut_ms = 0
        self._script = list(script)

    @property
    def http_url(self) -> str:
        return f"http://{self._host}:{self._port}"

    @property
    def ws_url(self) -> str:
        return f"ws://{self._host}:{self._port}"

    def closed_candles(self, symbol: str, interval: str, from_open_ms: int, to_open_ms: int) -> list[KlineRow]:
        """The truth: rows (as REST spells them) with from <= open time < to that are closed by now."""
        now_ms = self.clock.now_ms()
        return self.exchange.closed_candles(self.exchange.index_of[symbol], interval, from_open_ms, to_open_ms, now_ms)

    def happens(self, incident: AnyIncident) -> None:
        """Let this happen, at the time it says, counted from the next look at the clock (at most 20 ms from now)."""
        self.faults.incidents.append(incident)

    def script(self, rows: Iterable[Row]) -> int:
        """From now on these contracts follow these prices, seconds count from now; the instant this holds from, ms.

        Raises ValueError for an unknown contract, then nothing has changed."""
        # What REST may have told is over too, though it be later than what the streams have.
        begins_ms = max(self.clock.now_ms(), self._feed.now_ms)
        found = paths(rows, self.exchange.index_of, begins_ms, begins_ms, partial(self._mark, begins_ms))
        for index, path in found.items():
            self.exchange.follow(index, path)
            self._feed.follow(index)
        return begins_ms

    def unscript(self, symbols: Iterable[str]) -> None:
        """From now on these contracts are back at the prices of their world. Raises ValueError for an unknown one."""
        wanted = list(symbols)
        for symbol in wanted:
            if symbol not in self.exchange.index_of:
                raise ValueError(f"{symbol} is no contract of this exchange")
        begins_ms = max(self.clock.now_ms(), self._feed.now_ms)
        for index in (self.exchange.index_of[symbol] for symbol in wanted):
            if index in self.exchange.courses:
                self.exchange.follow(index, Path(begins_ms))
                self._feed.follow(index)

    def _mark(self, now_ms: int, index: int) -> float:
        return self.exchange.mark(index, now_ms, self._feed.detail(index, now_ms)).mark

    def _depth(self, index: int, levels: int) -> tuple[Book, list[tuple[int, int]], list[tuple[int, int]]]:
        now_ms = self._feed.now_ms
        return self.exchange.depth(index, levels, now_ms, self._feed.detail(index, now_ms))

    def disconnect(self, route: Where = "all", at_most: int | None = None) -> int:
        """Cut the connections of this route (or all) without a word, of each route `at_most` so many; how many there
        were."""
        cut = self._of_route(route, at_most)
        for connection in cut:
            connection.cut()
        return len(cut)

    def go_silent(self, route: Where = "all", at_most: int | None = None) -> int:
        """As `disconnect`, but the connections stay half open: they say, answer and close nothing any more."""
        gone = self._of_route(route, at_most)
        for connection in gone:
            connection.meet(HalfOpen())
        return len(gone)

    def _of_route(self, route: Where, at_most: int | None) -> list["_Connection"]:
        found = [connection for connection in self._connections if route in ("all", connection.route)]
        if at_most is None:
            return found
        routes = {connection.route for connection in found}
        return [each for one in routes for each in [link for link in found if link.route == one][:at_most]]

    async def wait_failed(self) -> None:
        """Waits until a task of the exchange fails, and raises what it raised."""
        await asyncio.gather(*self._tasks)

    async def __aenter__(self) -> "SimulatedExchange":
        self._turn_schedule()
        now_ms = self.clock.now_ms()
        # Marks are of whole seconds: a script from the start on holds for the very first of them.
        start_ms = now_ms // 1000 * 1000
        mark = partial(self._mark, now_ms)
        for index, path in paths(self._script, self.exchange.index_of, start_ms, 0, mark).items():
            self.exchange.follow(index, path)
        hour = now_ms // HOUR_MS
        self._feed.add_hour(await self._off_loop(self._compute_hour, hour))
        today = await self._off_loop(self._minutes_since, open_of("1d", now_ms), now_ms)
        self._feed.begin(now_ms, today)
        app = web.Application(client_max_size=1 << 20)
        app.router.add_get("/sim/state", self._sim_state)
        app.router.add_get("/sim/candles", self._sim_candles)
        app.router.add_route("*", "/sim/faults", self._sim_faults)
        app.router.add_route("*", "/sim/script", self._sim_script)
        app.router.add_get("/sim/truth", self._sim_truth)
        app.router.add_route("*", "/sim/accounts", self._sim_accounts)
        app.router.add_route("*", "/{path:.*}", self._request)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port, backlog=1024)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self._tasks = [
            asyncio.create_task(self._play(), name="simulated feed"),
            asyncio.create_task(self._send_tickers(), name="simulated tickers"),
            asyncio.create_task(self._ping(), name="simulated pings"),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in (*self._tasks, *self._asked):
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        self.disconnect()
        if self._runner is not None:
            await self._runner.cleanup()
        self._worker.shutdown(cancel_futures=True)
        for outcome in ended:
            # A bug in here must fail the test or command that runs the exchange.
            if isinstance(outcome, Exception):
                raise outcome

    # ---- the clock drives the feed

    async def _play(self) -> None:
        """Advance the feed; the following hour is computed as soon as an hour begins."""
        coming: asyncio.Future[Hour] | None = None
        while True:
            self._turn_schedule()
            # Where its clock steps back the exchange is silent until it has caught up: nothing is told twice.
            now_ms = max(self.clock.now_ms(), self._feed.now_ms)
            if coming is None and now_ms >= self._feed.loaded_until_ms - HOUR_MS:
                hour = self._feed.loaded_until_ms // HOUR_MS
                coming = asyncio.ensure_future(self._off_loop(self._compute_hour, hour))
            if coming is not None and (coming.done() or now_ms >= self._feed.loaded_until_ms):
                self._feed.add_hour(await coming)
                coming = None
                continue
            self._feed.advance(now_ms)
            self.private.step(now_ms)
            self._user_streams.step(now_ms)
            self._cut_by_time(now_ms)
            for connection in list(self._connections):
                connection.flush()
            await self.clock.sleep_wall(TICK_WALL_S)

    def _turn_schedule(self) -> None:
        steady_ms = self._steady.now_ms()
        begins, over = self._schedule.turn(steady_ms)
        wrong_by_ms = self.clock.now_ms() - steady_ms
        for begun, start_ms, end_ms in begins:
            self._begin(begun, start_ms, start_ms + wrong_by_ms, end_ms + wrong_by_ms)
        for ended in over:
            if isinstance(ended, WrongClock):
                self.clock.unshift(id(ended))
            elif isinstance(ended, Halted | Quiet):
                self.exchange.resume(id(ended), self.clock.now_ms())

    def _begin(self, begun: Incident, steady_ms: int, start_ms: int, end_ms: float) -> None:
        """`start_ms` and `end_ms` by the exchange's clock."""
        index_of = self.exchange.index_of
        match begun:
            case Disconnect() | End() | HalfOpen():
                for connection in list(self._connections):
                    if begun.on(connection.route):
                        connection.meet(begun)
            case ExpireListenKeys():
                for key in list(self.private.engine.accounts):
                    self.private.expire_listen_key(key)
            case WrongClock():
                self.clock.shift(id(begun), steady_ms, begun.offset_ms, begun.drift_ppm)
            case Listed() if begun.symbol in index_of:
                self.exchange.enlist(index_of[begun.symbol], start_ms)
            case Delisted() if begun.symbol in index_of:
                self.exchange.delist(index_of[begun.symbol], start_ms)
            case Halted() if begun.symbol in index_of:
                self.exchange.halt(id(begun), index_of[begun.symbol], start_ms, end_ms)
            case Quiet():
                for symbol, index in index_of.items():
                    if fnmatchcase(symbol, begun.symbol):
                        self.exchange.quieten(
                            id(begun), index, start_ms, end_ms, begun.share, begun.closing, self.faults.seed
                        )
            case Listed() | Delisted() | Halted():
                log.warning("nothing happens to %s: it is no contract of this exchange", begun.symbol)

    def _cut_by_time(self, now_ms: int) -> None:
        for connection in list(self._connections):
            if now_ms - connection.since_ms >= self._cut_hours * HOUR_MS:
                connection.end("24 hours are over")
        every_ms = self.faults.disconnect_every_s * 1000
        if not every_ms:
            self._next_cut_ms = 0
        elif not self._next_cut_ms:
            self._next_cut_ms = now_ms + round(every_ms)
        elif now_ms >= self._next_cut_ms:
            self.disconnect(self.faults.disconnect_route)
            self._next_cut_ms = now_ms + round(every_ms)

    async def _send_tickers(self) -> None:
        while True:
            await self.clock.sleep_wall(0.25)
            now_ms = self.clock.now_ms()
            for stream in self._feed.tickers_due(now_ms):
                indices = range(len(self.symbols)) if stream.index < 0 else [stream.index]
                indices = [index for index in indices if self.exchange.is_traded(index, now_ms)]
                if not indices:
                    continue
                days = await self._off_loop(self._days, list(indices), now_ms)
                self._feed.send_ticker(stream, days, now_ms)

    async def _ping(self) -> None:
        """Ping every connection every `ping_s`; cut the ones whose last pong is too old."""
        while True:
            await asyncio.sleep(min(1.0, self._ping_s / 4))
            wall_s = time.monotonic()
            for connection in list(self._connections):
                if wall_s - connection.pong_wall_s > self._pong_timeout_s:
                    log.info("no pong from %s: disconnected", connection.name)
                    connection.cut()
                elif wall_s - connection.ping_wall_s >= self._ping_s:
                    connection.ping_wall_s = wall_s
                    connection.ping(str(self.clock.now_ms()).encode())
                    self.stats.frames["ping"] += 1

    async def _off_loop(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._worker, partial(function, *arguments))

    def _compute_hour(self, hour: int) -> Hour:
        self.exchange.expected_funding(hour)
        details = self.exchange.world.details(range(len(self.symbols)), hour)
        for index in list(self.exchange.courses):
            # Kept, so that the loop that sends finds it done when it takes up the hour.
            self.exchange.followed(index, details[index])
        return Hour(details)

    def _minutes_since(self, start_ms: int, now_ms: int) -> list[Any]:
        first, count = start_ms // MINUTE_MS, (now_ms - start_ms) // MINUTE_MS
        return [self.exchange.minutes(index, first, count) for index in range(len(self.symbols))]

    def _days(self, indices: list[int], now_ms: int) -> dict[int, Candle]:
        return {index: self.exchange.day(index, now_ms) for index in indices}

    # ---- requests

    async def _request(self, request: web.Request) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")
        route, rest = (parts[0], parts[1:]) if parts[0] in ROUTES else (UNROUTED, parts)
        if rest and rest[0] in ("ws", "stream"):
            return await self._stream_socket(request, route, rest[0] == "stream", rest[1:])
        if request.path.rstrip("/") == "/ws-fapi/v1":
            return await self._api_socket(request)
        # What is signed is the text as it was sent, so it is taken from the path as it came.
        query = request.raw_path.partition("?")[2]
        try:
            body = (await request.read()).decode()
        except UnicodeDecodeError:
            return web.Response(status=400, text="a form is expected here")
        params = {**dict(parse_qsl(body, True)), **dict(parse_qsl(query, True))}
        asked = _Asked(
            request.method,
            request.path,
            params,
            request.headers.get("x-mbx-apikey"),
            signed_text(query, body),
            request.remote or "?",
        )
        started_s = time.monotonic()
        answer, fault = await self._answered(asked)
        taken_ms = (time.monotonic() - started_s) * 1000
        if answer is None:
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=500)
        if fault is not None and fault.kind == "torn":
            return await self._torn(request, answer)
        headers = {**answer.headers, "server": "nginx", "x-response-time": f"{taken_ms:.0f}ms"}
        return web.Response(status=answer.status, body=answer.body, content_type=answer.content_type, headers=headers)

    async def _answered(self, asked: "_Asked") -> tuple[Answer | None, RestFault | None]:
        """The answer as the exchange gives it now, None where it gives none, and the fault that is behind it."""
        exempt = self.private.knows(asked.method, asked.path) and self.private.is_throttle_exempt(
            asked.method, asked.path, asked.params
        )
        fault = self._schedule.rest_fault(asked.path, self._rng.random, asked.method, asked.via, exempt)
        if fault is not None:
            self.stats.rest_faults[fault.kind] += 1
        if fault is not None and fault.kind == "slow":
            await asyncio.sleep(fault.delay_s)
        if fault is not None and fault.kind not in _ANSWERED_TRULY:
            self._count(asked)
            answer = None if fault.kind == "refused" else failure(fault, asked.address, self.clock.now_ms())
        else:
            answer = await self._true_answer(asked)
            if fault is not None and fault.kind == "late":
                await asyncio.sleep(fault.delay_s)
            elif fault is not None and fault.kind == "lost":
                answer = None
            elif fault is not None and fault.kind.endswith("_taken"):
                answer = failure(fault, asked.address, self.clock.now_ms())
        if answer is not None:
            self.stats.answers[answer.status] += 1
            self.requested.append((self.clock.now_ms(), asked.path, answer.status))
        return answer, fault

    async def _true_answer(self, asked: "_Asked") -> Answer:
        if not self.private.knows(asked.method, asked.path):
            return await self._off_loop(
                self._rest.answer, asked.path, asked.params, asked.address, self.clock.now_ms(), asked.method
            )
        self._count(asked)
        weight = self.private.weight(asked.method, asked.path, asked.params)
        refused, headers = self._rest.charge(asked.address, weight, self.clock.now_ms())
        if refused is not None:
            return refused
        late = await self._engine_delay(asked)
        answer = late or self.private.call(
            asked.method, asked.path, asked.params, key=asked.key, signed_text=asked.signed
        )
        # The answer and the events of an order race each other: once this one is first, once that one.
        if self._rng.random() < 0.5:
            for connection in list(self._connections):
                connection.flush()
        return Answer(answer.status, answer.body, {**headers, **answer.headers}, answer.content_type)

    async def _engine_delay(self, asked: "_Asked") -> Answer | None:
        """Wait for a slow matching engine; its refusal if the request is too old by then."""
        slow = self._schedule.on(SlowEngine)
        if not slow or asked.method == "GET" or asked.path not in _ENGINE_PATHS:
            return None
        await self.clock.sleep(max(each.delay_s for each in slow))
        stamp, window = (asked.params.get(name, "") for name in ("timestamp", "recvWindow"))
        if stamp.isdecimal() and self.clock.now_ms() - int(stamp) > (int(window) if window.isdecimal() else 5_000):
            return refusal(400, -5028, "Timestamp for this request is outside of the ME recvWindow.")
        return None

    def _count(self, asked: "_Asked") -> None:
        known = self._rest.knows(asked.path) or self.private.knows(asked.method, asked.path)
        self.stats.requests[asked.path if known else "unknown"] += 1

    async def _torn(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        """The first half of the body, then the end of the connection."""
        headers = {"content-type": answer.content_type, "content-length": str(len(answer.body))}
        response = web.StreamResponse(status=answer.status, headers=headers)
        await response.prepare(request)
        await response.write(answer.body[: len(answer.body) // 2])
        if request.transport is not None:
            request.transport.close()
        return response

    async def _sim_state(self, request: web.Request) -> web.Response:
        state = {
            "time": self.clock.now_ms(),
            "speed": self.clock.speed,
            "seed": self.seed,
            "edge_bp": self.exchange.world.edge_bp,
            "symbols": list(self.symbols),
            "stats": self.stats.as_dict(),
        }
        return _json(state)

    async def _sim_candles(self, request: web.Request) -> web.Response:
        """The truth: ?symbol=&interval=&from=&to=, closed candles with from <= open time < to."""
        query = request.query
        index = self.exchange.index_of.get(query.get("symbol", ""))
        interval = query.get("interval", "1m")
        try:
            from_ms, to_ms = int(query["from"]), int(query["to"])
        except (KeyError, ValueError):
            return _json({"error": "from and to are open times in milliseconds"}, 400)
        if index is None or interval not in INTERVALS:
            return _json({"error": "unknown symbol or interval"}, 400)
        if (to_ms - from_ms) // INTERVAL_MS.get(interval, DAY_MS) > MOST_CANDLES:
            return _json({"error": f"more than {MOST_CANDLES} candles"}, 400)
        now_ms = self.clock.now_ms()
        return _json(await self._off_loop(self.exchange.closed_candles, index, interval, from_ms, to_ms, now_ms))

    async def _sim_faults(self, request: web.Request) -> web.Response:
        """GET: the faults as they are. POST: set fields; {"disconnect": route or "all"} cuts now; {"clear": true};
        {"add": [{"name": "silence", "for_s": 30, …}]} adds incidents."""
        if request.method == "POST":
            try:
                changes = msgspec.json.decode(await request.read(), type=dict[str, Any])
                route = where(changes.pop("disconnect")) if "disconnect" in changes else None
                added = msgspec.convert(changes.pop("add", []), list[dict[str, Any]])
                incidents = [incident(fields) for fields in added]
                if changes.pop("clear", False):
                    changes = {**msgspec.structs.asdict(Faults()), **changes}
                changed(self.faults, changes)
            except (ValueError, msgspec.MsgspecError) as error:
                return _json({"error": str(error)}, 400)
            self.faults.incidents += incidents
            if route is not None:
                self.disconnect(route)
        return _json(msgspec.structs.asdict(self.faults))

    async def _sim_script(self, request: web.Request) -> web.Response:
        """GET: the paths. POST: rows as a script file holds them. DELETE: ?symbol= (or all) back to the world."""
        try:
            if request.method == "POST":
                return _json({"from": self.script(read_script(await request.read()))})
            if request.method == "DELETE":
                courses = self.exchange.courses
                self.unscript(
                    [request.query["symbol"]] if "symbol" in request.query else map(self.symbols.__getitem__, courses)
                )
        except ValueError as error:
            return _json({"error": str(error)}, 400)
        return _json({self.symbols[index]: course.paths for index, course in self.exchange.courses.items()})

    async def _sim_truth(self, request: web.Request) -> web.Response:
        """Everything of the account ?key=: balances, positions, orders, fills, income, requests that were seen."""
        key = request.query.get("key", "")
        if not self.private.has_account(key):
            return _json({"error": f"no account has the key {key!r}"}, 400)
        return _json(self.private.truth(key))

    async def _sim_accounts(self, request: web.Request) -> web.Response:
        """GET: the keys of the accounts. POST: one more (key, secret or public_key, balance, can_trade …)."""
        if request.method == "POST":
            try:
                fields = msgspec.json.decode(await request.read(), type=_NewAccount)
                self.private.add_account(**msgspec.structs.asdict(fields))
            except (ValueError, msgspec.MsgspecError) as error:
                return _json({"error": str(error)}, 400)
        return _json(list(self.private.engine.accounts))

    # ---- sockets

    async def _stream_socket(
        self, request: web.Request, route: str, combined: bool, names: list[str]
    ) -> web.StreamResponse:
        if combined:
            asked = request.query.get("streams", "")
            if "," in asked:
                return web.Response(status=400, text="streams are separated by /")
            names = asked.split("/")
        keys: list[tuple[str, list[str] | None]] = []
        for name, value in request.query.items():
            if name == "listenKey":
                keys.append((value, None))
            elif name == "events" and keys:
                keys[-1] = (keys[-1][0], value.split("/"))
        return await self._socket(request, route, combined, [name for name in names if name], keys)

    async def _api_socket(self, request: web.Request) -> web.StreamResponse:
        address = request.remote or "?"
        refused, _ = self._rest.charge(address, HANDSHAKE_WEIGHT, self.clock.now_ms())
        if refused is not None:
            return web.Response(status=refused.status, body=refused.body, headers=refused.headers)
        return await self._socket(request, WS_API, False, [], [])

    async def _socket(
        self,
        request: web.Request,
        route: str,
        combined: bool,
        names: list[str],
        keys: list[tuple[str, list[str] | None]],
    ) -> web.StreamResponse:
        socket = web.WebSocketResponse(
            autoping=False, autoclose=False, compress=False, max_msg_size=1 << 16, timeout=1.0
        )
        if not socket.can_prepare(request).ok:
            return web.Response(status=400, text="a WebSocket handshake is expected here")
        await socket.prepare(request)
        transport = request.transport
        self.stats.connections += 1
        self.stats.connections_by_route[route] += 1
        if transport is None or self.faults.hangs_up(route):
            if transport is not None:
                transport.close()
            return socket
        number = self.stats.connections
        connection = _Connection(self, socket, transport, f"{route} {number}", route, combined)
        if route == WS_API:
            connection.session = Session(
                partial(self._ask, connection, request.remote or "?"),
                self.private.authenticate,
                self.clock.now_ms,
                tells_limits=request.query.get("returnRateLimits", "true").lower() != "false",
            )
        for half_open in self._schedule.on(HalfOpen):
            if half_open.on(route):
                connection.meet(half_open)
        self._connections.add(connection)
        self.stats.open_connections += 1
        try:
            # Unknown names in the path are tolerated, as are more than the limit: only the first ones count.
            connection.subscribe(names[:MOST_STREAMS])
            for listen_key, events in keys[:MOST_STREAMS]:
                connection.hear(listen_key, events)
            await connection.serve()
        finally:
            connection.leave()
            self._connections.discard(connection)
            self.stats.open_connections -= 1
        return socket

    async def _ask(
        self,
        connection: "_Connection",
        address: str,
        method: str,
        path: str,
        params: dict[str, str],
        *,
        key: str | None,
        signed: str | None,
    ) -> Answer | None:
        """A request of the WebSocket API."""
        answer, fault = await self._answered(_Asked(method, path, params, key, signed, address, "ws_api"))
        if fault is not None and fault.kind in ("refused", "empty", "torn"):
            # Half an answer and none are the same in a protocol of whole messages; a refusal ends the connection.
            if fault.kind == "refused":
                connection.cut()
            return None
        return answer

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Let this be done whatever becomes of the connection that asked for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)


class _NewAccount(msgspec.Struct, forbid_unknown_fields=True):
    key: str
    secret: str = ""
    public_key: str = ""
    balance: str = ""
    can_trade: bool = True
    can_withdraw: bool = False
    bound_to_address: bool = True


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, by whichever door it came in. `signed` None: who sends it is known."""

    method: str
    path: str
    params: dict[str, str]
    key: str | None
    signed: str | None
    address: str
    via: Literal["rest", "ws_api"] = "rest"


class _Connection:
    """One client. Frames are collected by `put` and written by `flush`, at most once per tick."""

    def __init__(
        self,
        owner: SimulatedExchange,
        socket: web.WebSocketResponse,
        transport: asyncio.Transport,
        name: str,
        route: str,
        combined: bool,
    ) -> None:
        self.name = name
        self.route = route
        self.combined = combined
        self.subscriptions: dict[str, Stream | None] = {}
        self.since_ms = owner.clock.now_ms()
        self.ping_wall_s = self.pong_wall_s = time.monotonic()
        self._owner = owner
        self._socket = socket
        self._transport = transport
        self._frames: list[bytes] = []
        self._held: list[list[Any]] = []
        """Frames to be sent after so many others: [how many, frame]."""
        self._unsent = bytearray()
        self._sent_wall_s = time.monotonic()
        self._received: deque[float] = deque(maxlen=CONTROL_PER_S)
        self.session: Session | None = None
        """Of a connection of the WebSocket API."""
        self._control = Control(self)
        self._ending: asyncio.Task[bool] | None = None
        self._is_gone = False
        """Half open: nothing is sent or answered any more, and nothing is closed."""

    def put(self, frame: bytes) -> None:
        if self._is_gone:
            return
        if self._held or self._owner._schedule.any_on(Reorder):
            self._put_out_of_order(frame)
        else:
            self._frames.append(frame)

    def _put_out_of_order(self, frame: bytes) -> None:
        """Hold this frame back, or send it and those that were held back for long enough."""
        for reorder in self._mine(Reorder):
            if self._owner._rng.random() < reorder.share:
                self._held.append([self._owner._rng.randint(1, reorder.by), frame])
                self._owner.stats.frames["reordered"] += 1
                return
        self._frames.append(frame)
        for entry in self._held:
            entry[0] -= 1
        self._frames += [held for left, held in self._held if left <= 0]
        self._held = [entry for entry in self._held if entry[0] > 0]

    def flush(self) -> None:
        """Write what was collected. A transport with too much unread is cut."""
        if self._is_gone or self._transport.is_closing():
            self._frames.clear()
            return
        slow = self._mine(SlowSending)
        if slow or self._unsent:
            self._flush_slowly(slow)
            return
        self._sent_wall_s = time.monotonic()
        if not self._frames:
            return
        data = b"".join(self._frames)
        self._frames.clear()
        self._write(data)

    def _flush_slowly(self, slow: list[SlowSending]) -> None:
        for frame in self._frames:
            self._unsent += frame
        self._frames.clear()
        now_s = time.monotonic()
        passed_s, self._sent_wall_s = now_s - self._sent_wall_s, now_s
        may = min((round(passed_s * each.bytes_per_s) for each in slow), default=len(self._unsent))
        data = bytes(self._unsent[:may])
        del self._unsent[:may]
        self._write(data)

    def _write(self, data: bytes) -> None:
        self._transport.write(data)
        self._owner.stats.bytes_sent += len(data)
        if self._transport.get_write_buffer_size() + len(self._unsent) > self._owner._backlog_bytes:
            log.warning("%s reads too slowly: disconnected", self.name)
            self._owner.stats.slow_readers_cut += 1
            self.cut()

    def meet(self, incident: Disconnect | End | HalfOpen) -> None:
        """What befalls this connection now."""
        if isinstance(incident, End):
            self.end("maintenance")
        elif isinstance(incident, HalfOpen):
            self._is_gone = True
            self.leave()
        elif incident.mid_frame:
            self.flush()
            self.leave()
            self._transport.write(framed(b'{"e":"bookTicker","u":11671659685961,"s":"BTCUSDT"}' * 4)[:60])
            self._transport.close()  # in order, so that the half of a frame arrives
        else:
            self.cut()

    def _mine(self, kind: type[_OnRoute]) -> list[_OnRoute]:
        return [incident for incident in self._owner._schedule.on(kind) if incident.on(self.route)]

    def subscribe(self, names: list[str]) -> None:
        """Take streams. What is unknown or belongs to another route is remembered and stays silent."""
        for name in names:
            if name in self.subscriptions:
                continue
            if self._hears_accounts and self._owner._streams.find(name) is None:
                self.hear(name, None)
                continue
            stream = self._owner._streams.find(name)
            # Names of no stream are counted together: a client could send any number of them.
            self._owner.stats.subscriptions["unknown" if stream is None else name] += 1
            if stream is not None and not self._delivers(stream):
                stream = None
            self.subscriptions[name] = stream
            if stream is not None:
                self._owner._streams.add(stream, self)

    def hear(self, listen_key: str, events: list[str] | None) -> None:
        """Take the events of an account, of these types only where they are named."""
        self.subscriptions[listen_key] = None
        self._owner.stats.subscriptions["listen key"] += 1
        if self._hears_accounts:
            self._owner._user_streams.add(listen_key, self, events)

    def unsubscribe(self, names: list[str]) -> None:
        for name in names:
            stream = self.subscriptions.pop(name, None)
            if stream is not None:
                self._owner._streams.remove(stream, self)
            else:
                self._owner._user_streams.remove(name, self)

    def leave(self) -> None:
        """Give up every subscription."""
        self.unsubscribe(list(self.subscriptions))

    def cut(self) -> None:
        """End the connection without a closing handshake."""
        self.leave()
        self._transport.abort()

    def end(self, reason: str) -> None:
        """End the connection with a close frame."""
        if self._ending is None:
            self.flush()
            self.leave()
            self._ending = asyncio.ensure_future(
                self._socket.close(code=WSCloseCode.GOING_AWAY, message=reason.encode())
            )

    def ping(self, payload: bytes) -> None:
        self._answer(framed(payload, PING))

    async def serve(self) -> None:
        """Answer what the client sends until one side ends the connection."""
        while True:
            message = await self._socket.receive()
            for slow in self._mine(SlowReading):
                await asyncio.sleep(slow.delay_s)
            if message.type not in (WSMsgType.PING, WSMsgType.PONG, WSMsgType.TEXT, WSMsgType.BINARY):
                break
            if self._is_gone:
                continue
            if message.type is WSMsgType.PONG:
                self.pong_wall_s = time.monotonic()
                continue
            if self.session is None and self._too_many():
                return
            if message.type is WSMsgType.PING:
                self._answer(framed(message.data, PONG))
            elif message.type is WSMsgType.TEXT and self.session is not None:
                self._owner.spawn(self._reply(self.session, message.data))
            elif message.type is WSMsgType.TEXT:
                self._answer(framed(self._control.reply(message.data).encode()))
        while self._is_gone and not self._transport.is_closing():
            await self._owner.clock.sleep_wall(TICK_WALL_S)
        if self._ending is not None:
            await self._ending

    async def _reply(self, session: Session, text: str) -> None:
        reply = await session.reply(text)
        if reply is not None:
            self._answer(framed(reply))

    @property
    def _hears_accounts(self) -> bool:
        """Accounts are heard on their own route only; elsewhere their listen keys stay silent."""
        return self.route == "private" or (self.route == UNROUTED and self._owner._unrouted_all)

    def _answer(self, frame: bytes) -> None:
        """Send this now, behind what was collected."""
        if not self._is_gone:
            self._frames.append(frame)
            self.flush()

    def _delivers(self, stream: Stream) -> bool:
        if self.route == UNROUTED:
            return stream.route == "public" or self._owner._unrouted_all
        return stream.route == self.route

    def _too_many(self) -> bool:
        """More than ten messages in a second: the connection is cut."""
        now_s = time.monotonic()
        full = len(self._received) == CONTROL_PER_S and now_s - self._received[0] < 1.0
        self._received.append(now_s)
        if full:
            log.warning("%s sent more than %d messages in a second: disconnected", self.name, CONTROL_PER_S)
            self.cut()
        return full


def _json(body: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json")
