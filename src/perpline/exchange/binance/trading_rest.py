"""Our Binance account over REST, in the words of `exchange.ports.TradingRest`."""

from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from typing import Literal, TypeVar

import aiohttp
import msgspec
import stamina
from msgspec import Struct
from yarl import URL

from perpline.common.clock import Clock
from perpline.common.errors import (
    Malformed,
    NeedsPerson,
    OutcomeUnknown,
    Refused,
    Unavailable,
)
from perpline.domain.order import (
    AccountSnapshot,
    ExchangePosition,
    Fill,
    Income,
    OrderReport,
    OrderRequest,
    Source,
    StopReport,
    StopRequest,
)
from perpline.exchange.binance import endpoints
from perpline.exchange.binance.budget import Priority
from perpline.exchange.binance.credentials import Credentials
from perpline.exchange.binance.endpoints import Endpoint
from perpline.exchange.binance.errors import (
    MARGIN_TYPE_IS_SO,
    NO_SUCH_ORDER,
    ORDER_PAUSE_S,
    TOO_MANY_ORDERS,
    TOO_MANY_REQUESTS,
    ClockOff,
    banned_until_ms,
    error_of,
    order_error,
    read_error,
    refusal_in,
)
from perpline.exchange.binance.messages import (
    AccountBody,
    AccountConfigBody,
    AlgoOrderBody,
    ApiRestrictionsBody,
    Done,
    IncomeRow,
    LeverageAnswer,
    ListenKeyBody,
    MultiAssetsBody,
    OrderBody,
    PositionModeBody,
    PositionRow,
    SymbolConfigRow,
    UserTradeRow,
)
from perpline.exchange.binance.order_rate import OrderRate
from perpline.exchange.binance.rest import (
    ATTEMPTS,
    FIRST_WAIT_S,
    LONGEST_WAIT_S,
    bounded_body,
    decoded,
    is_count,
    worth_another_try,
)
from perpline.exchange.binance.signing import query_text
from perpline.exchange.binance.user_events import SIDES, order_report, stop_report
from perpline.exchange.binance.weight import WeightLedger
from perpline.exchange.ports import KeyPermissions, SymbolMargin

T = TypeVar("T")
Method = Literal["GET", "POST", "PUT", "DELETE"]

RECV_WINDOW_MS = 5_000
"""How old a request may be when the exchange gets it."""
_LARGEST_WINDOW_MS = 60_000

_PAGE = 1000
_WEEK_MS = 7 * 24 * 3_600_000


def receive_window_ms(clock: Clock) -> int:
    """`recvWindow`: 5 s, and more at a fast clock, where as much of the wall's time would be too short to arrive in."""
    return min(_LARGEST_WINDOW_MS, round(RECV_WINDOW_MS * max(1.0, clock.speed)))


class BinanceTrading:
    """`TradingRest` over aiohttp.

    What changes something is sent once; only after -1021, which says for certain that nothing has happened, is the
    clock's offset measured (`measure_offset`) and the request sent once more. Reads are sent up to four times, as
    `BinanceRest` does. The ledger of request weight is shared with that one, the rate of orders with the `OrderSocket`.
    """

    def __init__(
        self,
        base_url: str,
        credentials: Credentials,
        clock: Clock,
        weight: WeightLedger,
        rate: OrderRate,
        *,
        measure_offset: Callable[[], Awaitable[None]],
        spot_url: str | None = None,
        session: aiohttp.ClientSession | None = None,
        timeout_s: float = 10.0,
        max_body: int = 32 << 20,
    ) -> None:
        """`spot_url` is where the permissions of a key can be asked for. A given session is not closed."""
        self.weight = weight
        self.rate = rate
        self._base_url = base_url.rstrip("/")
        self._spot_url = spot_url.rstrip("/") if spot_url else None
        self._credentials = credentials
        self._clock = clock
        self._measure_offset = measure_offset
        self._session = session
        self._session_is_ours = session is None
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._max_body = max_body

    # ---- orders ----

    async def place_order(self, order: OrderRequest) -> OrderReport:
        params = {
            "symbol": order.symbol,
            "side": order.side.upper(),
            "type": order.kind.upper(),
            "quantity": decimal_text(order.quantity),
            "newClientOrderId": order.client_id,
            "newOrderRespType": "RESULT",
        }
        if order.reduce_only:
            params["reduceOnly"] = "true"
        if order.price is not None:
            params["price"] = decimal_text(order.price)
        if order.time_in_force is not None:
            params["timeInForce"] = order.time_in_force
        await self.rate.wait(closes=order.reduce_only)
        body = await self._change("POST", endpoints.NEW_ORDER, OrderBody, params)
        return self._order_report(body, "answer")

    async def cancel_order(self, symbol: str, client_id: str) -> OrderReport | None:
        params = {"symbol": symbol, "origClientOrderId": client_id}
        try:
            body = await self._change("DELETE", endpoints.ORDER, OrderBody, params)
        except Refused as error:
            if error.code in NO_SUCH_ORDER:
                return None
            raise
        return self._order_report(body, "answer")

    async def order(self, symbol: str, client_id: str, *, order_id: int = 0) -> OrderReport | None:
        named = {"orderId": str(order_id)} if order_id else {"origClientOrderId": client_id}
        params = {"symbol": symbol, **named}
        try:
            body = await self._read(endpoints.ORDER, OrderBody, params)
        except Refused as error:
            if error.code in NO_SUCH_ORDER:
                return None
            raise
        return self._order_report(body, "query")

    async def open_orders(self) -> list[OrderReport]:
        rows = await self._read(endpoints.OPEN_ORDERS, list[OrderBody])
        return [self._order_report(row, "query") for row in rows]

    async def place_stop(self, stop: StopRequest) -> StopReport:
        params = {
            "algoType": "CONDITIONAL",
            "symbol": stop.symbol,
            "side": stop.side.upper(),
            "type": "STOP_MARKET",
            "triggerPrice": decimal_text(stop.trigger_price),
            "workingType": "MARK_PRICE",
            "closePosition": "true",
            "clientAlgoId": stop.client_algo_id,
        }
        await self.rate.wait(closes=True)
        body = await self._change("POST", endpoints.NEW_STOP, AlgoOrderBody, params)
        return self._stop_report(body, "answer")

    async def cancel_stop(self, client_algo_id: str) -> bool:
        try:
            await self._change("DELETE", endpoints.STOP, Done, {"clientAlgoId": client_algo_id})
        except Refused as error:
            if error.code in NO_SUCH_ORDER:
                return False
            raise
        return True

    async def stop(self, client_algo_id: str) -> StopReport | None:
        try:
            body = await self._read(endpoints.STOP, AlgoOrderBody, {"clientAlgoId": client_algo_id})
        except Refused as error:
            if error.code in NO_SUCH_ORDER:
                return None
            raise
        return self._stop_report(body, "query")

    async def open_stops(self) -> list[StopReport]:
        rows = await self._read(endpoints.OPEN_STOPS, list[AlgoOrderBody])
        return [self._stop_report(row, "query") for row in rows]

    async def cancel_all(self, symbol: str) -> None:
        await self._change("DELETE", endpoints.CANCEL_ORDERS, Done, {"symbol": symbol})
        await self._change("DELETE", endpoints.CANCEL_STOPS, Done, {"symbol": symbol})

    # ---- the account ----

    async def positions(self) -> list[ExchangePosition]:
        """As the port says. `isolated` follows from the isolated wallet: v3 does not name the margin type."""
        rows = await self._read(endpoints.POSITIONS, list[PositionRow])
        return [
            ExchangePosition(
                symbol=row.symbol,
                quantity=row.position_amt,
                entry_price=row.entry_price,
                unrealized_pnl=row.un_realized_profit,
                isolated=row.isolated_wallet != 0,
                liquidation_price=row.liquidation_price or None,
                mark_price=row.mark_price or None,
                updated_at=row.update_time,
            )
            for row in rows
            if row.position_amt
        ]

    async def account(self) -> AccountSnapshot:
        body = await self._read(endpoints.ACCOUNT, AccountBody)
        return AccountSnapshot(
            wallet=body.total_wallet_balance,
            available=body.available_balance,
            unrealized_pnl=body.total_unrealized_profit,
            updated_at=self._clock.exchange_now_ms(),
        )

    async def fills(self, symbol: str, *, since: int | None = None, order_id: int | None = None) -> list[Fill]:
        params: dict[str, str | int] = {"symbol": symbol, "limit": _PAGE}
        if order_id is not None:
            params["orderId"] = order_id
        elif since is not None:
            params["startTime"] = max(since, self._clock.exchange_now_ms() - _WEEK_MS + 60_000)
        found: dict[int, Fill] = {}
        while True:
            rows = await self._read(endpoints.USER_TRADES, list[UserTradeRow], params)
            received_at = self._clock.now_ms()
            found |= {row.id: _fill(row, received_at) for row in rows}
            if len(rows) < _PAGE:
                return [found[trade_id] for trade_id in sorted(found)]
            # fromId goes with no times; ids of a symbol rise.
            params = {"symbol": symbol, "limit": _PAGE, "fromId": max(found) + 1}
            if order_id is not None:
                params["orderId"] = order_id

    async def income(self, start: int, end: int) -> list[Income]:
        """As the port says. Pages are by time, for `page` is gone since 2026-10-15."""
        found: dict[tuple[str, int, str, str], Income] = {}
        while start < end:
            params = {"startTime": start, "endTime": end - 1, "limit": _PAGE}
            rows = await self._read(endpoints.INCOME, list[IncomeRow], params)
            for row in rows:
                income = _income(row)
                found[(income.kind, income.income_id, income.symbol, income.asset)] = income
            if len(rows) < _PAGE:
                break
            # The last millisecond of a page may go on in the next one.
            if rows[0].time <= rows[-1].time:
                start = rows[-1].time if rows[-1].time > start else start + 1
            else:
                end = rows[-1].time + 1 if rows[-1].time + 1 < end else end - 1
        return sorted(found.values(), key=lambda income: (income.at, income.income_id))

    async def margin(self, symbol: str) -> SymbolMargin:
        rows = await self._read(endpoints.SYMBOL_CONFIG, list[SymbolConfigRow], {"symbol": symbol})
        for row in rows:
            if row.symbol == symbol:
                return SymbolMargin(isolated=row.margin_type.upper() == "ISOLATED", leverage=row.leverage)
        raise Malformed(f"GET {endpoints.SYMBOL_CONFIG.path}: asked for {symbol}, told of others")

    async def set_isolated(self, symbol: str) -> None:
        try:
            await self._change("POST", endpoints.MARGIN_TYPE, Done, {"symbol": symbol, "marginType": "ISOLATED"})
        except Refused as error:
            if error.code != MARGIN_TYPE_IS_SO:
                raise

    async def set_leverage(self, symbol: str, leverage: int) -> None:
        params: dict[str, str | int] = {"symbol": symbol, "leverage": leverage}
        answer = await self._change("POST", endpoints.LEVERAGE, LeverageAnswer, params)
        if answer.leverage != leverage:
            raise Refused(f"POST {endpoints.LEVERAGE.path} {symbol}: asked for {leverage}, set to {answer.leverage}")

    async def is_hedge_mode(self) -> bool:
        return (await self._read(endpoints.POSITION_MODE, PositionModeBody)).dual_side_position

    async def is_multi_assets_mode(self) -> bool:
        """Whether several assets together are the margin, where wallet and equity are no longer USDT."""
        return (await self._read(endpoints.MULTI_ASSETS, MultiAssetsBody)).multi_assets_margin

    async def permissions(self) -> KeyPermissions:
        """As the port says. Withdrawal and address are told by the spot side alone, where there is one."""
        config = await self._read(endpoints.ACCOUNT_CONFIG, AccountConfigBody)
        if self._spot_url is None:
            return KeyPermissions(can_trade=config.can_trade, can_withdraw=None, bound_to_address=None)
        told = await self._read(endpoints.API_RESTRICTIONS, ApiRestrictionsBody, base_url=self._spot_url)
        return KeyPermissions(
            can_trade=config.can_trade and told.enable_futures,
            can_withdraw=told.enable_withdrawals,
            bound_to_address=told.ip_restrict,
        )

    async def make_listen_key(self) -> str:
        body = await self._read(endpoints.LISTEN_KEY, ListenKeyBody, method="POST", signed=False)
        return body.listen_key

    async def keep_listen_key(self) -> None:
        await self._read(endpoints.LISTEN_KEY, msgspec.Raw, method="PUT", signed=False)

    async def close(self) -> None:
        if self._session is not None and self._session_is_ours:
            await self._session.close()
            self._session = None

    # ---- how it is asked ----

    async def _read(
        self,
        endpoint: Endpoint,
        shape: type[T],
        params: Mapping[str, str | int] | None = None,
        *,
        method: Method = "GET",
        base_url: str = "",
        signed: bool = True,
    ) -> T:
        """The answer to a request that may be repeated without harm."""
        async for attempt in stamina.retry_context(
            on=worth_another_try,
            attempts=ATTEMPTS,
            timeout=None,
            wait_initial=FIRST_WAIT_S,
            wait_max=LONGEST_WAIT_S,
            wait_jitter=FIRST_WAIT_S / 4,
        ):
            with attempt:
                what = _name(method, endpoint, params)
                try:
                    answer = await self._send(what, method, endpoint, params, "reconcile", base_url, signed)
                except (OutcomeUnknown, _NotSent) as nothing:
                    raise Unavailable(str(nothing)) from None
                if answer.status != 200:
                    error = read_error(what, answer.status, answer.body, answer.retry_after_s)
                    if isinstance(error, ClockOff):
                        await self._measure_offset()
                    raise error
                return decoded(answer.body, shape, what)
        raise AssertionError("retry_context ends with a result or an error")

    async def _change(self, method: Method, endpoint: Endpoint, shape: type[T], params: Mapping[str, str | int]) -> T:
        """The answer to a request that changes something. Raises as the port says of orders."""
        try:
            return await self._change_once(method, endpoint, shape, params)
        except ClockOff:
            await self._measure_offset()
            return await self._change_once(method, endpoint, shape, params)

    async def _change_once(
        self, method: Method, endpoint: Endpoint, shape: type[T], params: Mapping[str, str | int]
    ) -> T:
        what = _name(method, endpoint, params)
        try:
            answer = await self._send(what, method, endpoint, params, "orders")
        except _NotSent as nothing:
            raise Unavailable(str(nothing)) from None
        if answer.status != 200:
            code, text = error_of(answer.body)
            raise order_error(what, answer.status, code, text, answer.retry_after_s)
        try:
            return msgspec.json.decode(answer.body, type=shape, strict=False)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if refusal := refusal_in(answer.body):
                raise order_error(what, 400, *refusal) from None
            raise OutcomeUnknown(f"{what}: the answer makes no sense or was cut off") from None

    async def _send(
        self,
        what: str,
        method: Method,
        endpoint: Endpoint,
        params: Mapping[str, str | int] | None,
        priority: Priority,
        base_url: str = "",
        signed: bool = True,
    ) -> "_Answer":
        """One request. Raises _NotSent where no byte of it can have arrived, OutcomeUnknown where it may have and no
        answer came."""
        permit = await self.weight.acquire(endpoint.cost, endpoint.pool, priority=priority)
        try:
            if self._session is None:
                self._session = aiohttp.ClientSession()
            query = self._signed(params or {}) if signed else ""
            address = URL((base_url or self._base_url) + endpoint.path + (f"?{query}" if query else ""), encoded=True)
            headers: Mapping[str, str] = {"X-MBX-APIKEY": self._credentials.api_key}
            try:
                async with self._session.request(
                    method, address, headers=headers, timeout=self._timeout, allow_redirects=False
                ) as response:
                    body = await bounded_body(response, self._max_body, what)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                raise _NotSent(f"{what}: {type(error).__name__}") from None
            except TimeoutError:
                raise OutcomeUnknown(f"{what}: no answer within {self._timeout.total:g} s") from None
            except aiohttp.InvalidURL:
                raise NeedsPerson("the REST address of the exchange is no URL: see binance_futures_rest_url") from None
            except aiohttp.ClientError as error:
                # Only the kind of failure: aiohttp's own texts hold the whole address, and that the signature.
                raise OutcomeUnknown(f"{what}: {type(error).__name__}") from None
            except Malformed as error:
                raise OutcomeUnknown(str(error)) from None
            headers = response.headers
            if is_count(used := headers.get("X-MBX-USED-WEIGHT-1M", "")):
                self.weight.observe(int(used), permit)
            for name, length_ms in (("X-MBX-ORDER-COUNT-10S", 10_000), ("X-MBX-ORDER-COUNT-1M", 60_000)):
                if is_count(count := headers.get(name, "")):
                    self.rate.observe(length_ms, int(count))
            retry_after = headers.get("Retry-After", "")
            answer = _Answer(response.status, body, float(retry_after) if is_count(retry_after) else None)
            if answer.status != 200:
                # Before the slot is free, or the next one in line would go out into a block.
                answer = self._heeded(answer)
        finally:
            self.weight.done(permit)
        if answer.status == 200:
            self.weight.succeeded()
        return answer

    def _signed(self, params: Mapping[str, str | int]) -> str:
        text = query_text(
            {**params, "recvWindow": receive_window_ms(self._clock), "timestamp": self._clock.exchange_now_ms()}
        )
        return f"{text}&{query_text({'signature': self._credentials.signer.sign(text.encode())})}"

    def _heeded(self, answer: "_Answer") -> "_Answer":
        """Stop orders or all requests where the answer wants it; the answer, with how long."""
        code, _ = error_of(answer.body)
        if code == TOO_MANY_ORDERS:
            pause_s = answer.retry_after_s or ORDER_PAUSE_S
            self.rate.block(pause_s)
        elif answer.status in (418, 429) or code == TOO_MANY_REQUESTS:
            status = answer.status if answer.status == 418 else 429
            pause_s = self.weight.block(status, answer.retry_after_s, banned_until_ms(answer.body))
        else:
            return answer
        return _Answer(answer.status, answer.body, pause_s)

    def _order_report(self, body: OrderBody, source: Source) -> OrderReport:
        return order_report(body, source, self._clock.now_ms())

    def _stop_report(self, body: AlgoOrderBody, source: Source) -> StopReport:
        return stop_report(body, source, self._clock.now_ms())


def decimal_text(value: Decimal) -> str:
    """The number without an exponent, as the exchange wants it."""
    return f"{value:f}"


class _NotSent(Exception):
    """No connection came about, so that nothing can have arrived."""


class _Answer(Struct, frozen=True):
    status: int
    body: bytes
    retry_after_s: float | None


def _name(method: str, endpoint: Endpoint, params: Mapping[str, str | int] | None) -> str:
    """Names a request in an error: no parameter but the symbol."""
    symbol = (params or {}).get("symbol", "")
    return f"{method} {endpoint.path} {symbol}".rstrip()


def _fill(row: UserTradeRow, received_at: int) -> Fill:
    return Fill(
        symbol=row.symbol,
        trade_id=row.id,
        order_id=row.order_id,
        client_id="",
        side=SIDES[row.side],
        price=row.price,
        quantity=row.qty,
        fee=row.commission,
        fee_asset=row.commission_asset,
        realized_pnl=row.realized_pnl,
        is_maker=row.maker,
        traded_at=row.time,
        received_at=received_at,
    )


def _income(row: IncomeRow) -> Income:
    if isinstance(row.tran_id, str) and not (row.tran_id.isascii() and row.tran_id.isdigit()):
        raise Malformed(f"GET {endpoints.INCOME.path}: no transaction id: {row.tran_id!r}")
    return Income(
        income_id=int(row.tran_id),
        kind=row.income_type,
        symbol=row.symbol,
        asset=row.asset,
        amount=row.income,
        at=row.time,
        trade_id="" if row.trade_id is None else str(row.trade_id),
    )
