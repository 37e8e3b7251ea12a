"""Feature rows from collectors to inference workers: batches on one Redis stream for each slot, shared by a group.

    feat:{slot}               stream of the last ten minutes: an entry for each batch, `b`: msgpack of `FeatureBatch`
    feat:{slot}:shards        hash: a field for each shard, JSON of its `ShardCard`
    feat:{slot}:alive:{i}/{n} present while a collector of this shard lives; the value names it

Wants Redis 6.2 or Valkey. What is read from the stream came from another process and is checked when it enters.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from perpline.bus.redis import redis_client, translated
from perpline.common.errors import Malformed, NeedsPerson, Unavailable
from perpline.domain.candle import MINUTE_MS, Candle
from perpline.domain.instrument import Instrument
from perpline.domain.market import BookTicker, MarkPrice

FORMAT = 1
ROWS_PER_ENTRY = 30
"""Rows of one entry: 20 entries of 30 rows are shared by two workers in 14 ms, 600 of one row take 283 ms."""
KEPT_MS = 600_000
"""Entries are dropped from the stream after so much wall time: twenty times as long as a minute can be decided."""
BLOCK_MS = 1_000
ALIVE_MS = 5_000
"""A collector that has not said for so long that it lives is taken for dead."""
FORGET_WORKER_MS = 600_000
"""A worker that has nothing left to do and was not heard for so long is struck off its group's list."""
MAX_ENTRY_BYTES = 4 << 20


class FeatureRow(Struct, frozen=True, array_like=True, gc=False):
    """What a decision about a symbol at T wants to know, as its collector knew it when it sent the row."""

    symbol: str
    vector: bytes
    """float32, little endian, the whole catalogue. Of group K only beta_1440 and resid_60 are final: the others
    compare all symbols, and are made where all rows are."""
    held: int
    """Contiguous minutes held."""
    restarted: bool
    """Whether a hole has restarted the window."""
    late: int
    """`catalogue.LATE_BITS` of what had not come."""
    received_us: int
    """Receipt of the closing frame, microseconds of the collector's clock."""
    mark: MarkPrice | None
    book: BookTicker | None
    candle: Candle | None


class FeatureBatch(Struct, frozen=True, array_like=True, gc=False):
    """Rows of symbols of one shard that were due together."""

    format: int
    close_time: int
    """T."""
    shard: int
    of: int
    card: str
    """`ShardCard.id` of the shard when it sent this."""
    sent_at: int
    """Exchange time by the collector's clock, milliseconds: inference workers have no exchange to ask."""
    rows: list[FeatureRow]


class ShardCard(Struct, frozen=True, kw_only=True):
    """What a collector says of itself."""

    id: str = ""
    """Changes whenever anything else here does."""
    shard: int
    of: int
    symbols: dict[str, int]
    """Those whose minutes it answers for, each with the boundary after which it does."""
    instruments: dict[str, Instrument]
    lookback_min: int
    cross_section: bool
    """Whether its rows have the columns of group K."""
    tables: list[str]
    """The tables beside the candles that its rows are made of."""
    book_minutes: bool
    schema: str
    """schema_hash of the catalogue: the order and meaning of a vector's columns."""
    version: str


class Entry(Struct, frozen=True):
    """A batch with its id in the stream; `batch` is None for one that cannot be read, and `error` says why."""

    id: str
    batch: FeatureBatch | None
    error: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(FeatureBatch).decode
_decode_card = msgspec.json.Decoder(ShardCard).decode


def encoded(batch: FeatureBatch) -> bytes:
    return _encode(batch)


def decoded(data: bytes, width: int) -> FeatureBatch:
    """The batch of an entry, with vectors of `width` columns. Raises Malformed for anything else."""
    if len(data) > MAX_ENTRY_BYTES:
        raise Malformed(f"{len(data)} bytes are no batch of features")
    try:
        batch = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"no batch of features: {error}") from None
    if batch.format != FORMAT:
        raise Malformed(f"a batch of features of format {batch.format}, and this is {FORMAT}: run one version")
    if batch.close_time <= 0 or batch.close_time % MINUTE_MS or not 1 <= batch.shard <= batch.of:
        raise Malformed(f"a batch of shard {batch.shard}/{batch.of} for T = {batch.close_time}")
    for row in batch.rows:
        if len(row.vector) != 4 * width:
            raise Malformed(f"{row.symbol}: a vector of {len(row.vector)} bytes, and {4 * width} are expected")
        if row.held < 0 or not row.symbol:
            raise Malformed(f"{row.symbol!r}: {row.held} minutes held")
    return batch


class FeatureStream:
    """The stream of one slot, from both ends. Every call may raise Unavailable, NeedsPerson for what it will not mend.

    `consumer` names this worker within its `group`; collectors have neither.
    """

    def __init__(self, url: str, slot: str, *, group: str = "", consumer: str = "", width: int = 0) -> None:
        self.group = group
        self.consumer = consumer
        self._url = url
        self._width = width
        self._key = f"feat:{slot}"
        self._client: Redis | None = None
        self._newest_ms = 0
        """The server's time when it took our last entry."""

    async def open(self) -> None:
        self._client = redis_client(self._url)
        await self._do("PING")

    async def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    # ---- collectors ----

    async def register(self, card: ShardCard, owner: str) -> None:
        """Take a place among the collectors, or say again what has changed.

        Cards of another number of shards go, if nobody lives who wrote them. Raises NeedsPerson where somebody does.
        """
        await self.check(card)
        await self._do("HSET", f"{self._key}:shards", str(card.shard), msgspec.json.encode(card))
        await self.say_alive(card, owner)
        # Two that began at once have both seen nobody; now they see each other.
        await self.check(card)

    async def say_alive(self, card: ShardCard, owner: str) -> None:
        await self._do("SET", f"{self._key}:alive:{card.shard}/{card.of}", owner, "PX", ALIVE_MS)
        if not await self._do("HEXISTS", f"{self._key}:shards", str(card.shard)):
            await self._do("HSET", f"{self._key}:shards", str(card.shard), msgspec.json.encode(card))

    async def publish(self, batch: FeatureBatch) -> None:
        """Add a batch, and drop what is older than ten minutes."""
        trim = ["MINID", "~", str(self._newest_ms - KEPT_MS)] if self._newest_ms > KEPT_MS else []
        added = await self._do("XADD", self._key, *trim, "*", "b", encoded(batch))
        self._newest_ms = int(added.split(b"-")[0])

    async def check(self, card: ShardCard) -> None:
        """Raises NeedsPerson where a collector lives that goes by another number of shards; forgets the dead ones."""
        for other in await self.cards():
            if other.of == card.of:
                continue
            if await self._do("EXISTS", f"{self._key}:alive:{other.shard}/{other.of}"):
                raise NeedsPerson(
                    f"a collector with --shard {other.shard}/{other.of} is running, and this one is "
                    f"{card.shard}/{card.of}: all of a slot must agree on the number; stop the others first"
                )
            await self._do("HDEL", f"{self._key}:shards", str(other.shard))

    # ---- everybody ----

    async def cards(self) -> list[ShardCard]:
        """What the collectors have said, by shard; what cannot be read is left out."""
        found = []
        answer = await self._do("HGETALL", f"{self._key}:shards")
        pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=True)
        for _, text in pairs:
            try:
                found.append(_decode_card(text))
            except (msgspec.DecodeError, ValueError, ArithmeticError):
                continue  # of another version: its batches say so, too
        return sorted(found, key=lambda card: (card.of, card.shard))

    # ---- inference workers ----

    async def hear(self, after: str) -> list[Entry]:
        """Every entry after this id, whoever decides it; waits up to a second for the next."""
        answer = await self._do("XREAD", "COUNT", 200, "BLOCK", BLOCK_MS, "STREAMS", self._key, after)
        return self._entries(_of_only_stream(answer))

    async def take(self, *, wait: bool = True) -> list[Entry]:
        """The next entry that nobody of the group has; with `wait` that is waited for up to a second."""
        waiting = ("BLOCK", BLOCK_MS) if wait else ()
        words = ("XREADGROUP", "GROUP", self.group, self.consumer, "COUNT", 1, *waiting)
        try:
            answer = await self._do(*words, "STREAMS", self._key, ">")
        except _NoGroup:
            await self.join()
            answer = await self._do(*words, "STREAMS", self._key, ">")
        return self._entries(_of_only_stream(answer))

    async def claim(self, idle_ms: int) -> list[Entry]:
        """An entry that somebody of the group took so long ago and has not done."""
        try:
            answer = await self._do("XAUTOCLAIM", self._key, self.group, self.consumer, idle_ms, "0-0", "COUNT", 1)
        except _NoGroup:
            return []
        return self._entries([one for one in answer[1] if one and one[1]])

    async def done(self, ids: Sequence[str]) -> None:
        """These are decided and stored: nobody need have them again."""
        if ids:
            try:
                await self._do("XACK", self._key, self.group, *ids)
            except _NoGroup:
                pass  # the server forgot everything, and with it the work

    async def join(self) -> None:
        """Make the group if there is none. It begins with what the stream still holds."""
        try:
            await self._do("XGROUP", "CREATE", self._key, self.group, "0", "MKSTREAM")
        except _GroupThere:
            pass

    async def leave(self) -> None:
        """Strike this worker off the list, unless it leaves work behind that others must find under its name."""
        for name, pending, _ in await self._members():
            if name == self.consumer and not pending:
                await self._do("XGROUP", "DELCONSUMER", self._key, self.group, name)

    async def forget_the_dead(self) -> None:
        """Strike off workers that have nothing to do and were not heard for long."""
        for name, pending, idle_ms in await self._members():
            if name != self.consumer and not pending and idle_ms > FORGET_WORKER_MS:
                await self._do("XGROUP", "DELCONSUMER", self._key, self.group, name)

    async def waiting(self) -> dict[str, int | None]:
        """`members` of the group, entries taken and not done (`pending`), and not taken yet (`lag`, None: unknown)."""
        try:
            groups = [_named(each) for each in await self._do("XINFO", "GROUPS", self._key)]
        except _NoGroup:
            return {"members": 0, "pending": 0, "lag": None}
        for each in groups:
            if _text(each["name"]) == self.group:
                return {"members": each["consumers"], "pending": each["pending"], "lag": each.get("lag")}
        return {"members": 0, "pending": 0, "lag": None}

    async def _members(self) -> list[tuple[str, int, int]]:
        try:
            answer = await self._do("XINFO", "CONSUMERS", self._key, self.group)
        except _NoGroup:
            return []
        return [(_text(one["name"]), one["pending"], one["idle"]) for one in map(_named, answer)]

    def _entries(self, found: Sequence[Any]) -> list[Entry]:
        entries = []
        for entry_id, fields in found:
            named = _named(fields)
            try:
                entries.append(Entry(_text(entry_id), decoded(named.get("b", b""), self._width)))
            except Malformed as error:
                entries.append(Entry(_text(entry_id), None, str(error)))
        return entries

    async def _do(self, *words: Any) -> Any:
        """The server's answer, as it sends it."""
        if self._client is None:
            raise Unavailable("the feature stream is not open")
        pool: Any = self._client.connection_pool  # of which redis-py has typed only a part
        try:
            connection = await pool.get_connection()
            try:
                await connection.send_command(*words)
                return await connection.read_response()
            except ResponseError:
                raise  # an answer: the connection is as good as before
            except BaseException:
                # Broad, for whatever ended it, a cancellation too: an answer may be outstanding that is not ours next.
                await connection.disconnect(nowait=True)
                raise
            finally:
                await pool.release(connection)
        except ResponseError as error:
            text = str(error)
            if "NOGROUP" in text or "no such key" in text or "requires the key to exist" in text:
                raise _NoGroup(text) from None
            if "BUSYGROUP" in text:
                raise _GroupThere(text) from None
            if "unknown command" in text.lower():
                raise NeedsPerson(f"{words[0]}: {text}: roles want Redis 6.2 or Valkey") from error
            raise translated(error, self._url) from error
        except (RedisError, OSError) as error:
            raise translated(error, self._url) from error


class _NoGroup(Exception):
    """Neither the stream nor the group is there."""


class _GroupThere(Exception):
    """The group is there already."""


def _of_only_stream(answer: Any) -> list[Any]:
    """The entries of the answer to XREAD, which names each stream before them; none where the wait was in vain."""
    if not answer:
        return []
    if isinstance(answer, dict):
        [entries] = answer.values()
        return list(entries)
    [[_, entries]] = answer
    return list(entries)


def _named(values: Any) -> dict[str, Any]:
    if isinstance(values, dict):
        return {_text(name): value for name, value in values.items()}
    return {_text(name): value for name, value in zip(values[::2], values[1::2], strict=True)}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
