"""Incidents: read from texts, on at their time, gone when they are over; and what they make of the market."""

import math

import numpy as np
import pytest

from perpline.common.clock import ManualClock
from perpline.simulation.clock import ShiftedClock
from perpline.simulation.exchange import Exchange
from perpline.simulation.faults import Faults, incident, parsed
from perpline.simulation.incidents import (
    INCIDENT_NAMES,
    Delisted,
    HalfOpen,
    Halted,
    RestFault,
    Schedule,
    Silence,
    WrongClock,
)
from perpline.simulation.market import CLOSE, FIRST_ID, HIGH, LOW, OPEN, TRADES, VOLUME, World
from perpline.simulation.rest import failure

MINUTE = 60_000
NOON = 1_795_435_200_000
FIRST = NOON // MINUTE


def test_incidents_are_read_from_texts_beside_settings():
    faults = parsed(["silence", "half-open:route=market,at_s=5", "repeat_share=0.5", "rest:kind=418,banned_s=60"])

    assert faults == Faults(
        repeat_share=0.5, incidents=[Silence(), HalfOpen(route="market", at_s=5), RestFault(kind="418", banned_s=60)]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("silenc", "did you mean 'silence'"),
        ("silenc:route=all", "unknown incident 'silenc', did you mean 'silence'"),
        ("silence:rute=all", "silence not accepted: .*rute"),
        ("silence:for_s=-1", "silence not accepted"),
        ("rest:kind=200", "rest not accepted: .*200"),
        ("halted", "halted not accepted: .*symbol"),
        ("huge:size=0", "huge not accepted"),
    ],
)
def test_an_incident_that_makes_no_sense_is_refused_by_name(text, message):
    with pytest.raises(ValueError, match=message):
        parsed([text])


def test_every_name_is_an_incident():
    for name in INCIDENT_NAMES:
        assert incident({"name": name, **({"symbol": "BTCUSDT"} if name in ("listed", "delisted", "halted") else {})})


def test_an_incident_is_on_from_its_time_for_as_long_as_it_says_and_leaves_the_list_then():
    faults = Faults(incidents=[Silence(at_s=10, for_s=5)])
    schedule = Schedule(lambda: faults.incidents)
    seen = []
    for now in (0, 9_999, 10_000, 14_999, 15_000):
        begins, over = schedule.turn(now)
        seen.append((len(begins), len(over), len(schedule.on(Silence)), len(faults.incidents)))

    assert seen == [(0, 0, 0, 1), (0, 0, 0, 1), (1, 0, 1, 1), (0, 0, 1, 1), (0, 1, 0, 0)]


def test_an_incident_that_is_taken_away_is_over():
    faults = Faults(incidents=[Silence(), HalfOpen(at_s=60)])
    schedule = Schedule(lambda: faults.incidents)
    [(silence, start, end)], _ = schedule.turn(1_000)
    faults.incidents = []
    begins, over = schedule.turn(2_000)

    assert (start, end) == (1_000, math.inf)
    assert (begins, over, schedule.on(Silence)) == ([], [silence], [])


def test_what_befalls_the_market_is_known_beforehand():
    schedule = Schedule(lambda: [Delisted(symbol="BTCUSDT", at_s=300)])

    assert schedule.turn(0) == ([(Delisted(symbol="BTCUSDT", at_s=300), 300_000, math.inf)], [])


def test_a_rest_fault_hits_its_path_so_many_times():
    schedule = Schedule(lambda: incidents)
    incidents = [RestFault(kind="429", path="/fapi/v1/klines", times=2), RestFault(kind="500", share=0.5)]
    schedule.turn(0)
    hits = [schedule.rest_fault("/fapi/v1/klines", lambda: 0.9) for _ in range(3)]

    assert [hit and hit.kind for hit in hits] == ["429", "429", None]
    assert schedule.rest_fault("/fapi/v1/time", lambda: 0.4).kind == "500"
    assert schedule.rest_fault("/sim/state", lambda: 0.4) is None


@pytest.mark.parametrize(
    ("kind", "status", "text"),
    [
        ("403", 403, b"<html>"),
        ("408", 408, b"-1007"),
        ("500", 500, b"Request occur unknown error."),
        ("502", 502, b"<html>"),
        ("503a", 503, b"Unknown error, please check your request or try again later."),
        ("503b", 503, b"Service Unavailable."),
        ("503c", 503, b"Internal error; unable to process your request. Please try again."),
        ("503d", 503, b'{"code":-1008,"msg":"Request throttled by system-level protection.'),
        ("429", 429, b'{"code":-1003,"msg":"Too many requests; current limit'),
        ("418", 418, b"banned until 1060000."),
        ("empty", 200, b""),
    ],
)
def test_a_failure_has_the_documented_status_and_text(kind, status, text):
    answer = failure(RestFault(kind=kind, retry_after_s=7, banned_s=60), "127.0.0.1", 1_000_000)

    assert (answer.status, text in answer.body) == (status, True)
    assert ("Retry-After" in answer.headers) == (kind in ("429", "418"))
    assert failure(RestFault(kind="418"), "::1", 0).headers == {}


def test_a_clock_can_be_off_drift_and_step_back():
    steady = ManualClock(1_000_000)
    clock = ShiftedClock(steady)
    clock.shift(1, 1_000_000, 500, 0.0)
    clock.shift(2, 1_000_000, 0, 1_000.0)
    steady.advance(100)

    assert clock.now_ms() == 1_100_000 + 500 + 100
    clock.unshift(1)
    assert clock.now_ms() == 1_100_000 + 100


def test_a_halted_contract_stands_at_its_last_close_and_goes_on_where_the_world_is():
    exchange, world = Exchange(World(5, 3)), World(5, 3)
    before = world.minutes(2, FIRST - 10, 70)
    exchange.halt(1, 2, NOON - 5, NOON + 20 * MINUTE)
    rows = exchange.minutes(2, FIRST - 10, 70)

    assert (rows[:10] == before[:10]).all()
    assert (rows[30:] == before[30:]).all()
    assert (rows[10:30, OPEN : CLOSE + 1] == before[9, CLOSE]).all()
    assert (rows[10:30, VOLUME:FIRST_ID] == 0).all()
    assert (rows[10:30, FIRST_ID:] == -1).all()
    assert exchange.status(2, NOON) == "TRADING_HALT"
    assert exchange.book(2, NOON + 60_000) == exchange.book(2, NOON - 1)


def test_rows_do_not_depend_on_where_one_begins_to_look():
    exchange = Exchange(World(5, 30))
    exchange.quieten(1, 29, NOON, NOON + 300 * MINUTE, 0.5, True, seed=3)
    whole = exchange.minutes(29, FIRST - 5, 310)
    parts = np.concatenate([exchange.minutes(29, FIRST - 5 + at, 1) for at in range(310)])

    assert (whole == parts).all()
    assert 120 < (whole[5:305, TRADES] == 0).sum() < 190
    flat = whole[1:, TRADES] == 0
    assert (whole[1:][flat][:, OPEN] == whole[:-1][flat][:, CLOSE]).all()
    assert (whole[:, LOW] <= whole[:, HIGH]).all()


def test_an_hour_shows_no_trade_of_a_minute_that_had_none():
    exchange = Exchange(World(5, 1))
    exchange.halt(1, 0, NOON + 3 * MINUTE, NOON + 5 * MINUTE)
    detail = exchange.detail(0, NOON // 3_600_000)
    minutes = (detail.time_ms - NOON) // MINUTE

    assert sorted(set(range(60)) - set(minutes.tolist())) == [3, 4]
    assert (detail.minutes == exchange.minutes(0, FIRST, 60)).all()


def test_a_contract_is_listed_and_delisted_at_whole_minutes_in_every_interval():
    exchange = Exchange(World(5, 1))
    exchange.enlist(0, NOON + 90_000)
    exchange.delist(0, NOON + 20 * MINUTE)
    now = NOON + 90 * MINUTE
    ones = exchange.closed_candles(0, "1m", 0, now, now)
    fifteens = exchange.closed_candles(0, "15m", 0, now, now)

    assert [ones[0][0], ones[-1][0]] == [NOON + 2 * MINUTE, NOON + 19 * MINUTE]
    assert [row[0] for row in fifteens] == [NOON, NOON + 15 * MINUTE]
    assert fifteens[0][8] == sum(int(row[8]) for row in ones[:13])
    assert fifteens[1][4] == ones[-1][4]
    assert exchange.klines(0, "1m", None, None, 3, now) == ones[-3:]
    assert [exchange.is_known(0, NOON), exchange.status(0, NOON + 3 * MINUTE), exchange.status(0, now)] == [
        False,
        "TRADING",
        "SETTLING",
    ]


def test_incidents_survive_a_round_through_json():
    import msgspec

    faults = Faults(incidents=[WrongClock(offset_ms=5), Halted(symbol="X", for_s=3)])

    assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(faults)), Faults) == faults
