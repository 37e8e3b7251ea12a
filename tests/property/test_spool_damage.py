"""A spool whose file was cut, or in which a byte changed: all before it is read, and nothing that was not written."""

import asyncio
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from perpline.collector.spool import Spool
from perpline.common.clock import ManualClock

RECORDS = st.lists(st.binary(max_size=40), min_size=1, max_size=12)


def _spool(folder: str, reserved: int) -> Spool:
    return Spool(Path(folder), 1 << 20, ManualClock(5), segment_bytes=1 << 12, reserved={"decisions": reserved})


async def _written(folder: str, reserved: int, records: list[bytes]) -> list[int]:
    """Where in the file each record ends."""
    spool = _spool(folder, reserved)
    await spool.open()
    ends = []
    for record in records:
        await spool.append("decisions", record)
        ends.append(spool.statistics().bytes)
    await spool.close()
    return ends


def _file(folder: str) -> Path:
    [path] = Path(folder).glob("*.spool")
    return path


async def _read(folder: str, reserved: int) -> list[bytes]:
    spool = _spool(folder, reserved)
    await spool.open()
    found = await spool.oldest("decisions", 100)
    await spool.append("decisions", b"what comes after")
    await spool.close()
    again = _spool(folder, reserved)
    await again.open()
    assert await again.oldest("decisions", 100) == [*found, b"what comes after"]
    await again.close()
    return found


@settings(max_examples=60, deadline=None)
@given(RECORDS, st.floats(0, 1), st.sampled_from([0, 4096]))
def test_a_file_cut_anywhere_gives_every_record_before_the_cut(
    records: list[bytes], where: float, reserved: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ends = asyncio.run(_written(folder, reserved, records))
        path = _file(folder)
        cut = round(where * ends[-1])
        with path.open("r+b") as file:
            file.truncate(cut)

        assert asyncio.run(_read(folder, reserved)) == records[: sum(end <= cut for end in ends)]


@settings(max_examples=60, deadline=None)
@given(RECORDS, st.floats(0, 1, exclude_max=True), st.integers(1, 255), st.sampled_from([0, 4096]))
def test_a_byte_changed_anywhere_gives_every_record_before_it_and_nothing_false(
    records: list[bytes], where: float, change: int, reserved: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ends = asyncio.run(_written(folder, reserved, records))
        path = _file(folder)
        at = int(where * ends[-1])
        data = bytearray(path.read_bytes())
        data[at] ^= change
        path.write_bytes(data)

        assert asyncio.run(_read(folder, reserved)) == records[: sum(end <= at for end in ends)]
