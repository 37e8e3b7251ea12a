"""Collectors and inference workers decide what one process decides, bit for bit."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from perpline.bootstrap import Parts, lease_name, make_rest
from perpline.bus.feature_stream import FeatureStream
from perpline.common.config import Settings
from perpline.common.errors import NeedsPerson, Unavailable
from perpline.domain.candle import MINUTE_MS
from perpline.features import kernel
from perpline.inference.artefact import LoadedModel
from perpline.leadership import Leadership, new_owner
from perpline.metrics import GROUPS, families
from perpline.storage.postgres import PostgresStore
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import TRADING_TABLES, Store
from perpline.worker import Worker
from postgres_server import PostgresDatabase
from running import Database, command, eventually, simulated
from sharing import (
    QUOTES,
    T0,
    TIMINGS,
    FramedMarket,
    SteppedClock,
    a_fleet,
    before_long,
    deciding_member,
    hear,
    make_process,
    model_of,
    role_settings,
)

SYMBOLS = 8
CANDLES_ONLY = {"ret_1": 300.0, "tbi_15": 3.0}
COMPARED = {"tbi_15": 3.0, "rank_60": 0.5, "beta_1440": 0.2, "resid_60": 0.3, "btc_zret_15": 0.4, "mkt_15": 0.5}

CLOSES = "SELECT close_time FROM outbox WHERE kind = 'close' ORDER BY close_time"

WRITTEN = [f"SELECT * FROM {table}" for table in ("gaps", "leases", "listings", "candles_1m")]

slots = (f"roles{n}" for n in count())


class World:
    """One process with a database of its own, and beside it collectors and members that share another."""

    def __init__(
        self, folder: Path, redis_url: str, model: LoadedModel, market: FramedMarket, one: Parts, shared: Store
    ) -> None:
        self.clock: SteppedClock = one.clock  # type: ignore[assignment]
        self.redis_url = redis_url
        self.model = model
        self.market = market
        self.one = one
        self.shared = shared
        self.slot = one.settings.slot
        self.collectors: list[Parts] = []
        self.streams: list[FeatureStream] = []
        self._folder = folder

    def settings(self, **changes: Any) -> Settings:
        return role_settings(
            self._folder,
            slot=self.slot,
            redis_url=self.redis_url,
            database_url="postgresql:///somewhere",
            symbols=self.market.symbols,
            **changes,
        )

    async def start_collector(self, shard: str) -> Parts:
        settings = self.settings(role="collector", shard=shard)
        stream = FeatureStream(self.redis_url, self.slot)
        await stream.open()
        self.streams.append(stream)
        parts = await make_process(settings, self.clock, self.shared, self.market, self.model, stream)
        assert parts.sender is not None
        await parts.sender.say()
        return parts

    async def close_a_minute(self, *, whole: bool = True) -> int:
        """All hear and decide the next minute; returns T. With `whole` every symbol has its row afterwards."""
        before, closing = self.market.next_minute()
        close_time = self.market.open_time
        self.clock.put(close_time - 90)
        for parts in (self.one, *self.collectors):
            hear(parts, before, self.clock)
        self.clock.put(close_time + 300)
        for parts in (self.one, *self.collectors):
            hear(parts, closing, self.clock)
            await parts.engine.drain()
        if whole:
            await self.until_decided(close_time)
        return close_time

    async def until_decided(self, close_time: int, symbols: int = SYMBOLS) -> None:
        async with asyncio.timeout(15.0):
            while len(await self.shared.decision_rows(self.slot, close_time, close_time)) < symbols:  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def rows(self, store: Store) -> list[dict[str, Any]]:
        """Every decision but for timings, with its prediction."""
        found = []
        for table in ("signals", "predictions"):
            columns = await self._columns(table)
            names = ", ".join(f'"{column}"' for column in columns)
            query = f"SELECT {names} FROM {table} WHERE slot = '{self.slot}' ORDER BY symbol, close_time"
            found += [dict(zip(columns, row, strict=True)) for row in await store.select(query)]
        return found

    async def _columns(self, table: str) -> list[str]:
        rows = await self.one.store.select(f"SELECT name FROM pragma_table_info('{table}')")
        return [name for (name,) in rows if name not in TIMINGS]


@asynccontextmanager
async def a_world(
    folder: Path, redis_url: str, database: PostgresDatabase | None, weights: dict[str, float]
) -> AsyncIterator[World]:
    model = model_of(folder / "models", weights)
    market = FramedMarket(SYMBOLS, model.lookback_min + 10)
    clock = SteppedClock(T0 - 30_000)
    slot = next(slots)
    mine = SqliteStore(folder / "one.db")
    shared: Store = SqliteStore(folder / "shared.db") if database is None else PostgresStore(database.url)
    await mine.open()
    await shared.open()
    settings = role_settings(folder, slot=slot, symbols=market.symbols)
    one = await make_process(settings, clock, mine, market, model)
    world = World(folder, redis_url, model, market, one, shared)
    try:
        yield world
    finally:
        for stream in world.streams:
            await stream.close()
        await mine.close()
        await shared.close()


@pytest.mark.parametrize("weights", [CANDLES_ONLY, COMPARED], ids=["each by itself", "symbols compared"])
async def test_two_collectors_and_two_inference_workers_decide_what_one_process_decides_bit_for_bit(
    tmp_path: Path, redis_url: str, postgres_database: PostgresDatabase, weights: dict[str, float]
) -> None:
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(a_world(tmp_path, redis_url, postgres_database, weights))
        second = PostgresStore(postgres_database.url)
        await second.open()
        stack.push_async_callback(second.close)
        world.collectors = [await world.start_collector("1/2"), await world.start_collector("2/2")]
        settings = world.settings(role="inference")
        members = [
            await stack.enter_async_context(
                deciding_member(redis_url, settings, world.clock, store, world.model, name, leads=name == "a")
            )
            for name, store in (("a", world.shared), ("b", second))
        ]
        for _ in range(25):
            await world.close_a_minute()
        last = world.market.open_time

        mine, theirs = await world.rows(world.one.store), await world.rows(world.shared)
        statuses = {row["status"] for row in mine if "status" in row}
        async with asyncio.timeout(15.0):
            while len(closes := await world.shared.select(CLOSES)) < 25:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        status = {"sender": world.collectors[0].sender.status(), "group": members[0].status()}  # type: ignore[union-attr]
        stages = world.collectors[0].engine.stages_status()
        shares = [member.decided for member in members]
        again = [member.claimed for member in members]

    assert len(mine) == 2 * 25 * SYMBOLS
    assert mine == theirs
    assert {"ok", "flat", "cooldown"} <= statuses
    assert sorted(t for (t,) in closes) == list(range(T0, last + 1, MINUTE_MS))
    assert min(shares) > 0, "both have decided"
    assert again == [0, 0]
    told = {sample.name for family in families(status) for sample in family.samples}
    assert told == {metric.name for group in ("Collectors", "Inference workers") for metric in GROUPS[group]}
    assert list(stages) == ["exchange", "collect", "send"]


async def test_the_work_of_a_dead_inference_worker_and_of_a_restarted_collector_is_done_once(
    tmp_path: Path, redis_url: str
) -> None:
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(a_world(tmp_path, redis_url, None, CANDLES_ONLY))
        world.collectors = [await world.start_collector("1/2"), await world.start_collector("2/2")]
        settings = world.settings(role="inference")
        dying = FeatureStream(redis_url, world.slot, group=settings.group, consumer="dying", width=kernel.WIDTH)
        await dying.open()
        stack.push_async_callback(dying.close)
        await dying.join()

        close_time = await world.close_a_minute(whole=False)
        taken = [await dying.take(wait=False), await dying.take(wait=False)]
        assert [len(each) for each in taken] == [1, 1], "it has all the work, and does nothing with it"
        member = await stack.enter_async_context(
            deciding_member(redis_url, settings, world.clock, world.shared, world.model, "heir", leads=True)
        )
        await world.until_decided(close_time)
        assert member.claimed == 2
        assert (await member._stream.waiting())["pending"] == 0
        for _ in range(4):
            await world.close_a_minute()
        world.collectors[1] = await world.start_collector("2/2")
        for _ in range(4):
            await world.close_a_minute()
        # What was decided before it restarted it sends again, if it did not know.
        assert world.collectors[0].sender is not None
        symbols = [each for each in world.market.symbols if world.collectors[0].sender.answers_for(each)]
        now_us = dict.fromkeys(symbols, world.clock.now_us())
        await world.collectors[0].sender.send(symbols, world.market.open_time, now_us)
        decided = member.decided
        await eventually(lambda: member.decided > decided)

        assert await world.rows(world.one.store) == await world.rows(world.shared)


async def test_a_silent_collector_is_told_and_its_minutes_are_missed_once(tmp_path: Path, redis_url: str) -> None:
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(a_world(tmp_path, redis_url, None, CANDLES_ONLY))
        world.collectors = [await world.start_collector("1/2"), await world.start_collector("2/2")]
        settings = world.settings(role="inference")
        members = [
            await stack.enter_async_context(
                deciding_member(redis_url, settings, world.clock, world.shared, world.model, name, leads=name == "a")
            )
            for name in ("a", "b")
        ]
        await world.close_a_minute()
        silent = world.collectors.pop()
        assert silent.sender is not None
        close_time = await world.close_a_minute(whole=False)
        heard = [each for each in world.market.symbols if not silent.sender.answers_for(each)]
        await world.until_decided(close_time, len(heard))
        world.clock.put(close_time + 31_000)
        await world.until_decided(close_time)

        rows = await world.shared.decision_rows(world.slot, close_time, close_time)
        missed = {symbol for symbol, _, status in rows if status == "skipped_missed"}
        assert missed == {each for each in world.market.symbols if silent.sender.answers_for(each)}
        await eventually(lambda: any("2/2 is silent" in each for each in members[1].trouble()))
        async with asyncio.timeout(15.0):
            while len(await world.shared.select(CLOSES)) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert await world.shared.select(CLOSES) == [(close_time - MINUTE_MS,), (close_time,)]

        # It is back, and so are its decisions; the minute it was away for stays missed.
        world.collectors.append(await world.start_collector("2/2"))
        await world.close_a_minute()
        await eventually(lambda: not [each for each in members[1].trouble() if "silent" in each])
        rows = await world.shared.decision_rows(world.slot, world.market.open_time, world.market.open_time)
        assert "skipped_missed" not in {status for _, _, status in rows}


class AwayStore:
    """A store that takes no decisions while it is away; everything else is that of another store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.away = False
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit_decisions(self, *args: Any, **kwargs: Any) -> Any:
        self.asked += 1
        if self.away:
            raise Unavailable("the database is away")
        return await self._store.commit_decisions(*args, **kwargs)


async def test_a_minute_that_could_not_be_stored_in_its_time_is_missed_and_never_decided_after_the_next(
    tmp_path: Path, redis_url: str
) -> None:
    """One worker cannot reach the database for more than a minute; the other can, and decides the next minute."""
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(a_world(tmp_path, redis_url, None, CANDLES_ONLY))
        world.collectors = [await world.start_collector("1/1")]
        settings, cut_off = world.settings(role="inference"), AwayStore(world.shared)
        late = await stack.enter_async_context(
            deciding_member(redis_url, settings, world.clock, cut_off, world.model, "late", claim_after_s=60.0)  # type: ignore[arg-type]
        )
        await world.close_a_minute()
        async with asyncio.timeout(15.0):
            while not await world.shared.select(CLOSES):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        cut_off.away, cut_off.asked = True, 0
        missed = await world.close_a_minute(whole=False)
        await eventually(lambda: cut_off.asked > 2, what="it tries to store the minute")
        other = await stack.enter_async_context(
            deciding_member(
                redis_url, settings, world.clock, world.shared, world.model, "other", leads=True, claim_after_s=60.0
            )
        )
        await world.close_a_minute()
        assert other.decided == 1
        await eventually(lambda: late.too_late == 1, what="it gives the minute up")
        cut_off.away = False
        await world.close_a_minute()

        rows = await world.shared.decision_rows(world.slot, missed, missed)
        assert {status for _, _, status in rows} == {"skipped_missed"}
        assert len(rows) == SYMBOLS
        assert (await late._stream.waiting())["pending"] == 0


async def test_collectors_that_disagree_on_the_number_of_shards_are_refused(tmp_path: Path, redis_url: str) -> None:
    async with a_world(tmp_path, redis_url, None, CANDLES_ONLY) as world:
        await world.start_collector("1/2")
        with pytest.raises(NeedsPerson, match=r"a collector with --shard 1/2 is running, and this one is 3/3"):
            await world.start_collector("3/3")


async def test_a_collector_of_another_number_of_shards_is_refused_before_it_writes_anything(
    tmp_path: Path, redis_url: str
) -> None:
    async with a_world(tmp_path, redis_url, None, CANDLES_ONLY) as world:
        await world.start_collector("1/2")
        settings = world.settings(role="collector", shard="1/1", status_port=0)
        stream = FeatureStream(redis_url, world.slot)
        await stream.open()
        world.streams.append(stream)
        leadership = Leadership(world.shared, world.clock, lease_name(settings), new_owner())
        parts = await make_process(settings, world.clock, world.shared, world.market, world.model, stream, leadership)
        hour_ago = T0 - 60 * MINUTE_MS
        marks = [(symbol, hour_ago, 1.0, 1.0, 0.0, 0, 60, 0, 0) for symbol in parts.symbols]
        await world.shared.add_rows("premium_index", marks)
        rest = make_rest(settings, world.clock, alone=True)
        worker = Worker(parts, rest, [], heard=lambda *_: None, waiting_for=lambda: [], on_ready=lambda said: None)
        before = [await world.shared.select(query) for query in WRITTEN]

        with pytest.raises(NeedsPerson, match=r"a collector with --shard 1/2 is running, and this one is 1/1"):
            await worker.run(asyncio.Event())
        await rest.close()

        assert [await world.shared.select(query) for query in WRITTEN] == before


# ---- processes, as a person would start them


@pytest.mark.full
@pytest.mark.timeout(420)
async def test_processes_that_are_killed_change_no_decision(
    tmp_path: Path, redis_url: str, postgres_database: PostgresDatabase
) -> None:
    """Beside one process with everything: an inference worker is killed for good, a collector and started again."""
    shared = {"database_url": postgres_database.url, "redis_url": redis_url, "slot": next(slots), "book_minutes": False}
    async with simulated(speed=5.0, symbols=6) as exchange, a_fleet(exchange, tmp_path, slot=shared["slot"]) as fleet:

        def rows(query: str) -> list[tuple[Any, ...]]:
            try:
                return postgres_database.rows(query)
            except asyncpg.UndefinedTableError:
                return []

        def decided(close_time: int) -> int:
            return len(rows(f"SELECT 1 FROM signals WHERE close_time = {close_time} AND status <> 'skipped_missed'"))

        async def until_decided(close_time: int) -> None:
            await before_long(lambda: decided(close_time) == 6, 60.0, f"decided at {close_time}")

        await fleet.start("one")
        await fleet.start("c1", "--role", "collector", "--shard", "1/2", **shared)
        second = await fleet.start("c2", "--role", "collector", "--shard", "2/2", **shared)
        dying = await fleet.start("i1", "--role", "inference", **shared)
        await fleet.start("i2", "--role", "inference", **shared)
        one = Database(tmp_path / "one")
        await before_long(lambda: one.decisions() and rows("SELECT 1 FROM signals LIMIT 1"), 120.0, "first decisions")
        first = max(one.value("SELECT max(close_time) FROM signals"), rows("SELECT max(close_time) FROM signals")[0][0])
        first += MINUTE_MS
        await until_decided(first)
        dying.kill()
        await until_decided(first + MINUTE_MS)
        second.kill()
        await second.wait()
        await fleet.start("c2", "--role", "collector", "--shard", "2/2", **shared)
        await until_decided(first + 2 * MINUTE_MS)
        last = first + 3 * MINUTE_MS
        await until_decided(last)
        await before_long(lambda: one.decided_until(last, 6), 30.0, "the last minute")
        codes = await fleet.stop()

        columns = [
            name
            for (name,) in one.rows("SELECT name FROM pragma_table_info('signals')")
            if name not in TIMINGS | QUOTES | {"seq"}
        ]
        span = f"WHERE close_time BETWEEN {first} AND {last} ORDER BY symbol, close_time"
        query = f"SELECT {', '.join(columns)} FROM signals {span}"
        assert rows(query) == one.rows(query)
        query = f"SELECT symbol, close_time, features, p_long, p_short FROM predictions {span}"
        assert rows(query) == one.rows(query)
        assert rows("SELECT symbol, count(*) - max(seq) FROM signals GROUP BY symbol HAVING count(*) <> max(seq)") == []
        assert [code for code in codes if code not in (0, -signal.SIGKILL)] == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--role", "collector"), "redis_url: role = collector reaches others through Redis: name one, redis://"),
        (("--role", "inference", "--redis", "redis://nowhere"), "name a PostgreSQL database, postgresql://"),
        (("--role", "collector", "--shard", "5/3"), "shard: 5/3 is none: of 3 shards the last is 3/3"),
        (("--role", "collector", "--shard", "x"), "shard"),
        (("--shard", "1/2"), "shard: 1/2 means something with role = collector only"),
    ],
    ids=["no Redis", "no PostgreSQL", "no such shard", "no shard", "no role"],
)
def test_a_role_without_what_it_needs_is_one_line(tmp_path: Path, options: tuple[str, ...], told: str) -> None:
    (tmp_path / "perpline.toml").write_text(f"data_dir = '{tmp_path}'\n")
    done = command("run", *options, "--config", tmp_path / "perpline.toml")

    assert done.code != 0
    assert told in done.err
    assert "Traceback" not in done.err


def test_an_inference_worker_refuses_to_begin_where_a_mode_trades(
    tmp_path: Path, redis_url: str, postgres_database: PostgresDatabase
) -> None:
    asyncio.run(_set_mode(postgres_database.url))
    urls = f"database_url = '{postgres_database.url}'\nredis_url = '{redis_url}'\n"
    (tmp_path / "perpline.toml").write_text(f"data_dir = '{tmp_path}'\nstatus_port = 0\n{urls}")
    done = command("run", "--role", "inference", "--config", tmp_path / "perpline.toml")

    assert done.code == 1
    assert "the mode of all symbols is paper, and only a worker with --role all trades" in done.err.splitlines()[-1]


async def _set_mode(url: str) -> None:
    store = PostgresStore(url)
    await store.open()
    row = TRADING_TABLES["modes"].row(
        {"symbol": "", "mode": "paper", "positions": "keep", "changed_at": 1, "by": "test", "reason": ""}
    )
    await store.commit_trading({"modes": [row]})
    await store.close()
