"""From the outbox to the bus."""

import asyncio
import random
from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from perpline.bus.bus import Bus
from perpline.common.backoff import backoff_s
from perpline.common.clock import Clock
from perpline.common.errors import Unavailable
from perpline.domain.messages import with_number
from perpline.domain.signal import Message
from perpline.storage.store import Store


class PublisherStatistics(Struct, frozen=True, kw_only=True):
    """How publication stands."""

    pending: int
    """Messages found in the outbox at the last look and not published since (at most one batch)."""
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
    A death between publishing and marking sends messages again, which a bus turns into nothing.

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
    ) -> None:
        self._store = store
        self._bus = bus
        self._clock = clock
        self._rng = rng
        self._batch_size = batch_size
        self._look_every_s = look_every_s
        self._cap_s = cap_s
        self._on_published = on_published
        self._woken = asyncio.Event()
        self._publishing = asyncio.Lock()
        self._pending = 0
        self._published = 0
        self._failures = 0
        self._last_error = ""
        self._last_published_ms: int | None = None
        self._handed: list[Message] = []
        self._next_id: int | None = None
        """Of the outbox row after the last one handed over or read; None where that is not known."""

    def wake(self, messages: Sequence[Message] | None = None) -> None:
        """There is something new in the outbox: these rows, if who wrote them knows."""
        if messages and [message.id for message in messages] == [*self._ids_from_next(len(messages))]:
            self._handed += messages
            self._next_id = messages[-1].id + 1
        else:
            self._read_on()
        self._woken.set()

    async def run(self) -> None:
        """Publish whatever comes, until cancelled. A message that no bus can take is a bug and ends this."""
        while True:
            self._woken.clear()
            try:
                await self.flush()
            except Unavailable as error:
                self._failures += 1
                self._last_error = str(error)
                await self._clock.sleep_wall(backoff_s(self._failures, self._rng, self._cap_s))
                continue
            self._failures = 0
            self._last_error = ""
            await self._until_a_look_is_due()

    async def flush(self) -> None:
        """Publish all that the outbox holds. Raises Unavailable; what was not published stays in the outbox."""
        async with self._publishing:
            try:
                while messages := self._take_handed() or await self._read() or self._take_handed():
                    await self._publish(messages)
            except BaseException:
                # Broad, a cancellation too: whatever ended it, the outbox says what is left.
                self._read_on()
                raise

    def statistics(self) -> PublisherStatistics:
        return PublisherStatistics(
            pending=self._pending,
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

    def _take_handed(self) -> list[Message]:
        taken, self._handed = self._handed[: self._batch_size], self._handed[self._batch_size :]
        return taken

    async def _read(self) -> list[Message]:
        messages = await self._store.pending_messages(self._batch_size)
        if messages:
            # What was handed over meanwhile is among these, or will be read next.
            self._handed, self._next_id = [], messages[-1].id + 1
        return messages

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
        await self._store.mark_published([message.id for message in messages], self._clock.now_ms())

    async def _until_a_look_is_due(self) -> None:
        look = asyncio.ensure_future(self._clock.sleep_wall(self._look_every_s))
        woken = asyncio.ensure_future(self._woken.wait())
        try:
            await asyncio.wait((look, woken), return_when=asyncio.FIRST_COMPLETED)
        finally:
            look.cancel()
            woken.cancel()
