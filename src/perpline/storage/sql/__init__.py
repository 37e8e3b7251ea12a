"""The SQL of each database, one folder each: numbered migrations, and queries.sql."""

from importlib.resources import files
from importlib.resources.abc import Traversable


def sql_folder(dialect: str) -> Traversable:
    """The folder of `sqlite` or `postgresql`."""
    return files("perpline.storage") / "sql" / dialect


def named_queries(dialect: str) -> dict[str, str]:
    """The statements of the dialect's queries.sql by name."""
    text = (sql_folder(dialect) / "queries.sql").read_text(encoding="utf-8")
    named = (part.partition("\n") for part in text.split("-- name: ")[1:])
    return {name.strip(): query for name, _, query in named}
