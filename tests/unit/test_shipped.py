"""The units and the container file that are shipped name what exists, and systemd finds nothing wrong with units."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from perpline.cli import program
from perpline.common.config import PREFIX, Settings
from perpline.endpoint import token_file

ROOT = Path(__file__).parents[2]
TOKEN = ROOT / "packaging" / "systemd" / "perpline-token.service"
UNITS = sorted({*(ROOT / "packaging" / "systemd").glob("*.service")} - {TOKEN})
CONTAINERFILE = ROOT / "Containerfile"
ANALYZE = shutil.which("systemd-analyze")


def test_there_is_a_unit_for_the_worker_the_dashboard_and_the_alarms() -> None:
    assert [unit.name for unit in UNITS] == [
        "perpline-alerts.service",
        "perpline-dashboard.service",
        "perpline.service",
    ]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_starts_a_command_that_there_is_and_sets_what_can_be_set(unit: Path) -> None:
    text = unit.read_text()

    [command] = re.findall(r"^ExecStart=/opt/perpline/\.venv/bin/perpline (\w+)", text, re.MULTILINE)
    assert command in program.COMMANDS
    assert unknown_variables(text) == []
    for line in ("NoNewPrivileges=yes", "ProtectSystem=strict", "ProtectHome=yes", "CapabilityBoundingSet="):
        assert f"\n{line}\n" in text


@pytest.mark.skipif(ANALYZE is None, reason="no systemd here")
@pytest.mark.parametrize("unit", [*UNITS, TOKEN, TOKEN.with_suffix(".path")], ids=lambda unit: unit.name)
def test_systemd_finds_nothing_wrong_with_a_unit(unit: Path, tmp_path: Path) -> None:
    program_file = tmp_path / "perpline"
    program_file.write_text("#!/bin/sh\n")
    program_file.chmod(0o755)
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/perpline/.venv/bin/perpline", str(program_file)))

    done = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", "--recursive-errors=no", str(copy)], capture_output=True, text=True
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_the_copy_of_the_token_that_prometheus_reads_is_the_one_that_a_unit_makes() -> None:
    [copied] = re.findall(r"^ExecStart=/usr/bin/install .* (\S+) (\S+)$", TOKEN.read_text(), re.MULTILINE)
    [seen] = re.findall(r"^PathChanged=(.*)$", TOKEN.with_suffix(".path").read_text(), re.MULTILINE)
    [read] = re.findall(r"credentials_file: (.*)", (ROOT / "packaging" / "prometheus" / "prometheus.yml").read_text())

    assert copied == (seen, read)
    assert Path(seen).name == token_file(Path("/"), 9720).with_suffix(".token").name


def test_the_container_file_copies_what_is_there_and_is_not_root() -> None:
    text = CONTAINERFILE.read_text()
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}

    copied = [name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for name in line.split()]
    assert copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert {name.split("/")[0] for name in copied} == kept
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert unknown_variables(text) == []


def unknown_variables(text: str) -> list[str]:
    """Variables of perpline's that set nothing."""
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {f"{PREFIX}CONFIG"}
    return sorted(set(re.findall(rf"\b({PREFIX}[A-Z_]+)=", text)) - known)
