"""What a worker says of its trading: /status, /metrics, /healthz and the lines a person sees."""

import asyncio
import io
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from tests.running import eventually
from tests.trading_desk import Desk, desk, signal

from perpline.accounts import Accounts
from perpline.cli.trading_view import event_lines, positions_table, trading_lines
from perpline.common.clock import SystemClock
from perpline.common.config import load_settings
from perpline.common.errors import Unavailable
from perpline.metrics import families
from perpline.status import trading_trouble, trouble
from perpline.storage.sqlite import SqliteStore
from perpline.trading.trader import TradedMarket


async def opened(found: Desk, *, protected: bool = True) -> None:
    found.market(2000.0)
    found.trader.take_signals([signal()])
    await found.until(lambda: found.exchange.orders)
    found.fills(found.exchange.orders[0])
    if protected:
        found.holds(found.exchange.stops[0])


def trading(found: Desk, mode: str = "live", **live: Any) -> dict[str, Any]:
    """As `Accounts.status` puts it together."""
    stream = {"live": True, "last_error": ""}
    row = {"symbol": "", "mode": mode, "until": None, "by": "somebody", "reason": "why not", "positions": "keep"}
    return {
        "modes": [row],
        "keys": True,
        "waiting_for_lease": [],
        "accounts": {"live": found.trader.status()},
        "live": {"user_stream": stream, "order_socket": True, **live},
        "live_unattended": [],
    }


def samples(facts: dict[str, Any] | None) -> dict[tuple[str, ...], float]:
    return {
        (each.name, *(label for _, label in sorted(each.labels.items(), reverse=True))): each.value
        for family in families({"trading": facts})
        for each in family.samples
    }


def shown(facts: dict[str, Any], width: int = 120) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    for line in [*trading_lines(facts), positions_table(facts, width=width), *event_lines(facts, 5)]:
        console.print(line)
    return console.export_text()


def mode_line(*rows: dict[str, Any]) -> str:
    facts: dict[str, Any] = {"modes": [*rows], "accounts": {}, "waiting_for_lease": [], "live": None}
    return trading_lines(facts)[0].plain


def test_symbols_that_are_live_are_named_right_beside_another_mode() -> None:
    own = [{"symbol": symbol, "mode": name} for symbol, name in (("AUSDT", "paper"), ("BTCUSDT", "live"))]

    line = mode_line({"symbol": "", "mode": "off", "by": "", "reason": "nobody has set a mode"}, *own)

    assert line == " OFF  LIVE BTCUSDT   nobody has set a mode  AUSDT paper"


def test_a_mode_whose_time_is_over_says_so_and_what_it_was() -> None:
    row = {"symbol": "", "mode": "off", "set": "live", "until": 5, "by": "root@vm", "reason": "x"}

    assert mode_line(row) == " OFF   its time is over (was live: x) (root@vm)"
    assert mode_line({**row, "set": "off"}) == " OFF   x (root@vm)"


async def test_an_open_and_protected_position_is_shown_and_no_trouble(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        await opened(found)
        found.market(2010.0)
        await found.written()
        facts = trading(found)

    told, page = samples(facts), shown(facts)
    assert trading_trouble(facts, 3.0) == []
    assert told["perpline_positions", "live"] == told["perpline_entries_total", "live"] == 1
    assert told["perpline_naked_seconds", "live"] == told["perpline_trading_waiting_rows", "live"] == 0
    assert told["perpline_equity_usdt", "live"] == 10_000
    assert told["perpline_trading_mode", "all", "live"] == 1
    assert told["perpline_trading_mode", "all", "paper"] == told["perpline_trading_mode", "all", "off"] == 0
    assert told["perpline_user_stream_live",] == told["perpline_order_socket_ready",] == 1
    for words in (
        "LIVE",
        "why not (somebody)",
        "1 open",
        "BTCUSDT",
        "2,010.00",
        "yes",
        "entry long BTCUSDT at 2,000.10",
    ):
        assert words in page


async def test_a_position_without_a_stop_is_trouble_after_the_alarm_and_counted_at_once(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        await opened(found, protected=False)
        found.clock.advance(2.0)
        early = trading(found)
        found.clock.advance(2.0)
        late = trading(found)

    assert samples(early)["perpline_naked_seconds", "live"] == pytest.approx(2.0, abs=0.2)
    assert trading_trouble(early, 3.0) == []
    assert trading_trouble(late, 3.0) == ["live positions without a stop at the exchange: BTCUSDT"]
    assert "position without a stop for 4.0 s" in shown(late)


async def test_a_closed_position_is_told_with_its_reason_and_its_money(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        await opened(found)
        found.market(2020.0)
        found.fills(found.exchange.orders[1], "2020.0")
        facts = trading(found)

    [entry, exit_] = facts["accounts"]["live"]["recent"]
    assert (entry["event"], exit_["event"], exit_["reason"], exit_["price"]) == ("opened", "closed", "target", 2020.0)
    assert facts["accounts"]["live"]["closed"] == 1
    assert facts["accounts"]["live"]["net_pnl"] == exit_["net_pnl"] > 0
    assert f"target BTCUSDT at 2,020.00 +{exit_['net_pnl']:.2f} USDT" in shown(facts)


async def test_rows_that_cannot_be_stored_are_trouble_until_they_are(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        commit = found.store.commit_trading

        async def away(*arguments: Any, **more: Any) -> Any:
            raise Unavailable("the disk is full")

        found.store.commit_trading = away  # type: ignore[method-assign]
        await opened_while_away(found)
        facts = trading(found)
        found.store.commit_trading = commit  # type: ignore[method-assign]
        await found.until(lambda: stored_after_a_while(found))
        after = trading(found)

    assert [text.partition(" of ")[2] for text in trading_trouble(facts, 3.0)] == [
        "the live account wait for the database"
    ]
    assert "wait for the database: the disk is full" in shown(facts)
    assert trading_trouble(after, 3.0) == []


def stored_after_a_while(found: Desk) -> bool:
    found.clock.advance(0.1)
    return not found.trader.status()["rows_error"]


async def opened_while_away(found: Desk) -> None:
    found.market(2000.0)
    found.trader.take_signals([signal()])
    await found.until(lambda: found.trader.status()["rows_error"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda facts: facts["live"]["user_stream"].update(live=False, last_error="HTTP 503"), "not heard: HTTP 503"),
        (lambda facts: facts.update(live=None), "the live account has not begun"),
        (lambda facts: facts.update(keys=False, live=None), "there is no API key"),
    ],
)
async def test_live_mode_without_what_it_needs_is_trouble(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        facts, paper = trading(found), trading(found, "paper")
    change(facts)
    change(paper)

    [trouble] = trading_trouble(facts, 3.0)
    assert said in trouble
    assert trading_trouble(paper, 3.0) == []


@pytest.mark.parametrize(
    ("keys", "said"), [(False, "there is no API key to look after them"), (True, "the live account has not begun")]
)
async def test_live_positions_that_nobody_looks_after_are_trouble_whatever_the_mode(
    tmp_path: Path, keys: bool, said: str
) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        facts = {**trading(found, "off"), "keys": keys, "accounts": {}, "live": None, "live_unattended": ["BTCUSDT"]}

    [trouble] = trading_trouble(facts, 3.0)
    assert said in trouble
    assert samples(facts)["perpline_live_unattended_symbols",] == 1


async def test_a_process_without_keys_sees_which_live_positions_nobody_looks_after(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        await opened(found)
        await found.written()
        nothing: Any = None
        accounts = Accounts(
            load_settings(None, {"HOME": str(tmp_path)}, {"data_dir": str(tmp_path)}),
            SystemClock(),
            found.store,
            random.Random(1),
            market=TradedMarket(lambda symbol: None, lambda symbol: None, lambda symbol: None),
            wake_publisher=lambda messages: None,
            default_levels_pct=lambda: (1.0, 1.0),
            credentials=None,
            weight=nothing,
            measure_offset=nothing,
        )
        running = asyncio.create_task(accounts.run())
        await eventually(lambda: accounts.live_unattended)
        told = accounts.status()["live_unattended"]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await accounts.drain()

    assert told == ["BTCUSDT"]


async def test_a_process_that_stands_by_for_the_live_account_is_healthy(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        facts = {**trading(found), "accounts": {}, "live": None, "waiting_for_lease": ["live"]}

    assert trading_trouble(facts, 3.0) == []
    assert "another process trades this account" in shown(facts)


async def test_a_symbol_with_a_mode_of_its_own_has_its_own_metric(tmp_path: Path) -> None:
    async with desk(tmp_path / "a.db", mode="live") as found:
        facts = trading(found, "paper")
    facts["modes"].append({**facts["modes"][0], "symbol": "DOGEUSDT", "mode": "off"})

    told = samples(facts)

    assert (told["perpline_trading_mode", "all", "paper"], told["perpline_trading_mode", "DOGEUSDT", "off"]) == (1, 1)
    assert samples(None) == {}


async def test_a_database_file_that_was_moved_or_replaced_is_trouble_until_it_is_back(tmp_path: Path) -> None:
    store = SqliteStore(path := tmp_path / "perpline.db")
    await store.open()
    parts: Any = SimpleNamespace(
        store=store,
        buffer=SimpleNamespace(last_error=""),
        publisher=SimpleNamespace(statistics=lambda: SimpleNamespace(last_error="")),
        router=SimpleNamespace(failed=0),
        **dict.fromkeys(("journal", "spool", "sender", "accounts")),
    )
    there = trouble(parts, None, True)
    path.rename(tmp_path / "moved.db")
    moved = trouble(parts, None, True)
    path.write_bytes(b"")
    replaced = trouble(parts, None, True)
    (tmp_path / "moved.db").rename(path)
    back = trouble(parts, None, True)
    await store.close()

    words = "the database file was moved or deleted: what is written goes to the old file; put it back or restart"
    assert (there, moved, replaced, back) == ([], [words], [words], [])
