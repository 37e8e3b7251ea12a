"""Time, handed in. Nothing else in perpline reads a clock.

Market time is what the exchange's clock shows: milliseconds UTC as an integer. With `speed` above 1 it runs that
many times as fast as the wall, so that the simulated exchange and the worker live through the same accelerated
hours. Wall time is for sockets, stores, backoff and every latency figure.
"""

import asyncio
import heapq
import time
from typing import Protocol


class Clock(Protocol):
    """What a part may ask about time. `SystemClock` in a process, `ManualClock` in tests and replays."""

    speed: float
    offset_ms: int
    """How far the exchange's clock is ahead of ours (negative: behind), from when it was last measured, and set."""

    def now_ms(self) -> int:
        """Our market time, milliseconds UTC. Stamps `received_at`."""

    def now_us(self) -> int:
        """Our market time, microseconds UTC."""

    def exchange_now_ms(self) -> int:
        """Our estimate of the exchange's time: `now_ms` plus the measured offset. Deadlines are measured in it."""

    def wall_s(self) -> float:
        """Monotonic wall seconds with an arbitrary zero: latencies, timeouts, backoff."""

    async def sleep(self, market_s: float) -> None:
        """Wait this many seconds of market time."""

    async def sleep_wall(self, wall_s: float) -> None:
        """Wait this many seconds of wall time."""


class Host:
    """What a host tells of time."""

    def utc_ns(self) -> int:
        """What it takes for UTC. It is set right by steps, forward and back."""
        return time.time_ns()

    def steady_ns(self) -> int:
        """Nanoseconds that pass as they do outside, from an arbitrary zero: no steps, and none left out while the host
        was suspended, where the system can tell (Linux, macOS)."""
        return _steady_ns()


if hasattr(time, "CLOCK_BOOTTIME"):

    def _steady_ns() -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

elif hasattr(time, "clock_gettime_ns"):

    def _steady_ns() -> int:
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC)

else:
    _steady_ns = time.monotonic_ns


class SystemClock:
    """The host's clock, or, with a speed other than 1, a clock that started at `anchor_ms` when it was made.

    Once the offset was measured, the exchange's time runs on by the host's steady clock: a step of the host's UTC moves
    our time at once, and neither the exchange's nor any deadline; `offset_ms` says the rest. A suspension moves both.
    """

    def __init__(self, speed: float = 1.0, anchor_ms: int | None = None, host: Host | None = None) -> None:
        if not speed > 0:
            raise ValueError(f"speed must be positive, not {speed}")
        self.speed = speed
        self._host = host or Host()
        self._anchored = speed != 1.0 or anchor_ms is not None
        self._anchor_us = self._host.utc_ns() // 1000 if anchor_ms is None else anchor_ms * 1000
        self._anchor_ns = self._host.steady_ns()
        self._exchange: tuple[int, int] | None = None
        """The exchange's time at an instant, in microseconds, and that instant by the steady clock."""

    @property
    def offset_ms(self) -> int:
        return 0 if self._exchange is None else round((self._exchange_now_us() - self.now_us()) / 1000)

    @offset_ms.setter
    def offset_ms(self, measured: int) -> None:
        self._exchange = (self.now_us() + measured * 1000, self._host.steady_ns())

    def now_us(self) -> int:
        if not self._anchored:
            # Read directly, so that a host clock that is stepped (NTP, resume) is followed.
            return self._host.utc_ns() // 1000
        elapsed_ns = self._host.steady_ns() - self._anchor_ns
        return self._anchor_us + int(elapsed_ns * self.speed) // 1000

    def now_ms(self) -> int:
        return self.now_us() // 1000

    def exchange_now_ms(self) -> int:
        return self.now_ms() if self._exchange is None else self._exchange_now_us() // 1000

    def _exchange_now_us(self) -> int:
        assert self._exchange is not None
        then_us, then_ns = self._exchange
        return then_us + int((self._host.steady_ns() - then_ns) * self.speed) // 1000

    def wall_s(self) -> float:
        return self._host.steady_ns() / 1e9

    async def sleep(self, market_s: float) -> None:
        await asyncio.sleep(max(0.0, market_s) / self.speed)

    async def sleep_wall(self, wall_s: float) -> None:
        await asyncio.sleep(max(0.0, wall_s))


class ManualClock:
    """A clock that stands still until it is moved. Sleepers wake, in order, when it passes their time."""

    def __init__(self, now_ms: int = 0, speed: float = 1.0) -> None:
        self.speed = speed
        self.offset_ms = 0
        self._now_us = now_ms * 1000
        self._wall_s = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = 0

    def now_us(self) -> int:
        return self._now_us

    def now_ms(self) -> int:
        return self._now_us // 1000

    def exchange_now_ms(self) -> int:
        return self.now_ms() + self.offset_ms

    def wall_s(self) -> float:
        return self._wall_s

    def set_us(self, now_us: int) -> None:
        """Move to this time, also backwards: recorded receive times are not always in order."""
        self._wall_s += max(0, now_us - self._now_us) / 1e6 / self.speed
        self._now_us = now_us
        self._wake()

    def set_ms(self, now_ms: int) -> None:
        self.set_us(now_ms * 1000)

    def advance(self, market_s: float) -> None:
        self.set_us(self._now_us + round(market_s * 1e6))

    async def sleep(self, market_s: float) -> None:
        await self.sleep_wall(market_s / self.speed)

    async def sleep_wall(self, wall_s: float) -> None:
        if wall_s <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._order += 1
        heapq.heappush(self._sleepers, (self._wall_s + wall_s, self._order, future))
        await future

    def _wake(self) -> None:
        while self._sleepers and self._sleepers[0][0] <= self._wall_s + 1e-9:
            _, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)
