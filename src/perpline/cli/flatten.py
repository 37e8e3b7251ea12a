"""`perpline flatten`: close what is open, now."""

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Column, Table

from perpline.cli.database import who
from perpline.cli.mode import SymbolsArgument
from perpline.cli.options import (
    ConfigOption,
    DatabaseOption,
    JsonOption,
    NetworkOption,
    RestUrlOption,
    SpeedOption,
    WsUrlOption,
    exchange_settings,
    print_json,
    stderr,
    symbol_names,
)
from perpline.common.config import load_settings
from perpline.common.errors import NeedsPerson
from perpline.common.telemetry import configure_logging
from perpline.desk import flatten as close_all
from perpline.desk import left_open


def flatten(
    symbols: SymbolsArgument = None,
    account: Annotated[
        Literal["live", "paper", "both"] | None,
        typer.Option(help="Which account; default: both where there are keys, else paper.", show_default=False),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; stored with the mode.")] = "perpline flatten",
    network: NetworkOption = None,
    ws_url: WsUrlOption = None,
    rest_url: RestUrlOption = None,
    speed: SpeedOption = None,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set the mode to off and close what is open with reduce-only market orders; then cancel every order there is.

    Works with a worker and without one. Of the live account the exchange is asked, so positions that perpline does not
    know are closed too; for that it needs the keys, and no database.

    Example: perpline flatten BTCUSDT ETHUSDT
    """
    settings = load_settings(
        config,
        os.environ,
        {**exchange_settings(None, network, ws_url, rest_url, speed), "database_url": database},
    )
    configure_logging(settings.log_level, settings.log_format, sys.stderr)
    names = symbol_names(symbols or ())

    def tell(line: str) -> None:
        stderr.print(line, style="dim", highlight=False)

    done = asyncio.run(close_all(settings, account=account, symbols=names, reason=reason, by=who(), tell=tell))
    left = left_open(done)
    if as_json:
        print_json({"flattened": done, "flat": not left})
    elif done:
        Console(highlight=False).print(_table(done))
    else:
        print("nothing was open")
    if left:
        raise NeedsPerson(
            f"not everything could be closed: {', '.join(each['symbol'] for each in left)}; run it again, or close at "
            "the exchange"
        )


def _table(done: Sequence[dict[str, Any]]) -> Table:
    table = Table(
        "account", "symbol", Column("was open", justify="right"), Column("left", justify="right"), "", box=None
    )
    for each in done:
        table.add_row(each["account"], each["symbol"], each["closed"], each["left"], each["error"])
    return table
