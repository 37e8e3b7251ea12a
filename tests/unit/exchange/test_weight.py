import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpline.common.clock import ManualClock
from perpline.common.errors import RateLimited, Unavailable
from perpline.exchange.binance.budget import PRIORITIES, SHARES, Priority
from perpline.exchange.binance.endpoints import Pool
from perpline.exchange.binance.weight import LONGEST_WAIT_S, MAX_WAITING, Permit, WeightLedger

MINUTE_MS = 60_000
MARGIN_S = 0.25
START = 1_790_526_540_000 + 10_000  # ten seconds into a minute
MINUTE = START - 10_000


def ledger_at(now_ms: int = START, **settings: Any) -> tuple[WeightLedger, ManualClock]:
    clock = ManualClock(now_ms)
    return WeightLedger(clock, **settings), clock


async def settle() -> None:
    for _ in range(12):
        await asyncio.sleep(0)


async def use(ledger: WeightLedger, cost: int, pool: Pool = "weight", priority: Priority = "orders") -> None:
    """A request that is answered at once."""
    ledger.done(await ledger.acquire(cost, pool, priority=priority))


def asking(ledger: WeightLedger, cost: int = 1, priority: Priority = "orders") -> "asyncio.Task[Permit]":
    return asyncio.create_task(ledger.acquire(cost, priority=priority))


async def test_weight_beyond_the_budget_waits_for_the_next_minute() -> None:
    ledger, clock = ledger_at(MINUTE + 59_000, limit=100, share=0.5)
    await use(ledger, 50)
    late = asking(ledger)
    await settle()
    clock.advance(0.9)
    await settle()
    assert not late.done()
    assert ledger.used == 50

    clock.advance(0.1 + MARGIN_S)
    await late

    assert ledger.used == 1


async def test_minutes_turn_by_the_exchanges_clock() -> None:
    ledger, clock = ledger_at(MINUTE - 1500)
    clock.offset_ms = 1500
    await use(ledger, 7)
    clock.advance(59.0)
    assert ledger.used == 7

    clock.advance(1.0)

    assert ledger.used == 0


async def test_a_clock_put_back_over_the_turn_forgets_nothing() -> None:
    ledger, clock = ledger_at(MINUTE + 30)
    await use(ledger, 7)
    clock.set_ms(MINUTE - 30)

    assert ledger.used == 7


async def test_what_is_under_way_at_the_turn_counts_in_both_minutes() -> None:
    ledger, clock = ledger_at()
    under_way = await ledger.acquire(30, priority="orders")
    await use(ledger, 5)
    clock.advance(55)
    assert ledger.used == 30

    ledger.done(under_way)
    clock.advance(60)

    assert ledger.used == 0


async def test_what_went_out_just_before_the_turn_counts_in_both_minutes() -> None:
    ledger, clock = ledger_at(MINUTE - 100)
    await use(ledger, 5)
    clock.advance(0.2)

    assert ledger.used == 5


async def test_the_first_moments_of_a_minute_keep_within_what_the_last_one_left() -> None:
    ledger, clock = ledger_at(MINUTE - 5000, limit=100, share=1.0)
    await use(ledger, 95)
    clock.advance(5.1)
    small, large = asking(ledger, 5), asking(ledger, 1)
    await settle()
    assert (small.done(), large.done()) == (True, False)

    clock.advance(MARGIN_S)
    await large


async def test_what_the_exchange_counted_wins_where_it_is_more() -> None:
    ledger, _ = ledger_at(limit=100, share=0.8)
    permit = await ledger.acquire(10, priority="orders")
    ledger.observe(75, permit)
    ledger.observe(20, permit)
    ledger.done(permit)

    late = asking(ledger, 10)
    await settle()

    assert ledger.used == 75
    assert not late.done()
    await ledger.close()
    with pytest.raises(Unavailable):
        await late


@pytest.mark.parametrize("sent_at", [MINUTE - 1000, MINUTE + 100])
async def test_a_count_from_around_the_turn_of_the_minute_is_passed_over(sent_at: int) -> None:
    ledger, clock = ledger_at(sent_at)
    permit = await ledger.acquire(1, priority="orders")
    clock.set_ms(MINUTE + 2000)
    ledger.observe(1900, permit)

    assert ledger.used == 1


async def test_a_request_larger_than_the_budget_goes_out_in_an_unused_minute() -> None:
    ledger, _ = ledger_at(limit=10, share=1.0)

    await use(ledger, 40)

    assert ledger.used == 40


@pytest.mark.parametrize("priority", PRIORITIES)
async def test_a_priority_fills_a_minute_up_to_its_share(priority: Priority) -> None:
    ledger, _ = ledger_at(limit=1000, share=1.0)
    asked = [asyncio.create_task(use(ledger, 1, priority=priority)) for _ in range(1000)]
    await settle()
    for _ in range(1000):
        await asyncio.sleep(0)

    assert ledger.used == 1000 * SHARES[priority]
    await ledger.close()
    await asyncio.gather(*asked, return_exceptions=True)


async def test_a_heal_does_not_wait_behind_150_polls() -> None:
    ledger, clock = ledger_at(MINUTE + 55_000, limit=100, share=1.0)
    polls = [asyncio.create_task(use(ledger, 1, priority="polls")) for _ in range(150)]
    await settle()
    await asyncio.wait_for(use(ledger, 1, priority="heal"), 1)
    assert ledger.used == 86

    bulk = asking(ledger, 1, "bulk")
    heals = [asyncio.create_task(use(ledger, 1, priority="heal")) for _ in range(30)]
    await settle()
    assert sum(heal.done() for heal in heals) == 9

    clock.advance(5 + MARGIN_S)
    await asyncio.gather(*heals)
    for _ in range(20):
        await settle()

    facts = ledger.facts()["by_priority"]
    assert (facts["heal"]["weight"], facts["polls"]["weight"]) == (21, 64)
    assert (facts["polls"]["waiting"], facts["bulk"]["waiting"]) == (1, 1)
    bulk.cancel()
    await ledger.close()
    await asyncio.gather(*polls, return_exceptions=True)


async def test_polls_under_way_leave_slots_to_a_heal() -> None:
    ledger, _ = ledger_at(concurrency=4)
    polls = [asking(ledger, 1, "polls") for _ in range(5)]
    await settle()
    assert [poll.done() for poll in polls] == [True, True, False, False, False]

    await use(ledger, 1, priority="heal")
    ledger.done(await polls[0])
    await settle()

    assert [poll.done() for poll in polls] == [True, True, True, False, False]
    for poll in polls:
        poll.cancel()


async def test_a_line_for_one_pool_holds_up_no_other() -> None:
    ledger, _ = ledger_at()
    for _ in range(475):
        await use(ledger, 1, "funding")
    waiting = asyncio.create_task(use(ledger, 1, "funding"))
    await settle()
    await use(ledger, 1, "futures_data", "bulk")
    await use(ledger, 1, "weight", "bulk")

    assert not waiting.done()
    waiting.cancel()


@pytest.mark.parametrize("priority", PRIORITIES)
async def test_a_request_that_finds_no_turn_in_time_is_given_back(priority: Priority) -> None:
    ledger, clock = ledger_at(limit=100, share=1.0)
    held = [await ledger.acquire(0, priority="orders") for _ in range(10)]  # every slot is taken
    waiting = asking(ledger, 1, priority)
    await settle()
    clock.advance(LONGEST_WAIT_S[priority] - 0.01)
    await settle()
    assert not waiting.done()

    clock.advance(0.02)
    with pytest.raises(Unavailable) as caught:
        await waiting

    assert not isinstance(caught.value, RateLimited)
    assert caught.value.retry_after_s is not None
    assert ledger.facts()["by_priority"][priority]["given_back"] == 1
    assert len(held) == 10


async def test_of_too_many_that_wait_the_least_important_gives_way() -> None:
    ledger, _ = ledger_at(limit=100, share=1.0, concurrency=1)
    await ledger.acquire(1, priority="orders")
    polls = [asking(ledger, 1, "polls") for _ in range(MAX_WAITING)]
    await settle()
    with pytest.raises(Unavailable):
        await ledger.acquire(1, priority="polls")

    heal = asking(ledger, 1, "heal")
    with pytest.raises(Unavailable):
        await polls[-1]

    assert not heal.done()
    await ledger.close()
    await asyncio.gather(*polls, heal, return_exceptions=True)


async def test_whoever_gave_up_waiting_takes_nothing() -> None:
    ledger, clock = ledger_at(MINUTE + 59_000, limit=10, share=1.0)
    await use(ledger, 10)
    gone, waiting = asking(ledger, 10), asking(ledger, 10)
    await settle()
    gone.cancel()
    clock.advance(1 + MARGIN_S)
    await waiting

    assert ledger.used == 10


@pytest.mark.parametrize(("pool", "limit"), [("futures_data", 950), ("funding", 475)])
async def test_a_pool_is_kept_in_any_five_minutes(pool: Pool, limit: int) -> None:
    ledger, clock = ledger_at(START + 250_000)
    for _ in range(limit):
        await use(ledger, 1, pool)
    clock.advance(250)
    late = asyncio.create_task(use(ledger, 1, pool, "polls"))
    await settle()
    clock.advance(49)
    await settle()
    assert not late.done()
    assert ledger.used == 0

    clock.advance(1.1)
    await late

    assert ledger.pool_used(pool) == 1


@pytest.mark.parametrize(
    ("status", "retry_after_s", "until", "expected_s"),
    [
        (429, 17.0, None, 17.0),
        (418, 600.0, None, 600.0),
        (429, None, None, 40.0),
        (418, None, None, 120.0),
        (418, None, MINUTE + 30_000, 10.0),
        (429, 1e9, None, 259_200.0),
    ],
)
async def test_a_block_lasts_as_long_as_it_says_or_as_its_kind(
    status: int, retry_after_s: float | None, until: int | None, expected_s: float
) -> None:
    ledger, clock = ledger_at(MINUTE + 20_000)

    assert ledger.block(status, retry_after_s, until) == expected_s
    assert ledger.blocked_until == MINUTE + 20_000 + int(expected_s * 1000)
    with pytest.raises(RateLimited) as caught:
        await ledger.acquire(1, priority="orders")
    assert caught.value.retry_after_s == expected_s

    clock.advance(expected_s)
    await use(ledger, 1)
    assert ledger.blocked_until == 0


async def test_bans_of_unstated_length_double_until_a_success() -> None:
    ledger, clock = ledger_at()
    lengths = []
    for _ in range(3):
        lengths.append(ledger.block(418))
        clock.advance(lengths[-1])
    ledger.succeeded()
    lengths.append(ledger.block(418))

    assert lengths == [120, 240, 480, 120]


async def test_whoever_waits_is_told_of_a_block_at_once() -> None:
    ledger, _ = ledger_at(limit=10, share=1.0)
    await use(ledger, 10)
    waiting = asking(ledger)
    await settle()
    ledger.block(418)

    with pytest.raises(RateLimited):
        await waiting


async def test_requests_are_counted_by_market_minute() -> None:
    ledger, clock = ledger_at()
    await use(ledger, 1)
    clock.advance(61)
    await use(ledger, 1, "funding")
    await use(ledger, 1)

    assert ledger.requests_total == 3
    assert ledger.requests_by_minute == {MINUTE: 1, MINUTE + MINUTE_MS: 2}


async def test_the_minutes_kept_are_bounded() -> None:
    ledger, clock = ledger_at()
    for _ in range(500):
        await use(ledger, 1)
        clock.advance(60)

    assert len(ledger.requests_by_minute) == 120
    assert ledger.requests_total == 500


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.integers(-8, 12).map(lambda step: step * 50),  # ms from the turn of the minute
            st.sampled_from([1, 5, 10, 40]),
            st.sampled_from([0, 10, 100, 400, 3000]),
            st.sampled_from(PRIORITIES[:3]),
        ),
        min_size=8,
        max_size=40,
    ),
    st.integers(50, 100),
    st.integers(-200, 200),
    st.integers(0, 2**32),
)
def test_the_exchange_never_counts_more_than_the_budget_in_a_minute(
    requests: list[tuple[int, int, int, Priority]], limit: int, clock_error_ms: int, seed: int
) -> None:
    """By its own clock, which differs from our estimate, at some moment between request and answer."""
    rng = random.Random(seed)
    counted: dict[int, int] = {}

    async def ask(ledger: WeightLedger, clock: ManualClock, cost: int, latency_ms: int, priority: Priority) -> None:
        try:
            permit = await ledger.acquire(cost, priority=priority)
        except Unavailable:
            return
        arrival_ms = rng.randrange(latency_ms + 1)
        await clock.sleep(arrival_ms / 1000)
        minute = (clock.now_ms() + clock_error_ms) // MINUTE_MS
        counted[minute] = seen = counted.get(minute, 0) + cost
        await clock.sleep((latency_ms - arrival_ms) / 1000)
        ledger.observe(seen, permit)
        ledger.done(permit)

    async def scenario() -> None:
        clock = ManualClock(MINUTE - 1000)
        ledger = WeightLedger(clock, limit=limit, share=0.8)
        tasks = []
        now = MINUTE - 400
        for at, cost, latency_ms, priority in sorted(requests):
            while now <= MINUTE + at:
                clock.set_ms(now)
                await settle()
                now += 50
            tasks.append(asyncio.create_task(ask(ledger, clock, cost, latency_ms, priority)))
            await settle()
        while not all(task.done() for task in tasks):
            clock.advance(0.05 if clock.now_ms() < MINUTE + 1000 else 1)
            await settle()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())

    # One that is larger than its priority's share may go out alone.
    assert all(weight <= max(limit * 0.8, 40) for weight in counted.values())
