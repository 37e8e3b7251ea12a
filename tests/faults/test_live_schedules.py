"""Random fault schedules through the live path: whatever happens, the books are equal in the end and nothing is naked.

Each schedule is made from a seed, which a failure prints: signals, moves of the price, faults of requests, sockets,
events and engine, orders of somebody else, changes of mode, deaths of the process. `PERPLINE_TEST_SCHEDULES` says how
many of them the full run takes (500).
"""

import asyncio
import os
import random
import traceback
from collections.abc import Awaitable, Callable, Iterable
from decimal import Decimal
from pathlib import Path

import pytest
from tests.live_desk import LiveDesk
from tests.running import settings_on, simulated

from perpline.common.errors import PerplineError
from perpline.domain.order import OrderRequest
from perpline.simulation.incidents import (
    AnyIncident,
    Disconnect,
    ExpireListenKeys,
    RestFault,
    Silence,
    SlowEngine,
    UserEvents,
)
from perpline.simulation.script import Row
from perpline.simulation.server import SimulatedExchange
from perpline.storage.sqlite import SqliteStore

SPEED = 60.0
LENGTH_S = 2.5
"""Wall seconds of trouble; afterwards everything works again."""
NAKED_WALL_S = 8.0
"""What is promised: within so many wall seconds of the fill a stop rests or the position is closed, with faults of at
most 1.5 s each and the death of the process, which comes back within 0.3 s."""

ORDERS = ("/fapi/v1/order", "/fapi/v1/algoOrder")
FAILURES = ("lost", "late", "408_taken", "503a_taken", "500", "502", "503a", "503b", "503c", "503d", "torn", "refused")
READ_FAILURES = ("500", "502", "503b", "torn", "empty", "slow", "refused")


def fault(rng: random.Random) -> AnyIncident:
    """One thing that goes wrong."""
    lasts = rng.uniform(0.1, 1.5) * SPEED
    match rng.randrange(10):
        case 0 | 1 | 2:
            return RestFault(
                kind=rng.choice(FAILURES),  # type: ignore[arg-type]
                path=rng.choice(ORDERS),
                method=rng.choice(("POST", "POST", "DELETE", "GET")),
                via=rng.choice(("both", "rest", "ws_api")),  # type: ignore[arg-type]
                times=rng.randint(1, 3),
                delay_s=rng.uniform(0.1, 1.0),
                for_s=lasts,
            )
        case 3:
            return RestFault(
                kind=rng.choice(READ_FAILURES),  # type: ignore[arg-type]
                path="/fapi/*",
                method="GET",
                times=rng.randint(1, 5),
                delay_s=rng.uniform(0.1, 0.5),
                for_s=lasts,
            )
        case 4:
            return Disconnect(route=rng.choice(("private", "ws_api", "market", "all")))  # type: ignore[arg-type]
        case 5 | 6:
            return UserEvents(
                repeat_share=rng.choice((0.0, 0.5)),
                late_share=rng.choice((0.0, 0.5)),
                late_s=rng.uniform(1, 30),
                lost_share=rng.choice((0.0, 0.3, 1.0)),
                for_s=lasts,
            )
        case 7:
            return ExpireListenKeys()
        case 8:
            return SlowEngine(delay_s=rng.uniform(1, 90), for_s=lasts)
        case _:
            return Silence(route="private", for_s=lasts)


class Stage:
    """An exchange and the process that trades on it, which may die and come back."""

    def __init__(self, exchange: SimulatedExchange, folder: Path, schedule: "Schedule") -> None:
        self.exchange = exchange
        self.folder = folder
        self.schedule = schedule
        self.desk: LiveDesk
        self.store: SqliteStore

    async def start(self) -> None:
        settings = settings_on(
            self.exchange,
            self.folder,
            order_transport=self.schedule.transport,
            unknown_positions=self.schedule.unknown,
            size_usdt=500.0,
            max_slippage_bps=50.0,
            stop_cooldown_min=0,
            reconcile_every_s=120.0,
        )
        self.store = SqliteStore(self.folder / "live.db")
        await self.store.open()
        self.desk = LiveDesk(self.exchange, settings, self.store, random.Random(self.schedule.seed))
        await self.desk.open()

    async def stop(self, *, killed: bool = False) -> None:
        await self.desk.close(killed=killed)
        await self.store.close()


def _signal(symbol: str, side: int) -> Callable[[Stage], Awaitable[None]]:
    async def act(stage: Stage) -> None:
        if symbol in stage.desk.marks.latest:
            stage.desk.signal(symbol, side)

    return act


def _happens(found: AnyIncident) -> Callable[[Stage], Awaitable[None]]:
    async def act(stage: Stage) -> None:
        stage.exchange.happens(found)

    return act


def _moves(symbol: str, percent: float) -> Callable[[Stage], Awaitable[None]]:
    async def act(stage: Stage) -> None:
        stage.exchange.script([Row(symbol, 0, f"{percent}%", shape="step")])

    return act


async def _killed(stage: Stage) -> None:
    await stage.stop(killed=True)
    await asyncio.sleep(0.3)
    await stage.start()


async def _flatten(stage: Stage) -> None:
    await stage.desk.set_mode("off", positions="flatten")


def _by_hand(symbol: str, side: str) -> Callable[[Stage], Awaitable[None]]:
    async def act(stage: Stage) -> None:
        live = stage.desk.accounts.live
        if live is None:
            return
        quantity = stage.desk.instruments[symbol].round_quantity(Decimal(300) / Decimal(repr(mark(stage, symbol))))
        order = OrderRequest(symbol=symbol, side=side, quantity=quantity, client_id="by-hand", reduce_only=False)  # type: ignore[arg-type]
        try:
            await live.rest.place_order(order)
        except PerplineError:
            return  # it goes through the same faults

    def mark(stage: Stage, symbol: str) -> float:
        return stage.desk.marks.latest[symbol].mark_price

    return act


class Schedule:
    """What happens when, from a seed."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self.seed = seed
        self.steps: list[tuple[float, str, Callable[[Stage], Awaitable[None]]]] = []
        self.transport = rng.choice(("socket", "socket", "rest"))
        self.unknown = rng.choice(("leave", "adopt"))
        symbols = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
        for symbol in symbols:
            if rng.random() < 0.8:
                self._at(rng, 0.6, f"signal {symbol}", _signal(symbol, rng.choice((1, -1))))
        for _ in range(rng.randint(1, 4)):
            found = fault(rng)
            self._at(rng, 0.9, repr(found), _happens(found))
        for _ in range(rng.randint(1, 3)):
            symbol, move = rng.choice(symbols), rng.choice((-4.0, -1.2, 1.2, 4.0))
            self._at(rng, 1.0, f"{symbol} {move:+g} %", _moves(symbol, move))
        if rng.random() < 0.3:
            self._at(rng, 1.0, "signal again", _signal(rng.choice(symbols), rng.choice((1, -1))))
        if rng.random() < 0.25:
            self._at(rng, 1.0, "killed", _killed)
        if rng.random() < 0.15:
            self._at(rng, 1.0, "flatten", _flatten)
        if rng.random() < 0.2:
            self._at(rng, 1.0, "somebody trades by hand", _by_hand(rng.choice(symbols), rng.choice(("buy", "sell"))))
        self.steps.sort(key=lambda step: step[0])

    def _at(self, rng: random.Random, share: float, name: str, act: Callable[[Stage], Awaitable[None]]) -> None:
        self.steps.append((rng.uniform(0, LENGTH_S * share), name, act))

    def __str__(self) -> str:
        return "\n".join([f"seed {self.seed}, {self.transport}", *(f"{at:5.2f} {name}" for at, name, _ in self.steps)])


async def played(seed: int, folder: Path) -> None:
    """Play a schedule and check what must be so after it."""
    schedule = Schedule(seed)
    async with simulated(speed=SPEED, seed=seed) as exchange:
        exchange.script([Row(symbol, 0, "0%") for symbol in exchange.symbols])
        stage = Stage(exchange, folder, schedule)
        await stage.start()
        try:
            await stage.desk.ready()
            await stage.desk.set_mode("live")
            loop = asyncio.get_running_loop()
            began = loop.time()
            for at, _, act in schedule.steps:
                await asyncio.sleep(max(0.0, began + at - loop.time()))
                await act(stage)
            await asyncio.sleep(max(0.0, began + LENGTH_S - loop.time()))
            exchange.faults.incidents.clear()
            await stage.desk.quiet(40.0, by_hand=any("by hand" in name for _, name, _ in schedule.steps))
            await stage.desk.check_books()
            naked_s = stage.desk.longest_naked_ms() / 1000 / SPEED
            assert naked_s <= NAKED_WALL_S, f"without a stop for {naked_s:.1f} wall seconds"
        except BaseException as error:
            error.add_note(str(schedule))
            raise
        finally:
            await stage.stop()


async def failures(seeds: Iterable[int], folder: Path, at_once: int) -> list[str]:
    """What went wrong in which of these schedules; each has an exchange and a database of its own."""
    waiting, failed = list(seeds), list[str]()

    async def play() -> None:
        while waiting:
            seed = waiting.pop(0)
            own = folder / str(seed)
            own.mkdir()
            try:
                await played(seed, own)
            except Exception as error:  # the others are played all the same: one run tells of all that fail
                failed.append(f"seed {seed}: {''.join(traceback.format_exception(error, limit=-2))}")

    await asyncio.gather(*(play() for _ in range(at_once)))
    return failed


async def test_after_random_schedules_of_faults_the_books_are_equal(tmp_path: Path) -> None:
    failed = await failures(range(12), tmp_path, at_once=4)
    assert not failed, "\n".join(failed)


@pytest.mark.full
@pytest.mark.timeout(3600)
async def test_after_five_hundred_random_schedules_the_books_are_equal(tmp_path: Path) -> None:
    count = int(os.environ.get("PERPLINE_TEST_SCHEDULES", "500"))
    first = int(os.environ.get("PERPLINE_TEST_FIRST_SCHEDULE", "1000"))
    failed = await failures(range(first, first + count), tmp_path, at_once=6)
    assert not failed, "\n".join(failed)
