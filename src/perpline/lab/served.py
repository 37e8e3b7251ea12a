"""The vector that a decision was made of, byte for byte as it was stored, and whether history gives it again."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from perpline.bootstrap import utc_text
from perpline.common.errors import NeedsPerson
from perpline.domain.candle import MINUTE_MS
from perpline.features.batch import UniverseReplay, vectors_of
from perpline.features.catalogue import COLUMN, Feature, by_name, late_bits, lookback_of, schema_hash
from perpline.inference.artefact import Manifest
from perpline.inference.registry import find_manifest
from perpline.lab.frames import INPUTS, VECTOR, As, Frame, from_columns, from_rows
from perpline.storage.history import HISTORY_TABLES, SymbolHistory, symbol_history
from perpline.storage.store import TABLES, Store

Vector = NDArray[np.float32]


class Served(Struct, frozen=True, kw_only=True, eq=False):
    """What the model was given, and from where. NaN is no value."""

    symbol: str
    close_time: datetime
    close_time_ms: int
    slot: str
    model_id: str
    status: str
    """Of the decision; empty in a shadow's slot, where nothing is decided."""
    side: int
    p_long: float | None
    p_short: float | None
    names: tuple[str, ...]
    """In the order of the model; their places as text where its manifest cannot be read."""
    values: Vector
    """float32 [len(names)], read-only: the stored bytes as numbers."""
    bits: bytes
    """The stored bytes: float32, little endian."""
    feat_ref: str
    """blake2b-128 of the bytes, as the decision has it."""
    feat_ref_holds: bool
    """Whether the bytes have that sum."""
    recomputed: Vector | None
    """What the kernel makes of the rows that are stored now; None where it cannot, because of `problem`."""
    same_bits: bool | None
    """Whether that is the same in every bit (NaN equals NaN); None where nothing could be compared."""
    differing: tuple[str, ...]
    """The columns that are not the same."""
    problem: str
    frame: Frame
    """A row for each column, in order: VECTOR."""
    inputs: Frame
    """A row for each table that it is made of: INPUTS. `came_later` counts rows that were stored after the decision,
    which are why a column may differ, as is an input that was `late`."""

    def __getitem__(self, name: str) -> float:
        """The served value of a column."""
        return float(self.values[self.names.index(name)])

    def __repr__(self) -> str:
        held = "holds" if self.feat_ref_holds else "DOES NOT HOLD"
        again = (
            f"not recomputed: {self.problem}"
            if self.same_bits is None
            else "recomputed with the same bits"
            if self.same_bits
            else f"recomputed, other bits in {', '.join(self.differing[:5])}{' …' if len(self.differing) > 5 else ''}"
        )
        return (
            f"<{self.symbol} at {utc_text(self.close_time_ms)}, {self.slot}: {len(self.names)} features for "
            f"{self.model_id}, feat_ref {held}, {again}>"
        )


async def served_vector(
    store: Store, models_dir: Path, symbol: str, t: int, slot: str, deciding_slot: str, as_: As
) -> Served:
    """The vector of this symbol, close (ms) and slot; decisions of `deciding_slot` say what was late where the slot is
    a shadow's. Raises NeedsPerson where there is none."""
    decision = await _decision(store, symbol, t, slot)
    found = await store.select(
        "SELECT model_id, p_long, p_short, features, feat_ref FROM predictions "
        f"WHERE slot = '{slot}' AND symbol = '{symbol}' AND close_time = {t}"
    )
    if not found:
        raise NeedsPerson(await _why_none(store, symbol, t, slot, decision))
    [(model_id, p_long, p_short, stored, feat_ref)] = found
    bits = bytes(stored)
    values = np.frombuffer(bits, "<f4")
    late_mask, decided_at = (decision or await _decision(store, symbol, t, deciding_slot) or ("", 0, 0, 0))[2:]
    manifest, features, problem = _features_of(models_dir, model_id, len(values))
    recomputed: Vector | None = None
    if features and not problem:
        recomputed = await _recomputed(store, features, symbol, t, slot)
        problem = "" if recomputed is not None else "the candle that closed then is not stored any more"
    same = _same(values, recomputed)
    names = tuple(feature.name for feature in features) or tuple(str(place) for place in range(len(values)))
    bounds = manifest.ood if manifest is not None and features else None
    columns: dict[str, Any] = {
        "name": names,
        "group": [feature.group for feature in features] or [None] * len(names),
        "served": values,
        "recomputed": [None] * len(names) if recomputed is None else recomputed,
        "same": same,
        "late": [bool(late_bits([feature]) & late_mask) for feature in features] or [None] * len(names),
        "low": [None] * len(names) if bounds is None else bounds.low,
        "high": [None] * len(names) if bounds is None else bounds.high,
        "made_of": [", ".join(feature.inputs) for feature in features] or [None] * len(names),
    }
    return Served(
        symbol=symbol,
        close_time=datetime.fromtimestamp(t / 1000, UTC),
        close_time_ms=t,
        slot=slot,
        model_id=model_id,
        status="" if decision is None else decision[0],
        side=0 if decision is None else decision[1],
        p_long=p_long,
        p_short=p_short,
        names=names,
        values=values,
        bits=bits,
        feat_ref=feat_ref,
        feat_ref_holds=blake2b(bits, digest_size=16).hexdigest() == feat_ref,
        recomputed=recomputed,
        same_bits=None if recomputed is None else all(same),
        differing=tuple(name for name, each in zip(names, same, strict=True) if each is False),
        problem=problem,
        frame=from_columns(columns, VECTOR, as_),
        inputs=await _inputs(store, features, symbol, t, late_mask, decided_at, as_),
    )


async def _decision(store: Store, symbol: str, t: int, slot: str) -> tuple[str, int, int, int] | None:
    """Status, side, late mask, and when it was made (ms of our clock)."""
    rows = await store.select(
        "SELECT status, side, late_mask, t_features FROM signals "
        f"WHERE slot = '{slot}' AND symbol = '{symbol}' AND close_time = {t}"
    )
    return (rows[0][0], int(rows[0][1]), int(rows[0][2]), int(rows[0][3]) // 1000) if rows else None


async def _why_none(store: Store, symbol: str, t: int, slot: str, decision: tuple[str, int, int, int] | None) -> str:
    about = f"{symbol} at {utc_text(t)}"
    if decision is not None:
        return f"{slot} decided {about} without asking the model ({decision[0]}): there is no vector"
    [[first, last]] = await store.select(
        f"SELECT min(close_time), max(close_time) FROM signals WHERE slot = '{slot}' AND symbol = '{symbol}'"
    )
    known = f"they go from {utc_text(first)} to {utc_text(last)}" if first else "there is none about it at all"
    return f"there is no decision of {slot} about {about}; {known}"


def _features_of(models_dir: Path, model_id: str, width: int) -> tuple[Manifest | None, tuple[Feature, ...], str]:
    """The model's manifest and columns, and why the kernel of today does not make them, if so."""
    try:
        manifest = find_manifest(models_dir, model_id)
    except NeedsPerson as error:
        return None, (), str(error)
    names = [feature.name for feature in manifest.features]
    if len(names) != width:
        return manifest, (), f"the vector has {width} values and the model {len(names)} columns"
    if unknown := [name for name in names if name not in by_name]:
        return manifest, (), f"the catalogue has no {', '.join(unknown[:5])} any more"
    features = tuple(by_name[name] for name in names)
    changed = schema_hash(features) != manifest.schema_hash
    return manifest, features, "the catalogue's formulas have changed since it was trained" if changed else ""


async def _recomputed(store: Store, features: Sequence[Feature], symbol: str, t: int, slot: str) -> Vector | None:
    """These columns by the kernel from what is stored; None without the candle that closed at t.

    As `perpline parity` does it: with columns that compare symbols, those of all that were scored in that minute.
    """
    begin = t - (lookback_of(features) + 60) * MINUTE_MS
    tables = {table for feature in features for table in feature.tables} & HISTORY_TABLES.keys() | {"candles_1m"}
    columns = [COLUMN[feature.name] for feature in features]

    async def history(name: str) -> SymbolHistory:
        return await symbol_history(store, name, begin, t + 1, tables=tables)

    if any(feature.group == "K" for feature in features):
        rows = await store.select(
            f"SELECT symbol FROM predictions WHERE slot = '{slot}' AND close_time = {t} ORDER BY symbol"
        )
        symbols = [str(name) for (name,) in rows]
        histories = {name: await history(name) for name in symbols}
        portions = [part[symbol] for part in UniverseReplay(symbols).run(histories, t, t + 1) if symbol in part]
    else:
        portions = list(vectors_of(await history(symbol), t, t + 1))
    return np.ascontiguousarray(portions[-1][1][-1, columns], np.float32) if portions else None


def _same(served: Vector, recomputed: Vector | None) -> list[bool] | list[None]:
    if recomputed is None:
        return [None] * len(served)
    bits = served.astype(np.float32).view(np.uint32) == recomputed.view(np.uint32)
    same: list[bool] = (bits | (np.isnan(served) & np.isnan(recomputed))).tolist()
    return same


async def _inputs(
    store: Store, features: Sequence[Feature], symbol: str, t: int, late_mask: int, decided_at: int, as_: As
) -> Frame:
    """Of each table the rows within the windows of the columns that are made of it."""
    rows: list[tuple[Any, ...]] = []
    for name in sorted({table for feature in features for table in feature.tables} & TABLES.keys()):
        table = TABLES[name]
        mine = [feature for feature in features if name in feature.tables]
        told = [column for column in ("source", "received_at") if column in table.columns]
        only = {"kind": "hist_5m"} if name == "open_interest" else None
        begin = t - lookback_of(mine) * MINUTE_MS
        found = await store.series(name, symbol, begin, t, (table.time, *told), only)
        times = found[table.time].tolist()
        sources = Counter(found["source"].tolist()) if "source" in told else Counter()
        later = int((found["received_at"] > decided_at).sum()) if decided_at and "received_at" in told else None
        rows.append(
            (
                name,
                len(times),
                times[0] if times else None,
                times[-1] if times else None,
                ", ".join(f"{source} {count:,}" for source, count in sources.most_common()),
                later,
                bool(late_bits(mine) & late_mask),
            )
        )
    return from_rows(rows, INPUTS, as_)
