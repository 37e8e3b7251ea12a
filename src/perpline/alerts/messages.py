"""What people read: notes of one kind and alarm in one message, the worst first."""

from collections.abc import Collection, Sequence

from msgspec import Struct
from msgspec.structs import replace

from perpline.alerts.rules import RULES, lasted
from perpline.alerts.standing import Kind, Note
from perpline.common.runbooks import page_of

LINES = 5
"""So many have a line each; more are named one behind the other."""
EVENTS = 20
"""Of what happens each has a line, up to so many."""
NAMES = 60
_SEVERITIES = ("critical", "warning", "info")
_KINDS: tuple[Kind, ...] = ("raised", "event", "still", "past", "cleared")

Waiting = dict[tuple[str, str, int, Kind], Note]
"""Notes by name, subject, raised_at and kind, in the order they came."""


class Message(Struct, frozen=True, kw_only=True):
    """A message, and the notes that have been told with it."""

    title: str
    body: str
    tone: str
    """critical, warning, info, or over."""
    notes: tuple[Note, ...]


def merge(waiting: Waiting, note: Note, being_told: Collection[Note] = ()) -> None:
    """Have the note wait with the others; together they say everything once.

    What began and ended while nobody could be told is one note of the past, and of reminders only the last counts, none
    where the beginning itself still waits. Notes that are `being_told` are as good as told.
    """
    key = note.alarm.name, note.alarm.subject, note.raised_at
    begun = waiting.get((*key, "raised"))
    unsaid = begun is not None and begun not in being_told
    if note.kind == "still" and unsaid:
        return
    if note.kind in ("still", "cleared"):
        waiting.pop((*key, "still"), None)
    if note.kind == "cleared" and unsaid:
        del waiting[*key, "raised"]
        note = replace(note, kind="past")
    waiting[*key, note.kind] = note


def messages_of(notes: Sequence[Note], where: str, dropped: int = 0, runbook_url: str = "") -> list[Message]:
    """The messages that tell these notes, the most urgent first, but what is over before what has begun again.

    `where` says who speaks; `dropped` how many notes a queue that was full has lost before them;
    `runbook_url` is the setting.
    """
    groups: dict[tuple[Kind, str], list[Note]] = {}
    for note in notes:
        groups.setdefault((note.kind, note.alarm.name), []).append(note)

    begun = {(note.alarm.name, note.alarm.subject) for note in notes if note.kind == "raised"}

    def urgency(key: tuple[Kind, str]) -> tuple[int, int]:
        kind, group = key[0], groups[key]
        again = kind in ("past", "cleared") and any((each.alarm.name, each.alarm.subject) in begun for each in group)
        return -1 if again else _KINDS.index(kind), _SEVERITIES.index(group[0].alarm.severity)

    lost = f"{dropped} older notes were dropped: too many waited." if dropped else ""
    order = sorted(groups, key=urgency)
    return [_message(kind, name, groups[kind, name], where, lost, runbook_url) for kind, name in order]


def _message(kind: Kind, name: str, notes: list[Note], where: str, lost: str, runbook_url: str) -> Message:
    severity = notes[0].alarm.severity
    rule = RULES.get(name)  # a note of an older version may name one that is no more
    said = rule.title if rule is not None else name.replace("_", " ")
    mark = {"still": f"still {severity}", "past": f"was {severity}", "cleared": "over"}.get(kind, severity)
    most = EVENTS if kind == "event" else LINES
    body = [_line(note) for note in notes[:most]]
    if len(notes) > most and kind == "event":
        body.append(f"and {len(notes) - most} more")
    elif len(notes) > most:
        subjects = [note.alarm.subject for note in notes]
        more = f" and {len(subjects) - NAMES} more" if len(subjects) > NAMES else ""
        body = [f"{len(notes)}: {', '.join(subjects[:NAMES])}{more}", f"The first: {_line(notes[0])}"]
    if kind != "cleared":
        body.append(f"What to do: {page_of(name if rule is not None else 'README', runbook_url)}")
    body += [line for line in (where, lost) if line]
    count = f" ({len(notes)})" if len(notes) > 1 else ""
    tone = "over" if kind in ("past", "cleared") else severity
    return Message(title=f"[{mark}] {said}{count}", body="\n".join(body), tone=tone, notes=tuple(notes))


def _line(note: Note) -> str:
    subject = f"{note.alarm.subject}: " if note.alarm.subject else ""
    if note.kind == "cleared":
        rule = RULES.get(note.alarm.name)
        return f"{subject}{'over' if rule is None else rule.over} after {lasted(note.lasted_ms)}"
    took = {"still": f" (for {lasted(note.lasted_ms)})", "past": f" (over after {lasted(note.lasted_ms)})"}
    return f"{subject}{note.alarm.text}{took.get(note.kind, '')}"
