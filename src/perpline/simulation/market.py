"""The world behind the simulated exchange: a pure function of (seed, contract, time).

Every random number is a hash of (seed, what it is for, contract, time index), so any hour of any contract can be
computed alone and equals the same hour computed in a sequence, in another process, or with more contracts listed.

How a price comes about
* Hours have anchors: the log price is the sum, from 2026-01-01 outwards in both directions, of hourly increments
  sigma(hour) * (rho * market + sqrt(1 - rho**2) * own). sigma is a contract's volatility times the exponential of
  slow noise at the scales of a week, a day, six hours and an hour, shared and own, so volatility clusters and
  contracts are correlated. Running trade ids are anchored per hour in the same way.
* Inside an hour the market's and the contract's own Brownian bridge run between the anchors in variance time
  (minutes differ in volatility). Given the volatility path the price is a random walk: nothing predicts it.
* A minute has 12 to 120 slots. A slot holds at most one aggregate trade, at the bid or at the ask around the path.
  Which slots, how much, and which side took depends on activity and on a slow flow, never on the price.
* `edge_bp`: after a minute at whose close the taker imbalance of the last 15 minutes is beyond +-0.2 (features.md,
  tbi_15), the path drifts by that many basis points during the next minute in the direction of the imbalance. What
  has been gained in an hour is given back evenly over the 48 hours after it, so that a block needs the flow of two
  days and not of years; the counter-drift is a few hundredths of the edge.

Prices and quantities are integers here (see `Instrument`), so a candle is exactly the sum of its trades.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from perpline.simulation.instruments import SLOTS_PER_MINUTE_GRID as GRID
from perpline.simulation.instruments import Instrument, instruments

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bits = NDArray[np.uint64]
_Value = TypeVar("_Value")

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 3_600_000
GENESIS_MS: Final = 1_640_995_200_000
"""2022-01-01 UTC: nothing was traded before."""

OPEN, HIGH, LOW, CLOSE, VOLUME, QUOTE, TRADES, BUY_VOLUME, BUY_QUOTE, FIRST_ID, LAST_ID = range(11)
"""Columns of a candle row. A minute without trades is flat at the previous close, with ids -1."""

EDGE_IMBALANCE: Final = 0.2
EDGE_MINUTES: Final = 15
EDGE_RETURN_HOURS: Final = 48

_EPOCH_HOUR: Final = 1_767_225_600_000 // HOUR_MS
_CHUNK_HOURS: Final = 672
_SLOTS_AT_ONCE: Final = 400_000
_NODES: Final = 60 * GRID
_MOST_EMPTY_MINUTES: Final = 6


@dataclass(frozen=True, slots=True)
class HourDetail:
    """One contract, one hour, down to the trade.

    `time_ms`, `price`, `quantity`, `buyer_is_maker`, `first_id`, `last_id`, `aggregate_id`: one entry per aggregate
    trade, in order. `bid`, `ask`: price units per slot (60 * slots_per_minute). `mark`, `index`: prices every five
    seconds, 721 nodes, straight lines between. `premium`: the same nodes, a fraction. `minutes`: 60 candle rows.
    """

    hour: int
    time_ms: Ints
    price: Ints
    quantity: Ints
    buyer_is_maker: NDArray[np.bool_]
    first_id: Ints
    last_id: Ints
    aggregate_id: Ints
    bid: Ints
    ask: Ints
    mark: Floats
    index: Floats
    premium: Floats
    minutes: Ints
    second_marks: Floats | None = None
    """Where prices are scripted (script.py): mark and index of each second, 3601 of them; lines do not hold there."""
    second_indices: Floats | None = None


class World:
    """The market of `seed` with the first `symbols` contracts. Safe to use from several threads."""

    def __init__(self, seed: int, symbols: int, edge_bp: float = 0.0) -> None:
        self.seed = seed
        self.edge_bp = edge_bp
        self.instruments: list[Instrument] = instruments(symbols)
        self._noise = _Noise(seed)
        self._ledgers: dict[int, _Ledger] = {}
        self._minutes: _Kept[Ints] = _Kept(40_000)
        self._marks: _Kept[Floats] = _Kept(10_000)
        self._details: _Kept[HourDetail] = _Kept(max(64, 3 * symbols))
        self._flows: _Kept[Ints] = _Kept(60 * symbols + 2_000)
        self._lock = threading.RLock()

    def minutes(self, index: int, first_minute: int, count: int) -> Ints:
        """Candle rows (count, 11) of the minutes first_minute.. (counted since 1970), future or not."""
        if count == 0:
            return np.empty((0, 11), np.int64)
        first_hour, last_hour = first_minute // 60, (first_minute + count - 1) // 60
        hours: list[Ints] = []
        for start, end in _pieces(first_hour, last_hour):
            with self._lock:
                hours += self._hours_of_minutes(index, start, end)
        offset = first_minute - first_hour * 60
        rows: Ints = np.concatenate(hours)[offset : offset + count]
        return rows

    def mark_minutes(self, index: int, first_minute: int, count: int) -> Floats:
        """(count, 3, 4): open, high, low, close of mark price, index price and premium index.

        Mark and index are sampled once a second (60 a minute), the premium index every five seconds (12)."""
        first_hour, last_hour = first_minute // 60, (first_minute + count - 1) // 60
        hours: list[Floats] = []
        for start, end in _pieces(first_hour, last_hour):
            with self._lock:
                hours += self._hours_of_marks(index, start, end)
        offset = first_minute - first_hour * 60
        rows: Floats = np.concatenate(hours)[offset : offset + count]
        return rows

    def detail(self, index: int, hour: int) -> HourDetail:
        """Everything about one hour (counted since 1970) of one contract."""
        return self.details([index], hour)[0]

    def details(self, indices: Sequence[int], hour: int) -> list[HourDetail]:
        """The same for several contracts, computed together."""
        with self._lock:
            missing = [index for index in indices if self._details.get((index, hour)) is None]
            for group in self._same_slots(missing):
                per_hour = max(1, _SLOTS_AT_ONCE // (60 * self.instruments[group[0]].slots_per_minute))
                for at in range(0, len(group), per_hour):
                    part = group[at : at + per_hour]
                    for index, detail in zip(part, self._make_details(part, hour), strict=True):
                        self._details.put((index, hour), detail)
                        self._minutes.put((index, hour), detail.minutes)
            found = [self._details.get((index, hour)) for index in indices]
        return [detail for detail in found if detail is not None]

    def marks_at_hours(self, index: int, hours: Ints) -> Floats:
        """The mark price at the instants these hours begin, without computing the hours. `hours` rises."""
        first, last = int(hours[0]), int(hours[-1])
        at = hours - first
        own = np.array([index])
        with self._lock:
            start = self._anchors([index], first, last - first + 1)[0][0, at]
            if self.edge_bp != 0.0:
                drifts = [self._drift([index], a, b - a + 1)[1][0] for a, b in _pieces(first, last)]
                start = start + np.concatenate(drifts)[at]
        slow = self._slow_premium(own, hours)[0]
        fast = self._fast_premium(own, (hours * _NODES)[None, :])[0]
        marks: Floats = np.exp(start) * (1.0 - (slow + fast)) * (1.0 + slow + 0.7 * fast)
        return marks

    def funding_rates(self, indices: Ints, settles_at_hour: int, interval_hours: int, known_hours: int) -> Floats:
        """The rate of each contract for the interval that ends at that hour: mean premium plus clamped interest.

        `known_hours` below `interval_hours` gives the estimate after that many hours of the interval."""
        first = settles_at_hour - interval_hours
        level = self._slow_premium(indices, np.arange(first, first + known_hours + 1))
        premium = np.cumsum(level, axis=1)[:, -1] / (known_hours + 1)
        rate = premium + np.clip(0.0001 - premium, -0.0005, 0.0005)
        clipped: Floats = np.clip(rate * interval_hours / 8, -0.02, 0.02)
        return clipped

    def open_interest(self, index: int, times_ms: Ints) -> Ints:
        """Open interest in quantity units: slow noise around a level, higher while more is traded."""
        noise, own = self._noise, np.array([[index]])
        seconds = times_ms[None, :] // 1000
        level = (
            0.18 * noise.smooth("oi week", own, seconds, 604_800)
            + 0.08 * noise.smooth("oi day", own, seconds, 86_400)
            + 0.03 * noise.smooth("oi hour", own, seconds, 3_600)
            + 0.008 * noise.smooth("oi minutes", own, seconds, 300)
            + 0.10 * noise.smooth("activity", own, seconds, 12 * 3_600)
        )
        units = np.rint(self.instruments[index].open_interest_units * np.exp(level[0]))
        counted: Ints = np.maximum(1, units.astype(np.int64))
        return counted

    def long_shares(self, index: int, ratio: str, times_ms: Ints) -> Floats:
        """Share of long accounts or positions, 0.2 to 0.8. `ratio`: global_account, top_account or top_position.

        Accounts lean against the last day's move, top positions with it. `times_ms` rises."""
        noise, own = self._noise, np.array([[index]])
        seconds = times_ms[None, :] // 1000
        hour = times_ms // HOUR_MS
        first = int(hour[0]) - 24
        with self._lock:
            level = self._anchors([index], first, int(hour[-1]) - first + 1)[0][0]
        move = level[hour - first] - level[hour - first - 24]
        share = (
            0.54
            + 0.06 * noise.smooth(f"{ratio} day", own, seconds, 86_400)[0]
            + 0.03 * noise.smooth(f"{ratio} hours", own, seconds, 14_400)[0]
            + 0.01 * noise.smooth(f"{ratio} minutes", own, seconds, 600)[0]
            + (0.4 if ratio == "top_position" else -0.8) * move
        )
        clipped: Floats = np.clip(share, 0.2, 0.8)
        return clipped

    def bits(self, purpose: str, index: int, at: int) -> int:
        """64 random bits for (purpose, contract, at): delays, quantities in the book, publication times."""
        return int(self._noise.bits(purpose, np.array([index]), np.array([at]))[0])

    # ---- hours

    def _same_slots(self, indices: Sequence[int]) -> list[list[int]]:
        groups: dict[int, list[int]] = {}
        for index in indices:
            groups.setdefault(self.instruments[index].slots_per_minute, []).append(index)
        return list(groups.values())

    def _hours_of_minutes(self, index: int, first: int, last: int) -> list[Ints]:
        at_once = max(1, _SLOTS_AT_ONCE // (60 * self.instruments[index].slots_per_minute))
        for start, count in self._minutes.missing(index, first, last, at_once):
            rows = self._candles([index], self._trades([index], start, count))[0]
            for offset in range(count):
                self._minutes.put((index, start + offset), rows[offset].copy())
        return [self._minutes.must_get((index, hour)) for hour in range(first, last + 1)]

    def _hours_of_marks(self, index: int, first: int, last: int) -> list[Floats]:
        at_once = max(1, _SLOTS_AT_ONCE // (60 * self.instruments[index].slots_per_minute))
        for start, count in self._marks.missing(index, first, last, at_once):
            path = self._path([index], start, count)
            rows = _mark_rows(*self._mark_nodes([index], start, path))[0]
            for offset in range(count):
                self._marks.put((index, start + offset), rows[offset].copy())
        return [self._marks.must_get((index, hour)) for hour in range(first, last + 1)]

    def _make_details(self, group: list[int], hour: int) -> list[HourDetail]:
        trades = self._trades(group, hour, 1)
        candles = self._candles(group, trades)
        mark, index_price, premium = self._mark_nodes(group, hour, trades.path)
        details = []
        for row in range(len(group)):
            held = trades.flow.held[row, 0]
            details.append(
                HourDetail(
                    hour=hour,
                    time_ms=trades.flow.time_ms[row, 0][held],
                    price=trades.price[row, 0][held],
                    quantity=trades.flow.quantity[row, 0][held],
                    buyer_is_maker=~trades.flow.taker_buys[row, 0][held],
                    first_id=trades.flow.first_id[row, 0][held],
                    last_id=trades.flow.last_id[row, 0][held],
                    aggregate_id=trades.flow.aggregate_id[row, 0][held],
                    bid=trades.bid[row, 0].copy(),
                    ask=trades.ask[row, 0].copy(),
                    mark=mark[row, 0].copy(),
                    index=index_price[row, 0].copy(),
                    premium=premium[row, 0].copy(),
                    minutes=candles[row, 0].copy(),
                )
            )
        return details

    # ---- trades and candles; arrays are (contracts, hours, slots)

    def _trades(self, group: list[int], first_hour: int, hours: int) -> "_Trades":
        flow = self._flow(group, first_hour, hours)
        path = self._path(group, first_hour, hours)
        own = [self.instruments[index] for index in group]
        per_minute = own[0].slots_per_minute
        tick_units = np.array([o.tick_units for o in own])[:, None, None]
        ticks_per_one = np.array([10.0**o.price_decimals / o.tick_units for o in own])[:, None, None]
        mid_ticks = path.mid * ticks_per_one
        usual = np.array([o.daily_volatility for o in own])[:, None, None] / np.sqrt(24.0)
        spread_bps = np.array([o.spread_bps for o in own])[:, None, None]
        tense = 0.4 + 0.6 * path.sigma[:, :, None] * np.sqrt(60.0 * path.minute_variance) / usual
        spread = spread_bps * 1e-4 * tense * path.start[:, :, None] * ticks_per_one
        spread_ticks = np.maximum(1, np.rint(spread)).astype(np.int64)
        wide = np.repeat(spread_ticks, per_minute, axis=2)
        bid_ticks = np.maximum(1, np.floor(mid_ticks - 0.5 * (wide - 1))).astype(np.int64)
        bid = bid_ticks * tick_units
        ask = (bid_ticks + wide) * tick_units
        return _Trades(flow, path, bid, ask, np.where(flow.taker_buys, ask, bid))

    def _candles(self, group: list[int], trades: "_Trades") -> Ints:
        """(contracts, hours, 60, 11) from the very trades."""
        per_minute = self.instruments[group[0]].slots_per_minute
        shape = (*trades.price.shape[:2], 60, per_minute)
        flow = trades.flow
        held = flow.held.reshape(shape)
        price = trades.price.reshape(shape)
        quantity = np.where(held, flow.quantity.reshape(shape), 0)
        quote = price * quantity
        buys = flow.taker_buys.reshape(shape)
        first = np.argmax(held, axis=3)[..., None]
        last = per_minute - 1 - np.argmax(held[..., ::-1], axis=3)[..., None]
        rows = np.empty((*shape[:3], 11), np.int64)
        rows[..., OPEN] = np.take_along_axis(price, first, 3)[..., 0]
        rows[..., HIGH] = np.max(price, axis=3, where=held, initial=0)
        rows[..., LOW] = np.min(price, axis=3, where=held, initial=np.iinfo(np.int64).max)
        rows[..., CLOSE] = np.take_along_axis(price, last, 3)[..., 0]
        rows[..., VOLUME] = quantity.sum(axis=3)
        rows[..., QUOTE] = quote.sum(axis=3)
        rows[..., FIRST_ID] = np.take_along_axis(flow.first_id.reshape(shape), first, 3)[..., 0]
        rows[..., LAST_ID] = np.take_along_axis(flow.last_id.reshape(shape), last, 3)[..., 0]
        rows[..., TRADES] = rows[..., LAST_ID] - rows[..., FIRST_ID] + 1
        rows[..., BUY_VOLUME] = quantity.sum(axis=3, where=buys)
        rows[..., BUY_QUOTE] = quote.sum(axis=3, where=buys)
        for contract, hour, minute in np.argwhere(~held.any(axis=3)):
            # Minute 0 always trades, so the previous close is in the same hour.
            close = rows[contract, hour, minute - 1, CLOSE]
            rows[contract, hour, minute] = (close, close, close, close, 0, 0, 0, 0, 0, -1, -1)
        return rows

    def _flow(self, group: list[int], first_hour: int, hours: int) -> "_Flow":
        """When, how much and who took: everything about trades but the price."""
        noise = self._noise
        own = [self.instruments[index] for index in group]
        per_minute = own[0].slots_per_minute
        slots = 60 * per_minute
        symbols = np.array(group)[:, None]
        hour = np.arange(first_hour, first_hour + hours)
        minute = (hour[:, None] * 60 + np.arange(60)).reshape(1, -1)
        shape = (len(group), hours, 60)

        aggregates, trades, aggregate_base, trade_base, activity = self._hourly(group, first_hour, hours)
        lively = np.exp(
            0.4 * noise.smooth("lively", symbols, minute, 10) + 0.2 * noise.normal("lively 1", symbols, minute)
        )
        slow = (
            0.55 * noise.smooth("flow 12", symbols, minute, 12)
            + 0.55 * noise.smooth("flow 45", symbols, minute, 45)
            + 0.35 * noise.smooth("flow 240", symbols, minute, 240)
        )
        # The more trades, the less their sides scatter by themselves; the flow leans more instead.
        lean = 0.05 * (1.0 + 0.25 * np.log2(per_minute / GRID))
        buy_share = np.clip(0.5 + lean * slow, 0.1, 0.9).reshape(shape)
        empty = self._empty_minutes(own, symbols, minute).reshape(shape)

        # One hash gives four independent 16-bit draws.
        draw = noise.slots("trades", symbols, hour[None, :], slots)
        moment = (draw & _LOW16).view(np.int64)
        side = ((draw >> _S16) & _LOW16).view(np.int64)
        size = _SIZES.take(((draw >> _S32) & _LOW16).view(np.int64))
        span = (draw >> _S48).view(np.int64)

        chance = noise.slots("held", symbols, hour[None, :], slots)
        # The lowest `aggregates` of these are the slots that trade. The slot number below makes them distinct.
        rank = (chance >> np.uint64(40)).view(np.int64)
        weight = (256.0 / np.sqrt(lively)).astype(np.int64).reshape(shape)
        rank = (rank.reshape(*shape, per_minute) * weight[..., None]).reshape(len(group), hours, slots)
        rank = (rank << 13) | np.arange(slots)
        by_minute = rank.reshape(*shape, per_minute)
        by_minute[empty] |= 1 << 61
        first_minute_best = by_minute[:, :, 0, :].argmin(axis=2)
        np.put_along_axis(rank, first_minute_best[..., None], 0, 2)
        limit = np.take_along_axis(np.sort(rank, axis=2), aggregates[..., None] - 1, 2)
        held = rank <= limit

        # `trades - aggregates` further trade ids are dealt out over the held slots in proportion to `span`.
        dealt = np.cumsum(np.where(held, span + 1, 0), axis=2)
        dealt = dealt * (trades - aggregates)[..., None] // dealt[..., -1:]
        number = np.cumsum(held, axis=2)
        last_id = trade_base[..., None] + number + dealt - 1
        extra = np.diff(dealt, axis=2, prepend=0)
        first_id = last_id - extra
        typical = np.array([o.quantity_units for o in own])[:, None, None] * (
            activity[..., None] * lively.reshape(shape)
        )
        quantity = np.maximum(1.0, np.rint(np.repeat(typical, per_minute, axis=2) * size)).astype(np.int64) + extra
        start = (hour * HOUR_MS)[None, :, None] + np.arange(slots) * (MINUTE_MS // per_minute)
        taker_buys = side < np.repeat((buy_share * 65536).astype(np.int64), per_minute, axis=2)
        return _Flow(
            held=held,
            time_ms=start + ((moment * (MINUTE_MS // per_minute)) >> 16),
            quantity=quantity,
            taker_buys=taker_buys,
            first_id=first_id,
            last_id=last_id,
            aggregate_id=aggregate_base[..., None] + number - 1,
        )

    def _empty_minutes(self, own: list[Instrument], symbols: Ints, minute: Ints) -> NDArray[np.bool_]:
        share = np.array([o.empty_minute_share for o in own])[:, None]
        empty = (self._noise.bits("empty", symbols, minute) >> np.uint64(11)) < (share * 2.0**53).astype(np.uint64)
        empty &= minute % 60 != 0
        in_hour = np.cumsum(empty.reshape(len(own), -1, 60), axis=2).reshape(empty.shape)
        kept: NDArray[np.bool_] = empty & (in_hour <= _MOST_EMPTY_MINUTES)
        return kept

    # ---- the path; (contracts, hours, slots), value at the end of each slot

    def _path(self, group: list[int], first_hour: int, hours: int) -> "_Path":
        noise = self._noise
        own = [self.instruments[index] for index in group]
        per_minute = own[0].slots_per_minute
        slots, finer = 60 * per_minute, per_minute // GRID
        hour = np.arange(first_hour, first_hour + hours)
        minute = (hour[:, None] * 60 + np.arange(60)).reshape(1, -1)
        symbols = np.array(group)[:, None]
        everyone = np.array([[-1]])
        log_price, sigma, market_step, own_step = self._anchors(group, first_hour, hours)

        market_variance = self._minute_variance(everyone, minute).reshape(1, hours, 60)
        market = _bridge(
            noise.normal_slots("market path", everyone, hour[None, :], _NODES), market_variance, market_step
        )
        market = market[0]
        if finer > 1:
            part = np.arange(1, finer + 1) / finer
            left = market[:, :-1, None]
            market_slots = (left + (market[:, 1:, None] - left) * part).reshape(hours, slots)
        else:
            market_slots = market[:, 1:]
        own_variance = self._minute_variance(symbols, minute).reshape(len(group), hours, 60)
        steps = noise.normal_slots("own path", symbols, hour[None, :], slots)
        own_path = _bridge(steps, own_variance, own_step)[..., 1:]
        rho = np.array([o.market_share for o in own])[:, None, None]
        moved = sigma[..., None] * (rho * market_slots[None] + np.sqrt(1.0 - rho * rho) * own_path)
        start = log_price
        if self.edge_bp != 0.0:
            drift, offset = self._drift(group, first_hour, hours)
            start = log_price + offset
            part = np.arange(1, per_minute + 1) / per_minute
            left = drift[:, :, :-1, None]
            moved += (left + (drift[:, :, 1:, None] - left) * part).reshape(moved.shape)
        variance = rho * rho * market_variance + (1.0 - rho * rho) * own_variance
        return _Path(np.exp(start[..., None] + moved), np.exp(start), sigma, variance)

    def _minute_variance(self, symbols: Ints, minute: Ints) -> Floats:
        """Share of each minute in its hour's variance, sums to one over the hour: (contracts, hours * 60)."""
        noise = self._noise
        burst = (noise.bits("burst", symbols, minute) >> np.uint64(54)) < 8
        weight = np.exp(
            0.5 * noise.smooth("variance 10", symbols, minute, 10)
            + 0.4 * noise.normal("variance 1", symbols, minute)
            + np.where(burst, 2.0, 0.0)
        ).reshape(symbols.shape[0], -1, 60)
        share: Floats = (weight / np.cumsum(weight, axis=2)[..., -1:]).reshape(symbols.shape[0], -1)
        return share

    def _drift(self, group: list[int], first_hour: int, hours: int) -> tuple[Floats, Floats]:
        """The planted edge: log offsets at the minutes of each hour (contracts, hours, 61) and at its start."""
        back = EDGE_RETURN_HOURS
        edge = self.edge_bp * 1e-4
        within = np.zeros((len(group), hours, 61))
        offset = np.zeros((len(group), hours))
        if edge == 0.0:
            return within, offset
        to_come = np.arange(1, back + 1)
        clock = np.arange(61) / 60.0
        for row, index in enumerate(group):
            minutes = self._minute_flows(index, first_hour - back - 1, hours + back + 1)
            signed = np.cumsum(2 * minutes[:, 1] - minutes[:, 0])
            volume = np.cumsum(minutes[:, 0])
            flow = signed[59:-1] - signed[59 - EDGE_MINUTES : -1 - EDGE_MINUTES]
            traded = volume[59:-1] - volume[59 - EDGE_MINUTES : -1 - EDGE_MINUTES]
            sign = np.where(np.abs(flow) > EDGE_IMBALANCE * traded, np.sign(flow), 0).reshape(-1, 60)
            # Whole minutes of drift are integers, so sums do not depend on where the computation began.
            gained = np.concatenate([np.zeros((len(sign), 1), np.int64), np.cumsum(sign, axis=1)], axis=1)
            by_hour = gained[:, -1]
            for at in range(hours):
                before = by_hour[at : at + back]
                given_back = edge * int(before.sum()) / back
                offset[row, at] = edge * int((before * to_come).sum()) / back
                within[row, at] = edge * gained[at + back] - given_back * clock
        return within, offset

    def _minute_flows(self, index: int, first_hour: int, hours: int) -> Ints:
        """(hours * 60, 2): volume and taker-buy volume of each minute."""
        at_once = max(1, _SLOTS_AT_ONCE // (60 * self.instruments[index].slots_per_minute))
        last_hour = first_hour + hours - 1
        for start, count in self._flows.missing(index, first_hour, last_hour, at_once):
            flow = self._flow([index], start, count)
            quantity = np.where(flow.held, flow.quantity, 0).reshape(count, 60, -1)
            buys = np.where(flow.taker_buys.reshape(quantity.shape), quantity, 0)
            rows = np.stack([quantity.sum(axis=2), buys.sum(axis=2)], axis=2)
            for offset in range(count):
                self._flows.put((index, start + offset), rows[offset].copy())
        return np.concatenate([self._flows.must_get((index, hour)) for hour in range(first_hour, last_hour + 1)])

    # ---- mark, index, premium

    def _mark_nodes(self, group: list[int], first_hour: int, path: "_Path") -> tuple[Floats, Floats, Floats]:
        """Mark, index and premium at 721 instants of each hour, five seconds apart: (contracts, hours, 721)."""
        symbols = np.array(group)
        hours = path.mid.shape[1]
        finer = self.instruments[group[0]].slots_per_minute // GRID
        mid = np.concatenate([path.start[..., None], path.mid[..., finer - 1 :: finer]], axis=2)
        level = self._slow_premium(symbols, np.arange(first_hour, first_hour + hours + 1))
        part = np.arange(_NODES + 1) / _NODES
        slow = level[:, :-1, None] + (level[:, 1:, None] - level[:, :-1, None]) * part
        nodes = np.arange(first_hour, first_hour + hours)[:, None] * _NODES + np.arange(_NODES + 1)
        fast = self._fast_premium(symbols, nodes.reshape(1, -1)).reshape(slow.shape)
        premium = slow + fast
        index = mid * (1.0 - premium)
        return index * (1.0 + slow + 0.7 * fast), index, premium

    def _slow_premium(self, symbols: Ints, hours: Ints) -> Floats:
        """The premium at whole hours, (contracts, hours); it is what funding averages. Fractions, some basis points."""
        own, at = symbols[:, None], hours[None, :]
        premium: Floats = 1e-4 * (
            0.3
            + 2.2 * self._noise.smooth("premium day", own, at, 24)
            + 1.6 * self._noise.smooth("premium 8h", own, at, 8)
            + 1.2 * self._noise.normal("premium hour", own, at)
        )
        return premium

    def _fast_premium(self, symbols: Ints, nodes: Ints) -> Floats:
        """What funding averages out, at five-second nodes counted since 1970: (contracts, nodes)."""
        fast: Floats = 1e-4 * (
            1.0 * self._noise.smooth("premium 5m", symbols[:, None], nodes, 5 * GRID)
            + 0.15 * self._noise.normal("premium 5s", symbols[:, None], nodes)
        )
        return fast

    # ---- the ledger of hours

    def _ledger(self, hour: int) -> tuple["_Ledger", int]:
        """The ledger page that holds this hour, and the hour's column in it."""
        page = (hour - _EPOCH_HOUR) // _CHUNK_HOURS
        if page not in self._ledgers:
            step = 1 if page >= 0 else -1
            for number in range(0, page + step, step):
                if number not in self._ledgers:
                    self._ledgers[number] = self._write_ledger(number)
        return self._ledgers[page], (hour - _EPOCH_HOUR) - page * _CHUNK_HOURS

    def _write_ledger(self, page: int) -> "_Ledger":
        noise = self._noise
        own = self.instruments
        symbols = np.arange(len(own))[:, None]
        everyone = np.array([[-1]])
        hour = _EPOCH_HOUR + page * _CHUNK_HOURS + np.arange(_CHUNK_HOURS)[None, :]
        shared = (
            0.25 * noise.smooth("vol week", everyone, hour, 168)
            + 0.25 * noise.smooth("vol day", everyone, hour, 24)
            + 0.20 * noise.smooth("vol 6h", everyone, hour, 6)
            + _DAYTIME.take(hour % 24)
        )
        lively = (
            shared
            + 0.20 * noise.smooth("vol own day", symbols, hour, 24)
            + 0.18 * noise.smooth("vol own 4h", symbols, hour, 4)
            + 0.12 * noise.normal("vol own hour", symbols, hour)
        )
        sigma = np.array([[o.daily_volatility] for o in own]) / np.sqrt(24.0) * np.exp(np.minimum(lively - 0.27, 2.0))
        rho = np.array([[o.market_share] for o in own])
        market_step = noise.normal("market hour", everyone, hour)
        own_step = noise.normal("own hour", symbols, hour)
        increment = sigma * (rho * market_step + np.sqrt(1.0 - rho * rho) * own_step)
        activity = np.exp(
            0.9 * lively
            + 0.25 * noise.smooth("activity", symbols, hour * 3_600, 12 * 3_600)
            + 0.12 * noise.normal("activity hour", symbols, hour)
        )
        slots = np.array([[60 * o.slots_per_minute] for o in own])
        usual = np.array([[o.occupancy] for o in own])
        aggregates = np.rint(slots * np.clip(usual * np.sqrt(activity), 0.4, 0.85)).astype(np.int64)
        spans = np.array([[o.trades_per_aggregate] for o in own])
        trades = np.rint(aggregates * np.maximum(1.0, spans * np.sqrt(activity))).astype(np.int64)
        if page == 0:
            log_start = np.log(np.array([[o.price] for o in own]))
            aggregate_start = np.array([[1_000_000_000 + 10_000_000 * (o.index % 7)] for o in own])
            trade_start = 2 * aggregate_start
        elif page > 0:
            before = self._ledgers[page - 1]
            log_start, aggregate_start, trade_start = (
                before.log_price[:, -1:],
                before.aggregate_id[:, -1:],
                before.trade_id[:, -1:],
            )
        else:
            after = self._ledgers[page + 1]
            log_start = after.log_price[:, :1] - np.cumsum(increment, axis=1)[:, -1:]
            aggregate_start = after.aggregate_id[:, :1] - aggregates.sum(axis=1, keepdims=True)
            trade_start = after.trade_id[:, :1] - trades.sum(axis=1, keepdims=True)
        log_price = np.concatenate([log_start, log_start + np.cumsum(increment, axis=1)], axis=1)
        if page < 0:
            log_price[:, -1:] = after.log_price[:, :1]
        return _Ledger(
            log_price=log_price,
            aggregate_id=np.concatenate([aggregate_start, aggregate_start + np.cumsum(aggregates, axis=1)], axis=1),
            trade_id=np.concatenate([trade_start, trade_start + np.cumsum(trades, axis=1)], axis=1),
            sigma=sigma,
            market_step=market_step,
            own_step=own_step,
            activity=activity,
        )

    def _columns(self, first_hour: int, hours: int) -> list[tuple["_Ledger", int, int]]:
        """The ledger pages under a run of hours, each with its first and last-but-one column."""
        pieces = []
        at = first_hour
        while at < first_hour + hours:
            ledger, column = self._ledger(at)
            count = min(_CHUNK_HOURS - column, first_hour + hours - at)
            pieces.append((ledger, column, column + count))
            at += count
        return pieces

    def _anchors(self, group: list[int], first_hour: int, hours: int) -> tuple[Floats, Floats, Floats, Floats]:
        pieces = self._columns(first_hour, hours)
        return (
            np.concatenate([page.log_price[group, a:b] for page, a, b in pieces], axis=1),
            np.concatenate([page.sigma[group, a:b] for page, a, b in pieces], axis=1),
            np.concatenate([page.market_step[:, a:b] for page, a, b in pieces], axis=1),
            np.concatenate([page.own_step[group, a:b] for page, a, b in pieces], axis=1),
        )

    def _hourly(self, group: list[int], first_hour: int, hours: int) -> tuple[Ints, Ints, Ints, Ints, Floats]:
        """Aggregates and trades in each hour, their first ids, and activity."""
        pieces = self._columns(first_hour, hours)
        return (
            np.concatenate([np.diff(page.aggregate_id[group, a : b + 1], axis=1) for page, a, b in pieces], axis=1),
            np.concatenate([np.diff(page.trade_id[group, a : b + 1], axis=1) for page, a, b in pieces], axis=1),
            np.concatenate([page.aggregate_id[group, a:b] for page, a, b in pieces], axis=1),
            np.concatenate([page.trade_id[group, a:b] for page, a, b in pieces], axis=1),
            np.concatenate([page.activity[group, a:b] for page, a, b in pieces], axis=1),
        )


@dataclass(frozen=True, slots=True)
class _Ledger:
    """28 days of hours. `log_price` and the ids have one column more: the start of the next page."""

    log_price: Floats
    aggregate_id: Ints
    trade_id: Ints
    sigma: Floats
    market_step: Floats
    own_step: Floats
    activity: Floats


@dataclass(frozen=True, slots=True)
class _Flow:
    held: NDArray[np.bool_]
    time_ms: Ints
    quantity: Ints
    taker_buys: NDArray[np.bool_]
    first_id: Ints
    last_id: Ints
    aggregate_id: Ints


@dataclass(frozen=True, slots=True)
class _Path:
    mid: Floats
    start: Floats
    sigma: Floats
    minute_variance: Floats


@dataclass(frozen=True, slots=True)
class _Trades:
    flow: _Flow
    path: _Path
    bid: Ints
    ask: Ints
    price: Ints


class _Noise:
    """Random numbers with an address."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._keys: dict[str, np.uint64] = {}

    def bits(self, purpose: str, symbols: Ints, at: Ints) -> Bits:
        """64 random bits for each (symbol, at), broadcast against each other."""
        row = symbols.astype(np.uint64) * _GOLDEN
        row += self._key(purpose)
        _mix(row)
        mixed: Bits = at.astype(np.uint64) * _SILVER + row
        _mix(mixed)
        return mixed

    def normal(self, purpose: str, symbols: Ints, at: Ints) -> Floats:
        return _NORMAL.take((self.bits(purpose, symbols, at) >> _S48).view(np.int64))

    def smooth(self, purpose: str, symbols: Ints, at: Ints, span: int) -> Floats:
        """Unit-variance noise that turns slowly: normals every `span`, straight lines between, rescaled."""
        node = at // span
        part = (at - node * span) / span
        left = self.normal(purpose, symbols, node)
        right = self.normal(purpose, symbols, node + 1)
        value: Floats = (left * (1.0 - part) + right * part) / np.sqrt(part * part + (1.0 - part) * (1.0 - part))
        return value

    def slots(self, purpose: str, symbols: Ints, at: Ints, count: int) -> Bits:
        """`count` times 64 bits for each (symbol, at): one more axis at the end."""
        drawn: Bits = np.arange(count, dtype=np.uint64) * _GOLDEN + self.bits(purpose, symbols, at)[..., None]
        _mix(drawn)
        return drawn

    def normal_slots(self, purpose: str, symbols: Ints, at: Ints, count: int) -> Floats:
        return _NORMAL.take((self.slots(purpose, symbols, at, count) >> _S48).view(np.int64))

    def _key(self, purpose: str) -> np.uint64:
        if purpose not in self._keys:
            # FNV-1a over seed and purpose; Python's own hash() differs from process to process.
            value = 0xCBF29CE484222325
            for byte in f"{self._seed}/{purpose}".encode():
                value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
            self._keys[purpose] = np.uint64(value)
        return self._keys[purpose]


class _Kept(Generic[_Value]):
    """Values by (contract, hour); the ones not asked for longest are forgotten beyond `bound`."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._values: OrderedDict[tuple[int, int], _Value] = OrderedDict()

    def get(self, key: tuple[int, int]) -> _Value | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def must_get(self, key: tuple[int, int]) -> _Value:
        return self._values[key]

    def put(self, key: tuple[int, int], value: _Value) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._bound:
            self._values.popitem(last=False)

    def missing(self, index: int, first: int, last: int, at_once: int) -> list[tuple[int, int]]:
        """Runs (first hour, count) that are not held, none longer than `at_once`; touches those that are."""
        runs: list[tuple[int, int]] = []
        for hour in range(first, last + 1):
            if self.get((index, hour)) is not None:
                continue
            if runs and sum(runs[-1]) == hour and runs[-1][1] < at_once:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((hour, 1))
        return runs


def _pieces(first_hour: int, last_hour: int) -> list[tuple[int, int]]:
    """Runs of hours, first and last, short enough for what is kept of any series to hold one whole."""
    return [(at, min(last_hour, at + 999)) for at in range(first_hour, last_hour + 1, 1000)]


def _mix(z: Bits) -> None:
    """The finaliser of splitmix64, in place."""
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)


def _bridge(steps: Floats, minute_variance: Floats, end: Floats) -> Floats:
    """Brownian bridges in variance time from 0 to `end`: (rows, hours, slots + 1)."""
    per_minute = steps.shape[2] // 60
    variance = np.repeat(minute_variance / per_minute, per_minute, axis=2)
    elapsed = np.cumsum(variance, axis=2)
    walk = np.cumsum(np.sqrt(variance) * steps, axis=2)
    walk += elapsed * (end[..., None] - walk[..., -1:])
    return np.concatenate([np.zeros((*walk.shape[:2], 1)), walk], axis=2)


def _mark_rows(mark: Floats, index: Floats, premium: Floats) -> Floats:
    """(contracts, hours, 60, 3, 4): open, high, low, close of the samples inside each minute."""
    rows = np.empty((*mark.shape[:2], 60, 3, 4))
    for column, nodes in enumerate((mark, index, premium)):
        samples = nodes[..., :-1].reshape(*nodes.shape[:2], 60, GRID)
        if column < 2:
            # Between two nodes the line is straight, so of seconds 56 to 59 only the last can be an extreme.
            left = samples[..., -1]
            right = nodes[..., GRID::GRID]
            close = left + (right - left) * 0.8
        else:
            close = samples[..., -1]
        rows[..., column, 0] = samples[..., 0]
        rows[..., column, 1] = np.maximum(samples.max(axis=3), close)
        rows[..., column, 2] = np.minimum(samples.min(axis=3), close)
        rows[..., column, 3] = close
    return rows


_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_SILVER: Final = np.uint64(0xD1B54A32D192ED03)
_S16, _S32, _S48 = np.uint64(16), np.uint64(32), np.uint64(48)
_LOW16: Final = np.uint64(0xFFFF)
_NORMAL: Final[Floats] = np.array([NormalDist().inv_cdf((step + 0.5) / 65536) for step in range(65536)])
_SIZES: Final[Floats] = np.exp(0.75 * _NORMAL - 0.28)
_DAYTIME: Final[Floats] = 0.22 * np.sin((np.arange(24) - 8.5) * np.pi / 12)
"""Log volatility by hour UTC: quiet in the small hours, busiest around 14:30."""
