"""What a clone and a wheel promise to whoever installs them."""

import os
import re
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hatchling.build import build_wheel
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(params=["run", "train", "dev"])
def locked_text(request: pytest.FixtureRequest) -> str:
    return (ROOT / "requirements" / f"{request.param}.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[set[str]]:
    folder = tmp_path_factory.mktemp("wheel")
    before = Path.cwd()
    os.chdir(ROOT)  # a build backend builds what it stands in
    try:
        wheel = build_wheel(str(folder))
    finally:
        os.chdir(before)
    with zipfile.ZipFile(folder / wheel) as archive:
        yield set(archive.namelist())


def test_a_requirement_file_names_no_host_and_no_path(locked_text: str) -> None:
    options = [line for line in locked_text.splitlines() if line.startswith(("-", "/", "."))]

    assert "://" not in locked_text
    assert " @ " not in locked_text
    assert options == []


def test_every_pin_is_exact_and_carries_hashes(locked_text: str) -> None:
    unpinned = [str(pin) for pin, _ in pins(locked_text) if [s.operator for s in pin.specifier] != ["=="]]
    without_hash = [str(pin) for pin, hashes in pins(locked_text) if not hashes]

    assert unpinned == []
    assert without_hash == []
    assert len(pins(locked_text)) > 20


def test_everything_the_project_needs_to_run_and_to_be_built_is_locked() -> None:
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]

    assert unmet(wanted, "run") == []


def test_everything_the_developers_need_is_locked_beside_what_runs() -> None:
    extras = PROJECT["project"]["optional-dependencies"]

    assert unmet([requirement for extra in extras.values() for requirement in extra], "dev") == []
    # Without their markers: what one set wants on some Pythons another may want on all of them.
    run, train, dev = ({f"{pin.name}{pin.specifier}" for pin in locked(name)} for name in ("run", "train", "dev"))
    assert run - train == set()
    assert train - dev == set()


def test_what_runs_for_months_can_put_old_days_into_parquet_files() -> None:
    extras = PROJECT["project"]["optional-dependencies"]

    assert unmet(extras["analytics"], "run") == []


def test_what_training_needs_is_locked_beside_what_runs() -> None:
    extras = PROJECT["project"]["optional-dependencies"]

    assert unmet([*extras["ml"], *extras["analytics"]], "train") == []


def test_the_wheel_holds_the_package_its_launchers_and_its_licence(wheel_names: set[str]) -> None:
    expected = {
        "perpline/py.typed",
        "services/realtime_worker.py",
        "services/realtime_worker_ws.py",
        f"perpline-{version()}.dist-info/licenses/LICENSE",
        f"perpline-{version()}.dist-info/entry_points.txt",
    }

    assert expected - wheel_names == set()


def test_the_wheel_holds_every_file_of_the_package(wheel_names: set[str]) -> None:
    source = ROOT / "src"
    files = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    sql = {name for name in files if name.endswith(".sql")}

    assert sql != set()
    assert files - wheel_names == set()


def test_the_wheel_holds_nothing_else(wheel_names: set[str]) -> None:
    top = {name.split("/")[0] for name in wheel_names}

    assert {"perpline", "services", f"perpline-{version()}.dist-info"} == top
    assert [name for name in wheel_names if name.endswith((".pyc", ".db", ".log"))] == []


def pins(text: str) -> list[tuple[Requirement, list[str]]]:
    """Each pin of a requirement file with its hashes. A pin is one logical line: continued lines are joined first."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    return [
        (Requirement(re.split(r"\s--hash=", line)[0]), re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line))
        for line in lines
    ]


def locked(name: str) -> list[Requirement]:
    return [pin for pin, _ in pins((ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8"))]


def unmet(requirements: list[str], name: str) -> list[str]:
    """Those for which no pin of the file has a version that the requirement allows."""
    versions: dict[str, list[str]] = {}
    for pin in locked(name):
        versions.setdefault(canonicalize_name(pin.name), []).extend(s.version for s in pin.specifier)
    return [
        text
        for text in requirements
        if not any(
            Requirement(text).specifier.contains(v) for v in versions.get(canonicalize_name(Requirement(text).name), [])
        )
    ]


def version() -> str:
    text = (ROOT / "src" / "perpline" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert found
    return found[1]
