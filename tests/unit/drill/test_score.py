"""The judge of drills: what was lost, what came twice, and which skips have an excuse."""

from typing import Any

import pytest

from perpline.drill.score import NOT_IN_TIME_MS, Asked, Decided, Down, Facts, Score, Told, judge

MINUTE = 60_000
T = 1_795_183_200_000
BTC, ETH = "BTCUSDT", "ETHUSDT"
LAST = T + 3 * MINUTE


def minutes() -> list[tuple[str, int]]:
    return [(symbol, minute) for symbol in (BTC, ETH) for minute in range(T, LAST + 1, MINUTE)]


def decided(**other: str) -> list[Decided]:
    return [Decided(symbol, minute, "flat", f"{symbol} {minute}") for symbol, minute in minutes()]


def told(where: str = "outbox") -> list[Told]:
    return [Told(where, symbol, minute, f"{symbol} {minute}") for symbol, minute in minutes()]


def facts(**changes: Any) -> Facts:
    """Those of a drill in which nothing was lost."""
    candles = {("1m", symbol, minute - MINUTE): (1.0, 2.0) for symbol, minute in minutes()}
    values: dict[str, Any] = {
        "until": LAST,
        "expected": {BTC: (T, 1 << 60), ETH: (T, 1 << 60)},
        "decided": decided(),
        "told": told(),
        "true_candles": candles,
        "stored_candles": candles,
    }
    return Facts(**{**values, **changes})


def skipped(status: str, minute: int = T + MINUTE, symbol: str = BTC) -> list[Decided]:
    """Every decision, one of them a skip."""
    wanted = Decided(symbol, minute, status, f"{symbol} {minute}")
    return [wanted if (each.symbol, each.close_time) == (symbol, minute) else each for each in decided()]


def counts(score: Score) -> tuple[int, int, int, int, int, int]:
    return (
        score.candles_lost, score.candles_wrong, score.decisions_lost, score.decisions_twice, score.messages_lost,
        score.orders_twice,
    )  # fmt: skip


def test_a_drill_in_which_nothing_was_lost_passes() -> None:
    score = judge(facts())

    assert score.passed
    assert counts(score) == (0, 0, 0, 0, 0, 0)
    assert score.skipped == {}


def test_a_candle_that_is_not_stored_is_lost_and_named() -> None:
    stored = dict(facts().true_candles)
    del stored["1m", ETH, T]

    score = judge(facts(stored_candles=stored))

    assert counts(score) == (1, 0, 0, 0, 0, 0)
    assert score.reasons == [f"1 candle lost: 1m {ETH} {T}"]


def test_a_candle_with_other_numbers_and_one_the_exchange_lacks_are_wrong() -> None:
    stored = facts().true_candles | {("1m", ETH, T): (1.0, 2.5), ("1m", ETH, LAST): (1.0, 2.0)}

    assert counts(judge(facts(stored_candles=stored))) == (0, 2, 0, 0, 0, 0)


def test_a_minute_without_a_row_is_a_decision_lost() -> None:
    score = judge(facts(decided=decided()[1:], told=told()[1:]))

    assert counts(score) == (0, 0, 1, 0, 0, 0)
    assert score.reasons == [f"1 minute without a decision: {BTC} {T}"]


def test_what_comes_after_the_last_minute_that_counts_and_before_a_symbol_begins_is_not_wanted() -> None:
    score = judge(facts(expected={BTC: (T, LAST), ETH: (T + MINUTE, LAST + 5 * MINUTE)}, decided=decided()))

    assert score.passed


@pytest.mark.parametrize("where", ["outbox", "stream", "announced"])
def test_a_message_that_came_twice_is_a_decision_twice(where: str) -> None:
    score = judge(facts(told=[*told(), *told(where)[:1], *told(where)[:1]]))

    assert score.decisions_twice == 1
    assert not score.passed


def test_two_rows_of_one_minute_are_a_decision_twice() -> None:
    assert judge(facts(decided=[*decided(), decided()[0]])).decisions_twice == 1


def test_a_message_that_tells_another_decision_than_the_row_is_a_decision_twice() -> None:
    other = Told("announced", BTC, T, "another model's")

    assert judge(facts(told=[*told(), other])).decisions_twice == 1


def test_a_decision_that_was_not_published_is_a_message_lost() -> None:
    waiting = Told("outbox", BTC, T, f"{BTC} {T}", published=False)

    assert counts(judge(facts(told=told()[1:]))) == (0, 0, 0, 0, 1, 0)
    assert counts(judge(facts(told=[waiting, *told()[1:]]))) == (0, 0, 0, 0, 1, 0)
    assert counts(judge(facts(told=[*told(), *told("stream")[1:]]))) == (0, 0, 0, 0, 1, 0)


def test_what_has_expired_need_not_have_been_announced() -> None:
    assert judge(facts(told=[*told(), *told("stream"), *told("announced")[2:]])).passed


def test_a_missed_minute_is_never_published() -> None:
    without = [each for each in told() if (each.symbol, each.close_time) != (BTC, T + MINUTE)]
    missed: dict[str, Any] = {"decided": skipped("skipped_missed"), "down": [Down("the process", T, LAST)]}

    assert judge(facts(**missed, told=without)).passed
    assert judge(facts(**missed)).reasons == [f"1 missed minute published: {BTC} {T + MINUTE}"]


def test_a_skip_without_an_excuse_fails_and_is_named() -> None:
    score = judge(facts(decided=skipped("skipped_stale")))

    assert (score.skipped, score.skipped_excused) == ({"skipped_stale": 1}, 0)
    assert score.reasons == [f"1 decision skipped: skipped_stale {BTC} {T + MINUTE}"]


def test_a_skip_while_the_process_was_down_and_shortly_after_is_excused() -> None:
    minute = T + MINUTE
    without = [each for each in told() if (each.symbol, each.close_time) != (BTC, minute)]
    for down, excused in [
        (Down("the process", minute - 5, minute + 5), True),
        (Down("the process", minute + NOT_IN_TIME_MS, minute + MINUTE), True),
        (Down("the process", minute + NOT_IN_TIME_MS + 1, minute + MINUTE), False),
        (Down("the process", T, minute - 12_000), True),
        (Down("the process", T, minute - 12_001), False),
        (Down("its trading", minute, minute, symbol=BTC), True),
        (Down("its trading", minute, minute, symbol=ETH), False),
    ]:
        score = judge(facts(decided=skipped("skipped_missed"), told=without, down=[down], speed=4.0))
        assert score.passed is excused, down
        assert score.skipped_excused == int(excused)


def test_at_the_markets_own_speed_ten_seconds_are_excused_after_it_was_down() -> None:
    minute = T + MINUTE
    for until, excused in [(minute - 10_000, True), (minute - 10_001, False)]:
        found = judge(facts(decided=skipped("skipped_stale"), down=[Down("the exchange", T, until)]))
        assert found.passed is excused


def test_what_a_model_thinks_of_the_market_is_listed_and_no_failure() -> None:
    score = judge(facts(decided=skipped("skipped_ood")))

    assert (score.passed, score.skipped) == (True, {"skipped_ood": 1})


def test_an_order_that_was_sent_or_carried_out_twice_is_counted_and_so_is_a_second_entry_of_one_signal() -> None:
    asked = [Asked("e.1.A.0", 1, 1), Asked("e.1.B.0", 2, 1), Asked("x.1.A.0", 1, 2)]

    score = judge(facts(asked=asked, entries=["A", "B", "A"]))

    assert score.orders_twice == 3
    assert not score.passed


def test_what_does_not_heal_fails_and_so_does_a_process_that_ended() -> None:
    assert judge(facts(seconds_to_heal=None)).reasons == ["it did not heal"]
    assert judge(facts(trouble=["a worker ended by itself"])).reasons == ["a worker ended by itself"]
    assert judge(facts(books=["fills differ"])).reasons == ["fills differ"]


def test_what_a_contract_is_too_young_for_excuses_no_other_skip() -> None:
    young = Down("too young", 0, LAST, BTC, "skipped_warmup")

    assert judge(facts(decided=skipped("skipped_warmup"), down=[young])).passed
    assert not judge(facts(decided=skipped("skipped_stale"), down=[young])).passed
    assert not judge(facts(decided=skipped("skipped_warmup", symbol=ETH), down=[young])).passed
