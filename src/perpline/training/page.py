"""Pages of reports: one self-contained HTML file each, plots drawn here, nothing fetched, light or dark."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape

Series = Sequence[tuple[str, Sequence[float], Sequence[float]]]
"""name, xs, ys of each line"""

WIDTH, HEIGHT, MARGIN = 720, 240, 46
"""Of a plot: the left margin holds the numbers of its axis."""


def page(title: str, body: str) -> str:
    """The whole file."""
    return _PAGE.format(title=escape(title), body=body)


# ---- drawing


def line_plot(series: Series) -> str:
    """Lines over a common axis, each named in its colour; at most four. Zero is always on it."""
    xs = [x for _, line, _ in series for x in line]
    ys = [0.0, *(y for _, _, line in series for y in line)]
    (left, right), (low, high) = (min(xs), max(xs)), (min(ys), max(ys))
    right, high = max(right, left + 1), max(high, low + 1)

    def point(x: float, y: float) -> str:
        across = MARGIN + (x - left) / (right - left) * (WIDTH - MARGIN - 8)
        return f"{across:.1f},{height_of(y, low, high):.1f}"

    lines, names = [], []
    for at, (name, line, values) in enumerate(series):
        points = " ".join(point(x, y) for x, y in zip(line, values, strict=True))
        lines.append(f'<polyline class="s{at}" points="{points}"/>')
        names.append(f'<tspan class="n{at}" dx="{0 if at == 0 else 14}">{escape(name)}</tspan>')
    return plot(axis(low, high) + "".join(lines) + f'<text x="{MARGIN}" y="14">{"".join(names)}</text>')


def bar_plot(rows: Sequence[tuple[str, float]]) -> str:
    """A bar for each (name, value), up or down from zero."""
    if not rows:
        return "<p>no weeks</p>"
    values = [value for _, value in rows]
    low, high = min(0.0, *values), max(0.0, *values)
    high = max(high, low + 1)
    step = (WIDTH - MARGIN - 8) / len(rows)
    zero = height_of(0, low, high)
    made = []
    for at, (name, value) in enumerate(rows):
        top = min(zero, height_of(value, low, high))
        height = abs(height_of(value, low, high) - zero)
        made.append(
            f'<rect class="{"up" if value >= 0 else "down"}" x="{MARGIN + at * step + 1:.1f}" y="{top:.1f}" '
            f'width="{max(step - 2, 1):.1f}" height="{height:.1f}"><title>{escape(name)}: {value:+.1f}</title></rect>'
        )
    return plot(axis(low, high) + "".join(made))


def sideways_plot(rows: Sequence[tuple[str, float]]) -> str:
    """A bar to the right for each (name, value >= 0), with both written beside it."""
    if not rows:
        return "<p>no columns</p>"
    top = max(max(value for _, value in rows), 1e-9)
    made = [
        f'<text x="112" y="{16 * at + 13}" text-anchor="end">{escape(name)}</text>'
        f'<rect class="up" x="118" y="{16 * at + 3}" width="{value / top * 200:.1f}" height="12"/>'
        f'<text x="{122 + value / top * 200:.0f}" y="{16 * at + 13}">{value:.1f}</text>'
        for at, (name, value) in enumerate(rows)
    ]
    return f'<svg viewBox="0 0 360 {16 * len(rows) + 6}" role="img" aria-label="columns">{"".join(made)}</svg>'


def height_of(y: float, low: float, high: float) -> float:
    """Where a value is drawn, from the top, on an axis from low to high."""
    return 22 + (high - y) / (high - low) * (HEIGHT - 32)


def axis(low: float, high: float) -> str:
    """Lines at low, high and zero with their numbers."""
    made = []
    for value in sorted({low, 0.0, high}):
        y = height_of(value, low, high)
        kind = "zero" if value == 0 else "grid"
        made.append(
            f'<line class="{kind}" x1="{MARGIN}" x2="{WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{value:,.0f}</text>'
        )
    return "".join(made)


def plot(content: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="plot">{content}</svg>'


# ---- text


def section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, raw: bool = False) -> str:
    """`raw`: the cells are HTML already."""
    cells = ["".join(f"<td>{cell if raw else escape(cell)}</td>" for cell in row) for row in rows]
    names = "".join(f"<th>{escape(name)}</th>" for name in head) if any(head) else ""
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def interval(estimate: Mapping[str, float | None], digits: int) -> str:
    """value [low, high]"""
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    if value is None:
        return ""
    if low is None or high is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value * 100:.{digits}f} %"


def day(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d")


def minute(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1c1f24; --paper: #fff; --dim: #667; --line: #d5d8de; --good: #1a7f45;
  --bad: #b3382c; --a: #2563c9; --b: #c2711a; --c: #7a4fb5; --d: #6b7280; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e4e6ea; --paper: #14171b; --dim: #99a; --line: #343a43; --good: #54c284; --bad: #f08376;
    --a: #6ea2f5; --b: #eaa55b; --c: #b79af0; --d: #9aa1ac; }}
}}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin-top: 2.2rem; }} h3 {{ font-size: 1rem; }}
.verdict {{ border-left: .35rem solid; padding: .7rem 1rem; font-size: 1.05rem; }}
.good, .ok {{ color: var(--good); }} .bad, .no {{ color: var(--bad); }}
.note {{ color: var(--bad); }}
.wide {{ overflow-x: auto; }} .row {{ display: flex; flex-wrap: wrap; gap: 2rem; }}
.row figure {{ flex: 1 1 18rem; max-width: 24rem; }}
table {{ border-collapse: collapse; font-size: .85rem; margin: .8rem 0; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); }}
th {{ color: var(--dim); font-weight: 500; }}
figure {{ margin: 1rem 0; }} figcaption {{ color: var(--dim); font-size: .85rem; }}
svg {{ width: 100%; height: auto; }} svg text {{ font-size: 11px; fill: var(--dim); }}
polyline {{ fill: none; stroke-width: 1.6; }}
.s0 {{ stroke: var(--a); }} .s1 {{ stroke: var(--b); }} .s2 {{ stroke: var(--c); }} .s3 {{ stroke: var(--d); }}
svg .n0 {{ fill: var(--a); }} svg .n1 {{ fill: var(--b); }} svg .n2 {{ fill: var(--c); }} svg .n3 {{ fill: var(--d); }}
.grid {{ stroke: var(--line); }} .zero {{ stroke: var(--dim); stroke-dasharray: 4 3; }}
.error {{ stroke: var(--a); }} .dot {{ fill: var(--a); }} .up {{ fill: var(--a); }} .down {{ fill: var(--bad); }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
