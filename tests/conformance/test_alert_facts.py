"""What alarms are judged by that stands in the tables, and the rows of alarms, on every database."""

from collections.abc import Awaitable, Callable
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
from perpline.storage.store import TRADING_TABLES, Row, Store
from perpline.trading.mode import Mode, set_mode

HOUR = 60 * MINUTE


def answering(status: object) -> Callable[..., Awaitable[object]]:
    async def fetch(*asked: object) -> object:
        if status is None:
            raise NeedsPerson("no worker runs")
        return status

    return fetch


def looking(database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch, status: object) -> Observer:
    """An observer of this database and of a worker that says this."""
    monkeypatch.setattr(observer, "fetch_status", answering(status))
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

    watching = looking(database, tmp_path, monkeypatch, {**healthy(), "now": NOW + 20_000})
    facts = await watching.look(ModesSeen(id=3))
    await watching.close()

    assert facts.database_error == ""
    assert facts.gaps == (
        OpenGap(symbol="BTCUSDT", series="candles_1m", from_time=NOW - MINUTE, to_time=NOW, cause="lost"),
    )
    assert sorted(facts.close_to_signal_ms or ()) == [30.0, 50.0]
    assert (facts.decided_until, facts.live_unattended) == (NOW, ())
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


async def test_without_a_worker_the_database_is_asked_whether_it_is_there_and_who_looks_after_positions(
    store: Store, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = looking(database, tmp_path, monkeypatch, None)
    facts = await watching.look()
    await watching.close()

    assert [worker.error for worker in facts.workers] == ["no worker runs"]
    assert (facts.database_error, facts.gaps, facts.close_to_signal_ms, facts.live_unattended) == ("", None, None, ())


def position(account: str, symbol: str, status: str) -> Row:
    values = {"account": account, "position_id": symbol, "symbol": symbol, "side": 1, "status": status}
    texts = dict.fromkeys(("quantity", "opened_quantity", "realized_pnl", "fees", "funding"), "0")
    more = {"signal_id": "", "origin": "signal", "opened_at": NOW, "exit_reason": "", "naked_ms": 0, "updated_at": NOW}
    return TRADING_TABLES["positions"].row({**values, **texts, **more})


async def test_live_positions_are_unattended_while_nobody_renews_the_lease_of_a_live_account(
    store: Store, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        position("live", "BTCUSDT", "open"),
        position("live", "ETHUSDT", "closed"),
        position("paper", "XUSDT", "open"),
    ]
    await store.commit_trading({"positions": rows})
    watching = looking(database, tmp_path, monkeypatch, healthy())

    async def found() -> tuple[str, ...] | None:
        return (await watching.look()).live_unattended

    nobody = await found()
    await store.take_lease("trader:live:0a1b", "somebody", 0, NOW - 1_000)
    held = await found()
    monkeypatch.setattr(observer, "fetch_status", answering({**healthy(), "now": NOW + 40_000}))
    died = await found()
    await store.take_lease("trader:live:0a1b", "somebody", -1, NOW + 39_000)
    again = await found()
    await store.drop_lease("trader:live:0a1b", "somebody")
    given_back = await found()
    await watching.close()

    assert (nobody, held, died, again, given_back) == (("BTCUSDT",), (), ("BTCUSDT",), (), ("BTCUSDT",))


async def test_live_positions_are_unattended_also_after_the_only_worker_died(
    store: Store, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.commit_trading({"positions": [position("live", "BTCUSDT", "open")]})
    await store.take_lease("trader:live:0a1b", "somebody", 0, NOW + 5_000)
    watching = looking(database, tmp_path, monkeypatch, healthy())
    clock = ManualClock(NOW)
    monkeypatch.setattr(watching, "_clock", clock)
    held = (await watching.look()).live_unattended

    monkeypatch.setattr(observer, "fetch_status", answering(None))
    just_died = (await watching.look()).live_unattended
    clock.advance(60)
    died = (await watching.look()).live_unattended
    never_heard = Observer(watching._settings, clock)
    restarted = (await never_heard.look()).live_unattended
    await watching.close()
    await never_heard.close()

    assert (held, just_died, died, restarted) == ((), (), ("BTCUSDT",), ("BTCUSDT",))


async def test_a_database_file_that_is_gone_is_an_error_and_one_that_never_was_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = SqliteDatabase(tmp_path / "perpline.db")
    watching = looking(database, tmp_path, monkeypatch, None)
    before_the_first_start = (await watching.look()).database_error
    monkeypatch.setattr(observer, "fetch_status", answering(healthy()))
    beside_a_worker = (await watching.look()).database_error
    await (await database.open()).close()
    monkeypatch.setattr(observer, "fetch_status", answering(None))
    there = (await watching.look()).database_error
    (tmp_path / "perpline.db").rename(tmp_path / "moved.db")
    gone = (await watching.look()).database_error
    (tmp_path / "moved.db").rename(tmp_path / "perpline.db")
    again = (await watching.look()).database_error
    await watching.close()
    await database.close()

    assert (before_the_first_start, there, again) == (None, "", "")
    words = f"the database file {tmp_path / 'perpline.db'} is gone: was it moved or deleted?"
    assert (beside_a_worker, gone) == (words, words)


@pytest.mark.parametrize("answer", [[], {}, {"ok": True}, {**healthy(), "now": "soon"}, {**healthy(), "leadership": 3}])
async def test_something_else_that_answers_on_the_port_is_no_worker_and_no_end(
    store: Store, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    watching = looking(database, tmp_path, monkeypatch, answer)
    facts = await watching.look()
    await watching.close()

    assert [worker.status for worker in facts.workers] == [None]
    assert "is no worker" in facts.workers[0].error


async def test_a_mode_of_a_newer_version_is_told_and_no_end(
    store: Store, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(database, SqliteDatabase):
        pytest.skip("one database is enough")
    values = f"'', 'dreamt', 'keep', {NOW}, 'me', 'why not'"
    database.do(
        "PRAGMA ignore_check_constraints = 1; "
        f'INSERT INTO modes (symbol, mode, positions, changed_at, "by", reason) VALUES ({values})'
    )
    watching = looking(database, tmp_path, monkeypatch, healthy())
    facts = await watching.look()
    await watching.close()

    assert "modes" in (facts.database_error or "")


async def test_a_database_that_was_restored_is_opened_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = SqliteDatabase(tmp_path / "perpline.db")
    first = await database.open()
    watching = looking(database, tmp_path, monkeypatch, healthy())
    before = (await watching.look()).gaps
    await first.close()
    (tmp_path / "perpline.db").rename(tmp_path / "moved.db")
    restored = await database.open()
    await restored.open_gap("BTCUSDT", "candles_1m", NOW - MINUTE, NOW, "lost", NOW)
    begun = ("disk_low", "/data", "warning", "12 MB left", NOW, None, None)

    facts = await watching.look()
    await watching.write([begun])

    assert (before, [gap.symbol for gap in facts.gaps or ()]) == ((), ["BTCUSDT"])
    assert await restored.trading_rows("alerts") == [begun]
    await watching.close()
    await database.close()


async def test_alarms_change_no_schema_under_a_worker_that_runs(
    store: Store, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(database, SqliteDatabase):
        pytest.skip("one database is enough")
    newest = database.rows("SELECT max(number) FROM schema_migrations")[0][0]
    database.do(f"DELETE FROM schema_migrations WHERE number = {newest}")
    watching = looking(database, tmp_path, monkeypatch, healthy())

    facts = await watching.look()
    with pytest.raises(NeedsPerson, match="older schema"):
        await watching.write([("disk_low", "/data", "warning", "12 MB left", NOW, None, None)])
    await watching.close()

    assert "older schema" in (facts.database_error or "")
    assert database.rows("SELECT max(number) FROM schema_migrations") == [(newest - 1,)]


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
