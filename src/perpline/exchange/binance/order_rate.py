"""How many orders the account may still send: 300 in ten seconds and 1200 in a minute (binance.md 3.1)."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from perpline.common.clock import Clock
from perpline.common.errors import RateLimited
from perpline.exchange.binance.messages import RateLimitCount

LIMITS = ((10_000, 300), (60_000, 1200))
"""Windows in ms, and orders in each."""

ENTRY_SHARE = 0.8
"""How full a window may become by orders that open a position; the rest is for those that close or protect one."""

_LONGEST_WAIT_S = 10.0
_PART_MS = 250


class OrderRate:
    """Counts orders and conditional orders of the account, over REST and socket together.

    Own orders are counted in any ten seconds and any minute, which is never more than the exchange counts in its own
    windows. Where it tells of more (`observe`), another program sends orders: the difference counts until the window
    has passed. What waits is served in the order closing first, then opening.
    """

    def __init__(self, clock: Clock, limits: Sequence[tuple[int, int]] = LIMITS) -> None:
        self._clock = clock
        self._windows = [_Window(length_ms, limit) for length_ms, limit in limits]
        self._blocked_until = 0
        self._closing = 0
        """How many that close wait now: nothing that opens goes before them."""

    def take(self, *, closes: bool) -> bool:
        """Count an order that is sent now; False, and nothing counted, where there is no room for it."""
        now = self._clock.exchange_now_ms()
        if self._blocked_until > now or (self._closing and not closes):
            return False
        for window in self._windows:
            if window.used(now) >= (window.limit if closes else int(window.limit * ENTRY_SHARE)):
                return False
        for window in self._windows:
            window.sent.append(now)
        return True

    async def wait(self, *, closes: bool) -> None:
        """Wait for room and count an order. Raises RateLimited after ten seconds of market time without."""
        if self.take(closes=closes):
            return
        until = self._clock.exchange_now_ms() + round(_LONGEST_WAIT_S * 1000)
        self._closing += closes
        try:
            while self._clock.exchange_now_ms() < until:
                await self._clock.sleep(_PART_MS / 1000)
                if self.take(closes=closes):
                    return
                await asyncio.sleep(0)  # at a fast clock the sleep may be none
        finally:
            self._closing -= closes
        raise RateLimited("the account has sent as many orders as it may", _LONGEST_WAIT_S)

    def observe(self, length_ms: int, count: int, limit: int | None = None) -> None:
        """Take over the exchange's count of a window (X-MBX-ORDER-COUNT-10S, -1M, or `rateLimits` of an answer)."""
        now = self._clock.exchange_now_ms()
        for window in self._windows:
            if window.length_ms == length_ms:
                if limit is not None and 0 < limit < 1_000_000:
                    window.limit = limit
                others = count - window.own(now)
                if others >= window.others or window.others_until <= now:
                    window.others, window.others_until = max(0, others), now + length_ms

    def observe_answer(self, counts: Sequence[RateLimitCount]) -> None:
        """The same from the `rateLimits` of an answer over the socket."""
        for entry in counts:
            if entry.rate_limit_type == "ORDERS":
                self.observe(entry.interval_num * _UNITS_MS.get(entry.interval, 0), entry.count, entry.limit)

    def block(self, pause_s: float) -> None:
        """Send none for so long: the exchange has answered -1015."""
        self._blocked_until = max(self._blocked_until, self._clock.exchange_now_ms() + round(pause_s * 1000))

    def facts(self) -> dict[str, Any]:
        """For /status: used and limit of each window, by its length in seconds."""
        now = self._clock.exchange_now_ms()
        return {
            str(window.length_ms // 1000): {"used": window.used(now), "limit": window.limit} for window in self._windows
        }


_UNITS_MS = {"SECOND": 1_000, "MINUTE": 60_000, "HOUR": 3_600_000, "DAY": 86_400_000}


class _Window(Struct, eq=False):
    length_ms: int
    limit: int
    sent: deque[int] = deque()
    others: int = 0
    """Orders of other programs that the exchange has counted."""
    others_until: int = 0

    def __post_init__(self) -> None:
        self.sent = deque()

    def own(self, now: int) -> int:
        sent, begin = self.sent, now - self.length_ms
        while sent and sent[0] <= begin:
            sent.popleft()
        return len(sent)

    def used(self, now: int) -> int:
        return self.own(now) + (self.others if self.others_until > now else 0)
