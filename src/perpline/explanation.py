"""One decision and everything it was made of, as the tables and the model's folder have it."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from perpline.bootstrap import open_store, utc_text
from perpline.common.config import Settings
from perpline.common.errors import NeedsPerson
from perpline.domain.candle import MINUTE_MS
from perpline.domain.signal import Decision, Prediction
from perpline.inference.artefact import Manifest
from perpline.inference.registry import find_manifest
from perpline.storage.store import Store
from perpline.trading.books import read

SHOWN_CANDLES = 5


class NoRow(NeedsPerson):
    """Nobody decided this minute."""


async def explain_facts(
    store: Store, models_dir: Path, symbol: str, t: int, slot: str, speed: float = 1.0
) -> dict[str, Any]:
    """Everything about the decision of this slot on this symbol at T (ms): plain values, None for what is not there.

    `speed` is that of the market it was made in. Raises NoRow where there is none, ValueError for a name that can be
    none.
    """
    if not re.fullmatch(r"\w{1,40}", symbol) or not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,31}", slot):
        raise ValueError("these are no names")
    where = f"symbol = '{symbol}' AND close_time = {t} AND slot = '{slot}'"
    decision = await _row(store, "signals", (*Decision.__struct_fields__, "seq", "t_commit"), where)
    prediction = await _row(store, "predictions", Prediction.__struct_fields__, where)
    if decision is None and prediction is None:
        raise NoRow(f"there is no decision of {slot} about {symbol} at {utc_text(t)}")
    model_id = (decision or prediction or {})["model_id"]
    manifest, problem = _manifest(models_dir, model_id)
    lookback = max((feature.lookback_min or 1 for feature in manifest.features), default=1) if manifest else 1441
    start = t - lookback * MINUTE_MS
    candles = await store.candles("1m", symbol, start, t)
    outbox = await _row(
        store, "outbox", ("id", "payload", "valid_until", "published_at"), f"{where} AND kind = 'signal'"
    )
    traded = outcome = None
    if decision is not None:
        traded = await _traded(store, decision["signal_id"])
        outcome = next(iter(await read(store, "signal_outcomes", signal_id=decision["signal_id"])), None)
    gaps = await store.select(
        "SELECT from_time, to_time, cause, repaired_by FROM gaps WHERE series = 'candles_1m' "
        f"AND symbol = '{symbol}' AND from_time < {t} AND to_time > {start} ORDER BY id"
    )
    vector = _vector(prediction, manifest)
    return {
        "symbol": symbol,
        "close_time": t,
        "slot": slot,
        "decision": decision,
        "prediction": None
        if prediction is None
        else {name: prediction[name] for name in ("p_long_raw", "p_short_raw", "p_long", "p_short", "feat_ref")},
        "vector": vector,
        "model": {
            "model_id": model_id,
            "problem": problem,
            "threshold": None if manifest is None else manifest.threshold,
            "ev_min_bp": None if manifest is None else manifest.ev_min_bp,
            "max_ood_share": None if manifest is None or manifest.ood is None else manifest.ood.max_share,
            "critical": [] if manifest is None else manifest.critical,
            "note": "" if manifest is None else manifest.note,
            "dataset_hash": None if manifest is None else manifest.dataset_hash,
        },
        "candles": {
            "wanted": lookback,
            "stored": len(candles),
            "synthetic": sum(candle.synthetic for candle in candles),
            "sources": sorted({candle.source for candle in candles}),
            "gaps": [
                {"from": begin, "to": end, "cause": cause, "repaired_by": repaired_by}
                for begin, end, cause, repaired_by in gaps
            ],
            "last": [
                {
                    "open_time": candle.open_time,
                    **{
                        name: _number(getattr(candle, name))
                        for name in ("open", "high", "low", "close", "volume", "taker_buy_volume")
                    },
                    "trades": candle.trades,
                    "source": candle.source,
                    "received_at": candle.received_at,
                }
                for candle in candles[-SHOWN_CANDLES:]
            ],
        },
        "latency_ms": None if decision is None else _latency(decision, outbox, speed),
        "outbox": outbox,
        "trading": traded,
        "outcome": outcome,
    }


async def explain_stored(settings: Settings, symbol: str, t: int, slot: str) -> dict[str, Any]:
    """The same from the database of these settings, opened for it and closed again."""
    store = open_store(settings.database_url.get_secret_value(), read_only=True)
    await store.open()
    try:
        return await explain_facts(store, settings.models_dir, symbol, t, slot, settings.clock_speed)
    finally:
        await store.close()


async def _traded(store: Store, signal_id: str) -> dict[str, list[dict[str, Any]]]:
    """What became of a signal: refusals, positions, and their orders, stops and executions."""
    positions = await read(store, "positions", signal_id=signal_id)
    found: dict[str, list[dict[str, Any]]] = {
        "refusals": await read(store, "refusals", signal_id=signal_id),
        "positions": positions,
        "orders": [],
        "fills": [],
    }
    for position in positions:
        for table in ("orders", "fills"):
            found[table] += await read(store, table, position["account"], position_id=position["position_id"])
    return found


async def _row(store: Store, table: str, columns: tuple[str, ...], where: str) -> dict[str, Any] | None:
    names = ", ".join(f'"{column}"' for column in columns)
    rows = await store.select(f"SELECT {names} FROM {table} WHERE {where}")
    return dict(zip(columns, rows[0], strict=True)) if rows else None


def _manifest(models_dir: Path, model_id: str) -> tuple[Manifest | None, str | None]:
    try:
        return find_manifest(models_dir, model_id), None
    except NeedsPerson as error:
        return None, str(error)


def _vector(prediction: dict[str, Any] | None, manifest: Manifest | None) -> list[dict[str, Any]]:
    """Each feature's value; its clip and whether it lies there, or beyond what training had."""
    if prediction is None:
        return []
    values = np.frombuffer(prediction["features"], "<f4").tolist()
    if manifest is None or len(manifest.features) != len(values):
        return [{"name": str(place), "value": _number(value)} for place, value in enumerate(values)]
    entries = []
    for place, (feature, value) in enumerate(zip(manifest.features, values, strict=True)):
        low = high = None
        if manifest.ood is not None:
            low, high = manifest.ood.low[place], manifest.ood.high[place]
        entries.append(
            {
                "name": feature.name,
                "value": _number(value),
                "clip": feature.clip,
                "clipped": feature.clip is not None and value in feature.clip,
                "unusual": (low is not None and value < low) or (high is not None and value > high),
                "critical": feature.name in manifest.critical,
            }
        )
    return entries


def _latency(decision: dict[str, Any], outbox: dict[str, Any] | None, speed: float) -> dict[str, float | None]:
    """Wall milliseconds from one stage to the next; None where a stage was not reached.

    t_commit is when the database was handed the decision: what it took itself is in `published`.
    """
    stages = [decision[name] or None for name in ("t_candle_recv", "t_features", "t_predict", "t_commit")]
    stages.append(outbox["published_at"] * 1000 if outbox and outbox["published_at"] else None)
    steps = zip(("features", "predict", "decide", "published"), stages, stages[1:], strict=False)
    return {name: None if a is None or b is None else round((b - a) / 1000 / speed, 3) for name, a, b in steps}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
