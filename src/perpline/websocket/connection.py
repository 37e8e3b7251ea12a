"""One market connection: opens, subscribes, proves itself by data, and comes back when it is lost.

Only data proves a connection. A handshake is not success, an acknowledged subscription proves nothing (binance.md 1.2),
and a server that accepts and hangs up must not be dialled thousands of times, so the count of failures is reset by the
first data frame and by nothing else.
"""

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence

import structlog
from msgspec import Struct
from picows import WSError, WSMsgType, WSTransport, ws_connect

from perpline.common.backoff import backoff_s
from perpline.common.clock import Clock
from perpline.common.websocket import MAX_MESSAGE_BYTES, READ_BUFFER_BYTES, Listener, close_transport, protocol_error
from perpline.websocket.subscriptions import CONTROL_PAUSE_S, control_batches

log = structlog.get_logger("perpline.connection")

LOOK_EVERY_S = 0.25


class Deadlines(Struct, frozen=True):
    """Wall seconds."""

    handshake_s: float = 10.0
    first_data_s: float = 10.0
    """For each stream, from its subscription. A stream that stays silent is subscribed again, after twice the time at
    each repetition, for a symbol without trades is silent by right."""
    silence_s: float = 15.0
    """For the connection as a whole."""


class StreamState(Struct):
    """How one stream is doing. Times are wall seconds of the clock; None: not yet."""

    subscribed_at: float | None = None
    heard_at: float | None = None
    resubscribed: int = 0


class Connection:
    """A WebSocket that carries a fixed set of streams for as long as `run` runs.

    `on_messages(batch, received_us)` is called synchronously with the text messages that one read of the socket
    brought, in order, and returns the names of the streams that were heard: nothing for what is not data.
    `subscribe_request(streams, id)` spells a subscription.
    """

    def __init__(
        self,
        *,
        name: str,
        url: str,
        streams: Sequence[str],
        on_messages: Callable[[list[bytes], int], Iterable[str]],
        subscribe_request: Callable[[Sequence[str], int], bytes],
        clock: Clock,
        rng: random.Random,
        deadlines: Deadlines | None = None,
    ) -> None:
        self.name = name
        self.url = url
        self.streams: dict[str, StreamState] = {stream: StreamState() for stream in streams}
        self.failures = 0
        """In a row, reset by data."""
        self.connects = 0
        """Handshakes that succeeded."""
        self.losses = 0
        """Connections that ended after data had come."""
        self.messages = 0
        self.live = False
        """Whether data has come on the present connection."""
        self.last_message_at: float | None = None
        self.last_error = ""
        self._on_messages = on_messages
        self._subscribe_request = subscribe_request
        self._clock = clock
        self._rng = rng
        self._deadlines = deadlines or Deadlines()
        self._request_id = 0

    async def run(self) -> None:
        """Keep the connection until cancelled."""
        while True:
            reason = await self._live_once()
            if self.live:
                self.losses += 1
            self.live = False
            self.failures += 1
            self.last_error = reason
            wait_s = backoff_s(self.failures, self._rng)
            log.warning(
                "connection_lost",
                connection=self.name,
                reason=reason,
                failures=self.failures,
                wait_s=round(wait_s, 2),
                action="reconnect",
            )
            await self._clock.sleep_wall(wait_s)

    def silent_streams(self) -> list[str]:
        """Streams that have delivered nothing on the present connection."""
        return [stream for stream, state in self.streams.items() if state.heard_at is None]

    async def _live_once(self) -> str:
        """Open, subscribe, watch; returns why it is over."""
        for state in self.streams.values():
            state.subscribed_at = state.heard_at = None
            state.resubscribed = 0
        self.last_message_at = None
        try:
            transport, listener = await ws_connect(
                lambda: Listener(self._receive, self._clock),
                self.url,
                websocket_handshake_timeout=self._deadlines.handshake_s,
                max_frame_size=MAX_MESSAGE_BYTES,
                enable_auto_pong=False,  # it would hide pings, and with one at its end the end of a read
                read_buffer_init_size=READ_BUFFER_BYTES,
                logger_name="connection",
            )
        except (OSError, TimeoutError, WSError) as error:
            return f"could not connect to {self.url}: {error or type(error).__name__}"
        assert isinstance(listener, Listener)
        self.connects += 1
        opened_at = self._clock.wall_s()
        try:
            subscribing = asyncio.create_task(self._subscribe(transport, list(self.streams)))
            try:
                return await self._watch(transport, listener, opened_at)
            finally:
                subscribing.cancel()
        finally:
            await close_transport(transport)

    def _receive(self, batch: list[bytes], received_us: int) -> None:
        self.messages += len(batch)
        now = self._clock.wall_s()
        streams = self.streams
        stream = None
        for stream in self._on_messages(batch, received_us):
            try:
                streams[stream].heard_at = now
            except KeyError:
                pass  # a stream nobody asked for
        if stream is None:
            return
        self.last_message_at = now
        if not self.live:
            self.live = True
            self.failures = 0
            log.info("connection_live", connection=self.name, streams=len(streams), action="connect")

    async def _subscribe(self, transport: WSTransport, streams: list[str]) -> None:
        for batch in control_batches(streams):
            if transport.is_disconnected or transport.is_close_frame_sent:
                return
            self._request_id += 1
            transport.send(WSMsgType.TEXT, self._subscribe_request(batch, self._request_id))
            now = self._clock.wall_s()
            for stream in batch:
                self.streams[stream].subscribed_at = now
            await self._clock.sleep_wall(CONTROL_PAUSE_S)

    async def _watch(self, transport: WSTransport, listener: "Listener", opened_at: float) -> str:
        resubscribing: asyncio.Task[None] | None = None
        try:
            while True:
                try:
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await listener.ended.wait()
                    return await protocol_error(transport) or listener.reason or "the other side closed the connection"
                except TimeoutError:
                    pass  # time to look
                now = self._clock.wall_s()
                quiet_s = now - (opened_at if self.last_message_at is None else self.last_message_at)
                if quiet_s > self._deadlines.silence_s:
                    return f"no data for {quiet_s:.0f} s"
                if resubscribing is None or resubscribing.done():
                    if resubscribing is not None:
                        resubscribing.result()
                    silent = self._overdue(now)
                    if silent:
                        resubscribing = asyncio.create_task(self._subscribe(transport, silent))
        finally:
            if resubscribing is not None:
                resubscribing.cancel()

    def _overdue(self, now: float) -> list[str]:
        """Streams past their first-data deadline, which are warned of here and to be subscribed again."""
        overdue = [
            stream
            for stream, state in self.streams.items()
            if state.heard_at is None
            and state.subscribed_at is not None
            and now - state.subscribed_at > self._deadlines.first_data_s * 2**state.resubscribed
        ]
        if overdue:
            for stream in overdue:
                self.streams[stream].resubscribed = min(self.streams[stream].resubscribed + 1, 6)
            log.warning(
                "streams_silent",
                connection=self.name,
                streams=overdue[:10],
                count=len(overdue),
                waited_s=self._deadlines.first_data_s,
                hint="acknowledged subscriptions prove nothing: check the route if this persists",
                action="resubscribe",
            )
        return overdue
