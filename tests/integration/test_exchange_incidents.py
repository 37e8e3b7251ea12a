"""Incidents over real sockets, given from tests, over HTTP and on the command line."""

import asyncio
import contextlib
import itertools
import json
import signal
import sys
from contextlib import asynccontextmanager

import aiohttp
import pytest

from perpline.common.clock import SystemClock
from perpline.simulation.faults import Faults
from perpline.simulation.incidents import (
    Delisted,
    Disconnect,
    End,
    HalfOpen,
    Halted,
    Huge,
    Listed,
    Reorder,
    RestFault,
    Silence,
    SlowReading,
    SlowSending,
    Truncated,
    WrongClock,
)
from perpline.simulation.server import SimulatedExchange

START = 1_795_400_000_000 // 60_000 * 60_000 + 48_000
MARKS = "btcusdt@markPrice@1s"


@asynccontextmanager
async def running(*incidents, speed=240.0, **options):
    options.setdefault("symbols", 2)
    faults = Faults(seed=4, incidents=list(incidents))
    async with (
        SimulatedExchange(clock=SystemClock(speed, anchor_ms=START), faults=faults, **options) as exchange,
        aiohttp.ClientSession() as session,
    ):
        exchange.session = session
        yield exchange


@asynccontextmanager
async def listening(exchange, path, *names):
    async with exchange.session.ws_connect(exchange.ws_url + path) as ws:
        await ws.send_json({"method": "SUBSCRIBE", "params": list(names), "id": 1})
        yield ws


async def get(exchange, path, **params):
    async with exchange.session.get(exchange.http_url + path, params=params) as response:
        return response.status, await response.json()


async def payloads(ws, enough, within_s=6.0):
    got = []
    async with asyncio.timeout(within_s):
        while not enough(got):
            payload = await ws.receive_json()
            if "e" in payload:
                got.append(payload)
    return got


async def nothing_comes(ws, wall_s=0.3):
    """No market data, that is; answers may."""
    try:
        async with asyncio.timeout(wall_s):
            while True:
                message = await ws.receive_json()
                assert "e" not in message
    except TimeoutError:
        return


async def test_a_silent_stream_answers_and_says_nothing_until_it_is_over():
    async with running() as exchange, listening(exchange, "/market/ws", MARKS, "ethusdt@markPrice@1s") as ws:
        await payloads(ws, lambda got: len(got) >= 2)
        exchange.happens(Silence(streams="btc*", for_s=120))
        await asyncio.sleep(0.05)
        heard = await payloads(ws, lambda got: len(got) >= 60)
        assert {payload["s"] for payload in heard[-50:]} == {"ETHUSDT"}
        await payloads(ws, lambda got: any(payload["s"] == "BTCUSDT" for payload in got))
        assert exchange.faults.incidents == []


async def test_a_half_open_connection_neither_answers_nor_ends_while_a_new_one_works():
    async with running() as exchange, exchange.session.ws_connect(exchange.ws_url + f"/market/ws/{MARKS}") as ws:
        await ws.receive_json()
        exchange.happens(HalfOpen())
        await asyncio.sleep(0.1)
        while True:
            try:
                async with asyncio.timeout(0.2):
                    await ws.receive_json()
            except TimeoutError:
                break
        await ws.ping()
        await ws.send_json({"method": "LIST_SUBSCRIPTIONS", "id": 7})
        await nothing_comes(ws)
        assert not ws.closed
        exchange.faults.incidents.clear()
        await asyncio.sleep(0.05)
        async with listening(exchange, "/market/ws", MARKS) as other:
            await payloads(other, lambda got: len(got) >= 3)
        await nothing_comes(ws)


async def test_a_connection_is_cut_in_the_middle_of_a_frame_or_ended_with_a_word():
    async with running() as exchange:
        async with listening(exchange, "/market/ws", MARKS) as ws:
            await payloads(ws, lambda got: len(got) >= 1)
            exchange.happens(Disconnect(mid_frame=True))
            with pytest.raises(TypeError, match="Received message"):
                await payloads(ws, lambda got: False)
        async with listening(exchange, "/public/ws", "btcusdt@bookTicker") as ws:
            exchange.happens(End(route="public"))
            while (await ws.receive()).type is aiohttp.WSMsgType.TEXT:
                pass
            assert ws.close_code == 1001


async def test_slow_sending_delays_and_loses_nothing():
    async with running(SlowSending(bytes_per_s=10_000), speed=100.0) as exchange:
        async with listening(exchange, "/market/ws", MARKS) as ws:
            heard = await payloads(ws, lambda got: len(got) >= 80)
            late_ms = exchange.clock.now_ms() - heard[-1]["E"]

    seconds = [payload["E"] for payload in heard]
    assert seconds == list(range(seconds[0], seconds[0] + 80_000, 1000))
    assert late_ms > 20_000


async def test_slow_reading_delays_answers():
    async with running(SlowReading(delay_s=0.4)) as exchange:
        async with exchange.session.ws_connect(exchange.ws_url + "/market/ws") as ws:
            before = asyncio.get_running_loop().time()
            await ws.send_json({"method": "LIST_SUBSCRIPTIONS", "id": 7})
            assert await ws.receive_json() == {"result": [], "id": 7}
            assert asyncio.get_running_loop().time() - before >= 0.4


async def test_reordered_frames_all_come_and_not_in_order():
    async with running(Reorder(share=0.3, by=4)) as exchange, listening(exchange, "/market/ws", MARKS) as ws:
        seconds = [payload["E"] for payload in await payloads(ws, lambda got: len(got) >= 200)]

    assert seconds != sorted(seconds)
    # What is missing at the end is still held back.
    missing = set(range(min(seconds), max(seconds), 1000)) - set(seconds)
    assert all(second > max(seconds) - 12_000 for second in missing)
    assert len(set(seconds)) == len(seconds)


async def test_truncated_frames_take_the_place_of_good_ones_and_huge_ones_come_between():
    async with running(Truncated(share=0.4), Huge(share=0.2, size=70_000)) as exchange:
        async with listening(exchange, "/market/ws", MARKS) as ws:
            texts = [(await ws.receive()).data for _ in range(120)]
        counted = exchange.stats.frames

    huge = [text for text in texts if text.startswith('{"padding"')]
    broken = [text for text in texts if not text.endswith("}")]
    assert {len(text) for text in huge} == {70_014}
    assert 10 < len(huge) <= counted["huge"]
    assert 20 < len(broken) <= counted["truncated"]
    assert all(text.startswith('{"e":"markPriceUpdate"') for text in broken)


async def test_rest_fails_in_its_ways():
    async with running(RestFault(kind="503d", path="/fapi/v1/time", times=1)) as exchange:
        assert (await get(exchange, "/fapi/v1/time"))[1]["code"] == -1008
        assert (await get(exchange, "/fapi/v1/time"))[0] == 200
        exchange.happens(RestFault(kind="torn", path="/fapi/v1/exchangeInfo"))
        exchange.happens(RestFault(kind="refused", path="/fapi/v1/ping"))
        exchange.happens(RestFault(kind="slow", path="/fapi/v1/time", delay_s=0.3))
        await asyncio.sleep(0.05)
        with pytest.raises(aiohttp.ClientPayloadError):
            await get(exchange, "/fapi/v1/exchangeInfo")
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await get(exchange, "/fapi/v1/ping")
        before = asyncio.get_running_loop().time()
        assert (await get(exchange, "/fapi/v1/time"))[0] == 200
        assert asyncio.get_running_loop().time() - before >= 0.3
        assert set(exchange.stats.rest_faults) == {"503d", "torn", "refused", "slow"}


async def test_a_clock_that_steps_back_repeats_nothing():
    async with running(speed=60.0) as exchange, listening(exchange, "/market/ws", MARKS) as ws:
        exchange.happens(WrongClock(offset_ms=20_000, for_s=30))
        heard = await payloads(ws, lambda got: exchange.clock.now_ms() - exchange._steady.now_ms() > 15_000)
        told = (await get(exchange, "/fapi/v1/time"))[1]["serverTime"]
        assert told - exchange._steady.now_ms() > 10_000
        heard += await payloads(ws, lambda got: len(got) >= 60)
        assert exchange.clock.now_ms() == pytest.approx(exchange._steady.now_ms(), abs=2_000)

    seconds = [payload["E"] for payload in heard]
    assert [after - before for before, after in itertools.pairwise(seconds)] == [1000] * (len(seconds) - 1)


async def test_a_contract_is_unknown_until_it_is_listed_and_then_streams():
    async with running(Listed(symbol="ETHUSDT", at_s=30), speed=120.0) as exchange:
        listed = exchange.exchange.onboard_ms(1)
        info = (await get(exchange, "/fapi/v1/exchangeInfo"))[1]
        assert [row["symbol"] for row in info["symbols"]] == ["BTCUSDT"]
        assert (await get(exchange, "/fapi/v1/klines", symbol="ETHUSDT", interval="1m"))[1]["code"] == -1121
        async with listening(exchange, "/market/ws", "ethusdt@kline_1m", "!contractInfo") as ws:
            heard = await payloads(ws, lambda got: any(p["e"] == "kline" and p["k"]["x"] for p in got))
        status, rows = await get(exchange, "/fapi/v1/klines", symbol="ETHUSDT", interval="1m")

    [news] = [payload for payload in heard if payload["e"] == "contractInfo"]
    assert (news["s"], news["cs"], news["ot"], news["E"]) == ("ETHUSDT", "TRADING", listed, listed)
    assert min(payload["k"]["t"] for payload in heard if payload["e"] == "kline") == listed
    assert (status, rows[0][0]) == (200, listed)


async def test_a_delisted_contracts_streams_end_and_a_halted_ones_book_stands():
    async with running(Delisted(symbol="ETHUSDT", at_s=30), Halted(symbol="BTCUSDT", at_s=30)) as exchange:
        names = ("ethusdt@kline_1m", "ethusdt@markPrice@1s", MARKS, "btcusdt@kline_1m")
        ends = (START // 60_000 + 2) * 60_000
        async with (
            listening(exchange, "/market/ws", *names) as market,
            listening(exchange, "/public/ws", "btcusdt@bookTicker", "ethusdt@bookTicker") as public,
        ):
            heard = await payloads(
                market, lambda got: any(p["e"] == "kline" and p["k"]["x"] and p["k"]["t"] == ends for p in got)
            )
            books = []
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    while True:
                        books.append(await public.receive_json())
        info = (await get(exchange, "/fapi/v1/exchangeInfo"))[1]
        marks = (await get(exchange, "/fapi/v1/premiumIndex"))[1]

    halted = next(p["k"] for p in heard if p["e"] == "kline" and p["k"]["x"] and p["k"]["t"] == ends)
    assert (halted["s"], halted["n"], halted["v"]) == ("BTCUSDT", 0, "0.000")
    assert max(p["E"] for p in heard if p.get("s") == "ETHUSDT" and p["e"] == "markPriceUpdate") < ends
    assert max(p["k"]["t"] for p in heard if p["e"] == "kline" and p["s"] == "ETHUSDT") == ends - 60_000
    assert ends - 75_000 < max(book["T"] for book in books if "T" in book) < ends
    assert [row["status"] for row in info["symbols"]] == ["TRADING_HALT", "SETTLING"]
    assert [row["nextFundingTime"] == 0 for row in marks] == [False, True]


async def test_incidents_are_given_and_seen_over_http():
    async with running() as exchange:
        url = exchange.http_url + "/sim/faults"
        added = {"add": [{"name": "rest", "kind": "500", "path": "/fapi/v1/time"}, {"name": "silence", "at_s": 999}]}
        async with exchange.session.post(url, json=added) as response:
            told = (await response.json())["incidents"]
        await asyncio.sleep(0.05)
        assert (await get(exchange, "/fapi/v1/time"))[0] == 500
        async with exchange.session.post(url, json={"add": [{"name": "silense"}]}) as response:
            assert (response.status, (await response.json())["error"]) == (
                400,
                "unknown incident 'silense', did you mean 'silence'?",
            )
        assert len(exchange.faults.incidents) == 2
        async with exchange.session.post(url, json={"clear": True}) as response:
            assert (await response.json())["incidents"] == []
        await asyncio.sleep(0.05)
        assert (await get(exchange, "/fapi/v1/time"))[0] == 200

    assert [(each["name"], each["at_s"]) for each in told] == [("rest", 0.0), ("silence", 999.0)]


async def test_incidents_are_given_on_the_command_line():
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "perpline.cli.simulate", "--symbols", "1", "--speed", "10"),
        *("--fault", "rest:kind=503c,path=/fapi/v1/time", "--fault", "halted:symbol=BTCUSDT"),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20), aiohttp.ClientSession() as session:
        ready = json.loads(await process.stdout.readline())
        async with session.get(ready["http"] + "/fapi/v1/time") as response:
            assert (response.status, (await response.json())["code"]) == (503, -1001)
        async with session.get(ready["http"] + "/sim/faults") as response:
            assert [each["name"] for each in (await response.json())["incidents"]] == ["rest", "halted"]
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
