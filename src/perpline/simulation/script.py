"""A price path said beforehand: contracts follow it in place of the world's own walk.

A row is a contract, a time and a price. From one row to the next the price moves in a straight line or stands and
steps (`shape`), and after the last one it stands. Only prices are scripted: when something is traded, how much and by
whom, stays the world's, so candles are exactly the trades that are published, as ever.

A script says nothing of the past: one that is given while the exchange runs holds from that moment on.
"""

import csv
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec
import numpy as np

from perpline.simulation.instruments import Instrument
from perpline.simulation.market import HOUR_MS, MINUTE_MS, Floats, HourDetail, Ints

Shape = Literal["linear", "step"]
_FIRST_MS: Final = 100_000_000_000
"""A time from here on is milliseconds since 1970, below it is seconds from the start."""
_ON_THE_TICK: Final = 1e-6
"""A price that is meant to be on the tick may miss it by the rounding of binary fractions."""


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One point of a path.

    `time`: seconds from the start (of the exchange, or the moment the script is given), milliseconds since 1970 where
    it is at least 1e11, or an ISO 8601 time (UTC where it names no offset).
    `price`: a price, or a change of the mark price of the start as "-2.5%".
    `mark`: the mark price where it is another than the price that is traded at.
    `shape`: how the price goes from this row to the next.
    """

    symbol: str
    time: float | str
    price: float | str
    mark: float | str | None = None
    shape: Shape = "linear"


@dataclass(frozen=True, slots=True)
class Path:
    """Prices of one contract from `from_ms` on. Without points the contract is back at the world's own price."""

    from_ms: int
    times_ms: tuple[int, ...] = ()
    prices: tuple[float, ...] = ()
    marks: tuple[float, ...] = ()
    shapes: tuple[Shape, ...] = ()

    def at(self, time_ms: int) -> tuple[float, float] | None:
        """Traded price and mark price at this time, not before `from_ms`; None without points."""
        if not self.times_ms:
            return None
        before = max(0, bisect_right(self.times_ms, time_ms) - 1)
        price, mark = self.prices[before], self.marks[before]
        after = before + 1
        if after == len(self.times_ms) or self.shapes[before] == "step":
            return price, mark
        part = (time_ms - self.times_ms[before]) / (self.times_ms[after] - self.times_ms[before])
        return price + (self.prices[after] - price) * part, mark + (self.marks[after] - mark) * part

    def over(self, times_ms: Ints) -> Floats:
        """The same at many times, (times, 2); NaN without points."""
        if not self.times_ms:
            return np.full((len(times_ms), 2), np.nan)
        points = np.array(self.times_ms)
        levels = np.array([self.prices, self.marks]).T
        before = np.maximum(0, np.searchsorted(points, times_ms, side="right") - 1)
        after = np.minimum(before + 1, len(points) - 1)
        moves = (after > before) & (np.array(self.shapes)[before] == "linear")
        part = np.where(moves, (times_ms - points[before]) / np.maximum(1, points[after] - points[before]), 0.0)
        values: Floats = levels[before] + (levels[after] - levels[before]) * part[:, None]
        return values


class Course:
    """What has been scripted for one contract so far: each path holds until the next one begins."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self.paths = paths
        self.from_ms = paths[0].from_ms

    def and_then(self, path: Path) -> "Course":
        """This course up to the beginning of `path`."""
        return Course((*(each for each in self.paths if each.from_ms < path.from_ms), path))

    def at(self, time_ms: int) -> tuple[float, float] | None:
        """Traded price and mark price at this time; None where the world's own hold."""
        for path in reversed(self.paths):
            if time_ms >= path.from_ms:
                return path.at(time_ms)
        return None

    def over(self, times_ms: Ints) -> Floats:
        """The same at many times, which rise, (times, 2); NaN where the world's own hold."""
        values = np.full((len(times_ms), 2), np.nan)
        starts = np.searchsorted(times_ms, [path.from_ms for path in self.paths]).tolist()
        for path, first, last in zip(self.paths, starts, [*starts[1:], len(times_ms)], strict=True):
            values[first:last] = path.over(times_ms[first:last])
        return values


def read_script(data: bytes) -> list[Row]:
    """Rows of a script: CSV with a heading (symbol,time,price[,mark][,shape]), JSON lines, or a JSON array.

    Raises ValueError naming the line."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error}") from error
    start = text.lstrip()[:1]
    if start == "[":
        try:
            return [row_of(each) for each in msgspec.json.decode(text, type=list[Any])]
        except msgspec.DecodeError as error:
            raise ValueError(f"no JSON: {error}") from error
    lines = text.splitlines()
    rows = []
    if start == "{":
        for number, line in enumerate(lines, 1):
            if line.strip():
                with _at_line(number):
                    rows.append(row_of(msgspec.json.decode(line)))
        return rows
    # Comments and empty lines are not rows; the csv reader would take them for some.
    held = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    reader = csv.DictReader([line for _, line in held], skipinitialspace=True, strict=True)
    for fields, (number, _) in zip(reader, held[1:], strict=True):
        with _at_line(number):
            rows.append(row_of({name: text for name, text in fields.items() if text != ""}))
    return rows


def row_of(fields: object) -> Row:
    """A row from a mapping; numbers may be texts. Raises ValueError."""
    try:
        row = msgspec.convert(fields, Row, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"no row of a script: {error}") from error
    for name in ("price", "mark"):
        value = getattr(row, name)
        if value is not None:
            _level(value, 1.0)
    _time_ms(row.time, 0)
    return row


def paths(
    rows: Iterable[Row], known: Mapping[str, int], start_ms: int, begins_ms: int, mark: Callable[[int], float]
) -> dict[int, Path]:
    """The path of each contract that the rows name, by its index.

    `start_ms`: what times in seconds count from. `begins_ms`: nothing is changed before. `mark(index)`: the mark price
    that changes in per cent refer to. Raises ValueError for an unknown contract."""
    by_index: dict[int, list[tuple[int, float, float, Shape]]] = {}
    for row in rows:
        index = known.get(row.symbol)
        if index is None:
            raise ValueError(f"{row.symbol} is no contract of this exchange")
        now = mark(index)
        price = _level(row.price, now)
        level = price if row.mark is None else _level(row.mark, now)
        by_index.setdefault(index, []).append((_time_ms(row.time, start_ms), price, level, row.shape))
    found = {}
    for index, points in by_index.items():
        # Stable: of two rows of one instant the later one holds from then on.
        points.sort(key=lambda point: point[0])
        times, prices, marks, shapes = zip(*points, strict=True)
        found[index] = Path(max(begins_ms, times[0]), times, prices, marks, shapes)
    return found


def follow(detail: HourDetail, own: Instrument, course: Course) -> HourDetail:
    """One hour of a contract with the prices of its course; `minutes` are still those of the world.

    The spread in ticks is the world's of that instant."""
    start_ms = detail.hour * HOUR_MS
    bids, asks = _quotes(detail, own, course, detail.time_ms)
    price = np.where(bids == 0, detail.price, np.where(detail.buyer_is_maker, bids, asks))
    node = np.arange(3600) // 5
    part = (np.arange(3600) - node * 5) / 5
    lines = [nodes[node] + (nodes[node + 1] - nodes[node]) * part for nodes in (detail.mark, detail.index)]
    marks, indices = (
        np.append(line, nodes[-1]) for line, nodes in zip(lines, (detail.mark, detail.index), strict=True)
    )
    scripted = course.over(start_ms + np.arange(3601) * 1000)[:, 1]
    held = ~np.isnan(scripted)
    indices[held] *= scripted[held] / marks[held]
    marks[held] = scripted[held]
    return replace(
        detail,
        price=price,
        mark=marks[::5].copy(),
        index=indices[::5].copy(),
        second_marks=marks,
        second_indices=indices,
    )


def quote(detail: HourDetail, own: Instrument, course: Course, time_ms: int) -> tuple[int, int] | None:
    """Bid and ask in units at this instant of the hour, None where the world's own hold."""
    scripted = course.at(time_ms)
    if scripted is None:
        return None
    slot = (time_ms - detail.hour * HOUR_MS) * own.slots_per_minute // MINUTE_MS
    spread = int(detail.ask[slot] - detail.bid[slot]) // own.tick_units
    ticks = scripted[0] * 10**own.price_decimals / own.tick_units
    bid = max(1, math.floor(ticks - 0.5 * (spread - 1) + _ON_THE_TICK)) * own.tick_units
    return bid, bid + spread * own.tick_units


def _quotes(detail: HourDetail, own: Instrument, course: Course, times_ms: Ints) -> tuple[Ints, Ints]:
    """`quote` at many times of the hour, 0 where the world's own hold."""
    prices = course.over(times_ms)[:, 0]
    slots = (times_ms - detail.hour * HOUR_MS) * own.slots_per_minute // MINUTE_MS
    spreads = (detail.ask[slots] - detail.bid[slots]) // own.tick_units
    ticks = np.nan_to_num(prices) * 10**own.price_decimals / own.tick_units
    bids = np.maximum(1, np.floor(ticks - 0.5 * (spreads - 1) + _ON_THE_TICK).astype(np.int64))
    held = ~np.isnan(prices)
    return np.where(held, bids * own.tick_units, 0), np.where(held, (bids + spreads) * own.tick_units, 0)


class _at_line:
    """Names the line in what is raised inside."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError):
            raise ValueError(f"line {self._number}: {error}") from error


def _level(value: float | str, now: float) -> float:
    text = str(value).strip()
    try:
        level = now * (1 + float(text[:-1]) / 100) if text.endswith("%") else float(text)
    except ValueError:
        raise ValueError(f"no price: {value!r}; 84000.5 is one, and -2.5%") from None
    if not (math.isfinite(level) and 0 < level < 1e12):
        raise ValueError(f"no price: {value!r} is not above 0 and finite")
    return level


def _time_ms(value: float | str, start_ms: int) -> int:
    try:
        number = float(value)
    except ValueError:
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            raise ValueError(f"no time: {value!r}; 30 is one, and 2026-11-23T09:00") from None
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        return round(moment.timestamp() * 1000)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"no time: {value!r}")
    return round(number) if number >= _FIRST_MS else start_ms + round(number * 1000)
