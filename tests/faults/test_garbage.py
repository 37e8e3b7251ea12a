"""Frames that nobody can use."""

import base64
import json
from pathlib import Path

from running import trouble


async def test_garbage_is_counted_kept_aside_and_stops_nothing(tmp_path: Path) -> None:
    after = await trouble(tmp_path, lambda exchange: setattr(exchange.faults, "garbage_share", 0.1))

    sent, malformed = after.exchange.stats.frames["garbage"], after.status["messages"]["malformed"]
    assert 0 < malformed < sent, "binary frames are not even looked at"
    kept = [json.loads(line) for line in (tmp_path / "malformed.frames").read_text().splitlines()]
    assert len(kept) == malformed
    assert all(base64.b64decode(line["data"])[:1] in (b"{", b"") for line in kept)
    assert all(entry["losses"] == 0 for entry in after.status["connections"])
    assert after.gaps(open_only=True) == []
