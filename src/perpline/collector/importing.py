"""Files into the tables: read, proved, stored once, and their holes written down."""

from collections.abc import Callable, Sequence

import numpy as np
from msgspec import Struct, field

from perpline.collector.archives import ArchiveFile, FileRows, read
from perpline.collector.bulk import (
    Holes,
    Kept,
    keep_funding,
    keep_klines,
    keep_open_interest,
    keep_ratio,
    stored_span,
)
from perpline.collector.conventions import PERIOD_MS, convention
from perpline.common.errors import Malformed
from perpline.domain.candle import MINUTE_MS
from perpline.domain.market import RATIOS
from perpline.storage.store import Columns, Store

DAY_MS = 86_400_000
GROUP_ROWS = 1_500_000
"""Rows of klines that are held and sorted by time before they are written: a month of thirty symbols, about 300 MB."""
TOLD = 20
"""Invalid rows, at most, that a report names."""
_METRICS = ("open_interest", *(f"long_short_ratio:{ratio}" for ratio in RATIOS))


class ImportReport(Struct):
    """What an import did."""

    files: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    """New rows by table."""
    duplicates: int = 0
    revisions: int = 0
    completed: int = 0
    """Stored candles that got columns they lacked; counted as duplicates too."""
    invalid: int = 0
    invalid_named: list[str] = field(default_factory=list)
    holes: int = 0
    """Rows of `gaps` that were opened."""
    gaps_closed: int = 0
    quarantined: list[str] = field(default_factory=list)
    """Symbol-days of metrics whose labels mean nothing that could be proved. Not stored."""
    refused: list[str] = field(default_factory=list)
    """Files that are not what they claim to be. Nothing of them is stored."""
    conventions: dict[str, int] = field(default_factory=dict)
    """Symbol-days of metrics by what their labels are: end or start of the period."""
    stopped: bool = False
    """Ended on request before all files were read. The same import again does the rest."""


class Importer:
    """Imports files into a store. Doing it again changes nothing."""

    def __init__(
        self,
        store: Store,
        now_ms: Callable[[], int],
        progress: Callable[[int], None] = lambda files: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """`now_ms`: our clock; `progress` is told how many files are done."""
        self.report = ImportReport()
        self._store = store
        self._now_ms = now_ms
        self._progress = progress
        self._stopped = stopped
        self._touched: dict[tuple[str, str], tuple[int, int]] = {}
        """By symbol and series, from the first to the last time that came."""

    async def run(self, files: Sequence[ArchiveFile]) -> ImportReport:
        """Import the files in their order, so that candles which metrics are proved by come before.

        Raises Unavailable and NeedsPerson as the store does; what was stored until then stays.
        """
        holes = Holes(self._store, await self._store.gaps())
        group: list[tuple[str, FileRows]] = []
        period = ("", "")
        for file in files:
            if self._stopped():
                self.report.stopped = True
                break
            if group and ((file.period, file.series) != period or _rows(group) >= GROUP_ROWS):
                await self._keep(group)
                group = []
            period = (file.period, file.series)
            rows = self._read(file)
            if rows is None:
                self._progress(1)
            elif rows.table == "metrics":
                await self._metrics(file, rows.columns, holes)
                self._progress(1)
            elif rows.table == "funding_rates":
                kept = await keep_funding(self._store, file.symbol, rows.columns, "archive", self._now_ms())
                self._count("funding_rates", kept)
                self._progress(1)
            else:
                group.append((file.symbol, rows))
        await self._keep(group)
        await self._settle(holes)
        return self.report

    def _read(self, file: ArchiveFile) -> FileRows | None:
        try:
            rows = read(file)
        except Malformed as error:
            self.report.refused.append(str(error))
            return None
        self.report.files += 1
        self.report.invalid += rows.invalid
        self.report.invalid_named += rows.reasons[: TOLD - len(self.report.invalid_named)]
        return rows

    async def _keep(self, group: Sequence[tuple[str, FileRows]]) -> None:
        """Store klines of a period. Files whose names tell no interval may be of several tables."""
        for table in sorted({rows.table for _, rows in group}):
            parts: dict[str, list[Columns]] = {}
            for symbol, rows in group:
                if rows.table == table and len(rows.columns["open_time"]):
                    parts.setdefault(symbol, []).append(rows.columns)
                    self._touch(symbol, table, rows.columns["open_time"].min(), rows.columns["open_time"].max())
            joined = [(symbol, _joined(columns)) for symbol, columns in parts.items()]
            kept = await keep_klines(self._store, table, joined, "archive", self._now_ms())
            self._count(table, kept)
        self._progress(len(group))

    async def _metrics(self, file: ArchiveFile, columns: Columns, holes: Holes) -> None:
        order = np.argsort(columns["label"], kind="stable")
        columns = {name: values[order] for name, values in columns.items()}
        for day in np.unique(columns["label"] // DAY_MS).tolist():
            of_day = columns["label"] // DAY_MS == day
            await self._metrics_of_day(file.symbol, {name: values[of_day] for name, values in columns.items()}, holes)

    async def _metrics_of_day(self, symbol: str, columns: Columns, holes: Holes) -> None:
        label, contracts, value = (columns[name] for name in ("label", "open_interest", "open_interest_value"))
        first, last = int(label[0]), int(label[-1])
        names = ("open_time", "close", "volume", "taker_buy_volume")
        candles = await self._store.series("candles_1m", symbol, first - PERIOD_MS, last + 2 * PERIOD_MS, names)
        with np.errstate(divide="ignore", invalid="ignore"):
            implied = value / contracts
        unique = np.concatenate(([True], np.diff(label) > 0))
        evidence = convention(
            label[unique],
            implied[unique],
            columns["taker"][unique],
            (candles["open_time"] + MINUTE_MS, candles["close"]),
            (candles["open_time"], candles["volume"], candles["taker_buy_volume"]),
        )
        if evidence.verdict == "unknown":
            await self._quarantine(symbol, first, last, len(candles["open_time"]), holes)
            return
        self.report.conventions[evidence.verdict] = self.report.conventions.get(evidence.verdict, 0) + 1
        ends = label + (PERIOD_MS if evidence.verdict == "start" else 0)
        now_ms = self._now_ms()
        self._count("open_interest", await keep_open_interest(self._store, symbol, ends, contracts, value, now_ms))
        for ratio in RATIOS:
            kept = await keep_ratio(self._store, symbol, ratio, ends, columns[ratio], now_ms)
            self._count("long_short_ratio", kept)
        for series in _METRICS:
            self._touch(symbol, series, int(ends[0]), int(ends[-1]))

    async def _quarantine(self, symbol: str, first: int, last: int, candles: int, holes: Holes) -> None:
        why = (
            "labels are neither ends nor beginnings of their periods"
            if candles
            else "no 1m candles of that day are stored to prove its labels by: import them first"
        )
        day = np.datetime64(first, "ms").astype("datetime64[D]")
        self.report.quarantined.append(f"{symbol} {day}: {why}")
        for series in _METRICS:
            await holes.quarantined(symbol, series, first, last + PERIOD_MS, f"quarantined: {why}", self._now_ms())

    async def _settle(self, holes: Holes) -> None:
        for (symbol, series), (first, last) in sorted(self._touched.items()):
            span = await stored_span(self._store, symbol, series, first, last)
            if span is not None:
                cause = "not in the imported files"
                await holes.settle(symbol, series, *span, cause, "archive", self._now_ms())
        self.report.holes, self.report.gaps_closed = holes.opened, holes.closed

    def _touch(self, symbol: str, series: str, first: int, last: int) -> None:
        before = self._touched.get((symbol, series), (first, last))
        self._touched[symbol, series] = (min(before[0], int(first)), max(before[1], int(last)))

    def _count(self, table: str, kept: Kept) -> None:
        self.report.rows[table] = self.report.rows.get(table, 0) + kept.new
        self.report.duplicates += kept.duplicates
        self.report.revisions += kept.revisions
        self.report.completed += kept.completed


def _rows(group: Sequence[tuple[str, FileRows]]) -> int:
    return sum(len(rows.columns["open_time"]) for _, rows in group)


def _joined(parts: Sequence[Columns]) -> Columns:
    """Columns of one symbol one behind the other; what only some files tell is NaN for the others."""
    names = sorted({name for columns in parts for name in columns})
    return {
        name: np.concatenate(
            [columns[name] if name in columns else np.full(len(columns["open_time"]), np.nan) for columns in parts]
        )
        for name in names
    }
