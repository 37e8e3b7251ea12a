"""Makes docs/images/demo.svg: the screen of `perpline demo`, drawn from what a real worker says of itself.

    .venv/bin/python docs/make_images.py

Starts a simulated exchange and a worker, lets them run for a while, asks the worker for its status until a symbol's
last decision has a side, and hands that to the very function which draws the demo. No number in the picture is made by
hand, so each run gives another one.
"""

import io
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from perpline.cli.demo import screen

IMAGES = Path(__file__).parent / "images"
SYMBOLS, SPEED, SEED = 30, 60, 3
RUN_S = 30.0
LOOKS = 60
WIDTH, HEIGHT = 116, 40


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        facts = facts_of_a_run(Path(folder))
    console = Console(record=True, width=WIDTH, height=HEIGHT, file=io.StringIO(), force_terminal=True)
    console.print(screen(facts, SPEED, WIDTH, HEIGHT))
    svg = console.export_svg(title="./run demo --speed 60", unique_id="demo")
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / "demo.svg").write_text(without_hosts(svg), encoding="utf-8")


def facts_of_a_run(folder: Path) -> dict[str, Any]:
    """What the worker's /status says at least RUN_S wall seconds after its start beside a simulated exchange."""
    exchange = perpline(
        "simulate", "--speed", str(SPEED), "--seed", str(SEED), "--symbols", str(SYMBOLS), "--edge", "2"
    )
    worker = None
    try:
        assert exchange.stdout is not None
        ready = json.loads(exchange.stdout.readline())
        settings = {
            "network": "custom",
            "binance_futures_ws_url": ready["ws"],
            "binance_futures_rest_url": ready["http"],
            "symbols": f"top:{SYMBOLS}",
            "clock_speed": SPEED,
            "data_dir": str(folder),
            "status_port": 0,
        }
        config = folder / "perpline.toml"
        config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
        worker = perpline("run", "--config", str(config))
        time.sleep(RUN_S)
        tokens = list(folder.glob("worker-*.json"))
        if not tokens:
            sys.exit("the worker did not start: perpline run says why")
        port = tokens[0].stem.removeprefix("worker-")
        for _ in range(LOOKS):
            asked = perpline("status", "--config", str(config), "--status-port", port, "--json")
            facts: dict[str, Any] = json.loads(asked.communicate(timeout=30)[0].splitlines()[-1])
            if any((entry["last_decision"] or {}).get("side") for entry in facts["symbols"].values()):
                break
        return facts
    finally:
        for process in (worker, exchange):
            if process is not None:
                process.terminate()
                process.wait(30)


def perpline(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "perpline", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def without_hosts(svg: str) -> str:
    """The picture with the reader's own fonts: rich's would be fetched from another host."""
    svg = re.sub(r"@font-face\s*{[^}]*}|<!--.*?-->", "", svg)
    return svg.replace("Fira Code", "ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono")


if __name__ == "__main__":
    main()
