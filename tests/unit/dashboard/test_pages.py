"""What each page is told is what the database has; and what is asked of it there is stored, with who and why."""

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from dashing import MINUTE, MODEL, SYMBOLS, Served, T, fill, position, served, settings_in
from perpline.bootstrap import open_store
from perpline.dashboard.app import content_security_policy, static_files
from postgres_server import PostgresDatabase


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
        assert (facts["slot"], facts["network"], facts["worker"]) == ("champion", "mainnet", False)
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
    assert of["BUSDT"][2] == ["flat", 1]  # over REST
    assert of["BUSDT"][6] == ["flat", 2]  # a hole that was filled


def test_the_health_page_has_gaps_revisions_and_sources(page: Served) -> None:
    facts = page.ask("GET", "/api/health").json

    assert [(gap["symbol"], gap["repaired_by"]) for gap in facts["gaps"]] == [("AUSDT", None), ("BUSDT", "rest")]
    assert facts["open_gaps"] == 1
    assert [(row["old"], row["new"]) for row in facts["revisions"]] == [("1", "2")]
    assert facts["sources"]["candles_1m"] == {"ws": 22, "rest": 1}
    assert (facts["worker"], facts["spool"]) == (False, None)


def test_the_latency_page_is_made_of_the_stamps_in_the_rows(page: Served) -> None:
    facts = page.ask("GET", "/api/latency?minutes=5").json

    assert facts["series"][-1] == [T, 5.0, 5.0]
    assert facts["by_minute"][-1] == {"T": T, "n": 2, "features": 1.0, "predict": 2.0, "commit": 2.0}
    assert [row[0] for row in facts["series"]] == [T - n * MINUTE for n in range(4, -1, -1)]


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
            "INSERT INTO signal_outcomes SELECT signal_id, 'target', 0, 0.01, 0, 0 FROM signals WHERE status = 'ok'"
        )
    database.close()

    assert own_page.ask("GET", "/api/models").json["calibration"] == [
        {"slot": "champion", "bins": [{"p_mean": 0.61, "hit_rate": 1.0, "n": 1}]}
    ]


def test_the_trading_page_without_a_worker_is_what_the_tables_have(page: Served) -> None:
    facts = page.ask("GET", "/api/trading").json

    assert [(row["symbol"], row["now"], row["by"]) for row in facts["modes"]] == [("", "paper", "ana")]
    [held] = facts["accounts"]["paper"]["positions"]
    assert (held["symbol"], held["quantity"], held["protective_stop"]) == ("AUSDT", 2.0, 98.5)
    assert [row["position_id"] for row in facts["history"]["positions"]] == ["p2", "p1"]
    assert [row["rule"] for row in facts["history"]["refusals"]] == ["slippage"]
    assert facts["equity"]["paper"][-1] == [T, 10_005.0]


def test_the_log_page_has_modes_alarms_and_differences(page: Served) -> None:
    facts = page.ask("GET", "/api/log").json

    assert [row["reason"] for row in facts["modes"]] == ["to see it trade"]
    assert [row["action"] for row in facts["reconciliations"]] == ["adopted"]
    assert facts["alarms"] == []


def test_a_decision_is_explained_without_what_json_cannot_say(page: Served) -> None:
    facts = page.ask("GET", f"/api/explain?symbol=AUSDT&close_time={T}").json

    assert facts["decision"]["p_cal"] == 0.61
    assert [each["value"] for each in facts["vector"]] == [1.0, None, None]
    absent = page.ask("GET", f"/api/explain?symbol=AUSDT&close_time={T + MINUTE}")
    assert (absent.status, "there is no decision" in absent.json["error"]) == (404, True)
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


def test_a_live_account_without_keys_is_not_closed_and_that_is_said(page: Served) -> None:
    answer = page.post("/api/flatten", {"account": "live", "confirm": "FLATTEN"})

    assert (answer.status, "needs an API key" in answer.json["error"]) == (409, True)


def test_flatten_of_both_without_keys_does_not_leave_live_positions_open_in_silence(
    own_page: Served, folder: Path
) -> None:
    async def hold() -> None:
        store = open_store(f"sqlite:///{folder / 'perpline.db'}")
        await store.open()
        live = position("p9", account="live", status="open", quantity="2", closed_at=None, exit_reason="")
        await store.commit_trading({"positions": [live]})
        await store.close()

    asyncio.run(hold())

    answer = own_page.post("/api/flatten", {"account": "both", "confirm": "FLATTEN"})

    said = "the live account has open positions (AUSDT) and there is no API key here"
    assert (answer.status, said in answer.json["error"]) == (409, True), answer
    assert [row["mode"] for row in own_page.ask("GET", "/api/log").json["modes"]] == ["paper"]


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
