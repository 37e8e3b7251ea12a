"""Histories of a made-up market: calm and wild stretches, minutes without trades, holes, late and revised rows."""

import math

import numpy as np
from numpy.typing import NDArray

from perpline.domain.candle import Candle, quantised_log
from perpline.storage.history import SymbolHistory

MINUTE = 60_000
START = 1_790_000_100_000 // MINUTE * MINUTE
"""2026-09-21, after the formula of funding changed."""

Columns = dict[str, NDArray]


def world(
    minutes: int,
    seed: int = 1,
    *,
    start: int = START,
    symbol: str = "BTCUSDT",
    holes: float = 0.0,
    steady: bool = False,
    market: NDArray | None = None,
    exchange_keeps: float = 1.0,
) -> SymbolHistory:
    """Everything a feature may use, of so many minutes from `start` on.

    `steady` leaves out the extremes, so that each number depends on each input; `holes` is the share of candles that
    are missing; of other series a share of `exchange_keeps` exists. `market` are log returns to move along with.
    """
    rng = np.random.default_rng(seed)
    opens = start + MINUTE * np.arange(minutes)
    step = np.full(minutes, 1e-3)
    flat = np.zeros(minutes, bool)
    if not steady:
        for place in np.flatnonzero(rng.random(minutes) < 0.01):
            step[place:] = 10 ** rng.uniform(-5, -2)
            flat[place:] = rng.random() < 0.2
    returns = np.where(flat, 0.0, rng.normal(0, 1, minutes) * step)
    if market is not None:
        returns = returns + market[:minutes]
    if not steady:
        returns += np.where(rng.random(minutes) < 0.001, rng.choice([-0.5, 0.5], minutes), 0)
    first = math.exp(rng.uniform(-8, 10))
    tick = 10.0 ** math.floor(math.log10(first)) * 1e-6  # so that another processor's exp makes the same market
    close = ticked(first * np.exp(np.cumsum(returns)), tick)
    open_ = np.concatenate([close[:1], close[:-1]])
    wick = np.where(flat, 0.0, step)
    high = ticked(np.maximum(open_, close) * np.exp(rng.exponential(1, minutes) * wick), tick)
    low = ticked(np.minimum(open_, close) * np.exp(-rng.exponential(1, minutes) * wick), tick)
    traded = np.ones(minutes, bool) if steady else ~flat & (rng.random(minutes) > 0.05)
    volume = np.where(traded, np.round(1 + rng.exponential(1000, minutes), 3), 0.0)
    bought = np.round(volume * rng.random(minutes), 3)
    candles = {
        "open_time": opens,
        "open": open_,
        "high": high,
        "low": low,
        "close": close,
        "volume": volume,
        "quote_volume": volume * close,
        "taker_buy_volume": bought,
        "trades": np.where(traded, rng.integers(1, 500, minutes), 0),
        **{
            f"log_{name}": logs(prices)
            for name, prices in zip(("open", "high", "low", "close"), (open_, high, low, close), strict=True)
        },
        "synthetic": np.zeros(minutes, bool),
    }
    if holes:
        candles = only(candles, rng.random(minutes) >= holes)
    index = ticked(close * np.exp(rng.normal(0, 2e-4, minutes)), tick)
    mark = ticked(close * np.exp(rng.normal(0, 1e-4, minutes)), tick)
    premium = np.round(np.cumsum(rng.normal(0, 1e-5, minutes)) * 0.99 + rng.normal(0, 1e-5, minutes), 8)
    hours = np.arange(-(-start // 3_600_000), -(-(start + minutes * MINUTE) // 3_600_000))
    interval = 4 if seed % 2 else 8
    settled = hours[hours % interval == 0] * 3_600_000
    ends = np.arange(-(-start // 300_000), -(-(start + minutes * MINUTE) // 300_000)) * 300_000
    interest = np.round(1e6 * np.exp(np.cumsum(rng.normal(0, 2e-3, len(ends)))), 3)
    return SymbolHistory(
        symbol=symbol,
        candles=candles,
        mark=_bars(opens, mark, rng, exchange_keeps),
        index=_bars(opens, index, rng, exchange_keeps),
        premium=_bars(opens, premium, rng, exchange_keeps),
        funding={
            "funding_time": settled + rng.integers(0, 9, len(settled)),
            "rate": np.round(rng.normal(1e-4, 1e-4, len(settled)), 8),
            "interval_hours": np.full(len(settled), float(interval)),
            "known_at": settled + 60_000,
        },
        open_interest=_periods(
            rng,
            "time",
            ends,
            {"open_interest": interest, "open_interest_value": interest * 30},
            exchange_keeps,
        ),
        ratios={
            name: _periods(
                rng,
                "period_end",
                ends,
                {"value": np.round(np.exp(0.5 + np.cumsum(rng.normal(0, 5e-3, len(ends)))), 4)},
                exchange_keeps,
            )
            for name in ("global_account", "top_account", "top_position", "taker")
        },
        book={
            "minute": opens,
            "bid": close * (1 - 1e-4),
            "bid_qty": rng.exponential(10, minutes),
            "ask": close * (1 + 1e-4 * rng.random(minutes)),
            "ask_qty": rng.exponential(10, minutes),
            "spread_bps": rng.uniform(0.5, 2.5, minutes),
            "imbalance": rng.uniform(-1, 1, minutes),
            "order_flow_imbalance": rng.normal(0, 500, minutes),
            "updates": rng.integers(1, 99, minutes),
            "receive_lag_ms": rng.uniform(1, 9, minutes),
            "updated_at": opens + MINUTE - rng.integers(1, 200 if steady else 7_000, minutes),
        },
    )


def ticked(prices: NDArray, tick: float) -> NDArray:
    return np.maximum(np.round(prices / tick), 1.0) * tick


def logs(prices: NDArray) -> NDArray:
    return np.array([quantised_log(price) for price in prices.tolist()], np.int64)


def only(columns: Columns, keep: NDArray) -> Columns:
    return {name: values[keep] for name, values in columns.items()}


def until(history: SymbolHistory, end: int) -> SymbolHistory:
    """The rows whose time is before `end`, known by then or not."""

    def cut(columns: Columns, time: str) -> Columns:
        return only(columns, columns[time] < end)

    return SymbolHistory(
        symbol=history.symbol,
        candles=cut(history.candles, "open_time"),
        mark=cut(history.mark, "open_time"),
        index=cut(history.index, "open_time"),
        premium=cut(history.premium, "open_time"),
        funding=cut(history.funding, "funding_time"),
        open_interest=cut(history.open_interest, "time"),
        ratios={name: cut(columns, "period_end") for name, columns in history.ratios.items()},
        book=cut(history.book, "minute"),
    )


def candles_of(history: SymbolHistory) -> list[Candle]:
    columns = history.candles
    return [
        candle(history.symbol, **{name: values[place].item() for name, values in columns.items()})
        for place in range(len(columns["open_time"]))
    ]


def candle(symbol: str, open_time: int, **values: object) -> Candle:
    return Candle(
        interval="1m",
        symbol=symbol,
        open_time=open_time,
        close_time=open_time + MINUTE - 1,
        taker_buy_quote_volume=0.0,
        source="ws",
        received_at=0,
        **values,  # type: ignore[arg-type]
    )


def _bars(opens: NDArray, closes: NDArray, rng: np.random.Generator, keeps: float) -> Columns:
    bars = {"open_time": opens, "open": closes, "high": closes, "low": closes, "close": closes}
    return bars if keeps == 1 else only(bars, rng.random(len(opens)) < keeps)


def _periods(rng: np.random.Generator, time: str, ends: NDArray, values: Columns, keeps: float) -> Columns:
    """Most are known after two minutes, a few later; some are revised, which nobody may notice."""
    known_at = ends + 120_000
    revision = np.zeros(len(ends), np.int64)
    if keeps < 1:
        known_at = np.where(rng.random(len(ends)) < 0.05, ends + rng.integers(120_000, 1_800_000, len(ends)), known_at)
        revised = rng.random(len(ends)) < 0.05
        keep = np.concatenate([rng.random(len(ends)) < keeps, revised])
        known_at = np.concatenate([known_at, known_at + rng.integers(0, 600_000, len(ends))])[keep]
        ends = np.concatenate([ends, ends])[keep]
        revision = np.concatenate([revision, revision + 1])[keep]
        values = {name: np.concatenate([v, v * 1.5])[keep] for name, v in values.items()}
    order = np.lexsort((ends, known_at))
    columns = {time: ends, **values, "known_at": known_at, "revision": revision}
    return {name: column[order] for name, column in columns.items()}
