"""What became of signals: when a row is written, by which numbers, and what waits."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import asdict, replace

from backtesting import SLOT, candles_of, store_history, walk
from perpline.backtest.outcomes import SETTLED_MS, WAIT_MS, store_outcomes
from perpline.backtest.trades import follow
from perpline.domain.exit_rule import REASONS, LabelRule, label_hash
from perpline.domain.signal import Decision, Status, signal_id
from perpline.storage.history import SymbolHistory
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import Row
from perpline.training.labels import label, price_path
from training import MINUTE, START

RULE = LabelRule(tp_pct=0.4, sl_pct=0.3, horizon_s=3600, cost_bp=4.0)
HORIZON = RULE.horizon_s * 1000
SYMBOL = "BTCUSDT"
MINUTES = 400
TIMES = [START + minute * MINUTE for minute in range(1, MINUTES, 7)]
END = START + MINUTES * MINUTE
FUNDED = START + 200 * MINUTE


def on_ticks(history: SymbolHistory) -> SymbolHistory:
    """The history with prices of two decimals, as an exchange has them."""
    for rows in (history.candles, history.mark):
        for name in ("open", "high", "low", "close"):
            rows[name] = np.rint(rows[name] * 100) / 100
    return history


def told(t: int, side: int = 1, rule: LabelRule = RULE, status: Status = Status.OK, hashed: str = "") -> Decision:
    values = {name: value for name, value in asdict(rule).items() if name != "price"}
    return Decision(
        signal_id=signal_id(SLOT, "m1", SYMBOL, t),
        slot=SLOT,
        symbol=SYMBOL,
        close_time=t,
        side=side if status == Status.OK else 0,
        status=status,
        model_id="m1",
        label_hash=hashed or label_hash(rule),
        p_cal=0.6,
        **values,
    )


def sides(times: Sequence[int]) -> list[Decision]:
    """Signals to both sides, one after the other."""
    return [told(t, 1 if at % 2 else -1) for at, t in enumerate(times)]


def now(t: int) -> Decision:
    """A minute that was decided without a signal: the market's time goes on."""
    return told(t, status=Status.FLAT)


async def opened(folder: Path) -> SqliteStore:
    store = SqliteStore(folder / "market.db")
    await store.open()
    return store


async def fill(store: SqliteStore, history: SymbolHistory, decisions: Sequence[Decision]) -> None:
    await store_history(store, history)
    await store.add_rows("funding_rates", [(SYMBOL, FUNDED + 3, 0.0007, 100.0, 8, FUNDED + 100)])
    await store.commit_decisions(decisions, [], [], 0)


async def rows_of(store: SqliteStore) -> dict[str, Row]:
    return {row[0]: row for row in await store.trading_rows("signal_outcomes")}


@pytest.mark.parametrize("price", ["mark", "last"])
async def test_an_outcome_is_the_labellers_and_the_backtests_for_the_same_minute_bit_for_bit(
    tmp_path: Path, price: str
) -> None:
    store, history = await opened(tmp_path), on_ticks(walk(MINUTES))
    rule = LabelRule(**{**asdict(RULE), "price": price})
    signals = [replace(each, label_hash=label_hash(rule)) for each in sides(TIMES)]
    await fill(store, history, [*signals, now(END + SETTLED_MS)])
    history.funding.update(funding_time=np.array([FUNDED + 3]), rate=np.array([0.0007]), interval_hours=np.array([8.0]))
    path = price_path(history, rule)
    labels = label(path, np.array(TIMES, np.int64), rule)

    found = await store_outcomes(store, SLOT)
    stored = await rows_of(store)
    await store.close()

    assert path.scale == 100.0
    assert len(stored) == found.stored == labels.known.sum() > 40
    for at, signal in enumerate(signals):
        if not labels.known[at]:
            assert signal.signal_id not in stored
            continue
        side = 0 if signal.side > 0 else 1
        _, reason, ended, net, worst, best = stored[signal.signal_id]
        assert reason == REASONS[int(labels.reason[at, side])]
        assert (ended, net) == (labels.ends[at, side], labels.net[at, side])
        assert (worst, best) == (labels.worst[at, side], labels.best[at, side])
        told_ = {"signal_id": signal.signal_id, "side": signal.side, "close_time": TIMES[at], "p": 0.6, "ev_bp": 0.0}
        trade = follow(path, rule, **told_)
        assert (trade.exit_time, trade.net) == (ended, net)
        assert (np.float32(trade.mae), np.float32(trade.mfe)) == (worst, best)
    assert len({reason for _, reason, *_ in stored.values()}) >= 3


async def test_a_second_run_adds_nothing_and_changes_nothing(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await fill(store, walk(MINUTES), [*sides(TIMES), now(END + SETTLED_MS)])
    first = await store_outcomes(store, SLOT)
    stored = await rows_of(store)

    second = await store_outcomes(store, SLOT)

    assert first.stored == len(stored) > 40
    assert (second.stored, second.waiting) == (0, first.waiting)
    assert await rows_of(store) == stored
    await store.close()


async def test_a_signal_is_looked_at_an_hour_after_its_horizon_and_not_before(tmp_path: Path) -> None:
    store, signal = await opened(tmp_path), told(TIMES[3])
    over = signal.close_time + HORIZON + SETTLED_MS
    await fill(store, walk(MINUTES), [signal, now(over - MINUTE)])

    early = await store_outcomes(store, SLOT)
    await store.commit_decisions([now(over)], [], [], 0)
    late = await store_outcomes(store, SLOT)

    assert (early.open, early.stored) == (1, 0)
    assert (late.open, late.stored) == (0, 1)
    await store.close()


@pytest.mark.parametrize("table", ["candles_1m", "mark_klines"])
async def test_a_gap_within_the_horizon_waits_and_what_fills_it_ends_the_waiting(tmp_path: Path, table: str) -> None:
    store, history, signal = await opened(tmp_path), walk(MINUTES), told(TIMES[3])
    hole = signal.close_time + HORIZON - MINUTE  # its last minute: most trades are over before
    candles = [candle for candle in candles_of(history) if table != "candles_1m" or candle.open_time != hole]
    holed = walk(MINUTES)
    if table == "mark_klines":
        there = holed.mark["open_time"] != hole
        holed.mark.update({name: values[there] for name, values in holed.mark.items()})
    await store_history(store, holed, candles)
    await store.commit_decisions([signal, now(END + HORIZON)], [], [], 0)

    first = await store_outcomes(store, SLOT)
    await store_history(store, history)
    second = await store_outcomes(store, SLOT)

    assert (first.stored, first.waiting, first.left_out) == (0, 1, 0)
    assert (second.stored, second.waiting) == (1, 0)
    await store.close()


async def test_after_three_days_without_prices_a_signal_is_left_out_and_counted_until_they_come(tmp_path: Path) -> None:
    store, signal = await opened(tmp_path), told(TIMES[3])
    over = signal.close_time + HORIZON
    await store.commit_decisions([signal, now(over + WAIT_MS - MINUTE)], [], [], 0)

    waits = await store_outcomes(store, SLOT)
    await store.commit_decisions([now(over + WAIT_MS)], [], [], 0)
    left_out = await store_outcomes(store, SLOT)
    await store_history(store, walk(MINUTES))
    at_last = await store_outcomes(store, SLOT)

    assert (waits.waiting, waits.left_out) == (1, 0)
    assert (left_out.waiting, left_out.left_out) == (0, 1)
    assert (at_last.stored, at_last.left_out) == (1, 0)
    await store.close()


async def test_a_signal_of_a_rule_that_nobody_knows_is_left_out(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await fill(store, walk(MINUTES), [told(TIMES[3], hashed="0" * 32), now(END + SETTLED_MS)])

    found = await store_outcomes(store, SLOT)

    assert (found.stored, found.left_out) == (0, 1)
    await store.close()


async def test_what_is_older_than_a_week_is_looked_at_when_it_is_asked_for(tmp_path: Path) -> None:
    store, signal = await opened(tmp_path), told(TIMES[3])
    await fill(store, walk(MINUTES), [signal, now(signal.close_time + 8 * 24 * 60 * MINUTE)])

    usual = await store_outcomes(store, SLOT)
    asked = await store_outcomes(store, SLOT, signal.close_time)

    assert (usual.stored, usual.left_out) == (0, 0)
    assert asked.stored == 1
    await store.close()


async def test_minutes_without_a_signal_and_other_slots_have_no_outcome(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    elsewhere = replace(told(TIMES[4]), slot="other", signal_id="other")
    await fill(store, walk(MINUTES), [now(TIMES[3]), elsewhere, now(END + SETTLED_MS)])

    found = await store_outcomes(store, SLOT)

    assert (found.stored, found.open, found.waiting, found.left_out) == (0, 0, 0, 0)
    assert await rows_of(store) == {}
    await store.close()


async def test_the_tick_is_that_of_the_day_before_where_prices_of_the_trades_are_rounder(tmp_path: Path) -> None:
    store, history = await opened(tmp_path), on_ticks(walk(MINUTES))
    signals = sides(TIMES[25:45])
    after = history.candles["open_time"] >= signals[0].close_time
    for rows in (history.candles, history.mark):
        for name in ("open", "high", "low", "close"):
            rows[name][after] = np.rint(rows[name][after])
    await store_history(store, history)
    await store.commit_decisions([*signals, now(END + SETTLED_MS)], [], [], 0)
    labels = label(price_path(history, RULE), np.array([each.close_time for each in signals]), RULE)

    await store_outcomes(store, SLOT)

    stored = await rows_of(store)
    assert [stored[each.signal_id][3] for each in signals] == [
        labels.net[at, 0 if each.side > 0 else 1] for at, each in enumerate(signals)
    ]
    assert {"target", "stop"} <= {reason for _, reason, *_ in stored.values()}
    await store.close()


async def test_a_database_without_signals_has_nothing_to_store(tmp_path: Path) -> None:
    store = await opened(tmp_path)

    found = await store_outcomes(store, SLOT)

    assert (found.stored, found.until) == (0, 0)
    await store.close()
