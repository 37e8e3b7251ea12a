"""`perpline archive`, and the worker's nightly child that runs it."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from perpline import nightly as nightly_module
from perpline.cli.status import room_lines
from perpline.common.clock import ManualClock, SystemClock
from perpline.common.config import load_settings
from perpline.common.errors import NeedsPerson
from perpline.nightly import NightlyArchive
from perpline.storage.day_tables import DAY_MS, day_text
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import TABLES
from running import command, eventually

TODAY = SystemClock().now_ms() // DAY_MS * DAY_MS
OLD = TODAY - 40 * DAY_MS
YOUNG = TODAY - 12 * DAY_MS


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database with a mark price row on an old and on a younger day."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("PERPLINE_", "XDG_")) and not name.startswith("PERPLINE_TEST_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")

    async def fill() -> None:
        store = SqliteStore(tmp_path / "market.db")
        await store.open()
        for day in (OLD, YOUNG, TODAY):
            values = dict.fromkeys(TABLES["mark_klines"].columns, 1) | {"symbol": "BTCUSDT", "open_time": day}
            await store.add_rows("mark_klines", [tuple(values.values())])
        await store.close()

    asyncio.run(fill())
    return "sqlite:///market.db"


def run(*words: str) -> Any:
    """What the command says: of a failure the line on stderr."""
    done = command("archive", *words)
    return done.err if done.code else done.out


def days(found: dict[str, Any], *, dropped: bool) -> list[str]:
    return [one["day"] for one in found["days"] if one["dropped"] == dropped]


def test_what_would_be_done_is_said_first_and_then_done(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERPLINE_RETENTION_DAYS", "30")
    dry = json.loads(run("--database", url, "--to", "files", "--dry-run", "--json"))
    assert (days(dry, dropped=True), days(dry, dropped=False)) == ([day_text(OLD)], [day_text(YOUNG)])
    assert not (tmp_path / "files").exists()

    done = json.loads(run("--database", url, "--to", "files", "--json"))

    assert (days(done, dropped=True), days(done, dropped=False)) == ([day_text(OLD)], [day_text(YOUNG)])
    names = sorted(path.name for path in (tmp_path / "files" / "mark_klines").iterdir())
    assert names == [f"{day_text(OLD)}.parquet", f"{day_text(YOUNG)}.parquet"]
    dropped = run("--database", url, "--to", "files", "--drop", "--tables", "mark_klines")
    assert "mark_klines" in dropped
    assert "nothing to do" in run("--database", url, "--to", "files", "--drop")
    assert "nothing to do" in run("--database", url, "--to", "files", "--before", day_text(OLD))


def test_what_makes_no_sense_is_refused_in_a_line(url: str) -> None:
    assert "orders is not archived: only candles_1m" in run("--database", url, "--tables", "orders")
    assert "there is no database yet" in run("--database", "sqlite:///other.db")
    assert not Path("other.db").exists()
    with pytest.raises(NeedsPerson, match="retention_days: 0"):
        load_settings(None, {"HOME": "/nowhere"}, {"retention_days": 5})


async def night(url: str, tmp_path: Path, **changes: object) -> tuple[NightlyArchive, list[Any]]:
    """What the worker keeps and logs of one night."""
    given = {"data_dir": str(tmp_path), "database_url": url, "retention_days": 30, **changes}
    clock = ManualClock(TODAY + 30 * 60_000)
    nightly = NightlyArchive(load_settings(None, {"HOME": str(tmp_path)}, given), clock)
    with capture_logs() as logs:
        task = asyncio.create_task(nightly.run())
        await asyncio.sleep(0)
        clock.advance(3600)
        try:
            await eventually(lambda: nightly.last and logs, 60)
        finally:
            task.cancel()
    return nightly, logs


async def test_each_night_the_worker_archives_and_tells_of_it(url: str, tmp_path: Path) -> None:
    nightly, logs = await night(url, tmp_path)

    assert nightly.last is not None
    assert (nightly.last["rows"], nightly.last["days_dropped"]) == (2, 1)
    assert [line["event"] for line in logs] == ["days_archived"]
    assert room_lines({"room": None, "archive": nightly.last})[0].plain == "archived last night: 2 rows, 1 days dropped"
    assert (tmp_path / "archive" / "mark_klines" / f"{day_text(OLD)}.parquet").exists()


async def test_days_with_holes_and_a_failure_are_told(url: str, tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "market.db")
    await store.open()
    await store.open_gap("BTCUSDT", "mark_klines", OLD, OLD + 1, "a test", TODAY)
    await store.close()

    _, logs = await night(url, tmp_path)
    assert [(line["event"], line["days"]) for line in logs] == [("days_not_archived", 1)]

    (tmp_path / "archive-file").write_text("no folder")
    nightly, logs = await night(url, tmp_path, archive_dir=str(tmp_path / "archive-file"))
    assert [line["event"] for line in logs] == ["archive_failed"]
    assert nightly.last is not None
    assert "archive-file" in nightly.last["error"]


async def test_without_a_retention_nothing_ever_runs(url: str, tmp_path: Path) -> None:
    nightly = NightlyArchive(load_settings(None, {"HOME": str(tmp_path)}, {"data_dir": str(tmp_path)}), ManualClock())
    await asyncio.wait_for(nightly.run(), 1)
    assert nightly.last is None


def test_a_retention_without_the_package_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nightly_module.importlib.util, "find_spec", lambda name: None)
    settings = load_settings(None, {"HOME": str(tmp_path)}, {"data_dir": str(tmp_path), "retention_days": 30})
    with pytest.raises(NeedsPerson, match=r"perpline\[analytics\]"):
        NightlyArchive(settings, ManualClock())
