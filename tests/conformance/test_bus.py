"""What every bus promises (perpline.bus.bus.Bus), and how signals look on it (contracts.md, "Redis")."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from perpline.bus.bus import Bus
from perpline.bus.memory import MemoryBus
from perpline.bus.redis import RedisBus
from perpline.domain.signal import Message

MINUTE = 60_000
T0 = 1_795_219_260_000
NOW = T0 + 1000

fresh = (f"test{os.getpid()}x{n}" for n in count())


class Memory:
    """A memory bus and what can be seen of it."""

    def __init__(self) -> None:
        self.bus: Any = MemoryBus()

    async def open(self) -> Bus:
        await self.bus.open()
        self.heard = self.bus.subscribe()
        return self.bus

    async def close(self) -> None:
        await self.bus.close()

    async def stream(self, slot: str, symbol: str) -> list[tuple[str, dict[str, str]]]:
        return [(entry.id, entry.fields) for entry in self.bus.stream(slot, symbol)]

    async def last(self, slot: str, symbol: str) -> dict[str, str]:
        return self.bus.last(slot, symbol)

    async def position(self, symbol: str) -> dict[str, str]:
        return self.bus.position(symbol)

    async def announced(self) -> list[tuple[str, str]]:
        """What was announced since the last call."""
        await self.bus.publish([message("", 0, kind="mark", slot="")], 0)
        found = []
        async for one in self.heard:
            if one.channel == "sig.mark":
                return found
            found.append((one.channel, one.payload))
        raise AssertionError("the subscription ended")


class RedisServer:
    """A Redis bus, and another client that looks."""

    def __init__(self, url: str) -> None:
        self.bus: Any = RedisBus(url)
        self.client = Redis.from_url(url, decode_responses=True)

    async def open(self) -> Bus:
        await self.bus.open()
        self.heard = self.client.pubsub()
        await self.heard.psubscribe("sig.*")
        return self.bus

    async def close(self) -> None:
        await self.bus.close()
        await self.heard.aclose()
        await self.client.aclose()

    async def stream(self, slot: str, symbol: str) -> list[tuple[str, dict[str, str]]]:
        return await self.client.xrange(f"sig:{slot}:{symbol}")

    async def last(self, slot: str, symbol: str) -> dict[str, str]:
        return await self.client.hgetall(f"last:{slot}:{symbol}")

    async def position(self, symbol: str) -> dict[str, str]:
        return await self.client.hgetall(f"pos:{symbol}")

    async def announced(self) -> list[tuple[str, str]]:
        await self.client.publish("sig.mark", "")
        found = []
        async for one in self.heard.listen():
            if one["channel"] == "sig.mark":
                return found
            if one["type"] == "pmessage":
                found.append((one["channel"], one["data"]))
        raise AssertionError("the subscription ended")


@pytest.fixture(params=["memory", "redis"])
async def seen(request: pytest.FixtureRequest) -> AsyncIterator[Memory | RedisServer]:
    bus = Memory() if request.param == "memory" else RedisServer(request.getfixturevalue("redis_url"))
    await bus.open()
    yield bus
    await bus.close()


@pytest.fixture
def slot() -> str:
    return next(fresh)


@pytest.fixture
def symbol() -> str:
    return next(fresh).upper()


def message(symbol: str, close_time: int, slot: str, kind: str = "signal", n: int = 0) -> Message:
    payload = json.dumps({"v": 1, "type": kind, "sym": symbol, "T": close_time, "n": n})
    return Message(
        id=n,
        kind=kind,
        slot=slot,
        symbol=symbol,
        close_time=close_time,
        payload=payload,
        valid_until=close_time + 30_000,
    )


async def test_a_signal_is_an_entry_of_its_stream_the_last_of_its_symbol_and_announced(
    seen: Any, slot: str, symbol: str
) -> None:
    one = message(symbol, T0, slot)

    await seen.bus.publish([one], NOW)

    fields = {"v": "1", "type": "signal", "sym": symbol, "T": str(T0), "n": "0"}
    assert await seen.stream(slot, symbol) == [(f"{T0}-0", fields)]
    assert await seen.last(slot, symbol) == fields
    assert await seen.announced() == [(f"sig.{symbol}", one.payload)]


async def test_fields_are_the_members_of_the_payload_texts_plain_and_all_else_as_json(
    seen: Any, slot: str, symbol: str
) -> None:
    payload = '{"tp":"68120.0","é":"\\u00e9\\n","p":0.1,"side":-1,"none":null,"yes":true,"flags":{"late":0},"empty":""}'
    one = Message(id=1, kind="signal", slot=slot, symbol=symbol, close_time=T0, payload=payload, valid_until=T0)

    await seen.bus.publish([one], NOW)

    assert await seen.last(slot, symbol) == {
        "tp": "68120.0",
        "é": "é\n",
        "p": "0.1",
        "side": "-1",
        "yes": "true",
        "flags": '{"late":0}',
        "empty": "",
        "T": str(T0),
    }


async def test_a_signal_sent_again_has_the_effect_of_one(seen: Any, slot: str, symbol: str) -> None:
    for _ in range(3):
        await seen.bus.publish([message(symbol, T0, slot)], NOW)

    assert len(await seen.stream(slot, symbol)) == 1
    assert len(await seen.announced()) == 1


async def test_an_older_signal_never_follows_a_newer_one(seen: Any, slot: str, symbol: str) -> None:
    await seen.bus.publish([message(symbol, T0, slot, n=1)], NOW)
    await seen.bus.publish([message(symbol, T0 - MINUTE, slot, n=2)], NOW)

    assert [fields["n"] for _, fields in await seen.stream(slot, symbol)] == ["1"]
    assert (await seen.last(slot, symbol))["n"] == "1"
    assert len(await seen.announced()) == 1


async def test_the_last_signal_has_no_field_of_the_one_before(seen: Any, slot: str, symbol: str) -> None:
    first = Message(id=1, kind="signal", slot=slot, symbol=symbol, close_time=T0, payload='{"tp":"1"}', valid_until=T0)
    await seen.bus.publish([first, message(symbol, T0 + MINUTE, slot)], NOW)

    assert "tp" not in await seen.last(slot, symbol)


async def test_slots_and_symbols_have_streams_of_their_own(seen: Any, slot: str, symbol: str) -> None:
    other = next(fresh)
    await seen.bus.publish(
        [message(symbol, T0, slot), message(symbol, T0, other), message(f"{symbol}2", T0, slot)], NOW
    )

    for where in ((slot, symbol), (other, symbol), (slot, f"{symbol}2")):
        assert len(await seen.stream(*where)) == 1


async def test_what_has_expired_is_kept_in_the_stream_and_not_announced(seen: Any, slot: str, symbol: str) -> None:
    late = [message(symbol, T0 + n * MINUTE, slot) for n in range(3)]

    await seen.bus.publish(late, late[1].valid_until)

    assert [entry for entry, _ in await seen.stream(slot, symbol)] == [f"{one.close_time}-0" for one in late]
    assert await seen.announced() == [(f"sig.{symbol}", one.payload) for one in late[1:]]


async def test_the_close_of_a_minute_is_announced_and_in_no_stream(seen: Any, slot: str) -> None:
    close, expired = message("", T0, slot, kind="close"), message("", T0 - MINUTE, slot, kind="close")

    await seen.bus.publish([expired, close], NOW)

    assert await seen.announced() == [("sig.close", close.payload)]
    assert await seen.stream(slot, "") == []


async def test_messages_are_announced_in_the_order_given(seen: Any, slot: str) -> None:
    many = [message(f"{slot.upper()}S{n}", T0, slot, n=n) for n in range(120)] + [message("", T0, slot, kind="close")]

    await seen.bus.publish(many, NOW)

    assert [payload for _, payload in await seen.announced()] == [one.payload for one in many]


async def test_nothing_to_publish_is_nothing(seen: Any) -> None:
    await seen.bus.publish([], NOW)

    assert await seen.announced() == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
async def test_any_resending_after_an_outage_leaves_each_signal_once_in_order(seen: Any, data: st.DataObject) -> None:
    slot = next(fresh)
    minutes = range(data.draw(st.integers(1, 8)))
    sent = [message(f"{slot}{symbol}", T0 + n * MINUTE, slot, n=n) for n in minutes for symbol in "AB"]
    # Each failed publication got as far as it got; the next begins again at any message that is not yet marked.
    done = 0
    while done < len(sent):
        start = data.draw(st.integers(0, done))
        done = max(done, data.draw(st.integers(start, len(sent))), min(done + 1, len(sent)))
        await seen.bus.publish(sent[start:done], NOW)

    for symbol in "AB":
        entries = await seen.stream(slot, f"{slot}{symbol}")
        assert [entry for entry, _ in entries] == [f"{T0 + n * MINUTE}-0" for n in minutes]
    await seen.announced()


async def test_a_bus_can_be_closed_twice(seen: Any) -> None:
    await seen.bus.close()
    await seen.bus.close()


async def test_a_payload_that_is_no_object_is_a_bug(seen: Any, slot: str, symbol: str) -> None:
    wrong = Message(id=1, kind="signal", slot=slot, symbol=symbol, close_time=T0, payload="[1]", valid_until=T0)

    with pytest.raises(ValueError, match="Expected `object`"):
        await seen.bus.publish([wrong], NOW)
    assert await seen.stream(slot, symbol) == []


async def test_publishing_from_two_tasks_at_once_keeps_every_stream_whole(seen: Any, slot: str) -> None:
    many = [message(f"{slot.upper()}S{n % 7}", T0 + n // 7 * MINUTE, slot, n=n) for n in range(140)]

    await asyncio.gather(seen.bus.publish(many, NOW), seen.bus.publish(many, NOW))

    for n in range(7):
        assert len(await seen.stream(slot, f"{slot.upper()}S{n}")) == 20
    assert sorted(payload for _, payload in await seen.announced()) == sorted(one.payload for one in many)


def position_news(symbol: str, at: int, event: str, qty: str, account: str = "paper") -> Message:
    news = {"v": 1, "type": "position", "account": account, "sym": symbol, "event": event, "T": at, "qty": qty}
    return Message(
        id=at,
        kind="position",
        slot="champion",
        symbol=symbol,
        close_time=at,
        payload=json.dumps(news),
        valid_until=at + 60_000,
    )


async def test_the_newest_news_of_a_position_are_kept_and_stay_when_it_is_closed(seen: Any, symbol: str) -> None:
    opened, closed = position_news(symbol, T0, "opened", "2"), position_news(symbol, T0 + 5, "tp", "0")

    await seen.bus.publish([opened], NOW)
    assert (await seen.position(symbol))["event"] == "opened"
    await seen.bus.publish([closed, opened], NOW)  # the older one again, as after a crash

    assert await seen.position(symbol) == {
        "v": "1",
        "type": "position",
        "account": "paper",
        "sym": symbol,
        "event": "tp",
        "T": str(T0 + 5),
        "qty": "0",
    }


async def test_of_two_news_of_one_instant_the_later_is_kept(seen: Any, symbol: str) -> None:
    await seen.bus.publish([position_news(symbol, T0, event, "2") for event in ("opened", "protected")], NOW)

    assert (await seen.position(symbol))["event"] == "protected"


async def test_paper_never_takes_the_place_of_an_open_live_position(seen: Any, symbol: str) -> None:
    await seen.bus.publish([position_news(symbol, T0, "opened", "2", "live")], NOW)
    await seen.bus.publish([position_news(symbol, T0 + 1, "opened", "7")], NOW)
    assert (await seen.position(symbol))["account"] == "live"

    await seen.bus.publish([position_news(symbol, T0 + 2, "sl", "0", "live")], NOW)
    await seen.bus.publish([position_news(symbol, T0 + 3, "opened", "7")], NOW)

    assert ((await seen.position(symbol))["account"], (await seen.position(symbol))["qty"]) == ("paper", "7")


async def test_news_of_a_position_that_are_too_late_to_be_announced_are_kept_all_the_same(
    seen: Any, symbol: str
) -> None:
    late = position_news(symbol, T0, "opened", "2")

    await seen.bus.publish([late], late.valid_until + 1)

    assert (await seen.position(symbol))["event"] == "opened"
    assert await seen.announced() == []


async def test_positions_and_signals_in_one_call_each_find_their_keys(seen: Any, slot: str, symbol: str) -> None:
    one, news = message(symbol, T0, slot), position_news(symbol, T0, "opened", "2")

    await seen.bus.publish([news, one, position_news(symbol, T0 + 1, "protected", "2")], NOW)

    assert (await seen.last(slot, symbol))["T"] == str(T0)
    assert (await seen.position(symbol))["event"] == "protected"
