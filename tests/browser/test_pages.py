"""What a person sees and does in a browser is what is in the database, on every page, in both languages."""

import importlib.resources
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from browsing import TWO_FRAMES, Screen, staged, watching
from perpline.simulation.faults import Faults
from perpline.websocket.freshness import AT_LEAST_WALL_S
from running import MINUTE

PAGES = ("overview", "symbol", "minutes", "health", "latency", "models", "trading", "log", "explain")
SERIOUS = ("serious", "critical")
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def routes(screen: Screen) -> list[str]:
    """Every page, each with something on it."""
    symbol, minute = screen.database.rows("SELECT symbol, max(close_time) FROM signals GROUP BY symbol LIMIT 1")[0]
    with_more = {"symbol": f"symbol/{symbol}", "explain": f"explain/{symbol}/{minute}"}
    return [with_more.get(name, name) for name in PAGES]


async def test_every_page_is_drawn_in_both_languages_without_a_complaint_and_asks_no_other_host(
    chromium: Any, tmp_path: Path
) -> None:
    async with watching(chromium, tmp_path) as screen:
        for language in ("en", "ko"):
            for route in await routes(screen):
                await screen.go(route)
                assert await screen.page.locator("html").get_attribute("lang") == language
                assert await screen.page.locator("h1, h2").count() > 0, route
            await screen.found("lang-switch").select_option("ko")
        assert screen.complaints == []
        hosts = {urlsplit(url).netloc for url in screen.asked if not url.startswith("data:")}
        assert hosts == {urlsplit(screen.address).netloc}


async def test_what_the_pages_show_is_what_the_database_holds(chromium: Any, tmp_path: Path) -> None:
    async with watching(chromium, tmp_path) as screen:
        database, symbol = screen.database, screen.exchange.symbols[0]

        async def shows_the_last_decision() -> bool:
            [(minute, status)] = database.rows(
                "SELECT close_time, status FROM signals WHERE symbol = ? ORDER BY close_time DESC LIMIT 1", symbol
            )
            link = await screen.found(f"cell-{symbol}-last").locator("a").get_attribute("href")
            shown = await screen.value(f"cell-{symbol}-last")
            return (shown, link) == (status, f"#/explain/{symbol}/{minute}")

        await screen.until(shows_the_last_decision, "the overview has the newest decision")
        query = "SELECT mark_price FROM premium_index WHERE symbol = ? ORDER BY minute DESC LIMIT 1"
        await screen.worker.until(lambda: database.rows(query, symbol), what="a minute's mark price")
        mark, [(stored,)] = float(await screen.value(f"cell-{symbol}-mark") or 0), database.rows(query, symbol)
        assert abs(mark / stored - 1) < 0.02

        minute, status = database.rows(
            "SELECT close_time, status FROM signals WHERE symbol = ? ORDER BY close_time LIMIT 1", symbol
        )[0]
        await screen.go(f"explain/{symbol}/{minute}")
        assert await screen.value("explain-status", "data-status") == status
        text = await screen.found("page-explain").inner_text()
        [(detail, model_id)] = database.rows(
            "SELECT detail, model_id FROM signals WHERE symbol = ? AND close_time = ?", symbol, minute
        )
        assert model_id in text
        assert detail in text

        await screen.go("minutes")
        rows = database.rows("SELECT symbol, close_time, status FROM signals WHERE close_time = ?", minute)
        assert len(rows) == len(screen.exchange.symbols)
        for name, close_time, expected in rows:
            assert await screen.value(f"minute-{name}-{close_time}", "data-status") == expected

        await screen.go("health")
        [(count,)] = database.rows("SELECT count(*) FROM gaps WHERE repaired_at IS NULL")
        assert await screen.value("open-gaps") == str(count)

        await screen.go("models")
        [(champion,)] = database.rows("SELECT DISTINCT model_id FROM signals WHERE status IN ('ok', 'flat') LIMIT 1")
        assert champion in await screen.found("champion").inner_text()


async def test_the_mode_is_switched_with_a_reason_and_who_did_it_is_stored(chromium: Any, tmp_path: Path) -> None:
    async with watching(chromium, tmp_path) as screen:

        async def is_off() -> bool:
            return await screen.value("mode-badge", "data-mode") == "off"

        await screen.until(is_off, "the badge says off")
        await screen.found("mode-button").click()
        await screen.found("mode-paper").check()
        await screen.found("mode-submit").click()
        assert await screen.found("mode-error").inner_text() != ""
        assert screen.database.rows("SELECT * FROM modes") == []

        await screen.found("mode-reason").fill("to see it trade")
        await screen.found("mode-submit").click()

        async def is_paper() -> bool:
            return await screen.value("mode-badge", "data-mode") == "paper"

        await screen.until(is_paper, "the badge says paper")
        rows = screen.database.rows("SELECT symbol, mode, positions, by, reason FROM modes")
        assert rows == [("", "paper", "keep", "dashboard:ana", "to see it trade")]
        await screen.go("log")
        assert "to see it trade" in await screen.found("log-modes").inner_text()

        # Live wants keys, as on the command line, and says so.
        await screen.found("mode-button").click()
        await screen.found("mode-live").check()
        await screen.found("mode-reason").fill("too early")
        await screen.found("mode-confirm").fill("LIVE")
        await screen.found("mode-submit").click()
        assert "API key" in await screen.found("mode-error").inner_text()
        assert screen.database.rows("SELECT count(*) FROM modes") == [(1,)]


async def test_symbols_with_a_mode_of_their_own_are_told_beside_the_mode_of_all(chromium: Any, tmp_path: Path) -> None:
    async with watching(chromium, tmp_path) as screen:
        symbol = screen.exchange.symbols[0]
        assert await screen.found("mode-exceptions").count() == 0
        await screen.found("mode-button").click()
        await screen.found("mode-paper").check()
        await screen.found("mode-symbols").fill(symbol)
        await screen.found("mode-reason").fill("one only")
        await screen.found("mode-submit").click()
        told = screen.found("mode-exceptions").locator("[data-mode=paper]")
        await told.wait_for()
        assert (await told.inner_text()).split() == ["PAPER", "1", symbol]
        assert await told.get_attribute("title") == f"PAPER: {symbol}"

        async def is_off() -> bool:
            return await screen.value("mode-badge", "data-mode") == "off"

        await screen.until(is_off, "the badge says off")
        badge = screen.found(f"row-{symbol}").locator(".mode")
        await badge.wait_for()
        cut = "each => each.getBoundingClientRect().right - each.parentElement.getBoundingClientRect().right"
        assert await badge.evaluate(cut) <= 0


async def test_a_page_that_does_not_come_says_so_and_can_be_asked_for_again(chromium: Any, tmp_path: Path) -> None:
    async with staged(chromium, tmp_path) as screen:
        await screen.page.route("**/pages/latency.js*", lambda route: route.abort())
        await screen.page.goto(f"{screen.address}/#/latency")
        await screen.drawn("not-loaded")
        await screen.page.unroute("**/pages/latency.js*")
        await screen.found("load-again").click()
        await screen.drawn("latency")


async def test_flatten_wants_its_word_and_turns_the_mode_off(chromium: Any, tmp_path: Path) -> None:
    async with watching(chromium, tmp_path) as screen:
        await screen.found("flatten-button").click()
        await screen.found("flatten-account").select_option("paper")
        await screen.found("flatten-submit").click()
        assert await screen.found("flatten-error").inner_text() != ""
        assert screen.database.rows("SELECT * FROM modes") == []

        await screen.found("flatten-confirm").fill("FLATTEN")
        await screen.found("flatten-submit").click()
        await screen.found("flatten-done").wait_for()
        [(mode, positions, by)] = screen.database.rows("SELECT mode, positions, by FROM modes")
        assert (mode, positions, by) == ("off", "flatten", "dashboard:ana")


async def test_a_stream_that_is_cut_turns_red_within_its_limit_and_green_again(chromium: Any, tmp_path: Path) -> None:
    faults = Faults(seed=7)
    async with watching(chromium, tmp_path, faults=faults) as screen:
        symbol = screen.exchange.symbols[0]
        cell = f"age-{symbol}-markPrice@1s"

        async def has(kind: str) -> bool:
            return kind in (await screen.value(cell, "class") or "").split()

        await screen.until(lambda: has("ok"), "the cell is green")
        label = await screen.value(cell, "aria-label")
        faults.ack_and_nothing = f"{symbol.lower()}@markPrice*"
        # Five market seconds are the limit for a mark price, but no limit is under one of ours; it is looked at once a
        # second, and the rest is for the news to be drawn on a machine that has more to do.
        await screen.until(lambda: has("stale"), "the cell is red", within_s=AT_LEAST_WALL_S + 5.0)
        assert await screen.value(cell, "aria-label") != label
        faults.ack_and_nothing = ""
        await screen.until(lambda: has("ok"), "the cell is green again", within_s=30.0)


async def test_language_and_theme_are_switched_at_once_and_kept(chromium: Any, tmp_path: Path) -> None:
    async with staged(chromium, tmp_path) as screen:
        root = screen.page.locator("html")
        words = {
            name: json.loads((Path(STATIC) / "app" / "words" / f"{name}.json").read_text()) for name in ("en", "ko")
        }
        navigation = screen.found("nav-trading")
        assert words["en"]["page"]["trading"] in await navigation.inner_text()

        await screen.found("lang-switch").select_option("ko")

        async def is_korean() -> bool:
            return await root.get_attribute("lang") == "ko"

        await screen.until(is_korean, "the page is in Korean")
        assert words["ko"]["page"]["trading"] in await navigation.inner_text()

        before = await root.get_attribute("data-theme")
        await screen.found("theme-switch").click()
        after = await root.get_attribute("data-theme")
        assert before != after

        await screen.page.reload()
        await screen.drawn("overview")
        assert (await root.get_attribute("lang"), await root.get_attribute("data-theme")) == ("ko", after)


async def test_axe_finds_no_serious_fault_and_nothing_is_wider_than_the_screen(chromium: Any, tmp_path: Path) -> None:
    pytest.importorskip("axe_playwright_python", reason="axe is not installed: the extra [browser]")
    axe = (importlib.resources.files("axe_playwright_python") / "axe.min.js").read_text()
    looks = (
        (1440, "light", None),
        (1440, "dark", "color-contrast"),
        (380, "dark", None),
    )  # darkness changes colours only
    async with watching(chromium, tmp_path) as screen:
        faults = []
        for route in await routes(screen):
            await screen.go(route)
            if not await screen.page.evaluate("'axe' in window"):
                await screen.page.evaluate(axe)
            for width, scheme, rule in looks:
                await screen.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
                await screen.page.set_viewport_size({"width": width, "height": 900})
                await screen.page.evaluate(TWO_FRAMES)
                only = {"resultTypes": ["violations"], **({"runOnly": [rule]} if rule else {})}
                found = await screen.page.evaluate("only => axe.run(document, only)", only)
                faults += [
                    (route, width, scheme, each["id"], each["nodes"][0]["html"][:200])
                    for each in found["violations"]
                    if each["impact"] in SERIOUS
                ]
                too_wide = await screen.page.evaluate("document.documentElement.scrollWidth - innerWidth")
                assert too_wide <= 0, f"{route} is {too_wide} px wider than {width}"
        assert faults == []


async def test_a_worker_that_dies_is_said_to_be_away_and_what_it_said_last_stays(chromium: Any, tmp_path: Path) -> None:
    async with watching(chromium, tmp_path) as screen:
        symbol = screen.exchange.symbols[0]
        await screen.worker.kill()

        async def is_away() -> bool:
            return "bad" in (await screen.value("header-worker", "class") or "").split()

        await screen.until(is_away, "the worker is away")
        assert await screen.found("header-connections").inner_text() == "–"
        old = ("header-equity", "header-connections", "header-weight", "header-latency")

        async def are_old() -> bool:
            return {await screen.value(each, "class") for each in old} == {"old"}

        await screen.until(are_old, "what the worker said last is drawn as old")
        assert await screen.page.locator(".modes.old").count() == 0, "the mode is that of the tables, which is not old"
        assert float(await screen.value(f"cell-{symbol}-price") or 0) > 0
        assert screen.database.rows("SELECT max(close_time) FROM signals")[0][0] % MINUTE == 0


STATIC = str(importlib.resources.files("perpline.dashboard") / "static")
