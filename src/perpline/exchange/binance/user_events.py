"""Bytes of the user data stream in, events of `domain` out (binance.md 5). No I/O, no clock."""

import re
from decimal import Decimal, InvalidOperation

import msgspec
from msgspec import Struct

from perpline.common.errors import Malformed
from perpline.domain.market import Side
from perpline.domain.order import (
    AccountUpdate,
    ExchangePosition,
    Fill,
    LeverageChanged,
    ListenKeyExpired,
    MarginCall,
    OrderReport,
    OrderStatus,
    Source,
    StopReport,
    StopStatus,
    UserEvent,
)
from perpline.exchange.binance.messages import (
    USER_EVENT_TYPES,
    AccountUpdateMessage,
    AlgoOrderBody,
    AlgoUpdateMessage,
    ConfigUpdateMessage,
    MarginCallMessage,
    OrderBody,
    OrderUpdateBody,
    OrderUpdateMessage,
    UserFrame,
    UserMessage,
    check_exact,
)

KNOWN_AND_LEFT_OUT = frozenset(
    {"TRADE_LITE", "CONDITIONAL_ORDER_TRIGGER_REJECT", "STRATEGY_UPDATE", "GRID_UPDATE", "MULTI_ASSETS_MODE"}
)
"""TRADE_LITE tells the fill that ORDER_TRADE_UPDATE books; the others tell nothing of our own orders that ALGO_UPDATE
does not. MULTI_ASSETS_MODE is our name for the form of ACCOUNT_CONFIG_UPDATE without a leverage."""

_EXPIRY_REASONS = {
    "1": "self-trade prevention",
    "2": "the rest of an immediate-or-cancel order",
    "3": "immediate-or-cancel and self-trade prevention",
    "4": "knocked out by a reduce-only order of higher priority, or would have reversed the position",
    "5": "liquidation",
    "6": "good-till-expiry unsatisfied",
    "7": "the symbol was delisted",
    "8": "the first order expired after its stop triggered",
    "9": "the rest of a market order",
}
"""`er` of ORDER_TRADE_UPDATE, since 2025-10-23."""

_ORDER_STATUSES = {
    "NEW": OrderStatus.NEW,
    "PARTIALLY_FILLED": OrderStatus.PARTIALLY_FILLED,
    "FILLED": OrderStatus.FILLED,
    "CANCELED": OrderStatus.CANCELED,
    "EXPIRED": OrderStatus.EXPIRED,
    "EXPIRED_IN_MATCH": OrderStatus.EXPIRED,
    "REJECTED": OrderStatus.REJECTED,
}

_STOP_STATUSES = {
    "NEW": StopStatus.NEW,
    "TRIGGERING": StopStatus.TRIGGERING,
    "TRIGGERED": StopStatus.TRIGGERED,
    "FINISHED": StopStatus.FINISHED,
    "CANCELED": StopStatus.CANCELED,
    "REJECTED": StopStatus.REJECTED,
    "EXPIRED": StopStatus.EXPIRED,
}

SIDES: dict[str, Side] = {"BUY": "buy", "SELL": "sell"}


class Ignored(Struct, frozen=True):
    """A sound message that becomes no event; counted by its type."""

    event_type: str

    @property
    def is_known(self) -> bool:
        """Whether it is left out on purpose. What is not known is news of the exchange's."""
        return self.event_type in KNOWN_AND_LEFT_OUT


def decode_user_event(data: bytes | memoryview, received_at: int) -> UserEvent | Ignored:
    """What a frame of the user data stream says, in the bare or the combined form.

    `received_at` is our market time when the bytes arrived, ms. Raises Malformed for what is no JSON, no message, or a
    message whose numbers or states cannot be: the caller then no longer knows the account, and asks for it.
    """
    try:
        frame = _decode_frame(data)
        payload: bytes | memoryview | msgspec.Raw = data
        if frame.event_type is None and frame.stream is not None and frame.data:
            payload = frame.data
            frame = _decode_frame(payload)
        if frame.event_type is None:
            raise Malformed(f"no user event: {_beginning(data)}")
        if frame.event_type not in USER_EVENT_TYPES:
            if not frame.event_type.isprintable():
                raise Malformed(f"no user event: {_beginning(data)}")
            return Ignored(frame.event_type)
        message = _decode_message(payload)
    except _UNREADABLE as error:
        text = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise Malformed(f"user event: {text[:200]}: {_beginning(data)}") from None
    if isinstance(message, OrderUpdateMessage):
        return _order_report(message, received_at)
    if isinstance(message, AlgoUpdateMessage):
        return _stop_report(message, received_at)
    if isinstance(message, AccountUpdateMessage):
        return _account_update(message, received_at)
    if isinstance(message, ConfigUpdateMessage):
        if message.leverage is None:
            return Ignored("MULTI_ASSETS_MODE")
        return LeverageChanged(
            symbol=_checked_symbol(message.leverage.symbol),
            leverage=message.leverage.leverage,
            updated_at=message.transaction_time,
            received_at=received_at,
        )
    if isinstance(message, MarginCallMessage):
        symbols = tuple(_checked_symbol(position.symbol) for position in message.positions)
        return MarginCall(symbols=symbols, updated_at=message.event_time, received_at=received_at)
    return ListenKeyExpired(updated_at=message.event_time, received_at=received_at)


def order_report(body: OrderBody, source: Source, received_at: int) -> OrderReport:
    """The order that an answer or a look tells of. Raises Malformed for a status that nobody knows."""
    return OrderReport(
        symbol=_checked_symbol(body.symbol),
        client_id=body.client_order_id,
        order_id=body.order_id,
        side=SIDES[body.side],
        status=_order_status(body.status),
        quantity=body.orig_qty,
        filled=body.executed_qty,
        average_price=body.avg_price or None,
        reduce_only=body.reduce_only,
        kind=(body.orig_type or body.type).lower(),
        source=source,
        updated_at=body.update_time or received_at,
        received_at=received_at,
        detail=_EXPIRY_REASONS["1"] if body.status == "EXPIRED_IN_MATCH" else "",
    )


def stop_report(body: AlgoOrderBody, source: Source, received_at: int) -> StopReport:
    """The conditional order that an answer or a look tells of. Raises Malformed for a status that nobody knows."""
    return StopReport(
        symbol=_checked_symbol(body.symbol),
        client_algo_id=body.client_algo_id,
        algo_id=body.algo_id,
        side=SIDES[body.side],
        kind=body.order_type.lower(),
        status=_stop_status(body.algo_status),
        trigger_price=_number(body.trigger_price or "", "triggerPrice"),
        close_position=body.close_position,
        quantity=_number(body.quantity or "", "quantity"),
        order_id=_order_id(body.actual_order_id or 0),
        source=source,
        updated_at=body.update_time or received_at,
        received_at=received_at,
    )


_decode_frame = msgspec.json.Decoder(UserFrame).decode
_decode_message = msgspec.json.Decoder(UserMessage, strict=False).decode

_LISTEN_KEY = re.compile(rb'("(?:stream|listenKey)"\s*:\s*")[^"]*')

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def _order_report(message: OrderUpdateMessage, received_at: int) -> OrderReport:
    order = message.order
    status = _order_status(order.status)
    return OrderReport(
        symbol=_checked_symbol(order.symbol),
        client_id=order.client_id,
        order_id=order.order_id,
        side=SIDES[order.side],
        status=status,
        quantity=order.quantity,
        filled=order.filled,
        average_price=order.average_price or None,
        reduce_only=order.reduce_only,
        kind=order.original_type.lower(),
        source="stream",
        updated_at=message.transaction_time,
        received_at=received_at,
        fill=_fill(order, message.transaction_time, received_at),
        detail=_detail(order, status),
    )


def _fill(order: OrderUpdateBody, transaction_time: int, received_at: int) -> Fill | None:
    """The execution that the report is about. One without a trade id could not be told from its repetition: it is left
    out, and comes with the account's trades."""
    if order.execution not in ("TRADE", "CALCULATED") or not order.last_filled or not order.trade_id:
        return None
    if order.last_filled < 0 or order.last_price <= 0:
        raise Malformed(f"a fill of {order.last_filled} at {order.last_price}, order {order.order_id}")
    return Fill(
        symbol=order.symbol,
        trade_id=order.trade_id,
        order_id=order.order_id,
        client_id=order.client_id,
        side=SIDES[order.side],
        price=order.last_price,
        quantity=order.last_filled,
        fee=order.fee,
        fee_asset=order.fee_asset or "",
        realized_pnl=order.realized_pnl,
        is_maker=order.is_maker,
        traded_at=order.trade_time or transaction_time,
        received_at=received_at,
    )


def _detail(order: OrderUpdateBody, status: OrderStatus) -> str:
    if order.execution == "AMENDMENT":
        return "amended"
    if order.status == "EXPIRED_IN_MATCH":
        return _EXPIRY_REASONS["1"]
    if status == OrderStatus.EXPIRED and order.expiry_reason not in ("", "0"):
        return _EXPIRY_REASONS.get(order.expiry_reason, f"expiry reason {order.expiry_reason[:10]}")
    return ""


def _stop_report(message: AlgoUpdateMessage, received_at: int) -> StopReport:
    order = message.order
    return StopReport(
        symbol=_checked_symbol(order.symbol),
        client_algo_id=order.client_algo_id,
        algo_id=order.algo_id,
        side=SIDES[order.side],
        kind=order.order_type.lower(),
        status=_stop_status(order.status),
        trigger_price=_number(order.trigger_price, "tp"),
        close_position=order.close_position,
        quantity=_number(order.quantity, "q"),
        order_id=_order_id(order.order_id),
        source="stream",
        updated_at=message.transaction_time,
        received_at=received_at,
        detail=order.reason,
    )


def _account_update(message: AccountUpdateMessage, received_at: int) -> AccountUpdate:
    account = message.account
    return AccountUpdate(
        reason=account.reason,
        wallet={balance.asset: balance.wallet for balance in account.balances},
        changes={balance.asset: balance.change for balance in account.balances if balance.change},
        positions=tuple(
            ExchangePosition(
                symbol=_checked_symbol(position.symbol),
                quantity=position.quantity,
                entry_price=position.entry_price,
                unrealized_pnl=position.unrealized_pnl,
                isolated=position.margin_type.lower() == "isolated" if position.margin_type else None,
                updated_at=message.transaction_time,
            )
            for position in account.positions
            # One-way mode has one row for a symbol; flat LONG and SHORT rows beside it would undo it.
            if position.position_side == "BOTH" or position.quantity
        ),
        symbol=account.symbol,
        updated_at=message.transaction_time,
        received_at=received_at,
    )


def _order_status(text: str) -> OrderStatus:
    try:
        return _ORDER_STATUSES[text]
    except KeyError:
        raise Malformed(f"an order of status {text!r}") from None


def _stop_status(text: str) -> StopStatus:
    try:
        return _STOP_STATUSES[text]
    except KeyError:
        raise Malformed(f"a conditional order of status {text!r}") from None


def _number(text: str, name: str) -> Decimal:
    """A number that the exchange leaves empty where there is none."""
    if not text:
        return Decimal(0)
    try:
        value = Decimal(text)
        check_exact(value, name)
    except (InvalidOperation, ValueError):
        raise Malformed(f"{name} cannot be {text!r}") from None
    return value


def _order_id(value: str | int) -> int:
    if value == "":
        return 0
    number = int(value) if isinstance(value, int) or (value.isascii() and value.isdigit()) else -1
    if not 0 <= number < 2**62:
        raise Malformed(f"no order id: {value!r}")
    return number


def _checked_symbol(symbol: str) -> str:
    """The name, if it can do no harm in a log line, a key or a path. Chinese ones exist and pass."""
    if not symbol.isprintable() or not set(symbol).isdisjoint(" /\\:'\"<>"):
        raise Malformed(f"symbol {symbol!r}")
    return symbol


def _beginning(data: bytes | memoryview) -> str:
    """What a message begins with, without the listen key, by which anybody can listen."""
    return repr(_LISTEN_KEY.sub(rb"\1***", bytes(data[:300]))[:100])[1:]
