from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from perpline.domain.order import Leg
from perpline.storage.store import TRADING_TABLES
from perpline.trading.position import Position, apply_fill, position_from_row, position_row, unbook
from trading import NOW, fill


def fresh(side: int = 1) -> Position:
    return Position(account="paper", position_id="p" * 22, symbol="BTCUSDT", side=side, opened_at=NOW)


def test_entries_average_and_a_partial_close_leaves_the_average_alone() -> None:
    position = fresh()
    for trade_id, (side, price, quantity, leg) in enumerate(
        (
            ("buy", "100", "1", Leg.ENTRY),
            ("buy", "104", "3", Leg.ENTRY),
            ("sell", "113", "1", Leg.EXIT),
            ("sell", "93", "1", Leg.STOP),
        )
    ):
        assert apply_fill(position, fill(side, price, quantity, trade_id, 1), leg) == 0  # type: ignore[arg-type]

    assert (position.entry_price, position.exit_price) == (Decimal(103), Decimal(103))
    assert (position.quantity, position.opened_quantity) == (Decimal(2), Decimal(4))
    assert position.realized_pnl == 0
    assert position.unrealized_pnl(Decimal(105)) == 4
    assert (position.status, position.opened_at) == ("open", NOW)


def test_a_position_never_flips_and_what_is_too_much_is_told() -> None:
    position = fresh(-1)
    apply_fill(position, fill("sell", "100", "2", 1, 1), Leg.ENTRY)

    assert apply_fill(position, fill("buy", "90", "5", 2, 2), "manual") == 3
    assert (position.quantity, position.realized_pnl, position.signed_quantity) == (0, 20, 0)
    assert position.fees == Decimal("0.1") + Decimal("0.09")  # of the second fill its two fifths


@given(
    st.sampled_from([1, -1]),
    st.lists(st.tuples(st.booleans(), st.integers(1, 50), st.integers(50, 150)), max_size=20),
)
def test_realised_and_unrealised_profit_add_up_to_the_cash_flow(side: int, steps: list[tuple[bool, int, int]]) -> None:
    position = fresh(side)
    cash = Decimal(0)
    for trade_id, (adds, quantity, price) in enumerate(steps):
        each = fill("buy" if adds == (side > 0) else "sell", str(price), str(quantity), trade_id, 1)
        left = apply_fill(position, each, Leg.ENTRY if adds else Leg.EXIT)
        cash -= side * (each.quantity - left) * each.price * (1 if adds else -1)
    mark = Decimal(100)

    total = position.realized_pnl + position.unrealized_pnl(mark)
    assert abs(total - (cash + position.signed_quantity * mark)) < Decimal("1e-18")


def test_a_position_comes_back_from_its_row_as_it_was() -> None:
    position = fresh()
    apply_fill(position, fill("buy", "100.10", "0.003", 1, 1), Leg.ENTRY)
    position.stop, position.deadline = Decimal("99.10"), NOW + 5
    table = TRADING_TABLES["positions"]

    assert position_from_row(table.named(table.row(position_row(position)))) == position
    assert set(position_row(position)) == set(table.columns)


def test_what_is_unbooked_can_be_booked_again() -> None:
    position = fresh()
    each = fill("buy", "100.10", "0.003", 1, 1)
    apply_fill(position, each, Leg.ENTRY)
    once = structs.replace(position)
    unbook(position)
    assert (position.quantity, position.entry_price, position.fees) == (0, None, 0)
    apply_fill(position, each, Leg.ENTRY)

    assert position == once
