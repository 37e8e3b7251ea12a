"""Two workers with one configuration: one leads, the other takes over within 5 s; no minute is lost or made twice."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen

import apsw
import pytest
from redis.asyncio import Redis

from perpline.bus.wire import stream_name
from perpline.drill.proxy import Proxy
from perpline.simulation.server import SimulatedExchange
from postgres_server import PostgresDatabase
from running import MINUTE, eventually, next_close, settings_file, simulated, true_candles

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("PERPLINE_", "XDG_"))}
SPEED = 4.0
"""At which T + 30 s leaves 7.5 s of wall time to take over in."""
WITHIN_S = 5.0


class Worker:
    """`perpline run` as a process, with a folder of its own."""

    def __init__(self, exchange: SimulatedExchange, folder: Path, **settings: object) -> None:
        folder.mkdir()
        self.folder = folder
        file = settings_file(exchange, folder, log_format="json", log_level="info", **settings)
        self._log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "perpline", "run", "--config", str(file)],
            stdout=self._log, stderr=self._log, env=CLEAN,
        )  # fmt: skip

    def said(self, event: str) -> list[dict[str, Any]]:
        lines = (self.folder / "log").read_text().splitlines()
        return [json.loads(line) for line in lines if f'"{event}"' in line and line.startswith("{")]

    def led(self) -> list[dict[str, Any]]:
        return [line for line in self.said("leading") if line["lease"].startswith("leader:")]

    async def status(self) -> dict[str, Any]:
        [access] = self.folder.glob("worker-*.json")
        found = json.loads(access.read_text())
        request = Request(f"{found['url']}/status", headers={"Authorization": f"Bearer {found['token']}"})
        return await asyncio.to_thread(lambda: json.load(urlopen(request, timeout=5)))

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._log.close()


class Pair:
    """A leader, a standby, the exchange that both hear, and what they have left in the database."""

    def __init__(self, exchange: SimulatedExchange, workers: list[Worker], rows: Callable[[str], list[Any]]) -> None:
        self.exchange = exchange
        self.workers = workers
        self.rows = rows
        self.leader, self.standby = workers

    async def after(self, seconds: float) -> None:
        """Wait until it is this many seconds after a boundary, exchange's time."""
        until = next_close(self.exchange.clock.now_ms() - round(seconds * 1000)) + round(seconds * 1000)
        await eventually(lambda: self.exchange.clock.now_ms() >= until, within_s=40)

    async def taken_over(self) -> float:
        """Seconds until the standby leads."""
        loop = asyncio.get_running_loop()
        began, before = loop.time(), len(self.standby.led())
        await eventually(lambda: len(self.standby.led()) > before, within_s=15, what="the standby leads")
        return loop.time() - began

    async def decided_until(self, minutes: int) -> int:
        """T of the `minutes`-th close from now on, once every symbol has a row for it and its candles are stored."""
        until = next_close(self.exchange.clock.now_ms(), minutes)
        count = len(self.exchange.symbols)
        query = f"SELECT count(*) FROM signals WHERE close_time = {until}"
        await eventually(lambda: self.rows(query) == [(count,)], within_s=60, what="the last decision")
        query = f"SELECT count(*) FROM candles_1m WHERE open_time = {until - MINUTE}"
        await eventually(lambda: self.rows(query) == [(count,)], within_s=60, what="the last candle")
        return until

    def assert_whole(self, until: int) -> dict[str, int]:
        """One decision a minute, none of them missed; candles and mark prices without a hole. Counts statuses."""
        rows = self.rows(f"SELECT symbol, close_time, status FROM signals WHERE close_time <= {until}")
        for symbol in self.exchange.symbols:
            minutes = sorted(close_time for name, close_time, _ in rows if name == symbol)
            assert minutes == list(range(minutes[0], until + MINUTE, MINUTE)), symbol
        sent = self.rows(f"SELECT symbol, close_time FROM outbox WHERE kind = 'signal' AND close_time <= {until}")
        assert sorted(sent) == sorted({(symbol, close_time) for symbol, close_time, _ in rows})
        columns = "symbol, open_time, close_time, open, high, low, close, volume, quote_volume, trades, "
        columns += "taker_buy_volume, taker_buy_quote_volume"
        stored = self.rows(f"SELECT {columns} FROM candles_1m WHERE open_time < {until} ORDER BY symbol, open_time")
        since = {symbol: open_time for symbol, open_time, *_ in reversed(stored)}
        assert stored == true_candles(self.exchange, "1m", since, until)
        first = min(close_time for _, close_time, _ in rows)
        marks = self.rows(f"SELECT symbol, minute FROM premium_index WHERE minute >= {first} AND minute < {until}")
        minutes = range(first, until - 2 * MINUTE, MINUTE)  # the last one's row may still be waiting
        assert {(symbol, minute) for symbol in self.exchange.symbols for minute in minutes} <= set(marks)
        statuses = dict(Counter(status for _, _, status in rows))
        assert "skipped_missed" not in statuses
        return statuses


class Shared:
    """What two workers have in common. `reached_by` are the settings of the first where it goes another way."""

    def __init__(
        self,
        settings: dict[str, object],
        rows: Callable[[str], list[Any]],
        reached_by: dict[str, object] | None = None,
    ) -> None:
        self.settings = settings
        self.rows = rows
        self.reached_by = reached_by or {}


def one_file(folder: Path) -> Shared:
    path = folder / "shared.db"

    def rows(query: str) -> list[Any]:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        connection.set_busy_timeout(5000)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    return Shared({"database_url": f"sqlite:///{path}"}, rows)


@asynccontextmanager
async def pair(folder: Path, shared: Shared, speed: float = SPEED, **settings: object) -> AsyncIterator[Pair]:
    """Two workers, the first of which leads, both ready."""
    workers: list[Worker] = []
    async with simulated(speed=speed) as exchange:
        try:
            first = Worker(exchange, folder / "first", **{**settings, **shared.settings, **shared.reached_by})
            workers.append(first)
            await eventually(first.led, within_s=40, what="the first leads")
            second = Worker(exchange, folder / "second", **settings, **shared.settings)
            workers.append(second)
            for worker in workers:
                await eventually(lambda worker=worker: worker.said("worker_ready"), within_s=60, what="ready")
            # The standby keeps rows from here on; what the leader still holds of before would be lost with it.
            query = (
                f"SELECT * FROM premium_index WHERE minute >= {next_close(exchange.clock.now_ms()) - MINUTE} LIMIT 1"
            )
            await eventually(lambda: shared.rows(query), within_s=90, what="a row of the standby's time is stored")
            yield Pair(exchange, workers, shared.rows)
        finally:
            for worker in workers:
                worker.end()


async def test_a_standby_on_the_same_file_takes_over_from_a_killed_leader(tmp_path: Path) -> None:
    async with pair(tmp_path, one_file(tmp_path), speed=8) as found:
        assert (await found.standby.status())["leadership"]["leads"] is False
        await found.after(58.0)  # so that the close falls into the time without a leader
        found.leader.send(signal.SIGKILL)

        # A dead process of the same host is not waited for.
        assert await found.taken_over() < 2.0

        found.assert_whole(await found.decided_until(1))


async def test_what_a_process_elsewhere_has_not_stored_is_in_the_gap_ledger_of_who_takes_over(tmp_path: Path) -> None:
    """A start that cannot know that the one before is dead, as in a new container, waits for its lease to run out."""
    shared = one_file(tmp_path)
    tables = (("premium_index", "minute"), ("book_minutes", "minute"), ("candles_1m", "open_time"))

    def has_rows(table: str, time: str, since: int) -> bool:
        query = f"SELECT count(DISTINCT symbol) FROM {table} WHERE {time} >= {since}"
        return shared.rows(query) == [(len(exchange.symbols),)]

    async with simulated(speed=30) as exchange:
        workers = [Worker(exchange, tmp_path / "first", **shared.settings)]
        try:
            await eventually(lambda: workers[0].said("worker_ready"), within_s=60, what="ready")
            for table in tables:  # each is written at its own time
                await eventually(partial(has_rows, *table, 0), within_s=30, what=table[0])
            workers[0].send(signal.SIGKILL)
            await asyncio.sleep(6.0)  # three minutes of market
            database = apsw.Connection(str(tmp_path / "shared.db"))
            database.execute("UPDATE leases SET owner = 'another host/boot/pid:[1]/7/abcd'")
            # As if it had been down for the length of a window: only a candle that is older than the next window.
            database.execute("DELETE FROM candles_1m WHERE open_time > (SELECT min(open_time) FROM candles_1m)")
            database.close()

            workers.append(Worker(exchange, tmp_path / "second", **shared.settings))
            await eventually(lambda: workers[1].said("worker_ready"), within_s=60, what="ready")
            assert workers[1].said("standing_by")
            until = next_close(exchange.clock.now_ms(), 2)
            for table in tables:
                await eventually(partial(has_rows, *table, until), within_s=30, what=table[0])

            for name, time in tables:
                for symbol in exchange.symbols:
                    rows = {at for (at,) in shared.rows(f"SELECT {time} FROM {name} WHERE symbol = '{symbol}'")}
                    gaps = shared.rows(
                        f"SELECT from_time, to_time FROM gaps WHERE symbol = '{symbol}' AND series = '{name}'"
                    )
                    assert gaps, (name, symbol)
                    named = {at for start, end in gaps for at in range(start, end, MINUTE)}
                    missing = set(range(min(rows), until, MINUTE)) - rows
                    assert missing, (name, symbol)
                    assert missing <= named, (name, symbol)
        finally:
            for worker in workers:
                worker.end()


# ---- with a server between them


async def killed(found: Pair, proxy: Proxy) -> None:
    found.leader.send(signal.SIGKILL)


async def frozen(found: Pair, proxy: Proxy) -> None:
    found.leader.send(signal.SIGSTOP)


async def hung_up_on(found: Pair, proxy: Proxy) -> None:
    proxy.hang()


async def refused(found: Pair, proxy: Proxy) -> None:
    await proxy.refuse()


async def stopped(found: Pair, proxy: Proxy) -> None:
    found.leader.send(signal.SIGTERM)


@pytest.mark.full
@pytest.mark.parametrize("happens", [killed, frozen, hung_up_on, refused, stopped])
@pytest.mark.parametrize("at_s", [30.0, 58.0, 60.3])
async def test_a_standby_takes_over_and_who_led_before_is_fenced_off(
    happens: Callable[[Pair, Proxy], Awaitable[None]],
    at_s: float,
    postgres_database: PostgresDatabase,
    redis_url: str,
    tmp_path: Path,
) -> None:
    socket = socket_of(postgres_database.url)
    async with Proxy(lambda: asyncio.open_unix_connection(socket)) as proxy, heard(redis_url) as announced:
        shared = Shared(
            {"database_url": postgres_database.url, "redis_url": redis_url},
            postgres_database.rows,
            {"database_url": f"postgresql://postgres@127.0.0.1:{proxy.port}/{postgres_database.name}"},
        )
        async with pair(tmp_path, shared) as found:
            began = next_close(found.exchange.clock.now_ms())
            await found.after(at_s)
            await happens(found, proxy)
            assert await found.taken_over() < WITHIN_S
            await found.decided_until(1)

            found.leader.send(signal.SIGCONT)
            await proxy.heal()
            if happens not in (killed, stopped):
                await eventually(lambda: found.leader.said("fenced"), what="the old leader is fenced off")
                assert (await found.leader.status())["leadership"]["leads"] is False
            until = await found.decided_until(2)
            found.assert_whole(until)
            assert found.leader.process.poll() == {killed: -signal.SIGKILL, stopped: 0}.get(happens)

            client = Redis.from_url(redis_url, decode_responses=True)
            for symbol in found.exchange.symbols:
                ids = [entry for entry, _ in await client.xrange(stream_name("champion", symbol), min=f"{began}-0")]
                minutes = [int(entry.split("-")[0]) for entry in ids]
                assert [t for t in minutes if t <= until] == list(range(began, until + MINUTE, MINUTE))
            await client.aclose()
            assert max(announced.values()) == 1, "no signal was announced twice"

            if happens in (frozen, hung_up_on, refused):  # it stands by, and can lead again
                assert not found.leader.said("worker_stopped")
                found.standby.send(signal.SIGKILL)
                await eventually(lambda: len(found.leader.led()) == 2, within_s=WITHIN_S, what="it leads again")
                found.assert_whole(await found.decided_until(2))


def socket_of(database_url: str) -> str:
    path = Path(parse_qs(urlsplit(database_url).query).get("host", [""])[0], ".s.PGSQL.5432")
    if not path.exists():
        pytest.skip("the proxy stands before a server on a Unix socket")
    return str(path)


@asynccontextmanager
async def heard(redis_url: str) -> AsyncIterator[Counter[tuple[str, int]]]:
    """How often each signal was announced: by symbol and T."""
    client = Redis.from_url(redis_url, decode_responses=True)
    await client.flushdb()
    counts: Counter[tuple[str, int]] = Counter()
    listening = client.pubsub()
    await listening.psubscribe("sig.*")

    async def listen() -> None:
        async for told in listening.listen():
            if told["type"] == "pmessage" and told["channel"] != "sig.close":
                message = json.loads(told["data"])
                counts[(message["sym"], message["T"])] += 1

    task = asyncio.create_task(listen())
    try:
        yield counts
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await listening.aclose()
        await client.aclose()
