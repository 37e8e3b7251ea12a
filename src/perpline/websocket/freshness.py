"""A clock for each stream of each connection: which of them are silent though they should not be.

A mark price comes every second, so its own clock is enough. Books and klines of a symbol that nobody trades are silent
by right, so they are compared before anybody is told: with trades that other streams or REST told of, with the book
that REST tells, and with the same stream on another connection.
"""

from collections.abc import Callable, Sequence

import structlog
from msgspec import Struct

from perpline.common.clock import Clock
from perpline.websocket.connection import Connection

log = structlog.get_logger("perpline.freshness")

LIMITS_S = {"markPrice@1s": 5.0, "bookTicker": 20.0, "kline_1m": 20.0, "kline_15m": 20.0, "kline_1h": 20.0}
"""Market seconds. Of a mark price: since it was last heard; five missing in a row are no accident, and decisions go
without one that is ten seconds old (policy.MAX_MARK_AGE_MS). Of the others: by how much what it is compared with is
newer."""

AT_LEAST_WALL_S = 1.0
"""No limit is shorter than this in wall time, however fast the market's clock runs."""

MOST_PATIENCE_S = 3600.0
"""Where that does not help either it is tried again after twice the time, at most this."""

Known = Callable[[str, str], float | None]
"""(symbol, kind) -> market time, milliseconds, of the newest thing that shows this kind of stream must have spoken;
None where nothing is known."""


class StaleStream(Struct):
    """What is being done about a stream that is silent though it should not be."""

    symbol: str
    kind: str
    since: float
    """Wall seconds at which it was last heard or asked for."""
    next_step_at: float
    patience_s: float
    renewed: int = 0


class Freshness:
    """Finds stale streams, names them, subscribes them again, and has their connection renewed if that does not help.

    `named(stream)` is the symbol and kind of a stream; `spoken_of` what is known beside the streams' own frames.
    """

    def __init__(
        self, clock: Clock, named: Callable[[str], tuple[str, str]], spoken_of: Known, heal_within_s: float = 10.0
    ) -> None:
        """`heal_within_s`: wall seconds that a new subscription has to help before the connection is renewed."""
        self.resubscribed = 0
        self.renewals = 0
        self.healed = 0
        self._clock = clock
        self._named = named
        self._spoken_of = spoken_of
        self._heal_within_s = heal_within_s
        self._stale: dict[str, dict[str, StaleStream]] = {}
        """By connection and stream."""
        self._limits = {kind: max(limit / clock.speed, AT_LEAST_WALL_S) for kind, limit in LIMITS_S.items()}
        self._shortest_s = min(self._limits.values())

    def limit_s(self, kind: str) -> float:
        """Wall seconds."""
        return self._limits[kind]

    def longest_s(self, kind: str) -> float | None:
        """Wall seconds after which a stream of this kind is stale whatever else is known; None where there is no such
        age."""
        return self._limits[kind] if _speaks_always(kind) else None

    def stale(self) -> dict[str, list[str]]:
        """The stale streams as connection → "BTCUSDT markPrice@1s", …"""
        return {
            connection: [f"{entry.symbol} {entry.kind}" for entry in entries.values()]
            for connection, entries in self._stale.items()
            if entries
        }

    def look(self, connections: Sequence[Connection]) -> None:
        """Judge the streams of these connections, which carry the same ones, and do what is due. To be called about
        once a wall second for each."""
        for connection in connections:
            entries = self._stale.setdefault(connection.name, {})
            if entries:
                self._look_for_healed(connection, entries)
            self._look_for_stale(connection, entries, connections)

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
        self._stale.pop(connection.name, None)

    def _look_for_healed(self, connection: Connection, entries: dict[str, StaleStream]) -> None:
        for stream, entry in list(entries.items()):
            heard_at = connection.heard_at(stream)
            if heard_at is not None and heard_at > entry.since:
                self.healed += 1
                log.info("stream_fresh_again", connection=connection.name, stream=stream, action="freshness")
            elif stream in connection.streams:
                continue
            del entries[stream]

    def _look_for_stale(
        self, connection: Connection, entries: dict[str, StaleStream], carriers: Sequence[Connection]
    ) -> None:
        now = self._clock.wall_s()
        last_data_at = connection.last_message_at
        if last_data_at is None or now - last_data_at >= AT_LEAST_WALL_S:
            return  # a connection without any data is a matter of its own, and is told as such
        found = []
        for stream in connection.quiet_since(now - self._shortest_s):
            symbol, kind = self._named(stream)
            since = connection.since(stream)
            if since is None or now - since <= self.limit_s(kind):
                continue
            elsewhere = [
                at for each in carriers if each is not connection and (at := each.heard_at(stream)) is not None
            ]
            if not self._is_stale(symbol, kind, since, max(elsewhere, default=None), now):
                continue
            entry = entries.get(stream)
            if entry is None:
                entries[stream] = StaleStream(symbol, kind, since, now + self._heal_within_s, self._heal_within_s)
                found.append(stream)
            elif now >= entry.next_step_at and not connection.is_rolling_over:
                self._escalate(connection, stream, entry, now)
        if found:
            self.resubscribed += len(found)
            log.warning(
                "streams_stale",
                connection=connection.name,
                streams=found[:10],
                count=len(found),
                quiet_s=round(max(now - entries[each].since for each in found), 1),
                action="resubscribe",
            )
            connection.resubscribe(found)

    def _is_stale(self, symbol: str, kind: str, since: float, elsewhere: float | None, now: float) -> bool:
        limit_s = self.limit_s(kind)
        if _speaks_always(kind) or (elsewhere is not None and elsewhere - since > limit_s):
            return True
        spoken_ms = self._spoken_of(symbol, kind)
        if spoken_ms is None:
            return False
        ago_s = (self._clock.exchange_now_ms() - spoken_ms) / 1000 / self._clock.speed
        return now - ago_s - since > limit_s

    def _escalate(self, connection: Connection, stream: str, entry: StaleStream, now: float) -> None:
        entry.patience_s = min(2 * entry.patience_s, MOST_PATIENCE_S)
        entry.next_step_at = now + entry.patience_s
        entry.renewed += 1
        self.renewals += 1
        log.warning(
            "stream_still_stale",
            connection=connection.name,
            stream=stream,
            quiet_s=round(now - entry.since, 1),
            renewed=entry.renewed,
            action="new connection",
        )
        connection.renew(f"{stream} is silent")


def _speaks_always(kind: str) -> bool:
    return kind.startswith("markPrice")
