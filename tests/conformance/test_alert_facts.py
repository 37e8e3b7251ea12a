"""What alarms are judged by that stands in the tables, and the rows of alarms, on every database."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from databases import Database, SqliteDatabase
from msgspec.structs import replace
from test_store import commit, decision

from alarming import MINUTE, NOW, healthy, settings
from perpline.alerts import observer
from perpline.alerts.facts import ModesSeen, OpenGap
from perpline.alerts.observer import Observer
from perpline.common.clock import ManualClock
from perpline.common.errors import NeedsPerson
from perpline.domain.signal import Status
from perpline.storage.store import TRADING_TABLES, Store
from perpline.trading.mode import Mode, set_mode

HOUR = 60 * MINUTE


def looking(database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch, status: object) -> Observer:
    """An observer of this database and of a worker that says this."""

    async def fetch(*asked: object) -> object:
        if status is None:
            raise NeedsPerson("no worker runs")
        return status

    monkeypatch.setattr(observer, "fetch_status", fetch)
    url = f"sqlite:///{database.path}" if isinstance(database, SqliteDatabase) else database.url
    return Observer(settings(data_dir=str(folder), database_url=url), ManualClock(NOW))


async def test_the_facts_of_the_tables_are_those_of_the_last_minutes_and_hours(
    store: Store, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for symbol, end, series in (
        ("BTCUSDT", NOW, "candles_1m"),
        ("ETHUSDT", NOW - 5 * HOUR, "candles_1m"),
        ("ETHUSDT", NOW, "book_minutes"),
    ):
        await store.open_gap(symbol, series, end - MINUTE, end, "lost", NOW)
    await store.close_gap(await store.open_gap("BTCUSDT", "candles_1h", 0, NOW, "lost", NOW), NOW, "rest")
    for minute, took_ms in ((NOW, 30), (NOW - MINUTE, 50), (NOW - HOUR, 9_000)):
        rows = [replace(decision(f"{name}USDT", minute), t_candle_recv=minute * 1000) for name in ("BTC", "ETH")]
        await commit(store, rows, t_commit=(minute + took_ms) * 1000)
    missed = replace(decision("XRPUSDT", NOW - 2 * MINUTE, status=Status.SKIPPED_MISSED), t_candle_recv=1)
    await commit(store, [missed], t_commit=NOW * 1000)
    equity, midnight = TRADING_TABLES["equity"], NOW - NOW % (24 * HOUR)
    for account, minute, worth in (("paper", midnight - MINUTE, 1), ("paper", midnight, 2), ("paper", NOW, 3)):
        values = {"account": account, "minute": minute, "wallet": str(worth), "unrealized": "0", "equity": str(worth)}
        await store.commit_trading({"equity": [equity.row(values)]})

    watching = looking(database, tmp_path, monkeypatch, {**healthy(), "now": NOW + 20_000})
    facts = await watching.look(ModesSeen(id=3))
    await watching.close()

    assert facts.database_error == ""
    assert facts.gaps == (
        OpenGap(symbol="BTCUSDT", series="candles_1m", from_time=NOW - MINUTE, to_time=NOW, cause="lost"),
    )
    assert sorted(facts.close_to_signal_ms or ()) == [30.0, 50.0]
    assert facts.day_equity == {"paper": 2.0}
    assert (facts.modes, facts.modes_seen) == ((), ModesSeen(id=3))


async def test_every_change_of_mode_is_a_fact_also_without_a_worker(
    store: Store, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def put(mode: Mode, *symbols: str) -> None:
        await set_mode(
            store, symbols, mode, positions="keep", now=NOW, by="me", reason="why not", until=None, slot="champion"
        )

    watching = looking(database, tmp_path, monkeypatch, None)
    seen = []
    for mode, symbols in ((Mode.PAPER, ("BTCUSDT", "ETHUSDT")), (Mode.OFF, ())):
        await put(mode, *symbols)
        seen.append((await watching.look()).modes or ())
    await watching.close()

    assert [[(row.symbol, str(row.mode)) for _, row in rows] for rows in seen] == [
        [("BTCUSDT", "paper"), ("ETHUSDT", "paper")],
        [("BTCUSDT", "paper"), ("ETHUSDT", "paper"), ("", "off")],
    ]
    ids = [id for id, _ in seen[-1]]
    assert ids == sorted(set(ids))


async def test_without_a_worker_the_database_is_asked_whether_it_is_there_and_no_more(
    store: Store, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = looking(database, tmp_path, monkeypatch, None)
    facts = await watching.look()
    await watching.close()

    assert [worker.error for worker in facts.workers] == ["no worker runs"]
    assert (facts.database_error, facts.gaps, facts.close_to_signal_ms, facts.day_equity) == ("", None, None, None)


async def test_rows_of_alarms_are_written_again_as_they_change(
    store: Store, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = looking(database, tmp_path, monkeypatch, None)
    begun = ("disk_low", "/data", "warning", "12 MB left", NOW, None, None)
    over = (*begun[:5], NOW + 5, NOW + 1)
    await watching.write([begun])
    assert await store.trading_rows("alerts", {"cleared_at": None}) == [begun]
    await watching.write([begun, over])
    await watching.close()

    assert await store.trading_rows("alerts") == [over]


async def test_a_database_that_is_away_is_a_fact_and_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = SimpleNamespace(url="postgresql://nobody:secret@127.0.0.1:9/nothing")
    watching = looking(nowhere, tmp_path, monkeypatch, healthy())  # type: ignore[arg-type]
    facts = await watching.look()
    await watching.close()

    assert facts.database_error
    assert "secret" not in facts.database_error
    assert facts.gaps is None
