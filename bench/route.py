"""Messages a second through decode, route and cache, beside what the same bytes cost others."""

import asyncio
import importlib.util
import json
import random
import socket
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from bench.frames import BLOCK, Tape
from bench.processes import sender
from bench.results import Table
from perpline.bootstrap import Parts, make_parts, make_rest, open_store
from perpline.bus.memory import MemoryBus
from perpline.cli.options import run_loop
from perpline.common.clock import SystemClock
from perpline.common.config import load_settings
from perpline.domain.candle import INTERVAL_MS
from perpline.domain.instrument import Instrument
from perpline.exchange.binance import endpoints
from perpline.exchange.binance.decode import FieldWatch, decode
from perpline.exchange.binance.messages import Combined
from perpline.inference.registry import Deployed, load_default
from perpline.websocket.connection import Connection, OnMessages
from perpline.websocket.subscriptions import STREAM_TYPES

TYPED = "picows + msgspec typed"
CONNECTION_LIMIT_S = 120.0


def route(symbols: int, seconds: float, rounds: int, say: Callable[[str], None]) -> list[Table]:
    """The tables for so many symbols: `rounds` turns of about `seconds` for each receiver."""
    with tempfile.TemporaryDirectory(prefix="perpline-bench-") as folder:
        return [
            _over_a_socket(symbols, seconds, rounds, Path(folder), say),
            _in_process(symbols, round(rounds * max(1.0, 4 * seconds)), Path(folder), say),
        ]


def make_bench_parts(symbols: int, folder: Path, book_minutes: bool = True) -> Parts:
    """A worker's parts, nothing of them running, with a store that was never opened and a REST client nobody asks."""
    clock = SystemClock()
    settings = load_settings(
        None,
        {},
        {
            "data_dir": str(folder),
            "database_url": f"sqlite:///{folder}/bench.db",
            "redis_url": "memory://",
            "book_minutes": book_minutes,
        },
    )
    store = open_store(settings.database_url.get_secret_value())
    instruments = make_instruments(Tape(symbols).symbols)
    rest, deployed = make_rest(settings, clock), [Deployed(settings.slot, 0, load_default())]
    return make_parts(settings, clock, store, MemoryBus(), instruments, rest, random.Random(0), deployed)


def make_instruments(symbols: list[str]) -> dict[str, Instrument]:
    step = Decimal("0.0001")
    return {
        symbol: Instrument(
            symbol, symbol.removesuffix("USDT"), "USDT", "PERPETUAL", "TRADING", 0, step, step, step, Decimal(5)
        )
        for symbol in symbols
    }


# ---- over a loopback socket ----


class PlainBookTicker(Struct, tag_field="e", tag="bookTicker", gc=False):
    """What somebody in a hurry would write: the fields that are read, and no questions."""

    symbol: str = field(name="s")
    update_id: int = field(name="u")
    bid: float = field(name="b")
    bid_qty: float = field(name="B")
    ask: float = field(name="a")
    ask_qty: float = field(name="A")
    event_time: int = field(name="E")


class PlainMarkPrice(Struct, tag_field="e", tag="markPriceUpdate", gc=False):
    symbol: str = field(name="s")
    mark_price: float = field(name="p")
    index_price: float = field(name="i")
    funding_rate: float = field(name="r")
    next_funding_time: int = field(name="T")
    event_time: int = field(name="E")


class PlainKlineBody(Struct, gc=False):
    open_time: int = field(name="t")
    close_time: int = field(name="T")
    interval: str = field(name="i")
    open: float = field(name="o")
    high: float = field(name="h")
    low: float = field(name="l")
    close: float = field(name="c")
    volume: float = field(name="v")
    quote_volume: float = field(name="q")
    trades: int = field(name="n")
    taker_buy_volume: float = field(name="V")
    taker_buy_quote_volume: float = field(name="Q")
    closed: bool = field(name="x")


class PlainKline(Struct, tag_field="e", tag="kline", gc=False):
    symbol: str = field(name="s")
    event_time: int = field(name="E")
    kline: PlainKlineBody = field(name="k")


class PlainFrame(Struct, gc=False):
    stream: str
    data: PlainBookTicker | PlainMarkPrice | PlainKline


decode_plain = msgspec.json.Decoder(PlainFrame, strict=False).decode

Receiver = Callable[[str], Awaitable[None]]
"""Connects to a URL and returns when the server has closed."""


def _over_a_socket(symbols: int, seconds: float, rounds: int, folder: Path, say: Callable[[str], None]) -> Table:
    ours = {
        "perpline, books and forming candles kept as bytes": make_bench_parts(symbols, folder, book_minutes=False),
        "perpline, every frame decoded (book_minutes)": make_bench_parts(symbols, folder),
    }
    receivers: dict[str, Receiver] = {
        "bytes read, thrown away": _receive_bytes,
        "picows, empty callback": lambda url: _receive_with_picows(url, _Empty),
        TYPED: lambda url: _receive_with_picows(url, _Typed),
        **{name: partial(_receive_with_perpline, parts=parts) for name, parts in ours.items()},
    }
    notes = [
        f"One sender process on loopback that always has more to send; {symbols} symbols, "
        f"92 % bookTicker, 5 % markPrice, 3 % kline. Medians of {rounds} rounds in turns.",
        "The first row shows that the sender is not the bottleneck of the others.",
    ]
    if importlib.util.find_spec("websockets"):
        receivers["websockets + json"] = _receive_with_websockets
    else:
        notes.append("websockets + json: not measured, for `websockets` is not installed (extra [bench]).")

    rates: dict[str, list[float]] = {name: [] for name in receivers}
    cpu_us: dict[str, list[float]] = {name: [] for name in receivers}
    with sender("bench.sender", symbols) as (port,):
        say(f"{symbols} symbols: finding out how many messages make a round")
        counts = {}
        for name, receive in receivers.items():
            rate, _ = _measure(receive, port, round(20_000 * min(1.0, seconds)) + 1000)
            rate, _ = _measure(receive, port, max(1000, round(rate * seconds / 4)))
            counts[name] = max(1000, round(rate * seconds))
        for number in range(rounds):
            for name, receive in receivers.items():
                say(f"{symbols} symbols, round {number + 1} of {rounds}: {name}")
                parts = ours.get(name)
                before = parts.router.total if parts is not None else 0
                rate, cpu = _measure(receive, port, counts[name])
                rates[name].append(rate)
                cpu_us[name].append(cpu)
                if parts is not None:
                    check_routed(parts, parts.router.total - before, counts[name])
    base = statistics.median(rates[TYPED])
    return Table(
        f"Messages over a socket, {symbols} symbols",
        ("receiver", "k msg/s", "of typed", "CPU µs/msg", "slowest", "fastest"),
        [
            (
                name,
                statistics.median(rates[name]) / 1000,
                round(statistics.median(rates[name]) / base, 3),
                round(statistics.median(cpu_us[name]), 3),
                min(rates[name]) / 1000,
                max(rates[name]) / 1000,
            )
            for name in receivers
        ],
        tuple(notes),
    )


def _measure(receive: Receiver, port: int, messages: int) -> tuple[float, float]:
    """Messages a second by the wall, from connecting to the server's close, and CPU µs a message."""

    async def main(stop: asyncio.Event) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        async with asyncio.timeout(CONNECTION_LIMIT_S):
            await receive(f"ws://127.0.0.1:{port}/{messages}")
        return time.perf_counter() - wall, time.process_time() - cpu

    wall_s, cpu_s = run_loop(main)
    return messages / wall_s, cpu_s / messages * 1e6


async def _receive_bytes(url: str) -> None:
    address, _, path = url.removeprefix("ws://").partition("/")
    host, _, port = address.partition(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(f"GET /{path} HTTP/1.1\r\nSec-WebSocket-Key: eA==\r\n\r\n".encode())
        buffer = bytearray(1 << 20)
        while client.recv_into(buffer):  # blocks the loop, which has nothing else to do
            pass


_TEXT = WSMsgType.TEXT


class _Empty(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        pass


class _Typed(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is _TEXT:
            decode_plain(frame.get_payload_as_memoryview())


async def _receive_with_picows(url: str, listener: Callable[[], WSListener]) -> None:
    transport, _ = await ws_connect(listener, url)
    await transport.wait_disconnected()


async def _receive_with_websockets(url: str) -> None:
    from websockets.asyncio.client import connect

    loads = json.loads
    async with connect(url, compression=None, ping_interval=None) as connection:
        async for text in connection:
            loads(text)


async def _receive_with_perpline(url: str, parts: Parts) -> None:
    connection = make_connection(url, parts, parts.router.route_batch)
    running = asyncio.create_task(connection.run())
    while not connection.losses:  # noqa: ASYNC110 - it says so to nobody, and a hook would be in the way of the figure
        await asyncio.sleep(0.002)
    running.cancel()


def make_connection(url: str, parts: Parts, on_messages: OnMessages) -> Connection:
    """A connection with every stream of every symbol."""
    return Connection(
        name="bench",
        url=url,
        streams=[endpoints.stream_name(symbol, kind) for symbol in parts.symbols for kind in STREAM_TYPES],
        on_messages=on_messages,
        subscribe_request=endpoints.subscribe_request,
        unsubscribe_request=endpoints.unsubscribe_request,
        clock=parts.clock,
        rng=random.Random(0),
    )


def check_routed(parts: Parts, heard: int, sent: int) -> None:
    """A fast router that lost something would be no news: everything was counted, and the caches can be read.

    Of 600 symbols the least active may not come in a round."""
    router = parts.router
    unread = [symbol for symbol in parts.symbols if parts.books.get(symbol) is None]
    for symbol in parts.symbols:
        for interval in INTERVAL_MS:
            parts.klines.get(symbol, interval)  # which counts it, if it is malformed
    if (
        heard != sent
        or router.malformed
        or router.failed
        or router.unhandled
        or (sent > 100_000 and len(unread) > len(parts.symbols) // 10)
    ):
        raise RuntimeError(
            f"of {sent} messages {heard} were heard; malformed {router.malformed}, failed {router.failed}, "
            f"unhandled {router.unhandled}; no book of {unread[:3]}"
        )


# ---- in one process, without a socket ----


def _in_process(symbols: int, blocks: int, folder: Path, say: Callable[[str], None]) -> Table:
    """Every step over the same prepared payloads, a block of each in turns, each time with later times and ids."""
    tape = Tape(symbols)
    whole, handlers_only = make_bench_parts(symbols, folder), make_bench_parts(symbols, folder)
    decode_bounded = msgspec.json.Decoder(Combined, strict=False).decode
    watch = FieldWatch()
    now_us = whole.clock.now_us
    route_one = whole.router.route
    handlers: dict[str, Callable[[Any], None]] = {
        "BookTicker": handlers_only.books.handle,
        "MarkPrice": handlers_only.marks.handle,
        "KlineUpdate": handlers_only.klines.handle,
    }

    def plain(payloads: list[bytes]) -> float:
        return _time(decode_plain, payloads)

    def bounded(payloads: list[bytes]) -> float:
        return _time(decode_bounded, payloads)

    def standard(payloads: list[bytes]) -> float:
        return _time(json.loads, payloads)

    def decoding(payloads: list[bytes]) -> float:
        started = time.thread_time()
        for payload in payloads:
            decode(payload, 1)
        return time.thread_time() - started

    def handling(payloads: list[bytes]) -> float:
        contents = [decode(payload, now_us()).content for payload in payloads]
        work = [(handlers[type(content).__name__], content) for content in contents]
        started = time.thread_time()
        for handle, content in work:
            handle(content)
        return time.thread_time() - started

    def watching(payloads: list[bytes]) -> float:
        return _time(watch.see, payloads)

    def routing(payloads: list[bytes]) -> float:
        started = time.thread_time()
        for payload in payloads:
            route_one(payload, now_us())
        return time.thread_time() - started

    typed = "msgspec typed"
    steps: dict[str, Callable[[list[bytes]], float]] = {
        "json.loads": standard,
        typed: plain,
        "perpline: decode, route, cache": routing,
        "of it: msgspec with bounds on every number": bounded,
        "of it: decode() to our events": decoding,
        "of it: handlers, caches, minute rows": handling,
        "of it: watch for unknown fields": watching,
    }
    us: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for block in range(blocks):
        say(f"{symbols} symbols, in process: block {block + 1} of {blocks}")
        tape.turn_to(block)
        payloads = tape.payloads()
        turn = block % len(names)  # nobody is always the first to touch the bytes
        for name in names[turn:] + names[:turn]:
            us[name].append(steps[name](payloads) / BLOCK * 1e6)
    check_routed(whole, whole.router.total, blocks * BLOCK)
    base = statistics.median(us[typed])
    return Table(
        f"The same in one process, {symbols} symbols",
        ("step", "µs/msg", "k msg/s", "of typed"),
        [
            (name, round(median, 3), 1000 / median, round(base / median, 3))
            for name in names
            for median in [statistics.median(us[name])]
        ],
        (
            f"Medians of {blocks} blocks of {BLOCK:,} messages in turns, {tape.mean_bytes:.0f} bytes on average; "
            "time of the thread, so that a busy machine counts less.",
        ),
    )


def _time(function: Callable[[bytes], object], payloads: list[bytes]) -> float:
    started = time.thread_time()
    for payload in payloads:
        function(payload)
    return time.thread_time() - started
