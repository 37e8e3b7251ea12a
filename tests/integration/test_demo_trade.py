"""The price moves of `demo --trade`: they reach the level they are for, and end."""

from typing import Any

import aiohttp
import pytest
from tests.running import eventually, simulated

from perpline.cli.demo_trade import MOVE_AFTER_S, MOVE_LASTS_S, Mover
from perpline.simulation.server import SimulatedExchange

BTC, ETH = "BTCUSDT", "ETHUSDT"


def trading(exchange: SimulatedExchange, *symbols: str, side: int = 1, protected: bool = True) -> dict[str, Any]:
    """A status with an open position in these symbols, levels 1 % around the mark price of now."""
    positions = []
    for number, symbol in enumerate(symbols):
        mark = marked(exchange, symbol)
        levels = {"stop": mark * (1 - 0.01 * side), "target": mark * (1 + 0.01 * side)}
        positions.append({"symbol": symbol, "mark_price": mark, "protected": protected, "opened_at": number, **levels})
    return {"accounts": {"paper": {"positions": positions}}}


def marked(exchange: SimulatedExchange, symbol: str) -> float:
    index = exchange.symbols.index(symbol)
    course = exchange.exchange.courses.get(index)
    found = None if course is None else course.at(exchange.clock.now_ms())
    return 80_000.0 if found is None else found[1]


@pytest.mark.parametrize("side", [1, -1])
async def test_a_price_goes_beyond_the_stop_and_is_the_markets_own_again_when_the_position_is_closed(side: int) -> None:
    async with simulated(speed=60) as exchange, aiohttp.ClientSession() as session:
        mover = Mover(exchange.http_url, session, 60)
        held = trading(exchange, BTC, side=side)
        stop = held["accounts"]["paper"]["positions"][0]["stop"]
        assert await mover.look(held, 0.0) == ""
        assert await mover.look(held, MOVE_AFTER_S - 1) == ""

        said = await mover.look(held, MOVE_AFTER_S)

        assert said == mover.said
        assert f"moves {BTC} to its stop" in said
        await eventually(lambda: side * (marked(exchange, BTC) - stop) < 0)
        assert mover.moved == {BTC: "stop"}
        await mover.look(trading(exchange), MOVE_AFTER_S + 5)
        index = exchange.symbols.index(BTC)
        assert (mover.said, exchange.exchange.courses[index].at(exchange.clock.now_ms())) == ("", None)


async def test_first_a_stop_then_a_target_each_in_another_symbol_and_no_more() -> None:
    async with simulated(speed=60) as exchange, aiohttp.ClientSession() as session:
        mover = Mover(exchange.http_url, session, 60)
        held = trading(exchange, BTC, ETH)
        now = 0.0
        for _ in range(60):
            await mover.look(held, now)
            now += 2.0

        assert mover.moved == {BTC: "stop", ETH: "target"}
        assert mover.said == ""


async def test_a_move_that_did_not_close_the_position_ends_all_the_same() -> None:
    async with simulated(speed=60) as exchange, aiohttp.ClientSession() as session:
        mover = Mover(exchange.http_url, session, 60)
        held = trading(exchange, BTC)
        await mover.look(held, 0.0)
        await mover.look(held, MOVE_AFTER_S)

        await mover.look(held, MOVE_AFTER_S + MOVE_LASTS_S + 0.1)

        assert mover.said == ""


async def test_a_position_without_its_stop_is_not_played_with() -> None:
    async with simulated(speed=60) as exchange, aiohttp.ClientSession() as session:
        mover = Mover(exchange.http_url, session, 60)
        held = trading(exchange, BTC, protected=False)
        await mover.look(held, 0.0)

        assert await mover.look(held, MOVE_AFTER_S + 1) == ""
        assert mover.moved == {}


async def test_an_exchange_that_does_not_answer_costs_nothing_but_the_move() -> None:
    async with simulated(speed=60) as exchange, aiohttp.ClientSession() as session:
        mover = Mover("http://127.0.0.1:9", session, 60)
        held = trading(exchange, BTC)
        await mover.look(held, 0.0)

        assert await mover.look(held, MOVE_AFTER_S) == ""
        assert mover.moved == {}
