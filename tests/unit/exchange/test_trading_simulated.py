"""BinanceTrading, OrderSocket and UserStream against the simulated exchange, which was written without knowing them."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from msgspec.structs import replace

from perpline.common.errors import OutcomeUnknown, Refused, Unavailable
from perpline.domain.order import (
    AccountUpdate,
    Fill,
    LeverageChanged,
    OrderReport,
    OrderRequest,
    OrderStatus,
    StopReport,
    StopRequest,
    StopStatus,
    UserEvent,
)
from perpline.exchange.binance.credentials import make_credentials
from perpline.exchange.binance.endpoints import order_socket_url, spot_rest_url, user_stream_url
from perpline.exchange.binance.order_rate import OrderRate
from perpline.exchange.binance.order_socket import OrderSocket
from perpline.exchange.binance.rest import BinanceRest
from perpline.exchange.binance.trading_rest import BinanceTrading
from perpline.exchange.binance.user_events import decode_user_event
from perpline.exchange.binance.weight import WeightLedger
from perpline.exchange.ports import KeyPermissions, SymbolMargin
from perpline.simulation.incidents import RestFault, SlowEngine
from perpline.simulation.script import Row
from perpline.simulation.server import SimulatedExchange
from perpline.websocket.user_stream import UserStream

BTC = "BTCUSDT"


class Live:
    """Our side of the simulated account: requests, order socket and user stream, and everything that they told."""

    socket_task: asyncio.Task[None]

    def __init__(self, simulated: SimulatedExchange, key: str, secret: str, answer_within_s: float) -> None:
        clock = simulated.clock
        ledger, self.rate = WeightLedger(clock), OrderRate(clock)
        credentials = make_credentials(key, secret, "the simulated exchange")
        self.simulated = simulated
        self.market = BinanceRest(simulated.http_url, clock, ledger)
        self.rest = BinanceTrading(
            simulated.http_url,
            credentials,
            clock,
            ledger,
            self.rate,
            measure_offset=self.measure_offset,
            spot_url=spot_rest_url(simulated.ws_url, simulated.http_url),
        )
        self.events: list[UserEvent | OrderReport | StopReport] = []
        self.refused: dict[str, Exception] = {}
        self.unknown: list[str] = []
        self.heard = asyncio.Event()
        self.socket = OrderSocket(
            order_socket_url(simulated.ws_url),
            credentials,
            clock,
            random.Random(1),
            self.rate,
            ledger,
            on_report=self.hear,
            on_refused=self.hear_refusal,
            on_unknown=self.hear_nothing,
            measure_offset=self.measure_offset,
            answer_within_s=answer_within_s,
        )
        self.stream = UserStream(
            make_key=self.rest.make_listen_key,
            keep_key=self.rest.keep_listen_key,
            url_of=lambda key: user_stream_url(simulated.ws_url, key),
            decode=decode_user_event,
            on_connected=self.rest.account,
            on_event=self.hear,
            on_lost=lambda reason: None,
            clock=clock,
            rng=random.Random(1),
        )

    async def measure_offset(self) -> None:
        await self.market.measure_offset_ms()

    def hear(self, event: UserEvent) -> None:
        self.events.append(event)
        self.heard.set()

    def hear_refusal(self, name: str, error: Exception) -> None:
        self.refused[name] = error
        self.heard.set()

    def hear_nothing(self, name: str) -> None:
        self.unknown.append(name)
        self.heard.set()

    def requests_of(self, client_id: str) -> int:
        """How often the exchange was asked for a new order of this id."""
        seen = self.simulated.private.truth("sim-key")["requests"]
        return sum(each["seen"] for each in seen if (each["method"], each["client_id"]) == ("POST", client_id))

    async def happens(self, incident: RestFault | SlowEngine) -> None:
        """Let it happen from now on: the exchange takes it up at its next look at the clock, every 20 ms."""
        self.simulated.happens(incident)
        await asyncio.sleep(0.06)

    async def until(self, condition: object) -> None:
        async with asyncio.timeout(15):
            while not condition():
                self.heard.clear()
                await asyncio.wait_for(self.heard.wait(), 15)

    def orders(self, client_id: str, source: str = "stream") -> list[OrderReport]:
        return [e for e in self.events if isinstance(e, OrderReport) and (e.client_id, e.source) == (client_id, source)]

    def stops(self, client_algo_id: str, source: str = "stream") -> list[StopReport]:
        return [
            e
            for e in self.events
            if isinstance(e, StopReport) and (e.client_algo_id, e.source) == (client_algo_id, source)
        ]


@asynccontextmanager
async def live(*, ed25519: bool = False, answer_within_s: float = 5.0, **settings: object) -> AsyncIterator[Live]:
    async with SimulatedExchange(seed=5, symbols=2, **settings) as simulated:
        key, secret = "sim-key", "sim-secret"
        if ed25519:
            private = Ed25519PrivateKey.generate()
            key, secret = "ed-key", private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
            public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
            simulated.private.add_account(key, public_key=public)
        there = Live(simulated, key, secret, answer_within_s)
        there.socket_task = asyncio.create_task(there.socket.run())
        tasks = [there.socket_task, asyncio.create_task(there.stream.run())]
        try:
            async with asyncio.timeout(15):
                while not (there.socket.is_ready and there.stream.live):  # noqa: ASYNC110 nobody is told
                    await asyncio.sleep(0.01)
            yield there
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await there.rest.close()
            await there.market.close()


def an_order(client_id: str, side: str, quantity: str, *, reduce_only: bool = False) -> OrderRequest:
    return OrderRequest(symbol=BTC, side=side, quantity=Decimal(quantity), client_id=client_id, reduce_only=reduce_only)


async def test_an_account_is_set_up_and_understood() -> None:
    async with live() as there:
        rest = there.rest
        assert await rest.permissions() == KeyPermissions(can_trade=True, can_withdraw=False, bound_to_address=True)
        assert not await rest.is_hedge_mode()
        assert not await rest.is_multi_assets_mode()
        assert (await rest.account()).wallet == Decimal(100_000)
        assert await rest.positions() == []
        await rest.set_leverage(BTC, 3)
        await rest.set_isolated(BTC)
        await rest.set_isolated(BTC)
        assert await rest.margin(BTC) == SymbolMargin(isolated=True, leverage=3)
        await there.until(lambda: any(isinstance(event, LeverageChanged) for event in there.events))
        instrument = next(each for each in await there.market.instruments() if each.symbol == BTC)
        assert instrument.market_max_quantity > 0
        assert instrument.multiplier_up > 1 > instrument.multiplier_down > 0


async def test_an_order_over_rest_is_told_by_answer_stream_and_look() -> None:
    async with live() as there:
        answer = await there.rest.place_order(an_order("e.1.a.0", "buy", "0.020"))
        assert (answer.status, answer.filled, answer.source) == (OrderStatus.FILLED, Decimal("0.020"), "answer")
        await there.until(lambda: there.orders("e.1.a.0")[-1:] and there.orders("e.1.a.0")[-1].status.is_final)

        fills = [report.fill for report in there.orders("e.1.a.0") if report.fill]
        assert sum(fill.quantity for fill in fills) == Decimal("0.020")
        told = await there.rest.fills(BTC, order_id=answer.order_id)
        assert {fill.trade_id for fill in told} == {fill.trade_id for fill in fills}
        assert [(fill.price, fill.fee, fill.fee_asset) for fill in told] == [
            (fill.price, fill.fee, fill.fee_asset) for fill in fills
        ]
        found = await there.rest.order(BTC, "e.1.a.0")
        assert found is not None
        assert found.average_price is not None
        assert found.status == OrderStatus.FILLED
        (position,) = await there.rest.positions()
        assert (position.symbol, position.quantity) == (BTC, Decimal("0.020"))
        await there.until(lambda: any(isinstance(event, AccountUpdate) for event in there.events))
        assert [fill.trade_id for fill in await there.rest.fills(BTC, since=0)] == [fill.trade_id for fill in told]


async def test_an_order_over_the_socket_is_told_by_answer_and_stream() -> None:
    async with live() as there:
        assert there.socket.send(an_order("e.1.b.0", "sell", "0.010"))
        await there.until(lambda: there.orders("e.1.b.0", "answer") and there.orders("e.1.b.0"))
        assert there.orders("e.1.b.0", "answer")[0].status == OrderStatus.FILLED
        assert there.socket.send(an_order("x.1.b.0", "buy", "0.010", reduce_only=True))
        await there.until(lambda: there.orders("x.1.b.0", "answer"))
        assert await there.rest.positions() == []
        assert there.socket.send(an_order("x.1.b.1", "buy", "0.010", reduce_only=True))
        await there.until(lambda: there.refused)
        error = there.refused["x.1.b.1"]
        assert isinstance(error, Refused)
        assert error.code == -2022
        assert there.unknown == []


async def test_a_protective_stop_rests_is_found_and_is_cancelled() -> None:
    async with live() as there:
        await there.rest.place_order(an_order("e.1.c.0", "buy", "0.010"))
        stop = StopRequest(symbol=BTC, side="sell", trigger_price=Decimal(1000), client_algo_id="s.1.c.0")
        assert there.socket.send_stop(stop)
        await there.until(lambda: there.stops("s.1.c.0", "answer") and there.stops("s.1.c.0"))
        placed = there.stops("s.1.c.0", "answer")[0]
        assert (placed.status, placed.close_position, placed.kind) == (StopStatus.NEW, True, "stop_market")
        (found,) = await there.rest.open_stops()
        assert (found.algo_id, found.trigger_price, found.order_id) == (placed.algo_id, Decimal(1000), 0)
        again = await there.rest.stop("s.1.c.0")
        assert again is not None
        assert replace(again, received_at=found.received_at) == found

        other = StopRequest(symbol=BTC, side="sell", trigger_price=Decimal(900), client_algo_id="s.1.c.1")
        with pytest.raises(Refused):  # one for each side is what the exchange allows, or that it is a repetition
            await there.rest.place_stop(
                StopRequest(symbol=BTC, side="sell", trigger_price=Decimal(10**7), client_algo_id="s.1.c.2")
            )
        assert await there.rest.cancel_stop("s.1.c.0") is True
        assert await there.rest.cancel_stop("s.1.c.0") is False
        await there.until(lambda: there.stops("s.1.c.0")[-1].status == StopStatus.CANCELED)
        assert await there.rest.stop("s.1.c.9") is None
        await there.rest.place_stop(other)
        await there.rest.cancel_all(BTC)
        assert await there.rest.open_stops() == []


async def test_an_ed25519_key_trades_over_both_ways() -> None:
    async with live(ed25519=True) as there:
        await there.rest.place_order(an_order("e.1.g.0", "buy", "0.010"))
        assert there.socket.send(an_order("x.1.g.0", "sell", "0.010", reduce_only=True))
        await there.until(lambda: there.orders("x.1.g.0", "answer") and there.orders("x.1.g.0"))
        assert await there.rest.positions() == []


async def test_a_stop_that_triggers_names_the_order_it_became_and_that_order_fills() -> None:
    script = [Row(BTC, 0, 80_000.0), Row(BTC, 30, 80_000.0, shape="step"), Row(BTC, 40, 79_000.0)]
    async with live(speed=10.0, script=script) as there:
        await there.rest.place_order(an_order("e.1.h.0", "buy", "0.010"))
        stop = StopRequest(symbol=BTC, side="sell", trigger_price=Decimal(79_500), client_algo_id="s.1.h.0")
        await there.rest.place_stop(stop)
        await there.until(lambda: there.stops("s.1.h.0")[-1:] and there.stops("s.1.h.0")[-1].status.is_final)
        finished = there.stops("s.1.h.0")[-1]
        assert finished.status == StopStatus.FINISHED

        def child() -> list[Fill]:
            reports = [event for event in there.events if isinstance(event, OrderReport)]
            return [each.fill for each in reports if each.order_id == finished.order_id and each.fill]

        await there.until(lambda: sum(fill.quantity for fill in child()) == Decimal("0.010"))
        assert await there.rest.positions() == []
        found = await there.rest.stop("s.1.h.0")
        assert found is not None
        assert (found.status, found.order_id) == (StopStatus.FINISHED, finished.order_id)


async def test_a_limit_order_rests_and_is_cancelled() -> None:
    async with live() as there:
        order = OrderRequest(
            symbol=BTC,
            side="buy",
            quantity=Decimal("0.010"),
            client_id="e.1.d.0",
            reduce_only=False,
            kind="limit",
            price=await passive_price(there),
            time_in_force="GTX",
        )
        report = await there.rest.place_order(order)
        assert report.status == OrderStatus.NEW
        assert [each.client_id for each in await there.rest.open_orders()] == ["e.1.d.0"]
        cancelled = await there.rest.cancel_order(BTC, "e.1.d.0")
        assert cancelled is not None
        assert cancelled.status == OrderStatus.CANCELED
        assert await there.rest.cancel_order(BTC, "e.1.d.0") is None
        assert await there.rest.order(BTC, "e.1.d.9") is None


async def passive_price(there: Live) -> Decimal:
    """2 % below the mark price, on the tick."""
    mark = next(mark for mark in await there.market.mark_prices() if mark.symbol == BTC)
    instrument = next(each for each in await there.market.instruments() if each.symbol == BTC)
    return instrument.round_price(mark.mark_price * 0.98, "down")


async def test_income_is_told() -> None:
    async with live() as there:
        await there.rest.place_order(an_order("e.1.e.0", "buy", "0.010"))
        await there.rest.place_order(an_order("x.1.e.0", "sell", "0.010", reduce_only=True))
        now = there.simulated.clock.now_ms()
        kinds = {income.kind for income in await there.rest.income(now - 60_000, now + 60_000)}
        assert {"COMMISSION", "REALIZED_PNL"} <= kinds


async def test_an_expired_listen_key_is_replaced() -> None:
    async with live() as there:
        there.simulated.private.expire_listen_key("sim-key")
        async with asyncio.timeout(15):
            while not (there.stream.connects == 2 and there.stream.live):  # noqa: ASYNC110 nobody is told
                await asyncio.sleep(0.01)
        await there.rest.place_order(an_order("e.1.f.0", "buy", "0.010"))
        await there.until(lambda: there.orders("e.1.f.0"))


NOTHING_DONE = ("403", "503b", "503c", "503d")
NOBODY_KNOWS = ("408", "500", "502", "503a", "408_taken", "503a_taken", "lost", "empty", "refused", "torn")


async def test_whatever_fails_over_rest_no_order_is_sent_twice_and_what_is_said_of_it_is_true() -> None:
    async with live() as there:
        there.socket_task.cancel()
        for number, kind in enumerate((*NOTHING_DONE, *NOBODY_KNOWS)):
            name = f"e.1.i.{number}"
            await there.happens(RestFault(kind=kind, path="/fapi/v1/order", method="POST", times=1))
            expected = Unavailable if kind in NOTHING_DONE else OutcomeUnknown
            with pytest.raises(expected):
                await there.rest.place_order(an_order(name, "buy", "0.001"))
            found = await there.rest.order(BTC, name)
            assert (found is not None) == (kind in ("408_taken", "503a_taken", "lost", "torn")), kind
            assert there.requests_of(name) <= 1, kind

        report = await there.rest.place_order(an_order("e.1.j.0", "buy", "0.001"))
        assert report.status == OrderStatus.FILLED


async def test_whatever_fails_over_the_socket_no_order_is_sent_twice_and_what_is_said_of_it_is_true() -> None:
    async with live(answer_within_s=0.5) as there:
        for number, kind in enumerate(("503b", "503c", "503d", "408", "503a", "408_taken", "503a_taken", "lost")):
            name = f"e.1.k.{number}"
            await there.happens(RestFault(kind=kind, path="/fapi/v1/order", method="POST", times=1, via="ws_api"))
            assert there.socket.send(an_order(name, "buy", "0.001"))
            await there.until(lambda name=name: name in there.refused or name in there.unknown)
            assert (name in there.refused) == (kind in NOTHING_DONE), kind
            found = await there.rest.order(BTC, name)
            assert (found is not None) == (kind in ("408_taken", "503a_taken", "lost")), kind
            assert there.requests_of(name) <= 1, kind
        assert all(type(error) is Unavailable for error in there.refused.values())
        assert there.socket.send(an_order("e.1.k.z", "buy", "0.001"))
        await there.until(lambda: there.orders("e.1.k.z", "answer"))


async def test_a_socket_that_is_cut_with_an_order_under_way_leaves_it_unknown_and_comes_back() -> None:
    async with live() as there:
        await there.happens(SlowEngine(for_s=5.0, delay_s=2.0))
        assert there.socket.send(an_order("e.1.l.0", "buy", "0.001"))
        await asyncio.sleep(0.3)
        assert there.simulated.disconnect("ws_api") == 1
        await there.until(lambda: there.unknown)
        assert there.unknown == ["e.1.l.0"]
        assert not there.socket.send(an_order("e.1.l.1", "buy", "0.001"))
        async with asyncio.timeout(15):
            while not there.socket.is_ready:  # noqa: ASYNC110 nobody is told
                await asyncio.sleep(0.01)
        assert there.requests_of("e.1.l.0") <= 1
