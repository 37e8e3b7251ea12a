"""Raw frames in files: writing our own recordings, reading ours and other people's."""

import contextlib
import gzip
import io
import queue
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Literal

import msgspec
import structlog
import zstandard
from msgspec import Struct

from perpline.common.clock import Clock
from perpline.common.errors import Malformed, NeedsPerson

log = structlog.get_logger("perpline.recorder")

HEADER = b"# perpline frames 1: <receive time, microseconds UTC> <frame>\n"
MAX_LINE_BYTES = 64 << 20
FLUSH_EVERY_S = 0.5
"""A crash loses what came since the last flush, and with it at most a second."""

TRY_AGAIN_S = 10.0
"""Wall seconds between tries to begin a new file after an error of the disk."""

Format = Literal["auto", "lines", "jsonl"]


class RecorderStatistics(Struct, frozen=True, kw_only=True):
    """What a FrameWriter has done."""

    frames: int
    dropped: int
    bytes_written: int
    """Compressed, all files together, those deleted since among them."""
    files: int
    error: str
    """Why recording stopped; empty while it works."""


class FrameWriter:
    """Records frames into `<name>.000.zst`, `<name>.001.zst` …, for `read_frames` and for zstdcat.

    `path` is the name with or without .zst; files of an earlier recording are continued in number, never overwritten.
    A file that reached `max_bytes_per_file` is followed by the next; of more than `max_files` the oldest is deleted.
    A thread compresses and writes. It may be `max_queued_bytes` behind; beyond that frames are dropped and counted. So
    are all frames after an error of the disk, until a new file can be begun, which is tried every `TRY_AGAIN_S`: a
    recording that fails must not stop the work beside it.
    """

    def __init__(
        self,
        path: str | Path,
        clock: Clock,
        *,
        max_bytes_per_file: int = 256 << 20,
        max_files: int = 40,
        max_queued_bytes: int = 64 << 20,
    ) -> None:
        """Raises NeedsPerson where the folder does not exist or cannot be written."""
        path = Path(path)
        self._name = path.with_suffix("") if path.suffix == ".zst" else path
        self._clock = clock
        self._max_bytes_per_file = max_bytes_per_file
        self._max_files = max_files
        self._max_queued_bytes = max_queued_bytes
        self._frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._queued_bytes = 0  # counted by the caller's thread alone, as _taken_bytes by ours: no lock
        self._taken_bytes = 0
        self._added = 0
        self._dropped = 0
        self._lost = 0
        self._bytes_written = 0
        self._error = ""
        self._paths = _existing_files(self._name)
        try:
            self._file, self._compressor = self._start_file()
        except OSError as error:
            raise NeedsPerson(f"cannot record into {self._name}: {error.strerror}") from error
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def add(self, data: bytes | bytearray | memoryview, received_us: int) -> None:
        """Record a frame with the time it arrived, our clock, microseconds. Never waits.

        A line end inside a frame, in JSON only white space, becomes a space.
        """
        line = b"%d %b\n" % (received_us, bytes(data).replace(b"\n", b" "))
        if self._error or self._queued_bytes - self._taken_bytes + len(line) > self._max_queued_bytes:
            self._dropped += 1
            return
        self._queued_bytes += len(line)
        self._added += 1
        self._frames.put(line)

    def close(self) -> None:
        """Write what is queued and close the file."""
        self._frames.put(None)
        self._thread.join()

    def statistics(self) -> RecorderStatistics:
        return RecorderStatistics(
            frames=self._added - self._lost,
            dropped=self._dropped + self._lost,
            bytes_written=self._bytes_written,
            files=len(self._paths),
            error=self._error,
        )

    def _run(self) -> None:
        while True:
            try:
                self._record()
                return
            except OSError as error:
                self._error = f"recording stopped: {error}"
                self._lost += 1
                log.error("recording_stopped", name=str(self._name), reason=str(error), action="record")
            if not self._wait_for_room():
                return
            log.warning("recording_goes_on", name=str(self._name), lost=self._lost, action="record")
            self._error = ""

    def _wait_for_room(self) -> bool:
        """Count what nobody writes until a new file can be begun; False where the recording ends before."""
        with contextlib.suppress(OSError):
            self._file.close()  # what it holds can be read, as after a crash
        again_s = self._clock.wall_s() + TRY_AGAIN_S
        while True:
            with contextlib.suppress(queue.Empty):
                line = self._frames.get(timeout=FLUSH_EVERY_S)
                if line is None:
                    return False
                self._taken_bytes += len(line)
                self._lost += 1
            if self._clock.wall_s() >= again_s:
                with contextlib.suppress(OSError):
                    self._file, self._compressor = self._start_file()
                    return True
                again_s = self._clock.wall_s() + TRY_AGAIN_S

    def _record(self) -> None:
        flush_at_s = self._clock.wall_s() + FLUSH_EVERY_S
        size = 0
        while True:
            try:
                line = self._frames.get(timeout=FLUSH_EVERY_S)
            except queue.Empty:
                size += self._write(self._compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
                continue
            if line is None:
                self._end_file()
                return
            self._taken_bytes += len(line)
            size += self._write(self._compressor.compress(line))
            if self._clock.wall_s() >= flush_at_s:
                size += self._write(self._compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
                flush_at_s = self._clock.wall_s() + FLUSH_EVERY_S
            if size >= self._max_bytes_per_file:
                self._end_file()
                self._file, self._compressor = self._start_file()
                size = 0

    def _write(self, data: bytes) -> int:
        if data:
            self._file.write(data)
            self._file.flush()
            self._bytes_written += len(data)
        return len(data)

    def _start_file(self) -> "tuple[IO[bytes], zstandard.ZstdCompressionObj]":
        number = int(self._paths[-1].suffixes[-2][1:]) + 1 if self._paths else 0
        path = self._name.with_name(f"{self._name.name}.{number:03}.zst")
        file = path.open("xb")
        self._paths.append(path)
        while len(self._paths) > self._max_files:
            self._paths.pop(0).unlink(missing_ok=True)
        compressor = zstandard.ZstdCompressor(level=3).compressobj()
        try:
            file.write(compressor.compress(HEADER) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
            file.flush()
        except OSError:
            self._paths.pop()
            path.unlink()
            raise
        return file, compressor

    def _end_file(self) -> None:
        self._write(self._compressor.flush(zstandard.COMPRESSOBJ_FLUSH_FINISH))
        self._file.close()


def _existing_files(name: Path) -> list[Path]:
    pattern = re.compile(re.escape(name.name) + r"\.\d{3,}\.zst")
    found = [path for path in name.parent.glob("*.zst") if pattern.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.suffixes[-2][1:]))


def read_frames(
    path: str | Path, format: Format = "auto", on_unreadable: Callable[[int, bytes], None] | None = None
) -> Iterator[tuple[int, bytes]]:
    """The frames of a recording in the order of the file: (receive time in microseconds UTC, bytes as they came).

    The file is plain, gzip or zstd. Formats:
    * `lines`: `<time> <frame>`, time an integer in s, ms, µs or ns told apart by its size; or `<seconds>: <frame>`, as
      cryptofeed writes. Lines about the connection (`wss://…`, `configuration: …`) and HTTP answers
      (`https://… -> <time>: <body>`) are no frames.
    * `jsonl`: an object a line with the frame in `raw`. Its time is `captured_utc` where that has a time of day, else
      the exchange's own E, else that of the frame before.

    What is inside a frame is not looked at. A line whose time or envelope cannot be read goes to `on_unreadable(line
    number, line)`; without that it raises Malformed, as do a file that is no recording, gzip data that end early and
    compressed data that are damaged. Our own recordings may end anywhere: a crash costs them the last line. Raises
    NeedsPerson for a file that cannot be opened.
    """
    path = Path(path)
    lines = _lines(path)
    if format == "auto":
        lines, format = _recognised(path, lines)
    read = _read_jsonl() if format == "jsonl" else _read_line
    for number, line in lines:
        try:
            frame = read(line)
        except Malformed as error:
            if on_unreadable is None:
                raise Malformed(f"{path}, line {number}: {error}") from error
            on_unreadable(number, line)
            continue
        if frame is not None:
            yield frame


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines without their ends, blank ones left out."""
    number = 0
    is_ours = False
    try:
        with _open(path) as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise Malformed(f"{path}, line {number} is longer than {MAX_LINE_BYTES >> 20} MB")
                is_ours = is_ours or line == HEADER
                if is_ours and not line.endswith(b"\n"):
                    return  # cut off by a crash
                if line.strip():
                    yield number, line.rstrip(b"\r\n")
    except EOFError as error:
        raise Malformed(f"{path} ends in the middle of its gzip data, after line {number}: copy it again") from error
    except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise Malformed(f"{path}: its compressed data are damaged after line {number}: {error}") from error
    except OSError as error:
        raise NeedsPerson(f"cannot read {path}: {error.strerror}") from error


def _open(path: Path) -> io.BufferedReader | gzip.GzipFile:
    file = path.open("rb")
    magic = file.peek(4)[:4]
    if magic.startswith(b"\x1f\x8b"):
        file.close()
        return gzip.open(path)
    if magic == b"\x28\xb5\x2f\xfd":
        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True))
    return file


def _recognised(path: Path, lines: Iterator[tuple[int, bytes]]) -> tuple[Iterator[tuple[int, bytes]], Format]:
    """The same lines, and what the first of them looks like."""
    first = next(lines, None)
    if first is None:
        return iter(()), "lines"

    def all_lines() -> Iterator[tuple[int, bytes]]:
        yield first
        yield from lines

    if first[1].lstrip().startswith(b"{"):
        return all_lines(), "jsonl"
    try:
        _read_line(first[1])
    except Malformed as error:
        raise Malformed(f"{path} is no recording that perpline can read (first line: {first[1][:60]!r})") from error
    return all_lines(), "lines"


_TIMED = re.compile(rb"(\d{1,19})(?:\.(\d{1,9}))?:? ", re.ASCII)
_REMARK = re.compile(rb"#|configuration: |(?:https?|wss?)://")


def _read_line(line: bytes) -> tuple[int, bytes] | None:
    timed = _TIMED.match(line)
    if timed:
        return _microseconds(timed[1], timed[2] or b""), line[timed.end() :]
    if _REMARK.match(line):
        return None
    raise Malformed(f"no receive time: {line[:60]!r}")


def _microseconds(whole: bytes, fraction: bytes) -> int:
    """A time since 1970 in s, ms, µs or ns: which, its size says (for every time from 1973 to 5138)."""
    size = int(whole)
    per_unit = 1_000_000_000 if size < 10**11 else 1_000_000 if size < 10**14 else 1000 if size < 10**17 else 1
    nanoseconds = size * per_unit + int(fraction.ljust(9, b"0")) * per_unit // 10**9
    return nanoseconds // 1000


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EVENT_TIME = re.compile(rb'"E"\s*:\s*(\d{13})\b')


def _read_jsonl() -> Callable[[bytes], tuple[int, bytes] | None]:
    """A reader of one file's lines, which remembers the last time."""
    decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
    last_us = 0

    def read(line: bytes) -> tuple[int, bytes] | None:
        nonlocal last_us
        try:
            members = decoder.decode(line)
            raw = bytes(members["raw"])
            frame = msgspec.json.decode(raw, type=str).encode() if raw.startswith(b'"') else raw
        except KeyError as error:
            raise Malformed("no field `raw`") from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Malformed(f"not a JSON object with a frame in `raw`: {error}") from error
        last_us = _captured_us(members) or _event_us(frame) or last_us
        return last_us, frame

    return read


def _captured_us(members: dict[str, msgspec.Raw]) -> int | None:
    """The time of `captured_utc`, unless it is only a date."""
    try:
        text = msgspec.json.decode(bytes(members.get("captured_utc", b'""')), type=str)
        moment = datetime.fromisoformat(text)
    except (msgspec.MsgspecError, ValueError):
        return None
    if len(text) <= len("2026-01-01"):
        return None
    since_epoch: timedelta = moment.replace(tzinfo=moment.tzinfo or UTC) - _EPOCH
    return since_epoch // timedelta(microseconds=1)


def _event_us(frame: bytes) -> int | None:
    found = _EVENT_TIME.search(frame)
    return int(found[1]) * 1000 if found else None
