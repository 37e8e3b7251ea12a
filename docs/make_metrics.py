"""Makes docs/reference/metrics.md from the table in perpline/metrics.py.

.venv/bin/python docs/make_metrics.py
"""

from pathlib import Path

from perpline.metrics import GROUPS, LABELS, METRICS, PROCESS, Metric

PAGE = Path(__file__).parent / "reference" / "metrics.md"

HEAD = """\
# Metrics

<!-- Made by docs/make_metrics.py from src/perpline/metrics.py. Change it there and run that. -->

What `/metrics` of a worker says, in the text form of Prometheus: {count} metrics, made when they are asked for. How to
read them: [operations.md](../operations.md#alarms-worth-having); a dashboard and alert rules are in `packaging/`.

Seconds are wall seconds where nothing else is said; a time (`_timestamp_seconds`) is seconds since 1970. A metric whose
facts a process does not have is not there: an inference worker hears no market, a standby's counters stand still, a
worker without keys has no live account. Counters begin with 0 at each start.
"""


def main() -> None:
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(metrics_page(), encoding="utf-8")


def metrics_page() -> str:
    """The page as it should be."""
    parts = [HEAD.format(count=len(METRICS))]
    for group, metrics in GROUPS.items():
        rows = "\n".join(_row(metric) for metric in metrics)
        parts.append(f"## {group}\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n{rows}\n")
    parts.append(
        "## Of the process itself\n\nOn Linux, from the kernel.\n\n| metric | type | meaning |\n|---|---|---|\n"
        + "\n".join(
            f"| `{name}` | {'counter' if name.endswith('_total') else 'gauge'} | {meaning} |"
            for name, meaning in PROCESS.items()
        )
        + "\n"
    )
    parts.append(
        "## Labels\n\nNo label has values that somebody outside can make more of. With 600 symbols a worker has some "
        "500\nseries; what is known of each symbol is in `/status`.\n\n| label | values |\n|---|---|\n"
        + "\n".join(f"| `{name}` | {values} |" for name, values in LABELS.items())
        + "\n"
    )
    return "\n".join(parts)


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.meaning} |"


if __name__ == "__main__":
    main()
