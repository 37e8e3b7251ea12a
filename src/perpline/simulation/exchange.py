"""What the exchange knows: candles, book, marks and series of its world at a given market time, and their wire texts.

Everything takes `now_ms` and shows nothing later than it. All of it is a pure function of the world, so what is
published, what REST answers and what a test is told as the truth come from the same integers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

import numpy as np

from perpline.simulation import script
from perpline.simulation.instruments import Instrument, decimal_text
from perpline.simulation.market import (
    BUY_QUOTE,
    BUY_VOLUME,
    CLOSE,
    FIRST_ID,
    GENESIS_MS,
    HIGH,
    HOUR_MS,
    LAST_ID,
    LOW,
    MINUTE_MS,
    OPEN,
    QUOTE,
    TRADES,
    VOLUME,
    Floats,
    HourDetail,
    Ints,
    World,
)

Candle = list[int]
"""One candle as the eleven integers of market.py's columns."""
KlineRow = list[int | str]
"""One candle as REST spells it: twelve entries."""

DAY_MS: Final = 86_400_000
INTERVAL_MS: Final[dict[str, int]] = {
    "1m": MINUTE_MS,
    "3m": 3 * MINUTE_MS,
    "5m": 5 * MINUTE_MS,
    "15m": 15 * MINUTE_MS,
    "30m": 30 * MINUTE_MS,
    "1h": HOUR_MS,
    "2h": 2 * HOUR_MS,
    "4h": 4 * HOUR_MS,
    "6h": 6 * HOUR_MS,
    "8h": 8 * HOUR_MS,
    "12h": 12 * HOUR_MS,
    "1d": DAY_MS,
    "3d": 3 * DAY_MS,
    "1w": 7 * DAY_MS,
}
INTERVALS: Final = (*INTERVAL_MS, "1M")
_MOST_FOLLOWED_HOURS: Final = 2_000
_WEEK_STARTS_MS: Final = 4 * DAY_MS
"""1970-01-05 was a Monday."""


@dataclass(frozen=True, slots=True)
class Book:
    """Best bid and ask in units, the matching engine's time and the update id."""

    bid: int
    bid_quantity: int
    ask: int
    ask_quantity: int
    time_ms: int
    update_id: int


@dataclass(slots=True)
class _Interruption:
    """Minutes in which nothing is traded: `share` of first_minute <= minute < end_minute."""

    key: int
    index: int
    first_minute: int
    end_minute: int
    share: float = 1.0
    closing: bool = True
    halted: bool = False
    seed: int = 0

    def covers(self, minute: int) -> bool:
        if not self.first_minute <= minute < self.end_minute:
            return False
        return self.share >= 1.0 or scatter(self.seed * 1_000_003 + self.index, minute) < self.share * 2**64


@dataclass(frozen=True, slots=True)
class Mark:
    mark: float
    average: float
    index: float
    settle: float
    premium: float
    funding_rate: float
    next_funding_ms: int


class Exchange:
    """The listed contracts and what is known of them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.instruments: list[Instrument] = world.instruments
        self.symbols: tuple[str, ...] = tuple(instrument.symbol for instrument in world.instruments)
        self.index_of: dict[str, int] = {symbol: index for index, symbol in enumerate(self.symbols)}
        self._expected: dict[int, list[tuple[float, int]]] = {}
        self._listed_ms: dict[int, int] = {}
        self._delisted_ms: dict[int, int] = {}
        self._interruptions: list[_Interruption] = []
        self.courses: dict[int, script.Course] = {}
        """The contracts whose prices are scripted, each from some time on. Change it by `follow`."""
        self._followed: dict[tuple[int, int, script.Course], HourDetail] = {}

    # ---- scripted prices

    def follow(self, index: int, path: script.Path) -> None:
        """From `path.from_ms` on this contract has these prices."""
        before = self.courses.get(index)
        self.courses[index] = script.Course((path,)) if before is None else before.and_then(path)
        self._followed = {}

    def followed(self, index: int, base: HourDetail) -> HourDetail:
        """An hour of the world as it is with the contract's script; `base` itself where there is none."""
        course = self.courses.get(index)
        if course is None or (base.hour + 1) * HOUR_MS <= course.from_ms:
            return base
        key = (index, base.hour, course)
        detail = self._followed.get(key)
        if detail is None:
            detail = script.follow(base, self.instruments[index], course)
            detail = replace(detail, minutes=self._minutes_of(index, detail, course.from_ms))
            # Two threads may come here; what one of them throws away is computed again.
            if len(self._followed) >= _MOST_FOLLOWED_HOURS:
                self._followed = {}
            self._followed[key] = detail
        return detail

    def _minutes_of(self, index: int, detail: HourDetail, from_ms: int) -> Ints:
        """The candle rows of the hour's trades, from the minute of `from_ms` on."""
        minutes = detail.minutes.copy()
        start_ms = detail.hour * HOUR_MS
        edges = np.searchsorted(detail.time_ms, start_ms + np.arange(61) * MINUTE_MS).tolist()
        for at in range(max(0, (from_ms - start_ms) // MINUTE_MS), 60):
            first, last = edges[at], edges[at + 1]
            if first < last:
                minutes[at] = candle_of_trades(detail, first, last)
            elif at:
                minutes[at] = flat(int(minutes[at - 1, CLOSE]))
            else:
                minutes[at] = flat(int(self._scripted_minutes(index, detail.hour * 60 - 1, 1)[0, CLOSE]))
        return minutes

    def _scripted_minutes(self, index: int, first_minute: int, count: int) -> Ints:
        """The world's candle rows, with the contract's script."""
        course = self.courses.get(index)
        rows = self.world.minutes(index, first_minute, count)
        if course is None or (first_minute + count) * MINUTE_MS <= course.from_ms:
            return rows
        rows = rows.copy()
        first_hour = max(first_minute * MINUTE_MS, course.from_ms) // HOUR_MS
        for hour in range(first_hour, (first_minute + count - 1) // 60 + 1):
            minutes = self.followed(index, self.world.detail(index, hour)).minutes
            a, b = max(first_minute, hour * 60), min(first_minute + count, hour * 60 + 60)
            rows[a - first_minute : b - first_minute] = minutes[a - hour * 60 : b - hour * 60]
        return rows

    def _scripted_mark_minutes(self, index: int, first_minute: int, count: int) -> Floats:
        """`World.mark_minutes`, with the contract's script."""
        course = self.courses.get(index)
        rows = self.world.mark_minutes(index, first_minute, count)
        if course is None or (first_minute + count) * MINUTE_MS <= course.from_ms:
            return rows
        rows = rows.copy()
        for minute in range(max(first_minute, course.from_ms // MINUTE_MS), first_minute + count):
            detail = self.followed(index, self.world.detail(index, minute // 60))
            first = minute % 60 * 60
            for series, seconds in enumerate((detail.second_marks, detail.second_indices)):
                assert seconds is not None
                held = seconds[first : first + 60]
                rows[minute - first_minute, series] = held[0], held.max(), held.min(), held[-1]
        return rows

    def _marks_at_hours(self, index: int, hours: Ints) -> Floats:
        """`World.marks_at_hours`, with the contract's script."""
        marks = self.world.marks_at_hours(index, hours)
        course = self.courses.get(index)
        if course is not None:
            for at, hour in enumerate(hours.tolist()):
                scripted = course.at(hour * HOUR_MS)
                if scripted is not None:
                    marks[at] = scripted[1]
        return marks

    # ---- what is listed and traded when; everything begins and ends with a whole minute

    def enlist(self, index: int, from_ms: int) -> None:
        """This contract is unknown before `from_ms`."""
        self._listed_ms[index] = _whole_minute(from_ms) * MINUTE_MS

    def delist(self, index: int, from_ms: int) -> None:
        """This contract's candles end at `from_ms`."""
        self._delisted_ms[index] = _whole_minute(from_ms) * MINUTE_MS

    def halt(self, key: int, index: int, from_ms: int, to_ms: float) -> None:
        """Nothing is traded and the book stands from `from_ms` to `to_ms`."""
        self._interruptions.append(_Interruption(key, index, _whole_minute(from_ms), _whole_minute(to_ms), halted=True))

    def quieten(self, key: int, index: int, from_ms: int, to_ms: float, share: float, closing: bool, seed: int) -> None:
        """That share of the minutes from `from_ms` to `to_ms` sees no trade; without `closing` no closing frame."""
        self._interruptions.append(
            _Interruption(key, index, _whole_minute(from_ms), _whole_minute(to_ms), share, closing, seed=seed)
        )

    def resume(self, key: int, at_ms: int) -> None:
        """What was begun under this key is over."""
        for each in self._interruptions:
            if each.key == key:
                each.end_minute = min(each.end_minute, _whole_minute(at_ms))

    @property
    def is_ordinary(self) -> bool:
        """Whether every contract is listed and traded all the time."""
        return not (self._interruptions or self._listed_ms or self._delisted_ms)

    def is_known(self, index: int, now_ms: int) -> bool:
        return now_ms >= self._listed_ms.get(index, 0)

    def is_traded(self, index: int, now_ms: int) -> bool:
        """Listed and not delisted. A halted contract is one."""
        return self.is_known(index, now_ms) and now_ms < self._delisted_ms.get(index, now_ms + 1)

    def is_halted(self, index: int, now_ms: int) -> bool:
        minute = now_ms // MINUTE_MS
        return any(each.halted and each.index == index and each.covers(minute) for each in self._interruptions)

    def status(self, index: int, now_ms: int) -> str:
        if not self.is_traded(index, now_ms):
            return "SETTLING"
        return "TRADING_HALT" if self.is_halted(index, now_ms) else "TRADING"

    def onboard_ms(self, index: int) -> int:
        return self._listed_ms.get(index, GENESIS_MS)

    def without_trades(self, minute: int) -> set[int]:
        """Contracts that nothing is traded in during this minute, but for those that are quiet by nature."""
        if self.is_ordinary:
            return set()
        untraded = {index for index in range(len(self.symbols)) if not self.is_traded(index, minute * MINUTE_MS)}
        return untraded | {each.index for each in self._interruptions if each.covers(minute)}

    def closes_silently(self, index: int, minute: int) -> bool:
        """Whether this minute without trades sends no closing frame."""
        return any(each.index == index and not each.closing and each.covers(minute) for each in self._interruptions)

    def minutes(self, index: int, first_minute: int, count: int) -> Ints:
        """The world's candle rows (count, 11), flat where trading was interrupted."""
        rows = self._scripted_minutes(index, first_minute, count)
        covering = [each for each in self._interruptions if each.index == index]
        if not covering or count == 0:
            return rows
        interrupted = np.array(
            [any(each.covers(first_minute + at) for each in covering) for at in range(count)], dtype=np.bool_
        )
        # A minute that is empty by nature is flat too, and not at a close that was never traded at.
        interrupted |= rows[:, TRADES] == 0
        if not interrupted.any():
            return rows
        last = np.maximum.accumulate(np.where(interrupted, -1, np.arange(count)))
        closes = rows[last, CLOSE]
        if last[0] < 0:
            closes[last < 0] = self._close_before(index, first_minute, covering)
        rows = rows.copy()
        rows[interrupted] = 0
        rows[interrupted, OPEN : CLOSE + 1] = closes[interrupted, None]
        rows[interrupted, FIRST_ID : LAST_ID + 1] = -1
        return rows

    def _close_before(self, index: int, minute: int, covering: Sequence["_Interruption"]) -> int:
        while True:
            minute -= 1
            row = self._scripted_minutes(index, minute, 1)[0]
            if row[TRADES] and not any(each.covers(minute) for each in covering):
                return int(row[CLOSE])

    def detail(self, index: int, hour: int) -> HourDetail:
        """One hour of one contract down to the trade."""
        detail = self.followed(index, self.world.detail(index, hour))
        covering = [each for each in self._interruptions if each.index == index]
        if not covering:
            return detail
        held = np.array([not any(each.covers(hour * 60 + at) for each in covering) for at in range(60)])
        kept = held[(detail.time_ms - hour * HOUR_MS) // MINUTE_MS]
        return replace(
            detail,
            **{
                name: getattr(detail, name)[kept]
                for name in (
                    "time_ms", "price", "quantity", "buyer_is_maker", "first_id", "last_id", "aggregate_id"
                )
            },
            minutes=self.minutes(index, hour * 60, 60),
        )  # fmt: skip

    def _told_until(self, index: int, now_ms: int) -> int:
        """The last instant up to now at which there was something to tell of this contract."""
        return min(now_ms, self._delisted_ms.get(index, now_ms + 1) - 1)

    # ---- candles

    def klines(
        self, index: int, interval: str, start_ms: int | None, end_ms: int | None, limit: int, now_ms: int
    ) -> list[KlineRow]:
        """Rows as GET /fapi/v1/klines gives them: the last one may still be open."""
        opens = self._opens(index, interval, start_ms, end_ms, limit, now_ms)
        return [
            self.kline_row(index, interval, open_ms, candle)
            for open_ms, candle in zip(opens, self._candles(index, interval, opens, now_ms), strict=True)
        ]

    def closed_candles(self, index: int, interval: str, from_ms: int, to_ms: int, now_ms: int) -> list[KlineRow]:
        """The candles with from_ms <= open time < to_ms that are closed at `now_ms`: the truth."""
        opens = [
            open_ms
            for open_ms in self._opens(index, interval, from_ms, to_ms - 1, 10_000_000, now_ms)
            if next_open(interval, open_ms) <= now_ms
        ]
        return [
            self.kline_row(index, interval, open_ms, candle)
            for open_ms, candle in zip(opens, self._candles(index, interval, opens, now_ms), strict=True)
        ]

    def kline_row(self, index: int, interval: str, open_ms: int, candle: Candle) -> KlineRow:
        own = self.instruments[index]
        price, quantity = own.price_decimals, own.quantity_decimals
        return [
            open_ms,
            decimal_text(candle[OPEN], price),
            decimal_text(candle[HIGH], price),
            decimal_text(candle[LOW], price),
            decimal_text(candle[CLOSE], price),
            decimal_text(candle[VOLUME], quantity),
            next_open(interval, open_ms) - 1,
            decimal_text(candle[QUOTE], price + quantity),
            candle[TRADES],
            decimal_text(candle[BUY_VOLUME], quantity),
            decimal_text(candle[BUY_QUOTE], price + quantity),
            "0",
        ]

    def price_klines(
        self,
        index: int,
        series: int,
        interval: str,
        start_ms: int | None,
        end_ms: int | None,
        limit: int,
        now_ms: int,
    ) -> list[KlineRow]:
        """The klines of mark price (series 0), index price (1) or premium index (2)."""
        rows: list[KlineRow] = []
        per_minute = 12 if series == 2 else 60
        now_ms = self._told_until(index, now_ms)
        for open_ms in self._opens(index, interval, start_ms, end_ms, limit, now_ms):
            after = next_open(interval, open_ms)
            minutes = (min(after, now_ms // MINUTE_MS * MINUTE_MS) - open_ms) // MINUTE_MS
            parts = []
            samples = minutes * per_minute
            if minutes > 0:
                parts.append(self._scripted_mark_minutes(index, open_ms // MINUTE_MS, minutes)[:, series])
            if after > now_ms:
                forming, seen = self._forming_mark(index, series, now_ms)
                parts.append(forming)
                samples += seen
            values = np.concatenate(parts)
            rows.append(
                [
                    open_ms,
                    f"{values[0, 0]:z.8f}",
                    f"{values[:, 1].max():z.8f}",
                    f"{values[:, 2].min():z.8f}",
                    f"{values[-1, 3]:z.8f}",
                    "0",
                    after - 1,
                    "0",
                    samples,
                    "0",
                    "0",
                    "0",
                ]
            )
        return rows

    def day(self, index: int, now_ms: int) -> Candle:
        """The last 24 hours as one candle, to the minute."""
        minute = now_ms // MINUTE_MS
        first = max(minute - 1439, self.onboard_ms(index) // MINUTE_MS)
        forming = self.forming_minute(index, now_ms)
        if first >= minute:
            return forming
        return merged(_fold(self.minutes(index, first, minute - first), [0])[0], forming)

    def forming_minute(self, index: int, now_ms: int) -> Candle:
        """The minute of `now_ms` from its trades so far; flat at the last close while there are none."""
        minute = now_ms // MINUTE_MS
        detail = self.detail(index, now_ms // HOUR_MS)
        first, last = np.searchsorted(detail.time_ms, [minute * MINUTE_MS, now_ms + 1])
        if first == last:
            row = self.minutes(index, minute - 1, 1)[0]
            return flat(int(row[CLOSE]))
        return candle_of_trades(detail, int(first), int(last))

    def _candles(self, index: int, interval: str, opens: list[int], now_ms: int) -> list[Candle]:
        if not opens:
            return []
        now_ms = self._told_until(index, now_ms)
        listed = self.onboard_ms(index) // MINUTE_MS
        end = next_open(interval, opens[-1])
        closed_to = min(end, now_ms // MINUTE_MS * MINUTE_MS)
        candles: list[Candle] = []
        # In pieces, so that years of days do not stand in memory as minutes at once.
        piece = max(1, 44_640 * MINUTE_MS // max(MINUTE_MS, next_open(interval, opens[0]) - opens[0]))
        for at in range(0, len(opens), piece):
            part = opens[at : at + piece]
            first = max(listed, part[0] // MINUTE_MS)
            to = min(closed_to, next_open(interval, part[-1])) // MINUTE_MS
            starts = [
                max(0, open_ms // MINUTE_MS - first) for open_ms in part if max(listed, open_ms // MINUTE_MS) < to
            ]
            if starts:
                candles += _fold(self.minutes(index, first, to - first), starts)
        if end > now_ms:
            forming = self.forming_minute(index, now_ms)
            if len(candles) == len(opens):
                candles[-1] = merged(candles[-1], forming)
            else:
                candles.append(forming)
        return candles

    def _forming_mark(self, index: int, series: int, now_ms: int) -> tuple[Floats, int]:
        """Open, high, low, close of the running minute's samples, (1, 4), and how many there are."""
        detail = self.detail(index, now_ms // HOUR_MS)
        first = now_ms // MINUTE_MS * MINUTE_MS
        step = 5_000 if series == 2 else 1_000
        times = np.arange(first, now_ms + 1, step)
        exact = (detail.second_marks, detail.second_indices, None)[series]
        if exact is not None:
            values = exact[times // 1000 - detail.hour * 3600]
        else:
            values = _between(detail, (detail.mark, detail.index, detail.premium)[series], times)
        return np.array([[values[0], values.max(), values.min(), values[-1]]]), len(values)

    def _opens(
        self, index: int, interval: str, start_ms: int | None, end_ms: int | None, limit: int, now_ms: int
    ) -> list[int]:
        """Open times, in order, of the rows a request gets."""
        first = open_of(interval, self.onboard_ms(index))
        now_ms = self._told_until(index, now_ms)
        last = open_of(interval, min(now_ms, now_ms if end_ms is None else end_ms))
        opens: list[int] = []
        if start_ms is not None:
            at = open_of(interval, max(first, start_ms))
            at = at if at >= start_ms else next_open(interval, at)
            at = max(at, first)
            while at <= last and len(opens) < limit:
                opens.append(at)
                at = next_open(interval, at)
            return opens
        at = last
        while at >= first and len(opens) < limit:
            opens.append(at)
            at = open_of(interval, at - 1)
        return opens[::-1]

    # ---- book

    def book(self, index: int, time_ms: int, detail: HourDetail | None = None) -> Book:
        """Best bid and ask at that time. Quantities, and now and then a wider side, change with every update."""
        own = self.instruments[index]
        period = self.book_period_ms(index)
        while self.is_halted(index, time_ms):
            time_ms = time_ms // MINUTE_MS * MINUTE_MS - 1
        cell = time_ms // period
        draw = scatter(self.world.seed * 1_000_003 + index, cell)
        at = cell * period + (draw >> 40) % period
        if at > time_ms:
            cell -= 1
            draw = scatter(self.world.seed * 1_000_003 + index, cell)
            at = cell * period + (draw >> 40) % period
        hour = at // HOUR_MS
        if detail is None or detail.hour != hour:
            detail = self.detail(index, hour)
        slot = (at - hour * HOUR_MS) * own.slots_per_minute // MINUTE_MS
        bid, ask = int(detail.bid[slot]), int(detail.ask[slot])
        course = self.courses.get(index)
        if course is not None:
            bid, ask = script.quote(detail, own, course, at) or (bid, ask)
        if draw & 15 == 0:
            ask += own.tick_units
        elif draw & 15 == 1 and bid > own.tick_units:
            bid -= own.tick_units
        usual = own.quantity_units * 3
        return Book(
            bid=bid,
            bid_quantity=1 + int(usual * _SKEWED[(draw >> 8) & 255]),
            ask=ask,
            ask_quantity=1 + int(usual * _SKEWED[(draw >> 16) & 255]),
            time_ms=at,
            update_id=update_at(at),
        )

    def book_period_ms(self, index: int) -> int:
        """Mean time between two updates of the best bid and ask."""
        return max(1, round(1000 / self.instruments[index].book_updates_per_s))

    def depth(
        self, index: int, levels: int, time_ms: int, detail: HourDetail | None = None
    ) -> tuple[Book, list[tuple[int, int]], list[tuple[int, int]]]:
        """(book, bids, asks): price and quantity of each level, best first. A level keeps its size for some seconds.

        The diff stream tells of the nearest 60 levels a side; deeper ones change unannounced."""
        own = self.instruments[index]
        book = self.book(index, time_ms, detail)
        sides = []
        for best, quantity, direction in ((book.bid, book.bid_quantity, -1), (book.ask, book.ask_quantity, 1)):
            level, price = [(best, quantity)], best
            while len(level) < levels:
                price += direction * own.tick_units
                if price <= 0:
                    break
                draw = scatter(index * 7919 + price, (time_ms + price * 37) // 8_000)
                if draw & 3:
                    # A quarter of the ticks is empty.
                    level.append((price, 1 + int(own.quantity_units * 4 * _SKEWED[(draw >> 8) & 255])))
            sides.append(level)
        return book, sides[0], sides[1]

    # ---- mark, index, funding

    def mark(self, index: int, time_ms: int, detail: HourDetail | None = None) -> Mark:
        """Mark price and its companions at a whole second (the time is rounded down to one)."""
        second = time_ms // 1000
        hour, within = divmod(second, 3600)
        if detail is None or detail.hour != hour:
            detail = self.detail(index, hour)
        node = within // 5
        part = (within - node * 5) / 5
        mark = detail.mark[node] + (detail.mark[node + 1] - detail.mark[node]) * part
        spot = detail.index[node] + (detail.index[node + 1] - detail.index[node]) * part
        if detail.second_marks is not None and detail.second_indices is not None:
            mark, spot = detail.second_marks[within], detail.second_indices[within]
        rate, settles_ms = self.expected_funding(hour)[index] if self.is_traded(index, time_ms) else (0.0, 0)
        return Mark(
            mark=float(mark),
            average=float(detail.mark[max(0, node - 5) : node + 1].sum() / (node + 1 - max(0, node - 5))),
            index=float(spot),
            settle=float(detail.index[: node + 1].sum() / (node + 1)),
            premium=float(detail.premium[node]),
            funding_rate=rate,
            next_funding_ms=settles_ms,
        )

    def funding(self, index: int, start_ms: int, end_ms: int, limit: int, latest: bool) -> list[dict[str, int | str]]:
        """Settled rates with start_ms <= time <= end_ms, in order: the first or the latest `limit` of them."""
        interval = self.instruments[index].funding_interval_hours
        # A rate is stamped a few milliseconds after its hour, so one hour before the start may still belong to it.
        first = max(start_ms, GENESIS_MS + DAY_MS) // (interval * HOUR_MS) * interval
        times = [
            (hour, time_ms)
            for hour in range(first, end_ms // HOUR_MS + 1, interval)
            if start_ms <= (time_ms := hour * HOUR_MS + self._funding_stamp(index, hour)) <= end_ms
        ]
        times = times[-limit:] if latest else times[:limit]
        if not times:
            return []
        marks = self._marks_at_hours(index, np.array([hour for hour, _ in times]))
        rates = [self.world.funding_rates(np.array([index]), hour, interval, interval)[0] for hour, _ in times]
        return [
            {
                "symbol": self.symbols[index],
                "fundingTime": time_ms,
                "fundingRate": f"{rate:.8f}",
                "markPrice": f"{mark:.8f}",
                "rateType": "Regular",
            }
            for (_, time_ms), mark, rate in zip(times, marks.tolist(), rates, strict=True)
        ]

    def _funding_stamp(self, index: int, hour: int) -> int:
        """How many milliseconds after the hour the settlement is stamped."""
        return scatter(self.world.seed * 1_000_003 + index, hour) % 12

    def expected_funding(self, hour: int) -> list[tuple[float, int]]:
        """Of each contract, during this hour: the rate as it would be settled now, and the next funding time."""
        expected = self._expected.get(hour)
        if expected is None:
            by_interval: dict[int, list[int]] = {}
            for own in self.instruments:
                by_interval.setdefault(own.funding_interval_hours, []).append(own.index)
            found: dict[int, tuple[float, int]] = {}
            for interval, indices in by_interval.items():
                settles = (hour // interval + 1) * interval
                known = hour + 1 - (settles - interval)
                rates = self.world.funding_rates(np.array(indices), settles, interval, known)
                found.update(zip(indices, ((rate, settles * HOUR_MS) for rate in rates.tolist()), strict=True))
            expected = [found[index] for index in range(len(self.instruments))]
            # Kept for the hour that runs, the one before and the one that is prepared.
            self._expected = {each: self._expected[each] for each in sorted(self._expected)[-2:]}
            self._expected[hour] = expected
        return expected

    # ---- /futures/data

    def period_rows(
        self, series: str, index: int, period: str, start_ms: int | None, end_ms: int | None, limit: int, now_ms: int
    ) -> list[dict[str, int | str]]:
        """Rows of openInterestHist, the three account ratios or takerlongshortRatio, labelled with the period's end.

        A row becomes visible 10 to 60 s after the end of its period."""
        length = INTERVAL_MS[period]
        last = min(now_ms, now_ms if end_ms is None else end_ms) // length * length
        while self.publication_ms(series, index, last) > now_ms:
            last -= length
        first = max(now_ms - 30 * DAY_MS, GENESIS_MS + DAY_MS, 0 if start_ms is None else start_ms)
        first = -(-first // length) * length
        ends = range(first, last + 1, length)
        ends = ends[:limit] if start_ms is not None else ends[-limit:]
        if not ends:
            return []
        if series == "openInterestHist":
            return self._open_interest_rows(index, length, ends)
        if series == "takerlongshortRatio":
            return self._taker_rows(index, length, ends)
        return self._ratio_rows(index, _RATIOS[series], ends)

    def publication_ms(self, series: str, index: int, end_ms: int) -> int:
        """When the row of the period that ends at `end_ms` becomes visible."""
        return end_ms + 10_000 + self.world.bits(f"publication {series}", index, end_ms // MINUTE_MS) % 50_000

    def _open_interest_rows(self, index: int, length: int, ends: range) -> list[dict[str, int | str]]:
        own = self.instruments[index]
        units = self.world.open_interest(index, np.array(ends)).tolist()
        if length % HOUR_MS == 0:
            marks = self._marks_at_hours(index, np.array(ends) // HOUR_MS)
        else:
            first, last = ends[0] // MINUTE_MS, ends[-1] // MINUTE_MS
            marks = self._scripted_mark_minutes(index, first, last - first + 1)[:: length // MINUTE_MS, 0, 0]
        return [
            {
                "symbol": own.symbol,
                "sumOpenInterest": decimal_text(count * 10 ** (8 - own.quantity_decimals), 8),
                "sumOpenInterestValue": f"{count / 10**own.quantity_decimals * mark:.8f}",
                "CMCCirculatingSupply": "0.00000000",
                "timestamp": end_ms,
            }
            for end_ms, count, mark in zip(ends, units, marks.tolist(), strict=True)
        ]

    def _taker_rows(self, index: int, length: int, ends: range) -> list[dict[str, int | str]]:
        minutes = length // MINUTE_MS
        rows = self.minutes(index, ends[0] // MINUTE_MS - minutes, len(ends) * minutes)
        bought = rows[:, BUY_VOLUME].reshape(-1, minutes).sum(axis=1).tolist()
        traded = rows[:, VOLUME].reshape(-1, minutes).sum(axis=1).tolist()
        pad = 10 ** (4 - self.instruments[index].quantity_decimals)
        return [
            {
                "buySellRatio": f"{buys / (volume - buys) if volume > buys else 0.0:.4f}",
                "sellVol": decimal_text((volume - buys) * pad, 4),
                "buyVol": decimal_text(buys * pad, 4),
                "timestamp": end_ms,
            }
            for end_ms, buys, volume in zip(ends, bought, traded, strict=True)
        ]

    def _ratio_rows(self, index: int, ratio: str, ends: range) -> list[dict[str, int | str]]:
        shares = self.world.long_shares(index, ratio, np.array(ends)).tolist()
        rows: list[dict[str, int | str]] = []
        for end_ms, share in zip(ends, shares, strict=True):
            long = round(share, 4)
            short = round(1.0 - long, 4)
            rows.append(
                {
                    "symbol": self.symbols[index],
                    "longAccount": f"{long:.4f}",
                    "longShortRatio": f"{long / short:.4f}",
                    "shortAccount": f"{short:.4f}",
                    "timestamp": end_ms,
                }
            )
        return rows


PERIOD_SERIES: Final = (
    "openInterestHist",
    "topLongShortPositionRatio",
    "topLongShortAccountRatio",
    "globalLongShortAccountRatio",
    "takerlongshortRatio",
)
_RATIOS: Final = {
    "topLongShortPositionRatio": "top_position",
    "topLongShortAccountRatio": "top_account",
    "globalLongShortAccountRatio": "global_account",
}


def open_of(interval: str, time_ms: int) -> int:
    """Open time of the candle that holds this instant. Weeks start on Monday, months on the first, UTC."""
    if interval == "1M":
        day = datetime.fromtimestamp(time_ms // 1000, UTC)
        return int(datetime(day.year, day.month, 1, tzinfo=UTC).timestamp()) * 1000
    length = INTERVAL_MS[interval]
    origin = _WEEK_STARTS_MS if interval == "1w" else 0
    return (time_ms - origin) // length * length + origin


def next_open(interval: str, open_ms: int) -> int:
    """Open time of the following candle."""
    if interval == "1M":
        return open_of("1M", open_of("1M", open_ms) + 32 * DAY_MS)
    return open_of(interval, open_ms) + INTERVAL_MS[interval]


def _whole_minute(time_ms: float) -> int:
    """The first minute that begins at this time or after it; far beyond all others for inf."""
    return math.ceil(min(time_ms, 1e15) / MINUTE_MS)


def update_at(time_ms: int) -> int:
    """The book's update id at that time: forty a millisecond."""
    return (time_ms - 1_500_000_000_000) * 40


def time_of_update(update_id: int) -> int:
    return update_id // 40 + 1_500_000_000_000


def flat(price: int) -> Candle:
    """A candle without trades."""
    return [price, price, price, price, 0, 0, 0, 0, 0, -1, -1]


def candle_of_trades(detail: HourDetail, first: int, last: int) -> Candle:
    """The candle of the trades first..last-1 of an hour; at least one."""
    price, quantity = detail.price[first:last], detail.quantity[first:last]
    quote = price * quantity
    bought = ~detail.buyer_is_maker[first:last]
    first_id, last_id = int(detail.first_id[first]), int(detail.last_id[last - 1])
    return [
        int(price[0]),
        int(price.max()),
        int(price.min()),
        int(price[-1]),
        int(quantity.sum()),
        int(quote.sum()),
        last_id - first_id + 1,
        int(quantity.sum(where=bought)),
        int(quote.sum(where=bought)),
        first_id,
        last_id,
    ]


def merged(earlier: Candle, later: Candle) -> Candle:
    """Two neighbouring candles as one."""
    return [
        earlier[OPEN],
        max(earlier[HIGH], later[HIGH]),
        min(earlier[LOW], later[LOW]),
        later[CLOSE],
        earlier[VOLUME] + later[VOLUME],
        earlier[QUOTE] + later[QUOTE],
        earlier[TRADES] + later[TRADES],
        earlier[BUY_VOLUME] + later[BUY_VOLUME],
        earlier[BUY_QUOTE] + later[BUY_QUOTE],
        earlier[FIRST_ID] if earlier[FIRST_ID] >= 0 else later[FIRST_ID],
        later[LAST_ID] if later[LAST_ID] >= 0 else earlier[LAST_ID],
    ]


def scatter(key: int, at: int) -> int:
    """64 bits from two integers; the scalar twin of the world's hash, for what is drawn once per message."""
    value = (key * 0x9E3779B97F4A7C15 + at * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)


def _fold(rows: Ints, starts: list[int]) -> list[Candle]:
    """Minute rows joined into one candle per start; the last group runs to the end."""
    if len(starts) == len(rows):
        plain: list[Candle] = rows.tolist()
        return plain
    ends = np.array([*starts[1:], len(rows)]) - 1
    folded = np.add.reduceat(rows, starts, axis=0)
    folded[:, OPEN] = rows[starts, OPEN]
    folded[:, HIGH] = np.maximum.reduceat(rows[:, HIGH], starts)
    folded[:, LOW] = np.minimum.reduceat(rows[:, LOW], starts)
    folded[:, CLOSE] = rows[ends, CLOSE]
    ids = np.where(rows[:, FIRST_ID] < 0, np.iinfo(np.int64).max, rows[:, FIRST_ID])
    folded[:, FIRST_ID] = np.minimum.reduceat(ids, starts)
    folded[:, LAST_ID] = np.maximum.reduceat(rows[:, LAST_ID], starts)
    folded[folded[:, LAST_ID] < 0, FIRST_ID] = -1
    candles: list[Candle] = folded.tolist()
    return candles


def _between(detail: HourDetail, nodes: Floats, times_ms: Ints) -> Floats:
    """Values on the straight lines between five-second nodes, at whole seconds."""
    seconds = times_ms // 1000 - detail.hour * 3600
    node = seconds // 5
    part = (seconds - node * 5) / 5
    values: Floats = nodes[node] + (nodes[node + 1] - nodes[node]) * part
    return values


_SKEWED: Final = tuple(float(x) for x in np.exp(np.random.Generator(np.random.Philox(7)).normal(0.0, 0.9, 256)))
"""A fixed table of lognormal sizes."""
