"""What the process remembers from run to run: which alarms stand and what is still to be told. One file."""

import os
import sys
from pathlib import Path
from types import TracebackType

import msgspec
import structlog
from msgspec import Struct

from perpline.alerts.facts import ModesSeen
from perpline.alerts.standing import Entry, Note
from perpline.common.errors import NeedsPerson

if sys.platform != "win32":
    import fcntl

log = structlog.get_logger("perpline.alerts")

LARGEST_BYTES = 64 << 20


class State(Struct, kw_only=True):
    """Everything that is remembered."""

    entries: list[Entry] = []
    waiting: dict[str, list[Note]] = {}
    """By the key of the channel, what it has not taken."""
    modes_seen: ModesSeen | None = None
    rows: list[tuple[str, str, str, str, int, int | None, int | None]] = []
    """Rows of the table `alerts` that the database does not have yet."""


class StateFile:
    """The file `alerts.json` of a data folder, held by one process at a time."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / "alerts.json"
        self._lock: int | None = None

    def __enter__(self) -> "StateFile":
        """Take it. Raises NeedsPerson where another process has it, or the folder cannot be written."""
        path = self.path.with_suffix(".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise NeedsPerson(f"cannot open {path}: {error.strerror or error}") from None
        if sys.platform != "win32":
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel drops it when the process dies
            except OSError:
                os.close(self._lock)
                raise NeedsPerson(f"another `perpline alerts run` watches {self.path.parent}") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def read(self) -> State:
        """What was written last; nothing where there is no file, or one that cannot be read."""
        try:
            if self.path.stat().st_size > LARGEST_BYTES:
                raise ValueError("it is too large")
            return msgspec.json.decode(self.path.read_bytes(), type=State)
        except FileNotFoundError:
            return State()
        except (OSError, ValueError, RecursionError) as error:  # a DecodeError is a ValueError
            log.warning("alert_state_unreadable", path=str(self.path), reason=str(error), action="alert")
            return State()

    def write(self, state: State) -> None:
        """Replace the file. Raises OSError; what was there is whole then."""
        path = self.path.with_suffix(".new")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(state))
            file.flush()
            os.fsync(file.fileno())
        os.replace(path, self.path)
