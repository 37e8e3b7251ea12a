"""Following signals on a Redis server: every one that its streams hold, from a position on."""

import re
from collections.abc import Callable
from typing import Any, Literal

from msgspec import Struct
from redis.exceptions import RedisError

from perpline.bus.redis import redis_client, translated
from perpline.bus.wire import stream_name
from perpline.common.clock import Clock
from perpline.domain.candle import MINUTE_MS

Start = Literal["last", "beginning", "now"]

ENTRIES_AT_ONCE = 5_000
"""Entries asked for in one read, over all streams."""
LOOK_EVERY_S = 10.0
"""How often, in wall seconds, the server is asked for the streams of symbols that are new; each second without any."""

EntryId = tuple[int, int]
"""T and a number that is always 0: how Redis orders the entries of a stream."""


class StreamEntry(Struct, frozen=True):
    """An entry of a symbol's stream, not looked into."""

    stream: str
    symbol: str
    id: EntryId
    fields: dict[str, str]


class SignalFollower:
    """Reads the streams of a slot, each from its position on, and waits for what is to come.

    Reads streams, not channels, so nothing is missed that the server still holds. Without `symbols` it follows every
    stream of the slot, also those that appear later, which it reads whole. `stored_position` is asked once for each
    stream; `on_start(stream, id)` is told where each begins, and once all have begun, without `symbols`, so is
    `sig:{slot}:*`: a stream without a position has then appeared since. `on_hole(symbol, from, to)` is told where
    entries after the stored position have left the stream meanwhile, for it keeps about a week.

    Both calls may raise Unavailable, after which they can simply be made again, or NeedsPerson.
    """

    def __init__(
        self,
        url: str,
        clock: Clock,
        slot: str,
        symbols: tuple[str, ...],
        start: Start,
        stored_position: Callable[[str], EntryId | None],
        on_start: Callable[[str, EntryId], None],
        on_hole: Callable[[str, int, int], None],
    ) -> None:
        self.positions: dict[str, EntryId] = {}
        """The last entry that was passed, by stream."""
        self._url = url
        self._clock = clock
        self._prefix = stream_name(slot, "")
        self._wanted = [stream_name(slot, symbol) for symbol in symbols]
        self._start = start
        self._stored_position = stored_position
        self._on_start = on_start
        self._on_hole = on_hole
        self._all = f"{self._prefix}*"
        self._new_are_read_whole = start == "beginning"
        self._look_at_s = 0.0
        self._client = redis_client(url, as_text=True)

    async def start(self) -> None:
        """Find the streams and where each begins. What is published after this returns will be read."""
        try:
            await self._look()
        except (RedisError, OSError) as error:
            raise translated(error, self._url) from error

    async def read(self, wait_s: float) -> list[StreamEntry]:
        """The next entries of all streams, in order of T; empty if none comes within `wait_s`.

        The same ones are given again until they are `passed`.
        """
        try:
            if self._clock.wall_s() >= self._look_at_s:
                await self._look()
            if not self.positions:
                return []
            count = max(2, ENTRIES_AT_ONCE // len(self.positions))
            after: dict[Any, Any] = {stream: f"{ms}-{number}" for stream, (ms, number) in self.positions.items()}
            answer: Any = await self._client.xread(after, count=count, block=max(1, round(wait_s * 1000)))
        except (RedisError, OSError) as error:
            raise translated(error, self._url) from error
        found: list[StreamEntry] = []
        # A stream that was not read to its end may hold entries older than the last ones of others: those wait.
        complete_until: EntryId | None = None
        for stream, entries in answer:
            symbol = stream.removeprefix(self._prefix)
            found += [StreamEntry(stream, symbol, entry_id(text), fields) for text, fields in entries]
            if len(entries) == count:
                last = found[-1].id
                complete_until = last if complete_until is None else min(complete_until, last)
        if complete_until is not None:
            found = [entry for entry in found if entry.id <= complete_until]
        return sorted(found, key=lambda entry: (entry.id, entry.symbol))

    def passed(self, entry: StreamEntry) -> None:
        """This entry need not be given again, nor any before it."""
        self.positions[entry.stream] = entry.id

    async def close(self) -> None:
        await self._client.aclose()

    async def _look(self) -> None:
        """Take up the streams that are not yet followed."""
        if self._start == "last" and not self._wanted and self._stored_position(self._all) is not None:
            self._new_are_read_whole = True
        names = self._wanted or [name async for name in self._client.scan_iter(f"{_literally(self._prefix)}*", 1000)]
        new = [name for name in dict.fromkeys(names) if name not in self.positions]
        begun = {name: await self._begin(name) for name in new}
        for name, position in begun.items():
            self._on_start(name, position)
        if not self._wanted:
            self._on_start(self._all, (0, 0))
        self.positions |= begun
        self._new_are_read_whole = True
        self._look_at_s = self._clock.wall_s() + (LOOK_EVERY_S if self.positions else 1.0)

    async def _begin(self, stream: str) -> EntryId:
        stored = self._stored_position(stream) if self._start == "last" else None
        if stored is not None:
            oldest: Any = await self._client.xrange(stream, count=1)
            if oldest and entry_id(oldest[0][0])[0] > stored[0] + MINUTE_MS:
                self._on_hole(stream.removeprefix(self._prefix), stored[0], entry_id(oldest[0][0])[0])
            return stored
        if self._new_are_read_whole:
            return (0, 0)
        newest: Any = await self._client.xrevrange(stream, count=1)
        return entry_id(newest[0][0]) if newest else (0, 0)


def entry_id(text: str) -> EntryId:
    """An id as Redis writes it, `<ms>-<number>`."""
    ms, _, number = text.partition("-")
    return int(ms), int(number)


def _literally(text: str) -> str:
    """A pattern of Redis that means this text."""
    return re.sub(r"([*?\[\]\\])", r"\\\1", text)
