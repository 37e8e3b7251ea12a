"""Time as it is handed in: market time, wall time, and a clock that tests move."""

import asyncio
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perpline.common.backoff import backoff_s
from perpline.common.clock import Host, ManualClock, SystemClock


def test_at_speed_one_the_clock_is_the_hosts() -> None:
    before = time.time_ns() // 1_000_000
    now = SystemClock().now_ms()

    assert before <= now <= time.time_ns() // 1_000_000


def test_an_anchored_clock_begins_where_it_was_told_and_runs_as_fast_as_it_was_told() -> None:
    clock = SystemClock(1000.0, anchor_ms=5_000_000)
    began, first = time.monotonic(), clock.now_us()
    while time.monotonic() - began < 0.01:
        pass
    elapsed_s = (clock.now_us() - first) / 1e6

    assert 5_000_000_000 <= first < 5_000_000_000 + 1_000_000_000
    assert 10.0 <= elapsed_s <= 1000.0 * (time.monotonic() - began) + 1.0


def test_the_exchanges_time_is_ours_plus_the_offset() -> None:
    clock = ManualClock(10_000)
    clock.offset_ms = -1_500

    assert (clock.now_ms(), clock.exchange_now_ms()) == (10_000, 8_500)


@pytest.mark.parametrize("speed", [0, -1, float("nan")])
def test_a_clock_that_stands_or_runs_backwards_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="speed must be positive"):
        SystemClock(speed)


async def test_sleeps_are_market_time_or_wall_time_by_their_name() -> None:
    clock = SystemClock(1000.0)
    began = time.monotonic()
    await clock.sleep(20.0)
    market = time.monotonic() - began
    await clock.sleep_wall(0.02)
    wall = time.monotonic() - began - market

    assert 0.015 < market < 1.0
    assert 0.015 < wall < 1.0


async def test_sleepers_of_a_manual_clock_wake_in_order_when_it_passes_their_time() -> None:
    clock, woken = ManualClock(speed=60.0), []

    async def sleeper(name: str, market_s: float) -> None:
        await clock.sleep(market_s)
        woken.append(name)

    tasks = [asyncio.create_task(sleeper(name, s)) for name, s in (("late", 120.0), ("early", 60.0), ("last", 181.0))]
    await asyncio.sleep(0)
    clock.advance(59.0)
    await asyncio.sleep(0)
    assert woken == []
    clock.advance(121.0)
    await asyncio.sleep(0)
    assert woken == ["early", "late"]
    assert clock.wall_s() == pytest.approx(3.0)
    clock.advance(1.0)
    await asyncio.gather(*tasks)
    assert woken == ["early", "late", "last"]


async def test_a_manual_clock_set_back_moves_no_wall_time() -> None:
    clock = ManualClock(10_000)
    clock.set_ms(9_000)

    assert (clock.now_ms(), clock.wall_s()) == (9_000, 0.0)


async def test_a_cancelled_sleeper_is_forgotten() -> None:
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(1.0))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,))
    clock.advance(2.0)

    assert task.cancelled()


@given(st.integers(1, 10_000), st.integers())
def test_backoff_is_two_to_the_n_up_to_a_minute_times_a_half_to_one(failures: int, seed: int) -> None:
    whole = min(2**failures, 60)

    assert whole / 2 <= backoff_s(failures, random.Random(seed)) <= whole


def test_without_a_failure_there_is_nothing_to_wait_for() -> None:
    assert backoff_s(0, random.Random(1)) == 0.0


class FakeHost(Host):
    """A host whose clocks a test moves."""

    def __init__(self) -> None:
        self.utc, self.steady = 1_790_000_000 * 10**9, 5 * 10**9

    def utc_ns(self) -> int:
        return self.utc

    def steady_ns(self) -> int:
        return self.steady

    def passes(self, seconds: float) -> None:
        self.utc += round(seconds * 1e9)
        self.steady += round(seconds * 1e9)


@pytest.mark.parametrize("step_s", [3600.0, 1.5, -1.5, -3600.0])
def test_a_step_of_the_host_moves_our_time_and_neither_the_exchanges_nor_the_walls(step_s: float) -> None:
    host = FakeHost()
    clock = SystemClock(host=host)
    clock.offset_ms = 1_500  # a host 1.5 s behind the exchange
    host.passes(10)
    ours, exchange, wall = clock.now_ms(), clock.exchange_now_ms(), clock.wall_s()
    assert exchange - ours == 1_500

    host.utc += round(step_s * 1e9)
    host.passes(2)

    assert clock.now_ms() == ours + 2_000 + round(step_s * 1000)
    assert clock.exchange_now_ms() == exchange + 2_000
    assert clock.offset_ms == 1_500 - round(step_s * 1000)
    assert clock.wall_s() == wall + 2
    clock.offset_ms = clock.offset_ms  # measured again: nothing jumps
    assert clock.exchange_now_ms() == exchange + 2_000


def test_a_suspension_passes_in_every_time_at_once() -> None:
    host = FakeHost()
    clock = SystemClock(host=host)
    clock.offset_ms = -200
    ours, exchange, wall = clock.now_ms(), clock.exchange_now_ms(), clock.wall_s()

    host.passes(600)  # the process did not run; a steady clock that counts suspensions did

    assert (clock.now_ms(), clock.exchange_now_ms()) == (ours + 600_000, exchange + 600_000)
    assert (clock.wall_s(), clock.offset_ms) == (wall + 600, -200)


def test_before_the_offset_is_measured_the_exchanges_time_is_the_hosts_also_after_a_step() -> None:
    host = FakeHost()
    clock = SystemClock(host=host)
    host.utc += 10**12

    assert (clock.exchange_now_ms(), clock.offset_ms) == (clock.now_ms(), 0)


@given(st.lists(st.tuples(st.sampled_from("psm"), st.integers(-(10**7), 10**7)), max_size=30))
def test_between_two_measurements_the_exchanges_time_never_runs_backwards(events: list[tuple[str, int]]) -> None:
    host = FakeHost()
    clock = SystemClock(host=host)
    clock.offset_ms = 0
    true = clock.exchange_now_ms()
    for kind, amount in events:
        before = clock.exchange_now_ms()
        if kind == "p":
            host.passes(abs(amount) / 1000)
            true += abs(amount)
        elif kind == "s":
            host.utc += amount * 10**6
        else:
            clock.offset_ms = true - clock.now_ms()
        assert clock.exchange_now_ms() >= before
        assert clock.exchange_now_ms() == true


def test_the_hosts_steady_clock_runs() -> None:
    first = SystemClock().wall_s()
    while SystemClock().wall_s() == first:
        pass
    assert SystemClock().wall_s() > first
