"""`perpline init`: what is written can be used, is nobody else's to read, and says where keys go."""

import os
import pty
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from perpline.cli import init
from perpline.common.config import Settings, load_settings
from perpline.common.errors import NeedsPerson
from running import command


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("PERPLINE_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TERM", "dumb")


def test_with_yes_the_users_file_is_written_where_the_settings_are_looked_for(tmp_path: Path) -> None:
    done = command("init", "--yes")

    file = tmp_path / "home/.config/perpline/perpline.toml"
    assert (done.code, done.err) == (0, "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    settings = load_settings(None, os.environ, {})
    assert settings.model_dump() == load_settings(Path(os.devnull), os.environ, {}).model_dump()
    assert settings.masked()["symbols"]["source"] == str(file)
    assert [line.split("#")[0].strip() for line in done.out.splitlines()[1:]] == [
        "perpline doctor",
        "perpline plan",
        "perpline run",
    ]


def test_a_file_that_is_there_stays_unless_force_is_given() -> None:
    Path("mine.toml").write_text("symbols = 'BTCUSDT'\n")

    done = command("init", "--yes", "--path", "mine.toml")
    assert (done.code, done.error_line) == (
        1,
        "perpline: mine.toml is there already: --force replaces it, --path names another file",
    )
    assert Path("mine.toml").read_text() == "symbols = 'BTCUSDT'\n"

    assert command("init", "--yes", "--path", "mine.toml", "--force").code == 0
    assert load_settings(Path("mine.toml"), os.environ, {}).symbols == "top:30"
    assert stat.S_IMODE(Path("mine.toml").stat().st_mode) == 0o600
    assert sorted(path.name for path in Path().iterdir()) == ["mine.toml"]


def test_a_file_elsewhere_is_named_in_the_next_commands() -> None:
    told = command("init", "--yes", "--path", "my files/p.toml", "--json").json

    assert told == {
        "path": "my files/p.toml",
        "next": [f"perpline {word} --config 'my files/p.toml'" for word in ("doctor", "plan", "run")],
    }


def test_a_file_that_would_be_read_first_is_named() -> None:
    Path("perpline.toml").write_text("")

    done = command("init", "--yes")

    assert done.error_line.startswith("./perpline.toml is read instead of it")


def test_without_a_terminal_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "perpline", "init"], input="\n" * 10, capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 1
    assert done.stderr == "perpline: there is no terminal to ask on: --yes takes every default\n"
    assert not (tmp_path / "home").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo terminals")
def test_a_person_at_a_terminal_is_asked_and_enter_takes_the_default() -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "perpline", "init", "--path", "asked.toml"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as asking:
        os.write(ours, b"ethusdt, BTCUSDT\n" + b"\n" * 5)
        out, _ = asking.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)

    assert asking.returncode == 0, out
    assert b"[top:30]" in out
    settings = load_settings(Path("asked.toml"), os.environ, {})
    assert settings.symbols == ("ETHUSDT", "BTCUSDT")
    assert settings.database_url.get_secret_value().endswith("home/.local/share/perpline/perpline.db")


def asked(*typed: str) -> tuple[init.Answers, list[str]]:
    """What these lines, and then Enter, answer; and the questions in their order."""
    lines, questions = iter(typed), []

    def answer(text: str, default: str) -> str:
        questions.append(text.split()[0])
        return next(lines, "")

    return init.ask(answer, os.environ), questions


def test_what_cannot_be_used_is_asked_again_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    answers, questions = asked("BTC/USDT", "BTCUSDT", "maybe", "keys", "postgresql://u:secret@h/d", "mysql://h", "")

    assert (answers.symbols, answers.keys_later, answers.database_url) == ("BTCUSDT", True, "")
    assert questions[:7] == ["Symbols,"] * 2 + ["Trading:"] * 2 + ["Database:"] * 3
    told = capsys.readouterr().err
    assert "is no symbol" in told
    assert "leave the password out of it: ~/.pgpass has it" in told
    assert "secret" not in told


@pytest.mark.parametrize(
    "answers",
    [
        init.Answers(),
        init.Answers(
            symbols="BTCUSDT,币安USDT",
            keys_later=True,
            database_url="postgresql://me@db/perpline",
            redis_url="redis://cache:6379/1",
            data_dir='/data/a "b" \\c',
        ),
    ],
)
def test_every_answer_is_what_the_settings_say(tmp_path: Path, answers: init.Answers) -> None:
    file = tmp_path / "perpline.toml"
    init.write_settings(file, init.settings_text(answers))

    settings = load_settings(file, os.environ, {})
    if answers.data_dir:
        assert settings.symbols == ("BTCUSDT", "币安USDT")
        assert settings.database_url.get_secret_value() == answers.database_url
        assert settings.redis_url.get_secret_value() == answers.redis_url
        assert str(settings.data_dir) == answers.data_dir
    assert settings.api_key_file is None


@pytest.mark.parametrize("keys_later", [False, True])
def test_every_line_that_is_commented_out_is_a_setting_with_its_default(tmp_path: Path, keys_later: bool) -> None:
    text = init.settings_text(init.Answers(keys_later=keys_later))
    examples = {"exclude", "data_dir", "database_url", "redis_url", "api_key_file", "alert_urls"}
    file = tmp_path / "perpline.toml"
    file.write_text("\n".join(re.findall(r"^# (\w+ = .*)$", text, re.MULTILINE)))

    settings = load_settings(file, os.environ, {})
    named = {name for name, entry in settings.masked().items() if entry["source"] == str(file)}
    defaults = load_settings(Path(os.devnull), os.environ, {})
    assert len(named) > 12
    assert {name: getattr(settings, name) for name in named - examples} == {
        name: getattr(defaults, name) for name in named - examples
    }


def test_the_file_has_no_place_for_a_key() -> None:
    text = init.settings_text(init.Answers(keys_later=True))

    secret = [name for name in Settings.model_fields if name in ("binance_api_key", "binance_api_secret")]
    assert secret
    assert [name for name in secret if name in text] == []
    assert "install -m 600" in text


def test_a_folder_that_cannot_be_written_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(NeedsPerson, match="cannot write"):
        init.write_settings(tmp_path / "file/perpline.toml", "")


def test_what_would_be_refused_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(NeedsPerson):
        init.write_settings(tmp_path / "perpline.toml", "no_such_setting = 1\n")

    assert list(tmp_path.iterdir()) == []
