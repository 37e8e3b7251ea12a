"""The trading of `perpline demo --trade`: the mode set, prices moved so that stops fire, and what came of it."""

import json
import random
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
from rich.table import Table

from perpline.bootstrap import open_store
from perpline.cli.doctor import examine
from perpline.cli.trading_view import exits_text, open_positions
from perpline.common.config import load_settings
from perpline.common.errors import NeedsPerson
from perpline.common.telemetry import configure_logging
from perpline.desk import check_live
from perpline.domain.order import Account
from perpline.storage.store import TRADING_TABLES
from perpline.trading.mode import Mode, set_mode

BY = "perpline demo"
KEYS = {"PERPLINE_BINANCE_API_KEY": "sim-key", "PERPLINE_BINANCE_API_SECRET": "sim-secret"}
"""Those of the simulated exchange's account. For the worker's environment alone: they stand in no file."""
MOVE_AFTER_S = 10.0
"""Wall seconds of trading before a price is moved to a stop, and then one to a target."""
MOVE_TAKES_S = 3.0
MOVE_LASTS_S = 12.0
"""Then the price is the market's own again, whatever came of it."""
BEYOND = 0.003
"""How far beyond the level the price is moved, as a share of it."""


def trade_settings(speed: float) -> dict[str, object]:
    """What the worker needs to trade often enough for somebody who looks on for a minute."""
    return {
        "size_usdt": 500.0,
        "max_positions": 30,
        "max_total_usdt": 20_000.0,
        # Of market time, in which the loopback's few milliseconds become seconds.
        "naked_alarm_s": max(3.0, 0.5 * speed),
    }


async def begin_trading(settings_file: Path, account: Account, http: str, session: aiohttp.ClientSession) -> None:
    """Set the mode as `perpline mode` does, for live with the same questions asked. Raises NeedsPerson."""
    settings = load_settings(settings_file, KEYS if account == "live" else {}, {})
    if account == "live":
        configure_logging("warning", "json", sys.stderr)
        failed = [check for check in await examine(settings, random.Random()) if check.state == "failed"]
        if failed:
            raise NeedsPerson("; ".join(f"{check.name}: {check.found}" for check in failed))
    store = open_store(settings.database_url.get_secret_value())
    await store.open()
    try:
        if account == "live":
            await check_live(store, settings, confirm=True)
        await set_mode(
            store, [], Mode(account), positions="keep", now=await market_time(http, session), by=BY,
            reason=f"demo --{'live-sim' if account == 'live' else 'trade'}", until=None, slot=settings.slot,
        )  # fmt: skip
    finally:
        await store.close()


async def end_trading(database: str, now: int, slot: str) -> None:
    """Nothing is left in force by a demo whose tables are kept."""
    store = open_store(database)
    await store.open()
    try:
        await set_mode(
            store, [], Mode.OFF, positions="keep", now=now, by=BY, reason="the demo is over", until=None, slot=slot
        )
    finally:
        await store.close()


async def market_time(http: str, session: aiohttp.ClientSession) -> int:
    async with session.get(f"{http}/fapi/v1/time") as answer:
        return int((await answer.json())["serverTime"])


class Mover:
    """Has the simulated exchange move a price to the stop of an open position, and then one to a target.

    So somebody who looks on for a minute sees both. `said` is what the screen tells him of it.
    """

    def __init__(self, http: str, session: aiohttp.ClientSession, speed: float) -> None:
        self.said = ""
        self.moved: dict[str, str] = {}
        """The level that each symbol was moved to."""
        self._url = f"{http}/sim/script"
        self._session = session
        self._speed = speed
        self._to_come = ["stop", "target"]
        self._traded_since: float | None = None
        self._until = 0.0
        self._symbol = ""

    async def look(self, trading: dict[str, Any], now_s: float) -> str:
        """Go on with it; what begins now, in words, for somebody without a screen."""
        try:
            return await self._look(trading, now_s)
        except (aiohttp.ClientError, TimeoutError):
            return ""  # a busy machine: the next look is soon

    async def _look(self, trading: dict[str, Any], now_s: float) -> str:
        positions = {each["symbol"]: each for _, each in open_positions(trading)}
        if self._traded_since is None:
            self._traded_since = now_s if positions else None
            return ""
        if self._symbol:
            if self._symbol not in positions or now_s > self._until:
                await self._session.delete(self._url, params={"symbol": self._symbol})
                self._symbol = self.said = ""
            return ""
        usable = [each for each in positions.values() if each["protected"] and each["symbol"] not in self.moved]
        if not self._to_come or not usable or now_s - self._traded_since < MOVE_AFTER_S:
            return ""
        return await self._move(usable[0], self._to_come[0], now_s)

    async def _move(self, position: dict[str, Any], level: str, now_s: float) -> str:
        symbol, mark, goal = position["symbol"], position["mark_price"], position[level]
        rows = [
            {"symbol": symbol, "time": 0, "price": mark},
            {"symbol": symbol, "time": MOVE_TAKES_S * self._speed, "price": goal * (1 + BEYOND * _sign(goal - mark))},
        ]
        async with self._session.post(self._url, data="\n".join(map(json.dumps, rows))) as answer:
            answer.raise_for_status()
        self._to_come.pop(0)
        self._symbol, self._until, self.moved[symbol] = symbol, now_s + MOVE_LASTS_S, level
        self.said = f"To show you, the exchange now moves {symbol} to its {level} at {goal:.8g}."
        return self.said


def _sign(number: float) -> int:
    return 1 if number >= 0 else -1


async def trading_summary(database: str, account: Account, moved: dict[str, str]) -> dict[str, Any]:
    """What the tables say an account has done."""
    store = open_store(database, read_only=True)
    await store.open()
    try:
        rows = {
            name: [TRADING_TABLES[name].named(row) for row in await store.trading_rows(name, {"account": account})]
            for name in ("positions", "fills", "orders", "refusals", "equity")
        }
    finally:
        await store.close()
    positions = [each for each in rows["positions"] if each["entry_price"] is not None]
    closed = [each for each in positions if each["status"] == "closed"]

    def total(column: str) -> float:
        return float(sum((Decimal(each[column]) for each in positions), Decimal(0)))

    return {
        "account": account,
        "mode": account,
        "positions_opened": len(positions),
        "positions_closed": len(closed),
        "exits": dict(Counter(each["exit_reason"] for each in closed).most_common()),
        "open": len(positions) - len(closed),
        "fills": len(rows["fills"]),
        "orders": len(rows["orders"]),
        "realized_pnl": total("realized_pnl"),
        "fees": total("fees"),
        "funding": total("funding"),
        "net_pnl": total("realized_pnl") - total("fees") + total("funding"),
        "equity": float(rows["equity"][-1]["equity"]) if rows["equity"] else None,
        "naked_ms_longest": max((each["naked_ms"] for each in positions), default=0),
        "refusals": dict(Counter(each["rule"] for each in rows["refusals"]).most_common()),
        "prices_moved": moved,
    }


def add_trading_rows(table: Table, trading: dict[str, Any]) -> None:
    """The summary's lines about trading."""
    net = trading["net_pnl"]
    table.add_section()
    table.add_row(str(trading["positions_opened"]), f"positions opened on the {trading['account']} account")
    table.add_row(str(trading["positions_closed"]), f"closed: {exits_text(trading['exits'])}")
    if trading["prices_moved"]:
        moved = ", ".join(f"{symbol} to its {level}" for symbol, level in trading["prices_moved"].items())
        table.add_row("", f"[dim]of these the exchange moved {moved}, for you to see[/]")
    table.add_row(f"{trading['fills']} / {trading['orders']}", "fills / orders and stops")
    table.add_row(
        f"[{'green' if net > 0 else 'red' if net < 0 else 'bold'}]{net:+,.2f}[/]",
        f"USDT after {trading['fees']:.2f} of fees and {trading['funding']:+.2f} of funding, in a market with a "
        "planted edge",
    )
    if trading["equity"] is not None:
        table.add_row(f"{trading['equity']:,.2f}", "USDT of equity")
    table.add_row(f"{trading['naked_ms_longest'] / 1000:.1f} s", "the longest without a confirmed stop, of market time")
    if trading["refusals"]:
        refused = ", ".join(f"{count} {rule}" for rule, count in trading["refusals"].items())
        table.add_row(str(sum(trading["refusals"].values())), f"signals refused: {refused}")
