"""What live computed, computed again from stored rows: which cells have other bits (features.md 1.4, no. 10)."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from perpline.backtest.models import load_named
from perpline.backtest.stored import after_holes, candle_arrivals, quoted, repaired_since
from perpline.backtest.vectors import needs_universe, read_universe, tables_of, write_universe
from perpline.common.errors import NeedsPerson
from perpline.domain.candle import MINUTE_MS
from perpline.features.batch import vectors_of
from perpline.features.catalogue import Feature, late_bits
from perpline.inference.artefact import LoadedModel
from perpline.storage.history import symbol_history
from perpline.storage.store import Store

TOLERANCE = 1e-6
"""How far a probability may be off: on the machine that computed it and with its ONNX Runtime it is exact."""
SHOWN_COLUMNS = 20


class Parity(Struct, kw_only=True):
    """The comparison of stored predictions with history, all slots and models together. Cells are single features."""

    start: int
    end: int
    symbols: int = 0
    rows: int = 0
    """Stored predictions that were computed again."""
    cells: int = 0
    mismatch_cells: int = 0
    """Cells whose float32 bits differ and nothing explains it. NaN equals NaN."""
    late_cells: int = 0
    """Cells of columns whose input live said was late; not counted as mismatches."""
    late_differing: int = 0
    repaired_cells: int = 0
    """Cells of rows within whose window a candle was stored after live had decided, and cells without a value because
    of a hole in live's window that was filled beside it; not counted as mismatches."""
    repaired_differing: int = 0
    max_abs: float = 0.0
    """The largest difference among the mismatches; inf where only one side has a value."""
    worst_column: str = ""
    columns: dict[str, int] = field(default_factory=dict)
    """Mismatches by column, most first."""
    mismatch_probabilities: int = 0
    """Raw and calibrated ones that are off by more than TOLERANCE in rows whose cells agree."""
    max_abs_probability: float = 0.0
    without_history: int = 0
    """Stored predictions whose candle is not stored."""
    refused: dict[str, str] = field(default_factory=dict)
    """Models that cannot be served any more, and why; their rows were not computed again."""
    refused_rows: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.mismatch_cells and not self.mismatch_probabilities


class _Row(Struct, frozen=True, gc=False):
    """A stored prediction with what its decision said."""

    close_time: int
    model_id: str
    features: bytes
    probabilities: tuple[float | None, ...]
    """Raw long, raw short, long, short."""
    late_mask: int
    decided_at: int


async def compare(
    store: Store,
    models_dir: Path,
    slot: str,
    start: int,
    end: int,
    *,
    compared: Callable[[int], None] = lambda _: None,
) -> Parity:
    """Compute every stored prediction with start <= T < end (ms) again. `compared(n)` is told of each n symbols more.

    Decisions of `slot` say which inputs were late. Raises NeedsPerson where there is no prediction, Unavailable as the
    store does.
    """
    found = await store.select(
        "SELECT symbol, model_id, count(*) FROM predictions "
        f"WHERE close_time >= {start} AND close_time < {end} GROUP BY symbol, model_id ORDER BY symbol, model_id"
    )
    if not found:
        raise NeedsPerson("no prediction is stored for these minutes")
    made = Parity(start=start, end=end)
    models: dict[str, LoadedModel] = {}
    for model_id in sorted({model_id for _, model_id, _ in found}):
        try:
            models[model_id] = load_named(models_dir, model_id)
        except NeedsPerson as error:
            made.refused[model_id] = str(error)
    made.refused_rows = sum(rows for _, model_id, rows in found if model_id in made.refused)
    features = sorted({feature for model in models.values() for feature in model.features}, key=lambda each: each.name)
    symbols = sorted({symbol for symbol, model_id, _ in found if model_id in models})
    mismatches: Counter[str] = Counter()
    with TemporaryDirectory(prefix="perpline-parity-") as name:
        folder = Path(name)
        if needs_universe(features):
            await write_universe(store, symbols, features, start, end, folder)
        for symbol in symbols:
            await _compare_symbol(store, made, mismatches, models, features, slot, symbol, folder)
            compared(1)
    made.symbols = len(symbols)
    made.columns = dict(mismatches.most_common(SHOWN_COLUMNS))
    return made


async def _compare_symbol(
    store: Store,
    made: Parity,
    mismatches: Counter[str],
    models: dict[str, LoadedModel],
    features: Sequence[Feature],
    slot: str,
    symbol: str,
    folder: Path,
) -> None:
    lookback_min = max(feature.lookback_min for feature in features)
    rows = await _rows(store, slot, symbol, made.start, made.end)
    arrivals = await candle_arrivals(store, symbol, made.start - lookback_min * MINUTE_MS, made.end)
    decided = sorted({row.close_time: row.decided_at for row in rows if row.decided_at}.items())
    repaired = repaired_since(arrivals, decided, lookback_min)
    after_hole = after_holes(await store.gaps(), symbol, {row.close_time for row in rows}, lookback_min)
    if needs_universe(features):
        portions = read_universe(folder, symbol)
    else:
        before = made.start - (lookback_min + 60) * MINUTE_MS
        history = await symbol_history(store, symbol, before, made.end, tables=tables_of(features))
        portions = vectors_of(history, made.start, made.end)
    by_time: defaultdict[int, list[_Row]] = defaultdict(list)
    for row in rows:
        by_time[row.close_time].append(row)
    for times, whole in portions:
        for model_id, model in models.items():
            at = [
                (place, row)
                for place, t in enumerate(times.tolist())
                for row in by_time.get(t, ())
                if row.model_id == model_id
            ]
            if at:
                again = np.ascontiguousarray(whole[[place for place, _ in at]][:, model.columns], np.float32)
                _compare_rows(made, mismatches, model, symbol, [row for _, row in at], again, repaired, after_hole)
    stored = set((arrivals[0] + MINUTE_MS).tolist())
    made.without_history += sum(row.model_id in models and row.close_time not in stored for row in rows)


def _compare_rows(
    made: Parity,
    mismatches: Counter[str],
    model: LoadedModel,
    symbol: str,
    rows: Sequence[_Row],
    again: NDArray[np.float32],
    repaired: set[int],
    after_hole: set[int],
) -> None:
    names = [feature.name for feature in model.features]
    width = len(names)
    # A vector of another length is none of this model's columns: all of them count as different.
    nothing = np.full(width, np.inf, "<f4").tobytes()
    bits = [row.features if len(row.features) == 4 * width else nothing for row in rows]
    live = np.frombuffer(b"".join(bits), "<f4").reshape(len(rows), width).astype(np.float32)
    differs = (live.view(np.uint32) != again.view(np.uint32)) & ~(np.isnan(live) & np.isnan(again))
    masks = np.array([row.late_mask for row in rows], np.int64)
    late = (masks[:, None] & np.array([late_bits([feature]) for feature in model.features], np.int64)) != 0
    mended = np.array([row.close_time in repaired for row in rows])[:, None] & ~late
    holed = np.array([row.close_time in after_hole for row in rows])[:, None] & ~late & ~mended
    filled = differs & np.isnan(live) & holed
    made.rows += len(rows)
    made.cells += differs.size
    made.late_cells += int(late.sum())
    made.late_differing += int(differs[late].sum())
    made.repaired_cells += int(mended.sum()) + int(filled.sum())
    made.repaired_differing += int(differs[mended].sum()) + int(filled.sum())
    wrong = differs & ~(late | mended | filled)
    made.mismatch_cells += int(wrong.sum())
    for column in np.flatnonzero(wrong.any(axis=0)).tolist():
        mismatches[names[column]] += int(wrong[:, column].sum())
    if wrong.any():
        with np.errstate(invalid="ignore"):
            apart = np.abs(live.astype(np.float64) - again.astype(np.float64))
        apart = np.where(wrong, np.where(np.isnan(apart), np.inf, apart), -1.0)
        worst = int(apart.argmax())
        if not made.worst_column or apart.flat[worst] > made.max_abs:
            made.max_abs, made.worst_column = float(apart.flat[worst]), names[worst % width]
        for row, column in np.argwhere(wrong)[: max(0, SHOWN_COLUMNS - len(made.examples))].tolist():
            made.examples.append(
                {
                    "symbol": symbol,
                    "close_time": rows[row].close_time,
                    "column": names[column],
                    "live": _number(live[row, column]),
                    "again": _number(again[row, column]),
                }
            )
    _compare_probabilities(made, model, rows, again, ~differs.any(axis=1))


def _compare_probabilities(
    made: Parity, model: LoadedModel, rows: Sequence[_Row], again: NDArray[np.float32], agree: NDArray[np.bool_]
) -> None:
    """Of the rows whose features agree: live's probabilities beside those of the same model now."""
    if not agree.any():
        return
    raw, calibrated = model.predict(again[agree])
    asked = ~np.isnan(again[agree][:, model.critical_columns]).any(axis=1, keepdims=True)
    now = np.where(asked, np.concatenate([raw, calibrated], axis=1), np.nan)
    then = np.array(
        [
            [np.nan if p is None else p for p in row.probabilities]
            for row, each in zip(rows, agree.tolist(), strict=True)
            if each
        ]
    )
    off = np.abs(np.where(np.isnan(then) & np.isnan(now), 0.0, then - now))
    off = np.where(np.isnan(off), np.inf, off)
    made.mismatch_probabilities += int((off > TOLERANCE).sum())
    made.max_abs_probability = max(made.max_abs_probability, float(off.max()))


async def _rows(store: Store, slot: str, symbol: str, start: int, end: int) -> list[_Row]:
    found = await store.select(
        "SELECT p.close_time, p.model_id, p.features, p.p_long_raw, p.p_short_raw, p.p_long, p.p_short, "
        "s.late_mask, s.t_features FROM predictions p LEFT JOIN signals s "
        f"ON s.slot = {quoted(slot)} AND s.symbol = p.symbol AND s.close_time = p.close_time "
        f"WHERE p.symbol = {quoted(symbol)} AND p.close_time >= {start} AND p.close_time < {end} ORDER BY p.close_time"
    )
    return [
        _Row(close_time, model_id, bytes(features), tuple(ps), late_mask or 0, (t_features or 0) // 1000)
        for close_time, model_id, features, *ps, late_mask, t_features in found
    ]


def _number(value: float) -> float | None:
    return None if value != value else float(value)
