"""Plays drills: each on a scene of its own, some side by side, and a result for each."""

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from perpline.bootstrap import open_store
from perpline.drill.forge import Child
from perpline.drill.scene import BusKind, CannotBeDone, Kind, Scene, Servers, open_scene
from perpline.drill.score import Score, judge
from perpline.drill.worker import WorkerFailed

LIMIT_S: Final = 45.0
"""Of wall time. What takes longer has failed. Where nothing else needs the processor no drill takes 30."""
STDERR: Final = 2
SPEED: Final = 30.0
"""A minute takes 2 s, and the 30 s within which it is decided take one."""

Play = Callable[[Scene], Awaitable[None]]


class Drill(Struct, frozen=True, kw_only=True):
    """One fault, what is promised about it, and the scene it is played on."""

    name: str
    promise: str
    play: Play
    """Does its worst, and returns when the fault is over."""
    symbols: int = 4
    speed: float = SPEED
    database: Kind = "sqlite"
    bus: BusKind = "memory"
    workers: int = 1
    trades: bool = False
    """On the live account of the simulated exchange."""
    starts: bool = True
    """Whether the workers are started and ready before the drill begins; otherwise it starts them itself."""
    settings: Mapping[str, object] = {}
    each: tuple[Mapping[str, object], ...] = ()
    """What each worker has beside `settings`: one worker for each of these, where there are any."""
    exchange: Mapping[str, Any] = {}
    special: tuple[str, ...] = ()
    """Words for `perpline.drill.child`, of the first start."""
    minutes_after: int = 2
    """Whole market minutes after the fault that have to be well."""
    begins: tuple[float, float] = (-5.0, 50.0)
    """In which market seconds from the first T that counts."""


class Job(Struct, kw_only=True):
    """What a process that plays one drill is told."""

    name: str
    seed: int
    database_url: str | None
    no_postgres: str
    redis_url: str | None


class Result(Struct, kw_only=True):
    """How a drill ended."""

    name: str
    seed: int
    promise: str
    result: Literal["PASS", "FAIL", "SKIP"]
    reason: str
    score: Score | None
    seconds: float
    kept: str = ""
    """The folder with log and database of a drill that failed."""
    before: str = ""
    """Why it failed the first time, where it was played again."""

    @property
    def may_be_the_machine(self) -> bool:
        """Whether it failed with nothing lost and nothing twice: waits of wall time do so where others are busy."""
        score = self.score
        if self.result != "FAIL":
            return False
        if score is None:
            return True
        return not (
            score.candles_lost
            or score.candles_wrong
            or score.decisions_lost
            or score.decisions_twice
            or score.messages_lost
            or score.orders_twice
        )

    def as_json(self) -> dict[str, Any]:
        score = self.score
        return {
            "name": self.name,
            "promise": self.promise,
            "result": self.result,
            "reason": self.reason,
            "candles_lost": score.candles_lost if score else None,
            "candles_wrong": score.candles_wrong if score else None,
            "decisions_lost": score.decisions_lost if score else None,
            "decisions_twice": score.decisions_twice if score else None,
            "messages_lost": score.messages_lost if score else None,
            "orders_twice": score.orders_twice if score else None,
            "skipped": score.skipped if score else {},
            "skipped_excused": score.skipped_excused if score else 0,
            "seconds_to_heal": score.seconds_to_heal if score else None,
            "seconds": self.seconds,
            **({"kept": self.kept} if self.kept else {}),
            **({"failed_before": self.before} if self.before else {}),
        }


async def play_all(
    drills: Sequence[Drill],
    seed: int,
    *,
    jobs: int,
    servers: Servers,
    began: Callable[[str], None] = lambda name: None,
    ended: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Play these of DRILLS, each in a process of its own, `jobs` side by side; results in the order of the drills."""
    places = asyncio.Semaphore(jobs)

    async def one(drill: Drill) -> Result:
        async with places:
            began(drill.name)
            result = await _played_apart(drill, seed, servers)
        ended(result)
        return result

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(drill)) for drill in drills]
    return [task.result() for task in tasks]


async def _played_apart(drill: Drill, seed: int, servers: Servers) -> Result:
    """`play` in another process (`perpline.drill.player`)."""
    url = await servers.postgres() if drill.database == "postgres" else None
    job = Job(
        name=drill.name, seed=seed, database_url=url, no_postgres=servers.no_postgres, redis_url=servers.redis_url
    )
    began_s = time.monotonic()
    with tempfile.TemporaryFile() as said:
        player = await servers.forge.start(
            "perpline.drill.player:play_one", [msgspec.json.encode(job).decode()], environment=os.environ,
            stdout=said.fileno(), stderr=STDERR, patient=True,
        )  # fmt: skip
        try:
            async with asyncio.timeout(LIMIT_S + 15.0):
                code = await player.wait()
        except TimeoutError:
            code = None
        finally:
            await _ended(player)
        said.seek(0)
        output = said.read()
    try:
        return msgspec.json.decode(output, type=Result)
    except msgspec.DecodeError:
        return Result(
            name=drill.name, seed=seed, promise=drill.promise, result="FAIL", score=None,
            reason=f"the process of the drill ended by itself ({code})",
            seconds=round(time.monotonic() - began_s, 1),
        )  # fmt: skip


async def _ended(player: Child) -> None:
    player.send(signal.SIGTERM)
    try:
        async with asyncio.timeout(5.0):
            await player.wait()
    except TimeoutError:
        player.send(signal.SIGKILL)


async def play(drill: Drill, seed: int, servers: Servers) -> Result:
    """One drill, its exchange in this process. What is wanted and not here: a SKIP; what breaks: a FAIL."""
    folder = Path(tempfile.mkdtemp(prefix=f"perpline-drill-{drill.name}-{seed}-"))
    began_s = time.monotonic()
    score: Score | None = None
    result: Literal["PASS", "FAIL", "SKIP"]
    try:
        score = await _scored(drill, seed, servers, folder)
        result, reason = ("PASS" if score.passed else "FAIL"), "; ".join(score.reasons)
    except CannotBeDone as missing:
        result, reason = "SKIP", str(missing)
    except WorkerFailed as failed:
        result, reason = "FAIL", str(failed)
    except asyncio.CancelledError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except Exception as error:  # a bug of a drill must not end those beside it, and must not pass
        result, reason = "FAIL", f"{type(error).__name__}: {error}"
    if result != "FAIL":
        shutil.rmtree(folder, ignore_errors=True)
    return Result(
        name=drill.name, seed=seed, promise=drill.promise, result=result, reason=reason, score=score,
        seconds=round(time.monotonic() - began_s, 1), kept=str(folder) if result == "FAIL" else "",
    )  # fmt: skip


async def _scored(drill: Drill, seed: int, servers: Servers, folder: Path) -> Score:
    async with open_scene(
        seed=seed, name=drill.name, folder=folder, servers=servers, symbols=drill.symbols, speed=drill.speed,
        database=drill.database, bus=drill.bus, each=drill.each or ({},) * drill.workers, trades=drill.trades,
        settings=drill.settings,
        exchange_options=drill.exchange,
    ) as scene:  # fmt: skip
        listening = [asyncio.create_task(scene.listen())] if scene.redis_url else []
        watching: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(LIMIT_S):
                if drill.starts:
                    for worker in scene.workers:
                        await worker.start(*drill.special)
                    await scene.begin()
                watching = asyncio.create_task(scene.watch())
                listening.append(watching)
                if drill.starts:
                    await scene.market((scene.first - scene.now) / 1000 + scene.rng.uniform(*drill.begins))
                await drill.play(scene)
                until, seconds = await scene.heals(drill.minutes_after)
                watching.cancel()
                await scene.end()
                score = judge(await scene.facts(until, seconds))
                if not score.passed:
                    await _keep_database(scene, folder)
        except TimeoutError:
            last = f"; not well: {', '.join(scene.unwell)}" if scene.unwell else ""
            raise WorkerFailed(f"it was not over after {LIMIT_S:.0f} s{last}") from None
        finally:
            for task in listening:
                task.cancel()
            await asyncio.gather(*listening, return_exceptions=True)
    return score


async def _keep_database(scene: Scene, folder: Path) -> None:
    """Of PostgreSQL, whose database is dropped, a copy as a SQLite file."""
    if scene.database_url.startswith("postgresql"):
        store = open_store(scene.database_url, read_only=True)
        with suppress(Exception):  # the drill has failed already, for a better reason
            await store.open()
            await store.backup(folder / "perpline.db")
        await store.close()
