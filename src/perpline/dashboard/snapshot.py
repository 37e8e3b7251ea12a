"""The live picture that browsers are shown: kept from what the worker tells, and told on as what has changed.

The worker is listened to on /events; one without them (an older one, or role inference) is asked for its status each
second. While neither answers, or one that spoke falls silent, the picture says "away" and keeps the last prices; what
is set and what is open is what the tables have then; it goes on by itself. Nothing is asked of the worker while nobody
looks.
"""

import asyncio
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import aiohttp

from perpline.common.clock import Clock
from perpline.common.config import Settings
from perpline.common.errors import Malformed, NeedsPerson, PerplineError, Unavailable
from perpline.dashboard.reading import ACCOUNTS, Reading
from perpline.trading.mode import ALL, InForce
from perpline.worker_client import Access, events, fetch_status, read_access

STREAMS = ("kline_1m", "kline_15m", "kline_1h", "markPrice@1s", "bookTicker")
SILENT_S = 3.0
"""The worker tells something each second; after so many without a word or an answer it is away."""
RETRY_S = 1.0
POLLS = 10
"""After so many statuses events are tried again."""
LINGER_S = 15.0
"""So long after the last look of a browser the worker is still listened to."""
KNOWN_WITHIN_S = 3.0
TABLES_EVERY_S = 2.0
WHOLE_EVERY_S = 6.0
MOST_EXCEPTIONS = 20
"""So many symbols with a mode of their own are named, of each mode."""
SPARK = 60
LOGS = 200

FIELDS = (
    *("price", "bid", "ask", "spread_bps", "mark", "index", "funding", "next_funding", "ages", "stale"),
    *("last", "position", "mode", "spark"),
)
"""What a row of the overview has."""
_MARKET = {
    "price": "price",
    "bid": "bid",
    "ask": "ask",
    "mark_price": "mark",
    "index_price": "index",
    "funding_rate": "funding",
    "next_funding_time": "next_funding",
}
"""Ours by the worker's names."""


class Picture:
    """What is known now: `header`, `rows` by symbol, and `status` as the worker told it last (None: it is away).

    Each change has a number, so that every `Viewer` is told what is new to it.
    """

    def __init__(self, settings: Settings, reading: Reading, clock: Clock) -> None:
        self.header: dict[str, Any] = {"worker": "away", "trouble": []}
        self.rows: dict[str, dict[str, Any]] = {}
        self.status: dict[str, Any] | None = None
        self.limits: Sequence[float | None] = (None,) * len(STREAMS)
        self.logs: deque[dict[str, Any]] = deque(maxlen=LOGS)
        self.logged = 0
        """How many log events there were."""
        self.decided: dict[str, dict[str, Any]] = {}
        """The newest decision that was told while it was looked at, by symbol."""
        self.version = 0
        self._settings = settings
        self._reading = reading
        self._clock = clock
        self._header_changed: dict[str, int] = {}
        self._row_changed: dict[str, int] = {}
        self._cell_changed: dict[str, dict[str, int]] = {}
        self._gone: dict[str, int] = {}
        self._decision_told: dict[str, int] = {}
        self._fields: list[str | None] = []
        """Our names of the columns of a market row."""
        self._closes: dict[str, dict[int, float]] = {}
        self._read_whole_at = -math.inf
        self._told_now: int | None = None
        """The market's time at the last word of the worker, and our wall time then."""
        self._told_now_s = 0.0
        self._held: Mapping[str, Sequence[Mapping[str, Any]]] = {}
        """What is open by account, as the tables have it."""
        self._wanted_until = 0.0
        self._woken = asyncio.Event()
        self._known = asyncio.Event()
        """Set while what is known is of now: that the worker is away is known too."""

    @property
    def symbols(self) -> list[str]:
        return sorted(self.rows)

    @property
    def speed(self) -> float:
        return float(self.header.get("speed") or self._settings.clock_speed)

    @property
    def now(self) -> int | None:
        """The market's time, None before a worker told it: as it told it last, and while it is away what has passed
        since."""
        if self._told_now is None or self.status is not None:
            return self._told_now
        return self._told_now + round((self._clock.wall_s() - self._told_now_s) * 1000 * self.speed)

    def want(self) -> None:
        """Somebody looks."""
        self._wanted_until = self._clock.wall_s() + LINGER_S
        self._woken.set()

    async def known(self) -> None:
        """Return when the picture is of now; after a moment in any case."""
        self.want()
        try:
            async with asyncio.timeout(KNOWN_WITHIN_S):
                await self._known.wait()
        except TimeoutError:
            return

    async def look_at_tables(self) -> None:
        """Take over what the tables have of modes and open positions, which somebody may just have changed.

        Raises as `Reading` does.
        """
        self._held = await self._reading.open_positions()
        self._show_positions()
        if self.status is None:
            modes = await self._reading.modes()
            if self.status is None:  # else the worker has told meanwhile what is so
                self._take_modes(modes_at(modes, self.now or self._clock.now_ms()))

    async def run(self) -> None:
        """Keep the picture while somebody looks, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_from_worker(), name="worker")
            group.create_task(self._keep_from_tables(), name="tables")

    def position_account(self) -> str:
        """The account that the header speaks of: live where it is traded, has positions or moved today, else paper."""
        trading = (self.status or {}).get("trading")
        live = _accounts(trading).get("live")
        is_traded = self.header.get("mode") == "live" or bool(self.header.get("modes", {}).get("live"))
        has_moved = live is not None and live.get("day_equity") not in (None, live.get("equity"))
        is_live = is_traded or has_moved or bool(live and live.get("positions"))
        return "live" if is_live and live is not None else "paper"

    # ---- the worker

    async def _keep_from_worker(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SILENT_S)) as session:
            while True:
                if not self._is_wanted:
                    self._known.clear()
                    self._woken.clear()
                    await self._woken.wait()
                try:
                    access = read_access(self._settings.data_dir, self._settings.status_port)
                    await self._ask(session)
                    await self._hear(access, session)
                    await self._clock.sleep_wall(RETRY_S)  # a worker that ends each connection is not asked in a loop
                except (NeedsPerson, Malformed) as error:
                    self._is_away(str(error))
                    await self._clock.sleep_wall(RETRY_S)

    @property
    def _is_wanted(self) -> bool:
        return self._clock.wall_s() < self._wanted_until

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        status = await fetch_status(self._settings.data_dir, self._settings.status_port, session)
        try:
            self._take_status(status)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Malformed(f"the worker's status cannot be read: {error!r}") from None

    async def _hear(self, access: Access, session: aiohttp.ClientSession) -> None:
        """Listen, or ask where there is nothing to be listened to. Raises NeedsPerson and Malformed as `_ask` does."""
        try:
            await self._listen(access, session)
        except (Unavailable, Malformed):
            await self._poll(session)

    async def _listen(self, access: Access, session: aiohttp.ClientSession) -> None:
        told = events(access, session)
        try:
            while self._is_wanted:
                try:
                    async with asyncio.timeout(SILENT_S):
                        event = await anext(told, None)
                except TimeoutError:
                    port = self._settings.status_port
                    raise NeedsPerson(
                        f"the worker on port {port} does not answer (silent for {SILENT_S:g} s): it hangs; see its log"
                    ) from None
                if event is None:
                    return
                try:
                    self._take_event(event)
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    raise Malformed(f"an event of the worker cannot be read: {error!r}") from None
        finally:
            await told.aclose()

    async def _poll(self, session: aiohttp.ClientSession) -> None:
        for _ in range(POLLS):
            if not self._is_wanted:
                return
            await self._ask(session)
            await self._clock.sleep_wall(RETRY_S)

    def _is_away(self, reason: str) -> None:
        self.status = None
        self._known.set()
        self._set_header({"worker": "away", "away": reason, "trouble": []})
        for symbol in self.rows:
            self._set(symbol, {"ages": [None] * len(STREAMS), "stale": []})
        self._show_positions()

    def _take_event(self, event: Mapping[str, Any]) -> None:
        match event["type"]:
            case "hello":
                self._set_header({"speed": event["speed"]})
                self._follow(event["symbols"])
                self._fields = [_MARKET.get(field) for field in event["fields"]]
            case "market":
                self._take_now(event["now"])
                for symbol, values in event["rows"].items():
                    named = zip(self._fields, values, strict=True)
                    self._take_market(symbol, {field: value for field, value in named if field is not None})
            case "ages":
                self._take_now(event["now"])
                self.limits = event["limits"]
                for symbol, ages in event["rows"].items():
                    self._set(symbol, {"ages": _ages(ages), "stale": event["stale"].get(symbol, [])})
            case "state":
                self._take_state(event["status"])
            case "decisions":
                self._take_decisions(event["rows"])
            case "log":
                self._take_logs([{name: event[name] for name in ("event", "level", "at", "fields")}])
            case "logs":
                known = list(self.logs)  # told on each connection: after one that was lost most are repeats
                self._take_logs(row for row in event["rows"] if row not in known)

    def _take_status(self, status: Mapping[str, Any]) -> None:
        """All of /status: what is not told again until it changes, and everything where there are no events."""
        symbols = status.get("symbols") or {}
        self._follow(symbols)
        stale: dict[str, list[str]] = {}
        for names in ((status.get("streams") or status.get("rest_feed") or {}).get("stale") or {}).values():
            for name in names:
                symbol, _, stream = name.partition(" ")
                stale.setdefault(symbol, []).append(stream)
        for symbol, facts in symbols.items():
            self._take_market(symbol, {ours: facts.get(name) for name, ours in _MARKET.items()})
            ages = facts.get("ages_s") or {}
            told = {
                "ages": _ages([ages.get(stream) for stream in STREAMS]),
                "stale": stale.get(symbol, []),
                "last": facts.get("last_decision"),
            }
            self._set(symbol, told)
        self._take_state({name: value for name, value in status.items() if name != "symbols"})

    def _take_state(self, status: dict[str, Any]) -> None:
        self.status = status
        self._take_now(status["now"])
        self._known.set()
        trading = status.get("trading")
        self._take_modes({row["symbol"]: row["mode"] for row in (trading or {}).get("modes", ())})
        self._show_positions()
        rest, connections = status.get("rest") or {}, status.get("connections") or ()
        leadership = status.get("leadership")
        self._set_header(
            {
                "connections": {"live": sum(bool(each["live"]) for each in connections), "all": len(connections)},
                "weight": {"used": rest.get("weight_used"), "limit": rest.get("weight_limit")},
                "close_to_signal_ms": (status.get("decisions") or {}).get("close_to_signal_ms"),
                "speed": status["speed"] if "speed" in status else self.speed,
                "ready": bool(status.get("ready")),
                "role": status.get("role"),
                "leads": True if leadership is None else bool(leadership["leads"]),
                "trouble": [str(each) for each in status.get("trouble") or ()],
                "worker": "live",
                "away": None,
            }
        )
        account = self.position_account()
        facts = _accounts(trading).get(account) or {}
        equity, began = facts.get("equity"), facts.get("day_equity")  # which the daily loss limit goes by too
        pnl = None if equity is None or began is None else round(equity - began, 8)
        self._set_header({"account": account, "equity": equity, "pnl_today": pnl})

    def _take_modes(self, modes: Mapping[str, str]) -> None:
        """The mode of all (under "") and those of single symbols."""
        mode = modes.get(ALL, "off")
        exceptions: dict[str, list[str]] = {"paper": [], "live": [], "off": []}
        for symbol, own in sorted(modes.items()):
            if symbol != ALL and own != mode:
                exceptions[own].append(symbol)
        for symbol in self.rows:
            self._set(symbol, {"mode": modes.get(symbol, mode)})
        self._set_header(
            {
                "mode": mode,
                "modes": {own: len(symbols) for own, symbols in exceptions.items() if symbols},
                "exceptions": {own: symbols[:MOST_EXCEPTIONS] for own, symbols in exceptions.items()},
            }
        )

    def _show_positions(self) -> None:
        """Of an account that the worker looks after as it tells them, of another as the tables have them."""
        told = _accounts((self.status or {}).get("trading"))
        found: dict[str, dict[str, Any]] = {}
        for account in ACCOUNTS:  # of one symbol with both the live one is shown
            positions = told[account].get("positions", ()) if account in told else self._held.get(account, ())
            for position in positions:
                found[position["symbol"]] = {"account": account, **position}
        for symbol in self.rows:
            self._set(symbol, {"position": found.get(symbol)})

    def _take_market(self, symbol: str, values: dict[str, Any]) -> None:
        bid, ask = values.get("bid"), values.get("ask")
        spread = None
        if bid is not None and ask is not None and bid + ask > 0:
            spread = round((ask - bid) / (ask + bid) * 20_000, 3)
        self._set(symbol, {**values, "spread_bps": spread})

    def _take_decisions(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            symbol = row["symbol"]
            names = ("close_time", "status", "side", "detail")
            self._set(symbol, {"last": {**{name: row[name] for name in names}, "p": row["p_cal"]}})
            if symbol in self.rows:
                self.decided[symbol] = dict(row)
                self._decision_told[symbol] = self.version

    def _take_logs(self, rows: Iterable[dict[str, Any]]) -> None:
        for row in rows:
            self.logs.append(row)
            self.logged += 1

    def _take_now(self, now: int) -> None:
        self._told_now, self._told_now_s = now, self._clock.wall_s()

    # ---- the tables

    async def _keep_from_tables(self) -> None:
        """What the worker does not tell: closes of the last hour, what accounts hold that it does not look after, and
        while it is away the modes."""
        while True:
            if not self._is_wanted:
                await self._woken.wait()
            await self._known.wait()
            now = self.now or self._clock.now_ms()
            try:
                self._take_closes(await self._reading.closes(now, self._closes_wanted(), self.speed))
                await self.look_at_tables()
            except PerplineError:
                pass  # the pages that ask for tables say so
            await self._clock.sleep_wall(TABLES_EVERY_S)

    def _closes_wanted(self) -> int:
        """Minutes to ask for: the last ones, or all of them where some are not known: a starting worker writes them."""
        is_short = any(len(row.get("spark") or ()) < SPARK for row in self.rows.values())
        if not is_short or self._clock.wall_s() - self._read_whole_at < WHOLE_EVERY_S:
            return 2
        self._read_whole_at = self._clock.wall_s()
        return SPARK

    def _take_closes(self, rows: Iterable[tuple[str, int, float]]) -> None:
        changed = set()
        for symbol, open_time, close in rows:
            known = self._closes.setdefault(symbol, {})
            if known.get(open_time) != close:
                known[open_time] = close
                changed.add(symbol)
        for symbol in changed | {symbol for symbol, row in self.rows.items() if row.get("spark") is None}:
            known = self._closes.get(symbol, {})
            kept = sorted(known)[-SPARK:]
            self._closes[symbol] = {time: known[time] for time in kept}
            self._set(symbol, {"spark": [known[time] for time in kept]})

    # ---- changes

    def _follow(self, symbols: Iterable[str]) -> None:
        """Rows for these symbols, and for no others."""
        wanted = set(symbols)
        for symbol in self.rows.keys() - wanted:
            self.version += 1
            self._gone[symbol] = self.version
            del self.rows[symbol], self._row_changed[symbol], self._cell_changed[symbol]
            self._closes.pop(symbol, None)
        for symbol in sorted(wanted - self.rows.keys()):
            self._gone.pop(symbol, None)
            self.rows[symbol], self._row_changed[symbol], self._cell_changed[symbol] = {}, 0, {}
            self._set(symbol, dict.fromkeys(FIELDS) | {"ages": [None] * len(STREAMS), "stale": [], "mode": "off"})

    def _set(self, symbol: str, values: Mapping[str, Any]) -> None:
        row = self.rows.get(symbol)
        if row is None:
            return  # told of a symbol that is followed no more
        changed = [name for name, value in values.items() if name not in row or row[name] != value]
        if changed:
            self.version += 1
            self._row_changed[symbol] = self.version
            for name in changed:
                row[name] = values[name]
                self._cell_changed[symbol][name] = self.version

    def _set_header(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if name not in self.header or self.header[name] != value:
                self.version += 1
                self.header[name] = value
                self._header_changed[name] = self.version

    def changes(self, since: int) -> dict[str, Any] | None:
        """Header and cells that changed after this version (a row that is gone is None); None where nothing did."""
        header = {name: self.header[name] for name, version in self._header_changed.items() if version > since}
        rows: dict[str, Any] = {
            symbol: {name: row[name] for name, at in self._cell_changed[symbol].items() if at > since}
            for symbol, row in self.rows.items()
            if self._row_changed[symbol] > since
        }
        rows |= {symbol: None for symbol, version in self._gone.items() if version > since}
        if not header and not rows:
            return None
        return {"type": "change", "now": self.now, **({"header": header} if header else {}), "rows": rows}

    def decisions(self, since: int) -> list[dict[str, Any]]:
        """The newest decision of each symbol that was decided after this version."""
        return [self.decided[symbol] for symbol, version in self._decision_told.items() if version > since]


class Viewer:
    """One browser's place in the picture: what it is to be told next."""

    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        self._seen: int | None = None
        self._logged = 0
        self.number = 0
        """Of the last message that is to be acknowledged."""

    def take(self) -> list[dict[str, Any]]:
        """The messages that bring the browser from what it was told last to now; empty where nothing is new.

        At first everything. A message that has a number `n` is to be acknowledged before more is taken.
        """
        picture, found = self._picture, []
        waiting = min(picture.logged - self._logged, len(picture.logs))
        if waiting:
            found.append({"type": "logs", "rows": list(picture.logs)[-waiting:]})
            self._logged = picture.logged
        if self._seen is None:
            whole = {"now": picture.now, "header": picture.header, "fields": FIELDS, "streams": STREAMS}
            found.append(self._numbered({"type": "overview", **whole, "limits": picture.limits, "rows": picture.rows}))
        else:
            if decided := picture.decisions(self._seen):
                found.append({"type": "decisions", "rows": decided})
            if change := picture.changes(self._seen):
                found.append(self._numbered(change))
        self._seen = picture.version
        return found

    def _numbered(self, message: dict[str, Any]) -> dict[str, Any]:
        self.number += 1
        return {**message, "n": self.number}


def modes_at(standing: InForce, now: int) -> dict[str, str]:
    """The mode by symbol, under "" that of all others."""
    return {row.symbol: row.at(now).value for row in (standing.of_all, *standing.of_symbols.values())}


def _accounts(trading: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return {} if trading is None else trading.get("accounts") or {}


def _ages(ages: Iterable[float | None]) -> list[float | None]:
    """To a tenth of a second: more changes every row each time and nobody reads it."""
    return [None if age is None or not math.isfinite(age) else round(age, 1) for age in ages]
