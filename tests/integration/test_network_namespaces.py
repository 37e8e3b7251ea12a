"""Collectors and inference workers on hosts of their own: network namespaces, joined by a bridge, and a cable cut."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from perpline.domain.candle import MINUTE_MS
from postgres_server import PostgresDatabase
from running import Database, simulated
from sharing import QUOTES, TIMINGS, a_fleet, before_long

HOSTS = ("c1", "c2", "i1", "i2")
HERE = "10.213.77.1"
"""Our end of the bridge."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def hosts() -> Iterator[dict[str, str]]:
    """Namespaces by the name of their host, each with an address beside ours. Skips where they may not be made."""
    if shutil.which("ip") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("making network namespaces wants Linux, root and ip (iproute2)")
    mark = f"pp{os.getpid() % 10_000}"
    made: dict[str, str] = {}
    try:
        try:
            ip("link", "add", f"{mark}br", "type", "bridge")
            ip("addr", "add", f"{HERE}/24", "dev", f"{mark}br")
            ip("link", "set", f"{mark}br", "up")
            for number, host in enumerate(HOSTS):
                ip("netns", "add", f"{mark}{host}")
                made[host] = f"{mark}{host}"
                ip("link", "add", f"{mark}{host}", "type", "veth", "peer", "name", "eth0", "netns", f"{mark}{host}")
                ip("link", "set", f"{mark}{host}", "master", f"{mark}br", "up")
                ip("-n", f"{mark}{host}", "addr", "add", f"10.213.77.{number + 11}/24", "dev", "eth0")
                ip("-n", f"{mark}{host}", "link", "set", "eth0", "up")
                ip("-n", f"{mark}{host}", "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces may not be made here: {error.stderr.decode().strip()}")
        yield made
    finally:
        for name in made.values():
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", f"{mark}br"], check=False, capture_output=True)


@asynccontextmanager
async def reachable(target: str | tuple[str, int]) -> AsyncIterator[int]:
    """The port on our end of the bridge that leads to a Unix socket or a port of this host."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        where = asyncio.open_unix_connection(target) if isinstance(target, str) else asyncio.open_connection(*target)
        there_reader, there_writer = await where
        try:
            await asyncio.gather(_pass_on(reader, there_writer), _pass_on(there_reader, writer))
        finally:
            writer.close()
            there_writer.close()

    serving: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))
        serving.add(task)
        task.add_done_callback(serving.discard)

    server = await asyncio.start_server(connected, HERE, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(serving):
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.close()


def from_there(url: str, port: int) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{HERE}:{port}"))


@pytest.mark.full
@pytest.mark.timeout(420)
async def test_hosts_of_their_own_decide_what_one_process_decides_and_a_cut_cable_changes_nothing(
    tmp_path: Path, redis_url: str, postgres_database: PostgresDatabase
) -> None:
    if not redis_url.startswith("unix://") or "host=/" not in postgres_database.url:
        pytest.skip("the servers are somebody else's: what they are reached by from a namespace is not known")
    postgres_socket = urlsplit(postgres_database.url).query.split("host=")[1].split("&")[0] + "/.s.PGSQL.5432"
    with hosts() as namespaces:
        async with (
            simulated(speed=5.0, symbols=6) as exchange,
            reachable(redis_url.removeprefix("unix://")) as redis_port,
            reachable(postgres_socket) as postgres_port,
            reachable(("127.0.0.1", urlsplit(exchange.http_url).port or 0)) as http_port,
            reachable(("127.0.0.1", urlsplit(exchange.ws_url).port or 0)) as ws_port,
            a_fleet(exchange, tmp_path, slot="hosts", book_minutes=False) as fleet,
        ):
            shared = {
                "database_url": f"postgresql://postgres@{HERE}:{postgres_port}/{postgres_database.name}?sslmode=disable",
                "redis_url": f"redis://{HERE}:{redis_port}/0",
                "binance_futures_rest_url": from_there(exchange.http_url, http_port),
                "binance_futures_ws_url": from_there(exchange.ws_url, ws_port),
            }

            def rows(query: str) -> list[tuple[Any, ...]]:
                try:
                    return postgres_database.rows(query)
                except asyncpg.UndefinedTableError:
                    return []

            async def until_decided(close_time: int) -> None:
                query = f"SELECT 1 FROM signals WHERE close_time = {close_time} AND status <> 'skipped_missed'"
                await before_long(lambda: len(rows(query)) == 6, 60.0, f"decided at {close_time}")

            await fleet.start("one")
            for host, options in (
                ("c1", ("--role", "collector", "--shard", "1/2")),
                ("c2", ("--role", "collector", "--shard", "2/2")),
                ("i1", ("--role", "inference")),
                ("i2", ("--role", "inference")),
            ):
                inside = ("ip", "netns", "exec", namespaces[host])
                await fleet.start(host, *options, inside=inside, **shared)
            one = Database(tmp_path / "one")
            await before_long(
                lambda: one.decisions() and rows("SELECT 1 FROM signals LIMIT 1"), 120.0, "first decisions"
            )
            newest = "SELECT max(close_time) FROM signals"
            first = max(one.value(newest), rows(newest)[0][0]) + MINUTE_MS
            await until_decided(first)
            ip("link", "set", namespaces["i1"], "down")  # the veth has its namespace's name
            await until_decided(first + MINUTE_MS)
            await until_decided(first + 2 * MINUTE_MS)
            ip("link", "set", namespaces["i1"], "up")
            last = first + 3 * MINUTE_MS
            await until_decided(last)
            await before_long(lambda: one.decided_until(last, 6), 30.0, "the last minute")

            columns = [
                name
                for (name,) in one.rows("SELECT name FROM pragma_table_info('signals')")
                if name not in TIMINGS | QUOTES | {"seq"}
            ]
            span = f"WHERE close_time BETWEEN {first} AND {last} ORDER BY symbol, close_time"
            query = f"SELECT {', '.join(columns)} FROM signals {span}"
            assert rows(query) == one.rows(query)
            query = f"SELECT symbol, close_time, features, p_long, p_short FROM predictions {span}"
            assert rows(query) == one.rows(query)
            twice = "SELECT 1 FROM signals GROUP BY slot, symbol, close_time HAVING count(*) > 1"
            assert rows(twice) == []
            codes = await fleet.stop()
            assert [code for code in codes if code not in (0, -signal.SIGKILL)] == []
