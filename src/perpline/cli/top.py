"""`perpline top`: the overview of a running worker, for a terminal."""

import asyncio
import io
import os
import sys
from typing import Annotated, Any

import aiohttp
import msgspec
import typer
from rich.console import Console
from rich.text import Text

from perpline.bootstrap import open_store
from perpline.cli.explain import explain_page
from perpline.cli.options import ConfigOption, DatabaseOption, JsonOption, print_json
from perpline.cli.top_view import SPARK, Closes, picture, plain_lines
from perpline.common.clock import SystemClock
from perpline.common.config import Settings, load_settings
from perpline.common.errors import NeedsPerson, PerplineError
from perpline.explanation import explain_stored
from perpline.worker_client import fetch_status

PLAIN_WIDTH = 160
"""Where the output is no terminal, and COLUMNS says nothing else."""
CLOSES_WITHIN_S = 3.0


def top(
    status_port: Annotated[int | None, typer.Option(help="Port of the worker's endpoint.", show_default=False)] = None,
    once: Annotated[bool, typer.Option("--once", help="Print one page and end, as without a terminal.")] = False,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a running worker on the whole terminal: mode, money, connections, a line a symbol. ? shows the keys.

    Nothing is changed from here. The database, where it can be read, gives the closes of the last minutes and what
    the key e explains.

    Example: perpline top --status-port 9720
    """
    settings = load_settings(config, os.environ, {"status_port": status_port, "database_url": database})
    is_terminal = all(each.isatty() for each in (sys.stdin, sys.stdout, sys.stderr))  # textual draws on stderr
    if as_json or once or not is_terminal or os.environ.get("TERM") == "dumb":
        facts, closes = asyncio.run(_one_look(settings))
        shown = picture(facts, closes)
        if as_json:
            print_json(msgspec.to_builtins(shown))
            return
        console = Console(highlight=False)
        width = console.width if sys.stdout.isatty() or "COLUMNS" in os.environ else PLAIN_WIDTH
        for line in plain_lines(shown, width):
            text = Text.assemble(*line).plain.rstrip() if not console.is_terminal else Text.assemble(*line)
            console.print(text, soft_wrap=True, markup=False)
        return
    try:
        from perpline.cli.top_app import TopApp
    except ImportError:
        raise NeedsPerson(
            "the screen of top needs one more package: pip install 'perpline[tui]' (--once and --json do without)"
        ) from None
    first = asyncio.run(_first(settings))
    closes = Closes()

    async def show() -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            app = TopApp(
                lambda: fetch_status(settings.data_dir, settings.status_port, session),
                lambda symbol, close_time, width: _explained(settings, symbol, close_time, width),
                closes,
                SystemClock(),
                first=first,
                load_closes=lambda: load_closes(settings, first, closes),
                plain="NO_COLOR" in os.environ,
            )
            await app.run_async()

    asyncio.run(show())


async def _first(settings: Settings) -> dict[str, Any]:
    facts = await fetch_status(settings.data_dir, settings.status_port)
    if facts.get("role") == "inference":
        raise NeedsPerson(
            f"the worker on port {settings.status_port} only decides and hears no market: perpline status shows it, "
            "perpline top the collectors"
        )
    return facts


async def _one_look(settings: Settings) -> tuple[dict[str, Any], Closes]:
    facts, closes = await _first(settings), Closes()
    closes.take(facts)
    await load_closes(settings, facts, closes)
    return facts, closes


async def load_closes(settings: Settings, facts: dict[str, Any], closes: Closes) -> None:
    """What the database has of the last minutes; nothing where it cannot be read, or not soon."""
    try:
        async with asyncio.timeout(CLOSES_WITHIN_S):
            store = open_store(settings.database_url.get_secret_value(), read_only=True)
            await store.open()
            try:
                candles = await store.last_candles("1m", list(facts["symbols"]), SPARK)
            finally:
                await store.close()
    except (PerplineError, TimeoutError):
        return  # the line of closes then begins with what the worker tells
    stored = {symbol: [(each.open_time, each.close) for each in found] for symbol, found in candles.items()}
    closes.add_stored(stored, facts["now"])


async def _explained(settings: Settings, symbol: str, close_time: int, width: int) -> Text:
    """The page of `perpline explain`. Raises PerplineError."""
    facts = await explain_stored(settings, symbol, close_time, settings.slot)
    page = Console(file=io.StringIO(), width=width, force_terminal=True, highlight=False, markup=False)
    with page.capture() as captured:
        explain_page(facts, page)
    return Text.from_ansi(captured.get())
