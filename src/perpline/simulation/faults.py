"""What can be made to go wrong on the wire. Nothing here reaches into a client; everything is seen from outside.

Shares are probabilities per frame. What concerns a closing frame is drawn from (fault seed, contract, minute,
interval), so a history with faults can be repeated; what concerns single frames is drawn in the order of sending.
"""

import difflib
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import msgspec

from perpline.simulation.incidents import INCIDENT_NAMES, AnyIncident, Seconds, Share, Where


class Faults(msgspec.Struct, forbid_unknown_fields=True):
    """All faults, each off by default. Change the fields while the exchange runs."""

    seed: int = 0
    disconnect_every_s: Seconds = 0.0
    """Cut connections every so many seconds of market time (0: never)."""
    disconnect_route: Where = "all"
    """Which connections that cuts."""
    hang_up: Where | Literal["none"] = "none"
    """Accept the handshake on this route and close at once."""
    ack_and_nothing: str = ""
    """Stream names matching this pattern (btcusdt@*) are acknowledged and stay silent."""
    late_close_share: Share = 0.0
    late_close_min_s: Seconds = 3.0
    late_close_max_s: Seconds = 30.0
    """That share of closing frames is delayed further, by between min and max seconds of market time."""
    missing_close_share: Share = 0.0
    """That share of closing frames is never sent."""
    no_empty_close: bool = False
    """Minutes without trades send no closing frame."""
    repeat_share: Share = 0.0
    """That share of frames is sent twice."""
    repeat_close_on_subscribe: bool = False
    """A new subscription first gets the stream's last closing frame once more."""
    garbage_share: Share = 0.0
    """Per frame, the chance that something unreadable is sent before it."""
    incidents: list[AnyIncident] = []
    """What happens at a time of its own: incidents.py. They leave the list when they are over."""

    def mutes(self, stream: str) -> bool:
        return self.ack_and_nothing != "" and fnmatchcase(stream, self.ack_and_nothing)

    def hangs_up(self, route: str) -> bool:
        return self.hang_up in ("all", route)

    def closing_delay_ms(self, draw: Callable[[str], int], empty: bool) -> int | None:
        """Further delay of a closing frame, None if it is never sent. `draw` gives 64 bits for a purpose."""
        if empty and self.no_empty_close:
            return None
        if self.missing_close_share and _fraction(draw(f"missing {self.seed}")) < self.missing_close_share:
            return None
        if self.late_close_share and _fraction(draw(f"late {self.seed}")) < self.late_close_share:
            spread = max(0.0, self.late_close_max_s - self.late_close_min_s)
            return round(1000 * (self.late_close_min_s + spread * _fraction(draw(f"how late {self.seed}"))))
        return 0


FAULT_NAMES = tuple(field.name for field in msgspec.structs.fields(Faults) if field.name != "incidents")


def where(text: object) -> Where:
    """A route or "all". Raises ValueError."""
    try:
        route: Where = msgspec.convert(text, Where)
    except msgspec.ValidationError as error:
        raise ValueError(f"not a route: {text!r}; one of {', '.join(get_args(Where))}") from error
    return route


def changed(faults: Faults, changes: dict[str, Any]) -> None:
    """Set fields of `faults`, all or none. Raises ValueError naming the field, with a suggestion if unknown."""
    known = (*FAULT_NAMES, "incidents")
    for name in changes:
        if name not in known:
            raise ValueError(f"unknown fault {name!r}{_suggestion(name, known)}")
    fields = {name: getattr(faults, name) for name in FAULT_NAMES}
    try:
        checked = msgspec.convert({**fields, **changes}, Faults, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"fault not accepted: {error}") from error
    for name in changes:
        setattr(faults, name, getattr(checked, name))


def incident(fields: object) -> AnyIncident:
    """An incident from its name and its fields. Raises ValueError."""
    name = fields.get("name") if isinstance(fields, dict) else None
    if name not in INCIDENT_NAMES:
        raise ValueError(f"unknown incident {name!r}{_suggestion(str(name), INCIDENT_NAMES)}")
    try:
        found: AnyIncident = msgspec.convert(fields, AnyIncident, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"{name} not accepted: {error}") from error
    return found


def parsed(settings: list[str]) -> Faults:
    """Faults from texts: NAME=VALUE for a field, NAME or NAME:key=value,… for an incident. Raises ValueError."""
    changes: dict[str, Any] = {}
    incidents: list[AnyIncident] = []
    for setting in settings:
        name, colon, rest = setting.partition(":")
        if "=" not in name:
            name = name.strip().replace("-", "_")
            if colon or name in INCIDENT_NAMES:
                pairs = [pair.partition("=") for pair in rest.split(",") if pair]
                incidents.append(incident({"name": name, **{key.strip(): value.strip() for key, _, value in pairs}}))
                continue
            near = _suggestion(name, INCIDENT_NAMES)
            raise ValueError(f"a fault is given as NAME=VALUE or NAME:key=value,…, not {setting!r}{near}")
        name, _, value = setting.partition("=")
        changes[name.strip().replace("-", "_")] = value.strip()
    faults = Faults()
    changed(faults, changes)
    faults.incidents = incidents
    return faults


def _suggestion(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f", did you mean {near[0]!r}?" if near else ""


def garbage(draw: int) -> tuple[bytes, bool]:
    """One frame no client can use, and whether it is binary."""
    kinds: tuple[tuple[bytes, bool], ...] = (
        (b'{"stream":"btcusdt@bookTicker","data":{"e":"bookTicker","u":116', False),
        (draw.to_bytes(8, "big") * 4, True),
        (b'{"e":"bookTicker","u":"many","s":17,"b":[],"B":{},"a":null,"A":true,"T":"now","E":"now","st":"one"}', False),
        (
            b'{"e":"bookTicker","u":1,"s":"BTCUSDT","ps":"BTCUSDT","b":"NaN","B":"1","a":"Infinity","A":"-1",'
            b'"T":1,"E":1,"st":1}',
            False,
        ),
        (b'{"e":"bookTicker"}', False),
        (b"", False),
        (b'{"e":"kline","E":1,"s":"BTCUSDT","k":{"t":0,"T":-1,"s":"BTCUSDT","i":"1m","x":true}}', False),
        (b'{"e":"markPriceUpdate","E":1,"s":"BTCUSDT","p":"NaN","i":"NaN","P":"NaN","r":"NaN","T":0}', False),
    )
    return kinds[draw % len(kinds)]


def _fraction(draw: int) -> float:
    return (draw >> 11) / 2**53
