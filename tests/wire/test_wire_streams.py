"""Every payload of tests/wire/binance becomes what it says; every message type has one; recordings decode whole."""

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from perpline.common.errors import Malformed
from perpline.domain.candle import KlineUpdate
from perpline.domain.market import BookTicker, MarkPrice
from perpline.exchange.binance.decode import Control, Dropped, FieldWatch, Frame, Unknown, decode
from perpline.exchange.binance.messages import KNOWN_FIELDS, StreamMessage

PAYLOADS = Path(__file__).parent / "binance"
RECORDINGS = Path(__file__).parents[2].parent / "shared" / "data" / "ws-frames"

RECEIVED_US = 1_790_526_539_000_123
AT = 1_790_526_539_000


def book(symbol: str = "BTCUSDT", **changes: object) -> BookTicker:
    usual = BookTicker(symbol, 84551.0, 2.646, 84551.1, 5.302, 11671659685961, 1790526538940, AT)
    return msgspec.structs.replace(usual, **changes)


def mark(symbol: str, price: float, index: float, rate: float, funding: int, at: int) -> MarkPrice:
    return MarkPrice(symbol, price, index, rate, funding, at, AT)


def kline(symbol: str, interval: str, times: tuple[int, int], numbers: tuple, closed: bool, event: int) -> KlineUpdate:
    return KlineUpdate(symbol, interval, *times, *numbers, closed, "ws", event, AT, RECEIVED_US)


BTC_CANDLE = (83896.4, 83920.0, 83860.1, 83860.2, 114.602, 9615538.6678, 2239, 48.488, 4068722.1036)
MINUTE = (1790771340000, 1790771399999)

EXPECTED: dict[str, Frame] = {
    "bookTicker": Frame("bookTicker", "btcusdt@bookTicker", book()),
    "bookTicker_2021": Frame(
        "bookTicker",
        "ethusdt@bookTicker",
        BookTicker("ETHUSDT", 1950.1, 2.0, 1950.11, 297.0, 600859600576, 1626992741017, AT),
    ),
    "bookTicker_bare": Frame("bookTicker", "", book()),
    "bookTicker_bare_symbol_first": Frame("bookTicker", "", book()),
    "bookTicker_without_E": Frame("bookTicker", "", book(bid_qty=0.0, updated_at=1790526538939)),
    "bookTicker_coin_m": Frame("bookTicker", "!bookTicker", Dropped("coin_m"), 1),
    "bookTicker_chinese": Frame(
        "bookTicker",
        "币安人生usdt@bookTicker",
        BookTicker("币安人生USDT", 0.1201, 2646.0, 0.1202, 5302.0, 7, 1790526538940, AT),
    ),
    "bookTicker_spaces": Frame(
        "bookTicker", "btcusdt@bookTicker", BookTicker("BTCUSDT", 1.5, 2.0, 1.6, 3.0, 7, 1790526538940, AT)
    ),
    "markPriceUpdate": Frame(
        "markPrice",
        "btcusdt@markPrice@1s",
        mark("BTCUSDT", 76888.1, 76935.00826087, 0.000089, 1789488000000, 1789478303000),
    ),
    "markPriceUpdate_2021": Frame(
        "markPrice",
        "btcusdt@markPrice",
        mark("BTCUSDT", 58940.14924532, 58857.26693664, -0.00058455, 1617321600000, 1617308820003),
    ),
    "markPriceUpdate_delisted": Frame("markPrice", "", mark("OLDUSDT", 0.12, 0.0, 0.0, 0, 1791391083000)),
    "markPriceUpdate_delivery": Frame("markPrice", "", mark("BTCUSDT_261225", 85001.0, 84990.0, 0.0, 0, 1791391083000)),
    "markPriceUpdate_coin_m": Frame("markPrice", "", Dropped("coin_m"), 1),
    "markPriceUpdate_array": Frame(
        "markPrice",
        "!markPrice@arr@1s",
        [
            mark("BTCUSDT", 85001.0, 84990.0, 0.0001, 1791417600000, 1791391083000),
            mark("ETHUSDT", 3001.0, 3002.0, -0.0001, 1791417600000, 1791391083000),
        ],
        1,
    ),
    "markPriceUpdate_array_bare": Frame(
        "markPrice", "", [mark("ETHUSDT", 1981.1570442, 1978.08197502, 0.00059142, 1617321600000, 1617309024002)]
    ),
    "kline_forming": Frame(
        "kline_1m", "btcusdt@kline_1m", kline("BTCUSDT", "1m", MINUTE, BTC_CANDLE, False, 1790771371858)
    ),
    "kline_closed": Frame(
        "kline_15m",
        "btcusdt@kline_15m",
        kline("BTCUSDT", "15m", (1790771400000, 1790772299999), BTC_CANDLE, True, 1790772300212),
    ),
    "kline_closed_without_trades": Frame(
        "kline_1m",
        "",
        kline("OLDUSDT", "1m", MINUTE, (0.12, 0.12, 0.12, 0.12, 0.0, 0.0, 0, 0.0, 0.0), True, 1790771400212),
    ),
    "kline_1h_forming": Frame(
        "kline_1h",
        "",
        kline(
            "BTCUSDT",
            "1h",
            (1790769600000, 1790773199999),
            (2.0, 4.0, 1.0, 3.0, 10.0, 20.0, 2, 5.0, 10.0),
            False,
            1790771400212,
        ),
    ),
    "kline_5m_unhandled": Frame("kline_5m", "btcusdt@kline_5m", Unknown("kline_5m")),
    "kline_1M_unhandled": Frame("kline_1M", "btcusdt@kline_1M", Unknown("kline_1M")),
    "aggTrade_unhandled": Frame("aggTrade", "btcusdt@aggTrade", Unknown("aggTrade")),
    "trade_unhandled": Frame("trade", "", Unknown("trade")),
    "depthUpdate_unhandled": Frame("depth", "btcusdt@depth@100ms", Unknown("depthUpdate")),
    "depthUpdate_coin_m": Frame("depth", "btcusd_perp@depth", Dropped("coin_m"), 1),
    "depthSnapshot_unhandled": Frame("depthSnapshot", "", Unknown("depthSnapshot")),
    "depthSnapshot_spot_unhandled": Frame("depthSnapshot", "ethusdt@depth20", Unknown("depthSnapshot")),
    "forceOrder_unhandled": Frame("forceOrder", "!forceOrder@arr", Unknown("forceOrder")),
    "ticker_array_unhandled": Frame("ticker", "!ticker@arr", Unknown("24hrTicker")),
    "contractInfo_unhandled": Frame("contractInfo", "", Unknown("contractInfo")),
    "tradingSession_unhandled": Frame("EquityUpdate", "tradingSession", Unknown("EquityUpdate")),
    "tomorrows_event_unhandled": Frame("whaleAlert", "btcusdt@whaleAlert", Unknown("whaleAlert")),
    "empty_array_unhandled": Frame("emptyArray", "!miniTicker@arr", Unknown("emptyArray")),
    "control_acknowledged": Frame("control", "", Control(1)),
    "control_acknowledged_text_id": Frame("control", "", Control("9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d")),
    "control_list": Frame("control", "", Control(3, ["btcusdt@aggTrade", "btcusdt@depth"])),
    "control_property": Frame("control", "", Control(2, True)),
    "control_error": Frame(
        "control", "", Control(None, None, 2, "Invalid request: request ID must be an unsigned integer")
    ),
    "control_error_bare": Frame(
        "control", "", Control(None, None, 3, "Invalid JSON: expected value at line 1 column 1")
    ),
}


def payload(name: str) -> bytes:
    return (PAYLOADS / f"{name}.json").read_bytes()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_payload_becomes_what_it_says(name: str) -> None:
    assert decode(payload(name), RECEIVED_US) == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_memoryview_reads_like_bytes(name: str) -> None:
    assert decode(memoryview(bytearray(payload(name))), RECEIVED_US) == EXPECTED[name]


def test_every_payload_has_an_expectation() -> None:
    assert {path.stem for path in PAYLOADS.glob("*.json")} == set(EXPECTED)


def test_every_message_type_has_a_payload_and_a_list_of_its_fields() -> None:
    seen = {name.split("_")[0] for name, frame in EXPECTED.items() if not isinstance(frame.content, Unknown)}
    for message in get_args(StreamMessage):
        event_type = message.__struct_config__.tag
        assert event_type in seen
        assert set(message.__struct_encode_fields__) <= KNOWN_FIELDS[event_type]


@pytest.mark.parametrize("name", [name for name, frame in EXPECTED.items() if not isinstance(frame.content, Unknown)])
def test_a_payload_of_today_has_no_unknown_field(name: str) -> None:
    assert FieldWatch().see(payload(name)) == ()


def lines(path: Path) -> Iterator[bytes]:
    opened = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
    with opened as file:
        for line in file:
            _time, separator, frame = line.partition(b" ")
            if separator and frame.startswith((b"{", b"[")):
                yield frame


@pytest.mark.skipif(not RECORDINGS.exists(), reason="../shared/data/ws-frames is not here")
@pytest.mark.parametrize(
    ("name", "events"),
    [
        (
            "hftbacktest/usdm_btcusdt_20230404.dat.gz",
            {"bookTicker": 6765, "depth": 4322, "markPrice": 99, "trade": 2197},
        ),
        ("hftbacktest/usdm_btcusdt_20240718.gz", {"bookTicker": 7113, "depth": 3326, "trade": 974}),
        ("hftbacktest/usdm_btcusdt_20240719.gz", {"bookTicker": 45147, "depth": 5696, "trade": 9727}),
        ("hftbacktest/usdm_ethusdt_20240718.gz", {"bookTicker": 9089, "depth": 3273, "trade": 1640}),
    ],
)
def test_a_recording_decodes_whole(name: str, events: dict[str, int]) -> None:
    watch = FieldWatch()
    kinds: Counter[str] = Counter()
    for frame in lines(RECORDINGS / name):
        decoded = decode(frame, RECEIVED_US)
        kinds[decoded.kind] += 1
        if isinstance(decoded.content, BookTicker | MarkPrice):
            wire = json.loads(frame)["data"]
            assert decoded.content.symbol == wire["s"]
            assert decoded.content.updated_at == wire["E"]
            if isinstance(decoded.content, BookTicker):
                assert (decoded.content.bid, decoded.content.ask_qty) == (float(wire["b"]), float(wire["A"]))
            watch.see(frame)

    kinds.pop("depthSnapshot", 0)
    assert kinds == events
    assert watch.counts == {}


@pytest.mark.skipif(not RECORDINGS.exists(), reason="../shared/data/ws-frames is not here")
def test_the_closing_candles_of_2021_are_found() -> None:
    closed = []
    kinds: Counter[str] = Counter()
    for frame in lines(RECORDINGS / "cryptofeed" / "BINANCE_FUTURES.2021-07-22.ws.1.0"):
        decoded = decode(frame, RECEIVED_US)
        kinds[decoded.kind] += 1
        if isinstance(decoded.content, KlineUpdate) and decoded.content.closed:
            closed.append(decoded.content.symbol)

    assert sorted(closed) == ["AKROUSDT", "CTKUSDT", "KEEPUSDT", "SUSHIUSDT"]
    assert set(kinds) == {"bookTicker", "depth", "aggTrade", "kline_1m"}


@pytest.mark.skipif(not RECORDINGS.exists(), reason="../shared/data/ws-frames is not here")
@pytest.mark.parametrize(
    ("name", "count"), [("captured-2026/frames_A.jsonl", 13), ("crypto-msg-parser/binance_frames.jsonl", 20)]
)
def test_single_messages_of_usd_m_decode(name: str, count: int) -> None:
    decoded = []
    for line in (RECORDINGS / name).read_text().splitlines():
        record = json.loads(line)
        if record.get("market_type_hint", "LinearSwap").startswith("Linear"):
            decoded.append(decode(record["raw"].encode(), RECEIVED_US))

    assert len(decoded) == count
    assert not any(isinstance(frame.content, Dropped | Control) for frame in decoded)


def test_half_a_recorded_frame_is_malformed() -> None:
    with pytest.raises(Malformed, match="truncated"):
        decode(payload("kline_closed")[:150], RECEIVED_US)
