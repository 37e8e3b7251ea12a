"""The exchange of the paper account: what it fills, when, at what price, and that it survives a restart."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from perpline.common.clock import ManualClock
from perpline.common.errors import PerplineError
from perpline.domain.instrument import Instrument
from perpline.domain.market import BookTicker, MarkPrice, Side
from perpline.domain.order import Income, OrderReport, OrderRequest, StopReport, StopRequest
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import TRADING_TABLES
from perpline.trading.paper import PaperExecutor, calibration_bps, estimated_price

NOW = 1_795_219_260_000
MINUTE = 60_000
HOUR = 60 * MINUTE

INSTRUMENT = Instrument(
    symbol="AUSDT",
    base_asset="A",
    quote_asset="USDT",
    contract_type="PERPETUAL",
    status="TRADING",
    onboard_time=0,
    tick_size=Decimal("0.1"),
    step_size=Decimal("0.01"),
    min_quantity=Decimal("0.01"),
    min_notional=Decimal(5),
    maintenance_margin_pct=Decimal("2.5"),
)


class Paper:
    """A paper executor at a market that a test moves, with everything it has told."""

    def __init__(self, store: SqliteStore, run_number: int = 1, start: str = "10000") -> None:
        self.store = store
        self.clock = ManualClock(NOW)
        self.books: dict[str, BookTicker] = {}
        self.reports: list[Any] = []
        self.refusals: list[tuple[str, PerplineError]] = []
        self.incomes: list[Income] = []
        self.told = asyncio.Event()
        self.set_book(99.9, 100.1)
        self.executor = PaperExecutor(
            store,
            self.clock,
            run_number,
            start_usdt=Decimal(start),
            fee_bps=Decimal(5),
            leverage=3,
            instrument=lambda symbol: INSTRUMENT if symbol in ("AUSDT", "BUSDT") else None,
            book=self.books.get,
            on_report=self.reports.append,
            on_refused=lambda client_id, error: self.refusals.append((client_id, error)),
            on_income=self.incomes.append,
        )

    def set_book(self, bid: float, ask: float, quantity: float = 1000.0, symbol: str = "AUSDT") -> None:
        self.books[symbol] = BookTicker(symbol, bid, quantity, ask, quantity, 1, NOW, NOW)

    def mark(self, price: float, symbol: str = "AUSDT", rate: float = 0.0001, next_funding: int = NOW + HOUR) -> None:
        now = self.clock.now_ms()
        self.executor.on_mark_price(MarkPrice(symbol, price, price, rate, next_funding, now, now))

    async def order(
        self, side: Side, quantity: str, client_id: str = "e1", reduce_only: bool = False, **values: Any
    ) -> Any:
        """Send it, and return what was told of it."""
        request = OrderRequest(
            symbol=values.pop("symbol", "AUSDT"),
            side=side,
            quantity=Decimal(quantity),
            client_id=client_id,
            reduce_only=reduce_only,
            **values,
        )
        self.executor.send(SimpleNamespace(request=request))  # type: ignore[arg-type]
        return await self.news()

    async def stop(self, side: Side, trigger: str, client_id: str = "s1", symbol: str = "AUSDT") -> Any:
        request = StopRequest(symbol=symbol, side=side, trigger_price=Decimal(trigger), client_algo_id=client_id)
        self.executor.send_stop(SimpleNamespace(request=request))  # type: ignore[arg-type]
        return await self.news()

    async def news(self) -> Any:
        """What was told since it was asked last: the one thing, or a list."""
        await asyncio.sleep(0)
        news: list[Any] = [*self.reports, *(error for _, error in self.refusals), *self.incomes]
        self.reports.clear()
        self.refusals.clear()
        self.incomes.clear()
        return news[0] if len(news) == 1 else news

    def state(self) -> Any:
        """What a restart must keep."""
        account = self.executor.snapshot()
        holdings = self.executor._holdings.items()
        held = {symbol: (one.quantity, one.entry) for symbol, one in holdings if one.quantity}
        stops = sorted((one.client_algo_id, one.trigger_price) for one in self.executor._stops.values())
        return account.wallet, account.available, held, stops


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def paper(store: SqliteStore) -> Paper:
    return Paper(store)


# Orders


async def test_a_market_order_fills_at_the_touch_on_the_tick_against_us_and_pays_a_takers_fee(paper: Paper) -> None:
    paper.set_book(99.93, 100.07)

    bought = await paper.order("buy", "2")
    sold = await paper.order("sell", "2", "e2", symbol="AUSDT", reduce_only=True)

    assert (bought.status, bought.average_price, bought.filled) == ("filled", Decimal("100.1"), Decimal(2))
    assert bought.fill.fee == Decimal("0.1001")
    assert (bought.fill.price, bought.fill.quantity, bought.fill.order_id) == (Decimal("100.1"), 2, bought.order_id)
    assert (sold.average_price, sold.fill.realized_pnl) == (Decimal("99.9"), Decimal("-0.4"))
    assert paper.executor.snapshot().wallet == Decimal(10_000) - Decimal("0.4") - Decimal("0.1001") - Decimal("0.0999")
    assert await paper.executor.positions() == []


async def test_what_the_best_level_does_not_hold_fills_deeper(paper: Paper) -> None:
    paper.set_book(99.0, 101.0, quantity=1.0)

    assert (await paper.order("buy", "3")).average_price == Decimal("102.0")  # 101, 102 and 103


async def test_the_outcome_is_told_in_the_loops_next_turn_and_never_within_the_call(paper: Paper) -> None:
    request = OrderRequest(symbol="AUSDT", side="buy", quantity=Decimal(1), client_id="e1", reduce_only=False)
    paper.executor.send(SimpleNamespace(request=request))  # type: ignore[arg-type]
    paper.executor.send(SimpleNamespace(request=request))  # type: ignore[arg-type]
    assert (paper.reports, paper.refusals) == ([], [])

    filled, refused = await paper.news()

    assert (filled.status, refused.code) == ("filled", -4116)


async def test_an_order_that_only_reduces_never_opens_or_turns_a_position(paper: Paper) -> None:
    assert (await paper.order("sell", "1", reduce_only=True)).code == -2022
    await paper.order("buy", "1")
    assert (await paper.order("buy", "1", "e2", reduce_only=True)).code == -2022

    closed = await paper.order("sell", "5", "x1", reduce_only=True)

    assert (closed.quantity, closed.filled, closed.fill.quantity) == (1, 1, 1)
    assert await paper.executor.positions() == []


async def test_without_a_book_nothing_is_opened_and_a_position_is_closed_at_the_mark_price(paper: Paper) -> None:
    await paper.order("buy", "1")
    paper.books.clear()
    paper.mark(98.765)

    assert "no book" in str(await paper.order("buy", "1", "e2"))
    assert (await paper.order("sell", "1", "x1", reduce_only=True)).average_price == Decimal("98.765")


async def test_an_order_that_the_margin_does_not_cover_is_refused(store: SqliteStore) -> None:
    paper = Paper(store, start="100")

    assert (await paper.order("buy", "3")).code == -2019
    assert (await paper.order("buy", "2.9", "e2")).status == "filled"
    assert (await paper.order("buy", "0.1", "e3")).code == -2019


async def test_a_limit_order_fills_within_its_price_or_ends_and_never_rests(paper: Paper) -> None:
    limit: dict[str, Any] = {"kind": "limit", "time_in_force": "IOC"}

    assert (await paper.order("buy", "1", "e1", **limit, price=Decimal("100.1"))).status == "filled"
    assert (await paper.order("buy", "1", "e2", **limit, price=Decimal("100.0"))).status == "expired"
    assert (await paper.order("sell", "1", "e3", **limit, price=Decimal("100.0"))).status == "expired"
    assert (await paper.order("buy", "1", "e4", **{**limit, "time_in_force": "GTC"})).code == -1115
    assert [each.quantity for each in await paper.executor.positions()] == [1]


# Stops


@pytest.mark.parametrize(
    ("side", "closing", "harmless", "deadly"), [("buy", "sell", 95.1, 95.0), ("sell", "buy", 104.9, 105.0)]
)
async def test_a_stop_rests_until_the_mark_price_touches_it_and_then_closes_the_whole_position(
    paper: Paper, side: Side, closing: Side, harmless: float, deadly: float
) -> None:
    paper.mark(100.0)
    await paper.order(side, "2")
    placed = await paper.stop(closing, str(deadly))
    assert (placed.status, placed.close_position) == ("new", True)
    assert await paper.executor.open_stops() == [placed]

    paper.mark(harmless)
    assert await paper.news() == []
    paper.set_book(deadly - 0.1, deadly + 0.1)
    paper.mark(deadly)
    finished, child = await paper.news()

    assert isinstance(finished, StopReport)
    assert (finished.status, finished.algo_id, finished.order_id) == ("finished", placed.algo_id, child.order_id)
    assert child.order_id not in (0, placed.algo_id)
    assert (child.client_id, child.side, child.fill.quantity) == ("s1", closing, 2)
    assert await paper.executor.positions() == await paper.executor.open_stops() == []
    assert await paper.executor.stop("s1") == finished
    paper.mark(deadly)
    assert await paper.news() == []


async def test_a_stop_that_would_trigger_at_once_is_refused(paper: Paper) -> None:
    paper.mark(100.0)

    assert (await paper.stop("sell", "100")).code == -2021
    assert (await paper.stop("buy", "99.9")).code == -2021
    assert await paper.executor.open_stops() == []


async def test_a_stop_of_a_closed_position_rests_as_an_orphan_until_it_is_cancelled_or_triggers(paper: Paper) -> None:
    paper.mark(100.0)
    await paper.stop("sell", "95", "s1")
    await paper.stop("sell", "94", "s2")

    paper.executor.cancel_stop("AUSDT", "s2")
    paper.executor.cancel_stop("AUSDT", "s3")
    assert (await paper.news()).status == "canceled"
    paper.mark(90.0)
    ended = await paper.news()

    assert (ended.client_algo_id, ended.status, ended.detail) == ("s1", "expired", "there was nothing to close")


# Liquidation and funding


@pytest.mark.parametrize(("side", "sound", "deadly"), [("buy", 68.5, 68.3), ("sell", 130.0, 130.2)])
async def test_a_position_whose_margin_is_used_up_is_liquidated_and_loses_all_of_it(
    paper: Paper, side: Side, sound: float, deadly: float
) -> None:
    paper.set_book(100.0, 100.0)
    await paper.order(side, "3")
    before = paper.executor.snapshot().wallet

    paper.mark(sound)
    assert await paper.news() == []
    paper.mark(deadly)
    closed = await paper.news()

    assert closed.client_id.startswith("autoclose-")
    assert (closed.kind, closed.status, closed.fill.fee) == ("liquidation", "filled", 0)
    assert round(before - paper.executor.snapshot().wallet, 6) == 100
    assert await paper.executor.positions() == []


async def test_funding_is_paid_once_when_the_settlement_has_passed(paper: Paper) -> None:
    paper.set_book(100.0, 100.0)
    paper.mark(100.0)
    await paper.order("buy", "2")
    await paper.order("sell", "2", "e2", symbol="AUSDT", reduce_only=False)
    await paper.order("sell", "3", "e3")
    before = paper.executor.snapshot().wallet

    paper.clock.set_ms(NOW + HOUR - 1)
    paper.mark(110.0, rate=0.001)
    assert await paper.news() == []
    paper.clock.set_ms(NOW + HOUR + 500)
    for _ in range(2):
        paper.mark(120.0, rate=0.5, next_funding=NOW + 2 * HOUR)
    income = await paper.news()

    # The short of 3 gets 0.1 % of its value at the mark price before the settlement.
    assert (income.kind, income.symbol, income.amount, income.at) == (
        "FUNDING_FEE",
        "AUSDT",
        Decimal("0.33"),
        NOW + HOUR,
    )
    assert paper.executor.snapshot().wallet == before + Decimal("0.33")


async def test_funding_of_a_time_when_nobody_looked_is_paid_from_what_is_stored(store: SqliteStore) -> None:
    paper = Paper(store)
    paper.set_book(100.0, 100.0)
    await paper.order("buy", "2")
    rates = [(NOW - MINUTE, 0.9), (NOW + HOUR + 5, 0.001), (NOW + 2 * HOUR - 3, -0.002), (NOW + 9 * HOUR, 0.9)]
    await store.add_rows("funding_rates", [("AUSDT", at, rate, 100.0, 1, at + MINUTE) for at, rate in rates])

    paper.clock.set_ms(NOW + 3 * HOUR)
    for _ in range(2):
        await paper.executor.settle_stored()
    incomes = await paper.news()

    assert [(income.at, income.amount) for income in incomes] == [
        (NOW + HOUR, Decimal("-0.2")),
        (NOW + 2 * HOUR, Decimal("0.4")),
    ]


async def test_funding_is_of_what_was_open_at_the_settlement(store: SqliteStore) -> None:
    paper = Paper(store)
    paper.set_book(100.0, 100.0)
    await paper.order("buy", "2")
    paper.clock.set_ms(NOW + 2 * HOUR)
    await paper.order("sell", "1", "x1", reduce_only=True)
    await store.add_rows("funding_rates", [("AUSDT", NOW + n * HOUR, 0.001, 100.0, 1, 0) for n in (1, 2, 3)])

    paper.clock.set_ms(NOW + 4 * HOUR)
    await paper.executor.settle_stored()

    assert [income.amount for income in await paper.news()] == [Decimal("-0.2"), Decimal("-0.2"), Decimal("-0.1")]


async def test_the_worker_looks_for_stored_settlements_every_minute(store: SqliteStore) -> None:
    paper = Paper(store)
    await paper.order("buy", "2")
    await store.add_rows("funding_rates", [("AUSDT", NOW + HOUR, 0.001, 100.0, 1, 0)])
    paper.clock.set_ms(NOW + HOUR + 1)
    running = asyncio.create_task(paper.executor.run())
    await asyncio.sleep(0)
    paid = asyncio.Event()
    paper.executor._on_income = lambda income: paid.set()

    paper.clock.advance(60)
    await asyncio.wait_for(paid.wait(), 5)

    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


# Restarts


async def save(store: SqliteStore, news: Any) -> None:
    """Store what was told, as the Trader does."""
    rows: dict[str, list[Any]] = {"fills": [], "incomes": [], "orders": []}
    for one in news if isinstance(news, list) else [news]:
        if isinstance(one, OrderReport) and one.fill is not None:
            values = {**asdict(one.fill), "account": "paper", "kind": "trade"}
            rows["fills"].append(TRADING_TABLES["fills"].row(values))
        elif isinstance(one, Income):
            rows["incomes"].append(TRADING_TABLES["incomes"].row({**asdict(one), "account": "paper"}))
        elif isinstance(one, StopReport):
            values = {
                **asdict(one),
                "account": "paper",
                "client_id": one.client_algo_id,
                "order_id": one.algo_id,
                "leg": "s",
                "reduce_only": True,
                "filled": "0",
                "created_at": NOW,
                "final_at": one.updated_at if one.status.is_final else None,
            }
            rows["orders"].append(TRADING_TABLES["orders"].row(values))
    await store.commit_trading(rows)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["buy", "sell"]), st.sampled_from(["AUSDT", "BUSDT"]), st.integers(1, 30)),
        st.tuples(st.sampled_from(["stop"]), st.sampled_from(["AUSDT", "BUSDT"]), st.integers(80, 120)),
        st.tuples(st.sampled_from(["mark"]), st.sampled_from(["AUSDT", "BUSDT"]), st.integers(60, 140)),
        st.tuples(st.sampled_from(["funding"]), st.just("AUSDT"), st.integers(-5, 5)),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_after_a_restart_everything_is_as_the_stored_rows_say(tmp_path_factory: Any, steps: list[Any]) -> None:
    store = SqliteStore(tmp_path_factory.mktemp("paper") / "perpline.db")
    await store.open()
    paper = Paper(store)
    paper.set_book(99.9, 100.1, 7.0, "BUSDT")
    for n, (what, symbol, number) in enumerate(steps):
        paper.clock.advance(600)
        if what == "stop":
            side: Side = "sell" if number < 100 else "buy"
            await save(store, await paper.stop(side, str(number), f"s{n}", symbol))
        elif what == "mark":
            paper.set_book(number - 0.1, number + 0.1, 5.0, symbol)
            paper.mark(float(number), symbol)
        elif what == "funding":
            paper.executor._settle(symbol, paper.clock.now_ms(), number / 1000, 100.0)
        else:
            await save(store, await paper.order(what, str(number), f"e{n}", symbol=symbol))
        await save(store, await paper.news())

    again = Paper(store, run_number=2)
    await again.executor.open()

    assert again.state() == paper.state()
    await store.close()


async def test_funding_that_was_paid_before_a_restart_is_not_paid_again(store: SqliteStore) -> None:
    first = Paper(store)
    await save(store, await first.order("buy", "2"))
    await store.add_rows("funding_rates", [("AUSDT", NOW + HOUR, 0.001, 100.0, 1, 0)])
    first.clock.set_ms(NOW + 2 * HOUR)
    await first.executor.settle_stored()
    await save(store, await first.news())

    again = Paper(store, run_number=2)
    await again.executor.open()
    again.clock.set_ms(NOW + 2 * HOUR)
    await again.executor.settle_stored()

    assert await again.news() == []
    assert again.executor.snapshot().wallet == first.executor.snapshot().wallet


async def test_a_position_that_is_turned_to_the_other_side_begins_at_the_price_of_the_turn(paper: Paper) -> None:
    await paper.order("buy", "1")
    paper.set_book(120.0, 121.0)

    turned = await paper.order("sell", "3", "e2")

    [held] = await paper.executor.positions()
    assert (held.quantity, held.entry_price) == (-2, Decimal(120))
    assert turned.fill.realized_pnl == Decimal("19.9")


async def test_ids_of_two_runs_are_never_the_same(store: SqliteStore) -> None:
    first, second = Paper(store, 1), Paper(store, 2)

    ids = {(await each.order("buy", "1")).fill.trade_id for each in (first, second)}

    assert len(ids) == 2


async def test_an_order_that_died_with_its_run_has_never_arrived(paper: Paper) -> None:
    order = OrderRequest(symbol="AUSDT", side="buy", quantity=Decimal(1), client_id="e1", reduce_only=False)
    stop = StopRequest(symbol="AUSDT", side="sell", trigger_price=Decimal(90), client_algo_id="s1")

    paper.executor.look_up(order, NOW)
    paper.executor.look_up(stop, NOW)
    told = await paper.news()
    await paper.order("buy", "1")
    await paper.stop("sell", "90")
    paper.executor.look_up(order, NOW)
    paper.executor.look_up(stop, NOW)

    assert [one.status for one in told] == ["never_arrived", "never_arrived"]
    assert [one.status for one in await paper.news()] == ["filled", "new"]


# Twins


async def test_live_fills_that_cost_more_than_the_estimate_make_paper_fills_cost_more(store: SqliteStore) -> None:
    rows = [(f"e{n}", "AUSDT", "buy", "1", "100.2", "100", 20.0, NOW + n) for n in range(25)]
    await store.commit_trading({"twins": rows})
    paper = Paper(store)
    await paper.executor.open()
    paper.set_book(100.0, 100.0)

    assert (await paper.order("buy", "1")).average_price == Decimal("100.2")
    assert (await paper.order("sell", "1", "x1", reduce_only=True)).average_price == Decimal("99.8")
    assert estimated_price(paper.books["AUSDT"], INSTRUMENT, "buy", Decimal(1)) == 100


def test_a_few_twins_say_nothing_and_wild_ones_not_too_much() -> None:
    assert calibration_bps([100.0] * 19) == 0
    assert calibration_bps([100.0] * 20) == 50
    assert calibration_bps([1.0, 2.0, 300.0] * 10) == 2


# Contracts that end


@pytest.mark.parametrize("short", [False, True])
async def test_a_position_in_a_contract_that_has_ended_is_settled_at_its_last_mark_price(
    store: SqliteStore, short: bool
) -> None:
    paper = Paper(store)
    paper.set_book(100.0, 100.0)
    await paper.order("sell" if short else "buy", "2")
    paper.mark(104.0)
    await paper.executor.settle_ended()
    assert await paper.news() == [], "it trades"

    paper.executor._instrument = lambda symbol: replace(INSTRUMENT, status="SETTLING")
    for _ in range(2):
        await paper.executor.settle_ended()
    report = await paper.news()

    assert (report.client_id[:21], report.side) == ("settlement_autoclose-", "buy" if short else "sell")
    assert (report.fill.price, report.fill.quantity) == (Decimal("104.0"), 2)
    assert report.fill.realized_pnl == (-8 if short else 8)
    assert await paper.executor.positions() == []


async def test_a_contract_that_ended_while_no_worker_ran_is_settled_by_the_stored_mark_and_not_before_it_is_sure(
    store: SqliteStore,
) -> None:
    first = Paper(store)
    first.set_book(100.0, 100.0)
    await save(store, await first.order("buy", "2"))
    marks = [("AUSDT", NOW + n * MINUTE, 97.0 - n, 97.0, 0.0, 0, 60, 0, 0) for n in range(3)]
    await store.add_rows("premium_index", marks)

    again = Paper(store, run_number=2)
    again.executor._instrument = lambda symbol: None
    await again.executor.open()
    for minutes in (0, 9):
        again.clock.set_ms(NOW + HOUR + minutes * MINUTE)
        await again.executor.settle_ended()
    assert await again.news() == [], "one list that lacks it may have been read badly"

    again.clock.set_ms(NOW + HOUR + 10 * MINUTE)
    await again.executor.settle_ended()
    report = await again.news()
    assert (report.fill.price, report.fill.realized_pnl) == (Decimal("95.0"), Decimal(-10))
    assert again.executor.snapshot().unrealized_pnl == 0
