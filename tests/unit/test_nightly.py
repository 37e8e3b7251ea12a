"""The comparison of the night and the outcomes of the hour: when they run, and what becomes of their results."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from backtesting import candles_of, serve, store_history, trend_follower, walk
from perpline.cli.status import parity_text
from perpline.common.clock import ManualClock
from perpline.common.config import Settings, load_settings
from perpline.domain.exit_rule import LabelRule, label_hash
from perpline.domain.signal import Decision, Status
from perpline.metrics import families
from perpline.nightly import DAY_MS, OUTCOMES_APART_S, HourlyOutcomes, NightlyParity
from perpline.storage.sqlite import SqliteStore
from running import eventually
from training import START

HOUR = 3_600_000


def settings(folder: Path, parity_at: str = "03:30") -> Settings:
    database = f"sqlite:///{folder / 'market.db'}"
    values = {"data_dir": str(folder), "parity_at": parity_at, "database_url": database}
    return load_settings(None, {"HOME": str(folder)}, {**values, "models_dir": str(folder / "models")})


async def result(nightly: NightlyParity, clock: ManualClock) -> dict[str, Any]:
    """What it finds when its time comes."""
    task = asyncio.create_task(nightly.run())
    await asyncio.sleep(0)
    clock.advance(3600)
    try:
        await eventually(lambda: nightly.last, 60)
    finally:
        task.cancel()
    assert nightly.last is not None
    return nightly.last


async def test_at_its_hour_the_day_that_is_over_is_compared_by_a_process_of_its_own(tmp_path: Path) -> None:
    model = trend_follower(tmp_path / "models")
    store = SqliteStore(tmp_path / "market.db")
    await store.open()
    history = walk(320)
    await store_history(store, history)
    await serve(store, model, candles_of(history))
    await store.close()
    nightly = NightlyParity(settings(tmp_path), clock := ManualClock(START + DAY_MS + 3 * HOUR))

    with capture_logs() as logs:
        found = await result(nightly, clock)

    assert (found["date"], found["ok"], found["mismatch_cells"], found["rows"]) == ("2023-11-15", True, 0, 79)
    assert found["ran_at"] >= START + DAY_MS + 3 * HOUR
    assert [line["event"] for line in logs] == ["parity_compared"]


def script(folder: Path, text: str) -> str:
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands for the program")
@pytest.mark.parametrize(
    ("text", "level", "event"),
    [
        ("echo 'perpline: no prediction is stored' >&2; exit 1", "warning", "parity_not_compared"),
        ("echo gibberish; exit 3", "warning", "parity_not_compared"),
        (
            'echo \'{"ok": false, "cells": 100, "mismatch_cells": 2, "worst_column": "rv_60", '
            '"mismatch_probabilities": 0, "late_cells": 0}\'; exit 1',
            "error",
            "parity_broken",
        ),
    ],
)
async def test_what_went_wrong_is_kept_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, level: str, event: str
) -> None:
    monkeypatch.setattr(sys, "executable", script(tmp_path, text))
    nightly = NightlyParity(settings(tmp_path), clock := ManualClock(START + 3 * HOUR))

    with capture_logs() as logs:
        found = await result(nightly, clock)

    assert [(line["log_level"], line["event"]) for line in logs] == [(level, event)]
    assert found["date"] == "2023-11-14"
    if event == "parity_not_compared":
        assert found["error"] in ("perpline: no prediction is stored", "it ended with 3")


async def test_where_it_is_off_it_never_runs(tmp_path: Path) -> None:
    nightly = NightlyParity(settings(tmp_path, "off"), ManualClock(START))

    await nightly.run()

    assert nightly.last is None


@pytest.mark.parametrize("text", ["3:30", "24:00", "03:60", "at noon"])
def test_a_time_that_no_clock_shows_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(Exception, match="parity_at"):
        settings(tmp_path, text)


def test_the_result_is_told_in_one_line() -> None:
    found = {"date": "2026-11-22", "ok": False, "cells": 1000, "mismatch_cells": 3, "mismatch_probabilities": 0}

    assert parity_text(found).plain == "parity of 2026-11-22: 3 of 1,000 cells, 0 probabilities differ"
    assert parity_text({**found, "ok": True}).plain == "parity of 2026-11-22: 1,000 cells, none differs"
    assert parity_text({"date": "2026-11-22", "error": "away"}).plain.endswith("was not compared: away")


def test_the_result_is_in_the_metrics() -> None:
    found = {
        "ran_at": START,
        "ok": True,
        "cells": 100,
        "mismatch_cells": 0,
        "late_cells": 5,
        "mismatch_probabilities": 0,
    }

    values = {family.name: family.samples[0].value for family in families({"parity": found})}

    assert values == {
        "perpline_parity_timestamp_seconds": START / 1000,
        "perpline_parity_ok": 1.0,
        "perpline_parity_cells": 100,
        "perpline_parity_mismatch_cells": 0,
        "perpline_parity_late_cells": 5,
        "perpline_parity_mismatch_probabilities": 0,
    }
    assert list(families({"parity": None})) == []
    assert {family.name for family in families({"parity": {"ran_at": 0, "error": "x"}})} == {
        "perpline_parity_timestamp_seconds",
        "perpline_parity_ok",
    }


async def test_each_hour_the_outcomes_are_stored_by_a_process_of_its_own(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "market.db")
    await store.open()
    await store_history(store, walk(200))
    rule = LabelRule(tp_pct=0.4, sl_pct=0.4, horizon_s=3600, cost_bp=4.0)
    signal = Decision(
        signal_id="one",
        slot="champion",
        symbol="BTCUSDT",
        close_time=START + HOUR,
        side=1,
        status=Status.OK,
        label_hash=label_hash(rule),
        tp_pct=0.4,
        sl_pct=0.4,
        horizon_s=3600,
        cost_bp=4.0,
    )
    later = Decision(
        signal_id="two", slot="champion", symbol="BTCUSDT", close_time=START + 3 * HOUR, side=0, status=Status.FLAT
    )
    await store.commit_decisions([signal, later], [], [], 0)
    hourly = HourlyOutcomes(settings(tmp_path), clock := ManualClock(START + 3 * HOUR))

    with capture_logs() as logs:
        task = asyncio.create_task(hourly.run())
        await asyncio.sleep(0)
        clock.advance(20.5 * 60 - 1)
        await asyncio.sleep(0.05)
        assert hourly.last is None
        clock.advance(1)
        await eventually(lambda: hourly.last, 60)
        task.cancel()

    assert hourly.last is not None
    assert (hourly.last["stored"], hourly.last["waiting"], hourly.last["left_out"]) == (1, 0, 0)
    assert hourly.last["ran_at"] == START + 3 * HOUR + 20.5 * 60_000
    assert [line["event"] for line in logs] == ["outcomes_stored"]
    [row] = await store.trading_rows("signal_outcomes")
    assert row[0] == "one"
    await store.close()


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands for the program")
async def test_in_a_fast_market_outcomes_are_a_minute_of_the_wall_apart_and_what_failed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", script(tmp_path, "echo 'perpline: the disk is full' >&2; exit 1"))
    hourly = HourlyOutcomes(settings(tmp_path), clock := ManualClock(START, speed=3600.0))  # an hour a second

    with capture_logs() as logs:
        task = asyncio.create_task(hourly.run())
        await asyncio.sleep(0)
        clock.advance(3600)
        await eventually(lambda: logs, 20)
        clock.advance((OUTCOMES_APART_S - 1) * 3600)
        await asyncio.sleep(0.2)
        assert len(logs) == 1
        clock.advance(3600)  # the minute is over
        await asyncio.sleep(0.05)
        clock.advance(3600)
        await eventually(lambda: len(logs) == 2, 20)
        task.cancel()

    assert hourly.last is not None
    assert hourly.last["error"] == "perpline: the disk is full"
    assert [(line["log_level"], line["event"]) for line in logs] == [("warning", "outcomes_not_stored")] * 2


def test_the_outcomes_are_in_the_metrics() -> None:
    last = {"ran_at": START, "stored": 5, "open": 4, "waiting": 3, "left_out": 2}

    values = {family.name: family.samples[0].value for family in families({"outcomes": last})}

    assert values == {
        "perpline_outcomes_ok": 1.0,
        "perpline_outcomes_waiting_signals": 3,
        "perpline_outcomes_left_out_signals": 2,
    }
    failed = {family.name: family.samples[0].value for family in families({"outcomes": {"ran_at": 0, "error": "x"}})}
    assert failed == {"perpline_outcomes_ok": 0.0}
    assert list(families({"outcomes": None})) == []
