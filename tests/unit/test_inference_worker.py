"""An inference worker trades nothing, and says so where a mode says that somebody should."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from perpline.common.clock import SystemClock
from perpline.common.config import load_settings
from perpline.inference_worker import InferenceWorker, to_be_traded
from perpline.storage.sqlite import SqliteStore
from perpline.trading.mode import Mode, set_mode
from running import eventually

NOW = 1_795_219_260_000


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    yield store
    await store.close()


async def put(store: SqliteStore, mode: Mode, *symbols: str, until: int | None = None) -> None:
    asked: dict[str, Any] = {"positions": "keep", "by": "me", "reason": "test", "slot": "champion"}
    await set_mode(store, symbols, mode, now=NOW, until=until, **asked)


async def test_only_a_mode_that_is_in_force_is_to_be_traded(store: SqliteStore) -> None:
    assert await to_be_traded(store, NOW) == ""
    await put(store, Mode.PAPER, "AUSDT", until=NOW + 1_000)
    assert "the mode of AUSDT is paper, and only a worker with --role all" in await to_be_traded(store, NOW)
    assert await to_be_traded(store, NOW + 1_000) == ""
    await put(store, Mode.LIVE)
    assert "the mode of all symbols is live" in await to_be_traded(store, NOW)
    await put(store, Mode.OFF)
    assert await to_be_traded(store, NOW) == ""


async def test_a_mode_that_is_set_later_is_an_alarm_for_as_long_as_it_lasts(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perpline.inference_worker.MODES_EVERY_S", 0.01)
    settings = load_settings(None, {}, {"data_dir": str(tmp_path)})
    stream: Any = SimpleNamespace(group="inf", consumer="me")
    worker = InferenceWorker(settings, SystemClock(), store, stream, random.Random(1), lambda said: None)
    monkeypatch.setattr(worker.member, "trouble", list)
    monkeypatch.setattr(
        worker, "_publisher", SimpleNamespace(statistics=lambda: SimpleNamespace(last_error="")), raising=False
    )
    with capture_logs() as logs:
        watching = asyncio.create_task(worker._watch_modes())
        await put(store, Mode.PAPER)
        await eventually(lambda: worker.trouble())
        await asyncio.sleep(0.1)
        assert [line["event"] for line in logs] == ["nobody_trades"], "once a minute"
        await put(store, Mode.OFF)
        await eventually(lambda: not worker.trouble())
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
