"""The live picture: what the worker tells, told on once, in order, as what has changed."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from dashing import T, fill, position, settings_in, store_rows
from perpline.common.clock import ManualClock, SystemClock
from perpline.dashboard import snapshot
from perpline.dashboard.app import Dashboard
from perpline.dashboard.reading import Reading
from perpline.dashboard.snapshot import Picture, Viewer
from perpline.endpoint import Endpoint, Tell
from perpline.storage.store import TRADING_TABLES
from running import eventually

STATUS: dict[str, Any] = {
    **{"now": 1000, "speed": 2.0, "ready": True, "role": "all", "leadership": None, "connections": [{"live": True}]},
    **{"rest": {"weight_used": 7, "weight_limit": 2400}, "decisions": {"close_to_signal_ms": {"p50": 1.0, "p99": 2.0}}},
    "trading": {
        "modes": [{"symbol": "", "mode": "paper"}, {"symbol": "BUSDT", "mode": "off"}],
        "keys": False,
        "accounts": {
            "paper": {
                **{"equity": 10_007.0, "day_equity": 10_010.5},
                "positions": [{"symbol": "AUSDT", "side": 1, "quantity": 2.0, "protected": False}],
            }
        },
    },
    "streams": {"stale": {"market-0": ["BUSDT markPrice@1s"]}},
}


def symbol(price: float) -> dict[str, Any]:
    return {
        **{"price": price, "bid": 99.0, "ask": 101.0, "mark_price": 100.0, "index_price": 100.0},
        **{"funding_rate": 0.0001, "next_funding_time": 5, "ages_s": {"kline_1m": 0.44, "markPrice@1s": None}},
        "last_decision": {"close_time": 1, "status": "flat", "side": 0, "p": 0.5, "detail": ""},
    }


class Freezable(Endpoint):
    """It answers questions only while `going`, and a listener's goodbye only while `hearing`; `hung` is how many
    questions found it frozen."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.going, self.hearing = asyncio.Event(), asyncio.Event()
        self.going.set()
        self.hearing.set()
        self.hung = self.joined = 0

    async def _serve(self, socket: web.WebSocketResponse, tell: Tell) -> None:
        self.joined += 1
        await self.hearing.wait()
        await super()._serve(socket, tell)

    async def _get_status(self, request: web.Request) -> web.Response:
        self.hung += not self.going.is_set()
        await self.going.wait()
        return await super()._get_status(request)


class Worker:
    """A worker's endpoint whose words the test chooses. Without `tells` it is one of before /events."""

    def __init__(self, folder: Path, port: int = 0, *, tells: bool = True) -> None:
        self.status = {**STATUS, "symbols": {"AUSDT": symbol(100.0), "BUSDT": symbol(50.0)}}
        self.asked = 0
        self.asked_for: list[str] = []
        self.listeners = 0
        self.ends = False
        """Whether it says goodbye to each listener at once."""
        self._words: asyncio.Queue[bytes] = asyncio.Queue()
        self.endpoint = Freezable(
            port=port,
            data_dir=folder,
            status=self._status,
            trouble=list,
            metrics=bytes,
            symbol_status=self._symbol_status,
            tell=self._tell if tells else None,
        )

    def say(self, **event: Any) -> None:
        self._words.put_nowait(json.dumps(event).encode())

    def say_text(self, text: bytes) -> None:
        self._words.put_nowait(text)

    def begin(self) -> None:
        fields = ["price", "bid", "ask", "mark_price", "index_price", "funding_rate", "next_funding_time"]
        self.say(type="hello", now=1000, speed=2.0, symbols=["AUSDT", "BUSDT"], fields=fields)

    def _status(self) -> dict[str, Any]:
        self.asked += 1
        return self.status

    def _symbol_status(self, name: str) -> dict[str, Any]:
        self.asked_for.append(name)
        return {"symbols": {name: self.status["symbols"][name]}}

    async def _tell(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        self.listeners += 1
        while not self.ends:
            await send(await self._words.get())


@asynccontextmanager
async def watching(folder: Path, worker: Worker) -> AsyncIterator[Picture]:
    async with asking(folder, worker) as (picture, _):
        yield picture


@asynccontextmanager
async def asking(folder: Path, worker: Worker) -> AsyncIterator[tuple[Picture, Callable[..., Awaitable[Any]]]]:
    """The picture of this worker, and what a browser does that asks: path, and body to post; the answer's JSON."""
    await worker.endpoint.open()
    settings, clock = settings_in(folder, status_port=worker.endpoint.port), SystemClock()
    reading = Reading(settings, clock)
    picture = Picture(settings, reading, clock)
    dashboard = Dashboard(settings, clock, reading, picture, by="dashboard:test", is_secure=False)
    picture.want()
    running = asyncio.create_task(picture.run())
    client = TestClient(TestServer(dashboard.app()), cookie_jar=aiohttp.CookieJar(unsafe=True))

    async def ask(path: str, body: dict[str, Any] | None = None) -> Any:
        await client.get("/", params={"token": dashboard.token})
        if body is None:
            answer = await client.get(path)
        else:
            csrf = (await (await client.get("/api/session")).json())["csrf"]
            answer = await client.post(path, json=body, headers={"X-Perpline-CSRF": csrf})
        return await answer.json()

    try:
        async with client:
            yield picture, ask
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await reading.close()
        await worker.endpoint.close()


def changes(viewer: Viewer) -> dict[str, Any]:
    """By symbol, what the viewer's next message of changes says."""
    return next((message["rows"] for message in viewer.take() if message["type"] == "change"), {})


async def test_a_browser_is_told_everything_once_and_then_only_what_changed(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    async with watching(tmp_path, worker) as picture:
        await picture.known()
        viewer = Viewer(picture)
        [whole] = viewer.take()
        assert (whole["type"], whole["n"], list(whole["rows"])) == ("overview", 1, ["AUSDT", "BUSDT"])
        row = whole["rows"]["AUSDT"]
        assert (row["price"], row["spread_bps"], row["mode"], row["ages"][0]) == (100.0, 200.0, "paper", 0.4)
        held = row["position"]
        assert (held["account"], held["quantity"], held["protected"]) == ("paper", 2.0, False)
        assert whole["header"]["pnl_today"] == -3.5  # since what the daily loss limit counts from
        assert (whole["rows"]["BUSDT"]["mode"], whole["rows"]["BUSDT"]["stale"]) == ("off", ["markPrice@1s"])
        assert whole["header"]["weight"] == {"used": 7, "limit": 2400}
        assert (whole["header"]["mode"], whole["header"]["equity"], whole["header"]["worker"]) == (
            "paper",
            10_007.0,
            "live",
        )
        assert whole["header"]["exceptions"] == {"paper": [], "live": [], "off": ["BUSDT"]}
        assert viewer.take() == []

        worker.begin()
        worker.say(type="market", now=1200, rows={"AUSDT": [100.5, 99.0, 101.0, 100.0, 100.0, 0.0001, 5]})
        worker.say(type="market", now=1400, rows={"AUSDT": [100.6, 99.0, 101.0, 100.0, 100.0, 0.0001, 5]})
        await eventually(lambda: picture.rows["AUSDT"]["price"] == 100.6)
        [change] = viewer.take()
        assert (change["n"], change["now"], change["rows"]) == (2, 1400, {"AUSDT": {"price": 100.6}})
        assert "header" not in change
        assert viewer.take() == []


async def test_decisions_and_alarms_are_told_once_also_after_the_worker_was_away(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    log = {"event": "stream_stale", "level": "warning", "at": 5, "fields": {}}
    async with watching(tmp_path, worker) as picture:
        await picture.known()
        viewer = Viewer(picture)
        viewer.take()
        row = {"symbol": "AUSDT", "close_time": 60_000, "status": "ok", "side": 1, "p_cal": 0.6, "detail": ""}
        worker.begin()
        worker.say(type="logs", rows=[log])
        worker.say(type="decisions", rows=[row])
        worker.say(type="log", **{**log, "at": 6})
        worker.say(type="logs", rows=[log, {**log, "at": 6}])
        worker.say(type="log", **{**log, "at": 7})
        await eventually(lambda: picture.logged == 3)
        told = viewer.take()
        assert [message["type"] for message in told] == ["logs", "decisions", "change"]
        assert [each["at"] for each in told[0]["rows"]] == [5, 6, 7]
        assert told[1]["rows"] == [row]
        assert told[2]["rows"]["AUSDT"]["last"]["p"] == 0.6


async def test_a_symbol_that_is_followed_no_more_is_taken_away(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    async with watching(tmp_path, worker) as picture:
        await picture.known()
        viewer = Viewer(picture)
        viewer.take()
        worker.say(type="hello", now=1, speed=1.0, symbols=["BUSDT", "CUSDT"], fields=["price"])
        worker.say(type="market", now=2, rows={"AUSDT": [1.0], "CUSDT": [3.0]})
        await eventually(lambda: picture.rows.get("CUSDT", {}).get("price") == 3.0)
        told = changes(viewer)
        assert (told["AUSDT"], told["CUSDT"]["price"], list(picture.rows)) == (None, 3.0, ["BUSDT", "CUSDT"])


@pytest.mark.parametrize(
    "text",
    [b"{", b"[]", b'{"type":7}', b'{"type":"market","now":1,"rows":{"AUSDT":[NaN]}}', b'{"type":"ages"}', b"\xff"],
)
async def test_a_word_that_is_none_does_not_end_the_picture(tmp_path: Path, text: bytes) -> None:
    worker = Worker(tmp_path)
    async with watching(tmp_path, worker) as picture:
        await picture.known()
        worker.begin()
        worker.say_text(text)
        await eventually(lambda: worker.asked >= 2)  # it asks for the status instead, and listens again later
        assert picture.header["worker"] == "live"


async def test_a_worker_without_events_is_asked_each_second(tmp_path: Path) -> None:
    worker = Worker(tmp_path, tells=False)
    worker.status["trouble"] = ["the database is slow"]
    async with watching(tmp_path, worker) as picture:
        await picture.known()
        worker.status = {**worker.status, "symbols": {**worker.status["symbols"], "AUSDT": symbol(123.0)}}
        await eventually(lambda: picture.rows["AUSDT"]["price"] == 123.0)
        assert picture.header["trouble"] == ["the database is slow"]


async def test_while_no_worker_answers_nothing_claims_to_be_fresh_and_it_goes_on_by_itself(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    async with watching(tmp_path, worker) as picture:
        await picture.known()
        viewer = Viewer(picture)
        viewer.take()
        port = worker.endpoint.port
        await worker.endpoint.close()
        await eventually(lambda: picture.header["worker"] == "away")
        assert picture.status is None
        assert changes(viewer)["AUSDT"]["ages"] == [None] * 5
        assert picture.rows["AUSDT"]["price"] == 100.0

        again = Worker(tmp_path, port)
        await again.endpoint.open()
        await eventually(lambda: picture.header["worker"] == "live")
        assert changes(viewer)["AUSDT"]["ages"][0] == 0.4
        await again.endpoint.close()


async def test_what_an_account_holds_that_the_worker_does_not_look_after_is_shown_from_the_tables(
    tmp_path: Path,
) -> None:
    await fill(tmp_path)
    live = {"account": "live", "status": "open", "quantity": "3", "closed_at": None, "exit_reason": ""}
    rows = [position("p8", symbol="BUSDT", **live), position("p9", symbol="AUSDT", **live)]
    await store_rows(tmp_path, {"positions": rows})
    worker = Worker(tmp_path)
    worker.status["trading"] = {**STATUS["trading"], "live": None, "keys": True, "waiting_for_lease": ["live"]}
    async with asking(tmp_path, worker) as (picture, ask):
        await eventually(lambda: (picture.rows.get("BUSDT") or {}).get("position"))
        shown = {name: picture.rows[name]["position"] for name in ("AUSDT", "BUSDT")}
        assert {name: (each["account"], each["quantity"], each["protected"]) for name, each in shown.items()} == {
            "AUSDT": ("live", 3.0, None),
            "BUSDT": ("live", 3.0, None),
        }
        told = await ask("/api/trading")
        assert {name: each["told_by"] for name, each in told["accounts"].items()} == {
            "live": "tables",
            "paper": "worker",
        }
        assert [each["symbol"] for each in told["accounts"]["live"]["positions"]] == ["BUSDT", "AUSDT"]
        assert told["accounts"]["paper"]["positions"] == STATUS["trading"]["accounts"]["paper"]["positions"]
        assert (told["live"], told["keys"], told["waiting_for_lease"]) == (None, True, ["live"])


async def test_what_the_worker_tells_is_shown_where_the_database_is_away(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    worker.status["trading"] = {**STATUS["trading"], "live": None, "keys": False, "waiting_for_lease": []}
    async with asking(tmp_path, worker) as (picture, ask):
        await eventually(lambda: picture.header["worker"] == "live")
        trading, health = await ask("/api/trading"), await ask("/api/health")

    assert trading["accounts"]["paper"]["positions"] == STATUS["trading"]["accounts"]["paper"]["positions"]
    assert "database" in trading["database_error"]
    assert health["database_error"] == trading["database_error"]
    assert health["buffers"] == STATUS.get("buffers")


async def test_the_header_stays_with_the_live_account_that_moved_today(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    flat = {**STATUS["trading"]["accounts"]["paper"], "positions": [], "equity": 99_000.0, "day_equity": 100_000.0}
    accounts = {**STATUS["trading"]["accounts"], "live": flat}
    worker.status["trading"] = {**STATUS["trading"], "accounts": accounts, "modes": []}
    async with watching(tmp_path, worker) as picture:
        await eventually(lambda: picture.header["worker"] == "live")
        assert (picture.header["account"], picture.header["pnl_today"]) == ("live", -1000.0)
        worker.status["trading"]["accounts"]["live"] = {**flat, "equity": 100_000.0}
        worker.say(type="state", status={name: each for name, each in worker.status.items() if name != "symbols"})
        await eventually(lambda: picture.header["account"] == "paper")


async def test_while_the_worker_is_away_mode_and_positions_are_what_the_tables_have_and_a_post_is_seen_at_once(
    tmp_path: Path,
) -> None:
    await fill(tmp_path)
    worker = Worker(tmp_path)
    worker.status["now"] = T
    worker.status["trading"] = {**STATUS["trading"], "modes": [{"symbol": "", "mode": "live"}]}
    async with asking(tmp_path, worker) as (picture, ask):
        await picture.known()
        assert (picture.header["mode"], picture.rows["AUSDT"]["position"]["protected"]) == ("live", False)
        await worker.endpoint.close()
        await eventually(lambda: picture.header["worker"] == "away")
        await eventually(lambda: picture.header["mode"] == "paper")  # as the table says
        held = picture.rows["AUSDT"]["position"]
        assert (held["account"], held["position_id"], held["protected"]) == ("paper", "p2", None)
        done = await ask("/api/mode", {"mode": "off", "reason": "enough", "symbols": ["AUSDT"]})
        assert done["changed"][0]["mode"] == "off"
        assert (picture.header["mode"], picture.header["exceptions"]["off"]) == ("paper", ["AUSDT"])
        assert (picture.rows["AUSDT"]["mode"], picture.rows["BUSDT"]["mode"]) == ("off", "paper")


async def test_the_time_goes_on_while_the_worker_is_away_and_a_mode_whose_time_is_over_is_off(tmp_path: Path) -> None:
    await fill(tmp_path)
    until = {"symbol": "", "mode": "live", "positions": "keep", "changed_at": T, "by": "ana", "reason": "x"}
    await store_rows(tmp_path, {"modes": [TRADING_TABLES["modes"].row({**until, "until": T + 30_000})]})
    settings, clock = settings_in(tmp_path), ManualClock(speed=2.0)
    reading = Reading(settings, clock)
    picture = Picture(settings, reading, clock)
    picture._take_status({**STATUS, "now": T, "symbols": {"AUSDT": symbol(1.0)}})
    clock.advance(1.0)
    assert picture.now == T  # as the worker says
    picture._is_away("it died")
    modes = []
    for seconds in (10.0, 20.0):
        clock.advance(seconds)
        await picture.look_at_tables()
        modes.append((picture.now, picture.header["mode"]))
    await reading.close()

    assert modes == [(T + 11_000, "live"), (T + 31_000, "off")]


async def test_what_an_order_costs_is_told_with_how_old_its_book_is(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    facts = {"bid_quantity": 5.0, "ask_quantity": 5.0, "ages_s": {"bookTicker": 7200.0}}
    worker.status["symbols"] = {"AUSDT": {**symbol(100.0), **facts}, "BUSDT": {**symbol(50.0), **facts, "bid": 0.0}}
    worker.status["streams"] = {"stale": {"public-0": ["AUSDT bookTicker"]}}
    async with asking(tmp_path, worker) as (picture, ask):
        await picture.known()
        whole = worker.asked
        told = await ask("/api/slippage?symbol=AUSDT&side=buy&quote_usdt=100")
        assert (told["price"], told["age_s"], told["is_stale"]) == (101.0, 7200.0, True)
        empty = await ask("/api/slippage?symbol=BUSDT&side=sell&quote_usdt=100")
        assert empty == {"error": "the worker knows no book of BUSDT yet"}
        assert (worker.asked, worker.asked_for) == (whole, ["AUSDT", "BUSDT"])  # one symbol's, not those of all


async def test_a_worker_that_ends_each_connection_is_not_asked_in_a_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "RETRY_S", 0.2)
    worker = Worker(tmp_path)
    worker.ends = True
    async with watching(tmp_path, worker) as picture:
        await picture.known()
        await eventually(lambda: worker.asked >= 3)
        before = worker.asked
        await asyncio.sleep(0.7)
        assert worker.asked - before <= 4


async def test_the_header_names_the_symbols_that_are_traded_while_all_others_are_not(tmp_path: Path) -> None:
    names = [f"S{number:02}USDT" for number in range(30)]
    modes = [{"symbol": "", "mode": "off"}, *({"symbol": name, "mode": "paper"} for name in names)]
    accounts = {"paper": {"equity": 10_000.0, "positions": []}, "live": {"equity": 77.0, "positions": []}}
    worker = Worker(tmp_path)
    worker.status["trading"] = {"modes": modes, "keys": True, "accounts": accounts}
    async with watching(tmp_path, worker) as picture:
        await picture.known()
        header = picture.header
        assert (header["mode"], header["modes"], header["account"]) == ("off", {"paper": 30}, "paper")
        assert header["exceptions"] == {"paper": names[:20], "live": [], "off": []}

        trading = {"modes": [*modes, {"symbol": "BUSDT", "mode": "live"}], "keys": True, "accounts": accounts}
        worker.begin()
        worker.say(type="state", status={"now": 2000, "trading": trading})
        await eventually(lambda: picture.header["exceptions"]["live"] == ["BUSDT"])
        assert (picture.header["mode"], picture.header["account"], picture.header["equity"]) == ("off", "live", 77.0)


async def test_a_worker_that_hangs_is_away_at_once_although_its_connection_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "SILENT_S", 0.3)
    monkeypatch.setattr(snapshot, "RETRY_S", 0.05)
    worker = Worker(tmp_path)
    worker.endpoint.hearing.clear()
    async with watching(tmp_path, worker) as picture:
        await picture.known()
        await eventually(lambda: worker.endpoint.joined == 1)
        worker.endpoint.going.clear()
        began = asyncio.get_running_loop().time()
        await eventually(lambda: picture.header["worker"] == "away")
        assert asyncio.get_running_loop().time() - began < 2.0
        assert "does not answer" in picture.header["away"]
        await eventually(lambda: worker.endpoint.hung >= 2)  # it is asked again and again
        assert picture.header["worker"] == "away"
        worker.endpoint.going.set()
        worker.endpoint.hearing.set()
        await eventually(lambda: picture.header["worker"] == "live")


async def test_the_worker_is_left_alone_when_nobody_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "LINGER_S", 0.2)
    worker = Worker(tmp_path)
    async with watching(tmp_path, worker) as picture:
        await picture.known()
        await eventually(lambda: worker.listeners == 1)
        assert worker.asked == 1
        for number in range(10):
            worker.say(type="log", event="x", level="warning", at=number, fields={})
            await asyncio.sleep(0.05)
        await eventually(lambda: not picture._known.is_set())
        await picture.known()  # somebody looks again
        assert worker.asked == 2
