"""Messages reach their channel: grouped, not too many, until they are taken, and without a secret in any error."""

import asyncio
import io
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from pydantic import SecretStr
from structlog.testing import capture_logs

from alarming import NOW, Heard
from perpline.alerts import channels
from perpline.alerts.channels import AppriseChannel, Courier, open_channels, redacted
from perpline.alerts.messages import Waiting, merge, messages_of
from perpline.alerts.rules import Alarm
from perpline.alerts.standing import Kind, Note
from perpline.common.clock import ManualClock
from perpline.common.errors import NeedsPerson, Unavailable


def note(name: str = "stream_stale", subject: str = "BTCUSDT markPrice@1s", kind: Kind = "raised") -> Note:
    severity = "critical" if name == "worker_away" else "warning"
    alarm = Alarm(name=name, subject=subject, severity=severity, text=f"{subject} is wrong", since=NOW)
    return Note(kind=kind, alarm=alarm, raised_at=NOW, lasted_ms=192_000)


@asynccontextmanager
async def carrying(channel: Heard, **options: object) -> AsyncIterator[tuple[Courier, ManualClock]]:
    clock = ManualClock(NOW)
    courier = Courier(channel, clock, random.Random(1), where="perpline on here", **options)  # type: ignore[arg-type]
    task = asyncio.create_task(courier.run())
    try:
        yield courier, clock
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def passes(clock: ManualClock, seconds: float) -> None:
    for _ in range(round(seconds * 2)):
        for _ in range(10):
            await asyncio.sleep(0)
        clock.advance(0.5)
    for _ in range(10):
        await asyncio.sleep(0)


# ---- what people read


def test_thirty_streams_are_one_message_that_names_them() -> None:
    names = [f"S{n}USDT bookTicker" for n in range(30)]

    [message] = messages_of([note(subject=name) for name in names], "perpline on here")

    assert message.title == "[warning] Streams are silent (30)"
    assert all(name in message.body for name in names)
    assert message.body.splitlines()[-2:] == ["What to do: docs/runbooks/stream_stale.md", "perpline on here"]


def test_of_a_hole_that_is_found_no_more_nobody_is_told_that_it_is_repaired() -> None:
    [message] = messages_of([note("gap_open", "BTCUSDT candles_1m", kind="cleared")], "perpline on here")

    assert message.body.startswith("BTCUSDT candles_1m: repaired, or older than four hours")


def test_the_worst_comes_first_and_what_is_over_last() -> None:
    notes = [
        note(subject="a", kind="cleared"),
        note(),
        note("worker_away", "port 9720"),
        note(subject="b", kind="still"),
    ]

    told = messages_of(notes, "")

    assert [message.title for message in told] == [
        "[critical] A worker does not answer",
        "[warning] Streams are silent",
        "[still warning] Streams are silent",
        "[over] Streams are silent",
    ]
    assert told[-1].body == "a: over after 3 min 12 s"
    assert [message.tone for message in told] == ["critical", "warning", "warning", "over"]


@given(st.lists(st.tuples(st.sampled_from(["stream_stale", "worker_away", "gone"]), st.text(max_size=9))))
def test_every_note_is_in_exactly_one_message(which: list[tuple[str, str]]) -> None:
    notes = [note(name, subject) for name, subject in which]

    told = [each for message in messages_of(notes, "here") for each in message.notes]

    assert sorted(map(id, told)) == sorted(map(id, notes))


def test_what_is_over_is_said_before_it_has_begun_again() -> None:
    waiting: Waiting = {}
    for each in (note(kind="cleared"), replace(note(), raised_at=NOW + 60_000), note("worker_away", "port 9720")):
        merge(waiting, each)

    assert [message.title.split("]")[0] for message in messages_of(list(waiting.values()), "")] == [
        "[over",
        "[critical",
        "[warning",
    ]


def test_a_reminder_replaces_the_last_one_and_says_nothing_where_nobody_knows_of_the_beginning() -> None:
    waiting: Waiting = {}
    for each in (note(kind="still"), note(kind="still")):
        merge(waiting, each)
    assert [each.kind for each in waiting.values()] == ["still"]
    merge(waiting, note(kind="cleared"))
    assert [each.kind for each in waiting.values()] == ["cleared"]

    waiting = {}
    for each in (note(), note(kind="still")):
        merge(waiting, each)
    assert [each.kind for each in waiting.values()] == ["raised"]


# ---- the queue


async def test_what_comes_within_two_seconds_goes_out_together_and_once() -> None:
    channel = Heard()
    async with carrying(channel) as (courier, clock):
        courier.put([note(subject="a")])
        await passes(clock, 1)
        courier.put([note(subject="b")])
        await passes(clock, 60)

    assert channel.titles == ["[warning] Streams are silent (2)"]
    assert courier.waiting == []


async def test_a_channel_that_is_away_is_tried_again_with_longer_waits_and_told_once() -> None:
    channel = Heard()
    channel.away = "it was not taken"
    sent: list[Note] = []
    with capture_logs() as logs:
        async with carrying(channel, on_sent=sent.extend) as (courier, clock):
            courier.put([note()])
            await passes(clock, 600)
            tries = channel.tries
            assert (courier.waiting, sent) == ([note()], [])
            channel.away = ""
            await passes(clock, 600)

    assert 5 <= tries <= 12
    assert channel.titles == ["[warning] Streams are silent"]
    assert sent == [note()]
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("alert_not_sent", "warning"),
        ("alerts_are_sent_again", "info"),
    ]


async def test_at_most_ten_messages_a_minute_and_what_waits_is_grouped() -> None:
    channel = Heard()
    async with carrying(channel) as (courier, clock):
        for n in range(50):
            courier.put([note(subject=f"S{n}")])
            await passes(clock, 1)
        within = len(channel.messages)
        await passes(clock, 60)

    assert within <= 10
    assert len(channel.messages) <= 20
    said = "\n".join(body for _, body, _ in channel.messages)
    assert all(f"S{n}" in said for n in range(50))


async def test_of_too_many_that_wait_the_oldest_are_dropped_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "MOST_WAITING", 3)
    channel = Heard()
    async with carrying(channel) as (courier, clock):
        courier.put([note(subject=f"S{n}") for n in range(5)])
        assert [each.alarm.subject for each in courier.waiting] == ["S2", "S3", "S4"]
        await passes(clock, 5)

    [(_, body, _)] = channel.messages
    assert "2 older notes were dropped" in body


# ---- apprise


SECRETS = "discord://4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (SECRETS, "no way to https://discord.com/api/webhooks/4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js"),
        ("mailto://me:p%40ss%20word@example.com", "535 bad credentials p@ss word for me"),
        ("json://host/TOKENvalue?+X-Key=hunter22", "POST /TOKENvalue with hunter22 failed"),
    ],
)
def test_errors_hold_no_piece_of_an_address(url: str, said: str) -> None:
    shown = redacted(said, url)

    for secret in ("4174216298", "JHMHI8qBe7bk2ZwO5U711o3dV_js", "p@ss word", "TOKENvalue", "hunter22"):
        assert secret not in shown
    assert "***" in shown


def test_an_address_that_apprise_does_not_know_is_refused_by_number_and_kind_only() -> None:
    with pytest.raises(NeedsPerson) as refused:
        open_channels([SecretStr(SECRETS), SecretStr("nonsense://secret-token")])

    assert str(refused.value) == "number 2 of alert_urls (nonsense://…) is no address that apprise understands"


def test_a_channel_tells_nothing_of_its_address() -> None:
    channel = AppriseChannel(SECRETS, 1)

    assert channel.label == "discord (alert_urls, number 1)"
    assert "JHMHI8" not in f"{channel.key}{channel.label}{channel!r}"
    assert channel.key == AppriseChannel(SECRETS, 7).key != AppriseChannel("json://localhost", 1).key


async def test_a_receiver_that_is_not_there_is_unavailable_and_no_library_logs_the_address() -> None:
    channel, root, lines = AppriseChannel("json://127.0.0.1:9/TOKENvalue", 1), logging.getLogger(), io.StringIO()
    handler, level = logging.StreamHandler(lines), root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with pytest.raises(Unavailable) as failed:
            await channel.send("a title", "a body", "critical")
    finally:
        root.removeHandler(handler)
        root.setLevel(level)

    assert "TOKENvalue" not in f"{failed.value}{lines.getvalue()}"
    assert "A Connection error occurred" in str(failed.value)
