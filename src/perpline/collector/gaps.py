"""Every closed candle once, in order, and a ledger of what is missing.

The rule is contracts.md, "Holes in candles": per symbol and interval a position `next_open` that only ever grows. Two
more obvious rules (deliver at once and replay the missing; hold back but let a late fill set the position) lose or
repeat candles; tests/unit/collector/test_gaps.py holds the trial that shows it.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Literal, Protocol

import msgspec
import structlog
from msgspec import Struct, structs

from perpline.collector.spool import Spool
from perpline.common.clock import Clock
from perpline.common.errors import Malformed, Refused, Unavailable
from perpline.domain.candle import (
    INTERVAL_MS,
    Candle,
    KlineUpdate,
    closed_candle,
    last_boundary,
    synthetic_candle,
)

log = structlog.get_logger("perpline.candles")

Key = tuple[str, str]
"""(symbol, interval)."""

Outcome = Literal["delivered", "old", "held"]

COMPARED = (
    "open",
    "high",
    "low",
    "close",
    "volume",
    "quote_volume",
    "trades",
    "taker_buy_volume",
    "taker_buy_quote_volume",
)
"""The fields in which two sources of the same candle must agree."""


ROWS_AT_ONCE = 100
"""Rows of a REST answer that are taken before whatever else is due gets its turn."""


class Offered(Struct, frozen=True):
    """What became of an offered candle, and the candles that are to be delivered now, in order."""

    outcome: Outcome
    delivered: list[Candle]


class CandleSequence:
    """The closed candles of one symbol and interval, put in order. Holds no clock and does no I/O.

    `next_open` is the open time of the candle to be delivered next, None before the first one. It never goes back.
    """

    def __init__(
        self, interval: str, next_open: int | None = None, max_held: int = 512, last: Candle | None = None
    ) -> None:
        """`last`: the candle before `next_open`, delivered by an earlier process."""
        self.next_open = next_open
        self.recent: deque[Candle] = deque([] if last is None else [last], maxlen=8)
        """The last delivered candles, to compare repeats with."""
        self._length = INTERVAL_MS[interval]
        self._max_held = max_held
        self._held: dict[int, Candle] = {}

    def offer(self, candle: Candle) -> Offered:
        """Take a closed candle from any source."""
        if self.next_open is not None and candle.open_time < self.next_open:
            return Offered("old", [])
        if self.next_open is None or candle.open_time == self.next_open:
            self._held.pop(candle.open_time, None)
            delivered = [candle]
            self.next_open = candle.open_time + self._length
            self.recent.append(candle)
            self._drain(delivered)
            return Offered("delivered", delivered)
        self._held.setdefault(candle.open_time, candle)
        if len(self._held) > self._max_held:
            # Bounded by giving up on the oldest hole: a candle that is here is worth more than one that is not.
            return Offered("held", self.skip(min(self._held)))
        return Offered("held", [])

    def previous(self) -> Candle | None:
        """The candle before `next_open`, None where that is not known."""
        last = self.recent[-1] if self.recent else None
        return last if last is not None and last.open_time + self._length == self.next_open else None

    def first_held(self) -> int | None:
        """Open time of the earliest candle that waits behind a hole."""
        return min(self._held) if self._held else None

    def skip(self, until: int) -> list[Candle]:
        """Move past the missing candles before `until` and return what can be delivered then.

        Candles held before `until` are delivered on the way, so nothing that is here is ever passed over.
        """
        delivered: list[Candle] = []
        while self.next_open is not None and self.next_open < until:
            first = self.first_held()
            self.next_open = min(until, first) if first is not None else until
            self._drain(delivered)
        return delivered

    def _drain(self, delivered: list[Candle]) -> None:
        while self.next_open is not None and self.next_open in self._held:
            candle = self._held.pop(self.next_open)
            delivered.append(candle)
            self.recent.append(candle)
            self.next_open += self._length


class Ledger(Protocol):
    """Where holes are written down. Both calls return at once; writing happens elsewhere."""

    def opened(self, symbol: str, series: str, from_time: int, to_time: int, cause: str) -> None: ...

    def closed(self, symbol: str, series: str, from_time: int, to_time: int, repaired_by: str) -> None: ...


FetchCandles = Callable[[str, str, int, int], Awaitable[list[KlineUpdate]]]
"""(symbol, interval, start, end) -> candles with start <= open_time < end, oldest first."""

ReviseRow = tuple[str, str, int, str, str, str, str, int]
"""symbol, series, time, field, old, new, sources, seen_at: a row of `revisions`."""


class ClosedCandles:
    """The one door for closed candles, whatever brought them: socket, REST, recovery, replay.

    `offer` is synchronous and lies between bytes and decision. `run` does the waiting: it asks REST for closes that did
    not come by their deadline and for holes, and gives a hole up after `decide_within_s`, when the candle behind it is
    delivered and the gap stays open in the ledger.

    Holes given up are asked for again while they matter: `repair_since(interval, now)` is the oldest open time that is
    still wanted (the features' window, or everything with gap_repair = "live"). Their candles go to `repaired` and not
    to `deliver`, for the position never goes back and a minute that was missed is never decided late.

    A 1m candle that the exchange proves not to have is made (flat, synthetic: features.md 1.2, N2) and delivered like
    any other, so that its minute is decided and no window restarts. Where the candle before it is not known the minute
    is passed instead, as 15m and 1h candles always are.

    Without `fetch` (a replay: there is nobody to ask) a hole is given up as soon as it shows.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        fetch: FetchCandles | None,
        deliver: Callable[[Candle], None],
        ledger: Ledger,
        revise: Callable[[ReviseRow], None],
        stored: Callable[[str, str, int], Awaitable[Candle | None]],
        repaired: Callable[[list[Candle]], Awaitable[None]],
        repair_since: Callable[[str, int], int],
        close_deadline_s: float = 3.0,
        decide_within_s: float = 30.0,
        workers: int = 8,
    ) -> None:
        self._clock = clock
        self._fetch = fetch
        self._deliver = deliver
        self._ledger = ledger
        self._revise = revise
        self._stored = stored
        self._repaired = repaired
        self._repair_since = repair_since
        # Contracts.md, "Speed": however fast market time runs, a close gets a quarter of a second of wall time.
        self._close_deadline_s = max(close_deadline_s, 0.25 * clock.speed)
        self._decide_within_s = decide_within_s
        self._workers = workers
        self._sequences: dict[Key, CandleSequence] = {}
        self._open_gaps: dict[Key, tuple[int, int]] = {}
        self._loading: dict[Key, int] = {}
        """Until where each symbol and interval is loaded by recovery: holes before are no gaps yet."""
        self._healing: dict[Key, int] = {}
        """Until where each symbol and interval is being healed."""
        self._jobs: asyncio.Queue[Key] = asyncio.Queue()  # bounded by _healing: a key is queued once
        self._repeats: asyncio.Queue[Candle] = asyncio.Queue(maxsize=1000)
        self.late_closes = 0
        """Closing frames that did not come by their deadline and were asked for over REST."""
        self.repeats = 0
        self.revisions = 0
        self.given_up: dict[Key, list[tuple[int, int]]] = {}
        """Holes that were passed because REST did not answer in time: [from, to), oldest first."""
        self.synthetic = 0
        """Minutes that the exchange does not have, and for which a candle was made."""

    # ---- the synchronous part: between bytes and decision ----

    def expect(
        self,
        symbol: str,
        interval: str,
        next_open: int | None,
        load_until: int | None = None,
        last: Candle | None = None,
    ) -> None:
        """Begin with this symbol: the next candle to be delivered opens at `next_open` (None: whichever comes).

        What is missing before `load_until` is asked of REST at once and is no gap unless REST does not tell it. `last`
        is the stored candle before `next_open`, if there is one.
        """
        key = (symbol, interval)
        self._sequences[key] = CandleSequence(interval, next_open, last=last)
        if load_until is not None and next_open is not None and next_open < load_until:
            self._loading[key] = load_until
            self.heal(symbol, interval, load_until)

    def forget(self, symbol: str) -> None:
        for key in [key for key in self._sequences if key[0] == symbol]:
            del self._sequences[key]
            self._healing.pop(key, None)
            self._loading.pop(key, None)
            self._open_gaps.pop(key, None)
            self.given_up.pop(key, None)

    def follows(self, symbol: str) -> bool:
        return (symbol, "1m") in self._sequences

    def is_healing(self, symbol: str) -> bool:
        """Whether REST is being asked for candles of this symbol."""
        return any(key[0] == symbol for key in self._healing)

    def next_open(self, symbol: str, interval: str) -> int | None:
        sequence = self._sequences.get((symbol, interval))
        return sequence.next_open if sequence else None

    def offer(self, candle: Candle) -> Outcome | None:
        """Take a closed candle; deliver it and what waited for it, if it is its turn.

        None for a symbol or interval that is not expected: it is nobody's candle.
        """
        key = (candle.symbol, candle.interval)
        sequence = self._sequences.get(key)
        if sequence is None:
            return None
        offered = sequence.offer(candle)
        if offered.outcome == "old":
            self._compare(sequence, candle)
        elif offered.outcome == "held":
            self._hole(key, sequence)
        for each in offered.delivered:
            self._deliver(each)
        if offered.delivered:
            self._gap_filled(key, sequence, candle.source)
        return offered.outcome

    def offer_row(self, update: KlineUpdate) -> None:
        """Take a candle from a REST answer; a forming one is passed over."""
        if update.closed:
            self.offer(closed_candle(update))

    def _hole(self, key: Key, sequence: CandleSequence) -> None:
        first = sequence.first_held()
        if first is None or sequence.next_open is None or key in self._open_gaps:
            return
        if sequence.next_open < self._loading.get(key, 0):
            self.heal(*key, until=first)
            return
        self._open_gap(key, sequence.next_open, first, "candles missing before the one that came")
        if self._fetch is None:
            self._give_up(key, sequence, first)
        else:
            self.heal(*key, until=first)

    def _open_gap(self, key: Key, start: int, end: int, cause: str) -> None:
        symbol, interval = key
        self._open_gaps[key] = (start, end)
        self._ledger.opened(symbol, f"candles_{interval}", start, end, cause)

    def _gap_filled(self, key: Key, sequence: CandleSequence, source: str) -> None:
        gap = self._open_gaps.get(key)
        if gap is not None and sequence.next_open is not None and sequence.next_open >= gap[1]:
            del self._open_gaps[key]
            self._ledger.closed(key[0], f"candles_{key[1]}", gap[0], gap[1], source)

    def _compare(self, sequence: CandleSequence, candle: Candle) -> None:
        self.repeats += 1
        for known in sequence.recent:
            if known.open_time == candle.open_time:
                self._compare_with(known, candle)
                return
        try:
            self._repeats.put_nowait(candle)
        except asyncio.QueueFull:
            # A flood of old candles is a replay of history, not news; the first thousand were compared.
            return

    def _compare_with(self, known: Candle, candle: Candle) -> None:
        for field in COMPARED:
            old, new = getattr(known, field), getattr(candle, field)
            if old != new:
                self.revisions += 1
                self._revise(
                    (
                        candle.symbol,
                        f"candles_{candle.interval}",
                        candle.open_time,
                        field,
                        repr(old),
                        repr(new),
                        f"{known.source},{candle.source}",
                        self._clock.now_ms(),
                    )
                )

    # ---- the waiting part ----

    def heal(self, symbol: str, interval: str, until: int) -> None:
        """Ask REST for everything from `next_open` up to `until`, as soon as there is a hand free."""
        key = (symbol, interval)
        if key in self._healing:
            self._healing[key] = max(self._healing[key], until)
        else:
            self._healing[key] = until
            self._jobs.put_nowait(key)

    @property
    def gaps_open(self) -> int:
        """Holes that REST is asked for, and those that were given up and are asked for again."""
        return len(self._open_gaps) + sum(len(holes) for holes in self.given_up.values())

    async def run(self) -> None:
        """Watch deadlines and heal, until cancelled. Not for a door without `fetch`."""
        async with asyncio.TaskGroup() as tasks:
            for interval in INTERVAL_MS:
                tasks.create_task(self._watch_deadlines(interval), name=f"closes {interval}")
            for n in range(self._workers):
                tasks.create_task(self._work(), name=f"heal {n}")
            tasks.create_task(self._compare_old(), name="compare old candles")
            tasks.create_task(self._repair_given_up(), name="repair gaps")

    async def healed(self) -> None:
        """Return when nothing is being healed."""
        while self._healing:
            await self._clock.sleep_wall(0.01)

    async def _watch_deadlines(self, interval: str) -> None:
        length = INTERVAL_MS[interval]
        # An hour's clock may be stepped or corrected meanwhile; never sleep past a minute without looking again.
        # The first one may have passed since the windows were loaded, before any socket was open.
        boundary = last_boundary(self._clock.exchange_now_ms(), length)
        while True:
            wait_s = (boundary - self._clock.exchange_now_ms()) / 1000 + self._close_deadline_s
            if wait_s > 0:
                await self._clock.sleep(min(wait_s, 60.0))
                continue
            for key, sequence in self._sequences.items():
                if key[1] == interval and sequence.next_open is not None and sequence.next_open < boundary:
                    if sequence.next_open == boundary - length and key not in self._healing:
                        self.late_closes += 1
                    self.heal(*key, until=boundary)
            boundary = max(boundary + length, last_boundary(self._clock.exchange_now_ms(), length))

    async def _work(self) -> None:
        while True:
            key = await self._jobs.get()
            sequence = self._sequences.get(key)
            try:
                await self._heal(key)
            finally:
                if self._sequences.get(key) is sequence:  # else forgotten, and perhaps begun anew: not ours to end
                    self._healing.pop(key, None)

    async def _heal(self, key: Key) -> None:
        assert self._fetch is not None
        symbol, interval = key
        length = INTERVAL_MS[interval]
        give_up_at = self._clock.exchange_now_ms() + round(self._decide_within_s * 1000)
        attempt = 0
        while (sequence := self._sequences.get(key)) is not None and key in self._healing:
            until = self._healing[key]
            start = sequence.next_open
            if start is None or start >= until:
                return
            # Two candles more than are missing: if REST shows a later one, what it does not show does not exist.
            end = min(until, start + 1498 * length) + 2 * length
            try:
                rows = await self._fetch(symbol, interval, start, end)
                for at in range(0, len(rows), ROWS_AT_ONCE):
                    if at:
                        await asyncio.sleep(0)  # a window of 1,500 takes 40 ms, and a close may be waiting
                    if self._sequences.get(key) is not sequence:
                        return  # forgotten meanwhile
                    for row in rows[at : at + ROWS_AT_ONCE]:
                        self.offer_row(row)
            except (Unavailable, Malformed) as error:
                wait_s = getattr(error, "retry_after_s", None) or min(0.5 * 2**attempt, 5.0)
                log.warning("rest_did_not_heal", symbol=symbol, interval=interval, reason=str(error), action="heal")
            except Refused as error:
                if self._sequences.get(key) is not sequence:
                    return
                log.error("rest_refused_candles", symbol=symbol, interval=interval, reason=str(error), action="heal")
                self._give_up(key, sequence, until)
                return
            else:
                if self._sequences.get(key) is not sequence:
                    return
                absent_until = self._absent_until(sequence, rows, until)
                if absent_until is not None:
                    self._pass_absent(key, sequence, absent_until)
                    continue
                if sequence.next_open != start:
                    continue  # progress: a long hole comes in pages
                wait_s = min(0.5 * 2**attempt, 5.0)  # REST is still a candle behind
            attempt += 1
            now_ms = self._clock.exchange_now_ms()
            if self._sequences.get(key) is not sequence:
                return
            if now_ms >= give_up_at:
                self._give_up(key, sequence, until)
                return
            # Waits are wall time (a server's patience), the time to give up is market time.
            await self._clock.sleep_wall(min(wait_s, max(0.05, (give_up_at - now_ms) / 1000 / self._clock.speed)))

    def _absent_until(self, sequence: CandleSequence, rows: list[KlineUpdate], until: int) -> int | None:
        """Up to where the answer proves that the exchange has no candles, None where it proves nothing.

        Proof is a later candle in the same answer, closed or forming: then REST is not merely behind.
        """
        if sequence.next_open is None or sequence.next_open >= until:
            return None
        if any(row.open_time == sequence.next_open for row in rows):
            return None  # it is there and only not final yet by our clock, which errs on the safe side
        later = [row.open_time for row in rows if row.open_time > sequence.next_open]
        return min(min(later), until) if later else None

    def _pass_absent(self, key: Key, sequence: CandleSequence, until: int) -> None:
        symbol, interval = key
        start = sequence.next_open
        assert start is not None
        self._ledger.opened(symbol, f"candles_{interval}", start, until, "absent at the exchange")
        self._ledger.closed(symbol, f"candles_{interval}", start, until, "absent")
        while interval == "1m" and sequence.next_open is not None and sequence.next_open < until:
            previous = sequence.previous()
            if previous is None:
                break
            self.synthetic += 1
            made = synthetic_candle(previous, self._clock.now_ms(), self._clock.now_us())
            for candle in sequence.offer(made).delivered:
                self._deliver(candle)
        for candle in sequence.skip(until):
            self._deliver(candle)
        self._gap_filled(key, sequence, "rest")

    def _give_up(self, key: Key, sequence: CandleSequence, until: int) -> None:
        """Go on without what REST did not tell in time. The gap stays open in the ledger."""
        start = sequence.next_open
        if start is None:
            return
        first = sequence.first_held()
        until = max(until, first) if first is not None else until
        if start >= until:
            return
        if key not in self._open_gaps:
            self._open_gap(key, start, until, "REST did not answer in time")
        self.given_up.setdefault(key, []).append(self._open_gaps.pop(key))
        for candle in sequence.skip(until):
            self._deliver(candle)

    async def _repair_given_up(self) -> None:
        while True:
            await self._clock.sleep_wall(max(1.0, 15.0 / self._clock.speed))
            for key, holes in list(self.given_up.items()):
                wanted_since = self._repair_since(key[1], self._clock.exchange_now_ms())
                for hole in list(holes):
                    if self.given_up.get(key) is not holes:
                        break  # forgotten meanwhile
                    if hole[1] <= wanted_since or await self._repair(key, hole):
                        holes.remove(hole)
                if not holes and self.given_up.get(key) is holes:
                    del self.given_up[key]

    async def _repair(self, key: Key, hole: tuple[int, int]) -> bool:
        """Whether the hole is dealt with: its candles are kept, and what the exchange never had is noted as absent."""
        assert self._fetch is not None
        symbol, interval = key
        length = INTERVAL_MS[interval]
        candles: list[Candle] = []
        start = hole[0]
        caught_up = False
        while start < hole[1]:
            end = min(hole[1], start + 1498 * length)
            try:
                rows = await self._fetch(symbol, interval, start, end + 2 * length)
            except (Unavailable, Malformed, Refused) as error:
                log.info("gap_stays_open", symbol=symbol, interval=interval, reason=str(error), action="repair")
                return False
            candles += [closed_candle(row) for row in rows if row.closed and start <= row.open_time < end]
            caught_up = any(row.open_time >= hole[1] for row in rows)
            start = end
        missing = (hole[1] - hole[0]) // length - len(candles)
        if missing and not caught_up:
            return False
        try:
            if missing and interval == "1m":
                candles = await self._with_synthetic(symbol, hole, candles)
            if candles:
                await self._repaired(candles)
        except Unavailable as error:
            log.info("gap_stays_open", symbol=symbol, interval=interval, reason=str(error), action="repair")
            return False
        self._ledger.closed(symbol, f"candles_{interval}", hole[0], hole[1], "absent" if missing else "rest")
        return True

    async def _with_synthetic(self, symbol: str, hole: tuple[int, int], candles: list[Candle]) -> list[Candle]:
        """The candles of a hole with those made that the exchange does not have, from the first known close on."""
        length = INTERVAL_MS["1m"]
        by_time = {candle.open_time: candle for candle in candles}
        previous = await self._stored("1m", symbol, hole[0] - length)
        filled: list[Candle] = []
        for open_time in range(hole[0], hole[1], length):
            candle = by_time.get(open_time)
            if candle is None and previous is not None:
                candle = synthetic_candle(previous, self._clock.now_ms(), self._clock.now_us())
                self.synthetic += 1
            if candle is not None:
                filled.append(candle)
            previous = candle
        return filled

    async def _compare_old(self) -> None:
        while True:
            candle = await self._repeats.get()
            try:
                known = await self._stored(candle.interval, candle.symbol, candle.open_time)
            except Unavailable:
                continue  # a comparison that cannot be made now is not worth keeping; nightly parity looks again
            if known is not None:
                self._compare_with(known, candle)


class OpenGap(Struct, frozen=True, tag=True):
    symbol: str
    series: str
    from_time: int
    to_time: int
    cause: str
    detected_at: int


class ClosedGap(Struct, frozen=True, tag=True):
    symbol: str
    series: str
    from_time: int
    to_time: int
    repaired_by: str
    repaired_at: int


class GapLedger:
    """Writes holes to the table `gaps`, in the order they were noted, and one log line for each.

    While the store is away the notes go to the `spool`, and from there to the store first. Without one, and where that
    takes nothing, memory holds 10,000; beyond that the oldest is dropped and counted (its log line has been written).
    """

    def __init__(
        self,
        clock: Clock,
        open_gap: Callable[[str, str, int, int, str, int], Awaitable[int]],
        close_gap: Callable[[int, int, str], Awaitable[None]],
        spool: Spool | None = None,
    ) -> None:
        self._clock = clock
        self._spool = spool
        self._away = False
        self._open_gap = open_gap
        self._close_gap = close_gap
        self._notes: deque[OpenGap | ClosedGap] = deque()
        self._ids: dict[tuple[str, str, int, int], int] = {}
        self._wake = asyncio.Event()
        self.noted = 0
        self.dropped = 0

    def opened(self, symbol: str, series: str, from_time: int, to_time: int, cause: str, *, tell: bool = True) -> None:
        """Note a hole [from_time, to_time); without `tell` who notes many at once logs one line for all."""
        gap = OpenGap(symbol, series, from_time, to_time, cause, self._clock.now_ms())
        if tell:
            log.warning("gap", **structs.asdict(gap), action="gap")
        self.noted += 1
        self._note(gap)

    def closed(self, symbol: str, series: str, from_time: int, to_time: int, repaired_by: str) -> None:
        self._note(ClosedGap(symbol, series, from_time, to_time, repaired_by, self._clock.now_ms()))

    def forget(self) -> None:
        """Drop what was noted and is not written: another process notes what is missing in the tables."""
        self._notes.clear()

    def known(self, gaps: Iterable[tuple[str, str, int, int, int]]) -> None:
        """Gaps that are open in the store at start: (symbol, series, from_time, to_time, id)."""
        for symbol, series, from_time, to_time, gap_id in gaps:
            self._ids[(symbol, series, from_time, to_time)] = gap_id

    def _note(self, note: OpenGap | ClosedGap) -> None:
        if len(self._notes) >= 10_000:
            self._notes.popleft()
            self.dropped += 1
        self._notes.append(note)
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.flush()

    async def flush(self) -> None:
        """Write everything noted so far, the spool's notes first; waits out a store that is away."""
        while self._notes or (self._spool is not None and self._spool.count(SPOOLED)):
            note = self._notes[0] if self._notes else None
            try:
                if self._spool is not None:
                    await self.replay(self._spool)
                if note is not None:
                    await self._write(note)
            except Unavailable as error:
                if not self._away:
                    log.warning("gap_not_written", reason=str(error), action="gap")
                self._away = True
                await self.keep()
                await self._clock.sleep_wall(1.0)
                continue
            self._away = False
            if note is not None and self._notes and self._notes[0] is note:
                self._notes.popleft()

    async def replay(self, spool: Spool) -> int:
        """Write the notes that are in this spool; how many. Raises Unavailable."""
        replayed = 0
        while found := await spool.oldest(SPOOLED):
            await self._write(_decode_note(found[0]))
            await spool.remove(SPOOLED, 1)
            replayed += 1
        return replayed

    async def keep(self) -> bool:
        """Put what is noted into the spool; whether memory holds nothing any more."""
        while self._spool is not None and self._notes:
            note = self._notes[0]
            try:
                await self._spool.append(SPOOLED, _encode_note(note))
            except Unavailable:
                break  # the rows say it; these few wait in memory
            if self._notes and self._notes[0] is note:
                self._notes.popleft()
        return not self._notes

    async def _write(self, note: OpenGap | ClosedGap) -> None:
        key = (note.symbol, note.series, note.from_time, note.to_time)
        if isinstance(note, OpenGap):
            self._ids[key] = await self._open_gap(*key, note.cause, note.detected_at)
        elif key in self._ids:
            await self._close_gap(self._ids[key], note.repaired_at, note.repaired_by)
            del self._ids[key]


SPOOLED = "gaps"
"""The kind of the ledger's notes in the spool."""

_encode_note = msgspec.msgpack.Encoder().encode
_decode_note = msgspec.msgpack.Decoder(OpenGap | ClosedGap).decode
