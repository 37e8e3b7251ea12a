import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from perpline.domain.order import (
    AccountUpdate,
    ClientId,
    ExchangePosition,
    Income,
    Leg,
    OrderStatus,
    StopStatus,
)
from perpline.storage.store import TRADING_TABLES
from perpline.trading.order_manager import UNEXPLAINED_MS, Changes, OrderManager
from perpline.trading.risk import ApprovedStop, approve_stop
from trading import (
    INSTRUMENT,
    NOW,
    RISK,
    RUN,
    Life,
    approved_close,
    approved_entry,
    fill,
    order_report,
    state,
    stop_report,
)

FILLED, NEW, PARTIAL = OrderStatus.FILLED, OrderStatus.NEW, OrderStatus.PARTIALLY_FILLED


def entered(manager: OrderManager, side: int = 1, quantity: str = "0.05") -> Any:
    """A position that is open, and its entry's client id."""
    approved = approved_entry(side)
    manager.intend(approved, NOW)
    name, position = approved.request.client_id, approved.position
    whole = fill(position.entry_side, "2000", quantity, 1, 11, name)
    manager.apply(order_report(name, 11, position.entry_side, "0.05", FILLED, quantity, fill=whole))
    return position


def with_stop(manager: OrderManager, position: Any) -> str:
    stop = approve_stop(position, INSTRUMENT, RISK, run=RUN, attempt=0)
    assert isinstance(stop, ApprovedStop)
    manager.intend_stop(stop, NOW + 20)
    manager.apply(stop_report(stop.request.client_algo_id, position.exit_side, StopStatus.NEW, at=NOW + 50))
    return stop.request.client_algo_id


def kinds(changes: Changes) -> list[str]:
    return [event.kind for event in changes.events]


# ---- any order, any repetition


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**9), st.randoms(use_true_random=False))
def test_reports_in_any_order_and_repeated_end_in_the_same_state(seed: int, shuffler: random.Random) -> None:
    straight, shuffled = OrderManager("live", RUN), OrderManager("live", RUN)
    old: list[Any] = []
    for index in range(3):
        if straight.position_in("BTCUSDT") is not None:
            break
        life, same = Life(straight, seed, index), Life(shuffled, seed, index)
        for report in life.reports:
            straight.apply(report)
        old += same.reports
        mixed = same.reports + shuffler.choices(old, k=len(old) // 2)
        shuffler.shuffle(mixed)
        for report in mixed:
            shuffled.apply(report)

        assert state(shuffled) == state(straight)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9), st.randoms(use_true_random=False))
def test_orders_of_a_run_that_died_before_it_wrote_them_down_end_in_the_same_state(
    seed: int, shuffler: random.Random
) -> None:
    dead = OrderManager("live", RUN)
    life = Life(dead, seed)
    known = {name: record for name, record in dead.orders.items() if record.leg is Leg.ENTRY}
    rows = Changes(orders=known, positions=dead.positions).rows("live")
    straight, shuffled = OrderManager("live", RUN + 1), OrderManager("live", RUN + 1)
    for manager in (straight, shuffled):
        manager.load(stored("orders", rows["orders"]), [], stored("positions", rows["positions"]))
    mixed = life.reports * 2
    shuffler.shuffle(mixed)
    events = [event for report in life.reports for event in straight.apply(report).events]
    for report in mixed:
        shuffled.apply(report)
    there = shuffled.positions[life.position.position_id]

    assert state(shuffled) == state(straight)
    assert (there.opened_quantity, there.quantity) == (life.opened, life.opened - life.closed)
    assert "foreign_perpline" not in [event.kind for event in events]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**9), st.randoms(use_true_random=False))
def test_each_fill_is_booked_once_and_the_position_is_what_its_fills_say(seed: int, shuffler: random.Random) -> None:
    manager = OrderManager("live", RUN)
    life = Life(manager, seed)
    mixed = life.reports * 2
    shuffler.shuffle(mixed)
    for report in mixed:
        manager.apply(report)
    position = life.position

    assert position.opened_quantity == life.opened
    assert position.quantity == life.opened - life.closed
    assert position.fees == life.fees
    assert float(position.realized_pnl) == pytest.approx(float(life.realized), abs=1e-12)
    assert position.exit_reason == life.reason
    assert position.is_closed == (life.reason != "")
    assert manager.lacking_fills() == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.randoms(use_true_random=False), st.floats(0, 1))
def test_a_manager_restored_from_its_rows_at_any_moment_goes_on_as_the_one_before(
    seed: int, shuffler: random.Random, cut: float
) -> None:
    manager = OrderManager("live", RUN)
    tables: dict[str, dict[Any, dict[str, Any]]] = {name: {} for name in ("positions", "orders", "fills", "incomes")}
    for index in range(3):
        life = Life(manager, seed, index)
        store(
            tables, Changes(orders=dict(manager.orders), stops=dict(manager.stops), positions=dict(manager.positions))
        )
        if index == 2 or life.reason == "":
            break
        for report in life.reports:
            store(tables, manager.apply(report))
    mixed = list(life.reports)
    shuffler.shuffle(mixed)
    at = int(cut * len(mixed))
    for report in mixed[:at]:
        store(tables, manager.apply(report))
    restored = OrderManager("live", RUN)
    restored.load(tables["orders"].values(), tables["fills"].values(), tables["positions"].values())
    for report in mixed[at:]:
        manager.apply(report)
        restored.apply(report)

    # Why it was being closed may be lost with a row that was not written yet; our own times of hearing differ.
    ignored = {"updated_at": 0, "naked_ms": 0, "exit_reason": ""}
    assert {name: structs.replace(each, **ignored) for name, each in restored.positions.items()} == {
        name: structs.replace(each, **ignored) for name, each in manager.positions.items()
    }
    assert {name: record.status for name, record in restored.orders.items()} == {
        name: record.status for name, record in manager.orders.items()
    }


def store(tables: dict[str, dict[Any, dict[str, Any]]], changes: Changes) -> None:
    """As the store keeps rows: text for Decimals, fills that stay as they were first."""
    for name, rows in changes.rows("live").items():
        table = TRADING_TABLES[name]
        for values in rows:
            row = table.named(table.row(values))
            assert row["account"] == "live"
            key = tuple(row[column] for column in table.key)
            if table.stays == "last":
                tables[name][key] = row
            else:
                tables[name].setdefault(key, row)


def test_the_recorded_lives_end_as_they_ended_in_recorded_and_in_shuffled_order() -> None:
    folder = Path(__file__).parents[4] / "shared/data/user-events/lean"
    if not folder.is_dir():
        pytest.skip("no recordings: ../shared/data/user-events/lean is absent")
    events = pytest.importorskip("perpline.exchange.binance.user_events")
    reports = []
    for name in ("MarketSubmittedFilled", "LimitSubmittedFilled", "StopMarketSubmittedCanceled"):
        text = (folder / f"WebSocketFuture{name}.json").read_text()
        # Each file holds one event behind the other, without anything between.
        for part in text.strip().replace("}\n}\n{", "}\n}\0{").split("\0"):
            reports.append(events.decode_user_event(part.encode(), NOW))
    assert len(reports) == 6
    for seed in range(50):
        manager = OrderManager("live", RUN)
        order = reports * (1 if seed == 0 else 2)
        if seed:
            random.Random(seed).shuffle(order)
        for report in order:
            manager.apply(report)

        by_name = {record.name: record for record in manager.orders.values()}
        market, limit = by_name["nOVzgnvTSGAbIWUtqT8yBT"], by_name["WgLUfog03IeNEactrAJNDS"]
        assert (market.status, market.filled, market.booked, market.average_price) == (
            FILLED,
            Decimal(800),
            Decimal(800),
            Decimal("0.006567"),
        )
        assert (limit.status, limit.booked, limit.average_price) == (FILLED, Decimal(800), Decimal("0.00661"))
        assert [(stop.status, stop.name) for stop in manager.stops.values()] == [
            (StopStatus.CANCELED, "LIw9d2o1etTkTwhR7lHGwa")
        ]


# ---- one order


def test_an_answer_that_comes_after_the_fill_takes_nothing_back() -> None:
    manager = OrderManager("live", RUN)
    position = entered(manager)
    name = next(iter(manager.orders))
    changes = manager.apply(order_report(name, 11, "buy", "0.05", NEW, source="answer"))

    assert not changes
    assert (manager.orders[name].status, position.status) == (FILLED, "open")


def test_a_lost_answer_is_a_state_until_the_order_is_found() -> None:
    manager = OrderManager("live", RUN)
    approved = approved_entry()
    name = approved.request.client_id
    manager.intend(approved, NOW)
    manager.sent(name, NOW + 1)
    manager.unknown(name, NOW + 5000)

    assert [record.status for record in manager.unsettled_orders()] == [OrderStatus.UNKNOWN]

    manager.apply(order_report(name, 0, "buy", "0.05", OrderStatus.NEVER_ARRIVED, at=NOW + 9000, source="query"))

    assert manager.unsettled_orders() == []
    assert (approved.position.status, approved.position.exit_reason) == ("closed", "not_filled")
    assert manager.position_in("BTCUSDT") is None


def test_evidence_is_stronger_than_our_own_conclusion_that_an_order_never_came_to_be() -> None:
    for conclude in ("refused", "never arrived"):
        manager = OrderManager("live", RUN)
        approved = approved_entry()
        name = approved.request.client_id
        manager.intend(approved, NOW)
        if conclude == "refused":
            manager.refused(name, "-2019", NOW + 5)
        else:
            manager.apply(order_report(name, 0, "buy", "0.05", OrderStatus.NEVER_ARRIVED, source="query"))
        assert approved.position.is_closed
        whole = fill("buy", "2000", "0.05", 1, 11, name)
        changes = manager.apply(order_report(name, 11, "buy", "0.05", FILLED, "0.05", fill=whole))

        assert kinds(changes) == ["opened"]
        assert (approved.position.status, approved.position.quantity) == ("open", Decimal("0.05"))
        assert (manager.orders[name].status, manager.orders[name].final_at) == (FILLED, NOW)


def test_a_filled_answer_without_its_fills_is_asked_for_them_and_opens_nothing() -> None:
    manager = OrderManager("live", RUN)
    approved = approved_entry()
    name = approved.request.client_id
    manager.intend(approved, NOW)
    manager.apply(order_report(name, 11, "buy", "0.05", FILLED, "0.05", source="answer"))

    assert [record.order_id for record in manager.lacking_fills()] == [11]
    assert approved.position.status == "opening"

    manager.apply(fill("buy", "2000", "0.05", 1, 11))

    assert manager.lacking_fills() == []
    assert (approved.position.status, approved.position.entry_price) == ("open", Decimal(2000))


def test_fills_told_before_their_orders_name_find_their_order() -> None:
    manager = OrderManager("live", RUN)
    approved = approved_entry()
    name = approved.request.client_id
    manager.intend(approved, NOW)
    manager.unknown(name, NOW)
    manager.apply(fill("buy", "2000", "0.05", 1, 11))

    assert approved.position.quantity == 0

    changes = manager.apply(order_report(name, 11, "buy", "0.05", FILLED, "0.05", source="query"))

    assert approved.position.quantity == Decimal("0.05")
    assert [(booked.client_id, booked.position_id) for booked in changes.fills.values()] == [
        (name, approved.position.position_id)
    ]
    assert list(manager.orders) == [name]
    assert not manager.overdue(NOW + 60_000)


def test_a_second_position_in_a_symbol_is_an_error() -> None:
    manager = OrderManager("live", RUN)
    entered(manager)

    with pytest.raises(ValueError, match="has a position already"):
        manager.intend(approved_entry(signal_id="01" * 16), NOW)


def test_a_fee_in_another_asset_counts_at_its_price_and_not_at_all_where_that_is_unknown() -> None:
    for price, fees in ((Decimal(600), Decimal("0.06")), (None, Decimal(0))):
        manager = OrderManager("live", RUN, price_of={"BNB": price}.get)
        approved = approved_entry()
        manager.intend(approved, NOW)
        paid = fill("buy", "2000", "0.05", 1, 11, fee=Decimal("0.0001"), fee_asset="BNB")
        manager.apply(order_report(approved.request.client_id, 11, "buy", "0.05", FILLED, "0.05", fill=paid))

        assert approved.position.fees == fees


# ---- closing


def test_a_position_counts_what_it_earned_paid_and_why_it_ended() -> None:
    manager = OrderManager("live", RUN)
    position = entered(manager, side=-1)
    close = approved_close(position, reason="target")
    changes = manager.intend(close, NOW + 100)

    assert (position.status, position.exit_reason) == ("closing", "target")
    assert list(changes.positions) == [position.position_id]

    done = fill("buy", "1980", "0.05", 9, 12, close.request.client_id)
    changes = manager.apply(order_report(close.request.client_id, 12, "buy", "0.05", FILLED, "0.05", fill=done))

    assert kinds(changes) == ["closed"]
    assert (position.status, position.exit_reason, position.closed_at) == ("closed", "target", done.traded_at)
    assert (position.entry_price, position.exit_price) == (Decimal(2000), Decimal(1980))
    assert (position.realized_pnl, position.fees) == (Decimal(1), Decimal("0.0995"))
    assert position.net_pnl == Decimal("0.9005")


def test_a_close_that_is_refused_leaves_the_position_open() -> None:
    manager = OrderManager("live", RUN)
    position = entered(manager)
    close = approved_close(position)
    manager.intend(close, NOW + 100)
    manager.refused(close.request.client_id, "-2022", NOW + 120)

    assert (position.status, position.exit_reason) == ("open", "")
    assert manager.next_attempt(position.position_id, Leg.EXIT) == 1


def test_an_exit_that_filled_by_its_answer_is_still_closing_until_its_fills_are_known() -> None:
    manager = OrderManager("live", RUN)
    position = entered(manager)
    close = approved_close(position)
    manager.intend(close, NOW + 100)
    manager.apply(order_report(close.request.client_id, 12, "sell", "0.05", FILLED, "0.05", source="answer"))

    assert position.status == "closing"


def test_a_flat_position_whose_entry_still_fills_is_not_closed() -> None:
    manager = OrderManager("live", RUN)
    approved = approved_entry()
    name, position = approved.request.client_id, approved.position
    manager.intend(approved, NOW)
    part = fill("buy", "2000", "0.02", 1, 11, name)
    manager.apply(order_report(name, 11, "buy", "0.05", PARTIAL, "0.02", fill=part))
    close = approved_close(position)
    manager.intend(close, NOW)
    manager.apply(fill("sell", "1990", "0.02", 2, 12, close.request.client_id))

    assert (position.quantity, position.status) == (Decimal(0), "closing")

    rest = fill("buy", "2000", "0.03", 3, 11, name)
    manager.apply(order_report(name, 11, "buy", "0.05", FILLED, "0.05", fill=rest))

    assert position.quantity == Decimal("0.03")


def test_a_close_of_a_dead_run_is_known_by_its_name() -> None:
    manager = OrderManager("live", RUN + 1)
    first = OrderManager("live", RUN)
    position = entered(first)
    rows = Changes(orders=first.orders, positions=first.positions).rows("live")
    fills = Changes(fills={("BTCUSDT", 1): booked(first)}).rows("live")["fills"]
    manager.load(stored("orders", rows["orders"]), stored("fills", fills), stored("positions", rows["positions"]))
    name = ClientId(Leg.EXIT, RUN, position.position_id, 0).text
    done = fill("sell", "1990", "0.05", 9, 12, name)
    changes = manager.apply(order_report(name, 12, "sell", "0.05", FILLED, "0.05", fill=done))

    assert kinds(changes) == ["closed"]
    assert manager.positions[position.position_id].exit_reason == "exit"
    assert manager.orders[name].leg is Leg.EXIT


def booked(manager: OrderManager) -> Any:
    fresh = OrderManager("live", RUN)
    approved = approved_entry()
    fresh.intend(approved, NOW)
    name = approved.request.client_id
    whole = fill("buy", "2000", "0.05", 1, 11, name)
    return fresh.apply(order_report(name, 11, "buy", "0.05", FILLED, "0.05", fill=whole)).fills["BTCUSDT", 1]


def stored(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    table = TRADING_TABLES[name]
    return [table.named(table.row(values)) for values in rows]


# ---- what others did


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("autoclose-1638268", "liquidation"),
        ("adl_autoclose", "adl"),
        ("settlement_autoclose-77", "settlement"),
    ],
)
def test_what_the_exchange_itself_closes_is_called_so(name: str, kind: str) -> None:
    manager = OrderManager("live", RUN)
    position = entered(manager)
    done = fill("sell", "1500", "0.05", 9, 90, name)
    changes = manager.apply(order_report(name, 90, "sell", "0.05", FILLED, "0.05", fill=done))

    assert kinds(changes) == [kind, "closed"]
    assert (position.status, position.exit_reason) == ("closed", kind)
    row = Changes(fills=changes.fills).rows("live")["fills"][0]
    assert (row["kind"], row["position_id"]) == (kind, position.position_id)


def test_a_manual_order_closes_the_position_and_is_told_of_once_nobody_has_explained_it() -> None:
    manager = OrderManager("live", RUN)
    position = entered(manager)
    done = fill("sell", "1990", "0.05", 9, 90, "web_abc")
    changes = manager.apply(order_report("web_abc", 90, "sell", "0.05", FILLED, "0.05", NOW, fill=done))

    assert kinds(changes) == ["closed"]
    assert position.exit_reason == "manual"
    assert kinds(manager.overdue(NOW + 3 + UNEXPLAINED_MS - 1)) == []
    assert [event.detail for event in manager.overdue(NOW + 3 + UNEXPLAINED_MS).events] == ["sell 0.05 of 0.05 web_abc"]
    assert kinds(manager.overdue(NOW + 3600_000)) == []


def test_a_manual_order_in_our_direction_is_none_of_ours() -> None:
    manager = OrderManager("live", RUN)
    position = entered(manager)
    changes = manager.apply(
        order_report("web_abc", 90, "buy", "1", FILLED, "1", fill=fill("buy", "2000", "1", 9, 90, "web_abc"))
    )

    assert position.quantity == Decimal("0.05")
    assert [each.position_id for each in changes.fills.values()] == [""]


def test_a_manual_order_that_turns_the_position_around_closes_ours_and_flips_nothing() -> None:
    manager = OrderManager("live", RUN)
    position = entered(manager)
    done = fill("sell", "1990", "0.08", 9, 90, "web_abc")
    manager.apply(order_report("web_abc", 90, "sell", "0.08", FILLED, "0.08", fill=done))

    assert (position.quantity, position.status) == (Decimal(0), "closed")
    assert position.exit_price == Decimal(1990)


def test_another_perpline_on_the_account_is_told_of_at_once() -> None:
    manager = OrderManager("live", RUN)
    position = entered(manager)
    for strange in (
        ClientId(Leg.ENTRY, RUN + 3, position.position_id, 0),  # a run that was not yet
        ClientId(Leg.EXIT, RUN, position.position_id, 5),  # this run would know it
        ClientId(Leg.ENTRY, RUN - 1, "B" * 22, 0),  # a position of nobody's
    ):
        changes = manager.apply(order_report(strange.text, 100 + strange.run, "buy", "1", NEW))

        assert kinds(changes) == ["foreign_perpline"]


def test_an_order_of_perpline_flatten_is_no_foreign_one_whatever_its_run() -> None:
    manager = OrderManager("live", RUN)
    position = entered(manager)
    name = ClientId(Leg.FLATTEN, RUN + 3, position.position_id, 0).text

    changes = manager.apply(order_report(name, 100, "sell", "1", NEW, reduce_only=True))

    assert kinds(changes) == []
    assert manager.orders[name].leg is Leg.FLATTEN
    assert position.status == "closing"


def test_an_order_of_a_past_position_is_no_foreign_one() -> None:
    manager = OrderManager("live", RUN)
    manager.load([], [], [], past_positions=["B" * 22])

    assert kinds(manager.apply(order_report(ClientId(Leg.EXIT, RUN - 1, "B" * 22, 0).text, 5, "buy", "1", NEW))) == []


# ---- stops


def test_the_naked_time_runs_from_the_first_fill_to_the_confirmed_stop() -> None:
    manager = OrderManager("live", RUN)
    position = entered(manager)

    assert manager.naked_ms(NOW + 43) == {position.position_id: 40}

    name = with_stop(manager, position)

    assert manager.naked_ms(NOW + 1000) == {}
    assert position.naked_ms == 50
    assert position.protective_stop == Decimal("1970.0")

    changes = manager.apply(stop_report(name, "sell", StopStatus.EXPIRED, at=NOW + 500))

    assert kinds(changes) == ["unprotected"]
    assert manager.naked_ms(NOW + 603) == {position.position_id: 100}


def test_a_stops_child_is_its_stops_whichever_is_told_of_first() -> None:
    for stop_first in (True, False):
        manager = OrderManager("live", RUN)
        position = entered(manager)
        name = with_stop(manager, position)
        done = fill("sell", "1969", "0.05", 9, 90, "x-child")
        triggered = stop_report(name, "sell", StopStatus.TRIGGERED, 90, at=NOW + 100)
        child = order_report("x-child", 90, "sell", "0.05", FILLED, "0.05", NOW + 100, fill=done)
        for report in (triggered, child) if stop_first else (child, triggered):
            manager.apply(report)
        manager.apply(stop_report(name, "sell", StopStatus.FINISHED, 90, at=NOW + 101))

        assert (position.status, position.exit_reason) == ("closed", "protective_stop")
        assert manager.by_algo_child("BTCUSDT", 90) is manager.stops[name]
        assert (manager.stops[name].filled, manager.stops[name].average_price) == (Decimal("0.05"), Decimal(1969))
        assert kinds(manager.overdue(NOW + 3600_000)) == []


def test_a_stop_that_has_finished_is_no_loss_of_protection_while_its_child_is_filling() -> None:
    manager = OrderManager("live", RUN)
    position = entered(manager)
    name = with_stop(manager, position)
    events = []
    for status in (StopStatus.TRIGGERING, StopStatus.TRIGGERED, StopStatus.FINISHED):
        child = 0 if status is StopStatus.TRIGGERING else 90
        events += kinds(manager.apply(stop_report(name, "sell", status, child, at=NOW + 100)))

    assert (events, position.status, manager.naked_since) == ([], "closing", {})


def test_a_stop_that_is_left_behind_is_an_orphan() -> None:
    manager = OrderManager("live", RUN)
    position = entered(manager)
    name = with_stop(manager, position)
    assert manager.orphan_stops() == []
    manager.apply(fill("sell", "1990", "0.05", 9, 90, "autoclose-1"))

    assert [stop.client_id for stop in manager.orphan_stops()] == [name]

    manager.apply(stop_report(name, "sell", StopStatus.CANCELED, at=NOW + 900))

    assert manager.orphan_stops() == []


def test_after_a_start_the_naked_time_goes_on_from_the_first_fill() -> None:
    manager = OrderManager("live", RUN)
    position = entered(manager)
    rows = Changes(orders=manager.orders, positions=manager.positions, fills={("BTCUSDT", 1): booked(manager)})
    restored = OrderManager("live", RUN + 1)
    restored.load(*(stored(name, rows.rows("live")[name]) for name in ("orders", "fills", "positions")))

    assert restored.naked_ms(NOW + 5010) == {position.position_id: 5000}


# ---- the account


def income(identity: int, at: int, amount: str = "-0.5", kind: str = "FUNDING_FEE") -> Income:
    return Income(income_id=identity, kind=kind, symbol="BTCUSDT", asset="USDT", amount=Decimal(amount), at=at)


def test_funding_reaches_the_position_that_was_open_then_and_only_once() -> None:
    manager = OrderManager("live", RUN)
    position = entered(manager)
    for _ in range(2):
        manager.apply(income(1, NOW + 5000))
        manager.apply(income(2, NOW - 5000))
        manager.apply(income(3, NOW + 5000, kind="COMMISSION"))

    assert position.funding == Decimal("-0.5")


def test_an_older_account_update_does_not_replace_a_newer_one() -> None:
    manager = OrderManager("live", RUN)
    for at, wallet, quantity in ((2, "90", "1"), (1, "100", "2")):
        there = ExchangePosition(
            symbol="BTCUSDT",
            quantity=Decimal(quantity),
            entry_price=Decimal(1),
            unrealized_pnl=Decimal(0),
            updated_at=at,
        )
        manager.apply(
            AccountUpdate(
                reason="ORDER",
                wallet={"USDT": Decimal(wallet)},
                changes={},
                positions=(there,),
                symbol="",
                updated_at=at,
                received_at=at,
            )
        )

    assert (manager.wallet, manager.exchange_positions["BTCUSDT"].quantity) == ({"USDT": Decimal(90)}, Decimal(1))


def test_an_adopted_position_is_closed_like_any_other() -> None:
    manager = OrderManager("live", RUN)
    found = ExchangePosition(
        symbol="BTCUSDT",
        quantity=Decimal("-0.4"),
        entry_price=Decimal(2000),
        unrealized_pnl=Decimal(0),
        mark_price=Decimal(1990),
    )
    changes = manager.adopt(found, NOW, target=Decimal(1980), stop=Decimal(2020))
    position = manager.position_in("BTCUSDT")
    assert position is not None
    close = approved_close(position)
    manager.intend(close, NOW + 5)
    manager.apply(fill("buy", "1980", "0.4", 1, 5, close.request.client_id))

    assert kinds(changes) == ["opened"]
    assert (position.status, position.realized_pnl, position.origin) == ("closed", Decimal(8), "adopted")
    with pytest.raises(ValueError, match="nothing to adopt"):
        manager.adopt(structs.replace(found, quantity=Decimal(0)), NOW)


def test_what_the_exchange_has_no_more_is_taken_away_and_a_fill_found_later_explains_it() -> None:
    manager = OrderManager("live", RUN)
    position = entered(manager)
    changes = manager.correct(position, Decimal("0.02"), NOW + 5000)

    assert list(changes.positions) == [position.position_id]
    assert (position.quantity, position.status) == (Decimal("0.02"), "open")

    manager.apply(income(1, NOW + 5000))  # whatever else happens, it is taken away once
    manager.apply(fill("sell", "1990", "0.01", 2, 90, "web_1"))

    assert position.quantity == Decimal("0.02")

    manager.correct(position, Decimal(0), NOW + 6000)

    assert (position.status, position.exit_reason, position.closed_at) == ("closed", "reconciled", NOW + 6000)
    assert position.realized_pnl == Decimal("-0.1")
    with pytest.raises(ValueError, match="is not at most"):
        manager.correct(position, Decimal(1), NOW)


def test_a_fill_that_explains_a_loss_afterwards_is_the_reason_of_the_end() -> None:
    manager = OrderManager("live", RUN)
    position = entered(manager)
    manager.correct(position, Decimal(0), NOW + 5000)
    assert position.exit_reason == "reconciled"
    manager.apply(fill("sell", "1990", "0.05", 2, 90, "adl_autoclose"))

    assert (position.exit_reason, position.exit_price, position.closed_at) == ("adl", Decimal(1990), NOW + 20)


def test_what_is_traded_after_a_loss_neither_explains_it_nor_belongs_to_what_was_lost() -> None:
    manager = OrderManager("live", RUN)
    position = entered(manager)
    manager.correct(position, Decimal("0.02"), NOW + 50)
    manager.apply(fill("sell", "1990", "0.01", 9, 90, "web_1"))  # at NOW + 90

    assert position.quantity == Decimal("0.01")

    manager.correct(position, Decimal(0), NOW + 100)
    changes = manager.apply(fill("sell", "1990", "0.01", 20, 91, "web_2"))  # at NOW + 200

    assert [each.position_id for each in changes.fills.values()] == [""]
    assert (position.exit_reason, position.closed_at) == ("reconciled", NOW + 100)


def test_an_order_ended_when_it_was_first_said_to_have() -> None:
    for times in ((2, 5), (5, 2)):
        manager = OrderManager("live", RUN)
        for at in times:
            manager.apply(order_report("web_1", 11, "buy", "1", OrderStatus.CANCELED, at=NOW + at))

        assert [record.final_at for record in manager.orders.values()] == [NOW + 2]


def test_a_correction_survives_a_start() -> None:
    manager = OrderManager("live", RUN)
    position = entered(manager)
    manager.correct(position, Decimal("0.02"), NOW + 5000)
    rows = Changes(orders=manager.orders, positions=manager.positions, fills={("BTCUSDT", 1): booked(manager)})
    restored = OrderManager("live", RUN + 1)
    restored.load(*(stored(name, rows.rows("live")[name]) for name in ("orders", "fills", "positions")))
    same = restored.positions[position.position_id]

    assert (same.quantity, same.status, same.naked_ms) == (Decimal("0.02"), "open", position.naked_ms)


def test_what_was_closed_long_ago_is_forgotten_and_what_is_open_is_not() -> None:
    manager = OrderManager("live", RUN)
    position = entered(manager)
    with_stop(manager, position)
    assert manager.forget(NOW + 10**9) == 0
    manager.apply(fill("sell", "1990", "0.05", 9, 90, "autoclose-1"))
    second = approved_entry(signal_id="01" * 16)
    manager.intend(second, NOW + 10**8)

    assert manager.forget(NOW + 10**7) == 1
    assert list(manager.positions) == [second.position.position_id]
    assert list(manager.orders) == [second.request.client_id]
    assert manager.stops == {}
