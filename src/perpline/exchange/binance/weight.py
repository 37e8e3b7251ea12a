"""What we have asked of the exchange, and whether one more request may go out now."""

from collections import deque

from perpline.common.clock import Clock
from perpline.common.errors import RateLimited
from perpline.exchange.binance.endpoints import Pool

MINUTE_MS = 60_000
_POOL_WINDOW_MS = 5 * MINUTE_MS
_POOL_LIMITS: dict[Pool, int] = {"futures_data": 1000, "funding": 500}
_POOL_SHARE = 0.95
_FIRST_BAN_MS = 2 * MINUTE_MS
_LONGEST_BAN_MS = 3 * 24 * 60 * MINUTE_MS
_MINUTES_KEPT = 120


class WeightLedger:
    """One per IP address: REQUEST_WEIGHT in the exchange's minutes, and the two pools that count requests.

    All times are the exchange's, by the clock's estimate; `Retry-After` counts in the exchange's seconds. What the
    exchange says it has counted (`observe`) wins where it is more than our own count: other programs may share the
    address. Pools tell no count and their windows' start is unknown, so we keep below their limit in any five minutes.
    """

    def __init__(self, clock: Clock, limit: int = 2400, share: float = 0.8) -> None:
        self.limit = limit
        self.requests_total = 0
        self.requests_by_minute: dict[int, int] = {}
        """Requests sent in each minute of market time (minute's start, ms), the last two hours."""
        self._clock = clock
        self._budget = limit * share
        self._minute = 0
        self._used = 0
        self._pools: dict[Pool, deque[int]] = {pool: deque() for pool in _POOL_LIMITS}
        self._blocked_until = 0
        self._next_ban_ms = _FIRST_BAN_MS

    @property
    def used(self) -> int:
        """Weight used in the present minute."""
        self._turn_minute()
        return self._used

    @property
    def blocked_until(self) -> int:
        """When requests are allowed again, exchange ms; 0 where they are."""
        return self._blocked_until if self._blocked_until > self._clock.exchange_now_ms() else 0

    def pool_used(self, pool: Pool) -> int:
        """Requests of a pool in the last five minutes."""
        self._forget_old(pool)
        return len(self._pools[pool])

    async def acquire(self, cost: int, pool: Pool = "weight") -> None:
        """Wait until a request of this cost fits, and count it.

        Raises RateLimited at once while the exchange has blocked us. A request that alone is beyond the budget is let
        through in an unused minute.
        """
        while True:
            self.check()
            wait_ms = self._wait_ms(cost, pool)
            if wait_ms <= 0:
                break
            await self._clock.sleep(wait_ms / 1000)
        if pool == "weight":
            self._used += cost
        else:
            self._pools[pool].append(self._clock.exchange_now_ms())

    def check(self) -> None:
        """Raise RateLimited while blocked."""
        until = self.blocked_until
        if until:
            raise RateLimited(
                "the exchange has told us to stop asking for a while", (until - self._clock.exchange_now_ms()) / 1000
            )

    def sent(self) -> int:
        """Count a request that goes out now; returns its minute, to be handed to `observe`."""
        minute = self._turn_minute()
        self.requests_total += 1
        self.requests_by_minute[minute] = self.requests_by_minute.get(minute, 0) + 1
        while len(self.requests_by_minute) > _MINUTES_KEPT:
            del self.requests_by_minute[next(iter(self.requests_by_minute))]
        return minute

    def observe(self, used_weight: int, sent_in: int) -> None:
        """Take over X-MBX-USED-WEIGHT-1M of an answer to a request that was sent in this minute.

        An answer that crossed the turn of the minute tells of neither for sure and is passed over.
        """
        if self._turn_minute() == sent_in:
            self._used = max(self._used, used_weight)

    def succeeded(self) -> None:
        """A request was answered: the next ban without a stated length counts as a first one again."""
        self._next_ban_ms = _FIRST_BAN_MS

    def block(self, status: int, retry_after_s: float | None = None, until: int | None = None) -> float:
        """Stop requests after a 429 or 418; returns for how many market seconds.

        For `retry_after_s` or until the time that the exchange named; otherwise a 429 until the next minute, a 418 two
        minutes, twice as long for each further one without a success between.
        """
        now = self._clock.exchange_now_ms()
        if retry_after_s is not None:
            end = now + round(retry_after_s * 1000)
        elif until is not None:
            end = until
        elif status == 418:
            end = now + self._next_ban_ms
            self._next_ban_ms = min(2 * self._next_ban_ms, _LONGEST_BAN_MS)
        else:
            end = now - now % MINUTE_MS + MINUTE_MS
        self._blocked_until = max(self._blocked_until, min(end, now + _LONGEST_BAN_MS))
        return max(0.0, (self._blocked_until - now) / 1000)

    def _wait_ms(self, cost: int, pool: Pool) -> int:
        if pool != "weight":
            self._forget_old(pool)
            times = self._pools[pool]
            full = len(times) + cost > _POOL_LIMITS[pool] * _POOL_SHARE
            return times[0] + _POOL_WINDOW_MS - self._clock.exchange_now_ms() + 1 if full else 0
        minute = self._turn_minute()
        if self._used == 0 or self._used + cost <= self._budget:
            return 0
        return minute + MINUTE_MS - self._clock.exchange_now_ms()

    def _turn_minute(self) -> int:
        now = self._clock.exchange_now_ms()
        minute = now - now % MINUTE_MS
        if minute != self._minute:
            self._minute = minute
            self._used = 0
        return minute

    def _forget_old(self, pool: Pool) -> None:
        horizon = self._clock.exchange_now_ms() - _POOL_WINDOW_MS
        times = self._pools[pool]
        while times and times[0] <= horizon:
            times.popleft()
