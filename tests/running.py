"""A worker on a simulated exchange, and questions to its database that only the exchange's truth answers."""

import asyncio
import io
import json
import logging
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import structlog
from msgspec.structs import asdict
from structlog.testing import capture_logs

from perpline.cli.main import main
from perpline.common.clock import SystemClock
from perpline.common.config import Settings, load_settings
from perpline.realtime_worker_ws import run_ws
from perpline.simulation.faults import Faults, changed
from perpline.simulation.server import SimulatedExchange

MINUTE = 60_000
HOUR = 60 * MINUTE

NEAR_THE_HOUR = 1_795_183_200_000 - 3 * MINUTE + 20_000
"""2026-11-20 13:57:20 UTC: the next three closes are those of 1m, 1m, and of 1m, 15m and 1h together."""

LENGTHS = {"1m": MINUTE, "15m": 15 * MINUTE, "1h": HOUR}


async def eventually(condition: Callable[[], object], within_s: float = 20.0, what: str = "") -> None:
    """Return as soon as the condition holds; fail after `within_s`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while not condition():
        if loop.time() > deadline:
            raise AssertionError(f"did not come true within {within_s:g} s: {what or condition}")
        await asyncio.sleep(0.01)


def simulated(
    *, speed: float = 60.0, start_ms: int = NEAR_THE_HOUR, symbols: int = 3, seed: int = 7, **options: Any
) -> SimulatedExchange:
    """An exchange whose market time begins at `start_ms`."""
    options.setdefault("faults", Faults(seed=seed))
    return SimulatedExchange(seed=seed, symbols=symbols, clock=SystemClock(speed, anchor_ms=start_ms), **options)


def settings_file(exchange: SimulatedExchange, folder: Path, **changes: object) -> Path:
    """The settings of a worker on this exchange, with its database and everything else in `folder`."""
    values: dict[str, object] = {
        "network": "custom",
        "binance_futures_ws_url": exchange.ws_url,
        "binance_futures_rest_url": exchange.http_url,
        "symbols": list(exchange.symbols),
        "clock_speed": exchange.clock.speed,
        "data_dir": str(folder),
        "status_port": 0,
        **changes,
    }
    path = folder / "perpline.toml"
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()), encoding="utf-8")
    return path


def settings_on(exchange: SimulatedExchange, folder: Path, **changes: object) -> Settings:
    return load_settings(settings_file(exchange, folder, **changes), {}, {})


@dataclass
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out.splitlines()[-1])

    @property
    def error_line(self) -> str:
        """The one line that a failure leaves on stderr, where nothing else was logged."""
        [line] = self.err.splitlines()
        return line


def command(*words: object) -> Finished:
    """`perpline WORDS…` in this process, as a person would type it. Not inside a running event loop."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True), io.StringIO()
    code = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            structlog.reset_defaults()
            logging.basicConfig(force=True, handlers=[logging.NullHandler()])
    return Finished(code, out.buffer.getvalue().decode(), err.getvalue())


class RunningWorker:
    """A worker in this process. `ready` is set when every stream has delivered."""

    def __init__(self, settings: Settings, rng: random.Random) -> None:
        self.ready = asyncio.Event()
        self.ready_at = 0
        self.status_port = 0
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(run_ws(settings, self._stop, rng, self._on_ready))

    def _on_ready(self, said: dict[str, Any]) -> None:
        self.ready_at, self.status_port = said["ready_at"], said["status_port"]
        self.ready.set()

    async def until(self, condition: Callable[[], object], within_s: float = 30.0, what: str = "") -> None:
        """Return when the condition holds; raise what the worker raised, if it ends before."""
        waiting = asyncio.ensure_future(eventually(condition, within_s, what))
        await asyncio.wait((waiting, self._task), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            raise AssertionError(f"the worker ended by itself: {self._task.result()}")
        waiting.result()

    async def until_ready(self) -> None:
        await self.until(self.ready.is_set, what="ready")

    async def stop(self) -> dict[str, Any]:
        """Stop as SIGTERM would; the worker's last status."""
        self._stop.set()
        return await self._task

    async def kill(self) -> None:
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,))


@asynccontextmanager
async def working(
    exchange: SimulatedExchange, folder: Path, *, seed: int = 1, **changes: object
) -> AsyncIterator[RunningWorker]:
    worker = RunningWorker(settings_on(exchange, folder, **changes), random.Random(seed))
    try:
        yield worker
    finally:
        await worker.kill()


class Database:
    """A worker's SQLite file, read only."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "perpline.db"

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY)
        connection.set_busy_timeout(5000)
        try:
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()

    def value(self, query: str, *values: object) -> Any:
        [[found]] = self.rows(query, *values)
        return found

    def candles(self, interval: str, before: int) -> list[tuple[Any, ...]]:
        """symbol, open_time, close_time and the nine numbers, of candles that open before this instant."""
        columns = "symbol, open_time, close_time, open, high, low, close, volume, quote_volume, trades, "
        columns += "taker_buy_volume, taker_buy_quote_volume"
        query = f"SELECT {columns} FROM candles_{interval} WHERE open_time < ? ORDER BY symbol, open_time"
        return self.rows(query, before)

    def decided_until(self, close_time: int, count: int) -> bool:
        """Whether so many symbols have a row for this minute."""
        return self.decisions(close_time, close_time) >= count

    def decisions(self, since: int = 0, until: int = 1 << 60) -> int:
        """How many rows `signals` has for these minutes; 0 while the tables are being made."""
        try:
            query = "SELECT count(*) FROM signals WHERE close_time BETWEEN ? AND ?"
            return int(self.value(query, since, until)) if self.path.exists() else 0
        except apsw.SQLError:
            return 0


@dataclass
class Aftermath:
    """What a worker that went through trouble left behind. `until` is the last T that every symbol has a row for."""

    exchange: SimulatedExchange
    database: Database
    until: int
    status: dict[str, Any]
    logs: list[Any]

    def said(self, event: str) -> list[Any]:
        return [line for line in self.logs if line["event"] == event]

    def gaps(self, *, open_only: bool = False) -> list[tuple[Any, ...]]:
        where = "WHERE repaired_at IS NULL" if open_only else ""
        return self.database.rows(f"SELECT symbol, series, from_time, to_time, repaired_by FROM gaps {where}")


async def trouble(
    folder: Path, begin: Callable[[SimulatedExchange], object], *, minutes: int = 3, speed: float = 60.0, **changes: Any
) -> Aftermath:
    """Run a worker: first undisturbed, then for some market minutes with what `begin` does to the exchange, then two
    minutes undisturbed again. Its database then holds exactly the exchange's candles and one decision a minute."""
    faults = Faults(seed=int(os.environ.get("PERPLINE_TEST_SEED", "7")))
    print(f"PERPLINE_TEST_SEED={faults.seed}")
    with capture_logs() as logs:
        async with simulated(speed=speed, faults=faults) as exchange, working(exchange, folder, **changes) as worker:
            await worker.until_ready()
            begin(exchange)
            calm = next_close(exchange.clock.now_ms(), minutes)
            await worker.until(lambda: exchange.clock.now_ms() > calm)
            changed(faults, asdict(Faults(seed=faults.seed)))
            until = calm + 2 * MINUTE
            database = Database(folder)
            await worker.until(lambda: database.decided_until(until, len(exchange.symbols)), what="the last decision")
            # What was given up at T + 30 s is still being fetched.
            await worker.until(lambda: exchange.clock.now_ms() > until + 40_000)
            status = await worker.stop()
            assert_candles_are_the_truth(exchange, database, until, history=240)
            assert_one_decision_a_minute(database, exchange.symbols, until)
            assert status["messages"]["failed"] == 0
    return Aftermath(exchange, database, until, status, logs)


def true_candles(exchange: SimulatedExchange, interval: str, since: dict[str, int], before: int) -> list[Any]:
    """The same rows by the exchange's own account, from each symbol's `since` on."""
    found = []
    for symbol in sorted(since):
        for row in exchange.closed_candles(symbol, interval, since[symbol], before):
            open_time, o, h, low, c, volume, close_time, quote, trades, buy, buy_quote, _ = row
            numbers = [float(x) for x in (o, h, low, c, volume, quote)]
            found.append((symbol, open_time, close_time, *numbers, trades, float(buy), float(buy_quote)))
    return found


def assert_candles_are_the_truth(exchange: SimulatedExchange, database: Database, before: int, history: int) -> None:
    """Every interval holds exactly the exchange's candles from `history` 1m candles before the first start to `before`.

    That the first row is early enough is asserted apart: a table of nothing would equal a truth of nothing.
    """
    for interval, length in LENGTHS.items():
        end = before - before % length
        rows = database.candles(interval, end)
        since = {symbol: open_time for symbol, open_time, *_ in reversed(rows)}
        assert sorted(since) == sorted(exchange.symbols)
        enough = history if interval == "1m" else 96
        assert all((end - first) // length >= enough for first in since.values())
        truth = true_candles(exchange, interval, since, end)
        missing, wrong = sorted(set(truth) - set(rows)), sorted(set(rows) - set(truth))
        assert (interval, missing, wrong) == (interval, [], [])
        assert len(rows) == len(truth)


def assert_one_decision_a_minute(
    database: Database, symbols: Iterable[str], until: int, after: int | None = None
) -> dict[str, int]:
    """Each symbol has one row for each minute from its first one (or `after`) to T = `until`; returns the statuses."""
    rows = database.rows("SELECT symbol, close_time, status FROM signals WHERE close_time <= ?", until)
    for symbol in symbols:
        minutes = sorted(close_time for name, close_time, _ in rows if name == symbol)
        first = after + MINUTE if after is not None else minutes[0]
        assert minutes == list(range(first, until + MINUTE, MINUTE)), symbol
    return dict(Counter(status for _, _, status in rows))


def next_close(now_ms: int, minutes: int = 1) -> int:
    """T of the minutes-th close after this instant."""
    return now_ms - now_ms % MINUTE + minutes * MINUTE
