"""Who hears which account's events: listen keys, `events=` filters, and what can go wrong on the way (binance.md 5).

A listen key may stand in the path, in the query or in SUBSCRIBE. One that is unknown, expired or of another connection
path is taken all the same, and nothing is ever delivered for it.
"""

import heapq
import random
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from perpline.simulation.faults import Faults, garbage
from perpline.simulation.incidents import Huge, Schedule, Silence, Truncated, UserEvents
from perpline.simulation.streams import BINARY, TEXT, Listener, Stats, framed

Event = dict[str, Any]


class UserStreams:
    """Delivers the events of accounts to the connections that hold their listen keys."""

    def __init__(
        self,
        active_key: Callable[[str], str],
        faults: Faults,
        stats: Stats,
        rng: random.Random,
        schedule: Schedule,
    ) -> None:
        """`active_key(api_key)`: the account's listen key that is valid now, "" where there is none."""
        self._active_key = active_key
        self._faults = faults
        self._stats = stats
        self._rng = rng
        self._schedule = schedule
        self._listeners: dict[str, dict[Listener, frozenset[str] | None]] = {}
        self._late: list[tuple[int, int, str, bytes, Listener]] = []
        self._number = 0
        self._now_ms = 0

    def add(self, listen_key: str, listener: Listener, events: Iterable[str] | None = None) -> None:
        """From now on this connection hears the key's events; of these types only, where they are named."""
        self._listeners.setdefault(listen_key, {})[listener] = None if events is None else frozenset(events)

    def remove(self, listen_key: str, listener: Listener) -> None:
        listeners = self._listeners.get(listen_key, {})
        listeners.pop(listener, None)
        if not listeners:
            self._listeners.pop(listen_key, None)

    def emit(self, api_key: str, event: Event) -> None:
        """Send an event of this account to who listens. Only `listenKeyExpired` goes out under a key that is over."""
        kind = str(event["e"])
        listen_key = str(event["listenKey"]) if kind == "listenKeyExpired" else self._active_key(api_key)
        listeners = self._listeners.get(listen_key)
        if not listeners:
            return
        payload = msgspec.json.encode(event)
        for listener, wanted in list(listeners.items()):
            if wanted is None or kind in wanted:
                text = b'{"stream":"%s","data":%s}' % (listen_key.encode(), payload) if listener.combined else payload
                self._send(kind, text, listen_key, listener)

    def step(self, now_ms: int) -> None:
        """Send what was kept back until now."""
        self._now_ms = now_ms
        while self._late and self._late[0][0] <= now_ms:
            _, _, listen_key, text, listener = heapq.heappop(self._late)
            if listener in self._listeners.get(listen_key, ()):
                listener.put(framed(text))

    def _send(self, kind: str, text: bytes, listen_key: str, listener: Listener) -> None:
        random, schedule, frames = self._rng.random, self._schedule, self._stats.frames
        if any(each.on(listener.route) and fnmatchcase(kind, each.streams) for each in schedule.on(Silence)):
            frames["silenced"] += 1
            return
        times, late_ms = 1, 0
        if self._faults.repeat_share and random() < self._faults.repeat_share:
            times += 1
        for each in schedule.on(UserEvents):
            if not fnmatchcase(kind, each.type):
                continue
            if each.lost_share and random() < each.lost_share:
                frames["user_events_lost"] += 1
                return
            if each.repeat_share and random() < each.repeat_share:
                times += 1
            if each.late_share and random() < each.late_share:
                late_ms = max(late_ms, round(each.late_s * 1000 * random()))
        if self._faults.garbage_share and random() < self._faults.garbage_share:
            body, is_binary = garbage(self._rng.getrandbits(64))
            listener.put(framed(body, BINARY if is_binary else TEXT))
            frames["garbage"] += 1
        for huge in schedule.on(Huge):
            if huge.on(listener.route) and random() < huge.share:
                listener.put(framed(b'{"padding":"' + b"0" * huge.size + b'"}'))
                frames["huge"] += 1
        for truncated in schedule.on(Truncated):
            if truncated.on(listener.route) and random() < truncated.share:
                text = text[: len(text) // 2]
                frames["truncated"] += 1
        frames[kind] += 1
        frames["user_events_repeated"] += times - 1
        frames["user_events_late"] += bool(late_ms)
        for at in range(times):
            if late_ms == 0 and at == 0:
                listener.put(framed(text))
            else:
                # The second one comes behind others too, or a repetition would always follow its original at once.
                self._number += 1
                due_ms = self._now_ms + late_ms + round(at * 500 * random())
                heapq.heappush(self._late, (due_ms, self._number, listen_key, text, listener))
