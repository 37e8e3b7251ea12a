"""What a worker's listeners are told, and that nothing they do matters to the worker."""

import asyncio
import io
import json
import logging
import socket as sockets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog

from perpline.common.clock import ManualClock, SystemClock
from perpline.common.errors import TooSlow
from perpline.common.telemetry import LogRing, configure_logging
from perpline.endpoint import MOST_LISTENERS, Endpoint, token_file
from perpline.events import AT_ONCE, FIELDS, WAITING, EventFeed, MarketRow, MarketView
from running import eventually
from signalling import decision

NOW = 1_795_219_260_000
STREAMS = ("kline_1m", "markPrice@1s")


class Market:
    """Prices that a test sets, and how often they were looked at."""

    def __init__(self, *symbols: str) -> None:
        self.prices: dict[str, float | None] = dict.fromkeys(symbols)
        self.looks = 0
        self.states = 0
        self.busy = False

    def row(self, symbol: str) -> MarketRow:
        self.looks += 1
        return (self.prices[symbol], *(None,) * (len(FIELDS) - 1))

    def state(self) -> dict[str, Any]:
        self.states += 1
        return {"ready": True}


def feed_of(market: Market, clock: ManualClock | SystemClock, logs: LogRing | None = None) -> EventFeed:
    return EventFeed(
        clock,
        hello=lambda: {"version": "1", "speed": 1.0, "slot": "champion"},
        state=market.state,
        market=MarketView(
            symbols=lambda: list(market.prices),
            streams=STREAMS,
            row=market.row,
            ages=lambda symbol: [0.5, None],
            stale=lambda: {"AUSDT": ["markPrice@1s"]},
            limits=[None, 5.0],
            is_busy=lambda: market.busy,
        ),
        logs=logs,
    )


class Listener:
    """Hears a feed without a socket, for as long as it `takes`."""

    def __init__(self, feed: EventFeed) -> None:
        self.heard: list[dict[str, Any]] = []
        self.takes = asyncio.Event()
        self.takes.set()
        self.task = asyncio.create_task(feed.tell(self._hear))

    async def _hear(self, text: bytes) -> None:
        await self.takes.wait()
        self.heard.append(json.loads(text))

    def said(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.heard if message["type"] == kind]

    async def leave(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


async def pass_time(clock: ManualClock, looks: int = 1) -> None:
    for _ in range(looks):
        await settle()
        clock.advance(0.2)
        await settle()


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_listener_hears_first_who_speaks_and_then_the_whole_market() -> None:
    clock, market = ManualClock(NOW), Market("AUSDT", "BUSDT")
    market.prices["AUSDT"] = 100.0
    listener = Listener(feed_of(market, clock))
    await settle()

    hello, rows, ages, state = listener.heard
    symbols, streams = ["AUSDT", "BUSDT"], list(STREAMS)
    assert hello == {
        **{"type": "hello", "version": "1", "speed": 1.0, "slot": "champion", "now": NOW},
        **{"symbols": symbols, "fields": list(FIELDS), "streams": streams},
    }
    nothing = [None] * (len(FIELDS) - 1)
    assert rows == {"type": "market", "now": NOW, "rows": {"AUSDT": [100.0, *nothing], "BUSDT": [None, *nothing]}}
    assert ages["rows"] == {"AUSDT": [0.5, None], "BUSDT": [0.5, None]}
    assert (ages["limits"], ages["stale"]) == ([None, 5.0], {"AUSDT": ["markPrice@1s"]})
    assert state == {"type": "state", "status": {"ready": True}}
    await listener.leave()


async def test_rows_that_did_not_change_are_not_sent_again() -> None:
    clock, market = ManualClock(NOW), Market("AUSDT", "BUSDT")
    listener = Listener(feed_of(market, clock))
    await settle()
    market.prices["BUSDT"] = 7.0
    await pass_time(clock)
    await pass_time(clock, looks=3)

    whole, change = (list(message["rows"]) for message in listener.said("market"))
    assert (whole, change) == (["AUSDT", "BUSDT"], ["BUSDT"])
    await listener.leave()


async def test_who_takes_slowly_hears_the_newest_of_the_market_and_every_decision() -> None:
    clock, market = ManualClock(NOW), Market("AUSDT", "BUSDT")
    feed = feed_of(market, clock)
    slow, quick = Listener(feed), Listener(feed)
    await settle()
    slow.takes.clear()
    for n in range(1, 11):
        market.prices["AUSDT"] = float(n)
        feed.on_decided([decision("AUSDT", n)])
        await pass_time(clock)
    slow.takes.set()
    await pass_time(clock)

    assert [message["rows"]["AUSDT"][0] for message in slow.said("market")] == [None, 10.0]
    assert [message["rows"]["AUSDT"][0] for message in quick.said("market")] == [None, *map(float, range(1, 11))]
    for listener in (slow, quick):
        rows = [row for message in listener.said("decisions") for row in message["rows"]]
        assert [row["close_time"] for row in rows] == [decision("AUSDT", n).close_time for n in range(1, 11)]
        assert rows[0] == {
            **{"symbol": "AUSDT", "close_time": rows[0]["close_time"], "status": "ok", "side": 1},
            **{"p_cal": 0.612, "detail": ""},
        }
        await listener.leave()


async def test_what_all_are_told_is_made_once() -> None:
    clock, market = ManualClock(NOW), Market("AUSDT", "BUSDT")
    feed = feed_of(market, clock)
    listeners = [Listener(feed) for _ in range(MOST_LISTENERS)]
    await pass_time(clock, looks=5)

    assert (market.looks, market.states) == (6 * 2, 2)
    for listener in listeners:
        await listener.leave()


async def test_nothing_is_made_while_nobody_listens() -> None:
    clock, market = ManualClock(NOW), Market("AUSDT")
    feed = feed_of(market, clock)
    feed.on_decided([decision("AUSDT")])
    await pass_time(clock, looks=10)
    assert (market.looks, market.states, feed.listeners) == (0, 0, 0)

    listener = Listener(feed)
    await pass_time(clock)
    await listener.leave()
    looks = market.looks
    await pass_time(clock, looks=10)
    assert (market.looks, feed.listeners) == (looks, 0)
    assert listener.said("decisions") == [], "what was decided before is in the database"


async def test_many_symbols_are_looked_at_in_portions_and_not_while_decisions_are_on_their_way() -> None:
    clock, market = ManualClock(NOW), Market(*(f"S{n}USDT" for n in range(3 * AT_ONCE)))
    listener = Listener(feed_of(market, clock))
    portions = []
    while not listener.said("market"):
        before = market.looks
        await asyncio.sleep(0)
        portions.append(market.looks - before)
    assert max(portions) == AT_ONCE

    await settle()
    market.busy, looks = True, market.looks
    clock.advance(0.2)
    await settle()
    assert market.looks == looks
    market.busy = False
    clock.advance(0.01)
    await settle()
    assert market.looks == 2 * looks
    await listener.leave()


async def test_a_symbol_that_comes_or_goes_is_told_with_a_new_list() -> None:
    clock, market = ManualClock(NOW), Market("AUSDT", "BUSDT")
    listener = Listener(feed_of(market, clock))
    await settle()
    del market.prices["AUSDT"]
    market.prices["CUSDT"] = 3.0
    await pass_time(clock)

    assert [message["symbols"] for message in listener.said("hello")] == [["AUSDT", "BUSDT"], ["BUSDT", "CUSDT"]]
    assert list(listener.said("market")[-1]["rows"]) == ["CUSDT"]
    await listener.leave()


async def test_who_is_too_far_behind_with_decisions_or_takes_nothing_at_all_is_too_slow() -> None:
    clock, market = ManualClock(NOW), Market("AUSDT")
    feed = feed_of(market, clock)
    listener = Listener(feed)
    await settle()
    feed.on_decided([decision("AUSDT", n) for n in range(WAITING)])
    await pass_time(clock)
    assert len(listener.said("decisions")[0]["rows"]) == WAITING, "so many it may be behind"
    feed.on_decided([decision("AUSDT", n) for n in range(WAITING)])
    feed.on_decided([decision("AUSDT", WAITING)])
    await pass_time(clock)
    with pytest.raises(TooSlow, match="decisions"):
        await listener.task


async def test_who_takes_nothing_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perpline.events.SEND_WITHIN_S", 0.05)
    listener = Listener(feed := feed_of(Market("AUSDT"), ManualClock(NOW)))
    listener.takes.clear()
    with pytest.raises(TooSlow, match="nothing was taken"):
        await listener.task
    assert feed.listeners == 0


# ---- the log


@pytest.fixture
def loud(monkeypatch: pytest.MonkeyPatch) -> Iterator[LogRing]:
    """A ring that the log goes by, as in a worker."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    ring = LogRing(lambda: NOW, size=300)
    configure_logging("debug", "json", io.StringIO(), ring=ring)
    yield ring
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_warnings_and_worse_are_kept_with_what_they_say_and_nothing_else_is(loud: LogRing) -> None:
    log = structlog.get_logger()
    log.info("worker_ready")
    log.warning("gap", symbol="AUSDT", path=Path("a/b"), nothing=float("nan"), _record="not this")
    logging.getLogger("aiohttp").error("what a library says")
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("handler_failed", kind="kline")

    assert loud.since(0) == [
        {
            **{"event": "gap", "level": "warning", "at": NOW},
            "fields": {"symbol": "AUSDT", "path": "a/b", "nothing": None},
        },
        {"event": "what a library says", "level": "error", "at": NOW, "fields": {}},
        {
            **{"event": "handler_failed", "level": "error", "at": NOW},
            "fields": {"kind": "kline", "exception": "ValueError: broken"},
        },
    ]


def test_what_cannot_be_spelled_or_says_too_much_fails_nobody(loud: LogRing) -> None:
    class Unspeakable:
        def __str__(self) -> str:
            raise RuntimeError("no words")

        __repr__ = __str__

    ring = LogRing(lambda: NOW)
    ring.take(None, "", {"event": "a", "level": "error", "what": Unspeakable()})
    ring.take(None, "", {"event": "b", "level": "error", "what": "x" * 1_000_000})

    one, other = ring.since(0)
    assert "no words" in one["fields"]["text"]
    assert len(other["fields"]["text"]) < 10_000


async def test_a_listener_hears_the_last_200_log_events_first_and_each_new_one(loud: LogRing) -> None:
    clock, log = ManualClock(NOW), structlog.get_logger()
    for n in range(loud.size + 50):
        log.warning("gap", n=n)
    listener = Listener(feed_of(Market(), clock, loud))
    await settle()
    log.error("disk_low", reason="full")
    await pass_time(clock)

    [first] = listener.said("logs")
    assert [row["fields"]["n"] for row in first["rows"]] == list(range(150, 350))
    told = {"type": "log", "event": "disk_low", "level": "error", "at": NOW, "fields": {"reason": "full"}}
    assert listener.said("log") == [told]

    for n in range(loud.size + 1):
        log.warning("gap", n=n)
    await pass_time(clock)
    with pytest.raises(TooSlow, match="log events"):
        await listener.task


# ---- over the socket


@asynccontextmanager
async def served(folder: Path, feed: EventFeed) -> AsyncIterator[Endpoint]:
    endpoint = Endpoint(
        port=0,
        data_dir=folder,
        status=lambda: {"ready": True},
        trouble=list,
        metrics=lambda: b"",
        tell=feed.tell,
    )
    await endpoint.open()
    try:
        yield endpoint
    finally:
        await endpoint.close()


def address(endpoint: Endpoint) -> str:
    return f"http://127.0.0.1:{endpoint.port}/events"


def bearer(folder: Path, endpoint: Endpoint) -> dict[str, str]:
    token = json.loads(token_file(folder, endpoint.port).read_text())["token"]
    return {"Authorization": f"Bearer {token}"}


async def test_no_token_no_events(tmp_path: Path) -> None:
    market = Market("AUSDT")
    async with served(tmp_path, feed_of(market, SystemClock())) as endpoint, aiohttp.ClientSession() as session:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
                await session.ws_connect(address(endpoint), headers=headers)
        with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
            await session.ws_connect(
                address(endpoint), headers={**bearer(tmp_path, endpoint), "Origin": "https://evil.example"}
            )
        async with session.get(address(endpoint), headers=bearer(tmp_path, endpoint)) as answer:
            assert (answer.status, await answer.json()) == (426, {"error": "this is a WebSocket"})
    assert market.looks == 0


async def test_a_ninth_listener_is_refused_until_one_goes(tmp_path: Path) -> None:
    feed = feed_of(Market("AUSDT"), SystemClock())
    async with served(tmp_path, feed) as endpoint, aiohttp.ClientSession() as session:
        headers = bearer(tmp_path, endpoint)
        listeners = [await session.ws_connect(address(endpoint), headers=headers) for _ in range(MOST_LISTENERS)]
        assert [(await each.receive_json())["type"] for each in listeners] == ["hello"] * MOST_LISTENERS
        with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
            await session.ws_connect(address(endpoint), headers=headers)
        await listeners[0].close()
        await eventually(lambda: feed.listeners == MOST_LISTENERS - 1)
        async with session.ws_connect(address(endpoint), headers=headers) as another:
            assert (await another.receive_json())["type"] == "hello"


async def test_a_listener_that_does_not_read_is_closed_and_others_hear_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perpline.events.SEND_WITHIN_S", 0.3)
    monkeypatch.setattr("perpline.endpoint.GOODBYE_WITHIN_S", 0.2)
    market = Market(*(f"S{n}USDT" for n in range(3000)))
    feed = feed_of(market, SystemClock())
    async with served(tmp_path, feed) as endpoint, aiohttp.ClientSession() as session:
        headers = bearer(tmp_path, endpoint)
        deaf = sockets.socket()
        deaf.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", endpoint.port))
        lines = [f"{name}: {value}" for name, value in headers.items()]
        upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13"
        asked = f"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n{upgrade}\r\nSec-WebSocket-Key: {'A' * 22}==\r\n"
        deaf.sendall((asked + "\r\n".join(lines) + "\r\n\r\n").encode())
        await eventually(lambda: feed.listeners == 1)
        async with session.ws_connect(address(endpoint), headers=headers) as well:

            async def hear(until: Callable[[], bool]) -> None:
                async for message in well:
                    for symbol in market.prices:
                        market.prices[symbol] = (market.prices[symbol] or 0.0) + 1.0
                    if message.json()["type"] == "market" and until():
                        return

            await asyncio.wait_for(hear(lambda: feed.listeners == 1), 20)
            await asyncio.wait_for(hear(lambda: True), 5)
        assert (await asyncio.to_thread(everything, deaf)).rindex(TRY_AGAIN_LATER)


TRY_AGAIN_LATER = (1013).to_bytes(2, "big") + b"nothing was taken"


def everything(deaf: sockets.socket) -> bytes:
    """What was sent to it until it was closed."""
    with deaf:
        deaf.settimeout(10.0)
        return b"".join(iter(lambda: deaf.recv(1 << 16), b""))


async def test_what_a_listener_says_ends_it_and_is_read_by_nobody(tmp_path: Path) -> None:
    feed = feed_of(Market("AUSDT"), SystemClock())
    async with served(tmp_path, feed) as endpoint, aiohttp.ClientSession() as session:
        for send in ("send_str", "send_bytes"):
            async with session.ws_connect(address(endpoint), headers=bearer(tmp_path, endpoint)) as socket:
                await getattr(socket, send)("x" * 100_000 if send == "send_str" else b"\x00")
                async for _ in socket:
                    pass
                assert socket.close_code in (1000, 1009)
        await eventually(lambda: feed.listeners == 0)


async def test_an_endpoint_that_closes_says_goodbye(tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as session:
        async with served(tmp_path, feed_of(Market("AUSDT"), SystemClock())) as endpoint:
            socket = await session.ws_connect(address(endpoint), headers=bearer(tmp_path, endpoint))
            await socket.receive_json()

            async def hear() -> int | None:
                async for _ in socket:
                    pass
                return socket.close_code

            hearing = asyncio.create_task(hear())
        assert await hearing == aiohttp.WSCloseCode.GOING_AWAY
