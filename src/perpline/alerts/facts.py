"""What the rules judge: published facts of one instant, gathered from workers and tables."""

from typing import Any

from msgspec import Struct

from perpline.metrics import leads
from perpline.trading.mode import ModeRow


class Worker(Struct, frozen=True, kw_only=True):
    """A worker of this data folder, and what it says of itself."""

    port: int
    status: dict[str, Any] | None
    """/status; None where it does not answer."""
    error: str = ""
    """Why it does not."""
    has_token: bool = True
    """Whether its token file is there: an orderly stop takes it away, a death does not."""


class OpenGap(Struct, frozen=True, kw_only=True):
    """A hole in a series that nobody has repaired yet, with from_time and to_time of the exchange."""

    symbol: str
    series: str
    from_time: int
    to_time: int
    cause: str


class ModesSeen(Struct, frozen=True, kw_only=True):
    """How far people have been told of the table `modes`."""

    id: int
    """Of its newest row; 0 for an empty table."""
    over: tuple[int, ...] = ()
    """Rows in force that were over already."""


class Facts(Struct, frozen=True, kw_only=True):
    """Everything at one instant. What could not be had is None: then nothing is known, and no alarm comes or goes."""

    now_ms: int
    """Our host's time, UTC: alarms are about the wall's time, however fast the market's runs."""
    workers: tuple[Worker, ...] = ()
    database_error: str | None = None
    """Why the database does not answer us; empty where it does, None where it was not asked."""
    gaps: tuple[OpenGap, ...] | None = None
    """Of candles of the last four hours of market time."""
    close_to_signal_ms: tuple[float, ...] | None = None
    """Of the last minutes that were decided: receipt of the last closing frame to commit, wall milliseconds."""
    decided_until: int | None = None
    """The newest T that was decided in the slot; 0 where none of the last minutes was."""
    live_unattended: tuple[str, ...] | None = None
    """Symbols of live positions that are open by the tables, while no process has the account."""
    modes: tuple[tuple[int, ModeRow], ...] | None = None
    """Every row of the table with its id, in their order."""
    modes_seen: ModesSeen | None = None
    """What the look before knew of them; None at the first."""

    @property
    def statuses(self) -> list[dict[str, Any]]:
        """Of the workers that answer; the one that leads first."""
        found = [worker.status for worker in self.workers if worker.status is not None]
        return sorted(found, key=lambda status: not leads(status))
