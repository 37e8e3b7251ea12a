"""`perpline dashboard`: the pages for people."""

import asyncio
import os
import ssl
import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from perpline.cli.database import who
from perpline.cli.options import (
    ConfigOption,
    DatabaseOption,
    DurationOption,
    JsonOption,
    NetworkOption,
    PortOption,
    RestUrlOption,
    SpeedOption,
    WsUrlOption,
    exchange_settings,
    print_json,
    run_loop,
)
from perpline.common.clock import SystemClock
from perpline.common.config import load_settings
from perpline.common.errors import NeedsPerson
from perpline.common.telemetry import configure_logging
from perpline.dashboard.app import Listening, serve


def dashboard(
    port: Annotated[
        int | None, typer.Option(help="Where it listens; default: the setting dashboard_port, 9721.", min=0, max=65_535)
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="On which address; default: the setting dashboard_host, 127.0.0.1.")
    ] = None,
    status_port: PortOption = None,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Listen where other machines reach it; wants TLS.")
    ] = False,
    allow_remote_without_tls: Annotated[
        bool,
        typer.Option("--allow-remote-without-tls", help="The same without TLS: token and trades go in the clear."),
    ] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.", show_default=False)] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.", show_default=False)] = None,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open it in this machine's browser.")] = False,
    network: NetworkOption = None,
    ws_url: WsUrlOption = None,
    rest_url: RestUrlOption = None,
    speed: SpeedOption = None,
    database: DatabaseOption = None,
    duration: DurationOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the market, the decisions and the trades in a browser, until Ctrl-C. A process beside the worker.

    Prints the address with the token that lets a browser in; where stdout is no terminal, the name of a file that has
    it. Mode and flatten work there as on the command line.

    Example: perpline dashboard --open

    Example: perpline dashboard --host 0.0.0.0 --allow-remote --tls-cert cert.pem --tls-key key.pem
    """
    settings = load_settings(
        config,
        os.environ,
        {
            **exchange_settings(None, network, ws_url, rest_url, speed),
            "database_url": database,
            "status_port": status_port,
            "dashboard_port": port,
            "dashboard_host": host,
        },
    )
    configure_logging(settings.log_level, settings.log_format, sys.stderr)
    tls = _tls(tls_cert, tls_key)

    left: list[Path] = []

    def leave(name: str, text: str) -> Path:
        left.append(private_file(settings.data_dir / name, text))
        return left[-1]

    def ready(listening: Listening) -> None:
        if as_json:
            print_json({"url": listening.url, "port": listening.port})
        elif sys.stdout.isatty():
            print(listening.url, flush=True)
        else:  # a journal or a log, which more people read than may trade
            print(f"the address is in {leave(f'dashboard-{listening.port}.url', listening.url)}", flush=True)
        if open_page:  # a browser's arguments are for everybody on this machine to read
            page = f'<!doctype html><meta http-equiv="refresh" content="0; url={listening.url}">'
            webbrowser.open(leave(f"dashboard-{listening.port}.html", page).absolute().as_uri())

    async def main(stop: asyncio.Event) -> None:
        if duration is not None:
            asyncio.get_running_loop().call_later(duration, stop.set)
        await serve(
            settings,
            SystemClock(),
            stop,
            by=f"dashboard:{who()}",
            allow_remote=allow_remote or allow_remote_without_tls,
            without_tls=allow_remote_without_tls,
            tls=tls,
            on_ready=ready,
        )

    try:
        run_loop(main)
    finally:
        for path in left:
            path.unlink(missing_ok=True)


def private_file(path: Path, text: str) -> Path:
    """The file, made anew for this user only. Raises NeedsPerson where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        # Made with its mode, never narrowed afterwards: the token must not be readable for an instant.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{text}\n")
    except OSError as error:
        raise NeedsPerson(f"cannot write the address to {path}: {error.strerror or error}") from None
    return path


def _tls(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise typer.BadParameter("both are needed, or neither", param_hint="--tls-cert, --tls-key")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise NeedsPerson(f"cannot use {cert} with {key}: {error}") from None
    return context
