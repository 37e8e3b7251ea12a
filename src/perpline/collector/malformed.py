"""Frames that could not be used, kept aside for a person to look at."""

import base64
from pathlib import Path

import msgspec
import structlog

log = structlog.get_logger("perpline.malformed")

MAX_KEPT_BYTES = 4096
"""So much of a frame is kept: enough to see what it is."""


TRY_AGAIN_US = 60_000_000
"""After a failure of the disk, by the time of receipt."""


class MalformedFile:
    """A file of at most `max_bytes` with one JSON line for each frame: received_us, reason, length, data (base64).

    When it is full, further frames are counted and not kept: the first ones tell what is wrong. A disk that cannot be
    written costs the record, not the stream; after a minute it is tried again.
    """

    def __init__(self, path: Path | None, max_bytes: int) -> None:
        self.path = path
        self.kept = 0
        self.not_kept = 0
        self._max_bytes = max_bytes
        self._size = path.stat().st_size if path is not None and path.exists() else 0
        self._failed_until_us = 0

    def keep(self, data: bytes, received_us: int, reason: str) -> None:
        line = msgspec.json.encode(
            {
                "received_us": received_us,
                "reason": reason,
                "length": len(data),
                "data": base64.b64encode(data[:MAX_KEPT_BYTES]).decode(),
            }
        )
        is_full = self._size + len(line) + 1 > self._max_bytes
        if self.path is None or is_full or received_us < self._failed_until_us:
            self.not_kept += 1
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                try:
                    file.write(line + b"\n")
                    file.flush()
                except OSError:
                    file.truncate(self._size)  # half a line would spoil the next one
                    raise
        except OSError as error:
            if not self._failed_until_us:
                log.error("malformed_file_unwritable", path=str(self.path), reason=str(error), action="set_aside")
            self._failed_until_us = received_us + TRY_AGAIN_US
            self.not_kept += 1
            return
        self._failed_until_us = 0
        self._size += len(line) + 1
        self.kept += 1
