"""Stored histories for tests of what is computed from them: random walks in a database, and a model for them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from modelling import FEATURES, RULE, write_model
from perpline.domain.candle import Candle
from perpline.domain.exit_rule import label_hash
from perpline.domain.market import RATIOS
from perpline.domain.signal import Decision, Prediction, Status, signal_id
from perpline.features.live import LiveFeatures
from perpline.inference.artefact import LoadedModel, load_artefact
from perpline.storage.history import HISTORY_TABLES, SymbolHistory
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import Columns, candle_row, column_array
from training import MINUTE, random_walk

LOOKBACK = max(feature.lookback_min for feature in FEATURES)
SLOT = "champion"


def walk(minutes: int, seed: int = 1, symbol: str = "BTCUSDT", **changes: float) -> SymbolHistory:
    """A random walk with every series that a kernel may look at, those that are not candles or mark prices empty."""

    def empty(table: str) -> Columns:
        return {column: column_array(column, ()) for column in HISTORY_TABLES[table]}

    history = random_walk(minutes, seed, symbol, **changes)
    return replace(
        history,
        ratios={ratio: empty("long_short_ratio") for ratio in RATIOS},
        book=empty("book_minutes"),
    )


def trend_follower(folder: Path, *, threshold: float = 0.55, tp_pct: float = 0.4) -> LoadedModel:
    """Buys what takers buy: signals of both sides in a random walk, and trades that last minutes to hours."""
    rule = replace(RULE, tp_pct=tp_pct, sl_pct=tp_pct, horizon_s=3600, cost_bp=4.0)
    path = write_model(
        folder,
        {"tbi_15": 2.0, "zret_15": 0.2},
        critical=["zret_15", "tbi_60"],
        threshold=threshold,
        label=rule,
        label_hash=label_hash(rule),
    )
    return load_artefact(path)


def candles_of(history: SymbolHistory, received_after_ms: int = 500) -> list[Candle]:
    """The history's candles, each received so long after its close."""
    rows = {name: values.tolist() for name, values in history.candles.items()}
    return [
        Candle(
            "1m",
            history.symbol,
            t,
            t + MINUTE - 1,
            *(rows[name][at] for name in ("open", "high", "low", "close", "volume", "quote_volume", "trades")),
            rows["taker_buy_volume"][at],
            rows["taker_buy_volume"][at] * rows["close"][at],
            *(rows[name][at] for name in ("log_open", "log_high", "log_low", "log_close")),
            bool(rows["synthetic"][at]),
            "ws",
            t + MINUTE + received_after_ms,
        )
        for at, t in enumerate(rows["open_time"])
    ]


async def store_history(store: SqliteStore, history: SymbolHistory, candles: Sequence[Candle] | None = None) -> None:
    """Its candles (or these) and mark prices into the tables."""
    await store.add_rows("candles_1m", [candle_row(candle) for candle in candles or candles_of(history)])
    mark = {name: values.tolist() for name, values in history.mark.items()}
    await store.add_rows(
        "mark_klines",
        [
            (history.symbol, t, *(mark[name][at] for name in ("open", "high", "low", "close")), "archive", t)
            for at, t in enumerate(mark["open_time"])
        ],
    )


async def walk_in(store: SqliteStore, minutes: int, seed: int = 1, symbol: str = "BTCUSDT") -> SymbolHistory:
    history = walk(minutes, seed, symbol)
    await store_history(store, history)
    return history


async def serve(
    store: SqliteStore,
    model: LoadedModel,
    candles: Sequence[Candle],
    *,
    from_minute: int = LOOKBACK,
    late_mask: int = 0,
) -> list[Prediction]:
    """Store what a live worker would have: a vector and a prediction for each of these candles, as they come."""
    features = LiveFeatures([candles[0].symbol], model.lookback_min)
    predictions, decisions = [], []
    for number, candle in enumerate(candles):
        features.add(candle)
        if number < from_minute:
            continue
        t = candle.open_time + MINUTE
        served = np.ascontiguousarray(features.vectors([candle.symbol])[:, model.columns], np.float32)
        asked = not np.isnan(served[:, model.critical_columns]).any()
        raw, p = model.predict(served) if asked else (np.full((1, 2), np.nan),) * 2
        predictions.append(
            Prediction(
                slot=SLOT,
                symbol=candle.symbol,
                close_time=t,
                model_id=model.model_id,
                p_long_raw=float(raw[0, 0]) if asked else None,
                p_short_raw=float(raw[0, 1]) if asked else None,
                p_long=float(p[0, 0]) if asked else None,
                p_short=float(p[0, 1]) if asked else None,
                features=served.astype("<f4").tobytes(),
                feat_ref="",
            )
        )
        decisions.append(
            Decision(
                signal_id=signal_id(SLOT, model.model_id, candle.symbol, t),
                slot=SLOT,
                symbol=candle.symbol,
                close_time=t,
                side=0,
                status=Status.FLAT,
                model_id=model.model_id,
                late_mask=late_mask,
                t_features=(t + 600) * 1000,
            )
        )
    await store.commit_decisions(decisions, predictions, [], 0)
    return predictions
