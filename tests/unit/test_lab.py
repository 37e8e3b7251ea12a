"""The notebook's functions over databases with histories, decisions and trades made up here."""

import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from hashlib import blake2b
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pytest
import structlog
from msgspec.structs import replace

from backtesting import candles_of, serve, store_history, trend_follower, walk, walk_in
from modelling import NAMES
from perpline import lab
from perpline.cli.main import main
from perpline.common.errors import NeedsPerson
from perpline.domain.signal import Decision, Status, signal_id
from perpline.inference.artefact import LoadedModel
from perpline.lab import frames
from perpline.lab.laboratory import _apart
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import TRADING_TABLES, TradingTable
from postgres_server import PostgresDatabase
from training import MINUTE, START, random_walk
from training import store_history as store_walk

pytest.importorskip("polars", reason="the extra [lab] is not installed")
pytest.importorskip("matplotlib", reason="the extra [lab] is not installed")

MINUTES, FIRST = 1600, 1480
LAST_CLOSE = START + MINUTES * MINUTE
SERVED_AT = START + (FIRST + 40) * MINUTE
MISSED_AT = LAST_CLOSE + MINUTE
QUICK = lab.LabelRule(tp_pct=0.2, sl_pct=0.2, horizon_s=1200, cost_bp=2.0)
DOCS = Path(__file__).parents[2] / "docs"


def trading_row(table: TradingTable, **values: Any) -> tuple[Any, ...]:
    numbers = {"deadline", "opened_at", "updated_at", "naked_ms", "side", "minute"}
    return table.row({**{name: 0 if name in numbers else "0" for name in table.columns}, **values})


async def fill(folder: Path) -> LoadedModel:
    """A database as a worker leaves it, small."""
    store = SqliteStore(folder / "lab.db")
    await store.open()
    model = trend_follower(folder / "models")
    history = await walk_in(store, MINUTES)
    await store_history(store, walk(MINUTES, seed=2, symbol="ETHUSDT"))
    served = await serve(store, model, candles_of(history), from_minute=FIRST, late_mask=0)
    shadows = [
        replace(each, slot="shadow", feat_ref=blake2b(each.features, digest_size=16).hexdigest()) for each in served
    ]
    missed = Decision(
        signal_id=signal_id("champion", model.model_id, "BTCUSDT", MISSED_AT),
        slot="champion",
        symbol="BTCUSDT",
        close_time=MISSED_AT,
        side=0,
        status=Status.SKIPPED_MISSED,
        model_id=model.model_id,
    )
    await store.commit_decisions([missed], shadows, [], 0)
    bought = {
        "account": "paper", "position_id": "p1", "symbol": "BTCUSDT", "side": 1, "status": "closed",
        "entry_price": "100.125", "exit_price": "101.5", "target": "101.5", "stop": "99", "exit_reason": "target",
        "opened_at": SERVED_AT + 250, "closed_at": SERVED_AT + 20 * MINUTE, "realized_pnl": "1.375", "origin": "signal",
    }  # fmt: skip
    waiting = {"account": "live", "position_id": "p2", "symbol": "ETHUSDT", "opened_at": SERVED_AT, "closed_at": None}
    positions, equity = TRADING_TABLES["positions"], TRADING_TABLES["equity"]
    await store.commit_trading(
        {
            "positions": [trading_row(positions, **bought), trading_row(positions, **waiting)],
            "equity": [
                trading_row(equity, account="paper", minute=SERVED_AT + at * MINUTE, equity=str(1000 + at))
                for at in range(5)
            ],
        }
    )
    repaired = await store.open_gap("BTCUSDT", "candles_1m", START, START + MINUTE, "disconnect", START + MINUTE)
    await store.close_gap(repaired, START + 2 * MINUTE, "rest")
    await store.open_gap("ETHUSDT", "mark_klines", START, START + MINUTE, "start", START + MINUTE)
    await store.close()
    outcome = signal_id("champion", model.model_id, "BTCUSDT", SERVED_AT)
    with apsw.Connection(str(folder / "lab.db")) as connection:
        values = (outcome, "target", SERVED_AT + MINUTE, 0.004, -0.001, 0.005)
        connection.execute("INSERT INTO signal_outcomes VALUES (?, ?, ?, ?, ?, ?)", values)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("lab")
    asyncio.run(fill(made))
    (made / "perpline.toml").write_text(f"data_dir = {json.dumps(str(made))}\n")
    return made


@pytest.fixture
def here(folder: Path) -> lab.Lab:
    return lab.open(folder / "lab.db", folder / "perpline.toml")


def stored(folder: Path, query: str) -> list[tuple[Any, ...]]:
    connection = apsw.Connection(str(folder / "lab.db"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def test_candles_are_the_stored_rows_and_every_time_is_a_datetime_and_its_milliseconds(
    here: lab.Lab, folder: Path
) -> None:
    begin, end = START + 5 * MINUTE, START + 8 * MINUTE

    frame = here.candles("btcusdt", begin, end)

    told = frame.select("open_time_ms", "open", "high", "low", "close", "volume", "trades", "source").rows()
    assert told == stored(
        folder,
        "SELECT open_time, open, high, low, close, volume, trades, source FROM candles_1m "
        f"WHERE symbol = 'BTCUSDT' AND open_time >= {begin} AND open_time < {end} ORDER BY open_time",
    )
    assert frame["open_time"].to_list() == [datetime.fromtimestamp(begin / 1000 + 60 * at, UTC) for at in range(3)]


def test_what_no_source_told_is_null(folder: Path, tmp_path: Path) -> None:
    async def fill_one() -> None:
        store = SqliteStore(tmp_path / "one.db")
        await store.open()
        row: dict[str, Any] = dict.fromkeys(frames.CANDLES) | {"symbol": "XUSDT", "open_time": START, "source": "file"}
        row |= dict.fromkeys(("open", "high", "low", "close", "volume"), 1.0) | {"synthetic": 0, "received_at": 1}
        logs = dict.fromkeys(("log_open", "log_high", "log_low", "log_close"), 0)
        columns = stored(folder, "SELECT name FROM pragma_table_info('candles_1m')")
        values = {**row, **logs, "close_time": START + MINUTE - 1}
        await store.add_rows("candles_1m", [tuple(values[name] for (name,) in columns)])
        await store.close()

    asyncio.run(fill_one())

    [row] = lab.open(tmp_path / "one.db").candles("XUSDT").to_dicts()

    assert (row["trades"], row["close"], row["source"]) == (None, 1.0, "file")
    assert row["quote_volume"] != row["quote_volume"]  # NaN, as in the arrays of history


@pytest.mark.parametrize(
    "moment",
    [
        START,
        str(START),
        datetime.fromtimestamp(START / 1000, UTC),
        datetime.fromtimestamp(START / 1000, UTC).replace(tzinfo=None),
        datetime.fromtimestamp(START / 1000, timezone(timedelta(hours=9))),
        date(2023, 11, 15),
        "2023-11-15",
        "2023-11-15 00:00 UTC",
        "2023-11-15T09:00+09:00",
        np.datetime64("2023-11-15T00:00"),
    ],
)
def test_an_instant_may_be_given_as_people_write_it(here: lab.Lab, moment: Any) -> None:
    assert here.candles("BTCUSDT", moment, START + MINUTE)["open_time_ms"].to_list() == [START]


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda here: here.candles("BTCUSDT", "yesterday"), "no time: 'yesterday'; 2026-11-20T13:57 is one"),
        (lambda here: here.candles("BTCUSDT", START // 1000), "is no time in milliseconds"),
        (lambda here: here.candles("BTCUSDT", 1.5e12), "a datetime, an ISO text or milliseconds are"),
        (lambda here: here.candles("BTCUSDT", START, START), "is empty"),
        (lambda here: here.candles("BTCUSDT", interval="5m"), "1m, 15m and 1h, not of '5m'"),
        (lambda here: here.candles("' OR 1"), "is no symbol"),
        (lambda here: here.candles("NOPE"), "the database holds no 1m candles of NOPE: import or backfill them"),
        (lambda here: here.candles("NOPE", START, LAST_CLOSE, interval="1h"), "holds no 1h candles of NOPE"),
        (lambda here: here.signals([]), "None means all"),
        (lambda here: here.signals(slot="a'b"), "is no slot"),
        (lambda here: here.equity(account="demo"), "accounts are paper and live"),
        (lambda here: here.gaps(as_="arrow"), '"polars" or "pandas", not \'arrow\''),
        (lambda here: here.frame(features="core2"), "there is no schema core2"),
        (lambda here: here.frame(features=["ret_1", "rsi"]), "no such feature: rsi"),
        (lambda here: here.frame("NONEUSDT"), "holds no candles of NONEUSDT"),
        (lambda here: here.features("BTCUSDT", START + 1), "minutes close at :00"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(
    here: lab.Lab, ask: Callable[[lab.Lab], object], sentence: str
) -> None:
    with pytest.raises(NeedsPerson, match=re.escape(sentence)):
        ask(here)


def test_candles_of_a_span_without_any_are_none_where_the_symbol_has_others(here: lab.Lab) -> None:
    assert len(here.candles("BTCUSDT", START - 9 * MINUTE, START)) == 0


def test_without_mark_prices_a_frame_says_how_to_label_by_the_last_price(folder: Path, tmp_path: Path) -> None:
    database = tmp_path / "unmarked.db"
    stored(folder, f"VACUUM INTO '{database}'")
    connection = apsw.Connection(str(database))
    connection.execute("DELETE FROM mark_klines")
    connection.close()

    with pytest.raises(NeedsPerson) as refused:
        lab.open(database).frame(features="ohlcv_day", label=QUICK)
    rule = "LabelRule(tp_pct=0.2, sl_pct=0.2, horizon_s=1200, cost_bp=2.0, price='last')"
    assert str(refused.value).endswith(f"or label by the last price: label={rule}")


def test_a_minute_without_a_decision_is_refused_and_those_that_there_are_are_named(here: lab.Lab) -> None:
    with pytest.raises(NeedsPerson) as refused:
        here.features("BTCUSDT", START + MINUTE)
    assert str(refused.value) == (
        "there is no decision of champion about BTCUSDT at 2023-11-15 00:01 UTC; "
        "they go from 2023-11-16 00:41 UTC to 2023-11-16 02:41 UTC"
    )
    with pytest.raises(NeedsPerson, match="there is none about it at all"):
        here.features("ETHUSDT", SERVED_AT)
    with pytest.raises(NeedsPerson, match=r"without asking the model \(skipped_missed\): there is no vector"):
        here.features("BTCUSDT", MISSED_AT)


def test_features_are_the_stored_bytes_and_history_gives_the_same_bits(here: lab.Lab, folder: Path) -> None:
    [(bits, feat_ref, model_id)] = stored(
        folder,
        f"SELECT features, feat_ref, model_id FROM predictions WHERE slot = 'shadow' AND close_time = {SERVED_AT}",
    )

    served = here.features("BTCUSDT", SERVED_AT, slot="shadow")

    assert (served.bits, served.feat_ref, served.model_id) == (bits, feat_ref, model_id)
    assert served.names == NAMES
    assert served.values.tobytes() == bits
    assert served.frame["served"].to_numpy().tobytes() == bits
    assert served.feat_ref_holds
    assert served.recomputed is not None
    assert served.recomputed.tobytes() == bits
    assert (served.same_bits, served.differing, served.problem) == (True, (), "")
    assert served["ret_1"] == float(np.frombuffer(bits, "<f4")[0])
    assert "feat_ref holds, recomputed with the same bits" in repr(served)
    [candles] = served.inputs.to_dicts()
    lookback = (SERVED_AT - candles["first_ms"]) // MINUTE
    assert (candles["table"], candles["rows"], candles["sources"]) == ("candles_1m", lookback, f"ws {lookback}")
    assert (candles["last_ms"], candles["came_later"], candles["late"]) == (SERVED_AT - MINUTE, 0, False)


def test_a_candle_that_was_changed_since_shows_in_what_is_made_of_it_and_nowhere_else(
    folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "lab.db"
    copy.write_bytes((folder / "lab.db").read_bytes())
    with apsw.Connection(str(copy)) as connection:
        connection.execute(
            "UPDATE candles_1m SET taker_buy_volume = 0, received_at = ? WHERE symbol = 'BTCUSDT' AND open_time = ?",
            (SERVED_AT + 60 * MINUTE, SERVED_AT - 20 * MINUTE),
        )
    connection.close()

    served = lab.open(copy, folder / "perpline.toml").features("BTCUSDT", SERVED_AT)

    assert served.same_bits is False
    assert served.differing == ("tbi_60",)  # tbi_15 looks back less far
    assert served.inputs["came_later"].to_list() == [1]
    assert not served.feat_ref_holds  # `serve` wrote none
    assert "DOES NOT HOLD" in repr(served)


def test_without_the_models_folder_the_bytes_are_there_and_the_names_are_not(folder: Path) -> None:
    served = lab.open(folder / "lab.db").features("BTCUSDT", SERVED_AT)

    assert served.names == tuple(str(place) for place in range(len(NAMES)))
    assert (served.same_bits, served.recomputed) == (None, None)
    assert served.problem
    assert served.problem in repr(served)
    with pytest.raises(NeedsPerson, match="says nothing of the range"):
        lab.plot_features(served)


def test_signals_are_all_rows_of_the_slot_with_probabilities_and_outcomes(here: lab.Lab, folder: Path) -> None:
    frame = here.signals("BTCUSDT")

    rows = stored(
        folder,
        "SELECT s.close_time, s.status, s.seq, s.t_features, p.p_long, p.p_short FROM signals s "
        "LEFT JOIN predictions p USING (slot, symbol, close_time) WHERE s.slot = 'champion' ORDER BY s.close_time",
    )
    told = frame.select("close_time_ms", "status", "seq", "t_features_us", "p_long", "p_short").rows()
    assert told == [(t, status, seq, made or None, *ps) for t, status, seq, made, *ps in rows]
    assert len(frame) == MINUTES - FIRST + 1
    [outcome] = frame.filter(frame["outcome_reason"].is_not_null()).to_dicts()
    assert (outcome["close_time_ms"], outcome["outcome_reason"], outcome["outcome_net"]) == (SERVED_AT, "target", 0.004)
    assert here.signals("ETHUSDT").is_empty()


def test_outcomes_are_what_the_labels_say_of_both_sides(here: lab.Lab) -> None:
    outcomes = here.outcomes("BTCUSDT", label=QUICK)
    labels = here.frame("BTCUSDT", features=["ret_1"], label=QUICK)

    assert here.outcomes("BTCUSDT", label=replace(QUICK, horizon_s=86_400)).is_empty()  # nobody knows yet
    assert len(outcomes) == 2 * (MINUTES - FIRST - QUICK.horizon_s // 60)
    for side, name in ((1, "long"), (-1, "short")):
        mine = outcomes.filter(outcomes["side"] == side)
        same = labels.filter(labels["close_time_ms"].is_in(mine["close_time_ms"].to_list()))
        assert mine["net"].to_list() == same[f"label_net_{name}"].to_list()
        assert mine["won"].to_list() == same[f"label_won_{name}"].to_list()
        assert mine["end_ms"].to_list() == same[f"label_end_{name}_ms"].to_list()


def test_gaps_positions_and_equity_are_those_that_touch_the_span(here: lab.Lab) -> None:
    assert here.gaps()["repaired_by"].to_list() == ["rest", None]
    assert here.gaps(only_open=True)["symbol"].to_list() == ["ETHUSDT"]
    assert here.gaps("BTCUSDT", START + MINUTE).is_empty()
    [bought] = here.positions(account="paper").to_dicts()
    assert (bought["entry_price"], bought["realized_pnl"], bought["opened_at_ms"]) == (100.125, 1.375, SERVED_AT + 250)
    assert here.positions(start=SERVED_AT + 30 * MINUTE)["account"].to_list() == ["live"]  # it is open still
    assert here.positions(end=SERVED_AT).is_empty()
    assert here.equity(SERVED_AT + MINUTE, SERVED_AT + 3 * MINUTE)["equity"].to_list() == [1001.0, 1002.0]


def test_pandas_and_polars_agree(here: lab.Lab) -> None:
    pytest.importorskip("pandas", reason="pandas is not installed")
    asks: list[Callable[[Any], Any]] = [
        lambda as_: here.candles("BTCUSDT", as_=as_),
        lambda as_: here.signals(as_=as_),
        lambda as_: here.outcomes(label=QUICK, as_=as_),
        lambda as_: here.gaps(as_=as_),
        lambda as_: here.positions(as_=as_),
        lambda as_: here.equity(as_=as_),
        lambda as_: here.frame("BTCUSDT", features=["ret_1", "tbi_60"], label=QUICK, as_=as_),
        lambda as_: here.features("BTCUSDT", SERVED_AT, as_=as_).frame,
        lambda as_: here.features("BTCUSDT", SERVED_AT, as_=as_).inputs,
    ]
    for ask in asks:
        ours, theirs = ask("polars"), ask("pandas")
        assert list(theirs.columns) == ours.columns
        assert len(theirs) == len(ours) > 0
        for name in ours.columns:
            mine = [None if value != value else value for value in ours[name].to_list()]
            other = [None if value is None or value != value else value for value in theirs[name].tolist()]
            assert other == mine, name


def test_the_frame_is_what_train_learns_from_cell_by_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightgbm", reason="the extra [ml] is not installed")
    monkeypatch.setenv("PERPLINE_DATA_DIR", str(tmp_path))
    monkeypatch.setattr("os.nice", lambda by: 0)
    learned: dict[str, Any] = {}

    async def fill_two() -> None:
        store = SqliteStore(tmp_path / "perpline.db")
        await store.open()
        for seed, symbol in enumerate(("AAAUSDT", "BBBUSDT")):
            await store_walk(store, random_walk(5 * 1440, seed=seed, symbol=symbol, volatility=1.5e-3))
        await store.close()

    from perpline.training import train

    class Recipe(train._Recipe):
        """That of the training, which keeps what it was given."""

        def __init__(self, options: Any, examples: Any, weight: Any, share: float) -> None:
            super().__init__(options, examples, weight, share)
            learned.update(examples=examples, weight=weight, rule=options.rule)

    asyncio.run(fill_two())
    monkeypatch.setattr(train, "_Recipe", Recipe)
    windows = ["--train-days", "1", "--test-days", "0.5", "--lockbox-days", "0.5"]
    asked = ["--schema", "candles_day", "--horizon", "60", "--trees", "2", "--no-repair"]
    try:
        with pytest.raises(SystemExit) as ended:
            main(["train", *asked, *windows])
    finally:
        # Logs went to the captured stderr of this test, which the tests after it would find closed.
        structlog.reset_defaults()
        logging.basicConfig(force=True, handlers=[logging.NullHandler()])
    assert ended.value.code == 0
    examples = learned["examples"]

    frame = lab.frame(features="candles_day", label=learned["rule"])

    X, labels, weights = lab.split(frame)
    assert learned["rule"] == replace(lab.DEFAULT_LABEL, horizon_s=3600)
    assert tuple(X.columns) == examples.names
    assert X.to_numpy().tobytes("C") == examples.features(np.ones(len(examples), np.bool_)).tobytes("C")
    assert frame["symbol"].to_list() == [examples.symbols[at] for at in examples.symbol]
    assert frame["close_time_ms"].to_list() == examples.times.tolist()
    for column, side in enumerate(("long", "short")):
        assert labels[f"label_net_{side}"].to_list() == examples.net[:, column].tolist()
        assert labels[f"label_won_{side}"].to_list() == (examples.net[:, column] > 0).tolist()
        assert labels[f"label_end_{side}_ms"].to_list() == examples.side_ends[:, column].tolist()
        assert weights[f"weight_{side}"].to_list() == learned["weight"][:, column].tolist()
        assert weights[f"weight_unique_{side}"].to_list() == examples.unique[:, column].tolist()
    assert set(labels["label_reason_long"]) == {"target", "stop", "timeout"}


def test_single_features_are_columns_of_the_smallest_schema_that_has_them(here: lab.Lab) -> None:
    some = here.frame("BTCUSDT", features=["tbi_60", "ret_1"], label=QUICK)
    whole = here.frame("BTCUSDT", features="ohlcv_day", label=QUICK)

    assert lab.split(some)[0].columns == ["tbi_60", "ret_1"]
    assert whole["ret_1"].to_list()[-10:] == some["ret_1"].to_list()[-10:]
    with pytest.raises(NeedsPerson, match="no single schema has all of these"):
        here.frame(features=["day_sin", "imb_0"])


async def test_it_is_synchronous_where_an_event_loop_runs_already(here: lab.Lab) -> None:
    assert asyncio.get_running_loop().is_running()

    assert len(here.candles("BTCUSDT")) == MINUTES
    assert here.features("BTCUSDT", SERVED_AT).same_bits


def test_nothing_stays_open_between_two_calls(here: lab.Lab) -> None:
    here.signals()
    here.frame("BTCUSDT", features="ohlcv_day", label=QUICK)

    assert [thread.name for thread in threading.enumerate() if thread.name.startswith(("perpline", "sqlite"))] == []
    if Path("/proc/self/fd").is_dir():
        opened = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if is_link(fd)]
        assert [name for name in opened if "lab.db" in name or "perpline-lab-" in name] == []


def is_link(fd: str) -> bool:
    return Path(f"/proc/self/fd/{fd}").is_symlink()


def test_ctrl_c_ends_the_work_at_once() -> None:
    ended: list[str] = []

    async def long_work() -> None:
        # Not at once: it shall come while this thread waits, which nothing tells.
        interrupt = (signal.pthread_kill, threading.main_thread().ident, signal.SIGINT)
        asyncio.get_running_loop().call_later(0.2, *interrupt)
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cancelled")

    with pytest.raises(KeyboardInterrupt):
        _apart(long_work())

    assert ended == ["cancelled"]


def test_the_modules_functions_read_the_database_of_the_settings(
    folder: Path, here: lab.Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERPLINE_CONFIG", str(folder / "perpline.toml"))
    monkeypatch.setenv("PERPLINE_DATABASE_URL", f"sqlite:///{folder / 'lab.db'}")

    assert lab.candles("BTCUSDT").equals(here.candles("BTCUSDT"))
    assert lab.signals().equals(here.signals())
    assert lab.outcomes(label=QUICK).equals(here.outcomes(label=QUICK))
    assert lab.gaps().equals(here.gaps())
    assert lab.positions().equals(here.positions())
    assert lab.equity().equals(here.equity())
    assert lab.features("BTCUSDT", SERVED_AT).bits == here.features("BTCUSDT", SERVED_AT).bits
    ours = lab.frame("BTCUSDT", features=["ret_1"], label=QUICK)
    assert ours.equals(here.frame("BTCUSDT", features=["ret_1"], label=QUICK))


def test_postgresql_gives_the_same_frames(folder: Path, here: lab.Lab, postgres_database: PostgresDatabase) -> None:
    pytest.importorskip("asyncpg", reason="the extra [postgres] is not installed")
    from perpline.storage.postgres import PostgresStore

    async def restore() -> None:
        store = PostgresStore(postgres_database.url)
        await store.open()
        await store.restore(folder / "lab.db")
        await store.close()

    asyncio.run(restore())

    there = lab.open(postgres_database.url, folder / "perpline.toml")

    assert there.candles("BTCUSDT").equals(here.candles("BTCUSDT"))
    assert there.signals().equals(here.signals())
    assert there.outcomes(label=QUICK).equals(here.outcomes(label=QUICK))
    assert there.gaps().equals(here.gaps())
    assert there.positions().equals(here.positions())
    assert there.equity().equals(here.equity())
    served = there.features("BTCUSDT", SERVED_AT, slot="shadow")
    assert (served.feat_ref_holds, served.same_bits) == (True, True)
    assert served.inputs.equals(here.features("BTCUSDT", SERVED_AT, slot="shadow").inputs)


def test_a_database_that_is_not_there_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(NeedsPerson, match="there is no database yet at"):
        lab.open(tmp_path / "none.db")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["polars", "pyarrow"])
def test_without_the_extra_one_line_says_what_to_install(
    missing: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)

    with pytest.raises(NeedsPerson, match=r"pip install 'perpline\[lab\]'"):
        lab.open(folder / "lab.db")


def test_without_matplotlib_or_pandas_only_that_is_refused(here: lab.Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(NeedsPerson, match=r"plots need matplotlib: pip install 'perpline\[lab\]'"):
        lab.plot_equity(here.equity())

    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(NeedsPerson, match="pip install 'pandas'"):
        here.candles("BTCUSDT", as_="pandas")


def test_importing_the_lab_imports_none_of_the_extra() -> None:
    asked = "import sys; from perpline import lab; print(sorted({'polars', 'pandas', 'matplotlib'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True).stdout == "[]\n"


def test_the_extra_holds_what_the_lab_imports() -> None:
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]

    named = {re.split(r"[<>=]", each)[0] for each in project["optional-dependencies"]["lab"]}

    assert named == {"polars", "pyarrow", "matplotlib"}


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


@pytest.mark.parametrize("as_", ["polars", "pandas"])
def test_candles_are_drawn_with_the_signals_and_positions_of_their_symbol(
    here: lab.Lab, drawing: Any, as_: Any
) -> None:
    if as_ == "pandas":
        pytest.importorskip("pandas", reason="pandas is not installed")
    candles = here.candles("BTCUSDT", SERVED_AT - 30 * MINUTE, SERVED_AT + 30 * MINUTE, as_=as_)
    signals = here.signals(as_=as_)

    ax = lab.plot_candles(candles, signals, here.positions(as_=as_))

    bars = [container for container in ax.containers]
    assert sum(len(container) for container in bars) == 60
    assert ax.get_title(loc="left") == "BTCUSDT, UTC"
    [way] = [line.get_xydata() for line in ax.lines]
    assert way[:, 1].tolist() == [100.125, 101.5]
    assert (way[:, 0] * 86_400_000).round().tolist() == [SERVED_AT + 250, SERVED_AT + 20 * MINUTE]
    assert ax.get_legend() is None  # no decision of these was a signal
    ax.figure.canvas.draw()
    with pytest.raises(NeedsPerson, match="draws the candles of one symbol"):
        lab.plot_candles(here.candles("BTCUSDT", SERVED_AT + 9999 * MINUTE))


def test_a_signal_is_a_triangle_at_its_price(here: lab.Lab, drawing: Any) -> None:
    pl = pytest.importorskip("polars")
    candles = here.candles("BTCUSDT", SERVED_AT - 30 * MINUTE, SERVED_AT + 30 * MINUTE)
    signals = pl.DataFrame(
        {
            "symbol": ["BTCUSDT", "BTCUSDT", "ETHUSDT", "BTCUSDT"],
            "close_time_ms": [SERVED_AT, SERVED_AT + MINUTE, SERVED_AT, START],
            "side": [1, 0, 1, 1],
            "status": ["ok", "flat", "ok", "ok"],
            "ref_last": [100.5, 1.0, 2.0, 3.0],
            "ref_mark": [None, None, None, None],
        }
    )

    ax = lab.plot_candles(candles, signals)

    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["1 long"]
    [point] = ax.collections[-1].get_offsets().tolist()
    assert (round(point[0] * 86_400_000), point[1]) == (SERVED_AT, 100.5)


def test_calibration_shows_the_share_that_won_in_bins_of_equally_many(drawing: Any) -> None:
    pl = pytest.importorskip("polars")
    told = pl.DataFrame({"p": [0.2] * 50 + [0.8] * 50, "won": [True] * 10 + [False] * 40 + [True] * 40 + [False] * 10})
    own = drawing.figure().subplots()

    ax = lab.plot_calibration(told, bins=2, ax=own)

    assert ax is own
    dots = next(line for line in ax.lines if line.get_marker() == "o")
    assert dots.get_xydata().round(9).tolist() == [[0.2, 0.2], [0.8, 0.8]]
    low, high = (path.vertices[:, 1].tolist() for path in ax.collections[0].get_paths())
    assert [round(value, 3) for value in (*low, *high)] == [0.112, 0.33, 0.67, 0.888]  # Wilson's of 10 in 50
    with pytest.raises(NeedsPerson, match="no outcome is known yet"):
        lab.plot_calibration(told.head(0))


def test_equity_names_the_deepest_fall_of_each_account(here: lab.Lab, drawing: Any) -> None:
    pl = pytest.importorskip("polars")
    minutes = [SERVED_AT + at * MINUTE for at in range(4)]
    worth = pl.DataFrame({"account": ["paper"] * 4, "minute_ms": minutes, "equity": [100.0, 110.0, 99.0, 120.0]})

    ax = lab.plot_equity(worth)

    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["paper, deepest fall 10.00%"]
    with pytest.raises(NeedsPerson, match="no equity is stored"):
        lab.plot_equity(here.equity(end=START))


def test_features_stand_where_training_had_them(here: lab.Lab, drawing: Any) -> None:
    pl = pytest.importorskip("polars")
    served = here.features("BTCUSDT", SERVED_AT)
    at = dict(zip(served.names, served.values.tolist(), strict=True))
    wide = [at[name] + 1 for name in served.names]
    low = [at[name] - 1 for name in served.names[:-1]] + [at[served.names[-1]] + 0.5]
    told = replace(served, frame=served.frame.with_columns(pl.Series("low", low), pl.Series("high", wide)))

    ax = lab.plot_features(told)

    assert [label.get_text() for label in ax.get_yticklabels()] == list(NAMES)
    places = [float(line.get_xdata()[0]) for line in ax.lines if line.get_marker() == "o"]
    assert [round(place, 6) for place in places] == [0.5] * (len(NAMES) - 1) + [-0.08]  # the last lies below


@pytest.mark.parametrize(
    ("heading", "columns"),
    [
        ("lab.candles", [*frames.CANDLES]),
        ("lab.signals", [*frames.SIGNALS, *frames.PREDICTED, *frames.OUTCOME]),
        ("lab.outcomes", [*frames.OUTCOMES]),
        ("lab.gaps", [*frames.GAPS]),
        ("lab.positions", [*frames.POSITIONS]),
        ("lab.equity", [*frames.EQUITY]),
        ("lab.features", [*frames.VECTOR, *frames.INPUTS]),
    ],
)
def test_every_column_is_explained(heading: str, columns: list[str]) -> None:
    text = (DOCS / "lab.md").read_text()
    [section] = re.findall(rf"^## `{re.escape(heading)}[(`].*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (`.+?`) \|.*\|$", section, re.MULTILINE)

    assert [name for row in rows for name in re.findall(r"`(\w+)`", row)] == columns
