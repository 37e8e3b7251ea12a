import math
import random
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.dispatcher import Dispatcher
from numpy.typing import NDArray

from perpline.domain.candle import Candle
from perpline.features import kernel
from perpline.features.batch import LOOKBACK_MIN, vectors_of
from perpline.features.catalogue import CATALOGUE, COLUMN, LATE_BITS, SCHEMAS, by_name, columns_of, late_bits
from perpline.features.live import LiveFeatures, compile_kernel
from perpline.storage.history import SymbolHistory
from perpline.storage.store import TABLES, Row
from worlds import MINUTE, START, candle, candles_of, until, world

NAMES = [feature.name for feature in CATALOGUE]
CROSS = [column for column, feature in enumerate(CATALOGUE) if feature.group == "K"]
SHORT = SCHEMAS["candles_day"]


def test_the_volatility_of_a_symbol_is_the_one_that_the_features_tell() -> None:
    features = LiveFeatures(["BTCUSDT"], 241)
    draw = random.Random(1)
    for minute in range(241):
        assert features.volatility("BTCUSDT", 240) is None
        features.add(plain(minute, 100.0 + draw.uniform(-1, 1)))

    told = features.vectors(["BTCUSDT"])[0, COLUMN["rv_240"]]
    assert features.volatility("BTCUSDT", 240) == pytest.approx(math.exp(told) - 1e-6, rel=1e-5)
    assert features.volatility("NOSUCH", 240) is None


def plain(minute: int, close: float = 100.0, volume: float = 0.0, bought: float = 0.0) -> Candle:
    log = math.floor(math.log(close) * 2**30 + 0.5)
    prices = dict.fromkeys(("open", "high", "low", "close"), close)
    logs = dict.fromkeys(("log_open", "log_high", "log_low", "log_close"), log)
    return candle(
        "BTCUSDT",
        START + minute * MINUTE,
        **prices,
        **logs,
        volume=volume,
        quote_volume=volume * close,
        taker_buy_volume=bought,
        trades=int(volume > 0),
        synthetic=False,
    )


def other_rows(history: SymbolHistory) -> list[tuple[int, str, Row]]:
    """(when it arrives, table, row as the store has it) of everything but candles, as if it came when it is known."""
    found: list[tuple[int, str, Row]] = []
    symbol = history.symbol
    for table, bars in (
        ("mark_klines", history.mark),
        ("index_klines", history.index),
        ("premium_klines", history.premium),
    ):
        for time, close in zip(bars["open_time"].tolist(), bars["close"].tolist(), strict=True):
            found.append((time + 110_000, table, (symbol, time, close, close, close, close, "rest", 0)))
    for time, rate, hours, known in records(history.funding, "funding_time", "rate", "interval_hours", "known_at"):
        found.append((known, "funding_rates", (symbol, time, rate, None, int(hours), known)))
    for time, value, quote, known, revision in records(
        history.open_interest, "time", "open_interest", "open_interest_value", "known_at", "revision"
    ):
        found.append((known, "open_interest", (symbol, time, value, quote, "hist_5m", known, revision)))
    for ratio, columns in history.ratios.items():
        for time, value, known, revision in records(columns, "period_end", "value", "known_at", "revision"):
            found.append((known, "long_short_ratio", (symbol, ratio, time, value, 0.0, 0.0, known, known, revision)))
    for values in zip(*(history.book[name].tolist() for name in TABLES["book_minutes"].columns[1:-1]), strict=True):
        found.append((values[0] + MINUTE, "book_minutes", (symbol, *values, 0)))
    return sorted(found, key=lambda each: each[0])


def records(columns: dict[str, NDArray], *names: str) -> list[tuple[float, ...]]:
    return list(zip(*(columns[name].tolist() for name in names), strict=True))


def served(history: SymbolHistory, closes: Sequence[int], live: LiveFeatures | None = None) -> NDArray:
    """What live answers at these closes, fed minute by minute with what had arrived by then."""
    live = live or LiveFeatures([history.symbol])
    waiting, answers = other_rows(history), []
    at = 0
    for each in candles_of(history):
        close = each.open_time + MINUTE
        while at < len(waiting) and waiting[at][0] <= close:
            live.add_row(*waiting[at][1:])
            at += 1
        live.add(each)
        if close in closes:
            answers.append(live.vectors([history.symbol])[0])
    return np.array(answers)


def batch(history: SymbolHistory, start: int = 0, end: int = 1 << 60) -> tuple[NDArray, NDArray]:
    parts = list(vectors_of(history, start, end))
    if not parts:
        return np.empty(0, np.int64), np.empty((0, len(CATALOGUE)), np.float32)
    return np.concatenate([times for times, _ in parts]), np.concatenate([vectors for _, vectors in parts])


def bits(vectors: NDArray) -> NDArray:
    """NaNs equal NaNs, and -0 is not 0."""
    return np.where(np.isnan(vectors), np.uint32(0x7FC00000), np.ascontiguousarray(vectors, np.float32).view(np.uint32))


@pytest.mark.parametrize(("seed", "options"), [(1, {}), (4, {"exchange_keeps": 0.97}), (5, {"holes": 0.0005})])
def test_live_and_batch_give_the_same_bits(seed: int, options: dict[str, float]) -> None:
    history = world(11_200, seed, **options)  # type: ignore[arg-type]
    times, vectors = batch(history)
    some = sorted({*times[:300:7].tolist(), *times[1_400:1_550:11].tolist(), *times[-900:].tolist()})

    answers = served(history, some)

    assert (bits(answers) == bits(vectors[np.isin(times, some)])).all()


def test_live_goes_on_from_what_is_stored_with_the_same_bits() -> None:
    history = world(10_700, 4, exchange_keeps=0.97)
    boundary = START + 10_500 * MINUTE
    times, vectors = batch(history, boundary)
    live = LiveFeatures(["BTCUSDT"])
    for each in candles_of(until(history, boundary))[-LOOKBACK_MIN:]:
        live.add(each)
    live.load(until(history, boundary), boundary)

    answers = [live.vectors(["BTCUSDT"])[0]]
    coming = [each for each in other_rows(history) if row_time(each) >= boundary]
    for each in candles_of(history)[10_500:]:
        close = each.open_time + MINUTE
        for _, table, row in [each for each in coming if close - MINUTE < each[0] <= close]:
            live.add_row(table, row)
        live.add(each)
        answers.append(live.vectors(["BTCUSDT"])[0])

    assert times[0] == boundary
    assert (bits(np.array(answers)) == bits(vectors)).all()


def row_time(arrival: tuple[int, str, Row]) -> int:
    _, table, row = arrival
    return int(row[TABLES[table].columns.index(TABLES[table].time)])


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_a_snapshot_goes_on_with_the_same_bits(data: st.DataObject) -> None:
    history = world(1_700, data.draw(st.integers(0, 10**6)), exchange_keeps=0.98)
    at = data.draw(st.integers(1_000, 1_690))
    closes = [START + minute * MINUTE for minute in range(at + 1, 1_701)]
    whole = served(history, closes)
    first = LiveFeatures(["BTCUSDT"])
    waiting = other_rows(history)
    before = [each for each in waiting if each[0] <= START + at * MINUTE]
    for row in before:
        first.add_row(*row[1:])
    for each in candles_of(history)[:at]:
        first.add(each)
    first.vectors(["BTCUSDT"])
    second = LiveFeatures(["BTCUSDT"])
    second.restore(first.snapshot())

    answers = []
    for each in candles_of(history)[at:]:
        close = each.open_time + MINUTE
        for row in waiting:
            if close - MINUTE < row[0] <= close:
                second.add_row(*row[1:])
        second.add(each)
        answers.append(second.vectors(["BTCUSDT"])[0])

    assert (bits(np.array(answers)) == bits(whole)).all()


def test_a_snapshot_of_something_else_is_refused_and_nothing_changes() -> None:
    live = fed(world(300, 2))
    before, snapshot = live.vectors(["BTCUSDT"]), live.snapshot()

    for wrong in (b"", snapshot[:-1], b"x" + snapshot[1:], LiveFeatures(["ETHUSDT"]).snapshot()):
        with pytest.raises(ValueError, match="snapshot"):
            live.restore(wrong)
    with pytest.raises(ValueError, match="lookback"):
        live.restore(LiveFeatures(["BTCUSDT"], 241).snapshot())

    assert (bits(live.vectors(["BTCUSDT"])) == bits(before)).all()


@pytest.mark.parametrize("count", [1, 7])
def test_a_symbol_has_the_same_bits_alone_and_in_company(count: int) -> None:
    names = [f"S{n}USDT" for n in range(count)]
    live = LiveFeatures(names)
    histories = [world(300 + number, number, symbol=name) for number, name in enumerate(names)]
    for history in histories:  # not all have closed the same minute yet
        for each in candles_of(history):
            live.add(each)

    together = live.vectors(names[::-1])[::-1]

    assert [bits(row).tolist() for row in together] == [bits(live.vectors([name])[0]).tolist() for name in names]


def test_a_short_memory_gives_the_same_bits_and_nothing_beyond_it() -> None:
    history = world(1_700, 3)
    whole = fed(history)
    short = LiveFeatures(["BTCUSDT"], 1_500)
    for each in candles_of(history):
        short.add(each)

    vector = short.vectors(["BTCUSDT"])

    assert (bits(vector)[:, columns_of(SHORT)] == bits(whole.vectors(["BTCUSDT"]))[:, columns_of(SHORT)]).all()
    beyond = [COLUMN[feature.name] for feature in CATALOGUE if feature.lookback_min > 1_500]
    assert np.isnan(vector[:, beyond]).all()


def fed(history: SymbolHistory) -> LiveFeatures:
    live = LiveFeatures(["ETHUSDT", history.symbol])
    for each in candles_of(history):
        live.add(each)
    return live


def named(live: LiveFeatures) -> dict[str, float]:
    return dict(zip(NAMES, live.vectors(["BTCUSDT"])[0].tolist(), strict=True))


def test_a_hole_restarts_the_window_and_is_remembered_until_the_window_is_whole_again() -> None:
    candles = candles_of(world(600, 4))
    live = LiveFeatures(["BTCUSDT"])
    for each in candles[:300]:
        live.add(each)
    assert not live.broken_by_gap("BTCUSDT", 241)

    for each in candles[301:]:
        live.add(each)
        held = (each.open_time - candles[300].open_time) // MINUTE
        assert live.held("BTCUSDT") == held
        assert live.broken_by_gap("BTCUSDT", 241) == (held < 241)

    fresh = LiveFeatures(["BTCUSDT"])
    for each in candles[301:]:
        fresh.add(each)
    assert (bits(live.vectors(["BTCUSDT"])) == bits(fresh.vectors(["BTCUSDT"]))).all()


def test_a_window_put_together_again_is_as_if_it_had_never_been_broken() -> None:
    candles = candles_of(world(800, 4))
    live = LiveFeatures(["BTCUSDT"])
    for each in candles[:300] + candles[320:]:
        live.add(each)

    live.rebuild(candles[100:])

    fresh = LiveFeatures(["BTCUSDT"])
    for each in candles[100:]:
        fresh.add(each)
    assert not live.broken_by_gap("BTCUSDT", 10_140)
    assert live.held("BTCUSDT") == 700
    assert (bits(live.vectors(["BTCUSDT"])) == bits(fresh.vectors(["BTCUSDT"]))).all()


def test_a_short_window_at_the_start_is_no_gap() -> None:
    live = fed(world(10, 4))

    assert (live.held("BTCUSDT"), live.broken_by_gap("BTCUSDT", 241)) == (10, False)


@pytest.mark.parametrize("again", [9, 8, 0])
def test_a_candle_that_is_not_later_is_a_bug(again: int) -> None:
    history = world(10, 4)
    live = fed(history)
    before = bits(live.vectors(["BTCUSDT"])).tolist()

    with pytest.raises(ValueError, match="BTCUSDT: candle"):
        live.add(candles_of(history)[again])
    assert bits(live.vectors(["BTCUSDT"])).tolist() == before


def test_a_candle_of_another_interval_or_symbol_is_a_bug() -> None:
    live = LiveFeatures(["BTCUSDT"])
    other = Candle(*("15m", *[getattr(plain(0), name) for name in Candle.__struct_fields__[1:]]))

    with pytest.raises(ValueError, match="15m"):
        live.add(other)
    with pytest.raises(KeyError):
        live.add(candles_of(world(1, 1, symbol="DOGEUSDT"))[0])


def test_the_newest_candle_is_known_by_its_open_time() -> None:
    live = fed(world(10, 4))

    assert live.last_open("BTCUSDT") == START + 9 * MINUTE
    assert live.last_open("ETHUSDT") is None


def test_a_market_that_does_not_move_or_trade_has_zeros_and_gaps_but_nothing_infinite() -> None:
    live = LiveFeatures(["BTCUSDT"])
    for minute in range(1_600):
        live.add(plain(minute))

    vector = named(live)

    assert not any(math.isinf(value) for value in vector.values())
    of_candles = {
        f.name for f in CATALOGUE if f.tables == {"candles_1m"} and f.lookback_min <= 1_500 and f.group in "ABCDEFJ"
    }
    empty = {"rvr_15_240", "rvr_60_1440", "tsz_15_240", "illq_60", "vwapgap_60", "vwapgap_240"}
    assert {name for name in of_candles if math.isnan(vector[name])} == empty
    moving = {f"rv_{w}" for w in (5, 15, 60, 240, 1440)} | {"zerofrac_60"}
    assert {name for name in of_candles - empty if vector[name] != 0} == moving


def test_volumes_beyond_any_market_neither_overflow_nor_warn() -> None:
    live = LiveFeatures(["BTCUSDT"])
    for minute in range(300):
        live.add(plain(minute, 1e-7, 1e17, 1e17))

    vector = named(live)

    assert vector["tbi_60"] == 1.0
    assert vector["vlr_15_240"] == 0.0


def test_a_candle_without_taker_flow_leaves_its_columns_empty_and_no_others() -> None:
    history = world(1_600, 3, steady=True)
    history.candles["quote_volume"][700:900] = math.nan
    history.candles["taker_buy_volume"][700:900] = math.nan
    history.candles["trades"][700:900] = -1
    live = fed(history)
    expected = fed(world(1_600, 3, steady=True))

    vector, whole = named(live), named(expected)

    for feature in CATALOGUE:
        if feature.needs_flow and feature.lookback_min > 700:
            assert math.isnan(vector[feature.name]), feature.name
        else:
            assert str(vector[feature.name]) == str(whole[feature.name]), feature.name


@pytest.mark.parametrize(("share", "empty"), [(3, False), (4, True)])
def test_more_than_a_twentieth_of_synthetic_minutes_empty_a_column(share: int, empty: bool) -> None:
    history = world(300, 3, steady=True)
    history.candles["synthetic"][-10 : -10 + share] = True
    vector = named(fed(history))

    assert math.isnan(vector["rv_60"]) == empty  # 61 minutes
    assert math.isnan(vector["rv_15"])  # 16 minutes
    assert not math.isnan(vector["rv_240"])
    assert not math.isnan(vector["rv_5"])


def test_no_symbols_make_no_rows() -> None:
    assert LiveFeatures(["BTCUSDT"]).vectors([]).shape == (0, len(CATALOGUE))


def test_a_symbol_that_is_followed_later_changes_nothing_for_the_others() -> None:
    live = fed(world(300, 4))
    before = bits(live.vectors(["BTCUSDT"])).tolist()

    live.follow("DOGEUSDT")
    live.follow("DOGEUSDT")

    assert bits(live.vectors(["BTCUSDT"])).tolist() == before
    assert np.isnan(live.vectors(["DOGEUSDT"])).all()


def test_a_symbol_that_follows_on_a_forgotten_one_has_its_room_and_nothing_of_it() -> None:
    history = world(300, 4)
    live = fed(history)
    live.follow("DOGEUSDT")
    live.add_row("open_interest", ("BTCUSDT", START, 50.0, 1e3, "hist_5m", START + 900 * MINUTE, 0))  # waits
    size = live._ints.shape
    live.forget("BTCUSDT")
    live.forget("BTCUSDT")
    with pytest.raises(KeyError):
        live.vectors(["BTCUSDT"])
    assert live.volatility("BTCUSDT", 240) is None
    live.follow("BTCUSDT")
    assert live._ints.shape == size
    assert live._waiting_count == 0
    assert np.isnan(live.vectors(["BTCUSDT"])).all()
    for _, table, row in other_rows(history):
        live.add_row(table, row)
    for each in candles_of(history):
        live.add(each)

    fresh = LiveFeatures(["BTCUSDT"], live.lookback_min)
    for _, table, row in other_rows(history):
        fresh.add_row(table, row)
    for each in candles_of(history):
        fresh.add(each)
    assert bits(live.vectors(["BTCUSDT"])).tolist() == bits(fresh.vectors(["BTCUSDT"])).tolist()


def test_a_snapshot_tells_which_room_is_whose() -> None:
    def rearranged() -> LiveFeatures:
        live = LiveFeatures(["AUSDT", "BTCUSDT"])
        live.forget("AUSDT")
        live.follow("CUSDT")
        return live

    live = rearranged()
    for each in candles_of(world(300, 4)):
        live.add(each)
    again = rearranged()
    again.restore(live.snapshot())

    assert bits(again.vectors(["BTCUSDT"])).tolist() == bits(live.vectors(["BTCUSDT"])).tolist()
    with pytest.raises(ValueError, match="other symbols"):
        LiveFeatures(["BTCUSDT", "CUSDT"]).restore(live.snapshot())


# ---- other series


def test_a_value_is_not_used_before_it_is_known_however_early_it_came() -> None:
    live = LiveFeatures(["BTCUSDT"])
    period = START // 300_000 * 300_000
    live.add_row("open_interest", ("BTCUSDT", period, 50.0, 1e3, "hist_5m", period + 120_000, 0))
    live.add_row("long_short_ratio", ("BTCUSDT", "global_account", period, 2.0, 0.0, 0.0, period + 120_000, 0, 0))
    seen = {}
    for minute in range(60):
        live.add(plain(minute))
        close = START + (minute + 1) * MINUTE
        seen[close] = not math.isnan(named(live)["lsr_g"])

    known = [
        close
        for close in seen
        if close >= period + 120_000 and close - period <= 20 * MINUTE and close >= START + 25 * MINUTE
    ]
    assert [close for close, is_there in seen.items() if is_there] == known


def test_what_is_not_there_when_it_should_be_known_is_late() -> None:
    history = world(400, 3)
    rows = other_rows(history)
    for missing, bit in LATE_BITS.items():
        live = LiveFeatures(["BTCUSDT"])
        for _, table, row in rows:
            if missing not in (table, f"{table}.{row[1]}"):
                live.add_row(table, row)
        for each in candles_of(history):
            live.add(each)
        live.vectors(["BTCUSDT"])

        assert live.late("BTCUSDT") == bit, missing


def test_a_late_series_concerns_the_columns_that_are_made_of_it() -> None:
    assert late_bits(SCHEMAS["candles"]) == 0
    assert late_bits(SCHEMAS["core"]) == sum(LATE_BITS.values()) - LATE_BITS["book_minutes"]
    assert late_bits([by_name["lsr_ta"]]) == LATE_BITS["long_short_ratio.top_account"]
    assert late_bits([by_name["ofi_1m"]]) == LATE_BITS["book_minutes"]


def test_a_late_bar_is_filled_by_the_one_before_for_one_minute_and_counts_from_then_on() -> None:
    history = world(100, 3, steady=True)
    live, punctual = LiveFeatures(["BTCUSDT"]), LiveFeatures(["BTCUSDT"])
    rows = [row for row in other_rows(history) if row[1] == "premium_klines"]
    for _, table, row in rows:
        punctual.add_row(table, row)
        if row[1] not in (START + 97 * MINUTE, START + 98 * MINUTE):
            live.add_row(table, row)
    for each in candles_of(history)[:99]:
        live.add(each)
        punctual.add(each)
    filled = named(live)
    assert filled["prem_0"] == pytest.approx(history.premium["close"][96] * 1e4, rel=1e-6)
    assert live.late("BTCUSDT") & LATE_BITS["premium_klines"]
    for each in candles_of(history)[99:]:
        live.add(each)
        punctual.add(each)
    assert math.isnan(named(live)["prem_0"])  # two in a row are missing

    for _, table, row in rows:
        live.add_row(table, row)

    assert str(named(live)) == str(named(punctual))


def test_a_value_that_is_revised_later_stays_what_it_was_first() -> None:
    history = world(400, 3)
    once, revised = LiveFeatures(["BTCUSDT"]), LiveFeatures(["BTCUSDT"])
    for _, table, row in other_rows(history):
        once.add_row(table, row)
        revised.add_row(table, row)
        if table == "long_short_ratio":
            revised.add_row(table, (*row[:3], row[3] * 2, *row[4:-1], 1))
    for each in candles_of(history):
        once.add(each)
        revised.add(each)

    assert str(named(once)) == str(named(revised))


def test_rows_of_unknown_symbols_and_other_tables_are_passed_over() -> None:
    live = fed(world(300, 4))
    before = bits(live.vectors(["BTCUSDT"])).tolist()

    live.add_row("premium_klines", ("NOUSDT", START, 1.0, 1.0, 1.0, 1.0, "rest", 0))
    live.add_row("open_interest", ("BTCUSDT", START, 1.0, None, "spot_1m", START, 0))
    live.add_row("long_short_ratio", ("BTCUSDT", "taker", START, 1.0, 0.0, 0.0, START, START, 0))
    live.add_row("candles_15m", ("BTCUSDT", START))

    assert bits(live.vectors(["BTCUSDT"])).tolist() == before


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -math.inf, 0.0, -1.0, 1e300, 1e-300])
def test_numbers_that_mean_nothing_do_no_harm(nonsense: float) -> None:
    live = fed(world(300, 4))
    at = START + 298 * MINUTE
    for table in ("mark_klines", "index_klines", "premium_klines"):
        live.add_row(table, ("BTCUSDT", at, nonsense, nonsense, nonsense, nonsense, "rest", 0))
    period = at // 300_000 * 300_000 - 300_000
    live.add_row("open_interest", ("BTCUSDT", period, nonsense, nonsense, "hist_5m", period, 0))
    live.add_row("long_short_ratio", ("BTCUSDT", "top_account", period, nonsense, 0.0, 0.0, period, 0, 0))
    live.add_row("funding_rates", ("BTCUSDT", period, nonsense, None, None, period))
    live.add_row(
        "book_minutes",
        ("BTCUSDT", at + MINUTE, nonsense, nonsense, nonsense, nonsense, None, None, None, 0, None, at + 2 * MINUTE, 0),
    )

    assert not np.isinf(live.vectors(["BTCUSDT"])[0]).any()


def test_too_many_rows_that_wait_are_put_in_oldest_first_and_memory_stays_bounded() -> None:
    live = LiveFeatures(["BTCUSDT"])
    for period in range(1, 20_000):
        live.add_row("open_interest", ("BTCUSDT", period * 300_000, 1.0 + period, 1.0, "hist_5m", period * 300_000, 0))

    assert len(live._waiting) <= 1024


# ---- the order of arrival


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_rows_that_come_twice_and_in_any_order_before_they_are_known_give_the_same_bits(seed: int) -> None:
    history = world(700, seed, exchange_keeps=0.98)
    clean, dirty = LiveFeatures(["BTCUSDT"]), LiveFeatures(["BTCUSDT"])
    rng = random.Random(seed)
    rows = other_rows(history)
    mixed = sorted(rows + rng.sample(rows, 400), key=lambda each: each[0] // 300_000 * 10 + rng.random())
    at = 0
    for each in candles_of(history):
        close = each.open_time + MINUTE
        for arrives, table, row in rows:
            if close - MINUTE < arrives <= close:
                clean.add_row(table, row)
        while at < len(mixed) and mixed[at][0] // 300_000 * 300_000 <= close:
            dirty.add_row(*mixed[at][1:])
            at += 1
        clean.add(each)
        dirty.add(each)
    # Revisions that are known together with what they revise may overtake it here, which no real feed does.
    same = [column for column, f in enumerate(CATALOGUE) if f.group not in "HI"]

    assert (bits(clean.vectors(["BTCUSDT"]))[:, same] == bits(dirty.vectors(["BTCUSDT"]))[:, same]).all()


def test_after_compile_kernel_nothing_is_compiled_any_more() -> None:
    """Whatever is added, in whatever form; compiling takes seconds, and a close has none."""
    compile_kernel()
    functions = {name: each for name, each in vars(kernel).items() if isinstance(each, Dispatcher)}
    assert {"push", "put", "put_book", "put_known", "put_until", "finish", "cross_section"} <= functions.keys()
    before = {name: list(each.signatures) for name, each in functions.items()}

    history = world(400, 3)
    candles = candles_of(history)
    live = LiveFeatures(["BTCUSDT"], cross_section=True)
    live.load(until(history, START + 100 * MINUTE), START + 100 * MINUTE)
    for _, table, row in other_rows(history):
        live.add_row(table, row)
    for each in candles:
        live.add(each)
        live.vectors(["BTCUSDT"])
    live.follow("ETHUSDT")
    live.add(msgspec.structs.replace(candles[-1], symbol="ETHUSDT", quote_volume=math.nan, trades=-1))
    live.vectors(["ETHUSDT", "BTCUSDT"])
    live.vectors([])
    live.rebuild(candles[-300:])
    again = LiveFeatures(["BTCUSDT", "ETHUSDT"], cross_section=True)
    again.restore(live.snapshot())
    again.add(plain(400))
    again.vectors(["BTCUSDT"])

    assert {name: list(each.signatures) for name, each in functions.items()} == before
