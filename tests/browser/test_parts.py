"""What a page makes of an answer that is seldom so: a dashboard without a worker, whose answers the test makes up."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from browsing import Stage, staged
from dashing import MINUTE, T

pytestmark = pytest.mark.asyncio(loop_scope="module")


HELD = {
    **{"symbol": "AUSDT", "side": 1, "status": "open", "quantity": 2.0, "entry_price": 100.0, "mark_price": 100.5},
    **{"target": 102.0, "stop": 99.0, "protective_stop": 98.5, "protected": True, "naked_ms": 0, "opened_at": T},
    **{"unrealized_pnl": 1.0, "deadline": T + MINUTE},
}
TRADING: dict[str, Any] = {
    **{"accounts": {}, "modes": [], "history": {}, "orders_open": [], "sums": {}, "twins": [], "equity": {}},
    **{"live": None, "keys": False, "waiting_for_lease": []},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def only_stage(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(chromium, tmp_path_factory.mktemp("stage")) as stage:
        yield stage


@pytest_asyncio.fixture(loop_scope="module")
async def stage(only_stage: Stage) -> AsyncIterator[Stage]:
    """A page that is opened once for this module; each test finds it as if nobody had been there."""
    yield only_stage
    complaints, only_stage.complaints[:] = list(only_stage.complaints), []
    await only_stage.clear()
    assert complaints == []


def account(name: str, told_by: str = "worker", **position: object) -> dict[str, Any]:
    return {"account": name, "told_by": told_by, "positions": [{**HELD, **position}], "equity": 10_000.0}


async def text_of(stage: Stage, testid: str) -> str:
    return " ".join((await stage.found(testid).inner_text()).split())


# ---- overview


async def test_a_position_says_whose_it_is_and_that_it_has_no_stop(stage: Stage) -> None:
    live = {"account": "live", "side": 1, "quantity": 2.0, "protected": False}
    paper = {"account": "paper", "side": -1, "quantity": 1.0, "protected": None}
    rows = {"AUSDT": {"position": live}, "BUSDT": {"position": paper}}
    await stage.show(rows)
    risky, other = stage.found("cell-AUSDT-position"), stage.found("cell-BUSDT-position")
    assert [await each.locator(".mode").get_attribute("data-mode") for each in (risky, other)] == ["live", "paper"]
    assert "Without a stop now" in await risky.inner_text()
    assert "!" not in await other.inner_text()


async def test_no_age_is_known_while_nothing_is_heard(chromium: Any, tmp_path: Path) -> None:
    async with staged(chromium, tmp_path) as stage:
        age, main = stage.found("age-AUSDT-bookTicker"), stage.page.locator("main")
        assert (await age.get_attribute("aria-label"), await main.get_attribute("class")) == (
            "AUSDT book: heard 0.1s ago",
            "",
        )

        async def is_unknown() -> bool:
            said = (await age.get_attribute("aria-label"), await age.inner_text(), await main.get_attribute("class"))
            return said == ("AUSDT book: not known", "–", "unheard")

        stage.tell(header={"worker": "away"}, rows={"AUSDT": {"ages": [None] * 5}})
        await stage.until(is_unknown, "without the worker")
        assert await stage.page.locator(".modes.old").count() == 0
        stage.tell(header={"worker": "live"}, rows={"AUSDT": {"ages": [1.0, 1.0, 1.0, 1.0, 1.0]}})
        await stage.page.locator("main:not(.unheard)").wait_for()
        await stage.sockets[-1].close()
        await stage.until(is_unknown, "without the dashboard")
        await stage.page.locator(".modes.old").wait_for()


async def test_signals_come_first_where_last_decisions_are_sorted(stage: Stage) -> None:
    skipped = {"last": {"status": "skipped_warmup", "side": 0, "p": None, "close_time": T, "detail": ""}}
    signal = {"last": {"status": "ok", "side": 1, "p": 0.6, "close_time": T, "detail": ""}}
    await stage.show({"AUSDT": skipped, "BUSDT": signal})
    await stage.page.get_by_role("columnheader", name="Last decision").get_by_role("button").click()
    names = await stage.page.locator(".grid-body [role=row]").evaluate_all(
        "rows => rows.sort((a, b) => a.offsetTop - b.offsetTop).map(row => row.dataset.key)"
    )
    assert names == ["BUSDT", "AUSDT"]


# ---- trading


async def test_an_account_that_is_not_looked_after_says_why_and_what_it_holds(stage: Stage) -> None:
    away = account("live", "tables", protected=None, mark_price=None, unrealized_pnl=None, naked_ms=None)
    told = {**TRADING, "accounts": {"paper": account("paper"), "live": away}}
    stage.answers |= {"trading": told}
    await stage.go("trading")
    assert "the worker has no API key for it" in await text_of(stage, "account-away-live")
    assert await stage.found("position-live-AUSDT").count() == 1
    assert await stage.found("account-away-paper").count() == 0


async def test_closed_positions_are_summed_by_account_and_never_together(stage: Stage) -> None:
    sums = {
        "paper": {"closed": 400, "won": 200, "net": 900.0, "days": 30},
        "live": {"closed": 10, "won": 1, "net": -50.0, "days": 30},
    }
    stage.answers |= {"trading": {**TRADING, "sums": sums}}
    await stage.go("trading")
    assert await text_of(stage, "sum-paper") == "PAPER 30 days: 400 closed, 50% won, net +900.00"
    assert await text_of(stage, "sum-live") == "LIVE 30 days: 10 closed, 10% won, net -50.00"


async def test_the_state_of_a_stop_is_that_of_its_order(stage: Stage) -> None:
    order = {"account": "live", "symbol": "AUSDT", "side": "SELL", "kind": "stop_market", "created_at": T}
    orders = [
        {**order, "client_id": "1", "leg": "exit", "status": "new"},
        {**order, "client_id": "2", "leg": "stop", "status": "triggering"},
    ]
    told = {**TRADING, "keys": True, "accounts": {"live": account("live")}, "orders_open": orders}
    stage.answers |= {"trading": told}
    await stage.go("trading")
    stops = stage.page.get_by_role("region", name="Stops at the exchange").locator("tbody tr")
    assert (await stops.locator("td").last.inner_text()).strip() == "triggering"
    assert await stage.page.get_by_role("region", name="Open orders").locator("tbody tr").count() == 2


# ---- what is done


async def test_what_flatten_left_open_is_told_whatever_is_pressed_meanwhile(stage: Stage) -> None:
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def later(route: Any) -> None:
        asked.set()
        await asyncio.wait_for(may_answer.wait(), 30)
        left = {"account": "live", "symbol": "AUSDT", "closed": "0", "left": "2", "error": "refused"}
        await route.fulfill(json={"done": [left]})

    await stage.page.route("**/api/flatten", later)
    await stage.found("flatten-button").click()
    await stage.found("flatten-confirm").fill("FLATTEN")
    await stage.found("flatten-submit").click()
    try:
        await asked.wait()
        for _ in range(3):  # a browser lets a page refuse the first only
            await stage.page.keyboard.press("Escape")
        await stage.page.mouse.click(5, 5)
        await stage.found("flatten-dialog").wait_for()
    finally:
        may_answer.set()  # nothing of the browser can be closed before
    assert "Not everything could be closed: AUSDT" in await text_of(stage, "flatten-done")


async def test_a_typed_reason_is_not_lost_by_pressing_beside_the_window(stage: Stage) -> None:
    await stage.found("mode-button").click()
    await stage.found("mode-reason").fill("a long reason")
    await stage.page.mouse.click(5, 5)
    assert await stage.found("mode-reason").input_value() == "a long reason"
    await stage.page.keyboard.press("Escape")
    await stage.found("mode-dialog").wait_for(state="detached")


# ---- symbol


async def test_the_legend_of_the_chart_is_the_last_closed_candle(stage: Stage) -> None:
    rows = {"AUSDT": {"price": 777.0}}
    await stage.show(rows)
    stage.answers["slippage"] = {}
    await stage.go("symbol/AUSDT")
    await stage.page.locator("[data-testid=symbol-price][data-value='777']").wait_for()
    values = await text_of(stage, "candle-values")
    assert "05:10" in values
    assert "C 101.00" in values
    assert "777" not in values


async def test_a_longer_candle_is_formed_of_the_closed_minutes_in_it(stage: Stage) -> None:
    """And places among candles do not assume that none is missing."""
    candles = [[0, 9, 9, 9, 9, 1, "ws", False]]
    minutes = [[840_000, 1, 1, 1, 1, 1], [900_000, 10, 12, 9, 11, 3], [1_020_000, 11, 15, 10, 14, 4]]
    forming = """async ([candles, minutes, step]) =>
        (await import("/app/pages/symbol.js")).formingCandle(candles, minutes, step)"""
    formed = await stage.page.evaluate(forming, [candles, minutes, 900_000])
    assert formed == [900_000, 10, 15, 9, 14, 7, None, False, 2]
    assert await stage.page.evaluate(forming, [candles, minutes, MINUTE]) is None
    assert await stage.page.evaluate(forming, [[[900_000, 1, 1, 1, 1, 1]], minutes, 900_000]) is None

    places = """async ([times, asked]) => {
        const { placeOf, timeOf } = await import("/app/parts/candle_chart.js");
        const back = [-1, 0.5, 2, 3].map((place) => timeOf(times, 60, place));
            return [asked.map((ms) => placeOf(times, 60, ms)), back];
    }"""
    found = await stage.page.evaluate(places, [[600, 660, 900], [570, 600, 690, 800, 930, 1020]])
    assert found == [[-0.5, 0, 1.5, 2, 2.5, 4], [540, 630, 900, 960]]


async def test_a_chart_draws_positions_of_paper_and_of_live_unlike(stage: Stage) -> None:
    drawn = """async () => {
        const { PositionBoxes } = await import("/app/parts/candle_chart.js");
        return ["live", "paper"].map((account) => {
            const boxes = new PositionBoxes({ up: "#1", down: "#2", accent: "#3", text: "#4" });
            const timeScale = () => ({ logicalToCoordinate: (at) => at * 10 });
            const series = { priceToCoordinate: (price) => price };
            boxes.attached({ chart: { timeScale }, series, requestUpdate() {} });
            boxes.show([{ account, opened_at: 0, entry_price: 100, target: 110, stop: 90 }], [0, 60], 60);
            const done = [];
            const get = (_, name) => (...words) => done.push([name, ...words]);
            const context = new Proxy({}, { get, set: () => true });
            boxes._draw(context);
            return [done.filter(([name]) => name.startsWith("fill")).length, JSON.stringify(done).includes("[6,4]")];
        });
    }"""
    assert await stage.page.evaluate(drawn) == [[3, False], [0, True]]


async def test_a_book_that_is_stale_is_told_loudly(stage: Stage) -> None:
    told = {"price": 100.0, "bps": 1.0, "quantity": 10.0, "quoted_usdt": 500.0, "age_s": 42.0, "is_stale": True}
    stage.answers |= {"slippage": told}
    await stage.go("symbol/AUSDT")
    assert "heard 42s ago" in await text_of(stage, "slippage-stale")
    told.update(is_stale=False, age_s=0.2)
    await stage.found("slippage-stale").wait_for(state="detached")
    assert "Age of the book 0.2s" in await text_of(stage, "slippage-result")


# ---- explain


def explained(**changes: object) -> dict[str, Any]:
    decision = {"status": "ok", "side": 1, "p_cal": 0.6, "detail": "", "xs_n": 2, "horizon_s": 1800}
    return {
        **{
            "symbol": "AUSDT",
            "close_time": T,
            "slot": "champion",
            "decision": decision,
            "prediction": None,
            "vector": [],
        },
        **{"model": {"model_id": "m1", "critical": []}, "latency_ms": None, "outbox": None, "outcome": None},
        **{"candles": {"wanted": 1, "stored": 1, "synthetic": 0, "sources": ["ws"], "gaps": [], "last": []}},
        **{"trading": {"refusals": [], "positions": [], "orders": [], "fills": []}, **changes},
    }


async def test_a_decision_is_asked_for_until_it_is_published_and_shows_its_outcome(stage: Stage) -> None:
    outbox = {"id": 7, "payload": "{}", "published_at": None}
    stage.answers["explain"] = explained(outbox=outbox)
    await stage.go(f"explain/AUSDT/{T}")
    assert "Not known yet" in await text_of(stage, "explain-outcome")
    assert "waits in the outbox" in await text_of(stage, "page-explain")
    outcome = {"reason": "target", "t_exit": T + MINUTE, "ret_net": 0.0012, "mae": -0.0005, "mfe": 0.002}
    stage.answers["explain"] = explained(outbox={**outbox, "published_at": T}, outcome=outcome)

    async def is_published() -> bool:
        return "was published" in await text_of(stage, "page-explain")

    await stage.until(is_published, "it is asked again")
    assert await stage.found("outcome-net").inner_text() == "+12.0"
    assert "Ended by target" in await text_of(stage, "explain-outcome")


async def test_a_minute_without_a_row_is_a_sentence_in_the_language_of_the_page(stage: Stage) -> None:
    await stage.page.goto(f"{stage.address}/#/explain/AUSDT/{T + 60 * MINUTE}")
    await stage.drawn("explain")
    assert "no process decided this minute" in await text_of(stage, "explain-status")
    await stage.found("lang-switch").select_option("ko")
    await stage.page.get_by_text("이 시각에 판단한 프로세스가 없습니다").wait_for()
    assert all("404" in each for each in stage.complaints)  # the browser's own word
    stage.complaints.clear()


async def test_what_became_of_a_signal_is_told_in_words_and_not_in_codes(chromium: Any, tmp_path: Path) -> None:
    position = {
        **{"account": "paper", "side": 1, "status": "closed", "opened_quantity": "2", "entry_price": "100"},
        **{"exit_price": "101", "exit_reason": "break_even", "realized_pnl": "2", "fees": "0", "funding": "0"},
        **{"naked_ms": 0, "closed_at": T, "opened_at": T, "position_id": "p", "protective_stop": None},
    }
    order = {
        **{"account": "paper", "client_id": "1", "created_at": T, "leg": "entry", "kind": "MARKET", "side": "BUY"},
        **{"status": "partially_filled", "filled": "1", "quantity": "2", "detail": ""},
    }
    refusal = {"account": "live", "rule": "max_positions", "detail": "3"}
    traded = {"refusals": [refusal], "positions": [position], "orders": [order], "fills": []}
    async with staged(chromium, tmp_path, answers={"explain": explained(trading=traded)}, locale="ko-KR") as stage:
        await stage.go(f"explain/AUSDT/{T}")
        told = await text_of(stage, "explain-trade")
        for code in ("paper", "live", "break_even", "entry", "MARKET", "BUY", "partially_filled", "max_positions"):
            assert code not in told
        for word in ("모의", "본절", "진입", "시장가 매수", "부분 체결", "실전: 최대 보유 수"):
            assert word in told


async def test_who_is_not_let_in_is_told_so_in_the_language_of_the_page(chromium: Any, tmp_path: Path) -> None:
    async with staged(chromium, tmp_path, locale="ko-KR") as stage:
        stage.answers["session"] = (401, {"error": "perpline: open the address …"})
        await stage.page.reload()
        gate = stage.page.get_by_role("alert")
        await gate.wait_for()
        assert "시작할 때 출력된 주소로 접속하십시오" in await gate.inner_text()


# ---- minutes, latency, models, log


async def test_the_first_touch_of_a_minute_tells_it_and_the_second_explains_it(chromium: Any, tmp_path: Path) -> None:
    phone = {"has_touch": True, "viewport": {"width": 380, "height": 800}}
    async with staged(chromium, tmp_path, **phone) as stage:
        await stage.go("minutes")
        await stage.found("heat-map").scroll_into_view_if_needed()
        box = await stage.found("heat-map").bounding_box()
        at = (box["x"] + box["width"] - 12, box["y"] + 30)
        await stage.page.touchscreen.tap(*at)
        await stage.page.locator("[data-testid=minute-told] strong", has_text="AUSDT").wait_for()
        assert urlsplit(stage.page.url).fragment == "/minutes"
        await stage.page.touchscreen.tap(*at)
        await stage.page.wait_for_url("**/#/explain/AUSDT/*")


async def test_fewer_minutes_than_were_asked_for_are_told_to_be_so(stage: Stage) -> None:
    cells = {"AUSDT": [["flat", 0]] * 2}
    answers = {
        "minutes": {"times": [T - MINUTE, T], "symbols": ["AUSDT"], "cells": cells, "minutes": 2, "asked": 360},
        "latency": {"series": [], "by_minute": [], "minutes": 166, "asked": 360},
    }
    stage.answers |= answers
    await stage.go("minutes")
    assert "newest 2 of 360 minutes" in await text_of(stage, "minutes-cut")
    heads = await stage.found("minutes-table").locator("th[scope=col]").all_inner_texts()
    assert heads[1:] == ["Nov 23, 05:10", "Nov 23, 05:11"]
    await stage.go("latency")
    assert "newest 166 of 360 minutes" in await text_of(stage, "latency-cut")


async def test_probabilities_are_compared_with_what_came_by_model(stage: Stage) -> None:
    bins = [{"p_mean": 0.6, "hit_rate": 0.5, "n": 10}]
    told = {"worker": False, "models": [], "deployments": [], "reports": [], "calibration": {"m1": bins, "m2": bins}}
    stage.answers |= {"models": told}
    await stage.go("models")
    legend = await stage.found("calibration").locator(".legend li").all_inner_texts()
    assert [each.strip() for each in legend[:2]] == ["m1, n 10", "m2, n 10"]


async def test_an_alarm_leads_to_its_runbook_and_it_is_said_where_alarms_reach_nobody(stage: Stage) -> None:
    alarm = {"level": "error", "at": T, "fields": {"text": "a hole"}}
    url = "https://example.org/gap_open"
    alarms = [
        {**alarm, "event": "gap_open", "runbook_url": url},
        {**alarm, "event": "disk_low", "runbook_url": "javascript:alert(1)"},
    ]
    answer = {"alarms": alarms, "modes": [], "reconciliations": [], "unwatched": "nobody watches"}
    stage.answers |= {"log": answer}
    await stage.go("log")
    assert "nobody watches" in await stage.found("unwatched").inner_text()
    assert await stage.found("alarm-gap_open").locator("a").get_attribute("href") == url
    assert await stage.found("alarm-disk_low").locator("a").count() == 0
