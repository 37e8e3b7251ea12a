"""The private side without sockets: who asks, for what, with which parameters, in; status, headers and body, out.

Answers as of July 2026 (binance.md 4): without avgPrice and cumQuote where an order is placed, changed or cancelled,
conditional orders on the algo routes only. The order WebSocket API asks the same questions by other names.
"""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec

from perpline.common.clock import Clock
from perpline.simulation.accounts import (
    BRACKETS,
    DEPOSIT,
    MAKER_FEE,
    MOST_LEVERAGE,
    ONE,
    TAKER_FEE,
    Account,
    Algo,
    Order,
    Position,
    maintenance,
    most_notional,
)
from perpline.simulation.exchange import DAY_MS, Exchange
from perpline.simulation.filters import decimal, one_of, required, truth_value, whole
from perpline.simulation.instruments import Instrument
from perpline.simulation.market import HOUR_MS
from perpline.simulation.matching import Depth, Engine, Price
from perpline.simulation.rest import Answer, RequestError, refusal
from perpline.simulation.signatures import ed25519_key, is_ed25519_of, is_hmac_of
from perpline.simulation.user_events import (
    Event,
    callback_text,
    leverage_event,
    listen_key_event,
    money,
    multi_assets_event,
    price_text,
    quantity_text,
)

Params = Mapping[str, str]
Json = Any

LISTEN_KEY_MS: Final = 60 * 60_000
ORDERS_10S: Final = 300
ORDERS_1M: Final = 1200
MOST_RECV_WINDOW_MS: Final = 60_000
CONDITIONAL: Final = ("STOP", "STOP_MARKET", "TAKE_PROFIT", "TAKE_PROFIT_MARKET", "TRAILING_STOP_MARKET")
_CLIENT_ID: Final = re.compile(r"[.A-Z:/a-z0-9_-]{1,36}")
_SIDES: Final = ("BUY", "SELL")
_POSITION_SIDES: Final = ("BOTH", "LONG", "SHORT")
_STP: Final = ("EXPIRE_MAKER", "EXPIRE_TAKER", "EXPIRE_BOTH", "NONE")
_SUCCESS: Final = {"code": 200, "msg": "success"}
_ALL_CANCELLED: Final = {"code": 200, "msg": "The operation of cancel all open order is done."}


class Private:
    """Accounts, orders and positions of one simulated exchange. Everything happens in `call` and `step`.

    `exchange`'s own prices at the time of `clock` are used where `depth`, `mark` and `last` are not given. One account
    is there from the start: key "sim-key", secret "sim-secret", 100,000 USDT.
    """

    def __init__(
        self,
        exchange: Exchange,
        clock: Clock,
        *,
        depth: Depth | None = None,
        mark: Price | None = None,
        last: Price | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """`depth(index, levels)`: book, bids and asks shown now, in the contract's units, as `Exchange.depth` gives
        them. `mark(index)`, `last(index)`: mark price and price of the last trade now."""
        self._exchange = exchange
        self._clock = clock
        self._rng = rng or random.Random(0)
        self.engine = Engine(
            exchange,
            depth or (lambda index, levels: exchange.depth(index, levels, clock.now_ms())),
            mark or (lambda index: exchange.mark(index, clock.now_ms()).mark),
            last or self._last_trade,
            self._rng,
        )
        self.lookup_lag_ms = 0
        """For how long an order that was taken is not found yet by its id."""
        self.orders_10s = ORDERS_10S
        self.orders_1m = ORDERS_1M
        self._routes = self._table()
        self.add_account("sim-key", secret="sim-secret")

    # ---- for the server and for tests

    @property
    def emit(self) -> Callable[[str, Event], None]:
        """Told (API key, event) at the instant a user data event happens. Set it."""
        return self.engine.emit

    @emit.setter
    def emit(self, emit: Callable[[str, Event], None]) -> None:
        self.engine.emit = emit

    def add_account(
        self,
        key: str,
        *,
        secret: str = "",
        public_key: str = "",
        balance: str = "",
        can_trade: bool = True,
        can_withdraw: bool = False,
        bound_to_address: bool = True,
    ) -> None:
        """One more account. `public_key`: Ed25519, PEM or base64. `balance`: USDT. Raises ValueError."""
        if not key or key in self.engine.accounts:
            raise ValueError(f"there is an account with the key {key!r}" if key else "an account needs a key")
        if not secret and not public_key:
            raise ValueError("an account needs a secret or a public key")
        self.engine.accounts[key] = Account(
            key=key,
            secret=secret,
            public_key=ed25519_key(public_key) if public_key else None,
            wallet=round(float(balance) * ONE) if balance else DEPOSIT,
            can_trade=can_trade,
            can_withdraw=can_withdraw,
            bound_to_address=bound_to_address,
        )

    def has_account(self, key: str) -> bool:
        return key in self.engine.accounts

    def knows(self, method: str, path: str) -> bool:
        return (method, path) in self._routes

    def weight(self, method: str, path: str, params: Params) -> int:
        """What this request costs of its address's weight."""
        return self._routes[method, path].weight(params)

    def call(
        self,
        method: str,
        path: str,
        params: Params,
        *,
        key: str | None,
        signed_text: str | None,
    ) -> Answer:
        """The answer to a request, `params` of query and body together.

        `signed_text`: what was signed (signatures.py); None for a session that has logged on, which signs nothing."""
        route = self._routes.get((method, path))
        if route is None:
            return refusal(404, -5000, f"Path {path}, Method {method} is invalid")
        now_ms = self._clock.now_ms()
        seen = (method, path, _client_id_of(params))
        account: Account | None = None
        try:
            account = self._admitted(route, params, key, signed_text, now_ms)
            account.see(seen)
            self._count_orders(account, route, now_ms)
            body = route.respond(account, {**params}, now_ms)
        except RequestError as error:
            return _refusal(error)
        account.taken[seen] += 1
        headers = {}
        if route.orders_10s:
            headers = {
                "x-mbx-order-count-10s": str(len(account.sent_10s)),
                "x-mbx-order-count-1m": str(len(account.sent_1m)),
            }
        return Answer(200, msgspec.json.encode(body), headers)

    def authenticate(self, params: Params, *, key: str | None, signed_text: str) -> Answer:
        """session.logon: 200 where key, time and an Ed25519 signature are right, else the refusal."""
        try:
            account = self._account(key)
            self._check_window(params, self._clock.now_ms())
            if account.public_key is None or not is_ed25519_of(
                account.public_key, signed_text, required(params, "signature")
            ):
                raise RequestError(-1022, "Signature for this request is not valid.")
        except RequestError as error:
            return _refusal(error)
        return Answer(200, b"{}")

    def step(self, now_ms: int) -> None:
        """Everything that is due by now: triggers, fills of what rests, funding, liquidation, timers, expired keys."""
        self.engine.step(now_ms)
        for account in self.engine.accounts.values():
            if account.listen_key and now_ms >= account.listen_until_ms:
                self.expire_listen_key(account.key)

    def traded(self, index: int, price: int, quantity: int, buyer_is_maker: bool) -> None:
        """A trade of the market, in the contract's units, as it is published: resting orders it passed are filled."""
        # Asked for every trade of every contract: the clock is read where it matters.
        if self.engine.rests(index):
            self.engine.traded(index, price, quantity, buyer_is_maker, self._clock.now_ms())

    def key_of(self, listen_key: str) -> str | None:
        """The account whose user data stream this listen key opens; None where it opens none (any more)."""
        return next(
            (each.key for each in self.engine.accounts.values() if listen_key and each.listen_key == listen_key), None
        )

    def expire_listen_key(self, key: str) -> None:
        """The account's listen key is dead from now on; its sockets are told once, by `emit`."""
        account = self.engine.accounts[key]
        listen_key, account.listen_key = account.listen_key, ""
        if listen_key:
            self.emit(key, listen_key_event(listen_key, self._clock.now_ms()))

    def deleverage(self, key: str, symbol: str, quantity: str) -> None:
        """Close so much of the account's position as automatic deleveraging does."""
        index = self._exchange.index_of[symbol]
        self.engine.deleverage(self.engine.accounts[key], index, _units(quantity), self._clock.now_ms())

    def deposit(self, key: str, amount: str) -> None:
        """So many USDT in, or out where it begins with a minus."""
        self.engine.deposit(self.engine.accounts[key], _units(amount), self._clock.now_ms())

    def is_throttle_exempt(self, method: str, path: str, params: Params) -> bool:
        """Whether -1008 spares this request: anything but a new order, and orders that only reduce (binance.md 3.2)."""
        if method != "POST" or path not in ("/fapi/v1/order", "/fapi/v1/batchOrders", "/fapi/v1/order/test"):
            return True
        if params.get("reduceOnly", "").lower() == "true" or params.get("closePosition", "").lower() == "true":
            return True
        return (params.get("positionSide"), params.get("side")) in (("LONG", "SELL"), ("SHORT", "BUY"))

    def truth(self, key: str) -> dict[str, Json]:
        """What is so, for a test to compare with: everything of this account, and every request that was seen.

        Raises KeyError for an unknown key."""
        account = self.engine.accounts[key]
        now_ms = self._clock.now_ms()
        return {
            "time": now_ms,
            "wallet": money(account.wallet),
            "available": money(account.available(self.engine.mark)),
            "positions": {
                self._own(each).symbol if each.side == "BOTH" else f"{self._own(each).symbol} {each.side}": {
                    "quantity": quantity_text(self._own(each), each.quantity),
                    "entry_price": money(each.entry),
                    "realized": money(each.realized),
                    "isolated_wallet": money(each.isolated_wallet),
                }
                for each in account.held()
            },
            "orders": [self._queried(each) for each in account.orders.values()],
            "open_orders": [self._queried(each) for each in account.open_orders.values()],
            "algo_orders": [self._algo_row(each, "query") for each in account.algos.values()],
            "open_algo_orders": [self._algo_row(each, "query") for each in account.open_algos.values()],
            "fills": list(account.fills),
            "income": list(account.incomes),
            "requests": [
                {
                    "method": method,
                    "path": path,
                    "client_id": client_id,
                    "seen": seen,
                    "taken": account.taken[method, path, client_id],
                }
                for (method, path, client_id), seen in account.seen.items()
            ],
        }

    # ---- who asks

    def _admitted(
        self, route: "_Route", params: Params, key: str | None, signed_text: str | None, now_ms: int
    ) -> Account:
        account = self._account(key)
        if not route.signed:
            return account
        if signed_text is not None or "timestamp" in params:
            self._check_window(params, now_ms)
        if signed_text is not None:
            signature = required(params, "signature")
            good = (
                is_ed25519_of(account.public_key, signed_text, signature)
                if account.public_key is not None
                else is_hmac_of(account.secret, signed_text, signature)
            )
            if not good:
                raise RequestError(-1022, "Signature for this request is not valid.")
        if route.trades and not account.can_trade:
            raise RequestError(-2015, "Invalid API-key, IP, or permissions for action.", 401)
        return account

    def _account(self, key: str | None) -> Account:
        if not key:
            raise RequestError(-2014, "API-key format invalid.", 401)
        account = self.engine.accounts.get(key)
        if account is None:
            raise RequestError(-2015, "Invalid API-key, IP, or permissions for action.", 401)
        return account

    def _check_window(self, params: Params, now_ms: int) -> None:
        timestamp = whole(params, "timestamp")
        if timestamp is None:
            required(params, "timestamp")
        assert timestamp is not None
        recv_window = _recv_window(params)
        if timestamp >= now_ms + 1000:
            raise RequestError(-1021, "Timestamp for this request was 1000ms ahead of the server's time.")
        if now_ms - timestamp > recv_window:
            raise RequestError(-1021, "Timestamp for this request is outside of the recvWindow.")

    def _count_orders(self, account: Account, route: "_Route", now_ms: int) -> None:
        for sent, length_ms in ((account.sent_10s, 10_000), (account.sent_1m, 60_000)):
            while sent and sent[0] <= now_ms - length_ms:
                sent.popleft()
        if not route.orders_10s:
            return
        if len(account.sent_10s) + route.orders_10s > self.orders_10s:
            raise RequestError(-1015, f"Too many new orders; current limit is {self.orders_10s} orders per 10s.", 429)
        if len(account.sent_1m) + 1 > self.orders_1m:
            raise RequestError(-1015, f"Too many new orders; current limit is {self.orders_1m} orders per 1m.", 429)
        account.sent_10s.extend([now_ms] * route.orders_10s)
        account.sent_1m.append(now_ms)

    def _table(self) -> dict[tuple[str, str], "_Route"]:
        routes: dict[tuple[str, str], _Route] = {}

        def add(
            method: str,
            path: str,
            respond: "_Respond",
            weight: int | tuple[int, int] = 1,
            orders_10s: int = 0,
            signed: bool = True,
        ) -> None:
            one, every = (weight, weight) if isinstance(weight, int) else weight
            trades = signed and method != "GET"
            routes[method, path] = _Route(
                respond, lambda params: one if "symbol" in params else every, orders_10s, signed, trades
            )

        v1 = "/fapi/v1/"
        add("POST", v1 + "order", self._place_order, 0, 1)
        add("POST", v1 + "order/test", self._test_order, 0)
        add("PUT", v1 + "order", self._modify_order, 0, 1)
        add("DELETE", v1 + "order", self._cancel_order)
        add("GET", v1 + "order", self._get_order)
        add("POST", v1 + "batchOrders", self._batch(self._place_order), 5, 5)
        add("PUT", v1 + "batchOrders", self._batch(self._modify_order), 5, 5)
        add("DELETE", v1 + "batchOrders", self._cancel_batch)
        add("DELETE", v1 + "allOpenOrders", self._cancel_all)
        add("POST", v1 + "countdownCancelAll", self._count_down, 10)
        add("GET", v1 + "openOrder", self._open_order)
        add("GET", v1 + "openOrders", self._open_orders, (1, 40))
        add("GET", v1 + "allOrders", self._all_orders, 5)
        add("POST", v1 + "algoOrder", self._place_algo, 0, 1)
        add("DELETE", v1 + "algoOrder", self._cancel_algo)
        add("DELETE", v1 + "algoOpenOrders", self._cancel_all_algos)
        add("GET", v1 + "algoOrder", self._get_algo)
        add("GET", v1 + "openAlgoOrders", self._open_algos, (1, 40))
        add("GET", v1 + "allAlgoOrders", self._all_algos, 5)
        add("GET", v1 + "userTrades", self._user_trades, 5)
        add("GET", v1 + "income", self._income, 30)
        add("GET", v1 + "forceOrders", self._force_orders, (20, 50))
        for version in ("v2", "v3"):
            for name, respond in (
                ("positionRisk", self._position_risk),
                ("account", self._account_info),
                ("balance", self._balance),
            ):
                add("GET", f"/fapi/{version}/{name}", partial(respond, version), 5)
        add("GET", v1 + "accountConfig", self._account_config, 5)
        add("GET", v1 + "symbolConfig", self._symbol_config, 5)
        add("GET", v1 + "leverageBracket", self._leverage_bracket)
        add("GET", v1 + "commissionRate", self._commission_rate, 20)
        add("GET", v1 + "rateLimit/order", self._order_limits)
        add("GET", v1 + "positionSide/dual", self._get_dual, 30)
        add("POST", v1 + "positionSide/dual", self._set_dual)
        add("GET", v1 + "multiAssetsMargin", self._get_multi_assets, 30)
        add("POST", v1 + "multiAssetsMargin", self._set_multi_assets)
        add("GET", v1 + "apiTradingStatus", self._trading_status, (1, 10))
        add("GET", v1 + "feeBurn", lambda account, params, now_ms: {"feeBurn": False}, 30)
        add("GET", v1 + "adlQuantile", self._adl_quantile, 5)
        add("POST", v1 + "leverage", self._set_leverage)
        add("POST", v1 + "marginType", self._set_margin_type)
        add("POST", v1 + "positionMargin", self._move_margin)
        add("GET", "/sapi/v1/account/apiRestrictions", self._api_restrictions)
        add("POST", v1 + "listenKey", self._make_listen_key, signed=False)
        add("PUT", v1 + "listenKey", self._keep_listen_key, signed=False)
        add("DELETE", v1 + "listenKey", self._drop_listen_key, signed=False)
        return routes

    # ---- ordinary orders

    def _place_order(self, account: Account, params: Params, now_ms: int) -> Json:
        order = self._new_order(account, params, now_ms)
        answers_result = one_of(params, "newOrderRespType", ("ACK", "RESULT"), "ACK") == "RESULT"
        # ACK tells that the order was taken, whatever has come of it since.
        taken = self._order_row(order)
        self.engine.place(account, order, now_ms)
        if answers_result:
            return self._order_row(order)
        return {**taken, "origQty": quantity_text(self._own(order), order.quantity)}

    def _test_order(self, account: Account, params: Params, now_ms: int) -> Json:
        self.engine.admit(account, self._new_order(account, params, now_ms), now_ms)
        return {}

    def _new_order(self, account: Account, params: Params, now_ms: int) -> Order:
        """The order that the parameters describe. Raises RequestError where a filter or a rule forbids it."""
        index = self._index(params, now_ms)
        filters = self.engine.filters(index)
        side = one_of(params, "side", _SIDES)
        kind = required(params, "type")
        if kind in CONDITIONAL:
            raise RequestError(
                -4120,
                "Order type not supported for this endpoint. Please use the Algo Order API endpoints instead.",
            )
        one_of(params, "type", ("LIMIT", "MARKET"))
        position_side, reduce_only = self._position_side(account, params)
        if params.get("priceMatch", "NONE") != "NONE":
            raise RequestError(-5037, "Invalid price match: the simulated exchange knows none, send a price.")
        is_market = kind == "MARKET"
        if is_market:
            time_in_force, price = "GTC", 0
            quantity = _mandatory(params, "quantity")
            filters.check_quantity(quantity, market=True)
        else:
            required(params, "timeInForce")
            time_in_force = one_of(params, "timeInForce", ("GTC", "IOC", "FOK", "GTX", "GTD", "RPI"))
            if time_in_force == "RPI":
                raise RequestError(-1115, "Invalid timeInForce.")
            quantity, price = _mandatory(params, "quantity"), _mandatory(params, "price")
            filters.check_price(price)
            filters.check_quantity(quantity, market=False)
        mark = self.engine.mark(index)
        if price:
            filters.check_percent(price, mark, side)
        if not reduce_only:
            filters.check_notional(price or mark, quantity)
        good_till_ms = _good_till(params, time_in_force, now_ms)
        if sum(each.index == index for each in account.open_orders.values()) >= filters.most_orders:
            raise RequestError(-2025, "Reach max open order limit.")
        client_id = self._client_id(params, "newClientOrderId")
        if any(each.client_id == client_id for each in account.open_orders.values()):
            raise RequestError(-4116, "ClientOrderId is duplicated.")
        return Order(
            id=self.engine.next_order_id(),
            client_id=client_id,
            index=index,
            side=side,
            position_side=position_side,
            kind=kind,
            time_in_force=time_in_force,
            price=price,
            quantity=quantity,
            reduce_only=reduce_only,
            stp=one_of(params, "selfTradePreventionMode", _STP, "EXPIRE_MAKER"),
            good_till_ms=good_till_ms,
            created_ms=now_ms,
            updated_ms=now_ms,
        )

    def _modify_order(self, account: Account, params: Params, now_ms: int) -> Json:
        index = self._index(params, now_ms)
        one_of(params, "side", _SIDES)
        order = self._find(account, params, index, now_ms, open_only=True)
        if order is None:
            raise RequestError(-2013, "Order does not exist.")
        if order.kind != "LIMIT":
            raise RequestError(-1116, "Invalid orderType.")
        if "reduceOnly" in params and truth_value(params, "reduceOnly") != order.reduce_only:
            raise RequestError(-5047, "reduceOnly does not match the order.")
        if params["side"] != order.side:
            raise RequestError(-1117, "Invalid side.")
        quantity, price = _mandatory(params, "quantity"), _mandatory(params, "price")
        filters = self.engine.filters(index)
        filters.check_price(price)
        filters.check_quantity(quantity, market=False)
        filters.check_percent(price, self.engine.mark(index), order.side)
        if not order.reduce_only:
            filters.check_notional(price, quantity)
        if order.amendments >= 10_000:
            raise RequestError(-5026, "Exceed maximum modify order limit.")
        self.engine.amend(account, order, quantity, price, params.get("modifyId", ""), now_ms)
        return self._order_row(order)

    def _cancel_order(self, account: Account, params: Params, now_ms: int) -> Json:
        order = self._find(account, params, self._index(params, now_ms), now_ms, open_only=True)
        if order is None:
            raise RequestError(-2011, "Unknown order sent.")
        self.engine.cancel(account, order, now_ms)
        return self._order_row(order)

    def _get_order(self, account: Account, params: Params, now_ms: int) -> Json:
        order = self._find(account, params, self._index(params, now_ms), now_ms)
        if order is None:
            raise RequestError(-2013, "Order does not exist.")
        return self._queried(order)

    def _open_order(self, account: Account, params: Params, now_ms: int) -> Json:
        order = self._find(account, params, self._index(params, now_ms), now_ms, open_only=True)
        if order is None:
            raise RequestError(-2013, "Order does not exist.")
        return self._queried(order)

    def _open_orders(self, account: Account, params: Params, now_ms: int) -> Json:
        index = self._index(params, now_ms) if "symbol" in params else None
        return [self._queried(each) for each in account.open_orders.values() if index in (None, each.index)]

    def _all_orders(self, account: Account, params: Params, now_ms: int) -> Json:
        index = self._index(params, now_ms) if "symbol" in params else None
        first_id = whole(params, "orderId") or 0
        start_ms, end_ms, limit = _span(params, now_ms, 500, 1000)
        found = [
            each
            for each in account.orders.values()
            if index in (None, each.index)
            and (each.id >= first_id if first_id else start_ms <= each.created_ms <= end_ms)
            and not _is_forgotten(each, now_ms)
        ]
        found = found[:limit] if first_id else found[-limit:]
        return [{**self._queried(each), "pair": self._own(each).symbol, "cumBase": "0"} for each in found]

    def _cancel_all(self, account: Account, params: Params, now_ms: int) -> Json:
        index = self._index(params, now_ms)
        for order in [each for each in account.open_orders.values() if each.index == index]:
            self.engine.cancel(account, order, now_ms)
        return _ALL_CANCELLED

    def _count_down(self, account: Account, params: Params, now_ms: int) -> Json:
        index = self._index(params, now_ms)
        wait_ms = whole(params, "countdownTime")
        if wait_ms is None:
            required(params, "countdownTime")
        account.countdowns.pop(index, None)
        if wait_ms:
            account.countdowns[index] = now_ms + wait_ms
        return {"symbol": params["symbol"], "countdownTime": str(wait_ms)}

    def _batch(self, each_by: "_Respond") -> "_Respond":
        def respond(account: Account, params: Params, now_ms: int) -> Json:
            orders = _list(params, "batchOrders", 5)
            answers: list[Json] = []
            for order in orders:
                if not isinstance(order, dict):
                    raise RequestError(-1130, "Data sent for parameter 'batchOrders' is not valid.")
                try:
                    texts = {str(name): _text(value) for name, value in order.items()}
                    answers.append(each_by(account, texts, now_ms))
                except RequestError as error:
                    answers.append({"code": error.code, "msg": str(error)})
            return answers

        return respond

    def _cancel_batch(self, account: Account, params: Params, now_ms: int) -> Json:
        name = "orderIdList" if "orderIdList" in params else "origClientOrderIdList"
        by = "orderId" if name == "orderIdList" else "origClientOrderId"
        answers: list[Json] = []
        for wanted in _list(params, name, 10):
            try:
                one = {"symbol": params.get("symbol", ""), by: _text(wanted)}
                answers.append(self._cancel_order(account, one, now_ms))
            except RequestError as error:
                answers.append({"code": error.code, "msg": str(error)})
        return answers

    def _find(
        self, account: Account, params: Params, index: int, now_ms: int, *, open_only: bool = False
    ) -> Order | None:
        """By orderId or origClientOrderId; of several with one client id the open one, else the latest."""
        order_id, client_id = whole(params, "orderId"), params.get("origClientOrderId", "")
        if order_id is None and not client_id:
            raise RequestError(-1102, "Param 'origClientOrderId' or 'orderId' must be sent, but both were empty/null!")
        among = account.open_orders if open_only else account.orders
        if order_id is not None:
            one = among.get(order_id)
            found = [] if one is None else [one]
        else:
            found = [each for each in among.values() if each.client_id == client_id]
        found = [
            each
            for each in found
            if each.index == index
            and not _is_forgotten(each, now_ms)
            and (open_only or now_ms - each.created_ms >= self.lookup_lag_ms)
        ]
        return max(found, key=lambda each: (each.is_open, each.id), default=None)

    def _order_row(self, order: Order) -> dict[str, Json]:
        """As an answer to placing, changing or cancelling tells it."""
        own = self._own(order)
        return {
            "orderId": order.id,
            "symbol": own.symbol,
            "status": order.status,
            "clientOrderId": order.client_id,
            "price": price_text(own, order.price),
            "origQty": quantity_text(own, order.quantity),
            "executedQty": quantity_text(own, order.filled),
            "cumQty": quantity_text(own, order.filled),
            "timeInForce": order.time_in_force,
            "type": order.kind,
            "reduceOnly": order.reduce_only,
            "closePosition": order.close_position,
            "side": order.side,
            "positionSide": order.position_side,
            "stopPrice": price_text(own, 0),
            "workingType": "CONTRACT_PRICE",
            "priceProtect": False,
            "origType": order.kind,
            "priceMatch": "NONE",
            "selfTradePreventionMode": order.stp,
            "goodTillDate": order.good_till_ms,
            "updateTime": order.updated_ms,
        }

    def _queried(self, order: Order) -> dict[str, Json]:
        """As an answer to a query tells it: with average price and quote volume."""
        row = self._order_row(order)
        del row["cumQty"]
        return {
            **row,
            "avgPrice": money(order.average),
            "cumQuote": money(order.cost // ONE),
            "time": order.created_ms,
        }

    # ---- conditional orders

    def _place_algo(self, account: Account, params: Params, now_ms: int) -> Json:
        one_of(params, "algoType", ("CONDITIONAL",))
        index = self._index(params, now_ms)
        filters = self.engine.filters(index)
        side = one_of(params, "side", _SIDES)
        kind = one_of(params, "type", CONDITIONAL)
        position_side, reduce_only = self._position_side(account, params)
        if params.get("priceMatch", "NONE") != "NONE":
            raise RequestError(-5037, "Invalid price match: the simulated exchange knows none, send a price.")
        is_limit, is_trailing = kind in ("STOP", "TAKE_PROFIT"), kind == "TRAILING_STOP_MARKET"
        close_position = truth_value(params, "closePosition")
        if close_position:
            if kind not in ("STOP_MARKET", "TAKE_PROFIT_MARKET"):
                raise RequestError(-4136, "Target strategy invalid for orderType " + kind + ",closePosition true")
            if params.get("quantity"):
                raise RequestError(-4137, "Quantity must be zero with closePosition equals true")
            if reduce_only:
                raise RequestError(-1106, "Parameter 'reduceonly' sent when not required.")
            if (position_side, side) in (("LONG", "BUY"), ("SHORT", "SELL")):
                raise RequestError(-4061, "Order's position side does not match user's setting.")
        trigger = activate = callback = price = quantity = 0
        if is_trailing:
            activate = decimal(params, "activatePrice") or 0
            if activate:
                filters.check_price(activate)
            # Per cent, 0.1 to 20.
            callback = _mandatory(params, "callbackRate") // 100
            if not ONE // 1000 <= callback <= ONE // 5:
                raise RequestError(-2007, "Invalid callBack rate.")
        else:
            trigger = _mandatory(params, "triggerPrice")
            filters.check_price(trigger, "stop price")
        if is_limit:
            price = _mandatory(params, "price")
            filters.check_price(price)
        if not close_position:
            quantity = _mandatory(params, "quantity")
            filters.check_quantity(quantity, market=not is_limit)
            if not reduce_only:
                filters.check_notional(price or trigger or self.engine.mark(index), quantity)
        time_in_force = one_of(params, "timeInForce", ("GTC", "IOC", "FOK", "GTX", "GTD", "GTE_GTC"), "GTC")
        client_id = self._client_id(params, "clientAlgoId")
        if any(each.client_id == client_id for each in account.open_algos.values()):
            raise RequestError(-4116, "ClientOrderId is duplicated.")
        algo = Algo(
            id=self.engine.next_algo_id(),
            client_id=client_id,
            index=index,
            kind=kind,
            side=side,
            position_side=position_side,
            time_in_force=time_in_force,
            quantity=quantity,
            price=price,
            trigger=trigger,
            by_mark=one_of(params, "workingType", ("MARK_PRICE", "CONTRACT_PRICE"), "CONTRACT_PRICE") == "MARK_PRICE",
            close_position=close_position,
            price_protect=truth_value(params, "priceProtect"),
            reduce_only=reduce_only,
            stp=one_of(params, "selfTradePreventionMode", _STP, "EXPIRE_MAKER"),
            good_till_ms=_good_till(params, time_in_force, now_ms),
            activate=activate,
            callback=callback,
            created_ms=now_ms,
            updated_ms=now_ms,
        )
        self.engine.place_algo(account, algo, now_ms)
        return self._algo_row(algo, "place")

    def _cancel_algo(self, account: Account, params: Params, now_ms: int) -> Json:
        algo = self._find_algo(account, params)
        if algo is None or not algo.is_open:
            raise RequestError(-2011, "Unknown order sent.")
        self.engine.cancel_algo(account, algo, now_ms)
        return {"algoId": algo.id, "clientAlgoId": algo.client_id, "code": "200", "msg": "success"}

    def _cancel_all_algos(self, account: Account, params: Params, now_ms: int) -> Json:
        index = self._index(params, now_ms)
        for algo in [each for each in account.open_algos.values() if each.index == index]:
            self.engine.cancel_algo(account, algo, now_ms)
        return _ALL_CANCELLED

    def _get_algo(self, account: Account, params: Params, now_ms: int) -> Json:
        algo = self._find_algo(account, params)
        if algo is None or now_ms - algo.created_ms < self.lookup_lag_ms:
            raise RequestError(-2013, "Order does not exist.")
        return self._algo_row(algo, "query")

    def _open_algos(self, account: Account, params: Params, now_ms: int) -> Json:
        index = self._index(params, now_ms) if "symbol" in params else None
        algo_id = whole(params, "algoId")
        return [
            self._algo_row(each, "list")
            for each in account.open_algos.values()
            if index in (None, each.index) and algo_id in (None, each.id)
        ]

    def _all_algos(self, account: Account, params: Params, now_ms: int) -> Json:
        index = self._index(params, now_ms)
        first_id = whole(params, "algoId") or 0
        start_ms, end_ms, limit = _span(params, now_ms, 500, 1000)
        found = [
            each
            for each in account.algos.values()
            if each.index == index and (each.id >= first_id if first_id else start_ms <= each.created_ms <= end_ms)
        ]
        found = found[:limit] if first_id else found[-limit:]
        return [self._algo_row(each, "list") for each in found]

    def _find_algo(self, account: Account, params: Params) -> Algo | None:
        algo_id, client_id = whole(params, "algoId"), params.get("clientAlgoId", "")
        if algo_id is None and not client_id:
            raise RequestError(-1102, "Param 'algoId' or 'clientAlgoId' must be sent, but both were empty/null!")
        if algo_id is not None:
            return account.algos.get(algo_id)
        found = [each for each in account.algos.values() if each.client_id == client_id]
        return max(found, key=lambda each: (each.is_open, each.id), default=None)

    def _algo_row(self, algo: Algo, told: str) -> dict[str, Json]:
        """`told`: place, query or list; each tells a little more than the one before."""
        own = self._own(algo)
        row: dict[str, Json] = {
            "algoId": algo.id,
            "clientAlgoId": algo.client_id,
            "algoType": "CONDITIONAL",
            "orderType": algo.kind,
            "symbol": own.symbol,
            "side": algo.side,
            "positionSide": algo.position_side,
            "timeInForce": algo.time_in_force,
            "quantity": quantity_text(own, algo.quantity),
            "algoStatus": algo.status,
            "triggerPrice": price_text(own, algo.trigger),
            "price": price_text(own, algo.price),
            "icebergQuantity": None,
            "selfTradePreventionMode": algo.stp,
            "workingType": "MARK_PRICE" if algo.by_mark else "CONTRACT_PRICE",
            "priceMatch": "NONE",
            "closePosition": algo.close_position,
            "priceProtect": algo.price_protect,
            "reduceOnly": algo.reduce_only,
            "activatePrice": price_text(own, algo.activate) if algo.activate else "",
            "callbackRate": callback_text(algo),
            "createTime": algo.created_ms,
            "updateTime": algo.updated_ms,
            "triggerTime": algo.triggered_ms,
            "goodTillDate": algo.good_till_ms,
        }
        if told == "place":
            return row
        child = algo.order
        row |= {
            "actualOrderId": "" if child is None else str(child.id),
            "actualPrice": money(0 if child is None else child.average),
            "actualQty": quantity_text(own, 0 if child is None else child.filled),
            "actualType": "" if child is None else child.kind,
            "tpOrderType": "",
        }
        if told == "list":
            zero = price_text(own, 0)
            row |= {"tpTriggerPrice": zero, "tpPrice": zero, "slTriggerPrice": zero, "slPrice": zero}
        return row

    # ---- what has happened

    def _user_trades(self, account: Account, params: Params, now_ms: int) -> Json:
        symbol = self._exchange.symbols[self._index(params, now_ms)]
        order_id, from_id = whole(params, "orderId"), whole(params, "fromId")
        if from_id is not None and ("startTime" in params or "endTime" in params):
            raise RequestError(-1128, "Combination of optional parameters invalid.")
        start_ms, end_ms, limit = _span(params, now_ms, 500, 1000)
        found = [
            fill
            for fill in account.fills
            if fill["symbol"] == symbol
            and order_id in (None, fill["orderId"])
            and (fill["id"] >= from_id if from_id is not None else start_ms <= fill["time"] <= end_ms)
        ]
        forward = from_id is not None or "startTime" in params
        return found[:limit] if forward else found[-limit:]

    def _income(self, account: Account, params: Params, now_ms: int) -> Json:
        symbol = self._exchange.symbols[self._index(params, now_ms)] if "symbol" in params else None
        kind = params.get("incomeType", "")
        start_ms, end_ms, limit = _span(params, now_ms, 100, 1000, most_ms=90 * DAY_MS)
        found = [
            row
            for row in account.incomes
            if symbol in (None, row["symbol"]) and kind in ("", row["incomeType"]) and start_ms <= row["time"] <= end_ms
        ]
        return found[:limit] if "startTime" in params else found[-limit:]

    def _force_orders(self, account: Account, params: Params, now_ms: int) -> Json:
        index = self._index(params, now_ms) if "symbol" in params else None
        kinds = {"": ("autoclose", "adl"), "LIQUIDATION": ("autoclose",), "ADL": ("adl",)}
        wanted = kinds.get(params.get("autoCloseType", ""), ())
        found = [each for each in account.forced if index in (None, each.index) and each.client_id.startswith(wanted)]
        return [{**self._queried(each), "type": "LIMIT", "origType": "LIMIT"} for each in found[-50:]]

    # ---- what is held

    def _position_risk(self, version: str, account: Account, params: Params, now_ms: int) -> Json:
        wanted = [self._index(params, now_ms)] if "symbol" in params else None
        if wanted is None and version == "v2":
            wanted = [index for index in range(len(self._exchange.symbols)) if self._exchange.is_known(index, now_ms)]
        if wanted is None:
            ordered = {each.index for each in account.open_orders.values()}
            wanted = sorted(ordered | {each.index for each in account.held()})
        elif version == "v3":
            live = {each.index for each in account.open_orders.values()} | {each.index for each in account.held()}
            wanted = [index for index in wanted if index in live]
        rows = []
        for index in wanted:
            held = self._positions(account, index)
            if version == "v3" and len(held) > 1:
                held = [each for each in held if each.quantity] or held
            rows += [self._position_row(version, account, each) for each in held]
        return rows

    def _position_row(self, version: str, account: Account, position: Position) -> dict[str, Json]:
        own, index, mark = self._own(position), position.index, self.engine.mark(position.index)
        is_isolated = index in account.isolated
        unrealized, notional = position.unrealized(mark), position.notional(mark)
        margin = account.position_margin(position, self.engine.mark)
        row: dict[str, Json] = {
            "symbol": own.symbol,
            "positionSide": position.side,
            "positionAmt": quantity_text(own, position.quantity),
            "entryPrice": money(position.entry),
            "breakEvenPrice": money(position.entry),
            "markPrice": money(mark),
            "unRealizedProfit": money(unrealized),
            "liquidationPrice": money(account.liquidation_price(position, self.engine.mark)),
            "isolatedMargin": money(position.isolated_wallet + unrealized if is_isolated and notional else 0),
            "notional": money(notional if position.quantity >= 0 else -notional),
            "isolatedWallet": money(position.isolated_wallet),
            "updateTime": position.updated_ms,
        }
        if version == "v2":
            leverage = account.leverage(index)
            return row | {
                "marginType": "isolated" if is_isolated else "cross",
                "isAutoAddMargin": "false",
                "leverage": str(leverage),
                "maxNotionalValue": str(most_notional(leverage) // ONE),
            }
        ordered = account.order_margin(index)
        return row | {
            "marginAsset": "USDT",
            "initialMargin": money(margin + ordered),
            "maintMargin": money(maintenance(notional)),
            "positionInitialMargin": money(margin),
            "openOrderInitialMargin": money(ordered),
            "adl": 1 if position.quantity else 0,
            "bidNotional": money(self._ordered_notional(account, index, "BUY")),
            "askNotional": money(self._ordered_notional(account, index, "SELL")),
        }

    def _ordered_notional(self, account: Account, index: int, side: str) -> int:
        return sum(
            each.price * each.remaining // ONE
            for each in account.open_orders.values()
            if each.index == index and each.side == side
        )

    def _positions(self, account: Account, index: int) -> list[Position]:
        sides = ("LONG", "SHORT") if account.is_hedged else ("BOTH",)
        return [account.positions.get((index, side)) or Position(index, side) for side in sides]

    def _account_info(self, version: str, account: Account, params: Params, now_ms: int) -> Json:
        mark = self.engine.mark
        unrealized, cross_unrealized = account.unrealized(mark), account.cross_unrealized(mark)
        held_margin = sum(account.position_margin(each, mark) for each in account.held())
        needed = sum(maintenance(each.notional(mark(each.index))) for each in account.held())
        ordered, available = account.order_margin(), account.available(mark)
        asset: dict[str, Json] = {
            "asset": "USDT",
            "walletBalance": money(account.wallet),
            "unrealizedProfit": money(unrealized),
            "marginBalance": money(account.wallet + unrealized),
            "maintMargin": money(needed),
            "initialMargin": money(held_margin + ordered),
            "positionInitialMargin": money(held_margin),
            "openOrderInitialMargin": money(ordered),
            "crossWalletBalance": money(account.cross_wallet()),
            "crossUnPnl": money(cross_unrealized),
            "availableBalance": money(available),
            "maxWithdrawAmount": money(available),
            "updateTime": now_ms,
        }
        totals = {
            "totalInitialMargin": asset["initialMargin"],
            "totalMaintMargin": asset["maintMargin"],
            "totalWalletBalance": asset["walletBalance"],
            "totalUnrealizedProfit": asset["unrealizedProfit"],
            "totalMarginBalance": asset["marginBalance"],
            "totalPositionInitialMargin": asset["positionInitialMargin"],
            "totalOpenOrderInitialMargin": asset["openOrderInitialMargin"],
            "totalCrossWalletBalance": asset["crossWalletBalance"],
            "totalCrossUnPnl": asset["crossUnPnl"],
            "availableBalance": asset["availableBalance"],
            "maxWithdrawAmount": asset["maxWithdrawAmount"],
        }
        if version == "v3":
            positions = [self._account_position(account, each) for each in account.held()]
            return {**totals, "assets": [asset], "positions": positions}
        known = [index for index in range(len(self._exchange.symbols)) if self._exchange.is_known(index, now_ms)]
        return {
            "feeTier": 0,
            "feeBurn": False,
            "canTrade": account.can_trade,
            "canDeposit": True,
            "canWithdraw": account.can_withdraw,
            "updateTime": 0,
            "multiAssetsMargin": account.is_multi_assets,
            "tradeGroupId": -1,
            **totals,
            "assets": [{**asset, "marginAvailable": True}],
            "positions": [
                {
                    **self._account_position(account, each),
                    "leverage": str(account.leverage(index)),
                    "isolated": index in account.isolated,
                    "entryPrice": money(each.entry),
                    "breakEvenPrice": money(each.entry),
                    "maxNotional": str(most_notional(account.leverage(index)) // ONE),
                    "bidNotional": money(self._ordered_notional(account, index, "BUY")),
                    "askNotional": money(self._ordered_notional(account, index, "SELL")),
                    "positionInitialMargin": money(account.position_margin(each, mark)),
                    "openOrderInitialMargin": money(account.order_margin(index)),
                }
                for index in known
                for each in self._positions(account, index)
            ],
        }

    def _account_position(self, account: Account, position: Position) -> dict[str, Json]:
        own, mark = self._own(position), self.engine.mark(position.index)
        notional, unrealized = position.notional(mark), position.unrealized(mark)
        is_isolated = position.index in account.isolated
        return {
            "symbol": own.symbol,
            "positionSide": position.side,
            "positionAmt": quantity_text(own, position.quantity),
            "unrealizedProfit": money(unrealized),
            "isolatedMargin": money(position.isolated_wallet + unrealized if is_isolated and notional else 0),
            "notional": money(notional if position.quantity >= 0 else -notional),
            "isolatedWallet": money(position.isolated_wallet),
            "initialMargin": money(account.position_margin(position, self.engine.mark)),
            "maintMargin": money(maintenance(notional)),
            "updateTime": position.updated_ms,
        }

    def _balance(self, version: str, account: Account, params: Params, now_ms: int) -> Json:
        available = account.available(self.engine.mark)
        return [
            {
                "accountAlias": "SgsR",
                "asset": "USDT",
                "balance": money(account.wallet),
                "crossWalletBalance": money(account.cross_wallet()),
                "crossUnPnl": money(account.cross_unrealized(self.engine.mark)),
                "availableBalance": money(available),
                "maxWithdrawAmount": money(available),
                "marginAvailable": True,
                "updateTime": now_ms,
            }
        ]

    # ---- settings

    def _account_config(self, account: Account, params: Params, now_ms: int) -> Json:
        return {
            "feeTier": 0,
            "canTrade": account.can_trade,
            "canDeposit": True,
            "canWithdraw": account.can_withdraw,
            "dualSidePosition": account.is_hedged,
            "updateTime": 0,
            "multiAssetsMargin": account.is_multi_assets,
            "tradeGroupId": -1,
        }

    def _symbol_config(self, account: Account, params: Params, now_ms: int) -> Json:
        return [
            {
                "symbol": self._exchange.symbols[index],
                "marginType": "ISOLATED" if index in account.isolated else "CROSSED",
                "isAutoAddMargin": "false",
                "leverage": account.leverage(index),
                "maxNotionalValue": str(most_notional(account.leverage(index)) // ONE),
            }
            for index in self._wanted(params, now_ms)
        ]

    def _leverage_bracket(self, account: Account, params: Params, now_ms: int) -> Json:
        brackets = [
            {
                "bracket": each.number,
                "initialLeverage": each.leverage,
                "notionalCap": each.cap // ONE,
                "notionalFloor": each.floor // ONE,
                "maintMarginRatio": each.rate / ONE,
                "cum": each.cum / ONE,
            }
            for each in BRACKETS
        ]
        return [
            {"symbol": self._exchange.symbols[index], "notionalCoef": 1.0, "brackets": brackets}
            for index in self._wanted(params, now_ms)
        ]

    def _commission_rate(self, account: Account, params: Params, now_ms: int) -> Json:
        return {
            "symbol": self._exchange.symbols[self._index(params, now_ms)],
            "makerCommissionRate": f"{MAKER_FEE / ONE:.6f}",
            "takerCommissionRate": f"{TAKER_FEE / ONE:.6f}",
            "rpiCommissionRate": "0.000050",
        }

    def _order_limits(self, account: Account, params: Params, now_ms: int) -> Json:
        return self.order_limits()

    def order_limits(self) -> list[dict[str, Json]]:
        return [
            {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": self.orders_10s},
            {"rateLimitType": "ORDERS", "interval": "MINUTE", "intervalNum": 1, "limit": self.orders_1m},
        ]

    def order_counts(self, key: str) -> tuple[int, int]:
        """Orders of this account in the last ten seconds and in the last minute."""
        account, now_ms = self.engine.accounts[key], self._clock.now_ms()
        return (
            sum(at > now_ms - 10_000 for at in account.sent_10s),
            sum(at > now_ms - 60_000 for at in account.sent_1m),
        )

    def _get_dual(self, account: Account, params: Params, now_ms: int) -> Json:
        return {"dualSidePosition": account.is_hedged}

    def _set_dual(self, account: Account, params: Params, now_ms: int) -> Json:
        required(params, "dualSidePosition")
        wanted = truth_value(params, "dualSidePosition")
        if wanted == account.is_hedged:
            raise RequestError(-4059, "No need to change position side.")
        if account.open_orders or account.open_algos:
            raise RequestError(-4067, "Position side cannot be changed if there exists open orders.")
        if account.held():
            raise RequestError(-4068, "Position side cannot be changed if there exists position.")
        account.is_hedged = wanted
        account.positions.clear()
        return _SUCCESS

    def _get_multi_assets(self, account: Account, params: Params, now_ms: int) -> Json:
        return {"multiAssetsMargin": account.is_multi_assets}

    def _set_multi_assets(self, account: Account, params: Params, now_ms: int) -> Json:
        required(params, "multiAssetsMargin")
        wanted = truth_value(params, "multiAssetsMargin")
        if wanted == account.is_multi_assets:
            raise RequestError(-4171, "No need to change multi-assets mode.")
        account.is_multi_assets = wanted
        self.emit(account.key, multi_assets_event(wanted, now_ms))
        return _SUCCESS

    def _trading_status(self, account: Account, params: Params, now_ms: int) -> Json:
        return {"indicators": {}, "updateTime": now_ms}

    def _adl_quantile(self, account: Account, params: Params, now_ms: int) -> Json:
        index = self._index(params, now_ms) if "symbol" in params else None
        return [
            {"symbol": self._own(each).symbol, "adlQuantile": {each.side: 1}}
            for each in account.held()
            if index in (None, each.index)
        ]

    def _set_leverage(self, account: Account, params: Params, now_ms: int) -> Json:
        index = self._index(params, now_ms)
        leverage = whole(params, "leverage")
        if leverage is None:
            required(params, "leverage")
        assert leverage is not None
        if not 1 <= leverage <= MOST_LEVERAGE:
            raise RequestError(-4028, f"Leverage {leverage} is not valid")
        held = [each for each in account.held() if each.index == index]
        if held and index in account.isolated and leverage < account.leverage(index):
            raise RequestError(
                -4161, "Leverage reduction is not supported in Isolated Margin Mode with open positions."
            )
        if any(each.notional(self.engine.mark(index)) > most_notional(leverage) for each in held):
            raise RequestError(-2027, "Exceeded the maximum allowable position at current leverage.")
        before = account.leverage(index)
        account.leverages[index] = leverage
        if account.available(self.engine.mark) == 0 and leverage < before:
            account.leverages[index] = before
            raise RequestError(-2028, "Leverage is smaller than permitted: insufficient margin balance.")
        if leverage != before:
            self.emit(account.key, leverage_event(self.engine.own(index), leverage, now_ms))
        return {
            "leverage": leverage,
            "maxNotionalValue": str(most_notional(leverage) // ONE),
            "symbol": params["symbol"],
        }

    def _set_margin_type(self, account: Account, params: Params, now_ms: int) -> Json:
        index = self._index(params, now_ms)
        wanted = one_of(params, "marginType", ("ISOLATED", "CROSSED")) == "ISOLATED"
        if wanted == (index in account.isolated):
            raise RequestError(-4046, "No need to change margin type.")
        if any(each.index == index for each in account.open_orders.values()):
            raise RequestError(-4047, "Margin type cannot be changed if there exists open orders.")
        if any(each.index == index for each in account.held()):
            raise RequestError(-4048, "Margin type cannot be changed if there exists position.")
        if wanted and account.is_multi_assets:
            raise RequestError(-4168, "Unable to adjust to isolated-margin mode under the Multi-Assets mode.")
        (account.isolated.add if wanted else account.isolated.discard)(index)
        return _SUCCESS

    def _move_margin(self, account: Account, params: Params, now_ms: int) -> Json:
        index = self._index(params, now_ms)
        amount = _mandatory(params, "amount")
        kind = one_of(params, "type", ("1", "2"))
        side = params.get("positionSide") or "BOTH"
        position = account.positions.get((index, side))
        if index not in account.isolated or position is None or not position.quantity:
            raise RequestError(-4054, "Cannot add position margin: position is 0.")
        if kind == "1" and amount > account.available(self.engine.mark):
            raise RequestError(-4051, "Isolated balance insufficient.")
        least = account.position_margin(position, self.engine.mark)
        if kind == "2" and position.isolated_wallet - amount < least:
            raise RequestError(-4051, "Isolated balance insufficient.")
        self.engine.move_margin(account, position, amount if kind == "1" else -amount, now_ms)
        return {
            "amount": amount / ONE,
            "code": 200,
            "msg": "Successfully modify position margin.",
            "type": int(kind),
        }

    def _api_restrictions(self, account: Account, params: Params, now_ms: int) -> Json:
        return {
            "ipRestrict": account.bound_to_address,
            "createTime": 1_767_225_600_000,
            "enableReading": True,
            "enableWithdrawals": account.can_withdraw,
            "enableInternalTransfer": False,
            "enableMargin": False,
            "enableFutures": account.can_trade,
            "permitsUniversalTransfer": False,
            "enableVanillaOptions": False,
            "enableFixApiTrade": False,
            "enableFixReadOnly": False,
            "enableSpotAndMarginTrading": False,
            "enablePortfolioMarginTrading": False,
        }

    # ---- the user data stream's key

    def _make_listen_key(self, account: Account, params: Params, now_ms: int) -> Json:
        if not account.listen_key:
            account.listen_key = f"{self._rng.getrandbits(256):064x}"
        account.listen_until_ms = now_ms + LISTEN_KEY_MS
        return {"listenKey": account.listen_key}

    def _keep_listen_key(self, account: Account, params: Params, now_ms: int) -> Json:
        if not account.listen_key:
            raise RequestError(-1125, "This listenKey does not exist.")
        account.listen_until_ms = now_ms + LISTEN_KEY_MS
        return {"listenKey": account.listen_key}

    def _drop_listen_key(self, account: Account, params: Params, now_ms: int) -> Json:
        self.expire_listen_key(account.key)
        return {}

    # ---- parameters that orders have in common

    def _position_side(self, account: Account, params: Params) -> tuple[str, bool]:
        """Position side, and whether the order may only reduce."""
        position_side = one_of(params, "positionSide", _POSITION_SIDES, "BOTH")
        reduce_only = truth_value(params, "reduceOnly")
        if account.is_hedged == (position_side == "BOTH"):
            raise RequestError(-4061, "Order's position side does not match user's setting.")
        if account.is_hedged and "reduceOnly" in params:
            raise RequestError(-1106, "Parameter 'reduceonly' sent when not required.")
        return position_side, reduce_only

    def _client_id(self, params: Params, name: str) -> str:
        text = params.get(name, "")
        if not text:
            return self.engine.free_client_id()
        if len(text) > 36:
            raise RequestError(-4015, "Client order id length should not be more than 36 chars")
        if not _CLIENT_ID.fullmatch(text):
            legal = "^[\\.A-Z\\:/a-z0-9_-]{1,36}$"
            raise RequestError(-1100, f"Illegal characters found in parameter '{name}'; legal range is '{legal}'.")
        return text

    def _index(self, params: Params, now_ms: int) -> int:
        index = self._exchange.index_of.get(required(params, "symbol"))
        if index is None or not self._exchange.is_known(index, now_ms):
            raise RequestError(-1121, "Invalid symbol.")
        return index

    def _wanted(self, params: Params, now_ms: int) -> list[int]:
        if "symbol" in params:
            return [self._index(params, now_ms)]
        return [index for index in range(len(self._exchange.symbols)) if self._exchange.is_known(index, now_ms)]

    def _own(self, thing: Order | Algo | Position) -> Instrument:
        return self._exchange.instruments[thing.index]

    def _last_trade(self, index: int) -> float:
        now_ms = self._clock.now_ms()
        detail = self._exchange.detail(index, now_ms // HOUR_MS)
        passed = detail.price[detail.time_ms <= now_ms]
        own = self._exchange.instruments[index]
        if len(passed):
            return int(passed[-1]) / float(10**own.price_decimals)
        return int(self._exchange.minutes(index, now_ms // HOUR_MS * 60 - 1, 1)[0, 3]) / float(10**own.price_decimals)


_Respond = Callable[[Account, Params, int], Json]


@dataclass(frozen=True, slots=True)
class _Route:
    respond: _Respond
    weight: Callable[[Params], int]
    orders_10s: int
    """How many orders it counts for in ten seconds; in a minute it counts for one."""
    signed: bool
    trades: bool


def _refusal(error: RequestError) -> Answer:
    return refusal(error.status, error.code, str(error))


def _client_id_of(params: Params) -> str:
    names = ("newClientOrderId", "clientAlgoId", "origClientOrderId", "orderId", "algoId")
    return next((params[name] for name in names if params.get(name)), "")


def _recv_window(params: Params) -> int:
    recv_window = whole(params, "recvWindow")
    if recv_window is not None and recv_window > MOST_RECV_WINDOW_MS:
        raise RequestError(-1131, "recvWindow must be less than 60000")
    return 5000 if recv_window is None else recv_window


def _mandatory(params: Params, name: str) -> int:
    required(params, name)
    value = decimal(params, name)
    assert value is not None
    return value


def _good_till(params: Params, time_in_force: str, now_ms: int) -> int:
    if time_in_force != "GTD":
        return 0
    good_till_ms = whole(params, "goodTillDate")
    if good_till_ms is None:
        required(params, "goodTillDate")
    assert good_till_ms is not None
    good_till_ms = good_till_ms // 1000 * 1000
    if good_till_ms <= now_ms + 600_000:
        raise RequestError(-5040, "The goodTillDate timestamp must be greater than the current time plus 600 seconds.")
    return good_till_ms


def _is_forgotten(order: Order, now_ms: int) -> bool:
    """Orders that ended without a fill are found for three days, all others for ninety."""
    if order.is_open:
        return False
    return now_ms - order.updated_ms > (90 if order.filled else 3) * DAY_MS


def _span(params: Params, now_ms: int, default: int, most: int, most_ms: int = 7 * DAY_MS) -> tuple[int, int, int]:
    """Start, end (both included) and limit of a look into the past: seven days unless told otherwise."""
    limit = whole(params, "limit")
    limit = default if limit is None else limit
    if not 1 <= limit <= most:
        raise RequestError(-1130, "Data sent for parameter 'limit' is not valid.")
    start_ms, end_ms = whole(params, "startTime"), whole(params, "endTime")
    if start_ms is None:
        end_ms = now_ms if end_ms is None else end_ms
        start_ms = end_ms - 7 * DAY_MS
    elif end_ms is None:
        end_ms = min(now_ms, start_ms + most_ms)
    if end_ms < start_ms:
        raise RequestError(-4166, "Search window is restricted to recent 90 days only.")
    if end_ms - start_ms > most_ms:
        raise RequestError(-4165, f"Invalid time interval: more than {most_ms // DAY_MS} days.")
    return start_ms, end_ms, limit


def _list(params: Params, name: str, most: int) -> list[Json]:
    try:
        values = msgspec.json.decode(required(params, name), type=list[Any])
    except msgspec.DecodeError:
        raise RequestError(-1130, f"Data sent for parameter '{name}' is not valid.") from None
    if not 1 <= len(values) <= most:
        raise RequestError(-4082, f"Invalid number of batch place orders: it must be between 1 and {most}.")
    return values


def _text(value: Json) -> str:
    """A value of a JSON object as the same parameter in a query would have it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _units(text: str) -> int:
    return round(float(text) * ONE)
