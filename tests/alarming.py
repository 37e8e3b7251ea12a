"""Facts of a healthy worker for tests of alarms, and channels one can question."""

import copy
from collections.abc import Sequence
from typing import Any

from perpline.alerts.facts import Facts, Worker
from perpline.alerts.rules import RULES, Rule
from perpline.common.config import Settings, load_settings
from perpline.common.errors import Unavailable
from perpline.trading.mode import Mode, ModeRow

NOW = 1_795_183_200_000
"""2026-11-20 14:00:00 UTC."""
MINUTE = 60_000


def settings(**changes: object) -> Settings:
    return load_settings(None, {"HOME": "/nowhere"}, {"symbols": "BTCUSDT,ETHUSDT", **changes})


def healthy() -> dict[str, Any]:
    """/status of a worker with nothing wrong, as far as rules look at it."""
    symbol = {
        "last_candle": {"open_time": NOW - MINUTE, "close": 1.0, "source": "ws"},
        "last_decision": {"close_time": NOW, "status": "flat", "side": 0, "p": 0.5, "detail": ""},
        "expected_after": NOW - 60 * MINUTE,
    }
    position = {"symbol": "BTCUSDT", "quantity": 0.5, "naked_ms": 0}
    mode = {"symbol": "", "mode": "paper", "until": None, "by": "me@here", "reason": "a test", "positions": "keep"}
    day = {
        "judged": True,
        "drifting": [],
        "signals": 10,
        "signals_usual": 11.0,
        "signals_unusual": False,
    }
    return {
        "ready": True,
        "started_at": NOW - 60 * MINUTE,
        "now": NOW,
        "speed": 1.0,
        "role": "all",
        "slot": "champion",
        "model": "m1",
        "leadership": {"leads": True, "holds": True, "leader": "here"},
        "clock_offset_ms": 12,
        "exchange": {"ws": "wss://fstream.binance.com", "rest": "https://fapi.binance.com"},
        "connections": [
            {"name": "market-0", "url": "wss://there", "live": True, "delivers_nothing": "", "last_error": ""}
        ],
        "streams": {"stale": {}},
        "symbols": {"BTCUSDT": copy.deepcopy(symbol), "ETHUSDT": copy.deepcopy(symbol)},
        "rest": {"weight_used": 100, "weight_limit": 2400, "blocked_until": 0, "shared": None},
        "outbox": {"last_error": "", "failures": 0},
        "spool": {
            "records": 0,
            "bytes": 0,
            "max_bytes": 1_000_000_000,
            "oldest_s": None,
            "error": "",
            "decisions": {"last_error": "", "waiting": 0},
        },
        "room": {"disk": "/data", "low": None},
        "parity": None,
        "models": {"drift": {"today": day, "yesterday": None}},
        "trading": {
            "modes": [mode],
            "keys": True,
            "waiting_for_lease": [],
            "accounts": {"paper": {"equity": 10_000.0, "day_equity": 10_000.0, "positions": [position]}},
            "live_unattended": [],
            "live": {"user_stream": {"live": True, "last_error": ""}},
        },
    }


def changed(**changes: Any) -> dict[str, Any]:
    """The healthy status with other values: rest__weight_used=1 means ["rest"]["weight_used"], numbers index lists."""
    status = healthy()
    for path, value in changes.items():
        *way, last = path.split("__")
        place: Any = status
        for step in way:
            place = place[int(step)] if step.isdecimal() else place[step]
        place[int(last) if last.isdecimal() else last] = value
    return status


def facts(status: dict[str, Any] | None = None, *, now: int = NOW, **others: Any) -> Facts:
    """What is seen of one worker; None for a healthy one."""
    others.setdefault("workers", (Worker(port=9720, status=healthy() if status is None else status),))
    known = {
        "database_error": "",
        "gaps": (),
        "close_to_signal_ms": (20.0,),
        "decided_until": NOW,
        "live_unattended": (),
    }
    return Facts(now_ms=now, **{**known, **others})


def mode_row(id: int, mode: str, symbol: str = "", **others: Any) -> tuple[int, ModeRow]:
    """A row of `modes` and its id."""
    values = {"positions": "keep", "changed_at": NOW, "by": "me@here", "reason": "why not", "until": None}
    return id, ModeRow(symbol=symbol, mode=Mode(mode), **{**values, **others})


def dead(error: str = "the worker on port 9720 does not answer", *, has_token: bool = True) -> Worker:
    return Worker(port=9720, status=None, error=error, has_token=has_token)


def judged(name: str, seen: Facts, standing: Sequence[str] = (), **changes: object) -> dict[str, str] | None:
    """What a rule finds."""
    found = RULES[name].judge(seen, settings(**changes), standing)
    return None if found is None else dict(found)


def rule(name: str = "stream_stale", **changes: Any) -> Rule:
    """A rule of the tests' own, with nothing to judge."""
    values = {"title": "A test", "severity": "warning", "when": lambda s: "", "judge": lambda f, s, c: None}
    return Rule(name=name, **{**values, **changes})


class Heard:
    """A channel that keeps what it is told, or refuses it while `away` says why."""

    def __init__(self, label: str = "test (alert_urls, number 1)") -> None:
        self.label = self.key = label
        self.messages: list[tuple[str, str, str]] = []
        self.tries = 0
        self.away = ""

    @property
    def titles(self) -> list[str]:
        return [title for title, _, _ in self.messages]

    async def send(self, title: str, body: str, tone: str) -> None:
        self.tries += 1
        if self.away:
            raise Unavailable(self.away)
        self.messages.append((title, body, tone))
