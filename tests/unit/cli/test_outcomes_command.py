"""`perpline outcomes`: words, exit codes, and what the other commands then show."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backtesting import walk_in
from perpline.domain.exit_rule import LabelRule, label_hash
from perpline.domain.signal import Decision, Status, signal_id
from perpline.storage.sqlite import SqliteStore
from running import command
from training import MINUTE, START

RULE = LabelRule(tp_pct=0.4, sl_pct=0.4, horizon_s=3600, cost_bp=4.0)
T = START + 30 * MINUTE


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a database with three signals: one is over, one lacks prices, one is open."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERPLINE_DATA_DIR", str(tmp_path))
    monkeypatch.setattr("os.nice", lambda _: 0)

    def told(t: int, symbol: str, side: int, status: Status) -> Decision:
        return Decision(
            signal_id=signal_id("champion", "m1", symbol, t),
            slot="champion",
            symbol=symbol,
            close_time=t,
            side=side,
            status=status,
            model_id="m1",
            label_hash=label_hash(RULE),
            tp_pct=0.4,
            sl_pct=0.4,
            horizon_s=3600,
            cost_bp=4.0,
        )

    async def fill() -> None:
        store = SqliteStore(tmp_path / "market.db")
        await store.open()
        await walk_in(store, 200)
        signals = [told(T, "BTCUSDT", -1, Status.OK), told(T, "ETHUSDT", 1, Status.OK)]
        late = [told(START + 180 * MINUTE, "BTCUSDT", 1, Status.OK), told(START + 190 * MINUTE, "X", 0, Status.FLAT)]
        await store.commit_decisions([*signals, *late], [], [], 0)
        await store.close()

    asyncio.run(fill())
    return f"sqlite:///{tmp_path / 'market.db'}"


def test_it_says_how_many_signals_have_an_outcome_now_and_the_second_time_none(url: str) -> None:
    first = command("outcomes", "--database", url, "--json")
    again = command("outcomes", "--database", url)

    assert first.code == again.code == 0, first.err
    assert {name: first.json[name] for name in ("stored", "open", "waiting", "left_out")} == {
        "stored": 1,
        "open": 1,
        "waiting": 1,
        "left_out": 0,
    }
    assert "0 have one now, the trades of 1 are not over" in again.out
    assert "1 wait for prices that are not stored" in again.out


def test_explain_shows_what_became_of_the_signal_by_its_own_rule(url: str) -> None:
    before = command("explain", "BTCUSDT", T, "--database", url, "--json")
    command("outcomes", "--database", url, "--since", START)
    after = command("explain", "BTCUSDT", T, "--database", url, "--json")
    page = command("explain", "BTCUSDT", T, "--database", url)

    assert before.json["outcome"] is None
    outcome = after.json["outcome"]
    assert outcome["reason"] in ("target", "stop", "stop_first", "timeout")
    until = datetime.fromtimestamp(outcome["t_exit"] / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    assert f"{outcome['reason'].replace('_', ' ')} until {until}, {outcome['ret_net']:+.3%} after" in page.out


def test_a_time_that_is_none_is_refused(url: str) -> None:
    done = command("outcomes", "--since", "yesterday", "--database", url)

    assert done.code == 2
    assert "no time" in done.err
