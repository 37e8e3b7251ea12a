"""The notebook's door: what is stored and what was decided, as polars or pandas frames, and plots of it.

    from perpline import lab

    lab.candles("BTCUSDT", "2026-11-20", "2026-11-21")

The functions of this module read the database of the settings (perpline.toml, PERPLINE_…); `open` names another one.
They may be called where an event loop runs already, and leave nothing open. Times are datetimes, ISO texts (UTC unless
they say otherwise) or milliseconds; spans are start <= t < end, and None is open. docs/lab.md lists every column.

The extra `[lab]` brings polars, pyarrow and matplotlib; for `as_="pandas"` pandas has to be there too.
"""

from collections.abc import Sequence
from pathlib import Path

from perpline.common.errors import NeedsPerson
from perpline.domain.exit_rule import LabelRule
from perpline.domain.order import Account
from perpline.lab.frames import As, Frame, Moment, split
from perpline.lab.laboratory import DEFAULT_LABEL, Lab, Symbols
from perpline.lab.plots import plot_calibration, plot_candles, plot_equity, plot_features
from perpline.lab.served import Served

__all__ = [
    "DEFAULT_LABEL",
    "Lab",
    "LabelRule",
    "NeedsPerson",
    "Served",
    "candles",
    "equity",
    "features",
    "frame",
    "gaps",
    "open",
    "outcomes",
    "plot_calibration",
    "plot_candles",
    "plot_equity",
    "plot_features",
    "positions",
    "signals",
    "split",
]


def open(database: str | Path | None = None, config: str | Path | None = None) -> Lab:
    """A `Lab` of this database: a URL, or the path of a SQLite file; and of this settings file.

    Raises NeedsPerson where there is no such database or its schema is another one.
    """
    return Lab(database, config)


def candles(
    symbol: str, start: Moment | None = None, end: Moment | None = None, *, interval: str = "1m", as_: As = "polars"
) -> Frame:
    """`Lab.candles` of the settings' database."""
    return open().candles(symbol, start, end, interval=interval, as_=as_)


def features(symbol: str, t: Moment, *, slot: str | None = None, as_: As = "polars") -> Served:
    """`Lab.features` of the settings' database."""
    return open().features(symbol, t, slot=slot, as_=as_)


def frame(
    symbols: Symbols = None,
    start: Moment | None = None,
    end: Moment | None = None,
    *,
    features: str | Sequence[str] = "candles",
    label: LabelRule = DEFAULT_LABEL,
    as_: As = "polars",
) -> Frame:
    """`Lab.frame` of the settings' database."""
    return open().frame(symbols, start, end, features=features, label=label, as_=as_)


def signals(
    symbols: Symbols = None,
    start: Moment | None = None,
    end: Moment | None = None,
    *,
    slot: str | None = None,
    as_: As = "polars",
) -> Frame:
    """`Lab.signals` of the settings' database."""
    return open().signals(symbols, start, end, slot=slot, as_=as_)


def outcomes(
    symbols: Symbols = None,
    start: Moment | None = None,
    end: Moment | None = None,
    *,
    slot: str | None = None,
    label: LabelRule | None = None,
    as_: As = "polars",
) -> Frame:
    """`Lab.outcomes` of the settings' database."""
    return open().outcomes(symbols, start, end, slot=slot, label=label, as_=as_)


def gaps(
    symbols: Symbols = None,
    start: Moment | None = None,
    end: Moment | None = None,
    *,
    only_open: bool = False,
    as_: As = "polars",
) -> Frame:
    """`Lab.gaps` of the settings' database."""
    return open().gaps(symbols, start, end, only_open=only_open, as_=as_)


def positions(
    symbols: Symbols = None,
    start: Moment | None = None,
    end: Moment | None = None,
    *,
    account: Account | None = None,
    as_: As = "polars",
) -> Frame:
    """`Lab.positions` of the settings' database."""
    return open().positions(symbols, start, end, account=account, as_=as_)


def equity(
    start: Moment | None = None, end: Moment | None = None, *, account: Account | None = None, as_: As = "polars"
) -> Frame:
    """`Lab.equity` of the settings' database."""
    return open().equity(start, end, account=account, as_=as_)
