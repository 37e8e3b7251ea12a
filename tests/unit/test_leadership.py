"""One process leads at any time, whoever is frozen, cut off or killed, and whatever the database does."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpline.common.clock import ManualClock
from perpline.common.errors import Fenced, Unavailable
from perpline.leadership import SPARE, TTL_S, Leadership, is_dead, new_owner, shown_owner
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import Lease

T0 = 1_790_000_000_000


class OneLease:
    """A store of one lease; `away` names the owners whose questions it does not answer."""

    def __init__(self) -> None:
        self.row: Lease | None = None
        self.away: set[str] = set()

    def of(self, owner: str) -> "Asked":
        return Asked(self, owner)


class Asked:
    def __init__(self, store: OneLease, owner: str) -> None:
        self._store, self._owner = store, owner

    def _answers(self) -> None:
        if self._owner in self._store.away:
            raise Unavailable("the database is away")

    async def lease(self, name: str) -> Lease | None:
        self._answers()
        return self._store.row

    async def take_lease(self, name: str, owner: str, now: int, until: int) -> int | None:
        self._answers()
        row = self._store.row
        if row is not None and row.owner != owner and row.until > now:
            return None
        fencing = 1 if row is None else row.fencing + (row.owner != owner)
        self._store.row = Lease(owner=owner, until=until, fencing=fencing)
        return fencing

    async def drop_lease(self, name: str, owner: str) -> None:
        self._answers()
        if self._store.row is not None and self._store.row.owner == owner:
            self._store.row = Lease(owner="", until=0, fencing=self._store.row.fencing)


class Host:
    """A process with a clock of its own, that can be frozen: then its time goes by and it does nothing."""

    def __init__(self, store: OneLease, owner: str, offset_ms: int = 0) -> None:
        self.clock = ManualClock(T0 + offset_ms)
        self.leadership = Leadership(store.of(owner), self.clock, "leader:a", owner)  # type: ignore[arg-type]
        self.frozen = False
        self._due_s = 0.0

    async def lives(self, seconds: float) -> None:
        """One step of its life: what `run` does, at the times at which it does it."""
        self.clock.advance(seconds)
        if self.frozen or self.clock.wall_s() < self._due_s:
            return
        held = self.leadership.holds
        await (self.leadership._renew() if held else self.leadership._ask())
        self._due_s = self.clock.wall_s() + self.leadership._pause_s()


async def lived(hosts: list[Host], seconds: float, step_s: float = 0.1) -> float | None:
    """Let time go by; returns after how long the first led, None if nobody did. Two never lead at once."""
    first = None
    for n in range(round(seconds / step_s)):
        for host in hosts:
            await host.lives(step_s)
            assert sum(each.leadership.leads for each in hosts) <= 1
        if first is None and any(host.leadership.leads for host in hosts):
            first = n * step_s
    return first


async def test_who_is_alone_leads_at_once() -> None:
    store = OneLease()
    alone = Host(store, "a")

    assert await alone.leadership.attempt()

    assert alone.leadership.leads
    assert alone.leadership.fence().fencing == 1
    assert alone.leadership.predecessor == ""


async def test_a_killed_leader_is_replaced_within_four_seconds_and_a_living_one_never() -> None:
    store = OneLease()
    a, b = Host(store, "a"), Host(store, "b", offset_ms=-3_600_000)  # its clock is an hour behind: nobody compares
    await lived([a, b], 20)
    assert (a.leadership.leads, b.leadership.leads) == (True, False)
    assert b.leadership.status()["leader"] == "a"

    a.frozen = True
    after = None
    for n in range(60):
        await lived([a, b], 0.1)
        if b.leadership.leads:
            after = n / 10
            break

    assert after is not None
    assert TTL_S - 1.1 <= after <= 4.0
    assert b.leadership.predecessor == "a"
    assert b.leadership.fence().fencing == 2


async def test_a_frozen_leader_knows_by_itself_that_it_leads_no_more_and_then_that_it_has_lost() -> None:
    store = OneLease()
    a, b = Host(store, "a"), Host(store, "b")
    await lived([a, b], 5)
    a.frozen = True
    await lived([a, b], 10)

    a.frozen = False  # and before it has asked anybody:
    assert (a.leadership.leads, a.leadership.holds, a.leadership.is_cut_off) == (False, True, False)
    lost = asyncio.ensure_future(a.leadership.until_lost())
    await lived([a, b], 1.5)

    assert not a.leadership.holds
    await lost
    with pytest.raises(Fenced):
        a.leadership.fence()
    assert b.leadership.leads


async def test_who_gives_the_lease_back_is_replaced_at_the_next_question() -> None:
    store = OneLease()
    a, b = Host(store, "a"), Host(store, "b")
    await lived([a, b], 5)

    await a.leadership.drop()

    after = await lived([b], 2)
    assert after is not None
    assert after <= 0.6
    assert b.leadership.predecessor == ""


async def test_after_an_outage_of_the_database_the_old_leader_goes_on() -> None:
    store = OneLease()
    a, b = Host(store, "a"), Host(store, "b")
    await lived([a, b], 5)
    store.away = {"a", "b"}
    await lived([a, b], 60)
    assert (a.leadership.leads, a.leadership.holds, a.leadership.is_cut_off) == (False, True, True)

    store.away = set()
    await lived([a, b], 10)

    assert a.leadership.leads
    assert a.leadership.fence().fencing == 1
    assert not a.leadership.is_cut_off


async def test_a_leader_cut_off_from_the_database_is_replaced_and_hears_of_it_when_it_is_back() -> None:
    store = OneLease()
    a, b = Host(store, "a"), Host(store, "b")
    await lived([a, b], 5)
    store.away = {"a"}
    await lived([a, b], 6)
    assert b.leadership.leads
    assert a.leadership.holds, "nobody has told it"

    store.away = set()
    await lived([a, b], 2)

    assert not a.leadership.holds


async def test_hosts_that_were_suspended_together_do_not_change_roles() -> None:
    store = OneLease()
    a, b = Host(store, "a"), Host(store, "b")
    await lived([a, b], 5)
    a.frozen = b.frozen = True
    await lived([a, b], 100)
    a.frozen = b.frozen = False

    await lived([b, a], 10)

    assert a.leadership.leads
    assert a.leadership.fence().fencing == 1


async def test_an_answer_that_came_too_late_is_not_lost() -> None:
    """The database took the lease for us, and we had given up waiting."""
    store = OneLease()
    store.row = Lease(owner="a", until=T0 + 99, fencing=4)
    a = Host(store, "a")

    assert await a.leadership.attempt()
    assert a.leadership.fence().fencing == 4


events = st.lists(
    st.tuples(
        st.sampled_from(["freeze", "wake", "away", "back", "drop", "step back"]),
        st.integers(0, 2),
        st.floats(0.1, 8.0),
    ),
    max_size=12,
)


@given(events)
@settings(deadline=None, max_examples=60)
def test_whatever_happens_two_never_lead_and_in_the_end_one_does(happens: Any) -> None:
    async def play() -> None:
        store = OneLease()
        hosts = [Host(store, owner) for owner in "abc"]
        await lived(hosts, 2)
        fencing = 0
        for what, who, seconds in happens:
            host, owner = hosts[who], "abc"[who]
            if what in ("freeze", "wake"):
                host.frozen = what == "freeze"
            elif what == "drop" and not host.frozen and owner not in store.away:
                await host.leadership.drop()
            elif what == "step back":
                host.clock.offset_ms -= 100_000
            else:
                (store.away.add if what == "away" else store.away.discard)(owner)
            await lived(hosts, seconds)
            if store.row is not None:
                assert store.row.fencing >= fencing
                fencing = store.row.fencing
        store.away.clear()
        for host in hosts:
            host.frozen = False
        await lived(hosts, 6)
        assert sum(host.leadership.leads for host in hosts) == 1

    asyncio.run(play())


# ---- with a database


@asynccontextmanager
async def running(leadership: Leadership) -> AsyncIterator[Leadership]:
    task = asyncio.create_task(leadership.run())
    try:
        yield leadership
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def soon(awaited: Awaitable[None]) -> None:
    async with asyncio.timeout(5):
        await awaited


async def test_the_lease_is_held_and_handed_on_in_a_database(tmp_path: Path) -> None:
    from perpline.common.clock import SystemClock

    stores = [SqliteStore(tmp_path / "a.db") for _ in range(2)]
    for store in stores:
        await store.open()
    first, second = (
        Leadership(store, SystemClock(), "leader:a", new_owner(), ttl_s=0.4, renew_every_s=0.1, ask_every_s=0.05)
        for store in stores
    )
    async with running(first):
        await soon(first.until_held())
        async with running(second):
            await asyncio.sleep(0.6)
            assert (first.leads, second.leads) == (True, False)
            await first.drop()
            await soon(second.until_held())
            assert second.fence().fencing == 2
            await second.drop()
    for store in stores:
        await store.close()


def test_a_dead_process_of_this_host_is_known_to_be_dead() -> None:
    owner = new_owner()
    host, _, token = owner.rpartition(f"/{os.getpid()}/")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    of_child = f"{host}/{child.pid}/{token}"

    assert not is_dead(owner)
    assert not is_dead(of_child)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_dead(of_child), "killed, and its parent has not looked yet"
    child.wait()
    assert is_dead(of_child)
    assert not is_dead(f"elsewhere/{host.partition('/')[2]}/{child.pid}/{token}"), "a number on another host"
    assert not is_dead("")
    assert str(child.pid) in shown_owner(of_child)
    assert child.stdin is not None
    child.stdin.close()


def test_who_waits_counts_longer_than_who_holds() -> None:
    assert SPARE > 1
