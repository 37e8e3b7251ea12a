"""What live has stored of its decisions, to be compared with what history says now."""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from perpline.domain.candle import MINUTE_MS
from perpline.domain.signal import Status
from perpline.storage.store import Gap, Store

Ints = NDArray[np.int64]
REMEMBERED_MS = 24 * 60 * MINUTE_MS
"""As long as live remembers a signal for the cooldown."""


class LiveRow(Struct, frozen=True, gc=False):
    """A row of `signals`, as far as it is compared."""

    close_time: int
    signal_id: str
    status: str
    side: int
    p: float | None
    late_mask: int
    decided_at: int
    """ms of our clock; 0 for a minute that was missed."""


async def live_rows(store: Store, slot: str, model_id: str, symbol: str, start: int, end: int) -> list[LiveRow]:
    """The decisions of this model with start <= T < end, oldest first."""
    rows = await store.select(
        "SELECT close_time, signal_id, status, side, p_cal, late_mask, t_features FROM signals "
        f"WHERE slot = {quoted(slot)} AND model_id = {quoted(model_id)} AND symbol = {quoted(symbol)} "
        f"AND close_time >= {start} AND close_time < {end} ORDER BY close_time"
    )
    return [
        LiveRow(close_time, name, status, side, p, late_mask, t_features // 1000)
        for close_time, name, status, side, p, late_mask, t_features in rows
    ]


async def last_signals(store: Store, slot: str, model_id: str, symbol: str, before: int) -> dict[int, int]:
    """T of this model's last signal of each side before the instant, as a cooldown remembers it."""
    rows = await store.select(
        "SELECT side, max(close_time) FROM signals "
        f"WHERE slot = {quoted(slot)} AND model_id = {quoted(model_id)} AND symbol = {quoted(symbol)} "
        f"AND status = '{Status.OK}' AND close_time >= {before - REMEMBERED_MS} AND close_time < {before} GROUP BY side"
    )
    return {int(side): int(close_time) for side, close_time in rows}


async def stored_symbols(store: Store, start: int, end: int) -> list[str]:
    """Symbols with a 1m candle in [start, end)."""
    rows = await store.select(
        f"SELECT DISTINCT symbol FROM candles_1m WHERE open_time >= {start} AND open_time < {end} ORDER BY symbol"
    )
    return [str(symbol) for (symbol,) in rows]


async def candle_arrivals(store: Store, symbol: str, start: int, end: int) -> tuple[Ints, Ints]:
    """Open time and arrival (ms) of every stored 1m candle that opened in [start, end)."""
    rows = await store.series("candles_1m", symbol, start, end, ("open_time", "received_at"))
    return rows["open_time"], rows["received_at"]


def repaired_since(arrivals: tuple[Ints, Ints], decided: Sequence[tuple[int, int]], lookback_min: int) -> set[int]:
    """Of these decisions (T, decided at; by T) the T of those within whose window lies a candle that came later.

    What was stored afterwards, to fill a hole, live could not know.
    """
    if not decided:
        return set()
    opened, received = arrivals
    times = np.array([t for t, _ in decided], np.int64)
    at = np.array([moment for _, moment in decided], np.int64)
    first = np.searchsorted(times, opened, side="right")  # the first decision that could have used the candle
    late = (first < len(times)) & (received > at[np.minimum(first, len(times) - 1)])
    found: set[int] = set()
    for opening, arrival in zip(opened[late].tolist(), received[late].tolist(), strict=True):
        span = slice(*np.searchsorted(times, (opening, opening + lookback_min * MINUTE_MS), side="right").tolist())
        found.update(times[span][at[span] < arrival].tolist())
    return found


def after_holes(gaps: Iterable[Gap], symbol: str, times: Iterable[int], lookback_min: int) -> set[int]:
    """Of these closes those within whose window lies a minute that was once noted as missing, repaired or not."""
    holes = [gap for gap in gaps if gap.symbol == symbol and gap.series == "candles_1m"]
    return {t for t in times if any(gap.from_time < t and gap.to_time > t - lookback_min * MINUTE_MS for gap in holes)}


def quoted(name: str) -> str:
    """A name as SQL text. Raises ValueError for one that no symbol, slot or model has."""
    if not re.fullmatch(r"[\w.-]{0,120}", name):
        raise ValueError(f"{name!r} is no name")
    return f"'{name}'"
