import asyncio
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest

from modelling import FEATURES, ood, write_model
from perpline.domain.candle import KlineUpdate, closed_candle
from perpline.domain.signal import Decision, Message, Prediction, Status, signal_id
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import candle_row
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
    assert facts["latency_ms"] == {"features": 0.4, "predict": 0.6, "commit": 4.0, "marked_published": 2.0}
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
        "features 0.4 ms, predict 0.6 ms, commit 4 ms",
        "published 2026-11-23 05:11 UTC",
    ):
        assert words in page


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
