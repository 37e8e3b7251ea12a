"""Who leads: of all processes that share a database the one that holds a lease, under a fencing number.

docs/decisions/0012 says why it is counted by the one who waits.
"""

import asyncio
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from perpline.common.clock import Clock
from perpline.common.errors import Fenced, Unavailable
from perpline.storage.store import Fence, Lease, Store

log = structlog.get_logger("perpline.leadership")

TTL_S = 3.0
RENEW_EVERY_S = 1.0
ASK_EVERY_S = 0.5
AGAIN_S = 0.3
"""Between two attempts to renew while the database does not answer."""
SPARE = 1.1
"""Who waits counts a tenth longer than who holds: no two hosts' seconds are quite the same."""


def new_owner() -> str:
    """A name for this process that no other has or will have, and that tells others on this host when it is dead."""
    return f"{_surroundings()}/{os.getpid()}/{secrets.token_hex(4)}"


def is_dead(owner: str) -> bool:
    """Whether the owner of a lease was a process of these surroundings that is no more: a restart need not wait."""
    surroundings, _, rest = owner.rpartition("/")[0].rpartition("/")
    if surroundings != _surroundings() or "?" in surroundings or not rest.isdecimal():
        return False
    try:
        os.kill(int(rest), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # it lives and is somebody else's
    try:
        # Killed, and not yet noticed by the process that started it.
        return Path(f"/proc/{rest}/stat").read_text().rpartition(") ")[2][:1] in {"Z", "X"}
    except OSError:
        return False


def shown_owner(owner: str) -> str:
    """The owner of a lease as a person would name it: host and process."""
    parts = owner.split("/")
    return f"{parts[0]}, process {parts[-2]}" if len(parts) > 2 else owner


class Leadership:
    """One process's part in a lease: waits for it, holds it by renewing it, and knows when it may be another's.

    Times are seconds of the monotonic wall clock of whoever counts; no two hosts' clocks are compared. Who holds it
    renews it and stops by itself `ttl_s` after the last renewal began. Who waits takes it when it has seen it unrenewed
    for longer than that, in a database that answered all the while. So after an outage of the database the old holder,
    who renews at once, goes on.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        name: str,
        owner: str,
        *,
        ttl_s: float = TTL_S,
        renew_every_s: float = RENEW_EVERY_S,
        ask_every_s: float = ASK_EVERY_S,
        may_replace: Callable[[str], bool] = is_dead,
    ) -> None:
        """`may_replace(holder)`: this holder surely acts no more, so its lease need not be waited for."""
        self.name = name
        self.owner = owner
        self.holder = ""
        """Who has the lease, as far as we know."""
        self.predecessor = ""
        """Who had it before we took it; empty where it had been given back."""
        self.terms = 0
        """How often it was taken by us."""
        self._store = store
        self._clock = clock
        self._ttl_s = ttl_s
        self._renew_every_s = renew_every_s
        self._ask_every_s = ask_every_s
        self._may_replace = may_replace
        self._fence: Fence | None = None
        self._stamp = 0
        """What the lease says under `until` since our last renewal."""
        self._since = 0
        self._renewed_s = 0.0
        self._failed_s: float | None = None
        """When the database last did not answer; None since it has."""
        self._seen: Lease | None = None
        self._seen_s = 0.0
        self._asked_s = 0.0
        self._told = ""
        self._dropped = False
        self._held, self._lost = asyncio.Event(), asyncio.Event()
        self._lost.set()

    @property
    def leads(self) -> bool:
        """Whether nobody else can have the lease: it is ours and was renewed less than `ttl_s` ago. A process that was
        frozen, or whose database is away, sees by itself that this is over."""
        return self._fence is not None and self._clock.wall_s() - self._renewed_s < self._ttl_s

    @property
    def holds(self) -> bool:
        """Whether it was ours when the database last answered."""
        return self._fence is not None

    @property
    def is_cut_off(self) -> bool:
        """Whether it is ours as far as we know and cannot be renewed because the database does not answer.

        Not so in a process that was frozen, before it has asked."""
        failed_s = self._failed_s
        return self.holds and failed_s is not None and self._clock.wall_s() - failed_s < self._ttl_s

    def fence(self) -> Fence:
        """What to write under. Raises Fenced while it is not ours."""
        if self._fence is None:
            raise Fenced(f"{self.name} is not ours")
        return self._fence

    async def attempt(self) -> bool:
        """Take the lease if it is free, or its holder is surely dead; whether it is ours now."""
        if not self.holds:
            await self._ask()
        return self.holds

    async def run(self) -> None:
        """Wait for the lease and hold it, in turns, until `drop`; if cancelled it is kept."""
        while not self._dropped:
            if self.holds:
                await self._renew()
            else:
                await self._ask()
            await self._clock.sleep_wall(self._pause_s())

    async def until_held(self) -> None:
        """Return when it is ours."""
        while not self.holds:
            await self._held.wait()

    async def until_lost(self) -> None:
        """Return when it is known not to be ours any more. While it only cannot be renewed it is not: see `leads`."""
        await self._lost.wait()

    def lose(self, reason: str) -> None:
        """What was written under the lease was refused, or renewing was: it is another's."""
        if self._fence is None:
            return
        log.error("fenced", lease=self.name, fencing=self._fence.fencing, reason=reason, action="lead")
        self._give_up()

    async def drop(self) -> None:
        """Give it back, for another to take at once. Where the database is away it runs out by itself."""
        self._dropped = True
        if self._fence is None:
            return
        self._give_up()
        try:
            async with asyncio.timeout(self._ttl_s / 2):
                await self._store.drop_lease(self.name, self.owner)
        except (Unavailable, TimeoutError) as error:
            log.info("lease_not_given_back", lease=self.name, reason=str(error), action="lead")

    def status(self) -> dict[str, Any]:
        """Plain JSON values for /status; `since` in market time."""
        return {
            "leads": self.leads,
            "holds": self.holds,
            "fencing": None if self._fence is None else self._fence.fencing,
            "since": self._since if self.holds else None,
            "leader": shown_owner(self.owner if self.holds else self.holder),
            "terms": self.terms,
            "renewed_s": round(self._clock.wall_s() - self._renewed_s, 2) if self.holds else None,
        }

    # ---- waiting

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(self._ttl_s / 2):
                lease = await self._store.lease(self.name)
                if lease is None or not lease.owner or lease.owner == self.owner or self._has_run_out(lease):
                    await self._take(lease)
        except (Unavailable, TimeoutError) as error:
            self._seen = None  # what was counted says nothing: perhaps its holder could not renew either
            self._tell_away(error)
            return
        self._failed_s = None
        if not self.holds and lease is not None and lease.owner != self._told:
            self.holder = self._told = lease.owner
            log.info("standing_by", lease=self.name, leader=shown_owner(lease.owner), action="lead")

    def _has_run_out(self, lease: Lease) -> bool:
        now, before = self._clock.wall_s(), self._asked_s
        self._asked_s = now
        if lease != self._seen or now - before > self._ttl_s / 2:
            self._seen, self._seen_s = lease, now  # or we have slept, and the holder may have slept with us
        return self._may_replace(lease.owner) or now - self._seen_s >= SPARE * self._ttl_s

    async def _take(self, lease: Lease | None) -> None:
        """Take it as it was seen: a lease that was renewed or taken meanwhile is not."""
        began_s = self._clock.wall_s()
        seen = 0 if lease is None else lease.until
        stamp = max(seen + 1, self._clock.exchange_now_ms())
        if lease is not None and lease.owner == self.owner:
            seen = -1  # an attempt whose answer we did not wait for
        fencing = await self._store.take_lease(self.name, self.owner, seen, stamp)
        if fencing is None:
            return
        self.predecessor = "" if lease is None or lease.owner == self.owner else lease.owner
        self.holder, self._told = self.owner, ""
        self.terms += 1
        self._stamp, self._renewed_s, self._since = stamp, began_s, self._clock.exchange_now_ms()
        self._fence = Fence(self.name, self.owner, fencing)
        self._lost.clear()
        self._held.set()
        before = shown_owner(self.predecessor)
        log.info("leading", lease=self.name, fencing=fencing, before=before, action="lead")

    # ---- holding

    async def _renew(self) -> None:
        fence, began_s = self._fence, self._clock.wall_s()
        assert fence is not None
        stamp = max(self._stamp + 1, self._clock.exchange_now_ms())
        try:
            async with asyncio.timeout(self._ttl_s / 2):
                fencing = await self._store.take_lease(self.name, self.owner, -1, stamp)
        except (Unavailable, TimeoutError) as error:
            self._stamp = stamp  # it may have been stored
            self._tell_away(error)
            return
        self._failed_s = None
        if self._fence is not fence:
            return  # lost or given back while the answer was on its way
        if fencing != fence.fencing:
            self.lose("another process has taken the lease")
        else:
            self._stamp, self._renewed_s = stamp, began_s

    def _give_up(self) -> None:
        self._fence, self._seen = None, None
        self._held.clear()
        self._lost.set()

    def _pause_s(self) -> float:
        if self._failed_s is not None:
            return AGAIN_S
        if self.holds:
            return self._renew_every_s
        if self._seen is None:
            return self._ask_every_s
        left_s = self._seen_s + SPARE * self._ttl_s - self._clock.wall_s()
        return min(self._ask_every_s, max(left_s, 0.01))

    def _tell_away(self, error: Exception) -> None:
        reason = str(error) or "the database did not answer in time"
        if self._failed_s is None and self.holds:
            log.warning("lease_not_renewed", lease=self.name, reason=reason, action="lead")
        elif self._failed_s is None:
            log.warning("lease_not_read", lease=self.name, reason=reason, action="lead")
        self._failed_s = self._clock.wall_s()


def _surroundings() -> str:
    """What makes two process numbers comparable: host, its boot, and the namespace that they are numbers of."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()}/{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()}/?/?"  # not Linux: then a dead process's lease is waited out
