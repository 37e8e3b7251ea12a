"""What every store promises (perpline.storage.store.Store)."""

import asyncio
import math
import os
import random
import signal
import sys
import textwrap
from collections.abc import Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from databases import Database, SqliteDatabase
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import astuple, replace

from perpline.common.errors import NeedsPerson
from perpline.domain.candle import Candle
from perpline.domain.signal import Decision, Message, Prediction, Status, signal_id
from perpline.storage.store import (
    LOGICAL,
    TABLES,
    TRADING_TABLES,
    Assumed,
    Deployment,
    ModelRow,
    Row,
    Store,
    candle_row,
)
from postgres_server import PostgresDatabase
from running import eventually

MINUTE = 60_000
DAY = 1440 * MINUTE
T0 = 1_795_219_260_000

in_a_used_database = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
fresh_slot = (f"slot{n}" for n in count())


def candle(symbol: str, open_time: int, close: float = 1.75, interval: str = "1m", synthetic: bool = False) -> Candle:
    return Candle(
        interval=interval,
        symbol=symbol,
        open_time=open_time,
        close_time=open_time + MINUTE - 1,
        open=1.5,
        high=2.5,
        low=0.1 + 0.2,
        close=close,
        volume=100.125,
        quote_volume=1e12,
        trades=7,
        taker_buy_volume=0.0,
        taker_buy_quote_volume=5e-324,
        log_open=-(2**40),
        log_high=2,
        log_low=3,
        log_close=2**40,
        synthetic=synthetic,
        source="ws",
        received_at=open_time + MINUTE,
    )


def decision(
    symbol: str, close_time: int, slot: str = "champion", status: Status = Status.FLAT, side: int = 0
) -> Decision:
    return Decision(
        signal_id=signal_id(slot, "model", symbol, close_time),
        slot=slot,
        symbol=symbol,
        close_time=close_time,
        side=side,
        status=status,
        p_raw=0.1,
        ref_mark="1.50",
    )


def prediction(symbol: str, close_time: int, slot: str = "champion", model_id: str = "model") -> Prediction:
    return Prediction(
        slot=slot,
        symbol=symbol,
        close_time=close_time,
        model_id=model_id,
        p_long_raw=0.1,
        p_short_raw=None,
        p_long=0.2,
        p_short=0.3,
        features=b"\x00\xff\x80",
        feat_ref="00",
    )


def message(symbol: str, close_time: int, slot: str = "champion", kind: str = "signal", payload: str = "{}") -> Message:
    return Message(
        id=0,
        kind=kind,
        slot=slot,
        symbol=symbol,
        close_time=close_time,
        payload=payload,
        valid_until=close_time + 30_000,
    )


async def commit(store: Store, decisions: Sequence[Decision], t_commit: int = 1) -> list[Decision]:
    """Commit decisions, each with its prediction and message."""
    committed = await store.commit_decisions(
        decisions,
        [prediction(one.symbol, one.close_time, one.slot) for one in decisions],
        [message(one.symbol, one.close_time, one.slot) for one in decisions],
        t_commit,
    )
    return committed.decisions


# Rows in batches


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
async def test_a_row_written_twice_is_stored_once(store: Store, database: Database, table: Any) -> None:
    values = example_row(table.columns, 1)

    written = [await store.add_rows(table.name, [values]) for _ in range(3)]

    assert written == [1, 0, 0]
    columns = ", ".join(f'"{column}"' for column in table.columns)
    assert database.rows(f"SELECT {columns} FROM {table.name}") == [values]


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
async def test_the_newest_row_wins_where_the_table_says_so_and_the_first_elsewhere(
    store: Store, database: Database, table: Any
) -> None:
    versions = [
        tuple(
            old if column in table.key else new
            for column, old, new in zip(
                table.columns, example_row(table.columns, 5), example_row(table.columns, n), strict=True
            )
        )
        for n in (5, 4, 7, 6)
    ]

    written = [await store.add_rows(table.name, [version]) for version in versions]

    columns = ", ".join(f'"{column}"' for column in table.columns)
    stored = database.rows(f"SELECT {columns} FROM {table.name}")
    assert stored == [versions[2] if table.newest_wins else versions[0]]
    assert written == ([1, 0, 1, 0] if table.newest_wins else [1, 0, 0, 0])


async def test_a_row_gets_what_it_lacks_and_keeps_what_it_has(store: Store, database: Database) -> None:
    def row(n: int, close: float, *told: float | None) -> Row:
        columns = ("quote_volume", "trades", "taker_buy_volume", "taker_buy_quote_volume")
        whole = dict(zip(TABLES["candles_1m"].columns, candle_row(candle("AUSDT", T0 + n * DAY, close)), strict=True))
        return tuple({**whole, **dict(zip(columns, told, strict=False))}.values())

    await store.add_rows(
        "candles_1m", [row(0, 1.5), row(1, 1.5, None, None, None, None), row(2, 1.5, None, 3, 4.0, None)]
    )
    told = [row(n, 2.5, 7.0, 8, 9.0, math.nan) for n in range(4)]

    assert await store.complete_rows("candles_1m", told) == 2
    assert await store.complete_rows("candles_1m", told) == 0
    assert await store.complete_rows("candles_1m", []) == 0

    names = "close, quote_volume, trades, taker_buy_volume, taker_buy_quote_volume"
    assert database.rows(f"SELECT {names} FROM candles_1m ORDER BY open_time") == [
        (1.5, 1e12, 7, 0.0, 5e-324),
        (1.5, 7.0, 8, 9.0, None),
        (1.5, 7.0, 3, 4.0, None),
    ]


@in_a_used_database
@given(
    arrivals=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=6),
)
async def test_any_order_of_repeated_batches_ends_in_the_same_newest_rows(
    store: Store, database: Database, arrivals: list[tuple[int, int]], cuts: list[int]
) -> None:
    symbol = next(fresh_slot)
    columns = TABLES["premium_index"].columns
    rows = [(symbol, minute, *example_row(columns, updated)[2:]) for minute, updated in arrivals]
    bounds = [0, *sorted(cuts), len(rows)]

    for start, end in pairwise(bounds):
        await store.add_rows("premium_index", rows[start:end])
        await store.add_rows("premium_index", rows[:end])

    newest = {minute: updated for minute, updated in sorted(arrivals)}
    expected = [(symbol, minute, *example_row(columns, updated)[2:]) for minute, updated in sorted(newest.items())]
    assert database.rows(f"SELECT * FROM premium_index WHERE symbol = '{symbol}' ORDER BY minute") == expected


async def test_a_large_batch_is_stored_whole(store: Store) -> None:
    rows = [candle_row(candle(f"S{n % 7}USDT", n // 7 * MINUTE)) for n in range(1000)]

    assert await store.add_rows("candles_1m", rows) == 1000
    assert await store.add_rows("candles_1m", rows) == 0
    assert (await store.row_counts())["candles_1m"] == 1000


async def test_an_empty_batch_is_nothing(store: Store) -> None:
    assert await store.add_rows("candles_1m", []) == 0


async def test_a_row_the_table_cannot_hold_is_a_bug_and_takes_its_batch_with_it(store: Store) -> None:
    good = candle_row(candle("AUSDT", 0))
    bad = [good[:-1], candle_row(candle("BUSDT", 0, close=float("nan")))]
    changes = ((1.5, "1.5x"), ("ws", None))
    bad += [tuple(wrong if value == right else value for value in good) for right, wrong in changes]

    for row in bad:
        with pytest.raises(ValueError, match="refused"):
            await store.add_rows("candles_1m", [good, row])

    assert await store.candles("1m", "AUSDT", 0, T0) == []


async def test_a_value_that_is_no_number_is_stored_as_none(store: Store, database: Database) -> None:
    await store.add_rows("open_interest", [("AUSDT", 0, 1.5, float("nan"), "hist_5m", 0, 0)])
    await store.commit_decisions([replace(decision("AUSDT", T0), p_raw=float("nan"))], [], [], 1)

    assert database.rows("SELECT open_interest_value FROM open_interest") == [(None,)]
    assert database.rows("SELECT p_raw FROM signals") == [(None,)]


async def test_rows_of_any_days_are_stored_in_any_order(store: Store, database: Database) -> None:
    days = random.Random(5).sample(range(20_000, 22_000), 12)
    rows = [candle_row(candle("AUSDT", day * DAY + minute)) for day in days for minute in (DAY - MINUTE, 0)]

    assert await store.add_rows("candles_1m", rows) == 24
    assert len(await commit(store, [decision("AUSDT", day * DAY) for day in days])) == 12
    assert await store.add_rows("candles_1m", rows) == 0

    assert [one.open_time for one in await store.candles("1m", "AUSDT", 0, 30_000 * DAY)] == sorted(
        row[1] for row in rows
    )
    newest = (await store.last_candles("1m", ["AUSDT"], 3))["AUSDT"]
    assert [one.open_time for one in newest] == sorted(row[1] for row in rows)[-3:]
    assert [row[1] for row in await store.decision_rows("champion", 0, 30_000 * DAY)] == [
        day * DAY for day in sorted(days)
    ]
    assert await store.last_decided("champion") == {"AUSDT": max(days) * DAY}


def example_row(columns: Sequence[str], n: int) -> Row:
    """Values that fit the columns, all made from n."""
    texts = {"symbol", "source", "kind", "ratio", "series", "field", "old", "new", "sources"}
    whole = {"log_open", "log_high", "log_low", "log_close", "trades", "samples", "updates", "revision"}
    whole |= {"interval_hours", "time", "minute", "period_end"}

    def value(column: str) -> Any:
        if column in texts:
            return f"{column}{n}"
        if column == "synthetic":
            return n % 2 == 1
        if column in whole or column.endswith(("_time", "_at")):
            return n
        return n + 0.1

    return tuple(value(column) for column in columns)


# Candles


async def test_candles_come_back_as_they_were_stored(store: Store) -> None:
    stored = [candle("AUSDT", 0), candle("AUSDT", MINUTE, synthetic=True)]
    await store.add_rows("candles_1m", [candle_row(one) for one in stored])

    found = await store.candles("1m", "AUSDT", 0, T0)

    assert found == stored
    assert [one.synthetic for one in found] == [False, True]


@pytest.mark.parametrize("interval", ["1m", "15m", "1h"])
async def test_candles_of_a_span_are_those_that_opened_in_it_oldest_first(store: Store, interval: str) -> None:
    opened = [3, 1, 0, 2, 4]
    await store.add_rows(f"candles_{interval}", [candle_row(candle("AUSDT", n * MINUTE)) for n in opened])
    await store.add_rows(f"candles_{interval}", [candle_row(candle("BUSDT", 2 * MINUTE))])

    found = await store.candles(interval, "AUSDT", MINUTE, 4 * MINUTE)

    assert [one.open_time for one in found] == [MINUTE, 2 * MINUTE, 3 * MINUTE]
    assert {one.interval for one in found} == {interval}


async def test_the_last_candles_are_the_newest_oldest_first(store: Store) -> None:
    await store.add_rows("candles_1m", [candle_row(candle("AUSDT", n * MINUTE)) for n in range(5)])
    await store.add_rows("candles_1m", [candle_row(candle("BUSDT", 0))])

    found = await store.last_candles("1m", ["AUSDT", "BUSDT", "CUSDT"], 3)

    assert {symbol: [one.open_time for one in candles] for symbol, candles in found.items()} == {
        "AUSDT": [2 * MINUTE, 3 * MINUTE, 4 * MINUTE],
        "BUSDT": [0],
        "CUSDT": [],
    }


# Decisions


async def test_decisions_are_stored_with_their_predictions_and_messages(store: Store, database: Database) -> None:
    made = [decision("AUSDT", T0, status=Status.OK), decision("BUSDT", T0)]

    assert await commit(store, made, t_commit=77) == made

    fields = ", ".join(Decision.__struct_fields__)
    assert database.rows(f"SELECT {fields}, seq, t_commit FROM signals ORDER BY symbol") == [
        (*astuple(one), 1, 77) for one in made
    ]
    fields = ", ".join(Prediction.__struct_fields__)
    assert database.rows(f"SELECT {fields} FROM predictions ORDER BY symbol") == [
        astuple(prediction("AUSDT", T0)),
        astuple(prediction("BUSDT", T0)),
    ]
    assert [replace(one, id=0) for one in await store.pending_messages(10)] == [
        message("AUSDT", T0, payload='{"seq":1}'),
        message("BUSDT", T0, payload='{"seq":1}'),
    ]


async def test_a_decision_that_is_already_there_stays_with_all_that_belongs_to_it(
    store: Store, database: Database
) -> None:
    first = decision("AUSDT", T0, status=Status.SKIPPED_MISSED)
    await store.commit_decisions([first], [], [], 1)

    late, other = decision("AUSDT", T0, status=Status.OK), decision("BUSDT", T0)
    new = await commit(store, [late, other])

    assert new == [other]
    assert await store.decision_rows("champion", T0, T0) == [("AUSDT", T0, "skipped_missed"), ("BUSDT", T0, "flat")]
    assert database.rows("SELECT symbol FROM predictions") == [("BUSDT",)]
    assert [one.symbol for one in await store.pending_messages(10)] == ["BUSDT"]


async def test_of_two_decisions_with_one_key_in_a_batch_the_first_is_stored(store: Store) -> None:
    first, second = decision("AUSDT", T0, status=Status.OK), decision("AUSDT", T0)

    new = (await store.commit_decisions([first, second], [], [], 1)).decisions

    assert new == [first]
    assert await store.decision_rows("champion", T0, T0) == [("AUSDT", T0, "ok")]


async def test_a_slot_decides_for_itself(store: Store) -> None:
    made = [decision("AUSDT", T0), decision("AUSDT", T0, slot="shadow1")]

    assert await commit(store, made) == made


async def test_a_shadow_model_predicts_without_a_decision_and_once(store: Store, database: Database) -> None:
    shadows = [prediction("AUSDT", T0, "shadow1", model) for model in ("first", "second")]

    await store.commit_decisions([], shadows[:1], [], 1)
    await store.commit_decisions([], shadows[1:], [], 1)

    assert database.rows("SELECT slot, model_id FROM predictions") == [("shadow1", "first")]


async def test_a_prediction_or_message_that_was_there_before_its_decision_stays(
    store: Store, database: Database
) -> None:
    await store.commit_decisions([], [prediction("AUSDT", T0)], [message("AUSDT", T0, payload='{"n":1}')], 1)

    made = [decision("AUSDT", T0), decision("BUSDT", T0)]
    said = [prediction(symbol, T0, model_id="later") for symbol in ("AUSDT", "BUSDT", "BUSDT")]
    sent = [message(symbol, T0, payload='{"n":2}') for symbol in ("AUSDT", "BUSDT", "BUSDT")]

    assert (await store.commit_decisions(made, said, sent, 1)).decisions == made
    assert database.rows("SELECT symbol, model_id FROM predictions ORDER BY symbol") == [
        ("AUSDT", "model"),
        ("BUSDT", "later"),
    ]
    assert [(one.symbol, one.payload) for one in await store.pending_messages(10)] == [
        ("AUSDT", '{"n":1}'),
        ("BUSDT", '{"n":2,"seq":1}'),
    ]


async def test_messages_of_one_commit_keep_their_order(store: Store) -> None:
    sent = [
        message("AUSDT", T0),
        message("", T0, kind="mode"),
        message("BUSDT", T0),
        message("", T0, kind="close"),
    ]

    await store.commit_decisions([decision("AUSDT", T0), decision("BUSDT", T0)], [], sent, 1)

    assert [(one.kind, one.symbol) for one in await store.pending_messages(10)] == [
        (one.kind, one.symbol) for one in sent
    ]


async def test_the_close_of_a_minute_is_announced_once(store: Store) -> None:
    for payload in ('{"n":1}', '{"n":2}'):
        await store.commit_decisions([], [], [message("", T0, kind="close", payload=payload)], 1)

    assert [one.payload for one in await store.pending_messages(10)] == ['{"n":1}']


async def test_other_messages_of_one_minute_are_all_kept(store: Store) -> None:
    for _ in range(2):
        await store.commit_decisions([], [], [message("", T0, kind="mode")], 1)

    assert len(await store.pending_messages(10)) == 2


@in_a_used_database
@given(
    batches=st.lists(
        st.lists(st.tuples(st.sampled_from(["AUSDT", "BUSDT", "CUSDT"]), st.integers(0, 9)), max_size=12), max_size=8
    )
)
async def test_every_new_decision_gets_the_next_seq_of_its_symbol(
    store: Store, database: Database, batches: list[list[tuple[str, int]]]
) -> None:
    slot = next(fresh_slot)
    won: list[tuple[str, int]] = []

    for batch in batches:
        new = await commit(store, [decision(symbol, n * MINUTE, slot) for symbol, n in batch])
        won += [(one.symbol, one.close_time) for one in new]

    seq: dict[str, int] = {}
    expected = []
    for symbol, close_time in won:
        seq[symbol] = seq.get(symbol, 0) + 1
        expected.append((symbol, close_time, seq[symbol]))
    assert sorted(won) == sorted({(symbol, n * MINUTE) for batch in batches for symbol, n in batch})
    query = f"SELECT symbol, close_time, seq FROM signals WHERE slot = '{slot}' ORDER BY symbol, seq"
    assert database.rows(query) == sorted(expected, key=lambda one: (one[0], one[2]))


async def test_the_last_seqs_are_those_that_the_next_decisions_follow(store: Store) -> None:
    assert await store.last_seqs("champion") == {}
    for n in range(3):
        await commit(store, [decision("AUSDT", T0 + n * MINUTE)])
    await commit(store, [decision("BUSDT", T0)])

    assert await store.last_seqs("champion") == {"AUSDT": 3, "BUSDT": 1}
    assert await store.last_seqs("nobody") == {}


async def test_the_last_decided_close_is_the_newest_not_the_one_stored_last(store: Store) -> None:
    await commit(store, [decision("AUSDT", T0 + 2 * MINUTE), decision("BUSDT", T0)])
    await commit(store, [decision("AUSDT", T0 + MINUTE), decision("CUSDT", T0, slot="shadow1")])

    assert await store.last_decided("champion") == {"AUSDT": T0 + 2 * MINUTE, "BUSDT": T0}
    assert await store.last_decided("nobody") == {}


async def test_the_last_signals_are_the_newest_of_each_side_in_time(store: Store) -> None:
    ok = [("AUSDT", 0, 1), ("AUSDT", 3, 1), ("AUSDT", 2, 1), ("AUSDT", 1, -1), ("BUSDT", 0, 1)]
    await commit(store, [decision(symbol, T0 + n * MINUTE, status=Status.OK, side=side) for symbol, n, side in ok])
    await commit(store, [decision("AUSDT", T0 + 9 * MINUTE), decision("CUSDT", T0 + 9 * MINUTE)])

    assert await store.last_signals("champion", T0 + MINUTE) == {
        ("AUSDT", 1): T0 + 3 * MINUTE,
        ("AUSDT", -1): T0 + MINUTE,
    }


async def test_decisions_of_a_span_include_both_ends_oldest_first(store: Store) -> None:
    await commit(store, [decision("AUSDT", T0 + n * MINUTE) for n in (4, 2, 3, 1, 0)])

    found = await store.decision_rows("champion", T0 + MINUTE, T0 + 3 * MINUTE)

    assert found == [("AUSDT", T0 + n * MINUTE, "flat") for n in (1, 2, 3)]


# Outbox


async def test_pending_messages_come_oldest_first_until_they_are_marked(store: Store) -> None:
    texts = ['{"text":"\\u00e9 \\" \\n"}', '{"n":0.1}', "{}"]
    await store.commit_decisions([], [], [message("", T0, kind="mode", payload=payload) for payload in texts], 1)

    pending = await store.pending_messages(2)
    assert [one.payload for one in pending] == texts[:2]
    assert pending[0].id < pending[1].id

    await store.mark_published([one.id for one in pending], T0)
    assert [one.payload for one in await store.pending_messages(10)] == texts[2:]


async def test_a_commit_tells_the_messages_as_the_outbox_has_them(store: Store) -> None:
    told = []
    for n in range(3):
        decisions = [decision(symbol, T0 + n * MINUTE) for symbol in ("AUSDT", "BUSDT")]
        messages = [message(one.symbol, one.close_time) for one in decisions]
        close = message("", T0 + n * MINUTE, kind="close", payload='{"n":1}')
        told += (await store.commit_decisions(decisions, [], [*messages, close], 1)).messages or []

    assert len(told) == 9
    assert told == await store.pending_messages(100)
    assert [one.id for one in told] == list(range(told[0].id, told[0].id + 9))


async def test_a_commit_that_found_a_message_in_the_outbox_tells_none_or_what_is_new(store: Store) -> None:
    first, second = decision("AUSDT", T0), decision("BUSDT", T0)
    close = message("", T0, kind="close", payload="{}")
    await store.commit_decisions([first], [], [message("AUSDT", T0), close], 1)

    both = [message("AUSDT", T0), message("BUSDT", T0)]
    new = await store.commit_decisions([first, second], [], both, 1)
    assert new.messages == (await store.pending_messages(100))[2:]

    again = await store.commit_decisions([], [], [close], 1)
    assert again.messages is None


async def test_the_message_of_a_signal_carries_the_seq_of_its_decision_as_the_last_member(
    store: Store, database: Database
) -> None:
    def announced(symbol: str, n: int) -> Message:
        return message(symbol, T0 + n * MINUTE, payload=f'{{"v":1,"n":{n},"text":"\\u00e9 }}"}}')

    symbols, minutes = ("AUSDT", "BUSDT"), (3, 1, 2)
    for n in minutes:
        decisions = [decision(symbol, T0 + n * MINUTE) for symbol in symbols[:n]]
        close = message("", T0 + n * MINUTE, kind="close", payload='{"v":1}')
        await store.commit_decisions(decisions, [], [*(announced(one, n) for one in symbols), close], 1)
        # One that lost changes nothing, and a message of another kind gets nothing.
        await store.commit_decisions(decisions, [], [*(announced(one, n) for one in symbols), close], 1)

    stored = {tuple(key): seq for *key, seq in database.rows("SELECT symbol, close_time, seq FROM signals")}
    found = [one for one in await store.pending_messages(100) if (one.symbol, one.close_time) in stored]
    assert [one.payload for one in found] == [
        announced(one.symbol, (one.close_time - T0) // MINUTE).payload[:-1]
        + f',"seq":{stored[one.symbol, one.close_time]}}}'
        for one in found
    ]
    assert sorted(stored.values()) == [1, 1, 2, 2, 3]
    assert [one.payload for one in await store.pending_messages(100) if one.kind == "close"] == ['{"v":1}'] * 3


async def test_a_message_marked_twice_keeps_its_first_time(store: Store, database: Database) -> None:
    await commit(store, [decision("AUSDT", T0)])
    [pending] = await store.pending_messages(1)

    await store.mark_published([pending.id], 5)
    await store.mark_published([pending.id, 999], 6)

    assert database.rows("SELECT published_at FROM outbox") == [(5,)]


# Gaps


async def test_the_same_open_hole_noted_twice_is_one_row(store: Store) -> None:
    ids = [await store.open_gap("AUSDT", "candles_1m", 0, MINUTE, cause, 7) for cause in ("jump", "again")]
    other = await store.open_gap("AUSDT", "candles_1m", 0, 2 * MINUTE, "jump", 7)

    assert ids[0] == ids[1] != other
    assert [(gap.id, gap.cause) for gap in await store.gaps()] == [(ids[0], "jump"), (other, "jump")]


async def test_a_hole_that_was_closed_can_open_again(store: Store) -> None:
    first = await store.open_gap("AUSDT", "candles_1m", 0, MINUTE, "jump", 7)
    await store.close_gap(first, 8, "rest")
    await store.close_gap(first, 9, "archive")
    second = await store.open_gap("AUSDT", "candles_1m", 0, MINUTE, "jump", 10)

    closed, again = await store.gaps()
    assert (closed.id, closed.repaired_at, closed.repaired_by) == (first, 8, "rest")
    assert (again.id, again.repaired_at, again.repaired_by) == (second, None, None)
    assert [gap.id for gap in await store.gaps(only_open=True)] == [second]


# The whole


async def test_row_counts_name_every_table_but_the_bookkeeping(store: Store) -> None:
    await commit(store, [decision("AUSDT", T0), decision("BUSDT", T0)])

    counts = await store.row_counts()

    others = {"signals", "predictions", "outbox", "gaps", "models", "deployments", "archived"}
    assert counts.keys() == TABLES.keys() | TRADING_TABLES.keys() | others
    assert {name: n for name, n in counts.items() if n} == {"signals": 2, "predictions": 2, "outbox": 2}


async def test_a_store_opened_again_has_what_was_stored(database: Database) -> None:
    store = await database.open()
    await commit(store, [decision("AUSDT", T0)])
    await store.close()

    again = await database.open()

    assert await commit(again, [decision("AUSDT", T0)]) == []
    assert await again.last_decided("champion") == {"AUSDT": T0}


async def test_of_two_stores_that_decide_the_same_minutes_one_wins_each(database: Database) -> None:
    stores = [await database.open(), await database.open()]
    minutes = [[decision(f"S{n}USDT", T0 + minute * MINUTE) for n in range(10)] for minute in range(20)]

    async def decide_all(store: Store, seed: int) -> list[Decision]:
        order = random.Random(seed).sample(minutes, len(minutes))
        return [one for batch in order for one in await commit(store, batch)]

    won = await asyncio.gather(*(decide_all(store, seed) for seed, store in enumerate(stores)))

    assert sorted(astuple(one)[1:4] for part in won for one in part) == sorted(
        astuple(one)[1:4] for batch in minutes for one in batch
    )
    assert database.rows("SELECT symbol, count(*), max(seq) FROM signals GROUP BY symbol ORDER BY symbol") == [
        (f"S{n}USDT", 20, 20) for n in range(10)
    ]
    assert database.rows("SELECT count(*), count(DISTINCT symbol || close_time) FROM outbox") == [(200, 200)]


# Backup


async def test_a_backup_holds_everything_and_can_be_restored_into_either_kind_of_database(
    database: Database, other_database: Database, tmp_path: Path
) -> None:
    store = await filled(database)

    await store.backup(tmp_path / "backup.db")
    await commit(store, [decision("AUSDT", T0 + 9 * MINUTE)])
    restored = await other_database.open()
    await restored.restore(tmp_path / "backup.db")

    for table, count_ in (await restored.row_counts()).items():
        keys = TRADING_TABLES[table].key if table in TRADING_TABLES else ("1", "2", "3", "4")
        query = f"SELECT * FROM {table} ORDER BY " + ("id" if table in WITH_ID else ", ".join(keys))
        before = "" if table not in ("signals", "predictions", "outbox") else f"WHERE close_time <= {T0 + MINUTE} "
        expected = database.rows(query.replace("ORDER", f"{before}ORDER"))
        assert other_database.rows(query) == expected
        assert len(expected) == count_ > 0
    assert [name for name in os.listdir(tmp_path) if name.startswith("backup")] == ["backup.db"]
    assert await restored.damage() == []


async def test_work_goes_on_after_a_restore_where_it_was(
    database: Database, other_database: Database, tmp_path: Path
) -> None:
    await (await filled(database)).backup(tmp_path / "backup.db")
    restored = await other_database.open()
    await restored.restore(tmp_path / "backup.db")
    ids = [one.id for one in await restored.pending_messages(99)]

    assert await commit(restored, [decision("AUSDT", T0 + MINUTE), decision("AUSDT", T0 + 2 * MINUTE)]) == [
        decision("AUSDT", T0 + 2 * MINUTE)
    ]

    assert other_database.rows("SELECT seq FROM signals WHERE symbol = 'AUSDT' ORDER BY seq") == [(1,), (2,), (3,)]
    assert [one.id for one in await restored.pending_messages(99)][:-1] == ids
    assert await restored.open_gap("BUSDT", "candles_1m", 0, MINUTE, "jump", 7) == 3


async def test_nothing_is_restored_over_rows(database: Database, tmp_path: Path) -> None:
    store = await filled(database)
    await store.backup(tmp_path / "backup.db")

    with pytest.raises(NeedsPerson, match="holds rows already"):
        await store.restore(tmp_path / "backup.db")


async def test_what_is_no_backup_is_not_restored(database: Database, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("buy low, sell high\n" * 100)
    store = await database.open()

    with pytest.raises(NeedsPerson, match=r"cannot read .*notes\.txt"):
        await store.restore(tmp_path / "notes.txt")
    with pytest.raises(NeedsPerson, match=r"cannot read .*nothing\.db"):
        await store.restore(tmp_path / "nothing.db")


async def test_a_backup_that_cannot_be_written_needs_a_person(database: Database, tmp_path: Path) -> None:
    store = await database.open()

    with pytest.raises(NeedsPerson, match=r"cannot write .*nowhere/backup\.db"):
        await store.backup(tmp_path / "nowhere" / "backup.db")


async def test_a_backup_taken_while_others_write_is_of_one_instant(database: Database, tmp_path: Path) -> None:
    store, writer = await database.open(), await database.open()
    writing = asyncio.Event()

    async def write() -> None:
        for minute in count():
            await commit(writer, [decision(f"S{n}USDT", T0 + minute * MINUTE) for n in range(10)])
            writing.set()

    task = asyncio.create_task(write())
    for n in range(3):
        await writing.wait()
        await store.backup(tmp_path / f"{n}.db")
        writing.clear()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    counts = []
    for n in range(3):
        copy = SqliteDatabase(tmp_path / f"{n}.db")
        [(rows, minutes)] = copy.rows("SELECT count(*), count(DISTINCT close_time) FROM signals")
        assert rows == 10 * minutes
        assert copy.rows("SELECT (SELECT count(*) FROM outbox), (SELECT count(*) FROM predictions)") == [(rows, rows)]
        counts.append(rows)
    assert 0 < counts[0] < counts[1] < counts[2]


WITH_ID = ("outbox", "gaps", "deployments", "modes", "refusals", "reconciliations", "doctors", "symbols")


async def filled(database: Database) -> Store:
    """A store with rows in every table."""
    store = await database.open()
    for table in TABLES.values():
        await store.add_rows(table.name, [example_row(table.columns, n) for n in range(3)])
    for minute in range(2):
        await commit(store, [decision(f"{name}USDT", T0 + minute * MINUTE) for name in "AB"])
    [first, *_] = await store.pending_messages(10)
    await store.mark_published([first.id], T0)
    await store.close_gap(await store.open_gap("AUSDT", "candles_1m", 0, MINUTE, "jump", 7), 8, "rest")
    await store.open_gap("AUSDT", "candles_1m", 0, 2 * MINUTE, "jump", 7)
    for statement in (
        "INSERT INTO models VALUES ('m1', 'champion', 5, '{}')",
        "INSERT INTO deployments VALUES (1, 'champion', 'm1', 5, 'me')",
        "INSERT INTO archived VALUES ('candles_1m', 0, 1, 'a.parquet', 'here', 1, 2, 3, NULL)",
    ):
        database.do(statement)
    await store.commit_trading(
        {name: [example_trading_row(table.columns, n) for n in range(3)] for name, table in TRADING_TABLES.items()}
    )
    return store


def example_trading_row(columns: Sequence[str], n: int) -> Row:
    """Values that fit the columns of a table of trading, all made from n."""
    chosen = {"mode": "paper", "action": "add", "positions": "keep", "side": f"side{n}", "difference_bps": n + 0.5}
    chosen |= {"ret_net": n / 8, "mae": -n / 4, "mfe": n / 2}
    whole = {"trade_id", "order_id", "child_order_id", "income_id", "minute", "at", "deadline", "until", "fencing"}
    whole |= {"value", "naked_ms", "t_exit"}

    def value(column: str) -> Any:
        if column in LOGICAL:
            return n % 2 == 1
        if column == "side" and "naked_ms" in columns:
            return 1
        if column in chosen:
            return chosen[column]
        return n if column in whole or column.endswith("_at") else f"{column}{n}"

    return tuple(value(column) for column in columns)


WRITER = """
import asyncio, sys
sys.path[:0] = sys.argv[1:]
from test_store import MINUTE, T0, candle, candle_row, commit, decision

async def main():
    await store.open()
    for minute in range(100_000):
        await store.add_rows("candles_1m", [candle_row(candle(f"S{n}USDT", minute * MINUTE)) for n in range(60)])
        await commit(store, [decision(f"S{n}USDT", T0 + minute * MINUTE) for n in range(20)])
        print(minute, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("seed", range(3))
async def test_a_writer_killed_at_any_instant_leaves_whole_transactions_and_all_it_was_told_of(
    database: Database, seed: int
) -> None:
    writer = await start(database.open_in_a_process() + WRITER)
    assert writer.stdout is not None
    told = -1
    for _ in range(5):
        told = int(await writer.stdout.readline())
    await asyncio.sleep(random.Random(seed).uniform(0, 0.05))
    writer.send_signal(signal.SIGKILL)
    told = max([told, *(int(line) for line in (await writer.stdout.read()).split())])
    await writer.wait()
    await eventually(database.writers_are_gone)

    store = await database.open()
    per_minute = database.rows("SELECT close_time, count(*) FROM signals GROUP BY close_time ORDER BY close_time")
    assert per_minute == [(T0 + minute * MINUTE, 20) for minute in range(len(per_minute))]
    assert len(per_minute) > told
    for table in ("predictions", "outbox"):
        assert (
            database.rows(f"SELECT close_time, count(*) FROM {table} GROUP BY close_time ORDER BY close_time")
            == per_minute
        )
    assert {n for (n,) in database.rows("SELECT count(*) FROM candles_1m GROUP BY open_time")} == {60}
    after = [decision(f"S{n}USDT", T0 + len(per_minute) * MINUTE) for n in range(20)]
    assert await commit(store, after) == after


async def test_two_processes_open_a_new_database_and_write_at_once(database: Database) -> None:
    writers = [await start(database.open_in_a_process() + WRITER) for _ in range(2)]
    for writer in writers:
        assert writer.stdout is not None
        lines = [await writer.stdout.readline() for _ in range(10)]
        assert lines == [b"%d\n" % minute for minute in range(10)]
    for writer in writers:
        writer.kill()
        await writer.communicate()
    await eventually(database.writers_are_gone)

    query = "SELECT close_time, count(*), min(seq), max(seq) FROM signals GROUP BY close_time ORDER BY close_time"
    per_minute = database.rows(query)
    assert per_minute == [(T0 + n * MINUTE, 20, n + 1, n + 1) for n in range(len(per_minute))]


async def start(program: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(program), *sys.path, stdout=asyncio.subprocess.PIPE
    )


async def test_a_model_is_noted_once_and_stays_as_it_was_noted(store: Store) -> None:
    await store.add_model("b-20261120-01", 2000, '{"verdict": 1}')
    await store.add_model("a-20261120-02", 1000, "")
    await store.add_model("b-20261120-01", 3000, "other")

    assert await store.models() == [
        ModelRow(model_id="a-20261120-02", status="candidate", created_at=1000, report=""),
        ModelRow(model_id="b-20261120-01", status="candidate", created_at=2000, report='{"verdict": 1}'),
    ]


async def test_deployments_are_added_in_order_and_give_models_their_status(store: Store) -> None:
    for name in ("a", "b", "c"):
        await store.add_model(name, 0, "")

    first = await store.add_deployment("champion", "a", T0, "ann", {"a": "champion"})
    second = await store.add_deployment("champion", "b", T0, "bob: because", {"a": "retired", "b": "champion"})
    third = await store.add_deployment("shadow", "", 0, "ann", {})

    assert await store.deployments() == [first, second, third]
    assert second == Deployment(id=second.id, slot="champion", model_id="b", effective_from=T0, by="bob: because")
    assert first.id < second.id < third.id
    assert {model.model_id: model.status for model in await store.models()} == {
        "a": "retired",
        "b": "champion",
        "c": "candidate",
    }


async def test_a_deployment_with_a_status_that_there_is_not_is_not_stored(store: Store) -> None:
    await store.add_model("a", 0, "")

    with pytest.raises(ValueError, match="refused"):
        await store.add_deployment("champion", "a", T0, "ann", {"a": "best"})

    assert await store.deployments() == []
    assert [model.status for model in await store.models()] == ["candidate"]


async def test_what_a_caller_waits_for_no_more_is_stopped_in_the_database_too(store: Store, database: Database) -> None:
    endless = (
        "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 2000000000) SELECT count(*) FROM n"
    )
    asking = asyncio.create_task(store.select(endless))
    waiting = asyncio.create_task(store.select("SELECT 1"))
    await asyncio.sleep(0.3)
    asking.cancel()
    async with asyncio.timeout(3):
        assert await waiting == [(1,)]
        assert await store.select("SELECT 2") == [(2,)]
    if isinstance(database, PostgresDatabase):
        running = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'WITH RECURSIVE n (x)%'"
        await eventually(lambda: database.rows(running) == [])
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_predictions_of_a_shadow_are_stored_without_a_decision(store: Store) -> None:
    shadow = [prediction("BTCUSDT", T0, slot="shadow"), prediction("ETHUSDT", T0, slot="shadow")]

    await store.commit_decisions([], shadow, [], 1)
    await store.commit_decisions([], shadow, [], 2)

    rows = await store.select("SELECT slot, symbol, close_time FROM predictions ORDER BY symbol")
    assert rows == [("shadow", "BTCUSDT", T0), ("shadow", "ETHUSDT", T0)]


async def test_what_a_verdict_assumed_is_compared_before_anything_is_stored(store: Store, database: Database) -> None:
    """Of ok signals before the minute, those of the slot, the symbols and the time asked for; nothing else counts."""
    slot = next(fresh_slot)
    earlier = [made(slot, "AUSDT", 0, Status.OK), made(slot, "BUSDT", 1, Status.OK)]
    earlier.append(made(slot, "BUSDT", 2, Status.FLAT))
    await store.commit_decisions(earlier, [], [], 1)
    now = [made(slot, "AUSDT", 5, Status.OK), made(slot, "BUSDT", 5, Status.OK)]
    at = now[0].close_time
    window = {"since": at - 4 * MINUTE, "until": at}

    refused = await store.commit_decisions(now, [], [], 2, assumed=Assumed(**window, last_ok={}))
    assert (refused.decisions, refused.messages) == ([], None)
    assert refused.differs == {("BUSDT", 1): earlier[1].close_time}
    assert (await store.last_decided(slot))["AUSDT"] == earlier[0].close_time

    taken = await store.commit_decisions(now, [], [], 3, assumed=Assumed(**window, last_ok=refused.differs))
    assert (taken.decisions, taken.differs) == (now, None)


def made(slot: str, symbol: str, minute: int, status: Status) -> Decision:
    t = T0 + minute * MINUTE
    return Decision(
        signal_id=signal_id(slot, "m", symbol, t),
        slot=slot,
        symbol=symbol,
        close_time=t,
        side=int(status is Status.OK),
        status=status,
    )
