"""What Binance puts on the wire, each field named once, with the numbers it may hold.

Whatever passes these types is finite and in range: `"NaN"`, `"inf"`, zero or negative prices and times of no calendar
are refused while decoding. Fields that are not listed are skipped; `KNOWN_FIELDS` says which of those are expected.
Prices and quantities come as text, ids and times as integers (binance.md 2), `st`, `ps` and `ap` since 2026 only.
"""

from decimal import Decimal
from typing import Annotated, Literal, get_args

from msgspec import Meta, Raw, Struct, field

Symbol = Annotated[str, Meta(min_length=1, max_length=40)]
Price = Annotated[float, Meta(gt=0, lt=1e15)]
PriceOrNone = Annotated[float, Meta(ge=0, lt=1e15)]
"""A price that the exchange sends as 0 where there is none (the index of a delisted symbol)."""
SignedPrice = Annotated[float, Meta(gt=-1e15, lt=1e15)]
"""A price or a premium, which may be negative."""
Quantity = Annotated[float, Meta(ge=0, lt=1e18)]
Rate = Annotated[float, Meta(ge=-1, le=1)]
Time = Annotated[int, Meta(gt=0, lt=10**14)]
TimeOrNone = Annotated[int, Meta(ge=0, lt=10**14)]
Count = Annotated[int, Meta(ge=0, lt=2**62)]

COIN_M = 2
"""`st` of a symbol that is margined in coins; 1 is ours, 0 was seen in June 2026 for ours as well."""


class BookTickerMessage(Struct, tag_field="e", tag="bookTicker", gc=False):
    """The best bid and ask changed. Spot sends the same without `E` and `T`."""

    symbol: Symbol = field(name="s")
    update_id: Count = field(name="u")
    bid: Price = field(name="b")
    bid_qty: Quantity = field(name="B")
    ask: Price = field(name="a")
    ask_qty: Quantity = field(name="A")
    event_time: TimeOrNone = field(name="E", default=0)
    transaction_time: TimeOrNone = field(name="T", default=0)
    symbol_type: int = field(name="st", default=1)


class MarkPriceMessage(Struct, tag_field="e", tag="markPriceUpdate", gc=False):
    """Mark price, index price and next funding of a symbol."""

    symbol: Symbol = field(name="s")
    mark_price: Price = field(name="p")
    event_time: Time = field(name="E")
    index_price: PriceOrNone = field(name="i", default=0.0)
    """Absent on coin-margined symbols before 2023."""
    funding_rate: Rate | Literal[""] = field(name="r", default=0.0)
    """Empty where the symbol has no funding (delivery contracts)."""
    next_funding_time: TimeOrNone = field(name="T", default=0)
    symbol_type: int = field(name="st", default=1)


class KlineBody(Struct, gc=False):
    open_time: Time = field(name="t")
    close_time: Time = field(name="T")
    interval: Annotated[str, Meta(min_length=2, max_length=3)] = field(name="i")
    open: Price = field(name="o")
    high: Price = field(name="h")
    low: Price = field(name="l")
    close: Price = field(name="c")
    volume: Quantity = field(name="v")
    quote_volume: Quantity = field(name="q")
    trades: Count = field(name="n")
    taker_buy_volume: Quantity = field(name="V")
    taker_buy_quote_volume: Quantity = field(name="Q")
    closed: bool = field(name="x")
    symbol: str = field(name="s", default="")


class KlineMessage(Struct, tag_field="e", tag="kline", gc=False):
    """A candle, forming or closed. Its symbol is told twice."""

    symbol: Symbol = field(name="s")
    event_time: Time = field(name="E")
    kline: KlineBody = field(name="k")


StreamMessage = BookTickerMessage | MarkPriceMessage | KlineMessage
"""Every message that becomes an event of `domain`, told apart by "e"."""

MarkPriceArray = Annotated[list[MarkPriceMessage], Meta(min_length=1, max_length=10_000)]


class Combined(Struct, gc=False):
    """The envelope of a `/stream` connection."""

    stream: Annotated[str, Meta(max_length=100)]
    data: StreamMessage | MarkPriceArray


Bare = StreamMessage | MarkPriceArray
"""What a `/ws` connection sends: the message itself."""


KNOWN_FIELDS: dict[str, frozenset[str]] = {
    "envelope": frozenset({"stream", "data"}),
    "bookTicker": frozenset({"e", "u", "s", "ps", "b", "B", "a", "A", "T", "E", "st"}),
    "markPriceUpdate": frozenset({"e", "E", "s", "p", "ap", "P", "i", "r", "T", "st"}),
    "kline": frozenset({"e", "E", "s", "k"}),
    "kline.k": frozenset("t T s i f L o c h l v n x q V Q B".split()),
}
"""The fields that a message has today, also those that nobody here reads. Any other is news (`FieldWatch`)."""

EVENT_TYPES: frozenset[str] = frozenset(str(message.__struct_config__.tag) for message in get_args(StreamMessage))


class PeekData(Struct):
    """As little of any payload as is needed to say what it is."""

    event_type: Annotated[str, Meta(min_length=1, max_length=40)] | None = field(name="e", default=None)
    symbol_type: int = field(name="st", default=1)
    last_update_id: int | None = field(name="lastUpdateId", default=None)
    open_interest: str | None = field(name="openInterest", default=None)


class PeekFrame(PeekData):
    """The same of a whole frame: an envelope, a bare payload or an answer to a control message."""

    stream: Annotated[str, Meta(max_length=100)] | None = None
    data: PeekData | list[PeekData] | None = None


class ControlError(Struct):
    code: int = 0
    message: Annotated[str, Meta(max_length=1000)] = field(name="msg", default="")


class ControlAnswer(Struct):
    """The answer to SUBSCRIBE and the like: wrapped (`error`) or, as documented, bare (`code`, `msg`)."""

    id: Annotated[str, Meta(max_length=100)] | int | None = None
    result: list[str] | bool | str | int | None = None
    error: ControlError | None = None
    code: int | None = None
    message: Annotated[str, Meta(max_length=1000)] = field(name="msg", default="")


class ServerTimeBody(Struct):
    server_time: Time = field(name="serverTime")


class ErrorBody(Struct):
    code: int
    message: str = field(name="msg", default="")


class KlineRow(Struct, array_like=True, gc=False):
    """A row of /fapi/v1/klines."""

    open_time: Time
    open: Price
    high: Price
    low: Price
    close: Price
    volume: Quantity
    close_time: Time
    quote_volume: Quantity
    trades: Count
    taker_buy_volume: Quantity
    taker_buy_quote_volume: Quantity


class PriceKlineRow(Struct, array_like=True, gc=False):
    """A row of markPriceKlines, indexPriceKlines or premiumIndexKlines."""

    open_time: Time
    open: SignedPrice
    high: SignedPrice
    low: SignedPrice
    close: SignedPrice
    unused: str
    close_time: Time


class PremiumIndexRow(Struct, rename="camel"):
    """A row of /fapi/v1/premiumIndex (which is mark price and funding, not the premium index)."""

    symbol: Symbol
    mark_price: Price
    time: Time
    index_price: PriceOrNone = 0.0
    last_funding_rate: Rate | Literal[""] = 0.0
    next_funding_time: TimeOrNone = 0


class BookTickerRow(Struct, rename="camel"):
    """A row of /fapi/v1/ticker/bookTicker. `lastUpdateId` is on the wire though not in the documentation."""

    symbol: Symbol
    bid_price: Price
    bid_qty: Quantity
    ask_price: Price
    ask_qty: Quantity
    time: Time
    last_update_id: Count = 0


class FundingRateRow(Struct, rename="camel"):
    symbol: Symbol
    funding_time: Time
    funding_rate: Rate
    mark_price: Price | Literal[""] | None = None
    """Absent or empty in old rows."""
    rate_type: str = "Regular"


class OpenInterestBody(Struct, rename="camel"):
    symbol: Symbol
    open_interest: Quantity
    time: Time


class OpenInterestHistRow(Struct, rename="camel"):
    sum_open_interest: Quantity
    sum_open_interest_value: Quantity
    timestamp: Time
    """Text before July 2026."""


class AccountRatioRow(Struct, rename="camel"):
    """A row of the three long/short ratios."""

    long_short_ratio: Quantity
    long_account: Quantity
    short_account: Quantity
    timestamp: Time


class TakerRatioRow(Struct, rename="camel"):
    buy_sell_ratio: Quantity
    buy_vol: Quantity
    sell_vol: Quantity
    timestamp: Time


class Ticker24hRow(Struct, rename="camel"):
    symbol: Symbol
    quote_volume: Quantity


class SymbolFilter(Struct, rename="camel"):
    """Any of the filters of a symbol: each has a few of these."""

    filter_type: str
    tick_size: Decimal | None = None
    min_price: Decimal | None = None
    max_price: Decimal | None = None
    step_size: Decimal | None = None
    min_qty: Decimal | None = None
    max_qty: Decimal | None = None
    notional: Decimal | None = None
    multiplier_up: Decimal | None = None
    multiplier_down: Decimal | None = None


class SymbolRow(Struct, rename="camel"):
    """A symbol of /fapi/v1/exchangeInfo."""

    symbol: Symbol
    base_asset: str
    quote_asset: str
    status: str
    filters: list[SymbolFilter]
    contract_type: str = ""
    onboard_date: TimeOrNone = 0
    delivery_date: TimeOrNone = 0
    market_take_bound: Decimal | None = None
    trigger_protect: Decimal | None = None
    liquidation_fee: Decimal | None = None
    maint_margin_percent: Decimal | None = None


# ---- our own account. Money is exact here: Decimal, finite and within any sensible range (`Exact`).

Id = Annotated[int, Meta(ge=0, lt=2**62)]
ClientText = Annotated[str, Meta(max_length=64)]
OrderSide = Literal["BUY", "SELL"]

_LARGEST = Decimal(10) ** 18
_FINEST = -30


class Exact(Struct, kw_only=True):
    """A message whose Decimals are finite, smaller than 10^18 and of at most 30 places."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, Decimal):
                check_exact(value, name)


def check_exact(value: Decimal, name: str) -> None:
    """Raise ValueError for a number that no balance, price or size can be."""
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or exponent < _FINEST or not -_LARGEST < value < _LARGEST:
        raise ValueError(f"{name} cannot be {str(value)[:40]!r}")


class OrderUpdateBody(Exact, kw_only=True):
    """`o` of ORDER_TRADE_UPDATE (binance.md 5)."""

    symbol: Symbol = field(name="s")
    client_id: ClientText = field(name="c")
    side: OrderSide = field(name="S")
    original_type: ClientText = field(name="ot")
    quantity: Decimal = field(name="q")
    average_price: Decimal = field(name="ap")
    execution: ClientText = field(name="x")
    status: ClientText = field(name="X")
    order_id: Id = field(name="i")
    last_filled: Decimal = field(name="l")
    filled: Decimal = field(name="z")
    last_price: Decimal = field(name="L")
    fee: Decimal = field(name="n", default=Decimal(0))
    """Absent with its asset where there is none."""
    fee_asset: ClientText | None = field(name="N", default=None)
    trade_time: TimeOrNone = field(name="T", default=0)
    trade_id: Id = field(name="t")
    is_maker: bool = field(name="m", default=False)
    reduce_only: bool = field(name="R", default=False)
    realized_pnl: Decimal = field(name="rp", default=Decimal(0))
    expiry_reason: ClientText = field(name="er", default="0")
    """Since 2025-10-23."""


class OrderUpdateMessage(Struct, tag_field="e", tag="ORDER_TRADE_UPDATE"):
    transaction_time: Time = field(name="T")
    order: OrderUpdateBody = field(name="o")


class AlgoUpdateBody(Exact, kw_only=True):
    """`o` of ALGO_UPDATE."""

    symbol: Symbol = field(name="s")
    client_algo_id: ClientText = field(name="caid")
    algo_id: Id = field(name="aid")
    side: OrderSide = field(name="S")
    order_type: ClientText = field(name="o")
    status: ClientText = field(name="X")
    order_id: ClientText | Id = field(name="ai", default="")
    """Empty before it triggered."""
    quantity: ClientText = field(name="q", default="")
    trigger_price: ClientText = field(name="tp", default="")
    close_position: bool = field(name="cp", default=False)
    reason: Annotated[str, Meta(max_length=1000)] = field(name="rm", default="")


class AlgoUpdateMessage(Struct, tag_field="e", tag="ALGO_UPDATE"):
    transaction_time: Time = field(name="T")
    order: AlgoUpdateBody = field(name="o")


class BalanceChange(Exact, kw_only=True):
    asset: ClientText = field(name="a")
    wallet: Decimal = field(name="wb")
    change: Decimal = field(name="bc", default=Decimal(0))


class PositionChange(Exact, kw_only=True):
    symbol: Symbol = field(name="s")
    quantity: Decimal = field(name="pa")
    entry_price: Decimal = field(name="ep")
    unrealized_pnl: Decimal = field(name="up", default=Decimal(0))
    margin_type: ClientText = field(name="mt", default="")
    position_side: ClientText = field(name="ps", default="BOTH")


class AccountUpdateBody(Struct):
    reason: ClientText = field(name="m")
    balances: Annotated[list[BalanceChange], Meta(max_length=10_000)] = field(name="B", default_factory=list)
    positions: Annotated[list[PositionChange], Meta(max_length=10_000)] = field(name="P", default_factory=list)
    symbol: ClientText = field(name="S", default="")
    """Of a funding fee, since 2026-08-07."""


class AccountUpdateMessage(Struct, tag_field="e", tag="ACCOUNT_UPDATE"):
    transaction_time: Time = field(name="T")
    account: AccountUpdateBody = field(name="a")


class LeverageBody(Struct):
    symbol: Symbol = field(name="s")
    leverage: Annotated[int, Meta(ge=1, le=1000)] = field(name="l")


class ConfigUpdateMessage(Struct, tag_field="e", tag="ACCOUNT_CONFIG_UPDATE"):
    """Leverage (`ac`) or, without it, the multi-assets mode (`ai`)."""

    transaction_time: Time = field(name="T")
    leverage: LeverageBody | None = field(name="ac", default=None)


class MarginCallPosition(Struct):
    symbol: Symbol = field(name="s")


class MarginCallMessage(Struct, tag_field="e", tag="MARGIN_CALL"):
    """It has no `T`."""

    event_time: Time = field(name="E")
    positions: Annotated[list[MarginCallPosition], Meta(max_length=10_000)] = field(name="p")


class ListenKeyExpiredMessage(Struct, tag_field="e", tag="listenKeyExpired"):
    event_time: Time = field(name="E")


UserMessage = (
    OrderUpdateMessage
    | AlgoUpdateMessage
    | AccountUpdateMessage
    | ConfigUpdateMessage
    | MarginCallMessage
    | ListenKeyExpiredMessage
)
"""Every message of the user data stream that becomes an event of `domain`, told apart by "e"."""

USER_EVENT_TYPES: frozenset[str] = frozenset(str(message.__struct_config__.tag) for message in get_args(UserMessage))


class UserFrame(Struct):
    """As little of a frame of the user data stream as says what it is, in the bare or the combined form."""

    event_type: Annotated[str, Meta(min_length=1, max_length=60)] | None = field(name="e", default=None)
    stream: Annotated[str, Meta(max_length=200)] | None = None
    data: Raw = Raw()


class OrderBody(Exact, kw_only=True, rename="camel"):
    """An ordinary order, as placing, cancelling and looking tell it. `avgPrice` is told by a look alone since
    2026-07-15."""

    symbol: Symbol
    client_order_id: ClientText
    order_id: Id
    side: OrderSide
    status: ClientText
    orig_qty: Decimal
    executed_qty: Decimal = Decimal(0)
    avg_price: Decimal | None = None
    reduce_only: bool = False
    orig_type: ClientText = ""
    type: ClientText = ""
    update_time: TimeOrNone = 0


class AlgoOrderBody(Exact, kw_only=True, rename="camel"):
    """A conditional order, as placing and looking tell it."""

    symbol: Symbol
    client_algo_id: ClientText
    algo_id: Id
    side: OrderSide
    order_type: ClientText
    algo_status: ClientText
    quantity: ClientText | None = None
    trigger_price: ClientText | None = None
    close_position: bool = False
    actual_order_id: ClientText | Id | None = None
    update_time: TimeOrNone = 0


class PositionRow(Exact, kw_only=True, rename="camel"):
    """A row of /fapi/v3/positionRisk."""

    symbol: Symbol
    position_side: ClientText = "BOTH"
    position_amt: Decimal
    entry_price: Decimal
    mark_price: Decimal
    un_realized_profit: Decimal
    liquidation_price: Decimal = Decimal(0)
    isolated_wallet: Decimal = Decimal(0)
    update_time: TimeOrNone = 0


class AccountBody(Exact, kw_only=True, rename="camel"):
    """The totals of /fapi/v3/account."""

    total_wallet_balance: Decimal
    total_unrealized_profit: Decimal
    available_balance: Decimal


class UserTradeRow(Exact, kw_only=True, rename="camel"):
    symbol: Symbol
    id: Id
    order_id: Id
    side: OrderSide
    price: Decimal
    qty: Decimal
    realized_pnl: Decimal
    commission: Decimal
    commission_asset: ClientText
    maker: bool
    time: Time


class IncomeRow(Exact, kw_only=True, rename="camel"):
    symbol: Annotated[str, Meta(max_length=40)] = ""
    """Empty for what belongs to no symbol, a transfer."""
    income_type: ClientText
    income: Decimal
    asset: ClientText
    time: Time
    tran_id: Id | ClientText = 0
    trade_id: Id | ClientText | None = None


class SymbolConfigRow(Struct, rename="camel"):
    symbol: Symbol
    margin_type: ClientText
    leverage: Annotated[int, Meta(ge=1, le=1000)]


class LeverageAnswer(Struct):
    leverage: int


class PositionModeBody(Struct, rename="camel"):
    dual_side_position: bool


class MultiAssetsBody(Struct, rename="camel"):
    multi_assets_margin: bool


class AccountConfigBody(Struct, rename="camel"):
    can_trade: bool


class ApiRestrictionsBody(Struct, rename="camel"):
    """/sapi/v1/account/apiRestrictions of the spot side: what the key may do."""

    enable_withdrawals: bool
    enable_futures: bool = False
    ip_restrict: bool = False


class ListenKeyBody(Struct, rename="camel"):
    listen_key: Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_-]+$")]


class Done(Struct):
    """An answer that says success and nothing more: `code` 200, a number or text."""

    code: int | str = 200
    message: str = field(name="msg", default="")


class RateLimitCount(Struct, rename="camel"):
    rate_limit_type: ClientText
    interval: ClientText
    interval_num: int
    limit: int
    count: int = 0


class SocketError(Struct):
    code: int = 0
    message: Annotated[str, Meta(max_length=2000)] = field(name="msg", default="")


class SocketAnswer(Struct, rename="camel"):
    """An answer of the order WebSocket API (binance.md 6)."""

    id: int | ClientText | None = None
    status: int = 0
    result: Raw = Raw()
    error: SocketError | None = None
    rate_limits: list[RateLimitCount] = []
