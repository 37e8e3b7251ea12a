"""The questions of each page to the database, which is only read. Every answer is bounded, and made beside the loop."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeVar

import msgspec
import numpy as np

from perpline.bootstrap import open_store
from perpline.common.clock import Clock
from perpline.common.config import Settings
from perpline.common.errors import Unavailable
from perpline.domain.candle import INTERVAL_MS, MINUTE_MS
from perpline.domain.signal import Status
from perpline.storage.store import TRADING_TABLES, Row, Store
from perpline.trading.books import read
from perpline.trading.mode import InForce, mode_rows

WITHIN_S = 15.0
"""A page waits no longer for the database."""
MOST_CELLS = 100_000
"""Of the heat map: 600 symbols and 160 minutes."""
ROWS = 2_000
"""The most of each series below a chart."""
NEWEST = 200
"""The most of each list of events."""
DAY_MS = 86_400_000
ACCOUNTS = ("paper", "live")
SETTLED_MS, SETTLED_WALL_MS = MINUTE_MS, 20_000
"""A candle that closed so lately may still wait to be written: its row is not missed yet."""
CACHE_S = 30.0
CALIBRATION_BINS = 10
CALIBRATION_ROWS = 50_000
CALIBRATION_MS = 60 * DAY_MS
LATE, REPAIRED, SYNTHETIC, MISSING = 1, 2, 4, 8
"""Flags of a cell of the heat map."""
SOURCED = ("candles_1m", "candles_15m", "candles_1h", "mark_klines", "index_klines", "premium_klines")

T = TypeVar("T")
Facts = dict[str, Any]


class Reading:
    """Answers from the database, opened when it is first asked and kept open.

    Every question may raise Unavailable, or NeedsPerson where the database cannot be opened. Symbols, slots and
    intervals are checked by who asks: they go into queries as they are.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._store: Store | None = None
        self._opening = asyncio.Lock()
        self._kept: dict[str, tuple[float, Any]] = {}

    async def close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            await store.close()

    async def _opened(self) -> Store:
        async with self._opening:
            if self._store is None:
                store = open_store(self._settings.database_url.get_secret_value(), read_only=True)
                await store.open()
                self._store = store
            return self._store

    async def _select(self, query: str) -> list[Row]:
        store = await self._opened()
        try:
            async with asyncio.timeout(WITHIN_S):
                return await store.select(query)
        except TimeoutError:
            raise Unavailable(f"the database took longer than {WITHIN_S:g} s") from None

    async def _newest(self, table: str) -> list[Facts]:
        """The newest rows of a table of trading, the newest first."""
        return (await read(await self._opened(), table, limit=NEWEST))[::-1]

    # ---- session and live picture

    async def symbols(self, slot: str) -> list[str]:
        """Those that were ever decided."""
        if (known := self._fresh(f"symbols {slot}")) is not None:
            return list(known)
        return self._keep(f"symbols {slot}", sorted(await (await self._opened()).last_decided(slot)))

    async def newest(self, slot: str) -> int | None:
        """The newest T that was decided."""
        [[newest]] = await self._select(f"SELECT MAX(close_time) FROM signals WHERE slot = '{slot}'")
        return None if newest is None else int(newest)

    async def was_live(self) -> bool:
        return bool(await self._select("SELECT 1 FROM modes WHERE mode = 'live' LIMIT 1"))

    async def closes(self, now: int, count: int, speed: float) -> list[tuple[str, int, float]]:
        """(symbol, open_time, close) of the last `count` minutes and of what may have been written since."""
        since = now - (count + 1) * MINUTE_MS - round(SETTLED_WALL_MS * speed)
        rows = await self._select(f"SELECT symbol, open_time, close FROM candles_1m WHERE open_time >= {since}")
        return [(symbol, int(time), float(close)) for symbol, time, close in rows]

    async def day_equity(self, now: int) -> dict[str, float]:
        """What each account was worth first on this UTC day."""
        found = {}
        for account in ACCOUNTS:
            rows = await self._select(
                f"SELECT equity FROM equity WHERE account = '{account}' AND minute >= {now - now % DAY_MS} "
                "ORDER BY minute LIMIT 1"
            )
            if rows:
                found[account] = float(rows[0][0])
        return found

    # ---- pages

    async def symbol(self, symbol: str, interval: str, limit: int, end: int, slot: str) -> Facts:
        """Candles before `end`, and what was decided, held and told in their time."""
        step = INTERVAL_MS[interval]
        candles = await self._select(
            f"SELECT open_time, open, high, low, close, volume, source, synthetic FROM candles_{interval} "
            f"WHERE symbol = '{symbol}' AND open_time < {end} ORDER BY open_time DESC LIMIT {limit}"
        )
        start = int(candles[-1][0]) if candles else end - limit * step
        # Longer candles have more minutes than a chart can show: of those only the signals.
        which = "" if interval == "1m" else f"AND status = '{Status.OK}' "
        decided = await self._select(
            "SELECT close_time, status, side, p_cal, ev_bp, detail FROM signals "
            f"WHERE slot = '{slot}' AND symbol = '{symbol}' AND close_time > {start} AND close_time <= {end} {which}"
            f"ORDER BY close_time DESC LIMIT {ROWS}"
        )
        columns = TRADING_TABLES["positions"].columns
        names = ", ".join(f'"{column}"' for column in columns)
        positions = await self._select(
            f"SELECT {names} FROM positions WHERE symbol = '{symbol}' AND opened_at < {end} "
            f"AND (closed_at IS NULL OR closed_at >= {start}) ORDER BY opened_at DESC, position_id DESC LIMIT {NEWEST}"
        )
        wanted = (
            *("account", "position_id", "side", "status", "entry_price", "exit_price", "target", "stop"),
            *("protective_stop", "opened_at", "closed_at", "exit_reason", "quantity", "realized_pnl"),
        )
        told = [dict(zip(columns, row, strict=True)) for row in positions[::-1]]
        return {
            "candles": [[*row[:7], bool(row[7])] for row in candles[::-1]],
            "decisions": _named(("close_time", "status", "side", "p_cal", "ev_bp", "detail"), decided[::-1]),
            "positions": [{**_numbers({name: each[name] for name in wanted}), "net": _net(each)} for each in told],
            **await self._below(symbol, start, end, step),
        }

    async def _below(self, symbol: str, start: int, end: int, step: int) -> Facts:
        """The series below the candles, one point a candle where a series has more."""

        async def series(table: str, columns: str, time: str, more: str = "") -> list[list[Any]]:
            rows = await self._select(
                f"SELECT {columns} FROM {table} WHERE symbol = '{symbol}' AND {time} >= {start} AND {time} < {end} "
                f"{more} ORDER BY {time} DESC LIMIT {ROWS}"
            )
            return [list(row) for row in rows[::-1]]

        mark = await series(
            "premium_index", "minute, mark_price, index_price, funding_rate", "minute", f"AND minute % {step} = 0"
        )
        premium = await series("premium_klines", "open_time, close * 10000", "open_time", f"AND open_time % {step} = 0")
        interest = await series("open_interest", "time, open_interest", "time", "AND kind = 'hist_5m'")
        if not interest:
            interest = await series("open_interest", "time, open_interest", "time")
        ratios: dict[str, list[list[Any]]] = defaultdict(list)
        for name, time, value in await series("long_short_ratio", "ratio, period_end, value", "period_end"):
            ratios[name].append([time, value])
        funding = await series("funding_rates", "funding_time, rate", "funding_time")
        return {"mark": mark, "premium": premium, "open_interest": interest, "ratios": ratios, "funding": funding}

    async def minutes(self, symbols: Sequence[str], minutes: int, end: int, now: int, slot: str, speed: float) -> Facts:
        """The heat map of the minutes that closed until `end`: a status or None, flags, and of a signal its side."""
        last = end - end % MINUTE_MS
        minutes = min(minutes, max(1, MOST_CELLS // max(1, len(symbols))))
        times = [last - number * MINUTE_MS for number in range(minutes - 1, -1, -1)]
        within = f"BETWEEN {times[0] - MINUTE_MS} AND {last - MINUTE_MS}"
        decided = await self._select(
            "SELECT symbol, close_time, status, side FROM signals "
            f"WHERE slot = '{slot}' AND close_time BETWEEN {times[0]} AND {last} LIMIT {MOST_CELLS}"
        )
        late_ms = MINUTE_MS + round(self._settings.close_deadline_s * 1000)
        candles = await self._select(
            f"SELECT symbol, open_time, synthetic, source <> 'ws' OR received_at > open_time + {late_ms} "
            f"FROM candles_1m WHERE open_time {within} LIMIT {MOST_CELLS}"
        )
        gaps = await self._select(
            "SELECT symbol, from_time, to_time FROM gaps WHERE series = 'candles_1m' AND repaired_at IS NOT NULL "
            f"AND repaired_by <> 'absent' AND to_time > {times[0] - MINUTE_MS} AND from_time < {last} "
            f"ORDER BY id DESC LIMIT {ROWS}"
        )
        settled = now - SETTLED_MS - round(SETTLED_WALL_MS * speed)
        cells = await asyncio.to_thread(_cells, symbols, times, decided, candles, gaps, settled)
        return {"times": times, "symbols": list(symbols), "cells": cells}

    async def health(self, now: int) -> Facts:
        """The gap ledger, revisions, and where the candles of a day came from."""
        columns = (
            "id",
            "symbol",
            "series",
            "from_time",
            "to_time",
            "cause",
            "detected_at",
            "repaired_at",
            "repaired_by",
        )
        gaps = await self._select(f"SELECT {', '.join(columns)} FROM gaps ORDER BY id DESC LIMIT {NEWEST}")
        [[open_gaps]] = await self._select("SELECT COUNT(*) FROM gaps WHERE repaired_at IS NULL")
        if (revisions := self._fresh("revisions")) is None:  # they are not kept in the order of their coming
            revised = ("symbol", "series", "time", "field", "old", "new", "sources", "seen_at")
            rows = await self._select(
                f"SELECT {', '.join(revised)} FROM revisions ORDER BY seen_at DESC, time DESC LIMIT {NEWEST // 2}"
            )
            revisions = self._keep("revisions", _named(revised, rows))
        if (sources := self._fresh("sources")) is None:
            sources = {}
            for table in SOURCED:
                rows = await self._select(
                    f"SELECT source, COUNT(*) FROM {table} WHERE open_time >= {now - DAY_MS} GROUP BY source"
                )
                sources[table] = {source: int(count) for source, count in rows}
            self._keep("sources", sources)
        return {
            "gaps": _named(columns, gaps),
            "open_gaps": int(open_gaps),
            "revisions": revisions,
            "sources": sources,
        }

    async def latency(self, minutes: int, now: int, slot: str, speed: float) -> Facts:
        """How long the decisions of each minute took, wall milliseconds, by the stamps in their rows."""
        rows = await self._select(
            "SELECT close_time, t_candle_recv, t_features, t_predict, t_commit FROM signals "
            f"WHERE slot = '{slot}' AND close_time > {now - minutes * MINUTE_MS} AND close_time <= {now} "
            "AND t_candle_recv > 0 AND t_features > 0 AND t_predict > 0 AND t_commit > 0 "
            f"ORDER BY close_time DESC LIMIT {MOST_CELLS}"
        )
        return await asyncio.to_thread(_latencies, rows, speed)

    async def models(self, now: int) -> Facts:
        """What there is and what was in force, and how good the probabilities were where outcomes are known."""
        store = await self._opened()
        models = [
            {"model_id": row.model_id, "status": row.status, "created_at": row.created_at}
            for row in (await store.models())[-NEWEST:]
        ]
        deployments = [msgspec.to_builtins(row) for row in (await store.deployments())[: -NEWEST - 1 : -1]]
        outcomes = await self._select(
            "SELECT s.slot, s.p_cal, o.ret_net FROM signals s JOIN signal_outcomes o ON o.signal_id = s.signal_id "
            f"WHERE s.close_time > {now - CALIBRATION_MS} AND s.status = '{Status.OK}' AND s.p_cal IS NOT NULL "
            f"LIMIT {CALIBRATION_ROWS}"
        )
        return {"models": models, "deployments": deployments, "calibration": _calibration(outcomes)}

    async def trading(self, now: int) -> Facts:
        """What was traded, and what each account was worth in the last day."""
        equity = {}
        for account in ACCOUNTS:
            rows = await self._select(
                f"SELECT minute, equity FROM equity WHERE account = '{account}' AND minute >= {now - DAY_MS} "
                f"ORDER BY minute DESC LIMIT {DAY_MS // MINUTE_MS}"
            )
            if rows:
                equity[account] = [[minute, float(value)] for minute, value in rows[::-1]]
        store = await self._opened()
        standing = InForce(await mode_rows(store))
        lists = ("positions", "orders", "fills", "refusals")
        return {
            "modes": [
                {**msgspec.to_builtins(row), "now": row.at(now).value}
                for row in (standing.of_all, *standing.of_symbols.values())
            ],
            "history": {name: [_numbers(row) for row in await self._newest(name)] for name in lists},
            "open": [_numbers(row) for row in await self._open_positions(store)],
            "twins": [_numbers(row) for row in await self._newest("twins")],
            "equity": equity,
        }

    async def _open_positions(self, store: Store) -> list[Facts]:
        found = await read(store, "positions", closed_at=None)
        return [each for each in found if each["status"] != "closed"][-NEWEST:]

    async def log(self) -> Facts:
        """Changes of mode, alarms that were told, and differences from the exchange's books, the newest first."""
        return {
            "modes": await self._newest("modes"),
            "alerts": await self._newest("alerts"),
            "reconciliations": await self._newest("reconciliations"),
        }

    # ---- what is asked often and changes little

    def _fresh(self, name: str) -> Any:
        at, value = self._kept.get(name, (-1e9, None))
        return value if self._clock.wall_s() - at < CACHE_S else None

    def _keep(self, name: str, value: T) -> T:
        self._kept[name] = self._clock.wall_s(), value
        return value


def open_position(row: Mapping[str, Any]) -> Facts:
    """An open position of its row, as the worker tells it; no mark price, and whether a stop rests is not known."""
    names = (
        *("account", "position_id", "symbol", "side", "status", "quantity", "entry_price", "target", "stop"),
        *("protective_stop", "realized_pnl", "fees", "funding", "opened_at", "deadline"),
    )
    return {**{name: row[name] for name in names}, "mark_price": None, "unrealized_pnl": None, "naked_ms": None}


def _cells(
    symbols: Sequence[str],
    times: Sequence[int],
    decided: Sequence[Row],
    candles: Sequence[Row],
    gaps: Sequence[Row],
    settled: int,
) -> dict[str, list[list[Any]]]:
    column = {time: number for number, time in enumerate(times)}
    cells: dict[str, list[list[Any]]] = {
        symbol: [[None, MISSING if time <= settled else 0] for time in times] for symbol in symbols
    }
    for symbol, close_time, status, side in decided:
        if symbol in cells and close_time in column:
            cells[symbol][column[close_time]] = [
                status,
                cells[symbol][column[close_time]][1],
                *([side] if side else []),
            ]
    for symbol, open_time, synthetic, late in candles:
        place = column.get(open_time + MINUTE_MS)
        if symbol in cells and place is not None:
            cell = cells[symbol][place]  # a minute that nobody was there to decide was fetched later: that is not late
            cell[1] = SYNTHETIC if synthetic else LATE if late and cell[0] is not None else 0
    for symbol, start, end in gaps:
        if symbol not in cells:
            continue
        first = max(0, -((times[0] - MINUTE_MS - start) // MINUTE_MS))
        for place in range(first, len(times)):
            if times[place] - MINUTE_MS >= end:
                break
            if not cells[symbol][place][1] & MISSING:
                cells[symbol][place][1] |= REPAIRED
    return cells


def _latencies(rows: Sequence[Row], speed: float) -> Facts:
    """`series`: [T, p50, largest] of candle received → committed; `by_minute`: the p50 of each step."""
    series, by_minute = [], []
    if rows:
        stamps = np.array(rows, np.int64)[::-1]
        order = np.argsort(stamps[:, 0], kind="stable")
        stamps = stamps[order]
        times, first = np.unique(stamps[:, 0], return_index=True)
        steps = np.diff(stamps[:, 1:], axis=1) / 1000 / speed
        took = (stamps[:, 4] - stamps[:, 1]) / 1000 / speed
        bounds = [*first.tolist(), len(stamps)]
        for time, start, stop in zip(times.tolist(), bounds, bounds[1:], strict=False):
            middle = np.median(steps[start:stop], axis=0).round(3).tolist()
            series.append([time, round(float(np.median(took[start:stop])), 3), round(float(took[start:stop].max()), 3)])
            by_minute.append(
                {"T": time, "n": stop - start, **dict(zip(("features", "predict", "commit"), middle, strict=True))}
            )
    return {"series": series, "by_minute": by_minute}


def _calibration(outcomes: Sequence[Row]) -> list[Facts]:
    """By slot, in tenths of the probability: what was told and how often it was a gain after costs."""
    by_slot: dict[str, dict[int, list[tuple[float, bool]]]] = defaultdict(lambda: defaultdict(list))
    for slot, p, gain in outcomes:
        by_slot[slot][min(CALIBRATION_BINS - 1, int(p * CALIBRATION_BINS))].append((p, gain > 0))
    return [
        {
            "slot": slot,
            "bins": [
                {
                    "p_mean": sum(p for p, _ in found) / len(found),
                    "hit_rate": sum(hit for _, hit in found) / len(found),
                    "n": len(found),
                }
                for _, found in sorted(bins.items())
            ],
        }
        for slot, bins in sorted(by_slot.items())
    ]


_DECIMALS = frozenset(
    {
        *("quantity", "opened_quantity", "entry_price", "exit_price", "target", "stop", "protective_stop"),
        *("reference_mark", "best_mark", "realized_pnl", "fees", "funding", "price", "trigger_price", "filled"),
        *("average_price", "expected_price", "fee", "live_price", "paper_price", "difference_bps"),
    }
)


def _numbers(row: Mapping[str, Any]) -> Facts:
    """The row with its decimal texts as numbers: it is drawn, not traded."""
    return {
        name: float(value) if name in _DECIMALS and isinstance(value, str) and value else value
        for name, value in row.items()
    }


def _net(position: Mapping[str, Any]) -> float:
    """What the position brought after fees and funding, USDT, as far as these are known."""
    amounts = (position[name] for name in ("realized_pnl", "fees", "funding"))
    realized, fees, funding = (Decimal(each or 0) for each in amounts)
    return float(realized - fees + funding)


def _named(columns: Sequence[str], rows: Sequence[Row]) -> list[Facts]:
    return [dict(zip(columns, row, strict=True)) for row in rows]
