"""Published archives and the exchange's REST fill the same tables, whatever is missing, twice or torn."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import apsw
import pytest

from perpline.domain.candle import quantised_log
from perpline.simulation.history import LABELS_CHANGE_MS, write_history
from postgres_server import PostgresDatabase
from running import command

MINUTE, PERIOD, DAY = 60_000, 300_000, 86_400_000
START, END = LABELS_CHANGE_MS - DAY, LABELS_CHANGE_MS + DAY
DATA = Path(__file__).parents[2] / ".." / "shared" / "data"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two contracts, the last day with labels at the end of a period and the first with labels at its beginning."""
    out = tmp_path_factory.mktemp("published")
    write_history(out, seed=5, symbols=2, start_ms=START, end_ms=END, workers=1)
    return out


@pytest.fixture
def archives(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may spoil, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(published, tmp_path / "archives")
    return Path("archives")


def imported(kind: str, *files: object, fails: bool = False) -> Any:
    done = command("import", kind, *files, "--database", "sqlite:///market.db", "--json")
    assert done.code == (1 if fails else 0), done.error_line
    return json.loads(done.out.splitlines()[-1])


def rows(query: str) -> list[Any]:
    connection = apsw.Connection("market.db", flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def file_of(archives: Path, series: str, symbol: str = "BTCUSDT", day: str = "2026-06-24") -> Path:
    [found] = (archives / "data/futures/um/daily" / series / symbol).rglob(f"*{day}.zip")
    return found


def rewritten(path: Path, change: Any) -> None:
    """The lines of the file in the zip, changed; its checksum is removed."""
    with zipfile.ZipFile(path) as archive:
        [name] = archive.namelist()
        lines = archive.read(name).decode().splitlines()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "\n".join(change(lines)) + "\n")
    path.with_name(f"{path.name}.CHECKSUM").unlink()


def test_all_published_series_are_imported_once(archives: Path) -> None:
    first = [imported(kind, archives) for kind in ("candles", "metrics", "funding")]
    again = [imported(kind, archives) for kind in ("candles", "metrics", "funding")]

    klines = dict.fromkeys(("candles_1m", "mark_klines", "index_klines", "premium_klines"), 2 * 2880)
    # One period has no label in either convention: the one that ends at the change.
    assert [done["rows"] for done in first] == [
        klines,
        {"open_interest": 2 * 576, "long_short_ratio": 2 * 4 * 576},
        {"funding_rates": 2 * 6},
    ]
    assert [sum(done["rows"].values()) for done in again] == [0, 0, 0]
    assert [done["duplicates"] for done in again] == [sum(done["rows"].values()) for done in first]
    assert first[1]["conventions"] == {"end": 2, "start": 2}
    assert first[1]["holes"] == 2 * 5
    assert again[1]["holes"] == again[1]["revisions"] == 0
    assert rows("SELECT DISTINCT from_time, to_time FROM gaps") == [(LABELS_CHANGE_MS, LABELS_CHANGE_MS + PERIOD)]
    # Whatever the labels were, what is stored is the end of the period, known two minutes later.
    ends = [time for (time,) in rows("SELECT DISTINCT time FROM open_interest ORDER BY time")]
    assert ends == [time for time in range(START, END + 1, PERIOD) if time != LABELS_CHANGE_MS]
    assert rows("SELECT DISTINCT known_at - time, kind, revision FROM open_interest") == [(120_000, "hist_5m", 0)]
    assert rows("SELECT DISTINCT known_at - funding_time, interval_hours FROM funding_rates") == [(60_000, 8)]
    prices = rows("SELECT open, log_open, high, log_high, low, log_low, close, log_close FROM candles_1m LIMIT 50")
    assert all([quantised_log(price) for price in row[::2]] == list(row[1::2]) for row in prices)
    gaps = command("gaps", "--certify", "--database", "sqlite:///market.db")
    assert gaps.code == 0


def test_metrics_without_candles_are_not_believed_until_there_are_some(archives: Path) -> None:
    before = imported("metrics", archives, fails=True)
    imported("candles", archives)
    after = imported("metrics", archives)

    assert len(before["quarantined"]) == 4
    assert before["quarantined"][0] == (
        "BTCUSDT 2026-06-24: no 1m candles of that day are stored to prove its labels by: import them first"
    )
    assert before["rows"] == {}
    assert after["quarantined"] == []
    assert after["rows"]["open_interest"] == 2 * 576
    # The ledger is left with the period that has no label, and the first one of the days that began with their end.
    left = rows("SELECT DISTINCT from_time, to_time FROM gaps WHERE repaired_at IS NULL AND series = 'open_interest'")
    assert left == [(LABELS_CHANGE_MS, LABELS_CHANGE_MS + PERIOD)]


def test_a_day_of_both_conventions_is_quarantined_and_said(archives: Path) -> None:
    def shifted(lines: list[str]) -> list[str]:
        """From noon on each label is the beginning of its period: the values of the next row."""
        values = [line.split(",", 1)[1] for line in lines]
        return [
            f"{line.split(',', 1)[0]},{values[n + 1] if 145 <= n < len(lines) - 1 else values[n]}"
            for n, line in enumerate(lines)
        ]

    imported("candles", archives)
    rewritten(file_of(archives, "metrics"), shifted)

    done = imported("metrics", archives, fails=True)

    assert done["quarantined"] == ["BTCUSDT 2026-06-24: labels are neither ends nor beginnings of their periods"]
    assert rows(f"SELECT count(*) FROM open_interest WHERE symbol = 'BTCUSDT' AND time < {LABELS_CHANGE_MS}") == [(0,)]
    held = rows("SELECT DISTINCT series, from_time, to_time FROM gaps WHERE cause LIKE 'quarantined%'")
    assert sorted(held) == [
        (series, START, LABELS_CHANGE_MS)
        for series in sorted(("open_interest", *(f"long_short_ratio:{ratio}" for ratio in RATIOS)))
    ]


RATIOS = ("global_account", "top_account", "top_position", "taker")


def test_holes_torn_files_and_odd_rows_are_counted_named_and_written_down(archives: Path) -> None:
    rewritten(file_of(archives, "klines"), lambda lines: [*lines[:101], *lines[111:200], lines[150], *lines[200:]])
    rewritten(
        file_of(archives, "markPriceKlines"),
        lambda lines: [*lines[:5], lines[5].replace(",", ",-", 1), *lines[6:]],
    )
    torn = file_of(archives, "indexPriceKlines")
    torn.write_bytes(torn.read_bytes()[:1000])

    done = imported("candles", archives, fails=True)

    assert done["rows"]["candles_1m"] == 2 * 2880 - 10
    assert (done["duplicates"], done["invalid"], done["files"]) == (1, 1, 15)
    assert done["invalid_named"] == ["BTCUSDT-1m-2026-06-24.zip line 6: low, open, close and high are out of order"]
    assert [reason.partition(":")[0] for reason in done["refused"]] == ["BTCUSDT-1m-2026-06-24.zip"]
    assert rows("SELECT symbol, series, from_time, to_time, cause FROM gaps ORDER BY series") == [
        ("BTCUSDT", "candles_1m", START + 100 * MINUTE, START + 110 * MINUTE, "not in the imported files"),
        ("BTCUSDT", "mark_klines", START + 4 * MINUTE, START + 5 * MINUTE, "not in the imported files"),
    ]
    uncertain = command("gaps", "--certify", "--json", "--database", "sqlite:///market.db")
    assert uncertain.code == 1
    assert "10 minutes are neither stored nor absent" in uncertain.error_line
    facts = json.loads(uncertain.out.splitlines()[-1])
    assert facts["symbols"]["BTCUSDT"]["days"]["2026-06-24"] == {
        **dict.fromkeys(("ws", "rest", "synthetic", "repaired", "absent", "unexplained"), 0),
        "expected": 1440,
        "archive": 1430,
        "open": 10,
        "causes": ["not in the imported files"],
    }
    assert facts["other_gaps_open"] == {"mark_klines": 1}


def test_a_later_file_closes_the_gap_that_an_earlier_one_left(archives: Path) -> None:
    whole = file_of(archives, "klines")
    kept = Path("kept.zip")
    shutil.copy(whole, kept)
    rewritten(whole, lambda lines: [*lines[:101], *lines[111:]])
    imported("candles", archives)
    shutil.copy(kept, whole)

    done = imported("candles", archives)

    assert (done["rows"]["candles_1m"], done["gaps_closed"]) == (10, 1)
    assert rows("SELECT repaired_by FROM gaps") == [("archive",)]
    text = command("gaps", "--certify", "--database", "sqlite:///market.db")
    assert (text.code, "repaired" in text.out) == (0, True)


def test_a_candle_that_a_later_file_tells_differently_is_a_revision(archives: Path) -> None:
    imported("candles", archives)
    old = rows("SELECT volume FROM candles_1m WHERE symbol = 'BTCUSDT' ORDER BY open_time LIMIT 1")[0][0]

    def raised(lines: list[str]) -> list[str]:
        fields = lines[1].split(",")
        fields[5] = str(old + 1)
        return [lines[0], ",".join(fields), *lines[2:]]

    rewritten(file_of(archives, "klines"), raised)
    done = imported("candles", archives)

    assert (done["revisions"], done["rows"]["candles_1m"]) == (1, 0)
    assert rows("SELECT symbol, series, time, field, old, new, sources FROM revisions") == [
        ("BTCUSDT", "candles_1m", START, "volume", repr(old), repr(old + 1), "archive,archive")
    ]


def test_real_candles_without_flow_are_stored_without_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason="an extra: perpline[analytics]")
    file = (DATA / "candles-1m" / "ADA_USDT_USDT-1m-futures.feather").absolute()
    if not file.exists():
        pytest.skip("the shared recordings are not beside this repository")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    done = imported("candles", file)

    assert done["rows"] == {"candles_1m": 43199}
    assert done["holes"] == 0
    assert rows(
        "SELECT count(*), count(volume), count(quote_volume), count(trades), count(taker_buy_volume) FROM candles_1m"
    ) == [(43199, 43199, 0, 0, 0)]
    assert rows("SELECT DISTINCT symbol, source FROM candles_1m") == [("ADAUSDT", "archive")]


def test_imports_and_gaps_serve_postgresql(published: Path, postgres_database: PostgresDatabase) -> None:
    def done(*words: object) -> Any:
        ended = command(*words, "--database", postgres_database.url, "--json")
        assert ended.code == 0, ended.error_line
        return ended.json

    klines = file_of(published, "klines"), file_of(published, "klines", "ETHUSDT")

    first, again = (done("import", "candles", *klines) for _ in range(2))
    metrics = done("import", "metrics", file_of(published, "metrics"))
    facts = done("gaps", "--certify")

    assert (first["rows"], again["rows"], again["duplicates"]) == ({"candles_1m": 2880}, {"candles_1m": 0}, 2880)
    assert metrics["rows"] == {"open_interest": 288, "long_short_ratio": 4 * 288}
    assert {name: of["archive"] for name, of in facts["symbols"].items()} == {"BTCUSDT": 1440, "ETHUSDT": 1440}


def test_what_cannot_be_imported_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.csv").write_text("x\n")

    for words, line in (
        (("candles", "empty"), "there is no file of candles there"),
        (("candles", "nowhere"), "nowhere is not there"),
        (("candles", "notes.csv"), "its name tells no symbol and series"),
    ):
        done = command("import", *words, "--database", "sqlite:///market.db")
        assert done.code == 1
        assert line in done.error_line
    assert command("gaps", "--database", "sqlite:///market.db").code == 1
