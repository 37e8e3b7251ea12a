"""Which symbols a worker follows while it runs: rows that people add, and what the exchange says of its contracts."""

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from msgspec import structs

from perpline.bootstrap import Parts, belongs, utc_text
from perpline.common.errors import Malformed, NeedsPerson, Refused, Unavailable
from perpline.domain.candle import INTERVAL_MS, MINUTE_MS, last_boundary
from perpline.domain.instrument import Instrument
from perpline.exchange.ports import MarketRest
from perpline.storage.store import Row
from perpline.storage.symbols import (
    GONE,
    Listing,
    SymbolChange,
    SymbolChanges,
    listings,
    open_accounts,
    store_symbols,
    symbol_changes,
)

log = structlog.get_logger("perpline.universe")

ROWS_EVERY_S = 1.0
"""Wall seconds between two looks at the table, at most."""
TURN_EVERY_S = 0.5, 0.1
"""Wall seconds between two looks at what is on its way in or out, at speed 1 and at a high one."""
LIST_EVERY_MS = 5 * MINUTE_MS
"""How often the exchange's list is asked for. It weighs 1, and is the largest answer there is."""
PAUSED_EVERY_MS = MINUTE_MS
"""The same while a contract that is followed is halted."""
LIST_AT_MS = 40_000
"""Into the minute: far from the closes, for reading the list takes some milliseconds."""
LIST_AGAIN_S = 5.0
"""Wall seconds after a list that could not be had."""
CANDLES_AGAIN_S = 1.0
"""Wall seconds after the last candles of a contract could not be had."""
FOLLOW_AGAIN_S = 60.0
"""Wall seconds after a symbol could not be followed for a reason that only a person can mend."""
JOIN_WITHIN_S = 10.0
"""Wall seconds in which a new symbol's window should be loaded and its prices heard. Then it is decided on all the
same, and its decisions say what is missing."""
LEAVE_AFTER_S = 1.0
"""Wall seconds between the last decision on a symbol and the question whether its positions are closed: a signal of
that decision becomes a position in less."""
LAST_CANDLES = 1000
NEWLY_LISTED_MS = 14 * 24 * 60 * MINUTE_MS


class Universe:
    """Makes the parts follow and forget symbols. `wake()` says that somebody may have added a row.

    Followed is what `storage.symbols` says: the settings, rows on top. A contract that has ended is forgotten after its
    last candle, with a row that says why; one that is halted stays, and its minutes say so. Nothing is forgotten before
    its positions are closed: until then prices are heard and stops watched, and it is decided on no more.

    A minute is decided on for each symbol that was followed when it closed. Of a symbol that is added the first is the
    next close after its window is loaded. Where two workers share the tables only the leader writes rows.
    """

    def __init__(
        self,
        parts: Parts,
        rest: MarketRest,
        *,
        follow_streams: Callable[[Sequence[str]], None] = lambda symbols: None,
    ) -> None:
        """`follow_streams(symbols)` has the streams of these symbols carried, and of no others; returns at once."""
        self._parts = parts
        self._rest = rest
        self._follow_streams = follow_streams
        self._store = parts.store
        self._clock = parts.clock
        self._changes = SymbolChanges()
        self._wanted: list[str] = []
        """What is to be followed, by the rows that were read last."""
        self._unjudged = True
        """Whether rows or list are new, and contracts may have ended."""
        self._newest_row: list[Row] | None = None
        self._rows_at_s = float("-inf")
        self._listed: dict[str, Instrument] = {}
        self._listed_at = 0
        """When the list was had last, exchange ms; 0 for never."""
        self._next_list_at = 0
        self._looked_for = 0
        """The close deadline after which was looked for closes that are missing, exchange ms."""
        self._list_asked_s = self._list_again_s = float("-inf")
        self._again_s: dict[str, float] = {}
        """Not before this wall time what failed for a symbol is tried again."""
        self._absent: dict[str, int] = {}
        """How many lists in a row did not name a symbol that is followed."""
        self._ended_at: dict[str, int] = {}
        """When the end of a contract was seen first, for those whose last candles are still being waited for."""
        self._joining: dict[str, float] = {}
        """Since when, wall seconds, a symbol's window is being loaded."""
        self._retired_s: dict[str, float] = {}
        self._followed_at = dict.fromkeys(parts.instruments, self._clock.exchange_now_ms())
        self._notes: dict[str, str] = {}
        self._told_end: dict[str, int] = {}
        self._parted: list[Listing] = []
        """Of symbols that were forgotten, what `listings` is still to be told."""
        self._unseen = True
        """Whether `listings` is to be written."""
        self._woken = asyncio.Event()
        self._away = False

    def wake(self) -> None:
        """Look at the rows now, and not within a second."""
        self._woken.set()

    def status(self) -> dict[str, Any]:
        """Plain JSON values for /status."""
        instruments = self._parts.instruments
        return {
            "listed_at": self._listed_at or None,
            "joining": sorted(self._joining),
            "leaving": {symbol: self._notes.get(symbol, "") for symbol in sorted(self._parts.leaving)},
            "not_trading": {symbol: each.status for symbol, each in instruments.items() if not each.is_trading},
        }

    async def begin(self) -> dict[str, int]:
        """Since when, exchange ms, each symbol of the start has been followed without a break, where an earlier process
        began it.

        Of those that nobody followed it is stored, if we lead: a process that dies before it has decided on each of
        them leaves behind which minutes it owed. To be awaited before anything is decided. Raises Unavailable.
        """
        known = await listings(self._store)
        earlier = {
            symbol: known[symbol].followed_at or 0
            for symbol in self._parts.instruments
            if symbol in known and known[symbol].followed_at is not None
        }
        self._followed_at |= earlier
        if self._leads:
            now = self._clock.exchange_now_ms()
            new = [
                Listing(symbol=symbol, status=each.status, seen_at=now, followed_at=self._followed_at[symbol])
                for symbol, each in self._parts.instruments.items()
                if symbol not in earlier
            ]
            await store_symbols(self._store, seen=new)
        return earlier

    async def run(self) -> None:
        """Follow and forget, until cancelled."""
        turn_every_s = max(TURN_EVERY_S[1], TURN_EVERY_S[0] / self._clock.speed)
        while True:
            try:
                await self.look()
                self._away = False
            except Unavailable as error:
                if not self._away:
                    log.error("symbols_not_read", reason=str(error), action="symbols")
                self._away = True
                await self._clock.sleep_wall(ROWS_EVERY_S)
            try:
                async with asyncio.timeout(turn_every_s):
                    await self._woken.wait()
            except TimeoutError:
                pass  # time to look

    async def look(self) -> None:
        """Look, and do what is due. Raises Unavailable where the database is away; the next turn goes on."""
        self._begin()
        if self._list_is_due():
            await self._ask_for_list()
        await self._look_at_rows()
        if self._listed_at:
            if self._leads:
                await self._end_contracts()
            await self._let_come()
        self._let_go()
        await self._forget()
        if self._leads:
            await self._write_listings()

    @property
    def _leads(self) -> bool:
        leadership = self._parts.leadership
        return leadership is None or leadership.holds

    # ---- what there is

    async def _look_at_rows(self) -> None:
        now_s = self._clock.wall_s()
        if now_s < self._rows_at_s + ROWS_EVERY_S and not self._woken.is_set():
            return
        self._woken.clear()
        await self._read_rows()
        self._rows_at_s = now_s

    async def _read_rows(self) -> None:
        newest = await self._store.trading_rows("symbols", limit=1)
        if newest != self._newest_row:
            self._changes = SymbolChanges(await symbol_changes(self._store))
            self._newest_row = newest
            self._wanted = self._wanted_now()
            self._unjudged = True

    def _list_is_due(self) -> bool:
        if self._clock.wall_s() < self._list_again_s:
            return False
        now = self._clock.exchange_now_ms()
        if now >= self._next_list_at:
            return True
        if any(self._is_unclear(symbol) for symbol in self._to_come()):
            return self._clock.wall_s() >= self._list_asked_s + LIST_AGAIN_S
        deadline = last_boundary(now) + self._close_deadline_ms
        if now < deadline or self._looked_for >= deadline:
            return False
        self._looked_for = deadline  # once a minute: it reads the book of every symbol
        return any(self._is_overdue(symbol, now) or self._stands_still(symbol) for symbol in self._parts.symbols)

    def _is_unclear(self, symbol: str) -> bool:
        """Whether the list in hand does not say that the symbol can be followed, and may be too old to."""
        found = self._listed.get(symbol)
        return (
            found is None or found.has_ended(self._listed_at) or self._listed_at <= self._changes.since.get(symbol, 0)
        )

    def _is_overdue(self, symbol: str, now: int) -> bool:
        """Whether the newest minute's close should be there by now and is not."""
        next_open = self._parts.closed.next_open(symbol, "1m")
        boundary = last_boundary(now)
        return next_open is not None and next_open < boundary and now >= boundary + self._close_deadline_ms

    def _stands_still(self, symbol: str) -> bool:
        """Whether nothing was traded and nothing quoted in the newest closed minute, as in a halt."""
        candle, book = self._parts.klines.last_closed["1m"].get(symbol), self._parts.books.get(symbol)
        return candle is not None and candle.trades == 0 and book is not None and book.updated_at < candle.open_time

    @property
    def _close_deadline_ms(self) -> int:
        settings = self._parts.settings
        return round(max(settings.close_deadline_s, 0.25 * self._clock.speed) * 1000)

    async def _ask_for_list(self) -> None:
        self._list_asked_s = self._clock.wall_s()
        try:
            listed = {instrument.symbol: instrument for instrument in await self._rest.instruments()}
        except (Unavailable, Malformed, Refused) as error:
            log.warning("instruments_not_read", reason=str(error), action="symbols")
            self._looked_for = 0
            self._list_again_s = self._clock.wall_s() + max(LIST_AGAIN_S, getattr(error, "retry_after_s", None) or 0.0)
            return
        now = self._clock.exchange_now_ms()
        followed = self._parts.instruments
        paused = any(not listed[symbol].is_trading for symbol in followed if symbol in listed)
        every_ms = PAUSED_EVERY_MS if paused else LIST_EVERY_MS
        self._next_list_at = last_boundary(now + every_ms) + LIST_AT_MS
        self._listed, self._listed_at, self._unseen, self._unjudged = listed, now, True, True
        for symbol, known in list(followed.items()):
            found = listed.get(symbol)
            self._absent[symbol] = 0 if found else self._absent.get(symbol, 0) + 1
            if found is not None and found != known:
                followed[symbol] = found  # every part asks for the instrument when it needs one
                self._tell_of_change(known, found, now)

    def _tell_of_change(self, before: Instrument, after: Instrument, now: int) -> None:
        changed = {
            name: f"{getattr(before, name)} → {getattr(after, name)}"
            for name in Instrument.__struct_fields__
            if getattr(before, name) != getattr(after, name)
        }
        log.info("instrument_changed", symbol=after.symbol, action="symbols", **changed)
        if before.is_trading and not after.is_trading and not after.has_ended(now):
            log.warning("contract_halted", symbol=after.symbol, status=after.status, action="symbols")
        elif after.is_trading and not before.is_trading:
            log.info("contract_trades_again", symbol=after.symbol, action="symbols")

    def _to_come(self) -> list[str]:
        """What is wanted and not followed."""
        followed = set(self._parts.symbols)
        return [symbol for symbol in self._wanted if symbol not in followed]

    def _wanted_now(self) -> list[str]:
        parts = self._parts
        followed = self._changes.followed(parts.by_settings, parts.settings.exclude)
        if parts.settings.role != "collector":
            return followed
        compares = parts.features.cross_section
        return [symbol for symbol in followed if belongs(parts.settings, symbol, cross_section=compares)]

    # ---- contracts that end

    async def _end_contracts(self) -> None:
        """Have every contract that is over noted as `delisted`, after its last candle; and those that trade again as
        `listed`."""
        if not self._unjudged and not self._ended_at and not any(self._absent.values()):
            return
        now = self._clock.exchange_now_ms()
        rows = []
        for symbol in self._wanted:
            ended = self._how_it_ended(symbol, now)
            self._tell_of_announced_end(symbol, now)
            if not ended:
                self._ended_at.pop(symbol, None)
                continue
            seen_at = self._ended_at.setdefault(symbol, now)
            if symbol in self._parts.symbols and not await self._has_all_candles(symbol, seen_at):
                continue
            successor = self._successor(symbol)
            rows.append(self._row(symbol, "delisted", ended + (f"; {successor}" if successor else "")))
        for symbol, row in self._changes.ended.items():
            found = self._listed.get(symbol)
            if found is not None and found.is_trading and row.changed_at < self._listed_at:
                rows.append(self._row(symbol, "listed", "the exchange lists it as TRADING again"))
        self._unjudged = False
        if not rows:
            return
        await self._read_rows()  # another worker on these tables may have said so already
        new = [row for row in rows if (row.symbol in self._changes.ended) == (row.action == "listed")]
        await store_symbols(self._store, new)
        for row in new:
            self._ended_at.pop(row.symbol, None)
            if row.action == "delisted":
                log.warning("contract_delisted", symbol=row.symbol, reason=row.reason, action="symbols")
            else:
                log.info("contract_listed_again", symbol=row.symbol, action="symbols")
        await self._read_rows()

    def _how_it_ended(self, symbol: str, now: int) -> str:
        """In words; empty for a contract that has not. One that is not named ends only where two lists in a row lack it
        and its candles do too: a list may be read badly."""
        found = self._listed.get(symbol)
        if self._listed_at <= self._changes.since.get(symbol, 0):
            return ""  # the list is older than the wish
        if found is not None:
            return f"the exchange says {found.status}" if found.has_ended(now) else ""
        followed = symbol in self._parts.symbols
        if followed and (self._absent.get(symbol, 0) < 2 or not self._is_overdue(symbol, now)):
            if self._absent.get(symbol) and self._is_overdue(symbol, now):
                self._next_list_at = 0  # ask once more
            return ""
        return "the exchange does not list it any more"

    async def _has_all_candles(self, symbol: str, seen_at: int) -> bool:
        """Whether every candle that closed before the end was seen is delivered, as far as the exchange has it."""
        closed = self._parts.closed
        if self._clock.exchange_now_ms() < last_boundary(seen_at) + self._close_deadline_ms:
            return False
        if self._clock.wall_s() < self._again_s.get(symbol, 0.0):
            return False
        for interval, length in INTERVAL_MS.items():
            start = closed.next_open(symbol, interval)
            if start is None or start + length > seen_at:
                continue
            try:
                rows = await self._rest.candles(symbol, interval, start=start, limit=LAST_CANDLES)
            except Refused:
                continue  # it knows nothing of the symbol any more
            except (Unavailable, Malformed) as error:
                log.info("last_candles_not_read", symbol=symbol, reason=str(error), action="symbols")
                wait_s = max(CANDLES_AGAIN_S, getattr(error, "retry_after_s", None) or 0.0)
                self._again_s[symbol] = self._clock.wall_s() + wait_s
                return False
            for row in rows:
                closed.offer_row(row)
        return not self._parts.engine.is_due(symbol)

    def _successor(self, symbol: str) -> str:
        """What to do where a contract on the same asset was listed lately: it may be the same one by a new name."""
        old = self._parts.instruments.get(symbol)
        if old is None:
            return ""
        now = self._clock.exchange_now_ms()
        for new in self._listed.values():
            same = _asset(new.base_asset) == _asset(old.base_asset) and new.quote_asset == old.quote_asset
            if same and new.symbol != symbol and new.is_trading and now - new.onboard_time < NEWLY_LISTED_MS:
                return (
                    f"perhaps renamed: {new.symbol} on the same asset is listed since {utc_text(new.onboard_time)}; "
                    f"perpline symbols add {new.symbol} follows it, and the history stays under {symbol}"
                )
        return ""

    def _tell_of_announced_end(self, symbol: str, now: int) -> None:
        found = self._listed.get(symbol)
        at = None if found is None else found.announced_end(now)
        if at is not None and self._told_end.get(symbol) != at and symbol in self._parts.instruments:
            self._told_end[symbol] = at
            log.warning("contract_ends", symbol=symbol, at=utc_text(at), action="symbols")

    # ---- in and out

    async def _let_come(self) -> None:
        """Follow what is wanted and not followed."""
        parts = self._parts
        for symbol in self._to_come():
            found = self._listed.get(symbol)
            if found is None or found.has_ended(self._listed_at):
                continue
            if self._clock.wall_s() < self._again_s.get(symbol, 0.0):
                continue
            if parts.engine.is_due(symbol):
                continue  # it left a moment ago
            try:
                await parts.follow(found)
            except NeedsPerson as error:
                if self._notes.get(symbol) != str(error):
                    log.error("symbol_not_followed", symbol=symbol, reason=str(error), action="symbols")
                self._note(symbol, str(error))
                self._again_s[symbol] = self._clock.wall_s() + FOLLOW_AGAIN_S
                continue
            self._retired_s.pop(symbol, None)
            self._notes.pop(symbol, None)
            self._joining[symbol] = self._clock.wall_s()
            self._followed_at[symbol] = self._clock.exchange_now_ms()
            self._unseen = True
            self._follow_streams(list(parts.instruments))

    def _begin(self) -> None:
        """Have decisions begin on symbols whose window is loaded and whose prices are heard."""
        parts = self._parts
        for symbol, since_s in list(self._joining.items()):
            if symbol not in parts.symbols:
                del self._joining[symbol]
                continue
            heard = parts.marks.latest.get(symbol) is not None and parts.books.get(symbol) is not None
            loaded = not parts.closed.is_healing(symbol)
            if (heard and loaded) or self._clock.wall_s() > since_s + JOIN_WITHIN_S:
                del self._joining[symbol]
                parts.begin_deciding(symbol)
                row = self._changes.wanted.get(symbol)
                by, reason = ("settings", "") if row is None else (row.by, row.reason)
                log.info("symbol_followed", symbol=symbol, by=by, reason=reason, action="symbols")

    def _let_go(self) -> None:
        """Decide no more on what is not wanted, once its newest minute has its row."""
        parts = self._parts
        for symbol in set(parts.symbols) - set(self._wanted):
            ended = symbol in self._changes.ended
            if parts.engine.is_due(symbol) if ended else parts.engine.is_undecided(symbol):
                continue
            parts.retire(symbol)
            if ended and not parts.instruments[symbol].has_ended(self._clock.exchange_now_ms()):
                # The list names it no more: whoever holds a position in it on paper is to know.
                parts.instruments[symbol] = structs.replace(parts.instruments[symbol], status="CLOSE")
            row = self._changes.ended.get(symbol) or self._changes.wanted.get(symbol)
            self._note(symbol, "" if row is None else f"{row.action} by {row.by}: {row.reason}")
        for symbol in parts.leaving:
            self._retired_s.setdefault(symbol, self._clock.wall_s())

    async def _forget(self) -> None:
        """Forget what has left and has no open position."""
        parts = self._parts
        gone = []
        for symbol in list(parts.leaving):
            if self._clock.wall_s() < self._retired_s[symbol] + LEAVE_AFTER_S or parts.engine.is_due(symbol):
                continue
            if parts.accounts is not None and parts.accounts.holds(symbol):
                self._note_kept(symbol, "open positions")
                continue
            if held := await open_accounts(self._store, symbol):
                self._note_kept(symbol, f"open {' and '.join(held)} positions")
                continue
            gone.append(symbol)
        for symbol in gone:
            reason = self._notes.pop(symbol, "")  # the rows of `symbols` tell it, so `listings` need not
            seen = self._seen(symbol, followed_at=None, note="")
            parts.forget(symbol)
            for kept in (
                *(self._retired_s, self._joining, self._followed_at, self._absent),
                *(self._told_end, self._again_s),
            ):
                kept.pop(symbol, None)
            log.info("symbol_forgotten", symbol=symbol, reason=reason, action="symbols")
            self._parted.append(seen)
        if gone:
            self._follow_streams(list(parts.instruments))

    def _note_kept(self, symbol: str, why: str) -> None:
        note = self._notes.get(symbol, "").partition("; kept for its ")[0]
        if f"{note}; kept for its {why}" != self._notes.get(symbol):
            log.warning("symbol_kept", symbol=symbol, reason=why, action="symbols")
            self._note(symbol, f"{note}; kept for its {why}")

    def _note(self, symbol: str, text: str) -> None:
        self._unseen = self._unseen or self._notes.get(symbol) != text
        self._notes[symbol] = text

    # ---- rows

    def _row(self, symbol: str, action: Any, reason: str) -> SymbolChange:
        now = self._clock.exchange_now_ms()
        return SymbolChange(symbol=symbol, action=action, changed_at=now, by="perpline", reason=reason)

    def _seen(self, symbol: str, *, followed_at: int | None, note: str) -> Listing:
        found = self._listed.get(symbol)
        return Listing(
            symbol=symbol,
            status=GONE if found is None else found.status,
            seen_at=self._listed_at,
            followed_at=followed_at,
            delivery_at=None if found is None else found.announced_end(self._listed_at),
            note=note,
        )

    async def _write_listings(self) -> None:
        if (not self._unseen and not self._parted) or not self._listed_at:
            return
        parted = [seen for seen in self._parted if seen.symbol not in self._parts.instruments]
        seen = [
            self._seen(symbol, followed_at=self._followed_at.get(symbol), note=self._notes.get(symbol, ""))
            for symbol in self._parts.instruments
        ]
        await store_symbols(self._store, seen=[*seen, *parted])
        self._unseen, self._parted = False, []


def _asset(base: str) -> str:
    """The asset without the multiple of it that a contract may be on: PEPE for 1000PEPE."""
    return re.sub(r"^1(?:0{3,}|M(?=[A-Z]{3}))", "", base)
