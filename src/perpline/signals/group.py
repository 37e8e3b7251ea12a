"""One member of the group that decides what collectors send (docs/scaling.md)."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, ParamSpec, TypeVar

import structlog
from msgspec import Struct

from perpline.bus.feature_stream import Entry, FeatureBatch, FeatureStream, ShardCard
from perpline.common.clock import Clock
from perpline.common.errors import NeedsPerson, Unavailable
from perpline.domain.candle import MINUTE_MS, last_boundary
from perpline.domain.instrument import Instrument
from perpline.features.catalogue import CATALOGUE, schema_hash
from perpline.features.received import ReceivedFeatures
from perpline.signals.engine import UNIVERSE_WAIT_MS, SignalEngine, TooLate
from perpline.storage.store import Store

log = structlog.get_logger("perpline.group")

CLAIM_AFTER_S = 3.0
"""Work taken so long ago and not done is taken by another: the wait of group K and a slow database fit in."""
LOOK_EVERY_S = 0.25
READ_CARDS_EVERY_S = 5.0
NOTHING_FOR_S = 10.0
"""A start that has heard of no collector for so long says so."""
SPARE_S = 0.25
"""A decision that was begun in time may be so long on its way before its minute is written as missed."""
CLOCK_SAMPLES = 64
LONGEST_WAY_MS = 5_000
"""A batch that was longer on its way says nothing of the exchange's time."""
SWEPT_AT_ONCE = 60
"""Minutes that are looked through in one query after a long downtime."""
TOLD_WITHIN_MS = 10 * MINUTE_MS

P = ParamSpec("P")
T = TypeVar("T")


class _Shard(Struct):
    """What is known of a collector."""

    card: ShardCard
    heard_s: float | None = None
    """Wall seconds when its last batch was heard."""
    newest: int = 0
    """The latest T of its batches."""
    silent: bool = False


class GroupMember:
    """Hears every batch, decides those that fall to it, and takes over those of members that died.

    Hearing everything is what lets any member decide anything: group K compares all symbols, and who writes missed
    minutes must know who was expected. A batch is done once its decisions are committed; until then another may get it,
    and whoever commits second finds the rows there. `leads()` says whether this member writes what nobody decided.
    """

    def __init__(
        self,
        stream: FeatureStream,
        clock: Clock,
        store: Store,
        received: ReceivedFeatures,
        *,
        slot: str,
        decide_within_s: float,
        leads: Callable[[], bool],
        on_cards: Callable[[list[ShardCard]], None] = lambda cards: None,
        claim_after_s: float = CLAIM_AFTER_S,
    ) -> None:
        self.engine: SignalEngine
        """Set before `run`: it is made of what is heard here."""
        self.decided = 0
        """Batches that were decided here."""
        self.claimed = 0
        """Of them those that another member had taken."""
        self.too_late = 0
        self.unreadable = 0
        self.refused: dict[str, str] = {}
        """By shard why its batches are not decided."""
        self.last_error = ""
        self._stream = stream
        self._clock = clock
        self._store = store
        self._received = received
        self._slot = slot
        self._within_ms = round(decide_within_s * 1000)
        self._leads = leads
        self._on_cards = on_cards
        self._claim_after_ms = round(claim_after_s * 1000)
        self._shards: dict[int, _Shard] = {}
        self._began_s = clock.wall_s()
        self._cards_s = 0.0
        self._told_nothing = False
        self._turn = asyncio.Lock()
        self._offsets: list[float] = []
        self._swept: int | None = None
        self._waiting: dict[str, int | None] = {}

    # ---- what is known

    def instrument(self, symbol: str) -> Instrument | None:
        for shard in self._shards.values():
            if symbol in shard.card.instruments:
                return shard.card.instruments[symbol]
        return None

    def expected(self, close_time: int) -> frozenset[str]:
        """The symbols that want a row of T."""
        return frozenset(
            symbol
            for shard in self._shards.values()
            for symbol, since in shard.card.symbols.items()
            if since < close_time
        )

    @property
    def is_complete(self) -> bool:
        """Whether every collector has told of itself."""
        counts = {shard.card.of for shard in self._shards.values()}
        return len(counts) == 1 and len(self._shards) == counts.pop()

    def trouble(self) -> list[str]:
        found = []
        if not self._shards:
            found.append("no collector has told of itself: is one running with this slot and Redis?")
        counts = sorted({shard.card.of for shard in self._shards.values()})
        if len(counts) > 1:
            found.append(f"collectors disagree on the number of shards: {', '.join(map(str, counts))}")
        elif counts and len(self._shards) < counts[0]:
            missing = [f"{number}/{counts[0]}" for number in range(1, counts[0] + 1) if number not in self._shards]
            found.append(f"no collector has told of itself for shard {', '.join(missing)}")
        found += [
            f"the collector of shard {number}/{shard.card.of} is silent: {len(shard.card.symbols)} symbols are missed"
            for number, shard in self._shards.items()
            if shard.silent
        ]
        found += [f"batches of shard {shard} are refused: {why}" for shard, why in self.refused.items()]
        if self.last_error:
            found.append(f"batches of features are not read: {self.last_error}")
        return found

    def status(self) -> dict[str, Any]:
        now_s = self._clock.wall_s()
        return {
            "group": self._stream.group,
            "name": self._stream.consumer,
            "writes_missed": self._leads(),
            "decided": self.decided,
            "claimed": self.claimed,
            "too_late": self.too_late,
            "unreadable": self.unreadable,
            "refused": dict(self.refused),
            "last_error": self.last_error,
            **self._waiting,
            "shards": {
                f"{number}/{shard.card.of}": {
                    "symbols": len(shard.card.symbols),
                    "newest": shard.newest or None,
                    "heard_s": None if shard.heard_s is None else round(now_s - shard.heard_s, 2),
                    "silent": shard.silent,
                    "version": shard.card.version,
                }
                for number, shard in sorted(self._shards.items())
            },
        }

    # ---- life

    async def begin(self) -> None:
        """Join the group and read what the collectors have said. Raises Unavailable, NeedsPerson."""
        await self._stream.join()
        await self._read_cards()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._hear(), name="hear")
            tasks.create_task(self._take(), name="take")
            tasks.create_task(self._claim(), name="claim")
            tasks.create_task(self._watch(), name="watch minutes")

    async def end(self) -> None:
        """After `run` was cancelled: leave the group, if nothing is left behind."""
        try:
            await self._stream.leave()
        except Unavailable:
            pass  # others strike it off when it has been silent for long

    async def finish(self) -> None:
        """Return when what is being decided is decided; nothing new is begun after that."""
        await self._turn.acquire()

    # ---- hearing

    async def _hear(self) -> None:
        after, live = "0", False
        while True:
            entries = await self._patiently(self._stream.hear, after)
            for entry in entries:
                await self._heard(entry, live)
                after = entry.id
            live = True

    async def _heard(self, entry: Entry, live: bool) -> None:
        batch = entry.batch
        if batch is None:
            return
        await self._know(batch)
        if (shard := self._shards.get(batch.shard)) is not None:
            shard.newest = max(shard.newest, batch.close_time)
            if live:
                shard.heard_s = self._clock.wall_s()
        if live:
            self._learn_time(batch.sent_at)
        self._keep(batch)

    def _learn_time(self, sent_at: int) -> None:
        """Of the exchange's times that came, go by the one that was on its way for the shortest. Counted by the steady
        clock, so that a step of the host's does not outlive it."""
        clock = self._clock
        if sent_at - clock.now_ms() < -LONGEST_WAY_MS * clock.speed:
            return
        steady_ms = clock.wall_s() * 1000 * clock.speed
        self._offsets = [*self._offsets[1 - CLOCK_SAMPLES :], sent_at - steady_ms]
        clock.offset_ms = round(max(self._offsets) + steady_ms - clock.now_ms())

    def _keep(self, batch: FeatureBatch) -> None:
        if str(batch.shard) not in self.refused:
            self.engine.on_received(self._received.take(batch.close_time, batch.rows), batch.close_time)

    async def _know(self, batch: FeatureBatch) -> None:
        known = self._shards.get(batch.shard)
        if known is None or known.card.id != batch.card:
            await self._patiently(self._read_cards)

    async def _read_cards(self) -> None:
        cards = await self._stream.cards()
        self._cards_s = self._clock.wall_s()
        newest: dict[int, _Shard] = {}
        for card in cards:
            before = self._shards.get(card.shard)
            if before is not None and before.card.of == card.of:
                newest[card.shard] = before
                before.card = card
            else:
                newest[card.shard] = _Shard(card)
            self._check(card)
        self._shards = newest
        expected = {symbol: since for card in cards for symbol, since in card.symbols.items()}
        for symbol in self.engine.expected.keys() - expected.keys():
            self.engine.forget(symbol)
        for symbol, since in expected.items():
            self.engine.add(symbol, since)
        self._on_cards(cards)

    def _check(self, card: ShardCard) -> None:
        model = self.engine.model
        why = ""
        if card.schema != schema_hash(CATALOGUE):
            why = f"its features are of another version ({card.version}): run the same everywhere"
        elif model is not None and model.cross_section and not card.cross_section:
            why = f"the model {model.model_id} compares symbols, and this collector was started before: start it again"
        shard = str(card.shard)
        if why and self.refused.get(shard) != why:
            log.error("features_refused", shard=f"{card.shard}/{card.of}", reason=why, action="decide")
        if why:
            self.refused[shard] = why
        else:
            self.refused.pop(shard, None)

    # ---- deciding

    async def _take(self) -> None:
        touched: set[int] = set()
        while True:
            entries = await self._patiently(self._stream.take, wait=not touched)
            for entry in entries:
                touched |= await self._decide(entry)
            if not entries:
                # Nothing is waiting. Whoever has decided the last of a minute finds it complete.
                for close_time in sorted(touched):
                    await self._patiently(self._tell_if_complete, close_time)
                touched.clear()

    async def _claim(self) -> None:
        rounds = 0
        while True:
            await self._clock.sleep_wall(LOOK_EVERY_S)
            for entry in await self._patiently(self._stream.claim, self._claim_after_ms):
                log.info("work_claimed", entry=entry.id, action="decide")
                self.claimed += 1
                for close_time in await self._decide(entry):
                    await self._patiently(self._tell_if_complete, close_time)
            rounds += 1
            if rounds % 20 == 0:
                self._waiting = await self._patiently(self._stream.waiting)
                await self._patiently(self._stream.forget_the_dead)

    async def _decide(self, entry: Entry) -> set[int]:
        """Decide an entry, and say that it is done. Returns the minutes that have got rows."""
        async with self._turn:
            minutes = set() if entry.batch is None else await self._decide_batch(entry.batch)
            if entry.batch is None:
                self.unreadable += 1
                log.error("features_unreadable", entry=entry.id, reason=entry.error, action="decide")
            await self._patiently(self._stream.done, [entry.id])
            return minutes

    async def _decide_batch(self, batch: FeatureBatch) -> set[int]:
        close_time = batch.close_time
        await self._know(batch)
        self._keep(batch)
        here = self._received.here(close_time)
        symbols = [row.symbol for row in batch.rows if row.symbol in here]
        if not symbols or str(batch.shard) in self.refused:
            return set()
        await self._wait_for_universe(close_time)
        if self._clock.exchange_now_ms() > close_time + self._within_ms:
            self.too_late += 1
            return set()  # whoever leads writes its rows
        self._received.at(close_time)
        try:
            await self.engine.decide_received(
                symbols, close_time, {each: self._received.received_us(each) for each in symbols}
            )
        except TooLate:
            self.too_late += 1
            return set()
        self.decided += 1
        return {close_time}

    async def _wait_for_universe(self, close_time: int) -> None:
        """Where the model compares symbols: wait until every shard has sent all of this minute, or T + 2 s."""
        while True:
            model = self.engine.model
            self._received.cross_section = model is not None and model.cross_section
            left_ms = close_time + UNIVERSE_WAIT_MS - self._clock.exchange_now_ms()
            is_here = self.is_complete and self.expected(close_time) <= self._received.here(close_time)
            if not self._received.cross_section or is_here or left_ms <= 0:
                return
            await self._clock.sleep(min(left_ms, 20) / 1000)

    async def _tell_if_complete(self, close_time: int) -> None:
        if self.is_complete:
            await self.engine.tell_if_complete(close_time, self.expected(close_time))

    # ---- what nobody decided

    async def _watch(self) -> None:
        while True:
            await self._clock.sleep_wall(LOOK_EVERY_S)
            now, now_s = self._clock.exchange_now_ms(), self._clock.wall_s()
            if now_s - self._cards_s > READ_CARDS_EVERY_S:
                await self._patiently(self._read_cards)
            if not self._shards and not self._told_nothing and now_s - self._began_s > NOTHING_FOR_S:
                self._told_nothing = True
                log.warning("nothing_published", slot=self._slot, seconds=NOTHING_FOR_S, action="decide")
            over = last_boundary(now - self._within_ms - round(SPARE_S * 1000 * self._clock.speed) - 1)
            self._listen_for_silence(over)
            self.engine.tidy(now)
            if not self._leads():
                self._swept = None
            elif self._shards and over != self._swept:
                await self._patiently(self._sweep, over)

    def _listen_for_silence(self, over: int) -> None:
        for number, shard in self._shards.items():
            expects = any(since < over for since in shard.card.symbols.values())
            silent = expects and shard.newest < over
            if silent and not shard.silent:
                facts = {"shard": f"{number}/{shard.card.of}", "symbols": len(shard.card.symbols)}
                log.error("collector_silent", **facts, newest=shard.newest or None, action="decide")
            elif shard.silent and not silent:
                log.info("collector_heard", shard=f"{number}/{shard.card.of}", action="decide")
            shard.silent = silent

    async def _sweep(self, over: int) -> None:
        """Write the row of every expected minute up to `over` that has none."""
        if self._swept is None:
            self._swept = await self._read_swept()
        begins = {each: since for shard in self._shards.values() for each, since in shard.card.symbols.items()}
        if self._swept == 0:
            self._swept = min([over, *begins.values()])
        while self._swept < over:
            until = min(over, self._swept + SWEPT_AT_ONCE * MINUTE_MS)
            rows = await self._store.decision_rows(self._slot, self._swept + 1, until)
            there = {(symbol, close_time) for symbol, close_time, _ in rows}
            minutes = range(self._swept + MINUTE_MS, until + 1, MINUTE_MS)
            wanted = [(symbol, t) for t in minutes for symbol, since in begins.items() if since < t]
            missed = [each for each in wanted if each not in there]
            if missed:
                async with self._turn:
                    await self.engine.write_missed(missed)
            for t in minutes:
                if t > over - TOLD_WITHIN_MS:
                    await self._tell_if_complete(t)
            self._swept = until
            await self._store.commit_trading({"counters": [(self._swept_name, until)]})

    async def _read_swept(self) -> int:
        """The minute up to which every expected one has a row; 0 where that was never written down."""
        rows = await self._store.trading_rows("counters", {"name": self._swept_name})
        return int(rows[0][1]) if rows else 0

    @property
    def _swept_name(self) -> str:
        return f"swept:{self._slot}"

    async def _patiently(self, ask: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """What it returns, however long Redis or the database are away. Their errors are told once."""
        failures = 0
        while True:
            try:
                answer = await ask(*args, **kwargs)
            except Unavailable as error:
                _stop_if_cancelled()
                failures += 1
                if not self.last_error:
                    log.warning("feature_stream_away", reason=str(error), action="decide")
                self.last_error = str(error)
                await self._clock.sleep_wall(min(0.05 * 2**failures, 1.0))
                continue
            _stop_if_cancelled()
            if failures:
                self.last_error = ""
            return answer


def _stop_if_cancelled() -> None:
    """A client that turns a cancellation into an error of its own, or an answer, must not keep a worker from ending."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def lookback_held(cards: Iterable[ShardCard]) -> int:
    """Minutes that every collector holds."""
    return min((card.lookback_min for card in cards), default=0)


def check_cards(cards: Iterable[ShardCard]) -> None:
    """Raises NeedsPerson where a collector's features are of another version than ours."""
    for card in cards:
        if card.schema != schema_hash(CATALOGUE):
            raise NeedsPerson(
                f"the collector of shard {card.shard}/{card.of} is perpline {card.version}, whose features are others "
                "than ours: run the same version everywhere"
            )
