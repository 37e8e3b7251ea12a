"""What `perpline doctor` sees of this machine."""

import asyncio
import socket
from pathlib import Path

import pytest

from dashing import served, settings_in
from perpline.bootstrap import open_store
from perpline.cli.checks import Check, file_system, look_around
from perpline.common.config import Settings, load_settings
from postgres_server import PostgresDatabase
from valkey_server import ValkeyServer


def settings(folder: Path, **changes: object) -> Settings:
    return load_settings(None, {"HOME": str(folder)}, {"data_dir": folder / "data", "status_port": 0, **changes})


async def found(chosen: Settings) -> dict[str, Check]:
    return {check.name: check for check in await look_around(chosen)}


def test_a_machine_where_nothing_was_ever_run_is_well(tmp_path: Path) -> None:
    checks = asyncio.run(found(settings(tmp_path)))

    assert [each for each in checks.values() if each.state == "failed"] == []
    assert checks["data folder"].found.endswith("is not there yet and can be made")
    assert "will be made" in checks["database"].found
    assert checks["redis"].found.startswith("memory://")
    assert "knows the simulated market only" in checks["model"].found
    assert list(tmp_path.iterdir()) == []


async def test_of_a_database_its_engine_its_schema_and_its_size_are_told(tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    chosen.data_dir.mkdir()
    store = open_store(chosen.database_url.get_secret_value())
    await store.open()
    [[schema]] = await store.select("SELECT max(number) FROM schema_migrations")
    await store.close()

    check = (await found(chosen))["database"]

    assert check.state in ("ok", "warning")  # in memory where the folder of temporary files is
    assert f", schema {schema}, " in check.found
    assert check.found.startswith("SQLite 3.")


async def test_a_database_that_is_none_or_of_a_newer_perpline_fails(tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    chosen.data_dir.mkdir()
    (chosen.data_dir / "perpline.db").write_text("this is no database, and long enough to be looked at " * 20)

    assert (await found(chosen))["database"].state == "failed"


async def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")

    checks = await found(settings(tmp_path))

    assert (checks["data folder"].state, checks["data folder"].advice) == ("failed", "data_dir names another place")
    assert checks["database"].state == "failed"


async def test_a_port_that_another_program_has_is_told(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        check = (await found(settings(tmp_path, status_port=other.getsockname()[1])))["status port"]

    assert (check.state, check.advice) == ("failed", "status_port names another one")


async def test_the_dashboards_port_may_be_a_dashboards_and_nobody_elses(tmp_path: Path) -> None:
    with served(settings_in(tmp_path)) as page:
        check = (await found(settings(tmp_path, dashboard_port=page.port)))["dashboard port"]
    assert (check.state, check.found) == ("ok", f"{page.port}: a dashboard has it")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nServer: another\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        check = (await found(settings(tmp_path, dashboard_port=port)))["dashboard port"]
    assert (check.state, check.advice) == ("warning", "dashboard_port names another one")


async def test_a_disk_with_less_than_a_tenth_free_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"total": 100 * 10**9, "used": 97 * 10**9, "free": 3 * 10**9})
    monkeypatch.setattr("perpline.cli.checks.shutil.disk_usage", lambda folder: usage)

    check = (await found(settings(tmp_path)))["disk"]

    assert (check.state, check.found.split(" on ")[0]) == ("warning", "3.0 GB free")


async def test_a_model_that_is_not_there_any_more_fails(tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    chosen.data_dir.mkdir()
    store = open_store(chosen.database_url.get_secret_value())
    await store.open()
    await store.add_model("gone-20261101-00000000", 1, "")
    await store.add_deployment("champion", "gone-20261101-00000000", 60_000, "me", {})
    await store.close()

    check = (await found(chosen))["model"]

    assert (check.state, "rollback" in check.advice) == ("failed", True)


async def test_of_redis_version_and_persistence_are_told_and_its_absence_fails(tmp_path: Path, redis_url: str) -> None:
    check = (await found(settings(tmp_path, redis_url=redis_url)))["redis"]
    assert check.found.startswith(("Valkey ", "Redis "))
    assert (check.state, "keeps nothing on disk" in check.found) == ("warning", True)

    check = (await found(settings(tmp_path, redis_url="redis://:hush-hush@127.0.0.1:9")))["redis"]
    assert check.state == "failed"
    assert "hush" not in check.found


async def test_a_redis_that_keeps_what_it_is_told_is_well(tmp_path: Path, durable_valkey: ValkeyServer) -> None:
    check = (await found(settings(tmp_path, redis_url=durable_valkey.url)))["redis"]

    assert (check.state, "keeps on disk" in check.found) == ("ok", True)


async def test_an_empty_postgresql_is_well_and_its_password_is_not_told(
    tmp_path: Path, postgres_database: PostgresDatabase
) -> None:
    check = (await found(settings(tmp_path, database_url=postgres_database.url)))["database"]
    assert (check.state, check.found.endswith("makes or migrates its tables")) == ("ok", True)

    store = open_store(postgres_database.url)
    await store.open()
    await store.close()
    check = (await found(settings(tmp_path, database_url=postgres_database.url)))["database"]
    assert (check.state, check.found.split(", schema")[0].split()[0]) == ("ok", "PostgreSQL")


def test_the_file_system_is_that_of_the_longest_mount_that_holds_the_path() -> None:
    mounts = "/dev/a / ext4 rw 0 0\nserver:/x /mnt/data nfs4 rw 0 0\ntmpfs /mnt/data/fast tmpfs rw 0 0\nbroken\n"

    kinds = ("/home/x", "/mnt/data", "/mnt/data/a.db", "/mnt/database/a.db", "/mnt/data/fast/a.db")
    assert [file_system(Path(path), mounts) for path in kinds] == ["ext4", "nfs4", "nfs4", "ext4", "tmpfs"]


async def test_sqlite_on_a_file_system_of_the_network_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perpline.cli.checks.file_system", lambda path: "nfs4")

    check = (await found(settings(tmp_path)))["database"]

    assert (check.state, "(nfs4)" in check.found) == ("failed", True)


async def test_a_folder_without_the_right_to_write_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")  # rights do not keep root out, who may run this test

    monkeypatch.setattr("perpline.cli.checks.tempfile.TemporaryFile", refuse)

    check = (await found(settings(tmp_path)))["data folder"]

    assert (check.state, check.advice) == ("failed", "its rights, or data_dir")
