"""The live path on the simulated exchange, over sockets: signal, entry, stop, exit, and what may go wrong between."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

import pytest
from tests.live_desk import LiveDesk, live_desk
from tests.running import eventually, settings_on, simulated

from perpline.domain.order import OrderRequest
from perpline.domain.signal import Decision
from perpline.simulation.incidents import RestFault
from perpline.simulation.script import Row
from perpline.simulation.server import SimulatedExchange
from perpline.storage.sqlite import SqliteStore

BTC = "BTCUSDT"


@pytest.mark.parametrize("transport", ["socket", "rest"])
@pytest.mark.parametrize("side", [1, -1])
async def test_a_signal_becomes_a_protected_position_that_its_stop_closes(
    tmp_path: Path, transport: str, side: int
) -> None:
    async with simulated(speed=10) as exchange, live_desk(exchange, tmp_path, order_transport=transport) as desk:
        exchange.script([Row(BTC, 0, "0%")])
        desk.signal(BTC, side)
        await eventually(lambda: desk.truth()["open_algo_orders"])
        position = desk.truth()["positions"][BTC]
        assert (Decimal(position["quantity"]) > 0) is (side > 0)
        await eventually(lambda: not desk.trader.manager.naked_since)
        exchange.script([Row(BTC, 0, f"{-1.2 * side}%", shape="step")])
        await eventually(lambda: not desk.truth()["positions"] and not desk.truth()["open_algo_orders"])
        await desk.quiet()
        await desk.check_books()
        [ours] = await desk.rows("positions")
        assert (ours["status"], ours["exit_reason"]) == ("closed", "stop")
        assert Decimal(ours["realized_pnl"]) < 0


async def test_the_exchanges_own_stop_closes_what_a_dead_process_left(tmp_path: Path) -> None:
    async with simulated(speed=10) as exchange:
        exchange.script([Row(BTC, 0, "0%")])
        async with live_desk(exchange, tmp_path) as desk:
            desk.signal(BTC, 1)
            await eventually(lambda: desk.truth()["open_algo_orders"] and not desk.trader.manager.naked_since)
            await desk.quiet()
        exchange.script([Row(BTC, 0, "-3%", shape="step")])
        await eventually(lambda: not exchange.private.truth("sim-key")["positions"])
        async with live_desk(exchange, tmp_path, mode=None) as desk:
            await desk.quiet()
            await desk.check_books()
            [ours] = await desk.rows("positions")
            assert (ours["status"], ours["exit_reason"]) == ("closed", "protective_stop")


async def test_flatten_closes_everything_and_leaves_no_order(tmp_path: Path) -> None:
    async with simulated(speed=10) as exchange, live_desk(exchange, tmp_path) as desk:
        for symbol in exchange.symbols:
            desk.signal(symbol, 1)
        await eventually(lambda: len(desk.truth()["open_algo_orders"]) == 3)
        await desk.set_mode("off", positions="flatten")
        await eventually(lambda: not desk.truth()["positions"] and not desk.truth()["open_algo_orders"])
        await desk.quiet()
        await desk.check_books()
        assert {row["exit_reason"] for row in await desk.rows("positions")} == {"flatten"}


async def test_one_that_finds_anothers_stop_makes_no_entries_and_leaves_it_where_it_is(tmp_path: Path) -> None:
    async with simulated(speed=10) as exchange, live_desk(exchange, tmp_path) as first:
        exchange.script([Row(BTC, 0, "0%")])
        first.signal(BTC, 1)
        await eventually(lambda: first.truth()["open_algo_orders"] and not first.trader.manager.naked_since)
        stops = first.truth()["open_algo_orders"]
        async with beside(exchange, tmp_path) as second:
            await eventually(lambda: "another" in second.trader.blocks)
            await second.set_mode("live")
            second.signal("ETHUSDT", 1)
            await eventually(lambda: second.trader.statistics.refusals == 1)
            live = second.accounts.live
            assert live is not None
            await live.reconciler.look()
            assert first.truth()["open_algo_orders"] == stops
        await first.quiet()
        await first.check_books()
        assert first.trader.blocks == {}


async def test_two_with_the_same_signals_are_told_apart_and_the_later_one_stops(tmp_path: Path) -> None:
    async with (
        simulated(speed=10) as exchange,
        live_desk(exchange, tmp_path) as first,
        beside(exchange, tmp_path) as second,
    ):
        exchange.script([Row(BTC, 0, "0%")])
        await second.ready()
        await second.set_mode("live")
        decisions: list[Decision] = []
        first.accounts.take_signals, take = decisions.extend, first.accounts.take_signals  # type: ignore[method-assign]
        first.signal(BTC, 1)
        take(decisions)
        second.accounts.take_signals(decisions)
        await eventually(lambda: "another" in first.trader.blocks or "another" in second.trader.blocks)
        await asyncio.sleep(0.5)
        assert len([desk for desk in (first, second) if "another" in desk.trader.blocks]) == 1
        entries = [each for each in first.truth()["orders"] if each["clientOrderId"].startswith("e.")]
        assert len({each["clientOrderId"] for each in entries}) == len(entries)


@asynccontextmanager
async def beside(exchange: SimulatedExchange, folder: Path) -> AsyncIterator[LiveDesk]:
    """Another perpline on the same account, with tables of its own."""
    own = folder / "beside"
    own.mkdir()
    store = SqliteStore(own / "live.db")
    await store.open()
    desk = LiveDesk(exchange, settings_on(exchange, own, size_usdt=500.0), store, random.Random(2))
    try:
        await desk.open()
        await eventually(lambda: "live" in desk.accounts.traders and desk.marks.latest, what="the second one trades")
        yield desk
    finally:
        await desk.close()
        await store.close()


async def test_a_moved_stop_closes_where_a_scripted_price_comes_back_to_it(tmp_path: Path) -> None:
    await side_by_side(_moved_stop, tmp_path, ["trailing_stop", "break_even"])


async def _moved_stop(folder: Path, kind: str) -> None:
    async with simulated(speed=10) as exchange, live_desk(exchange, folder, **{f"{kind}_pct": 0.4}) as desk:
        exchange.script([Row(BTC, 0, "0%")])
        desk.signal(BTC, 1)
        await eventually(lambda: desk.truth()["open_algo_orders"] and not desk.trader.manager.naked_since)
        [position] = desk.trader.manager.open_positions()
        first = position.stop
        [resting] = desk.truth()["open_algo_orders"]
        exchange.script([Row(BTC, 0, "0%"), Row(BTC, 8, "0.8%"), Row(BTC, 12, "0.8%"), Row(BTC, 20, "-0.2%")])
        await eventually(lambda: position.stop != first, what="the stop moves")
        await eventually(lambda: not desk.truth()["positions"])
        await desk.quiet()
        await desk.check_books()
        [ours] = await desk.rows("positions")
        assert (ours["exit_reason"], ours["status"]) == (kind, "closed")
        assert Decimal(ours["stop"]) > (first or 0)
        assert (Decimal(ours["realized_pnl"]) > 0) is (kind == "trailing_stop")
        [stop] = [row for row in await desk.rows("orders") if row["leg"] == "stop"]
        assert Decimal(stop["trigger_price"]) == Decimal(resting["triggerPrice"])  # that at the exchange has not moved


async def test_what_the_exchange_or_a_person_closes_is_booked_as_what_it_is(tmp_path: Path) -> None:
    await side_by_side(_closed_by_others, tmp_path, ["adl", "manual"])


async def _closed_by_others(folder: Path, kind: str) -> None:
    async with simulated(speed=10) as exchange, live_desk(exchange, folder) as desk:
        exchange.script([Row(BTC, 0, "0%")])
        desk.signal(BTC, 1)
        await eventually(lambda: desk.truth()["open_algo_orders"] and not desk.trader.manager.naked_since)
        quantity = desk.truth()["positions"][BTC]["quantity"]
        live = desk.accounts.live
        assert live is not None
        if kind == "adl":
            exchange.private.deleverage("sim-key", BTC, quantity)
        else:
            by_hand = OrderRequest(
                symbol=BTC, side="sell", quantity=Decimal(quantity), client_id="by-hand", reduce_only=True
            )
            await live.rest.place_order(by_hand)
        await eventually(lambda: not desk.trader.manager.open_positions(), what="our books have it closed")
        await eventually(lambda: not desk.truth()["open_algo_orders"], what="its stop is gone")
        await desk.quiet()
        await desk.trader.drain()
        [ours] = await desk.rows("positions")
        assert (ours["status"], ours["exit_reason"]) == ("closed", kind)
        assert [row["kind"] for row in await desk.rows("fills")] == ["trade", kind]


async def test_funding_reaches_the_position_that_paid_it(tmp_path: Path) -> None:
    before = 1_795_420_800_000 + 8 * 3_600_000 - 90_000  # 2026-11-23 16:00 UTC is a settlement
    async with simulated(speed=20, start_ms=before) as exchange, live_desk(exchange, tmp_path) as desk:
        exchange.script([Row(BTC, 0, "0%")])
        desk.signal(BTC, 1)
        await eventually(lambda: desk.truth()["open_algo_orders"], what="a position is open")

        def funding() -> list[Decimal]:
            return [Decimal(each["income"]) for each in desk.truth()["income"] if each["incomeType"] == "FUNDING_FEE"]

        await eventually(funding, what="the settlement")
        await eventually(lambda: desk.trader.manager.open_positions()[0].funding != 0, what="it is booked")
        await desk.quiet()
        await desk.trader.drain()
        [ours] = await desk.rows("positions")
        assert Decimal(ours["funding"]) == sum(funding())
        [income] = await desk.rows("incomes", kind="FUNDING_FEE")
        assert (Decimal(income["amount"]), income["position_id"]) == (sum(funding()), ours["position_id"])


async def side_by_side(play: Callable[[Path, str], Awaitable[None]], folder: Path, kinds: Sequence[str]) -> None:
    """Play each kind on an exchange of its own, all at once: most of it is waiting."""

    async def one(kind: str) -> None:
        own = folder / kind
        own.mkdir()
        try:
            await play(own, kind)
        except BaseException as error:
            error.add_note(f"with {kind}")
            raise

    await asyncio.gather(*(one(kind) for kind in kinds))


async def test_an_entry_whose_answer_fails_is_found_out_and_sent_once(tmp_path: Path) -> None:
    kinds = ["lost", "503a", "503a_taken", "408_taken", "503b", "503d", "500"]
    await side_by_side(_entry_whose_answer_fails, tmp_path, kinds)


async def _entry_whose_answer_fails(folder: Path, kind: str) -> None:
    async with simulated(speed=60) as exchange, live_desk(exchange, folder) as desk:
        await desk.happens(RestFault(kind=kind, path="/fapi/v1/order", method="POST", times=1))
        desk.signal(BTC, 1)
        await eventually(lambda: desk.trader.statistics.entries == 1)
        await desk.quiet()
        await desk.check_books()
        happened = kind in ("lost", "503a_taken", "408_taken")
        assert bool(desk.truth()["positions"]) is happened


async def test_a_stop_whose_answer_fails_is_found_out_and_the_position_protected(tmp_path: Path) -> None:
    await side_by_side(_stop_whose_answer_fails, tmp_path, ["lost", "503a", "503a_taken", "503b", "500"])


async def _stop_whose_answer_fails(folder: Path, kind: str) -> None:
    async with simulated(speed=60) as exchange, live_desk(exchange, folder) as desk:
        await desk.happens(RestFault(kind=kind, path="/fapi/v1/algoOrder", method="POST", times=1))
        desk.signal(BTC, 1)
        await eventually(lambda: desk.truth()["positions"])
        await desk.quiet()
        await desk.check_books()
        assert len(desk.truth()["open_algo_orders"]) == 1


@pytest.mark.parametrize("wanted", ["leave", "adopt"])
async def test_a_position_opened_by_hand_is_told_and_left_alone_or_adopted(tmp_path: Path, wanted: str) -> None:
    async with simulated(speed=60) as exchange, live_desk(exchange, tmp_path, unknown_positions=wanted) as desk:
        live = desk.accounts.live
        assert live is not None
        await live.rest.place_order(
            OrderRequest(symbol=BTC, side="buy", quantity=Decimal("0.01"), client_id="by-hand", reduce_only=False)
        )
        await eventually(lambda: desk.trader.statistics.alarms)
        await eventually(lambda: bool(desk.truth()["open_algo_orders"]) is (wanted == "adopt"))
        await desk.trader.drain()
        assert "unknown_position" in {row["kind"] for row in await desk.rows("reconciliations")}
