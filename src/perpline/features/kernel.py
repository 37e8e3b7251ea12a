"""The arithmetic of the catalogue: one state per symbol, `push` for a candle, `put_…` for other series, `finish`.

Everything is summed as integers over finite windows, so that a vector depends on what its windows hold and on nothing
before: a process that started an hour ago and one that started a year ago give the same bits. Sums are kept as running
totals in rings, one row a minute: the sum of a window is the difference of two rows. Totals may overflow; differences
are right all the same, modulo 2**64, as long as a window's own sum fits.

A state is a row of int64 and a row of float64, laid out below. Live calls `push` for each candle and `finish` at a
close; history calls both in a loop: they are the same compiled functions. Whatever may come late is written where it
belongs and first seen wins. Mark, index and premium bars are read up to the minute that ended at T - 60 s and no
further; rows of other series must be put in only once they are known.
"""

import math

import numpy as np
from numpy.typing import NDArray

from perpline.features.compiled import compiled, part

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

MARK, INDEX, PREMIUM, FUNDING, OPEN_INTEREST, GLOBAL, TOP_ACCOUNT, TOP_POSITION, BOOK = range(9)
"""Kinds of rows that are not candles; a bit of `late` each."""

WIDTH = 118
NEW_FORMULA_MINUTE = 1_758_153_600_000 // 60_000
"""2025-09-18 UTC: fund_est has no value before."""

# ---- head of a state
LAST, HELD, WHOLE, GAP, K, OPEN, HIGH, LOW, CAP, LISTED = range(10)
LARGEST = 10  # ends of a queue: where the next goes, and the first of each of its windows
H15_CLOSE, H15_BACK, H15_TOP, H15_BOTTOM, H1_CLOSE, H1_BACK, H1_TOP, H1_BOTTOM, H1_QUOTE24, H1_QUOTE96 = range(16, 26)
PREMIUM_HEAD, FUND_NEWEST, OI_NEWEST, OI_SUM, OI_SQUARES, OI_COUNT, OI_VALUE_AT = range(26, 33)
G_NEWEST, G_SUM, G_SQUARES, G_COUNT, TP_NEWEST, TP_SUM, TP_SQUARES, TP_COUNT, TA_NEWEST, TA_VALUE = range(33, 43)
FUND_DAY_FROM, TOPS, FUND_DAY, BOTTOMS = 43, 44, 49, 50
HEAD = 56

# Sizes of rings are powers of two: a place is `minute & (size - 1)`, which the compiler knows to be at least 0.

# ---- rings of minutes, a row of running totals each
NEAR_MINUTES, NEAR_COLUMNS = 256, 16
RANGE, RANGE2, ABS5, K5, ABSPROD, PROD, RISES, FIVE, LC_SUM, LC_MOMENT, TRADES, VOLUME, FLOW, KPHI, QUIET = range(15)
NEAR = HEAD
DAY_MINUTES, DAY_COLUMNS = 2048, 6
LC, K_SUM, K_ABS, K2, PHI, PHI2 = range(6)
DAY = NEAR + NEAR_MINUTES * NEAR_COLUMNS
# ---- queues of (minute, value), values falling: the largest of the last W minutes is the first that is young enough
QUEUE = 2048
QUEUE_WINDOWS = (1440, 240, 60, 15)
LAST_1440, LAST_240, LAST_60, LAST_15 = range(4)
TOP_QUEUE = DAY + DAY_MINUTES * DAY_COLUMNS
BOTTOM_QUEUE = TOP_QUEUE + 2 * QUEUE
SHORT_QUEUE = 64
LARGEST_QUEUE = BOTTOM_QUEUE + 2 * QUEUE
# ---- rings of 15 min and 1 h bars: highest, lowest
H15_BARS, H1_BARS = 32, 72
H15 = LARGEST_QUEUE + 2 * SHORT_QUEUE
H1 = H15 + 2 * H15_BARS
# ---- bars by minute: (minute, value); the premium has running totals beside: sum, squares, moment, missing
FEW = 16
MARKS = H1 + 2 * H1_BARS
INDEXES = MARKS + 2 * FEW
PREMIUMS = INDEXES + 2 * FEW
TOTALS = PREMIUMS + 2 * DAY_MINUTES
# ---- by hour: (hour, rate, interval); by period of five minutes: (period, value)
FUND_HOURS = 64
FUNDS = TOTALS + 4 * DAY_MINUTES
OI_PERIODS, RATIO_PERIODS = 512, 2048
OIS = FUNDS + 3 * FUND_HOURS
GLOBALS = OIS + 2 * OI_PERIODS
TOP_POSITIONS = GLOBALS + 2 * RATIO_PERIODS
# ---- minutes of books: their minute here, their numbers among the floats
BOOK_MINUTES = 64
BOOKS = TOP_POSITIONS + 2 * RATIO_PERIODS
CHANGES = BOOKS + BOOK_MINUTES
"""k' of each minute of the last day, in one piece for the products of group K."""
LONG = CHANGES + DAY_MINUTES
"""From here to the end: running totals of quote volume and of synthetic minutes, a ring as long as is wanted."""

# ---- floats
OI_VALUE = 0
LINE, LINE_MINUTES, LINE_COLUMNS = 8, 512, 3  # lc, and its weighted distance from the minutes before, for two spans
BOOK_COLUMNS = 8  # bid, bid_qty, ask, ask_qty, spread_bps, imbalance, order_flow_imbalance, updated_at
BOOK_ROWS = LINE + LINE_MINUTES * LINE_COLUMNS
FLOATS = BOOK_ROWS + BOOK_MINUTES * BOOK_COLUMNS

LOG_UNIT = 1.0 / (1 << 30)
RETURN_CLIP = 1 << 28
LONGEST = 10_240

LOOKBACK, LOWEST, HIGHEST, NEEDS_FLOW = range(4)
"""Rows of the rules that `finish` is handed, a number for each column."""

# Where each group begins; X is group K, whose letter is taken.
A, B, C, D, E, F, G, H, I, J, X, L, M = 0, 13, 29, 33, 47, 57, 66, 80, 87, 95, 100, 108, 112  # noqa: E741


def _weights(span: int, block: int) -> tuple[Floats, Floats, float]:
    """Weights of the first `block` minutes, of the blocks of 4 · span minutes, and of a block's closes altogether."""
    decay = [(1 - 2 / (span + 1)) ** age for age in range(4 * span)]
    inner = np.array(decay[:block])
    outer = np.array(decay[::block]) / math.fsum(decay)
    return inner, outer, math.fsum(decay[:block])


_INNER_20, _OUTER_20, _WHOLE_20 = _weights(20, 8)
_INNER_100, _OUTER_100, _WHOLE_100 = _weights(100, 20)
_SIN = np.array([math.sin(2 * math.pi * minute / 1440) for minute in range(1440)])
_COS = np.array([math.cos(2 * math.pi * minute / 1440) for minute in range(1440)])


def new_states(count: int, lookback_min: int) -> tuple[Integers, Floats]:
    """Empty states of so many symbols. Columns that look back further than `lookback_min` will have no value."""
    length = min(LONGEST, max(DAY_MINUTES, lookback_min + 60))
    ints = np.zeros((count, LONG + 2 * length), np.int64)
    ints[:, CAP] = lookback_min
    return ints, np.zeros((count, FLOATS))


# ---- candles


@part
def _push(
    s: Integers,
    f: Floats,
    minute: int,
    lop: int,
    lh: int,
    ll: int,
    lc: int,
    v: int,
    b: int,
    q: int,
    n: int,
    synthetic: int,
    whole: int,
) -> None:
    """Take the next closed candle: its minute since 1970, quantised logs, volumes as integers, 0 or 1 for synthetic and
    for having quote volume, trades and taker volume. One that does not follow the last restarts the window."""
    length = (len(s) - LONG) // 2
    near = _near_row(minute)
    near_before = _near_row(minute - 1)
    day = _day_row(minute)
    day_before = _day_row(minute - 1)
    place = minute % length
    quotes, quotes_before = LONG + place, LONG + _before(place, 1, length)
    if s[HELD] == 0 or minute != s[LAST] + 1:
        if s[HELD] > 0:
            s[GAP] = 1
        s[HELD] = s[WHOLE] = s[K] = 0
        s[TOPS : TOPS + 5] = s[BOTTOMS : BOTTOMS + 5] = s[LARGEST : LARGEST + 2] = 0
        s[near_before : near_before + NEAR_COLUMNS] = 0
        s[day_before : day_before + DAY_COLUMNS] = 0
        s[day_before + LC] = lc
        s[quotes_before] = s[quotes_before + length] = 0
    k_before = s[K]
    k = min(max(lc - s[day_before + LC], -RETURN_CLIP), RETURN_CLIP)
    k5, k5_before = k >> 5, k_before >> 5
    phi = math.floor((2 * b - v) / v * 65536.0 + 0.5) if v > 0 else 0
    spread = min(lh - ll, 1 << 30)
    five = lc - s[_day_row(minute - 5) + LC]
    five = min(max(five, -5 * RETURN_CLIP), 5 * RETURN_CLIP) >> 5

    s[near + RANGE] = s[near_before + RANGE] + spread
    s[near + RANGE2] = s[near_before + RANGE2] + (spread >> 5) * (spread >> 5)
    s[near + ABS5] = s[near_before + ABS5] + abs(k5)
    s[near + K5] = s[near_before + K5] + k5
    s[near + ABSPROD] = s[near_before + ABSPROD] + abs(k5) * abs(k5_before)
    s[near + PROD] = s[near_before + PROD] + k5 * k5_before
    s[near + RISES] = s[near_before + RISES] + (k5 * k5 if k > 0 else 0)
    s[near + FIVE] = s[near_before + FIVE] + five * five
    s[near + LC_SUM] = s[near_before + LC_SUM] + lc
    s[near + LC_MOMENT] = s[near_before + LC_MOMENT] + minute * lc
    s[near + TRADES] = s[near_before + TRADES] + n
    s[near + VOLUME] = s[near_before + VOLUME] + v
    s[near + FLOW] = s[near_before + FLOW] + 2 * b - v
    s[near + KPHI] = s[near_before + KPHI] + k5 * phi
    s[near + QUIET] = s[near_before + QUIET] + (1 if n == 0 else 0)

    s[day + LC] = lc
    s[day + K_SUM] = s[day_before + K_SUM] + k
    s[day + K_ABS] = s[day_before + K_ABS] + abs(k)
    s[day + K2] = s[day_before + K2] + k5 * k5
    s[day + PHI] = s[day_before + PHI] + phi
    s[day + PHI2] = s[day_before + PHI2] + phi * phi

    s[CHANGES + (minute & (DAY_MINUTES - 1))] = k5
    s[quotes] = s[quotes_before] + q
    s[quotes + length] = s[quotes_before + length] + synthetic

    line = LINE + (minute & (LINE_MINUTES - 1)) * LINE_COLUMNS
    f[line] = float(lc)
    f[line + 1] = _distance(f, minute, _INNER_20)
    f[line + 2] = _distance(f, minute, _INNER_100)
    _enqueue(s, TOP_QUEUE, QUEUE, TOPS, minute, lh, QUEUE_WINDOWS)
    _enqueue(s, BOTTOM_QUEUE, QUEUE, BOTTOMS, minute, -ll, QUEUE_WINDOWS)
    _enqueue(s, LARGEST_QUEUE, SHORT_QUEUE, LARGEST, minute, abs(k), (60,))
    s[LAST] = minute
    s[HELD] += 1
    s[WHOLE] = s[WHOLE] + 1 if whole else 0
    s[K], s[OPEN], s[HIGH], s[LOW] = k, lop, lh, ll
    if (minute + 1) % 15 == 0:
        _close_bars(s, minute, length)


@part
def _enqueue(s: Integers, queue: int, size: int, ends: int, minute: int, value: int, windows: tuple[int, ...]) -> None:
    """Add to a queue of falling values; of equals the newest stays. What is older than the first window leaves, and the
    others move on to what is young enough for them: a search at each close would cost several times as much. Sizes of
    queues are powers of two: so would a division for each place."""
    tail = s[ends]
    while tail > s[ends + 1] and s[queue + size + ((tail - 1) & (size - 1))] <= value:
        tail -= 1
    s[queue + (tail & (size - 1))] = minute
    s[queue + size + (tail & (size - 1))] = value
    s[ends] = tail + 1
    for number in range(len(windows)):
        first = min(s[ends + 1 + number], tail)
        while s[queue + (first & (size - 1))] <= minute - windows[number]:
            first += 1
        s[ends + 1 + number] = first


@part
def _top(s: Integers, number: int) -> int:
    """The place in its queue of the highest high of a window."""
    return int(TOP_QUEUE + (s[TOPS + 1 + number] & (QUEUE - 1)))


@part
def _bottom(s: Integers, number: int) -> int:
    """The place in its queue of the lowest low of a window, whose sign is changed there."""
    return int(BOTTOM_QUEUE + (s[BOTTOMS + 1 + number] & (QUEUE - 1)))


@part
def _close_bars(s: Integers, minute: int, length: int) -> None:
    """A 15 min bar ended with this minute, perhaps an hour as well: what the columns of group J are made of."""
    bar = (minute + 1) // 15
    s[H15 + (bar & (H15_BARS - 1))] = s[_top(s, LAST_15) + QUEUE]
    s[H15 + H15_BARS + (bar & (H15_BARS - 1))] = s[_bottom(s, LAST_15) + QUEUE]
    s[H15_TOP] = _highest(s, H15, H15_BARS)
    s[H15_BOTTOM] = -_highest(s, H15 + H15_BARS, H15_BARS)
    s[H15_CLOSE] = s[_day_row(minute) + LC]
    s[H15_BACK] = s[_day_row(minute - 60) + LC]
    if (minute + 1) % 60 == 0:
        bar = (minute + 1) // 60
        s[H1 + bar % H1_BARS] = s[_top(s, LAST_60) + QUEUE]
        s[H1 + H1_BARS + bar % H1_BARS] = s[_bottom(s, LAST_60) + QUEUE]
        s[H1_TOP] = _highest(s, H1, H1_BARS)
        s[H1_BOTTOM] = -_highest(s, H1 + H1_BARS, H1_BARS)
        s[H1_CLOSE] = s[H15_CLOSE]
        s[H1_BACK] = s[_day_row(minute - 1440) + LC]
        s[H1_QUOTE24] = s[LONG + minute % length] - s[LONG + (minute - 1440) % length]
        s[H1_QUOTE96] = s[LONG + minute % length] - s[LONG + (minute - 5760) % length]


@part
def _highest(s: Integers, first: int, count: int) -> int:
    highest = s[first]
    for place in range(first + 1, first + count):
        highest = max(highest, s[place])
    return int(highest)


# ---- other series


@part
def _put(s: Integers, f: Floats, kind: int, time: int, value: float, beside: float) -> None:
    """Take a row that is not a candle, `time` in milliseconds: the open time of a price bar with its close; a
    settlement with its rate and interval in hours; the end of a period with open interest and its value in quote, or
    with a ratio. Values are quantised here and nowhere else. What has a value already keeps it."""
    if kind == PREMIUM:
        if abs(value) < 1e6:
            _put_premium(s, time // 60_000, math.floor(value * 1e8 + 0.5))
    elif kind == FUNDING:
        if abs(value) < 1e6:
            _put_funding(s, (time + 1_800_000) // 3_600_000, math.floor(value * 1e8 + 0.5), beside)
    elif value > 0 and value < math.inf:
        quantised = math.floor(math.log(value) * 1073741824.0 + 0.5)
        if kind == MARK or kind == INDEX:
            ring = MARKS if kind == MARK else INDEXES
            place = ring + ((time // 60_000) & (FEW - 1))
            if s[place] < time // 60_000:
                s[place] = time // 60_000
                s[place + FEW] = quantised
        elif kind == OPEN_INTEREST:
            _put_open_interest(s, f, time // 300_000, quantised, beside)
        elif kind == GLOBAL:
            _put_ratio(s, GLOBALS, G_NEWEST, time // 300_000, quantised)
        elif kind == TOP_POSITION:
            _put_ratio(s, TOP_POSITIONS, TP_NEWEST, time // 300_000, quantised)
        elif kind == TOP_ACCOUNT and time // 300_000 > s[TA_NEWEST]:
            s[TA_NEWEST] = time // 300_000
            s[TA_VALUE] = quantised


@part
def _put_until(
    s: Integers,
    f: Floats,
    known: Integers,
    times: Integers,
    values: Floats,
    bounds: Integers,
    places: Integers,
    until: int,
) -> None:
    for kind in range(BOOK):
        i = places[kind]
        while i < bounds[kind + 1] and known[i] <= until:
            _put(s, f, kind, times[i], values[i, 0], values[i, 1])
            i += 1
        places[kind] = i


@part
def _put_premium(s: Integers, minute: int, value: int) -> None:
    place = PREMIUMS + (minute & (DAY_MINUTES - 1))
    if s[place] < minute:
        s[place] = minute
        s[place + DAY_MINUTES] = min(max(value, -(1 << 25)), 1 << 25)
        s[PREMIUM_HEAD] = min(s[PREMIUM_HEAD], minute - 1)


@part
def _put_funding(s: Integers, hour: int, rate: int, interval: float) -> None:
    place = FUNDS + (hour & (FUND_HOURS - 1))
    if s[place] < hour:
        s[place] = hour
        s[place + FUND_HOURS] = rate
        s[place + 2 * FUND_HOURS] = int(interval) if interval >= 1 and interval <= 24 else 0
        s[FUND_NEWEST] = max(s[FUND_NEWEST], hour)
        s[FUND_DAY_FROM] = 0


@part
def _put_open_interest(s: Integers, f: Floats, period: int, value: int, in_quote: float) -> None:
    """Sums over the differences between neighbours among the last 289 periods, whichever of them there are."""
    newest = s[OI_NEWEST]
    place = OIS + (period & (OI_PERIODS - 1))
    if s[place] == period or period <= newest - 300:
        return
    if period > newest + 200:
        s[OI_SUM] = s[OI_SQUARES] = s[OI_COUNT] = 0
        s[OIS : OIS + OI_PERIODS] = 0
        s[OI_NEWEST] = period
    while s[OI_NEWEST] < period:
        s[OI_NEWEST] += 1
        _count_difference(s, s[OI_NEWEST] - 288, -1)
    s[place] = period
    s[place + OI_PERIODS] = value
    _count_difference(s, period, 1)
    _count_difference(s, period + 1, 1)
    if period > s[OI_VALUE_AT]:
        s[OI_VALUE_AT] = period
        f[OI_VALUE] = in_quote


@part
def _count_difference(s: Integers, period: int, sign: int) -> None:
    """Add or take away the difference of this period to the one before, if both are there and it is in the window."""
    here, before = OIS + (period & (OI_PERIODS - 1)), OIS + ((period - 1) & (OI_PERIODS - 1))
    if s[here] == period and s[before] == period - 1 and (sign < 0 or period > s[OI_NEWEST] - 288):
        change = s[here + OI_PERIODS] - s[before + OI_PERIODS]
        change = min(max(change, -RETURN_CLIP), RETURN_CLIP) >> 5
        s[OI_SUM] += sign * change
        s[OI_SQUARES] += change * change * sign
        s[OI_COUNT] += sign


@part
def _put_ratio(s: Integers, ring: int, head: int, period: int, value: int) -> None:
    """Sums over the last 2016 periods, whichever of them there are; `head` holds newest, sum, squares, count."""
    newest = s[head]
    place = ring + (period & (RATIO_PERIODS - 1))
    if s[place] == period or period <= newest - RATIO_PERIODS:
        return
    if period > newest + 2016:
        s[head + 1] = s[head + 2] = s[head + 3] = 0
        s[ring : ring + RATIO_PERIODS] = 0
        s[head] = period
    while s[head] < period:
        s[head] += 1
        leaving = s[head] - 2016
        if s[ring + (leaving & (RATIO_PERIODS - 1))] == leaving:
            old = s[ring + (leaving & (RATIO_PERIODS - 1)) + RATIO_PERIODS] >> 8
            s[head + 1] -= old
            s[head + 2] -= old * old
            s[head + 3] -= 1
    s[place] = period
    s[place + RATIO_PERIODS] = value
    if period > s[head] - 2016:
        s[head + 1] += value >> 8
        s[head + 2] += (value >> 8) * (value >> 8)
        s[head + 3] += 1


@part
def _put_book(s: Integers, f: Floats, time: int, values: Floats) -> None:
    """Take a minute of the best bid and ask: its start in milliseconds, and the columns of BOOK_COLUMNS. Of two rows of
    a minute the one updated later stays, as it does in the table."""
    minute = time // 60_000
    row = BOOK_ROWS + (minute & (BOOK_MINUTES - 1)) * BOOK_COLUMNS
    place = BOOKS + (minute & (BOOK_MINUTES - 1))
    if s[place] < minute or (s[place] == minute and f[row + 7] < values[7]):
        s[place] = minute
        for column in range(BOOK_COLUMNS):
            f[row + column] = values[column]


# ---- the vector


@part
def _finish(s: Integers, f: Floats, rules: Floats, out: Floats, vector: Floats | Singles) -> None:
    """Write the columns of the minute that was pushed last to `vector`, those of group K as NaN; before the rules of
    the catalogue are applied they stand in `out`."""
    out[:] = math.nan
    if s[HELD] == 0:
        vector[:] = math.nan
        return
    minute = s[LAST]
    length = (len(s) - LONG) // 2
    n0 = _near_row(minute)
    n1 = _near_row(minute - 1)
    n5 = _near_row(minute - 5)
    n15 = _near_row(minute - 15)
    n30 = _near_row(minute - 30)
    n60 = _near_row(minute - 60)
    n240 = _near_row(minute - 240)
    d0 = _day_row(minute)
    d5 = _day_row(minute - 5)
    d14 = _day_row(minute - 14)
    d15 = _day_row(minute - 15)
    d60 = _day_row(minute - 60)
    d240 = _day_row(minute - 240)
    d1440 = _day_row(minute - 1440)
    lc, opened, high, low = s[d0 + LC], s[OPEN], s[HIGH], s[LOW]
    # Read once: what is written to `out` might, for all the compiler knows, have changed them.
    k_sum, k_abs, k_squares, phi, phi_squares = s[d0 + K_SUM], s[d0 + K_ABS], s[d0 + K2], s[d0 + PHI], s[d0 + PHI2]
    lc_sum, lc_moment, volume, flow = s[n0 + LC_SUM], s[n0 + LC_MOMENT], s[n0 + VOLUME], s[n0 + FLOW]
    products = s[n0 + PROD]

    # A: returns and momentum
    k60 = k_sum - s[d60 + K_SUM]
    k240 = k_sum - s[d240 + K_SUM]
    abs60 = k_abs - s[d60 + K_ABS]
    squares60, squares240 = k_squares - s[d60 + K2], k_squares - s[d240 + K2]
    sigma5, sigma15 = _sigma(k_squares - s[d5 + K2], 5), _sigma(k_squares - s[d15 + K2], 15)
    sigma60, sigma240 = _sigma(squares60, 60), _sigma(squares240, 240)
    sigma1440 = _sigma(k_squares - s[d1440 + K2], 1440)
    out[A + 0] = s[K] * LOG_UNIT
    out[A + 1] = (k_sum - s[d5 + K_SUM]) * LOG_UNIT
    out[A + 2] = (k_sum - s[d15 + K_SUM]) * LOG_UNIT
    out[A + 3] = k60 * LOG_UNIT
    out[A + 4] = k240 * LOG_UNIT
    out[A + 5] = (k_sum - s[d1440 + K_SUM]) * LOG_UNIT
    out[A + 6] = _ratio(out[A + 1], sigma240 * math.sqrt(5.0))
    out[A + 7] = _clip8(_ratio(out[A + 2], sigma240 * math.sqrt(15.0)))
    out[A + 8] = _clip8(_ratio(out[A + 3], sigma1440 * math.sqrt(60.0)))
    out[A + 9] = _ratio(out[A + 4], sigma1440 * math.sqrt(240.0))
    out[A + 10] = _ratio(float(abs(k60)), float(abs60))
    out[A + 11] = _ratio(float(abs(k240)), float(k_abs - s[d240 + K_ABS]))
    out[A + 12] = _ratio(float(k_sum - s[d14 + K_SUM]), float(k_abs - s[d14 + K_ABS]))

    # B: volatility and the shape of the path
    out[B + 0] = math.log(sigma5 + 1e-6)
    out[B + 1] = math.log(sigma15 + 1e-6)
    out[B + 2] = math.log(sigma60 + 1e-6)
    out[B + 3] = math.log(sigma240 + 1e-6)
    out[B + 4] = math.log(sigma1440 + 1e-6)
    out[B + 5] = _log(_ratio(sigma15, sigma240))
    out[B + 6] = _log(_ratio(sigma60, sigma1440))
    out[B + 7] = _ratio(_sigma(s[n0 + RANGE2] - s[n60 + RANGE2], 60) / math.sqrt(4.0 * math.log(2.0)), sigma60)
    bipower = (s[n0 + ABSPROD] - s[n60 + ABSPROD]) * (math.pi / 2.0)
    out[B + 8] = _ratio(squares60 - bipower, float(squares60))
    out[B + 9] = _ratio(float(s[n0 + RISES] - s[n60 + RISES]), float(squares60))
    sum5 = s[n0 + ABS5] - s[n60 + ABS5]
    out[B + 10] = _ratio(_deviation(60, sum5, squares60), sum5 / 60.0)
    out[B + 11] = _ratio(float(products - s[n60 + PROD]), float(squares60))
    out[B + 12] = _ratio(float(products - s[n240 + PROD]), float(squares240))
    out[B + 13] = _ratio(float(s[n0 + FIVE] - s[n240 + FIVE]), 5.0 * squares240)
    largest = s[LARGEST_QUEUE + SHORT_QUEUE + (s[LARGEST + 1] & (SHORT_QUEUE - 1))]
    out[B + 14] = _ratio(largest * LOG_UNIT, sigma240)
    out[B + 15] = _ratio(float(min(high - low, 1 << 30)), (s[n0 + RANGE] - s[n60 + RANGE]) / 60.0)

    # C: the shape of the last candle
    spread = float(high - low)
    out[C + 0] = _ratio(float(lc - opened), spread)
    out[C + 1] = _ratio(float(high - max(opened, lc)), spread)
    out[C + 2] = _ratio(float(min(opened, lc) - low), spread)
    out[C + 3] = _ratio(float(2 * lc - high - low), spread)

    # D: location and trend
    top240, bottom240 = _top(s, LAST_240), _bottom(s, LAST_240)
    top1440, bottom1440 = _top(s, LAST_1440), _bottom(s, LAST_1440)
    out[D + 0] = _position(
        lc,
        s[_top(s, LAST_15) + QUEUE],
        -s[_bottom(s, LAST_15) + QUEUE],
    )
    out[D + 1] = _position(
        lc,
        s[_top(s, LAST_60) + QUEUE],
        -s[_bottom(s, LAST_60) + QUEUE],
    )
    out[D + 2] = _position(lc, s[top240 + QUEUE], -s[bottom240 + QUEUE])
    out[D + 3] = _position(lc, s[top1440 + QUEUE], -s[bottom1440 + QUEUE])
    out[D + 4] = (minute - s[top240]) / 240.0
    out[D + 5] = (minute - s[bottom240]) / 240.0
    out[D + 6] = (minute - s[top1440]) / 1440.0
    out[D + 7] = (minute - s[bottom1440]) / 1440.0
    lc60, lc240 = lc_sum - s[n60 + LC_SUM], lc_sum - s[n240 + LC_SUM]
    out[D + 8] = _ratio((60 * lc - lc60) / 60.0 * LOG_UNIT, sigma240 * math.sqrt(60.0))
    out[D + 9] = _ratio((240 * lc - lc240) / 240.0 * LOG_UNIT, sigma240 * math.sqrt(240.0))
    lc30 = lc_sum - s[n30 + LC_SUM]
    out[D + 10] = _slope(30, lc_moment - s[n30 + LC_MOMENT] - (minute - 29) * lc30, lc30, sigma240)
    out[D + 11] = _slope(240, lc_moment - s[n240 + LC_MOMENT] - (minute - 239) * lc240, lc240, sigma240)
    out[D + 12] = _ratio(_above_mean(f, minute, 1, 8, _OUTER_20, _WHOLE_20) * LOG_UNIT, sigma240)
    out[D + 13] = _ratio(_above_mean(f, minute, 2, 20, _OUTER_100, _WHOLE_100) * LOG_UNIT, sigma240)

    # E: volume and activity
    place = minute % length
    quote = s[LONG + place]
    q1 = quote - s[LONG + _before(place, 1, length)]
    q15 = quote - s[LONG + _before(place, 15, length)]
    q60 = quote - s[LONG + _before(place, 60, length)]
    q240 = quote - s[LONG + _before(place, 240, length)]
    q1440 = quote - s[LONG + _before(place, 1440, length)]
    trades15, trades240 = s[n0 + TRADES] - s[n15 + TRADES], s[n0 + TRADES] - s[n240 + TRADES]
    volume60, volume240 = volume - s[n60 + VOLUME], volume - s[n240 + VOLUME]
    out[E + 0] = _log((q1 + 1.0) / (q60 / 60.0 + 1.0))
    out[E + 1] = _log((q15 / 15.0 + 1.0) / (q240 / 240.0 + 1.0))
    out[E + 2] = _log((q60 / 60.0 + 1.0) / (q1440 / 1440.0 + 1.0))
    out[E + 3] = _log((trades15 / 15.0 + 1.0) / (trades240 / 240.0 + 1.0))
    out[E + 4] = _log(_quotient(_quotient(float(q15), float(trades15)), _quotient(float(q240), float(trades240))))
    abs1440 = k_abs - s[d1440 + K_ABS]
    out[E + 5] = _log(_quotient(float(abs60), float(q60))) - _log(_quotient(float(abs1440), float(q1440)))
    out[E + 6] = _ratio(lc * LOG_UNIT - _log(_quotient(float(q60), float(volume60)) * 10.0), sigma240)
    out[E + 7] = _ratio(lc * LOG_UNIT - _log(_quotient(float(q240), float(volume240)) * 10.0), sigma240)
    out[E + 8] = (s[n0 + QUIET] - s[n60 + QUIET]) / 60.0
    if length >= 10_141 and s[HELD] >= 10_140:
        earlier = 0
        for d in range(1, 8):
            earlier += s[LONG + _before(place, d * 1440, length)] - s[LONG + _before(place, d * 1440 + 60, length)]
        out[E + 9] = _log((q60 + 1.0) / (earlier / 7.0 + 1.0))

    # F: taker flow
    out[F + 0] = _ratio(float(flow - s[n1 + FLOW]), float(volume - s[n1 + VOLUME]))
    out[F + 1] = _ratio(float(flow - s[n5 + FLOW]), float(volume - s[n5 + VOLUME]))
    out[F + 2] = _ratio(float(flow - s[n15 + FLOW]), float(volume - s[n15 + VOLUME]))
    out[F + 3] = _ratio(float(flow - s[n60 + FLOW]), float(volume60))
    out[F + 4] = _ratio(float(flow - s[n240 + FLOW]), float(volume240))
    phi1440 = phi - s[d1440 + PHI]
    phi15 = phi - s[d15 + PHI]
    phi60 = phi - s[d60 + PHI]
    flow_deviation = _deviation(1440, phi1440, phi_squares - s[d1440 + PHI2])
    out[F + 5] = _clip8(_ratio((96 * phi15 - phi1440) / 1440.0, flow_deviation / math.sqrt(15.0)))
    k5 = s[n0 + K5] - s[n60 + K5]
    covariance = float(60 * (s[n0 + KPHI] - s[n60 + KPHI]) - k5 * phi60)
    k_variance = float(60 * squares60 - k5 * k5)
    phi_variance = float(60 * (phi_squares - s[d60 + PHI2]) - phi60 * phi60)
    out[F + 6] = _ratio(covariance, math.sqrt(k_variance * phi_variance))
    out[F + 7] = _ratio(_ratio(covariance, phi_variance) * (32.0 * 65536.0 * LOG_UNIT), sigma60)
    out[F + 8] = out[F + 5] - out[A + 7]

    # G: premium, mark, index, funding. `due` is the newest minute whose bars are known
    due = minute - 1
    _sum_premium(s, due)
    premium = _filled_premium(s, due)
    if premium != _MISSING:
        out[G + 0] = premium / 1e4
        out[G + 1] = _premium_mean(s, due, 60) / 1e4
        out[G + 2] = _premium_mean(s, due, 480) / 1e4
        t0 = TOTALS + (due & (DAY_MINUTES - 1)) * 4
        t1440 = TOTALS + ((due - 1440) & (DAY_MINUTES - 1)) * 4
        deviation = _deviation(1440, s[t0] - s[t1440], s[t0 + 1] - s[t1440 + 1])
        out[G + 3] = _ratio(premium - _premium_mean(s, due, 1440), deviation)
        earlier = _filled_premium(s, due - 15)
        if earlier != _MISSING:
            out[G + 4] = (premium - earlier) / 1e4
    age = _age(s, MARKS, due)
    if age >= 0:
        ours = s[_day_row(due - age) + LC]
        out[G + 5] = (s[MARKS + FEW + ((due - age) & (FEW - 1))] - ours) * LOG_UNIT * 1e4
    age = _age(s, INDEXES, due)
    if age >= 0:
        bar = due - age
        theirs, now, then = s[INDEXES + FEW + (bar & (FEW - 1))], _day_row(bar), _day_row(bar - 5)
        out[G + 6] = (s[now + LC] - theirs) * LOG_UNIT * 1e4
        if s[INDEXES + ((bar - 5) & (FEW - 1))] == bar - 5:
            lead = theirs - s[INDEXES + FEW + ((bar - 5) & (FEW - 1))] - (s[now + K_SUM] - s[then + K_SUM])
            out[G + 7] = _ratio(lead * LOG_UNIT, sigma240 * math.sqrt(5.0))
    _funding(s, minute + 1, due, out)

    # H: open interest
    period = s[OI_NEWEST]
    if period > 0 and (minute + 1) - 5 * period <= 20 and (minute + 1) >= 5 * period:
        interest = s[OIS + OI_PERIODS + (period & (OI_PERIODS - 1))]
        for column, back in ((0, 1), (1, 12), (2, 48), (3, 288)):
            if s[OIS + ((period - back) & (OI_PERIODS - 1))] == period - back:
                out[H + column] = (interest - s[OIS + OI_PERIODS + ((period - back) & (OI_PERIODS - 1))]) * LOG_UNIT
        if s[OI_COUNT] * 100 >= 288 * 95:
            deviation = _deviation(s[OI_COUNT], s[OI_SUM], s[OI_SQUARES]) * (32.0 * LOG_UNIT)
            out[H + 4] = _clip8(_ratio(out[H + 1], deviation * math.sqrt(12.0)))
        if f[OI_VALUE] > 0 and s[OI_VALUE_AT] == period:
            out[H + 5] = _log(q1440 / 100.0 / f[OI_VALUE])
        out[H + 6] = out[A + 8] * out[H + 4]

    # I: positioning
    _ratios(s, GLOBALS, G_NEWEST, minute + 1, out, I + 0, I + 3, I + 5)
    _ratios(s, TOP_POSITIONS, TP_NEWEST, minute + 1, out, I + 2, I + 4, I + 6)
    if s[TA_NEWEST] > 0 and (minute + 1) - 5 * s[TA_NEWEST] <= 20:
        out[I + 1] = s[TA_VALUE] * LOG_UNIT
    out[I + 7] = out[I + 2] - out[I + 0]

    # J: longer bars
    out[J + 0] = _ratio((s[H15_CLOSE] - s[H15_BACK]) * LOG_UNIT, sigma1440 * math.sqrt(60.0))
    out[J + 1] = _position(s[H15_CLOSE], s[H15_TOP], s[H15_BOTTOM])
    out[J + 2] = _ratio((s[H1_CLOSE] - s[H1_BACK]) * LOG_UNIT, sigma1440 * math.sqrt(1440.0))
    out[J + 3] = _position(s[H1_CLOSE], s[H1_TOP], s[H1_BOTTOM])
    out[J + 4] = _log(_quotient(s[H1_QUOTE24] / 24.0, s[H1_QUOTE96] / 96.0))

    # L: calendar
    out[L + 0] = _SIN[(minute + 1) % 1440]
    out[L + 1] = _COS[(minute + 1) % 1440]
    out[L + 2] = ((minute + 1) % 60) / 60.0
    if s[LISTED] > 0 and minute + 1 >= s[LISTED]:
        out[L + 3] = math.log(1.0 + (minute + 1 - s[LISTED]) / 1440.0)

    _book(s, f, minute, volume60, out)
    _apply_rules(s, place, length, rules, out, vector)


@part
def _before(place: int, minutes: int, length: int) -> int:
    """The place so many minutes, fewer than there are, before another in a ring."""
    return place - minutes if place >= minutes else place - minutes + length


@part
def _day_row(minute: int) -> int:
    """Where the totals of a minute of the last day are."""
    return DAY + (minute & (DAY_MINUTES - 1)) * DAY_COLUMNS


@part
def _near_row(minute: int) -> int:
    """Where the totals of a minute of the last four hours are."""
    return NEAR + (minute & (NEAR_MINUTES - 1)) * NEAR_COLUMNS


@part
def _sigma(squares: int, window: int) -> float:
    return math.sqrt(squares / window) * (32.0 * LOG_UNIT)


@part
def _ratio(numerator: float, denominator: float) -> float:
    """N3: 0 where both are 0, NaN where only the denominator is."""
    if denominator == 0.0:
        return 0.0 if numerator == 0.0 else math.nan
    return numerator / denominator


@part
def _quotient(numerator: float, denominator: float) -> float:
    """For what a logarithm is taken of: NaN where the denominator is 0."""
    return numerator / denominator if denominator != 0.0 else math.nan


@part
def _log(value: float) -> float:
    return math.log(value) if value > 0.0 else math.nan


@part
def _clip8(value: float) -> float:
    return min(max(value, -8.0), 8.0) if value == value else value


@part
def _position(value: int, top: int, bottom: int) -> float:
    return _ratio(float(value - bottom), float(top - bottom))


@part
def _deviation(count: int, total: int, squares: int) -> float:
    """Population standard deviation of integers from their sums, without cancellation: around their rounded mean."""
    middle = total // count
    around = squares - 2 * middle * total + count * middle * middle
    rest = (total - count * middle) / count
    return math.sqrt(max(around / count - rest * rest, 0.0))


@part
def _slope(window: int, moment: int, total: int, sigma: float) -> float:
    """`moment` is Σ j·lc_j with j = 0 the oldest. The numerator is an integer: converted first, it would cancel."""
    numerator = float(2 * moment - (window - 1) * total)
    slope = numerator / (2.0 * window) * LOG_UNIT / ((window * window - 1.0) / 12.0)
    return _ratio(slope * math.sqrt(float(window)), sigma)


@part
def _distance(f: Floats, minute: int, weights: Floats) -> float:
    """Σ w_i (lc_0 - lc_i) over the minutes there are weights for, in this order: floats are not associative."""
    newest = f[LINE + (minute & (LINE_MINUTES - 1)) * LINE_COLUMNS]
    total = 0.0
    for age in range(len(weights)):
        total += weights[age] * (newest - f[LINE + ((minute - age) & (LINE_MINUTES - 1)) * LINE_COLUMNS])
    return total


@part
def _above_mean(f: Floats, minute: int, column: int, block: int, weights: Floats, whole: float) -> float:
    """lc_0 - Σ w_i lc_i by blocks, whose inner part was summed when they were the newest: a tenth of the work."""
    newest = f[LINE + (minute & (LINE_MINUTES - 1)) * LINE_COLUMNS]
    total = 0.0
    for number in range(len(weights)):
        line = LINE + ((minute - number * block) & (LINE_MINUTES - 1)) * LINE_COLUMNS
        total += weights[number] * ((newest - f[line]) * whole + f[line + column])
    return total


_MISSING = 1 << 60


@part
def _filled_premium(s: Integers, minute: int) -> int:
    """The bar of a minute, or the one before; `_MISSING` where there is neither."""
    for age in range(2):
        place = PREMIUMS + ((minute - age) & (DAY_MINUTES - 1))
        if s[place] == minute - age:
            return int(s[place + DAY_MINUTES])
    return _MISSING


@part
def _sum_premium(s: Integers, due: int) -> None:
    """Bring the running totals of the premium up to this minute, again from where a bar came late."""
    first = max(s[PREMIUM_HEAD] + 1, due - 1500)
    if first == due - 1500:
        start = TOTALS + ((first - 1) & (DAY_MINUTES - 1)) * 4
        s[start : start + 4] = 0
    for minute in range(first, due + 1):
        here, before = TOTALS + (minute & (DAY_MINUTES - 1)) * 4, TOTALS + ((minute - 1) & (DAY_MINUTES - 1)) * 4
        value = _filled_premium(s, minute)
        missing = 1 if value == _MISSING else 0
        value = 0 if missing else value
        s[here] = s[before] + value
        s[here + 1] = s[before + 1] + value * value
        s[here + 2] = s[before + 2] + value * minute
        s[here + 3] = s[before + 3] + missing
    s[PREMIUM_HEAD] = max(due, s[PREMIUM_HEAD])


@part
def _premium_mean(s: Integers, due: int, window: int) -> float:
    t0, t1 = TOTALS + (due & (DAY_MINUTES - 1)) * 4, TOTALS + ((due - window) & (DAY_MINUTES - 1)) * 4
    return (s[t0] - s[t1]) / window if s[t0 + 3] == s[t1 + 3] else math.nan


@part
def _age(s: Integers, ring: int, due: int) -> int:
    """0 where the bar that is due is there, 1 where only the one before is, else -1."""
    if s[ring + (due & (FEW - 1))] == due:
        return 0
    return 1 if s[ring + ((due - 1) & (FEW - 1))] == due - 1 else -1


@part
def _funding(s: Integers, now: int, due: int, out: Floats) -> None:
    """fund_last to fund_ivl; `now` is T in minutes, `due` the newest minute whose premium is known."""
    newest = s[FUND_NEWEST]
    place = FUNDS + (newest & (FUND_HOURS - 1))
    if newest == 0 or s[place] != newest:
        return
    interval = s[place + 2 * FUND_HOURS]
    if interval == 0:
        for back in range(1, 9):
            if s[FUNDS + ((newest - back) & (FUND_HOURS - 1))] == newest - back:
                interval = back
                break
    since = now - 60 * newest
    if interval == 0 or since < 0 or since * 10 > 11 * 60 * interval:
        return
    out[G + 8] = s[place + FUND_HOURS] / 1e8 / interval * 1e4
    bars = due - 60 * newest + 1
    if bars >= 1 and bars <= 60 * interval and now >= NEW_FORMULA_MINUTE:
        t0, t1 = TOTALS + (due & (DAY_MINUTES - 1)) * 4, TOTALS + ((due - bars) & (DAY_MINUTES - 1)) * 4
        if s[t0 + 3] == s[t1 + 3]:
            moment = s[t0 + 2] - s[t1 + 2] - (60 * newest - 1) * (s[t0] - s[t1])
            premium = moment / (bars * (bars + 1) / 2.0) / 1e8
            out[G + 9] = (premium + min(max(0.0001 - premium, -0.0005), 0.0005)) / 8.0 * 1e4
    out[G + 10] = out[G + 9] - out[G + 8]
    out[G + 12] = max(60 * interval - since, 0) / (60.0 * interval)
    out[G + 13] = float(interval)
    if s[FUND_DAY_FROM] != (now - 1440) // 60:
        s[FUND_DAY_FROM] = (now - 1440) // 60
        s[FUND_DAY] = _funding_since(s, newest, s[FUND_DAY_FROM])
    if s[FUND_DAY] != _MISSING:
        out[G + 11] = s[FUND_DAY] / 1e8 * 1e4


@part
def _funding_since(s: Integers, newest: int, hour_before: int) -> int:
    """The rates of the settlements after this hour; `_MISSING` where one of them is not there."""
    total, last = 0, newest
    for hour in range(newest, newest - 40, -1):
        if s[FUNDS + (hour & (FUND_HOURS - 1))] == hour:
            if hour <= hour_before:
                return total
            total += s[FUNDS + FUND_HOURS + (hour & (FUND_HOURS - 1))]
            last = hour
        elif last - hour >= 8:
            break  # no interval is longer: a settlement is missing
    return _MISSING


@part
def _ratios(s: Integers, ring: int, head: int, now: int, out: Floats, level: int, change: int, score: int) -> None:
    """The three columns of a long/short ratio; `now` is T in minutes."""
    period = s[head]
    if period == 0 or now - 5 * period > 20 or now < 5 * period:
        return
    value = s[ring + RATIO_PERIODS + (period & (RATIO_PERIODS - 1))]
    out[level] = value * LOG_UNIT
    if s[ring + ((period - 12) & (RATIO_PERIODS - 1))] == period - 12:
        out[change] = (value - s[ring + RATIO_PERIODS + ((period - 12) & (RATIO_PERIODS - 1))]) * LOG_UNIT
    count = s[head + 3]
    if count * 100 >= 2016 * 95:
        deviation = _deviation(count, s[head + 1], s[head + 2])
        out[score] = _ratio(((value >> 8) * count - s[head + 1]) / count, deviation)


@part
def _book(s: Integers, f: Floats, minute: int, volume60: int, out: Floats) -> None:
    row = BOOK_ROWS + (minute & (BOOK_MINUTES - 1)) * BOOK_COLUMNS
    if s[BOOKS + (minute & (BOOK_MINUTES - 1))] != minute or (minute + 1) * 60_000 - f[row + 7] > 5_000:
        return
    bid, bid_qty, ask, ask_qty = f[row], f[row + 1], f[row + 2], f[row + 3]
    mid = (bid + ask) / 2.0
    spread = (ask - bid) / mid * 1e4
    out[M + 0] = spread
    total = 0.0
    for age in range(60):
        if s[BOOKS + ((minute - age) & (BOOK_MINUTES - 1))] != minute - age:
            total = math.nan
            break
        total += f[BOOK_ROWS + ((minute - age) & (BOOK_MINUTES - 1)) * BOOK_COLUMNS + 4]
    out[M + 1] = _log(_quotient(spread, total / 60.0))
    out[M + 2] = _ratio(bid_qty - ask_qty, bid_qty + ask_qty)
    out[M + 3] = f[row + 5]
    micro = _quotient(bid * ask_qty + ask * bid_qty, bid_qty + ask_qty)
    out[M + 4] = (micro - mid) / mid * 1e4
    out[M + 5] = _ratio(f[row + 6], volume60 / 60_000.0)


@part
def _median(ordered: Floats | Singles) -> float:
    count = len(ordered)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2.0 if count else math.nan


@part
def _follow(s: Integers, btc: Integers, minute: int, row: Singles) -> None:
    """beta_1440 and resid_60."""
    ours, theirs = 0, 0
    end = (minute & (DAY_MINUTES - 1)) + 1
    spans = (
        (CHANGES + max(end - 1440, 0), CHANGES + end),
        (CHANGES + DAY_MINUTES - max(1440 - end, 0), CHANGES + DAY_MINUTES),
    )
    for first, last in spans:
        for i in range(first, last):
            ours += s[i] * btc[i]
            theirs += btc[i] * btc[i]
    d0, d60, d1440 = _day_row(minute), _day_row(minute - 60), _day_row(minute - 1440)
    beta = _ratio(float(ours), float(theirs))
    residual = (s[d0 + K_SUM] - s[d60 + K_SUM]) - beta * (btc[d0 + K_SUM] - btc[d60 + K_SUM])
    row[X + 3] = beta
    row[X + 4] = _ratio(residual * LOG_UNIT, _sigma(s[d0 + K2] - s[d1440 + K2], 1440) * math.sqrt(60.0))


@part
def _late(s: Integers) -> int:
    now = s[LAST] + 1
    due = now - 2
    late = 0
    if s[MARKS + (due & (FEW - 1))] != due:
        late |= 1 << MARK
    if s[INDEXES + (due & (FEW - 1))] != due:
        late |= 1 << INDEX
    if s[PREMIUMS + (due & (DAY_MINUTES - 1))] != due:
        late |= 1 << PREMIUM
    newest = s[FUND_NEWEST]
    interval = s[FUNDS + 2 * FUND_HOURS + (newest & (FUND_HOURS - 1))]
    if now > 60 * newest + 60 * (interval if interval > 0 else 8):
        late |= 1 << FUNDING
    if s[OI_NEWEST] < (now - 2) // 5:
        late |= 1 << OPEN_INTEREST
    if s[G_NEWEST] < (now - 2) // 5:
        late |= 1 << GLOBAL
    if s[TA_NEWEST] < (now - 2) // 5:
        late |= 1 << TOP_ACCOUNT
    if s[TP_NEWEST] < (now - 2) // 5:
        late |= 1 << TOP_POSITION
    if s[BOOKS + ((now - 1) & (BOOK_MINUTES - 1))] != now - 1:
        late |= 1 << BOOK
    return late


@part
def _apply_rules(s: Integers, place: int, length: int, rules: Floats, out: Floats, vector: Floats | Singles) -> None:
    """N1, synthetic minutes and clips, from the catalogue's numbers."""
    held, whole = float(min(s[HELD], s[CAP])), float(min(s[WHOLE], s[CAP]))
    for column in range(WIDTH):
        minutes = whole if rules[NEEDS_FLOW, column] > 0.0 else held
        value = out[column]
        value = rules[LOWEST, column] if value < rules[LOWEST, column] else value
        value = rules[HIGHEST, column] if value > rules[HIGHEST, column] else value
        vector[column] = math.nan if rules[LOOKBACK, column] > minutes else value
    totals = LONG + length
    window = min(int(held), length - 1)
    if s[totals + place] != s[totals + _before(place, window, length)]:
        for column in range(WIDTH):
            window = int(rules[LOOKBACK, column])
            if window <= held:
                synthetic = s[totals + place] - s[totals + _before(place, window, length)]
                if synthetic * 20 > window:
                    vector[column] = math.nan


# ---- what is called from outside; everything above is compiled as a part of these


@compiled
def push(
    ints: Integers,
    floats: Floats,
    row: int,
    minute: int,
    lop: int,
    lh: int,
    ll: int,
    lc: int,
    v: int,
    b: int,
    q: int,
    n: int,
    synthetic: int,
    whole: int,
) -> None:
    """Take the next closed candle of a symbol: its minute since 1970, quantised logs, volumes as integers, 0 or 1 for
    synthetic and for having quote volume, trades and taker volume. One that does not follow the last restarts the
    window."""
    _push(ints[row], floats[row], minute, lop, lh, ll, lc, v, b, q, n, synthetic, whole)


@compiled
def put(ints: Integers, floats: Floats, row: int, kind: int, time: int, value: float, beside: float) -> None:
    """Take a row that is not a candle, `time` in milliseconds: the open time of a price bar with its close; a
    settlement with its rate and interval in hours; the end of a period with open interest and its value in quote, or
    with a ratio. Values are quantised here and nowhere else. What has a value already keeps it."""
    _put(ints[row], floats[row], kind, time, value, beside)


@compiled
def put_book(ints: Integers, floats: Floats, row: int, time: int, values: Floats) -> None:
    """Take a minute of the best bid and ask: its start in milliseconds, and the columns of BOOK_COLUMNS. Of two rows of
    a minute the one updated later stays, as it does in the table."""
    _put_book(ints[row], floats[row], time, values)


@compiled
def put_known(ints: Integers, floats: Floats, waiting: Integers, values: Floats, count: int, until: int) -> int:
    """Of the first `count` waiting rows (symbol's row, kind, time, known_at; value, beside) put in those that are known
    at the symbol's T, or by `until`, and close the ranks. Returns how many go on waiting."""
    left = 0
    for i in range(count):
        row = waiting[i, 0]
        if waiting[i, 3] <= max((ints[row, LAST] + 1) * 60_000, until):
            _put(ints[row], floats[row], waiting[i, 1], waiting[i, 2], values[i, 0], values[i, 1])
        else:
            waiting[left] = waiting[i]
            values[left] = values[i]
            left += 1
    return left


@compiled
def finish(ints: Integers, floats: Floats, rows: Integers, rules: Floats, out: Floats, late: Integers) -> None:
    """Write the vector of each of these rows, float64 [len(rows), WIDTH], those of group K as NaN; and which kinds of
    rows, a bit each, should have been known at T and are not there."""
    before_rules = np.empty(WIDTH)
    for place in range(len(rows)):
        _finish(ints[rows[place]], floats[rows[place]], rules, before_rules, out[place])
        late[place] = _late(ints[rows[place]])


@compiled
def compare(btc: int, rules: Floats, vectors: Singles) -> None:
    """Write the columns of group K but beta_1440 and resid_60, which are made of states and must be there already, for
    these vectors float32 [n, WIDTH] of one minute. `btc` is the place of BTCUSDT among them, or -1: then nothing is
    measured by it."""
    scores = np.sort(vectors[:, A + 7][~np.isnan(vectors[:, A + 7])])
    middle = _median(scores)
    distances = np.sort(np.abs(scores.astype(np.float64) - middle))
    moves = np.sort(vectors[:, A + 8][~np.isnan(vectors[:, A + 8])])
    for place in range(len(vectors)):
        row = vectors[place]
        row[X + 5], row[X + 6], row[X + 7] = middle, _median(distances), math.nan
        move = row[A + 8]
        if move == move:
            below, up_to = np.searchsorted(moves, move), np.searchsorted(moves, move, side="right")
            row[X + 7] = (below + up_to) / 2.0 / len(moves)
        if btc >= 0:
            row[X], row[X + 1], row[X + 2] = vectors[btc, A], vectors[btc, A + 7], vectors[btc, A + 8]
        else:
            row[X : X + 5] = math.nan
        for column in range(X, X + 8):
            if row[column] < rules[LOWEST, column]:
                row[column] = rules[LOWEST, column]
            elif row[column] > rules[HIGHEST, column]:
                row[column] = rules[HIGHEST, column]


@compiled
def cross_section(ints: Integers, rows: Integers, minute: int, btc: int, rules: Floats, vectors: Singles) -> None:
    """Write the columns of group K of all symbols that have this minute: their states, and their vectors float32
    [len(rows), WIDTH], of which it is made; `btc` is the place of BTCUSDT among them or -1. States may be up to 90
    minutes further than `minute`."""
    for place in range(len(rows)):
        row = vectors[place]
        # rv_1440 has a value wherever 1441 minutes are held.
        if btc >= 0 and row[B + 4] == row[B + 4] and vectors[btc, B + 4] == vectors[btc, B + 4]:
            _follow(ints[rows[place]], ints[rows[btc]], minute, row)
    compare(btc, rules, vectors)


@compiled
def put_until(
    ints: Integers,
    floats: Floats,
    row: int,
    known: Integers,
    times: Integers,
    values: Floats,
    bounds: Integers,
    places: Integers,
    until: int,
) -> None:
    """Put in what is known by `until` of the rows of every kind, described at `replay`, and move `places` on."""
    _put_until(ints[row], floats[row], known, times, values, bounds, places, until)


@compiled
def replay(
    s: Integers,
    f: Floats,
    candles: Integers,
    first: int,
    last: int,
    known: Integers,
    times: Integers,
    values: Floats,
    bounds: Integers,
    places: Integers,
    books: Floats,
    rules: Floats,
    start_minute: int,
    columns: Integers,
    out: Singles,
) -> int:
    """History of one symbol: push the candles [first, last), each after what was known at its close, and write these
    columns of the vectors of those from `start_minute` on; returns how many.

    `candles` int64 [11, n] are the arguments of `push` from `minute` on; other rows of kind i (known_at, time, values
    [n, 2]) lie in [bounds[i], bounds[i + 1]), and `places` says how far each kind has been put in; books [n, 9] are the
    arguments of `put_book`; `columns` int64 [n, 2] are first and last + 1 of columns that follow on each other.
    """
    written = 0
    before_rules, vector = np.empty(WIDTH), np.empty(WIDTH, np.float32)
    book = np.empty(BOOK_COLUMNS)
    for i in range(first, last):
        minute = candles[0, i]
        _push(
            s,
            f,
            minute,
            candles[1, i],
            candles[2, i],
            candles[3, i],
            candles[4, i],
            candles[5, i],
            candles[6, i],
            candles[7, i],
            candles[8, i],
            candles[9, i],
            candles[10, i],
        )
        close = (minute + 1) * 60_000
        _put_until(s, f, known, times, values, bounds, places, close)
        j = places[BOOK]
        while j < len(books) and books[j, 0] < close:
            book[:] = books[j, 1:]
            _put_book(s, f, int(books[j, 0]), book)
            j += 1
        places[BOOK] = j
        if minute >= start_minute:
            _finish(s, f, rules, before_rules, vector)
            _select(vector, columns, out, written)
            written += 1
    return written


@part
def _select(vector: Singles, columns: Integers, out: Singles, row: int) -> None:
    """Runs of columns, not places one by one. They are single already: what turns doubles into singles eight at once
    would, in a function that does nothing else, leave the processor in a state in which the next logarithm of the C
    library takes 300 ns (LLVM 22 writes no `vzeroupper` there)."""
    to = 0
    for run in range(len(columns)):
        source = vector[columns[run, 0] : columns[run, 1]]
        target = out[row, to : to + len(source)]
        for i in range(len(source)):
            target[i] = source[i]
        to += len(source)
