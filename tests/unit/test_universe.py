"""Symbols that come and go while a worker runs."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from structlog.testing import capture_logs

from perpline.bootstrap import Parts, followed_instruments, load_windows, make_parts
from perpline.bus.memory import MemoryBus
from perpline.common.clock import ManualClock
from perpline.common.config import Settings, load_settings
from perpline.common.errors import NeedsPerson, Refused, Unavailable
from perpline.domain.candle import INTERVAL_MS, KlineUpdate, closed_candle, last_boundary
from perpline.domain.instrument import Instrument
from perpline.domain.market import BookTicker, MarkPrice
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import TRADING_TABLES, candle_row
from perpline.storage.symbols import (
    Action,
    SymbolChange,
    SymbolChanges,
    listings,
    store_symbols,
    symbol_changes,
)
from perpline.universe import Universe
from running import eventually

MINUTE = 60_000
BOUNDARY = 1_790_000_040_000
NOW = BOUNDARY + 20_000
A, B, C = "AAAUSDT", "BBBUSDT", "CCCUSDT"


class Listed:
    """The exchange: what it lists, and candles of every minute up to now or to a contract's end."""

    def __init__(self, clock: ManualClock, *symbols: str) -> None:
        self.clock = clock
        self.instruments_by_symbol = {symbol: instrument(symbol) for symbol in symbols}
        self.ends: dict[str, int] = {}
        self.asked = 0
        self.fails = False

    def change(self, symbol: str, **values: Any) -> None:
        self.instruments_by_symbol[symbol] = structs.replace(self.instruments_by_symbol[symbol], **values)

    async def instruments(self) -> list[Instrument]:
        self.asked += 1
        if self.fails:
            raise Unavailable("away")
        return list(self.instruments_by_symbol.values())

    async def candles(
        self, symbol: str, interval: str, *, start: int | None = None, end: int | None = None, limit: int = 500
    ) -> list[KlineUpdate]:
        if symbol not in self.instruments_by_symbol:
            raise Refused("Invalid symbol.", -1121)
        length = INTERVAL_MS[interval]
        until = min(self.ends.get(symbol, 1 << 60), self.clock.now_ms())
        first = 0 if start is None else start
        opens = range(first, min(end or until, until), length)[:limit]
        return [update(symbol, interval, t, closed=t + length <= self.clock.now_ms()) for t in opens]

    async def quote_volumes_24h(self) -> dict[str, float]:
        return {symbol: 1.0 for symbol in self.instruments_by_symbol}


def instrument(symbol: str) -> Instrument:
    step = Decimal("0.1")
    return Instrument(symbol, symbol.removesuffix("USDT"), "USDT", "PERPETUAL", "TRADING", 0, step, step, step, step)


def update(symbol: str, interval: str, open_time: int, closed: bool = True) -> KlineUpdate:
    return KlineUpdate(
        symbol=symbol,
        interval=interval,
        open_time=open_time,
        close_time=open_time + INTERVAL_MS[interval] - 1,
        open=100.0,
        high=101.0,
        low=99.0,
        close=100.0 + open_time // MINUTE % 7 / 10,
        volume=5.0,
        quote_volume=500.0,
        trades=5,
        taker_buy_volume=2.0,
        taker_buy_quote_volume=200.0,
        closed=closed,
        source="ws",
        event_time=open_time + INTERVAL_MS[interval],
        received_at=open_time + INTERVAL_MS[interval],
    )


class Desk:
    """A worker's parts without sockets, its universe, and an exchange that can be told what to list."""

    def __init__(self, parts: Parts, rest: Listed, clock: ManualClock, store: SqliteStore) -> None:
        self.parts, self.rest, self.clock, self.store = parts, rest, clock, store
        self.streams: list[list[str]] = []
        everything: Any = rest
        self.universe = Universe(parts, everything, follow_streams=lambda symbols: self.streams.append(list(symbols)))

    async def change(self, action: Action, *symbols: str) -> None:
        now = self.clock.now_ms()
        rows = [SymbolChange(symbol=each, action=action, changed_at=now, by="me", reason="why") for each in symbols]
        await store_symbols(self.store, rows)

    async def pass_time(self, seconds: float, *, closes: bool = True) -> None:
        """Let time go by, in steps, with prices heard and closed candles delivered a second after their close."""
        until = self.clock.now_ms() + round(seconds * 1000)
        while self.clock.now_ms() < until:
            self.clock.advance(0.5)
            now = self.clock.now_ms()
            for symbol in list(self.parts.instruments):
                self.parts.marks.handle(MarkPrice(symbol, 100.0, 100.0, 0.0001, now + 3_600_000, now, now))
                self.parts.books.handle(BookTicker(symbol, 99.9, 1.0, 100.1, 1.0, now, now, now))
                if closes and now % MINUTE == 1_000 and last_boundary(now) <= self.rest.ends.get(symbol, 1 << 60):
                    for interval, length in INTERVAL_MS.items():
                        if last_boundary(now) % length == 0:
                            self.parts.klines.handle(update(symbol, interval, last_boundary(now) - length))
            await self.universe.look()
            await self.parts.engine.drain()
            for _ in range(3):
                await asyncio.sleep(0)

    async def rows(self) -> list[tuple[str, str, str]]:
        return [(row.symbol, row.action, row.reason) for row in await symbol_changes(self.store)]

    async def decided(self, symbol: str) -> list[int]:
        rows = await self.store.decision_rows("champion", 0, 1 << 60)
        return [t for each, t, _ in rows if each == symbol]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with capture_logs() as found:
        yield found


def settings(folder: Path, **changes: object) -> Settings:
    return load_settings(None, {"HOME": str(folder)}, {"data_dir": str(folder), **changes})


@pytest.fixture
async def desk(store: SqliteStore, tmp_path: Path) -> AsyncIterator[Desk]:
    """A and B are followed by the settings; C is listed too."""
    clock = ManualClock(NOW)
    rest = Listed(clock, A, B, C)
    everything: Any = rest
    chosen = {symbol: rest.instruments_by_symbol[symbol] for symbol in (A, B)}
    made = make_parts(
        settings(tmp_path, symbols=f"{A},{B}"), clock, store, MemoryBus(), chosen, everything, random.Random(1), []
    )
    made.by_settings = [A, B]
    await made.engine.recover(made.symbols)
    await load_windows(made)
    doors = asyncio.create_task(made.closed.run())
    await until_healed(made)
    yield Desk(made, rest, clock, store)
    doors.cancel()
    await asyncio.gather(doors, return_exceptions=True)


async def until_healed(parts: Parts) -> None:
    await eventually(lambda: not parts.closed._healing)


# ---- the rule


CHANGES = st.lists(
    st.builds(
        SymbolChange,
        symbol=st.sampled_from([A, B]),
        action=st.sampled_from(["add", "remove", "delisted", "listed"]),
        changed_at=st.integers(0, 99),
        by=st.just("me"),
        reason=st.just(""),
    ),
    max_size=12,
)


@given(CHANGES, st.sets(st.sampled_from([A, B])), st.sets(st.sampled_from([A, B])))
def test_the_last_row_decides_then_the_settings_and_exclude_wins(
    rows: list[SymbolChange], by_settings: set[str], exclude: set[str]
) -> None:
    followed = SymbolChanges(rows).followed(sorted(by_settings), exclude)

    for symbol in (A, B):
        own = [row.action for row in rows if row.symbol == symbol]
        by_people = [action for action in own if action in ("add", "remove")]
        wanted = by_people[-1] == "add" if by_people else symbol in by_settings
        over = [action for action in own if action != "remove"][-1:] == ["delisted"]
        assert (symbol in followed) == (wanted and not over and symbol not in exclude)


async def test_a_worker_begins_with_the_settings_and_the_rows_on_top(store: SqliteStore, tmp_path: Path) -> None:
    rest: Any = Listed(ManualClock(NOW), A, B, C)
    rest.change(A, status="SETTLING")
    rows = [("add", C), ("remove", B), ("add", B)]
    await store_symbols(
        store,
        [SymbolChange(symbol=s, action=a, changed_at=7, by="me", reason="") for a, s in rows],  # type: ignore[arg-type]
    )

    found = await followed_instruments(settings(tmp_path, symbols=f"{A},{B}"), rest, store, NOW)

    assert list(found.instruments) == [B, C]
    assert (found.by_settings, found.leaving, found.since) == ([A, B], set(), {C: 7, B: 7})


async def test_a_symbol_that_was_followed_and_is_not_listed_any_more_keeps_no_worker_from_starting(
    store: SqliteStore, tmp_path: Path
) -> None:
    rest: Any = Listed(ManualClock(NOW), B)
    wanted = settings(tmp_path, symbols=f"{A},{B}")
    with pytest.raises(NeedsPerson, match="does not list AAAUSDT"):
        await followed_instruments(wanted, rest, store, NOW)
    await store.add_rows("candles_1m", [candle_row(closed_candle(update(A, "1m", BOUNDARY - MINUTE)))])

    assert list((await followed_instruments(wanted, rest, store, NOW)).instruments) == [B]


async def test_a_removed_symbol_with_an_open_position_is_heard_after_the_start_too(
    store: SqliteStore, tmp_path: Path
) -> None:
    rest: Any = Listed(ManualClock(NOW), A, B)
    await store.commit_trading({"positions": [open_position(B)]})
    await store_symbols(store, [SymbolChange(symbol=B, action="remove", changed_at=7, by="me", reason="")])

    found = await followed_instruments(settings(tmp_path, symbols=f"{A},{B}"), rest, store, NOW)

    assert (list(found.instruments), found.leaving) == ([A, B], {B})


def open_position(symbol: str, **changes: Any) -> Any:
    numbers = {"side": 1, "opened_at": NOW, "naked_ms": 0, "updated_at": NOW}
    texts = dict.fromkeys(
        ("quantity", "opened_quantity", "signal_id", "origin", "exit_reason", "realized_pnl", "fees", "funding"), "1"
    )
    table = TRADING_TABLES["positions"]
    return table.row(
        {"account": "paper", "position_id": "p1", "symbol": symbol, "status": "open", **numbers, **texts, **changes}
    )


async def test_since_when_a_symbol_is_followed_is_stored_at_the_start_and_outlives_the_process(desk: Desk) -> None:
    assert await desk.universe.begin() == {}
    began = {symbol: seen.followed_at for symbol, seen in (await listings(desk.store)).items()}
    desk.clock.advance(90.0)
    again = Universe(desk.parts, desk.universe._rest)

    assert await again.begin() == began == dict.fromkeys((A, B), NOW)
    await again.look()
    assert {symbol: seen.followed_at for symbol, seen in (await listings(desk.store)).items()} == began


# ---- rows while running


async def test_an_added_symbol_is_decided_on_from_the_next_close_after_its_window_is_loaded(desk: Desk) -> None:
    await desk.pass_time(1)
    await desk.change("add", C)
    await desk.pass_time(200)

    assert desk.parts.symbols == [A, B, C]
    assert desk.streams == [[A, B, C]]
    assert await desk.decided(C) == await desk.decided(A) == [BOUNDARY + n * MINUTE for n in (1, 2, 3)]
    assert desk.parts.features.held(C) == desk.parts.features.held(A)
    seen = await listings(desk.store)
    assert {symbol: each.status for symbol, each in seen.items()} == dict.fromkeys((A, B, C), "TRADING")
    assert BOUNDARY < (seen[C].followed_at or 0) < BOUNDARY + MINUTE


async def test_a_removed_symbol_is_forgotten_in_every_part_once_its_minute_is_decided(
    desk: Desk, logs: list[Any]
) -> None:
    await desk.pass_time(39.5)  # 0.5 s before a close whose candle comes a second after it
    await desk.change("remove", B)
    await desk.pass_time(1.0)
    assert B in desk.parts.symbols
    await desk.pass_time(10)

    assert desk.parts.symbols == [A]
    assert desk.streams == [[A]]
    assert await desk.decided(B) == [BOUNDARY + MINUTE]
    assert not desk.parts.closed.follows(B)
    for latest in (desk.parts.marks.latest, desk.parts.books.latest, desk.parts.klines.last_closed["1m"]):
        assert list(latest) == [A]
    assert [(line["symbol"], line["reason"]) for line in logs if line["event"] == "symbol_forgotten"] == [
        (B, "remove by me: why")
    ]
    assert (await listings(desk.store))[B].followed_at is None


async def test_a_symbol_with_an_open_position_is_heard_until_it_is_flat_and_not_decided_on(desk: Desk) -> None:
    await desk.store.commit_trading({"positions": [open_position(B)]})
    await desk.pass_time(1)
    await desk.change("remove", B)
    await desk.pass_time(150)

    assert (desk.parts.symbols, desk.parts.leaving) == ([A], {B})
    assert desk.parts.marks.latest[B].updated_at == desk.clock.now_ms()
    assert await desk.decided(B) == []
    assert (await listings(desk.store))[B].note == "remove by me: why; kept for its open paper positions"
    await desk.store.commit_trading({"positions": [open_position(B, closed_at=NOW)]})
    await desk.pass_time(2)
    assert list(desk.parts.instruments) == [A]


async def test_a_symbol_that_comes_back_before_it_was_forgotten_begins_anew(desk: Desk) -> None:
    await desk.store.commit_trading({"positions": [open_position(B)]})
    await desk.pass_time(1)
    await desk.change("remove", B)
    await desk.pass_time(120)
    await desk.change("add", B)
    await desk.pass_time(120)

    assert (set(desk.parts.symbols), desk.parts.leaving) == ({A, B}, set())
    assert await desk.decided(B) == [BOUNDARY + n * MINUTE for n in (3, 4)]


async def test_the_message_of_a_minute_counts_the_symbols_that_were_followed_when_it_closed(desk: Desk) -> None:
    await desk.pass_time(1)
    await desk.change("add", C)
    await desk.pass_time(50)
    await desk.change("remove", B)
    await desk.pass_time(70)

    told = [message.payload for message in await desk.store.pending_messages(99) if message.kind == "close"]
    assert ['"n":3' in each for each in told] == [True, False]
    assert ['"n":2' in each for each in told] == [False, True]


# ---- the exchange's list


async def test_a_changed_tick_or_step_holds_at_once(desk: Desk, logs: list[Any]) -> None:
    await desk.pass_time(1)
    desk.rest.change(A, tick_size=Decimal("0.5"), step_size=Decimal("2"))
    await desk.pass_time(400)

    assert desk.parts.instruments[A].round_price(10.3) == Decimal("10.5")
    [line] = [line for line in logs if line["event"] == "instrument_changed"]
    assert (line["symbol"], line["tick_size"], line["step_size"]) == (A, "0.1 → 0.5", "0.1 → 2")


async def test_the_list_is_asked_for_every_five_minutes_and_at_a_close_that_does_not_come(desk: Desk) -> None:
    await desk.pass_time(900)
    assert desk.rest.asked == 3
    await desk.pass_time(600, closes=False)

    assert 10 <= desk.rest.asked <= 3 + 2 * 10  # once a minute for the missing closes, and every five minutes


async def test_a_contract_that_ends_is_forgotten_after_its_last_candle(desk: Desk, logs: list[Any]) -> None:
    await desk.pass_time(1)
    end = BOUNDARY + 2 * MINUTE
    desk.rest.ends[B] = end
    await desk.pass_time((end - desk.clock.now_ms()) / 1000)
    desk.rest.change(B, status="SETTLING", delivery_time=end)
    await desk.pass_time(300)

    assert desk.parts.symbols == [A]
    assert await desk.decided(B) == [BOUNDARY + MINUTE, end]
    assert await desk.rows() == [(B, "delisted", "the exchange says SETTLING")]
    assert await desk.store.gaps() == []
    assert [line["symbol"] for line in logs if line["event"] == "contract_delisted"] == [B]


async def test_one_bad_list_ends_nothing_and_two_do_where_the_candles_are_missing_too(desk: Desk) -> None:
    await desk.pass_time(1)
    kept = desk.rest.instruments_by_symbol.pop(B)
    await desk.pass_time(700)  # two lists without it, and its candles come
    assert desk.parts.symbols == [A, B]
    desk.rest.ends[B] = last_boundary(desk.clock.now_ms())
    await desk.pass_time(180)

    assert desk.parts.symbols == [A]
    assert await desk.rows() == [(B, "delisted", "the exchange does not list it any more")]
    assert await desk.store.gaps() == []
    desk.rest.instruments_by_symbol[B] = kept
    del desk.rest.ends[B]
    await desk.pass_time(400)
    assert [row[:2] for row in await desk.rows()] == [(B, "delisted"), (B, "listed")]
    assert set(desk.parts.symbols) == {A, B}


async def test_a_contract_that_is_renamed_is_told_in_words_and_followed_by_a_person_only(desk: Desk) -> None:
    desk.rest.instruments_by_symbol["1000BBBUSDT"] = structs.replace(
        instrument("1000BBBUSDT"), onboard_time=NOW - MINUTE
    )
    desk.rest.ends[B] = BOUNDARY
    desk.rest.change(B, status="CLOSE")
    await desk.pass_time(60)

    [(_, action, reason)] = await desk.rows()
    assert action == "delisted"
    assert "perhaps renamed: 1000BBBUSDT" in reason
    assert "history stays under BBBUSDT" in reason
    assert desk.parts.symbols == [A]


@pytest.mark.parametrize("status", ["TRADING_HALT", "BREAK", "PENDING_TRADING", "PRE_SETTLE", "SOMETHING_NEW"])
async def test_a_halted_contract_stays_and_its_halt_and_end_are_told(desk: Desk, logs: list[Any], status: str) -> None:
    await desk.pass_time(1)
    desk.rest.change(B, status=status)
    await desk.pass_time(350)
    assert desk.parts.symbols == [A, B]
    assert desk.universe.status()["not_trading"] == {B: status}
    desk.rest.change(B, status="TRADING")
    await desk.pass_time(70)

    assert desk.universe.status()["not_trading"] == {}
    told = [line["event"] for line in logs if line["event"].startswith("contract")]
    assert told == ["contract_halted", "contract_trades_again"]
    assert await desk.rows() == []
    assert len(await desk.decided(B)) == len(await desk.decided(A))


async def test_an_announced_end_is_told_once_and_shown(desk: Desk, logs: list[Any]) -> None:
    end = NOW + 5 * 86_400_000
    desk.rest.change(A, delivery_time=4_133_404_800_000)
    desk.rest.change(B, delivery_time=end)
    await desk.pass_time(700)

    assert [line["symbol"] for line in logs if line["event"] == "contract_ends"] == [B]
    seen = await listings(desk.store)
    assert (seen[A].delivery_at, seen[B].delivery_at) == (None, end)


async def test_an_exchange_that_does_not_answer_changes_nothing(desk: Desk, logs: list[Any]) -> None:
    desk.rest.fails = True
    await desk.pass_time(60)
    assert desk.parts.symbols == [A, B]
    assert 5 <= len([line for line in logs if line["event"] == "instruments_not_read"]) <= 13
    desk.rest.fails = False
    await desk.change("add", C)
    await desk.pass_time(10)

    assert desk.parts.symbols == [A, B, C]


# ---- memory


async def test_two_hundred_comings_and_goings_leave_nothing_behind(desk: Desk) -> None:
    async def cycles(count: int) -> dict[str, int]:
        """The sizes of everything that is held after so many of them, and a quarter of an hour."""
        for _ in range(count):
            for symbol in (C, B):
                await desk.parts.follow(desk.rest.instruments_by_symbol[symbol])
                desk.parts.begin_deciding(symbol)
                now = desk.clock.now_ms()
                desk.parts.marks.handle(MarkPrice(symbol, 100.0, 100.0, 0.0001, now, now, now))
                desk.parts.books.handle(BookTicker(symbol, 99.9, 1.0, 100.1, 1.0, now, now, now))
                desk.parts.forget(symbol)
            await until_healed(desk.parts)
        desk.clock.advance(15 * 60.0)
        desk.parts.engine._sweep(desk.clock.now_ms())
        await desk.parts.engine.drain()
        await desk.parts.buffer.flush()
        return {path: size for path, size in sizes(desk.parts, "parts")} | {"rows": desk.parts.features._ints.nbytes}

    await cycles(1)
    before = await cycles(20)
    after = await cycles(200)

    grown = {path: (before.get(path, 0), size) for path, size in after.items() if size > before.get(path, 0) + 3}
    assert grown == {}


def sizes(thing: Any, path: str, seen: set[int] | None = None, depth: int = 0) -> Iterator[tuple[str, int]]:
    """The length of every container within perpline's objects, by where it is."""
    seen = set() if seen is None else seen
    if id(thing) in seen or depth > 6:
        return
    seen.add(id(thing))
    if isinstance(thing, (dict, list, set)) or type(thing).__name__ in ("deque", "Counter"):
        yield path, len(thing)
    if type(thing).__module__.startswith("perpline") and not isinstance(thing, type):
        names = list(getattr(thing, "__dict__", {})) + list(getattr(thing, "__struct_fields__", ()))
        for name in names:
            yield from sizes(getattr(thing, name, None), f"{path}.{name}", seen, depth + 1)
    elif isinstance(thing, dict):
        for key, value in list(thing.items())[:50]:
            yield from sizes(value, f"{path}[{str(key)[:12]}]", seen, depth + 1)
