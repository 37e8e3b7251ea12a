"""Decisions go on while the database is away: kept on disk, published from there, and stored in order later."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import replace

from perpline.common.clock import Clock
from perpline.common.errors import Unavailable
from perpline.domain.signal import Decision, Message, Prediction
from perpline.signals.publisher import Publisher, message_key
from perpline.storage.store import Committed, Fence, Store, minute_key, outbox_payload

log = structlog.get_logger("perpline.journal")

SPOOLED = "decisions"
"""The kind of the journal's records in the spool."""
PATIENCE_S = 2.0
"""Wall seconds that the store may take for decisions before they are kept on disk instead."""
AVOID_S = 10.0
"""Wall seconds after a slow answer in which the store is not waited for."""
TRY_EVERY_S = 1.0
"""Wall seconds between tries to store what was kept."""
LOOK_AT = 10_000
"""Messages of the outbox that are looked through for those that were published from the spool already."""


class Kept(Protocol):
    """What the journal asks of a spool."""

    async def append(self, kind: str, payload: bytes, *, sync: bool = False) -> None: ...
    async def oldest(self, kind: str, limit: int = 1) -> list[bytes]: ...
    async def remove(self, kind: str, count: int) -> None: ...
    def count(self, kind: str) -> int: ...


class _Batch(Struct, gc=False):
    decisions: list[Decision]
    predictions: list[Prediction]
    messages: list[Message]
    t_commit: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Batch).decode


class JournalStatistics(Struct, frozen=True, kw_only=True):
    """How it stands with decisions that the database does not have yet."""

    waiting: int
    """Batches in the spool."""
    last_error: str
    """Why the database did not take them; empty since it does."""
    spooled: int
    """Decisions that were kept on disk since the start."""
    replayed: int
    """Decisions of the spool that the database has taken since the start, those it had already among them."""


class Journal:
    """Commits what the engine decides: to the store, or where that does not answer in time, to the spool.

    `commit` tries the store, under the `fence`, for `PATIENCE_S`. Where it is away or slow the batch is written to the
    spool, synced, and counts as committed: what came of the try is unknown, and harmless by the unique key. Its
    messages are handed to the publisher with the seq that the store will give, and go out while `leads` holds. What
    comes next goes the same way until `run` has stored everything kept, in order: unfenced, for a decision that was
    made and perhaps published must be stored, and the unique key decides if another process has made it too.

    If the spool takes nothing either, `commit` raises Unavailable, and who asked waits. Without a spool it asks the
    store and nothing else.
    """

    def __init__(
        self,
        store: Store,
        spool: Kept | None,
        publisher: Publisher,
        clock: Clock,
        slot: str,
        *,
        fence: Callable[[], Fence | None] = lambda: None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._store = store
        self._spool = spool
        self._publisher = publisher
        self._clock = clock
        self._slot = slot
        self._fence = fence
        self._patience_s = patience_s
        self._turn = asyncio.Lock()
        self._seqs: dict[str, int] | None = None
        """The newest seq of each symbol; None where somebody else may have written since we knew."""
        self._seqs_under: Fence | None = None
        self._newest: dict[str, int] = {}
        """The newest T of each symbol that was committed or kept."""
        self._avoid_until_s = float("-inf")
        self._away = False
        """Whether decisions were kept since the store last took them at once."""
        self._kept = asyncio.Event()
        self._last_error = ""
        self._spooled = 0
        self._replayed = 0

    async def recover(self, left: Sequence[Kept] = ()) -> int:
        """Store what earlier processes have `left` in spools, and learn the seqs; how many decisions that were.

        Must be called before the first commit. Raises Unavailable.
        """
        before = self._replayed
        for spool in left:
            while spool.count(SPOOLED):
                await self._store_oldest(spool)
        self._seqs = await self._store.last_seqs(self._slot)
        return self._replayed - before

    async def commit(
        self,
        decisions: Sequence[Decision],
        predictions: Sequence[Prediction],
        messages: Sequence[Message],
        t_commit: int,
    ) -> Committed:
        """As `Store.commit_decisions`; of what was kept on disk `messages` is empty, for they are on their way."""
        async with self._turn:
            if self._spool is None:
                return await self._store.commit_decisions(decisions, predictions, messages, t_commit, self._fence())
            if not self._spool.count(SPOOLED) and self._clock.wall_s() >= self._avoid_until_s:
                fence = self._fence()
                try:
                    async with asyncio.timeout(self._patience_s):
                        committed = await self._store.commit_decisions(
                            decisions, predictions, messages, t_commit, fence
                        )
                except TimeoutError:
                    self._avoid_until_s = self._clock.wall_s() + AVOID_S
                    reason = f"the database has not committed within {self._patience_s:g} s"
                except Unavailable as error:
                    reason = str(error)
                else:
                    if self._away:
                        log.warning("decisions_are_stored_again", action="decide")
                    self._away = False
                    self._count(decisions, committed, fence)
                    return committed
                self._last_error = reason
            return await self._keep(decisions, predictions, messages, t_commit)

    async def run(self) -> None:
        """Store what is kept, and know the seqs, until cancelled."""
        while True:
            self._kept.clear()
            if self._spool is not None and self._spool.count(SPOOLED):
                await self._store_kept(self._spool)
            if self._seqs is None:
                await self._read_seqs()
            elif not (self._spool is not None and self._spool.count(SPOOLED)):
                await self._kept.wait()

    async def store_kept(self) -> None:
        """Store what is kept, now. Raises Unavailable."""
        while self._spool is not None and self._spool.count(SPOOLED):
            await self._store_oldest(self._spool)

    @property
    def has_kept(self) -> bool:
        """Whether decisions wait in the spool: then the outbox is not read, for these must become part of it first."""
        return self._spool is not None and self._spool.count(SPOOLED) > 0

    def statistics(self) -> JournalStatistics:
        return JournalStatistics(
            waiting=0 if self._spool is None else self._spool.count(SPOOLED),
            last_error=self._last_error if self.has_kept else "",
            spooled=self._spooled,
            replayed=self._replayed,
        )

    # ---- the store is there ----

    def _count(self, decisions: Sequence[Decision], committed: Committed, fence: Fence | None) -> None:
        if len(committed.decisions) != len(decisions) or fence != self._seqs_under:
            # Another process has decided too, or before us: what it numbered is in the tables.
            self._seqs, self._seqs_under = None, fence
            self._kept.set()
        for decision in committed.decisions:
            self._note(decision)

    def _note(self, decision: Decision) -> None:
        if self._seqs is not None and decision.slot == self._slot:
            self._seqs[decision.symbol] = self._seqs.get(decision.symbol, 0) + 1
        self._newest[decision.symbol] = max(decision.close_time, self._newest.get(decision.symbol, 0))

    async def _read_seqs(self) -> None:
        async with self._turn:  # nothing is committed meanwhile
            try:
                async with asyncio.timeout(self._patience_s):
                    if not self.has_kept:
                        self._seqs = await self._store.last_seqs(self._slot)
                        return
            except (Unavailable, TimeoutError):
                pass  # until they are known, what is kept on disk is not published from there
        await self._clock.sleep_wall(TRY_EVERY_S)

    # ---- the store is away ----

    async def _keep(
        self,
        decisions: Sequence[Decision],
        predictions: Sequence[Prediction],
        messages: Sequence[Message],
        t_commit: int,
    ) -> Committed:
        assert self._spool is not None
        before = None if self._seqs is None else dict(self._seqs), dict(self._newest)
        new = [one for one in decisions if one.close_time > self._newest.get(one.symbol, 0)]
        lost = {minute_key(one) for one in decisions} - {minute_key(one) for one in new}
        batch = _Batch(
            new,
            [one for one in predictions if minute_key(one) not in lost],
            [one for one in messages if minute_key(one) not in lost],
            t_commit,
        )
        seqs = {}
        for decision in new:
            self._note(decision)
            if self._seqs is not None:
                seqs[minute_key(decision)] = self._seqs[decision.symbol]
        try:
            await self._spool.append(SPOOLED, _encode(batch), sync=True)
        except Unavailable as error:
            self._seqs, self._newest = before
            raise Unavailable(f"{self._last_error}; and {error}") from error
        if not self._away:
            log.error("decisions_spooled", reason=self._last_error, action="decide")
        self._away = True
        self._spooled += len(new)
        numbered = [replace(one, payload=outbox_payload(one, seqs.get(minute_key(one)))) for one in batch.messages]
        self._publisher.hand_spooled(numbered, known=self._seqs is not None)
        self._kept.set()
        return Committed(decisions=new, messages=[])

    async def _store_kept(self, spool: Kept) -> None:
        while spool.count(SPOOLED):
            began_s = self._clock.wall_s()
            try:
                await self._store_oldest(spool)
            except Unavailable as error:
                self._last_error = str(error)
                await self._clock.sleep_wall(TRY_EVERY_S)
                continue
            if self._clock.wall_s() - began_s > self._patience_s / 2:
                self._last_error = "the database is slow"
                self._avoid_until_s = self._clock.wall_s() + AVOID_S
        self._publisher.wake()

    async def _store_oldest(self, spool: Kept) -> None:
        """Store the oldest batch that is kept, and mark in the outbox what of it was published from the spool."""
        found = await spool.oldest(SPOOLED)
        if not found:
            return
        try:
            batch = _decode(found[0])
            committed = await self._store.commit_decisions(
                batch.decisions, batch.predictions, batch.messages, batch.t_commit
            )
        except (msgspec.ValidationError, ValueError) as error:
            # Of another version, or a bug; it must not be what every process from now on dies of.
            log.error("spooled_decisions_refused", reason=str(error), bytes=len(found[0]), action="decide")
            await spool.remove(SPOOLED, 1)
            return
        published = await self._publisher.take_back(batch.messages)
        if published:
            stored = committed.messages
            if stored is None or len(stored) < len(published):
                stored = await self._store.pending_messages(LOOK_AT)
            ids = [one.id for one in stored if message_key(one) in published]
            await self._store.mark_published(ids, self._clock.now_ms())
        await spool.remove(SPOOLED, 1)
        self._publisher.forget_spooled(batch.messages)
        self._replayed += len(batch.decisions)
