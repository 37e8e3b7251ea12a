"""The overview of all symbols in a real browser: its frames, what it costs the worker, and what the processes use."""

import importlib.util
import math
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import numpy as np

from bench import processes
from bench.processes import START_LIMIT_S, Worker, cpu_s, descendants, exchange_time_ms, simulated_exchange, waited_s
from bench.results import Table
from perpline.domain.candle import MINUTE_MS

ALONE, WITH = "nobody looks", "dashboard and browser"
STILL, SCROLLING = "lies still", "is scrolled"
AT_A_CLOSE = "of both, near a close"
SETTLED_S = 12.0
"""Of a turn, which are not counted: processes start, and the page is drawn for the first time."""
EARLIEST_MS, LATEST_MS = 10_000, 42_000
"""Turns begin so far into a minute, so that the close in each is neither in what is not counted nor at its end."""
DECIDED_WITHIN_MS = 5_000
"""Market time after which a close's decisions, and what a page draws of them, are over."""
LATE_FRAME_MS = 100.0
ROW_PX, NOTCH_PX, NOTCH_S = 36, 120, 0.15
READY_LIMIT_S = 30.0
PAGE_LIMIT_MS = 30_000
# As root it has no sandbox; it is to ask nobody for anything by itself.
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync")  # fmt: skip

WATCH = """
(() => {
  const none = () => ({ frames: [], tasks: [], drawn: 0, messages: 0, bytes: 0, scrolled: 0 });
  const tops = new WeakMap();
  let seen = none();
  let last = null;
  window.takeSeen = () => [seen, (seen = none())][0];
  const frame = () => {
    const now = performance.now();
    if (last !== null) seen.frames.push([performance.timeOrigin + now, now - last]);
    last = now;
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
  new PerformanceObserver((list) => {
    for (const each of list.getEntries()) seen.tasks.push(each.duration);
  }).observe({ type: "longtask" });
  window.WebSocket = class extends WebSocket {
    constructor(...how) {
      super(...how);
      this.addEventListener("message", (event) => {
        seen.messages += 1;
        seen.bytes += event.data.length;
      });
    }
    send(data) {
      seen.drawn += 1; // the page says only this: that it has drawn an update
      super.send(data);
    }
  };
  const scrolled = ({ target }) => {
    seen.scrolled += Math.abs((target.scrollTop ?? 0) - (tops.get(target) ?? 0));
    tops.set(target, target.scrollTop ?? 0);
  };
  document.addEventListener("scroll", scrolled, { capture: true, passive: true });
})();
"""
"""Run in the page before its own scripts: counts, and gives what it counted to `takeSeen()`."""

WINDOW_S = 0.4
"""A symbol's window costs 10 of the 2,400 that may be asked of the exchange a minute, and others ask too."""

Cells = tuple[str | float | int | None, ...]


def lacking() -> str | None:
    """Why this cannot be measured here, in one line; None where it can."""
    if importlib.util.find_spec("playwright") is None:
        return "dashboard: not measured, playwright is not installed (the extra [browser])"
    if _chromium() is None:
        return "dashboard: not measured, no Chromium on this machine (apt-get install chromium)"
    return None


def dashboard(
    symbols: int,
    seconds: float,
    niceness: int,
    say: Callable[[str], None],
    *,
    speed: float = 1.0,
    turn_s: float = 60.0,
) -> list[Table]:
    """The tables for this many symbols, with at least so many seconds of frames of a page at rest and of one scrolled.

    `niceness` is the browser's: 0, it takes turns with the worker; 19, it takes what the others leave.
    Turns without and with dashboard and browser alternate, as many of each as those seconds need.
    """
    from playwright.sync_api import sync_playwright

    half_s = (turn_s - SETTLED_S) / 2
    turns = max(1, math.ceil(seconds / half_s))
    alone, watched = _Case(), _Case()
    seen = {STILL: _Seen(), SCROLLING: _Seen()}
    with tempfile.TemporaryDirectory(prefix="perpline-bench-") as name, sync_playwright() as playwright:
        folder = Path(name)
        say("starting the exchange")
        with simulated_exchange(symbols, speed, folder) as exchange, Worker(exchange, folder / "worker") as worker:
            say("waiting for the worker")
            worker.wait_windows(START_LIMIT_S + symbols * WINDOW_S)
            is_ready = _is_ready(worker)
            market = _Market(exchange, speed)
            for turn in range(turns):
                say(f"turn {turn + 1} of {turns}: {ALONE}")
                market.wait_for_the_middle()
                begins = time.monotonic()
                _sleep_until(begins + SETTLED_S)
                with alone.measured(market, worker, {"exchange": exchange["pid"]}):
                    _sleep_until(begins + turn_s)
                say(f"turn {turn + 1} of {turns}: {WITH}")
                market.wait_for_the_middle()
                begins = time.monotonic()
                with (
                    processes.dashboard(worker, folder) as (url, pid),
                    _page(playwright, url, folder, niceness) as page,
                ):
                    _sleep_until(begins + SETTLED_S)
                    with watched.measured(market, worker, {"exchange": exchange["pid"], "dashboard": pid}):
                        for kind in (STILL, SCROLLING)[:: 1 if turn % 2 else -1]:
                            page.evaluate("() => void takeSeen()")
                            began = time.monotonic()
                            if kind == SCROLLING:
                                _scroll(page, symbols, began + half_s)
                            _rest(page, began + half_s)
                            seen[kind].add(page.evaluate("() => takeSeen()"), time.monotonic() - began)
            batches = [_batches_ms(worker.database, case.closes) for case in (alone, watched)]
            status = worker.stop()
    return [
        _frames(symbols, seen, market, watched.closes),
        _latency(symbols, alone, watched, batches, status, is_ready, speed),
        _use(alone, watched, seen, niceness),
    ]


# ---- turns ----


class _Market:
    """The exchange's time."""

    def __init__(self, exchange: dict[str, Any], speed: float) -> None:
        self._exchange = exchange
        self._speed = speed
        self._ahead_ms = exchange_time_ms(exchange) - time.time() * 1000 * speed

    def now_ms(self) -> int:
        return exchange_time_ms(self._exchange)

    def at(self, wall_ms: float) -> float:
        """Market time at this time of the machine's clock, which the browser's is too."""
        return wall_ms * self._speed + self._ahead_ms

    def wait_for_the_middle(self) -> None:
        passed = self.now_ms() % MINUTE_MS
        if not EARLIEST_MS <= passed <= LATEST_MS:
            time.sleep((EARLIEST_MS - passed) % MINUTE_MS / 1000 / self._speed)


@dataclass
class _Case:
    """The turns of one case together."""

    seconds: float = 0.0
    messages: int = 0
    waited_s: float = 0.0
    """Of the worker's loop, for a processor."""
    cpu_s: dict[str, float] = field(default_factory=dict)
    closes: list[int] = field(default_factory=list)
    """Boundaries whose decisions were made within."""

    @contextmanager
    def measured(self, market: _Market, worker: Worker, others: dict[str, int]) -> Iterator[None]:
        began_ms, before = market.now_ms(), _Reading(worker, others)
        yield
        after, ended_ms = _Reading(worker, others), market.now_ms()
        self.seconds += after.at_s - before.at_s
        self.messages += after.messages - before.messages
        self.waited_s += after.waited_s - before.waited_s
        for name, used in after.cpu_s.items():
            self.cpu_s[name] = self.cpu_s.get(name, 0.0) + used - before.cpu_s[name]
        first = -(-began_ms // MINUTE_MS) * MINUTE_MS
        self.closes += range(first, ended_ms - DECIDED_WITHIN_MS + 1, MINUTE_MS)


class _Reading:
    """What was used so far."""

    def __init__(self, worker: Worker, others: dict[str, int]) -> None:
        status = worker.status()
        assert status is not None
        self.messages: int = status["messages"]["total"]
        self.at_s = time.monotonic()
        self.cpu_s = {name: cpu_s(pid) for name, pid in {"worker": worker.pid, **others}.items()}
        self.waited_s = waited_s(worker.pid)
        started = descendants(os.getpid())
        browser = {pid: command for pid, command in started.items() if "chrom" in command.split(" ")[0]}
        if browser:
            self.cpu_s["browser"] = sum(map(cpu_s, browser))
            self.cpu_s["of it the page"] = sum(cpu_s(pid) for pid in browser if "--type=renderer" in browser[pid])


def _is_ready(worker: Worker) -> bool:
    """Every stream may have to wait for a trade in the quietest contract: not for longer than a while."""
    try:
        worker.wait_ready(READY_LIMIT_S)
    except processes.NotReady:
        return False
    return True


def _sleep_until(monotonic_s: float) -> None:
    time.sleep(max(0.0, monotonic_s - time.monotonic()))


# ---- the page ----


def _chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def _page(playwright: Any, url: str, folder: Path, niceness: int) -> Iterator[Any]:
    """The overview, drawn, in a browser of its own."""
    # Run as root it would give threads of its own precedence over everybody: no other user's browser may.
    without = "setpriv --bounding-set=-sys_nice " if os.geteuid() == 0 and shutil.which("setpriv") else ""
    start = folder / "browser"
    start.write_text(f'#!/bin/sh\nexec {without}nice -n {niceness} {_chromium()} "$@"\n')
    start.chmod(0o700)
    browser = playwright.chromium.launch(executable_path=start, args=list(ARGUMENTS))
    try:
        page = browser.new_page(viewport={"width": 1440, "height": 900}, locale="en-US")
        page.add_init_script(WATCH)
        page.goto(url, timeout=PAGE_LIMIT_MS)
        page.wait_for_selector('[data-testid="page-overview"][data-ready="true"]', timeout=PAGE_LIMIT_MS)
        page.mouse.move(720, 500)  # over the table
        yield page
    finally:
        browser.close()


def _scroll(page: Any, symbols: int, until_s: float) -> None:
    """Turn the wheel by a notch every while, down to the end and up again."""
    notches = max(1, symbols * ROW_PX // NOTCH_PX)
    began, number = time.monotonic(), 0
    while (began + (number + 1) * NOTCH_S) < until_s:
        page.mouse.wheel(0, NOTCH_PX if number // notches % 2 == 0 else -NOTCH_PX)
        number += 1
        _rest(page, began + number * NOTCH_S)
        number = max(number, math.floor((time.monotonic() - began) / NOTCH_S))  # what a slow page missed is not made up


def _rest(page: Any, until_s: float) -> None:
    page.wait_for_timeout(max(0.0, until_s - time.monotonic()) * 1000)


@dataclass
class _Seen:
    """What a page counted while it was looked at in one way."""

    seconds: float = 0.0
    frames: list[tuple[float, float]] = field(default_factory=list)
    """When it came, ms of the machine's clock, and how long after the one before, ms."""
    tasks_ms: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, found: dict[str, Any], seconds: float) -> None:
        self.seconds += seconds
        self.frames += map(tuple, found.pop("frames"))
        self.tasks_ms += found.pop("tasks")
        self.counts.update(found)


# ---- tables ----


def _frames(symbols: int, seen: dict[str, _Seen], market: _Market, closes: Sequence[int]) -> Table:
    rows: list[Cells] = []
    for kind, each in seen.items():
        rows.append(
            (
                kind,
                *_of_frames([took for _, took in each.frames]),
                round(len(each.tasks_ms) / each.seconds * 60, 1),
                round(max(each.tasks_ms, default=0.0), 1),
                *(round(each.counts[name] / each.seconds, 2) for name in ("drawn", "scrolled")),
            )
        )
    near = [
        took
        for each in seen.values()
        for at, took in each.frames
        if any(0 <= market.at(at) - close < DECIDED_WITHIN_MS for close in closes)
    ]
    if near:
        rows.append((AT_A_CLOSE, *_of_frames(near), None, None, None, None))
    return Table(
        f"Frames of the overview, {symbols} symbols",
        ("the page", "seconds", "frames/s", "p50 ms", "p99 ms", "longest ms", "over 100 ms", "share of time",
         "long tasks/min", "longest task ms", "updates/s", "px/s"),
        rows,
        (
            "Chromium without a window and without a graphics processor (1440 × 900, all drawing by the processor). "
            "A frame: from one requestAnimationFrame to the next. over 100 ms: how many, and the share of the time "
            "that they took. Long tasks: above 50 ms, as the browser tells (Long Tasks API).",
            "updates/s: messages of changes that the page has drawn and acknowledged (at most 5). Scrolled by a notch "
            f"of the wheel, {NOTCH_PX} px, every {NOTCH_S:g} s. near a close: frames of the "
            f"{DECIDED_WITHIN_MS / 1000:g} s of market time after one.",
        ),
    )  # fmt: skip


def _of_frames(took_ms: Sequence[float]) -> Cells:
    took = np.array(took_ms)
    late = took[took > LATE_FRAME_MS]
    return (
        round(float(took.sum()) / 1000, 1),
        round(len(took) / float(took.sum()) * 1000, 2),
        *(round(float(np.quantile(took, q)), 1) for q in (0.5, 0.99, 1.0)),
        len(late),
        round(float(late.sum() / took.sum()), 4),
    )


def _latency(
    symbols: int,
    alone: _Case,
    watched: _Case,
    batches: Sequence[Sequence[float]],
    status: dict[str, Any],
    is_ready: bool,
    speed: float,
) -> Table:
    figures = [
        (
            *(float(np.quantile(ms, q)) for q in (0.5, 0.99, 1.0)),
            case.cpu_s["worker"] / case.seconds,
            case.waited_s / case.seconds,
            case.messages / case.seconds,
        )
        for case, ms in zip((alone, watched), batches, strict=True)
    ]
    rows: list[Cells] = [
        (name, len(case.closes), len(ms), *(round(figure, 3) for figure in of[:-1]), round(of[-1]))
        for name, case, ms, of in zip((ALONE, WITH), (alone, watched), batches, figures, strict=True)
    ]
    ratios = (round(after / before, 3) if before else None for before, after in zip(*figures, strict=True))
    rows.append(("ratio", None, None, *ratios))
    own = status["decisions"]["close_to_signal_ms"]
    return Table(
        f"close_to_signal_ms of the worker, {symbols} symbols",
        ("case", "closes", "batches", "p50", "p99", "max", "CPU", "waits", "messages/s"),
        rows,
        (
            "Turns of one run, in alternation, without dashboard and browser and with both; what is heard is the "
            f"simulated exchange at speed {speed:g}: messages/s are those the worker took. SQLite, in-process bus, "
            "default settings.",
            "From the receipt of a batch's last symbol until it was on the bus, in ms, read from the tables (outbox, "
            "whose times are whole ms: ± 0.5). The worker's own figure for the whole run, turns and what lies between: "
            f"p50 {_text(own['p50'])}, p99 {_text(own['p99'])}.",
            "CPU: of the worker's process, share of one processor. waits: share of the time in which the worker's loop "
            "could have run and found no free processor: exchange, browser and all else are on this machine.",
            *(() if is_ready else (f"Not every stream had delivered after {READY_LIMIT_S:g} s: it was begun then.",)),
        ),
    )


def _use(alone: _Case, watched: _Case, seen: dict[str, _Seen], niceness: int) -> Table:
    cases = alone, watched
    rows: list[Cells] = [
        (name, *(round(each.cpu_s[name] / each.seconds, 3) if name in each.cpu_s else None for each in cases))
        for name in ("worker", "dashboard", "browser", "of it the page", "exchange")
    ]
    seconds = sum(each.seconds for each in seen.values())
    kilobytes, messages = (sum(each.counts[name] for each in seen.values()) for name in ("bytes", "messages"))
    return Table(
        "What the processes use, shares of one processor",
        ("process", ALONE, WITH),
        rows,
        (
            f"Dashboard → browser: {kilobytes / seconds / 1000:,.1f} kB/s in {messages / seconds:.1f} messages/s "
            "(JSON on the socket, not compressed).",
            f"browser: all of Chromium's processes, niceness {niceness}. exchange: the simulated one, which makes what "
            "the worker hears.",
        ),
    )


def _batches_ms(database: Path, closes: Sequence[int]) -> list[float]:
    """How long each batch of these closes took. Raises RuntimeError where a close has no decision."""
    connection = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)
    connection.set_busy_timeout(5000)
    try:
        found = [
            row
            for close in closes
            for row in connection.execute(
                "SELECT s.close_time, max(s.t_candle_recv), max(o.published_at) FROM signals s JOIN outbox o "
                "ON o.kind = 'signal' AND o.slot = s.slot AND o.symbol = s.symbol AND o.close_time = s.close_time "
                "WHERE s.close_time = ? AND s.status <> 'skipped_missed' AND o.published_at IS NOT NULL "
                "GROUP BY s.t_features",
                (close,),
            )
        ]
    finally:
        connection.close()
    if not closes or {close for close, *_ in found} != set(closes):
        raise RuntimeError(f"{len(closes)} closes, decisions of {len({close for close, *_ in found})} of them")
    return [published_ms + 0.5 - received_us / 1000 for _, received_us, published_ms in found]


def _text(ms: float | None) -> str:
    return "unknown" if ms is None else f"{ms:.2f}"
