"""What `demo` and `status` draw: it fits the terminal, and says what matters at every width."""

import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from perpline.cli.demo import screen
from perpline.cli.status import STREAM_HEADS, symbols_table

T = 1_790_000_040_000


def facts(symbols: int, **of_each: Any) -> dict[str, Any]:
    """A status as the worker gives it, reduced to what is drawn."""
    entry = {
        "price": 62_345.5,
        "spread_bps": 0.03,
        "funding_rate": 0.0001,
        "last_candle": {"open_time": T - 60_000, "close": 1.0, "source": "ws"},
        "last_decision": decision("flat", 0, "long 0.520 is below 0.580"),
        "ages_s": dict.fromkeys(STREAM_HEADS, 0.25),
    }
    return {
        "now": T,
        "ready": True,
        "connections": [
            {"name": "market-0", "live": True, "streams": 4 * symbols, "silent": [], "silent_count": 0},
            {"name": "public-1", "live": False, "streams": symbols, "silent": ["x"], "silent_count": 1},
        ],
        "messages": {"rates": {"total": 1234.5}, "malformed": 0},
        "decisions": {"by_status": {"flat": 5, "ok": 1}, "close_to_signal_ms": {"p50": 2.0, "p99": 9.0}},
        "candles": {"gaps_noted": 0, "synthetic": 0},
        "rest": {"weight_used": 7, "weight_limit": 2400},
        "symbols": {f"S{number}USDT": entry | of_each for number in range(symbols)},
    }


def decision(status: str, side: int, detail: str, close_time: int = T) -> dict[str, Any]:
    return {"status": status, "side": side, "detail": detail, "p": 0.61, "close_time": close_time}


def trading(positions: int, events: int = 9) -> dict[str, Any]:
    """The trading of a status, reduced to what is drawn."""
    held = {
        **{"side": 1, "entry_price": 62_345.5, "mark_price": 62_400.1, "stop": 61_000.0, "target": 63_000.0},
        **{"protective_stop": 60_000.0, "protected": False, "naked_ms": 1200, "unrealized_pnl": -1.25},
    }
    event = {
        "at": T,
        "event": "closed",
        "symbol": "S0USDT",
        "side": 1,
        "reason": "target",
        "price": 1.0,
        "net_pnl": 4.5,
    }
    account = {
        **{"blocked": "the user data stream is lost", "equity": 10_012.3, "unrealized_pnl": 3.0, "net_pnl": 9.0},
        **{"entries": 1, "closed": 2, "refusals": 3, "alarms": 1, "naked_ms": 1200, "naked_ms_longest": 1300},
        **{"unwritten": 0, "rows_error": "", "recent": [event] * events},
        "positions": [{**held, "symbol": f"S{number}USDT", "opened_at": T + number} for number in range(positions)],
    }
    mode = {"symbol": "", "mode": "paper", "reason": "to see it trade", "by": "somebody"}
    return {"modes": [mode], "accounts": {"paper": account}, "waiting_for_lease": [], "live": None}


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 40), st.integers(0, 40), st.integers(60, 200), st.integers(24, 90), st.sampled_from(["", "moved"])
)
def test_the_screen_with_trading_never_outgrows_the_terminal(
    symbols: int, positions: int, width: int, height: int, said: str
) -> None:
    shown = facts(symbols) | {"trading": trading(positions)}

    lines = drawn(screen(shown, 60, width, height, said), width)

    assert len(lines) < height
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 40), (120, 50)])
def test_the_screen_with_trading_shows_mode_money_positions_and_events(width: int, height: int) -> None:
    shown = facts(30) | {"trading": trading(2)}

    page = "\n".join(drawn(screen(shown, 60, width, height, "a price is moved"), width))

    for words in ("PAPER", "equity 10,012.30", "a price is moved", "target S0USDT", "+4.50", "planted edge"):
        assert words in page
    if height > 24:
        for words in ("S1USDT", "no, 1.2 s", "62,400.10"):
            assert words in page


def drawn(part: Any, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(part)
    return console.export_text().splitlines()


@settings(max_examples=50, deadline=None)  # 600 rows take a while to draw
@given(st.integers(1, 620), st.integers(40, 200), st.integers(12, 90))
def test_the_screen_never_outgrows_the_terminal(symbols: int, width: int, height: int) -> None:
    lines = drawn(screen(facts(symbols), 60, width, height), width)

    assert len(lines) < height
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [96, 100, 116, 120])
def test_thirty_symbols_fit_forty_lines_each_whole(width: int) -> None:
    text = "\n".join(drawn(screen(facts(30), 60, width, 40), width))

    assert [number for number in range(30) if f"S{number}USDT" not in text] == []
    assert text.count("62,345.50") == 30
    assert text.count("flat: long 0.520 is below 0.580") == 30


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_symbol_price_decision_and_age_are_there_at_every_width(width: int) -> None:
    row = drawn(symbols_table(facts(1, last_decision=decision("ok", 1, "")), width=width), width)[1]

    assert row.startswith("S0USDT")
    assert ("62,345.50" in row, "▲ long" in row, row.rstrip().endswith("0.2s")) == (True, True, True)


def test_a_narrow_terminal_shows_the_stream_that_is_silent_longest() -> None:
    ages = dict.fromkeys(STREAM_HEADS, 0.1) | {"bookTicker": None}

    row = drawn(symbols_table(facts(1, ages_s=ages), width=80), 80)[1]

    assert row.rstrip().endswith("book none")


def test_the_last_row_says_what_became_of_the_symbols_that_do_not_fit() -> None:
    rows = drawn(symbols_table(facts(10), limit=3, width=120), 120)

    assert len(rows) == 1 + 3 + 1
    assert rows[-1].split() == ["…", "7", "more", "7", "flat"]


def test_a_decision_older_than_the_last_candle_shows_its_time() -> None:
    late = facts(1, last_decision=decision("flat", 0, "why", close_time=T - 60_000))

    assert "flat: why at 14:13" in drawn(symbols_table(late, width=120), 120)[1]


def test_a_symbol_of_which_nothing_is_known_yet_is_an_empty_row() -> None:
    unknown: dict[str, Any] = dict.fromkeys(("price", "spread_bps", "funding_rate", "last_candle", "last_decision"))
    unknown["ages_s"] = dict.fromkeys(STREAM_HEADS)

    row = drawn(symbols_table(facts(1, **unknown), width=120), 120)[1]

    assert row.split() == ["S0USDT", "none", "yet", *["none"] * 5]
