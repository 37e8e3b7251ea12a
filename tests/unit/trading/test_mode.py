"""Which mode is in force, and since when, whoever set it."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perpline.domain.messages import json_schema, with_number
from perpline.storage.sqlite import SqliteStore
from perpline.trading.mode import (
    Change,
    Examination,
    InForce,
    Mode,
    ModeRow,
    Modes,
    Positions,
    last_examination,
    mode_rows,
    note_examination,
    set_mode,
)

NOW = 1_795_219_260_000
HOUR = 3_600_000


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "perpline.db")
    await store.open()
    yield store
    await store.close()


class Watched:
    """Modes with the changes they told, at a time that a test sets."""

    def __init__(self, store: SqliteStore) -> None:
        self.now = NOW
        self.changes: list[Change] = []
        self.modes = Modes(store, lambda: self.now, changed=self.changes.append)

    def told(self) -> list[tuple[str, str, str]]:
        told = [(change.row.symbol, str(change.old), str(change.new)) for change in self.changes]
        self.changes.clear()
        return told

    def of(self, *symbols: str) -> list[str]:
        return [str(self.modes.mode_of(symbol, self.now)) for symbol in symbols]


async def put(store: SqliteStore, mode: Mode, *symbols: str, now: int = NOW, **values: Any) -> None:
    asked = {"positions": "keep", "by": "me", "reason": "to see", "until": None, "slot": "champion", **values}
    await set_mode(store, symbols, mode, now=now, **asked)


def row(mode: Mode, symbol: str = "", changed_at: int = NOW, until: int | None = None) -> ModeRow:
    return ModeRow(
        symbol=symbol, mode=mode, positions="keep", changed_at=changed_at, by="me", reason="to see", until=until
    )


async def test_nothing_is_traded_before_somebody_sets_a_mode(store: SqliteStore) -> None:
    watched = Watched(store)
    assert watched.of("AUSDT") == ["off"]

    await watched.modes.look()

    assert watched.of("AUSDT") == ["off"]
    assert watched.told() == []


async def test_a_worker_starts_in_the_mode_last_stored_and_tells_no_change_of_it(store: SqliteStore) -> None:
    await put(store, Mode.PAPER)
    await put(store, Mode.LIVE, "AUSDT", until=NOW + HOUR)
    watched = Watched(store)

    await watched.modes.look()

    assert watched.of("AUSDT", "BUSDT") == ["live", "paper"]
    assert watched.told() == []


async def test_a_live_mode_whose_time_is_over_is_off_at_a_start_and_not_what_was_before_it(store: SqliteStore) -> None:
    await put(store, Mode.PAPER)
    await put(store, Mode.LIVE, until=NOW + HOUR)
    watched = Watched(store)
    watched.now = NOW + HOUR

    await watched.modes.look()

    assert watched.of("AUSDT") == ["off"]


async def test_a_change_is_told_at_the_next_look_and_once(store: SqliteStore) -> None:
    watched = Watched(store)
    await watched.modes.look()

    await put(store, Mode.PAPER)
    await watched.modes.look()
    assert watched.told() == [("", "off", "paper")]
    await put(store, Mode.LIVE, "AUSDT", "BUSDT", until=NOW + HOUR)
    await watched.modes.look()
    assert watched.told() == [("AUSDT", "paper", "live"), ("BUSDT", "paper", "live")]
    await watched.modes.look()
    assert watched.told() == []


async def test_a_mode_that_ends_in_a_running_worker_is_told_when_its_time_is_over(store: SqliteStore) -> None:
    await put(store, Mode.LIVE, until=NOW + HOUR)
    watched = Watched(store)
    await watched.modes.look()

    watched.now = NOW + HOUR - 1
    await watched.modes.look()
    assert (watched.told(), watched.of("AUSDT")) == ([], ["live"])
    watched.now = NOW + HOUR
    assert watched.of("AUSDT") == ["off"]
    await watched.modes.look()
    assert watched.told() == [("", "live", "off")]


async def test_the_same_mode_with_another_word_about_positions_is_a_change(store: SqliteStore) -> None:
    await put(store, Mode.OFF)
    watched = Watched(store)
    await watched.modes.look()

    await put(store, Mode.OFF, positions="flatten")
    await watched.modes.look()

    [change] = watched.changes
    assert (change.old, change.new, change.row.positions) == (Mode.OFF, Mode.OFF, "flatten")
    assert watched.modes.row_of("AUSDT") == change.row


async def test_off_for_all_is_off_for_each(store: SqliteStore) -> None:
    await put(store, Mode.LIVE, "AUSDT", until=NOW + HOUR)
    await put(store, Mode.OFF)
    watched = Watched(store)
    await watched.modes.look()
    assert watched.of("AUSDT", "BUSDT") == ["off", "off"]

    await put(store, Mode.PAPER)
    await watched.modes.look()

    assert watched.of("AUSDT", "BUSDT") == ["paper", "paper"]


async def test_a_symbol_that_was_taken_out_stays_out_when_all_others_go_live(store: SqliteStore) -> None:
    await put(store, Mode.PAPER)
    await put(store, Mode.OFF, "AUSDT")
    await put(store, Mode.LIVE, until=NOW + HOUR)
    watched = Watched(store)

    await watched.modes.look()

    assert watched.of("AUSDT", "BUSDT") == ["off", "live"]


def test_a_symbols_own_mode_that_is_over_is_forgotten_with_the_next_one_for_all() -> None:
    own = row(Mode.LIVE, "AUSDT", until=NOW + HOUR)
    before, after = (row(Mode.LIVE, changed_at=NOW + n * HOUR, until=NOW + 9 * HOUR) for n in (0, 1))

    assert InForce([own, before]).row_of("AUSDT") == own
    assert InForce([own, after]).row_of("AUSDT") == after


CHANGES = st.lists(
    st.tuples(st.sampled_from(Mode), st.sampled_from(["", "", "AUSDT", "BUSDT"]), st.none() | st.integers(1, 5)),
    max_size=12,
)


@given(CHANGES)
def test_nothing_is_ever_more_daring_than_its_last_own_mode_or_a_mode_for_all_after_it(changes: list[Any]) -> None:
    rank = {"off": 0, "paper": 1, "live": 2}
    rows = [
        row(mode, symbol, NOW + n, None if lasts is None else NOW + n + lasts)
        for n, (mode, symbol, lasts) in enumerate(changes)
    ]
    in_force = InForce(rows)
    now = NOW + len(rows)

    for symbol in ("AUSDT", "BUSDT", "CUSDT"):
        mode = in_force.row_of(symbol).at(now)
        said = [each for each in rows if each.symbol in ("", symbol)]
        assert rank[mode] <= max([rank[each.at(now)] for each in said], default=0)
        for_all = [n for n, each in enumerate(said) if each.symbol == ""]
        if for_all and said[for_all[-1]].mode == Mode.OFF and not said[for_all[-1] + 1 :]:
            assert mode == Mode.OFF
        own = [each for each in said if each.symbol == symbol]
        if own and said[-1] == own[-1]:
            assert in_force.row_of(symbol) == own[-1]


async def test_every_change_is_a_row_and_a_message_that_fits_its_schema(store: SqliteStore) -> None:
    asked: dict[str, Any] = {"by": "ann@host", "slot": "champion"}
    positions: Positions = "protect"
    await set_mode(store, [], Mode.PAPER, positions="keep", now=NOW, reason=" to see ", until=None, **asked)
    rows = await set_mode(
        store, ["AUSDT"], Mode.LIVE, positions=positions, now=NOW + 1, reason="go", until=NOW + HOUR, **asked
    )

    pending = await store.pending_messages(9)
    assert rows == (await mode_rows(store))[1:]
    assert [(one.kind, one.symbol) for one in pending] == [("mode", ""), ("mode", "AUSDT")]
    payload = json.loads(with_number(pending[1].payload, "t_pub_us", 1))
    assert list(payload) == json_schema("mode")["required"]
    expected = {"mode": "live", "prev": "paper", "positions": "protect", "T": NOW + 1, "until": NOW + HOUR}
    assert payload | expected == payload
    assert [each.reason for each in await mode_rows(store)] == ["to see", "go"]


async def test_a_change_without_a_reason_or_that_is_over_already_is_refused(store: SqliteStore) -> None:
    with pytest.raises(ValueError, match="has a reason"):
        await put(store, Mode.PAPER, reason="  ")
    with pytest.raises(ValueError, match="over before it began"):
        await put(store, Mode.LIVE, until=NOW)

    assert await mode_rows(store) == []


async def test_the_last_examination_is_that_of_the_same_keys(store: SqliteStore) -> None:
    ours, other = "0a1b", "2c3d"
    assert await last_examination(store, ours) is None

    first, second = (Examination(at=n, account_hash=ours, passed=n == 1, result="{}") for n in (1, 2))
    for one in (first, second, Examination(at=3, account_hash=other, passed=True, result="{}")):
        await note_examination(store, one)

    assert await last_examination(store, ours) == second
