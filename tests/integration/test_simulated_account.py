"""The private side of the simulated exchange over real sockets: REST, the order API, user data, faults, scripts.

What an order does is matching's matter (tests/unit/simulation); here it is who hears of it, and what goes wrong.
"""

import asyncio
import base64
import hashlib
import hmac
import json
from collections import Counter
from contextlib import asynccontextmanager
from urllib.parse import urlencode

import aiohttp
import pytest
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from typer.testing import CliRunner

from perpline.cli.simulate import simulate
from perpline.common.clock import SystemClock
from perpline.simulation.faults import Faults, parsed
from perpline.simulation.incidents import (
    Disconnect,
    ExpireListenKeys,
    RestFault,
    Silence,
    SlowEngine,
    UserEvents,
)
from perpline.simulation.script import Row
from perpline.simulation.server import SimulatedExchange

START = 1_795_400_000_000 // 60_000 * 60_000 + 10_000
BTC = "BTCUSDT"
EVENTS = "ORDER_TRADE_UPDATE/ACCOUNT_UPDATE/ALGO_UPDATE/TRADE_LITE/ACCOUNT_CONFIG_UPDATE/listenKeyExpired"


class Trader:
    """A client of the private side: signs, asks, listens."""

    def __init__(self, exchange, session, key="sim-key", secret="sim-secret"):
        self.exchange, self.session, self.key, self.secret = exchange, session, key, secret

    async def ask(self, method, path, **params):
        status, body, _ = await self.ask_raw(method, path, self.signed(params))
        return status, body

    async def ask_raw(self, method, path, query="", form="", key=None):
        headers = {"X-MBX-APIKEY": self.key if key is None else key}
        if form:
            headers["content-type"] = "application/x-www-form-urlencoded"
        url = self.exchange.http_url + path + ("?" + query if query else "")
        async with self.session.request(method, url, data=form or None, headers=headers) as response:
            return response.status, await response.json(), response.headers

    def signed(self, params, joint=""):
        text = urlencode({**params, "recvWindow": 60_000, "timestamp": self.exchange.clock.now_ms()})
        return f"{text}&signature={self.signature(joint + text)}"

    def signature(self, text):
        return hmac.new(self.secret.encode(), text.encode(), hashlib.sha256).hexdigest()

    async def buy(self, client_id, **params):
        asked = {"symbol": BTC, "side": "BUY", "type": "MARKET", "quantity": "0.010", "newClientOrderId": client_id}
        return await self.ask("POST", "/fapi/v1/order", **{**asked, **params})

    async def listen_key(self):
        status, body, _ = await self.ask_raw("POST", "/fapi/v1/listenKey")
        assert status == 200
        return body["listenKey"]

    @asynccontextmanager
    async def listening(self, path):
        async with self.session.ws_connect(self.exchange.ws_url + path) as ws:
            yield ws

    @asynccontextmanager
    async def hearing(self):
        async with self.listening(f"/private/ws?listenKey={await self.listen_key()}&events={EVENTS}") as ws:
            yield ws

    @asynccontextmanager
    async def api(self, query=""):
        async with self.listening("/ws-fapi/v1" + query) as ws:
            yield ws

    async def api_ask(self, ws, method, request_id=1, wait_s=5.0, **params):
        params = {**params, "apiKey": self.key, "recvWindow": 60_000, "timestamp": self.exchange.clock.now_ms()}
        text = "&".join(f"{name}={params[name]}" for name in sorted(params))
        await ws.send_json(
            {"id": request_id, "method": method, "params": {**params, "signature": self.signature(text)}}
        )
        return await ws.receive_json(timeout=wait_s)

    def truth(self):
        return self.exchange.private.truth(self.key)

    def times_taken(self, client_id):
        rows = [row for row in self.truth()["requests"] if row["client_id"] == client_id and row["method"] == "POST"]
        return sum(row["taken"] for row in rows)


@asynccontextmanager
async def trading(speed=10.0, **options):
    options.setdefault("symbols", 2)
    async with (
        SimulatedExchange(seed=9, clock=SystemClock(speed, anchor_ms=START), **options) as exchange,
        aiohttp.ClientSession() as session,
    ):
        yield Trader(exchange, session)


async def heard(ws, enough, timeout_s=5.0):
    """Messages until `enough(messages)`."""
    messages = []
    async with asyncio.timeout(timeout_s):
        while not enough(messages):
            message = await ws.receive()
            assert message.type is aiohttp.WSMsgType.TEXT, message
            messages.append(message.json())
    return messages


async def silence(ws, wall_s=0.2):
    got = []
    try:
        async with asyncio.timeout(wall_s):
            while True:
                got.append((await ws.receive()).data)
    except TimeoutError:
        return got


def filled(messages):
    return any(each["e"] == "ORDER_TRADE_UPDATE" and each["o"]["X"] == "FILLED" for each in messages)


def kinds(messages):
    return Counter(each["e"] for each in messages)


# ---- REST


async def test_parameters_come_in_query_or_form_and_the_query_wins():
    async with trading() as trader:
        order = {"symbol": BTC, "side": "BUY", "type": "MARKET", "quantity": "0.010"}
        query = urlencode({**order, "newClientOrderId": "from-query"})
        by_form = await trader.ask_raw("POST", "/fapi/v1/order", form=trader.signed({**order, "newClientOrderId": "a"}))
        by_both = await trader.ask_raw(
            "POST", "/fapi/v1/order", query, trader.signed({"newClientOrderId": "from-form"}, joint=query)
        )

        assert (by_form[0], by_form[1]["clientOrderId"]) == (200, "a")
        assert (by_both[0], by_both[1]["clientOrderId"]) == (200, "from-query")
        assert by_both[2]["x-mbx-order-count-10s"] == "2"


async def test_who_cannot_prove_who_he_is_gets_nothing():
    async with trading() as trader:
        stranger = Trader(trader.exchange, trader.session, key="nobody")
        forger = Trader(trader.exchange, trader.session, secret="guessed")

        assert (await stranger.buy("a"))[1]["code"] == -2015
        assert (await forger.buy("a")) == (400, {"code": -1022, "msg": "Signature for this request is not valid."})
        assert trader.truth()["orders"] == []


async def test_a_market_path_is_for_reading():
    async with trading() as trader:
        status, body, _ = await trader.ask_raw("POST", "/fapi/v1/klines")

        assert (status, body["msg"]) == (404, "Path /fapi/v1/klines, Method POST is invalid")


async def test_weight_of_the_private_side_counts_with_the_rest():
    async with trading() as trader:
        await trader.ask_raw("GET", "/fapi/v1/exchangeInfo")
        _, _, headers = await trader.ask_raw("GET", "/fapi/v3/account", trader.signed({}))

        assert headers["x-mbx-used-weight-1m"] == "6"


async def test_accounts_are_added_and_asked_through_the_door_for_tests():
    async with trading() as trader:
        post, get, url = trader.session.post, trader.session.get, trader.exchange.http_url + "/sim/"
        async with post(url + "accounts", json={"key": "rich", "secret": "s", "balance": "1000000"}) as response:
            assert await response.json() == ["sim-key", "rich"]
        async with post(url + "accounts", json={"key": "rich", "secret": "s"}) as response:
            assert response.status == 400
        await Trader(trader.exchange, trader.session, "rich", "s").buy("first")
        async with get(url + "truth", params={"key": "rich"}) as response:
            truth = await response.json()
        async with get(url + "truth", params={"key": "poor"}) as response:
            assert response.status == 400

        assert [order["clientOrderId"] for order in truth["orders"]] == ["first"]
        assert float(truth["wallet"]) < 1_000_000
        assert trader.truth()["orders"] == []


# ---- the user data stream


async def test_every_form_of_the_address_hears_the_same():
    async with trading() as trader:
        key = await trader.listen_key()
        paths = (
            f"/private/ws/{key}",
            f"/private/ws?listenKey={key}",
            f"/private/ws?listenKey={key}&events={EVENTS}",
            f"/private/stream?listenKey={key}&events={EVENTS}",
            "/private/stream",
        )
        async with asyncio.TaskGroup() as group:
            sockets = [await trader.session.ws_connect(trader.exchange.ws_url + path) for path in paths]
            await sockets[-1].send_json({"method": "SUBSCRIBE", "params": [key], "id": "one"})
            assert await sockets[-1].receive_json(timeout=5) == {"result": None, "id": "one"}
            await trader.buy("a")
            tasks = [
                group.create_task(heard(ws, lambda got: filled([each.get("data", each) for each in got])))
                for ws in sockets
            ]
        raw, path, listed, combined, subscribed = (task.result() for task in tasks)
        for ws in sockets:
            await ws.close()

        assert [each["e"] for each in raw][:2] == ["ORDER_TRADE_UPDATE", "TRADE_LITE"]
        assert raw == path == listed
        assert combined == subscribed == [{"stream": key, "data": each} for each in raw]


async def test_a_key_elsewhere_a_wrong_key_and_another_account_are_silent():
    async with trading() as trader:
        trader.exchange.private.add_account("other", secret="s")
        other = Trader(trader.exchange, trader.session, "other", "s")
        key = await trader.listen_key()
        paths = (
            f"/ws/{key}",
            f"/ws?listenKey={key}",
            f"/market/ws/{key}",
            f"/private/ws/{'0' * 64}",
            f"/private/ws?listenKey={await other.listen_key()}",
        )
        sockets = [await trader.session.ws_connect(trader.exchange.ws_url + path) for path in paths]
        async with trader.listening(f"/private/ws/{key}") as ws:
            await trader.buy("a")
            await heard(ws, filled)

        assert await asyncio.gather(*(silence(ws) for ws in sockets)) == [[]] * len(paths)
        for ws in sockets:
            await ws.close()


async def test_only_the_named_events_are_sent():
    async with trading() as trader:
        key = await trader.listen_key()
        async with trader.listening(f"/private/ws?listenKey={key}&events=ORDER_TRADE_UPDATE/NO_SUCH_EVENT") as ws:
            await trader.buy("a")
            messages = await heard(ws, filled)
            await silence(ws)

            assert set(kinds(messages)) == {"ORDER_TRADE_UPDATE"}


async def test_one_socket_may_hear_two_accounts_each_with_its_events():
    async with trading() as trader:
        trader.exchange.private.add_account("other", secret="s")
        other = Trader(trader.exchange, trader.session, "other", "s")
        first, second = await trader.listen_key(), await other.listen_key()
        path = f"/private/stream?listenKey={first}&events=ACCOUNT_UPDATE&listenKey={second}&events=TRADE_LITE"
        async with trader.listening(path) as ws:
            await trader.buy("a")
            await other.buy("b")
            messages = await heard(ws, lambda got: len(got) == 2)

            assert [(each["stream"], each["data"]["e"]) for each in messages] == [
                (first, "ACCOUNT_UPDATE"),
                (second, "TRADE_LITE"),
            ]


@pytest.mark.parametrize("how", ["deleted", "incident", "an hour"])
async def test_an_expired_listen_key_is_told_once_to_who_asked_and_is_silent_then(how):
    async with trading(speed=10.0) as trader:
        key = await trader.listen_key()
        asked = f"/private/ws?listenKey={key}&events={EVENTS}"
        unasked = f"/private/ws?listenKey={key}&events=ORDER_TRADE_UPDATE"
        async with trader.listening(asked) as ws, trader.listening(unasked) as other:
            if how == "deleted":
                assert await trader.ask_raw("DELETE", "/fapi/v1/listenKey") is not None
            elif how == "incident":
                trader.exchange.happens(ExpireListenKeys())
            else:
                trader.exchange.private.engine.accounts["sim-key"].listen_until_ms = trader.exchange.clock.now_ms()
            [told] = await heard(ws, len)
            await trader.buy("a")

            assert (told["e"], told["listenKey"]) == ("listenKeyExpired", key)
            assert await silence(ws) == await silence(other) == []
            status, body, _ = await trader.ask_raw("PUT", "/fapi/v1/listenKey")
            assert (status, body["code"]) == (400, -1125)
            assert await trader.listen_key() != key


# ---- the order API


async def test_an_order_lives_through_the_order_api():
    async with trading() as trader, trader.hearing() as events, trader.api() as ws:
        price = f"{trader.exchange.exchange.mark(0, trader.exchange.clock.now_ms()).mark * 0.97:.1f}"
        order = {"symbol": BTC, "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "quantity": "0.010"}
        placed = await trader.api_ask(ws, "order.place", "one", **order, price=price, newClientOrderId="a")
        known = await trader.api_ask(ws, "order.status", 2, symbol=BTC, origClientOrderId="a")
        ended = await trader.api_ask(ws, "order.cancel", None, symbol=BTC, origClientOrderId="a")
        messages = await heard(events, lambda got: len(got) == 2)

        assert (placed["id"], placed["status"], placed["result"]["status"]) == ("one", 200, "NEW")
        assert "avgPrice" not in placed["result"]
        assert (known["id"], known["result"]["orderId"]) == (2, placed["result"]["orderId"])
        assert (ended["id"], ended["result"]["status"]) == (None, "CANCELED")
        assert [(each["o"]["c"], each["o"]["X"]) for each in messages] == [("a", "NEW"), ("a", "CANCELED")]
        assert [row["rateLimitType"] for row in placed["rateLimits"]] == ["REQUEST_WEIGHT", "ORDERS", "ORDERS"]
        assert [row["count"] for row in placed["rateLimits"]][1:] == [1, 1]


async def test_conditional_orders_are_placed_and_cancelled_through_the_order_api():
    async with trading() as trader, trader.api("?returnRateLimits=false") as ws:
        await trader.buy("a")
        mark = trader.exchange.exchange.mark(0, trader.exchange.clock.now_ms()).mark
        stop = {"symbol": BTC, "side": "SELL", "type": "STOP_MARKET", "closePosition": "true"}
        refused = await trader.api_ask(ws, "order.place", **stop, triggerPrice=f"{mark * 0.9:.1f}")
        placed = await trader.api_ask(
            ws,
            "algoOrder.place",
            algoType="CONDITIONAL",
            clientAlgoId="s",
            triggerPrice=f"{mark * 0.9:.1f}",
            workingType="MARK_PRICE",
            **stop,
        )
        ended = await trader.api_ask(ws, "algoOrder.cancel", clientAlgoId="s")

        assert (refused["status"], refused["error"]["code"]) == (400, -4120)
        assert (placed["status"], placed["result"]["algoStatus"]) == (200, "NEW")
        assert ended["result"]["code"] == "200"
        assert "rateLimits" not in placed


async def test_an_ed25519_key_logs_on_once_and_signs_no_more():
    private = Ed25519PrivateKey.generate()
    async with trading() as trader, trader.api() as ws:
        pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        trader.exchange.private.add_account("ed", public_key=pem)
        now_ms = trader.exchange.clock.now_ms()
        text = f"apiKey=ed&recvWindow=60000&timestamp={now_ms}"
        signature = base64.b64encode(private.sign(text.encode())).decode()
        params = {"apiKey": "ed", "recvWindow": 60_000, "timestamp": now_ms}

        async def ask(method, **params):
            await ws.send_json({"id": 1, "method": method, "params": params})
            return await ws.receive_json(timeout=5)

        before = await ask("account.status", timestamp=now_ms)
        forged = await ask("session.logon", **params, signature=base64.b64encode(b"0" * 64).decode())
        logged_on = await ask("session.logon", **params, signature=signature)
        state = await ask("session.status")
        placed = await ask(
            "order.place", symbol=BTC, side="BUY", type="MARKET", quantity="0.010", newClientOrderId="a",
            timestamp=trader.exchange.clock.now_ms(), recvWindow=60_000,
        )  # fmt: skip
        logged_out = await ask("session.logout")
        after = await ask("account.status", timestamp=trader.exchange.clock.now_ms())

        assert [each["error"]["code"] for each in (before, forged, after)] == [-1102, -1022, -1102]
        assert (logged_on["result"]["apiKey"], state["result"]["apiKey"], logged_out["result"]["apiKey"]) == (
            "ed",
            "ed",
            None,
        )
        assert (placed["status"], placed["result"]["clientOrderId"]) == (200, "a")


async def test_who_signs_with_a_secret_cannot_log_on():
    async with trading() as trader, trader.api() as ws:
        answer = await trader.api_ask(ws, "session.logon")

        assert (answer["status"], answer["error"]["code"]) == (400, -1022)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", -1135),
        ("[]", -1135),
        ('{"id":1}', -1102),
        ('{"id":1,"method":"order.fly"}', -1130),
        ('{"id":1,"method":"order.place","params":[]}', -1102),
        ('{"id":1,"method":"order.place","params":{}}', -1102),
        ('{"id":{},"method":"order.place","params":{}}', -1100),
        ('{"id":1,"method":"order.place","params":{"apiKey":"sim-key"}}', -1102),
        ('{"id":1,"method":"order.place","params":{"apiKey":"nobody","timestamp":1,"signature":"x"}}', -2015),
        ('{"id":1,"method":"depth","params":{"symbol":"NOPE"}}', -1121),
    ],
)
async def test_what_is_no_request_is_refused_and_the_connection_stays(text, code):
    async with trading() as trader, trader.api() as ws:
        await ws.send_str(text)
        answer = await ws.receive_json(timeout=5)
        await ws.send_json({"id": 9, "method": "ticker.book", "params": {"symbol": BTC}})
        again = await ws.receive_json(timeout=5)

        assert answer["status"] >= 400
        assert answer["error"]["code"] == code
        assert again["result"]["symbol"] == BTC


# ---- faults


@pytest.mark.parametrize("kind", ["lost", "503a_taken", "408_taken", "torn", "late"])
async def test_an_order_that_was_taken_looks_as_if_nobody_knew(kind):
    async with trading() as trader, trader.hearing() as ws:
        trader.exchange.happens(RestFault(kind=kind, path="/fapi/v1/order", method="POST", times=1, delay_s=0.1))
        await begun(trader.exchange, RestFault)
        try:
            status, body = await trader.buy("a")
        except (aiohttp.ClientError, json.JSONDecodeError):
            status, body = 0, {}
        messages = await heard(ws, filled)

        assert (status, body.get("code")) == {
            "lost": (0, None),
            "503a_taken": (503, -1000),
            "408_taken": (408, -1007),
            "torn": (0, None),
            "late": (200, None),
        }[kind]
        assert {each["o"]["c"] for each in messages if each["e"] == "ORDER_TRADE_UPDATE"} == {"a"}
        assert trader.times_taken("a") == 1


@pytest.mark.parametrize("kind", ["503a", "503b", "503c", "503d", "408", "500", "429", "refused", "empty", "502"])
async def test_an_order_that_was_not_taken_leaves_nothing_behind(kind):
    async with trading() as trader, trader.hearing() as ws:
        trader.exchange.happens(RestFault(kind=kind, path="/fapi/v1/order", method="POST", times=1))
        await begun(trader.exchange, RestFault)
        try:
            status, body = await trader.buy("a")
        except (aiohttp.ClientError, json.JSONDecodeError):
            status, body = 0, None

        code = {"503d": -1008, "503c": -1001, "408": -1007, "429": -1003, "500": -1000, "503a": -1000, "503b": -1000}
        # What is no JSON (the page of a 502, nothing at all) does not get through the client of these tests.
        assert status == (int(kind[:3]) if kind in code else 200 if kind == "empty" else 0)
        assert (body or {}).get("code") == code.get(kind)
        assert await silence(ws) == []
        assert trader.truth()["orders"] == []
        assert (await trader.buy("a"))[0] == 200


async def test_throttling_spares_what_reduces_and_cancels():
    async with trading() as trader:
        await trader.buy("a")
        trader.exchange.happens(RestFault(kind="503d", path="/fapi/v1/*order*"))
        await begun(trader.exchange, RestFault)
        opened = await trader.buy("b")
        closed = await trader.buy("c", side="SELL", reduceOnly="true")
        gone = await trader.ask("DELETE", "/fapi/v1/allOpenOrders", symbol=BTC)

        assert (opened[0], opened[1]["code"]) == (503, -1008)
        assert (closed[0], gone[0]) == (200, 200)


async def test_faults_of_one_door_leave_the_other_alone():
    async with trading() as trader, trader.api() as ws:
        trader.exchange.happens(RestFault(kind="503b", via="ws_api", path="/fapi/v1/order"))
        await begun(trader.exchange, RestFault)
        order = {"symbol": BTC, "side": "BUY", "type": "MARKET", "quantity": "0.010"}
        by_socket = await trader.api_ask(ws, "order.place", **order)

        assert (by_socket["status"], by_socket["error"]["msg"]) == (503, "Service Unavailable.")
        assert (await trader.buy("a"))[0] == 200


@pytest.mark.parametrize(("kind", "taken", "ends"), [("lost", 1, False), ("refused", 0, True), ("torn", 1, False)])
async def test_the_order_api_may_not_answer(kind, taken, ends):
    async with trading() as trader, trader.api() as ws:
        trader.exchange.happens(RestFault(kind=kind, times=1, path="/fapi/v1/order"))
        await begun(trader.exchange, RestFault)
        order = {"symbol": BTC, "side": "BUY", "type": "MARKET", "quantity": "0.010", "newClientOrderId": "a"}
        with pytest.raises(TypeError if ends else TimeoutError):
            # aiohttp: the end of a connection is no text.
            await trader.api_ask(ws, "order.place", wait_s=5.0 if ends else 0.5, **order)

        assert trader.times_taken("a") == taken


async def test_the_connection_of_the_order_api_is_lost_alone():
    async with trading() as trader, trader.hearing() as events, trader.api() as ws:
        trader.exchange.happens(Disconnect(route="ws_api"))
        async with asyncio.timeout(3):
            ended = await ws.receive()
        await trader.buy("a")

        assert ended.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR, aiohttp.WSMsgType.CLOSE)
        assert filled(await heard(events, filled))


async def test_events_are_repeated_late_and_lost_by_share():
    async with trading() as trader, trader.hearing() as ws:
        trader.exchange.happens(UserEvents(repeat_share=1.0))
        await begun(trader.exchange, UserEvents)
        await trader.buy("a")
        repeated = await heard(ws, lambda got: len(got) == 8)
        trader.exchange.faults.incidents.clear()
        trader.exchange.happens(UserEvents(type="TRADE_LITE", lost_share=1.0))
        trader.exchange.happens(UserEvents(type="ORDER_TRADE_UPDATE", late_share=1.0, late_s=5.0))
        await begun(trader.exchange, UserEvents, 2)
        await trader.buy("b")
        late = await heard(ws, filled)

        assert kinds(repeated) == {"ORDER_TRADE_UPDATE": 4, "ACCOUNT_UPDATE": 2, "TRADE_LITE": 2}
        assert all(repeated.count(each) == 2 for each in repeated)
        assert "TRADE_LITE" not in kinds(late)
        assert trader.exchange.stats.frames["user_events_late"] == 2
        assert trader.exchange.stats.frames["user_events_lost"] == 1


async def test_late_events_are_overtaken_by_others():
    async with trading(speed=20.0) as trader, trader.hearing() as ws:
        trader.exchange.happens(UserEvents(late_share=0.5, late_s=10.0))
        await begun(trader.exchange, UserEvents)
        for number in range(12):
            await trader.buy(f"a{number}", side="BUY" if number % 2 else "SELL")
        messages = await heard(ws, lambda got: len(got) == 48)

        times = [each["E"] for each in messages]
        assert times != sorted(times)
        assert kinds(messages) == {"ORDER_TRADE_UPDATE": 24, "ACCOUNT_UPDATE": 12, "TRADE_LITE": 12}


async def test_a_silent_user_stream_answers_pings_and_tells_nothing():
    async with trading() as trader, trader.hearing() as ws:
        trader.exchange.happens(Silence(route="private"))
        await begun(trader.exchange, Silence)
        await trader.buy("a")
        await ws.send_json({"method": "LIST_SUBSCRIPTIONS", "id": 3})

        assert (await ws.receive_json(timeout=5))["id"] == 3
        assert await silence(ws) == []
        assert trader.times_taken("a") == 1


async def test_a_slow_engine_takes_an_order_later_or_finds_it_too_old():
    async with trading(speed=10.0) as trader:
        trader.exchange.happens(SlowEngine(delay_s=2.0))
        await begun(trader.exchange, SlowEngine)
        sent_ms = trader.exchange.clock.now_ms()
        status, body = await trader.buy("a")
        too_old = await trader.ask_raw("POST", "/fapi/v1/order", _with_window(trader, 1_500))

        assert (status, body["updateTime"] - sent_ms >= 2_000) == (200, True)
        assert (too_old[0], too_old[1]["code"]) == (400, -5028)
        assert len(trader.truth()["orders"]) == 1


def _with_window(trader, recv_window):
    text = urlencode(
        {"symbol": BTC, "side": "BUY", "type": "MARKET", "quantity": "0.010", "recvWindow": recv_window}
        | {"timestamp": trader.exchange.clock.now_ms()}
    )
    return f"{text}&signature={trader.signature(text)}"


async def begun(exchange, kind, count=1):
    """Waits until so many incidents of this kind are on."""
    async with asyncio.timeout(5):
        while len(exchange._schedule.on(kind)) != count:  # noqa: ASYNC110 (incidents begin without telling anybody)
            await asyncio.sleep(0.005)


def test_faults_of_the_private_side_are_given_as_texts():
    faults = parsed(
        [
            "rest:kind=lost,path=/fapi/v1/order,method=POST,via=ws_api,share=0.1",
            "user_events:repeat_share=0.1,late_share=0.2,late_s=3",
            "slow_engine:delay_s=0.5,at_s=10,for_s=5",
            "expire_listen_keys:at_s=30",
            "disconnect:route=ws_api",
        ]
    )

    assert faults.incidents == [
        RestFault(kind="lost", path="/fapi/v1/order", method="POST", via="ws_api", share=0.1),
        UserEvents(repeat_share=0.1, late_share=0.2, late_s=3.0),
        SlowEngine(delay_s=0.5, at_s=10.0, for_s=5.0),
        ExpireListenKeys(at_s=30.0),
        Disconnect(route="ws_api"),
    ]
    assert faults.seed == Faults().seed


# ---- scripts


async def test_a_stop_fires_at_the_second_the_script_says():
    script = [Row(BTC, 0, 80_000.0), Row(BTC, 20, 80_000.0, shape="step"), Row(BTC, 30, 79_000.0)]
    async with trading(speed=10.0, script=script) as trader, trader.hearing() as ws:
        await trader.buy("entry")
        status, _ = await trader.ask(
            "POST", "/fapi/v1/algoOrder", algoType="CONDITIONAL", symbol=BTC, side="SELL", type="STOP_MARKET",
            triggerPrice="79500", workingType="MARK_PRICE", closePosition="true", clientAlgoId="stop",
        )  # fmt: skip
        messages = await heard(
            ws, lambda got: any(each["e"] == "ALGO_UPDATE" and each["o"]["X"] == "FINISHED" for each in got), 10
        )
        begins_ms = trader.exchange.exchange.courses[0].from_ms
        triggered = next(each for each in messages if each["e"] == "ALGO_UPDATE" and each["o"]["X"] == "TRIGGERED")
        entry, closing = (float(fill["price"]) for fill in trader.truth()["fills"][:: len(trader.truth()["fills"]) - 1])

        assert status == 200
        # The exchange looks every 20 ms of wall time, 200 ms of the market's here; on a busy host less often.
        assert 30_000 <= triggered["T"] - begins_ms < 45_000
        assert entry == pytest.approx(80_000, rel=1e-4)
        assert closing == pytest.approx(79_000, rel=1e-4)
        assert trader.truth()["positions"] == {}


async def test_streams_and_rest_tell_a_script_that_is_given_while_they_run():
    async with trading(speed=60.0) as trader, trader.listening("/market/ws") as ws:
        exchange = trader.exchange
        await ws.send_json({"method": "SUBSCRIBE", "params": ["btcusdt@markPrice@1s", "btcusdt@kline_1m"], "id": 1})
        async with trader.session.post(
            exchange.http_url + "/sim/script", data="symbol,time,price\nBTCUSDT,30,-10%\nBTCUSDT,90,+10%\n"
        ) as response:
            begins_ms = (await response.json())["from"]
        messages = await heard(
            ws, lambda got: any(each.get("E", 0) > begins_ms + 190_000 for each in got), timeout_s=15
        )
        marks = {each["E"]: float(each["p"]) for each in messages if each.get("e") == "markPriceUpdate"}
        course = exchange.exchange.courses[0]
        closed = [each["k"] for each in messages if each.get("e") == "kline" and each["k"]["x"]]
        truth = exchange.closed_candles(BTC, "1m", closed[0]["t"], closed[-1]["t"] + 1)
        now_ms = exchange.clock.now_ms()

        scripted = [ms for ms in marks if ms >= begins_ms + 30_000]
        assert len(scripted) > 100
        assert [marks[ms] for ms in scripted] == pytest.approx([course.at(ms)[1] for ms in scripted], abs=1e-6)
        assert [[k["t"], k["o"], k["h"], k["l"], k["c"], k["v"]] for k in closed] == [row[:6] for row in truth]
        assert exchange.private.engine.last(0) / 1e8 == pytest.approx(course.at(now_ms)[0], rel=1e-3)


async def test_a_script_is_shown_and_taken_back():
    async with trading(script=[Row(BTC, 0, 80_000.0)]) as trader:
        url = trader.exchange.http_url + "/sim/script"
        async with trader.session.get(url) as response:
            shown = await response.json()
        async with trader.session.post(url, data="symbol,time,price\nNOPEUSDT,0,1\n") as response:
            refused = response.status, await response.json()
        async with trader.session.delete(url) as response:
            assert response.status == 200
        now_ms = trader.exchange.clock.now_ms()

        assert shown[BTC][0]["prices"] == [80_000.0]
        assert refused == (400, {"error": "NOPEUSDT is no contract of this exchange"})
        assert trader.exchange.exchange.mark(0, now_ms + 1_000).mark != 80_000.0


def test_a_script_that_cannot_be_read_is_refused_before_anything_runs(tmp_path):
    app = typer.Typer()
    app.command()(simulate)
    bad, unknown = tmp_path / "bad.csv", tmp_path / "unknown.csv"
    bad.write_text("symbol,time,price\nBTCUSDT,0,-1\n")
    unknown.write_text("symbol,time,price\nNOPEUSDT,0,1\n")

    for path, said in ((bad, "line 2"), (unknown, "NOPEUSDT"), (tmp_path / "none.csv", "does not exist")):
        result = CliRunner().invoke(app, ["--script", str(path)], env={"COLUMNS": "300"})
        assert result.exit_code == 2
        assert said in result.output
