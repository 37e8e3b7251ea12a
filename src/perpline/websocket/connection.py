"""One market connection: opens, subscribes, proves itself by data, comes back when it is lost, and is renewed in time.

Only data proves a connection. A handshake is not success, an acknowledged subscription proves nothing (binance.md 1.2),
and a server that accepts and hangs up must not be dialled thousands of times, so the count of failures is reset by the
first data frame and by nothing else.
"""

import asyncio
import random
from collections import deque
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

AGE_JITTER = 0.1
"""Connections are renewed at between nine and ten tenths of their age limit, so that they do not change all at once."""

SUBSCRIBED_WITHIN_S = 1.0
"""Wall seconds after which a subscription that was sent is in force at the exchange. What the old socket heard before
may rightly be missing on the new one."""

PROVE_WITHIN = 6
"""A new socket has so many times `first_data_s` to prove itself beside the old one, and then the old one stays."""

SOURCES = 2
"""A connection's sockets are told apart by so many numbers, which they take in turns (see `Lane`)."""

OnMessages = Callable[[list[bytes], int, int], Iterable[str]]
ControlRequest = Callable[[Sequence[str], int], bytes]


class Deadlines(Struct, frozen=True):
    """Wall seconds."""

    handshake_s: float = 10.0
    first_data_s: float = 10.0
    """For each stream, from its subscription. A stream that stays silent is subscribed again, after twice the time at
    each repetition, for a symbol without trades is silent by right."""
    silence_s: float = 15.0
    """For the connection as a whole."""


class StreamState(Struct):
    """How one stream is doing on one socket. Times are wall seconds of the clock; None: not yet."""

    subscribed_at: float | None = None
    heard_at: float | None = None
    resubscribed: int = 0


class Connection:
    """Carries its streams over a WebSocket for as long as `run` runs.

    A socket that reaches `max_age_s` (market seconds; None: never) is replaced without a gap: another one is opened
    with the same streams, both run side by side until the new one has proved itself, then the old one is closed. A
    stream has proved itself when the new socket has delivered it, or when, half of `first_data_s` after its
    subscription, the old one has not heard it since either: a symbol without trades is silent by right. A new socket
    that does not prove itself in time is given up and tried again later; the old one stays.

    `on_messages(batch, received_us, source)` is called synchronously with the text messages that one read of a socket
    brought, in order, and returns the names of the streams that were heard: nothing for what is not data. Messages of
    one source are in the exchange's order; what two sockets say side by side comes from different sources.
    `subscribe_request(streams, id)` and `unsubscribe_request` spell the control messages.
    """

    def __init__(
        self,
        *,
        name: str,
        url: str,
        streams: Sequence[str],
        on_messages: OnMessages,
        subscribe_request: ControlRequest,
        unsubscribe_request: ControlRequest,
        clock: Clock,
        rng: random.Random,
        deadlines: Deadlines | None = None,
        max_age_s: float | None = None,
        first_source: int = 0,
    ) -> None:
        self.name = name
        self.url = url
        self.streams: tuple[str, ...] = tuple(streams)
        self.failures = 0
        """In a row, reset by data."""
        self.connects = 0
        """Handshakes that succeeded."""
        self.losses = 0
        """Sockets that ended by themselves after data had come."""
        self.rollovers = 0
        """Sockets replaced without a gap."""
        self.rollovers_given_up = 0
        """New sockets that did not prove themselves beside the old one."""
        self.resubscriptions = 0
        """Streams asked for again."""
        self.messages = 0
        self.delivers_nothing = ""
        """What is known of a socket that is open and has delivered no data by its deadline; empty when data comes."""
        self.last_error = ""
        self.twin: Connection | None = None
        """A connection with the same streams, which is to be renewed half an age away from this one."""
        self._on_messages = on_messages
        self._subscribe_request = subscribe_request
        self._unsubscribe_request = unsubscribe_request
        self._clock = clock
        self._rng = rng
        self._deadlines = deadlines or Deadlines()
        self._max_age_s = max_age_s
        self._first_source = first_source
        self._opened = 0
        self._sockets: list[_Socket] = []
        """The present one, and behind it the one that is to replace it."""
        self._leaving: list[_Socket] = []
        self._heard_before: dict[str, float] = {}
        self._renew = ""
        self._not_before = 0.0
        self._given_up_in_a_row = 0

    async def run(self) -> None:
        """Keep the connection until cancelled."""
        try:
            while True:
                reason = await self._until_lost()
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
        finally:
            tasks = [socket.task for socket in self._sockets + self._leaving]
            for task in tasks:
                task.cancel()
            # They say goodbye, which is bounded.
            await asyncio.gather(*tasks, return_exceptions=True)

    # ---- what is asked of it ----

    @property
    def live(self) -> bool:
        """Whether data has come on a socket that is open."""
        return any(socket.live for socket in self._sockets)

    @property
    def is_rolling_over(self) -> bool:
        return len(self._sockets) > 1

    @property
    def last_message_at(self) -> float | None:
        """When data came last on a socket that is open."""
        return max((s.last_message_at for s in self._sockets if s.last_message_at is not None), default=None)

    @property
    def age_s(self) -> float | None:
        """Market seconds since the present socket was opened, None while there is none."""
        if not self._sockets or self._sockets[0].opened_at is None:
            return None
        return (self._clock.wall_s() - self._sockets[0].opened_at) * self._clock.speed

    @property
    def due_at(self) -> float | None:
        """Wall seconds at which the present socket is to be replaced."""
        return self._sockets[0].due_at if self._sockets else None

    def silent_streams(self) -> list[str]:
        """Streams that have delivered nothing on the present socket."""
        if not self._sockets:
            return list(self.streams)
        states = self._sockets[0].streams
        return [stream for stream in self.streams if stream not in states or states[stream].heard_at is None]

    def heard_at(self, stream: str) -> float | None:
        """When a stream was last heard on any socket there was, None for never."""
        newest = self._heard_before.get(stream)
        for socket in self._sockets:
            state = socket.streams.get(stream)
            if state is not None and state.heard_at is not None and (newest is None or state.heard_at > newest):
                newest = state.heard_at
        return newest

    def quiet_since(self, wall_s: float) -> list[str]:
        """Streams that the present socket has asked for, and not heard since this time."""
        return [
            stream
            for stream, state in (self._sockets[0].streams.items() if self._sockets else ())
            if state.subscribed_at is not None
            and state.subscribed_at < wall_s
            and (state.heard_at is None or state.heard_at < wall_s)
        ]

    def since(self, stream: str) -> float | None:
        """When the stream was last heard on any socket, or last asked for on the present one, whichever is later; None
        while it is not asked for."""
        state = self._sockets[0].streams.get(stream) if self._sockets else None
        if state is None or state.subscribed_at is None:
            return None
        return max(state.subscribed_at, self.heard_at(stream) or 0.0)

    def follow(self, streams: Sequence[str]) -> None:
        """Carry these streams from now on: the difference is subscribed to and unsubscribed from on open sockets."""
        before, after = set(self.streams), set(streams)
        added = [stream for stream in streams if stream not in before]
        dropped = [stream for stream in self.streams if stream not in after]
        self.streams = tuple(streams)
        for stream in dropped:
            self._heard_before.pop(stream, None)
        for socket in self._sockets:
            socket.unsubscribe(dropped)
            socket.subscribe(added)

    def resubscribe(self, streams: Sequence[str]) -> None:
        """Ask for these streams anew: end their subscription and begin it again."""
        for socket in self._sockets[:1]:
            socket.unsubscribe(streams)
            socket.subscribe(streams)
            self.resubscriptions += len(streams)

    def renew(self, reason: str) -> None:
        """Replace the socket as soon as may be, as if its age were reached."""
        self._renew = self._renew or reason

    # ---- sockets ----

    async def _until_lost(self) -> str:
        """Open a socket and keep one, exchanging it when it is due; returns why the last one is over."""
        self._renew = ""  # this is a new one
        self._open()
        while True:
            tasks = [socket.task for socket in self._sockets]
            await asyncio.wait(tasks, timeout=LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
            self._leaving = [socket for socket in self._leaving if not socket.task.done()]
            present, *coming = self._sockets
            if present.task.done():
                reason = present.task.result()
                self._remove(present)
                if present.live:
                    self.losses += 1
                if not coming:
                    return reason
                # Its end was faster than the proof, and what has been opened is the best there is.
                self.last_error = reason
                log.warning("connection_lost", connection=self.name, reason=reason, action="rollover")
            elif coming:
                self._compare(present, coming[0])
            elif self._is_due(present):
                log.info("rollover_begins", connection=self.name, reason=self._renew or "age", action="rollover")
                self._renew = ""
                self._open()

    def _open(self) -> None:
        source = self._first_source + self._opened % SOURCES
        self._opened += 1
        socket = _Socket(self, source)
        socket.task = asyncio.create_task(socket.run(), name=f"{self.name} socket {self._opened}")
        self._sockets.append(socket)

    def _remove(self, socket: "_Socket") -> None:
        self._sockets.remove(socket)
        for stream, state in socket.streams.items():
            if state.heard_at is not None and state.heard_at > self._heard_before.get(stream, -1.0):
                self._heard_before[stream] = state.heard_at

    def _is_due(self, present: "_Socket") -> bool:
        now = self._clock.wall_s()
        if not present.live or now < self._not_before:
            return False
        return bool(self._renew) or (present.due_at is not None and now >= present.due_at)

    def _compare(self, present: "_Socket", coming: "_Socket") -> None:
        """Change to the new socket if it has proved itself, give it up if it will not."""
        now, first_data_s = self._clock.wall_s(), self._deadlines.first_data_s
        if coming.task.done():
            self._give_up(coming, coming.task.result())
        elif coming.has_proved_itself(present, now):
            self.rollovers += 1
            self._given_up_in_a_row = 0
            log.info(
                "connection_rolled_over",
                connection=self.name,
                age_s=round(self.age_s or 0.0),
                side_by_side_s=round(now - coming.begun_at, 2),
                action="rollover",
            )
            self._leave(present)
        elif now - coming.begun_at > PROVE_WITHIN * first_data_s:
            missing = coming.unproved(present, now)
            self._give_up(coming, f"{len(missing)} streams did not come on it: {', '.join(missing[:5])}")

    def _give_up(self, coming: "_Socket", reason: str) -> None:
        self.rollovers_given_up += 1
        wait_s = PROVE_WITHIN * self._deadlines.first_data_s * 2 ** min(self._given_up_in_a_row, 3)
        self._given_up_in_a_row += 1
        self._not_before = self._clock.wall_s() + wait_s
        log.warning(
            "rollover_given_up",
            connection=self.name,
            reason=reason,
            age_s=round(self.age_s or 0.0),
            wait_s=round(wait_s, 1),
            action="rollover",
        )
        self._leave(coming)

    def _leave(self, socket: "_Socket") -> None:
        self._remove(socket)
        socket.task.cancel()
        self._leaving.append(socket)

    def due_after(self, opened_at: float) -> float | None:
        """When a socket that was opened at this time is to be replaced: half an age away from the twin's."""
        if self._max_age_s is None:
            return None
        age_s = self._max_age_s * (1 - AGE_JITTER * self._rng.random()) / self._clock.speed
        due_at = opened_at + age_s
        twins = None if self.twin is None else self.twin.due_at
        return due_at - age_s / 2 if twins is not None and abs(due_at - twins) < age_s / 4 else due_at

    def received(self, socket: "_Socket", batch: list[bytes], received_us: int) -> None:
        self.messages += len(batch)
        now = self._clock.wall_s()
        streams = socket.streams
        stream = None
        for stream in self._on_messages(batch, received_us, socket.source):
            try:
                streams[stream].heard_at = now
            except KeyError:
                pass  # a stream nobody asked for
        if stream is None:
            socket.answers += len(batch)
            return
        socket.last_message_at = now
        if not socket.live:
            socket.live = True
            self.failures = 0
            self.delivers_nothing = ""
            log.info("connection_live", connection=self.name, streams=len(streams), action="connect")


class _Socket:
    """One WebSocket of a connection, from the handshake to its end."""

    task: asyncio.Task[str]

    def __init__(self, owner: Connection, source: int) -> None:
        self.source = source
        self.streams: dict[str, StreamState] = {stream: StreamState() for stream in owner.streams}
        self.begun_at = owner._clock.wall_s()
        self.opened_at: float | None = None
        self.due_at: float | None = None
        self.live = False
        """Whether data has come."""
        self.answers = 0
        """Messages that were no data: what the exchange says to control messages."""
        self.last_message_at: float | None = None
        self._owner = owner
        self._clock = owner._clock
        self._deadlines = owner._deadlines
        self._requests: deque[tuple[bool, tuple[str, ...]]] = deque()
        """Control messages to be sent: whether it subscribes, and to what. As many as the callers ask for."""
        self._asked = asyncio.Event()
        self._request_id = 0
        self.subscribe(owner.streams)

    async def run(self) -> str:
        """Open, subscribe, watch; returns why it is over."""
        owner = self._owner
        try:
            transport, listener = await ws_connect(
                lambda: Listener(self._receive, self._clock),
                owner.url,
                websocket_handshake_timeout=self._deadlines.handshake_s,
                max_frame_size=MAX_MESSAGE_BYTES,
                enable_auto_pong=False,  # it would hide pings, and with one at its end the end of a read
                read_buffer_init_size=READ_BUFFER_BYTES,
                logger_name="connection",
            )
        except (OSError, TimeoutError, WSError) as error:
            return f"could not connect to {owner.url}: {error or type(error).__name__}"
        assert isinstance(listener, Listener)
        owner.connects += 1
        self.opened_at = self._clock.wall_s()
        self.due_at = owner.due_after(self.opened_at)
        try:
            asking = asyncio.create_task(self._ask(transport), name=f"{owner.name} control messages")
            try:
                return await self._watch(transport, listener, self.opened_at)
            finally:
                asking.cancel()
        finally:
            await close_transport(transport)

    def subscribe(self, streams: Sequence[str]) -> None:
        for stream in streams:
            self.streams.setdefault(stream, StreamState())
        self._want(True, streams)

    def unsubscribe(self, streams: Sequence[str]) -> None:
        """Streams that the connection still carries keep their state: they are about to be asked for again."""
        for stream in streams:
            state = self.streams[stream] if stream in self._owner.streams else self.streams.pop(stream, None)
            if state is not None:
                state.subscribed_at = None
        self._want(False, streams)

    def has_proved_itself(self, old: "_Socket", now: float) -> bool:
        return self.live and not self.unproved(old, now)

    def unproved(self, old: "_Socket", now: float) -> list[str]:
        """Streams of which it is not certain yet that they come here as well as they came on the old socket."""
        patience_s = self._deadlines.first_data_s / 2
        missing = []
        for stream, state in self.streams.items():
            if state.heard_at is not None:
                continue
            before = old.streams.get(stream)
            heard = None if before is None else before.heard_at
            if (
                state.subscribed_at is None
                or now - state.subscribed_at < patience_s
                or (heard is not None and heard > state.subscribed_at + SUBSCRIBED_WITHIN_S)
            ):
                missing.append(stream)
        return missing

    def _receive(self, batch: list[bytes], received_us: int) -> None:
        self._owner.received(self, batch, received_us)

    def _want(self, subscribe: bool, streams: Sequence[str]) -> None:
        self._requests += [(subscribe, batch) for batch in control_batches(streams)]
        self._asked.set()

    async def _ask(self, transport: WSTransport) -> None:
        """Send the control messages, with a pause between any two."""
        while True:
            await self._asked.wait()
            while self._requests:
                if transport.is_disconnected or transport.is_close_frame_sent:
                    return
                subscribe, streams = self._requests.popleft()
                owner = self._owner
                self._request_id += 1
                spell = owner._subscribe_request if subscribe else owner._unsubscribe_request
                transport.send(WSMsgType.TEXT, spell(streams, self._request_id))
                now = self._clock.wall_s()
                for stream in streams if subscribe else ():
                    if stream in self.streams:
                        self.streams[stream].subscribed_at = now
                await self._clock.sleep_wall(CONTROL_PAUSE_S)
            self._asked.clear()

    async def _watch(self, transport: WSTransport, listener: "Listener", opened_at: float) -> str:
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
                if not self.live and self.answers:
                    self._delivers_nothing()
                return f"no data for {quiet_s:.0f} s"
            if silent := self._overdue(now):
                self.subscribe(silent)

    def _overdue(self, now: float) -> list[str]:
        """Streams past their first-data deadline, which are warned of here and to be subscribed again."""
        overdue = [
            stream
            for stream, state in self.streams.items()
            if state.heard_at is None
            and state.subscribed_at is not None
            and now - state.subscribed_at > self._deadlines.first_data_s * 2**state.resubscribed
        ]
        if not overdue:
            return []
        for stream in overdue:
            state = self.streams[stream]
            state.resubscribed = min(state.resubscribed + 1, 6)
            state.subscribed_at = None  # until the request is sent
        self._owner.resubscriptions += len(overdue)
        if not self.live:
            self._delivers_nothing()  # which says more than a list of all streams
        else:
            log.warning(
                "streams_silent",
                connection=self._owner.name,
                streams=overdue[:10],
                count=len(overdue),
                waited_s=self._deadlines.first_data_s,
                hint="acknowledged subscriptions prove nothing: check the route if this persists",
                action="resubscribe",
            )
        return overdue

    def _delivers_nothing(self) -> None:
        said = "acknowledges subscriptions" if self.answers else "answers nothing"
        self._owner.delivers_nothing = f"is open, {said} and delivers no data"
