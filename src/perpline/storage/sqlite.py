"""The store in one SQLite file.

Through apsw only, in every process: it brings its own SQLite. Those before 3.51.3 can corrupt a WAL database that has
two connections, those before 3.53 cannot make a column nullable (migration 2), and two copies of SQLite in one process
break each other's file locks.

WAL with synchronous=NORMAL: what was committed survives the death of the process at any instant. A loss of power may
take the last commits with it, and never leaves half of one.

Two threads, each with its own connection: one writes, one reads, so that neither a long read nor a bulk flush holds up
a decision. Rows in bulk go in short transactions, and at most one of those is ever ahead of a decision. A third thread
checkpoints, for that waits for the disk.
"""

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

import apsw
import msgspec
from msgspec.structs import astuple, replace

from perpline.common.errors import Fenced, NeedsPerson, Unavailable
from perpline.domain.candle import Candle
from perpline.domain.signal import Decision, Message, Prediction
from perpline.storage.archive import Archive, columns_by_table, finish, unfinished
from perpline.storage.day_tables import DAY_MS, HOUR_MS, DayTable, day_tables
from perpline.storage.migrate import migrate, migrations
from perpline.storage.sql import named_queries
from perpline.storage.store import (
    LOGICAL,
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

OLDEST_SQLITE = (3, 53, 0)
BUSY_TIMEOUT_MS = 5000
"""How long a write waits for another process that is writing."""
CHECKPOINT_PAGES = 4000
TRANSACTION_ROWS = 64
"""Rows of a bulk batch that are written in one transaction: about 1.5 ms, the most a decision waits for. More were not
faster (37 to 46 thousand rows a second with 64 to 512 and 600 symbols)."""
STATEMENT_ROWS = 64
"""Rows in one INSERT."""
SERIES_ROWS = 500
"""Rows of a series that are turned into arrays at a time; 5,000 took a fifth longer, being out of the cache by then."""

DELETE_PAUSE_S = 0.005
"""Between two transactions that delete archived rows; each takes about 2 ms."""

_WAL_RETRY_S = 0.01

Params = ParamSpec("Params")
Result = TypeVar("Result")


class SqliteStore:
    """A `Store` in the file `path`, made on first use. Several processes may have it open.

    With `read_only` nothing is made, changed or migrated, for commands that only look.

    A batch of `add_rows` with more than 64 rows is several transactions. If such a call fails, a part of it may be
    stored; writing all of it again is harmless.
    """

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        self.path = Path(path)
        self._read_only = read_only
        self._write = _Lane(self.path, "writer")
        self._read = _Lane(self.path, "reader", stops=True)
        self._checkpoint = _Lane(self.path, "checkpointer")
        self._queries = named_queries("sqlite")
        self._bulk = asyncio.Lock()
        self.schema_was = 0
        self._file: tuple[int, int] | None = None
        """Device and inode of what was opened."""
        self._wal_pages = 0
        self._checkpointing: asyncio.Task[None] | None = None

    @classmethod
    def from_url(cls, url: str, *, read_only: bool = False) -> "SqliteStore":
        """The store that `sqlite:///relative.db` or `sqlite:////absolute.db` names.

        Raises NeedsPerson for anything else. An in-memory database is refused: its connections could not share it.
        """
        form = "write sqlite:///relative.db or sqlite:////absolute/path.db"  # never the url: it may hold a password
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise NeedsPerson(f"this address of a database cannot be read: {form}") from error
        path = unquote(parts.path.removeprefix("/"))
        if parts.scheme != "sqlite" or parts.netloc or not path:
            raise NeedsPerson(f"this is no address of a SQLite database: {form}")
        if path == ":memory:" or parts.query or parts.fragment:
            raise NeedsPerson(f"a SQLite address names a file and takes no options: {form}")
        return cls(path, read_only=read_only)

    async def open(self) -> None:
        if _version(apsw.sqlite_lib_version()) < OLDEST_SQLITE:
            raise NeedsPerson(
                f"apsw brings SQLite {apsw.sqlite_lib_version()}, which is too old for two connections and for our "
                "migrations: install apsw 3.54 or newer"
            )
        try:
            if self._read_only:
                await self._read.open(self._connect_to_read)
            else:
                await self._write.open(self._connect_to_write)
                await self._read.open(self._connect_to_read)
                await self._checkpoint.open(self._connect_to_checkpoint)
            self._file = _identity(self.path)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        if self._checkpointing is not None:
            await self._checkpointing
        for lane in (self._checkpoint, self._read, self._write):
            await lane.close()

    async def add_rows(self, table: str, rows: Sequence[Row]) -> int:
        if not rows:
            return 0
        async with self._bulk:
            stored = 0
            for start in range(0, len(rows), TRANSACTION_ROWS):
                stored += await self._write.run(_add_rows, TABLES[table], rows[start : start + TRANSACTION_ROWS])
                if self._wal_pages >= CHECKPOINT_PAGES:
                    # Bulk waits: a log that is written faster than it is moved would grow without end.
                    await self._move_log()
            return stored

    async def complete_rows(self, table: str, rows: Sequence[Row]) -> int:
        async with self._bulk:
            completed = 0
            for start in range(0, len(rows), TRANSACTION_ROWS):
                part = rows[start : start + TRANSACTION_ROWS]
                completed += await self._write.run(_complete_rows, TABLES[table], part)
                if self._wal_pages >= CHECKPOINT_PAGES:
                    await self._move_log()
            return completed

    async def candles(self, interval: str, symbol: str, start: int, end: int) -> list[Candle]:
        where = "symbol = ? AND open_time >= ? AND open_time < ? ORDER BY open_time"
        return await self._read.run(_candles, interval, where, (symbol, start, end))

    async def last_candles(self, interval: str, symbols: Iterable[str], count: int) -> dict[str, list[Candle]]:
        where = "symbol = ? ORDER BY open_time DESC LIMIT ?"
        newest_first = {symbol: await self._read.run(_candles, interval, where, (symbol, count)) for symbol in symbols}
        return {symbol: candles[::-1] for symbol, candles in newest_first.items()}

    async def series(
        self,
        table: str,
        symbol: str,
        start: int,
        end: int,
        columns: Sequence[str],
        only: Mapping[str, str] | None = None,
    ) -> Columns:
        return await self._read.run(_series, TABLES[table], columns, {"symbol": symbol, **(only or {})}, start, end)

    async def commit_decisions(
        self,
        decisions: Sequence[Decision],
        predictions: Sequence[Prediction],
        messages: Sequence[Message],
        t_commit: int,
        fence: Fence | None = None,
        assumed: Assumed | None = None,
    ) -> Committed:
        committed = await self._write.run(
            _commit_decisions, self._queries, decisions, predictions, messages, t_commit, fence, assumed
        )
        self._move_log_if_long()
        return committed

    async def last_decided(self, slot: str) -> dict[str, int]:
        return dict(await self._read.run(_fetch, self._queries["last_decided"], (slot,)))

    async def last_seqs(self, slot: str) -> dict[str, int]:
        return dict(await self._read.run(_fetch, self._queries["slot_seqs"], (slot,)))

    async def last_signals(self, slot: str, since: int) -> dict[tuple[str, int], int]:
        rows = await self._read.run(_fetch, self._queries["last_signals"], (slot, since))
        return {(symbol, side): close_time for symbol, side, close_time in rows}

    async def decision_rows(self, slot: str, start: int, end: int) -> list[tuple[str, int, str]]:
        return await self._read.run(_fetch, self._queries["decision_rows"], (slot, start, end))

    async def pending_messages(self, limit: int) -> list[Message]:
        # Read by the writer: it is part of a decision's way out, and must not wait behind a long read.
        lane = self._read if self._read_only else self._write
        [[found]] = await lane.run(_fetch, self._queries["pending_messages"], (limit,))
        return msgspec.json.decode(found, type=list[Message])

    async def mark_published(self, ids: Sequence[int], published_at: int) -> None:
        await self._write.run(_fetch, self._queries["mark_published"], (published_at, json.dumps(list(ids))))

    async def open_gap(
        self, symbol: str, series: str, from_time: int, to_time: int, cause: str, detected_at: int
    ) -> int:
        return await self._write.run(_open_gap, self._queries, (symbol, series, from_time, to_time), cause, detected_at)

    async def close_gap(self, gap_id: int, repaired_at: int, repaired_by: str) -> None:
        await self._write.run(_fetch, self._queries["close_gap"], (gap_id, repaired_at, repaired_by))

    async def gaps(self, only_open: bool = False) -> list[Gap]:
        rows = await self._read.run(_fetch, self._queries["gaps"], (only_open,))
        return [Gap(**dict(zip(Gap.__struct_fields__, row, strict=True))) for row in rows]

    async def add_model(self, model_id: str, created_at: int, report: str) -> None:
        await self._write.run(_fetch, self._queries["add_model"], (model_id, created_at, report))

    async def models(self) -> list[ModelRow]:
        rows = await self._read.run(_fetch, self._queries["models"], ())
        return [ModelRow(**dict(zip(ModelRow.__struct_fields__, row, strict=True))) for row in rows]

    async def add_deployment(
        self, slot: str, model_id: str, effective_from: int, by: str, statuses: Mapping[str, str]
    ) -> Deployment:
        deployment_id = await self._write.run(
            _add_deployment, self._queries, (slot, model_id, effective_from, by), statuses
        )
        return Deployment(id=deployment_id, slot=slot, model_id=model_id, effective_from=effective_from, by=by)

    async def deployments(self) -> list[Deployment]:
        rows = await self._read.run(_fetch, self._queries["deployments"], ())
        return [Deployment(**dict(zip(Deployment.__struct_fields__, row, strict=True))) for row in rows]

    async def commit_trading(
        self, rows: Mapping[str, Sequence[Row]], messages: Sequence[Message] = (), fence: Fence | None = None
    ) -> list[Message]:
        parts = [(TRADING_TABLES[name], some) for name, some in rows.items() if some]
        stored = await self._write.run(_commit_trading, self._queries, parts, messages, fence)
        self._move_log_if_long()
        return stored

    async def trading_rows(
        self,
        table: str,
        only: Mapping[str, str | int | None] | None = None,
        *,
        since: int | None = None,
        limit: int | None = None,
    ) -> list[Row]:
        query, values = trading_query(TRADING_TABLES[table], only or {}, since, limit, "?{}")
        rows = await self._read.run(_fetch, query, tuple(values))
        logical = [place for place, column in enumerate(TRADING_TABLES[table].columns) if column in LOGICAL]
        if logical:
            rows = [
                tuple(bool(value) if place in logical else value for place, value in enumerate(row)) for row in rows
            ]
        return rows if limit is None else rows[::-1]

    async def next_number(self, name: str) -> int:
        [[number]] = await self._write.run(_fetch, self._queries["next_number"], (name,))
        return int(number)

    async def take_lease(self, name: str, owner: str, now: int, until: int) -> int | None:
        rows = await self._write.run(_fetch, self._queries["take_lease"], (name, owner, now, until))
        return int(rows[0][0]) if rows else None

    async def lease(self, name: str) -> Lease | None:
        rows = await self._write.run(_fetch, self._queries["lease"], (name,))
        return Lease(owner=rows[0][0], until=rows[0][1], fencing=rows[0][2]) if rows else None

    async def drop_lease(self, name: str, owner: str) -> None:
        await self._write.run(_fetch, self._queries["drop_lease"], (name, owner))

    async def old_days(self, table: str, before: int) -> list[int]:
        return await self._read.run(_old_days, day_tables()[table], before)

    async def rows_between(self, table: str, start: int, end: int) -> list[Row]:
        return await self._read.run(_rows_between, day_tables()[table], start, end)

    async def drop_day(self, table: str, day: int, archived: Callable[[int, int], Collection[Row]]) -> int:
        stay = 0
        for start in range(day, day + DAY_MS, HOUR_MS):
            rows = await self.rows_between(table, start, start + HOUR_MS)
            if not rows:
                continue
            safe = await asyncio.to_thread(archived, start, start + HOUR_MS)
            drop = [row for row in rows if row in safe]
            stay += len(rows) - len(drop)
            for first in range(0, len(drop), TRANSACTION_ROWS):
                part = drop[first : first + TRANSACTION_ROWS]
                async with self._bulk:
                    stay += len(part) - await self._write.run(_delete_rows, day_tables()[table], part)
                    if self._wal_pages >= CHECKPOINT_PAGES:
                        await self._move_log()
                # So that others find the file free most of the time: SQLite's waiting is no queue, and who waits looks
                # again in ever longer intervals.
                await asyncio.sleep(DELETE_PAUSE_S)
        return stay

    async def note_archived(self, row: Row) -> None:
        await self._write.run(_fetch, self._queries["note_archived"], row)

    async def note_dropped(self, table: str, day: int, dropped_at: int) -> None:
        await self._write.run(_fetch, self._queries["note_dropped"], (table, day, dropped_at))

    async def prune_outbox(self, before: int, limit: int) -> int:
        rows = await self._write.run(_fetch, self._queries["prune_outbox"], (before, limit))
        return len(rows)

    async def row_counts(self) -> dict[str, int]:
        return await self._read.run(_row_counts, self._queries)

    async def select(self, query: str) -> list[Row]:
        return await self._read.run(_fetch, query, ())

    def is_moved(self) -> bool:
        return self._file is not None and _identity(self.path) != self._file

    async def damage(self) -> list[str]:
        found = await self._read.run(_fetch, "PRAGMA integrity_check", ())
        return [text for (text,) in found if text != "ok"]

    async def size(self) -> tuple[int, int | None]:
        [[count]] = await self._read.run(_fetch, "PRAGMA page_count", ())
        [[size]] = await self._read.run(_fetch, "PRAGMA page_size", ())
        try:
            free = shutil.disk_usage(self.path.absolute().parent).free
        except OSError:
            free = None  # the folder was moved, or its disk is away; what is open can still be read
        return count * size, free

    async def backup(self, path: Path) -> None:
        await self._read.run(_backup, path)

    async def restore(self, path: Path) -> None:
        Archive(path).close()  # which says whether it can be read
        if any((await self.row_counts()).values()):
            raise NeedsPerson(f"{self.path} holds rows already: name a new database to restore into")
        await self._write.run(_restore, path)

    def _move_log_if_long(self) -> None:
        if self._wal_pages >= CHECKPOINT_PAGES and (self._checkpointing is None or self._checkpointing.done()):
            self._checkpointing = asyncio.create_task(self._move_log(), name="sqlite checkpoint")

    async def _move_log(self) -> None:
        """Checkpoint: the log into the database. PASSIVE, so that neither a decision nor a reader ever waits for it."""
        self._wal_pages = 0
        try:
            await self._checkpoint.run(_fetch, "PRAGMA wal_checkpoint(PASSIVE)", ())
        except (Unavailable, NeedsPerson):
            # Nothing is lost: the log only grows until the next commit tries again, and a full disk or a file that was
            # moved is heard there.
            return

    def _connect_to_write(self) -> apsw.Connection:
        connection = self._connect(apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
        if wal_mode(connection, BUSY_TIMEOUT_MS / 1000) != "wal":
            raise NeedsPerson(f"{self.path}: this file system cannot hold a WAL database (a network drive?)")
        connection.execute("PRAGMA synchronous=NORMAL")
        # 8 MB: with 2, 8, 16 or 64 a minute of 600 symbols took the same time, for pages are read by mmap, and a larger
        # one only fills up by the hour (4.5 MB with 30 symbols) and looks like a leak.
        connection.execute("PRAGMA cache_size=-8192")
        self.schema_was = migrate(connection, migrations(), str(self.path))
        connection.set_wal_hook(self._note_wal_pages)  # instead of SQLite's own checkpoint within a commit
        return connection

    def _connect_to_read(self) -> apsw.Connection:
        connection = self._connect(apsw.SQLITE_OPEN_READONLY)
        if self._read_only:
            self.schema_was = migrate(connection, migrations(), str(self.path), read_only=True)
        return connection

    def _connect_to_checkpoint(self) -> apsw.Connection:
        return self._connect(apsw.SQLITE_OPEN_READWRITE)

    def _connect(self, flags: int) -> apsw.Connection:
        connection = apsw.Connection(str(self.path), flags=flags)
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        connection.execute(f"PRAGMA mmap_size={256 << 20}")
        return connection

    def _note_wal_pages(self, _connection: apsw.Connection, _database: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK


class _Lane:
    """A thread with one connection, which carries out what it is given in order.

    With `stops` what a caller asked is interrupted when the caller is cancelled, so that others wait for nothing that
    nobody wants; without, it is finished.
    """

    def __init__(self, path: Path, name: str, *, stops: bool = False) -> None:
        self._path = path
        self._name = name
        self._stops = stops
        self._turn = threading.Lock()
        """Of who looks at, or changes, which job runs."""
        self._running: _Job | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._connection: apsw.Connection | None = None

    async def open(self, connect: Callable[[], apsw.Connection]) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"sqlite {self._name}")
        try:
            self._connection = await self._call(connect)
        except apsw.CantOpenError as error:
            raise NeedsPerson(
                f"cannot open {self._path}: {error}; is the folder there, and may this user read and write it?"
            ) from error
        except apsw.ReadOnlyError as error:
            raise NeedsPerson(f"{self._path} cannot be written: {error}") from error

    async def close(self) -> None:
        if self._connection is not None:
            await self._call(self._connection.close)
            self._connection = None
        if self._executor is not None:
            self._executor.shutdown(wait=False)
            self._executor = None

    async def run(
        self,
        function: Callable[Concatenate[apsw.Connection, Params], Result],
        *args: Params.args,
        **kwargs: Params.kwargs,
    ) -> Result:
        """What the function returns, called in the thread with the connection. Errors are perpline's."""
        if self._connection is None:
            raise RuntimeError(f"{self._path} is not open for this")
        job, connection = _Job(), self._connection
        try:
            return await self._call(self._do, job, lambda: function(connection, *args, **kwargs))
        except asyncio.CancelledError:
            if self._stops:
                self._stop(job)
            raise
        except apsw.CantOpenError as error:
            # It was open before: the process has run out of files, or the folder has gone for a while.
            raise Unavailable(f"{self._path}: {error}") from error
        except apsw.ReadOnlyError as error:
            if getattr(error, "extendedresult", 0) == apsw.SQLITE_READONLY_DBMOVED:
                raise NeedsPerson(f"{self._path} was moved or deleted while it was in use") from error
            # It could be written before: a kernel makes a disk that fails read-only, and a person may mend that.
            raise Unavailable(f"{self._path}: the disk is read-only ({error})") from error

    def _do(self, job: "_Job", work: Callable[[], Result]) -> Result:
        """In the thread."""
        with self._turn:
            if job.is_stopped:
                raise Unavailable("nobody waits for this any more")
            self._running = job
        try:
            return work()
        finally:
            with self._turn:
                self._running = None

    def _stop(self, job: "_Job") -> None:
        with self._turn:  # so that what is interrupted is this and not the next one's
            job.is_stopped = True
            if self._running is job and self._connection is not None:
                self._connection.interrupt()

    async def _call(self, function: Callable[Params, Result], *args: Params.args, **kwargs: Params.kwargs) -> Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, lambda: function(*args, **kwargs))
        except apsw.FullError as error:
            raise Unavailable(f"{self._path}: the disk is full ({error})") from error
        except (apsw.BusyError, apsw.LockedError, apsw.IOError, apsw.ProtocolError) as error:
            raise Unavailable(f"{self._path}: {error}") from error
        except apsw.NotADBError as error:
            raise NeedsPerson(f"{self._path} is not a SQLite database: name another file") from error
        except apsw.CorruptError as error:
            raise NeedsPerson(f"{self._path} is damaged ({error}): restore a copy, or name another file") from error
        except (apsw.PermissionsError, apsw.AuthError) as error:
            raise NeedsPerson(f"{self._path} cannot be written: {error}") from error
        except (apsw.ConstraintError, apsw.MismatchError, apsw.BindingsError) as error:
            raise ValueError(f"{self._path} refused a row: {error}") from error


class _Job:
    """Something that is carried out for a caller."""

    is_stopped = False


def wal_mode(connection: apsw.Connection, timeout_s: float) -> str:
    """Set the journal mode WAL; returns the mode that the file now has.

    Asks again while another connection does the same to a new file, for then SQLite refuses at once instead of waiting
    for its busy timeout. Blocks. Raises apsw.BusyError after about `timeout_s`.
    """
    for _ in range(round(timeout_s / _WAL_RETRY_S)):
        try:
            return str(connection.execute("PRAGMA journal_mode=WAL").get)
        except apsw.BusyError:
            time.sleep(_WAL_RETRY_S)
    return str(connection.execute("PRAGMA journal_mode=WAL").get)


@contextmanager
def _transaction(connection: apsw.Connection) -> Iterator[None]:
    """One transaction, which takes its turn before it reads, so that what it read still holds when it writes."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _add_rows(connection: apsw.Connection, table: Table, rows: Sequence[Row]) -> int:
    with _transaction(connection):
        before = connection.total_changes()
        _insert(connection, table.name, table.columns, rows, _on_conflict(table))
        return connection.total_changes() - before


def _complete_rows(connection: apsw.Connection, table: Table, rows: Sequence[Row]) -> int:
    used = (*table.key, *table.may_lack)
    places = [table.columns.index(column) for column in used]
    numbers = {column: f"?{number}" for number, column in enumerate(used, 1)}
    filled = ", ".join(f'"{column}" = coalesce("{column}", {numbers[column]})' for column in table.may_lack)
    key = " AND ".join(f'"{column}" = {numbers[column]}' for column in table.key)
    lacking = " OR ".join(f'("{column}" IS NULL AND {numbers[column]} IS NOT NULL)' for column in table.may_lack)
    with _transaction(connection):
        before = connection.total_changes()
        update = f'UPDATE "{table.name}" SET {filled} WHERE {key} AND ({lacking})'
        connection.executemany(update, ([row[place] for place in places] for row in rows))
        return connection.total_changes() - before


def _on_conflict(table: Table) -> str:
    key = ", ".join(f'"{column}"' for column in table.key)
    if not table.newest_wins:
        return f"ON CONFLICT ({key}) DO NOTHING"
    others = ", ".join(f'"{column}" = excluded."{column}"' for column in table.columns if column not in table.key)
    newest = f'excluded."{table.newest_wins}" > "{table.name}"."{table.newest_wins}"'
    return f"ON CONFLICT ({key}) DO UPDATE SET {others} WHERE {newest}"


def _insert(
    connection: apsw.Connection, table: str, columns: Sequence[str], rows: Sequence[Row], on_conflict: str
) -> None:
    """Insert rows, many to a statement: see queries.sql for why not one by one."""
    names = ", ".join(f'"{column}"' for column in columns)
    marks = f"({', '.join('?' * len(columns))})"
    for start in range(0, len(rows), STATEMENT_ROWS):
        block = rows[start : start + STATEMENT_ROWS]
        values = ", ".join([marks] * len(block))
        connection.execute(
            f'INSERT INTO "{table}" ({names}) VALUES {values} {on_conflict}', [value for row in block for value in row]
        )


def _commit_decisions(
    connection: apsw.Connection,
    queries: dict[str, str],
    decisions: Sequence[Decision],
    predictions: Sequence[Prediction],
    messages: Sequence[Message],
    t_commit: int,
    fence: Fence | None,
    assumed: Assumed | None,
) -> Committed:
    with _transaction(connection):
        _check(connection, queries, fence)
        if assumed is not None:
            symbols = json.dumps([decision.symbol for decision in decisions])
            asked = (decisions[0].slot, symbols, assumed.since, assumed.until)
            found = {(symbol, side): t for symbol, side, t in connection.execute(queries["ok_between"], asked)}
            if found != assumed.last_ok:
                return Committed(decisions=[], messages=None, differs=found)
        new = _insert_decisions(connection, queries, decisions, t_commit)
        seq = {minute_key(decision): number for decision, number in new}
        lost = {minute_key(decision) for decision in decisions} - seq.keys()
        _insert(
            connection,
            "predictions",
            Prediction.__struct_fields__,
            [astuple(prediction) for prediction in predictions if minute_key(prediction) not in lost],
            "ON CONFLICT DO NOTHING",
        )
        before = connection.total_changes()
        sent = [message for message in messages if minute_key(message) not in lost]
        payloads = [outbox_payload(message, seq.get(minute_key(message))) for message in sent]
        rows = [
            (message.kind, message.slot, message.symbol, message.close_time, payload, message.valid_until)
            for message, payload in zip(sent, payloads, strict=True)
        ]
        _insert(connection, "outbox", Message.__struct_fields__[1:], rows, "ON CONFLICT DO NOTHING")
        stored = None
        if connection.total_changes() - before == len(sent):
            ids = _last_ids(connection, len(sent))
            stored = [
                replace(message, id=next(ids), payload=payload) for message, payload in zip(sent, payloads, strict=True)
            ]
    return Committed(decisions=[decision for decision, _ in new], messages=stored)


def _last_ids(connection: apsw.Connection, number: int) -> Iterator[int]:
    """Of the rows that were just inserted, one after another: nobody else wrote meanwhile, so they have no gaps."""
    return count(connection.last_insert_rowid() - number + 1)


def _check(connection: apsw.Connection, queries: dict[str, str], fence: Fence | None) -> None:
    """Raises Fenced where the lease is not the writer's any more. For as long as the transaction lasts it stays so."""
    if fence is not None and not _fetch(connection, queries["fence"], astuple(fence)):
        raise Fenced(f"{fence.name} is not ours any more under number {fence.fencing}")


def _commit_trading(
    connection: apsw.Connection,
    queries: dict[str, str],
    parts: Sequence[tuple[TradingTable, Sequence[Row]]],
    messages: Sequence[Message],
    fence: Fence | None,
) -> list[Message]:
    with _transaction(connection):
        _check(connection, queries, fence)
        for table, rows in parts:
            _insert(connection, table.name, table.columns, kept_rows(table, rows), on_trading_conflict(table))
        _insert(connection, "outbox", Message.__struct_fields__[1:], [astuple(one)[1:] for one in messages], "")
        ids = _last_ids(connection, len(messages))
    return [replace(one, id=next(ids)) for one in messages]


def _insert_decisions(
    connection: apsw.Connection, queries: dict[str, str], decisions: Sequence[Decision], t_commit: int
) -> list[tuple[Decision, int]]:
    """Insert those whose key is free, each with the next seq of its slot and symbol; returns both."""
    taken: set[Key] = set()
    last_seq: dict[tuple[str, str], int] = {}
    for slot in {decision.slot for decision in decisions}:
        asked = [(decision.symbol, decision.close_time) for decision in decisions if decision.slot == slot]
        [[found]] = _fetch(connection, queries["decided"], (slot, json.dumps(asked)))
        taken |= {(slot, symbol, close_time) for symbol, close_time in json.loads(found)}
        symbols = sorted({symbol for symbol, _ in asked})
        [[found]] = _fetch(connection, queries["last_seq"], (slot, json.dumps(symbols)))
        last_seq |= {(slot, symbol): seq or 0 for symbol, seq in json.loads(found).items()}
    new = []
    rows = []
    for decision in decisions:
        if minute_key(decision) not in taken:
            taken.add(minute_key(decision))
            seq = last_seq[decision.slot, decision.symbol] + 1
            last_seq[decision.slot, decision.symbol] = seq
            new.append((decision, seq))
            rows.append((*astuple(decision), seq, t_commit))
    _insert(connection, "signals", (*Decision.__struct_fields__, "seq", "t_commit"), rows, "")
    return new


def _candles(connection: apsw.Connection, interval: str, where: str, values: Row) -> list[Candle]:
    table = TABLES[f"candles_{interval}"]
    columns = ", ".join(f'"{column}"' for column in table.columns)
    synthetic = table.columns.index("synthetic")
    return [
        stored_candle(interval, (*row[:synthetic], bool(row[synthetic]), *row[synthetic + 1 :]))
        for row in _fetch(connection, f"SELECT {columns} FROM {table.name} WHERE {where}", values)
    ]


_SUPERSEDED = (
    "EXISTS (SELECT 1 FROM signals AS n WHERE n.slot = t.slot AND n.symbol = t.symbol AND n.close_time > t.close_time)"
)
"""The newest row of each slot and symbol is where the next seq is counted from, so it is never archived."""


def _old_days(connection: apsw.Connection, table: DayTable, before: int) -> list[int]:
    """From day to day by the index, never through the rows of one."""
    time = f'"{table.time}"'
    if table.name == "signals":  # its index begins with the slot
        slots: list[Row] = _fetch(connection, _SLOTS, ())
        query = f"SELECT {time} FROM signals AS t WHERE slot = ?3 AND {time} >= ?1 AND {time} < ?2 AND {_SUPERSEDED}"
        query += f" ORDER BY {time} LIMIT 1"
    else:
        slots = [Row()]
        query = f'SELECT min({time}) FROM "{table.name}" WHERE {time} >= ?1 AND {time} < ?2'
    days = set()
    for slot in slots:
        since = -DAY_MS
        while (found := connection.execute(query, (since, before, *slot)).get) is not None:
            days.add(found - found % DAY_MS)
            since = found - found % DAY_MS + DAY_MS
    return sorted(days)


_SLOTS = """
    WITH RECURSIVE known (slot) AS (
        SELECT min(slot) FROM signals
        UNION ALL SELECT (SELECT min(slot) FROM signals WHERE slot > known.slot) FROM known WHERE slot IS NOT NULL
    )
    SELECT slot FROM known WHERE slot IS NOT NULL
"""


def _rows_between(connection: apsw.Connection, table: DayTable, start: int, end: int) -> list[Row]:
    columns = ", ".join(f'"{column}"' for column in table.columns)
    order = ", ".join(f'"{column}"' for column in table.key)
    where = f'"{table.time}" >= ? AND "{table.time}" < ?'
    if table.name == "signals":
        where = f"slot IN ({_SLOTS}) AND {where} AND {_SUPERSEDED}"
    return _fetch(connection, f'SELECT {columns} FROM "{table.name}" AS t WHERE {where} ORDER BY {order}', (start, end))


def _delete_rows(connection: apsw.Connection, table: DayTable, rows: Sequence[Row]) -> int:
    """Delete rows that have not changed; returns how many those were."""
    same = " AND ".join(
        f'"{column}" = ?{number}' if column in table.key else f'"{column}" IS ?{number}'
        for number, column in enumerate(table.columns, 1)
    )
    with _transaction(connection):
        before = connection.total_changes()
        connection.executemany(f'DELETE FROM "{table.name}" WHERE {same}', rows)
        return connection.total_changes() - before


def _series(
    connection: apsw.Connection, table: Table, columns: Sequence[str], only: Mapping[str, str], start: int, end: int
) -> Columns:
    names = ", ".join(f'"{column}"' for column in columns)
    where = " AND ".join(f'"{column}" = ?' for column in only)
    order = ", ".join(f'"{column}"' for column in (table.time, *table.key))
    cursor = connection.execute(
        f'SELECT {names} FROM "{table.name}" WHERE {where} AND "{table.time}" >= ? AND "{table.time}" < ? '
        f"ORDER BY {order}",
        (*only.values(), start, end),
    )
    parts = []
    while rows := list(islice(cursor, SERIES_ROWS)):
        parts.append(
            [column_array(column, values) for column, values in zip(columns, zip(*rows, strict=True), strict=True)]
        )
    return joined(parts, columns)


def _open_gap(
    connection: apsw.Connection, queries: dict[str, str], hole: tuple[str, str, int, int], cause: str, detected_at: int
) -> int:
    with _transaction(connection):
        _fetch(connection, queries["add_gap"], (*hole, cause, detected_at))
        [[gap_id]] = _fetch(connection, queries["open_gap"], hole)
        return int(gap_id)


def _add_deployment(connection: apsw.Connection, queries: dict[str, str], row: Row, statuses: Mapping[str, str]) -> int:
    with _transaction(connection):
        [[deployment_id]] = _fetch(connection, queries["add_deployment"], row)
        for model_id, status in statuses.items():
            _fetch(connection, queries["set_model_status"], (status, model_id))
        return int(deployment_id)


def _row_counts(connection: apsw.Connection, queries: dict[str, str]) -> dict[str, int]:
    names = [name for (name,) in _fetch(connection, queries["tables"], ())]
    return {name: _fetch(connection, f'SELECT count(*) FROM "{name}"', ())[0][0] for name in names}


def _backup(connection: apsw.Connection, path: Path) -> None:
    partial = unfinished(path)
    try:
        copy = apsw.Connection(str(partial))
    except apsw.CantOpenError as error:
        raise NeedsPerson(f"cannot write {path}: {error}") from error
    with copy.backup("main", connection, "main") as copying:
        copying.step(-1)  # all at once: in portions it would begin anew with every write of another connection
    copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
    copy.close()
    finish(partial, path)


def _restore(connection: apsw.Connection, path: Path) -> None:
    connection.execute("ATTACH ? AS archive", (str(path),))
    try:
        with _transaction(connection):
            for table, columns in columns_by_table(connection).items():
                names = ", ".join(f'"{column}"' for column in columns)
                connection.execute(f'INSERT INTO main."{table}" ({names}) SELECT {names} FROM archive."{table}"')
    finally:
        connection.execute("DETACH archive")


def _fetch(connection: apsw.Connection, query: str, values: Row) -> list[Row]:
    return connection.execute(query, values).fetchall()


def _identity(path: Path) -> tuple[int, int] | None:
    """Of the file that has this name now; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
