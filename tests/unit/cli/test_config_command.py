import json
import os
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from perpline.cli import config
from perpline.common.config import Settings
from perpline.common.errors import NeedsPerson

app = typer.Typer()
app.add_typer(config.app, name="config")


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("PERPLINE_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("PERPLINE_REDIS_URL", "redis://:hunter2@cache:6379/0")


def run(*words: str) -> str:
    result = CliRunner().invoke(app, ["config", *words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_show_prints_every_setting_with_its_source_and_no_password() -> None:
    Path("perpline.toml").write_text('symbols = ["BTCUSDT"]\n')

    lines = {line.split()[0]: line.split() for line in run("show").splitlines()[1:]}

    assert lines.keys() == Settings.model_fields.keys()
    assert lines["symbols"][1:] == ['["BTCUSDT"]', "perpline.toml"]
    assert lines["redis_url"][1:] == ['"redis://:***@cache:6379/0"', "PERPLINE_REDIS_URL"]
    assert lines["status_port"][1:] == ["9720", "default"]


def test_show_as_json_is_one_object_on_the_last_line() -> None:
    shown = json.loads(run("show", "--json").splitlines()[-1])

    assert shown.keys() == Settings.model_fields.keys()
    assert shown["redis_url"] == {"value": "redis://:***@cache:6379/0", "source": "PERPLINE_REDIS_URL"}


def test_check_says_that_the_settings_are_usable_and_where_they_are_from() -> None:
    Path("other.toml").write_text("status_port = 1\n")

    assert run("check", "--config", "other.toml") == "the settings are usable (PERPLINE_REDIS_URL, other.toml)\n"
    assert json.loads(run("check", "--json")) == {"ok": True, "sources": ["PERPLINE_REDIS_URL"]}


def test_check_refuses_what_cannot_be_used() -> None:
    Path("perpline.toml").write_text("status_prot = 1\n")

    with pytest.raises(NeedsPerson, match="did you mean 'status_port'"):
        run("check")


def test_a_wrong_option_is_wrong_usage() -> None:
    assert CliRunner().invoke(app, ["config", "show", "--jsn"]).exit_code == 2


@pytest.mark.parametrize("command", ["show", "check"])
def test_help_has_an_example(command: str) -> None:
    assert "Example:" in run(command, "--help")
