"""The bus on a Redis or Valkey server, version 5 or later."""

from hashlib import sha1
from typing import Any
from urllib.parse import urlsplit

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, NoScriptError, RedisError

from perpline.bus.wire import channel_name, entry_fields, last_name, position_name, stream_name
from perpline.common.errors import NeedsPerson, Unavailable
from perpline.domain.signal import Message

MAX_ENTRIES = 10_080
"""Signals kept in a stream: a week of minutes, give or take a node of the stream's tree."""
SCRIPT_MESSAGES = 100
"""Messages that are sent in one script call."""
TIMEOUT_S = 5.0
SIGNS = {
    "OOM": "the server's memory is full: raise its maxmemory, or give it an eviction policy for other people's keys",
    "used memory >": "the server's memory is full: raise its maxmemory",
    "MISCONF": "the server cannot save to its disk and refuses writes until it can",
    "LOADING": "the server is starting",
    "READONLY": "the server is a replica: name the primary",
    "read only replica": "the server is a replica: name the primary",
}
"""What a server's refusal means, by a word in it."""

PUBLISH_SCRIPT = """
-- KEYS: stream and hash of each signal, hash of each position. ARGV: entries to keep, and the messages as msgpack (one
-- argument, since each costs the client a microsecond): for each its channel (empty: expired, not to be announced),
-- payload, T, its entry's fields and values (none: neither signal nor position), and whether it is a position.
-- Stops at the first error, so that no signal can overtake an older one of its stream, which would then be refused.
local key = 1
for _, message in ipairs(cmsgpack.unpack(ARGV[2])) do
    local channel, payload, t, entry, position = unpack(message)
    local announce = channel ~= ''
    if position then
        local hash = KEYS[key]
        key = key + 1
        local known = redis.call('HMGET', hash, 'T', 'account', 'qty')
        local is_real = known[2] == 'live' and known[3] ~= '0'
        local is_paper = false
        for i = 1, #entry, 2 do
            if entry[i] == 'account' then is_paper = entry[i + 1] == 'paper' end
        end
        if tonumber(known[1] or '-1') <= tonumber(t) and not (is_real and is_paper) then
            redis.call('DEL', hash)
            redis.call('HSET', hash, unpack(entry))
        end
    elseif #entry > 0 then
        local stream, hash = KEYS[key], KEYS[key + 1]
        key = key + 2
        local added = redis.pcall('XADD', stream, 'MAXLEN', '~', ARGV[1], t .. '-0', unpack(entry))
        if type(added) == 'table' and added.err then
            if not string.find(added.err, 'equal or smaller', 1, true) then return added end
            announce = false -- the top id is this one or a newer: it was here before
        end
        if tonumber(redis.call('HGET', hash, 'T') or '-1') < tonumber(t) then
            redis.call('DEL', hash)
            redis.call('HSET', hash, unpack(entry))
        end
    end
    if announce then redis.call('PUBLISH', channel, payload) end
end
return redis.status_reply('OK')
"""
PUBLISH_SCRIPT_SHA = sha1(PUBLISH_SCRIPT.encode(), usedforsecurity=False).hexdigest()
"""The name the server gives the script."""


class RedisBus:
    """A `Bus` with the streams, hashes and channels of contracts.md.

    Stream entry, hash and announcement of a signal happen at once or not at all, so a signal that is sent again does
    nothing. The other kinds of message are only announced, and are heard again when sent again; of a position the
    newest news stay in its symbol's hash, where paper never takes the place of an open live position.
    If `open` found nobody, `publish` may be tried all the same: it connects when it can.

    Addresses: redis://, rediss:// and unix://. Passwords appear in no error.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: Redis | None = None

    async def open(self) -> None:
        self._client = redis_client(self._url)
        try:
            await self._client.ping()
        except (RedisError, OSError) as error:
            raise translated(error, self._url) from error

    async def publish(self, messages: list[Message], now_ms: int) -> None:
        if self._client is None:
            raise Unavailable(f"{where(self._url)}: not connected")
        pool: Any = self._client.connection_pool  # of which redis-py has typed only a part
        try:
            connection = await pool.get_connection()
            try:
                await _run_script(connection, messages, now_ms)
            except BaseException:
                # Broad, for whatever ended it, a cancellation too: an answer may be outstanding that is not ours next.
                await connection.disconnect(nowait=True)
                raise
            finally:
                await pool.release(connection)
        except (RedisError, OSError) as error:
            raise translated(error, self._url) from error

    async def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()


async def _run_script(connection: Any, messages: list[Message], now_ms: int) -> None:
    """Publish some messages with each call. The next are packed while the server works, but sent when it has answered:
    after an error nothing may follow that could overtake what failed."""
    asked: list[Any] | None = None
    for start in range(0, len(messages), SCRIPT_MESSAGES):
        keys, packed = _packed(messages[start : start + SCRIPT_MESSAGES], now_ms)
        if asked is not None:
            await _answer(connection, asked)
        asked = [len(keys), *keys, MAX_ENTRIES, packed]
        await connection.send_command("EVALSHA", PUBLISH_SCRIPT_SHA, *asked)
    if asked is not None:
        await _answer(connection, asked)


async def _answer(connection: Any, asked: list[Any]) -> None:
    try:
        await connection.read_response()
    except NoScriptError:  # the first call since the server started
        await connection.send_command("EVAL", PUBLISH_SCRIPT, *asked)
        await connection.read_response()


def _packed(messages: list[Message], now_ms: int) -> tuple[list[str], bytes]:
    """KEYS and the second argument of the script."""
    keys: list[str] = []
    packed: list[tuple[str, str, str, list[str], bool]] = []
    for message in messages:
        entry: list[str] = []
        is_position = message.kind == "position"
        if message.kind == "signal" or is_position:
            if is_position:
                keys.append(position_name(message.symbol))
            else:
                keys += (stream_name(message.slot, message.symbol), last_name(message.slot, message.symbol))
            for field in entry_fields(message).items():
                entry += field
        channel = channel_name(message) if now_ms <= message.valid_until else ""
        packed.append((channel, message.payload, str(message.close_time), entry, is_position))
    return keys, msgspec.msgpack.encode(packed)


def redis_client(url: str, *, as_text: bool = False) -> Redis:
    """A client that has not connected yet. Raises NeedsPerson for an address that cannot be meant."""
    try:
        return Redis.from_url(
            url,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            # Trying again is the caller's, who waits between tries and says what happens.
            retry=Retry(NoBackoff(), 0),
            protocol=2,  # what every server speaks
            decode_responses=as_text,
            encoding_errors="replace",
        )
    except ValueError as error:
        raise NeedsPerson(f"{where(url)}: the address cannot be read: write redis://host:6379/0") from error


def translated(error: Exception, url: str) -> Exception:
    """The client's error as perpline's, with the server's place and without the password."""
    why = next((f" ({meaning})" for sign, meaning in SIGNS.items() if sign in str(error)), "")
    text = f"{where(url)}: {type(error).__name__}: {error}{why}"
    password = urlsplit(url).password
    if password:
        text = text.replace(password, "***")
    is_for_a_person = isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError)
    if is_for_a_person or "WRONGTYPE" in str(error):
        return NeedsPerson(text)
    return Unavailable(text)


def where(url: str) -> str:
    """The server in words, by host, port and path only: user names, passwords and options may be secrets."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
        return f"Redis at {parts.scheme}://{parts.hostname or ''}{port}{parts.path}"
    except ValueError:
        return "Redis at an address that cannot be read"
