import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from perpline.features.catalogue import CATALOGUE, schema_hash
from perpline.inference.baseline import Baseline, LabelRule, label_hash

NAMES = [feature.name for feature in CATALOGUE]
MODEL = Baseline()


def vector(**values: float) -> list[float]:
    return [values.get(name, 0.0) for name in NAMES]


def p_long(**values: float) -> float:
    return float(MODEL.predict(np.array([vector(**values)], np.float32))[0, 0])


@given(
    tbi_15=st.floats(-0.2, 0.2),
    tbi_60=st.floats(-0.2, 0.2),
    others=st.lists(st.floats(-8, 8, width=32), min_size=len(NAMES), max_size=len(NAMES)),
)
def test_while_takers_are_balanced_it_stays_near_even_whatever_else_happens(
    tbi_15: float, tbi_60: float, others: list[float]
) -> None:
    p = p_long(**{**dict(zip(NAMES, others, strict=True)), "tbi_15": tbi_15, "tbi_60": tbi_60})

    assert 0.485 <= p <= 0.515


def test_it_leans_with_the_takers_and_reaches_its_threshold_where_it_says() -> None:
    assert p_long(tbi_15=0.31, zret_15=2.0) >= MODEL.threshold > p_long(tbi_15=0.30, zret_15=2.0)
    assert p_long(tbi_15=0.36, zret_15=-2.0) >= MODEL.threshold > p_long(tbi_15=0.35, zret_15=-2.0)


@given(st.floats(-1, 1, width=32), st.floats(-1, 1, width=32), st.floats(-8, 8, width=32))
def test_long_and_short_are_mirror_images(tbi_15: float, tbi_60: float, zret_15: float) -> None:
    there, back = MODEL.predict(
        np.array(
            [
                vector(tbi_15=tbi_15, tbi_60=tbi_60, zret_15=zret_15),
                vector(tbi_15=-tbi_15, tbi_60=-tbi_60, zret_15=-zret_15),
            ],
            np.float32,
        )
    )

    assert there.tolist() == back[::-1].tolist()
    assert there.sum() == pytest.approx(1, abs=1e-12)


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40))
def test_a_row_gets_the_same_bits_alone_and_in_a_batch(imbalances: list[float]) -> None:
    rows = np.array([vector(tbi_15=each) for each in imbalances], np.float32)

    assert MODEL.predict(rows).tobytes() == b"".join(MODEL.predict(row[None]).tobytes() for row in rows)


@pytest.mark.parametrize("name", MODEL.critical)
def test_without_a_critical_feature_there_is_no_probability(name: str) -> None:
    row = [math.nan if column == name else 0.5 for column in NAMES]

    p = MODEL.predict(np.array([row], np.float32))

    assert np.isnan(p).all()


def test_without_other_features_there_is_one() -> None:
    row = [0.0 if name in MODEL.critical else math.nan for name in NAMES]

    assert MODEL.predict(np.array([row], np.float32)).tolist() == [[0.5, 0.5]]


def test_no_rows_make_no_probabilities() -> None:
    assert MODEL.predict(np.empty((0, len(NAMES)), np.float32)).shape == (0, 2)


def test_it_says_what_it_was_made_for() -> None:
    assert MODEL.model_id == "baseline-1"
    assert MODEL.schema_hash == schema_hash(CATALOGUE)
    assert MODEL.critical == ("zret_15", "tbi_15", "tbi_60")
    assert MODEL.rule.break_even == pytest.approx(0.57)
    assert MODEL.threshold > MODEL.rule.break_even


def test_the_label_hash_changes_with_every_number_of_the_rule() -> None:
    rule = LabelRule(1.0, 1.0, 14_400, 14.0)
    others = [structs.replace(rule, **{name: 2}) for name in LabelRule.__struct_fields__]

    assert MODEL.label_hash == label_hash(rule)
    assert len({label_hash(each) for each in [rule, *others]}) == 5
