"""The one program: `perpline`, and its commands."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from keyword import iskeyword
from typing import Annotated

import typer

from perpline import __version__
from perpline.common.errors import PerplineError

app = typer.Typer(
    name="perpline",
    help="A realtime engine for Binance USDⓈ-M futures: hears every stream, decides exactly once per closed minute.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"perpline {__version__}")
        raise typer.Exit


@app.callback()
def perpline(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


COMMANDS = (
    "init",
    "demo",
    "run",
    "status",
    "top",
    "dashboard",
    "watch",
    "symbols",
    "schema",
    "config",
    "db",
    "plan",
    "doctor",
    "alerts",
    "drill",
    "models",
    "explain",
    "mode",
    "flatten",
    "positions",
    "orders",
    "trades",
    "pnl",
    "export",
    "features",
    "replay",
    "record",
    "simulate",
    "import",
    "backfill",
    "gaps",
    "archive",
    "train",
    "backtest",
    "parity",
    "outcomes",
)
"""Each is a module of this folder with a function, or for a group of commands an `app`, of that name."""


def add_commands(names: Sequence[str] = COMMANDS) -> None:
    """Import and add these commands.

    Only what is asked for is imported: a worker needs half a second of imports that `status` can do without.
    """
    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {group.name for group in app.registered_groups if isinstance(group.name, str)}
    for name in names:
        if name in known:
            continue
        module = import_module(f"perpline.cli.{name}{'_' if iskeyword(name) else ''}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command()(getattr(module, name))


def import_command(arguments: Sequence[str]) -> None:
    """What this command line needs: its command, and for help, completion and what is none, nothing."""
    if _is_to_be_done(arguments):
        add_commands([arguments[0]])


def run_command(arguments: Sequence[str]) -> int:
    """The exit code, as `main` promises it."""
    try:
        if _is_to_be_done(arguments):
            app(args=arguments, prog_name="perpline")
        else:
            from perpline.cli.outline import outline_app

            outline_app(app, COMMANDS)(args=arguments, prog_name="perpline")
    except PerplineError as error:
        return _tell(error)
    except BaseExceptionGroup as group:
        known = group.subgroup(PerplineError)
        if known is None:
            raise
        return _tell(_first(known))
    return 0


def _is_to_be_done(arguments: Sequence[str]) -> bool:
    """Whether a command is to run, or its own help to be shown; else its outline is enough."""
    return bool(arguments) and arguments[0] in COMMANDS and "_PERPLINE_COMPLETE" not in os.environ


def _first(group: BaseExceptionGroup[PerplineError]) -> PerplineError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, PerplineError)
    return error


def _tell(error: PerplineError) -> int:
    print(f"perpline: {error}", file=sys.stderr)
    return 1
