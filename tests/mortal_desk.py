"""What runs in a process that trades and kills itself at one step."""

import asyncio
import os
import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.live_desk import LiveDesk

from perpline.common.clock import Clock, SystemClock
from perpline.common.config import load_settings
from perpline.common.errors import Unavailable
from perpline.domain.order import Leg, OrderReport, StopReport, StopStatus
from perpline.domain.signal import Decision
from perpline.storage.sqlite import SqliteStore
from perpline.trading.risk import ApprovedOrder


class Step(StrEnum):
    """Where it dies."""

    DECIDED = "the decision is committed"
    INTENDED = "the entry's intent is committed"
    SENT = "the entry is written to the socket"
    ANSWERED = "the entry is answered, its fill not told"
    FILLED = "the entry is filled, the stop not sent"
    STOP_SENT = "the stop is written to the socket"
    STOP_CONFIRMED = "the stop is confirmed, its row not written"
    STOP_STORED = "the stop is confirmed and stored"
    FIRED = "a level fired, the close not sent"
    CLOSE_SENT = "the close is written to the socket"
    CLOSE_FILLED = "the close is filled, the stop not cancelled"
    ROWS_WAIT = "rows of an open position wait for the database"
    ROWS_WAIT_CLOSED = "rows of a closed position wait for the database"


@dataclass
class Afar:
    """What a desk wants of the exchange itself when that is in another process."""

    clock: Clock
    symbols: tuple[str, ...]


Wanted = Sequence[tuple[str, int, float]]
"""Signals: symbol, side, valid for so many market seconds."""


def trade(
    settings: Path, account: str, now_ms: int, tells: Connection, step: Step | None = None, signals: Wanted = ()
) -> None:
    """A process's life; `now_ms` is the exchange's time at its start.

    With a step it sets the mode of its account and takes the signals as a worker takes its decisions, committed before
    they are traded, and dies by SIGKILL at that step. Without, it tells "ready" once it trades and lives until it is
    killed. What it logs is in `log` beside the settings.
    """
    log = os.open(settings.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    asyncio.run(_trade(settings, account, now_ms, tells, step, signals))


async def _trade(path: Path, account: str, now_ms: int, tells: Connection, step: Step | None, signals: Wanted) -> None:
    settings = load_settings(path, {}, {})
    store = SqliteStore(path.parent / "live.db")
    await store.open()
    afar = Afar(SystemClock(settings.clock_speed, anchor_ms=now_ms), tuple(settings.symbols))
    desk = LiveDesk(afar, settings, store, random.Random(1))  # type: ignore[arg-type]
    await desk.open()
    await desk.ready()
    if step is not None:
        await desk.set_mode(account)
        Death(desk, account).comes_at(step)
        await take(desk, [desk.decision(symbol, side, valid_s=valid) for symbol, side, valid in signals])
    tells.send("ready")
    await asyncio.gather(*desk.tasks)


async def take(desk: LiveDesk, decisions: list[Decision]) -> None:
    """As the signal engine does: stored, then traded."""
    await desk.store.commit_decisions(decisions, [], [], desk.clock.now_us())
    desk.accounts.take_signals(decisions)


class Death:
    """Where in the real parts the process dies."""

    def __init__(self, desk: LiveDesk, account: Any) -> None:
        self._store = desk.store
        self._trader = desk.accounts.traders[account]
        self._executor = self._trader._executor

    def comes_at(self, step: Step) -> None:
        entry, close = _of_leg(Leg.ENTRY), _of_leg(Leg.EXIT)
        match step:
            case Step.DECIDED:
                _die_after_await(self._store, "commit_decisions", lambda *_: True)
            case Step.INTENDED:
                _die_before(self._executor, "send", entry)
            case Step.SENT:
                _die_after(self._executor, "send", entry)
            case Step.ANSWERED:
                _die_after(self._trader, "on_report", _is_answer)
            case Step.FILLED:
                _die_before(self._executor, "send_stop")
            case Step.STOP_SENT:
                _die_after(self._executor, "send_stop")
            case Step.STOP_CONFIRMED:
                _die_after(self._trader, "on_report", _is_resting_stop)
            case Step.STOP_STORED:
                _die_after_await(self._store, "commit_trading", _has_resting_stop)
            case Step.FIRED:
                _die_before(self._executor, "send", close)
            case Step.CLOSE_SENT:
                _die_after(self._executor, "send", close)
            case Step.CLOSE_FILLED:
                _die_before(self._executor, "cancel_stop")
            case Step.ROWS_WAIT:
                self._database_goes_with(entry)
                _die_after(self._trader, "on_report", _is_resting_stop)
            case Step.ROWS_WAIT_CLOSED:
                self._database_goes_with(entry)
                _die_before(self._executor, "cancel_stop")

    def _database_goes_with(self, leaves: Callable[..., bool]) -> None:
        """From the order that `leaves` on, nothing more of trading is stored."""
        send = self._executor.send

        async def away(*_: Any) -> Any:
            raise Unavailable("the database is away")

        def sent(order: ApprovedOrder) -> None:
            if leaves(order):
                self._store.commit_trading = away  # type: ignore[method-assign]
            send(order)

        self._executor.send = sent  # type: ignore[method-assign]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_before(owner: Any, name: str, when: Callable[..., bool] = lambda *_: True) -> None:
    real = getattr(owner, name)

    def call(*given: Any) -> Any:
        if when(*given):
            _die()
        return real(*given)

    setattr(owner, name, call)


def _die_after(owner: Any, name: str, when: Callable[..., bool] = lambda *_: True) -> None:
    real = getattr(owner, name)

    def call(*given: Any) -> Any:
        real(*given)
        if when(*given):
            _die()

    setattr(owner, name, call)


def _die_after_await(owner: Any, name: str, when: Callable[..., bool]) -> None:
    real = getattr(owner, name)

    async def call(*given: Any) -> Any:
        found = await real(*given)
        if when(*given):
            _die()
        return found

    setattr(owner, name, call)


def _of_leg(leg: Leg) -> Callable[..., bool]:
    return lambda order: order.request.client_id.startswith(f"{leg.value}.")


def _is_answer(report: Any) -> bool:
    return isinstance(report, OrderReport) and report.source == "answer"


def _is_resting_stop(report: Any) -> bool:
    return isinstance(report, StopReport) and report.status is StopStatus.NEW


def _has_resting_stop(rows: Any, *_: Any) -> bool:
    return any("stop_market" in row and StopStatus.NEW in row for row in rows.get("orders", ()))
