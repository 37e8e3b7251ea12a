import msgspec

from perpline.features.catalogue import CATALOGUE, schema_hash


def test_every_feature_has_its_own_name_a_formula_and_a_reason_to_be_empty() -> None:
    assert len({feature.name for feature in CATALOGUE}) == len(CATALOGUE) == 14
    for feature in CATALOGUE:
        assert feature.formula
        assert feature.inputs
        assert "N1" in feature.nan
        assert 0 < feature.lookback_min <= 245
        assert feature.group in "ABEF"


def test_the_schema_hash_is_the_same_on_every_machine() -> None:
    # A new value here means that stored vectors and models no longer fit: bump a version or KERNEL_ABI on purpose.
    assert schema_hash(CATALOGUE) == "f73308b464a8e39991f017c374fbb3c7"


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
