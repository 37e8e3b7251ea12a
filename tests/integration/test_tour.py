"""The tour of docs/tour.md is taken: every command on the page, in its order, in one shell."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "tour.md"
SHELL = shutil.which("bash")


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.skipif(SHELL is None, reason="no bash here")
def test_every_command_of_the_tour_does_what_the_page_says(tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 6
    script = "set -em\n" + "".join(f"{block}\n" for block in blocks)
    for port in ("9761", "9762"):
        script = script.replace(port, str(free_port()))
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PERPLINE_", "XDG_"))}
    env |= {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "COLUMNS": "140"}

    with (tmp_path / "out").open("w+") as out:
        tour = subprocess.Popen(
            [str(SHELL), "--norc", "-c", script], cwd=tmp_path, env=env, stdout=out, stderr=out, start_new_session=True
        )
        try:
            code = tour.wait(timeout=500)
        finally:
            _end_all(tour.pid)
        out.seek(0)
        said = out.read()

    folder = tmp_path / "perpline-tour"
    assert code == 0, said[-4000:] + "".join(log.read_text()[-2000:] for log in folder.glob("*.log"))
    for expected in ("ready for paper trading", "not ready for live trading: no API key", "paper", " missed", "cells"):
        assert expected in said
    assert (folder / "copy.db").stat().st_size > 100_000
    assert '"worker_stopped"' in (folder / "worker-2.log").read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_all(session: int) -> None:
    """Each job of the shell is a process group of its own; they are found by their session."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                os.kill(int(folder.name), signal.SIGKILL)
        except (OSError, ValueError, IndexError):
            continue
