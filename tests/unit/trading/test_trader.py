"""From a signal to a position with its stop, and out of it again."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import apsw
import pytest
from msgspec import structs
from tests.trading import NOW, fill, order_report
from tests.trading_desk import START, Desk, desk, signal

from perpline.common.errors import Refused, Unavailable
from perpline.domain.order import AccountSnapshot, OrderReport, OrderStatus, StopStatus, position_id
from perpline.trading.mode import Change, Mode
from perpline.trading.risk import Risk


def is_protected(found: Desk) -> bool:
    """Whether there is a position, filled and with its stop confirmed."""
    positions = found.trader.manager.open_positions()
    return any(each.status == "open" for each in positions) and not found.trader.manager.naked_since


async def opened(found: Desk, side: int = 1) -> Any:
    """A position that the played exchange has filled and protected."""
    found.market(2000.0)
    found.trader.take_signals([signal(side=side)])
    await found.until(lambda: found.exchange.orders)
    found.fills(found.exchange.orders[0])
    found.holds(found.exchange.stops[0])
    await found.written()
    [position] = found.trader.manager.open_positions()
    return position


async def test_a_signal_on_paper_becomes_a_position_with_a_stop_that_rests(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", account="paper", mode="paper") as found:
        found.market(2000.0)
        found.trader.take_signals([signal()])
        await found.until(lambda: is_protected(found))
        await found.written()
        [position] = await found.rows("positions")
        orders = {row["leg"]: row for row in await found.rows("orders")}
        assert (position["status"], position["side"], position["signal_id"]) == ("open", 1, signal().signal_id)
        assert (orders["entry"]["status"], orders["stop"]["status"]) == ("filled", "new")
        assert Decimal(orders["stop"]["trigger_price"]) < Decimal(position["stop"]) < Decimal(position["entry_price"])
        assert [message.kind for message in found.published] == ["position", "position"]


@pytest.mark.parametrize("mode", [None, "off", "live"])
async def test_in_another_mode_nothing_is_traded(tmp_path: Path, mode: str | None) -> None:
    async with desk(tmp_path / "a.db", account="paper", mode=mode) as found:
        found.market(2000.0)
        found.trader.take_signals([signal()])
        await found.until(lambda: not found.trader._signals)
        await found.written()
        assert await found.rows("orders") == await found.rows("positions") == []


@pytest.mark.parametrize(
    ("side", "mark", "reason"),
    [(1, 1979.9, "stop"), (1, 2020.0, "target"), (-1, 2020.1, "stop"), (-1, 1980.0, "target")],
)
async def test_a_level_that_is_touched_closes_the_position_and_takes_its_stop_away(
    tmp_path: Path, side: int, mark: float, reason: str
) -> None:
    async with desk(tmp_path / "a.db", account="paper", mode="paper") as found:
        found.market(2000.0)
        found.trader.take_signals([signal(side=side)])
        await found.until(lambda: is_protected(found))
        found.clock.advance(1)
        found.market(mark)
        await found.until(lambda: not found.trader.manager.open_positions())
        await found.until(lambda: not found.trader.manager.unsettled_stops())
        await found.written()
        [position] = await found.rows("positions")
        orders = {row["leg"]: row for row in await found.rows("orders")}
        assert (position["status"], position["exit_reason"]) == ("closed", reason)
        assert (orders["exit"]["status"], orders["stop"]["status"]) == ("filled", "canceled")
        assert len(await found.rows("fills")) == 2


async def test_at_its_deadline_a_position_is_closed(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", account="paper", mode="paper") as found:
        found.market(2000.0)
        found.trader.take_signals([signal(horizon_s=60)])
        await found.until(lambda: is_protected(found))
        found.clock.set_ms(NOW + 60_000)
        found.market(2001.0)
        await found.until(lambda: not found.trader.manager.open_positions())
        await found.written()
        [position] = await found.rows("positions")
        assert position["exit_reason"] == "timeout"


async def test_the_close_is_on_its_way_when_the_mark_price_has_been_taken_in(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        position = await opened(found)
        found.clock.advance(1)
        found.market(1980.0)  # nothing is awaited here
        close = found.exchange.orders[-1]
        assert (close.reduce_only, close.side, close.quantity) == (True, "sell", position.quantity)
        assert close.client_id.startswith("x.7.")


async def test_a_close_that_has_filled_is_not_sent_again_while_its_fills_are_on_their_way(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        await opened(found)
        found.clock.advance(1)
        found.market(1980.0)
        close = found.exchange.orders[-1]
        before = len(found.exchange.orders)
        found.trader.on_report(  # the answer; the user data stream is slow
            order_report(
                close.client_id,
                77,
                close.side,
                f"{close.quantity:f}",
                OrderStatus.FILLED,
                f"{close.quantity:f}",
                at=found.clock.exchange_now_ms(),
                reduce_only=True,
            )
        )
        await found.later(5)
        assert len(found.exchange.orders) == before


async def test_an_entrys_intent_is_in_the_database_before_it_is_sent(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        seen: list[Any] = []

        def look(request: Any) -> None:
            other = apsw.Connection(str(tmp_path / "a.db"))
            seen.append(list(other.execute("SELECT client_id, status FROM orders")))
            other.close()

        found.exchange.on_send = look
        found.market(2000.0)
        found.trader.take_signals([signal()])
        await found.until(lambda: seen)
        assert seen == [[(found.exchange.orders[0].client_id, "intent")]]


async def test_a_signal_that_comes_again_is_traded_once(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        found.market(2000.0)
        found.trader.take_signals([signal(), signal()])
        await found.until(lambda: found.exchange.orders)
        found.trader.take_signals([signal()])
        await found.until(lambda: not found.trader._signals)
        await found.written()
        assert len(found.exchange.orders) == 1


async def test_where_the_intent_cannot_be_stored_nothing_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        found.market(2000.0)

        async def away(*args: object) -> None:
            found.clock.advance(31)
            raise Unavailable("the disk is full")

        with monkeypatch.context() as patched:
            patched.setattr(found.store, "commit_trading", away)
            found.trader.take_signals([signal()])
            await found.until(lambda: found.trader.statistics.refusals)
        await found.later(4)
        await found.written()
        assert found.exchange.orders == []
        assert [row["rule"] for row in await found.rows("refusals")] == ["not_stored"]
        assert [row["status"] for row in await found.rows("orders")] == ["rejected"]


async def test_a_database_that_is_away_does_not_keep_a_stop_from_firing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        await opened(found)

        async def away(*args: object) -> None:
            raise Unavailable("the disk is full")

        with monkeypatch.context() as patched:
            patched.setattr(found.store, "commit_trading", away)
            found.clock.advance(1)
            found.market(1970.0)
            found.fills(found.exchange.orders[-1], "1970")
            await found.later(1)
        await found.later(3)
        await found.written()
        [position] = await found.rows("positions")
        assert (position["status"], position["exit_reason"]) == ("closed", "stop")


async def test_a_close_that_was_refused_is_tried_again_under_a_new_id_until_it_is_flat(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        await opened(found)
        found.clock.advance(1)
        found.market(1980.0)
        for _ in range(3):
            found.trader.on_refused(found.exchange.orders[-1].client_id, Unavailable("busy"))
            await found.later(6)
        closes = [request.client_id for request in found.exchange.orders[1:]]
        assert len(closes) == len(set(closes)) == 4
        found.fills(found.exchange.orders[-1], "1979")
        await found.later(10)
        assert len(found.exchange.orders) == 5


async def test_while_nobody_knows_what_became_of_a_close_no_second_one_is_sent(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        await opened(found)
        found.clock.advance(1)
        found.market(1980.0)
        found.trader.on_unknown(found.exchange.orders[-1].client_id)
        await found.later(20)
        found.market(1975.0)
        assert len(found.exchange.orders) == 2
        found.ends(found.exchange.orders[-1], OrderStatus.NEVER_ARRIVED)
        await found.later(6)
        assert len(found.exchange.orders) == 3


async def test_a_stop_that_would_trigger_at_once_closes_the_position_instead(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        found.market(2000.0)
        found.trader.take_signals([signal()])
        await found.until(lambda: found.exchange.orders)
        found.fills(found.exchange.orders[0])
        stop = found.exchange.stops[0]
        found.trader.on_refused(stop.client_algo_id, Refused("Order would immediately trigger.", -2021))
        assert [request.reduce_only for request in found.exchange.orders] == [False, True]


async def test_a_stop_that_the_exchange_lost_is_placed_again_and_the_naked_time_is_counted(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        position = await opened(found)
        found.clock.advance(5)
        found.holds(found.exchange.stops[0], StopStatus.CANCELED)
        await found.later(1)
        assert len(found.exchange.stops) == 2
        found.clock.advance(2)
        found.holds(found.exchange.stops[1])
        await found.written()
        assert not found.trader.manager.naked_since
        assert position.naked_ms >= 2_000


async def test_a_moment_without_a_stop_between_two_looks_counts_for_the_longest(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        found.market(2000.0)
        found.trader.take_signals([signal()])
        await found.until(lambda: found.exchange.orders)
        found.fills(found.exchange.orders[0])
        found.clock.advance(0.04)
        found.holds(found.exchange.stops[0])
        [position] = found.trader.manager.open_positions()
        assert position.naked_ms > 0
        assert found.trader.statistics.naked_ms_longest == position.naked_ms


async def test_a_position_without_a_stop_for_too_long_is_an_alarm(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live", naked_alarm_s=3.0) as found:
        found.market(2000.0)
        found.trader.take_signals([signal()])
        await found.until(lambda: found.exchange.orders)
        found.fills(found.exchange.orders[0])
        await found.later(2)
        assert found.trader.statistics.alarms == 0
        await found.later(2)
        assert found.trader.statistics.alarms == 1
        assert found.trader.status()["positions"][0]["protected"] is False


async def test_mode_off_with_flatten_closes_what_is_open_and_enters_no_more(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        await opened(found)
        found.clock.advance(1)
        await found.set_mode("off", positions="flatten")
        close = found.exchange.orders[-1]
        assert close.client_id.startswith("f.7.")
        assert close.reduce_only
        found.fills(close, "2001")
        found.market(2001.0)
        found.trader.take_signals([signal("ETHUSDT")])
        await found.written()
        assert len(found.exchange.orders) == 2
        assert [row["exit_reason"] for row in await found.rows("positions")] == ["flatten"]


async def test_positions_that_are_left_to_the_exchanges_stop_are_not_closed_by_ours(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        await opened(found)
        await found.set_mode("off", positions="protect")
        found.clock.advance(1)
        found.market(1979.0)
        assert len(found.exchange.orders) == 1
        found.holds(found.exchange.stops[0], StopStatus.CANCELED)
        await found.later(1)
        assert len(found.exchange.stops) == 2  # but it is seen to that it is there


async def test_what_was_left_to_the_exchanges_stop_is_closed_by_ours_again_when_a_person_says_so(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        await opened(found)
        await found.set_mode("off", positions="protect")
        found.clock.advance(1)
        found.market(1979.0)
        assert len(found.exchange.orders) == 1
        await found.set_mode("live", positions="keep")
        found.clock.advance(1)
        found.market(1979.0)
        assert len(found.exchange.orders) == 2


async def test_the_stop_at_the_exchange_that_triggers_closes_the_position(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        position = await opened(found)
        found.holds(found.exchange.stops[0], StopStatus.FINISHED, order_id=4711)
        child = order_report(
            "autogenerated",
            4711,
            "sell",
            f"{position.quantity:f}",
            OrderStatus.FILLED,
            f"{position.quantity:f}",
            at=found.clock.exchange_now_ms(),
        )
        execution = fill("sell", "1969", f"{position.quantity:f}", 900, 4711)
        found.trader.on_report(structs.replace(child, fill=execution))
        await found.written()
        assert position.exit_reason == "protective_stop"


async def test_a_restart_looks_up_what_may_have_been_sent_and_goes_on(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        found.market(2000.0)
        found.trader.take_signals([signal()])
        await found.until(lambda: found.exchange.orders)
        await found.written()
        sent = found.exchange.orders[0]
    async with desk(tmp_path / "a.db", at=START + 3_000, run=8) as found:
        assert [request.client_id for request in found.exchange.looked_up] == [sent.client_id]
        found.market(2000.0)
        found.fills(sent)
        [stop] = found.exchange.stops
        assert stop.client_algo_id.startswith("s.8.")
        assert found.exchange.orders == []  # nothing was sent a second time


async def test_a_restart_watches_what_is_open(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        await opened(found)
    async with desk(tmp_path / "a.db", at=START + 60_000, run=8) as found:
        assert found.exchange.stops == []  # the one that rests is known
        found.market(1979.0)
        [close] = found.exchange.orders
        assert close.reduce_only
        assert close.client_id.startswith("x.8.")


async def test_a_signal_of_the_last_process_waits_until_its_market_is_seen(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        await found.store.commit_decisions([signal()], [], [], 0)
    async with desk(tmp_path / "a.db", at=START + 1000, run=8) as found:
        found.trader._look_after()
        await found.written()
        assert found.exchange.orders == []
        found.market(2000.0)
        found.trader._look_after()
        await found.until(lambda: found.exchange.orders)
        found.trader._look_after()
        assert len(found.exchange.orders) == 1
        assert await found.rows("refusals") == []


async def test_after_a_start_a_mark_price_has_as_long_to_come_as_later_on(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        await opened(found)
    async with desk(tmp_path / "a.db", at=START + 60_000, run=8) as found:
        found.trader._look_after()
        assert found.trader.statistics.alarms == 0
        found.clock.advance(15.1)
        found.trader._look_after()
        assert found.trader.statistics.alarms == 1


async def test_a_close_that_was_begun_before_a_restart_is_finished_after_it(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        await opened(found)
        found.clock.advance(1)
        found.market(1979.0)
        await found.written()
        lost = found.exchange.orders[-1]
    async with desk(tmp_path / "a.db", at=START + 3_000, run=8) as found:
        found.market(1990.0)  # beyond no level any more
        found.ends(lost, OrderStatus.NEVER_ARRIVED)
        await found.later(1)
        [close] = found.exchange.orders
        assert close.client_id.startswith("x.8.")


async def test_after_a_stop_its_symbol_pauses_also_beyond_a_restart(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", account="paper", mode="paper") as found:
        found.market(2000.0)
        found.trader.take_signals([signal()])
        await found.until(lambda: is_protected(found))
        found.clock.advance(1)
        found.market(1979.0)
        await found.until(lambda: not found.trader.manager.open_positions())
        await found.written()
    async with desk(tmp_path / "a.db", account="paper", at=NOW + 61_000, run=8) as found:
        found.market(2000.0)
        found.trader.take_signals([signal(n=1)])
        await found.until(lambda: found.trader.statistics.refusals)
        await found.written()
        assert [row["rule"] for row in await found.rows("refusals")] == ["stop_cooldown"]


async def test_a_refusal_names_its_rule(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live", risk=Risk(max_total_usdt=50.0)) as found:
        found.market(2000.0)
        found.trader.take_signals([signal()])
        await found.until(lambda: found.trader.statistics.refusals)
        await found.written()
        [row] = await found.rows("refusals")
        assert (row["rule"], row["signal_id"]) == ("total_exposure", signal().signal_id)


async def test_a_symbol_whose_margin_cannot_be_set_is_not_traded(tmp_path: Path) -> None:
    async def prepare(symbol: str) -> None:
        raise Refused("cross margin")

    async with desk(tmp_path / "a.db", mode="live", prepare=prepare) as found:
        found.market(2000.0)
        found.trader.take_signals([signal()])
        await found.until(lambda: found.trader.statistics.refusals)
        await found.written()
        assert [row["rule"] for row in await found.rows("refusals")] == ["not_prepared"]
        assert found.exchange.orders == []


async def test_while_the_account_is_not_heard_only_closes_are_sent(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        await opened(found)
        found.trader.blocks["stream"] = "the user data stream is lost"
        found.market(2000.0, "ETHUSDT")
        found.trader.take_signals([signal("ETHUSDT")])
        await found.until(lambda: found.trader.statistics.refusals)
        found.clock.advance(1)
        found.market(1979.0)
        assert [request.reduce_only for request in found.exchange.orders] == [False, True]


def worth(equity: int) -> AccountSnapshot:
    return AccountSnapshot(
        wallet=Decimal(equity), available=Decimal(equity), unrealized_pnl=Decimal(0), updated_at=START
    )


async def rules_that_said_no(found: Desk, count: int) -> list[str]:
    await found.until(lambda: found.trader.statistics.refusals == count)
    await found.written()
    return [row["rule"] for row in await found.rows("refusals")]


async def test_a_day_that_has_lost_too_much_has_no_more_entries_and_the_next_one_has(tmp_path: Path) -> None:
    limits = Risk(daily_loss_limit_pct=3.0, max_drawdown_pct=50.0)
    async with desk(tmp_path / "a.db", mode="live", risk=limits) as found:
        found.trader._worth = lambda: worth(10_000)
        found.market(2000.0)
        await found.later(1)
        found.trader._worth = lambda: worth(9_700)
        found.trader.take_signals([signal()])
        assert await rules_that_said_no(found, 1) == ["daily_loss"]

        day = 86_400_000
        found.clock.set_ms(START + day)
        await found.later(1)
        found.market(2000.0)
        found.trader.take_signals([signal(n=1440, valid_until=START + day + 60_000)])
        await found.until(lambda: found.exchange.orders)


async def test_after_a_drawdown_only_a_person_lets_entries_be_made_again(tmp_path: Path) -> None:
    limits = Risk(daily_loss_limit_pct=50.0, max_drawdown_pct=10.0)
    path = tmp_path / "a.db"
    async with desk(path, mode="live", risk=limits) as found:
        for equity in (10_000, 9_000, 9_900):  # it comes back by itself, by what is open
            found.trader._worth = lambda equity=equity: worth(equity)
            found.clock.advance(60)
            await found.until(lambda: not found.trader._waiting())
            await found.later(1)
        found.market(2000.0)
        found.trader.take_signals([signal(n=3)])
        assert await rules_that_said_no(found, 1) == ["drawdown"]
        await found.set_mode("off")  # no word to go on
        await found.written()

    async with desk(path, at=START + 200_000, run=8, risk=limits) as found:
        found.trader._worth = lambda: worth(9_900)
        assert found.trader._curve.worst_drawdown_pct == 10
        found.clock.advance(1)
        await found.set_mode("live")
        found.market(2000.0)
        found.trader.take_signals([signal(n=4)])
        await found.until(lambda: found.exchange.orders)


async def test_a_mode_that_ends_by_itself_is_no_word_to_go_on_after_a_drawdown(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        for equity in (10_000, 8_900):
            found.trader._worth = lambda equity=equity: worth(equity)
            await found.later(1)
        row = found.modes.row_of("")
        found.trader.on_mode_changed(Change(row=row, old=Mode.LIVE, new=Mode.OFF))
        assert found.trader._curve.worst_drawdown_pct == 11
        found.trader.on_mode_changed(Change(row=row, old=Mode.OFF, new=Mode.LIVE))
        assert found.trader._curve.worst_drawdown_pct == 0


def foreign(order_id: int) -> OrderReport:
    other = position_id("ff" * 16)
    return order_report(f"e.99.{other}.0", order_id, "buy", "0.1", OrderStatus.NEW, at=START)


@pytest.mark.parametrize(("theirs", "stops"), [(500, True), (5_000, False)])
async def test_of_two_on_one_account_the_one_whose_first_order_came_later_stops(
    tmp_path: Path, theirs: int, stops: bool
) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        await opened(found)
        found.trader.on_report(foreign(theirs))
        assert bool(found.trader.blocked) is stops


@pytest.mark.parametrize(("later_ms", "stops"), [(2_500, False), (1_500, True), (-5_000, True)])
async def test_in_another_symbol_the_time_says_who_came_later_and_in_doubt_both_stop(
    tmp_path: Path, later_ms: int, stops: bool
) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        await opened(found)
        # Numbers of orders count within a symbol: this one's says nothing.
        found.trader.on_report(structs.replace(foreign(1), symbol="ETHUSDT", updated_at=START + later_ms))
        assert bool(found.trader.blocked) is stops


async def test_a_flatten_from_elsewhere_is_a_word_to_open_no_more(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        await opened(found)
        name = f"f.99.{position_id('ff' * 16)}.0"
        found.trader.on_report(structs.replace(foreign(99_999), client_id=name))
        assert "perpline flatten was run with other tables" in found.trader.blocked
        assert name in found.trader.blocked


async def test_a_live_order_has_a_paper_twin(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        await opened(found)
        [twin] = await found.rows("twins")
        assert (twin["live_price"], twin["client_id"]) == ("2000.1", found.exchange.orders[0].client_id)
        assert twin["difference_bps"] == pytest.approx((2000.1 / float(twin["paper_price"]) - 1) * 1e4)
