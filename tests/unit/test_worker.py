"""How a worker ends, and what it does while another one leads."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from perpline.bootstrap import lease_name, make_parts, make_rest, take_spools
from perpline.bus.memory import MemoryBus
from perpline.common.clock import SystemClock
from perpline.common.config import load_settings
from perpline.common.errors import Unavailable
from perpline.domain.signal import Message
from perpline.leadership import Leadership, new_owner
from perpline.signals.engine import signal_message
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import Row
from perpline.worker import Worker
from running import eventually
from signalling import MINUTE, T0, decision

Made = tuple[Worker, SqliteStore]


class Bus(MemoryBus):
    away = False

    async def publish(self, messages: Sequence[Message], now_ms: int) -> None:
        if self.away:
            raise Unavailable("the bus does not answer")
        await super().publish(messages, now_ms)


@asynccontextmanager
async def made(folder: Path, bus: Bus, *, with_spool: bool = True) -> AsyncIterator[Made]:
    """A worker with parts and nothing that feeds it."""
    settings = load_settings(None, {}, {"data_dir": str(folder), "status_port": 0})
    clock, store = SystemClock(), SqliteStore(folder / "perpline.db")
    rest = make_rest(settings, clock, alone=True)
    await store.open()
    spools = await take_spools(settings, clock) if with_spool else []
    leadership = Leadership(store, clock, lease_name(settings), new_owner())
    parts = make_parts(
        *(settings, clock, store, bus, {}, rest, random.Random(1), []),
        leadership=leadership,
        spool=spools[0] if spools else None,
    )
    worker = Worker(parts, rest, [], heard=lambda *_: None, waiting_for=lambda: [], on_ready=lambda said: None)
    try:
        yield worker, store
    finally:
        for spool in spools:
            await spool.close()
        await rest.close()
        await store.close()


def mark(n: int) -> Row:
    return ("AUSDT", T0 + n * MINUTE, 100.0, 100.0, 0.0, 0, 60, 0, 0)


async def marks(store: SqliteStore) -> list[int]:
    return [(minute - T0) // MINUTE for (minute,) in await store.select("SELECT minute FROM premium_index ORDER BY 1")]


@pytest.mark.parametrize("with_spool", [True, False], ids=["with a spool", "without one"])
async def test_a_stop_while_the_bus_is_away_writes_every_row_and_gives_the_lease_back(
    tmp_path: Path, with_spool: bool
) -> None:
    bus = Bus()
    async with made(tmp_path, bus, with_spool=with_spool) as (worker, store):
        leadership, parts = worker.parts.leadership, worker.parts
        assert leadership is not None
        assert await leadership.attempt()
        one = decision("AUSDT")
        await parts.journal.commit([one], [], [signal_message(one)], 1)  # type: ignore[union-attr]
        parts.buffer.add("premium_index", mark(0))
        bus.away = True
        with capture_logs() as logs:
            await worker._flush()

        assert await marks(store) == [0]
        assert (await store.lease(leadership.name)).owner == ""  # type: ignore[union-attr]
        assert [line["event"] for line in logs if line["log_level"] != "info"] == ["messages_stay_in_outbox"]
        assert [message.symbol for message in await store.pending_messages(10)] == ["AUSDT"]


async def test_who_was_fenced_off_stores_the_rows_of_its_spool_while_it_stands_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perpline.worker.STORE_AGAIN_S", 0.05)
    async with made(tmp_path, Bus()) as (worker, store):
        parts, away = worker.parts, True

        async def add_rows(table: str, rows: Sequence[Row]) -> int:
            if away:
                raise Unavailable("the database is away")
            return await store.add_rows(table, rows)

        parts.buffer._add_rows = add_rows
        for n in range(3):
            parts.buffer.add("premium_index", mark(n))
            assert await parts.buffer.keep()
        parts.ledger.opened("AUSDT", "premium_index", T0, T0 + MINUTE, "test", tell=False)
        assert await parts.ledger.keep()
        await store.take_lease("leader:champion", "host/boot/ns/7/x", 0, 1)
        assert parts.leadership is not None
        assert not await parts.leadership.attempt()
        standing_by = asyncio.create_task(worker._stand_by(parts.leadership))
        await asyncio.sleep(0.1)
        assert await marks(store) == []
        away = False
        assert parts.spool is not None
        await eventually(lambda: not parts.spool.kinds, what="the spool is empty")
        standing_by.cancel()
        await asyncio.wait((standing_by,))

        assert await marks(store) == [0, 1, 2]
        assert [gap.series for gap in await store.gaps(only_open=True)] == ["premium_index"]


async def test_a_standby_is_well_and_says_for_whom_it_stands_by(tmp_path: Path) -> None:
    async with made(tmp_path, Bus()) as (worker, store):
        await store.take_lease("leader:champion", "host/boot/ns/7/x", 0, 1)
        leadership = worker.parts.leadership
        assert leadership is not None
        assert not await leadership.attempt()
        worker.ready_at = 1
        request: Any = None
        answer = await worker.endpoint._healthz(request)

        assert (answer.status, json.loads(answer.text)) == (200, {"ok": True, "standing_by": "host, process 7"})  # type: ignore[arg-type]
