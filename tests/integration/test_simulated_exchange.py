"""The simulated exchange over real sockets: what it publishes is what it says it published, and faults are seen."""

import asyncio
import itertools
import json
import os
import signal
import socket
import sys
import time
from collections import defaultdict
from contextlib import asynccontextmanager
from decimal import Decimal

import aiohttp
import picows
import pytest
import typer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from perpline.cli.simulate import simulate
from perpline.common.clock import ManualClock, SystemClock
from perpline.simulation.faults import Faults
from perpline.simulation.server import SimulatedExchange

START = 1_795_400_000_000 // 60_000 * 60_000 + 48_000
"""2026-11-23 04:53:48 UTC: 12 s before the end of a minute."""


@asynccontextmanager
async def running(speed=480.0, start_ms=START, **options):
    options.setdefault("symbols", 4)
    options.setdefault("clock", SystemClock(speed, anchor_ms=start_ms))
    async with SimulatedExchange(**options) as exchange, aiohttp.ClientSession() as session:
        exchange.session = session
        yield exchange


@asynccontextmanager
async def listening(exchange, path, *names):
    async with exchange.session.ws_connect(exchange.ws_url + path) as ws:
        if names:
            await ws.send_json({"method": "SUBSCRIBE", "params": list(names), "id": 1})
            assert await _answer(ws, 1) == {"result": None, "id": 1}
        yield ws


async def _answer(ws, request_id):
    while True:
        message = await ws.receive_json(timeout=5)
        if "id" in message and message["id"] == request_id and "e" not in message:
            return message


async def _collect(ws, enough, timeout_s=8.0):
    """Payloads until `enough(payloads)`."""
    payloads = []
    async with asyncio.timeout(timeout_s):
        while not enough(payloads):
            payloads.append(await ws.receive_json())
    return payloads


def _closed(payloads, interval="1m"):
    return [p["k"] for p in payloads if p.get("e") == "kline" and p["k"]["x"] and p["k"]["i"] == interval]


def _row(k):
    return [k["t"], k["o"], k["h"], k["l"], k["c"], k["v"], k["T"], k["q"], k["n"], k["V"], k["Q"], "0"]


async def _silence(ws, wall_s=0.25):
    """Frames that come within this time; none is what is hoped for."""
    got = []
    try:
        async with asyncio.timeout(wall_s):
            while True:
                got.append(await ws.receive())
    except TimeoutError:
        return got


async def _ended(ws, timeout_s=4.0):
    """Waits until the server ends the connection; the close code."""
    async with asyncio.timeout(timeout_s):
        async for _ in ws:
            pass
    return ws.close_code


async def _get(exchange, path, **params):
    async with exchange.session.get(exchange.http_url + path, params=params) as response:
        return response.status, await response.json()


# ---- candles


async def test_closing_frames_rest_and_the_truth_are_the_same_rows():
    names = [f"{s}@kline_{i}" for s in ("btcusdt", "ethusdt", "solusdt", "xrpusdt") for i in ("1m", "3m", "5m")]
    async with running() as exchange, listening(exchange, "/market/ws", *names) as ws:
        payloads = await _collect(ws, lambda got: len(_closed(got)) >= 24)
        for symbol in exchange.symbols:
            for interval in ("1m", "3m", "5m"):
                sent = [_row(k) for k in _closed(payloads, interval) if k["s"] == symbol]
                first, last = sent[0][0], sent[-1][0]
                truth = exchange.closed_candles(symbol, interval, first, last + 1)
                rest = await _get(
                    exchange, "/fapi/v1/klines", symbol=symbol, interval=interval, startTime=first, endTime=last
                )

                assert sent == truth
                assert rest == (200, truth)


# Not made smaller where it fails: each try takes seconds of a market, and its seed says all.
@settings(
    max_examples=4,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32), start_s=st.integers(0, 86_400))
def test_candles_are_the_trades_that_were_published(seed, start_s):
    asyncio.run(_candles_are_the_trades(seed, 1_795_392_000_000 + start_s * 1000))


async def _candles_are_the_trades(seed, start_ms):
    symbols = ("btcusdt", "solusdt")
    market = [f"{s}@{kind}" for s in symbols for kind in ("aggTrade", "kline_1m")]
    async with (
        running(seed=seed, start_ms=start_ms) as exchange,
        listening(exchange, "/market/ws", *market) as ws,
        listening(exchange, "/public/ws", *(f"{s}@trade" for s in symbols)) as single,
    ):
        subscribed_ms = exchange.clock.now_ms()
        payloads = await _collect(ws, lambda got: len(_closed(got)) >= 8)
        trades = defaultdict(list)
        for p in payloads:
            if p["e"] == "aggTrade":
                trades[p["s"], p["T"] // 60_000 * 60_000].append(p)
        whole = [k for k in _closed(payloads) if k["t"] >= subscribed_ms]
        due = {(k["s"], k["L"]) for k in whole}
        singles = await _collect(single, lambda got: len(got) % 50 == 0 and due <= {(p["s"], p["t"]) for p in got})
        assert len(whole) >= 4
        for k in whole:
            own = trades[k["s"], k["t"]]

            assert [k["o"], k["c"]] == [own[0]["p"], own[-1]["p"]]
            assert Decimal(k["h"]) == max(Decimal(t["p"]) for t in own)
            assert Decimal(k["l"]) == min(Decimal(t["p"]) for t in own)
            assert Decimal(k["v"]) == sum(Decimal(t["q"]) for t in own)
            assert Decimal(k["q"]) == sum(Decimal(t["q"]) * Decimal(t["p"]) for t in own)
            assert Decimal(k["V"]) == sum(Decimal(t["q"]) for t in own if not t["m"])
            assert Decimal(k["Q"]) == sum(Decimal(t["q"]) * Decimal(t["p"]) for t in own if not t["m"])
            assert (k["f"], k["L"], k["n"]) == (own[0]["f"], own[-1]["l"], own[-1]["l"] - own[0]["f"] + 1)
            each = [p for p in singles if p["s"] == k["s"] and p["T"] // 60_000 * 60_000 == k["t"]]
            assert [p["t"] for p in each] == list(range(k["f"], k["L"] + 1))
            assert sum(Decimal(p["q"]) for p in each) == Decimal(k["v"])


async def test_a_forming_candle_only_grows_and_never_follows_its_closing_frame():
    async with running() as exchange, listening(exchange, "/market/ws", "btcusdt@kline_1m") as ws:
        payloads = await _collect(ws, lambda got: len(_closed(got)) >= 4)
    seen = defaultdict(list)
    for p in payloads:
        seen[p["k"]["t"]].append(p["k"])
    for frames in list(seen.values())[:-1]:
        assert [k["x"] for k in frames] == [False] * (len(frames) - 1) + [True]
        assert [Decimal(k["v"]) for k in frames] == sorted(Decimal(k["v"]) for k in frames)


async def test_closing_frames_leave_a_tenth_to_two_seconds_after_the_minute():
    names = [f"{s}@kline_1m" for s in ("btcusdt", "ethusdt", "solusdt", "xrpusdt")]
    async with running() as exchange, listening(exchange, "/market/ws", *names) as ws:
        payloads = await _collect(ws, lambda got: len(_closed(got)) >= 20)
    delays = [p["E"] - p["k"]["T"] - 1 for p in payloads if p["k"]["x"]]

    assert all(100 <= delay <= 2000 for delay in delays)
    assert len(set(delays)) > 10


async def test_a_minute_without_trades_closes_flat_and_can_be_left_out():
    # Contract 28 trades little; its empty minutes are known beforehand.
    for quiet in (False, True):
        async with running(speed=600.0, symbols=29, faults=Faults(no_empty_close=quiet)) as exchange:
            index = 28
            rows = exchange.exchange.world.minutes(index, START // 60_000, 400)
            empty = next(minute for minute in range(10, 400) if rows[minute, 6] == 0)
            target = (START // 60_000 + empty) * 60_000
        # Early enough for a busy machine: the exchange takes a second to start, five minutes here.
        async with running(
            speed=300.0, start_ms=target - 600_000, symbols=29, faults=Faults(no_empty_close=quiet)
        ) as exchange:
            symbol = exchange.symbols[index]
            async with listening(exchange, "/market/ws", f"{symbol.lower()}@kline_1m") as ws:
                payloads = await _collect(ws, lambda got, target=target: any(k["t"] > target for k in _closed(got)))
        closed = {k["t"]: k for k in _closed(payloads)}
        if quiet:
            assert target not in closed
        else:
            flat = closed[target]
            assert flat["o"] == flat["h"] == flat["l"] == flat["c"] == closed[target - 60_000]["c"]
            assert (flat["n"], flat["f"], flat["L"], Decimal(flat["v"])) == (0, -1, -1, 0)


async def test_two_exchanges_of_one_seed_live_through_the_same_minutes():
    rows = []
    for _ in range(2):
        clock = ManualClock(START)
        async with SimulatedExchange(seed=9, symbols=3, clock=clock) as exchange:
            clock.advance(600)
            rows.append(
                [exchange.closed_candles(s, "1m", START - 3_600_000, START + 600_000) for s in exchange.symbols]
            )

    assert rows[0] == rows[1]
    assert [len(each) for each in rows[0]] == [69, 69, 69]


async def test_the_hour_turns_without_a_gap():
    start = START // 3_600_000 * 3_600_000 + 3_600_000 - 50_000
    names = ("btcusdt@kline_1m", "btcusdt@kline_1h", "btcusdt@markPrice@1s")
    async with running(speed=120.0, start_ms=start) as exchange, listening(exchange, "/market/ws", *names) as ws:
        payloads = await _collect(ws, lambda got: len(_closed(got)) >= 3)
        sent = [_row(k) for k in _closed(payloads)]

        assert [_row(k) for k in _closed(payloads, "1h")] == exchange.closed_candles(
            "BTCUSDT", "1h", start - 3_550_000, start
        )
        assert sent == exchange.closed_candles("BTCUSDT", "1m", sent[0][0], sent[-1][0] + 1)
    seconds = [p["E"] for p in payloads if p["e"] == "markPriceUpdate"]
    assert seconds == list(range(seconds[0], seconds[-1] + 1, 1000))


# ---- other streams


async def test_the_book_ticker_rises_and_has_the_fields_of_2026():
    async with (
        running() as exchange,
        listening(exchange, "/public/ws", "btcusdt@bookTicker", "xrpusdt@bookTicker") as ws,
    ):
        payloads = await _collect(ws, lambda got: len(got) >= 12)
    last = defaultdict(int)
    for p in payloads:
        assert list(p) == ["e", "u", "s", "ps", "b", "B", "a", "A", "T", "E", "st"]
        assert p["u"] > last[p["s"]]
        assert Decimal(p["b"]) < Decimal(p["a"])
        assert p["T"] <= p["E"]
        last[p["s"]] = p["u"]
    assert set(last) == {"BTCUSDT", "XRPUSDT"}


async def test_speed_thins_books_and_forming_candles_but_no_mark_price():
    names = ("btcusdt@kline_1m", "btcusdt@markPrice@1s")
    async with (
        running(speed=60.0) as exchange,
        listening(exchange, "/market/ws", *names) as ws,
        listening(exchange, "/public/ws", "btcusdt@bookTicker") as books,
    ):
        began_s = time.monotonic()
        payloads = await _collect(ws, lambda got: sum(p["e"] == "markPriceUpdate" for p in got) >= 120)
        forming = [p for p in payloads if p["e"] == "kline" and not p["k"]["x"]]
        tickers = await _collect(books, lambda got: len(got) >= 8)
        taken_s = time.monotonic() - began_s
    marks = [p["E"] for p in payloads if p["e"] == "markPriceUpdate"]

    assert marks == list(range(marks[0], marks[0] + 120_000, 1000))
    assert 1 <= len(forming) <= 2 * taken_s + 1
    assert len(tickers) <= 5 * taken_s + 2


async def test_all_mark_prices_come_in_two_arrays_with_a_row_of_the_other_market():
    async with running() as exchange, listening(exchange, "/market/stream", "!markPrice@arr@1s") as ws:
        first, second = (message["data"] for message in await _collect(ws, lambda got: len(got) >= 2))

    assert first[0]["E"] == second[0]["E"]
    assert {p["s"] for p in first + second if p["st"] == 1} == set(exchange.symbols)
    assert [p["s"] for p in first + second if p["st"] == 2] == ["BTCUSD_PERP"]
    assert list(first[0]) == ["e", "E", "s", "p", "ap", "P", "i", "r", "T", "st"]


async def test_mark_klines_are_the_marks_that_were_published():
    async with running() as exchange, listening(exchange, "/market/ws", "ethusdt@markPrice@1s") as ws:
        payloads = await _collect(ws, lambda got: len(got) >= 200)
        minute = payloads[0]["E"] // 60_000 * 60_000 + 60_000
        marks = [Decimal(p["p"]) for p in payloads if minute <= p["E"] < minute + 60_000]
        row = (
            await _get(exchange, "/fapi/v1/markPriceKlines", symbol="ETHUSDT", interval="1m", startTime=minute, limit=1)
        )[1][0]

    assert len(marks) == row[8] == 60
    assert [Decimal(text) for text in row[1:5]] == [marks[0], max(marks), min(marks), marks[-1]]


async def test_a_diff_depth_can_be_followed_from_a_snapshot():
    async with running(speed=20.0) as exchange, listening(exchange, "/public/ws", "btcusdt@depth@100ms") as ws:
        first = await _collect(ws, lambda got: len(got) >= 2)
        snapshot = (await _get(exchange, "/fapi/v1/depth", symbol="BTCUSDT", limit=1000))[1]
        events = first + await _collect(ws, lambda got: len(got) >= 6)
    events = [e for e in events if e["u"] >= snapshot["lastUpdateId"]]

    assert events[0]["U"] <= snapshot["lastUpdateId"] <= events[0]["u"]
    assert all(b["pu"] == a["u"] for a, b in itertools.pairwise(events))


@pytest.mark.parametrize(
    ("path", "name", "event"),
    [
        ("/market", "btcusdt@ticker", "24hrTicker"),
        ("/market", "btcusdt@miniTicker", "24hrMiniTicker"),
        ("/market", "btcusdt_perpetual@continuousKline_5m", "continuous_kline"),
        ("/market", "btcusdt@markPrice", "markPriceUpdate"),
        ("/public", "btcusdt@depth5@100ms", "depthUpdate"),
        ("/public", "!bookTicker", "bookTicker"),
    ],
)
async def test_each_kind_of_stream_delivers(path, name, event):
    async with running() as exchange, listening(exchange, f"{path}/stream?streams={name}") as ws:
        message = (await _collect(ws, lambda got: len(got) >= 1))[0]

    assert (message["stream"], message["data"]["e"]) == (name, event)


# ---- routes and connections


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/public/ws", "btcusdt@markPrice@1s"),
        ("/market/ws", "btcusdt@bookTicker"),
        ("/private/ws", "btcusdt@bookTicker"),
        ("/ws", "btcusdt@markPrice@1s"),
        ("/stream", "btcusdt@kline_1m"),
        ("/market/ws", "BTCUSDT@markPrice@1s"),
        ("/market/ws", "nonsense"),
    ],
)
async def test_a_stream_of_another_route_or_of_no_kind_is_acknowledged_and_silent(path, name):
    async with running() as exchange, listening(exchange, path, name) as ws:
        await ws.send_json({"method": "LIST_SUBSCRIPTIONS", "id": "list"})
        assert await _answer(ws, "list") == {"result": [name], "id": "list"}

        assert await _silence(ws) == []


async def test_unrouted_paths_serve_public_streams_and_all_of_them_when_told():
    async with running() as exchange, listening(exchange, "/ws/btcusdt@bookTicker/btcusdt@markPrice@1s") as ws:
        assert {p["e"] for p in await _collect(ws, lambda got: len(got) >= 3)} == {"bookTicker"}
    async with running(unrouted_all=True) as exchange, listening(exchange, "/ws", "btcusdt@markPrice@1s") as ws:
        assert (await _collect(ws, lambda got: len(got) >= 1))[0]["e"] == "markPriceUpdate"


async def test_raw_and_combined_forms_differ_by_path_and_property():
    async with running() as exchange:
        async with listening(exchange, "/public/ws/btcusdt@bookTicker/ethusdt@bookTicker") as ws:
            assert {p["s"] for p in await _collect(ws, lambda got: len(got) >= 4)} == {"BTCUSDT", "ETHUSDT"}
        async with listening(exchange, "/public/stream?streams=btcusdt@bookTicker/ethusdt@bookTicker") as ws:
            names = {p["stream"] for p in await _collect(ws, lambda got: len(got) >= 4)}
            assert names == {"btcusdt@bookTicker", "ethusdt@bookTicker"}
            await ws.send_json({"method": "SET_PROPERTY", "params": ["combined", False], "id": 5})
            assert await _answer(ws, 5) == {"result": None, "id": 5}
            assert "e" in (await _collect(ws, lambda got: len(got) >= 1))[0]


async def test_a_junk_token_in_the_path_is_tolerated():
    async with running() as exchange, listening(exchange, "/public/ws/0", "btcusdt@bookTicker") as ws:
        assert (await _collect(ws, lambda got: len(got) >= 1))[0]["e"] == "bookTicker"


async def test_a_comma_between_streams_fails_the_handshake():
    async with running() as exchange:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await exchange.session.ws_connect(exchange.ws_url + "/public/stream?streams=a@trade,b@trade")
    assert caught.value.status == 400


async def test_a_bad_control_message_is_answered_and_the_stream_goes_on():
    async with running() as exchange, listening(exchange, "/public/ws", "btcusdt@bookTicker") as ws:
        await ws.send_str("not json")
        answer = next(p for p in await _collect(ws, lambda got: any("error" in p for p in got)) if "error" in p)
        await ws.send_bytes(b"\x00\x01")

        assert answer == {"error": {"code": 3, "msg": "Invalid JSON: expected value at line 1 column 1"}, "id": None}
        assert (await _collect(ws, lambda got: len(got) >= 2))[-1]["e"] == "bookTicker"


async def test_more_than_ten_messages_a_second_end_the_connection():
    async with running() as exchange, listening(exchange, "/public/ws") as ws:
        for number in range(10):
            await ws.send_json({"method": "LIST_SUBSCRIPTIONS", "id": number})
            assert (await _answer(ws, number))["result"] == []
        await ws.send_json({"method": "LIST_SUBSCRIPTIONS", "id": 10})

        assert await _ended(ws) == aiohttp.WSCloseCode.ABNORMAL_CLOSURE


async def test_who_answers_pings_stays_and_who_does_not_is_cut():
    async with running(ping_s=0.05, pong_timeout_s=1.0) as exchange:
        stays = await exchange.session.ws_connect(exchange.ws_url + "/public/ws")
        goes = await exchange.session.ws_connect(exchange.ws_url + "/public/ws", autoping=False)
        waiting = asyncio.ensure_future(_ended(stays, 60.0))

        assert await _ended(goes) == aiohttp.WSCloseCode.ABNORMAL_CLOSURE
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await stays.close()


async def test_a_client_s_ping_is_answered():
    async with running() as exchange:
        ws = await exchange.session.ws_connect(exchange.ws_url + "/public/ws", autoping=False)
        await ws.ping(b"here")
        message = await ws.receive(timeout=3)
        await ws.close()

    assert (message.type, bytes(message.data)) == (aiohttp.WSMsgType.PONG, b"here")


async def test_a_connection_ends_after_its_market_hours():
    async with running(cut_hours=1 / 60) as exchange, listening(exchange, "/public/ws") as ws:
        assert await _ended(ws) == aiohttp.WSCloseCode.GOING_AWAY


async def test_a_reader_that_does_not_read_is_cut_and_others_are_served():
    async with running(backlog_bytes=20_000, speed=600.0, symbols=30) as exchange:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", int(exchange.ws_url.rsplit(":", 1)[1])))
        handshake = (
            "GET /market/ws/!markPrice@arr@1s HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        await asyncio.get_running_loop().sock_sendall(sock, handshake.encode())
        async with listening(exchange, "/market/ws", "btcusdt@markPrice@1s") as ws:
            async with asyncio.timeout(8):
                while exchange.stats.slow_readers_cut == 0:
                    await ws.receive_json()
            assert len(await _collect(ws, lambda got: len(got) >= 20)) == 20
        sock.close()


async def test_a_picows_client_is_served():
    class Client(picows.WSListener):
        def __init__(self):
            self.first = asyncio.get_running_loop().create_future()

        def on_ws_connected(self, transport):
            transport.send(picows.WSMsgType.TEXT, b'{"method":"SUBSCRIBE","params":["btcusdt@bookTicker"],"id":"a"}')

        def on_ws_frame(self, transport, frame):
            payload = json.loads(frame.get_payload_as_bytes())
            if payload.get("e") == "bookTicker" and not self.first.done():
                self.first.set_result(payload)

    async with running() as exchange:
        transport, client = await picows.ws_connect(Client, exchange.ws_url + "/public/ws")
        payload = await asyncio.wait_for(client.first, 5)
        transport.disconnect()
        await transport.wait_disconnected()

    assert payload["s"] == "BTCUSDT"


async def test_the_statistics_tell_what_was_done():
    async with running() as exchange, listening(exchange, "/public/ws", "btcusdt@bookTicker", "nope") as ws:
        await _collect(ws, lambda got: len(got) >= 3)
        await _get(exchange, "/fapi/v1/premiumIndex")
        state = (await _get(exchange, "/sim/state"))[1]

    stats = state["stats"]
    assert stats["connections_by_route"] == {"public": 1}
    assert stats["subscriptions"] == {"btcusdt@bookTicker": 1, "unknown": 1}
    assert stats["frames"]["bookTicker"] >= 3
    assert stats["requests"] == {"/fapi/v1/premiumIndex": 1}
    assert (stats["weight_used"], stats["open_connections"]) == (10, 1)
    assert state["symbols"] == list(exchange.symbols)


async def test_rest_speaks_http_as_the_exchange_does():
    async with running() as exchange:
        async with exchange.session.get(exchange.http_url + "/fapi/v1/time") as response:
            body = await response.json()
            assert response.headers["content-type"].startswith("application/json")
            assert response.headers["server"] == "nginx"
            assert response.headers["x-mbx-used-weight-1m"] == "1"
            assert abs(body["serverTime"] - exchange.clock.now_ms()) < 60_000
        assert await _get(exchange, "/fapi/v1/klines", symbol="NOPE", interval="1m") == (
            400,
            {"code": -1121, "msg": "Invalid symbol."},
        )
        assert (await _get(exchange, "/fapi/v9/what"))[0] == 404


async def test_the_truth_is_also_told_over_http():
    async with running() as exchange:
        first = START // 60_000 * 60_000 - 600_000
        params = {"symbol": "ETHUSDT", "interval": "1m", "from": first, "to": first + 300_000}

        status, rows = await _get(exchange, "/sim/candles", **params)

        assert (status, rows) == (200, exchange.closed_candles("ETHUSDT", "1m", first, first + 300_000))
        assert len(rows) == 5
        assert (await _get(exchange, "/sim/candles", symbol="NOPE", **{"from": 1, "to": 2}))[0] == 400
        assert (await _get(exchange, "/sim/candles", symbol="ETHUSDT", **{"from": "x", "to": 2}))[0] == 400
        assert (await _get(exchange, "/sim/candles", symbol="ETHUSDT", **{"from": 0, "to": START}))[0] == 400


# ---- faults


async def test_all_or_one_route_can_be_disconnected_now():
    async with (
        running() as exchange,
        listening(exchange, "/public/ws") as public,
        listening(exchange, "/market/ws", "btcusdt@markPrice@1s") as market,
    ):
        async with exchange.session.post(exchange.http_url + "/sim/faults", json={"disconnect": "public"}) as response:
            assert response.status == 200

        assert await _ended(public) == aiohttp.WSCloseCode.ABNORMAL_CLOSURE
        assert (await _collect(market, lambda got: len(got) >= 3))[0]["e"] == "markPriceUpdate"
        assert exchange.disconnect() == 1
        assert await _ended(market) == aiohttp.WSCloseCode.ABNORMAL_CLOSURE


async def test_connections_are_cut_again_and_again():
    async with running(faults=Faults(disconnect_every_s=60, disconnect_route="market")) as exchange:
        for _ in range(2):
            async with listening(exchange, "/market/ws") as ws:
                assert await _ended(ws) == aiohttp.WSCloseCode.ABNORMAL_CLOSURE


async def test_a_handshake_is_accepted_and_the_line_hung_up():
    async with running(faults=Faults(hang_up="market")) as exchange:
        ws = await exchange.session.ws_connect(exchange.ws_url + "/market/ws")
        assert await _ended(ws) == aiohttp.WSCloseCode.ABNORMAL_CLOSURE
        async with listening(exchange, "/public/ws", "btcusdt@bookTicker") as other:
            assert len(await _collect(other, lambda got: len(got) >= 1)) == 1
        exchange.faults.hang_up = "none"
        async with listening(exchange, "/market/ws", "btcusdt@markPrice@1s") as again:
            assert len(await _collect(again, lambda got: len(got) >= 1)) == 1


async def test_streams_can_be_acknowledged_and_silent_until_the_fault_is_cleared():
    async with running() as exchange:
        async with exchange.session.post(
            exchange.http_url + "/sim/faults", json={"ack_and_nothing": "ethusdt@*"}
        ) as response:
            assert (await response.json())["ack_and_nothing"] == "ethusdt@*"
        names = ("btcusdt@markPrice@1s", "ethusdt@markPrice@1s")
        async with listening(exchange, "/market/ws", *names) as ws:
            assert {p["s"] for p in await _collect(ws, lambda got: len(got) >= 20)} == {"BTCUSDT"}
            async with exchange.session.post(exchange.http_url + "/sim/faults", json={"clear": True}) as response:
                assert (await response.json())["ack_and_nothing"] == ""
            await _collect(ws, lambda got: any(p["s"] == "ETHUSDT" for p in got))


async def test_a_fault_that_makes_no_sense_is_refused_over_http():
    async with running() as exchange:
        for body in (b"{", b"[]", b'{"repeat_share":2}', b'{"repeat":1}', b'{"disconnect":"x"}', b'{"hang_up":"x"}'):
            async with exchange.session.post(exchange.http_url + "/sim/faults", data=body) as response:
                assert response.status == 400
                assert "error" in await response.json()
        assert exchange.faults == Faults()


async def test_closing_frames_can_be_late():
    faults = Faults(late_close_share=1.0, late_close_min_s=5, late_close_max_s=9)
    async with running(faults=faults) as exchange, listening(exchange, "/market/ws", "btcusdt@kline_1m") as ws:
        payloads = await _collect(ws, lambda got: len(_closed(got)) >= 3)

    assert all(5_100 <= p["E"] - p["k"]["T"] - 1 <= 11_000 for p in payloads if p["k"]["x"])


async def test_closing_frames_can_be_missing_while_the_truth_and_rest_have_the_candle():
    names = [f"{s}@kline_1m" for s in ("btcusdt", "ethusdt", "solusdt", "xrpusdt")]
    async with (
        running(speed=600.0, faults=Faults(missing_close_share=0.5)) as exchange,
        listening(exchange, "/market/ws", *names) as ws,
    ):
        payloads = await _collect(ws, lambda got: len(_closed(got)) >= 20)
        sent = {(k["s"], k["t"]): _row(k) for k in _closed(payloads)}
        first, last = min(t for _, t in sent), max(t for _, t in sent)
        truth = {(s, row[0]): row for s in exchange.symbols for row in exchange.closed_candles(s, "1m", first, last)}

    assert 0.25 < len(sent) / len(truth) < 0.8
    assert {key: row for key, row in sent.items() if key[1] < last} == {
        key: row for key, row in truth.items() if key in sent
    }


async def test_frames_can_be_repeated():
    async with (
        running(faults=Faults(repeat_share=1.0)) as exchange,
        listening(exchange, "/market/ws", "btcusdt@markPrice@1s") as ws,
    ):
        seconds = [p["E"] for p in await _collect(ws, lambda got: len(got) >= 20)]

    assert seconds[0::2] == seconds[1::2] == list(range(seconds[0], seconds[0] + 10_000, 1000))


async def test_a_closing_frame_can_be_repeated_after_a_reconnect():
    async with running(faults=Faults(repeat_close_on_subscribe=True)) as exchange:
        async with listening(exchange, "/market/ws", "btcusdt@kline_1m") as ws:
            before = _closed(await _collect(ws, lambda got: len(_closed(got)) >= 1))
        async with exchange.session.ws_connect(exchange.ws_url + "/market/ws/btcusdt@kline_1m") as ws:
            again = await ws.receive_json(timeout=3)

    assert again["k"] == before[-1]


async def test_garbage_comes_between_good_frames():
    async with (
        running(faults=Faults(garbage_share=0.5)) as exchange,
        listening(exchange, "/market/ws", "btcusdt@markPrice@1s") as ws,
    ):
        seconds, others = [], 0
        async with asyncio.timeout(8):
            while len(seconds) < 60:
                message = await ws.receive()
                try:
                    payload = json.loads(message.data)
                except ValueError:
                    payload = {}
                if payload.get("e") == "markPriceUpdate" and payload["E"] > 1:
                    seconds.append(payload["E"])
                else:
                    others += 1
        counted = exchange.stats.frames["garbage"]

    assert seconds == list(range(seconds[0], seconds[0] + 60_000, 1000))
    assert 10 <= others <= counted


# ---- the command


async def _started(*options):
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "perpline.cli.simulate",
        *options,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    return process


async def test_the_command_prints_one_line_when_ready_and_stops_on_sigterm():
    process = await _started(
        "--port", "0", "--speed", "60", "--seed", "5", "--symbols", "3", "--fault", "repeat_share=0.1"
    )
    async with asyncio.timeout(20):
        ready = json.loads(await process.stdout.readline())
        async with aiohttp.ClientSession() as session:
            async with session.get(ready["http"] + "/fapi/v1/time") as response:
                assert response.status == 200
            async with session.ws_connect(ready["ws"] + "/public/ws/btcusdt@bookTicker") as ws:
                assert (await ws.receive_json())["e"] == "bookTicker"
                process.send_signal(signal.SIGTERM)
                rest, errors = await process.communicate()

    assert list(ready) == ["http", "ws", "symbols", "seed", "speed", "time"]
    assert (ready["symbols"], ready["seed"], ready["speed"]) == (3, 5, 60.0)
    assert (process.returncode, rest) == (0, b"")
    assert b"Traceback" not in errors


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--fault", "repeat_shar=1"], "did you mean 'repeat_share'"),
        (["--fault", "repeat_share"], "a fault is given as NAME=VALUE"),
        (["--symbols", "0"], "--symbols"),
        (["--speed", "0"], "--speed"),
        (["--port", "70000"], "--port"),
    ],
)
def test_wrong_usage_of_the_command_is_said_and_nothing_starts(options, line):
    app = typer.Typer()
    app.command()(simulate)

    result = CliRunner().invoke(app, options, env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})

    assert result.exit_code == 2
    assert line in result.output


async def test_a_port_that_is_taken_is_said_in_a_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = await _started("--symbols", "1", "--port", str(taken.getsockname()[1]))
        _, errors = await asyncio.wait_for(process.communicate(), 20)

    assert process.returncode == 1
    assert b"cannot listen on 127.0.0.1" in errors
    assert b"Traceback" not in errors
