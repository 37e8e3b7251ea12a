"""The exchange's own clock, which can be wrong."""

from perpline.common.clock import Clock


class ShiftedClock:
    """`steady`, plus every shift that is on. May step, also backwards. Sleeping is by the steady clock."""

    def __init__(self, steady: Clock) -> None:
        self.speed = steady.speed
        self.offset_ms = 0
        self._steady = steady
        self._shifts: dict[int, tuple[int, int, float]] = {}

    def shift(self, key: int, since_ms: int, offset_ms: int, drift_ppm: float) -> None:
        """From now on be off by `offset_ms` and by `drift_ppm` of the time since `since_ms` of the steady clock."""
        self._shifts[key] = (since_ms * 1000, offset_ms * 1000, drift_ppm * 1e-6)

    def unshift(self, key: int) -> None:
        self._shifts.pop(key, None)

    def now_us(self) -> int:
        now_us = self._steady.now_us()
        return now_us + sum(
            offset_us + int(drift * (now_us - since_us)) for since_us, offset_us, drift in self._shifts.values()
        )

    def now_ms(self) -> int:
        return self.now_us() // 1000

    def exchange_now_ms(self) -> int:
        return self.now_ms() + self.offset_ms

    def wall_s(self) -> float:
        return self._steady.wall_s()

    async def sleep(self, market_s: float) -> None:
        await self._steady.sleep(market_s)

    async def sleep_wall(self, wall_s: float) -> None:
        await self._steady.sleep_wall(wall_s)
