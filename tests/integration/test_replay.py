"""Recordings of the real exchange replay to what an independent reading of them says; ours replay to what happened."""

import asyncio
import gzip
import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from running import MINUTE, Database, command, eventually, next_close, simulated, working

RECORDINGS = Path(__file__).parents[2].parent / "shared" / "data" / "ws-frames"

KINDS = {"depthUpdate": "depth", "markPriceUpdate": "markPrice"}


def perpline(*words: object) -> dict[str, Any]:
    done = command(*words)
    assert done.code == 0, done.err[-2000:]
    answer: dict[str, Any] = done.json
    return answer


def in_a_process(*words: object) -> dict[str, Any]:
    """The same where an event loop runs already."""
    done = subprocess.run([sys.executable, "-m", "perpline", *map(str, words)], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def frames(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(receive time in microseconds, payload) of a recording, read with nothing but gzip and json."""
    lines = gzip.open(path, "rt") if path.suffix == ".gz" else path.open()
    with lines:
        for line in lines:
            stamp, _, text = line.partition(" ")
            if line.startswith("wss://") or not text.strip():
                continue
            if stamp.endswith(":"):
                received_us = int(Decimal(stamp[:-1]) * 1_000_000)
            else:
                received_us = int(stamp) // 1000 if len(stamp) == 19 else int(stamp)
            frame = json.loads(text)
            yield received_us, frame.get("data", frame)


def reading(path: Path) -> dict[str, Any]:
    """What `replay --json` must say of a recording."""
    by_stream: Counter[str] = Counter()
    books: dict[str, Any] = {}
    marks: dict[str, Any] = {}
    closed: dict[str, Counter[str]] = defaultdict(Counter)
    times = []
    symbols = set()
    for received_us, data in frames(path):
        times.append(received_us // 1000)
        event = data.get("e", "depthSnapshot")
        kind = f"kline_{data['k']['i']}" if event == "kline" else KINDS.get(event, event)
        by_stream[kind] += 1
        if event == "bookTicker":
            symbols.add(data["s"])
            books[data["s"]] = {
                **{"bid": float(data["b"]), "bid_qty": float(data["B"])},
                **{"ask": float(data["a"]), "ask_qty": float(data["A"])},
                **{"updated_at": data["E"], "received_at": received_us // 1000},
            }
        elif event == "markPriceUpdate":
            symbols.add(data["s"])
            marks[data["s"]] = {
                **{"mark_price": float(data["p"]), "index_price": float(data["i"])},
                **{"funding_rate": float(data["r"]), "next_funding_time": data["T"]},
                **{"updated_at": data["E"], "received_at": received_us // 1000},
            }
        elif event == "kline":
            symbols.add(data["s"])
            closed[data["s"]][data["k"]["i"]] += data["k"]["x"]
    return {
        "frames": len(times),
        "by_stream": dict(by_stream),
        "first_time": min(times),
        "last_time": max(times),
        "closed_candles": sum(sum(each.values()) for each in closed.values()),
        "books": books,
        "marks": marks,
        "candles": {symbol: {i: n for i, n in closed[symbol].items() if n} for symbol in symbols},
    }


recordings = pytest.mark.parametrize(
    "name",
    [
        "hftbacktest/usdm_btcusdt_20230404.dat.gz",
        "hftbacktest/usdm_btcusdt_20240718.gz",
        "hftbacktest/usdm_btcusdt_20240719.gz",
        "hftbacktest/usdm_ethusdt_20240718.gz",
        "cryptofeed/BINANCE_FUTURES.2021-07-22.ws.1.0",
    ],
)


@recordings
def test_a_recording_of_the_real_exchange_replays_to_what_it_says(name: str, tmp_path: Path) -> None:
    path = RECORDINGS / name
    if not path.exists():
        pytest.skip("the recordings of ../shared/data are not here")
    said = perpline("replay", path, "--database", f"sqlite:///{tmp_path}/replay.db", "--json")
    read = reading(path)

    assert said["malformed"] == 0
    for key in ("frames", "by_stream", "first_time", "last_time", "closed_candles"):
        assert said[key] == read[key], key
    assert {symbol: entry["book"] for symbol, entry in said["symbols"].items() if "book" in entry} == read["books"]
    assert {symbol: entry["mark"] for symbol, entry in said["symbols"].items() if "mark" in entry} == read["marks"]
    assert {symbol: entry["candles"] for symbol, entry in said["symbols"].items()} == read["candles"]
    handled = {"bookTicker", "markPrice", "kline_1m", "kline_15m", "kline_1h"}
    assert said["unhandled"] == sum(count for kind, count in read["by_stream"].items() if kind not in handled)
    # One decision for each closed 1m candle: there is no window, so each abstains, and says so.
    assert said["signals"] == sum(each.get("1m", 0) for each in read["candles"].values())
    assert said["rows"].get("candles_1m", 0) == said["signals"]


def test_recordings_one_after_another_are_one_history(tmp_path: Path) -> None:
    paths = [RECORDINGS / f"hftbacktest/usdm_{symbol}usdt_20240718.gz" for symbol in ("btc", "eth")]
    if not all(path.exists() for path in paths):
        pytest.skip("the recordings of ../shared/data are not here")
    said = perpline("replay", *paths, "--json")
    both = [reading(path) for path in paths]

    assert said["frames"] == sum(each["frames"] for each in both)
    assert said["symbols"].keys() == {"BTCUSDT", "ETHUSDT"}
    assert said["first_time"] == min(each["first_time"] for each in both)


async def test_what_a_worker_records_replays_to_what_the_worker_stored(tmp_path: Path) -> None:
    """The same candles, minutes and streams come out of the recording as went into the worker's database."""
    async with simulated() as exchange:
        async with working(exchange, tmp_path, record=str(tmp_path / "frames")) as worker:
            await worker.until_ready()
            last = next_close(exchange.clock.now_ms(), 3)
            database = Database(tmp_path)
            await worker.until(lambda: database.decided_until(last, len(exchange.symbols)))
            status = await worker.stop()
    frames, url = tmp_path / "frames.000.zst", f"sqlite:///{tmp_path}/again.db"
    said = await asyncio.to_thread(in_a_process, "replay", frames, "--database", url, "--json")
    again = Database(tmp_path)
    again.path = tmp_path / "again.db"

    assert said["frames"] == status["messages"]["total"]
    assert said["by_stream"] == status["messages"]["by_kind"]
    assert said["malformed"] == 0
    first = next_close(worker.ready_at)
    query = (
        "SELECT * FROM candles_1m WHERE source = 'ws' AND open_time >= ? AND open_time < ? ORDER BY symbol, open_time"
    )
    assert again.rows(query, first, last) == database.rows(query, first, last) != []
    query = "SELECT * FROM premium_index WHERE minute >= ? AND minute < ? ORDER BY symbol, minute"
    assert again.rows(query, first, last) == database.rows(query, first, last) != []
    query = "SELECT * FROM book_minutes WHERE minute >= ? AND minute < ? ORDER BY symbol, minute"
    assert again.rows(query, first, last) == database.rows(query, first, last) != []
    assert again.value("SELECT count(*) FROM signals") == said["signals"] >= 3 * len(exchange.symbols)


def test_a_replay_decides_the_same_each_time(tmp_path: Path) -> None:
    path = RECORDINGS / "cryptofeed/BINANCE_FUTURES.2021-07-22.ws.1.0"
    if not path.exists():
        pytest.skip("the recordings of ../shared/data are not here")
    signals = []
    for name in ("one", "two"):
        perpline("replay", path, "--database", f"sqlite:///{tmp_path}/{name}.db", "--json")
        database = Database(tmp_path)
        database.path = tmp_path / f"{name}.db"
        columns = "signal_id, symbol, close_time, status, detail, feat_ref, ref_last, bid, ask"
        signals.append(database.rows(f"SELECT {columns} FROM signals ORDER BY symbol"))

    assert signals[0] == signals[1] != []


async def test_the_record_command_writes_what_the_streams_send(tmp_path: Path) -> None:
    async with simulated(symbols=2) as exchange:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "perpline", "record", "--out", str(tmp_path / "btc"), "--json"),
            *("--symbols", ",".join(exchange.symbols), "--speed", "60"),
            *("--ws-url", exchange.ws_url, "--rest-url", exchange.http_url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        await eventually(lambda: exchange.stats.frames["kline_closed"] >= 2, what="a close")
        await eventually(lambda: exchange.stats.frames["markPrice"] > 4 * 60)
        process.terminate()
        output, _ = await process.communicate()
        said = json.loads(output.splitlines()[-1])

    assert process.returncode == 0
    assert (said["dropped"], said["error"], said["silent"], said["files"]) == (0, "", [], 1)
    replayed = await asyncio.to_thread(in_a_process, "replay", tmp_path / "btc.000.zst", "--json")
    assert replayed["frames"] == said["frames"]
    assert replayed["malformed"] == replayed["unhandled"] == 0
    assert replayed["symbols"].keys() == set(exchange.symbols)
    assert replayed["closed_candles"] >= 2
    assert replayed["last_time"] - replayed["first_time"] > MINUTE


def test_frames_of_2026_in_jsonl_replay_without_a_malformed_one() -> None:
    path = RECORDINGS / "captured-2026" / "frames_A.jsonl"
    if not path.exists():
        pytest.skip("the recordings of ../shared/data are not here")
    said = perpline("replay", path, "--json")
    raws = [json.loads(json.loads(line)["raw"]) for line in path.read_text().splitlines()]
    rows = [each.get("data", each) for each in raws]
    events = Counter(row["e"] for payload in rows for row in (payload if isinstance(payload, list) else [payload])[:1])

    assert (said["frames"], said["malformed"]) == (len(raws), 0)
    names = {"kline": "kline_1m", "markPriceUpdate": "markPrice"}
    assert said["by_stream"] == {names.get(event, event): count for event, count in events.items()}
    assert said["unknown_fields"] == {}, "st, ps, ap, nq are known"
