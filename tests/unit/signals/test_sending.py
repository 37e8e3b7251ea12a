"""Which collector a symbol belongs to."""

from bench.frames import symbol_names

from perpline.signals.sending import shard_of


def test_a_symbol_stays_in_its_shard_whatever_else_is_followed() -> None:
    """Hosts of other versions of Python and of perpline must agree on it, so the numbers are written down here."""
    names = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "币安人生USDT")
    assert [shard_of(name, 2) for name in names] == [1, 1, 1, 2]
    assert [shard_of(name, 7) for name in names] == [6, 5, 2, 5]


def test_every_symbol_belongs_to_one_shard_and_shards_are_about_even() -> None:
    names = symbol_names(528)
    for shards in (1, 2, 3, 8):
        sizes = [sum(shard_of(name, shards) == each for name in names) for each in range(1, shards + 1)]
        assert sum(sizes) == 528
        assert max(sizes) < 1.35 * 528 / shards
