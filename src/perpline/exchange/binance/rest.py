"""Binance's market data over REST, in the words of `exchange.ports`."""

import asyncio
from collections.abc import Mapping
from copy import copy
from decimal import Decimal
from itertools import pairwise
from typing import TypeVar

import aiohttp
import msgspec
import stamina
from msgspec import Struct

from perpline.common.clock import Clock
from perpline.common.errors import Malformed, NeedsPerson, PerplineError, RateLimited, Refused, Unavailable
from perpline.domain.candle import INTERVAL_MS, KlineUpdate, check_kline
from perpline.domain.instrument import Instrument
from perpline.domain.market import (
    BookTicker,
    FundingRate,
    LongShortRatio,
    MarkPrice,
    OpenInterest,
    PriceCandle,
    PriceSeries,
    Ratio,
)
from perpline.exchange.binance import endpoints
from perpline.exchange.binance.budget import Priority
from perpline.exchange.binance.endpoints import Endpoint
from perpline.exchange.binance.errors import banned_until_ms, read_error, refusal_in
from perpline.exchange.binance.messages import (
    AccountRatioRow,
    BookTickerRow,
    FundingRateRow,
    KlineRow,
    OpenInterestBody,
    OpenInterestHistRow,
    PremiumIndexRow,
    PriceKlineRow,
    ServerTimeBody,
    SymbolFilter,
    SymbolRow,
    TakerRatioRow,
    Ticker24hRow,
)
from perpline.exchange.binance.weight import WeightLedger

T = TypeVar("T")

ATTEMPTS = 4
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 0.8
_ROUND_TRIPS = 4
ROWS_AT_ONCE = 50
_FUNDING_KNOWN_AFTER_MS = 60_000
_CLOCK_DOUBT_MS = 60_000
_HOUR_MS = 3_600_000


class BinanceRest:
    """`MarketRest` over aiohttp. Reads only.

    A read that fails on the way (no connection, timeout, torn body, 5xx) is sent up to four times, 200, 400 and 800 ms
    of wall time apart; 429 and 418 never are, and they stop every request through the ledger, which also says when a
    request may go out and how many may be under way. Each has a priority: "heal" here, another one through `at`.
    """

    def __init__(
        self,
        base_url: str,
        clock: Clock,
        weight: WeightLedger,
        session: aiohttp.ClientSession | None = None,
        *,
        timeout_s: float = 10.0,
        max_body: int = 32 << 20,
    ) -> None:
        self.weight = weight
        self._base_url = base_url.rstrip("/")
        self._clock = clock
        self._link = _Link(session, session is None)
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._max_body = max_body
        self._priority: Priority = "heal"

    @property
    def refused_rows(self) -> int:
        """Rows of all-market answers that made no sense and were left out, at any priority."""
        return self._link.refused_rows

    def at(self, priority: Priority) -> "BinanceRest":
        """The same connections and ledger, for requests of this priority. Closing either closes both."""
        other = copy(self)
        other._priority = priority
        return other

    async def server_time(self) -> int:
        body, _ = await self._get(ServerTimeBody, endpoints.SERVER_TIME)
        return body.server_time

    async def measure_offset_ms(self) -> int:
        """Offset by the quickest of four round trips, one after another: the server's time minus the middle of ours.

        Wrong by at most half that round trip, in market time. The caller sets it on the clock, at once: it holds now,
        whatever the host's clock did meanwhile, for the round trips are measured in wall time.
        """
        best: tuple[float, float, int] | None = None
        for _ in range(_ROUND_TRIPS):
            body, answer = await self._get(ServerTimeBody, endpoints.SERVER_TIME)
            trip = (answer.received_s - answer.sent_s, (answer.sent_s + answer.received_s) / 2, body.server_time)
            best = trip if best is None else min(best, trip)
        assert best is not None
        _, middle_s, server_time = best
        since_ms = (self._clock.wall_s() - middle_s) * 1000 * self._clock.speed
        return round(server_time + since_ms - self._clock.now_us() / 1000)

    async def instruments(self) -> list[Instrument]:
        body, answer = await self._get(_ExchangeInfo, endpoints.EXCHANGE_INFO)
        found: list[Instrument | None] = []
        for at, row in enumerate(self._sound_rows(answer, body.symbols, SymbolRow)):
            if at % ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)  # the whole list takes 50 ms, and a close may be waiting
            found.append(_instrument(row))
        self._link.refused_rows += found.count(None)
        return [instrument for instrument in found if instrument is not None]

    async def quote_volumes_24h(self) -> dict[str, float]:
        rows, answer = await self._get(list[msgspec.Raw], endpoints.TICKER_24H_ALL)
        return {row.symbol: row.quote_volume for row in self._sound_rows(answer, rows, Ticker24hRow)}

    async def candles(
        self, symbol: str, interval: str, *, start: int | None = None, end: int | None = None, limit: int = 500
    ) -> list[KlineUpdate]:
        """As the port says. A candle is `closed` where a later one follows in the answer, or where the exchange's time
        before we asked was past its end.

        That time is an estimate. Where only it tells that the newest row is final, and closely, the exchange is asked
        for its time first and for the rows again: its clock may have stepped, and a forming candle must never be taken.
        """
        request: dict[str, str | int] = {"symbol": symbol, "interval": interval, **_window(start, end), "limit": limit}
        endpoint = endpoints.klines(_checked(limit))
        rows, answer = await self._get(list[KlineRow], endpoint, **request)
        asked_at = self._asked_at(answer)
        if rows and _inside(rows[-1].open_time, start, end) and 0 < asked_at - rows[-1].close_time < _CLOCK_DOUBT_MS:
            asked_at = await self.server_time()
            if rows[-1].close_time < asked_at:
                rows, answer = await self._get(list[KlineRow], endpoint, **request)
        newest = rows[-1].open_time if rows else 0
        received_at = answer.received_us // 1000
        candles = [
            KlineUpdate(
                symbol=symbol,
                interval=interval,
                open_time=row.open_time,
                close_time=row.close_time,
                open=row.open,
                high=row.high,
                low=row.low,
                close=row.close,
                volume=row.volume,
                quote_volume=row.quote_volume,
                trades=row.trades,
                taker_buy_volume=row.taker_buy_volume,
                taker_buy_quote_volume=row.taker_buy_quote_volume,
                closed=row.open_time < newest or row.close_time < asked_at,
                source="rest",
                event_time=row.close_time,
                received_at=received_at,
                received_us=answer.received_us,
            )
            for row in rows
            if _inside(row.open_time, start, end)
        ]
        for candle in candles:
            if candle.closed and interval in INTERVAL_MS:
                check_kline(candle)
        _check_order(answer, [candle.open_time for candle in candles])
        return candles

    async def mark_prices(self) -> list[MarkPrice]:
        rows, answer = await self._get(list[msgspec.Raw], endpoints.PREMIUM_INDEX_ALL)
        return [
            MarkPrice(
                symbol=row.symbol,
                mark_price=row.mark_price,
                index_price=row.index_price,
                funding_rate=row.last_funding_rate or 0.0,
                next_funding_time=row.next_funding_time,
                updated_at=row.time,
                received_at=answer.received_us // 1000,
            )
            for row in self._sound_rows(answer, rows, PremiumIndexRow)
        ]

    async def book_tickers(self) -> list[BookTicker]:
        rows, answer = await self._get(list[msgspec.Raw], endpoints.BOOK_TICKER_ALL)
        return [
            BookTicker(
                symbol=row.symbol,
                bid=row.bid_price,
                bid_qty=row.bid_qty,
                ask=row.ask_price,
                ask_qty=row.ask_qty,
                update_id=row.last_update_id,
                updated_at=row.time,
                received_at=answer.received_us // 1000,
            )
            for row in self._sound_rows(answer, rows, BookTickerRow)
        ]

    async def price_candles(
        self, series: PriceSeries, symbol: str, *, start: int | None = None, end: int | None = None, limit: int = 500
    ) -> list[PriceCandle]:
        # The index belongs to the pair, which delivery contracts (BTCUSDT_261225) share with the perpetual.
        name = {"pair": symbol.partition("_")[0]} if series == "index" else {"symbol": symbol}
        found, answer = await self._get(
            list[PriceKlineRow],
            endpoints.price_klines(series, _checked(limit)),
            **name,
            interval="1m",
            **_window(start, end),
            limit=limit,
        )
        # As for candles, but nobody waits for the newest row: in doubt it is left for the next time.
        newest, beyond_doubt = (found[-1].open_time if found else 0), self._asked_at(answer) - _CLOCK_DOUBT_MS
        rows = [
            row
            for row in found
            if _inside(row.open_time, start, end) and (row.open_time < newest or row.close_time < beyond_doubt)
        ]
        for row in rows:
            if (
                row.open_time % 60_000
                or not row.low <= min(row.open, row.close) <= max(row.open, row.close) <= row.high
            ):
                raise Malformed(f"{answer.what}: {symbol} {row.open_time} is no candle")
            if series != "premium" and row.low <= 0:
                raise Malformed(f"{answer.what}: {symbol} {row.open_time} has a price of {row.low}")
        _check_order(answer, [row.open_time for row in rows])
        received_at = answer.received_us // 1000
        return [
            PriceCandle(series, symbol, row.open_time, row.open, row.high, row.low, row.close, "rest", received_at)
            for row in rows
        ]

    async def open_interest(self, symbol: str) -> OpenInterest:
        row, answer = await self._get(OpenInterestBody, endpoints.OPEN_INTEREST, symbol=symbol)
        if row.symbol != symbol:
            raise Malformed(f"{answer.what}: asked for {symbol}, told of {row.symbol!r}")
        return OpenInterest(symbol, row.time, row.open_interest, None, "spot_1m", answer.received_us // 1000)

    async def open_interest_hist(
        self, symbol: str, limit: int = 1, *, start: int | None = None, end: int | None = None
    ) -> list[OpenInterest]:
        """As the port says; `known_at` is the time of receipt."""
        wanted: dict[str, str | int] = {"symbol": symbol, "period": "5m", "limit": limit, **_window(start, end)}
        rows, answer = await self._get(list[OpenInterestHistRow], endpoints.OPEN_INTEREST_HIST, **wanted)
        _check_order(answer, [row.timestamp for row in rows])
        return [
            OpenInterest(
                symbol=symbol,
                time=row.timestamp,
                open_interest=row.sum_open_interest,
                open_interest_value=row.sum_open_interest_value,
                kind="hist_5m",
                known_at=answer.received_us // 1000,
            )
            for row in rows
            if _inside(row.timestamp, start, end)
        ]

    async def long_short_ratios(
        self, symbol: str, ratio: Ratio, limit: int = 1, *, start: int | None = None, end: int | None = None
    ) -> list[LongShortRatio]:
        """As the port says; `known_at` and `first_seen_at` are the time of receipt."""
        wanted: dict[str, str | int] = {"symbol": symbol, "period": "5m", "limit": limit, **_window(start, end)}
        if ratio == "taker":
            flows, answer = await self._get(list[TakerRatioRow], endpoints.RATIOS[ratio], **wanted)
            values = [(row.timestamp, row.buy_sell_ratio, row.buy_vol, row.sell_vol) for row in flows]
        else:
            shares, answer = await self._get(list[AccountRatioRow], endpoints.RATIOS[ratio], **wanted)
            values = [(row.timestamp, row.long_short_ratio, row.long_account, row.short_account) for row in shares]
        _check_order(answer, [period_end for period_end, *_ in values])
        seen_at = answer.received_us // 1000
        return [
            LongShortRatio(symbol, ratio, *row, known_at=seen_at, first_seen_at=seen_at)
            for row in values
            if _inside(row[0], start, end)
        ]

    async def funding_rates(
        self, symbol: str, *, start: int | None = None, end: int | None = None, limit: int = 100
    ) -> list[FundingRate]:
        """As the port says. `interval_hours` is the distance to the regular settlement before, None for the first row.

        The exchange names the interval elsewhere, and only today's; the distance holds for the past as well.
        """
        rows, answer = await self._get(
            list[FundingRateRow], endpoints.FUNDING_RATE, symbol=symbol, **_window(start, end), limit=limit
        )
        _check_order(answer, [row.funding_time for row in rows], strict=False)
        rates = []
        settled_before: int | None = None
        for row in rows:
            if row.symbol != symbol:
                raise Malformed(f"{answer.what}: asked for {symbol}, told of {row.symbol!r}")
            hours = None if settled_before is None else round((row.funding_time - settled_before) / _HOUR_MS)
            if row.rate_type == "Regular":
                settled_before = row.funding_time
            rates.append(
                FundingRate(
                    symbol=symbol,
                    funding_time=row.funding_time,
                    rate=row.funding_rate,
                    mark_price=row.mark_price or None,
                    interval_hours=hours if hours and row.rate_type == "Regular" else None,
                    known_at=row.funding_time + _FUNDING_KNOWN_AFTER_MS,
                )
            )
        return rates

    async def close(self) -> None:
        await self.weight.close()
        if self._link.session is not None and self._link.is_ours:
            await self._link.session.close()
            self._link.session = None

    async def _get(self, shape: type[T], endpoint: Endpoint, **params: str | int) -> tuple[T, "_Answer"]:
        """The answer's content and its times. Raises what `exchange.ports` promises."""
        async for attempt in stamina.retry_context(
            on=worth_another_try,
            attempts=ATTEMPTS,
            timeout=None,
            wait_initial=FIRST_WAIT_S,
            wait_max=LONGEST_WAIT_S,
            wait_jitter=FIRST_WAIT_S / 4,
        ):
            with attempt:
                return await self._ask_once(shape, endpoint, params)
        raise AssertionError("retry_context ends with a result or an error")

    async def _ask_once(
        self, shape: type[T], endpoint: Endpoint, params: Mapping[str, str | int]
    ) -> tuple[T, "_Answer"]:
        what = f"GET {endpoint.path}" + (f" {params['symbol']}" if "symbol" in params else "")
        permit = await self.weight.acquire(endpoint.cost, endpoint.pool, priority=self._priority)
        try:
            if self._link.session is None:
                self._link.session = aiohttp.ClientSession()
            sent_us, sent_s = self._clock.now_us(), self._clock.wall_s()
            try:
                async with self._link.session.get(
                    self._base_url + endpoint.path, params=params, timeout=self._timeout, allow_redirects=False
                ) as response:
                    body = await bounded_body(response, self._max_body, what)
            except TimeoutError:
                raise Unavailable(f"{what}: no answer within {self._timeout.total:g} s") from None
            except aiohttp.InvalidURL:
                raise NeedsPerson("the REST address of the exchange is no URL: see binance_futures_rest_url") from None
            except aiohttp.ClientError as error:
                # Only the kind of failure: aiohttp's own texts hold the whole address.
                raise Unavailable(f"{what}: {type(error).__name__}") from None
            received_us, received_s = self._clock.now_us(), self._clock.wall_s()
            used_weight = response.headers.get("X-MBX-USED-WEIGHT-1M", "")
            if is_count(used_weight):
                self.weight.observe(int(used_weight), permit)
            failure = None if response.status == 200 else self._failure(what, response, body)
        finally:
            # After a 429 has blocked the ledger, or the next one in line would go out into it.
            self.weight.done(permit)
        if failure is not None:
            raise failure
        self.weight.succeeded()
        return decoded(body, shape, what), _Answer(what, sent_us, received_us, sent_s, received_s)

    def _failure(self, what: str, response: aiohttp.ClientResponse, body: bytes) -> PerplineError:
        """The error for an answer that is no success; a rate limit blocks the ledger first."""
        retry_after = response.headers.get("Retry-After", "")
        retry_after_s = float(retry_after) if is_count(retry_after) else None
        error = read_error(what, response.status, body, retry_after_s)
        if isinstance(error, RateLimited):
            error.retry_after_s = self.weight.block(response.status, retry_after_s, banned_until_ms(body))
        return error

    def _sound_rows(self, answer: "_Answer", rows: list[msgspec.Raw], shape: type[T]) -> list[T]:
        """The rows that make sense. One odd symbol must not hide all others; none at all is Malformed."""
        sound = []
        decoder = msgspec.json.Decoder(shape, strict=False)
        for row in rows:
            try:
                sound.append(decoder.decode(row))
            except _UNREADABLE:
                self._link.refused_rows += 1
        if rows and not sound:
            raise Malformed(f"{answer.what}: none of {len(rows)} rows makes sense")
        return sound

    def _asked_at(self, answer: "_Answer") -> int:
        """The exchange's time just before the request left, as we estimate it, milliseconds."""
        return answer.sent_us // 1000 + self._clock.offset_ms


class _Link(Struct):
    """What a BinanceRest has in common with those made by `at`."""

    session: aiohttp.ClientSession | None
    is_ours: bool
    refused_rows: int = 0


class _Answer(Struct, frozen=True):
    """Which request an answer belongs to and its two times, microseconds of our market time and wall seconds."""

    what: str
    sent_us: int
    received_us: int
    sent_s: float
    received_s: float


class _ExchangeInfo(Struct):
    symbols: list[msgspec.Raw]


_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


async def bounded_body(response: aiohttp.ClientResponse, max_body: int, what: str) -> bytes:
    """The whole body. Raises Malformed for one that is longer than it may be."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > max_body:
            raise Malformed(f"{what}: the answer is longer than {max_body} bytes")
    return bytes(body)


def worth_another_try(error: Exception) -> bool:
    return isinstance(error, Unavailable) and not isinstance(error, RateLimited) and error.retry_after_s is None


def decoded(body: bytes, shape: type[T], what: str) -> T:
    """The body of a successful answer. Raises Refused where it is an error after all, Malformed for another shape,
    Unavailable for what was cut off."""
    try:
        return msgspec.json.decode(body, type=shape, strict=False)
    except msgspec.ValidationError as error:
        refusal = refusal_in(body)
        if refusal is not None:
            raise Refused(f"{what}: {refusal[0]} {refusal[1]}", refusal[0]) from None
        raise Malformed(f"{what}: {str(error)[:200]}") from None
    except _UNREADABLE:
        raise Unavailable(f"{what}: the answer is no JSON or was cut off") from None


def is_count(header: str) -> bool:
    """Whether a header is a number that can be one."""
    return header.isascii() and header.isdigit() and len(header) < 10


def _checked(limit: int) -> int:
    if not 1 <= limit <= endpoints.KLINES_MAX_LIMIT:
        raise ValueError(f"limit must be 1 to {endpoints.KLINES_MAX_LIMIT}, not {limit}")
    return limit


def _window(start: int | None, end: int | None) -> dict[str, int]:
    """The half-open window in the exchange's terms, which count both ends in."""
    window = {} if start is None else {"startTime": start}
    return window if end is None else {**window, "endTime": end - 1}


def _inside(time: int, start: int | None, end: int | None) -> bool:
    return (start is None or start <= time) and (end is None or time < end)


def _check_order(answer: _Answer, times: list[int], *, strict: bool = True) -> None:
    for before, after in pairwise(times):
        if after < before or (strict and after == before):
            raise Malformed(f"{answer.what}: rows out of order at {after}")


def _instrument(row: SymbolRow) -> Instrument | None:
    """The symbol as an Instrument; None where a filter that rounding needs is missing, or one makes no sense."""
    filters = {entry.filter_type: entry for entry in row.filters}
    none = SymbolFilter("")
    price, lot = filters.get("PRICE_FILTER", none), filters.get("LOT_SIZE", none)
    market, percent = filters.get("MARKET_LOT_SIZE", none), filters.get("PERCENT_PRICE", none)
    limits = {
        "min_notional": filters.get("MIN_NOTIONAL", none).notional,
        "max_quantity": lot.max_qty,
        "market_min_quantity": market.min_qty,
        "market_max_quantity": market.max_qty,
        "market_step_size": market.step_size,
        "min_price": price.min_price,
        "max_price": price.max_price,
        "multiplier_up": percent.multiplier_up,
        "multiplier_down": percent.multiplier_down,
        "market_take_bound": row.market_take_bound,
        "trigger_protect": row.trigger_protect,
    }
    if row.maint_margin_percent is not None:
        limits["maintenance_margin_pct"] = row.maint_margin_percent
    tick_size, step_size, min_quantity = price.tick_size, lot.step_size, lot.min_qty
    if "MIN_NOTIONAL" in filters and limits["min_notional"] is None:
        return None
    if not tick_size or not step_size or min_quantity is None:
        return None
    for size in (tick_size, step_size, min_quantity, *limits.values()):
        if size is not None and (not size.is_finite() or size < 0):
            return None
    return Instrument(
        symbol=row.symbol,
        base_asset=row.base_asset,
        quote_asset=row.quote_asset,
        contract_type=row.contract_type,
        status=row.status,
        onboard_time=row.onboard_date,
        tick_size=tick_size,
        step_size=step_size,
        min_quantity=min_quantity,
        delivery_time=row.delivery_date,
        **{name: size or Decimal(0) for name, size in limits.items()},
    )
