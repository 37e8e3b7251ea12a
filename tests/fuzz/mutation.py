"""Our own mutator, seeded: what a fuzzer does to inputs, for tests that must give the same result every time."""

import random
from collections.abc import Sequence

TOKENS = (
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"-0", b"-1", b"0", b"1e-400", b"9" * 40, b"-" + b"9" * 40,
    b"18446744073709551616", b"9223372036854775807", b"-9223372036854775809", b"2147483648", b"1.5", b"null", b"true",
    b'""', b'"\\ud800"', b'"\\u0000"', b"\x00", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc3\x28", b"[]", b"{}", b"[" * 600,
    b'{"a":' * 400, b'"' + b"A" * 5000 + b'"', '"币安人生"'.encode(), '"\u202e"'.encode(), b'"../../etc/passwd"', b",",
    b'"e":"kline",', b'"x":true,', b"\n", b"\r\n", b"%s%n", b"\x1b[2J", b"1_000", b"0x10", b" ", b"'", b"=", b"#",
)  # fmt: skip
"""What readers of numbers, texts and structures stumble over."""


def mutated(rng: random.Random, seeds: Sequence[bytes], most: int = 1 << 16) -> bytes:
    """One of the seeds after one to six changes: bits, cuts, tokens, repeats, pieces of others."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        _CHANGES[rng.randrange(len(_CHANGES))](rng, data, seeds)
    return bytes(data[:most])


def _flip(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _byte(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.randrange(256)


def _cut(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _drop(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    start = rng.randrange(len(data) + 1)
    del data[start : start + rng.randrange(1, 30)]


def _token(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice(TOKENS)


def _number(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    """A number, or a whole value between separators, becomes something else."""
    marks = [at for at, byte in enumerate(data) if byte in b':,[="']
    if marks:
        start = rng.choice(marks) + 1
        end = next((at for at in range(start, len(data)) if data[at] in b',]}"\n'), len(data))
        data[start:end] = rng.choice(TOKENS)


def _twice(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    start = rng.randrange(len(data) + 1)
    piece = data[start : start + rng.randrange(1, 80)]
    data[start:start] = piece * rng.choice((1, 1, 2, 40))


def _splice(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    other = rng.choice(seeds)
    start = rng.randrange(len(data) + 1)
    data[start:] = other[rng.randrange(len(other) + 1) :]


_CHANGES = (_flip, _byte, _cut, _drop, _token, _token, _number, _number, _number, _twice, _splice)
