"""What became of every signal under the rule it was given for, once that can be known: rows of `signal_outcomes`."""

from collections import defaultdict
from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from perpline.backtest.stored import quoted
from perpline.domain.candle import MINUTE_MS
from perpline.domain.exit_rule import REASONS, LabelRule, label_hash
from perpline.domain.signal import Status
from perpline.storage.store import TRADING_TABLES, Row, Store
from perpline.training.labels import SIDES
from perpline.training.outcomes import stored_labels

DAY_MS = 1440 * MINUTE_MS
LOOK_BACK_MS = 7 * DAY_MS
"""How old signals are looked at again, where nobody says since when."""
SETTLED_MS = 60 * MINUTE_MS
"""Funding is asked for once an hour: what was settled within a trade is stored so long after its end."""
WAIT_MS = 3 * DAY_MS
"""For prices that are missing; whoever stores them later asks for outcomes since then."""
_PRICES: tuple[Literal["mark", "last"], ...] = ("mark", "last")


class Outcomes(Struct, kw_only=True):
    """The signals of a slot that had no outcome, by what became of that."""

    since: int
    """The first T (ms) that was looked at."""
    until: int
    """The market's time: the newest minute that the slot has decided."""
    stored: int = 0
    open: int = 0
    """The horizon is not over, or not for an hour yet."""
    waiting: int = 0
    """It is over, and prices are missing; not for three days yet."""
    left_out: int = 0
    """Prices were missing for three days, or the row does not say by which rule it was given."""


class _Signal(Struct, frozen=True, gc=False):
    signal_id: str
    close_time: int
    side: int


async def store_outcomes(
    store: Store, slot: str, since: int | None = None, *, followed: Callable[[int, int], None] = lambda done, of: None
) -> Outcomes:
    """Store what became of the slot's signals with T >= since (default: of the last seven days) that have no outcome.

    By the labels of training, each with the rule of its own row. A row is stored once and never changed: the same call
    again adds nothing. `followed(done, of)` is told how many series of signals are done. Raises Unavailable as the
    store does; what was stored until then stays.
    """
    name = quoted(slot)
    [[newest]] = await store.select(f"SELECT max(close_time) FROM signals WHERE slot = {name}")
    now = newest or 0
    made = Outcomes(since=max(0, now - LOOK_BACK_MS) if since is None else since, until=now)
    rows = await store.select(
        "SELECT s.symbol, s.label_hash, s.tp_pct, s.sl_pct, s.horizon_s, s.cost_bp, s.signal_id, s.close_time, s.side "
        "FROM signals s LEFT JOIN signal_outcomes o ON o.signal_id = s.signal_id "
        f"WHERE s.slot = {name} AND s.status = '{Status.OK}' AND s.close_time >= {made.since} "
        "AND o.signal_id IS NULL ORDER BY s.symbol, s.close_time"
    )
    due: defaultdict[tuple[str, LabelRule], list[_Signal]] = defaultdict(list)
    for symbol, hashed, tp_pct, sl_pct, horizon_s, cost_bp, *row in rows:
        rule = _rule(hashed, tp_pct, sl_pct, horizon_s, cost_bp)
        signal = _Signal(*row)
        if rule is None:
            made.left_out += 1
        elif signal.close_time + rule.horizon_s * 1000 + SETTLED_MS > now:
            made.open += 1
        else:
            due[symbol, rule].append(signal)
    for done, ((symbol, rule), signals) in enumerate(due.items()):
        followed(done, len(due))
        known = await _known(store, symbol, rule, signals)
        await store.commit_trading({"signal_outcomes": list(known.values())})
        made.stored += len(known)
        missing = [signal for signal in signals if signal.signal_id not in known]
        left_out = sum(signal.close_time + rule.horizon_s * 1000 + WAIT_MS <= now for signal in missing)
        made.left_out += left_out
        made.waiting += len(missing) - left_out
    return made


def _rule(
    hashed: str, tp_pct: float | None, sl_pct: float | None, horizon_s: int | None, cost_bp: float | None
) -> LabelRule | None:
    """The label rule that a signal was given for. Which price touches is the one thing its row has in the hash only."""
    if tp_pct is None or sl_pct is None or horizon_s is None or cost_bp is None:
        return None
    rules = (LabelRule(tp_pct, sl_pct, horizon_s, cost_bp, price) for price in _PRICES)
    return next((rule for rule in rules if label_hash(rule) == hashed), None)


async def _known(store: Store, symbol: str, rule: LabelRule, signals: list[_Signal]) -> dict[str, Row]:
    """Rows of `signal_outcomes` by signal, of those that have a label."""
    labels = await stored_labels(store, symbol, [signal.close_time for signal in signals], rule)
    rows = {}
    for at, signal in enumerate(signals):
        if not labels.known[at]:
            continue
        side = SIDES.index(signal.side)
        rows[signal.signal_id] = TRADING_TABLES["signal_outcomes"].row(
            {
                "signal_id": signal.signal_id,
                "reason": REASONS[int(labels.reason[at, side])],
                "t_exit": int(labels.ends[at, side]),
                "ret_net": float(labels.net[at, side]),
                "mae": float(labels.worst[at, side]),
                "mfe": float(labels.best[at, side]),
            }
        )
    return rows
