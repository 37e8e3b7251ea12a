"""The dashboard's server: who may come in, what is asked, and what is answered.

Every request is treated as hostile. It must name this host (else a page of somebody else's could reach us under a name
of its own), come from our own page or from none, and bring the cookie that the token was exchanged for; what changes
something must also bring what only our own page can read. Whatever is answered says that nobody else may frame, read
or add to it.
"""

import asyncio
import hashlib
import ipaddress
import re
import secrets
import ssl
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec
import structlog
from aiohttp import WSCloseCode, WSMsgType, web
from msgspec import Struct

from perpline import __version__
from perpline.bootstrap import open_current
from perpline.common.clock import Clock, SystemClock
from perpline.common.config import Settings, masked_url
from perpline.common.errors import NeedsPerson, PerplineError, Unavailable
from perpline.common.runbooks import page_of
from perpline.common.watch_word import watch_trouble
from perpline.dashboard.reading import Reading
from perpline.dashboard.snapshot import Picture, Viewer
from perpline.desk import Unclear, change_mode, flatten, mode_change
from perpline.domain.candle import INTERVAL_MS, MINUTE_MS
from perpline.domain.market import BookTicker, slippage_estimate
from perpline.explanation import NoRow, explain_facts
from perpline.inference.registry import DEFAULT_MODELS
from perpline.trading.mode import Mode, Positions
from perpline.worker_client import fetch_status

log = structlog.get_logger("perpline.dashboard")

CSRF_HEADER = "X-Perpline-CSRF"
LANGUAGES = ("en", "ko")
MAX_BODY = 64 << 10
MAX_REPORT = 32 << 20
MOST_SOCKETS = 32
MOST_MESSAGE = 256
"""Bytes of what a browser says on its socket: that it has drawn."""
EVERY_S = 0.2
"""A browser is told at most so often."""
SEND_WITHIN_S = 10.0
GOODBYE_WITHIN_S = 1.0
"""So long a stop waits for requests that are being answered; for a flatten as long as it takes."""
PING_EVERY_S = 20.0
LAST_TIME = 4_102_444_800_000
"""2100-01-01: no time that is asked for is later."""
BOOK = "bookTicker"
SYMBOL = re.compile(r"\w{1,40}")
MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
SLOT = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
HOW_TO_GET_IN = (
    "perpline: open the address that perpline dashboard printed when it was started: it holds the token, which is then "
    "remembered by this browser until the dashboard is started again."
)
_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
    "md": "text/plain; charset=utf-8",
}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "perpline",
}
_REPORT_CSP = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
B = TypeVar("B")

_encode = msgspec.json.Encoder(enc_hook=str).encode
"""What is not finite becomes null: JSON has no other way to say it."""


class Listening(Struct, frozen=True):
    """Where a dashboard is reached."""

    url: str
    """With the token: whoever has it may come in."""
    port: int


class Wrong(Exception):
    """What was asked cannot be meant. The text says what is expected."""


class ModeBody(Struct, forbid_unknown_fields=True):
    """What is posted to change the mode."""

    mode: Mode
    reason: str
    symbols: list[str] = []
    lasts: str | None = msgspec.field(default=None, name="for")
    positions: Positions = "keep"
    confirm_live: bool = False


class FlattenBody(Struct, forbid_unknown_fields=True):
    """What is posted to close what is open."""

    account: Literal["paper", "live", "both"]
    confirm: str
    symbols: list[str] = []


async def serve(
    settings: Settings,
    clock: Clock,
    stop: asyncio.Event,
    *,
    by: str,
    allow_remote: bool,
    without_tls: bool,
    tls: ssl.SSLContext | None,
    on_ready: Callable[[Listening], None],
) -> None:
    """Serve the dashboard of these settings until the stop. `by` is who stands in the tables for what is changed.

    Raises NeedsPerson where it may not or cannot listen.
    """
    host = settings.dashboard_host
    if not is_loopback(host) and not (allow_remote and (tls is not None or without_tls)):
        raise NeedsPerson(
            f"others would reach the dashboard on {host}: that wants --allow-remote with --tls-cert and --tls-key "
            "(or --allow-remote-without-tls in a network that encrypts by itself); docs/dashboard.md has the ways by "
            "SSH and by a proxy"
        )
    reading = Reading(settings, clock)
    picture = Picture(settings, reading, clock)
    dashboard = Dashboard(settings, clock, reading, picture, by=by, is_secure=tls is not None)
    runner = web.AppRunner(dashboard.app(), access_log=None, shutdown_timeout=GOODBYE_WITHIN_S)
    keeping = asyncio.create_task(picture.run(), name="picture")
    try:
        await runner.setup()
        try:
            await web.TCPSite(runner, host, settings.dashboard_port, ssl_context=tls).start()
        except OSError as error:
            raise NeedsPerson(
                f"cannot listen on {host}, port {settings.dashboard_port}: another port is chosen with --port or "
                f"dashboard_port ({error.strerror or error})"
            ) from None
        port = runner.addresses[0][1]
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        address = settings.dashboard_origin or f"{'http' if tls is None else 'https'}://{shown}:{port}"
        on_ready(Listening(f"{address}/?token={dashboard.token}", port))
        stopped = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait((stopped, keeping), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if keeping.done():
            keeping.result()
    finally:
        await dashboard.finish()
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await runner.cleanup()
        await reading.close()


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Dashboard:
    """The routes, and the guard before them. `token` lets a browser in."""

    def __init__(
        self, settings: Settings, clock: Clock, reading: Reading, picture: Picture, *, by: str, is_secure: bool
    ) -> None:
        self.token = secrets.token_urlsafe(24)
        self._cookie = secrets.token_urlsafe(32)
        self._csrf = secrets.token_urlsafe(32)
        self._settings = settings
        self._clock = clock
        self._reading = reading
        self._picture = picture
        self._by = by
        self._scheme = "https" if is_secure else "http"
        self._origin = settings.dashboard_origin
        self._origin_name = _name_of(self._origin.partition("://")[2])
        self._is_remote = not is_loopback(settings.dashboard_host)
        self._files = static_files()
        self._csp = content_security_policy(self._files)
        self._sockets: set[web.WebSocketResponse] = set()
        self._flattening = asyncio.Lock()
        self._ends = False

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._guard])
        app.on_response_prepare.append(self._add_headers)
        app.on_shutdown.append(self._say_goodbye)
        app.add_routes(
            [
                web.get("/api/session", self._get_session),
                web.get("/api/symbol", self._get_symbol),
                web.get("/api/slippage", self._get_slippage),
                web.get("/api/minutes", self._get_minutes),
                web.get("/api/health", self._get_health),
                web.get("/api/latency", self._get_latency),
                web.get("/api/models", self._get_models),
                web.get("/api/models/report", self._get_report),
                web.get("/api/trading", self._get_trading),
                web.get("/api/log", self._get_log),
                web.get("/api/explain", self._get_explain),
                web.post("/api/mode", self._post_mode),
                web.post("/api/flatten", self._post_flatten),
                web.get("/ws", self._get_socket),
                web.get("/{path:.*}", self._get_file),
            ]
        )
        return app

    async def finish(self) -> None:
        """Let what is being closed be closed; nothing more is begun."""
        self._ends = True
        if self._flattening.locked():
            log.info("waiting_for_flatten", action="stop")
        async with self._flattening:
            return

    # ---- the guard

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return self._refused(request) or await handler(request)
        except (Wrong, Unclear) as error:
            return _error(400, str(error))
        except (Unavailable, NeedsPerson) as error:
            return _error(503, str(error))
        except web.HTTPRequestEntityTooLarge:
            return _error(413, f"more than {MAX_BODY} bytes are not read")
        except web.HTTPException as error:
            answer = _error(error.status, error.reason)
            if isinstance(error, web.HTTPMethodNotAllowed):
                answer.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
            return answer
        except PerplineError as error:
            return _error(409, str(error))
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:  # a bug of ours: the page is told, the others go on, and the log has the rest
            log.exception("dashboard_failed", path=request.path, action="answer")
            return _error(500, "this failed: the dashboard's log says why")

    def _refused(self, request: web.Request) -> web.Response | None:
        """The answer to whom is not let in."""
        host = request.headers.get("Host", "")
        if not self._is_our_name(host):
            return _error(403, "this is reached under the name it listens on")
        origin = request.headers.get("Origin")
        if origin is not None and not self._is_our_origin(origin, host):
            return _error(403, "this is not for pages of others")
        is_entry = request.path == "/" and request.method in ("GET", "HEAD")
        if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin") and not is_entry:
            return _error(403, "this is not for pages of others")
        if is_entry and "token" in request.query:
            return self._enter(request)
        if not _same(request.cookies.get(_cookie_name(request), ""), self._cookie):
            if is_entry:
                return web.Response(status=401, text=f"<!doctype html><p>{HOW_TO_GET_IN}", content_type="text/html")
            return _error(401, HOW_TO_GET_IN)
        if request.method not in ("GET", "HEAD") and not _same(request.headers.get(CSRF_HEADER, ""), self._csrf):
            return _error(403, f"{CSRF_HEADER} is wanted, with the value that /api/session tells")
        return None

    def _enter(self, request: web.Request) -> web.Response:
        if not _same(request.query["token"], self.token):
            return web.Response(
                status=401, text=f"<!doctype html><p>This token is not ours. {HOW_TO_GET_IN}", content_type="text/html"
            )
        answer = web.Response(status=303, headers={"Location": "/"})
        is_secure = self._scheme == "https" or self._origin.startswith("https:")
        name = _cookie_name(request)
        answer.set_cookie(name, self._cookie, path="/", httponly=True, samesite="Strict", secure=is_secure)
        return answer

    def _is_our_name(self, host: str) -> bool:
        name = _name_of(host)
        if name is None:
            return False
        if is_loopback(name) or name.lower() in (self._settings.dashboard_host.lower(), self._origin_name):
            return True
        if not self._is_remote:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False  # somebody's name may lead to any address; an address leads to itself
        return True

    def _is_our_origin(self, origin: str, host: str) -> bool:
        if origin.lower() == self._origin:
            return True  # also under another name: a proxy may ask by ours
        is_asked_by_proxy = self._origin_name is not None and _name_of(host.lower()) == self._origin_name
        return not is_asked_by_proxy and origin.lower() == f"{self._scheme}://{host.lower()}"

    async def _add_headers(self, request: web.Request, answer: web.StreamResponse) -> None:
        answer.headers.update(_HEADERS)
        answer.headers.setdefault("Content-Security-Policy", self._csp)
        answer.headers.setdefault("Cache-Control", "no-store")

    # ---- the page

    async def _get_file(self, request: web.Request) -> web.Response:
        path = request.match_info["path"] or "index.html"
        found = self._files.get(path)
        if found is None:
            return _error(404, "there is no such page")
        content_type, content, tag = found
        headers = {"Cache-Control": "no-cache", "ETag": tag, "Content-Type": content_type}
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=content, headers=headers)

    # ---- what is asked

    async def _get_session(self, request: web.Request) -> web.Response:
        Asked(request).end()
        settings, picture = self._settings, self._picture
        await picture.known()
        try:
            live_confirmed = await self._reading.was_live()
        except PerplineError:
            live_confirmed = False  # the page comes up without the database, and asks for the confirmation
        return _json(
            {
                "version": __version__,
                "csrf": self._csrf,
                "slot": settings.slot,
                "symbols": picture.symbols,
                "speed": picture.speed,
                "worker": picture.status is not None,
                "database": masked_url(settings.database_url.get_secret_value()),
                "network": settings.network,
                "live_confirmed": live_confirmed,
                "languages": LANGUAGES,
            }
        )

    async def _get_symbol(self, request: web.Request) -> web.Response:
        asked = Asked(request)
        symbol = await self._known_symbol(asked)
        interval = asked.one_of("interval", INTERVAL_MS, "1m")
        limit = asked.number("limit", 1, 1500, 500)
        end = asked.number("end", 0, LAST_TIME, LAST_TIME)
        asked.end()
        return _json(await self._reading.symbol(symbol, interval, limit, end, self._settings.slot))

    async def _get_slippage(self, request: web.Request) -> web.Response:
        asked = Asked(request)
        symbol = await self._known_symbol(asked)
        side: Literal["buy", "sell"] = "buy" if asked.one_of("side", ("buy", "sell")) == "buy" else "sell"
        amount = asked.amount("quote_usdt", 1e9)
        asked.end()
        settings = self._settings
        try:
            told = (await fetch_status(settings.data_dir, settings.status_port, symbol=symbol))["symbols"].get(symbol)
        except NeedsPerson as error:
            raise Unavailable(str(error)) from None
        names = ("bid", "bid_quantity", "ask", "ask_quantity")
        bid, bid_quantity, ask, ask_quantity = (float((told or {}).get(name) or 0) for name in names)
        if min(bid, ask) <= 0:
            raise Unavailable(f"the worker knows no book of {symbol} yet")
        book = BookTicker(symbol, bid, bid_quantity, ask, ask_quantity, 0, 0, 0)
        quantity = amount / (ask if side == "buy" else bid)
        estimate = slippage_estimate(book, side, quantity)
        quoted = (ask_quantity * ask) if side == "buy" else (bid_quantity * bid)
        return _json(
            {
                "price": estimate.fill_price,
                "bps": estimate.slippage_bps,
                "quantity": quantity,
                "quoted_usdt": quoted,
                "age_s": ((told or {}).get("ages_s") or {}).get(BOOK),
                "is_stale": BOOK in (self._picture.rows.get(symbol, {}).get("stale") or ()),
            }
        )

    async def _get_minutes(self, request: web.Request) -> web.Response:
        asked = Asked(request)
        minutes = asked.number("minutes", 1, 1440, 120)
        now = await self._now()
        end = asked.number("end", 86_400_000, LAST_TIME, now)
        asked.end()
        slot, speed = self._settings.slot, self._picture.speed
        symbols = self._picture.symbols or await self._reading.symbols(slot)
        return _json(await self._reading.minutes(symbols, minutes, min(end, now), now, slot, speed))

    async def _get_health(self, request: web.Request) -> web.Response:
        Asked(request).end()
        picture = self._picture
        found = await self._or_without_tables(self._reading.health(await self._now()))
        status = picture.status or {}
        told = {name: status.get(name) for name in ("spool", "buffers", "outbox", "room")}
        return _json({**found, **told, "worker": picture.status is not None})

    async def _get_latency(self, request: web.Request) -> web.Response:
        asked = Asked(request)
        minutes = asked.number("minutes", 1, 1440, 120)
        asked.end()
        now = await self._now()
        found = await self._reading.latency(minutes, now, self._settings.slot, self._picture.speed)
        told = (self._picture.status or {}).get("decisions") or {}
        names = ("stages_ms", "close_to_signal_ms", "market_close_to_signal_ms")
        return _json({**{name: told.get(name) for name in names}, **found})

    async def _get_models(self, request: web.Request) -> web.Response:
        Asked(request).end()
        found = await self._reading.models(await self._now(), self._settings.slot)
        told = (self._picture.status or {}).get("models") or {}
        ids = {row["model_id"] for row in found["models"]} | {path.name for path in DEFAULT_MODELS.iterdir()}
        reports = await asyncio.to_thread(lambda: sorted(each for each in ids if self._report_of(each) is not None))
        names = ("champion", "shadows", "coming", "drift", "refused")
        facts = {"worker": self._picture.status is not None, "reports": reports}
        return _json({**{name: told.get(name) for name in names}, **found, **facts})

    async def _get_report(self, request: web.Request) -> web.Response:
        asked = Asked(request)
        model_id = asked.text("model_id", MODEL_ID, "the id of a model")
        asked.end()
        content = await asyncio.to_thread(self._report_of, model_id, whole=True)
        if content is None:
            return _error(404, f"{model_id} has no report here")
        headers = {"Content-Security-Policy": _REPORT_CSP, "Content-Type": "text/html; charset=utf-8"}
        return web.Response(body=content, headers=headers)

    def _report_of(self, model_id: str, *, whole: bool = False) -> bytes | None:
        """The report of a model, or only a word that there is one; None where there is none."""
        if not MODEL_ID.fullmatch(model_id):
            return None
        for folder in (DEFAULT_MODELS, self._settings.models_dir):
            path = folder / model_id / "report.html"
            try:
                if path.is_file() and path.stat().st_size <= MAX_REPORT:
                    return path.read_bytes() if whole else b"yes"
            except OSError:
                continue
        return None

    async def _get_trading(self, request: web.Request) -> web.Response:
        Asked(request).end()
        now, picture = await self._now(), self._picture
        found = {"open": {}, **await self._or_without_tables(self._reading.trading(now))}
        trading = (picture.status or {}).get("trading")
        # An account that the worker does not look after, being another's or without a key, may hold something too.
        accounts: dict[str, Any] = {
            name: {"account": name, "positions": positions, "told_by": "tables"}
            for name, positions in found.pop("open").items()
        }
        if trading is not None:
            accounts |= {
                name: {"account": name, **each, "told_by": "worker"} for name, each in trading["accounts"].items()
            }
        told = {"live": None, "keys": None, "waiting_for_lease": []} if trading is None else trading
        more = {name: told[name] for name in ("live", "keys", "waiting_for_lease")}
        return _json({**found, **more, "accounts": accounts, "pnl_today": picture.header.get("pnl_today")})

    async def _get_log(self, request: web.Request) -> web.Response:
        Asked(request).end()
        await self._picture.known()
        found = await self._reading.log()
        levels = {"critical": "error", "warning": "warning"}
        alerts = [
            {
                "event": row["name"],
                "level": levels.get(row["severity"], "info"),
                "at": row["raised_at"],
                "fields": {name: row[name] for name in ("subject", "text", "cleared_at") if row[name]},
                "runbook_url": page_of(row["name"], base) if (base := self._settings.runbook_url) else None,
            }
            for row in found.pop("alerts")
        ]
        alarms = sorted([*alerts, *self._picture.logs], key=lambda each: -each["at"])
        unwatched = watch_trouble(self._settings, SystemClock().now_ms()) or None
        return _json({**found, "alarms": alarms, "unwatched": unwatched})

    async def _get_explain(self, request: web.Request) -> web.Response:
        asked = Asked(request)
        symbol = asked.text("symbol", SYMBOL, "a symbol")
        close_time = asked.number("close_time", 0, LAST_TIME)
        slot = asked.text("slot", SLOT, "a slot", self._settings.slot)
        asked.end()
        if close_time % MINUTE_MS:
            raise Wrong("close_time: minutes close at :00")
        models_dir, speed = self._settings.models_dir, self._picture.speed
        try:
            return _json(
                await self._reading.ask(lambda store: explain_facts(store, models_dir, symbol, close_time, slot, speed))
            )
        except NoRow as error:
            return _error(404, str(error), code="no_row")

    # ---- what is changed

    async def _post_mode(self, request: web.Request) -> web.Response:
        body = await self._body(request, ModeBody)
        change = mode_change(
            body.mode,
            symbols=await self._known_symbols(body.symbols),
            reason=_line(body.reason, "reason"),
            positions=body.positions,
            lasts=None if body.lasts is None else _line(body.lasts, "for"),
            confirm_live=body.confirm_live,
            by=self._by,
        )
        store = await open_current(self._settings.database_url.get_secret_value())
        try:
            rows = await change_mode(store, self._settings, change)
        except NeedsPerson as error:
            return _error(409, str(error))
        finally:
            await store.close()
        log.info("mode_asked", mode=body.mode.value, symbols=body.symbols, by=self._by, action="mode")
        with suppress(PerplineError):  # it is stored; the page will see it a little later then
            await self._picture.look_at_tables()
        return _json({"changed": [{**msgspec.to_builtins(row), "now": row.at(row.changed_at).value} for row in rows]})

    async def _post_flatten(self, request: web.Request) -> web.Response:
        body = await self._body(request, FlattenBody)
        if body.confirm != "FLATTEN":
            raise Wrong('confirm: the word "FLATTEN" is expected')
        symbols = _names(body.symbols)  # also one that is followed no more, or never was: an account may hold it
        if self._flattening.locked():
            return _error(409, "what is open is being closed already")
        if self._ends:
            return _error(503, "the dashboard is being stopped")
        async with self._flattening:
            try:
                done = await flatten(
                    self._settings,
                    account=await self._account(body.account),
                    symbols=symbols,
                    reason="flatten, from the dashboard",
                    by=self._by,
                    tell=lambda line: log.info("flattening", said=line, action="flatten"),
                )
            except NeedsPerson as error:
                return _error(409, str(error))
        return _json({"done": done})

    async def _account(self, asked: Literal["paper", "live", "both"]) -> Literal["paper", "live", "both"] | None:
        """Both means both where there are keys, as on the command line; also where only the worker has keys, so that it
        is refused whatever the tables have of the live account."""
        if asked != "both":
            return asked
        await self._picture.known()
        trading = (self._picture.status or {}).get("trading") or {}
        return "both" if trading.get("keys") else None

    async def _body(self, request: web.Request, kind: type[B]) -> B:
        if request.content_type != "application/json":
            raise Wrong("Content-Type: application/json is expected")
        content = await request.read()
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise Wrong(f"this body cannot be read: {error}") from None

    # ---- the live picture

    async def _get_socket(self, request: web.Request) -> web.StreamResponse:
        Asked(request).end()
        if len(self._sockets) >= MOST_SOCKETS:
            return _error(503, f"{MOST_SOCKETS} pages are open already")
        socket = web.WebSocketResponse(heartbeat=PING_EVERY_S, max_msg_size=MOST_MESSAGE, compress=False)
        if not socket.can_prepare(request).ok:
            return _error(400, "a WebSocket is expected")
        self._sockets.add(socket)
        try:
            await socket.prepare(request)
            await self._show(socket)
        finally:
            self._sockets.discard(socket)
        return socket

    async def _show(self, socket: web.WebSocketResponse) -> None:
        viewer, drawn = Viewer(self._picture), asyncio.Event()
        drawn.set()
        telling = asyncio.create_task(self._tell(socket, viewer, drawn), name="browser")
        try:
            async for message in socket:
                if message.type != WSMsgType.TEXT or (number := _acknowledged(message.data)) is None:
                    await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"only {type: ack, n} is understood")
                    break
                if number == viewer.number:
                    drawn.set()
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)

    async def _tell(self, socket: web.WebSocketResponse, viewer: Viewer, drawn: asyncio.Event) -> None:
        """Tell what is new, at most every EVERY_S and not before the last was drawn: a slow page gets fewer, newer."""
        await self._picture.known()
        try:
            while not socket.closed:
                await drawn.wait()
                self._picture.want()
                for message in viewer.take():
                    if "n" in message:
                        drawn.clear()
                    async with asyncio.timeout(SEND_WITHIN_S):
                        await socket.send_str(_encode(message).decode())
                await self._clock.sleep_wall(EVERY_S)
        except (ConnectionError, TimeoutError):
            await socket.close(code=WSCloseCode.TRY_AGAIN_LATER)

    async def _say_goodbye(self, app: web.Application) -> None:
        for socket in list(self._sockets):
            await socket.close(code=WSCloseCode.GOING_AWAY)

    # ---- what several need

    async def _now(self) -> int:
        """The market's time. Where no worker ever told it, ours; but a simulated exchange has a time of its own, of
        which the newest decision tells the most."""
        await self._picture.known()
        if self._picture.now is not None:
            return self._picture.now
        newest = await self._reading.newest(self._settings.slot) if self._settings.network == "custom" else None
        return self._clock.now_ms() if newest is None else newest

    async def _or_without_tables(self, found: Awaitable[dict[str, Any]]) -> dict[str, Any]:
        """What the tables tell. Where they do not, and a worker answers, only why: what that one tells is shown."""
        try:
            return await found
        except PerplineError as error:
            if self._picture.status is None:
                raise
            return {"database_error": str(error)}

    async def _known_symbol(self, asked: "Asked") -> str:
        symbol = asked.text("symbol", SYMBOL, "a symbol")
        [known] = await self._known_symbols([symbol])
        return known

    async def _known_symbols(self, names: Collection[str]) -> list[str]:
        if not (wanted := _names(names)):
            return []
        await self._picture.known()
        known = set(self._picture.rows)
        if not known >= set(wanted):
            known |= set(await self._reading.symbols(self._settings.slot))
        for name in wanted:
            if name not in known:
                raise Wrong(f"{name} is not followed here")
        return wanted


class Asked:
    """The parameters of a request, each taken and checked once. Raises Wrong."""

    def __init__(self, request: web.Request) -> None:
        self._left = dict(request.query)
        if len(self._left) != len(request.query):
            raise Wrong("a parameter is given twice")

    def end(self) -> None:
        """Everything was taken."""
        for name in self._left:
            raise Wrong(f"there is no parameter {name[:40]!r}")

    def text(self, name: str, pattern: re.Pattern[str], what: str, default: str | None = None) -> str:
        given = self._left.pop(name, default)
        if given is None or not pattern.fullmatch(given):
            raise Wrong(f"{name}: {what} is expected")
        return given

    def one_of(self, name: str, choices: Collection[str], default: str | None = None) -> str:
        given = self._left.pop(name, default)
        if given is None or given not in choices:
            raise Wrong(f"{name}: one of {', '.join(choices)} is expected")
        return given

    def number(self, name: str, least: int, most: int, default: int | None = None) -> int:
        given = self._left.pop(name, None)
        if given is None:
            if default is None:
                raise Wrong(f"{name} is expected")
            return default
        if not re.fullmatch(r"[0-9]{1,15}", given) or not least <= int(given) <= most:
            raise Wrong(f"{name}: a whole number from {least} to {most} is expected")
        return int(given)

    def amount(self, name: str, most: float) -> float:
        given = self._left.pop(name, "")
        if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,8})?", given) or not 0 < float(given) <= most:
            raise Wrong(f"{name}: a number above 0 and up to {most:.0f} is expected")
        return float(given)


def static_files() -> dict[str, tuple[str, bytes, str]]:
    """The page's files by path: content type, content and tag. What is not among them is not served."""
    found = {}

    def look(folder: Traversable, prefix: str) -> None:
        for entry in folder.iterdir():
            if entry.is_dir():
                look(entry, f"{prefix}{entry.name}/")
            elif (kind := _TYPES.get(entry.name.rpartition(".")[2])) is not None:
                content = entry.read_bytes()
                found[prefix + entry.name] = kind, content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'

    look(files("perpline.dashboard") / "static", "")
    return found


def content_security_policy(page: Mapping[str, tuple[str, bytes, str]]) -> str:
    """What the page may do: nothing but its own files. A chart library adds one style sheet, which is named by hash."""
    manifest = page.get("vendor/MANIFEST.json")
    own = [] if manifest is None else msgspec.json.decode(manifest[1]).get("style_sources", [])
    styles = " ".join(["'self'", *(each for each in own if re.fullmatch(r"'sha256-[A-Za-z0-9+/=]+'", each))])
    return (
        f"default-src 'none'; script-src 'self'; style-src {styles}; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    )


def _json(value: Mapping[str, Any]) -> web.Response:
    return web.Response(body=_encode(value), content_type="application/json")


def _error(status: int, text: str, **more: str) -> web.Response:
    return web.Response(status=status, body=_encode({"error": text, **more}), content_type="application/json")


def _cookie_name(request: web.Request) -> str:
    """With our port, for a browser tells all ports of a machine apart by nothing else."""
    transport = request.transport
    port = 0 if transport is None else transport.get_extra_info("sockname")[1]
    return f"perpline_session_{port}"


def _same(given: str, ours: str) -> bool:
    return secrets.compare_digest(given.encode(errors="surrogateescape"), ours.encode())


def _name_of(host: str) -> str | None:
    """The name in a Host header; None where it is none."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises where it is no number
    except ValueError:
        return None
    return parts.hostname if parts.netloc == host and "@" not in host and parts.path == "" else None


def _acknowledged(text: str) -> int | None:
    """The number in {"type": "ack", "n": 7}; None for anything else."""
    try:
        said = msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if (
        not isinstance(said, dict)
        or said.keys() != {"type", "n"}
        or said["type"] != "ack"
        or type(said["n"]) is not int
    ):
        return None
    return int(said["n"])


def _names(symbols: Collection[str]) -> list[str]:
    """The symbols as they are written, each once. Raises Wrong for what can be none."""
    wanted = list(dict.fromkeys(name.upper() for name in symbols))
    if len(wanted) > 2000 or not all(SYMBOL.fullmatch(name) for name in wanted):
        raise Wrong("symbols: names like BTCUSDT are expected")
    return wanted


def _line(text: str, name: str) -> str:
    """A text for a column that people read. Raises Wrong for what is no line, or a long one."""
    if len(text) > 500 or not all(character.isprintable() for character in text):
        raise Wrong(f"{name}: a line of at most 500 characters is expected")
    return text
