"""All market connections of a worker: which carries what, and what is done when symbols change or a stream is silent.

Knows no exchange: the route of a stream type and the spelling of streams, addresses and requests are handed in.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

import structlog
from msgspec import Struct

from perpline.common.clock import Clock
from perpline.websocket.connection import SOURCES, Connection, ControlRequest, Deadlines, OnMessages
from perpline.websocket.freshness import Freshness, Known
from perpline.websocket.subscriptions import plan_connections

log = structlog.get_logger("perpline.market_streams")

LOOK_EVERY_S = 0.5
"""Wall seconds between two looks at all streams, but for the time that they take: about a millisecond for each
connection, with whatever waits in between."""

CHECK = (
    "check that the route serves these streams (on a wrong one they are acknowledged and silent since 2026-04-23: "
    "binance.md 1.2), the address, and whether a firewall or the rules for your region hold the data back"
)


class Wire(Struct, frozen=True):
    """How an exchange spells what is asked of it."""

    route_of: Callable[[str], str]
    stream_name: Callable[[str, str], str]
    url_of: Callable[[str], str]
    """The address of a route's connections."""
    subscribe_request: ControlRequest
    unsubscribe_request: ControlRequest


class MarketStreams:
    """Carries every stream type of every symbol for as long as `run` runs: over one connection or, with `lanes` = 2,
    over two, and losing either of them loses nothing.

    Connections are replaced before they are `max_age_s` old (market seconds; the exchange cuts them at 24 h), two lanes
    half an age apart. What comes twice is dropped by the handlers.
    """

    def __init__(
        self,
        *,
        wire: Wire,
        stream_types: Sequence[str],
        symbols: Sequence[str],
        on_messages: OnMessages,
        clock: Clock,
        rng: random.Random,
        lanes: int = 1,
        max_streams: int = 200,
        max_age_s: float | None = None,
        deadlines: Deadlines | None = None,
        spoken_of: Known = lambda symbol, kind: None,
        ask: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`spoken_of`: see `Freshness`. `ask` is called about once a minute of market time, and may find out more."""
        self.lanes = lanes
        self._wire = wire
        self._stream_types = tuple(stream_types)
        self._on_messages = on_messages
        self._clock = clock
        self._rng = rng
        self._max_streams = max_streams
        self._max_age_s = max_age_s
        self._deadlines = deadlines
        self._ask = ask
        self._berths: list[list[Connection]] = []
        """The connections that carry the same streams, one of each lane."""
        self._route_of_berth: list[str] = []
        self._carriers: dict[str, list[Connection]] = {}
        """The connections of each stream."""
        self._names: dict[str, tuple[str, str]] = {}
        """Symbol and kind by stream."""
        self._number = 0
        self._changed = asyncio.Event()
        self._ended: dict[str, int] = {"rollovers": 0, "rollovers_given_up": 0, "resubscriptions": 0}
        self._told_of: set[str] = set()
        self.freshness = Freshness(clock, self._names.__getitem__, spoken_of, (deadlines or Deadlines()).first_data_s)
        self.follow(symbols)

    async def run(self) -> None:
        """Keep all connections until cancelled."""
        tasks: dict[int, tuple[Connection, asyncio.Task[None]]] = {}
        async with asyncio.TaskGroup() as group:
            if self._ask is not None:
                group.create_task(self._keep_asking(self._ask), name="quiet streams")
            while True:
                self._changed.clear()
                present = {id(connection): connection for connection in self.connections}
                for key in tasks.keys() - present.keys():
                    _, task = tasks.pop(key)
                    task.cancel()
                for key, connection in present.items():
                    if key not in tasks:
                        tasks[key] = connection, group.create_task(connection.run(), name=connection.name)
                self._look_at_routes()
                for berth in list(self._berths):
                    if berth in self._berths:  # else it went while we waited
                        self.freshness.look(berth)
                    await asyncio.sleep(0)  # a close may be waiting
                try:
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._changed.wait()
                except TimeoutError:
                    pass  # time to look

    def follow(self, symbols: Sequence[str]) -> None:
        """Carry the streams of these symbols from now on; returns at once.

        Streams that stay are not touched: what goes is unsubscribed where it is, what comes is subscribed on the
        emptiest connection of its route with room for all streams of the symbol, or on a new one. A connection that
        carries nothing any more is closed.
        """
        names: dict[str, tuple[str, str]] = {}
        routes: dict[str, dict[str, list[str]]] = {}
        for kind in self._stream_types:
            of_symbol = routes.setdefault(self._wire.route_of(kind), {})
            for symbol in symbols:
                stream = self._wire.stream_name(symbol, kind)
                names[stream] = (symbol, kind)
                of_symbol.setdefault(symbol, []).append(stream)
        self._names.clear()
        self._names.update(names)
        if not self._berths:
            wire = self._wire
            for plan in plan_connections(
                symbols, self._stream_types, wire.route_of, wire.stream_name, self._max_streams
            ):
                self._add_berth(plan.route, plan.streams)
        else:
            for route, of_symbol in routes.items():
                self._follow_on(route, of_symbol)
        self._carriers = {stream: berth for berth in self._berths for stream in berth[0].streams}
        self._changed.set()

    @property
    def connections(self) -> list[Connection]:
        """The present ones, the lanes of one plan behind each other."""
        return [connection for berth in self._berths for connection in berth]

    def heard(self, symbol: str, kind: str) -> float | None:
        """Wall seconds at which this kind of news of the symbol last came, on any lane; None for never."""
        stream = self._wire.stream_name(symbol, kind)
        times = (connection.heard_at(stream) for connection in self._carriers.get(stream, ()))
        return max((at for at in times if at is not None), default=None)

    def waiting_for(self) -> list[str]:
        """Streams that no lane has delivered yet."""
        return [
            stream
            for berth in self._berths
            for stream in berth[0].streams
            if all(connection.heard_at(stream) is None for connection in berth)
        ]

    def silent(self) -> list[tuple[str, str]]:
        """(symbol, kind) of what should speak and is silent: stale streams, and those heard before of which no lane is
        connected."""
        found = {name for names in self.freshness.stale().values() for name in names}
        for berth in self._berths:
            if not any(connection.live for connection in berth):
                for stream in berth[0].streams:
                    symbol, kind = self._names[stream]
                    if self.heard(symbol, kind) is not None:
                        found.add(f"{symbol} {kind}")
        return [(symbol, kind) for symbol, _, kind in (name.partition(" ") for name in sorted(found))]

    def facts(self) -> dict[str, object]:
        """Counts since the start, and what is stale now."""
        counts = dict(self._ended)
        for connection in self.connections:
            for name in counts:
                counts[name] += getattr(connection, name)
        fresh = self.freshness
        return {
            "lanes": self.lanes,
            **counts,
            "stale": fresh.stale(),
            "stale_resubscribed": fresh.resubscribed,
            "stale_renewals": fresh.renewals,
            "stale_healed": fresh.healed,
        }

    def trouble(self) -> list[str]:
        """What is wrong, in words."""
        found = []
        for berth in self._berths:
            for connection in berth:
                if connection.delivers_nothing:
                    found.append(f"{connection.name} ({connection.url}) {connection.delivers_nothing}: {CHECK}")
                elif not connection.live:
                    lanes = "; the other lane carries its streams" if any(each.live for each in berth) else ""
                    error = connection.last_error or "connecting"
                    found.append(f"{connection.name} is not connected ({error}){lanes}")
        for name, streams in self.freshness.stale().items():
            more = f" and {len(streams) - 5} more" if len(streams) > 5 else ""
            found.append(f"{name}: {', '.join(streams[:5])}{more} should speak and are silent")
        return found

    # ---- who carries what ----

    def _follow_on(self, route: str, of_symbol: dict[str, list[str]]) -> None:
        wanted = {stream for streams in of_symbol.values() for stream in streams}
        carried: set[str] = set()
        plans: list[tuple[list[Connection], list[str]]] = []
        for each, berth in zip(self._route_of_berth, self._berths, strict=True):
            if each == route:
                plans.append((berth, [stream for stream in berth[0].streams if stream in wanted]))
                carried.update(plans[-1][1])
        new: list[list[str]] = []
        for streams in of_symbol.values():
            missing = [stream for stream in streams if stream not in carried]
            if not missing:
                continue
            rooms = [plan for _, plan in plans if len(plan) + len(missing) <= self._max_streams]
            rooms += [plan for plan in new if len(plan) + len(missing) <= self._max_streams]
            if rooms:
                min(rooms, key=len).extend(missing)
            else:
                new += [missing[at : at + self._max_streams] for at in range(0, len(missing), self._max_streams)]
        for berth, streams in plans:
            if not streams:
                self._remove_berth(berth)
            elif tuple(streams) != berth[0].streams:
                for connection in berth:
                    connection.follow(streams)
        for streams in new:
            self._add_berth(route, streams)

    def _add_berth(self, route: str, streams: Sequence[str]) -> None:
        berth = [
            Connection(
                name=f"{route}-{self._number}" + (f".{lane + 1}" if lane else ""),
                url=self._wire.url_of(route),
                streams=streams,
                on_messages=self._on_messages,
                subscribe_request=self._wire.subscribe_request,
                unsubscribe_request=self._wire.unsubscribe_request,
                clock=self._clock,
                rng=self._rng,
                deadlines=self._deadlines,
                max_age_s=self._max_age_s,
                first_source=lane * SOURCES,
            )
            for lane in range(self.lanes)
        ]
        if len(berth) == 2:
            berth[0].twin, berth[1].twin = berth[1], berth[0]
        self._number += 1
        self._berths.append(berth)
        self._route_of_berth.append(route)

    def _remove_berth(self, berth: list[Connection]) -> None:
        at = self._berths.index(berth)
        del self._berths[at], self._route_of_berth[at]
        for connection in berth:
            self.freshness.forget(connection)
            for name in self._ended:
                self._ended[name] += getattr(connection, name)

    # ---- looking ----

    def _look_at_routes(self) -> None:
        """Tell once of each address that is open and delivers nothing, until something comes from it."""
        silent: dict[str, list[Connection]] = {}
        for connection in self.connections:
            if connection.delivers_nothing:
                silent.setdefault(connection.url, []).append(connection)
        for url in self._told_of - silent.keys():
            log.info("route_delivers", url=url, action="connect")
        for url, connections in silent.items():
            if url not in self._told_of:
                log.error(
                    "route_delivers_nothing",
                    url=url,
                    connections=[connection.name for connection in connections],
                    reason=connections[0].delivers_nothing,
                    check=CHECK,
                    action="connect",
                )
        self._told_of = set(silent)

    async def _keep_asking(self, ask: Callable[[], Awaitable[None]]) -> None:
        while True:
            await self._clock.sleep_wall(max(1.0, 60.0 / self._clock.speed))
            await ask()
