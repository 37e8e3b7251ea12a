import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from perpline.signals import policy
from perpline.training.examples import LEAST_UNIVERSE_SHARE, compares_symbols, join, thin_minutes
from perpline.training.labels import Labels
from training import MINUTE


def minutes(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64) * MINUTE


def test_minutes_with_fewer_than_nine_of_ten_symbols_are_thin() -> None:
    whole = minutes(1, 2, 3, 4)

    assert thin_minutes([whole] * 9 + [minutes(1, 3, 4)]).tolist() == []
    assert thin_minutes([whole] * 8 + [minutes(1, 3, 4)] * 2).tolist() == minutes(2).tolist()


def test_a_symbol_that_is_not_listed_yet_or_not_any_more_is_not_missing() -> None:
    whole = minutes(1, 2, 3, 4, 5)

    assert thin_minutes([whole, whole, minutes(3, 4, 5), minutes(1, 2), minutes()]).tolist() == []


@given(st.lists(st.sets(st.integers(0, 30)), max_size=25))
def test_thin_minutes_are_those_a_count_by_hand_finds(sets: list[set[int]]) -> None:
    expected = []
    for minute in sorted(set().union(*sets)):
        listed = [one for one in sets if one and min(one) <= minute <= max(one)]
        if sum(minute in one for one in listed) < 0.9 * len(listed):
            expected.append(minute * MINUTE)

    assert thin_minutes([minutes(*sorted(one)) for one in sets]).tolist() == expected


def labelled(times: np.ndarray) -> Labels:
    count = len(times)
    return Labels(
        times=times,
        reason=np.ones((count, 2), np.int8),
        net=np.zeros((count, 2)),
        gross=np.zeros((count, 2)),
        ends=np.stack([times + MINUTE] * 2, axis=1),
        worst=np.zeros((count, 2), np.float32),
        best=np.zeros((count, 2), np.float32),
    )


def test_thin_minutes_are_not_trained_on_where_columns_compare_symbols() -> None:
    times = {"AAA": minutes(1, 2, 3), "BBB": minutes(1, 3), "CCC": minutes(1, 2, 3)}

    def joined(name: str) -> tuple[list[int], int]:
        dataset = {symbol: (each, np.zeros((len(each), 1), np.float32)) for symbol, each in times.items()}
        made = join(dataset, {symbol: labelled(each) for symbol, each in times.items()}, (name,), ())
        return (made.times // MINUTE).tolist(), made.thin

    assert joined("rank_60") == ([1, 3, 1, 3, 1, 3], 2)
    assert joined("ret_1") == ([1, 2, 3, 1, 3, 1, 2, 3], 0)


def test_live_and_training_leave_out_the_same_minutes() -> None:
    assert LEAST_UNIVERSE_SHARE == policy.LEAST_UNIVERSE_SHARE
    assert compares_symbols(("ret_1", "mkt_15"))
