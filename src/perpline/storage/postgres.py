"""The store in a PostgreSQL database (13 or newer), through asyncpg.

Four connections, each for one kind of work, so that none of it waits for another: decisions, the outbox, rows in bulk,
reads. After any error a connection is given up, and the next call makes a new one: what it would still have been good
for is not worth the doubt. The server then takes back what was not committed.

synchronous_commit is left as the server has it, on, so that what was committed survives the server's death; only the
mark "published" does without, for if it is lost a message is sent again, which a bus turns into nothing.

The large tables have a partition for each UTC day, made in transactions of their own: ahead, beside the work, as soon
as rows of a new last day come, and at once for rows of any other day.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from hashlib import blake2b
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import urlsplit

import asyncpg
import msgspec

from perpline.common.config import masked_url
from perpline.common.errors import NeedsPerson, Unavailable
from perpline.domain.candle import Candle
from perpline.domain.messages import with_number
from perpline.domain.signal import Decision, Message, Prediction
from perpline.storage.migrate import migrate_postgresql, migrations
from perpline.storage.sql import named_queries, sql_folder
from perpline.storage.store import TABLES, Gap, Row, Table

OLDEST_POSTGRES = 13
CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 10.0
"""No answer for so long, and the connection is taken for dead."""
READ_TIMEOUT_S = 120.0
LOCK_TIMEOUT_MS = 5000
"""How long a write waits for another process that is writing."""
TRANSACTION_ROWS = 5_000
"""Rows of a bulk batch that are written in one transaction."""
DAY_MS = 86_400_000
LAST_DAY = 47_482
"""2100-01-01. Rows of later days have times that are none."""
BOOKKEEPING = {"schema_migrations", "signal_seqs"}

Connection = Any  # asyncpg's, which has no types
Params = ParamSpec("Params")
Result = TypeVar("Result")
Key = tuple[str, str, int]
"""slot, symbol, close_time"""


class PostgresStore:
    """A `Store` in the database that a URL names. Several processes may have it open.

    With `read_only` nothing is made, changed or migrated, for commands that only look.

    A batch of `add_rows` with more than 5,000 rows is several transactions. If such a call fails, a part of it may be
    stored; writing all of it again is harmless.
    """

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        """Raises NeedsPerson for an address that cannot be meant."""
        self.where = _checked(url)
        """The address without password and options, for texts."""
        self._url = url
        self._read_only = read_only
        self._queries = named_queries("postgresql")
        self._types: dict[str, dict[str, str]] = {}
        """Of every table, the type of each column."""
        self._days: dict[str, _Days] = {}
        """Of every partitioned table."""
        self._decisions = _Lane(partial(self._connect, "decisions", learn=True), self.where)
        self._outbox = _Lane(partial(self._connect, "outbox", synchronous_commit="off"), self.where)
        self._rows = _Lane(partial(self._connect, "rows", learn=True), self.where)
        self._reads = _Lane(partial(self._connect, "reads", timeout_s=READ_TIMEOUT_S), self.where)
        self._making_days: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        try:
            if self._read_only:
                await self._reads.open()
                await self._reads.run(self._migrate)
            else:
                await self._decisions.open(self._migrate)
                await asyncio.gather(self._outbox.open(), self._rows.open(), self._reads.open())
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        if self._making_days:
            await asyncio.wait(self._making_days)
        for lane in (self._rows, self._outbox, self._decisions, self._reads):
            await lane.close()

    async def add_rows(self, table: str, rows: Sequence[Row]) -> int:
        stored = 0
        for start in range(0, len(rows), TRANSACTION_ROWS):
            part = rows[start : start + TRANSACTION_ROWS]
            stored += await self._rows.run(self._add_rows, TABLES[table], part)
        if rows and table in self._days:
            self._make_next_day(table)
        return stored

    async def candles(self, interval: str, symbol: str, start: int, end: int) -> list[Candle]:
        query = f"SELECT {_CANDLE} FROM candles_{interval} WHERE symbol = $1 AND open_time >= $2 AND open_time < $3"
        rows = await self._reads.run(_fetch, f"{query} ORDER BY open_time", symbol, start, end)
        return [Candle(interval, *row) for row in rows]

    async def last_candles(self, interval: str, symbols: Iterable[str], count: int) -> dict[str, list[Candle]]:
        found: dict[str, list[Candle]] = {symbol: [] for symbol in symbols}
        rows = await self._reads.run(
            _fetch,
            f"SELECT candle.* FROM unnest($1::text[]) AS asked (symbol) CROSS JOIN LATERAL ("
            f'SELECT {_CANDLE} FROM candles_{interval} AS c WHERE c.symbol = asked.symbol COLLATE "C" '
            "ORDER BY open_time DESC LIMIT $2) AS candle ORDER BY candle.open_time",
            list(found),
            count,
        )
        for row in rows:
            found[row["symbol"]].append(Candle(interval, *row))
        return found

    async def commit_decisions(
        self,
        decisions: Sequence[Decision],
        predictions: Sequence[Prediction],
        messages: Sequence[Message],
        t_commit: int,
    ) -> list[Decision]:
        new = await self._decisions.run(self._commit_decisions, decisions, predictions, messages, t_commit)
        for table in ("signals", "predictions"):
            self._make_next_day(table)
        return new

    async def last_decided(self, slot: str) -> dict[str, int]:
        return dict(await self._reads.run(_fetch, self._queries["last_decided"], slot))

    async def last_signals(self, slot: str, since: int) -> dict[tuple[str, int], int]:
        rows = await self._reads.run(_fetch, self._queries["last_signals"], slot, since)
        return {(symbol, side): close_time for symbol, side, close_time in rows}

    async def decision_rows(self, slot: str, start: int, end: int) -> list[tuple[str, int, str]]:
        rows = await self._reads.run(_fetch, self._queries["decision_rows"], slot, start, end)
        return [(symbol, close_time, status) for symbol, close_time, status in rows]

    async def pending_messages(self, limit: int) -> list[Message]:
        # Not with the reads: it is part of a decision's way out, and must not wait behind a long one.
        lane = self._reads if self._read_only else self._outbox
        rows = await lane.run(_fetch, self._queries["pending_messages"], limit)
        return [Message(**dict(row)) for row in rows]

    async def mark_published(self, ids: Sequence[int], published_at: int) -> None:
        await self._outbox.run(_execute, self._queries["mark_published"], published_at, list(ids))

    async def open_gap(
        self, symbol: str, series: str, from_time: int, to_time: int, cause: str, detected_at: int
    ) -> int:
        query = self._queries["open_gap"]
        [row] = await self._rows.run(_fetch, query, symbol, series, from_time, to_time, cause, detected_at)
        return int(row["id"])

    async def close_gap(self, gap_id: int, repaired_at: int, repaired_by: str) -> None:
        await self._rows.run(_execute, self._queries["close_gap"], gap_id, repaired_at, repaired_by)

    async def gaps(self, only_open: bool = False) -> list[Gap]:
        rows = await self._reads.run(_fetch, self._queries["gaps"], only_open)
        return [Gap(**dict(row)) for row in rows]

    async def row_counts(self) -> dict[str, int]:
        columns = await self._reads.run(_fetch, self._queries["columns"])
        tables = sorted({table for table, _, _ in columns} - BOOKKEEPING)
        counts = ", ".join(f'(SELECT count(*) FROM "{table}") AS "{table}"' for table in tables)
        [row] = await self._reads.run(_fetch, f"SELECT {counts}")
        return dict(row)

    async def _connect(
        self, work: str, *, learn: bool = False, timeout_s: float = COMMAND_TIMEOUT_S, **settings: str
    ) -> Connection:
        """A connection for one kind of work, by which the server's own list names it."""
        settings |= {
            "application_name": f"perpline {work}",
            "lock_timeout": str(LOCK_TIMEOUT_MS),
            "idle_in_transaction_session_timeout": "30000",  # a process that was stopped must not block the others
            "jit": "off",  # compiling pays for none of these queries, and takes longer than most of them
        }
        if self._read_only:
            settings["default_transaction_read_only"] = "on"
        connection = await asyncpg.connect(
            self._url, timeout=CONNECT_TIMEOUT_S, command_timeout=timeout_s, server_settings=settings
        )
        if learn:
            await self._learn(connection)
        return connection

    async def _migrate(self, connection: Connection) -> None:
        version = connection.get_server_version().major
        if version < OLDEST_POSTGRES:
            raise NeedsPerson(f"{self.where} is PostgreSQL {version}: version {OLDEST_POSTGRES} or newer is needed")
        known = migrations(sql_folder("postgresql"))
        if await migrate_postgresql(connection, known, self.where, self._read_only) < len(known):
            await self._learn(connection)

    async def _learn(self, connection: Connection) -> None:
        """What columns and partitions there are. With every new connection: who has one anew may have missed much."""
        types: dict[str, dict[str, str]] = {}
        for table, column, type_name in await connection.fetch(self._queries["columns"]):
            types.setdefault(table, {})[column] = type_name
        days = {table: _Days(column) for table, column in await connection.fetch(self._queries["partitioned"])}
        for table, partition in await connection.fetch(self._queries["partitions"]):
            days[table].known.add(_day_of(partition))
        self._types, self._days = types, days

    # ---- rows in bulk ----

    async def _add_rows(self, connection: Connection, table: Table, rows: Sequence[Row]) -> int:
        await self._make_days(connection, table.name, table.columns, rows)
        arriving = f"arriving_{table.name}"
        await connection.execute(
            f'CREATE TEMPORARY TABLE IF NOT EXISTS "{arriving}" (LIKE "{table.name}") ON COMMIT DELETE ROWS'
        )
        async with _transaction(connection):
            await connection.copy_records_to_table(
                arriving, schema_name="pg_temp", columns=table.columns, records=rows
            )
            answer = await connection.execute(self._insert_arrived(table, arriving))
            return int(answer.split()[-1])

    def _insert_arrived(self, table: Table, arriving: str) -> str:
        """Of rows with one key the newest, or else the first, and those sorted by key.

        Sorted, because two processes that insert the same keys in different orders would wait for each other.
        """
        names, key = _names(table.columns), _names(table.key)
        values = ", ".join(self._value(table.name, column) for column in table.columns)
        order = f'{key}, "{table.newest_wins}" DESC, ctid' if table.newest_wins else f"{key}, ctid"
        conflict = "DO NOTHING"
        if table.newest_wins:
            others = ", ".join(f'"{name}" = excluded."{name}"' for name in table.columns if name not in table.key)
            newest = f'excluded."{table.newest_wins}" > "{table.name}"."{table.newest_wins}"'
            conflict = f"DO UPDATE SET {others} WHERE {newest}"
        return (
            f'INSERT INTO "{table.name}" ({names}) SELECT DISTINCT ON ({key}) {values} FROM pg_temp."{arriving}" '
            f"ORDER BY {order} ON CONFLICT ({key}) {conflict}"
        )

    def _value(self, table: str, column: str) -> str:
        """The column, without a NaN: to PostgreSQL that is a number like any other; SQLite has no such number."""
        return f"nullif(\"{column}\", 'NaN')" if self._types[table][column] == "double precision" else f'"{column}"'

    # ---- decisions ----

    async def _commit_decisions(
        self,
        connection: Connection,
        decisions: Sequence[Decision],
        predictions: Sequence[Prediction],
        messages: Sequence[Message],
        t_commit: int,
    ) -> list[Decision]:
        said = [msgspec.structs.astuple(prediction) for prediction in predictions]
        await self._make_days(connection, "signals", _DECISION, [msgspec.structs.astuple(one) for one in decisions])
        await self._make_days(connection, "predictions", _PREDICTION, said)
        async with _transaction(connection):
            seqs = await self._insert_decisions(connection, decisions, t_commit)
            lost = {_key(decision) for decision in decisions} - seqs.keys()
            said = [row for prediction, row in zip(predictions, said, strict=True) if _key(prediction) not in lost]
            await self._insert(connection, "predictions", _PREDICTION, said, "ON CONFLICT DO NOTHING")
            sent = [_outbox_row(message, seqs.get(_key(message))) for message in messages if _key(message) not in lost]
            await self._insert(connection, "outbox", _MESSAGE, sent, "ON CONFLICT DO NOTHING")
        new = []
        for decision in decisions:
            if seqs.pop(_key(decision), None) is not None:
                new.append(decision)
        return new

    async def _insert_decisions(
        self, connection: Connection, decisions: Sequence[Decision], t_commit: int
    ) -> dict[Key, int]:
        """Insert those whose key is free, each with the next seq of its slot and symbol; returns these by key."""
        for slot in sorted({decision.slot for decision in decisions}):
            # Who decides for a slot does so alone: its numbers must have no gaps, and what is free must stay so.
            lock = int.from_bytes(blake2b(f"perpline {slot}".encode(), digest_size=8).digest(), signed=True)
            await connection.execute(f"SELECT pg_advisory_xact_lock({lock})")
        pairs = {(decision.slot, decision.symbol) for decision in decisions}
        last = {
            (slot, symbol): (seq, close_time)
            for slot, symbol, seq, close_time in await _fetch(
                connection, self._queries["last_seqs"], *_transposed(pairs, 2)
            )
        }
        # Only what is not newer than a symbol's newest can be there: the usual minute looks into no partition.
        old = [_key(one) for one in decisions if one.close_time <= last.get((one.slot, one.symbol), (0, -1))[1]]
        taken: set[Key] = set()
        if old:
            bounds = min(key[2] for key in old), max(key[2] for key in old)
            taken |= {tuple(row) for row in await _fetch(connection, self._queries["decided"], *_transposed(old, 3), *bounds)}
        seqs: dict[Key, int] = {}
        rows = []
        for decision in decisions:
            if _key(decision) in taken:
                continue
            taken.add(_key(decision))
            seq, newest = last.get((decision.slot, decision.symbol), (0, 0))
            last[decision.slot, decision.symbol] = seq + 1, max(newest, decision.close_time)
            seqs[_key(decision)] = seq + 1
            rows.append((*msgspec.structs.astuple(decision), seq + 1, t_commit))
        await self._insert(connection, "signals", (*_DECISION, "seq", "t_commit"), rows)
        await self._insert(
            connection,
            "signal_seqs",
            ("slot", "symbol", "seq", "close_time"),
            [(*pair, *last[pair]) for pair in sorted(pairs) if pair in last],
            "ON CONFLICT (slot, symbol) DO UPDATE SET seq = excluded.seq, close_time = excluded.close_time",
        )
        return seqs

    async def _insert(
        self, connection: Connection, table: str, columns: Sequence[str], rows: Sequence[Row], on_conflict: str = ""
    ) -> None:
        """Insert rows in their order, a list for each column: one statement however many they are."""
        if not rows:
            return
        lists = ", ".join(f"${n}::{self._types[table][column]}[]" for n, column in enumerate(columns, 1))
        values = ", ".join(self._value(table, column) for column in columns)
        await connection.execute(
            f'INSERT INTO "{table}" ({_names(columns)}) SELECT {values} '
            f"FROM unnest({lists}) WITH ORDINALITY AS arriving ({_names(columns)}, nth) ORDER BY nth {on_conflict}",
            *_transposed(rows, len(columns)),
        )

    # ---- partitions ----

    async def _make_days(self, connection: Connection, table: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """Make the partitions that these rows need, where the table has any."""
        if rows and table in self._days:
            time = columns.index(self._days[table].column)
            wanted = {row[time] // DAY_MS for row in rows}
            if not wanted <= self._days[table].known:
                await self._make(connection, table, wanted)

    def _make_next_day(self, table: str) -> None:
        """Make the partition after the last one, beside the work, if rows have come that make it the next in line."""
        days = self._days[table]
        if days.last_asked in days.known:
            days.last_asked = max(days.known) + 1
            task = asyncio.create_task(self._make_one(table, days.last_asked), name=f"partition of {table}")
            self._making_days.add(task)
            task.add_done_callback(self._making_days.discard)
