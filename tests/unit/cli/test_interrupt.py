"""Ctrl-C while a command is still starting."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

BEGIN = """
import sys
from perpline.cli.main import main

class Tell:
    @staticmethod
    def find_spec(name, *_):
        if name == "perpline.cli.program":
            print("begun", flush=True)

sys.meta_path.insert(0, Tell)
sys.exit(main(sys.argv[1:]))
"""
"""As the script `perpline` begins, and it says when the long imports do. Before its first line Ctrl-C is not ours."""


def interrupted(after_s: float, folder: Path) -> tuple[int, str]:
    """Exit code and stderr of a worker without an exchange that gets SIGINT so long after its imports began."""
    words = ("run", "--ws-url", "ws://127.0.0.1:9", "--rest-url", "http://127.0.0.1:9", "--symbols", "BTCUSDT")
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN, *words, "--database", f"sqlite:///{folder}/{after_s}.db"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={"HOME": str(folder)},
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(after_s)  # the moment is what is tried here
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    return process.returncode, err


@pytest.mark.skipif(sys.platform == "win32", reason="a child cannot be sent Ctrl-C there")
def test_ctrl_c_while_a_command_is_being_imported_ends_it_without_a_traceback(tmp_path: Path) -> None:
    moments = (0.0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda after_s: interrupted(after_s, tmp_path), moments))

    assert [err for _, err in ended if "Traceback" in err] == []
    assert [code for code, _ in ended[:3]] == [130, 130, 130]
