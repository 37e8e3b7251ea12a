"""The account's own stream: what becomes of our orders, told by the exchange as it happens.

It is silent by right for hours, so silence proves nothing: pings tell whether the other side is there, the listen key
is kept alive, and whoever is called at every connection asks for the account as a whole, for what happened meanwhile is
told nowhere else.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import structlog
from picows import WSError, WSTransport, ws_connect

from perpline.common.backoff import backoff_s
from perpline.common.clock import Clock
from perpline.common.errors import Malformed, PerplineError, Refused
from perpline.common.websocket import MAX_MESSAGE_BYTES, Listener, close_transport, protocol_error
from perpline.domain.order import ListenKeyExpired, UserEvent

log = structlog.get_logger("perpline.user_stream")

KEEP_EVERY_S = 30 * 60.0
"""A key lives for an hour of market time from when it was last made or kept."""
KEY_LIFE_S = 55 * 60.0
"""A key that could not be kept for so long is taken for dead."""
RENEW_AFTER_S = 23 * 3600.0
"""The exchange ends a connection after 24 hours of its time; we do before."""
MAX_HELD = 10_000
"""Events that may wait while the account is asked for. With more of them it is begun anew."""
LOOK_AGAIN_S = 10.0
"""Wall seconds at least between two looks at the account because of messages that made no sense."""

_LOOK_EVERY_S = 0.25
_HANDSHAKE_S = 10.0
_PING_AFTER_S = 10.0
_PONG_WITHIN_S = 5.0
_KEEP_AGAIN_S = 30.0
_LONGEST_WAIT_S = 30.0
_STEADY_AFTER_S = 20.0
_MAX_TYPES = 100


class Named(Protocol):
    """A message that becomes no event."""

    @property
    def event_type(self) -> str: ...

    @property
    def is_known(self) -> bool:
        """Whether it is left out on purpose."""


class UserStream:
    """Keeps a connection to the user data stream for as long as `run` runs.

    After every connection `on_connected()` is awaited, which asks for the account by request; events that arrive
    meanwhile are held and delivered after it, in order, and from then on as they come: `on_event(event)`. `on_lost`
    is told the reason when a connection ends. A key that has expired or cannot be kept, an end of the connection and
    an `on_connected` that raises a PerplineError all lead to a new key and a new connection; a message that makes no
    sense leads to another `on_connected`.

    `make_key` and `keep_key` are requests, `url_of(key)` is where to connect.
    """

    def __init__(
        self,
        *,
        make_key: Callable[[], Awaitable[str]],
        keep_key: Callable[[], Awaitable[None]],
        url_of: Callable[[str], str],
        decode: Callable[[bytes, int], UserEvent | Named],
        on_connected: Callable[[], Awaitable[object]],
        on_event: Callable[[UserEvent], None],
        on_lost: Callable[[str], None],
        clock: Clock,
        rng: random.Random,
        keep_every_s: float = KEEP_EVERY_S,
        renew_after_s: float = RENEW_AFTER_S,
    ) -> None:
        self.live = False
        """Whether the stream is connected and the account was asked for since."""
        self.connects = 0
        self.failures = 0
        """In a row, each within a few seconds."""
        self.keys_made = 0
        self.keys_kept = 0
        self.events: Counter[str] = Counter()
        """By type, also of those that become no event."""
        self.malformed = 0
        self.last_event_at = 0
        """Our market time, ms; 0 for never."""
        self.last_error = ""
        self._make_key = make_key
        self._keep_key = keep_key
        self._url_of = url_of
        self._decode = decode
        self._on_connected = on_connected
        self._on_event = on_event
        self._on_lost = on_lost
        self._clock = clock
        self._rng = rng
        self._keep_every_s = keep_every_s
        self._renew_after_s = renew_after_s
        self._held: list[UserEvent] | None = []
        """None while events are delivered as they come."""
        self._looked_s = 0.0
        self._over = ""
        """Why the present connection is to end."""
        self._in_doubt = False

    async def run(self) -> None:
        """Keep the stream until cancelled."""
        while True:
            began_s = self._clock.wall_s()
            reason = await self._live_once()
            lived_s = self._clock.wall_s() - began_s
            self.failures = self.failures + 1 if reason and lived_s < _STEADY_AFTER_S else 0
            self.last_error = reason
            wait_s = backoff_s(self.failures, self._rng, _LONGEST_WAIT_S)
            if reason:
                log.warning("user_stream_lost", reason=reason, wait_s=round(wait_s, 2), action="orders")
            await self._clock.sleep_wall(wait_s)

    def renew(self, reason: str) -> None:
        """End the present connection for this reason: what should have been told was not."""
        self._over = self._over or reason

    def facts(self) -> dict[str, Any]:
        """For /status: plain JSON values."""
        return {
            "live": self.live,
            "connects": self.connects,
            "failures": self.failures,
            "keys_made": self.keys_made,
            "keys_kept": self.keys_kept,
            "events": dict(self.events),
            "malformed": self.malformed,
            "last_event_at": self.last_event_at,
            "last_error": self.last_error,
        }

    async def _live_once(self) -> str:
        """Make a key, connect, ask for the account, watch; returns why it is over, empty for an end we planned."""
        self._held, self._over, self._in_doubt = [], "", False
        try:
            key = await self._make_key()
        except PerplineError as error:
            return f"no listen key: {error}"
        self.keys_made += 1
        try:
            transport, listener = await ws_connect(
                lambda: Listener(self._receive, self._clock),
                self._url_of(key),
                websocket_handshake_timeout=_HANDSHAKE_S,
                max_frame_size=MAX_MESSAGE_BYTES,
                enable_auto_pong=False,  # the listener does
                enable_auto_ping=True,
                auto_ping_idle_timeout=_PING_AFTER_S,
                auto_ping_reply_timeout=_PONG_WITHIN_S,
                logger_name="user_stream",
            )
        except (OSError, TimeoutError, WSError) as error:
            # Whoever has the key can listen: it is in no text of ours.
            return f"could not connect: {str(error).replace(key, '***') or type(error).__name__}"
        assert isinstance(listener, Listener)
        self.connects += 1
        keeping = asyncio.create_task(self._keep(), name="listen key")
        try:
            await self._look()
            reason = await self._watch(transport, listener)
        except PerplineError as error:
            reason = f"the account could not be asked for: {error}"
        finally:
            self.live = False
            self._held = []
            keeping.cancel()
            await close_transport(transport)
        reason = reason.replace(key, "***")
        self._on_lost(reason or "renewed")
        return reason

    async def _look(self) -> None:
        """Have the account asked for, and deliver what came meanwhile."""
        if self._held is None:
            self._held = []
        self._in_doubt = False
        self._looked_s = self._clock.wall_s()
        await self._on_connected()
        while self._held:
            held, self._held = self._held, []
            for event in held:
                self._on_event(event)
        self._held = None
        if not self.live:
            self.live = True
            log.info("user_stream_live", connects=self.connects, action="orders")

    async def _watch(self, transport: WSTransport, listener: Listener) -> str:
        """Wait for the end of the connection; returns why it is over, empty for an end that we planned."""
        connected_at = self._clock.exchange_now_ms()  # not the host's UTC, which is set right by steps
        while True:
            try:
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await listener.ended.wait()
                return await protocol_error(transport) or listener.reason or "the other side closed the connection"
            except TimeoutError:
                pass  # time to look
            if self._over:
                return self._over
            if self._in_doubt and self._clock.wall_s() - self._looked_s > LOOK_AGAIN_S:
                await self._look()
            if self._clock.exchange_now_ms() - connected_at > self._renew_after_s * 1000:
                return ""

    async def _keep(self) -> None:
        """Keep the key alive for as long as the connection lasts; where that fails for good, end the connection."""
        kept_at = self._clock.exchange_now_ms()
        wait_s = self._keep_every_s
        while True:
            await self._clock.sleep(wait_s)
            try:
                await self._keep_key()
                self.keys_kept += 1
                kept_at, wait_s = self._clock.exchange_now_ms(), self._keep_every_s
            except PerplineError as error:
                log.warning("listen_key_not_kept", reason=str(error), action="orders")
                if isinstance(error, Refused) or self._clock.exchange_now_ms() - kept_at > KEY_LIFE_S * 1000:
                    self.renew(f"the listen key could not be kept: {error}")
                    return
                # It still has half an hour: a connection that works is not given up for a request that failed.
                wait_s = _KEEP_AGAIN_S

    def _receive(self, batch: list[bytes], received_us: int) -> None:
        received_at = received_us // 1000
        for data in batch:
            try:
                event = self._decode(data, received_at)
            except Malformed as error:
                self.malformed += 1
                self._in_doubt = True
                log.warning("user_event_malformed", reason=str(error), action="ask for the account")
                continue
            self.last_event_at = received_at
            if isinstance(event, ListenKeyExpired):
                self._count(type(event).__name__)
                self.renew("the listen key has expired")
            elif isinstance(event, UserEvent):
                self._count(type(event).__name__)
                self._pass_on(event)
            else:
                if not event.is_known and not self.events[event.event_type]:
                    log.warning("user_event_unknown", event_type=event.event_type, action="count")
                self._count(event.event_type)

    def _pass_on(self, event: UserEvent) -> None:
        if self._held is None:
            self._on_event(event)
        elif len(self._held) < MAX_HELD:
            self._held.append(event)
        else:
            self.renew(f"more than {MAX_HELD} events came while the account was asked for")

    def _count(self, event_type: str) -> None:
        self.events[event_type if event_type in self.events or len(self.events) < _MAX_TYPES else "…"] += 1
