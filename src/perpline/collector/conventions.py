"""Which instant the label of a 5-minute metrics row means, found out from the rows themselves.

The exchange changed it without a word on 2026-06-25 (features.md 1.5): until then a row labelled T was the open
interest at T and the flow of [T - 5m, T); since then it is that at T + 5m and of [T, T + 5m). Joined the wrong way,
five minutes of the future are in the past. Two witnesses, each for itself:

* price: open interest in quote divided by that in contracts is the price at the instant of the snapshot;
* flow: the taker ratio is bought / sold of the five candles of the period.
"""

from typing import Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from perpline.domain.candle import MINUTE_MS

PERIOD_MS = 300_000
ENOUGH = 0.95
"""The share of rows that must agree."""
FLOW_TOLERANCE = 1e-3
"""Relative: the ratio is published with a few digits."""
MOVED = 5e-4
"""A step between two instants tells them apart where the price moved by so much: 5 bp, while a snapshot's price is
within 2 bp of the last trade's (measured on real files)."""
WITNESSES = 12
"""Rows that must tell anything at all, of the 288 of a day."""

Verdict = Literal["end", "start", "unknown"]
"""What the labels are: ends of their periods, beginnings, or nothing that the data prove."""

Times = NDArray[np.int64]
Floats = NDArray[np.float64]


class Evidence(Struct, frozen=True):
    """What a symbol's day says. `rows` are those that could tell."""

    verdict: Verdict
    price: Verdict
    price_rows: int
    flow: Verdict
    flow_rows: int


def convention(
    label: Times,
    implied: Floats,
    taker: Floats,
    prices: tuple[Times, Floats],
    candles: tuple[Times, Floats, Floats],
    witnesses: int = WITNESSES,
) -> Evidence:
    """The convention of rows (n,), ascending by label: implied price and taker ratio, NaN where a row has none.

    `prices`: instants and the price at each (of a 1m candle: its end and its close). `candles`: open times, volume and
    taker buy volume of 1m candles, NaN where not known. Unknown where no witness can tell, as on a day of both
    conventions, and where the two contradict each other.
    """
    price, price_rows = by_price(label, implied, *prices, witnesses=witnesses)
    flow, flow_rows = by_flow(label, taker, *candles, witnesses=witnesses)
    told = {price, flow} - {"unknown"}
    verdict = told.pop() if len(told) == 1 else "unknown"
    return Evidence(verdict, price, price_rows, flow, flow_rows)


def by_price(
    label: Times, implied: Floats, instants: Times, prices: Floats, witnesses: int = WITNESSES
) -> tuple[Verdict, int]:
    """What the implied prices say, and how many instants could tell.

    At each instant P with a price the rows labelled P and P - 5m are compared: whichever implies it means P. A mark
    price may lie beside the last one all day: what is right by its small spread says how far.
    """
    ends, begins = _at(label, implied, instants), _at(label, implied, instants - PERIOD_MS)
    with np.errstate(divide="ignore", invalid="ignore"):
        off_end, off_start = np.log(ends / prices), np.log(begins / prices)
    tells = np.isfinite(off_end) & np.isfinite(off_start) & (np.abs(off_end - off_start) > MOVED)
    rows = int(tells.sum())
    if rows < witnesses:
        return "unknown", rows
    off_end, off_start = off_end[tells], off_start[tells]
    # The price that is meant lies the same way off all day; the other one is off by what the market moved meanwhile.
    end_spread, start_spread = (float(np.median(np.abs(off - np.median(off)))) for off in (off_end, off_start))
    aside = np.median(off_end if end_spread < start_spread else off_start)
    end_share = float((np.abs(off_end - aside) < np.abs(off_start - aside)).mean())
    return ("end" if end_share >= ENOUGH else "start" if end_share <= 1 - ENOUGH else "unknown"), rows


def by_flow(
    label: Times, taker: Floats, open_time: Times, volume: Floats, bought: Floats, witnesses: int = WITNESSES
) -> tuple[Verdict, int]:
    """What the taker ratios say, and how many rows could tell: those with all ten candles around their label."""
    ratios = []
    for start in (label - PERIOD_MS, label):
        sums = []
        for values in (bought, volume):
            parts = [_at(open_time, values, start + minute * MINUTE_MS) for minute in range(5)]
            sums.append(np.sum(parts, axis=0))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios.append(sums[0] / (sums[1] - sums[0]))
    tells = np.isfinite(taker) & np.isfinite(ratios[0]) & np.isfinite(ratios[1])
    rows = int(tells.sum())
    if rows < witnesses:
        return "unknown", rows
    end_fits, start_fits = (
        float((np.abs(ratio[tells] - taker[tells]) <= FLOW_TOLERANCE * np.abs(taker[tells]) + 1e-8).mean())
        for ratio in ratios
    )
    if end_fits >= ENOUGH and start_fits >= ENOUGH:
        return "unknown", rows
    return ("end" if end_fits >= ENOUGH else "start" if start_fits >= ENOUGH else "unknown"), rows


def _at(times: Times, values: Floats, wanted: Times) -> Floats:
    """The value at each wanted time, NaN where there is none. `times` ascend."""
    if not len(times):
        return np.full(len(wanted), np.nan)
    place = np.minimum(np.searchsorted(times, wanted), len(times) - 1)
    return np.where(times[place] == wanted, values[place], np.nan)
