"""How far a reader has come, over its deaths and beside other readers."""

import threading
from pathlib import Path

import apsw

from perpline.bus.positions import Positions

SERVER = "127.0.0.1:6379/0"


def test_a_position_is_there_again_after_the_reader_died(tmp_path: Path) -> None:
    first = Positions(tmp_path / "state" / "watch.db", SERVER, "default")
    assert first.get("sig:champion:BTCUSDT") is None
    first.set("sig:champion:BTCUSDT", (1_790_000_040_000, 0))

    second = Positions(tmp_path / "state" / "watch.db", SERVER, "default")
    assert second.get("sig:champion:BTCUSDT") == (1_790_000_040_000, 0)
    assert Positions(tmp_path / "state" / "watch.db", SERVER, "other").get("sig:champion:BTCUSDT") is None


def test_a_file_that_another_reader_is_just_making_is_waited_for(tmp_path: Path) -> None:
    """SQLite refuses the change to WAL at once while another connection writes, whatever the busy timeout."""
    path = tmp_path / "watch.db"
    other = apsw.Connection(str(path))
    other.execute("CREATE TABLE started (at INTEGER)")
    other.execute("BEGIN IMMEDIATE")
    ending = threading.Timer(0.2, lambda: other.execute("COMMIT"))
    ending.start()
    try:
        positions = Positions(path, SERVER, "default")
    finally:
        ending.join()
    positions.set("sig:champion:BTCUSDT", (7, 0))

    assert positions.get("sig:champion:BTCUSDT") == (7, 0)
    assert apsw.Connection(str(path)).execute("PRAGMA journal_mode").get == "wal"
