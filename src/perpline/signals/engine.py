"""Exactly one decision for every symbol and closed minute: due symbols → features → model → policy → store → outbox."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, Protocol

import msgspec
import numpy as np
import structlog
from msgspec import Struct

from perpline import __version__
from perpline.common.clock import Clock
from perpline.common.errors import Fenced, Unavailable
from perpline.common.telemetry import LatencyWindow
from perpline.domain.candle import MINUTE_MS, Candle, last_boundary
from perpline.domain.instrument import Instrument
from perpline.domain.market import BookTicker, MarkPrice
from perpline.domain.messages import CloseDraft, Flags, ModelDraft, SignalDraft, StepTimes
from perpline.domain.signal import Decision, Message, Prediction, Status, signal_id
from perpline.inference.artefact import LoadedModel, Vectors
from perpline.inference.drift import DriftWatch
from perpline.inference.registry import Deployed
from perpline.signals.policy import COOLDOWN_MIN, Facts, Verdict, decide, exit_prices
from perpline.signals.scoring import Scores, Sides, score, sides
from perpline.storage.store import Assumed, Committed, Store

log = structlog.get_logger("perpline.engine")

VALID_FOR_MS = 30_000
"""A signal is meant to be acted on within this time of T; consumers must ignore it later (features.md 4.1)."""

REMEMBERED_MS = 24 * 60 * MINUTE_MS
"""Signals older than this have no bearing on a cooldown."""

UNIVERSE_WAIT_MS = 2_000
"""How long after T a model that compares symbols waits for all of them."""

ASIDE = 64
"""Batches that may wait to be scored by the shadows; beyond it the oldest go unscored, and are counted."""

MISSED_AT_ONCE = 5_000
"""Rows of missed minutes that go into one transaction after a long downtime."""

STAGES = ("exchange", "collect", "features", "predict", "decide", "commit", "publish")
"""From T to the signal, one after the other: until the last close of a batch was received, until its features were
begun, until they were there, scored, concluded, stored, and on the bus."""
STAGES_OF_A_COLLECTOR = ("exchange", "collect", "send")

_encode = msgspec.json.Encoder().encode

Commit = Callable[[Sequence[Decision], Sequence[Prediction], Sequence[Message], int], Awaitable[Committed]]
"""(decisions, predictions, messages, t_commit): stores them as `Store.commit_decisions` does; raises what that does."""


Send = Callable[[Sequence[str], int, Mapping[str, int]], Awaitable[None]]
"""(symbols, T, received_us): hands the features of these symbols to whoever decides."""


class TooLate(Exception):
    """The time to decide these minutes was over before the store took them; it may have them all the same."""


class Features(Protocol):
    """What the engine asks of the features: `LiveFeatures`, or what came from other processes."""

    def vectors(self, symbols: Sequence[str]) -> Vectors: ...

    def held(self, symbol: str) -> int: ...

    def broken_by_gap(self, symbol: str, lookback_min: int) -> bool: ...

    def late(self, symbol: str) -> int: ...


class Market(Struct, frozen=True):
    """What the engine may look up: the newest value by symbol, None where nothing has come yet."""

    mark: Callable[[str], MarkPrice | None]
    book: Callable[[str], BookTicker | None]
    last_candle: Callable[[str], Candle | None]
    instrument: Callable[[str], Instrument | None]


class _Batch(Struct):
    """Symbols decided together, until the last of their messages is published."""

    close_time: int
    last_received_us: int
    unpublished: set[str]
    committed_s: float | None = None
    """Wall seconds; None until the store has answered, which may be after other tasks have published."""


class _Aside(Struct):
    """A decided batch that shadows and the drift watch have still to see."""

    close_time: int
    symbols: Sequence[str]
    table: Vectors
    """[n, features of the catalogue]."""
    scores: Scores | None
    drift: DriftWatch | None
    signals: int
    shadows: list[Deployed]


class SignalEngine:
    """Decides what is due, all of it together, as soon as it is due; no timer is added when idle.

    `on_1m_candle_close` only marks and wakes: it lies between bytes and decision and must not wait. A minute whose
    close is known by T + `decide_within_s` is decided; any other gets the one row `skipped_missed`, written when the
    process knows of it: at that deadline, or after a start for the minutes in which no process was alive.

    Which model decides is read once, when the first batch of a minute begins: all symbols of one T are decided by one
    model, and a new one takes over between two minutes. Shadows score the same vectors after the decision is stored.

    Between `stand_by` and `take_over` nothing is decided and nothing is noted as missed: another process does both.

    With `send` nothing is decided here: what is due is handed on. With `speaks` several processes decide the slot's
    minutes between them, each those that it is told to (`decide_received`); what a verdict went by is then compared in
    the deciding transaction. `speaks()` says whether this process tells what is to be told once.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        store: Store,
        features: Features,
        deployed: Sequence[Deployed],
        market: Market,
        slot: str,
        decide_within_s: float,
        wake_publisher: Callable[[Sequence[Message] | None], None],
        end_book_minutes: Callable[[Sequence[str], int], None] | None = None,
        on_decided: Callable[[list[Decision]], None] = lambda decisions: None,
        commit: Commit | None = None,
        on_fenced: Callable[[], None] = lambda: None,
        send: Send | None = None,
        speaks: Callable[[], bool] | None = None,
    ) -> None:
        """`end_book_minutes(symbols, T)` hands the features the minute of the best bid and ask that ended at T; None
        where no model has columns of it. `on_decided` gets what was committed and new, in the same turn of the loop.
        `commit` is asked instead of the store itself, `on_fenced` told when it raised Fenced: then the engine has stood
        by already."""
        self.close_to_signal_ms = LatencyWindow()
        """Wall milliseconds from the receipt of the closing frame of a batch's last symbol to published."""
        self.market_close_to_signal_ms = LatencyWindow()
        """Wall milliseconds from T to published: holds the exchange's own delay."""
        self.stages_ms: dict[str, LatencyWindow] = {}
        """Wall milliseconds of each stage of a batch. The last ones of a batch that another process won, or published,
        are not ours to measure."""
        self._measured_from_us = 0
        self.by_status: Counter[Status] = Counter()
        self.decided_by: Counter[str] = Counter()
        """Rows stored by symbol."""
        self.batches = 0
        self.last_decision: dict[str, Decision] = {}
        self._clock = clock
        self._store = store
        self.shadow_rows: Counter[str] = Counter()
        """Predictions stored by shadow slot."""
        self.shadow_batches_lost = 0
        self._features = features
        self._serving: dict[str, Deployed] = {}
        """What is in force, by slot."""
        self._coming: list[Deployed] = []
        self._newest = 0
        """The latest T of which anything was decided."""
        self._drift: DriftWatch | None = None
        self._announcements: list[Message] = []
        self._aside: deque[_Aside] = deque(maxlen=ASIDE)
        self._aside_wake = asyncio.Event()
        self._market = market
        self._slot = slot
        self._within_ms = round(decide_within_s * 1000)
        self._wake_publisher = wake_publisher
        self._on_decided = on_decided
        self._end_book_minutes = end_book_minutes
        self._commit_with = commit
        self._on_fenced = on_fenced
        self._send = send
        self._speaks = speaks
        self._begin_stages()
        self._decides = True
        self._begins: dict[str, int] = {}
        """The boundary after which each expected symbol was expected, whatever has become of its minutes since."""
        self._joined: dict[str, int] = {}
        """The boundary after which each expected symbol is followed, by an earlier process too; 0 for always."""
        self._left: list[tuple[int, int]] = []
        """Of each symbol that was forgotten lately: that boundary, and its last T."""
        self._recount = False
        self._told_close = 0
        """The latest T that was told to be complete."""
        self._deciding: frozenset[str] = frozenset()
        """The symbols of the batch that is being decided and stored."""
        self._heard: dict[str, int] = {}
        """While standing by: the newest T of each symbol whose candle is in the features."""
        self._last: dict[str, int] = {}
        """The last T of each expected symbol that has a row, is due, or is noted as missed."""
        self._last_ok: dict[tuple[str, int], int] = {}
        """T of the last signal by symbol and side, for the cooldown."""
        self._due: dict[str, int] = {}
        self._received_us: dict[str, int] = {}
        self._missed: list[tuple[str, int]] = []
        self._rows_of_minute: dict[int, Counter[Status]] = {}
        self._unpublished: dict[tuple[str, int], _Batch] = {}
        self._step_ms = _no_steps()
        self._wake = asyncio.Event()
        for each in deployed:
            self.deploy(each)

    @property
    def model(self) -> LoadedModel | None:
        """The model that decides."""
        return self._serving[self._slot].model if self._slot in self._serving else None

    def deploy(self, deployed: Deployed) -> None:
        """Have this model decide, or score as a shadow, from its time on; the first of a slot at once."""
        if deployed.slot not in self._serving:
            self._serving[deployed.slot] = deployed
            if deployed.slot == self._slot:
                self._watch_drift()
            return
        self._coming.append(deployed)
        self._coming.sort(key=lambda each: each.effective_from)  # stable: the last of equals comes last

    def models_status(self) -> dict[str, Any]:
        """What is in force and what is coming, by slot, and the drift of the champion, as plain JSON values."""
        shadows = {slot: each for slot, each in self._serving.items() if slot != self._slot and each.model is not None}
        champion = self._serving.get(self._slot)
        return {
            "champion": None if champion is None else _deployed_status(champion),
            "shadows": {
                slot: {**_deployed_status(each), "rows": self.shadow_rows[slot]} for slot, each in shadows.items()
            },
            "shadow_batches_lost": self.shadow_batches_lost,
            "coming": [{"slot": each.slot, **_deployed_status(each)} for each in self._coming],
            "drift": None if self._drift is None else self._drift.facts(),
        }

    async def recover(
        self,
        symbols: Iterable[str],
        since: Mapping[str, int] | None = None,
        followed: Mapping[str, int] | None = None,
    ) -> None:
        """Begin where the store says the last process ended.

        Minutes since then that can no longer be decided are noted as missed, but for those that closed before `since`,
        exchange ms by symbol: it was not followed then. A symbol without a decision begins where an earlier process
        began to follow it (`followed`, exchange ms by symbol), one never seen before with the next minute. Must be
        called before the first close is delivered.
        """
        now = self._clock.exchange_now_ms()
        expected = list(symbols)
        decided = await self._read_on(now, expected)
        for symbol in expected:
            # Never ahead of the exchange: it may be the clock of whoever asked for the symbol, which may be fast.
            joined = last_boundary(min(now, (since or {}).get(symbol, 0)))
            begun = last_boundary(min(now, (followed or {}).get(symbol, now)))
            self._last[symbol] = self._begins[symbol] = max(decided.get(symbol, begun), joined)
            self._joined[symbol] = joined if symbol in decided else self._last[symbol]
        self._sweep(now)

    def stand_by(self) -> None:
        """Stop deciding, at once: another process leads. What is due is that one's; closes are only remembered."""
        self._decides = False
        self._due.clear()
        self._missed.clear()
        self._unpublished.clear()
        self._aside.clear()
        self._announcements.clear()

    async def take_over(self) -> None:
        """Decide from now on, beginning where the store says that the last leader ended. Raises Unavailable.

        The newest closed minute is decided if its time is not over: its candle is in the features. What lies between is
        noted as missed.
        """
        decided = await self._read_on(self._clock.exchange_now_ms(), self._begins.keys())
        # Not a word of waiting from here on: no close may fall between what was heard and what comes.
        newest = max(decided.values(), default=0)
        self._announcements = [message for message in self._announcements if message.close_time > newest]
        self._decides = True
        self._missed.clear()
        for symbol, begins in self._begins.items():
            self._last[symbol] = max(begins, decided.get(symbol, 0))
        heard, self._heard = self._heard, {}
        for symbol, close_time in heard.items():
            self.on_1m_candle_close(symbol, close_time)
        self._sweep(self._clock.exchange_now_ms())

    async def _read_on(self, now: int, expected: Collection[str]) -> dict[str, int]:
        """Read what is decided up to now; returns the newest T by symbol."""
        decided = await self._store.last_decided(self._slot)
        self._last_ok = await self._store.last_signals(self._slot, now - REMEMBERED_MS)
        since = last_boundary(now) - 2 * MINUTE_MS
        rows: dict[int, Counter[Status]] = {}
        for symbol, close_time, status in await self._store.decision_rows(self._slot, since, now):
            if symbol not in expected:
                continue
            rows.setdefault(close_time, Counter())[Status(status)] += 1
        self._rows_of_minute = rows
        return decided

    def measure_from_now(self) -> None:
        """Begin both latencies anew with the closes that are heard from now on.

        For when the worker is ready: before, a close may have waited for its symbol's window to be loaded, which is how
        long a start takes and says nothing of decisions.
        """
        self._measured_from_us = self._clock.now_us()
        self.close_to_signal_ms = LatencyWindow()
        self.market_close_to_signal_ms = LatencyWindow()
        self._begin_stages()

    def stages_status(self) -> dict[str, dict[str, float | None]]:
        """{stage: {"p50", "p99"}} of recent batches, wall milliseconds."""
        return {stage: window.summary() for stage, window in self.stages_ms.items()}

    def add(self, symbol: str, after: int) -> None:
        """Expect decisions for this symbol for every minute that closes after this boundary."""
        self._last.setdefault(symbol, after)
        self._begins.setdefault(symbol, after)
        self._joined.setdefault(symbol, after)

    def forget(self, symbol: str) -> None:
        """Expect nothing more of this symbol. What is due or noted as missed still gets its row."""
        last, joined = self._last.pop(symbol, None), self._joined.pop(symbol, None)
        self._begins.pop(symbol, None)
        if last is not None and joined is not None:
            self._left.append((joined, last))
        self._heard.pop(symbol, None)
        self.last_decision.pop(symbol, None)
        for kept in [kept for kept in self._last_ok if kept[0] == symbol]:
            del self._last_ok[kept]
        self._recount = True
        self._wake.set()

    def is_undecided(self, symbol: str) -> bool:
        """Whether a minute of this symbol is being decided, or its newest one has no row yet and can still get one."""
        if not self._decides:
            return False
        boundary = last_boundary(self._clock.exchange_now_ms())
        return self._last.get(symbol, boundary) < boundary or self.is_due(symbol)

    def is_due(self, symbol: str) -> bool:
        """Whether a minute of this symbol waits for its row, or is on its way to have one."""
        return symbol in self._due or symbol in self._deciding or any(symbol == each for each, _ in self._missed)

    @property
    def decides(self) -> bool:
        """Not so while it stands by."""
        return self._decides

    @property
    def has_due(self) -> bool:
        return bool(self._due or self._missed)

    @property
    def is_deciding(self) -> bool:
        """Whether a decision is due or on its way out. One that has waited for the bus for longer than a minute has to
        be decided is on its way no more: rows need not wait for it."""
        newest = next(reversed(self._unpublished.values()), None)
        is_on_its_way = newest is not None and self._clock.exchange_now_ms() <= newest.close_time + self._within_ms
        return bool(self._due) or is_on_its_way

    @property
    def undecided(self) -> list[str]:
        """Symbols whose latest minute has no row yet and can still be decided; none while standing by."""
        if not self._decides:
            return []
        boundary = last_boundary(self._clock.exchange_now_ms())
        waiting = {symbol for symbol, last in self._last.items() if last < boundary}
        return sorted(waiting | self._due.keys() | {symbol for symbol, _ in self._unpublished})

    def on_1m_candle_close(self, symbol: str, close_time: int) -> None:
        """The candle that closed at T = `close_time` is in the features: the symbol is due, if it is not too late."""
        last = self._last.get(symbol)
        if last is not None and not self._decides:
            self._heard[symbol] = max(close_time, self._heard.get(symbol, 0))
            self._switch(close_time)
            return
        if last is None or close_time <= last:
            return  # not expected, or a minute that has its row: recovery fills windows through here as well
        if (overtaken := self._due.pop(symbol, None)) is not None:
            # It waited for a store that is away, and the features are a minute further now.
            self._missed.append((symbol, overtaken))
        self._missed += [(symbol, t) for t in range(last + MINUTE_MS, close_time, MINUTE_MS)]
        self._last[symbol] = close_time
        if self._clock.exchange_now_ms() > close_time + self._within_ms:
            self._missed.append((symbol, close_time))
        else:
            candle = self._market.last_candle(symbol)
            # A candle that was stored before a restart does not know its microsecond.
            self._received_us[symbol] = (candle.received_us if candle is not None else 0) or self._clock.now_us()
            self._due[symbol] = close_time
        self._wake.set()

    async def run(self) -> None:
        """Decide and keep the minutes complete, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            if self._speaks is None:
                tasks.create_task(self._decide_due(), name="decide")
                tasks.create_task(self._watch_minutes(), name="missed minutes")
            tasks.create_task(self._keep_scoring(), name="shadows and drift")

    async def drain(self) -> None:
        """Decide everything that is due now.

        Older minutes first: `recover` begins after a symbol's newest row, so no row may overtake an earlier one.
        """
        try:
            await self._drain()
        except Fenced as error:
            # Nothing of it was stored. Who leads now decides these minutes, or has.
            if self._decides:
                log.error("fenced", reason=str(error), action="decide")
                self.stand_by()
                self._on_fenced()

    async def _drain(self) -> None:
        while self._due or self._missed:
            if self._due and not (self._missed and self._missed[0][1] < min(self._due.values())):
                close_time = min(self._due.values())
                symbols = [symbol for symbol, t in self._due.items() if t == close_time]
                for symbol in symbols:
                    del self._due[symbol]
                self._deciding = frozenset(symbols)
                try:
                    await self.run_inference(symbols, close_time)
                except asyncio.CancelledError:
                    # Stored or not: what is decided again at the end loses against the row that is there.
                    self._put_back(symbols, close_time)
                    raise
                finally:
                    self._deciding = frozenset()
            else:
                missed, self._missed = self._missed[:MISSED_AT_ONCE], self._missed[MISSED_AT_ONCE:]
                try:
                    await self._write_missed(missed)
                except asyncio.CancelledError:
                    self._missed = missed + self._missed
                    raise
        if self._recount:
            self._recount = False
            await self._tell_what_is_complete()

    async def _tell_what_is_complete(self) -> None:
        """Send the message of the newest minute, if a symbol that was forgotten was all that it waited for."""
        newest = max(self._rows_of_minute, default=0)
        messages = self._completed_minutes({newest: Counter()}) if newest > self._told_close else []
        if not messages or not self._decides or self._send is not None:
            return
        try:
            committed = await self._store_all([], [], messages)
        except Unavailable:
            self._told_close, self._recount = 0, True  # with what is decided next
            return
        self._wake_publisher(committed.messages)

    def on_published(self, messages: Sequence[Message]) -> None:
        """Told by the publisher; ends the clock of the batches these messages complete."""
        now_us = self._clock.now_us()
        for message in messages:
            batch = self._unpublished.pop((message.symbol, message.close_time), None)
            if batch is None or message.kind != "signal":
                continue
            batch.unpublished.discard(message.symbol)
            if not batch.unpublished:
                since_commit_ms = None
                if batch.committed_s is not None:
                    since_commit_ms = (self._clock.wall_s() - batch.committed_s) * 1000
                    self._step_ms["pub"].add(since_commit_ms)
                if batch.last_received_us < self._measured_from_us:
                    continue
                if since_commit_ms is not None:
                    self.stages_ms["publish"].add(since_commit_ms)
                speed = self._clock.speed
                self.close_to_signal_ms.add((now_us - batch.last_received_us) / 1000 / speed)
                from_close_ms = now_us / 1000 + self._clock.offset_ms - batch.close_time
                self.market_close_to_signal_ms.add(from_close_ms / speed)

    def _put_back(self, symbols: Sequence[str], close_time: int) -> None:
        for symbol in symbols:
            if self._last.get(symbol) == close_time:
                self._due[symbol] = close_time
            else:
                self._missed.append((symbol, close_time))

    async def score_aside(self) -> None:
        """Show the batches decided since to the shadows and the drift watch."""
        while self._aside:
            batch = self._aside.popleft()
            self._count_drift(batch)
            batch.drift = None
            try:
                while batch.shadows:
                    await self._score_shadow(batch.shadows[0], batch)
                    del batch.shadows[0]
            except asyncio.CancelledError:
                self._aside.appendleft(batch)  # the end of the process scores what is left
                raise

    async def _keep_scoring(self) -> None:
        while True:
            await self._aside_wake.wait()
            self._aside_wake.clear()
            await self.score_aside()

    async def _decide_due(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._wait_for_universe()
            await self.drain()

    async def _wait_for_universe(self) -> None:
        """Where the model compares symbols, wait until all have this minute, but no longer than T + 2 s."""
        while self._due and self.model is not None and self.model.cross_section:
            close_time = min(self._due.values())
            left_ms = close_time + UNIVERSE_WAIT_MS - self._clock.exchange_now_ms()
            if left_ms <= 0 or all(last >= close_time for last in self._last.values()):
                return
            await self._clock.sleep(min(left_ms, 50) / 1000)

    def _universe_share(self, close_time: int) -> float:
        here = sum(last >= close_time for last in self._last.values())
        return here / len(self._last) if self._last else 1.0

    async def _watch_minutes(self) -> None:
        while True:
            now = self._clock.exchange_now_ms()
            deadline = last_boundary(now - self._within_ms) + MINUTE_MS + self._within_ms
            await self._clock.sleep((deadline - now) / 1000 + 0.001)
            self._sweep(self._clock.exchange_now_ms())

    def _sweep(self, now: int) -> None:
        """Note as missed every minute of every symbol whose time to decide is over."""
        if not self._decides:
            return
        over = last_boundary(now - self._within_ms - 1)
        for symbol, last in self._last.items():
            if last < over:
                self._missed += [(symbol, t) for t in range(last + MINUTE_MS, over + 1, MINUTE_MS)]
                self._last[symbol] = over
        self._tidy(over)
        if self._missed:
            self._wake.set()

    def _tidy(self, over: int) -> None:
        """Forget what is of no use once the minutes up to `over` are."""
        for t in [t for t in self._rows_of_minute if t < over - 10 * MINUTE_MS]:
            del self._rows_of_minute[t]
        self._left = [left for left in self._left if left[1] >= over - 10 * MINUTE_MS]
        # Published by another process, or waiting for the bus for so long that nobody asks how long it took.
        for key in [key for key in self._unpublished if key[1] < over - 10 * MINUTE_MS]:
            del self._unpublished[key]

    # ---- deciding, with others ----

    @property
    def expected(self) -> Mapping[str, int]:
        """The symbols that decisions are expected for, each with the boundary after which it is."""
        return self._begins

    async def decide_received(self, symbols: Sequence[str], close_time: int, received_us: Mapping[str, int]) -> None:
        """Decide these symbols for T, whose features are here. Others may do the same: one of us wins.

        Raises TooLate where the store was away until the time to decide was over.
        """
        self._received_us.update(received_us)
        try:
            await self.run_inference(symbols, close_time)
        except TooLate:
            for symbol in symbols:
                self._unpublished.pop((symbol, close_time), None)
            raise

    def on_received(self, symbols: Iterable[str], close_time: int) -> None:
        """The features of these symbols at T are here, whoever decides them."""
        for symbol in symbols:
            self._last[symbol] = max(close_time, self._last.get(symbol, 0))

    async def write_missed(self, missed: Sequence[tuple[str, int]]) -> None:
        """Give these minutes the row of a minute that was not decided in time, unless they have one."""
        for start in range(0, len(missed), MISSED_AT_ONCE):
            await self._write_missed(missed[start : start + MISSED_AT_ONCE])

    async def tell_if_complete(self, close_time: int, expected: Collection[str]) -> bool:
        """Send the message of T if all expected symbols have a row of it. Returns whether they have.

        May be told by several processes: it goes out once. Raises Unavailable.
        """
        rows = await self._store.decision_rows(self._slot, close_time, close_time)
        counts = Counter(Status(status) for symbol, _, status in rows if symbol in expected)
        if counts.total() < len(expected):
            return False
        if close_time > self._told_close and expected:
            committed = await self._store_all([], [], [self._close_message(close_time, counts)])
            self._told_close = close_time
            self._wake_publisher(committed.messages)
        return True

    def tidy(self, now: int) -> None:
        """Forget what is of no use any more."""
        self._tidy(last_boundary(now - self._within_ms - 1))

    # ---- deciding ----

    async def run_inference(self, symbols: Sequence[str], close_time: int) -> None:
        """Decide these symbols for T together: one feature call, one model call, one transaction."""
        self._switch(close_time)
        deployed = self._serving.get(self._slot)
        model = None if deployed is None else deployed.model
        no_model = "no model" if deployed is None or not deployed.reason else deployed.reason
        received_us = {symbol: self._received_us[symbol] for symbol in symbols}
        began_us = self._clock.now_us()
        if self._end_book_minutes is not None:
            self._end_book_minutes(symbols, close_time)
        if self._send is not None:
            await self._send(symbols, close_time, received_us)
            self.batches += 1
            self._count_stages(close_time, max(received_us.values()), began_us, {"send": self._clock.now_us()})
            return
        table = self._features.vectors(symbols)
        t_features = self._clock.now_us()
        scores = None if model is None else score(model, table, np.full(len(symbols), close_time))
        t_predict = self._clock.now_us()
        speed = self._clock.speed
        self._step_ms["feat"].add((t_features - began_us) / 1000 / speed)
        self._step_ms["pred"].add((t_predict - t_features) / 1000 / speed)
        concluded = partial(
            self._concluded, symbols, close_time, model, no_model, scores, received_us, (t_features, t_predict)
        )
        batch = _Batch(close_time, max(received_us.values()), set(symbols))
        for symbol in symbols:
            self._unpublished[(symbol, close_time)] = batch
        began_s = self._clock.wall_s()
        drafts = concluded()
        t_decide = self._clock.now_us()
        while (won := await self._commit(*drafts)) is None:
            drafts = concluded()  # another process has decided a minute of these symbols: now by what it decided
        batch.committed_s = self._clock.wall_s()
        self._step_ms["db"].add((batch.committed_s - began_s) * 1000)
        ends = {"features": t_features, "predict": t_predict, "decide": t_decide, "commit": self._clock.now_us()}
        self._count_stages(close_time, batch.last_received_us, began_us, ends)
        self.batches += 1
        for symbol in set(symbols) - {decision.symbol for decision in won}:
            # Another process decided it first: its row stands and its message is that process's to send.
            self._unpublished.pop((symbol, close_time), None)
            batch.unpublished.discard(symbol)
        for decision in won:
            if decision.status is Status.OK:
                self._last_ok[(decision.symbol, decision.side)] = close_time
        self._set_aside(close_time, symbols, table, scores, sum(one.status is Status.OK for one in won))

    def _begin_stages(self) -> None:
        stages = STAGES if self._send is None else STAGES_OF_A_COLLECTOR
        self.stages_ms = {stage: LatencyWindow(256) for stage in stages}

    def _count_stages(self, close_time: int, received_us: int, began_us: int, ends: Mapping[str, int]) -> None:
        """`ends`: when the stages after `began_us` were over, in their order; microseconds of our market time."""
        if received_us < self._measured_from_us:
            return
        speed, before = self._clock.speed, round((close_time - self._clock.offset_ms) * 1000)
        for stage, end in {"exchange": received_us, "collect": began_us, **ends}.items():
            self.stages_ms[stage].add((end - before) / 1000 / speed)
            before = end

    def _concluded(
        self,
        symbols: Sequence[str],
        close_time: int,
        model: LoadedModel | None,
        no_model: str,
        scores: Scores | None,
        received_us: Mapping[str, int],
        stamps: tuple[int, int],
    ) -> tuple[list[Decision], list[Prediction]]:
        """What these scores come to, with what was signalled before."""
        t_features, t_predict = stamps
        decisions: list[Decision] = []
        predictions: list[Prediction] = []
        if model is None or scores is None:
            verdict = Verdict(Status.SKIPPED_MODEL, 0, no_model)
            for symbol in symbols:
                stamps_us = received_us[symbol], t_features, t_predict
                decisions.append(self._decision(symbol, close_time, verdict, None, "", 0, 0.0, len(symbols), stamps_us))
        else:
            # Columns at once and plain floats from here on: numpy's scalars cost a microsecond at every touch.
            names = [feature.name for feature in model.features]
            missing_at = np.isnan(scores.vectors)
            nan_counts = missing_at.sum(axis=1).tolist()
            lacking = set(np.flatnonzero(missing_at[:, model.critical_columns].any(axis=1)).tolist())
            bits = scores.vectors.astype("<f4").tobytes()
            width = len(names) * 4
            raw, calibrated = sides(scores.raw), sides(scores.calibrated)
            ood = scores.ood.tolist()
            universe_share = self._universe_share(close_time) if model.cross_section else 1.0
            for row, symbol in enumerate(symbols):
                kept = bits[row * width : (row + 1) * width]
                feat_ref = blake2b(kept, digest_size=16).hexdigest()
                missing: tuple[str, ...] = ()
                if row in lacking:
                    missing = tuple(names[at] for at in model.critical_columns.tolist() if missing_at[row, at])
                facts = self._facts(
                    symbol,
                    close_time,
                    model,
                    missing,
                    universe_share,
                    ood[row],
                    raw[row],
                    calibrated[row],
                    scores.errors[row],
                )
                verdict = decide(facts, model.rule, model.threshold, model.ev_min_bp)
                decisions.append(
                    self._decision(
                        symbol,
                        close_time,
                        verdict,
                        model,
                        feat_ref,
                        nan_counts[row],
                        ood[row],
                        len(symbols),
                        (received_us[symbol], t_features, t_predict),
                    )
                )
                predictions.append(
                    _prediction(self._slot, symbol, close_time, model, kept, feat_ref, raw[row], calibrated[row])
                )
        return decisions, predictions

    def _facts(
        self,
        symbol: str,
        close_time: int,
        model: LoadedModel,
        missing: tuple[str, ...],
        universe_share: float,
        ood_share: float,
        raw: Sides,
        calibrated: Sides,
        model_error: str,
    ) -> Facts:
        mark, book = self._market.mark(symbol), self._market.book(symbol)
        instrument = self._market.instrument(symbol)
        lookback = model.critical_lookback_min
        return Facts(
            close_time=close_time,
            held=self._features.held(symbol),
            lookback=lookback,
            broken_by_gap=self._features.broken_by_gap(symbol, lookback),
            halted="" if instrument is None or instrument.is_trading else instrument.status,
            mark_updated_at=mark.updated_at if mark is not None else None,
            book_updated_at=book.updated_at if book is not None else None,
            missing=missing,
            universe_share=universe_share,
            ood_share=ood_share,
            max_ood_share=model.max_ood_share,
            p_long=calibrated[0],
            p_short=calibrated[1],
            raw_long=raw[0],
            raw_short=raw[1],
            model_error=model_error,
            last_ok={side: t for side in (1, -1) if (t := self._last_ok.get((symbol, side))) is not None},
        )

    def _decision(
        self,
        symbol: str,
        close_time: int,
        verdict: Verdict,
        model: LoadedModel | None,
        feat_ref: str,
        nan_count: int,
        ood_share: float,
        together: int,
        stamps_us: tuple[int, int, int],
    ) -> Decision:
        mark, book = self._market.mark(symbol), self._market.book(symbol)
        candle, instrument = self._market.last_candle(symbol), self._market.instrument(symbol)
        rule = None if model is None else model.rule
        tp_price = sl_price = None
        if verdict.side and rule is not None and mark is not None and instrument is not None:
            tp_price, sl_price = exit_prices(instrument, verdict.side, mark.mark_price, rule)
        model_id = "" if model is None else model.model_id
        return Decision(
            signal_id=signal_id(self._slot, model_id, symbol, close_time),
            slot=self._slot,
            symbol=symbol,
            close_time=close_time,
            side=verdict.side,
            status=verdict.status,
            detail=verdict.detail,
            model_id=model_id,
            schema_hash="" if model is None else model.schema_hash,
            label_hash="" if model is None else model.label_hash,
            p_raw=verdict.p_raw,
            p_cal=verdict.p,
            ev_bp=verdict.ev_bp,
            threshold=None if model is None else model.threshold,
            tp_pct=None if rule is None else rule.tp_pct,
            sl_pct=None if rule is None else rule.sl_pct,
            horizon_s=None if rule is None else rule.horizon_s,
            cost_bp=None if rule is None else rule.cost_bp,
            ref_mark=_text(mark.mark_price) if mark is not None else None,
            ref_last=_text(candle.close) if candle is not None else None,
            bid=_text(book.bid) if book is not None else None,
            ask=_text(book.ask) if book is not None else None,
            tp_price=tp_price,
            sl_price=sl_price,
            valid_until=close_time + VALID_FOR_MS,
            feat_ref=feat_ref,
            xs_n=together,
            late_mask=0 if model is None else self._features.late(symbol) & model.late_bits,
            nan_count=nan_count,
            ood_share=ood_share,
            t_candle_recv=stamps_us[0],
            t_features=stamps_us[1],
            t_predict=stamps_us[2],
            engine_ver=__version__,
        )

    # ---- models ----

    def _switch(self, close_time: int) -> None:
        """Put in force what is due, if this is the first batch of a minute."""
        if close_time <= self._newest:
            return
        self._newest = close_time
        while self._coming and self._coming[0].effective_from <= close_time:
            deployed = self._coming.pop(0)
            before = self._serving[deployed.slot].model if deployed.slot in self._serving else None
            self._serving[deployed.slot] = deployed
            now, was = (None if each is None else each.model_id for each in (deployed.model, before))
            log.info("model_in_force", slot=deployed.slot, model=now, before=was, since=close_time, action="models")
            if deployed.slot == self._slot and now != was:
                self._watch_drift()
                self._announcements.append(self._model_message(close_time, now or "", was))

    def _model_message(self, close_time: int, model_id: str, before: str | None) -> Message:
        payload = ModelDraft(slot=self._slot, since=close_time, model=model_id, prev=before)
        return Message(
            id=0,
            kind="model",
            slot=self._slot,
            symbol="",
            close_time=close_time,
            payload=msgspec.json.encode(payload).decode(),
            valid_until=close_time + MINUTE_MS,
        )

    def _watch_drift(self) -> None:
        model, self._drift = self.model, None
        if model is not None and model.reference is not None:
            self._drift = DriftWatch(model.reference, [feature.name for feature in model.features])

    def _set_aside(
        self, close_time: int, symbols: Sequence[str], table: Vectors, scores: Scores | None, signals: int
    ) -> None:
        """Have shadows and drift watch look at the batch when there is time."""
        shadows = [each for slot, each in self._serving.items() if slot != self._slot and each.model is not None]
        if self._drift is None and not shadows:
            return
        if len(self._aside) == ASIDE:
            self.shadow_batches_lost += 1
        self._aside.append(_Aside(close_time, symbols, table, scores, self._drift, signals, shadows))
        self._aside_wake.set()

    def _count_drift(self, batch: _Aside) -> None:
        if batch.drift is None or batch.scores is None:
            return
        asked = ~np.isnan(batch.scores.calibrated).any(axis=1)
        ended = batch.drift.add(
            batch.close_time, batch.scores.vectors[asked], batch.scores.calibrated[asked], batch.signals
        )
        if ended is not None and (ended["drifting"] or ended["signals_unusual"]):
            model = None if self.model is None else self.model.model_id
            facts = {name: ended[name] for name in ("day", "drifting", "signals", "signals_usual")}
            log.warning("model_drifts", model=model, **facts, action="models")

    async def _score_shadow(self, deployed: Deployed, batch: _Aside) -> None:
        model = deployed.model
        assert model is not None
        scores = await asyncio.to_thread(score, model, batch.table, np.full(len(batch.symbols), batch.close_time))
        bits = scores.vectors.astype("<f4").tobytes()
        width = len(model.features) * 4
        raw, calibrated = sides(scores.raw), sides(scores.calibrated)
        predictions = []
        for row, symbol in enumerate(batch.symbols):
            kept = bits[row * width : (row + 1) * width]
            feat_ref = blake2b(kept, digest_size=16).hexdigest()
            predictions.append(
                _prediction(deployed.slot, symbol, batch.close_time, model, kept, feat_ref, raw[row], calibrated[row])
            )
        try:
            await self._store_all([], predictions, [])
        except (Unavailable, Fenced) as error:
            # Not tried again: decisions come first, and what is missing can be recomputed from the candles.
            self.shadow_batches_lost += 1
            log.warning("shadow_not_stored", slot=deployed.slot, reason=str(error), action="models")
            return
        self.shadow_rows[deployed.slot] += len(predictions)

    # ---- writing ----

    async def _write_missed(self, missed: Sequence[tuple[str, int]]) -> None:
        if self._send is not None:
            return  # they are written by those who decide
        log.warning("minutes_missed", count=len(missed), first=missed[0], action="decide")
        model = self.model
        model_id = "" if model is None else model.model_id
        await self._commit(
            [
                Decision(
                    signal_id=signal_id(self._slot, model_id, symbol, close_time),
                    slot=self._slot,
                    symbol=symbol,
                    close_time=close_time,
                    side=0,
                    status=Status.SKIPPED_MISSED,
                    detail="the close was not known in time",
                    model_id=model_id,
                    schema_hash="" if model is None else model.schema_hash,
                    label_hash="" if model is None else model.label_hash,
                    valid_until=close_time + VALID_FOR_MS,
                    engine_ver=__version__,
                )
                for symbol, close_time in missed
            ],
            [],
        )

    async def _commit(self, decisions: list[Decision], predictions: list[Prediction]) -> list[Decision] | None:
        """Store decisions, predictions and messages in one transaction, waiting out a store that is away.

        Returns what was new; None, with nothing stored, where another process has decided what these were concluded
        without: what it decided is known now. Raises Fenced where another process leads; nothing was stored then.
        """
        messages = [signal_message(decision) for decision in decisions if decision.status is not Status.SKIPPED_MISSED]
        by_minute = _by_minute(decisions)
        announcements, self._announcements = self._announcements, []
        if self._speaks is None:
            messages += self._completed_minutes(by_minute)
        elif not self._speaks():
            announcements = []
        messages += announcements
        failures = 0
        while True:
            try:
                committed = await self._store_all(decisions, predictions, messages)
                break
            except Unavailable as error:
                failures += 1
                log.error("decision_not_stored", reason=str(error), failures=failures, action="decide")
                await self._clock.sleep_wall(min(0.05 * 2**failures, 2.0))
                if not self._decides:
                    raise Fenced("the lease was lost while the database was away") from error
                if self._speaks is not None and self._is_too_late(decisions):
                    self._announcements = announcements + self._announcements
                    raise TooLate("the database was away until the minute was over") from error
        if committed.differs is not None:
            self._announcements = announcements + self._announcements
            self._correct({decision.symbol for decision in decisions}, decisions[0].close_time, committed.differs)
            return None
        for close_time, new in by_minute.items():
            self._rows_of_minute.setdefault(close_time, Counter()).update(new)
        for decision in committed.decisions:
            self.by_status[decision.status] += 1
            self.decided_by[decision.symbol] += 1
            self.last_decision[decision.symbol] = decision
        if messages:
            self._wake_publisher(committed.messages)
        self._on_decided(committed.decisions)
        return committed.decisions

    def _is_too_late(self, decisions: Sequence[Decision]) -> bool:
        """Where several processes decide, another may have the next minute of these symbols: no minute is decided after
        its time, so that none is stored after a later one. Whoever leads gives it the row of a missed one."""
        decided = [one.close_time for one in decisions if one.status is not Status.SKIPPED_MISSED]
        return bool(decided) and self._clock.exchange_now_ms() > max(decided) + self._within_ms

    async def _store_all(
        self, decisions: Sequence[Decision], predictions: Sequence[Prediction], messages: Sequence[Message]
    ) -> Committed:
        handed_over_us = self._clock.now_us()
        if self._speaks is not None and any(decision.status is not Status.SKIPPED_MISSED for decision in decisions):
            assumed = self._assumed({decision.symbol for decision in decisions}, decisions[0].close_time)
            return await self._store.commit_decisions(decisions, predictions, messages, handed_over_us, assumed=assumed)
        commit = self._commit_with or self._store.commit_decisions
        return await commit(decisions, predictions, messages, handed_over_us)

    def _assumed(self, symbols: Collection[str], close_time: int) -> Assumed:
        since = close_time - COOLDOWN_MIN * MINUTE_MS
        last_ok = {key: t for key, t in self._last_ok.items() if key[0] in symbols and since <= t < close_time}
        return Assumed(since=since, until=close_time, last_ok=last_ok)

    def _correct(self, symbols: Collection[str], close_time: int, last_ok: Mapping[tuple[str, int], int]) -> None:
        for key in self._assumed(symbols, close_time).last_ok:
            del self._last_ok[key]
        self._last_ok.update(last_ok)

    def _completed_minutes(self, by_minute: dict[int, Counter[Status]]) -> list[Message]:
        """The message of every minute that these rows complete: then each expected symbol has its row."""
        completed = []
        for close_time, new in by_minute.items():
            counts = self._rows_of_minute.get(close_time, Counter()) + new
            if counts.total() == self._expected(close_time):
                self._told_close = max(self._told_close, close_time)
                completed.append(self._close_message(close_time, counts))
        return completed

    def _expected(self, close_time: int) -> int:
        """How many symbols this minute is expected of."""
        there = sum(joined < close_time for joined in self._joined.values())
        return there + sum(joined < close_time <= last for joined, last in self._left)

    def _close_message(self, close_time: int, counts: Counter[Status]) -> Message:
        medians = {name: window.quantile(0.5) for name, window in self._step_ms.items()}
        self._step_ms = _no_steps()
        payload = CloseDraft(
            slot=self._slot,
            T=close_time,
            n=sum(counts.values()),
            signals=counts.get(Status.OK, 0),
            skipped=sum(count for status, count in counts.items() if status.startswith("skipped_")),
            statuses={str(status): count for status, count in sorted(counts.items())},
            lat_ms=StepTimes(**{name: None if ms is None else round(ms, 3) for name, ms in medians.items()}),
            model="" if self.model is None else self.model.model_id,
        )
        return Message(
            id=0,
            kind="close",
            slot=self._slot,
            symbol="",
            close_time=close_time,
            payload=_encode(payload).decode(),
            valid_until=close_time + MINUTE_MS,
        )


def _prediction(
    slot: str,
    symbol: str,
    close_time: int,
    model: LoadedModel,
    vector: bytes,
    feat_ref: str,
    raw: Sides,
    calibrated: Sides,
) -> Prediction:
    return Prediction(
        slot=slot,
        symbol=symbol,
        close_time=close_time,
        model_id=model.model_id,
        p_long_raw=raw[0],
        p_short_raw=raw[1],
        p_long=calibrated[0],
        p_short=calibrated[1],
        features=vector,
        feat_ref=feat_ref,
    )


def _deployed_status(deployed: Deployed) -> dict[str, Any]:
    model = deployed.model
    return {
        "model_id": None if model is None else model.model_id,
        "since": deployed.effective_from,
        "reason": deployed.reason,
        "note": "" if model is None else model.manifest.note,
    }


def _by_minute(decisions: Iterable[Decision]) -> dict[int, Counter[Status]]:
    statuses: dict[int, list[Status]] = {}
    for decision in decisions:
        statuses.setdefault(decision.close_time, []).append(decision.status)
    return {close_time: Counter(those) for close_time, those in statuses.items()}


def signal_message(decision: Decision) -> Message:
    """The message of a decision: features.md 4.3, with the status, for silence must be tellable from "no trade"."""
    payload = SignalDraft(
        id=decision.signal_id,
        slot=decision.slot,
        sym=decision.symbol,
        T=decision.close_time,
        side=decision.side,
        status=decision.status,
        detail=decision.detail,
        p=decision.p_cal,
        ev_bp=decision.ev_bp,
        tp=decision.tp_price,
        sl=decision.sl_price,
        ref_mark=decision.ref_mark,
        h=decision.horizon_s,
        cost_bp=decision.cost_bp,
        valid_until=decision.valid_until,
        model=decision.model_id,
        schema=decision.schema_hash,
        flags=Flags(decision.late_mask, decision.nan_count, decision.xs_n),
    )
    return Message(
        id=0,
        kind="signal",
        slot=decision.slot,
        symbol=decision.symbol,
        close_time=decision.close_time,
        payload=_encode(payload).decode(),
        valid_until=decision.valid_until,
    )


def _no_steps() -> dict[str, LatencyWindow]:
    """Durations in milliseconds of the steps of batches, for the median of a minute."""
    return {step: LatencyWindow(1024) for step in StepTimes.__struct_fields__}


def _text(price: float) -> str:
    """A market price as the decimal text it came from, never in exponent form."""
    text = repr(price)
    return f"{price:.15f}".rstrip("0").rstrip(".") if "e" in text else text.removesuffix(".0")
