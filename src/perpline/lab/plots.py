"""Pictures of the lab's frames: each function draws on one Axes, its own or a given one, and returns it."""

import math
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from perpline.common.errors import NeedsPerson
from perpline.lab.frames import Frame
from perpline.lab.served import Served

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UP, DOWN, INK, QUIET, ACCENT = "#2a8f82", "#c8553d", "#33373d", "#9aa1ab", "#3b6fb6"
LONG, SHORT = "#1d4e9e", "#7a2a86"
"""Of signals: beside green and red candles they must not be lost."""
ACCOUNTS = {"paper": ACCENT, "live": "#b8860b"}
CONFIDENT = 1.96
"""Standard errors of a 95 % interval."""


def plot_candles(
    frame: Frame, signals: Frame | None = None, positions: Frame | None = None, *, ax: "Axes | None" = None
) -> "Axes":
    """The candles of one symbol; signals (status ok) as triangles at their price, positions from entry to exit with
    target (dotted) and stop (dashed), green where they earned and red where they lost. Times are UTC.

    Signals and positions of other symbols and times are left out. Raises NeedsPerson without a candle.
    """
    opened = _numbers(frame, "open_time_ms")
    symbols = sorted(set(_texts(frame, "symbol")))
    if len(symbols) != 1:
        raise NeedsPerson("plot_candles draws the candles of one symbol, and at least one of them")
    [symbol] = symbols
    ax = _axes(ax, (11, 4.5))
    times = _dates(opened)
    opens, highs, lows, closes = (_numbers(frame, name) for name in ("open", "high", "low", "close"))
    width = float(np.median(np.diff(times))) if len(times) > 1 else 1 / 1440
    for rising, colour in ((True, UP), (False, DOWN)):
        mine = (closes >= opens) == rising
        at = times[mine] + width / 2
        ax.vlines(at, lows[mine], highs[mine], color=colour, linewidth=0.7)
        height = np.maximum(np.abs(closes - opens), (highs - lows) * 0.02)[mine]
        ax.bar(at, height, width * 0.7, np.minimum(opens, closes)[mine], color=colour, linewidth=0)
    begin, end = opened[0], opened[-1] + width * 86_400_000
    if signals is not None:
        _draw_signals(ax, signals, symbol, begin, end)
    if positions is not None:
        _draw_positions(ax, positions, symbol, begin, end)
    ax.set_title(f"{symbol}, UTC", loc="left")
    ax.set_ylabel("price")
    ax.ticklabel_format(axis="y", style="plain", useOffset=False)
    ax.set_xlim(times[0], times[-1] + width)
    _time_axis(ax)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(loc="best", frameon=False, fontsize="small")
    return ax


def plot_calibration(outcomes: Frame, *, bins: int = 10, ax: "Axes | None" = None) -> "Axes":
    """How often trades with some probability won: of `Lab.outcomes`, or any frame with the columns `p` and `won`.

    Each dot is a bin of equally many rows with its 95 % interval (Wilson). Rows of neighbouring minutes are nearly the
    same trade, so the true intervals are wider. Raises NeedsPerson without a row.
    """
    p, won = _numbers(outcomes, "p"), _numbers(outcomes, "won")
    known = np.isfinite(p)
    p, won = p[known], won[known]
    if not len(p):
        raise NeedsPerson("no outcome is known yet: trades need their whole horizon of prices after the decision")
    ax = _axes(ax, (5, 5))
    order = np.argsort(p, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, len(order))) if len(part)]
    means = np.array([p[part].mean() for part in parts])
    rates = np.array([won[part].mean() for part in parts])
    low, high = _wilson(rates, np.array([len(part) for part in parts]))
    ax.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle="--", label="what is said is what happens")
    ax.vlines(means, low, high, color=ACCENT, linewidth=1.2, alpha=0.6)
    ax.plot(means, rates, "o", color=ACCENT, markersize=5, label=f"{len(parts)} bins of {len(parts[0]):,} rows")
    ax.axhline(won.mean(), color=QUIET, linewidth=0.8, linestyle=":", label=f"all: {won.mean():.3f}")
    edge = max(0.02, 0.1 * float(max(means.max(), high.max()) - min(means.min(), low.min())))
    limits = (max(0.0, min(means.min(), low.min()) - edge), min(1.0, max(means.max(), high.max()) + edge))
    ax.set_xlim(*limits)
    ax.set_ylim(*limits)
    ax.set_xlabel("calibrated probability")
    ax.set_ylabel("share that won")
    ax.set_title("calibration", loc="left")
    ax.legend(loc="upper left", frameon=False, fontsize="small")
    return ax


def plot_equity(equity: Frame, *, ax: "Axes | None" = None) -> "Axes":
    """The equity of each account, its deepest fall shaded and named. Raises NeedsPerson without a row."""
    accounts = _texts(equity, "account")
    if not accounts:
        raise NeedsPerson("no equity is stored in this span: it is written while paper or live trading runs")
    ax = _axes(ax, (11, 3.5))
    minutes, values = _numbers(equity, "minute_ms"), _numbers(equity, "equity")
    for account in sorted(set(accounts)):
        mine = np.array([name == account for name in accounts])
        order = np.argsort(minutes[mine], kind="stable")
        times, worth = _dates(minutes[mine][order]), values[mine][order]
        colour = ACCOUNTS.get(account, INK)
        best = np.maximum.accumulate(worth)
        fall = float(((best - worth) / best).max())
        ax.plot(times, worth, color=colour, linewidth=1.3, label=f"{account}, deepest fall {fall:.2%}")
        ax.fill_between(times, worth, best, color=colour, alpha=0.12, linewidth=0)
    ax.set_title("equity, UTC", loc="left")
    ax.set_ylabel("USDT")
    ax.ticklabel_format(axis="y", style="plain", useOffset=False)
    _time_axis(ax)
    ax.legend(loc="best", frameon=False, fontsize="small")
    return ax


def plot_features(served: Served, *, names: Sequence[str] | None = None, ax: "Axes | None" = None) -> "Axes":
    """Where the served vector stands within what training had: 0 is the 0.1 % quantile of each column, 1 its 99.9 %.

    Dots outside are red, columns without a value hollow at the left edge. `names`: only these columns. Raises
    NeedsPerson where the model says nothing of its training.
    """
    low, high = _numbers(served.frame, "low"), _numbers(served.frame, "high")
    values = served.values.astype(np.float64)
    wanted = [at for at, name in enumerate(served.names) if names is None or name in names]
    if not wanted or not np.isfinite(low).any():
        raise NeedsPerson(f"{served.model_id} says nothing of the range that these columns had in training")
    groups = _texts(served.frame, "group")
    ax = _axes(ax, (7, max(2.0, 0.17 * len(wanted) + 0.8)))
    span = np.where(high > low, high - low, np.nan)
    with np.errstate(invalid="ignore"):
        place = np.clip((values - low) / span, -0.08, 1.08)
        outside = (values < low) | (values > high)
    for row, at in enumerate(wanted):
        if math.isnan(values[at]):
            ax.plot(-0.08, row, "o", markersize=4, markerfacecolor="none", markeredgecolor=QUIET)
        else:
            # A column that never moved in training has no width: it stands in the middle.
            x = 0.5 if math.isnan(place[at]) else float(place[at])
            ax.plot(x, row, "o", markersize=4, color=DOWN if outside[at] else ACCENT)
        if row and groups[at] != groups[wanted[row - 1]]:
            ax.axhline(row - 0.5, color=QUIET, linewidth=0.4)
    ax.axvspan(0, 1, color=QUIET, alpha=0.12, linewidth=0)
    ax.set_yticks(range(len(wanted)), [served.names[at] for at in wanted], fontsize=7)
    ax.set_ylim(len(wanted) - 0.5, -0.5)
    ax.set_xlim(-0.12, 1.12)
    ax.set_xticks([0, 0.5, 1], ["0.1 %", "", "99.9 %"])
    ax.set_xlabel("of what training had")
    ax.set_title(f"{served.symbol} at {served.close_time:%Y-%m-%d %H:%M} UTC", loc="left", fontsize="medium")
    ax.grid(False, axis="y")
    return ax


def _draw_signals(ax: "Axes", signals: Frame, symbol: str, begin: float, end: float) -> None:
    times, sides = _numbers(signals, "close_time_ms"), _numbers(signals, "side")
    prices = _numbers(signals, "ref_last")
    prices = np.where(np.isfinite(prices), prices, _numbers(signals, "ref_mark"))
    statuses, symbols = _texts(signals, "status"), _texts(signals, "symbol")
    mine = np.array([of == symbol and status == "ok" for of, status in zip(symbols, statuses, strict=True)], np.bool_)
    mine &= (times >= begin) & (times <= end)
    for side, marker, colour, name in ((1, "^", LONG, "long"), (-1, "v", SHORT, "short")):
        shown = mine & (sides == side)
        if shown.any():
            ax.scatter(
                _dates(times[shown]), prices[shown], 60, color=colour, marker=marker, edgecolor="white",
                linewidth=0.6, zorder=4, label=f"{shown.sum()} {name}",
            )  # fmt: skip


def _draw_positions(ax: "Axes", positions: Frame, symbol: str, begin: float, end: float) -> None:
    opened, closed = _numbers(positions, "opened_at_ms"), _numbers(positions, "closed_at_ms")
    entry, leaving = _numbers(positions, "entry_price"), _numbers(positions, "exit_price")
    earned = _numbers(positions, "realized_pnl") - _numbers(positions, "fees") + _numbers(positions, "funding")
    levels = ((_numbers(positions, "target"), ":"), (_numbers(positions, "stop"), "--"))
    for row, of in enumerate(_texts(positions, "symbol")):
        until = end if math.isnan(closed[row]) else min(closed[row], end)
        if of != symbol or not math.isfinite(entry[row]) or opened[row] > end or until < begin:
            continue
        first, last = _dates(np.array([max(opened[row], begin), until]))
        over = math.isfinite(leaving[row])
        colour = QUIET if not over else UP if earned[row] > 0 else DOWN
        ax.plot(
            [first, last], [entry[row], leaving[row] if over else entry[row]], color=colour, linewidth=1.6, zorder=3
        )
        for values, style in levels:
            if math.isfinite(values[row]):
                ax.hlines(values[row], first, last, color=colour, linewidth=0.8, linestyle=style, zorder=3)


def _axes(ax: "Axes | None", size: tuple[float, float]) -> "Axes":
    """The given Axes or those of a new figure, made calm. Raises NeedsPerson without matplotlib."""
    try:
        from matplotlib import pyplot  # an extra, and slow to import
    except ModuleNotFoundError:
        raise NeedsPerson("plots need matplotlib: pip install 'perpline[lab]'") from None
    if ax is None:
        _, ax = pyplot.subplots(figsize=size, layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(QUIET)
    ax.tick_params(colors=INK, labelsize=8)
    ax.grid(True, color=QUIET, alpha=0.2, linewidth=0.6)
    ax.set_axisbelow(True)
    return ax


def _time_axis(ax: "Axes") -> None:
    dates: Any = import_module("matplotlib.dates")  # its types are not told
    locator = dates.AutoDateLocator(minticks=4, maxticks=9)
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))


def _numbers(frame: Frame, name: str) -> NDArray[np.float64]:
    """A column of either kind of frame; what is empty is NaN."""
    return np.array([math.nan if value is None or value != value else value for value in _values(frame, name)], float)


def _texts(frame: Frame, name: str) -> list[str]:
    return ["" if value is None or value != value else str(value) for value in _values(frame, name)]


def _values(frame: Frame, name: str) -> list[Any]:
    if name not in frame.columns:
        raise NeedsPerson(f"the frame has no column {name}")
    return list(frame[name].to_list())


def _dates(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Days since 1970, which is what matplotlib's time axes count in."""
    return times / 86_400_000


def _wilson(rates: NDArray[np.float64], counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The 95 % interval of a share (Wilson 1927)."""
    square = CONFIDENT**2 / counts
    middle = (rates + square / 2) / (1 + square)
    half = CONFIDENT * np.sqrt(rates * (1 - rates) / counts + square / (4 * counts)) / (1 + square)
    return middle - half, middle + half
