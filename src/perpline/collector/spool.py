"""What a database could not take, on disk until it can.

A folder with files of records. Of each kind (a table's name, `decisions`, `gaps`) the records have files of their own
and one order, numbered without a gap. A record is a checksum, the payload's length, its number, when it was written,
and the payload; the checksum covers all of it, and the kind. Files are only appended to, and deleted once all their
records are removed.

A process may die at any byte of a write: what was written before is read again, and what is torn is cut off, for who
wrote it was never told that it is kept.
"""

import asyncio
import os
import struct
import sys
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog
from msgspec import Struct

from perpline.common.clock import Clock
from perpline.common.errors import NeedsPerson, Unavailable

if sys.platform != "win32":
    import fcntl

log = structlog.get_logger("perpline.spool")

VERSION = "perpline spool 1"
"""Part of what the checksum covers: another version's records are no records to this one."""
HEAD = struct.Struct("<IIQQ")
"""checksum (CRC-32 of the kind and all that follows), bytes of the payload, number, time of writing (ms)."""

Params = ParamSpec("Params")
Result = TypeVar("Result")


class SpoolStatistics(Struct, frozen=True, kw_only=True):
    """How much is kept, and what has become of the rest."""

    records: int
    by_kind: dict[str, int]
    bytes: int
    """Of files that hold records; what is reserved beyond them does not count."""
    max_bytes: int
    oldest_ms: int | None
    """When the oldest record was written, our market time."""
    spooled: int
    """Records appended since the start."""
    replayed: int
    """Records removed since the start, for the database has them."""
    dropped: int
    """Records dropped since the start, for the spool was full."""
    error: str
    """Why the last append failed; empty since one worked."""


class Spool:
    """Records of several kinds in a folder that one process uses at a time.

    At most `max_bytes` of files with records. What would exceed it drops the oldest file of the first kind of
    `may_drop` that has one (its records go to `on_dropped(kind, payloads)`), and then of the next: name first what can
    be got again. Kinds that are not named there are never dropped. Where nothing may be dropped any more, and where the
    disk takes nothing, `append` raises Unavailable, and who asked still has its record.

    `reserved`: bytes of disk that a kind has beforehand, so that a full disk still takes it. Where the file system
    cannot promise that (no fallocate, or copy on write) it is a hope.

    All work on files is done in one thread, in the order it was asked for; the event loop never waits for a disk.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        clock: Clock,
        *,
        segment_bytes: int = 1 << 20,
        reserved: Mapping[str, int] | None = None,
        may_drop: Sequence[str] = (),
        on_dropped: Callable[[str, list[bytes]], None] = lambda kind, payloads: None,
    ) -> None:
        self.folder = folder
        self.on_dropped = on_dropped
        self._max_bytes = max_bytes
        self._clock = clock
        self._segment_bytes = segment_bytes
        self._reserved = dict(reserved or {})
        self._may_drop = tuple(may_drop)
        self._kinds: dict[str, _Kind] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._lock: int | None = None
        self._spooled = self._replayed = self._dropped = 0
        self._error = ""
        self._kept: dict[str, tuple[int, int, int]] = {}
        """Of each kind with records: how many, their bytes, and when the oldest was written. Made by the thread, after
        each change as a whole, and read by the loop."""

    async def open(self) -> None:
        """Take the folder, made if need be, and find what it holds.

        Raises Taken where another process uses it, NeedsPerson where it cannot be used.
        """
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        try:
            await self._call(self._open)
        except BaseException as error:
            await self.close()
            if isinstance(error, OSError):
                raise NeedsPerson(f"the spool {self.folder} cannot be used: {error.strerror or error}") from error
            raise

    async def close(self) -> None:
        """Give the folder back; what it holds stays."""
        if self._thread is not None:
            await self._call(self._close)
            self._thread.shutdown()
            self._thread = None

    async def append(self, kind: str, payload: bytes, *, sync: bool = False) -> None:
        """Keep a record. With `sync` it survives the machine's death too once this has returned.

        Raises Unavailable where there is no room for it.
        """
        dropped, failure = await self._call(self._append, kind, payload, self._clock.now_ms(), sync)
        for lost_kind, payloads in dropped:
            self._dropped += len(payloads)
            self.on_dropped(lost_kind, payloads)
        if failure is not None:
            self._error = f"the spool {self.folder} takes nothing: {failure.strerror or failure}"
            raise Unavailable(self._error) from failure
        self._error = ""
        self._spooled += 1

    def count(self, kind: str) -> int:
        """Records of this kind."""
        return self._kept[kind][0] if kind in self._kept else 0

    @property
    def kinds(self) -> list[str]:
        """Those with records."""
        return list(self._kept)

    async def oldest(self, kind: str, limit: int = 1) -> list[bytes]:
        """The oldest records of a kind. Raises Unavailable where they cannot be read now."""
        try:
            return await self._call(self._oldest, kind, limit)
        except OSError as error:
            raise Unavailable(f"the spool {self.folder} cannot be read: {error.strerror or error}") from error

    async def remove(self, kind: str, count: int) -> None:
        """The oldest `count` records are in the database now: forget them.

        A process that dies may find the last of them again, until their file is deleted.
        """
        try:
            self._replayed += await self._call(self._remove, kind, count)
        except OSError as error:
            raise Unavailable(f"the spool {self.folder} cannot be changed: {error.strerror or error}") from error

    def statistics(self) -> SpoolStatistics:
        kept = self._kept
        return SpoolStatistics(
            records=sum(records for records, _, _ in kept.values()),
            by_kind={kind: records for kind, (records, _, _) in kept.items()},
            bytes=sum(size for _, size, _ in kept.values()),
            max_bytes=self._max_bytes,
            oldest_ms=min((oldest for _, _, oldest in kept.values()), default=None),
            spooled=self._spooled,
            replayed=self._replayed,
            dropped=self._dropped,
            error=self._error,
        )

    async def _call(self, function: Callable[Params, Result], *args: Params.args, **kwargs: Params.kwargs) -> Result:
        if self._thread is None:
            raise RuntimeError(f"the spool {self.folder} is not open")

        def in_thread() -> Result:
            try:
                return function(*args, **kwargs)
            finally:
                kinds = [kind for kind in self._kinds.values() if kind.records]
                self._kept = {kind.name: (kind.records, kind.size, kind.oldest_ms) for kind in kinds}

        asked = asyncio.get_running_loop().run_in_executor(self._thread, in_thread)
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            if not asked.done():
                await asyncio.wait([asked])  # it is done all the same: who asks again must find it done
            raise

    # ---- in the thread ----

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        if sys.platform != "win32":
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel drops it when the process dies
            except BlockingIOError:
                raise Taken(f"another process uses the spool {self.folder}") from None
        found: dict[str, list[Path]] = {}
        for path in sorted(self.folder.glob("*.spool")):
            found.setdefault(path.name.partition("-")[0], []).append(path)
        for name in (*found, *(name for name in self._reserved if name not in found)):
            kind = self._kind(name)
            kind.read(found.get(name, []))
            self._kinds[name] = kind
            kind.reserve()

    def _close(self) -> None:
        for kind in self._kinds.values():
            kind.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _append(
        self, name: str, payload: bytes, at_ms: int, sync: bool
    ) -> tuple[list[tuple[str, list[bytes]]], OSError | None]:
        """What was dropped to make room, and why the record is not kept all the same."""
        dropped: list[tuple[str, list[bytes]]] = []
        try:
            if name not in self._kinds:
                self._kinds[name] = self._kind(name)
            over = sum(kind.size for kind in self._kinds.values()) + HEAD.size + len(payload) - self._max_bytes
            while over > 0:
                oldest = next((self._kinds[each] for each in self._may_drop if self._has(each)), None)
                if oldest is None:
                    raise OSError(0, f"it holds {self._max_bytes >> 20} MB (spool_mb) that must not be dropped")
                before = oldest.size
                dropped.append((oldest.name, oldest.drop_segment()))
                over -= before - oldest.size
            self._kinds[name].append(payload, at_ms, sync)
        except OSError as error:
            return dropped, error
        return dropped, None

    def _kind(self, name: str) -> "_Kind":
        return _Kind(self.folder, name, self._segment_bytes, self._reserved.get(name, 0))

    def _has(self, name: str) -> bool:
        return name in self._kinds and self._kinds[name].records > 0

    def _oldest(self, name: str, limit: int) -> list[bytes]:
        return self._kinds[name].oldest(limit) if name in self._kinds else []

    def _remove(self, name: str, count: int) -> int:
        return self._kinds[name].remove(count) if name in self._kinds else 0


class Taken(NeedsPerson):
    """Another process uses this spool."""


class _Segment:
    """One file of consecutive records."""

    def __init__(self, path: Path, first: int) -> None:
        self.path = path
        self.first = first
        """Number of its first record."""
        self.records: deque[tuple[int, int, int]] = deque()
        """(offset of the payload, its length, time of writing) of those that are not removed."""
        self.end = 0
        """Where the next record begins; behind it the file may hold zeros or what was torn."""


class _Kind:
    """The records of one kind. Every call blocks, and raises OSError."""

    def __init__(self, folder: Path, name: str, segment_bytes: int, reserved: int) -> None:
        self.name = name
        self.records = 0
        self._folder = folder
        self._segment_bytes = max(segment_bytes, reserved)
        self._reserved = reserved
        self._segments: deque[_Segment] = deque()
        self._next = 0
        self._seed = zlib.crc32(f"{VERSION} {name} ".encode())
        self._file: int | None = None
        """Of the last segment, which is written."""
        self._reading: tuple[Path, int] | None = None
        self._said_unreserved = False

    @property
    def size(self) -> int:
        """Bytes of files with records."""
        return sum(segment.end for segment in self._segments if segment.records)

    @property
    def oldest_ms(self) -> int:
        return self._segments[0].records[0][2]

    def read(self, paths: Sequence[Path]) -> None:
        """Find the records of files that an earlier process left, in their order; cut off what is torn."""
        for path in paths:
            segment = self._scanned(path)
            if segment.records:
                self._segments.append(segment)
                self.records += len(segment.records)
                self._next = segment.first + len(segment.records)
            else:
                path.unlink()
        if self._segments:
            self._file = os.open(self._segments[-1].path, os.O_RDWR)
            if self._reserved:
                self._allocate(self._file)

    def reserve(self) -> None:
        """Have a file of the reserved size to write to."""
        if self._reserved and self._file is None:
            try:
                self._begin_segment()
            except OSError as error:
                log.error("spool_not_reserved", kind=self.name, reason=error.strerror or str(error), action="spool")

    def append(self, payload: bytes, at_ms: int, sync: bool) -> None:
        size = HEAD.size + len(payload)
        if self._file is None or (self._segments[-1].end and self._segments[-1].end + size > self._segment_bytes):
            self._begin_segment()
        segment = self._segments[-1]
        assert self._file is not None
        head = HEAD.pack(0, len(payload), self._next, at_ms)[4:]
        checksum = zlib.crc32(payload, zlib.crc32(head, self._seed))
        _write(self._file, struct.pack("<I", checksum) + head + payload, segment.end)
        if sync:
            _sync(self._file)
        segment.records.append((segment.end + HEAD.size, len(payload), at_ms))
        segment.end += size
        self._next += 1
        self.records += 1

    def oldest(self, limit: int) -> list[bytes]:
        found: list[bytes] = []
        for segment in self._segments:
            for offset, length, _ in segment.records:
                if len(found) == limit:
                    return found
                found.append(os.pread(self._read_from(segment), length, offset))
        return found

    def remove(self, count: int) -> int:
        removed = 0
        while removed < count and self.records:
            segment = self._segments[0]
            if segment.records:
                segment.records.popleft()
                self.records -= 1
                removed += 1
            if not segment.records:
                self._end_segment()
        return removed

    def drop_segment(self) -> list[bytes]:
        """Delete the oldest file; the records that it held."""
        dropped = self.oldest(len(self._segments[0].records))
        self.remove(len(dropped))
        return dropped

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        if self._reading is not None:
            os.close(self._reading[1])
        self._file = self._reading = None

    def _scanned(self, path: Path) -> _Segment:
        """The records of a file up to the first that is not whole; what follows is cut off."""
        data = path.read_bytes()
        number = path.stem.partition("-")[2]
        segment = _Segment(path, int(number) if number.isdecimal() else 0)
        while segment.end + HEAD.size <= len(data):
            checksum, length, its_number, at_ms = HEAD.unpack_from(data, segment.end)
            end = segment.end + HEAD.size + length
            if its_number != segment.first + len(segment.records) or end > len(data):
                break
            if zlib.crc32(memoryview(data)[segment.end + 4 : end], self._seed) != checksum:
                break
            segment.records.append((segment.end + HEAD.size, length, at_ms))
            segment.end = end
        if cut := len(data[segment.end :].rstrip(b"\0")):
            log.warning("spool_cut", file=str(path), records=len(segment.records), cut=cut, action="spool")
            os.truncate(path, segment.end)
        return segment

    def _begin_segment(self) -> None:
        path = self._folder / f"{self.name}-{self._next:016d}.spool"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            if self._reserved:
                self._allocate(file)
            _sync_folder(self._folder)
        except OSError:
            os.close(file)
            path.unlink(missing_ok=True)
            raise
        if self._file is not None:
            os.close(self._file)
        self._file = file
        self._segments.append(_Segment(path, self._next))

    def _allocate(self, file: int) -> None:
        if not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(file, 0, self._segment_bytes)
        except OSError as error:
            if not self._said_unreserved:
                self._said_unreserved = True
                log.error("spool_not_reserved", kind=self.name, reason=error.strerror or str(error), action="spool")

    def _end_segment(self) -> None:
        """The oldest file has no records left: delete it; a reserved one is made anew."""
        segment = self._segments.popleft()
        if self._reading is not None and self._reading[0] == segment.path:
            os.close(self._reading[1])
            self._reading = None
        if not self._segments and self._file is not None:
            os.close(self._file)
            self._file = None
        segment.path.unlink()
        self.reserve()

    def _read_from(self, segment: _Segment) -> int:
        if self._reading is None or self._reading[0] != segment.path:
            if self._reading is not None:
                os.close(self._reading[1])
                self._reading = None
            self._reading = segment.path, os.open(segment.path, os.O_RDONLY)
        return self._reading[1]


def _write(file: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def _sync(file: int) -> None:
    getattr(os, "fdatasync", os.fsync)(file)  # macOS has no fdatasync


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
