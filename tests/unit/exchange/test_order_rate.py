"""How many orders may go out, and which first."""

import asyncio

import pytest

from perpline.common.clock import ManualClock
from perpline.common.errors import RateLimited
from perpline.exchange.binance.messages import RateLimitCount
from perpline.exchange.binance.order_rate import OrderRate

NOW = 1_790_526_538_000


def rate_at(*limits: tuple[int, int]) -> tuple[OrderRate, ManualClock]:
    clock = ManualClock(NOW)
    return OrderRate(clock, limits or ((10_000, 10), (60_000, 25))), clock


def taken(rate: OrderRate, *, closes: bool) -> int:
    count = 0
    while rate.take(closes=closes):
        count += 1
    return count


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_entries_leave_a_fifth_of_every_window_to_what_closes() -> None:
    rate, clock = rate_at()
    assert taken(rate, closes=False) == 8
    assert taken(rate, closes=True) == 2
    clock.advance(10)
    assert taken(rate, closes=False) == 8
    clock.advance(10)
    assert taken(rate, closes=False) == 2  # 20 of the minute's 25 are the share of entries
    assert taken(rate, closes=True) == 5
    assert rate.facts() == {"10": {"used": 7, "limit": 10}, "60": {"used": 25, "limit": 25}}


def test_no_ten_seconds_ever_hold_more_than_the_limit() -> None:
    rate, clock = rate_at((10_000, 10))
    sent = []
    for _ in range(200):
        if rate.take(closes=True):
            sent.append(clock.now_ms())
        clock.advance(0.3)
    assert max(sum(at < other <= at + 9_999 for other in sent) for at in sent) <= 10


def test_orders_of_other_programs_count_until_their_window_has_passed() -> None:
    rate, clock = rate_at()
    assert rate.take(closes=True)
    rate.observe(10_000, 9)
    assert taken(rate, closes=True) == 1
    clock.advance(10.1)
    assert taken(rate, closes=True) == 10


def test_the_answer_of_the_socket_tells_counts_and_limits() -> None:
    rate, _ = rate_at()
    rate.observe_answer(
        [
            RateLimitCount("REQUEST_WEIGHT", "MINUTE", 1, 2400, 1),
            RateLimitCount("ORDERS", "SECOND", 10, 6, 1),
            RateLimitCount("ORDERS", "MINUTE", 1, 25, 3),
            RateLimitCount("ORDERS", "FORTNIGHT", 1, 1, 1),
        ]
    )
    assert rate.facts() == {"10": {"used": 1, "limit": 6}, "60": {"used": 3, "limit": 25}}


def test_after_too_many_orders_none_goes_out_for_a_while() -> None:
    rate, clock = rate_at()
    rate.block(10)
    assert not rate.take(closes=True)
    clock.advance(10.1)
    assert rate.take(closes=True)


async def test_what_closes_overtakes_what_opens_in_the_queue() -> None:
    rate, clock = rate_at((10_000, 5))
    assert taken(rate, closes=True) == 5
    order: list[str] = []

    async def wait(name: str, closes: bool) -> None:
        await rate.wait(closes=closes)
        order.append(name)

    tasks = [asyncio.create_task(wait("entry", False))]
    await settle()
    tasks += [asyncio.create_task(wait(f"close {number}", True)) for number in range(2)]
    await settle()
    assert order == []
    for _ in range(45):
        clock.advance(0.25)
        await settle()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order[:2] == ["close 0", "close 1"]


async def test_an_order_that_finds_no_room_is_given_back() -> None:
    rate, clock = rate_at((60_000, 5))
    assert taken(rate, closes=True) == 5
    waiting = asyncio.create_task(rate.wait(closes=True))
    await settle()
    while not waiting.done():
        clock.advance(0.25)
        await settle()
    with pytest.raises(RateLimited):
        await waiting
    assert clock.now_ms() < NOW + 11_000
