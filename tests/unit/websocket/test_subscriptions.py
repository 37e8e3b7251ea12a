from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpline.websocket.subscriptions import (
    CONTROL_PAUSE_S,
    STREAM_TYPES,
    ConnectionPlan,
    control_batches,
    plan_connections,
)


def route_of(stream_type: str) -> str:
    return "public" if stream_type == "bookTicker" else "market"


def stream_name(symbol: str, stream_type: str) -> str:
    return f"{symbol.lower()}@{stream_type}"


def plan(symbols: int, max_streams: int = 200) -> list[ConnectionPlan]:
    return plan_connections([f"S{n}USDT" for n in range(symbols)], STREAM_TYPES, route_of, stream_name, max_streams)


@pytest.mark.parametrize(
    ("symbols", "streams", "market", "public"),
    [(1, 5, 1, 1), (30, 150, 1, 1), (50, 250, 1, 1), (51, 255, 2, 1), (600, 3000, 12, 3)],
)
def test_the_streams_of_so_many_symbols_need_so_many_connections(
    symbols: int, streams: int, market: int, public: int
) -> None:
    connections = plan(symbols)

    assert sum(len(connection.streams) for connection in connections) == streams
    assert Counter(connection.route for connection in connections) == {"market": market, "public": public}


def test_no_symbols_need_no_connection() -> None:
    assert plan(0) == []


def test_connections_of_a_route_are_filled_evenly() -> None:
    sizes = [len(connection.streams) for connection in plan(90) if connection.route == "market"]

    assert sizes == [180, 180]


def test_the_streams_of_a_symbol_share_a_connection_where_that_costs_no_further_one() -> None:
    market = [connection for connection in plan(600) if connection.route == "market"]

    assert all(len({stream.split("@")[0] for stream in one.streams}) == len(one.streams) / 4 for one in market)


def test_a_symbol_is_split_before_a_connection_is_added() -> None:
    connections = plan_connections(["A", "B", "C"], ["x", "y"], lambda kind: "one", stream_name, max_streams=3)

    assert [connection.streams for connection in connections] == [("a@x", "a@y", "b@x"), ("b@y", "c@x", "c@y")]


@settings(deadline=None)
@given(
    symbols=st.integers(1, 700),
    types=st.lists(st.sampled_from(STREAM_TYPES), unique=True, min_size=1),
    limit=st.integers(1, 1024),
)
def test_every_stream_is_carried_once_by_the_fewest_connections_within_the_limit(
    symbols: int, types: list[str], limit: int
) -> None:
    names = [f"S{n}" for n in range(symbols)]

    connections = plan_connections(names, types, route_of, stream_name, limit)

    assert Counter(stream for connection in connections for stream in connection.streams) == Counter(
        stream_name(symbol, kind) for symbol in names for kind in types
    )
    for route in ("market", "public"):
        kinds = [kind for kind in types if route_of(kind) == route]
        sizes = [len(connection.streams) for connection in connections if connection.route == route]
        assert len(sizes) == -(-len(kinds) * symbols // limit)
        assert max(sizes, default=0) <= limit
        assert not sizes or max(sizes) - min(sizes) <= len(kinds)


@settings(deadline=None)
@given(symbols=st.integers(1, 300), limit=st.integers(4, 300))
def test_every_market_connection_carries_a_mark_price_that_always_talks(symbols: int, limit: int) -> None:
    market = [connection for connection in plan(symbols, limit) if connection.route == "market"]

    assert all(any(stream.endswith("@markPrice@1s") for stream in connection.streams) for connection in market)


def test_what_is_named_twice_or_has_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="named twice"):
        plan_connections(["A", "A"], ["x"], route_of, stream_name)
    with pytest.raises(ValueError, match="at least 1"):
        plan(1, max_streams=0)


@given(streams=st.lists(st.text()), per_message=st.integers(1, 60))
def test_control_messages_name_every_stream_in_order_and_few_at_a_time(streams: list[str], per_message: int) -> None:
    batches = control_batches(streams, per_message)

    assert [stream for batch in batches for stream in batch] == streams
    assert all(0 < len(batch) <= per_message for batch in batches)


def test_a_full_connection_is_subscribed_within_two_seconds_and_stays_below_ten_messages_a_second() -> None:
    messages = len(control_batches([str(n) for n in range(200)]))

    assert messages * CONTROL_PAUSE_S < 2
    assert 1 / CONTROL_PAUSE_S <= 5
