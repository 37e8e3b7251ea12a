"""A worker that kills itself at a named point, or whose host's clock steps: what cannot be done from outside.

    python -m perpline.drill.child [--die POINT --after N] [--step-ms N] run --config …

Everything else is `perpline run`. The points are places in the real parts, wrapped before anything is started. Passages
are counted from SIGUSR1 on (`while-starting` from the start on); death is SIGKILL, so nothing is tidied up.
"""

import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

POINTS: Final = {
    "before-commit": "decisions are made and not yet stored",
    "after-commit": "decisions are stored and not yet published",
    "before-marking": "messages are published and the outbox does not know it",
    "after-marking": "messages are published and marked",
    "before-rows": "candles are heard and their rows not yet written",
    "after-rows": "rows of candles have just been written",
    "closing-frame": "a closing frame has arrived and nothing was done with it",
    "while-starting": "the windows are being loaded",
}
"""Where it can die, in words."""

NOW_SIGNAL: Final = signal.SIGUSR1 if hasattr(signal, "SIGUSR1") else signal.SIGTERM


def main(words: list[str]) -> int:
    point, after, step_ms = "", 1, 0
    while words and words[0].startswith("--"):
        name, value, *words = words
        match name:
            case "--die":
                point = value
            case "--after":
                after = int(value)
            case "--step-ms":
                step_ms = int(value)
            case _:
                raise SystemExit(f"unknown option {name}")
    if point:
        _die_at(point, after)
    if step_ms:
        _step_clock(step_ms)
    code: int = import_module("perpline.cli.main").main(words)  # by name, as `python -m perpline` would
    return code


def _die_at(point: str, after: int) -> None:
    """Wrap the place, so that the `after`-th passage is the last thing the process does."""
    from perpline.collector.gaps import ClosedCandles
    from perpline.storage.postgres import PostgresStore
    from perpline.storage.sqlite import SqliteStore

    count = 0
    armed = point == "while-starting"

    def arm(*_: object) -> None:
        nonlocal armed
        armed = True

    def passed() -> None:
        nonlocal count
        count += armed
        if count >= after:
            os.kill(os.getpid(), signal.SIGKILL)

    if not armed:
        signal.signal(NOW_SIGNAL, arm)

    def is_candles(_: Any, table: str, *__: Any) -> bool:
        return table == "candles_1m"

    for store in (SqliteStore, PostgresStore):
        match point:
            case "before-commit":
                _wrap(store, "commit_decisions", passed, before=True)
            case "after-commit":
                _wrap(store, "commit_decisions", passed, before=False)
            case "before-marking":
                _wrap(store, "mark_published", passed, before=True)
            case "after-marking":
                _wrap(store, "mark_published", passed, before=False)
            case "before-rows":
                _wrap(store, "add_rows", passed, is_candles, before=True)
            case "after-rows":
                _wrap(store, "add_rows", passed, is_candles, before=False)
            case "while-starting":
                _wrap(store, "last_candles", passed, before=False)
            case "closing-frame":
                pass
            case _:
                raise SystemExit(f"no point is called {point}: {', '.join(POINTS)}")
    if point == "closing-frame":
        real = ClosedCandles.offer

        def offer(*given: Any, **named: Any) -> Any:
            passed()
            return real(*given, **named)

        setattr(ClosedCandles, "offer", offer)  # noqa: B010  (as below)


def _wrap(
    owner: Any, name: str, passed: Callable[[], None], when: Callable[..., bool] = lambda *_: True, *, before: bool
) -> None:
    real = getattr(owner, name)

    async def call(*given: Any, **named: Any) -> Any:
        counts = when(*given)
        if counts and before:
            passed()
        found = await real(*given, **named)
        if counts and not before:
            passed()
        return found

    setattr(owner, name, call)


def _step_clock(step_ms: int) -> None:
    """At NOW_SIGNAL the host's clock steps by so many milliseconds, of market time; the monotonic one does not."""
    from perpline.common.clock import SystemClock

    stepped_us = 0
    real = SystemClock.now_us

    def now_us(clock: SystemClock) -> int:
        return real(clock) + stepped_us

    def step(*_: object) -> None:
        nonlocal stepped_us
        stepped_us += step_ms * 1000

    setattr(SystemClock, "now_us", now_us)  # noqa: B010  (for mypy, to which methods are constants)
    signal.signal(NOW_SIGNAL, step)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
