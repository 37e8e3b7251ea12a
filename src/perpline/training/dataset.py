"""A dataset: the vectors of stored history as files, the same bytes whenever and in whatever portions it is built.

DIR/manifest.json says what is in it; DIR/SYMBOL.times.npy holds the closes (int64 [n], milliseconds) and
DIR/SYMBOL.features.npy the columns (float32 [n, F], a row for each candle, NaN where there is no value). What comes
after the 128 bytes of head of either file, built up to some time, is a prefix of the same file built up to a later one.
"""

import asyncio
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from perpline.common.errors import NeedsPerson
from perpline.domain.candle import MINUTE_MS
from perpline.features.batch import SymbolReplay, UniverseReplay
from perpline.features.catalogue import SCHEMAS, columns_of, lookback_of, schema_hash
from perpline.storage.history import HISTORY_TABLES, SymbolHistory, symbol_history
from perpline.storage.store import Store

FORMAT = 1
HEAD_BYTES = 128

_DAY_MS = 1440 * MINUTE_MS
_PIECE_MS = 30 * _DAY_MS
"""History is read in pieces of this length, so that memory does not grow with the span."""
_UNIVERSE_PIECE_MS = 2 * _DAY_MS
_AT_ONCE = 2
"""Symbols under way together: one is read while another is computed. More would need more memory, not less time."""

Times = NDArray[np.int64]
Vectors = NDArray[np.float32]
Progress = Callable[[int, int], None]


async def build_dataset(
    store: Store,
    symbols: Sequence[str],
    start: int,
    end: int,
    schema: str,
    folder: Path,
    *,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Write the features of one of `SCHEMAS` for the candles of these symbols that close at start <= T < end
    (milliseconds); returns the manifest. `progress(done, total)` counts pieces of work.

    A build that was broken off goes on with the symbols that were not finished, if it is asked for the same; one that
    was finished is made anew. Windows reach back before `start` as far as the store does. Raises NeedsPerson for an
    unknown schema, a folder that holds something else, and symbols without a single candle.
    """
    features = SCHEMAS.get(schema)
    if features is None:
        raise NeedsPerson(f"there is no schema {schema}; there are {', '.join(SCHEMAS)}")
    build = _Build(
        store=store,
        symbols=list(dict.fromkeys(symbols)),
        start=start,
        end=end,
        tables={table for feature in features for table in feature.tables} & HISTORY_TABLES.keys() | {"candles_1m"},
        columns=columns_of(features),
        lookback_min=lookback_of(features),
        folder=folder,
        progress=progress,
        key=sha256(json.dumps([FORMAT, schema_hash(features), start, end]).encode()).hexdigest(),
    )
    _prepare(folder)
    made = await (build.universe() if any(feature.group == "K" for feature in features) else build.each())
    if not any(about["rows"] for about in made.values()):
        raise NeedsPerson("the store has no 1m candles of these symbols in this time: import or backfill them first")
    content = {
        "format": FORMAT,
        "schema": schema,
        "schema_hash": schema_hash(features),
        "features": [{"name": feature.name, "version": feature.version} for feature in features],
        "from": start,
        "to": end,
        "symbols": {symbol: made[symbol] for symbol in build.symbols},
    }
    manifest = {**content, "dataset_hash": sha256(_json(content).encode()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    for symbol in build.symbols:
        _note_of(folder, symbol).unlink(missing_ok=True)
    return manifest


class _Build:
    def __init__(
        self,
        *,
        store: Store,
        symbols: list[str],
        start: int,
        end: int,
        tables: set[str],
        columns: list[int],
        lookback_min: int,
        folder: Path,
        progress: Progress,
        key: str,
    ) -> None:
        self.symbols = symbols
        self._store = store
        self._start, self._end = start, end
        self._begin = start - (lookback_min + 60) * MINUTE_MS
        self._tables = tables
        self._columns = columns
        self._folder = folder
        self._progress = progress
        self._key = key
        self._done = self._total = 0

    async def each(self) -> dict[str, Any]:
        """Symbol by symbol; what is said of each in the manifest."""
        pieces = list(_pieces(self._begin, self._end, _PIECE_MS))
        self._total = len(pieces) * len(self.symbols)
        places = asyncio.Semaphore(_AT_ONCE)

        async def one(symbol: str) -> dict[str, Any]:
            async with places:
                if (finished := self._finished(symbol)) is not None:
                    self._advance(len(pieces))
                    return finished
                replay = SymbolReplay(columns=self._columns)
                with _SymbolFiles(self._folder, symbol, len(self._columns)) as files:
                    for begin, end in pieces:
                        history = await self._history(symbol, begin, end)
                        await asyncio.to_thread(self._write, files, replay, history)
                        self._advance()
                about = files.about()
            _note_of(self._folder, symbol).write_text(json.dumps({"key": self._key, **about}), encoding="utf-8")
            return about

        async with asyncio.TaskGroup() as group:
            tasks = {symbol: group.create_task(one(symbol)) for symbol in self.symbols}
        return {symbol: task.result() for symbol, task in tasks.items()}

    async def universe(self) -> dict[str, Any]:
        """All symbols side by side, for columns that compare them; what is said of each in the manifest."""
        pieces = list(_pieces(self._begin, self._end, _UNIVERSE_PIECE_MS))
        self._total = len(pieces)
        replay = UniverseReplay(self.symbols)
        with ExitStack() as stack:
            files = {
                symbol: stack.enter_context(_SymbolFiles(self._folder, symbol, len(self._columns)))
                for symbol in self.symbols
            }
            for begin, end in pieces:
                histories = {symbol: await self._history(symbol, begin, end) for symbol in self.symbols}

                def write(histories: Mapping[str, SymbolHistory] = histories) -> None:
                    for part in replay.run(histories, self._start, self._end):
                        for symbol, (times, vectors) in part.items():
                            files[symbol].add(times, vectors[:, self._columns])

                await asyncio.to_thread(write)
                self._advance()
        return {symbol: each.about() for symbol, each in files.items()}

    def _write(self, files: "_SymbolFiles", replay: SymbolReplay, history: SymbolHistory) -> None:
        for times, vectors in replay.run(history, self._start, self._end, reuse=True):
            files.add(times, vectors)

    async def _history(self, symbol: str, begin: int, end: int) -> SymbolHistory:
        return await symbol_history(self._store, symbol, begin, end, tables=self._tables)

    def _finished(self, symbol: str) -> dict[str, Any] | None:
        """What an earlier build of the same, that was broken off, has written of a symbol."""
        try:
            note: dict[str, Any] = json.loads(_note_of(self._folder, symbol).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return note if note.pop("key", None) == self._key else None

    def _advance(self, by: int = 1) -> None:
        self._done += by
        self._progress(self._done, self._total)


class _SymbolFiles:
    """The two files of a symbol while rows are added. They get their names when they are whole."""

    def __init__(self, folder: Path, symbol: str, width: int) -> None:
        self._paths = [folder / f"{symbol}.{kind}.npy" for kind in ("times", "features")]
        self._width = width
        self._files: list[BinaryIO] = []
        self._rows = 0
        self._first = self._last = 0
        self._days: dict[str, tuple[Any, Any]] = {}
        """Of each day the digests of its times and of its vectors: two, so that portions do not matter."""

    def __enter__(self) -> Self:
        self._files = [path.with_suffix(".part").open("wb") for path in self._paths]
        for file in self._files:
            file.write(bytes(HEAD_BYTES))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        heads = (_head("<i8", (self._rows,)), _head("<f4", (self._rows, self._width)))
        for file, head, path in zip(self._files, heads, self._paths, strict=True):
            file.seek(0)
            file.write(head)
            file.close()
            if kind is None:
                os.replace(path.with_suffix(".part"), path)

    def add(self, times: Times, vectors: Vectors) -> None:
        """Add rows, later ones than those before."""
        times, vectors = np.ascontiguousarray(times, "<i8"), np.ascontiguousarray(vectors, "<f4")
        self._files[0].write(times.data)
        self._files[1].write(vectors.data)
        days = times // _DAY_MS
        for day in np.unique(days).tolist():
            first, last = np.searchsorted(days, (day, day + 1))
            name = str(np.datetime64(day, "D"))
            of_times, of_vectors = self._days.setdefault(name, (sha256(), sha256()))
            of_times.update(times[first:last].data)
            of_vectors.update(vectors[first:last].data)
        self._first = self._first or int(times[0])
        self._last = int(times[-1])
        self._rows += len(times)

    def about(self) -> dict[str, Any]:
        """What the manifest says of the symbol."""
        return {
            "rows": self._rows,
            "first_close": self._first or None,
            "last_close": self._last or None,
            "sha256_by_day": {
                day: sha256(of_times.digest() + of_vectors.digest()).hexdigest()
                for day, (of_times, of_vectors) in self._days.items()
            },
        }


def _head(kind: str, shape: tuple[int, ...]) -> bytes:
    """The head of a .npy file of version 1.0, always of the same length."""
    text = repr({"descr": kind, "fortran_order": False, "shape": shape})
    return b"\x93NUMPY\x01\x00" + (HEAD_BYTES - 10).to_bytes(2, "little") + text.ljust(HEAD_BYTES - 11).encode() + b"\n"


def _prepare(folder: Path) -> None:
    """Make the folder, or take away what says that it is finished."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = [path for path in folder.iterdir() if not path.name.startswith(".")]
        if there and not any(path.suffix in (".npy", ".part") or path.name == "manifest.json" for path in there):
            raise NeedsPerson(f"{folder} holds something else: name a new folder")
        (folder / "manifest.json").unlink(missing_ok=True)
    except OSError as error:
        raise NeedsPerson(f"cannot write to {folder}: {error.strerror or error}") from None


def _note_of(folder: Path, symbol: str) -> Path:
    return folder / f".{symbol}.json"


def _pieces(start: int, end: int, length: int) -> Iterable[tuple[int, int]]:
    for begin in range(start, end, length):
        yield begin, min(begin + length, end)


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
