"""From the outbox to a real server that is stopped and started, by a publisher that dies."""

import asyncio
import random
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace
from redis import Redis
from redis.exceptions import ResponseError
from structlog.testing import capture_logs

from perpline.bus.redis import RedisBus, translated
from perpline.common.clock import ManualClock
from perpline.common.errors import Unavailable
from perpline.domain.signal import Decision
from perpline.signals.engine import signal_message
from perpline.signals.publisher import Publisher
from perpline.storage.sqlite import SqliteStore
from running import eventually
from signalling import MINUTE, T0, decision, flat
from valkey_server import ValkeyServer

SYMBOLS = ("AUSDT", "BUSDT")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    yield store
    await store.close()


async def commit(store: SqliteStore, decisions: Sequence[Decision]) -> None:
    await store.commit_decisions(decisions, [], [signal_message(one) for one in decisions], 1)


def minute(n: int) -> list[Decision]:
    return [decision("AUSDT", n), flat("BUSDT", n)]


@asynccontextmanager
async def publishing(publisher: Publisher, clock: ManualClock) -> AsyncIterator[None]:
    """The publisher runs, and market time goes on by milliseconds, so that its waits end."""

    async def tick() -> None:
        while True:
            await asyncio.sleep(0.002)
            clock.advance(0.01)

    tasks = [asyncio.create_task(publisher.run()), asyncio.create_task(tick())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def entries(url: str, symbol: str) -> list[tuple[str, dict[str, str]]]:
    with Redis.from_url(url, decode_responses=True) as client:
        found: list[tuple[str, dict[str, str]]] = client.xrange(f"sig:champion:{symbol}")
    return found


async def test_what_was_decided_while_the_server_was_away_enters_in_order_and_only_what_is_valid_is_announced(
    durable_valkey: ValkeyServer, store: SqliteStore
) -> None:
    clock = ManualClock(T0 + 2 * MINUTE + 100)
    bus = RedisBus(durable_valkey.url)
    await bus.open()
    publisher = Publisher(store, bus, clock, random.Random(7))
    for n in range(3):
        await commit(store, minute(n))
    await publisher.flush()
    durable_valkey.stop()
    for n in range(3, 9):
        await commit(store, minute(n))
    still_valid = T0 + 20 * MINUTE
    await commit(store, [replace(one, valid_until=still_valid) for one in minute(9)])
    clock.set_ms(T0 + 9 * MINUTE + 1000)

    async with publishing(publisher, clock):
        await eventually(lambda: publisher.statistics().failures >= 2)
        durable_valkey.start()
        with Redis.from_url(durable_valkey.url, decode_responses=True) as client, client.pubsub() as heard:
            heard.psubscribe("sig.*")
            heard.get_message(timeout=5)
            back_at = clock.now_us()
            await eventually(lambda: publisher.statistics().published == 20)
            await eventually(lambda: publisher.statistics().failures == 0)
            announced = []
            while (one := heard.get_message(timeout=0.2)) is not None:
                announced.append(one["channel"])
    await bus.close()

    valid_until = [*(T0 + n * MINUTE + 30_000 for n in range(9)), still_valid]
    for symbol in SYMBOLS:
        found = entries(durable_valkey.url, symbol)
        assert [entry for entry, _ in found] == [f"{T0 + n * MINUTE}-0" for n in range(10)]
        assert [fields["seq"] for _, fields in found] == [str(n + 1) for n in range(10)]
        assert [int(fields["valid_until"]) for _, fields in found] == valid_until
        published = [int(fields["t_pub_us"]) for _, fields in found]
        assert published[:3] == [(T0 + 2 * MINUTE + 100) * 1000] * 3
        assert min(published[3:]) >= back_at - 1_000_000
    assert announced == ["sig.AUSDT", "sig.BUSDT"]
    assert await store.pending_messages(10) == []


async def test_a_server_that_forgot_everything_gets_what_comes_next(store: SqliteStore) -> None:
    """Streams are not the place of record: what was published before is in the database."""
    clock = ManualClock(T0)
    server = ValkeyServer()
    server.start()
    try:
        bus = RedisBus(server.url)
        await bus.open()
        publisher = Publisher(store, bus, clock, random.Random(7))
        await commit(store, minute(0))
        await publisher.flush()
        server.stop()
        server.start()
        await commit(store, minute(1))
        async with publishing(publisher, clock):
            await eventually(lambda: publisher.statistics().published == 4)
        await bus.close()

        assert [entry for entry, _ in entries(server.url, "AUSDT")] == [f"{T0 + MINUTE}-0"]
    finally:
        server.remove()


DYING_PUBLISHER = """
    import asyncio, os, random, signal, sys
    from perpline.bus.redis import RedisBus
    from perpline.common.clock import SystemClock
    from perpline.signals.publisher import Publisher
    from perpline.storage.sqlite import SqliteStore

    path, url, now, batches = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

    def published(messages, wall_us):
        global batches
        batches -= 1
        if batches == 0:
            os.kill(os.getpid(), signal.SIGKILL)  # the server has them, the outbox does not know it

    async def main():
        store, bus = SqliteStore(path), RedisBus(url)
        await store.open()
        await bus.open()
        publisher = Publisher(
            store, bus, SystemClock(anchor_ms=now), random.Random(1), batch_size=7, on_published=published
        )
        await publisher.flush()
        await store.close()
        await bus.close()

    asyncio.run(main())
"""


async def test_a_publisher_killed_between_publishing_and_marking_has_published_each_signal_once(
    durable_valkey: ValkeyServer, store: SqliteStore
) -> None:
    for n in range(20):
        await commit(store, minute(n))
    arguments = [sys.executable, "-c", textwrap.dedent(DYING_PUBLISHER), str(store.path), durable_valkey.url, str(T0)]
    ends = []
    with Redis.from_url(durable_valkey.url, decode_responses=True) as client, client.pubsub() as heard:
        heard.psubscribe("sig.*")
        heard.get_message(timeout=5)
        for batches in (1, 2, 1, 3, 0):
            process = await asyncio.create_subprocess_exec(*arguments, str(batches))
            ends.append(await process.wait())
        announced = []
        while (one := heard.get_message(timeout=0.2)) is not None:
            announced.append(one["data"])

    assert ends == [-signal.SIGKILL] * 4 + [0]
    for symbol in SYMBOLS:
        found = entries(durable_valkey.url, symbol)
        assert [entry for entry, _ in found] == [f"{T0 + n * MINUTE}-0" for n in range(20)]
    assert len(announced) == len(set(announced)) == 40
    assert await store.pending_messages(10) == []


@pytest.mark.parametrize(
    ("refuse", "take", "why"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"), "memory is full"),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), "name the primary"),
    ],
    ids=["full", "replica"],
)
async def test_a_server_that_refuses_writes_is_told_of_once_and_gets_everything_afterwards(
    durable_valkey: ValkeyServer, store: SqliteStore, refuse: tuple[str, ...], take: tuple[str, ...], why: str
) -> None:
    """An outage of an hour: what waits is read from the outbox by pages, and memory holds one of them."""
    clock = ManualClock(T0 + 100)
    bus = RedisBus(durable_valkey.url)
    await bus.open()
    publisher = Publisher(store, bus, clock, random.Random(7), batch_size=50)
    await commit(store, minute(0))
    await publisher.flush()
    with Redis.from_url(durable_valkey.url) as client, capture_logs() as logs:
        client.execute_command(*refuse)
        for n in range(1, 61):
            await commit(store, minute(n))
        async with publishing(publisher, clock):
            await eventually(lambda: publisher.statistics().failures >= 4)
            assert why in publisher.statistics().last_error
            assert publisher.statistics().pending <= 50
            client.execute_command(*take)
            await eventually(lambda: publisher.statistics().published == 122)
            await eventually(lambda: publisher.statistics().failures == 0)
    await bus.close()

    told = [line["event"] for line in logs if line["log_level"] in ("error", "warning")]
    assert told == ["messages_wait", "messages_go_out_again"]
    for symbol in SYMBOLS:
        assert [entry for entry, _ in entries(durable_valkey.url, symbol)] == [
            f"{T0 + n * MINUTE}-0" for n in range(61)
        ]
    assert await store.pending_messages(10) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", "memory is full"),
        ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist", "cannot save"),
        ("LOADING Redis is loading the dataset in memory", "is starting"),
        ("READONLY You can't write against a read only replica.", "name the primary"),
    ],
)
def test_what_a_server_refuses_for_now_is_said_in_plain_words(text: str, why: str) -> None:
    error = translated(ResponseError(text), "redis://host:6379/0")

    assert isinstance(error, Unavailable)
    assert why in str(error)
