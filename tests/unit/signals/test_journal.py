import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from msgspec import json
from msgspec.structs import replace

from perpline.bus.memory import MemoryBus
from perpline.collector.spool import Spool
from perpline.common.clock import ManualClock
from perpline.common.errors import Fenced, Unavailable
from perpline.domain.signal import Decision, Message, Prediction
from perpline.signals.engine import signal_message
from perpline.signals.journal import SPOOLED, Journal
from perpline.signals.publisher import Publisher
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import Committed, Fence
from running import eventually
from signalling import MINUTE, T0, decision, flat

SYMBOLS = ("AUSDT", "BUSDT")


class Store(SqliteStore):
    """Refuses while `away`; while `hanging` it stores a commit and does not say so; says Fenced when `fenced`."""

    away = hanging = fenced = False
    commits = 0

    async def commit_decisions(
        self,
        decisions: Sequence[Decision],
        predictions: Sequence[Prediction],
        messages: Sequence[Message],
        t_commit: int,
        fence: Fence | None = None,
    ) -> Committed:
        self._there()
        if self.fenced and fence is not None:
            raise Fenced("the lease is another's")
        self.commits += 1
        committed = await super().commit_decisions(decisions, predictions, messages, t_commit)
        if self.hanging:
            await asyncio.sleep(3600)
        return committed

    async def pending_messages(self, limit: int) -> list[Message]:
        self._there()
        return await super().pending_messages(limit)

    async def mark_published(self, ids: Sequence[int], published_at: int) -> None:
        self._there()
        await super().mark_published(ids, published_at)

    async def last_seqs(self, slot: str) -> dict[str, int]:
        self._there()
        return await super().last_seqs(slot)

    def _there(self) -> None:
        if self.away:
            raise Unavailable("the database is away")


class Bus(MemoryBus):
    """Notes the kind and T of all that it was given."""

    def __init__(self) -> None:
        super().__init__(keep=1000)
        self.given: list[tuple[str, int]] = []

    async def publish(self, messages: list[Message], now_ms: int) -> None:
        self.given += [(one.kind, one.close_time) for one in messages]
        await super().publish(messages, now_ms)


class Desk:
    """A journal with all that it is joined to."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock(T0)
        self.store = Store(folder / "perpline.db")
        self.spool = Spool(folder / "spool", 4 << 20, self.clock, reserved={SPOOLED: 1 << 20})
        self.bus = Bus()
        self.leads = True
        self.fence: Fence | None = None
        self.publisher = Publisher(
            self.store,
            self.bus,
            self.clock,
            random.Random(7),
            is_spooling=lambda: self.journal.has_kept,
            leads=lambda: self.leads,
        )
        self.journal = Journal(
            self.store,
            self.spool,
            self.publisher,
            self.clock,
            "champion",
            fence=lambda: self.fence,
            patience_s=0.1,
        )

    async def commit(self, n: int) -> Committed:
        """The n-th minute of both symbols, told to be complete."""
        decisions = [decision("AUSDT", n), flat("BUSDT", n)]
        closed = Message(
            id=0,
            kind="close",
            slot="champion",
            symbol="",
            close_time=T0 + n * MINUTE,
            payload="{}",
            valid_until=T0 + (n + 1) * MINUTE,
        )
        messages = [*map(signal_message, decisions), closed]
        committed = await self.journal.commit(decisions, [], messages, 1)
        self.publisher.wake(committed.messages)
        return committed

    def streamed(self, symbol: str = "AUSDT") -> list[tuple[int, int]]:
        """(minute, seq) of the entries in a symbol's stream."""
        return [
            ((int(entry.id.partition("-")[0]) - T0) // MINUTE, int(entry.fields["seq"]))
            for entry in self.bus.stream("champion", symbol)
        ]

    async def stored(self) -> list[tuple[int, str, int]]:
        rows = await self.store.select("SELECT close_time, symbol, seq FROM signals ORDER BY close_time, symbol")
        return [((close_time - T0) // MINUTE, symbol, seq) for close_time, symbol, seq in rows]


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    desk = Desk(tmp_path)
    await desk.store.open()
    await desk.spool.open()
    await desk.journal.recover()
    yield desk
    await desk.spool.close()
    await desk.store.close()


@contextlib.asynccontextmanager
async def running(desk: Desk) -> AsyncIterator[None]:
    async def tick() -> None:
        while True:
            await asyncio.sleep(0.002)
            desk.clock.advance(0.05)

    work = (desk.journal.run(), desk.publisher.run(), tick())
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def minutes(*numbers: int) -> list[tuple[int, str, int]]:
    return [(n, symbol, n + 1) for n in numbers for symbol in SYMBOLS]


async def test_decisions_go_on_while_the_database_is_away_and_reach_it_in_order(desk: Desk) -> None:
    async with running(desk):
        await desk.commit(0)
        await eventually(lambda: desk.streamed() == [(0, 1)])
        desk.store.away = True
        for n in range(1, 6):
            committed = await desk.commit(n)
            assert [one.symbol for one in committed.decisions] == list(SYMBOLS)
            await eventually(lambda n=n: desk.streamed()[-1] == (n, n + 1))
        assert desk.journal.statistics().waiting == 5

        desk.store.away = False
        await eventually(lambda: not desk.journal.has_kept)
        await desk.commit(6)
        await eventually(lambda: desk.streamed()[-1] == (6, 7))

    assert await desk.stored() == minutes(*range(7))
    assert desk.streamed("BUSDT") == [(n, n + 1) for n in range(7)]
    assert await desk.store.pending_messages(100) == []
    assert sorted(desk.bus.given) == sorted((kind, T0 + n * MINUTE) for n in range(7) for kind in
                                            ("signal", "signal", "close"))  # fmt: skip


async def test_a_commit_that_hangs_is_kept_published_and_stored_once(desk: Desk) -> None:
    async with running(desk):
        await desk.commit(0)
        desk.store.hanging = True
        await desk.commit(1)
        await eventually(lambda: desk.streamed() == [(0, 1), (1, 2)])
        desk.store.hanging = False
        await eventually(lambda: not desk.journal.has_kept)
        await desk.commit(2)
        await eventually(lambda: desk.streamed()[-1] == (2, 3))

    assert await desk.stored() == minutes(0, 1, 2)
    assert len(desk.bus.given) == len(set(desk.bus.given)) + 3  # two symbols have a signal each
    assert await desk.store.pending_messages(100) == []


async def test_who_may_not_lead_any_more_keeps_and_publishes_nothing_of_it(desk: Desk) -> None:
    async with running(desk):
        await desk.commit(0)
        await eventually(lambda: desk.streamed() == [(0, 1)])
        desk.store.away, desk.leads = True, False
        await desk.commit(1)
        await desk.commit(2)
        await asyncio.sleep(0.05)
        assert desk.streamed() == [(0, 1)]

        desk.store.away = False
        await eventually(lambda: not desk.journal.has_kept)
        desk.leads = True
        await eventually(lambda: desk.streamed() == [(0, 1), (1, 2), (2, 3)])

    assert await desk.stored() == minutes(0, 1, 2)


async def test_what_lies_unpublished_in_the_outbox_is_not_overtaken_by_the_spool(desk: Desk) -> None:
    """A stream takes nothing older than its newest entry: what was overtaken would be missing for ever."""
    await desk.commit(0)  # and nobody publishes yet
    desk.store.away = True
    desk.publisher.wake()
    async with running(desk):
        await desk.commit(1)
        await asyncio.sleep(0.05)
        assert desk.streamed() == []
        desk.store.away = False
        await eventually(lambda: desk.streamed() == [(0, 1), (1, 2)])

    assert await desk.stored() == minutes(0, 1)


async def test_a_successor_stores_first_what_a_dead_process_kept(desk: Desk, tmp_path: Path) -> None:
    await desk.commit(0)
    desk.store.away = True
    await desk.commit(1)
    await desk.commit(2)
    await desk.spool.close()  # as its death would
    desk.store.away = False

    successor = Desk(tmp_path)
    successor.store, successor.bus = desk.store, desk.bus
    successor.publisher._store = successor.journal._store = desk.store  # the file is open already
    successor.publisher._bus = desk.bus
    await successor.spool.open()
    assert await successor.journal.recover([successor.spool]) == 4
    async with running(successor):
        await successor.commit(3)
        await eventually(lambda: desk.streamed() == [(n, n + 1) for n in range(4)])
    await successor.spool.close()
    await desk.spool.open()

    assert await desk.stored() == minutes(0, 1, 2, 3)


async def test_a_decision_that_another_process_made_meanwhile_stands(desk: Desk) -> None:
    await desk.commit(0)
    desk.store.away = True
    await desk.commit(1)
    desk.store.away = False
    other = replace(decision("AUSDT", 1), side=-1)
    await desk.store.commit_decisions([other], [], [signal_message(other)], 1)

    await desk.journal.store_kept()

    assert await desk.store.select(f"SELECT symbol, side FROM signals WHERE close_time = {T0 + MINUTE} ORDER BY 1") == [
        ("AUSDT", -1),
        ("BUSDT", 0),
    ]


async def test_where_the_disk_takes_nothing_either_nothing_is_published_and_who_asked_waits(desk: Desk) -> None:
    class Full:
        """A spool on a disk that is full."""

        def count(self, kind: str) -> int:
            return 0

        async def append(self, kind: str, payload: bytes, *, sync: bool = False) -> None:
            raise Unavailable("the spool takes nothing: No space left on device")

    desk.journal._spool = Full()  # type: ignore[assignment]
    desk.store.away = True
    async with running(desk):
        with pytest.raises(Unavailable, match="the database is away; and the spool takes nothing"):
            await desk.commit(0)
        desk.store.away = False
        await desk.commit(0)
        await eventually(lambda: desk.streamed() == [(0, 1)])

    assert await desk.stored() == minutes(0)


async def test_a_fenced_commit_is_heard_and_not_kept(desk: Desk) -> None:
    desk.fence, desk.store.fenced = Fence("leader:champion", "me", 1), True

    with pytest.raises(Fenced):
        await desk.commit(0)

    assert not desk.journal.has_kept


async def test_a_record_that_nobody_can_read_does_not_stop_those_behind_it(desk: Desk) -> None:
    await desk.commit(0)
    desk.store.away = True
    await desk.spool.append(SPOOLED, b"another version's")
    await desk.commit(1)
    desk.store.away = False

    await desk.journal.store_kept()

    assert await desk.stored() == minutes(0, 1)


async def test_what_was_kept_twice_by_a_cancelled_commit_is_counted_once(desk: Desk) -> None:
    async with running(desk):
        await desk.commit(0)
        await eventually(lambda: desk.streamed() == [(0, 1)])
        desk.store.away = True
        await desk.commit(1)
        again = await desk.commit(1)
        await desk.commit(2)
        await eventually(lambda: desk.streamed() == [(0, 1), (1, 2), (2, 3)])
        desk.store.away = False
        await eventually(lambda: not desk.journal.has_kept)

    assert again.decisions == []
    assert await desk.stored() == minutes(0, 1, 2)
    assert [json.decode(one.payload)["seq"] for one in (await desk.store.pending_messages(10))] == []
