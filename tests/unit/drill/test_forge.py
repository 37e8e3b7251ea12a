"""Processes that are forked from one that has imported everything."""

import os
import signal
import sys
from pathlib import Path

import pytest

from perpline.drill.forge import Forge, ForgeFailed, new_forge

PERPLINE = "perpline.cli.main:main"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing is forked there")


async def ended(forge: Forge, folder: Path, *words: str) -> tuple[int, str, str]:
    """Exit code and both outputs of a command."""
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        child = await forge.start(PERPLINE, words, environment={"A": "b"}, stdout=out.fileno(), stderr=err.fileno())
    code = await child.wait()
    return code, (folder / "out").read_text(), (folder / "err").read_text()


async def test_processes_of_a_forge_are_processes_of_their_own_and_end_as_they_end(tmp_path: Path) -> None:
    forge = new_forge()
    try:
        code, out, err = await ended(forge, tmp_path, "--version")
        assert (code, out.split()[0], err) == (0, "perpline", "")
        code, out, err = await ended(forge, tmp_path, "drill", "no-such-drill")
        assert (code, out) == (2, "")
        assert "no-such-drill" in err

        with (tmp_path / "out").open("wb") as out_file:
            words = ["simulate", "--symbols", "1"]
            files = {"stdout": out_file.fileno(), "stderr": out_file.fileno()}
            one, other = [await forge.start(PERPLINE, words, environment={"A": "b"}, **files) for _ in range(2)]
        assert len({one.pid, other.pid, os.getpid()}) == 3
        assert (one.code, other.code) == (None, None)
        one.send(signal.SIGKILL)
        assert await one.wait() == -signal.SIGKILL
    finally:
        await forge.close()

    with pytest.raises(ProcessLookupError):
        os.kill(other.pid, 0)
    with pytest.raises(ForgeFailed):
        await forge.start(PERPLINE, ["--version"], environment={}, stdout=1, stderr=2)
