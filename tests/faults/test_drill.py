"""Drills: four of today's, and that one in which something is lost does not pass."""

import asyncio
import os
import random
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw
import pytest

from perpline.cli.drill import today
from perpline.drill.drills import DRILLS
from perpline.drill.running import Drill, Result, play, play_all
from perpline.drill.scene import MINUTE_MS, Scene, Servers
from running import command, eventually

FOUR = 4


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    servers = Servers()
    yield servers
    await servers.close()


def shown(result: Result) -> str:
    return f"{result.result} {result.name} --seed {result.seed} ({result.seconds} s) {result.reason} {result.kept}"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", [today()])
async def test_four_drills_picked_by_the_day_lose_nothing_and_double_nothing(servers: Servers, seed: int) -> None:
    picked = random.Random(seed).sample(list(DRILLS.values()), FOUR)
    results = await play_all(picked, seed, jobs=3, servers=servers)
    for result in results:
        print(shown(result))

    assert [shown(result) for result in results if result.result == "FAIL"] == []


def a_drill(name: str, play: Any, **scene: Any) -> Drill:
    return Drill(name=name, promise="It fails.", play=play, minutes_after=1, begins=(0.0, 1.0), **scene)


def change(scene: Scene, *statements: str) -> None:
    """Do this to the tables behind the worker's back."""
    connection = apsw.Connection(str(scene.folder / "perpline.db"))
    connection.set_busy_timeout(5000)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


async def test_what_is_taken_out_of_the_tables_is_missed_and_the_evidence_is_kept(servers: Servers) -> None:
    async def sabotage(scene: Scene) -> None:
        await scene.until(lambda: scene.now > scene.first + MINUTE_MS + 35_000, 20.0, "two minutes")
        of = f"symbol = '{scene.exchange.symbols[0]}' AND"
        change(
            scene,
            f"DELETE FROM candles_1m WHERE {of} open_time = {scene.first - 10 * MINUTE_MS}",
            f"UPDATE candles_1m SET close = close + 1 WHERE {of} open_time = {scene.first - 20 * MINUTE_MS}",
            f"DELETE FROM signals WHERE {of} close_time = {scene.first}",
            f"DELETE FROM outbox WHERE {of} kind = 'signal' AND close_time = {scene.first + MINUTE_MS}",
        )

    result = await play(a_drill("sabotaged", sabotage), 1, servers)

    assert result.result == "FAIL"
    assert result.score is not None
    score = result.score
    found = (score.candles_lost, score.candles_wrong, score.decisions_lost, score.decisions_twice, score.messages_lost)
    # The message of the row that is gone tells of a decision that the tables do not know.
    assert found == (1, 1, 1, 1, 1), result.reason
    check_kept(Path(result.kept))


def check_kept(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} >= {"perpline.db", "worker-1"}
    assert (folder / "worker-1" / "worker.log").stat().st_size > 0
    shutil.rmtree(folder)


async def test_a_worker_that_dies_and_stays_dead_does_not_pass(servers: Servers) -> None:
    async def die(scene: Scene) -> None:
        scene.worker.send(signal.SIGKILL)
        await scene.worker._child.wait()  # type: ignore[union-attr]

    result = await play(a_drill("died", die), 1, servers)

    assert result.result == "FAIL"
    assert result.score is not None
    assert result.score.seconds_to_heal is None
    assert "a worker ended by itself" in result.reason
    shutil.rmtree(result.kept)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
async def test_a_process_that_is_stopped_at_a_drill_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    words = ["-m", "perpline", "drill", "late-close", "redis-down", "--seed", "1"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, env=environment, stderr=asyncio.subprocess.DEVNULL
    )

    await eventually(lambda: len(list(tmp_path.glob("*/worker-1/worker.log"))) == 2, 60.0, "both are played")
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(20):
        assert await process.wait() == 1

    assert os.listdir(tmp_path) == []
    assert of_environment(f"TMPDIR={tmp_path}") == []


def of_environment(setting: str) -> list[str]:
    """Processes that were started with it."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if setting.encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append((path / "cmdline").read_text())
    return found


async def test_a_drill_that_lacks_a_server_is_skipped_and_says_which(servers: Servers) -> None:
    servers.no_postgres = "no `postgres` on the PATH"

    result = await play(DRILLS["database-slow"], 1, servers)

    assert result.result == "SKIP"
    assert "no `postgres` on the PATH" in result.reason
    assert "--database" in result.reason


def test_every_drill_says_what_it_promises_in_a_sentence() -> None:
    assert len(DRILLS) >= 25
    for name, drill in DRILLS.items():
        assert name == drill.name
        assert drill.promise[0].isupper()
        assert drill.promise[-1] == "."


def test_every_drill_is_named_among_the_guarantees_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "guarantees.md").read_text()
    section = page.split("## Drills")[1].split("That a drill can fail")[0]
    rows = [line.rpartition(" | ")[2] for line in section.splitlines() if line.startswith("|")]
    named = [name for row in rows for name in re.findall(r"`([a-z0-9-]+)`", row)]

    assert sorted(named) == sorted(DRILLS)


def test_the_command_plays_what_is_named_and_ends_with_one_object() -> None:
    done = command("drill", "huge-frames", "--seed", 5, "--json")

    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 1
    said = done.json
    assert (said["seed"], said["passed"], said["failed"], said["skipped"]) == (5, 1, 0, 0)
    [drill] = said["drills"]
    assert (drill["name"], drill["result"]) == ("huge-frames", "PASS")
    for count in ("candles_lost", "decisions_lost", "decisions_twice", "orders_twice"):
        assert drill[count] == 0
    assert drill["seconds_to_heal"] is not None


def test_the_list_shows_every_drill_and_an_unknown_name_is_wrong_usage() -> None:
    listed = command("drill", "--list", "--json")
    assert [each["name"] for each in listed.json["drills"]] == list(DRILLS)

    for words in (["no-such-drill"], [], ["cut", "--all"]):
        done = command("drill", *words)
        assert (done.code, done.out) == (2, "")
        assert "--list" in done.err or "not both" in done.err


@pytest.mark.parametrize(
    ("option", "url", "shown"),
    [
        ("--database", "postgresql://me:secret@127.0.0.1:9/x", "postgresql://me:***@127.0.0.1:9/x"),
        ("--redis", "redis://me:secret@127.0.0.1:9", "redis://me:***@127.0.0.1:9"),
    ],
)
def test_a_named_server_that_cannot_be_reached_is_one_line(option: str, url: str, shown: str) -> None:
    done = command("drill", "leader-killed", option, url)

    assert (done.code, done.out) == (1, "")
    assert done.error_line.startswith(f"perpline: no drill can use {shown}: ")
