"""Makes docs/images: the screens of `perpline demo`, `demo --trade` and `top`, what `perpline drill`
prints, plots of the lab, and pages of the dashboard.

    .venv/bin/python docs/make_images.py [demo] [trade] [top] [drill] [lab] [dashboard]

Screens and pages are drawn from what a real worker says of itself: a simulated exchange and a worker run for a
while, the worker is asked for its status until there is something to see, and that is handed to what draws the screen.
Drills are played. No number in the pictures is made by hand, so each run gives others.
"""

import asyncio
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import apsw
from rich.console import Console
from rich.text import Text

from perpline.cli.demo import screen
from perpline.cli.demo_trade import begin_trading, trade_settings
from perpline.cli.top import load_closes
from perpline.cli.top_view import Closes, picture
from perpline.common.clock import SystemClock
from perpline.common.config import load_settings
from perpline.common.errors import NeedsPerson

try:
    from perpline.cli.top_app import TopApp
except ImportError:  # without the extra tui there is no picture of top
    TopApp = None  # type: ignore[assignment, misc]

IMAGES = Path(__file__).parent / "images"
SYMBOLS, SPEED, SEED = 30, 60, 3
RUN_S = 30.0
DASHBOARD_RUN_S = 100.0
"""So that the map of minutes has an hour and a half, and positions have come and gone."""
LOOKS = 60
WIDTH, HEIGHT = 116, 40
TOP_WIDTH, TOP_HEIGHT = 150, 38

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDE: dict[str, Any] = {"viewport": {"width": 1440, "height": 860}, "locale": "en-US", "color_scheme": "light"}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 780}, "device_scale_factor": 2, "locale": "en-US"}

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
TITLES = {
    "demo": "./run demo --speed 60",
    "trade": "./run demo --trade",
    "top": "./run top",
    "drill": f"./run drill --seed {SEED} …",
}


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    for name in sys.argv[1:] or (*TITLES, "lab", "dashboard"):
        if name == "drill":
            draw_drills()
            continue
        if name == "dashboard":
            draw_dashboard()
            continue
        if name == "top" and TopApp is None:
            print("no picture of top: textual is not installed", file=sys.stderr)
            continue
        if name == "lab":
            draw_lab()
            continue
        with tempfile.TemporaryDirectory() as folder:
            facts = facts_of_a_run(Path(folder), name)
            if name == "top":
                draw_top(facts, Path(folder))
                continue
        console = Console(record=True, width=WIDTH, height=HEIGHT, file=io.StringIO(), force_terminal=True)
        console.print(screen(facts, SPEED, WIDTH, HEIGHT, "" if name == "trade" else None))
        svg = console.export_svg(title=TITLES[name], unique_id=name)
        (IMAGES / f"{name}.svg").write_text(without_hosts(svg), encoding="utf-8")


def draw_top(facts: dict[str, Any], folder: Path) -> None:
    """The screen of `perpline top` at this status, with the closes that the worker has stored."""
    closes = Closes()
    settings = load_settings(folder / "perpline.toml", {}, {})

    async def never(*_: object) -> Any:
        raise NeedsPerson("a picture is looked at, not asked")

    async def screenshot() -> str:
        await load_closes(settings, facts, closes)
        app = TopApp(never, never, closes, SystemClock(), first=facts, every_s=None)
        async with app.run_test(size=(TOP_WIDTH, TOP_HEIGHT)) as pilot:
            await pilot.press("down", "down")
            await pilot.pause()
            return app.export_screenshot(title=TITLES["top"])

    svg = re.sub(r"terminal-\d+", "top", asyncio.run(screenshot()))
    (IMAGES / "top.svg").write_text(without_hosts(svg), encoding="utf-8")


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


def draw_lab() -> None:
    """The four plots of docs/lab.md, of six hours of market that a worker heard and traded on paper."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from perpline import lab

    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "lab.db"
        asked = "demo --trade --symbols 6 --speed 240 --duration 90 --json".split()
        ended = perpline(*asked, "--seed", str(SEED), "--database", f"sqlite:///{database}")
        ended.communicate(timeout=300)
        if ended.returncode:
            sys.exit("the demo failed: perpline demo says why")
        here = lab.open(database)
        signals, positions = here.signals(), here.positions()
        [symbol] = positions["symbol"].mode().sort().head(1)
        last = signals.filter(signals["p_long"].is_not_null()).row(-1, named=True)
        served = here.features(last["symbol"], last["close_time"])
        figure, axes = pyplot.subplots(2, 2, figsize=(13, 8.5), layout="constrained", width_ratios=(3, 2))
        lab.plot_candles(here.candles(symbol).tail(240), signals, positions, ax=axes[0, 0])
        # The horizon of the model's own rule is four hours: most of these six are not known yet.
        rule = lab.LabelRule(tp_pct=0.5, sl_pct=0.5, horizon_s=3600, cost_bp=4.0, price="last")
        lab.plot_calibration(here.outcomes(label=rule), ax=axes[0, 1])
        lab.plot_equity(here.equity(), ax=axes[1, 0])
        lab.plot_features(served, names=served.names[:26], ax=axes[1, 1])
        figure.savefig(IMAGES / "lab.png", dpi=80, metadata={"Software": None})


def facts_of_a_run(folder: Path, name: str) -> dict[str, Any]:
    """What the worker's /status says at least RUN_S wall seconds after its start beside a simulated exchange."""
    with a_run(folder, trades=name != "demo") as (config, port):
        for _ in range(LOOKS):
            asked = perpline("status", "--config", str(config), "--status-port", port, "--json")
            facts: dict[str, Any] = json.loads(asked.communicate(timeout=30)[0].splitlines()[-1])
            if there_is_something_to_see(facts, name):
                break
        return facts


@contextmanager
def a_run(folder: Path, *, trades: bool, run_s: float = RUN_S) -> Iterator[tuple[Path, str]]:
    """A simulated exchange and a worker that has run for so long: its settings file and its status port."""
    asked = f"simulate --speed {SPEED} --seed {SEED} --symbols {SYMBOLS} --edge 2"
    exchange, worker = perpline(*asked.split()), None
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
            **(trade_settings(SPEED) if trades else {}),
        }
        config = folder / "perpline.toml"
        config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
        if trades:
            asyncio.run(trade_on_paper(config, ready["http"]))
        worker = perpline("run", "--config", str(config))
        time.sleep(run_s)
        tokens = list(folder.glob("worker-*.json"))
        if not tokens:
            sys.exit("the worker did not start: perpline run says why")
        yield config, tokens[0].stem.removeprefix("worker-")
    finally:
        for process in (worker, exchange):
            if process is not None:
                process.terminate()
                process.wait(30)


def draw_dashboard() -> None:
    """Pages of the dashboard beside a worker that trades on paper, as the system's Chromium shows them."""
    if CHROMIUM is None:
        print("no pictures of the dashboard: there is no Chromium (apt-get install chromium)", file=sys.stderr)
        return
    from playwright.sync_api import sync_playwright

    with (
        tempfile.TemporaryDirectory() as name,
        a_run(Path(name), trades=True, run_s=DASHBOARD_RUN_S) as (config, port),
        sync_playwright() as playwright,
    ):
        serving = perpline(
            "dashboard", "--config", str(config), "--status-port", port, "--port", "0", "--json", "--no-open"
        )
        try:
            assert serving.stdout is not None
            url = json.loads(serving.stdout.readline())["url"]
            rows = apsw.Connection(str(Path(name) / "perpline.db"), flags=apsw.SQLITE_OPEN_READONLY)
            [[symbol]] = rows.execute("SELECT symbol FROM positions GROUP BY symbol ORDER BY count(*) DESC, 1 LIMIT 1")
            [[minute]] = rows.execute(
                "SELECT max(close_time) FROM signals WHERE symbol = ? AND status = 'ok'", (symbol,)
            )
            rows.close()
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            for shot, route, look in (
                ("overview", "overview", WIDE),
                ("overview-dark", "overview", {**WIDE, "color_scheme": "dark"}),
                ("overview-phone", "overview", {**PHONE, "color_scheme": "dark"}),
                ("overview-ko", "overview", {**WIDE, "locale": "ko-KR"}),
                ("symbol", f"symbol/{symbol}", WIDE),
                ("minutes", "minutes", WIDE),
                ("explain", f"explain/{symbol}/{minute}", WIDE),
            ):
                context = browser.new_context(**look)
                page = context.new_page()
                page.goto(url)
                page.goto(f"{url.partition('/?')[0]}/#/{route}")
                page.wait_for_selector(f'[data-testid="page-{route.partition("/")[0]}"][data-ready="true"]')
                page.wait_for_timeout(3000)  # news comes five times a second: let each part be drawn with some
                page.screenshot(path=str(IMAGES / f"dashboard-{shot}.png"))
                context.close()
            browser.close()
        finally:
            serving.terminate()
            serving.wait(30)


def there_is_something_to_see(facts: dict[str, Any], name: str) -> bool:
    if name == "trade":
        exits = {each["reason"] for each in facts["trading"]["accounts"]["paper"]["recent"][-5:]}
        return {"target", "stop"} <= exits
    decided = [(entry["last_decision"] or {}).get("side") for entry in facts["symbols"].values()]
    if name == "top":
        return sum(map(bool, decided)) > 1 and not picture(facts, Closes()).trouble
    return any(decided)


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
