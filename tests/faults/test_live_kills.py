"""A process that trades is killed at every step from signal to stop to exit; the next one ends with equal books.

The processes are real ones (`tests/mortal_desk.py`), the exchange is in this one and goes on meanwhile.
"""

import asyncio
import multiprocessing
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from signal import SIGKILL
from typing import Any

import apsw
import pytest
from tests.live_desk import KEY
from tests.mortal_desk import Step, Wanted, trade
from tests.running import eventually, settings_file, simulated

from perpline.simulation.incidents import UserEvents
from perpline.simulation.script import Row
from perpline.simulation.server import SimulatedExchange
from perpline.storage.store import TRADING_TABLES

SPEED = 30.0
VALID_S = 590.0
"""Market seconds: a start looks back ten minutes for signals that are still good."""
AT_ONCE = 4
"""Stages side by side."""
BTC, ETH = "BTCUSDT", "ETHUSDT"
WITHIN_S = 25.0
LOOK_S = 0.03
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.mortal_desk"])

TO_STOP = (
    Step.DECIDED,
    Step.INTENDED,
    Step.SENT,
    Step.ANSWERED,
    Step.FILLED,
    Step.STOP_SENT,
    Step.STOP_CONFIRMED,
    Step.STOP_STORED,
    Step.ROWS_WAIT,
)
TO_EXIT = (Step.FIRED, Step.CLOSE_SENT, Step.CLOSE_FILLED, Step.ROWS_WAIT_CLOSED)


class Process:
    """One that trades (`tests.mortal_desk.trade`), forked from one that has imported everything already."""

    def __init__(self, settings: Path, account: str, now_ms: int, step: Step | None, signals: Wanted) -> None:
        self._told, tells = FORKS.Pipe(duplex=False)
        self._process = FORKS.Process(target=trade, args=(settings, account, now_ms, tells, step, signals))
        self._process.start()
        tells.close()

    def is_ready(self) -> bool:
        return self._told.poll() and self._told.recv() == "ready"

    def lives(self) -> bool:
        return self._process.is_alive()

    async def exit_code(self) -> int | None:
        """How it ended, within WITHIN_S.

        Asked for by the loop's thread alone: every start of another process reads the status of all that have ended,
        and of two threads that read at once one finds nothing, which multiprocessing calls 255."""
        await eventually(lambda: not self._process.is_alive(), WITHIN_S, "the process has ended")
        return self._process.exitcode

    async def end(self) -> None:
        self._process.kill()
        self._process.join()  # a moment, after SIGKILL
        self._process.close()
        self._told.close()


class Stage:
    """An exchange, the folder of the processes that trade on it one after the other, and their tables."""

    def __init__(self, exchange: SimulatedExchange, folder: Path, account: str) -> None:
        self.exchange = exchange
        self.account = account
        self._settings = settings_file(
            exchange, folder, size_usdt=500.0, max_slippage_bps=50.0, stop_cooldown_min=0, reconcile_every_s=60.0
        )
        self._database = folder / "live.db"
        self._log = folder / "log"

    @asynccontextmanager
    async def process(self, step: Step | None = None, signals: Wanted = ()) -> AsyncIterator["Process"]:
        process = Process(self._settings, self.account, self.exchange.clock.now_ms(), step, signals)
        try:
            yield process
        except BaseException as error:
            error.add_note(self._log.read_text()[-3000:])
            raise
        finally:
            await process.end()

    async def dies(self, step: Step, signals: Wanted = ((BTC, 1, VALID_S),)) -> None:
        """A process trades these signals until it is killed at a step."""
        if step is Step.ANSWERED:  # nobody else tells of the fill
            self.exchange.happens(UserEvents(lost_share=1.0))
        async with self.process(step, signals) as process:
            if step in TO_EXIT:
                await self.until(self.is_protected, process)
                self.exchange.script([Row(BTC, 0, "-1.2%", shape="step")])
            assert await process.exit_code() == -SIGKILL
        self.exchange.faults.incidents.clear()

    @asynccontextmanager
    async def goes_on(self) -> AsyncIterator["Process"]:
        """The next process, trading; it lives until the end of the block."""
        async with self.process() as process:
            await self.until(process.is_ready, process)
            yield process

    async def until(self, condition: Callable[[], object], process: "Process") -> None:
        deadline = asyncio.get_running_loop().time() + WITHIN_S
        while not condition():
            assert process.lives(), "the process ended"
            assert asyncio.get_running_loop().time() < deadline, self.difference() or condition
            await asyncio.sleep(LOOK_S)

    # ---- what is so

    def truth(self) -> dict[str, Any]:
        return self.exchange.private.truth(KEY)

    def rows(self, table: str) -> list[dict[str, Any]]:
        columns = TRADING_TABLES[table].columns
        connection = apsw.Connection(str(self._database), flags=apsw.SQLITE_OPEN_READONLY)
        connection.set_busy_timeout(5000)
        try:
            query = f"SELECT {', '.join(columns)} FROM {table} WHERE account = ?"
            found = connection.execute(query, (self.account,)).fetchall()
        except apsw.SQLError:
            return []  # the tables are being made
        finally:
            connection.close()
        return [dict(zip(columns, row, strict=True)) for row in found]

    def is_protected(self) -> bool:
        """Whether a stop rests: at the exchange, or where there is none, by the table."""
        return bool(self.truth()["open_algo_orders"] if self.account == "live" else self.stops())

    def entries(self) -> list[dict[str, Any]]:
        return [row for row in self.rows("orders") if row["leg"] == "entry"]

    def has_ended(self, *, closed: bool) -> bool:
        """Whether all books agree, and what was begun is closed or, open, has its stop."""
        statuses = [row["status"] for row in self.rows("positions")]
        return statuses == ["closed" if closed else "open"] and not self.difference()

    def positions(self) -> dict[str, Decimal]:
        """By symbol, signed, as our table has them."""
        return {
            row["symbol"]: Decimal(row["quantity"]) * row["side"]
            for row in self.rows("positions")
            if row["status"] != "closed" and Decimal(row["quantity"])
        }

    def stops(self) -> dict[str, str]:
        """Those that rest, as our table has them: client id and symbol."""
        if not self._database.exists():
            return {}
        return {
            row["client_id"]: row["symbol"]
            for row in self.rows("orders")
            if row["trigger_price"] is not None and row["status"] == "new"
        }

    def difference(self) -> str:
        """What is not right at the end: the tables within themselves, and against the exchange where it is live."""
        if not self._database.exists():
            return "no database"
        if under_way := [row["client_id"] for row in self.rows("orders") if self._is_under_way(row)]:
            return f"under way: {under_way}"
        if unended := [row for row in self.rows("positions") if row["status"] not in ("open", "closed")]:
            return f"neither open nor closed: {unended}"
        if sorted(self.stops().values()) != sorted(self.positions()):
            return f"positions {self.positions()}, stops {self.stops()}"
        held: dict[str, Decimal] = {}
        for row in self.rows("fills"):
            amount = Decimal(row["quantity"]) * (1 if row["side"] == "buy" else -1)
            held[row["symbol"]] = held.get(row["symbol"], Decimal(0)) + amount
        if {symbol: amount for symbol, amount in held.items() if amount} != self.positions():
            return f"fills make {held}, positions are {self.positions()}"
        return self._differs_from_the_exchange() if self.account == "live" else ""

    def _is_under_way(self, row: dict[str, Any]) -> bool:
        return row["final_at"] is None and not (row["trigger_price"] is not None and row["status"] == "new")

    def _differs_from_the_exchange(self) -> str:
        truth = self.truth()
        theirs = {symbol: Decimal(each["quantity"]) for symbol, each in truth["positions"].items()}
        if theirs != self.positions():
            return f"positions: ours {self.positions()}, theirs {theirs}"
        their_stops = {each["clientAlgoId"]: each["symbol"] for each in truth["open_algo_orders"]}
        if their_stops != self.stops():
            return f"stops: ours {self.stops()}, theirs {their_stops}"
        told = sorted((each["symbol"], int(each["id"]), Decimal(each["price"])) for each in truth["fills"])
        booked = sorted((each["symbol"], each["trade_id"], Decimal(each["price"])) for each in self.rows("fills"))
        if told != booked:
            return f"fills: ours {booked}, theirs {told}"
        filled = {each["clientOrderId"]: Decimal(each["executedQty"]) for each in truth["orders"]}
        ours = {row["client_id"]: Decimal(row["filled"]) for row in self.rows("orders") if row["trigger_price"] is None}
        if {name: amount for name, amount in ours.items() if name in filled or amount} != filled:
            return f"orders: ours {ours}, theirs {filled}"
        twice = [each for each in truth["requests"] if each["client_id"] and each["method"] == "POST"]
        return "".join(f"sent twice: {each}" for each in twice if each["seen"] > 1 or each["taken"] > 1)


@asynccontextmanager
async def stage(folder: Path, account: str, symbols: int = 1) -> AsyncIterator[Stage]:
    os.mkdir(folder)
    async with simulated(speed=SPEED, symbols=symbols) as exchange:
        exchange.script([Row(symbol, 0, "0%") for symbol in exchange.symbols])
        yield Stage(exchange, folder, account)


async def side_by_side(play: Callable[[Step], Any], steps: Sequence[Step]) -> None:
    """Play each step; a failure names its own."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(step: Step) -> None:
        async with turn:
            try:
                await play(step)
            except BaseException as error:
                error.add_note(f"killed when {step.value}")
                raise

    failed = [each for each in await asyncio.gather(*map(one, steps), return_exceptions=True) if each is not None]
    if failed:
        raise ExceptionGroup("after these deaths the end state is wrong", failed)  # type: ignore[type-var]


@pytest.mark.slow
async def test_killed_at_any_step_from_signal_to_exit_the_next_process_ends_with_the_books_of_the_exchange(
    tmp_path: Path,
) -> None:
    async def play(step: Step) -> None:
        async with stage(tmp_path / step.name, "live") as played:
            await played.dies(step)
            async with played.goes_on() as process:
                # What was written as the process died may be lost with its connection: the exchange knows.
                await played.until(
                    lambda: played.has_ended(closed=step in TO_EXIT or not played.truth()["orders"]), process
                )
            arrived = bool(played.truth()["orders"])
            assert arrived is (step is not Step.INTENDED) or step is Step.SENT
            is_closed = step in TO_EXIT or not arrived
            # One entry for the signal, whatever happened. What was committed and never sent is not sent later.
            [entry] = played.entries()
            assert entry["status"] == ("filled" if arrived else "never_arrived")
            [position] = played.rows("positions")
            if is_closed:  # why it was closed may have died with the process: then it is called "exit"
                reasons = {"stop", "exit"} if arrived else {"not_filled"}
                assert position["exit_reason"] in reasons
            assert bool(played.truth()["positions"]) is not is_closed

    await side_by_side(play, [*TO_STOP, *TO_EXIT])


@pytest.mark.slow
async def test_after_a_death_a_signal_that_is_still_good_is_traded_once_and_one_that_is_over_is_not(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path / "stage", "live", symbols=2) as played:
        await played.dies(Step.DECIDED, [(ETH, 1, 1.0), (BTC, -1, VALID_S)])
        async with played.goes_on() as process:
            await played.until(lambda: played.positions() and not played.difference(), process)
        assert [(row["symbol"], row["side"]) for row in played.entries()] == [(BTC, "sell")]
        async with played.goes_on() as process:  # it comes again, and its orders are known
            await played.until(lambda: not played.difference(), process)
        assert len(played.entries()) == 1
        assert set(played.truth()["positions"]) == {BTC}


@pytest.mark.slow
async def test_a_process_that_trades_on_paper_may_be_killed_at_any_step_too(tmp_path: Path) -> None:
    steps = (Step.DECIDED, Step.INTENDED, Step.FILLED, Step.STOP_STORED, Step.ROWS_WAIT, Step.FIRED, Step.CLOSE_FILLED)

    async def play(step: Step) -> None:
        async with stage(tmp_path / step.name, "paper") as played:
            await played.dies(step)
            async with played.goes_on() as process:
                # A paper fill that could not be stored has never been.
                lost = step in (Step.INTENDED, Step.FILLED, Step.ROWS_WAIT)
                await played.until(lambda: played.has_ended(closed=lost or step in TO_EXIT), process)
            [entry] = played.entries()
            assert entry["status"] == ("never_arrived" if lost else "filled")
            assert played.truth()["orders"] == []

    await side_by_side(play, steps)
