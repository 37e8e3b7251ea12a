"""What is an alarm, what is none, and what cannot be known."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alarming import MINUTE, NOW, changed, dead, facts, healthy, judged, mode_row
from perpline.alerts.facts import Facts, ModesSeen, OpenGap, Worker
from perpline.alerts.rules import RULES, lasted, modes_seen
from perpline.common.runbooks import page_of
from perpline.trading.mode import ModeRow

STALE = {"market-0": ["BTCUSDT markPrice@1s", "ETHUSDT bookTicker"]}
GAP = OpenGap(symbol="BTCUSDT", series="candles_1m", from_time=NOW - 3 * MINUTE, to_time=NOW, cause="lost")
DRIFT = {"judged": True, "drifting": ["rsi_14"], "signals": 90, "signals_usual": 11.0, "signals_unusual": True}

WRONG: list[tuple[str, Facts, set[str]]] = [
    ("worker_away", facts(workers=(dead(),)), {"port 9720"}),
    ("worker_away", facts(workers=(dead("no worker runs", has_token=False),)), {""}),
    ("worker_away", facts(workers=()), {""}),
    ("worker_not_ready", facts(changed(ready=False)), {""}),
    ("decisions_missing", facts(changed(now=NOW + 4 * MINUTE)), {"BTCUSDT", "ETHUSDT"}),
    ("decisions_missing", facts(changed(symbols__BTCUSDT__last_decision__status="skipped_missed")), {"BTCUSDT"}),
    ("decisions_missing", facts(changed(symbols__BTCUSDT__last_decision=None)), {"BTCUSDT"}),
    ("decisions_missing", facts(changed(ready=False, now=NOW + 4 * MINUTE)), {"BTCUSDT", "ETHUSDT"}),
    ("close_to_signal_slow", facts(close_to_signal_ms=(400.0, 600.0, 700.0)), {""}),
    ("stream_stale", facts(changed(streams__stale=STALE)), {"BTCUSDT markPrice@1s", "ETHUSDT bookTicker"}),
    ("stream_stale", facts(changed(connections__0__live=False)), {"market-0"}),
    ("stream_stale", facts(changed(connections__0__delivers_nothing="acknowledged, nothing came")), {"market-0"}),
    (
        "stream_stale",
        facts(changed(trading__modes__0__mode="live", trading__live__user_stream__live=False)),
        {"account events"},
    ),
    (
        "stream_stale",
        facts(changed(streams=None, rest_feed={"stale": {"REST": ["BTCUSDT bookTicker"]}})),
        {"BTCUSDT bookTicker"},
    ),
    ("gap_open", facts(gaps=(GAP,)), {"BTCUSDT candles_1m"}),
    ("weight_high", facts(changed(rest__weight_used=1921)), {""}),
    ("weight_high", facts(changed(rest__blocked_until=NOW + MINUTE)), {"blocked"}),
    ("clock_offset", facts(changed(clock_offset_ms=-501)), {""}),
    ("database_away", facts(database_error="it does not answer"), {""}),
    ("database_away", facts(workers=(dead(),), database_error="it does not answer"), {""}),
    ("database_away", facts(changed(spool__records=3, spool__oldest_s=2.0)), {""}),
    ("database_away", facts(changed(spool__decisions__last_error="disk full")), {""}),
    ("database_away", facts(changed(leadership__leads=False)), {""}),
    ("redis_away", facts(changed(outbox__last_error="Redis at … does not answer")), {""}),
    ("redis_away", facts(changed(rest__shared={"away": "Redis at … does not answer"})), {""}),
    ("spool_growing", facts(changed(spool__records=3, spool__oldest_s=301.0)), {""}),
    ("spool_growing", facts(changed(spool__records=3, spool__oldest_s=9.0, spool__bytes=200_000_000)), {""}),
    ("spool_growing", facts(changed(spool__error="the disk is full")), {""}),
    ("disk_low", facts(changed(room__low="the disk of /data has 12 MB left")), {"/data"}),
    (
        "protective_stop_missing",
        facts(changed(trading__accounts__paper__positions__0__naked_ms=3_001)),
        {"paper BTCUSDT"},
    ),
    ("positions_unattended", facts(live_unattended=("BTCUSDT",)), {"live"}),
    ("daily_loss_limit", facts(changed(trading__accounts__paper__equity=9_700.0)), {"paper"}),
    ("mode_changed", facts(modes=(mode_row(1, "paper"),), modes_seen=ModesSeen(id=0)), {"all"}),
    ("model_drift", facts(changed(models__drift={"today": DRIFT, "yesterday": None})), {"m1"}),
    ("model_drift", facts(changed(models__drift={"today": {"judged": False}, "yesterday": DRIFT})), {"m1"}),
    ("parity_failed", facts(changed(parity={"date": "2026-11-19", "error": "no rows"})), {""}),
    (
        "parity_failed",
        facts(changed(parity={"date": "2026-11-19", "ok": False, "mismatch_cells": 3, "mismatch_probabilities": 0})),
        {""},
    ),
]


@pytest.mark.parametrize(("name", "seen", "subjects"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_wrong_is_found_and_said(name: str, seen: Facts, subjects: set[str]) -> None:
    found = judged(name, seen)

    assert found is not None
    assert found.keys() == subjects
    assert all(found.values())


def test_every_rule_but_that_of_standbys_has_a_case_here() -> None:
    assert {name for name, _, _ in WRONG} | {"standby_lost"} == RULES.keys()


@pytest.mark.parametrize("name", RULES)
def test_a_healthy_worker_raises_nothing(name: str) -> None:
    assert not judged(name, facts(modes=(mode_row(1, "paper"),), modes_seen=ModesSeen(id=1)))


@pytest.mark.parametrize("name", sorted(RULES.keys() - {"worker_away", "database_away"}))
def test_of_a_worker_that_is_away_nothing_else_is_claimed(name: str) -> None:
    """Neither that it is wrong nor that it is well again."""
    away = Facts(now_ms=NOW, workers=(dead(),), database_error="")

    assert judged(name, away) is None


def test_a_worker_that_stopped_in_order_beside_one_that_runs_is_no_alarm() -> None:
    runs = Worker(port=9721, status=healthy())

    assert judged("worker_away", facts(workers=(runs, dead(has_token=False)))) == {}
    assert judged("worker_away", facts(workers=(runs, dead()))) == {"port 9720": dead().error}


@pytest.mark.parametrize(("meant", "found"), [(1, {}), (2, {""})])
def test_a_standby_is_missed_where_one_is_meant_to_be(meant: int, found: set[str]) -> None:
    assert (judged("standby_lost", facts(), alert_workers=meant) or {}).keys() == set(found)


def test_who_stands_by_misses_no_decisions() -> None:
    waits = changed(now=NOW + 9 * MINUTE, leadership={"leads": False, "holds": False, "leader": "there"})

    assert judged("decisions_missing", facts(waits)) is None


@pytest.mark.parametrize(
    "starts",
    [
        changed(ready=False, started_at=NOW - 2 * MINUTE, symbols__BTCUSDT__last_decision__status="skipped_missed"),
        changed(started_at=NOW - 2 * MINUTE, symbols__BTCUSDT__last_decision=None),
        changed(symbols__BTCUSDT__last_decision=None, symbols__BTCUSDT__expected_after=NOW - 2 * MINUTE),
        changed(symbols__BTCUSDT__last_decision=None, symbols__BTCUSDT__expected_after=None),
        changed(symbols__BTCUSDT__last_decision=None, universe={"not_trading": {"BTCUSDT": "HALT"}}),
    ],
)
def test_a_start_a_new_symbol_and_a_halted_one_miss_no_decisions(starts: dict[str, Any]) -> None:
    assert not judged("decisions_missing", facts(starts))


def role(name: str, **changes: Any) -> Worker:
    status = {"role": name, "ready": False, "now": NOW, "speed": 1.0, "started_at": NOW - 9 * MINUTE, **changes}
    return Worker(port=9720, status=status)


@pytest.mark.parametrize(
    ("until", "changes", "wrong"),
    [
        (NOW - 2 * MINUTE, {}, False),
        (NOW - 4 * MINUTE, {}, True),
        (0, {}, True),
        (0, {"started_at": NOW - MINUTE}, False),
    ],
)
def test_where_inference_workers_decide_the_newest_decision_of_the_slot_tells(
    until: int, changes: dict[str, Any], wrong: bool
) -> None:
    seen = facts(workers=(role("inference", **changes), role("collector", symbols={}, **changes)), decided_until=until)

    assert bool(judged("decisions_missing", seen)) == wrong


@pytest.mark.parametrize(
    ("name", "subject"), [("protective_stop_missing", "live BTCUSDT"), ("daily_loss_limit", "live")]
)
def test_what_stood_of_an_account_that_nobody_looks_after_is_not_over(name: str, subject: str) -> None:
    gone = facts(changed(trading__accounts={}))
    back = facts(changed(trading__accounts__live={"equity": 9.0, "day_equity": 9.0, "positions": []}))

    assert (judged(name, gone, [subject]) or {}).keys() == {subject}
    assert judged(name, gone) == judged(name, back, [subject]) == {}


def test_of_two_workers_the_leader_is_believed_and_both_are_heard() -> None:
    waits = changed(
        streams__stale={"market-1": ["BTCUSDT markPrice@1s", "ETHUSDT kline_1m"]},
        leadership={"leads": False, "holds": False, "leader": "there"},
    )
    both = (Worker(port=1, status=waits), Worker(port=2, status=changed(streams__stale=STALE)))

    found = judged("stream_stale", facts(workers=both))

    assert found is not None
    assert found.keys() == {"BTCUSDT markPrice@1s", "ETHUSDT bookTicker", "ETHUSDT kline_1m"}
    assert "market-0" in found["BTCUSDT markPrice@1s"]


@pytest.mark.parametrize(
    ("name", "hovers"),
    [
        ("weight_high", facts(changed(rest__weight_used=1700))),
        ("close_to_signal_slow", facts(close_to_signal_ms=(460.0,))),
        ("clock_offset", facts(changed(clock_offset_ms=470))),
        ("spool_growing", facts(changed(spool__records=1, spool__oldest_s=1.0))),
    ],
)
def test_what_hovers_at_a_limit_is_no_alarm_and_ends_none(name: str, hovers: Facts) -> None:
    assert judged(name, hovers) == {}
    assert judged(name, hovers, standing=[""]) != {}


def test_a_loss_that_hovers_at_the_limit_goes_on_to_stand() -> None:
    hovers = facts(changed(trading__accounts__paper__equity=9_710.0))

    assert judged("daily_loss_limit", hovers) == {}
    assert judged("daily_loss_limit", hovers, standing=["paper"]) != {}


@pytest.mark.parametrize("changes", [{"speed": 60.0}, {"exchange": {"rest": "http://127.0.0.1:4455"}}])
def test_the_clock_of_a_simulated_market_is_nobodys_fault(changes: dict[str, Any]) -> None:
    assert judged("clock_offset", facts(changed(clock_offset_ms=-90_000_000, **changes))) is None


def test_messages_that_wait_because_the_database_is_away_are_not_laid_on_redis() -> None:
    both = changed(outbox__last_error="the database is away", spool__decisions__last_error="the database is away")

    assert judged("redis_away", facts(both)) is None


def told_of(*rows: tuple[int, ModeRow], after: int = 0, now: int = NOW) -> dict[str, str] | None:
    """What is said of the modes to those who know the rows up to this one."""
    return judged("mode_changed", facts(changed(now=now), modes=rows, modes_seen=ModesSeen(id=after)))


def test_a_mode_is_told_with_its_old_value_its_end_and_who_set_it() -> None:
    own = mode_row(2, "live", "BTCUSDT", until=NOW + 60 * MINUTE)

    assert told_of(mode_row(1, "paper"), own, after=1) == {
        "BTCUSDT": "paper → live until 15:00, by me@here: why not",
    }


def test_a_mode_that_ends_on_another_day_is_told_with_the_date_of_its_end() -> None:
    found = told_of(mode_row(1, "live", until=NOW + 2 * 1440 * MINUTE))

    end = datetime.fromtimestamp(NOW / 1000, UTC) + timedelta(days=2)
    assert found == {"all": f"off → live until {end:%Y-%m-%d %H:%M} UTC, by me@here: why not"}


def test_the_first_mode_that_is_ever_set_is_a_change() -> None:
    assert told_of(mode_row(1, "paper")) == {"all": "off → paper, by me@here: why not"}


@pytest.mark.parametrize("own", ["paper", "live"])
def test_off_for_all_names_the_symbols_whose_own_mode_it_ends(own: str) -> None:
    """Also where all the others were off already."""
    rows = mode_row(1, own, "BTCUSDT"), mode_row(2, "off")

    assert told_of(*rows, after=1) == {"all": f"off (before: BTCUSDT {own}), by me@here: why not"}


def test_two_changes_within_one_look_are_both_told() -> None:
    rows = mode_row(1, "paper"), mode_row(2, "off"), mode_row(3, "paper", "BTCUSDT")

    assert told_of(*rows, after=1) == {
        "all": "paper → off, by me@here: why not",
        "BTCUSDT": "off → paper, by me@here: why not",
    }


def test_off_and_on_again_within_one_look_is_one_line_in_order() -> None:
    rows = mode_row(1, "live"), mode_row(2, "off", positions="flatten"), mode_row(3, "live")

    assert told_of(*rows, after=1) == {
        "all": "live → off, positions: flatten, by me@here: why not; then off → live, by me@here: why not"
    }


def test_of_many_changes_of_one_symbol_the_last_are_told_and_those_before_are_counted() -> None:
    found = told_of(*(mode_row(id, "paper" if id % 2 else "off") for id in range(1, 10)))

    assert found is not None
    assert found["all"].startswith("4 changes; then off → paper, by")
    assert found["all"].count("→") == 5


def test_a_mode_whose_time_is_over_is_told_once() -> None:
    row = mode_row(1, "live", until=NOW + MINUTE)
    before = ModesSeen(id=1)
    said = []
    for now in (NOW, NOW + MINUTE, NOW + MINUTE - 1, NOW + 2 * MINUTE):  # a clock that is set back says nothing new
        seen = facts(changed(now=now), modes=(row,), modes_seen=before)
        said.append(judged("mode_changed", seen))
        before = modes_seen(seen) or before

    assert said == [{}, {"all": "live → off: its time is over, set by me@here: why not"}, {}, {}]


def test_of_the_first_look_nothing_is_told_also_not_what_was_over_before() -> None:
    first = facts(workers=(dead(),), modes=(mode_row(1, "live", until=NOW - 1),))

    assert judged("mode_changed", first) is None
    assert judged("mode_changed", facts(modes=first.modes, modes_seen=modes_seen(first))) == {}


def test_a_table_that_was_begun_anew_is_a_first_look() -> None:
    anew = facts(modes=(mode_row(1, "live"),), modes_seen=ModesSeen(id=7, over=(1,)))

    assert judged("mode_changed", anew) is None
    assert modes_seen(anew) == ModesSeen(id=1)


def test_modes_that_could_not_be_read_are_no_change_and_nothing_is_forgotten() -> None:
    unread = facts(database_error="away", modes_seen=ModesSeen(id=3, over=(2,)))

    assert judged("mode_changed", unread) is None
    assert modes_seen(unread) == ModesSeen(id=3, over=(2,))


some_rows = st.lists(
    st.tuples(
        st.sampled_from(["off", "paper", "live"]),
        st.sampled_from(["", "AUSDT", "BUSDT"]),
        st.none() | st.integers(1, 9),
    ),
    max_size=9,
)


@given(some_rows, st.lists(st.integers(0, 9), max_size=6))
def test_however_the_looks_fall_each_row_is_told_once_and_each_end_at_most_once(
    script: list[tuple[str, str, int | None]], looks: list[int]
) -> None:
    rows = [
        mode_row(
            id, mode, symbol, changed_at=NOW + id, until=None if lasts is None else NOW + id + lasts, reason=f"r{id}"
        )
        for id, (mode, symbol, lasts) in enumerate(script, 1)
    ]
    known, said = ModesSeen(id=0), ""
    for count in [*sorted(looks), len(rows), 99]:
        seen = facts(changed(now=NOW + count), modes=tuple(rows[:count]), modes_seen=known)
        said += "".join(f"{text}\n" for text in (judged("mode_changed", seen) or {}).values()).replace("; then ", "\n")
        known = modes_seen(seen) or known
    lines = said.splitlines()
    shown = [line for line in lines if "its time is over" not in line and not line.endswith(" changes")]
    hidden = sum(int(line.split()[0]) for line in lines if line.endswith(" changes"))

    assert len(shown) + hidden == len(rows)
    assert len(set(lines)) == len(lines) or hidden
    ends = [line.rpartition(" ")[2] for line in lines if "its time is over" in line]
    assert len(set(ends)) == len(ends)


@pytest.mark.parametrize(
    ("base", "address"),
    [
        ("", "docs/runbooks/disk_low.md"),
        ("https://example.com/runbooks/", "https://example.com/runbooks/disk_low"),
        ("https://example.com/runbooks", "https://example.com/runbooks/disk_low"),
        ("https://example.com/{name}.html#mend", "https://example.com/disk_low.html#mend"),
    ],
)
def test_a_runbook_is_a_path_or_an_address_under_runbook_url(base: str, address: str) -> None:
    assert page_of("disk_low", base) == address


def test_an_inference_worker_has_fewer_facts_and_no_rule_stumbles_over_it() -> None:
    drift = {"today": None, "yesterday": None}
    status = {
        "role": "inference",
        "ready": True,
        "slot": "champion",
        "model": "m1",
        "models": {"drift": drift},
        "now": NOW,
        "speed": 1.0,
        "clock_offset_ms": 3,
        "decisions": {},
        "group": {},
        "lease": {"leads": True, "holds": True},
        "outbox": {"last_error": ""},
        "trouble": [],
    }

    assert {name for name in RULES if judged(name, facts(status, modes=(), modes_seen=ModesSeen(id=0)))} == set()


@pytest.mark.parametrize(
    ("ms", "words"), [(-5, "0 s"), (59_999, "59 s"), (192_000, "3 min 12 s"), (3_600_000 * 26 + 60_000, "26 h 1 min")]
)
def test_how_long_is_said_in_words(ms: int, words: str) -> None:
    assert lasted(ms) == words
