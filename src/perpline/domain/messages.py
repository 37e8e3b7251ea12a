"""The messages that consumers get: one type each, from which their JSON schemas are made (docs/consumers.md).

Version 1. A field may be added without notice, so readers ignore what they do not know; `v` grows when a field changes
its meaning or goes, and a reader must not act on a version it does not know. Every field is always sent, null where
there is no value. What is about money is decimal text, times are milliseconds UTC of market time, `t_*_us`
microseconds of our clock.
"""

import inspect
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

Version = Annotated[Literal[1], Meta(description="Version of the message's form; always the first field.")]
TimeMs = Annotated[int, Meta(ge=0, lt=253_402_300_800_000)]
CloseTime = Annotated[TimeMs, Meta(description="The close boundary of the minute, milliseconds UTC (…000).")]
PublishedUs = Annotated[
    int,
    Meta(
        ge=0,
        description="When it was published first, microseconds of our clock; a message that was sent again because of "
        "an outage may differ in this field only.",
    ),
]
SignalId = Annotated[
    str,
    Meta(
        max_length=64,
        description="32 hex digits made of slot, model, symbol and T: the same however often it is sent. The key to "
        "act once.",
    ),
]
Symbol = Annotated[str, Meta(min_length=1, max_length=64, description="The exchange's name of the perpetual.")]
Side = Annotated[int, Meta(ge=-1, le=1, description="1 long, -1 short, 0 none; only status ok has a side.")]
StatusText = Annotated[
    str,
    Meta(
        description="Why the decision is what it is: ok, flat, cooldown, skipped_warmup, skipped_gap, skipped_stale, "
        "skipped_nan, skipped_ood or skipped_model. Others may be added, always without a side."
    ),
]
Price = Annotated[str, Meta(max_length=64, description="Decimal text.")]
Milliseconds = Annotated[float, Meta(description="Wall milliseconds.")]


class Flags(Struct, frozen=True, gc=False):
    """What a signal's quality rests on."""

    late: Annotated[int, Meta(description="Bits of the inputs that came late; 0 for none.")]
    nan: Annotated[int, Meta(description="Features without a value.")]
    xs: Annotated[int, Meta(description="Symbols that were decided together with this one.")]


class SignalDraft(Struct, frozen=True, kw_only=True, gc=False):
    """A signal as the engine writes it: the store adds `seq` when it commits, the publisher `t_pub_us`."""

    v: Version = 1
    type: Literal["signal"] = "signal"
    id: SignalId
    slot: Annotated[str, Meta(description="Which model slot decided; consumers trade on champion.")]
    sym: Symbol
    T: CloseTime
    side: Side
    status: StatusText
    detail: Annotated[str, Meta(description="The reason in words, for a person.")]
    p: Annotated[float | None, Meta(description="Calibrated probability of the side that was judged.")] = None
    ev_bp: Annotated[float | None, Meta(description="Expected value after costs, basis points.")] = None
    tp: Annotated[Price | None, Meta(description="Take-profit price on the tick grid; null without a side.")] = None
    sl: Annotated[Price | None, Meta(description="Stop-loss price on the tick grid; null without a side.")] = None
    ref_mark: Annotated[Price | None, Meta(description="Mark price that tp and sl are counted from.")] = None
    h: Annotated[int | None, Meta(description="Horizon: seconds from T after which the position is closed.")] = None
    cost_bp: Annotated[float | None, Meta(description="Costs of a round trip the model was made for.")] = None
    valid_until: Annotated[TimeMs, Meta(description="Not to be acted on after this instant, milliseconds UTC.")]
    model: str
    schema: Annotated[str, Meta(description="Hash of the features' schema.")]
    flags: Flags


class Signal(SignalDraft, frozen=True, kw_only=True, gc=False):
    """The decision for one symbol and minute. Channel sig.{sym}, stream sig:{slot}:{sym}, hash last:{slot}:{sym}.

    One for every minute of every symbol, also without a trade, but those nobody decided in time (skipped_missed).
    """

    seq: Annotated[
        int,
        Meta(
            ge=1, description="Number of the decision in its slot and symbol; one that is left out was skipped_missed."
        ),
    ]
    t_pub_us: PublishedUs


class StepTimes(Struct, frozen=True):
    """Medians of a minute's batches; null where there was none."""

    feat: Annotated[Milliseconds | None, Meta(description="Features.")]
    pred: Annotated[Milliseconds | None, Meta(description="Model.")]
    db: Annotated[Milliseconds | None, Meta(description="Commit.")]
    pub: Annotated[Milliseconds | None, Meta(description="From committed to published.")]


class CloseDraft(Struct, frozen=True, kw_only=True):
    """The close of a minute as the engine writes it; the publisher adds `t_pub_us`."""

    v: Version = 1
    type: Literal["close"] = "close"
    slot: str
    T: CloseTime
    n: Annotated[int, Meta(description="Symbols that have their row.")]
    signals: Annotated[int, Meta(description="Of these, with status ok.")]
    skipped: Annotated[int, Meta(description="Of these, with a status skipped_*.")]
    statuses: Annotated[dict[str, int], Meta(description="How many of each status.")]
    lat_ms: Annotated[
        StepTimes,
        Meta(
            description="Over the batches since the message before: commit and publication of the batch that completes "
            "the minute are counted in the next one."
        ),
    ]
    model: str


class Close(CloseDraft, frozen=True, kw_only=True):
    """Every symbol has its row for T: once a minute, the heartbeat. Channel sig.close; kept nowhere."""

    t_pub_us: PublishedUs


class PositionDraft(Struct, frozen=True, kw_only=True):
    """What happened to a position as the engine writes it; the publisher adds `t_pub_us`."""

    v: Version = 1
    type: Literal["position"] = "position"
    id: Annotated[str, Meta(max_length=64, description="The id of the signal that opened it; empty for none.")]
    pos: Annotated[str, Meta(max_length=64, description="The position's own id, unique within its account.")]
    account: Annotated[str, Meta(description="paper or live.")]
    sym: Symbol
    side: Side
    event: Annotated[
        str,
        Meta(
            description="opened; protected: the exchange confirmed its stop; or what closed it: tp, sl, trailing, "
            "timeout, flatten, exchange_stop, liquidation, adl, settlement, manual, reconcile. Others may be added; it "
            "is closed when qty is 0."
        ),
    ]
    T: Annotated[TimeMs, Meta(description="When it happened, milliseconds UTC of the exchange's time.")]
    qty: Annotated[Price, Meta(description="What is open after it, base units, decimal text.")]
    entry: Annotated[Price | None, Meta(description="Average price of entry.")] = None
    fill: Annotated[Price | None, Meta(description="Average price of exit.")] = None
    mark: Annotated[Price | None, Meta(description="The mark price that made it happen.")] = None
    tp: Annotated[Price | None, Meta(description="Target.")] = None
    sl: Annotated[Price | None, Meta(description="Our stop; the one that rests at the exchange is wider.")] = None
    pnl: Annotated[Price, Meta(description="Realised so far, USDT, before fees and funding.")] = "0"
    fees: Annotated[Price, Meta(description="Paid so far, USDT, positive.")] = "0"
    funding: Annotated[Price, Meta(description="Got so far, USDT; negative when it was paid.")] = "0"
    ret_net_bp: Annotated[
        float | None, Meta(description="Return after costs on the entry's notional, basis points; null until closed.")
    ] = None


class Position(PositionDraft, frozen=True, kw_only=True):
    """A position was opened, protected or closed. Channel sig.position; the table `positions` holds it."""

    t_pub_us: PublishedUs


class ModeDraft(Struct, frozen=True, kw_only=True):
    """A change of the trading mode as it is stored; the publisher adds `t_pub_us`."""

    v: Version = 1
    type: Literal["mode"] = "mode"
    sym: Annotated[str, Meta(max_length=64, description="The symbol it is about; empty: all of them.")]
    mode: Annotated[str, Meta(description="off, paper or live: where new positions are opened from now on.")]
    prev: Annotated[str, Meta(description="The mode before.")]
    positions: Annotated[str, Meta(description="What becomes of open positions: keep, protect or flatten.")]
    T: Annotated[TimeMs, Meta(description="When it was changed, milliseconds UTC.")]
    until: Annotated[TimeMs | None, Meta(description="When the mode ends and becomes off; null for never.")] = None
    by: Annotated[str, Meta(description="Who changed it.")]
    reason: str


class Mode(ModeDraft, frozen=True, kw_only=True):
    """Somebody changed the trading mode. Channel sig.mode; the table `modes` holds it."""

    t_pub_us: PublishedUs


class ModelDraft(Struct, frozen=True, kw_only=True):
    """The change of the model as the engine writes it; the publisher adds `t_pub_us`."""

    v: Version = 1
    type: Literal["model"] = "model"
    slot: str
    since: CloseTime = field(name="from")
    model: str
    prev: Annotated[str | None, Meta(description="The model before.")]


class Model(ModelDraft, frozen=True, kw_only=True):
    """Another model decides from a minute on; sent with that minute's first decisions. Channel sig.model."""

    t_pub_us: PublishedUs


MESSAGES: dict[str, type[Struct]] = {
    "signal": Signal,
    "close": Close,
    "position": Position,
    "mode": Mode,
    "model": Model,
}
"""Each message by its `type`, which is also the outbox's `kind`."""


def with_number(payload: str, name: str, value: int) -> str:
    """The JSON object `payload` with one more member at its end.

    Spliced, not decoded: this lies between decision and bus, and payloads come from our own encoder. Raises ValueError
    for a text that cannot be an object.
    """
    if payload[-1:] != "}":
        raise ValueError("the payload of a message must be a JSON object")
    comma = "" if payload == "{}" else ","
    return f'{payload[:-1]}{comma}"{name}":{value}}}'


def json_schema(name: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of the message `name` of `MESSAGES`. Raises KeyError for another name."""
    (reference,), parts = msgspec.json.schema_components([MESSAGES[name]], ref_template="#/$defs/{name}")
    for part in parts.values():
        # Defaults are for whoever reads a stream entry, where nulls are left out. In a payload everything is there.
        part["required"] = list(part["properties"])
        part["description"] = inspect.cleandoc(part["description"])
        for each in part["properties"].values():
            each.pop("default", None)
    own = parts.pop(reference["$ref"].rpartition("/")[2])
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", **own}
    return head | ({"$defs": parts} if parts else {})
