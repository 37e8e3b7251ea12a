"""Plays one drill in a process of its own, so that each has an exchange and a core to itself.

    play_one([job])    the job as JSON: {name, seed, database_url, no_postgres, redis_url}

Prints the result as JSON. SIGTERM ends the drill and everything that it has started.
"""

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from perpline.drill.drills import DRILLS
from perpline.drill.forge import forked_forge
from perpline.drill.running import Job, Result, play
from perpline.drill.scene import Servers

STOPPED = 3
"""Exit code of one that was told to end."""


def play_one(words: Sequence[str]) -> int:
    forge = forked_forge()  # before there is a thread or a loop
    job = msgspec.json.decode(words[0], type=Job)
    logging.getLogger("perpline.simulation").setLevel(logging.ERROR)  # cuts are meant here

    async def main() -> Result | None:
        playing = asyncio.current_task()
        assert playing is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, playing.cancel)
        servers = Servers(job.database_url, job.redis_url, job.no_postgres, forge)
        try:
            return await play(DRILLS[job.name], job.seed, servers)
        except asyncio.CancelledError:
            return None
        finally:
            await servers.close()

    with asyncio.Runner(loop_factory=_new_event_loop()) as runner:
        result = runner.run(main())
    if result is None:
        return STOPPED
    sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    sys.stdout.flush()
    return 0


def _new_event_loop() -> Any:
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return new_event_loop
