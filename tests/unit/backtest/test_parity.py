"""Stored predictions computed again: equal bits, and what may explain others."""

from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import numpy as np
import pytest

from backtesting import LOOKBACK, SLOT, candles_of, serve, store_history, trend_follower, walk
from perpline.backtest.parity import compare
from perpline.backtest.stored import quoted, repaired_since
from perpline.common.errors import NeedsPerson
from perpline.features.catalogue import LATE_BITS
from perpline.inference.artefact import LoadedModel
from perpline.storage.sqlite import SqliteStore
from training import MINUTE, START

END = START + 401 * MINUTE


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def model(tmp_path: Path) -> LoadedModel:
    return trend_follower(tmp_path)


def change(store: SqliteStore, statement: str, *values: object) -> None:
    connection = apsw.Connection(str(store.path))
    connection.execute(statement, values)
    connection.close()


async def test_what_live_computed_is_computed_again_bit_by_bit(
    store: SqliteStore, model: LoadedModel, tmp_path: Path
) -> None:
    for seed, symbol in ((1, "BTCUSDT"), (2, "ETHUSDT")):
        history = walk(400, seed, symbol)
        await store_history(store, history)
        await serve(store, model, candles_of(history), from_minute=10)  # the first ones with few values

    found = await compare(store, tmp_path, SLOT, START, END)

    assert found.ok
    assert (found.symbols, found.rows, found.cells) == (2, 780, 780 * len(model.features))
    assert (found.mismatch_cells, found.late_cells, found.repaired_cells, found.without_history) == (0, 0, 0, 0)
    assert (found.mismatch_probabilities, found.max_abs_probability) == (0, 0.0)


async def test_one_bit_in_one_cell_is_found_and_named(store: SqliteStore, model: LoadedModel, tmp_path: Path) -> None:
    history = walk(400)
    await store_history(store, history)
    predictions = await serve(store, model, candles_of(history))
    vector = np.frombuffer(predictions[20].features, np.uint32).copy()
    vector[1] ^= 1
    t = predictions[20].close_time
    change(store, "UPDATE predictions SET features = ? WHERE close_time = ?", vector.tobytes(), t)

    found = await compare(store, tmp_path, SLOT, START, END)

    name = model.features[1].name
    assert not found.ok
    assert (found.mismatch_cells, found.columns, found.worst_column) == (1, {name: 1}, name)
    assert 0 < found.max_abs < 1e-5
    assert [(each["close_time"], each["column"]) for each in found.examples] == [(t, name)]


async def test_a_value_where_there_is_none_and_a_vector_of_another_length_differ(
    store: SqliteStore, model: LoadedModel, tmp_path: Path
) -> None:
    history = walk(400)
    await store_history(store, history)
    predictions = await serve(store, model, candles_of(history))
    width = len(model.features)
    empty = np.full(width, np.nan, "<f4").tobytes()
    change(store, "UPDATE predictions SET features = ? WHERE close_time = ?", empty, predictions[5].close_time)
    change(store, "UPDATE predictions SET features = ? WHERE close_time = ?", b"1234", predictions[6].close_time)

    found = await compare(store, tmp_path, SLOT, START, END)

    assert found.mismatch_cells == 2 * width
    assert found.max_abs == np.inf


async def test_a_probability_that_the_model_does_not_give_is_found(
    store: SqliteStore, model: LoadedModel, tmp_path: Path
) -> None:
    history = walk(400)
    await store_history(store, history)
    predictions = await serve(store, model, candles_of(history))
    t = predictions[7].close_time
    change(store, "UPDATE predictions SET p_long = p_long + 0.25 WHERE close_time = ?", t)

    found = await compare(store, tmp_path, SLOT, START, END)

    assert (found.ok, found.mismatch_cells, found.mismatch_probabilities) == (False, 0, 1)
    assert found.max_abs_probability == pytest.approx(0.25)


async def test_rows_with_a_late_input_of_the_models_own_are_set_apart(
    store: SqliteStore, model: LoadedModel, tmp_path: Path
) -> None:
    history = walk(400)
    await store_history(store, history)
    await serve(store, model, candles_of(history), late_mask=LATE_BITS["open_interest"])

    found = await compare(store, tmp_path, SLOT, START, END)

    # This model has no column of the open interest: what was late has nothing to do with its vectors.
    assert (found.late_cells, found.mismatch_cells) == (0, 0)


async def test_a_candle_that_came_after_the_decision_explains_the_difference(
    store: SqliteStore, model: LoadedModel, tmp_path: Path
) -> None:
    history = walk(LOOKBACK + 100)
    at = LOOKBACK + 10
    candles, late = candles_of(history), candles_of(history, 5 * MINUTE)[at]
    await store_history(store, history, [*candles[:at], late, *candles[at + 1 :]])
    await serve(store, model, [*candles[:at], *candles[at + 1 : at + 5]])  # live's window restarts at the hole
    await serve(store, model, candles, from_minute=at + 5)  # and was put together again when the candle came

    found = await compare(store, tmp_path, SLOT, START, END)

    assert found.ok
    assert found.repaired_cells == 4 * len(model.features)
    assert found.repaired_differing > 0


async def test_what_live_did_without_because_of_a_hole_that_was_filled_beside_it_is_explained(
    store: SqliteStore, model: LoadedModel, tmp_path: Path
) -> None:
    history = walk(LOOKBACK + 300)
    at = LOOKBACK + 10
    candles = candles_of(history)
    await store_history(store, history)
    await serve(store, model, [*candles[:at], *candles[at + 1 :]])
    before = await compare(store, tmp_path, SLOT, START, START + 600 * MINUTE)
    t = candles[at].open_time
    await store.close_gap(await store.open_gap("BTCUSDT", "candles_1m", t, t + MINUTE, "no frame", t), t, "rest")

    found = await compare(store, tmp_path, SLOT, START, START + 600 * MINUTE)

    assert (found.ok, found.repaired_cells) == (True, before.mismatch_cells)
    assert before.mismatch_cells > LOOKBACK


async def test_a_model_that_is_gone_is_named_and_an_empty_day_is_an_error(
    store: SqliteStore, model: LoadedModel, tmp_path: Path
) -> None:
    history = walk(400)
    await store_history(store, history)
    await serve(store, model, candles_of(history))

    found = await compare(store, tmp_path / "elsewhere", SLOT, START, END)

    assert (found.rows, found.refused_rows, list(found.refused)) == (0, 400 - LOOKBACK, [model.model_id])
    with pytest.raises(NeedsPerson, match="no prediction is stored"):
        await compare(store, tmp_path, SLOT, END + MINUTE, END + 2 * MINUTE)


async def test_predictions_whose_candles_are_not_stored_are_counted(
    store: SqliteStore, model: LoadedModel, tmp_path: Path
) -> None:
    history = walk(400)
    candles = candles_of(history)
    await store_history(store, history, candles[:390])
    await serve(store, model, candles)

    found = await compare(store, tmp_path, SLOT, START, END)

    assert (found.rows, found.without_history, found.ok) == (390 - LOOKBACK, 10, True)


def test_a_decision_knows_nothing_of_what_was_stored_after_it() -> None:
    times = [(START + n * MINUTE, START + n * MINUTE + 600) for n in range(1, 8)]
    opened = START + np.arange(7, dtype=np.int64) * MINUTE
    received = opened + MINUTE + 500
    received[2] = START + 5 * MINUTE + 100  # of the third minute: known to the fifth decision and not to the fourth

    assert repaired_since((opened, received), times, 3) == {START + 3 * MINUTE, START + 4 * MINUTE}
    assert repaired_since((opened, received), times, 1) == {START + 3 * MINUTE}
    assert repaired_since((opened, received), [], 3) == set()


@pytest.mark.parametrize("name", ["a'b", 'a"b', "a;b", "a b", "x" * 121])
def test_no_name_reaches_the_database_as_anything_but_a_name(name: str) -> None:
    with pytest.raises(ValueError, match="is no name"):
        quoted(name)
