"""What happens to the exchange at a time of its own, each as the outside sees it, and the schedule of it.

Shares are probabilities, drawn from the faults' seed. Times are market seconds from the moment an incident is given,
unless they say wall. An incident that concerns the market itself (a contract listed, halted …) begins and ends with the
first whole minute after its time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Final, Literal, TypeVar

from msgspec import Meta, Struct
from msgspec.structs import fields

Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Where = Literal["all", "public", "market", "private", "unrouted", "ws_api"]
Seconds = Annotated[float, Meta(ge=0.0, le=1e7)]
Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]


class Incident(Struct, tag_field="name", forbid_unknown_fields=True, kw_only=True):
    """Begins `at_s` after it was given and lasts `for_s` (0: until it is taken away)."""

    at_s: Seconds = 0.0
    for_s: Seconds = 0.0


class OnRoute(Incident):
    """An incident of the connections of one route, or of all."""

    route: Where = "all"

    def on(self, route: str) -> bool:
        return self.route in ("all", route)


class Silence(OnRoute, tag="silence"):
    """Streams of matching names (btcusdt@*) send nothing; control messages and pings are answered."""

    streams: str = "*"


class HalfOpen(OnRoute, tag="half_open"):
    """The other side is gone without a word: TCP stays, nothing is sent, answered or closed.

    Hits connections that are open when it begins or are opened while it lasts; they stay so for ever."""


class Disconnect(OnRoute, tag="disconnect"):
    """Connections are cut once, without a closing handshake; `mid_frame` sends the first half of a frame before."""

    mid_frame: bool = False


class End(OnRoute, tag="end"):
    """Connections are ended once with a close frame, as they are after 24 hours."""


class SlowSending(OnRoute, tag="slow_sending"):
    """Each connection is sent at most so many bytes in a wall second; what piles up is bounded as for slow readers."""

    bytes_per_s: Annotated[int, Meta(ge=1)] = 2_000


class SlowReading(OnRoute, tag="slow_reading"):
    """So long, in wall seconds, until a message of a client is taken from the wire."""

    delay_s: Seconds = 0.5


class Reorder(OnRoute, tag="reorder"):
    """That share of frames is sent after up to `by` later ones of the same connection."""

    share: Share = 0.1
    by: Annotated[int, Meta(ge=1, le=1000)] = 5


class Truncated(OnRoute, tag="truncated"):
    """That share of frames is cut off in the middle of the text, in a WebSocket frame that is sound."""

    share: Share = 0.05


class Huge(OnRoute, tag="huge"):
    """That share of frames is preceded by a text of so many bytes which says nothing."""

    share: Share = 0.001
    size: Annotated[int, Meta(ge=1, le=1 << 28)] = 8 << 20


class UserEvents(Incident, tag="user_events"):
    """Of the events of accounts whose type matches, that share is sent twice, up to `late_s` late (so that others
    overtake it), or never."""

    type: str = "*"
    repeat_share: Share = 0.0
    late_share: Share = 0.0
    late_s: Seconds = 2.0
    lost_share: Share = 0.0


class ExpireListenKeys(Incident, tag="expire_listen_keys"):
    """Every listen key ends once, as it does an hour after it was last kept alive."""


class SlowEngine(Incident, tag="slow_engine"):
    """An order, change or cancellation reaches the matching engine so many market seconds after it came in.

    Where its recvWindow is over by then it is refused with -5028."""

    delay_s: Seconds = 1.0


RestKind = Literal[
    "429", "418", "403", "408", "500", "502", "503a", "503b", "503c", "503d", "torn", "slow", "empty", "refused",
    "408_taken", "503a_taken", "lost", "late",
]  # fmt: skip


class RestFault(Incident, tag="rest"):
    """That share of the requests whose path and method match fails, at most `times` of them (0: no bound).

    A request of the WebSocket API is that of its REST path; `via` tells the two apart.

    Kinds: an HTTP status with the body that binance.md 3.2 gives for it (503 in its four variants A to D); `torn` (the
    body breaks off), `slow` (taken, and truly answered, after `delay_s` wall seconds), `empty` (200 and no body),
    `refused` (no answer at all). Nothing is done of what was asked but for `torn`, `slow` and these: `lost` (done, and
    the connection ends without an answer; over the WebSocket API the answer alone is missing), `late` (done at once,
    answered after `delay_s`), `408_taken` and `503a_taken` (done, and answered as if nobody knew). 503d spares
    cancellations and what only reduces, as the exchange says. `retry_after_s` is sent with 429 and 418 where given;
    `banned_s` is what the text of a 418 names.
    """

    kind: RestKind = "503b"
    path: str = "/f*"
    method: str = "*"
    via: Literal["both", "rest", "ws_api"] = "both"
    share: Share = 1.0
    times: Count = 0
    retry_after_s: Count | None = None
    banned_s: Count | None = None
    delay_s: Seconds = 1.0


class WrongClock(Incident, tag="clock"):
    """The exchange's clock is off: by `offset_ms` at once, and by `drift_ppm` millionths of the time that passes."""

    offset_ms: Annotated[int, Meta(ge=-86_400_000, le=86_400_000)] = 0
    drift_ppm: Annotated[float, Meta(ge=-500_000.0, le=500_000.0)] = 0.0


class OfMarket(Incident):
    """An incident of the market itself. Known as soon as it is given, for it shapes what minutes hold."""


class Listed(OfMarket, tag="listed"):
    """The contract is unknown until then. `for_s` has no meaning."""

    symbol: str


class Delisted(OfMarket, tag="delisted"):
    """The contract's streams and candles end, its status is SETTLING. `for_s` has no meaning."""

    symbol: str


class Halted(OfMarket, tag="halted"):
    """Nothing is traded and the book stands; the mark price goes on."""

    symbol: str


class Quiet(OfMarket, tag="quiet"):
    """That share of the minutes of matching contracts sees no trade; with `closing` false nor a closing frame."""

    symbol: str = "*"
    share: Share = 1.0
    closing: bool = True


AnyIncident = (
    Silence
    | HalfOpen
    | Disconnect
    | End
    | SlowSending
    | SlowReading
    | Reorder
    | Truncated
    | Huge
    | UserEvents
    | ExpireListenKeys
    | SlowEngine
    | RestFault
    | WrongClock
    | Listed
    | Delisted
    | Halted
    | Quiet
)
INCIDENT_KINDS: Final[dict[str, type[Incident]]] = {
    str(kind.__struct_config__.tag): kind
    for kind in (
        Silence, HalfOpen, Disconnect, End, SlowSending, SlowReading, Reorder, Truncated, Huge,
        UserEvents, ExpireListenKeys, SlowEngine, RestFault, WrongClock, Listed, Delisted, Halted, Quiet,
    )
}  # fmt: skip
INCIDENT_NAMES: Final = tuple(INCIDENT_KINDS)


def spelled() -> list[str]:
    """Every kind with the keys it takes beside at_s and for_s: ["silence (route, streams)", …]."""
    keys = {name: [field.name for field in fields(kind)] for name, kind in INCIDENT_KINDS.items()}
    own = {name: ", ".join(key for key in each if key not in ("at_s", "for_s")) for name, each in keys.items()}
    return [f"{name} ({text})" for name, text in own.items()]


_Kind = TypeVar("_Kind", bound=Incident)


@dataclass(slots=True)
class _Entry:
    incident: Incident
    start_ms: int
    end_ms: float
    begun: bool = False
    matched: int = 0


class Schedule:
    """Which incidents are on. Knows each by identity, from the first `turn` that sees it in the list it was given."""

    def __init__(self, wanted: Callable[[], list[AnyIncident]]) -> None:
        self._wanted = wanted
        self._entries: list[_Entry] = []
        self._on: dict[type[Incident], list[_Entry]] = {}

    def turn(self, now_ms: int) -> tuple[list[tuple[Incident, int, float]], list[Incident]]:
        """Move to this time; what begins (with its first and last instant, inf for no end) and what is over.

        An incident of the market begins when it is given, with instants that may be in the future."""
        wanted = self._wanted()
        over = [
            entry
            for entry in self._entries
            if now_ms >= entry.end_ms or not any(entry.incident is incident for incident in wanted)
        ]
        known = [entry.incident for entry in self._entries]
        for incident in wanted:
            if not any(incident is each for each in known):
                start = now_ms + round(incident.at_s * 1000)
                end = start + incident.for_s * 1000 if incident.for_s else math.inf
                self._entries.append(_Entry(incident, start, end))
        for entry in over:
            if now_ms >= entry.end_ms:
                # Done: it leaves the list, so that who asks is told of what is still to come or on.
                wanted[:] = [incident for incident in wanted if incident is not entry.incident]
            self._entries.remove(entry)
        begins = [
            entry
            for entry in self._entries
            if not entry.begun and (entry.start_ms <= now_ms or isinstance(entry.incident, OfMarket))
        ]
        for entry in begins:
            entry.begun = True
        if begins or over:
            self._on = {}
            for entry in self._entries:
                if entry.begun:
                    self._on.setdefault(type(entry.incident), []).append(entry)
        return (
            [(entry.incident, entry.start_ms, entry.end_ms) for entry in begins],
            [entry.incident for entry in over if entry.begun],
        )

    def on(self, kind: type[_Kind]) -> list[_Kind]:
        """The incidents of this kind that are on, in the order they were given."""
        return [entry.incident for entry in self._on.get(kind, ()) if isinstance(entry.incident, kind)]

    def any_on(self, *kinds: type[Incident]) -> bool:
        return any(kind in self._on for kind in kinds)

    def rest_fault(
        self,
        path: str,
        chance: Callable[[], float],
        method: str = "GET",
        via: Literal["rest", "ws_api"] = "rest",
        reduces: bool = False,
    ) -> RestFault | None:
        """The fault that hits a request now; counts it. `reduces`: it cancels, or can only make a position smaller."""
        for entry in self._on.get(RestFault, ()):
            fault = entry.incident
            assert isinstance(fault, RestFault)
            if not (fnmatchcase(path, fault.path) and fnmatchcase(method, fault.method)):
                continue
            if fault.via not in ("both", via) or (fault.kind == "503d" and reduces):
                continue
            if fault.times and entry.matched >= fault.times:
                continue
            if fault.share < 1.0 and chance() >= fault.share:
                continue
            entry.matched += 1
            return fault
        return None
