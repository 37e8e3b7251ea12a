"""How far a reader has come, kept across its deaths."""

import time
from pathlib import Path

import apsw

from perpline.bus.follow import EntryId
from perpline.common.errors import NeedsPerson

BUSY_TIMEOUT_MS = 5_000
WAL_RETRY_S = 0.01


class Positions:
    """The position of the reader `name` in each stream of a server, in a small SQLite file of the user's.

    A position that was set survives the death of the process at any instant. Every call may raise NeedsPerson.
    """

    def __init__(self, path: Path, server: str, name: str) -> None:
        self._path = path
        self._key = (server, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = apsw.Connection(str(path))
            self._connection.set_busy_timeout(BUSY_TIMEOUT_MS)
            # Small pages and rare checkpoints: a commit a line is all that this file ever sees, and a checkpoint waits
            # for the disk.
            self._connection.execute("PRAGMA page_size=512")
            _set_wal(self._connection, BUSY_TIMEOUT_MS / 1000)
            for pragma in ("synchronous=NORMAL", "wal_autocheckpoint=10000"):
                self._connection.execute(f"PRAGMA {pragma}").fetchall()
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS position (server TEXT, name TEXT, stream TEXT, ms INTEGER NOT NULL,"
                " number INTEGER NOT NULL, PRIMARY KEY (server, name, stream)) STRICT, WITHOUT ROWID"
            )
        except (OSError, apsw.Error) as error:
            raise self._for_a_person(error) from error

    def get(self, stream: str) -> EntryId | None:
        query = "SELECT ms, number FROM position WHERE server = ? AND name = ? AND stream = ?"
        try:
            for ms, number in self._connection.execute(query, (*self._key, stream)):
                return ms, number
            return None
        except apsw.Error as error:
            raise self._for_a_person(error) from error

    def set(self, stream: str, position: EntryId) -> None:
        try:
            self._connection.execute(
                "INSERT OR REPLACE INTO position VALUES (?, ?, ?, ?, ?)", (*self._key, stream, *position)
            )
        except apsw.Error as error:
            raise self._for_a_person(error) from error

    def close(self) -> None:
        self._connection.close()

    def _for_a_person(self, error: Exception) -> NeedsPerson:
        return NeedsPerson(
            f"cannot keep the position in {self._path} ({error}): free the disk, mend its rights or, if it is damaged, "
            "delete it; XDG_STATE_HOME may name another folder"
        )


def _set_wal(connection: apsw.Connection, timeout_s: float) -> None:
    """Set the journal mode WAL. Blocks; raises apsw.BusyError after about `timeout_s`.

    Another reader that does the same to a new file has SQLite refuse at once instead of waiting for its busy timeout
    (storage.sqlite.wal_mode is the same; neither folder may import the other).
    """
    for _ in range(round(timeout_s / WAL_RETRY_S)):
        try:
            connection.execute("PRAGMA journal_mode=WAL").fetchall()
            return
        except apsw.BusyError:
            time.sleep(WAL_RETRY_S)
    connection.execute("PRAGMA journal_mode=WAL").fetchall()
