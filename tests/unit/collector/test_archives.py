"""Files of market data: what they are is told by name, place and header, and nothing they hold is believed unseen."""

import hashlib
import io
import math
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from perpline.collector import archives
from perpline.collector.archives import ArchiveFile, FileRows, find, read
from perpline.collector.bulk import quantised_logs
from perpline.common.errors import Malformed, NeedsPerson
from perpline.domain.candle import quantised_log

MINUTE = 60_000
T0 = 1_780_272_000_000
"""2026-06-01."""
DATA = Path(__file__).parents[3] / ".." / "shared" / "data"
HEADER = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,taker_buy_quote_volume,ignore"
)


def kline(n: int, *, unit: int = 1, **other: object) -> str:
    """The line of the n-th minute of the day."""
    open_time = T0 + n * MINUTE
    row: dict[str, object] = {
        "open_time": open_time * unit,
        "open": "10.0",
        "high": "12.5",
        "low": "9.5",
        "close": "11.0",
        "volume": "100.5",
        "close_time": (open_time + MINUTE) * unit - 1,
        "quote_volume": "1100.25",
        "count": 7,
        "taker_buy_volume": "40.0",
        "taker_buy_quote_volume": "440.0",
        "ignore": 0,
    }
    return ",".join(map(str, {**row, **other}.values()))


def csv(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def zipped(path: Path, content: bytes, name: str = "x.csv") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return path


def only(path: Path, kind: archives.Kind = "candles", symbol: str | None = None) -> FileRows:
    [file] = find([path], kind, symbol).files
    return read(file)


def plain(rows: FileRows) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in rows.columns.items()}


# What a file is


@pytest.mark.parametrize(
    ("place", "kind", "symbol", "series"),
    [
        ("monthly/klines/BTCUSDT/1m/BTCUSDT-1m-2026-06.csv", "candles", "BTCUSDT", "candles_1m"),
        ("BTCUSDT-15m-2026-06-01.csv", "candles", "BTCUSDT", "candles_15m"),
        ("ETHUSDT_260925-1h-2026-06-01.csv", "candles", "ETHUSDT_260925", "candles_1h"),
        ("币安人生USDT-1m-2026-06-01.csv", "candles", "币安人生USDT", "candles_1m"),
        ("markPriceKlines/BTCUSDT/1m/BTCUSDT-1m-2026-06-01.csv", "candles", "BTCUSDT", "mark_klines"),
        ("indexPriceKlines/BTCUSDT/1m/BTCUSDT-1m-2026-06-01.csv", "candles", "BTCUSDT", "index_klines"),
        ("premiumIndexKlines/BTCUSDT/1m/BTCUSDT-1m-2026-06-01.csv", "candles", "BTCUSDT", "premium_klines"),
        ("BTCUSDT-metrics-2026-06-01.csv", "metrics", "BTCUSDT", "metrics"),
        ("BTCUSDT-fundingRate-2026-06.csv", "funding", "BTCUSDT", "funding_rates"),
        ("BTC_USDT_USDT-1m-futures.feather", "candles", "BTCUSDT", "candles_1m"),
        ("BTC_USDT_USDT-1m-mark.feather", "candles", "BTCUSDT", "mark_klines"),
    ],
)
def test_name_and_folder_tell_symbol_and_series(
    tmp_path: Path, place: str, kind: archives.Kind, symbol: str, series: str
) -> None:
    csv(tmp_path / place, "x")

    [file] = find([tmp_path], kind).files

    assert (file.symbol, file.series) == (symbol, series)


def test_a_folder_is_searched_and_what_is_for_another_import_is_left(tmp_path: Path) -> None:
    for name in ("BTCUSDT-1m-2026-06-02", "AAVEUSDT-1m-2026-06-02", "BTCUSDT-1m-2026-06-01", "BTCUSDT-4h-2026-06"):
        csv(tmp_path / "deep" / f"{name}.csv", kline(0))
    csv(tmp_path / "BTCUSDT-metrics-2026-06-01.csv", "x")
    csv(tmp_path / "notes.csv", "x")
    csv(tmp_path / "README.md", "x")

    found = find([tmp_path], "candles")

    assert [file.path.name[:-4] for file in found.files] == [
        "BTCUSDT-1m-2026-06-01",
        "AAVEUSDT-1m-2026-06-02",
        "BTCUSDT-1m-2026-06-02",
    ]
    assert sorted(found.ignored) == [
        "BTCUSDT-4h-2026-06.csv: candles of 4h are not kept",
        "BTCUSDT-metrics-2026-06-01.csv: this is for `perpline import metrics`",
        "notes.csv: its name tells no symbol and series, as BTCUSDT-1m-2026-10.zip does: give --symbol",
    ]


def test_a_named_file_that_cannot_be_taken_needs_a_person(tmp_path: Path) -> None:
    metrics = csv(tmp_path / "BTCUSDT-metrics-2026-06-01.csv", "x")

    with pytest.raises(NeedsPerson, match="for `perpline import metrics`"):
        find([metrics], "candles")
    with pytest.raises(NeedsPerson, match="is not there"):
        find([tmp_path / "nowhere"], "candles")


def test_a_file_of_any_name_is_taken_with_a_symbol_and_its_interval_found(tmp_path: Path) -> None:
    lines = [f"{T0 + n * 900_000},10,12,9,11,5" for n in range(4)]

    rows = only(csv(tmp_path / "mine.csv", *lines), symbol="BTCUSDT")

    assert rows.table == "candles_15m"
    assert sorted(rows.columns) == ["close", "high", "low", "open", "open_time", "volume"]
    with pytest.raises(Malformed, match="3 minutes apart"):
        only(csv(tmp_path / "odd.csv", *(f"{T0 + n * 3 * MINUTE},10,12,9,11,5" for n in range(4))), symbol="BTCUSDT")


# What it holds


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("unit", [1, 1000])
@pytest.mark.parametrize("packed", ["csv", "zip", "csv.zst"])
def test_klines_read_the_same_however_they_are_written(tmp_path: Path, header: bool, unit: int, packed: str) -> None:
    text = "\n".join([*([HEADER] if header else []), kline(0, unit=unit), kline(1, unit=unit, close="10.5")])
    path = tmp_path / f"BTCUSDT-1m-2026-06-01.{packed}"
    if packed == "zip":
        zipped(path, text.encode())
    else:
        path.write_bytes(zstandard.ZstdCompressor().compress(text.encode()) if packed == "csv.zst" else text.encode())

    rows = only(path)

    assert (rows.table, rows.invalid) == ("candles_1m", 0)
    assert plain(rows) == {
        "open_time": [T0, T0 + MINUTE],
        "open": [10.0, 10.0],
        "high": [12.5, 12.5],
        "low": [9.5, 9.5],
        "close": [11.0, 10.5],
        "volume": [100.5, 100.5],
        "quote_volume": [1100.25, 1100.25],
        "trades": [7.0, 7.0],
        "taker_buy_volume": [40.0, 40.0],
        "taker_buy_quote_volume": [440.0, 440.0],
    }


def test_price_klines_keep_their_prices_alone_and_a_premium_may_be_negative(tmp_path: Path) -> None:
    nothing = {"volume": 0, "quote_volume": 0, "count": 60, "taker_buy_volume": 0, "taker_buy_quote_volume": 0}
    line = kline(0, open="-0.0001", high="0.0002", low="-0.0003", close="0", **nothing)

    premium = only(csv(tmp_path / "premiumIndexKlines" / "BTCUSDT-1m-2026-06-01.csv", line))

    assert plain(premium) == {"open_time": [T0], "open": [-1e-4], "high": [2e-4], "low": [-3e-4], "close": [0.0]}
    with pytest.raises(Malformed, match=r"none of its 1 rows makes sense.* line 1: a price is not positive"):
        only(csv(tmp_path / "markPriceKlines" / "BTCUSDT-1m-2026-06-01.csv", line))


def test_price_klines_outside_their_folder_are_not_taken_for_candles(tmp_path: Path) -> None:
    nothing = {"volume": 0, "quote_volume": 0, "count": 60, "taker_buy_volume": 0, "taker_buy_quote_volume": 0}
    lines = [kline(n, **nothing) for n in range(20)]

    with pytest.raises(Malformed, match="no volume in any row"):
        only(csv(tmp_path / "BTCUSDT-1m-2026-06-01.csv", *lines))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"open_time": T0 + 1}, "its time is no candle's"),
        ({"close_time": T0}, "its time is no candle's"),
        ({"open_time": -MINUTE, "close_time": -1}, "its time is no candle's"),
        ({"high": "10.5"}, "low, open, close and high are out of order"),
        ({"low": "0"}, "a price is not positive"),
        ({"close": "nan"}, "a number is missing or makes no sense"),
        ({"close": ""}, "a number is missing or makes no sense"),
        ({"high": "inf"}, "a number is missing or makes no sense"),
        ({"volume": "1e300"}, "a number is missing or makes no sense"),
        ({"volume": "-1", "taker_buy_volume": "-2"}, "a volume is negative"),
        ({"taker_buy_volume": "100.6"}, "takers bought more than was traded"),
        ({"count": "2.5"}, "its number of trades is none"),
        ({"close_time": "soon"}, "its time is no candle's"),
        ({"ignore": "0,1"}, "a number is missing or makes no sense"),
    ],
)
def test_a_row_that_makes_no_sense_is_named_and_no_other_is_lost(
    tmp_path: Path, wrong: dict[str, object], reason: str
) -> None:
    path = csv(tmp_path / "BTCUSDT-1m-2026-06-01.csv", HEADER, kline(0), kline(1, **wrong), kline(2))

    rows = only(path)

    assert rows.columns["open_time"].tolist() == [T0, T0 + 2 * MINUTE]
    assert (rows.invalid, rows.reasons) == (1, [f"BTCUSDT-1m-2026-06-01.csv line 3: {reason}"])


METRICS = (
    "create_time,symbol,sum_open_interest,sum_open_interest_value,count_toptrader_long_short_ratio,"
    "sum_toptrader_long_short_ratio,count_long_short_ratio,sum_taker_long_short_vol_ratio"
)


def test_metrics_keep_what_a_row_has(tmp_path: Path) -> None:
    path = csv(
        tmp_path / "BTCUSDT-metrics-2026-06-01.csv",
        METRICS,
        "2026-06-01 00:00:00,BTCUSDT,10.5,1000,1.5,2.5,3.5,0.5",
        "2026-06-01 00:05:00,BTCUSDT,10.5,,,2.5,3.5,0.5",
        "2026-06-01 00:10:00,ETHUSDT,10.5,1000,1.5,2.5,3.5,0.5",
        "2026-06-01 00:15:01,BTCUSDT,10.5,1000,1.5,2.5,3.5,0.5",
        "2026-06-01 00:20:00,BTCUSDT,,,,,,",
        "2026-06-01 00:25:00,BTCUSDT,-1,1000,1.5,2.5,3.5,0.5",
        "2026-06-31 00:30:00,BTCUSDT,10.5,1000,1.5,2.5,3.5,0.5",
        "2026-06-01 00:35:00,BTCUSDT,10.5",
    )

    rows = only(path, "metrics")

    assert rows.columns["label"].tolist() == [T0, T0 + 5 * MINUTE]
    assert rows.columns["global_account"].tolist() == [3.5, 3.5]
    assert np.isnan(rows.columns["top_account"]).tolist() == [False, True]
    assert (rows.invalid, len(rows.reasons)) == (6, 3)


def test_funding_rows(tmp_path: Path) -> None:
    path = csv(
        tmp_path / "BTCUSDT-fundingRate-2026-06.csv",
        "calc_time,funding_interval_hours,last_funding_rate",
        f"{T0 + 3},8,-0.00012",
        f"{T0 + 3 + 28_800_000},0,0.0001",
        f"{T0 + 3 + 57_600_000},8,1.5",
    )

    rows = only(path, "funding")

    assert plain(rows) == {"funding_time": [T0 + 3], "interval_hours": [8.0], "rate": [-0.00012]}
    assert rows.invalid == 2


# What it must not do


def hostile() -> dict[str, bytes]:
    good = "\n".join(kline(n) for n in range(200)).encode()
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.csv", good)
    whole = memory.getvalue()
    two = io.BytesIO()
    with zipfile.ZipFile(two, "w") as archive:
        archive.writestr("a.csv", good)
        archive.writestr("b.csv", good)
    return {
        "torn.zip": whole[: len(whole) // 2],
        "flipped.zip": whole[:60] + bytes([whole[60] ^ 255]) + whole[61:],
        "no.zip": b"this is no zip",
        "two.zip": two.getvalue(),
        "empty.csv": b"",
        "blank.csv": b"\n\n\n",
        "junk.csv": random.Random(4).randbytes(10_000),
        "zeros.csv": b"\0" * 10_000,
        "text.csv": b"buy low, sell high\n" * 100,
        "header.csv": HEADER.encode() + b"\n",
        "short.csv": b"1,2,3\n4,5,6\n",
        "other.csv": b"a,b,c\n1,2,3\n",
        "wide.csv": b"1," * 1000 + b"\n",
        "torn.csv.zst": zstandard.ZstdCompressor().compress(good)[:40],
        "no.csv.zst": b"no zstd at all",
    }


@pytest.mark.parametrize("name", sorted(hostile()))
@pytest.mark.parametrize("kind", ["candles", "metrics", "funding"])
def test_a_file_that_is_not_what_it_claims_is_refused_as_a_whole(
    tmp_path: Path, name: str, kind: archives.Kind
) -> None:
    what = {"candles": "1m", "metrics": "metrics", "funding": "fundingRate"}[kind]
    path = tmp_path / f"BTCUSDT-{what}-2026-06-01.{name.partition('.')[2]}"
    path.write_bytes(hostile()[name])

    with pytest.raises(Malformed, match=path.name):
        only(path, kind)


def test_a_bomb_does_not_explode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_BYTES", 1 << 20)
    bomb = b"0" * (3 << 20)
    zipped(tmp_path / "AUSDT-1m-2026-06.zip", bomb)
    (tmp_path / "BUSDT-1m-2026-06.csv.zst").write_bytes(zstandard.ZstdCompressor().compress(bomb))
    (tmp_path / "CUSDT-1m-2026-06.csv").write_bytes(bomb)

    for file in find([tmp_path], "candles").files:
        with pytest.raises(Malformed, match="holds more than 1 MB"):
            read(file)


def test_a_file_whose_checksum_says_otherwise_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "BTCUSDT-1m-2026-06-01.zip", kline(0).encode())
    checksum = tmp_path / f"{path.name}.CHECKSUM"

    checksum.write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    assert only(path).columns["open_time"].tolist() == [T0]
    checksum.write_text(f"{'0' * 64}  {path.name}\n")
    with pytest.raises(Malformed, match="not what was published"):
        only(path)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=400), kind=st.sampled_from(["1m", "metrics", "fundingRate"]))
def test_whatever_the_bytes_a_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, kind: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.csv"
    path.write_bytes(content)
    series = {"1m": "candles_1m", "metrics": "metrics", "fundingRate": "funding_rates"}[kind]

    try:
        rows = read(ArchiveFile(path, "BTCUSDT", series, ""))
    except Malformed:
        return
    assert all(np.isfinite(values).all() for name, values in rows.columns.items() if name.endswith("time"))


@given(st.lists(st.floats(1e-12, 1e12), max_size=50))
def test_logs_in_bulk_are_the_bits_of_the_one_by_one_function(prices: list[float]) -> None:
    assert quantised_logs(np.array(prices, np.float64)).tolist() == [quantised_log(price) for price in prices]


# Real files


def test_the_published_candles_of_real_months_are_read_whole() -> None:
    folder = DATA / "candles-1m-full"
    if not folder.exists():
        pytest.skip("the shared recordings are not beside this repository")
    file = find([folder], "candles").files[0]

    rows = read(file)

    assert (file.symbol, file.period, rows.table, rows.invalid) == ("ALGOUSDT", "2024-02", "candles_1m", 0)
    assert np.diff(rows.columns["open_time"]).tolist() == [MINUTE] * (29 * 1440 - 1)
    assert math.isclose(rows.columns["close"][0], 0.1598)


def test_feather_candles_have_prices_and_volume_and_nothing_made_up() -> None:
    pytest.importorskip("pyarrow", reason="an extra: perpline[analytics]")
    path = DATA / "candles-1m" / "BTC_USDT_USDT-1m-futures.feather"
    if not path.exists():
        pytest.skip("the shared recordings are not beside this repository")

    rows = only(path)

    assert (rows.table, rows.invalid, len(rows.columns["open_time"])) == ("candles_1m", 0, 43199)
    assert sorted(rows.columns) == ["close", "high", "low", "open", "open_time", "volume"]
    assert rows.columns["open_time"][0] == 1_746_372_780_000
    assert (rows.columns["close"][0], rows.columns["volume"][0]) == (95502.7, 16.536)


def test_a_feather_file_of_something_else_is_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="an extra: perpline[analytics]")
    from pyarrow import feather

    path = tmp_path / "BTC_USDT_USDT-1m-futures.feather"
    feather.write_feather(pa.table({"date": [1, 2], "close": [1.0, 2.0]}), str(path))
    with pytest.raises(Malformed, match="has no column open"):
        only(path)
    columns = {name: ["x"] for name in ("date", "open", "high", "low", "close", "volume")}
    feather.write_feather(pa.table(columns), str(path))
    with pytest.raises(Malformed, match="no feather file of candles"):
        only(path)
    path.write_bytes(b"ARROW1 and then nothing")
    with pytest.raises(Malformed, match="no feather file of candles"):
        only(path)
