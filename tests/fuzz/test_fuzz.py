"""Nothing that comes from outside crashes, hangs or grows without bound: only perpline's own errors come out.

Every run gives each target its corpus and mutations of it, from a seed of the day that is printed when something fails;
with `--full` a minute of them. `python tests/fuzz/hunt.py TARGET` goes on for as long as one likes, under atheris where
it is installed.
"""

import random
import time
from datetime import UTC, datetime

import pytest
from mutation import mutated
from targets import TARGETS, quiet, seeds

MOST_S = 2.0
"""CPU seconds of one input."""
SECONDS = {"packed_archives": 0.6, "model_folders": 0.8}


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_in_only_our_own_errors_come_out(name: str) -> None:
    hunt(name, SECONDS.get(name, 0.4), int(datetime.now(UTC).strftime("%Y%m%d")))


@pytest.mark.full
@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_in_for_a_minute_only_our_own_errors_come_out(name: str) -> None:
    hunt(name, 60.0, time.time_ns())


def hunt(name: str, seconds: float, seed: int) -> int:
    """Give the target its seeds, then mutations for so many CPU seconds; returns how many inputs."""
    rng, target, known = random.Random(f"{name} {seed}"), TARGETS[name], seeds(name)
    inputs = 0
    with quiet():
        for data in known:
            _try(name, target, data, seed)
        until = time.process_time() + seconds
        while time.process_time() < until:
            _try(name, target, mutated(rng, known), seed)
            inputs += 1
    return inputs


def _try(name: str, target, data: bytes, seed: int) -> None:  # type: ignore[no-untyped-def]
    began = time.process_time()
    try:
        target(data)
    except Exception as error:
        shown = data if len(data) < 2000 else data[:2000] + b"..."
        raise AssertionError(f"{name} (seed {seed}) let {type(error).__name__} out for {shown!r}") from error
    took = time.process_time() - began
    assert took < MOST_S, f"{name} (seed {seed}) took {took:.1f} s for {data[:300]!r}"
