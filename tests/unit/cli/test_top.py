"""`perpline top`: what it shows at every size, its keys, and a worker that goes away and returns."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text
from textual.geometry import Region
from textual.pilot import Pilot
from textual.widgets import Static

from perpline.cli.status import STREAM_HEADS
from perpline.cli.top import top
from perpline.cli.top_app import Page, SymbolTable, TopApp
from perpline.cli.top_view import (
    COLUMNS,
    Closes,
    Picture,
    big,
    cells_of,
    chosen,
    columns_for,
    mode_note,
    picture,
    plain_lines,
)
from perpline.common.clock import ManualClock
from perpline.common.errors import NeedsPerson
from perpline.endpoint import Endpoint

T = 1_795_410_660_000
NAMES = ("BTCUSDT", "ETHUSDT", "1000PEPEUSDT", "SOLUSDT")


def decision(status: str = "flat", side: int = 0, p: float | None = 0.52, close_time: int = T) -> dict[str, Any]:
    return {"close_time": close_time, "status": status, "side": side, "p": p, "detail": f"why it is {status}"}


def entry(**but: Any) -> dict[str, Any]:
    """One symbol of a /status."""
    return {
        "price": 150_293.5,
        "bid": 150_293.4,
        "ask": 150_293.5,
        "spread_bps": 0.03,
        "mark_price": 150_290.12345678,
        "index_price": 150_280.0,
        "funding_rate": 0.0001,
        "next_funding_time": T + 3_600_000,
        "last_candle": {"open_time": T - 60_000, "close": 150_000.0, "source": "ws"},
        "last_decision": decision(),
        "ages_s": dict.fromkeys(STREAM_HEADS, 0.25),
        **but,
    }


def position(symbol: str, **but: Any) -> dict[str, Any]:
    return {
        "symbol": symbol,
        "side": 1,
        "status": "open",
        "quantity": 0.003,
        "entry_price": 150_000.0,
        "mark_price": 150_290.0,
        "protected": True,
        "naked_ms": 0,
        "unrealized_pnl": 0.87,
        "opened_at": T,
        **but,
    }


def account(*positions: dict[str, Any], **but: Any) -> dict[str, Any]:
    return {
        "equity": 10_012.3,
        "unrealized_pnl": 0.87,
        "net_pnl": -4.5,
        "closed": 3,
        "blocked": "",
        "positions": list(positions),
        **but,
    }


def mode(name: str, symbol: str = "", until: int | None = None) -> dict[str, Any]:
    return {"symbol": symbol, "mode": name, "until": until, "by": "somebody", "reason": "to see", "positions": "keep"}


def connection(**but: Any) -> dict[str, Any]:
    return {"name": "market-0", "live": True, "streams": 20, "silent_count": 0, "last_error": "", **but}


def facts(symbols: dict[str, dict[str, Any]] | None = None, **but: Any) -> dict[str, Any]:
    """A /status, reduced to what is shown."""
    return {
        "now": T + 12_000,
        "version": "0.1.0",
        "slot": "champion",
        "role": "all",
        "shard": None,
        "leadership": None,
        "model": "default-1",
        "speed": 1.0,
        "ready": True,
        "trouble": [],
        "connections": [connection()],
        "streams": {"stale": {}},
        "messages": {"rates": {"total": 914.0}},
        "decisions": {"by_status": {"flat": 5, "ok": 1}, "close_to_signal_ms": {"p50": 2.04, "p99": 9.0}},
        "trading": {"modes": [mode("paper")], "accounts": {"paper": account(position("ETHUSDT"))}},
        "outbox": {"last_error": ""},
        "spool": None,
        "room": None,
        "rest": {"weight_used": 240, "weight_limit": 2400},
        "symbols": symbols or {name: entry() for name in NAMES},
        **but,
    }


def seen(**but: Any) -> Picture:
    return picture(facts(**but), Closes())


# ---- what is shown


def test_the_mode_is_written_large_in_letters_of_one_height() -> None:
    for word in ("off", "paper", "live"):
        lines = big(word)

        assert len(lines) == 3
        assert len({len(line) for line in lines}) == 1
        assert len(lines[0]) <= 25


@given(st.integers(40, 260), st.integers(1, 16))
def test_what_is_shown_fits_every_width(width: int, longest: int) -> None:
    rows = {name: row for name, row in seen(symbols={"X" * longest: entry(), "BTCUSDT": entry()}).rows.items()}

    columns, fitting = columns_for(width, rows)

    shown = columns[:fitting]
    assert {"mode", "symbol", "price", "decision", "pnl"} <= {column.name for column in shown}
    if width >= 66:
        assert sum(column.width + 1 for column in shown) <= width
    for row in rows.values():
        assert [len(cell.text) for cell in cells_of(row, columns)] == [column.width for column in columns]


def test_a_wide_terminal_shows_every_column_and_a_narrow_one_keeps_them_beyond_its_edge() -> None:
    wide, wide_fitting = columns_for(200, NAMES)
    narrow, narrow_fitting = columns_for(80, NAMES)

    names = {column.name for column in COLUMNS} - {"oldest"}
    assert wide_fitting == len(wide)
    assert {column.name for column in wide} == names
    assert {column.name for column in narrow[:narrow_fitting]} == {
        "mode",
        "symbol",
        "price",
        "oldest",
        "decision",
        "position",
        "pnl",
    }
    assert {column.name for column in narrow} == names | {"oldest"}


def test_a_stream_that_the_worker_calls_stale_is_marked() -> None:
    shown = seen(
        symbols={"BTCUSDT": entry(ages_s={**dict.fromkeys(STREAM_HEADS, 0.1), "bookTicker": 31.0})},
        streams={"stale": {"public-1": ["BTCUSDT bookTicker"]}},
    )

    cells = dict(zip((column.name for column in COLUMNS), cells_of(shown.rows["BTCUSDT"], COLUMNS), strict=True))
    assert (cells["age_book"].text.strip(), cells["age_book"].style) == ("!31s", "bold red")
    assert cells["age_1m"].style == "dim"
    assert cells["oldest"].text.strip() == "book !31s"


@pytest.mark.parametrize(
    ("kind", "live", "stale", "quiet"),
    [
        ("bookTicker", True, [], ["bookTicker"]),
        ("bookTicker", False, ["bookTicker"], []),
        ("markPrice@1s", True, ["markPrice@1s"], []),
    ],
    ids=["a book may rest", "not while its connection is cut", "a mark price comes every second"],
)
def test_a_stream_beyond_its_limit(kind: str, live: bool, stale: list[str], quiet: list[str]) -> None:
    ages = {**dict.fromkeys(STREAM_HEADS, 0.1), kind: 25.0}

    row = seen(symbols={"BTCUSDT": entry(ages_s=ages)}, connections=[connection(live=live)]).rows["BTCUSDT"]

    assert (row.stale, row.quiet) == (stale, quiet)


def test_limits_are_wall_time_of_a_fast_market() -> None:
    ages = dict.fromkeys(STREAM_HEADS, 1.5)

    row = seen(symbols={"BTCUSDT": entry(ages_s=ages)}, speed=60.0).rows["BTCUSDT"]

    assert row.stale == ["markPrice@1s"]
    assert set(row.quiet) == set(STREAM_HEADS) - {"markPrice@1s"}


def test_the_position_of_the_account_in_force_comes_before_the_other_ones() -> None:
    accounts = {"paper": account(position("BTCUSDT", side=-1)), "live": account(position("BTCUSDT"))}
    of_live = seen(trading={"modes": [mode("live")], "accounts": accounts})
    of_none = seen(trading={"modes": [], "accounts": {"paper": account(position("BTCUSDT"))}})

    assert of_live.rows["BTCUSDT"].position is not None
    assert (of_live.account, of_live.rows["BTCUSDT"].position["account"]) == ("live", "live")
    assert (of_none.mode, of_none.account) == ("off", "paper")


def test_a_symbol_with_a_mode_of_its_own_shows_it() -> None:
    shown = seen(trading={"modes": [mode("paper"), mode("off", "SOLUSDT")], "accounts": {}})

    assert shown.other_modes == {"SOLUSDT": "off"}
    assert [row.mode for row in shown.rows.values()] == ["paper", "paper", "paper", "off"]
    assert cells_of(shown.rows["SOLUSDT"], COLUMNS)[0].text == "○"


@pytest.mark.parametrize("of_all", ["paper", "off"])
def test_symbols_that_are_live_by_a_mode_of_their_own_are_named_and_the_live_account_is_shown(of_all: str) -> None:
    accounts = {
        "paper": account(position("BTCUSDT", side=-1)),
        "live": account(position("BTCUSDT"), equity=500.0),
    }
    modes = [mode(of_all), mode("live", "BTCUSDT"), mode("live", "ETHUSDT"), mode("off", "SOLUSDT")]
    shown = seen(trading={"modes": modes, "accounts": accounts})

    assert (shown.mode, shown.account, shown.equity) == (of_all, "live", 500.0)
    assert shown.rows["BTCUSDT"].position is not None
    assert shown.rows["BTCUSDT"].position["account"] == "live"
    assert shown.boldest_mode == "live"
    assert mode_note(shown).startswith(f"only BTCUSDT ETHUSDT, all others {of_all}")
    line = "".join(cell.text for cell in plain_lines(shown, 160)[0])
    assert line.startswith(f"● LIVE only BTCUSDT ETHUSDT, all others {of_all}")


def test_a_live_account_that_holds_something_is_shown_whatever_the_mode() -> None:
    accounts = {"paper": account(), "live": account(position("BTCUSDT"))}

    assert seen(trading={"modes": [mode("paper")], "accounts": accounts}).account == "live"
    assert seen(trading={"modes": [mode("paper")], "accounts": {**accounts, "live": account()}}).account == "paper"


def test_of_many_symbols_that_are_live_some_are_named_and_the_others_counted() -> None:
    modes = [mode("paper", until=T), *(mode("live", f"S{number}USDT") for number in range(7))]

    note = mode_note(seen(trading={"modes": modes, "accounts": {}}))

    assert note == "only S0USDT S1USDT S2USDT S3USDT S4USDT and 2 more, all others paper, until 05:11"


@pytest.mark.parametrize(
    ("quantity", "text"), [(1_234_567.0, "▲ 1234567"), (0.003, "▲ 0.003"), (12_345.25, "▲ 12345.25"), (5.0, "▲ 5")]
)
def test_a_quantity_is_shown_with_every_digit(quantity: float, text: str) -> None:
    accounts = {"paper": account(position("ETHUSDT", quantity=quantity))}
    row = seen(trading={"modes": [mode("paper")], "accounts": accounts}).rows["ETHUSDT"]

    cells = dict(zip((column.name for column in COLUMNS), cells_of(row, COLUMNS), strict=True))
    assert cells["position"].text.strip() == text


def test_a_decision_of_an_older_minute_says_its_time() -> None:
    row = seen(symbols={"BTCUSDT": entry(last_decision=decision("ok", 1, 0.61, T - 60_000))}).rows["BTCUSDT"]

    assert "▲ long  p 0.610 at 05:10" in " ".join(cell.text for cell in cells_of(row, columns_for(200, NAMES)[0]))


def test_rows_without_a_value_come_last_in_both_directions() -> None:
    rows = seen(symbols={"A": entry(price=1.0), "B": entry(price=None), "C": entry(price=3.0)}).rows.values()
    price = next(column for column in COLUMNS if column.name == "price")

    assert [row.symbol for row in chosen(rows, price, False)] == ["C", "A", "B"]
    assert [row.symbol for row in chosen(rows, price, True)] == ["A", "C", "B"]
    assert [row.symbol for row in chosen(rows, None, True)] == ["C", "B", "A"]


def test_every_column_can_order_rows_with_and_without_values() -> None:
    bare = entry(
        price=None, spread_bps=None, mark_price=None, funding_rate=None, last_candle=None, last_decision=None,
        ages_s=dict.fromkeys(STREAM_HEADS),
    )  # fmt: skip
    rows = seen(symbols={"BTCUSDT": entry(), "ETHUSDT": bare, "SOLUSDT": bare, "XUSDT": entry()}).rows.values()

    for column in COLUMNS:
        assert {row.symbol for row in chosen(rows, column, False)} == {"BTCUSDT", "ETHUSDT", "SOLUSDT", "XUSDT"}


def test_only_signals_of_the_last_minute_and_positions_are_kept() -> None:
    symbols = {
        "BTCUSDT": entry(last_decision=decision("ok", -1)),
        "OLDUSDT": entry(last_decision=decision("ok", 1, 0.6, T - 60_000)),
        "ETHUSDT": entry(),
        "SOLUSDT": entry(),
    }

    assert [row.symbol for row in chosen(seen(symbols=symbols).rows.values(), None, False, "", True)] == [
        "BTCUSDT",
        "ETHUSDT",
    ]


def test_closes_of_the_database_stand_before_those_that_the_worker_tells() -> None:
    closes = Closes()
    closes.take(facts({"BTCUSDT": entry()}))
    closes.add_stored({"BTCUSDT": [(T - 60_000 * back, float(back)) for back in (3, 2, 1)]}, T)
    closes.take(facts({"BTCUSDT": entry(last_candle={"open_time": T, "close": 7.0, "source": "ws"})}))

    assert closes.of("BTCUSDT") == [3.0, 2.0, 150_000.0, 7.0]


def test_closes_of_a_database_that_stands_still_are_not_taken() -> None:
    closes = Closes()
    closes.take(facts({"BTCUSDT": entry()}))
    closes.add_stored({"BTCUSDT": [(T - 86_400_000, 1.0)]}, T)

    assert closes.of("BTCUSDT") == [150_000.0]


def test_what_the_worker_says_is_wrong_is_told() -> None:
    lines = plain_lines(seen(trouble=["messages wait in the outbox: no server"]), 160)

    assert "! messages wait in the outbox: no server" in ["".join(cell.text for cell in line).strip() for line in lines]


def test_a_worker_that_stands_by_says_for_whom() -> None:
    leadership = {"leads": False, "holds": False, "leader": "another, process 7"}

    text = "".join(cell.text for line in plain_lines(seen(leadership=leadership), 160) for cell in line)

    assert "stands by: another, process 7 leads" in text


# ---- the screen


class Worker:
    """What the screen asks: a status that a test changes, or why there is none."""

    def __init__(self, status: dict[str, Any] | None = None) -> None:
        self.status = status or facts()
        self.away = ""
        self.clock = ManualClock(T)
        self.closes = Closes()

    async def fetch(self) -> dict[str, Any]:
        if self.away:
            raise NeedsPerson(self.away)
        return self.status

    async def explain(self, symbol: str, close_time: int, width: int) -> Text:
        if symbol == "SOLUSDT":
            raise NeedsPerson("there is no decision")
        return Text(f"{symbol} at {close_time} because")

    def app(self, plain: bool = False, load_closes: Callable[[], Awaitable[None]] | None = None) -> TopApp:
        return TopApp(
            self.fetch, self.explain, self.closes, self.clock,
            first=self.status, load_closes=load_closes, every_s=None, plain=plain,
        )  # fmt: skip


def screen_text(app: TopApp) -> str:
    return "\n".join("".join(part.text for part in line) for line in app.screen._compositor.render_strips())


def lines(app: TopApp) -> list[str]:
    return ["".join(part.text for part in app.table.render_line(y)) for y in range(app.table.size.height)]


def symbols(app: TopApp) -> list[str]:
    return [row.symbol for row in app.table.order]


@pytest.mark.parametrize("size", [(80, 24), (132, 30), (200, 60)])
async def test_mode_money_and_every_symbol_are_on_the_screen(size: tuple[int, int]) -> None:
    app = Worker().app()
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        text = screen_text(app)

        assert big("paper")[0] in text
        assert all(name in text for name in NAMES)
        assert "close to signal" in text
        assert "ready" in text
        assert "240/2,400" in text
        assert "filter" in text
        assert app.screen.has_class("wide") == (size[0] >= 130)
        assert all(len(line) <= size[0] for line in text.splitlines())


@pytest.mark.parametrize(("name", "border"), [("off", "dashed"), ("paper", "round"), ("live", "heavy")])
async def test_each_mode_has_a_word_a_shape_and_a_border_of_its_own(name: str, border: str) -> None:
    app = Worker(facts(trading={"modes": [mode(name)], "accounts": {}})).app()
    async with app.run_test(size=(80, 24)):
        block = app.query_one("#mode", Static)

        assert block.styles.border.top[0] == border
        assert big(name)[1] in screen_text(app)


@pytest.mark.parametrize("of_all", ["off", "paper"])
async def test_where_any_symbol_is_live_the_large_letters_say_so_and_the_frame_and_the_page_name_it(
    of_all: str,
) -> None:
    trading = {"modes": [mode(of_all), mode("live", "BTCUSDT")], "accounts": {"live": account()}}
    app = Worker(facts(trading=trading)).app()
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()

        assert "only BTCUSDT" in screen_text(app)
        assert big("live")[1] in screen_text(app)
        assert app.query_one("#mode", Static).has_class("live", "somelive")
        page = await opened(pilot, app, "m")
        assert f"The mode is {of_all}" in page
        assert "LIVE by a mode of their own: BTCUSDT." in page


def test_a_mode_whose_time_is_over_is_not_shown_as_one_that_ends() -> None:
    over = {**mode("off", until=T), "set": "live"}

    shown = seen(trading={"modes": [over], "accounts": {}})

    assert (shown.mode_until, shown.mode_reason) == (None, "its time is over (was live: to see)")


async def test_a_worker_that_goes_away_leaves_its_last_picture_greyed_and_goes_on_when_it_returns() -> None:
    worker = Worker()
    app = worker.app()
    async with app.run_test(size=(120, 30)) as pilot:
        worker.away = "the worker on port 9720 does not answer"
        worker.clock.advance(7.0)
        await app.look()
        await pilot.pause()
        text = screen_text(app)
        assert app.screen.has_class("away")
        assert "AWAY for 7 s, since 05:11:12 UTC" in text
        assert "does not answer" in text
        assert all(name in text for name in NAMES)

        worker.away = ""
        worker.status = facts({**facts()["symbols"], "NEWUSDT": entry()})
        await app.look()
        await pilot.pause()
        assert not app.screen.has_class("away")
        assert "AWAY" not in screen_text(app)
        assert "NEWUSDT" in screen_text(app)


async def test_a_worker_of_another_version_is_told_and_does_not_end_the_screen() -> None:
    worker = Worker()
    app = worker.app()
    async with app.run_test(size=(120, 30)):
        worker.status = {"symbols": {}}
        await app.look()

        assert "otherwise than this version" in app.away
        assert symbols(app) == list(NAMES)


async def test_the_arrows_choose_a_symbol_and_the_choice_stays_with_it_when_rows_move() -> None:
    worker = Worker()
    app = worker.app()
    async with app.run_test(size=(120, 30)) as pilot:
        await pilot.press("down", "down")
        assert app.table.selected == "1000PEPEUSDT"

        await pilot.press("s")
        assert app.table.sort == "symbol"
        assert symbols(app) == sorted(NAMES)
        await pilot.press("S")
        assert symbols(app) == sorted(NAMES, reverse=True)
        assert app.table.chosen_row is not None
        assert app.table.chosen_row.symbol == "1000PEPEUSDT"


async def test_the_list_of_many_symbols_scrolls_with_the_choice() -> None:
    app = Worker(facts({f"S{number}USDT": entry() for number in range(600)})).app()
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("end")
        await pilot.pause()
        assert app.table.selected == "S599USDT"
        assert "S599USDT" in screen_text(app)

        await pilot.press("home")
        await pilot.pause()
        assert "S0USDT" in screen_text(app)


async def test_columns_without_room_are_reached_with_the_arrows() -> None:
    app = Worker().app()
    async with app.run_test(size=(80, 24)) as pilot:
        assert "fund %" not in lines(app)[0]
        assert lines(app)[0].endswith("›")

        await pilot.press(*["right"] * 6)
        assert "fund %" in lines(app)[0]
        assert lines(app)[1].startswith("◐ BTCUSDT")


async def test_a_click_on_a_head_sorts_and_a_second_one_turns_it_round() -> None:
    app = Worker().app()
    async with app.run_test(size=(120, 30)) as pilot:
        await pilot.click(SymbolTable, offset=(3, 0))
        assert (app.table.sort, app.table.reverse) == ("symbol", False)
        assert lines(app)[0].startswith("  symbol▲")

        await pilot.click(SymbolTable, offset=(3, 0))
        assert app.table.reverse
        await pilot.click(SymbolTable, offset=(1, 2))
        assert app.table.selected == symbols(app)[1]


async def test_a_filter_is_typed_kept_and_dropped() -> None:
    app = Worker().app()
    async with app.run_test(size=(120, 30)) as pilot:
        await pilot.press("slash", *"pe", "p")
        assert symbols(app) == ["1000PEPEUSDT"]
        await pilot.press("enter", "s")
        assert app.table.sort == "symbol"
        await pilot.press("escape")
        assert set(symbols(app)) == set(NAMES)


async def test_nothing_matches_says_so() -> None:
    app = Worker().app()
    async with app.run_test(size=(120, 30)) as pilot:
        await pilot.press("slash", *"zzz")
        await pilot.pause()

        assert "nothing matches" in screen_text(app)


async def test_d_shows_only_signals_and_positions() -> None:
    app = Worker().app()
    async with app.run_test(size=(120, 30)) as pilot:
        await pilot.press("d")
        assert symbols(app) == ["ETHUSDT"]
        await pilot.press("d")
        assert symbols(app) == list(NAMES)


async def opened(pilot: Pilot[None], app: TopApp, key: str) -> str:
    await pilot.press(key)
    await app.workers.wait_for_complete()
    await pilot.pause()
    assert isinstance(app.screen, Page)
    return screen_text(app)


async def test_e_explains_the_last_decision_of_the_chosen_symbol() -> None:
    app = Worker().app()
    async with app.run_test(size=(120, 30)) as pilot:
        await pilot.press("down")
        assert f"ETHUSDT at {T} because" in await opened(pilot, app, "e")
        await pilot.press("escape", "end")
        assert "there is no decision" in await opened(pilot, app, "enter")


async def test_m_says_what_to_type_and_changes_nothing() -> None:
    app = Worker().app()
    async with app.run_test(size=(120, 30)) as pilot:
        text = await opened(pilot, app, "m")

        assert "perpline mode live --for 8h" in text
        assert "perpline mode off BTCUSDT" in text


async def test_the_help_names_every_key_and_q_ends() -> None:
    app = Worker().app()
    async with app.run_test(size=(120, 40)) as pilot:
        text = await opened(pilot, app, "question_mark")
        assert all(f"  {key}  " in text for key in ("s, S", "/", "d", "m", "q"))

        await pilot.press("q")
        assert not isinstance(app.screen, Page)
        await pilot.press("q")
        await pilot.pause()
        assert not app.is_running


async def test_ctrl_c_ends_it_from_a_page_too() -> None:
    app = Worker().app()
    async with app.run_test(size=(120, 30)) as pilot:
        await opened(pilot, app, "m")
        await pilot.press("ctrl+c")
        await pilot.pause()

        assert not app.is_running


async def test_news_arrive_while_a_page_is_open() -> None:
    worker = Worker()
    app = worker.app()
    async with app.run_test(size=(120, 30)) as pilot:
        await opened(pilot, app, "m")
        worker.status = facts({"LTCUSDT": entry()})
        await app.look()
        await pilot.press("escape")
        await pilot.pause()

        assert "LTCUSDT" in screen_text(app)


async def test_without_colours_nothing_is_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = Worker(facts(connections=[connection(live=False)])).app(plain=True)
    async with app.run_test(size=(120, 30)) as pilot:
        await pilot.pause()
        styles = [part.style for line in app.screen._compositor.render_strips() for part in line if part.style]

        assert {each.color.name for each in styles if each.color} <= {"default"}
        assert {each.bgcolor.name for each in styles if each.bgcolor} <= {"default"}
        assert any(each.reverse for each in styles)  # the choice is seen all the same


async def test_only_what_has_changed_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker()
    app = worker.app()
    async with app.run_test(size=(120, 30)) as pilot:
        await pilot.pause()
        lines(app)
        drawn: list[Region] = []
        monkeypatch.setattr(app.table, "refresh", lambda *regions, **_: drawn.extend(regions))

        await app.look()
        assert drawn == []
        worker.status = facts({**facts()["symbols"], "ETHUSDT": entry(price=2_500.0)})
        await app.look()
        [region] = drawn
        assert (region.y, region.height) == (2, 1)
        assert region.width == 11  # a price and the blank after it


async def test_closes_that_come_from_the_database_later_are_drawn() -> None:
    worker = Worker()

    async def load() -> None:
        worker.closes.add_stored({"BTCUSDT": [(T - 120_000, 1.0)]}, T)

    app = worker.app(load_closes=load)
    async with app.run_test(size=(200, 30)) as pilot:
        await app.workers.wait_for_complete()
        await pilot.pause()

        assert "▁█" in lines(app)[1]


# ---- the command


async def served(tmp_path: Path, status: dict[str, Any], **options: Any) -> None:
    """Run the command in a thread against a worker's endpoint that says this."""
    endpoint = Endpoint(
        port=0, data_dir=tmp_path, status=lambda: status, trouble=lambda: [], metrics=lambda: b"",
    )  # fmt: skip
    await endpoint.open()
    config = tmp_path / "perpline.toml"
    config.write_text(f"data_dir = {json.dumps(str(tmp_path))}\n")
    try:
        await asyncio.to_thread(top, **{"status_port": endpoint.port, "config": config, "once": False, **options})
    finally:
        await endpoint.close()


async def test_json_is_one_object_on_the_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await served(tmp_path, facts(), as_json=True, database=None)

    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["mode"], said["equity"], list(said["rows"])) == ("paper", 10_012.3, list(NAMES))
    assert said["rows"]["ETHUSDT"]["position"]["quantity"] == 0.003


async def test_without_a_terminal_it_prints_one_plain_page_and_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    await served(tmp_path, facts(), as_json=False, database=None)

    printed = capsys.readouterr().out
    assert "◐ PAPER" in printed
    assert "\x1b" not in printed
    assert sum(any(name in line for name in NAMES) for line in printed.splitlines()) == len(NAMES)


async def test_a_worker_that_only_decides_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NeedsPerson, match="only decides and hears no market"):
        await served(tmp_path, {"role": "inference"}, as_json=True, database=None)


async def test_without_a_worker_there_is_one_clear_line(tmp_path: Path) -> None:
    config = tmp_path / "perpline.toml"
    config.write_text(f"data_dir = {json.dumps(str(tmp_path))}\n")

    with pytest.raises(NeedsPerson, match="no worker runs on port 9"):
        await asyncio.to_thread(top, status_port=9, once=True, database=None, config=config, as_json=False)


async def test_without_textual_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "perpline.cli.top_app", None)
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(getattr(sys, name), "isatty", lambda: True, raising=False)

    with pytest.raises(NeedsPerson, match=r"pip install 'perpline\[tui\]'"):
        await served(tmp_path, facts(), as_json=False, database=None)
