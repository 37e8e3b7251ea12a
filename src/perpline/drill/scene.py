"""The scene of a drill: an exchange in this process, workers as child processes, proxies before database and Redis.

The scene prepares, lets a drill do its worst, waits until everything is well again, and collects the facts: candles,
orders and fills from the exchange's own account, rows by SQL, messages from Redis. Nothing of what is judged is taken
from what a worker says of itself but the health that `seconds_to_heal` is measured by.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import parse_qs, urlsplit, urlunsplit

import aiohttp
import apsw

from perpline.bootstrap import open_store
from perpline.common.clock import SystemClock
from perpline.common.config import masked_url
from perpline.common.errors import Unavailable
from perpline.domain.order import Leg, read_client_id
from perpline.drill.forge import Forge, new_forge
from perpline.drill.proxy import Dial, Proxy
from perpline.drill.score import Asked, CandleKey, Decided, Down, Facts, Numbers, Told
from perpline.drill.servers import NoServer, PostgresServer, ValkeyServer
from perpline.drill.worker import WorkerFailed, WorkerProcess
from perpline.simulation.faults import Faults, changed
from perpline.simulation.incidents import AnyIncident
from perpline.simulation.server import SimulatedExchange
from perpline.storage.symbols import Action, SymbolChange, store_symbols
from perpline.trading.mode import Mode, set_mode

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
FIRST_HOUR_MS: Final = 1_795_132_800_000
"""2026-11-20 00:00 UTC; a drill plays in one of the 48 hours from there on."""
LENGTHS: Final = {"1m": MINUTE_MS, "15m": 15 * MINUTE_MS, "1h": HOUR_MS}
HISTORY: Final = {"1m": 240, "15m": 92, "1h": 92}
"""Candles from before the first decision that must be stored too: a first start fetches 96, and one that comes after
the death of the first one, which had stored nothing, may come when some more have closed."""
KEY: Final = "sim-key"
KEYS: Final = {"PERPLINE_BINANCE_API_KEY": KEY, "PERPLINE_BINANCE_API_SECRET": "sim-secret"}
"""Those of the simulated exchange's account. For the worker's environment alone: they stand in no file."""
LOOK_EVERY_S: Final = 0.1
START_TAKES_S: Final = 3.5
"""What a worker, or two of them, need until they are ready where others are busy too, wall seconds."""
WHOLE_LIMIT_S: Final = 8.0
OPEN_GAPS: Final = "SELECT id FROM gaps WHERE series LIKE 'candles_%' AND repaired_at IS NULL"
HEAL_LIMIT_S: Final = 12.0
SETTLED_MS: Final = 8_000
NEVER_MS: Final = 33_000
"""Market time after the last T that counts: when all of it is decided, and the closes of longer candles are heard too;
and when what was not decided never will be."""

Kind = Literal["sqlite", "postgres"]
BusKind = Literal["memory", "redis"]


class CannotBeDone(Exception):
    """Something that the drill needs is not here; the text says what."""


@dataclass
class Servers:
    """The PostgreSQL that drills make their databases on and how a Redis is had, started when first wanted.

    `database_url` and `redis_url` name servers of the user's; without, his machine's binaries are used.
    """

    database_url: str | None = None
    redis_url: str | None = None
    no_postgres: str = ""
    """Why no PostgreSQL can be had."""
    _forge: Forge | None = None
    _postgres: PostgresServer | None = None
    _databases: int = 0
    _starting: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def forge(self) -> Forge:
        """Where processes are started."""
        if self._forge is None:
            self._forge = new_forge()
        return self._forge

    async def check(self) -> None:
        """Raises Unavailable where a server that the user has named cannot be used."""
        for url, asked in ((self.database_url, _ask_postgres), (self.redis_url, _ask_redis)):
            if url is None:
                continue
            try:
                await asked(url)
            except Exception as error:  # whatever is wrong with it, two clients have two dozen names for it
                reason = str(error) or "it did not answer in time"
                raise Unavailable(f"no drill can use {masked_url(url)}: {' '.join(reason.split())}") from error

    async def new_database(self) -> tuple[str, Dial]:
        """The URL of a database without tables, and how its server is reached. Raises CannotBeDone."""
        server = await self.postgres()
        if server is None:
            raise CannotBeDone(f"no PostgreSQL here: {self.no_postgres}; --database names a server")
        self._databases += 1
        name = f"perpline_drill_{random.SystemRandom().getrandbits(40):x}_{self._databases}"
        await _postgres_rows(server, f'CREATE DATABASE "{name}"')
        return _with_database(server, name), _dial(server)

    async def postgres(self) -> str | None:
        """The URL of the server, started where none is named; None where none can be had, as `no_postgres` says."""
        if self.database_url is not None:
            return self.database_url
        async with self._starting:
            await asyncio.to_thread(self._start_postgres)
        return None if self._postgres is None else self._postgres.url()

    async def drop_database(self, url: str) -> None:
        server = self.database_url or (self._postgres.url() if self._postgres is not None else None)
        name = urlsplit(url).path.removeprefix("/")
        if server is not None:
            with suppress(Exception):  # a server that has died with its databases owes us nothing
                await _postgres_rows(server, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    async def close(self) -> None:
        if self._forge is not None:
            await self._forge.close()
        if self._postgres is not None:
            await asyncio.to_thread(self._postgres.remove)

    def _start_postgres(self) -> None:
        if self._postgres is not None or self.no_postgres:
            return
        try:
            server = PostgresServer()
        except (NoServer, OSError) as error:
            self.no_postgres = str(error)
            return
        server.start()
        self._postgres = server


class Scene:
    """What a drill may touch. Made by `open_scene`."""

    def __init__(
        self, exchange: SimulatedExchange, rng: random.Random, folder: Path, session: aiohttp.ClientSession
    ) -> None:
        self.exchange = exchange
        self.rng = rng
        self.folder = folder
        self.workers: list[WorkerProcess] = []
        self.database_proxies: list[Proxy] = []
        """One for each worker, with PostgreSQL."""
        self.bus_proxies: list[Proxy] = []
        """One for each worker, with Redis."""
        self.expected: dict[str, tuple[int, int]] = {}
        """First and last T by symbol. A drill may change it where contracts come and go."""
        self.down: list[Down] = []
        self.young: set[str] = set()
        """Contracts with too little history for the model: `skipped_warmup` is the right answer for them."""
        self.trouble: list[str] = []
        self.first = 0
        """The first T that counts: the next one after every worker was ready."""
        self.database_url = ""
        """The database itself, not a proxy."""
        self.redis_url = ""
        self.slot = "champion"
        self.trades = False
        self.status: dict[str, Any] = {}
        """The last words of the (last) worker."""
        self.session = session
        self._announced: list[Told] = []
        self._unwell_at = 0.0
        self.unwell: list[str] = []
        """What was wrong when it last was not well."""
        self._over_at: float | None = None

    # ---- what a drill says

    @property
    def worker(self) -> WorkerProcess:
        return self.workers[0]

    @property
    def database(self) -> Proxy:
        return self.database_proxies[0]

    @property
    def redis(self) -> Proxy:
        return self.bus_proxies[0]

    @property
    def now(self) -> int:
        """The exchange's time, ms."""
        return self.exchange.clock.now_ms()

    def happens(self, *incidents: AnyIncident) -> None:
        for incident in incidents:
            self.exchange.happens(incident)

    def faults(self, **changes: object) -> None:
        changed(self.exchange.faults, changes)

    def calm(self) -> None:
        """No fault is on any more."""
        clean = Faults(seed=self.exchange.faults.seed)
        changed(self.exchange.faults, {name: getattr(clean, name) for name in clean.__struct_fields__})

    async def market(self, seconds: float) -> None:
        """Let so many market seconds pass."""
        await self.exchange.clock.sleep(seconds)

    async def wall(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def minutes(self, count: int, second: float = 15.0) -> None:
        """Until so many more minutes have closed, and this second of the one after."""
        now = self.now
        target = now - now % MINUTE_MS + count * MINUTE_MS + round(second * 1000)
        await self.market((target - now) / 1000)

    async def second(self, second: float) -> None:
        """Until the market's clock shows this second of a minute."""
        await self.market((round(second * 1000) - self.now) % MINUTE_MS / 1000)

    async def until(self, condition: Callable[[], object], within_s: float, what: str) -> None:
        """Raises WorkerFailed where that does not come true in so many wall seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while not condition():
            if loop.time() > deadline:
                raise WorkerFailed(f"in {within_s:g} s it did not come to it: {what}")
            await asyncio.sleep(0.02)

    @asynccontextmanager
    async def without(self, why: str, symbol: str = "") -> AsyncIterator[None]:
        """Meanwhile nobody can decide (on this symbol), by definition: the process is down, the exchange, or what every
        decision needs."""
        since = self.now
        try:
            yield
        finally:
            self.down.append(Down(why, since, self.now, symbol))

    async def follow(self, action: Action, symbol: str) -> None:
        """As `perpline symbols add` and `remove` do."""
        store = open_store(self.database_url)
        await store.open()
        try:
            row = SymbolChange(symbol=symbol, action=action, changed_at=self.now, by="perpline drill", reason="a drill")
            await store_symbols(store, [row])
        finally:
            await store.close()

    async def leader(self) -> WorkerProcess:
        """The worker that leads. Raises WorkerFailed where none does."""
        for worker in self.workers:
            status = await worker.status(self.session)
            if status is not None and status["leadership"]["leads"]:
                return worker
        raise WorkerFailed("no worker leads")

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What a SELECT that both databases understand finds, past every proxy."""
        if self.database_url.startswith("sqlite"):
            return await asyncio.to_thread(_sqlite_rows, self.database_url.removeprefix("sqlite:///"), query)
        return [tuple(row) for row in await _postgres_rows(self.database_url, query)]

    async def decided(self, minute: int) -> int:
        """How many symbols have a row for T = `minute` that is no skip."""
        [[count]] = await self.rows(
            f"SELECT count(*) FROM signals WHERE slot = '{self.slot}' AND close_time = {minute} "
            "AND (status NOT LIKE 'skipped%' OR status = 'skipped_ood' "
            f"OR status = 'skipped_warmup' AND symbol IN ({', '.join(map(repr, ['', *self.young]))}))"
        )
        return int(count)

    def expected_at(self, minute: int) -> int:
        return sum(first <= minute <= last for first, last in self.expected.values())

    # ---- around a drill

    async def begin(self) -> None:
        """Wait until every worker is ready and its windows are whole; what counts begins with the next T.

        A machine that is busy may give up a window at this speed, which is fetched soon after; no drill is about that.
        """
        for worker in self.workers:
            await worker.ready(self.session)
        loop = asyncio.get_running_loop()
        until = loop.time() + WHOLE_LIMIT_S
        while loop.time() < until:
            if not await self.rows(OPEN_GAPS):
                break
            await asyncio.sleep(0.1)
        self.counts_from_now()

    def counts_from_now(self) -> None:
        now = self.now
        self.first = now - now % MINUTE_MS + MINUTE_MS
        self.expected = {symbol: (self.first, 1 << 60) for symbol in self.exchange.symbols}

    async def watch(self) -> None:
        """Look again and again whether every worker is well and every minute decided; remember when it last was not."""
        loop = asyncio.get_running_loop()
        decided: set[int] = set()
        while True:
            unwell: list[str] = []
            for worker in self.workers:
                if worker.is_meant_to_run and not worker.is_alive:
                    unwell.append("a worker ended by itself")
                elif worker.is_meant_to_run:
                    unwell += await worker.trouble(self.session)
            minute = (self.now - NEVER_MS) // MINUTE_MS * MINUTE_MS
            if not unwell and self.first <= minute and minute not in decided:
                if await self._all_decided(minute):
                    decided.add(minute)
                else:
                    unwell.append(f"T = {minute} is not decided")
            if unwell:
                self._unwell_at, self.unwell = loop.time(), unwell
            await asyncio.sleep(LOOK_EVERY_S)

    async def heals(self, minutes: int) -> tuple[int, float | None]:
        """Wait until it is well, and for so many whole minutes more; the last T that counts, and the seconds it took
        (None: it is not well)."""
        loop = asyncio.get_running_loop()
        over_at = loop.time()
        now = self.now
        until = now - now % MINUTE_MS + minutes * MINUTE_MS
        speed = self.exchange.clock.speed
        while True:
            calm_for = loop.time() - max(self._unwell_at, over_at)
            if self.now > until + SETTLED_MS and calm_for > 3 * LOOK_EVERY_S:
                if self.now > until + NEVER_MS or await self._all_decided(until):
                    break
                await asyncio.sleep(LOOK_EVERY_S)
            if any(worker.is_meant_to_run and not worker.is_alive for worker in self.workers):
                return until, None
            if loop.time() - over_at > HEAL_LIMIT_S + (minutes * MINUTE_MS + NEVER_MS) / 1000 / speed:
                self.trouble += [f"not well: {each}" for each in self.unwell[:3]]
                return until, None
            await asyncio.sleep(0.02)
        return until, round(max(0.0, self._unwell_at - over_at), 2)

    async def _all_decided(self, minute: int) -> bool:
        with suppress(Exception):  # a database that cannot be asked at this instant is asked at the next
            return await self.decided(minute) >= self.expected_at(minute)
        return False

    async def end(self) -> None:
        """Stop every worker as a person would; what goes wrong then is trouble."""
        for worker in self.workers:
            if not worker.is_meant_to_run:
                continue
            if not worker.is_alive:
                self.trouble.append(f"a worker ended by itself: {worker.last_words()}")
                continue
            try:
                self.status = await worker.stop()
            except WorkerFailed as error:
                self.trouble.append(str(error))
                continue
            if failed := self.status.get("messages", {}).get("failed"):  # an inference worker hears none
                self.trouble.append(f"{failed} messages met a bug in a handler")

    async def facts(self, until: int, seconds_to_heal: float | None) -> Facts:
        told = await self._outbox()
        if self.redis_url:
            told += await self._streams()
            told += [each for each in self._announced if each.close_time >= self.first]
        decided = [
            Decided(*row)
            for row in await self.rows(
                f"SELECT symbol, close_time, status, signal_id, detail FROM signals WHERE slot = '{self.slot}' "
                f"AND close_time >= {self.first} ORDER BY close_time, symbol"
            )
        ]
        true, stored = self._true_candles(until), await self._stored_candles(until)
        truth = self.exchange.private.truth(KEY) if self.trades else {"requests": [], "orders": []}
        requests: Any = truth["requests"]
        orders: Any = truth["orders"]
        legs = [read_client_id(each["clientOrderId"]) for each in orders]
        return Facts(
            until=until,
            expected=self.expected,
            decided=decided,
            told=told,
            true_candles=true,
            stored_candles=stored,
            down=[*self.down, *(Down("too young", 0, until, symbol, "skipped_warmup") for symbol in self.young)],
            speed=self.exchange.clock.speed,
            asked=[
                Asked(each["client_id"], each["seen"], each["taken"])
                for each in requests
                if each["method"] == "POST" and each["client_id"]
            ],
            entries=[each.position_id for each in legs if each is not None and each.leg is Leg.ENTRY],
            books=await self._books() if self.trades else (),
            seconds_to_heal=seconds_to_heal,
            trouble=self.trouble,
        )

    async def listen(self) -> None:
        """Write down every signal that is announced on Redis, past the proxy."""
        from redis.asyncio import Redis

        client = Redis.from_url(self.redis_url, decode_responses=True)
        try:
            channels = client.pubsub()
            await channels.psubscribe("sig.*")
            async for message in channels.listen():
                if message["type"] == "pmessage" and message["channel"] not in ("sig.close", "sig.model", "sig.mode"):
                    said = json.loads(message["data"])
                    if said.get("type") == "signal" and said["slot"] == self.slot:
                        self._announced.append(Told("announced", said["sym"], said["T"], said["id"]))
        finally:
            await client.aclose()

    def _true_candles(self, until: int) -> dict[CandleKey, Numbers]:
        found: dict[CandleKey, Numbers] = {}
        for symbol, interval, start, end in self._stretches(until):
            for row in self.exchange.closed_candles(symbol, interval, start, end):
                open_time, o, h, low, c, volume, _, quote, trades, buy, buy_quote, _ = row
                numbers = (o, h, low, c, volume, quote, trades, buy, buy_quote)
                found[interval, symbol, int(open_time)] = tuple(map(float, numbers))
        return found

    async def _stored_candles(self, until: int) -> dict[CandleKey, Numbers]:
        found: dict[CandleKey, Numbers] = {}
        columns = "open, high, low, close, volume, quote_volume, trades, taker_buy_volume, taker_buy_quote_volume"
        for symbol, interval, start, end in self._stretches(until):
            rows = await self.rows(
                f"SELECT open_time, synthetic, {columns} FROM candles_{interval} "
                f"WHERE symbol = '{symbol}' AND open_time >= {start} AND open_time < {end}"
            )
            found |= {
                (interval, symbol, open_time): tuple(map(float, numbers))
                for open_time, synthetic, *numbers in rows
                if not synthetic
            }
        return found

    def _stretches(self, until: int) -> Iterable[tuple[str, str, int, int]]:
        """symbol, interval, first open time, and the one after the last."""
        for symbol, (first, last) in self.expected.items():
            for interval, length in LENGTHS.items():
                end = min(last, until)
                yield symbol, interval, first - first % length - HISTORY[interval] * length, end - end % length

    async def _outbox(self) -> list[Told]:
        rows = await self.rows(
            "SELECT symbol, close_time, payload, published_at FROM outbox "
            f"WHERE kind = 'signal' AND slot = '{self.slot}' AND close_time >= {self.first}"
        )
        return [
            Told("outbox", symbol, close_time, json.loads(payload)["id"], published_at is not None)
            for symbol, close_time, payload, published_at in rows
        ]

    async def _streams(self) -> list[Told]:
        from redis.asyncio import Redis

        found = []
        client: Any = Redis.from_url(self.redis_url, decode_responses=True)  # typed for bytes and texts at once
        async with client:
            for symbol in self.expected:
                for entry_id, fields in await client.xrange(f"sig:{self.slot}:{symbol}"):
                    close_time = int(entry_id.split("-")[0])
                    if close_time >= self.first:
                        found.append(Told("stream", symbol, close_time, fields["id"]))
        return found

    async def _books(self) -> list[str]:
        """How our tables differ from the exchange's account: positions, fills, resting stops."""
        truth: Any = self.exchange.private.truth(KEY)
        fills = await self.rows("SELECT symbol, trade_id, quantity FROM fills WHERE account = 'live'")
        ours = {(symbol, int(trade)): Decimal(quantity) for symbol, trade, quantity in fills}
        theirs = {(each["symbol"], int(each["id"])): Decimal(each["qty"]) for each in truth["fills"]}
        found = []
        if ours != theirs:
            found.append(f"fills differ: ours {len(ours)}, theirs {len(theirs)}")
        held = await self.rows(
            "SELECT symbol, side, quantity FROM positions WHERE account = 'live' AND status <> 'closed'"
        )
        our_positions = {symbol: Decimal(quantity) * int(side) for symbol, side, quantity in held if Decimal(quantity)}
        their_positions = {symbol: Decimal(each["quantity"]) for symbol, each in truth["positions"].items()}
        if our_positions != their_positions:
            found.append(f"positions differ: ours {_shown(our_positions)}, theirs {_shown(their_positions)}")
        protected = {each["symbol"] for each in truth["open_algo_orders"]}
        if naked := sorted(set(their_positions) - protected):
            found.append(f"positions without a stop at the exchange: {', '.join(naked)}")
        return found


@asynccontextmanager
async def open_scene(
    *,
    seed: int,
    name: str,
    folder: Path,
    servers: Servers,
    symbols: int,
    speed: float,
    database: Kind,
    bus: BusKind,
    each: Sequence[Mapping[str, object]],
    trades: bool,
    settings: Mapping[str, object],
    exchange_options: Mapping[str, Any],
) -> AsyncIterator[Scene]:
    """A scene with its workers, not yet started. Raises CannotBeDone where a server is missing."""
    rng = random.Random(f"{seed}/{name}")
    # A minute begins when the workers should be ready, and an hour one to three minutes later.
    start = (
        FIRST_HOUR_MS
        + (60 * rng.randrange(1, 48) - rng.randrange(1, 4)) * MINUTE_MS
        - round(START_TAKES_S * 1000 * speed)
    )
    async with AsyncExitStack() as stack:
        clock = SystemClock(speed, anchor_ms=start)
        exchange = await stack.enter_async_context(
            SimulatedExchange(
                seed=rng.randrange(1 << 30),
                symbols=symbols,
                clock=clock,
                faults=Faults(seed=rng.randrange(1 << 30)),
                **exchange_options,
            )
        )
        session = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1.0)))
        scene = Scene(exchange, rng, folder, session)
        scene.trades = trades
        database_dial, bus_dial = await _servers_of(scene, stack, servers, database, bus)
        for number, other in enumerate(each):
            own = folder / f"worker-{number + 1}"
            values: dict[str, object] = {
                "network": "custom",
                "binance_futures_ws_url": exchange.ws_url,
                "binance_futures_rest_url": exchange.http_url,
                "symbols": list(exchange.symbols),
                "clock_speed": speed,
                "data_dir": str(own),
                "status_port": 0,
                "log_format": "json",
                "database_url": scene.database_url,
                "slot": scene.slot,
            }
            if database_dial is not None:
                proxy = await stack.enter_async_context(Proxy(database_dial))
                scene.database_proxies.append(proxy)
                values["database_url"] = _through(scene.database_url, proxy.port)
            if bus_dial is not None:
                proxy = await stack.enter_async_context(Proxy(bus_dial))
                scene.bus_proxies.append(proxy)
                values["redis_url"] = _through_redis(scene.redis_url, proxy.port)
            worker = WorkerProcess(servers.forge, own, values | dict(settings) | dict(other), KEYS if trades else {})
            scene.workers.append(worker)
            stack.push_async_callback(worker.end)
        if trades:
            await _begin_trading(scene)
        yield scene


async def _servers_of(
    scene: Scene, stack: AsyncExitStack, servers: Servers, database: Kind, bus: BusKind
) -> tuple[Dial | None, Dial | None]:
    database_dial = bus_dial = None
    if database == "postgres":
        scene.database_url, database_dial = await servers.new_database()
        stack.push_async_callback(servers.drop_database, scene.database_url)
    else:
        scene.database_url = f"sqlite:///{scene.folder / 'perpline.db'}"
    if bus == "redis":
        if servers.redis_url is not None:
            scene.slot = f"drill_{random.SystemRandom().getrandbits(40):x}"  # others may be at work on this server
            scene.redis_url, bus_dial = servers.redis_url, _dial(servers.redis_url)
            stack.push_async_callback(_delete_slot, scene.redis_url, scene.slot)
        else:
            try:
                server = await asyncio.to_thread(ValkeyServer)
            except NoServer as error:
                raise CannotBeDone(f"no Redis here: {error}; --redis names a server") from None
            stack.callback(server.remove)
            await asyncio.to_thread(server.start)
            scene.redis_url, bus_dial = server.url, _unix(str(server.socket_path))
    return database_dial, bus_dial


async def _ask_postgres(url: str) -> None:
    await _postgres_rows(url, "SELECT 1")


async def _ask_redis(url: str) -> None:
    from redis.asyncio import Redis

    client: Any = Redis.from_url(url)
    async with client:
        await client.ping()


async def _delete_slot(url: str, slot: str) -> None:
    from redis.asyncio import Redis

    with suppress(Exception):  # the drill is judged already; what is left on a server that went away is little
        async with Redis.from_url(url) as client:
            for pattern in (f"sig:{slot}:*", f"last:{slot}:*"):
                async for key in client.scan_iter(pattern, count=1000):
                    await client.delete(key)


async def _begin_trading(scene: Scene) -> None:
    """Set the mode live before anybody looks, as `perpline mode` does."""
    store = open_store(scene.database_url)
    await store.open()
    try:
        await set_mode(
            store, [], Mode.LIVE, positions="keep", now=scene.now, by="perpline drill", reason="a drill", until=None,
            slot=scene.slot,
        )  # fmt: skip
    finally:
        await store.close()


def _sqlite_rows(path: str, query: str) -> list[tuple[Any, ...]]:
    connection = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
    connection.set_busy_timeout(5000)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


async def _postgres_rows(url: str, query: str) -> list[Any]:
    import asyncpg

    connection = await asyncpg.connect(url)
    try:
        return list(await connection.fetch(query))
    finally:
        await connection.close()


def _with_database(url: str, name: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"/{name}")) if parts.netloc else f"postgresql:///{name}?{parts.query}"


def _dial(url: str) -> Dial:
    """How the server of a URL is reached: by TCP, or over the Unix socket that its query (`host=`) or path names."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return _unix(parts.path)
    if parts.hostname:
        host, port = parts.hostname, parts.port or (5432 if parts.scheme == "postgresql" else 6379)
        return lambda: asyncio.open_connection(host, port)
    [folder] = parse_qs(parts.query)["host"]
    return _unix(f"{folder}/.s.PGSQL.5432")


def _unix(path: str) -> Dial:
    return lambda: asyncio.open_unix_connection(path)


def _through(url: str, port: int) -> str:
    """The same database by way of a proxy on this port."""
    parts = urlsplit(url)
    user = parts.username or parse_qs(parts.query).get("user", ["postgres"])[0]
    secret = f":{parts.password}" if parts.password else ""
    return f"postgresql://{user}{secret}@127.0.0.1:{port}{parts.path}"


def _through_redis(url: str, port: int) -> str:
    parts = urlsplit(url)
    login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return f"redis://{login}127.0.0.1:{port}{parts.path if parts.scheme != 'unix' else '/0'}"


def _shown(amounts: Mapping[str, Decimal]) -> str:
    return ", ".join(f"{symbol} {amount}" for symbol, amount in sorted(amounts.items())) or "none"
