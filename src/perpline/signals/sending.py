"""A collector's side of the feature stream: rows of what is due, made by the kernel here and decided elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import msgspec
import structlog
from msgspec.structs import replace

from perpline import __version__
from perpline.bus.feature_stream import FORMAT, ROWS_PER_ENTRY, FeatureBatch, FeatureRow, FeatureStream, ShardCard
from perpline.common.clock import Clock
from perpline.common.errors import Unavailable
from perpline.common.telemetry import LatencyWindow
from perpline.domain.candle import MINUTE_MS
from perpline.domain.instrument import Instrument
from perpline.features.batch import BTC
from perpline.features.catalogue import CATALOGUE, schema_hash
from perpline.features.live import LiveFeatures
from perpline.signals.engine import UNIVERSE_WAIT_MS, Market

log = structlog.get_logger("perpline.sending")

SAY_ALIVE_EVERY_S = 1.0
ANY_LOOKBACK = 1 << 40


def shard_of(symbol: str, shards: int) -> int:
    """Which shard, from 1 on, a symbol belongs to: the same on every host and whatever else is followed."""
    return int.from_bytes(blake2b(symbol.encode(), digest_size=8).digest()) % shards + 1


class FeatureSender:
    """Sends the features of what is due, `ROWS_PER_ENTRY` rows at a time, and says that this collector lives.

    While Redis is away a batch is tried until its minute can no longer be decided.
    """

    def __init__(
        self,
        stream: FeatureStream,
        clock: Clock,
        features: LiveFeatures,
        market: Market,
        *,
        shard: tuple[int, int],
        owner: str,
        leads: Callable[[], bool],
        expected: Callable[[], Mapping[str, int]],
        decide_within_s: float,
        book_minutes: bool,
        tables: Sequence[str],
    ) -> None:
        """`leads()`: whether no other collector of this shard does the work. `expected()`: the symbols that decisions
        are expected for, each with the boundary after which; those of other shards are passed over."""
        self.rows = 0
        """Sent since the start."""
        self.batches = 0
        self.not_sent = 0
        """Rows that were given up because Redis was away for too long."""
        self.last_error = ""
        self.close_to_stream_ms = LatencyWindow()
        """Wall milliseconds from the receipt of the closing frame of a batch's last symbol until the stream had it."""
        self._stream = stream
        self._clock = clock
        self._features = features
        self._market = market
        self._shard, self._of = shard
        self._owner = owner
        self._leads = leads
        self._expected = expected
        self._within_ms = round(decide_within_s * 1000)
        self._book_minutes = book_minutes
        self._tables = sorted(tables)
        self._symbols: dict[str, int] | None = None
        self._instruments: dict[str, Instrument] = {}
        self._made: ShardCard
        self._card: ShardCard | None = None
        """What was said last; None while nothing is to be said."""

    def answers_for(self, symbol: str) -> bool:
        return shard_of(symbol, self._of) == self._shard

    async def run(self) -> None:
        """Say once a second that this collector lives, what it answers for and what has changed, until cancelled.

        Raises NeedsPerson where collectors of another number of shards are running.
        """
        while True:
            try:
                await self.say()
                self.last_error = ""
            except Unavailable as error:
                if not self.last_error:
                    log.warning("feature_stream_away", reason=str(error), action="collect")
                self.last_error = str(error)
            await self._clock.sleep_wall(SAY_ALIVE_EVERY_S)

    async def check(self) -> None:
        """Raises as `say` does, and says nothing."""
        await self._stream.check(self._new_card())

    async def say(self) -> None:
        """Raises as `run` does, and Unavailable. While another collector of this shard leads, only looks."""
        card = self._new_card()
        if not self._leads():
            self._card = None
            await self.check()
        elif self._card is None or card.id != self._card.id:
            await self._stream.register(card, self._owner)
            self._card = card
        else:
            await self._stream.say_alive(card, self._owner)

    async def send(self, symbols: Sequence[str], close_time: int, received_us: Mapping[str, int]) -> None:
        """Send the features of these symbols at T, but for those of other shards."""
        symbols = [symbol for symbol in symbols if self.answers_for(symbol)]
        if not symbols:
            return
        await self._wait_for_btc(close_time)
        table = self._features.vectors(symbols)
        width = table.shape[1] * 4
        bits = table.astype("<f4").tobytes()
        rows = [
            FeatureRow(
                symbol=symbol,
                vector=bits[place * width : (place + 1) * width],
                held=self._features.held(symbol),
                restarted=self._features.broken_by_gap(symbol, ANY_LOOKBACK),
                late=self._features.late(symbol),
                received_us=received_us[symbol],
                mark=self._market.mark(symbol),
                book=self._market.book(symbol),
                candle=self._market.last_candle(symbol),
            )
            for place, symbol in enumerate(symbols)
        ]
        for start in range(0, len(rows), ROWS_PER_ENTRY):
            await self._publish(close_time, rows[start : start + ROWS_PER_ENTRY])
        self.close_to_stream_ms.add(
            (self._clock.now_us() - max(received_us[each] for each in symbols)) / 1000 / self._clock.speed
        )

    def status(self) -> dict[str, Any]:
        return {
            "shard": f"{self._shard}/{self._of}",
            "symbols": 0 if self._card is None else len(self._card.symbols),
            "batches": self.batches,
            "rows": self.rows,
            "not_sent": self.not_sent,
            "last_error": self.last_error,
            "close_to_stream_ms": self.close_to_stream_ms.summary(),
        }

    async def _publish(self, close_time: int, rows: list[FeatureRow]) -> None:
        failures = 0
        while True:
            now = self._clock.exchange_now_ms()
            try:
                if self._card is None:
                    await self.say()
                card = "" if self._card is None else self._card.id
                await self._stream.publish(FeatureBatch(FORMAT, close_time, self._shard, self._of, card, now, rows))
                break
            except Unavailable as error:
                failures += 1
                self.last_error = str(error)
                if now > close_time + self._within_ms:
                    # Nobody may decide it any more. Inference workers write its rows as missed.
                    self.not_sent += len(rows)
                    log.error("features_not_sent", T=close_time, rows=len(rows), reason=str(error), action="collect")
                    return
                await self._clock.sleep_wall(min(0.05 * 2**failures, 2.0))
        self.batches += 1
        self.rows += len(rows)

    async def _wait_for_btc(self, close_time: int) -> None:
        """Columns of group K are measured by BTCUSDT's minute: wait for it, but no longer than T + 2 s."""
        while self._features.cross_section and BTC in self._features:
            left_ms = close_time + UNIVERSE_WAIT_MS - self._clock.exchange_now_ms()
            if left_ms <= 0 or (self._features.last_open(BTC) or 0) + MINUTE_MS >= close_time:
                return
            await self._clock.sleep(min(left_ms, 50) / 1000)

    def _new_card(self) -> ShardCard:
        symbols, instruments = {}, {}
        for symbol, since in self._expected().items():
            instrument = self._market.instrument(symbol)
            if self.answers_for(symbol) and instrument is not None:
                symbols[symbol], instruments[symbol] = since, instrument
        if symbols == self._symbols and instruments == self._instruments:
            return self._made
        card = ShardCard(
            shard=self._shard,
            of=self._of,
            symbols=symbols,
            instruments=instruments,
            lookback_min=self._features.lookback_min,
            cross_section=self._features.cross_section,
            tables=self._tables,
            book_minutes=self._book_minutes,
            schema=schema_hash(CATALOGUE),
            version=__version__,
        )
        self._symbols, self._instruments = symbols, instruments
        self._made = replace(card, id=blake2b(msgspec.json.encode(card), digest_size=8).hexdigest())
        return self._made
