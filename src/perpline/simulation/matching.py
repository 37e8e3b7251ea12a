"""Orders of the accounts against the market that the feed shows. The rule, in words: docs/simulated-exchange.md.

The market does not notice: what an account buys is still in the book for the next one, and accounts do not trade with
each other. Nothing here reads a clock or waits; whoever calls says what time it is.
"""

import random
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from perpline.simulation.accounts import (
    LIQUIDATION_FEE,
    MAKER_FEE,
    MOST_KEPT,
    ONE,
    TAKER_FEE,
    Account,
    Algo,
    Order,
    Position,
    maintenance,
    most_notional,
)
from perpline.simulation.exchange import Book, Exchange
from perpline.simulation.filters import Filters, filters_of
from perpline.simulation.instruments import Instrument
from perpline.simulation.market import HOUR_MS
from perpline.simulation.rest import RequestError
from perpline.simulation.user_events import (
    Event,
    account_event,
    algo_event,
    margin_call_event,
    money,
    order_event,
    position_row,
    price_text,
    quantity_text,
    trade_lite_event,
)

Level = tuple[int, int]
Depth = Callable[[int, int], tuple[Book, list[Level], list[Level]]]
"""(contract, levels) -> book, bids, asks shown now, as `Exchange.depth` gives them."""
Price = Callable[[int], float]

MOST_LEVELS: Final = 1000
MOST_ALGOS: Final = 200
MARGIN_CALL_AT: Final = 80
"""Per cent of the margin that maintenance needs."""


class Engine:
    """The matching engine. `emit(key, event)` is told every user data event at the instant it happens."""

    def __init__(self, exchange: Exchange, depth: Depth, mark: Price, last: Price, rng: random.Random) -> None:
        self.accounts: dict[str, Account] = {}
        self.emit: Callable[[str, Event], None] = lambda key, event: None
        self.child_keeps_id = True
        """Whether the order of a triggered algo order has its client id, or one of its own. Both are survivable."""
        self.child_first = True
        """Whether the child's events come before the TRIGGERED of its parent (seen in 2026), or after it."""
        self.countdown_covers_algos = False
        """Whether countdownCancelAll also cancels conditional orders. The documentation does not say."""
        self._exchange = exchange
        self._depth = depth
        self._mark = mark
        self._last = last
        self._rng = rng
        self._filters: dict[int, Filters] = {}
        self._resting: dict[int, list[tuple[Account, Order]]] = {}
        self._left: dict[int, tuple[int, list[int]]] = {}
        """By contract: the book's update, and what resting orders may still take of its best ask and best bid."""
        self._order_id = rng.randrange(4 * 10**9, 9 * 10**9)
        self._algo_id = 2 * 10**15 + rng.randrange(10**9)
        self._trade_id = rng.randrange(10**8, 10**9)
        self._tran_id = rng.randrange(10**17, 9 * 10**17)
        self._stepped_ms = 0
        self._marks: dict[int, int] | None = None
        """Mark prices that were looked up in this step; None outside of one."""

    # ---- prices and names

    def own(self, index: int) -> Instrument:
        return self._exchange.instruments[index]

    def filters(self, index: int) -> Filters:
        found = self._filters.get(index)
        if found is None:
            found = self._filters[index] = filters_of(self.own(index))
        return found

    def mark(self, index: int) -> int:
        """The mark price in 1e-8."""
        if self._marks is None:
            return round(self._mark(index) * ONE)
        known = self._marks.get(index)
        if known is None:
            known = self._marks[index] = round(self._mark(index) * ONE)
        return known

    def last(self, index: int) -> int:
        """The price of the last trade in 1e-8."""
        return round(self._last(index) * ONE)

    def next_order_id(self) -> int:
        self._order_id += self._rng.randint(1, 9)
        return self._order_id

    def next_algo_id(self) -> int:
        self._algo_id += self._rng.randint(1, 9)
        return self._algo_id

    def free_client_id(self) -> str:
        """As the exchange makes one where a client has not."""
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
        return "".join(self._rng.choices(letters, k=22))

    # ---- ordinary orders

    def place(self, account: Account, order: Order, now_ms: int) -> None:
        """Take the order, match it, and let the rest of it rest or expire. Raises RequestError: nothing has changed."""
        levels = self.admit(account, order, now_ms)
        account.orders[order.id] = order
        account.open_orders[order.id] = order
        if len(account.orders) > MOST_KEPT:
            account.orders.pop(next(iter(account.orders)))
        self._tell_order(account, order, "NEW", now_ms)
        self._match(account, order, levels, now_ms)
        self._sweep(account, order.index, now_ms)

    def admit(self, account: Account, order: Order, now_ms: int) -> list[Level]:
        """The levels of the book within the order's limit. Raises RequestError where it would not be taken."""
        if self._exchange.status(order.index, now_ms) != "TRADING":
            raise RequestError(-4140, "Invalid symbol status for opening position.")
        closable = account.closable(order.index, order.position_side, order.side)
        closes_only = order.reduce_only or order.position_side == ("LONG" if order.side == "SELL" else "SHORT")
        if closes_only and (not closable or (not order.reduce_only and order.quantity > closable)):
            raise RequestError(-2022, "ReduceOnly Order is rejected.")
        if order.reduce_only:
            order.quantity = min(order.quantity, closable)
        levels = self._levels(order)
        if order.kind == "MARKET" and not levels:
            raise RequestError(-4131, "The counterparty's best price does not meet the PERCENT_PRICE filter limit.")
        if order.time_in_force == "GTX" and levels:
            raise RequestError(
                -5022,
                "Due to the order could not be executed as maker, the Post Only order will be rejected. "
                "The order will not be recorded in the order history",
            )
        if order.time_in_force == "FOK" and sum(quantity for _, quantity in levels) < order.quantity:
            raise RequestError(
                -5021,
                "Due to the order could not be filled immediately, the FOK order has been rejected. "
                "The order will not be recorded in the order history",
            )
        self._check_margin(account, order, closable, order.price or levels[0][0])
        return levels

    def cancel(self, account: Account, order: Order, now_ms: int) -> None:
        self._end(account, order, "CANCELED", "CANCELED", now_ms)

    def amend(self, account: Account, order: Order, quantity: int, price: int, modify_id: str, now_ms: int) -> None:
        """Give a resting order another quantity and price. Raises RequestError: nothing has changed."""
        if quantity == order.quantity and price == order.price:
            raise RequestError(-5027, "No need to modify the order.")
        before = (order.quantity, order.price, order.margin)
        closable = account.closable(order.index, order.position_side, order.side)
        order.quantity, order.price = (min(quantity, closable) if order.reduce_only else quantity), price
        order.margin = 0
        if order.quantity <= order.filled:
            order.quantity, order.price, order.margin = before
            self.cancel(account, order, now_ms)
            return
        levels = self._levels(order)
        if order.time_in_force == "GTX" and levels:
            order.quantity, order.price, order.margin = before
            self.cancel(account, order, now_ms)
            return
        try:
            self._check_margin(account, order, closable, price)
        except RequestError:
            order.quantity, order.price, order.margin = before
            raise
        order.amendments += 1
        order.modify_id = modify_id
        order.updated_ms = now_ms
        self._unrest(order)
        self._tell_order(account, order, "AMENDMENT", now_ms)
        self._match(account, order, levels, now_ms)
        self._sweep(account, order.index, now_ms)

    def rests(self, index: int) -> bool:
        """Whether any order rests at this contract."""
        return index in self._resting

    def traded(self, index: int, price: int, quantity: int, buyer_is_maker: bool, now_ms: int) -> None:
        """A trade of the market, in the contract's units: it fills what rests at a better price than it was done at."""
        resting = self._resting.get(index)
        if not resting:
            return
        own = self.own(index)
        price *= 10 ** (8 - own.price_decimals)
        left = quantity * 10 ** (8 - own.quantity_decimals)
        side = "BUY" if buyer_is_maker else "SELL"
        for account, order in self._in_turn(resting, side):
            if (order.price - price) * order.sign <= 0 or not left:
                break
            if order.is_open:
                left -= self._fill_resting(account, order, left, now_ms)

    def _match(self, account: Account, order: Order, levels: list[Level], now_ms: int) -> None:
        """Take what is shown within the limit, then rest or expire."""
        against = self._own_against(account, order)
        for price, shown in levels:
            if not order.remaining or not self._passes_own(account, order, against, price, now_ms):
                return
            self._fill(account, order, price, min(order.remaining, shown), now_ms)
        if order.is_open and order.kind == "LIMIT":
            self._passes_own(account, order, against, order.price, now_ms)
        if not order.is_open:
            return
        if order.kind == "MARKET":
            self._end(account, order, "EXPIRED", "EXPIRED", now_ms, "9")
        elif order.time_in_force in ("IOC", "FOK"):
            self._end(account, order, "EXPIRED", "EXPIRED", now_ms, "2")
        else:
            self._resting.setdefault(order.index, []).append((account, order))

    def _levels(self, order: Order) -> list[Level]:
        """What an order may take now, best first, prices and quantities in 1e-8."""
        own = self.own(order.index)
        to_price, to_quantity = 10 ** (8 - own.price_decimals), 10 ** (8 - own.quantity_decimals)
        limit = order.price
        if order.kind == "MARKET":
            limit = self.mark(order.index) * (ONE + order.sign * self.filters(order.index).take_bound) // ONE
        count = 20
        while True:
            _, bids, asks = self._depth(order.index, count)
            shown = asks if order.side == "BUY" else bids
            levels = [
                (price * to_price, quantity * to_quantity)
                for price, quantity in shown
                if (limit - price * to_price) * order.sign >= 0
            ]
            enough = sum(quantity for _, quantity in levels) >= order.remaining
            if enough or len(levels) < len(shown) or len(shown) < count or count == MOST_LEVELS:
                return levels
            count = min(MOST_LEVELS, count * 8)

    def _own_against(self, account: Account, order: Order) -> list[Order]:
        """The account's own resting orders that this one would meet, best first."""
        found = [
            each
            for owner, each in self._resting.get(order.index, [])
            if owner is account
            and each.side != order.side
            and (order.kind == "MARKET" or (order.price - each.price) * order.sign >= 0)
        ]
        return sorted(found, key=lambda each: (each.price * order.sign, each.id))

    def _passes_own(self, account: Account, order: Order, against: list[Order], price: int, now_ms: int) -> bool:
        """Self-trade prevention on the way to this price; False where the order has ended by it."""
        while against and (price - against[0].price) * order.sign >= 0:
            met = against.pop(0)
            if order.stp in ("EXPIRE_MAKER", "EXPIRE_BOTH"):
                self._end(account, met, "EXPIRED_IN_MATCH", "EXPIRED", now_ms, "1")
            if order.stp in ("EXPIRE_TAKER", "EXPIRE_BOTH"):
                reason = "3" if order.time_in_force == "IOC" else "1"
                self._end(account, order, "EXPIRED_IN_MATCH", "EXPIRED", now_ms, reason)
                return False
        return True

    def _check_margin(self, account: Account, order: Order, closable: int, price: int) -> None:
        """Note what margin the opening part needs. Raises RequestError where the account has not got it."""
        opening = order.remaining - min(order.remaining, closable)
        if not opening:
            return
        leverage = account.leverage(order.index)
        notional = price * opening // ONE
        held = account.position(order.index, order.position_side)
        before = held.notional(price) if held.quantity * order.sign > 0 else 0
        if before + notional > most_notional(leverage):
            raise RequestError(-2027, "Exceeded the maximum allowable position at current leverage.")
        margin = notional // leverage
        if margin + notional * TAKER_FEE // ONE > account.available(self.mark):
            raise RequestError(-2019, "Margin is insufficient.")
        order.margin = margin * order.quantity // order.remaining

    def _fill(
        self,
        account: Account,
        order: Order,
        price: int,
        quantity: int,
        now_ms: int,
        *,
        maker: bool = False,
        execution: str = "TRADE",
    ) -> None:
        own = self.own(order.index)
        position = account.position(order.index, order.position_side)
        before = position.quantity
        realized = position.trade(order.sign * quantity, price)
        if order.index in account.isolated:
            kept = abs(before) if before * position.quantity > 0 else 0
            opened = max(0, abs(position.quantity) - kept)
            position.isolated_wallet += price * opened // ONE // account.leverage(order.index)
        position.updated_ms = order.updated_ms = now_ms
        notional = price * quantity // ONE
        fee = notional * (MAKER_FEE if maker else TAKER_FEE) // ONE
        account.wallet += realized - fee
        order.filled += quantity
        order.cost += price * quantity
        order.fees += fee
        order.status = "PARTIALLY_FILLED" if order.remaining else "FILLED"
        self._trade_id += self._rng.randint(1, 3)
        fill: dict[str, Any] = {
            "symbol": own.symbol,
            "id": self._trade_id,
            "orderId": order.id,
            "side": order.side,
            "positionSide": order.position_side,
            "price": price_text(own, price),
            "qty": quantity_text(own, quantity),
            "quoteQty": money(notional),
            "baseQty": "0",
            "realizedPnl": money(realized),
            "commission": money(fee),
            "commissionAsset": "USDT",
            "marginAsset": "USDT",
            "pair": own.symbol,
            "buyer": order.side == "BUY",
            "maker": maker,
            "time": now_ms,
        }
        account.fills.append(fill)
        tran_id = self._next_tran_id()
        if before * order.sign < 0:
            self._book(account, "REALIZED_PNL", realized, own.symbol, now_ms, tran_id, str(self._trade_id))
        self._book(account, "COMMISSION", -fee, own.symbol, now_ms, tran_id, str(self._trade_id))
        if execution == "TRADE":
            self.emit(account.key, trade_lite_event(own, order, fill, now_ms))
        self._tell_account(account, "ORDER", now_ms, [position])
        self.emit(account.key, order_event(own, order, execution, now_ms, fill))
        if order.status == "FILLED":
            self._ended(account, order, now_ms)

    def _end(self, account: Account, order: Order, status: str, execution: str, now_ms: int, reason: str = "0") -> None:
        order.status = status
        order.updated_ms = now_ms
        self._tell_order(account, order, execution, now_ms, reason)
        self._ended(account, order, now_ms)

    def _ended(self, account: Account, order: Order, now_ms: int) -> None:
        account.open_orders.pop(order.id, None)
        self._unrest(order)
        algo = account.algos.get(order.algo_id)
        if algo is not None and algo.status == "TRIGGERED":
            self._set_algo(account, algo, "FINISHED", now_ms)

    def _unrest(self, order: Order) -> None:
        resting = self._resting.get(order.index)
        if resting:
            self._resting[order.index] = [each for each in resting if each[1] is not order]
            if not self._resting[order.index]:
                del self._resting[order.index]

    def _sweep(self, account: Account, index: int, now_ms: int) -> None:
        """End what depends on a position that is gone."""
        for order in [each for each in account.open_orders.values() if each.index == index and each.reduce_only]:
            if not account.closable(index, order.position_side, order.side):
                self._end(account, order, "EXPIRED", "EXPIRED", now_ms, "4")
        for algo in [each for each in account.open_algos.values() if each.index == index]:
            if algo.time_in_force == "GTE_GTC" and not account.closable(index, algo.position_side, algo.side):
                self._set_algo(account, algo, "EXPIRED", now_ms)

    # ---- conditional orders

    def place_algo(self, account: Account, algo: Algo, now_ms: int) -> None:
        """Take a conditional order. Raises RequestError: nothing has changed."""
        if len(account.open_algos) >= MOST_ALGOS:
            raise RequestError(-4045, "Reach max stop order limit.")
        if not self._exchange.is_traded(algo.index, now_ms):
            raise RequestError(-4140, "Invalid symbol status for opening position.")
        if algo.time_in_force == "GTE_GTC" and not account.closable(algo.index, algo.position_side, algo.side):
            raise RequestError(
                -4509,
                "Time in Force (TIF) GTE can only be used with open positions. "
                "Please ensure that positions are available.",
            )
        if algo.close_position and any(
            each.close_position and (each.index, each.side, each.kind) == (algo.index, algo.side, algo.kind)
            for each in account.open_algos.values()
        ):
            raise RequestError(
                -4130, "An open stop or take profit order with GTE and closePosition in the direction is existing."
            )
        price = self.mark(algo.index) if algo.by_mark else self.last(algo.index)
        if algo.is_trailing:
            # Its activation price is to be on the side the market has not reached.
            if algo.activate and (price - algo.activate) * (1 if algo.side == "BUY" else -1) <= 0:
                raise RequestError(-2021, "Order would immediately trigger.")
        elif self._is_met(algo, price):
            raise RequestError(-2021, "Order would immediately trigger.")
        account.algos[algo.id] = algo
        account.open_algos[algo.id] = algo
        if len(account.algos) > MOST_KEPT:
            account.algos.pop(next(iter(account.algos)))
        self._tell_algo(account, algo, now_ms)
        if algo.is_trailing and not algo.activate:
            self._activate(account, algo, price, now_ms)

    def cancel_algo(self, account: Account, algo: Algo, now_ms: int) -> None:
        self._set_algo(account, algo, "CANCELED", now_ms)

    def _turn_algos(self, account: Account, now_ms: int, new_marks: bool) -> None:
        prices: dict[tuple[int, bool], int] = {}
        for algo in list(account.open_algos.values()):
            if not algo.is_open or (algo.by_mark and not new_marks):
                continue
            if algo.good_till_ms and now_ms >= algo.good_till_ms:
                self._set_algo(account, algo, "EXPIRED", now_ms)
                continue
            key = (algo.index, algo.by_mark)
            price = prices.get(key)
            if price is None:
                price = prices[key] = self.mark(algo.index) if algo.by_mark else self.last(algo.index)
            met = self._trails(account, algo, price, now_ms) if algo.is_trailing else self._is_met(algo, price)
            if met and self._exchange.status(algo.index, now_ms) == "TRADING" and self._is_unprotected(algo):
                self._trigger(account, algo, now_ms)

    def _is_met(self, algo: Algo, price: int) -> bool:
        rises = (algo.side == "BUY") == algo.kind.startswith("STOP")
        return price >= algo.trigger if rises else price <= algo.trigger

    def _trails(self, account: Account, algo: Algo, price: int, now_ms: int) -> bool:
        """Follow the price; whether it has come back by the callback rate."""
        sign = 1 if algo.side == "BUY" else -1
        if not algo.is_activated:
            if (algo.activate - price) * sign >= 0:
                self._activate(account, algo, price, now_ms)
            return False
        if (price - algo.extreme) * sign < 0:
            algo.extreme = price
        algo.trigger = algo.extreme * (ONE + sign * algo.callback) // ONE
        return (price - algo.trigger) * sign >= 0

    def _activate(self, account: Account, algo: Algo, price: int, now_ms: int) -> None:
        algo.is_activated = True
        algo.extreme = price
        algo.updated_ms = now_ms
        self._tell_algo(account, algo, now_ms)

    def _is_unprotected(self, algo: Algo) -> bool:
        """Whether mark and last price are near enough for an order with priceProtect."""
        if not algo.price_protect:
            return True
        mark = self.mark(algo.index)
        return abs(mark - self.last(algo.index)) * ONE <= mark * self.filters(algo.index).trigger_protect

    def _trigger(self, account: Account, algo: Algo, now_ms: int) -> None:
        algo.triggered_ms = now_ms
        self._set_algo(account, algo, "TRIGGERING", now_ms)
        closable = account.closable(algo.index, algo.position_side, algo.side)
        order = Order(
            id=self.next_order_id(),
            client_id=algo.client_id if self.child_keeps_id else self.free_client_id(),
            index=algo.index,
            side=algo.side,
            position_side=algo.position_side,
            kind="MARKET" if algo.kind.endswith("MARKET") else "LIMIT",
            time_in_force="GTC" if algo.time_in_force == "GTE_GTC" else algo.time_in_force,
            price=algo.price,
            quantity=closable if algo.close_position else algo.quantity,
            reduce_only=algo.position_side == "BOTH" and (algo.reduce_only or algo.close_position),
            stp=algo.stp,
            good_till_ms=algo.good_till_ms,
            created_ms=now_ms,
            updated_ms=now_ms,
            close_position=algo.close_position,
            algo_id=algo.id,
        )
        algo.order = order
        try:
            if not self.child_first:
                self.admit(account, order, now_ms)
                self._set_algo(account, algo, "TRIGGERED", now_ms)
            self.place(account, order, now_ms)
        except RequestError as error:
            algo.order = None
            algo.reason = str(error)
            self._set_algo(account, algo, "REJECTED", now_ms)
            return
        if self.child_first:
            self._set_algo(account, algo, "TRIGGERED", now_ms)
            if not order.is_open:
                self._set_algo(account, algo, "FINISHED", now_ms)

    def _set_algo(self, account: Account, algo: Algo, status: str, now_ms: int) -> None:
        algo.status = status
        algo.updated_ms = now_ms
        account.open_algos.pop(algo.id, None)
        self._tell_algo(account, algo, now_ms)

    # ---- what happens by itself

    def step(self, now_ms: int) -> None:
        """Everything that is due by now. Marks are looked at once a second, as they are published."""
        self._marks = {}
        try:
            self._step(now_ms)
        finally:
            self._marks = None

    def _step(self, now_ms: int) -> None:
        before_ms, self._stepped_ms = self._stepped_ms, max(now_ms, self._stepped_ms)
        new_marks = now_ms // 1000 != before_ms // 1000
        for account in list(self.accounts.values()):
            self._count_down(account, now_ms)
            if new_marks:
                self._expire(account, now_ms)
            if account.open_algos:
                self._turn_algos(account, now_ms, new_marks)
        self._look_at_book(now_ms)
        if before_ms and now_ms // HOUR_MS != before_ms // HOUR_MS:
            for hour in range(before_ms // HOUR_MS + 1, now_ms // HOUR_MS + 1):
                self._settle_funding(hour)
        if new_marks:
            for account in list(self.accounts.values()):
                if account.positions:
                    self._settle_delisted(account, now_ms)
                    self._watch_margin(account, now_ms)

    def deleverage(self, account: Account, index: int, quantity: int, now_ms: int) -> None:
        """Close so much (1e-8) of what the account holds of this contract, as ADL does."""
        for position in [each for each in account.held() if each.index == index]:
            self._force(account, position, min(quantity, abs(position.quantity)), "adl_autoclose", "LIMIT", now_ms)

    def deposit(self, account: Account, amount: int, now_ms: int) -> None:
        """Money from or to (below 0) outside."""
        account.wallet += amount
        self._book(account, "TRANSFER", amount, "", now_ms, self._next_tran_id())
        self._tell_account(account, "DEPOSIT" if amount > 0 else "WITHDRAW", now_ms, [], change=amount)

    def move_margin(self, account: Account, position: Position, amount: int, now_ms: int) -> None:
        """Into (or out of, below 0) the wallet of an isolated position."""
        position.isolated_wallet += amount
        position.updated_ms = now_ms
        self._tell_account(account, "MARGIN_TRANSFER", now_ms, [position])

    def _count_down(self, account: Account, now_ms: int) -> None:
        for index in [index for index, due_ms in account.countdowns.items() if now_ms >= due_ms]:
            del account.countdowns[index]
            for order in [each for each in account.open_orders.values() if each.index == index]:
                self.cancel(account, order, now_ms)
            if self.countdown_covers_algos:
                for algo in [each for each in account.open_algos.values() if each.index == index]:
                    self.cancel_algo(account, algo, now_ms)

    def _expire(self, account: Account, now_ms: int) -> None:
        for order in list(account.open_orders.values()):
            if order.good_till_ms and now_ms >= order.good_till_ms:
                self._end(account, order, "EXPIRED", "EXPIRED", now_ms)

    def _look_at_book(self, now_ms: int) -> None:
        """Fill what rests at a price that the other side now offers."""
        for index in list(self._resting):
            if self._exchange.status(index, now_ms) != "TRADING":
                continue
            own = self.own(index)
            book = self._depth(index, 1)[0]
            to_price, to_quantity = 10 ** (8 - own.price_decimals), 10 ** (8 - own.quantity_decimals)
            seen, left = self._left.get(index, (0, [0, 0]))
            if seen != book.update_id:
                left = [book.ask_quantity * to_quantity, book.bid_quantity * to_quantity]
                self._left[index] = (book.update_id, left)
            for at, side, price in ((0, "BUY", book.ask * to_price), (1, "SELL", book.bid * to_price)):
                for account, order in self._in_turn(self._resting.get(index, []), side):
                    if (order.price - price) * order.sign < 0 or not left[at]:
                        break
                    if order.is_open:
                        left[at] -= self._fill_resting(account, order, left[at], now_ms)

    def _in_turn(self, resting: list[tuple[Account, Order]], side: str) -> list[tuple[Account, Order]]:
        """Orders of this side by price, then by time."""
        found = [each for each in resting if each[1].side == side]
        return sorted(found, key=lambda each: (-each[1].price * each[1].sign, each[1].id))

    def _fill_resting(self, account: Account, order: Order, most: int, now_ms: int) -> int:
        """Fill at its own price, as a maker; how much it was."""
        quantity = min(order.remaining, most)
        if order.reduce_only:
            quantity = min(quantity, account.closable(order.index, order.position_side, order.side))
        if quantity:
            self._fill(account, order, order.price, quantity, now_ms, maker=True)
        self._sweep(account, order.index, now_ms)
        return quantity

    def _settle_funding(self, hour: int) -> None:
        at_ms = hour * HOUR_MS
        held = {position.index for account in self.accounts.values() for position in account.held()}
        due = [
            index
            for index in held
            if hour % self.own(index).funding_interval_hours == 0 and self._exchange.is_traded(index, at_ms)
        ]
        rates: dict[int, int] = {}
        for interval in {self.own(index).funding_interval_hours for index in due}:
            indices = [index for index in due if self.own(index).funding_interval_hours == interval]
            found = self._exchange.world.funding_rates(np.array(indices), hour, interval, interval)
            rates.update(zip(indices, (round(rate * ONE) for rate in found.tolist()), strict=True))
        for account in self.accounts.values():
            for position in account.held():
                if position.index in rates:
                    self._pay_funding(account, position, rates[position.index], at_ms)

    def _pay_funding(self, account: Account, position: Position, rate: int, at_ms: int) -> None:
        symbol = self.own(position.index).symbol
        paid = position.quantity * self.mark(position.index) // ONE * rate // ONE
        account.wallet -= paid
        is_isolated = position.index in account.isolated
        if is_isolated:
            position.isolated_wallet -= paid
        self._book(account, "FUNDING_FEE", -paid, symbol, at_ms, self._next_tran_id())
        told = [position] if is_isolated else []
        self._tell_account(account, "FUNDING_FEE", at_ms, told, symbol=symbol)

    def _settle_delisted(self, account: Account, now_ms: int) -> None:
        for position in account.held():
            if not self._exchange.is_traded(position.index, now_ms):
                name = f"settlement_autoclose-{now_ms}{self._rng.randrange(10**6):06d}"
                self._force(account, position, abs(position.quantity), name, "MARKET", now_ms)

    def _watch_margin(self, account: Account, now_ms: int) -> None:
        """Warn of, and liquidate, what its margin no longer covers."""
        called: list[Position] = []
        cross = [each for each in account.held() if each.index not in account.isolated]
        while cross:
            margin = account.cross_wallet() + account.cross_unrealized(self.mark)
            needed = sum(maintenance(each.notional(self.mark(each.index))) for each in cross)
            if margin > needed:
                called += cross if needed * 100 >= margin * MARGIN_CALL_AT else []
                break
            worst = min(cross, key=lambda each: each.unrealized(self.mark(each.index)))
            for order in [each for each in account.open_orders.values() if each.index not in account.isolated]:
                self._end(account, order, "EXPIRED", "EXPIRED", now_ms, "5")
            self._liquidate(account, worst, now_ms)
            cross.remove(worst)
        for position in [each for each in account.held() if each.index in account.isolated]:
            mark = self.mark(position.index)
            margin = position.isolated_wallet + position.unrealized(mark)
            needed = maintenance(position.notional(mark))
            if margin <= needed:
                self._liquidate(account, position, now_ms)
            elif needed * 100 >= margin * MARGIN_CALL_AT:
                called.append(position)
        warned = {(each.index, each.side) for each in called}
        if warned - account.warned:
            rows = [(self.own(each.index), each) for each in called]
            self.emit(account.key, margin_call_event(account, rows, self.mark, now_ms))
        account.warned = warned

    def _liquidate(self, account: Account, position: Position, now_ms: int) -> None:
        index = position.index
        for order in [each for each in account.open_orders.values() if each.index == index]:
            self._end(account, order, "EXPIRED", "EXPIRED", now_ms, "5")
        is_isolated = index in account.isolated
        margin = position.isolated_wallet if is_isolated else account.cross_wallet()
        before = account.wallet
        name = f"autoclose-{now_ms}{self._rng.randrange(10**6):06d}"
        order = self._force(account, position, abs(position.quantity), name, "LIQUIDATION", now_ms)
        # The insurance fund takes its fee of what is left, or bears what is missing.
        left = margin + account.wallet - before
        fee = min(left, order.cost // ONE * LIQUIDATION_FEE // ONE)
        if fee:
            account.wallet -= fee
            self._book(account, "INSURANCE_CLEAR", -fee, self.own(index).symbol, now_ms, self._next_tran_id())
            self._tell_account(account, "INSURANCE_CLEAR", now_ms, [])

    def _force(
        self, account: Account, position: Position, quantity: int, client_id: str, kind: str, now_ms: int
    ) -> Order:
        """Close so much at the mark price, in the name of the exchange."""
        own = self.own(position.index)
        tick = self.filters(position.index).tick
        price = max(tick, round(self.mark(position.index) / tick) * tick)
        order = Order(
            id=self.next_order_id(),
            client_id=client_id,
            index=position.index,
            side="SELL" if position.quantity > 0 else "BUY",
            position_side=position.side,
            kind=kind,
            time_in_force="IOC" if kind != "MARKET" else "GTC",
            price=price if kind != "MARKET" else 0,
            quantity=quantity,
            reduce_only=False,
            stp="NONE",
            good_till_ms=0,
            created_ms=now_ms,
            updated_ms=now_ms,
        )
        account.orders[order.id] = order
        account.forced.append(order)
        self._tell_order(account, order, "NEW", now_ms)
        execution = "CALCULATED" if kind == "LIQUIDATION" else "TRADE"
        self._fill(account, order, price, quantity, now_ms, execution=execution)
        self._sweep(account, own.index, now_ms)
        return order

    # ---- books and news

    def _next_tran_id(self) -> int:
        self._tran_id += self._rng.randint(1, 9)
        return self._tran_id

    def _book(
        self, account: Account, kind: str, amount: int, symbol: str, now_ms: int, tran_id: int, trade_id: str = ""
    ) -> None:
        account.incomes.append(
            {
                "symbol": symbol,
                "incomeType": kind,
                "income": money(amount),
                "asset": "USDT",
                "info": trade_id or kind,
                "time": now_ms,
                "tranId": tran_id,
                "tradeId": trade_id,
            }
        )

    def _tell_order(self, account: Account, order: Order, execution: str, now_ms: int, reason: str = "0") -> None:
        self.emit(account.key, order_event(self.own(order.index), order, execution, now_ms, reason=reason))

    def _tell_algo(self, account: Account, algo: Algo, now_ms: int) -> None:
        self.emit(account.key, algo_event(self.own(algo.index), algo, now_ms))

    def _tell_account(
        self,
        account: Account,
        reason: str,
        now_ms: int,
        positions: list[Position],
        *,
        change: int = 0,
        symbol: str = "",
    ) -> None:
        rows = [position_row(self.own(each.index), account, each, self.mark(each.index)) for each in positions]
        self.emit(account.key, account_event(account, reason, now_ms, rows, change, symbol))
