"""The life of the watch: what it writes down, what a restart knows, and that nothing of ours can silence it."""

import asyncio
import random
import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from structlog.testing import capture_logs

from alarming import NOW, Heard, changed, dead, facts, healthy, mode_row, settings
from perpline.alerts.facts import Facts, ModesSeen
from perpline.alerts.rules import RULES
from perpline.alerts.state import State, StateFile
from perpline.alerts.watch import Watch
from perpline.common.clock import ManualClock
from perpline.common.errors import NeedsPerson, Unavailable
from perpline.common.watch_word import watch_trouble, word_file
from perpline.storage.store import Row
from perpline.trading.mode import ModeRow
from running import eventually

STALE = changed(streams__stale={"market-0": ["BTCUSDT markPrice@1s"]})


class Tables:
    """What an observer is to a watch: facts that the test chooses, and rows that were written."""

    def __init__(self) -> None:
        self.rows: dict[tuple[Any, ...], Row] = {}
        self.away = ""
        self.seen: list[Facts] = []

    async def look(self, modes_seen: ModesSeen | None = None) -> Facts:
        return self.seen.pop(0)

    async def write(self, rows: list[Row]) -> None:
        if self.away:
            raise Unavailable(self.away)
        self.rows.update({(row[0], row[1], row[4]): row for row in rows})


class Desk:
    """A watch with one channel, started again at will."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self.clock, self.tables, self.channel = ManualClock(NOW), Tables(), Heard()
        self.file = StateFile(folder)
        self._settings = settings(data_dir=str(folder), alert_patience=0, **changes)
        self.start()

    def start(self) -> None:
        parts: Any = (self._settings, self.clock, self.tables, [self.channel], self.file, random.Random(1))
        self.watch = Watch(*parts, gather_s=0.0)

    async def sees(self, *statuses: dict[str, Any] | None, **others: Any) -> None:
        """One look at each, a second apart, with everything sent that can be and written that can be."""
        for status in statuses or (None,):
            self.clock.advance(1)
            self.watch.judge(facts(status, now=self.clock.now_ms(), **others))
            for courier in self.watch.couriers:
                while courier.waiting and await courier.send_one():
                    pass
            await self.watch._store_rows()


async def test_an_alarm_is_told_written_and_cleared(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    await desk.sees(STALE, STALE, STALE, healthy())

    assert desk.channel.titles == ["[warning] Streams are silent", "[over] Streams are silent"]
    assert list(desk.tables.rows.values()) == [
        (
            "stream_stale",
            "BTCUSDT markPrice@1s",
            "warning",
            "silent on market-0 though it should speak",
            NOW + 1_000,
            NOW + 4_000,
            NOW + 1_000,
        )
    ]


async def test_a_restart_tells_nothing_twice_and_clears_what_stood(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    await desk.sees(STALE)
    for _ in range(3):
        desk.start()
        await desk.sees(STALE)
    desk.start()
    await desk.sees(healthy())

    assert desk.channel.titles == ["[warning] Streams are silent", "[over] Streams are silent"]


async def test_what_a_channel_has_not_taken_survives_a_restart(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.channel.away = "no network"
    await desk.sees(STALE, healthy())
    desk.start()
    desk.channel.away = ""
    await desk.sees(healthy())

    [(title, body, tone)] = desk.channel.messages  # one message: nobody needs two of what is over
    assert (title, tone) == ("[was warning] Streams are silent", "over")
    assert body.startswith("BTCUSDT markPrice@1s: silent on market-0 though it should speak (over after 1 s)")
    [row] = desk.tables.rows.values()
    assert row[-1] is None  # nobody was told while it stood


async def test_while_the_database_is_away_people_are_told_and_the_rows_follow(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.tables.away = "the database is away"
    await desk.sees(STALE, database_error="the database is away")
    assert desk.channel.titles == ["[critical] The database is away", "[warning] Streams are silent"]
    desk.start()  # and a restart meanwhile forgets none
    assert desk.tables.rows == {}
    desk.tables.away = ""
    await desk.sees(healthy())

    assert sorted((row[0], row[-2]) for row in desk.tables.rows.values()) == [
        ("database_away", NOW + 2_000),
        ("stream_stale", NOW + 2_000),
    ]


async def test_a_worker_that_dies_is_told_and_nothing_that_stood_is_called_over(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    await desk.sees(STALE)
    await desk.sees(workers=(dead(),), gaps=None, close_to_signal_ms=None, live_unattended=None)
    await desk.sees(healthy())

    assert desk.channel.titles == [
        "[warning] Streams are silent",
        "[critical] A worker does not answer",
        "[over] A worker does not answer",
        "[over] Streams are silent",
    ]


async def test_a_change_of_mode_is_told_once_also_over_a_restart(tmp_path: Path) -> None:
    """Nothing twice, and nothing missed that was set while nobody watched."""
    desk = Desk(tmp_path)
    rows = [mode_row(1, "paper")]
    await sees_modes(desk, rows)
    desk.start()
    rows.append(mode_row(2, "live", reason="go"))
    for _ in range(3):
        await sees_modes(desk, rows)
        desk.start()

    [(title, body, tone)] = desk.channel.messages
    assert (title, tone) == ("[info] The trading mode has changed", "info")
    assert body.splitlines()[0] == "all: paper → live, by me@here: go"
    [row] = desk.tables.rows.values()
    assert row[4:] == (NOW + 2_000, NOW + 2_000, NOW + 2_000)


async def test_of_many_changes_twenty_have_a_line_and_the_page_is_the_address_that_is_set(tmp_path: Path) -> None:
    desk = Desk(tmp_path, runbook_url="https://example.com/runbooks/")
    await sees_modes(desk, [])
    await sees_modes(desk, [mode_row(id, "paper", f"S{id}USDT") for id in range(1, 24)])

    [(title, body, _)] = desk.channel.messages
    lines = body.splitlines()
    assert title == "[info] The trading mode has changed (23)"
    assert lines[0] == "S1USDT: off → paper, by me@here: why not"
    assert lines[19:22] == [
        "S20USDT: off → paper, by me@here: why not",
        "and 3 more",
        "What to do: https://example.com/runbooks/mode_changed",
    ]


async def sees_modes(desk: Desk, rows: Sequence[tuple[int, ModeRow]]) -> None:
    await desk.sees(modes=tuple(rows), modes_seen=desk.watch._modes_seen)


moments = st.lists(
    st.tuples(
        st.one_of(st.none(), st.sets(st.sampled_from(["a", "b", "c"]))),  # stale streams; None: the worker is away
        st.booleans(),  # whether the channel takes anything
        st.booleans(),  # whether the database does
        st.booleans(),  # whether the process is started again
    ),
    max_size=12,
)


@effort(max_examples=60, deadline=None)
@given(moments)
async def test_whatever_is_away_and_whenever_it_is_started_again_each_alarm_is_told_once_and_cleared_once(
    script: list[tuple[set[str] | None, bool, bool, bool]],
) -> None:
    with TemporaryDirectory() as folder, capture_logs():
        desk = Desk(Path(folder))
        for streams, taken, stored, again in [*script, (set(), True, True, False)]:
            if again:
                desk.start()
            desk.channel.away, desk.tables.away = "" if taken else "no network", "" if stored else "it is away"
            if streams is None:
                await desk.sees(workers=(dead(),), gaps=None, close_to_signal_ms=None, live_unattended=None)
            else:
                await desk.sees(changed(streams__stale={"market-0": sorted(streams)}))
    told = [(title.split()[0], subject) for title, body, _ in desk.channel.messages for subject in subjects(body)]
    for subject in ("a", "b", "c", "port 9720"):
        episodes = [mark for mark, each in told if each == subject and mark != "[was"]
        unsaid = told.count(("[was", subject))
        rows = [row for row in desk.tables.rows.values() if row[1] == subject]
        assert [mark == "[over]" for mark in episodes] == [False, True] * (len(rows) - unsaid)
        assert all(row[5] is not None for row in rows)
    assert desk.watch.couriers[0].waiting == []


def subjects(body: str) -> list[str]:
    """Whom a message is about: a line each, or all of them in the first."""
    first, *others = body.splitlines()
    if re.match(r"\d+: ", first):
        return first.partition(": ")[2].split(", ")
    return [line.partition(": ")[0] for line in (first, *others) if not line.startswith(("What to do", "perpline on"))]


async def test_a_rule_that_stumbles_is_told_in_the_log_once_and_the_others_go_on(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    broken = {**STALE, "room": {"disk": "/data"}}
    with capture_logs() as logs:
        await desk.sees(broken, broken)

    assert [line["rule"] for line in logs if line["event"] == "alert_rule_failed"] == ["disk_low"]
    assert desk.channel.titles == ["[warning] Streams are silent"]


async def test_rows_that_no_database_takes_are_left_out_and_the_watch_goes_on(tmp_path: Path) -> None:
    class Refusing(Tables):
        async def write(self, rows: list[Row]) -> None:
            raise ValueError("the database refused the rows")

    desk = Desk(tmp_path)
    desk.tables = Refusing()
    desk.start()
    with capture_logs() as logs:
        await desk.sees(STALE, STALE)

    assert [line["event"] for line in logs].count("alert_rows_refused") == 1
    assert desk.channel.titles == ["[warning] Streams are silent"]
    assert desk.file.read().rows == []


async def test_an_alarm_is_a_line_of_the_log_with_its_page(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    with capture_logs() as logs:
        await desk.sees(STALE, healthy())

    said = [(line["event"], line["log_level"], line["alarm"], line.get("runbook")) for line in logs]
    assert said == [
        ("alarm", "warning", "stream_stale", RULES["stream_stale"].runbook),
        ("alarm_over", "info", "stream_stale", None),
    ]


@pytest.mark.parametrize(("into_minute_s", "pause_s"), [(0, 5), (50, 5), (54, 5), (55, 8), (57, 6), (58, 5)])
def test_no_look_falls_into_the_seconds_in_which_a_worker_decides(
    tmp_path: Path, into_minute_s: int, pause_s: int
) -> None:
    desk = Desk(tmp_path)
    desk.clock.advance(into_minute_s)

    assert desk.watch.pause_s() == pause_s


async def test_the_run_ends_with_what_waits_sent_and_written_down(tmp_path: Path) -> None:
    desk, stop = Desk(tmp_path, alert_every_s=0.05), asyncio.Event()
    desk.tables.seen = [facts(STALE)]
    running = asyncio.create_task(desk.watch.run(stop))
    await eventually(lambda: not desk.tables.seen)
    stop.set()
    await running

    assert desk.channel.titles == ["[warning] Streams are silent"]
    assert len(desk.tables.rows) == 1
    state = desk.file.read()
    assert ([entry.name for entry in state.entries], list(state.waiting.values()), state.rows) == (
        ["stream_stale"],
        [[]],
        [],
    )


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"entries": 3}', b'{"rows": [["x"]]}', b"[" * 100_000, b"\xff\xfe"]
)
def test_a_state_file_that_cannot_be_read_is_begun_anew_and_told(tmp_path: Path, content: bytes) -> None:
    file = StateFile(tmp_path)
    file.path.write_bytes(content)

    with capture_logs() as logs:
        assert file.read() == State()

    assert [line["event"] for line in logs] == ["alert_state_unreadable"]


def test_two_watches_of_one_folder_would_tell_everything_twice(tmp_path: Path) -> None:
    with StateFile(tmp_path), pytest.raises(NeedsPerson, match="another `perpline alerts run`"):
        StateFile(tmp_path).__enter__()
    with StateFile(tmp_path):
        pass


async def test_a_state_that_cannot_be_written_silences_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    (tmp_path / "alerts.new").mkdir()
    with capture_logs() as logs:
        await desk.sees(STALE, healthy())

    assert desk.channel.titles == ["[warning] Streams are silent", "[over] Streams are silent"]
    assert [line["event"] for line in logs].count("alert_state_not_written") == 1


@pytest.mark.parametrize(
    ("waits_s", "channel_away", "said"),
    [
        (60, "", ""),
        (60, "no network", "no channel takes them"),
        (600, "", "is dead or hangs"),
    ],
)
async def test_who_looks_is_told_when_nobody_watches_or_no_channel_takes_anything(
    tmp_path: Path, waits_s: int, channel_away: str, said: str
) -> None:
    desk = Desk(tmp_path, alert_urls="json://127.0.0.1:9/")
    told = settings(data_dir=str(tmp_path), alert_urls="json://127.0.0.1:9/")
    before = watch_trouble(told, NOW)
    desk.channel.away = channel_away
    desk.tables.seen = [facts(STALE)]
    desk.tables.away = "the database is away"
    stop = asyncio.Event()
    task = asyncio.create_task(desk.watch.run(stop))
    await eventually(lambda: word_file(tmp_path).exists())
    if channel_away:
        await eventually(lambda: desk.channel.tries)
        desk.tables.seen = [facts(STALE)]
        desk.clock.advance(60)
        desk.watch._leave_word()
    now = desk.clock.now_ms() + waits_s * 1000
    meanwhile = watch_trouble(told, now)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert before == "nobody watches: perpline alerts run does not run"
    assert said in meanwhile if said else meanwhile == ""
    assert watch_trouble(settings(data_dir=str(tmp_path)), now) == ""  # where nobody is to be told


async def test_a_watch_that_stops_in_order_takes_its_word_back(tmp_path: Path) -> None:
    desk, stop = Desk(tmp_path), asyncio.Event()
    desk.tables.seen = [facts()]
    task = asyncio.create_task(desk.watch.run(stop))
    await eventually(lambda: word_file(tmp_path).exists())
    stop.set()
    await task

    assert not word_file(tmp_path).exists()
