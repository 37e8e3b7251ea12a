"""The REST side without sockets: a path, its parameters and who asks, in; status, headers and body, out.

Limits, defaults, weights and error bodies as in binance.md 3. Minutes, bans and Retry-After run in market time.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np

from perpline.simulation.exchange import (
    DAY_MS,
    INTERVALS,
    PERIOD_SERIES,
    Exchange,
    KlineRow,
    time_of_update,
)
from perpline.simulation.incidents import RestFault
from perpline.simulation.instruments import Instrument, decimal_text
from perpline.simulation.market import (
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
)
from perpline.simulation.streams import Stats

WEIGHT_LIMIT: Final = 2400
BANNED_AFTER: Final = 20
"""Requests answered with 429 in one minute before the address is banned. The real figure is not published."""
BAN_MS: Final = 120_000
SERIES_LIMIT: Final = 1000
"""/futures/data requests per five minutes and address."""
FUNDING_LIMIT: Final = 500
"""fundingRate and fundingInfo requests per five minutes and address."""
PERIODS: Final = ("5m", "15m", "30m", "1h", "2h", "4h", "6h", "12h", "1d")

Params = Mapping[str, str]
Json = Any
ShownDepth = Callable[[int], tuple[int, dict[int, int], dict[int, int]] | None]


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


class RequestError(Exception):
    """A request the exchange refuses: HTTP status, its own code and message."""

    def __init__(self, code: int, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class Rest:
    """Answers requests. `answer` may run in a thread of its own, one call at a time."""

    def __init__(self, exchange: Exchange, stats: Stats, shown_depth: ShownDepth = lambda index: None) -> None:
        """`shown_depth(index)` is the book as listeners of the diff stream know it, None where there are none."""
        self._exchange = exchange
        self._stats = stats
        self._shown_depth = shown_depth
        self._addresses: dict[str, _Address] = {}
        self._routes = self._table()

    def answer(self, path: str, params: Params, address: str, now_ms: int, method: str = "GET") -> Answer:
        """The answer to a request for `path` at this market time."""
        route = self._routes.get(path)
        self._stats.requests[path if route is not None else "unknown"] += 1
        if route is None or method != "GET":
            return refusal(404, -5000, f"Path {path}, Method {method} is invalid")
        account = self._addresses.setdefault(address, _Address())
        refused = account.admit(route, params, now_ms, address)
        headers = {} if route.pool else {"x-mbx-used-weight-1m": str(account.used(now_ms))}
        if refused is not None:
            return Answer(refused.status, refused.body, {**headers, **refused.headers})
        if not route.pool:
            self._stats.weight_used += route.weight(params)
        try:
            body = route.respond(params, now_ms)
        except RequestError as error:
            refused = refusal(error.status, error.code, str(error))
            return Answer(refused.status, refused.body, headers)
        return Answer(200, msgspec.json.encode(body), headers)

    def charge(self, address: str, weight: int, now_ms: int) -> tuple[Answer | None, dict[str, str]]:
        """Count a request that is answered elsewhere: the refusal, if it goes beyond the limit, and the header."""
        spent = self._addresses.setdefault(address, _Address())
        refused = spent.spend(weight, now_ms, address)
        headers = {"x-mbx-used-weight-1m": str(spent.used(now_ms))}
        if refused is not None:
            return Answer(refused.status, refused.body, {**headers, **refused.headers}), headers
        self._stats.weight_used += weight
        return None, headers

    def knows(self, path: str) -> bool:
        return path in self._routes

    def _table(self) -> dict[str, "_Route"]:
        one = _fixed(1)
        table = {
            "/fapi/v1/ping": _Route(lambda params, now_ms: {}, one),
            "/fapi/v1/time": _Route(lambda params, now_ms: {"serverTime": now_ms}, one),
            "/fapi/v1/exchangeInfo": _Route(self._exchange_info, one),
            "/fapi/v1/klines": _Route(self._klines, _by_limit),
            "/fapi/v1/continuousKlines": _Route(self._continuous_klines, _by_limit),
            "/fapi/v1/markPriceKlines": _Route(self._price_klines(0, "symbol"), _by_limit),
            "/fapi/v1/indexPriceKlines": _Route(self._price_klines(1, "pair"), _by_limit),
            "/fapi/v1/premiumIndexKlines": _Route(self._price_klines(2, "symbol"), _by_limit),
            "/fapi/v1/premiumIndex": _Route(self._premium_index, _per_symbol(1, 10)),
            "/fapi/v1/ticker/bookTicker": _Route(self._book_ticker, _per_symbol(2, 5)),
            "/fapi/v1/ticker/24hr": _Route(self._day_ticker, _per_symbol(1, 40)),
            "/fapi/v1/ticker/price": _Route(self._price_ticker, _per_symbol(1, 2)),
            "/fapi/v2/ticker/price": _Route(self._price_ticker, _per_symbol(1, 2)),
            "/fapi/v1/depth": _Route(self._depth, _depth_weight),
            "/fapi/v1/rpiDepth": _Route(self._depth, _fixed(20)),
            "/fapi/v1/trades": _Route(self._trades, _fixed(5)),
            "/fapi/v1/historicalTrades": _Route(_needs_key, _fixed(200)),
            "/fapi/v1/aggTrades": _Route(self._aggregate_trades, _fixed(20)),
            "/fapi/v1/openInterest": _Route(self._open_interest, one),
            "/fapi/v1/fundingRate": _Route(self._funding_rate, _fixed(0), pool="funding"),
            "/fapi/v1/fundingInfo": _Route(self._funding_info, _fixed(0), pool="funding"),
        }
        for series in PERIOD_SERIES:
            table[f"/futures/data/{series}"] = _Route(self._period_series(series), _fixed(0), pool="series")
        return table

    # ---- klines

    def _klines(self, params: Params, now_ms: int) -> Json:
        index = self._index(params, now_ms)
        return self._kline_rows(index, params, now_ms)

    def _continuous_klines(self, params: Params, now_ms: int) -> Json:
        index = self._index(params, now_ms, "pair")
        if _required(params, "contractType") != "PERPETUAL":
            raise RequestError(-1130, "Data sent for parameter 'contractType' is not valid.")
        return self._kline_rows(index, params, now_ms)

    def _kline_rows(self, index: int, params: Params, now_ms: int) -> list[KlineRow]:
        interval = _interval(params)
        start_ms, end_ms, limit = _window(params, 500, 1500)
        return self._exchange.klines(index, interval, start_ms, end_ms, limit, now_ms)

    def _price_klines(self, series: int, name: str) -> "_Respond":
        def respond(params: Params, now_ms: int) -> Json:
            index = self._index(params, now_ms, name)
            interval = _interval(params)
            start_ms, end_ms, limit = _window(params, 500, 1500)
            return self._exchange.price_klines(index, series, interval, start_ms, end_ms, limit, now_ms)

        return respond

    # ---- now

    def _premium_index(self, params: Params, now_ms: int) -> Json:
        def row(index: int) -> dict[str, int | str]:
            mark = self._exchange.mark(index, now_ms)
            return {
                "symbol": self._exchange.symbols[index],
                "markPrice": f"{mark.mark:.8f}",
                "indexPrice": f"{mark.index:.8f}",
                "estimatedSettlePrice": f"{mark.settle:.8f}",
                "lastFundingRate": f"{mark.funding_rate:.8f}",
                "interestRate": "0.00010000",
                "nextFundingTime": mark.next_funding_ms,
                "time": now_ms // 1000 * 1000,
            }

        return self._one_or_all(params, now_ms, row)

    def _book_ticker(self, params: Params, now_ms: int) -> Json:
        def row(index: int) -> dict[str, int | str]:
            own = self._exchange.instruments[index]
            book = self._exchange.book(index, now_ms)
            return {
                "symbol": own.symbol,
                "bidPrice": decimal_text(book.bid, own.price_decimals),
                "bidQty": decimal_text(book.bid_quantity, own.quantity_decimals),
                "askPrice": decimal_text(book.ask, own.price_decimals),
                "askQty": decimal_text(book.ask_quantity, own.quantity_decimals),
                "time": book.time_ms,
                "lastUpdateId": book.update_id,
            }

        return self._one_or_all(params, now_ms, row)

    def _day_ticker(self, params: Params, now_ms: int) -> Json:
        def row(index: int) -> dict[str, int | str]:
            own = self._exchange.instruments[index]
            day = self._exchange.day(index, now_ms)
            moved = day[CLOSE] - day[OPEN]
            return {
                "symbol": own.symbol,
                "priceChange": decimal_text(moved, own.price_decimals),
                "priceChangePercent": f"{100 * moved / day[OPEN]:.3f}",
                "weightedAvgPrice": decimal_text(day[QUOTE] // max(1, day[VOLUME]), own.price_decimals),
                "lastPrice": decimal_text(day[CLOSE], own.price_decimals),
                "lastQty": own.step_text,
                "openPrice": decimal_text(day[OPEN], own.price_decimals),
                "highPrice": decimal_text(day[HIGH], own.price_decimals),
                "lowPrice": decimal_text(day[LOW], own.price_decimals),
                "volume": decimal_text(day[VOLUME], own.quantity_decimals),
                "quoteVolume": decimal_text(day[QUOTE], own.price_decimals + own.quantity_decimals),
                "openTime": now_ms // MINUTE_MS * MINUTE_MS - 1439 * MINUTE_MS,
                "closeTime": now_ms,
                "firstId": day[FIRST_ID],
                "lastId": day[LAST_ID],
                "count": day[TRADES],
            }

        return self._one_or_all(params, now_ms, row)

    def _price_ticker(self, params: Params, now_ms: int) -> Json:
        def row(index: int) -> dict[str, int | str]:
            own = self._exchange.instruments[index]
            close = self._exchange.forming_minute(index, now_ms)[CLOSE]
            return {"symbol": own.symbol, "price": decimal_text(close, own.price_decimals), "time": now_ms}

        return self._one_or_all(params, now_ms, row)

    def _depth(self, params: Params, now_ms: int) -> Json:
        index = self._index(params, now_ms)
        limit = _integer(params, "limit", 500)
        if limit is None or limit < 1 or limit > 1000:
            raise RequestError(-1130, "Data sent for parameter 'limit' is not valid.")
        if limit not in (5, 10, 20, 50, 100, 500, 1000):
            raise RequestError(-4021, f"{limit} is not valid depth limit")
        own = self._exchange.instruments[index]
        book, *sides = self._exchange.depth(index, limit, now_ms)
        update_id, time_ms = book.update_id, book.time_ms
        shown = self._shown_depth(index)
        if shown is not None:
            # What the diff stream has told last, so that its next event joins this snapshot without a gap.
            update_id, time_ms = shown[0], time_of_update(shown[0])
            for side, known in zip(sides, shown[1:], strict=True):
                away = 1 if side is sides[1] else -1
                furthest = max(known) if away > 0 else min(known)
                side[:] = [*known.items(), *(level for level in side if (level[0] - furthest) * away > 0)][:limit]
        bids, asks = (
            [
                [decimal_text(price, own.price_decimals), decimal_text(quantity, own.quantity_decimals)]
                for price, quantity in side
            ]
            for side in sides
        )
        return {"lastUpdateId": update_id, "E": now_ms, "T": time_ms, "bids": bids, "asks": asks}

    def _open_interest(self, params: Params, now_ms: int) -> Json:
        index = self._index(params, now_ms)
        own = self._exchange.instruments[index]
        # Refreshed every few seconds, as on the real exchange: the time is when it was counted.
        at = now_ms // 5_000 * 5_000 - self._exchange.world.bits("oi time", index, now_ms // 5_000) % 2_000
        units = int(self._exchange.world.open_interest(index, np.array([at]))[0])
        return {"symbol": own.symbol, "openInterest": decimal_text(units, own.quantity_decimals), "time": at}

    # ---- the past

    def _trades(self, params: Params, now_ms: int) -> Json:
        """The latest single trades: each aggregate is dealt out over its ids as the trade stream does it."""
        index = self._index(params, now_ms)
        _, _, limit = _window(params, 500, 1000)
        own = self._exchange.instruments[index]
        rows: list[dict[str, Json]] = []
        hour = now_ms // HOUR_MS
        while len(rows) < limit and hour > GENESIS_MS // HOUR_MS:
            detail = self._exchange.detail(index, hour)
            part: list[dict[str, Json]] = []
            for i in range(int(np.searchsorted(detail.time_ms, now_ms, side="right")) - 1, -1, -1):
                price, first_id, last_id = int(detail.price[i]), int(detail.first_id[i]), int(detail.last_id[i])
                each, left = divmod(int(detail.quantity[i]), last_id - first_id + 1)
                for trade_id in range(last_id, first_id - 1, -1):
                    quantity = each + left if trade_id == last_id else each
                    part.append(
                        {
                            "id": trade_id,
                            "price": decimal_text(price, own.price_decimals),
                            "qty": decimal_text(quantity, own.quantity_decimals),
                            "quoteQty": decimal_text(price * quantity, own.price_decimals + own.quantity_decimals),
                            "time": int(detail.time_ms[i]),
                            "isBuyerMaker": bool(detail.buyer_is_maker[i]),
                            "isRPITrade": False,
                        }
                    )
                if len(rows) + len(part) >= limit:
                    break
            rows += part
            hour -= 1
        return rows[:limit][::-1]

    def _aggregate_trades(self, params: Params, now_ms: int) -> Json:
        exchange = self._exchange
        index = self._index(params, now_ms)
        start_ms, end_ms, limit = _window(params, 500, 1000)
        from_id = _integer(params, "fromId", None)
        if start_ms is not None and end_ms is not None and end_ms - start_ms > HOUR_MS:
            raise RequestError(-1127, "More than 1 hours between startTime and endTime.")
        oldest = max(now_ms - DAY_MS, GENESIS_MS)
        end = min(now_ms, now_ms if end_ms is None else end_ms)
        hour = end // HOUR_MS
        if from_id is not None or start_ms is not None:
            hour = max(oldest, start_ms or 0) // HOUR_MS
        rows: list[dict[str, Json]] = []
        forward = from_id is not None or start_ms is not None
        own = exchange.instruments[index]
        while oldest // HOUR_MS <= hour <= end // HOUR_MS and len(rows) < limit:
            detail = exchange.detail(index, hour)
            first = max(oldest, start_ms or 0)
            chosen = (detail.time_ms >= first) & (detail.time_ms <= end)
            if from_id is not None:
                chosen &= detail.aggregate_id >= from_id
            at = chosen.nonzero()[0]
            at = at[: limit - len(rows)] if forward else at[max(0, len(at) - (limit - len(rows))) :]
            part = [
                {
                    "a": int(detail.aggregate_id[i]),
                    "p": decimal_text(int(detail.price[i]), own.price_decimals),
                    "q": decimal_text(int(detail.quantity[i]), own.quantity_decimals),
                    "nq": decimal_text(int(detail.quantity[i]), own.quantity_decimals),
                    "f": int(detail.first_id[i]),
                    "l": int(detail.last_id[i]),
                    "T": int(detail.time_ms[i]),
                    "m": bool(detail.buyer_is_maker[i]),
                }
                for i in at
            ]
            rows = rows + part if forward else part + rows
            hour += 1 if forward else -1
        return rows

    def _funding_rate(self, params: Params, now_ms: int) -> Json:
        start_ms, end_ms, limit = _window(params, 100, 1000)
        end = min(now_ms, now_ms if end_ms is None else end_ms)
        if "symbol" in params:
            wanted = [self._index(params, now_ms)]
        else:
            wanted = list(range(len(self._exchange.symbols)))
        if start_ms is not None:
            start = start_ms
        else:
            # No contract settles less often than every eight hours.
            start = end - (limit // len(wanted) + 2) * 8 * HOUR_MS
        rows = [
            row for index in wanted for row in self._exchange.funding(index, start, end, limit, latest=start_ms is None)
        ]
        rows.sort(key=lambda row: (row["fundingTime"], row["symbol"]))
        return rows[:limit] if start_ms is not None else rows[-limit:]

    def _funding_info(self, params: Params, now_ms: int) -> Json:
        return [
            {
                "symbol": own.symbol,
                "adjustedFundingRateCap": "0.02000000",
                "adjustedFundingRateFloor": "-0.02000000",
                "fundingIntervalHours": own.funding_interval_hours,
                "disclaimer": False,
                "updateTime": GENESIS_MS,
            }
            for own in self._exchange.instruments
        ]

    def _period_series(self, series: str) -> "_Respond":
        def respond(params: Params, now_ms: int) -> Json:
            symbol = _required(params, "symbol")
            period = _required(params, "period")
            if period not in PERIODS:
                raise RequestError(-1130, "Data sent for parameter 'period' is not valid.")
            start_ms, end_ms, limit = _window(params, 30, 500)
            if start_ms is not None and start_ms < now_ms - 30 * DAY_MS - DAY_MS:
                raise RequestError(-1130, "parameter 'startTime' is invalid.")
            index = self._exchange.index_of.get(symbol)
            if index is None or not self._exchange.is_known(index, now_ms):
                # These routes answer an unknown symbol with an empty list.
                return []
            return self._exchange.period_rows(series, index, period, start_ms, end_ms, limit, now_ms)

        return respond

    # ---- what is listed

    def _exchange_info(self, params: Params, now_ms: int) -> Json:
        return {
            "timezone": "UTC",
            "serverTime": now_ms,
            "futuresType": "U_MARGINED",
            "rateLimits": [
                {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": WEIGHT_LIMIT},
                {"rateLimitType": "ORDERS", "interval": "MINUTE", "intervalNum": 1, "limit": 1200},
                {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": 300},
            ],
            "exchangeFilters": [],
            "assets": [
                {"asset": "USDT", "marginAvailable": True, "autoAssetExchange": "-10000"},
                {"asset": "BTC", "marginAvailable": True, "autoAssetExchange": "-0.10000000"},
                {"asset": "BNB", "marginAvailable": True, "autoAssetExchange": "-10"},
            ],
            "symbols": [
                listed(own, self._exchange.status(own.index, now_ms), self._exchange.onboard_ms(own.index))
                for own in self._exchange.instruments
                if self._exchange.is_known(own.index, now_ms)
            ],
        }

    def _one_or_all(self, params: Params, now_ms: int, row: Callable[[int], dict[str, int | str]]) -> Json:
        if "symbol" in params:
            return row(self._index(params, now_ms))
        return [row(index) for index in range(len(self._exchange.symbols)) if self._exchange.is_known(index, now_ms)]

    def _index(self, params: Params, now_ms: int, name: str = "symbol") -> int:
        index = self._exchange.index_of.get(_required(params, name))
        if index is None or not self._exchange.is_known(index, now_ms):
            raise RequestError(-1121, "Invalid symbol.")
        return index


_Respond = Callable[[Params, int], Json]


@dataclass(frozen=True, slots=True)
class _Route:
    respond: _Respond
    weight: Callable[[Params], int]
    pool: str = ""
    """Requests of a pool are counted by five minutes instead of by weight, and carry no weight header."""


def failure(fault: RestFault, address: str, now_ms: int) -> Answer:
    """The answer of a fault of this kind; for `torn`, `slow` and `refused` there is none."""
    if fault.kind in ("429", "418"):
        return _limited(fault, address, now_ms)
    if fault.kind == "empty":
        return Answer(200, b"")
    if fault.kind in _PAGES:
        status, title = _PAGES[fault.kind]
        page = f"<html><head><title>{status} {title}</title></head><body><h1>{status} {title}</h1></body></html>"
        return Answer(status, page.encode(), content_type="text/html")
    status, code, message = _FAILURES[fault.kind.removesuffix("_taken")]
    return refusal(status, code, message)


def _limited(fault: RestFault, address: str, now_ms: int) -> Answer:
    if fault.kind == "429":
        text = (
            f"Too many requests; current limit of IP({address}) is {WEIGHT_LIMIT} requests per minute. "
            "Please use the websocket for live updates to avoid polling the API."
        )
    elif fault.banned_s is not None:
        text = f"Way too many requests; IP({address}) banned until {now_ms + 1000 * fault.banned_s}."
    else:
        text = f"Way too many requests; IP({address}) banned."
    return refusal(int(fault.kind), -1003, text, fault.retry_after_s)


_PAGES: Final = {"403": (403, "Forbidden"), "502": (502, "Bad Gateway")}
_FAILURES: Final = {
    "408": (408, -1007, "Timeout waiting for response from backend server."),
    "500": (500, -1000, "Request occur unknown error."),
    "503a": (503, -1000, "Unknown error, please check your request or try again later."),
    "503b": (503, -1000, "Service Unavailable."),
    "503c": (503, -1001, "Internal error; unable to process your request. Please try again."),
    "503d": (
        503,
        -1008,
        "Request throttled by system-level protection. Reduce-only/close-position orders are exempt. Please try again.",
    ),
}
"""Status and text are documented (binance.md 3.2), of the codes only -1008 is."""


class _Address:
    """What one client address has used."""

    def __init__(self) -> None:
        self._minute = 0
        self._used = 0
        self._refused = 0
        self._banned_until_ms = 0
        self._pools: dict[str, deque[int]] = {"series": deque(), "funding": deque()}

    def used(self, now_ms: int) -> int:
        self._turn(now_ms)
        return self._used

    def admit(self, route: _Route, params: Params, now_ms: int, address: str) -> Answer | None:
        """Count the request; the refusal, if it goes beyond a limit."""
        if now_ms < self._banned_until_ms:
            return self._ban(now_ms, address)
        if route.pool:
            pool = self._pools[route.pool]
            while pool and pool[0] <= now_ms - 300_000:
                pool.popleft()
            limit = SERIES_LIMIT if route.pool == "series" else FUNDING_LIMIT
            if len(pool) >= limit:
                wait_s = max(1, (pool[0] + 300_000 - now_ms) // 1000)
                return refusal(
                    429, -1003, f"Too many requests; current limit is {limit} requests per 5 minutes.", wait_s
                )
            pool.append(now_ms)
            return None
        return self.spend(route.weight(params), now_ms, address)

    def spend(self, weight: int, now_ms: int, address: str) -> Answer | None:
        """Count so much weight; the refusal, if it goes beyond the limit."""
        if now_ms < self._banned_until_ms:
            return self._ban(now_ms, address)
        self._turn(now_ms)
        self._used += weight
        if self._used <= WEIGHT_LIMIT:
            return None
        self._refused += 1
        if self._refused > BANNED_AFTER:
            self._banned_until_ms = now_ms + BAN_MS
            return self._ban(now_ms, address)
        return refusal(
            429,
            -1003,
            f"Too many requests; current limit of IP({address}) is {WEIGHT_LIMIT} requests per minute. "
            "Please use the websocket for live updates to avoid polling the API.",
            max(1, 60 - now_ms // 1000 % 60),
        )

    def _ban(self, now_ms: int, address: str) -> Answer:
        return refusal(
            418,
            -1003,
            f"Way too many requests; IP({address}) banned until {self._banned_until_ms}. "
            "Please use the websocket for live updates to avoid bans.",
            max(1, -(-(self._banned_until_ms - now_ms) // 1000)),
        )

    def _turn(self, now_ms: int) -> None:
        if now_ms // MINUTE_MS != self._minute:
            self._minute = now_ms // MINUTE_MS
            self._used = self._refused = 0


def _needs_key(params: Params, now_ms: int) -> Json:
    raise RequestError(-2014, "API-key format invalid.", 401)


def refusal(status: int, code: int, message: str, retry_after_s: int | None = None) -> Answer:
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return Answer(status, msgspec.json.encode({"code": code, "msg": message}), headers)


def _required(params: Params, name: str) -> str:
    value = params.get(name, "")
    if value == "":
        raise RequestError(-1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.")
    return value


def _integer(params: Params, name: str, default: int | None) -> int | None:
    text = params.get(name, "")
    if text == "":
        return default
    # isdecimal() alone would let other scripts' digits in.
    if not (text.isascii() and text.isdecimal() and len(text) <= 20):
        raise RequestError(-1100, f"Illegal characters found in parameter '{name}'; legal range is '^[0-9]{{1,20}}$'.")
    return int(text)


def _interval(params: Params) -> str:
    interval = _required(params, "interval")
    if interval not in INTERVALS:
        raise RequestError(-1120, "Invalid interval.")
    return interval


def _window(params: Params, default: int, most: int) -> tuple[int | None, int | None, int]:
    limit = _integer(params, "limit", default)
    if limit is None or not 1 <= limit <= most:
        raise RequestError(-1130, "Data sent for parameter 'limit' is not valid.")
    start_ms, end_ms = _integer(params, "startTime", None), _integer(params, "endTime", None)
    return start_ms, end_ms, limit


def _fixed(weight: int) -> Callable[[Params], int]:
    return lambda params: weight


def _per_symbol(one: int, every: int) -> Callable[[Params], int]:
    return lambda params: one if "symbol" in params else every


def _by_limit(params: Params) -> int:
    text = params.get("limit", "500")
    limit = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else 500
    return 1 if limit < 100 else 2 if limit < 500 else 5 if limit <= 1000 else 10


def _depth_weight(params: Params) -> int:
    return {"5": 2, "10": 2, "20": 2, "50": 2, "100": 5, "1000": 20}.get(params.get("limit", "500"), 10)


def listed(own: Instrument, status: str, onboard_ms: int) -> dict[str, Json]:
    """The contract as exchangeInfo tells it."""
    tick = own.tick_units
    typical = round(own.price * 10**own.price_decimals)
    return {
        "symbol": own.symbol,
        "pair": own.symbol,
        "contractType": "PERPETUAL",
        "deliveryDate": 4133404800000,
        "onboardDate": onboard_ms,
        "status": status,
        "maintMarginPercent": "2.5000",
        "requiredMarginPercent": "5.0000",
        "baseAsset": own.base,
        "quoteAsset": "USDT",
        "marginAsset": "USDT",
        "pricePrecision": own.price_decimals,
        "quantityPrecision": own.quantity_decimals,
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "underlyingType": "COIN",
        "underlyingSubType": [own.subtype],
        "triggerProtect": "0.0500",
        "liquidationFee": "0.012500",
        "marketTakeBound": "0.05",
        "maxMoveOrderLimit": 10000,
        "filters": [
            {
                "filterType": "PRICE_FILTER",
                "minPrice": decimal_text(max(tick, typical // 150 // tick * tick), own.price_decimals),
                "maxPrice": decimal_text(typical * 54, own.price_decimals),
                "tickSize": own.tick_text,
            },
            {
                "filterType": "LOT_SIZE",
                "minQty": own.step_text,
                "stepSize": own.step_text,
                "maxQty": decimal_text(round(own.quantity_units * 2000), own.quantity_decimals),
            },
            {
                "filterType": "MARKET_LOT_SIZE",
                "stepSize": own.step_text,
                "minQty": own.step_text,
                "maxQty": decimal_text(round(own.quantity_units * 240), own.quantity_decimals),
            },
            {"filterType": "MAX_NUM_ORDERS", "limit": 200},
            {"filterType": "MIN_NOTIONAL", "notional": "50" if own.index == 0 else "20" if own.index == 1 else "5"},
            {
                "filterType": "PERCENT_PRICE",
                "multiplierUp": "1.0500",
                "multiplierDecimal": "4",
                "multiplierDown": "0.9500",
            },
            {"filterType": "POSITION_RISK_CONTROL", "positionControlSide": "NONE"},
        ],
        "orderTypes": [
            "LIMIT",
            "MARKET",
            "STOP",
            "STOP_MARKET",
            "TAKE_PROFIT",
            "TAKE_PROFIT_MARKET",
            "TRAILING_STOP_MARKET",
        ],
        "timeInForce": ["GTC", "IOC", "FOK", "GTX", "GTD"],
        "permissionSets": ["GRID", "COPY", "DCA", "PSB"],
    }
