"""A dataset has the same bytes however it is built, and nothing from after its end."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from perpline.common.errors import NeedsPerson
from perpline.features.batch import vectors_of
from perpline.features.catalogue import SCHEMAS, columns_of, schema_hash
from perpline.storage.history import SymbolHistory
from perpline.storage.sqlite import SqliteStore
from perpline.storage.store import candle_row
from perpline.training import dataset
from perpline.training.dataset import HEAD_BYTES, build_dataset
from running import command
from worlds import MINUTE, START, candles_of, world

END = START + 2_400 * MINUTE
FROM = START + 1_600 * MINUTE
SYMBOLS = ["BTCUSDT", "ETHUSDT"]


@pytest.fixture
async def store(tmp_path: Path) -> Any:
    await filled(tmp_path / "perpline.db")
    made = SqliteStore(tmp_path / "perpline.db")
    await made.open()
    yield made
    await made.close()


async def filled(path: Path) -> None:
    store = SqliteStore(path)
    await store.open()
    for seed, symbol in enumerate(SYMBOLS, 3):
        await fill(store, world(2_400, seed, symbol=symbol, steady=True))
    await store.close()


async def fill(store: SqliteStore, history: SymbolHistory) -> None:
    symbol = history.symbol
    await store.add_rows("candles_1m", [candle_row(candle) for candle in candles_of(history)])
    for table, bars in (("mark", history.mark), ("index", history.index), ("premium", history.premium)):
        values = zip(bars["open_time"].tolist(), bars["close"].tolist(), strict=True)
        await store.add_rows(f"{table}_klines", [(symbol, t, p, p, p, p, "archive", 0) for t, p in values])
    names = ("funding_time", "rate", "interval_hours", "known_at")
    settled = zip(*(history.funding[name].tolist() for name in names), strict=True)
    await store.add_rows("funding_rates", [(symbol, t, rate, None, int(n), known) for t, rate, n, known in settled])
    names = ("time", "open_interest", "open_interest_value", "known_at", "revision")
    periods = zip(*(history.open_interest[name].tolist() for name in names), strict=True)
    rows = [(symbol, t, value, quote, "hist_5m", known, n) for t, value, quote, known, n in periods]
    await store.add_rows("open_interest", rows)
    for ratio, columns in history.ratios.items():
        names = ("period_end", "value", "known_at", "revision")
        periods = zip(*(columns[name].tolist() for name in names), strict=True)
        rows = [(symbol, ratio, t, value, 0.5, 0.5, known, known, n) for t, value, known, n in periods]
        await store.add_rows("long_short_ratio", rows)


def read(folder: Path, symbol: str) -> tuple[NDArray, NDArray]:
    return np.load(folder / f"{symbol}.times.npy"), np.load(folder / f"{symbol}.features.npy")


def files(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


async def test_a_dataset_holds_the_vectors_of_the_candles_that_close_in_its_time(
    store: SqliteStore, tmp_path: Path
) -> None:
    manifest = await build_dataset(store, SYMBOLS, FROM, END, "core", tmp_path / "set")

    assert manifest == json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["schema_hash"] == schema_hash(SCHEMAS["core"])
    for seed, symbol in enumerate(SYMBOLS, 3):
        times, vectors = read(tmp_path / "set", symbol)
        expected = list(vectors_of(world(2_400, seed, symbol=symbol, steady=True), FROM, END))
        assert times.tolist() == list(range(FROM, END, MINUTE))
        assert (times.dtype, vectors.dtype, vectors.flags["C_CONTIGUOUS"]) == (np.int64, np.float32, True)
        own = np.concatenate([part for _, part in expected])[:, columns_of(SCHEMAS["core"])]
        assert np.array_equal(vectors, own, equal_nan=True)
        about = manifest["symbols"][symbol]
        assert (about["rows"], about["first_close"], about["last_close"]) == (800, FROM, END - MINUTE)
        assert len(about["sha256_by_day"]) == 2


async def test_the_same_command_gives_the_same_bytes_in_whatever_pieces_it_reads(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await build_dataset(store, SYMBOLS, FROM, END, "core", tmp_path / "one")
    again = await build_dataset(store, SYMBOLS, FROM, END, "core", tmp_path / "one")
    monkeypatch.setattr(dataset, "_PIECE_MS", 137 * MINUTE)
    pieces = await build_dataset(store, SYMBOLS[::-1], FROM, END, "core", tmp_path / "two")

    assert first == again
    assert files(tmp_path / "one") | {"manifest.json": ""} == files(tmp_path / "two") | {"manifest.json": ""}
    assert pieces["symbols"] == first["symbols"]


@pytest.mark.parametrize("schema", ["core", "core_cross"])
async def test_what_is_built_to_a_time_is_a_prefix_of_what_is_built_to_a_later_one(
    store: SqliteStore, tmp_path: Path, schema: str
) -> None:
    """L13."""
    to = FROM + 333 * MINUTE
    short = await build_dataset(store, SYMBOLS, FROM, to, schema, tmp_path / "short")
    long = await build_dataset(store, SYMBOLS, FROM, END, schema, tmp_path / "long")

    for symbol in SYMBOLS:
        for kind in ("times", "features"):
            whole = (tmp_path / "long" / f"{symbol}.{kind}.npy").read_bytes()
            part = (tmp_path / "short" / f"{symbol}.{kind}.npy").read_bytes()
            assert len(part) > HEAD_BYTES
            assert whole[HEAD_BYTES:].startswith(part[HEAD_BYTES:])
    assert short["dataset_hash"] != long["dataset_hash"]


async def test_a_build_that_was_broken_off_goes_on_with_what_was_not_finished(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = await build_dataset(store, SYMBOLS, FROM, END, "candles", tmp_path / "whole")
    monkeypatch.setattr(dataset, "_AT_ONCE", 1)
    asked: list[str] = []
    series = store.series

    async def failing(table: str, symbol: str, *rest: Any) -> Any:
        asked.append(symbol)
        if symbol == "ETHUSDT" and len(asked) < 3:
            raise OSError("the power went")
        return await series(table, symbol, *rest)

    monkeypatch.setattr(store, "series", failing)
    with pytest.raises(ExceptionGroup):
        await build_dataset(store, SYMBOLS, FROM, END, "candles", tmp_path / "broken")
    asked.clear()
    asked.extend(["", "", ""])

    assert await build_dataset(store, SYMBOLS, FROM, END, "candles", tmp_path / "broken") == whole
    assert set(asked) == {"", "ETHUSDT"}
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


async def test_what_cannot_be_built_is_told_in_one_line(store: SqliteStore, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "love.txt").write_text("dear")

    for match, symbols, schema, folder in (
        ("no schema", SYMBOLS, "everything", "a"),
        ("import or backfill", ["NOUSDT"], "core", "b"),
        ("something else", SYMBOLS, "core", "letters"),
    ):
        with pytest.raises(NeedsPerson, match=match):
            await build_dataset(store, symbols, FROM, END, schema, tmp_path / folder)


def test_the_command_builds_and_lists(tmp_path: Path) -> None:
    asyncio.run(filled(tmp_path / "perpline.db"))
    span = ["--from", FROM, "--to", END, "--database", f"sqlite:///{tmp_path / 'perpline.db'}"]

    built = command("features", "build", *span, "--schema", "ohlcv_day", "--out", tmp_path / "set", "--json")
    wrong = command("features", "build", *span, "--schema", "none", "--out", tmp_path / "x")
    backwards = command("features", "build", "--from", END, "--to", FROM, "--out", tmp_path / "x")
    listed = command("features", "list", "--schema", "ohlcv_day", "--json")
    shown = command("features", "list", "--group", "F")

    assert (built.code, wrong.code, backwards.code, listed.code, shown.code) == (0, 2, 2, 0, 0), built.err + shown.err
    assert sorted(built.json["symbols"]) == SYMBOLS
    assert listed.json["schema_hash"] == built.json["schema_hash"]
    assert "tbi_15" in shown.out
