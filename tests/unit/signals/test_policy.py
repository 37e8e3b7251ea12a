import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from perpline.domain.exit_rule import LabelRule
from perpline.domain.instrument import Instrument
from perpline.domain.signal import Status
from perpline.signals.policy import Facts, Verdict, decide, exit_prices, expected_value_bp

RULE = LabelRule(tp_pct=1.0, sl_pct=1.0, horizon_s=14_400, cost_bp=14.0)
T = 1_790_000_100_000
MINUTE = 60_000
READY = Facts(
    close_time=T,
    held=241,
    lookback=241,
    broken_by_gap=False,
    mark_updated_at=T - 900,
    book_updated_at=T - 20_000,
    p_long=0.6,
    p_short=0.4,
)


def verdict(**changes: object) -> Verdict:
    return decide(structs.replace(READY, **changes), RULE, threshold=0.58)


def test_a_probability_above_the_threshold_is_a_signal_for_its_side() -> None:
    assert verdict() == Verdict(Status.OK, 1, "", 0.6, pytest.approx(6.0))
    assert verdict(p_long=0.3, p_short=0.7) == Verdict(Status.OK, -1, "", 0.7, pytest.approx(26.0))


def test_a_probability_below_the_threshold_is_flat_and_says_by_what() -> None:
    found = verdict(p_long=0.52, p_short=0.48)

    assert (found.status, found.side, found.detail) == (Status.FLAT, 0, "long 0.520 is below 0.580")
    assert (found.p, found.ev_bp) == (0.52, pytest.approx(-10.0))


def test_a_trade_that_does_not_earn_its_costs_is_flat() -> None:
    found = decide(READY, RULE, threshold=0.5, ev_min_bp=10.0)

    assert (found.status, found.detail) == (Status.FLAT, "long expects +6.0 bp, less than +10.0")


@pytest.mark.parametrize(
    ("changes", "status", "detail"),
    [
        ({"held": 12}, Status.SKIPPED_WARMUP, "12 of 241 contiguous minutes held"),
        ({"held": 12, "broken_by_gap": True}, Status.SKIPPED_GAP, "12 of 241 contiguous minutes held since a hole"),
        ({"halted": "TRADING_HALT"}, Status.SKIPPED_STALE, "not traded now: the exchange says TRADING_HALT"),
        ({"mark_updated_at": None}, Status.SKIPPED_STALE, "no mark price yet"),
        ({"mark_updated_at": T - 10_001}, Status.SKIPPED_STALE, "mark price is 10.0 s old at the close"),
        ({"book_updated_at": None}, Status.SKIPPED_STALE, "no book yet"),
        ({"book_updated_at": T - 61_000}, Status.SKIPPED_STALE, "book is 61.0 s old at the close"),
        ({"universe_share": 0.89}, Status.SKIPPED_STALE, "only 89% of the symbols have this minute"),
        (
            {"ood_share": 0.25, "max_ood_share": 0.1},
            Status.SKIPPED_OOD,
            "25% of the features lie outside what the model was trained on, more than 10%",
        ),
        ({"missing": ("tbi_15", "tbi_60")}, Status.SKIPPED_NAN, "no value for tbi_15, tbi_60"),
        ({"p_long": None, "model_error": "no file"}, Status.SKIPPED_MODEL, "no file"),
        ({"p_short": None}, Status.SKIPPED_MODEL, "no model"),
        ({"p_long": math.nan}, Status.SKIPPED_MODEL, "not probabilities: nan, 0.4"),
        ({"p_short": 1.5}, Status.SKIPPED_MODEL, "not probabilities: 0.6, 1.5"),
    ],
)
def test_an_abstention_has_a_name_and_a_reason_in_words(
    changes: dict[str, object], status: Status, detail: str
) -> None:
    assert verdict(**changes) == Verdict(status, 0, detail)


def test_the_first_reason_in_the_order_of_the_promise_wins() -> None:
    wrong: dict[str, object] = {
        "held": 3,
        "mark_updated_at": None,
        "missing": ("tbi_15",),
        "p_long": None,
        "last_ok": {1: T - MINUTE},
    }
    mended: dict[str, object] = {
        "held": 241,
        "mark_updated_at": T,
        "missing": (),
        "p_long": 0.6,
        "last_ok": {},
    }
    order = []
    for name in wrong:
        order.append(verdict(**wrong).status)
        wrong[name] = mended[name]

    assert order == [
        Status.SKIPPED_WARMUP,
        Status.SKIPPED_STALE,
        Status.SKIPPED_NAN,
        Status.SKIPPED_MODEL,
        Status.COOLDOWN,
    ]


def test_inputs_that_are_newer_than_the_close_are_fresh() -> None:
    assert verdict(mark_updated_at=T + 1_500, book_updated_at=T + 1_900).status is Status.OK


@pytest.mark.parametrize(
    ("minutes_ago", "status"), [(1, Status.COOLDOWN), (14, Status.COOLDOWN), (15, Status.OK), (600, Status.OK)]
)
def test_after_a_signal_its_side_pauses_for_a_quarter_of_an_hour(minutes_ago: int, status: Status) -> None:
    assert verdict(last_ok={1: T - minutes_ago * MINUTE}).status is status


def test_a_pause_says_how_long_ago_the_signal_was_and_has_no_side() -> None:
    found = verdict(last_ok={1: T - 4 * MINUTE})

    assert (found.side, found.detail) == (0, "long signal 4 min ago, pause of 15")


def test_the_other_side_does_not_pause() -> None:
    assert verdict(last_ok={-1: T - MINUTE}).status is Status.OK


def test_without_a_signal_to_hold_back_a_recent_one_leaves_the_symbol_flat() -> None:
    assert verdict(p_long=0.5, p_short=0.5, last_ok={1: T - MINUTE}).status is Status.FLAT


@given(p=st.floats(0, 1))
def test_a_trade_is_worth_something_exactly_above_the_break_even(p: float) -> None:
    assert (expected_value_bp(p, RULE) > 1e-9) == (p > RULE.break_even + 1e-11)


@given(p_long=st.floats(0, 1), p_short=st.floats(0, 1), held=st.integers(0, 300))
def test_only_ok_has_a_side_and_never_for_less_than_the_threshold(p_long: float, p_short: float, held: int) -> None:
    found = verdict(p_long=p_long, p_short=p_short, held=held)

    assert (found.side != 0) == (found.status is Status.OK)
    if found.side:
        assert (p_long if found.side > 0 else p_short) >= 0.58
        assert found.detail == ""
    else:
        assert found.detail


def instrument(tick: str) -> Instrument:
    return Instrument(
        symbol="BTCUSDT",
        base_asset="BTC",
        quote_asset="USDT",
        contract_type="PERPETUAL",
        status="TRADING",
        onboard_time=0,
        tick_size=Decimal(tick),
        step_size=Decimal("0.001"),
        min_quantity=Decimal("0.001"),
        min_notional=Decimal(5),
    )


def test_target_and_stop_of_a_long_and_a_short() -> None:
    rule = LabelRule(2.0, 1.0, 14_400, 14.0)

    assert exit_prices(instrument("0.10"), 1, 67450.17, rule) == ("68799.20", "66775.60")
    assert exit_prices(instrument("0.10"), -1, 67450.17, rule) == ("66101.10", "68124.70")


@given(
    mark=st.floats(1e-4, 1e6),
    tick=st.sampled_from(["0.10", "0.01", "0.0001", "0.0000001", "1"]),
    side=st.sampled_from([1, -1]),
    tp=st.floats(0.1, 20),
    sl=st.floats(0.1, 20),
)
def test_levels_are_on_the_grid_and_never_nearer_than_the_rule(
    mark: float, tick: str, side: int, tp: float, sl: float
) -> None:
    target, stop = map(Decimal, exit_prices(instrument(tick), side, mark, LabelRule(tp, sl, 1, 0)))

    exact = Decimal(repr(mark))
    for level, percent, direction in ((target, tp, side), (stop, sl, -side)):
        wanted = exact * (1 + direction * Decimal(repr(percent)) / 100)
        assert level % Decimal(tick) == 0
        assert 0 <= direction * (level - wanted) < Decimal(tick)


def test_a_level_is_written_without_an_exponent() -> None:
    assert exit_prices(instrument("1E-7"), 1, 0.00001234, RULE) == ("0.0000125", "0.0000122")


@pytest.mark.parametrize(("side", "mark"), [(0, 1.0), (1, 0.0), (1, -1.0), (1, math.nan), (-1, math.inf)])
def test_levels_of_nothing_are_a_bug(side: int, mark: float) -> None:
    with pytest.raises(ValueError, match="no levels"):
        exit_prices(instrument("0.1"), side, mark, RULE)


def test_the_raw_score_goes_with_the_side_that_was_judged() -> None:
    assert verdict(p_long=0.6, raw_long=0.7, p_short=0.4, raw_short=0.1).p_raw == 0.7
    assert verdict(p_long=0.2, raw_long=0.1, p_short=0.4, raw_short=0.3).p_raw == 0.3


@given(
    st.floats(0, 1),
    st.floats(0, 1),
    st.lists(st.sampled_from(["tbi_15", "tbi_60", "zret_15"]), min_size=1, unique=True),
    st.floats(0, 1),
)
def test_whatever_the_model_says_a_missing_critical_feature_means_no_signal(
    p_long: float, p_short: float, missing: list[str], ood_share: float
) -> None:
    found = verdict(p_long=p_long, p_short=p_short, missing=tuple(missing), ood_share=ood_share, max_ood_share=0.1)

    assert (found.status, found.side, found.p) == (Status.SKIPPED_NAN, 0, None)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_beyond_its_training_no_probability_is_believed(p: float, q: float, share: float, limit: float) -> None:
    found = verdict(p_long=p, p_short=q, ood_share=share, max_ood_share=limit)

    assert (found.status is Status.SKIPPED_OOD) == (share > limit)
    assert found.side == 0 or share <= limit
