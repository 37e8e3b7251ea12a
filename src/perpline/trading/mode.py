"""Where new positions are opened: nowhere, on paper or at the exchange. Rows of the table `modes`, which people write.

One row is about every symbol, or about one. A symbol's own row wins over the row for all, until a later row for all is
more cautious (off < paper < live) or finds it over: then it is forgotten, so that `off` means everything and nothing
comes back by itself. A mode whose time is over is off, whatever was before it.
"""

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Literal

import msgspec
from msgspec import Struct

from perpline.domain.messages import ModeDraft
from perpline.domain.signal import Message
from perpline.storage.store import TRADING_TABLES, Row, Store

ALL = ""
"""The symbol of a row that is about every symbol."""
ANNOUNCED_MS = 60_000
"""A change that could not be published for so long is history."""

TABLE = TRADING_TABLES["modes"]


class Mode(StrEnum):
    """Where a signal's position is opened."""

    OFF = "off"
    """Signals are made, stored and published, and nothing is traded."""
    PAPER = "paper"
    LIVE = "live"


_RANK = {Mode.OFF: 0, Mode.PAPER: 1, Mode.LIVE: 2}

Positions = Literal["keep", "protect", "flatten"]


class ModeRow(Struct, frozen=True, kw_only=True):
    """A row of `modes`."""

    symbol: str
    """Empty for all of them."""
    mode: Mode
    positions: Positions
    """What becomes of positions that are open: keep, they live on under their stop, target and time limit; protect,
    the engine closes them no more, and only the stop that rests at the exchange is left; flatten, they are closed."""
    changed_at: int
    by: str
    reason: str
    until: int | None
    """From this instant on it is off; None for never."""

    def at(self, now: int) -> Mode:
        """What it says at an instant."""
        return Mode.OFF if self.is_over(now) else self.mode

    def is_over(self, now: int) -> bool:
        return self.until is not None and now >= self.until


NOTHING_SET = ModeRow(
    symbol=ALL, mode=Mode.OFF, positions="keep", changed_at=0, by="", reason="nobody has set a mode", until=None
)


class Change(Struct, frozen=True, kw_only=True):
    """The mode of all symbols or of one has changed, by a new row or because a row is over."""

    row: ModeRow
    old: Mode
    new: Mode


class InForce:
    """Which rows are in force, folded one by one in the order they were added."""

    def __init__(self, rows: Iterable[ModeRow] = ()) -> None:
        self.of_all = NOTHING_SET
        self.of_symbols: dict[str, ModeRow] = {}
        for row in rows:
            self.add(row)

    def add(self, row: ModeRow) -> None:
        if row.symbol != ALL:
            self.of_symbols[row.symbol] = row
            return
        self.of_all = row
        self.of_symbols = {
            symbol: own
            for symbol, own in self.of_symbols.items()
            if _RANK[own.mode] <= _RANK[row.mode] and not (own.mode != Mode.OFF and own.is_over(row.changed_at))
        }

    def row_of(self, symbol: str) -> ModeRow:
        """The row that decides about a symbol; with `ALL`, about those without a row of their own."""
        return self.of_symbols.get(symbol, self.of_all)


class Modes:
    """The modes as the tables say, looked at each second and whenever somebody says that there is something new.

    `changed(change)` is called for every change after the first look: which positions it is about, `row_of` their
    symbols tells. Asking is cheap and never waits.
    """

    def __init__(self, store: Store, now_ms: Callable[[], int], *, changed: Callable[[Change], None]) -> None:
        self._store = store
        self._now_ms = now_ms
        self._changed = changed
        self._in_force = InForce()
        self._newest: list[Row] = []
        self._told: dict[str, tuple[ModeRow, Mode]] | None = None
        """By symbol, the row and the mode that `changed` knows of; None before the first look."""

    def mode_of(self, symbol: str, now: int) -> Mode:
        """Where a position of this symbol would be opened now."""
        return self.row_of(symbol).at(now)

    def row_of(self, symbol: str) -> ModeRow:
        """The row that decides about this symbol."""
        return self._in_force.row_of(symbol)

    def rows(self) -> list[ModeRow]:
        """What is in force: the row for all, then those of single symbols."""
        return [self._in_force.of_all, *self._in_force.of_symbols.values()]

    async def look(self) -> None:
        """Take over what the table says now, and what is over by now. Raises Unavailable; the old modes hold then."""
        newest = await self._store.trading_rows("modes", limit=1)
        if newest != self._newest:
            self._in_force = InForce(await mode_rows(self._store))
            self._newest = newest
        self._tell()

    def _tell(self) -> None:
        now = self._now_ms()
        told, self._told = self._told, {row.symbol: (row, row.at(now)) for row in self.rows()}
        if told is None:
            return
        for symbol, (row, mode) in self._told.items():
            was_row, was = told.get(symbol) or told[ALL]
            if (was_row, was) != (row, mode):
                self._changed(Change(row=row, old=was, new=mode))


async def mode_rows(store: Store) -> list[ModeRow]:
    """Every change there was, oldest first."""
    return [msgspec.convert(TABLE.named(row), ModeRow) for row in await store.trading_rows("modes")]


async def set_mode(
    store: Store,
    symbols: Sequence[str],
    mode: Mode,
    *,
    positions: Positions,
    now: int,
    by: str,
    reason: str,
    until: int | None,
    slot: str,
) -> list[ModeRow]:
    """Store a change for these symbols, none meaning all, with its messages; returns its rows.

    Raises ValueError without a reason, and for a time that is over already.
    """
    if not reason.strip():
        raise ValueError("a change of mode has a reason")
    if until is not None and until <= now:
        raise ValueError("the mode would be over before it began")
    in_force = InForce(await mode_rows(store))
    rows = [
        ModeRow(
            symbol=symbol, mode=mode, positions=positions, changed_at=now, by=by, reason=reason.strip(), until=until
        )
        for symbol in dict.fromkeys(symbols or [ALL])
    ]
    messages = [_message(row, in_force.row_of(row.symbol).at(now), slot) for row in rows]
    await store.commit_trading({"modes": [TABLE.row(msgspec.structs.asdict(row)) for row in rows]}, messages)
    return rows


def _message(row: ModeRow, before: Mode, slot: str) -> Message:
    payload = ModeDraft(
        sym=row.symbol,
        mode=row.mode,
        prev=before,
        positions=row.positions,
        T=row.changed_at,
        until=row.until,
        by=row.by,
        reason=row.reason,
    )
    return Message(
        id=0,
        kind="mode",
        slot=slot,
        symbol=row.symbol,
        close_time=row.changed_at,
        payload=msgspec.json.encode(payload).decode(),
        valid_until=row.changed_at + ANNOUNCED_MS,
    )


class Examination(Struct, frozen=True, kw_only=True):
    """A row of `doctors`: what `perpline doctor` found for some keys."""

    at: int
    account_hash: str
    """`Credentials.fingerprint` of the keys, which are in no table themselves."""
    passed: bool
    result: str
    """JSON, as `perpline doctor --json` prints it."""


async def note_examination(store: Store, examination: Examination) -> None:
    """Store what `perpline doctor` found."""
    row = TRADING_TABLES["doctors"].row(msgspec.structs.asdict(examination))
    await store.commit_trading({"doctors": [row]})


async def last_examination(store: Store, account_hash: str) -> Examination | None:
    """The newest one for these keys."""
    rows = await store.trading_rows("doctors", {"account_hash": account_hash}, limit=1)
    return msgspec.convert(TRADING_TABLES["doctors"].named(rows[0]), Examination) if rows else None
