"""A Valkey server for tests: the drills'."""

from perpline.drill.servers import NoServer as NoValkey
from perpline.drill.servers import ValkeyServer

__all__ = ["NoValkey", "ValkeyServer"]
