"""Metrics: each is on the page, and what is shipped for Prometheus and Grafana names no other."""

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from perpline.alerts.rules import RULES
from perpline.metrics import LABELS, METRICS, PROCESS, families, metrics

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "metrics.md"
PROMETHEUS = ROOT / "packaging" / "prometheus"
BOARD = ROOT / "packaging" / "grafana" / "perpline.json"

promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (apt-get install prometheus)"
)


def test_the_page_of_metrics_is_what_the_table_says() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_metrics.py"))["metrics_page"]()

    assert PAGE.read_text() == made, "run docs/make_metrics.py"


def test_every_metric_is_explained_once_with_all_its_labels() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert {label for metric in METRICS for label in metric.labels} == LABELS.keys()
    for metric in METRICS:
        assert metric.meaning, metric.name
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name


def test_the_process_is_told_of_as_the_client_library_does() -> None:
    found = {
        sample.name for family in ProcessCollector(registry=CollectorRegistry()).collect() for sample in family.samples
    }

    assert found <= PROCESS.keys()


def test_a_status_without_anything_has_no_metrics_of_it() -> None:
    assert list(families({})) == []
    text = metrics({"ready": True, "version": "1", "role": "inference", "slot": "champion"}).decode()
    assert {line.partition("{")[0].partition(" ")[0] for line in text.splitlines() if line.startswith("perp")} == {
        "perpline_ready",
        "perpline_build_info",
    }


NO_METRICS = {"perpline_shared"}
"""Other names that begin so."""

STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "slot": "champion",
    "role": "all",
    "now": 1_795_219_290_000,
    "speed": 1.0,
    "clock_offset_ms": -12,
    "ready": True,
    "leadership": {"leads": False, "holds": True, "fencing": 3, "terms": 2, "renewed_s": 5.0},
    "spool": {
        **{"bytes": 10, "max_bytes": 100, "records": 0, "oldest_s": None, "error": "", "spooled": 1, "replayed": 1},
        **{"dropped": 0, "decisions": {"last_error": ""}},
    },
    "rest": {
        **{"weight_used": 10, "weight_own": 9, "weight_budget": 1920, "weight_limit": 2400, "blocked_until": 0},
        **{"shared": None, "pools": {"funding": 2}},
        "by_priority": {
            "heal": {
                **{"requests": 3, "given_back": 0, "weight": 2, "weight_allowed": 5, "waiting": 0},
                "wait_ms": {"p50": 1.5, "p99": None},
            }
        },
    },
    "decisions": {
        **{"by_status": {"ok": 1, "flat": 2}, "batches": 3, "last_close_to_signal_ms": 41.0},
        **{"close_to_signal_ms": {"p50": 40.0, "p99": 60.0}, "market_close_to_signal_ms": {"p50": None, "p99": None}},
        "stages_ms": {"commit": {"p50": 3.0, "p99": 4.0}},
    },
    "symbols": {
        'A"USDT': {"ages_s": {"kline_1m": 0.5, "bookTicker": None}, "last_decision": {"close_time": 1_795_219_260_000}},
        "BUSDT": {"ages_s": {"kline_1m": 0.7}, "last_decision": {"close_time": 1_795_219_020_000}},
        "CUSDT": {"ages_s": {}, "last_decision": None, "expected_after": 1_795_219_000_000},
    },
}


def values(status: dict[str, Any]) -> dict[tuple[str, ...], float]:
    found = text_string_to_metric_families(metrics(status).decode())
    labels_of = {metric.name: metric.labels for metric in METRICS}
    return {
        (sample.name, *(sample.labels[label] for label in labels_of.get(sample.name, ()))): sample.value
        for family in found
        for sample in family.samples
    }


def test_values_are_in_base_units_and_what_is_not_known_is_not_told() -> None:
    told = values(STATUS)

    assert told["perpline_clock_offset_seconds",] == -0.012
    assert told["perpline_stage_seconds", "commit", "0.99"] == 0.004
    assert told["perpline_close_to_signal_last_seconds",] == 0.041
    assert told["perpline_stream_age_seconds", "kline_1m"] == 0.7
    assert ("perpline_stream_age_seconds", "bookTicker") not in told
    assert told["perpline_rest_wait_seconds", "heal", "0.5"] == 0.0015
    assert not {name for name, *_ in told} & {
        "perpline_market_close_to_signal_seconds",
        "perpline_spool_oldest_seconds",
    }
    assert ("perpline_rest_wait_seconds", "heal", "0.99") not in told


def test_late_symbols_are_counted_by_who_leads_and_a_lost_lease_is_a_database_that_is_away() -> None:
    assert values(STATUS)["perpline_database_away",] == 1
    assert ("perpline_symbols_late",) not in values(STATUS)
    leading = {**STATUS, "leadership": {**STATUS["leadership"], "leads": True}}
    assert values(leading)["perpline_database_away",] == 0
    assert values(leading)["perpline_symbols_late",] == 1
    stuck = {**leading, "started_at": 1_795_219_060_000}  # of CUSDT nothing was ever decided
    assert values(stuck)["perpline_symbols_late",] == 2
    kept = {**leading, "spool": {**STATUS["spool"], "records": 4}}
    assert values(kept)["perpline_database_away",] == 1


def test_a_scrape_of_six_hundred_symbols_has_few_series_of_each() -> None:
    """3,000 of them took 30 ms of the worker's loop; a close may fall into a scrape."""
    symbols = {f"S{n}USDT": STATUS["symbols"]["BUSDT"] for n in range(600)}

    assert len(metrics({**STATUS, "symbols": symbols}).splitlines()) < 300


def test_every_expression_that_is_shipped_names_metrics_that_there_are() -> None:
    board = json.loads(BOARD.read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    expressions += [each["query"]["query"] for each in board["templating"]["list"] if each["type"] == "query"]
    expressions += re.findall(r"expr:([\s\S]*?)\n +(?:for|labels):", (PROMETHEUS / "perpline-alerts.yml").read_text())
    expressions += re.findall(r"series: '(.*)'", (PROMETHEUS / "perpline-alerts.test.yml").read_text())
    named = {name for text in expressions for name in re.findall(r"\b(?:perpline|process)_\w+", text)}
    known = {metric.name for metric in METRICS} | PROCESS.keys()

    assert len(expressions) > 100
    assert named - known == set()
    for metric in METRICS:
        for text in expressions:
            for labels in re.findall(rf"\b{metric.name}\{{(.*?)\}}", text):
                assert {*re.findall(r"(\w+)\s*(?:=|!=|=~)", labels)} <= {*metric.labels, "job", "instance"}, text


def test_metrics_that_the_documents_name_are_there() -> None:
    pages = [ROOT / "README.md", ROOT / "README.ko.md", *(ROOT / "docs").rglob("*.md")]
    known = {metric.name for metric in METRICS}
    named = {
        (page.name, name)
        for page in pages
        if page.exists()
        for name in re.findall(r"\b(perpline_[a-z_]+[a-z])\b(?![*/-])", page.read_text())
    }

    assert {(page, name) for page, name in named if name not in known | NO_METRICS} == set()


def test_panels_have_titles_places_and_ids_of_their_own() -> None:
    panels = json.loads(BOARD.read_text())["panels"]

    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells), "two panels lie on each other"
    assert max(x for x, _ in cells) == 23
    assert all(panel["title"] for panel in panels)


def test_every_alarm_has_a_rule_a_test_and_its_page() -> None:
    rules = (PROMETHEUS / "perpline-alerts.yml").read_text()
    alarms = re.findall(r"alarm: (\w+)", rules)

    assert sorted(alarms) == sorted(RULES)
    assert re.findall(r"runbook: (\S+)", rules) == [RULES[name].runbook for name in alarms]
    assert re.findall(r"severity: (\w+)", rules) == [RULES[name].severity for name in alarms]
    assert [name for name in alarms if not (ROOT / RULES[name].runbook).exists()] == []
    tested = re.findall(r"alertname: (\w+)", (PROMETHEUS / "perpline-alerts.test.yml").read_text())
    assert {*tested} == {*re.findall(r"alert: (\w+)", rules)}


@promtool
@pytest.mark.parametrize(
    "words",
    [
        "check rules perpline-alerts.yml",
        "test rules perpline-alerts.test.yml",
        "check config --syntax-only prometheus.yml",
    ],
)
def test_promtool_finds_no_fault(words: str) -> None:
    ended = subprocess.run(["promtool", *words.split()], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60)

    assert (ended.returncode, ended.stderr) == (0, ended.stderr), ended.stdout + ended.stderr
    assert "FAILED" not in ended.stdout


@promtool
def test_promtool_finds_no_fault_with_any_name() -> None:
    text = "".join(
        f"# HELP {each.name} {each.meaning}\n# TYPE {each.name} {each.kind}\n{_sample(each.name, each.labels)}"
        for each in METRICS
    )
    for page in (text, metrics(STATUS).decode()):
        ended = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True, timeout=60)

        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def _sample(name: str, labels: tuple[str, ...]) -> str:
    shown = ", ".join(f'{label}="{"0.5" if label == "quantile" else "x"}"' for label in labels)
    return f"{name}{{{shown}}} 1\n"
