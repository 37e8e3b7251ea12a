"""The one program: `perpline`."""

import sys
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


def _add_commands() -> None:
    """Commands are imported here, after `main` has begun, so that an import that fails is told like any other error."""
    from perpline.cli import config, demo, plan, record, replay, run, simulate, status

    app.command()(demo.demo)
    app.command()(run.run)
    app.command()(status.status)
    app.command()(plan.plan)
    app.command()(simulate.simulate)
    app.command()(replay.replay)
    app.command()(record.record)
    app.add_typer(config.app, name="config")


def main(argv: list[str] | None = None) -> int:
    """Run a command. Exit 0 on success, 1 on failure with one clear line on stderr, 2 on wrong usage."""
    if not app.registered_commands:
        _add_commands()
    try:
        app(args=argv, prog_name="perpline")
    except PerplineError as error:
        return _tell(error)
    except BaseExceptionGroup as group:
        known = group.subgroup(PerplineError)
        if known is None:
            raise
        return _tell(_first(known))
    return 0


def _first(group: BaseExceptionGroup[PerplineError]) -> PerplineError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, PerplineError)
    return error


def _tell(error: PerplineError) -> int:
    print(f"perpline: {error}", file=sys.stderr)
    return 1
