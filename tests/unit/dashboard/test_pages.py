"""What each page is told is what the database has; and what is asked of it there is stored, with who and why."""

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from dashing import MINUTE, MODEL, SYMBOLS, Served, T, fill, position, served, settings_in, store_rows
from perpline.common.clock import SystemClock
from perpline.common.errors import NeedsPerson, Unavailable
from perpline.dashboard import app
from perpline.dashboard import reading as dashboard_reading
from perpline.dashboard.app import Listening, content_security_policy, serve, static_files
from perpline.dashboard.reading import NEWEST, Reading
from perpline.storage.store import TRADING_TABLES
from postgres_server import PostgresDatabase
from running import eventually

DAY = 1440 * MINUTE
CHANGE = {"symbol": "", "mode": "off", "positions": "keep", "changed_at": T, "by": "ana"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    asyncio.run(fill(tmp_path))
    return tmp_path


@pytest.fixture
def own_page(folder: Path) -> Iterator[Served]:
    """A dashboard whose database the test may change, in the folder of the test."""
    with served(settings_in(folder)) as found:
        yield found


def test_the_session_says_who_we_are_and_no_password(tmp_path: Path) -> None:
    url = "postgresql://ana:secret@127.0.0.1:1/x"
    with served(settings_in(tmp_path, database_url=url)) as page:
        facts = page.ask("GET", "/api/session").json

        assert facts["database"] == "postgresql://ana:***@127.0.0.1:1/x"
        assert (facts["slot"], facts["network"], facts["worker"]) == ("champion", "custom", False)
        assert (facts["live_confirmed"], facts["languages"]) == (False, ["en", "ko"])
        answer = page.ask("GET", "/api/trading")
        assert (answer.status, "secret" in answer.json["error"]) == (503, False)


def test_the_symbol_page_has_candles_decisions_positions_and_what_lies_below(page: Served) -> None:
    facts = page.ask("GET", "/api/symbol?symbol=ausdt&interval=1m&limit=500").json

    assert [row[0] for row in facts["candles"]] == [T - n * MINUTE for n in range(12, 0, -1) if n != 4]
    assert facts["candles"][-1] == [T - MINUTE, 100.0, 101.0, 99.0, 101.0, 5.0, "ws", False]
    assert facts["decisions"][-1] == {
        **{"close_time": T, "status": "ok", "side": 1, "p_cal": 0.61, "ev_bp": 3.5, "detail": ""}
    }
    assert len(facts["decisions"]) == 11
    assert [(row["position_id"], row["entry_price"], row["exit_price"]) for row in facts["positions"]] == [
        ("p1", 100.0, 101.0),
        ("p2", 100.0, None),
    ]
    assert [row["net"] for row in facts["positions"]] == [1.9, 1.9]  # 2 realised, 0.1 of fees
    assert facts["mark"] == [[T - MINUTE, 100.1, 100.2, 0.0001]]
    assert facts["open_interest"] == [[T - MINUTE, 5.5]]
    assert facts["ratios"] == {"taker": [[T - MINUTE, 1.5]]}


def test_earlier_candles_are_asked_for_by_where_they_end(page: Served) -> None:
    facts = page.ask("GET", f"/api/symbol?symbol=AUSDT&limit=2&end={T - 5 * MINUTE}").json

    assert [row[0] for row in facts["candles"]] == [T - 7 * MINUTE, T - 6 * MINUTE]
    assert [row["close_time"] for row in facts["decisions"]] == [T - 6 * MINUTE, T - 5 * MINUTE]


def test_the_heat_map_says_what_each_minute_was(page: Served) -> None:
    facts = page.ask("GET", f"/api/minutes?minutes=11&end={T}").json

    assert facts["times"] == [T - n * MINUTE for n in range(10, -1, -1)]
    assert facts["symbols"] == list(SYMBOLS)
    of = {
        symbol: dict(zip([(T - time) // MINUTE for time in facts["times"]], facts["cells"][symbol], strict=True))
        for symbol in SYMBOLS
    }
    assert (of["AUSDT"][0], of["AUSDT"][9]) == (["ok", 0, 1], ["flat", 0])
    assert of["AUSDT"][3] == ["flat", 8]  # its candle is missing
    assert of["BUSDT"][1] == ["skipped_gap", 0]
    assert of["BUSDT"][2] == ["flat", 1]  # over REST, after the deadline
    assert of["BUSDT"][4] == ["flat", 0]  # over REST, and in time
    assert (facts["minutes"], facts["asked"]) == (11, 11)
    assert of["BUSDT"][6] == ["flat", 2]  # a hole that was filled


def test_the_health_page_has_gaps_revisions_and_sources(page: Served) -> None:
    facts = page.ask("GET", "/api/health").json

    assert [(gap["symbol"], gap["repaired_by"]) for gap in facts["gaps"]] == [("AUSDT", None), ("BUSDT", "rest")]
    assert facts["open_gaps"] == 1
    assert [(row["old"], row["new"]) for row in facts["revisions"]] == [("1", "2")]
    assert facts["sources"]["candles_1m"] == {"ws": 21, "rest": 2}
    assert (facts["worker"], facts["spool"]) == (False, None)
    assert not {"freshness", "candles", "messages", "polls"} & facts.keys()  # no page reads them


def test_the_latency_page_is_made_of_the_stamps_in_the_rows(page: Served) -> None:
    facts = page.ask("GET", "/api/latency?minutes=5").json

    assert facts["series"][-1] == [T, 5.0, 5.0]
    assert facts["by_minute"][-1] == {"T": T, "n": 2, "features": 1.0, "predict": 2.0, "decide": 2.0}
    assert [row[0] for row in facts["series"]] == [T - n * MINUTE for n in range(4, -1, -1)]
    assert (facts["minutes"], facts["asked"]) == (5, 5)


async def test_what_is_cut_off_for_its_length_says_so_and_ends_at_a_whole_minute(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, clock = settings_in(folder), SystemClock()
    reading = Reading(settings, clock)
    monkeypatch.setattr(dashboard_reading, "MOST_CELLS", 12)
    cells = await reading.minutes(SYMBOLS, 11, T, T, "champion", 1.0)
    monkeypatch.setattr(dashboard_reading, "MOST_CELLS", 3)
    took = await reading.latency(60, T, "champion", 1.0)
    await reading.close()

    assert (cells["minutes"], cells["asked"], len(cells["times"])) == (6, 11, 6)
    assert ([row["T"] for row in took["by_minute"]], took["minutes"], took["asked"]) == ([T], 1, 60)


async def test_the_minutes_of_a_few_symbols_are_read_whole_beside_many_that_are_not_followed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard_reading, "MOST_CELLS", 12)
    reading = Reading(settings_in(folder), SystemClock())
    found = await reading.minutes(["BUSDT"], 11, T, T, "champion", 1.0)
    await reading.close()

    assert [status for status, *_ in found["cells"]["BUSDT"]] == ["flat"] * 9 + ["skipped_gap", "flat"]
    assert not any(flags & dashboard_reading.MISSING for _, flags, *_ in found["cells"]["BUSDT"])


def test_the_models_page_and_a_report_that_can_do_nothing(page: Served) -> None:
    facts = page.ask("GET", "/api/models").json

    assert [(row["model_id"], row["status"]) for row in facts["models"]] == [(MODEL, "champion")]
    assert [(row["slot"], row["by"]) for row in facts["deployments"]] == [("champion", "ana")]
    assert MODEL in facts["reports"]
    assert (facts["worker"], facts["champion"]) == (False, None)
    report = page.ask("GET", f"/api/models/report?model_id={MODEL}")
    assert (report.status, report.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert report.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none';")
    for name in ("..", ".", "../m1", "m1/../m1", "nosuch", "%2e%2e"):
        assert page.ask("GET", f"/api/models/report?model_id={name}").status in (400, 404)


def test_what_was_a_gain_is_counted_by_the_probability_that_was_told(own_page: Served, folder: Path) -> None:
    with sqlite3.connect(folder / "perpline.db") as database:
        database.execute(
            "UPDATE signals SET status = 'ok', model_id = 'm2', p_cal = 0.7 WHERE symbol = 'BUSDT' AND close_time = ?",
            (T,),
        )
        database.execute(
            "INSERT INTO signal_outcomes "
            "SELECT signal_id, 'target', 0, CASE model_id WHEN 'm2' THEN -1 ELSE 1 END, 0, 0 "
            "FROM signals WHERE status = 'ok'"
        )
    database.close()

    assert own_page.ask("GET", "/api/models").json["calibration"] == {
        "m1": [{"p_mean": 0.61, "hit_rate": 1.0, "n": 1}],
        "m2": [{"p_mean": 0.7, "hit_rate": 0.0, "n": 1}],
    }


async def test_the_newest_signals_are_counted_where_there_are_too_many(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite3.connect(folder / "perpline.db") as database:
        database.execute("UPDATE signals SET status = 'ok', model_id = 'old' WHERE close_time < ?", (T - 5 * MINUTE,))
        database.execute("INSERT INTO signal_outcomes SELECT signal_id, 'target', 0, 1, 0, 0 FROM signals")
    database.close()
    monkeypatch.setattr(dashboard_reading, "CALIBRATION_ROWS", 1)
    reading = Reading(settings_in(folder), SystemClock())
    found = await reading.models(T, "champion")
    await reading.close()

    assert list(found["calibration"]) == [MODEL]


def test_the_trading_page_without_a_worker_is_what_the_tables_have(page: Served) -> None:
    facts = page.ask("GET", "/api/trading").json

    assert [(row["symbol"], row["now"], row["by"]) for row in facts["modes"]] == [("", "paper", "ana")]
    [held] = facts["accounts"]["paper"]["positions"]
    assert (held["symbol"], held["quantity"], held["protective_stop"]) == ("AUSDT", 2.0, 98.5)
    assert (held["account"], held["protected"], facts["accounts"]["paper"]["told_by"]) == ("paper", None, "tables")
    assert facts["sums"] == {"paper": {"closed": 1, "won": 1, "net": 1.9, "days": 30}}
    assert [row["position_id"] for row in facts["history"]["positions"]] == ["p2", "p1"]
    assert [row["rule"] for row in facts["history"]["refusals"]] == ["slippage"]
    assert facts["equity"]["paper"][-1] == [T, 10_005.0]


def test_sums_are_of_all_that_an_account_closed_in_a_month_and_orders_that_rest_are_all_there(
    own_page: Served, folder: Path
) -> None:
    def closed(name: str, **changes: object) -> tuple[object, ...]:
        return position(name, **{"account": "live", "closed_at": T - 29 * DAY, "opened_at": T - 29 * DAY, **changes})

    def order(number: int, final_at: int | None, created_at: int) -> tuple[object, ...]:
        values = {"account": "live", "client_id": f"c{number}", "symbol": "AUSDT", "leg": "stop", "side": "sell"}
        values |= {
            "kind": "stop_market",
            "reduce_only": 1,
            "quantity": "0",
            "status": "new",
            "filled": "0",
            "detail": "",
        }
        values |= {"trigger_price": "98", "created_at": created_at, "updated_at": T, "final_at": final_at}
        return TRADING_TABLES["orders"].row(values)

    lost = [closed(f"q{number}", realized_pnl="-1.5", fees="0") for number in range(NEWEST + 5)]
    others = [
        closed("never", entry_price=None, realized_pnl="0", fees="0"),
        closed("before", closed_at=T - 31 * DAY, opened_at=T - 31 * DAY),
        closed("gain", realized_pnl="3", fees="0.5", funding="0.25"),
    ]
    orders = [order(0, None, T - DAY), *(order(number, T, T) for number in range(1, NEWEST + 5))]
    asyncio.run(store_rows(folder, {"positions": [*lost, *others], "orders": orders}))

    facts = own_page.ask("GET", "/api/trading").json

    assert facts["sums"]["live"] == {"closed": 206, "won": 1, "net": -304.75, "days": 30}
    assert facts["sums"]["paper"]["closed"] == 1
    assert [(row["client_id"], row["leg"]) for row in facts["orders_open"]] == [("c0", "stop")]
    assert len(facts["history"]["orders"]) == NEWEST


def test_the_log_page_has_modes_alarms_and_differences(page: Served) -> None:
    facts = page.ask("GET", "/api/log").json

    assert [row["reason"] for row in facts["modes"]] == ["to see it trade"]
    assert [row["action"] for row in facts["reconciliations"]] == ["adopted"]
    assert facts["alarms"] == []


@pytest.mark.parametrize(
    ("urls", "said"), [("", None), ("json://127.0.0.1:1/", "nobody watches: perpline alerts run does not run")]
)
def test_the_log_page_says_when_alarms_reach_nobody(folder: Path, urls: str, said: str | None) -> None:
    with served(settings_in(folder, alert_urls=urls)) as page:
        assert page.ask("GET", "/api/log").json["unwatched"] == said


@pytest.mark.parametrize(("base", "address"), [("", None), ("https://x.example/r/", "https://x.example/r/disk_low")])
def test_an_alarm_in_the_log_leads_to_its_page_where_that_has_an_address(
    folder: Path, base: str, address: str | None
) -> None:
    row = {"name": "disk_low", "subject": "", "severity": "critical", "text": "full", "raised_at": T}
    asyncio.run(store_rows(folder, {"alerts": [TRADING_TABLES["alerts"].row(row)]}))

    with served(settings_in(folder, runbook_url=base)) as page:
        [alarm] = page.ask("GET", "/api/log").json["alarms"]

    assert (alarm["event"], alarm["level"], alarm["runbook_url"]) == ("disk_low", "error", address)


def test_a_decision_is_explained_without_what_json_cannot_say(page: Served) -> None:
    facts = page.ask("GET", f"/api/explain?symbol=AUSDT&close_time={T}").json

    assert facts["decision"]["p_cal"] == 0.61
    assert [each["value"] for each in facts["vector"]] == [1.0, None, None]
    absent = page.ask("GET", f"/api/explain?symbol=AUSDT&close_time={T + MINUTE}")
    assert (absent.status, "there is no decision" in absent.json["error"]) == (404, True)
    assert absent.json["code"] == "no_row"
    assert page.ask("GET", f"/api/explain?symbol=AUSDT&close_time={T + 1}").status == 400


def test_a_change_of_mode_is_a_row_with_who_and_why(own_page: Served, folder: Path) -> None:
    asked = {"mode": "paper", "reason": "from the sofa", "symbols": ["busdt"], "for": "2h", "positions": "protect"}
    [changed] = own_page.post("/api/mode", asked).json["changed"]

    assert (changed["symbol"], changed["mode"], changed["positions"]) == ("BUSDT", "paper", "protect")
    assert changed["until"] - changed["changed_at"] == 120 * MINUTE
    newest = own_page.ask("GET", "/api/log").json["modes"][0]
    assert (newest["symbol"], newest["by"], newest["reason"]) == ("BUSDT", "dashboard:test", "from the sofa")


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ({"mode": "live", "reason": "go", "for": "8h", "confirm_live": True}, 409, "needs an API key"),
        ({"mode": "live", "reason": "go", "confirm_live": True}, 400, "is set for a time"),
        ({"mode": "off", "reason": " "}, 400, "has a reason"),
        ({"mode": "off", "reason": "x", "symbols": ["NOSUCH"]}, 400, "is not followed here"),
    ],
)
def test_what_the_command_line_would_refuse_is_refused_here(
    page: Served, asked: dict[str, object], status: int, said: str
) -> None:
    answer = page.post("/api/mode", asked)

    assert (answer.status, said in answer.json["error"]) == (status, True), answer
    assert len(page.ask("GET", "/api/log").json["modes"]) == 1


def test_a_database_of_an_older_perpline_is_not_migrated_under_a_worker_that_runs(
    own_page: Served, folder: Path
) -> None:
    with sqlite3.connect(folder / "perpline.db") as database:
        database.execute("DROP INDEX signals_ok_by_time")
        database.execute("DROP INDEX positions_by_end")
        database.execute("DELETE FROM schema_migrations WHERE number >= 7")
        database.commit()
        answer = own_page.post("/api/mode", {"mode": "off", "reason": "x"})
        schemas = database.execute("SELECT max(number) FROM schema_migrations").fetchall()
    database.close()

    assert (answer.status, "has an older schema" in answer.json["error"]) == (503, True), answer
    assert schemas == [(6,)]


def test_a_live_account_without_keys_is_not_closed_and_that_is_said(page: Served) -> None:
    answer = page.post("/api/flatten", {"account": "live", "confirm": "FLATTEN"})

    assert (answer.status, "needs an API key" in answer.json["error"]) == (409, True)


def test_flatten_of_both_without_keys_does_not_leave_live_positions_open_in_silence(
    own_page: Served, folder: Path
) -> None:
    live = position("p9", account="live", status="open", quantity="2", closed_at=None, exit_reason="")
    asyncio.run(store_rows(folder, {"positions": [live]}))

    answer = own_page.post("/api/flatten", {"account": "both", "confirm": "FLATTEN"})

    said = "the live account has open positions (AUSDT) and there is no API key here"
    assert (answer.status, said in answer.json["error"]) == (409, True), answer
    assert [row["mode"] for row in own_page.ask("GET", "/api/log").json["modes"]] == ["paper"]


async def test_a_database_that_was_put_in_its_place_is_read_and_not_the_one_that_is_gone(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    await fill(other)
    await store_rows(other, {"modes": [TRADING_TABLES["modes"].row({**CHANGE, "reason": "restored"})]})
    reading = Reading(settings_in(folder), SystemClock())
    before = (await reading.log())["modes"][0]["reason"]
    for name in ("perpline.db-wal", "perpline.db-shm"):
        (folder / name).unlink(missing_ok=True)
    (other / "perpline.db").replace(folder / "perpline.db")
    after = (await reading.log())["modes"][0]["reason"]
    (folder / "perpline.db").unlink()
    with pytest.raises(NeedsPerson, match="no database yet"):
        await reading.log()
    await reading.close()

    assert (before, after) == ("to see it trade", "restored")


async def test_a_question_that_takes_too_long_is_stopped_and_the_next_is_answered(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard_reading, "WITHIN_S", 0.2)
    endless = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
    reading = Reading(settings_in(folder), SystemClock())
    with pytest.raises(Unavailable, match=r"longer than 0\.2 s"):
        await reading.ask(lambda store: store.select(endless))
    found = await reading.newest("champion")
    await reading.close()

    assert found == T


async def test_a_stop_waits_until_what_is_being_closed_is_closed_and_that_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, stop, said = asyncio.Event(), asyncio.Event(), asyncio.Event(), list[Listening]()

    async def slow(*_: object, symbols: list[str], **__: object) -> list[dict[str, str]]:
        begun.set()
        await go_on.wait()
        return [{"symbol": symbol, "left": "0"} for symbol in symbols]

    monkeypatch.setattr(app, "flatten", slow)
    monkeypatch.setattr(app, "GOODBYE_WITHIN_S", 0.05)
    how = {"by": "x", "allow_remote": False, "without_tls": False, "tls": None, "on_ready": said.append}
    serving = asyncio.create_task(serve(settings_in(folder), SystemClock(), stop, **how))
    await eventually(lambda: said)
    page = await asyncio.to_thread(Served, said[0])
    closing = asyncio.create_task(
        asyncio.to_thread(
            page.post, "/api/flatten", {"account": "paper", "confirm": "FLATTEN", "symbols": ["goneusdt"]}
        )
    )
    await begun.wait()
    stop.set()
    await asyncio.sleep(0.5)  # longer than other requests are given now
    assert not serving.done()
    go_on.set()
    answer = await closing
    await serving

    # It is nobody's business whether the symbol is still followed.
    assert (answer.status, answer.json) == (200, {"done": [{"symbol": "GONEUSDT", "left": "0"}]})


def test_without_a_database_the_page_comes_up_and_says_so(tmp_path: Path) -> None:
    with served(settings_in(tmp_path)) as page:
        for path in ("trading", "log", "health", "models", "minutes", "latency"):
            answer = page.ask("GET", f"/api/{path}")
            assert (answer.status, list(answer.json)) == (503, ["error"])
    assert not (tmp_path / "perpline.db").exists()


def test_both_databases_answer_the_same(page: Served, postgres_database: PostgresDatabase, tmp_path: Path) -> None:
    asyncio.run(fill(tmp_path, postgres_database.url))
    asked = (
        *("symbol?symbol=AUSDT", "symbol?symbol=BUSDT&interval=1h", f"minutes?minutes=30&end={T}", "health", "models"),
        *("latency?minutes=60", "trading", "log", f"explain?symbol=AUSDT&close_time={T}"),
    )
    with served(settings_in(tmp_path, database_url=postgres_database.url)) as other:
        for path in asked:
            answer = other.ask("GET", f"/api/{path}")
            ours = page.ask("GET", f"/api/{path}").json
            assert answer.status == 200
            assert {name: (answer.json[name], ours[name]) for name in ours if answer.json[name] != ours[name]} == {}, (
                path
            )


def test_the_policy_names_one_style_sheet_by_its_hash_and_allows_no_inline_script() -> None:
    page = static_files()
    policy = content_security_policy(page)

    assert "unsafe" not in policy
    assert "script-src 'self';" in policy
    odd = {"vendor/MANIFEST.json": ("", b'{"style_sources": ["\'unsafe-inline\'", "https://evil.example"]}', "")}
    assert "style-src 'self';" in content_security_policy(odd)
