"""The feature list as data: what each column of a vector means, how far it looks back and when it has no value.

Notation. T is the close of the minute that is decided; i = 0 is that minute, i = 1 the one before. lc, lop, lh, ll are
the logarithms of close, open, high and low in units of 2**-30; k_i = lc_i - lc_i+1, clipped to ±2**28 (±25 %). Squares
and products are taken of k' = k >> 5. v and b are volume and taker-buy volume in thousandths, q the quote volume in
hundredths, n the number of trades; f = 2b - v, φ = 2**16 f/v rounded. S_W[x] and M_W[x] are sum and mean of the last W
minutes, sd_W the population standard deviation, σ_W = sqrt(M_W[k²]) / 2**30 the volatility of a minute around zero.

Mark, index and premium bars are known a minute after they ended: their i = 0 is the minute that ended at T - 60 s, and
what compares them with our own price takes our candle of the same minute (docs/decisions/0010). A single missing bar is
filled by the one before, two are not. p is the premium index in units of 1e-8, O_j the logarithm of the open interest
of the j-th period of five minutes before the last one known.
"""

import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import Literal

from msgspec import Struct

NanRule = Literal["N1", "N2", "N3", "N4"]
"""N1: no value until `lookback_min` contiguous minutes are held, never a partial window, and none while more than 5 %
of them are synthetic. N2: none while a bar is missing. N3: with a zero denominator a ratio is 0 if its numerator is 0
too, and has no value otherwise; the logarithm of 0 has no value either. Never inf. N4: none of what is too old (open
interest and ratios: 20 minutes; funding: 1.1 times its interval; best bid and ask: 5 s)."""

VOLUME_UNITS = 1_000
"""Volumes are summed as integers in thousandths of the base unit."""
QUOTE_UNITS = 100
"""Quote volumes are summed as integers in hundredths of the quote unit."""
RATE_UNITS = 100_000_000
"""Premium index and funding rates are summed as integers in units of 1e-8."""
RETURN_CLIP = 1 << 28
SQUARE_SHIFT = 5
"""Squares are taken of k >> 5, so that their sums fit 64 bits even if every return sits at the clip."""
RATIO_SHIFT = 8
"""Sums of long/short ratios are taken of logarithms in units of 2**-22, for the same reason."""
KERNEL_ABI = 2
"""Part of the schema hash; changed when the arithmetic below the formulas changes."""


class Feature(Struct, frozen=True, kw_only=True):
    """One column. A change of its formula is a new `version`, and with it a new schema hash."""

    name: str
    version: int = 1
    group: str
    formula: str
    inputs: tuple[str, ...]
    """What it is made of, as table.column. Where one of them does not exist, neither does the feature."""
    lookback_min: int
    """Contiguous minutes that must be held, the one that closed at T included; nothing older has any influence."""
    clip: tuple[float, float] | None = None
    nan: tuple[NanRule, ...]
    critical: bool = False
    """Whether a model should not be asked where this has no value."""
    dtype: Literal["f32"] = "f32"

    @property
    def tables(self) -> frozenset[str]:
        """The tables it needs rows of."""
        return frozenset(name.split(".", 1)[0] for name in self.inputs)

    @property
    def needs_flow(self) -> bool:
        """Whether it needs what a file of open, high, low, close and volume does not have."""
        return not FLOW_INPUTS.isdisjoint(self.inputs)


def _inputs(table: str, columns: str) -> tuple[str, ...]:
    return tuple(f"{table}.{column}" for column in columns.split())


_CLOSE = _inputs("candles_1m", "close")
_RANGE = _inputs("candles_1m", "high low close")
_BODY = _inputs("candles_1m", "open high low close")
_QUOTE = _inputs("candles_1m", "quote_volume")
_TRADES = _inputs("candles_1m", "trades")
_VWAP = _inputs("candles_1m", "close volume quote_volume")
_FLOW = _inputs("candles_1m", "volume taker_buy_volume")
_PREMIUM = _inputs("premium_klines", "close")
_MARK = _inputs("mark_klines", "close")
_INDEX = _inputs("index_klines", "close")
_FUNDING = _inputs("funding_rates", "rate interval_hours")
_OI = _inputs("open_interest", "open_interest")
_OI_VALUE = _inputs("open_interest", "open_interest_value")
_GLOBAL = _inputs("long_short_ratio", "global_account")
_TOP_ACCOUNT = _inputs("long_short_ratio", "top_account")
_TOP_POSITION = _inputs("long_short_ratio", "top_position")
_BOOK = _inputs("book_minutes", "bid bid_qty ask ask_qty updated_at")

LATE_BITS: dict[str, int] = {
    series: 1 << bit
    for bit, series in enumerate(
        (
            "mark_klines",
            "index_klines",
            "premium_klines",
            "funding_rates",
            "open_interest",
            "long_short_ratio.global_account",
            "long_short_ratio.top_account",
            "long_short_ratio.top_position",
            "book_minutes",
        )
    )
}
"""What a late mask is made of: a bit for each series that may come too late, named by its table or table.column. The
kernel has them in the same order."""

FLOW_INPUTS = frozenset((*_QUOTE, *_TRADES, "candles_1m.taker_buy_volume"))

_N1: tuple[NanRule, ...] = ("N1",)
_N12: tuple[NanRule, ...] = ("N1", "N2")
_N14: tuple[NanRule, ...] = ("N1", "N4")
_N123: tuple[NanRule, ...] = ("N1", "N2", "N3")
_N124: tuple[NanRule, ...] = ("N1", "N2", "N4")
_N134: tuple[NanRule, ...] = ("N1", "N3", "N4")
_N1234: tuple[NanRule, ...] = ("N1", "N2", "N3", "N4")

_Z = (-8.0, 8.0)
_LOG = (-5.0, 5.0)
_BP = (-500.0, 500.0)


def _feature(
    name: str,
    formula: str,
    inputs: tuple[str, ...],
    lookback_min: int,
    nan: tuple[NanRule, ...] = ("N1", "N3"),
    clip: tuple[float, float] | None = None,
    *,
    critical: bool = False,
) -> Feature:
    return Feature(
        name=name,
        group="",
        formula=formula,
        inputs=inputs,
        lookback_min=lookback_min,
        clip=clip,
        nan=nan,
        critical=critical,
    )


_GROUPS: dict[str, tuple[Feature, ...]] = {
    # returns and momentum
    "A": (
        _feature("ret_1", "log return of the last minute: k_0 / 2**30", _CLOSE, 2, _N1),
        *(
            _feature(f"ret_{w}", f"log return of the last {w} min: S_{w}[k] / 2**30", _CLOSE, w + 1, _N1)
            for w in (5, 15, 60, 240, 1440)
        ),
        _feature("zret_5", "ret_5 / (σ_240 · sqrt(5))", _CLOSE, 241, clip=_Z),
        _feature("zret_15", "ret_15 / (σ_240 · sqrt(15))", _CLOSE, 241, clip=_Z, critical=True),
        _feature("zret_60", "ret_60 / (σ_1440 · sqrt(60))", _CLOSE, 1441, clip=_Z, critical=True),
        _feature("zret_240", "ret_240 / (σ_1440 · sqrt(240))", _CLOSE, 1441, clip=_Z),
        _feature(
            "eff_60",
            "abs(S_60[k]) / S_60[abs k]: 1 for a straight line, 0 for a walk that came back (Kaufman's efficiency)",
            _CLOSE,
            61,
        ),
        _feature("eff_240", "abs(S_240[k]) / S_240[abs k]", _CLOSE, 241),
        _feature("sumd_14", "S_14[k] / S_14[abs k], which is 2 · Cutler's RSI - 1", _CLOSE, 15),
    ),
    # volatility and the shape of the path
    "B": (
        *(_feature(f"rv_{w}", f"ln(σ_{w} + 1e-6)", _CLOSE, w + 1, _N1) for w in (5, 15, 60, 240, 1440)),
        _feature("rvr_15_240", "ln(σ_15 / σ_240)", _CLOSE, 241, clip=_LOG),
        _feature("rvr_60_1440", "ln(σ_60 / σ_1440)", _CLOSE, 1441, clip=_LOG),
        _feature(
            "park_60",
            "sqrt(M_60[(lh - ll)²] / (4 ln 2)) / 2**30 / σ_60: Parkinson's volatility by that of closes, the range of "
            "a minute clipped to 2**30",
            _RANGE,
            61,
        ),
        _feature("jump_60", "1 - (π/2) · S_60[abs(k_i) · abs(k_i+1)] / S_60[k²]: the share of jumps", _CLOSE, 62),
        _feature("semi_60", "S_60[k² where k > 0] / S_60[k²]: the share of rises", _CLOSE, 61),
        _feature("vov_60", "sd_60[abs k'] / M_60[abs k']", _CLOSE, 61),
        *(_feature(f"acf1_{w}", f"S_{w}[k_i · k_i+1] / S_{w}[k²]", _CLOSE, w + 2) for w in (60, 240)),
        _feature(
            "vr5_240",
            "S_240[(lc_i - lc_i+5)²] / (5 · S_240[k²]): the variance of five minutes by that of one",
            _CLOSE,
            245,
            clip=_Z,
        ),
        _feature("maxabs_60", "the largest abs(k) of 60 min / (2**30 σ_240)", _CLOSE, 241, clip=_Z),
        _feature("rngz", "(lh_0 - ll_0) / M_60[lh - ll]", _RANGE, 60, clip=_Z),
    ),
    # the shape of the last candle
    "C": (
        _feature("kmid2", "(lc - lop) / (lh - ll)", _BODY, 1),
        _feature("kup2", "(lh - max(lop, lc)) / (lh - ll)", _BODY, 1),
        _feature("klow2", "(min(lop, lc) - ll) / (lh - ll)", _BODY, 1),
        _feature("ksft2", "(2 lc - lh - ll) / (lh - ll)", _RANGE, 1),
    ),
    # location and trend
    "D": (
        *(
            _feature(f"rsv_{w}", f"(lc_0 - lowest ll of {w} min) / (highest lh - lowest ll of {w} min)", _RANGE, w)
            for w in (15, 60, 240, 1440)
        ),
        *(
            _feature(
                f"{name}_{w}",
                f"minutes since the {extreme} of {w} min, the newest of equals, / {w}",
                _inputs("candles_1m", column),
                w,
                _N1,
            )
            for w in (240, 1440)
            for name, extreme, column in (("tmax", "highest high", "high"), ("tmin", "lowest low", "low"))
        ),
        *(
            _feature(f"gap_{w}", f"(lc_0 - M_{w}[lc]) / 2**30 / (σ_240 · sqrt({w}))", _CLOSE, 241, clip=_Z)
            for w in (60, 240)
        ),
        *(
            _feature(
                f"slope_{w}",
                f"slope of the regression of lc over {w} min / 2**30 · sqrt({w}) / σ_240",
                _CLOSE,
                241,
                clip=_Z,
            )
            for w in (30, 240)
        ),
        *(
            _feature(
                f"wema_{span}",
                f"(lc_0 - Σ_i<{4 * span} w_i lc_i) / 2**30 / σ_240, w_i in proportion to (1 - 2/{span + 1})^i, Σw = 1",
                _CLOSE,
                max(4 * span, 241),
                clip=_Z,
            )
            for span in (20, 100)
        ),
    ),
    # volume and activity
    "E": (
        _feature("vlr_1_60", "ln((q_0 + 1) / (M_60[q] + 1))", _QUOTE, 60, _N1, _LOG),
        _feature("vlr_15_240", "ln((M_15[q] + 1) / (M_240[q] + 1))", _QUOTE, 240, _N1, _LOG),
        _feature("vlr_60_1440", "ln((M_60[q] + 1) / (M_1440[q] + 1))", _QUOTE, 1440, _N1, _LOG),
        _feature("nlr_15_240", "ln((M_15[n] + 1) / (M_240[n] + 1))", _TRADES, 240, _N1, _LOG),
        _feature("tsz_15_240", "ln((S_15[q] / S_15[n]) / (S_240[q] / S_240[n]))", (*_QUOTE, *_TRADES), 240, clip=_LOG),
        _feature(
            "illq_60",
            "ln(S_60[abs k] / S_60[q]) - ln(S_1440[abs k] / S_1440[q]) (Amihud, relative)",
            (*_CLOSE, *_QUOTE),
            1441,
            clip=_LOG,
        ),
        *(
            _feature(f"vwapgap_{w}", f"(lc_0 / 2**30 - ln(S_{w}[q] / S_{w}[v] · 10)) / σ_240", _VWAP, 241, clip=_Z)
            for w in (60, 240)
        ),
        _feature("zerofrac_60", "the share of 60 min without a trade", _TRADES, 60, _N1),
        _feature(
            "season_7d",
            "ln((S_60[q] + 1) / (the mean of S_60[q] at T - 1, 2 … 7 days + 1))",
            _QUOTE,
            10_140,
            _N1,
            _LOG,
        ),
    ),
    # taker flow
    "F": (
        *(
            _feature(
                f"tbi_{w}",
                f"taker imbalance: S_{w}[f] / S_{w}[v], 1 if takers only bought, -1 if they only sold",
                _FLOW,
                w,
                critical=w in (15, 60),
            )
            for w in (1, 5, 15, 60, 240)
        ),
        _feature("tbz_15", "(M_15[φ] - M_1440[φ]) / (sd_1440[φ] / sqrt(15))", _FLOW, 1440, clip=_Z),
        _feature("flowret_60", "correlation of k' and φ over 60 min", (*_CLOSE, *_FLOW), 61),
        _feature(
            "kyle_60",
            "cov_60(k, φ) / var_60(φ) · 2**16 / (2**30 σ_60): volatilities for a whole imbalance",
            (*_CLOSE, *_FLOW),
            61,
            clip=_Z,
        ),
        _feature("absorb_15", "tbz_15 - zret_15: flow that did not move the price", (*_CLOSE, *_FLOW), 1441, clip=_Z),
    ),
    # premium index, mark, index, funding
    "G": (
        _feature("prem_0", "premium, basis points: p_0 / 10**4", _PREMIUM, 3, _N12, _BP),
        *(_feature(f"prem_m{w}", f"M_{w}[p] / 10**4", _PREMIUM, w + 2, _N12) for w in (60, 480)),
        _feature("prem_z", "(p_0 - M_1440[p]) / sd_1440[p]", _PREMIUM, 1442, _N123, _Z),
        _feature("prem_d15", "(p_0 - p_15) / 10**4", _PREMIUM, 18, _N12),
        _feature("marklast", "ln(mark / close of the same minute) · 10**4", (*_CLOSE, *_MARK), 3, _N12, _BP),
        _feature("basis", "ln(close / index of the same minute) · 10**4", (*_CLOSE, *_INDEX), 3, _N12, _BP),
        _feature(
            "idxlead_5",
            "(return of the index - our return over the same 5 min) / (σ_240 · sqrt(5))",
            (*_CLOSE, *_INDEX),
            241,
            _N123,
            _Z,
        ),
        _feature("fund_last", "last settled rate, basis points per hour", _FUNDING, 1_020, _N14),
        _feature(
            "fund_est",
            "the rate to come, basis points per hour: (P + clamp(I - P, ±0.05 %)) / 8, P = Σ j·p_j / Σ j over the bars "
            "since the last settlement, I = 0.01 %; none before 2025-09-18, when the formula was another",
            (*_PREMIUM, *_FUNDING),
            1_020,
            _N124,
        ),
        _feature("fund_gap", "fund_est - fund_last", (*_PREMIUM, *_FUNDING), 1_020, _N124),
        _feature("fund_24h", "the rates settled in 24 hours, basis points", _FUNDING, 2_040, _N14),
        _feature("fund_frac", "minutes to the next settlement by those between two", _FUNDING, 1_020, _N14),
        _feature("fund_ivl", "hours between two settlements", _FUNDING, 1_020, _N14),
    ),
    # open interest, every five minutes
    "H": (
        *(
            _feature(f"doi_{name}", f"O_0 - O_{back}", _OI, 5 * back + 25, _N14)
            for name, back in (("5m", 1), ("1h", 12), ("4h", 48), ("24h", 288))
        ),
        _feature(
            "doi_z",
            "doi_1h / (sd_288[O_j - O_j+1] · sqrt(12)), with at least 95 % of the periods",
            _OI,
            1_470,
            _N134,
            _Z,
        ),
        _feature("oi_turn", "ln(S_1440[q] / 100 / open interest in quote)", (*_QUOTE, *_OI_VALUE), 1440, _N14, _LOG),
        _feature("oi_px", "zret_60 · doi_z: new money with the move or against it", (*_CLOSE, *_OI), 1_470, _N134),
    ),
    # positioning, every five minutes
    "I": (
        _feature("lsr_g", "ln of the accounts' long/short ratio", _GLOBAL, 25, _N14),
        _feature("lsr_ta", "ln of the top traders' accounts' long/short ratio", _TOP_ACCOUNT, 25, _N14),
        _feature("lsr_tp", "ln of the top traders' positions' long/short ratio", _TOP_POSITION, 25, _N14),
        _feature("lsr_g_d1h", "lsr_g - lsr_g 12 periods before", _GLOBAL, 85, _N14),
        _feature("lsr_tp_d1h", "lsr_tp - lsr_tp 12 periods before", _TOP_POSITION, 85, _N14),
        _feature(
            "lsr_g_z",
            "(lsr_g - its mean) / its standard deviation over 2016 periods, at least 95 % of them",
            _GLOBAL,
            10_105,
            _N134,
            _Z,
        ),
        _feature("lsr_tp_z", "the same of lsr_tp", _TOP_POSITION, 10_105, _N134, _Z),
        _feature("lsr_sp", "lsr_tp - lsr_g: the large minus the crowd", (*_GLOBAL, *_TOP_POSITION), 25, _N14),
    ),
    # longer bars, closed ones only, built from our own minutes
    "J": (
        _feature("h15_ret4", "ln(C_0 / C_4) of closed 15 min bars / (σ_1440 · sqrt(60))", _CLOSE, 1441),
        _feature("h15_rsv32", "position of C_0 in the range of the last 32 closed 15 min bars", _RANGE, 495),
        _feature("h1_ret24", "ln(C_0 / C_24) of closed 1 h bars / (σ_1440 · sqrt(1440))", _CLOSE, 1_500),
        _feature("h1_rsv72", "position of C_0 in the range of the last 72 closed 1 h bars", _RANGE, 4_379),
        _feature("h1_vr24_96", "ln(mean q of the last 24 closed 1 h bars / of the last 96)", _QUOTE, 5_819),
    ),
    # cross-section: of float32 columns of the symbols that closed the same minute
    "K": (
        _feature("btc_ret_1", "ret_1 of BTCUSDT", _CLOSE, 2, _N1),
        _feature("btc_zret_15", "zret_15 of BTCUSDT", _CLOSE, 241, clip=_Z),
        _feature("btc_zret_60", "zret_60 of BTCUSDT", _CLOSE, 1441, clip=_Z),
        _feature("beta_1440", "S_1440[k' · k' of BTCUSDT] / S_1440[k'² of BTCUSDT]", _CLOSE, 1441),
        _feature("resid_60", "(ret_60 - beta_1440 · ret_60 of BTCUSDT) / (σ_1440 · sqrt(60))", _CLOSE, 1441, clip=_Z),
        _feature("mkt_15", "median of zret_15 over the symbols", _CLOSE, 241, clip=_Z),
        _feature("disp_15", "median distance of zret_15 from mkt_15 over the symbols", _CLOSE, 241, clip=(0.0, 16.0)),
        _feature("rank_60", "rank of zret_60 among the symbols, 0 to 1, the middle one of equals", _CLOSE, 1441),
    ),
    # calendar
    "L": (
        _feature("day_sin", "sin(2π · minute of the day / 1440), UTC", _inputs("candles_1m", "open_time"), 1, _N1),
        _feature("day_cos", "cos(2π · minute of the day / 1440), UTC", _inputs("candles_1m", "open_time"), 1, _N1),
        _feature("hour_frac", "minute of the hour / 60", _inputs("candles_1m", "open_time"), 1, _N1),
        # In no schema: the time of listing is nowhere stored, and history would have no value where live has one.
        _feature("listed", "ln(1 + days since the listing)", _inputs("instruments", "onboard_time"), 1, _N1),
    ),
    # best bid and ask, by our own recording
    "M": (
        _feature("spread_bp", "(ask - bid) / mid · 10**4, last of the minute", _BOOK, 1, _N14, _BP),
        _feature(
            "spread_rel",
            "ln(spread_bp / its mean over the time of 60 min)",
            (*_BOOK, "book_minutes.spread_bps"),
            60,
            _N1234,
            _LOG,
        ),
        _feature("imb_0", "(bid_qty - ask_qty) / (bid_qty + ask_qty), last of the minute", _BOOK, 1, _N134),
        _feature("imb_tw60", "imb_0, mean over the time of the minute", ("book_minutes.imbalance",), 1, _N14),
        _feature("micro_bp", "(the price weighted by the other side - mid) / mid · 10**4", _BOOK, 1, _N134, _BP),
        _feature(
            "ofi_1m",
            "order flow imbalance of the minute (Cont, Kukanov, Stoikov) / M_60[v]",
            ("book_minutes.order_flow_imbalance", "candles_1m.volume"),
            60,
            _N134,
            (-50.0, 50.0),
        ),
    ),
}


def _grouped(feature: Feature, group: str) -> Feature:
    return Feature(**{**{name: getattr(feature, name) for name in Feature.__struct_fields__}, "group": group})


CATALOGUE: tuple[Feature, ...] = tuple(
    _grouped(feature, group) for group, features in _GROUPS.items() for feature in features
)
"""Every feature there is, in the order of the kernel's columns."""

CORE: tuple[Feature, ...] = tuple(feature for feature in CATALOGUE if feature.group not in "KLM")
"""Those that need nothing but a symbol's own stored series; K, L and M are taken in addition."""

by_name: dict[str, Feature] = {feature.name: feature for feature in CATALOGUE}

COLUMN: dict[str, int] = {feature.name: column for column, feature in enumerate(CATALOGUE)}
"""The place of each feature in a whole vector."""

LONGEST_DAY_MIN = 1_500
"""A day of candles and the hour before it: what REST brings in one call."""

_CANDLES = tuple(feature for feature in CORE if feature.tables == {"candles_1m"})
_OHLCV = tuple(feature for feature in _CANDLES if not feature.needs_flow)

SCHEMAS: dict[str, tuple[Feature, ...]] = {
    "core": CORE,
    "candles": _CANDLES,
    "candles_day": tuple(feature for feature in _CANDLES if feature.lookback_min <= LONGEST_DAY_MIN),
    "ohlcv": _OHLCV,
    "ohlcv_day": tuple(feature for feature in _OHLCV if feature.lookback_min <= LONGEST_DAY_MIN),
    **{
        f"core_{name}": CORE
        + tuple(feature for feature in CATALOGUE if feature.group == group and feature.name != "listed")
        for name, group in (("cross", "K"), ("calendar", "L"), ("book", "M"))
    },
}
"""Named subsets. What a set has no input for is not in it; it is never made up."""


def lookback_of(features: Sequence[Feature]) -> int:
    """The contiguous minutes that all of these have a value from."""
    return max(feature.lookback_min for feature in features)


def columns_of(features: Sequence[Feature]) -> list[int]:
    """The places of these features in a whole vector."""
    return [COLUMN[feature.name] for feature in features]


def late_bits(features: Sequence[Feature]) -> int:
    """The bits of a late mask that say something about these columns."""
    inputs = {name for feature in features for name in (*feature.inputs, *feature.tables)}
    return sum(bit for series, bit in LATE_BITS.items() if series in inputs)


def schema_hash(features: Sequence[Feature]) -> str:
    """32 hex digits that change with whatever changes the meaning of a vector: names, order, versions, rules, units.

    Not with the words of a formula: they may be put better, and `version` says when the formula itself changed.
    """
    schema = {
        "features": [
            [feature.name, feature.version, feature.dtype, feature.lookback_min, feature.clip, feature.nan]
            for feature in features
        ],
        "kernel_abi": KERNEL_ABI,
        "quanta": {
            "log_price": 30,
            "volume": VOLUME_UNITS,
            "quote_volume": QUOTE_UNITS,
            "rate": RATE_UNITS,
            "return_clip": RETURN_CLIP,
            "square_shift": SQUARE_SHIFT,
            "ratio_shift": RATIO_SHIFT,
        },
    }
    text = json.dumps(schema, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=16).hexdigest()
