"""What we have asked of the exchange, and which request may go out next."""

import asyncio
from collections import deque
from heapq import heappop, heappush
from typing import Any

import structlog
from msgspec import Struct

from perpline.common.clock import Clock
from perpline.common.errors import NeedsPerson, RateLimited, Unavailable
from perpline.common.telemetry import LatencyWindow
from perpline.exchange.binance.budget import (
    MINUTE_MS,
    PRIORITIES,
    SHARES,
    Budget,
    Claim,
    Priority,
    SharedText,
    read_budget,
    settled,
    write_budget,
)
from perpline.exchange.binance.endpoints import Pool

log = structlog.get_logger("perpline.weight")

_POOL_WINDOW_MS = 5 * MINUTE_MS
_POOL_LIMITS: dict[Pool, int] = {"futures_data": 1000, "funding": 500}
_POOL_SHARE = 0.95
_POOL_BULK_SHARE = 0.5
_FIRST_BAN_MS = 2 * MINUTE_MS
_LONGEST_BAN_MS = 3 * 24 * 60 * MINUTE_MS
_MINUTES_KEPT = 120

_RANK: dict[Priority, int] = {priority: rank for rank, priority in enumerate(PRIORITIES)}
_SLOTS_KEPT: dict[Priority, int] = {"orders": 0, "reconcile": 0, "heal": 0, "polls": 2, "bulk": 4}
"""Slots that a priority leaves to the more important ones."""
LONGEST_WAIT_S: dict[Priority, float] = {"orders": 2, "reconcile": 5, "heal": 15, "polls": 120, "bulk": 600}
"""After so long in line, market time, a request is given back to its caller as Unavailable."""
_LEAST_WAIT_S = 1.0
"""It waits at least so long on the wall: answers, which free its slot, take wall time at any speed of the market."""
MAX_WAITING = 1000

LOOK_S = 0.5
"""A grant rests on a look at the shared budget that is no older, wall seconds."""
_AGAIN_S = 0.05
"""Wall seconds between two attempts at a lease that was not given."""
_AWAY_RETRY_S = 5.0
_SWAPS = 10


class Permit(Struct, eq=False):
    """Leave to send one request now. It holds one of the slots until `WeightLedger.done`."""

    cost: int
    pool: Pool
    minute: int
    """Exchange minute in which it was given, ms."""
    at: int
    """When it was given, exchange ms."""


class WeightLedger:
    """One per IP address: REQUEST_WEIGHT in the exchange's minutes, and the two pools that count requests.

    Requests go out by priority, each up to its share (`SHARES`) of the budget, which is `share` of the exchange's
    limit. At most `concurrency` are under way. Among those that wait a higher priority goes first, equal ones in the
    order they came; at most 1000 wait, and then the least important gives way.

    All times are the exchange's, by the clock's estimate; `Retry-After` counts in the exchange's seconds. What the
    exchange says it has counted (`observe`) wins where it is more than our own count: other programs may share the
    address. Its minute may turn a little before or after ours: what is under way or just went out when ours turns
    counts in both, and in the first moments of a minute both together must fit into one.

    Pools tell no count and their windows' start is unknown, so we keep below their limit in any five minutes.

    With `shared` the budget is that of all processes which share the text. Weight is leased in blocks, each minute anew
    (`budget`); requests to pools, and a block by the exchange, are known to the others half a second of wall time later
    at most if they ask anything at all. While the text is away each process keeps to its part: what is left by the
    number of processes that were last seen.
    """

    def __init__(
        self,
        clock: Clock,
        limit: int = 2400,
        share: float = 0.8,
        *,
        concurrency: int = 10,
        shared: SharedText | None = None,
        name: str = "",
    ) -> None:
        """`name` tells this process from the others that share the text."""
        self.limit = limit
        self.budget = int(limit * share)
        self.requests_total = 0
        self.requests_by_minute: dict[int, int] = {}
        """Requests sent in each minute of market time (minute's start, ms), the last two hours."""
        self._clock = clock
        self._caps: dict[Priority, int] = {priority: int(self.budget * SHARES[priority]) for priority in PRIORITIES}
        self._slots: dict[Priority, int] = {p: max(1, concurrency - _SLOTS_KEPT[p]) for p in PRIORITIES}
        # Half of what the clocks may differ by, and what a request may take to arrive (20 ms of wall time).
        self._margin_ms = max(250, round(20 * clock.speed))
        self._minute = 0
        self._own = 0
        """Our weight in the present minute."""
        self._others = 0
        """Others' weight in the present minute, by the exchange's count or the shared budget, whichever is more."""
        self._counted = 0
        """Weight beyond ours that the exchange has counted in the present minute."""
        self._before = 0
        """All weight of the minute before."""
        self._late_done = 0
        self._under_way: set[Permit] = set()
        self._pools: dict[Pool, deque[int]] = {pool: deque() for pool in _POOL_LIMITS}
        self._blocked_until = 0
        self._next_ban_ms = _FIRST_BAN_MS

        self._lines: dict[Pool, list[_Waiter]] = {"weight": [], "futures_data": [], "funding": []}
        self._arrived = 0
        self._wake = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

        self._shared = shared
        self._name = name
        self._told = Budget()
        self._leased = 0
        self._parted_minute = 0
        """The last minute in which we kept to our part of the budget because the text was away."""
        self._members = 1
        self._away: Exception | None = None
        self._look_at = 0.0
        """Wall seconds when the shared budget is to be looked at again."""
        self._lease_again_at = 0.0
        self._block_untold = False
        self._pools_told: dict[str, int] = {}

        self._weight_by: dict[Priority, int] = dict.fromkeys(PRIORITIES, 0)
        self._requests_by: dict[Priority, int] = dict.fromkeys(PRIORITIES, 0)
        self._refused_by: dict[Priority, int] = dict.fromkeys(PRIORITIES, 0)
        self._waits: dict[Priority, LatencyWindow] = {priority: LatencyWindow(1024) for priority in PRIORITIES}

    @property
    def used(self) -> int:
        """Weight used in the present minute, by anybody we know of."""
        self._turn(self._clock.exchange_now_ms())
        return self._own + self._others

    @property
    def blocked_until(self) -> int:
        """When requests are allowed again, exchange ms; 0 where they are."""
        return self._blocked_until if self._blocked_until > self._clock.exchange_now_ms() else 0

    def pool_used(self, pool: Pool) -> int:
        """Our requests to a pool in the last five minutes."""
        self._forget_old(pool, self._clock.exchange_now_ms())
        return len(self._pools[pool])

    def facts(self) -> dict[str, Any]:
        """For /status: plain JSON values. Weights are of the present minute, waits wall milliseconds of late."""
        used = self.used
        waiting = [waiter.priority for line in self._lines.values() for waiter in line if not waiter.permit.done()]
        return {
            "weight_used": used,
            "weight_own": self._own,
            "weight_limit": self.limit,
            "weight_budget": self.budget,
            "requests_total": self.requests_total,
            "requests_by_minute": {str(minute): count for minute, count in self.requests_by_minute.items()},
            "blocked_until": self.blocked_until,
            "by_priority": {
                priority: {
                    "weight": self._weight_by[priority],
                    "weight_allowed": self._caps[priority],
                    "requests": self._requests_by[priority],
                    "given_back": self._refused_by[priority],
                    "waiting": waiting.count(priority),
                    "wait_ms": self._waits[priority].summary(),
                }
                for priority in PRIORITIES
            },
            "pools": {pool: self.pool_used(pool) for pool in _POOL_LIMITS},
            "shared": None
            if self._shared is None
            else {
                "where": self._shared.where,
                "processes": self._members,
                "leased": self._leased,
                "away": str(self._away) if self._away else "",
            },
        }

    async def acquire(self, cost: int, pool: Pool = "weight", *, priority: Priority) -> Permit:
        """Wait until a request of this cost may go out, and count it. To be handed to `done` after the answer.

        Raises RateLimited at once while the exchange has blocked us, Unavailable after `LONGEST_WAIT_S` or where too
        many wait already. A request that alone is beyond the budget is let through in an unused minute. One without a
        cost (an order) never waits, however full the budget is.
        """
        self.check()
        now = self._clock.exchange_now_ms()
        if cost == 0:
            return self._grant(cost, pool, priority, now)
        if self._is_first(pool, priority) and self._is_current() and self._fits(cost, pool, priority, now):
            self._waits[priority].add(0.0)
            return self._grant(cost, pool, priority, now)
        return await self._wait(cost, pool, priority, now)

    def check(self) -> None:
        """Raise RateLimited while blocked."""
        if self._blocked_until and self.blocked_until:
            raise self._blocked()

    def observe(self, used_weight: int, permit: Permit) -> None:
        """Take over X-MBX-USED-WEIGHT-1M of the answer to a request.

        An answer to one that went out near the turn of the minute tells of neither minute for sure and is passed over.
        """
        minute = self._turn(self._clock.exchange_now_ms())
        if minute == permit.minute and permit.at >= minute + self._margin_ms:
            self._counted = max(self._counted, used_weight - self._own)
            self._others = max(self._others, self._counted)

    def done(self, permit: Permit) -> None:
        """The answer is here, or will not come: the request's slot is free. A second call does nothing."""
        if permit not in self._under_way:
            return
        self._under_way.remove(permit)
        turn = self._minute + MINUTE_MS - self._margin_ms
        if permit.minute == self._minute and permit.pool == "weight" and self._clock.exchange_now_ms() >= turn:
            # It came so shortly before the next minute that the exchange may have counted it there.
            self._late_done += permit.cost
        if any(self._lines.values()):
            self._serve()
            self._nudge()

    def succeeded(self) -> None:
        """A request was answered: the next ban without a stated length counts as a first one again."""
        self._next_ban_ms = _FIRST_BAN_MS

    def block(self, status: int, retry_after_s: float | None = None, until: int | None = None) -> float:
        """Stop requests after a 429 or 418, here and in the processes that share; returns for how many market seconds.

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
        self._block_untold = self._shared is not None
        self._nudge()
        return max(0.0, (self._blocked_until - now) / 1000)

    async def close(self) -> None:
        """Give back what waits as Unavailable, and leave the shared text."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait([self._pump])
        self._end_all(Unavailable("the connection to the exchange was closed"))
        if self._shared is not None:
            await self._shared.close()

    # ---- what fits ----

    def _fits(self, cost: int, pool: Pool, priority: Priority, now: int) -> bool:
        if len(self._under_way) >= self._slots[priority]:
            return False
        if pool != "weight":
            return self._fits_pool(cost, pool, priority, now)
        return self._fits_share(cost, priority, now) and self._fits_lease(cost)

    def _fits_share(self, cost: int, priority: Priority, now: int) -> bool:
        used = self._own + self._others if self._turn(now) + self._margin_ms <= now else self._both_minutes()
        return used == 0 or used + cost <= self._caps[priority]

    def _both_minutes(self) -> int:
        return self._own + self._others + self._before

    def _fits_lease(self, cost: int) -> bool:
        if self._shared is None or self._own + cost <= self._leased:
            return True
        return self._away is not None and self._own == 0

    def _fits_pool(self, cost: int, pool: Pool, priority: Priority, now: int) -> bool:
        self._forget_old(pool, now)
        used = len(self._pools[pool]) + self._told.pool_others(self._name, pool, now)
        share = _POOL_BULK_SHARE if priority == "bulk" else _POOL_SHARE
        return used + cost <= _POOL_LIMITS[pool] * share

    def _grant(self, cost: int, pool: Pool, priority: Priority, now: int) -> Permit:
        minute = self._turn(now)
        permit = Permit(cost, pool, minute, now)
        self._under_way.add(permit)
        if pool == "weight":
            self._own += cost
            self._weight_by[priority] += cost
        else:
            self._pools[pool].append(now)
        self.requests_total += 1
        self._requests_by[priority] += 1
        self.requests_by_minute[minute] = self.requests_by_minute.get(minute, 0) + 1
        if len(self.requests_by_minute) > _MINUTES_KEPT:
            del self.requests_by_minute[next(iter(self.requests_by_minute))]
        return permit

    def _turn(self, now: int) -> int:
        """Begin a new minute if it is time; returns the present one."""
        minute = now - now % MINUTE_MS
        if minute == self._minute:
            return minute
        if minute == self._minute - MINUTE_MS:
            return self._minute  # the clock was put back a little: the later minute goes on
        follows = minute == self._minute + MINUTE_MS
        self._before = self._own + self._others if follows else 0
        self._own = sum(permit.cost for permit in self._under_way if permit.pool == "weight")
        self._own += self._late_done if follows else 0
        self._minute, self._others, self._counted, self._late_done = minute, 0, 0, 0
        self._leased = 0
        if self._away is not None:
            self._leased, self._parted_minute = self.budget // self._members, minute
        self._lease_again_at = 0.0
        self._weight_by = dict.fromkeys(PRIORITIES, 0)
        return minute

    def _forget_old(self, pool: Pool, now: int) -> None:
        times = self._pools[pool]
        while times and times[0] <= now - _POOL_WINDOW_MS:
            times.popleft()

    def _blocked(self) -> RateLimited:
        wait_s = (self._blocked_until - self._clock.exchange_now_ms()) / 1000
        return RateLimited("the exchange has told us to stop asking for a while", wait_s)

    # ---- who waits ----

    async def _wait(self, cost: int, pool: Pool, priority: Priority, now: int) -> Permit:
        self._make_room(priority)
        self._arrived += 1
        permit: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(
            _RANK[priority],
            self._arrived,
            cost,
            pool,
            priority,
            now + round(max(LONGEST_WAIT_S[priority], _LEAST_WAIT_S * self._clock.speed) * 1000),
            self._clock.wall_s(),
            permit,
        )
        heappush(self._lines[pool], waiter)
        self._nudge()
        try:
            return await permit
        except asyncio.CancelledError:
            if permit.done() and not permit.cancelled() and permit.exception() is None:
                self.done(permit.result())
            raise

    def _make_room(self, priority: Priority) -> None:
        """Keep the lines bounded: the least important that came last is given back, maybe the one that comes now."""
        waiting = [waiter for line in self._lines.values() for waiter in line if not waiter.permit.done()]
        if len(waiting) < MAX_WAITING:
            return
        last = max(waiting)
        if last.rank <= _RANK[priority]:
            self._refused_by[priority] += 1
            raise Unavailable(f"{MAX_WAITING} requests to the exchange wait already", 1.0)
        self._give_back(last)

    def _give_back(self, waiter: "_Waiter") -> None:
        self._refused_by[waiter.priority] += 1
        left_s = (self._minute + MINUTE_MS - self._clock.exchange_now_ms()) / 1000
        waiter.permit.set_exception(
            Unavailable("the exchange's request weight is used up: no turn in time", max(0.1, left_s))
        )

    def _is_first(self, pool: Pool, priority: Priority) -> bool:
        """Whether nobody as important waits in this line."""
        if not self._lines[pool]:
            return True
        first = self._first(pool)
        return first is None or first.rank > _RANK[priority]

    def _first(self, pool: Pool) -> "_Waiter | None":
        line = self._lines[pool]
        while line and line[0].permit.done():
            heappop(line)
        return line[0] if line else None

    def _serve(self) -> None:
        """Let out all that may go now. Nobody overtakes a more important one in the same line."""
        now = self._clock.exchange_now_ms()
        if self._blocked_until > now:
            self._end_all(self._blocked())
            return
        if not self._is_current():
            return
        first = {pool: waiter for pool in self._lines if (waiter := self._first(pool)) is not None}
        while first:
            waiter = min(first.values())
            if self._fits(waiter.cost, waiter.pool, waiter.priority, now):
                heappop(self._lines[waiter.pool])
                self._waits[waiter.priority].add((self._clock.wall_s() - waiter.since_s) * 1000)
                waiter.permit.set_result(self._grant(waiter.cost, waiter.pool, waiter.priority, now))
                following = self._first(waiter.pool)
                if following is not None:
                    first[waiter.pool] = following
                    continue
            del first[waiter.pool]

    def _end_all(self, error: Exception) -> None:
        for line in self._lines.values():
            for waiter in line:
                if not waiter.permit.done():
                    waiter.permit.set_exception(error)
            line.clear()

    def _nudge(self) -> None:
        """Have the pump look again, if there is anything for it to do."""
        if self._pump is None and (self._block_untold or any(self._lines.values()) or self._retry_is_due()):
            self._pump = asyncio.get_running_loop().create_task(self._run_pump(), name="request weight")
        self._wake.set()

    async def _run_pump(self) -> None:
        """Serve the lines, and the shared budget, until nobody waits."""
        try:
            while True:
                self._wake.clear()
                if self._shared is not None and self._has_to_sync():
                    await self._sync(self._shared)
                self._serve()
                self._give_back_late()
                if not self._block_untold and not any(self._first(pool) for pool in self._lines):
                    break
                if not self._wake.is_set() and (self._shared is None or not self._has_to_sync()):
                    await self._rest(self._wait_ms())
        except Exception as error:
            # The edge of a task: whoever waits must hear of a bug here, or would wait for ever.
            self._end_all(error)
            log.exception("weight_ledger_failed", action="weight")
        finally:
            self._pump = None

    def _give_back_late(self) -> None:
        now = self._clock.exchange_now_ms()
        for line in self._lines.values():
            for waiter in line:
                if waiter.until <= now and not waiter.permit.done():
                    self._give_back(waiter)

    def _wait_ms(self) -> float:
        """Until when nothing can change by itself, market ms from now."""
        now = self._clock.exchange_now_ms()
        minute = self._turn(now)
        times: list[float] = [now + MINUTE_MS, *(waiter.until for line in self._lines.values() for waiter in line)]
        if self._first("weight"):
            times.append(minute + MINUTE_MS)
            if now < minute + self._margin_ms:
                times.append(minute + self._margin_ms)
        if (again_s := self._lease_again_at - self._clock.wall_s()) > 0:
            times.append(now + again_s * 1000 * self._clock.speed)
        for pool, taken in self._pools.items():
            if self._first(pool):
                if taken:
                    times.append(taken[0] + _POOL_WINDOW_MS + 1)
                if self._shared is not None:
                    times.append(now + LOOK_S * 1000 * self._clock.speed)
        return max(1.0, min(times) - now)

    async def _rest(self, wait_ms: float) -> None:
        waking = asyncio.ensure_future(self._wake.wait())
        sleeping = asyncio.ensure_future(self._clock.sleep(wait_ms / 1000))
        try:
            await asyncio.wait((waking, sleeping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waking.cancel()
            sleeping.cancel()

    # ---- what is shared ----

    def _is_current(self) -> bool:
        """Whether the shared budget was looked at lately. While it is away, what we knew of it has to do."""
        if self._shared is None:
            return True
        if self._away is None:
            return self._clock.wall_s() < self._look_at
        if self._retry_is_due():
            self._nudge()
        return True

    def _retry_is_due(self) -> bool:
        return self._away is not None and self._clock.wall_s() >= self._look_at

    def _has_to_sync(self) -> bool:
        if self._block_untold or self._clock.wall_s() >= self._look_at:
            return True
        return self._clock.wall_s() >= self._lease_again_at and self._lease_wanted() is not None

    def _lease_wanted(self) -> "_Waiter | None":
        """The first in line, where only a larger lease is missing."""
        if self._parted_minute == self._minute:
            return None  # the others may have used their parts and not said so yet
        first = self._first("weight")
        if first is None or self._fits_lease(first.cost):
            return None
        return first if self._fits_share(first.cost, first.priority, self._clock.exchange_now_ms()) else None

    async def _sync(self, shared: SharedText) -> None:
        """Look at the shared budget, and change it if there is something to say or a lease to take."""
        try:
            text = await shared.read()
            for _ in range(_SWAPS):
                found = read_budget(text)
                self._heed_block(found)
                claim = self._claim()
                if claim is None:
                    self._take_over(found)
                    return
                changed = settled(found, claim)
                if await shared.swap(text, write_budget(changed)):
                    self._take_over(changed, claim)
                    return
                text = await shared.read()
        except (Unavailable, NeedsPerson) as error:
            self._lost(error)
            return
        self._take_over(read_budget(text))
        self._lease_again_at = self._clock.wall_s() + _AGAIN_S  # the others were quicker ten times: let them

    def _claim(self) -> Claim | None:
        """What is to be said; None where the look was enough."""
        now = self._clock.exchange_now_ms()
        minute = self._turn(now)
        wanted = self._lease_wanted()
        pools: dict[str, int] = {pool: self.pool_used(pool) for pool in self._pools}
        returned = self._away is not None
        if wanted is None and not self._block_untold and not returned and pools == self._pools_told:
            return None
        line = self._lines["weight"]
        return Claim(
            name=self._name,
            now=now,
            minute=minute,
            total=self.budget,
            spent=self._own,
            held=self._leased,
            foreign=self._counted,
            cost=wanted.cost if wanted else 0,
            waiting=sum(w.cost for w in line if wanted and w.rank <= wanted.rank and not w.permit.done()),
            priority=wanted.priority if wanted else "polls",
            pools=pools,
            blocked_until=self._blocked_until,
            next_ban_ms=self._next_ban_ms,
        )

    def _take_over(self, budget: Budget, claim: Claim | None = None) -> None:
        """Go by this budget from now on."""
        if self._away is not None:
            self._away = None
            log.info("weight_shared_again", where=self._shared and self._shared.where, action="weight")
        now = self._clock.exchange_now_ms()
        minute = self._turn(now)
        self._told = budget
        self._members = budget.members(self._name, now)
        self._look_at = self._clock.wall_s() + LOOK_S
        if budget.minute == minute:
            self._others = max(self._counted, budget.others(self._name))
        if claim is None:
            return
        self._pools_told = claim.pools
        self._block_untold = self._blocked_until > claim.blocked_until
        if budget.minute == minute == claim.minute:
            self._leased = budget.parts[self._name].leased
        if claim.cost and self._leased < claim.spent + claim.cost:
            self._lease_again_at = self._clock.wall_s() + _AGAIN_S

    def _heed_block(self, budget: Budget) -> None:
        """Stop where the exchange has stopped another process."""
        now = self._clock.exchange_now_ms()
        until = min(budget.blocked_until, now + _LONGEST_BAN_MS)
        if until > now and until > self._blocked_until:
            self._blocked_until = until
            self._next_ban_ms = max(self._next_ban_ms, min(budget.next_ban_ms, _LONGEST_BAN_MS))
            log.warning("stopped_with_another_process", wait_s=round((until - now) / 1000, 1), action="weight")

    def _lost(self, error: Exception) -> None:
        """Go on alone, with our part of what nobody had leased when we looked last."""
        self._look_at = self._clock.wall_s() + _AWAY_RETRY_S
        self._block_untold = False  # told when it is back, as far as it still matters
        if self._away is None:
            self._turn(self._clock.exchange_now_ms())
            held = max(self._leased, self._own)
            self._leased = held + max(0, self.budget - held - self._others) // self._members
            self._parted_minute = self._minute
            log.warning(
                "weight_not_shared",
                reason=str(error),
                processes=self._members,
                own_budget=self.budget // self._members,
                action="weight",
            )
        self._away = error


class _Waiter(Struct, eq=False):
    """A request in line. They are ordered by importance, then by arrival."""

    rank: int
    number: int
    cost: int
    pool: Pool
    priority: Priority
    until: int
    since_s: float
    permit: asyncio.Future[Permit]

    def __lt__(self, other: "_Waiter") -> bool:
        return (self.rank, self.number) < (other.rank, other.number)
