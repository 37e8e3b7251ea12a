"""Stops and targets on the mark price: every tick of every symbol that has a position."""

import math
from collections.abc import Callable
from decimal import Decimal

from msgspec import Struct

from perpline.domain.exit_rule import (
    OPEN,
    TARGET,
    TIMEOUT,
    better_mark,
    break_even_stop,
    exit_reason,
    trailed_stop,
)
from perpline.trading.position import Position

NO_DEADLINE = 1 << 62


class _Watched(Struct):
    """A position with its levels as plain numbers, as the exit rule takes them."""

    position: Position
    side: int
    entry: float
    target: float
    stop: float
    best: float
    deadline: int
    fired: bool = False


class SltpMonitor:
    """Asks the exit rule about every open position at every mark price of its symbol, and says when one fires.

    `fire(position, reason, mark, now_ms)` is called within `on_mark_price`, once for a position until it is rearmed;
    the reason is target, stop, trailing_stop, break_even or timeout. `moved(position)` tells that a trailing stop or
    the break-even rule moved its stop, or that its best mark price is another; both are in the position by then, to be
    stored when there is time. Nothing is awaited, logged or read from a clock here.
    """

    def __init__(
        self,
        fire: Callable[[Position, str, float, int], None],
        moved: Callable[[Position], None],
        *,
        trailing_stop_pct: float = 0.0,
        break_even_pct: float = 0.0,
    ) -> None:
        self._fire = fire
        self._moved = moved
        self._trailing_stop_pct = trailing_stop_pct
        self._break_even_pct = break_even_pct
        self._watched: dict[str, list[_Watched]] = {}

    def watch(self, position: Position) -> None:
        """Take the position in as it is now, or let go of it where nothing of it is open any more. To be called
        whenever it has changed; one that has fired stays so."""
        symbol, position_id = position.symbol, position.position_id
        others = [each for each in self._watched.get(symbol, ()) if each.position.position_id != position_id]
        if position.quantity > 0 and not position.is_closed and position.entry_price is not None:
            before = self._find(position)
            others.append(self._taken_in(position, float(position.entry_price), before is not None and before.fired))
        if others:
            self._watched[symbol] = others
        else:
            self._watched.pop(symbol, None)

    def rearm(self, position: Position) -> None:
        """Its close has failed: let the next mark price that fires do so again."""
        if (watched := self._find(position)) is not None:
            watched.fired = False

    @property
    def watched(self) -> list[Position]:
        return [each.position for entries in self._watched.values() for each in entries]

    def on_mark_price(self, symbol: str, mark: float, now_ms: int) -> None:
        """A mark price of the symbol, at `now_ms` of market time."""
        entries = self._watched.get(symbol)
        if entries is None:
            return
        # Whoever is told that one fired may let go of it meanwhile: `watch` makes a new list and leaves this one be.
        for each in entries:
            if each.fired:
                continue
            reason = exit_reason(each.side, each.target, each.stop, mark, mark, now_ms, each.deadline)
            if reason != OPEN:
                each.fired = True
                self._fire(each.position, self._name(each, reason), mark, now_ms)
            elif better_mark(each.side, each.best, mark) != each.best:
                self._improve(each, mark)

    def _improve(self, each: _Watched, mark: float) -> None:
        each.best = mark
        each.position.best_mark = Decimal(repr(mark))
        if not self._trailing_stop_pct and not self._break_even_pct:
            # Then the best mark price is of no consequence, and not worth a write each second.
            return
        stop = break_even_stop(each.side, each.stop, each.entry, mark, self._break_even_pct)
        stop = trailed_stop(each.side, stop, mark, self._trailing_stop_pct)
        if stop != each.stop:
            each.stop = stop
            each.position.stop = Decimal(repr(stop))
        self._moved(each.position)

    def _taken_in(self, position: Position, entry: float, fired: bool) -> _Watched:
        never = math.inf * position.side
        return _Watched(
            position=position,
            side=position.side,
            entry=entry,
            target=never if position.target is None else float(position.target),
            stop=-never if position.stop is None else float(position.stop),
            best=entry if position.best_mark is None else float(position.best_mark),
            deadline=NO_DEADLINE if position.deadline is None else position.deadline,
            fired=fired,
        )

    def _name(self, each: _Watched, reason: int) -> str:
        if reason == TARGET:
            return "target"
        if reason == TIMEOUT:
            return "timeout"
        # Which of the rules has put the stop where it is can be told from where it is.
        if self._trailing_stop_pct and each.stop == trailed_stop(
            each.side, -math.inf * each.side, each.best, self._trailing_stop_pct
        ):
            return "trailing_stop"
        return "break_even" if self._break_even_pct and each.stop == each.entry else "stop"

    def _find(self, position: Position) -> _Watched | None:
        entries = self._watched.get(position.symbol, ())
        return next((each for each in entries if each.position.position_id == position.position_id), None)
