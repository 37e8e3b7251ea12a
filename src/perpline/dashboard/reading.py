"""The questions of each page to the database, which is only read. Every answer is bounded, and made beside the loop."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any, TypeVar

import msgspec
import numpy as np

from perpline.bootstrap import open_store
from perpline.common.clock import Clock
from perpline.common.config import Settings
from perpline.common.errors import PerplineError, Unavailable
from perpline.domain.candle import INTERVAL_MS, MINUTE_MS
from perpline.domain.signal import Status
from perpline.storage.store import TRADING_TABLES, Row, Store
from perpline.trading.books import read
from perpline.trading.mode import InForce, mode_rows

WITHIN_S = 15.0
"""A page waits no longer for the database, and what takes longer is stopped there."""
MOST_CELLS = 100_000
"""Of the heat map: 600 symbols and 160 minutes. And the most decisions whose stamps are read."""
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
SUMS_DAYS = 30
MOST_OPEN = 2_000
RATIOS = ("global_account", "top_account", "top_position", "taker")
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
        self._closing: set[asyncio.Task[None]] = set()
        self._kept: dict[str, tuple[float, Any]] = {}

    async def close(self) -> None:
        closing = list(self._closing)
        for task in closing:
            task.cancel()
        await asyncio.gather(*closing, return_exceptions=True)
        store, self._store = self._store, None
        if store is not None:
            await store.close()

    async def ask(self, work: Callable[[Store], Awaitable[T]]) -> T:
        """What `work` finds in the database; Unavailable, and stopped there, where that takes too long."""
        store = await self._opened()
        try:
            async with asyncio.timeout(WITHIN_S):
                return await work(store)
        except TimeoutError:
            raise Unavailable(f"the database took longer than {WITHIN_S:g} s") from None

    async def _opened(self) -> Store:
        async with self._opening:
            if self._store is not None and self._store.is_moved():
                # A file was restored or put in its place: whoever still reads the old one has WITHIN_S for it.
                self._closing.add(closing := asyncio.create_task(self._close_later(self._store), name="old database"))
                closing.add_done_callback(self._closing.discard)
                self._store = None
                self._kept.clear()
            if self._store is None:
                store = open_store(self._settings.database_url.get_secret_value(), read_only=True)
                await store.open()
                self._store = store
            return self._store

    async def _close_later(self, store: Store) -> None:
        try:
            await self._clock.sleep_wall(WITHIN_S)
        finally:
            with suppress(PerplineError):
                await store.close()

    async def _select(self, query: str) -> list[Row]:
        return await self.ask(lambda store: store.select(query))

    async def _newest(self, table: str) -> list[Facts]:
        """The newest rows of a table of trading, the newest first."""
        return (await self.ask(lambda store: read(store, table, limit=NEWEST)))[::-1]

    # ---- session and live picture

    async def symbols(self, slot: str) -> list[str]:
        """Those that were ever decided."""
        if (known := self._fresh(f"symbols {slot}")) is not None:
            return list(known)
        return self._keep(f"symbols {slot}", sorted(await self.ask(lambda store: store.last_decided(slot))))

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

    async def modes(self) -> InForce:
        """What people have set."""
        return InForce(await self.ask(mode_rows))

    async def open_positions(self) -> dict[str, list[Facts]]:
        """By account, as the worker tells them; no mark price, and whether a stop rests is not known."""
        names = ", ".join(f'"{name}"' for name in _OPEN)
        rows = await self._select(
            f"SELECT {names} FROM positions WHERE status <> 'closed' ORDER BY opened_at, position_id LIMIT {MOST_OPEN}"
        )
        unknown = dict.fromkeys(("mark_price", "unrealized_pnl", "protected", "naked_ms"))
        found: dict[str, list[Facts]] = {}
        for row in _named(_OPEN, rows):
            found.setdefault(row["account"], []).append({**_numbers(row), **unknown})
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

        def thin(table: str, series: str, time: str) -> str:
            """What was told last of the end of each candle; some is told anew later."""
            same = " AND ".join(f"newer.{name} = {table}.{name}" for name in ("symbol", series, time))
            newer = f"SELECT 1 FROM {table} newer WHERE {same} AND newer.revision > {table}.revision"
            return f"{time} % {step} = 0 AND NOT EXISTS ({newer})"

        mark = await series(
            "premium_index", "minute, mark_price, index_price, funding_rate", "minute", f"AND minute % {step} = 0"
        )
        premium = await series("premium_klines", "open_time, close * 10000", "open_time", f"AND open_time % {step} = 0")
        interest: list[list[Any]] = []
        for kind in ("hist_5m", "spot_1m"):
            interest = interest or await series(
                "open_interest",
                "time, open_interest",
                "time",
                f"AND kind = '{kind}' AND {thin('open_interest', 'kind', 'time')}",
            )
        ratios = {}
        for ratio in RATIOS:
            told = await series(
                "long_short_ratio",
                "period_end, value",
                "period_end",
                f"AND ratio = '{ratio}' AND {thin('long_short_ratio', 'ratio', 'period_end')}",
            )
            if told:
                ratios[ratio] = told
        funding = await series("funding_rates", "funding_time, rate", "funding_time")
        return {"mark": mark, "premium": premium, "open_interest": interest, "ratios": ratios, "funding": funding}

    async def minutes(self, symbols: Sequence[str], minutes: int, end: int, now: int, slot: str, speed: float) -> Facts:
        """The heat map of the minutes that closed until `end`: a status or None, flags, and of a signal its side.

        Of many symbols fewer `minutes` than `asked`: MOST_CELLS.
        """
        last = end - end % MINUTE_MS
        shown = min(minutes, max(1, MOST_CELLS // max(1, len(symbols))))
        times = [last - number * MINUTE_MS for number in range(shown - 1, -1, -1)]
        within = f"BETWEEN {times[0] - MINUTE_MS} AND {last - MINUTE_MS}"
        names = ", ".join(f"'{symbol}'" for symbol in symbols) or "''"
        decided = await self._select(
            "SELECT symbol, close_time, status, side FROM signals "
            f"WHERE slot = '{slot}' AND close_time BETWEEN {times[0]} AND {last} AND symbol IN ({names})"
        )
        late_ms = MINUTE_MS + round(self._settings.close_deadline_s * 1000)
        candles = await self._select(
            f"SELECT symbol, open_time, synthetic, received_at > open_time + {late_ms} "
            f"FROM candles_1m WHERE open_time {within} AND symbol IN ({names})"
        )
        gaps = await self._select(
            "SELECT symbol, from_time, to_time FROM gaps WHERE series = 'candles_1m' AND repaired_at IS NOT NULL "
            f"AND repaired_by <> 'absent' AND to_time > {times[0] - MINUTE_MS} AND from_time < {last} "
            f"ORDER BY id DESC LIMIT {ROWS}"
        )
        settled = now - SETTLED_MS - round(SETTLED_WALL_MS * speed)
        cells = await asyncio.to_thread(_cells, symbols, times, decided, candles, gaps, settled)
        return {"times": times, "symbols": list(symbols), "cells": cells, "minutes": shown, "asked": minutes}

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
        """How long the decisions of each minute took until the database was handed them, wall milliseconds, by the
        stamps in their rows. Of many symbols fewer `minutes` than `asked`: MOST_CELLS."""
        rows = await self._select(
            "SELECT close_time, t_candle_recv, t_features, t_predict, t_commit FROM signals "
            f"WHERE slot = '{slot}' AND close_time > {now - minutes * MINUTE_MS} AND close_time <= {now} "
            "AND t_candle_recv > 0 AND t_features > 0 AND t_predict > 0 AND t_commit > 0 "
            f"ORDER BY close_time DESC LIMIT {MOST_CELLS}"
        )
        shown = minutes
        if len(rows) == MOST_CELLS:  # of the oldest minute some are missing
            oldest = rows[-1][0]
            rows = [row for row in rows if row[0] > oldest]
            shown = (now - now % MINUTE_MS - oldest) // MINUTE_MS
        return {**await asyncio.to_thread(_latencies, rows, speed), "minutes": shown, "asked": minutes}

    async def models(self, now: int, slot: str) -> Facts:
        """What there is and what was in force, and how good the probabilities were where outcomes are known."""
        models = [
            {"model_id": row.model_id, "status": row.status, "created_at": row.created_at}
            for row in (await self.ask(lambda store: store.models()))[-NEWEST:]
        ]
        deployed = await self.ask(lambda store: store.deployments())
        outcomes = await self._select(
            "SELECT s.model_id, s.p_cal, o.ret_net FROM signals s "
            f"JOIN signal_outcomes o ON o.signal_id = s.signal_id WHERE s.slot = '{slot}' "
            f"AND s.status = '{Status.OK}' AND s.close_time > {now - CALIBRATION_MS} AND s.p_cal IS NOT NULL "
            f"ORDER BY s.close_time DESC LIMIT {CALIBRATION_ROWS}"
        )
        return {
            "models": models,
            "deployments": [msgspec.to_builtins(row) for row in deployed[: -NEWEST - 1 : -1]],
            "calibration": _calibration(outcomes),
        }

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
        standing = await self.modes()
        lists = ("positions", "orders", "fills", "refusals")
        resting = await self.ask(lambda store: read(store, "orders", limit=MOST_OPEN, final_at=None))
        return {
            "modes": [
                {**msgspec.to_builtins(row), "now": row.at(now).value}
                for row in (standing.of_all, *standing.of_symbols.values())
            ],
            "history": {name: [_numbers(row) for row in await self._newest(name)] for name in lists},
            "open": await self.open_positions(),
            "orders_open": [_numbers(row) for row in resting[::-1]],
            "sums": await self._sums(now),
            "twins": [_numbers(row) for row in await self._newest("twins")],
            "equity": equity,
        }

    async def _sums(self, now: int) -> dict[str, Facts]:
        """By account: how many positions were closed in the last `days`, how many with a gain, and their net, USDT."""
        realized, fees, funding = (f"CAST({name} AS NUMERIC)" for name in ("realized_pnl", "fees", "funding"))
        rows = await self._select(
            "SELECT account, COUNT(*), SUM(CASE WHEN net > 0 THEN 1 ELSE 0 END), SUM(net) FROM ("
            f"SELECT account, {realized} - {fees} + {funding} AS net FROM positions WHERE status = 'closed' "
            f"AND closed_at >= {now - SUMS_DAYS * DAY_MS} AND entry_price IS NOT NULL) closed GROUP BY account"
        )
        return {
            account: {"closed": int(closed), "won": int(won), "net": round(float(net), 8), "days": SUMS_DAYS}
            for account, closed, won, net in rows
        }

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
    """`series`: [T, p50, largest] of candle received → handed to the database; `by_minute`: the p50 of each step."""
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
                {"T": time, "n": stop - start, **dict(zip(("features", "predict", "decide"), middle, strict=True))}
            )
    return {"series": series, "by_minute": by_minute}


def _calibration(outcomes: Sequence[Row]) -> dict[str, list[Facts]]:
    """By model, in tenths of the probability: what was told and how often it was a gain after costs."""
    by_model: dict[str, dict[int, list[tuple[float, bool]]]] = defaultdict(lambda: defaultdict(list))
    for model_id, p, gain in outcomes:
        by_model[model_id][min(CALIBRATION_BINS - 1, int(p * CALIBRATION_BINS))].append((p, gain > 0))
    return {
        model_id: [
            {
                "p_mean": sum(p for p, _ in found) / len(found),
                "hit_rate": sum(hit for _, hit in found) / len(found),
                "n": len(found),
            }
            for _, found in sorted(bins.items())
        ]
        for model_id, bins in sorted(by_model.items())
    }


_OPEN = (
    *("account", "position_id", "symbol", "side", "status", "quantity", "entry_price", "target", "stop"),
    *("protective_stop", "realized_pnl", "fees", "funding", "opened_at", "deadline"),
)
"""Of a position that is open, what the tables know as the worker does."""
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
