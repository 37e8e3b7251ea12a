"""Connections that are replaced in time, carry what is wanted, and say once what is wrong with a route."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from structlog.testing import capture_logs

from perpline.common.clock import Clock, ManualClock
from perpline.websocket.connection import AGE_JITTER, Deadlines
from perpline.websocket.market_streams import MarketStreams, Wire
from running import eventually
from stream_server import Heard, Server, Socket, goodbye, listen, request, serving

DAY_S = 82_800.0


def streams(
    server: Server, heard: Heard, clock: Clock, symbols: Sequence[str] = ("a", "b"), **options: Any
) -> MarketStreams:
    options.setdefault("max_age_s", DAY_S)
    return MarketStreams(
        wire=Wire(
            route_of=lambda kind: "market",
            stream_name=lambda symbol, kind: f"{symbol}@{kind}",
            url_of=lambda route: server.url,
            subscribe_request=request,
            unsubscribe_request=goodbye,
        ),
        stream_types=("markPrice@1s",),
        symbols=symbols,
        on_messages=heard.batch,
        clock=clock,
        rng=random.Random(1),
        deadlines=Deadlines(first_data_s=10.0, silence_s=1e9),
        **options,
    )


@asynccontextmanager
async def running(market: MarketStreams) -> AsyncIterator[None]:
    task = asyncio.create_task(market.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def speaking(server: Server, number: int, *names: str) -> Socket:
    """The socket of this number, once it was asked for these streams and has said something on each."""
    await eventually(lambda: len(server.sockets) > number and server.sockets[number].asked, what="a socket")
    for name in names:
        server.sockets[number].say(name)
    return server.sockets[number]


def gone(socket: Socket) -> bool:
    return socket.response.closed


async def test_a_connection_is_replaced_when_every_stream_has_come_on_the_new_one() -> None:
    clock, heard = ManualClock(), Heard()
    async with serving(listen) as server:
        market = streams(server, heard, clock)
        async with running(market):
            old = await speaking(server, 0, "a@markPrice@1s", "b@markPrice@1s")
            await eventually(lambda: not market.waiting_for())
            clock.advance(DAY_S * (1 - AGE_JITTER) - 1)
            await asyncio.sleep(0.4)  # a look that must find nothing
            assert len(server.sockets) == 1
            clock.advance(DAY_S * AGE_JITTER + 2)
            new = await speaking(server, 1, "a@markPrice@1s")
            await asyncio.sleep(0.4)
            [link] = market.connections
            assert (link.is_rolling_over, gone(old)) == (True, False)
            new.say("b@markPrice@1s")
            await eventually(lambda: gone(old))

            assert (link.rollovers, link.losses, link.failures, link.live) == (1, 0, 0, True)
            assert not gone(new)
            assert link.silent_streams() == []
            assert link.age_s is not None
            assert link.age_s < 2


async def test_a_stream_that_the_old_connection_does_not_hear_either_is_not_waited_for() -> None:
    clock, heard = ManualClock(), Heard()
    async with serving(listen) as server:
        market = streams(server, heard, clock)
        async with running(market):
            old = await speaking(server, 0, "a@markPrice@1s", "b@markPrice@1s")
            await eventually(lambda: not market.waiting_for())
            clock.advance(DAY_S)
            await speaking(server, 1, "a@markPrice@1s")
            await asyncio.sleep(0.4)
            assert not gone(old)
            clock.advance(5.1)
            await eventually(lambda: gone(old))


async def test_a_new_connection_that_does_not_prove_itself_is_given_up_and_the_old_one_stays() -> None:
    clock, heard = ManualClock(), Heard()
    async with serving(listen) as server:
        market = streams(server, heard, clock)
        with capture_logs() as logs:
            async with running(market):
                old = await speaking(server, 0, "a@markPrice@1s", "b@markPrice@1s")
                await eventually(lambda: not market.waiting_for())
                clock.advance(DAY_S)
                new = await speaking(server, 1, "a@markPrice@1s")
                for _ in range(5):
                    clock.advance(13)
                    old.say("b@markPrice@1s")
                    await asyncio.sleep(0.3)
                await eventually(lambda: gone(new))
                [link] = market.connections
                assert (link.rollovers, link.rollovers_given_up, gone(old)) == (0, 1, False)
                clock.advance(59)
                await asyncio.sleep(0.3)
                assert len(server.sockets) == 2
                clock.advance(2)
                await speaking(server, 2, "a@markPrice@1s", "b@markPrice@1s")
                await eventually(lambda: gone(old))

    [line] = [line for line in logs if line["event"] == "rollover_given_up"]
    assert line["reason"] == "1 streams did not come on it: b@markPrice@1s"


async def test_where_the_old_connection_ends_first_the_new_one_goes_on_without_a_pause() -> None:
    clock, heard = ManualClock(), Heard()
    async with serving(listen) as server:
        market = streams(server, heard, clock)
        async with running(market):
            old = await speaking(server, 0, "a@markPrice@1s", "b@markPrice@1s")
            await eventually(lambda: not market.waiting_for())
            clock.advance(DAY_S)
            await speaking(server, 1, "a@markPrice@1s")
            await old.response.close()
            [link] = market.connections
            await eventually(lambda: not link.is_rolling_over)

            assert (link.losses, link.connects, link.live) == (1, 2, True)
            assert len(server.sockets) == 2


async def test_what_was_heard_and_has_no_connection_any_more_counts_as_silent() -> None:
    clock, heard = ManualClock(), Heard()
    async with serving(listen) as server:
        market = streams(server, heard, clock)
        assert market.silent() == [], "nothing was heard yet"
        async with running(market):
            socket = await speaking(server, 0, "a@markPrice@1s")
            await eventually(lambda: market.heard("a", "markPrice@1s") is not None)
            assert market.silent() == []
            await socket.response.close()
            await eventually(lambda: not market.connections[0].live)

            assert market.silent() == [("a", "markPrice@1s")]


async def test_two_lanes_carry_the_same_and_are_renewed_half_an_age_apart_also_after_both_were_lost() -> None:
    clock, heard = ManualClock(), Heard()
    async with serving(listen) as server:
        market = streams(server, heard, clock, lanes=2)
        async with running(market):
            for turn in range(2):
                for number in (2 * turn, 2 * turn + 1):
                    socket = await speaking(server, number, "a@markPrice@1s", "b@markPrice@1s")
                    assert socket.asked == [["a@markPrice@1s", "b@markPrice@1s"]]
                one, two = market.connections
                await eventually(lambda one=one, two=two: one.live and two.live)
                assert one.due_at is not None
                assert two.due_at is not None
                assert abs(one.due_at - two.due_at) > DAY_S / 4
                if turn:
                    break
                for socket in server.sockets:
                    socket.transport.abort()
                await eventually(lambda one=one, two=two: not one.live and not two.live)
                clock.advance(5)
    assert [link.name for link in market.connections] == ["market-0", "market-0.2"]
    assert market.waiting_for() == []


async def test_a_change_of_the_list_touches_only_what_changes() -> None:
    clock, heard = ManualClock(), Heard()
    async with serving(listen) as server:
        market = streams(server, heard, clock, ("a", "b", "c"), max_streams=3)
        async with running(market):
            first = await speaking(server, 0, "a@markPrice@1s", "b@markPrice@1s", "c@markPrice@1s")
            await eventually(lambda: not market.waiting_for())
            market.follow(["a", "c", "d", "e"])
            assert market.waiting_for() == ["d@markPrice@1s", "e@markPrice@1s"]
            assert market.heard("b", "markPrice@1s") is None
            clock.advance(0.3)
            await eventually(lambda: len(first.asked) >= 2)
            for _ in range(4):
                clock.advance(0.3)
                await asyncio.sleep(0.05)
            await eventually(lambda: len(first.asked) == 3)
            second = await speaking(server, 1, "e@markPrice@1s")
            first.say("d@markPrice@1s")
            await eventually(lambda: not market.waiting_for())

            assert first.asked[1:] == [["b@markPrice@1s"], ["d@markPrice@1s"]]  # the first of them a goodbye
            assert second.asked == [["e@markPrice@1s"]]
            market.follow(["a", "c", "d"])
            await eventually(lambda: gone(second))
            assert not gone(first)
            assert [link.name for link in market.connections] == ["market-0"]
            assert [link.losses for link in market.connections] == [0]


async def test_a_route_that_acknowledges_and_delivers_nothing_is_told_once_with_what_to_check() -> None:
    clock, heard = ManualClock(), Heard()
    async with serving(listen) as server:
        market = streams(server, heard, clock, max_streams=1)  # two connections of one route
        with capture_logs() as logs:
            async with running(market):
                await eventually(lambda: len(server.sockets) == 2 and all(each.asked for each in server.sockets))
                await asyncio.sleep(0.3)
                assert not any("delivers" in line for line in market.trouble())
                clock.advance(10.1)
                await eventually(lambda: any(line["event"] == "route_delivers_nothing" for line in logs))
                clock.advance(25)
                await asyncio.sleep(0.6)
                told = market.trouble()
                for number, name in enumerate(("a@markPrice@1s", "b@markPrice@1s")):
                    server.sockets[number].say(name)
                await eventually(lambda: not market.trouble())
                await eventually(lambda: any(line["event"] == "route_delivers" for line in logs))

    [line] = [line for line in logs if line["event"] == "route_delivers_nothing"]
    assert (line["log_level"], line["url"]) == ("error", server.url)
    assert "acknowledges subscriptions and delivers no data" in line["reason"]
    for word in ("route", "binance.md 1.2", "address", "firewall", "region"):
        assert word in line["check"]
    assert len(told) == 2
    assert server.url in told[0]
    assert not [line for line in logs if line["event"] == "streams_silent"]


def test_however_the_list_changes_every_stream_is_carried_once_and_no_connection_is_too_full() -> None:
    rng = random.Random(5)
    names = [f"s{number}" for number in range(40)]
    market = MarketStreams(
        wire=Wire(
            route_of=lambda kind: "public" if kind == "book" else "market",
            stream_name=lambda symbol, kind: f"{symbol}@{kind}",
            url_of=lambda route: route,
            subscribe_request=request,
            unsubscribe_request=goodbye,
        ),
        stream_types=("kline", "mark", "book"),
        symbols=names[:10],
        on_messages=Heard().batch,
        clock=ManualClock(),
        rng=rng,
        max_streams=12,
    )
    followed = set(names[:10])
    for _ in range(300):
        before = {stream: link for link in market.connections for stream in link.streams}
        followed ^= set(rng.sample(names, rng.randint(1, 4)))
        market.follow(sorted(followed))
        carried = [stream for link in market.connections for stream in link.streams]
        assert sorted(carried) == sorted(
            f"{symbol}@{kind}" for symbol in followed for kind in ("kline", "mark", "book")
        )
        assert all(0 < len(link.streams) <= 12 for link in market.connections)
        assert all(
            f"{link.url}" == ("public" if "@book" in s else "market")
            for link in market.connections
            for s in link.streams
        )
        after = {stream: link for link in market.connections for stream in link.streams}
        assert all(after[stream] is link for stream, link in before.items() if stream in after)
