"""Tab: every word there is, at once, in each shell, and nothing heavy is imported for it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from perpline.cli import program

BIN = Path(sys.executable).parent


def environment(home: Path, **changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PERPLINE_", "_PERPLINE"))}
    return {**kept, "HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}", "TERM": "dumb", **changes}


def completed(home: Path, **asked: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "perpline"], env=environment(home, **asked), capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if line]


def in_bash(home: Path, words: str, number: int) -> list[str]:
    return completed(home, _PERPLINE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(number))


def test_every_command_is_completed(tmp_path: Path) -> None:
    assert sorted(in_bash(tmp_path, "perpline ", 1)) == sorted(program.COMMANDS)


@pytest.mark.parametrize(
    ("words", "number", "found"),
    [
        ("perpline mo", 1, ["models", "mode"]),
        ("perpline mode ", 2, ["show", "off", "paper", "live"]),
        ("perpline mode live --conf", 3, ["--confirm-live", "--config"]),
        ("perpline run --rol", 2, ["--role"]),
        ("perpline run --role in", 3, ["inference"]),
        ("perpline backtest --from 2026-11-01 --sy", 4, ["--symbols"]),
        ("perpline no-such-command --x", 2, []),
    ],
)
def test_commands_options_and_their_values_are_completed(
    tmp_path: Path, words: str, number: int, found: list[str]
) -> None:
    assert sorted(in_bash(tmp_path, words, number)) == sorted(found)


def test_zsh_and_fish_get_the_help_beside_the_word(tmp_path: Path) -> None:
    zsh = completed(tmp_path, _PERPLINE_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS="perpline statu")
    assert zsh == ["""_arguments '*: :(("status":"Show what a running worker hears and decides."))'"""]

    asked = {"_TYPER_COMPLETE_FISH_ACTION": "get-args", "_TYPER_COMPLETE_ARGS": "perpline statu"}
    fish = completed(tmp_path, _PERPLINE_COMPLETE="complete_fish", **asked)
    assert fish == ["status\tShow what a running worker hears and decides."]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_in_a_real_bash_the_script_is_shown_installed_and_works(tmp_path: Path) -> None:
    complete = "COMP_WORDS=(perpline statu); COMP_CWORD=1; _perpline_completion perpline; echo ${COMPREPLY[@]}"
    script = f'eval "$(perpline --show-completion)"; {complete}; perpline --install-completion >/dev/null; true'

    done = subprocess.run(
        ["bash", "--norc", "-c", script], env=environment(tmp_path), capture_output=True, text=True, timeout=120
    )

    assert (done.stdout, done.stderr) == ("status\n", "")
    installed = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "_PERPLINE_COMPLETE=complete_bash" in installed


@pytest.mark.parametrize("words", [["--help"], ["rnu"], ["--version"]])
def test_for_help_and_completion_next_to_nothing_is_imported(tmp_path: Path, words: list[str]) -> None:
    code = (
        "import sys\nfrom perpline.cli.main import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        "print(sorted({'numpy', 'aiohttp', 'onnxruntime', 'numba', 'apsw'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True, timeout=60
    )

    assert done.stdout.splitlines()[-1] == "[]"
