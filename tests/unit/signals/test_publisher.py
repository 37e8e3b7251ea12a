import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from perpline.bus.memory import MemoryBus
from perpline.common.clock import ManualClock
from perpline.common.errors import Unavailable
from perpline.domain.signal import Message
from perpline.signals.publisher import Publisher

T0 = 1_795_219_260_000


class Outbox:
    """The part of a store that a publisher uses. Fails while `away`; forgets to mark while `forgetful`."""

    def __init__(self) -> None:
        self.messages: dict[int, Message] = {}
        self.published_at: dict[int, int] = {}
        self.away = False
        self.forgetful = False
        self.reads: list[list[int]] = []
        """What each read found, but those that found nothing."""

    def put(self, count: int = 1, kind: str = "signal") -> list[Message]:
        for _ in range(count):
            n = len(self.messages)
            self.messages[n] = Message(
                id=n,
                kind=kind,
                slot="champion",
                symbol="AUSDT",
                close_time=T0 + n * 60_000,
                payload=f'{{"n":{n}}}',
                valid_until=10**15,
            )
        return list(self.messages.values())[-count:]

    async def pending_messages(self, limit: int) -> list[Message]:
        if self.away:
            raise Unavailable("the database is away")
        found = [one for n, one in self.messages.items() if n not in self.published_at][:limit]
        if found:
            self.reads.append([one.id for one in found])
        return found

    async def mark_published(self, ids: list[int], published_at: int) -> None:
        if self.away or self.forgetful:
            raise Unavailable("the database went away")
        self.published_at |= dict.fromkeys(ids, published_at)


class Bus(MemoryBus):
    """Notes what it was given. While `away` it takes `takes` messages and then fails."""

    def __init__(self) -> None:
        super().__init__(keep=1000)
        self.away = False
        self.takes = 0
        self.given: list[int] = []
        self.tries = 0

    async def publish(self, messages: list[Message], now_ms: int) -> None:
        self.tries += 1
        taken = messages[: self.takes] if self.away else messages
        self.given += [one.id for one in taken]
        await super().publish(taken, now_ms)
        if self.away:
            raise Unavailable("the bus is away")

    @property
    def stream_numbers(self) -> list[str]:
        return [entry.fields["n"] for entry in self.stream("champion", "AUSDT")]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(T0)


@pytest.fixture
def outbox() -> Outbox:
    return Outbox()


@pytest.fixture
def bus() -> Bus:
    return Bus()


@pytest.fixture
def publisher(outbox: Outbox, bus: Bus, clock: ManualClock) -> Publisher:
    return made(outbox, bus, clock)


def made(outbox: Outbox, bus: Bus, clock: ManualClock, **options: object) -> Publisher:
    return Publisher(outbox, bus, clock, random.Random(7), **options)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def running(publisher: Publisher) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(publisher.run())
    await settle()
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def settle() -> None:
    for _ in range(150):
        await asyncio.sleep(0)


async def test_what_lies_in_the_outbox_at_the_start_is_published_in_order(
    publisher: Publisher, outbox: Outbox, bus: Bus
) -> None:
    outbox.put(5)

    async with running(publisher):
        pass

    assert bus.given == [0, 1, 2, 3, 4]
    assert outbox.published_at == dict.fromkeys(range(5), T0)


async def test_messages_that_follow_on_the_last_ones_are_published_without_reading_them(
    publisher: Publisher, outbox: Outbox, bus: Bus
) -> None:
    async with running(publisher):
        for _ in range(3):
            publisher.wake(outbox.put(2))
            await settle()

    assert bus.given == [0, 1, 2, 3, 4, 5]
    assert outbox.published_at == dict.fromkeys(range(6), T0)
    assert outbox.reads == [[0, 1]]


async def test_messages_behind_those_of_another_process_never_overtake_them(
    publisher: Publisher, outbox: Outbox, bus: Bus
) -> None:
    async with running(publisher):
        publisher.wake(outbox.put())
        await settle()
        outbox.put(2)  # the other process'
        publisher.wake(outbox.put())
        publisher.wake(outbox.put())
        await settle()

    assert bus.given == [0, 1, 2, 3, 4]
    assert outbox.reads == [[0], [1, 2, 3, 4]]


async def test_messages_handed_over_while_the_bus_is_away_are_published_once_and_in_order(
    publisher: Publisher, outbox: Outbox, bus: Bus, clock: ManualClock
) -> None:
    async with running(publisher):
        publisher.wake(outbox.put())
        await settle()
        bus.away, bus.takes = True, 1
        publisher.wake(outbox.put(2))
        await settle()
        publisher.wake(outbox.put(2))
        await settle()
        bus.away = False
        clock.advance(30)
        await settle()

    assert bus.stream_numbers == ["0", "1", "2", "3", "4"]
    assert sorted(outbox.published_at) == [0, 1, 2, 3, 4]
    assert outbox.reads[-1] == [1, 2, 3, 4]


@given(
    st.lists(st.sampled_from(["ours", "ours not told", "theirs", "settle", "bus away", "bus back"]), max_size=30),
    st.integers(1, 4),
)
async def test_whatever_is_handed_over_each_message_has_its_effect_once_and_in_order(
    steps: list[str], batch_size: int
) -> None:
    clock, outbox, bus = ManualClock(T0), Outbox(), Bus()
    publisher = made(outbox, bus, clock, batch_size=batch_size)
    async with running(publisher):
        for step in steps:
            if step == "ours":
                publisher.wake(outbox.put(2))
            elif step == "ours not told":
                outbox.put()
                publisher.wake()
            elif step == "theirs":
                outbox.put()
            elif step == "settle":
                await settle()
            else:
                bus.away, bus.takes = step == "bus away", 1
        bus.away = False
        for _ in range(3):
            clock.advance(30)
            await settle()

    assert bus.stream_numbers == [str(n) for n in range(len(outbox.messages))]
    assert list(outbox.published_at) == list(range(len(outbox.messages)))


async def test_a_wake_publishes_at_once(publisher: Publisher, outbox: Outbox, bus: Bus) -> None:
    async with running(publisher):
        outbox.put()
        await settle()
        assert bus.given == []

        publisher.wake()
        await settle()

    assert bus.given == [0]


async def test_a_wake_while_it_publishes_is_not_lost(outbox: Outbox, bus: Bus, clock: ManualClock) -> None:
    def put_another(messages: list[Message], wall_us: int) -> None:
        if len(outbox.messages) < 3:
            outbox.put()
            publisher.wake()

    publisher = made(outbox, bus, clock, on_published=put_another)
    async with running(publisher):
        outbox.put()
        publisher.wake()
        await settle()

    assert bus.given == [0, 1, 2]


async def test_messages_of_another_process_are_found_without_a_wake(
    publisher: Publisher, outbox: Outbox, bus: Bus, clock: ManualClock
) -> None:
    async with running(publisher):
        outbox.put()
        clock.advance(1)
        await settle()

    assert bus.given == [0]


async def test_while_the_bus_is_away_it_waits_longer_each_time_and_loses_nothing(
    publisher: Publisher, outbox: Outbox, bus: Bus, clock: ManualClock
) -> None:
    bus.away = True
    outbox.put(3)
    async with running(publisher):
        for _ in range(600):
            clock.advance(0.1)
            await settle()
        # A minute of waits of 1 to 2, 2 to 4, 4 to 8, then 5 to 10 seconds.
        assert 9 <= bus.tries <= 14
        found = publisher.statistics()
        assert (found.pending, found.published, found.last_error) == (3, 0, "the bus is away")
        assert found.failures == bus.tries

        bus.away = False
        clock.advance(10)
        await settle()

    assert bus.stream_numbers == ["0", "1", "2"]
    found = publisher.statistics()
    assert (found.pending, found.published, found.failures, found.last_error) == (0, 3, 0, "")
    assert found.last_published_ms == clock.now_ms()


async def test_while_the_store_is_away_it_waits_and_goes_on(
    publisher: Publisher, outbox: Outbox, bus: Bus, clock: ManualClock
) -> None:
    outbox.put()
    outbox.away = True
    async with running(publisher):
        assert publisher.statistics().last_error == "the database is away"

        outbox.away = False
        clock.advance(10)
        await settle()

    assert bus.given == [0]


async def test_what_was_published_and_could_not_be_marked_is_marked_later_and_not_sent_again(
    publisher: Publisher, outbox: Outbox, bus: Bus, clock: ManualClock
) -> None:
    outbox.put(2)
    outbox.forgetful = True
    async with running(publisher):
        outbox.forgetful = False
        clock.advance(10)
        await settle()

    assert bus.given == [0, 1]
    assert bus.stream_numbers == ["0", "1"]
    assert outbox.published_at.keys() == {0, 1}


async def test_a_successor_goes_on_where_a_dead_publisher_stopped(outbox: Outbox, bus: Bus, clock: ManualClock) -> None:
    outbox.put(4)
    bus.away, bus.takes = True, 2
    async with running(made(outbox, bus, clock)):
        pass

    bus.away = False
    async with running(made(outbox, bus, clock)):
        pass

    assert bus.stream_numbers == ["0", "1", "2", "3"]


async def test_more_than_a_batch_is_published_without_waiting(outbox: Outbox, bus: Bus, clock: ManualClock) -> None:
    outbox.put(25)

    async with running(made(outbox, bus, clock, batch_size=10)):
        pass

    assert bus.given == list(range(25))
    assert bus.tries == 3


async def test_published_messages_are_told_with_the_wall_time_before_they_are_marked(
    outbox: Outbox, bus: Bus, clock: ManualClock
) -> None:
    told: list[tuple[list[int], int, int]] = []

    def note(messages: list[Message], wall_us: int) -> None:
        told.append(([one.id for one in messages], wall_us, len(outbox.published_at)))

    outbox.put(2)
    clock.advance(3)
    async with running(made(outbox, bus, clock, on_published=note)):
        pass

    assert told == [([0, 1], 3_000_000, 0)]


async def test_every_message_carries_the_time_it_was_first_published_and_only_there(
    publisher: Publisher, outbox: Outbox, bus: Bus, clock: ManualClock
) -> None:
    outbox.put(2)
    outbox.forgetful = True
    async with running(publisher):
        outbox.forgetful = False
        clock.advance(10)
        await settle()

    found = [entry.fields for entry in bus.stream("champion", "AUSDT")]
    assert found == [{"n": str(n), "t_pub_us": str(T0 * 1000), "T": str(T0 + n * 60_000)} for n in range(2)]
    assert [one.payload for one in outbox.messages.values()] == ['{"n":0}', '{"n":1}']


async def test_flush_empties_the_outbox_or_says_why_not(publisher: Publisher, outbox: Outbox, bus: Bus) -> None:
    outbox.put(3)
    bus.away = True
    with pytest.raises(Unavailable):
        await publisher.flush()

    bus.away = False
    await publisher.flush()

    assert bus.stream_numbers == ["0", "1", "2"]


async def test_a_message_no_bus_can_take_is_heard(publisher: Publisher, outbox: Outbox) -> None:
    outbox.put()
    outbox.messages[0] = replace(outbox.messages[0], payload="not json")

    async with running(publisher) as task:
        with pytest.raises(ValueError, match="JSON"):
            await task


OTHER_STEPS = ["bus back", "store away", "store back", "forget", "kill", "wait", "wake"]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(1, 4)),
            st.tuples(st.just("bus fails after"), st.integers(0, 4)),
            st.tuples(
                st.sampled_from(["bus back", "store away", "store back", "forget", "kill", "wait", "wake"]), st.just(0)
            ),
        ),
        max_size=30,
    )
)
async def test_no_history_loses_repeats_or_reorders_a_signal(steps: list[tuple[str, int]]) -> None:
    clock, outbox, bus = ManualClock(T0), Outbox(), Bus()
    publisher = made(outbox, bus, clock, batch_size=3)
    heard = bus.subscribe()
    task = asyncio.create_task(publisher.run())
    for step, count in steps:
        match step:
            case "put":
                outbox.put(count)
                publisher.wake()
            case "bus fails after":
                bus.away, bus.takes = True, count
            case "bus back":
                bus.away = False
            case "store away":
                outbox.away = True
            case "store back":
                outbox.away = outbox.forgetful = False
            case "forget":
                outbox.forgetful = True
            case "wake":
                publisher.wake()
            case "wait":
                clock.advance(10)
            case "kill":
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                publisher = made(outbox, bus, clock, batch_size=3)
                task = asyncio.create_task(publisher.run())
        await settle()
    outbox.away = outbox.forgetful = bus.away = False
    clock.advance(20)
    await settle()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    everything = [str(n) for n in range(len(outbox.messages))]
    assert bus.stream_numbers == everything
    assert [(await anext(heard)).payload.split(",")[0] for _ in everything] == [f'{{"n":{n}' for n in everything]
    assert outbox.published_at.keys() == set(outbox.messages)
