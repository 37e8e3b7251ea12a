"""Where `perpline` begins. It imports next to nothing, so that Ctrl-C is quiet while the rest is imported."""

import os
import signal
import sys
import threading
from types import FrameType

STOPPED = 130
"""Exit code after Ctrl-C, as shells have it."""


def main(argv: list[str] | None = None) -> int:
    """Run a command. Exit 0 on success, 1 on failure with one clear line on stderr, 2 on wrong usage, 130 on Ctrl-C
    where the command does not end well by it."""
    arguments = sys.argv[1:] if argv is None else argv
    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else somebody wants something else of it
    )
    if is_ours:
        signal.signal(signal.SIGINT, _leave)
    try:
        from perpline.cli.program import import_command, run_command

        import_command(arguments)
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    return run_command(arguments)


def _leave(number: int, frame: FrameType | None) -> None:
    # No exception: raised in the middle of an import it would be told as another one, or be swallowed. Nothing is open.
    os._exit(STOPPED)
