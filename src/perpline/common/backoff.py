"""How long to wait after the n-th failure in a row."""

import random


def backoff_s(failures: int, rng: random.Random, cap_s: float = 60.0) -> float:
    """Seconds to wait after `failures` failures in a row: min(2**failures, cap) times a jitter of 0.5 to 1.

    0 for no failure. The jitter keeps many connections that fell together from coming back together.
    """
    if failures <= 0:
        return 0.0
    return float(min(2.0 ** min(failures, 32), cap_s)) * rng.uniform(0.5, 1.0)
