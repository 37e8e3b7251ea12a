"""The word that `perpline alerts run` leaves each minute, so that others can tell when nobody watches any more."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from perpline.common.config import Settings

EVERY_S = 60.0
OLD_S = 180.0
"""A watch that has left no word for so long, and two looks more, is dead or hangs."""


def word_file(data_dir: Path) -> Path:
    return data_dir / "alerts-watch.json"


def leave_word(data_dir: Path, now_ms: int, channels: Sequence[str], failing: Sequence[str]) -> None:
    """Say that somebody watches, and which channels take nothing. Raises OSError."""
    path = word_file(data_dir)
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"at": now_ms, "channels": list(channels), "failing": list(failing)}))
    os.replace(new, path)


def take_word_back(data_dir: Path) -> None:
    word_file(data_dir).unlink(missing_ok=True)


def watch_trouble(settings: Settings, now_ms: int) -> str:
    """Why alarms of this data folder reach nobody, in words; empty where they do, or where nobody is to be told.

    `now_ms` is this host's time.
    """
    if not settings.alert_urls:
        return ""
    try:
        word = json.loads(word_file(settings.data_dir).read_text())
        at, channels, failing = int(word["at"]), list(word["channels"]), list(word["failing"])
    except FileNotFoundError:
        return "nobody watches: perpline alerts run does not run"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it cannot be told whether anybody watches: {error}"
    silent_s = (now_ms - at) / 1000
    if silent_s > OLD_S + 2 * settings.alert_every_s:
        return f"nobody watches: perpline alerts run is dead or hangs, and has said nothing for {silent_s:,.0f} s"
    if failing and len(failing) == len(channels):
        return f"they reach nobody: no channel takes them ({', '.join(map(str, failing))})"
    return ""
