"""`perpline train` asks the exchange for what the tables lack before it builds anything (features.md 3.3)."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from perpline.collector.archives import find
from perpline.collector.importing import Importer
from perpline.simulation.history import write_history
from perpline.simulation.server import SimulatedExchange
from perpline.storage.sqlite import SqliteStore
from running import HOUR, MINUTE, Finished, command, eventually, simulated

DAY = 24 * HOUR
NOW = 1_795_183_200_000
"""2026-11-20 14:00 UTC."""
START, END = NOW // DAY * DAY - 3 * DAY, NOW - 10 * MINUTE
HOLES = [(START + 2 * HOUR, START + 3 * HOUR), (START + 4 * HOUR, START + 5 * HOUR)]
WORDS = (
    *("--schema", "candles_day", "--horizon", "30", "--trees", "10"),
    *("--train-days", "0.5", "--test-days", "0.5", "--lockbox-days", "0.5", "--json"),
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Archives of three and a half days of two contracts."""
    out = tmp_path_factory.mktemp("published")
    write_history(out, seed=5, symbols=2, start_ms=START, end_ms=END, workers=1)
    return out


@pytest.fixture
async def holed(published: Path, tmp_path: Path) -> Path:
    """A folder with a database of these, which lacks two hours and says so."""
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    for kind in ("candles", "funding"):
        await Importer(store, lambda: NOW).run(find([published], kind).files)
    for table in ("candles_1m", "mark_klines"):
        for start, end in HOLES:
            query = f"DELETE FROM {table} WHERE open_time >= {start} AND open_time < {end}"
            await store._write.run(lambda connection, query=query: connection.execute(query))
            for symbol in ("BTCUSDT", "ETHUSDT"):
                await store.open_gap(symbol, table, start, end, "lost by the test", NOW)
    await store.close()
    return tmp_path


async def begun(folder: Path, *words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "perpline", "train", *WORDS, *words),
        env={**os.environ, "PERPLINE_DATA_DIR": str(folder)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=folder,
    )


async def train(folder: Path, *words: str) -> Finished:
    process = await begun(folder, *words)
    out, err = await process.communicate()
    assert process.returncode is not None
    return Finished(process.returncode, out.decode(), err.decode())


async def opened(folder: Path) -> SqliteStore:
    store = SqliteStore(folder / "perpline.db")
    await store.open()
    return store


def bill(finished: Finished) -> list[dict[str, Any]]:
    """What the report says of each symbol's data."""
    report = json.loads((Path(finished.json["path"]) / "report.json").read_text())
    symbols: list[dict[str, Any]] = report["data"]["symbols"]
    return symbols


async def test_open_gaps_are_repaired_before_anything_is_built(holed: Path) -> None:
    async with simulated(speed=1.0, start_ms=NOW, symbols=2, seed=5) as exchange:
        done = await train(holed, "--rest-url", exchange.http_url)

        assert done.code == 0, done.err
        await assert_filled(holed, exchange)
    assert [(each["holes"], each["without_mark"]) for each in bill(done)] == [(0, 0), (0, 0)]


async def assert_filled(folder: Path, exchange: SimulatedExchange) -> None:
    """No gap is open, and what was lost is there as the exchange has it."""
    store = await opened(folder)
    assert await store.gaps(only_open=True) == []
    assert {gap.repaired_by for gap in await store.gaps() if gap.cause == "lost by the test"} == {"rest"}
    for symbol in ("BTCUSDT", "ETHUSDT"):
        for start, end in HOLES:
            stored = [(one.open_time, one.close) for one in await store.candles("1m", symbol, start, end)]
            assert stored == [(row[0], float(row[4])) for row in exchange.closed_candles(symbol, "1m", start, end)]
            marks = await store.series("mark_klines", symbol, start, end, ("open_time",))
            assert len(marks["open_time"]) == 60
    await store.close()


@pytest.mark.slow
async def test_a_training_is_stopped_by_one_signal_and_goes_on(holed: Path) -> None:
    process = await begun(holed, "--no-repair")
    await eventually(lambda: list((holed / "training").glob("dataset-*")), 60, "the stage of features")
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()

    assert (process.returncode, err.decode()) == (1, "perpline: stopped: the same command again goes on\n")


def test_without_the_exchange_nothing_is_built_unless_the_holes_are_accepted(
    holed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERPLINE_DATA_DIR", str(holed))
    monkeypatch.setattr("os.nice", lambda by: 0)

    refused = command("train", *WORDS, "--rest-url", "http://127.0.0.1:9")

    assert refused.code == 1
    said = " ".join(refused.err.split())
    assert "gaps cannot be repaired" in said
    assert "--no-repair trains on what is stored" in said
    assert not (holed / "training").exists()
    assert asyncio.run(open_gaps(holed)) == 8

    accepted = command("train", *WORDS, "--no-repair")
    assert accepted.code == 0, accepted.err
    assert [each["holes"] for each in bill(accepted)] == [120, 120]


async def open_gaps(folder: Path) -> int:
    store = await opened(folder)
    found = await store.gaps(only_open=True)
    await store.close()
    return len(found)
