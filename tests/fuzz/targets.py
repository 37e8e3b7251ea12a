"""What a fuzzer calls: each target takes any bytes into one of the doors that something from outside comes through.

A target returns, or raises what its door never may let out. Only what is named in `_fine` may come out of a door.
"""

import asyncio
import contextlib
import io
import json
import logging
import os
import random
import tempfile
import zipfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from decimal import Decimal
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import stamina
import structlog
import zstandard

from perpline.bus.feature_stream import decoded as decoded_batch
from perpline.bus.memory import MemoryBus
from perpline.bus.wire import signal_of
from perpline.cli.watch import signal_text
from perpline.collector.archives import find, read
from perpline.collector.recorder import read_frames
from perpline.common.clock import ManualClock
from perpline.common.config import load_settings
from perpline.common.errors import Malformed, NeedsPerson, PerplineError
from perpline.domain.order import OrderRequest, StopRequest
from perpline.exchange.binance.credentials import make_credentials
from perpline.exchange.binance.decode import FieldWatch, decode
from perpline.exchange.binance.order_rate import OrderRate
from perpline.exchange.binance.order_socket import OrderSocket
from perpline.exchange.binance.rest import BinanceRest
from perpline.exchange.binance.trading_rest import BinanceTrading
from perpline.exchange.binance.user_events import decode_user_event
from perpline.exchange.binance.weight import WeightLedger
from perpline.inference.artefact import load_artefact
from perpline.storage.day_files import DayFiles
from perpline.storage.day_tables import day_tables
from perpline.storage.sqlite import SqliteStore

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
WIRE = HERE.parent / "wire"
NOW = 1_795_219_260_000
SYMBOL = "BTCUSDT"

Target = Callable[[bytes], None]


# ---- streams ----


def frames(data: bytes) -> None:
    """A market frame through router, decoder, lanes and handlers, with and without lanes."""
    for parts in (_parts(True), _parts(False)):
        before = parts.router.failed
        parts.router.route_batch([data, data[: len(data) // 2], b"", data], NOW * 1000)
        for symbol in (SYMBOL, "ETHUSDT"):
            parts.books.get(symbol)
            parts.klines.get(symbol, "1m")
        if parts.router.failed != before:
            raise AssertionError("a handler failed: see the log")
    with _fine(Malformed):
        decode(memoryview(data), NOW * 1000)
        _watch().see(data)


def user_events(data: bytes) -> None:
    with _fine(Malformed):
        decode_user_event(data, NOW)


def order_answers(data: bytes) -> None:
    """An answer over the order socket, with orders under way that it may be about."""
    told: list[Any] = []
    socket = OrderSocket(
        "ws://127.0.0.1:1",
        _credentials(),
        ManualClock(NOW),
        random.Random(1),
        OrderRate(ManualClock(NOW)),
        WeightLedger(ManualClock(NOW)),
        on_report=told.append,
        on_refused=lambda name, error: told.append(error),
        on_unknown=told.append,
        measure_offset=_nothing,
    )
    socket._transport = SimpleNamespace(is_disconnected=False, send=lambda *_: None)  # type: ignore[assignment]
    sell = OrderRequest(symbol=SYMBOL, side="sell", quantity=Decimal("0.02"), client_id="x.1.a.0", reduce_only=True)
    stop = StopRequest(symbol=SYMBOL, side="buy", trigger_price=Decimal("9"), client_algo_id="s.1.a.0")
    socket.send(sell)
    socket.send_stop(stop)

    async def receive() -> None:
        socket._receive([data], NOW * 1000)

    _run(receive())


# ---- requests ----


def rest_bodies(data: bytes) -> None:
    """An answer to each request for market data: the first two bytes choose status and method, the rest is the body."""
    status, body = _status(data)
    rest = BinanceRest("http://127.0.0.1", clock := ManualClock(NOW), WeightLedger(clock), _Session(status, body))  # type: ignore[arg-type]
    calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
        rest.server_time,
        rest.measure_offset_ms,
        rest.instruments,
        rest.quote_volumes_24h,
        lambda: rest.candles(SYMBOL, "1m", limit=10),
        lambda: rest.candles(SYMBOL, "1m", start=NOW - 600_000, end=NOW, limit=10),
        rest.mark_prices,
        rest.book_tickers,
        lambda: rest.price_candles("mark", SYMBOL, limit=3),
        lambda: rest.open_interest(SYMBOL),
        lambda: rest.open_interest_hist(SYMBOL, limit=3),
        lambda: rest.long_short_ratios(SYMBOL, "taker", limit=3),
        lambda: rest.funding_rates(SYMBOL),
    ]
    _ask(calls[data[1] % len(calls)] if len(data) > 1 else calls[0])


def trading_bodies(data: bytes) -> None:
    """An answer to each request about the account."""
    status, body = _status(data)
    clock = ManualClock(NOW)
    rest = BinanceTrading(
        "http://127.0.0.1",
        _credentials(),
        clock,
        WeightLedger(clock),
        OrderRate(clock),
        measure_offset=_nothing,
        spot_url="http://127.0.0.1",
        session=_Session(status, body),  # type: ignore[arg-type]
    )
    sell = OrderRequest(symbol=SYMBOL, side="sell", quantity=Decimal("0.02"), client_id="x.1.a.0", reduce_only=True)
    stop = StopRequest(symbol=SYMBOL, side="buy", trigger_price=Decimal("9"), client_algo_id="s.1.a.0")
    calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
        lambda: rest.place_order(sell),
        lambda: rest.cancel_order(SYMBOL, "x.1.a.0"),
        lambda: rest.order(SYMBOL, "x.1.a.0"),
        rest.open_orders,
        lambda: rest.place_stop(stop),
        lambda: rest.cancel_stop("s.1.a.0"),
        lambda: rest.stop("s.1.a.0"),
        rest.open_stops,
        lambda: rest.cancel_all(SYMBOL),
        rest.positions,
        rest.account,
        lambda: rest.fills(SYMBOL, since=NOW - 1000),
        lambda: rest.income(NOW - 1000, NOW),
        lambda: rest.margin(SYMBOL),
        lambda: rest.set_isolated(SYMBOL),
        lambda: rest.set_leverage(SYMBOL, 3),
        rest.is_hedge_mode,
        rest.is_multi_assets_mode,
        rest.permissions,
        rest.make_listen_key,
        rest.keep_listen_key,
    ]
    _ask(calls[data[1] % len(calls)] if len(data) > 1 else calls[0])


# ---- files ----


def settings_file(data: bytes) -> None:
    path = _scratch() / "perpline.toml"
    path.write_bytes(data)
    with _fine(NeedsPerson):
        load_settings(path, {"HOME": "/nowhere"}, {}).masked()


def csv_archives(data: bytes) -> None:
    """The same content as klines, metrics and funding, plain and in each packing; and the bytes as a packing."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../x.csv", data)
    contents = {".csv": data, ".zip": packed.getvalue(), ".csv.zst": zstandard.compress(data, 1)}
    suffix = (".csv", ".zip", ".csv.zst")[len(data) % 3]
    for kind, name in (("candles", "1m"), ("metrics", "metrics"), ("funding", "fundingRate")):
        _read_archive(kind, f"BTCUSDT-{name}-2026-10-01{suffix}", contents[suffix])


def packed_archives(data: bytes) -> None:
    """Bytes that claim to be a zip, a zstd file, a feather file."""
    for suffix in (".zip", ".csv.zst"):
        _read_archive("candles", f"BTCUSDT-1m-2026-10{suffix}", data)
    _read_archive("candles", "BTC_USDT_USDT-1m-futures.feather", data)


def day_files(data: bytes) -> None:
    """A file that claims to be an archived day."""
    table = day_tables()["candles_1m"]
    files = DayFiles(_scratch())
    path = _scratch() / "candles_1m" / "2023-11-15.parquet"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    with _fine(NeedsPerson):
        opened = files.opened(table, files.parts(table, 1_700_006_400_000))
        try:
            opened.rows_between(0, 2**62)
        finally:
            opened.close()


def recordings(data: bytes) -> None:
    path = _scratch() / "frames"
    path.write_bytes(data)
    for file_format in ("auto", "lines", "jsonl"):
        with _fine(Malformed, NeedsPerson, ValueError if file_format != "auto" else Malformed):
            for _ in read_frames(path, file_format, lambda number, line: None):  # type: ignore[arg-type]
                pass


def model_folders(data: bytes) -> None:
    """A file of a model that says something else: the first byte chooses which one. Its sum is made to fit."""
    folder, content = _model()
    name = sorted(content)[data[0] % len(content)] if data else "manifest.json"
    bad = data[1:]
    (folder / name).write_bytes(bad)
    if name != "SHA256SUMS":
        import hashlib

        lines = content["SHA256SUMS"].decode().splitlines()
        own = hashlib.sha256(bad).hexdigest()
        sums = "\n".join(f"{own}  {name}" if line.endswith(f" {name}") else line for line in lines) + "\n"
        (folder / "SHA256SUMS").write_text(sums)
    try:
        with _fine(NeedsPerson):
            load_artefact(folder)
    finally:
        for each, original in content.items():
            (folder / each).write_bytes(original)


# ---- messages of others ----


def redis_entries(data: bytes) -> None:
    """Fields of an entry of a signal stream, as `watch` reads them, from a JSON object of texts."""
    try:
        fields = msgspec.json.decode(data, type=dict[str, str])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        fields = {"v": data.decode("utf-8", "replace"), "flags": data.decode("latin-1")}
    with _fine(Malformed):
        signal_text(signal_of(fields)).plain.encode("utf-8", "replace")


def feature_batches(data: bytes) -> None:
    with _fine(Malformed):
        decoded_batch(data, 5)


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        frames,
        user_events,
        order_answers,
        rest_bodies,
        trading_bodies,
        settings_file,
        csv_archives,
        packed_archives,
        day_files,
        recordings,
        model_folders,
        redis_entries,
        feature_batches,
    )
}


def seeds(name: str) -> list[bytes]:
    """What mutations begin with: the kept corpus, recorded payloads of the tests, and, where they are, recordings."""
    found = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))] if (CORPUS / name).is_dir() else []
    found += _MORE_SEEDS[name]() if name in _MORE_SEEDS else []
    return found or [b"{}"]


# ---- help ----


@contextlib.contextmanager
def _fine(*errors: type[Exception]) -> Iterator[None]:
    with contextlib.suppress(*errors):
        yield


def _run(work: Coroutine[Any, Any, object]) -> None:
    loop = _loop()
    loop.run_until_complete(work)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


async def _nothing() -> None:
    return None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the log, which tells of every bad input."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)


@cache
def _scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="perpline-fuzz-"))


@cache
def _watch() -> FieldWatch:
    return FieldWatch()


@cache
def _credentials() -> Any:
    return make_credentials("abcdEFGH0123456789abcdEFGH0123456789", "s3cretS3CRETs3cretS3CRETs3cretS3CRET", "a test")


@cache
def _parts(book_minutes: bool) -> Any:
    from perpline.bootstrap import make_parts
    from perpline.domain.instrument import Instrument

    overrides = {"data_dir": str(_scratch()), "symbols": "BTCUSDT,ETHUSDT", "book_minutes": book_minutes}
    settings = load_settings(Path(os.devnull), {"HOME": str(_scratch())}, overrides)
    tick = Decimal("0.1")
    instruments = {
        symbol: Instrument(symbol, symbol[:3], "USDT", "PERPETUAL", "TRADING", 0, tick, tick, tick, tick)
        for symbol in ("BTCUSDT", "ETHUSDT")
    }
    store = SqliteStore(_scratch() / "never.db")
    rest: Any = SimpleNamespace(candles=None)
    parts = make_parts(settings, ManualClock(NOW), store, MemoryBus(), instruments, rest, random.Random(1), [])
    for symbol in instruments:
        for interval in ("1m", "15m", "1h"):
            parts.closed.expect(symbol, interval, None)
    return parts


class _Session:
    """An aiohttp session whose every answer is the same."""

    def __init__(self, status: int, body: bytes) -> None:
        self._status = status
        self._body = body

    def get(self, *_: object, **__: object) -> "contextlib.AbstractAsyncContextManager[Any]":
        return self._answer()

    def request(self, *_: object, **__: object) -> "contextlib.AbstractAsyncContextManager[Any]":
        return self._answer()

    @contextlib.asynccontextmanager
    async def _answer(self) -> AsyncIterator[Any]:
        async def chunks() -> AsyncIterator[bytes]:
            for start in range(0, len(self._body), 4096):
                yield self._body[start : start + 4096]

        text = self._body[:20].decode("latin-1")
        headers = {"X-MBX-USED-WEIGHT-1M": text, "Retry-After": text, "X-MBX-ORDER-COUNT-10S": text}
        yield SimpleNamespace(status=self._status, headers=headers, content=SimpleNamespace(iter_any=chunks))

    async def close(self) -> None: ...


_STATUSES = (200, 200, 200, 200, 200, 200, 400, 401, 403, 404, 408, 418, 429, 500, 503, 302)


def _status(data: bytes) -> tuple[int, bytes]:
    return (_STATUSES[data[0] % len(_STATUSES)] if data else 200), data[2:]


def _ask(call: Callable[[], Coroutine[Any, Any, object]]) -> None:
    active = stamina.is_active()
    stamina.set_active(False)  # one try: retries only wait
    try:
        with _fine(PerplineError):
            _run(call())
    finally:
        stamina.set_active(active)


def _read_archive(kind: Any, name: str, content: bytes) -> None:
    path = _scratch() / name
    path.write_bytes(content)
    try:
        with _fine(Malformed, NeedsPerson):
            for file in find([path], kind).files:
                read(file)
    finally:
        path.unlink()


@cache
def _model() -> tuple[Path, dict[str, bytes]]:
    from modelling import write_model

    folder = write_model(_scratch() / "models")
    return folder, {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _wire(folder: str) -> list[bytes]:
    return [path.read_bytes().rstrip(b"\n") for path in sorted((WIRE / folder).glob("*.json"))]


def _recorded() -> list[bytes]:
    path = HERE.parents[1] / ".." / "shared" / "data" / "ws-frames" / "captured-2026" / "frames_A.jsonl"
    if not path.exists():
        return []
    return [data for _, data in read_frames(path)][:300]


def _model_seeds() -> list[bytes]:
    _, content = _model()
    return [bytes([place]) + content[name] for place, name in enumerate(sorted(content))]


def _parquet_seeds() -> list[bytes]:
    table = day_tables()["candles_1m"]
    row = tuple({"TEXT": "x", "INTEGER": 1_700_006_400_000, "REAL": 1.5}[kind] for kind in table.columns.values())

    async def hours() -> AsyncIterator[list[Any]]:
        yield [row]

    folder = _scratch() / "seeds"

    async def write() -> bytes:
        written = await DayFiles(folder).write(table, 1_700_006_400_000, hours())
        return written.path.read_bytes()

    loop = asyncio.new_event_loop()
    try:
        return [loop.run_until_complete(write())]
    finally:
        loop.close()


def _packed_seeds() -> list[bytes]:
    csv = (CORPUS / "csv_archives" / "klines.csv").read_bytes()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("BTCUSDT-1m-2026-10.csv", csv)
    import pyarrow as pa
    from pyarrow import feather

    path = _scratch() / "seed.feather"
    times = pa.array([1_795_219_260_000], pa.timestamp("ms", tz="UTC"))
    prices = {name: [1.0] for name in ("open", "high", "low", "close", "volume")}
    feather.write_feather(pa.table({"date": times, **prices}), str(path))
    return [packed.getvalue(), zstandard.compress(csv), path.read_bytes()]


def _batch_seeds() -> list[bytes]:
    return [
        msgspec.msgpack.encode([1, NOW, 1, 2, "card", NOW, [["BTCUSDT", b"\0" * 20, 5, False, 0, 1, None, None, None]]])
    ]


_MORE_SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "frames": lambda: _wire("binance") + _recorded(),
    "user_events": lambda: _wire("binance_user"),
    "model_folders": _model_seeds,
    "day_files": _parquet_seeds,
    "packed_archives": _packed_seeds,
    "feature_batches": _batch_seeds,
    "recordings": lambda: (
        [b"1690000000000000 " + each for each in _wire("binance")[:5]]
        + [json.dumps({"ts": 1_690_000_000.5, "raw": "{}"}).encode()]
    ),
}
