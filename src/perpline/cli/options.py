"""What the commands share: options with one meaning everywhere, the running of a loop, and the last line of --json."""

import asyncio
import json
import re
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

T = TypeVar("T")

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Settings file; default: ./perpline.toml, then the user's.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of stdout.")]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        help="Where the tables are: sqlite:///path/file.db or postgresql://user@host/database",
        show_default=False,
    ),
]
RedisOption = Annotated[
    str | None, typer.Option("--redis", help="Where messages go: memory:// or redis://…", show_default=False)
]
SymbolsOption = Annotated[
    str | None, typer.Option("--symbols", help='Symbols: "BTCUSDT,ETHUSDT" or "top:30".', show_default=False)
]
NetworkOption = Annotated[str | None, typer.Option("--network", help="mainnet, testnet or custom.", show_default=False)]
WsUrlOption = Annotated[
    str | None, typer.Option("--ws-url", help="Base URL of the streams (network custom).", show_default=False)
]
RestUrlOption = Annotated[
    str | None, typer.Option("--rest-url", help="Base URL of REST (network custom).", show_default=False)
]
SpeedOption = Annotated[
    float | None, typer.Option("--speed", help="Speed of market time, for the simulated exchange.", show_default=False)
]
DurationOption = Annotated[
    float | None, typer.Option("--duration", help="Stop after so many wall seconds.", min=0.0, show_default=False)
]

PortOption = Annotated[int | None, typer.Option(help="Port of the running worker's endpoint.", show_default=False)]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; it is stored with the change.")]

stderr = Console(stderr=True)


def time_ms(text: str, option: str) -> int:
    """Milliseconds of 1795410660000, 2026-11-23T05:11, 2026-11-23 05:11 or with an offset; without one UTC."""
    if text.isdecimal() and len(text) == 13:
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"no time: {text!r}; 2026-11-20T13:57 is one", param_hint=option) from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def symbol_names(symbols: Sequence[str]) -> list[str]:
    """These symbols in capitals, each once."""
    for name in symbols:
        if not re.fullmatch(r"\w{1,40}", name):
            raise typer.BadParameter(f"{name!r} is no symbol", param_hint="SYMBOL")
    return list(dict.fromkeys(name.upper() for name in symbols))


def exchange_settings(
    symbols: str | None, network: str | None, ws_url: str | None, rest_url: str | None, speed: float | None
) -> dict[str, object]:
    """The settings that these options stand for; an address of one's own means network custom."""
    return {
        "symbols": symbols,
        "network": "custom" if network is None and (ws_url or rest_url) else network,
        "binance_futures_ws_url": ws_url,
        "binance_futures_rest_url": rest_url,
        "clock_speed": speed,
    }


def print_json(value: dict[str, Any]) -> None:
    """The one JSON object of a command, alone on the last line of stdout."""
    sys.stdout.flush()
    # With PYTHONUNBUFFERED a write is one system call, and may take a part: io_uring, which uvloop uses, interrupts it.
    rest = memoryview((json.dumps(value, ensure_ascii=False) + "\n").encode())
    while rest:
        rest = rest[sys.stdout.buffer.write(rest) :]
    sys.stdout.flush()


def run_loop(main: Callable[[asyncio.Event], Coroutine[Any, Any, T]]) -> T:
    """Run `main(stop)` on uvloop where there is one; Ctrl-C and SIGTERM set `stop`, and a second one kills."""
    new_event_loop: Callable[[], asyncio.AbstractEventLoop]
    try:
        from uvloop import new_event_loop
    except ImportError:  # Windows has none; asyncio's own loop does as well
        new_event_loop = asyncio.new_event_loop

    numbers = (signal.SIGINT, signal.SIGTERM) if sys.platform != "win32" else ()

    async def guarded() -> T:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def stopped(number: int) -> None:
            stop.set()
            for each in numbers:
                loop.remove_signal_handler(each)
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        for number in numbers:
            loop.add_signal_handler(number, stopped, number)
        try:
            return await main(stop)
        finally:
            # uvloop leaves them behind when it is closed, and whatever a command does next could not be stopped.
            for number in numbers:
                loop.remove_signal_handler(number)

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(guarded())
