"""A connection proves itself by data, and comes back when it is lost."""

import asyncio
import random
import struct
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import pytest
from structlog.testing import capture_logs

from perpline.common.backoff import backoff_s
from perpline.common.clock import Clock, ManualClock, SystemClock
from perpline.common.websocket import CLOSE_TIMEOUT_S, MAX_MESSAGE_BYTES
from perpline.websocket.connection import Connection, Deadlines
from perpline.websocket.subscriptions import CONTROL_PAUSE_S
from running import eventually
from stream_server import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    TEXT,
    Heard,
    Socket,
    goodbye,
    listen,
    raw,
    request,
    serving,
)


class HurriedClock(ManualClock):
    """Whoever sleeps wakes at once, and the clock shows the later time, up to `end_s`, where it stands still.

    Keeps what was slept but control pauses.
    """

    def __init__(self, end_s: float = 1e9) -> None:
        super().__init__()
        self.slept: list[float] = []
        self.ended = asyncio.Event()
        self._end_s = end_s

    async def sleep_wall(self, wall_s: float) -> None:
        if self.wall_s() > self._end_s:
            self.ended.set()
            await asyncio.get_running_loop().create_future()
        if wall_s != CONTROL_PAUSE_S:
            self.slept.append(wall_s)
        self.advance(wall_s)
        await asyncio.sleep(0)


def connection(url: str, heard: Heard, clock: Clock, streams: Sequence[str] = ("a", "b"), **deadlines: float):
    return Connection(
        name="market-0",
        url=url,
        streams=streams,
        on_messages=heard.batch,
        subscribe_request=request,
        unsubscribe_request=goodbye,
        clock=clock,
        rng=random.Random(1),
        deadlines=Deadlines(**deadlines),
    )


@asynccontextmanager
async def running(connection: Connection) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(connection.run())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


# ---- opening and subscribing


async def test_every_stream_is_asked_for_and_what_comes_is_handed_on_with_its_time() -> None:
    heard, clock = Heard(), SystemClock()
    async with serving(listen) as server:
        link = connection(server.url, heard, clock)
        async with running(link):
            await eventually(lambda: server.sockets and server.sockets[0].asked)
            assert server.sockets[0].asked == [["a", "b"]]
            before = clock.now_us()
            server.sockets[0].say("a", "hello")
            await eventually(lambda: heard.data)

            [_, (data, received_us)] = heard.messages
            assert data == b"a hello"
            assert before <= received_us <= clock.now_us()
            assert (link.live, link.connects, link.failures) == (True, 1, 0)
            assert link.silent_streams() == ["b"]


async def test_an_acknowledgement_is_not_success() -> None:
    heard = Heard()
    async with serving(listen) as server:
        link = connection(server.url, heard, SystemClock())
        async with running(link):
            await eventually(lambda: heard.messages)

            assert (link.live, link.silent_streams()) == (False, ["a", "b"])
            server.sockets[0].say("a")
            await eventually(lambda: link.live)


async def test_six_hundred_streams_are_asked_for_in_few_messages_and_never_ten_a_second() -> None:
    streams = [f"s{number}" for number in range(600)]
    async with serving(listen) as server:
        async with running(connection(server.url, Heard(), SystemClock(), streams)):
            await eventually(lambda: server.sockets and len(server.sockets[0].asked) == 12)

    [socket] = server.sockets
    assert [each for batch in socket.asked for each in batch] == streams
    for at in socket.asked_at:
        assert sum(at <= other < at + 1.0 for other in socket.asked_at) <= 10


# ---- coming back


async def test_a_server_that_accepts_and_hangs_up_is_dialled_a_handful_of_times_in_five_minutes() -> None:
    async def hang_up(socket: Socket) -> None:
        socket.transport.close()

    clock = HurriedClock(end_s=300)
    async with serving(hang_up) as server:
        link = connection(server.url, Heard(), clock)
        async with running(link):
            await clock.ended.wait()

    rng = random.Random(1)
    assert clock.slept == [backoff_s(n + 1, rng) for n in range(len(clock.slept))]
    assert len(server.sockets) <= 13
    assert link.connects <= 13
    assert link.losses == 0


async def test_a_server_that_acknowledges_and_hangs_up_has_not_proved_anything_either() -> None:
    async def acknowledge_and_hang_up(socket: Socket) -> None:
        await socket.response.receive()
        socket.send(raw(TEXT, b"ack"))
        await socket.response.close()

    clock = HurriedClock(end_s=120)
    async with serving(acknowledge_and_hang_up) as server:
        link = connection(server.url, Heard(), clock)
        async with running(link):
            await clock.ended.wait()

    assert link.failures >= 5
    assert len(server.sockets) <= 8


async def test_a_server_that_is_not_there_is_dialled_as_seldom() -> None:
    clock = HurriedClock(end_s=300)
    link = connection("ws://127.0.0.1:9/market/stream", Heard(), clock)
    async with running(link):
        await clock.ended.wait()

    assert 5 <= link.failures <= 13
    assert link.connects == 0
    assert "could not connect" in link.last_error


async def test_an_answer_that_is_no_handshake_is_a_failure_like_any_other() -> None:
    clock = HurriedClock()
    async with serving(listen) as server:
        link = connection(server.url.replace("market", "nowhere"), Heard(), clock)
        async with running(link):
            await eventually(lambda: link.failures >= 2)

    assert "could not connect" in link.last_error


async def test_data_and_nothing_else_begins_the_count_of_failures_anew() -> None:
    async def talk_on_the_fourth(socket: Socket) -> None:
        await socket.response.receive()
        if socket.number == 4:
            socket.say("a")
        await socket.response.close()

    clock = HurriedClock()
    async with serving(talk_on_the_fourth) as server:
        link = connection(server.url, Heard(), clock)
        async with running(link):
            await eventually(lambda: len(clock.slept) >= 5)

    rng = random.Random(1)
    assert clock.slept[:5] == [backoff_s(n, rng) for n in (1, 2, 3, 1, 2)]
    assert link.losses == 1


async def test_a_clean_close_is_followed_by_a_new_connection_and_its_reason_is_kept() -> None:
    async def leave_once(socket: Socket) -> None:
        if socket.number == 1:
            await socket.response.receive()
            socket.say("a")
            socket.send(raw(CLOSE, struct.pack("!H", 4001) + b"24 hours are over"))
        await socket.listen()

    clock = HurriedClock()
    async with serving(leave_once) as server:
        link = connection(server.url, Heard(), clock)
        async with running(link):
            await eventually(lambda: len(server.sockets) == 2 and server.sockets[1].asked)

            assert link.last_error == "closed by the exchange: 4001 '24 hours are over'"
            assert server.sockets[1].asked == [["a", "b"]]
            assert (link.losses, link.connects) == (1, 2)


# ---- silence


async def test_a_stream_that_stays_silent_is_named_and_asked_for_again_at_growing_intervals() -> None:
    clock = ManualClock()
    async with serving(listen) as server:
        link = connection(server.url, Heard(), clock, first_data_s=10.0, silence_s=1000.0)
        with capture_logs() as logs:
            async with running(link):
                await eventually(lambda: server.sockets and server.sockets[0].asked)
                [socket] = server.sockets
                socket.say("a")
                await eventually(lambda: link.live)
                clock.advance(9.9)
                await asyncio.sleep(0.3)  # a look that must find nothing
                assert len(socket.asked) == 1
                clock.advance(0.2)
                await eventually(lambda: len(socket.asked) == 2)
                clock.advance(19.9)
                await asyncio.sleep(0.3)
                assert len(socket.asked) == 2
                clock.advance(0.2)
                await eventually(lambda: len(socket.asked) == 3)

    assert socket.asked[1:] == [["b"], ["b"]]
    silent = [line for line in logs if line["event"] == "streams_silent"]
    assert [line["streams"] for line in silent] == [["b"], ["b"]]
    assert silent[0]["log_level"] == "warning"


async def test_a_stream_that_has_spoken_is_never_asked_for_again() -> None:
    clock = ManualClock()
    async with serving(listen) as server:
        link = connection(server.url, Heard(), clock, first_data_s=1.0, silence_s=1000.0)
        async with running(link):
            await eventually(lambda: server.sockets and server.sockets[0].asked)
            [socket] = server.sockets
            socket.say("a")
            socket.say("b")
            await eventually(lambda: not link.silent_streams())
            clock.advance(500.0)
            await asyncio.sleep(0.3)

            assert len(socket.asked) == 1


async def test_a_connection_without_data_for_too_long_is_lost() -> None:
    clock = ManualClock()
    async with serving(listen) as server:
        link = connection(server.url, Heard(), clock, first_data_s=100.0, silence_s=15.0)
        async with running(link):
            await eventually(lambda: server.sockets and server.sockets[0].asked)
            server.sockets[0].say("a")
            await eventually(lambda: link.live)
            clock.advance(15.1)
            await eventually(lambda: link.losses == 1)
            assert link.last_error == "no data for 15 s"
            clock.advance(2.0)
            await eventually(lambda: len(server.sockets) == 2 and server.sockets[1].asked)
            assert link.silent_streams() == ["a", "b"]


async def test_acknowledgements_do_not_break_the_silence() -> None:
    clock = ManualClock()
    async with serving(listen) as server:
        link = connection(server.url, Heard(), clock, first_data_s=100.0, silence_s=15.0)
        async with running(link):
            await eventually(lambda: server.sockets and server.sockets[0].asked)
            clock.advance(14.0)
            server.sockets[0].send(raw(TEXT, b"ack"))
            await asyncio.sleep(0.1)
            clock.advance(2.0)
            await eventually(lambda: link.failures == 1)

    assert link.last_error == "no data for 16 s"


# ---- frames


async def test_a_fragmented_message_is_put_together_also_around_a_ping() -> None:
    heard = Heard()
    async with serving(listen) as server:
        async with running(connection(server.url, heard, SystemClock())):
            await eventually(lambda: server.sockets and server.sockets[0].asked)
            server.sockets[0].send(
                raw(TEXT, b"a one ", last=False),
                raw(CONTINUATION, b"two ", last=False),
                raw(PING, b"now"),
                raw(CONTINUATION, b"three"),
                raw(TEXT, b"a whole"),
            )
            await eventually(lambda: len(heard.data) == 2)

            assert heard.data == [b"a one two three", b"a whole"]
            await eventually(lambda: server.sockets[0].pongs == [b"now"])


async def test_a_message_is_handed_on_at_once_also_when_a_ping_came_with_it() -> None:
    heard = Heard()
    async with serving(listen) as server:
        async with running(connection(server.url, heard, SystemClock())):
            await eventually(lambda: server.sockets and server.sockets[0].asked)
            server.sockets[0].send(raw(TEXT, b"a " + b"x" * 300), raw(PING, b"now"))
            await eventually(lambda: heard.data, 3.0)


async def test_binary_frames_carry_nothing() -> None:
    heard = Heard()
    async with serving(listen) as server:
        async with running(connection(server.url, heard, SystemClock())):
            await eventually(lambda: server.sockets and server.sockets[0].asked)
            server.sockets[0].send(raw(BINARY, b"a \xff"), raw(TEXT, b"a text"))
            await eventually(lambda: heard.data)

    assert heard.data == [b"a text"]


@pytest.mark.parametrize("pieces", [1, 5])
async def test_a_message_larger_than_any_of_the_exchange_ends_the_connection(pieces: int) -> None:
    async def flood(socket: Socket) -> None:
        if socket.number > 1:
            await socket.listen()
            return
        size = MAX_MESSAGE_BYTES // pieces + 1
        for piece in range(pieces):
            socket.send(raw(CONTINUATION if piece else TEXT, b"x" * size, last=piece == pieces - 1))
        await socket.listen()

    heard = Heard()
    async with serving(flood) as server:
        link = connection(server.url, heard, HurriedClock())
        async with running(link):
            await eventually(lambda: len(server.sockets) == 2)

            assert heard.data == []
            assert str(MAX_MESSAGE_BYTES) in link.last_error


async def test_a_frame_against_the_protocol_ends_the_connection_and_nothing_else() -> None:
    async def break_protocol(socket: Socket) -> None:
        if socket.number == 1:
            socket.send(b"\x83\x00")  # an opcode that does not exist
        await socket.listen()

    async with serving(break_protocol) as server:
        link = connection(server.url, Heard(), HurriedClock())
        async with running(link):
            await eventually(lambda: len(server.sockets) == 2)

            assert "invalid opcode" in link.last_error


# ---- the end


async def test_a_cancelled_connection_says_goodbye() -> None:
    async with serving(listen) as server:
        async with running(connection(server.url, Heard(), SystemClock())):
            await eventually(lambda: server.sockets and server.sockets[0].asked)
        await eventually(lambda: server.sockets[0].close_code is not None)

        assert server.sockets[0].close_code == 1000


async def test_a_cancelled_connection_ends_in_time_also_when_the_other_side_does_not_listen() -> None:
    async def deaf(socket: Socket) -> None:
        await asyncio.sleep(60)

    async with serving(deaf) as server:
        task = asyncio.create_task(connection(server.url, Heard(), SystemClock()).run())
        await eventually(lambda: server.sockets)
        began = time.monotonic()
        task.cancel()
        await asyncio.wait((task,))

        assert time.monotonic() - began < CLOSE_TIMEOUT_S + 0.5


async def test_a_connection_can_be_cancelled_while_it_waits_to_dial() -> None:
    clock = ManualClock()
    link = connection("ws://127.0.0.1:9/market/stream", Heard(), clock)
    task = asyncio.create_task(link.run())
    await eventually(lambda: link.failures == 1)
    task.cancel()
    await asyncio.wait((task,))

    assert task.cancelled()
