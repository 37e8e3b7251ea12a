"""One weight budget for an address, shared by several processes: the text they share and the arithmetic on it.

A process leases weight in blocks, so that most requests ask nobody. A lease is good for the minute it was taken in;
with the minute it ends, also that of a process that was killed.
"""

from typing import Literal, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

MINUTE_MS = 60_000

Priority = Literal["orders", "reconcile", "heal", "polls", "bulk"]
"""What a request is for, the most important first. `heal`: whatever a decision waits for."""

PRIORITIES: tuple[Priority, ...] = ("orders", "reconcile", "heal", "polls", "bulk")

SHARES: dict[Priority, float] = {"orders": 1.0, "reconcile": 0.975, "heal": 0.95, "polls": 0.85, "bulk": 0.5}
"""How full the budget of a minute may become by requests of a priority; the rest is for the more important ones."""

BLOCKS_PER_BUDGET = 8
"""All processes together hold at most about an eighth of the budget in weight that was leased and not yet used."""

MEMBER_MS = 2 * MINUTE_MS
"""A process that has said nothing for so long does not count when the budget is divided."""

FORGOTTEN_MS = 6 * MINUTE_MS
"""So long a process's requests to the pools are counted after it was last heard: their windows have five minutes."""


class SharedText(Protocol):
    """A short text that several processes read and change. Calls raise Unavailable or NeedsPerson, within seconds."""

    where: str
    """Names the place for a person, without secrets."""

    async def read(self) -> str:
        """The text; empty before the first `swap`."""

    async def swap(self, before: str, after: str) -> bool:
        """Replace the text if it is still `before`; whether it was."""

    async def close(self) -> None: ...


class Part(Struct, frozen=True):
    """What one process has of the budget."""

    seen_at: int
    """When it last wrote, exchange ms."""
    leased: int = 0
    """Weight of the budget's minute that it may use or has used."""
    pools: dict[str, int] = {}
    """Requests to each pool in the last five minutes, as of `seen_at`."""


class Budget(Struct, frozen=True):
    """The content of the shared text."""

    minute: int = 0
    """The exchange's minute that the leases belong to, ms."""
    foreign: int = 0
    """Weight that the exchange counted in this minute beyond all leases: other programs on the address."""
    parts: dict[str, Part] = {}
    blocked_until: int = 0
    """Until when the exchange told one of the processes to stop, exchange ms."""
    next_ban_ms: int = 0
    """How long the next ban without a stated length is taken to last."""

    def others(self, name: str) -> int:
        """Weight of the minute that is not this process's: leased by the others, or foreign."""
        return self.foreign + sum(part.leased for other, part in self.parts.items() if other != name)

    def members(self, name: str, now: int) -> int:
        """How many processes share the budget, this one included."""
        return 1 + sum(part.seen_at > now - MEMBER_MS for other, part in self.parts.items() if other != name)

    def pool_others(self, name: str, pool: str, now: int) -> int:
        """Requests of the other processes to a pool, as they last told."""
        return sum(
            part.pools.get(pool, 0)
            for other, part in self.parts.items()
            if other != name and part.seen_at > now - FORGOTTEN_MS
        )


class Claim(Struct, frozen=True, kw_only=True):
    """What a process tells the others and what it would like."""

    name: str
    now: int
    minute: int
    total: int
    """The budget of a minute by its settings."""
    spent: int
    """Weight it has used in the minute, with what is under way since the minute before."""
    held: int = 0
    """Its lease of the minute so far."""
    foreign: int = 0
    """Weight the exchange counted beyond this process's own."""
    cost: int = 0
    """Weight of the request that waits and is not covered by the lease; 0: none."""
    waiting: int = 0
    """Weight of all that wait with this priority or a higher one."""
    priority: Priority = "polls"
    pools: dict[str, int] = {}
    blocked_until: int = 0
    next_ban_ms: int = 0


def read_budget(text: str) -> Budget:
    """The budget in a text. One that makes no sense (another version's) counts as an empty one."""
    try:
        return msgspec.json.decode(text, type=Budget)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return Budget()


def write_budget(budget: Budget) -> str:
    return msgspec.json.encode(budget).decode()


def settled(budget: Budget, claim: Claim) -> Budget:
    """The budget after a claim. The process's lease covers what waits as far as its priority's share has room.

    A process whose clock is still in the minute before gets nothing until it has turned. One whose clock is more than a
    minute behind the budget takes the budget's time for a mistake and begins anew with its own.
    """
    budget = replace(
        budget,
        blocked_until=max(budget.blocked_until, claim.blocked_until),
        next_ban_ms=claim.next_ban_ms if claim.blocked_until > budget.blocked_until else budget.next_ban_ms,
    )
    if budget.minute == claim.minute + MINUTE_MS:
        mine = replace(budget.parts.get(claim.name, Part(0)), seen_at=claim.now, pools=claim.pools)
        return replace(budget, parts={**budget.parts, claim.name: mine})
    budget = _turned(budget, claim)
    foreign = max(budget.foreign, claim.foreign - (budget.others(claim.name) - budget.foreign))
    others = budget.others(claim.name) - budget.foreign + foreign
    members = budget.members(claim.name, claim.now)
    part = Part(claim.now, _lease(claim, others, members), claim.pools)
    return replace(budget, foreign=foreign, parts={**budget.parts, claim.name: part})


def block_size(total: int, members: int) -> int:
    """Weight that is leased at a time."""
    return max(1, total // (BLOCKS_PER_BUDGET * members))


def _turned(budget: Budget, claim: Claim) -> Budget:
    """The budget in the claim's minute.

    What the others leased may still be on its way: until each has told what is, a block of each counts in the new
    minute too.
    """
    if budget.minute == claim.minute:
        return budget
    follows = budget.minute == claim.minute - MINUTE_MS
    most = block_size(claim.total, budget.members(claim.name, claim.now)) if follows else 0
    parts = {
        name: replace(part, leased=min(part.leased, most))
        for name, part in budget.parts.items()
        if claim.now - FORGOTTEN_MS < part.seen_at < claim.now + FORGOTTEN_MS
    }
    return replace(budget, minute=claim.minute, foreign=0, parts=parts)


def _lease(claim: Claim, others: int, members: int) -> int:
    """The process's new lease. Beyond what waits it gets the rest of a block, but not of the room kept for others."""
    held = max(claim.held, claim.spent)
    wanted = claim.spent + claim.cost
    room = int(claim.total * SHARES[claim.priority]) - others
    if not claim.cost or held >= wanted:
        return held
    if wanted > room:
        # A request that alone is beyond the budget goes out in an unused minute.
        return wanted if not claim.spent and not others else held
    block = block_size(claim.total, members)
    needed = min(claim.spent + max(claim.cost, min(claim.waiting, block)), room)
    ahead = min(claim.spent + block, int(claim.total * min(SHARES[claim.priority], SHARES["polls"])) - others)
    return max(held, wanted, needed, ahead)
