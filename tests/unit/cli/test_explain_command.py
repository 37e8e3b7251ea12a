import asyncio
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest

from modelling import FEATURES, ood, write_model
from perpline.domain.candle import KlineUpdate, closed_candle
from perpline.domain.signal import Decision, Message, Prediction, Status, signal_id
from perpline.explanation import explain_facts
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import TRADING_TABLES, candle_row
from running import command

MINUTE = 60_000
T = 1_795_410_660_000
"""2026-11-23 05:11 UTC."""
VECTOR = np.array([0.001, 8.0, 0.4, np.nan, -7.5], "<f4")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database with one decision of a model, a shadow's score, ten candles and a hole."""
    monkeypatch.setenv("PERPLINE_DATA_DIR", str(tmp_path))
    model_id = write_model(tmp_path / "models", ood=ood(-5.0, 5.0), note="For tests.").name
    asyncio.run(fill(tmp_path, model_id))
    return tmp_path


async def fill(folder: Path, model_id: str) -> None:
    store = SqliteStore(folder / "perpline.db")
    await store.open()
    candles = [closed_candle(update(T - n * MINUTE)) for n in range(10, 0, -1)]
    await store.add_rows("candles_1m", [candle_row(candle) for candle in candles])
    await store.open_gap("BTCUSDT", "candles_1m", T - 20 * MINUTE, T - 10 * MINUTE, "no process was alive", T)
    feat_ref = blake2b(VECTOR.tobytes(), digest_size=16).hexdigest()
    decision = Decision(
        signal_id=signal_id("champion", model_id, "BTCUSDT", T),
        **{"slot": "champion", "symbol": "BTCUSDT", "close_time": T, "side": 0, "status": Status.SKIPPED_NAN},
        **{"detail": "no value for tbi_60", "model_id": model_id, "threshold": 0.58, "nan_count": 1, "xs_n": 30},
        **{"feat_ref": feat_ref, "t_candle_recv": T * 1000 + 90_000},
        **{"t_features": T * 1000 + 90_400, "t_predict": T * 1000 + 91_000},
    )
    predictions = [
        Prediction(
            **{"slot": slot, "symbol": "BTCUSDT", "close_time": T, "model_id": model_id, "p_long_raw": None},
            **{
                "p_short_raw": None,
                "p_long": None,
                "p_short": None,
                "features": VECTOR.tobytes(),
                "feat_ref": feat_ref,
            },
        )
        for slot in ("champion", "shadow")
    ]
    message = Message(
        **{"id": 0, "kind": "signal", "slot": "champion", "symbol": "BTCUSDT", "close_time": T},
        **{"payload": '{"v":1}', "valid_until": T + 30_000},
    )
    await store.commit_decisions([decision], predictions[:1], [message], T * 1000 + 95_000)
    await store.commit_decisions([], predictions[1:], [], T * 1000 + 99_000)
    [pending] = await store.pending_messages(9)
    await store.mark_published([pending.id], T + 97)
    await store.close()


def update(open_time: int) -> KlineUpdate:
    return KlineUpdate(
        symbol="BTCUSDT",
        interval="1m",
        open_time=open_time,
        close_time=open_time + MINUTE - 1,
        open=100.0,
        high=101.0,
        low=99.0,
        close=100.5,
        volume=5.0,
        quote_volume=500.0,
        trades=7,
        taker_buy_volume=2.0,
        taker_buy_quote_volume=200.0,
        closed=True,
        event_time=open_time + MINUTE,
        received_at=open_time + MINUTE,
        source="ws",
    )


@pytest.mark.parametrize(
    "when", ["2026-11-23 05:11", "2026-11-23T05:11:00Z", "1795410660000", "2026-11-23T07:11+02:00"]
)
def test_a_minute_is_named_as_one_likes(here: Path, when: str) -> None:
    assert command("explain", "btcusdt", when, "--json").json["close_time"] == T


def test_everything_of_a_decision_is_told(here: Path) -> None:
    facts = command("explain", "BTCUSDT", T, "--json").json

    assert facts["decision"]["detail"] == "no value for tbi_60"
    assert facts["model"]["note"] == "For tests."
    assert facts["model"]["threshold"] == 0.58
    assert [entry["name"] for entry in facts["vector"]] == [feature.name for feature in FEATURES]
    by_name = {entry["name"]: entry for entry in facts["vector"]}
    assert by_name["tbi_60"]["value"] is None
    assert by_name["tbi_60"]["critical"]
    assert by_name["zret_15"]["clipped"]
    assert [name for name, entry in by_name.items() if entry["unusual"]] == ["zret_15", "rv_60"]
    assert (facts["candles"]["stored"], facts["candles"]["wanted"]) == (10, 241)
    assert facts["candles"]["gaps"][0]["cause"] == "no process was alive"
    assert facts["latency_ms"] == {"features": 0.4, "predict": 0.6, "decide": 4.0, "published": 2.0}
    assert facts["outbox"]["payload"] == '{"v":1,"seq":1}'


def test_the_page_for_people_holds_the_same(here: Path) -> None:
    page = command("explain", "BTCUSDT", "2026-11-23 05:11").out

    for words in (
        "skipped_nan: no value for tbi_60",
        "For tests.",
        "10 of 241 minutes",
        "no process was alive, open",
        "tbi_60* –",
        "zret_15 8",
        "features 0.4 ms, predict 0.6 ms, decide 4 ms, published 2 ms",
        "published 2026-11-23 05:11 UTC",
    ):
        assert words in page


async def test_at_another_speed_the_steps_are_told_in_wall_time_and_only_holes_of_this_symbol(here: Path) -> None:
    store = SqliteStore(here / "perpline.db")
    await store.open()
    await store.open_gap("ETHUSDT", "candles_1m", T - 20 * MINUTE, T - 10 * MINUTE, "another one's", T)
    await store.open_gap("BTCUSDT", "premium_klines", T - 20 * MINUTE, T - 10 * MINUTE, "another series", T)
    await store.open_gap("BTCUSDT", "candles_1m", T - 3000 * MINUTE, T - 2000 * MINUTE, "long before", T)
    facts = await explain_facts(store, here / "models", "BTCUSDT", T, "champion", speed=2.0)
    await store.close()

    assert facts["latency_ms"] == {"features": 0.2, "predict": 0.3, "decide": 2.0, "published": 1.0}
    assert [gap["cause"] for gap in facts["candles"]["gaps"]] == ["no process was alive"]


def test_a_shadow_is_explained_without_a_decision(here: Path) -> None:
    facts = command("explain", "BTCUSDT", T, "--slot", "shadow", "--json").json

    assert (facts["decision"], facts["outbox"]) == (None, None)
    assert len(facts["vector"]) == len(FEATURES)
    assert "scored beside the champion" in command("explain", "BTCUSDT", T, "--slot", "shadow").out


def test_a_model_whose_folder_has_gone_leaves_the_numbers(here: Path) -> None:
    (here / "models").rename(here / "elsewhere")

    facts = command("explain", "BTCUSDT", T, "--json").json

    assert "cannot read manifest.json" in facts["model"]["problem"]
    assert [entry["name"] for entry in facts["vector"]] == ["0", "1", "2", "3", "4"]
    assert command("explain", "BTCUSDT", T).code == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("BTCUSDT", T + MINUTE), 1, "there is no decision of champion about BTCUSDT at 2026-11-23 05:12 UTC"),
        (("BTCUSDT", "2026-11-23 05:11:30"), 2, "minutes close at :00"),
        (("BTCUSDT", "yesterday"), 2, "no time"),
        (("BTC'--", T), 2, "these are no names"),
        (("BTCUSDT", T, "--slot", "x' OR 1"), 2, "these are no names"),
    ],
)
def test_what_cannot_be_explained_is_said_in_a_line(
    here: Path, words: tuple[object, ...], code: int, said: str
) -> None:
    failed = command("explain", *words)

    assert failed.code == code
    assert said in " ".join(failed.err.replace("│", " ").split())


def put(folder: Path, table: str, **values: object) -> None:
    async def main() -> None:
        store = SqliteStore(folder / "perpline.db")
        await store.open()
        await store.commit_trading({table: [TRADING_TABLES[table].row(values)]})
        await store.close()

    asyncio.run(main())


def test_a_signal_is_followed_to_its_orders_fills_stop_and_exit(here: Path) -> None:
    page = command("explain", "BTCUSDT", T, "--json").json
    assert page["trading"] == {"refusals": [], "positions": [], "orders": [], "fills": []}
    mine = {"signal_id": page["decision"]["signal_id"], "symbol": "BTCUSDT"}
    own = {**mine, "account": "paper", "position_id": "p1"}
    put(here, "refusals", **mine, account="live", rule="max_positions", detail="10 are open", at=T + 5)
    put(
        here,
        "positions",
        **{**own, "side": 1, "status": "closed", "quantity": "0", "opened_quantity": "0.5", "entry_price": "100.1"},
        **{"exit_price": "102", "target": "102", "stop": "99", "protective_stop": "98.4", "origin": "signal"},
        **{"opened_at": T + 7, "closed_at": T + 60_250, "exit_reason": "target", "realized_pnl": "0.95"},
        **{"fees": "0.05", "funding": "0", "naked_ms": 300, "updated_at": T + 60_250},
    )
    order = {
        **own,
        "side": "buy",
        "kind": "market",
        "reduce_only": False,
        "quantity": "0.5",
        "detail": "",
        "filled": "0",
    }
    order |= {"updated_at": T + 7}
    put(here, "orders", **order | {"client_id": "e.1", "leg": "e", "status": "filled", "created_at": T + 6})
    stop = {"client_id": "s.1", "leg": "s", "status": "canceled", "trigger_price": "98.4", "created_at": T + 8}
    put(here, "orders", **order | stop)
    put(
        here,
        "fills",
        **{**own, "trade_id": 71, "order_id": 1, "client_id": "e.1", "side": "buy", "price": "100.10"},
        **{"quantity": "0.5", "fee": "0.025", "fee_asset": "USDT", "realized_pnl": "0", "is_maker": False},
        **{"kind": "trade", "traded_at": T + 7, "received_at": T + 7},
    )
    put(
        here,
        "fills",
        **{"account": "paper", "symbol": "ETHUSDT", "trade_id": 72, "order_id": 2, "client_id": "e.2"},
        **{"position_id": "p2", "side": "buy", "price": "1", "quantity": "1", "fee": "0", "fee_asset": "USDT"},
        **{"realized_pnl": "0", "is_maker": False, "kind": "trade", "traded_at": T, "received_at": T},
    )

    told = command("explain", "BTCUSDT", T, "--json").json["trading"]
    assert {name: len(rows) for name, rows in told.items()} == {
        "refusals": 1,
        "positions": 1,
        "orders": 2,
        "fills": 1,
    }
    page_text = " ".join(command("explain", "BTCUSDT", T).out.split())
    for words in (
        "live: refused by max_positions: 10 are open",
        "paper long 0.5 at 100.1, target 102, stop 99, at the exchange 98.4; 0.3 s without one",
        "05:11:00.006 entry e.1: market buy, filled 0 of 0.5",
        "stop s.1: market buy triggered by 98.4, canceled",
        "05:11:00.007 trade 71: buy 0.5 at 100.1, fee 0.025 USDT",
        "05:12:00.250 closed: target at 102, realised 0.95 fees 0.05 funding 0.00 net 0.90",
    ):
        assert words in page_text
