"""One alarm is told once, reminded of now and then, and cleared once, whatever flaps."""

from hypothesis import given
from hypothesis import strategies as st

from alarming import NOW, rule
from perpline.alerts.standing import Note, Standing

HOUR = 3_600_000


def kinds(notes: list[Note]) -> list[tuple[str, str]]:
    return [(note.kind, note.alarm.subject) for note in notes]


def test_it_is_raised_once_it_has_been_so_for_long_enough_and_cleared_with_how_long_it_lasted() -> None:
    standing, slow = Standing(remind_ms=HOUR), rule(for_s=10, clear_s=5)
    told = []
    for second in range(40):
        told.append(standing.look(slow, {"a": "wrong"} if second < 25 else {}, NOW + 1000 * second))

    assert {second: kinds(notes) for second, notes in enumerate(told) if notes} == {
        10: [("raised", "a")],
        30: [("cleared", "a")],
    }
    assert told[10][0].alarm.since == NOW
    assert told[30][0].lasted_ms == 25_000


def test_what_is_over_before_its_time_was_never_an_alarm() -> None:
    standing, slow = Standing(remind_ms=HOUR), rule(for_s=10)

    told = [standing.look(slow, {} if second == 9 else {"a": "wrong"}, NOW + 1000 * second) for second in range(19)]

    assert [note for notes in told for note in notes] == []


def test_what_comes_back_before_it_counts_as_over_is_the_same_alarm() -> None:
    standing, slow = Standing(remind_ms=HOUR), rule(clear_s=5)

    told = [standing.look(slow, {"a": "wrong"} if second % 4 == 0 else {}, NOW + 1000 * second) for second in range(90)]

    assert [kinds(notes) for notes in told if notes] == [[("raised", "a")]]


def test_what_cannot_be_known_neither_raises_nor_clears() -> None:
    standing, quick = Standing(remind_ms=HOUR), rule()
    standing.look(quick, {"a": "wrong"}, NOW)

    assert [standing.look(quick, None, NOW + second) for second in range(0, 9_000_000, 1000)] == [[]] * 9_000
    assert kinds(standing.look(quick, {}, NOW + 9_000_000)) == [("cleared", "a")]


def test_a_reminder_comes_after_its_time_and_says_for_how_long() -> None:
    standing, quick = Standing(remind_ms=6 * HOUR), rule()

    told = [standing.look(quick, {"a": "wrong"}, NOW + hour * HOUR) for hour in range(13)]

    reminders = {hour: notes[0].lasted_ms // HOUR for hour, notes in enumerate(told) if notes and hour}
    assert reminders == {6: 6, 12: 12}


def test_patience_stretches_every_wait() -> None:
    standing, slow = Standing(remind_ms=HOUR, patience=3.0), rule(for_s=10)

    told = [standing.look(slow, {"a": "wrong"}, NOW + 1000 * second) for second in range(31)]

    assert [second for second, notes in enumerate(told) if notes] == [30]


def test_an_event_is_told_each_time_and_never_over() -> None:
    standing, event = Standing(remind_ms=HOUR), rule("mode_changed", is_event=True)

    told = [standing.look(event, found, NOW + n) for n, found in enumerate([{"all": "off → live"}, {}, {"all": "x"}])]

    assert [kinds(notes) for notes in told] == [[("event", "all")], [], [("event", "all")]]
    assert standing.entries() == []


def test_what_stood_before_a_restart_is_not_raised_again_and_is_cleared() -> None:
    before, quick = Standing(remind_ms=HOUR), rule()
    [raised] = before.look(quick, {"a": "wrong"}, NOW)

    after = Standing(before.entries(), remind_ms=HOUR)

    assert after.look(quick, {"a": "wrong"}, NOW + 60_000) == []
    [cleared] = after.look(quick, {}, NOW + 120_000)
    assert (cleared.kind, cleared.raised_at, cleared.lasted_ms) == ("cleared", raised.raised_at, 120_000)


looks = st.lists(
    st.tuples(
        st.integers(0, 20),  # seconds since the last look
        st.one_of(st.none(), st.sets(st.sampled_from("abc"))),
        st.booleans(),  # whether the process is started again
    ),
    max_size=60,
)


@given(looks, st.sampled_from([0, 7, 30]), st.sampled_from([0, 7, 30]))
def test_whatever_flaps_an_alarm_is_raised_once_and_cleared_once_in_turns(
    script: list[tuple[int, set[str] | None, bool]], for_s: int, clear_s: int
) -> None:
    flapping, now = rule(for_s=for_s, clear_s=clear_s), NOW
    standing = Standing(remind_ms=10**12)
    told: list[Note] = []
    for seconds, subjects, again in [*script, (0, set(), False), (clear_s, set(), False)]:
        now += seconds * 1000
        if again:
            standing = Standing(standing.entries(), remind_ms=10**12)
        told += standing.look(flapping, None if subjects is None else dict.fromkeys(subjects, "wrong"), now)

    assert standing.entries() == []
    for subject in "abc":
        own = [note for note in told if note.alarm.subject == subject]
        assert [note.kind for note in own] == ["raised", "cleared"] * (len(own) // 2)
        assert [raised.raised_at for raised in own[::2]] == [cleared.raised_at for cleared in own[1::2]]
        assert all(note.lasted_ms >= for_s * 1000 for note in own[1::2])
