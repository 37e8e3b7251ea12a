"""A decision: what was concluded for one symbol at one close boundary T, and why.

gc=False: these hold nothing that could refer back to them, and hundreds are made at each close, where the collector
would stop to count them.
"""

from enum import StrEnum
from hashlib import blake2b

from msgspec import Struct


class Status(StrEnum):
    """Why a decision is what it is. Only `ok` has a side; every other one abstains for the named reason."""

    OK = "ok"
    FLAT = "flat"
    """The model was asked and found nothing worth its costs."""
    SKIPPED_WARMUP = "skipped_warmup"
    """Fewer contiguous minutes are held than the features look back."""
    SKIPPED_GAP = "skipped_gap"
    """A hole in the candles lies inside the features' window."""
    SKIPPED_STALE = "skipped_stale"
    """An input (mark price, book) is too old to price the signal, or the contract is halted."""
    SKIPPED_NAN = "skipped_nan"
    """A feature that the model calls critical has no value."""
    SKIPPED_OOD = "skipped_ood"
    """The features lie outside what the model was trained on."""
    SKIPPED_MODEL = "skipped_model"
    """No usable model, or it failed."""
    SKIPPED_MISSED = "skipped_missed"
    """The close was not known in time, or no process was alive. Never published to the trade stream."""
    COOLDOWN = "cooldown"
    """A signal of this symbol is still open or was recent."""


class Decision(Struct, frozen=True, kw_only=True, gc=False):
    """One row of `signals`; its fields are the table's columns in their order (`seq` and `t_commit` are the store's).

    Prices that our orders will use are decimal text; times are milliseconds, `t_*` microseconds of our clock.
    """

    signal_id: str
    slot: str
    symbol: str
    close_time: int
    """T, the close boundary (…000)."""
    side: int
    status: Status
    detail: str = ""
    """The reason in words, for a person: which feature, which input, how old."""
    model_id: str = ""
    schema_hash: str = ""
    label_hash: str = ""
    p_raw: float | None = None
    p_cal: float | None = None
    ev_bp: float | None = None
    threshold: float | None = None
    tp_pct: float | None = None
    sl_pct: float | None = None
    horizon_s: int | None = None
    cost_bp: float | None = None
    ref_mark: str | None = None
    ref_last: str | None = None
    bid: str | None = None
    ask: str | None = None
    tp_price: str | None = None
    sl_price: str | None = None
    valid_until: int = 0
    feat_ref: str = ""
    """blake2b-128 of the float32 feature vector that was scored."""
    xs_n: int = 0
    """How many symbols were decided together."""
    late_mask: int = 0
    nan_count: int = 0
    ood_share: float = 0.0
    t_candle_recv: int = 0
    t_features: int = 0
    t_predict: int = 0
    engine_ver: str = ""


class Prediction(Struct, frozen=True, kw_only=True, gc=False):
    """One row of `predictions`: what a model said, whether or not it was traded, with the exact vector it was given."""

    slot: str
    symbol: str
    close_time: int
    model_id: str
    p_long_raw: float | None
    p_short_raw: float | None
    p_long: float | None
    p_short: float | None
    features: bytes
    """float32, little endian, in the order of the model's feature list."""
    feat_ref: str


class Message(Struct, frozen=True, kw_only=True, gc=False):
    """One outbox row on its way out.

    `kind` is signal, close, position, model or mode. `payload` is the JSON text that consumers get (features.md 4.3).
    """

    id: int
    """The outbox row's number: order of publication."""
    kind: str
    slot: str
    symbol: str
    """Empty for messages that are not about one symbol."""
    close_time: int
    """T, and with it the stream id `<T>-0` that makes a resend harmless."""
    payload: str
    valid_until: int
    """After this instant (our market time, ms) the message is history: kept in the stream, not announced."""


def signal_id(slot: str, model_id: str, symbol: str, close_time: int) -> str:
    """The decision's own id: 32 hex digits, the same in every replay (features.md 4.1)."""
    return blake2b(f"v1:{slot}:{model_id}:{symbol}:{close_time}".encode(), digest_size=16).hexdigest()
