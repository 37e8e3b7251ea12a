"""Days of tables as Parquet files: FOLDER/TABLE/2026-11-20.parquet, and 2026-11-20.2.parquet for rows that came later.

A row group for each hour; the columns and values of the tables, text as text, whole numbers as int64, BLOBs as binary,
what is empty as null. Compressed with zstd, with a checksum on each page. Needs pyarrow (`perpline[analytics]`).
"""

import os
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from perpline.common.errors import NeedsPerson, PerplineError, Unavailable
from perpline.storage.day_tables import DayTable, day_text
from perpline.storage.store import Row

FORMAT = "1"
"""In the metadata `perpline.format`; grows when a reader would have to know."""


MAX_GROUP_ROWS = 5_000_000
"""Of an hour, far above what 750 symbols make of any table."""


class WrittenFile(Struct, frozen=True):
    """A file that is whole and on the disk."""

    path: Path
    part: int
    rows: int
    bytes: int


class DayFiles:
    """The files of a folder. Raises NeedsPerson where pyarrow is missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._arrow, self._parquet = _pyarrow()

    def parts(self, table: DayTable, day: int) -> list[Path]:
        """The whole files of a day, in the order in which they were written."""
        pattern = re.compile(re.escape(day_text(day)) + r"(?:\.(\d{1,4}))?\.parquet")
        try:
            names = os.listdir(self.folder / table.name)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise NeedsPerson(f"cannot read {self.folder / table.name}: {error.strerror or error}") from None
        found = sorted((int(match[1] or 1), name) for name in names if (match := pattern.fullmatch(name)))
        return [self.folder / table.name / name for _, name in found]

    async def write(self, table: DayTable, day: int, hours: AsyncIterator[Sequence[Row]]) -> WrittenFile:
        """Write rows as the next part of a day; it gets its name when the disk has it whole.

        Raises Unavailable where the disk does not take it, NeedsPerson where the folder cannot be made.
        """
        path, part = self._next_part(table, day)
        unfinished = path.with_name(f"{path.name}.unfinished")
        schema = self._schema(table)
        rows = 0
        try:
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            with self._parquet.ParquetWriter(
                str(unfinished), schema, compression="zstd", write_page_checksum=True
            ) as writer:
                writer.add_key_value_metadata({"perpline.format": FORMAT, "perpline.table": table.name})
                async for hour in hours:
                    arrays = [
                        self._arrow.array(map(bool, values) if field.name == "synthetic" else values, field.type)
                        for values, field in zip(zip(*hour, strict=True), schema, strict=True)
                    ]
                    writer.write_table(self._arrow.Table.from_arrays(arrays, schema=schema), row_group_size=len(hour))
                    rows += len(hour)
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            size = unfinished.stat().st_size
            unfinished.replace(path)
            _sync_folder(path.parent)
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise NeedsPerson(f"cannot write {path}: {error.strerror or error}") from None
        except OSError as error:
            raise Unavailable(f"cannot write {path}: {error.strerror or error}") from None
        finally:
            unfinished.unlink(missing_ok=True)
        return WrittenFile(path, part, rows, size)

    def opened(self, table: DayTable, paths: Sequence[Path]) -> "OpenedDay":
        """These files, to be read. Raises NeedsPerson for one that is not whole or of another table."""
        return OpenedDay(self._parquet, self._schema(table), table, paths)

    def _next_part(self, table: DayTable, day: int) -> tuple[Path, int]:
        folder, name = self.folder / table.name, day_text(day)
        present = {path.name for path in self.parts(table, day)}
        part = 1
        while (wanted := f"{name}.parquet" if part == 1 else f"{name}.{part}.parquet") in present:
            part += 1
        return folder / wanted, part

    def _schema(self, table: DayTable) -> Any:
        types = {
            "TEXT": self._arrow.string(),
            "INTEGER": self._arrow.int64(),
            "REAL": self._arrow.float64(),
            "BLOB": self._arrow.binary(),
        }
        return self._arrow.schema(
            [
                (name, self._arrow.bool_() if name == "synthetic" else types[kind])
                for name, kind in table.columns.items()
            ]
        )


class OpenedDay:
    """Files of one day and table, read back from the disk."""

    def __init__(self, parquet: Any, schema: Any, table: DayTable, paths: Sequence[Path]) -> None:
        self._table = table
        self._files = []
        for path in paths:
            with _readable(path):
                file = parquet.ParquetFile(str(path), page_checksum_verification=True, memory_map=False)
                if file.schema_arrow.names != schema.names:
                    raise NeedsPerson(f"{path} holds other columns than {table.name}: move it away")
                groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
                if any(group.num_rows > MAX_GROUP_ROWS for group in groups):
                    raise NeedsPerson(f"{path} holds more rows than an hour can have: move it away")
            self._files.append((path, file))

    def rows_between(self, start: int, end: int) -> set[Row]:
        """The rows with start <= time < end. May be called in a thread."""
        column = list(self._table.columns).index(self._table.time)
        found: set[Row] = set()
        for path, file in self._files:
            with _readable(path):
                for group in range(file.metadata.num_row_groups):
                    limits = file.metadata.row_group(group).column(column).statistics
                    if limits is not None and (limits.max < start or limits.min >= end):
                        continue
                    values = [each.to_pylist() for each in file.read_row_group(group).columns]
                    found.update(row for row in zip(*values, strict=True) if start <= row[column] < end)
        return found

    def batches(self) -> Iterator[list[Row]]:
        """All rows, a row group at a time."""
        for path, file in self._files:
            with _readable(path):
                for group in range(file.metadata.num_row_groups):
                    values = [each.to_pylist() for each in file.read_row_group(group).columns]
                    yield list(zip(*values, strict=True))

    def close(self) -> None:
        for _, file in self._files:
            file.close()


class _readable:
    """Errors of reading a file, as a person is told them. A class, for a generator would be entered in each thread."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        # Broad, for what pyarrow makes of bytes that are no file of ours is no closed list.
        if isinstance(error, Exception) and not isinstance(error, PerplineError):
            raise NeedsPerson(f"{self._path} is damaged or no file of perpline's ({error}): move it away") from error


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow  # an extra, and slow to import
        from pyarrow import parquet
    except ImportError:
        raise NeedsPerson("Parquet files need one more package: pip install 'perpline[analytics]'") from None
    return pyarrow, parquet


def _sync_folder(folder: Path) -> None:
    """So that the new name survives a loss of power too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
