import math
import random
import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpline.domain.candle import Candle, quantised_log
from perpline.features.catalogue import CATALOGUE
from perpline.features.live import LiveFeatures

NAMES = [feature.name for feature in CATALOGUE]
MINUTE = 60_000
START = 1_790_000_040_000 // MINUTE * MINUTE


def candle(symbol: str, minute: int, close: float, volume: float, bought: float, interval: str = "1m") -> Candle:
    log = quantised_log(close)
    quote = volume * close
    return Candle(
        interval=interval,
        symbol=symbol,
        open_time=START + minute * MINUTE,
        close_time=START + (minute + 1) * MINUTE - 1,
        open=close,
        high=close,
        low=close,
        close=close,
        volume=volume,
        quote_volume=quote,
        trades=int(volume > 0),
        taker_buy_volume=bought,
        taker_buy_quote_volume=bought * close,
        log_open=log,
        log_high=log,
        log_low=log,
        log_close=log,
        synthetic=False,
        source="ws",
        received_at=0,
    )


def market(seed: int, minutes: int, symbol: str = "BTCUSDT", steady: bool = False) -> list[Candle]:
    """A walk; unless steady with calm and wild stretches, minutes without trades, flat stretches and some crashes."""
    rng = random.Random(seed)
    price, step, flat = math.exp(rng.uniform(-12, 11)), 1e-3, False
    candles = []
    for minute in range(minutes):
        if steady:
            price *= math.exp(rng.gauss(0, step))
            volume = round(1 + rng.expovariate(1 / 1000), 3)
            candles.append(candle(symbol, minute, price, volume, round(volume * rng.random(), 3)))
            continue
        if rng.random() < 0.02:
            step, flat = 10 ** rng.uniform(-6, -1.5), rng.random() < 0.3
        if not flat:
            price *= math.exp(rng.gauss(0, step) + (rng.random() < 0.003) * rng.choice([-0.5, 0.5]))
        volume = 0.0 if flat or rng.random() < 0.1 else round(rng.expovariate(1 / 1000), 3)
        candles.append(candle(symbol, minute, price, volume, round(volume * rng.random(), 3)))
    return candles


def fed(candles: list[Candle]) -> LiveFeatures:
    live = LiveFeatures(["ETHUSDT", "BTCUSDT"])
    for one in candles:
        live.add(one)
    return live


def bits(live: LiveFeatures) -> bytes:
    return live.vectors(["BTCUSDT"]).tobytes()


def named(live: LiveFeatures) -> dict[str, float]:
    return dict(zip(NAMES, live.vectors(["BTCUSDT"])[0].tolist(), strict=True))


def oracle(candles: list[Candle]) -> dict[str, float]:
    """The catalogue's formulas once more, in plain Python over whole lists, newest first, written from their table."""
    logs = [one.log_close for one in reversed(candles)]
    k = [max(-(2**28), min(2**28, now - before)) for now, before in pairwise(logs)]
    v = [round(one.volume * 1000) for one in reversed(candles)]
    b = [round(one.taker_buy_volume * 1000) for one in reversed(candles)]
    q = [round(one.quote_volume * 100) for one in reversed(candles)]
    f = [2 * bought - all_of_it for bought, all_of_it in zip(b, v, strict=True)]

    def sigma(w: int) -> float:
        return math.sqrt(sum((x >> 5) ** 2 for x in k[:w]) / w) / 2**25

    def ratio(a: float, c: float) -> float:
        return a / c if c else (0.0 if a == 0 else math.nan)

    def log(x: float) -> float:
        return math.log(x) if x > 0 else math.nan

    def clip(x: float, bound: float) -> float:
        return x if math.isnan(x) else max(-bound, min(bound, x))

    def mean(x: list[int], w: int) -> float:
        return sum(x[:w]) / w

    return {
        **{f"ret_{w}": sum(k[:w]) / 2**30 for w in (1, 5, 15)},
        **{f"zret_{w}": clip(ratio(sum(k[:w]) / 2**30, sigma(240) * w**0.5), 8) for w in (5, 15)},
        "eff_60": ratio(abs(sum(k[:60])), sum(abs(x) for x in k[:60])),
        **{f"rv_{w}": math.log(sigma(w) + 1e-6) for w in (15, 60)},
        "rvr_15_240": clip(log(ratio(sigma(15), sigma(240))), 5),
        "vlr_1_60": clip(math.log((q[0] + 1) / (mean(q, 60) + 1)), 5),
        "vlr_15_240": clip(math.log((mean(q, 15) + 1) / (mean(q, 240) + 1)), 5),
        **{f"tbi_{w}": ratio(sum(f[:w]), sum(v[:w])) for w in (5, 15, 60)},
    }


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9), minutes=st.integers(241, 330))
def test_every_feature_is_what_its_formula_says(seed: int, minutes: int) -> None:
    candles = market(seed, minutes)

    assert named(fed(candles)) == pytest.approx(oracle(candles), rel=1e-9, abs=1e-12, nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9), data=st.data())
def test_a_vector_has_the_same_bits_wherever_the_process_started(seed: int, data: st.DataObject) -> None:
    candles = market(seed, 800)
    start = data.draw(st.integers(0, 800 - LiveFeatures.lookback_min))

    assert bits(fed(candles[start:])) == bits(fed(candles))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**9), count=st.integers(1, 9))
def test_a_symbol_has_the_same_bits_alone_and_in_company(seed: int, count: int) -> None:
    names = [f"S{n}" for n in range(count)]
    live = LiveFeatures(names)
    for number, name in enumerate(names):
        # Not all have closed the same minute yet: the windows of one call end at different times.
        for one in market(seed + number, 260 + number, name):
            live.add(one)

    together = live.vectors(names[::-1])[::-1]

    assert [row.tobytes() for row in together] == [live.vectors([name])[0].tobytes() for name in names]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**9), lag=st.integers(0, 245))
def test_a_feature_sees_exactly_as_far_back_as_it_declares(seed: int, lag: int) -> None:
    candles = market(seed, 300)
    changed = list(candles)
    old = candles[-1 - lag]
    changed[-1 - lag] = candle(
        "BTCUSDT", 299 - lag, old.close * 1.01, old.volume + 7, old.taker_buy_volume + (lag % 2) * 7
    )

    before, after = named(fed(candles)), named(fed(changed))

    moved = {name for name in NAMES if struct.pack("d", before[name]) != struct.pack("d", after[name])}
    assert moved <= {feature.name for feature in CATALOGUE if feature.lookback_min > lag}


def test_each_feature_moves_with_the_oldest_minute_it_declares() -> None:
    candles = market(5, 300, steady=True)
    for feature in CATALOGUE:
        at = len(candles) - feature.lookback_min
        old = candles[at]
        changed = list(candles)
        changed[at] = candle("BTCUSDT", at, old.close * 1.01, old.volume + 70, old.taker_buy_volume + 70)

        assert named(fed(changed))[feature.name] != named(fed(candles))[feature.name], feature.name


@pytest.mark.parametrize("held", [0, 1, 2, 5, 15, 16, 60, 61, 239, 240, 241])
def test_a_feature_has_no_value_before_its_whole_window_is_held(held: int) -> None:
    live = fed(market(3, held, steady=True))

    assert live.held("BTCUSDT") == held
    assert {name for name, value in named(live).items() if not math.isnan(value)} == {
        feature.name for feature in CATALOGUE if feature.lookback_min <= held
    }


def test_a_hole_restarts_the_window_and_is_remembered_until_the_window_is_whole_again() -> None:
    candles = market(4, 600)
    live = fed(candles[:300])
    assert not live.broken_by_gap("BTCUSDT")

    for one in candles[301:]:
        live.add(one)
        held = (one.open_time - candles[300].open_time) // MINUTE
        if held <= 241:
            assert live.held("BTCUSDT") == held
            assert live.broken_by_gap("BTCUSDT") == (held < 241)

    assert bits(live) == bits(fed(candles))


def test_a_short_window_at_the_start_is_no_gap() -> None:
    live = fed(market(4, 10))

    assert (live.held("BTCUSDT"), live.broken_by_gap("BTCUSDT")) == (10, False)


@pytest.mark.parametrize("again", [9, 8, 0])
def test_a_candle_that_is_not_later_is_a_bug(again: int) -> None:
    candles = market(4, 10)
    live = fed(candles)
    before = bits(live)

    with pytest.raises(ValueError, match="BTCUSDT: candle"):
        live.add(candles[again])
    assert bits(live) == before


def test_a_candle_of_another_interval_or_symbol_is_a_bug() -> None:
    live = fed([])

    with pytest.raises(ValueError, match="15m"):
        live.add(candle("BTCUSDT", 0, 1.0, 1.0, 0.5, interval="15m"))
    with pytest.raises(KeyError):
        live.add(candle("DOGEUSDT", 0, 1.0, 1.0, 0.5))


def test_the_newest_candle_is_known_by_its_open_time() -> None:
    live = fed(market(4, 10))

    assert live.last_open("BTCUSDT") == START + 9 * MINUTE
    assert live.last_open("ETHUSDT") is None


def test_a_market_that_does_not_move_or_trade_has_zeros_and_gaps_but_nothing_infinite() -> None:
    vector = named(fed([candle("BTCUSDT", minute, 100.0, 0.0, 0.0) for minute in range(300)]))

    assert {name for name, value in vector.items() if math.isnan(value)} == {"rvr_15_240"}
    assert {name for name, value in vector.items() if value == 0} == set(NAMES) - {"rv_15", "rv_60", "rvr_15_240"}


def test_a_calm_quarter_of_an_hour_in_a_lively_market_has_no_volatility_ratio() -> None:
    candles = market(7, 285) + [candle("BTCUSDT", minute, 50.0, 1.0, 0.5) for minute in range(285, 301)]

    assert math.isnan(named(fed(candles))["rvr_15_240"])


def test_volumes_beyond_any_market_neither_overflow_nor_warn() -> None:
    vector = named(fed([candle("BTCUSDT", minute, 1e-7, 1e17, 1e17) for minute in range(300)]))

    assert vector["tbi_60"] == 1.0
    assert vector["vlr_15_240"] == 0.0


def test_no_symbols_make_no_rows() -> None:
    assert fed([]).vectors([]).shape == (0, len(CATALOGUE))


def test_vectors_are_double_precision_and_bounded_by_their_clips() -> None:
    vectors = fed(market(11, 300)).vectors(["BTCUSDT"])

    assert vectors.dtype == np.float64
    for value, feature in zip(vectors[0], CATALOGUE, strict=True):
        low, high = feature.clip or (-math.inf, math.inf)
        assert math.isnan(value) or low <= value <= high
