"""The drills: each a function that makes one thing go wrong, with the sentence that is promised about it.

What holds for all of them and is judged at the end: every candle of the exchange is stored, every minute has one
decision, nothing is told or ordered twice, and no decision is skipped but while the process or the exchange is down.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from perpline.drill.child import POINTS
from perpline.drill.running import Drill, Play
from perpline.drill.scene import MINUTE_MS, CannotBeDone, Scene
from perpline.drill.worker import WorkerFailed
from perpline.simulation.incidents import (
    Delisted,
    Disconnect,
    End,
    ExpireListenKeys,
    HalfOpen,
    Halted,
    Huge,
    Listed,
    Quiet,
    Reorder,
    RestFault,
    RestKind,
    Silence,
    SlowEngine,
    SlowSending,
    Truncated,
    UserEvents,
    WrongClock,
)

LISTED_AFTER_S = 240.0
"""Market time; after the worker's first minutes."""

DRILLS: dict[str, Drill] = {}
"""Every drill by name, in the order in which they are listed and played."""


def drill(promise: str, **scene: Any) -> Callable[[Play], Play]:
    """Add the function to DRILLS under its name with dashes; `scene`: fields of Drill."""

    def add(play: Play) -> Play:
        name = play.__name__.replace("_", "-")
        DRILLS[name] = Drill(name=name, promise=promise, play=play, **scene)
        return play

    return add


# ---- connections

SLOWER: dict[str, Any] = {"speed": 12.0, "begins": (4.0, 28.0), "minutes_after": 1}
"""A connection waits one to two wall seconds before it is dialled again. These must not be minutes of market time, or
the mark prices are too old for a decision that, at the market's own speed, has fresh ones."""


@drill("A connection that is cut without a word costs nothing.", **SLOWER)
async def cut(scene: Scene) -> None:
    scene.exchange.disconnect(scene.rng.choice(["all", "market", "public"]))
    await scene.minutes(1, scene.rng.uniform(4, 28))
    scene.exchange.disconnect(scene.rng.choice(["all", "market"]))
    await scene.market(1)


@drill("A connection that ends in the middle of a frame costs nothing.", **SLOWER)
async def cut_in_mid_frame(scene: Scene) -> None:
    scene.happens(Disconnect(mid_frame=True))
    await scene.minutes(1, scene.rng.uniform(4, 28))
    scene.happens(Disconnect(mid_frame=True, route="market"))
    await scene.market(1)


@drill("A connection whose other side is gone without a word is replaced, and REST brings its closes until then.",
       settings={"silence_limit_s": 1.5})  # fmt: skip
async def half_open(scene: Scene) -> None:
    async with scene.without("the mark prices"):
        scene.happens(HalfOpen(route=scene.rng.choice(["market", "all"]), for_s=1))
        await scene.minutes(2)


@drill("A route that falls silent and answers pings costs no candle; without mark prices no signal is priced.",
       settings={"silence_limit_s": 1.5})  # fmt: skip
async def silent_route(scene: Scene) -> None:
    async with scene.without("the mark prices"):
        scene.happens(Silence(route="market", for_s=110))
        await scene.market(110)


@drill("Kline streams that fall silent cost nothing: REST brings their closes in time.")
async def silent_klines(scene: Scene) -> None:
    scene.happens(Silence(route="market", streams="*@kline_*", for_s=170))
    await scene.market(170)


@drill("One stream that falls silent among others that speak is noticed, and REST brings its closes.",
       settings={"first_data_deadline_s": 1.0})  # fmt: skip
async def silent_stream(scene: Scene) -> None:
    symbol = scene.rng.choice(scene.exchange.symbols).lower()
    scene.happens(Silence(streams=f"{symbol}@kline_*", for_s=110))
    await scene.market(110)


# Slower, and over a close: after the second failure in a row two to four wall seconds are waited, which must not be the
# whole of a minute.
@drill("An exchange that accepts connections and hangs up at once is dialled with patience; REST brings the closes.",
       speed=10.0, begins=(42.0, 50.0), minutes_after=1)  # fmt: skip
async def accept_then_hang_up(scene: Scene) -> None:
    async with scene.without("the mark prices"):
        scene.faults(hang_up=scene.rng.choice(["all", "market"]))
        scene.exchange.disconnect()
        known = scene.exchange.stats.connections
        await scene.until(lambda: scene.exchange.stats.connections > known, 5.0, "a connection that is hung up")
        scene.calm()


@drill("Subscriptions that are acknowledged and deliver nothing are named and asked for again; REST brings the closes.",
       settings={"first_data_deadline_s": 0.5})  # fmt: skip
async def acknowledge_and_nothing(scene: Scene) -> None:
    symbol = scene.rng.choice(scene.exchange.symbols).lower()
    async with scene.without("the mark prices"):
        scene.faults(ack_and_nothing=scene.rng.choice(["*@kline_*", f"{symbol}@*"]))
        scene.exchange.disconnect("market")
        await scene.minutes(2)
        scene.calm()


@drill("Connections that the exchange ends with a close frame, as after 24 hours, are opened again and cost nothing.",
       **SLOWER)  # fmt: skip
async def day_end(scene: Scene) -> None:
    scene.happens(End())
    await scene.minutes(1)


@drill("Connections are replaced, proven and without a gap, before the exchange cuts them at the end of their time.",
       speed=20.0, exchange={"cut_hours": 0.06}, settings={"connection_max_age_s": 150.0, "first_data_deadline_s": 1.0},
       begins=(0.0, 5.0))  # fmt: skip
async def rollover(scene: Scene) -> None:
    wanted = scene.exchange.stats.connections + 2
    await scene.until(lambda: scene.exchange.stats.connections >= wanted, 15.0, "connections that are replaced")
    await scene.minutes(1)


@drill("With two lanes the loss of either loses nothing, whenever it comes.", settings={"lanes": 2})
async def twin_lanes(scene: Scene) -> None:
    for _ in range(4):
        scene.exchange.disconnect(scene.rng.choice(["market", "all"]), at_most=1)
        await scene.wall(2.2)  # until the lane is back: the loss of both is another drill


@drill("With two lanes one that is half open loses nothing: the other one carries every stream.",
       settings={"lanes": 2, "silence_limit_s": 1.5})  # fmt: skip
async def half_open_lane(scene: Scene) -> None:
    scene.exchange.go_silent(scene.rng.choice(["market", "all"]), at_most=1)
    await scene.minutes(2)


@drill("An exchange that sends a few thousand bytes a second brings its closes late; REST is asked.")
async def slow_sending(scene: Scene) -> None:
    async with scene.without("the mark prices"):
        scene.happens(SlowSending(bytes_per_s=6_000, for_s=110))
        await scene.market(110)


# ---- frames


@drill("A closing frame that comes up to half a minute late is decided in time, and compared when it comes.")
async def late_close(scene: Scene) -> None:
    scene.faults(late_close_share=0.7, late_close_min_s=3.5, late_close_max_s=28.0)
    await scene.minutes(2)
    scene.calm()


@drill("A closing frame that never comes is fetched over REST, in time.")
async def missing_close(scene: Scene) -> None:
    scene.faults(missing_close_share=0.6)
    await scene.minutes(2)
    scene.calm()


@drill("Frames that come twice, and closes that come again on each subscription, are counted once.", **SLOWER)
async def repeats(scene: Scene) -> None:
    scene.faults(repeat_share=0.5, repeat_close_on_subscribe=True)
    scene.exchange.disconnect()
    await scene.minutes(1)
    scene.calm()


@drill("Frames in disorder change nothing: what is older than what is known is dropped, closes wait for their turn.")
async def reordering(scene: Scene) -> None:
    scene.happens(Reorder(share=0.4, by=30, for_s=120))
    await scene.market(120)


@drill("Frames that nobody can read are counted and kept aside, and stop nothing.")
async def garbage(scene: Scene) -> None:
    scene.faults(garbage_share=0.2)
    await scene.minutes(2)
    scene.calm()


@drill("Frames that break off in the middle of the text cost nothing; what they should have said is fetched.")
async def truncated(scene: Scene) -> None:
    scene.happens(Truncated(share=0.3, for_s=110))
    await scene.market(110)


@drill("Frames of megabytes that say nothing are dropped, and memory does not grow with them.")
async def huge_frames(scene: Scene) -> None:
    scene.happens(Huge(share=0.005, size=2 << 20, for_s=80))
    await scene.market(80)


@drill("Minutes in which nothing is traded and no closing frame comes are candles like others.")
async def no_trades(scene: Scene) -> None:
    scene.happens(Quiet(symbol=scene.exchange.symbols[-1], share=0.7, closing=False, for_s=180))
    await scene.minutes(3)


# ---- REST


@drill("A ban (418) is kept to, and the streams carry the minutes meanwhile.")
async def banned_418(scene: Scene) -> None:
    scene.happens(RestFault(kind="418", banned_s=80, retry_after_s=80, for_s=80))
    await scene.minutes(2)


@drill("Being told to slow down (429) is kept to, and the streams carry the minutes meanwhile.")
async def too_many_429(scene: Scene) -> None:
    scene.happens(RestFault(kind="429", retry_after_s=20, share=0.7, for_s=100))
    await scene.minutes(2)


@drill("A firewall that refuses requests (403) is not asked on and on, and the streams carry the minutes meanwhile.")
async def firewall_403(scene: Scene) -> None:
    scene.happens(RestFault(kind="403", for_s=100))
    await scene.minutes(2)


# Slower, for a request is repeated after some tenths of wall seconds, which must not be the time to decide in.
@drill("REST that fails in every third request while closes are missing is asked again, and nothing is lost.", **SLOWER)
async def server_errors(scene: Scene) -> None:
    scene.faults(missing_close_share=0.4)
    kinds: tuple[RestKind, ...] = ("500", "502", "503a", "503b", "503c", "torn", "empty", "refused")
    scene.happens(*(RestFault(kind=kind, share=0.05, for_s=110) for kind in kinds))
    await scene.minutes(1, scene.rng.uniform(20, 40))
    scene.calm()


@drill("REST that takes its time does not hold up what the streams have brought.")
async def slow_rest(scene: Scene) -> None:
    scene.faults(missing_close_share=0.3)
    scene.happens(RestFault(kind="slow", delay_s=0.25, for_s=110))
    await scene.minutes(2)
    scene.calm()


@drill("A worker that is started while REST is away asks for a while and then ends with one clear line; the next one "
       "begins.", starts=False)  # fmt: skip
async def rest_down_at_start(scene: Scene) -> None:
    kinds: tuple[RestKind, ...] = ("502", "refused", "empty", "503b")
    async with scene.without("the exchange"):
        scene.happens(RestFault(kind=scene.rng.choice(kinds)))
        await scene.wall(0.1)
        await scene.worker.start()
        await scene.wall(scene.rng.uniform(0.5, 3.5))
        scene.calm()
        try:
            await scene.worker.ready(scene.session)
        except WorkerFailed:
            # It had asked for long enough. A service is started again by whoever started it.
            code = await scene.worker.dead(within_s=1.0)
            if code != 1 or "the exchange does not answer" not in scene.worker.last_words():
                raise
            await scene.worker.start()
        await scene.begin()


# ---- the database


@drill("With the database away minutes are decided and published as ever, and every row is there when it is back.",
       database="postgres", bus="redis")  # fmt: skip
async def database_down(scene: Scene) -> None:
    await scene.database.refuse()
    await scene.minutes(2, scene.rng.uniform(5, 40))
    await scene.database.heal()


# Slower, for an answer is waited for two wall seconds, which must be less than the 30 s of market time to decide in.
@drill("A database that accepts connections and never answers is given up in time, and nothing is lost.",
       database="postgres", bus="redis", speed=8.0, begins=(-4.0, 12.0), minutes_after=1)  # fmt: skip
async def database_hangs(scene: Scene) -> None:
    scene.database.hang()
    await scene.minutes(1, scene.rng.uniform(5, 30))
    await scene.database.heal()


@drill("A database whose connections are cut in the middle of a commit has each decision once.",
       database="postgres", bus="redis")  # fmt: skip
async def database_cut(scene: Scene) -> None:
    for _ in range(6):
        await scene.second(scene.rng.uniform(0.5, 3.0))
        scene.database.cut()
        await scene.market(scene.rng.uniform(0, 20))


@drill("A slow database delays its rows and no decision.", database="postgres")
async def database_slow(scene: Scene) -> None:
    scene.database.slow(delay_s=0.02, bytes_per_s=400_000)
    await scene.minutes(3)
    await scene.database.heal()


@drill("A full disk is an alarm and loses nothing that could be kept; when there is room again every row is written.",
       bus="redis")  # fmt: skip
async def disk_full(scene: Scene) -> None:
    try:
        import resource

        limited = partial(resource.prlimit, scene.worker.pid, resource.RLIMIT_FSIZE)
    except (ImportError, AttributeError):
        raise CannotBeDone("the limits of another process can be set on Linux only") from None
    # Files of the worker cannot grow beyond what they are: to it that is a disk without room (EFBIG for ENOSPC).
    most = max((file.stat().st_size for file in scene.folder.glob("perpline.db*")), default=0)
    unlimited = limited()
    limited((most // 2, unlimited[1]))
    await scene.minutes(2, scene.rng.uniform(5, 40))
    limited(unlimited)


# ---- Redis


@drill("With Redis away the outbox waits, and then every signal enters its stream in order and once.", bus="redis")
async def redis_down(scene: Scene) -> None:
    await scene.redis.refuse()
    await scene.minutes(2, scene.rng.uniform(5, 40))
    await scene.redis.heal()


@drill("A Redis that accepts and never answers holds up no decision, and gets every signal once.", bus="redis")
async def redis_hangs(scene: Scene) -> None:
    scene.redis.hang()
    await scene.minutes(2, scene.rng.uniform(5, 40))
    await scene.redis.heal()


@drill("A Redis whose connections are cut while it is written to has each signal once.", bus="redis")
async def redis_cut(scene: Scene) -> None:
    for _ in range(6):
        await scene.second(scene.rng.uniform(0.5, 3.0))
        scene.redis.cut()
        await scene.market(scene.rng.uniform(0, 20))


@drill("A slow Redis delays its messages and no decision.", bus="redis")
async def redis_slow(scene: Scene) -> None:
    scene.redis.slow(delay_s=0.3)
    await scene.minutes(3)
    await scene.redis.heal()


# ---- the process


@drill("Killed at random instants and started again, it goes on where it was: every minute has its row, once.",
       bus="redis")  # fmt: skip
async def kill_at_random(scene: Scene) -> None:
    for _ in range(2):
        async with scene.without("the process"):
            await scene.worker.kill()
            await scene.wall(scene.rng.uniform(0, 0.5))
            await scene.worker.start()
            if scene.rng.random() < 0.3:
                await scene.wall(scene.rng.uniform(0.3, 1.5))  # the next death comes while it starts
            else:
                await scene.worker.ready(scene.session)
        await scene.market(scene.rng.uniform(5, 60))
    if not scene.worker.is_alive:
        await scene.worker.start()


def _kill_at(point: str) -> None:
    """A drill for each named point."""

    starts = point != "while-starting"

    async def play(scene: Scene) -> None:
        async with scene.without("the process"):
            if starts:
                scene.worker.now()
            else:
                await scene.worker.start("--die", point, "--after", str(scene.rng.randint(1, 3)))
            await scene.worker.dead(within_s=12.0)
            await scene.worker.start()
            await scene.worker.ready(scene.session)
        if not starts:
            scene.counts_from_now()

    DRILLS[f"kill-{point}"] = Drill(
        name=f"kill-{point}",
        promise=f"Killed where {POINTS[point]}, the next start finds and completes everything.",
        play=play,
        starts=starts,
        bus="redis",
        special=("--die", point, "--after", "1" if "rows" in point else "2") if starts else (),
    )


for _point in POINTS:
    _kill_at(_point)


@drill("A process that was stopped (SIGSTOP) goes on, and decides nothing late.", bus="redis")
async def frozen(scene: Scene) -> None:
    async with scene.without("the process"):
        scene.worker.freeze()
        await scene.market(scene.rng.uniform(60, 150))
        scene.worker.thaw()


@drill("A machine that was suspended wakes with dead connections: they are replaced, and nothing is decided late.",
       bus="redis", settings={"silence_limit_s": 1.5})  # fmt: skip
async def suspended(scene: Scene) -> None:
    async with scene.without("the process"):
        scene.worker.freeze()
        await scene.market(scene.rng.uniform(60, 150))
        scene.exchange.go_silent()
        known = scene.exchange.stats.connections
        scene.worker.thaw()
        await scene.until(lambda: scene.exchange.stats.connections >= known + 2, 8.0, "connections that are replaced")


# ---- clocks


@drill("A host clock that steps forward by seconds changes no candle and no decision.", special=("--step-ms", "7000"))
async def host_clock_forward(scene: Scene) -> None:
    scene.worker.now()
    await scene.minutes(2)


@drill("A host clock that steps back by seconds changes no candle and no decision.", special=("--step-ms", "-7000"))
async def host_clock_back(scene: Scene) -> None:
    scene.worker.now()
    await scene.minutes(2)


@drill("A host that is 1.5 s behind the exchange decides every minute.", starts=False)
async def host_behind(scene: Scene) -> None:
    scene.happens(WrongClock(offset_ms=1_500))
    await scene.wall(0.1)
    await scene.worker.start()
    await scene.begin()
    await scene.minutes(3)


@drill("An exchange whose clock drifts is followed.")
async def exchange_clock_drifts(scene: Scene) -> None:
    scene.happens(WrongClock(drift_ppm=scene.rng.choice([-20_000.0, 20_000.0])))
    await scene.minutes(3)


# ---- contracts


@drill("A contract that is halted has its minutes, and holds up no other.")
async def halted(scene: Scene) -> None:
    symbol = scene.exchange.symbols[-1]
    async with scene.without("the contract's trading", symbol):
        scene.happens(Halted(symbol=symbol, for_s=60))
        await scene.minutes(3)


@drill("A symbol that is added while a worker runs is decided on from its first complete minute, and the others go on.",
       settings={"symbols": ["BTCUSDT", "ETHUSDT", "SOLUSDT"]})  # fmt: skip
async def symbol_added(scene: Scene) -> None:
    symbol = scene.exchange.symbols[-1]
    del scene.expected[symbol]
    await scene.follow("add", symbol)
    asked = scene.now
    query = f"SELECT min(close_time) FROM signals WHERE symbol = '{symbol}' AND slot = '{scene.slot}'"
    first = None
    while first is None and scene.now < asked + 12_000 * scene.exchange.clock.speed:
        await scene.wall(0.1)
        [[first]] = await scene.rows(query)
    if first is None:
        raise WorkerFailed("in 12 s the added symbol had no decision")
    scene.expected[symbol] = (first, 1 << 60)


@drill("A contract that is wanted before the exchange lists it is decided on soon after it does, without a start.",
       settings={"symbols": ["BTCUSDT", "ETHUSDT", "SOLUSDT"]}, starts=False)  # fmt: skip
async def listed(scene: Scene) -> None:
    symbol = scene.exchange.symbols[-1]
    scene.happens(Listed(symbol=symbol, at_s=LISTED_AFTER_S))
    listed_at = scene.now + round(LISTED_AFTER_S * 1000)
    await scene.worker.start()
    await scene.begin()
    del scene.expected[symbol]
    scene.young.add(symbol)
    await scene.follow("add", symbol)
    await scene.market((listed_at - scene.now) / 1000)
    query = f"SELECT min(close_time) FROM signals WHERE symbol = '{symbol}' AND slot = '{scene.slot}'"
    first = None
    while first is None and scene.now < listed_at + 12_000 * scene.exchange.clock.speed:
        await scene.wall(0.1)
        [[first]] = await scene.rows(query)
    if first is None:
        raise WorkerFailed("in 12 s the listed contract had no decision")
    scene.expected[symbol] = (first, 1 << 60)


@drill("A symbol that is removed while a worker runs has its last minute, and the others go on.")
async def symbol_removed(scene: Scene) -> None:
    symbol = scene.exchange.symbols[1]
    now = scene.now
    await scene.follow("remove", symbol)
    scene.expected[symbol] = (scene.first, now - now % MINUTE_MS)
    await scene.minutes(3)


@drill("A contract that the exchange takes off its list ends with its last candle, and the others go on.")
async def delisted(scene: Scene) -> None:
    symbol = scene.exchange.symbols[-1]
    ends = scene.now + 30_000
    ends += -ends % MINUTE_MS
    scene.happens(Delisted(symbol=symbol, at_s=30))
    scene.expected[symbol] = (scene.first, ends)
    async with scene.without("the contract's trading", symbol):
        await scene.minutes(7)


# ---- two workers

TWO: dict[str, Any] = {
    "workers": 2, "database": "postgres", "bus": "redis", "speed": 6.0, "symbols": 3, "begins": (-4.0, 16.0),
    "minutes_after": 1,
}  # fmt: skip
"""Slow, for a standby takes over within five wall seconds, which must be less than the 30 s of market time to decide
in."""


@drill("When the leader is killed the standby takes over, and no minute is missed or decided twice.", **TWO)
async def leader_killed(scene: Scene) -> None:
    await (await scene.leader()).kill()
    await scene.wall(1.0)


@drill("A leader that was frozen and wakes up is fenced off; the standby has decided meanwhile, once.", **TWO)
async def leader_frozen(scene: Scene) -> None:
    leader = await scene.leader()
    leader.freeze()
    leader.is_meant_to_run = False
    await scene.wall(scene.rng.uniform(4.5, 6.0))
    leader.is_meant_to_run = True
    leader.thaw()


@drill("A leader that is cut off from the database hands over; no minute is missed or decided twice.", **TWO)
async def leader_without_database(scene: Scene) -> None:
    place = scene.workers.index(await scene.leader())
    await scene.database_proxies[place].refuse()
    await scene.wall(scene.rng.uniform(4.5, 6.0))
    await scene.database_proxies[place].heal()


@drill("With the database away from both, one goes on deciding and nothing is decided twice.",
       **{**TWO, "begins": (-16.0, -4.0)})  # fmt: skip
async def database_down_with_standby(scene: Scene) -> None:
    """It begins so that a minute ends meanwhile."""
    for proxy in scene.database_proxies:
        await proxy.refuse()
    await scene.wall(scene.rng.uniform(4.0, 6.0))
    for proxy in scene.database_proxies:
        await proxy.heal()


# ---- roles


@drill("When one of two inference workers is killed the other one decides what it had taken, once.",
       database="postgres", bus="redis", speed=6.0, symbols=4, begins=(-2.0, 16.0), minutes_after=1,
       each=({"role": "collector", "shard": "1/2"}, {"role": "collector", "shard": "2/2"},
             {"role": "inference"}, {"role": "inference"}))  # fmt: skip
async def inference_worker_killed(scene: Scene) -> None:
    await scene.workers[scene.rng.choice([2, 3])].kill()
    await scene.wall(1.0)


# ---- trading: the live account of the simulated exchange

TRADES: dict[str, Any] = {
    "trades": True, "symbols": 12, "speed": 20.0, "exchange": {"edge_bp": 8.0}, "starts": False, "minutes_after": 1,
    "settings": {
        "size_usdt": 500.0, "max_positions": 30, "max_total_usdt": 20_000.0, "naked_alarm_s": 90.0,
        "price_klines": False, "rest_weight_share": 1.0,
    },
}  # fmt: skip
"""The market has an edge that the model finds at its first minutes, so the fault is there before the worker is."""


async def _start_and_enter(scene: Scene, count: int) -> None:
    """Start the worker and wait until it has entered so many positions: without orders nothing would be drilled."""
    await scene.worker.start()
    await scene.begin()
    account: Any = scene.exchange.private.engine.accounts["sim-key"]

    def entered() -> int:
        return len({each for _, _, each in account.seen if each.startswith("e.")})

    await scene.until(lambda: entered() >= count, 20.0, "signals that are traded")


@drill("An order whose answer is lost is looked up and not sent again.", **TRADES)
async def lost_order_answer(scene: Scene) -> None:
    scene.happens(RestFault(kind="lost", path="/fapi/v1/order", method="POST", times=1))
    scene.happens(RestFault(kind="lost", path="/fapi/v1/algoOrder", method="POST", times=1))
    await _start_and_enter(scene, 1)


@drill("An order whose answer comes late is not sent again, and its position has its stop.", **TRADES)
async def late_order_answer(scene: Scene) -> None:
    scene.happens(RestFault(kind="late", path="/fapi/v1/*rder", method="POST", delay_s=1.0, times=4))
    await _start_and_enter(scene, 1)


@drill("Orders that were taken though the answer says that nobody knows are found, and not sent again.", **TRADES)
async def unknown_order_answer(scene: Scene) -> None:
    scene.happens(RestFault(kind="503a_taken", path="/fapi/v1/order", method="POST", times=1))
    scene.happens(RestFault(kind="408_taken", path="/fapi/v1/*rder", method="POST", times=2))
    await _start_and_enter(scene, 1)


@drill("A slow matching engine delays orders and doubles none.", **TRADES)
async def slow_engine(scene: Scene) -> None:
    scene.happens(SlowEngine(delay_s=4.0))
    await _start_and_enter(scene, 1)
    scene.calm()


@drill("A listen key that expires is replaced, and what was missed is asked for.", **TRADES)
async def listen_key_expires(scene: Scene) -> None:
    await _start_and_enter(scene, 1)
    for _ in range(2):
        scene.happens(ExpireListenKeys())
        await scene.market(scene.rng.uniform(20, 60))


@drill("Account events that come twice and in disorder book each fill once.", **TRADES)
async def user_events_repeated(scene: Scene) -> None:
    scene.happens(UserEvents(repeat_share=0.6, late_share=0.4, late_s=2.0))
    await _start_and_enter(scene, 1)
    scene.calm()


@drill("Account events that are lost are found by asking.", **TRADES)
async def user_events_lost(scene: Scene) -> None:
    scene.happens(UserEvents(lost_share=0.5))
    await _start_and_enter(scene, 1)
    scene.calm()


@drill("Killed with positions open, the next process has the exchange's books and enters no signal twice.", **TRADES)
async def kill_while_trading(scene: Scene) -> None:
    await _start_and_enter(scene, 1)
    await scene.wall(scene.rng.uniform(0, 0.3))
    async with scene.without("the process"):
        await scene.worker.kill()
        await scene.worker.start()
        await scene.worker.ready(scene.session)


# ---- all together


@drill("All of it at once: cuts, late, missing and repeated closes, garbage.", settings={"silence_limit_s": 3.0})
async def everything_at_once(scene: Scene) -> None:
    async with scene.without("the mark prices"):
        scene.faults(
            disconnect_every_s=70, late_close_share=0.3, late_close_min_s=5, late_close_max_s=60,
            missing_close_share=0.2, repeat_share=0.2, repeat_close_on_subscribe=True, garbage_share=0.03,
        )  # fmt: skip
        await scene.minutes(3)
        scene.calm()
