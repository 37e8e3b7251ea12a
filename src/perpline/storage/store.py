"""The tables, and what perpline asks of a database.

`sqlite` and `postgres` do it; one conformance suite says what that means.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from msgspec import Struct
from msgspec.structs import astuple
from numpy.typing import NDArray

from perpline.domain.candle import Candle
from perpline.domain.messages import with_number
from perpline.domain.signal import Decision, Message, Prediction

Row = tuple[Any, ...]
Key = tuple[str, str, int]
"""slot, symbol, close_time"""

Columns = dict[str, NDArray[Any]]
"""Equally long arrays by column name: one row each, ascending by time."""


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


class ModelRow(Struct, frozen=True, kw_only=True):
    """A row of `models`."""

    model_id: str
    status: str
    """candidate, shadow, champion or retired, as the last order for it says."""
    created_at: int
    report: str
    """The text of its report.json; empty where it has none."""


class Deployment(Struct, frozen=True, kw_only=True):
    """A row of `deployments`: this model in this slot for the minutes that close at `effective_from` and later."""

    id: int
    slot: str
    model_id: str
    """Empty: the slot has no model of its own any more."""
    effective_from: int
    by: str


class Lease(Struct, frozen=True, kw_only=True):
    """A row of `leases`."""

    owner: str
    """Empty: given back."""
    until: int
    """Grows whenever the owner renews it, and only then."""
    fencing: int
    """Grows whenever it changes hands."""


class Fence(Struct, frozen=True):
    """Under which lease something is written: it is stored only while this owner has it under this number."""

    name: str
    owner: str
    fencing: int


class Table(Struct, frozen=True, kw_only=True):
    """A table that takes rows in batches. `columns` give the order of a row's values."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    newest_wins: str = ""
    """The column whose larger value replaces a row with the same key; empty: the first row stays, whatever follows."""
    may_lack: tuple[str, ...] = ()
    """Columns that are empty where a source did not tell them; `complete_rows` fills them."""

    @property
    def time(self) -> str:
        """The column that says which instant a row is of."""
        return next(column for column in self.key if column in _TIMES)


class TradingTable(Struct, frozen=True, kw_only=True):
    """A table of trading. `columns` give the order of a row's values; an `id` is the database's and not among them."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...] = ()
    """Empty: rows are only added, each with the next id."""
    stays: Literal["last", "first"] = "last"
    """Which of two rows with one key is kept."""
    time: str = ""
    """The column that rows are read in the order of; empty: in that of the key."""

    def row(self, values: Mapping[str, Any]) -> Row:
        """The values in the order of the columns: Decimals as text, None for what is not named, others left out."""
        return tuple(
            format(value, "f") if isinstance(value, Decimal) else value for value in map(values.get, self.columns)
        )

    def named(self, row: Row) -> dict[str, Any]:
        """The row's values by column."""
        return dict(zip(self.columns, row, strict=True))

    @property
    def order(self) -> tuple[str, ...]:
        """What rows are read in the order of."""
        return tuple(dict.fromkeys((*((self.time,) if self.time else ()), *(self.key or ("id",)))))


_CANDLE = Candle.__struct_fields__[1:-1]
_UNTOLD = ("quote_volume", "trades", "taker_buy_volume", "taker_buy_quote_volume")
_TIMES = {"open_time", "minute", "funding_time", "time", "period_end"}
_TEXTS = {"symbol", "source", "kind", "ratio", "series", "field", "old", "new", "sources"}
_WHOLE = {"trades", "log_open", "log_high", "log_low", "log_close", "samples", "updates", "revision"}
_PRICE = ("symbol", "open_time", "open", "high", "low", "close", "source", "received_at")

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        *(
            Table(name=f"candles_{interval}", columns=_CANDLE, key=("symbol", "open_time"), may_lack=_UNTOLD)
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

TRADING_TABLES: dict[str, TradingTable] = {
    table.name: table
    for table in (
        TradingTable(
            # In the order of adding: that of changed_at is another one where two hosts' clocks differ.
            name="modes",
            columns=("symbol", "mode", "positions", "changed_at", "by", "reason", "until"),
        ),
        TradingTable(
            name="orders",
            columns=(
                "account",
                "client_id",
                "position_id",
                "signal_id",
                "symbol",
                "leg",
                "side",
                "kind",
                "reduce_only",
                "quantity",
                "price",
                "trigger_price",
                "status",
                "order_id",
                "child_order_id",
                "filled",
                "average_price",
                "detail",
                "expected_price",
                "created_at",
                "sent_at",
                "updated_at",
                "final_at",
            ),
            key=("account", "client_id"),
            time="created_at",
        ),
        TradingTable(
            name="fills",
            columns=(
                "account",
                "symbol",
                "trade_id",
                "order_id",
                "client_id",
                "position_id",
                "side",
                "price",
                "quantity",
                "fee",
                "fee_asset",
                "realized_pnl",
                "is_maker",
                "kind",
                "traded_at",
                "received_at",
            ),
            key=("account", "symbol", "trade_id"),
            stays="first",
            time="traded_at",
        ),
        TradingTable(
            name="positions",
            columns=(
                "account",
                "position_id",
                "symbol",
                "side",
                "status",
                "quantity",
                "opened_quantity",
                "entry_price",
                "exit_price",
                "target",
                "stop",
                "protective_stop",
                "deadline",
                "reference_mark",
                "best_mark",
                "signal_id",
                "origin",
                "opened_at",
                "closed_at",
                "exit_reason",
                "realized_pnl",
                "fees",
                "funding",
                "naked_ms",
                "updated_at",
            ),
            key=("account", "position_id"),
            time="opened_at",
        ),
        TradingTable(name="refusals", columns=("account", "signal_id", "symbol", "rule", "detail", "at"), time="at"),
        TradingTable(
            name="reconciliations",
            columns=("account", "at", "kind", "symbol", "ours", "theirs", "action"),
            time="at",
        ),
        TradingTable(
            name="incomes",
            columns=("account", "kind", "income_id", "symbol", "asset", "amount", "position_id", "at"),
            key=("account", "kind", "income_id", "symbol"),
            stays="first",
            time="at",
        ),
        TradingTable(
            name="twins",
            columns=("client_id", "symbol", "side", "quantity", "live_price", "paper_price", "difference_bps", "at"),
            key=("client_id",),
            time="at",
        ),
        TradingTable(
            name="equity",
            columns=("account", "minute", "wallet", "unrealized", "equity"),
            key=("account", "minute"),
            time="minute",
        ),
        TradingTable(name="doctors", columns=("at", "account_hash", "passed", "result"), time="at"),
        TradingTable(
            name="signal_outcomes",
            columns=("signal_id", "reason", "t_exit", "ret_net", "mae", "mfe"),
            key=("signal_id",),
            stays="first",
            time="t_exit",
        ),
        TradingTable(name="counters", columns=("name", "value"), key=("name",)),
        TradingTable(name="leases", columns=("name", "owner", "until", "fencing"), key=("name",)),
        TradingTable(name="symbols", columns=("symbol", "action", "changed_at", "by", "reason")),
        TradingTable(
            name="listings",
            columns=("symbol", "status", "seen_at", "followed_at", "delivery_at", "note"),
            key=("symbol",),
        ),
        TradingTable(
            name="alerts",
            columns=("name", "subject", "severity", "text", "raised_at", "cleared_at", "notified_at"),
            key=("name", "subject", "raised_at"),
            time="raised_at",
        ),
    )
}
"""Every table of trading, of what became of signals, of what is followed, and of alarms, by name."""

LOGICAL = frozenset({"reduce_only", "is_maker", "passed"})
"""Columns of trading that are true or false."""


def kept_rows(table: TradingTable, rows: Sequence[Row]) -> list[Row]:
    """Of rows with one key the one that stays, in the order of first coming.

    Raises ValueError for a row with too many or too few values.
    """
    if any(len(row) != len(table.columns) for row in rows):
        raise ValueError(f"{table.name} has {len(table.columns)} columns")
    if not table.key:
        return list(rows)
    places = [table.columns.index(column) for column in table.key]
    kept: dict[Row, Row] = {}
    for row in rows:
        key = tuple(row[place] for place in places)
        kept[key] = row if table.stays == "last" else kept.get(key, row)
    return list(kept.values())


def on_trading_conflict(table: TradingTable) -> str:
    """What an INSERT says about rows with a key that is there, in both dialects."""
    if not table.key:
        return ""
    key = ", ".join(f'"{column}"' for column in table.key)
    if table.stays == "first":
        return f"ON CONFLICT ({key}) DO NOTHING"
    others = ", ".join(f'"{column}" = excluded."{column}"' for column in table.columns if column not in table.key)
    return f"ON CONFLICT ({key}) DO UPDATE SET {others}"


def trading_query(
    table: TradingTable, only: Mapping[str, str | int | None], since: int | None, limit: int | None, mark: str
) -> tuple[str, list[str | int]]:
    """The SELECT of `Store.trading_rows` and its values; `mark` is how a dialect writes the n-th one: "?{}", "${}"."""
    where, values = [], []
    for column, wanted in only.items():
        if column not in table.columns:
            raise ValueError(f"{table.name} has no column {column!r}")
        if wanted is None:
            where.append(f'"{column}" IS NULL')
        else:
            values.append(wanted)
            where.append(f'"{column}" = {mark.format(len(values))}')
    if since is not None:
        if not table.time:
            raise ValueError(f"{table.name} has no times")
        values.append(since)
        where.append(f'"{table.time}" >= {mark.format(len(values))}')
    names = ", ".join(f'"{column}"' for column in table.columns)
    query = f'SELECT {names} FROM "{table.name}"' + (f" WHERE {' AND '.join(where)}" if where else "")
    backwards = limit is not None
    query += " ORDER BY " + ", ".join(f'"{column}"' + (" DESC" if backwards else "") for column in table.order)
    if limit is not None:
        values.append(limit)
        query += f" LIMIT {mark.format(len(values))}"
    return query, values


def column_array(column: str, values: Sequence[Any]) -> NDArray[Any]:
    """The values of a column as an array: texts, bool, int64 or float64, as the column is.

    What is not there (None) is NaN, and -1 in a column of whole numbers.
    """
    if column in _TEXTS:
        return np.array(values, dtype=np.str_)
    if column == "synthetic":
        return np.fromiter(values, np.bool_, len(values))
    whole = column in _WHOLE or column in _TIMES or column.endswith(("_time", "_at"))
    dtype = np.int64 if whole else np.float64
    try:
        return np.fromiter(values, dtype, len(values))
    except TypeError:
        missing = -1 if whole else np.nan
        return np.array([missing if value is None else value for value in values], dtype)


def joined(parts: Sequence[list[NDArray[Any]]], columns: Sequence[str]) -> Columns:
    """The columns of blocks of rows, one behind the other."""
    if not parts:
        return {column: column_array(column, ()) for column in columns}
    return {column: np.concatenate(blocks) for column, *blocks in zip(columns, *parts, strict=True)}


def candle_row(candle: Candle) -> Row:
    """The candle as a row of its table, candles_<interval>."""
    return astuple(candle)[1:-1]


def stored_candle(interval: str, row: Row) -> Candle:
    """The candle of a row of its table. What an imported file did not tell is NaN, and -1 trades."""
    if None in row:
        trades = TABLES["candles_1m"].columns.index("trades")
        row = tuple((-1 if at == trades else math.nan) if value is None else value for at, value in enumerate(row))
    return Candle(interval, *row)


def minute_key(part: Decision | Prediction | Message) -> Key:
    """What decides who won: a message and a prediction belong to the decision with the same key."""
    return part.slot, part.symbol, part.close_time


class Committed(Struct, frozen=True, kw_only=True):
    """What `commit_decisions` has stored."""

    decisions: list[Decision]
    """Those that were new."""
    messages: list[Message] | None
    """The outbox's new rows, in its order and with their ids; None where some were there already."""
    differs: dict[tuple[str, int], int] | None = None
    """What `Assumed.last_ok` should have been; then nothing was stored."""


class Assumed(Struct, frozen=True, kw_only=True):
    """What the verdicts of a batch went by, where other processes decide minutes of the same symbols."""

    since: int
    until: int
    last_ok: dict[tuple[str, int], int]
    """By symbol and side the newest close_time with since <= close_time < until and status ok."""


def outbox_payload(message: Message, seq: int | None) -> str:
    """What is stored: that of a signal with the seq of its decision, if that is new."""
    if message.kind == "signal" and seq is not None:
        return with_number(message.payload, "seq", seq)
    return message.payload


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

    async def complete_rows(self, table: str, rows: Sequence[Row]) -> int:
        """Give stored rows what they lack: each empty column of `may_lack` the value that the row of the same key here
        has. Nothing else of them changes, and none is added. Returns how many got something; in portions as `add_rows`.
        """

    async def candles(self, interval: str, symbol: str, start: int, end: int) -> list[Candle]:
        """Candles with start <= open_time < end, oldest first."""

    async def last_candles(self, interval: str, symbols: Iterable[str], count: int) -> dict[str, list[Candle]]:
        """The newest `count` candles of each symbol, oldest first."""

    async def series(
        self,
        table: str,
        symbol: str,
        start: int,
        end: int,
        columns: Sequence[str],
        only: Mapping[str, str] | None = None,
    ) -> Columns:
        """These columns of a symbol's rows with start <= time < end, in the order of time and then of the key.

        `only` names further columns of the key and the text that they must have. For long spans: a year of candles is
        read in about a second, and beside other work.
        """

    async def commit_decisions(
        self,
        decisions: Sequence[Decision],
        predictions: Sequence[Prediction],
        messages: Sequence[Message],
        t_commit: int,
        fence: Fence | None = None,
        assumed: Assumed | None = None,
    ) -> Committed:
        """Store decisions, predictions and outbox messages in one transaction; returns what was new.

        `t_commit` is when they were handed over, microseconds: the transaction itself is not in it.

        With `assumed` (all decisions are of one slot then) it is compared with the tables before anything is written,
        under the lock under which all decisions of the slot are written; where it is not so any more, nothing is
        stored and `Committed.differs` says how it is.

        Raises Fenced where that lease is another's now: nothing is stored then, and while it is being stored the lease
        cannot change hands.

        The unique key (slot, symbol, close_time) decides who won: a decision that is already there stays as it is, and
        its prediction and message are not stored either. Each new decision gets the next `seq` of its slot and symbol,
        and so does the payload of its message of kind "signal" (`messages.with_number(payload, "seq", seq)`).
        Messages' `id` is ignored and assigned here; those of kind "close" are stored if new by the same key.
        """

    async def last_decided(self, slot: str) -> dict[str, int]:
        """The newest close_time with a row in `signals`, by symbol."""

    async def last_seqs(self, slot: str) -> dict[str, int]:
        """The newest `seq` in `signals`, by symbol."""

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

    async def add_model(self, model_id: str, created_at: int, report: str) -> None:
        """Note a model as a candidate; one that is there already stays as it is."""

    async def models(self) -> list[ModelRow]: ...

    async def add_deployment(
        self, slot: str, model_id: str, effective_from: int, by: str, statuses: Mapping[str, str]
    ) -> Deployment:
        """Add a row to `deployments` and give these models their new status, in one transaction."""

    async def deployments(self) -> list[Deployment]:
        """All of them, in the order they were added."""

    async def commit_trading(
        self, rows: Mapping[str, Sequence[Row]], messages: Sequence[Message] = (), fence: Fence | None = None
    ) -> list[Message]:
        """Store rows of `TRADING_TABLES` and outbox messages in one transaction; returns the messages with their ids.

        Raises Fenced as `commit_decisions` does.

        Of rows with one key the table says whether the last or the first stays; tables without a key grow. Messages'
        `id` is assigned here, and their kinds are others than "signal" and "close". Waits for bulk as little as a
        decision does. All of it or nothing is stored; what raised Unavailable may have been, and is written again:
        then tables without a key and the outbox may hold it twice. Raises ValueError for a row the table cannot hold.
        """

    async def trading_rows(
        self,
        table: str,
        only: Mapping[str, str | int | None] | None = None,
        *,
        since: int | None = None,
        limit: int | None = None,
    ) -> list[Row]:
        """Rows of one of `TRADING_TABLES` with these values (None: empty), oldest first: by the table's time, then key.

        `since`: only those of this instant and later. `limit`: only so many, the newest ones.
        """

    async def next_number(self, name: str) -> int:
        """The next number of the counter `name`, from 1 on; nobody ever gets it again."""

    async def take_lease(self, name: str, owner: str, now: int, until: int) -> int | None:
        """Take or prolong the lease `name` until `until`; returns its fencing number, None while another holds it.

        The number grows whenever the lease changes hands, and stays while its owner prolongs it.
        """

    async def lease(self, name: str) -> Lease | None:
        """The lease as it is now, None if nobody ever took it."""

    async def drop_lease(self, name: str, owner: str) -> None:
        """Give the lease back, if this owner still has it."""

    async def old_days(self, table: str, before: int) -> list[int]:
        """The UTC days (their midnights) before this one of which a large table (`DAY_TABLES`) has rows to archive.

        Of `signals` the newest row of each slot and symbol may stay where it is: it says which seq comes next.
        """

    async def rows_between(self, table: str, start: int, end: int) -> list[Row]:
        """The rows of a large table with start <= time < end, in the order of its key, all columns of `day_tables`."""

    async def drop_day(self, table: str, day: int, archived: Callable[[int, int], Collection[Row]]) -> int:
        """Drop a day of a large table but for rows that are not archived; returns how many those are.

        `archived(start, end)` has the rows that are safe elsewhere; it is called in threads. Exact: a row that comes or
        changes meanwhile stays. Decisions do not wait: SQLite deletes in small transactions and leaves its freed
        pages to what comes; PostgreSQL drops the whole partition or nothing, and waits for its lock 50 ms at a time.
        """

    async def note_archived(self, row: Row) -> None:
        """Write a row of `archived` (table, day, part, file, host, rows, bytes, archived_at); dropped_at is empty."""

    async def note_dropped(self, table: str, day: int, dropped_at: int) -> None:
        """Write down that the rows of this day are in its files only."""

    async def prune_outbox(self, before: int, limit: int) -> int:
        """Delete at most `limit` outbox rows that were published before this instant; returns how many."""

    async def row_counts(self) -> dict[str, int]:
        """Number of rows by table, all tables of the schema but its own bookkeeping."""

    async def select(self, query: str) -> list[Row]:
        """The rows of a SELECT that both databases understand. A caller that is cancelled stops it there too."""

    def is_moved(self) -> bool:
        """Whether the file that was opened is no more the one of that name: moved, deleted or replaced. Whoever goes on
        reads what nobody writes to any more."""

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
