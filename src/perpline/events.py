"""What a worker tells its listeners while it works: the market as fast as a screen shows it, decisions and alarms."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from perpline import __version__
from perpline.bootstrap import Parts
from perpline.common.clock import Clock
from perpline.common.errors import TooSlow
from perpline.common.telemetry import LogRing
from perpline.domain.signal import Decision
from perpline.websocket.market_streams import MarketStreams
from perpline.websocket.subscriptions import STREAM_TYPES

LOOK_EVERY_MS = 200
"""Wall time between two looks at what is to be told."""
SLOW_EVERY = 5
"""Ages and the status are told every so many of them."""
AT_ONCE = 64
"""Symbols that are looked at before whoever waits for the loop, a close perhaps, has its turn."""
YIELD_S = 0.1
"""So long, wall seconds, a look waits while decisions are on their way."""
WAITING = 1000
"""Decisions, and log events, that a listener may be behind."""
LOGS_AT_FIRST = 200
SEND_WITHIN_S = 10.0

FIELDS = ("price", "bid", "ask", "mark_price", "index_price", "funding_rate", "next_funding_time")
"""The columns of a market row."""

T = TypeVar("T")

MarketRow = tuple[float | int | None, ...]
Send = Callable[[bytes], Awaitable[None]]

_encode = msgspec.json.Encoder(enc_hook=str).encode


def worker_feed(
    parts: Parts,
    streams: MarketStreams | None,
    heard: Callable[[str, str], float | None],
    state: Callable[[], dict[str, Any]],
    logs: LogRing | None,
    silent: Callable[[], Iterable[tuple[str, str]]] = tuple,
) -> "EventFeed":
    """The feed of a worker with these parts; `state()` is its status without the symbols, `silent()` names (symbol,
    kind) of what should speak and does not."""
    clock, settings = parts.clock, parts.settings

    def row(symbol: str) -> MarketRow:
        book, mark = parts.books.get(symbol), parts.marks.latest.get(symbol)
        candle = parts.klines.get(symbol, "1m") or parts.klines.last_closed["1m"].get(symbol)
        prices: MarketRow = (None,) * 4
        if mark is not None:
            prices = (mark.mark_price, mark.index_price, mark.funding_rate, mark.next_funding_time)
        quotes = (None, None) if book is None else (book.bid, book.ask)
        return (None if candle is None else candle.close, *quotes, *prices)

    def ages(symbol: str) -> list[float | None]:
        now_s = clock.wall_s()
        return [None if (at := heard(symbol, kind)) is None else round(now_s - at, 2) for kind in STREAM_TYPES]

    def stale() -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for symbol, kind in silent():
            found.setdefault(symbol, []).append(kind)
        return found

    feed = EventFeed(
        clock,
        hello=lambda: {"version": __version__, "speed": clock.speed, "slot": settings.slot},
        state=state,
        market=MarketView(
            symbols=lambda: parts.symbols,
            streams=STREAM_TYPES,
            row=row,
            ages=ages,
            stale=stale,
            # Of REST's rounds, and of what may be silent by right, no age says anything.
            limits=[None if streams is None else streams.freshness.longest_s(kind) for kind in STREAM_TYPES],
            is_busy=lambda: parts.engine.is_deciding,
        ),
        logs=logs,
    )
    parts.on_decided.append(feed.on_decided)
    return feed


class MarketView:
    """What is to be known of the market. All are asked while somebody listens, and cheap.

    `row(symbol)` has the values of FIELDS, `ages(symbol)` the wall seconds since each of `streams` was heard, None for
    never. `limits`: the ages above which a stream counts as stale by its age alone, None where other things decide;
    `stale()` what counts as stale now, by symbol.
    """

    def __init__(
        self,
        *,
        symbols: Callable[[], Sequence[str]],
        streams: Sequence[str],
        row: Callable[[str], MarketRow],
        ages: Callable[[str], Sequence[float | None]],
        stale: Callable[[], Mapping[str, Sequence[str]]],
        limits: Sequence[float | None],
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """While `is_busy()` holds, decisions are on their way and the look at the market waits a little."""
        self.symbols = symbols
        self.streams = tuple(streams)
        self.row = row
        self.ages = ages
        self.stale = stale
        self.limits = list(limits)
        self.is_busy = is_busy


class EventFeed:
    """Tells each listener everything that is new since it was last told, in JSON texts (docs/operations.md, Events).

    Whatever is told is made once for all listeners, by the first that wants it, and nothing is made without one. Of the
    market, the ages and the status only the newest matters: who takes them slowly gets fewer. Decisions and log events
    are told one and all; who falls more than `WAITING` behind, or takes nothing for `SEND_WITHIN_S`, is TooSlow.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        hello: Callable[[], dict[str, Any]],
        state: Callable[[], dict[str, Any]],
        market: MarketView | None = None,
        logs: LogRing | None = None,
    ) -> None:
        self.listeners = 0
        self._clock = clock
        self._hello = hello
        self._state = state
        self._market = market
        self._logs = logs
        self._decided: deque[Decision] = deque(maxlen=WAITING)
        self._decided_count = 0
        self._turn = asyncio.Lock()
        """Of who makes what all are told."""
        self._looked = -1
        """The number of the last look, since the clock's zero."""
        self._rows: dict[str, MarketRow] = {}
        self._row_texts: dict[str, bytes] = {}
        self._changed: dict[str, int] = {}
        """The look in which a symbol's row came or changed."""
        self._texts: dict[str, tuple[object, bytes]] = {}
        """The text of each type that was made last, and of what it is."""

    def on_decided(self, decisions: Sequence[Decision]) -> None:
        """Told by the engine, between commit and publication: only noted."""
        if self.listeners:
            self._decided.extend(decisions[-WAITING:])
            self._decided_count += min(len(decisions), WAITING)

    async def tell(self, send: Send) -> None:
        """Tell one listener, until cancelled. Raises TooSlow, and what `send` raises."""
        self.listeners += 1
        try:
            await self._tell(send)
        finally:
            self.listeners -= 1

    async def _tell(self, send: Send) -> None:
        async def say(text: bytes) -> None:
            try:
                async with asyncio.timeout(SEND_WITHIN_S):
                    await send(text)
            except TimeoutError:
                raise TooSlow(f"nothing was taken for {SEND_WITHIN_S:g} s") from None

        symbols, decided, seen, slow_look = self._symbols(), self._decided_count, -1, -1
        await say(self._hello_text(symbols))
        logged = 0 if self._logs is None else self._logs.count
        if self._logs is not None:
            await say(_encode({"type": "logs", "rows": self._logs.since(logged - LOGS_AT_FIRST)}))
        while True:
            look = round(self._clock.wall_s() * 1000) // LOOK_EVERY_MS
            if (followed := self._symbols()) != symbols:
                symbols = followed
                await say(self._hello_text(symbols))
            if self._decided_count > decided:
                text, decided = await self._decisions_text(decided)
                await say(text)
            if self._logs is not None and self._logs.count > logged:
                if self._logs.count - logged > min(WAITING, self._logs.size):
                    raise TooSlow("too many log events wait")
                rows, logged = self._logs.since(logged), self._logs.count
                for row in rows:
                    await say(_encode({"type": "log", **row}))
            if symbols:
                text, seen = await self._market_text(look, seen)
                if text:
                    await say(text)
            if look // SLOW_EVERY != slow_look:
                slow_look = look // SLOW_EVERY
                if symbols:
                    await say(await self._ages_text(slow_look, symbols))
                await say(await self._state_text(slow_look))
            await self._clock.sleep_wall(max(0.001, (look + 1) * LOOK_EVERY_MS / 1000 - self._clock.wall_s()))

    def _symbols(self) -> tuple[str, ...]:
        return () if self._market is None else tuple(self._market.symbols())

    def _hello_text(self, symbols: Sequence[str]) -> bytes:
        streams = () if self._market is None else self._market.streams
        fields = () if self._market is None else FIELDS
        facts = {"now": self._clock.exchange_now_ms(), "symbols": symbols, "fields": fields, "streams": streams}
        return _encode({"type": "hello", **self._hello(), **facts})

    # ---- what all are told, made once

    async def _decisions_text(self, after: int) -> tuple[bytes, int]:
        """Those after so many, and how many there are now."""
        async with self._turn:
            until, waiting = self._decided_count, self._decided_count - after
            if waiting > len(self._decided):
                raise TooSlow("too many decisions wait")
            if (text := self._made("decisions", (after, until))) is None:
                rows = list(self._decided)[-waiting:]
                texts = [_decision_text(row) async for row in self._in_turns(rows)]
                text = self._keep("decisions", (after, until), b'{"type":"decisions","rows":[%s]}' % b",".join(texts))
            return text, until

    async def _market_text(self, look: int, seen: int) -> tuple[bytes, int]:
        """Rows that have changed since the look `seen`, and the look that they are of; empty where none has."""
        async with self._turn:
            if look > self._looked:
                await self._look(look)
            if (text := self._made("market", (seen, self._looked))) is None:
                rows = [self._row_texts[symbol] for symbol, changed in self._changed.items() if changed > seen]
                text = b'{"type":"market","now":%d,"rows":{%s}}' % (self._clock.exchange_now_ms(), b",".join(rows))
                text = self._keep("market", (seen, self._looked), text if rows else b"")
            return text, self._looked

    async def _look(self, look: int) -> None:
        assert self._market is not None
        symbols = self._market.symbols()
        for gone in self._rows.keys() - set(symbols):
            del self._rows[gone], self._row_texts[gone], self._changed[gone]
        async for symbol in self._in_turns(symbols):
            row = self._market.row(symbol)
            if row != self._rows.get(symbol):
                self._rows[symbol] = row
                self._row_texts[symbol] = _encode(symbol) + b":" + _encode(row)
                self._changed[symbol] = look
        self._looked = look

    async def _ages_text(self, slow_look: int, symbols: Sequence[str]) -> bytes:
        assert self._market is not None
        async with self._turn:
            if (text := self._made("ages", slow_look)) is None:
                ages = {symbol: self._market.ages(symbol) async for symbol in self._in_turns(symbols)}
                told = {"now": self._clock.exchange_now_ms(), "rows": ages, "limits": self._market.limits}
                text = self._keep("ages", slow_look, _encode({"type": "ages", **told, "stale": self._market.stale()}))
            return text

    async def _state_text(self, slow_look: int) -> bytes:
        async with self._turn:
            if (text := self._made("state", slow_look)) is None:
                await self._until_calm(self._clock.wall_s() + YIELD_S)
                text = self._keep("state", slow_look, _encode({"type": "state", "status": self._state()}))
            return text

    def _made(self, kind: str, of: object) -> bytes | None:
        made_of, text = self._texts.get(kind, (None, b""))
        return text if made_of == of else None

    def _keep(self, kind: str, of: object, text: bytes) -> bytes:
        self._texts[kind] = of, text
        return text

    async def _in_turns(self, items: Sequence[T]) -> AsyncIterator[T]:
        """These items, with a pause for others after each `AT_ONCE`."""
        until_s = self._clock.wall_s() + YIELD_S
        for start in range(0, len(items), AT_ONCE):
            await self._until_calm(until_s)
            for item in items[start : start + AT_ONCE]:
                yield item

    async def _until_calm(self, until_s: float) -> None:
        await asyncio.sleep(0)
        while self._market is not None and self._market.is_busy() and self._clock.wall_s() < until_s:
            await self._clock.sleep_wall(0.01)


def _decision_text(decision: Decision) -> bytes:
    return _encode(
        {
            "symbol": decision.symbol,
            "close_time": decision.close_time,
            "status": decision.status,
            "side": decision.side,
            "p_cal": decision.p_cal,
            "detail": decision.detail,
        }
    )
