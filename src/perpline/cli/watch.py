"""`perpline watch`: follows the signals on a Redis server, and goes on where it was."""

import asyncio
import os
import random
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from perpline.bus.follow import SignalFollower, Start, StreamEntry
from perpline.bus.positions import Positions
from perpline.bus.redis import where
from perpline.bus.wire import signal_of
from perpline.cli.options import ConfigOption, run_loop
from perpline.common.backoff import backoff_s
from perpline.common.clock import Clock, SystemClock
from perpline.common.config import load_settings, state_folder
from perpline.common.errors import Malformed, NeedsPerson, Unavailable
from perpline.domain.messages import Signal
from perpline.domain.signal import Status

WAIT_S = 1.0
"""How long one read waits for something new."""
LONGEST_WAIT_S = 30.0
"""Between tries while the server is away."""


def watch(
    symbols: Annotated[
        list[str] | None, typer.Argument(metavar="[SYMBOL]…", help="Default: every one there is.")
    ] = None,
    redis: Annotated[str | None, typer.Option(help="The server: redis://host:6379/0", show_default=False)] = None,
    slot: Annotated[str | None, typer.Option(help="Whose signals.", show_default="champion")] = None,
    start: Annotated[
        Start,
        typer.Option(
            "--from",
            help="last: after the last one printed, the first time like now; now: what comes from now on; beginning: "
            "everything the server holds, about a week.",
        ),
    ] = "last",
    name: Annotated[str, typer.Option(help="Of this reader; each name has a position of its own.")] = "default",
    only: Annotated[list[Status] | None, typer.Option(help="Print only this status; can be repeated.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many.", show_default=False)] = None,
    duration: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="End after so long.", show_default=False)
    ] = None,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line for each signal.")] = False,
) -> None:
    """Follow the signals on Redis: print each as it comes, in order, and go on where the last watch ended.

    Reads the streams, so nothing is missed while the server holds it. After a kill at any instant the next watch of
    the same name loses none, and prints at most that one again whose line was just being written.

    Example: perpline watch BTCUSDT ETHUSDT --only ok
    """
    settings = load_settings(config, os.environ, {"redis_url": redis, "slot": slot})
    url = settings.redis_url.get_secret_value()
    if url.startswith("memory://"):
        raise NeedsPerson(
            "memory:// is the bus inside a worker's own process, which only `perpline status` can look into: run the "
            "worker with --redis redis://host:6379/0, and watch the same"
        )
    clock = SystemClock()
    positions = Positions(state_folder(os.environ) / "watch.db", where(url), name)
    wanted = tuple(symbol.upper() for symbol in symbols or ())
    follower = SignalFollower(url, clock, settings.slot, wanted, start, positions.get, positions.set, _tell_hole)
    watcher = _Watch(follower, clock, positions, _line_of(as_json), frozenset(only or ()), count, duration)
    try:
        run_loop(lambda stop: watcher.run(stop, f"slot {settings.slot} at {where(url)}"))
    except OSError as error:
        # Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # that one only means that who read us has enough (`watch | head`)
            raise NeedsPerson(f"cannot write the signals: {error.strerror or error}") from error
    finally:
        positions.close()


class _Watch:
    """Prints what a follower reads and notes after each line how far it has come."""

    def __init__(
        self,
        follower: SignalFollower,
        clock: Clock,
        positions: Positions,
        line_of: Callable[[Signal], str],
        only: frozenset[Status],
        count: int | None,
        duration_s: float | None,
    ) -> None:
        self._follower = follower
        self._clock = clock
        self._positions = positions
        self._line_of = line_of
        self._only = only
        self._left = count
        self._until_s = None if duration_s is None else clock.wall_s() + duration_s
        self._rng = random.Random()

    async def run(self, stop: asyncio.Event, what: str) -> None:
        """Until `stop`, or what count and duration say. Waits out a server that is away."""
        failures, started = 0, False
        try:
            while not self._ended(stop):
                try:
                    if not started:
                        await self._follower.start()
                        started = True
                        _tell(f"following {what}, {len(self._follower.positions)} symbols so far")
                    entries = await self._follower.read(min(WAIT_S, self._remaining_s()))
                except Unavailable as error:
                    failures += 1
                    wait_s = backoff_s(failures, self._rng, LONGEST_WAIT_S)
                    _tell(f"{error}; trying again in {wait_s:.0f} s")
                    with suppress(TimeoutError):
                        async with asyncio.timeout(min(wait_s, self._remaining_s())):
                            await stop.wait()
                    continue
                if failures:
                    failures = 0
                    _tell(f"{what} is back")
                for entry in entries:
                    if self._ended(stop):
                        break
                    self._print(entry)
                if not self._follower.positions:
                    await asyncio.sleep(min(WAIT_S, self._remaining_s()))
        finally:
            await self._follower.close()

    def _ended(self, stop: asyncio.Event) -> bool:
        return stop.is_set() or self._left == 0 or self._remaining_s() <= 0

    def _remaining_s(self) -> float:
        return 1e9 if self._until_s is None else self._until_s - self._clock.wall_s()

    def _print(self, entry: StreamEntry) -> None:
        try:
            signal = signal_of(entry.fields)
        except Malformed as error:
            _tell(f"{entry.stream} {entry.id[0]}-{entry.id[1]}: {error}; passed over")
            signal = None
        if signal is not None and (not self._only or signal.status in self._only):
            # One write for the line: a death leaves it whole or not at all, and the position not beyond it.
            sys.stdout.write(self._line_of(signal))
            sys.stdout.flush()
            self._left = None if self._left is None else self._left - 1
        self._positions.set(entry.stream, entry.id)
        self._follower.passed(entry)


def _line_of(as_json: bool) -> Callable[[Signal], str]:
    if as_json:
        return lambda signal: msgspec.json.encode(signal).decode() + "\n"
    console = Console(highlight=False)

    def line(signal: Signal) -> str:
        with console.capture() as captured:
            console.print(signal_text(signal), soft_wrap=True)
        return captured.get()

    return line


def signal_text(signal: Signal) -> Text:
    """A signal as a line for people."""
    text = Text(_utc(signal.T, "%Y-%m-%d %H:%M"), "dim")
    text.append(f"  {_plain(signal.sym):<12} ", "not dim bold")
    if signal.side == 0:
        style = {"flat": "dim", "cooldown": "cyan", "skipped_warmup": "yellow"}.get(signal.status, "red")
        text.append(f"{_plain(signal.status)}", f"not dim {style}")
        text.append(f"  {_plain(signal.detail)}", "dim")
        return text
    word, style = ("▲ long ", "green") if signal.side > 0 else ("▼ short", "magenta")
    text.append(word, f"not dim bold {style}")
    numbers = [("p", signal.p, ".3f"), ("ev", signal.ev_bp, ".1f")]
    for label, number, form in numbers:
        if number is not None:
            text.append(f"  {label} ", "dim").append(format(number, form), "not dim")
    for label, price in (("mark", signal.ref_mark), ("tp", signal.tp), ("sl", signal.sl)):
        if price is not None:
            text.append(f"  {label} ", "dim").append(_plain(price), "not dim")
    if signal.t_pub_us > signal.valid_until * 1000:
        text.append("  published after it had expired", "not dim red")
    else:
        text.append(f"  until {_utc(signal.valid_until, '%H:%M:%S')}", "dim")
    return text


def _utc(time_ms: int, form: str) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime(form)


def _plain(text: str) -> str:
    """Without what a terminal would obey: it comes from a server that others may write to."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def _tell_hole(symbol: str, last: int, oldest: int) -> None:
    _tell(
        f"{symbol}: what came between {_utc(last, '%Y-%m-%d %H:%M')} and {_utc(oldest, '%Y-%m-%d %H:%M')} UTC is no "
        "longer on the server; the database has it"
    )


def _tell(line: str) -> None:
    print(f"perpline watch: {_plain(line)}", file=sys.stderr, flush=True)
