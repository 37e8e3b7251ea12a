"""The live path on the simulated exchange, over sockets: signal, entry, stop, exit, and what may go wrong between."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from pathlib import Path

import pytest
from tests.live_desk import live_desk
from tests.running import eventually, simulated

from perpline.domain.order import OrderRequest
from perpline.simulation.incidents import RestFault
from perpline.simulation.script import Row

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
