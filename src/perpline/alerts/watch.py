"""Looks, judges, and has people told: the life of `perpline alerts run`."""

import asyncio
import random
import socket
from collections.abc import Sequence

import structlog

from perpline.alerts.channels import GATHER_S, Channel, Courier
from perpline.alerts.facts import Facts
from perpline.alerts.observer import Observer
from perpline.alerts.rules import RULES, Found, Rule, modes_seen
from perpline.alerts.standing import Note, Standing
from perpline.alerts.state import State, StateFile
from perpline.common.clock import Clock
from perpline.common.config import Settings
from perpline.common.errors import NeedsPerson, Unavailable
from perpline.common.runbooks import page_of
from perpline.common.watch_word import EVERY_S, leave_word, take_word_back

log = structlog.get_logger("perpline.alerts")

TURN_S = 3.0
LAST_WORDS_S = 5.0
MOST_ROWS = 10_000
"""Rows that wait for a database that is away; of more the oldest are dropped. People are told all the same."""

Key = tuple[str, str, int]
"""name, subject, raised_at: the key of `alerts`."""
AlertRow = tuple[str, str, str, str, int, int | None, int | None]


class Watch:
    """Judges the facts every `alert_every_s`, and tells each channel what is new.

    What stands and what is not told yet is in the state file before anything is sent, so that a restart neither tells
    it twice nor forgets it. Rows go to the table `alerts`; while the database is away they wait.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        observer: Observer,
        channels: Sequence[Channel],
        file: StateFile,
        rng: random.Random,
        *,
        gather_s: float = GATHER_S,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._observer = observer
        self._file = file
        state = file.read()
        known = [entry for entry in state.entries if entry.name in RULES]  # of another version there may be others
        self.standing = Standing(
            known, remind_ms=round(settings.alert_remind_h * 3_600_000), patience=settings.alert_patience
        )
        where = f"perpline on {socket.gethostname()}, slot {settings.slot}"
        self.couriers = [
            Courier(
                channel,
                clock,
                rng,
                where=where,
                runbook_url=settings.runbook_url,
                waiting=state.waiting.get(channel.key, ()),
                on_sent=self._on_sent,
                gather_s=gather_s,
            )
            for channel in channels
        ]
        self._modes_seen = state.modes_seen
        self._rows: dict[Key, AlertRow] = {(row[0], row[1], row[4]): row for row in state.rows}
        self._failed: set[str] = set()
        self._rows_wait = self._state_fails = False
        self._word_left_s = float("-inf")

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set; then what waits is tried once more."""
        sending = [
            asyncio.create_task(courier.run(), name=f"alerts to {courier.channel.label}") for courier in self.couriers
        ]
        try:
            while not stop.is_set():
                self.judge(await self._observer.look(self._modes_seen))
                await self._store_rows()
                self._leave_word()
                for task in sending:
                    if task.done():
                        task.result()  # a bug of ours: better to end and be started again than to be silent
                try:
                    async with asyncio.timeout(self.pause_s()):
                        await stop.wait()
                except TimeoutError:
                    pass
        finally:
            await self._say_last_words()
            for task in sending:
                task.cancel()
            await asyncio.gather(*sending, return_exceptions=True)
            self._save()
            take_word_back(self._settings.data_dir)

    def pause_s(self) -> float:
        """Until the next look: `alert_every_s`, and longer where that falls into the first seconds of a minute.

        A worker decides then, and telling its status would take milliseconds of it.
        """
        pause = self._settings.alert_every_s
        if self._settings.clock_speed != 1:
            return pause
        return pause + max(0.0, TURN_S - (self._clock.now_ms() / 1000 + pause) % 60)

    def judge(self, facts: Facts) -> list[Note]:
        """Take one look's facts in; what is new has been noted, logged and handed to every channel."""
        notes: list[Note] = []
        for rule in RULES.values():
            notes += self.standing.look(rule, self._found(rule, facts), facts.now_ms)
        before, self._modes_seen = self._modes_seen, modes_seen(facts)
        for note in notes:
            self._log(note)
            if note.kind != "still":
                self._note_row(note, facts.now_ms, note.notified_at)
        for courier in self.couriers:
            courier.put(notes)
        if notes or before != self._modes_seen:
            self._save()
        return notes

    def _found(self, rule: Rule, facts: Facts) -> Found | None:
        try:
            found = rule.judge(facts, self._settings, self.standing.subjects(rule.name))
        except Exception:  # facts of another version, or a bug: the other rules go on
            if rule.name not in self._failed:
                log.exception("alert_rule_failed", rule=rule.name, action="alert")
            self._failed.add(rule.name)
            return None
        self._failed.discard(rule.name)
        return found

    def _log(self, note: Note) -> None:
        alarm = note.alarm
        if note.kind == "cleared":
            lasted_s = round(note.lasted_ms / 1000)
            log.info("alarm_over", alarm=alarm.name, subject=alarm.subject, lasted_s=lasted_s, action="alert")
        elif note.kind != "still":
            facts = {"alarm": alarm.name, "subject": alarm.subject, "severity": alarm.severity, "text": alarm.text}
            runbook = page_of(alarm.name, self._settings.runbook_url)
            log.warning("alarm", **facts, runbook=runbook, action="alert")

    # ---- rows and state

    def _note_row(self, note: Note, now: int, notified_at: int | None) -> None:
        alarm, key = note.alarm, (note.alarm.name, note.alarm.subject, note.raised_at)
        cleared_at = {"cleared": now, "event": note.raised_at}.get(note.kind)
        self._rows.pop(key, None)
        self._rows[key] = (*key[:2], alarm.severity, alarm.text, note.raised_at, cleared_at, notified_at)
        while len(self._rows) > MOST_ROWS:
            del self._rows[next(iter(self._rows))]

    def _on_sent(self, notes: Sequence[Note]) -> None:
        """A channel has taken them: the first one counts, as long as the alarm stands."""
        now = self._clock.now_ms()
        for note in notes:
            if note.kind == "event":
                self._note_row(note, now, now)
            entry = self.standing.entry(note.alarm.name, note.alarm.subject, note.raised_at)
            if entry is not None and note.kind == "raised" and entry.notified_at is None:
                entry.notified_at = now
                self._note_row(note, now, now)
        self._save()

    async def _store_rows(self) -> None:
        if not (rows := dict(self._rows)):
            return
        try:
            await self._observer.write(list(rows.values()))
        except (Unavailable, NeedsPerson) as error:
            if not self._rows_wait:
                log.info("alert_rows_wait", reason=str(error), rows=len(rows), action="alert")
            self._rows_wait = True
            return
        except ValueError as error:  # what no database takes is not tried again; people have been told
            log.error("alert_rows_refused", reason=str(error), rows=len(rows), action="alert")
        self._rows_wait = False
        self._rows = {key: row for key, row in self._rows.items() if rows.get(key) != row}
        self._save()

    def _save(self) -> None:
        waiting = {courier.channel.key: courier.waiting for courier in self.couriers}
        state = State(
            entries=self.standing.entries(),
            waiting=waiting,
            modes_seen=self._modes_seen,
            rows=list(self._rows.values()),
        )
        try:
            self._file.write(state)
        except OSError as error:
            if not self._state_fails:
                reason = error.strerror or str(error)
                log.error("alert_state_not_written", path=str(self._file.path), reason=reason, action="alert")
            self._state_fails = True
            return
        self._state_fails = False

    def _leave_word(self) -> None:
        """Each minute: who looks at a page or a status is to know when nobody watches any more."""
        now_s = self._clock.wall_s()
        if now_s - self._word_left_s < EVERY_S:
            return
        failing = [courier.channel.label for courier in self.couriers if courier.is_failing]
        channels = [courier.channel.label for courier in self.couriers]
        try:
            leave_word(self._settings.data_dir, self._clock.now_ms(), channels, failing)
        except OSError as error:
            log.warning("watch_word_not_left", reason=error.strerror or str(error), action="alert")
        self._word_left_s = now_s

    async def _say_last_words(self) -> None:
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                for courier in self.couriers:
                    while courier.waiting and await courier.send_one():
                        pass
                await self._store_rows()
        except TimeoutError:
            pass  # it is in the state file
