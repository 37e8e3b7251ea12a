"""Stored history through the live engine's policy, exit rule and fills: symbol by symbol, one position at a time."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from perpline.backtest.decisions import decide_history, recorded
from perpline.backtest.stored import LiveRow, after_holes, candle_arrivals, last_signals, live_rows, repaired_since
from perpline.backtest.trades import Trade, follow
from perpline.backtest.vectors import Ints, Vectors, needs_universe, read_universe, tables_of, write_universe
from perpline.domain.candle import MINUTE_MS
from perpline.domain.exit_rule import LabelRule
from perpline.domain.signal import Status, signal_id
from perpline.features.batch import vectors_of
from perpline.inference.artefact import LoadedModel
from perpline.signals.policy import Verdict
from perpline.storage.history import SymbolHistory, symbol_history
from perpline.storage.store import Store
from perpline.training.labels import price_path

SHOWN_DIFFERENCES = 20
BARS = 240
"""As many candles as a chart shows at most."""
LAST_TRADES = 30


class Signal(Struct, frozen=True, kw_only=True):
    """A decision with status ok."""

    signal_id: str
    symbol: str
    close_time: int
    side: int
    p: float
    ev_bp: float
    traded: bool
    """False where a position of the symbol was open."""


class Agreement(Struct, kw_only=True):
    """This model's stored live decisions beside those of the backtest: status, side, probability and signal id."""

    rows: int = 0
    same: int = 0
    differing: int = 0
    repaired: int = 0
    """They differ, and a candle of their window was missing or was stored only after live had decided."""
    late: int = 0
    """They differ, and live said that an input was late."""
    missed: int = 0
    """Live had no time to decide them (`skipped_missed`); not compared."""
    examples: list[dict[str, Any]] = field(default_factory=list)
    """The first of `differing`."""


class Bars(Struct):
    """Candles for drawing, of `minutes` each."""

    minutes: int
    time: list[int]
    open: list[float]
    high: list[float]
    low: list[float]
    close: list[float]


class SymbolRun(Struct, kw_only=True):
    """What the backtest found for one symbol."""

    symbol: str
    minutes: int
    """Closes that were decided."""
    statuses: dict[str, int]
    assumed_fresh: dict[str, int]
    """Minutes whose age of mark price and book nobody recorded."""
    signals: list[Signal]
    trades: list[Trade]
    live: Agreement
    bars: Bars
    last_bars: Bars
    """Shorter ones, around the last LAST_TRADES trades."""
    has_mark: bool


async def backtest_symbols(
    store: Store,
    model: LoadedModel,
    symbols: Sequence[str],
    start: int,
    end: int,
    *,
    rule: LabelRule,
    slot: str,
    decided: Callable[[int], None] = lambda _: None,
) -> list[SymbolRun]:
    """Every symbol's run over the closes start <= T < end (ms), one after the other, so that memory is that of one.

    `rule` is the model's, or the same on another price. `decided(n)` is told of every n minutes more. Raises
    Unavailable as the store does.
    """
    with TemporaryDirectory(prefix="perpline-backtest-") as name:
        folder = Path(name)
        universe = needs_universe(model.features)
        if universe:
            await write_universe(store, symbols, model.features, start, end, folder)
        return [
            await backtest_symbol(
                store,
                model,
                symbol,
                start,
                end,
                rule=rule,
                slot=slot,
                decided=decided,
                vectors=read_universe(folder, symbol) if universe else None,
            )
            for symbol in symbols
        ]


async def backtest_symbol(
    store: Store,
    model: LoadedModel,
    symbol: str,
    start: int,
    end: int,
    *,
    rule: LabelRule,
    slot: str,
    decided: Callable[[int], None] = lambda _: None,
    vectors: Iterable[tuple[Ints, Vectors]] | None = None,
) -> SymbolRun:
    """Decide the closes start <= T < end (ms), and follow the trades to their ends, also beyond `end`.

    `vectors` are those of the whole span, made here from stored rows where none are given.
    """
    history = await symbol_history(
        store,
        symbol,
        start - (model.lookback_min + 60) * MINUTE_MS,
        end + rule.horizon_s * 1000,
        tables=tables_of(model.features) | {"mark_klines", "funding_rates"},
    )
    mark = await recorded(store, "premium_index", symbol, start, end)
    book = await recorded(store, "book_minutes", symbol, start, end)
    last_ok = await last_signals(store, slot, model.model_id, symbol, start)
    stored = {row.close_time: row for row in await live_rows(store, slot, model.model_id, symbol, start, end)}
    repaired: set[int] = set()
    if stored:
        arrivals = await candle_arrivals(store, symbol, start - model.lookback_min * MINUTE_MS, end)
        repaired = repaired_since(
            arrivals, [(t, row.decided_at) for t, row in stored.items() if row.decided_at], model.lookback_min
        )
        repaired |= after_holes(await store.gaps(), symbol, stored, model.lookback_min)
    path = price_path(history, rule)
    run = SymbolRun(
        symbol=symbol,
        minutes=0,
        statuses={},
        assumed_fresh={},
        signals=[],
        trades=[],
        live=Agreement(),
        bars=_bars(history, start, end),
        last_bars=_bars(history, 0, 0),
        has_mark=bool(len(history.mark["open_time"])),
    )
    statuses: Counter[str] = Counter()
    free_at, used = 0, model.late_bits
    for t, verdict in decide_history(model, history, vectors or vectors_of(history, start, end), mark, book, last_ok):
        run.minutes += 1
        statuses[verdict.status] += 1
        if run.minutes % 1440 == 0:
            decided(1440)
        if (row := stored.get(t)) is not None:
            name = signal_id(slot, model.model_id, symbol, t)
            _compare(run.live, row, verdict, name, repaired=t in repaired, late=bool(row.late_mask & used))
        if verdict.status is not Status.OK:
            continue
        assert verdict.p is not None
        assert verdict.ev_bp is not None
        name = signal_id(slot, model.model_id, symbol, t)
        signal = Signal(
            signal_id=name,
            symbol=symbol,
            close_time=t,
            side=verdict.side,
            p=verdict.p,
            ev_bp=verdict.ev_bp,
            traded=t >= free_at,
        )
        run.signals.append(signal)
        if signal.traded:
            trade = follow(path, rule, signal_id=name, side=signal.side, close_time=t, p=signal.p, ev_bp=signal.ev_bp)
            run.trades.append(trade)
            free_at = trade.exit_time
    decided(run.minutes % 1440)
    run.statuses = {str(status): statuses[status] for status in sorted(statuses)}
    if last := run.trades[-LAST_TRADES:]:
        around = (last[-1].exit_time - last[0].close_time) // 20 + 5 * MINUTE_MS
        run.last_bars = _bars(history, last[0].close_time - around, last[-1].exit_time + around)
    run.assumed_fresh = {"mark": mark.assumed_fresh, "book": book.assumed_fresh}
    return run


def _compare(live: Agreement, row: LiveRow, verdict: Verdict, name: str, *, repaired: bool, late: bool) -> None:
    if row.status == Status.SKIPPED_MISSED:
        live.missed += 1
        return
    live.rows += 1
    if (row.status, row.side, row.p, row.signal_id) == (verdict.status, verdict.side, verdict.p, name):
        live.same += 1
    elif repaired:
        live.repaired += 1
    elif late:
        live.late += 1
    else:
        live.differing += 1
        if len(live.examples) < SHOWN_DIFFERENCES:
            live.examples.append(
                {
                    "close_time": row.close_time,
                    "live": {"status": row.status, "side": row.side, "p": row.p},
                    "backtest": {"status": str(verdict.status), "side": verdict.side, "p": verdict.p},
                    "detail": verdict.detail,
                }
            )


def _bars(history: SymbolHistory, start: int, end: int) -> Bars:
    opened = history.candles["open_time"]
    inside = (opened >= start) & (opened < end)
    opened = opened[inside]
    minutes = max(1, math.ceil((end - start) / MINUTE_MS / BARS))
    if not len(opened):
        return Bars(minutes, [], [], [], [], [])
    bucket = (opened - start) // (minutes * MINUTE_MS)
    first = np.flatnonzero(np.concatenate([[True], np.diff(bucket) != 0]))
    last = np.concatenate([first[1:], [len(opened)]]) - 1
    column: dict[str, NDArray[np.float64]] = {
        name: history.candles[name][inside] for name in ("open", "high", "low", "close")
    }
    return Bars(
        minutes,
        (start + bucket[first] * minutes * MINUTE_MS).tolist(),
        column["open"][first].tolist(),
        np.maximum.reduceat(column["high"], first).tolist(),
        np.minimum.reduceat(column["low"], first).tolist(),
        column["close"][last].tolist(),
    )


def joined_agreement(runs: Sequence[SymbolRun]) -> Agreement:
    """The sums over all symbols, with the first examples."""
    total = Agreement()
    for run in runs:
        for name in ("rows", "same", "differing", "repaired", "late", "missed"):
            setattr(total, name, getattr(total, name) + getattr(run.live, name))
        total.examples += [{"symbol": run.symbol, **example} for example in run.live.examples]
    total.examples = total.examples[:SHOWN_DIFFERENCES]
    return total
