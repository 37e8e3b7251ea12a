"""What is an alarm, what is none, and what cannot be known."""

from typing import Any

import pytest

from alarming import MINUTE, NOW, changed, dead, facts, healthy, judged
from perpline.alerts.facts import Facts, OpenGap, Worker
from perpline.alerts.rules import RULES, lasted, modes_now

STALE = {"market-0": ["BTCUSDT markPrice@1s", "ETHUSDT bookTicker"]}
GAP = OpenGap(symbol="BTCUSDT", series="candles_1m", from_time=NOW - 3 * MINUTE, to_time=NOW, cause="lost")
MODE = {"symbol": "", "until": None, "by": "me@here", "reason": "why not", "positions": "keep"}
DRIFT = {"judged": True, "drifting": ["rsi_14"], "signals": 90, "signals_usual": 11.0, "signals_unusual": True}

WRONG: list[tuple[str, Facts, set[str]]] = [
    ("worker_away", facts(workers=(dead(),)), {"port 9720"}),
    ("worker_away", facts(workers=(dead("no worker runs", has_token=False),)), {""}),
    ("worker_away", facts(workers=()), {""}),
    ("worker_not_ready", facts(changed(ready=False)), {""}),
    ("decisions_missing", facts(changed(now=NOW + 4 * MINUTE)), {"BTCUSDT", "ETHUSDT"}),
    ("decisions_missing", facts(changed(symbols__BTCUSDT__last_decision__status="skipped_missed")), {"BTCUSDT"}),
    ("close_to_signal_slow", facts(close_to_signal_ms=(400.0, 600.0, 700.0)), {""}),
    ("stream_stale", facts(changed(streams__stale=STALE)), {"BTCUSDT markPrice@1s", "ETHUSDT bookTicker"}),
    ("stream_stale", facts(changed(connections__0__live=False)), {"market-0"}),
    ("stream_stale", facts(changed(connections__0__delivers_nothing="acknowledged, nothing came")), {"market-0"}),
    (
        "stream_stale",
        facts(changed(trading__modes__0__mode="live", trading__live__user_stream__live=False)),
        {"account events"},
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
    ("daily_loss_limit", facts(changed(trading__accounts__paper__equity=9_700.0)), {"paper"}),
    ("mode_changed", facts(modes_before={"all": "off"}), {"all"}),
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
    assert not judged(name, facts(modes_before={"all": "paper"}))


@pytest.mark.parametrize("name", RULES.keys() - {"worker_away", "database_away"})
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


def test_a_mode_is_told_with_its_old_value_and_who_set_it() -> None:
    own = {**MODE, "symbol": "BTCUSDT", "mode": "live", "until": NOW + 60 * MINUTE}
    seen = facts(changed(trading__modes=[{**MODE, "mode": "paper"}, own]), modes_before={"all": "paper"})

    assert judged("mode_changed", seen) == {"BTCUSDT": "paper → live until 15:00, by me@here: why not"}
    assert modes_now(seen) == {"all": "paper", "BTCUSDT": "live"}


def test_modes_that_a_worker_has_not_read_yet_are_no_change() -> None:
    """Before its first look it says `off` in nobody's name."""
    unread = changed(trading__modes=[{**MODE, "mode": "off", "by": ""}])

    assert judged("mode_changed", facts(unread, modes_before={"all": "live"})) is None
    assert modes_now(facts(unread, modes_before={"all": "live"})) is None


def test_the_first_mode_that_is_ever_set_is_a_change() -> None:
    nobody = changed(trading__modes=[{**MODE, "mode": "off", "by": ""}])

    assert judged("mode_changed", facts(modes_before=modes_now(facts(nobody)))) == {
        "all": "off → paper, by me@here: a test"
    }


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

    assert {name for name in RULES if judged(name, facts(status, modes_before={}))} == set()


@pytest.mark.parametrize(
    ("ms", "words"), [(-5, "0 s"), (59_999, "59 s"), (192_000, "3 min 12 s"), (3_600_000 * 26 + 60_000, "26 h 1 min")]
)
def test_how_long_is_said_in_words(ms: int, words: str) -> None:
    assert lasted(ms) == words
