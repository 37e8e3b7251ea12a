import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpline.common.clock import ManualClock
from perpline.common.errors import RateLimited
from perpline.exchange.binance.weight import WeightLedger

MINUTE_MS = 60_000
START = 1_790_526_540_000  # on the minute


def ledger_at(now_ms: int = START, **settings: float) -> tuple[WeightLedger, ManualClock]:
    clock = ManualClock(now_ms)
    return WeightLedger(clock, **settings), clock  # type: ignore[arg-type]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_weight_beyond_the_budget_waits_for_the_next_minute() -> None:
    ledger, clock = ledger_at(limit=100, share=0.5)
    await ledger.acquire(50)
    late = asyncio.create_task(ledger.acquire(1))
    await settle()
    clock.advance(59.9)
    await settle()
    assert not late.done()
    assert ledger.used == 50

    clock.advance(0.2)
    await late

    assert ledger.used == 1


async def test_minutes_turn_by_the_exchanges_clock() -> None:
    ledger, clock = ledger_at(START - 1500)
    clock.offset_ms = 1500
    await ledger.acquire(7)
    clock.advance(59.0)
    assert ledger.used == 7

    clock.advance(1.0)

    assert ledger.used == 0


async def test_what_the_exchange_counted_wins_where_it_is_more() -> None:
    ledger, _ = ledger_at(limit=100, share=0.8)
    await ledger.acquire(10)
    sent_in = ledger.sent()
    ledger.observe(75, sent_in)
    ledger.observe(20, sent_in)

    late = asyncio.create_task(ledger.acquire(10))
    await settle()

    assert ledger.used == 75
    assert not late.done()
    late.cancel()


async def test_a_count_that_crossed_the_minute_is_passed_over() -> None:
    ledger, clock = ledger_at()
    sent_in = ledger.sent()
    clock.advance(60)
    ledger.observe(1900, sent_in)

    assert ledger.used == 0


async def test_a_request_larger_than_the_budget_goes_out_in_an_unused_minute() -> None:
    ledger, _ = ledger_at(limit=10, share=1.0)

    await ledger.acquire(40)

    assert ledger.used == 40


@pytest.mark.parametrize(("pool", "limit"), [("futures_data", 950), ("funding", 475)])
async def test_a_pool_is_kept_in_any_five_minutes(pool: str, limit: int) -> None:
    ledger, clock = ledger_at(START + 250_000)
    for _ in range(limit):
        await ledger.acquire(1, pool)  # type: ignore[arg-type]
    late = asyncio.create_task(ledger.acquire(1, pool))  # type: ignore[arg-type]
    await settle()
    clock.advance(299)
    await settle()
    assert not late.done()
    assert ledger.used == 0

    clock.advance(1.1)
    await late

    assert ledger.pool_used(pool) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "retry_after_s", "until", "expected_s"),
    [
        (429, 17.0, None, 17.0),
        (418, 600.0, None, 600.0),
        (429, None, None, 40.0),
        (418, None, None, 120.0),
        (418, None, START + 30_000, 10.0),
        (429, 1e9, None, 259_200.0),
    ],
)
async def test_a_block_lasts_as_long_as_it_says_or_as_its_kind(
    status: int, retry_after_s: float | None, until: int | None, expected_s: float
) -> None:
    ledger, clock = ledger_at(START + 20_000)

    assert ledger.block(status, retry_after_s, until) == expected_s
    assert ledger.blocked_until == START + 20_000 + int(expected_s * 1000)
    with pytest.raises(RateLimited) as caught:
        await ledger.acquire(1)
    assert caught.value.retry_after_s == expected_s

    clock.advance(expected_s)
    await ledger.acquire(1)
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


async def test_whoever_waits_is_told_of_a_block() -> None:
    ledger, clock = ledger_at(limit=10, share=1.0)
    await ledger.acquire(10)
    waiting = asyncio.create_task(ledger.acquire(1))
    await settle()
    ledger.block(418)
    clock.advance(61)

    with pytest.raises(RateLimited):
        await waiting


async def test_requests_are_counted_by_market_minute() -> None:
    ledger, clock = ledger_at()
    ledger.sent()
    clock.advance(61)
    ledger.sent()
    ledger.sent()

    assert ledger.requests_total == 3
    assert ledger.requests_by_minute == {START: 1, START + MINUTE_MS: 2}


def test_the_minutes_kept_are_bounded() -> None:
    ledger, clock = ledger_at()
    for _ in range(500):
        ledger.sent()
        clock.advance(60)

    assert len(ledger.requests_by_minute) == 120
    assert ledger.requests_total == 500


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0, 90)), max_size=40), st.integers(50, 200))
def test_no_minute_ever_holds_more_than_the_budget(requests: list[tuple[int, float]], limit: int) -> None:
    async def scenario() -> None:
        ledger, clock = ledger_at(START + 12_345, limit=limit, share=0.8)
        granted: dict[int, int] = {}

        async def ask(cost: int) -> None:
            await ledger.acquire(cost)
            minute = clock.now_ms() // MINUTE_MS
            granted[minute] = granted.get(minute, 0) + cost

        tasks = []
        for cost, pause_s in requests:
            tasks.append(asyncio.create_task(ask(cost)))
            await asyncio.sleep(0)
            clock.advance(pause_s)
        for _ in range(200):
            await asyncio.sleep(0)
            if all(task.done() for task in tasks):
                break
            clock.advance(30)
        await asyncio.gather(*tasks)

        assert all(weight <= max(limit * 0.8, 40) for weight in granted.values())

    asyncio.run(scenario())
