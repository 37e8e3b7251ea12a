"""What came out of a backtest: figures, one self-contained page, and the trades as a table for other programs."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import msgspec
import numpy as np

from perpline.backtest.run import LAST_TRADES, Bars, SymbolRun, joined_agreement
from perpline.backtest.trades import Trade
from perpline.domain.exit_rule import STOP, STOP_FIRST, TARGET, TIMEOUT, LabelRule
from perpline.domain.signal import Status
from perpline.inference.artefact import LoadedModel
from perpline.training.evaluate import Trades, days_of, trading
from perpline.training.examples import Examples
from perpline.training.page import (
    HEIGHT,
    MARGIN,
    WIDTH,
    bar_plot,
    day,
    height_of,
    interval,
    line_plot,
    minute,
    number,
    page,
    percent,
    plot,
    section,
    table,
)

WEEK_MS = 7 * 86_400_000
CHARTS = 12
"""As many symbols are drawn, those with the most trades."""

_REASONS = {"target": TARGET, "stop": STOP, "ambiguous": STOP_FIRST, "timeout": TIMEOUT}


def summary(
    runs: Sequence[SymbolRun], model: LoadedModel, rule: LabelRule, start: int, end: int, slot: str
) -> dict[str, Any]:
    """report.json: everything but the signals and trades themselves. The same runs give the same bytes.

    Times are ms, results basis points of the money in one trade; intervals are drawn with a fixed seed.
    """
    statuses: Counter[str] = Counter()
    for run in runs:
        statuses.update(run.statuses)
    trades = [trade for run in runs for trade in run.trades]
    return {
        "model_id": model.model_id,
        "slot": slot,
        "from": start,
        "to": end,
        "rule": msgspec.to_builtins(rule),
        "threshold": model.threshold,
        "ev_min_bp": model.ev_min_bp,
        "trained_to": model.manifest.train.to,
        "within_training": start < model.manifest.train.to,
        "minutes": sum(run.minutes for run in runs),
        "statuses": dict(sorted(statuses.items())),
        "signals": statuses[Status.OK],
        "trades": len(trades),
        "open": sum(trade.reason == "open" for trade in trades),
        "unknown": sum(trade.reason == "unknown" for trade in trades),
        "trading": _metrics(runs, trades, rule, start, end),
        "by_symbol": [_symbol_row(run) for run in runs],
        "by_week": _weeks(trades, start, end),
        "live": msgspec.to_builtins(joined_agreement(runs)),
        "assumed_fresh": {name: sum(run.assumed_fresh[name] for run in runs) for name in ("mark", "book")},
    }


def _metrics(
    runs: Sequence[SymbolRun], trades: Sequence[Trade], rule: LabelRule, start: int, end: int
) -> dict[str, Any]:
    """`training.evaluate.trading` of the trades that are over."""
    order = {run.symbol: index for index, run in enumerate(runs)}
    over = [trade for trade in trades if trade.over]
    count = len(over)
    none = np.zeros(0, np.int64)
    taken = Trades(
        row=np.arange(count),
        column=np.array([0 if trade.side > 0 else 1 for trade in over], np.int64),
        begin=np.array([trade.close_time for trade in over], np.int64),
        end=np.array([trade.exit_time for trade in over], np.int64),
        gross=np.array([trade.gross for trade in over], np.float64),
        net=np.array([trade.net for trade in over], np.float64),
        reason=np.array([_REASONS[trade.reason] for trade in over], np.int8),
        symbol=np.array([order[trade.symbol] for trade in over], np.int32),
    )
    symbols_only = Examples(
        symbols=tuple(order),
        names=(),
        symbol=none.astype(np.int32),
        times=none,
        ends=none,
        reason=np.zeros((0, 2), np.int8),
        net=np.zeros((0, 2)),
        gross=np.zeros((0, 2)),
        side_ends=np.zeros((0, 2), np.int64),
        unique=np.zeros((0, 2)),
        sources=[],
        source_row=none,
    )
    days = days_of(np.array([start, end - 1]), rule, np.random.default_rng(0))
    return trading(symbols_only, taken, days)


def _symbol_row(run: SymbolRun) -> dict[str, Any]:
    over = [trade for trade in run.trades if trade.over]
    return {
        "symbol": run.symbol,
        "minutes": run.minutes,
        "signals": run.statuses.get(Status.OK, 0),
        "trades": len(run.trades),
        "long": sum(trade.side > 0 for trade in run.trades),
        "won": sum(trade.net > 0 for trade in over),
        "over": len(over),
        "gross_bp": sum(trade.gross for trade in over) * 1e4,
        "net_bp": sum(trade.net for trade in over) * 1e4,
        "worst_mae_bp": min((trade.mae for trade in over), default=0.0) * 1e4,
        "skipped": sum(count for status, count in run.statuses.items() if status.startswith("skipped_")),
        "mark_history": run.has_mark,
    }


def _weeks(trades: Sequence[Trade], start: int, end: int) -> list[dict[str, Any]]:
    """By week of the entry, weeks without a trade too; weeks begin on Thursdays, as the epoch did."""
    made = []
    for week in range(start // WEEK_MS, (end - 1) // WEEK_MS + 1):
        mine = [trade for trade in trades if trade.close_time // WEEK_MS == week]
        over = [trade for trade in mine if trade.over]
        made.append(
            {
                "from": max(start, week * WEEK_MS),
                "trades": len(mine),
                "won": sum(trade.net > 0 for trade in over),
                "gross_bp": sum(trade.gross for trade in over) * 1e4,
                "net_bp": sum(trade.net for trade in over) * 1e4,
            }
        )
    return made


def trades_csv(runs: Sequence[SymbolRun]) -> str:
    """A line for each trade, by symbol and time; empty where there is no number."""
    return _csv(Trade.__struct_fields__, [trade for run in runs for trade in run.trades])


def signals_csv(runs: Sequence[SymbolRun]) -> str:
    """A line for each signal, by symbol and time."""
    signals = [signal for run in runs for signal in run.signals]
    return _csv(("signal_id", "symbol", "close_time", "side", "p", "ev_bp", "traded"), signals)


def _csv(columns: Sequence[str], rows: Sequence[msgspec.Struct]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = [getattr(row, column) for column in columns]
        writer.writerow(["" if value != value else value for value in values])
    return text.getvalue()


# ---- the page


def report_html(report: Mapping[str, Any], runs: Sequence[SymbolRun]) -> str:
    """The page for what `summary` says of these runs."""
    traded = sorted(runs, key=lambda run: (-len(run.trades), run.symbol))
    drawn = [run for run in traded if run.trades][:CHARTS]
    sections = [
        f"<p>{escape(_headline(report))}</p>",
        *(f'<p class="note">{escape(text)}</p>' for text in caveats(report)),
        section("After costs", _money(report)),
        section("Weeks", _week_table(report["by_week"])),
        section("Symbols", _symbol_table(report["by_symbol"])),
        section("What was decided", _statuses(report)),
        section("Beside the live decisions", _agreement(report["live"])),
        section("Entries and exits", _charts(drawn, sum(bool(run.trades) for run in runs))),
        section("Trades", _trade_table(drawn)),
    ]
    return page(f"Backtest of {report['model_id']}", "\n".join(sections))


def _headline(report: Mapping[str, Any]) -> str:
    rule = report["rule"]
    return (
        f"{minute(report['from'])} to {minute(report['to'])} UTC, {len(report['by_symbol'])} symbols, "
        f"{report['minutes']:,} decisions, {report['signals']:,} signals, {report['trades']:,} trades. Target "
        f"{rule['tp_pct']:g} %, stop {rule['sl_pct']:g} %, {rule['horizon_s'] / 3600:g} h, costs {rule['cost_bp']:g} "
        f"bp; signal from p {report['threshold']:.3f} and EV {report['ev_min_bp']:+.1f} bp on."
    )


def caveats(report: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing the figures, in sentences."""
    said = []
    if report["within_training"]:
        said.append(
            f"The model was trained on data until {minute(report['trained_to'])}: what it earns before is no evidence."
        )
    if report["rule"]["price"] == "last":
        said.append("Exits are triggered by the last price here, and by the mark price at the exchange.")
    for name, words in (("mark", "mark price"), ("book", "best bid and ask")):
        count = report["assumed_fresh"][name]
        if count:
            share = count / max(1, report["minutes"])
            said.append(
                f"The age of the {words} was not recorded for {share:.1%} of the minutes; there it counts as fresh."
            )
    if report["unknown"]:
        said.append(
            f"{report['unknown']} trades met a minute that history does not hold; nobody knows how they ended, and "
            "they are in no figure."
        )
    if report["open"]:
        said.append(f"{report['open']} trades were still open where history ends, and are in no figure.")
    return said


def _money(report: Mapping[str, Any]) -> str:
    mine = report["trading"]
    curve = [0.0, *np.cumsum(mine["daily_net_bp"]).tolist()]
    plot_html = line_plot([("net", [float(at) for at in range(len(curve))], curve)])
    facts = [
        ["net bp a trade", interval(mine["net_bp_per_trade"], 1)],
        ["gross bp a trade", interval(mine["gross_bp_per_trade"], 1)],
        ["net bp a day", interval(mine["net_bp_per_day"], 1)],
        ["net bp in all", f"{mine['total_net_bp']:+,.1f}"],
        ["won", percent(mine["win_share"]["value"], 1) if mine["win_share"] else ""],
        ["trades a day", f"{mine['trades_per_day']:.1f}"],
        ["minutes held", number(mine["holding_minutes"], 0)],
        ["share of the time in a trade", percent(mine["exposure"], 2)],
        ["largest drawdown, bp", f"{mine['max_drawdown_bp']:,.0f}"],
        ["Sharpe ratio a year", number(mine["sharpe_yearly"], 2)],
        ["probability that it is above zero (PSR)", number(mine["psr"], 3)],
        *(
            [f"net bp a day at costs × {multiple}", f"{value:+.1f}"]
            for multiple, value in mine["net_bp_per_day_by_cost"].items()
        ),
    ]
    return (
        f"<figure>{plot_html}<figcaption>net result by day of the entry, bp of the money in one trade; doing nothing "
        f"is the line at zero</figcaption></figure>{table(['', ''], facts)}"
        "<p>In brackets 95 % intervals from drawing whole days. Each trade has the same money in it.</p>"
    )


def _week_table(weeks: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            day(each["from"]),
            f"{each['trades']:,}",
            f"{each['won']:,}",
            f"{each['gross_bp']:+.1f}",
            f"{each['net_bp']:+.1f}",
        ]
        for each in weeks
    ]
    bars = bar_plot([(day(each["from"]), each["net_bp"]) for each in weeks])
    head = ["week from", "trades", "won", "gross bp", "net bp"]
    return f"<figure>{bars}<figcaption>net result by week, bp</figcaption></figure>{table(head, rows)}"


def _symbol_table(symbols: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            each["symbol"],
            f"{each['minutes']:,}",
            f"{each['signals']:,}",
            f"{each['trades']:,}",
            f"{each['long']:,}",
            f"{each['won']:,} of {each['over']:,}",
            f"{each['gross_bp']:+.1f}",
            f"{each['net_bp']:+.1f}",
            f"{each['worst_mae_bp']:.0f}",
        ]
        for each in symbols
    ]
    head = ["symbol", "minutes", "signals", "trades", "long", "won", "gross bp", "net bp", "worst excursion bp"]
    return table(head, rows)


def _statuses(report: Mapping[str, Any]) -> str:
    total = max(1, report["minutes"])
    return table(
        ["status", "minutes", "share"],
        [[status, f"{count:,}", percent(count / total, 2)] for status, count in report["statuses"].items()],
    )


def _agreement(live: Mapping[str, Any]) -> str:
    if not live["rows"] and not live["missed"]:
        return "<p>No live decisions of this model are stored for these minutes.</p>"
    said = (
        f"<p>{live['same']:,} of {live['rows']:,} stored decisions are the same in status, side, probability and id; "
        f"{live['differing']:,} differ. {live['repaired']:,} more differ where a candle was stored only after live had "
        f"decided, {live['late']:,} where live said an input was late. {live['missed']:,} minutes were missed live.</p>"
    )
    rows = [
        [each["symbol"], minute(each["close_time"]), *(_decision(each[name]) for name in ("live", "backtest"))]
        for each in live["examples"]
    ]
    return said + (table(["symbol", "T", "live", "backtest"], rows) if rows else "")


def _decision(each: Mapping[str, Any]) -> str:
    p = "" if each["p"] is None else f" p {each['p']:.6f}"
    return f"{each['status']} {each['side']:+d}{p}"


# ---- charts


def _charts(drawn: Sequence[SymbolRun], traded: int) -> str:
    if not drawn:
        return "<p>no trades</p>"
    more = (
        f"<p>Drawn are the {len(drawn)} symbols with the most trades, of {traded}.</p>" if traded > len(drawn) else ""
    )
    made = [
        more,
        "<p>A triangle at each entry points the way of the trade; a line leads to its exit, dashed if it lost.</p>",
    ]
    for run in drawn:
        made.append(f"<h3>{escape(run.symbol)}</h3>{_chart(run.bars, run.trades, f'{len(run.trades):,} trades')}")
        if len(run.trades) > LAST_TRADES:
            made.append(_chart(run.last_bars, run.trades[-LAST_TRADES:], f"the last {LAST_TRADES}"))
    return "".join(made)


def _chart(bars: Bars, trades: Sequence[Trade], words: str) -> str:
    caption = f"{words}, bars of {bars.minutes} min"
    return f"<figure>{candle_plot(bars, trades)}<figcaption>{escape(caption)}</figcaption></figure>"


def candle_plot(bars: Bars, trades: Sequence[Trade]) -> str:
    """Candles as inline SVG, with an entry and an exit for each trade that is over."""
    if not bars.time:
        return "<p>no candles</p>"
    low, high = min(bars.low), max(bars.high)
    if high <= low:
        high = low * 1.0001
    begin, length = bars.time[0], bars.minutes * 60_000
    step = (WIDTH - MARGIN - 8) / ((bars.time[-1] - begin) / length + 1)

    def across(time: int) -> float:
        return MARGIN + (time - begin) / length * step

    def up(price: float) -> float:
        return height_of(min(max(price, low), high), low, high)

    made = [_price_axis(low, high)]
    for at, time in enumerate(bars.time):
        x = across(time) + step / 2
        kind = "up" if bars.close[at] >= bars.open[at] else "down"
        top, bottom = up(max(bars.open[at], bars.close[at])), up(min(bars.open[at], bars.close[at]))
        made.append(
            f'<line stroke="currentColor" opacity=".35" x1="{x:.1f}" x2="{x:.1f}" y1="{up(bars.high[at]):.1f}" '
            f'y2="{up(bars.low[at]):.1f}"/><rect class="{kind}" opacity=".45" x="{x - step * 0.35:.1f}" y="{top:.1f}" '
            f'width="{step * 0.7:.1f}" height="{max(bottom - top, 0.5):.1f}"/>'
        )
    for trade in trades:
        if trade.over:
            made.append(_trade_marks(trade, across(trade.close_time), across(trade.exit_time), up))
    left, right = minute(begin), minute(bars.time[-1] + length)
    made.append(
        f'<text x="{MARGIN}" y="{HEIGHT - 1}">{left}</text>'
        f'<text x="{WIDTH - 8}" y="{HEIGHT - 1}" text-anchor="end">{right}</text>'
    )
    return plot("".join(made))


def _trade_marks(trade: Trade, x1: float, x2: float, up: Any) -> str:
    y1, y2 = up(trade.entry), up(trade.exit)
    way = 6 * trade.side
    dashes = "" if trade.net > 0 else ' stroke-dasharray="3 2"'
    words = (
        f"{'long' if trade.side > 0 else 'short'} {minute(trade.close_time)} at {trade.entry:.8g}, {trade.reason} "
        f"{minute(trade.exit_time)} at {trade.exit:.8g}, net {trade.net * 1e4:+.1f} bp, p {trade.p:.3f}"
    )
    return (
        f'<g><title>{escape(words)}</title><line class="s{0 if trade.side > 0 else 1}" stroke-width="1.4"{dashes} '
        f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
        f'<path class="s{0 if trade.side > 0 else 1}" fill="none" d="M{x1 - 4:.1f} {y1 + way / 2:.1f}h8l-4 {-way}z"/>'
        f'<circle class="s{0 if trade.side > 0 else 1}" fill="none" cx="{x2:.1f}" cy="{y2:.1f}" r="2.5"/></g>'
    )


def _price_axis(low: float, high: float) -> str:
    made = []
    for price in (low, (low + high) / 2, high):
        y = height_of(price, low, high)
        made.append(
            f'<line class="grid" x1="{MARGIN}" x2="{WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{MARGIN - 4}" y="{y + 4:.1f}" text-anchor="end">{price:.6g}</text>'
        )
    return "".join(made)


def _trade_table(drawn: Sequence[SymbolRun]) -> str:
    trades = [trade for run in drawn for trade in run.trades]
    rows = [
        [
            trade.symbol,
            "long" if trade.side > 0 else "short",
            minute(trade.close_time),
            minute(trade.exit_time),
            trade.reason,
            f"{trade.entry:.8g}",
            "" if trade.exit != trade.exit else f"{trade.exit:.8g}",
            f"{trade.target:.8g}",
            f"{trade.stop:.8g}",
            f"{trade.p:.3f}",
            "" if trade.gross != trade.gross else f"{trade.gross * 1e4:+.1f}",
            "" if trade.net != trade.net else f"{trade.net * 1e4:+.1f}",
            f"{trade.mae * 1e4:.0f}",
            f"{trade.mfe * 1e4:+.0f}",
        ]
        for trade in trades[:200]
    ]
    head = [
        "symbol", "side", "entered", "left", "because", "paid", "got", "target", "stop", "p", "gross bp", "net bp",
        "worst bp", "best bp",
    ]  # fmt: skip
    more = f"<p>The first 200 of {len(trades):,}; trades.csv has all.</p>" if len(trades) > 200 else ""
    return table(head, rows) + more
