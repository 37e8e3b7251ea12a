"""Which alarms stand, and what people have to be told of it: each is raised once, reminded of, and cleared once."""

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from perpline.alerts.rules import Alarm, Found, Rule, Severity

Kind = Literal["raised", "cleared", "still", "event", "past"]
"""past: raised and cleared before anybody could be told (`messages.merge` makes it of the two)."""


class Note(Struct, frozen=True, kw_only=True):
    """Something to tell."""

    kind: Kind
    alarm: Alarm
    raised_at: int
    lasted_ms: int = 0
    """Of what is cleared or still stands."""
    notified_at: int | None = None
    """Of what is cleared: when the first channel took the message that it had begun; None: nobody was told."""


class Entry(Struct, kw_only=True):
    """What a rule has found: for too short to be an alarm (`raised_at` is None), or one that stands."""

    name: str
    subject: str
    severity: Severity
    text: str
    since: int
    raised_at: int | None = None
    told_at: int = 0
    absent_since: int | None = None
    """Since when it is not found any more; it may come back before it counts as over."""
    notified_at: int | None = None
    """When the first channel took the message."""

    def alarm(self) -> Alarm:
        return Alarm(name=self.name, subject=self.subject, severity=self.severity, text=self.text, since=self.since)


class Standing:
    """Folds what the rules find, look by look, into what has to be told. Times are milliseconds of our host."""

    def __init__(self, entries: Iterable[Entry] = (), *, remind_ms: int, patience: float = 1.0) -> None:
        self._entries = {(entry.name, entry.subject): entry for entry in entries}
        self._remind_ms = remind_ms
        self._patience = patience

    def entries(self) -> list[Entry]:
        """All of them, those that are no alarms yet as well."""
        return list(self._entries.values())

    def subjects(self, name: str) -> set[str]:
        """For which this alarm stands."""
        return {entry.subject for entry in self._of(name) if entry.raised_at is not None}

    def entry(self, name: str, subject: str, raised_at: int) -> Entry | None:
        """The alarm, if it is still the one that was raised then."""
        found = self._entries.get((name, subject))
        return found if found is not None and found.raised_at == raised_at else None

    def look(self, rule: Rule, found: Found | None, now: int) -> list[Note]:
        """What is to be told now that the rule has found this. None, not known: nothing comes and nothing goes."""
        if found is None:
            return []
        if rule.is_event:
            return [self._event(rule, subject, text, now) for subject, text in found.items()]
        notes = [note for subject, text in found.items() for note in self._seen(rule, subject, text, now)]
        for entry in self._of(rule.name):
            if entry.subject not in found:
                notes += self._not_seen(rule, entry, now)
        return notes

    def _of(self, name: str) -> list[Entry]:
        return [entry for entry in self._entries.values() if entry.name == name]

    def _event(self, rule: Rule, subject: str, text: str, now: int) -> Note:
        alarm = Alarm(name=rule.name, subject=subject, severity=rule.severity, text=text, since=now)
        return Note(kind="event", alarm=alarm, raised_at=now)

    def _seen(self, rule: Rule, subject: str, text: str, now: int) -> list[Note]:
        key = (rule.name, subject)
        entry = self._entries.get(key)
        if entry is None:
            entry = Entry(name=rule.name, subject=subject, severity=rule.severity, text=text, since=now)
            self._entries[key] = entry
        entry.text, entry.severity, entry.absent_since = text, rule.severity, None
        if entry.raised_at is None:
            if now - entry.since < rule.for_s * 1000 * self._patience:
                return []
            entry.raised_at = entry.told_at = now
            return [Note(kind="raised", alarm=entry.alarm(), raised_at=now)]
        if now - entry.told_at < self._remind_ms:
            return []
        entry.told_at = now
        return [Note(kind="still", alarm=entry.alarm(), raised_at=entry.raised_at, lasted_ms=max(0, now - entry.since))]

    def _not_seen(self, rule: Rule, entry: Entry, now: int) -> list[Note]:
        if entry.raised_at is None:
            del self._entries[entry.name, entry.subject]
            return []
        if entry.absent_since is None:
            entry.absent_since = now
        if now - entry.absent_since < rule.clear_s * 1000 * self._patience:
            return []
        del self._entries[entry.name, entry.subject]
        lasted = max(0, entry.absent_since - entry.since)
        return [
            Note(
                kind="cleared",
                alarm=entry.alarm(),
                raised_at=entry.raised_at,
                lasted_ms=lasted,
                notified_at=entry.notified_at,
            )
        ]
