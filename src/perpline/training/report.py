"""The report of a training as one HTML file: tables, plots drawn here, nothing fetched, light or dark as the screen."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from perpline.training.page import (
    MARGIN,
    bar_plot,
    day,
    interval,
    line_plot,
    minute,
    number,
    page,
    percent,
    section,
    sideways_plot,
    table,
)

Json = Mapping[str, Any]


def report_html(report: Json) -> str:
    """The page for what report.json holds."""
    verdict = report["verdict"]
    data, label = report["data"], report["label"]
    mood = "good" if verdict["beats_baselines"] else "bad"
    sections = [
        f'<p class="verdict {mood}">{escape(verdict["text"])}</p>',
        _note(report),
        section("What it was trained on", _data(data, label)),
        section("What it was asked", _label(label)),
        section("Skill out of sample", _skill(report["skill"])),
        section("Calibration", _calibration(report["skill"])),
        section("After costs", _trading(report)),
        section("Beside what it has to beat", _baselines(report)),
        section("Weeks", _weeks(report["eras"]) + _breaks(report)),
        section("Which columns it listens to", _columns(report)),
        section("Leak tests", _leaks(report["leaks"])),
        section("How it was judged", _folds(report)),
    ]
    return page(f"{report['name']}: report of a training", "\n".join(sections))


def _note(report: Json) -> str:
    said = [report["note"]] if report["note"] else []
    if report["label"]["price"] == "last":
        said.append("Labelled on the last price, not on the mark price that triggers exits at the exchange.")
    if report["label"]["lift_needed"] > 0.1:
        said.append(f"These levels need {report['label']['lift_needed'] * 100:.0f} points more than chance.")
    return "".join(f'<p class="note">{escape(each)}</p>' for each in said)


def _data(data: Json, label: Json) -> str:
    rows = [
        [
            each["symbol"],
            day(each["first"]),
            day(each["last"]) + (", delisted" if each["delisted"] else ""),
            f"{each['candles']:,}",
            percent(each["coverage"], 1),
            f"{each['holes']:,}",
            percent(each["synthetic_share"], 2),
            f"{each['without_mark']:,}" if label["price"] == "mark" else "not used",
            f"{each['settlements']:,}",
            f"{each['rows']:,}",
            f"{each['labelled']:,}",
            percent(each["ambiguous_share"], 2),
            f"{each['capacity_quote']:,.0f}",
        ]
        for each in data["symbols"]
    ]
    head = [
        "symbol", "first", "last", "candles", "of all minutes", "holes", "synthetic", "minutes without mark",
        "settlements", "rows", "labelled", "ambiguous", "1 % of a minute's turnover",
    ]  # fmt: skip
    facts = [
        ["rows with label and critical features", f"{data['rows']:,}"],
        ["left out: fewer than 90 % of the symbols in their minute", f"{data['thin_cross_section']:,}"],
        ["rows of the final fit (thinned)", f"{data['trained_rows']:,}"],
        ["mean uniqueness of a label", f"{data['mean_uniqueness']:.4f}"],
        ["effective rows", f"{data['n_eff']:,.0f}"],
        [
            "independent symbols",
            f"{data['independent_symbols']:.1f} (mean correlation of hourly returns {data['correlation']:.2f})",
        ],
        ["schema", f"{data['schema']}, {data['features']} columns"],
        ["dataset hash", f"<code>{escape(str(data['dataset_hash']))}</code>"],
    ]
    estimate = data["funding_estimate"]
    if estimate is not None:
        facts.append(
            [
                "fund_est and the rate that was settled, bp an hour apart",
                f"median {estimate['median']:.3f}, 99 % below {estimate['most']:.3f}, "
                f"{estimate['settlements']:,} settlements",
            ]
        )
    return table(head, rows) + table(["", ""], facts, raw=True)


def _label(label: Json) -> str:
    outcomes = [
        [side, *(percent(values[name], 1) for name in ("target", "timeout")), percent(values["ambiguous"], 2)]
        for side, values in label["outcomes"].items()
    ]
    lift = [
        [
            f"{each['tp_pct']:g} / {each['sl_pct']:g}" + (" (this model)" if each["chosen"] else ""),
            f"{each['cost_bp']:g}",
            f"{each['random']:.3f}",
            f"{each['break_even']:.3f}",
            f"{each['lift_needed'] * 100:+.1f} points",
        ]
        for each in label["lift_table"]
    ]
    return (
        f"<p>Exits are triggered by the {escape(label['price'])} price.</p>"
        + table(["side", "target first", "time ran out", "both in one minute (counted as stopped)"], outcomes)
        + table(["target / stop %", "costs bp", "by chance", "to break even", "needed beyond chance"], lift)
    )


def _skill(skill: Json) -> str:
    rows = []
    for name in ("long", "short", "direction"):
        each = skill[name]
        months, chance = each["symbol_months"], each["chance"]
        rows.append(
            [
                name,
                interval(each["auc"], 3),
                f"{chance['low']:.3f} to {chance['high']:.3f}" if chance else "too few days",
                f"{months['median']:.3f} ({months['low_5']:.3f})" if months else "",
                interval(each["log_loss_skill"], 4) if "log_loss_skill" in each else "",
                interval(each["brier_skill"], 4) if "brier_skill" in each else "",
                f"{each['base_rate']:.3f}" if "base_rate" in each else "",
            ]
        )
    head = ["head", "AUC", "AUC by chance", "symbol-months: median (5 %)", "log-loss skill", "Brier skill", "base rate"]
    return table(head, rows) + (
        "<p>In brackets 95 % intervals from drawing whole days. The direction asks only which side did better, so that "
        "knowing the volatility does not look like skill. Skill below zero is worse than always saying the base rate."
        "</p>"
    )


def _calibration(skill: Json) -> str:
    plots = []
    for name in ("long", "short"):
        bins = skill[name]["calibration"]["bins"]
        points = [
            (each["p"], each["observed"]["value"], each["observed"]["low"], each["observed"]["high"]) for each in bins
        ]
        points = [point for point in points if None not in point]
        error = skill[name]["calibration"]["expected_error"]
        plots.append(
            f"<figure>{_calibration_plot(points)}<figcaption>{name}: expected error {error:.4f}</figcaption></figure>"
        )
    return f'<div class="row">{"".join(plots)}</div>'


def _calibration_plot(points: Sequence[tuple[float, ...]]) -> str:
    if not points:
        return "<p>no rows</p>"
    low = min(min(point[0], point[2]) for point in points)
    high = max(max(point[0], point[3]) for point in points)
    pad = max((high - low) * 0.08, 0.005)
    low, high = low - pad, high + pad
    size = 300

    def at(value: float) -> float:
        return MARGIN + (value - low) / (high - low) * (size - MARGIN - 8)

    marks = []
    for p, observed, below, above in points:
        x = at(p)
        marks.append(
            f'<line class="error" x1="{x:.1f}" x2="{x:.1f}" y1="{size - at(below):.1f}" y2="{size - at(above):.1f}"/>'
        )
        marks.append(f'<circle class="dot" cx="{x:.1f}" cy="{size - at(observed):.1f}" r="3.5"/>')
    first, last = at(low), at(high)
    diagonal = f'<line class="zero" x1="{first:.1f}" y1="{size - first:.1f}" x2="{last:.1f}" y2="{size - last:.1f}"/>'
    labels = "".join(
        f'<text x="{at(value):.0f}" y="{size - 26}" text-anchor="middle">{value:.2f}</text>'
        f'<text x="{MARGIN - 6}" y="{size - at(value) + 4:.0f}" text-anchor="end">{value:.2f}</text>'
        for value in (low + pad, (low + high) / 2, high - pad)
    )
    return (
        f'<svg viewBox="0 0 {size} {size}" role="img" aria-label="observed share over probability">'
        f"{diagonal}{''.join(marks)}{labels}"
        f'<text x="{size / 2:.0f}" y="{size - 8}" text-anchor="middle">probability</text></svg>'
    )


_TRADING_HEAD = [
    "", "trades", "a day", "net bp a trade", "gross bp a trade", "net bp a day", "won", "minutes held", "drawdown bp",
    "Sharpe a year", "PSR", "DSR",
]  # fmt: skip


def _trading(report: Json) -> str:
    mine, ranked = report["trading"], report["ranked"]
    rows = [_trading_row("the model", mine), _trading_row("its best 1 % of rows, whatever the costs", ranked)]
    multiples = list(mine["net_bp_per_day_by_cost"])
    costs = [
        [name, *(f"{each['net_bp_per_day_by_cost'][multiple]:+.1f}" for multiple in multiples)]
        for name, each in (("the model", mine), ("its best 1 %", ranked))
    ]
    curves = [
        ("the model", mine),
        ("its best 1 %", ranked),
        ("logistic regression", report["baselines"]["logistic regression"]),
        ("always long", report["baselines"]["always long"]),
    ]
    series = [(name, *_curve(each["daily_net_bp"])) for name, each in curves]
    pbo = report["overfitting"]
    random = report["random_entries"]
    facts = [f"{report['trials']} configurations were tried, here and before; the deflated Sharpe ratio counts them."]
    if pbo is not None:
        facts.append(
            f"Probability that the best threshold of one half of the days is among the worse of the other: {pbo:.0%}."
        )
    if random is not None:
        facts.append(
            f"As many random entries at the same hours: {random['net_bp_per_trade']:+.1f} bp a trade "
            f"({random['low']:+.1f} to {random['high']:+.1f}); p = {random['p_value']:.3f}."
        )
    return (
        f"<figure>{line_plot(series)}<figcaption>net result, bp of the money in one trade, by day; doing nothing is "
        f"the line at zero</figcaption></figure>{table(_TRADING_HEAD, rows)}"
        + table(["net bp a day at costs ×", *multiples], costs)
        + "".join(f"<p>{escape(each)}</p>" for each in facts)
    )


def _trading_row(name: str, each: Json) -> list[str]:
    return [
        name,
        f"{each['trades']:,}",
        f"{each['trades_per_day']:.1f}",
        interval(each["net_bp_per_trade"], 1),
        interval(each["gross_bp_per_trade"], 1),
        interval(each["net_bp_per_day"], 1),
        percent(each["win_share"]["value"], 1) if each["win_share"] else "",
        number(each["holding_minutes"], 0),
        f"{each['max_drawdown_bp']:,.0f}",
        number(each["sharpe_yearly"], 2),
        number(each["psr"], 3),
        number(each["dsr"], 3),
    ]


def _baselines(report: Json) -> str:
    rows = [_trading_row("the model", report["trading"])]
    rows += [_trading_row(name, each) for name, each in report["baselines"].items()]
    return table(_TRADING_HEAD, rows)


def _curve(daily: Sequence[float]) -> tuple[list[float], list[float]]:
    total, ys = 0.0, [0.0]
    for each in daily:
        total += each
        ys.append(total)
    return [float(at) for at in range(len(ys))], ys


def _weeks(eras: Json) -> str:
    rows = [
        [
            day(each["from"]),
            f"{each['rows']:,}",
            number(each["direction_auc"], 3),
            f"{each['trades']:,}",
            f"{each['net_bp']:+.1f}",
        ]
        for each in eras["weeks"]
    ]
    summary = ""
    if eras["mean_auc"] is not None:
        summary = (
            f"<p>Direction AUC by week: mean {eras['mean_auc']:.3f}, standard deviation {eras['sd_auc']:.3f}, above "
            f"one half in {eras['positive_share']:.0%} of the weeks.</p>"
        )
    bars = bar_plot([(day(each["from"]), each["net_bp"]) for each in eras["weeks"]])
    return (
        f"<figure>{bars}<figcaption>net result by week, bp</figcaption></figure>"
        + summary
        + table(["week from", "rows", "direction AUC", "trades", "net bp"], rows)
    )


def _breaks(report: Json) -> str:
    within = report["data"]["breaks"]
    if not within:
        return ""
    said = table(["the exchange changed", ""], [[day, what] for _, day, what in within])
    parts = [
        [
            f"{each['since'] or 'the beginning'} to {each['until'] or 'the end'}",
            f"{each['rows']:,}",
            number(each["direction_auc"], 3),
            f"{each['trades']:,}",
            f"{each['net_bp']:+.1f}",
        ]
        for each in report["between_breaks"]
    ]
    if not parts:
        return said + "<p>None of these days lies within what was judged.</p>"
    return said + table(["judged from", "rows", "direction AUC", "trades", "net bp"], parts)


def _columns(report: Json) -> str:
    gains = report["importance"][:20]
    largest = [[each["feature"], f"{each['correlation']:+.3f}"] for each in report["exposure"]["largest"]]
    left = report["exposure"]["auc_beyond_past_returns"]
    said = f"<p>Direction AUC without what past returns explain: {left:.3f}.</p>" if left is not None else ""
    both = [(each["feature"], 50 * (each["long"] + each["short"])) for each in gains]
    return (
        f'<div class="row"><figure>{sideways_plot(both)}<figcaption>share of gain, mean of both heads, %</figcaption>'
        f"</figure><div>{table(['column', 'correlation with the lean to long'], largest)}{said}</div></div>"
    )


def _leaks(tests: Sequence[Json]) -> str:
    rows = [
        [each["id"], escape(each["name"]), '<b class="ok">passed</b>' if each["passed"] else '<b class="no">FAILED</b>',
         escape(each["detail"])]
        for each in tests
    ]  # fmt: skip
    return table(["", "test", "", "found"], rows, raw=True)


def _folds(report: Json) -> str:
    rows = [
        [str(at), minute(each["train_from"]), minute(each["train_to"]), minute(each["test_from"]),
         minute(each["test_to"]), "calibrates the next" if at == 0 else "judged"]
        for at, each in enumerate(report["folds"])
    ]  # fmt: skip
    box = report["lockbox"]
    opened = box["opened"]
    said = "not opened in this training" if opened is None else "opened"
    rows.append(
        ["lock-box", minute(box["train_from"]), minute(box["train_to"]), minute(box["test_from"]),
         minute(box["test_to"]), said]
    )  # fmt: skip
    made = table(["fold", "trained from", "to", "tested from", "to", ""], rows)
    made += f"<p>Threshold {report['threshold']['value']:.3f}: {escape(report['threshold']['how'])}.</p>"
    made += f"<p>ONNX Runtime and LightGBM differ by at most {report['onnx_difference']:.1e}.</p>"
    if opened is not None:
        rows = [_trading_row("the model", opened["trading"]), _trading_row("its best 1 %", opened["ranked"])]
        made += f"<h3>In the lock-box</h3>{_skill(opened['skill'])}{table(_TRADING_HEAD, rows)}"
    return made
