"""Histories and feature rows made up for tests of training: small, seeded, without store or kernel."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perpline.domain.exit_rule import LabelRule
from perpline.features.catalogue import SCHEMAS, schema_hash
from perpline.storage.history import SymbolHistory
from perpline.storage.store import TABLES, Store
from perpline.training.examples import Examples, join
from perpline.training.labels import label, price_path

MINUTE = 60_000
START = 1_700_006_400_000  # a midnight

PRICE = ("open", "high", "low", "close")


def columns(names: tuple[str, ...], time: str) -> dict[str, NDArray[Any]]:
    empty: dict[str, NDArray[Any]] = {name: np.zeros(0) for name in names}
    return {time: np.zeros(0, np.int64), **empty}


def random_walk(
    minutes: int, seed: int = 0, symbol: str = "BTCUSDT", volatility: float = 1e-3, start: int = START
) -> SymbolHistory:
    """A walk without drift whose volatility changes by the hour; the mark price is the last price, a hair beside it."""
    rng = np.random.default_rng(seed)
    sigma = volatility * np.exp(0.5 * np.repeat(rng.normal(size=minutes // 60 + 1), 60)[:minutes])
    close = 100.0 * np.exp(np.cumsum(rng.standard_t(5, minutes) * sigma * math.sqrt(3 / 5)))
    opened = np.concatenate([[100.0], close[:-1]])
    return from_prices(opened, close, sigma, rng, symbol, start)


def from_prices(
    opened: NDArray[np.float64],
    close: NDArray[np.float64],
    sigma: NDArray[np.float64],
    rng: np.random.Generator,
    symbol: str = "BTCUSDT",
    start: int = START,
) -> SymbolHistory:
    n = len(close)
    high = np.maximum(opened, close) * np.exp(np.abs(rng.normal(size=n)) * sigma / 2)
    low = np.minimum(opened, close) * np.exp(-np.abs(rng.normal(size=n)) * sigma / 2)
    volume = rng.gamma(2.0, 5.0, n)
    times = start + np.arange(n, dtype=np.int64) * MINUTE
    logs = {
        f"log_{name}": np.floor(np.log(value) * 2**30 + 0.5).astype(np.int64)
        for name, value in zip(PRICE, (opened, high, low, close), strict=True)
    }
    candles: dict[str, NDArray[Any]] = {
        "open_time": times,
        "open": opened,
        "high": high,
        "low": low,
        "close": close,
        "volume": volume,
        "quote_volume": volume * close,
        "taker_buy_volume": volume * rng.uniform(0.3, 0.7, n),
        "trades": rng.integers(1, 50, n),
        "synthetic": np.zeros(n, np.bool_),
        **logs,
    }
    wiggle = np.exp(rng.normal(0, 2e-5, n))
    mark = {"open_time": times, **{name: candles[name] * wiggle for name in PRICE}}
    return SymbolHistory(
        symbol=symbol,
        candles=candles,
        mark=mark,
        index=columns(PRICE, "open_time"),
        premium=columns(PRICE, "open_time"),
        funding={
            "funding_time": np.zeros(0, np.int64),
            "rate": np.zeros(0),
            "interval_hours": np.zeros(0),
            "known_at": np.zeros(0, np.int64),
        },
        open_interest={
            "time": np.zeros(0, np.int64),
            "open_interest": np.zeros(0),
            "open_interest_value": np.zeros(0),
            "known_at": np.zeros(0, np.int64),
            "revision": np.zeros(0, np.int64),
        },
        ratios={},
        book={"minute": np.zeros(0, np.int64)},
    )


NAMES = ("ret_1", "zret_15", "zret_60", "rv_60", "eff_60", "tbi_15", "hour_move")
LOOKBACK = 121


def simple_rows(history: SymbolHistory, start: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """A few honest columns of closed candles, each of the last 60 minutes at most; a stand-in for the kernel."""
    opened, close = history.candles["open_time"], np.log(history.candles["close"])
    times = opened + MINUTE
    steps = np.diff(close, prepend=close[:1])
    path = np.cumsum(np.abs(steps))
    squares = np.cumsum(steps**2)

    def ago(values: NDArray[np.float64], minutes: int) -> NDArray[np.float64]:
        return np.concatenate([np.full(min(minutes, len(values)), np.nan), values[:-minutes]])

    sigma = np.sqrt((squares - ago(squares, 60)) / 60)
    buys, volume = np.cumsum(history.candles["taker_buy_volume"]), np.cumsum(history.candles["volume"])
    flow = 2 * (buys - ago(buys, 15)) / (volume - ago(volume, 15)) - 1
    hour = np.where((times // MINUTE) % 60 == 0, close - ago(close, 60), np.nan)
    closed = np.array([hour[max(0, at - at_minute)] for at, at_minute in enumerate((times // MINUTE) % 60)])
    columns = [
        close - ago(close, 1),
        (close - ago(close, 15)) / sigma,
        (close - ago(close, 60)) / sigma,
        np.log(sigma),
        (close - ago(close, 60)) / (path - ago(path, 60)),
        flow,
        closed,
    ]
    # Sums from the beginning of the history would differ in the last bit with where it begins.
    rows = np.round(np.stack(columns, axis=1), 7).astype(np.float32)
    inside = (times >= start) & (times < end)
    return times[inside], rows[inside]


def with_edge(minutes: int, seed: int, edge_bp: float = 4.0, symbol: str = "BTCUSDT") -> SymbolHistory:
    """A walk that drifts by `edge_bp` a minute with the takers while their flow of 15 minutes is lopsided."""
    rng = np.random.default_rng(seed)
    lean = np.repeat(rng.choice([-1, 0, 0, 1], minutes // 120 + 1), 120)[:minutes]
    share = np.clip(0.5 + 0.2 * lean + rng.normal(0, 0.1, minutes), 0.02, 0.98)
    flow = np.convolve(2 * share - 1, np.ones(15) / 15)[:minutes]
    drift = np.where(np.abs(flow) > 0.2, np.sign(flow), 0.0) * edge_bp * 1e-4
    drift = np.concatenate([[0.0], drift[:-1]])
    sigma = np.full(minutes, 8e-4)
    close = 100.0 * np.exp(np.cumsum(drift - drift.mean() + rng.normal(size=minutes) * sigma))
    history = from_prices(np.concatenate([[100.0], close[:-1]]), close, sigma, rng, symbol)
    history.candles["taker_buy_volume"] = history.candles["volume"] * share
    return history


def examples_of(histories: list[SymbolHistory], rule: LabelRule) -> Examples:
    """Histories joined with their labels and the simple columns."""
    dataset = {each.symbol: simple_rows(each, 0, 1 << 60) for each in histories}
    labels = {each.symbol: label(price_path(each, rule), dataset[each.symbol][0], rule) for each in histories}
    return join(dataset, labels, NAMES, ("zret_60",))


async def store_history(store: Store, history: SymbolHistory) -> None:
    """Put candles, mark price candles and funding of a history into a store."""
    candles, count = history.candles, len(history.candles["open_time"])
    same: dict[str, Any] = {
        "symbol": history.symbol,
        "source": "archive",
        "received_at": 0,
        "taker_buy_quote_volume": 0.0,
        "mark_price": 0.0,
    }
    for table, columns, time in (
        ("candles_1m", {**candles, "close_time": candles["open_time"] + MINUTE - 1}, "open_time"),
        ("mark_klines", history.mark, "open_time"),
        ("funding_rates", history.funding, "funding_time"),
    ):
        listed = {name: values.tolist() for name, values in columns.items()}
        size = len(columns[time])
        whole = [listed.get(name, [same.get(name)] * size) for name in TABLES[table].columns]
        await store.add_rows(table, list(zip(*whole, strict=True)))
    assert count


def write_dataset(folder: Path, histories: list[SymbolHistory], schema: str) -> None:
    """A dataset as `perpline features build` leaves it; columns that the simple rows do not have are noise."""
    folder.mkdir(parents=True)
    names = [feature.name for feature in SCHEMAS[schema]]
    for number, history in enumerate(histories):
        times, known = simple_rows(history, 0, 1 << 60)
        rng = np.random.default_rng(number)
        rows = rng.normal(size=(len(times), len(names))).astype(np.float32)
        for name in set(names) & set(NAMES):
            rows[:, names.index(name)] = known[:, NAMES.index(name)]
        np.save(folder / f"{history.symbol}.times.npy", times)
        np.save(folder / f"{history.symbol}.features.npy", rows)
    manifest = {
        "format": 1,
        "schema": schema,
        "schema_hash": schema_hash(SCHEMAS[schema]),
        "features": names,
        "symbols": {history.symbol: {} for history in histories},
        "dataset_hash": "0" * 32,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def quiet(stage: str, done: int, total: int) -> None:
    """Progress that only checks that it makes sense."""
    assert 0 <= done <= total, stage
