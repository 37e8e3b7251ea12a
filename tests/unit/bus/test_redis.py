"""What is Redis' own, against a server that answers as told; a real one is in tests/conformance/test_bus.py."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from perpline.bus.redis import MAX_ENTRIES, RedisBus
from perpline.common.errors import NeedsPerson, Unavailable
from perpline.domain.signal import Message


def message(n: int) -> Message:
    return Message(
        id=n, kind="signal", slot="champion", symbol="AUSDT", close_time=n, payload='{"v":1}', valid_until=10**15
    )


class Server:
    """A server that speaks the protocol and answers every command from `answers` (by name, default +OK)."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {"HELLO": b"-ERR unknown command 'HELLO'\r\n", "PING": b"+PONG\r\n"}
        self.commands: list[list[str]] = []
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                command = []
                for _ in range(int(line[1:])):
                    size = int((await reader.readline())[1:])
                    command.append((await reader.readexactly(size + 2))[:-2].decode(errors="replace"))
                self.commands.append(command)
                answer = self.answers.get(command[0].upper(), b"+OK\r\n")
                if not answer:
                    break
                writer.write(answer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has gone, which is its right
        finally:
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def connected(server: Server) -> AsyncIterator[RedisBus]:
    bus = RedisBus(f"redis://worker:s3cret@127.0.0.1:{server.port}/0")
    await bus.open()
    yield bus
    await bus.close()


@pytest.mark.parametrize("url", ["", "localhost", "http://localhost:6379", "redis://h:no-number", "memory://"])
async def test_an_address_that_cannot_be_meant_needs_a_person(url: str) -> None:
    with pytest.raises(NeedsPerson, match="redis://host:6379/0"):
        await RedisBus(url).open()


async def test_a_server_that_is_not_there_is_unavailable_and_found_later(server: Server) -> None:
    await server.stop()
    bus = RedisBus(f"redis://127.0.0.1:{server.port}")

    with pytest.raises(Unavailable, match=f"Redis at redis://127.0.0.1:{server.port}: ConnectionError"):
        await bus.open()
    with pytest.raises(Unavailable):
        await bus.publish([message(1)], 0)

    await server.start()
    await bus.publish([message(1)], 0)
    await bus.close()


async def test_a_bus_that_was_never_opened_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="not connected"):
        await RedisBus("redis://127.0.0.1").publish([message(1)], 0)


REFUSALS: list[tuple[bytes, type[Exception]]] = [
    (b"-NOAUTH Authentication required.\r\n", NeedsPerson),
    (b"-NOPERM User worker has no permissions to run the 'evalsha' command\r\n", NeedsPerson),
    (b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n", NeedsPerson),
    (b"-OOM command not allowed when used memory > 'maxmemory'.\r\n", Unavailable),
    (b"-READONLY You can't write against a read only replica.\r\n", Unavailable),
    (b"-LOADING Redis is loading the dataset in memory\r\n", Unavailable),
    (b"-MISCONF Redis is configured to save RDB snapshots, but it's unable to persist to disk\r\n", Unavailable),
    (b"-ERR something new\r\n", Unavailable),
    (b"", Unavailable),
]


@pytest.mark.parametrize(("answer", "error"), REFUSALS, ids=lambda value: str(value)[:12])
async def test_a_refusal_means_what_to_do_next(
    server: Server, connected: RedisBus, answer: bytes, error: type[Exception]
) -> None:
    server.answers["EVALSHA"] = answer

    with pytest.raises(error) as raised:
        await connected.publish([message(1)], 0)
    assert "s3cret" not in str(raised.value)
    assert "\n" not in str(raised.value)


async def test_a_wrong_password_needs_a_person_and_is_not_told(server: Server) -> None:
    server.answers["AUTH"] = b"-WRONGPASS invalid username-password pair: s3cret\r\n"
    bus = RedisBus(f"redis://worker:s3cret@127.0.0.1:{server.port}/0")

    with pytest.raises(NeedsPerson) as raised:
        await bus.open()
    assert "s3cret" not in str(raised.value)
    await bus.close()


async def test_a_server_that_was_restarted_is_told_the_script_again(server: Server, connected: RedisBus) -> None:
    server.answers["EVALSHA"] = b"-NOSCRIPT No matching script. Please use EVAL.\r\n"

    await connected.publish([message(1)], 0)

    assert [command[0] for command in server.commands[-2:]] == ["EVALSHA", "EVAL"]
    assert server.commands[-2][2:] == server.commands[-1][2:]


async def test_streams_are_kept_to_a_week_of_minutes(server: Server, connected: RedisBus) -> None:
    await connected.publish([message(7)], 0)

    name, _, keys, stream, last, entries, _ = server.commands[-1]
    assert (name, keys, stream, last) == ("EVALSHA", "2", "sig:champion:AUSDT", "last:champion:AUSDT")
    assert entries == str(MAX_ENTRIES) == "10080"


async def test_many_messages_are_sent_in_order_a_few_at_a_time_and_stop_at_an_error(
    server: Server, connected: RedisBus
) -> None:
    server.answers["EVALSHA"] = b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"

    with pytest.raises(Unavailable):
        await connected.publish([message(n) for n in range(500)], 0)

    assert len([command for command in server.commands if command[0] == "EVALSHA"]) == 1
