"""Rows as frames: which columns there are and of what kind, times as people and as programs want them."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from perpline.common.errors import NeedsPerson

As = Literal["polars", "pandas"]
Frame: TypeAlias = Any
"""A polars.DataFrame, or with as_="pandas" a pandas.DataFrame of the same columns."""
Moment = datetime | date | str | int | np.datetime64
Kind = Literal["text", "number", "single", "whole", "flag", "time", "time_us", "decimal"]
"""`time` and `time_us` come as integers and become two columns: NAME as UTC datetime, NAME_ms or NAME_us as integer.
`decimal` comes as exact text and becomes a float; `single` is a float32."""

EARLIEST, LATEST = 0, 1 << 53

CANDLES: dict[str, Kind] = {
    "symbol": "text",
    "open_time": "time",
    "close_time": "time",
    "open": "number",
    "high": "number",
    "low": "number",
    "close": "number",
    "volume": "number",
    "quote_volume": "number",
    "trades": "whole",
    "taker_buy_volume": "number",
    "taker_buy_quote_volume": "number",
    "synthetic": "flag",
    "source": "text",
    "received_at": "time",
}
SIGNALS: dict[str, Kind] = {
    "symbol": "text",
    "close_time": "time",
    "slot": "text",
    "status": "text",
    "detail": "text",
    "side": "whole",
    "p_raw": "number",
    "p_cal": "number",
    "ev_bp": "number",
    "threshold": "number",
    "tp_pct": "number",
    "sl_pct": "number",
    "horizon_s": "whole",
    "cost_bp": "number",
    "ref_mark": "decimal",
    "ref_last": "decimal",
    "bid": "decimal",
    "ask": "decimal",
    "tp_price": "decimal",
    "sl_price": "decimal",
    "valid_until": "time",
    "model_id": "text",
    "schema_hash": "text",
    "label_hash": "text",
    "feat_ref": "text",
    "signal_id": "text",
    "seq": "whole",
    "xs_n": "whole",
    "late_mask": "whole",
    "nan_count": "whole",
    "ood_share": "number",
    "t_candle_recv": "time_us",
    "t_features": "time_us",
    "t_predict": "time_us",
    "t_commit": "time_us",
    "engine_ver": "text",
}
PREDICTED: dict[str, Kind] = {"p_long": "number", "p_short": "number"}
OUTCOME: dict[str, Kind] = {
    "outcome_reason": "text",
    "outcome_exit": "time",
    "outcome_net": "number",
    "outcome_worst": "number",
    "outcome_best": "number",
}
OUTCOMES: dict[str, Kind] = {
    "symbol": "text",
    "close_time": "time",
    "slot": "text",
    "model_id": "text",
    "side": "whole",
    "p": "number",
    "won": "flag",
    "net": "number",
    "gross": "number",
    "reason": "text",
    "end": "time",
    "worst": "number",
    "best": "number",
}
GAPS: dict[str, Kind] = {
    "symbol": "text",
    "series": "text",
    "from_time": "time",
    "to_time": "time",
    "cause": "text",
    "detected_at": "time",
    "repaired_at": "time",
    "repaired_by": "text",
    "id": "whole",
}
POSITIONS: dict[str, Kind] = {
    "account": "text",
    "position_id": "text",
    "symbol": "text",
    "side": "whole",
    "status": "text",
    "quantity": "decimal",
    "opened_quantity": "decimal",
    "entry_price": "decimal",
    "exit_price": "decimal",
    "target": "decimal",
    "stop": "decimal",
    "protective_stop": "decimal",
    "deadline": "time",
    "reference_mark": "decimal",
    "best_mark": "decimal",
    "signal_id": "text",
    "origin": "text",
    "opened_at": "time",
    "closed_at": "time",
    "exit_reason": "text",
    "realized_pnl": "decimal",
    "fees": "decimal",
    "funding": "decimal",
    "naked_ms": "whole",
    "updated_at": "time",
}
EQUITY: dict[str, Kind] = {
    "account": "text",
    "minute": "time",
    "wallet": "decimal",
    "unrealized": "decimal",
    "equity": "decimal",
}
INPUTS: dict[str, Kind] = {
    "table": "text",
    "rows": "whole",
    "first": "time",
    "last": "time",
    "sources": "text",
    "came_later": "whole",
    "late": "flag",
}
VECTOR: dict[str, Kind] = {
    "name": "text",
    "group": "text",
    "served": "single",
    "recomputed": "single",
    "same": "flag",
    "late": "flag",
    "low": "number",
    "high": "number",
    "made_of": "text",
}
_OF_A_TRADE: dict[str, Kind] = {"won": "flag", "net": "number", "gross": "number", "reason": "text", "end": "time"}
LABELS: dict[str, Kind] = {
    f"label_{name}_{side}": kind for side in ("long", "short") for name, kind in _OF_A_TRADE.items()
}


def milliseconds(moment: Moment | None, otherwise: int) -> int:
    """The instant in milliseconds UTC; a datetime or text without a zone is UTC, None is `otherwise`.

    Raises NeedsPerson for what is no time, and for a number that is too small for milliseconds of this century.
    """
    if moment is None:
        return otherwise
    if isinstance(moment, np.datetime64):
        return int(moment.astype("datetime64[ms]").astype(np.int64))
    if isinstance(moment, str):
        text = moment.strip().removesuffix(" UTC")
        if text.isdecimal() and len(text) == 13:
            return int(text)
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise NeedsPerson(f"no time: {moment!r}; 2026-11-20T13:57 is one, in UTC") from None
    if isinstance(moment, datetime):
        return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    if isinstance(moment, date):
        return round(datetime(moment.year, moment.month, moment.day, tzinfo=UTC).timestamp() * 1000)
    if isinstance(moment, bool) or not isinstance(moment, int | np.integer):
        raise NeedsPerson(f"no time: {moment!r}; a datetime, an ISO text or milliseconds are")
    if not 946_684_800_000 <= moment < LATEST:
        raise NeedsPerson(f"{moment} is no time in milliseconds: 1795410660000 is 2026-11-23 05:11 UTC")
    return int(moment)


def from_rows(rows: Iterable[Sequence[Any]], kinds: Mapping[str, Kind], as_: As) -> Frame:
    """Rows with their values in the order of `kinds`."""
    columns = list(zip(*rows, strict=True)) or [()] * len(kinds)
    return from_columns(dict(zip(kinds, columns, strict=True)), kinds, as_)


def from_columns(columns: Mapping[str, Sequence[Any] | NDArray[Any]], kinds: Mapping[str, Kind], as_: As) -> Frame:
    """Columns of equal length, those that `kinds` does not name as numbers, in their order. Empty is null."""
    pl = polars()
    made: dict[str, Any] = {}
    for name, values in columns.items():
        kind = kinds.get(name)
        if kind in ("time", "time_us"):
            unit: Literal["ms", "us"] = "ms" if kind == "time" else "us"
            # What was never reached is 0 in the tables: no instant of any market.
            whole = pl.Series(f"{name}_{unit}", values, dtype=pl.Int64).replace(0, None)
            made[name] = whole.cast(pl.Datetime(unit, "UTC"))
            made[whole.name] = whole
        elif kind == "decimal":
            made[name] = pl.Series(name, values, dtype=pl.String).cast(pl.Float64)
        elif kind is None and isinstance(values, np.ndarray):
            made[name] = pl.Series(name, values)
        else:
            kept = {"text": pl.String, "whole": pl.Int64, "flag": pl.Boolean, "single": pl.Float32}.get(
                kind or "", pl.Float64
            )
            made[name] = pl.Series(name, values, dtype=kept, strict=False)
    frame = pl.DataFrame(made)
    if as_ == "polars":
        return frame
    if as_ != "pandas":
        raise NeedsPerson(f'as_ is "polars" or "pandas", not {as_!r}')
    try:
        return frame.to_pandas()
    except ModuleNotFoundError as error:
        raise NeedsPerson(f"as_=\"pandas\" needs one more package: pip install '{error.name}'") from None


def split(frame: Frame) -> tuple[Frame, Frame, Frame]:
    """(X, labels, weights) of what `Lab.frame` gave: the features, what became of the trades, what each row weighs."""
    names = list(frame.columns)
    labels = [name for name in names if name.startswith("label_")]
    weights = [name for name in names if name.startswith("weight_")]
    others = {"symbol", "close_time", "close_time_ms", *labels, *weights}
    return frame[[name for name in names if name not in others]], frame[labels], frame[weights]


def polars() -> Any:
    """The module. Raises NeedsPerson with what to install where it is missing."""
    try:
        import polars
        import pyarrow  # noqa: F401  # its absence is better told now than by the first frame for pandas
    except ModuleNotFoundError:
        raise NeedsPerson("the lab needs polars and more: pip install 'perpline[lab]'") from None
    return polars
