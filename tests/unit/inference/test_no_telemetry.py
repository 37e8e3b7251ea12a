"""onnxruntime reports each use of it to Microsoft by default; a worker shall talk to its exchange only."""

import os
import subprocess
import sys
from pathlib import Path


def test_loading_and_asking_a_model_leaves_nothing_to_be_reported(tmp_path: Path) -> None:
    program = "from perpline.inference.registry import load_default; print(load_default().model_id)"
    surroundings = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    surroundings |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=surroundings, capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout.startswith("default-")
    assert [path.name for path in tmp_path.rglob("*") if "onnxruntime" in path.name or "Microsoft" in path.name] == []
