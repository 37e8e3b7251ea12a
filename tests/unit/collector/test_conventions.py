"""L4 of features.md: what the labels of metrics rows mean is found out from the rows, or the day is not believed."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from perpline.collector.archives import find, read
from perpline.collector.conventions import PERIOD_MS, Evidence, by_price, convention

MINUTE = 60_000
DAY = 1_782_172_800_000
DATA = Path(__file__).parents[3] / ".." / "shared" / "data"


class Day:
    """A day of a market with what its exchange says of it. Labels are ends of periods."""

    def __init__(self, seed: int, *, volatility: float = 4e-4, basis: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        self.open_time = DAY - 10 * MINUTE + np.arange(1460) * MINUTE
        self.close = 100 * np.exp(np.cumsum(rng.normal(0, volatility, 1460)))
        self.volume = rng.lognormal(3, 1, 1460)
        self.bought = self.volume * rng.uniform(0.3, 0.7, 1460)
        self.label = DAY + np.arange(288) * PERIOD_MS
        at = (self.label - self.open_time[0]) // MINUTE - 1
        noise = rng.normal(0, 1e-4, 288)
        self.implied = self.close[at] * np.exp(basis + noise)
        bought, volume = (np.add.reduceat(values[5:], np.arange(0, 1440, 5)) for values in (self.bought, self.volume))
        self.taker = np.round(bought / (volume - bought), 8)

    def evidence(self, shift: int = 0, **other: np.ndarray) -> Evidence:
        """`shift`: how much earlier the labels are."""
        taker, implied = other.get("taker", self.taker), other.get("implied", self.implied)
        bought = other.get("bought", self.bought)
        return convention(
            self.label - shift,
            implied,
            taker,
            (self.open_time + MINUTE, self.close),
            (self.open_time, self.volume, bought),
        )


NOTHING = np.full(288, np.nan)


@pytest.mark.parametrize("seed", range(20))
def test_both_witnesses_tell_ends_from_beginnings(seed: int) -> None:
    day = Day(seed)

    ends, starts = day.evidence(), day.evidence(shift=PERIOD_MS)

    assert (ends.verdict, ends.price, ends.flow) == ("end", "end", "end")
    assert (starts.verdict, starts.price, starts.flow) == ("start", "start", "start")


@pytest.mark.parametrize("seed", range(20))
def test_the_price_alone_is_enough_whatever_the_mark_price_lies_beside_the_last(seed: int) -> None:
    day = Day(seed, basis=(seed - 10) * 1e-3)
    no_flow = np.full(1460, np.nan)

    assert day.evidence(bought=no_flow).verdict == "end"
    assert day.evidence(shift=PERIOD_MS, bought=no_flow).verdict == "start"
    assert day.evidence(bought=no_flow).flow_rows == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_flow_alone_is_enough_where_the_price_stands_still(seed: int) -> None:
    calm = Day(seed, volatility=1e-6)

    assert calm.evidence().verdict == "end"
    assert calm.evidence(shift=PERIOD_MS).verdict == "start"
    assert calm.evidence().price_rows < 12


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_day_of_both_conventions_is_not_believed(share: float) -> None:
    day = Day(3)
    change = int(288 * share)
    mixed_implied, mixed_taker = day.implied.copy(), day.taker.copy()
    # From the change on a row says what happens in the five minutes after its label.
    mixed_implied[change:-1], mixed_taker[change:-1] = day.implied[change + 1 :], day.taker[change + 1 :]

    assert day.evidence(implied=mixed_implied, taker=mixed_taker).verdict == "unknown"


def test_witnesses_that_contradict_each_other_are_not_believed() -> None:
    day = Day(3)
    shifted = np.concatenate((day.taker[1:], [np.nan]))

    found = day.evidence(taker=shifted)

    assert (found.price, found.flow, found.verdict) == ("end", "start", "unknown")


def test_without_candles_nothing_is_proved() -> None:
    day = Day(3)
    none = np.array([], dtype=np.int64)

    found = convention(day.label, day.implied, day.taker, (none, NOTHING[:0]), (none, NOTHING[:0], NOTHING[:0]))

    assert found == Evidence("unknown", "unknown", 0, "unknown", 0)


def test_rows_without_values_are_no_witnesses() -> None:
    day = Day(3)
    implied, taker = day.implied.copy(), day.taker.copy()
    implied[::2], taker[1::2] = np.nan, np.nan

    assert day.evidence(implied=implied, taker=taker).verdict == "end"
    assert day.evidence(implied=NOTHING, taker=NOTHING).verdict == "unknown"


def test_the_labels_of_the_real_file_of_2024_01_01_are_ends() -> None:
    """Its own day has no 1m candles here; the 4h candles of the month tell the price at six of its instants."""
    metrics, candles = DATA / "metrics-5m", DATA / "funding-oi" / "btcusdt-history" / "BTCUSDT-4h-2024-01.zip"
    if not candles.exists() or not metrics.exists():
        pytest.skip("the shared recordings are not beside this repository")
    rows = read(find([metrics], "metrics").files[0])
    with zipfile.ZipFile(candles) as archive:
        klines = np.loadtxt(io.BytesIO(archive.read(archive.namelist()[0])), delimiter=",", skiprows=1)
    label, implied = rows.columns["label"], rows.columns["open_interest_value"] / rows.columns["open_interest"]
    opens, price = klines[:, 0].astype(np.int64), klines[:, 1]

    assert (len(label), rows.invalid) == (288, 0)
    boundaries = [label.tolist().index(time) for time in opens.tolist() if label[0] <= time <= label[-1]]
    at = np.array(boundaries)
    known = price[np.searchsorted(opens, label[at])]
    assert np.abs(implied[at] / known - 1).max() < 2e-4
    assert by_price(label, implied, opens, price, witnesses=2)[0] == "end"
    assert by_price(label - PERIOD_MS, implied, opens, price, witnesses=2)[0] == "start"
