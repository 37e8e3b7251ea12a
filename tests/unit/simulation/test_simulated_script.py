"""Scripted prices: what a script says is what the exchange shows, and candles stay the trades it publishes."""

import json
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpline.simulation.exchange import Exchange, candle_of_trades
from perpline.simulation.feed import Hour
from perpline.simulation.market import CLOSE, HOUR_MS, MINUTE_MS, TRADES, World
from perpline.simulation.script import Path, Row, paths, quote, read_script, row_of

HOUR = 1_795_400_000_000 // HOUR_MS
START = HOUR * HOUR_MS
BTC = 0


@pytest.fixture
def exchange():
    return Exchange(World(5, 2))


def script(exchange, *points, begins=0, start=START, shape="linear"):
    rows = [Row("BTCUSDT", time, price, mark, shape) for time, price, mark in points]
    [path] = paths(rows, exchange.index_of, start, begins, lambda index: 100.0).values()
    exchange.follow(BTC, path)


def test_the_mark_of_every_second_is_what_the_script_says(exchange):
    script(exchange, (600, 80_000, None), (630, 81_500, None))

    marks = [exchange.mark(BTC, START + second * 1000).mark for second in (600, 601, 615, 629, 630, 3599)]

    assert marks == [80_000.0, 80_050.0, 80_750.0, 81_450.0, 81_500.0, 81_500.0]
    assert exchange.mark(BTC, START + HOUR_MS).mark == 81_500.0


def test_before_its_first_row_a_script_changes_nothing(exchange):
    plain = Exchange(World(5, 2))
    script(exchange, (600, 80_000, None))

    assert exchange.minutes(BTC, HOUR * 60, 10).tolist() == plain.minutes(BTC, HOUR * 60, 10).tolist()
    assert [exchange.mark(BTC, START + second * 1000) for second in range(0, 600, 7)] == [
        plain.mark(BTC, START + second * 1000) for second in range(0, 600, 7)
    ]
    assert exchange.minutes(1, HOUR * 60, 60).tolist() == plain.minutes(1, HOUR * 60, 60).tolist()


def test_the_other_contracts_follow_their_world(exchange):
    plain = Exchange(World(5, 2))
    script(exchange, (0, 80_000, None))

    assert exchange.minutes(1, HOUR * 60, 60).tolist() == plain.minutes(1, HOUR * 60, 60).tolist()
    assert exchange.book(1, START + 5_000) == plain.book(1, START + 5_000)


def test_best_bid_and_ask_are_around_the_price_at_once(exchange):
    script(exchange, (60, 80_000, None), (60.5, 70_000, None), shape="step")

    before, after = exchange.book(BTC, START + 60_400), exchange.book(BTC, START + 60_700)

    # A tick is 0.10, ten units of price; now and then one side is a tick further out.
    assert 7_999_970 <= before.bid <= 8_000_000 < before.ask <= 8_000_040
    assert 6_999_970 <= after.bid <= 7_000_000 < after.ask <= 7_000_040


def test_a_mark_of_its_own_moves_apart_from_what_is_traded(exchange):
    script(exchange, (0, 80_000, 80_000), (100, 80_000, 72_000))

    assert exchange.mark(BTC, START + 50_000).mark == 76_000.0
    assert abs(exchange.book(BTC, START + 50_000).bid - 8_000_000) <= 50


def test_rows_of_one_instant_are_a_step(exchange):
    script(exchange, (0, 100, None), (10, 200, None), (10, 50, None), (20, 60, None))

    assert [exchange.mark(BTC, START + second * 1000).mark for second in (0, 9, 10, 20)] == [100.0, 190.0, 50.0, 60.0]


@settings(max_examples=15, deadline=None)
@given(
    points=st.lists(st.tuples(st.floats(0, 9_000), st.floats(1e3, 1e6)), min_size=1, max_size=6),
    shape=st.sampled_from(["linear", "step"]),
    later=st.none() | st.tuples(st.integers(0, 9_000), st.floats(1e3, 1e6)),
)
def test_candles_are_the_trades_whatever_the_script(points, shape, later):
    exchange = Exchange(World(6, 1))
    script(exchange, *((time, price, None) for time, price in points), shape=shape)
    if later is not None:
        script(exchange, (0, later[1], None), begins=START + later[0] * 1000)
    rows = exchange.minutes(BTC, HOUR * 60 - 1, 121)
    close = int(rows[0, CLOSE])
    for hour in (0, 1):
        detail = exchange.detail(BTC, HOUR + hour)
        for minute in range(60):
            begins = START + hour * HOUR_MS + minute * MINUTE_MS
            first, last = np.searchsorted(detail.time_ms, [begins, begins + MINUTE_MS])
            row = rows[1 + hour * 60 + minute].tolist()
            if first < last:
                assert row == candle_of_trades(detail, int(first), int(last))
            else:
                assert row[:5] == [close] * 4 + [0]
                assert row[TRADES] == 0
            close = row[CLOSE]
        course = exchange.courses[BTC]
        for at in range(0, len(detail.time_ms), 17):
            scripted = quote(
                exchange.world.detail(BTC, HOUR + hour), exchange.instruments[BTC], course, int(detail.time_ms[at])
            )
            if scripted is not None:
                assert detail.price[at] == scripted[0 if detail.buyer_is_maker[at] else 1]
        marks = exchange.price_klines(BTC, 0, "1m", START + hour * HOUR_MS, None, 60, START + 2 * HOUR_MS)
        assert [float(row[4]) for row in marks] == pytest.approx(
            [exchange.mark(BTC, row[6] // 1000 * 1000).mark for row in marks], abs=1e-8
        )


def test_an_hour_that_is_being_played_takes_up_a_script(exchange):
    hour = Hour(exchange.world.details(range(2), HOUR))
    plain = hour.play(START, START + HOUR_MS)
    script(exchange, (0, 50_000, None), begins=START + 1_800_000)

    hour.follow(BTC, lambda base: exchange.followed(BTC, base))
    played = hour.play(START, START + HOUR_MS)

    assert [trade[:2] + trade[3:] for trade in played] == [trade[:2] + trade[3:] for trade in plain]
    detail = exchange.detail(BTC, HOUR)
    assert [trade[2] for trade in played if trade[1] == BTC] == detail.price.tolist()
    assert hour.marks(HOUR * 3600 + 1799)[0][BTC] != 50_000
    assert hour.marks(HOUR * 3600 + 1800)[0][BTC] == 50_000


def test_a_contract_let_go_is_back_at_its_world_and_keeps_its_past(exchange):
    plain = Exchange(World(5, 2))
    script(exchange, (0, 80_000, None))
    exchange.follow(BTC, Path(START + 600_000))

    assert exchange.mark(BTC, START + 599_000).mark == 80_000
    assert exchange.mark(BTC, START + 600_000).mark == plain.mark(BTC, START + 600_000).mark
    assert exchange.minutes(BTC, HOUR * 60 + 11, 40).tolist() == plain.minutes(BTC, HOUR * 60 + 11, 40).tolist()


def test_funding_is_settled_at_the_scripted_mark(exchange):
    settled = exchange.funding(BTC, START - 24 * HOUR_MS, START + 24 * HOUR_MS, 10, latest=True)
    script(exchange, (0, 80_000, None), start=START - 100 * HOUR_MS)

    assert {
        row["markPrice"] for row in exchange.funding(BTC, START - 24 * HOUR_MS, START + 24 * HOUR_MS, 10, True)
    } == {"80000.00000000"}
    assert len(settled) == 6


# ---- files


def test_csv_json_lines_and_a_json_array_say_the_same():
    table = "# falls\nsymbol,time,price,shape\nBTCUSDT,0,84000,step\n\nBTCUSDT,30.5,83000,\n"
    objects = [
        {"symbol": "BTCUSDT", "time": 0, "price": "84000", "shape": "step"},
        {"symbol": "BTCUSDT", "time": 30.5, "price": 83_000},
    ]
    texts = (table, "\n".join(map(json.dumps, objects)), json.dumps(objects))

    found = [paths(read_script(text.encode()), {"BTCUSDT": 0}, START, 0, lambda index: 1.0)[0] for text in texts]

    expected = Path(START, (START, START + 30_500), (84_000.0, 83_000.0), (84_000.0, 83_000.0), ("step", "linear"))
    assert found == [expected] * 3


@pytest.mark.parametrize(
    ("time", "expected"),
    [(30, START + 30_000), (START, START), ("2026-11-23T04:00", 1_795_406_400_000), ("30.25", START + 30_250)],
)
def test_times_are_seconds_milliseconds_or_iso(time, expected):
    row = row_of({"symbol": "X", "time": time, "price": 1})

    assert paths([row], {"X": 0}, START, 0, lambda index: 1.0)[0].times_ms == (expected,)


def test_a_price_may_be_a_change_of_the_mark():
    rows = [row_of({"symbol": "X", "time": 0, "price": "-2.5%", "mark": "+10 %"})]

    path = paths(rows, {"X": 0}, START, 0, lambda index: 200.0)[0]

    assert (Decimal(str(path.prices[0])), path.marks[0]) == (Decimal("195.0"), pytest.approx(220.0))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("symbol,time,price\nBTCUSDT,0,none\n", "line 2: no price: 'none'"),
        ("symbol,time,price\nBTCUSDT,0,1\nBTCUSDT,soon,2\n", "line 3: no time: 'soon'"),
        ("symbol,time,price\nBTCUSDT,0,-5\n", "not above 0"),
        ("symbol,time,price\nBTCUSDT,0,inf\n", "not above 0 and finite"),
        ("symbol,time\nBTCUSDT,0\n", "missing required field `price`"),
        ("symbol,time,price,colour\nBTCUSDT,0,1,red\n", "unknown field `colour`"),
        ('{"symbol":"BTCUSDT","time":0,"price":1,"shape":"round"}', "line 1: no row of a script"),
        ('{"symbol":', "line 1:"),
        ("[1]", "no row of a script"),
        ("[", "no JSON"),
    ],
)
def test_what_is_no_script_is_refused_with_its_line(text, said):
    with pytest.raises(ValueError, match=said.replace("(", "\\(")):
        read_script(text.encode())


def test_a_script_of_an_unknown_contract_is_refused():
    with pytest.raises(ValueError, match="NOPEUSDT is no contract"):
        paths([Row("NOPEUSDT", 0, 1.0)], {"BTCUSDT": 0}, START, 0, lambda index: 1.0)
