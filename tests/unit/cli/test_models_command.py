import json
from pathlib import Path
from typing import Any

import pytest

from modelling import FEATURES, write_model
from perpline.cli.status import model_lines
from running import command

GOOD = json.dumps({"verdict": {"beats_baselines": True, "text": "It beats both."}}).encode()
BAD = json.dumps({"verdict": {"beats_baselines": False, "text": "It does not beat always-flat."}}).encode()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PERPLINE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("PERPLINE_STATUS_PORT", "0")
    (tmp_path / "data").mkdir()
    assert command("db", "migrate").code == 0
    return tmp_path


def models(*words: object) -> Any:
    done = command("models", *words, "--json")
    assert done.code == 0, done.err
    return done.json


def test_a_model_is_registered_shown_promoted_and_rolled_back(here: Path) -> None:
    path = write_model(here / "download", files={"report.json": GOOD})

    assert models("register", path) == {"model_id": path.name, "folder": str(here / "data" / "models" / path.name)}
    shown = models("show", path.name)
    assert (shown["status"], shown["problem"], shown["lookback_min"]) == ("candidate", None, 241)
    promoted = models("promote", path.name)
    assert (promoted["slot"], promoted["model_id"], promoted["effective_from"]) == ("champion", path.name, 0)
    later = models("promote", path.name, "--at", "2026-11-23 05:11:30")
    assert later["effective_from"] == 1_795_410_720_000  # 05:12, the next close
    assert models("rollback", "--at", "2026-11-23T06:00")["model_id"] == ""
    listed = models("list")
    assert [model["model_id"] for model in listed["models"]] == [path.name]
    assert [row["model_id"] for row in listed["deployments"]] == ["", path.name, path.name]


def test_the_words_for_people_name_the_model_its_report_and_who_deployed_it(here: Path) -> None:
    assert "the one that ships with perpline decides" in command("models", "list").out
    path = write_model(here / "data" / "models", files={"report.json": BAD}, note="For tests.")
    assert "is a candidate" in command("models", "register", path).out

    assert "beats nothing" in command("models", "list").out
    page = command("models", "show", path.name).out
    for words in (
        "It does not beat always-flat.",
        "For tests.",
        "5 features",
        "critical: tbi_15, tbi_60",
        "target 1 %",
        "can be served: yes",
    ):
        assert words in page


def test_a_model_that_beats_nothing_needs_force_and_a_reason(here: Path) -> None:
    path = write_model(here / "data" / "models", files={"report.json": BAD})
    models("register", path)

    refused = command("models", "promote", path.name)
    assert refused.code == 1
    assert "It does not beat always-flat. --force --reason TEXT promotes it all the same" in refused.error_line
    assert command("models", "promote", path.name, "--force").code == 2
    assert command("models", "promote", path.name, "--reason", "x").code == 2
    assert models("promote", path.name, "--force", "--reason", "a dry run")["by"].endswith("forced: a dry run")


def test_a_model_that_is_nowhere_is_said_not_to_be_there(here: Path) -> None:
    models("register", write_model(here / "download", files={"report.json": GOOD}))

    assert command("models", "show", "nosuch").error_line == (
        "perpline: there is no model nosuch: see `perpline models list`"
    )
    assert command("models", "promote", "nosuch").code == 1


def test_what_does_not_fit_is_refused_in_one_line(here: Path) -> None:
    path = write_model(here / "data" / "models")
    (path / "both.onnx").write_bytes(b"")

    failed = command("models", "register", path)
    assert failed.code == 1
    assert failed.error_line.endswith("is refused: the content of both.onnx is not what SHA256SUMS says")
    assert command("models", "promote", "none").error_line == (
        "perpline: no model none is registered: see `perpline models list`"
    )
    assert command("models", "rollback").error_line == "perpline: nothing was ever deployed to champion"
    assert command("models", "shadow").code == 2
    assert command("models", "promote", "x", "--at", "soon").code == 2


def test_a_shadow_is_started_and_ended(here: Path) -> None:
    path = write_model(here / "data" / "models")
    models("register", path)

    assert models("shadow", path.name, "--slot", "shadow2")["slot"] == "shadow2"
    assert models("shadow", "--stop", "--slot", "shadow2")["model_id"] == ""
    assert command("models", "shadow", path.name, "--slot", "champion").code == 1


def test_status_names_the_model_its_shadows_refusals_and_drift() -> None:
    day = {"judged": True, "drifting": [feature.name for feature in FEATURES]}
    lines = model_lines(
        {
            "champion": {"model_id": "a", "since": 0},
            "shadows": {"shadow1": {"model_id": "b"}},
            "coming": [{"slot": "champion", "model_id": "c", "since": 1_795_410_720_000}],
            "refused": {"champion": "the model d is refused: x"},
            "drift": {"today": {"judged": False}, "yesterday": day},
        }
    )

    assert [line.plain for line in lines] == [
        "model a   shadow1 b",
        "champion c from 05:12 on",
        "champion: the model d is refused: x",
        "5 columns further from training than on 99 % of its days: ret_1, zret_15, tbi_15, tbi_60, rv_60",
    ]
    nothing = {"champion": None, "shadows": {}, "coming": [], "refused": {}, "drift": None}
    assert [line.plain for line in model_lines(nothing)] == ["no model decides"]
