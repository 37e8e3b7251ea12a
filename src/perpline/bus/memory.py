"""The bus inside one process: nothing installed, the same effects as the Redis bus."""

import asyncio
from collections import deque
from typing import Self

from msgspec import Struct

from perpline.bus.wire import channel_name, check_payload, entry_fields, stream_name
from perpline.domain.signal import Message


class Entry(Struct, frozen=True):
    """An entry of a stream."""

    id: str
    fields: dict[str, str]


class Announcement(Struct, frozen=True):
    """What a subscriber hears."""

    channel: str
    payload: str


class MemoryBus:
    """A `Bus` that keeps the last `keep` signals of each stream, an hour by default, and tells its subscribers."""

    def __init__(self, keep: int = 60) -> None:
        self._keep = keep
        self._streams: dict[str, deque[Message]] = {}
        self._positions: dict[str, dict[str, str]] = {}
        self._subscribers: set[Subscription] = set()

    async def open(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Nothing to disconnect from; what was published stays readable."""

    async def publish(self, messages: list[Message], now_ms: int) -> None:
        for message in messages:
            if message.kind == "position":
                self._keep_position(message)
            is_new = message.kind != "signal" or self._append(message)
            if is_new and now_ms <= message.valid_until:
                self._announce(Announcement(channel_name(message), message.payload))

    def stream(self, slot: str, symbol: str) -> list[Entry]:
        """The entries of a symbol's stream, oldest first."""
        kept = self._streams.get(stream_name(slot, symbol), ())
        return [Entry(f"{message.close_time}-0", entry_fields(message)) for message in kept]

    def last(self, slot: str, symbol: str) -> dict[str, str]:
        """The fields of the symbol's newest signal; empty if there was none."""
        entries = self.stream(slot, symbol)
        return entries[-1].fields if entries else {}

    def position(self, symbol: str) -> dict[str, str]:
        """The fields of the newest news of the symbol's position; empty if there was none."""
        return self._positions.get(symbol, {})

    def subscribe(self, limit: int = 1000) -> "Subscription":
        """Everything announced from now on, until closed."""
        subscription = Subscription(self._subscribers, limit)
        self._subscribers.add(subscription)
        return subscription

    def _append(self, message: Message) -> bool:
        stream = self._streams.setdefault(stream_name(message.slot, message.symbol), deque(maxlen=self._keep))
        if stream and message.close_time <= stream[-1].close_time:
            return False
        check_payload(message)  # one that cannot be read back is refused now, as Redis' side would
        stream.append(message)
        return True

    def _keep_position(self, message: Message) -> None:
        fields, known = entry_fields(message), self.position(message.symbol)
        is_real = known.get("account") == "live" and known.get("qty") != "0"
        if int(known.get("T", -1)) <= message.close_time and not (is_real and fields.get("account") == "paper"):
            self._positions[message.symbol] = fields

    def _announce(self, announcement: Announcement) -> None:
        for subscription in self._subscribers:
            subscription.put(announcement)


class Subscription:
    """Announcements in order, as an async iterator. Holds `limit`; a slow reader loses the oldest (`dropped`)."""

    def __init__(self, subscribers: "set[Subscription]", limit: int) -> None:
        self.dropped = 0
        self._subscribers = subscribers
        self._queue: asyncio.Queue[Announcement] = asyncio.Queue(limit)

    def put(self, announcement: Announcement) -> None:
        if self._queue.full():
            self._queue.get_nowait()
            self.dropped += 1
        self._queue.put_nowait(announcement)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Announcement:
        return await self._queue.get()

    def close(self) -> None:
        """Hear no more."""
        self._subscribers.discard(self)
