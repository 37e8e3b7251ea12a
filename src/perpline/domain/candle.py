"""Candles: what a minute (or 15, or 60) of trading was, and the arithmetic of their times."""

import math
from typing import Literal

from msgspec import Struct

from perpline.common.errors import Malformed

Source = Literal["ws", "rest", "archive"]

INTERVAL_MS: dict[str, int] = {"1m": 60_000, "15m": 900_000, "1h": 3_600_000}
"""The intervals perpline keeps, each with its length."""

MINUTE_MS = 60_000

LOG_SCALE = 1 << 30
"""Log prices are kept as integers in units of 2**-30 (features.md 1.1), so that sums are exact in any order."""


class KlineUpdate(Struct, frozen=True, gc=False):
    """A candle as the exchange last told it: still forming, or closed for good.

    `close_time` is the exchange's (…999); the close boundary T is `open_time` plus the interval's length.
    """

    symbol: str
    interval: str
    open_time: int
    close_time: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    quote_volume: float
    trades: int
    taker_buy_volume: float
    taker_buy_quote_volume: float
    closed: bool
    source: Source
    event_time: int
    """The exchange's time of the message; for REST rows the close time, since REST tells none."""
    received_at: int
    """Our time when the bytes arrived, milliseconds."""
    received_us: int = 0
    """The same in microseconds, for latency figures."""


class Candle(Struct, frozen=True, gc=False):
    """A closed candle: one row of candles_1m, candles_15m or candles_1h.

    The fields between `interval` and `received_us` are the table's columns in their order. The `log_*` values are
    quantised once, here, and read back from the store ever after: two libms can differ in the last bit, a stored
    integer cannot.
    """

    interval: str
    symbol: str
    open_time: int
    close_time: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    quote_volume: float
    trades: int
    taker_buy_volume: float
    taker_buy_quote_volume: float
    log_open: int
    log_high: int
    log_low: int
    log_close: int
    synthetic: bool
    source: Source
    received_at: int
    received_us: int = 0
    """When the bytes arrived, in microseconds of our clock, for latency figures. Not stored."""

    @property
    def boundary(self) -> int:
        """T: the instant this candle closed, milliseconds (…000)."""
        return self.close_time + 1


def quantised_log(price: float) -> int:
    """floor(ln(price) * 2**30 + 1/2), features.md 1.1."""
    return math.floor(math.log(price) * LOG_SCALE + 0.5)


def check_kline(update: KlineUpdate) -> None:
    """Raise Malformed where the numbers of a candle contradict each other.

    Decoding has made sure that each number is finite and in range; this is about their relations.
    """
    length = INTERVAL_MS.get(update.interval)
    if length is None:
        raise Malformed(f"{update.symbol}: unknown interval {update.interval!r}")
    if update.open_time % length or update.close_time != update.open_time + length - 1:
        raise Malformed(
            f"{update.symbol} {update.interval}: times {update.open_time} to {update.close_time} are no candle"
        )
    if not update.low <= min(update.open, update.close) <= max(update.open, update.close) <= update.high:
        raise Malformed(f"{update.symbol} {update.interval} {update.open_time}: low, open, close and high out of order")
    if update.taker_buy_volume > update.volume * (1 + 1e-9) + 1e-12:
        raise Malformed(f"{update.symbol} {update.interval} {update.open_time}: takers bought more than was traded")


def closed_candle(update: KlineUpdate) -> Candle:
    """The candle to keep, from an update that says it is closed."""
    return Candle(
        interval=update.interval,
        symbol=update.symbol,
        open_time=update.open_time,
        close_time=update.close_time,
        open=update.open,
        high=update.high,
        low=update.low,
        close=update.close,
        volume=update.volume,
        quote_volume=update.quote_volume,
        trades=update.trades,
        taker_buy_volume=update.taker_buy_volume,
        taker_buy_quote_volume=update.taker_buy_quote_volume,
        log_open=quantised_log(update.open),
        log_high=quantised_log(update.high),
        log_low=quantised_log(update.low),
        log_close=quantised_log(update.close),
        synthetic=False,
        source=update.source,
        received_at=update.received_at,
        received_us=update.received_us,
    )


def synthetic_candle(previous: Candle, received_at: int, received_us: int = 0) -> Candle:
    """The candle of a minute that the exchange itself does not have: flat at the close before, nothing traded.

    features.md 1.2, N2. Live and history fill such a minute by this one function.
    """
    length = INTERVAL_MS[previous.interval]
    return Candle(
        interval=previous.interval,
        symbol=previous.symbol,
        open_time=previous.open_time + length,
        close_time=previous.close_time + length,
        open=previous.close,
        high=previous.close,
        low=previous.close,
        close=previous.close,
        volume=0.0,
        quote_volume=0.0,
        trades=0,
        taker_buy_volume=0.0,
        taker_buy_quote_volume=0.0,
        log_open=previous.log_close,
        log_high=previous.log_close,
        log_low=previous.log_close,
        log_close=previous.log_close,
        synthetic=True,
        source="rest",
        received_at=received_at,
        received_us=received_us,
    )


def last_boundary(now_ms: int, length_ms: int = MINUTE_MS) -> int:
    """The latest close boundary at or before this instant."""
    return now_ms - now_ms % length_ms
