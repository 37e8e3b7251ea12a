"""Makes the model that ships with perpline, by the commands that anybody would use: simulate, import, train.

    .venv/bin/python -m perpline.training.default_model

Takes about two minutes. The market is the simulated one with a drift planted behind one-sided takers, so there is
something to find; the model knows nothing about a real market and its note says so. The same version makes the same
model again.
"""

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from perpline.inference.artefact import GOLDEN, PSI, REPORT, read_manifest, write_artefact
from perpline.inference.registry import DEFAULT_MODELS

NOTE = (
    "Ships with perpline. Trained on the simulated market with a planted drift, to show the whole path; it knows "
    "nothing about a real market."
)
GOLDEN_ROWS = 128
"""Of the rows that training kept: the wheel shall stay small."""

SIMULATE = "--history 40 --symbols 6 --seed 20261101 --edge 3 --end 2026-11-01"
TRAIN = (
    "--name default --schema candles_day --no-repair --train-days 15 --test-days 8 --lockbox-days 0 "
    "--trees 60 --leaves 7 --every 5 --seed 1"
)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="perpline-default-") as folder:
        here = Path(folder)
        archives = here / "archives"
        _run(here, "simulate", *SIMULATE.split(), "--out", str(archives))
        published = archives / "data" / "futures" / "um"
        candles = [str(path) for kind in ("klines", "markPriceKlines") for path in published.glob(f"*/{kind}")]
        _run(here, "import", "candles", *candles)
        _run(here, "import", "funding", str(published / "monthly" / "fundingRate"))
        _run(here, "train", *TRAIN.split(), "--note", NOTE)
        [trained] = (here / "data" / "models").iterdir()
        print(f"{_ship(trained)} is the model that ships now")


def _run(here: Path, *words: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PERPLINE_")}
    environment["PERPLINE_DATA_DIR"] = str(here / "data")
    (here / "data").mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-m", "perpline", *words], env=environment, cwd=here, check=True)


def _ship(trained: Path) -> Path:
    """Put what serving needs of the trained model into the package, in place of the one before."""
    manifest = read_manifest(trained)
    names = {manifest.heads.long.file, manifest.heads.short.file, PSI, REPORT}
    with np.load(io.BytesIO((trained / GOLDEN).read_bytes()), allow_pickle=False) as golden:
        rows = golden["features"]
    chosen = rows[np.linspace(0, len(rows) - 1, GOLDEN_ROWS).round().astype(int)]
    shutil.rmtree(DEFAULT_MODELS, ignore_errors=True)
    dated = replace(manifest, created_at=manifest.train.to)  # not by the clock: the same inputs make the same files
    return write_artefact(DEFAULT_MODELS, dated, {name: (trained / name).read_bytes() for name in names}, chosen)


if __name__ == "__main__":
    main()
