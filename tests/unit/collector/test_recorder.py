import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from perpline.collector.recorder import FrameWriter, read_frames
from perpline.common.clock import SystemClock
from perpline.common.errors import Malformed, NeedsPerson

RECORDINGS = Path(__file__).parents[4] / "shared" / "data" / "ws-frames"
T0_US = 1_795_219_260_000_123

needs_recordings = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="../shared/data/ws-frames is not here")


def read(path: Path) -> list[tuple[int, bytes]]:
    return list(read_frames(path))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Writing


def test_what_was_recorded_reads_back(tmp_path: Path) -> None:
    frames = [(T0_US + n, b'{"n":%d}' % n) for n in range(1000)]
    writer = FrameWriter(tmp_path / "frames.zst", SystemClock())
    for received_us, data in frames:
        writer.add(data, received_us)
    writer.close()

    assert files(tmp_path) == ["frames.000.zst"]
    assert read(tmp_path / "frames.000.zst") == frames
    found = writer.statistics()
    assert (found.frames, found.dropped, found.files, found.error) == (1000, 0, 1, "")
    assert found.bytes_written > 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(10**15, 10**16 - 1), st.binary(max_size=60)), max_size=20))
def test_any_bytes_read_back_but_line_ends(
    tmp_path_factory: pytest.TempPathFactory, frames: list[tuple[int, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    writer = FrameWriter(folder / "frames", SystemClock())
    for received_us, data in frames:
        writer.add(data, received_us)
    writer.close()

    # A carriage return at a frame's end belongs to the line end; JSON never ends in one.
    expected = [(received_us, data.replace(b"\n", b" ").rstrip(b"\r")) for received_us, data in frames]
    assert read(folder / "frames.000.zst") == expected


def test_memory_that_is_used_again_after_add_may_change(tmp_path: Path) -> None:
    data = bytearray(b'{"n":1}')
    writer = FrameWriter(tmp_path / "frames", SystemClock())
    writer.add(memoryview(data), T0_US)
    data[:] = b"xxxxxxx"
    writer.close()

    assert read(tmp_path / "frames.000.zst") == [(T0_US, b'{"n":1}')]


def test_a_full_file_is_followed_by_the_next_and_the_oldest_are_deleted(tmp_path: Path) -> None:
    frames = [(T0_US + n, os.urandom(500).hex().encode()) for n in range(2000)]
    writer = FrameWriter(tmp_path / "frames", SystemClock(), max_bytes_per_file=150_000, max_files=3)
    for received_us, data in frames:
        writer.add(data, received_us)
    writer.close()

    names = files(tmp_path)
    assert len(names) == 3
    assert names[0] != "frames.000.zst"
    assert all((tmp_path / name).stat().st_size < 450_000 for name in names)
    kept = [frame for name in names for frame in read(tmp_path / name)]
    assert kept == frames[-len(kept) :]


def test_an_earlier_recording_is_continued_never_overwritten(tmp_path: Path) -> None:
    for n in range(3):
        writer = FrameWriter(tmp_path / "frames", SystemClock(), max_files=2)
        writer.add(b"%d" % n, T0_US)
        writer.close()
    (tmp_path / "frames.notes.zst").touch()

    assert files(tmp_path) == ["frames.001.zst", "frames.002.zst", "frames.notes.zst"]
    assert read(tmp_path / "frames.001.zst") == [(T0_US, b"1")]


def test_a_killed_process_loses_at_most_a_second(tmp_path: Path) -> None:
    program = f"""
import sys, time
from perpline.collector.recorder import FrameWriter
from perpline.common.clock import SystemClock
writer, clock = FrameWriter({str(tmp_path / "frames")!r}, SystemClock()), SystemClock()
for n in range(10**9):
    writer.add(b'{{"n":%d}}' % n, clock.now_us())
    print(n, flush=True)
    time.sleep(0.001)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    time.sleep(2)  # frames must have come for longer than the second that may be lost
    process.send_signal(signal.SIGKILL)
    killed_us = time.time_ns() // 1000
    out, _ = process.communicate()
    added = len(out.split())

    frames = read(tmp_path / "frames.000.zst")
    assert [data for _, data in frames] == [b'{"n":%d}' % n for n in range(len(frames))]
    assert 0 < len(frames) <= added + 1
    assert killed_us - frames[-1][0] < 1_000_000


def test_a_file_cut_off_anywhere_reads_as_far_as_it_goes(tmp_path: Path) -> None:
    frames = [(T0_US + n, os.urandom(20).hex().encode()) for n in range(5000)]
    writer = FrameWriter(tmp_path / "frames", SystemClock())
    for received_us, data in frames:
        writer.add(data, received_us)
    writer.close()
    whole = (tmp_path / "frames.000.zst").read_bytes()

    for size in range(0, len(whole), 9973):
        (tmp_path / "cut.zst").write_bytes(whole[:size])
        found = read(tmp_path / "cut.zst")
        assert found == frames[: len(found)]
    assert len(found) > len(frames) / 2


def test_beyond_its_bound_the_queue_drops_and_counts(tmp_path: Path) -> None:
    writer = FrameWriter(tmp_path / "frames", SystemClock(), max_queued_bytes=100)
    writer.add(b"x" * 200, T0_US)
    writer.add(b"y", T0_US)
    writer.close()

    assert read(tmp_path / "frames.000.zst") == [(T0_US, b"y")]
    assert (writer.statistics().frames, writer.statistics().dropped) == (1, 1)


def test_a_disk_that_refuses_stops_the_recording_and_not_the_work(tmp_path: Path) -> None:
    writer = FrameWriter(tmp_path / "frames", SystemClock(), max_bytes_per_file=1)
    (tmp_path / "frames.001.zst").mkdir()  # so the second file cannot be made
    for _ in range(10):
        writer.add(os.urandom(300_000).hex().encode(), T0_US)
    writer.close()
    for _ in range(10):
        writer.add(b"late", T0_US)

    found = writer.statistics()
    assert "recording stopped" in found.error
    assert found.frames + found.dropped == 20
    assert found.dropped >= 10


def test_a_folder_that_is_not_there_needs_a_person(tmp_path: Path) -> None:
    with pytest.raises(NeedsPerson, match=r"cannot record into .*nowhere"):
        FrameWriter(tmp_path / "nowhere" / "frames", SystemClock())


# Reading


def test_times_are_told_apart_by_their_size(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    times = [
        "1626992741",
        "1626992741.06217",
        "1626992741.3105128",
        "1626992741062",
        "1626992741062.5",
        "1626992741062170",
        "1626992741062170999",
        "1626992741.06217:",
        "1626992741:",
    ]
    path.write_text("".join(f"{time} {{}}\n" for time in times))

    assert [received_us for received_us, _ in read(path)] == [
        1626992741_000000,
        1626992741_062170,
        1626992741_310512,
        1626992741_062000,
        1626992741_062500,
        1626992741_062170,
        1626992741_062170,
        1626992741_062170,
        1626992741_000000,
    ]


LINES = b'1626992741062170 {"a":1}\n\n1626992741062171 not json, which is not ours to judge\n1626992741062172 \n'
FRAMES = [
    (1626992741062170, b'{"a":1}'),
    (1626992741062171, b"not json, which is not ours to judge"),
    (1626992741062172, b""),
]


def test_plain_gzip_and_zstd_read_alike_whatever_they_are_called(tmp_path: Path) -> None:
    for name, data in {
        "plain.gz": LINES,
        "gzip": gzip.compress(LINES),
        "two gzips.zst": gzip.compress(LINES[:30]) + gzip.compress(LINES[30:]),
        "zstd": zstandard.compress(LINES),
        "two zstds": zstandard.compress(LINES[:30]) + zstandard.compress(LINES[30:]),
        "windows": LINES.replace(b"\n", b"\r\n"),
        "no end": LINES.rstrip(b"\n"),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert read(tmp_path / name) == FRAMES, name


def test_lines_about_the_connection_and_http_answers_are_no_frames(tmp_path: Path) -> None:
    path = tmp_path / "cryptofeed"
    path.write_text(
        "wss://fstream.binance.com/stream?streams=a <- b\n"
        'configuration: {"trades":[]}\n'
        'https://fapi.binance.com/fapi/v1/depth -> 1626992741.301402: {"bids":[]}\n'
        '1626992741.301402: {"e":"trade"}\n'
    )

    assert read(path) == [(1626992741301402, b'{"e":"trade"}')]


def test_jsonl_takes_its_time_from_the_capture_the_event_or_the_frame_before(tmp_path: Path) -> None:
    path = tmp_path / "frames.jsonl"
    path.write_text(
        '{"raw":"{\\"E\\":1786171884624}","captured_utc":"2026-08-08"}\n'
        '{"raw":"{\\"E\\":1786171884624}","captured_utc":"2026-08-08T10:00:00.5Z"}\n'
        '{"raw":"{\\"lastUpdateId\\":1}"}\n'
        '{"raw":{"E": 1786171884625},"captured_utc":7}\n'
        '{"raw":[{"E":1786171884626}]}\n'
    )

    assert read(path) == [
        (1786171884624000, b'{"E":1786171884624}'),
        (1786183200500000, b'{"E":1786171884624}'),
        (1786183200500000, b'{"lastUpdateId":1}'),
        (1786171884625000, b'{"E": 1786171884625}'),
        (1786171884626000, b'[{"E":1786171884626}]'),
    ]


@pytest.mark.parametrize("line", [b"no time", b"-5 {}", b"12345678901234567890 {}", b"1626992741", b"\xff\xfe"])
def test_a_line_whose_time_cannot_be_read_is_named_or_handed_over(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"1626992741 {}\n" + line + b"\n1626992742 {}\n")
    set_aside = []

    with pytest.raises(Malformed, match=r"lines, line 2: no receive time"):
        read(path)
    frames = list(read_frames(path, on_unreadable=lambda number, text: set_aside.append((number, text))))

    assert len(frames) == 2
    assert set_aside == [(2, line)]


@pytest.mark.parametrize("line", [b"{", b"[1]", b'{"no":"frame"}', b'{"raw":"\xff"}'])
def test_a_jsonl_line_without_a_frame_is_named_or_handed_over(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "jsonl"
    path.write_bytes(b'{"raw":"1"}\n' + line + b"\n")
    set_aside = []

    with pytest.raises(Malformed, match="line 2"):
        read(path)
    assert len(list(read_frames(path, on_unreadable=lambda number, text: set_aside.append(number)))) == 1
    assert set_aside == [2]


def test_a_format_that_is_given_is_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"damaged\n1626992741 {}\n")
    set_aside = []

    frames = list(read_frames(path, format="lines", on_unreadable=lambda number, text: set_aside.append(number)))

    assert (len(frames), set_aside) == (1, [1])


def test_a_file_that_is_no_recording_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))

    with pytest.raises(Malformed, match=r"picture\.png is no recording that perpline can read"):
        read(path)


def test_an_empty_file_has_no_frames(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()

    assert read(tmp_path / "empty") == []


def test_a_gzip_file_that_ends_early_is_an_error_in_one_line(tmp_path: Path) -> None:
    data = gzip.compress(b"".join(b"162699274%07d {}\n" % n for n in range(10_000)))
    (tmp_path / "cut.gz").write_bytes(data[: len(data) // 2])

    with pytest.raises(Malformed, match=r"cut\.gz ends in the middle of its gzip data, after line \d+") as raised:
        read(tmp_path / "cut.gz")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_damaged_data_are_an_error(tmp_path: Path, compress: object) -> None:
    data = bytearray(compress(os.urandom(50_000).hex().encode()))  # type: ignore[operator]
    data[1000:1200] = bytes(200)
    (tmp_path / "damaged").write_bytes(data)

    with pytest.raises(Malformed, match=r"damaged|no recording"):
        read(tmp_path / "damaged")


def test_a_file_that_is_not_there_needs_a_person(tmp_path: Path) -> None:
    with pytest.raises(NeedsPerson, match=r"cannot read .*nothing: No such file"):
        read(tmp_path / "nothing")


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perpline.collector.recorder.MAX_LINE_BYTES", 1000)
    (tmp_path / "bomb").write_bytes(zstandard.compress(b"1626992741 " + b" " * 1_000_000))

    with pytest.raises(Malformed, match="line 1 is longer"):
        read(tmp_path / "bomb")


@needs_recordings
@pytest.mark.parametrize(
    ("name", "count", "first_us", "last_us"),
    [
        ("hftbacktest/usdm_btcusdt_20230404.dat.gz", 13384, 1680652700423575, 1680652799986659),
        ("hftbacktest/usdm_btcusdt_20240718.gz", 11414, 1721347020984480, 1721347198986000),
        ("cryptofeed/BINANCE_FUTURES.2021-07-22.ws.1.0", 1535, 1626992741062170, 1626992771201806),
        ("crypto-msg-parser/binance_frames.jsonl", 51, 1616176861895000, 1654232606707000),
    ],
)
def test_recordings_of_others_read_whole(name: str, count: int, first_us: int, last_us: int) -> None:
    frames = read(RECORDINGS / name)

    assert len(frames) == count
    assert (frames[0][0], frames[-1][0]) == (first_us, last_us)
    assert all(data.startswith(b"{") and data.endswith(b"}") for _, data in frames)


@needs_recordings
@pytest.mark.parametrize("name", ["BINANCE_FUTURES.2021-07-22.0", "BINANCE_FUTURES.2021-07-22.http.0.0"])
def test_recorded_http_answers_are_no_frames(name: str) -> None:
    assert read(RECORDINGS / "cryptofeed" / name) == []
