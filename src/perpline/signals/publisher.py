"""From the outbox to the bus."""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog
from msgspec import Struct
from msgspec.structs import replace

from perpline.bus.bus import Bus
from perpline.common.backoff import backoff_s
from perpline.common.clock import Clock
from perpline.common.errors import Unavailable
from perpline.domain.messages import with_number
from perpline.domain.signal import Message
from perpline.storage.store import Store

log = structlog.get_logger("perpline.publisher")

MessageKey = tuple[str, str, str, int]
"""kind, slot, symbol, close_time: which message it is, before it has an id and after."""

Result = TypeVar("Result")

MAX_SPOOLED = 20_000
"""Messages of the spool that wait in memory to be published; what comes beyond waits for the outbox."""


RECENT = 4_000
TOLD_AFTER = 2
"""Failures in a row: one alone is a connection that was closed while it was idle."""


def message_key(message: Message) -> MessageKey:
    return message.kind, message.slot, message.symbol, message.close_time


class PublisherStatistics(Struct, frozen=True, kw_only=True):
    """How publication stands."""

    pending: int
    """Messages found in the outbox at the last look and not published since (at most one batch), and those that the
    spool handed over."""
    published: int
    """Since the start; what was sent again counts again."""
    failures: int
    """In a row."""
    last_error: str
    """Why it failed last; empty since it worked."""
    last_published_ms: int | None
    """Our market time."""


class Publisher:
    """Publishes what is committed, in the order of the outbox, each with its `t_pub_us`, and then marks it.

    Who commits hands the messages over as they are in the outbox. They are published from there on only where they
    follow without a gap on the last ones that went this way or were read, so that nothing is overtaken; in any other
    case, after a failure and at the start the outbox is read, which alone says what is to be published.

    Store or bus away: waits min(2**n, `cap_s`) wall seconds with jitter and tries again; the outbox keeps everything.
    A death between publishing and marking sends messages again, which a bus turns into nothing. What is published and
    could not be marked is not sent again; it is marked later.

    `hand_spooled`: messages of decisions that the database does not have yet. They are published without it, in the
    order they came, and only if everything before them is known to be published: a bus refuses what is older than the
    newest it has. While `is_spooling` holds the outbox is not read: what is in the spool becomes part of it first, and
    `take_back` says what of that has been published already.

    Nothing is published while `leads` does not hold, which is asked right before each batch: it is in the outbox then
    for the process that does. Two that lead one after the other may send one message both.

    `on_published(messages, wall_us)` is called as soon as the bus has them, before they are marked, with the clock's
    monotonic wall time in microseconds. Beside wake-ups the outbox is looked at every `look_every_s` wall seconds, for
    other processes write to it too.
    """

    def __init__(
        self,
        store: Store,
        bus: Bus,
        clock: Clock,
        rng: random.Random,
        *,
        batch_size: int = 1000,
        look_every_s: float = 1.0,
        cap_s: float = 10.0,
        on_published: Callable[[list[Message], int], None] = lambda messages, wall_us: None,
        is_spooling: Callable[[], bool] = lambda: False,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        self._store = store
        self._bus = bus
        self._clock = clock
        self._rng = rng
        self._batch_size = batch_size
        self._look_every_s = look_every_s
        self._cap_s = cap_s
        self._on_published = on_published
        self._is_spooling = is_spooling
        self._leads = leads
        self._woken = asyncio.Event()
        self._spool_woken = asyncio.Event()
        self._publishing = asyncio.Lock()
        self._pending = 0
        self._published = 0
        self._failures = 0
        self._last_error = ""
        self._last_published_ms: int | None = None
        self._handed: list[Message] = []
        self._next_id: int | None = None
        """Of the outbox row after the last one handed over or read; None where that is not known."""
        self._all_known = False
        """Whether the outbox holds nothing unpublished but what was handed over."""
        self._unmarked: list[int] = []
        """Ids of messages that are published and not marked."""
        self._recent: deque[MessageKey] = deque(maxlen=RECENT)
        """Published from the outbox. A commit that was given up may have been stored: then the spool hands over what
        was read there, too."""
        self._spooled: deque[Message] = deque()
        self._spool_published: set[MessageKey] = set()

    def wake(self, messages: Sequence[Message] | None = None) -> None:
        """There is something new in the outbox: these rows, if who wrote them knows."""
        if messages and [message.id for message in messages] == [*self._ids_from_next(len(messages))]:
            self._handed += messages
            self._next_id = messages[-1].id + 1
        elif messages is None or messages:
            self._read_on()
        self._woken.set()

    def hand_spooled(self, messages: Sequence[Message], *, known: bool) -> None:
        """These are in the spool, complete but for `id`; unless `known`, their seqs are not, and they must wait.

        Those that cannot go out from there are not remembered: they come by the outbox, and so does all that follows.
        """
        may_go = known and self._all_known and self._leads()
        if not may_go or len(self._spooled) + len(messages) > MAX_SPOOLED:
            self._all_known = False
        else:
            self._spooled += messages
        self._spool_woken.set()
        self._woken.set()

    async def take_back(self, messages: Sequence[Message]) -> set[MessageKey]:
        """These are in the outbox now: publish none of them from the spool any more; those that were published."""
        keys = {message_key(message) for message in messages}
        async with self._publishing:
            left = [message for message in self._spooled if message_key(message) not in keys]
            if len(left) < len(self._spooled):
                self._spooled = deque(left)
                self._all_known = False
            return keys & self._spool_published

    def forget_spooled(self, messages: Sequence[Message]) -> None:
        """The outbox says now what of these is published."""
        self._spool_published.difference_update(message_key(message) for message in messages)

    async def run(self) -> None:
        """Publish whatever comes, until cancelled. A message that no bus can take is a bug and ends this."""
        while True:
            self._woken.clear()
            try:
                await self.flush()
            except Unavailable as error:
                self._failures += 1
                self._last_error = str(error)
                if self._failures == TOLD_AFTER:
                    log.error("messages_wait", reason=str(error), action="publish")
                await self._pause(backoff_s(self._failures, self._rng, self._cap_s), self._spool_woken)
                continue
            if self._failures >= TOLD_AFTER:
                log.warning("messages_go_out_again", action="publish")
            self._failures = 0
            self._last_error = ""
            await self._pause(self._look_every_s, self._woken)

    async def flush(self) -> None:
        """Publish all that the outbox holds. Raises Unavailable; what was not published stays in the outbox."""
        async with self._publishing:
            self._spool_woken.clear()
            while True:
                if not self._leads():
                    self._read_on()
                    return
                if messages := self._take_handed():
                    await self._publish_and_mark(messages)
                elif not await self._publish_spooled():
                    await self._mark()
                    self._handed = await self._read() or self._handed
                    if not self._handed:
                        return

    def statistics(self) -> PublisherStatistics:
        return PublisherStatistics(
            pending=self._pending + len(self._spooled),
            published=self._published,
            failures=self._failures,
            last_error=self._last_error,
            last_published_ms=self._last_published_ms,
        )

    def _ids_from_next(self, count: int) -> range:
        return range(0) if self._next_id is None else range(self._next_id, self._next_id + count)

    def _read_on(self) -> None:
        """Go on with what the outbox says."""
        self._handed, self._next_id = [], None
        self._all_known = False

    def _take_handed(self) -> list[Message]:
        taken, self._handed = self._handed[: self._batch_size], self._handed[self._batch_size :]
        return taken

    async def _read(self) -> list[Message]:
        if self._is_spooling():
            return []
        was_known, self._all_known = self._all_known, True  # unless told otherwise from here on
        try:
            messages = await self._ask(self._store.pending_messages(self._batch_size))
        except BaseException:
            self._all_known = self._all_known and was_known
            raise
        if messages:
            # What was handed over meanwhile is among these, or will be read next.
            self._handed, self._next_id = [], messages[-1].id + 1
        if len(messages) == self._batch_size:
            self._all_known = False
        return messages

    async def _publish_and_mark(self, messages: list[Message]) -> None:
        try:
            await self._publish(messages)
        except BaseException:
            # Broad, a cancellation too: whatever ended it, the outbox says what is left.
            self._read_on()
            raise
        self._unmarked += [message.id for message in messages]
        self._recent.extend(map(message_key, messages))
        await self._mark()

    async def _publish(self, messages: list[Message]) -> None:
        self._pending = len(messages)
        t_pub_us = self._clock.now_us()
        messages = [
            replace(message, payload=with_number(message.payload, "t_pub_us", t_pub_us)) for message in messages
        ]
        await self._bus.publish(messages, t_pub_us // 1000)
        self._on_published(messages, round(self._clock.wall_s() * 1e6))
        self._pending = 0
        self._published += len(messages)
        self._last_published_ms = self._clock.now_ms()

    async def _mark(self) -> None:
        """Mark what is published, but not while decisions are being spooled: the store is away then."""
        if self._unmarked and not self._is_spooling():
            ids = self._unmarked[:]
            await self._ask(self._store.mark_published(ids, self._clock.now_ms()))
            del self._unmarked[: len(ids)]

    async def _ask(self, call: Awaitable[Result]) -> Result:
        """The store's answer. Raises Unavailable if it has not come when messages come that go out without it."""
        asked, spooled = asyncio.ensure_future(call), asyncio.ensure_future(self._spool_woken.wait())
        try:
            await asyncio.wait((asked, spooled), return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise Unavailable("the database does not answer the publisher")
        finally:
            spooled.cancel()
            if not asked.done():
                asked.cancel()
                await asyncio.wait([asked])
        return asked.result()

    async def _publish_spooled(self) -> bool:
        """Publish some of what the spool handed over, if it may go out; whether there was any."""
        if not self._spooled or not self._all_known:
            return False
        messages = [self._spooled[at] for at in range(min(self._batch_size, len(self._spooled)))]
        recent = set(self._recent)
        if fresh := [message for message in messages if message_key(message) not in recent]:
            await self._publish(fresh)
        for message in messages:
            self._spooled.popleft()
            self._spool_published.add(message_key(message))
        return True

    async def _pause(self, wall_s: float, event: asyncio.Event) -> None:
        """Wait so long, or until the event is set."""
        waited = asyncio.ensure_future(self._clock.sleep_wall(wall_s))
        woken = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait((waited, woken), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waited.cancel()
            woken.cancel()
