"""The large tables, whose old days may be archived: those that PostgreSQL keeps in a partition for each UTC day."""

from datetime import UTC, datetime
from functools import cache

import apsw
from msgspec import Struct

from perpline.storage.migrate import migrate, migrations
from perpline.storage.store import TABLES

DAY_MS = 86_400_000
HOUR_MS = 3_600_000

DAY_TABLES = (
    "candles_1m",
    "premium_index",
    "mark_klines",
    "index_klines",
    "premium_klines",
    "open_interest",
    "long_short_ratio",
    "book_minutes",
    "signals",
    "predictions",
)
"""15m and 1h candles, funding and what trading keeps are small, and stay for ever."""


class DayTable(Struct, frozen=True):
    """One of them."""

    name: str
    time: str
    """The column that says which day a row is of."""
    key: tuple[str, ...]
    """The columns that no two rows have in common, the time first: rows are written in their order."""
    columns: dict[str, str]
    """The columns in their order, each with its type in SQLite: TEXT, INTEGER, REAL or BLOB."""


@cache
def day_tables() -> dict[str, DayTable]:
    """They by name, as the newest schema has them."""
    connection = apsw.Connection(":memory:")
    migrate(connection, migrations(), "the schema in memory")
    tables = {}
    for name in DAY_TABLES:
        facts = connection.execute(f"PRAGMA table_info({name})").fetchall()
        time = TABLES[name].time if name in TABLES else "close_time"
        key = {str(column): place for _, column, _, _, _, place in facts if place}
        others = sorted(key.keys() - {time}, key=lambda column: key[column])
        tables[name] = DayTable(name, time, (time, *others), {str(column): str(kind) for _, column, kind, *_ in facts})
    connection.close()
    return tables


def day_text(day: int) -> str:
    """2026-11-23, of its midnight in milliseconds."""
    return f"{datetime.fromtimestamp(day / 1000, UTC):%Y-%m-%d}"
