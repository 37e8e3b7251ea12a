"""The tables, and what perpline asks of a database.

`sqlite` and `postgres` do it; one conformance suite says what that means.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct
from msgspec.structs import astuple, replace

from perpline.domain.candle import Candle
from perpline.domain.messages import with_number
from perpline.domain.signal import Decision, Message, Prediction

Row = tuple[Any, ...]
Key = tuple[str, str, int]
"""slot, symbol, close_time"""


class Gap(Struct, frozen=True, kw_only=True):
    """A hole in a series, as a row of `gaps`: [from_time, to_time). Unrepaired while `repaired_at` is None."""

    id: int
    symbol: str
    series: str
    from_time: int
    to_time: int
    cause: str
    detected_at: int
    repaired_at: int | None
    repaired_by: str | None
    """rest, ws, archive, or absent: the exchange itself has no such candle."""


class Table(Struct, frozen=True, kw_only=True):
    """A table that takes rows in batches. `columns` give the order of a row's values."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    newest_wins: str = ""
    """The column whose larger value replaces a row with the same key; empty: the first row stays, whatever follows."""


_CANDLE = Candle.__struct_fields__[1:-1]
_PRICE = ("symbol", "open_time", "open", "high", "low", "close", "source", "received_at")

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        *(
            Table(name=f"candles_{interval}", columns=_CANDLE, key=("symbol", "open_time"))
            for interval in ("1m", "15m", "1h")
        ),
        Table(
            name="premium_index",
            columns=(
                "symbol",
                "minute",
                "mark_price",
                "index_price",
                "funding_rate",
                "next_funding_time",
                "samples",
                "updated_at",
                "received_at",
            ),
            key=("symbol", "minute"),
            newest_wins="updated_at",
        ),
        *(
            Table(name=f"{series}_klines", columns=_PRICE, key=("symbol", "open_time"))
            for series in ("mark", "index", "premium")
        ),
        Table(
            name="funding_rates",
            columns=("symbol", "funding_time", "rate", "mark_price", "interval_hours", "known_at"),
            key=("symbol", "funding_time"),
        ),
        Table(
            name="open_interest",
            columns=("symbol", "time", "open_interest", "open_interest_value", "kind", "known_at", "revision"),
            key=("symbol", "time", "kind", "revision"),
        ),
        Table(
            name="long_short_ratio",
            columns=(
                "symbol",
                "ratio",
                "period_end",
                "value",
                "long",
                "short",
                "known_at",
                "first_seen_at",
                "revision",
            ),
            key=("symbol", "ratio", "period_end", "revision"),
        ),
        Table(
            name="book_minutes",
            columns=(
                "symbol",
                "minute",
                "bid",
                "bid_qty",
                "ask",
                "ask_qty",
                "spread_bps",
                "imbalance",
                "order_flow_imbalance",
                "updates",
                "receive_lag_ms",
                "updated_at",
                "received_at",
            ),
            key=("symbol", "minute"),
            newest_wins="updated_at",
        ),
        Table(
            name="revisions",
            columns=("symbol", "series", "time", "field", "old", "new", "sources", "seen_at"),
            key=("symbol", "series", "time", "field", "new"),
        ),
    )
}
"""Every table that is written in batches, by name."""


def candle_row(candle: Candle) -> Row:
    """The candle as a row of its table, candles_<interval>."""
    return astuple(candle)[1:-1]


def minute_key(part: Decision | Prediction | Message) -> Key:
    """What decides who won: a message and a prediction belong to the decision with the same key."""
    return part.slot, part.symbol, part.close_time


def outbox_row(message: Message, seq: int | None) -> Row:
    """The message as a row of `outbox`, but its id; a signal with the seq of its decision, if that is new."""
    if message.kind == "signal" and seq is not None:
        message = replace(message, payload=with_number(message.payload, "seq", seq))
    return astuple(message)[1:]


class Store(Protocol):
    """A database that holds the tables of contracts.md.

    Every call may raise Unavailable (the database is away, locked or full: keep what you have and try again).
    Writing a row twice is harmless. Calls may come from many tasks; they are carried out one after another.
    """

    schema_was: int
    """Number of the schema that the database had when it was opened; 0 for none."""

    async def open(self) -> None:
        """Connect and bring the schema up to date. Raises NeedsPerson for a newer schema or an unusable address."""

    async def close(self) -> None: ...

    async def add_rows(self, table: str, rows: Sequence[Row]) -> int:
        """Write rows of one of `TABLES`; returns how many were new or replaced an older one.

        In portions of one transaction each, so that a decision never waits for a bulk: a call that failed may have
        stored some, and all may be written again. Raises ValueError for a row that the table can never hold.
        """

    async def candles(self, interval: str, symbol: str, start: int, end: int) -> list[Candle]:
        """Candles with start <= open_time < end, oldest first."""

    async def last_candles(self, interval: str, symbols: Iterable[str], count: int) -> dict[str, list[Candle]]:
        """The newest `count` candles of each symbol, oldest first."""

    async def commit_decisions(
        self,
        decisions: Sequence[Decision],
        predictions: Sequence[Prediction],
        messages: Sequence[Message],
        t_commit: int,
    ) -> list[Decision]:
        """Store decisions, predictions and outbox messages in one transaction; returns the decisions that were new.

        The unique key (slot, symbol, close_time) decides who won: a decision that is already there stays as it is, and
        its prediction and message are not stored either. Each new decision gets the next `seq` of its slot and symbol,
        and so does the payload of its message of kind "signal" (`messages.with_number(payload, "seq", seq)`).
        Messages' `id` is ignored and assigned here; those of kind "close" are stored if new by the same key.
        """

    async def last_decided(self, slot: str) -> dict[str, int]:
        """The newest close_time with a row in `signals`, by symbol."""

    async def last_signals(self, slot: str, since: int) -> dict[tuple[str, int], int]:
        """The newest close_time from `since` on with status ok, by symbol and side."""

    async def decision_rows(self, slot: str, start: int, end: int) -> list[tuple[str, int, str]]:
        """(symbol, close_time, status) of every row in `signals` with start <= close_time <= end, oldest first."""

    async def pending_messages(self, limit: int) -> list[Message]:
        """Outbox messages not yet published, oldest first."""

    async def mark_published(self, ids: Sequence[int], published_at: int) -> None: ...

    async def open_gap(
        self, symbol: str, series: str, from_time: int, to_time: int, cause: str, detected_at: int
    ) -> int:
        """Note a hole; returns its id. The same open hole noted twice is one row."""

    async def close_gap(self, gap_id: int, repaired_at: int, repaired_by: str) -> None: ...

    async def gaps(self, only_open: bool = False) -> list[Gap]: ...

    async def row_counts(self) -> dict[str, int]:
        """Number of rows by table, all tables of the schema but its own bookkeeping."""

    async def select(self, query: str) -> list[Row]:
        """The rows of a SELECT that both databases understand."""

    async def damage(self) -> list[str]:
        """What the database itself finds wrong with its files, in words; may read all of them."""

    async def size(self) -> tuple[int, int | None]:
        """Bytes of the database, and bytes that its disk has left, None where we cannot know."""

    async def backup(self, path: Path) -> None:
        """Write everything as it is at one instant into a new SQLite file, while others go on writing.

        Raises NeedsPerson for a path that cannot be written.
        """

    async def restore(self, path: Path) -> None:
        """Take over everything from such a file, or from any file of a `SqliteStore`.

        Raises NeedsPerson where this database has rows already, and for a file with another schema.
        """
