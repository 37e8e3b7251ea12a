import runpy
from itertools import groupby
from pathlib import Path

import msgspec
import numpy as np

from perpline.features import kernel
from perpline.features.batch import rules
from perpline.features.catalogue import (
    CATALOGUE,
    COLUMN,
    CORE,
    FLOW_INPUTS,
    KERNEL_ABI,
    SCHEMAS,
    by_name,
    lookback_of,
    schema_hash,
)
from perpline.storage.history import HISTORY_TABLES

DOCS = Path(__file__).parents[3] / "docs"


def test_every_feature_has_its_own_name_a_formula_and_a_reason_to_be_empty() -> None:
    assert len({feature.name for feature in CATALOGUE}) == len(CATALOGUE) == kernel.WIDTH == 118
    assert (len(CORE), CORE) == (100, CATALOGUE[:100])
    for feature in CATALOGUE:
        assert feature.formula
        assert feature.inputs
        assert "N1" in feature.nan
        assert 0 < feature.lookback_min <= lookback_of(CATALOGUE) == 10_140
        assert feature is by_name[feature.name] is CATALOGUE[COLUMN[feature.name]]


def test_the_groups_lie_where_the_kernel_writes_them() -> None:
    first = {group: COLUMN[next(features).name] for group, features in groupby(CATALOGUE, lambda f: f.group)}

    assert first == {name: getattr(kernel, "X" if name == "K" else name) for name in "ABCDEFGHIJKLM"}


def test_every_input_is_a_column_of_a_table() -> None:
    for feature in CATALOGUE:
        for table, column in (each.split(".") for each in feature.inputs):
            if table == "long_short_ratio":
                assert column in ("global_account", "top_account", "top_position")
            elif table != "instruments":
                assert column in HISTORY_TABLES[table], feature.name


def test_the_kernel_is_told_what_the_catalogue_says() -> None:
    told = rules()

    assert told.shape == (4, 118)
    assert not np.isnan(told).any()
    assert told[:, COLUMN["vlr_1_60"]].tolist() == [60, -5, 5, 1]
    assert told[:, COLUMN["ret_1"]].tolist() == [2, -np.inf, np.inf, 0]


def test_what_has_no_input_is_in_no_schema_that_lacks_it() -> None:
    assert {name: len(features) for name, features in SCHEMAS.items()} == {
        "core": 100,
        "candles": 71,
        "candles_day": 68,
        "ohlcv": 51,
        "ohlcv_day": 50,
        "core_cross": 108,
        "core_calendar": 103,
        "core_book": 106,
    }
    prices = {f"candles_1m.{column}" for column in ("open", "high", "low", "close", "volume")}
    for name in ("ohlcv", "ohlcv_day"):
        assert {each for feature in SCHEMAS[name] for each in feature.inputs} <= prices - FLOW_INPUTS
    for name in ("candles_day", "ohlcv_day"):
        assert lookback_of(SCHEMAS[name]) == 1_500
    assert {table for feature in SCHEMAS["candles"] for table in feature.tables} == {"candles_1m"}


def test_the_schema_hash_is_the_same_on_every_machine() -> None:
    # A new value here means that stored vectors and models no longer fit: bump a version or KERNEL_ABI on purpose.
    assert (KERNEL_ABI, schema_hash(CORE)) == (2, "58d69033252f502be99773f9756980da")


def test_the_schema_hash_changes_with_order_version_lookback_and_clip() -> None:
    first, *rest = CATALOGUE
    changed = [
        schema_hash(CATALOGUE),
        schema_hash([*rest, first]),
        schema_hash(rest),
        schema_hash([msgspec.structs.replace(first, version=2), *rest]),
        schema_hash([msgspec.structs.replace(first, lookback_min=3), *rest]),
        schema_hash([msgspec.structs.replace(first, clip=(-1.0, 1.0)), *rest]),
    ]

    assert len(set(changed)) == len(changed)


def test_better_words_for_a_formula_leave_the_schema_as_it_is() -> None:
    first, *rest = CATALOGUE

    assert schema_hash([msgspec.structs.replace(first, formula="the same, put better"), *rest]) == schema_hash(
        CATALOGUE
    )


def test_the_page_of_features_is_what_the_catalogue_says() -> None:
    made = runpy.run_path(str(DOCS / "make_features.py"))["features_page"]()

    assert (DOCS / "features.md").read_text() == made, "run docs/make_features.py"
