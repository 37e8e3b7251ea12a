"""Closed candles reach their sinks once each and in order, whatever the stream and REST do."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

from perpline.collector.gaps import CandleSequence, ClosedCandles, GapLedger
from perpline.common.clock import ManualClock
from perpline.common.errors import Unavailable
from perpline.domain.candle import Candle, KlineUpdate, closed_candle, quantised_log

MINUTE = 60_000
TOTAL = 60
"""Minutes in a seeded history."""
START = 1_790_000_040_000 - 1_790_000_040_000 % MINUTE


def kline(n: int, *, close: float = 100.0, closed: bool = True, source: str = "ws", volume: float = 3.0) -> KlineUpdate:
    """The n-th minute after START."""
    open_time = START + n * MINUTE
    return KlineUpdate(
        symbol="BTCUSDT",
        interval="1m",
        open_time=open_time,
        close_time=open_time + MINUTE - 1,
        open=100.0,
        high=max(100.0, close),
        low=min(100.0, close),
        close=close,
        volume=volume,
        quote_volume=300.0,
        trades=5,
        taker_buy_volume=1.0,
        taker_buy_quote_volume=100.0,
        closed=closed,
        source=source,  # type: ignore[arg-type]
        event_time=open_time + MINUTE,
        received_at=open_time + MINUTE + 5,
    )


def candle(n: int) -> Candle:
    return closed_candle(kline(n))


def minutes(candles: list[Candle]) -> list[int]:
    return [(each.open_time - START) // MINUTE for each in candles]


class Exchange:
    """A REST side that has `existing` minutes, of which it shows those below `visible` and then a forming one."""

    def __init__(self, existing: set[int]) -> None:
        self.existing = existing
        self.visible = 0
        self.away = False
        self.asked: list[tuple[int, int]] = []

    async def candles(self, symbol: str, interval: str, start: int, end: int) -> list[KlineUpdate]:
        self.asked.append(((start - START) // MINUTE, (end - START) // MINUTE))
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("the exchange does not answer")
        return [
            kline(n, source="rest", closed=n < self.visible)
            for n in sorted(self.existing | {self.visible})
            if n <= self.visible and start <= START + n * MINUTE < end
        ]


class Book:
    """Everything that was delivered, noted in the ledger, revised and repaired."""

    def __init__(self) -> None:
        self.delivered: list[Candle] = []
        self.opened_gaps: list[tuple[int, int, str]] = []
        self.closed_gaps: list[tuple[int, int, str]] = []
        self.revised: list[tuple[object, ...]] = []
        self.repaired: list[Candle] = []

    def opened(self, symbol: str, series: str, from_time: int, to_time: int, cause: str) -> None:
        self.opened_gaps.append(((from_time - START) // MINUTE, (to_time - START) // MINUTE, cause))

    def closed(self, symbol: str, series: str, from_time: int, to_time: int, repaired_by: str) -> None:
        self.closed_gaps.append(((from_time - START) // MINUTE, (to_time - START) // MINUTE, repaired_by))

    async def repair(self, candles: list[Candle]) -> None:
        self.repaired += candles


def door(book: Book, exchange: Exchange, clock: ManualClock) -> ClosedCandles:
    async def stored(interval: str, symbol: str, open_time: int) -> Candle | None:
        return next((each for each in book.delivered if each.open_time == open_time), None)

    closed = ClosedCandles(
        clock=clock,
        fetch=exchange.candles,
        deliver=book.delivered.append,
        ledger=book,
        revise=book.revised.append,
        stored=stored,
        repaired=book.repair,
        repair_since=lambda interval, now: now - 240 * MINUTE,
    )
    closed.expect("BTCUSDT", "1m", START)
    return closed


async def settle(turns: int = 30) -> None:
    """Let every task that can run do so."""
    for _ in range(turns):
        await asyncio.sleep(0)


Step = Callable[[ClosedCandles, Exchange, ManualClock], Awaitable[None]]


async def play(existing: set[int], steps: Step) -> Book:
    book, exchange, clock = Book(), Exchange(existing), ManualClock(START)
    closed = door(book, exchange, clock)
    running = asyncio.create_task(closed.run())
    await settle()
    await steps(closed, exchange, clock)
    await settle()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return book


@pytest.mark.parametrize("histories", [600, pytest.param(3000, marks=pytest.mark.full)])
async def test_in_seeded_histories_every_minute_is_delivered_once_in_order_and_made_where_it_is_absent(
    histories: int,
) -> None:
    """Losses, repeats, old messages, disorder, REST a candle behind, minutes the exchange itself lacks."""
    for seed in range(histories):
        rng = random.Random(seed)
        existing = {n for n in range(TOTAL) if n == 0 or rng.random() > 0.05}

        async def steps(
            closed: ClosedCandles, exchange: Exchange, clock: ManualClock, rng: random.Random = rng
        ) -> None:
            behind = rng.choice((0, 0, 1))
            for n in range(TOTAL):
                clock.set_ms(START + (n + 1) * MINUTE + rng.randint(100, 2000))
                exchange.visible = n + 1 - behind
                await settle(2)
                arriving = [n] if n in exchange.existing and rng.random() > 0.2 else []
                if rng.random() < 0.2:
                    arriving.append(rng.randint(max(0, n - 10), n))
                if arriving and rng.random() < 0.1:
                    arriving *= 2
                rng.shuffle(arriving)
                for each in arriving:
                    if each in exchange.existing:
                        closed.offer(candle(each))
                        if rng.random() < 0.5:
                            await settle(2)
                for wait_s in (3.0, 1.0, 2.0):
                    clock.advance(wait_s)
                    await settle(3)
            # A minute after the last one REST is no longer behind.
            exchange.visible = TOTAL + 2
            exchange.existing |= {TOTAL, TOTAL + 1}
            clock.set_ms(START + (TOTAL + 1) * MINUTE + 200)
            closed.offer(candle(TOTAL))
            for _ in range(12):
                clock.advance(5.0)
                await settle(4)

        book = await play(set(existing), steps)

        assert minutes(book.delivered) == list(range(len(book.delivered))), f"seed {seed}"
        assert len(book.delivered) > TOTAL, f"seed {seed}"
        made = {(each.open_time - START) // MINUTE for each in book.delivered if each.synthetic}
        assert made == set(range(TOTAL)) - existing, f"seed {seed}"
        absent = {n for start, end, by in book.closed_gaps if by == "absent" for n in range(start, end)}
        assert absent == set(range(TOTAL)) - existing, f"seed {seed}"


def test_delivering_at_once_and_replaying_what_is_missing_would_lose_candles() -> None:
    """Why the sequence exists: the obvious rule drops the fill as old."""
    newest, kept = -1, []
    for n in (0, 2, 1):  # 2 came live, 1 from REST
        if n > newest:
            kept.append(n)
            newest = n

    assert kept == [0, 2]

    sequence = CandleSequence("1m", START)
    delivered = [each for n in (0, 2, 1) for each in sequence.offer(candle(n)).delivered]

    assert minutes(delivered) == [0, 1, 2]


async def test_a_close_that_does_not_come_is_fetched_after_its_deadline_and_not_before() -> None:
    async def steps(closed: ClosedCandles, exchange: Exchange, clock: ManualClock) -> None:
        exchange.visible = 2
        clock.set_ms(START + MINUTE + 2_900)
        await settle()
        assert exchange.asked == []
        clock.advance(0.2)
        await settle()
        assert exchange.asked == [(0, 3)]
        assert closed.late_closes == 1

    book = await play({0, 1}, steps)

    assert [each.source for each in book.delivered] == ["rest", "rest"]


async def test_the_closing_frame_that_comes_after_rest_is_compared_and_a_difference_is_a_revision() -> None:
    async def steps(closed: ClosedCandles, exchange: Exchange, clock: ManualClock) -> None:
        exchange.visible = 1
        clock.set_ms(START + MINUTE + 3_100)
        await settle()
        assert closed.offer(closed_candle(kline(0))) == "old"
        assert closed.offer(closed_candle(kline(0, close=101.0, volume=4.0))) == "old"

    book = await play({0}, steps)

    assert minutes(book.delivered) == [0]
    assert [(row[2], row[3], row[4], row[5], row[6]) for row in book.revised] == [
        (START, "high", "100.0", "101.0", "rest,ws"),
        (START, "close", "100.0", "101.0", "rest,ws"),
        (START, "volume", "3.0", "4.0", "rest,ws"),
    ]


async def test_a_hole_is_a_gap_row_and_rest_closes_it_before_the_held_candle_is_delivered() -> None:
    async def steps(closed: ClosedCandles, exchange: Exchange, clock: ManualClock) -> None:
        exchange.visible = 5
        clock.set_ms(START + 5 * MINUTE + 300)
        assert closed.offer(candle(0)) == "delivered"
        assert closed.offer(candle(4)) == "held"
        await settle()

    book = await play(set(range(5)), steps)

    assert minutes(book.delivered) == [0, 1, 2, 3, 4]
    assert [gap[:2] for gap in book.opened_gaps] == [(1, 4)]
    assert book.closed_gaps == [(1, 4, "rest")]


async def test_when_rest_does_not_answer_within_30_s_the_held_candle_goes_on_and_the_gap_stays_open() -> None:
    async def steps(closed: ClosedCandles, exchange: Exchange, clock: ManualClock) -> None:
        exchange.away = True
        clock.set_ms(START + 3 * MINUTE + 300)
        closed.offer(candle(0))
        closed.offer(candle(2))
        for _ in range(10):
            clock.advance(2.0)
            await settle()
        assert closed.next_open("BTCUSDT", "1m") == START + MINUTE
        for _ in range(10):
            clock.advance(2.0)
            await settle()
        assert closed.next_open("BTCUSDT", "1m") == START + 3 * MINUTE

    book = await play({0, 1, 2}, steps)

    assert minutes(book.delivered) == [0, 2]
    assert [gap[:2] for gap in book.opened_gaps] == [(1, 2)]
    assert book.closed_gaps == []


async def test_a_gap_that_was_given_up_is_repaired_later_without_being_delivered_late() -> None:
    async def steps(closed: ClosedCandles, exchange: Exchange, clock: ManualClock) -> None:
        exchange.away = True
        clock.set_ms(START + 3 * MINUTE + 300)
        closed.offer(candle(0))
        closed.offer(candle(2))
        for _ in range(20):
            clock.advance(2.0)
            await settle()
        exchange.away = False
        exchange.visible = 3
        clock.advance(15.0)
        await settle()

    book = await play({0, 1, 2}, steps)

    assert minutes(book.delivered) == [0, 2]
    assert minutes(book.repaired) == [1]
    assert book.closed_gaps == [(1, 2, "rest")]


async def test_a_minute_rest_lacks_is_marked_absent_only_when_rest_shows_a_later_one() -> None:
    async def steps(closed: ClosedCandles, exchange: Exchange, clock: ManualClock) -> None:
        exchange.visible = 1  # REST is behind: minute 1 is still forming in its eyes
        clock.set_ms(START + 3 * MINUTE + 300)
        closed.offer(candle(0))
        closed.offer(candle(2))
        clock.advance(1.0)
        await settle()
        assert closed.next_open("BTCUSDT", "1m") == START + MINUTE
        exchange.visible = 3
        clock.advance(2.0)
        await settle()

    book = await play({0, 2}, steps)

    assert minutes(book.delivered) == [0, 1, 2]
    assert [each.synthetic for each in book.delivered] == [False, True, False]
    assert (1, 2, "absent") in book.closed_gaps


async def test_a_minute_that_does_not_exist_is_flat_at_the_close_before_with_nothing_traded() -> None:
    async def steps(closed: ClosedCandles, exchange: Exchange, clock: ManualClock) -> None:
        closed.offer(closed_candle(kline(0, close=100.5)))
        exchange.visible = 4
        clock.set_ms(START + 4 * MINUTE + 300)
        closed.offer(candle(3))
        await settle()
        assert closed.synthetic == 2

    book = await play({0, 3}, steps)

    before, *made, _ = book.delivered
    log = quantised_log(100.5)
    for n, each in enumerate(made, 1):
        assert (each.open_time, each.close_time) == (START + n * MINUTE, START + (n + 1) * MINUTE - 1)
        assert {each.open, each.high, each.low, each.close} == {before.close}
        assert {each.log_open, each.log_high, each.log_low, each.log_close} == {log}
        assert {each.volume, each.quote_volume, each.taker_buy_volume, each.taker_buy_quote_volume, each.trades} == {0}
        assert (each.synthetic, each.source) == (True, "rest")


async def test_the_real_candle_of_a_minute_that_was_made_is_a_revision() -> None:
    async def steps(closed: ClosedCandles, exchange: Exchange, clock: ManualClock) -> None:
        closed.offer(candle(0))
        exchange.visible = 3
        clock.set_ms(START + 3 * MINUTE + 300)
        closed.offer(candle(2))
        await settle()
        assert closed.offer(candle(1)) == "old"

    book = await play({0, 2}, steps)

    assert minutes(book.delivered) == [0, 1, 2]
    assert (START + MINUTE, "volume", "0.0", "3.0", "rest,ws") in [
        (row[2], row[3], row[4], row[5], row[6]) for row in book.revised
    ]


async def test_an_absent_minute_with_nothing_known_before_it_is_passed_and_not_made_up() -> None:
    async def steps(closed: ClosedCandles, exchange: Exchange, clock: ManualClock) -> None:
        exchange.visible = 3
        clock.set_ms(START + 3 * MINUTE + 300)
        closed.offer(candle(2))
        await settle()

    book = await play({2}, steps)

    assert minutes(book.delivered) == [2]
    assert (0, 2, "absent") in book.closed_gaps


async def test_the_stored_candle_of_an_earlier_process_is_what_the_first_absent_minute_is_made_of() -> None:
    async def steps(closed: ClosedCandles, exchange: Exchange, clock: ManualClock) -> None:
        closed.expect("BTCUSDT", "1m", START + MINUTE, last=closed_candle(kline(0, close=102.0)))
        exchange.visible = 3
        clock.set_ms(START + 3 * MINUTE + 300)
        closed.offer(candle(2))
        await settle()

    book = await play({0, 2}, steps)

    assert [(each.close, each.synthetic) for each in book.delivered] == [(102.0, True), (100.0, False)]


async def test_an_absent_minute_of_a_gap_that_was_given_up_is_made_when_the_rest_is_repaired() -> None:
    async def steps(closed: ClosedCandles, exchange: Exchange, clock: ManualClock) -> None:
        exchange.away = True
        clock.set_ms(START + 5 * MINUTE + 300)
        closed.offer(candle(0))
        closed.offer(candle(4))
        for _ in range(20):
            clock.advance(2.0)
            await settle()
        exchange.away = False
        exchange.visible = 5
        clock.advance(15.0)
        await settle()

    book = await play({0, 1, 3, 4}, steps)

    assert minutes(book.delivered) == [0, 4]
    assert [(minute, each.synthetic) for minute, each in zip(minutes(book.repaired), book.repaired, strict=True)] == [
        (1, False),
        (2, True),
        (3, False),
    ]
    assert book.closed_gaps == [(1, 4, "absent")]


async def test_a_candle_that_comes_while_recovery_still_loads_the_ones_before_is_no_gap() -> None:
    async def steps(closed: ClosedCandles, exchange: Exchange, clock: ManualClock) -> None:
        exchange.visible = 4
        clock.set_ms(START + 4 * MINUTE + 300)
        closed.expect("BTCUSDT", "1m", START, load_until=START + 3 * MINUTE)
        assert closed.offer(candle(3)) == "held"
        await settle()

    book = await play(set(range(4)), steps)

    assert minutes(book.delivered) == [0, 1, 2, 3]
    assert book.opened_gaps == []


async def test_what_rest_answers_after_a_symbol_was_forgotten_is_nobodys_and_one_that_came_back_is_healed() -> None:
    async def steps(closed: ClosedCandles, exchange: Exchange, clock: ManualClock) -> None:
        exchange.visible = 4
        clock.set_ms(START + 4 * MINUTE + 300)
        answer = asyncio.Event()
        candles = exchange.candles

        async def late(symbol: str, interval: str, start: int, end: int) -> list[KlineUpdate]:
            found = await candles(symbol, interval, start, end)
            await answer.wait()
            return found

        closed._fetch = late
        closed.heal("BTCUSDT", "1m", START + 4 * MINUTE)
        await settle()
        closed.forget("BTCUSDT")
        closed.expect("BTCUSDT", "1m", START + 2 * MINUTE, load_until=START + 4 * MINUTE)
        await settle()
        assert closed.is_healing("BTCUSDT")
        answer.set()
        await settle()
        assert not closed.is_healing("BTCUSDT")

    book = await play({0, 1, 2, 3}, steps)

    assert minutes(book.delivered) == [2, 3]
    assert book.opened_gaps == []


async def test_a_gap_of_a_symbol_that_is_forgotten_is_neither_repaired_nor_given_up() -> None:
    async def steps(closed: ClosedCandles, exchange: Exchange, clock: ManualClock) -> None:
        exchange.away = True
        clock.set_ms(START + 3 * MINUTE + 300)
        closed.offer(candle(0))
        closed.offer(candle(2))
        clock.advance(2.0)
        await settle()
        closed.forget("BTCUSDT")
        exchange.away, exchange.visible = False, 3
        for _ in range(40):
            clock.advance(2.0)
            await settle()

    book = await play({0, 1, 2}, steps)

    assert (minutes(book.delivered), book.repaired) == ([0], [])


async def test_a_long_window_is_taken_in_parts_between_which_others_have_their_turn() -> None:
    """1,500 candles at once are 40 ms, in which the close of another symbol would not even be read."""
    turns: list[int] = []

    async def count_turns(book: Book) -> None:
        while True:
            turns.append(len(book.delivered))
            await asyncio.sleep(0)

    exchange, clock, book = Exchange(set(range(1000))), ManualClock(START), Book()
    exchange.visible = 1000
    clock.set_ms(START + 1000 * MINUTE + 300)
    closed = door(book, exchange, clock)
    closed.expect("BTCUSDT", "1m", START, load_until=START + 1000 * MINUTE)
    tasks = [asyncio.create_task(closed.run()), asyncio.create_task(count_turns(book))]
    await settle(100)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)

    assert minutes(book.delivered) == list(range(1000))
    assert max(later - earlier for earlier, later in pairwise(turns)) <= 100


async def test_a_close_that_comes_between_the_parts_of_a_window_waits_for_its_turn_and_is_no_gap() -> None:
    exchange, clock, book = Exchange(set(range(301))), ManualClock(START), Book()
    exchange.visible = 300
    clock.set_ms(START + 300 * MINUTE + 300)
    closed = door(book, exchange, clock)
    closed.expect("BTCUSDT", "1m", START, load_until=START + 300 * MINUTE)
    task = asyncio.create_task(closed.run())
    while not book.delivered:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert len(book.delivered) < 300
    exchange.visible = 301
    assert closed.offer(candle(300)) == "held"
    await settle(100)
    task.cancel()
    await asyncio.wait([task])

    assert minutes(book.delivered) == list(range(301))
    assert book.opened_gaps == []


def test_the_sequence_holds_a_bounded_number_and_then_gives_up_the_oldest_hole() -> None:
    sequence = CandleSequence("1m", START, max_held=3)
    delivered = [each for n in (1, 2, 4, 6) for each in sequence.offer(candle(n)).delivered]

    assert minutes(delivered) == [1, 2]
    assert sequence.next_open == START + 3 * MINUTE


async def test_a_store_that_is_away_delays_the_ledger_and_loses_none_of_its_rows() -> None:
    clock = ManualClock(START)
    rows: list[tuple[object, ...]] = []
    away = True

    async def open_gap(*row: object) -> int:
        if away:
            raise Unavailable("database is away")
        rows.append(("open", *row))
        return 7

    async def close_gap(*row: object) -> None:
        rows.append(("close", *row))

    ledger = GapLedger(clock, open_gap, close_gap)  # type: ignore[arg-type]
    ledger.opened("BTCUSDT", "candles_1m", 0, MINUTE, "test")
    ledger.closed("BTCUSDT", "candles_1m", 0, MINUTE, "rest")
    writing = asyncio.create_task(ledger.flush())
    await settle()
    assert rows == []
    away = False
    clock.advance(1.1)
    await writing

    assert rows == [
        ("open", "BTCUSDT", "candles_1m", 0, MINUTE, "test", START),
        ("close", 7, START, "rest"),
    ]


async def test_a_forming_row_of_rest_is_never_taken_for_a_candle() -> None:
    async def steps(closed: ClosedCandles, exchange: Exchange, clock: ManualClock) -> None:
        closed.offer_row(kline(0, closed=False))

    book = await play(set(), steps)

    assert book.delivered == []
