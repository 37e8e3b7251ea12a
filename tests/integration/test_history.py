"""Archives of the past: as the exchange publishes them, and what the exchange of the same seed answers."""

import asyncio
import csv
import hashlib
import io
import json
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from perpline.cli.simulate import simulate
from perpline.common.clock import ManualClock
from perpline.simulation.history import LABELS_CHANGE_MS, _eight_decimals, lines, write_history
from perpline.simulation.server import SimulatedExchange

MINUTE, FIVE, HOUR, DAY = 60_000, 300_000, 3_600_000, 86_400_000
END = 1_795_183_200_000 - 3 * MINUTE
"""2026-11-20 13:57 UTC."""
START = END // DAY * DAY - 2 * DAY
KLINES = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,taker_buy_quote_volume,ignore"
)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last two and a half days of two contracts."""
    out = tmp_path_factory.mktemp("archives")
    write_history(out, seed=5, symbols=2, start_ms=START, end_ms=END, workers=1)
    return out / "data" / "futures" / "um"


def rows_of(path: Path) -> list[list[str]]:
    """Header and rows of the one file in a zip; checks its name and its checksum."""
    digest, _, name = path.with_name(path.name + ".CHECKSUM").read_text().strip().partition("  ")
    assert (name, digest) == (path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [path.with_suffix(".csv").name]
        return list(csv.reader(io.StringIO(archive.read(archive.namelist()[0]).decode())))


def series(folder: Path) -> list[list[str]]:
    """The rows of all files of a folder in order of their names, without headers."""
    return [row for path in sorted(folder.glob("*.zip")) for row in rows_of(path)[1:]]


async def asked(exchange: SimulatedExchange, path: str, **params: Any) -> list[Any]:
    async with aiohttp.ClientSession() as session:
        async with session.get(exchange.http_url + path, params=params) as response:
            assert response.status == 200
            found: list[Any] = await response.json()
            return found


def server(at: int) -> SimulatedExchange:
    return SimulatedExchange(seed=5, symbols=2, clock=ManualClock(at))


async def test_every_minute_is_as_the_server_of_the_same_seed_tells_it_and_the_next_one_follows(archives: Path) -> None:
    rows = series(archives / "daily" / "klines" / "ETHUSDT" / "1m")
    async with server(END + 2 * MINUTE) as exchange:
        told = await asked(
            exchange, "/fapi/v1/klines", symbol="ETHUSDT", interval="1m", startTime=END - 1400 * MINUTE, limit=1500
        )
        truth = exchange.closed_candles("ETHUSDT", "1m", START, END)

    assert [[str(value) for value in row] for row in truth] == rows
    overlap = [[str(value) for value in row] for row in told if row[0] < END]
    assert overlap == rows[-1400:]
    following = [row for row in told if row[0] >= END]
    assert following[0][0] == END == int(rows[-1][0]) + MINUTE
    # Trade ids do not show in a kline; that prices go on from where they were does, within a minute's move.
    assert float(following[0][1]) == pytest.approx(float(rows[-1][4]), rel=0.005)


async def test_mark_index_and_premium_klines_are_as_the_server_tells_them(archives: Path) -> None:
    async with server(END + MINUTE) as exchange:
        for name, path in (
            ("symbol", "markPriceKlines"),
            ("pair", "indexPriceKlines"),
            ("symbol", "premiumIndexKlines"),
        ):
            told = await asked(
                exchange, f"/fapi/v1/{path}", **{name: "BTCUSDT"}, interval="1m", startTime=START, limit=1500
            )
            rows = series(archives / "daily" / path / "BTCUSDT" / "1m")
            assert len(rows) == (END - START) // MINUTE
            assert [[str(value) for value in row] for row in told] == rows[:1500]


async def test_metrics_are_as_the_server_tells_them_labelled_with_the_beginning(archives: Path) -> None:
    rows = series(archives / "daily" / "metrics" / "BTCUSDT")
    async with server(END + MINUTE) as exchange:
        asking = {"symbol": "BTCUSDT", "period": "5m", "startTime": START, "limit": 500}
        interest = await asked(exchange, "/futures/data/openInterestHist", **asking)
        ratios = [
            await asked(exchange, f"/futures/data/{path}", **asking)
            for path in ("topLongShortAccountRatio", "topLongShortPositionRatio", "globalLongShortAccountRatio")
        ]
        takers = await asked(exchange, "/futures/data/takerlongshortRatio", **asking)

    ends = [int(datetime.fromisoformat(row[0] + "+00:00").timestamp() * 1000) + FIVE for row in rows]
    assert ends == list(range(START + FIVE, END + 1, FIVE))
    # The server's first row ends with the first of these days, the archive's five minutes later.
    shown = rows[: len(interest) - 1]
    assert [(row[2], row[3]) for row in shown] == [
        (row["sumOpenInterest"], row["sumOpenInterestValue"]) for row in interest[1:]
    ]
    for column, told in enumerate(ratios, start=4):
        expected = [float(row["longShortRatio"]) for row in told[1:]]
        assert [float(row[column]) for row in shown] == pytest.approx(expected, abs=5.1e-5)
    assert [float(row[7]) for row in shown] == pytest.approx(
        [float(row["buySellRatio"]) for row in takers[1:]], abs=5.1e-5
    )


async def test_funding_is_as_the_server_tells_it(archives: Path) -> None:
    [path] = (archives / "monthly" / "fundingRate" / "ETHUSDT").glob("*.zip")
    header, *rows = rows_of(path)
    async with server(END + MINUTE) as exchange:
        told = await asked(exchange, "/fapi/v1/fundingRate", symbol="ETHUSDT", startTime=START, endTime=END)

    assert path.name == "ETHUSDT-fundingRate-2026-11.zip"
    assert header == ["calc_time", "funding_interval_hours", "last_funding_rate"]
    assert rows == [[str(row["fundingTime"]), "8", row["fundingRate"]] for row in told]
    assert len(rows) == 8


def test_files_have_the_names_and_headers_of_the_published_ones(archives: Path) -> None:
    names = sorted(path.relative_to(archives).as_posix() for path in archives.rglob("BTCUSDT*.zip"))
    days = ("2026-11-18", "2026-11-19", "2026-11-20")

    klines = ("indexPriceKlines", "klines", "markPriceKlines", "premiumIndexKlines")
    assert names == sorted(
        [
            *(f"daily/{kind}/BTCUSDT/1m/BTCUSDT-1m-{day}.zip" for kind in klines for day in days),
            *(f"daily/metrics/BTCUSDT/BTCUSDT-metrics-{day}.zip" for day in days),
            "monthly/fundingRate/BTCUSDT/BTCUSDT-fundingRate-2026-11.zip",
        ]
    )
    assert ",".join(rows_of(archives / names[3])[0]) == ",".join(rows_of(archives / names[0])[0]) == KLINES
    assert len(rows_of(archives / names[3])) == 1441


@pytest.mark.slow
def test_a_whole_month_is_one_file_and_the_change_of_labels_in_metrics_is_the_published_one(tmp_path: Path) -> None:
    start, end = LABELS_CHANGE_MS - 24 * DAY, LABELS_CHANGE_MS + 6 * DAY + HOUR
    written = write_history(tmp_path, seed=5, symbols=1, start_ms=start, end_ms=end)
    um = tmp_path / "data" / "futures" / "um"
    monthly = um / "monthly" / "klines" / "BTCUSDT" / "1m" / "BTCUSDT-1m-2026-06.zip"
    daily = um / "daily" / "klines" / "BTCUSDT" / "1m" / "BTCUSDT-1m-2026-07-01.zip"
    metrics = um / "daily" / "metrics" / "BTCUSDT"

    assert (len(rows_of(monthly)), len(rows_of(daily))) == (30 * 1440 + 1, 61)
    assert [path.name for path in daily.parent.glob("*.zip")] == [daily.name]
    assert written.rows["klines"] == 30 * 1440 + 60
    before, after = (
        rows_of(metrics / "BTCUSDT-metrics-2026-06-24.zip"),
        rows_of(metrics / "BTCUSDT-metrics-2026-06-25.zip"),
    )
    candles = {int(row[0]): row for row in rows_of(monthly)[1:]}
    for row, late in ((before[7], 0), (before[-1], 0), (after[1], FIVE), (after[-1], FIVE)):
        label = int(datetime.fromisoformat(row[0] + "+00:00").timestamp() * 1000)
        flow = [candles[label + late - FIVE + minute * MINUTE] for minute in range(5)]
        bought = sum(float(candle[9]) for candle in flow)
        sold = sum(float(candle[5]) - float(candle[9]) for candle in flow)
        assert float(row[7]) == pytest.approx(bought / sold, abs=1e-8)


def test_the_command_writes_into_an_empty_folder_only_and_sums_up(tmp_path: Path) -> None:
    from perpline.cli.main import main

    out = tmp_path / "past"
    runner = CliRunner()
    app = typer.Typer()
    app.command()(simulate)
    options = ["--history", "1", "--symbols", "1", "--seed", "5", "--end", "2026-11-20T00:10", "--out", str(out)]

    result = runner.invoke(app, [*options, "--json"])
    summary = json.loads(result.stdout.splitlines()[-1])

    assert result.exit_code == 0
    assert summary["to"] - summary["from"] == DAY + 10 * MINUTE
    assert summary["rows"] == {
        "fundingRate": 4, "indexPriceKlines": 1450, "klines": 1450, "markPriceKlines": 1450, "metrics": 290,
        "premiumIndexKlines": 1450,
    }  # fmt: skip
    assert summary["files"] == len(list(out.rglob("*.zip"))) == 11
    assert main(["simulate", *options]) == 1
    for wrong in (["--history", "3"], ["--out", str(out)], [*options[:-1], str(tmp_path / "x"), "--end", "soon"]):
        assert runner.invoke(app, wrong).exit_code == 2


async def test_a_server_begins_at_the_time_it_is_told() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "perpline.cli.simulate", "--symbols", "1", "--start", "2026-11-20T13:57"),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        assert process.stdout is not None
        ready = json.loads(await process.stdout.readline())
        process.terminate()
        await process.wait()

    assert 0 <= ready["time"] - END < 10_000


@given(
    st.lists(st.integers(-(10**17), 10**17), min_size=1, max_size=20),
    st.integers(0, 9),
)
def test_a_column_is_plain_decimal_text(values: list[int], decimals: int) -> None:
    told = lines([(np.array(values, np.int64), decimals), (np.zeros(len(values), np.int64), 0)])

    expected = []
    for value in values:
        digits = str(abs(value)).rjust(decimals + 1, "0")
        whole = digits[: len(digits) - decimals] + ("." + digits[len(digits) - decimals :] if decimals else "")
        expected.append(f"{'-' if value < 0 else ''}{whole},0\n".encode())
    assert told.text == b"".join(expected)
    assert [told.part(at, at + 1).text for at in range(len(values))] == expected


@given(st.lists(st.floats(-1.0, 1e6, allow_nan=False), min_size=1, max_size=50))
def test_eight_decimals_are_rounded_as_text_is(values: list[float]) -> None:
    assert _eight_decimals(np.array(values)).tolist() == [int(f"{value:.8f}".replace(".", "")) for value in values]


def test_the_same_seed_gives_the_same_bytes_in_however_many_processes(tmp_path: Path) -> None:
    for workers in (1, 2):
        write_history(tmp_path / str(workers), seed=9, symbols=2, start_ms=START, end_ms=START + HOUR, workers=workers)
    one, two = (
        {path.relative_to(tmp_path / str(n)): path.read_bytes() for path in (tmp_path / str(n)).rglob("*.zip")}
        for n in (1, 2)
    )

    assert one == two
    assert len(one) == 12
    assert datetime.fromtimestamp(START / 1000, UTC).hour == 0
