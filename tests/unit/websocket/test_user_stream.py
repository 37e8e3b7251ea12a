"""UserStream against a small server of keys and events."""

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from perpline.common.clock import Host, SystemClock
from perpline.common.errors import PerplineError, Refused, Unavailable
from perpline.domain.order import AccountUpdate, OrderReport, StopReport, UserEvent
from perpline.exchange.binance.endpoints import user_stream_url
from perpline.exchange.binance.user_events import decode_user_event
from perpline.websocket.user_stream import UserStream

PAYLOADS = Path(__file__).parents[2] / "wire" / "binance_user"
EVENTS = "ORDER_TRADE_UPDATE/ACCOUNT_UPDATE/ACCOUNT_CONFIG_UPDATE/MARGIN_CALL/ALGO_UPDATE/TRADE_LITE/listenKeyExpired"


def payload(name: str) -> str:
    return (PAYLOADS / f"{name}.json").read_text()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 what is waited for tells nobody
            await asyncio.sleep(0.01)


class Account:
    """A server that hands out keys and connections, and what our side was told."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.kept = 0
        self.refuse_key: PerplineError | None = None
        self.refuse_keeping: PerplineError | None = None
        self.urls: list[str] = []
        self.connections: list[web.WebSocketResponse] = []
        self.told: list[str] = []
        self.events: list[UserEvent] = []
        self.may_look = asyncio.Event()
        self.may_look.set()
        self.looks = 0
        self.refuse_looks: list[PerplineError] = []
        self.stream: UserStream

    async def make_key(self) -> str:
        if self.refuse_key is not None:
            raise self.refuse_key
        self.keys.append(f"secretkey{len(self.keys)}")
        return self.keys[-1]

    async def keep_key(self) -> None:
        if self.refuse_keeping is not None:
            raise self.refuse_keeping
        self.kept += 1

    async def look(self) -> None:
        self.looks += 1
        self.told.append("look begins")
        await self.may_look.wait()
        if self.refuse_looks:
            raise self.refuse_looks.pop()
        self.told.append("look ends")

    def hear(self, event: UserEvent) -> None:
        self.events.append(event)
        self.told.append(type(event).__name__)

    async def say(self, *names: str) -> None:
        for name in names:
            await self.connections[-1].send_str(payload(name))


class Hurried(SystemClock):
    """Waits a tenth as long between two connections."""

    async def sleep_wall(self, wall_s: float) -> None:
        await super().sleep_wall(wall_s / 10)


@asynccontextmanager
async def account(
    *, speed: float = 1.0, port: int | None = None, clock: SystemClock | None = None, **settings: Any
) -> AsyncIterator[Account]:
    there = Account()

    async def handle(request: web.Request) -> web.WebSocketResponse:
        connection = web.WebSocketResponse()
        await connection.prepare(request)
        there.urls.append(str(request.rel_url))
        there.connections.append(connection)
        async for _ in connection:
            pass
        return connection

    app = web.Application()
    app.router.add_get("/private/ws", handle)
    async with TestServer(app) as server:
        base = str(server.make_url("/")).replace("http", "ws", 1) if port is None else f"ws://127.0.0.1:{port}"
        there.stream = UserStream(
            make_key=there.make_key,
            keep_key=there.keep_key,
            url_of=lambda key: user_stream_url(base, key),
            decode=decode_user_event,
            on_connected=there.look,
            on_event=there.hear,
            on_lost=lambda reason: there.told.append(f"lost: {reason}"),
            clock=clock or Hurried(speed, anchor_ms=1_790_526_538_000),
            rng=random.Random(1),
            **settings,
        )
        task = asyncio.create_task(there.stream.run())
        try:
            yield there
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            for connection in there.connections:
                await connection.close()


async def test_it_asks_for_every_event_by_name_and_delivers_them() -> None:
    async with account() as there:
        await until(lambda: there.stream.live)
        assert there.urls == [f"/private/ws?listenKey=secretkey0&events={EVENTS}"]
        await there.say("order_partially_filled", "trade_lite", "algo_new", "account_order", "tomorrows_event")
        await until(lambda: there.stream.events["WHALE_UPDATE"])
        assert [type(event) for event in there.events] == [OrderReport, StopReport, AccountUpdate]
        assert there.events[0].filled == Decimal("0.012")
        assert there.stream.facts()["events"] == {
            "OrderReport": 1,
            "TRADE_LITE": 1,
            "StopReport": 1,
            "AccountUpdate": 1,
            "WHALE_UPDATE": 1,
        }


async def test_what_comes_while_the_account_is_asked_for_is_delivered_after_it_and_in_order() -> None:
    async with account() as there:
        there.may_look.clear()
        await until(lambda: there.looks)
        await there.say("order_new", "algo_new", "account_order")
        await until(lambda: there.stream.events.total() == 3)
        assert there.told == ["look begins"]
        assert not there.stream.live
        there.may_look.set()
        await until(lambda: there.stream.live)
        await there.say("algo_finished")
        await until(lambda: len(there.events) == 4)
        assert there.told == [
            "look begins",
            "look ends",
            "OrderReport",
            "StopReport",
            "AccountUpdate",
            "StopReport",
        ]


async def test_an_expired_key_leads_to_a_new_key_and_a_look_within_seconds() -> None:
    async with account() as there:
        await until(lambda: there.stream.live)
        await there.say("listen_key_expired")
        await until(lambda: there.stream.connects == 2 and there.stream.live)
        assert there.told == [
            "look begins",
            "look ends",
            "lost: the listen key has expired",
            "look begins",
            "look ends",
        ]
        assert there.keys == ["secretkey0", "secretkey1"]
        assert there.urls[-1].startswith("/private/ws?listenKey=secretkey1&")


async def test_a_lost_connection_leads_to_a_new_one_and_a_look() -> None:
    async with account() as there:
        await until(lambda: there.stream.live)
        there.connections[-1]._req.transport.abort()
        await until(lambda: there.stream.connects == 2 and there.stream.live)
        assert there.looks == 2
        assert there.told[2].startswith("lost: ")
        await there.say("order_new")
        await until(lambda: there.events)


async def test_the_key_is_kept_every_half_hour_of_the_markets_time() -> None:
    async with account(speed=3600) as there:  # an hour in a second
        await until(lambda: there.kept >= 3)
        assert there.stream.connects == 1
        assert there.looks == 1


async def test_a_key_that_is_not_known_any_more_is_replaced() -> None:
    async with account(speed=3600) as there:
        there.refuse_keeping = Refused("PUT /fapi/v1/listenKey: HTTP 400, -1125", -1125)
        await until(lambda: there.looks == 2)
        there.refuse_keeping = None
        assert any("could not be kept" in text for text in there.told)
        assert there.keys[:2] == ["secretkey0", "secretkey1"]


async def test_a_request_that_fails_does_not_cost_a_stream_whose_key_still_lives() -> None:
    async with account(speed=600, keep_every_s=300.0) as there:
        there.refuse_keeping = Unavailable("PUT /fapi/v1/listenKey: HTTP 503")
        await asyncio.sleep(1.0)  # ten minutes: the key has nearly an hour
        there.refuse_keeping = None
        await until(lambda: there.kept)
        assert there.looks == 1


async def test_a_key_that_could_not_be_kept_for_its_life_is_replaced() -> None:
    async with account(speed=3600, keep_every_s=300.0) as there:
        there.refuse_keeping = Unavailable("PUT /fapi/v1/listenKey: HTTP 503")
        await until(lambda: there.looks == 2)


async def test_without_a_key_nothing_is_connected_and_it_is_tried_again() -> None:
    async with account() as there:
        there.refuse_key = Unavailable("POST /fapi/v1/listenKey: HTTP 503")
        await until(lambda: there.stream.last_error)
        assert there.stream.connects == 0
        assert there.told == []
        there.refuse_key = None
        await until(lambda: there.stream.live)


async def test_where_the_account_cannot_be_asked_for_it_begins_anew() -> None:
    async with account() as there:
        there.refuse_looks.append(Unavailable("GET /fapi/v3/account: HTTP 503"))
        await until(lambda: there.stream.live)
        assert there.told == [
            "look begins",
            "lost: the account could not be asked for: GET /fapi/v3/account: HTTP 503",
            "look begins",
            "look ends",
        ]


async def test_a_message_that_makes_no_sense_has_the_account_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perpline.websocket.user_stream.LOOK_AGAIN_S", 0.1)
    async with account() as there:
        await until(lambda: there.stream.live)
        await there.connections[-1].send_str(payload("order_new").replace('"X":"NEW"', '"X":"HALF"'))
        await until(lambda: there.looks == 2)
        await there.say("order_new")
        await until(lambda: there.events)
        assert (there.stream.malformed, there.stream.connects) == (1, 1)


async def test_a_connection_is_renewed_before_the_exchange_ends_it() -> None:
    async with account(renew_after_s=0.3) as there:
        await until(lambda: there.stream.connects == 3 and there.stream.live)
        assert there.told[2] == "lost: renewed"
        assert there.stream.failures == 0


async def test_whoever_misses_an_event_can_have_it_begun_anew() -> None:
    async with account() as there:
        await until(lambda: there.stream.live)
        there.stream.renew("an order was filled and nothing told of it")
        await until(lambda: there.stream.connects == 2 and there.stream.live)
        assert there.told[2] == "lost: an order was filled and nothing told of it"


async def test_too_many_events_before_the_account_is_known_begin_it_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perpline.websocket.user_stream.MAX_HELD", 3)
    async with account() as there:
        there.may_look.clear()
        await until(lambda: there.looks)
        await there.say(*["order_new"] * 5)
        await until(lambda: there.stream.events.total() == 5)
        there.may_look.set()
        await until(lambda: there.stream.connects == 2 and there.stream.live)
        assert len(there.events) == 3


async def test_no_text_tells_the_listen_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with structlog.testing.capture_logs() as logs:
        async with account() as there:
            await until(lambda: there.stream.live)
            await there.connections[-1].send_str('{"stream":"secretkey0","data":{"e":"ORDER_TRADE_UPDATE"}}')
            await there.say("listen_key_expired")
            await until(lambda: there.stream.connects == 2 and there.stream.live)
            texts = [*there.told, json.dumps(there.stream.facts())]
        async with account(port=unused_port()) as there:
            await until(lambda: there.stream.last_error)
            texts.append(there.stream.last_error)
    texts += [json.dumps(logs)]
    texts += [record.getMessage() for record in caplog.records if record.name != "aiohttp.access"]
    assert any("user_event_malformed" in text for text in texts)
    for text in texts:
        assert "secretkey" not in text


class SteppedHost(Host):
    """A host of ours whose UTC a test sets back, while its steady clock and the exchange's time go on."""

    step_s = 0

    def utc_ns(self) -> int:
        return super().utc_ns() + self.step_s * 10**9


async def test_a_host_that_is_set_back_keeps_no_key_and_no_connection_longer_than_the_exchange_does() -> None:
    host = SteppedHost()
    clock = Hurried(host=host)
    clock.offset_ms = 0  # as measured at a start
    async with account(clock=clock, renew_after_s=0.4) as there:
        await until(lambda: there.stream.live)
        host.step_s = -7200
        await until(lambda: there.stream.connects == 2 and there.stream.live)
        assert there.told[2] == "lost: renewed"


async def test_a_key_that_cannot_be_kept_is_replaced_in_time_on_a_host_that_was_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("perpline.websocket.user_stream.KEY_LIFE_S", 0.5)
    monkeypatch.setattr("perpline.websocket.user_stream._KEEP_AGAIN_S", 0.1)
    host = SteppedHost()
    clock = Hurried(host=host)
    clock.offset_ms = 0
    async with account(clock=clock, keep_every_s=0.1) as there:
        there.refuse_keeping = Unavailable("PUT /fapi/v1/listenKey: HTTP 503")
        await until(lambda: there.stream.live)
        host.step_s = -7200
        await until(lambda: there.looks == 2)
        assert any("could not be kept" in text for text in there.told)
