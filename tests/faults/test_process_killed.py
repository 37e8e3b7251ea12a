"""SIGKILL at any instruction of the market's side, and a restart: candles, decisions and outbox are whole."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from perpline.drill.child import NOW_SIGNAL, POINTS
from perpline.simulation.server import SimulatedExchange
from running import (
    Database,
    assert_candles_are_the_truth,
    assert_one_decision_a_minute,
    eventually,
    next_close,
    settings_file,
    simulated,
)

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("PERPLINE_", "XDG_"))}
ANYWHERE = "at any instant"


def seed() -> int:
    chosen = int(os.environ.get("PERPLINE_TEST_SEED", "7"))
    print(f"PERPLINE_TEST_SEED={chosen}")
    return chosen


class Mortal:
    """A worker as a process that may kill itself."""

    def __init__(self, settings: Path, *die: object) -> None:
        self._log = (settings.parent / "log").open("a")
        self._from = self._log.tell()
        words = [sys.executable, "-m", "perpline.drill.child", *map(str, die), "run", "--config", str(settings)]
        self.process = subprocess.Popen(words, stdout=self._log, stderr=self._log, env=CLEAN)

    def said(self, event: str) -> bool:
        with open(self._log.name) as log:
            log.seek(self._from)
            return event in log.read()

    async def ended(self, within_s: float = 60.0) -> int:
        await eventually(lambda: self.process.poll() is not None, within_s, "the process has ended")
        self._log.close()
        return int(self.process.returncode)


async def killed(settings: Path, point: str, rng: random.Random) -> None:
    """One life: until it is ready, and on to its death."""
    if point == ANYWHERE:
        mortal = Mortal(settings)
        await asyncio.sleep(rng.uniform(0.5, 8.0))  # from its imports to some closes later
        mortal.process.send_signal(signal.SIGKILL)
    else:
        mortal = Mortal(settings, "--die", point, "--after", rng.randrange(1, 4))
        if point != "while-starting":
            await eventually(lambda: mortal.said("worker_ready"), 60, "ready")
            mortal.process.send_signal(NOW_SIGNAL)
    assert await mortal.ended() == -signal.SIGKILL


async def whole_after(points: list[str], folder: Path) -> None:
    """Die at each of these, one life after the other; then live on, and look at what is there."""
    rng = random.Random(seed())
    async with simulated(speed=60) as exchange:
        settings = settings_file(exchange, folder, log_format="json", log_level="info")
        for point in points:
            print(f"killed {point}")
            await killed(settings, point, rng)
        await live_on(exchange, folder, settings)


async def live_on(exchange: SimulatedExchange, folder: Path, settings: Path) -> None:
    last, database = Mortal(settings), Database(folder)
    await eventually(lambda: last.said("worker_ready"), 60, "ready")
    until = next_close(exchange.clock.now_ms(), 2)
    await eventually(lambda: database.decided_until(until, len(exchange.symbols)), 60, "the last decision")
    await eventually(lambda: exchange.clock.now_ms() > until + 40_000)  # what was given up is being fetched
    last.process.send_signal(signal.SIGTERM)
    assert await last.ended() == 0

    assert_candles_are_the_truth(exchange, database, until, history=240)
    assert_one_decision_a_minute(database, exchange.symbols, until)
    sent = Counter(database.rows("SELECT symbol, close_time FROM outbox WHERE kind = 'signal'"))
    decided = database.rows("SELECT symbol, close_time FROM signals WHERE status <> 'skipped_missed'")
    assert sent == Counter(decided)
    assert database.value("SELECT count(*) FROM outbox WHERE published_at IS NULL") == 0
    per_symbol = "SELECT count(*) = max(seq) AND min(seq) = 1 FROM signals GROUP BY symbol"
    assert {whole for (whole,) in database.rows(per_symbol)} == {1}


async def test_killed_at_a_step_on_the_way_of_a_candle_the_next_process_leaves_everything_whole(tmp_path: Path) -> None:
    point = random.Random(seed()).choice([*POINTS])
    await whole_after([point], tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("point", POINTS)
async def test_killed_again_and_again_at_one_step_the_next_process_leaves_everything_whole(
    point: str, tmp_path: Path
) -> None:
    await whole_after([point] * 3, tmp_path)


@pytest.mark.full
async def test_killed_at_twenty_random_instants_the_next_process_leaves_everything_whole(tmp_path: Path) -> None:
    await whole_after([ANYWHERE] * 20, tmp_path)
