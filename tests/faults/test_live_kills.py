"""A process that trades is killed at every step from signal to stop to exit; the next one ends with equal books.

The processes are real ones (`tests/mortal_desk.py`), the exchange is in this one and goes on meanwhile.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from signal import SIGKILL
from typing import Any

import apsw
import pytest
from tests.live_desk import KEY
from tests.mortal_desk import Step
from tests.running import settings_file, simulated

from perpline.simulation.incidents import UserEvents
from perpline.simulation.script import Row
from perpline.simulation.server import SimulatedExchange

SPEED = 30.0
VALID_S = 590.0
"""Market seconds: a start looks back ten minutes for signals that are still good."""
AT_ONCE = 4
"""Stages side by side."""
BTC, ETH = "BTCUSDT", "ETHUSDT"
ROOT = Path(__file__).parents[2]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("PERPLINE_", "XDG_"))}

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


class Stage:
    """An exchange, the folder of the processes that trade on it one after the other, and their tables."""

    def __init__(self, exchange: SimulatedExchange, folder: Path, account: str) -> None:
        self.exchange = exchange
        self.account = account
        self.settings = settings_file(
            exchange, folder, size_usdt=500.0, max_slippage_bps=50.0, stop_cooldown_min=0, reconcile_every_s=60.0
        )
        self._database = folder / "live.db"

    @asynccontextmanager
    async def process(
        self, step: Step | None = None, signals: Sequence[tuple[str, int, float]] = ()
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        environment = {**CLEAN, "ACCOUNT": self.account, **({} if step is None else {"DIE_AT": step.value})}
        words = (str(self.settings), str(self.exchange.clock.now_ms()), json.dumps(signals))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.mortal_desk", *words),
            cwd=ROOT,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def dies(self, step: Step, signals: Sequence[tuple[str, int, float]] = ((BTC, 1, VALID_S),)) -> None:
        """A process trades these signals until it is killed at a step."""
        if step is Step.ANSWERED:  # nobody else tells of the fill
            self.exchange.happens(UserEvents(lost_share=1.0))
        async with self.process(step, signals) as process:
            if step in TO_EXIT:
                await self.until(lambda: not self.difference() and bool(self.stops()), process)
                self.exchange.script([Row(BTC, 0, "-1.2%", shape="step")])
            out, errors = await asyncio.wait_for(process.communicate(), 40)
        assert process.returncode == -SIGKILL, errors.decode()[-3000:]
        assert out.splitlines()[-1] == b"dies"
        self.exchange.faults.incidents.clear()

    @asynccontextmanager
    async def goes_on(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """The next process, which lives until the end of the block."""
        async with self.process() as process:
            assert process.stdout is not None
            assert await asyncio.wait_for(process.stdout.readline(), 40) == b"ready\n"
            yield process

    async def until(self, condition: Callable[[], object], process: asyncio.subprocess.Process) -> None:
        deadline = asyncio.get_running_loop().time() + 40
        while not condition():
            assert process.returncode is None, "the process ended"
            assert asyncio.get_running_loop().time() < deadline, self.difference() or condition
            await asyncio.sleep(0.03)

    # ---- what is so

    def truth(self) -> dict[str, Any]:
        return self.exchange.private.truth(KEY)

    def rows(self, table: str) -> list[dict[str, Any]]:
        connection = apsw.Connection(str(self._database), flags=apsw.SQLITE_OPEN_READONLY)
        connection.set_busy_timeout(5000)
        try:
            cursor = connection.execute(f"SELECT * FROM {table} WHERE account = ?", (self.account,))
            found = cursor.fetchall()
            names = [name for name, _ in cursor.getdescription()] if found else []
            return [dict(zip(names, row, strict=True)) for row in found]
        except apsw.SQLError:
            return []  # the tables are being made
        finally:
            connection.close()

    def entries(self) -> list[dict[str, Any]]:
        return [row for row in self.rows("orders") if row["leg"] == "e"]

    def positions(self) -> dict[str, Decimal]:
        """By symbol, signed, as our table has them."""
        return {
            row["symbol"]: Decimal(row["quantity"]) * row["side"]
            for row in self.rows("positions")
            if row["status"] != "closed" and Decimal(row["quantity"])
        }

    def stops(self) -> dict[str, str]:
        """Those that rest, as our table has them: client id and symbol."""
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
    folder.mkdir()
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
                await played.until(lambda: played.entries() and not played.difference(), process)
            # One entry for the signal, whatever happened. What was committed and never sent is not sent later.
            [entry] = played.entries()
            assert entry["status"] == ("never_arrived" if step is Step.INTENDED else "filled")
            [position] = played.rows("positions")
            closed_by = {Step.INTENDED: "not_filled", **dict.fromkeys(TO_EXIT, "stop")}.get(step, "")
            assert position["exit_reason"] == closed_by
            assert bool(played.truth()["positions"]) is (not closed_by)

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
                await played.until(lambda: played.entries() and not played.difference(), process)
            [entry] = played.entries()
            # A paper fill that could not be stored has never been.
            lost = step in (Step.INTENDED, Step.FILLED, Step.ROWS_WAIT)
            assert entry["status"] == ("never_arrived" if lost else "filled")
            [position] = played.rows("positions")
            assert (position["status"] == "closed") is (lost or step in TO_EXIT)
            assert played.truth()["orders"] == []

    await side_by_side(play, steps)
