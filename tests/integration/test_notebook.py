"""The example notebook, run from the first cell to the last by a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "examples" / "first_look.ipynb"

CELLS = """
import ast, asyncio, json, sys

async def main():
    # As in Jupyter: an event loop runs in this very thread, and the cells share their names.
    names = {"__name__": "__main__"}
    for number, source in enumerate(json.load(sys.stdin)):
        body = ast.parse(source)
        shown = body.body.pop().value if isinstance(body.body[-1], ast.Expr) else None
        exec(compile(body, f"cell {number}", "exec"), names)
        if shown is not None:
            value = eval(compile(ast.Expression(shown), f"cell {number}", "eval"), names)
            value is None or repr(value)
    frame, served = names["frame"], names["served"]
    print(json.dumps({
        "rows": len(names["signals"]),
        "minutes": names["signals"]["close_time_ms"].n_unique(),
        "symbols": names["signals"]["symbol"].n_unique(),
        "same_bits": served.same_bits,
        "of_the_model": len(served.names) == len(served.values) == names["X"].shape[1],
        "learned_from": len(frame),
        "outcomes": len(names["outcomes"]),
    }))

asyncio.run(main())
"""


def code_cells() -> list[dict[str, object]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def run(cells: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """The cells in order in a fresh process; what it says last is one line of JSON."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PERPLINE_")}
    return subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", CELLS],
        input=json.dumps(cells),
        cwd=folder,
        env={**environment, "MPLBACKEND": "Agg", "XDG_DATA_HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.slow
def test_the_example_notebook_runs_and_the_served_vector_is_recomputed_bit_for_bit(tmp_path: Path) -> None:
    pytest.importorskip("polars", reason="the extra [lab] is not installed")
    pytest.importorskip("matplotlib", reason="the extra [lab] is not installed")

    ended = run(["".join(cell["source"]) for cell in code_cells()], tmp_path)  # type: ignore[arg-type]

    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["same_bits"] is True
    assert told["of_the_model"]
    assert told["symbols"] == 5
    assert told["rows"] == 5 * told["minutes"] > 25  # one row for each symbol and minute
    assert told["learned_from"] > 0
    assert told["outcomes"] > 0


def test_a_cell_that_fails_is_seen(tmp_path: Path) -> None:
    ended = run(["import json", "assert json is None, 'as it should be'"], tmp_path)

    assert ended.returncode != 0
    assert "as it should be" in ended.stderr


def test_the_notebook_is_kept_without_outputs() -> None:
    assert [cell["outputs"] for cell in code_cells() if cell["outputs"] or cell["execution_count"]] == []
