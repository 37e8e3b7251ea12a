"""A short text that several processes read and change, as a string on a Redis or Valkey server."""

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, RedisError

from perpline.bus.redis import where
from perpline.common.errors import NeedsPerson, Unavailable

TIMEOUT_S = 1.0
"""Short, because requests to the exchange wait for it; without it they go on alone."""
KEPT_S = 3600
"""The server forgets a text that nobody has changed for so long."""

SWAP_SCRIPT = """
-- KEYS: the text's key. ARGV: the text expected (empty: none), the new one, how long it is kept.
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""


class RedisText:
    """The text under the key `text:{name}`. Connects when it is first used, and again after an outage."""

    def __init__(self, url: str, name: str) -> None:
        self.where = where(url)
        self._url = url
        self._key = f"text:{name}"
        self._client: Redis | None = None

    async def read(self) -> str:
        try:
            found = await self._connected().get(self._key)
        except (RedisError, OSError) as error:
            raise self._translated(error) from error
        return found.decode("utf-8", "replace") if isinstance(found, bytes) else found or ""

    async def swap(self, before: str, after: str) -> bool:
        try:
            done = await self._connected().eval(SWAP_SCRIPT, 1, self._key, before, after, str(KEPT_S))
        except (RedisError, OSError) as error:
            raise self._translated(error) from error
        return bool(done)

    async def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    def _connected(self) -> Redis:
        if self._client is None:
            try:
                self._client = Redis.from_url(
                    self._url,
                    socket_timeout=TIMEOUT_S,
                    socket_connect_timeout=TIMEOUT_S,
                    retry=Retry(NoBackoff(), 0),
                    protocol=2,  # what every server speaks
                )
            except ValueError as error:
                raise NeedsPerson(f"{self.where}: the address cannot be read: write redis://host:6379/0") from error
        return self._client

    def _translated(self, error: Exception) -> NeedsPerson | Unavailable:
        # Only the kind of failure: the server's texts may repeat what it was sent.
        text = f"{self.where}: {type(error).__name__}"
        if isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError):
            return NeedsPerson(text)
        return Unavailable(text)
