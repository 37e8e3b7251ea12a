"""What `perpline doctor` looks at on this machine, keys or none: folders, disk, database, Redis, model, ports."""

import asyncio
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import aiohttp
import apsw
from msgspec import Struct

from perpline.bootstrap import open_store
from perpline.common.config import Settings, masked_url
from perpline.common.errors import NeedsPerson, PerplineError
from perpline.endpoint import HOST
from perpline.inference.artefact import load_artefact
from perpline.inference.registry import NONE, load_default, ordered
from perpline.storage.migrate import OLDER

State = Literal["ok", "warning", "failed", "not checked"]

ONLY_FOR_LIVE = frozenset(
    {"keys", "permissions", "position mode", "margin mode", "account", "user stream", "order socket"}
)
"""Checks that paper trading does without."""

LEAST_FILES = 256
LEAST_REDIS = (5, 0)
LEAST_REDIS_FOR_ROLES = (6, 2)
NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "afs"})
NEWEST = 2**62


class Check(Struct, frozen=True):
    """What was looked at, what was found, and what to do about it."""

    name: str
    state: State
    found: str
    advice: str = ""


async def look_around(settings: Settings) -> list[Check]:
    """Every check that asks nothing of the exchange, in the order in which they are mended."""
    checks = [_data_dir(settings.data_dir), _disk(settings)]
    await run_check(checks, "database", lambda: _database(settings))
    await run_check(checks, "redis", lambda: _redis(settings))
    await run_check(checks, "model", lambda: _model(settings))
    checks.append(await _port("status port", settings.status_port, "failed"))
    checks.append(await _port("dashboard port", getattr(settings, "dashboard_port", 0), "warning"))
    return [*checks, _open_files()]


async def run_check(
    checks: list[Check], name: str, check: Callable[[], Awaitable[Check]], advice: dict[int, str] | None = None
) -> None:
    """Add what the check finds; an error of ours on the way is a failure. `advice`: by the exchange's code."""
    try:
        checks.append(await check())
    except PerplineError as error:
        checks.append(Check(name, "failed", str(error), (advice or {}).get(getattr(error, "code", 0), "")))


def _data_dir(folder: Path) -> Check:
    """Whether files can be made there; a folder that is missing will be made by the worker."""
    here = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not here.is_dir():
        return Check("data folder", "failed", f"{here} is no folder", "data_dir names another place")
    try:
        with tempfile.TemporaryFile(dir=here):
            pass
    except OSError as error:
        return Check("data folder", "failed", f"{here}: {error.strerror or error}", "its rights, or data_dir")
    if here != folder:
        return Check("data folder", "ok", f"{folder} is not there yet and can be made")
    return Check("data folder", "ok", f"{folder} can be written")


def _disk(settings: Settings) -> Check:
    folders = [settings.data_dir]
    if (file := _sqlite_file(settings)) is not None:
        folders.append(file.absolute().parent)
    usage = {}
    for folder in folders:
        here = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        usage[here] = shutil.disk_usage(here)
    folder, least = min(usage.items(), key=lambda each: each[1].free)
    found = f"{least.free / 1e9:,.1f} GB free on the disk of {folder}"
    if least.free < min(settings.disk_low_mb * 1_000_000, least.total // 10):
        return Check("disk", "warning", found, "make room: perpline plan says what a day takes; retention_days")
    return Check("disk", "ok", found)


async def _database(settings: Settings) -> Check:
    url = settings.database_url.get_secret_value()
    engine = "PostgreSQL"
    warning, advice = "", ""
    if (file := _sqlite_file(settings)) is not None:
        engine = f"SQLite {apsw.sqlite_lib_version()}"
        kind = file_system(file)
        if kind in NETWORK_FILE_SYSTEMS:
            return Check(
                "database",
                "failed",
                f"{file} lies on a file system of the network ({kind}), where SQLite's locks do not hold",
                "database_url on a local disk, or PostgreSQL",
            )
        if kind in ("tmpfs", "ramfs"):
            warning, advice = "; this is memory: it is lost with the machine", "database_url on a disk"
        if not file.exists():
            check = _data_dir(file.absolute().parent)
            if check.state == "failed":
                return Check("database", "failed", check.found, "database_url names another place")
            return Check("database", "warning" if warning else "ok", f"{engine}; {file} will be made{warning}", advice)
    store = open_store(url, read_only=True)
    try:
        await store.open()
    except NeedsPerson as error:
        if OLDER not in str(error):
            raise
        return Check("database", "ok", f"{engine}; {masked_url(url)}: the next start makes or migrates its tables")
    try:
        [[schema]] = await store.select("SELECT max(number) FROM schema_migrations")
        if file is None:
            [[told]] = await store.select("SELECT version()")
            engine = " ".join(str(told).split()[:2])
        size, _ = await store.size()
    finally:
        await store.close()
    found = f"{engine}, schema {schema}, {size / 1e6:,.1f} MB: {masked_url(url)}{warning}"
    return Check("database", "warning" if warning else "ok", found, advice)


async def _redis(settings: Settings) -> Check:
    url = settings.redis_url.get_secret_value()
    if url.startswith("memory:"):
        return Check("redis", "ok", "memory://: nobody outside of the worker hears the signals; the tables have them")
    from redis.exceptions import RedisError

    from perpline.bus.redis import redis_client, translated, where

    client = redis_client(url, as_text=True)
    try:
        info: dict[str, Any] = await client.info()
        try:
            saves = (await client.config_get("save")).get("save", "")
        except RedisError:
            saves = "?"  # hosted servers keep their settings to themselves
    except (RedisError, OSError) as error:
        raise translated(error, url) from error
    finally:
        await client.aclose()
    name = "Valkey" if info.get("server_name") == "valkey" else "Redis"
    version = str(info.get("valkey_version") or info.get("redis_version", "0"))
    found = f"{name} {version}, {where(url)}"
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    least = LEAST_REDIS if settings.role == "all" else LEAST_REDIS_FOR_ROLES
    if numbers < least:
        return Check("redis", "failed", found, f"{least[0]}.{least[1]} or newer is needed")
    if info.get("role") not in (None, "master"):
        return Check("redis", "failed", f"{found}: a replica, which takes nothing", "name the primary in redis_url")
    policy = str(info.get("maxmemory_policy", ""))
    if policy.startswith("allkeys"):
        advice = "maxmemory-policy noeviction or volatile-…: signals that nobody has read yet may be thrown away"
        return Check("redis", "warning", f"{found}, maxmemory-policy {policy}", advice)
    if not info.get("aof_enabled") and not saves:
        advice = "appendonly yes, where consumers must find after its restart what came before; the tables have it all"
        return Check("redis", "warning", f"{found}, keeps nothing on disk", advice)
    return Check("redis", "ok", f"{found}, keeps on disk {'each write' if info.get('aof_enabled') else 'snapshots'}")


async def _model(settings: Settings) -> Check:
    """The model that was deployed last, or the one that ships, is loaded as a start loads it."""
    model_id = await _deployed(settings)
    try:
        path = settings.models_dir / model_id
        model = await asyncio.to_thread(load_default if model_id == NONE else lambda: load_artefact(path))
    except NeedsPerson as error:
        return Check("model", "failed", str(error), "copy its folder again, or perpline models rollback")
    note = "; the one that ships: it knows the simulated market only" if model_id == NONE else ""
    return Check("model", "ok", f"{model.model_id} loads and gives what it gave when it was made{note}")


async def _deployed(settings: Settings) -> str:
    """Empty: none of its own, or no database that could say so."""

    try:
        store = open_store(settings.database_url.get_secret_value(), read_only=True)
        await store.open()
    except PerplineError:
        return NONE  # the check of the database tells of it
    try:
        rows = ordered(await store.deployments(), settings.slot, NEWEST)
        return rows[0].model_id if rows else NONE
    finally:
        await store.close()


async def _port(name: str, port: int, state: State) -> Check:
    """`state`: what it is if another program has the port."""
    if port == 0:
        return Check(name, "ok", "a free one is taken")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that waits for late packets is free
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if await _is_worker(port):
                return Check(name, "ok", f"{port}: a worker has it (perpline status)")
            if name == "dashboard port" and await _is_dashboard(port):
                return Check(name, "ok", f"{port}: a dashboard has it")
            advice = f"{name.replace(' ', '_')} names another one"
            return Check(name, state, f"{port} is in use: {error.strerror or error}", advice)
    return Check(name, "ok", f"{port} is free")


async def _is_worker(port: int) -> bool:
    timeout = aiohttp.ClientTimeout(total=2)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"http://{HOST}:{port}/healthz") as answer,
        ):
            said = await answer.json()
            return isinstance(said, dict) and "ok" in said
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return False


async def _is_dashboard(port: int) -> bool:
    """By what it says of itself to whoever is not let in."""
    timeout = aiohttp.ClientTimeout(total=2)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        for scheme in ("http", "https"):
            try:
                # Its certificate may be of any name; nothing is told to it.
                async with session.get(f"{scheme}://{HOST}:{port}/api/session", ssl=False) as answer:
                    return answer.headers.get("Server") == "perpline"
            except (aiohttp.ClientError, TimeoutError):
                continue
    return False


def _open_files() -> Check:
    if sys.platform == "win32":
        return Check("open files", "ok", "no limit that matters")
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < LEAST_FILES:
        return Check("open files", "warning", f"at most {soft}", f"ulimit -n 1024; in a unit LimitNOFILE={1024}")
    return Check("open files", "ok", "no limit" if soft == resource.RLIM_INFINITY else f"at most {soft:,}")


def file_system(path: Path, mounts: str | None = None) -> str:
    """The kind of file system that a path lies on, as Linux calls it; empty where it is not told.

    `mounts`: the text of /proc/self/mounts.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text(errors="replace")
        except OSError:
            return ""
    best, kind = "", ""
    real = os.path.realpath(path)
    for line in mounts.splitlines():
        words = line.split()
        if len(words) < 3:
            continue
        point = words[1].replace("\\040", " ")
        holds = point == "/" or real == point or real.startswith(point + "/")
        if holds and len(point) >= len(best):
            best, kind = point, words[2]
    return kind


def _sqlite_file(settings: Settings) -> Path | None:
    url = settings.database_url.get_secret_value()
    if not url.startswith("sqlite:"):
        return None
    from perpline.storage.sqlite import SqliteStore

    return SqliteStore.from_url(url).path
