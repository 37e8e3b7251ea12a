"""Every feature once more, slowly: plain numpy over whole windows, written from the catalogue's table (features.md 1.3)
and its rules, not from the kernel."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perpline.features.catalogue import CATALOGUE
from perpline.storage.history import SymbolHistory

MINUTE = 60_000
NAN = math.nan


def oracle(history: SymbolHistory, close: int, listed_at: int | None = None) -> dict[str, float]:
    """The 110 features of one symbol at T = close; the candles up to there must be contiguous."""
    candles = {name: values[history.candles["open_time"] < close] for name, values in history.candles.items()}
    held = contiguous(candles["open_time"])
    c = Newest(candles, held)
    values = {
        **of_candles(c),
        **of_series(history, close, c),
        **of_book(history, close, c),
        **calendar(close, listed_at),
    }
    return {
        feature.name: ruled(feature, values[feature.name], candles, held)
        for feature in CATALOGUE
        if feature.group != "K"
    }


def contiguous(opens: NDArray) -> int:
    breaks = np.flatnonzero(np.diff(opens) != MINUTE)
    return len(opens) - (int(breaks[-1]) + 1 if len(breaks) else 0)


def ruled(feature: Any, value: float, candles: Any, held: int) -> float:
    if feature.lookback_min > held or candles["synthetic"][-feature.lookback_min :].mean() > 0.05:
        return NAN
    if feature.clip and not math.isnan(value):
        value = min(max(value, feature.clip[0]), feature.clip[1])
    return value


class Newest:
    """Integer columns of candles, newest first, as far back as is wanted: Python's integers do not overflow."""

    def __init__(self, candles: Any, held: int) -> None:
        def back(values: Any) -> NDArray:
            return np.array([int(value) for value in values[-held:][::-1]], object)

        self.lc, self.lop = back(candles["log_close"]), back(candles["log_open"])
        self.lh, self.ll = back(candles["log_high"]), back(candles["log_low"])
        self.v = back(np.rint(candles["volume"] * 1000))
        self.b = back(np.rint(candles["taker_buy_volume"] * 1000))
        self.q = back(np.rint(candles["quote_volume"] * 100))
        self.n = back(candles["trades"])
        self.k = np.array([max(-(2**28), min(2**28, x)) for x in (self.lc[:-1] - self.lc[1:])], object)
        self.s = np.array([x >> 5 for x in self.k], object)  # k'
        self.f = 2 * self.b - self.v
        shares = zip(self.f, self.v, strict=True)
        self.phi = np.array([math.floor(f / v * 2**16 + 0.5) if v else 0 for f, v in shares], object)

    def sigma(self, w: int) -> float:
        return math.sqrt(float((self.s[:w] ** 2).sum()) / w) * 32 / 2**30


def ratio(a: float, b: float) -> float:
    return a / b if b else (0.0 if a == 0 else NAN)


def ln(value: float) -> float:
    return math.log(value) if value > 0 else NAN


def per(a: float, b: float) -> float:
    return a / b if b else NAN


def clip8(value: float) -> float:
    return value if math.isnan(value) else min(max(value, -8.0), 8.0)


def sd(values: Any) -> float:
    numbers = [float(value) for value in values]
    mean = math.fsum(numbers) / len(numbers)
    return math.sqrt(math.fsum((number - mean) ** 2 for number in numbers) / len(numbers))


def of_candles(c: Newest) -> dict[str, float]:
    k, s, lc, lh, ll, q, n, v = c.k, c.s, c.lc, c.lh, c.ll, c.q, c.n, c.v
    if not len(k):
        return {feature.name: NAN for feature in CATALOGUE if feature.tables == {"candles_1m"}} | shape(c)
    sigma = c.sigma
    x: dict[str, float] = shape(c)
    x["ret_1"] = k[0] / 2**30
    for w in (5, 15, 60, 240, 1440):
        x[f"ret_{w}"] = k[:w].sum() / 2**30
        x[f"rv_{w}"] = math.log(sigma(w) + 1e-6)
    x["zret_5"] = ratio(x["ret_5"], sigma(240) * 5**0.5)
    x["zret_15"] = clip8(ratio(x["ret_15"], sigma(240) * 15**0.5))
    x["zret_60"] = clip8(ratio(x["ret_60"], sigma(1440) * 60**0.5))
    x["zret_240"] = ratio(x["ret_240"], sigma(1440) * 240**0.5)
    for w, name in ((60, "eff_60"), (240, "eff_240")):
        x[name] = ratio(abs(k[:w].sum()), abs(k[:w]).sum())
    x["sumd_14"] = ratio(k[:14].sum(), abs(k[:14]).sum())
    x["rvr_15_240"], x["rvr_60_1440"] = ln(ratio(sigma(15), sigma(240))), ln(ratio(sigma(60), sigma(1440)))
    spread = np.array([min(a - b, 2**30) for a, b in zip(lh, ll, strict=False)], object)
    square = np.array([(r >> 5) ** 2 for r in spread], object)
    x["park_60"] = ratio(math.sqrt(square[:60].sum() / 60 / (4 * math.log(2))) * 32 / 2**30, sigma(60))
    squares = lambda w: (s[:w] ** 2).sum()  # noqa: E731
    x["jump_60"] = (
        (1 - math.pi / 2 * (abs(s[:60]) * abs(s[1:61]))[:60].sum() / squares(60))
        if len(k) > 60 and squares(60)
        else 0.0
    )
    x["semi_60"] = ratio(sum(int(a) ** 2 for a, b in zip(s[:60], k[:60], strict=False) if b > 0), squares(60))
    x["vov_60"] = ratio(sd(abs(s[:60])), abs(s[:60]).sum() / 60)
    for w in (60, 240):
        x[f"acf1_{w}"] = ratio((s[:w] * s[1 : w + 1])[:w].sum() if len(k) > w else NAN, squares(w))
    if len(lc) >= 245:
        five = [max(-5 * 2**28, min(5 * 2**28, a - b)) >> 5 for a, b in zip(lc[:240], lc[5:245], strict=False)]
        x["vr5_240"] = ratio(sum(a * a for a in five), 5 * squares(240))
    else:
        x["vr5_240"] = NAN
    x["maxabs_60"] = ratio(max(abs(k[:60])) / 2**30, sigma(240))
    x["rngz"] = ratio(spread[0], spread[:60].sum() / 60)
    for w in (15, 60, 240, 1440):
        low, high = min(ll[:w]), max(lh[:w])
        x[f"rsv_{w}"] = ratio(lc[0] - low, high - low)
    for w in (240, 1440):
        x[f"tmax_{w}"] = list(lh[:w]).index(max(lh[:w])) / w
        x[f"tmin_{w}"] = list(ll[:w]).index(min(ll[:w])) / w
    for w in (60, 240):
        x[f"gap_{w}"] = ratio((lc[0] - lc[:w].sum() / w) / 2**30, sigma(240) * w**0.5)
    for w in (30, 240):
        if len(lc) >= w:
            line = np.array([float(value - lc[0]) for value in lc[:w][::-1]])
            slope = np.dot(np.arange(w) - (w - 1) / 2, line - line.mean()) / ((w**3 - w) / 12) / 2**30
            x[f"slope_{w}"] = ratio(slope * w**0.5, sigma(240))
        else:
            x[f"slope_{w}"] = NAN
    for span in (20, 100):
        weights = np.array([(1 - 2 / (span + 1)) ** i for i in range(4 * span)])
        if len(lc) >= 4 * span:
            above = np.dot(weights / weights.sum(), [float(lc[0] - value) for value in lc[: 4 * span]])
            x[f"wema_{span}"] = ratio(above / 2**30, sigma(240))
        else:
            x[f"wema_{span}"] = NAN
    mean = lambda values, w: values[:w].sum() / w  # noqa: E731
    x["vlr_1_60"] = ln((q[0] + 1) / (mean(q, 60) + 1))
    x["vlr_15_240"] = ln((mean(q, 15) + 1) / (mean(q, 240) + 1))
    x["vlr_60_1440"] = ln((mean(q, 60) + 1) / (mean(q, 1440) + 1))
    x["nlr_15_240"] = ln((mean(n, 15) + 1) / (mean(n, 240) + 1))
    x["tsz_15_240"] = ln(per(per(q[:15].sum(), n[:15].sum()), per(q[:240].sum(), n[:240].sum())))
    x["illq_60"] = ln(per(abs(k[:60]).sum(), q[:60].sum())) - ln(per(abs(k[:1440]).sum(), q[:1440].sum()))
    for w in (60, 240):
        x[f"vwapgap_{w}"] = ratio(lc[0] / 2**30 - ln(per(q[:w].sum(), v[:w].sum()) * 10), sigma(240))
    x["zerofrac_60"] = sum(a == 0 for a in n[:60]) / 60
    days = [q[d * 1440 : d * 1440 + 60].sum() for d in range(1, 8)]
    x["season_7d"] = ln((q[:60].sum() + 1) / (sum(days) / 7 + 1))
    for w in (1, 5, 15, 60, 240):
        x[f"tbi_{w}"] = ratio(c.f[:w].sum(), v[:w].sum())
    phi = c.phi
    x["tbz_15"] = clip8(ratio(mean(phi, 15) - mean(phi, 1440), sd(phi[:1440]) / 15**0.5))
    a, b = np.array(s[:60], float), np.array(phi[:60], float)
    size = min(len(a), len(b))
    cov = float(np.mean((a[:size] - a[:size].mean()) * (b[:size] - b[:size].mean())))
    x["flowret_60"] = ratio(cov, sd(a) * sd(b)) if sd(a) and sd(b) else 0.0
    x["kyle_60"] = ratio((cov * 32 / sd(b) ** 2 if sd(b) else 0.0) * 2**16 / 2**30, sigma(60))
    x["absorb_15"] = x["tbz_15"] - x["zret_15"]
    return x


def shape(c: Newest) -> dict[str, float]:
    lc, lop, lh, ll = (int(values[0]) for values in (c.lc, c.lop, c.lh, c.ll))
    return {
        "kmid2": ratio(lc - lop, lh - ll),
        "kup2": ratio(lh - max(lop, lc), lh - ll),
        "klow2": ratio(min(lop, lc) - ll, lh - ll),
        "ksft2": ratio(2 * lc - lh - ll, lh - ll),
    }


def of_series(history: SymbolHistory, close: int, c: Newest) -> dict[str, float]:
    return {
        **bars(c, close),
        **premium_and_funding(history, close, c),
        **interest(history, close, c),
        **positions(history, close),
    }


def bars(c: Newest, close: int) -> dict[str, float]:
    x = dict.fromkeys(("h15_ret4", "h15_rsv32", "h1_ret24", "h1_rsv72", "h1_vr24_96"), NAN)
    for minutes, count, back, name in ((15, 32, 4, "h15"), (60, 72, 24, "h1")):
        since = close // MINUTE % minutes  # minutes since the last bar closed
        highs, lows, closes = c.lh[since:], c.ll[since:], c.lc[since:]
        if len(closes) > back * minutes:
            moved = (closes[0] - closes[back * minutes]) / 2**30
            x[f"{name}_ret{back}"] = ratio(moved, c.sigma(1440) * (back * minutes) ** 0.5)
        if len(closes) >= count * minutes:
            top, bottom = max(highs[: count * minutes]), min(lows[: count * minutes])
            x[f"{name}_rsv{count}"] = ratio(closes[0] - bottom, top - bottom)
        if minutes == 60 and len(closes) >= 5760:
            quotes = c.q[since:]
            x["h1_vr24_96"] = ln(per(quotes[:1440].sum() / 24, quotes[:5760].sum() / 96))
    return x


def quantised(value: float) -> int:
    return math.floor(math.log(value) * 2**30 + 0.5)


def premium_and_funding(history: SymbolHistory, close: int, c: Newest) -> dict[str, float]:
    names = [feature.name for feature in CATALOGUE if feature.group == "G"]
    x = dict.fromkeys(names, NAN)
    due = close - 2 * MINUTE  # open time of the newest bar that is known
    p = {t: math.floor(v * 1e8 + 0.5) for t, v in rows(history.premium, "open_time", "close") if t <= due}

    def filled(lag: int) -> int | None:
        at = due - lag * MINUTE
        return p.get(at, p.get(at - MINUTE))

    def window(count: int) -> list[int] | None:
        found = [filled(lag) for lag in range(count)]
        return None if None in found else found  # type: ignore[return-value]

    if (now := filled(0)) is not None:
        x["prem_0"] = now / 1e4
        for w in (60, 480):
            if values := window(w):
                x[f"prem_m{w}"] = sum(values) / w / 1e4
        if values := window(1440):
            x["prem_z"] = ratio(now - sum(values) / 1440, sd(values))
        if (then := filled(15)) is not None:
            x["prem_d15"] = (now - then) / 1e4
    for series, name in ((history.mark, "marklast"), (history.index, "basis")):
        bar = {t: quantised(v) for t, v in rows(series, "open_time", "close") if t <= due}
        age = 0 if due in bar else 1
        at = due - age * MINUTE
        if at in bar and len(c.lc) > 1 + age:
            distance = (bar[at] - c.lc[1 + age]) / 2**30 * 1e4
            x[name] = distance if name == "marklast" else -distance
            if name == "basis" and at - 5 * MINUTE in bar and len(c.k) > 6 + age:
                lead = bar[at] - bar[at - 5 * MINUTE] - c.k[1 + age : 6 + age].sum()
                x["idxlead_5"] = ratio(lead / 2**30, c.sigma(240) * 5**0.5)
    settled = {
        round(t / 3_600_000): (math.floor(rate * 1e8 + 0.5), hours)
        for t, rate, hours, known in rows(history.funding, "funding_time", "rate", "interval_hours", "known_at")
        if known <= close
    }
    if not settled:
        return x
    newest = max(settled)
    rate, hours = settled[newest]
    since = close // MINUTE - newest * 60
    if since > 1.1 * 60 * hours:
        return x
    x["fund_last"] = rate / 1e8 / hours * 1e4
    x["fund_ivl"] = hours
    x["fund_frac"] = max(60 * hours - since, 0) / (60 * hours)
    count = (due // MINUTE) - newest * 60 + 1
    if 1 <= count <= 60 * hours and (values := window(count)):
        j = range(count, 0, -1)
        mean = sum(a * b for a, b in zip(j, values, strict=False)) / sum(j) / 1e8
        x["fund_est"] = (mean + max(-5e-4, min(5e-4, 1e-4 - mean))) / 8 * 1e4
    x["fund_gap"] = x["fund_est"] - x["fund_last"]
    ordered = sorted(settled, reverse=True)
    inside = [hour for hour in ordered if hour * 60 > close // MINUTE - 1440]
    before = [hour for hour in ordered if hour * 60 <= close // MINUTE - 1440]
    if before and all(a - b <= 8 for a, b in zip([*inside, before[0]], [*inside, before[0]][1:], strict=False)):
        x["fund_24h"] = sum(settled[hour][0] for hour in inside) / 1e8 * 1e4
    return x


def rows(columns: Any, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(columns[name].tolist() for name in names), strict=False))


def first_known(columns: Any, time: str, value: str, close: int) -> dict[int, Any]:
    """By period, what was known first of it, by T."""
    found: dict[int, Any] = {}
    for known, _revision, period, number in sorted(rows(columns, "known_at", "revision", time, value)):
        if known <= close:
            found.setdefault(period // 300_000, number)
    return found


def interest(history: SymbolHistory, close: int, c: Newest) -> dict[str, float]:
    x = dict.fromkeys([feature.name for feature in CATALOGUE if feature.group == "H"], NAN)
    values = first_known(history.open_interest, "time", "open_interest", close)
    if not values or close - max(values) * 300_000 > 20 * MINUTE:
        return x
    newest = max(values)
    o = {period: quantised(value) for period, value in values.items()}
    for back, name in ((1, "5m"), (12, "1h"), (48, "4h"), (288, "24h")):
        if newest - back in o:
            x[f"doi_{name}"] = (o[newest] - o[newest - back]) / 2**30
    changes = [
        max(-(2**28), min(2**28, o[p] - o[p - 1])) >> 5
        for p in range(newest - 287, newest + 1)
        if p in o and p - 1 in o
    ]
    if len(changes) >= 0.95 * 288:
        x["doi_z"] = clip8(ratio(x["doi_1h"], sd(changes) * 32 / 2**30 * 12**0.5))
    in_quote = first_known(history.open_interest, "time", "open_interest_value", close)[newest]
    x["oi_turn"] = ln(c.q[:1440].sum() / 100 / in_quote)
    x["oi_px"] = clip8(ratio(c.k[:60].sum() / 2**30, c.sigma(1440) * 60**0.5)) * x["doi_z"] if len(c.k) else NAN
    return x


def positions(history: SymbolHistory, close: int) -> dict[str, float]:
    x = dict.fromkeys([feature.name for feature in CATALOGUE if feature.group == "I"], NAN)
    for table, name in (("global_account", "g"), ("top_account", "ta"), ("top_position", "tp")):
        values = {p: quantised(v) for p, v in first_known(history.ratios[table], "period_end", "value", close).items()}
        if not values or close - max(values) * 300_000 > 20 * MINUTE:
            continue
        newest = max(values)
        x[f"lsr_{name}"] = values[newest] / 2**30
        if name != "ta":
            if newest - 12 in values:
                x[f"lsr_{name}_d1h"] = (values[newest] - values[newest - 12]) / 2**30
            week = [values[p] >> 8 for p in range(newest - 2015, newest + 1) if p in values]
            if len(week) >= 0.95 * 2016:
                x[f"lsr_{name}_z"] = ratio((values[newest] >> 8) - sum(week) / len(week), sd(week))
    x["lsr_sp"] = x["lsr_tp"] - x["lsr_g"]
    return x


def of_book(history: SymbolHistory, close: int, c: Newest) -> dict[str, float]:
    x = dict.fromkeys([feature.name for feature in CATALOGUE if feature.group == "M"], NAN)
    b = {name: dict(rows(history.book, "minute", name)) for name in history.book}
    at = close - MINUTE
    if at not in b["bid"] or close - b["updated_at"][at] > 5_000:
        return x
    bid, ask, bid_qty, ask_qty = (b[name][at] for name in ("bid", "ask", "bid_qty", "ask_qty"))
    mid = (bid + ask) / 2
    x["spread_bp"] = (ask - bid) / mid * 1e4
    hour = [b["spread_bps"].get(at - lag * MINUTE) for lag in range(60)]
    if None not in hour:
        x["spread_rel"] = ln(x["spread_bp"] / (sum(hour) / 60))  # type: ignore[arg-type]
    x["imb_0"] = ratio(bid_qty - ask_qty, bid_qty + ask_qty)
    x["imb_tw60"] = b["imbalance"][at]
    x["micro_bp"] = ((bid * ask_qty + ask * bid_qty) / (bid_qty + ask_qty) - mid) / mid * 1e4
    x["ofi_1m"] = ratio(b["order_flow_imbalance"][at], c.v[:60].sum() / 60 / 1000)
    return x


def calendar(close: int, listed_at: int | None) -> dict[str, float]:
    minute = close // MINUTE % 1440
    return {
        "day_sin": math.sin(2 * math.pi * minute / 1440),
        "day_cos": math.cos(2 * math.pi * minute / 1440),
        "hour_frac": minute % 60 / 60,
        "listed": NAN if listed_at is None else math.log(1 + (close - listed_at) / 86_400_000),
    }
