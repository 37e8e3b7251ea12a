"""Batches of feature rows: what the codec takes, and what it refuses."""

import asyncio
from itertools import count

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from perpline.bus.feature_stream import (
    FORMAT,
    FeatureBatch,
    FeatureRow,
    FeatureStream,
    ShardCard,
    decoded,
    encoded,
)
from perpline.common.errors import Malformed, NeedsPerson
from perpline.domain.market import BookTicker, MarkPrice

T0 = 1_795_219_260_000
WIDTH = 5
ROW = FeatureRow(
    symbol="BTCUSDT",
    vector=bytes(4 * WIDTH),
    held=1441,
    restarted=False,
    late=0b101,
    received_us=T0 * 1000 + 300_123,
    mark=MarkPrice("BTCUSDT", 84551.5, 84550.1, 0.0001, T0 + 1, T0 - 500, T0 - 480),
    book=BookTicker("BTCUSDT", 84551.4, 1.5, 84551.6, 0.1 + 0.2, 11, T0 - 90, T0 - 80),
    candle=None,
)
BATCH = FeatureBatch(FORMAT, T0, 1, 2, "card", T0 + 310, [ROW])

slots = (f"stream{n}" for n in count())


def card(shard: int, of: int, **changes: object) -> ShardCard:
    values = {
        "id": f"{shard}/{of}", "shard": shard, "of": of, "symbols": {"BTCUSDT": T0}, "instruments": {},
        "lookback_min": 1441, "cross_section": False, "tables": [], "book_minutes": True, "schema": "s", "version": "1",
    }  # fmt: skip
    return ShardCard(**{**values, **changes})  # type: ignore[arg-type]


@given(
    st.lists(st.floats(width=32), min_size=WIDTH, max_size=WIDTH),
    st.integers(0, 10**6),
    st.integers(0, 511),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_a_batch_comes_back_with_every_bit(values: list[float], held: int, late: int, price: float) -> None:
    vector = msgspec.msgpack.encode(values)[: 4 * WIDTH].ljust(4 * WIDTH, b"\0")
    mark = MarkPrice("XUSDT", price, price, -price, 0, T0, T0)
    row = replace(ROW, vector=vector, held=held, late=late, mark=mark)
    batch = replace(BATCH, rows=[row, ROW])

    assert decoded(encoded(batch), WIDTH) == batch


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "no batch of features"),
        (b"\xc1", "no batch of features"),
        (b"\x91" * 100_000, "no batch of features"),
        (encoded(BATCH)[:-3], "no batch of features"),
        (encoded(replace(BATCH, format=2)), "of format 2"),
        (encoded(replace(BATCH, close_time=T0 + 1)), "a batch of shard 1/2 for T"),
        (encoded(replace(BATCH, shard=3)), "a batch of shard 3/2"),
        (encoded(replace(BATCH, rows=[replace(ROW, vector=b"1234")])), "a vector of 4 bytes"),
        (encoded(replace(BATCH, rows=[replace(ROW, held=-1)])), "-1 minutes held"),
        (bytes(5 << 20), "are no batch"),
    ],
    ids=["nothing", "no msgpack", "deep", "cut off", "format", "time", "shard", "vector", "held", "huge"],
)
def test_what_is_no_batch_is_malformed(data: bytes, told: str) -> None:
    with pytest.raises(Malformed, match=told):
        decoded(data, WIDTH)


@given(st.binary(max_size=300), st.integers(0, 290))
def test_no_bytes_at_all_do_more_than_be_malformed(noise: bytes, at: int) -> None:
    good = encoded(BATCH)
    for data in (noise, good[:at] + noise + good[at + len(noise) :]):
        try:
            assert decoded(data, WIDTH).rows is not None
        except Malformed:
            pass


async def test_each_entry_goes_to_one_of_a_group_until_it_is_done_and_everybody_hears_all(redis_url: str) -> None:
    slot = next(slots)
    one, two = (FeatureStream(redis_url, slot, group="inf", consumer=name, width=WIDTH) for name in "ab")
    for stream in (one, two):
        await stream.open()
        await stream.join()
    for minute in range(3):
        await one.publish(replace(BATCH, close_time=T0 + minute * 60_000))

    taken = [*await one.take(wait=False), *await two.take(wait=False), *await two.take(wait=False)]
    assert [each.batch.close_time - T0 for each in taken if each.batch] == [0, 60_000, 120_000]
    assert await one.take(wait=False) == []
    assert [each.id for each in await two.hear("0")] == [each.id for each in taken]
    await two.done([taken[1].id])
    assert (await two.waiting())["pending"] == 2
    assert await one.claim(60_000) == [], "nobody has been dead for so long"
    await asyncio.sleep(0.02)
    [first], [second] = await one.claim(10), await one.claim(10)
    assert {first.id, second.id} == {taken[0].id, taken[2].id}
    await one.done([first.id, second.id])
    assert (await two.waiting())["pending"] == 0
    await two.leave()
    assert (await one.waiting())["members"] == 1
    for stream in (one, two):
        await stream.close()


async def test_what_cannot_be_read_is_an_entry_that_says_why(redis_url: str) -> None:
    slot = next(slots)
    stream = FeatureStream(redis_url, slot, group="inf", consumer="a", width=WIDTH)
    await stream.open()
    await stream.join()
    await stream._do("XADD", f"feat:{slot}", "*", "other", "x")
    await stream._do("XADD", f"feat:{slot}", "*", "b", b"\xc1")

    entries = await stream.hear("0")
    assert [each.batch for each in entries] == [None, None]
    assert all("no batch of features" in each.error for each in entries)
    await stream.close()


async def test_a_server_that_forgot_everything_gets_the_group_and_the_cards_anew(redis_url: str) -> None:
    slot = next(slots)
    stream = FeatureStream(redis_url, slot, group="inf", consumer="a", width=WIDTH)
    await stream.open()
    await stream.join()
    await stream.register(card(1, 2), "me")
    await stream._do("DEL", f"feat:{slot}", f"feat:{slot}:shards")

    assert await stream.claim(0) == []
    assert await stream.take(wait=False) == []
    await stream.publish(BATCH)
    assert len(await stream.take(wait=False)) == 1
    await stream.say_alive(card(1, 2), "me")
    assert await stream.cards() == [card(1, 2)]
    await stream.close()


async def test_cards_of_another_number_of_shards_stay_while_one_of_their_collectors_lives(redis_url: str) -> None:
    slot = next(slots)
    stream = FeatureStream(redis_url, slot)
    await stream.open()
    await stream.register(card(1, 2), "first")
    await stream.register(card(2, 2), "second")
    with pytest.raises(NeedsPerson, match=r"a collector with --shard 1/2 is running, and this one is 1/3"):
        await stream.register(card(1, 3), "third")
    await stream._do("DEL", f"feat:{slot}:alive:1/2", f"feat:{slot}:alive:2/2")
    await stream.register(card(1, 3), "third")

    assert await stream.cards() == [card(1, 3)]
    await stream.close()
