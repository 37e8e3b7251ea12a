"""Makes docs/images: the screens of `perpline demo` and `demo --trade`, and what `perpline drill` prints.

    .venv/bin/python docs/make_images.py [demo] [trade] [drill]

The first two are drawn from what a real worker says of itself: a simulated exchange and a worker run for a while, the
worker is asked for its status until there is something to see, and that is handed to the very function which draws the
demo. Drills are played. No number in the pictures is made by hand, so each run gives others.
"""

import asyncio
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.text import Text

from perpline.cli.demo import screen
from perpline.cli.demo_trade import begin_trading, trade_settings

IMAGES = Path(__file__).parent / "images"
SYMBOLS, SPEED, SEED = 30, 60, 3
RUN_S = 30.0
LOOKS = 60
WIDTH, HEIGHT = 116, 40


DRILLS = (
    "cut",
    "garbage",
    "rollover",
    "database-down",
    "redis-down",
    "kill-at-random",
    "leader-frozen",
    "lost-order-answer",
)
TITLES = {"demo": "./run demo --speed 60", "trade": "./run demo --trade", "drill": f"./run drill --seed {SEED} …"}


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    for name in sys.argv[1:] or TITLES:
        if name == "drill":
            draw_drills()
            continue
        with tempfile.TemporaryDirectory() as folder:
            facts = facts_of_a_run(Path(folder), trade=name == "trade")
        console = Console(record=True, width=WIDTH, height=HEIGHT, file=io.StringIO(), force_terminal=True)
        console.print(screen(facts, SPEED, WIDTH, HEIGHT, "" if name == "trade" else None))
        svg = console.export_svg(title=TITLES[name], unique_id=name)
        (IMAGES / f"{name}.svg").write_text(without_hosts(svg), encoding="utf-8")


def draw_drills() -> None:
    """What a terminal shows after some drills were played; a failure is no picture."""
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH)}
    asked = [sys.executable, "-m", "perpline", "drill", *DRILLS, "--seed", str(SEED)]
    played = subprocess.run(asked, stdout=subprocess.PIPE, env=environment, text=True)
    if played.returncode:
        sys.exit(played.stdout)
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(played.stdout.rstrip()))
    svg = console.export_svg(title=TITLES["drill"], unique_id="drill")
    (IMAGES / "drill.svg").write_text(without_hosts(svg), encoding="utf-8")


def facts_of_a_run(folder: Path, trade: bool) -> dict[str, Any]:
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
            **(trade_settings(SPEED) if trade else {}),
        }
        config = folder / "perpline.toml"
        config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
        if trade:
            asyncio.run(trade_on_paper(config, ready["http"]))
        worker = perpline("run", "--config", str(config))
        time.sleep(RUN_S)
        tokens = list(folder.glob("worker-*.json"))
        if not tokens:
            sys.exit("the worker did not start: perpline run says why")
        port = tokens[0].stem.removeprefix("worker-")
        for _ in range(LOOKS):
            asked = perpline("status", "--config", str(config), "--status-port", port, "--json")
            facts: dict[str, Any] = json.loads(asked.communicate(timeout=30)[0].splitlines()[-1])
            if there_is_something_to_see(facts, trade):
                break
        return facts
    finally:
        for process in (worker, exchange):
            if process is not None:
                process.terminate()
                process.wait(30)


def there_is_something_to_see(facts: dict[str, Any], trade: bool) -> bool:
    if trade:
        exits = {each["reason"] for each in facts["trading"]["accounts"]["paper"]["recent"][-5:]}
        return {"target", "stop"} <= exits
    return any((entry["last_decision"] or {}).get("side") for entry in facts["symbols"].values())


async def trade_on_paper(config: Path, http: str) -> None:
    async with aiohttp.ClientSession() as session:
        await begin_trading(config, "paper", http, session)


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
