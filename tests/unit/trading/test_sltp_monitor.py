from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from perpline.domain.exit_rule import OPEN, exit_reason
from perpline.trading.position import Position
from perpline.trading.sltp_monitor import SltpMonitor
from trading import NOW


class Heard:
    """What a monitor said."""

    def __init__(self) -> None:
        self.fired: list[tuple[str, str, float, int]] = []
        self.moved: list[tuple[str, float | None]] = []

    def fire(self, position: Position, reason: str, mark: float, now_ms: int) -> None:
        self.fired.append((position.position_id, reason, mark, now_ms))

    def move(self, position: Position) -> None:
        self.moved.append((position.position_id, None if position.stop is None else float(position.stop)))


def monitored(heard: Heard, *positions: Position, **rules: float) -> SltpMonitor:
    monitor = SltpMonitor(heard.fire, heard.move, **rules)
    for position in positions:
        monitor.watch(position)
    return monitor


def opened(side: int = 1, name: str = "a", **changes: Any) -> Position:
    position = Position(
        account="live",
        position_id=name,
        symbol="BTCUSDT",
        side=side,
        status="open",
        quantity=Decimal(1),
        opened_quantity=Decimal(1),
        entry_price=Decimal(100),
        target=Decimal(100 + 2 * side),
        stop=Decimal(100 - side),
        deadline=NOW + 60_000,
        opened_at=NOW,
    )
    return structs.replace(position, **changes)


@pytest.mark.parametrize(
    ("side", "mark", "at", "reason"),
    [
        (1, 102.0, 0, "target"),
        (1, 101.9, 0, None),
        (1, 99.0, 0, "stop"),
        (1, 99.1, 0, None),
        (-1, 98.0, 0, "target"),
        (-1, 101.0, 0, "stop"),
        (-1, 100.9, 0, None),
        (1, 100.0, 60_000, "timeout"),
        (1, 102.0, 60_000, "target"),
        (1, 100.0, 59_999, None),
    ],
)
def test_a_level_that_is_touched_fires(side: int, mark: float, at: int, reason: str | None) -> None:
    heard = Heard()
    monitored(heard, opened(side)).on_mark_price("BTCUSDT", mark, NOW + at)

    assert heard.fired == ([] if reason is None else [("a", reason, mark, NOW + at)])


def test_it_fires_once_until_it_is_rearmed() -> None:
    heard = Heard()
    position = opened()
    monitor = monitored(heard, position)
    for _ in range(3):
        monitor.on_mark_price("BTCUSDT", 98.0, NOW)
    monitor.watch(position)  # a part of the close has filled
    monitor.on_mark_price("BTCUSDT", 98.0, NOW)

    assert len(heard.fired) == 1

    monitor.rearm(position)
    monitor.on_mark_price("BTCUSDT", 97.0, NOW)

    assert [mark for _, _, mark, _ in heard.fired] == [98.0, 97.0]


def test_a_position_that_is_gone_is_watched_no_more_and_other_symbols_are_nobodys_concern() -> None:
    heard = Heard()
    position = opened()
    monitor = monitored(heard, position)
    monitor.on_mark_price("ETHUSDT", 1.0, NOW)
    position.quantity = Decimal(0)
    monitor.watch(position)
    monitor.on_mark_price("BTCUSDT", 1.0, NOW)

    assert (heard.fired, monitor.watched) == ([], [])


def test_one_that_lets_go_of_its_position_while_it_fires_disturbs_no_other() -> None:
    heard = Heard()
    first, second = opened(), opened(name="b")

    def fire_and_drop(position: Position, reason: str, mark: float, now_ms: int) -> None:
        heard.fire(position, reason, mark, now_ms)
        position.quantity = Decimal(0)
        monitor.watch(position)

    monitor = SltpMonitor(fire_and_drop, heard.move)
    monitor.watch(first)
    monitor.watch(second)
    monitor.on_mark_price("BTCUSDT", 90.0, NOW)

    assert [name for name, *_ in heard.fired] == ["a", "b"]


@pytest.mark.parametrize("side", [1, -1])
def test_a_trailing_stop_follows_the_best_mark_price_and_never_goes_back(side: int) -> None:
    heard = Heard()
    position = opened(side, target=None)
    monitor = monitored(heard, position, trailing_stop_pct=1.0)
    for profit in (4.0, 1.0, 3.5, 10.0):
        if not heard.fired:
            monitor.on_mark_price("BTCUSDT", 100.0 + side * profit, NOW)

    level = (100 + 4 * side) * (1 - side * 0.01)
    assert heard.moved == [("a", pytest.approx(level))]
    assert (float(position.stop or 0), position.best_mark) == (pytest.approx(level), Decimal(repr(100.0 + 4 * side)))
    assert [reason for _, reason, _, _ in heard.fired] == ["trailing_stop"]


def test_a_stop_moves_to_the_entry_once_the_position_was_in_profit_by_so_much() -> None:
    heard = Heard()
    position = opened(target=None)
    monitor = monitored(heard, position, break_even_pct=1.5)
    for mark in (101.4, 101.5, 101.6, 100.0):
        monitor.on_mark_price("BTCUSDT", mark, NOW)

    assert position.stop == 100
    assert [reason for _, reason, _, _ in heard.fired] == ["break_even"]


def test_after_a_start_a_moved_stop_is_where_it_was() -> None:
    heard = Heard()
    position = opened(target=None)
    monitored(heard, position, trailing_stop_pct=1.0).on_mark_price("BTCUSDT", 110.0, NOW)
    monitor = monitored(heard, structs.replace(position), trailing_stop_pct=1.0)
    monitor.on_mark_price("BTCUSDT", 109.0, NOW)
    monitor.on_mark_price("BTCUSDT", 108.9, NOW)

    assert [(reason, mark) for _, reason, mark, _ in heard.fired] == [("trailing_stop", 108.9)]


def test_without_levels_nothing_fires() -> None:
    heard = Heard()
    monitor = monitored(heard, opened(target=None, stop=None, deadline=None))
    for mark in (1e-9, 1e12):
        monitor.on_mark_price("BTCUSDT", mark, NOW)

    assert (heard.fired, heard.moved) == ([], [])


@given(st.sampled_from([1, -1]), st.lists(st.floats(90, 110), min_size=1, max_size=40))
def test_the_monitor_fires_at_the_tick_where_the_exit_rule_does(side: int, marks: list[float]) -> None:
    heard = Heard()
    position = opened(side)
    monitor = monitored(heard, position)
    for index, mark in enumerate(marks):
        monitor.on_mark_price("BTCUSDT", mark, NOW + index * 1000)
    target, stop = 100.0 + 2 * side, 100.0 - side
    first = next(
        (
            (mark, NOW + index * 1000)
            for index, mark in enumerate(marks)
            if exit_reason(side, target, stop, mark, mark, NOW + index * 1000, NOW + 60_000) != OPEN
        ),
        None,
    )

    assert [(mark, at) for _, _, mark, at in heard.fired] == ([] if first is None else [first])
