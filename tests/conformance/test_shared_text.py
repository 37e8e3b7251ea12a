"""What every shared text promises (perpline.exchange.binance.budget.SharedText)."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from itertools import count
from pathlib import Path

import apsw
import pytest

from perpline.bus.redis_text import RedisText
from perpline.common.errors import NeedsPerson, Unavailable
from perpline.exchange.binance.budget import SharedText
from perpline.storage.shared_text import PostgresText, SqliteText

Make = Callable[[str], SharedText]
_numbers = count()


@pytest.fixture(params=["sqlite", "redis", "postgresql"])
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Make]:
    """Makes texts of a name; what is made with the same name is the same text."""
    made: list[SharedText] = []
    prefix = f"test{os.getpid()}x{next(_numbers)}"
    if request.param == "sqlite":
        url = ""
    elif request.param == "redis":
        url = request.getfixturevalue("redis_url")
    else:
        url = request.getfixturevalue("postgres_database").url

    def text(name: str) -> SharedText:
        if request.param == "sqlite":
            made.append(SqliteText(tmp_path / "perpline.db-budget", prefix + name))
        elif request.param == "redis":
            made.append(RedisText(url, prefix + name))
        else:
            made.append(PostgresText(url, prefix + name))
        return made[-1]

    yield text
    for each in made:
        await each.close()


async def test_a_new_text_is_empty(make: Make) -> None:
    assert await make("a").read() == ""


async def test_a_swapped_text_is_read_by_the_others(make: Make) -> None:
    mine, yours = make("a"), make("a")
    assert await mine.swap("", '{"weight": "ä"}')
    assert await yours.read() == '{"weight": "ä"}'
    assert await yours.swap('{"weight": "ä"}', "2")

    assert await mine.read() == "2"


async def test_a_text_that_another_has_changed_is_not_swapped(make: Make) -> None:
    mine, yours = make("a"), make("a")
    await mine.swap("", "1")

    assert not await yours.swap("", "2")
    assert not await yours.swap("0", "2")
    assert await mine.read() == "1"


async def test_texts_of_different_names_are_apart(make: Make) -> None:
    mine, yours = make("a"), make("b")
    await mine.swap("", "1")

    assert await yours.read() == ""


async def test_of_many_that_swap_at_once_each_step_is_one_processs(make: Make) -> None:
    async def add(text: SharedText) -> None:
        for _ in range(20):
            while True:
                try:
                    before = await text.read()
                    if await text.swap(before, str(int(before or 0) + 1)):
                        break
                except Unavailable:
                    # Four who make the same new file at once may find it locked: the caller tries again later.
                    await asyncio.sleep(0.01)

    await asyncio.gather(*(add(make("a")) for _ in range(4)))

    assert await make("a").read() == "80"


async def test_a_closed_text_may_be_used_again(make: Make) -> None:
    text = make("a")
    await text.swap("", "1")
    await text.close()

    assert await text.read() == "1"


@pytest.mark.parametrize(
    "text",
    [
        RedisText("redis://user:secret@127.0.0.1:1/0", "a"),
        PostgresText("postgresql://user:secret@127.0.0.1:1/db", "a"),
        SqliteText(Path("/nowhere/at/all/perpline.db-budget"), "a"),
        SqliteText(Path(__file__), "a"),
    ],
    ids=["redis", "postgresql", "no folder", "no database"],
)
async def test_a_place_that_does_not_answer_is_told_without_secrets(text: SharedText) -> None:
    for call in (text.read(), text.swap("", "1")):
        with pytest.raises((Unavailable, NeedsPerson)) as caught:
            await call
        assert "secret" not in str(caught.value) + text.where
    await text.close()


async def test_a_locked_file_is_unavailable_after_a_moment(tmp_path: Path) -> None:
    text = SqliteText(tmp_path / "perpline.db-budget", "a")
    await text.swap("", "1")
    other = apsw.Connection(str(tmp_path / "perpline.db-budget"))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable):
        await text.swap("1", "2")
    other.close()

    assert await text.swap("1", "2")
    await text.close()


async def test_threads_that_first_use_a_file_at_once_all_may(tmp_path: Path) -> None:
    for number in range(100):
        texts = [SqliteText(tmp_path / str(number), "a") for _ in range(8)]
        swapped = await asyncio.gather(*(text.swap("", "x") for text in texts))
        assert sorted(swapped) == [False] * 7 + [True]
        for text in texts:
            await text.close()
