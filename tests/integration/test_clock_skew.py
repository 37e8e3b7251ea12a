"""Frames of a real host 1.5 s behind the exchange, with their times of receipt as recorded, on the live path."""

import random
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perpline.bootstrap import Parts, make_parts
from perpline.bus.memory import MemoryBus
from perpline.collector.recorder import read_frames
from perpline.common.clock import ManualClock
from perpline.common.config import load_settings
from perpline.domain.candle import MINUTE_MS
from perpline.domain.instrument import Instrument
from perpline.domain.market import BookTicker
from perpline.exchange.binance.decode import decode
from perpline.storage.sqlite import SqliteStore

RECORDING = (
    Path(__file__).parents[2].parent / "shared" / "data" / "ws-frames" / "hftbacktest" / "usdm_btcusdt_20240718.gz"
)
BEHIND_MS = 1_500


@pytest.fixture
def recorded() -> list[tuple[int, bytes]]:
    if not RECORDING.exists():
        pytest.skip("the recordings of ../shared/data are not here")
    return [(at, data) for at, data in read_frames(RECORDING) if b"bookTicker" in data[:60]]


def live(folder: Path, clock: ManualClock, book_minutes: bool) -> Parts:
    settings = load_settings(
        None, {"HOME": str(folder)}, {"data_dir": str(folder), "symbols": "BTCUSDT", "book_minutes": book_minutes}
    )
    step = Decimal("0.001")
    instrument = Instrument("BTCUSDT", "BTC", "USDT", "PERPETUAL", "TRADING", 0, Decimal("0.1"), step, step, step)
    rest: Any = SimpleNamespace()
    parts = (SqliteStore(folder / "never.db"), MemoryBus(), {"BTCUSDT": instrument}, rest, random.Random(1), [])
    return make_parts(settings, clock, *parts)


def events(recorded: list[tuple[int, bytes]]) -> Iterator[tuple[int, BookTicker]]:
    for received_us, data in recorded:
        content = decode(data, received_us).content
        assert isinstance(content, BookTicker)
        yield received_us, content


def test_the_recorded_host_is_behind_by_a_second_and_a_half(recorded: list[tuple[int, bytes]]) -> None:
    ahead = sorted(book.updated_at - received_us // 1000 for received_us, book in events(recorded))
    assert 1_300 < ahead[len(ahead) // 2] < 1_550
    assert ahead[0] > 0  # every single frame is of our future


@pytest.mark.parametrize("book_minutes", [True, False])
def test_frames_of_our_future_are_taken_in_order_into_the_exchanges_minutes(
    recorded: list[tuple[int, bytes]], tmp_path: Path, book_minutes: bool
) -> None:
    clock = ManualClock(recorded[0][0] // 1000)
    clock.offset_ms = BEHIND_MS
    parts = live(tmp_path, clock, book_minutes)
    rows: list[Any] = []
    parts.books._add_row = rows.append
    newest = 0
    for (received_us, data), (_, book) in zip(recorded, events(recorded), strict=True):
        clock.set_us(received_us)
        parts.router.route_batch([data], received_us)
        newest = max(newest, book.updated_at)
        if book_minutes:
            held = parts.books.get("BTCUSDT")
            assert held is not None
            assert held.updated_at == newest
            assert -400 < clock.exchange_now_ms() - held.updated_at < 400  # its age in the exchange's time
    last = parts.books.get("BTCUSDT")
    assert last is not None
    assert last.updated_at == newest
    parts.books.flush()

    assert (parts.router.malformed, parts.router.failed) == (0, 0)
    if not book_minutes:
        assert rows == []
        return
    minutes = sorted({book.updated_at // MINUTE_MS * MINUTE_MS for _, book in events(recorded)})
    assert [row[1] for row in rows] == minutes
    assert all(-1_600 < row[10] < -1_200 for row in rows)  # receive_lag_ms says what was measured, negative or not
