"""Which stream goes on which connection, and how a connection asks for its streams.

Knows no exchange: the route of a stream type and the spelling of a stream are handed in.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

from msgspec import Struct

T = TypeVar("T")

STREAM_TYPES = ("kline_1m", "kline_15m", "kline_1h", "markPrice@1s", "bookTicker")
"""What is heard of each symbol."""

CONTROL_PAUSE_S = 0.2
"""Wall seconds between two control messages of a connection: half of the 10 a second that the exchange bears, because
our pongs and renewed subscriptions count too and going beyond ends the connection (binance.md 1.5)."""


class ConnectionPlan(Struct, frozen=True):
    """One connection to be: the route it is opened on and the streams it subscribes to."""

    route: str
    streams: tuple[str, ...]


def plan_connections(
    symbols: Sequence[str],
    stream_types: Sequence[str],
    route_of: Callable[[str], str],
    stream_name: Callable[[str, str], str],
    max_streams: int = 200,
) -> list[ConnectionPlan]:
    """The fewest connections that carry each stream once, evenly filled, never above `max_streams`.

    Routes come in the order of their first stream type, symbols in the order given. The streams of a symbol on one
    route share a connection wherever that needs no further connection. As long as `max_streams` is not below the number
    of a route's stream types, each of its connections carries every one of these types for some symbol: one that always
    talks (mark prices) is thus on each connection of its route. Raises ValueError for a repeated symbol or type, and
    for `max_streams` below 1.
    """
    if max_streams < 1:
        raise ValueError(f"max_streams must be at least 1, not {max_streams}")
    if len(set(symbols)) != len(symbols) or len(set(stream_types)) != len(stream_types):
        raise ValueError("a symbol or stream type is named twice")
    types_of: dict[str, list[str]] = {}
    for stream_type in stream_types:
        types_of.setdefault(route_of(stream_type), []).append(stream_type)
    return [
        ConnectionPlan(route, streams)
        for route, types in types_of.items()
        for streams in _spread([[stream_name(symbol, kind) for kind in types] for symbol in symbols], max_streams)
    ]


def control_batches(streams: Sequence[str], per_message: int = 50) -> list[tuple[str, ...]]:
    """The streams in the portions of one control message each, to be sent CONTROL_PAUSE_S apart.

    200 streams make 4 messages, asked for within a second. Raises ValueError for `per_message` below 1.
    """
    if per_message < 1:
        raise ValueError(f"per_message must be at least 1, not {per_message}")
    return [tuple(streams[start : start + per_message]) for start in range(0, len(streams), per_message)]


def _spread(by_symbol: list[list[str]], max_streams: int) -> list[tuple[str, ...]]:
    streams = [stream for own in by_symbol for stream in own]
    parts = -(-len(streams) // max_streams)
    if not parts:
        return []
    most_symbols = -(-len(by_symbol) // parts)
    if most_symbols * len(by_symbol[0]) <= max_streams:
        return [tuple(stream for own in part for stream in own) for part in _even(by_symbol, parts)]
    # Whole symbols would need one connection more: cut between any two streams instead.
    return [tuple(part) for part in _even(streams, parts)]


def _even(items: Sequence[T], parts: int) -> list[Sequence[T]]:
    """`parts` runs of the items whose lengths differ by at most one."""
    cuts = [len(items) * part // parts for part in range(parts + 1)]
    return [items[start:end] for start, end in pairwise(cuts)]
