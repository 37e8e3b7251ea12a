"""The arithmetic on the shared budget, and ledgers that share one in memory."""

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from perpline.common.clock import ManualClock
from perpline.common.errors import RateLimited, Unavailable
from perpline.exchange.binance.budget import (
    FORGOTTEN_MS,
    MEMBER_MS,
    MINUTE_MS,
    PRIORITIES,
    SHARES,
    Budget,
    Claim,
    Part,
    Priority,
    block_size,
    read_budget,
    settled,
    write_budget,
)
from perpline.exchange.binance.weight import LOOK_S, WeightLedger

MINUTE = 1_790_526_540_000
NOW = MINUTE + 10_000


def claim(name: str = "a", **changes: Any) -> Claim:
    return Claim(**{"name": name, "now": NOW, "minute": MINUTE, "total": 800, "spent": 0, **changes})


def leases(budget: Budget) -> dict[str, int]:
    return {name: part.leased for name, part in budget.parts.items()}


def test_the_first_lease_is_a_block() -> None:
    budget = settled(Budget(), claim(cost=1, waiting=1))

    assert leases(budget) == {"a": 100}


def test_a_block_is_smaller_the_more_processes_share() -> None:
    budget = Budget(MINUTE, parts={"b": Part(NOW), "c": Part(NOW), "gone": Part(NOW - MEMBER_MS)})

    assert leases(settled(budget, claim(cost=1)))["a"] == 800 // (8 * 3)


def test_a_lease_covers_what_waits_and_no_more_than_the_priority_may_have() -> None:
    budget = Budget(MINUTE, parts={"b": Part(NOW, 650)})

    assert leases(settled(budget, claim(cost=1, priority="polls")))["a"] == 30
    assert leases(settled(budget, claim(cost=31, priority="polls")))["a"] == 0
    assert leases(settled(budget, claim(cost=31, waiting=31, priority="heal")))["a"] == 31
    assert leases(settled(budget, claim(cost=1, waiting=500, priority="heal")))["a"] == 50
    assert leases(settled(budget, claim(cost=1, waiting=1, priority="bulk")))["a"] == 0


def test_beyond_the_share_of_polls_a_heal_takes_nothing_ahead() -> None:
    budget = Budget(MINUTE, parts={"b": Part(NOW, 700)})

    assert leases(settled(budget, claim(cost=2, waiting=3, priority="heal")))["a"] == 3


def test_what_was_used_without_a_lease_is_claimed_when_it_is_told() -> None:
    assert leases(settled(Budget(MINUTE), claim(spent=70, held=30)))["a"] == 70


def test_weight_beyond_all_leases_is_foreign_and_takes_from_the_budget() -> None:
    budget = Budget(MINUTE, parts={"b": Part(NOW, 100)})
    after = settled(budget, claim(spent=50, held=50, foreign=400, cost=1, priority="polls"))

    assert after.foreign == 300
    assert after.others("a") == 400
    assert settled(after, claim("b", spent=100, held=100)).foreign == 300


def test_of_the_others_a_block_each_counts_in_the_next_minute() -> None:
    budget = Budget(MINUTE - MINUTE_MS, 30, {"b": Part(NOW - 20_000, 300), "c": Part(NOW - 20_000, 5)})
    after = settled(budget, claim(spent=7))

    assert (after.minute, after.foreign, leases(after)) == (MINUTE, 0, {"a": 7, "b": 800 // 24, "c": 5})


def test_the_lease_of_a_killed_process_ends_with_its_minute() -> None:
    """But for the block that may have been on its way, which ends a minute later."""
    budget = Budget(MINUTE, parts={"killed": Part(NOW, 600)})
    following = settled(budget, claim(minute=MINUTE + MINUTE_MS, now=NOW + MINUTE_MS))
    after = settled(following, claim(minute=MINUTE + 2 * MINUTE_MS, now=NOW + 2 * MINUTE_MS, cost=1))

    assert leases(following)["killed"] == block_size(800, 2)
    assert leases(after)["killed"] <= block_size(800, 1)
    assert after.members("a", NOW + 2 * MINUTE_MS) == 1

    much_later = settled(budget, claim(minute=MINUTE + 3 * MINUTE_MS, now=NOW + 3 * MINUTE_MS))
    assert leases(much_later)["killed"] == 0


def test_a_process_that_is_gone_is_forgotten_when_its_pools_are_empty() -> None:
    budget = Budget(MINUTE, parts={"b": Part(NOW, 0, {"funding": 400})})
    later = NOW + 5 * MINUTE_MS
    assert settled(budget, claim(minute=later - 10_000, now=later)).pool_others("a", "funding", later) == 400

    later = NOW + FORGOTTEN_MS
    assert list(settled(budget, claim(minute=later - 10_000, now=later)).parts) == ["a"]


def test_a_process_whose_clock_is_behind_gets_nothing_until_it_turned() -> None:
    budget = Budget(MINUTE + MINUTE_MS, parts={"b": Part(NOW, 50)})
    after = settled(budget, claim(cost=1, pools={"funding": 3}))

    assert leases(after) == {"a": 0, "b": 50}
    assert after.minute == MINUTE + MINUTE_MS
    assert after.parts["a"].pools == {"funding": 3}


def test_a_budget_from_far_in_the_future_is_taken_for_a_mistake() -> None:
    budget = Budget(MINUTE + 100 * MINUTE_MS, 700, {"b": Part(NOW + 100 * MINUTE_MS, 700)})

    assert leases(settled(budget, claim(cost=1))) == {"a": 100}


def test_the_longest_block_holds() -> None:
    budget = settled(Budget(MINUTE), claim(blocked_until=NOW + 5000, next_ban_ms=7))
    after = settled(budget, claim("b", blocked_until=NOW + 3000, next_ban_ms=9))

    assert (after.blocked_until, after.next_ban_ms) == (NOW + 5000, 7)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"minute":"x"}', '{"parts":{"a":5}}', "\x00", "null"])
def test_a_text_that_makes_no_sense_is_an_empty_budget(text: str) -> None:
    assert read_budget(text) == Budget()


def test_a_budget_is_read_as_it_was_written() -> None:
    budget = Budget(MINUTE, 3, {"ä": Part(NOW, 4, {"funding": 2})}, NOW + 1, 120_000)

    assert read_budget(write_budget(budget)) == budget


names = st.sampled_from(["a", "b", "c", "d"])


@settings(max_examples=300)
@given(
    st.integers(50, 2000),
    st.lists(
        st.tuples(
            names,
            st.sampled_from([0, 0, 0, 100, 5000, 30_000, 200_000]),
            st.integers(0, 60),
            st.integers(0, 100),
            st.sampled_from(PRIORITIES),
            st.floats(0, 1),
        ),
        max_size=60,
    ),
)
def test_leases_never_add_up_to_more_than_the_budget(
    total: int, steps: list[tuple[str, int, int, int, Priority, float]]
) -> None:
    """Each process uses some of its lease and asks for more; minutes turn between."""
    budget, now = Budget(), NOW
    held: dict[str, tuple[int, int, int]] = {}
    for name, pause_ms, cost, more, priority, used in steps:
        now += pause_ms
        minute = now - now % MINUTE_MS
        of, spent, lease = held.get(name, (0, 0, 0))
        if of != minute:
            spent, lease = 0, 0
        spent = max(spent, int(lease * used))
        asked = claim(
            name,
            now=now,
            minute=minute,
            total=total,
            spent=spent,
            held=lease,
            cost=cost,
            waiting=cost + more,
            priority=priority,
        )
        before = budget
        budget = settled(budget, asked)
        lease = budget.parts[name].leased
        held[name] = (minute, spent, lease)

        assert budget.minute == minute
        assert lease >= spent
        everything = budget.others(name) + lease
        unused = spent == 0 and budget.others(name) == 0
        assert everything <= max(total * SHARES[priority], before.others(name) + asked.held, cost if unused else 0)
        assert everything <= max(total, 60)


class Whiteboard:
    """A shared text in memory; its calls may be made to fail, and the loop runs on between."""

    def __init__(self) -> None:
        self.where = "memory"
        self.text = ""
        self.away = False
        self.reads = 0
        self.swaps = 0

    async def read(self) -> str:
        self.reads += 1
        await self._travel()
        return self.text

    async def swap(self, before: str, after: str) -> bool:
        self.swaps += 1
        await self._travel()
        if self.text != before:
            return False
        self.text = after
        return True

    async def close(self) -> None:
        return

    async def _travel(self) -> None:
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("memory: gone")


def ledgers(count: int, board: Whiteboard, clock: ManualClock, **settings: Any) -> list[WeightLedger]:
    return [WeightLedger(clock, shared=board, name=f"p{n}", **settings) for n in range(count)]


async def settle() -> None:
    for _ in range(60):
        await asyncio.sleep(0)


async def use(ledger: WeightLedger, cost: int, priority: Priority = "orders") -> None:
    ledger.done(await ledger.acquire(cost, priority=priority))


async def test_requests_within_a_lease_ask_nobody() -> None:
    board, clock = Whiteboard(), ManualClock(NOW)
    [ledger] = ledgers(1, board, clock, limit=1000)
    for _ in range(100):
        await use(ledger, 1)

    assert (board.reads, board.swaps) == (1, 1)
    for _ in range(100):
        await use(ledger, 1)
    assert (board.reads, board.swaps) == (2, 2)


async def test_after_half_a_second_the_budget_is_looked_at_again_and_not_written() -> None:
    board, clock = Whiteboard(), ManualClock(NOW)
    [ledger] = ledgers(1, board, clock)
    await use(ledger, 1)
    clock.advance(LOOK_S)
    await use(ledger, 1)

    assert (board.reads, board.swaps) == (2, 1)


@pytest.mark.parametrize("count", [2, 3, 8])
async def test_processes_that_share_use_no_more_than_the_budget_together(count: int) -> None:
    board, clock = Whiteboard(), ManualClock(NOW)
    sharing = ledgers(count, board, clock, limit=300)
    asked = [asyncio.create_task(use(ledger, 1, "polls")) for _ in range(300) for ledger in sharing]
    for _ in range(100):
        await settle()
        clock.advance(0.1)

    together = sum(ledger.facts()["weight_own"] for ledger in sharing)
    assert 204 - 30 <= together <= 204

    await asyncio.gather(*(use(ledger, 1, "heal") for ledger in sharing))
    for ledger in sharing:
        await ledger.close()
    await asyncio.gather(*asked, return_exceptions=True)


async def test_requests_to_pools_are_known_to_the_others() -> None:
    board, clock = Whiteboard(), ManualClock(NOW)
    first, second = ledgers(2, board, clock)
    for _ in range(475):
        first.done(await first.acquire(1, "funding", priority="polls"))
    clock.advance(LOOK_S)
    waiting = asyncio.create_task(first.acquire(1, "funding", priority="polls"))
    await settle()
    refused = asyncio.create_task(second.acquire(1, "funding", priority="polls"))
    await settle()
    assert not waiting.done()
    assert not refused.done()
    waiting.cancel()
    refused.cancel()


async def test_what_stops_one_process_stops_all() -> None:
    board, clock = Whiteboard(), ManualClock(NOW)
    first, second = ledgers(2, board, clock)
    await use(second, 1)
    first.block(418)
    await settle()
    clock.advance(LOOK_S)

    with capture_logs() as logs, pytest.raises(RateLimited) as caught:
        await use(second, 1)
    assert caught.value.retry_after_s == 120 - LOOK_S
    assert [entry["event"] for entry in logs] == ["stopped_with_another_process"]
    assert second.block(418) == 240

    clock.advance(240)
    await use(first, 1)


async def test_while_the_budget_is_away_each_keeps_to_its_part_and_says_so() -> None:
    board, clock = Whiteboard(), ManualClock(NOW)
    first, second = ledgers(2, board, clock, limit=200, share=1.0)
    await use(first, 1)
    await use(second, 1)
    clock.advance(LOOK_S)
    await use(first, 20)
    board.away = True
    clock.advance(50)
    with capture_logs() as logs:
        asked = [asyncio.create_task(use(ledger, 1, "heal")) for _ in range(120) for ledger in (first, second)]
        for _ in range(60):
            await settle()
            clock.advance(0.1)
    assert [(entry["event"], entry["own_budget"]) for entry in logs] == [("weight_not_shared", 100)] * 2
    assert [ledger.facts()["weight_own"] for ledger in (first, second)] == [100, 100]
    assert first.facts()["shared"]["away"] == "memory: gone"

    board.away = False
    with capture_logs() as logs:
        clock.advance(5)
        await use(first, 0, "orders")
        for _ in range(5):
            await settle()
    assert "weight_shared_again" in [entry["event"] for entry in logs]
    assert read_budget(board.text).parts["p0"].leased == 100
    for ledger in (first, second):
        await ledger.close()
    await asyncio.gather(*asked, return_exceptions=True)


async def test_a_bug_in_the_ledger_is_heard_by_whoever_waits() -> None:
    class Broken(Whiteboard):
        async def read(self) -> str:
            raise ZeroDivisionError

    ledger = WeightLedger(ManualClock(NOW), shared=Broken(), name="a")
    with capture_logs(), pytest.raises(ZeroDivisionError):
        await use(ledger, 1)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(2, 4),
    st.integers(100, 300),
    st.sampled_from([1, 5, 20]),
    st.lists(st.integers(-100, 100), min_size=4, max_size=4),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_the_exchange_never_counts_more_than_its_limit_from_all_together(
    count: int, requests: int, pause_ms: int, clock_errors_ms: list[int], told: bool, seed: int
) -> None:
    """Close to the turn of a minute, with clocks that differ; some die with a request under way.

    The leases alone have to hold where the exchange does not say what it counted.
    """
    limit = 150
    rng = random.Random(seed)
    counted: dict[int, int] = {}

    async def ask(ledger: WeightLedger, clock: ManualClock, cost: int, latency_ms: int, priority: Priority) -> None:
        try:
            permit = await ledger.acquire(cost, priority=priority)
        except Unavailable:
            return
        arrival_ms = rng.randrange(latency_ms + 1)
        await clock.sleep(arrival_ms / 1000)
        minute = clock.now_ms() // MINUTE_MS
        counted[minute] = seen = counted.get(minute, 0) + cost
        await clock.sleep((latency_ms - arrival_ms) / 1000)
        if rng.random() < 0.95:  # else the process died, and its slot with it
            if told:
                ledger.observe(seen, permit)
            ledger.done(permit)

    async def scenario() -> None:
        clock = ManualClock(MINUTE - 1000)
        board = Whiteboard()
        sharing = []
        for n in range(count):
            own = ManualClock(clock.now_ms())
            own.offset_ms = clock_errors_ms[n]
            sharing.append((WeightLedger(own, limit=limit, shared=board, name=f"p{n}"), own))

        def advance(ms: int) -> None:
            clock.set_ms(clock.now_ms() + ms)
            for _, own in sharing:
                own.set_ms(clock.now_ms())

        tasks = []
        for _ in range(requests):
            advance(rng.choice([0, pause_ms]))
            await asyncio.sleep(0)
            ledger, _ = rng.choice(sharing)
            cost, latency_ms, priority = rng.choice([2, 10]), rng.choice([0, 10, 100]), rng.choice(PRIORITIES[2:])
            tasks.append(asyncio.create_task(ask(ledger, clock, cost, latency_ms, priority)))
        for _ in range(60):
            await settle()
            advance(50)
        for _ in range(70):
            await settle()
            advance(2000)
        for ledger, _ in sharing:
            await ledger.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scenario())

    assert all(weight <= limit for weight in counted.values())
