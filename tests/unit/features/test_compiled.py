"""Where compiled functions are kept, asked of a fresh process, for it is settled when the first one is made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
from perpline.features.compiled import compiled

@compiled
def add(a, b):
    return a + b

@compiled
def take(a, b):
    return a - b

print(add(2, 3), take(2, 3))
"""


ASKED = """
from perpline.features.compiled import compiled, is_kept

@compiled
def add(a, b):
    return a + b

print(is_kept(add), add(2, 3), is_kept(add))
"""


WITH_ANOTHER = """
import another
from perpline.features.compiled import compiled_with, is_kept, part

of_another = part(another.add)

@compiled_with(another)
def add(a, b):
    return of_another(a, b)

print(is_kept(add), add(2, 3), is_kept(add))
"""


def run(folder: Path, program: str = PROGRAM, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program as a file, for only a function with a file can be kept."""
    path = folder / "program.py"
    if not path.exists() or path.read_text() != program:  # another time of change makes another program of it
        path.write_text(program)
    surroundings = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "PYTHONPATH")}
    return subprocess.run(
        [sys.executable, path], env=surroundings | environment, capture_output=True, text=True, timeout=60, check=True
    )


@pytest.mark.parametrize("variable", ["NUMBA_CACHE_DIR", "XDG_CACHE_HOME"])
def test_a_cache_folder_that_is_not_there_is_made_and_used(tmp_path: Path, variable: str) -> None:
    done = run(tmp_path, **{variable: str(tmp_path / "not" / "there")})

    assert (done.stdout, done.stderr) == ("5 -1\n", "")
    assert list((tmp_path / "not" / "there").rglob("*.nbc")) != []


def test_a_cache_folder_that_cannot_be_made_is_warned_of_once_and_the_work_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    done = run(tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "file" / "numba"))

    assert done.stdout == "5 -1\n"
    assert done.stderr.count("RuntimeWarning") == 1
    assert f"nothing can be kept in {tmp_path}/file/numba (Not a directory)" in done.stderr


def test_whether_a_function_must_be_compiled_is_known_before(tmp_path: Path) -> None:
    kept = str(tmp_path / "kept")
    first, second = run(tmp_path, ASKED, NUMBA_CACHE_DIR=kept), run(tmp_path, ASKED, NUMBA_CACHE_DIR=kept)
    changed = run(tmp_path, f"{ASKED}# of another version\n", NUMBA_CACHE_DIR=kept)
    (tmp_path / "file").write_text("no folder")
    nowhere = run(tmp_path, ASKED, NUMBA_CACHE_DIR=str(tmp_path / "file" / "numba"))

    said = [done.stdout.strip() for done in (first, second, changed, nowhere)]
    assert said == ["False 5 True", "True 5 True", "False 5 True", "False 5 False"]


def test_what_is_made_of_another_module_is_kept_until_that_modules_text_changes(tmp_path: Path) -> None:
    kept, another = str(tmp_path / "kept"), tmp_path / "another.py"
    another.write_text("def add(a, b):\n    return a + b\n")
    first, second = run(tmp_path, WITH_ANOTHER, NUMBA_CACHE_DIR=kept), run(tmp_path, WITH_ANOTHER, NUMBA_CACHE_DIR=kept)
    times = another.stat()
    another.write_text("def add(a, b):\n    return a * b\n")
    os.utime(another, ns=(times.st_atime_ns, times.st_mtime_ns + 10**9))  # Python itself looks at the time
    changed = run(tmp_path, WITH_ANOTHER, NUMBA_CACHE_DIR=kept)

    said = [done.stdout.strip() for done in (first, second, changed)]
    assert said == ["False 5 True", "True 5 True", "False 6 True"]
