"""What every store promises to trading (perpline.storage.store.Store)."""

import asyncio
from decimal import Decimal
from typing import Any

import pytest
from databases import Database
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from test_store import T0, candle, commit, decision, example_trading_row, fresh_slot, message

from perpline.common.errors import Fenced
from perpline.storage.store import TRADING_TABLES, Fence, Lease, Row, Store, TradingTable, candle_row

by_key = [table for table in TRADING_TABLES.values() if table.key]
only_added = [table for table in TRADING_TABLES.values() if not table.key]


def named(table: TradingTable) -> str:
    return table.name


def changed(table: TradingTable, row: Row, other: Row) -> Row:
    """`row` with everything but its key from `other`."""
    return tuple(
        old if column in table.key else new for column, old, new in zip(table.columns, row, other, strict=True)
    )


@pytest.mark.parametrize("table", TRADING_TABLES.values(), ids=named)
async def test_rows_of_trading_come_back_as_they_were_stored(store: Store, table: TradingTable) -> None:
    rows = [example_trading_row(table.columns, n) for n in range(3)]

    assert await store.commit_trading({table.name: rows}) == []

    assert await store.trading_rows(table.name) == rows


@pytest.mark.parametrize("table", by_key, ids=named)
async def test_of_two_rows_with_one_key_the_last_stays_or_the_first_as_the_table_says(
    store: Store, table: TradingTable
) -> None:
    first = example_trading_row(table.columns, 1)
    second, third, fourth = (changed(table, first, example_trading_row(table.columns, n)) for n in (2, 3, 4))

    await store.commit_trading({table.name: [first, second]})
    assert await store.trading_rows(table.name) == [second if table.stays == "last" else first]
    await store.commit_trading({table.name: [third]})
    await store.commit_trading({table.name: [fourth, third]})

    assert await store.trading_rows(table.name) == [third if table.stays == "last" else first]


@pytest.mark.parametrize("table", only_added, ids=named)
async def test_a_table_without_a_key_keeps_every_row_in_the_order_of_adding(
    store: Store, database: Database, table: TradingTable
) -> None:
    row = example_trading_row(table.columns, 1)

    for _ in range(2):
        await store.commit_trading({table.name: [row, row]})

    assert await store.trading_rows(table.name) == [row] * 4
    assert database.rows(f"SELECT id FROM {table.name} ORDER BY id") == [(1,), (2,), (3,), (4,)]


async def test_rows_and_messages_of_one_commit_are_stored_together_or_not_at_all(store: Store) -> None:
    order, refusal = TRADING_TABLES["orders"], TRADING_TABLES["refusals"]
    good = {"orders": [example_trading_row(order.columns, 1)]}
    bad = order.row({**order.named(example_trading_row(order.columns, 2)), "symbol": None})
    told = [message("AUSDT", T0, kind="position", payload='{"n":1}')]

    with pytest.raises(ValueError, match="refused"):
        await store.commit_trading(
            {"refusals": [example_trading_row(refusal.columns, 1)], "orders": [*good["orders"], bad]}, told
        )
    assert await store.trading_rows("orders") == await store.trading_rows("refusals") == []
    assert await store.pending_messages(9) == []

    await store.commit_trading(good, told)
    assert await store.trading_rows("orders") == good["orders"]
    assert [one.payload for one in await store.pending_messages(9)] == ['{"n":1}']


async def test_a_row_with_too_few_values_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="counters has 2 columns"):
        await store.commit_trading({"counters": [("runs",)]})


async def test_a_commit_of_trading_tells_the_messages_as_the_outbox_has_them(store: Store) -> None:
    await commit(store, [decision("AUSDT", T0)])
    told = []
    for n in range(3):
        messages = [message(symbol, T0 + n, kind="position", payload=f'{{"n":{n}}}') for symbol in ("AUSDT", "BUSDT")]
        told += await store.commit_trading({}, messages)

    pending = await store.pending_messages(99)
    assert told == pending[1:]
    assert [one.id for one in pending] == list(range(pending[0].id, pending[0].id + 7))


async def test_rows_are_read_by_values_and_from_a_time_on(store: Store) -> None:
    table = TRADING_TABLES["orders"]

    def order(n: int, **values: Any) -> Row:
        return table.row({**table.named(example_trading_row(table.columns, n)), "account": "live", **values})

    rows = [order(n, final_at=None if n % 2 else n, symbol=f"S{n % 3}USDT") for n in range(6)]
    await store.commit_trading({"orders": [*rows[::-1], order(9, account="paper")]})

    live = {"account": "live"}
    assert await store.trading_rows("orders", live) == rows
    assert await store.trading_rows("orders", {**live, "final_at": None}) == rows[1::2]
    assert await store.trading_rows("orders", {**live, "symbol": "S1USDT"}, since=2) == [rows[4]]
    assert await store.trading_rows("orders", {**live, "created_at": 3}) == [rows[3]]
    assert await store.trading_rows("orders", {**live, "side": "none"}) == []


async def test_with_a_limit_the_newest_rows_are_read_oldest_first(store: Store) -> None:
    table = TRADING_TABLES["fills"]
    rows = [example_trading_row(table.columns, n) for n in range(6)]
    await store.commit_trading({"fills": rows})

    assert await store.trading_rows("fills", limit=2) == rows[-2:]
    assert await store.trading_rows("fills", since=1, limit=99) == rows[1:]
    assert await store.trading_rows("fills", limit=0) == []


async def test_rows_of_one_instant_are_read_in_the_order_of_their_key(store: Store) -> None:
    table = TRADING_TABLES["fills"]
    rows = [
        table.row({**table.named(example_trading_row(table.columns, 1)), "symbol": symbol, "trade_id": trade})
        for symbol in ("AUSDT", "BUSDT", "aUSDT")
        for trade in (2, 10)
    ]
    await store.commit_trading({"fills": rows[::-1]})

    assert await store.trading_rows("fills") == rows


async def test_a_column_that_is_not_there_cannot_be_asked_for(store: Store) -> None:
    with pytest.raises(ValueError, match="orders has no column 'id; DROP"):
        await store.trading_rows("orders", {"id; DROP": 1})
    with pytest.raises(ValueError, match="leases has no times"):
        await store.trading_rows("leases", since=1)


in_a_used_database = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@in_a_used_database
@given(batches=st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=12), max_size=5))
async def test_any_repetition_of_batches_ends_in_what_was_written_last(
    store: Store, batches: list[list[tuple[int, int]]]
) -> None:
    account = next(fresh_slot)
    table = TRADING_TABLES["equity"]
    expected: dict[int, Row] = {}
    for batch in batches:
        rows = [(account, minute, str(value), "0", str(value)) for minute, value in batch]
        await store.commit_trading({table.name: rows})
        await store.commit_trading({table.name: rows})
        expected |= {row[1]: row for row in rows}

    found = await store.trading_rows("equity", {"account": account})
    assert found == [expected[minute] for minute in sorted(expected)]


def test_a_row_is_made_of_names_and_money_is_exact_text() -> None:
    table = TRADING_TABLES["equity"]
    row = table.row({"account": "live", "equity": Decimal("1E+3"), "wallet": Decimal("0.10"), "minute": 5, "other": 1})

    assert row == ("live", 5, "0.10", None, "1000")
    assert table.named(row) == {"account": "live", "minute": 5, "wallet": "0.10", "unrealized": None, "equity": "1000"}


async def test_a_commit_of_trading_does_not_wait_for_a_large_bulk(store: Store) -> None:
    rows = [candle_row(candle(f"S{n % 600}USDT", n // 600 * 60_000)) for n in range(30_000)]
    bulk = asyncio.create_task(store.add_rows("candles_1m", rows))
    await asyncio.sleep(0.05)
    await store.commit_trading({"counters": [("other", 1)]})
    was_done = bulk.done()
    await bulk

    assert not was_done


# Numbers and leases


async def test_every_number_is_given_once_also_to_two_processes_at_once(database: Database) -> None:
    stores = [await database.open(), await database.open()]

    numbers = await asyncio.gather(*(stores[n % 2].next_number("runs") for n in range(20)))

    assert sorted(numbers) == list(range(1, 21))
    assert await stores[0].next_number("others") == 1
    assert await stores[1].trading_rows("counters") == [("others", 1), ("runs", 20)]


async def test_a_lease_is_held_by_one_until_it_is_over_or_given_back(store: Store) -> None:
    assert await store.take_lease("trade", "a", 10, 20) == 1
    assert await store.take_lease("trade", "b", 19, 30) is None
    assert await store.take_lease("trade", "a", 15, 25) == 1
    assert await store.take_lease("trade", "b", 24, 34) is None
    assert await store.take_lease("trade", "b", 25, 35) == 2
    assert await store.take_lease("trade", "a", 26, 36) is None
    await store.drop_lease("trade", "a")
    assert await store.take_lease("trade", "a", 27, 37) is None
    await store.drop_lease("trade", "b")
    assert await store.take_lease("trade", "b", 28, 38) == 3
    assert await store.take_lease("other", "c", 28, 38) == 1


async def test_of_many_that_want_a_lease_at_once_one_gets_it(database: Database) -> None:
    stores = [await database.open(), await database.open()]

    taken = await asyncio.gather(*(stores[n % 2].take_lease("trade", f"owner{n}", 10, 20) for n in range(10)))

    assert [number for number in taken if number is not None] == [1]


# The modes of an older schema


async def test_a_mode_is_one_of_three_and_says_what_becomes_of_positions(store: Store) -> None:
    table = TRADING_TABLES["modes"]
    good = {"symbol": "", "mode": "live", "positions": "flatten", "changed_at": 1, "by": "me", "reason": "go"}
    await store.commit_trading({"modes": [table.row(good)]})

    for wrong in ({"mode": "on"}, {"positions": "sell"}):
        with pytest.raises(ValueError, match="refused"):
            await store.commit_trading({"modes": [table.row({**good, **wrong})]})

    assert await store.trading_rows("modes") == [table.row(good)]


async def test_messages_of_trading_keep_their_order_between_those_of_decisions(store: Store) -> None:
    one = message("", T0, kind="mode", payload='{"n":1}')
    await store.commit_trading({}, [one])
    await commit(store, [decision("AUSDT", T0)])
    await store.commit_trading({}, [replace(one, payload='{"n":2}')])

    assert [each.kind for each in await store.pending_messages(9)] == ["mode", "signal", "mode"]


# The fence


async def test_a_lease_can_be_read(store: Store) -> None:
    assert await store.lease("trade") is None

    await store.take_lease("trade", "a", 10, 20)
    assert await store.lease("trade") == Lease(owner="a", until=20, fencing=1)
    await store.drop_lease("trade", "a")
    assert await store.lease("trade") == Lease(owner="", until=0, fencing=1)


async def test_what_is_written_under_a_lease_that_is_anothers_now_is_not_stored(database: Database) -> None:
    leader, frozen = await database.open(), await database.open()
    await frozen.take_lease("lead", "a", 0, 10)
    old = Fence("lead", "a", 1)
    written = await frozen.commit_decisions([decision("AUSDT", T0)], [], [message("AUSDT", T0)], 1, old)
    await leader.take_lease("lead", "b", 10, 20)

    for stale in (old, Fence("lead", "b", 1), Fence("lead", "a", 2), Fence("nobody's", "a", 1)):
        with pytest.raises(Fenced):
            await frozen.commit_decisions([decision("BUSDT", T0)], [], [message("BUSDT", T0)], 1, stale)
        with pytest.raises(Fenced):
            await frozen.commit_trading({"counters": [("runs", 1)]}, [message("", T0, kind="mode")], stale)
    under = Fence("lead", "b", 2)
    assert (await leader.commit_decisions([decision("CUSDT", T0)], [], [], 1, under)).decisions
    await leader.commit_trading({"counters": [("runs", 7)]}, [], under)

    assert len(written.decisions) == 1
    assert [symbol for symbol, _, _ in await leader.decision_rows("champion", 0, T0)] == ["AUSDT", "CUSDT"]
    assert [each.symbol for each in await leader.pending_messages(9)] == ["AUSDT"]
    assert await leader.trading_rows("counters") == [("runs", 7)]


async def test_a_lease_changes_hands_before_or_after_a_commit_under_it_and_never_within(database: Database) -> None:
    stores = [await database.open(), await database.open()]
    stored: list[int] = []

    async def write(n: int) -> None:
        for minute in range(40):
            lease = await stores[n].lease("lead")
            if lease is None or lease.owner != "ab"[n]:
                await stores[n].take_lease("lead", "ab"[n], 1 << 60, 0)
                continue
            one = decision(f"S{n}USDT", T0 + minute * 60_000)
            try:
                await stores[n].commit_decisions([one], [], [], lease.fencing, Fence("lead", "ab"[n], lease.fencing))
            except Fenced:
                continue
            stored.append(lease.fencing)

    await asyncio.gather(write(0), write(1))

    assert stored == sorted(stored), "who has been fenced off wrote later than who came after"
    assert len(stored) > 1
