"""What became of trades at stored closes: the labels of training, of what a database has now."""

from collections.abc import Sequence

import numpy as np

from perpline.domain.candle import MINUTE_MS
from perpline.domain.exit_rule import LabelRule
from perpline.storage.history import symbol_history
from perpline.storage.store import Store
from perpline.training.labels import LABEL_TABLES, Labels, label, price_path

TICK_FROM_MS = 1440 * MINUTE_MS
"""Of a day of closes before the first trade the tick is found: those of one horizon may all be rounder than it is."""


async def stored_labels(store: Store, symbol: str, times: Sequence[int], rule: LabelRule) -> Labels:
    """Labels of trades decided at close boundaries `times` (ms, ascending, at least one), from stored prices.

    No label where `label` has none: the horizon is not over in what is stored, or a minute of it is missing.
    """
    start, end = times[0] - TICK_FROM_MS, times[-1] + rule.horizon_s * 1000
    history = await symbol_history(store, symbol, start, end, tables=LABEL_TABLES)
    return label(price_path(history, rule), np.array(times, np.int64), rule)
