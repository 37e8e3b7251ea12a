"""Vectors of stored history for a model: symbol by symbol, or of a whole universe where the model asks for one."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perpline.domain.candle import MINUTE_MS
from perpline.features.batch import UniverseReplay
from perpline.features.catalogue import CATALOGUE, Feature
from perpline.storage.history import HISTORY_TABLES, symbol_history
from perpline.storage.store import Store

Ints = NDArray[np.int64]
Vectors = NDArray[np.float32]

PIECE_MS = 1440 * MINUTE_MS
_WIDTH = len(CATALOGUE)


def needs_universe(features: Sequence[Feature]) -> bool:
    """Whether some column compares symbols with each other (group K)."""
    return any(feature.group == "K" for feature in features)


def tables_of(features: Sequence[Feature]) -> set[str]:
    """The tables of a history that these columns are made of."""
    return {table for feature in features for table in feature.tables} & HISTORY_TABLES.keys() | {"candles_1m"}


async def write_universe(
    store: Store, symbols: Sequence[str], features: Sequence[Feature], start: int, end: int, folder: Path
) -> None:
    """Files in `folder` with the vectors of all these symbols for the closes start <= T < end, a day at a time, so that
    memory does not grow with the span. `read_universe` gives them back."""
    lookback_ms = (max(feature.lookback_min for feature in features) + 60) * MINUTE_MS
    replay = UniverseReplay(symbols)
    with ExitStack() as stack:
        files = {
            symbol: [stack.enter_context((folder / f"{symbol}.{kind}").open("wb")) for kind in ("times", "vectors")]
            for symbol in symbols
        }
        for begin in range(start - lookback_ms, end, PIECE_MS):
            until = min(begin + PIECE_MS, end)
            histories = {
                symbol: await symbol_history(store, symbol, begin, until, tables=tables_of(features))
                for symbol in symbols
            }
            # A candle that opens in this piece closes at its end at the latest, and belongs to it.
            for part in replay.run(histories, start, min(until + 1, end)):
                for symbol, (times, vectors) in part.items():
                    files[symbol][0].write(times.tobytes())
                    files[symbol][1].write(vectors.tobytes())


def read_universe(folder: Path, symbol: str, chunk: int = 20_000) -> Iterator[tuple[Ints, Vectors]]:
    """What `write_universe` wrote of a symbol, in portions."""
    times = np.fromfile(folder / f"{symbol}.times", np.int64)
    if len(times):
        vectors = np.memmap(folder / f"{symbol}.vectors", np.float32, "r", shape=(len(times), _WIDTH))
        for at in range(0, len(times), chunk):
            yield times[at : at + chunk], np.array(vectors[at : at + chunk])
