import asyncio
from pathlib import Path
from typing import Any

import apsw
import pytest
from msgspec.structs import astuple

from perpline.domain.signal import Decision, Status
from perpline.storage.migrate import migrations
from perpline.storage.sqlite import SqliteStore
from running import command

MINUTE = 60_000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PERPLINE_DATABASE_URL", raising=False)
    return tmp_path


def db(word: str, *words: object, database: str = "market.db") -> Any:
    return command("db", word, *words, "--database", f"sqlite:///{database}", "--json")


def fill(database: str = "market.db") -> None:
    """Candles of two symbols, one with a hole of two minutes, a decision of each, and an open gap."""
    db("migrate", database=database)
    connection = apsw.Connection(database)
    for symbol, minutes in (("AUSDT", (0, 1, 2)), ("BUSDT", (0, 3))):
        for minute in minutes:
            row = (symbol, minute * MINUTE, minute * MINUTE + MINUTE - 1, *[1.5] * 6, 7, 1.5, 1.5, *[0] * 5, "ws", 0)
            connection.execute(f"INSERT INTO candles_1m VALUES ({', '.join('?' * len(row))})", row)
        made = Decision(signal_id="", slot="champion", symbol=symbol, close_time=MINUTE, side=0, status=Status.FLAT)
        signal = (*astuple(made), 1, 5)
        connection.execute(f"INSERT INTO signals VALUES ({', '.join('?' * len(signal))})", signal)
    hole = ("BUSDT", "candles_1m", MINUTE, 3 * MINUTE, "jump", 7)
    connection.execute(
        "INSERT INTO gaps (symbol, series, from_time, to_time, cause, detected_at) VALUES (?, ?, ?, ?, ?, ?)", hole
    )
    connection.close()


def test_a_new_database_gets_its_tables_and_one_that_has_them_stays_as_it_is(folder: Path) -> None:
    newest = len(migrations())
    assert db("migrate").json == {"database": "sqlite:///market.db", "from": 0, "to": newest}
    assert db("migrate").json == {"database": "sqlite:///market.db", "from": newest, "to": newest}
    assert f"has schema {newest} already" in command("db", "migrate", "--database", "sqlite:///market.db").out


def test_a_newer_schema_is_refused_in_one_line(folder: Path) -> None:
    db("migrate")
    connection = apsw.Connection("market.db")
    connection.execute("INSERT INTO schema_migrations VALUES (9999, '9999_later.sql', '')")
    connection.close()

    for word in ("migrate", "check"):
        ended = db(word)
        assert ended.code == 1
        assert "has schema 9999, and this perpline knows schemas up to" in ended.error_line


def test_the_check_of_a_sound_database_says_what_it_holds_and_what_is_missing(folder: Path) -> None:
    fill()

    ended = db("check")

    facts = ended.json
    assert ended.code == 0
    assert (facts["ok"], facts["problems"], facts["schema"]) == (True, [], len(migrations()))
    assert (facts["symbols"], facts["minutes_missing"]) == (2, {"BUSDT": 2})
    assert (facts["gaps_open"], facts["outbox_pending"]) == (1, 0)
    assert {table: rows for table, rows in facts["rows"].items() if rows} == {"candles_1m": 5, "gaps": 1, "signals": 2}
    assert facts["bytes"] > 10_000
    assert facts["disk_free_bytes"] > 0
    text = command("db", "check", "--database", "sqlite:///market.db").out
    assert "sound" in text
    assert "BUSDT: 2 missing" in text


def test_decisions_whose_numbers_have_a_gap_are_damage(folder: Path) -> None:
    fill()
    connection = apsw.Connection("market.db")
    connection.execute("UPDATE signals SET close_time = 5 * close_time, seq = 3 WHERE symbol = 'AUSDT'")
    row = connection.execute("SELECT * FROM signals WHERE symbol = 'AUSDT'").fetchall()[0]
    first = (*row[:3], MINUTE, *row[4:-2], 1, 5)
    connection.execute(f"INSERT INTO signals VALUES ({', '.join('?' * len(first))})", first)
    connection.close()

    ended = db("check")

    assert ended.code == 1
    assert ended.json["problems"] == ["the seqs of champion AUSDT have gaps: 2 rows, 1 to 3"]
    assert "is damaged" in ended.error_line


def test_damaged_pages_are_found(folder: Path) -> None:
    fill()
    connection = apsw.Connection("market.db")
    [[root]] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'candles_1m_by_symbol'")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with Path("market.db").open("rb+") as file:
        file.seek((root - 1) * 4096 + 4000)
        file.write(b"\xff" * 90)

    ended = db("check")

    assert ended.code == 1
    assert "is damaged" in ended.err


def test_a_database_that_is_not_there_is_not_made_by_looking(folder: Path) -> None:
    ended = db("check")

    assert ended.code == 1
    assert "there is no database yet at market.db" in ended.error_line
    assert not Path("market.db").exists()


def test_a_backup_is_restored_and_holds_the_same(folder: Path) -> None:
    fill()

    saved = db("backup", "--out", "copy.db")
    restored = db("restore", "copy.db", database="new.db")

    assert saved.json["bytes"] == Path("copy.db").stat().st_size
    assert restored.json["rows"] == {"candles_1m": 5, "gaps": 1, "signals": 2}
    assert db("check", database="new.db").json["rows"] == db("check").json["rows"]
    assert sorted(path.name for path in folder.glob("copy*")) == ["copy.db"]


def test_no_file_is_overwritten(folder: Path) -> None:
    fill()
    Path("copy.db").write_text("mine")

    backup = db("backup", "--out", "copy.db")
    restore = db("restore", "market.db")

    assert (backup.code, restore.code) == (1, 1)
    assert "is there already" in backup.error_line
    assert "holds rows already" in restore.error_line
    assert Path("copy.db").read_text() == "mine"


def test_what_is_not_there_cannot_be_restored(folder: Path) -> None:
    ended = db("restore", "nothing.db")

    assert ended.code == 1
    assert "nothing.db is not there" in ended.error_line
    assert not Path("market.db").exists()


def test_a_backup_is_a_database_that_a_worker_can_use(folder: Path) -> None:
    fill()
    db("backup", "--out", "copy.db")

    async def use() -> tuple[int, list[str]]:
        copy = SqliteStore("copy.db")
        await copy.open()
        found = (await copy.row_counts())["candles_1m"], [gap.symbol for gap in await copy.gaps(only_open=True)]
        await copy.close()
        return found

    assert asyncio.run(use()) == (5, ["BUSDT"])
