"""Single streams that fall silent while their connection and everything else goes on."""

import random
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from perpline.bootstrap import make_market_streams
from perpline.common.clock import ManualClock
from perpline.domain.market import BookTicker
from perpline.simulation.faults import Faults
from perpline.simulation.incidents import Silence
from perpline.simulation.server import SimulatedExchange
from running import Database, RunningWorker, next_close, settings_on, simulated, trouble, working


def lose(exchange: SimulatedExchange, names: str, *, for_good: bool) -> None:
    """The exchange forgets these streams on the connections that are open now; with `for_good` asking again on them
    does not help either."""
    for connection in exchange._connections:
        lost = [name for name in connection.subscriptions if fnmatchcase(name, names)]
        connection.unsubscribe(lost)
        if lost and for_good:
            subscribe = connection.subscribe
            connection.subscribe = lambda wanted, subscribe=subscribe: subscribe(
                [name for name in wanted if not fnmatchcase(name, names)]
            )


async def trouble_of(worker: RunningWorker) -> list[str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{worker.status_port}/healthz") as answer,
    ):
        said: dict[str, list[str]] = await answer.json()
    return said.get("trouble", [])


async def test_a_silent_stream_is_named_asked_for_again_given_a_new_connection_and_heals(tmp_path: Path) -> None:
    def begin(exchange: SimulatedExchange) -> None:
        lose(exchange, "btcusdt@markPrice@1s", for_good=False)
        lose(exchange, "ethusdt@markPrice@1s", for_good=True)

    after = await trouble(tmp_path, begin, minutes=3, first_data_deadline_s=0.8)

    [named] = after.said("streams_stale")
    assert (named["streams"], named["action"]) == (["btcusdt@markPrice@1s", "ethusdt@markPrice@1s"], "resubscribe")
    [escalated] = after.said("stream_still_stale")
    assert (escalated["stream"], escalated["action"]) == ("ethusdt@markPrice@1s", "new connection")
    assert [line["stream"] for line in after.said("stream_fresh_again")] == named["streams"]
    streams = after.status["streams"]
    assert (streams["stale"], streams["stale_resubscribed"], streams["stale_renewals"]) == ({}, 2, 1)
    assert [entry["rollovers"] for entry in after.status["connections"]] == [1, 0]
    assert [entry["losses"] for entry in after.status["connections"]] == [0, 0]
    assert after.gaps(open_only=True) == []


async def test_a_decision_without_a_fresh_mark_price_abstains_with_that_reason_and_the_stream_is_trouble(
    tmp_path: Path,
) -> None:
    with capture_logs():
        async with simulated() as exchange, working(exchange, tmp_path) as worker:
            await worker.until_ready()
            silence = Silence(streams="btcusdt@markPrice*")
            exchange.happens(silence)
            first = next_close(exchange.clock.now_ms(), 2)
            database = Database(tmp_path)
            await worker.until(lambda: database.decided_until(first, 3), what="a decision without a mark price")
            told = await trouble_of(worker)
            exchange.faults.incidents.remove(silence)
            healed = next_close(exchange.clock.now_ms(), 2)
            await worker.until(lambda: database.decided_until(healed, 3), what="a decision with one")
            at_last = await trouble_of(worker)

    [(status, detail)] = database.rows(
        "SELECT status, detail FROM signals WHERE symbol = 'BTCUSDT' AND close_time = ?", first
    )
    assert status == "skipped_stale"
    assert detail.startswith("mark price is ")
    others = "SELECT count(*) FROM signals WHERE symbol <> 'BTCUSDT' AND status = 'skipped_stale' AND close_time >= ?"
    assert database.value(others, first) == 0
    assert database.value("SELECT status FROM signals WHERE symbol = 'BTCUSDT' AND close_time = ?", healed) not in (
        "skipped_stale",
        "skipped_gap",
    )
    assert [line for line in told if "should speak and are silent" in line] == [
        "market-0: BTCUSDT markPrice@1s should speak and are silent"
    ]
    assert [line for line in at_last if "silent" in line] == []


@pytest.mark.full
async def test_a_worker_whose_route_delivers_nothing_says_so_once_and_goes_on_when_it_does(tmp_path: Path) -> None:
    faults = Faults(ack_and_nothing="*@[km]*")  # klines and mark prices: the whole of the market route
    with capture_logs() as logs:
        async with (
            simulated(faults=faults) as exchange,
            working(exchange, tmp_path, first_data_deadline_s=0.5, silence_limit_s=1.5) as worker,
        ):

            def told(event: str) -> list[Any]:
                return [line for line in logs if line["event"] == event]

            await worker.until(lambda: told("route_delivers_nothing"))
            await worker.until(lambda: len(told("connection_lost")) >= 2)
            faults.ack_and_nothing = ""
            await worker.until_ready()
            await worker.until(lambda: told("route_delivers"))
            assert await trouble_of(worker) == []

    [line] = told("route_delivers_nothing")
    assert line["url"] == f"{exchange.ws_url}/market/stream"


async def test_a_quiet_book_is_compared_with_the_one_that_rest_tells(tmp_path: Path) -> None:
    book = BookTicker("BTCUSDT", 100.0, 1.0, 100.1, 1.0, 7, 1_000, 1_000)
    known, told = {"BTCUSDT": book, "ETHUSDT": replace(book, symbol="ETHUSDT")}, [replace(book, update_id=9)]
    nothing = SimpleNamespace(get=lambda *asked: None, last_closed={"1m": {}}, route_batch=None)

    class Rest:
        async def book_tickers(self) -> list[BookTicker]:
            return [*told, replace(book, symbol="ETHUSDT", update_id=7, updated_at=9_000)]

    async with simulated() as exchange:
        settings = settings_on(exchange, tmp_path)
    clock = ManualClock()
    parts = SimpleNamespace(
        settings=settings, clock=clock, symbols=list(known), router=nothing, klines=nothing, books=known
    )
    streams = make_market_streams(parts, random.Random(1), None, Rest())
    for connection in streams.connections:
        connection._heard_before.update(dict.fromkeys(connection.streams, 0.0))
    ask, spoken_of = streams._ask, streams.freshness._spoken_of

    await ask()
    assert spoken_of("BTCUSDT", "bookTicker") is None  # it was heard a moment ago, and nobody has asked
    clock.advance(100.0)
    await ask()
    assert spoken_of("BTCUSDT", "bookTicker") == 1_000
    assert spoken_of("BTCUSDT", "kline_1m") is None
    assert spoken_of("ETHUSDT", "bookTicker") is None  # the same book as ours
