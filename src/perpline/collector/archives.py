"""Market data in files: the exchange's published archives, and candles of others as Arrow feather files.

    BTCUSDT-1m-2026-10.zip (.csv, .csv.zst)     klines; the folders markPriceKlines, indexPriceKlines and
                                                premiumIndexKlines make of the same name another series
    BTCUSDT-metrics-2026-10-01.zip              open interest and positioning, five minutes a row
    BTCUSDT-fundingRate-2026-10.zip             settled funding
    BTC_USDT_USDT-1m-futures.feather            date, open, high, low, close, volume

With and without a header; newer files may stamp in microseconds. A file is hostile until it is read: sizes are bounded,
every number is checked, what cannot be is counted and named, and nothing of a torn file is taken.
"""

import hashlib
import io
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zstandard
from msgspec import Struct
from numpy.typing import NDArray

from perpline.common.errors import Malformed, NeedsPerson
from perpline.domain.candle import INTERVAL_MS
from perpline.storage.store import Columns

Kind = Literal["candles", "metrics", "funding"]
"""What an import takes: klines of any price, 5-minute metrics, settled funding."""

MAX_BYTES = 512 << 20
"""Of a file's content: a month of 1m klines has 6 MB."""
MAX_RATIO = 200
"""How many times as large as the file its content may be, from 8 MB on. CSV of numbers becomes a tenth at most; what
unpacks to more was made to fill the memory."""
MAX_ROWS = 8_000_000
NAMED_INVALID = 3
"""Invalid rows of a file that are told with their line."""

_DAY_2015_MS, _DAY_2100_MS = 1_420_070_400_000, 4_102_444_800_000
_LARGEST = 1e15
"""Prices, volumes and contracts beyond this are no market's; sums of them would not fit 64 bits."""

_SUFFIXES = (".zip", ".csv", ".csv.zst", ".feather")
_NAME = re.compile(r"(?P<symbol>[^-/]{1,40})-(?P<what>[A-Za-z0-9]+)-(?P<period>\d{4}-\d\d(-\d\d)?)")
_FEATHER_NAME = re.compile(r"(?P<base>[^-_/]{1,20})_(?P<quote>[^-_/]{1,20})(_[^-_/]+)?-(?P<what>[^-]+)-(?P<price>\w+)")
_FOLDERS = {
    "klines": "candles",
    "markPriceKlines": "mark_klines",
    "indexPriceKlines": "index_klines",
    "premiumIndexKlines": "premium_klines",
}

_KLINE = (
    "open_time",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "close_time",
    "quote_volume",
    "trades",
    "taker_buy_volume",
    "taker_buy_quote_volume",
)
"""Columns of a kline file, by place; a twelfth means nothing."""
_SYNONYMS = {
    "date": "open_time",
    "timestamp": "open_time",
    "quote_asset_volume": "quote_volume",
    "count": "trades",
    "number_of_trades": "trades",
    "taker_buy_base_asset_volume": "taker_buy_volume",
    "taker_buy_quote_asset_volume": "taker_buy_quote_volume",
}
_METRICS = (
    "create_time",
    "symbol",
    "sum_open_interest",
    "sum_open_interest_value",
    "count_toptrader_long_short_ratio",
    "sum_toptrader_long_short_ratio",
    "count_long_short_ratio",
    "sum_taker_long_short_vol_ratio",
)
_FUNDING = ("calc_time", "funding_interval_hours", "last_funding_rate")


class ArchiveFile(Struct, frozen=True):
    """A file and what its name and place say of it."""

    path: Path
    symbol: str
    series: str
    """A table of klines, `candles` where the name tells no interval, `metrics` or `funding_rates`."""
    period: str
    """2026-10, 2026-10-01, or empty."""


class Found(Struct):
    """What lies at the named places."""

    files: list[ArchiveFile]
    """To be read, those of one period and series together, oldest first."""
    ignored: list[str]
    """Files that are something else, each with the reason."""


class FileRows(Struct):
    """The rows of a file that make sense, in its order."""

    table: str
    """Where they belong: a table's name, or `metrics`."""
    columns: Columns
    """Times int64 in milliseconds, all else float64. Klines: the columns of `_KLINE` but close_time, those of them that
    the file has; price klines: open_time and prices; metrics: label, open_interest, open_interest_value and the ratios
    by name, NaN where a field is empty; funding: funding_time, interval_hours, rate."""
    invalid: int
    reasons: list[str]
    """Of the first invalid rows: "line 7: …"."""


def find(paths: Sequence[Path], kind: Kind, symbol: str | None = None) -> Found:
    """The files of a kind among these, and in these folders. `symbol` is for files whose names do not tell theirs.

    Raises NeedsPerson for a path that is not there, or a named file that is of another kind.
    """
    found = Found([], [])
    for path in paths:
        if path.is_dir():
            for inside in sorted(path.rglob("*")):
                if inside.name.lower().endswith(_SUFFIXES) and inside.is_file():
                    _add(found, inside, kind, symbol, named=False)
        elif path.is_file():
            _add(found, path, kind, symbol, named=True)
        else:
            raise NeedsPerson(f"{path} is not there")
    found.files.sort(key=lambda file: (file.period, file.series, file.symbol, str(file.path)))
    return found


@np.errstate(invalid="ignore", over="ignore", divide="ignore")  # numbers that cannot be are judged row by row
def read(file: ArchiveFile) -> FileRows:
    """The rows of a file. Raises Malformed for a file that as a whole is not what it claims to be."""
    try:
        if file.path.name.lower().endswith(".feather"):
            table = _read_feather(file.path)
        else:
            _check_sum(file.path)
            content = _content(file.path)
            if file.series == "metrics":
                return _metrics(file, content)
            table = _numbers(content, _FUNDING if file.series == "funding_rates" else _KLINE)
    except (OSError, MemoryError) as error:
        raise Malformed(f"{file.path.name}: {error}") from error
    except Malformed as error:
        raise Malformed(f"{file.path.name}: {error}") from error
    return _funding(file, table) if file.series == "funding_rates" else _klines(file, table)


# ---- which file is what ----


def _add(found: Found, path: Path, kind: Kind, symbol: str | None, named: bool) -> None:
    file = _described(path, kind, symbol)
    if isinstance(file, ArchiveFile):
        found.files.append(file)
    elif named:
        raise NeedsPerson(f"{path.name}: {file}")
    else:
        found.ignored.append(f"{path.name}: {file}")


def _described(path: Path, kind: Kind, symbol: str | None) -> ArchiveFile | str:
    """What the name says, or why the file is not taken."""
    series, period, own_symbol = "", "", symbol or ""
    if match := _FEATHER_NAME.match(path.name) if path.name.endswith(".feather") else None:
        own_symbol = symbol or match["base"] + match["quote"]
        series = {"futures": f"candles_{match['what']}", "mark": f"mark_klines_{match['what']}"}.get(match["price"], "")
        if not series:
            return f"feather files of {match['price']} are not read"
    elif match := _NAME.match(path.name):
        own_symbol, period, what = symbol or match["symbol"], match["period"], match["what"]
        if what in ("metrics", "fundingRate"):
            series = {"metrics": "metrics", "fundingRate": "funding_rates"}[what]
        else:
            folder = next((part for part in reversed(path.parts[:-1]) if part in _FOLDERS), "klines")
            series = f"{_FOLDERS[folder]}_{what}"
    elif kind == "candles" and symbol:
        series = "candles"
    if not own_symbol or not series:
        return "its name tells no symbol and series, as BTCUSDT-1m-2026-10.zip does: give --symbol"
    if series.endswith("_klines_1m"):
        series = series.removesuffix("_1m")
    own_kind = {"metrics": "metrics", "funding_rates": "funding"}.get(series, "candles")
    if own_kind != kind:
        return f"this is for `perpline import {own_kind}`"
    if series.startswith("candles_") and series.removeprefix("candles_") not in INTERVAL_MS:
        return f"candles of {series.removeprefix('candles_')} are not kept"
    if "_klines_" in series:
        return "of the mark, index and premium prices only 1m klines are kept"
    return ArchiveFile(path, own_symbol, series, period)


# ---- bytes ----


def _check_sum(path: Path) -> None:
    """Raise Malformed where a CHECKSUM lies beside the file and says otherwise."""
    beside = path.with_name(f"{path.name}.CHECKSUM")
    if beside.is_file():
        said = beside.read_bytes()[:1000].split()
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if not said or said[0].decode("ascii", "replace").lower() != digest:
            raise Malformed("its CHECKSUM says that this is not what was published: load it again")


_NO_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, IndexError, OSError)
"""All that zipfile raises for any bytes: IndexError for a member without a name."""


def _content(path: Path) -> bytes:
    name = path.name.lower()
    most = min(MAX_BYTES, max(8 << 20, MAX_RATIO * path.stat().st_size))
    if name.endswith(".zip"):
        try:
            with zipfile.ZipFile(path) as archive:
                entries = [entry for entry in archive.infolist() if not entry.is_dir()]
                if len(entries) != 1:
                    raise Malformed(f"holds {len(entries)} files, not one")
                with archive.open(entries[0]) as stream:
                    content = stream.read(most + 1)
        except _NO_ZIP as error:
            raise Malformed(f"is no zip that can be read: {error}") from error
    elif name.endswith(".zst"):
        with path.open("rb") as compressed:
            try:
                content = zstandard.ZstdDecompressor().stream_reader(compressed).read(most + 1)
            except zstandard.ZstdError as error:
                raise Malformed(f"is no zstd file that can be read: {error}") from error
    else:
        with path.open("rb") as plain:
            content = plain.read(most + 1)
    if len(content) > MAX_BYTES:
        raise Malformed(f"holds more than {MAX_BYTES >> 20} MB")
    if len(content) > most:
        raise Malformed(f"unpacks to more than {MAX_RATIO} times its size")
    return content


# ---- rows ----


class _Table(Struct):
    """Columns of float64 as they stand in a file, NaN where there is no number, and the line of each row."""

    columns: dict[str, NDArray[np.float64]]
    first_line: int

    @property
    def rows(self) -> int:
        return len(next(iter(self.columns.values())))


def _numbers(content: bytes, names: tuple[str, ...]) -> _Table:
    """A CSV of numbers, with a header or in the order of `names`."""
    header, skip = _header(content)
    lines = content.count(b"\n") + (not content.endswith(b"\n")) - skip
    if not content.strip() or lines < 1:
        raise Malformed("holds no rows")
    if lines > MAX_ROWS:
        raise Malformed(f"holds more than {MAX_ROWS} rows")
    try:
        values = np.loadtxt(io.BytesIO(content), delimiter=",", skiprows=skip, ndmin=2, comments=None)
    except (ValueError, UserWarning):
        # Some row is no row of numbers. Slower, line by line, so that only that row is lost.
        values = _row_by_row(content, skip)
    if header is None:
        if values.shape[1] == 6 and names is _KLINE:
            names = names[:6]
        if values.shape[1] < len(names):
            raise Malformed(f"has {values.shape[1]} columns, not {len(names)}")
        header = list(names)
    by_name = {name: values[:, at] for at, name in enumerate(header[: values.shape[1]])}
    return _Table(by_name, skip + 1)


def _header(content: bytes) -> tuple[list[str] | None, int]:
    """Names of the columns, None where the file has none, and how many lines to skip."""
    first = content[: content.find(b"\n") if b"\n" in content[:10_000] else 10_000]
    try:
        fields = [field.strip() for field in first.decode("utf-8-sig").split(",")]
    except UnicodeDecodeError:
        raise Malformed("is no text") from None
    if _number(fields[0]) == _number(fields[0]):
        return None, 0
    names = [_SYNONYMS.get(field.lower(), field.lower()) for field in fields]
    if len(names) < 3 or len(set(names)) != len(names):
        raise Malformed(f"begins with {first[:60]!r}, which names no columns")
    return names, 1


def _row_by_row(content: bytes, skip: int) -> NDArray[np.float64]:
    lines = content.decode("ascii", "replace").splitlines()[skip:]
    rows = [[_number(field) for field in line.split(",")] for line in lines]
    width = Counter(map(len, rows)).most_common(1)[0][0] if rows else 0
    if not 0 < width <= 40 or np.isnan([row[0] for row in rows]).all():
        raise Malformed("holds no rows of numbers")
    return np.array([row if len(row) == width else [np.nan] * width for row in rows], np.float64)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _klines(file: ArchiveFile, table: _Table) -> FileRows:
    if missing := [name for name in _KLINE[:5] if name not in table.columns]:
        raise Malformed(f"{file.path.name}: has no column {missing[0]}")
    known = {name: values for name, values in table.columns.items() if name in _KLINE}
    open_time, length = _milliseconds(known["open_time"]), INTERVAL_MS["1m"]
    series = file.series
    if series == "candles":
        series = f"candles_{_interval(file, open_time)}"
    if series.startswith("candles_"):
        length = INTERVAL_MS[series.removeprefix("candles_")]
        if "volume" not in known:
            raise Malformed(f"{file.path.name}: has no column volume")
    low, high = known["low"], known["high"]
    inner_low, inner_high = np.minimum(known["open"], known["close"]), np.maximum(known["open"], known["close"])
    kept = _KLINE if series.startswith("candles_") else _KLINE[:5]
    wanted = [name for name in kept if name in known and name != "close_time"]
    numbers = np.vstack([known[name] for name in wanted[1:]])
    faults = [
        ("a number is missing or makes no sense", ~(np.abs(numbers) < _LARGEST).all(axis=0)),
        ("its time is no candle's", ~_in_time(open_time) | (np.nan_to_num(open_time) % length != 0)),
        ("low, open, close and high are out of order", ~((low <= inner_low) & (inner_high <= high))),
    ]
    if "close_time" in known:
        wrong = _milliseconds(known["close_time"]) != open_time + length - 1
        faults.append(("its time is no candle's", wrong))
    if series != "premium_klines":
        faults.append(("a price is not positive", ~(low > 0)))
    if series.startswith("candles_"):
        volumes = [known[name] for name in wanted if "volume" in name or name == "trades"]
        faults.append(("a volume is negative", ~(np.vstack(volumes) >= 0).all(axis=0)))
        if "taker_buy_volume" in known:
            too_much = known["taker_buy_volume"] > known["volume"] * (1 + 1e-9) + 1e-12
            faults.append(("takers bought more than was traded", too_much))
        if "trades" in known:
            faults.append(("its number of trades is none", known["trades"] % 1 != 0))
            if table.rows > 10 and not known["volume"].any() and known["trades"].all():
                raise Malformed(
                    f"{file.path.name}: no volume in any row: klines of a mark, index or premium price belong "
                    "into a folder of that name (markPriceKlines …)"
                )
    columns: dict[str, NDArray[Any]] = {**known, "open_time": open_time}
    return _sound(file, series, {name: columns[name] for name in wanted}, table.first_line, faults, "open_time")


def _interval(file: ArchiveFile, open_time: NDArray[np.float64]) -> str:
    """The interval whose length lies between most candles."""
    steps = np.diff(open_time)
    step = float(np.median(steps)) if len(steps) else 0.0
    for interval, length in INTERVAL_MS.items():
        if step == length:
            return interval
    raise Malformed(f"{file.path.name}: its candles are {step / 60_000:g} minutes apart, which is no interval kept")


def _funding(file: ArchiveFile, table: _Table) -> FileRows:
    if missing := [name for name in _FUNDING if name not in table.columns]:
        raise Malformed(f"{file.path.name}: has no column {missing[0]}")
    time = _milliseconds(table.columns["calc_time"])
    hours, rate = table.columns["funding_interval_hours"], table.columns["last_funding_rate"]
    faults = [
        ("its time makes no sense", ~_in_time(time)),
        ("its interval makes no sense", ~((hours >= 1) & (hours <= 24) & (hours % 1 == 0))),
        ("its rate makes no sense", ~(np.abs(rate) < 1)),
    ]
    columns = {"funding_time": time, "interval_hours": hours, "rate": rate}
    return _sound(file, "funding_rates", columns, table.first_line, faults, "funding_time")


def _metrics(file: ArchiveFile, content: bytes) -> FileRows:
    lines = content.decode("ascii", "replace").splitlines()
    header = [field.strip() for field in lines[0].split(",")] if lines else []
    skip = 1 if header and header[0] == "create_time" else 0
    names = header if skip else list(_METRICS)
    if missing := [name for name in _METRICS if name not in names]:
        raise Malformed(f"{file.path.name}: has no column {missing[0]}")
    if len(lines) == skip or len(lines) > MAX_ROWS:
        raise Malformed(f"{file.path.name}: holds {len(lines) - skip} rows")
    rows = [line.split(",") for line in lines[skip:]]
    torn = np.array([len(row) != len(names) for row in rows])
    if torn.all():
        raise Malformed(f"{file.path.name}: has {len(rows[0])} columns, not {len(names)}")
    rows = [row if len(row) == len(names) else [""] * len(names) for row in rows]
    by_name = dict(zip(names, zip(*rows, strict=True), strict=True))
    label = np.array([_label_ms(text) for text in by_name["create_time"]])
    numbers = {name: np.array([_number(text) for text in by_name[name]]) for name in _METRICS[2:]}
    stacked = np.vstack(list(numbers.values()))
    columns = {
        "label": label,
        "open_interest": numbers["sum_open_interest"],
        "open_interest_value": numbers["sum_open_interest_value"],
        "top_account": numbers["count_toptrader_long_short_ratio"],
        "top_position": numbers["sum_toptrader_long_short_ratio"],
        "global_account": numbers["count_long_short_ratio"],
        "taker": numbers["sum_taker_long_short_vol_ratio"],
    }
    faults = [
        ("has the wrong number of columns", torn),
        ("its time is no five minutes'", ~_in_time(label) | (np.nan_to_num(label) % 300_000 != 0)),
        ("is of another symbol", np.array([symbol != file.symbol for symbol in by_name["symbol"]])),
        ("holds no number", np.isnan(stacked).all(axis=0)),
        ("a number makes no sense", (stacked < 0).any(axis=0) | (np.nan_to_num(stacked) > _LARGEST).any(axis=0)),
    ]
    return _sound(file, "metrics", columns, skip + 1, faults, "label")


def _label_ms(text: str) -> float:
    """The instant of "2026-10-01 00:05:00" in UTC, NaN for what is none."""
    if not re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", text):
        return np.nan
    try:
        return float(np.datetime64(text.replace(" ", "T"), "ms").astype(np.int64))
    except ValueError:
        return np.nan


def _milliseconds(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Times in milliseconds; newer files of the exchange count microseconds."""
    return np.where(times > 1e14, times // 1000, times)


def _in_time(times: NDArray[np.float64]) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = (times >= _DAY_2015_MS) & (times < _DAY_2100_MS) & (times % 1 == 0)
    return inside


def _sound(
    file: ArchiveFile,
    table: str,
    columns: dict[str, NDArray[Any]],
    first_line: int,
    faults: Sequence[tuple[str, NDArray[np.bool_]]],
    time: str,
) -> FileRows:
    """The rows without any of these faults."""
    bad = np.zeros(len(columns[time]), np.bool_)
    for _, mask in faults:
        bad |= mask
    reasons = []
    for row in np.flatnonzero(bad)[:NAMED_INVALID].tolist():
        reason = next(text for text, mask in faults if mask[row])
        reasons.append(f"{file.path.name} line {first_line + row}: {reason}")
    if bad.all():
        raise Malformed(f"none of its {len(bad)} rows makes sense; {reasons[0]}")
    good = {name: values[~bad] for name, values in columns.items()}
    good[time] = good[time].astype(np.int64)
    return FileRows(table, good, int(bad.sum()), reasons)


# ---- feather ----


def _read_feather(path: Path) -> _Table:
    try:
        import pyarrow as pa  # an extra, and slow to import
        from pyarrow import ipc
    except ModuleNotFoundError:
        raise NeedsPerson("feather files need one more package: pip install 'perpline[analytics]'") from None
    names = ("date", *_KLINE[1:6])
    parts: list[list[NDArray[np.float64]]] = []
    try:
        with pa.memory_map(str(path)) as source:
            for batch in _batches(ipc.open_file(source), names):
                date = batch.column("date").cast(pa.timestamp("ms", batch.column("date").type.tz))
                columns = [date.cast(pa.int64()), *(batch.column(name).cast(pa.float64()) for name in names[1:])]
                parts.append([column.to_numpy(zero_copy_only=False).astype(np.float64) for column in columns])
    except (pa.ArrowException, KeyError, AttributeError, TypeError, ValueError, IndexError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Malformed(f"is no feather file of candles: {reason}") from error
    if not parts:
        raise Malformed("holds no rows")
    joined = [np.concatenate(blocks) for blocks in zip(*parts, strict=True)]
    return _Table(dict(zip(_KLINE[:6], joined, strict=True)), 1)


def _batches(reader: Any, names: Sequence[str]) -> Iterator[Any]:
    if missing := [name for name in names if name not in reader.schema.names]:
        raise Malformed(f"has no column {missing[0]}")
    rows = 0
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        rows += batch.num_rows
        if rows > MAX_ROWS:
            raise Malformed(f"holds more than {MAX_ROWS} rows")
        yield batch
