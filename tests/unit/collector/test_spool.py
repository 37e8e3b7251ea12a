import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from perpline.collector.spool import Spool, Taken
from perpline.common.clock import ManualClock
from perpline.common.errors import NeedsPerson, Unavailable


def spool_in(folder: Path, **options: object) -> Spool:
    options.setdefault("max_bytes", 1 << 20)
    return Spool(folder / "spool", clock=ManualClock(1_000_000), **options)  # type: ignore[arg-type]


async def all_of(spool: Spool, kind: str) -> list[bytes]:
    return await spool.oldest(kind, spool.count(kind))


async def read(folder: Path, kind: str) -> list[bytes]:
    spool = spool_in(folder)
    await spool.open()
    found = await all_of(spool, kind)
    await spool.close()
    return found


async def test_records_come_back_in_order_also_to_another_process(tmp_path: Path) -> None:
    spool = spool_in(tmp_path, segment_bytes=200)
    await spool.open()
    for n in range(50):
        await spool.append("candles_1m", b"row %d" % n, sync=n % 10 == 0)
        await spool.append("gaps", b"gap %d" % n)
    await spool.remove("candles_1m", 3)
    await spool.close()

    again = spool_in(tmp_path)
    await again.open()

    # What was removed may be there again, as far as its file is.
    found = await all_of(again, "candles_1m")
    assert found == [b"row %d" % n for n in range(50)][-len(found) :]
    assert len(found) >= 47
    assert await all_of(again, "gaps") == [b"gap %d" % n for n in range(50)]
    await again.append("gaps", b"gap 50")
    assert (await all_of(again, "gaps"))[-1] == b"gap 50"
    await again.close()


async def test_files_are_deleted_once_their_records_are_removed(tmp_path: Path) -> None:
    spool = spool_in(tmp_path, segment_bytes=200)
    await spool.open()
    for n in range(50):
        await spool.append("candles_1m", b"row %d" % n)
    assert len(list(spool.folder.glob("*.spool"))) > 5

    await spool.remove("candles_1m", 50)

    assert list(spool.folder.glob("*.spool")) == []
    assert (spool.kinds, spool.statistics().bytes, spool.statistics().replayed) == ([], 0, 50)
    await spool.append("candles_1m", b"new")
    assert await all_of(spool, "candles_1m") == [b"new"]
    await spool.close()


def test_one_process_uses_a_folder_and_its_death_frees_it(tmp_path: Path) -> None:
    holder = """
        import asyncio, sys
        from pathlib import Path
        from perpline.collector.spool import Spool
        from perpline.common.clock import ManualClock

        async def main():
            spool = Spool(Path(sys.argv[1]) / "spool", 1 << 20, ManualClock(0))
            await spool.open()
            await spool.append("decisions", b"one", sync=True)
            print("open", flush=True)
            await asyncio.sleep(60)

        asyncio.run(main())
    """
    arguments = [sys.executable, "-c", textwrap.dedent(holder), str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(Taken, match="another process"):
            asyncio.run(spool_in(tmp_path).open())
        process.kill()

    assert asyncio.run(read(tmp_path, "decisions")) == [b"one"]


async def test_a_full_spool_drops_the_oldest_of_what_may_be_dropped_first_and_says_so(tmp_path: Path) -> None:
    dropped: list[tuple[str, list[bytes]]] = []
    spool = spool_in(
        tmp_path,
        max_bytes=2_000,
        segment_bytes=300,
        may_drop=["candles_1m", "premium_index"],
        on_dropped=lambda kind, payloads: dropped.append((kind, payloads)),
    )
    await spool.open()
    for n in range(8):
        await spool.append("candles_1m", b"c%03d" % n + b"." * 96)
    for n in range(4):
        await spool.append("premium_index", b"p%03d" % n + b"." * 96)
    for n in range(12):
        await spool.append("decisions", b"d%03d" % n + b"." * 96)

    lost = [(kind, payload[:4]) for kind, payloads in dropped for payload in payloads]
    assert lost == [("candles_1m", b"c%03d" % n) for n in range(8)] + [
        ("premium_index", b"p%03d" % n) for n in range(len(lost) - 8)
    ]
    assert [each[:4] for each in await all_of(spool, "decisions")] == [b"d%03d" % n for n in range(12)]
    assert spool.statistics().bytes <= 2_000
    assert spool.statistics().dropped == len(lost)
    with pytest.raises(Unavailable, match="spool_mb"):
        await spool.append("decisions", b"." * 1000)
    assert "spool_mb" in spool.statistics().error
    await spool.close()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system reserves no disk")
def test_the_reserved_disk_takes_decisions_when_nothing_else_fits(tmp_path: Path) -> None:
    """The limit on the size of a file stands for a full disk: what would make any file longer fails."""
    child = """
        import asyncio, resource, signal, sys
        from pathlib import Path
        from perpline.collector.spool import Spool
        from perpline.common.clock import ManualClock
        from perpline.common.errors import Unavailable

        async def main():
            spool = Spool(Path(sys.argv[1]) / "spool", 1 << 20, ManualClock(0), reserved={"decisions": 1 << 16})
            await spool.open()
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
            before = (spool.folder / "decisions-0000000000000000.spool").stat()
            for n in range(100):
                await spool.append("decisions", b"." * 400, sync=True)
            after = (spool.folder / "decisions-0000000000000000.spool").stat()
            assert (before.st_size, before.st_blocks) == (after.st_size, after.st_blocks)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 1 << 16))
            try:
                await spool.append("candles_1m", b"." * 400)
            except Unavailable as error:
                print(error)
            assert spool.count("candles_1m") == 0

        asyncio.run(main())
    """
    arguments = [sys.executable, "-c", textwrap.dedent(child), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert "takes nothing: File too large" in done.stdout
    assert len(asyncio.run(read(tmp_path, "decisions"))) == 100


async def test_a_record_that_did_not_fit_leaves_nothing_behind_that_is_read(tmp_path: Path) -> None:
    spool = spool_in(tmp_path)
    await spool.open()
    await spool.append("gaps", b"first")
    path = spool.folder / "gaps-0000000000000000.spool"
    torn = path.stat().st_size
    await spool.append("gaps", b"second" * 100)
    await spool.close()
    os.truncate(path, torn + 300)

    again = spool_in(tmp_path)
    await again.open()
    assert await all_of(again, "gaps") == [b"first"]
    await again.append("gaps", b"third")
    await again.close()

    last = spool_in(tmp_path)
    await last.open()
    assert await all_of(last, "gaps") == [b"first", b"third"]
    await last.close()


async def test_a_folder_that_cannot_be_used_is_a_matter_for_a_person(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file")

    with pytest.raises(NeedsPerson, match="cannot be used"):
        await spool_in(tmp_path).open()
