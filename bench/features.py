"""What features cost: history by the symbol-year and to disk, a close live; beside pandas, polars and TA-Lib."""

import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from bench.results import Table
from perpline.domain.candle import MINUTE_MS
from perpline.domain.market import RATIOS
from perpline.features import kernel
from perpline.features.batch import SymbolReplay
from perpline.features.catalogue import CATALOGUE, CORE, columns_of
from perpline.features.live import LiveFeatures, compile_kernel
from perpline.inference.artefact import LoadedModel
from perpline.inference.registry import load_default
from perpline.signals.scoring import score
from perpline.storage.history import SymbolHistory
from perpline.training.dataset import _SymbolFiles

Say = Callable[[str], None]

YEAR = 525_600
START = 1_760_000_400_000
COLD_BYTES = 320 << 20
WINDOWS = (5, 15, 60, 240, 1440)


def features(minutes: int, years: int, symbols: list[int], closes: int, rounds: int, say: Say) -> list[Table]:
    """Three tables; `minutes` of history count as a symbol-year in proportion."""
    compile_kernel()
    history = made_up(minutes)
    on_disk = to_disk(history, years, say)  # first: its peak of memory is not to be the competitors'
    return [of_history(history, rounds, say), on_disk, per_close(symbols, closes, say)]


# ---- history


def of_history(history: SymbolHistory, rounds: int, say: Say) -> Table:
    """Everybody's seconds for a symbol-year, in turns within one run."""
    count = len(history.candles["open_time"])
    contestants: list[tuple[str, int, Callable[[], object]]] = [
        ("perpline, all series", len(CATALOGUE), partial(_replay, history)),
        ("perpline, candles only", 71, partial(_replay, _candles_only(history))),
    ]
    for name, make in (("pandas rolling", _pandas), ("polars rolling", _polars), ("TA-Lib", _talib)):
        try:
            contestants.append((name, *make(history)))
        except ImportError:
            say(f"{name} is not installed (bench extra)")
    taken: dict[str, list[float]] = {name: [] for name, _, _ in contestants}
    for number in range(rounds):
        for name, _, run in contestants:
            say(f"{name}, round {number + 1} of {rounds}")
            began = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - began)
    scale = YEAR / count
    rows: list[tuple[str | float | int | None, ...]] = [
        (name, columns, median(taken[name]) * scale, median(taken[name]) * 1e6 / count / columns)
        for name, columns, _ in contestants
    ]
    return Table(
        "Features of history, one process",
        ("who", "columns", "s per symbol-year", "µs per row and column"),
        rows,
        (
            f"Medians of {rounds} turns over {count:,} candles, scaled to a year of {YEAR:,}.",
            "pandas and polars: sums, deviations, extremes and means of returns, volume and range over five windows.",
        ),
    )


def _replay(history: SymbolHistory) -> None:
    for _ in SymbolReplay().run(history, 0, 1 << 60, reuse=True):
        pass


def _pandas(history: SymbolHistory) -> tuple[int, Callable[[], object]]:
    import pandas as pd

    frame = pd.DataFrame(_plain(history))

    def run() -> object:
        made = {}
        for w in WINDOWS:
            for name in ("r", "r2", "volume", "quote_volume"):
                made[name, w, "sum"] = frame[name].rolling(w).sum()
            made["std", w] = frame["r"].rolling(w).std()
            made["max", w] = frame["high"].rolling(w).max()
            made["min", w] = frame["low"].rolling(w).min()
            made["mean", w] = frame["close"].rolling(w).mean()
        return pd.DataFrame(made).to_numpy(np.float32)

    return 8 * len(WINDOWS), run


def _polars(history: SymbolHistory) -> tuple[int, Callable[[], object]]:
    import polars as pl

    frame = pl.DataFrame(_plain(history))
    wanted = [
        expression
        for w in WINDOWS
        for expression in (
            *(pl.col(name).rolling_sum(w).alias(f"{name}{w}") for name in ("r", "r2", "volume", "quote_volume")),
            pl.col("r").rolling_std(w).alias(f"std{w}"),
            pl.col("high").rolling_max(w).alias(f"max{w}"),
            pl.col("low").rolling_min(w).alias(f"min{w}"),
            pl.col("close").rolling_mean(w).alias(f"mean{w}"),
        )
    ]
    return len(wanted), lambda: frame.select(wanted).to_numpy().astype(np.float32)


def _talib(history: SymbolHistory) -> tuple[int, Callable[[], object]]:
    import talib

    plain = _plain(history)

    def run() -> object:
        made = []
        for w in WINDOWS:
            made += [talib.SUM(plain[name], w) for name in ("r", "r2", "volume", "quote_volume")]
            made.append(talib.STDDEV(plain["r"], w))
            made += [talib.MAX(plain["high"], w), talib.MIN(plain["low"], w), talib.SMA(plain["close"], w)]
        return np.stack(made, axis=1).astype(np.float32)

    return 8 * len(WINDOWS), run


def _plain(history: SymbolHistory) -> dict[str, NDArray[np.float64]]:
    candles = history.candles
    r = np.diff(candles["log_close"], prepend=candles["log_close"][:1]) / 2**30
    names = ("high", "low", "close", "volume", "quote_volume")
    return {**{name: candles[name] for name in names}, "r": r, "r2": r * r}


# ---- to disk


def to_disk(history: SymbolHistory, years: int, say: Say) -> Table:
    """The core columns of so many symbols to files, two at a time, each from the same history in memory."""
    folder = Path(tempfile.mkdtemp(prefix="perpline-features-"))
    columns = columns_of(CORE)

    def one(number: int) -> int:
        with _SymbolFiles(folder, f"S{number}", len(columns)) as files:
            for times, vectors in SymbolReplay(columns=columns).run(history, 0, 1 << 60, reuse=True):
                files.add(times, vectors)
        return sum(path.stat().st_size for path in folder.glob(f"S{number}.*"))

    try:
        say(f"{years} symbols to disk")
        began = time.perf_counter()
        with ThreadPoolExecutor(2) as pool:
            written = sum(pool.map(one, range(years)))
        seconds = time.perf_counter() - began
    finally:
        shutil.rmtree(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    minutes = len(history.candles["open_time"])
    return Table(
        "A dataset to disk, two symbols at a time",
        ("symbols", "candles each", "MB written", "s", "s per symbol-year", "peak memory MB"),
        [(years, minutes, written / 1e6, seconds, seconds / years * YEAR / minutes, peak / 1e6)],
        (
            "All series, 100 columns, with the digests of the manifest. Reading the store is not in it. Peak memory is "
            "that of the whole process, with the history of a symbol in memory.",
        ),
    )


# ---- live


def per_close(symbols: list[int], closes: int, say: Say) -> Table:
    """Vectors of all symbols that close together: the compiled call, LiveFeatures.vectors, and the model's answer."""
    model = load_default()
    rows: list[tuple[str | float | int | None, ...]] = []
    cold = np.zeros(COLD_BYTES // 8)
    for count in symbols:
        names = [f"S{number}USDT" for number in range(count)]
        live = LiveFeatures(names)
        say(f"{count} symbols: filling the windows")
        one = SymbolReplay()
        one.take(made_up(12_000))
        one.vectors(1 << 60, 1 << 60)
        live._ints[:], live._floats[:] = one.ints, one.floats
        places, times = np.arange(count), np.full(count, model.manifest.train.to + MINUTE_MS)
        out, late = np.empty((count, kernel.WIDTH)), np.empty(count, np.int64)
        alone = partial(kernel.finish, live._ints, live._floats, places, live._rules, out, late)
        for caches in ("warm", "cold"):
            say(f"{count} symbols, {caches} caches")
            steps: tuple[tuple[str, Callable[[], object]], ...] = (
                ("kernel", alone),
                ("LiveFeatures.vectors", partial(live.vectors, names)),
                ("vectors and model", partial(_answer, model, live, names, times)),
            )
            for what, run in steps:
                run()
                taken = []
                for _ in range(closes):
                    if caches == "cold":
                        cold += 1.0
                    began = time.perf_counter()
                    run()
                    taken.append((time.perf_counter() - began) * 1e3)
                rows.append((f"{what}, {caches}", count, *np.percentile(taken, (50, 99)).tolist()))
    return Table(
        "Features of a close, all symbols together",
        ("what", "symbols", "p50 ms", "p99 ms"),
        rows,
        (
            f"{closes} closes each. Cold: {COLD_BYTES >> 20} MB are rewritten before each call.",
            f"model: {model.model_id}, {len(model.features)} columns, one call of ONNX Runtime for all symbols, with "
            "calibration and the share of columns out of bounds.",
        ),
    )


def _answer(model: LoadedModel, live: LiveFeatures, names: list[str], times: NDArray[np.int64]) -> object:
    return score(model, live.vectors(names), times)


# ---- the market


def made_up(minutes: int) -> SymbolHistory:
    """A walk with everything that a feature may use."""
    rng = np.random.default_rng(1)
    opens = START + MINUTE_MS * np.arange(minutes)
    close = 100.0 * np.exp(np.cumsum(rng.standard_t(4, minutes) * 5e-4))
    open_ = np.concatenate([close[:1], close[:-1]])
    high = np.maximum(open_, close) * (1 + rng.exponential(3e-4, minutes))
    low = np.minimum(open_, close) * (1 - rng.exponential(3e-4, minutes))
    volume = np.round(rng.exponential(1000, minutes), 3)
    prices = dict(zip(("open", "high", "low", "close"), (open_, high, low, close), strict=True))
    ends = np.arange(-(-START // 300_000), (START + minutes * MINUTE_MS) // 300_000) * 300_000
    hours = np.arange(-(-START // 28_800_000), (START + minutes * MINUTE_MS) // 28_800_000) * 28_800_000

    def bars(values: NDArray[np.float64]) -> dict[str, NDArray[np.generic]]:
        return {"open_time": opens, "open": values, "high": values, "low": values, "close": values}

    def periods(time: str, name: str) -> dict[str, NDArray[np.generic]]:
        values = np.round(np.exp(1 + np.cumsum(rng.normal(0, 3e-3, len(ends)))), 4)
        return {time: ends, name: values, "known_at": ends + 120_000, "revision": np.zeros(len(ends), np.int64)}

    interest = periods("time", "open_interest")
    return SymbolHistory(
        symbol="BTCUSDT",
        candles={
            "open_time": opens,
            **prices,
            "volume": volume,
            "quote_volume": volume * close,
            "taker_buy_volume": volume * rng.random(minutes),
            "trades": rng.integers(0, 500, minutes),
            **{
                f"log_{name}": np.floor(np.log(values) * 2**30 + 0.5).astype(np.int64)
                for name, values in prices.items()
            },
            "synthetic": np.zeros(minutes, bool),
        },
        mark=bars(close * (1 + rng.normal(0, 1e-4, minutes))),
        index=bars(close * (1 + rng.normal(0, 1e-4, minutes))),
        premium=bars(rng.normal(1e-4, 1e-4, minutes)),
        funding={
            "funding_time": hours,
            "rate": rng.normal(1e-4, 1e-5, len(hours)),
            "interval_hours": np.full(len(hours), 8.0),
            "known_at": hours + 60_000,
        },
        open_interest={**interest, "open_interest_value": interest["open_interest"] * 100.0},
        ratios={ratio: periods("period_end", "value") for ratio in RATIOS},
        book=_empty_book(),
    )


def _logs(prices: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.floor(np.log(prices) * 2**30 + 0.5).astype(np.int64)


def _candles_only(history: SymbolHistory) -> SymbolHistory:
    def none(columns: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        return {name: values[:0] for name, values in columns.items()}

    return SymbolHistory(
        symbol=history.symbol,
        candles=history.candles,
        mark=none(history.mark),
        index=none(history.index),
        premium=none(history.premium),
        funding=none(history.funding),
        open_interest=none(history.open_interest),
        ratios={name: none(columns) for name, columns in history.ratios.items()},
        book=history.book,
    )


def _empty_book() -> dict[str, NDArray[np.generic]]:
    names = ("bid", "bid_qty", "ask", "ask_qty", "spread_bps", "imbalance", "order_flow_imbalance", "updated_at")
    return {"minute": np.empty(0, np.int64), **{name: np.empty(0) for name in names}}
