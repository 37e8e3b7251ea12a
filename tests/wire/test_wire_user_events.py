"""Every payload of tests/wire/binance_user becomes what it says; hostile ones are refused; recorded lives decode."""

import json
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from perpline.common.errors import Malformed
from perpline.domain.order import (
    AccountUpdate,
    ExchangePosition,
    Fill,
    LeverageChanged,
    ListenKeyExpired,
    MarginCall,
    OrderReport,
    OrderStatus,
    StopReport,
    StopStatus,
    UserEvent,
)
from perpline.exchange.binance.messages import USER_EVENT_TYPES
from perpline.exchange.binance.user_events import Ignored, decode_user_event

PAYLOADS = Path(__file__).parent / "binance_user"
RECORDINGS = Path(__file__).parents[2].parent / "shared" / "data" / "user-events" / "lean"

AT = 1790526538950
OURS = "e.1a.AAECAwQFBgcICQoLDA0ODw.0"

FILL = Fill(
    symbol="BTCUSDT",
    trade_id=77001,
    order_id=8886774,
    client_id=OURS,
    side="sell",
    price=Decimal("84551.1"),
    quantity=Decimal("0.012"),
    fee=Decimal("0.50730690"),
    fee_asset="USDT",
    realized_pnl=Decimal("-1.25"),
    is_maker=False,
    traded_at=1790526538939,
    received_at=AT,
)
PARTIAL = OrderReport(
    symbol="BTCUSDT",
    client_id=OURS,
    order_id=8886774,
    side="sell",
    status=OrderStatus.PARTIALLY_FILLED,
    quantity=Decimal("0.020"),
    filled=Decimal("0.012"),
    average_price=Decimal("84551.15"),
    reduce_only=False,
    kind="market",
    source="stream",
    updated_at=1790526538940,
    received_at=AT,
    fill=FILL,
)
NOTHING_NEW = replace(PARTIAL, fill=None)
LIQUIDATION = replace(
    PARTIAL, client_id="autoclose-1790526538939", kind="limit", status=OrderStatus.FILLED, filled=Decimal("0.020")
)
STOP = StopReport(
    symbol="BTCUSDT",
    client_algo_id="s.1a.AAECAwQFBgcICQoLDA0ODw.0",
    algo_id=2000000548906329,
    side="buy",
    kind="stop_market",
    status=StopStatus.NEW,
    trigger_price=Decimal("90000.1"),
    close_position=True,
    quantity=Decimal(0),
    order_id=0,
    source="stream",
    updated_at=1772477117723,
    received_at=AT,
)

EXPECTED: dict[str, UserEvent | Ignored] = {
    "order_new": replace(
        NOTHING_NEW,
        client_id="TEST",
        status=OrderStatus.NEW,
        quantity=Decimal("0.001"),
        filled=Decimal(0),
        average_price=None,
        kind="trailing_stop_market",
        updated_at=1568879465650,
    ),
    "order_partially_filled": PARTIAL,
    "order_filled_combined": replace(
        PARTIAL,
        status=OrderStatus.FILLED,
        filled=Decimal("0.020"),
        fill=replace(FILL, trade_id=77002, quantity=Decimal("0.008"), price=Decimal("84551.225"), is_maker=True),
    ),
    "order_canceled_without_fee": replace(NOTHING_NEW, status=OrderStatus.CANCELED),
    "order_expired_in_match": replace(
        NOTHING_NEW,
        status=OrderStatus.EXPIRED,
        filled=Decimal(0),
        average_price=None,
        detail="self-trade prevention",
    ),
    "order_expired_rest_of_market": replace(
        NOTHING_NEW, status=OrderStatus.EXPIRED, detail="the rest of a market order"
    ),
    "order_expired_for_a_new_reason": replace(NOTHING_NEW, status=OrderStatus.EXPIRED, detail="expiry reason 42"),
    "order_amended": replace(NOTHING_NEW, quantity=Decimal("0.030"), detail="amended"),
    "order_liquidation": replace(
        LIQUIDATION,
        fill=replace(FILL, client_id="autoclose-1790526538939", trade_id=77009, quantity=Decimal("0.020")),
    ),
    "order_liquidation_without_trade_id": replace(LIQUIDATION, fill=None),
    "order_chinese": replace(PARTIAL, symbol="币安人生USDT", fill=replace(FILL, symbol="币安人生USDT")),
    "algo_new": STOP,
    "algo_canceled": replace(
        STOP,
        symbol="BNBUSDT",
        client_algo_id="Q5xaq5EGKgXXa0fD7fs0Ip",
        algo_id=2148719,
        side="sell",
        kind="take_profit",
        status=StopStatus.CANCELED,
        trigger_price=Decimal(750),
        close_position=False,
        quantity=Decimal("0.01"),
        updated_at=1750515742297,
        detail="Reduce Only reject",
    ),
    "algo_finished": replace(STOP, status=StopStatus.FINISHED, order_id=974828356187, updated_at=1790526538940),
    "algo_trailing": replace(
        STOP,
        client_algo_id="t1",
        algo_id=3,
        side="sell",
        kind="trailing_stop_market",
        trigger_price=Decimal(0),
        close_position=False,
        quantity=Decimal("0.01"),
        updated_at=1790526538940,
    ),
    "account_order": AccountUpdate(
        reason="ORDER",
        wallet={"USDT": Decimal("122624.12345678"), "BUSD": Decimal(1)},
        changes={"USDT": Decimal("50.12345678")},
        positions=(
            ExchangePosition(
                symbol="BTCUSDT",
                quantity=Decimal(0),
                entry_price=Decimal(0),
                unrealized_pnl=Decimal(0),
                isolated=True,
                updated_at=1564745798938,
            ),
            ExchangePosition(
                symbol="ETHUSDT",
                quantity=Decimal(-20),
                entry_price=Decimal("6563.665"),
                unrealized_pnl=Decimal("2850.212"),
                isolated=False,
                updated_at=1564745798938,
            ),
        ),
        symbol="",
        updated_at=1564745798938,
        received_at=AT,
    ),
    "account_funding_fee": AccountUpdate(
        reason="FUNDING_FEE",
        wallet={"USDT": Decimal("9998.75")},
        changes={"USDT": Decimal("-1.25")},
        positions=(),
        symbol="BTCUSDT",
        updated_at=1790524800003,
        received_at=AT,
    ),
    "config_leverage": LeverageChanged(symbol="BTCUSDT", leverage=25, updated_at=1611646737476, received_at=AT),
    "config_multi_assets": Ignored("MULTI_ASSETS_MODE"),
    "margin_call": MarginCall(symbols=("ETHUSDT",), updated_at=1587727187525, received_at=AT),
    "listen_key_expired": ListenKeyExpired(updated_at=1736996475556, received_at=AT),
    "trade_lite": Ignored("TRADE_LITE"),
    "trigger_reject": Ignored("CONDITIONAL_ORDER_TRIGGER_REJECT"),
    "tomorrows_event": Ignored("WHALE_UPDATE"),
}


def payload(name: str) -> bytes:
    return (PAYLOADS / f"{name}.json").read_bytes()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_payload_becomes_what_it_says(name: str) -> None:
    assert decode_user_event(payload(name), AT) == EXPECTED[name]


def test_every_payload_has_an_expectation_and_every_message_a_payload() -> None:
    assert {path.stem for path in PAYLOADS.glob("*.json")} == set(EXPECTED)
    told = {json.loads(payload(name)).get("e") for name, event in EXPECTED.items() if not isinstance(event, Ignored)}
    assert told - {None} == USER_EVENT_TYPES


def test_only_what_is_not_left_out_on_purpose_is_news() -> None:
    news = [name for name, event in EXPECTED.items() if isinstance(event, Ignored) and not event.is_known]
    assert news == ["tomorrows_event"]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("order_partially_filled", '"q":"0.020"', '"q":"NaN"'),
        ("order_partially_filled", '"q":"0.020"', '"q":"Infinity"'),
        ("order_partially_filled", '"l":"0.012"', '"l":"1e999999"'),
        ("order_partially_filled", '"l":"0.012"', '"l":"1e-999999"'),
        ("order_partially_filled", '"l":"0.012"', '"l":"-0.012"'),
        ("order_partially_filled", '"L":"84551.1"', '"L":"0"'),
        ("order_partially_filled", '"S":"SELL"', '"S":"HOLD"'),
        ("order_partially_filled", '"X":"PARTIALLY_FILLED"', '"X":"HALF"'),
        ("order_partially_filled", '"i":8886774', '"i":-1'),
        ("order_partially_filled", '"i":8886774,', ""),
        ("order_partially_filled", '"s":"BTCUSDT"', '"s":"BTC/USDT"'),
        ("order_partially_filled", '"T":1790526538940', '"T":0'),
        ("algo_new", '"tp":"90000.1"', '"tp":"NaN"'),
        ("algo_new", '"tp":"90000.1"', '"tp":"high"'),
        ("algo_new", '"ai":""', '"ai":"none"'),
        ("algo_new", '"X":"NEW"', '"X":"SLEEPING"'),
        ("account_order", '"pa":"-20"', '"pa":"NaN"'),
        ("account_order", '"wb":"122624.12345678"', '"wb":"1e30"'),
        ("config_leverage", '"l":25', '"l":0'),
    ],
)
def test_what_cannot_be_is_malformed(name: str, old: str, new: str) -> None:
    text = payload(name).decode()
    assert old in text
    with pytest.raises(Malformed):
        decode_user_event(text.replace(old, new).encode(), AT)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"{}", b'{"e":5}', b'{"e":"\\n"}', b'{"result":null,"id":1}', b"[" * 5000, b'"\xff\xfe"'],
)
def test_what_is_no_user_event_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode_user_event(data, AT)


@given(st.sampled_from(sorted(EXPECTED)), st.data())
def test_any_damage_to_a_payload_is_an_event_or_malformed_and_nothing_else(name: str, draw: st.DataObject) -> None:
    data = bytearray(payload(name))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    with suppress(Malformed):
        decode_user_event(bytes(data), AT)


def recorded(name: str) -> Iterator[bytes]:
    text = (RECORDINGS / name).read_text()
    decoder = json.JSONDecoder()
    while text.strip():
        _, end = decoder.raw_decode(text.lstrip())
        yield text.lstrip()[:end].encode()
        text = text.lstrip()[end:]


@pytest.mark.skipif(not RECORDINGS.exists(), reason="../shared/data/user-events is not here")
def test_the_recorded_order_lives_decode() -> None:
    lives = {}
    for path in sorted(RECORDINGS.glob("*.json")):
        events = [decode_user_event(frame, AT) for frame in recorded(path.name)]
        assert all(isinstance(event, OrderReport | StopReport) for event in events)
        lives[path.stem.removeprefix("WebSocketFuture")] = [str(event.status) for event in events]

    assert lives == {
        "LimitSubmittedFilled": ["new", "filled"],
        "MarketSubmittedFilled": ["new", "filled"],
        "StopMarketSubmittedCanceled": ["new", "canceled"],
    }


def test_a_complaint_does_not_tell_the_listen_key() -> None:
    text = payload("order_filled_combined").decode()
    assert "pqia91ma19a5" in text
    with pytest.raises(Malformed) as caught:
        decode_user_event(text.replace('"i":8886774', '"i":-1').encode(), AT)
    assert "pqia91ma19a5" not in str(caught.value)
    assert "ORDER_TRADE_UPDATE" in str(caught.value)
