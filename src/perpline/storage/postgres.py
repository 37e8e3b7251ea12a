"""The store in a PostgreSQL database (13 or newer), through asyncpg.

Five connections, each for one kind of work, so that none of it waits for another: decisions, the outbox, rows in bulk,
reads, leases. After any error a connection is given up, and the next call makes a new one: what it would still have
been good for is not worth the doubt. The server then takes back what was not committed.

synchronous_commit is left as the server has it, on, so that what was committed survives the server's death; only the
mark "published" does without, for if it is lost a message is sent again, which a bus turns into nothing.

The large tables have a partition for each UTC day, made in transactions of their own: ahead, beside the work, as soon
as rows of a new last day come, and at once for rows of any other day.
"""

import asyncio
import operator
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import urlsplit

import asyncpg
from msgspec.structs import astuple, replace

from perpline.common.config import masked_url
from perpline.common.errors import Fenced, NeedsPerson, Unavailable
from perpline.domain.candle import Candle
from perpline.domain.signal import Decision, Message, Prediction
from perpline.storage.archive import BATCH_ROWS, Archive, NewArchive
from perpline.storage.day_tables import DAY_MS, HOUR_MS, DayTable, day_tables
from perpline.storage.migrate import migrate_postgresql, migrations
from perpline.storage.sql import named_queries, sql_folder
from perpline.storage.store import (
    TABLES,
    TRADING_TABLES,
    Assumed,
    Columns,
    Committed,
    Deployment,
    Fence,
    Gap,
    Key,
    Lease,
    ModelRow,
    Row,
    Table,
    TradingTable,
    column_array,
    joined,
    kept_rows,
    minute_key,
    on_trading_conflict,
    outbox_payload,
    stored_candle,
    trading_query,
)

OLDEST_POSTGRES = 13
CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 10.0
"""No answer for so long, and the connection is taken for dead."""
READ_TIMEOUT_S = 120.0
WHOLE_TIMEOUT_S = 3600.0
"""For what reads all of a large table."""
LOCK_TIMEOUT_MS = 5000
"""How long a write waits for another process that is writing."""
TRANSACTION_ROWS = 5_000
"""Rows of a bulk batch that are written in one transaction."""
DROP_LOCK_MS = 50
"""How long the dropping of a day waits for its turn, and so the most that a decision waits behind it."""
DROP_RETRY_S = 2.0
DROP_TRIES = 60
LAST_DAY = 47_482
"""2100-01-01. Rows of later days have times that are none."""
BOOKKEEPING = {"schema_migrations", "signal_seqs"}

Connection = Any  # asyncpg's, which has no types
Params = ParamSpec("Params")
Result = TypeVar("Result")


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
        self.schema_was = 0
        """The schema that the database had when it was opened; 0 for none."""
        self._decisions = _Lane(partial(self._connect, "decisions", learn=True), self.where)
        self._outbox = _Lane(partial(self._connect, "outbox", synchronous_commit="off"), self.where)
        self._rows = _Lane(partial(self._connect, "rows", learn=True), self.where)
        self._reads = _Lane(partial(self._connect, "reads"), self.where, stops=True)
        self._upkeep = _Lane(partial(self._connect, "upkeep"), self.where)
        """Opened when it is first needed."""
        self._leases = _Lane(partial(self._connect, "leases"), self.where)
        self._making_days: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        try:
            if self._read_only:
                await self._reads.open(self._migrate)
            else:
                await self._decisions.open(self._migrate)
                for lane in (self._outbox, self._rows, self._reads, self._leases):
                    await lane.open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        if self._making_days:
            await asyncio.wait(self._making_days)
        for lane in (self._rows, self._outbox, self._decisions, self._reads, self._leases, self._upkeep):
            await lane.close()

    async def add_rows(self, table: str, rows: Sequence[Row]) -> int:
        stored = 0
        for start in range(0, len(rows), TRANSACTION_ROWS):
            part = rows[start : start + TRANSACTION_ROWS]
            stored += await self._rows.run(self._add_rows, TABLES[table], part)
        self._make_next_day(table)
        return stored

    async def complete_rows(self, table: str, rows: Sequence[Row]) -> int:
        completed = 0
        for start in range(0, len(rows), TRANSACTION_ROWS):
            part = rows[start : start + TRANSACTION_ROWS]
            completed += await self._rows.run(self._complete_rows, TABLES[table], part)
        return completed

    async def candles(self, interval: str, symbol: str, start: int, end: int) -> list[Candle]:
        query = f"SELECT {_CANDLE} FROM candles_{interval} WHERE symbol = $1 AND open_time >= $2 AND open_time < $3"
        rows = await self._reads.run(_fetch, f"{query} ORDER BY open_time", symbol, start, end)
        return [stored_candle(interval, tuple(row)) for row in rows]

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
            found[row["symbol"]].append(stored_candle(interval, tuple(row)))
        return found

    async def series(
        self,
        table: str,
        symbol: str,
        start: int,
        end: int,
        columns: Sequence[str],
        only: Mapping[str, str] | None = None,
    ) -> Columns:
        return await self._reads.run(_series, TABLES[table], columns, {"symbol": symbol, **(only or {})}, start, end)

    async def commit_decisions(
        self,
        decisions: Sequence[Decision],
        predictions: Sequence[Prediction],
        messages: Sequence[Message],
        t_commit: int,
        fence: Fence | None = None,
        assumed: Assumed | None = None,
    ) -> Committed:
        committed = await self._decisions.run(
            self._commit_decisions, decisions, predictions, messages, t_commit, fence, assumed
        )
        for table in ("signals", "predictions"):
            self._make_next_day(table)
        return committed

    async def last_decided(self, slot: str) -> dict[str, int]:
        return dict(await self._reads.run(_fetch, self._queries["last_decided"], slot))

    async def last_seqs(self, slot: str) -> dict[str, int]:
        return dict(await self._reads.run(_fetch, self._queries["slot_seqs"], slot))

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

    async def add_model(self, model_id: str, created_at: int, report: str) -> None:
        await self._rows.run(_execute, self._queries["add_model"], model_id, created_at, report)

    async def models(self) -> list[ModelRow]:
        return [ModelRow(**dict(row)) for row in await self._reads.run(_fetch, self._queries["models"])]

    async def add_deployment(
        self, slot: str, model_id: str, effective_from: int, by: str, statuses: Mapping[str, str]
    ) -> Deployment:
        row = await self._rows.run(self._add_deployment, (slot, model_id, effective_from, by), statuses)
        return Deployment(id=row, slot=slot, model_id=model_id, effective_from=effective_from, by=by)

    async def deployments(self) -> list[Deployment]:
        return [Deployment(**dict(row)) for row in await self._reads.run(_fetch, self._queries["deployments"])]

    async def commit_trading(
        self, rows: Mapping[str, Sequence[Row]], messages: Sequence[Message] = (), fence: Fence | None = None
    ) -> list[Message]:
        parts = [(TRADING_TABLES[name], some) for name, some in rows.items() if some]
        return await self._decisions.run(self._commit_trading, parts, messages, fence)

    async def trading_rows(
        self,
        table: str,
        only: Mapping[str, str | int | None] | None = None,
        *,
        since: int | None = None,
        limit: int | None = None,
    ) -> list[Row]:
        query, values = trading_query(TRADING_TABLES[table], only or {}, since, limit, "${}")
        rows = [tuple(row) for row in await self._reads.run(_fetch, query, *values)]
        return rows if limit is None else rows[::-1]

    async def next_number(self, name: str) -> int:
        [row] = await self._decisions.run(_fetch, self._queries["next_number"], name)
        return int(row["value"])

    async def take_lease(self, name: str, owner: str, now: int, until: int) -> int | None:
        rows = await self._leases.run(_fetch, self._queries["take_lease"], name, owner, now, until)
        return int(rows[0]["fencing"]) if rows else None

    async def lease(self, name: str) -> Lease | None:
        rows = await self._leases.run(_fetch, self._queries["lease"], name)
        return Lease(**dict(rows[0])) if rows else None

    async def drop_lease(self, name: str, owner: str) -> None:
        await self._leases.run(_execute, self._queries["drop_lease"], name, owner)

    async def old_days(self, table: str, before: int) -> list[int]:
        partitions = await self._reads.run(_fetch, self._queries["partitions"])
        old = sorted(name for parent, name in partitions if parent == table and _day_of(name) * DAY_MS < before)
        # Those made ahead for a day that brought nothing are left alone.
        some = [name for name in old if await self._reads.run(_fetch, f"SELECT FROM {name} LIMIT 1")]
        return [_day_of(name) * DAY_MS for name in some]

    async def rows_between(self, table: str, start: int, end: int) -> list[Row]:
        return await self._reads.run(_rows_between, table, day_tables()[table], start, end)

    async def drop_day(self, table: str, day: int, archived: Callable[[int, int], Collection[Row]]) -> int:
        await self._upkeep.open()
        return await self._upkeep.run(self._drop_day, day_tables()[table], day, archived)

    async def note_archived(self, row: Row) -> None:
        await self._rows.run(_execute, self._queries["note_archived"], *row)

    async def note_dropped(self, table: str, day: int, dropped_at: int) -> None:
        await self._rows.run(_execute, self._queries["note_dropped"], table, day, dropped_at)

    async def prune_outbox(self, before: int, limit: int) -> int:
        return len(await self._rows.run(_fetch, self._queries["prune_outbox"], before, limit))

    async def row_counts(self) -> dict[str, int]:
        columns = await self._reads.run(_fetch, self._queries["columns"])
        tables = sorted({table for table, _, _ in columns} - BOOKKEEPING)
        counts = ", ".join(f'(SELECT count(*) FROM "{table}") AS "{table}"' for table in tables)
        [row] = await self._reads.run(_fetch_all, f"SELECT {counts}")
        return dict(row)

    async def select(self, query: str) -> list[Row]:
        return [tuple(row) for row in await self._reads.run(_fetch_all, query)]

    def is_moved(self) -> bool:
        return False  # the server knows where its files are, and a lost connection is made anew

    async def damage(self) -> list[str]:
        return [text for (text,) in await self.select(self._queries["damage"])]

    async def size(self) -> tuple[int, int | None]:
        [[size]] = await self.select("SELECT pg_database_size(current_database())")
        return int(size), None

    async def backup(self, path: Path) -> None:
        with NewArchive(path) as archive:
            await self._reads.run(self._copy_out, archive)

    async def restore(self, path: Path) -> None:
        archive = Archive(path)
        try:
            if any((await self.row_counts()).values()):
                raise NeedsPerson(f"{self.where} holds rows already: name a new database to restore into")
            for table, columns in archive.tables().items():
                for rows in archive.rows(table, columns):
                    await self._rows.run(self._copy_in, table, columns, rows)
            await self._rows.run(self._count_on, archive.tables())
        finally:
            archive.close()

    async def _connect(self, work: str, *, learn: bool = False, **settings: str) -> Connection:
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
            self._url,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=READ_TIMEOUT_S if work in ("reads", "upkeep") else COMMAND_TIMEOUT_S,
            server_settings=settings,
        )
        try:
            if learn:
                await self._learn(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _migrate(self, connection: Connection) -> None:
        version = connection.get_server_version().major
        if version < OLDEST_POSTGRES:
            raise NeedsPerson(f"{self.where} is PostgreSQL {version}: version {OLDEST_POSTGRES} or newer is needed")
        known = migrations(sql_folder("postgresql"))
        self.schema_was = await migrate_postgresql(connection, known, self.where, self._read_only)
        if self.schema_was < len(known):
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
        columns = table.columns
        if any(len(row) != len(columns) for row in rows):
            raise ValueError(f"{table.name} has {len(columns)} columns")
        if table.name in self._days:
            time = columns.index(self._days[table.name].column)
            await self._make_days(connection, table.name, {row[time] for row in rows})
        arriving = await self._arriving(connection, table)
        async with _transaction(connection):
            await self._copy(connection, arriving, columns, map(_without_nan, rows))
            answer = await connection.execute(self._insert_arrived(table, arriving))
            return int(answer.split()[-1])

    async def _complete_rows(self, connection: Connection, table: Table, rows: Sequence[Row]) -> int:
        filled = ", ".join(f'"{name}" = coalesce(stored."{name}", told."{name}")' for name in table.may_lack)
        same = " AND ".join(f'stored."{name}" = told."{name}"' for name in table.key)
        lacking = " OR ".join(f'(stored."{name}" IS NULL AND told."{name}" IS NOT NULL)' for name in table.may_lack)
        times = [row[table.columns.index(table.time)] for row in rows]
        arriving = await self._arriving(connection, table)
        async with _transaction(connection):
            await self._copy(connection, arriving, table.columns, map(_without_nan, rows))
            answer = await connection.execute(
                f'UPDATE "{table.name}" AS stored SET {filled} FROM pg_temp."{arriving}" AS told '
                # The bounds leave out the partitions of other days.
                f'WHERE {same} AND ({lacking}) AND stored."{table.time}" BETWEEN $1 AND $2',
                min(times),
                max(times),
            )
            return int(answer.split()[-1])

    async def _arriving(self, connection: Connection, table: Table) -> str:
        """The name of the empty table of this connection through which rows come by COPY."""
        name = f"arriving_{table.name}"
        await connection.execute(
            f'CREATE TEMPORARY TABLE IF NOT EXISTS "{name}" (LIKE "{table.name}") ON COMMIT DELETE ROWS'
        )
        return name

    def _insert_arrived(self, table: Table, arriving: str) -> str:
        """Of rows with one key the newest, or else the first, and those sorted by key.

        Sorted, because two processes that insert the same keys in different orders would wait for each other.
        """
        names, key = _names(table.columns), _names(table.key)
        order = f'{key}, "{table.newest_wins}" DESC, ctid' if table.newest_wins else f"{key}, ctid"
        conflict = "DO NOTHING"
        if table.newest_wins:
            others = ", ".join(f'"{name}" = excluded."{name}"' for name in table.columns if name not in table.key)
            newest = f'excluded."{table.newest_wins}" > "{table.name}"."{table.newest_wins}"'
            conflict = f"DO UPDATE SET {others} WHERE {newest}"
        return (
            f'INSERT INTO "{table.name}" ({names}) SELECT DISTINCT ON ({key}) {names} FROM pg_temp."{arriving}" '
            f"ORDER BY {order} ON CONFLICT ({key}) {conflict}"
        )

    async def _add_deployment(self, connection: Connection, row: Row, statuses: Mapping[str, str]) -> int:
        async with _transaction(connection):
            [added] = await connection.fetch(self._queries["add_deployment"], *row)
            for model_id, status in statuses.items():
                await connection.execute(self._queries["set_model_status"], status, model_id)
            return int(added["id"])

    # ---- trading ----

    async def _commit_trading(
        self,
        connection: Connection,
        parts: Sequence[tuple[TradingTable, Sequence[Row]]],
        messages: Sequence[Message],
        fence: Fence | None,
    ) -> list[Message]:
        async with _transaction(connection):
            await self._check(connection, fence)
            for table, rows in parts:
                kept = [_without_nan(row) for row in kept_rows(table, rows)]
                await self._insert(connection, table.name, table.columns, kept, on_trading_conflict(table))
            ids = await connection.fetchval(self._queries["outbox_ids"], len(messages)) if messages else []
            numbered = [replace(one, id=number) for one, number in zip(messages, ids, strict=True)]
            if numbered:
                await self._insert(connection, "outbox", _MESSAGE, list(map(astuple, numbered)), "")
        return numbered

    async def _check(self, connection: Connection, fence: Fence | None) -> None:
        """Raises Fenced where the lease is not the writer's any more. Until the transaction ends it stays so."""
        if fence is not None and not await connection.fetch(self._queries["fence"], *astuple(fence)):
            raise Fenced(f"{fence.name} is not ours any more under number {fence.fencing}")

    # ---- decisions ----

    async def _commit_decisions(
        self,
        connection: Connection,
        decisions: Sequence[Decision],
        predictions: Sequence[Prediction],
        messages: Sequence[Message],
        t_commit: int,
        fence: Fence | None,
        assumed: Assumed | None,
    ) -> Committed:
        await self._make_days(connection, "signals", {decision.close_time for decision in decisions})
        await self._make_days(connection, "predictions", {prediction.close_time for prediction in predictions})
        parts = decisions, predictions, messages
        try:
            return await self._commit(connection, *parts, t_commit, fence, assumed, insert_new=self._copy)
        except asyncpg.UniqueViolationError:
            # A prediction or message is named twice, or is there without its decision.
            await connection.execute("ROLLBACK")
            return await self._commit(connection, *parts, t_commit, fence, assumed, insert_new=self._insert)

    async def _commit(
        self,
        connection: Connection,
        decisions: Sequence[Decision],
        predictions: Sequence[Prediction],
        messages: Sequence[Message],
        t_commit: int,
        fence: Fence | None,
        assumed: Assumed | None,
        insert_new: Callable[[Connection, str, Sequence[str], list[Row]], Awaitable[int]],
    ) -> Committed:
        """One transaction. `insert_new` inserts what belongs to new decisions, and so can hardly be there already."""
        # Who decides for a slot does so alone: its numbers must have no gaps, and what is free must stay so.
        locks = [_lock(slot) for slot in sorted({decision.slot for decision in decisions})]
        async with _transaction(connection, *locks):
            await self._check(connection, fence)
            if assumed is not None:
                symbols = sorted({decision.symbol for decision in decisions})
                asked = decisions[0].slot, symbols, assumed.since, assumed.until
                rows = await _fetch(connection, self._queries["ok_between"], *asked)
                found = {(symbol, side): close_time for symbol, side, close_time in rows}
                if found != assumed.last_ok:
                    return Committed(decisions=[], messages=None, differs=found)
            seqs = await self._insert_decisions(connection, decisions, t_commit)
            lost = {minute_key(decision) for decision in decisions} - seqs.keys()
            for is_new, part in groupby(
                (one for one in predictions if minute_key(one) not in lost), lambda one: minute_key(one) in seqs
            ):
                rows = [_row(one) for one in part]
                await (insert_new if is_new else self._insert)(connection, "predictions", _PREDICTION, rows)
            sent = [one for one in messages if minute_key(one) not in lost]
            ids = await connection.fetchval(self._queries["outbox_ids"], len(sent)) if sent else []
            sent = [
                replace(one, id=number, payload=outbox_payload(one, seqs.get(minute_key(one))))
                for one, number in zip(sent, ids, strict=True)
            ]
            stored = 0
            for is_new, some in groupby(sent, lambda one: minute_key(one) in seqs):
                rows = list(map(astuple, some))
                stored += await (insert_new if is_new else self._insert)(connection, "outbox", _MESSAGE, rows)
        return Committed(
            decisions=[decision for decision in decisions if seqs.pop(minute_key(decision), None) is not None],
            messages=sent if stored == len(sent) else None,
        )

    async def _insert_decisions(
        self, connection: Connection, decisions: Sequence[Decision], t_commit: int
    ) -> dict[Key, int]:
        """Insert those whose key is free, each with the next seq of its slot and symbol; returns these by key."""
        pairs = sorted({(decision.slot, decision.symbol) for decision in decisions})
        last = {
            (slot, symbol): (seq, close_time)
            for slot, symbol, seq, close_time in await _fetch(
                connection, self._queries["last_seqs"], *_transposed(pairs, 2)
            )
        }
        # Only what is not newer than a symbol's newest can be there: the usual minute looks into no partition.
        old = [minute_key(one) for one in decisions if one.close_time <= last.get((one.slot, one.symbol), (0, -1))[1]]
        taken: set[Key] = set()
        if old:
            bounds = min(key[2] for key in old), max(key[2] for key in old)
            found = await _fetch(connection, self._queries["decided"], *_transposed(old, 3), *bounds)
            taken |= {(slot, symbol, close_time) for slot, symbol, close_time in found}
        seqs: dict[Key, int] = {}
        rows = []
        for decision in decisions:
            if minute_key(decision) in taken:
                continue
            taken.add(minute_key(decision))
            seq, newest = last.get((decision.slot, decision.symbol), (0, 0))
            last[decision.slot, decision.symbol] = seq + 1, max(newest, decision.close_time)
            seqs[minute_key(decision)] = seq + 1
            rows.append((*_row(decision), seq + 1, t_commit))
        await self._copy(connection, "signals", (*_DECISION, "seq", "t_commit"), rows)
        await self._insert(
            connection,
            "signal_seqs",
            ("slot", "symbol", "seq", "close_time"),
            [(*pair, *last[pair]) for pair in pairs],
            "ON CONFLICT (slot, symbol) DO UPDATE SET seq = excluded.seq, close_time = excluded.close_time",
        )
        return seqs

    async def _copy(self, connection: Connection, table: str, columns: Sequence[str], rows: Iterable[Row]) -> int:
        try:
            answer = await connection.copy_records_to_table(table, columns=columns, records=rows)
        except (TypeError, OverflowError) as error:  # what a COPY makes of a value that its column cannot hold
            raise ValueError(str(error)) from error
        return int(answer.split()[-1])

    async def _insert(
        self,
        connection: Connection,
        table: str,
        columns: Sequence[str],
        rows: list[Row],
        on_conflict: str = "ON CONFLICT DO NOTHING",
    ) -> int:
        """Insert rows in their order, in one statement: a list for each column. Takes three times as long as a COPY."""
        lists = ", ".join(f"${n}::{self._types[table][column]}[]" for n, column in enumerate(columns, 1))
        answer = await connection.execute(
            f'INSERT INTO "{table}" ({_names(columns)}) SELECT {_names(columns)} '
            f"FROM unnest({lists}) WITH ORDINALITY AS arriving ({_names(columns)}, nth) ORDER BY nth {on_conflict}",
            *_transposed(rows, len(columns)),
        )
        return int(answer.split()[-1])

    # ---- backups ----

    async def _copy_out(self, connection: Connection, archive: NewArchive) -> None:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            for table, columns in archive.tables().items():
                cursor = await connection.cursor(f'SELECT {_names(columns)} FROM "{table}"')
                while rows := await cursor.fetch(BATCH_ROWS):
                    await asyncio.to_thread(archive.add, table, columns, [tuple(row) for row in rows])

    async def _copy_in(self, connection: Connection, table: str, columns: Sequence[str], rows: list[Row]) -> None:
        if table in self._days:
            time = columns.index(self._days[table].column)
            await self._make_days(connection, table, {row[time] for row in rows})
        logical = [self._types[table][column] == "boolean" for column in columns]
        if any(logical):
            rows = [
                tuple(bool(value) if is_one else value for value, is_one in zip(row, logical, strict=True))
                for row in rows
            ]
        await self._copy(connection, table, columns, rows)

    async def _count_on(self, connection: Connection, tables: dict[str, list[str]]) -> None:
        """After a restore: seqs and ids go on behind the last ones that there are."""
        await connection.execute(self._queries["count_seqs"], timeout=WHOLE_TIMEOUT_S)
        for table, columns in tables.items():
            if "id" in columns:
                await connection.execute(
                    f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table} HAVING max(id) > 0"
                )

    # ---- partitions ----

    async def _make_days(self, connection: Connection, table: str, times: Iterable[int]) -> None:
        """Make the partitions for rows of these times that are not there yet."""
        days = self._days[table]
        try:
            wanted = {operator.index(time) // DAY_MS for time in times}
        except TypeError as error:
            raise ValueError(str(error)) from error
        if not wanted <= days.known:
            await self._make(connection, table, sorted(wanted - days.known))
        days.newest = max(wanted, default=days.newest)

    async def _make(self, connection: Connection, table: str, days: Sequence[int]) -> None:
        if not 0 <= days[0] <= days[-1] < LAST_DAY:
            raise ValueError("a time before 1970 or after 2099")
        async with _transaction(connection):
            # One at a time. Attaching, unlike CREATE TABLE … PARTITION OF, waits for no reader or writer.
            await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('perpline partitions', 0))")
            for day in days:
                name = _partition_of(table, day)
                if await connection.fetchval("SELECT to_regclass($1) IS NULL", name):
                    await connection.execute(
                        f"CREATE TABLE {name} (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS); "
                        f"ALTER TABLE {table} ATTACH PARTITION {name} "
                        f"FOR VALUES FROM ({day * DAY_MS}) TO ({(day + 1) * DAY_MS})"
                    )
        self._days[table].known.update(days)

    async def _drop_day(
        self, connection: Connection, table: DayTable, day: int, archived: Callable[[int, int], Collection[Row]]
    ) -> int:
        name = _partition_of(table.name, day // DAY_MS)
        if await connection.fetchval("SELECT to_regclass($1) IS NULL", name):
            return 0
        stay = 0
        # SHARE: from here on nobody writes into this old day; everybody else reads and writes as ever.
        async with _transaction(connection, f"LOCK TABLE {name} IN SHARE MODE"):
            for start in range(day, day + DAY_MS, HOUR_MS):
                rows = await _rows_between(connection, name, table, start, start + HOUR_MS)
                if rows:
                    safe = await asyncio.to_thread(archived, start, start + HOUR_MS)
                    stay += sum(row not in safe for row in rows)
            if not stay:
                await self._drop_partition(connection, name)
        if not stay and table.name in self._days:
            self._days[table.name].known.discard(day // DAY_MS)
        return stay

    async def _drop_partition(self, connection: Connection, name: str) -> None:
        """It locks the whole table for an instant, and while it waits for that, all others wait behind it."""
        await connection.execute(f"SET LOCAL lock_timeout = {DROP_LOCK_MS}")
        for tries_left in reversed(range(DROP_TRIES)):
            try:
                await connection.execute(f"SAVEPOINT before; DROP TABLE {name}")
                return
            except asyncpg.LockNotAvailableError:
                if not tries_left:
                    raise
                await connection.execute("ROLLBACK TO SAVEPOINT before")
                await asyncio.sleep(DROP_RETRY_S)

    def _make_next_day(self, table: str) -> None:
        """Make the partition of the day after the rows that were just written, beside the work."""
        if table in self._days:
            days = self._days[table]
            day = days.newest + 1
            if 0 < day < LAST_DAY and day not in days.known | days.being_made:
                days.being_made.add(day)
                task = asyncio.create_task(self._make_ahead(table, day), name=f"partition of {table}")
                self._making_days.add(task)
                task.add_done_callback(self._making_days.discard)

    async def _make_ahead(self, table: str, day: int) -> None:
        try:
            await self._rows.run(self._make, table, [day])
        except Unavailable:
            return  # it is made when it is needed, at the latest
        finally:
            self._days[table].being_made.discard(day)


_CANDLE = ", ".join(f'"{column}"' for column in TABLES["candles_1m"].columns)
_DECISION = Decision.__struct_fields__
_PREDICTION = Prediction.__struct_fields__
_MESSAGE = Message.__struct_fields__


class _Days:
    """The partitions of a table."""

    def __init__(self, column: str) -> None:
        self.column = column
        """Whose values decide which partition a row is in."""
        self.known: set[int] = set()
        """Days since 1970 that have one."""
        self.being_made: set[int] = set()
        self.newest = -1
        """The last day of the rows that were written last."""


def _partition_of(table: str, day: int) -> str:
    return f"{table}_{datetime.fromtimestamp(day * 86_400, UTC):%Y%m%d}"


def _day_of(partition: str) -> int:
    return int(datetime.strptime(partition[-8:], "%Y%m%d").replace(tzinfo=UTC).timestamp()) // 86_400


class _Lane:
    """A connection, made when it is needed, that carries out what it is given in order.

    With `stops` the server is told when a caller is cancelled, for it does not notice before it has the answer.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]], where: str, *, stops: bool = False) -> None:
        self._connect = connect
        self._where = where
        self._stops = stops
        self._goodbyes: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._is_open = False
        self._connection: Connection | None = None

    async def open(self, prepare: Callable[[Connection], Awaitable[None]] | None = None) -> None:
        self._is_open = True
        await self.run(prepare or _nothing)

    async def close(self) -> None:
        self._is_open = False
        if self._goodbyes:
            await asyncio.wait(self._goodbyes)
        async with self._turn:
            if self._connection is not None:
                try:
                    await self._connection.close(timeout=1)
                except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    self._connection.terminate()  # it had gone already
                self._connection = None

    async def run(
        self,
        work: Callable[Concatenate[Connection, Params], Awaitable[Result]],
        *args: Params.args,
        **kwargs: Params.kwargs,
    ) -> Result:
        """What the work returns, done with the connection. Errors are perpline's."""
        async with self._turn:
            if not self._is_open:
                raise RuntimeError(f"{self._where} is not open for this")
            try:
                if self._connection is None or self._connection.is_closed():
                    self._connection = await self._connect()
                return await work(self._connection, *args, **kwargs)
            except BaseException as error:
                # Broad, for whatever ended it, a cancellation too: nobody knows what the connection is in the midst of.
                connection, self._connection = self._connection, None
                if connection is not None and self._stops and isinstance(error, asyncio.CancelledError):
                    self._goodbyes.add(goodbye := asyncio.create_task(_stop(connection), name="stop a query"))
                    goodbye.add_done_callback(self._goodbyes.discard)
                elif connection is not None:
                    connection.terminate()
                meant = _meaning(error, self._where)
                if meant is None:
                    raise
                raise meant from error


async def _stop(connection: Connection) -> None:
    """End what was cancelled on it: asyncpg's close waits until the server has been told, terminate does not."""
    try:
        await connection.close(timeout=CONNECT_TIMEOUT_S)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        connection.terminate()


_AWAY = ("08", "25006", "25P03", "40", "53", "55P03", "57", "58", "0A000")
"""Lost connections, read-only standbys, deadlocks, resources, locks, shutdowns, disks; and plans older than a change of
the schema (0A000), which a new connection makes anew. PostgreSQL, appendix A."""
_FOR_A_PERSON = ("28", "3D000", "3F000", "42501", "42P01", "42703", "XX001", "XX002")
"""Passwords and rights, a database or schema or table or column that is not there, damage."""
_REFUSED = ("21", "22", "23")


def _meaning(error: BaseException, where: str) -> Exception | None:
    """The error as perpline names it, None for one that is ours or means nothing to a caller."""
    text = f"{where}: {error}" if str(error) else f"{where} did not answer in time"
    text = " ".join(text.split())
    if isinstance(error, asyncpg.PostgresError):
        state = str(error.sqlstate or "")
        if state == "23514" and error.constraint_name is None:
            return Unavailable(f"{text} (made anew with the next try)")  # somebody has dropped a partition
        if state.startswith(_AWAY):
            return Unavailable(text)
        if state.startswith(_FOR_A_PERSON):
            return NeedsPerson(text)
        return ValueError(f"{where} refused a row: {error}") if state.startswith(_REFUSED) else None
    if isinstance(error, asyncpg.exceptions.ClientConfigurationError):
        return NeedsPerson(f"{where}: an option of this address means nothing, or names a file that cannot be used")
    if isinstance(error, ValueError):
        return ValueError(f"{where} refused a row: {error}")
    if isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError):
        # Internal: what asyncpg makes of a server that says goodbye between two statements.
        return Unavailable(text)
    return None


def _checked(url: str) -> str:
    """The address as it may be shown. Raises NeedsPerson where it is none."""
    form = "write postgresql://user:password@host:5432/database"  # never the url: it may hold a password
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError:
        raise NeedsPerson(f"this address of a database cannot be read: {form}") from None
    if parts.scheme != "postgresql" or "://" not in url or not parts.path.strip("/"):
        raise NeedsPerson(f"this is no address of a PostgreSQL database: {form}")
    return masked_url(url).partition("?")[0]


@asynccontextmanager
async def _transaction(connection: Connection, *first: str) -> AsyncIterator[None]:
    """One transaction, begun with these statements. It is taken back by giving up the connection, which its lane does
    after any error it sees."""
    await connection.execute("; ".join(["BEGIN", *first]))
    yield
    await connection.execute("COMMIT")


def _lock(slot: str) -> str:
    number = int.from_bytes(blake2b(f"perpline {slot}".encode(), digest_size=8).digest(), signed=True)
    return f"SELECT pg_advisory_xact_lock({number})"


async def _fetch(connection: Connection, query: str, *values: Any) -> list[Any]:
    rows: list[Any] = await connection.fetch(query, *values)
    return rows


async def _fetch_all(connection: Connection, query: str) -> list[Any]:
    rows: list[Any] = await connection.fetch(query, timeout=WHOLE_TIMEOUT_S)
    return rows


async def _series(
    connection: Connection, table: Table, columns: Sequence[str], only: Mapping[str, str], start: int, end: int
) -> Columns:
    where = " AND ".join(f'"{column}" = ${n} COLLATE "C"' for n, column in enumerate(only, 3))
    query = (
        f'SELECT {_names(columns)} FROM "{table.name}" WHERE "{table.time}" >= $1 AND "{table.time}" < $2 AND {where} '
        f"ORDER BY {_names((table.time, *table.key))}"
    )
    parts = []
    async with connection.transaction(readonly=True):
        cursor = await connection.cursor(query, start, end, *only.values(), timeout=WHOLE_TIMEOUT_S)
        while rows := await cursor.fetch(BATCH_ROWS):
            parts.append([column_array(column, [row[n] for row in rows]) for n, column in enumerate(columns)])
    return joined(parts, columns)


async def _rows_between(connection: Connection, source: str, table: DayTable, start: int, end: int) -> list[Row]:
    """From the table, or one partition of it."""
    rows = await connection.fetch(
        f'SELECT {_names(table.columns)} FROM {source} WHERE "{table.time}" >= $1 AND "{table.time}" < $2 '
        f"ORDER BY {_names(table.key)}",
        start,
        end,
        timeout=WHOLE_TIMEOUT_S,
    )
    return [tuple(row) for row in rows]


async def _execute(connection: Connection, query: str, *values: Any) -> None:
    await connection.execute(query, *values)


async def _nothing(connection: Connection) -> None:
    return None


def _names(columns: Iterable[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)


def _transposed(rows: Sequence[Row], columns: int) -> list[tuple[Any, ...]]:
    return list(zip(*rows, strict=True)) if rows else [()] * columns


def _row(part: Decision | Prediction) -> Row:
    return _without_nan(astuple(part))


def _without_nan(row: Row) -> Row:
    """To PostgreSQL NaN is a number like any other; SQLite, whose rows are to mean the same, has no such number."""
    return tuple([None if value != value else value for value in row])
