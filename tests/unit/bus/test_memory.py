from perpline.bus.memory import Announcement, MemoryBus
from perpline.domain.signal import Message


def message(n: int, symbol: str = "AUSDT") -> Message:
    payload = f'{{"n":{n}}}'
    return Message(
        id=n, kind="signal", slot="champion", symbol=symbol, close_time=n, payload=payload, valid_until=10**15
    )


async def test_a_stream_keeps_only_the_newest_signals() -> None:
    bus = MemoryBus(keep=3)

    await bus.publish([message(n) for n in range(10)], 0)
    await bus.publish([message(6)], 0)

    assert [entry.id for entry in bus.stream("champion", "AUSDT")] == ["7-0", "8-0", "9-0"]


async def test_a_subscriber_that_does_not_keep_up_loses_the_oldest_and_is_told_how_many() -> None:
    bus = MemoryBus()
    slow = bus.subscribe(limit=2)
    quick = bus.subscribe()

    await bus.publish([message(n) for n in range(5)], 0)

    assert slow.dropped == 3
    assert await anext(slow) == Announcement("sig.AUSDT", '{"n":3}')
    assert quick.dropped == 0
    assert await anext(quick) == Announcement("sig.AUSDT", '{"n":0}')


async def test_who_has_left_hears_nothing_and_holds_up_nobody() -> None:
    bus = MemoryBus()
    gone, here = bus.subscribe(limit=1), bus.subscribe()
    gone.close()
    gone.close()

    await bus.publish([message(n) for n in range(5)], 0)

    assert gone.dropped == 0
    assert await anext(here) == Announcement("sig.AUSDT", '{"n":0}')


async def test_a_symbol_without_signals_has_an_empty_stream_and_no_last() -> None:
    bus = MemoryBus()

    assert bus.stream("champion", "AUSDT") == []
    assert bus.last("champion", "AUSDT") == {}
