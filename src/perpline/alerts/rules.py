"""The alarms: pure functions of facts, one for each, with how long each must hold before anybody is told.

A rule names what is wrong by subject (a stream, an account, a port; empty where there is only one). It returns None
where that cannot be known: what stands then goes on to stand, and nothing new is raised.
"""

from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from statistics import median
from typing import Any, Literal
from urllib.parse import urlsplit

from msgspec import Struct

from perpline.alerts.facts import Facts, ModesSeen
from perpline.common.config import Settings
from perpline.common.runbooks import page_of
from perpline.metrics import LATE_MS, database_trouble, leads, undecided
from perpline.trading.mode import ALL, InForce, Mode, ModeRow

Severity = Literal["critical", "warning", "info"]
"""critical: money or decisions are at risk, get up; warning: look today; info: know of it."""

Found = Mapping[str, str]
"""What is wrong, in words, by subject."""

Judge = Callable[[Facts, Settings, Collection[str]], Found | None]
"""(facts, settings, subjects for which the alarm stands) -> what is wrong. One that stands may have a lower limit, so
that what hovers at the limit is one alarm and not many."""

SPOOL_OLD_S = 300.0
SPOOL_SHARE = 0.1
EASED = 0.9
"""What stands ends below this share of its limit."""
WEIGHT_EASED = 0.85
MOST_CHANGES = 5
"""Changes of one symbol's mode that are told of one look, the last ones."""
MOST_OWN = 5
"""Symbols that are named whose own mode a change for all has ended."""
MOST_SYMBOLS = 20
MOST_REASON = 200
"""Characters of a reason; `perpline mode show` has it whole."""


class Alarm(Struct, frozen=True, kw_only=True):
    """Something that is wrong."""

    name: str
    subject: str
    severity: Severity
    text: str
    since: int
    """Our host's time, milliseconds UTC."""


class Rule(Struct, frozen=True, kw_only=True):
    """When an alarm is raised and when it is over. Seconds are the wall's; both are multiplied by `alert_patience`."""

    name: str
    title: str
    severity: Severity
    when: Callable[[Settings], str]
    """The condition in words."""
    judge: Judge
    for_s: float = 0.0
    """How long it must have been so without a break."""
    clear_s: float = 0.0
    """How long it must have been otherwise, without a break, before it counts as over."""
    is_event: bool = False
    """It happens, and is never over."""
    over: str = "over"
    """What it is when it is not found any more."""

    @property
    def runbook(self) -> str:
        return page_of(self.name)


# ---- the process


def worker_away(facts: Facts, settings: Settings, standing: Collection[str]) -> Found | None:
    dead = {
        f"port {worker.port}": worker.error for worker in facts.workers if worker.status is None and worker.has_token
    }
    if dead or any(worker.status is not None for worker in facts.workers):
        return dead
    return {"": facts.workers[0].error if facts.workers else "no worker runs: no token file is in the data folder"}


def worker_not_ready(facts: Facts, settings: Settings, standing: Collection[str]) -> Found | None:
    return _of_each(facts, lambda status: {} if status["ready"] else {"": "it has not heard every stream once"})


def standby_lost(facts: Facts, settings: Settings, standing: Collection[str]) -> Found | None:
    alive = len(facts.statuses)
    if not alive:
        return None  # that is worker_away
    if alive >= settings.alert_workers:
        return {}
    return {"": f"{alive} of {settings.alert_workers} workers answer: if this one fails nobody takes over"}


def decisions_missing(facts: Facts, settings: Settings, standing: Collection[str]) -> Found | None:
    def judge(status: dict[str, Any]) -> Found | None:
        if "symbols" not in status or not leads(status) or status.get("role") == "collector":
            return None
        if not status["ready"] and _is_starting(status):
            return None  # what was not decided while nobody ran is being noted
        found, late = {}, undecided(status)
        for symbol, entry in status["symbols"].items():
            decision, candle = entry["last_decision"], entry["last_candle"]
            if decision is not None and decision["status"] == "skipped_missed":
                found[symbol] = f"the minute that ended {_clock(decision['close_time'])} was not decided in time"
            elif symbol in late:
                heard = "" if candle is None else f"; its last candle is that of {_clock(candle['open_time'])}"
                since = late[symbol]
                found[symbol] = f"nothing was decided since {'the start' if since is None else _clock(since)}{heard}"
        return found

    found, of_roles = _of_each(facts, judge), _undecided_in_roles(facts)
    return of_roles if found is None else {**found, **(of_roles or {})}


def close_to_signal_slow(facts: Facts, settings: Settings, standing: Collection[str]) -> Found | None:
    if not facts.close_to_signal_ms:
        return None
    limit, usual = settings.alert_close_to_signal_ms, median(facts.close_to_signal_ms)
    if usual <= limit * (EASED if "" in standing else 1):
        return {}
    of = f"median of the last {len(facts.close_to_signal_ms)} minutes; {limit:g} ms may be"
    return {"": f"{usual:,.0f} ms from the closing frame to the signal, {of}"}


def _is_starting(status: dict[str, Any]) -> bool:
    return bool(status["now"] - status.get("started_at", status["now"]) <= LATE_MS)


def _undecided_in_roles(facts: Facts) -> Found | None:
    """Where inference workers decide, none of which knows all symbols: whether anything was decided lately."""
    parts = [status for status in facts.statuses if status.get("role") in ("inference", "collector")]
    if not parts or facts.decided_until is None or all(_is_starting(status) for status in parts):
        return None
    if parts[0]["now"] - facts.decided_until <= LATE_MS:
        return {}
    since = f"since {_clock(facts.decided_until)}" if facts.decided_until else "in the last minutes"
    return {"": f"nothing was decided {since} by the inference workers: do they run, and are collectors heard?"}


# ---- the market


def stream_stale(facts: Facts, settings: Settings, standing: Collection[str]) -> Found | None:
    def judge(status: dict[str, Any]) -> Found | None:
        if "connections" not in status:
            return None
        found = {}
        for connection in status["connections"]:
            if connection["delivers_nothing"]:
                found[connection["name"]] = f"its connection is open and delivers nothing: {connection['url']}"
            elif not connection["live"]:
                found[connection["name"]] = f"not connected: {connection['last_error'] or 'connecting'}"
        stale = (status.get("streams") or status.get("rest_feed") or {}).get("stale", {})
        for connection_name, streams in stale.items():
            for stream in streams:
                found[stream] = f"silent on {connection_name} though it should speak"
        if (lost := _user_stream(status.get("trading"))) is not None:
            found["account events"] = lost
        return found

    return _of_each(facts, judge)


def gap_open(facts: Facts, settings: Settings, standing: Collection[str]) -> Found | None:
    if facts.gaps is None:
        return None
    found = {}
    for gap in facts.gaps:
        until = f"{_clock(gap.from_time)} to {_clock(gap.to_time)}"
        found[f"{gap.symbol} {gap.series}"] = f"missing from {until}: {gap.cause}"
    return found


def weight_high(facts: Facts, settings: Settings, standing: Collection[str]) -> Found | None:
    def judge(status: dict[str, Any]) -> Found | None:
        rest = status.get("rest")
        if rest is None:
            return None
        found = {}
        if rest["blocked_until"] > status["now"]:
            found["blocked"] = f"the exchange has told us to stop asking until {_clock(rest['blocked_until'])}"
        share = rest["weight_used"] / rest["weight_limit"]
        if share > settings.alert_weight_pct / 100 * (WEIGHT_EASED if "" in standing else 1):
            found[""] = f"{rest['weight_used']} of {rest['weight_limit']} request weight of this minute is used"
        return found

    return _of_each(facts, judge)


def clock_offset(facts: Facts, settings: Settings, standing: Collection[str]) -> Found | None:
    def judge(status: dict[str, Any]) -> Found | None:
        if status["speed"] != 1 or _is_simulated(status):
            return None
        offset, limit = status["clock_offset_ms"], settings.alert_clock_offset_ms
        if abs(offset) <= limit * (EASED if "" in standing else 1):
            return {}
        way = "behind" if offset > 0 else "ahead of"
        return {"": f"the clock of this host is {abs(offset):,} ms {way} the exchange's ({limit:g} ms)"}

    return _of_each(facts, judge)


# ---- what is stored and sent


def database_away(facts: Facts, settings: Settings, standing: Collection[str]) -> Found | None:
    found = _of_each(facts, lambda status: {"": why} if (why := database_trouble(status)) else {})
    if facts.database_error:
        return {"": facts.database_error}
    if found is None:
        return None if facts.database_error is None else {}
    return found


def redis_away(facts: Facts, settings: Settings, standing: Collection[str]) -> Found | None:
    def judge(status: dict[str, Any]) -> Found | None:
        if database_trouble(status) or facts.database_error:
            return None  # the outbox is in the database: whose fault it is cannot be told
        reason = status["outbox"]["last_error"]
        shared = (status.get("rest") or {}).get("shared")
        if not reason and shared is not None:
            reason = shared["away"]
        return {"": f"messages wait in the outbox: {reason}"} if reason else {}

    return _of_each(facts, judge)


def spool_growing(facts: Facts, settings: Settings, standing: Collection[str]) -> Found | None:
    def judge(status: dict[str, Any]) -> Found | None:
        spool = status.get("spool")
        if spool is None:
            return None
        if spool["error"]:
            return {"": f"nothing is kept for the database: {spool['error']}"}
        share = spool["bytes"] / spool["max_bytes"] if spool["records"] else 0.0
        oldest_s = spool["oldest_s"] or 0.0
        if not spool["records"] or (oldest_s < SPOOL_OLD_S and share < SPOOL_SHARE and "" not in standing):
            return {}
        waits = f"{spool['bytes'] / 1e6:,.1f} MB wait for the database, the oldest for {lasted(round(oldest_s * 1000))}"
        return {"": f"{waits}; {share:.0%} of spool_mb"}

    return _of_each(facts, judge)


def disk_low(facts: Facts, settings: Settings, standing: Collection[str]) -> Found | None:
    def judge(status: dict[str, Any]) -> Found | None:
        room = status.get("room")
        if room is None:
            return None
        return {str(room["disk"]): room["low"]} if room["low"] else {}

    return _of_each(facts, judge)


# ---- trading


def protective_stop_missing(facts: Facts, settings: Settings, standing: Collection[str]) -> Found | None:
    def judge(status: dict[str, Any]) -> Found | None:
        if (trading := status.get("trading")) is None:
            return None
        found = {}
        for account, each in trading["accounts"].items():
            for row in each["positions"]:
                if row["naked_ms"] > settings.naked_alarm_s * 1000:
                    subject = f"{account} {row['symbol']}"
                    found[subject] = f"{row['quantity']:g} have no stop at the exchange for {lasted(row['naked_ms'])}"
        return found

    return _kept(_of_each(facts, judge), facts, standing)


def positions_unattended(facts: Facts, settings: Settings, standing: Collection[str]) -> Found | None:
    if facts.live_unattended is None:
        return None
    if not (symbols := facts.live_unattended):
        return {}
    shown = ", ".join(symbols[:MOST_SYMBOLS]) + (" …" if len(symbols) > MOST_SYMBOLS else "")
    return {"live": f"open by the tables and looked after by no process: {shown}"}


def daily_loss_limit(facts: Facts, settings: Settings, standing: Collection[str]) -> Found | None:
    def judge(status: dict[str, Any]) -> Found | None:
        if (trading := status.get("trading")) is None or not leads(status):
            return None
        found, limit = {}, settings.daily_loss_limit_pct
        for account, each in trading["accounts"].items():
            equity, before = each["equity"], each["day_equity"]
            if equity is None or before is None or before <= 0:
                continue
            lost = (before - equity) / before * 100
            if lost >= limit * (EASED if account in standing else 1):
                found[account] = f"{lost:.2f} % lost today ({limit:g} %): no entries until midnight UTC"
        return found

    return _kept(_of_each(facts, judge), facts, standing)


def _kept(found: Found | None, facts: Facts, standing: Collection[str]) -> Found | None:
    """With what stands of accounts that nobody looks after: of these nothing is known, so nothing is over."""
    if found is None:
        return None
    told = [status["trading"]["accounts"] for status in facts.statuses if status.get("trading")]
    known = {account for accounts in told for account in accounts}
    lost = [subject for subject in standing if subject.partition(" ")[0] not in known]
    return {**dict.fromkeys(lost, "not known any more: no worker looks after the account"), **found}


def mode_changed(facts: Facts, settings: Settings, standing: Collection[str]) -> Found | None:
    """By symbol what its new rows say, in their order, and that a mode in force is over since the last look."""
    before, seen = facts.modes_seen, modes_seen(facts)
    if facts.modes is None or before is None or seen is None or seen.id < before.id:
        return None
    found: dict[str, list[str]] = {}
    in_force = InForce()
    for id, row in facts.modes:
        if id > before.id:
            found.setdefault(row.symbol or "all", []).append(_change(row, in_force))
        in_force.add(row)
    for id, row in facts.modes:
        if id in seen.over and id not in before.over and row.mode is not Mode.OFF:
            said = f"{row.mode} → off: its time is over, set by {row.by}: {_reason(row)}"
            found.setdefault(row.symbol or "all", []).append(said)
    return {symbol: _last_of(said) for symbol, said in found.items()}


def modes_seen(facts: Facts) -> ModesSeen | None:
    """How far people have been told after this look. Of a table that is seen first, or was begun anew, nothing is told
    but what comes."""
    before = facts.modes_seen
    if facts.modes is None:
        return before
    newest = max((id for id, _ in facts.modes), default=0)
    if before is not None and newest < before.id:
        before = None
    in_force = InForce(row for _, row in facts.modes)
    standing = [(id, row) for id, row in facts.modes if in_force.row_of(row.symbol) is row]
    # The market's time is a worker's to say, and ours only decides what is old news at the first look.
    now = facts.statuses[0]["now"] if facts.statuses else facts.now_ms if before is None else 0
    known = () if before is None else before.over  # once over is over, whatever a clock says later
    return ModesSeen(id=newest, over=tuple(id for id, row in standing if id in known or row.is_over(now)))


def _change(row: ModeRow, before: InForce) -> str:
    old = before.row_of(row.symbol).at(row.changed_at)
    said = str(row.mode) if old == row.mode else f"{old} → {row.mode}"
    if row.symbol == ALL:
        after = InForce([before.of_all, *before.of_symbols.values(), row]).of_symbols
        own = {symbol: each.at(row.changed_at) for symbol, each in before.of_symbols.items() if symbol not in after}
        lost = [f"{symbol} {mode}" for symbol, mode in own.items() if mode not in (old, row.mode)]
        if lost:
            more = f" and {len(lost) - MOST_OWN} more" if len(lost) > MOST_OWN else ""
            said += f" (before: {', '.join(lost[:MOST_OWN])}{more})"
    if row.until is not None and row.mode is not Mode.OFF:
        said += f" until {_end(row.until, row.changed_at)}"
    if row.positions != "keep":
        said += f", positions: {row.positions}"
    return f"{said}, by {row.by}: {_reason(row)}"


def _reason(row: ModeRow) -> str:
    words = " ".join(row.reason.split())
    return words if len(words) <= MOST_REASON else f"{words[:MOST_REASON]}…"


def _last_of(said: list[str]) -> str:
    earlier = len(said) - MOST_CHANGES
    return "; then ".join([f"{earlier} changes", *said[-MOST_CHANGES:]] if earlier > 0 else said)


# ---- models


def model_drift(facts: Facts, settings: Settings, standing: Collection[str]) -> Found | None:
    def judge(status: dict[str, Any]) -> Found | None:
        drift = status["models"]["drift"]
        if drift is None:
            return None
        judged = next((day for day in (drift["today"], drift["yesterday"]) if day is not None and day["judged"]), None)
        if judged is None:
            return None
        said = []
        if columns := judged["drifting"]:
            shown = ", ".join(columns[:8]) + (" …" if len(columns) > 8 else "")
            said.append(f"{len(columns)} columns are far from training: {shown}")
        if judged["signals_unusual"]:
            said.append(f"{judged['signals']} signals where {judged['signals_usual']:g} are usual")
        return {str(status["model"]): "; ".join(said)} if said else {}

    return _of_each(facts, judge)


def parity_failed(facts: Facts, settings: Settings, standing: Collection[str]) -> Found | None:
    def judge(status: dict[str, Any]) -> Found | None:
        if (last := status.get("parity")) is None:
            return None
        if "error" in last:
            return {"": f"{last['date']} was not compared: {last['error']}"}
        if last["ok"]:
            return {}
        differ = f"{last['mismatch_cells']:,} cells and {last['mismatch_probabilities']:,} probabilities differ"
        return {"": f"of {last['date']} {differ} from what was served"}

    return _of_each(facts, judge)


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            name="worker_away",
            title="A worker does not answer",
            severity="critical",
            when=lambda s: "no worker answers, or one that did not stop in order does not",
            judge=worker_away,
            for_s=15,
            clear_s=5,
        ),
        Rule(
            name="worker_not_ready",
            title="A worker is not ready",
            severity="warning",
            when=lambda s: "it answers and has not heard every stream",
            judge=worker_not_ready,
            for_s=120,
            clear_s=5,
        ),
        Rule(
            name="standby_lost",
            title="Too few workers",
            severity="warning",
            when=lambda s: (
                f"fewer than {s.alert_workers} answer" if s.alert_workers > 1 else "never: alert_workers is 1"
            ),
            judge=standby_lost,
            for_s=60,
            clear_s=30,
        ),
        Rule(
            name="decisions_missing",
            title="Minutes are not decided",
            severity="critical",
            when=lambda s: "a symbol's last minute is three minutes ago, came too late, or never came",
            judge=decisions_missing,
            for_s=90,
            clear_s=60,
        ),
        Rule(
            name="close_to_signal_slow",
            title="Signals come late",
            severity="warning",
            when=lambda s: f"median of the last minutes above {s.alert_close_to_signal_ms:g} ms",
            judge=close_to_signal_slow,
            for_s=60,
            clear_s=120,
        ),
        Rule(
            name="stream_stale",
            title="Streams are silent",
            severity="warning",
            when=lambda s: "silent though it should speak, or not connected",
            judge=stream_stale,
            for_s=10,
            clear_s=10,
        ),
        Rule(
            name="gap_open",
            title="Holes are not repaired",
            severity="warning",
            when=lambda s: "a hole in candles of the last four hours is open",
            judge=gap_open,
            for_s=120,
            clear_s=15,
            over="repaired, or older than four hours (perpline gaps tells which)",
        ),
        Rule(
            name="weight_high",
            title="Request weight is nearly used up",
            severity="warning",
            when=lambda s: f"above {s.alert_weight_pct:g} % of the exchange's limit, or blocked",
            judge=weight_high,
            clear_s=120,
        ),
        Rule(
            name="clock_offset",
            title="The clock of this host is wrong",
            severity="warning",
            when=lambda s: f"more than {s.alert_clock_offset_ms:g} ms from the exchange's",
            judge=clock_offset,
            for_s=60,
            clear_s=60,
        ),
        Rule(
            name="database_away",
            title="The database is away",
            severity="critical",
            when=lambda s: "it does not answer the worker, or us",
            judge=database_away,
            for_s=10,
            clear_s=15,
        ),
        Rule(
            name="redis_away",
            title="Redis is away",
            severity="critical",
            when=lambda s: "messages wait in the outbox",
            judge=redis_away,
            for_s=10,
            clear_s=15,
        ),
        Rule(
            name="spool_growing",
            title="The spool grows",
            severity="critical",
            when=lambda s: f"{SPOOL_OLD_S:g} s old, or {SPOOL_SHARE:.0%} of spool_mb, or it takes nothing",
            judge=spool_growing,
            clear_s=30,
        ),
        Rule(
            name="disk_low",
            title="The disk is nearly full",
            severity="warning",
            when=lambda s: f"less than {s.disk_low_mb:,} MB, or full in {s.disk_low_days:g} days",
            judge=disk_low,
            for_s=60,
            clear_s=300,
        ),
        Rule(
            name="protective_stop_missing",
            title="A position has no stop at the exchange",
            severity="critical",
            when=lambda s: f"for more than {s.naked_alarm_s:g} s",
            judge=protective_stop_missing,
            clear_s=5,
        ),
        Rule(
            name="positions_unattended",
            title="Nobody looks after live positions",
            severity="critical",
            when=lambda s: "open by the tables, and no process has the live account",
            judge=positions_unattended,
            for_s=60,
            clear_s=15,
        ),
        Rule(
            name="daily_loss_limit",
            title="The day's loss limit is reached",
            severity="critical",
            when=lambda s: f"{s.daily_loss_limit_pct:g} % of the day's first equity is lost",
            judge=daily_loss_limit,
            clear_s=60,
        ),
        Rule(
            name="mode_changed",
            title="The trading mode has changed",
            severity="info",
            when=lambda s: "somebody set it, or its time is over",
            judge=mode_changed,
            is_event=True,
        ),
        Rule(
            name="model_drift",
            title="The model sees another market than it learned",
            severity="warning",
            when=lambda s: "columns further from training than on 99 % of its days",
            judge=model_drift,
            for_s=300,
            clear_s=300,
        ),
        Rule(
            name="parity_failed",
            title="What was served cannot be computed again",
            severity="warning",
            when=lambda s: "the nightly comparison differs or failed",
            judge=parity_failed,
        ),
    )
}
"""Every alarm, by name."""


def lasted(ms: int) -> str:
    """3 min 12 s."""
    seconds = max(0, ms) // 1000
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds // 60 % 60} min"


def _of_each(facts: Facts, judge: Callable[[dict[str, Any]], Found | None]) -> Found | None:
    """What any worker says; None where none can. Of two that name one subject the leader is believed."""
    said = [found for status in facts.statuses if (found := judge(status)) is not None]
    if not said:
        return None
    return {subject: text for found in reversed(said) for subject, text in found.items()}


def _user_stream(trading: dict[str, Any] | None) -> str | None:
    """Why the account's events are not heard where they must be; None where all is well."""
    if trading is None or not trading["keys"] or "live" in trading["waiting_for_lease"] or trading["live"] is None:
        return None
    wanted = any(row["mode"] == "live" for row in trading["modes"])
    wanted = wanted or bool(trading["accounts"].get("live", {}).get("positions"))
    stream = trading["live"]["user_stream"]
    return None if stream["live"] or not wanted else f"not heard: {stream['last_error'] or 'connecting'}"


def _is_simulated(status: dict[str, Any]) -> bool:
    """Whether the market is a simulated one, whose time is its own."""
    host = urlsplit(status.get("exchange", {}).get("rest", "")).hostname
    return host in ("127.0.0.1", "localhost", "::1")


_DAY_MS = 86_400_000


def _end(time_ms: int, since: int) -> str:
    """21:18, or with its date where that is another day: 2026-11-23 21:18 UTC."""
    same = time_ms // _DAY_MS == since // _DAY_MS
    return _clock(time_ms) if same else f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def _clock(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%H:%M")
