"""What Binance puts on the wire, each field named once, with the numbers it may hold.

Whatever passes these types is finite and in range: `"NaN"`, `"inf"`, zero or negative prices and times of no calendar
are refused while decoding. Fields that are not listed are skipped; `KNOWN_FIELDS` says which of those are expected.
Prices and quantities come as text, ids and times as integers (binance.md 2), `st`, `ps` and `ap` since 2026 only.
"""

from decimal import Decimal
from typing import Annotated, Literal, get_args

from msgspec import Meta, Struct, field

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
    step_size: Decimal | None = None
    min_qty: Decimal | None = None
    notional: Decimal | None = None


class SymbolRow(Struct, rename="camel"):
    """A symbol of /fapi/v1/exchangeInfo."""

    symbol: Symbol
    base_asset: str
    quote_asset: str
    status: str
    filters: list[SymbolFilter]
    contract_type: str = ""
    onboard_date: TimeOrNone = 0
