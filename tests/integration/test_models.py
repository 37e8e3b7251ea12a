"""Models change under a running worker: between two minutes, and nothing is missed or late for it."""

import asyncio
import json
from pathlib import Path
from typing import Any

from modelling import write_model
from perpline.inference import registry
from perpline.storage.sqlite import SqliteStore
from running import (
    MINUTE,
    Database,
    assert_one_decision_a_minute,
    command,
    next_close,
    settings_file,
    simulated,
    working,
)

GOOD = json.dumps({"verdict": {"beats_baselines": True, "text": "It beats both."}}).encode()


async def test_a_running_worker_changes_its_model_between_two_minutes_and_misses_none(tmp_path: Path) -> None:
    models_dir = tmp_path / "models"
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    old, new, odd = [
        await registry.register(store, models_dir, write_model(models_dir, files={"report.json": GOOD}, threshold=t))
        for t in (0.58, 0.6, 0.62)
    ]
    await registry.promote(store, models_dir, old.model_id, slot="champion", effective_from=0, by="test")

    async with simulated(speed=60.0) as exchange, working(exchange, tmp_path) as worker:
        await worker.until_ready()
        first = next_close(exchange.clock.now_ms(), 1)
        database = Database(tmp_path)
        await worker.until(lambda: database.decided_until(first, len(exchange.symbols)))

        async def said(*words: object) -> Any:
            settings = "--config", settings_file(exchange, tmp_path, status_port=worker.status_port)
            done = await asyncio.to_thread(command, *words, *settings, "--json")
            assert done.code == 0, done.err
            return done.json

        promoted = await said("models", "promote", new.model_id)
        await said("models", "shadow", old.model_id)
        later = promoted["effective_from"] + MINUTE
        await worker.until(
            lambda: database.decided_until(later, len(exchange.symbols)), what="decisions of the new one"
        )

        # One that cannot be loaded is refused by the running worker, and the one in force stays.
        (models_dir / odd.model_id / "both.onnx").write_bytes(b"")
        await store.add_deployment("champion", odd.model_id, later, "test", {})
        refused_by = next_close(exchange.clock.now_ms(), 3)
        await worker.until(lambda: database.decided_until(refused_by, len(exchange.symbols)))
        status = await said("status")
        back = await said("models", "rollback")
        assert back["model_id"] == new.model_id
        back = await said("models", "promote", old.model_id)
        last = back["effective_from"] + 2 * MINUTE
        await worker.until(lambda: database.decided_until(last, len(exchange.symbols)), what="decisions of the old one")
        await worker.stop()
        page = await said("explain", exchange.symbols[0], last)
        beside = await said("explain", exchange.symbols[0], last, "--slot", "shadow")
    await store.close()

    statuses = assert_one_decision_a_minute(database, exchange.symbols, last)
    assert "skipped_missed" not in statuses
    by_minute: dict[int, set[str]] = {}
    for t, model_id in database.rows("SELECT close_time, model_id FROM signals"):
        by_minute.setdefault(t, set()).add(model_id)
    expected = {
        t: {new.model_id if promoted["effective_from"] <= t < back["effective_from"] else old.model_id}
        for t in by_minute
    }
    assert by_minute == expected
    reason = status["models"]["refused"]["champion"]
    assert reason == f"the model {odd.model_id} is refused: the content of both.onnx is not what SHA256SUMS says"
    assert status["model"] == new.model_id
    announced = database.rows("SELECT close_time, payload FROM outbox WHERE kind = 'model' ORDER BY id")
    assert [(t, json.loads(payload)["model"]) for t, payload in announced] == [
        (promoted["effective_from"], new.model_id),
        (back["effective_from"], old.model_id),
    ]
    scored = database.rows("SELECT DISTINCT model_id FROM predictions WHERE slot = 'shadow'")
    assert scored == [(old.model_id,)]

    assert page["decision"]["model_id"] == page["model"]["model_id"] == old.model_id
    assert [entry["name"] for entry in page["vector"]] == [feature.name for feature in old.features]
    assert page["candles"]["stored"] == page["candles"]["wanted"] == old.lookback_min
    assert page["candles"]["last"][-1]["open_time"] == last - MINUTE
    assert page["latency_ms"]["predict"] >= 0
    assert page["outbox"]["id"] >= 1
    assert (beside["decision"], beside["model"]["model_id"]) == (None, old.model_id)
    assert beside["vector"] == page["vector"]
