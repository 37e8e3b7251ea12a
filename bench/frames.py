"""Frames as the exchange sends them in 2026 (combined form), for senders that must never wait for one."""

import random
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from perpline.domain.candle import INTERVAL_MS

BLOCK = 10_000
"""Messages of a tape before it repeats, with later times and higher ids."""
MIX = {"bookTicker": 0.92, "markPrice": 0.05, "kline": 0.03}

_START_MS = 1_790_769_600_000 // 3_600_000 * 3_600_000
_LISTED = (
    "BTC ETH SOL XRP DOGE BNB ADA SUI LINK AVAX LTC TRX DOT BCH UNI NEAR APT ARB OP FIL ETC INJ ATOM AAVE TIA SEI ICP "
    "1000PEPE WLD HBAR"
).split()


def symbol_names(count: int) -> list[str]:
    """Names of the lengths that real ones have: the thirty most traded, then made-up ones."""
    rng = random.Random(count)
    names = dict.fromkeys(f"{base}USDT" for base in _LISTED[:count])
    while len(names) < count:
        base = "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=rng.choice((3, 4, 4, 5))))
        names[f"{base}USDT"] = None
    return list(names)


def book_ticker_frame(symbol: str, event_time: int, update_id: int, price: float, rng: random.Random) -> bytes:
    bid, ask = f"{price:.4f}", f"{price * 1.0001:.4f}"
    quantities = f"{rng.uniform(0.001, 900):.3f}", f"{rng.uniform(0.001, 900):.3f}"
    return (
        f'{{"stream":"{symbol.lower()}@bookTicker","data":{{"e":"bookTicker","u":{update_id},"s":"{symbol}",'
        f'"ps":"{symbol}","b":"{bid}","B":"{quantities[0]}","a":"{ask}","A":"{quantities[1]}",'
        f'"T":{event_time},"E":{event_time},"st":1}}}}'
    ).encode()


def mark_price_frame(symbol: str, event_time: int, price: float) -> bytes:
    return (
        f'{{"stream":"{symbol.lower()}@markPrice@1s","data":{{"e":"markPriceUpdate","E":{event_time},"s":"{symbol}",'
        f'"p":"{price:.8f}","ap":"{price:.8f}","P":"{price * 1.001:.8f}","i":"{price * 1.0005:.8f}",'
        f'"r":"0.00008900","T":{event_time - event_time % 28_800_000 + 28_800_000},"st":1}}}}'
    ).encode()


def kline_frame(
    symbol: str,
    interval: str,
    event_time: int,
    open_time: int,
    prices: tuple[float, float],
    bought: float,
    closed: bool,
) -> bytes:
    """A candle from `prices[0]` to `prices[1]` of which takers bought the share `bought`."""
    opened, close = prices
    volume = 100 + opened % 37
    return (
        f'{{"stream":"{symbol.lower()}@kline_{interval}","data":{{"e":"kline","E":{event_time},"s":"{symbol}","k":{{'
        f'"t":{open_time},"T":{open_time + INTERVAL_MS[interval] - 1},"s":"{symbol}","i":"{interval}",'
        f'"f":8132503391,"L":8132505633,"o":"{opened:.4f}","c":"{close:.4f}","h":"{max(prices) * 1.0003:.4f}",'
        f'"l":"{min(prices) * 0.9997:.4f}","v":"{volume:.3f}","n":2239,"x":{str(closed).lower()},'
        f'"q":"{volume * close:.5f}","V":"{volume * bought:.3f}","Q":"{volume * bought * close:.5f}","B":"0"}}}}}}'
    ).encode()


class Tape:
    """A block of `BLOCK` messages in the proportions of `MIX` that can be sent again and again.

    `turn_to(block)` moves every time and id on, so that no receiver may take a frame for a repeat, by writing only the
    digits that change. A block lasts 10 s of market time (1,000 messages a second), above 100 symbols 1 s.
    `wire` is the block as a server sends it, frame headers included.
    """

    def __init__(self, symbols: int, seed: int = 1) -> None:
        rng = random.Random(seed)
        self.symbols = symbol_names(symbols)
        self.span_ms = 10_000 if symbols <= 100 else 1_000
        self.prices = {symbol: 10 ** rng.uniform(-1, 4.8) for symbol in self.symbols}
        payloads = self._payloads(rng)
        parts: list[bytes] = []
        self._starts: list[int] = []
        end = 0
        for payload in payloads:
            header = b"\x81\x7e" + len(payload).to_bytes(2, "big")  # final text frame with a length of 16 bits
            parts += (header, payload)
            self._starts.append(end + len(header))
            end += len(header) + len(payload)
        self._lengths = [len(payload) for payload in payloads]
        self.wire: NDArray[np.uint8] = np.frombuffer(bytearray(b"".join(parts)), np.uint8)
        self._digits = self._find_digits(payloads)
        self.update_id_at = [
            start + payload.index(b'"u":') + 4 if b"@bookTicker" in payload else None
            for start, payload in zip(self._starts, payloads, strict=True)
        ]
        """Where in `wire` the update id of each message begins, 14 digits; None for what is no book ticker."""
        self.mean_bytes = sum(self._lengths) / len(payloads)

    def turn_to(self, block: int) -> None:
        for digits in self._digits:
            digits.write(self.wire, block)

    def payloads(self) -> list[bytes]:
        """The messages of the present block, without frame headers."""
        wire = self.wire.tobytes()
        return [wire[start : start + length] for start, length in zip(self._starts, self._lengths, strict=True)]

    def sent_before(self, messages: int) -> int:
        """Bytes of `wire` that come before message number `messages` of the block."""
        return self._starts[messages] - 4 if messages < len(self._starts) else len(self.wire)

    def block_at(self, market_ms: int) -> int:
        """The block in which this market time lies."""
        return (market_ms - _START_MS) // self.span_ms

    def _payloads(self, rng: random.Random) -> list[bytes]:
        counts = {kind: round(BLOCK * share) for kind, share in MIX.items()}
        kinds = [kind for kind, count in counts.items() for _ in range(count)]
        rng.shuffle(kinds)
        weights = [1 / (rank + 3) for rank in range(len(self.symbols))]
        drawn = rng.choices(self.symbols, weights, k=BLOCK)
        payloads = []
        for number, (kind, symbol) in enumerate(zip(kinds, drawn, strict=True)):
            event_time = _START_MS + number * self.span_ms // BLOCK
            price = self.prices[symbol] * rng.uniform(0.999, 1.001)
            if kind == "bookTicker":
                payloads.append(book_ticker_frame(symbol, event_time, _update_ids(0) * 100_000 + number, price, rng))
            elif kind == "markPrice":
                payloads.append(mark_price_frame(self.symbols[number % len(self.symbols)], event_time, price))
            else:
                interval = rng.choice(list(INTERVAL_MS))
                prices = price, price * rng.uniform(0.999, 1.001)
                payloads.append(kline_frame(symbol, interval, event_time, _START_MS, prices, rng.random(), False))
        return payloads

    def _find_digits(self, payloads: list[bytes]) -> list["_Digits"]:
        moving = 13 - len(str(self.span_ms)) + 1  # digits of a time that a whole block has in common

        def positions(kind: bytes, name: bytes) -> NDArray[np.int64]:
            found = [
                start + payload.index(b'"' + name + b'":') + len(name) + 3
                for start, payload in zip(self._starts, payloads, strict=True)
                if kind in payload
            ]
            return np.array(found, np.int64)

        def time_of(length: int, last: bool) -> Callable[[int], str]:
            def text(block: int) -> str:
                opened = self._start(block) // length * length
                return str(opened + length - 1 if last else opened)

            return text

        digits = [
            _Digits(positions(b'"E":', b"E"), lambda block: str(self._start(block))[:moving]),
            _Digits(positions(b"@bookTicker", b"T"), lambda block: str(self._start(block))[:moving]),
            _Digits(positions(b"@bookTicker", b"u"), lambda block: str(_update_ids(block))),
        ]
        for interval, length in INTERVAL_MS.items():
            stream = f"@kline_{interval}".encode()
            digits.append(_Digits(positions(stream, b"t"), time_of(length, last=False)))
            digits.append(_Digits(positions(stream, b"T"), time_of(length, last=True)))
        return digits

    def _start(self, block: int) -> int:
        return _START_MS + block * self.span_ms


class _Digits:
    """A number that stands at many places of a block, and changes from block to block."""

    def __init__(self, positions: NDArray[np.int64], text: Callable[[int], str]) -> None:
        self._positions = positions
        self._text = text
        self._written = text(0)

    def write(self, wire: NDArray[np.uint8], block: int) -> None:
        new = self._text(block)
        for place, (before, after) in enumerate(zip(self._written, new, strict=True)):
            if before != after:
                wire[self._positions + place] = ord(after)
        self._written = new


def _update_ids(block: int) -> int:
    return 116_000_000 + block
